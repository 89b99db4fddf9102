//! `report.html`: one file without scripts or outside references, readable years later from a mail attachment.

use std::fmt::Write as _;
use std::path::Path;

use super::console::escape_control;
use super::jsonl::{Row, for_each_row};
use super::record::CompletionRecord;
use crate::checkpoint::replace_file;
use crate::disk::SystemDisk;
use crate::error::Result;

mod chart;
pub mod comparison;
mod gallery;

/// Everything the report shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunSummary {
    /// Heading of the page.
    pub title: String,
    /// Name and value of what identifies the run: model, dataset, seed, steps, wall time.
    pub facts: Vec<(String, String)>,
    /// Accuracies to compare, in the order to show.
    pub accuracies: Vec<Accuracy>,
    /// Rows of the SFT run's `metrics.jsonl`; empty without SFT.
    pub sft: Vec<Row>,
    /// Rows of the GRPO run's `metrics.jsonl`; empty without GRPO.
    pub grpo: Vec<Row>,
    /// Rows of the run's `eval_metrics.jsonl`; empty without evaluations.
    pub evaluations: Vec<Row>,
    /// Completions to show, as [`sample_completions`] picks them.
    pub completions: Vec<CompletionRecord>,
    /// The resolved config.
    pub config: String,
}

/// One accuracy of the comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Whose: `majority`, `blind`, `start`, `SFT`, `GRPO`.
    pub name: String,
    /// Share of held-out rows answered correctly, from 0 to 1.
    pub accuracy: f64,
    /// What it means, in a few words.
    pub note: String,
}

/// Writes the report to `path`, through a temporary file beside it.
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io) when the disk refuses. An image that cannot be read is shown as its name.
pub fn write(path: impl AsRef<Path>, summary: &RunSummary) -> Result<()> {
    replace_file(&SystemDisk, path.as_ref(), render(summary).as_bytes())
}

/// Picks completions to show from a `completions.jsonl`: whole groups of `prompts` prompts at the first, the middle and
/// the last step logged.
///
/// # Errors
/// As [`for_each_row`].
pub fn sample_completions(path: impl AsRef<Path>, prompts: usize) -> Result<Vec<CompletionRecord>> {
    let path = path.as_ref();
    let mut steps = std::collections::BTreeSet::new();
    for_each_row(path, |record: CompletionRecord| {
        steps.insert(record.step);
    })?;
    let steps: Vec<usize> = steps.into_iter().collect();
    let chosen: Vec<usize> = match steps.len() {
        0 => return Ok(Vec::new()),
        count => vec![steps[0], steps[count / 2], steps[count - 1]],
    };
    let mut shown: Vec<(usize, usize)> = Vec::new();
    let mut completions = Vec::new();
    for_each_row(path, |record: CompletionRecord| {
        let group = (record.step, record.prompt_index);
        let full = || shown.iter().filter(|(step, _)| *step == record.step).count() >= prompts;
        if !chosen.contains(&record.step) || (!shown.contains(&group) && full()) {
            return;
        }
        if !shown.contains(&group) {
            shown.push(group);
        }
        completions.push(record);
    })?;
    Ok(completions)
}

/// The page as text.
pub fn render(summary: &RunSummary) -> String {
    page(
        &summary.title,
        &summary.config,
        |header| facts(header, &summary.facts),
        |main| {
            accuracies(main, &summary.accuracies);
            section(main, "GRPO", &chart::grpo_cards(&summary.grpo, &summary.evaluations));
            section(main, "Supervised fine-tuning", &chart::sft_cards(&summary.sft, &summary.evaluations));
            gallery::write(main, &summary.completions);
        },
    )
}

/// A whole page around what `header` and `main` append, with the resolved config at its end.
fn page(
    title: &str,
    config: &str,
    header: impl FnOnce(&mut String),
    main: impl FnOnce(&mut String),
) -> String {
    let mut page = String::new();
    let title = escape(title);
    page += "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    // Even text that got past the escaping could load or run nothing.
    page += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; img-src data:\">\n";
    page += &format!(
        "<title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        include_str!("html/style.css")
    );
    page += &format!("<header><h1>{title}</h1>\n");
    header(&mut page);
    page += "</header>\n<main>\n";
    main(&mut page);
    if !config.is_empty() {
        page += &format!(
            "<section><details><summary>Resolved config</summary><pre>{}</pre></details></section>\n",
            escape(config)
        );
    }
    page += "</main>\n</body>\n</html>\n";
    page
}

fn facts(page: &mut String, facts: &[(String, String)]) {
    if facts.is_empty() {
        return;
    }
    page.push_str("<dl class=\"facts\">");
    for (name, value) in facts {
        // Writing to a String cannot fail, here and below.
        let _ = write!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    page.push_str("</dl>\n");
}

fn accuracies(page: &mut String, accuracies: &[Accuracy]) {
    if accuracies.is_empty() {
        return;
    }
    page.push_str("<section><h2>Accuracy on held-out images</h2>\n<table class=\"accuracies\"><tbody>\n");
    for Accuracy { name, accuracy, note } in accuracies {
        let percent = 100.0 * accuracy.clamp(0.0, 1.0);
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{percent:.1} %</td>\
             <td class=\"bar\"><div style=\"width:{percent:.1}%\"></div></td><td class=\"note\">{}</td></tr>",
            escape(name),
            escape(note)
        );
    }
    page.push_str("</tbody></table></section>\n");
}

fn section(page: &mut String, title: &str, cards: &[String]) {
    if cards.is_empty() {
        return;
    }
    let _ = writeln!(page, "<section><h2>{}</h2>\n<div class=\"cards\">", escape(title));
    for card in cards {
        page.push_str(card);
    }
    page.push_str("</div></section>\n");
}

/// Text as HTML shows it: markup characters as entities, control characters as visible escapes.
fn escape(text: &str) -> String {
    let text = escape_control(text);
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use crate::report::{JsonLines, RewardStatistics, SftReport, StepReport};

    fn completion(step: usize, prompt_index: usize, text: &str) -> CompletionRecord {
        CompletionRecord {
            step,
            prompt_index,
            prompt: "How many <b>cubes</b>?".into(),
            completion: text.into(),
            rewards: vec![("accuracy".into(), 1.0)],
            reward: 1.0,
            ..CompletionRecord::default()
        }
    }

    fn summary() -> RunSummary {
        let grpo = (0..60).map(|step| {
            StepReport {
                step,
                kl: Some(step as f64 * 1e-4),
                beta: 0.04,
                reward: 1.0 - 1.0 / (1.0 + step as f64),
                rewards: vec![RewardStatistics { name: "accuracy".into(), mean: 0.5, std: 0.1 }],
                ..StepReport::default()
            }
            .row()
        });
        RunSummary {
            title: "demo <1>".into(),
            facts: vec![("model".into(), "a & b".into())],
            accuracies: vec![Accuracy { name: "GRPO".into(), accuracy: 0.875, note: "after".into() }],
            sft: (0..3).map(|step| SftReport { step, loss: 2.0, ..SftReport::default() }.row()).collect(),
            grpo: grpo.collect(),
            evaluations: Vec::new(),
            completions: vec![completion(0, 0, "</script><script>alert(1)</script>\u{1b}[2J")],
            config: "beta_min = 0.04".into(),
        }
    }

    #[test]
    fn case_80_page_is_self_contained_and_escaped() {
        let page = render(&summary());
        for wanted in [
            "<title>demo &lt;1&gt;</title>",
            "a &amp; b",
            "87.5 %",
            "&lt;/script&gt;",
            "\\u{1b}[2J",
            "beta_min = 0.04",
            "How many &lt;b&gt;cubes&lt;/b&gt;?",
        ] {
            assert!(page.contains(wanted), "{wanted}");
        }
        for unwanted in ["<script", "http://", "https://", "NaN", "Infinity", "\u{1b}"] {
            assert!(!page.contains(unwanted), "{unwanted}");
        }
        for tag in ["section", "svg", "div", "table", "details", "figure", "p", "pre"] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn empty_run_still_makes_a_page() {
        let page = render(&RunSummary { title: "empty".into(), ..RunSummary::default() });
        assert!(page.contains("<h1>empty</h1>") && page.ends_with("</html>\n"));
        assert!(!page.contains("<svg"));
    }

    #[test]
    fn samples_are_whole_groups_of_first_middle_and_last_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("completions.jsonl");
        let mut lines = JsonLines::create(&SystemDisk, &path).unwrap();
        for step in 0..5 {
            for prompt in 0..3 {
                for text in ["a", "b"] {
                    lines.append(&completion(step, step * 3 + prompt, text)).unwrap();
                }
            }
        }
        let picked = sample_completions(&path, 1).unwrap();
        let groups: Vec<_> = picked.iter().map(|record| (record.step, record.prompt_index)).collect();
        assert_eq!(groups, [(0, 0), (0, 0), (2, 6), (2, 6), (4, 12), (4, 12)]);
        std::fs::write(&path, "").unwrap();
        assert!(sample_completions(&path, 1).unwrap().is_empty());
    }

    #[test]
    fn write_replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        std::fs::write(&path, "old").unwrap();
        write(&path, &summary()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("<!DOCTYPE html>"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
