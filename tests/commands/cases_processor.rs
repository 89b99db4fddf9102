//! What is wrong with the tokenizer and the chat template of a model folder: cases 22 to 26 of the table in `cases.rs`.

use super::cases_model::refused;
use super::{checkpoint, othink, success, text};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;

/// Replaces a JSON file by what `edit` makes of it.
fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn case_22_tokenizers_that_cannot_be() {
    let dir = checkpoint("tokenizers");
    let path = dir.join("tokenizer.json");
    let good = fs::read(&path).unwrap();
    for content in [&b"{\"model\": "[..], b"", b"[]", b"\xff\xfe", &good[..good.len() / 2]] {
        fs::write(&path, content).unwrap();
        refused(&dir, 65, &["tokenizer.json", "not a usable tokenizer"]);
    }
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 12] = [
        (|t| t["model"]["vocab"]["zzz"] = 4_000_000_000_u64.into(), "ids up to 4000000000"),
        (|t| t["model"]["vocab"]["zzz"] = 700.into(), "only 600 rows"),
        (|t| t["model"]["vocab"]["zzz"] = (1_u64 << 40).into(), "not a usable tokenizer"),
        (|t| t["model"]["type"] = "Unigram".into(), "\"Unigram\""),
        (|t| t["model"]["dropout"] = json!(0.5), "dropout"),
        (
            |t| {
                let doubled =
                    json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaa"});
                t["normalizer"] = json!({"type": "Sequence", "normalizers": vec![doubled; 30]});
            },
            "normalizer \"Replace\"",
        ),
        (
            |t| {
                let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false});
                t["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": vec![bytes; 12]});
            },
            "12 of them byte-level",
        ),
        (
            |t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(".into(),
            "not a usable tokenizer",
        ),
        (
            |t| {
                t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
                    "(?:(?:.{1,20}){1,20}(?!x)y|.)".into()
            },
            "linear time",
        ),
        (
            |t| {
                t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
                    "(?:(.+)+y|\\s+(?!\\S)|.)+".into()
            },
            "linear time",
        ),
        (|t| t["added_tokens"][0]["content"] = "x".repeat(200_000).into(), "added tokens have 200"),
        (|t| t["added_tokens"] = json!([]), "<|image_pad|>"),
    ];
    for (edit, part) in cases {
        fs::write(&path, &good).unwrap();
        edit_json(&path, edit);
        refused(&dir, 65, &[part]);
    }
    File::create(&path).unwrap().set_len(200_000_000).unwrap();
    refused(&dir, 65, &["tokenizer.json", "is 200000000 bytes long"]);
    fs::remove_file(&path).unwrap();
    refused(&dir, 65, &["tokenizer.json", "copy it"]);
    fs::write(&path, good).unwrap();

    let (config, generation) = (dir.join("config.json"), dir.join("generation_config.json"));
    edit_json(&generation, |g| g["eos_token_id"] = json!([501, 600]));
    refused(&dir, 65, &["eos_token_id 600", "vocabulary of 600"]);
    edit_json(&generation, |g| g["eos_token_id"] = json!("<|im_end|>"));
    refused(&dir, 65, &["generation_config.json", "eos_token_id must be a token id"]);
    edit_json(&generation, |g| g["eos_token_id"] = json!(501));
    edit_json(&config, |c| c["image_token_id"] = 7.into());
    refused(&dir, 65, &["image_token_id is 7"]);
    fs::remove_file(dir.join("preprocessor_config.json")).unwrap();
    refused(&dir, 65, &["preprocessor_config.json", "copy it"]);
}

#[test]
fn case_23_no_chat_template() {
    let dir = checkpoint("no_template");
    fs::remove_file(dir.join("chat_template.jinja")).unwrap();
    edit_json(&dir.join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().remove("chat_template").expect("a third place of the template");
    });
    let output =
        othink(&["generate", "--model", text(&dir), "--prompt", "How many?", "--max_completion_length", "2"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    let warning = message.lines().find(|line| line.starts_with("warning: ")).expect("a warning");
    assert!(warning.contains("no chat template") && warning.contains("Qwen2-VL's own"), "{warning}");
}

#[test]
fn case_24_chat_templates_with_errors() {
    let dir = checkpoint("bad_templates");
    let path = dir.join("chat_template.jinja");
    for (source, parts) in [
        ("{{ messages[0].content }}\n{% if %}", ["line 2", "syntax error"]),
        ("\n\n{{ messages | nosuch }}", ["line 3", "nosuch"]),
        ("{{ raise_exception('roles must\n alternate') }}", ["line 1", "roles must\\n alternate"]),
        ("{{ messages.nope.deeper }}", ["line 1", "undefined"]),
        ("plain text without an image mark", ["row", "image"]),
    ] {
        fs::write(&path, source).unwrap();
        if source.starts_with("plain") {
            let image = format!("{}/images/0.png", super::bundle());
            let words = ["generate", "--model", text(&dir), "--prompt", "x", "--image", &image, "-q"];
            super::fails(&words, 65, &["image"]);
        } else {
            refused(&dir, 65, &[&["chat_template.jinja"], &parts[..]].concat());
        }
    }
    fs::write(&path, b"{{ \xff }}").unwrap();
    refused(&dir, 65, &["chat_template.jinja", "not UTF-8"]);
    fs::write(&path, "x".repeat(70_000)).unwrap();
    refused(&dir, 65, &["chat_template.jinja", "70000 bytes"]);
    let published = fs::read_to_string(Path::new(super::bundle()).join("chat_template.jinja")).unwrap();
    fs::write(&path, format!("{{% generation %}}{published}{{% endgeneration %}}")).unwrap();
    success(&["generate", "--model", text(&dir), "--prompt", "x", "--max_completion_length", "1", "-q"]);
    // A template that the user names is looked at in the same way.
    let own = dir.join("own.jinja");
    fs::write(&own, "{{ 1 | nosuch }}").unwrap();
    let words = ["generate", "--model", text(&dir), "--prompt", "x", "--chat_template", text(&own), "-q"];
    super::fails(&words, 65, &["own.jinja", "nosuch"]);
    fs::remove_file(&own).unwrap();
    super::fails(&words, 66, &["own.jinja", "not found"]);
}

#[cfg(target_os = "linux")]
#[test]
fn case_25_chat_templates_without_end_or_bound() {
    use super::cases_model::SOON;
    use super::cases_weights::peak_memory;
    use std::time::Instant;
    let dir = checkpoint("hostile_templates");
    let words = ["generate", "--model", text(&dir), "--prompt", "x", "--max_completion_length", "1", "-q"];
    let (calm, code, message) = peak_memory(&words);
    assert_eq!(code, Some(0), "{message}");
    let grow = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(99999) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        )
    };
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for i in range(1000000000000) %}{% endfor %}".to_owned(),
        "{{ 'a' * 1000000000 }}".to_owned(),
        grow("'aaaaaaaa'", "ns.x ~ ns.x"),
        grow("[1]", "[ns.x, ns.x]") + "{{ ns.x ~ '' }}",
        grow("[1]", "[ns.x]") + "{{ ns.x }}",
        grow("['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'] * 1000", "[ns.x] * 2") + "{{ ns.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{{ '{:>1000000000}'.format(1) }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a | tojson }}".to_owned(),
        format!("{{{{ a{} }}}}", "~a".repeat(32_000)),
        "{% for i in range(99999) %}{% for j in range(99) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}{% endfor %}".to_owned(),
    ] {
        fs::write(dir.join("chat_template.jinja"), &source).unwrap();
        let start = Instant::now();
        let (peak, code, message) = peak_memory(&words);
        let took = start.elapsed();
        let shown: String = source.chars().take(90).collect();
        assert_eq!(code, Some(65), "{shown}: {message}");
        assert!(message.contains("chat_template.jinja"), "{shown}: {message}");
        assert!(took < SOON, "{shown}: {took:?}");
        assert!(peak < calm + (64 << 20), "{shown}: {peak} bytes, {calm} with the good template");
    }
}

#[test]
fn case_26_chat_templates_that_want_files_or_attributes() {
    let dir = checkpoint("curious_templates");
    for source in [
        "{% include 'tokenizer.json' %}",
        "{% include '/etc/hostname' %}",
        "{% extends 'chat_template.jinja' %}",
        "{% import 'chat_template' as t %}",
        "{{ open('/etc/hostname') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'] }}",
    ] {
        fs::write(dir.join("chat_template.jinja"), source).unwrap();
        refused(&dir, 65, &["chat_template.jinja", "line 1"]);
    }
}
