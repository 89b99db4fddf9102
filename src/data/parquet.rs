//! The rows of a parquet file.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::batches::{Batches, Held, ahead, guarded};
use super::cells::Cells;
use super::parquet_pages::{check_footer, check_pages};
use super::parquet_values::check_values;
use super::table::{Origin, Place, Table};
use crate::error::{Error, Result};
use crate::files::{open_regular, read_at, read_up_to};

/// Largest footer, in bytes; that of a thousand row groups of ten columns takes about one MiB.
const MAX_FOOTER_BYTES: u64 = 32 << 20;
/// A parquet file of which the footer is held, and the few rows that were decoded last.
pub(super) struct ParquetTable {
    path: Arc<Path>,
    length: u64,
    metadata: ArrowReaderMetadata,
    /// The columns without lists in them, and those with.
    plain: Vec<usize>,
    lists: Vec<usize>,
    /// The first row of each row group, and the number of all rows.
    starts: Vec<usize>,
    /// Whether a row group's pages are sound, as far as it was asked.
    checked: Vec<OnceLock<std::result::Result<(), String>>>,
    batches: Batches,
}

impl ParquetTable {
    /// Reads the footer.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        let broken = |reason: String| Error::content(path, format!("not a readable parquet file: {reason}"));
        check_ends(&file, length).map_err(broken)?;
        let source = Source { file: Arc::new(file), length };
        // The page index is left out: places that it claims would go unchecked.
        let load = || {
            let metadata = ArrowReaderMetadata::load(&source, ArrowReaderOptions::new())?;
            let fields: Vec<Field> =
                metadata.schema().fields().iter().map(|field| small_field(field)).collect();
            let schema = Schema::new_with_metadata(fields, metadata.schema().metadata().clone());
            let options = ArrowReaderOptions::new().with_schema(schema.into());
            ArrowReaderMetadata::try_new(metadata.metadata().clone(), options)
        };
        let metadata = guarded(|| load().map_err(|e: ParquetError| e.to_string())).map_err(broken)?;
        let mut starts = vec![0];
        let mut rows = 0usize;
        for group in metadata.metadata().row_groups() {
            for column in group.columns() {
                if let Compression::BROTLI(_) | Compression::LZO = column.compression() {
                    let codec = column.compression().to_string();
                    let codec = codec.split('(').next().unwrap_or_default().to_lowercase();
                    return Err(Error::content(
                        path,
                        format!("is compressed by {codec}, which is not read; write it with zstd or snappy"),
                    ));
                }
            }
            let more = usize::try_from(group.num_rows()).ok();
            rows = more.and_then(|more| rows.checked_add(more)).unwrap_or(usize::MAX);
            starts.push(rows);
        }
        // What takes a few bytes per row must not take more than the file allows.
        if rows as u64 > length.saturating_mul(8) {
            return Err(broken(format!("claims {rows} rows in {length} bytes")));
        }
        let schema = metadata.metadata().file_metadata().schema_descr();
        let with_lists: Vec<usize> = (0..schema.num_columns())
            .filter(|leaf| schema.column(*leaf).max_rep_level() > 0)
            .map(|leaf| schema.get_column_root_idx(leaf))
            .collect();
        let (lists, plain) =
            (0..schema.root_schema().get_fields().len()).partition(|root| with_lists.contains(root));
        let checked = (1..starts.len()).map(|_| OnceLock::new()).collect();
        Ok(ParquetTable {
            path: path.into(),
            length,
            metadata,
            plain,
            lists,
            starts,
            checked,
            batches: Batches::default(),
        })
    }

    /// Decodes `row`, and where `in_order` some rows behind it.
    fn decode(&self, row: usize, in_order: bool) -> std::result::Result<Held, String> {
        let group = self.starts.partition_point(|start| *start <= row) - 1;
        let (first, end) = (self.starts[group], self.starts[group + 1]);
        let claims = self.metadata.metadata().row_group(group);
        let (file, length) = open_regular(&self.path).map_err(|e| e.to_string())?;
        if length != self.length {
            return Err("the file has changed since it was opened".into());
        }
        let source = Source { file: Arc::new(file), length };
        let check = || {
            check_pages(claims, |at, bytes| source.bytes(at, bytes))?;
            check_values(&source, claims)
        };
        let sound = self.checked[group].get_or_init(|| guarded(check));
        sound.clone()?;

        let row_bytes = claims.total_byte_size().max(0) / claims.num_rows().max(1);
        let most = ahead(row_bytes as u64);
        let rows = if !self.lists.is_empty() {
            let start = first + (row - first) / most * most;
            start..end.min(start + most)
        } else if in_order {
            row..end.min(row + most)
        } else {
            row..row + 1
        };
        let batch = guarded(|| {
            let read = |roots: &[usize], skips: bool| {
                self.columns(&source, group, roots, skips, rows.start - first..rows.end - first, most)
            };
            let (plain, lists) = (read(&self.plain, true)?, read(&self.lists, false)?);
            let mut columns = vec![None; self.plain.len() + self.lists.len()];
            for (batch, roots) in [(plain, &self.plain), (lists, &self.lists)] {
                for (column, root) in batch.iter().flat_map(|batch| batch.columns()).zip(roots) {
                    columns[*root] = Some(column.clone());
                }
            }
            let columns = columns.into_iter().collect::<Option<Vec<_>>>().ok_or("a column is missing")?;
            RecordBatch::try_new(self.metadata.schema().clone(), columns).map_err(|e| e.to_string())
        })?;
        Ok(Held { first: rows.start, rows, batch: Arc::new(batch) })
    }
}

impl ParquetTable {
    /// Some columns of some rows of a row group; none of no columns.
    ///
    /// Over lists the crate's reader does not skip (`skips`): where a page has fewer list levels than it claims, it would
    /// never end. It is read from the group's start instead, `rows` being one of the batches of `most` rows.
    fn columns(
        &self,
        source: &Source,
        group: usize,
        roots: &[usize],
        skips: bool,
        rows: Range<usize>,
        most: usize,
    ) -> std::result::Result<Option<RecordBatch>, String> {
        if roots.is_empty() {
            return Ok(None);
        }
        let schema = self.metadata.metadata().file_metadata().schema_descr();
        let mask = ProjectionMask::roots(schema, roots.iter().copied());
        let mut reader =
            ParquetRecordBatchReaderBuilder::new_with_metadata(source.clone(), self.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(mask)
                .with_batch_size(if skips { rows.len() } else { most });
        let mut before = rows.start / most;
        if skips {
            let selection = vec![RowSelector::skip(rows.start), RowSelector::select(rows.len())];
            reader = reader.with_row_selection(RowSelection::from(selection));
            before = 0;
        }
        let mut reader = reader.build().map_err(|e| e.to_string())?;
        for _ in 0..before {
            reader.next().transpose().map_err(|e| e.to_string())?;
        }
        match reader.next() {
            Some(Ok(batch)) if batch.num_rows() == rows.len() => Ok(Some(batch)),
            Some(Err(error)) => Err(error.to_string()),
            _ => Err("its pages hold fewer rows than are claimed".into()),
        }
    }
}

impl Table for ParquetTable {
    fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn read(&self, row: usize) -> Result<Cells> {
        self.batches
            .row(row, |row, ahead| self.decode(row, ahead))
            .map_err(|reason| self.origin(row).error(reason))
    }

    fn origin(&self, row: usize) -> Origin {
        Origin { file: self.path.clone(), place: Place::Row(row) }
    }

    fn files(&self) -> Vec<Arc<Path>> {
        vec![self.path.clone()]
    }
}

/// A field without 64-bit offsets, whatever the file says of how its rows once were in memory: the reader stops where 2 GiB
/// of a batch are full, to which a list of one long dictionary value can come.
fn small_field(field: &Field) -> Field {
    let small = |field: &Arc<Field>| Arc::new(small_field(field));
    let kind = match field.data_type() {
        DataType::LargeUtf8 => DataType::Utf8,
        DataType::LargeBinary => DataType::Binary,
        DataType::LargeList(item) | DataType::List(item) => DataType::List(small(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(small(item), *length),
        DataType::Map(entry, sorted) => DataType::Map(small(entry), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(small).collect()),
        DataType::Dictionary(_, value) => {
            small_field(&Field::new("", (**value).clone(), true)).data_type().clone()
        }
        other => other.clone(),
    };
    field.clone().with_data_type(kind)
}

/// Checks the magic bytes at both ends, and the schema in the footer.
fn check_ends(file: &File, length: u64) -> std::result::Result<(), String> {
    const MAGIC: &[u8] = b"PAR1";
    let read = |at, bytes| read_up_to(file, at, bytes).map_err(|e| e.to_string());
    if length < 12 || read(0, 4)? != MAGIC {
        return Err("it does not begin with PAR1".into());
    }
    let tail = read(length - 8, 8)?;
    match &tail[4..] {
        MAGIC => {}
        b"PARE" => return Err("its footer is encrypted".into()),
        _ => return Err("it does not end with PAR1; it was cut short (an unfinished download?)".into()),
    }
    let footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if footer > length - 12 {
        return Err(format!("its footer claims {footer} bytes of a file of {length}"));
    }
    if footer > MAX_FOOTER_BYTES {
        return Err(format!("its footer has {footer} bytes; at most {MAX_FOOTER_BYTES} are read"));
    }
    check_footer(&read(length - 8 - footer, footer as usize)?)
}

/// A file that is read at places, so that no reader moves another's.
#[derive(Clone)]
struct Source {
    file: Arc<File>,
    length: u64,
}

impl Source {
    fn bytes(&self, at: u64, bytes: usize) -> std::io::Result<Vec<u8>> {
        let bytes = self.length.saturating_sub(at).min(bytes as u64);
        read_up_to(&self.file, at, bytes as usize)
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Source {
    type T = BufReader<SourceAt>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::with_capacity(1 << 10, SourceAt { file: self.file.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let bytes = self.bytes(start, length)?;
        match bytes.len() == length {
            true => Ok(bytes.into()),
            false => Err(ParquetError::EOF("the file is cut short".into())),
        }
    }
}

/// A reader from one place on.
struct SourceAt {
    file: Arc<File>,
    at: u64,
}

impl Read for SourceAt {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = read_at(&self.file, buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: &[u8] = include_bytes!("../../tests/datasets/types/snappy.parquet");

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<ParquetTable>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        std::fs::write(&path, bytes).unwrap();
        let table = ParquetTable::open(&path);
        (dir, table)
    }

    #[test]
    fn case_29_files_that_are_cut_short_are_refused() {
        for cut in 0..TYPES.len() {
            if cut > 100 && cut + 100 < TYPES.len() && cut % 97 != 0 {
                continue;
            }
            let error = open(&TYPES[..cut]).1.err().unwrap();
            assert!(error.exit_code() == 65 && error.to_string().contains("x.parquet"), "{cut}: {error}");
        }
        let mut encrypted = TYPES.to_vec();
        let end = encrypted.len();
        encrypted[end - 1] = b'E';
        assert!(open(&encrypted).1.err().unwrap().to_string().contains("encrypted"));
        encrypted[end - 5] = 0x7f;
        encrypted[end - 1] = b'1';
        assert!(open(&encrypted).1.err().unwrap().to_string().contains("footer claims"));
    }

    /// A broken page is an error of its rows alone, which are named.
    #[test]
    fn case_29_a_broken_page_takes_only_its_rows_along() {
        let (_dir, table) = open(TYPES);
        let column = table.unwrap().metadata.metadata().row_group(1).column(0).clone();
        let (start, length) = column.byte_range();
        let mut broken = TYPES.to_vec();
        let end = (start + length) as usize;
        broken[end - 20..end].fill(0xff);
        let (_dir, table) = open(&broken);
        let table = table.unwrap();
        assert_eq!(table.rows(), 6);
        for row in [0, 3, 1] {
            assert!(table.read(row).is_ok(), "{row}");
        }
        for row in [4, 5] {
            let error = table.read(row).unwrap_err();
            assert!(
                error.exit_code() == 65 && error.to_string().contains(&format!("row {row}: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_an_error() {
        let (dir, table) = open(TYPES);
        let table = table.unwrap();
        assert!(table.read(0).is_ok());
        std::fs::write(dir.path().join("x.parquet"), &TYPES[..TYPES.len() - 1]).unwrap();
        assert!(table.read(1).unwrap_err().to_string().contains("has changed"));
    }
}
