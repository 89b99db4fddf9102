//! What goes to the terminal: text without control characters.

use std::borrow::Cow;
use std::fmt::Write;

/// Makes text of a model, a dataset or a path safe to print: control characters (line feed and tab excepted) and the
/// Unicode marks that reorder text become visible escapes, so that nothing printed can drive the terminal.
pub fn escape_control(text: &str) -> Cow<'_, str> {
    let hides = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hides) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hides(c) {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "\\u{{{:x}}}", c as u32);
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Longest message that is shown whole, in characters: room for a few long paths and names.
const MAX_MESSAGE_CHARS: usize = 4000;

/// A message that may quote a model, a dataset or a path as one line: [`escape_control`], with line feeds and tabs escaped
/// too, and the middle left out where it is overlong (what is wrong stands at its beginning, the mend at its end).
pub fn one_line(message: &str) -> String {
    let line = escape_control(message.trim_end()).replace('\n', "\\n").replace('\t', "\\t");
    let Some((cut, _)) = line.char_indices().nth(MAX_MESSAGE_CHARS) else { return line };
    let half = |(at, _): (usize, char)| at;
    let head = line.char_indices().nth(MAX_MESSAGE_CHARS / 2).map_or(cut, half);
    let tail = line.char_indices().rev().nth(MAX_MESSAGE_CHARS / 2).map_or(head, half);
    format!("{} [...] {}", &line[..head], &line[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_of_bounded_length() {
        assert_eq!(one_line("a: `x\n\ty\u{1b}` is bad; mend it\n"), "a: `x\\n\\ty\\u{1b}` is bad; mend it");
        let long = one_line(&format!("begin {} end", "é\n".repeat(1 << 20)));
        assert!(long.starts_with("begin é\\n") && long.ends_with("é\\n end") && long.contains(" [...] "));
        assert!(long.chars().count() < 4100, "{}", long.chars().count());
    }

    #[test]
    fn terminal_sequences_become_visible() {
        assert_eq!(escape_control("\u{1b}[2Jhi\r\u{202e}x\n\ty"), "\\u{1b}[2Jhi\\u{d}\\u{202e}x\n\ty");
        assert!(matches!(escape_control("größe 3°"), Cow::Borrowed(_)));
    }
}
