//! The `configs` of a dataset's `README.md`, which may say what its splits are.

use std::path::Path;

use super::splits::Splits;
use crate::error::{Error, Result};
use crate::files::read_bounded;

/// Longest `README.md` that is read, in bytes: 16 MiB; its YAML, which lists every column, is at the start.
const MAX_CARD_BYTES: u64 = 16 << 20;

/// One entry of `configs`.
#[derive(Debug, Default, PartialEq)]
struct Config {
    name: String,
    default: bool,
    /// (split, pattern).
    files: Vec<(String, String)>,
}

/// The splits of the default config, as far as they match any of `files`; none where the card has no `configs` with
/// `data_files`.
///
/// # Errors
/// `Content` where there are several configs and none is the default; `Io`.
pub(super) fn configured(folder: &Path, files: &[String]) -> Result<Option<Splits>> {
    let path = folder.join("README.md");
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_bounded(&path, MAX_CARD_BYTES)?;
    let configs = configs(&String::from_utf8_lossy(&text));
    let config = match configs.as_slice() {
        [] => return Ok(None),
        [one] => one,
        several => match several.iter().find(|config| config.default || config.name == "default") {
            Some(config) => config,
            None => {
                let names: Vec<_> = several.iter().map(|config| config.name.as_str()).collect();
                return Err(Error::content(
                    path,
                    format!(
                        "describes several datasets ({}) and none as the default; name a folder or file of one",
                        names.join(", ")
                    ),
                ));
            }
        },
    };
    let mut splits: Splits = Vec::new();
    for (split, pattern) in &config.files {
        let matching = files.iter().filter(|file| matches(pattern, file)).cloned();
        match splits.iter_mut().find(|(name, _)| name == split) {
            Some((_, files)) => files.extend(matching),
            None => splits.push((split.clone(), matching.collect())),
        }
    }
    for (_, files) in &mut splits {
        files.sort_unstable();
        files.dedup();
    }
    splits.retain(|(_, files)| !files.is_empty());
    Ok((!splits.is_empty()).then_some(splits))
}

/// The configs with files in the YAML between the first two lines of `---`.
///
/// YAML is read as far as `datasets` writes it: a key or a list item on each line, by its indentation.
fn configs(text: &str) -> Vec<Config> {
    let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let mut lines = lines
        .take_while(|line| line.trim_end() != "---")
        .skip_while(|line| line.trim_end() != "configs:")
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with([' ', '-', '#']))
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));

    let mut configs: Vec<Config> = Vec::new();
    let (mut within, mut split) = (String::new(), "train".to_owned());
    let mut first_indent = None;
    for line in &mut lines {
        let indent = line.len() - line.trim_start().len();
        let first_indent = *first_indent.get_or_insert(indent);
        let mut entry = line.trim();
        if let Some(rest) = entry.strip_prefix("- ") {
            if indent == first_indent {
                configs.push(Config::default());
                within.clear();
                split = "train".to_owned();
            }
            entry = rest.trim_start();
        }
        let Some(config) = configs.last_mut() else { continue };
        let (key, value) = match entry.split_once(':') {
            Some((key, value)) if value.is_empty() || value.starts_with(' ') => (key.trim(), unquoted(value)),
            _ => ("", unquoted(entry)),
        };
        match key {
            "config_name" => config.name = value.to_owned(),
            "default" => config.default = value == "true",
            "split" => split = value.to_owned(),
            "data_files" | "path" if !value.is_empty() => {
                config.files.push((split.clone(), value.to_owned()))
            }
            "" if within == "data_files" || within == "path" => {
                config.files.push((split.clone(), value.to_owned()))
            }
            _ => {}
        }
        if !key.is_empty() {
            within = key.to_owned();
        }
    }
    configs.retain(|config| !config.files.is_empty());
    configs
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inside = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

/// Whether a path matches a pattern of `*` (within a name), `**` (any folders) and `?`.
fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (pattern.trim_start_matches("./").as_bytes(), path.as_bytes());
    // The ends of `path[..n]` that the pattern so far can have come to; linear in both lengths.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; path.len() + 1];
        let step = match &pattern[at..] {
            [b'*', b'*', b'/', ..] => {
                // No folder, or any number of whole ones.
                let mut open = false;
                for n in 0..=path.len() {
                    next[n] = reached[n] || (open && n > 0 && path[n - 1] == b'/');
                    open |= reached[n];
                }
                3
            }
            [b'*', b'*', ..] => {
                let mut open = false;
                for n in 0..=path.len() {
                    open |= reached[n];
                    next[n] = open;
                }
                2
            }
            [b'*', ..] => {
                let mut open = false;
                for n in 0..=path.len() {
                    open = reached[n] || (open && path[n - 1] != b'/');
                    next[n] = open;
                }
                1
            }
            [byte, ..] => {
                for n in 0..path.len() {
                    next[n + 1] = reached[n] && (path[n] == *byte || (*byte == b'?' && path[n] != b'/'));
                }
                1
            }
            [] => break,
        };
        reached = next;
        at += step;
    }
    reached[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, path, wanted) in [
            ("data/train-*", "data/train-00000-of-00001.parquet", true),
            ("data/train-*", "data/x/train-0.parquet", false),
            ("*.parquet", "a.parquet", true),
            ("*.parquet", "x/a.parquet", false),
            ("**/*.parquet", "x/y/a.parquet", true),
            ("**/*.parquet", "a.parquet", true),
            ("x/**", "x/y/a.parquet", true),
            ("./a?.jsonl", "a1.jsonl", true),
            ("a?.jsonl", "a/.jsonl", false),
            ("a.jsonl", "ba.jsonl", false),
            ("*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaac", false),
        ] {
            assert_eq!(matches(pattern, path), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn cards_are_read_in_every_form_that_hub_pages_have() {
        let card = "---\nlicense: mit\ndataset_info:\n- config_name: x\n  splits:\n  - name: train\nconfigs:\n\
                    - config_name: easy\n  data_files: \"easy/*.parquet\"\n\
                    # a note\n- config_name: default\n  default: true\n  data_files:\n  - split: train\n    path:\n    - a.jsonl\n    \
                    - 'b.jsonl'\n  - split: test\n    path: c.jsonl\n- config_name: list\n  data_files:\n  - d.jsonl\n\
                    tags:\n- x\n---\nconfigs:\n- config_name: no\n  data_files: z\n";
        let file = |split: &str, path: &str| (split.to_owned(), path.to_owned());
        let found = configs(card);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!((found[0].name.as_str(), found[0].default), ("easy", false));
        assert_eq!(found[0].files, [file("train", "easy/*.parquet")]);
        assert!(found[1].default);
        assert_eq!(
            found[1].files,
            [file("train", "a.jsonl"), file("train", "b.jsonl"), file("test", "c.jsonl")]
        );
        assert_eq!(found[2].files, [file("train", "d.jsonl")]);
        assert!(configs("# No YAML\nconfigs:\n- config_name: a\n  data_files: x\n").is_empty());
        assert!(configs("---\nconfigs:\n- config_name: a\n").is_empty());
    }
}
