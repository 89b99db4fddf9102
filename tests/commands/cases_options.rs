//! Hostile texts, useless rewards, impossible options: cases 43 to 45, 57, 78 and 80 to 82 of the table in `cases.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{
    DATA, LEARNABLE, ROOT, Row, bundle, checkpoint, dataset, fails, grpo, othink, read, success, text, write,
};

/// `words` with another value for an option that is among them.
fn with<'a>(mut words: Vec<&'a str>, option: &str, value: &'a str) -> Vec<&'a str> {
    let at = words.iter().position(|word| *word == option).expect(option);
    words[at + 1] = value;
    words
}

/// The checkpoint with other ids that end a completion.
fn ending_with(name: &str, eos: &[u32]) -> PathBuf {
    let dir = checkpoint(name);
    let path = dir.join("generation_config.json");
    let mut config: Row = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.insert("eos_token_id".into(), eos.into());
    fs::write(path, serde_json::Value::Object(config).to_string()).unwrap();
    dir
}

/// Whether a terminal could be driven, or a reader deceived.
fn hides(c: char) -> bool {
    (c.is_control() && c != '\n')
        || ('\u{2028}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// The checkpoint with a head that gives all probability to one of its two end tokens, 501 and 499.
fn only_ending(name: &str) -> PathBuf {
    let dir = checkpoint(name);
    let path = dir.join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Row = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let head = &header["lm_head.weight"];
    assert_eq!((&head["dtype"], &head["shape"]), (&"F32".into(), &serde_json::json!([600, 64])));
    let start = 8 + length + head["data_offsets"][0].as_u64().unwrap() as usize;
    for token in 0..600 {
        let weight: f32 =
            [(501, 100.0), (499, -100.0)].iter().find(|(t, _)| *t == token).map_or(0.0, |(_, w)| *w);
        for column in 0..64 {
            let at = start + 4 * (64 * token + column);
            file[at..at + 4].copy_from_slice(&weight.to_le_bytes());
        }
    }
    fs::write(path, file).unwrap();
    dir
}

#[test]
fn case_43_completions_that_are_only_an_end() {
    let model = only_ending("only_end");
    let dir = ROOT.join("only_end_run");
    success(&with(grpo(&dir), "--model", text(&model)));
    let completions = read(&dir.join("completions.jsonl"));
    assert_eq!(completions.len(), 2 * 8);
    for c in &completions {
        assert_eq!((&c["length"], &c["truncated"], &c["completion"]), (&1.into(), &false.into(), &"".into()));
        assert_eq!((&c["reward"], &c["advantage"]), (&0.0.into(), &0.0.into()));
    }
    for row in read(&dir.join("metrics.jsonl")) {
        for key in ["loss", "kl", "grad_norm", "reward", "entropy", "completions/mean_terminated_length"] {
            assert!(row[key].is_number(), "{key} is {}", row[key]);
        }
        assert_eq!(
            (&row["completions/clipped_ratio"], &row["completions/max_length"]),
            (&0.0.into(), &1.0.into())
        );
    }
    assert!(fs::read_to_string(dir.join("report.html")).unwrap().contains("<pre></pre>"));
    // The same of a dataset's rows, greedily.
    let words = ["eval", "--model", text(&model), "--dataset", text(&DATA), "-q"];
    assert!(success(&words).contains("\"mean_length\":1.0"));
    // An empty answer is an end token to learn, and an empty completion one to score.
    let path = dataset("empty_answer", r#"{"prompt": "x", "completion": ""}"#);
    let sft =
        ["sft", "--model", bundle(), "--dataset", text(&path), "--output_dir", "empty_answer_run", "-q"];
    success(&[&sft[..], &["--max_steps", "1"]].concat());
    assert!(read(&ROOT.join("empty_answer_run/metrics.jsonl"))[0]["loss"].is_number());
}

#[test]
fn case_43_completions_that_never_end() {
    // No text has this token; the model's vocabulary does.
    let model = ending_with("no_end", &[599]);
    let dir = ROOT.join("no_end_run");
    let words = with(grpo(&dir), "--model", text(&model));
    for masked in ["false", "true"] {
        let mask = ["--mask_truncated_completions", masked, "--overwrite_output_dir"];
        success(&[&words[..], &mask].concat());
        let completions = read(&dir.join("completions.jsonl"));
        assert!(completions.iter().all(|c| c["length"] == 3 && c["truncated"] == true));
        for row in read(&dir.join("metrics.jsonl")) {
            assert_eq!(row["completions/clipped_ratio"], 1.0);
            assert_eq!(row["completions/mean_terminated_length"], 0.0);
            assert!(row["loss"].is_number() && row["grad_norm"].is_number(), "{row:?}");
            // Everything is cut, so nothing is learned.
            assert_eq!(row["grad_norm"] == 0.0, masked == "true");
        }
    }
}

/// Bytes that are not UTF-8, and characters that drive a terminal, in what a model writes.
#[test]
fn case_43_completions_full_of_escapes() {
    let dir = ROOT.join("escapes");
    let words = with(with(grpo(&dir), "--temperature", "9"), "--max_completion_length", "64");
    let words: Vec<&str> = words.into_iter().filter(|word| *word != "-q").collect();
    let output = othink(&[&words[..], &["--num_completions_to_print", "8"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let completions = read(&dir.join("completions.jsonl"));
    let texts: String = completions.iter().map(|c| c["completion"].as_str().unwrap()).collect();
    assert!(texts.contains('\u{fffd}') && texts.contains(hides), "the model wrote nothing hostile");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("reward ") && printed.contains("\\u{"), "{printed}");
    for (name, shown) in [
        ("the terminal", printed),
        ("completions.jsonl", fs::read_to_string(dir.join("completions.jsonl")).unwrap()),
        ("report.html", fs::read_to_string(dir.join("report.html")).unwrap()),
    ] {
        assert!(!shown.contains(|c| hides(c) && c != '\t'), "{name}");
    }
}

#[test]
fn case_44_a_group_of_one() {
    let dir = ROOT.join("group_of_one");
    fails(&with(grpo(&dir), "--num_generations", "1"), 2, &["--num_generations is 1", "at least 2"]);
    assert!(!dir.exists());
}

/// Nothing can be learned from equal rewards: without a KL term not one bit of the weights changes.
#[test]
fn case_45_all_rewards_equal_in_all_groups() {
    let path = DATA.join("hopeless.jsonl");
    let mut rows = read(&LEARNABLE);
    rows.iter_mut().for_each(|row| drop(row.insert("solution".into(), "no model says this".into())));
    write(&path, &rows);
    let dir = ROOT.join("hopeless");
    for (beta, moves) in [("0", false), ("0.1", true)] {
        let words = with(grpo(&dir), "--dataset", text(&path));
        success(&[&words[..], &["--beta", beta, "--overwrite_output_dir"]].concat());
        assert!(
            read(&dir.join("completions.jsonl")).iter().all(|c| c["advantage"] == 0.0 && c["reward"] == 0.0)
        );
        let metrics = read(&dir.join("metrics.jsonl"));
        for row in &metrics {
            assert_eq!((&row["frac_reward_zero_std"], &row["reward_std"]), (&1.0.into(), &0.0.into()));
            assert!(row["loss"].is_number() && row["grad_norm"].is_number(), "{row:?}");
        }
        if !moves {
            assert!(metrics.iter().all(|row| row["loss"] == 0.0 && row["grad_norm"] == 0.0));
            let weights = |model: &Path| super::weights(model);
            assert!(weights(&dir.join("checkpoint-2")) == weights(Path::new(bundle())));
        }
    }
}

#[test]
fn case_57_temperatures_and_cuts_that_leave_nothing() {
    let dir = ROOT.join("nothing_left");
    for (option, value, range) in [
        ("--temperature", "0", "a number above 0"),
        ("--temperature", "nan", "a number above 0"),
        ("--temperature", "1e-50", "a number above 0 that 32 bits can hold"),
        ("--top_p", "0", "above 0 and at most 1"),
        ("--min_p", "1.5", "between 0 and 1"),
        ("--repetition_penalty", "0", "a number above 0"),
    ] {
        let mut words = grpo(&dir);
        words.retain(|word| !["--temperature", "0.3"].contains(word));
        let is = format!("{option} is ");
        fails(&[&words[..], &[option, value]].concat(), 2, &[&is, range]);
    }
    assert!(!dir.exists());
    // An evaluation at temperature 0 takes the likeliest token, with defined log-probabilities.
    let words =
        ["generate", "--model", bundle(), "--prompt", "x", "--temperature", "0", "--output", "cold.jsonl"];
    success(&[&words[..], &["--max_completion_length", "4", "-q"]].concat());
    let rows = read(&ROOT.join("cold.jsonl"));
    assert!(
        rows[0]["logps"].as_array().unwrap().iter().all(|logp| logp.as_f64().is_some_and(f64::is_finite))
    );
}

#[test]
fn case_78_options_that_cannot_be() {
    let free = ROOT.join("never");
    let with = |options: &[&'static str]| [&grpo(&free)[..], options].concat();
    fails(&with(&["--dtype", "bf16"]), 2, &["--dtype is bf16", "f32"]);
    fails(&with(&["--report_to", "wandb"]), 2, &["--report_to is 'wandb'", "wandb sync"]);
    fails(&with(&["--run_name", "../x"]), 2, &["--run_name", "no path"]);
    fails(&with(&["--eval_strategy", "epoch"]), 2, &["--eval_strategy is epoch", "--eval_dataset"]);
    fails(&with(&["--eval_strategy", "steps"]), 2, &["--eval_strategy is steps", "--eval_steps"]);
    fails(&with(&["--beta", "0", "--sync_ref_model"]), 2, &["--sync_ref_model", "no reference"]);
    fails(&with(&["--ref_model_mixup_alpha", "0"]), 2, &["--ref_model_mixup_alpha", "above 0 and at most 1"]);
    let often = ["--sync_ref_model", "--num_iterations", "2", "--ref_model_sync_steps", "3"];
    fails(&with(&often), 2, &["--ref_model_sync_steps is 3", "--num_iterations 2"]);
    fails(&with(&["--max_resample_times", "0"]), 2, &["--max_resample_times is 0", "from 1 to 1000"]);
    fails(&with(&["--online_filtering"]), 2, &["--online_filtering", "--dynamic_sample"]);
    fails(&with(&["--device", "cuda"]), 69, &["compute on the CPU (--device cpu)"]);
    fails(&with(&["--prompt_template", "r1w"]), 2, &["did you mean `r1v`"]);
    fails(&with(&["--reward_funcs", "acuracy"]), 2, &["did you mean `accuracy`"]);
    fails(&with(&["--overlog", "skip"]), 2, &["did you mean --overlong"]);
    for (option, value, parts) in [
        ("--learning_rate", "nan", ["is NaN", "a finite number"]),
        ("--weight_decay", "-1", ["is -1", "at least 0"]),
        ("--beta_max", "-0.1", ["--beta_max is -0.1", "at least 0"]),
        ("--epsilon", "1.5", ["is 1.5", "at most 1"]),
        ("--max_grad_norm", "inf", ["is inf", "a finite number"]),
        ("--warmup_ratio", "2", ["is 2", "between 0 and 1"]),
        ("--max_bad_rows", "-1", ["--max_bad_rows is '-1'", "--help"]),
        ("--seed", "18446744073709551615", ["--seed is '18446744073709551615'", "--help"]),
        ("--num_iterations", "9223372036854775807", ["--num_iterations is", "from 1 to 1000"]),
        ("--num_train_epochs", "1e300", ["--num_train_epochs is", "at most 1000000"]),
        ("--reward_weights", "1e300,1", ["--reward_weights holds", "from -1000000 to 1000000"]),
        ("--threads", "99999999", ["--threads is 99999999", "must be from 1"]),
    ] {
        let words: Vec<&str> = grpo(&free);
        let words = match words.iter().position(|word| *word == option) {
            Some(_) => self::with(words, option, value),
            None => [&words[..], &[option, value]].concat(),
        };
        fails(&words, 2, &parts);
    }
    let words = self::with(grpo(&free), "--max_completion_length", "5000");
    fails(&words, 2, &["--max_completion_length 5000", "context of 4096"]);
    assert!(!free.exists());
    let words =
        ["generate", "--model", bundle(), "--prompt", "x", "--do_sample", "false", "--num_generations", "2"];
    fails(&words, 2, &["--num_generations is 2", "--do_sample"]);
    fails(&["inspect", text(&ROOT)], 65, &["config.json"]);
    fails(&["tasks", "make", "counting", "--output_dir", text(&DATA)], 2, &["exists already"]);
    for size in ["0", "1", "4294967295"] {
        fails(
            &["tasks", "make", "counting", "--output_dir", "no_task", "--image_size", size],
            2,
            &["image_size"],
        );
    }
}

#[test]
fn case_78_config_files_that_cannot_be() {
    let (free, config) = (ROOT.join("never_configured"), ROOT.join("bad.toml"));
    let refused = |content: &[u8], parts: &[&str]| {
        fs::write(&config, content).unwrap();
        fails(&[&grpo(&free)[..], &["--config", "bad.toml"]].concat(), 2, parts);
    };
    refused(b"seed = 1\nbeta_mim = 0.1\n", &["bad.toml:2", "did you mean `beta_min`"]);
    refused(b"seed = 1\nseed = 2\n", &["bad.toml:2: "]);
    refused(b"beta_min = 0.1\nbeta-min = 0.1\n", &["bad.toml:2: `beta-min` was already set on line 1"]);
    refused(b"\nbeta_max = nan\n", &["bad.toml:2: --beta_max is NaN", "a finite number"]);
    refused(b"epsilon = 2\n", &["bad.toml:1: --epsilon is 2", "at most 1"]);
    refused(b"seed = \"many\"\n", &["bad.toml:1: ", "--seed is 'many'"]);
    refused(b"scale_rewards = 3\n", &["bad.toml:1: ", "--scale_rewards is '3'", "group"]);
    refused(b"seed = { a = 1 }\n", &["bad.toml:1: `seed` is a table"]);
    refused(b"seed = 1979-05-27\n", &["bad.toml:1: `seed` is a date"]);
    refused(b"[grpo]\nseed = 1\n", &["bad.toml:1: ", "`grpo`"]);
    refused(b"seed = \n", &["bad.toml:1: "]);
    refused(b"seed = \"\xff\"\n", &["bad.toml: the config file is not UTF-8"]);
    refused(&[b"reward_funcs = ".to_vec(), b"[".repeat(100_000)].concat(), &["bad.toml:1: "]);
    refused(&b"# \n".repeat(1 << 20), &["bad.toml: the config file has more than 1048576 bytes"]);
    fails(&[&grpo(&free)[..], &["--config", "none.toml"]].concat(), 66, &["none.toml"]);
    assert!(!free.exists());
    // An option on the command line wins over the file's.
    fs::write(&config, "seed = 1\nmax_bad_rows = 3\nbeta_min = 0.05\n").unwrap();
    let words = [&grpo(&free)[..], &["--config", "bad.toml", "--seed", "7", "--dry_run"]].concat();
    let printed = success(&words);
    for line in ["seed = 7\n", "max_bad_rows = 3\n", "beta_min = 0.05\n"] {
        assert!(printed.contains(line), "{line:?} is not in {printed}");
    }
}

/// Markup, scripts and terminal sequences in questions, answers, file names and folders.
#[test]
fn case_80_hostile_texts_in_reports_and_logs() {
    let hostile = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3)) \
                   \u{1b}]0;title\u{7} \u{9b}2J \u{202e}gnol\u{2028} & \" ' `";
    let path = dataset("hostile_texts", "");
    let folder = path.parent().unwrap();
    let image = "\"><svg onload=alert(4)>\u{1b}[2J\n.png";
    fs::copy(folder.join("good.png"), folder.join(image)).unwrap();
    let row = serde_json::json!({"problem": hostile, "solution": hostile, "image": image, hostile: hostile});
    fs::write(&path, format!("{row}\n")).unwrap();
    let dir = ROOT.join("run <b>&'");
    let words: Vec<&str> =
        self::with(grpo(&dir), "--dataset", text(&path)).into_iter().filter(|w| *w != "-q").collect();
    let output = othink(&[&words[..], &["--num_completions_to_print", "2"]].concat());
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let file = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let report = file("report.html");
    for (name, shown) in [
        ("the terminal", &printed),
        ("report.html", &report),
        ("completions.jsonl", &file("completions.jsonl")),
        ("metrics.jsonl", &file("metrics.jsonl")),
    ] {
        assert!(!shown.contains(|c| hides(c) && c != '\t'), "{name}");
    }
    for raw in ["<script", "<img src=x", "<svg onload", "</pre></script>", "javascript:alert(3)\""] {
        assert!(!report.contains(raw), "{raw} stands in the report");
    }
    assert!(
        report.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && report.contains("\\u{1b}]0;title\\u{7}")
    );
    // The image is there, and its name is text.
    assert!(
        report.contains("data:image/png;base64,") && report.contains("&quot;&gt;&lt;svg onload=alert(4)&gt;")
    );
    let completions = read(&dir.join("completions.jsonl"));
    assert_eq!(completions[0]["solution"], hostile);
    // So in the files of other commands, and where they are printed.
    let scored = ROOT.join("hostile_scored.jsonl");
    let row = serde_json::json!({"prompt": hostile, "completion": hostile, hostile: hostile});
    fs::write(&scored, format!("{row}\n")).unwrap();
    let printed = success(&["score", "--model", bundle(), "--input", text(&scored)]);
    assert!(!printed.contains(hides));
    assert_eq!(serde_json::from_str::<Row>(&printed).unwrap()[hostile], hostile);
    // An error is one line, with what was in the name.
    let row = serde_json::json!({"problem": "x", "solution": "1", hostile: 1, "image": hostile});
    fs::write(&path, format!("{row}\n")).unwrap();
    let output = othink(&["eval", "--model", bundle(), "--dataset", text(&path)]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(65) && message.lines().count() == 1 && !message.contains(hides),
        "{message}"
    );
}

/// The program with secrets in its environment.
fn with_secrets(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(words)
        .current_dir(&*ROOT)
        .stdin(Stdio::null())
        .envs(SECRETS)
        .output()
        .expect("the binary runs")
}

const SECRETS: [(&str, &str); 4] = [
    ("HF_TOKEN", "hf_s3cret_token"),
    ("HUGGING_FACE_HUB_TOKEN", "hf_s3cret_hub"),
    ("WANDB_API_KEY", "s3cret_wandb"),
    ("AWS_SECRET_ACCESS_KEY", "s3cret_aws"),
];

#[test]
fn case_81_secrets_are_never_shown() {
    let dir = ROOT.join("secrets");
    let bad = dataset("secrets_data", "oops");
    let run = grpo(&dir);
    let loud: Vec<&str> = run.iter().copied().filter(|word| *word != "-q").collect();
    let outputs = [
        with_secrets(&loud),
        with_secrets(&[&run[..], &["--overwrite_output_dir", "--dry_run"]].concat()),
        with_secrets(&["inspect", text(&dir)]),
        with_secrets(&["grpo", "--help"]),
        with_secrets(&["generate", "--model", "no/such_model", "--prompt", "x"]),
        with_secrets(&["eval", "--model", bundle(), "--dataset", text(&bad)]),
        with_secrets(&["grpo", "--hf_token"]),
    ];
    let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    assert_eq!(codes, [0, 0, 0, 0, 66, 65, 2].map(Some));
    let shows = |bytes: &[u8]| bytes.windows(6).any(|window| window == b"s3cret");
    assert!(outputs.iter().all(|output| !shows(&output.stdout) && !shows(&output.stderr)));
    let (mut folders, mut files) = (vec![dir], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                assert!(!shows(&fs::read(&path).unwrap()), "{}", path.display());
            }
        }
    }
    assert!(files > 8);
}

#[test]
fn case_82_no_steps_and_few_rows() {
    let none = ROOT.join("no_steps");
    fails(&with(grpo(&none), "--max_steps", "0"), 2, &["--max_steps is 0", "from 1"]);
    assert!(!none.exists());
    // Groups of a step, by their place in the stream, with the row and the number of completions.
    let groups = |dir: &Path| {
        let mut groups = BTreeMap::new();
        for c in read(&dir.join("completions.jsonl")) {
            let number = |key: &str| c[key].as_u64().unwrap();
            let entry = groups.entry((number("step"), number("prompt_index"))).or_insert((number("row"), 0));
            assert_eq!(entry.0, number("row"));
            entry.1 += 1;
        }
        groups
    };
    // One row, two prompts a step: the row is taken again, as a group of its own.
    let one = DATA.join("one.jsonl");
    write(&one, &read(&LEARNABLE)[..1]);
    let dir = ROOT.join("one_row");
    success(&with(grpo(&dir), "--dataset", text(&one)));
    let places = [(0, 0), (0, 1), (1, 2), (1, 3)];
    assert_eq!(groups(&dir), places.map(|place| (place, (0, 4))).into());
    // Six rows, four prompts a step: an epoch is one step and a half; the last group of the second step is whole, and the
    // step goes on in the next epoch.
    let dir = ROOT.join("partial");
    let words = with(grpo(&dir), "--gradient_accumulation_steps", "4");
    let words: Vec<&str> = words.into_iter().filter(|word| !["--max_steps", "2"].contains(word)).collect();
    success(&[&words[..], &["--num_train_epochs", "2"]].concat());
    let found = groups(&dir);
    assert_eq!(read(&dir.join("metrics.jsonl")).len(), 3);
    assert!(found.len() == 12 && found.values().all(|(_, completions)| *completions == 4), "{found:?}");
    for epoch in [0..6, 6..12] {
        let mut rows: Vec<u64> = found
            .iter()
            .filter(|((_, place), _)| epoch.contains(&(*place as usize)))
            .map(|(_, (row, _))| *row)
            .collect();
        rows.sort_unstable();
        assert_eq!(rows, [0, 1, 2, 3, 4, 5]);
    }
}
