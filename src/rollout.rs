//! Generation: from prompts to completions with their log-probabilities.

pub mod sampler;
pub mod sequence;
pub mod stop;
