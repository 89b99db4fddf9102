//! Rewards that a process computes, in whole runs; the command `reward`. Cases 46 to 50 of the table in `cases.rs` (what a
//! process can do wrong is tested beside `src/reward/external.rs`).

use super::cases_run::{ended, endless, four_steps, rows, same_end, send, start, wait_until};
use super::{
    DATA, LEARNABLE, ROOT, Row, bundle, fails, fails_loudly, grpo, othink, read, success, text, write,
};
use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Gives each completion a number from 0 to 4 by the length of its text.
const BY_LENGTH: &str = r#"while read -r line; do id=${line#*:}; id=${id%%,*}; c=${line#*'"completion":'}
c=${c%%'"completion_ids":'*}; FAULT; echo "{\"id\":$id,\"reward\":$((${#c} % 5))}"; done"#;

/// The reward command `mine`, with something for it to do before each answer.
fn mine(fault: &str) -> String {
    format!("mine={}", BY_LENGTH.replace("FAULT", fault))
}

fn file(name: &str, lines: &[&str]) -> PathBuf {
    let path = ROOT.join(name);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

/// The rows that `reward` writes, with further options.
fn scores(input: &Path, options: &[&str]) -> Vec<Value> {
    let out = success(&[&["reward", "--input", text(input), "-q"], options].concat());
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether the process whose number stands in a file has gone, or is about to.
fn is_gone(file: &Path) -> bool {
    let pid: i32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(Pid::from_raw(pid).unwrap()).is_err() || stat.contains(") Z ")
}

#[test]
fn reward_writes_a_score_for_each_row() {
    let input = file(
        "reward_rows.jsonl",
        &[
            r#"{"completion": "<think>a</think><answer>3</answer>", "solution": "<answer> 3 </answer>"}"#,
            "",
            r#"{"completion": [{"role": "assistant", "content": "<answer>4</answer>"}], "solution": 3}"#,
            r#"{"completion": [{"role": "assistant", "content": [{"type": "text", "text": "3"}]}], "other": [1]}"#,
        ],
    );
    let wanted = [json!(1.0), json!(0.0), Value::Null];
    let one: Vec<Value> =
        scores(&input, &["--name", "accuracy"]).iter().map(|r| r["score"].clone()).collect();
    assert_eq!(one, wanted);
    let both = scores(&input, &["--name", "accuracy,format"]);
    assert_eq!(both[0], json!({"row": 0, "score": 2.0, "scores": {"accuracy": 1.0, "format": 1.0}}));
    assert_eq!(both[2], json!({"row": 2, "score": 0.0, "scores": {"accuracy": null, "format": 0.0}}));
    let output = ROOT.join("reward_scores.jsonl");
    let words = ["reward", "--name", "accuracy", "--input", text(&input), "--output", text(&output), "-q"];
    assert_eq!(success(&words), "");
    let written: Vec<Value> = read(&output).iter().map(|row| row["score"].clone()).collect();
    assert_eq!(written, wanted);
}

#[test]
fn reward_counts_tokens_that_are_given_or_made() {
    let given = file("reward_ids.jsonl", &[r#"{"completion": "x", "completion_ids": [5, 5, 5, 5]}"#]);
    assert_eq!(scores(&given, &["--name", "repetition"])[0]["score"], -0.5);
    let lengths = ["--name", "soft_overlong", "--max_completion_len", "4", "--soft_punish_cache", "4"];
    assert_eq!(scores(&given, &lengths)[0]["score"], -1.0);
    let made = file("reward_no_ids.jsonl", &[r#"{"completion": "aaaa"}"#]);
    let words = ["reward", "--input", text(&made), "--name", "length"];
    fails(&words, 65, &["reward_no_ids.jsonl", "line 1", "`length`", "`completion_ids`", "--model"]);
    let score = scores(&made, &["--name", "length", "--model", bundle()])[0]["score"].as_f64().unwrap();
    assert!(score > 0.99 && score < 1.0, "{score}");
}

#[test]
fn reward_refuses_bad_rows_before_it_writes() {
    for (line, parts) in [
        ("{\"completion\": 3}", &["line 2", "`completion`", "text or a list"][..]),
        ("{\"solution\": 3}", &["line 2", "nothing to score"]),
        ("{\"completion\": [\"x\"]}", &["line 2", "`role` and `content`"]),
        ("{\"completion\": \"x\", \"solution\": [\"1\"]}", &["line 2", "`solution`"]),
        ("{\"completion\": \"x\", \"completion_ids\": [-1]}", &["line 2", "`completion_ids`"]),
        ("{\"completion\": ", &["line 2", "JSON"]),
    ] {
        let input = file("reward_bad.jsonl", &["{\"completion\": \"x\"}", line]);
        fails(&["reward", "--name", "format", "--input", text(&input)], 65, parts);
    }
    fails(&["reward", "--name", "format", "--input", "no.jsonl"], 66, &["no.jsonl"]);
    fails(&["reward", "--input", "no.jsonl"], 2, &["--name"]);
    fails(&["reward", "--name", "format"], 2, &["--input"]);
    let parts = ["unknown reward `formt`", "did you mean `format`", "soft_overlong", "reward --list"];
    fails(&["reward", "--name", "formt", "--input", "no.jsonl"], 2, &parts);
}

#[test]
fn the_list_tells_of_every_reward() {
    let list = success(&["reward", "--list"]);
    for name in [
        "accuracy ",
        "accuracy_r1v ",
        "format ",
        "iou ",
        "length ",
        "soft_overlong ",
        "repetition ",
        "cosine ",
        "think_format ",
    ] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}: {list}");
    }
}

#[test]
fn case_46_what_a_command_answers_is_checked() {
    let input = file("command_rows.jsonl", &["{\"completion\": \"xy\"}", "{\"completion\": \"xyz\"}"]);
    let with = |fault: &str| ["--reward_command".to_owned(), mine(fault)];
    let [option, command] = with(":");
    // The text with its quotes, a comma behind it.
    let found: Vec<Value> = scores(&input, &[&option, &command]).iter().map(|r| r["score"].clone()).collect();
    assert_eq!(found, [json!(0.0), json!(1.0)]);
    for (fault, parts) in [
        ("echo '{\"id\":0,\"reward\":NaN}'", &["`mine`", "no answer", "NaN"][..]),
        (
            "echo \"{\\\"id\\\":$id,\\\"error\\\":\\\"no judge\\\"}\"",
            &["command_rows.jsonl", "line 1", "no judge"],
        ),
        ("exit 9", &["line 1", "`mine`", "exit code 9"]),
    ] {
        let [option, command] = with(fault);
        let output = ROOT.join("command_scores.jsonl");
        let words = ["reward", "--input", text(&input), &option, &command, "--output", text(&output), "-q"];
        fails(&words, 69, parts);
        assert!(!output.exists());
    }
}

#[test]
fn case_48_a_command_that_cannot_be_run_is_known_before_the_model_is_loaded() {
    let dir = ROOT.join("no_command");
    let words =
        [&grpo(&dir)[..], &["--reward_command", "mine=no-such-program", "--model", "no/where"]].concat();
    let model = words.iter().position(|word| *word == "--model").unwrap();
    let words = [&words[..model], &words[model + 2..]].concat();
    fails(&words, 69, &["`mine`", "exit code 127", "no-such-program", "NAME=COMMAND"]);
    assert!(!dir.join("config.toml").exists());
}

#[test]
fn case_48_a_run_whose_reward_fails_saves_and_goes_on_when_it_is_mended() {
    let (dir, undisturbed) = (ROOT.join("reward_fails"), ROOT.join("reward_works"));
    let mended = ROOT.join("mended");
    let fault = format!(
        "[ $id -lt 8 ] || [ -e {} ] || {{ echo broken >&2; echo \"{{\\\"id\\\":$id,\\\"error\\\":\\\"no judge\\\"}}\"; }}",
        text(&mended)
    );
    let command = mine(&fault);
    let options =
        ["--reward_funcs", "mine", "format", "--reward_weights", "0.5", "1", "--reward_command", &command];
    fails_loudly(&[&four_steps(&dir)[..], &options].concat(), 69, &["`mine` failed: no judge"]);
    assert!(dir.join("checkpoint-2").exists());
    fs::write(&mended, "").unwrap();
    success(&[&four_steps(&dir)[..], &options, &["--resume_from_checkpoint"]].concat());
    success(&[&four_steps(&undisturbed)[..], &options].concat());
    same_end(&dir, &undisturbed);
    let row = &read(&dir.join("metrics.jsonl"))[0];
    assert!(row["rewards/mine/mean"].as_f64().unwrap() > 0.0 && row["rewards/format/mean"].is_number());
}

#[test]
fn case_49_a_run_that_is_stopped_leaves_no_process_behind() {
    let dir = ROOT.join("reward_stopped");
    let [own, child] = ["own.pid", "child.pid"].map(|name| ROOT.join(name));
    // It ignores what asks it to end, and has a child that holds its pipes.
    let command = mine(":").replacen(
        "mine=",
        &format!("mine=trap '' TERM; echo $$ > {}; sleep 1000 & echo $! > {}; ", text(&own), text(&child)),
        1,
    ) + "; sleep 1000";
    let words = [&endless(&dir)[..], &["--reward_funcs", "mine", "--reward_command", &command]].concat();
    let (mut run, log) = start(&words, &dir);
    wait_until("a step", || rows(&dir) >= 1 || fs::read_to_string(&log).unwrap().contains("error"));
    assert!(rows(&dir) >= 1, "{}", fs::read_to_string(&log).unwrap());
    send(&run, Signal::TERM);
    assert_eq!(ended(&mut run), Some(75));
    wait_until("the end of the processes", || is_gone(&own) && is_gone(&child));
}

/// Whether there is a Python to run the adapter with; says so where there is none.
fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        // Not by `eprintln!`, which is kept from sight when a test passes.
        let _ = writeln!(std::io::stderr(), "skipped: rewards in Python (there is no python3)");
    }
    found
}

const FUNCTIONS: &str = r#"
import asyncio, os, sys

def length(completions, **kwargs):
    print("on standard output")
    os.system("echo from a child")
    return [float(len(c[0]["content"])) for c in completions]

def strict(prompts, completions, completion_ids, solution, level):
    assert prompts[0][0]["content"] == "How many?", prompts
    return [None if s is None else len(ids) + l for ids, s, l in zip(completion_ids, solution, level)]

async def later(completions, solution, trainer_state, log_metric):
    log_metric("x", 1.0)
    assert trainer_state.global_step == 0
    await asyncio.sleep(0.01)
    return [c[0]["content"] == s for c, s in zip(completions, solution)]

busy, calls = asyncio.Semaphore(1), []

async def kept(completions):
    async def work():
        while True:
            calls.append(len(calls))
            await asyncio.sleep(0.005)
    if not calls:
        kept.task = asyncio.ensure_future(work())
    async with busy:
        seen = len(calls)
        while len(calls) < seen + 2:
            await asyncio.sleep(0.005)
    return [1.0 for _ in completions]

def lacking(completions, elsewhere, images, image, **columns):
    assert elsewhere == [None, None] and images == [[], []] and image == [None, None]
    return [1.0 for _ in completions]

def table(completions):
    return {0: 1.0, 1: 2.0}

def plain(prompts, completions):
    return [len(c) + (p == "How many?") for p, c in zip(prompts, completions)]

def fails(completions, **kwargs):
    raise KeyError("judge")

def short(completions):
    return []

def infinite(completions):
    return [float("inf") for _ in completions]

def nan(completions):
    return [float("nan") for _ in completions]

def stepped(completions, problem, image, images, trainer_state, **kwargs):
    assert trainer_state.max_steps == 2 and len(kwargs["solution"]) == len(problem)
    assert [each[0] for each in images] == image
    assert trainer_state.epoch == trainer_state.global_step * 2 / 6
    kwargs["log_metric"](name="x", value=1.0)
    if isinstance(image[0], str):
        fine = [os.path.getsize(i) > 0 for i in image]
    else:
        fine = [i.size == (56, 56) and getattr(i, "turned", True) for i in image]
    return [trainer_state.global_step + f for f in fine]

class Judge:
    def __call__(self, completions, **kwargs):
        return (1 for _ in completions)

judge = Judge()
"#;

#[test]
fn case_47_python_functions_in_trls_style_work_unchanged() {
    if !has_python() {
        return;
    }
    let functions = ROOT.join("functions.py");
    fs::write(&functions, FUNCTIONS).unwrap();
    let input = file(
        "adapter_rows.jsonl",
        &[
            r#"{"prompt": [{"role": "user", "content": "How many?"}], "completion": "ab", "solution": "ab", "level": 2, "completion_ids": [1]}"#,
            r#"{"prompt": [{"role": "user", "content": "How many?"}], "completion": "é\n\u2028\"", "solution": null, "level": 3}"#,
        ],
    );
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/reward_adapter.py");
    let command = |name: &str| format!("py=python3 {} {}:{name}", text(&adapter), text(&functions));
    let of = |name: &str| -> Vec<Value> {
        scores(&input, &["--reward_command", &command(name)]).iter().map(|r| r["score"].clone()).collect()
    };
    assert_eq!(of("length"), [json!(2.0), json!(4.0)]);
    assert_eq!(of("strict"), [json!(3.0), Value::Null]);
    assert_eq!(of("later"), [json!(1.0), json!(0.0)]);
    assert_eq!(of("judge"), [json!(1.0), json!(1.0)]);
    assert_eq!(of("nan"), [Value::Null, Value::Null]);
    // What an asynchronous call keeps and starts is there for the next one.
    assert_eq!(of("kept --batch_size 1"), [json!(1.0), json!(1.0)]);
    assert_eq!(of("lacking"), [json!(1.0), json!(1.0)]);
    assert_eq!(of("length --batch_size 1"), [json!(2.0), json!(4.0)]);
    assert_eq!(of("plain --plain"), [json!(3.0), json!(5.0)]);
    for (name, part) in [
        ("fails", "KeyError: 'judge'"),
        ("short", "ValueError: 0 rewards for 2 completions"),
        ("infinite", "ValueError: a reward is inf"),
        ("table", "TypeError: a list of rewards was expected, not dict"),
        ("missing", "has no missing"),
    ] {
        let words = ["reward", "--input", text(&input), "--reward_command", &command(name)];
        let said = fails_loudly(&words, 69, &["`py`", part]);
        assert!(name != "fails" || said.contains("reward py: Traceback"), "{said}");
    }
    // A name that no row has may be misspelt.
    let words = ["reward", "--input", text(&input), "--reward_command", &command("lacking --batch_size 2")];
    let said = String::from_utf8(othink(&words).stderr).unwrap();
    assert!(said.contains("reward py: no row of this batch has a column `elsewhere`"), "{said}");
    // What it prints is shown, and is no answer.
    let words = ["reward", "--input", text(&input), "--reward_command", &command("length")];
    let said = String::from_utf8(othink(&words).stderr).unwrap();
    assert!(
        said.contains("reward py: on standard output") && said.contains("reward py: from a child"),
        "{said}"
    );
}

#[test]
fn a_reward_that_applies_to_nothing_teaches_nothing_and_is_told() {
    let dir = ROOT.join("no_boxes");
    let output =
        othink(&[&grpo(&dir)[..], &["--reward_funcs", "iou", "--eval_dataset", text(&LEARNABLE)]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("step 1: no reward applies to any completion"), "{said}");
    assert!(dir.join("report.html").is_file());
    assert!(read(&dir.join("completions.jsonl")).iter().all(|row| row["reward"].is_null()));
    // A dataset alone is evaluated on after every epoch and the last step.
    let evaluations = read(&dir.join("eval_metrics.jsonl"));
    assert_eq!(evaluations.len(), 1);
    assert!(evaluations[0]["eval_reward"].is_null() && evaluations[0]["eval_rewards/iou/mean"].is_null());
}

/// Where there is no Pillow: as much of it as the adapter needs.
const PILLOW: &str = r#"
class Picture:
    def __init__(self, file):
        data = file.read() if hasattr(file, "read") else open(file, "rb").read()
        self.size = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
        self.turned = False
    def __enter__(self): return self
    def __exit__(self, *_): pass

def open_(file):
    return Picture(file)

def exif_transpose(picture):
    picture.turned = True
    return picture
"#;

#[test]
fn python_functions_get_questions_images_and_the_step_of_a_run() {
    if !has_python() {
        return;
    }
    let (functions, pillow) = (ROOT.join("stepped.py"), ROOT.join("pillow/PIL"));
    fs::create_dir_all(&pillow).unwrap();
    fs::write(&functions, FUNCTIONS).unwrap();
    fs::write(pillow.join("__init__.py"), "").unwrap();
    fs::write(
        pillow.join("Image.py"),
        format!("{PILLOW}\nopen = open_\n")
            .replace("open(file, \"rb\")", "__import__(\"io\").open(file, \"rb\")"),
    )
    .unwrap();
    fs::write(pillow.join("ImageOps.py"), "from PIL.Image import exif_transpose\n").unwrap();
    // The images in files, and in the rows themselves.
    let held = ROOT.join("stepped.jsonl");
    let rows: Vec<Row> = read(&LEARNABLE)
        .into_iter()
        .map(|mut row| {
            let bytes = fs::read(DATA.join(row["image"].as_str().unwrap())).unwrap();
            row.insert("image".into(), format!("data:image/png;base64,{}", base64(&bytes)).into());
            row
        })
        .collect();
    write(&held, &rows);
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/reward_adapter.py");
    for (dataset, option) in [(&*LEARNABLE, "--image_paths"), (&*LEARNABLE, ""), (&held, "")] {
        let command = format!(
            "py=PYTHONPATH={} exec python3 {} {option} stepped:stepped",
            text(pillow.parent().unwrap()),
            text(&adapter)
        );
        let dir = ROOT.join("stepped");
        let mut words = grpo(&dir);
        words[4] = text(dataset);
        let more = ["--reward_funcs", "py", "--reward_command", &command, "--overwrite_output_dir"];
        success(&[&words[..], &more].concat());
        let means: Vec<Value> =
            read(&dir.join("metrics.jsonl")).iter().map(|row| row["rewards/py/mean"].clone()).collect();
        assert_eq!(means, [json!(1.0), json!(2.0)], "{} {option}", dataset.display());
    }
}

fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, b| (bits << 8) | u32::from(*b)) << (8 * (3 - three.len()));
        text.extend((0..=three.len()).map(|i| char::from(digits[(bits >> (18 - 6 * i)) as usize & 63])));
    }
    text
}
