//! What goes to the terminal: text without control characters.

use std::borrow::Cow;
use std::fmt::Write;

/// [`escape_control`] for a message, which is one line of bounded length: line feeds are escaped, too, and what a file
/// made very long is cut.
pub fn escape_line(text: &str) -> String {
    const LONGEST: usize = 4000;
    let mut line = escape_control(text).replace('\n', "\\n");
    if let Some((cut, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_sequences_become_visible() {
        assert_eq!(escape_control("\u{1b}[2Jhi\r\u{202e}x\n\ty"), "\\u{1b}[2Jhi\\u{d}\\u{202e}x\n\ty");
        assert!(matches!(escape_control("größe 3°"), Cow::Borrowed(_)));
        assert_eq!(escape_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(escape_line(&"é".repeat(5000)).chars().count(), 4003);
    }
}
