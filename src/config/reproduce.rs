//! All options of `reproduce`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::{Checked, Violation, count};
use super::names::boolean;
use super::{FileOptions, HardwareOptions, Options, QuietOptions};

/// `reproduce`: SFT, GRPO and GRPO-D from one start checkpoint, over several seeds, on both tasks.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct ReproduceConfig {
    /// tiny: synthetic counting and geometry with a small model, for a CPU. paper: the paper's model and data, for a
    /// GPU with about 60 GB
    #[arg(long, value_enum, default_value = "tiny", value_name = "NAME", help_heading = "Experiment")]
    pub recipe: RecipeName,
    /// One seed only; without this option, the same folder goes on with the others
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Experiment")]
    pub quick: bool,
    /// Seeds: each gives a start checkpoint (tiny), an order of the prompts and the sampling [default: 1 2 3 4 5, or 1
    /// with --quick]
    // A TOML integer is an i64.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64),
          value_name = "N", help_heading = "Experiment")]
    pub seeds: Vec<u64>,
    /// Recipe paper: the checkpoint to start from [default: Qwen/Qwen2-VL-2B-Instruct]
    #[arg(
        long,
        visible_alias = "model_name_or_path",
        value_name = "DIR|ORG/NAME",
        help_heading = "Experiment"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Recipe paper: where the data lies that --dry_run lists with the commands that fetch it [default: data/paper]
    #[arg(long, value_name = "DIR", help_heading = "Experiment")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Folder to write: a run folder for each arm, rows.jsonl, rows.csv, table.md, curves.svg, report.html. The same command goes on
    /// with what is in it
    #[arg(long, default_value = "runs/reproduce", value_name = "DIR", help_heading = "Checkpoint")]
    pub output_dir: PathBuf,
    /// Print what would be run and what data it needs, and stop
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Run")]
    #[serde(skip)]
    pub dry_run: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub quiet: QuietOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub hardware: HardwareOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

/// What is reproduced.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum RecipeName {
    /// A small model on synthetic tasks.
    #[default]
    Tiny,
    /// Qwen2-VL-2B-Instruct on CLEVR and GeoQA.
    Paper,
}

/// Most seeds.
const MAX_SEEDS: usize = 1000;

impl Options for ReproduceConfig {
    const COMMAND: &'static str = "reproduce";

    fn resolve(&mut self) {
        if self.seeds.is_empty() {
            self.seeds = if self.quick { vec![1] } else { (1..=5).collect() };
        }
        if self.recipe == RecipeName::Paper {
            self.model.get_or_insert_with(|| "Qwen/Qwen2-VL-2B-Instruct".into());
            self.data_dir.get_or_insert_with(|| "data/paper".into());
        }
    }

    fn check(&self) -> Checked {
        count("seeds", self.seeds.len(), MAX_SEEDS)?;
        let twice = self.seeds.iter().enumerate().find(|(i, seed)| self.seeds[..*i].contains(seed));
        if let Some((_, seed)) = twice {
            return Err(Violation::new("seeds", format!("names {seed} twice: each seed is one run")));
        }
        if self.quick && self.seeds.len() > 1 {
            let message = format!("is one seed, but --seeds names {}: drop one of the two", self.seeds.len());
            return Err(Violation::new("quick", message));
        }
        if self.recipe == RecipeName::Tiny {
            for (option, given) in [("model", self.model.is_some()), ("data_dir", self.data_dir.is_some())] {
                if given {
                    let message = "belongs to --recipe paper: the tiny recipe makes its own model and data";
                    return Err(Violation::new(option, message));
                }
            }
        }
        self.hardware.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        options: ReproduceConfig,
    }

    fn parse(words: &[&str]) -> ReproduceConfig {
        let mut options = Words::parse_from([&["reproduce"], words].concat()).options;
        options.resolve();
        options
    }

    #[test]
    fn seeds_follow_from_quick_unless_given() {
        assert_eq!(parse(&[]).seeds, [1, 2, 3, 4, 5]);
        assert_eq!(parse(&["--quick"]).seeds, [1]);
        assert_eq!(parse(&["--seeds", "7,9", "8"]).seeds, [7, 9, 8]);
        let paper = parse(&["--recipe", "paper"]);
        assert_eq!(paper.model.as_deref(), Some("Qwen/Qwen2-VL-2B-Instruct"));
        assert!(paper.check().is_ok());
    }

    #[test]
    fn contradictions_name_the_option() {
        for (words, option) in [
            (&["--seeds", "1", "2", "1"][..], "seeds"),
            (&["--quick", "--seeds", "1", "2"], "quick"),
            (&["--model", "m"], "model"),
            (&["--data_dir", "d"], "data_dir"),
        ] {
            assert_eq!(parse(words).check().unwrap_err().option, option, "{words:?}");
        }
    }
}
