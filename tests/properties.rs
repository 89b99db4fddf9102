//! Laws that hold for every architecture, prompt and batch, tried on random ones.

mod common;

use common::{bits, grad_bits, normal};
use othink::autograd::{Op, ParamGrads};
use othink::batch::{Group, micro_batches};
use othink::kl::{BetaController, BetaSchedule, Othink};
use othink::model::Model;
use othink::model::config::{BlockKind, ModelConfig, TextConfig, VisionConfig, WindowConfig};
use othink::model::family::Family;
use othink::model::weights::parameters;
use othink::nn::Params;
use othink::ops::activation::{Gelu, QuickGelu, SwiGlu};
use othink::ops::linear::LinearBias;
use othink::ops::log_softmax_kl::{LogSoftmaxKl, Target};
use othink::ops::norm::{LayerNorm, RmsNorm};
use othink::packed::ImageLayout;
use othink::processor::{Normalisation, Patches, Prompt};
use othink::rollout::sampler::SamplingParams;
use othink::rollout::sequence::StopRules;
use othink::rollout::stop::StopStrings;
use othink::rollout::{Completion, Decoding, Engine, Limits, Request};
use othink::tensor::{DType, Device, Tensor};
use othink::train::update::{ForwardOptions, forward};
use proptest::prelude::*;
use proptest::test_runner::Config;
use std::sync::Arc;

/// A failing case is printed with its seed; no file is written into the repository.
fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

/// A random architecture with random weights.
#[derive(Debug)]
struct Tiny {
    model: Model,
    params: Arc<Params>,
}

impl Tiny {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn layout(&self) -> ImageLayout {
        ImageLayout {
            image_token_id: self.config().image_token_id,
            spatial_merge_size: self.config().vision.spatial_merge_size,
        }
    }

    fn generate(&self, decoding: &Decoding, requests: &[Request<'_>], group: usize) -> Vec<Vec<Completion>> {
        let detokenize = |ids: &[u32]| format!("{ids:?}");
        let limits = Limits::of(&Device::Cpu);
        let engine =
            Engine { model: &self.model, params: &self.params, decoding, detokenize: &detokenize, limits };
        engine.generate(requests, group, 4, &|_| Ok(())).unwrap()
    }
}

fn text() -> impl Strategy<Value = TextConfig> {
    let sections = prop_oneof![Just([1, 1, 0]), Just([1, 1, 1]), Just([2, 3, 3]), Just([1, 2, 4])];
    (1..3_usize, 1..4_usize, 1..3_usize, 3..40_usize, 12..70_usize, sections).prop_map(
        |(key, per_key, layers, mlp, vocab, sections)| {
            let head_dim = 2 * sections.iter().sum::<usize>();
            TextConfig {
                vocab_size: vocab,
                hidden_size: key * per_key * head_dim,
                intermediate_size: mlp,
                num_hidden_layers: layers,
                num_attention_heads: key * per_key,
                num_key_value_heads: key,
                head_dim,
                rms_norm_eps: 1e-6,
                rope_theta: 10_000.0,
                mrope_section: sections,
                max_position_embeddings: 4096,
            }
        },
    )
}

fn vision(width: usize) -> impl Strategy<Value = VisionConfig> {
    let sizes = (1..3_usize, 1..3_usize, 1..3_usize, 3..20_usize, 1..5_usize, 1..3_usize, 1..3_usize);
    // Windows of so many merge blocks, and what a side has beyond them; the blocks that see the whole image.
    let windows =
        prop::option::of((1..4_usize, any::<prop::sample::Index>(), prop::collection::vec(0..2_usize, 0..2)));
    (sizes, windows).prop_map(move |((depth, heads, quarter, mlp, patch, merge, frames), windows)| {
        VisionConfig {
            depth,
            embed_dim: 4 * quarter * heads,
            out_hidden_size: width,
            num_heads: heads,
            mlp_dim: mlp,
            in_channels: 3,
            patch_size: patch,
            spatial_merge_size: merge,
            temporal_patch_size: frames,
            block: if windows.is_some() { BlockKind::SwiGlu } else { BlockKind::QuickGelu },
            windows: windows.map(|(side, rest, full_blocks)| WindowConfig {
                size: side * patch * merge + rest.index(patch * merge),
                full_blocks,
            }),
        }
    })
}

fn tiny() -> impl Strategy<Value = Tiny> {
    let whole = text().prop_flat_map(|text| {
        let vision = vision(text.hidden_size);
        (Just(text), vision, any::<bool>(), 0..1000_u64)
    });
    whole.prop_map(|(text, vision, tie_word_embeddings, seed)| {
        let last = text.vocab_size as u32 - 1;
        let config = ModelConfig {
            family: if vision.windows.is_some() { Family::Qwen2_5Vl } else { Family::Qwen2Vl },
            text,
            vision,
            tie_word_embeddings,
            image_token_id: last,
            video_token_id: last - 1,
            vision_start_token_id: last - 2,
            vision_end_token_id: last - 3,
        };
        config.check().unwrap();
        let weights = parameters(&config).into_iter().enumerate().map(|(i, (name, shape))| {
            let norm = shape.len() == 1 && name.ends_with("weight");
            let inputs: usize = shape.iter().skip(1).product();
            let scale = if shape.len() == 1 { 0.1 } else { 1.5 / (inputs as f64).sqrt() };
            let values = normal(shape.iter().product(), 7000 * seed + i as u64);
            let values = values.iter().map(|z| (f64::from(u8::from(norm)) + scale * z) as f32);
            (name, Tensor::new(&shape, values.collect()).unwrap())
        });
        let params = Arc::new(Params::new(weights));
        let normalisation = Normalisation { rescale_factor: 1.0 / 255.0, mean: [0.5; 3], std: [0.25; 3] };
        Tiny { model: Model::new(config, &normalisation).unwrap(), params }
    })
}

/// What a prompt is made of: text runs with an image of so many merge blocks after each.
type Recipe = Vec<(Vec<u32>, Option<(usize, usize)>)>;

fn recipe() -> impl Strategy<Value = Recipe> {
    let image = prop::option::weighted(0.6, (1..4_usize, 1..4_usize));
    prop::collection::vec((prop::collection::vec(any::<u32>(), 1..9), image), 1..4)
}

fn prompt(tiny: &Tiny, recipe: &Recipe) -> Prompt {
    let (config, layout) = (tiny.config(), tiny.layout());
    let vision = &config.vision;
    let (mut tokens, mut images) = (Vec::new(), Vec::new());
    for (n, (words, image)) in recipe.iter().enumerate() {
        tokens.extend(words.iter().map(|w| w % (config.vision_end_token_id)));
        if let Some((h, w)) = image {
            let merge = vision.spatial_merge_size;
            let grid_thw = [1, h * merge, w * merge];
            let patch = 3 * vision.temporal_patch_size * vision.patch_size.pow(2);
            let pixels =
                normal(grid_thw.iter().product::<usize>() * patch, words.len() as u64 + 10 * n as u64);
            let bytes = pixels.iter().map(|z| (128.0 + 50.0 * z) as u8).collect();
            let image = Patches { grid_thw, bytes };
            tokens.extend(std::iter::repeat_n(layout.image_token_id, layout.tokens_of(&image).unwrap()));
            images.push(image);
        }
        tokens.push(config.vision_start_token_id);
    }
    // Any positions will do, as long as the three axes differ.
    let axis = |step: usize| (0..tokens.len()).map(|t| (t / step) as i32).collect();
    let positions_3t = [axis(1), axis(2), axis(3)];
    Prompt { next_position: tokens.len() as i32, tokens, positions_3t, images, text: String::new() }
}

fn decoding(tiny: &Tiny, temperature: f64) -> Decoding {
    let vocab = tiny.config().text.vocab_size as u32;
    let sampling =
        SamplingParams { temperature, max_new_tokens: 9, top_p: 0.95, ..SamplingParams::default() };
    let strings = StopStrings::new(Vec::new()).unwrap();
    Decoding {
        stop: StopRules { eos: vec![0, 1, 2], strings, max_new_tokens: sampling.max_new_tokens },
        sampling,
        banned: vec![vocab - 1, vocab - 2],
    }
}

proptest! {
    #![proptest_config(cases(40))]

    /// Whatever the architecture, the prompts, the group and the cut into micro-batches: rollout's log-probs are
    /// training's to the bit, with any storage type, alone or in company, with recomputation or without.
    #[test]
    fn training_repeats_the_rollout(
        mut tiny in tiny(),
        recipes in prop::collection::vec(recipe(), 1..4),
        group in 1..5_usize,
        size in 1..9_usize,
        temperature in 0.5..1.5_f64,
        bf16 in any::<bool>(),
    ) {
        if bf16 {
            tiny.params = Arc::new(tiny.params.to_dtype(DType::Bf16));
        }
        let prompts: Vec<Prompt> = recipes.iter().map(|r| prompt(&tiny, r)).collect();
        let requests: Vec<Request<'_>> =
            prompts.iter().zip(3..).map(|(prompt, place)| Request { place, prompt }).collect();
        let decoding = decoding(&tiny, temperature);
        let rolled = tiny.generate(&decoding, &requests, group);
        let last = requests.len() - 1;
        prop_assert_eq!(&tiny.generate(&decoding, &requests[last..], group)[0], &rolled[last]);

        let groups: Vec<Group<'_>> = prompts
            .iter()
            .zip(&rolled)
            .map(|(prompt, cs)| Group { prompt, completions: cs.iter().map(|c| c.tokens.as_slice()).collect() })
            .collect();
        let recorded: Vec<u32> = rolled.iter().flatten().flat_map(|c| bits(&c.logps.to_vec().unwrap())).collect();
        let temperature = f64::from(decoding.sampling.score_temperature());
        let mut passes = Vec::new();
        for recompute in [false, true] {
            let (mut logps, mut grads) = (Vec::new(), ParamGrads::default());
            for batch in micro_batches(&groups, size, tiny.layout()).unwrap() {
                batch.packed.validate(tiny.layout()).unwrap();
                let options = ForwardOptions { temperature, recompute };
                let (scores, pass) = forward(&tiny.model, &tiny.params, &batch, options, None).unwrap();
                logps.extend(bits(&scores.logp_t));
                pass.backward(&scores.logp_t, None).unwrap().add_to(&mut grads).unwrap();
            }
            prop_assert_eq!(&logps, &recorded);
            passes.push(grad_bits(&tiny.params, &grads));
        }
        prop_assert_eq!(&passes[0], &passes[1], "recomputation changed a gradient");
    }
}

/// Rows `from..to` of a matrix.
fn rows(x: &Tensor, from: usize, to: usize) -> Tensor {
    let width = x.matrix().1;
    Tensor::new(&[to - from, width], x.real::<f32>()[from * width..to * width].to_vec()).unwrap()
}

fn matrix(rows: usize, width: usize, id: u64) -> Tensor {
    let values = normal(rows * width, id).into_iter().map(|z| z as f32).collect();
    Tensor::new(&[rows, width], values).unwrap()
}

/// Whether an op gives rows `from..to` the same bits when it sees only them.
fn row_law<const N: usize>(
    op: &impl Op<N>,
    row_wise: usize,
    inputs: [&Tensor; N],
    [from, to]: [usize; 2],
) -> bool {
    let all = op.forward(inputs).unwrap().0;
    let some: Vec<Tensor> = inputs
        .iter()
        .enumerate()
        .map(|(i, x)| if i < row_wise { rows(x, from, to) } else { (*x).clone() })
        .collect();
    let alone = op.forward(std::array::from_fn(|i| &some[i])).unwrap().0;
    bits(&rows(&all, from, to).real::<f32>()) == bits(&alone.real::<f32>())
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn no_op_lets_a_row_see_its_neighbours(
        n in 1..70_usize, width in 1..90_usize, out in 1..70_usize, cut in any::<[prop::sample::Index; 2]>(),
        seed in 0..100_u64,
    ) {
        let (a, b) = (cut[0].index(n), cut[1].index(n));
        let range = [a.min(b), a.max(b) + 1];
        let (x, y) = (matrix(n, width, 3 * seed), matrix(n, width, 3 * seed + 1));
        let vector = |len, id| matrix(1, len, id).reshape(&[len]).unwrap();
        let (w, bias, gain) = (matrix(out, width, 3 * seed + 2), vector(out, seed), vector(width, seed + 1));
        let (rms, layer) = (RmsNorm { eps: 1e-6 }, LayerNorm { eps: 1e-6 });
        prop_assert!(row_law(&LinearBias, 1, [&x, &w, &bias], range));
        prop_assert!(row_law(&rms, 1, [&x, &gain], range));
        prop_assert!(row_law(&layer, 1, [&x, &gain, &gain], range));
        prop_assert!(row_law(&SwiGlu, 2, [&x, &y], range));
        prop_assert!(row_law(&QuickGelu, 1, [&x], range));
        prop_assert!(row_law(&Gelu, 1, [&x], range));

        // The head takes its rows by number.
        let target = |row| Target { row, token: (row % out) as u32 };
        let score = |rows: std::ops::Range<usize>| {
            let op = LogSoftmaxKl::new(rows.map(target).collect(), 0.7);
            bits(&op.forward([&x, &w]).unwrap().0.real::<f32>())
        };
        prop_assert_eq!(&score(0..n)[3 * range[0]..3 * range[1]], &score(range[0]..range[1])[..]);
    }

    /// Eq. 3: a V from the middle down to the minimum at w and up to the maximum, for any real w.
    #[test]
    fn the_dynamic_weight_is_a_v(
        low in 0.0..1.0_f64, range in 0.0..1.0_f64, exploration_ratio in 0.0..=1.0_f64, total in 1..500_u64,
    ) {
        let (beta_min, beta_max) = (low, low + range);
        let schedule = BetaSchedule::Othink(Othink { beta_min, beta_max, exploration_ratio });
        let controller = BetaController::new(schedule, total).unwrap();
        let w = exploration_ratio * total as f64;
        let betas: Vec<f64> = (0..=total).map(|step| controller.beta(step)).collect();
        for (s, &beta) in betas.iter().enumerate() {
            let s = s as f64;
            let middle = (beta_min + beta_max) / 2.0;
            let falling = middle - (middle - beta_min) * s / w;
            let rising = beta_min + (beta_max - beta_min) * (s - w) / (total as f64 - w);
            let expected = if s < w { falling } else if total as f64 > w { rising } else { beta_min };
            prop_assert!((beta - expected).abs() < 1e-12, "{} {}", beta, expected);
            prop_assert!((beta_min..=beta_max + 1e-15).contains(&beta));
        }
        prop_assert_eq!(controller.beta(total + 7), betas[total as usize]);
    }
}
