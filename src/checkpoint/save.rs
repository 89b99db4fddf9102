//! Writing a model's files into a folder.

use serde_json::json;
use std::collections::{BTreeMap, HashMap};

use super::atomic::NewFolder;
use super::plan::{PlannedParameter, SavePlan};
use super::safetensors::{NamedTensor, write_safetensors};
use crate::error::{Error, Result};
use crate::model::folder::{Weight, first_non_finite};

/// One parameter's values, wherever they are kept.
#[derive(Clone, Copy, Debug)]
pub struct WeightRef<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// Shape, row-major.
    pub shape: &'a [usize],
    /// Values, as many as the shape says.
    pub data: &'a [f32],
}

impl<'a> From<&'a Weight> for WeightRef<'a> {
    fn from(weight: &'a Weight) -> Self {
        Self { name: &weight.name, shape: &weight.shape, data: &weight.data }
    }
}

/// Writes a model into a folder: weights, index if they take several files, `config.json`
/// and the companion files. `weights` come in any order and are exactly the plan's parameters.
///
/// # Errors
/// [`Error::Protect`] if a value is NaN or infinite: nothing is written then, so that no
/// broken model takes the place of a good one. [`Error::Input`] if a value is beyond the range of the
/// dtype to save in. [`Error::Io`]. [`Error::Internal`] if `weights` are not the plan's.
pub fn save_model<'a>(
    folder: &mut NewFolder,
    plan: &SavePlan,
    weights: impl IntoIterator<Item = WeightRef<'a>>,
) -> Result<()> {
    let weights = fit(plan, weights)?;
    let shards = shards(&plan.parameters, plan.max_shard_bytes);
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    for (n, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", n + 1),
        };
        let mut tensors = Vec::with_capacity(shard.len());
        for parameter in *shard {
            let weight = weights.get(parameter.name.as_str()).ok_or_else(|| not_given(parameter))?;
            let values = parameter.dtype.values(weight.data);
            tensors.push(NamedTensor { name: &parameter.stored_name, shape: &parameter.shape, values });
            weight_map.insert(parameter.stored_name.as_str(), file.clone());
        }
        folder.file(&file, |out| {
            let path = out.path().to_path_buf();
            write_safetensors(out, &path, &tensors)
        })?;
    }
    if count != 1 {
        let index = json!({
            "metadata": {
                "total_parameters": plan.parameters.iter().map(PlannedParameter::elements).sum::<u64>(),
                "total_size": plan.parameters.iter().map(PlannedParameter::bytes).sum::<u64>(),
            },
            "weight_map": weight_map,
        });
        let text = format!("{index:#}\n");
        folder.bytes("model.safetensors.index.json", text.as_bytes())?;
    }
    folder.bytes("config.json", plan.config_bytes())?;
    plan.companions.iter().try_for_each(|(name, bytes)| folder.bytes(name, bytes))
}

/// The weights by name: exactly the plan's, in the plan's shapes, all finite.
fn fit<'a>(
    plan: &SavePlan,
    weights: impl IntoIterator<Item = WeightRef<'a>>,
) -> Result<HashMap<&'a str, WeightRef<'a>>> {
    let mut by_name = HashMap::new();
    for weight in weights {
        if by_name.insert(weight.name, weight).is_some() {
            return Err(Error::Internal(format!("parameter {:?} is to be saved twice", weight.name)));
        }
    }
    for parameter in &plan.parameters {
        let weight = by_name.get(parameter.name.as_str()).ok_or_else(|| not_given(parameter))?;
        if weight.shape != parameter.shape || weight.data.len() as u64 != parameter.elements() {
            return Err(Error::Internal(format!(
                "parameter {:?} has shape {:?} and {} values; the model's has {:?}",
                parameter.name,
                weight.shape,
                weight.data.len(),
                parameter.shape
            )));
        }
        if let Some(at) = first_non_finite(weight.data) {
            return Err(Error::Protect(format!(
                "parameter {:?} holds {} (element {at}); the model is not saved, the last checkpoint stays as it is",
                parameter.name,
                weight.data.get(at).copied().unwrap_or(f32::NAN)
            )));
        }
    }
    if by_name.len() != plan.parameters.len() {
        return Err(Error::Internal(format!(
            "{} parameters are to be saved; the model has {}",
            by_name.len(),
            plan.parameters.len()
        )));
    }
    Ok(by_name)
}

fn not_given(parameter: &PlannedParameter) -> Error {
    Error::Internal(format!("parameter {:?} was not given to be saved", parameter.name))
}

/// Cuts the parameters, in order, into runs of at most `limit` bytes and at least one parameter.
fn shards(parameters: &[PlannedParameter], limit: u64) -> Vec<&[PlannedParameter]> {
    let mut shards = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for (end, parameter) in parameters.iter().enumerate() {
        if end > start && bytes + parameter.bytes() > limit {
            shards.extend(parameters.get(start..end));
            (start, bytes) = (end, 0);
        }
        bytes += parameter.bytes();
    }
    shards.extend(parameters.get(start..));
    shards
}

#[cfg(test)]
mod tests;
