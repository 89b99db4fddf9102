//! `othink-train parity` on every reference bundle, and on bundles that must not pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};
use tempfile::TempDir;

fn bundles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles")
}

fn parity(model: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_othink-train"));
    // These are the CPU's numbers, whatever the machine has.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.args(["parity", "--threads", "2", "--model"]).arg(model).args(options).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn passes(output: &Output) {
    assert!(output.status.success(), "{}\n{}", stdout(output), String::from_utf8_lossy(&output.stderr));
}

/// The exit code and the message, without a table.
fn refusal(output: &Output) -> (i32, String) {
    assert_eq!(stdout(output), "");
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// Keys and verdicts of the rows that fail.
fn failures(output: &Output) -> Vec<(String, String)> {
    stdout(output)
        .lines()
        .filter_map(|line| {
            let (before, reason) = line.split_once("  FAIL ")?;
            Some((before.split_whitespace().next()?.to_owned(), reason.to_owned()))
        })
        .collect()
}

/// A copy of a bundle, to be damaged.
fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&bundles().join(name), copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A safetensors file taken apart by hand, so that its reader is not what is relied on.
struct Tensors {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Tensors {
    fn read(path: &Path) -> Tensors {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header.remove("__metadata__");
        Tensors { header, data: bytes[8 + length..].to_vec() }
    }

    fn write(&self, path: &Path) {
        let header = serde_json::to_vec(&self.header).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat();
        fs::write(path, bytes).unwrap();
    }

    /// Dtype and shape of every key that is no limit.
    fn kinds(&self) -> BTreeMap<String, (Value, Value)> {
        let kept = self.header.iter().filter(|(key, _)| !key.starts_with("noise."));
        kept.map(|(key, entry)| (key.clone(), (entry["dtype"].clone(), entry["shape"].clone()))).collect()
    }

    fn bytes_mut(&mut self, key: &str) -> &mut [u8] {
        let [start, end] = [0, 1].map(|i| self.header[key]["data_offsets"][i].as_u64().unwrap() as usize);
        &mut self.data[start..end]
    }

    fn floats(&mut self, key: &str) -> Vec<f32> {
        assert_eq!(self.header[key]["dtype"], "F32");
        self.bytes_mut(key).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn set(&mut self, key: &str, index: usize, bytes: [u8; 4]) {
        self.bytes_mut(key)[4 * index..4 * index + 4].copy_from_slice(&bytes);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let entry = self.header.remove(from).unwrap();
        self.header.insert(to.to_owned(), entry);
    }
}

/// Runs a bundle whose expected values have been changed.
fn with_expected(name: &str, options: &[&str], change: impl FnOnce(&mut Tensors)) -> (TempDir, Output) {
    let copy = copy_of(name);
    let path = copy.path().join("expected.safetensors");
    let mut tensors = Tensors::read(&path);
    change(&mut tensors);
    tensors.write(&path);
    let output = parity(copy.path(), options);
    (copy, output)
}

#[test]
fn every_bundle_agrees() {
    let mut names = Vec::new();
    for folder in fs::read_dir(bundles()).unwrap().map(|entry| entry.unwrap().path()) {
        let output = parity(&folder, &[]);
        passes(&output);
        let keys = Tensors::read(&folder.join("expected.safetensors")).kinds().len();
        let text = stdout(&output);
        // A heading, a row per key, a summary.
        assert_eq!(text.lines().count(), keys + 2, "{text}");
        let rows =
            text.lines().filter(|line| line.ends_with("  ok") || line.ends_with("  ok (given)")).count();
        assert_eq!(rows, keys, "{text}");
        let summary = format!("parity: {keys} tensors, {keys} ok, 0 FAIL; largest error/limit 0.");
        assert!(text.lines().last().unwrap().starts_with(&summary), "{text}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        names.push(folder.file_name().unwrap().to_string_lossy().into_owned());
    }
    assert!(names.len() >= 13 && names.iter().any(|name| name == "qwen2_5_tied_odd"), "{names:?}");
}

#[test]
fn the_published_flat_config_means_the_same() {
    let copy = copy_of("qwen2_vl_a");
    fs::rename(copy.path().join("config.flat.json"), copy.path().join("config.json")).unwrap();
    passes(&parity(copy.path(), &[]));
}

#[test]
fn a_bundle_may_stand_apart_from_the_checkpoint() {
    let model = bundles().join("dialect_v5");
    let bundle = tempfile::tempdir().unwrap();
    copy_folder(&bundles().join("dialect_flat_f16"), bundle.path());
    for file in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(bundle.path().join(file)).unwrap();
    }
    passes(&parity(&model, &["--bundle", bundle.path().to_str().unwrap()]));
}

#[test]
fn one_value_off_fails_its_row_alone() {
    // 8 x the limit of logits and log-probabilities; a thousandth of a gradient's largest entry is 10 x its limit.
    let add = |key: &'static str, index: usize, by: f32| {
        move |tensors: &mut Tensors| {
            let value = tensors.floats(key)[index] + by;
            tensors.set(key, index, value.to_le_bytes());
        }
    };
    type Change = Box<dyn FnOnce(&mut Tensors)>;
    let cases: [(&str, &str, Change); 6] = [
        ("ex0.logits", "at [1, 4]: ", Box::new(add("ex0.logits", 515 + 4, 4e-4))),
        ("batch.logps", "at [0, 0]: 0 instead of ", Box::new(add("batch.logps", 0, 2.4e-4))),
        (
            "grad.model.norm.weight",
            "at [3]: ",
            Box::new(|tensors: &mut Tensors| {
                let values = tensors.floats("grad.model.norm.weight");
                let largest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                tensors.set("grad.model.norm.weight", 3, (values[3] + 1e-3 * largest).to_le_bytes());
            }),
        ),
        ("loss", "expected NaN at [0]", Box::new(|tensors| tensors.set("loss", 0, f32::NAN.to_le_bytes()))),
        (
            "ex0.input_ids",
            "at [2]: ",
            Box::new(|tensors| tensors.set("ex0.input_ids", 2, 7_i32.to_le_bytes())),
        ),
        (
            "ex0.position_ids",
            "at [0, 1]: 1 instead of 2",
            Box::new(|tensors| tensors.set("ex0.position_ids", 1, 2_i32.to_le_bytes())),
        ),
    ];
    for (key, reason, change) in cases {
        let (_copy, output) = with_expected("dialect_v5", &[], change);
        let failed = failures(&output);
        assert!(matches!(&failed[..], [(k, r)] if k == key && r.starts_with(reason)), "{key}: {failed:?}");
        assert_eq!(output.status.code(), Some(70));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(
            message.starts_with("error: 1 of ") && message.contains(&format!("first {key}")),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1);
    }
}

/// The subtlest of wrong models: norms with an epsilon ten times too large.
#[test]
fn another_epsilon_fails() {
    let copy = copy_of("qwen2_vl_a");
    let config = copy.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(r#""rms_norm_eps": 1e-06"#, r#""rms_norm_eps": 1e-05"#)).unwrap();
    let output = parity(copy.path(), &[]);
    assert_eq!(output.status.code(), Some(70));
    let failed: Vec<String> = failures(&output).into_iter().map(|(key, _)| key).collect();
    for prefix in ["ex0.final_hidden", "ex1.logits", "ex2.completion_logps", "grad.model.", "grpo_e2e.logps"]
    {
        assert!(failed.iter().any(|key| key.starts_with(prefix)), "no {prefix} in {failed:?}");
    }
    assert!(
        !failed.iter().any(|key| key.contains("vision_")),
        "the vision tower has its own epsilon: {failed:?}"
    );
}

#[test]
fn numbers_may_be_stored_in_f64_and_without_a_dimension() {
    let (_copy, output) = with_expected("dialect_v5", &[], |tensors| {
        let loss = f64::from(tensors.floats("loss")[0]);
        let at = tensors.data.len();
        tensors.data.extend(loss.to_le_bytes());
        // The four bytes of the f32 go to a key of their own: a file has no holes.
        tensors.rename("loss", "noise.spare");
        let entry = serde_json::json!({"dtype": "F64", "shape": [], "data_offsets": [at, at + 8]});
        tensors.header.insert("loss".into(), entry);
    });
    passes(&output);
}

#[test]
fn what_is_expected_to_be_infinite_fails() {
    let (_copy, output) =
        with_expected("dialect_v5", &[], |tensors| tensors.set("grad_norm", 0, f32::INFINITY.to_le_bytes()));
    let reason = "expected inf at [0], which nothing equals";
    assert!(failures(&output).contains(&("grad_norm".to_owned(), reason.to_owned())), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(70));
}

#[test]
fn what_cannot_be_computed_fails() {
    for (from, to, reason) in [
        ("ex0.logits", "ex0.logitz", "unknown key"),
        ("ex0.logits", "ex7.logits", "unknown key: inputs.json has 1 examples"),
        ("grad_norm", "grad.no_such.weight", "unknown key: the model has no such parameter"),
        ("loss", "decoded.images/none.png", "unknown key: no example has this image"),
        // A shape other than the computed one.
        ("ex0.input_ids", "ex0.rope_delta", "computed shape [1]"),
    ] {
        let (_copy, output) = with_expected("dialect_v5", &[], |tensors| tensors.rename(from, to));
        assert_eq!(failures(&output), [(to.to_owned(), reason.to_owned())]);
        assert_eq!(output.status.code(), Some(70));
    }
    // The GRPO case needs its given tensors.
    let (_copy, output) = with_expected("wide_gqa4_hd32", &[], |tensors| {
        tensors.header.remove("grpo_e2e.rewards").unwrap();
        // Keep the file free of holes: the bytes go to a key of their own.
        tensors.header.retain(|key, _| !key.starts_with("noise."));
        let mut data = Vec::new();
        let mut entries: Vec<_> = tensors.header.iter_mut().collect();
        entries.sort_by_key(|(_, entry)| entry["data_offsets"][0].as_u64());
        for (_, entry) in entries {
            let [start, end] = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize);
            let at = data.len();
            data.extend_from_slice(&tensors.data[start..end]);
            entry["data_offsets"] = serde_json::json!([at, data.len()]);
        }
        tensors.data = data;
    });
    let failed = failures(&output);
    let loss = failed.iter().find(|(key, _)| key == "grpo_e2e.loss").unwrap();
    assert_eq!(loss.1, "cannot be computed without grpo_e2e.rewards, grpo_e2e.old_logps, grpo_e2e.ref_logps");
    assert!(failed.iter().all(|(key, _)| key.starts_with("grpo_e2e.")), "{failed:?}");
}

#[test]
fn the_dump_holds_what_was_computed_and_nothing_expected() {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("ours.safetensors");
    let options = ["--dump", dump.to_str().unwrap()];
    let model = bundles().join("qwen2_vl_a");
    passes(&parity(&model, &options));
    let (mut ours, mut expected) = (Tensors::read(&dump), Tensors::read(&model.join("expected.safetensors")));
    assert_eq!(ours.kinds(), expected.kinds());
    for (key, limit) in
        [("ex1.logits", 5e-5), ("ex0.vision_out", 5e-5), ("batch.logps", 3e-5), ("train.losses", 1e-4)]
    {
        let (a, b) = (ours.floats(key), expected.floats(key));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= limit), "{key}");
        assert_ne!(a, b, "{key}: two programs that round alike to the last bit");
    }
    assert_eq!(ours.bytes_mut("ex2.gen_ids"), expected.bytes_mut("ex2.gen_ids"));

    // As the expected values of the same checkpoint, the dump is met without any error; the pixels are an input.
    let image = "decoded.images/1.jpg";
    ours.bytes_mut(image).copy_from_slice(expected.bytes_mut(image));
    let (_copy, again) = with_expected("qwen2_vl_a", &[], |tensors| *tensors = ours);
    passes(&again);
    assert!(stdout(&again).contains("largest error/limit 0.000 "), "{}", stdout(&again));

    // Other expected values change no bit of it, given ones apart.
    let first = fs::read(&dump).unwrap();
    let (_copy, zeros) = with_expected("qwen2_vl_a", &options, |tensors| {
        let given = ["grpo_e2e.old_logps", "grpo_e2e.ref_logps", "grpo_e2e.rewards", image];
        let keys: Vec<String> =
            tensors.header.keys().filter(|key| !given.contains(&key.as_str())).cloned().collect();
        keys.iter().for_each(|key| tensors.bytes_mut(key).fill(0));
    });
    assert_eq!(zeros.status.code(), Some(70));
    assert!(fs::read(&dump).unwrap() == first);
}

#[test]
fn dialects_of_one_checkpoint_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let dumps = ["dialect_v5", "dialect_v4_52", "dialect_language_model", "dialect_flat_f16"].map(|name| {
        let dump = folder.path().join(name);
        passes(&parity(&bundles().join(name), &["--dump", dump.to_str().unwrap()]));
        fs::read(dump).unwrap()
    });
    assert!(dumps.iter().all(|dump| *dump == dumps[0]));
}

#[test]
fn bf16_has_its_own_limits_and_skips_what_it_cannot_decide() {
    let output = parity(&bundles().join("qwen2_vl_a"), &["--dtype", "bf16"]);
    passes(&output);
    let text = stdout(&output);
    let row = |key: &str| text.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
    assert!(row("ex0.gen_ids").ends_with("skipped (in bfloat16)"));
    assert!(row("grpo_e2e.grad_norm").ends_with("skipped (in bfloat16)"));
    assert!(row("ex0.input_ids").ends_with("exact  ok"));
    assert!(row("ex0.completion_logps").contains("  1.5e-1  ok"));
    assert!(text.lines().last().unwrap().contains(" skipped; "), "{text}");
}

#[test]
fn damaged_bundles_are_refused() {
    let image = r#""images/a.png""#;
    type Edit<'a> = (&'a dyn Fn(&str) -> String, i32, &'a str);
    let edits: [Edit<'_>; 8] = [
        (&|text| text[..text.len() / 2].to_owned(), 65, "inputs.json: EOF while parsing"),
        (&|_| "[]".to_owned(), 65, "inputs.json: "),
        (&|_| r#"{"examples": []}"#.to_owned(), 65, "has 0 examples"),
        (
            &|_| r#"{"examples": [{"messages": [{"role": "user", "content": 5}], "completion": ""}]}"#.into(),
            65,
            "`content` has to be",
        ),
        (&|text| text.replace(image, r#""../secret.png""#), 65, "secret.png"),
        (&|text| text.replace(image, r#""images/none.png""#), 66, "none.png"),
        (&|text| text.replace(r#""max_pixels": 4704"#, r#""max_pixels": 0"#), 2, "max_pixels (0)"),
        (&|text| text.replace("<|endoftext|>\",", "<|nothing|>\","), 65, "<|nothing|>"),
    ];
    for (edit, code, message) in edits {
        let copy = copy_of("dialect_v5");
        let path = copy.path().join("inputs.json");
        fs::write(&path, edit(&fs::read_to_string(&path).unwrap())).unwrap();
        let (got, text) = refusal(&parity(copy.path(), &[]));
        assert!(
            got == code && text.contains(message) && text.lines().count() == 1,
            "{message}: {got} {text}"
        );
    }
    let copy = copy_of("dialect_v5");
    let expected = copy.path().join("expected.safetensors");
    let whole = fs::read(&expected).unwrap();
    fs::write(&expected, &whole[..whole.len() - 1]).unwrap();
    let (code, message) = refusal(&parity(copy.path(), &[]));
    assert!(code == 65 && message.contains("truncated"), "{message}");
    for file in ["expected.safetensors", "inputs.json"] {
        fs::remove_file(copy.path().join(file)).unwrap();
        let (code, message) = refusal(&parity(copy.path(), &[]));
        assert!(code == 66 && message.contains(file) && message.contains("make_bundle.py"), "{message}");
    }
    // A given tensor of another shape.
    let (_copy, output) = with_expected("wide_gqa4_hd32", &[], |tensors| {
        tensors.header["grpo_e2e.rewards"]["shape"] = serde_json::json!([2, 2])
    });
    let (code, message) = refusal(&output);
    assert!(code == 65 && message.contains("grpo_e2e.rewards has shape [2, 2]"), "{message}");
}

#[test]
fn a_dump_that_cannot_or_must_not_be_written_is_refused_first() {
    let copy = copy_of("dialect_v5");
    let expected = copy.path().join("expected.safetensors");
    let (code, message) = refusal(&parity(copy.path(), &["--dump", expected.to_str().unwrap()]));
    assert!(code == 2 && message.contains("would replace the expected values"), "{message}");
    let nowhere = copy.path().join("none/ours.safetensors");
    let (code, message) = refusal(&parity(copy.path(), &["--dump", nowhere.to_str().unwrap()]));
    assert!(code == 66 && message.contains("none"), "{message}");
}
