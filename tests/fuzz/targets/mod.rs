//! What is fuzzed: for each kind of file that may come from a stranger, what the program does with it and what then has to
//! hold.
//!
//! The same code runs twice: in `cargo test` ([`main.rs`](../main.rs), a seeded loop of mutations without coverage) and under
//! libFuzzer (`tools/fuzz`).

// Each of the two programs uses a part of this.
#![allow(dead_code)]

pub mod mutate;

mod answer;
mod config;
mod image;
mod jsonl;
mod safetensors;
mod table;
mod template;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use othink::error::Error;
use othink::report::console::one_line;

/// An input that takes this long hangs. Far above what any takes, since machines may be busy. (libFuzzer has a limit of
/// its own.)
pub const HANG: Duration = Duration::from_secs(60);

/// One kind of hostile input.
pub struct Target {
    /// Its name, also that of its folder in `tests/fuzz/regressions`.
    pub name: &'static str,
    /// Does with the input what the program does, and panics where a promise is broken.
    pub body: fn(&[u8]) -> Outcome,
    /// Small valid inputs, and some that are not.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format.
    pub dictionary: &'static [&'static [u8]],
    /// Mends lengths and checksums that a mutation broke, so that it gets past the first check.
    pub repair: fn(&mut Vec<u8>),
    /// Longest input that is made, bytes.
    pub max_bytes: usize,
}

/// Every target.
pub const TARGETS: [Target; 7] = [
    safetensors::TARGET,
    config::TARGET,
    jsonl::TARGET,
    table::TARGET,
    image::TARGET,
    template::TARGET,
    answer::TARGET,
];

/// The target of that name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target's name")
}

/// Runs the body on one input.
pub fn run(target: &Target, input: &[u8]) -> Outcome {
    let start = Instant::now();
    let outcome = (target.body)(input);
    let took = start.elapsed();
    assert!(took < HANG, "took {took:?}");
    outcome
}

/// What became of an input, in short: two inputs with different outcomes took different ways through the code. The loop
/// of `cargo test`, which sees no coverage, keeps one input of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome(u64);

impl Outcome {
    /// An outcome with a number of its own.
    pub fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Outcome(hasher.finish())
    }

    /// Both of two outcomes.
    pub fn and(self, other: Outcome) -> Outcome {
        Outcome::of((self.0, other.0))
    }
}

/// Checks an error that bad content caused: its exit code is among `codes` (so it is no bug of ours) and its message is a
/// line that can be read.
pub fn refused(error: &Error, codes: &[u8]) -> Outcome {
    let message = error.to_string();
    assert!(codes.contains(&error.exit_code()), "exit code {} for bad content: {message}", error.exit_code());
    assert!(!message.trim().is_empty(), "an error without a word");
    // As the program prints it.
    let shown = one_line(&message);
    assert!(!shown.contains(char::is_control), "an error with control characters: {shown:?}");
    assert!(shown.chars().count() < 5000, "an error of {} bytes: {shown:.200}...", shown.len());
    Outcome::of(shape(&message))
}

/// A message without what it quotes: no digits, nothing between quotation marks, no folder of ours.
fn shape(message: &str) -> String {
    let folder = scratch().to_string_lossy().into_owned();
    let message = message.replace(&folder, "");
    let unquoted = message.split(['"', '`', '\'']).step_by(2);
    unquoted.flat_map(str::chars).filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(200).collect()
}

/// A folder of this thread's own for the files that a body writes; in memory where the system has that.
pub fn scratch() -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = {
            let memory = Path::new("/dev/shm");
            let parent = match std::env::var_os("TMPDIR") {
                None if memory.is_dir() => memory.to_path_buf(),
                _ => std::env::temp_dir(),
            };
            tempfile::Builder::new().prefix("othink-fuzz-").tempdir_in(parent).expect("a temporary folder")
        };
    }
    FOLDER.with(|folder| folder.path().to_path_buf())
}

/// Writes a file of the scratch folder.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    std::fs::write(&path, bytes).expect("the scratch folder can be written");
    path
}

/// The two halves of an input that stands for two texts: before and after its first zero byte.
pub fn halves(input: &[u8]) -> (&[u8], Option<&[u8]>) {
    match input.iter().position(|&byte| byte == 0) {
        Some(at) => (&input[..at], Some(&input[at + 1..])),
        None => (input, None),
    }
}
