use std::fs;

use serde_json::Value;

use super::*;

/// A folder with files of one row each.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}\n").unwrap();
    }
    dir
}

fn found(dir: &Path, split: &str) -> Result<Vec<String>> {
    let files = find_files(dir, split)?;
    Ok(files.iter().map(|f| f.strip_prefix(dir).unwrap().to_str().unwrap().to_owned()).collect())
}

/// `tests/datasets/splits.json`: what `datasets` finds (`tools/reference/make_datasets.py`).
#[test]
fn splits_are_those_that_datasets_finds() {
    let trees: Value = serde_json::from_str(include_str!("../../../tests/datasets/splits.json")).unwrap();
    for tree in trees.as_array().unwrap() {
        let names = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
        };
        let files = names(&tree["files"]);
        let dir = folder(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let listed = list(dir.path()).unwrap();
        let ours: Vec<String> = splits_of(&listed).into_iter().map(|(name, _)| name).collect();
        let theirs = tree["splits"].as_object().unwrap();
        for name in &ours {
            assert!(theirs.contains_key(name), "{tree}: {ours:?}");
        }
        assert_eq!(ours.len(), theirs.len(), "{tree}: {ours:?}");
        for (split, files) in theirs {
            assert_eq!(found(dir.path(), split).unwrap(), names(files), "{tree}: {split}");
        }
    }
}

#[test]
fn case_27_other_names_and_formats() {
    let dir = folder(&["easy.jsonl", "hard/a.parquet", "hard/b.jsonl", "hard/c.parquet", "images/1.png"]);
    assert_eq!(found(dir.path(), "easy").unwrap(), ["easy.jsonl"]);
    assert_eq!(found(dir.path(), "hard").unwrap(), ["hard/a.parquet", "hard/c.parquet"]);
    assert_eq!(found(dir.path(), "../x").unwrap_err().exit_code(), 2);
    let dir = folder(&["data/dev-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]);
    assert_eq!(found(dir.path(), "validation").unwrap(), ["data/dev-00000-of-00001.parquet"]);
    let error = found(dir.path(), "test").unwrap_err();
    assert_eq!(error.exit_code(), 66);
    let wanted = "splits found: dev (data/dev-00000-of-00001.parquet), train (data/train";
    assert!(error.to_string().contains(wanted), "{error}");

    let dir = folder(&["train.csv", "images/1.png"]);
    let error = found(dir.path(), "train").unwrap_err();
    assert!(error.exit_code() == 65 && error.to_string().contains("to_parquet"), "{error}");
    let error = found(folder(&["images/1.png"]).path(), "train").unwrap_err();
    assert!(error.exit_code() == 66 && error.to_string().contains("is there either"), "{error}");
    assert_eq!(find_files(&dir.path().join("nowhere"), "train").unwrap_err().exit_code(), 66);
}

#[test]
fn the_card_decides_where_it_names_files() {
    let dir = folder(&["x/a.jsonl", "x/b.jsonl", "train.jsonl"]);
    let card = |text: &str| fs::write(dir.path().join("README.md"), text).unwrap();
    card(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: x/*.jsonl\n---\n",
    );
    assert_eq!(found(dir.path(), "train").unwrap(), ["x/a.jsonl", "x/b.jsonl"]);
    // A pattern of nothing that is there leaves the names to decide.
    card("---\nconfigs:\n- config_name: default\n  data_files: gone/*.parquet\n---\n");
    assert_eq!(found(dir.path(), "train").unwrap(), ["train.jsonl"]);
    card(
        "---\nconfigs:\n- config_name: a\n  data_files: x/a.jsonl\n- config_name: b\n  data_files: x/b.jsonl\n---\n",
    );
    let error = found(dir.path(), "train").unwrap_err();
    assert!(error.exit_code() == 65 && error.to_string().contains("(a, b)"), "{error}");
}

#[test]
fn saved_folders_name_their_files() {
    let dir = folder(&["one/data-00000-of-00001.arrow", "outside.arrow"]);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let one = dir.path().join("one");
    write(
        "one/state.json",
        r#"{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": null}"#,
    );
    assert_eq!(found(&one, "train").unwrap(), ["data-00000-of-00001.arrow"]);
    let error = found(&one, "test").unwrap_err();
    assert!(error.exit_code() == 66 && error.to_string().contains("splits found: train"), "{error}");
    write("dataset_dict.json", r#"{"splits": ["one", "gone"]}"#);
    assert_eq!(found(dir.path(), "one").unwrap(), ["one/data-00000-of-00001.arrow"]);
    assert_eq!(found(dir.path(), "gone").unwrap_err().exit_code(), 66);
    assert!(found(dir.path(), "train").unwrap_err().to_string().contains("splits found: one, gone"));
    write("one/state.json", r#"{"_data_files": [{"filename": "../outside.arrow"}]}"#);
    assert_eq!(found(&one, "train").unwrap_err().exit_code(), 65);
    write("one/state.json", r#"{"_data_files": [{"filename": "gone.arrow"}]}"#);
    assert_eq!(found(&one, "train").unwrap_err().exit_code(), 66);
    write(
        "one/state.json",
        r#"{"_data_files": [{"filename": "x"}], "_indices_data_files": [{"filename": "i"}]}"#,
    );
    assert!(found(&one, "train").unwrap_err().to_string().contains("flatten_indices"));
    write("one/state.json", "{}");
    assert_eq!(found(&one, "train").unwrap_err().exit_code(), 65);
}
