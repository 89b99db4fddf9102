//! Which question and which answer each row has: exactly balanced.

use super::Split;
use crate::rng::{Purpose, Stream};

/// Indices into the questions and into that question's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) question: usize,
    pub(super) answer: usize,
}

/// The cells of rows `0..rows` for questions with `answer_counts[q]` answers each (none zero).
///
/// A block is one question with each of its answers once, in a shuffled order; the questions
/// take turns, in an order shuffled anew in every round. Hence after any number of whole
/// blocks, given the question, all answers are equally frequent; a last block cut short is
/// out of balance by at most one row per answer.
pub(super) fn plan(answer_counts: &[usize], rows: usize, seed: u64, split: Split) -> Vec<Cell> {
    // Bit 62 keeps this stream apart from the rows' own.
    let mut stream = Stream::new(seed, Purpose::Task, ((split as u64) << 63) | (1 << 62));
    let mut cells = Vec::with_capacity(rows);
    while cells.len() < rows && !answer_counts.is_empty() {
        let mut round: Vec<usize> = (0..answer_counts.len()).collect();
        stream.shuffle(&mut round);
        for question in round {
            let mut block: Vec<Cell> =
                (0..answer_counts[question]).map(|answer| Cell { question, answer }).collect();
            stream.shuffle(&mut block);
            cells.extend(block);
        }
    }
    cells.truncate(rows);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rounds_are_exactly_balanced_given_the_question() {
        let counts = [3, 5, 2];
        let cells = plan(&counts, 10 * 7, 3, Split::Test);
        for (question, answers) in counts.iter().enumerate() {
            for answer in 0..*answers {
                assert_eq!(cells.iter().filter(|c| **c == Cell { question, answer }).count(), 7);
            }
        }
        // A shorter plan is the beginning of a longer one; seeds and splits differ.
        assert_eq!(plan(&counts, 33, 3, Split::Test), cells[..33]);
        assert_ne!(plan(&counts, 70, 4, Split::Test), cells);
        assert_ne!(plan(&counts, 70, 3, Split::Train), cells);
    }

    #[test]
    fn a_cut_block_is_off_by_one_at_most() {
        for rows in 0..40 {
            let cells = plan(&[6], rows, 1, Split::Train);
            assert_eq!(cells.len(), rows);
            let count = |a: usize| cells.iter().filter(|c| c.answer == a).count();
            let (low, high) = ((0..6).map(count).min().unwrap(), (0..6).map(count).max().unwrap());
            assert!(high - low <= 1);
        }
    }
}
