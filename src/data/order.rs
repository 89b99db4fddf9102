//! The seeded order in which an epoch visits a dataset.

use crate::rng::{Purpose, Stream};

/// The row numbers `0..n` in the order of epoch number `epoch` (from 0) under `seed`.
///
/// A pure function of its arguments (Fisher-Yates on a Philox stream per epoch), so a
/// resumed run finds its place from the step number alone. `n` is at most `u32::MAX`, as the rows of a dataset are.
pub fn order(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..n as u32).collect();
    Stream::new(seed, Purpose::Shuffle, epoch).shuffle(&mut rows);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_another_permutation_and_repeats_exactly() {
        let first = order(3, 0, 100);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(first, order(3, 0, 100));
        assert_ne!(first, order(3, 1, 100));
        assert_ne!(first, order(4, 0, 100));
        assert_ne!(first, sorted);
        assert!(order(3, 0, 0).is_empty());
    }

    /// Each of the 24 orders of 4 rows is equally likely: 24,000 epochs, 1,000 each, with a
    /// binomial standard deviation of 31; five of them.
    #[test]
    fn orders_are_uniform() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..24_000 {
            *counts.entry(order(1, epoch, 4)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|c| c.abs_diff(1_000) < 155), "{counts:?}");
    }
}
