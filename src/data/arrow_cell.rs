//! Rows of Arrow record batches as cells.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowDictionaryKeyType, ArrowPrimitiveType, Date32Type, Date64Type, Decimal32Type, Decimal64Type,
    Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::extension::EXTENSION_TYPE_NAME_KEY;
use arrow_schema::{DataType, Field, TimeUnit};
use serde_json::Value;

use super::cells::{Cell, Cells, ImageCell};
use super::jsonl::parse_value;

/// Why a value cannot be read; the caller adds the place.
type CellResult = Result<Cell, String>;

/// Most bytes of a row: 1 GiB.
const MAX_ROW_BYTES: usize = 1 << 30;

/// How much memory the rest of a row may take: dictionaries and lists of nothing can make much of little.
struct Budget(usize);

impl Budget {
    /// Takes the place of a value with `bytes` behind it.
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.0 = self
            .0
            .checked_sub(bytes.saturating_add(size_of::<Cell>()))
            .ok_or_else(|| format!("the row takes more than {MAX_ROW_BYTES} bytes"))?;
        Ok(())
    }
}

/// Row `row` of `batch`.
///
/// | Arrow | cell |
/// |---|---|
/// | integers, floats, booleans, strings, null | the same in JSON; NaN and infinity are null |
/// | `arrow.json` strings | the JSON in them |
/// | dates, times, timestamps | ISO 8601 texts, timestamps with a zone in UTC |
/// | decimals | texts |
/// | durations | the count of their unit |
/// | lists of all kinds, structs | lists, objects; maps are lists of pairs |
/// | a struct of `bytes` and `path` | an image |
/// | binary | bytes |
/// | dictionaries | the values |
///
/// # Errors
/// The column and the reason: a type without a row above, or JSON that is none.
pub(super) fn cells_of(batch: &RecordBatch, row: usize) -> Result<Cells, String> {
    let mut cells = Cells::default();
    let mut left = Budget(MAX_ROW_BYTES);
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let cell = cell(field, column, row, &mut left)
            .map_err(|reason| format!("column `{}`: {reason}", field.name()))?;
        cells
            .push(field.name().clone(), cell)
            .map_err(|name| format!("the column `{name}` is given twice"))?;
    }
    Ok(cells)
}

fn cell(field: &Field, array: &dyn Array, row: usize, left: &mut Budget) -> CellResult {
    left.take(0)?;
    if array.is_null(row) {
        return Ok(Cell::Json(Value::Null));
    }
    let json = match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number::<Int8Type>(array, row),
        DataType::Int16 => number::<Int16Type>(array, row),
        DataType::Int32 => number::<Int32Type>(array, row),
        DataType::Int64 => number::<Int64Type>(array, row),
        DataType::UInt8 => number::<UInt8Type>(array, row),
        DataType::UInt16 => number::<UInt16Type>(array, row),
        DataType::UInt32 => number::<UInt32Type>(array, row),
        DataType::UInt64 => number::<UInt64Type>(array, row),
        DataType::Float16 => f64::from(array.as_primitive::<Float16Type>().value(row)).into(),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => number::<Float64Type>(array, row),
        DataType::Utf8 => text(field, array.as_string::<i32>().value(row), left)?,
        DataType::LargeUtf8 => text(field, array.as_string::<i64>().value(row), left)?,
        DataType::Utf8View => text(field, array.as_string_view().value(row), left)?,
        DataType::Decimal32(..) => array.as_primitive::<Decimal32Type>().value_as_string(row).into(),
        DataType::Decimal64(..) => array.as_primitive::<Decimal64Type>().value_as_string(row).into(),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row).into(),
        DataType::Decimal256(..) => array.as_primitive::<Decimal256Type>().value_as_string(row).into(),
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => {
            moment(array, row).ok_or("a date or time is out of range")?.into()
        }
        DataType::Timestamp(_, zone) => {
            let moment = moment(array, row).ok_or("a timestamp is out of range")?;
            format!("{moment}{}", if zone.is_some() { "+00:00" } else { "" }).into()
        }
        DataType::Binary => return bytes(array.as_binary::<i32>().value(row), left),
        DataType::LargeBinary => return bytes(array.as_binary::<i64>().value(row), left),
        DataType::BinaryView => return bytes(array.as_binary_view().value(row), left),
        DataType::FixedSizeBinary(_) => return bytes(array.as_fixed_size_binary().value(row), left),
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let ends = &list.value_offsets()[row..];
            return items(item, list.values(), ends[0] as usize, ends[1] as usize, left);
        }
        DataType::LargeList(item) => {
            let list = array.as_list::<i64>();
            let ends = &list.value_offsets()[row..];
            return items(item, list.values(), ends[0] as usize, ends[1] as usize, left);
        }
        DataType::FixedSizeList(item, length) => {
            let list = array.as_fixed_size_list();
            let start = list.value_offset_at(row);
            return items(item, list.values(), start, start + *length as usize, left);
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let ends = &map.value_offsets()[row..];
            let (keys, values) = map.entries_fields();
            let mut pairs = Vec::new();
            for item in ends[0] as usize..ends[1] as usize {
                let pair = [cell(keys, map.keys(), item, left)?, cell(values, map.values(), item, left)?];
                pairs.push(Cell::list(pair.into()));
            }
            return Ok(Cell::list(pairs));
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let entries = fields
                .iter()
                .zip(columns)
                .map(|(field, column)| Ok((field.name().clone(), cell(field, column, row, left)?)))
                .collect::<Result<Vec<_>, String>>()?;
            return object(fields, entries);
        }
        DataType::Dictionary(keys, _) => return entry(field, keys, array, row, left),
        other => return Err(format!("values of the Arrow type {other} are not read; store JSON or text")),
    };
    Ok(Cell::Json(json))
}

fn number<T: ArrowPrimitiveType<Native: Into<Value>>>(array: &dyn Array, row: usize) -> Value {
    array.as_primitive::<T>().value(row).into()
}

fn bytes(bytes: &[u8], left: &mut Budget) -> CellResult {
    left.take(bytes.len())?;
    Ok(Cell::Bytes(bytes.into()))
}

/// The text itself, or what it holds where the column is JSON.
fn text(field: &Field, text: &str, left: &mut Budget) -> Result<Value, String> {
    left.take(text.len())?;
    match field.metadata().get(EXTENSION_TYPE_NAME_KEY).map(String::as_str) {
        Some("arrow.json") => parse_value(text).map_err(|reason| format!("not valid JSON: {reason}")),
        _ => Ok(text.into()),
    }
}

/// The ISO 8601 text of a date, a time or a timestamp, if there is such a moment; with microseconds, as Python writes it,
/// or nanoseconds.
fn moment(array: &dyn Array, row: usize) -> Option<String> {
    let text = shortest_moment(array, row)?;
    Some(match text.split_once('.') {
        Some((seconds, fraction)) => format!("{seconds}.{fraction:0<6}"),
        None => text,
    })
}

/// As [`moment`], with milliseconds where they are enough.
fn shortest_moment(array: &dyn Array, row: usize) -> Option<String> {
    macro_rules! shown {
        ($kind:ty, $value:ident) => {
            array.as_primitive::<$kind>().$value(row).map(|value| format!("{value:?}"))
        };
    }
    match array.data_type() {
        DataType::Date32 => shown!(Date32Type, value_as_date),
        DataType::Date64 => shown!(Date64Type, value_as_date),
        DataType::Time32(TimeUnit::Second) => shown!(Time32SecondType, value_as_time),
        DataType::Time32(_) => shown!(Time32MillisecondType, value_as_time),
        DataType::Time64(TimeUnit::Microsecond) => shown!(Time64MicrosecondType, value_as_time),
        DataType::Time64(_) => shown!(Time64NanosecondType, value_as_time),
        DataType::Timestamp(TimeUnit::Second, _) => shown!(TimestampSecondType, value_as_datetime),
        DataType::Timestamp(TimeUnit::Millisecond, _) => shown!(TimestampMillisecondType, value_as_datetime),
        DataType::Timestamp(TimeUnit::Microsecond, _) => shown!(TimestampMicrosecondType, value_as_datetime),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => shown!(TimestampNanosecondType, value_as_datetime),
        _ => None,
    }
}

fn items(field: &Field, values: &ArrayRef, start: usize, end: usize, left: &mut Budget) -> CellResult {
    let mut items = Vec::new();
    for item in start..end {
        items.push(cell(field, values, item, left)?);
    }
    Ok(Cell::list(items))
}

/// A struct; one of exactly `bytes` and `path` is an image.
fn object(fields: &[Arc<Field>], entries: Vec<(String, Cell)>) -> CellResult {
    let is = |name: &str, kinds: &[DataType]| {
        fields.iter().any(|field| field.name() == name && kinds.contains(field.data_type()))
    };
    let image = fields.len() == 2
        && is("bytes", &[DataType::Binary, DataType::LargeBinary, DataType::BinaryView])
        && is("path", &[DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View, DataType::Null]);
    if !image {
        for (place, (name, _)) in entries.iter().enumerate() {
            if entries[..place].iter().any(|(other, _)| other == name) {
                return Err(format!("the key `{name}` is given twice"));
            }
        }
        return Ok(Cell::object(entries));
    }
    let mut picture = ImageCell::default();
    for (_, entry) in entries {
        match entry {
            Cell::Bytes(bytes) => picture.bytes = Some(bytes),
            Cell::Json(Value::String(path)) => picture.path = Some(path),
            _ => {}
        }
    }
    Ok(Cell::Image(picture))
}

/// A dictionary's value.
fn entry(field: &Field, keys: &DataType, array: &dyn Array, row: usize, left: &mut Budget) -> CellResult {
    fn at<K: ArrowDictionaryKeyType>(
        field: &Field,
        array: &dyn Array,
        row: usize,
        left: &mut Budget,
    ) -> CellResult {
        let dictionary = array.as_dictionary::<K>();
        match dictionary.key(row) {
            Some(key) => cell(field, dictionary.values(), key, left),
            None => Ok(Cell::Json(Value::Null)),
        }
    }
    match keys {
        DataType::Int8 => at::<Int8Type>(field, array, row, left),
        DataType::Int16 => at::<Int16Type>(field, array, row, left),
        DataType::Int32 => at::<Int32Type>(field, array, row, left),
        DataType::Int64 => at::<Int64Type>(field, array, row, left),
        DataType::UInt8 => at::<UInt8Type>(field, array, row, left),
        DataType::UInt16 => at::<UInt16Type>(field, array, row, left),
        DataType::UInt32 => at::<UInt32Type>(field, array, row, left),
        DataType::UInt64 => at::<UInt64Type>(field, array, row, left),
        other => Err(format!("a dictionary with keys of type {other}")),
    }
}
