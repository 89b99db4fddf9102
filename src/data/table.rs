//! Tables: rows in any order, whatever the file format.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::MAX_LINE_BYTES;
use super::arrow_stream::ArrowTable;
use super::cells::Cells;
use super::jsonl_table::JsonlTable;
use super::parquet::ParquetTable;
use super::splits::{extension, find_files};
use crate::error::{Error, Result};

/// Rows that are read when they are asked for, from any thread. Memory does not grow with what the rows hold.
pub trait Table: Send + Sync {
    /// How many rows there are.
    fn rows(&self) -> usize;

    /// Reads row `row` (from 0, below [`Table::rows`]) now.
    ///
    /// # Errors
    /// `Content` naming the row's place if it is broken: the rows beside it can be read all the same. `Io` or `Missing`
    /// for a failed read.
    fn read(&self, row: usize) -> Result<Cells>;

    /// Where row `row` stands.
    fn origin(&self, row: usize) -> Origin;

    /// The files that hold the rows, in the order of the rows. A relative image path of a row is looked for in the folder
    /// of its file.
    fn files(&self) -> Vec<Arc<Path>>;
}

/// The place of a row, for errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// Where in the file.
    pub place: Place,
}

/// A row's place in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a text, from 1.
    Line(usize),
    /// A row of a table, from 0.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
}

impl Origin {
    /// `Content` with the file, the place and `reason`.
    pub fn error(&self, reason: impl fmt::Display) -> Error {
        Error::content(&self.file, format!("{}: {reason}", self.place))
    }
}

/// How tables are opened.
#[derive(Clone, Debug)]
pub struct TableOptions {
    /// Longest line of a JSONL file in bytes.
    pub max_line_bytes: usize,
}

impl Default for TableOptions {
    fn default() -> Self {
        TableOptions { max_line_bytes: MAX_LINE_BYTES }
    }
}

/// Opens the rows of `split` at `path`, a file or a folder. `split` counts only for a folder.
///
/// | extension | read as |
/// |---|---|
/// | `.parquet` | parquet |
/// | `.arrow` | Arrow IPC, stream or file |
/// | any other | JSONL |
///
/// A folder's splits are found as `datasets` finds them: see the README.
///
/// # Errors
/// `Missing` if there is no such dataset or split, with what was found; `Usage` for a split name that is not a plain
/// name; `Content` for a file that is no table; `Io` for a failed read. Bad rows are no error until they are read.
pub fn open_table(path: &Path, split: &str, options: &TableOptions) -> Result<Box<dyn Table>> {
    let mut tables = Vec::new();
    for file in find_files(path, split)? {
        tables.push(open_file(&file, options)?);
    }
    Ok(match tables.len() {
        1 => tables.remove(0),
        _ => Box::new(Shards::of(tables)),
    })
}

fn open_file(file: &Path, options: &TableOptions) -> Result<Box<dyn Table>> {
    Ok(match extension(file).as_str() {
        "parquet" => Box::new(ParquetTable::open(file)?),
        "arrow" => Box::new(ArrowTable::open(file)?),
        _ => Box::new(JsonlTable::open(file, options.max_line_bytes)?),
    })
}

/// Several tables, one behind the other.
struct Shards {
    tables: Vec<Box<dyn Table>>,
    /// The first row of each table, and the number of all rows.
    starts: Vec<usize>,
}

impl Shards {
    fn of(tables: Vec<Box<dyn Table>>) -> Self {
        let mut starts = vec![0];
        for table in &tables {
            starts.push(starts[starts.len() - 1] + table.rows());
        }
        Shards { tables, starts }
    }

    /// The table that holds a row, and the row there.
    fn find(&self, row: usize) -> (&dyn Table, usize) {
        let table = self.starts.partition_point(|start| *start <= row) - 1;
        (&*self.tables[table], row - self.starts[table])
    }
}

impl Table for Shards {
    fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn read(&self, row: usize) -> Result<Cells> {
        let (table, row) = self.find(row);
        table.read(row)
    }

    fn origin(&self, row: usize) -> Origin {
        let (table, row) = self.find(row);
        table.origin(row)
    }

    fn files(&self) -> Vec<Arc<Path>> {
        self.tables.iter().flat_map(|table| table.files()).collect()
    }
}
