//! Fits the tensors of the weight files to the parameters of the config: every tensor is used
//! and every parameter filled, or the folder is refused. (Loaders that fill what is missing with
//! random numbers have shipped models with random vision towers.)

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use super::files::WeightFiles;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::safetensors::{Dtype, TensorEntry};
use crate::model::weights::{EMBEDDING, LM_HEAD, canonical_name, parameters};

/// How many names of each kind an error lists.
const LISTED: usize = 10;

/// How one parameter is stored in the folder.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredParameter {
    /// Canonical name.
    pub name: String,
    /// Name in the file.
    pub stored_name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Stored element type: F32, BF16 or F16.
    pub dtype: Dtype,
    /// Index of the file, in the order of the files' names.
    pub(super) file: usize,
}

/// The whole model's parameters, found.
#[derive(Debug)]
pub(super) struct Matched {
    /// In the order of [`parameters`].
    pub parameters: Vec<StoredParameter>,
    /// The `lm_head` of a tied model that has one all the same; it has to equal the embedding.
    pub tied_head: Option<StoredParameter>,
}

impl Matched {
    pub fn new(dir: &Path, config: &ModelConfig, files: &WeightFiles) -> Result<Self> {
        let mut found: HashMap<String, (usize, &TensorEntry)> = HashMap::new();
        for (n, file) in files.files.iter().enumerate() {
            for tensor in file.tensors() {
                let name = canonical_name(&tensor.name);
                if let Some((_, other)) = found.insert(name, (n, tensor)) {
                    return Err(Error::content(
                        file.path(),
                        format!(
                            "tensors {:?} and {:?} are the same parameter under two names",
                            other.name, tensor.name
                        ),
                    ));
                }
            }
        }
        let expected = parameters(config);
        // Before names and shapes: packed weights come with other shapes and with scales of their own,
        // and a list of those would hide the reason.
        for (_, tensor) in expected.iter().filter_map(|(name, _)| found.get(name)) {
            if !matches!(tensor.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return Err(Error::content(
                    dir,
                    format!(
                        "tensor {:?} is stored as {}; only F32, BF16 and F16 weights can be loaded, so dequantise first",
                        tensor.name, tensor.dtype
                    ),
                ));
            }
        }
        let stored = |name: &str, file: usize, tensor: &TensorEntry| StoredParameter {
            name: name.to_owned(),
            stored_name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            file,
        };
        let mut problems = Problems::default();
        let mut matched = Self { parameters: Vec::with_capacity(expected.len()), tied_head: None };
        for (name, shape) in &expected {
            match found.remove(name) {
                None => problems.missing.push(name.clone()),
                Some((_, tensor)) if tensor.shape != *shape => problems.wrong_shape(tensor, shape),
                Some((file, tensor)) => matched.parameters.push(stored(name, file, tensor)),
            }
        }
        if config.tie_word_embeddings
            && let Some((file, tensor)) = found.remove(LM_HEAD)
        {
            match expected.iter().find(|(name, _)| name == EMBEDDING) {
                Some((_, shape)) if tensor.shape != *shape => problems.wrong_shape(tensor, shape),
                _ => matched.tied_head = Some(stored(LM_HEAD, file, tensor)),
            }
        }
        problems.unexpected = found.into_values().map(|(_, tensor)| format!("{:?}", tensor.name)).collect();
        problems.unexpected.sort();
        if let Some(message) = problems.message(expected.len()) {
            return Err(Error::content(dir, message));
        }
        Ok(matched)
    }
}

#[derive(Default)]
struct Problems {
    missing: Vec<String>,
    unexpected: Vec<String>,
    misshapen: Vec<String>,
}

impl Problems {
    fn wrong_shape(&mut self, tensor: &TensorEntry, expected: &[usize]) {
        self.misshapen.push(format!(
            "{:?} (config.json makes it {expected:?}, the file has {:?})",
            tensor.name, tensor.shape
        ));
    }

    fn message(&self, expected: usize) -> Option<String> {
        let kinds = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("of the wrong shape", &self.misshapen),
        ];
        if kinds.iter().all(|(_, names)| names.is_empty()) {
            return None;
        }
        let mut text = format!("the weights do not fit config.json, which describes {expected} tensors");
        for (kind, names) in kinds {
            if names.is_empty() {
                continue;
            }
            let first: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
            // Writing to a String cannot fail.
            let _ = write!(text, "; {} {kind}: {}", names.len(), first.join(", "));
            if names.len() > LISTED {
                text.push_str(", ...");
            }
        }
        if self.missing.iter().any(|name| name == LM_HEAD) {
            text.push_str(
                " (a model without lm_head shares the embedding: its config.json says \"tie_word_embeddings\": true)",
            );
        }
        Some(text)
    }
}
