//! The parameters of a model: their names and shapes, and the other names under which
//! files hold them.
//!
//! The canonical names are those of the published files and of what transformers writes by
//! default in every version: `model.embed_tokens.weight`, `model.layers.N.*`, `model.norm.weight`,
//! `visual.*`, `lm_head.weight`.

use super::config::{BlockKind, ModelConfig, VisionConfig};

/// Canonical name of the embedding matrix, `[V, C]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Canonical name of the output projection, `[V, C]`; only an untied model has it.
pub const LM_HEAD: &str = "lm_head.weight";

/// Every parameter of the model, in the order of the data flow: canonical name and shape
/// (Linear weights are `[out, in]`, the patch embedding is `[C, channels, frames, height, width]`).
///
/// `config` has passed [`ModelConfig::check`], so no product here overflows.
pub fn parameters(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| list.push((name, shape.to_vec()));

    vision_parameters(&config.vision, &mut add);

    let text = &config.text;
    let width = text.hidden_size;
    let query = text.num_attention_heads * text.head_dim;
    let key_value = text.num_key_value_heads * text.head_dim;
    add(EMBEDDING.into(), &[text.vocab_size, width]);
    for n in 0..text.num_hidden_layers {
        let at = |name: &str| format!("model.layers.{n}.{name}");
        add(at("input_layernorm.weight"), &[width]);
        add(at("self_attn.q_proj.weight"), &[query, width]);
        add(at("self_attn.q_proj.bias"), &[query]);
        add(at("self_attn.k_proj.weight"), &[key_value, width]);
        add(at("self_attn.k_proj.bias"), &[key_value]);
        add(at("self_attn.v_proj.weight"), &[key_value, width]);
        add(at("self_attn.v_proj.bias"), &[key_value]);
        add(at("self_attn.o_proj.weight"), &[width, query]);
        add(at("post_attention_layernorm.weight"), &[width]);
        add(at("mlp.gate_proj.weight"), &[text.intermediate_size, width]);
        add(at("mlp.up_proj.weight"), &[text.intermediate_size, width]);
        add(at("mlp.down_proj.weight"), &[width, text.intermediate_size]);
    }
    add("model.norm.weight".into(), &[width]);
    if !config.tie_word_embeddings {
        add(LM_HEAD.into(), &[text.vocab_size, width]);
    }
    list
}

fn vision_parameters(vision: &VisionConfig, add: &mut impl FnMut(String, &[usize])) {
    let width = vision.embed_dim;
    let patch = vision.patch_size;
    add(
        "visual.patch_embed.proj.weight".into(),
        &[width, vision.in_channels, vision.temporal_patch_size, patch, patch],
    );
    for n in 0..vision.depth {
        let at = |name: &str| format!("visual.blocks.{n}.{name}");
        norm(vision.block, at("norm1"), width, add);
        linear(at("attn.qkv"), [3 * width, width], add);
        linear(at("attn.proj"), [width, width], add);
        norm(vision.block, at("norm2"), width, add);
        let (inner, outer): (&[&str], &str) = match vision.block {
            BlockKind::QuickGelu => (&["mlp.fc1"], "mlp.fc2"),
            BlockKind::SwiGlu => (&["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
        };
        inner.iter().for_each(|name| linear(at(name), [vision.mlp_dim, width], add));
        linear(at(outer), [width, vision.mlp_dim], add);
    }
    let merged = width * vision.spatial_merge_size * vision.spatial_merge_size;
    norm(vision.block, "visual.merger.ln_q".into(), width, add);
    linear("visual.merger.mlp.0".into(), [merged, merged], add);
    linear("visual.merger.mlp.2".into(), [vision.out_hidden_size, merged], add);
}

/// A norm, with a bias where it is a LayerNorm.
fn norm(block: BlockKind, name: String, width: usize, add: &mut impl FnMut(String, &[usize])) {
    add(format!("{name}.weight"), &[width]);
    if block == BlockKind::QuickGelu {
        add(format!("{name}.bias"), &[width]);
    }
}

/// A layer with a bias, `[out, in]`.
fn linear(name: String, shape: [usize; 2], add: &mut impl FnMut(String, &[usize])) {
    add(format!("{name}.weight"), &shape);
    add(format!("{name}.bias"), &shape[..1]);
}

/// The canonical form of a name found in a file: published names stay, `model.visual.*` and
/// `model.language_model.*` (transformers 4.52 and later, in memory), and `language_model.model.*`
/// with `language_model.lm_head.*` lose their wrapping. Whether such a parameter exists is
/// not decided here.
pub fn canonical_name(stored: &str) -> String {
    let prefixes = [
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ];
    for (from, to) in prefixes {
        if let Some(rest) = stored.strip_prefix(from) {
            return format!("{to}{rest}");
        }
    }
    stored.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_era_have_one_form() {
        for (stored, canonical) in [
            ("visual.merger.ln_q.bias", "visual.merger.ln_q.bias"),
            ("model.visual.merger.ln_q.bias", "visual.merger.ln_q.bias"),
            ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
            ("language_model.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
            ("model.language_model.embed_tokens.weight", EMBEDDING),
            ("language_model.lm_head.weight", LM_HEAD),
            ("lm_head.weight", LM_HEAD),
            ("transformer.h.0.weight", "transformer.h.0.weight"),
        ] {
            assert_eq!(canonical_name(stored), canonical);
        }
    }

    /// The sizes of Qwen2-VL-2B-Instruct; transformers 5.23 counts the parameters of the same config.
    #[test]
    fn the_published_2b_model_has_its_published_size() {
        let root = serde_json::json!({
            "model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960,
            "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
            "vocab_size": 151936, "tie_word_embeddings": true, "vision_config": {"hidden_size": 1536}
        });
        let config = ModelConfig::from_json("config.json".as_ref(), &root).expect("valid");
        let total: usize = parameters(&config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(total, 2_208_985_600);
    }

    /// The same of Qwen2.5-VL-3B-Instruct.
    #[test]
    fn the_published_3b_model_has_its_published_size() {
        let root = serde_json::json!({
            "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008,
            "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
            "vocab_size": 151936, "tie_word_embeddings": true,
            "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048}
        });
        let config = ModelConfig::from_json("config.json".as_ref(), &root).expect("valid");
        let total: usize = parameters(&config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(total, 3_754_622_976);
    }
}
