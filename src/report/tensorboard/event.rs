//! The few protocol buffer messages of event files, written field by field.
//!
//! Field numbers are those of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`.

use crate::report::thumbnail::Picture;

/// What stands under a tag.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// A point of a curve.
    Scalar(f32),
    /// Markdown.
    Text(&'a str),
    /// A picture.
    Image(&'a Picture),
}

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// TensorFlow's number of the type of texts.
const DT_STRING: u64 = 7;
/// TensorBoard's class of data that is not a curve.
const DATA_CLASS_TENSOR: u64 = 2;
/// A picture of red, green and blue.
const RGB: u64 = 3;
/// A run that begins, or goes on, at the event's step.
const SESSION_START: u64 = 1;

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3 | VARINT);
        self.varint(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Message {
        self.varint(field << 3 | FIXED_32);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn double(mut self, field: u64, value: f64) -> Message {
        self.varint(field << 3 | FIXED_64);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn message(self, field: u64, value: Message) -> Message {
        self.bytes(field, &value.0)
    }
}

fn event(wall_time_s: f64, step: u64) -> Message {
    let event = Message::default().double(1, wall_time_s);
    // As every writer: what is 0 is not written.
    if step == 0 { event } else { event.number(2, step) }
}

/// The first record of a file.
pub fn version(wall_time_s: f64) -> Vec<u8> {
    event(wall_time_s, 0).bytes(3, b"brain.Event:2").0
}

/// The mark of a run that goes on: readers forget what they have of `step` and later ones.
pub fn goes_on(wall_time_s: f64, step: u64) -> Vec<u8> {
    event(wall_time_s, step).message(7, Message::default().number(1, SESSION_START)).0
}

/// Values of one step by tag, in order.
pub fn summary<'a>(
    wall_time_s: f64,
    step: u64,
    values: impl IntoIterator<Item = (&'a str, Shown<'a>)>,
) -> Vec<u8> {
    let add = |summary: Message, (tag, shown): (&str, Shown<'_>)| {
        let value = Message::default().bytes(1, tag.as_bytes());
        summary.message(
            1,
            match shown {
                Shown::Scalar(number) => value.float(2, number),
                Shown::Text(markdown) => value.message(8, text(markdown)).message(9, text_plugin()),
                Shown::Image(picture) => value.message(4, image(picture)),
            },
        )
    };
    event(wall_time_s, step).message(5, values.into_iter().fold(Message::default(), add)).0
}

/// `SummaryMetadata`: who draws the value.
fn text_plugin() -> Message {
    Message::default().message(1, Message::default().bytes(1, b"text")).number(4, DATA_CLASS_TENSOR)
}

/// `TensorProto` of one string.
fn text(markdown: &str) -> Message {
    let shape = Message::default().message(2, Message::default().number(1, 1));
    Message::default().number(1, DT_STRING).message(2, shape).bytes(8, markdown.as_bytes())
}

fn image(picture: &Picture) -> Message {
    Message::default()
        .number(1, picture.height.into())
        .number(2, picture.width.into())
        .number(3, RGB)
        .bytes(4, &picture.png)
}

/// What decides whether an event stays when a run goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// The event's step.
    pub step: u64,
    /// The tag of its first value; empty where it has none.
    pub tag: String,
}

/// Reads the step and the first tag of an event; `None` for what is no event.
pub fn place(event: &[u8]) -> Option<Place> {
    let mut place = Place::default();
    for field in Fields(event) {
        match field? {
            (2, Value::Number(step)) => place.step = step,
            (5, Value::Bytes(summary)) => {
                let Some((1, Value::Bytes(value))) = Fields(summary).next()? else { continue };
                let Some((1, Value::Bytes(tag))) = Fields(value).next()? else { continue };
                place.tag = String::from_utf8_lossy(tag).into_owned();
            }
            _ => {}
        }
    }
    Some(place)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message; `None` for one that is broken, which ends it.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.varint()?),
            FIXED_64 => self.take(8).map(|_| Value::Fixed)?,
            BYTES => {
                let bytes = self.varint()?;
                Value::Bytes(self.take(bytes)?)
            }
            FIXED_32 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What the package tensorboard 2.21 makes of the same messages.
    #[test]
    fn messages_have_the_bytes_that_tensorboard_writes() {
        let picture = Picture { width: 2, height: 300, png: vec![0x89, 0x50] };
        let cases = [
            (version(1.5), "09000000000000f83f1a0d627261696e2e4576656e743a32"),
            (goes_on(1.5, 300), "09000000000000f83f10ac023a020801"),
            (
                summary(1.5, 7, [("train/loss", Shown::Scalar(0.5)), ("é", Shown::Scalar(-2.0))]),
                "09000000000000f83f10072a1e0a110a0a747261696e2f6c6f7373150000003f0a090a02c3a915000000c0",
            ),
            (
                summary(1.5, 1, [("args/text_summary", Shown::Text("a|b"))]),
                "09000000000000f83f10012a300a2e0a11617267732f746578745f73756d6d617279420d08071204120208014203617c624a0a0a060a04746578742002",
            ),
            (
                summary(1.5, 2, [("i", Shown::Image(&picture))]),
                "09000000000000f83f10022a120a100a0169220b08ac021002180322028950",
            ),
        ];
        for (event, golden) in cases {
            assert_eq!(hex(&event), golden);
        }
    }

    #[test]
    fn places_are_read_back_and_nonsense_is_none() {
        let event = summary(1.5, 300, [("eval/loss", Shown::Scalar(0.5)), ("b", Shown::Scalar(-2.0))]);
        assert_eq!(place(&event), Some(Place { step: 300, tag: "eval/loss".into() }));
        assert_eq!(place(&goes_on(1.5, 300)), Some(Place { step: 300, tag: String::new() }));
        assert_eq!(place(&[]), Some(Place::default()));
        for cut in 1..event.len() {
            // Cut between two fields it is an event still.
            let is_whole = [9, 12].contains(&cut);
            assert_eq!(place(&event[..cut]).is_some(), is_whole, "{cut}");
        }
        assert_eq!(place(&[0xFF; 64]), None);
        assert_eq!(place(&[0x2A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]), None);
    }
}
