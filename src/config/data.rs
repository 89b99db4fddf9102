//! Which rows, which images, which prompt around them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};

use super::check::{Checked, Violation, at_least, count, if_set, positive};
use super::names::boolean;

/// A dataset and how its rows become prompts.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct DataOptions {
    /// Rows: a file, a folder with splits, or ORG/NAME in the local Hugging Face cache; several are taken together.
    /// PATH@SPLIT names the split. Columns image or images, and problem, prompt, messages or conversations; and solution
    #[arg(long, visible_alias = "dataset_name", num_args = 1.., required = true, value_name = "FILE|DIR")]
    #[serde(serialize_with = "one_or_list")]
    pub dataset: Vec<PathBuf>,

    /// Which split of a dataset folder that names none
    #[arg(long, default_value = "train", value_name = "SPLIT")]
    pub dataset_split: String,

    /// A second folder that images may lie in, besides that of the rows' file [default: none]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_dir: Option<PathBuf>,

    /// Text around each problem: r1v (R1-V's training prompt), r1v_superclevr, r1v_geoqa (its evaluation prompts), vlm_r1,
    /// vlm_r1_rec (VLM-R1's, the second for boxes), or none
    #[arg(long, default_value = "r1v", value_name = "NAME")]
    pub prompt_template: String,

    /// Use only the first N rows, of each dataset if there are several [default: all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<usize>,

    /// Leave out up to N bad rows and list them; above 0 every image is decoded before the start. 0 stops at the first
    #[arg(long, default_value = "0", value_name = "N")]
    pub max_bad_rows: usize,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub pixels: PixelOptions,
}

impl DataOptions {
    /// The datasets as they were given, for people.
    pub fn names(&self) -> String {
        self.dataset.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn check(&self) -> Checked {
        if_set("max_samples", self.max_samples, |option, value| at_least(option, value, 1))?;
        self.pixels.check()
    }
}

/// A list of one as its only item, as it is usually written.
fn one_or_list<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    match paths {
        [one] => one.serialize(serializer),
        several => several.serialize(serializer),
    }
}

/// The order of rows in training.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct OrderOptions {
    /// Shuffle the rows anew in every epoch, by the seed
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub shuffle_dataset: bool,

    /// Share of each dataset in an epoch, as in 2 1: each goes round at its own pace [default: each row once]
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "WEIGHT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dataset_weights: Vec<f64>,

    /// With weights, an epoch ends when the first dataset has been seen whole, or when all have [default: first_exhausted]
    #[arg(long, value_enum, value_name = "WHEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopping_strategy: Option<StoppingStrategy>,

    /// Threads that read, decode and tokenise the next step's rows meanwhile; 0 does it at the step
    #[arg(long, default_value = "1", value_name = "N")]
    pub dataloader_num_workers: usize,

    /// What to do with a row that is too long: stop, or leave it out (nothing is ever truncated)
    #[arg(long, value_enum, default_value = "error", value_name = "WHAT")]
    pub overlong: Overlong,
}

/// Most threads that read ahead.
const MAX_WORKERS: usize = 256;

impl OrderOptions {
    pub(super) fn check(&self, datasets: usize) -> Checked {
        self.dataset_weights.iter().try_for_each(|&weight| positive("dataset_weights", weight))?;
        if self.dataloader_num_workers > MAX_WORKERS {
            return Err(Violation::new(
                "dataloader_num_workers",
                format!("is {}, but must be at most {MAX_WORKERS}", self.dataloader_num_workers),
            ));
        }
        match self.dataset_weights.len() {
            0 if self.stopping_strategy.is_some() => Err(Violation::new(
                "stopping_strategy",
                "says when an epoch over weighted datasets ends: give --dataset_weights with it",
            )),
            0 => Ok(()),
            weights if weights == datasets => Ok(()),
            weights => Err(Violation::new(
                "dataset_weights",
                format!(
                    "has {weights} weights, but --dataset names {datasets}: give one for each, in the same order"
                ),
            )),
        }
    }
}

/// When an epoch over datasets with weights ends, as in `datasets.interleave_datasets`.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum StoppingStrategy {
    /// When the dataset that lasts shortest at its share has been seen once; of the others the rest comes in the next epochs.
    #[default]
    FirstExhausted,
    /// When the dataset that lasts longest at its share has been seen once; the others are seen again meanwhile.
    AllExhausted,
}

/// Fate of a row that is too long.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Stop with an error that names the row.
    #[default]
    Error,
    /// Leave the row out, and say how many were.
    Skip,
}

/// Bounds on the size that images are resized to.
#[derive(clap::Args, Serialize, Clone, Copy, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct PixelOptions {
    /// Images with fewer pixels are enlarged to this many (one image token is 784 pixels)
    #[arg(long, default_value = "3136", value_name = "PIXELS")]
    pub min_pixels: usize,

    /// Images with more pixels are shrunk to this many (401408 is 512 image tokens)
    #[arg(long, default_value = "401408", value_name = "PIXELS")]
    pub max_pixels: usize,
}

impl PixelOptions {
    pub(super) fn check(&self) -> Checked {
        count("min_pixels", self.min_pixels, 1 << 26)?;
        if self.max_pixels < self.min_pixels {
            return Err(Violation::new(
                "max_pixels",
                format!(
                    "is {}, but must be at least --min_pixels, which is {}",
                    self.max_pixels, self.min_pixels
                ),
            ));
        }
        Ok(())
    }
}

/// Bounds on image size where the checkpoint's own processor is the default.
#[derive(clap::Args, Serialize, Clone, Copy, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct OwnPixelOptions {
    /// Images with fewer pixels are enlarged to this many [default: the checkpoint's preprocessor_config.json]
    #[arg(long, value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,

    /// Images with more pixels are shrunk to this many [default: the checkpoint's preprocessor_config.json; training
    /// uses 401408 unless told otherwise]
    #[arg(long, value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<usize>,
}

impl OwnPixelOptions {
    pub(super) fn check(&self) -> Checked {
        let pixels = PixelOptions {
            min_pixels: self.min_pixels.unwrap_or(1),
            max_pixels: self.max_pixels.unwrap_or(usize::MAX),
        };
        pixels.check()
    }
}
