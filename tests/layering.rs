//! The shape of the house: which module may use which, and what may stand where.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files that may hold `unsafe`: the device layer, and where ops and tensors hand memory to kernels.
fn unsafe_is_allowed(path: &str) -> bool {
    path.starts_with("cuda/") || path == "cuda.rs" || path.ends_with("/cuda.rs")
}

/// A file of `src`: its path below it, and its lines. Whole-line comments are blanked, so that line numbers stay.
struct Source {
    path: String,
    lines: Vec<String>,
}

impl Source {
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The lines that are compiled into the library: a test module stands at the end, or in a file of its own.
    fn library(&self) -> &[String] {
        let in_tests = self.path == "tests.rs" || self.path.ends_with("/tests.rs");
        let end =
            self.lines.iter().position(|line| line.ends_with("mod tests {")).unwrap_or(self.lines.len());
        if in_tests { &[] } else { &self.lines[..end] }
    }
}

fn sources() -> Vec<Source> {
    let src = Path::new(ROOT).join("src");
    let (mut folders, mut files) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "{} files", files.len());
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
        let below = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        Source { path: below, lines: lines.map(str::to_owned).collect() }
    };
    files.iter().map(read).collect()
}

/// The lines for which `found` holds, as `path:line: text`.
fn places<'a>(path: &str, lines: &'a [String], found: impl Fn(&'a str) -> bool) -> Vec<String> {
    let hits = lines.iter().enumerate().filter(|(_, line)| found(line));
    hits.map(|(n, line)| format!("src/{path}:{}: {}", n + 1, line.trim())).collect()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The modules in the order in which `src/lib.rs` declares them.
fn ladder() -> Vec<String> {
    let text = fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(str::to_owned).collect()
}

#[test]
fn a_module_uses_only_what_stands_above_it() {
    let ladder = ladder();
    let rung = |module: &str| ladder.iter().position(|m| m == module);
    let mut found = Vec::new();
    for source in sources() {
        let Some(own) = rung(source.module()) else { continue };
        found.extend(places(&source.path, &source.lines, |line| {
            let used = line.split("crate::").skip(1).filter_map(|rest| words(rest).next());
            // `crate::dispatch!` is the one macro; it is declared in `tensor`.
            used.filter(|name| *name != "dispatch").any(|name| rung(name).is_none_or(|used| used > own))
        }));
    }
    assert_eq!(found, [""; 0], "the order is that of src/lib.rs");
}

#[test]
fn every_file_of_src_belongs_to_a_declared_module() {
    let declared: BTreeSet<String> = ladder().into_iter().chain(["lib".into(), "main".into()]).collect();
    for source in sources() {
        assert!(declared.contains(source.module()), "src/{} belongs to no module of src/lib.rs", source.path);
    }
}

#[test]
fn unsafe_stands_where_it_is_allowed() {
    let is_unsafe = |line: &str| words(line).any(|word| word == "unsafe") && !line.contains("unsafe-inline");
    for source in sources() {
        let found = places(&source.path, &source.lines, is_unsafe);
        assert!(found.is_empty() || unsafe_is_allowed(&source.path), "{found:?}");
    }
}

#[test]
fn the_library_neither_prints_nor_gives_up() {
    // `eprintln!` and `eprint!` hold the first two.
    const FORBIDDEN: [&str; 7] =
        ["println!(", "print!(", "dbg!(", ".unwrap()", "todo!(", "unimplemented!(", "TODO"];
    let forbidden = |line: &str| FORBIDDEN.iter().any(|word| line.contains(word));
    let found: Vec<_> = sources().iter().flat_map(|s| places(&s.path, s.library(), forbidden)).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn the_repository_holds_what_the_readme_maps() {
    const TOP: [&str; 16] = [
        ".cargo",
        ".ci",
        ".gitignore",
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "benches",
        "build.rs",
        "kernels",
        "rustfmt.toml",
        "src",
        "tests",
        "tools",
    ];
    for name in TOP {
        assert!(Path::new(ROOT).join(name).exists(), "{name} is missing");
    }
    // What git tracks counts: a user's own files may lie around. An unpacked archive has no list to check.
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(ROOT).output();
    let Some(output) = listed.ok().filter(|output| output.status.success()) else { return };
    let tracked = String::from_utf8(output.stdout).unwrap();
    let top: BTreeSet<&str> = tracked.split('\0').filter_map(|p| p.split('/').next()).collect();
    let strangers: Vec<_> = top.iter().filter(|name| !name.is_empty() && !TOP.contains(name)).collect();
    assert!(strangers.is_empty(), "not among the places for files: {strangers:?}");
}
