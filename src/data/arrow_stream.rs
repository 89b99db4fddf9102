//! The rows of Arrow IPC files, streams (`save_to_disk`) and files alike.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow_buffer::Buffer;
use arrow_ipc::reader::FileDecoder;
use arrow_ipc::{Block, MessageHeader, convert, root_as_message};
use arrow_schema::{DataType, SchemaRef};

use super::batches::{Batches, Held, ahead, guarded};
use super::cells::Cells;
use super::table::{Origin, Place, Table};
use crate::error::{Error, Result};
use crate::files::{open_regular, read_up_to};

/// Longest description of a schema or a batch, in bytes.
const MAX_MESSAGE_BYTES: u64 = 16 << 20;
/// Largest record batch, in bytes: 2 GiB. Only what a row needs of it is read.
const MAX_BATCH_BYTES: u64 = 2 << 30;
/// Most bytes of dictionaries, which stay in memory.
const MAX_DICTIONARY_BYTES: u64 = 64 << 20;

/// An Arrow file of which the places of the record batches are held.
pub(super) struct ArrowTable {
    path: Arc<Path>,
    length: u64,
    schema: SchemaRef,
    decoder: FileDecoder,
    messages: Vec<Message>,
    /// The first row of each batch, and the number of all rows.
    starts: Vec<usize>,
    batches: Batches,
}

/// The place of a message in the file.
#[derive(Clone, Copy)]
struct Message {
    at: u64,
    /// Bytes of the length marks and the description.
    head: u64,
    body: u64,
}

type Read<T> = std::result::Result<T, String>;

impl ArrowTable {
    /// Walks over the messages of the file, whose bodies are left where they are.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        guarded(|| Self::index(path, &file, length))
            .map_err(|reason| Error::content(path, format!("not a readable Arrow file: {reason}")))
    }

    fn index(path: &Path, file: &File, length: u64) -> Read<Self> {
        const FILE_MAGIC: &[u8] = b"ARROW1\0\0";
        let read = |at, bytes| read_up_to(file, at, bytes).map_err(|e| e.to_string());
        let mut at = if read(0, 8)? == FILE_MAGIC { 8 } else { 0 };
        let mut decoder: Option<(SchemaRef, FileDecoder)> = None;
        let (mut messages, mut starts, mut dictionaries) = (Vec::new(), vec![0], 0);
        while let Some(message) = next_message(file, at, length)? {
            let head = read(at, message.head as usize)?;
            let described = describe(&head)?;
            let body = u64::try_from(described.bodyLength()).map_err(|_| CUT)?;
            let message = Message { body, ..message };
            if body > length - at - message.head {
                return Err(format!("{CUT} (an unfinished download?)"));
            }
            match (described.header_type(), &mut decoder) {
                (MessageHeader::Schema, None) => {
                    let schema = described.header_as_schema().ok_or(CUT)?;
                    let schema: SchemaRef =
                        convert::try_fb_to_schema(schema).map_err(|e| e.to_string())?.into();
                    let decoder_of = FileDecoder::new(schema.clone(), described.version());
                    decoder = Some((schema, decoder_of));
                }
                (MessageHeader::RecordBatch, Some(_)) => {
                    let batch = described.header_as_record_batch().ok_or(CUT)?;
                    let rows = usize::try_from(batch.length()).map_err(|_| CUT)?;
                    let last = starts[starts.len() - 1];
                    starts.push(rows.saturating_add(last));
                    messages.push(message);
                }
                (MessageHeader::DictionaryBatch, Some((_, decoder))) => {
                    if !messages.is_empty() {
                        return Err("its dictionaries change between batches".into());
                    }
                    dictionaries += body;
                    if dictionaries > MAX_DICTIONARY_BYTES {
                        return Err(format!("its dictionaries take more than {MAX_DICTIONARY_BYTES} bytes"));
                    }
                    let whole = read(at, (message.head + body) as usize)?;
                    let block = block(message);
                    decoder.read_dictionary(&block, &Buffer::from_vec(whole)).map_err(|e| e.to_string())?;
                }
                _ => return Err(CUT.into()),
            }
            at += message.head + body;
        }
        let (schema, decoder) = decoder.ok_or("it holds no schema")?;
        let rows = starts[starts.len() - 1];
        // What takes a few bytes per row must not take more than the file allows.
        if rows as u64 > length.saturating_mul(8) {
            return Err(format!("claims {rows} rows in {length} bytes"));
        }
        Ok(ArrowTable {
            path: path.into(),
            length,
            schema,
            decoder,
            messages,
            starts,
            batches: Batches::default(),
        })
    }

    /// Decodes `row`, and where `in_order` some rows behind it.
    fn decode(&self, row: usize, in_order: bool) -> Read<Held> {
        let number = self.starts.partition_point(|start| *start <= row) - 1;
        let (first, end) = (self.starts[number], self.starts[number + 1]);
        let message = self.messages[number];
        if message.body > MAX_BATCH_BYTES {
            return Err(format!(
                "a record batch of {} bytes; at most {MAX_BATCH_BYTES} are read (save with fewer rows per batch)",
                message.body
            ));
        }
        let (file, length) = open_regular(&self.path).map_err(|e| e.to_string())?;
        if length != self.length {
            return Err("the file has changed since it was opened".into());
        }
        let row_bytes = message.body / (end - first) as u64;
        let rows = row..if in_order { end.min(row + ahead(row_bytes)) } else { row + 1 };
        let batch = guarded(|| {
            let head = read_up_to(&file, message.at, message.head as usize).map_err(|e| e.to_string())?;
            let buffer = self.body(&file, message, &head, rows.start - first..rows.end - first)?;
            self.decoder
                .read_record_batch(&block(message), &Buffer::from_vec(buffer))
                .map_err(|e| e.to_string())?
                .ok_or_else(|| CUT.to_owned())
        })?;
        if batch.num_rows() != end - first {
            return Err(CUT.into());
        }
        Ok(Held { rows, first, batch: Arc::new(batch) })
    }

    /// A batch's message of which only what `rows` need is read; the rest is zeros, which take no memory.
    fn body(&self, file: &File, message: Message, head: &[u8], rows: Range<usize>) -> Read<Vec<u8>> {
        let mut whole = vec![0; (message.head + message.body) as usize];
        let (start, body) = whole.split_at_mut(message.head as usize);
        start.copy_from_slice(head.get(..start.len()).ok_or(CUT)?);
        let described = describe(head)?;
        let batch = described.header_as_record_batch().ok_or(CUT)?;
        let places = batch.buffers().into_iter().flatten().map(|b| (b.offset() as u64, b.length() as u64));
        let at = message.at + message.head;
        let mut fill = Fill { file, at, body, places };
        let compressed = batch.compression().is_some() || batch.variadicBufferCounts().is_some();
        let filled = match compressed {
            true => None,
            false => {
                self.schema.fields().iter().try_for_each(|field| fill.rows(field.data_type(), rows.clone()))
            }
        };
        if filled.is_none() {
            let read = read_up_to(file, at, message.body as usize).map_err(|e| e.to_string())?;
            body[..read.len()].copy_from_slice(&read);
        }
        Ok(whole)
    }
}

const CUT: &str = "the file is broken or cut short";

/// The message at `at` without its body, or none at the end.
fn next_message(file: &File, at: u64, length: u64) -> Read<Option<Message>> {
    const CONTINUES: [u8; 4] = [0xff; 4];
    let marks = read_up_to(file, at, 8).map_err(|e| e.to_string())?;
    let word = |place: usize| marks.get(place..place + 4).and_then(|word| word.try_into().ok());
    // Files before Arrow 0.15 have no mark before the length.
    let (marks, size) = match word(0) {
        None if marks.is_empty() => return Ok(None),
        Some(CONTINUES) => (8, word(4).ok_or(CUT)?),
        Some(size) => (4, size),
        None => return Err(CUT.into()),
    };
    let size = u64::try_from(i32::from_le_bytes(size)).map_err(|_| CUT)?;
    match size {
        0 => Ok(None),
        size if size > MAX_MESSAGE_BYTES || size + marks > length - at => Err(CUT.into()),
        size => Ok(Some(Message { at, head: marks + size, body: 0 })),
    }
}

/// What stands behind the length marks of a message.
fn describe(head: &[u8]) -> Read<arrow_ipc::Message<'_>> {
    let marks = if head.starts_with(&[0xff; 4]) { 8 } else { 4 };
    root_as_message(head.get(marks..).ok_or(CUT)?).map_err(|e| e.to_string())
}

fn block(message: Message) -> Block {
    Block::new(message.at as i64, message.head as i32, message.body as i64)
}

/// Reads the buffers of a batch, in the order of the columns.
struct Fill<'a, P> {
    file: &'a File,
    /// Where the body begins in the file.
    at: u64,
    body: &'a mut [u8],
    /// (offset in the body, bytes) of each buffer.
    places: P,
}

impl<P: Iterator<Item = (u64, u64)>> Fill<'_, P> {
    /// Reads what `rows` of the next column need; none where that is not known.
    fn rows(&mut self, kind: &DataType, rows: Range<usize>) -> Option<()> {
        match kind {
            DataType::Null => {}
            DataType::Utf8 | DataType::Binary => self.long::<4>(rows)?,
            DataType::LargeUtf8 | DataType::LargeBinary => self.long::<8>(rows)?,
            DataType::List(item) | DataType::Map(item, _) => {
                let items = self.ends::<4>(rows)?;
                self.rows(item.data_type(), items)?;
            }
            DataType::LargeList(item) => {
                let items = self.ends::<8>(rows)?;
                self.rows(item.data_type(), items)?;
            }
            DataType::FixedSizeList(item, length) => {
                self.whole()?;
                let length = usize::try_from(*length).ok()?;
                let items = rows.start.checked_mul(length)?..rows.end.checked_mul(length)?;
                self.rows(item.data_type(), items)?;
            }
            DataType::Struct(fields) => {
                self.whole()?;
                fields.iter().try_for_each(|field| self.rows(field.data_type(), rows.clone()))?;
            }
            DataType::Boolean | DataType::FixedSizeBinary(_) | DataType::Dictionary(..) => {
                self.whole()?;
                self.whole()?;
            }
            plain if plain.is_primitive() => {
                self.whole()?;
                self.whole()?;
            }
            _ => return None,
        }
        Some(())
    }

    /// The values of texts or bytes, of which only the rows' own are read.
    fn long<const OFFSET: usize>(&mut self, rows: Range<usize>) -> Option<()> {
        let bytes = self.ends::<OFFSET>(rows)?;
        let (start, length) = self.places.next()?;
        let (from, to) = (bytes.start as u64, bytes.end as u64);
        (to <= length).then_some(())?;
        self.read(start.checked_add(from)?, to.checked_sub(from)?)
    }

    /// Validity and offsets, and the range of items that `rows` span.
    fn ends<const OFFSET: usize>(&mut self, rows: Range<usize>) -> Option<Range<usize>> {
        self.whole()?;
        let (start, _) = self.whole()?;
        let end = |row: usize| {
            let at = start as usize + row * OFFSET;
            let mut word = [0; 8];
            word[..OFFSET].copy_from_slice(self.body.get(at..at + OFFSET)?);
            usize::try_from(u64::from_le_bytes(word)).ok()
        };
        Some(end(rows.start)?..end(rows.end)?)
    }

    /// Reads the next buffer, and gives its place.
    fn whole(&mut self) -> Option<(u64, u64)> {
        let place = self.places.next()?;
        self.read(place.0, place.1)?;
        Some(place)
    }

    fn read(&mut self, start: u64, length: u64) -> Option<()> {
        let end = start.checked_add(length).filter(|end| *end <= self.body.len() as u64)?;
        let read = read_up_to(self.file, self.at + start, length as usize).ok()?;
        self.body[start as usize..end as usize].get_mut(..read.len())?.copy_from_slice(&read);
        Some(())
    }
}

impl Table for ArrowTable {
    fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn read(&self, row: usize) -> Result<Cells> {
        self.batches
            .row(row, |row, in_order| self.decode(row, in_order))
            .map_err(|reason| self.origin(row).error(reason))
    }

    fn origin(&self, row: usize) -> Origin {
        Origin { file: self.path.clone(), place: Place::Row(row) }
    }

    fn files(&self) -> Vec<Arc<Path>> {
        vec![self.path.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = include_bytes!("../../tests/datasets/types/stream.arrow");

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<ArrowTable>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.arrow");
        std::fs::write(&path, bytes).unwrap();
        let table = ArrowTable::open(&path);
        (dir, table)
    }

    /// Cut anywhere: an error, or where a batch ends fewer rows, each of which can be read.
    #[test]
    fn case_29_streams_that_are_cut_short() {
        let mut whole = 0;
        for cut in (0..STREAM.len()).step_by(13).chain(STREAM.len() - 8..STREAM.len()) {
            match open(&STREAM[..cut]) {
                (_dir, Ok(table)) => {
                    whole += 1;
                    assert!((0..table.rows()).all(|row| table.read(row).is_ok()), "{cut}");
                }
                (_dir, Err(error)) => {
                    assert!(
                        error.exit_code() == 65 && error.to_string().contains("x.arrow"),
                        "{cut}: {error}"
                    );
                }
            }
        }
        assert!((1..20).contains(&whole), "{whole}");
    }

    /// Of texts and bytes only the row's own are read.
    #[test]
    fn only_what_a_row_needs_is_read() {
        let (dir, table) = open(STREAM);
        let table = table.unwrap();
        let message = table.messages[0];
        let file = File::open(dir.path().join("x.arrow")).unwrap();
        let head = read_up_to(&file, message.at, message.head as usize).unwrap();
        let all = table.body(&file, message, &head, 0..4).unwrap();
        // Between the buffers there is padding, which is not read.
        let of_file = |read: &[u8]| {
            let file = &STREAM[message.at as usize..];
            read.iter().zip(file).all(|(read, file)| read == file || *read == 0)
        };
        assert!(of_file(&all));
        let filled = |body: &[u8]| body.iter().filter(|byte| **byte != 0).count();
        let mut least = all.len();
        for row in 0..4 {
            let one = table.body(&file, message, &head, row..row + 1).unwrap();
            assert!(of_file(&one));
            least = least.min(filled(&one));
        }
        assert!(least * 3 < filled(&all) * 2, "{least} of {}", filled(&all));
    }

    #[test]
    fn case_29_sizes_that_a_stream_claims_are_checked() {
        let mut claims = STREAM.to_vec();
        claims[4..8].copy_from_slice(&i32::MAX.to_le_bytes());
        assert_eq!(open(&claims).1.err().unwrap().exit_code(), 65);
        claims[4..8].copy_from_slice(&(-5i32).to_le_bytes());
        assert_eq!(open(&claims).1.err().unwrap().exit_code(), 65);
        assert!(open(b"{\"a\": 1}\n").1.err().unwrap().to_string().contains("not a readable Arrow file"));
        assert!(open(b"").1.err().unwrap().to_string().contains("no schema"));
    }
}
