//! Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): most blocks attend within windows; RMSNorm and a gated MLP.
//!
//! Its time positions are in units of `1 / tokens_per_second` seconds, which tells a video's frames apart; a still image has one
//! frame and so the positions of Qwen2-VL.

use super::config::parse::{Group, Parsed, only_axial_rope, whole};
use super::config::{BlockKind, VisionConfig, WindowConfig};
use super::family::{Spec, VisionKeys};
use crate::files::shown;
use serde_json::{Value, json};

/// What is its own.
pub(super) const SPEC: Spec = Spec {
    model_type: "qwen2_5_vl",
    architecture: "Qwen2_5_VLForConditionalGeneration",
    vision_keys: VisionKeys { width: "hidden_size", mlp: "intermediate_size", out: "out_hidden_size" },
    read_vision,
    write_vision,
};

/// Defaults are those of transformers' `Qwen2_5_VLVisionConfig`; files saved by transformers 4.x leave out every key that has its
/// default.
fn read_vision(group: &Group) -> Parsed<VisionConfig> {
    group.only("hidden_act", "silu")?;
    only_axial_rope(group)?;
    // Nothing of a still image depends on it, but a value that is none is an error.
    group.number("tokens_per_second", 4.0)?;
    let depth = group.size("depth", 32)?;
    Ok(VisionConfig {
        depth,
        embed_dim: group.size("hidden_size", 3584)?,
        out_hidden_size: group.size("out_hidden_size", 3584)?,
        num_heads: group.size("num_heads", 16)?,
        mlp_dim: group.size("intermediate_size", 3420)?,
        in_channels: group.size_named(&["in_channels", "in_chans"], 3)?,
        patch_size: group.size("patch_size", 14)?,
        spatial_merge_size: group.size("spatial_merge_size", 2)?,
        temporal_patch_size: group.size("temporal_patch_size", 2)?,
        block: BlockKind::SwiGlu,
        windows: Some(WindowConfig {
            size: group.size("window_size", 112)?,
            full_blocks: full_blocks(group, depth)?,
        }),
    })
}

/// In rising order; numbers of blocks that there are not mean nothing.
fn full_blocks(group: &Group, depth: usize) -> Parsed<Vec<usize>> {
    let mut blocks = match group.value(&["fullatt_block_indexes"])? {
        None => vec![7, 15, 23, 31],
        Some((label, Value::Array(list))) => {
            list.iter().map(|block| whole(&label, block)).collect::<Parsed<Vec<_>>>()?
        }
        Some((label, other)) => {
            return Err(format!("{label} must be a list of block numbers, got {}", shown(other)));
        }
    };
    blocks.retain(|&block| block < depth);
    blocks.sort_unstable();
    blocks.dedup();
    Ok(blocks)
}

fn write_vision(vision: &VisionConfig) -> Parsed<Value> {
    let Some(windows) = &vision.windows else {
        return Err(format!("a {} vision tower has windows", SPEC.model_type));
    };
    Ok(json!({
        "depth": vision.depth,
        "fullatt_block_indexes": windows.full_blocks,
        "hidden_act": "silu",
        "hidden_size": vision.embed_dim,
        "in_channels": vision.in_channels,
        "intermediate_size": vision.mlp_dim,
        "model_type": SPEC.model_type,
        "num_heads": vision.num_heads,
        "out_hidden_size": vision.out_hidden_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "tokens_per_second": 2,
        "window_size": windows.size,
    }))
}
