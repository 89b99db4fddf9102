//! Rewards of one generation batch to advantages, relative to the group.
//!
//! Equation 2 of OThink-MR1 (arXiv 2503.16081), as TRL 1.16 computes it:
//!
//! ```text
//! A_i = (r_i - mean(r)) / (std(r) + 1e-4)
//! ```
//!
//! over the `G` completions of one prompt, with Bessel's correction in the standard
//! deviation. Everything is computed in f64 and rounded to f32 once.
//!
//! Two rules beyond the formula:
//! * A group whose rewards are all equal has advantage 0 *exactly*: the residue of a
//!   rounded mean, divided by 1e-4, must not move the policy.
//! * A reward of NaN means "not scored". It is left out of mean and deviation, and its own
//!   advantage is 0. A group with fewer than two scored completions has advantage 0.

#[allow(unsafe_code)]
pub mod cuda;

use crate::cuda::Purpose;
use crate::error::{Error, Result};
use crate::tensor::Device;

/// Added to the standard deviation before the division, as in TRL.
const STD_EPSILON: f64 = 1e-4;

pub use crate::config::ScaleRewards;

/// Reward statistics of one group, over its scored completions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupStats {
    /// Completions with a reward that is not NaN.
    pub scored: usize,
    /// Mean reward; none when nothing was scored.
    pub mean: Option<f64>,
    /// Standard deviation with Bessel's correction; none when fewer than two were scored.
    pub std: Option<f64>,
    /// Whether all scored rewards are the same number.
    pub is_constant: bool,
}

/// Advantages of a batch and the statistics that are logged with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// One per completion, `[P * G]`, groups contiguous.
    pub advantages_pg: Vec<f32>,
    /// One per prompt, `[P]`.
    pub groups_p: Vec<GroupStats>,
    /// Metric `reward`: mean over all scored completions; none when nothing was scored.
    pub reward: Option<f64>,
    /// Metric `reward_std`: Bessel-corrected deviation over all scored completions of the batch.
    pub reward_std: Option<f64>,
    /// Metric `frac_reward_zero_std`: the share of groups whose rewards are all equal. As in
    /// TRL, a group that could not be judged (fewer than two scored) does not count as such.
    /// Unlike TRL it means the groups under every `scale_rewards`.
    pub frac_reward_zero_std: f64,
}

/// Advantages of `P` groups of `group_size` completions each.
///
/// `rewards_pg` has shape `[P * G]`, groups contiguous; NaN marks a completion that no reward
/// function scored.
///
/// # Errors
/// [`Error::Internal`] if the rewards do not divide into groups; [`Error::Input`] if a reward
/// is infinite, which no scaling can make sense of.
pub fn group_advantages(rewards_pg: &[f64], group_size: usize, scale: ScaleRewards) -> Result<Advantages> {
    if group_size == 0 || !rewards_pg.len().is_multiple_of(group_size) {
        return Err(Error::Internal(format!(
            "{} rewards do not divide into groups of {group_size}",
            rewards_pg.len()
        )));
    }
    if let Some(i) = rewards_pg.iter().position(|r| r.is_infinite()) {
        return Err(Error::Input(format!(
            "the reward of completion {} of prompt {} is infinite; reward functions must return finite numbers",
            i % group_size,
            i / group_size
        )));
    }
    let batch = stats(rewards_pg);
    let groups_p: Vec<GroupStats> = rewards_pg.chunks_exact(group_size).map(stats).collect();
    let mut advantages_pg = Vec::with_capacity(rewards_pg.len());
    for (rewards_g, group) in rewards_pg.chunks_exact(group_size).zip(&groups_p) {
        let divisor = match scale {
            ScaleRewards::Group => group.std.map(|std| std + STD_EPSILON),
            ScaleRewards::Batch => batch.std.map(|std| std + STD_EPSILON),
            ScaleRewards::None => Some(1.0),
        };
        advantages_pg.extend(rewards_g.iter().map(|&r| match (group.mean, divisor) {
            (Some(mean), Some(divisor)) if !group.is_constant && !r.is_nan() => ((r - mean) / divisor) as f32,
            _ => 0.0,
        }));
    }
    // A group of one (evaluation) is constant by nature.
    let judged = |group: &&GroupStats| group.is_constant && group.scored >= group_size.min(2);
    let constant = groups_p.iter().filter(judged).count();
    Ok(Advantages {
        advantages_pg,
        reward: batch.mean,
        reward_std: batch.std,
        frac_reward_zero_std: constant as f64 / groups_p.len().max(1) as f64,
        groups_p,
    })
}

/// [`group_advantages`] with the advantages themselves computed on `device`; the statistics are the host's.
///
/// # Errors
/// Those of [`group_advantages`], of allocating and launching.
pub fn group_advantages_on(
    device: &Device,
    rewards_pg: &[f64],
    group_size: usize,
    scale: ScaleRewards,
) -> Result<Advantages> {
    let mut all = group_advantages(rewards_pg, group_size, scale)?;
    if let Device::Cuda(gpu) = device {
        let rewards_pg = gpu.upload(rewards_pg, Purpose::Inputs)?;
        all.advantages_pg = cuda::group_advantages(&rewards_pg, group_size, scale)?.download()?;
    }
    Ok(all)
}

/// Mean and deviation of the rewards that are not NaN.
fn stats(rewards: &[f64]) -> GroupStats {
    let scored = || rewards.iter().copied().filter(|r| !r.is_nan());
    let n = scored().count();
    let mean = (n > 0).then(|| scored().sum::<f64>() / n as f64);
    let std = match mean {
        Some(mean) if n > 1 => {
            Some((scored().map(|r| (r - mean) * (r - mean)).sum::<f64>() / (n - 1) as f64).sqrt())
        }
        _ => None,
    };
    let is_constant = match scored().next() {
        Some(first) => scored().all(|r| r == first),
        None => false,
    };
    // The deviation of equal numbers is 0, not the rounding of their mean.
    let std = std.map(|std| if is_constant { 0.0 } else { std });
    GroupStats { scored: n, mean, std, is_constant }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAN: f64 = f64::NAN;

    fn advantages(rewards: &[f64], group_size: usize, scale: ScaleRewards) -> Vec<f32> {
        group_advantages(rewards, group_size, scale).unwrap().advantages_pg
    }

    #[test]
    fn hand_computed_group() {
        // mean 0.5, squared deviations 4 * 0.25 over 3: std = sqrt(1/3).
        let a = 0.5 / ((1.0f64 / 3.0).sqrt() + 1e-4);
        let got = advantages(&[1.0, 0.0, 0.0, 1.0], 4, ScaleRewards::Group);
        assert_eq!(got, [a as f32, -a as f32, -a as f32, a as f32]);
        assert_eq!(advantages(&[1.0, 0.0, 0.0, 1.0], 4, ScaleRewards::None), [0.5, -0.5, -0.5, 0.5]);
    }

    #[test]
    fn batch_scale_keeps_group_means() {
        // [0, 1 | 2, 5]: group means 0.5 and 3.5; batch mean 2, sum of squares 14 over 3.
        let std = (14.0f64 / 3.0).sqrt() + 1e-4;
        let want = [-0.5, 0.5, -1.5, 1.5].map(|d| (d / std) as f32);
        assert_eq!(advantages(&[0.0, 1.0, 2.0, 5.0], 2, ScaleRewards::Batch), want);
    }

    #[test]
    fn case_45_equal_rewards_give_exactly_zero() {
        // The mean of seven 0.1 is not 0.1 in f64: without the rule the residue would be seen.
        let rewards = [0.1; 7];
        assert_ne!(rewards.iter().sum::<f64>() / 7.0, 0.1);
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            assert_eq!(advantages(&rewards, 7, scale), [0.0; 7]);
        }
        let got = group_advantages(&[0.1, 0.1, 0.3, 0.4], 2, ScaleRewards::Batch).unwrap();
        assert_eq!(got.advantages_pg[..2], [0.0, 0.0]);
        assert_eq!(got.frac_reward_zero_std, 0.5);
        assert_eq!(got.groups_p[0].std, Some(0.0));
    }

    #[test]
    fn unscored_completions_are_left_out() {
        let with = group_advantages(&[1.0, NAN, 0.0, 0.0], 4, ScaleRewards::Group).unwrap();
        let without = advantages(&[1.0, 0.0, 0.0], 3, ScaleRewards::Group);
        assert_eq!(with.advantages_pg, [without[0], 0.0, without[1], without[2]]);
        assert_eq!(with.groups_p[0].scored, 3);

        let none = group_advantages(&[NAN; 4], 4, ScaleRewards::Group).unwrap();
        assert_eq!(none.advantages_pg, [0.0; 4]);
        assert_eq!((none.reward, none.reward_std, none.frac_reward_zero_std), (None, None, 0.0));

        let one = group_advantages(&[NAN, 3.0], 2, ScaleRewards::Group).unwrap();
        assert_eq!(one.advantages_pg, [0.0; 2]);
        assert_eq!(one.frac_reward_zero_std, 0.0);
    }

    #[test]
    fn refuses_what_it_cannot_group_or_scale() {
        assert!(matches!(group_advantages(&[1.0; 5], 2, ScaleRewards::Group), Err(Error::Internal(_))));
        assert!(matches!(group_advantages(&[1.0], 0, ScaleRewards::Group), Err(Error::Internal(_))));
        let error = group_advantages(&[1.0, 0.0, f64::INFINITY, 0.0], 2, ScaleRewards::Group).unwrap_err();
        assert!(error.to_string().contains("completion 0 of prompt 1"), "{error}");
    }

    /// TRL's own `_generate_and_score_completions` on preset rewards (`tools/reference/make_trl_golden.py`).
    #[test]
    fn equals_trl() {
        #[derive(serde::Deserialize)]
        struct Case {
            name: String,
            scale_rewards: ScaleRewards,
            num_generations: usize,
            rewards: Vec<Option<f64>>,
            advantages: Vec<f64>,
            reward: Option<f64>,
            reward_std: Option<f64>,
            frac_reward_zero_std: Option<f64>,
        }
        let near = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs().max(1.0),
            (a, b) => a == b,
        };
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../tests/golden/trl_advantages.json")).unwrap();
        assert!(cases.len() >= 12);
        for case in cases {
            let rewards: Vec<f64> = case.rewards.iter().map(|r| r.unwrap_or(NAN)).collect();
            let got = group_advantages(&rewards, case.num_generations, case.scale_rewards).unwrap();
            for (i, (&a, &want)) in got.advantages_pg.iter().zip(&case.advantages).enumerate() {
                assert!(near(Some(f64::from(a)), Some(want)), "{} [{i}]: {a}, TRL {want}", case.name);
            }
            assert!(near(got.reward, case.reward), "{}: {:?}, TRL {:?}", case.name, got.reward, case.reward);
            assert!(near(got.reward_std, case.reward_std), "{}: {:?}", case.name, got.reward_std);
            if case.scale_rewards != ScaleRewards::Batch {
                assert_eq!(Some(got.frac_reward_zero_std), case.frac_reward_zero_std, "{}", case.name);
            }
        }
    }

    fn scale() -> impl Strategy<Value = ScaleRewards> {
        prop_oneof![Just(ScaleRewards::Group), Just(ScaleRewards::Batch), Just(ScaleRewards::None)]
    }

    /// Rewards on a grid of 1/8, so shifts and doublings are exact and groups are often constant.
    fn rewards(groups: std::ops::Range<usize>) -> impl Strategy<Value = (usize, Vec<f64>)> {
        (2usize..9, groups).prop_flat_map(|(g, p)| {
            (Just(g), prop::collection::vec((-16i32..17).prop_map(|r| f64::from(r) / 8.0), p * g))
        })
    }

    proptest! {
        #[test]
        fn a_shift_of_all_rewards_changes_nothing((g, r) in rewards(1..5), shift in -64i32..64, scale in scale()) {
            let shifted: Vec<f64> = r.iter().map(|r| r + f64::from(shift)).collect();
            for (a, b) in advantages(&r, g, scale).iter().zip(advantages(&shifted, g, scale)) {
                prop_assert!((a - b).abs() <= 1e-6, "{a} {b}");
            }
        }

        #[test]
        fn a_scale_passes_through_none_and_vanishes_in_group((g, r) in rewards(1..5)) {
            let doubled: Vec<f64> = r.iter().map(|r| r * 2.0).collect();
            for (a, b) in advantages(&r, g, ScaleRewards::None).iter().zip(advantages(&doubled, g, ScaleRewards::None)) {
                prop_assert_eq!(2.0 * a, b);
            }
            // Only the 1e-4 beside the deviation sees the scale: std is at least 1/24 on this grid.
            for (a, b) in advantages(&r, g, ScaleRewards::Group).iter().zip(advantages(&doubled, g, ScaleRewards::Group)) {
                prop_assert!((a - b).abs() <= 2.5e-3 * a.abs(), "{a} {b}");
            }
        }

        #[test]
        fn every_group_sums_to_zero((g, r) in rewards(1..5), scale in scale()) {
            for group in advantages(&r, g, scale).chunks(g) {
                prop_assert!(group.iter().map(|&a| f64::from(a)).sum::<f64>().abs() <= 1e-5);
            }
        }

        #[test]
        fn a_group_does_not_depend_on_its_neighbours((g, r) in rewards(2..5)) {
            prop_assert_eq!(&advantages(&r[..g], g, ScaleRewards::Group), &advantages(&r, g, ScaleRewards::Group)[..g]);
        }
    }
}
