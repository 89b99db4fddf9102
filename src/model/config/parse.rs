//! From the JSON of `config.json` to a [`ModelConfig`]: which key, from which place, with
//! which default. Errors are sentences without the file's name; the caller adds it.

use serde_json::{Map, Value};

use super::{ModelConfig, TextConfig};
use crate::files::shown;
use crate::model::family::Family;

pub(in crate::model) type Parsed<T> = std::result::Result<T, String>;

/// One group of settings, and the places where it may stand: the first place that has a key
/// gives its value, and the others have to agree.
pub(in crate::model) struct Group<'a> {
    places: Vec<(&'static str, &'a Map<String, Value>)>,
}

impl<'a> Group<'a> {
    /// The value of `key` (or of one of its older names), with the place it came from. `null`
    /// counts as absent.
    pub(in crate::model) fn value(&self, keys: &[&'static str]) -> Parsed<Option<(String, &'a Value)>> {
        let mut found: Option<(String, &'a Value)> = None;
        for (place, map) in &self.places {
            for key in keys {
                let Some(value) = map.get(*key).filter(|value| !value.is_null()) else { continue };
                let label = format!("{place}{key}");
                match &found {
                    None => found = Some((label, value)),
                    Some((first, kept)) if !same(kept, value) => {
                        return Err(format!(
                            "{first} is {} but {label} is {}; make them agree",
                            shown(kept),
                            shown(value)
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(found)
    }

    pub(in crate::model) fn size(&self, key: &'static str, default: usize) -> Parsed<usize> {
        self.size_named(&[key], default)
    }

    pub(in crate::model) fn size_named(&self, keys: &[&'static str], default: usize) -> Parsed<usize> {
        let Some((label, value)) = self.value(keys)? else { return Ok(default) };
        whole(&label, value)
    }

    fn token_id(&self, key: &'static str, default: u32) -> Parsed<u32> {
        let Some((label, value)) = self.value(&[key])? else { return Ok(default) };
        let id = whole(&label, value)?;
        u32::try_from(id).map_err(|_| format!("{label} is {id}, which is no token id"))
    }

    pub(in crate::model) fn number(&self, key: &'static str, default: f64) -> Parsed<f64> {
        let Some((label, value)) = self.value(&[key])? else { return Ok(default) };
        value.as_f64().ok_or_else(|| format!("{label} must be a number, got {}", shown(value)))
    }

    pub(in crate::model) fn flag(&self, key: &'static str, default: bool) -> Parsed<bool> {
        let Some((label, value)) = self.value(&[key])? else { return Ok(default) };
        value.as_bool().ok_or_else(|| format!("{label} must be true or false, got {}", shown(value)))
    }

    /// Refuses every value of `key` but `supported` (which is also the default).
    pub(in crate::model) fn only(&self, key: &'static str, supported: &str) -> Parsed<()> {
        match self.value(&[key])? {
            Some((label, value)) if value.as_str() != Some(supported) => {
                Err(format!("{label} is {}; only \"{supported}\" is supported", shown(value)))
            }
            _ => Ok(()),
        }
    }
}

/// Equality of settings: numbers by value (`1000000` is `1000000.0`).
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

pub(in crate::model) fn whole(label: &str, value: &Value) -> Parsed<usize> {
    value
        .as_u64()
        .and_then(|v| usize::try_from(v).ok())
        .ok_or_else(|| format!("{label} must be a whole number, got {}", shown(value)))
}

fn object<'a>(root: &'a Map<String, Value>, key: &str) -> Parsed<Option<&'a Map<String, Value>>> {
    match root.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(format!("{key} must be an object, got {}", shown(other))),
    }
}

/// The whole of `config.json`; the sizes are not checked against each other yet.
pub(super) fn config(root: &Value) -> Parsed<ModelConfig> {
    let Value::Object(root) = root else {
        return Err(format!("must be a JSON object, got {}", shown(root)));
    };
    let family = family(root.get("model_type"))?;
    if root.get("quantization_config").is_some_and(|v| !v.is_null()) {
        return Err("has a quantization_config: quantised weights cannot be trained; dequantise first".into());
    }
    let nested = object(root, "text_config")?;
    let mut places = Vec::new();
    if let Some(nested) = nested {
        places.push(("text_config.", nested));
    }
    places.push(("", root));
    let text = Group { places };
    let top = Group { places: vec![("", root)] };
    let no_keys = Map::new();
    let vision = object(root, "vision_config")?.unwrap_or(&no_keys);
    let vision = Group { places: vec![("vision_config.", vision)] };
    Ok(ModelConfig {
        family,
        // Published files and transformers 5 have the flag at the top, 4.52 to 4.57 write it into
        // text_config only, and transformers' default is untied.
        tie_word_embeddings: text.flag("tie_word_embeddings", false)?,
        text: text_config(&text)?,
        vision: family.read_vision(&vision)?,
        image_token_id: top.token_id("image_token_id", 151_655)?,
        video_token_id: top.token_id("video_token_id", 151_656)?,
        vision_start_token_id: top.token_id("vision_start_token_id", 151_652)?,
        vision_end_token_id: top.token_id("vision_end_token_id", 151_653)?,
    })
}

/// The family that `model_type` names.
fn family(model_type: Option<&Value>) -> Parsed<Family> {
    let found = model_type.and_then(Value::as_str);
    if let Some(family) = Family::ALL.into_iter().find(|family| found == Some(family.model_type())) {
        return Ok(family);
    }
    let supported = Family::ALL.map(|family| format!("\"{}\"", family.model_type())).join(", ");
    Err(match model_type {
        Some(other) => format!("model_type is {}; supported model types: {supported}", shown(other)),
        None => format!("has no model_type; supported model types: {supported}"),
    })
}

/// Defaults are those of transformers' `Qwen2VLTextConfig`.
fn text_config(group: &Group) -> Parsed<TextConfig> {
    group.only("hidden_act", "silu")?;
    if group.flag("use_sliding_window", false)? {
        return Err("use_sliding_window is true; sliding-window attention is not supported".into());
    }
    if let Some((label, value)) = group.value(&["layer_types"])? {
        let all_full = value.as_array().is_some_and(|list| list.iter().all(|v| v == "full_attention"));
        if !all_full {
            return Err(format!("{label} is {}; only \"full_attention\" layers are supported", shown(value)));
        }
    }
    let hidden_size = group.size("hidden_size", 8192)?;
    let num_attention_heads = group.size("num_attention_heads", 64)?;
    // An explicit null means one key/value head per query head; an absent key has a default.
    let null_heads = group.places.iter().any(|(_, map)| map.get("num_key_value_heads") == Some(&Value::Null));
    let default_kv_heads = if null_heads { num_attention_heads } else { 8 };
    let head_dim = match group.value(&["head_dim"])? {
        Some((label, value)) => whole(&label, value)?,
        None => match hidden_size.checked_rem(num_attention_heads) {
            Some(0) => hidden_size / num_attention_heads,
            _ => {
                return Err(format!(
                    "num_attention_heads ({num_attention_heads}) does not divide hidden_size ({hidden_size})"
                ));
            }
        },
    };
    let (rope_theta, mrope_section) = text_rope(group)?;
    Ok(TextConfig {
        vocab_size: group.size("vocab_size", 152_064)?,
        hidden_size,
        intermediate_size: group.size("intermediate_size", 29_568)?,
        num_hidden_layers: group.size("num_hidden_layers", 80)?,
        num_attention_heads,
        num_key_value_heads: group.size("num_key_value_heads", default_kv_heads)?,
        head_dim,
        rms_norm_eps: group.number("rms_norm_eps", 1e-5)?,
        rope_theta,
        mrope_section,
        max_position_embeddings: group.size("max_position_embeddings", 32_768)?,
    })
}

/// The rotary base and the M-RoPE sections: from `rope_parameters` (5.x), else `rope_scaling` and
/// `rope_theta`. Every place that speaks has to agree, and none may ask for scaling.
fn text_rope(group: &Group) -> Parsed<(f64, [usize; 3])> {
    let mut ropes: Vec<(&'static str, &Map<String, Value>)> = Vec::new();
    for (place, map) in &group.places {
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(rope) = object(map, key)? else { continue };
            let label = match (place.is_empty(), key) {
                (true, "rope_parameters") => "rope_parameters.",
                (true, _) => "rope_scaling.",
                (false, "rope_parameters") => "text_config.rope_parameters.",
                (false, _) => "text_config.rope_scaling.",
            };
            for key in ["rope_type", "type"] {
                match rope.get(key) {
                    None | Some(Value::Null) => {}
                    Some(kind) if kind == "mrope" || kind == "default" => {}
                    Some(kind) => {
                        return Err(format!(
                            "{label}{key} is {}; only \"mrope\" and \"default\" are supported, and ignoring it would compute another model",
                            shown(kind)
                        ));
                    }
                }
            }
            if rope.get("mrope_interleaved").is_some_and(|v| v == true) {
                return Err(format!(
                    "{label}mrope_interleaved is true; the sections of the supported models are contiguous"
                ));
            }
            if let Some((key, _)) = rope.iter().find(|(_, value)| value.is_object()) {
                return Err(format!(
                    "{label}{key} is an object; rotary settings per layer are not supported"
                ));
            }
            ropes.push((label, rope));
        }
    }
    let mut theta_places = ropes.clone();
    theta_places.extend(group.places.iter().copied());
    let rope_theta = Group { places: theta_places }.number("rope_theta", 1_000_000.0)?;
    let mrope_section = match (Group { places: ropes }).value(&["mrope_section"])? {
        None => [16, 24, 24],
        Some((label, value)) => {
            let axes = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let [t, h, w] = axes else {
                return Err(format!(
                    "{label} must be three whole numbers (time, height, width), got {}",
                    shown(value)
                ));
            };
            [whole(&label, t)?, whole(&label, h)?, whole(&label, w)?]
        }
    };
    Ok((rope_theta, mrope_section))
}

/// Refuses a vision rotation other than the axial one with base 10000.
pub(in crate::model) fn only_axial_rope(group: &Group) -> Parsed<()> {
    let Some((label, value)) = group.value(&["rope_parameters"])? else { return Ok(()) };
    let theta = value.get("rope_theta").and_then(Value::as_f64).unwrap_or(10_000.0);
    let kind = value.get("rope_type").and_then(Value::as_str).unwrap_or("axial");
    if theta == 10_000.0 && matches!(kind, "axial" | "default") {
        return Ok(());
    }
    Err(format!("{label} is {}; only the axial kind with rope_theta 10000 is supported", shown(value)))
}
