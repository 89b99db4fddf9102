//! How far from the reference each kind of tensor may be.
//!
//! Two correct f32 programs differ by rounding alone; the limits below are about ten times what such programs were
//! measured to differ by on small models, and below what the subtlest bugs do (a tanh GELU in the merger moves logits by
//! 4.5e-4, an epsilon ten times too large by 3.1e-4). For larger models the reference records its own rounding as
//! `noise.<key>`, the largest difference between its f32 and f64 results; four times that is allowed where it is more.
//!
//! | tensors | f32 | bf16 |
//! |---|---|---|
//! | ids, positions, grids, masks, lengths | exact | exact |
//! | pixels of lossless images | exact | exact |
//! | pixels of JPEG and lossy WebP | 2 levels on 99.5 % of the bytes, 16 on all | the same |
//! | `pixel_values` | 1e-6 | 1e-6 |
//! | vision outputs, hidden states, logits, greedy margins | 5e-5 | l2 0.1 |
//! | log-probabilities | 3e-5 | 0.15 |
//! | gradients and their norms | 1e-4 of the largest entry | l2 0.3, norms 0.1 of the value |
//! | losses, mean KL | 1e-5 | 0.05 |
//! | clipped share | 1e-5 | 0.25 |
//! | advantages | 1e-5 | 1e-5 |
//! | `train.losses` | 1e-4 | 0.1 |
//!
//! `pixel_values` have two roundings after the bytes (scaling, and one division; values up to 2.7, unit in the last
//! place 2.4e-7), and one grey level moves them by at least 1.4e-2: 1e-6 means equal bytes.
//!
//! "l2" is the Euclidean norm of the difference over that of the expected tensor: bf16 has 8 bits of precision, so that
//! single entries far below the largest one carry none. `completion_logps_bf16compute` compares two bf16 programs, whose
//! roundings fall in different places: 0.15 as any bf16 log-probability. The other bf16 limits are some ten times what was
//! measured on small models (hidden states 0.01, gradients 0.03, losses 0.006, training losses 0.02, norms 0.006).

use super::bundle::{Bundle, Expected, Stored};
use super::compare::Bound;
use crate::error::Result;
use crate::tensor::DType;

/// Times the reference's own noise.
const NOISE_FACTOR: f64 = 4.0;

/// A limit before the expected values are known.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    MaxAbs(f64),
    /// Times the largest expected entry.
    OfLargest(f64),
    RelativeL2(f64),
}

/// The bound of a key.
///
/// # Errors
/// Those of [`Bundle::noise`].
pub(super) fn bound(key: &str, dtype: DType, expected: &Expected, bundle: &Bundle) -> Result<Bound> {
    if let Some(image) = key.strip_prefix("decoded.") {
        return Ok(if super::images::is_lossy_file(bundle, image)? {
            Bound::LossyImage
        } else {
            Bound::Exact
        });
    }
    let Stored::Floats(_) = expected.values else { return Ok(Bound::Exact) };
    let allowed = match limit(key, dtype) {
        Limit::MaxAbs(limit) => limit,
        Limit::OfLargest(factor) => factor * expected.values.largest(),
        Limit::RelativeL2(limit) => return Ok(Bound::RelativeL2(limit)),
    };
    Ok(Bound::MaxAbs(allowed.max(noise_limit(key, bundle)?)))
}

/// What the reference's own rounding allows; 0 if it is not recorded.
///
/// Greedy scores have no noise of their own; theirs is that of the example's logits (two of them in a margin) and
/// log-probabilities.
fn noise_limit(key: &str, bundle: &Bundle) -> Result<f64> {
    if let Some(noise) = bundle.noise(key)? {
        return Ok(NOISE_FACTOR * noise);
    }
    let (like, count) = match key.split_once(".gen_") {
        Some((example, rest)) if rest.starts_with("margin") => (format!("{example}.logits"), 2.0),
        Some((example, rest)) if rest.starts_with("logps") => (format!("{example}.completion_logps"), 1.0),
        _ => return Ok(0.0),
    };
    Ok(bundle.noise(&like)?.map_or(0.0, |noise| NOISE_FACTOR * count * noise))
}

/// The table of the module.
fn limit(key: &str, dtype: DType) -> Limit {
    let bf16 = dtype == DType::Bf16;
    let choose = |f32_limit, bf16_limit| if bf16 { bf16_limit } else { f32_limit };
    let name = key.strip_prefix("grpo_e2e.").unwrap_or(key);
    if name.starts_with("grad.") {
        return choose(Limit::OfLargest(1e-4), Limit::RelativeL2(0.3));
    }
    match name.rsplit('.').next().unwrap_or_default() {
        "pixel_values" => Limit::MaxAbs(1e-6),
        "completion_logps_bf16compute" => Limit::MaxAbs(0.15),
        "completion_logps" | "logps" => choose(Limit::MaxAbs(3e-5), Limit::MaxAbs(0.15)),
        _ if key.contains(".gen_logps") => Limit::MaxAbs(3e-5),
        "grad_norm" | "grad_norms" => choose(Limit::OfLargest(1e-4), Limit::OfLargest(0.1)),
        "losses" => choose(Limit::MaxAbs(1e-4), Limit::MaxAbs(0.1)),
        "clip_frac" => choose(Limit::MaxAbs(1e-5), Limit::MaxAbs(0.25)),
        "loss" | "kl_mean" => choose(Limit::MaxAbs(1e-5), Limit::MaxAbs(0.05)),
        "advantages" => Limit::MaxAbs(1e-5),
        // vision_pre_merger, vision_out, final_hidden, logits, logits_all, gen_margin
        _ => choose(Limit::MaxAbs(5e-5), Limit::RelativeL2(0.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_has_its_limit() {
        for (key, want) in [
            ("ex0.pixel_values", Limit::MaxAbs(1e-6)),
            ("ex12.vision_pre_merger", Limit::MaxAbs(5e-5)),
            ("ex0.logits_all", Limit::MaxAbs(5e-5)),
            ("ex0.gen_margin_rep1.3", Limit::MaxAbs(5e-5)),
            ("ex0.gen_logps_rep1.3", Limit::MaxAbs(3e-5)),
            ("ex0.completion_logps", Limit::MaxAbs(3e-5)),
            ("ex0.completion_logps_bf16compute", Limit::MaxAbs(0.15)),
            ("batch.logps", Limit::MaxAbs(3e-5)),
            ("grpo_e2e.logps", Limit::MaxAbs(3e-5)),
            ("grad.visual.merger.ln_q.bias", Limit::OfLargest(1e-4)),
            ("grpo_e2e.grad.model.norm.weight", Limit::OfLargest(1e-4)),
            ("grad_norm", Limit::OfLargest(1e-4)),
            ("train.losses", Limit::MaxAbs(1e-4)),
            ("loss", Limit::MaxAbs(1e-5)),
            ("grpo_e2e.loss", Limit::MaxAbs(1e-5)),
        ] {
            assert_eq!(limit(key, DType::F32), want, "{key}");
        }
        assert_eq!(limit("batch.logps", DType::Bf16), Limit::MaxAbs(0.15));
        assert_eq!(limit("grad.lm_head.weight", DType::Bf16), Limit::RelativeL2(0.3));
    }
}
