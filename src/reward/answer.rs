//! Finding the answer in a text.

use std::sync::LazyLock;

use regex::Regex;

/// How much of the end of an untagged text is searched for its last number, in bytes.
const TAIL_BYTES: usize = 4096;

/// The answer that `completion` gives: the text of the first `<answer>..</answer>` (which may
/// span lines); else of the last `\boxed{..}`; else the last number in the last 4 KiB; else
/// the whole text. Trimmed.
///
/// Deviation from R1-V, whose checker takes the last number of the *whole* text first, and so
/// grades the thinking whenever the tags hug the answer.
pub fn extract(completion: &str) -> &str {
    tagged(completion)
        .or_else(|| boxed(completion))
        .or_else(|| numbers(tail(completion)).last().copied())
        .unwrap_or(completion)
        .trim()
}

/// The answer that a dataset's `solution` holds: tag, box, or the whole text. Trimmed.
pub(super) fn extract_reference(solution: &str) -> &str {
    tagged(solution).or_else(|| boxed(solution)).unwrap_or(solution).trim()
}

fn tagged(text: &str) -> Option<&str> {
    let inner = &text[text.find("<answer>")? + "<answer>".len()..];
    Some(&inner[..inner.find("</answer>")?])
}

/// The content of the last `\boxed{..}`, braces balanced.
pub(super) fn boxed(text: &str) -> Option<&str> {
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

/// The plain numbers of `text`: integers, decimals, thousands in groups of three, `a/b`.
///
/// A sign belongs to a number unless a letter, digit or closing bracket touches it (`10-3`).
/// Digits that are part of a word (`x2`) or an exponent (`cm^2`, `cm^{2}`) are no numbers.
pub(super) fn numbers(text: &str) -> Vec<&str> {
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
        found.push(&text[start..number.end()]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_goes_first() {
        let cases = [
            ("<think>I count 7</think>\n<answer>5</answer>", "5"),
            ("<think>7</think><answer>\n 5 \n</answer> or 6", "5"),
            ("<answer>1</answer><answer>2</answer>", "1"),
            ("<answer></answer> 4", ""),
            ("so \\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
            ("<answer>3</answer> \\boxed{4}", "3"),
            ("\\boxed{4", "4"),
            ("<answer>3", "3"),
            ("first 3, then -4.", "-4"),
            ("an area of 20 cm^2", "20"),
            ("10-3", "3"),
            ("about 1,234.50 in all", "1,234.50"),
            ("three quarters: 3/4", "3/4"),
            ("  yes ", "yes"),
            ("", ""),
        ];
        for (text, answer) in cases {
            assert_eq!(extract(text), answer, "{text:?}");
        }
        assert_eq!(extract_reference("<answer> 145° </answer>"), "145°");
        assert_eq!(extract_reference(" 3 of 4 "), "3 of 4");
    }

    #[test]
    fn numbers_and_their_signs() {
        assert_eq!(numbers("2-3, −4 and (5)-6; x2 cm^{3} .5 7."), ["2", "3", "−4", "5", "6", ".5", "7"]);
        assert_eq!(numbers("1,2 and 1,000,000"), ["1", "2", "1,000,000"]);
    }

    #[test]
    fn hostile_text_takes_linear_time() {
        let start = std::time::Instant::now();
        for piece in ["<answer>", "\\boxed{", "{", "1,", "1/", "9", "\u{2212}"] {
            extract(&piece.repeat(1_000_000 / piece.len()));
        }
        assert!(start.elapsed().as_secs_f64() < 2.0, "{:?}", start.elapsed());
    }
}
