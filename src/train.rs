//! Training and evaluation: each step names the stages of the data flow in order.

pub mod ahead;
pub mod evaluate;
pub mod folder;
pub mod grpo;
pub mod guard;
pub mod interrupt;
pub mod lock;
pub mod plan;
pub mod policy;
pub mod resume;
pub mod run;
pub mod sft;
pub mod stream;
pub mod trainer;
pub mod update;
