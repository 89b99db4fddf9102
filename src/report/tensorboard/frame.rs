//! TFRecord framing: `length u64, crc(length) u32, data, crc(data) u32`, little-endian, with masked CRC-32C.

use std::io::Read;

/// Longest record read back; ours stay far below.
const MAX_BYTES: u64 = 64 << 20;

/// CRC-32C (Castagnoli, RFC 3720), the remainder of each byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut rest, mut bit) = (byte as u32, 0);
        while bit < 8 {
            rest = if rest & 1 == 1 { rest >> 1 ^ 0x82F6_3B78 } else { rest >> 1 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

/// TFRecord's mask: a checksum of data that holds checksums should not be one of them.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// One record around `data`.
pub fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let checks = [masked(&length).to_le_bytes(), masked(data).to_le_bytes()];
    [&length[..], &checks[0], data, &checks[1]].concat()
}

/// The next whole record; `None` at the end, and where what follows is torn or damaged.
///
/// # Errors
/// Those of reading.
pub fn read(file: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut record = Vec::new();
    file.by_ref().take(12).read_to_end(&mut record)?;
    let Some((length, check)) = record.split_first_chunk::<8>() else { return Ok(None) };
    let data_bytes = u64::from_le_bytes(*length);
    if check != masked(length).to_le_bytes() || data_bytes > MAX_BYTES {
        return Ok(None);
    }
    record.clear();
    file.by_ref().take(data_bytes + 4).read_to_end(&mut record)?;
    if record.len() as u64 != data_bytes + 4 {
        return Ok(None);
    }
    let check = record.split_off(data_bytes as usize);
    Ok((check == masked(&record).to_le_bytes()).then_some(record))
}

/// Bytes of a record around `data_bytes` bytes.
pub fn framed_bytes(data_bytes: usize) -> u64 {
    data_bytes as u64 + 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_rfc_3720() {
        let counting: Vec<u8> = (0..32).collect();
        let cases: [(&[u8], u32); 5] = [
            (b"123456789", 0xE306_9283),
            (&[0; 32], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&counting, 0x46DD_794E),
            (b"", 0),
        ];
        for (bytes, crc) in cases {
            assert_eq!(crc32c(bytes), crc, "{bytes:?}");
        }
    }

    /// The first record of every event file, as the package tensorboard 2.21 writes it.
    #[test]
    fn a_record_has_the_bytes_that_tensorboard_writes() {
        let data = b"\x1a\x0dbrain.Event:2";
        let mut want = vec![15, 0, 0, 0, 0, 0, 0, 0];
        want.extend(0x092B_536D_u32.to_le_bytes());
        want.extend(data);
        want.extend(0x2951_98FC_u32.to_le_bytes());
        assert_eq!(framed(data), want);
    }

    #[test]
    fn what_is_torn_or_damaged_ends_the_file() {
        let bytes = [framed(b"one"), framed(b""), framed(b"three")].concat();
        let all = |mut bytes: &[u8]| {
            let mut records = Vec::new();
            while let Some(record) = read(&mut bytes).unwrap() {
                records.push(record);
            }
            records
        };
        assert_eq!(all(&bytes), [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        assert_eq!(framed_bytes(3), framed(b"one").len() as u64);
        for cut in 0..bytes.len() {
            assert_eq!(all(&bytes[..cut]).len(), usize::from(cut >= 19) + usize::from(cut >= 35), "{cut}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(all(&damaged).len() < 3, "{at}");
        }
    }
}
