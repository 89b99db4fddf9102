//! What happens to a run from outside: cases 53 to 57, 59, 62 to 72 and 77 of the table in `cases.rs`.

use super::{
    DATA, LEARNABLE, ROOT, bundle, checkpoint, fails, fails_loudly, grpo, othink, read, success, text,
    timeless, write,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A GRPO run of four steps with a checkpoint after each, which rewards the model for something.
pub(super) fn four_steps(dir: &Path) -> Vec<&str> {
    let mut words = grpo(dir);
    let steps = words.iter().position(|word| *word == "--max_steps").unwrap() + 1;
    words[steps] = "4";
    [&words[..], &["--num_iterations", "2", "--save_steps", "1"]].concat()
}

/// A folder in which such a run has come to its end.
fn finished(name: &str) -> PathBuf {
    let dir = ROOT.join(name);
    success(&four_steps(&dir));
    dir
}

/// The files of a folder, by their names.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

/// The last checkpoint and the logs are those of a run that was never disturbed. Its options may differ in what is
/// written down of them.
pub(super) fn same_end(dir: &Path, undisturbed: &Path) {
    for name in ["metrics.jsonl", "completions.jsonl"] {
        assert_eq!(timeless(&dir.join(name)), timeless(&undisturbed.join(name)), "{name}");
    }
    let (ours, theirs) = (files(&dir.join("checkpoint-4")), files(&undisturbed.join("checkpoint-4")));
    for name in ["model.safetensors", "optimizer.safetensors"] {
        assert!(ours[name] == theirs[name], "{name} differs");
    }
}

#[test]
fn case_54_a_learning_rate_that_destroys_the_model() {
    let dir = ROOT.join("overflow");
    let mut words = four_steps(&dir);
    let rate = words.iter().position(|word| *word == "1e-3").unwrap();
    words[rate] = "1e30";
    let parts = ["3 steps in a row", "NaN", "the last checkpoint is", "checkpoint-1", "--learning_rate"];
    let message = fails_loudly(&[&words[..], &["--save_total_limit", "1"]].concat(), 70, &parts);
    assert_eq!(message.matches("warning: step ").count(), 3, "{message}");
    assert!(success(&["inspect", text(&dir.join("checkpoint-1"))]).contains("412,800"));
    assert!(!dir.join("checkpoint-2").exists());
    let skipped: Vec<_> =
        read(&dir.join("metrics.jsonl")).iter().map(|row| row["skipped_steps"].as_u64().unwrap()).collect();
    assert_eq!(skipped, [0, 1, 2, 3]);
    let sft =
        ["sft", "--model", bundle(), "--dataset", text(&DATA), "--max_steps", "6", "--learning_rate", "1e30"];
    let sft_dir = ROOT.join("overflow_sft");
    let options = ["--warmup_ratio", "0", "--save_steps", "1", "-q", "--output_dir", text(&sft_dir)];
    fails_loudly(&[&sft[..], &options].concat(), 70, &["3 steps in a row", "NaN"]);
    assert!(!read(&sft_dir.join("skipped/step-1.jsonl"))[0]["messages"].is_null());
}

/// A run too short for three skipped steps in a row does not pass for a good one.
#[test]
fn case_54_the_last_steps_without_numbers() {
    let dir = ROOT.join("overflow_at_the_end");
    let sft =
        ["sft", "--model", bundle(), "--dataset", text(&DATA), "--max_steps", "3", "--learning_rate", "1e30"];
    let options =
        ["--warmup_ratio", "0", "--lr_scheduler_type", "constant", "-q", "--output_dir", text(&dir)];
    let parts = ["the last 2 of 3 steps could not be made", "NaN", "the weights saved are those of step 1"];
    fails_loudly(&[&sft[..], &options].concat(), 70, &parts);
    assert!(dir.join("checkpoint-3").exists());
}

#[test]
fn case_56_sampling_and_training_agree_in_the_first_pass() {
    let rows = read(&finished("on_policy").join("metrics.jsonl"));
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["sampling/sampling_logp_difference/max"] == 0.0));
}

/// A run that ends with the test at the latest, also when that fails.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl std::ops::Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// Starts a command; standard error goes to a file beside the run folder.
pub(super) fn start(words: &[&str], dir: &Path) -> (Running, PathBuf) {
    let log = dir.with_extension("stderr");
    let child = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(words)
        .current_dir(&*ROOT)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    (Running(child), log)
}

/// Waits until `look` sees something, at most a minute.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6000 {
        if let Some(seen) = look() {
            return seen;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("{what} has not happened within a minute");
}

pub(super) fn wait_until(what: &str, ready: impl Fn() -> bool) {
    wait_for(what, || ready().then_some(()));
}

/// The code with which a run ends by itself.
pub(super) fn ended(child: &mut Child) -> Option<i32> {
    wait_for("the end of a run", || child.try_wait().unwrap()).code()
}

/// Whether the tests themselves were started with a signal switched off, as in the background of a script: a run inherits
/// that. (On Linux; elsewhere it cannot be asked.)
fn is_switched_off(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal - 1) & 1 == 1)
}

pub(super) fn rows(dir: &Path) -> usize {
    fs::read_to_string(dir.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[cfg(unix)]
pub(super) fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// So many steps that it does not end by itself.
pub(super) fn endless(dir: &Path) -> Vec<&str> {
    let mut words = four_steps(dir);
    let steps = words.iter().position(|word| *word == "4").unwrap();
    words[steps] = "100000";
    let every = words.iter().position(|word| *word == "--save_steps").unwrap() + 1;
    words[every] = "0";
    words
}

#[cfg(unix)]
#[test]
fn case_62_a_signal_saves() {
    use rustix::process::Signal;
    for (name, signal) in
        [("TERM", Signal::TERM), ("INT", Signal::INT), ("USR1", Signal::USR1), ("HUP", Signal::HUP)]
    {
        if is_switched_off(signal.as_raw()) {
            println!("SIG{name} is switched off for these tests, so it is not sent");
            continue;
        }
        let dir = ROOT.join(format!("signal_{name}"));
        let words = endless(&dir);
        let (mut child, log) = start(&words, &dir);
        wait_until("a third step", || rows(&dir) >= 3);
        send(&child, signal);
        let code = ended(&mut child);
        let message = fs::read_to_string(log).unwrap();
        assert_eq!(code, Some(75), "{name}: {message}");
        let done = rows(&dir);
        let checkpoint = dir.join(format!("checkpoint-{done}"));
        for part in
            [&format!("stopped by SIG{name} after step {done} of 100000"), text(&checkpoint), "--resume_from"]
        {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        assert!(checkpoint.join("MANIFEST.json").is_file() && !dir.join("run.lock").exists());
    }
    // A run that saves models alone is saved whole all the same when it is stopped.
    let dir = ROOT.join("signal_model");
    let mut words = endless(&dir);
    words.extend(["--save_only_model"]);
    let (mut child, _) = start(&words, &dir);
    wait_until("a step", || rows(&dir) >= 1);
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child), Some(75));
    assert!(dir.join(format!("checkpoint-{}/trainer_state.json", rows(&dir))).is_file());
    // Several within a moment are one request, as when a process and then its group is signalled.
    let dir = ROOT.join("signal_twice");
    let (mut child, _) = start(&endless(&dir), &dir);
    wait_until("a step", || rows(&dir) >= 1);
    send(&child, Signal::STOP);
    for signal in [Signal::TERM, Signal::USR1, Signal::CONT] {
        send(&child, signal);
    }
    assert_eq!(ended(&mut child), Some(75));
    // Before the first step there is nothing to save; the run starts again.
    let dir = ROOT.join("signal_early");
    let words = four_steps(&dir);
    let (mut child, log) = start(&words, &dir);
    wait_until("the signals are listened to", || is_caught(child.id(), 15));
    send(&child, Signal::TERM);
    let code = ended(&mut child);
    let message = fs::read_to_string(log).unwrap();
    assert_eq!(code, Some(75), "{message}");
    success(&[&words[..], &["--resume_from_checkpoint"]].concat());
    same_end(&dir, &finished("signal_reference"));
}

/// Whether a process has a handler for a signal (on Linux; elsewhere a second is waited).
fn is_caught(pid: u32, signal: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        sleep(Duration::from_secs(1));
        return true;
    };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
    u64::from_str_radix(&mask, 16).unwrap() >> (signal - 1) & 1 == 1
}

#[cfg(target_os = "linux")]
#[test]
fn case_62_a_signal_that_nohup_switched_off_stays_off() {
    let dir = ROOT.join("nohup");
    let words = endless(&dir);
    let child = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(&words)
        .current_dir(&*ROOT)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    wait_until("a step", || rows(&dir) >= 1);
    send(&child, rustix::process::Signal::HUP);
    let before = rows(&dir);
    wait_until("further steps", || rows(&dir) >= before + 3);
    send(&child, rustix::process::Signal::TERM);
    assert_eq!(ended(&mut child), Some(75));
}

#[cfg(unix)]
#[test]
fn case_63_killed_and_resumed_is_the_same_run() {
    let (dir, undisturbed) = (ROOT.join("killed"), finished("not_killed"));
    let words = four_steps(&dir);
    let resumed = [&words[..], &["--resume_from_checkpoint"]].concat();
    for step in 1..4 {
        let (mut child, log) = start(if step == 1 { &words } else { &resumed }, &dir);
        wait_until("a checkpoint", || dir.join(format!("checkpoint-{step}")).exists() || child_is_gone(&log));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = othink(&resumed);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    same_end(&dir, &undisturbed);
    // Once more: there is nothing left to do, and it is said by doing nothing.
    let before = files(&dir.join("checkpoint-4"));
    assert!(success(&resumed).contains("checkpoint-4"));
    assert!(files(&dir.join("checkpoint-4")) == before);
    same_end(&dir, &undisturbed);
}

/// Whether a run has said an error.
fn child_is_gone(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains("error: "))
}

#[cfg(target_os = "linux")]
#[test]
fn case_64_folders_and_disks_that_refuse() {
    // No file may grow beyond 1 MiB, so that no checkpoint can be written: training goes on for three of them.
    let dir = ROOT.join("no_room");
    let words = endless(&dir);
    let limited = |words: &[&str]| {
        let limits = "trap '' XFSZ; ulimit -f 1024; exec \"$@\"";
        Command::new("bash")
            .args(["-c", limits, "bash", env!("CARGO_BIN_EXE_othink-train")])
            .env("CUDA_VISIBLE_DEVICES", "")
            .args(words)
            .current_dir(&*ROOT)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let every = words.iter().position(|word| *word == "--save_steps").unwrap() + 1;
    let mut words = words;
    words[every] = "2";
    let output = limited(&words);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{message}");
    for part in
        ["the checkpoint of step 2 is not saved", "model.safetensors", "File too large", "--resume_from"]
    {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(rows(&dir) >= 6, "{message}");
    let left: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.starts_with("checkpoint")), "{left:?}");
    // The same with a checkpoint from before: it stays as it is, and the run goes on from it once there is room.
    let (dir, undisturbed) = (ROOT.join("room_again"), finished("room_enough"));
    let words = four_steps(&dir);
    success(&words);
    for step in 2..5 {
        fs::remove_dir_all(dir.join(format!("checkpoint-{step}"))).unwrap();
    }
    let before = files(&dir.join("checkpoint-1"));
    let resumed = [&words[..], &["--resume_from_checkpoint"]].concat();
    assert_eq!(limited(&resumed).status.code(), Some(74));
    assert!(files(&dir.join("checkpoint-1")) == before);
    success(&resumed);
    same_end(&dir, &undisturbed);
    // A log that is no file would be read for ever.
    fs::remove_file(dir.join("completions.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.join("completions.jsonl")).unwrap();
    fails(&resumed, 65, &["completions.jsonl", "no regular file"]);
    // A file where the folder should be, and a folder below it.
    let file = ROOT.join("a_file");
    fs::write(&file, "x").unwrap();
    fails(&grpo(&file), 74, &["a_file", "Not a directory"]);
    let below = file.join("run");
    fails(&grpo(&below), 74, &["a_file"]);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    // /sys takes no new folders from anybody, root included.
    let no = PathBuf::from("/sys/othink_run");
    fails(&grpo(&no), 74, &["/sys/othink_run", "create the folder"]);
}

/// A row that breaks in the middle of a run costs no step: what is done is saved, and the run goes on once it is mended.
#[test]
fn case_33_an_image_that_breaks_during_training() {
    let data = ROOT.join("breaks");
    fs::create_dir_all(data.join("images")).unwrap();
    let mut rows = read(&LEARNABLE);
    for (n, row) in rows.iter_mut().enumerate() {
        let image = DATA.join(row["image"].as_str().unwrap());
        fs::copy(image, data.join(format!("images/{n}.png"))).unwrap();
        row.insert("image".into(), format!("images/{n}.png").into());
    }
    write(&data.join("rows.jsonl"), &rows);
    let run = |dir: &Path| -> Vec<String> {
        let mut words = four_steps(dir);
        let rows = data.join("rows.jsonl");
        words[4] = text(&rows);
        words.extend(["--shuffle_dataset", "false"]);
        let every = words.iter().position(|word| *word == "--save_steps").unwrap() + 1;
        words[every] = "0";
        words.iter().map(|word| (*word).to_owned()).collect()
    };
    let (dir, undisturbed) = (ROOT.join("broken_row"), ROOT.join("never_broken"));
    let words = run(&undisturbed);
    success(&words.iter().map(String::as_str).collect::<Vec<_>>());
    // Two prompts a rollout, two steps on each: the third row is met by the third step.
    let image = data.join("images/2.png");
    let whole = fs::read(&image).unwrap();
    fs::write(&image, &whole[..whole.len() - 30]).unwrap();
    let words = run(&dir);
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    fails(&words, 65, &["rows.jsonl", "line 3", "2.png"]);
    assert!(dir.join("checkpoint-2/MANIFEST.json").exists());
    fs::write(&image, whole).unwrap();
    words.push("--resume_from_checkpoint");
    success(&words);
    same_end(&dir, &undisturbed);
}

#[test]
fn case_66_damaged_checkpoints_are_passed_over() {
    let (dir, undisturbed) = (finished("damaged"), finished("undamaged"));
    let words = four_steps(&dir);
    let resumed = [&words[..], &["--resume_from_checkpoint"]].concat();
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    flip(dir.join("checkpoint-4/optimizer.safetensors"));
    fs::remove_file(dir.join("checkpoint-3/MANIFEST.json")).unwrap();
    let listed = success(&["inspect", text(&dir)]);
    for part in [
        "resumable yes: grpo, step 2 of 4",
        "resumable no: it has no MANIFEST.json",
        "resumable no: it has a damaged optimizer.safetensors",
    ] {
        assert!(listed.contains(part), "{part:?} is not in {listed}");
    }
    let output = othink(&resumed);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    for part in ["checkpoint-4 has a damaged optimizer.safetensors", "checkpoint-3 has no MANIFEST.json"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    same_end(&dir, &undisturbed);
    // By name it is not passed over.
    flip(dir.join("checkpoint-4/model.safetensors"));
    let last = dir.join("checkpoint-4");
    let by_name = [&words[..], &["--resume_from_checkpoint", text(&last)]].concat();
    fails(&by_name, 65, &["checkpoint-4", "damaged model.safetensors"]);
    fails(
        &[&words[..], &["--resume_from_checkpoint", text(&dir.join("checkpoint-9"))]].concat(),
        66,
        &["checkpoint-9", "--output_dir"],
    );
    for step in 1..5 {
        fs::write(dir.join(format!("checkpoint-{step}/config.json")), "{}").unwrap();
    }
    fails(
        &resumed,
        65,
        &["no whole checkpoint", "checkpoint-1 has a config.json of 2 bytes", "--overwrite_output_dir"],
    );
    // A model alone is no run.
    let model = ROOT.join("only_model");
    let words = four_steps(&model);
    success(&[&words[..], &["--save_only_model"]].concat());
    assert!(!model.join("checkpoint-4/optimizer.safetensors").exists());
    fails(&[&words[..], &["--resume_from_checkpoint"]].concat(), 65, &["--save_only_model", "--model"]);
}

#[test]
fn case_67_changed_options() {
    let dir = finished("changed");
    let checkpoint = dir.join("checkpoint-2");
    // Newer ones would be taken for those of the run that goes on.
    let back_to_2 = || {
        for step in [3, 4] {
            fs::remove_dir_all(dir.join(format!("checkpoint-{step}"))).unwrap();
        }
    };
    let words = [&four_steps(&dir)[..], &["--resume_from_checkpoint", text(&checkpoint)]].concat();
    let with = |options: &[&'static str]| [&words[..], options].concat();
    fails(&words, 2, &["checkpoint-3 is newer than", "checkpoint-2", "--output_dir"]);
    assert_eq!(read(&dir.join("metrics.jsonl")).len(), 4);
    back_to_2();
    fails(&with(&["--seed", "1"]), 2, &["seed was 42 and is 1", "--allow_change seed"]);
    fails(&with(&["--seed", "1", "--allow_change", "sed"]), 2, &["--allow_change sed", "did you mean seed"]);
    fails(
        &with(&["--beta_max", "0.2", "--top_k", "5"]),
        2,
        &["beta_max was 0.1 and is 0.2", "top_k was 0 and is 5", "--allow_change beta_max,top_k"],
    );
    let mut longer = words.clone();
    let steps = longer.iter().position(|word| *word == "--max_steps").unwrap() + 1;
    longer[steps] = "6";
    fails(&longer, 2, &["max_steps was 4 and is 6", "--allow_change max_steps"]);
    // The same data under another name; other data under that name.
    let moved = DATA.join("moved.jsonl");
    fs::copy(&*LEARNABLE, &moved).unwrap();
    let mut other = words.clone();
    other[4] = text(&moved);
    let rate = other.iter().position(|word| *word == "1e-3").unwrap();
    other[rate] = "1e-4";
    let output = othink(&other);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    for part in ["changed option: learning_rate was 0.001 and is 0.0001", "changed option: dataset was"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    back_to_2();
    let text_of_rows = fs::read_to_string(&*LEARNABLE).unwrap();
    let kept: Vec<&str> = text_of_rows.lines().skip(1).collect();
    fs::write(&moved, kept.join("\n")).unwrap();
    fails(&other, 2, &["dataset was", "--allow_change dataset"]);
    success(&[&longer[..], &["--allow_change", "max-steps"]].concat());
    assert_eq!(read(&dir.join("metrics.jsonl")).len(), 6);
    let mut sft =
        vec!["sft", "--model", bundle(), "--dataset", text(&DATA), "--output_dir", text(&dir), "-q"];
    sft.push("--resume_from_checkpoint");
    fails(&sft, 2, &["one of `grpo`", "`sft`", "--model"]);
}

#[test]
fn case_67_a_model_whose_other_files_changed() {
    let model = checkpoint("edited_model");
    let dir = ROOT.join("edited");
    let mut words = four_steps(&dir);
    words[2] = text(&model);
    success(&words);
    fs::remove_dir_all(dir.join("checkpoint-4")).unwrap();
    words.push("--resume_from_checkpoint");
    let template = model.join("chat_template.jinja");
    let before = fs::read_to_string(&template).unwrap();
    fs::write(&template, format!("{before} ")).unwrap();
    fails(&words, 2, &["model was another and is changed since", "--allow_change model"]);
    fs::write(&template, before).unwrap();
    success(&words);
}

#[test]
fn case_67_a_rollout_of_other_prompts() {
    // After step 3 of 4 the second rollout is in use. It goes on under other numbers of steps, not under other groups.
    let dir = finished("other_rollout");
    fs::remove_dir_all(dir.join("checkpoint-4")).unwrap();
    let words = [&four_steps(&dir)[..], &["--resume_from_checkpoint"]].concat();
    let with = |option: &str, value: &'static str| {
        let mut words = words.clone();
        let place = words.iter().position(|word| *word == format!("--{option}")).unwrap() + 1;
        words[place] = value;
        words
    };
    let fewer = [&with("num_generations", "2")[..], &["--allow_change", "num_generations"]].concat();
    fails(&fewer, 65, &["in the middle of a rollout of other prompts", "num_iterations"]);
    success(&[&with("num_iterations", "4")[..], &["--allow_change", "num_iterations"]].concat());
}

#[test]
fn case_67_a_checkpoint_of_another_run() {
    let (dir, other) = (finished("one_run"), finished("another_run"));
    let from = other.join("checkpoint-2");
    let words = [&four_steps(&dir)[..], &["--resume_from_checkpoint", text(&from)]].concat();
    fails(&words, 2, &["one_run holds files of another run", "name a new folder"]);
    assert!(dir.join("checkpoint-1").exists() && rows(&dir) == 4);
    // Into a new folder it goes, with the lines from there on.
    let fresh = ROOT.join("fresh_run");
    let words = [&four_steps(&fresh)[..], &["--resume_from_checkpoint", text(&from)]].concat();
    success(&words);
    assert_eq!(timeless(&fresh.join("metrics.jsonl"))[..], timeless(&other.join("metrics.jsonl"))[2..]);
}

#[test]
fn case_82_a_run_that_is_shorter_than_its_checkpoint() {
    let dir = finished("shorter");
    let mut words = four_steps(&dir);
    let steps = words.iter().position(|word| *word == "--max_steps").unwrap() + 1;
    words[steps] = "2";
    words.extend(["--resume_from_checkpoint", "--allow_change", "max_steps"]);
    fails(&words, 2, &["checkpoint-4", "after 4 steps", "to have 2", "--max_steps"]);
    assert_eq!(rows(&dir), 4);
}

#[test]
fn case_68_a_checkpoint_of_another_format() {
    let dir = finished("newer");
    let manifest = dir.join("checkpoint-4/MANIFEST.json");
    let newer =
        fs::read_to_string(&manifest).unwrap().replace("\"format_version\": 1", "\"format_version\": 2");
    fs::write(&manifest, newer).unwrap();
    let words = [&four_steps(&dir)[..], &["--resume_from_checkpoint"]].concat();
    fails(&words, 65, &["checkpoint-4", "format_version 2", "reads version 1"]);
}

#[cfg(unix)]
#[test]
fn case_69_two_runs_on_one_folder() {
    let dir = ROOT.join("shared_folder");
    let words = endless(&dir);
    let (mut child, _) = start(&words, &dir);
    wait_until("a step", || rows(&dir) >= 1);
    let owner = format!("process {}", child.id());
    for option in ["--overwrite_output_dir", "--resume_from_checkpoint"] {
        fails(&[&words[..], &[option]].concat(), 69, &["shared_folder", &owner, "--output_dir"]);
    }
    fails(&words, 69, &["in use by another run"]);
    child.kill().unwrap();
    child.wait().unwrap();
    // The dead run's lock is taken over, with a note; this run then has no checkpoint to go on from.
    let mut words = four_steps(&dir);
    words.retain(|word| *word != "-q");
    let output = othink(&[&words[..], &["--resume_from_checkpoint"]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    for part in [&owner[..], "did not end in order", "the run begins at the start"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert_eq!(rows(&dir), 4);
    assert!(!dir.join("run.lock").exists());
}

#[test]
fn case_70_a_folder_with_files() {
    let dir = ROOT.join("occupied");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("mine.txt"), "x").unwrap();
    fails(
        &grpo(&dir),
        2,
        &["--output_dir", "occupied", "--overwrite_output_dir", "--resume_from_checkpoint"],
    );
    let both = [&grpo(&dir)[..], &["--overwrite_output_dir", "--resume_from_checkpoint"]].concat();
    fails(&both, 2, &["--overwrite_output_dir", "--resume_from_checkpoint"]);
    // An overwritten run leaves nothing that could be taken for the new one's; a user's own files stay.
    success(&[&four_steps(&dir)[..], &["--overwrite_output_dir"]].concat());
    assert!(dir.join("checkpoint-4").exists());
    success(&[&grpo(&dir)[..], &["--overwrite_output_dir"]].concat());
    assert!(dir.join("checkpoint-2").exists() && !dir.join("checkpoint-4").exists());
    assert_eq!(fs::read(dir.join("mine.txt")).unwrap(), b"x");
    assert_eq!(rows(&dir), 2);
}

#[test]
fn case_71_old_checkpoints_go_and_the_best_stays() {
    let dir = ROOT.join("limited");
    let words = four_steps(&dir);
    success(&[&words[..], &["--save_total_limit", "1"]].concat());
    let unknown = ["--metric_for_best_model", "eval_rewards"];
    fails(&[&words[..], &unknown].concat(), 2, &["--metric_for_best_model eval_rewards", "eval_reward"]);
    let kept = |dir: &Path| -> Vec<u64> {
        (1..5).filter(|step| dir.join(format!("checkpoint-{step}")).exists()).collect()
    };
    assert_eq!(kept(&dir), [4]);
    // The shortest completions are the best: whichever checkpoint that is, it stays beside the newest.
    let dir = ROOT.join("limited_best");
    let words = four_steps(&dir);
    let eval = ["--eval_dataset", text(&LEARNABLE), "--eval_steps", "1", "--save_total_limit", "1"];
    let metric = ["--metric_for_best_model", "eval_completions/clipped_ratio"];
    success(&[&words[..], &eval, &metric].concat());
    let rows = read(&dir.join("eval_metrics.jsonl"));
    let values: Vec<f64> =
        rows.iter().map(|row| row["eval_completions/clipped_ratio"].as_f64().unwrap()).collect();
    let best = (0..4).fold(0, |best, step| if values[step] > values[best] { step } else { best }) as u64 + 1;
    let expected: Vec<u64> = if best == 4 { vec![4] } else { vec![best, 4] };
    assert_eq!(kept(&dir), expected, "{values:?}");
}

/// Event files stand where Hugging Face's trainer puts them, and a run that goes on begins one of its own.
#[test]
fn case_67_event_files_go_on_with_the_run() {
    let dir = ROOT.join("events");
    let mut words = four_steps(&dir);
    let steps = words.iter().position(|word| *word == "--max_steps").unwrap() + 1;
    words[steps] = "2";
    success(&words);
    let files = || {
        let entries = fs::read_dir(dir.join("runs/events")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = entries.collect();
        files.sort();
        files
    };
    let count = |path: &Path, tag: &[u8]| {
        let bytes = fs::read(path).unwrap();
        bytes.windows(tag.len()).filter(|window| *window == tag).count()
    };
    assert_eq!(files().len(), 1);
    assert_eq!((count(&files()[0], b"train/loss"), count(&files()[0], b"args/text_summary")), (2, 1));
    words[steps] = "4";
    let on = othink(&[&words[..], &["--resume_from_checkpoint", "--allow_change", "max-steps"]].concat());
    // What was meant to change is not told to who wants quiet.
    assert_eq!((on.status.code(), String::from_utf8_lossy(&on.stderr)), (Some(0), "".into()));
    let counts: Vec<_> = files().iter().map(|path| count(path, b"train/loss")).collect();
    assert_eq!(counts, [2, 2]);
    assert!(count(&files()[1], b"completions/group_0/text_summary") > 0);
    let none = ROOT.join("no_events");
    success(&[&four_steps(&none)[..], &["--report_to", "none"]].concat());
    assert!(!none.join("runs").exists());
}

#[cfg(unix)]
#[test]
fn case_72_files_have_the_modes_of_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let dir = finished("modes");
    let plain = ROOT.join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    for name in
        ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json", "MANIFEST.json"]
    {
        assert_eq!(mode(&dir.join("checkpoint-4").join(name)), mode(&plain), "{name}");
    }
    for name in ["metrics.jsonl", "config.toml", "report.html"] {
        assert_eq!(mode(&dir.join(name)), mode(&plain), "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn case_77_poor_surroundings() {
    // No HOME, no terminal, no locale, no place for temporary files, nobody who reads.
    let dir = ROOT.join("poor");
    let words = four_steps(&dir);
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let status = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .args(words.iter().filter(|word| **word != "-q"))
        .current_dir(&*ROOT)
        .env_clear()
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("TERM", "dumb")
        .env("LANG", "C")
        .env("TMPDIR", "/nowhere")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    same_end(&dir, &finished("rich"));
    // Standard output that is closed ends quietly; one that is full is an error, after everything is saved.
    let dir = ROOT.join("full_output");
    let output = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(four_steps(&dir))
        .current_dir(&*ROOT)
        .stdin(Stdio::null())
        .stdout(full())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{message}");
    assert!(message.contains("standard output"), "{message}");
    assert!(dir.join("report.html").exists());
    same_end(&dir, &ROOT.join("rich"));
    let dir = ROOT.join("closed_output");
    let mut child = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(four_steps(&dir))
        .current_dir(&*ROOT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    same_end(&dir, &ROOT.join("rich"));
}
