//! Parquet and Arrow files, told apart by their first bytes.

use othink::data::{TableOptions, open_table};

use super::{Outcome, Target, refused, write};

pub const TARGET: Target = Target {
    name: "table",
    body,
    seeds,
    dictionary: &[
        b"PAR1",
        b"PARE",
        b"ARROW1\0\0",
        b"\xff\xff\xff\xff\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\xff\xff\xff\xff\x0f",
        b"\x80\x80\x80\x80\x08",
        b"\0\0\0\x80",
        b"\0\0\x10\0\0\0",
        b"\x15\x00",
        b"\x15\x02\x15",
        b"\x19\x4c",
        b"\x1c\x15",
        b"ARROW:schema",
        b"huggingface",
        b"image",
        b"bytes",
        b"path",
    ],
    repair,
    max_bytes: 1 << 14,
};

/// The rows that are asked for: in order, so that some are decoded ahead, and against it.
const ORDER: [usize; 12] = [0, 1, 2, 3, 5, 4, 3, 2, 1, 0, 7, 1_000_000];

fn body(input: &[u8]) -> Outcome {
    let name = if input.starts_with(b"PAR1") { "fuzz.parquet" } else { "fuzz.arrow" };
    let table = match open_table(&write(name, input), "train", &TableOptions::default()) {
        Ok(table) => table,
        Err(error) => return refused(&error, &[65]),
    };
    assert!(table.rows() <= 8 * input.len(), "{} rows in {} bytes", table.rows(), input.len());
    let mut outcome = Outcome::of((name, table.rows().min(20)));
    for row in ORDER.into_iter().map(|row| row.min(table.rows().saturating_sub(1))).take(table.rows().min(12))
    {
        let read = table.read(row);
        let again = table.read(row);
        outcome = outcome.and(match (read, again) {
            (Ok(cells), Ok(again)) => {
                assert!(cells == again, "row {row} is another the second time");
                Outcome::of(cells.iter().map(|(_, cell)| cell.kind()).collect::<Vec<_>>())
            }
            (Err(error), Err(again)) => {
                assert_eq!(error.to_string(), again.to_string());
                refused(&error, &[65])
            }
            _ => panic!("row {row} can be read once only"),
        });
    }
    outcome
}

/// Puts the marks at the ends of a parquet file back, and a length of the footer that fits.
#[expect(clippy::ptr_arg, reason = "the type of every target's repair")]
fn repair(data: &mut Vec<u8>) {
    if !data.starts_with(b"PAR1") || data.len() < 12 {
        return;
    }
    let end = data.len() - 4;
    data[end..].copy_from_slice(b"PAR1");
    let length = u32::from_le_bytes(data[end - 4..end].try_into().expect("four bytes"));
    if length as usize > end - 8 {
        data[end - 4..end].copy_from_slice(&(end as u32 / 2).to_le_bytes());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let files: [&[u8]; 8] = [
        include_bytes!("../../datasets/r1v/data/train-00000-of-00002.parquet"),
        include_bytes!("../../datasets/trl/train.parquet"),
        include_bytes!("../../datasets/imagefolder/test/metadata.parquet"),
        include_bytes!("../../datasets/types/odd.parquet"),
        include_bytes!("../../datasets/types/v2.parquet"),
        include_bytes!("../../datasets/types/odd.arrow"),
        include_bytes!("../../datasets/types/stream.arrow"),
        include_bytes!("../../datasets/saved/train/data-00000-of-00002.arrow"),
    ];
    files.into_iter().map(<[u8]>::to_vec).collect()
}
