//! Completions as Markdown tables, in which no text of a model or dataset can be anything but text.

use std::fmt::Write as _;

use crate::report::console::escape_control;
use crate::report::record::CompletionRecord;

/// Most characters shown of a text; the whole of it is in `completions.jsonl`.
const SHOWN_CHARS: usize = 4000;

/// Text as a cell shows it: what Markdown, HTML or a table would read as its own become character references.
fn cell(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let mut cell = String::with_capacity(shown.len());
    for c in escape_control(&shown).chars() {
        match c {
            '\n' => cell.push_str("<br>"),
            '&' | '<' | '>' | '"' | '\'' | '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '~' | '$' | ':' => {
                // Writing to a String cannot fail, here and below.
                let _ = write!(cell, "&#{};", u32::from(c));
            }
            _ => cell.push(c),
        }
    }
    let left_out = text.chars().count().saturating_sub(SHOWN_CHARS);
    if left_out > 0 {
        let _ = write!(cell, " ({left_out} characters left out)");
    }
    cell
}

fn number(value: f64) -> String {
    if value.is_nan() { "–".to_owned() } else { format!("{value:.3}") }
}

/// One group: its prompt and reference answer, and a row for each completion.
pub fn group(completions: &[CompletionRecord]) -> String {
    let Some(first) = completions.first() else { return String::new() };
    let mut text = format!("Prompt: {}\n\n", cell(&first.prompt));
    if let Some(solution) = &first.solution {
        let _ = write!(text, "Reference: {}\n\n", cell(solution));
    }
    text += "| reward | advantage |";
    for (name, _) in &first.rewards {
        let _ = write!(text, " {} |", cell(name));
    }
    text += " parsed | tokens | completion |\n|";
    text += &" --- |".repeat(5 + first.rewards.len());
    for record in completions {
        let _ = write!(text, "\n| {} | {:+.3} |", number(record.reward), record.advantage);
        for (_, value) in &record.rewards {
            let _ = write!(text, " {} |", number(*value));
        }
        let parsed = record.parsed.as_deref().unwrap_or("–");
        let _ = write!(text, " {} | {} | {} |", cell(parsed), record.length, cell(&record.completion));
    }
    text
}

/// Text that keeps its lines and means nothing: an indented block.
pub fn block(text: &str) -> String {
    escape_control(text).lines().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_80_texts_stay_texts() {
        let record = CompletionRecord {
            prompt: "# [a](javascript:x) ![](http://b)\n|x|".into(),
            completion: "<script>`*_~\\\u{1b}[2J".into(),
            solution: Some("a|b".into()),
            rewards: vec![("accuracy".into(), f64::NAN)],
            parsed: None,
            length: 3,
            reward: 1.0,
            advantage: -0.5,
            ..CompletionRecord::default()
        };
        let text = group(&[record.clone(), record]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("Prompt: # &#91;a&#93;(javascript&#58;x) !&#91;&#93;(http&#58;//b)<br>")
        );
        assert_eq!(lines[2], "Reference: a&#124;b");
        assert_eq!(lines[4], "| reward | advantage | accuracy | parsed | tokens | completion |");
        assert_eq!(
            lines[6],
            "| 1.000 | -0.500 | – | – | 3 | &#60;script&#62;&#96;&#42;&#95;&#126;&#92;&#92;u{1b}&#91;2J |"
        );
        assert_eq!(lines.len(), 8);
        assert!(lines[4..].iter().all(|line| line.matches('|').count() == 7));
        assert_eq!(block("a = \"<b>\"\nc"), "    a = \"<b>\"\n    c\n");
    }

    #[test]
    fn long_texts_are_cut() {
        let text = cell(&"é".repeat(5000));
        assert!(text.ends_with("é (1000 characters left out)"), "{}", &text[7900..]);
    }
}
