//! The rows of a JSONL file, found by an index of its lines.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::cells::Cells;
use super::jsonl::{parse_line, too_long, without_mark};
use super::table::{Origin, Place, Table};
use crate::error::{Error, Result};
use crate::files::{open_regular, read_at};

/// Bytes of a line that are read at a time.
const PIECE: usize = 64 << 10;

/// A JSONL file of which only the rows' places are held: 8 bytes a row, and 16 more behind each run of blank lines.
pub(super) struct JsonlTable {
    path: Arc<Path>,
    file: File,
    /// Where each row's line begins.
    starts: Starts,
    /// (row, line): from that row on, to the next entry's, rows and lines go in step. Lines from 1.
    lines: Vec<(usize, usize)>,
    max_line_bytes: usize,
}

impl JsonlTable {
    /// Indexes the file in one pass; its lines are looked at only for being blank.
    pub(super) fn open(path: &Path, max_line_bytes: usize) -> Result<Self> {
        let (file, _) = open_regular(path)?;
        let mut reader = BufReader::with_capacity(1 << 18, &file);
        let failed = |e| Error::io(path, "read", e);
        let (mut starts, mut lines) = (Starts::default(), Vec::new());
        let mark = reader.fill_buf().map_err(failed)?;
        let is_array = mark.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        if is_array && path.extension().is_some_and(|extension| extension == "json") {
            let mend = "one JSON array; write one object per line (jq -c '.[]' IN.json > OUT.jsonl)";
            return Err(Error::content(path, mend));
        }
        let mut at = (mark.len() - without_mark(mark).len()) as u64;
        reader.consume(at as usize);
        let (mut line, mut in_step) = (1, false);
        loop {
            let (length, blank) = next_line(&mut reader).map_err(failed)?;
            if length == 0 {
                break;
            }
            if !blank {
                if !in_step {
                    lines.push((starts.rows(), line));
                }
                starts.push(at);
            }
            in_step = !blank;
            line += 1;
            at += length;
        }
        Ok(JsonlTable { path: path.into(), file, starts, lines, max_line_bytes })
    }

    fn line_number(&self, row: usize) -> usize {
        let (first, line) = self.lines[self.lines.partition_point(|(first, _)| *first <= row) - 1];
        line + row - first
    }

    /// The line at `start` without its end; of an overlong one, more bytes than allowed.
    fn line(&self, start: u64) -> std::io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut piece = [0; PIECE];
        while line.len() <= self.max_line_bytes {
            let read = read_at(&self.file, &mut piece, start + line.len() as u64)?;
            let end = line_end(&piece[..read]);
            line.extend_from_slice(&piece[..end.unwrap_or(read)]);
            if read == 0 || end.is_some() {
                break;
            }
        }
        Ok(line)
    }
}

/// Ascending places in a file in 4 bytes each, in pieces, so that none is held twice while there come more.
#[derive(Default)]
struct Starts {
    pieces: Vec<Starting>,
}

/// Up to [`Starting::ROWS`] rows, of which none begins 4 GiB behind the first.
struct Starting {
    first_row: usize,
    base: u64,
    behind: Vec<u32>,
}

impl Starting {
    const ROWS: usize = 1024;
}

impl Starts {
    fn rows(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.first_row + piece.behind.len())
    }

    fn push(&mut self, start: u64) {
        let last = self.pieces.last_mut().filter(|piece| piece.behind.len() < Starting::ROWS);
        if let Some(piece) = last
            && let Ok(behind) = u32::try_from(start - piece.base)
        {
            return piece.behind.push(behind);
        }
        let first_row = self.rows();
        self.pieces.push(Starting { first_row, base: start, behind: vec![0] });
    }

    fn of(&self, row: usize) -> u64 {
        let piece = &self.pieces[self.pieces.partition_point(|piece| piece.first_row <= row) - 1];
        piece.base + u64::from(piece.behind[row - piece.first_row])
    }
}

/// The length of the next line with its end, 0 at the end of the file, and whether it is blank.
fn next_line(reader: &mut impl BufRead) -> std::io::Result<(u64, bool)> {
    let (mut length, mut blank) = (0, true);
    loop {
        let bytes = match reader.fill_buf() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let end = line_end(bytes);
        blank = blank && bytes[..end.unwrap_or(bytes.len())].iter().all(u8::is_ascii_whitespace);
        let used = end.map_or(bytes.len(), |end| end + 1);
        length += used as u64;
        reader.consume(used);
        if end.is_some() || used == 0 {
            return Ok((length, blank));
        }
    }
}

/// Where the line ends.
fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

impl Table for JsonlTable {
    fn rows(&self) -> usize {
        self.starts.rows()
    }

    fn read(&self, row: usize) -> Result<Cells> {
        let line = self.line(self.starts.of(row)).map_err(|e| Error::io(&self.path, "read", e))?;
        let object = match line.len() > self.max_line_bytes {
            true => Err(too_long(self.max_line_bytes)),
            false => parse_line(&line),
        };
        object
            .map(Cells::from)
            .map_err(|reason| Error::content(&self.path, format!("line {}{reason}", self.line_number(row))))
    }

    fn origin(&self, row: usize) -> Origin {
        Origin { file: self.path.clone(), place: Place::Line(self.line_number(row)) }
    }

    fn files(&self) -> Vec<Arc<Path>> {
        vec![self.path.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::jsonl::objects;
    use super::*;

    #[test]
    fn places_are_kept_across_pieces_and_gaps() {
        let places: Vec<u64> = (0..3000).map(|i| i * 7 + (i / 900) * (5 << 32)).collect();
        let mut starts = Starts::default();
        places.iter().for_each(|place| starts.push(*place));
        assert_eq!(starts.rows(), places.len());
        assert!(places.iter().enumerate().all(|(row, place)| starts.of(row) == *place));
    }

    /// The table and the iterator agree on every row, error and line number.
    fn agrees_with_objects(bytes: &[u8], limit: usize) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let table = JsonlTable::open(&path, limit).unwrap();
        let expected: Vec<_> = objects(&path, limit).unwrap().collect();
        assert_eq!(table.rows(), expected.len(), "{:?}", String::from_utf8_lossy(bytes));
        // Backwards: the rows do not depend on each other.
        for (row, expected) in expected.into_iter().enumerate().rev() {
            match (table.read(row), expected) {
                (Ok(cells), Ok((line, object))) => {
                    assert_eq!(cells.into_json(), object);
                    assert_eq!(table.origin(row).place, Place::Line(line));
                }
                (Err(ours), Err(theirs)) => assert_eq!(ours.to_string(), theirs.to_string()),
                (ours, theirs) => panic!("{ours:?} is not {theirs:?}"),
            }
        }
        table.rows()
    }

    #[test]
    fn rows_in_any_order_are_those_of_one_pass() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(700_000));
        let texts: [(&[u8], usize); 8] = [
            (b"\xEF\xBB\xBF{\"a\":1}\r\n\r\n  \n{\"a\":2}", 2),
            (b"", 0),
            (b"\n \t\r\n\n", 0),
            (b"\xEF\xBB\xBF", 0),
            (b"\xEF\xBB\xBF\n{}\n\n\n{}\n{}\n{", 4),
            (b"{\"a\" 2}\n[1]\n{\"a\":1,\"a\":2}\n\xFF\n{\"b\":1}", 5),
            (format!("{long}\n\n{{}}\n{long}").leak().as_bytes(), 3),
            (b"\xEF\xBB{}\n{}\n", 2),
        ];
        for (text, rows) in texts {
            assert_eq!(agrees_with_objects(text, 1 << 20), rows);
            agrees_with_objects(text, 100);
        }
    }

    #[test]
    fn case_28_an_array_of_rows_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, "\n[{\"a\":1},\n{\"a\":2}]\n").unwrap();
        let message = JsonlTable::open(&path, 100).err().unwrap().to_string();
        assert!(message.contains("one object per line"), "{message}");
        std::fs::write(&path, "{\"a\":1}\n").unwrap();
        assert_eq!(JsonlTable::open(&path, 100).unwrap().rows(), 1);
    }

    #[test]
    fn a_file_cut_short_meanwhile_is_an_error_of_its_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, "{\"a\":1}\n\n{\"a\":2}\n").unwrap();
        let table = JsonlTable::open(&path, 100).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(12).unwrap();
        assert!(table.read(0).is_ok());
        let message = table.read(1).unwrap_err().to_string();
        assert!(message.contains("line 3") && message.contains("truncated"), "{message}");
    }
}
