//! What a parquet file claims, checked before memory is taken for it.
//!
//! The reader of the `parquet` crate believes sizes and counts, descends as deep as a schema is nested, and inflates gzip
//! without end. So the footer's schema and every page header of a row group are looked at first. Both are Thrift structs in
//! the compact protocol (Apache Thrift, `thrift-compact-protocol.md`; fields in Apache Parquet's `parquet.thrift`).

use std::io::Read;

use parquet::basic::Compression;
use parquet::file::metadata::RowGroupMetaData;

/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 32;
/// Most columns, those inside of structs and lists counted.
const MAX_COLUMNS: u64 = 4096;
/// Most bytes of a page, compressed or not: 512 MiB.
const MAX_PAGE_BYTES: i64 = 512 << 20;
/// Most values of a page.
const MAX_PAGE_VALUES: i64 = 16 << 20;
/// Most values of the lists of one column in one row group.
const MAX_LIST_VALUES: i64 = 64 << 20;
/// Longest value of a fixed length, in bytes: decimals, UUIDs and half floats have at most 32. A dictionary could hand out
/// a long one millions of times.
const MAX_FIXED_BYTES: i64 = 32;
/// Longest page header, in bytes; statistics can make it long.
const MAX_HEADER_BYTES: usize = 16 << 20;

/// Why a file is refused; the caller adds the file.
type Checked<T> = Result<T, String>;

const CUT: &str = "the file is broken or cut short";

/// Thrift's compact protocol, as much as is needed to find single fields.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The wire types that are told apart.
mod wire {
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const MAP: u8 = 11;
    pub(super) const STRUCT: u8 = 12;
}

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next field's number and type; a type of 0 is the struct's end.
    fn field(&mut self, last: &mut i64) -> Option<(i64, u8)> {
        let byte = self.byte()?;
        let kind = byte & 15;
        if kind != 0 {
            *last = match byte >> 4 {
                0 => self.signed()?,
                step => *last + i64::from(step),
            };
        }
        Some((*last, kind))
    }

    /// The length and the type of a list.
    fn list(&mut self) -> Option<(u64, u8)> {
        let byte = self.byte()?;
        let length = match byte >> 4 {
            15 => self.unsigned()?,
            short => u64::from(short),
        };
        Some((length, byte & 15))
    }

    /// Passes over a value of a field, or over an item of a list, where a boolean takes a byte.
    fn skip(&mut self, kind: u8, item: bool, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            wire::TRUE | wire::FALSE if !item => {}
            wire::TRUE | wire::FALSE | wire::BYTE => self.at += 1,
            wire::I16..=wire::I64 => {
                self.unsigned()?;
            }
            wire::DOUBLE => self.at += 8,
            wire::BINARY => {
                let length = usize::try_from(self.unsigned()?).ok()?;
                self.at = self.at.checked_add(length)?;
            }
            wire::LIST | wire::SET => {
                let (length, kind) = self.list()?;
                for _ in 0..length {
                    self.skip(kind, true, depth)?;
                }
            }
            wire::MAP => {
                let length = self.unsigned()?;
                let kinds = if length == 0 { 0 } else { self.byte()? };
                for _ in 0..length {
                    self.skip(kinds >> 4, true, depth)?;
                    self.skip(kinds & 15, true, depth)?;
                }
            }
            wire::STRUCT => {
                let mut last = 0;
                loop {
                    match self.field(&mut last)? {
                        (_, 0) => break,
                        (_, kind) => self.skip(kind, false, depth)?,
                    }
                }
            }
            _ => return None,
        }
        // Every item takes a byte at least, so that a list cannot outlast its bytes.
        (self.at <= self.bytes.len()).then_some(())
    }
}

/// Checks the schema in a footer: its depth, its number of columns, and its fixed lengths.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_footer(footer: &[u8]) -> Checked<()> {
    let mut thrift = Thrift { bytes: footer, at: 0 };
    let mut last = 0;
    loop {
        let (field, kind) = thrift.field(&mut last).ok_or(CUT)?;
        match (field, kind) {
            (_, 0) => return Ok(()),
            (2, wire::LIST) => check_schema(&mut thrift)?,
            _ => thrift.skip(kind, false, MAX_DEPTH).ok_or(CUT)?,
        }
    }
}

/// Checks the tree of `SchemaElement`s, which stand in the order of a walk with their number of children.
fn check_schema(thrift: &mut Thrift<'_>) -> Checked<()> {
    let (length, kind) = thrift.list().ok_or(CUT)?;
    if kind != wire::STRUCT {
        return Err(CUT.into());
    }
    if length > MAX_COLUMNS {
        return Err(format!("has {length} columns; at most {MAX_COLUMNS} are read"));
    }
    // For each open group, how many children are to come.
    let mut open: Vec<i64> = Vec::new();
    for _ in 0..length {
        let (mut last, mut children, mut bytes) = (0, 0, 0);
        loop {
            match thrift.field(&mut last).ok_or(CUT)? {
                (_, 0) => break,
                (2, 5) => bytes = thrift.signed().ok_or(CUT)?,
                (5, 5) => children = thrift.signed().ok_or(CUT)?,
                (_, kind) => thrift.skip(kind, false, MAX_DEPTH).ok_or(CUT)?,
            }
        }
        if bytes > MAX_FIXED_BYTES {
            return Err(format!(
                "has values of a fixed length of {bytes} bytes; at most {MAX_FIXED_BYTES} are read (use binary)"
            ));
        }
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if children > 0 {
            open.push(children);
        }
        if open.len() > MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} levels deep"));
        }
        while open.last().is_some_and(|left| *left <= 0) {
            open.pop();
        }
    }
    Ok(())
}

/// What a page header says.
#[derive(Debug, Default, PartialEq)]
struct PageHeader {
    /// Bytes of the header itself.
    bytes: usize,
    uncompressed: i64,
    compressed: i64,
    values: i64,
    dictionary: bool,
}

/// The page header at the start of `bytes`, if it is there whole.
fn page_header(bytes: &[u8]) -> Option<PageHeader> {
    const DICTIONARY: i64 = 7;
    let mut thrift = Thrift { bytes, at: 0 };
    let (mut header, mut last) = (PageHeader::default(), 0);
    loop {
        match thrift.field(&mut last)? {
            (_, 0) => break,
            (2, 5) => header.uncompressed = thrift.signed()?,
            (3, 5) => header.compressed = thrift.signed()?,
            // Data, dictionary and data of version 2: each has its number of values first.
            (page @ (5 | DICTIONARY | 8), wire::STRUCT) => {
                header.dictionary |= page == DICTIONARY;
                let mut last = 0;
                loop {
                    match thrift.field(&mut last)? {
                        (_, 0) => break,
                        (1, 5) => header.values = thrift.signed()?,
                        (_, kind) => thrift.skip(kind, false, MAX_DEPTH)?,
                    }
                }
            }
            (_, kind) => thrift.skip(kind, false, MAX_DEPTH)?,
        }
    }
    header.bytes = thrift.at;
    (thrift.at <= bytes.len()).then_some(header)
}

/// Checks every page header of a row group; `read` gives up to so many bytes from a place in the file on.
///
/// # Errors
/// What is wrong, with the column.
pub(super) fn check_pages(
    group: &RowGroupMetaData,
    read: impl Fn(u64, usize) -> std::io::Result<Vec<u8>>,
) -> Checked<()> {
    for column in group.columns() {
        let blame = |reason: String| format!("column `{}`: {reason}", column.column_path());
        let start = column.dictionary_page_offset().filter(|at| *at > 0).unwrap_or(column.data_page_offset());
        let (mut at, mut left, mut values) = (start, column.compressed_size(), 0);
        if at < 0 || left < 0 {
            return Err(blame(CUT.into()));
        }
        while left > 0 {
            let header = read_header(at as u64, left, &read).map_err(blame)?;
            at += header.bytes as i64 + header.compressed;
            left -= header.bytes as i64 + header.compressed;
            if left < 0 {
                return Err(blame(CUT.into()));
            }
            if !header.dictionary {
                values += header.values;
            }
            let gzip = matches!(column.compression(), Compression::GZIP(_));
            if gzip {
                let page = read((at - header.compressed) as u64, header.compressed as usize)
                    .map_err(|e| blame(e.to_string()))?;
                check_gzip(&page, header.uncompressed).map_err(blame)?;
            }
        }
        let in_lists = column.column_descr().max_rep_level() > 0;
        if values != column.num_values() || (!in_lists && values != group.num_rows()) {
            return Err(blame(format!(
                "its pages hold {values} values, and not as many as are claimed; {CUT}"
            )));
        }
        if in_lists && values > MAX_LIST_VALUES {
            return Err(blame(format!(
                "its lists have {values} items in one row group; at most {MAX_LIST_VALUES} are read (write smaller \
                 row groups)"
            )));
        }
    }
    Ok(())
}

fn read_header(
    at: u64,
    left: i64,
    read: &impl Fn(u64, usize) -> std::io::Result<Vec<u8>>,
) -> Checked<PageHeader> {
    let mut length = 512;
    let header = loop {
        let bytes = read(at, length).map_err(|e| e.to_string())?;
        match page_header(&bytes) {
            Some(header) => break header,
            None if bytes.len() < length || length >= MAX_HEADER_BYTES || length as i64 > left => {
                return Err(CUT.into());
            }
            None => length *= 8,
        }
    };
    let size = header.compressed.max(header.uncompressed);
    if header.compressed < 0 || header.uncompressed < 0 || !(0..=MAX_PAGE_VALUES).contains(&header.values) {
        return Err(format!("a page of {} values; {CUT}, or its pages are too large", header.values));
    }
    if size > MAX_PAGE_BYTES {
        return Err(format!(
            "a page of {size} bytes; at most {MAX_PAGE_BYTES} are read (write smaller row groups)"
        ));
    }
    Ok(header)
}

/// Inflates a gzip page without keeping it, to see that it does not grow beyond what it claims.
fn check_gzip(page: &[u8], claimed: i64) -> Checked<()> {
    let inflated = flate2::read::MultiGzDecoder::new(page).take(claimed as u64 + 1);
    match std::io::copy(&mut { inflated }, &mut std::io::sink()) {
        Ok(bytes) if bytes > claimed as u64 => {
            Err(format!("a page inflates to more than its {claimed} bytes"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("a page cannot be inflated: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A compact integer.
    fn signed(value: i64) -> Vec<u8> {
        let mut bits = ((value << 1) ^ (value >> 63)) as u64;
        let mut bytes = Vec::new();
        while bits >= 0x80 {
            bytes.push(bits as u8 | 0x80);
            bits >>= 7;
        }
        bytes.push(bits as u8);
        bytes
    }

    /// A struct of i32 fields, (number, value) in order, ended.
    fn ints(fields: &[(u8, i64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut last = 0;
        for &(number, value) in fields {
            bytes.push((number - last) << 4 | 5);
            bytes.extend(signed(value));
            last = number;
        }
        bytes.push(0);
        bytes
    }

    /// A footer whose schema has `elements`.
    fn footer(elements: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0x15, 2, 0x19, 0xf0 | wire::STRUCT];
        let mut length = elements.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(elements.concat());
        bytes.push(0);
        bytes
    }

    #[test]
    fn case_29_schemas_are_bounded() {
        let group = |children| ints(&[(5, children)]);
        let leaf = |bytes| ints(&[(1, 6), (2, bytes)]);
        let good = footer(&[group(3), leaf(0), group(1), leaf(16), leaf(0)]);
        assert_eq!(check_footer(&good), Ok(()));
        for cut in 0..good.len() {
            assert_eq!(check_footer(&good[..cut]), Err(CUT.into()), "{cut}");
        }
        let deep = |depth| footer(&[vec![group(1); depth], vec![leaf(0)]].concat());
        assert_eq!(check_footer(&deep(MAX_DEPTH)), Ok(()));
        assert!(check_footer(&deep(MAX_DEPTH + 1)).unwrap_err().contains("levels deep"));
        assert!(check_footer(&deep(4000)).unwrap_err().contains("levels deep"));
        assert!(check_footer(&footer(&vec![leaf(0); 5000])).unwrap_err().contains("5000 columns"));
        assert!(check_footer(&footer(&[group(1), leaf(1 << 30)])).unwrap_err().contains("fixed length"));
        // Lists within lists within lists: as deep as there are bytes.
        assert_eq!(check_footer(&[0x19].repeat(100_000)), Err(CUT.into()));
    }

    /// A data page's header.
    fn header(uncompressed: i64, compressed: i64, values: i64) -> Vec<u8> {
        let mut bytes = ints(&[(1, 0), (2, uncompressed), (3, compressed)]);
        bytes.pop();
        bytes.push(0x2c);
        bytes.extend(ints(&[(1, values), (2, 0), (3, 3), (4, 3)]));
        bytes.push(0);
        bytes
    }

    #[test]
    fn case_30_page_headers_are_bounded() {
        let read = |bytes: Vec<u8>| read_header(0, 1 << 40, &move |_, _| Ok(bytes.clone()));
        let good = header(100, 50, 7);
        let wanted =
            PageHeader { bytes: good.len(), uncompressed: 100, compressed: 50, values: 7, dictionary: false };
        for cut in 0..good.len() {
            assert_eq!(page_header(&good[..cut]), None, "{cut}");
        }
        assert_eq!(read(good), Ok(wanted));
        for (bytes, wanted) in [
            (header(10 << 30, 50, 7), "at most 536870912"),
            (header(100, 10 << 30, 7), "at most 536870912"),
            (header(100, 50, 1 << 30), "1073741824 values"),
            (header(100, 50, -1), "-1 values"),
            (header(-1, 50, 1), "broken"),
            (vec![0x15], "broken"),
        ] {
            let message = read(bytes).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn case_30_gzip_pages_inflate_to_what_they_claim_at_most() {
        let mut page = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        page.write_all(&vec![0; 10 << 20]).unwrap();
        let page = page.finish().unwrap();
        assert!(page.len() < 1 << 18);
        assert_eq!(check_gzip(&page, 10 << 20), Ok(()));
        assert!(check_gzip(&page, 1 << 20).unwrap_err().contains("inflates to more than its 1048576 bytes"));
        assert!(check_gzip(&page[..100], 1 << 20).unwrap_err().contains("cannot be inflated"));
    }
}
