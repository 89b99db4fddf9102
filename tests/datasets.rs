//! Datasets that the Python library `datasets` wrote read back as it reads them (`tools/reference/make_datasets.py`), in any
//! order, and become the samples that they should.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use othink::data::{
    Cell, ImageSource, Part, PromptTemplate, ReadOptions, Sample, Table, TableOptions, open, open_table,
};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/datasets")
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(root().join("expected.json")).unwrap()).unwrap()
}

fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// A cell as `plain` in the script has it.
fn plain(cell: Cell) -> Value {
    match cell {
        Cell::Json(value) => value,
        Cell::Bytes(bytes) => json!({"xxh3": hash(&bytes)}),
        Cell::Image(image) => json!({"path": image.path, "xxh3": image.bytes.map(|bytes| hash(&bytes))}),
        Cell::List(items) => items.into_iter().map(plain).collect(),
        Cell::Object(entries) => entries.into_iter().map(|(name, cell)| (name, plain(cell))).collect(),
    }
}

fn row(table: &dyn Table, row: usize) -> Value {
    let cells = table.read(row).unwrap();
    cells.iter().map(|(name, cell)| (name.to_owned(), plain(cell.clone()))).collect()
}

/// Reads every row of a table forwards, which decodes ahead, backwards, which does not, and from two threads at once.
fn check_rows(table: &dyn Table, expected: &[Value], name: &str) {
    assert_eq!(table.rows(), expected.len(), "{name}");
    let all: Vec<usize> = (0..expected.len()).collect();
    let check = |order: &[usize]| {
        for &at in order {
            assert_eq!(row(table, at), expected[at], "{name}, row {at}");
        }
    };
    let backwards: Vec<usize> = all.iter().rev().copied().collect();
    check(&backwards);
    check(&all);
    check(&all);
    std::thread::scope(|scope| {
        scope.spawn(|| check(&all));
        scope.spawn(|| check(&backwards));
    });
}

#[test]
fn rows_are_those_that_datasets_reads() {
    let expected = expected();
    let mut tables = 0;
    for (name, set) in expected.as_object().unwrap() {
        let Some(splits) = set["rows"].as_object() else { continue };
        for (split, rows) in splits {
            let table = open_table(&root().join(name), split, &TableOptions::default()).unwrap();
            check_rows(&*table, rows.as_array().unwrap(), &format!("{name}, {split}"));
            tables += 1;
        }
    }
    assert_eq!(tables, 8);
}

/// Every type, codec, page version and file format.
#[test]
fn types_are_those_that_datasets_reads() {
    let expected = expected();
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(root().join("types")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let rows = if stem == "odd" { "odd" } else { "rows" };
        let table = open_table(&path, "train", &TableOptions::default()).unwrap();
        check_rows(&*table, expected["types"][rows].as_array().unwrap(), &path.display().to_string());
        *files.entry(path.extension().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(files.into_values().collect::<Vec<_>>(), [3, 8]);
}

/// A sample as the script has it: texts are strings, and an image of a message is its number.
fn shown(sample: &Sample) -> Value {
    let messages: Vec<Value> = sample
        .messages
        .iter()
        .map(|message| {
            let parts = message.content.iter().map(|part| match part {
                Part::Text(text) => json!(text),
                Part::Image(image) => json!(image),
            });
            json!({"role": message.role, "content": parts.collect::<Vec<_>>()})
        })
        .collect();
    let images: Vec<String> =
        sample.images.iter().map(|image| hash(&ImageSource::encoded(image).unwrap())).collect();
    json!({"messages": messages, "images": images, "solution": sample.solution, "columns": sample.columns})
}

#[test]
fn samples_of_every_layout() {
    let expected = expected();
    let mut samples = 0;
    for (name, set) in expected.as_object().unwrap() {
        let Some(splits) = set["samples"].as_object() else { continue };
        for (split, wanted) in splits {
            let options = ReadOptions {
                split: split.clone(),
                template: PromptTemplate::None,
                ..ReadOptions::default()
            };
            let dataset = open(&[root().join(name)], &options).unwrap();
            let found: Vec<Value> = dataset.iter().map(|sample| shown(&sample.unwrap())).collect();
            assert_eq!(Value::from(found), *wanted, "{name}, {split}");
            samples += dataset.rows();
        }
    }
    assert_eq!(samples, 32);
}
