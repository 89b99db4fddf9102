//! A template compiled so that nothing it computes grows without bound.
//!
//! The engine's fuel counts steps and bytes. That isn't enough: values share their parts, so sixty steps of
//! `x = [x, x]` make a value whose text would fill any memory, and to print or compare it is one step; a value nested in
//! itself a hundred thousand times overflows the stack when it is dropped; a namespace put into itself has no end. So a
//! check follows every instruction that makes a value from others: how deep it is, how long its text would be, that no
//! namespace (the only value that changes) is inside, and how late it is. Then whatever is done with a value takes time,
//! memory and stack in proportion to those bounds.

use std::collections::BTreeMap;
use std::time::Instant;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, eval, make_string_output};
use minijinja::machinery::{parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use crate::processor::chat::MAX_RENDERED_BYTES;

/// Most tokens of the template language in one `{{ ... }}` or `{% ... %}`: the engine's work on an expression grows with
/// its length squared.
const MAX_TAG_TOKENS: usize = 1000;
/// Deepest nesting of lists and dicts.
const MAX_DEPTH: usize = 150;
/// Longest text of a value, in bytes as [`Measure`] counts them.
const MAX_TEXT: usize = 8 << 20;
/// Parts of a value that are looked at for one unit of the engine's fuel.
const PARTS_PER_FUEL: usize = 8;

/// The check of a value that was just made. (No template can write a test of this name.)
const MADE: &str = "value!";
/// The check of a value that is about to be kept in a namespace.
const KEPT: &str = "kept!";
/// The one name of a template.
const NAME: &str = "chat_template";

/// Machine code of one template with checks.
pub(super) struct Code<'source> {
    root: Instructions<'source>,
    blocks: BTreeMap<&'source str, Instructions<'source>>,
}

impl<'source> Code<'source> {
    /// Compiles `source`, blocks trimmed as transformers has it.
    pub(super) fn compile(source: &'source str) -> Result<Self, Error> {
        let syntax = || SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        check_tags(source, syntax()?)?;
        let tree = parse(source, NAME, syntax()?)?;
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&tree);
        let (root, blocks) = generator.finish();
        let blocks = blocks.iter().map(|(name, code)| (*name, with_checks(code))).collect();
        Ok(Code { root: with_checks(&root), blocks })
    }

    /// Runs the code in `environment`, which [`add_checks`] has prepared.
    pub(super) fn render(&self, environment: &Environment<'source>, context: Value) -> Result<String, Error> {
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        eval(environment, &self.root, context, &self.blocks, &mut output, AutoEscape::None)?;
        if text.len() > MAX_RENDERED_BYTES {
            return Err(too_large(format!("rendered text exceeds {MAX_RENDERED_BYTES} bytes")));
        }
        Ok(text)
    }
}

/// Makes the checks known to `environment`; they fail after `deadline`.
pub(super) fn add_checks(environment: &mut Environment<'_>, deadline: Instant) {
    environment.add_test(MADE, move |state: &State, value: &Value| check(state, value, false, deadline));
    environment.add_test(KEPT, move |state: &State, value: &Value| check(state, value, true, deadline));
}

fn check(state: &State, value: &Value, kept: bool, deadline: Instant) -> Result<bool, Error> {
    if Instant::now() > deadline {
        return Err(too_large("out of time"));
    }
    if kept && is_namespace(value) {
        return Err(too_large("a namespace cannot be kept in a namespace"));
    }
    let mut measure = Measure { text: 0, parts: 0 };
    measure.add(value, 0)?;
    let mut fuel = measure.parts / PARTS_PER_FUEL;
    if kept {
        // What all of a namespace's values would be as text is bounded, too.
        fuel += measure.text / 64;
    }
    state.consume_fuel(fuel as u64)?;
    Ok(true)
}

/// A value's text and parts, shared ones counted as often as they occur.
struct Measure {
    /// Bytes of the text that printing would give, at least: four for a byte of a string (escapes), 16 for any part.
    text: usize,
    parts: usize,
}

impl Measure {
    fn add(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.parts += 1;
        self.text += 16;
        if self.text > MAX_TEXT {
            return Err(too_large("a value is too large"));
        }
        match value.kind() {
            // Strings by themselves are paid for by the byte.
            ValueKind::String if depth > 0 => self.text += 4 * value.as_str().map_or(0, str::len),
            ValueKind::Bytes if depth > 0 => self.text += 4 * value.as_bytes().map_or(0, <[u8]>::len),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if depth == MAX_DEPTH => {
                return Err(too_large("values are nested too deeply"));
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.add(&item, depth + 1)?;
                }
            }
            ValueKind::Map => {
                if depth > 0 && is_namespace(value) {
                    return Err(too_large("a namespace cannot be part of a list, a dict or a namespace"));
                }
                let object = value.as_object();
                for (key, item) in object.and_then(|object| object.try_iter_pairs()).into_iter().flatten() {
                    self.add(&key, depth + 1)?;
                    self.add(&item, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Most bytes that `value` takes as text.
pub(super) fn longest_text(value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len());
    }
    let mut measure = Measure { text: 0, parts: 0 };
    measure.add(value, 0)?;
    Ok(measure.text)
}

fn is_namespace(value: &Value) -> bool {
    // The type is private to the engine.
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

pub(super) fn too_large(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Refuses tags of more than [`MAX_TAG_TOKENS`]. What is no token is left to the parser to report.
fn check_tags(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let mut tokens = 0;
    // The compiler multiplies constants, several times over, before anything is checked.
    let (mut multiplies, mut product, mut longest) = (false, 1_usize, 1);
    for token in tokenize(source, false, syntax) {
        let Ok((token, span)) = token else { return Ok(()) };
        tokens += 1;
        match token {
            Token::VariableStart | Token::BlockStart => {
                (tokens, multiplies, product, longest) = (0, false, 1, 1);
            }
            Token::Mul => multiplies = true,
            Token::Int(number) => product = product.saturating_mul((number as usize).max(1)),
            Token::Int128(_) => product = usize::MAX,
            Token::Str(text) => longest = longest.max(text.len()),
            Token::String(text) => longest = longest.max(text.len()),
            _ => {}
        }
        if multiplies && product.saturating_mul(longest) > MAX_TEXT {
            let message = format!("line {}: multiplies texts or numbers beyond {MAX_TEXT}", span.start_line);
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        if tokens > MAX_TAG_TOKENS {
            let message = format!("line {}: a tag of more than {MAX_TAG_TOKENS} tokens", span.start_line);
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
    }
    Ok(())
}

/// The same code with a check after every instruction that makes a value from others, and before a value is kept in a
/// namespace.
fn with_checks<'source>(code: &Instructions<'source>) -> Instructions<'source> {
    let count = (0..).take_while(|&at| code.get(at).is_some()).count() as u32;
    // Where each old instruction begins, checks before it included.
    let mut moved = Vec::with_capacity(count as usize + 1);
    let mut next = 0;
    for at in 0..count {
        moved.push(next);
        let (before, after) = code.get(at).map_or((0, 0), |instruction| checks(instruction));
        next += before + 1 + after;
    }
    moved.push(next);
    let to = |target: u32| moved.get(target as usize).copied().unwrap_or(target);

    let mut checked = Instructions::new(code.name(), code.source());
    for at in 0..count {
        let Some(instruction) = code.get(at) else { break };
        let mut add = |instruction| {
            match (code.get_span(at), code.get_line(at)) {
                (Some(span), _) => checked.add_with_span(instruction, span),
                (None, Some(line)) => {
                    checked.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX))
                }
                (None, None) => checked.add(instruction),
            };
        };
        let moved = match instruction.clone() {
            Instruction::Iterate(target) => Instruction::Iterate(to(target)),
            Instruction::Jump(target) => Instruction::Jump(to(target)),
            Instruction::JumpIfFalse(target) => Instruction::JumpIfFalse(to(target)),
            Instruction::JumpIfFalseOrPop(target) => Instruction::JumpIfFalseOrPop(to(target)),
            Instruction::JumpIfTrueOrPop(target) => Instruction::JumpIfTrueOrPop(to(target)),
            Instruction::BuildMacro(name, target, flags) => Instruction::BuildMacro(name, to(target), flags),
            other => other,
        };
        let test = |name| {
            // No slot of the engine's cache of tests.
            let uncached = u8::MAX;
            [Instruction::DupTop, Instruction::PerformTest(name, Some(1), uncached), Instruction::DiscardTop]
        };
        let (before, after) = checks(instruction);
        if before > 0 {
            // The namespace is on top of the value.
            add(Instruction::Swap);
            test(KEPT).into_iter().for_each(&mut add);
            add(Instruction::Swap);
        }
        add(moved);
        if after > 0 {
            test(MADE).into_iter().for_each(&mut add);
        }
    }
    checked
}

/// How many instructions [`with_checks`] puts before and after an instruction.
fn checks(instruction: &Instruction<'_>) -> (u32, u32) {
    use Instruction as I;
    match instruction {
        I::SetAttr(_) => (5, 0),
        I::BuildMap(_) | I::BuildList(_) | I::BuildTuple(_) | I::Add | I::Mul => (0, 3),
        I::ApplyFilter(..) | I::CallFunction(..) | I::CallMethod(..) | I::CallObject(_) => (0, 3),
        // Nothing new; but to compare large values takes long, so the clock is looked at.
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => (0, 3),
        I::StringConcat | I::PerformTest(..) | I::Slice => (0, 3),
        // What the compiler has computed from constants.
        I::LoadConst(value) if value.as_str().is_some_and(|text| text.len() > MAX_TEXT) => (0, 3),
        _ => (0, 0),
    }
}
