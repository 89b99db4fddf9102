//! Rotary position embedding (Su et al. 2021), in the split-half layout of Hugging Face.
//!
//! Row t, head h, pair (i, i + D/2): `y_i = x_i cos - x_j sin`, `y_j = x_j cos + x_i sin`, with the angle of
//! (t, i) from a table. The backward pass is the rotation by the opposite angle. M-RoPE and the vision tower's
//! two-axis rotation differ only in the table: [`Table::mrope`], [`Table::axial`].

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};
use std::sync::Arc;

/// Cosines and sines `[T, D/2]` in f32.
#[derive(Clone, Debug)]
pub struct Table {
    half: usize,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    on_gpu: Arc<cuda::Angles>,
}

/// `1 / theta^(2 i / dim)` for i in 0 .. dim/2, rounded as torch does it in f32.
fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / dim as f32;
            1.0 / (theta.powf(f64::from(exponent)) as f32)
        })
        .collect()
}

impl Table {
    fn new(half: usize, cos: Vec<f32>, sin: Vec<f32>) -> Table {
        Table { half, cos: cos.into(), sin: sin.into(), on_gpu: Arc::default() }
    }

    fn of_angles(half: usize, angles: impl Iterator<Item = f32>) -> Table {
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|a| (f64::from(a).cos() as f32, f64::from(a).sin() as f32)).unzip();
        Table::new(half, cos, sin)
    }

    /// M-RoPE (Qwen2-VL): frequency i belongs to the time, height or width axis as `sections` cut the first
    /// half of the head dimension; `sections` sum to D/2. `positions_3t` is `[3][T]`.
    pub fn mrope(theta: f64, sections: [usize; 3], positions_3t: &[Vec<i32>; 3]) -> Table {
        let half: usize = sections.iter().sum();
        let frequencies = inverse_frequencies(theta, 2 * half);
        let axis: Vec<usize> = (0..3).flat_map(|a| std::iter::repeat_n(a, sections[a])).collect();
        let rows = positions_3t[0].len();
        Table::of_angles(
            half,
            (0..rows).flat_map(|t| {
                let (axis, frequencies) = (&axis, &frequencies);
                (0..half).map(move |i| positions_3t[axis[i]][t] as f32 * frequencies[i])
            }),
        )
    }

    /// The vision tower's rotation: the first half of the frequencies turn with the patch's row, the second
    /// with its column; `places` are (row, column) per patch.
    pub fn axial(theta: f64, head_dim: usize, places: &[(usize, usize)]) -> Table {
        let frequencies = inverse_frequencies(theta, head_dim / 2);
        Table::of_angles(
            head_dim / 2,
            places.iter().flat_map(|&(row, column)| {
                let frequencies = &frequencies;
                [row, column].into_iter().flat_map(move |p| frequencies.iter().map(move |f| p as f32 * f))
            }),
        )
    }
}

/// Rotates every head of `[T, heads * D]`.
pub struct Rope {
    /// Angles of the rows.
    pub table: Table,
}

impl Rope {
    /// Operations and bytes of rotating `[rows, width]`, forth or back.
    pub fn cost(rows: usize, width: usize, head_dim: usize, dtype: DType) -> Cost {
        let n = rows * width;
        Cost { flops: 3 * n as u64, bytes: (2 * n * dtype.size() + rows * head_dim * 4) as u64 }
    }

    fn rotate(&self, x: &Tensor, forth: bool) -> Result<Tensor> {
        let (rows, width) = x.matrix();
        let half = self.table.half;
        if rows * half != self.table.cos.len() || !width.is_multiple_of(2 * half) {
            return Err(Error::Internal(format!(
                "rope: x {:?} with angles for {} rows of head dimension {}",
                x.shape(),
                self.table.cos.len() / half.max(1),
                2 * half
            )));
        }
        if let Some(gpu) = x.gpu() {
            return cuda::rotate(gpu, x, &self.table, forth);
        }
        let direction = if forth { 1.0 } else { -1.0 };
        dispatch!(x.dtype(), R => {
            let mut y = x.real::<R>().into_owned();
            let sign = R::of(direction);
            for (t, row) in y.chunks_exact_mut(width).enumerate() {
                let cos = &self.table.cos[t * half..(t + 1) * half];
                let sin = &self.table.sin[t * half..(t + 1) * half];
                for head in row.chunks_exact_mut(2 * half) {
                    let (low, high) = head.split_at_mut(half);
                    for i in 0..half {
                        let (c, s) = (R::of(f64::from(cos[i])), sign * R::of(f64::from(sin[i])));
                        let (a, b) = (low[i], high[i]);
                        low[i] = a * c - b * s;
                        high[i] = b * c + a * s;
                    }
                }
            }
            Tensor::rounded(x.shape(), y, x.dtype())
        })
    }
}

impl Op<1> for Rope {
    const NAME: &'static str = "rope";
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        Ok((self.rotate(x, true)?, ()))
    }

    fn backward(&self, (): (), dy: &Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(self.rotate(dy, false)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    #[test]
    fn a_quarter_turn_swaps_the_pair() -> Result<()> {
        let table = Table::new(1, vec![0.0], vec![1.0]);
        let x = Tensor::new(&[1, 2], vec![3.0_f32, 5.0])?;
        assert_eq!(Rope { table }.forward([&x])?.0.real::<f32>().as_ref(), [-5.0, 3.0]);
        Ok(())
    }

    #[test]
    fn sections_choose_the_axis() {
        let table = Table::mrope(1e6, [1, 2, 1], &[vec![1], vec![20], vec![300]]);
        let f = inverse_frequencies(1e6, 8);
        let want = [f[0], 20.0 * f[1], 20.0 * f[2], 300.0 * f[3]].map(|a| f64::from(a).cos() as f32);
        assert_eq!(table.cos.as_ref(), want);
        // Frequencies 1 and 1/10 for a head of 8 = 4 angles: two for the row, two for the column.
        let axial = Table::axial(100.0, 8, &[(2, 3)]);
        let want = [2.0_f32, 0.2, 3.0, 0.3].map(|a| f64::from(a).sin());
        assert!(axial.sin.iter().zip(want).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-7));
    }

    #[test]
    fn gradient() -> Result<()> {
        let positions = [vec![0, 1, 5], vec![0, 2, 5], vec![0, 3, 5]];
        let x = random(&[3, 16], 1)?;
        assert!(gradcheck(|| Rope { table: Table::mrope(1e4, [1, 1, 2], &positions) }, [&x])? < 1e-7);
        let short = Rope { table: Table::mrope(1e4, [1, 1, 2], &positions) };
        assert!(short.forward([&random(&[2, 16], 1)?]).is_err());
        Ok(())
    }
}
