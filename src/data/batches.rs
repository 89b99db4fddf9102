//! The record batches that were decoded last, and when to decode ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;

use super::arrow_cell::cells_of;
use super::cells::Cells;

/// Most batches that are held.
const HELD: usize = 4;
/// How many of the rows asked for last are remembered: a row behind one of them is read in order.
const REMEMBERED: usize = 32;

/// A bounded cache of batches, by their rows.
#[derive(Default)]
pub(super) struct Batches(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    batches: VecDeque<Held>,
    asked: VecDeque<usize>,
}

/// Decoded rows.
#[derive(Clone)]
pub(super) struct Held {
    /// The rows that can be read from the batch.
    pub(super) rows: Range<usize>,
    /// The batch's first row, which need not be one of them.
    pub(super) first: usize,
    pub(super) batch: Arc<RecordBatch>,
}

/// What is known of a row that is asked for.
enum Found {
    /// It is decoded.
    Batch(Held),
    /// It has to be decoded; whether the rows behind it will be asked for too.
    Nothing {
        /// Whether rows are read in order.
        in_order: bool,
    },
}

impl Batches {
    /// Looks for a row.
    fn find(&self, row: usize) -> Found {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let in_order = row > 0 && recent.asked.contains(&(row - 1));
        recent.asked.push_back(row);
        if recent.asked.len() > REMEMBERED {
            recent.asked.pop_front();
        }
        match recent.batches.iter().find(|held| held.rows.contains(&row)) {
            Some(held) => Found::Batch(held.clone()),
            None => Found::Nothing { in_order },
        }
    }

    /// Keeps a batch in place of the oldest.
    fn keep(&self, held: Held) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.batches.len() >= HELD {
            recent.batches.pop_front();
        }
        recent.batches.push_back(held);
    }

    /// Row `row` of a file: from the batches that are held, or by `decode(row, ahead)`, which decodes that row and where
    /// `ahead` some behind it.
    ///
    /// # Errors
    /// Those of `decode`, and a value that cannot be read.
    pub(super) fn row(
        &self,
        row: usize,
        decode: impl Fn(usize, bool) -> Result<Held, String>,
    ) -> Result<Cells, String> {
        let held = match self.find(row) {
            Found::Batch(held) => held,
            Found::Nothing { in_order: true } => {
                // A broken row must not take those before it along.
                let held = decode(row, true).or_else(|_| decode(row, false))?;
                self.keep(held.clone());
                held
            }
            Found::Nothing { in_order: false } => decode(row, false)?,
        };
        guarded(|| cells_of(&held.batch, row - held.first))
    }
}

/// Runs what may panic on broken files.
pub(super) fn guarded<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err("the file is broken".into()))
}

/// How many rows to decode at a time where they are read in order and take `row_bytes` each.
pub(super) fn ahead(row_bytes: u64) -> usize {
    const ROWS: u64 = 64;
    const BYTES: u64 = 4 << 20;
    (BYTES / row_bytes.max(1)).clamp(1, ROWS) as usize
}
