//! `table.md`: the results in the form of the paper's Table 1 (same task) and Figure 7 (across tasks).

use std::fmt::Write as _;

use super::rows::{Arm, Rows};
use super::statistics::Estimate;
use crate::report::html::comparison::Table;

fn table(title: &str, head: &[&str], body: Vec<Vec<String>>, note: &str) -> Table {
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    Table { title: title.into(), head, body, note: note.into() }
}

/// The arms in the order of the paper's table.
const ARMS: [Arm; 4] = [Arm::Base, Arm::Grpo, Arm::Sft, Arm::GrpoD];

/// A cell of the result: trained on one task, measured on one.
#[derive(Clone, Copy)]
struct Place<'a> {
    train: &'a str,
    eval: &'a str,
}

impl Place<'_> {
    fn title(&self) -> String {
        if self.train == self.eval {
            self.eval.to_owned()
        } else {
            format!("{} → {}", self.train, self.eval)
        }
    }
}

/// The tables of a reproduction of two tasks.
pub fn tables(rows: &Rows, tasks: [&str; 2]) -> Vec<Table> {
    let [one, two] = tasks;
    let same = [one, two].map(|task| Place { train: task, eval: task });
    let across = [Place { train: two, eval: one }, Place { train: one, eval: two }];
    let all = [same[0], same[1], across[0], across[1]];
    vec![
        accuracies(rows, "Same task", same, "Accuracy in % on held-out rows of the task trained on"),
        accuracies(
            rows,
            "Across tasks",
            across,
            "Accuracy in % on held-out rows of the other task than the one trained on (trained on → measured on)",
        ),
        gains(rows, all),
        paired(rows, all),
        budgets(rows, same),
    ]
}

/// `table.md`.
pub fn markdown(title: &str, facts: &[(String, String)], tables: &[Table]) -> String {
    let mut text = format!("# {title}\n\n");
    for (name, value) in facts {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text.push('\n');
    for Table { title, head, body, note } in tables {
        // Writing to a String cannot fail, here and above.
        let _ = writeln!(text, "## {title}\n\n| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
        for cells in body {
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        let _ = writeln!(text, "\n{note}\n");
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn accuracy(rows: &Rows, arm: Arm, place: Place<'_>) -> Option<Estimate> {
    rows.estimate(arm, place.train, place.eval, |row| row.accuracy)
}

fn accuracies(rows: &Rows, title: &str, places: [Place<'_>; 2], what: &str) -> Table {
    let head = ["".to_owned(), places[0].title(), places[1].title(), "seeds".to_owned()];
    let line = |arm: Arm| {
        let found = places.map(|place| accuracy(rows, arm, place));
        let seeds = found.iter().flatten().map(|estimate| estimate.count).max().unwrap_or(0);
        let plus = if arm == Arm::Base { "" } else { "+ " };
        let mut cells = vec![format!("{plus}{}", arm.title())];
        cells.extend(found.map(|estimate| percent(estimate, false)));
        cells.push(seeds.to_string());
        cells
    };
    let note = format!(
        "{what}: mean over seeds ± standard error s / √n, s the standard deviation over the n seeds with n − 1 below it."
    );
    Table { title: title.into(), head: head.into(), body: ARMS.map(line).into(), note }
}

/// The gains that the paper's text quotes.
fn gains(rows: &Rows, places: [Place<'_>; 4]) -> Table {
    let line = |place: Place<'_>| {
        let ours = accuracy(rows, Arm::GrpoD, place);
        let over = |arm: Arm| match (ours, accuracy(rows, arm, place)) {
            (Some(ours), Some(other)) if other.mean > 0.0 => {
                format!("{:+.1} %", 100.0 * (ours.mean / other.mean - 1.0))
            }
            _ => MISSING.to_owned(),
        };
        vec![place.title(), over(Arm::Base), over(Arm::Sft), over(Arm::Grpo)]
    };
    table(
        "Relative gain of GRPO-D",
        &["", "over the start checkpoint", "over SFT", "over GRPO"],
        places.map(line).into(),
        "Mean accuracy of GRPO-D over that of the other arm, minus 1. What a gain is worth, the next table says.",
    )
}

fn paired(rows: &Rows, places: [Place<'_>; 4]) -> Table {
    let line = |place: Place<'_>| {
        let differences = rows.paired(Arm::GrpoD, Arm::Grpo, place.train, place.eval);
        let estimate = Estimate::of(&differences);
        let interval = estimate.and_then(|estimate| estimate.interval_95());
        let interval = interval.map_or(MISSING.to_owned(), |(low, high)| {
            let apart = if low > 0.0 || high < 0.0 { "without 0" } else { "holds 0" };
            format!("{:+.1} to {:+.1}, {apart}", 100.0 * low, 100.0 * high)
        });
        let count = |is: fn(&f64) -> bool| differences.iter().filter(|d| is(d)).count();
        let seeds = format!("{} / {} / {}", count(|d| *d > 0.0), count(|d| *d == 0.0), count(|d| *d < 0.0));
        vec![place.title(), percent(estimate, true), interval, seeds]
    };
    table(
        "GRPO-D minus GRPO, seed by seed",
        &["", "difference", "95 % interval", "seeds better / equal / worse"],
        places.map(line).into(),
        "Both arms of a seed share start checkpoint, prompts, order and random numbers, and differ in the KL weight alone. \
         Mean of the differences in percentage points ± standard error; interval of Student's t with n − 1 degrees of \
         freedom. Where it holds 0 these seeds do not tell the two apart. It covers the choice of seeds, not that of tasks \
         or sizes, and the four lines are not corrected for being four.",
    )
}

fn budgets(rows: &Rows, places: [Place<'_>; 2]) -> Table {
    let line = |(place, arm): (Place<'_>, Arm)| {
        let mean = |value: fn(&super::rows::ResultRow) -> f64| {
            rows.estimate(arm, place.train, place.eval, value).map(|estimate| estimate.mean)
        };
        let whole = |value: Option<f64>| value.map_or(MISSING.to_owned(), |value| format!("{value:.0}"));
        let share = mean(|row| row.format).map_or(MISSING.to_owned(), |v| format!("{:.1} %", 100.0 * v));
        vec![
            place.train.to_owned(),
            arm.title().to_owned(),
            whole(mean(|row| row.steps as f64)),
            whole(mean(|row| row.prompts as f64)),
            whole(mean(|row| row.tokens as f64)),
            whole(mean(|row| row.seconds)),
            share,
        ]
    };
    let lines = places.into_iter().flat_map(|place| Arm::TRAINED.map(|arm| (place, arm)));
    table(
        "Budgets",
        &["trained on", "arm", "steps", "prompts", "tokens", "seconds", "in the right form"],
        lines.map(line).collect(),
        "Equal budgets are equal optimiser steps over the same prompts in the same order. Tokens (prompts, images and \
         completions that training processed) and seconds of the steps are what that costs each arm; the last column is the \
         share of held-out completions in the form that the format reward asks for, on the task trained on. Means over seeds.",
    )
}

/// What stands where nothing was measured.
const MISSING: &str = "–";

/// `76.5 ± 1.2`, signed or not.
fn percent(estimate: Option<Estimate>, signed: bool) -> String {
    let Some(Estimate { mean, standard_error, .. }) = estimate else { return MISSING.to_owned() };
    let mean = if signed { format!("{:+.1}", 100.0 * mean) } else { format!("{:.1}", 100.0 * mean) };
    standard_error.map_or(mean.clone(), |error| format!("{mean} ± {:.1}", 100.0 * error))
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    const TASKS: [&str; 2] = ["counting", "geometry"];

    /// Accuracies of two seeds for each place: counting, geometry, geometry → counting, counting → geometry.
    fn rows() -> Rows {
        let mut rows = Vec::new();
        for (seed, add) in [(1, 0.0), (2, 0.1)] {
            for eval in TASKS {
                rows.push(row(seed, Arm::Base, None, eval, 0.4 + add));
                for train in TASKS {
                    rows.push(row(seed, Arm::Sft, Some(train), eval, 0.5 + add));
                    rows.push(row(seed, Arm::Grpo, Some(train), eval, 0.6));
                    let better = if train == eval { 0.6 + add } else { 0.5 };
                    rows.push(row(seed, Arm::GrpoD, Some(train), eval, better));
                }
            }
        }
        Rows(rows)
    }

    #[test]
    fn cells_are_means_errors_gains_and_paired_differences() {
        let tables = tables(&rows(), TASKS);
        let line = |table: usize, line: usize| tables[table].body[line].join(" | ");
        assert_eq!(line(0, 0), "start checkpoint | 45.0 ± 5.0 | 45.0 ± 5.0 | 2");
        assert_eq!(line(0, 3), "+ GRPO-D | 65.0 ± 5.0 | 65.0 ± 5.0 | 2");
        assert_eq!(tables[1].head[1..3], ["geometry → counting", "counting → geometry"]);
        assert_eq!(line(1, 3), "+ GRPO-D | 50.0 ± 0.0 | 50.0 ± 0.0 | 2");
        // 0.65 / 0.45 - 1, 0.65 / 0.55 - 1, 0.65 / 0.6 - 1.
        assert_eq!(line(2, 0), "counting | +44.4 % | +18.2 % | +8.3 %");
        // Differences 0 and 0.1: 5 ± 5 points, and 12.706 times that around it.
        assert_eq!(line(3, 0), "counting | +5.0 ± 5.0 | -58.5 to +68.5, holds 0 | 1 / 1 / 0");
        assert_eq!(line(3, 2), "geometry → counting | -10.0 ± 0.0 | -10.0 to -10.0, without 0 | 0 / 0 / 2");
        assert_eq!(line(4, 0), "counting | SFT | 20 | 640 | 9000 | 2 | 100.0 %");
    }

    #[test]
    fn one_seed_and_none_leave_gaps_instead_of_numbers() {
        let one = Rows(rows().0.into_iter().filter(|row| row.seed == Some(1)).collect());
        let text = markdown("t", &[("seeds".into(), "1".into())], &tables(&one, TASKS));
        assert!(text.contains("| + GRPO-D | 60.0 | 60.0 | 1 |"), "{text}");
        assert!(text.contains("| counting | +0.0 | – | 0 / 1 / 0 |"), "{text}");
        let none = markdown("t", &[], &tables(&Rows::default(), TASKS));
        assert!(none.contains("| + GRPO-D | – | – | 0 |") && !none.contains("NaN"), "{none}");
    }
}
