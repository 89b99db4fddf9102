//! The order in which a run sees its prompts.

use crate::data::order;
use crate::error::{Error, Result};

/// An endless stream of row numbers: epoch after epoch, each in an order of its own.
///
/// Place i of the stream is a pure function of (seed, i), so a run continues anywhere without any state but the
/// number of steps done. A step takes whole prompts; a step that reaches the end of an epoch goes on in the next.
#[derive(Clone, Debug)]
pub struct Stream {
    rows: usize,
    seed: u64,
    shuffle: bool,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Stream {
    /// A stream over `rows` rows. Fails when there are none.
    pub fn new(rows: usize, seed: u64, shuffle: bool) -> Result<Stream> {
        if rows == 0 {
            return Err(Error::Input("the dataset has no rows to train on".into()));
        }
        Ok(Stream { rows, seed, shuffle, epoch: None })
    }

    /// The row at place `place`.
    pub fn row(&mut self, place: u64) -> usize {
        let rows = self.rows as u64;
        let (epoch, index) = (place / rows, (place % rows) as usize);
        if !self.shuffle {
            return index;
        }
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.epoch = Some((epoch, order(self.seed, epoch, self.rows)));
        }
        self.epoch.as_ref().map_or(index, |(_, order)| order[index])
    }

    /// Number of rows in an epoch.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Optimiser steps of a run: `max_steps` if given, else what `epochs` over `rows` rows make, at least one.
///
/// A step takes `prompts_per_step` new prompts and makes `updates` optimiser steps with them.
pub fn total_steps(
    max_steps: Option<usize>,
    epochs: f64,
    rows: usize,
    prompts_per_step: usize,
    updates: usize,
) -> u64 {
    max_steps.map_or_else(
        || ((epochs * rows as f64 / prompts_per_step.max(1) as f64).floor() as u64).max(1) * updates as u64,
        |steps| steps as u64,
    )
}

/// Optimiser steps of one pass over the rows, the one that ends it included.
pub fn epoch_steps(rows: usize, prompts_per_step: usize, updates: usize) -> u64 {
    (rows.div_ceil(prompts_per_step.max(1)).max(1) * updates) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_row_once() -> Result<()> {
        let mut stream = Stream::new(7, 3, true)?;
        let places: Vec<usize> = (0..14).map(|p| stream.row(p)).collect();
        for epoch in places.chunks(7) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(places[..7], places[7..]);
        assert_eq!(
            Stream::new(7, 3, true)?.row(9),
            places[9],
            "a place does not depend on what was read before"
        );
        assert_eq!(Stream::new(7, 3, false)?.row(9), 2);
        assert!(Stream::new(0, 3, true).is_err());
        Ok(())
    }

    #[test]
    fn steps_of_a_run() {
        assert_eq!(total_steps(Some(5), 2.0, 100, 16, 1), 5);
        assert_eq!(total_steps(None, 2.0, 100, 16, 1), 12);
        assert_eq!(total_steps(None, 1.0, 100, 16, 2), 12);
        assert_eq!(total_steps(None, 1.0, 3, 16, 1), 1);
        assert_eq!((epoch_steps(100, 16, 2), epoch_steps(96, 16, 1), epoch_steps(3, 16, 1)), (14, 6, 1));
    }
}
