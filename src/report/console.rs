//! What goes to the terminal: text without control characters.

use std::borrow::Cow;
use std::fmt::Write;

/// Longest message on one line, in characters.
const MAX_LINE_CHARS: usize = 4000;

/// Characters that drive a terminal or make text look like other text: controls (of Latin-1 too), line and paragraph
/// separators, and the marks that reorder text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Makes text of a model, a dataset or a path safe to print: hidden characters, line feed and tab excepted, become visible
/// escapes, so that nothing printed can drive the terminal.
pub fn escape_control(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_hidden(c) && c != '\n' && c != '\t', |c| format!("\\u{{{:x}}}", u32::from(c)))
}

/// Makes a message that is one line whatever names it holds: as [`escape_control`], line feed and tab included; of more
/// than 4000 characters the middle is left out.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let line = escape(text, is_hidden, |c| c.escape_default().to_string());
    let count = line.chars().count();
    if count <= MAX_LINE_CHARS {
        return line;
    }
    // What went wrong stands first, how to mend it last.
    let (head, tail) = (MAX_LINE_CHARS * 3 / 4, MAX_LINE_CHARS / 4);
    let start: String = line.chars().take(head).collect();
    let end: String = line.chars().skip(count - tail).collect();
    format!("{start} [{} characters left out] {end}", count - head - tail).into()
}

/// Makes serialised JSON safe to show: hidden characters, which JSON allows in texts beyond the first 32, become JSON's
/// own escapes. The value stays the same.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    // All of them have four hexadecimal digits at most.
    escape(json, is_hidden, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escape(text: &str, hides: impl Fn(char) -> bool, shown: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&hides) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hides(c) {
            // Writing to a String cannot fail.
            let _ = escaped.write_str(&shown(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_80_terminal_sequences_become_visible() {
        assert_eq!(escape_control("\u{1b}[2Jhi\r\u{202e}x\n\ty"), "\\u{1b}[2Jhi\\u{d}\\u{202e}x\n\ty");
        assert!(matches!(escape_control("größe 3°"), Cow::Borrowed(_)));
        // The escape sequence's one-character form, which terminals obey too.
        assert_eq!(escape_control("\u{9b}2J\u{61c}\u{2028}"), "\\u{9b}2J\\u{61c}\\u{2028}");
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\nb\tc\r\u{1b}[1m"), "a\\nb\\tc\\r\\u{1b}[1m");
        assert!(matches!(one_line("größe 3°"), Cow::Borrowed(_)));
        let long = format!("bad name {} not found", "ä".repeat(1 << 20));
        let line = one_line(&long);
        assert!(line.chars().count() < 4100, "{}", line.len());
        assert!(line.starts_with("bad name ä") && line.ends_with("ä not found"));
        assert!(line.contains("[1044595 characters left out]"), "{line}");
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({"a\u{9b}": "\u{1b}[2J\u{7f}\u{202e}é\n"});
        let text = value.to_string();
        let safe = escape_json(&text);
        assert!(!safe.chars().any(is_hidden) && safe.contains("\\u009b") && safe.contains('é'), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
