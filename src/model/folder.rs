//! A Hugging Face model folder: its config, its generation settings and its weights.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{file_inside, read_json};
use crate::hub;
use crate::model::config::ModelConfig;
use crate::model::generation::GenerationConfig;
use crate::model::safetensors::{Dtype, TensorEntry};
use crate::model::weights::EMBEDDING;

mod files;
mod matching;

pub use matching::StoredParameter;

use files::WeightFiles;
use matching::Matched;

/// One parameter's values.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Canonical name (see [`crate::model::weights`]).
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Values, widened exactly from the stored dtype.
    pub data: Vec<f32>,
}

/// How `config.json` is arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The text model's keys stand at the top: published files, transformers up to 4.51.
    Flat,
    /// At the top and in `text_config`: transformers 4.52 to 4.57.
    Both,
    /// In `text_config` only: transformers 5.
    Nested,
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Dialect::Flat => "flat (as published)",
            Dialect::Both => "flat and text_config (transformers 4.52 to 4.57)",
            Dialect::Nested => "text_config (transformers 5)",
        })
    }
}

/// A model folder whose config and weight headers have been read and found to fit together.
/// The weights themselves are read by [`ModelFolder::load_weights`].
#[derive(Debug)]
pub struct ModelFolder {
    /// The folder (for a cached model: its snapshot).
    pub dir: PathBuf,
    /// The model's sizes.
    pub config: ModelConfig,
    /// `config.json` as parsed, in its own key order.
    pub raw_config: Value,
    /// `generation_config.json`; defaults if there is none.
    pub generation: GenerationConfig,
    files: WeightFiles,
    matched: Matched,
}

impl ModelFolder {
    /// Opens a model folder, given as a path or as the `org/name` of a model in the local Hugging
    /// Face cache. Reads configs and weight headers, no weights.
    ///
    /// # Errors
    /// [`Error::Missing`] (with the download command) if there is no such folder or it is empty;
    /// [`Error::Content`] if a file is missing, breaks its format or is a link out of the folder, or
    /// if weights and config do not fit: the first ten missing, unexpected and misshapen tensors are
    /// listed.
    pub fn open(path_or_name: &str) -> Result<Self> {
        let dir = hub::resolve(path_or_name)?;
        let Some(config_path) = file_inside(&dir, "config.json")? else {
            let entries = fs::read_dir(&dir).map_err(|e| Error::io(&dir, "list the model folder", e))?;
            let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            if names.is_empty() {
                return Err(Error::missing(
                    &dir,
                    "is an empty folder; fetch a model into it with `hf download org/name --local-dir` and its path",
                ));
            }
            let step = |name: &OsString| name.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
            if let Some(last) = names.iter().filter_map(step).max() {
                let checkpoint = dir.join(format!("checkpoint-{last}"));
                return Err(Error::content(
                    &dir,
                    format!(
                        "is the folder of a run; name one of its checkpoints, such as {}",
                        checkpoint.display()
                    ),
                ));
            }
            return Err(Error::content(
                dir.join("config.json"),
                "is not there, so this is no Hugging Face model folder; fetch the model again, or name its folder",
            ));
        };
        let raw_config = read_json(&config_path)?;
        let config = ModelConfig::from_json(&config_path, &raw_config)?;
        let generation_file = match file_inside(&dir, "generation_config.json")? {
            Some(path) => Some((read_json(&path)?, path)),
            None => None,
        };
        let generation = GenerationConfig::from_json(
            generation_file.as_ref().map(|(value, path)| (path.as_path(), value)),
            &config_path,
            &raw_config,
        )?;
        let rows = config.text.vocab_size;
        for (key, ids) in
            [("eos_token_id", &generation.eos_token_ids), ("suppress_tokens", &generation.suppress_tokens)]
        {
            if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
                return Err(Error::content(
                    &dir,
                    format!(
                        "{key} {id} (of generation_config.json, else config.json) is beyond the vocabulary of {rows}"
                    ),
                ));
            }
        }
        let files = WeightFiles::open(&dir)?;
        let matched = Matched::new(&dir, &config, &files)?;
        Ok(Self { dir, config, raw_config, generation, files, matched })
    }

    /// Where and how each parameter is stored, in the order of
    /// [`parameters`](crate::model::weights::parameters).
    pub fn stored_parameters(&self) -> &[StoredParameter] {
        &self.matched.parameters
    }

    /// The dtype that most values are stored in.
    pub fn dtype(&self) -> Dtype {
        let size = |dtype: Dtype| -> usize {
            let stored = self.matched.parameters.iter().filter(|p| p.dtype == dtype);
            stored.map(|p| p.shape.iter().product::<usize>()).sum()
        };
        [Dtype::F32, Dtype::BF16, Dtype::F16]
            .into_iter()
            .max_by_key(|dtype| size(*dtype))
            .unwrap_or(Dtype::F32)
    }

    /// How `config.json` is arranged.
    pub fn dialect(&self) -> Dialect {
        let nested = self.raw_config.get("text_config").is_some_and(Value::is_object);
        let flat = self.raw_config.get("hidden_size").is_some();
        match (nested, flat) {
            (true, true) => Dialect::Both,
            (true, false) => Dialect::Nested,
            (false, _) => Dialect::Flat,
        }
    }

    /// The weight files, in the order of their names.
    pub fn weight_files(&self) -> impl Iterator<Item = &Path> {
        self.files.files.iter().map(|file| file.path())
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.files.files.iter().map(|file| file.bytes()).sum()
    }

    /// Whether an index spreads the weights over shards.
    pub fn is_sharded(&self) -> bool {
        self.files.index.is_some()
    }

    /// Reads every parameter as f32, in the order of
    /// [`parameters`](crate::model::weights::parameters). The copy is the only one made.
    ///
    /// # Errors
    /// [`Error::Content`] naming the tensor and the place of the first value that is NaN or infinite;
    /// if a tied model has an `lm_head` that differs from its embedding; if a file changed since
    /// [`ModelFolder::open`].
    pub fn load_weights(&self) -> Result<Vec<Weight>> {
        let readers = self.files.files.iter().map(|file| file.read()).collect::<Result<Vec<_>>>()?;
        let read = |parameter: &StoredParameter| -> Result<Vec<f32>> {
            let (file, entry) = self.find(parameter)?;
            let reader = readers.get(parameter.file).ok_or_else(|| lost(parameter))?;
            let data = reader.read_f32(entry)?;
            match first_non_finite(&data) {
                None => Ok(data),
                Some(at) => Err(Error::content(
                    file,
                    format!(
                        "tensor {:?} holds {} at {:?}; a model with such weights cannot be trained",
                        parameter.stored_name,
                        data.get(at).copied().unwrap_or(f32::NAN),
                        coordinate(at, &parameter.shape)
                    ),
                )),
            }
        };
        let mut weights = Vec::with_capacity(self.matched.parameters.len());
        for parameter in &self.matched.parameters {
            let data = read(parameter)?;
            weights.push(Weight { name: parameter.name.clone(), shape: parameter.shape.clone(), data });
        }
        if let Some(head) = &self.matched.tied_head {
            let head_data = read(head)?;
            let embedding =
                weights.iter().find(|weight| weight.name == EMBEDDING).ok_or_else(|| lost(head))?;
            if embedding.data != head_data {
                return Err(Error::content(
                    self.find(head)?.0,
                    format!(
                        "config.json ties the head to the embedding (tie_word_embeddings is true), but {:?} is there and differs from the embedding; set tie_word_embeddings to false if the head is its own",
                        head.stored_name
                    ),
                ));
            }
        }
        readers.iter().try_for_each(|reader| reader.check_unchanged())?;
        Ok(weights)
    }

    /// The header entry of a stored parameter, and the path of its file.
    fn find(&self, parameter: &StoredParameter) -> Result<(&Path, &TensorEntry)> {
        let file = self.files.files.get(parameter.file).ok_or_else(|| lost(parameter))?;
        let entry = file.tensor(&parameter.stored_name).ok_or_else(|| lost(parameter))?;
        Ok((file.path(), entry))
    }
}

fn lost(parameter: &StoredParameter) -> Error {
    Error::Internal(format!("lost track of where {:?} is stored", parameter.stored_name))
}

/// Index of the first NaN or infinity.
pub(crate) fn first_non_finite(data: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1 << 18;
    data.par_chunks(CHUNK).enumerate().find_map_first(|(n, chunk)| {
        // The whole chunk without an early exit is vectorised; the search runs only on a hit.
        let any = chunk.iter().fold(false, |any, x| any | !x.is_finite());
        if !any {
            return None;
        }
        chunk.iter().position(|x| !x.is_finite()).map(|at| n * CHUNK + at)
    })
}

/// The index along each axis of element `at` of a row-major tensor.
pub(crate) fn coordinate(at: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = at;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let size = size.max(1);
            let along = rest % size;
            rest /= size;
            along
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests;
