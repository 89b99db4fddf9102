//! The order in which a run sees its prompts.

use crate::config::StoppingStrategy;
use crate::data::{Dataset, order};
use crate::error::{Error, Result};

/// An endless stream of row numbers: epoch after epoch, each in an order of its own.
///
/// Datasets may have weights: then an epoch has `c_i` rows of dataset i, `c_i` in the proportion of the weights, in an
/// order of its own, and each dataset is gone through in its own orders at its own pace, epoch by epoch of the stream
/// going on where the last one stopped.
///
/// Place i of the stream is a pure function of (seed, i), so a run continues anywhere without any state but the
/// number of steps done. A step takes whole prompts; a step that reaches the end of an epoch goes on in the next.
#[derive(Clone, Debug)]
pub struct Stream {
    rows: usize,
    seed: u64,
    shuffle: bool,
    epoch: Option<(u64, Vec<u32>)>,
    mix: Option<Mix>,
}

/// Datasets with weights.
#[derive(Clone, Debug)]
struct Mix {
    parts: Vec<Part>,
    /// The epoch that is known, and for each of its places the part and which of the part's places in the epoch it is.
    epoch: Option<(u64, Vec<(u32, u32)>)>,
}

#[derive(Clone, Debug)]
struct Part {
    /// Number of its first row in the whole.
    begin: usize,
    /// Places that it has in an epoch.
    count: usize,
    /// Its own rows.
    stream: Stream,
}

/// What tells the orders of a mix's parts from one another and from that of the whole.
const PART_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

impl Stream {
    /// A stream over `rows` rows. Fails when there are none.
    pub fn new(rows: usize, seed: u64, shuffle: bool) -> Result<Stream> {
        if rows == 0 {
            return Err(Error::Input("the dataset has no rows to train on".into()));
        }
        Ok(Stream { rows, seed, shuffle, epoch: None, mix: None })
    }

    /// A stream over a dataset; with `weights`, one for each of its sources, in their proportion.
    ///
    /// # Errors
    /// [`Error::Input`] when there are no rows, with weights in any source.
    pub fn over(
        dataset: &Dataset,
        weights: &[f64],
        until: StoppingStrategy,
        seed: u64,
        shuffle: bool,
    ) -> Result<Stream> {
        let sources = dataset.sources();
        if weights.len() != sources.len() || sources.len() < 2 {
            return Stream::new(dataset.rows(), seed, shuffle);
        }
        if let Some(empty) = sources.iter().find(|source| source.rows == 0) {
            return Err(Error::Input(format!("{} has no rows left to train on", empty.name)));
        }
        let sizes: Vec<usize> = sources.iter().map(|source| source.rows).collect();
        let (mut parts, mut begin) = (Vec::new(), 0);
        for (part, (count, &rows)) in counts(&sizes, weights, until).into_iter().zip(&sizes).enumerate() {
            let seed = seed ^ PART_SEED.wrapping_mul(part as u64 + 1);
            parts.push(Part { begin, count, stream: Stream::new(rows, seed, shuffle)? });
            begin += rows;
        }
        let rows = parts.iter().map(|part| part.count).sum();
        Ok(Stream { rows, seed, shuffle, epoch: None, mix: Some(Mix { parts, epoch: None }) })
    }

    /// The row at place `place`.
    pub fn row(&mut self, place: u64) -> usize {
        let rows = self.rows as u64;
        let (epoch, index) = (place / rows, (place % rows) as usize);
        if let Some(mix) = &mut self.mix {
            let (seed, shuffle) = (self.seed, self.shuffle);
            return mix.row(epoch, index, |rows| {
                if shuffle { order(seed, epoch, rows) } else { (0..rows as u32).collect() }
            });
        }
        if !self.shuffle {
            return index;
        }
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.epoch = Some((epoch, order(self.seed, epoch, self.rows)));
        }
        self.epoch.as_ref().map_or(index, |(_, order)| order[index] as usize)
    }

    /// Number of rows in an epoch.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl Mix {
    /// The row at place `index` of an epoch whose order `order` gives.
    fn row(&mut self, epoch: u64, index: usize, order: impl FnOnce(usize) -> Vec<u32>) -> usize {
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.epoch = Some((epoch, self.places(order)));
        }
        let (part, nth) = self.epoch.as_ref().map_or((0, 0), |(_, places)| places[index]);
        let part = &mut self.parts[part as usize];
        part.begin + part.stream.row(epoch * part.count as u64 + u64::from(nth))
    }

    /// For each place of an epoch its part, and which of the part's places it is. Spread evenly, then put in order.
    fn places(&self, order: impl FnOnce(usize) -> Vec<u32>) -> Vec<(u32, u32)> {
        // Where in the epoch each place would stand, were it alone: the middle of its share.
        let mut even: Vec<(f64, u32)> = Vec::new();
        for (number, part) in self.parts.iter().enumerate() {
            even.extend((0..part.count).map(|nth| ((nth as f64 + 0.5) / part.count as f64, number as u32)));
        }
        even.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut next = vec![0; self.parts.len()];
        let in_order = order(even.len()).into_iter().map(|place| even[place as usize].1);
        in_order
            .map(|part| {
                let nth = next[part as usize];
                next[part as usize] += 1;
                (part, nth)
            })
            .collect()
    }
}

/// How many places each part has in an epoch: its weight times what makes the first, or the last, part whole.
fn counts(sizes: &[usize], weights: &[f64], until: StoppingStrategy) -> Vec<usize> {
    let lengths = sizes.iter().zip(weights).map(|(&size, weight)| size as f64 / weight);
    let length = match until {
        StoppingStrategy::FirstExhausted => lengths.fold(f64::INFINITY, f64::min),
        StoppingStrategy::AllExhausted => lengths.fold(0.0, f64::max),
    };
    // An epoch is numbered in 32 bits.
    let most = f64::from(u32::MAX) / sizes.len() as f64;
    weights.iter().map(|weight| (length * weight).round().clamp(1.0, most) as usize).collect()
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
    use crate::data::Sample;

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

    fn mixed(weights: &[f64], until: StoppingStrategy, shuffle: bool) -> Stream {
        let samples = |rows| Dataset::from_samples(vec![Sample::default(); rows]);
        let dataset = Dataset::concat(vec![samples(6), samples(100)]);
        Stream::over(&dataset, weights, until, 3, shuffle).unwrap()
    }

    /// Of the sources of 6 and 100 rows, how often each row came in some places.
    fn seen(stream: &mut Stream, places: std::ops::Range<u64>) -> Vec<usize> {
        let mut seen = vec![0; 106];
        places.for_each(|place| seen[stream.row(place)] += 1);
        seen
    }

    #[test]
    fn weights_are_shares_and_every_row_has_its_turn() {
        for shuffle in [false, true] {
            let mut stream = mixed(&[2.0, 1.0], StoppingStrategy::FirstExhausted, shuffle);
            assert_eq!(stream.rows(), 6 + 3);
            // Each epoch has the first source whole and the next 3 rows of the second.
            for epoch in 0..33 {
                let seen = seen(&mut stream, epoch * 9..(epoch + 1) * 9);
                assert_eq!(seen[..6], [1; 6]);
                assert_eq!(seen[6..].iter().sum::<usize>(), 3);
            }
            let whole = seen(&mut stream, 0..33 * 9);
            assert!(whole[6..].iter().all(|&n| n <= 1) && whole[6..].iter().sum::<usize>() == 99);

            let mut stream = mixed(&[1.0, 1.0], StoppingStrategy::AllExhausted, shuffle);
            assert_eq!(stream.rows(), 200);
            let seen = seen(&mut stream, 0..200);
            assert_eq!(seen[6..], [1; 100]);
            assert!(seen[..6].iter().all(|n| [16, 17].contains(n)), "{seen:?}");
        }
        // Without shuffling the sources alternate evenly and keep their order.
        let mut stream = mixed(&[2.0, 1.0], StoppingStrategy::FirstExhausted, false);
        assert_eq!((0..9).map(|p| stream.row(p)).collect::<Vec<_>>(), [0, 6, 1, 2, 7, 3, 4, 8, 5]);
        let mut stream = mixed(&[2.0, 1.0], StoppingStrategy::FirstExhausted, true);
        let places: Vec<usize> = (0..90).map(|p| stream.row(p)).collect();
        let mut again = mixed(&[2.0, 1.0], StoppingStrategy::FirstExhausted, true);
        assert!(
            (0..90).rev().all(|p| again.row(p) == places[p as usize]),
            "a place is a function of the seed"
        );
        // Without weights the rows are one dataset.
        let mut stream = mixed(&[], StoppingStrategy::FirstExhausted, true);
        assert_eq!(seen(&mut stream, 0..106), [1; 106]);
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
