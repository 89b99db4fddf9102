//! Qwen2-VL.
pub mod config;
