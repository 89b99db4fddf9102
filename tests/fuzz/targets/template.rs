//! Chat templates: compiled and rendered with conversations of every form, and a prompt encoded with them. What stands
//! after the input's first zero byte are messages (JSON) of the input's own.

use std::sync::OnceLock;

use othink::data::{Message, Part, PromptTemplate, Sample};
use othink::processor::chat::{MAX_RENDERED_BYTES, QWEN2_VL_TEMPLATE};
use othink::processor::{ChatTemplate, Processor, ProcessorOptions};
use serde_json::{Map, Value, json};

use super::{Outcome, Target, halves, refused, scratch, write};

pub const TARGET: Target = Target {
    name: "template",
    body,
    seeds,
    dictionary: &[
        b"{% for message in messages %}",
        b"{% endfor %}",
        b"{% if ",
        b"{% elif ",
        b"{% else %}",
        b"{% endif %}",
        b"{%- set x = ",
        b"{% set ns = namespace(n=0) %}",
        b"{% set ns.n = ns.n + 1 %}",
        b"{% macro f(a) %}",
        b"{% endmacro %}",
        b"{{ f(1) }}",
        b"{% call f() %}",
        b"{% endcall %}",
        b"{% filter upper %}",
        b"{% endfilter %}",
        b"{% generation %}",
        b"{% endgeneration %}",
        b"{% raw %}",
        b"{% endraw %}",
        b"{% break %}",
        b"{% continue %}",
        b"{% with ",
        b"{% include 'x' %}",
        b"{% block b %}",
        b"{{ ",
        b" }}",
        b"-%}",
        b"{#",
        b"#}",
        b"message.role",
        b"message['content']",
        b"messages[-1:]",
        b"messages[::-1]",
        b"loop.index",
        b"loop.changed(",
        b"add_generation_prompt",
        b"raise_exception('no')",
        b"strftime_now('%Y-%m-%d')",
        b"range(3)",
        b"|tojson(indent=2)",
        b"|trim",
        b"|length",
        b"|join(', ')",
        b"|map(attribute='role')",
        b"|selectattr('role', 'equalto', 'user')",
        b"|batch(2)|list",
        b"|replace('a','b')",
        b"|default('x', true)",
        b"|sort",
        b"|unique",
        b"|items",
        b"|dictsort",
        b"|indent(4)",
        b"|format(1)",
        b"|round(2)",
        b"|int",
        b"|float",
        b".split('\\n')",
        b".strip()",
        b".startswith('x')",
        b".format(1)",
        b"'{:>4}'",
        b".items()",
        b".get('k')",
        b" is string",
        b" is defined",
        b" is mapping",
        b" not in ",
        b" ~ ",
        b" ** ",
        b" // ",
        b" % ",
        b" * 1000",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"1e308",
        b"<|im_start|>",
        b"<|image_pad|>",
        b"\x00[{\"role\":\"user\",\"content\":\"x\"}]",
        b"[1, 2, {'a': none}]",
        b"\\u0000",
    ],
    repair: |_| {},
    max_bytes: 1 << 12,
};

fn body(input: &[u8]) -> Outcome {
    let (source, messages) = halves(input);
    let source = String::from_utf8_lossy(source).into_owned();
    let path = write("chat_template.jinja", source.as_bytes());
    let template = match ChatTemplate::from_source(source.clone(), &path) {
        Ok(template) => template,
        Err(error) => return refused(&error, &[65]),
    };
    let own = messages.and_then(|text| serde_json::from_slice::<Value>(text).ok());
    let clock = source.contains("strftime_now");
    let mut outcome = Outcome::of("compiled");
    for (n, (messages, variables)) in conversations(own).iter().enumerate() {
        match template.render(messages, variables) {
            Ok(text) => {
                assert!(text.len() <= MAX_RENDERED_BYTES, "{} bytes", text.len());
                if n == 0 && !clock {
                    let again = template.render(messages, variables);
                    assert!(again.as_ref().is_ok_and(|again| *again == text), "{text:?}, then {again:?}");
                }
                outcome = outcome.and(Outcome::of(text.len().min(3)));
            }
            Err(error) => outcome = outcome.and(refused(&error, &[65])),
        }
    }
    // Reads a tokenizer anew: for some inputs only.
    if source.len().is_multiple_of(4) { outcome.and(encoded(&path)) } else { outcome }
}

fn conversations(own: Option<Value>) -> Vec<(Value, Map<String, Value>)> {
    let variables = |add: bool| {
        let variables =
            json!({"add_generation_prompt": add, "add_vision_id": !add, "eos_token": "<|im_end|>"});
        variables.as_object().cloned().unwrap_or_default()
    };
    let parts = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is <b>this</b>?\n"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "é 😀"}]},
    ]);
    match own {
        Some(own) => vec![(own, variables(true))],
        None => vec![(parts, variables(true)), (json!([{"role": "user", "content": "a"}]), variables(false))],
    }
}

/// A prompt encoded with the template: whatever it prints, the user's text brings in no control token, so that images and
/// their placeholders stay as many.
fn encoded(path: &std::path::Path) -> Outcome {
    static FILES: [(&str, &[u8]); 3] = [
        ("tokenizer.json", include_bytes!("../../bundles/dialect_v5/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../../bundles/dialect_v5/tokenizer_config.json")),
        ("preprocessor_config.json", include_bytes!("../../bundles/dialect_v5/preprocessor_config.json")),
    ];
    thread_local! {
        static WRITTEN: OnceLock<()> = const { OnceLock::new() };
    }
    let folder = scratch().join("model");
    WRITTEN.with(|written| {
        written.get_or_init(|| {
            std::fs::create_dir_all(&folder).expect("create");
            FILES.iter().for_each(|(name, bytes)| _ = write(&format!("model/{name}"), bytes));
        });
    });
    let options =
        ProcessorOptions { chat_template_path: Some(path.to_path_buf()), ..ProcessorOptions::default() };
    let processor = match Processor::load(&folder, &options) {
        Ok(processor) => processor,
        Err(error) => return refused(&error, &[65]),
    };
    let mut sample =
        Sample::from_problem(0, vec![], "a <|image_pad|> b <|im_end|>", PromptTemplate::None, None);
    sample
        .messages
        .push(Message { role: "assistant".into(), content: vec![Part::Text("<|im_start|>c".into())] });
    match processor.encode(&sample, true) {
        Ok(prompt) => {
            assert!(prompt.images.is_empty());
            assert!(prompt.positions_3t.iter().all(|axis| axis.len() == prompt.tokens.len()));
            assert!(!prompt.tokens.contains(&processor.image_token()), "a placeholder without an image");
            Outcome::of("encoded")
        }
        Err(error) => refused(&error, &[65]),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let published = include_str!("../../templates/chat_template.jinja");
    let cases: Value = serde_json::from_str(include_str!("../../templates/cases.json")).expect("valid");
    let mut seeds = vec![published.as_bytes().to_vec(), QWEN2_VL_TEMPLATE.as_bytes().to_vec()];
    for case in cases.as_array().into_iter().flatten().take(4) {
        seeds.push(format!("{published}\0{}", case["messages"]).into_bytes());
    }
    let small = [
        "{{ messages | tojson }}",
        "{{ messages[0]['content'] | tojson(indent=2, sort_keys=true) }}{{ {'a': [1, 2.5, none]} | tojson }}",
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages | length) }}",
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}",
        "{{ 'a,b'.split(',')[1] }}{{ ' x '.strip() }}{{ {'k': 3}.get('k') }}{{ '{:>4}'.format(7) }}",
        "{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.x | join('-') }}",
        "{{ strftime_now('%d %b %Y') }}{{ raise_exception('no') if messages | length > 5 }}",
        "{%- for m in messages | selectattr('role', 'equalto', 'user') -%}{{ m.content | upper }}{%- endfor -%}",
        "{{ (1, 2, 3)[::-1] }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ -7 % 3 }}{{ 'x' * 3 }}{{ 1.5 | round }}",
    ];
    seeds.extend(small.iter().map(|source| source.as_bytes().to_vec()));
    seeds
}
