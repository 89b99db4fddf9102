//! The options of rewards, built in and of the user's own.

use serde::Serialize;

use super::check::{Checked, Violation, at_least, count, if_set, positive};

/// What rewards are computed with.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Rewards")]
pub struct RewardOptions {
    /// A reward that a process of yours computes: NAME=COMMAND, run by sh, speaking JSON lines (see the README;
    /// tools/reward_adapter.py serves a Python function). NAME (command, if none is given) can be used as any other reward's; where it is not, it
    /// comes after the others. Repeat for several [default: none]
    #[arg(long, num_args = 1.., value_name = "NAME=COMMAND")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reward_command: Vec<String>,

    /// What a reward command has for each completion (for several that it takes at once, so many times this, at most ten
    /// times): if no answer comes, it is ended and started again; after three such failures in a row the run saves and ends
    #[arg(long, default_value = "60", allow_negative_numbers = true, value_name = "SECONDS")]
    pub reward_timeout: f64,

    /// cosine: of a wrong answer of no length
    #[arg(long, default_value = "-1", allow_negative_numbers = true, value_name = "FLOAT")]
    pub cosine_min_value_wrong: f64,

    /// cosine: of a wrong answer of cosine_max_len tokens
    #[arg(long, default_value = "-0.5", allow_negative_numbers = true, value_name = "FLOAT")]
    pub cosine_max_value_wrong: f64,

    /// cosine: of a right answer of cosine_max_len tokens
    #[arg(long, default_value = "0.5", allow_negative_numbers = true, value_name = "FLOAT")]
    pub cosine_min_value_correct: f64,

    /// cosine: of a right answer of no length
    #[arg(long, default_value = "1", allow_negative_numbers = true, value_name = "FLOAT")]
    pub cosine_max_value_correct: f64,

    /// cosine: the length at which it ends [default: max_completion_length]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_max_len: Option<usize>,

    /// repetition: tokens in an n-gram
    #[arg(long, default_value = "3", value_name = "N")]
    pub repetition_n_grams: usize,

    /// repetition: of a completion that only repeats itself, at most 0
    #[arg(long, default_value = "-1", allow_negative_numbers = true, value_name = "FLOAT")]
    pub repetition_max_penalty: f64,

    /// soft_overlong: the length from which a completion gets -1 [default: max_completion_length]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_len: Option<usize>,

    /// soft_overlong: how many tokens before that the punishment begins [default: a quarter of max_completion_len]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_punish_cache: Option<usize>,
}

/// The name of a command that is given without one.
const COMMAND: &str = "command";

impl RewardOptions {
    /// Name and command of each `reward_command`.
    pub fn commands(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reward_command.iter().map(|given| {
            let is_name = |text: &str| {
                let word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                word && text.starts_with(|c: char| !c.is_ascii_digit())
            };
            given.split_once('=').filter(|(name, _)| is_name(name)).unwrap_or((COMMAND, given))
        })
    }

    /// Writes down the lengths that follow from the longest completion, and adds the commands that `names` lacks.
    pub(super) fn resolve(&mut self, max_completion_length: usize, names: &mut Vec<String>) {
        self.cosine_max_len.get_or_insert(max_completion_length);
        let max_len = *self.max_completion_len.get_or_insert(max_completion_length);
        self.soft_punish_cache.get_or_insert(max_len / 4);
        for (name, _) in self.commands() {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }

    pub(super) fn check(&self) -> Checked {
        let mut names: Vec<&str> = Vec::new();
        for (given, (name, command)) in self.reward_command.iter().zip(self.commands()) {
            // sh takes no such word for an assignment either.
            let is_like = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if let Some((start, _)) = given.split_once('=')
                && start.contains(['-', '.'])
                && start.chars().all(is_like)
            {
                return Err(Violation::new(
                    "reward_command",
                    format!(
                        "names a reward '{start}': a name has letters, digits and _ only, and no digit first"
                    ),
                ));
            }
            if command.trim().is_empty() {
                return Err(Violation::new(
                    "reward_command",
                    format!("is '{name}=', which has no command: give NAME=COMMAND"),
                ));
            }
            if names.contains(&name) {
                return Err(Violation::new(
                    "reward_command",
                    format!("gives the reward {name} twice: give each a name of its own, NAME=COMMAND"),
                ));
            }
            names.push(name);
        }
        positive("reward_timeout", self.reward_timeout)?;
        if self.reward_timeout > 1e6 {
            return Err(Violation::new(
                "reward_timeout",
                format!("is {}, but must be at most 1000000", self.reward_timeout),
            ));
        }
        for (option, value) in [
            ("cosine_min_value_wrong", self.cosine_min_value_wrong),
            ("cosine_max_value_wrong", self.cosine_max_value_wrong),
            ("cosine_min_value_correct", self.cosine_min_value_correct),
            ("cosine_max_value_correct", self.cosine_max_value_correct),
            ("repetition_max_penalty", self.repetition_max_penalty),
        ] {
            if value.is_nan() || value.abs() > 1e6 {
                return Err(Violation::new(
                    option,
                    format!("is {value}, but must be from -1000000 to 1000000"),
                ));
            }
        }
        if self.repetition_max_penalty > 0.0 {
            return Err(Violation::new(
                "repetition_max_penalty",
                format!("is {}, but a penalty must be at most 0", self.repetition_max_penalty),
            ));
        }
        count("repetition_n_grams", self.repetition_n_grams, 1000)?;
        if_set("cosine_max_len", self.cosine_max_len, |option, value| at_least(option, value, 1))?;
        if_set("max_completion_len", self.max_completion_len, |option, value| at_least(option, value, 1))?;
        match (self.soft_punish_cache, self.max_completion_len) {
            (Some(cache), Some(most)) if cache > most => Err(Violation::new(
                "soft_punish_cache",
                format!("is {cache}, but must not exceed --max_completion_len, which is {most}"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> RewardOptions {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            rewards: RewardOptions,
        }
        <Line as clap::Parser>::try_parse_from(["test"].iter().chain(words)).unwrap().rewards
    }

    #[test]
    fn a_command_has_the_name_before_the_first_sign() {
        let options =
            parse(&["--reward_command", "a_1=x --y=2, z", "python3 f.py --k=v", "--reward_command", "b=c=d"]);
        let commands: Vec<_> = options.commands().collect();
        assert_eq!(commands, [("a_1", "x --y=2, z"), (COMMAND, "python3 f.py --k=v"), ("b", "c=d")]);
        assert!(options.check().is_ok());
    }

    #[test]
    fn what_is_not_given_follows_from_the_longest_completion() {
        let mut options = parse(&["--reward_command", "mine=x", "other=y"]);
        let mut names = vec!["other".to_owned(), "format".to_owned()];
        options.resolve(100, &mut names);
        assert_eq!(names, ["other", "format", "mine"]);
        let lengths = (options.cosine_max_len, options.max_completion_len, options.soft_punish_cache);
        assert_eq!(lengths, (Some(100), Some(100), Some(25)));
        let mut given = parse(&["--max_completion_len", "80", "--cosine_max_len", "7"]);
        given.resolve(100, &mut names);
        let lengths = (given.cosine_max_len, given.max_completion_len, given.soft_punish_cache);
        assert_eq!(lengths, (Some(7), Some(80), Some(20)));
    }

    #[test]
    fn case_78_reward_options_out_of_range_are_refused() {
        for (words, message) in [
            (&["--reward_command", "a="][..], "is 'a=', which has no command: give NAME=COMMAND"),
            (
                &["--reward_command", "x y", "z"],
                "gives the reward command twice: give each a name of its own, NAME=COMMAND",
            ),
            (
                &["--reward_command", "my-reward=python3 x.py"],
                "names a reward 'my-reward': a name has letters, digits and _ only, and no digit first",
            ),
            (&["--reward_timeout", "0"], "is 0, but must be a finite number above 0"),
            (&["--reward_timeout", "1e9"], "is 1000000000, but must be at most 1000000"),
            (&["--cosine_max_value_wrong", "nan"], "is NaN, but must be from -1000000 to 1000000"),
            (&["--repetition_max_penalty", "1"], "is 1, but a penalty must be at most 0"),
            (&["--repetition_n_grams", "0"], "is 0, but must be from 1 to 1000"),
            (&["--cosine_max_len", "0"], "is 0, but must be at least 1"),
            (
                &["--max_completion_len", "5", "--soft_punish_cache", "6"],
                "is 6, but must not exceed --max_completion_len, which is 5",
            ),
        ] {
            assert_eq!(parse(words).check().unwrap_err().message, message);
        }
    }
}
