//! What device memory is used for, in bytes.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a piece of device memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Parameters of the policy and of the reference.
    Weights,
    /// Accumulated gradients.
    Gradients,
    /// Master weights and moments.
    Optimiser,
    /// Results of ops, kept for the backward pass or not.
    Activations,
    /// Keys and values of the rollout.
    KvCache,
    /// Scratch memory inside one op.
    Workspace,
    /// Inputs on their way: tokens, positions, patches, tables.
    Inputs,
}

const PURPOSES: [(Purpose, &str); 7] = [
    (Purpose::Weights, "weights"),
    (Purpose::Gradients, "gradients"),
    (Purpose::Optimiser, "optimiser"),
    (Purpose::Activations, "activations"),
    (Purpose::KvCache, "KV cache"),
    (Purpose::Workspace, "workspace"),
    (Purpose::Inputs, "inputs"),
];

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PURPOSES[*self as usize].1)
    }
}

/// Bytes by purpose: now, and the most there were at once.
#[derive(Debug, Default)]
pub struct Ledger {
    now: [AtomicUsize; PURPOSES.len()],
    peak: [AtomicUsize; PURPOSES.len()],
}

impl Ledger {
    pub(super) fn add(&self, purpose: Purpose, bytes: usize) {
        let now = self.now[purpose as usize].fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak[purpose as usize].fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, purpose: Purpose, bytes: usize) {
        self.now[purpose as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes in use for a purpose.
    pub fn bytes(&self, purpose: Purpose) -> usize {
        self.now[purpose as usize].load(Ordering::Relaxed)
    }

    /// The most bytes that were in use for a purpose at once.
    pub fn peak_bytes(&self, purpose: Purpose) -> usize {
        self.peak[purpose as usize].load(Ordering::Relaxed)
    }
}

impl Ledger {
    /// The most bytes at once for each purpose, by its name with `_` for spaces in lower case.
    pub fn peaks(&self) -> Vec<(String, usize)> {
        let name = |name: &str| name.to_lowercase().replace(' ', "_");
        PURPOSES.iter().map(|&(purpose, text)| (name(text), self.peak_bytes(purpose))).collect()
    }
}

/// `weights 4.1 GiB, activations 12.5 GiB`: what is in use, in the order of [`Purpose`].
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used: Vec<String> = PURPOSES
            .iter()
            .map(|&(purpose, name)| (name, self.bytes(purpose)))
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(name, bytes)| format!("{name} {}", Bytes(bytes)))
            .collect();
        f.write_str(if used.is_empty() { "nothing" } else { "" })?;
        f.write_str(&used.join(", "))
    }
}

/// A number of bytes in the unit that fits it.
pub(super) struct Bytes(pub usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1024 => write!(f, "{} bytes", self.0),
            1024..1_048_576 => write!(f, "{:.1} KiB", self.0 as f64 / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", self.0 as f64 / 1_048_576.0),
            _ => write!(f, "{:.1} GiB", self.0 as f64 / 1_073_741_824.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_purpose_and_remembers_the_peak() {
        let ledger = Ledger::default();
        assert_eq!(ledger.to_string(), "nothing");
        ledger.add(Purpose::Weights, 3 << 30);
        ledger.add(Purpose::Inputs, 1536);
        ledger.add(Purpose::Workspace, 100);
        ledger.remove(Purpose::Workspace, 100);
        assert_eq!(ledger.to_string(), "weights 3.0 GiB, inputs 1.5 KiB");
        assert_eq!(ledger.peaks()[4..6], [("kv_cache".to_owned(), 0), ("workspace".to_owned(), 100)]);
        assert_eq!((ledger.bytes(Purpose::Workspace), ledger.peak_bytes(Purpose::Workspace)), (0, 100));
    }
}
