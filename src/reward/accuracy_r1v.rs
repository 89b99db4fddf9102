//! R1-V's accuracy reward, for comparison with runs made by it.

use std::sync::LazyLock;

use regex::Regex;

use super::answer::{boxed, same_value};
use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// Longest box or number that is looked at, in bytes.
const MAX_NUMBER_BYTES: usize = 4096;

/// 1 if R1-V's checker would call the completion right, else 0; `None` if the sample has no solution.
///
/// R1-V (Deep-Agent/R1-V, `grpo.py`, with math-verify 0.5.2) parses the *whole* completion, not the answer tag, and
/// the whole solution, and compares the two numbers; where that finds no equality, the texts of the first
/// `<answer>..</answer>` on one line of each (without such a tag the whole texts) have to be the same, spaces at the
/// ends aside. The number of a text is
///
/// 1. the content of the last `\boxed{..}`;
/// 2. else the number that comes first within 50 characters after the word "answer", of the last such place;
/// 3. else the last number.
///
/// A number counts only after white space, `=` or the start of the text: not where a tag touches it. So
/// `<think>I count 7</think><answer>5</answer>` is 7, and right where the solution is 7; and
/// `<answer>140</answer>` has no number, and is wrong where the solution is `<answer> 140° </answer>`. What follows a
/// number is not looked at: `8√{3}` is 8.
///
/// Deviations from math-verify: formulas outside a box (between `$`, sums, products, `\frac`) are not evaluated, only
/// `a/b` is; a comma only groups thousands. In a box, and for equality, what this crate's [`super::answer`] says is what
/// counts, units left out.
pub struct AccuracyR1v;

impl Reward for AccuracyR1v {
    fn name(&self) -> &str {
        "accuracy_r1v"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let right = |c: &Completed<'_>| {
            let solution = c.sample.solution.as_deref()?;
            Some(f64::from(u8::from(is_correct_in_r1v(c.text, solution))))
        };
        Ok(completions.iter().map(right).collect())
    }

    fn needs_solution(&self) -> bool {
        true
    }
}

fn is_correct_in_r1v(completion: &str, solution: &str) -> bool {
    let equal = match (number(completion), number(solution)) {
        (Some(given), Some(wanted)) => same_value(wanted, given),
        _ => false,
    };
    equal || tagged_on_one_line(completion) == tagged_on_one_line(solution)
}

/// The number that the whole of `text` comes down to. Linear time: each pattern looks a bounded way ahead.
fn number(text: &str) -> Option<&str> {
    // Emphasis and a currency sign may stand between the separator and the number.
    const NUMBER: &str = r"[\s=](?:\*\*)?[$€£¥]?(?P<number>-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:\s?/\s?[0-9]+)?(?:\s?%)?|\.[0-9]+)";
    static AFTER_ANSWER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(&format!("(?i:answer).{{0,50}}?{NUMBER}")).expect("the pattern is constant")
    });
    static ANYWHERE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(&NUMBER.replacen(r"[\s=]", r"(?:^|[\s=])", 1)).expect("the pattern is constant")
    });
    // Whatever is longer is no number that could be computed with, and groups are slow to find in it.
    let short = |found: &str| found.len() <= MAX_NUMBER_BYTES;
    if let Some(inner) = boxed(text) {
        return short(inner).then_some(inner);
    }
    let last = |pattern: &'static Regex| {
        let found = pattern.find_iter(text).last()?;
        Some((pattern, found.as_str()))
    };
    let (pattern, found) =
        last(&AFTER_ANSWER).or_else(|| last(&ANYWHERE)).filter(|(_, found)| short(found))?;
    Some(pattern.captures(found)?.name("number")?.as_str())
}

/// The text of the first answer tag that opens and closes on one line, else the whole text. Trimmed.
fn tagged_on_one_line(text: &str) -> &str {
    let inner = |line| {
        let (_, behind) = str::split_once(line, "<answer>")?;
        behind.split_once("</answer>").map(|(inner, _)| inner)
    };
    text.split('\n').find_map(inner).unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    use super::super::is_correct;
    use super::*;

    /// Verdicts of R1-V's function with math-verify 0.5.2, run on these texts.
    #[test]
    fn verdicts_of_the_original() {
        for (right, completion, solution) in [
            // The number of the thinking decides: for the better ...
            (true, "<think>I count 7 items</think>\n<answer>5</answer>", "<answer> 7 </answer>"),
            (true, "3 cubes and 2 spheres so 5 in all</think> <answer>6</answer>", "<answer> 5 </answer>"),
            (true, "<think> 7</think><answer>5</answer>", "<answer> 7 </answer>"),
            // ... unless a tag or bracket touches it, or the tag holds its number between spaces.
            (false, "<think>7</think><answer>5</answer>", "<answer> 7 </answer>"),
            (false, "<think>I count 7 items</think>\n<answer> 5 </answer>", "<answer> 7 </answer>"),
            (true, "<think>I count 7 items</think>\n<answer> 5 </answer>", "<answer> 5 </answer>"),
            (false, "(7)", "7"),
            (false, "x2 so", "2"),
            // The tags' texts are the second chance.
            (true, "<think>I count 7 items</think>\n<answer>5</answer>", "<answer>5</answer>"),
            (true, "<answer>3</answer>", "<answer> 3 </answer>"),
            (true, "<answer>140°</answer>", "<answer> 140° </answer>"),
            (false, "<answer>140</answer>", "<answer> 140° </answer>"),
            (true, "<answer> 140 </answer>", "<answer> 140° </answer>"),
            (true, "<answer>\n3\n</answer>", "<answer> 3 </answer>"),
            (true, "<answer> yes </answer>", "<answer> yes </answer>"),
            (false, "<answer> Yes </answer>", "<answer> yes </answer>"),
            (true, "<answer>3</answer><answer>4</answer>", "<answer> 3 </answer>"),
            (false, "<answer>3</answer><answer>4</answer>", "<answer> 4 </answer>"),
            (true, "<answer> 3 </answer><answer> 4 </answer>", "<answer> 4 </answer>"),
            (false, "", "3"),
            (true, "", ""),
            // What follows a number is dropped.
            (true, "<answer> 8 </answer>", "<answer> 8√{3} </answer>"),
            (true, "<answer> 9 </answer>", "<answer> 9π </answer>"),
            (true, "<answer> 2400 </answer>", "<answer> 2400πcm^{2} </answer>"),
            (false, "<answer>8</answer>", "<answer> 8√{3} </answer>"),
            (true, "1e3 ", "1"),
            // The word "answer", the box, and the last number.
            (false, "<answer> 3 or 4 </answer>", "<answer> 4 </answer>"),
            (true, "3 or 4", "<answer> 4 </answer>"),
            (true, "the answer is 5 but also 6 </think><answer>6</answer>", "<answer> 5 </answer>"),
            (true, "$\\boxed{5}$ then 9 ", "5"),
            (false, "\\boxed{5} then 9 ", "9"),
            (true, "x = 5 so", "5"),
            (true, "=7", "7"),
            (true, "so 3, then **4**.", "<answer> 4 </answer>"),
            (true, "1. first 2. second", "2"),
            // Values.
            (true, "<answer> 0.5 </answer>", "<answer> 1/2 </answer>"),
            (true, "<answer> 1,000 </answer>", "<answer> 1000 </answer>"),
            (true, "<answer> 10% </answer>", "<answer> 0.1 </answer>"),
            (true, "<answer> 10% </answer>", "<answer> 10 </answer>"),
            (false, "<answer> -3 </answer>", "<answer> 3 </answer>"),
            (false, "7/2", "2"),
            (true, ".5 ", "0.5"),
            (true, "007 ", "7"),
            (true, "$7", "7"),
        ] {
            assert_eq!(is_correct_in_r1v(completion, solution), right, "{completion} | {solution}");
        }
    }

    #[test]
    fn it_differs_from_the_accuracy_reward_both_ways() {
        for (r1v, own, completion, solution) in [
            (true, false, "<think>I count 7 items</think>\n<answer>5</answer>", "<answer> 7 </answer>"),
            (false, true, "<answer>140</answer>", "<answer> 140° </answer>"),
            (true, false, "<answer> 8 </answer>", "<answer> 8√{3} </answer>"),
            (false, true, "<answer> Yes </answer>", "<answer> yes </answer>"),
        ] {
            assert_eq!(
                (is_correct_in_r1v(completion, solution), is_correct(completion, solution)),
                (r1v, own)
            );
        }
    }
}
