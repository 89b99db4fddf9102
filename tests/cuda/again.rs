//! This program again, in other modes. Tests begin in the order of their names: the longest, `all_accesses_checked`, is among the first.

use crate::harness::{VARIABLE, gpu};
use othink::cuda::kernels::MODULES;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::Command;

/// Tests of whole models and of the program. Their kernels are those that the other tests launch, so one schedule of each kind is
/// enough for them.
const WHOLE: [&str; 5] = ["model::", "grpo::", "train::", "commands::", "demo::"];

/// Runs the other tests of this program that `filters` name (all without any) and `skipped` don't, in a mode, and fails with their
/// output.
fn run_again(filters: &[&str], skipped: &[&str], mode: &str, environment: &[(&str, &str)]) {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(program);
    let skipped = ["again::"].iter().chain(skipped).flat_map(|module| ["--skip", module]);
    command.args(filters).args(skipped).arg("--quiet").env(VARIABLE, mode).envs(environment.iter().copied());
    let output = command.output().expect("this program can be started again");
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in mode `{mode}`:\n{text}\n{notes}");
    let skipped = notes.lines().filter(|line| line.starts_with("skipped: "));
    skipped.for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
}

/// On one of the host's threads each: the modes run beside each other.
fn emulated(filters: &[&str], skipped: &[&str], mode: &str, environment: &[(&str, &str)]) {
    if std::env::var_os(VARIABLE).is_none() && gpu().is_some() {
        run_again(filters, skipped, &format!("{mode} threads=1"), environment);
    }
}

/// The smallest shared memory of all GPUs served. An A100, and an RTX 40, differ from it only by having more or as much.
#[test]
fn threads_in_reverse_on_an_rtx_30() {
    emulated(&[], &WHOLE, "fast sched=reverse async=eager cc=86", &[]);
}

/// Of whole models what trains: streams and events in another order.
#[test]
fn whole_models_at_random() {
    emulated(
        &["grpo::", "train::", "demo::"],
        &[],
        "fast sched=random async=late streams=deferred seed=4 cc=90",
        &[],
    );
}

/// As where there is no cuBLASLt: whole steps on our own matrix products.
#[test]
fn with_our_own_products() {
    emulated(&["grpo::"], &[], "fast sched=fifo", &[("OTHINK_GEMM", "own")]);
}

/// Of whole models only the steps of GRPO: rollout, forward and backward pass, update.
#[test]
fn all_accesses_checked() {
    emulated(&[], &["model::", "train::"], "check", &[]);
}

#[test]
fn on_a_gpu() {
    if std::env::var_os(VARIABLE).is_none() {
        run_again(&[], &[], "device", &[]);
    }
}

/// Threads at random on a Hopper; and every `__global__` function is launched by a test that compares what it gives.
#[test]
fn every_kernel_is_launched() {
    if std::env::var_os(VARIABLE).is_some() || gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace");
    let mode = "fast sched=random async=late streams=deferred seed=3 cc=90";
    emulated(&[], &WHOLE, mode, &[("OTHINK_TRACE", trace.to_str().expect("a plain path"))]);
    let text = fs::read_to_string(&trace).expect("the trace was written");
    let launched: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("launch ")?.split(' ').next()).collect();
    let declared = MODULES.iter().flat_map(|module| module.kernels).map(|kernel| kernel.name);
    let missing: Vec<&str> = declared.filter(|name| !launched.contains(name)).collect();
    assert!(missing.is_empty(), "kernels that no test launches: {missing:?}");
}
