//! Comparison with the reference: every number of a bundle, computed here.
//!
//! A [`Bundle`] holds what Hugging Face transformers computes of a checkpoint (`tools/reference/README.md` lists the
//! keys). [`run`] computes the same from the checkpoint and the bundle's messages and images, through the code that
//! trains and generates: processor, packed forward pass, [`Engine`](crate::rollout::Engine), loss, backward pass,
//! AdamW. One [`Row`] per tensor tells how far apart the two are.
//!
//! Expected values are read to be compared. What enters the computation are the inputs among the keys, which have no
//! other source: rewards, old and reference log-probabilities of the GRPO case, and the decoded pixels of images whose
//! format is lossy (decoders differ by a grey level; [`images`] compares ours with them). Of the greedy sequences the
//! length is taken, because the reference cuts them where its own two best scores nearly tie.

pub mod bundle;
pub mod compare;
mod examples;
mod greedy;
mod grpo;
pub mod images;
pub mod limits;
mod supervised;

use crate::error::{Error, Result};
use crate::nn::Params;
use crate::report::Progress;
use crate::tensor::{DType, Placement};
use crate::train::policy::Policy;
use bundle::Bundle;
use compare::{Row, Values, Verdict, compare};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Parameters (elements) above which layers are recomputed and examples go through the model one by one.
pub const LARGE: usize = 100_000_000;

/// One computed tensor, under the bundle's key.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// The key.
    pub key: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Values,
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// One row per key of the bundle, in the order of the computation; keys that nothing computes come last.
    pub rows: Vec<Row>,
    /// What was computed, if it was to be kept.
    pub computed: Vec<Computed>,
}

/// Computes every key of `bundle` from `policy`, whose weights are f32 in host memory, on the placement's device, and compares.
///
/// With the placement's type bf16 weights and activations are bf16, under the wider limits of [`limits`]. Skipped then are greedy
/// sequences, because another token may win, and gradients of the GRPO case, because a ratio near the clip range may fall
/// on its other side, and with it a token out of the gradient. `keep` keeps the computed tensors. `progress` advances by
/// [`Bundle::stages`].
///
/// # Errors
/// Those of the bundle's files and images; [`Error::Protect`] where the model's numbers overflow. A value that differs
/// is no error but a row.
pub fn run(
    policy: &Policy,
    bundle: &Bundle,
    placement: &Placement,
    keep: bool,
    progress: &Progress,
) -> Result<Outcome> {
    let (params, dtype) = (Arc::new(policy.params.placed(placement)?), placement.dtype);
    let large = policy.params.count().0 > LARGE;
    let context = Context { policy, params, bundle, placement, dtype, large };
    let mut sink = Sink { bundle, dtype, keep, seen: BTreeSet::new(), outcome: Outcome::default() };
    images::check(&mut sink)?;
    let examples = (0..bundle.examples().len()).map(|i| context.encode(i)).collect::<Result<Vec<_>>>()?;
    progress.advance(1);
    for (i, example) in examples.iter().enumerate() {
        context.example(i, example, &mut sink)?;
        progress.advance(1);
    }
    context.bf16_log_probs(&examples, &mut sink)?;
    context.batch(&examples, &mut sink)?;
    progress.advance(1);
    context.grpo(&examples, &mut sink)?;
    progress.advance(1);
    context.train(&examples, &mut sink)?;
    progress.advance(1);
    sink.finish()
}

/// What every stage works with.
struct Context<'a> {
    policy: &'a Policy,
    /// The weights in the arithmetic asked for.
    params: Arc<Params>,
    bundle: &'a Bundle,
    placement: &'a Placement,
    dtype: DType,
    large: bool,
}

/// Takes computed tensors, and makes rows of those that the bundle holds.
struct Sink<'a> {
    bundle: &'a Bundle,
    dtype: DType,
    keep: bool,
    seen: BTreeSet<String>,
    outcome: Outcome,
}

impl Sink<'_> {
    /// Whether the bundle holds the key.
    fn wants(&self, key: &str) -> bool {
        self.bundle.has(key)
    }

    /// Whether the bundle holds a key that starts so.
    fn wants_any(&self, prefix: &str) -> bool {
        self.bundle.keys().any(|key| key.starts_with(prefix))
    }

    /// Compares one tensor, if the bundle holds its key.
    fn emit(&mut self, key: &str, shape: &[usize], values: Values) -> Result<()> {
        let Some(expected) = self.bundle.read(key)? else { return Ok(()) };
        let bound = limits::bound(key, self.dtype, &expected, self.bundle)?;
        let row = compare(key, &expected, shape, &values, bound);
        self.push(row);
        if self.keep {
            self.outcome.computed.push(Computed { key: key.to_owned(), shape: shape.to_vec(), values });
        }
        Ok(())
    }

    /// Notes an input that was used as the bundle gives it.
    fn given(&mut self, key: &str, shape: &[usize], values: &[f32]) {
        self.push(Row {
            key: key.to_owned(),
            shape: shape.to_vec(),
            measured: None,
            verdict: Verdict::Given,
        });
        if self.keep {
            let values = Values::F32(values.to_vec());
            self.outcome.computed.push(Computed { key: key.to_owned(), shape: shape.to_vec(), values });
        }
    }

    fn push(&mut self, row: Row) {
        self.seen.insert(row.key.clone());
        self.outcome.rows.push(row);
    }

    /// Adds the keys that nothing has computed: some are skipped in bf16, all others fail.
    fn finish(mut self) -> Result<Outcome> {
        let left: Vec<String> =
            self.bundle.keys().filter(|key| !self.seen.contains(*key)).map(str::to_owned).collect();
        for key in left {
            let verdict = match self.dtype {
                DType::Bf16 if greedy::is_greedy(&key) || grpo::is_gradient(&key) => {
                    Verdict::Skipped("in bfloat16")
                }
                _ => Verdict::Fail(format!("unknown key{}", self.reason(&key))),
            };
            let shape = self.bundle.shape(&key).unwrap_or_default().to_vec();
            self.outcome.rows.push(Row { key, shape, measured: None, verdict });
        }
        Ok(self.outcome)
    }

    /// Why a key of a known kind was not computed.
    fn reason(&self, key: &str) -> String {
        let examples = self.bundle.examples().len();
        let index = key.strip_prefix("ex").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        if index.is_some_and(|i| i >= examples) {
            return format!(": inputs.json has {examples} examples");
        }
        let parameter = key.strip_prefix("grpo_e2e.").unwrap_or(key).strip_prefix("grad.");
        if parameter.is_some() {
            return ": the model has no such parameter".to_owned();
        }
        if key.starts_with("decoded.") {
            return ": no example has this image".to_owned();
        }
        String::new()
    }
}

/// Fails where a size of the bundle does not fit the 32-bit integers that its tensors hold.
fn to_i32(value: usize) -> Result<i32> {
    i32::try_from(value)
        .map_err(|_| Error::Input(format!("{value} does not fit the bundle's 32-bit integers")))
}

/// Token ids as the bundle stores them.
fn ids_i32(ids: &[u32]) -> Result<Vec<i32>> {
    ids.iter().map(|&id| to_i32(id as usize)).collect()
}
