//! Writing model folders that Hugging Face tools load, so that no fault leaves half of one.
//!
//! [`write_folder`] makes a folder appear whole or not at all; [`SavePlan`] and [`save_model`] fill
//! one with a model, in the config dialect, tensor names and dtype it was loaded with;
//! [`describe`] says what a folder holds.

mod atomic;
mod describe;
mod manifest;
mod plan;
mod safetensors;
mod save;
mod saver;
mod series;
mod state;

pub use atomic::{NewFile, NewFolder, OnExisting, create_dir_all, replace_file, write_folder};
pub use describe::{CheckpointDescription, Description, RunDescription, describe};
pub use manifest::{Flaw, MANIFEST, Manifest};
pub use plan::{COMPANION_FILES, SavePlan};
pub use safetensors::{FloatDtype, NamedTensor, Values, write_safetensors};
pub use save::{WeightRef, save_model};
pub use saver::{Log, Saver, check_space};
pub use series::{Newest, checkpoint_dir, list_checkpoints, newest_whole, sweep};
pub use state::{
    Best, GuardState, Identity, Refills, ResumeState, SavedReference, SavedRollout, SavedRun, Snapshot,
    StreamPosition, TrainerState, checkpoint_bytes,
};
