//! Which files hold a model's weights: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{file_inside, read_json, shown};
use crate::model::safetensors::{MAX_TENSORS, SafetensorsFile};

/// Name of the only weight file of a model that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the file that says which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The weight files of a folder, headers read and checked; no tensor is in two of them.
#[derive(Debug)]
pub struct WeightFiles {
    /// In the order of their names.
    pub files: Vec<SafetensorsFile>,
    /// The index, if the weights are sharded.
    pub index: Option<PathBuf>,
}

impl WeightFiles {
    /// Finds and opens the weight files of `dir`. As in transformers, a `model.safetensors` comes
    /// before an index.
    pub fn open(dir: &Path) -> Result<Self> {
        if let Some(path) = file_inside(dir, SINGLE_FILE)? {
            return Ok(Self { files: vec![SafetensorsFile::open(&path)?], index: None });
        }
        let Some(index) = file_inside(dir, INDEX_FILE)? else {
            return Err(no_weights(dir));
        };
        let shards = read_index(&index)?;
        let (mut files, mut tensors) = (Vec::with_capacity(shards.len()), 0);
        for name in shards.keys() {
            // What the index names is the index's fault.
            let found = file_inside(dir, name).map_err(|error| match error {
                Error::Content { path, message } if path == dir => Error::content(&index, message),
                other => other,
            });
            let Some(path) = found? else {
                return Err(Error::content(
                    &index,
                    format!("lists the shard {name:?}, which is not there; fetch the model again"),
                ));
            };
            let file = SafetensorsFile::open(&path)?;
            tensors += file.tensors().len();
            if tensors > MAX_TENSORS {
                return Err(Error::content(
                    &index,
                    format!("lists shards of more than {MAX_TENSORS} tensors"),
                ));
            }
            files.push(file);
        }
        check_shards(&index, &shards, &files)?;
        Ok(Self { files, index: Some(index) })
    }
}

/// The tensors that the index places in each shard.
fn read_index(path: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let index = read_json(path)?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(Error::content(path, "has no \"weight_map\" object of tensor names and shard files"));
    };
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let Value::String(file) = file else {
            return Err(Error::content(
                path,
                format!("places tensor {tensor:?} in {}, which is no file name", shown(file)),
            ));
        };
        shards.entry(file.clone()).or_default().insert(tensor.clone());
    }
    if shards.is_empty() {
        return Err(Error::content(path, "lists no tensor"));
    }
    Ok(shards)
}

/// Index and shards have to tell the same: each tensor in the one shard that is said to hold it.
fn check_shards(
    index: &Path,
    shards: &BTreeMap<String, BTreeSet<String>>,
    files: &[SafetensorsFile],
) -> Result<()> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for ((shard, listed), file) in shards.iter().zip(files) {
        for tensor in file.tensors() {
            if let Some(other) = seen.insert(&tensor.name, shard) {
                return Err(Error::content(
                    index,
                    format!("tensor {:?} is in two shards, {other:?} and {shard:?}", tensor.name),
                ));
            }
        }
        if let Some(tensor) = listed.iter().find(|name| file.tensor(name).is_none()) {
            return Err(Error::content(
                index,
                format!("places tensor {tensor:?} in shard {shard:?}, which does not hold it"),
            ));
        }
    }
    for ((shard, listed), file) in shards.iter().zip(files) {
        if let Some(tensor) = file.tensors().iter().find(|tensor| !listed.contains(&tensor.name)) {
            return Err(Error::content(
                index,
                format!("does not list tensor {:?}, which shard {shard:?} holds", tensor.name),
            ));
        }
    }
    Ok(())
}

/// No safetensors: says what to do, which differs when the weights are there in another format.
fn no_weights(dir: &Path) -> Error {
    const OTHER_FORMATS: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5"];
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let other = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| OTHER_FORMATS.iter().any(|ending| name.ends_with(ending)))
        .min();
    match other {
        Some(name) => Error::content(
            dir,
            format!(
                "holds its weights as {name:?}, which is never opened (such files can run code); convert it: \
                 python -c \"from transformers import AutoModelForImageTextToText as M; \
                 M.from_pretrained('IN').save_pretrained('OUT')\""
            ),
        ),
        None => Error::content(
            dir.join(SINGLE_FILE),
            format!(
                "is not there, nor is {INDEX_FILE}: the folder has no weights (fetch the model again if the download was cut short)"
            ),
        ),
    }
}
