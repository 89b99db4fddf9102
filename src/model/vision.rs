//! The vision tower: patch embedding, blocks with per-image attention, and the merger.

use super::config::VisionConfig;
use crate::autograd::{ParamId, Tape, Var};
use crate::error::Result;
use crate::nn::{LayerNorm, Linear, Names, Params, Scope};
use crate::ops::activation::{Gelu, QuickGelu};
use crate::ops::attention::{Attention, Heads, Segment, Segments};
use crate::ops::elementwise::{Add, Columns};
use crate::ops::patch_embed::PatchEmbed;
use crate::ops::rope::{Rope, Table};
use crate::processor::{Normalisation, Patches};
use std::sync::Arc;

/// Epsilon of every LayerNorm of the tower (fixed in Hugging Face's code).
const EPS: f64 = 1e-6;
/// Base of the two-axis rotation.
const THETA: f64 = 10_000.0;

#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: Heads,
}

impl Block {
    fn new(names: &Names, n: usize, config: &VisionConfig) -> Result<Block> {
        let at = |name: &str| format!("visual.blocks.{n}.{name}");
        let heads = Heads {
            query: config.num_heads,
            key: config.num_heads,
            dim: config.embed_dim / config.num_heads,
        };
        Ok(Block {
            norm1: LayerNorm::new(names, &at("norm1"), EPS)?,
            qkv: Linear::new(names, &at("attn.qkv"), true)?,
            proj: Linear::new(names, &at("attn.proj"), true)?,
            norm2: LayerNorm::new(names, &at("norm2"), EPS)?,
            fc1: Linear::new(names, &at("mlp.fc1"), true)?,
            fc2: Linear::new(names, &at("mlp.fc2"), true)?,
            heads,
        })
    }

    /// `[N, C]` to `[N, C]`.
    fn forward(&self, scope: &Scope<'_>, x: &Var, table: &Table, images: &Segments) -> Result<Var> {
        let tape = scope.tape;
        let width = self.heads.query * self.heads.dim;
        let qkv = self.qkv.forward(scope, &self.norm1.forward(scope, x)?)?;
        let part = |from: usize| tape.apply(Columns { from, width }, [&qkv]);
        let rotate = |x: Var| tape.apply(Rope { table: table.clone() }, [&x]);
        let (q, k, v) = (rotate(part(0)?)?, rotate(part(width)?)?, part(2 * width)?);
        let attention = Attention { heads: self.heads, segments: images.clone(), causal: false };
        let o = self.proj.forward(scope, &tape.apply(attention, [&q, &k, &v])?)?;
        let x = tape.apply(Add, [x, &o])?;
        let h = self.fc1.forward(scope, &self.norm2.forward(scope, &x)?)?;
        let h = self.fc2.forward(scope, &tape.apply(QuickGelu, [&h])?)?;
        tape.apply(Add, [&x, &h])
    }
}

/// The tower's layers.
#[derive(Clone, Debug)]
pub struct Vision {
    patch_embed: ParamId,
    blocks: Vec<Block>,
    ln_q: LayerNorm,
    mlp0: Linear,
    mlp2: Linear,
    merge: usize,
    merged_width: usize,
    head_dim: usize,
    levels: Arc<[[f32; 256]; 3]>,
}

/// What the tower gives.
pub struct Features {
    /// After the last block, `[N, embed_dim]`.
    pub pre_merger: Var,
    /// After the merger, `[N / merge^2, C]`: one row per image token.
    pub merged: Var,
}

impl Vision {
    /// Finds the tower's parameters.
    pub fn new(names: &Names, config: &VisionConfig, normalisation: &Normalisation) -> Result<Vision> {
        Ok(Vision {
            patch_embed: names.id("visual.patch_embed.proj.weight")?,
            blocks: (0..config.depth).map(|n| Block::new(names, n, config)).collect::<Result<_>>()?,
            ln_q: LayerNorm::new(names, "visual.merger.ln_q", EPS)?,
            mlp0: Linear::new(names, "visual.merger.mlp.0", true)?,
            mlp2: Linear::new(names, "visual.merger.mlp.2", true)?,
            merge: config.spatial_merge_size,
            merged_width: config.embed_dim * config.spatial_merge_size.pow(2),
            head_dim: config.embed_dim / config.num_heads,
            levels: Arc::new(normalisation.table()),
        })
    }

    /// Features of all images, one after the other. `recompute` keeps only the blocks' inputs for the backward pass.
    pub fn forward(&self, scope: &Scope<'_>, images: &[&Patches], recompute: bool) -> Result<Features> {
        // Nothing of a frozen tower is recorded, so there is nothing to compute again.
        let recompute = recompute && scope.params.trains("visual.");
        let embed = PatchEmbed {
            patches: images.iter().map(|p| p.bytes.clone()).collect(),
            levels: self.levels.clone(),
        };
        let mut x = scope.tape.apply(embed, [&scope.param(self.patch_embed)])?;
        let table = Table::axial(THETA, self.head_dim, &places(images, self.merge));
        let segments = frames(images);
        for block in &self.blocks {
            x = run(
                scope,
                &x,
                recompute,
                block,
                (&table, &segments),
                |block, scope, x, (table, segments)| block.forward(scope, x, table, segments),
            )?;
        }
        let h = self.ln_q.forward(scope, &x)?;
        let rows = h.value().len() / self.merged_width;
        let h = scope.tape.reshape(&h, &[rows, self.merged_width])?;
        let h = self.mlp0.forward(scope, &h)?;
        let merged = self.mlp2.forward(scope, &scope.tape.apply(Gelu, [&h])?)?;
        Ok(Features { pre_merger: x, merged })
    }
}

/// Runs a block on the scope's tape, or so that it is run again in the backward pass.
pub(super) fn run<L: Clone + 'static, A: Clone + 'static, B: Clone + 'static>(
    scope: &Scope<'_>,
    x: &Var,
    recompute: bool,
    layer: &L,
    context: (&A, &B),
    forward: fn(&L, &Scope<'_>, &Var, (&A, &B)) -> Result<Var>,
) -> Result<Var> {
    if !recompute {
        return forward(layer, scope, x, context);
    }
    let (layer, a, b) = (layer.clone(), context.0.clone(), context.1.clone());
    let params: Arc<Params> = scope.params.clone();
    scope.tape.recompute(x, move |tape: &Tape, x: &Var| {
        forward(&layer, &Scope { tape, params: &params }, x, (&a, &b))
    })
}

/// Row and column of every patch, in the processor's order: merge blocks row by row, inside a block row by row.
fn places(images: &[&Patches], merge: usize) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for image in images {
        let [frames, height, width] = image.grid_thw;
        for _ in 0..frames {
            for (y, x) in
                (0..height).step_by(merge).flat_map(|y| (0..width).step_by(merge).map(move |x| (y, x)))
            {
                places.extend((0..merge).flat_map(|dy| (0..merge).map(move |dx| (y + dy, x + dx))));
            }
        }
    }
    places
}

/// One attention segment per frame of each image.
fn frames(images: &[&Patches]) -> Segments {
    let mut segments = Vec::new();
    let mut next = 0;
    for image in images {
        let [frames, height, width] = image.grid_thw;
        for _ in 0..frames {
            segments.push(Segment { rows: next..next + height * width, prefix: None });
            next += height * width;
        }
    }
    segments.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_stand_in_merge_blocks() {
        let image = Patches { grid_thw: [1, 2, 4], bytes: Arc::from([]) };
        let want = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)];
        assert_eq!(places(&[&image], 2), want);
        let two = [&image, &Patches { grid_thw: [2, 2, 2], bytes: Arc::from([]) }];
        assert_eq!(frames(&two).iter().map(|s| s.rows.clone()).collect::<Vec<_>>(), [0..8, 8..12, 12..16]);
    }
}
