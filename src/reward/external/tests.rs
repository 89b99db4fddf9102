//! Processes that do all that a process can do wrong. Each is a line of `sh`.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};

use super::External;
use crate::data::Sample;
use crate::error::{Error, Result};
use crate::reward::{Completed, Reward};

/// Answers each request with its id.
const ECHO: &str =
    r#"while read -r line; do id=${line#*:}; id=${id%%,*}; echo "{\"id\":$id,\"reward\":$id}"; done"#;

/// Other work may be going on.
const PATIENCE: Duration = Duration::from_secs(30);

type Shown = Arc<Mutex<Vec<String>>>;

fn external(command: &str, timeout: f64) -> (External, Shown) {
    let shown = Shown::default();
    let notes = shown.clone();
    let notes = Arc::new(move |line: &str| notes.lock().unwrap().push(line.to_owned()));
    (External::new("mine", command, Duration::from_secs_f64(timeout), notes), shown)
}

fn score(reward: &External, count: usize) -> Result<Vec<Option<f64>>> {
    let samples: Vec<Sample> = (0..count).map(|row| Sample { row, ..Sample::default() }).collect();
    let completed = |sample| Completed { sample, text: "x", tokens: &[] };
    reward.score(&samples.iter().map(completed).collect::<Vec<_>>(), &|_| Ok(()))
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Option<f64>> {
    range.map(|i| Some(f64::from(i))).collect()
}

/// The message of the error that `command` leads to, in bounded time.
fn failure(command: &str, timeout: f64, count: usize) -> String {
    let start = Instant::now();
    let error = score(&external(command, timeout).0, count).unwrap_err();
    assert!(start.elapsed() < PATIENCE, "{command}: {:?}", start.elapsed());
    assert_eq!(error.exit_code(), 69, "{error}");
    error.to_string()
}

/// Whether the process whose number stands in `file` has gone.
fn is_gone(file: &Path) -> bool {
    let number = std::fs::read_to_string(file).unwrap();
    let process = Pid::from_raw(number.trim().parse().unwrap()).unwrap();
    let start = Instant::now();
    // One that was killed is gone once its new parent has noticed.
    while test_kill_process(process).is_ok() && !is_zombie(process) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    test_kill_process(process).is_err() || is_zombie(process)
}

/// Whether a process has ended and only its number is left: in a container nobody may care for orphans.
fn is_zombie(process: Pid) -> bool {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

#[test]
fn answers_belong_to_their_ids_whatever_their_order() {
    let (reward, _) = external(ECHO, 60.0);
    reward.start(&|_| Ok(())).unwrap();
    assert_eq!(score(&reward, 3).unwrap(), numbers(0..3));
    assert_eq!(score(&reward, 0).unwrap(), []);
    // Ids go on, and more requests than a pipe holds are no trouble.
    assert_eq!(score(&reward, 3000).unwrap(), numbers(3..3003));
    let backwards = r#"all=; while read -r line; do id=${line#*:}; id=${id%%,*}; all="{\"id\":$id,\"reward\":$id}
$all"; case $line in *'"last":true'*) printf %s "$all"; all=;; esac; done"#;
    let (reward, _) = external(backwards, 60.0);
    assert_eq!(score(&reward, 20).unwrap(), numbers(0..20));
    assert_eq!(score(&reward, 2).unwrap(), numbers(20..22));
}

#[test]
fn a_reward_may_not_apply() {
    let none = ECHO.replace(r#"\"reward\":$id"#, r#"\"reward\":null"#);
    assert_eq!(score(&external(&none, 60.0).0, 2).unwrap(), [None, None]);
}

#[test]
fn what_crashes_is_started_again_and_asked_again() {
    let twice = ECHO.replace("; done", "; n=$((n+1)); [ $n = 2 ] && { echo bye >&2; exit 3; }; done");
    let (reward, shown) = external(&twice, 60.0);
    assert_eq!(score(&reward, 7).unwrap(), numbers(0..7));
    let shown = shown.lock().unwrap();
    assert!(shown.iter().any(|line| line == "reward mine: bye"), "{shown:?}");
    let told = "reward mine: ended with exit code 3; starting it again";
    assert!(shown.iter().any(|line| line == told), "{shown:?}");
}

#[test]
fn case_48_what_fails_three_times_in_a_row_is_given_up_with_its_last_words() {
    let message = failure("echo 'no such model' >&2; exit 7", 60.0, 4);
    assert!(message.contains("row 0: the reward `mine` cannot be computed"), "{message}");
    assert!(message.contains("ended with exit code 7; it said: no such model"), "{message}");
    // Completion 2 kills it; the others are answered.
    let choosy = ECHO.replace("echo \"", "[ $id = 2 ] && kill -9 $$; echo \"");
    let message = failure(&choosy, 60.0, 4);
    assert!(message.contains("row 2: ") && message.contains("ended by signal 9"), "{message}");
    let message = failure("exec <&- ; exec >&-; sleep 60", 60.0, 2);
    assert!(message.contains("closed its standard input or output"), "{message}");
}

#[test]
fn case_48_what_cannot_be_started_is_known_at_the_start() {
    for (command, said) in [("no-such-program-at-all", "not found"), ("exit 1", "exit code 1")] {
        let error = external(command, 60.0).0.start(&|_| Ok(())).unwrap_err();
        assert_eq!(error.exit_code(), 69);
        assert!(error.to_string().contains(said), "{error}");
    }
    let error = external("echo hello; sleep 60", 60.0).0.start(&|_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("was asked nothing yet, and wrote hello"), "{error}");
}

#[test]
fn case_49_what_does_not_answer_is_late() {
    let commands = [
        // Reads nothing; more is written than the pipe holds.
        "sleep 60",
        // Ignores what asks it to end.
        "trap '' TERM; while :; do sleep 1; done",
        // Writes empty lines without end, or speaks without end, or an answer without end of line.
        "yes ''",
        "yes >&2",
        "printf '{\"id\":0,\"reward\":1}'; sleep 60",
    ];
    // All at once: it is waiting that takes the time.
    thread::scope(|scope| {
        for command in commands {
            scope.spawn(move || {
                let message = failure(command, 0.3, 3000);
                assert!(message.contains("gave no answer for 0.3 s (--reward_timeout)"), "{message}");
            });
        }
        // One completion of four.
        let message = failure(&ECHO.replace("echo \"", "[ $id = 2 ] && sleep 60; echo \""), 1.0, 4);
        assert!(message.contains("row 2: "), "{message}");
    });
}

/// Reads all requests, says how many it takes, and answers them together after a while.
fn together(takes: &str, seconds: &str) -> String {
    format!(
        r#"ids=; n=0; while read -r line; do id=${{line#*:}}; ids="$ids ${{id%%,*}}"; n=$((n+1))
case $line in *'"last":true'*) echo "{{\"takes\":{takes}}}"; sleep {seconds}
for i in $ids; do echo "{{\"id\":$i,\"reward\":$i}}"; done; ids=; n=0;; esac; done"#
    )
}

#[test]
fn case_49_each_completion_of_those_taken_together_has_its_time() {
    let (reward, shown) = external(&together("$n", "2.5"), 1.0);
    assert_eq!(score(&reward, 8).unwrap(), numbers(0..8));
    let told = "reward mine: no answer for 1 s; the 8 completions that it took have 8 s";
    assert_eq!(*shown.lock().unwrap(), [told]);
    let (reward, shown) = external(&together("$n", "60"), 1.0);
    let message = score(&reward, 2).unwrap_err().to_string();
    assert!(message.contains("gave no answer for 1 s (--reward_timeout)"), "{message}");
    let told = "gave no answer for 2 times 1 s (--reward_timeout, for what it said that it does)";
    assert!(shown.lock().unwrap().iter().any(|line| line.contains(told)), "{:?}", shown.lock().unwrap());
}

#[test]
fn what_gets_ready_is_waited_for() {
    let slow = format!("echo '{{\"ready\":false}}'; sleep 1; echo '{{\"ready\":true}}'; {ECHO}");
    let (reward, _) = external(&slow, 0.5);
    let start = Instant::now();
    reward.start(&|_| Ok(())).unwrap();
    assert!(start.elapsed() > Duration::from_millis(900));
    assert_eq!(score(&reward, 2).unwrap(), numbers(0..2));
    // Also after a failure, when it is started in the middle.
    assert_eq!(score(&external(&slow, 0.5).0, 2).unwrap(), numbers(0..2));
    let start_of =
        |command: &str, timeout| external(command, timeout).0.start(&|_| Ok(())).unwrap_err().to_string();
    let message = start_of("echo '{\"ready\":false}'; sleep 0.7; echo no such module >&2; exit 3", 0.5);
    assert!(message.contains("ended with exit code 3; it said: no such module"), "{message}");
    assert!(!message.contains("row"), "{message}");
    let message = start_of("echo '{\"ready\":false}'; sleep 60", 0.1);
    assert!(message.contains("gave no answer for 10 times 0.1 s"), "{message}");
}

#[test]
fn case_47_no_more_is_taken_than_is_asked_for() {
    let twice = r#"1}"; echo "{\"takes\":2"#;
    for (takes, said) in [("0", "takes 0 of 2"), ("3", "takes 3 of 2"), (twice, "takes 2 of 1")] {
        let message = failure(&together(takes, "0"), 60.0, 2);
        assert!(message.contains(said), "{takes}: {message}");
    }
}

#[test]
fn case_47_mistakes_are_errors_at_once() {
    for (command, said) in [
        ("read -r line; echo hello; sleep 60", "wrote a line that is no answer: hello"),
        ("read -r line; cat /dev/zero", "wrote a line of more than 1048576 bytes"),
        ("read -r line; yes '{'", "no answer"),
        ("read -r line; echo '{\"id\":0,\"reward\":NaN}'; sleep 60", "no answer"),
        ("read -r line; echo '{\"id\":0,\"reward\":1e300}'; sleep 60", "not between -1e9 and 1e9"),
        ("read -r line; echo '{\"id\":7,\"reward\":1}'; sleep 60", "answered the id 7, which it was not"),
        ("yes '{\"id\":0,\"reward\":1}'", "answered the id 0 twice"),
        (
            "read -r line; echo '{\"id\":1,\"error\":\"no key\"}'; sleep 60",
            "row 1: the reward `mine` failed: no key",
        ),
    ] {
        let message = failure(command, 60.0, 2);
        assert!(message.contains(said), "{command}: {message}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let path = file.display();
    // A child that holds the pipes, ignores SIGTERM and outlives the process.
    let parent = format!("(trap '' TERM; sleep 1000) & echo $! > {path}; exit 1");
    assert!(failure(&parent, 60.0, 1).contains("exit code 1"));
    assert!(is_gone(&file));
    // A run that is stopped.
    let (reward, _) = external(&format!("echo $$ > {path}; trap '' TERM; while :; do sleep 1; done"), 60.0);
    let sample = Sample::default();
    let stopped = |_| if file.exists() { Err(Error::Interrupted("stopped".into())) } else { Ok(()) };
    std::fs::remove_file(&file).unwrap();
    let completion = Completed { sample: &sample, text: "", tokens: &[] };
    assert_eq!(reward.score(&[completion], &stopped).unwrap_err().exit_code(), 75);
    assert!(is_gone(&file));
}

#[test]
fn at_the_end_it_may_tidy_up() {
    let dir = tempfile::tempdir().unwrap();
    let (reward, _) = external(&format!("{ECHO}; echo bye > {}/bye", dir.path().display()), 60.0);
    assert_eq!(score(&reward, 1).unwrap(), numbers(0..1));
    drop(reward);
    assert!(dir.path().join("bye").exists());
}

#[test]
fn case_50_a_flood_of_words_is_not_shown() {
    let flood =
        ECHO.replace("; done", "; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo $i >&2; done; done");
    let (reward, shown) = external(&flood, 60.0);
    assert_eq!(score(&reward, 3).unwrap(), numbers(0..3));
    let count = shown.lock().unwrap().len();
    assert!((1..200).contains(&count), "{count}");
}
