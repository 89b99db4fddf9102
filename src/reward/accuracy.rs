//! The accuracy reward: is the answer right?

use super::answer::is_correct;
use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// 1 if the completion's answer equals the sample's `solution`, else 0; `None` if the sample
/// has no solution.
///
/// R_acc of OThink-MR1 (Eq. 1) and R1-V: correct or not, no partial credit. The module [`super::answer`] says where the
/// answer is looked for and what is equal.
pub struct Accuracy;

impl Reward for Accuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let right = |c: &Completed<'_>| {
            let solution = c.sample.solution.as_deref()?;
            Some(f64::from(u8::from(is_correct(c.text, solution))))
        };
        Ok(completions.iter().map(right).collect())
    }

    fn needs_solution(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sample;

    #[test]
    fn right_answers() {
        for (completion, solution) in [
            ("<think>1 2 3</think>\n<answer> 3 </answer>", "<answer> 3 </answer>"),
            ("<answer>3</answer>", "3"),
            ("<answer>3.0</answer>", "<answer>3</answer>"),
            ("<answer>There are 3 items.</answer>", "<answer> 3 </answer>"),
            ("<answer>140</answer>", "<answer> 140° </answer>"),
            ("<answer>\\frac{1}{2}</answer>", "0.5"),
            ("<answer>1,000</answer>", "1000"),
            ("<answer>10%</answer>", "0.1"),
            ("the answer is \\boxed{42}", "42"),
            ("I think it is 7", "<answer>7</answer>"),
            ("<answer>(B)</answer>", "b"),
            ("<answer>B.</answer>", "B"),
            ("<answer>8\\sqrt{3}</answer>", "<answer> 8√{3} </answer>"),
            ("<answer>2400π</answer>", "2400πcm^{2}"),
            ("<answer>9 \\pi</answer>", "9π"),
            ("yes", "Yes"),
        ] {
            assert!(is_correct(completion, solution), "{completion} | {solution}");
        }
    }

    #[test]
    fn wrong_answers() {
        for (completion, solution) in [
            // R1-V's checker grades the thinking here.
            ("<think>I count 7 items</think>\n<answer>5</answer>", "<answer> 7 </answer>"),
            // ... and drops the root and the pi here.
            ("<answer>8</answer>", "8√{3}"),
            ("<answer>9</answer>", "9π"),
            ("<answer>3 or 4</answer>", "3"),
            ("<answer>4</answer><answer>3</answer>", "3"),
            ("<answer></answer>", "3"),
            ("<answer></answer>", ""),
            ("<answer>-3</answer>", "3"),
            ("<answer>33</answer>", "3"),
            ("<answer>0.33</answer>", "1/3"),
            ("<answer>AB</answer>", "A"),
            ("", "3"),
        ] {
            assert!(!is_correct(completion, solution), "{completion} | {solution}");
        }
    }

    /// Every reward, so that a later one is held to it too. One of many tries has to be that fast: other work may be going
    /// on.
    #[test]
    fn case_51_hostile_answers_are_decided_in_10_ms() {
        let rewards = crate::reward::tests::every_reward();
        let judge = |completion: &str, solution: &str| {
            let sample = Sample { solution: Some(solution.into()), ..Sample::default() };
            for reward in &rewards {
                let is_fast = |_| {
                    let start = std::time::Instant::now();
                    let completion = Completed { sample: &sample, text: completion, tokens: &[7; 1024] };
                    let score = reward.score(&[completion], &|_| Ok(())).unwrap();
                    assert_ne!(score, [Some(1.0)], "{}", reward.name());
                    start.elapsed().as_millis() < 10
                };
                let shown = &completion[..30.min(completion.len())];
                assert!((0..50).any(is_fast), "{} on {shown:?}...", reward.name());
            }
        };
        for inner in [
            "5^(5^(5^(5^5)))".to_string(),
            "\\frac{".repeat(100_000),
            "\\frac{1}{".repeat(100_000) + &"}".repeat(100_000),
            "\\boxed{".repeat(100_000),
            "9".repeat(1_000_000),
            "9".repeat(4_000),
            "1/".repeat(2_000),
            "1,".repeat(500_000),
            "\\text".repeat(800),
            "=".repeat(4_000),
            " answer ".repeat(125_000),
            "0/0".into(),
            "1/0".into(),
        ] {
            judge(&format!("<answer>{inner}</answer>"), "3");
            judge(&inner, "3");
            judge("<answer>3</answer>", &inner);
        }
        // Longer than any number that is computed with, and still equal as text.
        let long = "9".repeat(100);
        assert!(is_correct(&format!("<answer>{long}</answer>"), &long));
    }

    proptest::proptest! {
        /// A decimal in other spellings is itself, and its neighbour is not.
        #[test]
        fn spellings_of_a_number_are_equal(n in -10_000_000i64..10_000_000, places in 0usize..4) {
            let scale = 10i64.pow(places as u32);
            let (sign, size) = (if n < 0 { "-" } else { "" }, n.unsigned_abs());
            let (whole, part) = (size / scale as u64, size % scale as u64);
            let decimal = format!("{sign}{whole}.{part:0places$}");
            let decimal = if places == 0 { format!("{sign}{whole}") } else { decimal };
            let spellings =
                [decimal.clone(), format!("{n}/{scale}"), format!("{decimal}\u{b0}"), format!("$x = {decimal}$.")];
            for spelling in spellings {
                let tagged = format!("<think>9</think><answer> {spelling} </answer>");
                proptest::prop_assert!(is_correct(&tagged, &decimal), "{} {}", spelling, decimal);
                proptest::prop_assert!(!is_correct(&tagged, &format!("{}/{scale}", n + 1)), "{}", spelling);
            }
        }

        /// No text without a digit is a number, whatever is in it.
        #[test]
        fn no_digit_no_number(text in "(?s)([^0-9]|<answer>|</answer>|\\\\boxed\\{|\\\\frac|[{}$^/\u{2212}]){0,40}") {
            proptest::prop_assert!(!is_correct(&text, "3"), "{}", text);
            proptest::prop_assert!(!is_correct("<answer>3</answer>", &text), "{}", text);
        }
    }
}
