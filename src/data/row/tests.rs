use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A folder with `a.png` and `b.png`, and a reader over it.
fn reader(template: PromptTemplate, need_solution: bool) -> (TempDir, RowReader) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png"] {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    let roots = ImageRoots::new(&dir.path().join("train.jsonl"), None).unwrap();
    (dir, RowReader { roots, template, need_solution, need_target: false })
}

/// A row of a JSONL file.
fn cells(row: Value) -> Cells {
    let Value::Object(row) = row else { panic!("a test row is an object") };
    row.into()
}

fn read(row: Value) -> RowResult<Sample> {
    let (_dir, reader) = reader(PromptTemplate::None, false);
    reader.sample(0, cells(row))
}

fn text(words: &str) -> Part {
    Part::Text(words.into())
}

fn names(sample: &Sample) -> Vec<String> {
    sample.image_files().map(|p| p.file_name().unwrap().to_str().unwrap().to_string()).collect()
}

#[test]
fn r1v_columns() {
    let (_dir, reader) = reader(PromptTemplate::R1v, true);
    let row =
        json!({"image": "a.png", "problem": "How many?", "solution": "<answer> 3 </answer>", "level": 2});
    let sample = reader.sample(7, cells(row)).unwrap();
    assert_eq!(sample.row, 7);
    assert_eq!(sample.solution.as_deref(), Some("<answer> 3 </answer>"));
    assert_eq!(names(&sample), ["a.png"]);
    assert_eq!(sample.columns, json!({"problem": "How many?", "level": 2}).as_object().cloned().unwrap());
    let words = PromptTemplate::R1v.apply("How many?");
    assert_eq!(
        sample.messages,
        [Message { role: "user".into(), content: vec![Part::Image(0), text(&words)] }]
    );
    // The same thing as built in memory.
    let mut built = Sample::from_problem(
        7,
        sample.images.clone(),
        "How many?",
        PromptTemplate::R1v,
        sample.solution.clone(),
    );
    built.columns = sample.columns.clone();
    assert_eq!(built, sample);
}

#[test]
fn several_images_with_marks_in_the_problem() {
    let sample = read(json!({
        "images": ["b.png", {"path": "a.png", "bytes": null}],
        "problem": "First <image>\nthen <image>: same?"
    }))
    .unwrap();
    assert_eq!(names(&sample), ["b.png", "a.png"]);
    assert_eq!(
        sample.messages[0].content,
        [text("First "), Part::Image(0), text("\nthen "), Part::Image(1), text(": same?")]
    );
    assert_eq!(sample.solution, None);
}

#[test]
fn messages_with_parts_marks_and_inline_images() {
    let parts = read(json!({"images": ["a.png", "b.png"], "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "literal <image> stays"}]},
        {"role": "assistant", "content": "<image> is text here"},
        {"role": "user", "content": "and <image>?"},
    ]}))
    .unwrap();
    let contents: Vec<_> = parts.messages.iter().map(|m| m.content.clone()).collect();
    assert_eq!(
        contents,
        [
            vec![text("Be brief.")],
            vec![Part::Image(0), text("literal <image> stays")],
            vec![text("<image> is text here")],
            vec![text("and "), Part::Image(1), text("?")],
        ]
    );
    let inline = read(json!({"messages": [{"role": "user", "content": [
        {"type": "image", "image": "b.png"}, {"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}]}]}))
    .unwrap();
    assert_eq!(names(&inline), ["b.png", "a.png"]);
    assert_eq!(inline.messages[0].content, [Part::Image(0), Part::Image(1), text("?")]);
}

#[test]
fn trl_prompt_and_completion() {
    let sample = read(json!({"image": "a.png", "prompt": [{"role": "user", "content": "Count."}],
        "completion": [{"role": "assistant", "content": "3"}]}))
    .unwrap();
    assert_eq!(sample.messages[0].content, [Part::Image(0), text("Count.")]);
    assert!(sample.ends_with_assistant());
    let plain = read(json!({"prompt": "Say hi", "completion": "hi", "solution": 3})).unwrap();
    assert_eq!(plain.messages.len(), 2);
    assert_eq!((plain.solution.as_deref(), &plain.columns["solution"]), (Some("3"), &json!(3)));
    assert!(plain.images.is_empty());
}

#[test]
fn hugging_face_image_folder_and_text_only_rows() {
    let folder = read(json!({"file_name": "a.png", "problem": "?", "thinking": "<think>x</think>"})).unwrap();
    assert_eq!(names(&folder), ["a.png"]);
    let text_only = read(json!({"image": null, "problem": "2+2?"})).unwrap();
    assert_eq!(text_only.messages[0].content, [text("2+2?")]);
}

#[test]
fn case_31_refusals_say_what_is_wrong_and_how_to_mend_it() {
    let cases = [
        (
            json!({"image_path": "a.png", "question": "?", "ground_truth": 3}),
            &[
                "no column `messages` or `prompt` or `problem` or `conversations`",
                "image_path, question, ground_truth",
                "rename `question` to `problem`",
            ][..],
        ),
        (json!({"image": "a.png", "Problems": "?"}), &["did you mean `problem` by `Problems`?"]),
        (json!({"image": "a.png", "images": ["a.png"], "problem": "?"}), &["both `image` and `images`"]),
        (json!({"image": 3, "problem": "?"}), &["`image`", "not a number"]),
        (json!({"image": {"bytes": "xx", "path": null}, "problem": "?"}), &["`path`"]),
        (json!({"image": "c.png", "problem": "?"}), &["`c.png` not found"]),
        (json!({"image": "../a.png", "problem": "?"}), &["`..`"]),
        (json!({"image": "http://x/a.png", "problem": "?"}), &["URL"]),
        (json!({"problem": null}), &["`problem` has to be a string, not null"]),
        (json!({"problem": "?", "solution": ["3"]}), &["`solution`", "not a list"]),
        // Marks and images: more, fewer, none.
        (json!({"image": "a.png", "problem": "<image> <image>?"}), &["2 `<image>` mark(s)", "1 image(s)"]),
        (
            json!({"images": ["a.png", "b.png"], "problem": "<image>?"}),
            &["1 `<image>` mark(s)", "2 image(s)"],
        ),
        (json!({"problem": "<image>?"}), &["1 `<image>` mark(s)", "0 image(s)"]),
        (
            json!({"image": "a.png", "messages": [{"role": "user", "content": "?"}]}),
            &["0 `<image>` mark(s)", "1 image(s)"],
        ),
        (
            json!({"image": "a.png", "messages": [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}]}),
            &["names 1 image(s) itself"],
        ),
        (json!({"messages": []}), &["`messages` is empty"]),
        (json!({"messages": "hi"}), &["list of messages, not a string"]),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}),
            &["message 2", "unknown role `tool`"],
        ),
        (json!({"messages": [{"role": "user"}]}), &["`content` is missing"]),
        (json!({"messages": [{"role": "user", "content": [{"type": "video"}]}]}), &["type `video`"]),
        (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), &["string `text`"]),
        (json!({"image": "a.png", "prompt": [{"role": "system", "content": "x"}]}), &["no user message"]),
        (json!({"prompt": "x", "completion": 3}), &["`completion`", "not a number"]),
    ];
    for (row, wanted) in cases {
        let shown = row.to_string();
        let message = read(row).unwrap_err();
        assert!(wanted.iter().all(|w| message.contains(w)), "{shown}: {message}");
    }
}

#[test]
fn the_number_of_images_is_bounded() {
    assert_eq!(read(json!({"images": vec!["a.png"; MAX_IMAGES], "problem": "?"})).unwrap().images.len(), 512);
    let message = read(json!({"images": vec!["a.png"; 513], "problem": "?"})).unwrap_err();
    assert!(message.contains("513 images") && message.contains("at most 512"), "{message}");
}

#[test]
fn a_needed_solution_is_asked_for() {
    let (_dir, reader) = reader(PromptTemplate::None, true);
    let ask = |row: Value| reader.sample(0, cells(row)).unwrap_err();
    let absent = ask(json!({"problem": "?", "label": "3"}));
    assert!(
        absent.contains("no column `solution` or `answer`")
            && absent.contains("rename `label` to `solution`"),
        "{absent}"
    );
    assert_eq!(ask(json!({"problem": "?", "solution": null})), "`solution` is null");
    for row in
        [json!({"problem": "?", "answer": [3]}), json!({"conversations": [{"from": "human", "value": "?"}]})]
    {
        assert!(ask(row).contains("no column `solution`"));
    }
}

#[test]
fn the_answer_is_found_under_other_trainers_names() {
    let solution = |row: Value| read(row).unwrap().solution;
    assert_eq!(solution(json!({"problem": "?", "answer": 3})), Some("3".into()));
    assert_eq!(solution(json!({"problem": "?", "answer": "a", "solution": "s"})), Some("s".into()));
    assert_eq!(solution(json!({"problem": "?", "solution": [1, 2.5]})), Some("[1,2.5]".into()));
    let turns = |reply: Value| json!({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": reply}]});
    assert_eq!(solution(turns(json!([1, 2, 30, 40]))), Some("[1,2,30,40]".into()));
    assert_eq!(solution(turns(json!(3))), Some("3".into()));
    assert_eq!(solution(json!({"problem": "?", "answer": "a", "solution": null})), Some("a".into()));
    assert_eq!(solution(json!({"problem": "?", "answer": ["a"], "ground_truth": "g"})), Some("g".into()));
    let verl = json!({"problem": "?", "reward_model": {"ground_truth": "7", "style": "rule"}});
    let sample = read(verl.clone()).unwrap();
    assert_eq!(sample.solution.as_deref(), Some("7"));
    // They reach the rewards under their own names, too.
    assert_eq!(sample.columns["reward_model"], verl["reward_model"]);
    assert_eq!(read(json!({"problem": "?", "answer": 3})).unwrap().columns["answer"], 3);
}

#[test]
fn conversations_of_one_question_are_problems() {
    let (_dir, reader) = reader(PromptTemplate::R1v, true);
    let row = json!({"image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "[1, 2]"}]});
    let sample = reader.sample(0, cells(row)).unwrap();
    assert_eq!(sample.solution.as_deref(), Some("[1, 2]"));
    let words = PromptTemplate::R1v.apply("\nWhere?");
    assert_eq!(sample.messages.len(), 1);
    assert_eq!(sample.messages[0].content, [Part::Image(0), text(&words)]);
    // Several turns are a conversation like any other, and a column of its own is the answer.
    let long = read(json!({"solution": "s", "conversations": [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}))
    .unwrap();
    let roles: Vec<_> = long.messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(long.solution.as_deref(), Some("s"));
}

#[test]
fn images_inside_of_messages() {
    let uri = "data:image/png;base64,Zm8=";
    let sample = read(json!({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
        {"type": "image_url", "image_url": uri},
        {"type": "image", "base64": "Zm8="},
        {"type": "image", "image": uri, "text": null},
        {"type": "text", "text": "?", "image": null}]}]}))
    .unwrap();
    assert_eq!(sample.images, vec![ImageSource::Bytes(b"fo"[..].into()); 4]);
    for (part, wanted) in [
        (json!({"type": "image_url", "image_url": {"url": "https://x/a.png"}}), "nothing is fetched"),
        (json!({"type": "image_url"}), "needs an `image_url`"),
        (json!({"type": "image_url", "image_url": {}}), "needs a `url`"),
        (json!({"type": "image", "base64": "%"}), "not valid base64"),
    ] {
        let message = read(json!({"messages": [{"role": "user", "content": [part]}]})).unwrap_err();
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn null_columns_are_as_good_as_absent() {
    let sample =
        read(json!({"messages": null, "prompt": null, "problem": "?", "image": null, "images": ["a.png"]}));
    assert_eq!(sample.unwrap().messages[0].content, [Part::Image(0), text("?")]);
}
