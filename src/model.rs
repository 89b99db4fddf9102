//! The policy's families.
pub mod qwen2_vl;
