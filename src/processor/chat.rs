//! The chat template of a checkpoint: from messages to the text that is tokenised.
//!
//! A template comes with the model and is not trusted: it cannot read files or reach anything but its variables, and a
//! rendering is bounded in steps, time and output ([`MAX_RENDER_TIME`], [`MAX_RENDERED_BYTES`]).

mod environment;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use minijinja::value::Serde;
use minijinja::{Environment, Value as JinjaValue};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::processor::image_config::{read_if_there, read_json_object};

/// Longest time one rendering may take.
pub const MAX_RENDER_TIME: Duration = Duration::from_secs(1);
/// Longest text that one rendering may give.
pub const MAX_RENDERED_BYTES: usize = 4 << 20;
/// Longest template that is compiled, a few times what the longest published ones have.
pub const MAX_TEMPLATE_BYTES: usize = 64 << 10;
/// Room for the interpreter's recursion (limited to 500 levels) in builds with large stack frames.
const RENDER_STACK_BYTES: usize = 32 << 20;

/// What Qwen2-VL's published template does, for folders without one: a default system message where the conversation has
/// none, every message between `<|im_start|>role` and `<|im_end|>`, images as one placeholder between vision marks.
pub const QWEN2_VL_TEMPLATE: &str = concat!(
    "{%- set pictures = namespace(n=0) -%}",
    "{%- for message in messages -%}",
    "{%- if loop.first and message.role != 'system' -%}",
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}",
    "{%- endif -%}",
    "{{- '<|im_start|>' ~ message.role ~ '\\n' -}}",
    "{%- if message.content is string -%}{{- message.content -}}",
    "{%- else -%}",
    "{%- for part in message.content -%}",
    "{%- if part.type == 'image' -%}",
    "{%- set pictures.n = pictures.n + 1 -%}",
    "{%- if add_vision_id -%}{{- 'Picture ' ~ pictures.n ~ ': ' -}}{%- endif -%}",
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}",
    "{%- elif 'text' in part -%}{{- part.text -}}",
    "{%- endif -%}",
    "{%- endfor -%}",
    "{%- endif -%}",
    "{{- '<|im_end|>\\n' -}}",
    "{%- endfor -%}",
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
);

/// The one name in the Jinja environment.
const TEMPLATE: &str = "chat_template";

/// A compiled chat template with the variables its folder gives it.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
    /// Named in errors.
    path: PathBuf,
    /// `bos_token`, `eos_token` and the like from `tokenizer_config.json`.
    special_tokens: Map<String, Value>,
    warning: Option<String>,
}

impl ChatTemplate {
    /// Finds the template of a checkpoint folder: the file `chosen` by the caller (Jinja, or `.json` with a
    /// `chat_template` key), else `chat_template.jinja`, else `chat_template.json`, else `chat_template` in
    /// `tokenizer_config.json`, else Qwen2-VL's own with a [`ChatTemplate::warning`]. Where a file holds several named
    /// templates the one named `default` is taken.
    ///
    /// # Errors
    /// [`Error::Missing`] where `chosen` is not there; [`Error::Content`] where a file is not UTF-8, not JSON, holds no
    /// template, or the template has a syntax error (with its line); [`Error::Io`].
    pub fn load(folder: &Path, chosen: Option<&Path>) -> Result<Self> {
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json_object(&config_path)?.unwrap_or_default();
        let special_tokens = special_tokens(&config);
        let mut found = None;
        if let Some(path) = chosen {
            found = template_file(path)?;
            if found.is_none() {
                return Err(Error::missing(path, "chat template not found; give the path of a Jinja file"));
            }
        }
        for name in ["chat_template.jinja", "chat_template.json"] {
            if found.is_none() {
                found = template_file(&folder.join(name))?;
            }
        }
        if found.is_none() {
            found = template_value(&config, &config_path)?.map(|source| (source, config_path));
        }
        let (warning, (source, path)) = match found {
            Some(found) => (None, found),
            None => (
                Some(format!(
                    "{}: no chat template in this folder; using Qwen2-VL's own (give one with chat_template_path)",
                    folder.display()
                )),
                (QWEN2_VL_TEMPLATE.to_string(), PathBuf::from("built-in Qwen2-VL chat template")),
            ),
        };
        Ok(ChatTemplate { special_tokens, warning, ..Self::from_source(source, &path)? })
    }

    /// Compiles a template; `path` stands in errors only.
    ///
    /// # Errors
    /// [`Error::Content`] with the line of a syntax error.
    pub fn from_source(source: String, path: &Path) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let message =
                format!("chat template of {} bytes; at most {MAX_TEMPLATE_BYTES} are read", source.len());
            return Err(Error::content(path, message));
        }
        let environment = compile(&source, path)?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            source,
            path: path.to_path_buf(),
            special_tokens: Map::new(),
            warning: None,
        })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the template came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the user should know about where the template came from, if anything.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The special tokens that `tokenizer_config.json` names (`eos_token` -> `<|im_end|>`, ...).
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// Renders `messages` (an array in the form transformers takes: `role`, and `content` as a string or as an array of
    /// parts with `type`) with `variables` such as `add_generation_prompt` beside it. `tools` and `documents` are `None`
    /// unless given.
    ///
    /// # Errors
    /// [`Error::Content`] naming the template and its line: a failing expression, `raise_exception`, or a limit
    /// exceeded. After a time-out the rendering's thread ends by itself when its step budget is spent.
    pub fn render(&self, messages: &Value, variables: &Map<String, Value>) -> Result<String> {
        let mut context = Map::new();
        context.insert("tools".into(), Value::Null);
        context.insert("documents".into(), Value::Null);
        for (name, value) in self.special_tokens.iter().chain(variables) {
            context.insert(name.clone(), value.clone());
        }
        context.insert("messages".into(), messages.clone());
        let context = JinjaValue::from(Serde(&context));

        let environment = Arc::clone(&self.environment);
        let (sender, receiver) = mpsc::sync_channel(1);
        // A thread of its own, because a wall-clock limit cannot be had from the interpreter.
        std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(RENDER_STACK_BYTES)
            .spawn(move || {
                // The receiver is gone only after a time-out, when nobody wants the result.
                let _ = sender.send(render_bounded(&environment, context));
            })
            .map_err(|error| Error::io(&self.path, "start the thread that renders it", error))?;
        let fail = |message: String| Error::content(&self.path, message);
        match receiver.recv_timeout(MAX_RENDER_TIME) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(fail(describe(&error))),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(fail(format!(
                "chat template took longer than {} s; simplify it",
                MAX_RENDER_TIME.as_secs()
            ))),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(fail("the template engine crashed on this chat template; simplify it".into()))
            }
        }
    }
}

/// Compiles in a thread whose stack grows with the source, because the parser recurses on prefix operators and nested
/// blocks: `not not not ...` would otherwise overflow it.
fn compile(source: &str, path: &Path) -> Result<Environment<'static>> {
    const STACK_PER_BYTE: usize = 1 << 10;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(RENDER_STACK_BYTES + source.len() * STACK_PER_BYTE)
            .spawn_scoped(scope, || environment::transformers_environment(TEMPLATE, source))
            .map_err(|error| Error::io(path, "start the thread that compiles it", error))?;
        match thread.join() {
            Ok(compiled) => compiled.map_err(|error| Error::content(path, describe(&error))),
            Err(_) => {
                Err(Error::content(path, "the template engine crashed on this chat template; simplify it"))
            }
        }
    })
}

/// Renders into a buffer that refuses to grow beyond [`MAX_RENDERED_BYTES`].
fn render_bounded(
    environment: &Environment<'static>,
    context: JinjaValue,
) -> std::result::Result<String, minijinja::Error> {
    let mut output = Bounded(Vec::new());
    environment.get_template(TEMPLATE)?.render_captured_to(context, &mut output)?;
    String::from_utf8(output.0)
        .map_err(|_| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, "output is not UTF-8"))
}

struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other(format!("rendered text exceeds {MAX_RENDERED_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line: "chat template, line 3: unknown filter: ... ".
fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let cause = std::error::Error::source(error).map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!("chat template{line}: {}{detail}{cause}", error.kind())
}

/// The template in a Jinja or JSON file, with the file's path; `None` where there is no such file.
fn template_file(path: &Path) -> Result<Option<(String, PathBuf)>> {
    let path = path.to_path_buf();
    if path.extension().is_some_and(|extension| extension == "json") {
        let Some(json) = read_json_object(&path)? else { return Ok(None) };
        return match template_value(&json, &path)? {
            Some(source) => Ok(Some((source, path))),
            None => Err(Error::content(&path, "no key chat_template in this file")),
        };
    }
    let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
    match String::from_utf8(bytes) {
        Ok(source) => Ok(Some((source, path))),
        Err(error) => Err(Error::content(&path, format!("chat template is not UTF-8: {error}"))),
    }
}

/// `chat_template` as a string, a `{name: template}` object, or a list of `{"name", "template"}`.
fn template_value(json: &Map<String, Value>, path: &Path) -> Result<Option<String>> {
    let wrong =
        || Error::content(path, "chat_template must be a string, or named templates with one called default");
    let named: Vec<(&str, &Value)> = match json.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source.clone())),
        Some(Value::Object(named)) => named.iter().map(|(name, source)| (name.as_str(), source)).collect(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| Some((item.get("name")?.as_str()?, item.get("template")?)))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?,
        Some(_) => return Err(wrong()),
    };
    let default = named.iter().find(|(name, _)| *name == "default").or(match named.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    let source = default.and_then(|(_, source)| source.as_str()).ok_or_else(wrong)?;
    Ok(Some(source.to_string()))
}

/// Every `*_token` of `tokenizer_config.json` that is a string or an object with `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    config
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| {
            let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.clone(), Value::from(content)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::from_source(source.to_string(), Path::new("chat_template.jinja")).unwrap()
    }

    fn render(source: &str) -> Result<String> {
        let compiled = ChatTemplate::from_source(source.to_string(), Path::new("chat_template.jinja"))?;
        compiled.render(&json!([{"role": "user", "content": "a <b> é"}]), &Map::new())
    }

    /// The bundle's template and the built-in one, on every recorded case.
    #[test]
    fn renders_the_recorded_cases_to_the_byte() {
        let published = template(include_str!("../../tests/templates/chat_template.jinja"));
        let built_in = template(QWEN2_VL_TEMPLATE);
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/templates/cases.json")).unwrap();
        assert_eq!(cases.len(), 11);
        for case in &cases {
            let variables = case["kwargs"].as_object().unwrap();
            let expected = case["rendered"].as_str().unwrap();
            assert_eq!(published.render(&case["messages"], variables).unwrap(), expected, "{}", case["name"]);
            // The built-in one knows the parts this program makes: no videos, no image_url.
            if !case["messages"].to_string().contains("video")
                && !case["messages"].to_string().contains("url")
            {
                assert_eq!(
                    built_in.render(&case["messages"], variables).unwrap(),
                    expected,
                    "{}",
                    case["name"]
                );
            }
        }
    }

    #[test]
    fn the_environment_behaves_as_transformers_does() {
        for (source, expected) in [
            ("{{ messages[0].content | tojson }}", "\"a <b> é\""),
            ("{{ {'b': [1, 2.0, none], 'a': true} | tojson }}", "{\"b\": [1, 2.0, null], \"a\": true}"),
            ("{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": [],\n  \"b\": 1\n}"),
            ("{{ 'é😀\"\\n' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83d\\ude00\\\"\\n\""),
            ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", "[1,{\"a\":2}]"),
            ("{{ [1e20, 1e-7, 0.1, 123456.0] | tojson }}", "[1e+20, 1e-07, 0.1, 123456.0]"),
            ("{% generation %}\nx{% endgeneration %}\ny", "xy"),
            ("{%- generation -%} x {%- endgeneration %} y", "x y"),
            (
                "{{ 'a' is sequence }}{{ 'a' is iterable }}{{ {} is sequence }}{{ 1 is sequence }}",
                "TrueTrueTrueFalse",
            ),
            ("{{ tools is none }}{{ documents is none }}{{ absent is defined }}", "TrueTrueFalse"),
            ("{{ 'a,b'.split(',')[1] }}{{ ' x '.strip() }}{{ {'k': 3}.get('k') }}", "bx3"),
            ("{{ '{:>4}'.format(7) }}|{{ '{}'.format('x') }}", "   7|x"),
            ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
            ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            ("{{ strftime_now('%%') }}{{ strftime_now('%Y') | length }}", "%4"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn faults_of_a_template_are_named_with_their_line() {
        for (source, line, expected) in [
            ("a\n{% if %}", 2, "syntax error"),
            ("\n\n{{ 1 | nosuch }}", 3, "nosuch"),
            ("{{ raise_exception('roles must alternate') }}", 1, "roles must alternate"),
            ("x\n{{ messages.nope.deeper }}", 2, "undefined"),
            ("{% include 'tokenizer.json' %}", 1, "tokenizer.json"),
            ("{{ open('/etc/passwd') }}", 1, "open"),
        ] {
            let error = render(source).unwrap_err();
            assert_eq!(error.exit_code(), 65, "{source}");
            let text = error.to_string();
            assert!(text.contains(&format!("line {line}")) && text.contains(expected), "{source}: {text}");
        }
        // Python's escape routes lead nowhere.
        assert_eq!(render("{{ ''.__class__ }}{{ messages.__class__ }}").unwrap(), "");
        assert!(render("{{ messages.__class__.__mro__ }}").is_err());
    }

    #[test]
    fn hostile_templates_end_soon_with_an_error() {
        let doubling = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
        let text = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
        for source in [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_string(),
            "{% for i in range(1000000000000) %}{% endfor %}".to_string(),
            "{{ 'a' * 1000000000 }}".to_string(),
            "{{ '{:>1000000000}'.format(1) }}".to_string(),
            "{{ '{:>{}}'.format(1, 1000000000) }}".to_string(),
            "{{ ('{:>9999}' * 5000).format(1) }}".to_string(),
            "{{ '%1000000000d' | format(1) }}".to_string(),
            "{{ 1 | tojson(indent=1000000000) }}".to_string(),
            "{{ 'a' | indent(1000000000, true) }}{{ 'a' | center(1000000000) }}".to_string(),
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_string(),
            "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}".to_string(),
            format!("{doubling}{{{{ ns.x }}}}"),
            format!("{doubling}{{{{ ns.x | tojson }}}}"),
            format!("{doubling}{{{{ (ns.x ~ '') | length }}}}"),
            format!("{doubling}{{{{ ns.x == ns.x }}}}{{{{ 1 in ns.x }}}}{{{{ ns.x | string | length }}}}"),
            format!("{text}{{{{ ns.x }}}}"),
            "(".repeat(60_000),
            format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000)),
            format!("{{{{ {}1 }}}}{{{{ 1 + }}}}", "not ".repeat(16_000)),
            format!("{{{{ {}1 | nosuch }}}}", "-".repeat(65_000)),
            "{% if x %}".repeat(6_500),
            format!("{}{}{{{{ nosuch() }}}}", "{% if 1 %}".repeat(3_000), "{% endif %}".repeat(3_000)),
            format!("{{{{ 1{} }}}}{{{{ nosuch() }}}}", "|abs".repeat(16_000)),
            format!("{{{{ 1{} }}}}{{{{ nosuch() }}}}", "**1".repeat(21_000)),
            "{% if x %}".repeat(100_000),
        ] {
            let start = std::time::Instant::now();
            let result = render(&source);
            let took = start.elapsed();
            let shown: String = source.chars().take(90).collect();
            if source.starts_with("((") {
                assert!(result.is_ok(), "plain text is no expression");
            } else {
                let error = result.expect_err(&shown);
                assert_eq!(error.exit_code(), 65);
            }
            assert!(took < Duration::from_secs(3), "{shown}: {took:?}");
        }
    }

    #[test]
    fn long_conversations_are_within_the_budget() {
        let template = template(QWEN2_VL_TEMPLATE);
        let text = "x".repeat(3 << 20);
        let long = template.render(&json!([{"role": "user", "content": text}]), &Map::new()).unwrap();
        assert!(long.len() > text.len());
        let turn = json!({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]});
        let many = template.render(&Value::from(vec![turn; 2000]), &Map::new()).unwrap();
        assert_eq!(many.matches("<|image_pad|>").count(), 2000);
    }

    #[test]
    fn the_folder_is_searched_in_order_of_precedence() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let text = |chosen: Option<&Path>| -> String {
            let template = ChatTemplate::load(folder.path(), chosen).unwrap();
            template.render(&json!([{"role": "user", "content": "x"}]), &Map::new()).unwrap()
        };
        let built_in = ChatTemplate::load(folder.path(), None).unwrap();
        assert!(built_in.warning().unwrap().contains("no chat template"));
        assert!(text(None).starts_with("<|im_start|>system\nYou are"));
        write(
            "tokenizer_config.json",
            r#"{"eos_token":{"content":"</s>"},"chat_template":[{"name":"tool_use","template":"no"},{"name":"default","template":"config {{eos_token}}"}]}"#,
        );
        assert_eq!(text(None), "config </s>");
        assert!(ChatTemplate::load(folder.path(), None).unwrap().warning().is_none());
        write("chat_template.json", r#"{"chat_template":"json"}"#);
        assert_eq!(text(None), "json");
        write("chat_template.jinja", "jinja");
        assert_eq!(text(None), "jinja");
        write("mine.jinja", "mine");
        assert_eq!(text(Some(&folder.path().join("mine.jinja"))), "mine");
        let absent = ChatTemplate::load(folder.path(), Some(Path::new("absent.jinja"))).unwrap_err();
        assert_eq!(absent.exit_code(), 66);
        write("two.json", r#"{"chat_template":{"a":"1","b":"2"}}"#);
        let two = ChatTemplate::load(folder.path(), Some(&folder.path().join("two.json"))).unwrap_err();
        assert!(two.to_string().contains("default"), "{two}");
    }
}
