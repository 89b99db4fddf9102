//! othink: GRPO with the dynamic KL weight of OThink-MR1 on Qwen2-VL-family models.
//!
//! The modules stand in the order in which data flows; each uses only those above it
//! (`tests/layering.rs` enforces it):
//!
//! ```text
//! Config -> Sample -> Prompt -> Packed -> Rollout -> rewards -> advantages
//!        -> Batch -> Loss -> Grads -> Params -> Checkpoint, StepReport
//! ```
//!
//! Dimension letters, everywhere: `B` sequences, `T` packed tokens, `H` query heads,
//! `K` key/value heads, `D` head dimension, `C` width, `F` feed-forward width,
//! `V` vocabulary, `N` patches, `P` prompts, `G` completions per prompt.
//! Ragged and host arrays carry them as suffixes (`rewards_pg`, `logp_t`, `positions_3t`).

pub mod error;
pub mod files;
pub mod disk;
pub mod hub;
pub mod config;
pub mod rng;
pub mod cuda;
pub mod tensor;
pub mod autograd;
pub mod ops;
pub mod nn;
pub mod data;
pub mod tasks;
pub mod processor;
pub mod packed;
pub mod model;
pub mod rollout;
pub mod reward;
pub mod advantage;
pub mod kl;
pub mod batch;
pub mod loss;
pub mod optim;
pub mod checkpoint;
pub mod report;
pub mod train;
pub mod parity;
pub mod demo;
pub mod reproduce;
pub mod cli;
