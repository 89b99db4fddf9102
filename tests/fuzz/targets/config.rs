//! The settings of a checkpoint folder (`config.json`, `generation_config.json`, `preprocessor_config.json`,
//! `tokenizer_config.json`, all from one JSON text) and `--config` files, whose text begins with no brace.

use std::ffi::OsString;
use std::path::Path;

use othink::cli::arguments::{Command, Request, parse};
use othink::config::Options;
use othink::files::parse_json;
use othink::model::config::ModelConfig;
use othink::model::generation::GenerationConfig;
use othink::model::weights::parameters;
use othink::processor::decode::RgbImage;
use othink::processor::patches::patches_of;
use othink::processor::{ChatTemplate, ImageConfig};
use othink::tensor::Placement;
use othink::train::plan::{TrainingShape, image_tokens_at_most, memory_plan};
use serde_json::Value;

use super::{Outcome, Target, refused, scratch, write};

pub const TARGET: Target = Target {
    name: "config",
    body,
    seeds,
    dictionary: &[
        b"\"model_type\":\"qwen2_vl\",",
        b"\"model_type\":\"qwen2_5_vl\",",
        b"\"text_config\":{",
        b"\"vision_config\":{",
        b"\"hidden_size\":",
        b"\"head_dim\":",
        b"\"num_attention_heads\":",
        b"\"num_key_value_heads\":null,",
        b"\"num_hidden_layers\":",
        b"\"vocab_size\":",
        b"\"rms_norm_eps\":",
        b"\"rope_theta\":",
        b"\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[2,1,1]},",
        b"\"rope_parameters\":{",
        b"\"mrope_section\":[",
        b"\"mlp_ratio\":",
        b"\"embed_dim\":",
        b"\"out_hidden_size\":",
        b"\"window_size\":",
        b"\"fullatt_block_indexes\":[0],",
        b"\"tokens_per_second\":",
        b"\"in_chans\":",
        b"\"tie_word_embeddings\":true,",
        b"\"layer_types\":[\"full_attention\"],",
        b"\"eos_token_id\":[1,2],",
        b"\"image_token_id\":",
        b"\"min_pixels\":",
        b"\"max_pixels\":",
        b"\"size\":{\"shortest_edge\":1,\"longest_edge\":2},",
        b"\"image_std\":[",
        b"\"image_mean\":0.5,",
        b"\"rescale_factor\":",
        b"\"merge_size\":",
        b"\"patch_size\":",
        b"\"temporal_patch_size\":",
        b"\"do_rescale\":false,",
        b"\"chat_template\":",
        b"\"bos_token\":{\"content\":\"x\"},",
        b"null",
        b"true",
        b"-0",
        b"1e308",
        b"1e-400",
        b"18446744073709551615",
        b"18446744073709551616",
        b"9223372036854775807",
        b"4294967295",
        b"16777216",
        b"1048576",
        b"0.1",
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"\\u0000",
        b"[[[[[[[[",
        b"learning_rate = ",
        b"beta_min = ",
        b"num_generations = ",
        b"reward_funcs = [\"accuracy\"]\n",
        b"reward_weights = [1, 0.5]\n",
        b"\n",
        b"[table]\n",
        b"'''",
        b"1979-05-27T07:32:00Z",
        b"0x10",
        b"inf",
        b"nan",
    ],
    repair: |_| {},
    max_bytes: 1 << 13,
};

fn body(input: &[u8]) -> Outcome {
    let begins = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input).trim_ascii_start().first();
    if begins.is_some_and(|byte| b"{[".contains(byte)) {
        checkpoint_settings(input)
    } else {
        run_options(input)
    }
}

fn checkpoint_settings(input: &[u8]) -> Outcome {
    let path = Path::new("config.json");
    let root = match parse_json(path, input) {
        Ok(root) => root,
        Err(error) => return refused(&error, &[65]),
    };
    let model = match ModelConfig::from_json(path, &root) {
        Ok(config) => {
            sizes_hold(&config);
            Outcome::of("model")
        }
        Err(error) => refused(&error, &[65]),
    };
    let generation = match GenerationConfig::from_json(Some((path, &root)), path, &root) {
        Ok(config) => Outcome::of(config.eos_token_ids.len().min(2)),
        Err(error) => refused(&error, &[65]),
    };
    model.and(generation).and(image_settings(input)).and(template(input, &root))
}

/// What every later computation takes for granted: no product of sizes overflows (this is built with overflow checks under
/// libFuzzer), the parameters are those of the memory plan, and the sizes read back as themselves.
fn sizes_hold(config: &ModelConfig) {
    config.check().expect("from_json has checked it");
    let count =
        |shape: &[usize]| shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side as u64));
    let total = parameters(config)
        .iter()
        .try_fold(0u64, |sum, (_, shape)| sum.checked_add(count(shape)?))
        .expect("the number of parameters fits in 64 bits");
    let shape = TrainingShape {
        micro_batch: 8,
        group: 8,
        prompt_tok: 1024,
        completion_tok: 512,
        rollout_prompts: 16,
        image_tok: 1280,
        freeze_vision: false,
        reference: true,
        reference_follows: false,
        exact_kl: true,
        truncates: true,
        recompute: true,
    };
    let plan = memory_plan(config, shape, &Placement::HOST);
    assert_eq!(plan.rows[0].1, total * 4);
    assert!(plan.rows.iter().all(|(_, bytes)| *bytes < 1 << 62), "{:?}", plan.rows);
}

/// Most pixels that an image is enlarged to here, where the settings ask for more.
const ENLARGED: u64 = 1 << 20;

fn image_settings(input: &[u8]) -> Outcome {
    write("preprocessor_config.json", input);
    let config = match ImageConfig::load(&scratch()) {
        Ok(config) => config,
        Err(error) => return refused(&error, &[65]),
    };
    assert!(config.min_pixels >= 1 && config.min_pixels <= config.max_pixels);
    assert!(config.normalisation.std.iter().all(|&deviation| deviation > 0.0));
    assert!(config.normalisation.table().iter().flatten().all(|level| level.is_finite()), "{config:?}");
    if config.min_pixels > ENLARGED || config.temporal_patch_size > 16 {
        return Outcome::of("large images");
    }
    let image = RgbImage { width: 9, height: 6, pixels: (0..9 * 6 * 3).collect() };
    match patches_of(&image, &config) {
        Ok(patches) => {
            assert_eq!(patches.bytes.len(), patches.patches() * config.patch_bytes());
            assert!(patches.merged_tokens(config.merge_size) <= image_tokens_at_most(&config));
            Outcome::of("patches")
        }
        Err(error) => refused(&error, &[65]),
    }
}

fn template(input: &[u8], root: &Value) -> Outcome {
    if root.get("chat_template").is_none() {
        return Outcome::of("no template");
    }
    write("tokenizer_config.json", input);
    match ChatTemplate::load(&scratch(), None) {
        Ok(template) => {
            assert!(template.special_tokens().values().all(Value::is_string));
            Outcome::of("template")
        }
        Err(error) => refused(&error, &[65]),
    }
}

fn run_options(input: &[u8]) -> Outcome {
    let path = write("run.toml", input);
    let read = |command: &str, path: &Path| {
        let mut config = OsString::from("--config=");
        config.push(path);
        let model = ["--model=m".into(), "--dataset=d".into(), "--output_dir=o".into()];
        parse(["othink-train".into(), command.into(), config].into_iter().chain(model))
    };
    let mut outcome = Outcome::of("options");
    for command in ["grpo", "sft"] {
        let request = match read(command, &path) {
            Ok(request) => request,
            Err(error) => {
                outcome = outcome.and(refused(&error, &[2]));
                continue;
            }
        };
        // What the run's folder would keep says the same.
        let kept = match &request {
            Request::Run(Command::Grpo(options)) => options.to_toml(),
            Request::Run(Command::Sft(options)) => options.to_toml(),
            other => panic!("a config file made {other:?} of a command"),
        };
        let kept = kept.expect("texts of a TOML file are UTF-8");
        let again = read(command, &write("kept.toml", kept.as_bytes()));
        match again {
            Ok(again) => assert!(of_the_run(again) == of_the_run(request), "{kept}"),
            Err(error) => panic!("{error}: the program's own\n{kept}"),
        }
        outcome = outcome.and(Outcome::of(command));
    }
    outcome
}

/// A request without what holds for one start only, and is not kept: its config file, where to resume, a dry run.
fn of_the_run(mut request: Request) -> Request {
    let (file, dry_run, checkpoint) = match &mut request {
        Request::Run(Command::Grpo(options)) => {
            (&mut options.file, &mut options.dry_run, &mut options.checkpoint)
        }
        Request::Run(Command::Sft(options)) => {
            (&mut options.file, &mut options.dry_run, &mut options.checkpoint)
        }
        _ => return request,
    };
    file.config = None;
    dry_run.dry_run = false;
    checkpoint.resume_from_checkpoint = None;
    checkpoint.allow_change.clear();
    request
}

fn seeds() -> Vec<Vec<u8>> {
    let files: [&[u8]; 14] = [
        include_bytes!("../../bundles/dialect_v5/config.json"),
        include_bytes!("../../bundles/dialect_v4_52/config.json"),
        include_bytes!("../../bundles/dialect_flat_f16/config.json"),
        include_bytes!("../../bundles/dialect_language_model/config.json"),
        include_bytes!("../../bundles/tied_kv1_odd/config.json"),
        include_bytes!("../../bundles/qwen2_5_tied_odd/config.json"),
        include_bytes!("../../bundles/qwen2_5_bf16_sharded/config.json"),
        include_bytes!("../../bundles/dialect_v5/preprocessor_config.json"),
        include_bytes!("../../bundles/bf16_sharded/preprocessor_config.json"),
        include_bytes!("../../bundles/dialect_v5/generation_config.json"),
        include_bytes!("../../bundles/bf16_sharded/chat_template.json"),
        b"{}",
        br#"{"model_type":"qwen2_vl","hidden_size":16,"num_attention_heads":2,"num_key_value_heads":1,"num_hidden_layers":1,"intermediate_size":8,"vocab_size":32,"rope_scaling":{"type":"mrope","mrope_section":[2,1,1]},"vision_config":{"hidden_size":16,"embed_dim":16,"num_heads":2,"depth":1,"mlp_ratio":1.5}}"#,
        br#"{"eos_token":{"content":"</s>"},"bos_token":null,"chat_template":[{"name":"tool_use","template":"no"},{"name":"default","template":"{{ messages[0].content }}"}]}"#,
    ];
    let options: [&[u8]; 4] = [
        b"learning_rate = 1e-6\nnum_generations = 4\nper_device_train_batch_size = 4\nbeta_schedule = \"othink\"\nbeta_min = 0.0\nbeta_max = 0.02\n",
        b"# mine\nreward-funcs = [\"accuracy\", \"format\"]\nreward_weights = [1, 0.5]\ntemperature = 0.9\ntop_p = 0.95\nstop_strings = [\"</answer>\"]\n",
        b"max_steps = 10\nseed = 7\nwarmup_ratio = 0.1\nlr_scheduler_type = 'cosine'\nmax_grad_norm = 1.0\nbf16 = true\n",
        b"kl_estimator = \"k1\"\nloss_type = \"dapo\"\nepsilon = 0.2\nepsilon_high = 0.28\nprompt_template = \"none\"\nmax_completion_length = 64\n",
    ];
    files.into_iter().chain(options).map(<[u8]>::to_vec).collect()
}
