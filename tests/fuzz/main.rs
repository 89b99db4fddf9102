//! Files and texts from strangers: thousands of mutations of valid and invalid ones, the same on every machine, and
//! every input that once broke something (`regressions`).
//!
//! Longer, and led by coverage: `tools/fuzz`. Settings by environment:
//!
//! | variable | is |
//! |---|---|
//! | `OTHINK_FUZZ_SEED` | the mutations' seed, 1 by default |
//! | `OTHINK_FUZZ_RUNS` | inputs per target, in place of the default of some seconds |
//! | `OTHINK_FUZZ_INPUT` | a file: each test runs this one input and nothing else |

mod targets;

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use targets::mutate::{Random, mutate};
use targets::{HANG, Target, run, target};

/// Most inputs kept because of their outcome.
const MAX_KEPT: usize = 2000;

#[test]
fn safetensors() {
    fuzz(target("safetensors"), 12_000, 50);
}

#[test]
fn config() {
    fuzz(target("config"), 16_000, 300);
}

#[test]
fn jsonl() {
    fuzz(target("jsonl"), 12_000, 350);
}

#[test]
fn table() {
    fuzz(target("table"), 6_000, 100);
}

#[test]
fn image() {
    fuzz(target("image"), 8_000, 600);
}

#[test]
fn template() {
    fuzz(target("template"), 3_000, 200);
}

#[test]
fn answer() {
    fuzz(target("answer"), 8_000, 500);
}

/// Every regression, every seed, then `runs` mutations of these and of whatever came to an end that was not seen before.
/// Fails where a body does, and where fewer than `outcomes` different ends were seen: then the loop tests nothing.
fn fuzz(target: &'static Target, runs: usize, outcomes: usize) {
    let recorder = Recorder::new(target);
    if let Some(path) = env::var_os("OTHINK_FUZZ_INPUT") {
        let input = fs::read(&path).expect("OTHINK_FUZZ_INPUT can be read");
        recorder.run(&input, "OTHINK_FUZZ_INPUT");
        return recorder.done();
    }
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().expect(name));
    let seed: u64 = number("OTHINK_FUZZ_SEED").unwrap_or(1);
    let runs = number("OTHINK_FUZZ_RUNS").map_or(runs, |runs| runs as usize);

    let mut pool = (target.seeds)();
    for (path, input) in regressions(target) {
        recorder.run(&input, &path.display().to_string());
        pool.push(input);
    }
    let given = pool.len();
    let mut seen = HashSet::new();
    for (n, input) in pool.iter().enumerate() {
        seen.insert(recorder.run(input, &format!("seed input {n}")));
    }
    for n in 0..runs {
        // Of each input's own number, so that it does not depend on how many came before.
        let mut random = Random::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(n as u64));
        random.next();
        // Half of them from what was given, since most of what was kept is broken.
        let most = if random.below(2) == 0 { given } else { pool.len() };
        let mut input = pool[random.below(most)].clone();
        let other = &pool[random.below(pool.len())];
        mutate(target, &mut random, &mut input, other);
        let outcome = recorder.run(&input, &format!("OTHINK_FUZZ_SEED={seed}, input {n}"));
        if seen.insert(outcome) && pool.len() < MAX_KEPT {
            pool.push(input);
        }
    }
    recorder.done();
    println!("{}: {runs} inputs of seed {seed}, {} outcomes", target.name, seen.len());
    assert!(runs < 1000 || seen.len() >= outcomes, "only {} outcomes, {outcomes} are usual", seen.len());
}

/// The files of `tests/fuzz/regressions/TARGET`, in the order of their names.
fn regressions(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/regressions").join(target.name);
    let mut paths: Vec<_> =
        fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Keeps the input that is running in a file, so that it is there when the process dies of it, and ends the process when
/// an input hangs.
struct Recorder {
    target: &'static Target,
    path: PathBuf,
    watch: mpsc::Sender<()>,
}

impl Recorder {
    fn new(target: &'static Target) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}-running", target.name));
        let (watch, inputs) = mpsc::channel();
        let shown = path.display().to_string();
        thread::spawn(move || {
            // One message when an input begins and one when it has ended.
            while let Ok(()) = inputs.recv() {
                if inputs.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let _ = writeln!(std::io::stderr(), "\nan input hangs: {shown}");
                    std::process::abort();
                }
            }
        });
        Recorder { target, path, watch }
    }

    /// Runs the body; on a panic tells which input it was and how to run it again, and fails.
    fn run(&self, input: &[u8], origin: &str) -> targets::Outcome {
        fs::write(&self.path, input).expect("the folder for temporary files can be written");
        let _ = self.watch.send(());
        let outcome = catch_unwind(AssertUnwindSafe(|| run(self.target, input)));
        let _ = self.watch.send(());
        let Ok(outcome) = outcome else {
            let name = self.target.name;
            let kept = self.path.with_file_name(format!("fuzz-{name}-failed"));
            fs::write(&kept, input).expect("the folder for temporary files can be written");
            let hex: String = input.iter().take(300).map(|byte| format!("{byte:02x}")).collect();
            let more = if input.len() > 300 { "..." } else { "" };
            panic!(
                "{name} failed on {origin}\ninput of {} bytes: {hex}{more}\nrun it again:\n  OTHINK_FUZZ_INPUT={} \
                 cargo test --release --test fuzz {name}\nonce it is mended, keep it in tests/fuzz/regressions/{name}",
                input.len(),
                kept.display()
            );
        };
        outcome
    }

    fn done(&self) {
        let _ = fs::remove_file(&self.path);
    }
}
