//! Launch of `kernels/group_advantage.cu`.

use super::ScaleRewards;
use crate::cuda::kernels::group_advantage as kernels;
use crate::cuda::{Buffer, Grid, Purpose};
use crate::error::{Error, Result};
use crate::ops::Cost;

/// Threads of the one block (the kernel's launch bounds).
const THREADS: u32 = 256;

/// Operations and bytes of the advantages of n completions, by group.
pub fn cost(n: usize) -> Cost {
    Cost { flops: 6 * n as u64, bytes: 12 * n as u64 }
}

/// [`group_advantages`](super::group_advantages) of rewards in device memory, in one launch: `[P * G]`, groups contiguous, NaN for a
/// completion that nobody scored. Infinite rewards, which the host refuses, give NaN.
///
/// With `scale` group and none the bits are those of the CPU; with batch the deviation is summed in another order, in f64 too.
///
/// # Errors
/// [`Error::Internal`] if the rewards do not divide into groups; those of allocating and launching.
pub fn group_advantages(
    rewards_pg: &Buffer<f64>,
    group_size: usize,
    scale: ScaleRewards,
) -> Result<Buffer<f32>> {
    let n = rewards_pg.len();
    let sizes = i32::try_from(n).ok().filter(|_| group_size > 0 && n.is_multiple_of(group_size));
    let Some(n_int) = sizes else {
        return Err(Error::Internal(format!("{n} rewards do not divide into groups of {group_size}")));
    };
    let scale = match scale {
        ScaleRewards::None => 0,
        ScaleRewards::Group => 1,
        ScaleRewards::Batch => 2,
    };
    let gpu = rewards_pg.gpu();
    let mut advantages_pg = gpu.alloc::<f32>(n, Purpose::Inputs)?;
    let (size, grid) = (group_size as i32, Grid::new(1, THREADS)?);
    let groups = n_int.checked_div(size).unwrap_or(0);
    // SAFETY: both hold groups * size elements.
    unsafe {
        kernels::group_advantage_forward_f32(
            gpu,
            grid,
            rewards_pg.ptr(),
            advantages_pg.ptr_mut(),
            groups,
            size,
            scale,
        )?;
    }
    Ok(advantages_pg)
}
