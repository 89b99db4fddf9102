//! Config files: TOML entries become command-line arguments, so that both go through one parser.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::names::{foreign, nearest, nearest_of_all};
use crate::error::{Error, Result};

/// Longest config file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// An option as the command line knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownOption {
    /// Its name, with `_`.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
}

impl KnownOption {
    /// Whether `name` (with `_`) is this option's name or one of its aliases.
    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// One key of a config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The option it sets.
    pub option: String,
    /// The equivalent arguments: `--option=value`, one per list element; an empty list leaves the default.
    pub arguments: Vec<OsString>,
    /// Line of the key, from 1.
    pub line: usize,
}

/// A config file, checked against the options of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its entries, in the file's order.
    pub entries: Vec<Entry>,
}

impl ConfigFile {
    /// Reads `path`, whose keys must be among `known`.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Io`] when it cannot be read; [`Error::Usage`] with file and line for broken
    /// TOML, an unknown key (with the nearest known one), a key given twice, or a value that is no option value.
    pub fn read(path: &Path, known: &[KnownOption]) -> Result<Self> {
        let refuse = |what: String| Error::Usage(format!("{}: the config file {what}", path.display()));
        let mut text = Vec::new();
        // Not only regular files: a shell hands over what a command prints as a pipe.
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text))
            .map_err(|error| Error::io(path, "read the config file", error))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(refuse(format!("has more than {MAX_BYTES} bytes; is it the right one?")));
        }
        let text = String::from_utf8(text).map_err(|_| refuse("is not UTF-8".to_owned()))?;
        Self::parse(path, &text, known)
    }

    fn parse(path: &Path, text: &str, known: &[KnownOption]) -> Result<Self> {
        let at = |offset: usize| line_of(text, offset);
        let fail =
            |line: usize, message: String| Error::Usage(format!("{}:{line}: {message}", path.display()));
        let table = DeTable::parse(text).map_err(|error| {
            fail(error.span().map_or(1, |span| at(span.start)), error.message().to_owned())
        })?;

        let mut pairs: Vec<_> = table.get_ref().iter().collect();
        pairs.sort_by_key(|(key, _)| key.span().start);
        let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let line = at(key.span().start);
            let written = key.get_ref().as_ref();
            let name = written.replace('-', "_");
            let Some(option) = known.iter().find(|option| option.answers_to(&name)) else {
                if let Some(advice) = foreign(&name) {
                    return Err(fail(line, format!("unknown option `{written}`: {advice}")));
                }
                let names = || known.iter().map(|option| option.name.as_str());
                let hint = match (nearest(&name, names()), nearest_of_all(&name, names())) {
                    (Some(meant), _) => format!("; did you mean `{meant}`?"),
                    (None, Some(known)) => format!("; the nearest known one is `{known}`"),
                    (None, None) => String::new(),
                };
                return Err(fail(line, format!("unknown option `{written}`{hint}")));
            };
            if let Some(first) = entries.iter().find(|entry| entry.option == option.name) {
                return Err(fail(line, format!("`{written}` was already set on line {}", first.line)));
            }
            let values = match value.get_ref() {
                DeValue::Array(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
                single => scalar(single).map(|value| vec![value]),
            };
            let values = values.map_err(|kind| {
                fail(
                    line,
                    format!(
                        "`{written}` is {kind}, but options are texts, numbers, booleans or lists of these"
                    ),
                )
            })?;
            let arguments = values.iter().map(|value| format!("--{}={value}", option.name).into()).collect();
            entries.push(Entry { option: option.name.clone(), arguments, line });
        }
        Ok(ConfigFile { path: path.to_path_buf(), entries })
    }

    /// `FILE:LINE` of the key that sets `option`, if there is one.
    pub fn origin(&self, option: &str) -> Option<String> {
        let entry = self.entries.iter().find(|entry| entry.option == option)?;
        Some(format!("{}:{}", self.path.display(), entry.line))
    }
}

/// The text of a scalar on the command line, or what the value is instead.
fn scalar(value: &DeValue<'_>) -> std::result::Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        // `as_str` has the number without TOML's underscores; no option is worth other radices.
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(_) => Err("a number that is not decimal"),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("a list in a list"),
        DeValue::Table(_) => Err("a table"),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<KnownOption> {
        let option = |name: &str, aliases: &[&str]| KnownOption {
            name: name.to_owned(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        };
        vec![
            option("learning_rate", &[]),
            option("model", &["model_name_or_path"]),
            option("reward_funcs", &[]),
        ]
    }

    fn parse(text: &str) -> Result<ConfigFile> {
        ConfigFile::parse(Path::new("run.toml"), text, &known())
    }

    fn message(text: &str) -> String {
        let error = parse(text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn entries_become_arguments_in_file_order() {
        let file = parse(
            "# mine\nreward-funcs = [\"accuracy\", \"format\"]\nlearning_rate = 1e-6\nmodel_name_or_path = 'a b'\n",
        )
        .unwrap();
        let arguments: Vec<_> = file.entries.iter().flat_map(|entry| entry.arguments.clone()).collect();
        assert_eq!(
            arguments,
            ["--reward_funcs=accuracy", "--reward_funcs=format", "--learning_rate=1e-6", "--model=a b"]
        );
        assert_eq!(file.origin("learning_rate").as_deref(), Some("run.toml:3"));
        assert_eq!(file.origin("seed"), None);
    }

    #[test]
    fn underscores_and_signs_in_numbers_reach_the_option() {
        let arguments = |text| parse(text).unwrap().entries[0].arguments.clone();
        assert_eq!(arguments("learning_rate = 1_000"), ["--learning_rate=1000"]);
        assert_eq!(arguments("learning_rate = -0.5"), ["--learning_rate=-0.5"]);
        assert_eq!(arguments("learning_rate = nan"), ["--learning_rate=nan"]);
    }

    #[test]
    fn case_78_mistakes_name_file_and_line() {
        assert_eq!(
            message("\nlearnin_rate = 1"),
            "run.toml:2: unknown option `learnin_rate`; did you mean `learning_rate`?"
        );
        assert_eq!(
            message("x = 1"),
            "run.toml:1: unknown option `x`; the nearest known one is `learning_rate`"
        );
        assert_eq!(
            message("filter_groups = true"),
            "run.toml:1: unknown option `filter_groups`: --dynamic_sample does that"
        );
        assert_eq!(
            message("learning_rate = 1\nlearning-rate = 2"),
            "run.toml:2: `learning-rate` was already set on line 1"
        );
        assert!(message("learning_rate = 1\nlearning_rate = 2").starts_with("run.toml:2: "));
        assert!(message("\n\nlearning_rate = ").starts_with("run.toml:3: "));
        assert!(message("[model]\nx = 1").starts_with("run.toml:1: `model` is a table, but "));
    }
}
