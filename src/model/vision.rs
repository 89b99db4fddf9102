//! The vision tower: patch embedding, blocks with attention within images or windows of them, and the merger.

mod windows;

use super::config::{BlockKind, VisionConfig};
use crate::autograd::{ParamId, Tape, Var};
use crate::cuda::Purpose;
use crate::error::{Error, Result};
use crate::nn::{LayerNorm, Linear, Names, Norm, Params, RmsNorm, Scope};
use crate::ops::activation::{Gelu, QuickGelu, SwiGlu};
use crate::ops::attention::{Attention, Heads, Segment, Segments};
use crate::ops::elementwise::{Add, Columns};
use crate::ops::embedding::Embedding;
use crate::ops::patch_embed::PatchEmbed;
use crate::ops::rope::{Rope, Table};
use crate::processor::{Normalisation, Patches};
use crate::tensor::Tensor;
use std::sync::Arc;
use windows::Windows;

/// Epsilon of every norm of the tower (fixed in Hugging Face's code).
const EPS: f64 = 1e-6;
/// Base of the two-axis rotation.
const THETA: f64 = 10_000.0;

impl BlockKind {
    fn norm(self, names: &Names, name: &str) -> Result<Norm> {
        Ok(match self {
            BlockKind::QuickGelu => Norm::Layer(LayerNorm::new(names, name, EPS)?),
            BlockKind::SwiGlu => Norm::Rms(RmsNorm::new(names, name, EPS)?),
        })
    }

    fn mlp(self, names: &Names, name: &str) -> Result<Mlp> {
        let layer = |part: &str| Linear::new(names, &format!("{name}.{part}"), true);
        Ok(match self {
            BlockKind::QuickGelu => Mlp::QuickGelu { fc1: layer("fc1")?, fc2: layer("fc2")? },
            BlockKind::SwiGlu => {
                Mlp::SwiGlu { gate: layer("gate_proj")?, up: layer("up_proj")?, down: layer("down_proj")? }
            }
        })
    }
}

/// All layers with biases.
#[derive(Clone, Debug)]
enum Mlp {
    QuickGelu { fc1: Linear, fc2: Linear },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl Mlp {
    fn forward(&self, scope: &Scope<'_>, x: &Var) -> Result<Var> {
        match self {
            Mlp::QuickGelu { fc1, fc2 } => {
                fc2.forward(scope, &scope.tape.apply(QuickGelu, [&fc1.forward(scope, x)?])?)
            }
            Mlp::SwiGlu { gate, up, down } => {
                let (gate, up) = (gate.forward(scope, x)?, up.forward(scope, x)?);
                down.forward(scope, &scope.tape.apply(SwiGlu, [&gate, &up])?)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    mlp: Mlp,
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
            norm1: config.block.norm(names, &at("norm1"))?,
            qkv: Linear::new(names, &at("attn.qkv"), true)?,
            proj: Linear::new(names, &at("attn.proj"), true)?,
            norm2: config.block.norm(names, &at("norm2"))?,
            mlp: config.block.mlp(names, &at("mlp"))?,
            heads,
        })
    }

    /// `[N, C]` to `[N, C]`.
    fn forward(&self, scope: &Scope<'_>, x: &Var, table: &Table, segments: &Segments) -> Result<Var> {
        let tape = scope.tape;
        let width = self.heads.query * self.heads.dim;
        let qkv = self.qkv.forward(scope, &self.norm1.forward(scope, x)?)?;
        let part = |from: usize| tape.apply(Columns { from, width }, [&qkv]);
        let rotate = |x: Var| tape.apply(Rope { table: table.clone() }, [&x]);
        let (q, k, v) = (rotate(part(0)?)?, rotate(part(width)?)?, part(2 * width)?);
        let attention = Attention { heads: self.heads, segments: segments.clone(), causal: false };
        let o = self.proj.forward(scope, &tape.apply(attention, [&q, &k, &v])?)?;
        let x = tape.apply(Add, [x, &o])?;
        let h = self.mlp.forward(scope, &self.norm2.forward(scope, &x)?)?;
        tape.apply(Add, [&x, &h])
    }
}

/// The tower's layers.
#[derive(Clone, Debug)]
pub struct Vision {
    patch_embed: ParamId,
    blocks: Vec<Block>,
    ln_q: Norm,
    mlp0: Linear,
    mlp2: Linear,
    config: VisionConfig,
    levels: Arc<[[f32; 256]; 3]>,
}

/// What the tower gives.
pub struct Features {
    /// After the last block, `[N, embed_dim]`, in the order of the blocks' rows: window by window where there are windows.
    pub pre_merger: Var,
    /// After the merger, `[N / merge^2, C]`: one row per image token, in their order.
    pub merged: Var,
}

impl Vision {
    /// Finds the tower's parameters.
    pub fn new(names: &Names, config: &VisionConfig, normalisation: &Normalisation) -> Result<Vision> {
        Ok(Vision {
            patch_embed: names.id("visual.patch_embed.proj.weight")?,
            blocks: (0..config.depth).map(|n| Block::new(names, n, config)).collect::<Result<_>>()?,
            ln_q: config.block.norm(names, "visual.merger.ln_q")?,
            mlp0: Linear::new(names, "visual.merger.mlp.0", true)?,
            mlp2: Linear::new(names, "visual.merger.mlp.2", true)?,
            config: config.clone(),
            levels: Arc::new(normalisation.table()),
        })
    }

    /// Features of all images, one after the other. `recompute` keeps only the blocks' inputs for the backward pass.
    pub fn forward(&self, scope: &Scope<'_>, images: &[&Patches], recompute: bool) -> Result<Features> {
        // Nothing of a frozen tower is recorded, so there is nothing to compute again.
        let recompute = recompute && scope.params.trains("visual.");
        let merge = self.config.spatial_merge_size;
        let mut patches: Vec<Arc<[u8]>> = images.iter().map(|p| p.bytes.clone()).collect();
        let mut places = places(images, merge);
        let whole = frames(images);
        let full = self.config.windows.as_ref().map_or(&[][..], |windows| &windows.full_blocks);
        let windows = self.config.windows.as_ref();
        let windows = windows.map(|windows| Windows::new(images, merge, self.config.window_side(windows)));
        if let Some(windows) = &windows {
            patches = vec![windows.arrange(&patches.concat()).into()];
            places = windows.arrange(&places);
        }
        let embed = PatchEmbed { patches, levels: self.levels.clone() };
        let mut x = scope.tape.apply(embed, [&scope.param(self.patch_embed)])?;
        let table = Table::axial(THETA, self.config.embed_dim / self.config.num_heads, &places);
        for (n, block) in self.blocks.iter().enumerate() {
            let segments = match &windows {
                Some(windows) if !full.contains(&n) => &windows.segments,
                _ => &whole,
            };
            x = run(
                scope,
                &x,
                recompute,
                block,
                (&table, segments),
                |block, scope, x, (table, segments)| block.forward(scope, x, table, segments),
            )?;
        }
        let h = self.ln_q.forward(scope, &x)?;
        let width = self.config.embed_dim * merge.pow(2);
        let rows = h.value().len() / width;
        let h = scope.tape.reshape(&h, &[rows, width])?;
        let h = self.mlp0.forward(scope, &h)?;
        let mut merged = self.mlp2.forward(scope, &scope.tape.apply(Gelu, [&h])?)?;
        if let Some(windows) = &windows {
            merged = rows_of(scope.tape, &merged, &windows.places())?;
        }
        Ok(Features { pre_merger: x, merged })
    }
}

/// Rows of `x [S, C]` by their numbers, on the tape.
fn rows_of(tape: &Tape, x: &Var, rows: &[usize]) -> Result<Var> {
    let tokens = rows.iter().map(|&row| u32::try_from(row)).collect::<std::result::Result<_, _>>();
    let tokens = tokens.map_err(|_| Error::Input(format!("{} image tokens are too many", rows.len())))?;
    let (_, width) = x.value().matrix();
    let none = Tensor::zeros(&[0, width], x.value().dtype());
    let none = Var::constant(none.to_device(&x.value().device(), Purpose::Inputs)?);
    tape.apply(Embedding { tokens, image_rows: Vec::new() }, [x, &none])
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
