//! The policy's families, and the Hugging Face folders they are read from.

pub mod folder;
pub mod generation;
pub mod qwen2_vl;
pub mod safetensors;
