//! This program again, in other modes.

use crate::harness::{VARIABLE, gpu};
use othink::cuda::kernels::MODULES;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::Command;

/// Runs every other test of this program in a mode, and fails with its output.
fn run_again(mode: &str, environment: &[(&str, &str)]) {
    run_some(&[], mode, environment);
}

/// Runs the other tests of this program that the filters name, all of them without any.
fn run_some(filters: &[&str], mode: &str, environment: &[(&str, &str)]) {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(program);
    command
        .args(filters)
        .args(["--skip", "reruns::", "--quiet"])
        .env(VARIABLE, mode)
        .envs(environment.iter().copied());
    let output = command.output().expect("this program can be started again");
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in mode `{mode}`:\n{text}\n{notes}");
    let skipped = notes.lines().filter(|line| line.starts_with("skipped: "));
    skipped.for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
}

fn emulated(mode: &str) {
    if std::env::var_os(VARIABLE).is_none() && gpu().is_some() {
        run_again(mode, &[]);
    }
}

#[test]
fn threads_in_reverse_on_an_a100() {
    emulated("fast sched=reverse async=eager cc=80");
}

#[test]
fn threads_at_random_on_an_rtx_30() {
    emulated("fast sched=random async=random streams=deferred seed=1 cc=86");
}

#[test]
fn threads_at_random_on_an_rtx_40() {
    emulated("fast sched=random async=random streams=deferred seed=2 cc=89");
}

#[test]
fn threads_at_random_on_a_hopper() {
    emulated("fast sched=random async=late streams=deferred seed=3 cc=90");
}

/// As where there is no cuBLASLt: whole models on our own matrix products.
#[test]
fn with_our_own_products() {
    if std::env::var_os(VARIABLE).is_none() && gpu().is_some() {
        run_some(&["model::", "grpo::"], "fast sched=fifo", &[("OTHINK_GEMM", "own")]);
    }
}

#[test]
fn with_every_access_checked() {
    emulated("check");
}

#[test]
fn on_a_gpu() {
    if std::env::var_os(VARIABLE).is_none() {
        run_again("device", &[]);
    }
}

/// Every `__global__` function is launched by a test of this program.
#[test]
fn every_kernel_is_launched() {
    if std::env::var_os(VARIABLE).is_some() || gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace");
    run_again("fast sched=fifo", &[("OTHINK_TRACE", trace.to_str().expect("a plain path"))]);
    let text = fs::read_to_string(&trace).expect("the trace was written");
    let launched: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("launch ")?.split(' ').next()).collect();
    let declared = MODULES.iter().flat_map(|module| module.kernels).map(|kernel| kernel.name);
    let missing: Vec<&str> = declared.filter(|name| !launched.contains(name)).collect();
    assert!(missing.is_empty(), "kernels that no test launches: {missing:?}");
}
