//! Qwen2-VL.

pub mod config;
pub mod weights;
