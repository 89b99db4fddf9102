//! The numbers of a reproduction: one row for each seed, arm, task trained on and task measured on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::statistics::Estimate;
use crate::checkpoint::replace_file;
use crate::disk::SystemDisk;
use crate::error::{Error, Result};

/// What is done with the start checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// Nothing.
    Base,
    /// Supervised on the solutions.
    Sft,
    /// GRPO with a constant KL weight.
    Grpo,
    /// GRPO with the dynamic KL weight (Eq. 3).
    GrpoD,
}

impl Arm {
    /// The arms that train, in the order in which they run.
    pub const TRAINED: [Arm; 3] = [Arm::Sft, Arm::Grpo, Arm::GrpoD];

    /// As in rows and folder names.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Base => "base",
            Arm::Sft => "sft",
            Arm::Grpo => "grpo",
            Arm::GrpoD => "grpo_d",
        }
    }

    /// As in the table.
    pub fn title(self) -> &'static str {
        match self {
            Arm::Base => "start checkpoint",
            Arm::Sft => "SFT",
            Arm::Grpo => "GRPO",
            Arm::GrpoD => "GRPO-D",
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Seed of weights, order and sampling; none where all seeds start from one published checkpoint.
    pub seed: Option<u64>,
    /// What was done.
    pub arm: Arm,
    /// Task trained on; none for the start checkpoint.
    pub train_task: Option<String>,
    /// Task of the held-out rows.
    pub eval_task: String,
    /// Share of held-out rows answered correctly.
    pub accuracy: f64,
    /// Held-out rows.
    pub n: usize,
    /// Share of completions in the form that the format reward asks for.
    pub format: f64,
    /// Mean length of the completions, tokens.
    pub mean_length: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Prompts seen in training, counted with repetition.
    pub prompts: u64,
    /// Tokens processed in training, prompts and images included.
    pub tokens: u64,
    /// Wall time of the training steps.
    pub seconds: f64,
}

impl ResultRow {
    /// Without what a clock has measured: what two runs of the same thing agree in.
    pub fn timeless(&self) -> ResultRow {
        ResultRow { seconds: 0.0, ..self.clone() }
    }
}

/// All measurements made so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows(pub Vec<ResultRow>);

impl Rows {
    fn of(&self, arm: Arm, train: Option<&str>, eval: &str) -> impl Iterator<Item = &ResultRow> {
        // The start checkpoint is the same whatever is trained on.
        let trained = move |row: &ResultRow| arm == Arm::Base || row.train_task.as_deref() == train;
        self.0.iter().filter(move |row| row.arm == arm && trained(row) && row.eval_task == eval)
    }

    /// A quantity over seeds.
    pub fn estimate(
        &self,
        arm: Arm,
        train: &str,
        eval: &str,
        value: impl Fn(&ResultRow) -> f64,
    ) -> Option<Estimate> {
        Estimate::of(&self.of(arm, Some(train), eval).map(value).collect::<Vec<_>>())
    }

    /// The differences in accuracy between two arms, seed by seed, in the order of the rows.
    pub fn paired(&self, arm: Arm, other: Arm, train: &str, eval: &str) -> Vec<f64> {
        let of_seed =
            |seed| self.of(other, Some(train), eval).find(|row| row.seed == seed || row.seed.is_none());
        self.of(arm, Some(train), eval)
            .filter_map(|row| Some(row.accuracy - of_seed(row.seed)?.accuracy))
            .collect()
    }

    /// Writes `rows.jsonl` and `rows.csv` to `dir`, each through a temporary file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut jsonl = String::new();
        for row in &self.0 {
            let line = serde_json::to_string(row);
            jsonl += &line.map_err(|e| Error::Internal(format!("a result as JSON: {e}")))?;
            jsonl.push('\n');
        }
        replace_file(&SystemDisk, &dir.join("rows.jsonl"), jsonl.as_bytes())?;
        replace_file(&SystemDisk, &dir.join("rows.csv"), self.csv().as_bytes())
    }

    /// Comma-separated, with a header; no field holds a comma.
    fn csv(&self) -> String {
        let mut csv = String::from(
            "seed,arm,train_task,eval_task,accuracy,n,format,mean_length,steps,prompts,tokens,seconds\n",
        );
        for row in &self.0 {
            let fields = [
                row.seed.map_or(String::new(), |seed| seed.to_string()),
                row.arm.name().into(),
                row.train_task.clone().unwrap_or_default(),
                row.eval_task.clone(),
                row.accuracy.to_string(),
                row.n.to_string(),
                row.format.to_string(),
                row.mean_length.to_string(),
                row.steps.to_string(),
                row.prompts.to_string(),
                row.tokens.to_string(),
                row.seconds.to_string(),
            ];
            csv += &fields.join(",");
            csv.push('\n');
        }
        csv
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A measurement of which only what is given matters.
    pub(in crate::reproduce) fn row(
        seed: u64,
        arm: Arm,
        train: Option<&str>,
        eval: &str,
        accuracy: f64,
    ) -> ResultRow {
        ResultRow {
            seed: Some(seed),
            arm,
            train_task: train.map(str::to_owned),
            eval_task: eval.into(),
            accuracy,
            n: 100,
            format: 1.0,
            mean_length: 12.5,
            steps: 20,
            prompts: 640,
            tokens: 9000,
            seconds: 1.5,
        }
    }

    #[test]
    fn differences_are_of_the_same_seed() {
        let rows = Rows(vec![
            row(1, Arm::Grpo, Some("counting"), "geometry", 0.5),
            row(2, Arm::Grpo, Some("counting"), "geometry", 0.25),
            row(2, Arm::GrpoD, Some("counting"), "geometry", 0.75),
            row(1, Arm::GrpoD, Some("counting"), "geometry", 0.5),
            row(1, Arm::GrpoD, Some("geometry"), "geometry", 0.0),
            row(3, Arm::GrpoD, Some("counting"), "geometry", 0.9),
        ]);
        assert_eq!(rows.paired(Arm::GrpoD, Arm::Grpo, "counting", "geometry"), [0.5, 0.0]);
        let mean = |arm| rows.estimate(arm, "counting", "geometry", |row| row.accuracy);
        assert_eq!(mean(Arm::Grpo).unwrap().mean, 0.375);
        assert!(mean(Arm::Sft).is_none());
    }

    #[test]
    fn files_hold_every_row_and_are_read_back() {
        let rows = Rows(vec![
            row(1, Arm::Base, None, "counting", 0.5),
            ResultRow { seed: None, ..row(1, Arm::GrpoD, Some("counting"), "counting", 0.25) },
        ]);
        let dir = tempfile::tempdir().unwrap();
        rows.write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        let back: Vec<ResultRow> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(back, rows.0);
        let csv = std::fs::read_to_string(dir.path().join("rows.csv")).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[1], "1,base,,counting,0.5,100,1,12.5,20,640,9000,1.5");
        assert_eq!(lines[2], ",grpo_d,counting,counting,0.25,100,1,12.5,20,640,9000,1.5");
        assert!(lines.iter().all(|line| line.split(',').count() == 12));
    }
}
