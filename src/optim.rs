//! The optimiser: AdamW, the global gradient norm and its clipping, learning-rate schedules.

pub mod adamw;
pub mod clip;
#[allow(unsafe_code)]
pub mod cuda;
pub mod optimiser;
pub mod schedule;

pub use adamw::{AdamW, AdamWConfig, ParamGroup, TensorState};
pub use clip::{clip_coefficient, global_grad_norm};
pub use optimiser::{Optimiser, param_groups};
pub use schedule::{LrSchedule, LrSchedulerType, warmup_steps};
