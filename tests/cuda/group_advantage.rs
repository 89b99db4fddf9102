//! Advantages against `othink::advantage`.

use crate::harness::gpu;
use othink::advantage::{Advantages, ScaleRewards, cuda, group_advantages, group_advantages_on};
use othink::cuda::Purpose;
use othink::error::Result;
use othink::tensor::Device;

const SCALES: [ScaleRewards; 3] = [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None];
const NAN: f64 = f64::NAN;

/// The bits of the CPU; one unit in the last place where the batch's deviation divides.
fn check(rewards: &[f64], group_size: usize) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let on_device = gpu.upload(rewards, Purpose::Inputs)?;
    for scale in SCALES {
        let host = group_advantages(rewards, group_size, scale)?;
        let (want, got) =
            (&host.advantages_pg, cuda::group_advantages(&on_device, group_size, scale)?.download()?);
        let both = group_advantages_on(&Device::Cuda(gpu.clone()), rewards, group_size, scale)?;
        assert_eq!(both, Advantages { advantages_pg: got.clone(), ..host.clone() });
        let units = i32::from(scale == ScaleRewards::Batch);
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let apart = (got.to_bits() as i32).abs_diff(want.to_bits() as i32) as i32;
            assert!(apart <= units, "{scale:?}, completion {i} of {rewards:?}: {got:?}, CPU {want:?}");
        }
    }
    Ok(())
}

#[test]
fn by_hand() -> Result<()> {
    check(&[1.0, 0.0, 0.0, 1.0], 4)?;
    check(&[0.0, 1.0, 2.0, 5.0], 2)?;
    check(&[-3.5, 2.0, 0.25], 3)?;
    check(&[1.0], 1)?;
    check(&[], 8)
}

/// Equal rewards give 0 exactly, whatever the residue of their mean; so does a group that can't be judged.
#[test]
fn equal_and_unscored_rewards() -> Result<()> {
    check(&[0.1; 7], 7)?;
    check(&[-0.1, -0.1, -0.1, 0.1, 0.3, 0.7], 3)?;
    check(&[1.0, NAN, 0.0, 0.0], 4)?;
    check(&[NAN; 4], 4)?;
    check(&[NAN, 3.0, 1.0, 2.0, 0.5, 0.5], 2)?;
    check(&[NAN, NAN, 1.0, 4.0], 2)?;
    let Some(gpu) = gpu() else { return Ok(()) };
    let rewards = gpu.upload(&[0.1; 21], Purpose::Inputs)?;
    for scale in SCALES {
        assert_eq!(cuda::group_advantages(&rewards, 7, scale)?.download()?, [0.0; 21]);
    }
    Ok(())
}

/// More groups than threads, groups of many sizes, rewards that no f64 sums exactly, some not scored, some groups constant.
#[test]
fn many_groups() -> Result<()> {
    for (groups, size) in [(257, 2), (300, 5), (8, 64), (3, 17)] {
        let reward = |i: usize| match (i * 7919) % 23 {
            0 => NAN,
            n if (i / size) % 5 == 3 => 0.3 + 0.0 * n as f64,
            n => (n as f64 * 0.37).sin() + 0.1 * (i / size % 7) as f64,
        };
        check(&(0..groups * size).map(reward).collect::<Vec<_>>(), size)?;
    }
    Ok(())
}

#[test]
fn refuses_what_does_not_divide() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let rewards = gpu.upload(&[1.0; 5], Purpose::Inputs)?;
    assert!(cuda::group_advantages(&rewards, 2, ScaleRewards::Group).is_err());
    assert!(cuda::group_advantages(&rewards, 0, ScaleRewards::Group).is_err());
    Ok(())
}

/// A group has the same bits alone and in a batch, where the batch has no say.
#[test]
fn a_group_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (groups, size) = (40, 9);
    let rewards: Vec<f64> = (0..groups * size).map(|i| (i as f64 * 0.7).sin() + (i / size) as f64).collect();
    let advantages = |rewards: &[f64], scale| -> Result<Vec<u32>> {
        let found = cuda::group_advantages(&gpu.upload(rewards, Purpose::Inputs)?, size, scale)?;
        Ok(found.download()?.iter().map(|x| x.to_bits()).collect())
    };
    for scale in [ScaleRewards::Group, ScaleRewards::None] {
        let all = advantages(&rewards, scale)?;
        for group in 0..groups {
            let own = group * size..(group + 1) * size;
            assert_eq!(advantages(&rewards[own.clone()], scale)?, all[own], "{scale:?}, group {group}");
        }
    }
    Ok(())
}
