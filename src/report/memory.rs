//! The memory plan that `--dry_run` prints.

use std::fmt;

/// How many bytes a run will hold, by purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Purpose and bytes, in the order to print.
    pub rows: Vec<(String, u64)>,
}

impl MemoryPlan {
    /// Adds a row.
    pub fn add(&mut self, purpose: impl Into<String>, bytes: u64) {
        self.rows.push((purpose.into(), bytes));
    }

    /// The sum of all rows.
    pub fn total_bytes(&self) -> u64 {
        self.rows.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// A table: purpose, bytes, the same in a readable unit; then the total.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = ("total".to_owned(), self.total_bytes());
        let wide = |(purpose, _): &(String, u64)| purpose.chars().count();
        let width = self.rows.iter().map(wide).chain(["memory plan".len()]).max().unwrap_or_default();
        writeln!(f, "{:<width$}  {:>18}", "memory plan", "bytes")?;
        for (purpose, bytes) in self.rows.iter().chain([&total]) {
            writeln!(f, "{purpose:<width$}  {bytes:>18}  {:>11}", readable_bytes(*bytes))?;
        }
        Ok(())
    }
}

/// `3.2 MiB`: the largest binary unit in which the size is at least 1.
pub fn readable_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut size = bytes as f64;
    let mut unit = "B";
    for next in units {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_ends_with_the_total() {
        let mut plan = MemoryPlan::default();
        plan.add("parameters (f32)", 4096);
        plan.add("KV cache", 1 << 20);
        assert_eq!(
            plan.to_string(),
            "memory plan                    bytes\n\
             parameters (f32)                4096      4.0 KiB\n\
             KV cache                     1048576      1.0 MiB\n\
             total                        1052672      1.0 MiB\n"
        );
    }

    #[test]
    fn units() {
        assert_eq!(readable_bytes(1023), "1023 B");
        assert_eq!(readable_bytes(1536), "1.5 KiB");
        assert_eq!(readable_bytes(u64::MAX), "16.0 EiB");
    }
}
