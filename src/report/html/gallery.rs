//! Sample completions beside their images.

use std::fmt::Write as _;

use super::escape;
use crate::data::ImageSource;
use crate::report::record::CompletionRecord;
use crate::report::thumbnail::Picture;

/// Most images shown of a prompt.
const SHOWN_IMAGES: usize = 8;
/// Most characters shown of a text; the whole of it is in `completions.jsonl`.
const SHOWN_CHARS: usize = 20_000;

/// Writes a section with one block per prompt, its completions from the best reward to the worst.
pub fn write(page: &mut String, completions: &[CompletionRecord]) {
    let mut step = None;
    let same_group =
        |a: &CompletionRecord, b: &CompletionRecord| (a.step, a.prompt_index) == (b.step, b.prompt_index);
    for group in completions.chunk_by(same_group) {
        let Some(first) = group.first() else { continue };
        if step != Some(first.step) {
            page.push_str(if step.is_none() { "<section>" } else { "</section>\n<section>" });
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(page, "<h2>Completions at step {}</h2>", first.step);
            step = Some(first.step);
        }
        write_group(page, first, group);
    }
    if step.is_some() {
        page.push_str("</section>\n");
    }
}

fn write_group(page: &mut String, first: &CompletionRecord, group: &[CompletionRecord]) {
    page.push_str("<div class=\"group\"><div>");
    for (n, source) in (1..).zip(first.sources().take(SHOWN_IMAGES)) {
        match Picture::of(&source) {
            Ok(picture) => {
                let name = match &source {
                    ImageSource::File(path) => path.display().to_string(),
                    ImageSource::Bytes(_) => format!("image {n}"),
                };
                let _ = write!(page, "<img src=\"{}\" alt=\"{}\">", picture.data_uri(), escape(&name));
            }
            Err(reason) => {
                let _ = write!(page, "<p class=\"missing\">{}</p>", escape(&reason.to_string()));
            }
        }
    }
    let more = first.sources().count().saturating_sub(SHOWN_IMAGES);
    if more > 0 {
        let _ = write!(page, "<p class=\"missing\">and {more} more images</p>");
    }
    let _ = write!(page, "<p class=\"prompt\">{}</p>", shown(&first.prompt));
    if let Some(solution) = &first.solution {
        let _ = write!(page, "<p class=\"note\">Reference: {}</p>", shown(solution));
    }
    page.push_str("</div><div class=\"completions\">\n");
    let mut ranked: Vec<&CompletionRecord> = group.iter().collect();
    // Stable: equals keep the order in which they were sampled.
    ranked.sort_by(|a, b| b.reward.total_cmp(&a.reward));
    for completion in ranked {
        write_completion(page, completion);
    }
    page.push_str("</div></div>\n");
}

fn write_completion(page: &mut String, completion: &CompletionRecord) {
    let side = match completion.advantage {
        advantage if advantage > 0.0 => " above",
        advantage if advantage < 0.0 => " below",
        _ => "",
    };
    let _ = write!(
        page,
        "<div class=\"completion{side}\"><p class=\"score\">reward {} · advantage {:+.2}",
        number(completion.reward),
        completion.advantage
    );
    for (name, value) in &completion.rewards {
        let _ = write!(page, " · {} {}", escape(name), number(*value));
    }
    let cut = if completion.truncated { ", cut off" } else { "" };
    let answer = completion
        .parsed
        .as_ref()
        .map_or("no answer read".to_owned(), |answer| format!("answer: {}", shown(answer)));
    let _ = writeln!(
        page,
        "<br>{answer} · {} tokens{cut}</p><pre>{}</pre></div>",
        completion.length,
        shown(&completion.completion)
    );
}

/// The beginning of a text, escaped, and how much is left out.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => escape(text),
        Some((end, _)) => {
            let left_out = text[end..].chars().count();
            format!("{} [{left_out} characters left out]", escape(&text[..end]))
        }
    }
}

/// Up to three decimals, and nothing where the value is not a number.
fn number(value: f64) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_and_many_images_are_cut() {
        let completion = CompletionRecord {
            completion: format!("<{}", "é".repeat(1 << 20)),
            images: vec!["/nowhere.png".into(); 100],
            ..CompletionRecord::default()
        };
        let mut page = String::new();
        write(&mut page, &[completion]);
        assert!(page.len() < 50_000, "{}", page.len());
        assert!(
            page.contains("&lt;éé")
                && page.contains(&format!("é [{} characters left out]", (1 << 20) - 19_999))
        );
        assert!(page.contains("and 92 more images"));
    }

    #[test]
    fn groups_are_ranked_and_sections_closed() {
        let completion = |step, prompt_index, reward: f64| CompletionRecord {
            step,
            prompt_index,
            reward,
            advantage: reward - 1.0,
            completion: format!("text {reward}"),
            images: vec!["/nowhere/<x>.png".into()],
            ..CompletionRecord::default()
        };
        let mut page = String::new();
        write(
            &mut page,
            &[completion(0, 0, 0.0), completion(0, 0, 2.0), completion(0, 1, 1.0), completion(9, 20, 1.0)],
        );
        assert_eq!(page.matches("<section>").count(), 2);
        assert_eq!(page.matches("</section>").count(), 2);
        assert_eq!(page.matches("class=\"group\"").count(), 3);
        assert!(page.find("text 2").unwrap() < page.find("text 0").unwrap());
        assert!(page.contains("completion above\"><p class=\"score\">reward 2 · advantage +1.00"));
        assert!(page.contains("completion below\"><p class=\"score\">reward 0 · advantage -1.00"));
        assert!(page.contains("/nowhere/&lt;x&gt;.png: "));
        assert_eq!(number(0.5), "0.5");
        assert_eq!(number(10.0), "10");
    }
}
