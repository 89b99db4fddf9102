//! The table of faults and bad input: every case is tested, or says what it waits for.
//!
//! Case N is tested by the functions called `case_NN_what_happens`, in the files `cases_*.rs`
//! where the whole program is run, in `tests/faults` where a disk fails, or beside the code that they test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How far a case has come.
enum State {
    /// At least one test has its number.
    Tested,
    /// What has to be there before it can be tested. No test may have its number.
    Waiting(&'static str),
}

use State::{Tested, Waiting};

#[rustfmt::skip]
const CASES: [(&str, State); 84] = [
    // Model folders.
    ("model folder missing, a file, or empty", Tested),
    // 66 is for a path of the command line with nothing there; a folder that is there and lacks a file (here, in 16, 20 and
    // 22) is one with bad content, 65.
    ("config.json absent, empty, not JSON, not UTF-8, with a byte order mark, of 200 MB, 100,000 levels deep", Tested),
    ("one model described flat, twice and nested", Tested),
    ("the flat keys and text_config disagree", Tested),
    ("another model family", Tested),
    ("sizes that do not divide, are zero, negative or enormous", Tested),
    ("rotary scaling that is not implemented", Tested),
    ("a weight file shorter than its header's length says", Tested),
    ("a truncated shard, trailing bytes", Tested),
    ("byte ranges that overlap, leave holes, run backwards; shapes that overflow; unknown dtypes", Tested),
    ("a tensor named twice, in a header or under two of its names", Tested),
    ("400,000 tensors, a header of 99 MB", Tested),
    // No option lets unexpected tensors pass: what is left over was meant for another model. Nor is there one to leave out the
    // search for NaN, which takes a fraction of the time to read the file.
    ("wrong shapes, missing and unexpected tensors", Tested),
    ("NaN or infinity in the weights", Tested),
    ("quantised weights", Tested),
    ("an index that lies about its shards", Tested),
    ("an index that leads out of the folder", Tested),
    ("a pipe, device or folder in place of a file", Tested),
    ("a weight file that shrinks or is replaced while it is read", Tested),
    ("weights only as pickle", Tested),
    ("tied weights, told in every place", Tested),
    ("tokenizer.json missing, broken, of 200 MB; a vocabulary beyond the embedding; special ids out of range", Tested),
    ("no chat template", Tested),
    ("a chat template with an error", Tested),
    ("a chat template that never ends or grows without bound", Tested),
    ("a chat template that wants files or Python's attributes", Tested),
    // Datasets and images.
    ("dataset missing, empty, without the split", Tested),
    ("broken, cut, over-long, blank, CRLF and non-UTF-8 lines; keys given twice", Tested),
    ("damaged parquet and Arrow files", Tested),
    ("a parquet page that claims 10 GB, or inflates to it", Tested),
    // The error says which column to rename; there is no option that maps columns.
    ("columns missing, renamed, of another type, null", Tested),
    // Each row has the columns of its own shard.
    ("shards of different schemas", Tested),
    // An image that is null is none: rows of text are allowed beside rows with images.
    ("images null, empty, HTML, truncated", Tested),
    // GIF is not read at all, so that its number of frames does not matter.
    ("images that are enormous once decoded", Tested),
    ("images of one pixel, and 200 times as long as wide", Tested),
    ("colour types, palettes, orientation, interlacing", Tested),
    ("content that is not what the extension says; formats that are not read", Tested),
    ("image paths out of the folder, URLs", Tested),
    ("image marks that are not as many as the images", Tested),
    ("a prompt longer than the limit", Tested),
    ("control tokens in a user's text", Tested),
    ("the model samples an image token", Tested),
    ("completions that are empty, cut, not UTF-8, full of escapes or very long", Tested),
    // Rewards and answers.
    ("groups of one", Tested),
    ("equal rewards in a group, in every group", Tested),
    ("rewards that are no numbers", Tested),
    ("rewards of the wrong number or type", Tested),
    ("a reward process that cannot be run or dies", Tested),
    // The run saves and ends: to go on without the reward would train on another one.
    ("a reward process that hangs", Tested),
    ("a reward process that floods its output", Tested),
    ("answers that are expensive to judge", Tested),
    ("format rewards on long texts", Tested),
    // The run.
    ("one loss or gradient that is no number", Tested),
    ("several in a row", Tested),
    ("spikes of loss, gradient norm or KL", Tested),
    ("a first inner step whose ratio is not 1", Tested),
    ("log-probabilities of minus infinity, temperature 0, nothing left to sample", Tested),
    ("the GPU's memory runs out", Tested),
    ("the host's memory runs out", Tested),
    ("no GPU, an old driver, a broken GPU", Tested),
    ("a GPU that is busy, sliced or hidden", Waiting("the emulated driver has no such GPU; one that is hidden is none")),
    ("signals at any time", Tested),
    ("killed at any write of a save", Tested),
    ("disk full, read-only, no permission", Tested),
    ("fsync fails", Tested),
    ("checkpoints that are incomplete or damaged", Tested),
    ("resuming with other options", Tested),
    ("a checkpoint of a newer format", Tested),
    ("two runs on one folder", Tested),
    ("an output folder with files", Tested),
    ("old checkpoints are removed", Tested),
    ("file modes", Tested),
    // What can be told without Python: names, dialect, dtype, modes. tools/reference/check_loads.py loads the folders with
    // transformers.
    ("a saved model loads elsewhere", Tested),
    ("LoRA adapters", Waiting("LoRA is not there yet")),
    ("a peer process dies", Waiting("a run is one process")),
    ("launcher variables that disagree", Waiting("a run is one process")),
    ("clock, home, temporary folder, closed output, dumb terminal", Tested),
    // Options and reports.
    ("options and config files: unknown, twice, out of range", Tested),
    ("YAML", Waiting("config files are TOML")),
    ("hostile text in reports", Tested),
    ("secrets", Tested),
    ("zero steps, a dataset smaller than a batch, the last group", Tested),
    // Experiments.
    ("an experiment that is killed at any moment, or stopped by a signal", Tested),
    ("an experiment in the folder of another; a start outside its band; the paper's data not fetched, or an image of it missing", Tested),
];

/// Every `.rs` file below `folder`.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names of the tests of each case in a source file: functions called `case_NN_...` that run as a test.
fn tests_of_cases(source: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let Some(name) = line.strip_prefix("fn case_") else { continue };
        let attributes = || lines[..n].iter().rev().take_while(|line| line.starts_with("#["));
        let runs = attributes().any(|line| *line == "#[test]")
            && !attributes().any(|line| line.starts_with("#[ignore"));
        let number = name.get(..3).and_then(|text| text.strip_suffix('_')?.parse().ok());
        assert!(runs, "fn case_{name} is not a test that runs");
        let number = number.unwrap_or_else(|| panic!("fn case_{name} has no number of two digits"));
        found.push((number, name.split('(').next().unwrap_or_default().to_owned()));
    }
    found
}

#[test]
fn every_case_is_tested_or_says_what_it_waits_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut files);
    }
    let mut tests: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for file in files {
        for (number, name) in tests_of_cases(&fs::read_to_string(&file).expect("UTF-8")) {
            tests.entry(number).or_default().push(name);
        }
    }
    let mut wrong = Vec::new();
    for (number, (case, state)) in (1..).zip(&CASES) {
        match (state, tests.remove(&number)) {
            (Tested, None) => wrong.push(format!("case {number} ({case}) has no test")),
            (Waiting(reason), Some(names)) => {
                wrong.push(format!("case {number} ({case}) waits ({reason}), yet has tests: {names:?}"));
            }
            (Tested, Some(_)) | (Waiting(_), None) => {}
        }
    }
    wrong.extend(tests.into_iter().map(|(number, names)| format!("{names:?}: there is no case {number}")));
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn only_tests_that_run_count() {
    let source = "#[test]\n#[cfg(unix)]\nfn case_07_x() {\n}\n    #[test]\n    fn case_81_y() {";
    assert_eq!(tests_of_cases(source), [(7, "07_x".to_owned()), (81, "81_y".to_owned())]);
    for wrong in ["fn case_07_x() {", "#[test]\n#[ignore]\nfn case_07_x() {", "#[test]\nfn case_7_x() {"] {
        assert!(std::panic::catch_unwind(|| tests_of_cases(wrong)).is_err(), "{wrong}");
    }
}
