//! Rows that are read when they are asked for.

use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use super::Sample;
use crate::error::{Error, Result};

/// Rows in a fixed order, each read when it is asked for. Clones share everything.
#[derive(Clone)]
pub struct Dataset {
    rows: Arc<dyn Rows>,
    sources: Arc<[Source]>,
}

/// A part of a dataset: its rows come one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What the user called it; empty for rows that were made in memory.
    pub name: Arc<str>,
    /// How many rows it has.
    pub rows: usize,
}

/// Where rows come from.
pub(super) trait Rows: Send + Sync {
    fn rows(&self) -> usize;
    fn sample(&self, row: usize) -> Result<Sample>;
}

/// Rows that [`Dataset::each`] works on before it hands over what came out.
const AT_ONCE: usize = 256;

impl Dataset {
    /// Rows that are in memory.
    pub fn from_samples(samples: Vec<Sample>) -> Dataset {
        Dataset::of("", samples)
    }

    pub(super) fn of(name: &str, rows: impl Rows + 'static) -> Dataset {
        let source = Source { name: name.into(), rows: rows.rows() };
        Dataset { rows: Arc::new(rows), sources: [source].into() }
    }

    /// The rows of all `parts`, one behind the other.
    ///
    /// A row's number is that in the whole. Where there are several parts, a row without a column `data_source` gets one:
    /// the name of its part, for the rewards.
    pub fn concat(parts: Vec<Dataset>) -> Dataset {
        if let [one] = parts.as_slice() {
            return one.clone();
        }
        let sources = parts.iter().flat_map(|part| part.sources.iter().cloned()).collect();
        let mut begins = Vec::with_capacity(parts.len());
        let mut rows = 0;
        for part in &parts {
            begins.push(rows);
            rows += part.rows();
        }
        Dataset { rows: Arc::new(Concat { parts, begins, rows }), sources }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// The parts that the rows come from, in their order.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Row number `row`, from 0, read now.
    ///
    /// # Errors
    /// Those of reading it, with its place; [`Error::Internal`] for a number that is too large.
    pub fn sample(&self, row: usize) -> Result<Sample> {
        match row < self.rows() {
            true => self.rows.sample(row),
            false => Err(Error::Internal(format!("row {row} of a dataset of {} rows", self.rows()))),
        }
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Sample>> {
        (0..self.rows()).map(|row| self.sample(row))
    }

    /// The rows of some numbers alone; `rows` ascends.
    pub fn view(&self, rows: Vec<u32>) -> Dataset {
        let mut end = 0;
        let sources = self.sources.iter().map(|source| {
            let begin = rows.partition_point(|&row| (row as usize) < end);
            end += source.rows;
            Source {
                name: source.name.clone(),
                rows: rows.partition_point(|&row| (row as usize) < end) - begin,
            }
        });
        let sources = sources.collect();
        Dataset { rows: Arc::new(View { of: self.clone(), rows }), sources }
    }

    /// The same rows, each changed by `change` when it is read.
    pub fn map(&self, change: impl Fn(Sample) -> Result<Sample> + Send + Sync + 'static) -> Dataset {
        Dataset { rows: Arc::new(Changed { of: self.clone(), change }), sources: self.sources.clone() }
    }

    /// The rows as prompts: an assistant's closing message, the answer for SFT, is left out.
    pub fn prompts(&self) -> Dataset {
        self.map(|sample| Ok(if sample.ends_with_assistant() { sample.prompt() } else { sample }))
    }

    /// The rows as SFT needs them (see [`Sample::supervised`]).
    pub fn supervised(&self) -> Dataset {
        self.map(|sample| sample.supervised())
    }

    /// The solutions of all rows that have one.
    ///
    /// # Errors
    /// Those of reading the rows.
    pub fn answers(&self) -> Result<Vec<String>> {
        self.iter().filter_map(|sample| sample.map(|sample| sample.solution).transpose()).collect()
    }

    /// Does `work` for every row, on all threads, and hands what it gives to `then` in the order of the rows. Of the rows
    /// themselves no more are in memory than there are threads.
    ///
    /// # Errors
    /// The first that `then` gives.
    pub fn each<T: Send>(
        &self,
        work: impl Fn(usize, Result<Sample>) -> T + Sync,
        mut then: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        let rows = self.rows();
        for first in (0..rows).step_by(AT_ONCE) {
            let chunk = first..(first + AT_ONCE).min(rows);
            let done: Vec<T> = chunk.clone().into_par_iter().map(|row| work(row, self.sample(row))).collect();
            chunk.zip(done).try_for_each(|(row, done)| then(row, done))?;
        }
        Ok(())
    }

    /// The rows that can be read and pass `check`, all of which is done now; `advance` is told of each. The error of
    /// another row goes to `bad`, which ends the checking with an error or lets it go on without the row.
    ///
    /// # Errors
    /// Those of `bad`, and at once one that is not of the row but of reading (`Io`, `Missing`).
    pub fn usable(
        &self,
        check: impl Fn(&Sample) -> Result<()> + Sync,
        advance: impl Fn(u64),
        mut bad: impl FnMut(Error) -> Result<()>,
    ) -> Result<Dataset> {
        let mut kept = Vec::new();
        let work = |_, sample: Result<Sample>| match sample {
            Ok(sample) => Ok(check(&sample)),
            Err(error @ (Error::Content { .. } | Error::Input(_))) => Ok(Err(error)),
            Err(error) => Err(error),
        };
        self.each(work, |row, checked| {
            advance(1);
            match checked? {
                Ok(()) => kept.push(row as u32),
                Err(error) => bad(error)?,
            }
            Ok(())
        })?;
        Ok(if kept.len() == self.rows() { self.clone() } else { self.view(kept) })
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset({} rows)", self.rows())
    }
}

impl Rows for Vec<Sample> {
    fn rows(&self) -> usize {
        self.len()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        Ok(self[row].clone())
    }
}

struct View {
    of: Dataset,
    rows: Vec<u32>,
}

impl Rows for View {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        self.of.sample(self.rows[row] as usize)
    }
}

struct Changed<F> {
    of: Dataset,
    change: F,
}

impl<F: Fn(Sample) -> Result<Sample> + Send + Sync> Rows for Changed<F> {
    fn rows(&self) -> usize {
        self.of.rows()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        (self.change)(self.of.sample(row)?)
    }
}

struct Concat {
    parts: Vec<Dataset>,
    /// The number of each part's first row.
    begins: Vec<usize>,
    rows: usize,
}

/// The column that says which part of a dataset a row is of.
const DATA_SOURCE: &str = "data_source";

impl Rows for Concat {
    fn rows(&self) -> usize {
        self.rows
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        // The last part that begins at or before the row: parts without rows are passed over.
        let part = self.begins.partition_point(|&begin| begin <= row) - 1;
        let (of, begin) = (&self.parts[part], self.begins[part]);
        let mut sample = of.sample(row - begin)?;
        sample.row += begin;
        if !sample.columns.contains_key(DATA_SOURCE) {
            let name = of.sources.first().map_or("", |source| &source.name);
            sample.columns.insert(DATA_SOURCE.into(), name.into());
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(rows: usize) -> Dataset {
        Dataset::from_samples((0..rows).map(|row| Sample { row, ..Sample::default() }).collect())
    }

    fn named(name: &str, rows: usize) -> Dataset {
        Dataset::of(name, (0..rows).map(|row| Sample { row, ..Sample::default() }).collect::<Vec<_>>())
    }

    fn rows(dataset: &Dataset) -> Vec<usize> {
        dataset.iter().map(|sample| sample.unwrap().row).collect()
    }

    #[test]
    fn views_maps_and_parts_keep_numbers_and_sources() {
        let whole = Dataset::concat(vec![named("a", 3), named("none", 0), named("b", 2)]);
        assert_eq!(rows(&whole), [0, 1, 2, 3, 4]);
        let source = |row| whole.sample(row).unwrap().columns["data_source"].as_str().unwrap().to_owned();
        assert_eq!([source(0), source(2), source(3), source(4)], ["a", "a", "b", "b"]);
        let view =
            whole.map(|sample| Ok(Sample { solution: Some("s".into()), ..sample })).view(vec![1, 2, 4]);
        assert_eq!(rows(&view), [1, 2, 4]);
        let sizes: Vec<_> = view.sources().iter().map(|source| (&*source.name, source.rows)).collect();
        assert_eq!(sizes, [("a", 2), ("none", 0), ("b", 1)]);
        assert_eq!(view.answers().unwrap().len(), 3);
        assert_eq!(view.sample(3).unwrap_err().exit_code(), 1);
        // One part stays what it is.
        assert!(Dataset::concat(vec![named("a", 1)]).sample(0).unwrap().columns.is_empty());
    }

    #[test]
    fn every_row_is_visited_once_and_in_order() {
        let dataset = numbered(3 * AT_ONCE + 7);
        let mut seen = Vec::new();
        let work = |row, sample: Result<Sample>| (row, sample.unwrap().row);
        dataset
            .each(work, |row, (of_work, of_sample)| {
                assert!(row == of_work && row == of_sample);
                seen.push(row);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, (0..3 * AT_ONCE + 7).collect::<Vec<_>>());
        let stop = |row, _| if row == 300 { Err(Error::Input("stop".into())) } else { Ok(()) };
        assert!(dataset.each(work, stop).is_err());
    }

    #[test]
    fn bad_rows_are_told_of_in_order_and_left_out() {
        let odd = |sample: &Sample| match sample.row % 2 {
            0 => Ok(()),
            _ => Err(Error::Input(format!("row {}", sample.row))),
        };
        let mut bad = Vec::new();
        let told = std::cell::Cell::new(0);
        let advance = |n| told.set(told.get() + n);
        let kept = numbered(5).usable(odd, advance, |error| {
            bad.push(error.to_string());
            Ok(())
        });
        assert_eq!(rows(&kept.unwrap()), [0, 2, 4]);
        assert_eq!((bad, told.get()), (vec!["row 1".to_owned(), "row 3".into()], 5));
        assert_eq!(numbered(5).usable(odd, |_| (), Err).unwrap_err().to_string(), "row 1");
        // What is not of the row ends it at once.
        let broken = numbered(2).map(|_| Err(Error::missing("a", "gone")));
        assert_eq!(broken.usable(odd, |_| (), |_| Ok(())).unwrap_err().exit_code(), 66);
    }
}
