//! The kernels against the CPU's ops: with no GPU through the emulated driver of `tools/cuemu`, and on a GPU where there is one.
//!
//! A test asks [`harness::gpu`] for the device and compares by [`compare`]. Run plainly, the program uses the emulator's fast flavour;
//! [`again`] starts it again in other modes: other schedules, the checking flavour, older GPUs, a real one.

#[path = "../common/mod.rs"]
mod common;
mod again;
mod compare;
#[allow(unsafe_code)]
mod harness;

mod activation;
mod adamw;
mod attention;
mod commands;
#[allow(unsafe_code)]
mod conformance;
mod demo;
mod doctor;
mod elementwise;
mod embedding;
#[allow(unsafe_code)]
mod gemm;
mod group_advantage;
mod grpo;
mod grpo_loss;
mod linear;
mod log_softmax_kl;
mod memory;
mod model;
mod norm;
mod optimiser;
mod patch_embed;
mod rope;
#[allow(unsafe_code)]
mod sample;
mod supervised_loss;
mod train;
