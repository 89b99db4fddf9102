//! The chat template of a checkpoint: from messages to the text that is tokenised.
//!
//! A template comes with the model and is not trusted: it cannot read files or reach anything but its variables, and a
//! rendering is bounded in steps, time, memory, stack and output ([`MAX_RENDER_TIME`], [`MAX_RENDERED_BYTES`]).

mod bounded;
mod environment;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use minijinja::Value as JinjaValue;
use minijinja::value::Serde;
use serde_json::{Map, Value};

use self::bounded::{Code, add_checks};
use self::environment::{transformers_environment, without_generation_tags};
use crate::error::{Error, Result};
use crate::files::{file_inside, read_bounded, read_json_object};

/// Longest time one rendering may take.
pub const MAX_RENDER_TIME: Duration = Duration::from_secs(1);
/// Longest text that one rendering may give.
pub const MAX_RENDERED_BYTES: usize = 4 << 20;
/// Longest template that is compiled, a few times what the longest published ones have.
pub const MAX_TEMPLATE_BYTES: usize = 64 << 10;
/// Room for the interpreter's recursion (limited to 500 levels) and the parser's (one `elif` has 9 bytes), in builds with
/// large stack frames. Only what is used takes memory.
const STACK_BYTES: usize = (32 << 20) + (MAX_TEMPLATE_BYTES << 10);

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

/// A chat template that compiles, with the variables its folder gives it.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    /// `source` in the dialect of the engine.
    engine_source: Arc<str>,
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
    /// [`Error::Missing`] where `chosen` is not there; [`Error::Content`] where a file is a link out of the folder, not
    /// UTF-8, not JSON, holds no template, or the template has a syntax error (with its line); [`Error::Io`].
    pub fn load(folder: &Path, chosen: Option<&Path>) -> Result<Self> {
        let config = match file_inside(folder, "tokenizer_config.json")? {
            Some(path) => Some((read_json_object(&path)?, path)),
            None => None,
        };
        let special_tokens = config.as_ref().map(|(config, _)| special_tokens(config)).unwrap_or_default();
        let mut found = None;
        if let Some(path) = chosen {
            found = Some(template_file(path).map_err(|error| match error {
                Error::Missing { path, .. } => {
                    Error::missing(path, "chat template not found; give the path of a Jinja file")
                }
                other => other,
            })?);
        }
        for name in ["chat_template.jinja", "chat_template.json"] {
            if found.is_none()
                && let Some(path) = file_inside(folder, name)?
            {
                found = Some(template_file(&path)?);
            }
        }
        if found.is_none()
            && let Some((config, path)) = config
        {
            found = template_value(&config, &path)?.map(|source| (source, path));
        }
        let (warning, (source, path)) = match found {
            Some(found) => (None, found),
            None => (
                Some(format!(
                    "{}: no chat template in this folder; using Qwen2-VL's own (give one with --chat_template)",
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
        let engine_source: Arc<str> = without_generation_tags(&source)?.into();
        let compiled = Arc::clone(&engine_source);
        on_bounded_thread(path, move || Code::compile(&compiled).map(drop))?;
        Ok(ChatTemplate {
            source,
            engine_source,
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
    /// exceeded. After a time-out the rendering's thread ends by itself, at the next check of a value.
    pub fn render(&self, messages: &Value, variables: &Map<String, Value>) -> Result<String> {
        let mut context = Map::new();
        context.insert("tools".into(), Value::Null);
        context.insert("documents".into(), Value::Null);
        for (name, value) in self.special_tokens.iter().chain(variables) {
            context.insert(name.clone(), value.clone());
        }
        context.insert("messages".into(), messages.clone());
        let context = JinjaValue::from(Serde(&context));

        let source = Arc::clone(&self.engine_source);
        on_bounded_thread(&self.path, move || {
            let mut environment = transformers_environment();
            add_checks(&mut environment, Instant::now() + MAX_RENDER_TIME);
            Code::compile(&source)?.render(&environment, context)
        })
    }
}

/// Runs the engine on a thread of its own: a wall-clock limit cannot be had from it, and the parser recurses on `elif`,
/// so that the stack has to grow with the longest template.
fn on_bounded_thread<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> std::result::Result<T, minijinja::Error> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("chat-template".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // The receiver is gone only after a time-out, when nobody wants the result.
            let _ = sender.send(work());
        })
        .map_err(|error| Error::io(path, "start the thread that renders it", error))?;
    let fail = |message: String| Err(Error::content(path, message));
    match receiver.recv_timeout(MAX_RENDER_TIME) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => fail(describe(&error)),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            fail(format!("chat template took longer than {} s; simplify it", MAX_RENDER_TIME.as_secs()))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            fail("the template engine crashed on this chat template; simplify it".into())
        }
    }
}

/// One line: "chat template, line 3: unknown filter: ... ".
fn describe(error: &minijinja::Error) -> String {
    /// Longest message: `raise_exception` may be given any text.
    const LONGEST: usize = 400;
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let cause = std::error::Error::source(error).map(|cause| format!(" ({cause})")).unwrap_or_default();
    let mut text = format!("chat template{line}: {}{detail}{cause}", error.kind());
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

/// The template in a Jinja or JSON file, with the file's path.
fn template_file(path: &Path) -> Result<(String, PathBuf)> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return match template_value(&read_json_object(path)?, path)? {
            Some(source) => Ok((source, path.to_path_buf())),
            None => Err(Error::content(path, "no key chat_template in this file")),
        };
    }
    match String::from_utf8(read_bounded(path, MAX_TEMPLATE_BYTES as u64)?) {
        Ok(source) => Ok((source, path.to_path_buf())),
        Err(error) => Err(Error::content(path, format!("chat template is not UTF-8: {error}"))),
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
mod tests;
