//! The binary as a user meets it: exit codes, messages, help.

use std::process::{Command, Output, Stdio};

fn othink(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// Asserts that the command fails with `code`, nothing on standard output and one `error: ` line, which it returns.
fn failure(words: &[&str], code: i32) -> String {
    let output = othink(words);
    let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(code), "{words:?}: {message}");
    assert!(output.stdout.is_empty(), "{words:?}");
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "{words:?}: {message}");
    message
}

const GRPO: [&str; 5] = ["grpo", "--model", "m", "--dataset", "d"];

fn grpo<'a>(options: &[&'a str]) -> Vec<&'a str> {
    GRPO.iter().chain(options).copied().collect()
}

const COMMANDS: [&[&str]; 11] = [
    &["demo"],
    &["grpo"],
    &["sft"],
    &["eval"],
    &["generate"],
    &["parity"],
    &["score"],
    &["reward"],
    &["tasks", "make", "counting"],
    &["tasks", "make", "geometry"],
    &["inspect"],
];

#[test]
fn every_command_explains_itself_with_examples() {
    for command in COMMANDS {
        for flag in ["--help", "-h"] {
            let output = othink(&[command, &[flag]].concat());
            let help = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(0), "{command:?}");
            assert!(output.stderr.is_empty(), "{command:?}");
            let words = format!("othink-train {}", command.join(" "));
            assert!(help.contains(&format!("Usage: {words}")), "{help}");
            let (_, examples) = help.split_once("Examples:").expect("examples");
            assert_eq!(examples.matches(&words).count(), 3, "{examples}");
        }
    }
    let help = String::from_utf8(othink(&["--help"]).stdout).unwrap();
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {}  ", command[0])), "{}", command[0]);
    }
}

#[test]
fn help_of_grpo_has_every_heading() {
    let help = String::from_utf8(othink(&["grpo", "--help"]).stdout).unwrap();
    for heading in [
        "Model",
        "Data",
        "GRPO",
        "Rewards",
        "KL",
        "Rollout",
        "Optimiser",
        "Checkpoint",
        "Logging",
        "Hardware",
        "Run",
    ] {
        assert!(help.contains(&format!("\n{heading}:\n")), "{heading}");
    }
}

#[test]
fn version_is_the_packages() {
    let output = othink(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, format!("othink-train {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
}

#[test]
fn missing_and_unknown_commands_are_usage_errors() {
    assert!(failure(&[], 2).contains("a command is missing after `othink-train`: one of demo, grpo"));
    assert!(failure(&["tasks", "make"], 2).contains("one of counting, geometry"));
    assert!(failure(&["evaluate"], 2).contains("did you mean `eval`?"));
    assert!(failure(&["inspect"], 2).contains("required: <DIR|ORG/NAME>"));
}

#[test]
fn unknown_option_names_the_nearest() {
    assert!(
        failure(&grpo(&["--learning-rat=1"]), 2).contains("--learning_rat; did you mean --learning_rate?")
    );
    assert!(failure(&["demo", "--sed", "1"], 2).contains("did you mean --seed?"));
}

#[test]
fn bad_values_name_option_value_and_range() {
    for (options, message) in [
        (
            &["--learning_rate", "nan"][..],
            "--learning_rate is NaN, but must be a finite number of at least 0",
        ),
        (&["--learning_rate", "quick"], "--learning_rate is 'quick': invalid float literal"),
        (&["--num_generations", "1"], "--num_generations is 1, but GRPO needs at least 2"),
        (&["--loss_type", "ppo"], "--loss_type is 'ppo', but must be one of grpo, dapo, bnpo, dr_grpo"),
        (&["--epsilon", "2"], "--epsilon is 2, but must be above 0 and at most 1"),
        (&["--beta", "-1"], "--beta is -1, but must be a finite number of at least 0"),
        (&["--device", "tpu"], "--device is 'tpu': expected auto, cpu, cuda or cuda:N"),
    ] {
        let error = failure(&grpo(options), 2);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn config_file_mistakes_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let config = path.to_str().unwrap();
    for (text, message) in [
        (
            "seed = 1\nlearnin_rate = 1e-6\n",
            ":2: unknown option `learnin_rate`; did you mean `learning_rate`?",
        ),
        ("\nepsilon = 2\n", ":2: --epsilon is 2, but must be above 0 and at most 1"),
        ("loss_type = 'grp'\n", ":1: --loss_type is 'grp', but must be one of grpo,"),
        ("seed = 1\nseed = 2\n", ":2: "),
        ("seed 1\n", ":1: "),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = failure(&grpo(&["--config", config]), 2);
        assert!(error.contains(&format!("{config}{message}")), "{error}");
    }
    assert!(failure(&grpo(&["--config", "nowhere.toml"]), 66).contains("nowhere.toml"));
}

#[test]
fn underscore_and_dash_are_alike() {
    // Both spellings reach the same check, with the same words.
    let underscore = failure(&grpo(&["--num_generations", "1"]), 2);
    assert_eq!(failure(&grpo(&["--num-generations", "1"]), 2), underscore);
    assert_eq!(failure(&grpo(&["--num-generations=1"]), 2), underscore);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "num-generations = 1").unwrap();
    let from_file = failure(&grpo(&["--config", path.to_str().unwrap()]), 2);
    assert!(from_file.ends_with(underscore.trim_start_matches("error: ")), "{from_file}");
}

#[cfg(unix)]
#[test]
fn closed_standard_output_is_a_quiet_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(["grpo", "--help"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}
