//! Named prompt templates: what is said around a dataset's question.

use std::fmt;
use std::str::FromStr;

use super::nearest;
use crate::error::{Error, Result};

/// The user's words around the `problem` column.
///
/// The texts are R1-V's, word for word (Deep-Agent/R1-V, `grpo.py` and its two evaluation
/// scripts): the training one has two spaces before `Output`, and training and evaluation
/// differ in R1-V itself; and VLM-R1's (om-ai-lab/VLM-R1, `qwen_module.py`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptTemplate {
    /// R1-V's training prompt. Name: `r1v`.
    #[default]
    R1v,
    /// R1-V's SuperCLEVR (counting) evaluation prompt. Name: `r1v_superclevr`.
    R1vSuperclevr,
    /// R1-V's GeoQA (geometry) evaluation prompt. Name: `r1v_geoqa`.
    R1vGeoqa,
    /// VLM-R1's prompt. Name: `vlm_r1`.
    VlmR1,
    /// VLM-R1's prompt for referring expressions, whose answers are boxes. Name: `vlm_r1_rec`.
    VlmR1Rec,
    /// The question as it is. Name: `none`.
    None,
}

impl PromptTemplate {
    /// Every template, in the order of the documentation.
    pub const ALL: [PromptTemplate; 6] = [
        PromptTemplate::R1v,
        PromptTemplate::R1vSuperclevr,
        PromptTemplate::R1vGeoqa,
        PromptTemplate::VlmR1,
        PromptTemplate::VlmR1Rec,
        PromptTemplate::None,
    ];

    /// The name used in options and config files.
    pub fn name(self) -> &'static str {
        match self {
            PromptTemplate::R1v => "r1v",
            PromptTemplate::R1vSuperclevr => "r1v_superclevr",
            PromptTemplate::R1vGeoqa => "r1v_geoqa",
            PromptTemplate::VlmR1 => "vlm_r1",
            PromptTemplate::VlmR1Rec => "vlm_r1_rec",
            PromptTemplate::None => "none",
        }
    }

    /// The user's text for `question`.
    pub fn apply(self, question: &str) -> String {
        match self {
            PromptTemplate::R1v => format!(
                "{question}  Output the thinking process in <think> </think> and final answer (number) in \
                 <answer> </answer> tags."
            ),
            PromptTemplate::R1vSuperclevr => format!(
                "{question} First output the thinking process in <think> </think> and final answer (number) in \
                 <answer> </answer> tags."
            ),
            PromptTemplate::R1vGeoqa => format!(
                "{question} Output the thinking process in <think> </think> and final answer (number) in \
                 <answer> </answer> tags."
            ),
            PromptTemplate::VlmR1 => format!(
                "{question} First output the thinking process in <think> </think> tags and then output the final \
                 answer in <answer> </answer> tags."
            ),
            PromptTemplate::VlmR1Rec => {
                format!("{} Output the final answer in JSON format.", PromptTemplate::VlmR1.apply(question))
            }
            PromptTemplate::None => question.to_string(),
        }
    }
}

impl fmt::Display for PromptTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PromptTemplate {
    type Err = Error;

    /// `Usage` with the nearest name when `name` is unknown; `-` and `_` are alike.
    fn from_str(name: &str) -> Result<Self> {
        let wanted = name.replace('-', "_");
        if let Some(found) = Self::ALL.into_iter().find(|t| t.name() == wanted) {
            return Ok(found);
        }
        let names = Self::ALL.map(Self::name);
        let hint = nearest(name, names).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
        Err(Error::Usage(format!("unknown prompt template `{name}`{hint} (known: {})", names.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_r1vs_and_vlm_r1s_word_for_word() {
        let q = "How many items are there in the image?";
        assert_eq!(
            PromptTemplate::R1v.apply(q),
            "How many items are there in the image?  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
        );
        assert_eq!(
            PromptTemplate::R1vSuperclevr.apply(q),
            "How many items are there in the image? First output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
        );
        assert_eq!(
            PromptTemplate::R1vGeoqa.apply(q),
            "How many items are there in the image? Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
        );
        assert_eq!(
            PromptTemplate::VlmR1Rec.apply("Where is it?"),
            "Where is it? First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> tags. Output the final answer in JSON format."
        );
        assert_eq!(PromptTemplate::None.apply(q), q);
    }

    #[test]
    fn names_round_trip_and_typos_are_met() {
        for t in PromptTemplate::ALL {
            assert_eq!(t.name().parse::<PromptTemplate>().unwrap(), t);
        }
        assert_eq!("r1v-geoqa".parse::<PromptTemplate>().unwrap(), PromptTemplate::R1vGeoqa);
        let message = "r1v_superclever".parse::<PromptTemplate>().unwrap_err().to_string();
        assert!(message.contains("did you mean `r1v_superclevr`?"), "{message}");
    }
}
