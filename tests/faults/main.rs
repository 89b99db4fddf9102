//! What a disk can do to a run: every operation of a save and of a resume fails once, from there on, or is the last
//! before the power goes. Cases 63 to 65 of the table in `tests/commands/cases.rs`, from inside.

#[path = "../common/mod.rs"]
mod common;

mod disk;
mod runs;
mod saves;
mod simulator;
