//! The decoder: grouped-query attention with M-RoPE, RMSNorm, SwiGLU.

use super::config::TextConfig;
use super::vision::run;
use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::nn::{Linear, Names, Params, RmsNorm, Scope};
use crate::ops::activation::SwiGlu;
use crate::ops::attention::{Attention, Heads, Segments};
use crate::ops::elementwise::Add;
use crate::ops::rope::{Rope, Table};
use crate::tensor::Tensor;
use std::sync::Arc;

#[derive(Clone, Debug)]
struct Layer {
    input_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: Heads,
}

impl Layer {
    fn new(names: &Names, n: usize, config: &TextConfig) -> Result<Layer> {
        let at = |name: &str| format!("model.layers.{n}.{name}");
        Ok(Layer {
            input_norm: RmsNorm::new(names, &at("input_layernorm"), config.rms_norm_eps)?,
            q: Linear::new(names, &at("self_attn.q_proj"), true)?,
            k: Linear::new(names, &at("self_attn.k_proj"), true)?,
            v: Linear::new(names, &at("self_attn.v_proj"), true)?,
            o: Linear::new(names, &at("self_attn.o_proj"), false)?,
            post_norm: RmsNorm::new(names, &at("post_attention_layernorm"), config.rms_norm_eps)?,
            gate: Linear::new(names, &at("mlp.gate_proj"), false)?,
            up: Linear::new(names, &at("mlp.up_proj"), false)?,
            down: Linear::new(names, &at("mlp.down_proj"), false)?,
            heads: config.heads(),
        })
    }

    /// Rotated queries and keys, and values: `[T, H * D]`, `[T, K * D]`, `[T, K * D]`.
    fn qkv(&self, scope: &Scope<'_>, x: &Var, table: &Table) -> Result<[Var; 3]> {
        let h = self.input_norm.forward(scope, x)?;
        let rotate = |x: Var| scope.tape.apply(Rope { table: table.clone() }, [&x]);
        Ok([
            rotate(self.q.forward(scope, &h)?)?,
            rotate(self.k.forward(scope, &h)?)?,
            self.v.forward(scope, &h)?,
        ])
    }

    /// From the attention's output to the layer's.
    fn finish(&self, scope: &Scope<'_>, x: &Var, attended: &Var) -> Result<Var> {
        let tape = scope.tape;
        let x = tape.apply(Add, [x, &self.o.forward(scope, attended)?])?;
        let h = self.post_norm.forward(scope, &x)?;
        let h = tape.apply(SwiGlu, [&self.gate.forward(scope, &h)?, &self.up.forward(scope, &h)?])?;
        tape.apply(Add, [&x, &self.down.forward(scope, &h)?])
    }

    fn attend(&self, tape: &Tape, [q, k, v]: [&Var; 3], segments: &Segments) -> Result<Var> {
        tape.apply(Attention { heads: self.heads, segments: segments.clone(), causal: true }, [q, k, v])
    }

    fn forward(&self, scope: &Scope<'_>, x: &Var, table: &Table, segments: &Segments) -> Result<Var> {
        let [q, k, v] = self.qkv(scope, x, table)?;
        self.finish(scope, x, &self.attend(scope.tape, [&q, &k, &v], segments)?)
    }
}

impl TextConfig {
    /// Head counts of the attention.
    pub fn heads(&self) -> Heads {
        Heads { query: self.num_attention_heads, key: self.num_key_value_heads, dim: self.head_dim }
    }

    /// M-RoPE angles of rows at these positions.
    pub fn rope(&self, positions_3t: &[Vec<i32>; 3]) -> Table {
        Table::mrope(self.rope_theta, self.mrope_section, positions_3t)
    }
}

/// The decoder's layers.
#[derive(Clone, Debug)]
pub struct Text {
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl Text {
    /// Finds the decoder's parameters.
    pub fn new(names: &Names, config: &TextConfig) -> Result<Text> {
        Ok(Text {
            layers: (0..config.num_hidden_layers)
                .map(|n| Layer::new(names, n, config))
                .collect::<Result<_>>()?,
            norm: RmsNorm::new(names, "model.norm", config.rms_norm_eps)?,
        })
    }

    /// Hidden states after the last norm, `[T, C]`, from embeddings `[T, C]`.
    pub fn forward(
        &self,
        scope: &Scope<'_>,
        mut x: Var,
        table: &Table,
        segments: &Segments,
        recompute: bool,
    ) -> Result<Var> {
        for layer in &self.layers {
            x = run(scope, &x, recompute, layer, (table, segments), |layer, scope, x, (table, segments)| {
                layer.forward(scope, x, table, segments)
            })?;
        }
        self.norm.forward(scope, &x)
    }

    /// Inference: each layer's queries, keys and values go to `attend(layer, q, k, v)`, which gives the attention's
    /// output; so the caller decides what is cached and which keys are seen.
    pub fn infer(
        &self,
        params: &Arc<Params>,
        x: Tensor,
        table: &Table,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let tape = Tape::off();
        let scope = Scope { tape: &tape, params };
        let mut x = Var::constant(x);
        for (n, layer) in self.layers.iter().enumerate() {
            let [q, k, v] = layer.qkv(&scope, &x, table)?;
            let attended = attend(n, q.value(), k.value(), v.value())?;
            x = layer.finish(&scope, &x, &Var::constant(attended))?;
        }
        Ok(self.norm.forward(&scope, &x)?.value().clone())
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }
}
