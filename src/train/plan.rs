//! How much memory a run takes, before it starts.

use crate::model::qwen2_vl::config::Qwen2VlConfig;
use crate::nn::Params;
use crate::report::MemoryPlan;

/// The sizes a training run's memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct TrainingShape {
    /// Completions per forward and backward pass.
    pub micro_batch: usize,
    /// Completions per prompt; 1 for SFT.
    pub group: usize,
    /// Longest prompt, tokens.
    pub prompt_tok: usize,
    /// Longest completion, tokens.
    pub completion_tok: usize,
    /// Prompts whose completions grow side by side; 0 for SFT.
    pub rollout_prompts: usize,
    /// Patches of one prompt's images.
    pub patches: usize,
    /// Whether a reference policy is kept.
    pub reference: bool,
    /// Whether activations are computed again in the backward pass.
    pub recompute: bool,
}

/// Bytes by purpose: exact for weights, gradients and optimiser; for the rest the largest that `shape` allows.
pub fn memory_plan(config: &Qwen2VlConfig, params: &Params, shape: TrainingShape) -> MemoryPlan {
    const F32: u64 = 4;
    let (all, trainable) = params.count();
    let (all, trainable) = (all as u64, trainable as u64);
    let text = &config.text;
    let mut plan = MemoryPlan::default();
    plan.add("weights", all * F32);
    plan.add("gradients", trainable * F32);
    plan.add("AdamW moments", 2 * trainable * F32);
    if shape.reference {
        // Frozen tensors are shared with the policy.
        plan.add("reference weights", trainable * F32);
    }
    let prompts = shape.micro_batch.div_ceil(shape.group);
    let rows = (prompts * shape.prompt_tok + shape.micro_batch * shape.completion_tok) as u64;
    let patches = (prompts * shape.patches) as u64;
    let vision = &config.vision;
    // Per row and layer: norm, q, k, v, rotated q and k, attention, projection, two sums, norm, gate, up, product, down.
    let text_layer = (7 * text.hidden_size
        + (3 * text.num_attention_heads + 3 * text.num_key_value_heads) * text.head_dim
        + 3 * text.intermediate_size) as u64;
    let vision_layer = (14 * vision.embed_dim + 2 * vision.mlp_dim) as u64;
    let (layers, blocks) = (text.num_hidden_layers as u64, vision.depth as u64);
    let kept = |layer: u64, count: u64, width: u64| {
        if shape.recompute { layer + count * width } else { layer * count }
    };
    let activations = rows * kept(text_layer, layers, text.hidden_size as u64)
        + patches * kept(vision_layer, blocks, vision.embed_dim as u64);
    plan.add("activations of one micro-batch (at most)", activations * F32);
    plan.add("logits of one chunk", 2 * 128 * text.vocab_size as u64 * F32);
    if shape.rollout_prompts > 0 {
        let cached = shape.rollout_prompts * (shape.prompt_tok + shape.group * shape.completion_tok);
        let width = 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers;
        plan.add("KV cache of the rollout (at most)", (cached * width) as u64 * F32);
    }
    plan
}
