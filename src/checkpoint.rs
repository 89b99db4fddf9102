//! Writing model folders that Hugging Face tools load, so that no fault leaves half of one.
//!
//! [`write_folder`] makes a folder appear whole or not at all; [`SavePlan`] and [`save_model`] fill
//! one with a model, in the config dialect, tensor names and dtype it was loaded with;
//! [`describe`] says what a folder holds.

mod atomic;
mod describe;
mod plan;
mod safetensors;
mod save;

pub use atomic::{OnExisting, write_folder};
pub use describe::{CheckpointDescription, Description, RunDescription, describe};
pub use plan::{COMPANION_FILES, SavePlan};
pub use safetensors::{FloatDtype, NamedTensor, Values, write_safetensors};
pub use save::{WeightRef, save_model};
