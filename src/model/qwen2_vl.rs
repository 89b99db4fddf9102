//! Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): every block attends over the whole image.

use super::config::parse::{Group, Parsed, only_axial_rope};
use super::config::{BlockKind, VisionConfig};
use super::family::{Spec, VisionKeys};
use serde_json::{Value, json};

/// What is its own.
pub(super) const SPEC: Spec = Spec {
    model_type: "qwen2_vl",
    architecture: "Qwen2VLForConditionalGeneration",
    vision_keys: VisionKeys { width: "embed_dim", mlp: "embed_dim * mlp_ratio", out: "hidden_size" },
    read_vision,
    write_vision,
};

/// Defaults are those of transformers' `Qwen2VLVisionConfig`; files saved by transformers 4.x leave out every key that has its
/// default.
fn read_vision(group: &Group) -> Parsed<VisionConfig> {
    group.only("hidden_act", "quick_gelu")?;
    only_axial_rope(group)?;
    let embed_dim = group.size("embed_dim", 1280)?;
    let mlp_ratio = group.number("mlp_ratio", 4.0)?;
    // The ratio may be fractional; truncated as Python's `int`.
    let mlp_dim = embed_dim as f64 * mlp_ratio;
    if !(1.0..=1e9).contains(&mlp_dim) {
        return Err(format!("vision_config.mlp_ratio is {mlp_ratio}, which makes the MLP {mlp_dim} wide"));
    }
    Ok(VisionConfig {
        depth: group.size("depth", 32)?,
        embed_dim,
        out_hidden_size: group.size("hidden_size", 3584)?,
        num_heads: group.size("num_heads", 16)?,
        mlp_dim: mlp_dim as usize,
        in_channels: group.size_named(&["in_channels", "in_chans"], 3)?,
        patch_size: group.size("patch_size", 14)?,
        spatial_merge_size: group.size("spatial_merge_size", 2)?,
        temporal_patch_size: group.size("temporal_patch_size", 2)?,
        block: BlockKind::QuickGelu,
        windows: None,
    })
}

fn write_vision(vision: &VisionConfig) -> Parsed<Value> {
    if !vision.mlp_dim.is_multiple_of(vision.embed_dim) {
        return Err(format!(
            "the vision MLP width {} is no multiple of the vision width {}: config.json can only say a whole mlp_ratio",
            vision.mlp_dim, vision.embed_dim
        ));
    }
    Ok(json!({
        "depth": vision.depth,
        "embed_dim": vision.embed_dim,
        "hidden_act": "quick_gelu",
        "hidden_size": vision.out_hidden_size,
        "in_channels": vision.in_channels,
        "mlp_ratio": vision.mlp_dim / vision.embed_dim,
        "model_type": SPEC.model_type,
        "num_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }))
}
