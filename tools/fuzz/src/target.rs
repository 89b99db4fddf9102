//! libFuzzer's entry for every target of `tests/fuzz/targets`; `OTHINK_FUZZ_TARGET` says which.
//!
//! With `OTHINK_FUZZ_SEEDS=FOLDER` it writes the target's seeds there, its dictionary and greatest length beside them, and ends.

#![no_main]

#[path = "../../../tests/fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::path::Path;
use std::sync::{LazyLock, Mutex, Once};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use targets::mutate::{Random, mutate};
use targets::{Target, target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    target(&std::env::var("OTHINK_FUZZ_TARGET").expect("OTHINK_FUZZ_TARGET names a target"))
});

/// Inputs to take pieces from.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (TARGET.seeds)());

fuzz_target!(init: start(), |input: &[u8]| {
    // Only a panic that reaches this place is a finding: libfuzzer-sys's hook would end the process at panics that the
    // program catches, too. `start` runs before that hook is set.
    static HOOK: Once = Once::new();
    static MESSAGE: Mutex<String> = Mutex::new(String::new());
    HOOK.call_once(|| {
        set_hook(Box::new(|panic| {
            if let Ok(mut message) = MESSAGE.lock() {
                *message = panic.to_string();
            }
        }));
    });
    // A stack that overflows ends the process before libFuzzer can keep the input.
    if let Some(path) = &*RUNNING {
        fs::write(path, input).expect("the file of the running input can be written");
    }
    if catch_unwind(AssertUnwindSafe(|| (TARGET.body)(input))).is_err() {
        eprintln!("{}", MESSAGE.lock().map(|message| message.clone()).unwrap_or_default());
        std::process::abort();
    }
});

/// Where the input that is running is kept.
static RUNNING: LazyLock<Option<std::ffi::OsString>> =
    LazyLock::new(|| std::env::var_os("OTHINK_FUZZ_RUNNING"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(seed.into());
    let mut input = data[..size].to_vec();
    match random.below(3) {
        0 => mutate(&TARGET, &mut random, &mut input, &SEEDS[seed as usize % SEEDS.len()]),
        _ => {
            let size = fuzzer_mutate(data, size, max_size);
            input = data[..size].to_vec();
            if random.below(2) == 0 {
                (TARGET.repair)(&mut input);
            }
        }
    }
    input.truncate(max_size);
    data[..input.len()].copy_from_slice(&input);
    input.len()
});

fn start() {
    let Some(folder) = std::env::var_os("OTHINK_FUZZ_SEEDS") else { return };
    let folder = Path::new(&folder);
    for (n, seed) in SEEDS.iter().enumerate() {
        fs::write(folder.join(format!("seed-{n:03}")), seed).expect("the folder of the seeds can be written");
    }
    let word = |word: &[u8]| word.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let lines: String = TARGET.dictionary.iter().map(|entry| format!("\"{}\"\n", word(entry))).collect();
    fs::write(folder.with_extension("dict"), lines).expect("the dictionary can be written");
    fs::write(folder.with_extension("max_len"), TARGET.max_bytes.to_string()).expect("a file can be written");
    std::process::exit(0);
}
