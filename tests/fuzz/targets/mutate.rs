//! Mutations that know a little of structure: words of a format, numbers in text and in binary, bracketed pieces, JSON.

use serde_json::{Map, Value};

use super::Target;

/// Random numbers by a counter (splitmix64): the same seed gives the same inputs on every machine.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of that seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`, 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % (n as u64).max(1)) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

/// Numbers at which code likes to go wrong, as text.
const NUMBERS: [&[u8]; 20] = [
    b"0",
    b"1",
    b"-1",
    b"2",
    b"7",
    b"8",
    b"255",
    b"256",
    b"1000",
    b"32768",
    b"65536",
    b"1048576",
    b"2147483647",
    b"2147483648",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551615",
    b"99999999999999999999999999",
    b"1.5",
    b"1e400",
];

/// Changes `data` in one to eight places, and mends its lengths and checksums in half of the cases. `other` is an input to
/// take pieces from.
pub fn mutate(target: &Target, random: &mut Random, data: &mut Vec<u8>, other: &[u8]) {
    // Half of the inputs in one place: a later check is only reached where all before it pass.
    for _ in 0..*random.pick(&[&1, &1, &1, &2, &4, &8]) {
        if random.below(2) == 0 || !json(random, data) {
            step(target, random, data, other);
        }
        data.truncate(target.max_bytes);
    }
    if random.below(2) == 0 {
        (target.repair)(data);
    }
}

fn step(target: &Target, random: &mut Random, data: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(data.len() + 1);
    match random.below(14) {
        0 if at < data.len() => data[at] ^= 1 << random.below(8),
        1 if at < data.len() => data[at] = random.next() as u8,
        2 if at < data.len() => {
            data[at] = random.pick(&[&0u8, &1, &0x7f, &0x80, &0xff, &b'"', &b'\\', &b'{']).to_owned()
        }
        3 => {
            data.drain(at..at + random.below((data.len() - at).min(16) + 1));
        }
        4 => data.truncate(at),
        5 | 6 => {
            let word = random.pick(target.dictionary);
            let replaced = if random.below(2) == 0 { 0 } else { word.len().min(data.len() - at) };
            data.splice(at..at + replaced, word.iter().copied());
        }
        7 => text_number(random, data, at),
        // Binary numbers stand where there is no text.
        8 if data[at..].iter().take(8).all(|byte| (b' '..=b'~').contains(byte)) => {
            text_number(random, data, at)
        }
        8 => binary_number(random, data, at),
        9 => {
            let from = random.below(other.len() + 1);
            let piece = &other[from..from + random.below((other.len() - from).min(256) + 1)];
            let replaced = random.below((data.len() - at).min(piece.len()) + 1);
            data.splice(at..at + replaced, piece.iter().copied());
        }
        10 => bracketed(random, data, at),
        11 => repeat(target, random, data, at),
        12 => {
            // Two pieces change places.
            let (a, b) = (at.min(data.len() / 2), data.len() / 2);
            let length = random.below((data.len() - b).min(b - a) + 1);
            (0..length).for_each(|i| data.swap(a + i, b + i));
        }
        _ => data.insert(at, random.next() as u8),
    }
}

/// Replaces, takes out or doubles one value of the JSON text that the data, or one of its lines, is; false if it is none.
fn json(random: &mut Random, data: &mut Vec<u8>) -> bool {
    let at = random.below(data.len() + 1);
    let line = data[..at].iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let line = line..data[at..].iter().position(|&b| b == b'\n').map_or(data.len(), |i| at + i);
    for range in [0..data.len(), line] {
        let Ok(mut root) = serde_json::from_slice::<Value>(&data[range.clone()]) else { continue };
        let mut left = random.below(count(&root));
        change(random, &mut root, &mut left);
        data.splice(range, root.to_string().into_bytes());
        return true;
    }
    false
}

/// Values in a JSON value, itself included.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// Changes the value number `left` in reading order; true when that is done.
fn change(random: &mut Random, value: &mut Value, left: &mut usize) -> bool {
    if *left == 0 {
        *value = match random.below(13) {
            0 => Value::Null,
            1 => Value::Bool(random.below(2) == 0),
            2 => Value::Array(Vec::new()),
            3 => Value::Array(vec![value.clone(); 1 + random.below(4)]),
            4 => Value::Object(Map::new()),
            5 => Value::String(value.to_string()),
            6 => Value::String(String::new()),
            7 => Value::from(value.as_i64().unwrap_or_default().wrapping_neg()),
            8 => Value::from(value.as_i64().unwrap_or_default().wrapping_add(1)),
            9 => Value::from(0),
            _ => serde_json::from_slice(random.pick(&NUMBERS)).unwrap_or_default(),
        };
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().any(|item| change(random, item, left)),
        Value::Object(map) => {
            let found =
                map.iter_mut().find_map(|(key, item)| change(random, item, left).then(|| key.clone()));
            // Sometimes the key goes too.
            if let Some(key) = &found
                && random.below(8) == 0
            {
                map.remove(key);
            }
            found.is_some()
        }
        _ => false,
    }
}

/// Replaces the run of digits at or after `at`.
fn text_number(random: &mut Random, data: &mut Vec<u8>, at: usize) {
    let Some(first) = data[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let start = data[..first].iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |i| i + 1);
    let length = data[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let number = random.pick(&NUMBERS);
    data.splice(start..start + length, number.iter().copied());
}

/// Adds a little to, or replaces, the 1, 2, 4 or 8 byte number at `at`, in either order of bytes.
fn binary_number(random: &mut Random, data: &mut [u8], at: usize) {
    let width = 1usize << random.below(4);
    let Some(place) = data.get_mut(at..at + width) else { return };
    if random.below(2) == 0 {
        place.reverse();
    }
    let mut word = [0; 8];
    word[..width].copy_from_slice(place);
    let number = u64::from_le_bytes(word);
    let number = match random.below(4) {
        0 => u64::MAX >> random.below(64),
        1 => 1 << random.below(64),
        _ => number.wrapping_add(random.below(33) as u64).wrapping_sub(16),
    };
    place.copy_from_slice(&number.to_le_bytes()[..width]);
    if random.below(2) == 0 {
        place.reverse();
    }
}

/// Takes out, doubles or empties the bracketed piece that begins at or after `at`.
fn bracketed(random: &mut Random, data: &mut Vec<u8>, at: usize) {
    let Some(start) = data[at..].iter().position(|b| b"{[(<".contains(b)).map(|i| at + i) else { return };
    let close = match data[start] {
        b'{' => b'}',
        b'[' => b']',
        b'(' => b')',
        _ => b'>',
    };
    let (open, mut depth) = (data[start], 0usize);
    let end = data[start..].iter().position(|&byte| {
        depth += usize::from(byte == open);
        depth -= usize::from(byte == close);
        depth == 0
    });
    let Some(end) = end.map(|i| start + i + 1) else { return };
    let piece = data[start..end].to_vec();
    match random.below(4) {
        0 => _ = data.drain(start..end),
        1 => _ = data.splice(start..start, [piece.as_slice(), b","].concat()),
        2 => _ = data.drain(start + 1..end - 1),
        // Inside itself.
        _ => _ = data.splice(start + 1..start + 1, piece),
    }
}

/// Repeats a short piece, often many times.
fn repeat(target: &Target, random: &mut Random, data: &mut Vec<u8>, at: usize) {
    let piece = data[at..at + random.below((data.len() - at).min(24) + 1)].to_vec();
    let room = target.max_bytes.saturating_sub(data.len()) / piece.len().max(1);
    let most = room.min(1 << random.below(12));
    let times = random.below(most + 1);
    data.splice(at..at, piece.repeat(times));
}
