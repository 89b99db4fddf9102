//! Which pages of the key/value cache are free.

use crate::ops::attention::paged::{PAGE, Pages};

/// The free pages of a cache.
#[derive(Debug)]
pub(super) struct PagePool {
    free: Vec<usize>,
}

impl PagePool {
    /// All of `count` pages.
    pub(super) fn new(count: usize) -> PagePool {
        PagePool { free: (0..count).rev().collect() }
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Empty pages with room for `tokens`; none when too few are free.
    pub(super) fn take(&mut self, tokens: usize) -> Option<Pages> {
        let rest = self.free.len().checked_sub(pages_of(tokens))?;
        Some(Pages { numbers: self.free.split_off(rest), len: 0 })
    }

    /// Takes pages back.
    pub(super) fn give(&mut self, pages: Pages) {
        self.free.extend(pages.numbers);
    }
}

/// Pages that `tokens` need.
pub(super) fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_once_and_come_back() {
        let mut pool = PagePool::new(3);
        let two = pool.take(PAGE + 1).unwrap();
        assert_eq!((two.numbers.len(), two.len, pool.free()), (2, 0, 1));
        assert!(pool.take(PAGE + 1).is_none());
        let one = pool.take(PAGE).unwrap();
        assert!(two.numbers.iter().all(|page| !one.numbers.contains(page)));
        assert!(pool.take(0).unwrap().numbers.is_empty());
        pool.give(two);
        assert_eq!(pool.free(), 2);
    }
}
