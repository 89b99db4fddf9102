//! Finding the answer in a text.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::read::{Reading, undressed};

/// How much of the end of an untagged text is searched, in bytes.
const TAIL_BYTES: usize = 4096;

/// Longest formula around the last number that is looked at, in bytes.
const MAX_FORMULA_BYTES: usize = 256;

/// Longest answer in words behind "the answer is", in bytes.
const MAX_WORDS_BYTES: usize = 40;

/// The answer that `completion` gives: the text of the first `<answer>..</answer>` (which may
/// span lines); else of the last `\boxed{..}`; else what stands behind the last "answer is", "answer:" or "####" of its last
/// 4 KiB, to the end of the sentence; else the whole text if it is a formula or a choice; else the last number of the last
/// 4 KiB, with the formula in which it stands; else the whole text. Trimmed.
///
/// Deviation from R1-V, whose checker takes the last number of the *whole* text first, and so
/// grades the thinking whenever the tags hug the answer.
pub fn extract(completion: &str) -> &str {
    tagged(completion)
        .or_else(|| boxed(completion))
        .or_else(|| stated(completion))
        .or_else(|| formula(completion))
        .or_else(|| last_number(completion))
        .unwrap_or(completion)
        .trim()
}

/// The answer that a dataset's `solution` holds: tag, box, or the whole text. Trimmed.
pub(in crate::reward) fn extract_reference(solution: &str) -> &str {
    tagged(solution).or_else(|| boxed(solution)).unwrap_or(solution).trim()
}

fn tagged(text: &str) -> Option<&str> {
    let inner = &text[text.find("<answer>")? + "<answer>".len()..];
    Some(&inner[..inner.find("</answer>")?])
}

/// The content of the last `\boxed{..}`, braces balanced.
pub(in crate::reward) fn boxed(text: &str) -> Option<&str> {
    let inner = &text[text.rfind("\\boxed{")? + "\\boxed{".len()..];
    let mut depth = 1usize;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inner[..at]);
        }
    }
    None
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// What stands behind the last "answer is", "answer:" or GSM8K's "####", to the end of the sentence; `None` where that is prose.
pub(super) fn stated(text: &str) -> Option<&str> {
    static ANSWER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)(?:\banswer(?:\*\*)?(?:\s+is\b\s*:?|\s*[:：])|####)(?:\*\*)?\s*")
            .expect("the pattern is constant")
    });
    let tail = tail(text);
    let rest = &tail[ANSWER.find_iter(tail).last()?.end()..];
    let rest = rest.split('\n').next().unwrap_or(rest);
    let sentence = rest.find(". ").map_or(rest, |end| &rest[..end]);
    let answer = undressed(sentence);
    let reading = Reading::literally(answer);
    let is_short = answer.len() <= MAX_WORDS_BYTES && !answer.contains(|c: char| c.is_ascii_digit());
    (!answer.is_empty() && (reading.says_something() || reading.has_value() || is_short)).then_some(answer)
}

/// The whole of a short text that is a formula or a choice.
fn formula(text: &str) -> Option<&str> {
    let text = undressed(text);
    (text.len() <= MAX_FORMULA_BYTES && Reading::literally(text).says_something()).then_some(text)
}

/// The last number of the last 4 KiB, with the formula in which it stands: `2\sqrt{3}` is not 3.
fn last_number(text: &str) -> Option<&str> {
    let tail = tail(text);
    let number = numbers(tail).pop()?;
    let (before, behind) = (&tail[..number.start], &tail[number.end..]);
    // Between dollar signs on one line, or between white space.
    let dollars = before.rfind('$').zip(behind.find('$'));
    let dollars = dollars.map(|(start, end)| start + 1..number.end + end);
    let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let end = behind.find(char::is_whitespace).map_or(tail.len(), |at| number.end + at);
    let is_formula = |formula: &str| {
        formula.len() <= MAX_FORMULA_BYTES
            && !formula.contains('\n')
            && Reading::literally(undressed(formula)).is_mathematics()
    };
    let spaces = (start..tail.len()).find(|at| tail.is_char_boundary(*at)).map(|start| start..end);
    let formula =
        dollars.into_iter().chain(spaces).map(|range| undressed(&tail[range])).find(|f| is_formula(f));
    Some(formula.unwrap_or(&tail[number]))
}

/// Where the plain numbers of `text` are: integers, decimals, thousands in groups of three, `a/b`.
///
/// A sign belongs to a number unless a letter, digit or closing bracket touches it (`10-3`).
/// Digits that are part of a word (`x2`) or an exponent (`cm^2`, `cm^{2}`) are no numbers.
fn numbers(text: &str) -> Vec<Range<usize>> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:\s?/\s?[0-9]+)?|\.[0-9]+")
            .expect("the pattern is constant")
    });
    let mut found = Vec::new();
    for number in NUMBER.find_iter(text) {
        let before = &text[..number.start()];
        let last = before.chars().next_back();
        if last.is_some_and(|c| c.is_alphabetic() || c == '_' || c == '^') || before.ends_with("^{") {
            continue;
        }
        let mut start = number.start();
        if let Some(sign) = last.filter(|c| ['-', '+', '\u{2212}'].contains(c)) {
            let unsigned = start - sign.len_utf8();
            let joins = |c: char| c.is_alphanumeric() || [')', ']', '}'].contains(&c);
            if !text[..unsigned].chars().next_back().is_some_and(joins) {
                start = unsigned;
            }
        }
        found.push(start..number.end());
    }
    found
}
