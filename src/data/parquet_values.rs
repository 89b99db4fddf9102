//! What the pages of a parquet file's texts and bytes hold, checked before they are decoded.
//!
//! The `parquet` crate passes over a value by its length, of whose truth it is sure: behind the end of a page it takes memory
//! for what is not there, which ends the program and not the reading. And it takes memory for as many values as a page
//! encoded by differences claims. So each such page is gone through once (Apache Parquet, `Encodings.md`).

use std::sync::Arc;

use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

/// Why a file is refused; the caller adds the file.
type Checked<T> = Result<T, String>;

const CUT: &str = "a page holds less than it claims; the file is broken";

/// Checks the lengths in all pages of a row group whose headers are sound.
///
/// # Errors
/// What is wrong, with the column.
pub(super) fn check_values<R: ChunkReader + Clone + 'static>(
    source: &R,
    group: &RowGroupMetaData,
) -> Checked<()> {
    for column in group.columns() {
        if matches!(column.column_descr().physical_type(), Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY) {
            let blame = |reason: String| format!("column `{}`: {reason}", column.column_path());
            check_column(source, column, group.num_rows().max(0) as usize).map_err(blame)?;
        }
    }
    Ok(())
}

fn check_column<R: ChunkReader + Clone + 'static>(
    source: &R,
    column: &ColumnChunkMetaData,
    rows: usize,
) -> Checked<()> {
    let levels = [column.column_descr().max_rep_level(), column.column_descr().max_def_level()];
    let open = || SerializedPageReader::new(Arc::new(source.clone()), column, rows, None);
    let mut pages = open().map_err(|e| e.to_string())?;
    let mut next = || -> ParquetResult<Option<Page>> { pages.get_next_page() };
    while let Some(page) = next().map_err(|e| e.to_string())? {
        let (values, encoding, count) = match &page {
            Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, .. } => {
                let encodings = [*rep_level_encoding, *def_level_encoding];
                let mut rest = &buf[..];
                for (level, encoding) in levels.into_iter().zip(encodings).filter(|(level, _)| *level > 0) {
                    rest = behind_levels(rest, level, encoding, *num_values as usize).ok_or(CUT)?;
                }
                (rest, *encoding, *num_values)
            }
            Page::DataPageV2 {
                buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, ..
            } => {
                let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                (buf.get(levels..).ok_or(CUT)?, *encoding, *num_values)
            }
            // Read from its start to its end.
            Page::DictionaryPage { .. } => continue,
        };
        let is_sound = match (encoding, column.column_descr().physical_type()) {
            (Encoding::PLAIN, Type::BYTE_ARRAY) => lengths_fit(values, count as usize),
            (Encoding::DELTA_LENGTH_BYTE_ARRAY, _) => behind_differences(values, count as usize).is_some(),
            (Encoding::DELTA_BYTE_ARRAY, _) => behind_differences(values, count as usize)
                .and_then(|suffixes| behind_differences(suffixes, count as usize))
                .is_some(),
            _ => true,
        };
        if !is_sound {
            return Err(CUT.into());
        }
    }
    Ok(())
}

/// What stands behind the repetition or definition levels of a page of version 1.
fn behind_levels(page: &[u8], most: i16, encoding: Encoding, count: usize) -> Option<&[u8]> {
    if encoding == Encoding::RLE {
        let (length, rest) = page.split_first_chunk()?;
        return rest.get(u32::from_le_bytes(*length) as usize..);
    }
    let bits = (16 - most.leading_zeros()) as usize;
    page.get((count * bits).div_ceil(8)..)
}

/// Whether `count` values at most, each behind its length, end where the page ends, or before.
fn lengths_fit(mut page: &[u8], count: usize) -> bool {
    for _ in 0..count {
        if page.is_empty() {
            return true;
        }
        let Some((length, rest)) = page.split_first_chunk() else { return false };
        let Some(rest) = rest.get(u32::from_le_bytes(*length) as usize..) else { return false };
        page = rest;
    }
    true
}

/// What stands behind `count` numbers at most that are packed as differences (DELTA_BINARY_PACKED).
fn behind_differences(page: &[u8], count: usize) -> Option<&[u8]> {
    let mut at = 0;
    let mut integer = || {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *page.get(at)?;
            at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    };
    let (block, minis, total) = (integer()?, integer()?, integer()?);
    integer()?;
    let per_mini = block.checked_div(minis)?;
    if total > count as u64 || per_mini == 0 || block > 1 << 20 {
        return None;
    }
    // The first number stands in the header.
    let mut left = total.saturating_sub(1);
    while left > 0 {
        // The least difference of the block, then how many bits each miniblock's have.
        let mut begin = at;
        while *page.get(begin)? >= 0x80 {
            begin += 1;
        }
        let widths = page.get(begin + 1..)?.get(..minis as usize)?;
        at = begin + 1 + minis as usize;
        for width in widths {
            if left == 0 {
                break;
            }
            at += (per_mini as usize * usize::from(*width)).div_ceil(8);
            left = left.saturating_sub(per_mini);
        }
    }
    page.get(at..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_30_lengths_end_with_the_page() {
        let page = [[2, 0, 0, 0, b'a', b'b'].as_slice(), &[0, 0, 0, 0], &[1, 0, 0, 0, b'c']].concat();
        assert!(
            lengths_fit(&page, 3) && lengths_fit(&page, 2) && lengths_fit(&page, 9) && lengths_fit(&[], 4)
        );
        for cut in [1, 5, 7, 12, 14] {
            assert!(!lengths_fit(&page[..cut], 3), "{cut}");
        }
        let mut long = page.clone();
        long[3] = 0x55;
        assert!(!lengths_fit(&long, 3));
    }

    #[test]
    fn case_30_levels_are_passed_over() {
        let page = [3, 0, 0, 0, 1, 2, 3, 9];
        assert_eq!(behind_levels(&page, 1, Encoding::RLE, 8), Some(&page[7..]));
        assert_eq!(behind_levels(&page[..6], 1, Encoding::RLE, 8), None);
        #[allow(deprecated)]
        let packed = Encoding::BIT_PACKED;
        assert_eq!(behind_levels(&page, 3, packed, 9), Some(&page[3..]));
        assert_eq!(behind_levels(&page, 3, packed, 99), None);
    }

    /// The example of the format's description: 7, 5, 3, 1, 2, 3, 4, 5.
    #[test]
    fn case_30_differences_end_where_they_say() {
        let page = [0x80, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0b0011_1111, 0, 0, 0, 0, 0, 0, b'r'];
        // 128 to a block of four miniblocks, of which the first has 32 numbers of two bits: 8 bytes.
        assert_eq!(behind_differences(&page, 8), Some(&page[18..]));
        assert_eq!(behind_differences(&page, 7), None);
        assert_eq!(behind_differences(&page[..17], 8), None);
        let huge = [0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        assert_eq!(behind_differences(&huge, 8), None);
        assert_eq!(behind_differences(&[0x80, 1, 4, 1, 14, b'r'], 8), Some(&b"r"[..]));
        assert_eq!(behind_differences(&[0x80, 1, 0, 1, 14], 8), None);
    }
}
