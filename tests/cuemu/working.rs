//! What has to work: schedules, graphs, several threads.

use crate::child::{run, run_with};
use std::collections::BTreeSet;

fn passes(mode: &str, case: &str) {
    let Some(outcome) = run(mode, case) else { return };
    assert!(outcome.error.is_empty() && outcome.reports.is_empty(), "{mode}|{case}: {outcome:?}");
}

#[test]
fn graphs_replay_what_was_captured() {
    for mode in ["fast", "check streams=deferred"] {
        passes(mode, "graph");
    }
}

#[test]
fn threads_of_a_program_share_the_driver() {
    for mode in ["fast", "fast streams=deferred", "check"] {
        passes(mode, "threads");
    }
}

#[test]
fn the_environment_configures_too_and_calls_win() {
    let environment = [("CUEMU", "cc=86 memory=12345")];
    for (mode, text) in [("fast", "minor 6, 12345 bytes"), ("fast cc=89", "minor 9, 12345 bytes")] {
        let Some(outcome) = run_with(mode, "environment", &environment) else { return };
        assert_eq!(outcome.error, text);
    }
}

#[test]
fn the_log_has_launches_and_reports() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let Some(outcome) = run(&format!("fast log={}", log.display()), "trap") else { return };
    let text = std::fs::read_to_string(log).expect("a log");
    assert!(text.contains("cuemu: kernel trap grid (1,1,1) block (64,1,1) shared 0\n"), "{text}");
    assert!(text.contains(&outcome.reports) && outcome.reports.contains("__trap at plants.cu:"), "{text}");
}

/// The order in which blocks ran, and that of the threads of a block.
#[test]
fn schedules_differ_and_repeat() {
    let order = |mode: &str| run(&format!("fast threads=1 {mode}"), "order").map(|outcome| outcome.error);
    let Some(fifo) = order("sched=fifo") else { return };
    let numbers = |n: usize| (0..n).map(|i| format!("{i}.0")).collect::<Vec<_>>();
    let reversed = |n: usize| numbers(n).into_iter().rev().collect::<Vec<_>>();
    let text =
        |blocks: Vec<String>, threads: Vec<String>| format!("[{}]", [blocks, threads].concat().join(", "));
    assert_eq!(fifo, text(numbers(128), numbers(64)));
    assert_eq!(order("sched=reverse"), Some(text(reversed(128), reversed(64))));
    let random: Vec<_> = (1..=3).filter_map(|seed| order(&format!("sched=random seed={seed}"))).collect();
    assert_eq!(random.iter().collect::<BTreeSet<_>>().len(), 3, "the seeds give different orders");
    assert_eq!(order("sched=random seed=1").as_ref(), random.first(), "and each always the same");
}
