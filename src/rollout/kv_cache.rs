//! Keys and values of prompts and of growing completions.

use crate::autograd::{Op, Tape};
use crate::error::Result;
use crate::model::{Model, attention_segments};
use crate::nn::{Params, Scope};
use crate::ops::attention::{Attention, Cached, decode};
use crate::packed::Packed;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Keys and values of some rows in every layer, each `[n, K * D]` in f32.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl KvCache {
    /// No rows yet.
    pub fn new(layers: usize) -> KvCache {
        KvCache { layers: vec![(Vec::new(), Vec::new()); layers] }
    }

    fn push(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        self.layers[layer].0.extend_from_slice(keys);
        self.layers[layer].1.extend_from_slice(values);
    }

    fn layer(&self, layer: usize) -> Cached<'_> {
        Cached { keys: &self.layers[layer].0, values: &self.layers[layer].1 }
    }
}

/// Runs prompts (one segment each, images included) and keeps their keys and values.
///
/// Gives the hidden states of all rows `[T, C]` and one cache per prompt.
pub fn prefill(model: &Model, params: &Arc<Params>, input: &Packed) -> Result<(Tensor, Vec<KvCache>)> {
    let tape = Tape::off();
    let (_, x) = model.embed(&Scope { tape: &tape, params }, input, false)?;
    let text = &model.config().text;
    let mut caches = vec![KvCache::new(model.text().depth()); input.segments.len()];
    let attention = Attention { heads: text.heads(), segments: attention_segments(input), causal: true };
    let width = text.num_key_value_heads * text.head_dim;
    let hidden = model.text().infer(
        params,
        x.value().clone(),
        &text.rope(&input.positions_3t),
        |layer, q, k, v| {
            let (keys, values) = (k.to_f32(), v.to_f32());
            for (cache, segment) in caches.iter_mut().zip(&input.segments) {
                let range = segment.rows.start * width..segment.rows.end * width;
                cache.push(layer, &keys[range.clone()], &values[range]);
            }
            Ok(attention.forward([q, k, v])?.0)
        },
    )?;
    Ok((hidden, caches))
}

/// The sequences of one group that are to grow by one token.
pub struct GroupStep<'a> {
    /// The group's prompt.
    pub prefix: &'a KvCache,
    /// The completions' caches.
    pub own: Vec<&'a mut KvCache>,
}

/// One token for every sequence of every group: its row is computed, its keys and values are appended.
///
/// `tokens` and `positions` run over the groups' sequences in order; gives hidden states `[B, C]`.
pub fn step(
    model: &Model,
    params: &Arc<Params>,
    tokens: &[u32],
    positions: &[i32],
    groups: &mut [GroupStep<'_>],
) -> Result<Tensor> {
    let tape = Tape::off();
    let input = Packed { tokens: tokens.to_vec(), ..Packed::default() };
    let (_, x) = model.embed(&Scope { tape: &tape, params }, &input, false)?;
    let text = &model.config().text;
    let heads = text.heads();
    let (q_width, kv_width) = (heads.query * heads.dim, heads.key * heads.dim);
    let table = text.rope(&std::array::from_fn(|_| positions.to_vec()));
    model.text().infer(params, x.value().clone(), &table, |layer, q, k, v| {
        let (queries, keys, values) = (q.to_f32(), k.to_f32(), v.to_f32());
        let mut out = Vec::with_capacity(queries.len());
        let mut row = 0;
        for group in groups.iter_mut() {
            let first = row;
            for cache in &mut group.own {
                let range = row * kv_width..(row + 1) * kv_width;
                cache.push(layer, &keys[range.clone()], &values[range]);
                row += 1;
            }
            let own: Vec<Cached<'_>> = group.own.iter().map(|c| c.layer(layer)).collect();
            out.extend(decode(
                heads,
                &queries[first * q_width..row * q_width],
                group.prefix.layer(layer),
                &own,
            ));
        }
        Tensor::rounded(q.shape(), out, q.dtype())
    })
}
