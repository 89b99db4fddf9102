//! Whole experiments, too short to learn anything: what they leave, that a killed one comes to the same numbers, and the
//! paper's recipe on stand-ins for its data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use othink::cli::reproduce::Program;
use othink::config::{Options, ReproduceConfig};
use othink::data::{Dataset, PromptTemplate};
use othink::demo::tiny;
use othink::error::Error;
use othink::reproduce::recipe::{Start, TaskRows, WarmUp};
use othink::reproduce::{self, Arm, Outcome, Recipe, ResultRow};
use othink::tasks::{self, Split, Task, TaskOptions};
use othink::tensor::Placement;
use othink::train::interrupt::Interrupt;
use serde_json::Value;

fn options(dir: &Path, words: &[&str]) -> ReproduceConfig {
    use clap::Parser;
    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        options: ReproduceConfig,
    }
    let dir = dir.to_str().expect("a UTF-8 path");
    let mut options =
        Words::parse_from([&["reproduce", "--output_dir", dir, "--quiet"], words].concat()).options;
    options.resolve();
    options.check().map_err(|_| "the options are refused").expect("valid options");
    options
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Steps, rows and completions so few that an experiment takes seconds.
fn shortened(recipe: Recipe) -> Recipe {
    let [counting, geometry] = recipe.tasks;
    let short = |task| reproduce::recipe::TaskRecipe { steps: 3, ..task };
    let and = |mut options: Vec<String>, more: &str| {
        options.extend(words(more));
        options
    };
    Recipe {
        tasks: [short(counting), short(geometry)].map(|mut task| {
            task.eval.extend(words("--max_completion_length 8"));
            if let TaskRows::Published { test_rows, .. } = &mut task.rows {
                *test_rows = 6;
            }
            task
        }),
        prompts_per_step: 4,
        group: 4,
        training: and(recipe.training, "--save_steps 1"),
        sft: and(recipe.sft, "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"),
        grpo: and(
            recipe.grpo,
            "--per_device_train_batch_size 8 --gradient_accumulation_steps 2 --max_completion_length 8",
        ),
        eval: and(recipe.eval, "--max_completion_length 8"),
        looks: recipe.looks.min(3),
        ..recipe
    }
}

/// The tiny recipe with a warm-up of two steps that passes whatever it reaches.
fn small() -> Recipe {
    let mut recipe = shortened(Recipe::tiny());
    if let Start::WarmUp(warm_up) = &mut recipe.start {
        **warm_up = WarmUp {
            train_rows: 20,
            test_rows: 12,
            validation_rows: 10,
            mixture_rows: [10, 14],
            sft: words(
                "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --learning_rate 1e-3 \
                 --lr_scheduler_type constant_with_warmup --warmup_steps 1",
            ),
            look_steps: 2,
            max_looks: 2,
            target: [0.0; 2],
            band: [0.0, 1.0],
            ..(**warm_up).clone()
        };
    }
    recipe
}

fn program() -> Program {
    Program { placement: Placement::HOST, interrupt: Interrupt::default() }
}

fn run(dir: &Path, recipe: &Recipe, words: &[&str]) -> Result<Outcome, Error> {
    reproduce::run(&options(dir, words), recipe, &program())
}

/// Rows without times, as they stand in the file.
fn rows(dir: &Path) -> Vec<ResultRow> {
    let text = fs::read_to_string(dir.join("rows.jsonl")).expect("rows.jsonl");
    let row = |line: &str| serde_json::from_str::<ResultRow>(line).expect("a result row").timeless();
    text.lines().map(row).collect()
}

/// A log's lines without times.
fn log(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for row in &mut rows {
        let fields = row.as_object_mut().expect("an object");
        fields.retain(|key, _| !key.contains("time") && !key.contains("memory"));
    }
    rows
}

const ARMS: [&str; 6] =
    ["counting-sft", "counting-grpo", "counting-grpo_d", "geometry-sft", "geometry-grpo", "geometry-grpo_d"];

const CHILD: &str = "OTHINK_TEST_EXPERIMENT";

/// Not a test of its own: the process that the next one kills.
#[test]
#[ignore = "run by another test as a process to be killed"]
fn a_small_experiment() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    run(Path::new(&dir), &small(), &["--seeds", "3"]).expect("the experiment runs");
}

/// Killed again and again, each time a little later, until it gets through: numbers, logs and weights are those of one
/// that nobody disturbed.
#[test]
fn case_83_a_killed_experiment_comes_to_the_same_numbers() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (calm, killed) = (temp.path().join("calm"), temp.path().join("killed"));
    let started = Instant::now();
    let outcome = run(&calm, &small(), &["--seeds", "3"]).expect("the experiment runs");
    let took = started.elapsed();
    let (mut kills, mut pause) = (0, took / 12);
    loop {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "a_small_experiment", "--ignored"])
            .env(CHILD, &killed)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        let born = Instant::now();
        let ended = loop {
            match child.try_wait().expect("its state") {
                Some(status) => break Some(status),
                None if born.elapsed() > pause => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        match ended {
            Some(status) => {
                assert!(status.success(), "it ends by itself only when it is done");
                break;
            }
            None => {
                child.kill().expect("kill");
                child.wait().expect("its end");
                kills += 1;
                pause += took / 12;
            }
        }
        assert!(kills < 60, "it never gets through");
    }
    assert!(kills >= 2, "{kills} kills");
    assert_eq!(rows(&killed), rows(&calm));
    assert_eq!(rows(&calm).len(), 14, "the start on 2 tasks, 6 arms on 2");
    assert_eq!(outcome.rows.0.iter().map(ResultRow::timeless).collect::<Vec<_>>(), rows(&calm));
    for arm in ARMS {
        let (a, b) = (calm.join("seed-3").join(arm), killed.join("seed-3").join(arm));
        for name in ["metrics.jsonl", "eval_metrics.jsonl"] {
            assert_eq!(log(&a.join(name)), log(&b.join(name)), "{arm} {name}");
        }
        let weights = |dir: &Path| fs::read(dir.join("checkpoint-3/model.safetensors")).expect("weights");
        assert!(weights(&a) == weights(&b), "{arm}: the weights differ");
    }
}

#[test]
fn case_84_arms_start_alike_see_the_same_prompts_and_are_not_repeated() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let dir = temp.path().join("tiny");
    run(&dir, &small(), &["--seeds", "3"]).expect("the experiment runs");
    for name in
        ["rows.jsonl", "rows.csv", "table.md", "curves.svg", "report.html", "config.toml", "recipe.json"]
    {
        assert!(dir.join(name).is_file(), "{name} is missing");
    }
    // GRPO and GRPO-D differ in the KL weight, and so does nothing that is the same for both.
    let config = |arm: &str| {
        let text = fs::read_to_string(dir.join("seed-3").join(arm).join("config.toml")).expect("config.toml");
        let lines = text.lines().filter(|line| !line.starts_with("output_dir") && !line.starts_with("beta"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(config("counting-grpo"), config("counting-grpo_d"));
    let first = |arm: &str| log(&dir.join("seed-3").join(arm).join("metrics.jsonl"))[0].clone();
    let (constant, dynamic) = (first("counting-grpo"), first("counting-grpo_d"));
    assert_eq!((constant["beta"].as_f64(), dynamic["beta"].as_f64()), (Some(0.04), Some(0.07)));
    // At the first step the policy is the reference: the KL is 0 and its weight means nothing.
    for key in ["loss", "reward", "num_tokens", "completions/mean_length"] {
        assert_eq!(constant[key], dynamic[key], "{key}");
    }
    for row in rows(&dir).iter().filter(|row| row.arm != Arm::Base) {
        assert_eq!((row.steps, row.prompts, row.n, row.seed), (3, 12, 12, Some(3)), "{row:?}");
        assert!(row.tokens > 0);
    }
    // A second seed goes on in the same folder, and what is done stays as it is.
    let stamp = |arm: &str| {
        let path = dir.join("seed-3").join(arm).join("config.toml");
        path.metadata().expect("config.toml").modified().expect("a time")
    };
    let before = ARMS.map(stamp);
    run(&dir, &small(), &["--seeds", "3", "4"]).expect("the second seed runs");
    assert_eq!(ARMS.map(stamp), before);
    assert_eq!(rows(&dir).len(), 28);
    // Another experiment is refused.
    let mut other = small();
    other.group = 8;
    let error = run(&dir, &other, &["--seeds", "3"]).expect_err("another recipe");
    assert!(error.exit_code() == 2 && error.to_string().contains("another group"), "{error}");
    let occupied = temp.path().join("occupied");
    fs::create_dir_all(&occupied).expect("a folder");
    fs::write(occupied.join("mine"), "").expect("a file");
    assert_eq!(run(&occupied, &small(), &[]).expect_err("occupied").exit_code(), 2);
}

#[test]
fn case_84_a_start_outside_the_band_or_below_the_target_is_a_clear_failure() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let with = |change: fn(&mut WarmUp)| {
        let mut recipe = small();
        if let Start::WarmUp(warm_up) = &mut recipe.start {
            change(warm_up);
        }
        recipe
    };
    let cold = with(|warm_up| warm_up.target = [0.99, 0.0]);
    let error = run(&temp.path().join("cold"), &cold, &["--seeds", "3"]).expect_err("never reached");
    assert_eq!(error.exit_code(), 70);
    assert!(error.to_string().contains("band's end in 4 steps"), "{error}");
    let outside = with(|warm_up| warm_up.band = [0.5, 0.6]);
    let error = run(&temp.path().join("outside"), &outside, &["--seeds", "3"]).expect_err("outside the band");
    assert_eq!(error.exit_code(), 70);
    assert!(error.to_string().contains("not on 50 to 60 %"), "{error}");
}

#[test]
fn case_83_a_signal_stops_with_everything_saved() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let dir = temp.path().join("tiny");
    let program = program();
    program.interrupt.request(15);
    let error = reproduce::run(&options(&dir, &["--seeds", "3"]), &small(), &program).expect_err("stopped");
    assert_eq!(error.exit_code(), 75);
    assert!(error.to_string().contains("stopped in seed 3, warm-up"), "{error}");
    assert!(error.to_string().contains("the same command goes on"), "{error}");
}

/// A folder with R1-V's rows to train on, and its test prompts with their images elsewhere.
fn stand_ins(dir: &Path) {
    for (task, train, test) in [
        (Task::Counting, "clevr_cogen_a_train", "superclevr_test200_counting_problems.jsonl"),
        (Task::Geometry, "GEOQA_R1V_Train_8K", "geoqa_test_prompts.jsonl"),
    ] {
        let options = TaskOptions { train: 8, test: 6, image_size: 84, ..TaskOptions::default() };
        tasks::write(task, &options, &dir.join(train), &|| ()).expect("drawn rows");
        let text = fs::read_to_string(dir.join(train).join("test.jsonl")).expect("test rows");
        let images = dir.join("images").join(task.name());
        fs::create_dir_all(&images).expect("a folder");
        let mut prompts = String::new();
        for (number, line) in text.lines().enumerate() {
            let row: Value = serde_json::from_str(line).expect("JSON");
            let image = row["image"].as_str().expect("an image");
            fs::copy(dir.join(train).join(image), images.join(format!("{number}.png"))).expect("a copy");
            let answer = row["solution"]
                .as_str()
                .expect("a solution")
                .replace("<answer>", "")
                .replace("</answer>", "");
            let truth = answer.trim();
            let truth = truth.parse::<u64>().map_or(Value::from(truth), Value::from);
            let prompt = serde_json::json!({
                "image_path": format!("./images/{}/{number}.png", task.name()),
                "question": row["problem"],
                "ground_truth": truth,
            });
            prompts += &format!("{prompt}\n");
        }
        fs::write(dir.join(test), prompts).expect("test prompts");
    }
}

fn random_checkpoint(dir: &Path) -> PathBuf {
    let options = TaskOptions { train: 10, test: 0, image_size: 84, ..TaskOptions::default() };
    let samples =
        tasks::samples(Task::Counting, &options, Split::Train, PromptTemplate::R1v).expect("samples");
    let path = dir.join("model");
    tiny::write(&path, &Dataset::from_samples(samples).supervised(), 84, 1).expect("a checkpoint");
    path
}

#[test]
fn case_84_the_papers_recipe_runs_on_data_in_its_layouts() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (data, dir) = (temp.path().join("paper"), temp.path().join("run"));
    let model = random_checkpoint(temp.path());
    let model = model.to_str().expect("UTF-8");
    let data_words = ["--recipe", "paper", "--seeds", "1", "2", "--data_dir", data.to_str().expect("UTF-8")];
    let recipe = shortened(Recipe::paper(model));

    let plan = reproduce::describe(&recipe, &options(&dir, &data_words)).expect("a plan");
    assert!(plan.contains("hf download --repo-type dataset leonardPKU/GEOQA_R1V_Train_8K"), "{plan}");
    assert_eq!(plan.matches("(not there)").count(), 4, "{plan}");
    let error = run(&dir, &recipe, &data_words).expect_err("no data");
    assert!(
        error.exit_code() == 66 && error.to_string().contains("--dry_run prints the commands"),
        "{error}"
    );

    stand_ins(&data);
    let plan = reproduce::describe(&recipe, &options(&dir, &data_words)).expect("a plan");
    assert_eq!(plan.matches("(found)").count(), 4, "{plan}");
    let error = run(&temp.path().join("whole"), &Recipe::paper(model), &data_words)
        .expect_err("other test rows than the paper's");
    assert!(error.to_string().contains("has 6 rows, and the paper's test has 200"), "{error}");
    run(&dir, &recipe, &data_words).expect("the experiment runs");
    let rows = rows(&dir);
    assert_eq!(rows.len(), 2 + 2 * 12, "the start is one for both seeds");
    let base: Vec<_> = rows.iter().filter(|row| row.arm == Arm::Base).collect();
    assert!(base.iter().all(|row| row.seed.is_none() && row.n == 6));
    // A finished arm keeps the model, and nothing to resume from.
    let arm = dir.join("seed-2/geometry-grpo_d");
    assert!(arm.join("model/model.safetensors").is_file() && arm.join("model/config.json").is_file());
    assert!(!arm.join("model/optimizer.safetensors").exists() && !arm.join("checkpoint-3").exists());
    let beta = |step: usize| log(&arm.join("metrics.jsonl"))[step]["beta"].as_f64().expect("beta");
    assert!((beta(0) - 0.01).abs() < 1e-12 && beta(2) > beta(1));
    // Prompts are those of R1-V's evaluation scripts.
    let config = fs::read_to_string(dir.join("data/geometry-test.jsonl")).expect("mapped rows");
    assert_eq!(config.lines().count(), 6);
    let again = run(&dir, &recipe, &data_words).expect("nothing is left to do");
    assert_eq!(again.rows.0.iter().map(ResultRow::timeless).collect::<Vec<_>>(), rows);

    fs::remove_file(data.join("images/counting/3.png")).expect("removed");
    let error = run(&temp.path().join("gap"), &recipe, &data_words).expect_err("an image is missing");
    assert!(error.exit_code() == 65 && error.to_string().contains("line 4"), "{error}");
}
