//! How much a run takes, before it starts: tokens of its rows, bytes of its memory.

use std::sync::Arc;

use crate::data::{ImageSource, Sample};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::weights::parameters;
use crate::ops::log_softmax_kl::LOGITS_BYTES;
use crate::ops::log_softmax_kl::cuda::{PARTS, RUN};
use crate::processor::resize::MAX_ASPECT_RATIO;
use crate::processor::{ImageConfig, Processor};
use crate::report::MemoryPlan;
use crate::report::memory::readable_bytes;
use crate::tensor::{DType, Device, Placement};

/// What the names of the vision tower's parameters begin with.
pub const VISION_PREFIX: &str = "visual.";

/// The smallest PNG: one grey pixel.
const STAND_IN: [u8; 67] = [
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 58,
    126, 155, 85, 0, 0, 0, 10, 73, 68, 65, 84, 120, 218, 99, 104, 0, 0, 0, 130, 0, 129, 218, 69, 8, 59, 0, 0,
    0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
];

/// Tokens of a row, told without reading its images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowLength {
    /// Tokens of the prompt's text, the marks around images included; exact.
    pub text_tok: usize,
    /// Tokens of the images, at most.
    pub image_tok: usize,
    /// Tokens of the answer; 0 where the row is only a prompt.
    pub completion_tok: usize,
}

impl RowLength {
    /// The prompt with its images, at most.
    pub fn prompt_tok(&self) -> usize {
        self.text_tok + self.image_tok
    }

    /// Everything, at most.
    pub fn total_tok(&self) -> usize {
        self.prompt_tok() + self.completion_tok
    }

    /// The longer of each part.
    pub fn max(self, other: RowLength) -> RowLength {
        RowLength {
            text_tok: self.text_tok.max(other.text_tok),
            image_tok: self.image_tok.max(other.image_tok),
            completion_tok: self.completion_tok.max(other.completion_tok),
        }
    }

    /// The length of a row; `supervised` splits the assistant's last message off as the answer.
    ///
    /// # Errors
    /// Those of tokenising the row.
    pub fn of(processor: &Processor, sample: &Sample, supervised: bool) -> Result<RowLength> {
        let stand_in = ImageSource::Bytes(Arc::from(&STAND_IN[..]));
        let sample = Sample { images: vec![stand_in; sample.images.len()], ..sample.clone() };
        let (prompt, completion) = match supervised {
            true => processor.encode_with_completion(&sample)?,
            false => (processor.encode(&sample, true)?, Vec::new()),
        };
        let config = processor.image_config();
        let stand_ins: usize = prompt.images.iter().map(|i| i.merged_tokens(config.merge_size)).sum();
        Ok(RowLength {
            text_tok: prompt.tokens.len() - stand_ins,
            image_tok: prompt.images.len() * image_tokens_at_most(config),
            completion_tok: completion.len(),
        })
    }
}

/// The most tokens that one image can become.
///
/// That is `max_pixels` over the pixels of a token, save for narrow images: rounding a side up, or keeping it at one
/// token, may exceed the limit. With sides of `a` and `b` tokens, `a b = m` and `b <= 200 a`, that gives at most
/// `(a + 1)(b + 1) <= m + sqrt(200 m) + sqrt(m) + 1` tokens where an image is enlarged to `m`, and `sqrt(200 m)`
/// where it is shrunk.
pub fn image_tokens_at_most(config: &ImageConfig) -> usize {
    let per_token = (config.factor() as f64).powi(2);
    let (least, most) = (config.min_pixels as f64 / per_token, config.max_pixels as f64 / per_token);
    let enlarged = least + (MAX_ASPECT_RATIO * least).sqrt() + least.sqrt() + 1.0;
    most.max((MAX_ASPECT_RATIO * most).sqrt()).max(enlarged).ceil() as usize
}

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
    /// Tokens that one prompt's images become.
    pub image_tok: usize,
    /// Whether the vision tower is left as it is.
    pub freeze_vision: bool,
    /// Whether a reference policy is kept.
    pub reference: bool,
    /// Whether it follows the policy, and so is saved.
    pub reference_follows: bool,
    /// Whether the exact KL to it is taken, from logits of both.
    pub exact_kl: bool,
    /// Whether top-k or top-p cuts the distribution that is sampled from.
    pub truncates: bool,
    /// Whether activations are computed again in the backward pass.
    pub recompute: bool,
}

const F32: u64 = 4;

/// Bytes that a run holds whatever its data in the memory of its device, by purpose: exact.
pub fn weights_plan(
    config: &ModelConfig,
    freeze_vision: bool,
    reference: bool,
    placement: &Placement,
) -> MemoryPlan {
    let elements = |counted: &dyn Fn(&str) -> bool| -> u64 {
        let list = parameters(config).into_iter().filter(|(name, _)| counted(name));
        list.map(|(_, dims)| dims.iter().map(|&d| d as u64).product::<u64>()).sum()
    };
    let all = elements(&|_| true);
    let trainable = elements(&|name| !(freeze_vision && name.starts_with(VISION_PREFIX)));
    let stored = placement.dtype.size() as u64;
    let mut plan = MemoryPlan::default();
    plan.add("weights", all * stored);
    if placement.dtype != DType::F32 {
        plan.add("master weights in f32", trainable * F32);
    }
    plan.add("gradients", trainable * F32);
    plan.add("AdamW moments", 2 * trainable * F32);
    if reference {
        // Frozen tensors are shared with the policy.
        plan.add("reference weights", trainable * stored);
    }
    if placement.device == Device::Cpu {
        // While training goes on with the next step. Of a GPU's memory it takes nothing.
        plan.add("copy for the checkpoint being written", 3 * trainable * F32);
    }
    plan
}

/// Refuses to load a model whose weights, gradients and optimiser alone do not fit into memory.
///
/// # Errors
/// [`Error::Memory`] with the plan, when it takes more than `available` bytes.
pub fn check_memory(plan: &MemoryPlan, available: Option<u64>) -> Result<()> {
    let needed = plan.total_bytes();
    if available.is_none_or(|available| needed <= available) {
        return Ok(());
    }
    let rows: Vec<String> =
        plan.rows.iter().map(|(purpose, bytes)| format!("{purpose} {}", readable_bytes(*bytes))).collect();
    Err(Error::Memory(format!(
        "training this model takes at least {} and {} are available ({}): take a smaller model, a larger machine, or \
         --freeze_vision_modules",
        readable_bytes(needed),
        readable_bytes(available.unwrap_or(0)),
        rows.join(", ")
    )))
}

/// Bytes of memory that this process may still take: of the machine, within the limit of its control group. `None`
/// where the system does not say.
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo")?;
    let kib = |name: &str| -> Option<u64> {
        meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let machine = (kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) * 1024;
    // Version 2 of control groups, else version 1; no limit is a word or an enormous number.
    let group =
        read("/sys/fs/cgroup/memory.max").or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let limit = group.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(machine.min(limit))
}

/// Bytes by purpose: exact for weights, gradients and optimiser; for the rest the largest that `shape` allows.
pub fn memory_plan(config: &ModelConfig, shape: TrainingShape, placement: &Placement) -> MemoryPlan {
    let mut plan = weights_plan(config, shape.freeze_vision, shape.reference, placement);
    if shape.reference_follows && placement.device == Device::Cpu {
        // Of a GPU's memory it takes nothing, as the rest of a checkpoint.
        let reference = plan.rows.iter().find(|(purpose, _)| purpose == "reference weights");
        let bytes = reference.map_or(0, |(_, bytes)| *bytes);
        plan.add("reference in the checkpoint being written", bytes);
    }
    let stored = placement.dtype.size() as u64;
    let text = &config.text;
    let prompts = shape.micro_batch.div_ceil(shape.group);
    let rows = (prompts * shape.prompt_tok + shape.micro_batch * shape.completion_tok) as u64;
    let vision = &config.vision;
    let patches = (prompts * shape.image_tok * vision.spatial_merge_size.pow(2)) as u64;
    // Per row and layer: norm, q, k, v, rotated q and k, attention, projection, two sums, norm, gate, up, product, down.
    let text_layer = (7 * text.hidden_size
        + (3 * text.num_attention_heads + 3 * text.num_key_value_heads) * text.head_dim
        + 3 * text.intermediate_size) as u64;
    let vision_layer = (14 * vision.embed_dim + vision.block.mlp_tensors() * vision.mlp_dim) as u64;
    let (layers, blocks) = (text.num_hidden_layers as u64, vision.depth as u64);
    let kept = |layer: u64, count: u64, width: u64| {
        if shape.recompute { layer + count * width } else { layer * count }
    };
    // Nothing of a frozen tower is kept for the backward pass: one block at a time.
    let kept_by_vision = match shape.freeze_vision {
        true => vision_layer,
        false => kept(vision_layer, blocks, vision.embed_dim as u64),
    };
    let activations = rows * kept(text_layer, layers, text.hidden_size as u64) + patches * kept_by_vision;
    plan.add("activations of one micro-batch (at most)", activations * stored);
    match placement.device {
        Device::Cpu => plan.add("logits of one chunk", 2 * 128 * text.vocab_size as u64 * F32),
        Device::Cuda(_) => add_head_on_gpu(&mut plan, config, shape, stored),
    }
    if shape.rollout_prompts > 0 {
        let rows = (shape.rollout_prompts * shape.prompt_tok) as u64;
        let patches = (shape.rollout_prompts * shape.image_tok * vision.spatial_merge_size.pow(2)) as u64;
        plan.add("prefill of the rollout (at most)", (rows * text_layer + patches * vision_layer) * stored);
        let cached = shape.rollout_prompts * (shape.prompt_tok + shape.group * shape.completion_tok);
        let width = 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers;
        plan.add("KV cache of the rollout (at most)", (cached * width) as u64 * stored);
    }
    plan
}

/// Bytes of what stands round the head on a GPU, whose type takes `stored` bytes: logits, the pieces of their gradient, the gradient of
/// the head (of the embedding, which comes later, it is no larger), and what is sampled from.
fn add_head_on_gpu(plan: &mut MemoryPlan, config: &ModelConfig, shape: TrainingShape, stored: u64) {
    let vocab = config.text.vocab_size as u64;
    let targets = (shape.micro_batch * shape.completion_tok) as u64;
    let at_once = (LOGITS_BYTES as u64 / (F32 * vocab.max(1))).max(RUN as u64);
    let logits = at_once.min(targets) * vocab * F32;
    plan.add("logits of one chunk", logits * (1 + u64::from(shape.exact_kl)));
    plan.add("gradient of the logits (at most)", (PARTS as u64 * at_once).min(targets) * vocab * stored);
    let cast = if stored == F32 { 0 } else { stored };
    plan.add("gradient of the head on its way", vocab * config.text.hidden_size as u64 * (F32 + cast));
    if shape.rollout_prompts > 0 {
        let sequences = (shape.rollout_prompts * shape.group) as u64;
        plan.add("logits of the rollout", sequences * vocab * F32 * (1 + u64::from(shape.truncates)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{PromptTemplate, ReadOptions, read};
    use crate::processor::ProcessorOptions;
    use crate::processor::resize::smart_resize;
    use std::path::{Path, PathBuf};

    fn bundle() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/qwen2_vl_a")
    }

    #[test]
    fn case_59_a_model_that_memory_cannot_hold_is_refused() {
        let config = crate::model::folder::ModelFolder::open(bundle().to_str().unwrap()).unwrap().config;
        let plan = weights_plan(&config, false, true, &Placement::HOST);
        // Weights, gradients, two moments, the reference, three copies for a checkpoint.
        assert_eq!(plan.total_bytes(), 8 * 4 * 412_800);
        assert!(weights_plan(&config, true, true, &Placement::HOST).total_bytes() < plan.total_bytes());
        assert!(check_memory(&plan, Some(plan.total_bytes())).is_ok() && check_memory(&plan, None).is_ok());
        let error = check_memory(&plan, Some(plan.total_bytes() - 1)).unwrap_err();
        assert_eq!(error.exit_code(), 71);
        for part in ["at least 12.6 MiB", "AdamW moments 3.1 MiB", "--freeze_vision_modules"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        if cfg!(target_os = "linux") {
            assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
        }
    }

    #[test]
    fn no_image_becomes_more_tokens_than_the_bound() -> Result<()> {
        for (min_pixels, max_pixels) in
            [(784, 784), (3136, 3136), (3136, 14_112), (50_000, 50_001), (3136, 401_408)]
        {
            let config = ImageConfig { min_pixels, max_pixels, ..ImageConfig::default() };
            let bound = image_tokens_at_most(&config);
            let mut largest = 0;
            for (height, width) in
                (1..=60).flat_map(|h| (1..=200).map(move |w| (h, w * h))).filter(|(h, w)| *w <= 200 * h)
            {
                let (h, w) = smart_resize(height, width, config.factor(), min_pixels, max_pixels)?;
                largest = largest.max(h * w / 784);
            }
            assert!(largest <= bound, "{min_pixels} {max_pixels}: {largest} > {bound}");
            assert!(
                bound as u64 <= max_pixels / 784 + 480,
                "{min_pixels} {max_pixels}: {bound} is too loose"
            );
        }
        Ok(())
    }

    #[test]
    fn text_is_counted_exactly_and_images_at_most() -> Result<()> {
        let processor = Processor::load(&bundle(), &ProcessorOptions::default())?;
        let dir = tempfile::tempdir().expect("temporary folder");
        let row = format!(
            r#"{{"problem": "a<image>b<image> how many?", "images": ["{0}/0.png", "{0}/1.jpg"], "solution": "3"}}"#,
            bundle().join("images").display()
        );
        let path = dir.path().join("train.jsonl");
        std::fs::write(&path, row).expect("write");
        let options = ReadOptions {
            template: PromptTemplate::None,
            image_dir: Some(bundle().join("images")),
            ..ReadOptions::default()
        };
        let sample = read(&path, &options)?.supervised().sample(0)?;
        let (prompt, completion) = processor.encode_with_completion(&sample)?;
        let images: usize = prompt.images.iter().map(|i| i.merged_tokens(2)).sum();
        let length = RowLength::of(&processor, &sample, true)?;
        assert_eq!(length.text_tok, prompt.tokens.len() - images);
        assert_eq!(length.completion_tok, completion.len());
        assert!(images <= length.image_tok);
        assert_eq!(RowLength::of(&processor, &sample.prompt(), false)?.prompt_tok(), length.prompt_tok());
        Ok(())
    }

    /// The reference bundle's model has 412,800 parameters.
    #[test]
    fn exact_rows_are_parameters_times_four() -> Result<()> {
        let folder = crate::model::folder::ModelFolder::open(&bundle().display().to_string())?;
        let shape = TrainingShape {
            micro_batch: 8,
            group: 4,
            prompt_tok: 100,
            completion_tok: 10,
            rollout_prompts: 3,
            image_tok: 20,
            freeze_vision: false,
            reference: true,
            reference_follows: false,
            exact_kl: false,
            truncates: false,
            recompute: true,
        };
        let bytes = |shape| {
            memory_plan(&folder.config, shape, &Placement::HOST)
                .rows
                .iter()
                .map(|(_, b)| *b)
                .collect::<Vec<_>>()
        };
        let all = 4 * 412_800;
        let plan = bytes(shape);
        assert_eq!(plan[..5], [all, all, 2 * all, all, 3 * all]);
        // 3 prompts with 4 completions each, 3 layers, 2 heads of 16 twice, f32.
        assert_eq!(plan.last(), Some(&(3 * (100 + 4 * 10) * 3 * 2 * 2 * 16 * 4)));
        let vision: u64 = folder
            .stored_parameters()
            .iter()
            .filter(|p| p.name.starts_with("visual."))
            .map(|p| p.shape.iter().product::<usize>() as u64)
            .sum();
        assert_eq!(bytes(TrainingShape { freeze_vision: true, ..shape })[1], all - 4 * vision);
        let follows = bytes(TrainingShape { reference_follows: true, ..shape });
        assert_eq!((follows.len(), follows[5]), (plan.len() + 1, all));
        let kept = |recompute| bytes(TrainingShape { recompute, ..shape })[5];
        assert!(kept(true) < kept(false));
        assert_eq!(bytes(TrainingShape { rollout_prompts: 0, reference: false, ..shape }).len(), 6);
        // By hand: a vocabulary of 600, a width of 64, 8 completions of 10 tokens; 3 prompts with 4 completions are sampled.
        let on_gpu = |shape, stored| {
            let mut plan = MemoryPlan::default();
            add_head_on_gpu(&mut plan, &folder.config, shape, stored);
            plan.rows.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>()
        };
        let (logits, head) = (80 * 600 * 4, 600 * 64);
        assert_eq!(on_gpu(shape, 4), [logits, logits, head * 4, 12 * 600 * 4]);
        let exact = TrainingShape { exact_kl: true, truncates: true, ..shape };
        assert_eq!(on_gpu(exact, 2), [2 * logits, logits / 2, head * 6, 2 * 12 * 600 * 4]);
        // 256 MiB hold 111,848 rows of logits, of which a piece has 8 times as many.
        let many = TrainingShape { micro_batch: 1 << 20, rollout_prompts: 0, ..shape };
        assert_eq!(on_gpu(many, 2), [111_848 * 2400, 8 * 111_848 * 1200, head * 6]);
        Ok(())
    }
}
