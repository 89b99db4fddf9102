//! Datasets: every form of row, with images that are there, that lie elsewhere, and that are none.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use othink::data::{
    Dataset, ImageSource, Message, Part, PromptTemplate, ReadOptions, Sample, read, read_usable,
};
use othink::error::Result;
use serde_json::{Value, json};

use super::{Outcome, Target, refused, scratch, write};

pub const TARGET: Target = Target {
    name: "jsonl",
    body,
    seeds,
    dictionary: &[
        b"\"image\":\"a.png\",",
        b"\"images\":[\"a.png\",\"sub/b.png\"],",
        b"\"file_name\":\"a.png\",",
        b"\"images\":[],",
        b"\"image\":null,",
        b"\"image\":{\"path\":\"a.png\",\"bytes\":null},",
        b"\"problem\":\"how many?\",",
        b"\"solution\":\"<answer> 3 </answer>\",",
        b"\"solution\":3.50,",
        b"\"thinking\":\"a b\",",
        b"\"prompt\":",
        b"\"completion\":",
        b"\"messages\":[",
        b"{\"role\":\"user\",\"content\":\"x\"},",
        b"{\"role\":\"assistant\",\"content\":\"y\"}",
        b"{\"role\":\"system\",\"content\":[]},",
        b"{\"type\":\"image\"},",
        b"{\"type\":\"image\",\"image\":\"a.png\"},",
        b"{\"type\":\"text\",\"text\":\"t\"},",
        b"{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,AAAA\"}},",
        b"\"conversations\":[{\"from\":\"human\",\"value\":\"<image>x\"},{\"from\":\"gpt\",\"value\":\"y\"}],",
        b"\"answer\":\"3\",",
        b"\"reward_model\":{\"ground_truth\":\"3\"},",
        b"<image>",
        b"a.png",
        b"sub/b.png",
        b"link.png",
        b"../secret.png",
        b"/etc/hostname",
        b"file:///etc/hostname",
        b"https://",
        b"data:image/png;base64,AA",
        b"\\u0000",
        b"\\n",
        b"\\ud83d\\ude00",
        b"\\ud800",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"\xff",
        b"{}",
        b"null",
        b"1e999",
        b"[[[[[[[[[[[[[[[[",
    ],
    repair: |_| {},
    max_bytes: 1 << 13,
};

/// The dataset's folder: two images, and a link to a file beside the folder.
fn folder() -> PathBuf {
    let folder = scratch().join("set");
    if !folder.exists() {
        fs::create_dir_all(folder.join("sub")).expect("create");
        for name in ["set/a.png", "set/sub/b.png", "secret.png"] {
            write(name, b"not decoded here");
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(scratch().join("secret.png"), folder.join("link.png")).expect("link");
    }
    folder
}

fn options(need_solution: bool) -> ReadOptions {
    ReadOptions { need_solution, template: PromptTemplate::None, ..ReadOptions::default() }
}

fn body(input: &[u8]) -> Outcome {
    let folder = folder();
    let path = folder.join("train.jsonl");
    fs::write(&path, input).expect("the scratch folder can be written");
    let all = |read: Result<Dataset>| read.and_then(|rows| rows.iter().collect::<Result<Vec<Sample>>>());
    let (rows, with_solution) = (all(read(&path, &options(false))), all(read(&path, &options(true))));
    if let Ok(with_solution) = &with_solution {
        let rows = rows.as_ref().expect("asking for less accepts no less");
        assert!(rows == with_solution, "asking for less gives other rows");
        assert!(rows.iter().all(|row| row.solution.is_some()));
    }
    leaving_out_bad_rows(&path, &rows);
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => return refused(&error, &[65]),
    };
    rows.iter().enumerate().for_each(|(n, row)| row_holds(n, row, &folder));
    written_again(&rows, &folder);
    let mut outcome = match with_solution {
        Ok(_) => Outcome::of("complete"),
        Err(error) => refused(&error, &[65]),
    };
    let first = &rows[0];
    outcome =
        outcome.and(Outcome::of((rows.len().min(3), first.images.len().min(3), first.messages.len().min(3))));
    outcome.and(Outcome::of((first.columns.is_empty(), first.ends_with_assistant())))
}

/// With bad rows left out the good ones stay as they are, and each bad one has its error.
fn leaving_out_bad_rows(path: &Path, all: &Result<Vec<Sample>>) {
    let mut bad = 0;
    let usable = read_usable(path, &options(false), |error| {
        refused(&error, &[65]);
        bad += 1;
        Ok(())
    });
    match (usable, all) {
        (Ok(usable), Ok(all)) => assert!(bad == 0 && usable.rows() == all.len()),
        (Ok(usable), Err(_)) => assert!(bad > 0 && usable.rows() > 0),
        (Err(error), Ok(_)) => panic!("{error}, though every row is good"),
        (Err(error), Err(_)) => _ = refused(&error, &[65]),
    }
}

fn row_holds(n: usize, row: &Sample, folder: &Path) {
    assert_eq!(row.row, n);
    assert!(!row.messages.is_empty());
    assert!(row.messages.iter().all(|m| ["system", "user", "assistant"].contains(&m.role.as_str())));
    let parts = row.messages.iter().flat_map(|message| &message.content);
    let shown: Vec<usize> =
        parts.filter_map(|part| if let Part::Image(i) = part { Some(*i) } else { None }).collect();
    assert_eq!(shown, (0..row.images.len()).collect::<Vec<_>>(), "each image once, in reading order");
    let real = fs::canonicalize(folder).expect("the folder is there");
    for image in &row.images {
        let ImageSource::File(path) = image else { continue };
        assert!(fs::canonicalize(path).expect("the image is there").starts_with(&real), "{}", path.display());
    }
    match row.supervised() {
        Ok(supervised) => {
            assert!(supervised.ends_with_assistant());
            let prompt = supervised.prompt();
            assert!(prompt.messages.len() + 1 == supervised.messages.len());
            assert_eq!(prompt.messages, row.prompt().messages);
        }
        Err(error) => {
            assert!(row.solution.is_none());
            refused(&error, &[65]);
        }
    }
}

/// The rows as `messages`, read again, are the same rows.
fn written_again(rows: &[Sample], folder: &Path) {
    let mut text = String::new();
    for row in rows {
        let mut object = row.columns.clone();
        let part = |part: &Part| match part {
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Image(i) => json!({"type": "image", "image": row.images[*i].as_text()}),
        };
        let message =
            |m: &Message| json!({"role": m.role, "content": m.content.iter().map(part).collect::<Vec<_>>()});
        object.insert("messages".into(), row.messages.iter().map(message).collect());
        if let Some(solution) = &row.solution {
            object.entry("solution").or_insert(solution.as_str().into());
        }
        writeln!(text, "{}", Value::Object(object)).expect("a String takes everything");
    }
    let path = folder.join("again.jsonl");
    fs::write(&path, &text).expect("the scratch folder can be written");
    match read(&path, &options(false)) {
        Ok(again) => {
            let again: Vec<Sample> = again.iter().map(|row| row.expect("read before")).collect();
            let (again, rows) = (without_origin(&again), without_origin(rows));
            assert!(again == rows, "{rows:?}\nwas read again as\n{again:?}");
        }
        Err(error) => panic!("{error}\nin {text}"),
    }
}

/// The rows without the place they were read from.
fn without_origin(rows: &[Sample]) -> Vec<Sample> {
    rows.iter().map(|row| Sample { origin: None, ..row.clone() }).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let rows: [&str; 18] = [
        r#"{"image": "a.png", "conversations": [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "y"}]}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}], "answer": 3}"#,
        r#"{"image": "a.png", "problem": "How many?", "solution": "<answer> 3 </answer>", "thinking": "1 2 3"}"#,
        r#"{"images": ["a.png", "sub/b.png"], "problem": "a <image> b <image> c", "solution": 5}"#,
        r#"{"file_name": "a.png", "problem": "?", "solution": "x", "difficulty": {"level": [1, 2.5, null]}}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]}], "solution": "5"}"#,
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q <image>"}, {"role": "assistant", "content": "<image>"}], "image": "a.png"}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "é \u0000 😀"}]}], "images": [{"path": "sub/b.png", "bytes": null}]}"#,
        r#"{"prompt": "x", "completion": "y"}"#,
        r#"{"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}], "image": "a.png"}"#,
        r#"{"problem": "x", "image": "../secret.png"}"#,
        r#"{"problem": "x", "image": "link.png"}"#,
        r#"{"question": "x", "answer": "y"}"#,
        r#"{"problem": "x", "solution": null}"#,
        r#"{"problem": "<image>", "images": []}"#,
        r#"{"problem": "a", "problem": "b"}"#,
        r#"[1, 2]"#,
        r#"{"problem": "cut"#,
    ];
    let mut seeds: Vec<Vec<u8>> = rows.iter().map(|row| row.as_bytes().to_vec()).collect();
    seeds.push(format!("{}\n\n{}\r\n{}\n", rows[0], rows[3], rows[6]).into_bytes());
    seeds.push(format!("\u{feff}{}\n{}", rows[1], rows[2]).into_bytes());
    seeds
}
