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
    assert_eq!(rewards.start().unwrap_err().exit_code(), 69);
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
