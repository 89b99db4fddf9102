//! The set of rewards, and every reward against what TRL and the published formulas give.

use super::*;
use crate::data::PromptTemplate;

/// The options as they are where none is given, and rows have at most `longest` tokens.
fn options(longest: usize) -> RewardOptions {
    #[derive(clap::Parser)]
    struct Options {
        #[command(flatten)]
        rewards: RewardOptions,
    }
    let given = <Options as clap::Parser>::try_parse_from(["test"]).unwrap().rewards;
    RewardOptions {
        cosine_max_len: Some(longest),
        max_completion_len: Some(longest),
        soft_punish_cache: Some(longest / 4),
        ..given
    }
}

fn silent() -> Notes {
    Arc::new(|_| {})
}

/// Every built-in reward.
pub(super) fn every_reward() -> Vec<Arc<dyn Reward>> {
    KNOWN.iter().map(|(name, _)| by_name(name, &options(512)).unwrap()).collect()
}

fn set(names: &[&str], weights: &[f64]) -> Result<RewardSet> {
    let names: Vec<_> = names.iter().map(|n| n.to_string()).collect();
    RewardSet::new(&names, weights, &options(512), &silent())
}

#[test]
fn every_known_name_is_a_reward_of_that_name() {
    for (reward, (name, formula)) in every_reward().iter().zip(KNOWN) {
        assert_eq!(reward.name(), name);
        assert!(!formula.is_empty());
    }
}

#[cfg(unix)]
#[test]
fn a_command_is_a_reward_under_its_name() {
    let with = |command: &str, names: &[&str]| {
        let options = RewardOptions { reward_command: vec![command.into()], ..options(512) };
        RewardSet::new(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), &[], &options, &silent())
    };
    let rewards = with("mine=exit 3", &["mine", "format"]).unwrap();
    assert_eq!(rewards.names(), ["mine", "format"]);
    assert_eq!(rewards.start(&|_| Ok(())).unwrap_err().exit_code(), 69);
    assert!(with("mine=x", &["mime"]).err().unwrap().to_string().contains("did you mean `mine`?"));
    assert!(with("format=x", &["format"]).err().unwrap().to_string().contains("built-in"));
}

fn sample(solution: Option<&str>) -> Sample {
    Sample::from_problem(0, vec![], "?", PromptTemplate::None, solution.map(str::to_string))
}

fn score(rewards: &RewardSet, sample: &Sample, text: &str) -> Vec<Option<f64>> {
    rewards.score(&[Completed { sample, text, tokens: &[] }], &|_| Ok(())).unwrap().remove(0)
}

/// What a reward gives that is told what to give.
struct Gives(Vec<Option<f64>>);

impl Reward for Gives {
    fn name(&self) -> &str {
        "gives"
    }

    fn score(&self, _: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        Ok(self.0.clone())
    }
}

#[test]
fn scores_stand_in_the_order_of_completions_and_rewards() {
    let rewards: Vec<Box<dyn Reward>> = vec![Box::new(Gives(vec![Some(1.0), None])), Box::new(Format)];
    let rewards = RewardSet::from_rewards(rewards, &[]).unwrap();
    let sample = sample(None);
    let completions = ["", "<think></think><answer></answer>"];
    let completions = completions.map(|text| Completed { sample: &sample, text, tokens: &[] });
    let scores = rewards.score(&completions, &|_| Ok(())).unwrap();
    assert_eq!(scores, [[Some(1.0), Some(0.0)], [None, Some(1.0)]]);
}

#[test]
fn scores_that_cannot_be_are_refused() {
    let sample = sample(None);
    let code = |given: Vec<Option<f64>>| {
        let rewards = RewardSet::from_rewards(vec![Box::new(Gives(given))], &[]).unwrap();
        let completion = Completed { sample: &sample, text: "", tokens: &[] };
        rewards.score(&[completion], &|_| Ok(())).err().map(|error| error.exit_code())
    };
    assert_eq!(code(vec![Some(1.0)]), None);
    assert_eq!(code(vec![Some(f64::NAN)]), Some(70));
    assert_eq!(code(vec![Some(f64::INFINITY)]), Some(70));
    assert_eq!(code(vec![]), Some(1));
}

#[test]
fn eq1_is_the_weighted_sum() {
    let rewards = set(&["accuracy", "format"], &[1.0, 0.25]).unwrap();
    assert_eq!(rewards.names(), ["accuracy", "format"]);
    let gold = sample(Some("<answer> 3 </answer>"));
    let total = |text: &str| rewards.total(&score(&rewards, &gold, text));
    assert_eq!(total("<think>a</think><answer>3</answer>"), Some(1.25));
    assert_eq!(total("<think>a</think><answer>4</answer>"), Some(0.25));
    assert_eq!(total("<answer>3</answer>"), Some(1.0));
    assert_eq!(total(""), Some(0.0));
    // Without weights, alpha = 1 (the paper).
    let plain = set(&["accuracy", "format"], &[]).unwrap();
    assert_eq!(plain.total(&score(&plain, &gold, "<think>a</think><answer>3</answer>")), Some(2.0));
}

#[test]
fn a_reward_that_does_not_apply_adds_nothing() {
    let rewards = set(&["accuracy", "format"], &[]).unwrap();
    let scores = score(&rewards, &sample(None), "<think>a</think><answer>3</answer>");
    assert_eq!(scores, [None, Some(1.0)]);
    assert_eq!(rewards.total(&scores), Some(1.0));
    assert_eq!(rewards.total(&[None, None]), None);
}

#[test]
fn wrong_sets_are_refused() {
    let message = |names: &[&str], weights: &[f64]| {
        let error = set(names, weights).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert!(message(&["acuracy"], &[]).contains("did you mean `accuracy`?"));
    assert!(message(&["zzz"], &[]).contains("known: accuracy, accuracy_r1v, format, think_format, "));
    assert!(message(&["format", "format"], &[]).contains("twice"));
    assert!(message(&[], &[]).contains("no reward"));
    assert!(message(&["format"], &[1.0, 2.0]).contains("2 reward weights for 1 rewards"));
    assert!(message(&["format"], &[f64::NAN]).contains("finite"));
}

#[test]
fn rewards_that_compare_need_a_solution() {
    assert!(set(&["format", "accuracy"], &[]).unwrap().needs_solution());
    assert!(set(&["accuracy_r1v"], &[]).unwrap().needs_solution());
    assert!(!set(&["format"], &[]).unwrap().needs_solution());
}

/// What `tools/reference/make_reward_golden.py` recorded of one reward.
fn recorded(name: &str) -> Vec<serde_json::Value> {
    let text = include_str!("../../tests/golden/rewards.json");
    let mut tables: serde_json::Value = serde_json::from_str(text).unwrap();
    let rows = tables[name].as_array_mut().map(std::mem::take).unwrap();
    assert!(rows.len() > 5);
    rows
}

/// Asserts that a reward of a completion is the recorded one, but for the last bits.
fn gives(reward: &dyn Reward, solution: Option<&str>, text: &str, tokens: &[u32], row: &serde_json::Value) {
    let sample = sample(solution);
    let score = reward.score(&[Completed { sample: &sample, text, tokens }], &|_| Ok(())).unwrap();
    let (score, wanted) = (score[0].unwrap(), row["score"].as_f64().unwrap());
    assert!((score - wanted).abs() < 1e-12, "{}: {score} for {row}", reward.name());
}

#[test]
fn think_format_is_trls() {
    for row in recorded("think_format") {
        gives(&ThinkFormat, None, row["text"].as_str().unwrap(), &[], &row);
    }
}

#[test]
fn soft_overlong_is_trls() {
    for row in recorded("soft_overlong") {
        let number = |key: &str| row[key].as_u64().unwrap() as usize;
        let reward =
            SoftOverlong { max_len: number("max_completion_len"), cache: number("soft_punish_cache") };
        gives(&reward, None, "", &vec![0; number("length")], &row);
    }
}

#[test]
fn repetition_is_trls() {
    for row in recorded("repetition") {
        let n_grams = row["n_grams"].as_u64().unwrap() as usize;
        let reward = Repetition { n_grams, max_penalty: row["max_penalty"].as_f64().unwrap() };
        let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
        gives(&reward, None, "", &ids, &row);
    }
}

#[test]
fn cosine_is_trls() {
    for row in recorded("cosine") {
        let value = |key: &str| row[key].as_f64().unwrap();
        let reward = Cosine {
            min_value_wrong: value("min_value_wrong"),
            max_value_wrong: value("max_value_wrong"),
            min_value_correct: value("min_value_correct"),
            max_value_correct: value("max_value_correct"),
            max_len: row["max_len"].as_u64().unwrap() as usize,
        };
        let text = if row["right"] == true { "<answer>3</answer>" } else { "<answer>4</answer>" };
        gives(&reward, Some("3"), text, &vec![0; row["length"].as_u64().unwrap() as usize], &row);
    }
}

#[test]
fn length_is_vlm_r1s() {
    for row in recorded("length") {
        gives(&Length, None, "", &vec![0; row["length"].as_u64().unwrap() as usize], &row);
    }
}

#[test]
fn iou_is_the_share_of_the_squares() {
    for row in recorded("iou") {
        let boxes = ["answer", "solution"].map(|key| row[key].to_string());
        let text = format!("<think>[0, 0, 9, 9]</think><answer>{}</answer>", boxes[0]);
        gives(&Iou, Some(&boxes[1]), &text, &[], &row);
        // In JSON, in tags, as Qwen2-VL writes boxes; in thousandths.
        let corners: Vec<f64> = serde_json::from_value(row["answer"].clone()).unwrap();
        let [a, b, c, d] = corners[..] else { panic!("{row}") };
        let spelled = format!("<answer>the box ({a}.0,{b}),\n({c}, {d})</answer>");
        let solution = format!("<answer> {{\"bbox_2d\": {}, \"label\": \"x\"}} </answer>", boxes[1]);
        gives(&Iou, Some(&solution), &spelled, &[], &row);
    }
}

#[test]
fn without_a_box_there_is_no_iou() {
    let of = |text: &str, solution: Option<&str>| {
        let sample = sample(solution);
        Iou.score(&[Completed { sample: &sample, text, tokens: &[] }], &|_| Ok(())).unwrap()[0]
    };
    let solution = Some("[0, 0, 2, 2]");
    assert_eq!(of("<answer>[0, 0, 2, 1]</answer>", solution), Some(0.5));
    assert_eq!(of("<answer>[0, 0, 2, 2]</answer><answer>[0, 0, 1, 1]</answer>", solution), Some(1.0));
    for text in [
        "[0, 0, 2, 2]",
        "<answer>[0, 0, 2]</answer>",
        "<answer>[0, 0, 2, x]</answer>",
        "<answer>[0, 0, 2, 2]",
    ] {
        assert_eq!(of(text, solution), Some(0.0), "{text}");
    }
    assert_eq!(of("<answer>[0, 0, 2, 2]</answer>", None), None);
    assert_eq!(of("<answer>[0, 0, 2, 2]</answer>", Some("none")), None);
    // Coordinates that are no box, or no number, are worth nothing and break nothing.
    let huge = "9".repeat(400);
    for bad in ["[2, 2, 0, 0]", "[0, 0, 0, 0]", &format!("[0, 0, {huge}, {huge}]")] {
        assert_eq!(of(&format!("<answer>{bad}</answer>"), solution), Some(0.0), "{bad}");
    }
}
