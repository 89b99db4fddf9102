//! Every class of bug that the emulator claims to catch, planted: in which flavours and modes it is caught, by which words,
//! and where it isn't.

use crate::child::{Outcome, run, source};
use std::fs;

/// `plants.cu:LINE` of the line with this name.
fn at(name: &str) -> String {
    let text = fs::read_to_string(source()).expect("plants.cu");
    let mark = format!("// @{name}");
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| line.ends_with(&mark));
    let (number, _) = lines.next().unwrap_or_else(|| panic!("plants.cu names no line {name}"));
    format!("plants.cu:{number}")
}

/// The case fails, and its reports, or else its error, have all these words in this order.
pub fn caught(mode: &str, case: &str, words: &[&str]) {
    let Some(Outcome { error, reports }) = run(mode, case) else { return };
    assert!(!error.is_empty() && !error.starts_with("wrong result"), "{mode}|{case}: `{error}`\n{reports}");
    let text = format!("{reports}\n{error}");
    let mut rest = text.as_str();
    for word in words {
        let Some((_, after)) = rest.split_once(word) else { panic!("{mode}|{case}: no `{word}` in\n{text}") };
        rest = after;
    }
}

/// Nothing is reported, but the output is wrong.
pub fn wrong(mode: &str, case: &str) {
    let Some(Outcome { error, reports }) = run(mode, case) else { return };
    assert!(error.starts_with("wrong result") && reports.is_empty(), "{mode}|{case}: `{error}`\n{reports}");
}

/// Nothing is reported, and the output is right: this mode doesn't see the bug.
pub fn missed(mode: &str, case: &str) {
    let Some(Outcome { error, reports }) = run(mode, case) else { return };
    assert!(error.is_empty() && reports.is_empty(), "{mode}|{case}: `{error}`\n{reports}");
}

#[test]
fn clean_kernels_pass_in_all_modes() {
    for mode in [
        "fast",
        "fast sched=reverse async=eager cc=80",
        "fast sched=random async=random streams=deferred seed=1",
        "fast threads=1 poison=0",
        "check",
        "check sched=reverse async=eager",
        "check sched=random async=random streams=deferred seed=2",
    ] {
        missed(mode, "all_clean");
    }
}

#[test]
fn a_missing_barrier_before_a_read() {
    let (write, read) = (at("barrier_raw write"), at("barrier_raw read"));
    let race = "read-after-write race on byte 0 of dynamic shared memory: read at ";
    caught(
        "check",
        "barrier_raw",
        &[
            "kernel barrier_raw block (0,0,0) thread (1,0,0): ",
            race,
            &read,
            "isn't ordered after write at ",
            &write,
            "by thread 0 (warp 0)",
        ],
    );
    caught(
        "check sched=reverse",
        "barrier_raw",
        &["uninitialised byte 248 of dynamic shared memory: read at ", &read],
    );
    wrong("fast sched=reverse", "barrier_raw");
    missed("fast", "barrier_raw");
    let (write, read) = (at("barrier_raw_static write"), at("barrier_raw_static read"));
    caught("check", "barrier_raw_static", &["read-after-write race", "static shared memory", &read, &write]);
    wrong("fast sched=reverse", "barrier_raw_static");
}

#[test]
fn a_missing_barrier_after_a_read() {
    let (write, read) = (at("barrier_war write"), at("barrier_war read"));
    caught(
        "check",
        "barrier_war",
        &[
            "write-after-read race on byte 0 of dynamic shared memory: write at ",
            &write,
            "isn't ordered after read at ",
            &read,
            "by thread 63 (warp 1)",
        ],
    );
    wrong("fast", "barrier_war");
}

#[test]
fn a_wait_for_copies_that_is_off_by_one() {
    let read = at("copy_wait read");
    for mode in ["check", "check async=eager"] {
        caught(mode, "copy_wait", &["read-before-arrival race", &read, "cp.async", "plants.cu"]);
    }
    wrong("fast", "copy_wait");
    missed("fast async=eager", "copy_wait");
}

#[test]
fn global_memory_past_the_end() {
    let line = at("global_overrun write");
    caught(
        "fast",
        "global_overrun",
        &["illegal write at ", &line, "0 bytes past the end of allocation 1 (1024 bytes)"],
    );
    caught(
        "check",
        "global_overrun",
        &["global write of 4 bytes is out of bounds", &line, "0 bytes past the end"],
    );
    let line = at("global_overrun_unaligned write");
    caught(
        "check",
        "global_overrun_unaligned",
        &["global write of 4 bytes is out of bounds", &line, "(1012 bytes)"],
    );
    missed("fast", "global_overrun_unaligned");
}

#[test]
fn dynamic_shared_memory_past_the_end() {
    let line = at("dynamic_overrun write");
    caught(
        "fast",
        "dynamic_overrun",
        &["shared write at ", &line, "0 bytes past the end of the block's 256 dynamic bytes"],
    );
    caught(
        "check",
        "dynamic_overrun",
        &["dynamic shared write of 4 bytes at offset 256 of 256 is out of bounds", &line],
    );
    let line = at("dynamic_underrun write");
    caught(
        "check",
        "dynamic_underrun",
        &["dynamic shared write of 4 bytes at offset -4 of 256 is out of bounds", &line],
    );
    wrong("fast", "dynamic_underrun");
}

#[test]
fn arrays_past_their_end() {
    caught(
        "check",
        "static_overrun",
        &["index 64 is out of the array's bounds at ", &at("static_overrun write")],
    );
    wrong("fast", "static_overrun");
    caught(
        "check",
        "local_overrun",
        &["index 4 is out of the array's bounds at ", &at("local_overrun read")],
    );
}

#[test]
fn reads_of_what_nobody_wrote() {
    let line = at("uninitialised_global read");
    caught(
        "check",
        "uninitialised_global",
        &["uninitialised global memory: read at ", &line, "into allocation 2"],
    );
    wrong("fast", "uninitialised_global");
    let line = at("uninitialised_shared read");
    caught(
        "check",
        "uninitialised_shared",
        &["uninitialised byte 0 of dynamic shared memory: read at ", &line],
    );
    wrong("fast", "uninitialised_shared");
}

#[test]
fn misaligned_vectors() {
    for plant in ["misaligned", "misaligned_pack"] {
        caught(
            "check",
            plant,
            &["misaligned access at ", &at(&format!("{plant} read")), "isn't a multiple of 16"],
        );
    }
}

#[test]
fn pointers_that_lead_nowhere() {
    for mode in ["fast", "check", "fast streams=deferred"] {
        caught(
            mode,
            "freed_pointer",
            &["kernel clean, pointer parameter 0: ", "0 bytes into FREED allocation 1"],
        );
        caught(mode, "host_pointer", &["pointer parameter 0: ", "isn't device memory (a host pointer?)"]);
        caught(mode, "null_pointer", &["illegal ", "plants.cu", "isn't device memory"]);
        caught(mode, "freed_twice", &["INVALID_VALUE", "free: ", "FREED allocation 1"]);
        caught(
            mode,
            "copy_past_the_end",
            &["INVALID_VALUE", "copy from the device of 404 bytes", "(400 bytes)"],
        );
    }
}

#[test]
fn a_missing_syncwarp() {
    let (write, read) = (at("missing_syncwarp write"), at("missing_syncwarp read"));
    for mode in ["check", "check sched=reverse"] {
        caught(mode, "missing_syncwarp", &["read-after-write race", &read, "isn't ordered after", &write]);
    }
    missed("fast", "missing_syncwarp");
}

#[test]
fn threads_that_part_at_a_barrier() {
    let (one, other) = (at("divergent_barrier one"), at("divergent_barrier other"));
    for mode in ["fast", "check"] {
        caught(
            mode,
            "divergent_barrier",
            &["divergent __syncthreads: this thread is at ", &other, "others wait at ", &one],
        );
    }
}

#[test]
fn lanes_that_stay_away_from_a_collective() {
    let (shuffle, barrier) = (at("shuffle_absent"), at("shuffle_absent barrier"));
    for mode in ["fast", "check"] {
        caught(
            mode,
            "shuffle_absent",
            &[
                "kernel shuffle_absent block (0,0,0): deadlock, 64 of 64 threads have not returned:",
                "32 (first: thread 0) wait in a shuffle at ",
                &shuffle,
                "32 (first: thread 16) wait in __syncthreads at ",
                &barrier,
            ],
        );
        caught(
            mode,
            "shuffle_mask",
            &[&at("shuffle_mask"), "mask 0000ffff doesn't name the calling lane 16"],
        );
    }
}

#[test]
fn a_stack_that_overflows() {
    for mode in ["fast", "check"] {
        caught(mode, "stack_overflow", &["stack overflow at ", "plants.cu", "a thread has 64 KiB"]);
    }
}

#[test]
fn blocks_that_meet_in_global_memory() {
    let line = at("blocks_write");
    caught(
        "check",
        "blocks_write",
        &["race between blocks: write at ", &line, "meets a write by block 0 of the same launch"],
    );
    missed("fast", "blocks_write");
    let (read, write) = (at("blocks_read read"), at("blocks_read write"));
    caught("check", "blocks_read", &["race between blocks: write at ", &write, "meets a read by block 0"]);
    caught(
        "check sched=reverse",
        "blocks_read",
        &["race between blocks: read at ", &read, "meets a write by block 1"],
    );
    missed("fast", "blocks_read");
}

#[test]
fn deadlocks() {
    let (the_loop, barrier) = (at("deadlock loop"), at("deadlock barrier"));
    for mode in ["fast threads=1", "check"] {
        caught(
            mode,
            "deadlock",
            &[
                "kernel deadlock block (0,0,0) thread (5,0,0): deadlock: the loop at ",
                &the_loop,
                "63 (first: thread 0) wait in __syncthreads at ",
                &barrier,
            ],
        );
        caught(
            mode,
            "named_deadlock",
            &[
                "kernel named_deadlock block (0,0,0): deadlock, 32 of 64 threads have not returned: 32 (first: thread 0) wait in \
             a named barrier at ",
                &at("named_deadlock"),
            ],
        );
    }
}

#[test]
fn division_by_zero_and_traps() {
    for mode in ["fast", "check"] {
        caught(mode, "division_by_zero", &["integer division by zero at ", &at("division_by_zero")]);
        caught(mode, "trap", &["__trap at ", &at("trap")]);
        missed_after_reset(mode);
    }
}

/// After a failure and a reset of the context the same kernel runs again; the reports start anew.
fn missed_after_reset(mode: &str) {
    missed(mode, "reset");
}

#[test]
fn a_missing_event_between_streams() {
    let outcome = |seed| run(&format!("fast streams=deferred seed={seed}"), "streams_without_event");
    let outcomes: Vec<_> = (1..=8).filter_map(outcome).collect();
    let wrong = outcomes.iter().filter(|o| o.error.starts_with("wrong result")).count();
    assert!(outcomes.is_empty() || wrong > 0, "8 orders, and all in that of the calls: {outcomes:?}");
    missed("fast", "streams_without_event");
    for seed in 1..=8 {
        missed(&format!("fast streams=deferred seed={seed}"), "streams_with_event");
    }
}

#[test]
fn a_staging_buffer_that_is_used_again_too_early() {
    for mode in ["fast streams=deferred", "check streams=deferred"] {
        caught(
            mode,
            "staging_unawaited",
            &["the pinned source of a copy of 1024 bytes to the device was changed before the copy was done"],
        );
        missed(mode, "staging");
    }
    missed("fast", "staging_unawaited");
}

#[test]
fn a_download_that_is_read_too_early() {
    for mode in ["fast streams=deferred", "check streams=deferred"] {
        wrong(mode, "download_unawaited");
        missed(mode, "download");
    }
    missed("fast", "download_unawaited");
}

#[test]
fn calls_that_cannot_be_served() {
    caught("fast", "before_init", &["NOT_INITIALIZED", "cuInit has not been called"]);
    caught("fast", "unemulated", &["cuArrayDestroy"]);
}
