//! Rotary position embedding (Su et al. 2021), in the split-half layout of Hugging Face.
//!
//! Row t, head h, pair (i, i + D/2): `y_i = x_i cos - x_j sin`, `y_j = x_j cos + x_i sin`, with the angle of
//! (t, i) from a table. The backward pass is the rotation by the opposite angle. M-RoPE and the vision tower's
//! two-axis rotation differ only in the table: [`Table::mrope`], [`Table::axial`].

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use crate::autograd::Op;
use crate::cuda::Gpu;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};
use std::sync::{Arc, OnceLock};

/// Cosines and sines `[T, D/2]` in f32, formed where they are first needed.
///
/// The angle of (t, i) is the f32 product `positions[axis_i][t] * frequency_i`; its cosine and sine are taken in f64 and rounded.
#[derive(Clone, Debug)]
pub struct Table {
    angles: Arc<Angles>,
    on_cpu: Arc<OnceLock<[Vec<f32>; 2]>>,
    on_gpu: Arc<cuda::Tables>,
}

/// What the angles are products of.
#[derive(Debug)]
struct Angles {
    /// `[axes][T]`, one axis behind the other.
    positions: Vec<i32>,
    /// T.
    rows: usize,
    /// The axis of each of D/2 angles.
    axis: Vec<i32>,
    /// Frequency of each of D/2 angles.
    frequencies: Vec<f32>,
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
    fn new(angles: Angles) -> Table {
        Table { angles: Arc::new(angles), on_cpu: Arc::default(), on_gpu: Arc::default() }
    }

    /// Forms cosines and sines now, in the memory of `gpu` or without one in the host's, and not when the first rotation asks.
    ///
    /// # Errors
    /// Those of allocating and launching.
    pub fn form(&self, gpu: Option<&Gpu>) -> Result<()> {
        match gpu {
            Some(gpu) => cuda::tables(gpu, self).map(drop),
            None => {
                self.host();
                Ok(())
            }
        }
    }

    /// Operations and bytes of forming them: a product, a cosine and a sine for each angle.
    pub fn cost(&self) -> Cost {
        let Angles { positions, rows, axis, .. } = &*self.angles;
        let n = rows * axis.len();
        Cost { flops: 3 * n as u64, bytes: (4 * positions.len() + 8 * axis.len() + 8 * n) as u64 }
    }

    /// Angles of a row, D/2.
    fn half(&self) -> usize {
        self.angles.axis.len()
    }

    /// Cosines and sines in host memory.
    fn host(&self) -> &[Vec<f32>; 2] {
        self.on_cpu.get_or_init(|| {
            let Angles { positions, rows, axis, frequencies } = &*self.angles;
            let angles = (0..*rows).flat_map(|t| {
                let pairs = axis.iter().zip(frequencies);
                pairs.map(move |(&a, f)| f64::from(positions[a as usize * rows + t] as f32 * f))
            });
            let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
            [cos, sin]
        })
    }

    /// M-RoPE (Qwen2-VL): frequency i belongs to the time, height or width axis as `sections` cut the first
    /// half of the head dimension; `sections` sum to D/2. `positions_3t` is `[3][T]`.
    pub fn mrope(theta: f64, sections: [usize; 3], positions_3t: &[Vec<i32>; 3]) -> Table {
        let half: usize = sections.iter().sum();
        let rows = positions_3t.iter().map(Vec::len).min().unwrap_or(0);
        Table::new(Angles {
            positions: positions_3t.iter().flat_map(|axis| &axis[..rows]).copied().collect(),
            rows,
            axis: (0..3).flat_map(|axis| std::iter::repeat_n(axis, sections[axis as usize])).collect(),
            frequencies: inverse_frequencies(theta, 2 * half),
        })
    }

    /// The vision tower's rotation: the first half of the frequencies turn with the patch's row, the second
    /// with its column; `places` are (row, column) per patch.
    pub fn axial(theta: f64, head_dim: usize, places: &[(usize, usize)]) -> Table {
        let frequencies = inverse_frequencies(theta, head_dim / 2);
        let count = frequencies.len();
        let axis = |of: fn(&(usize, usize)) -> usize| places.iter().map(move |place| of(place) as i32);
        Table::new(Angles {
            positions: axis(|place| place.0).chain(axis(|place| place.1)).collect(),
            rows: places.len(),
            axis: [vec![0; count], vec![1; count]].concat(),
            frequencies: frequencies.repeat(2),
        })
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
        let (half, angled) = (self.table.half(), self.table.angles.rows);
        if rows != angled || !width.is_multiple_of(2 * half) {
            return Err(Error::Internal(format!(
                "rope: x {:?} with angles for {} rows of head dimension {}",
                x.shape(),
                angled,
                2 * half
            )));
        }
        if let Some(gpu) = x.gpu() {
            return cuda::rotate(gpu, x, &self.table, forth);
        }
        let direction = if forth { 1.0 } else { -1.0 };
        let [cos, sin] = self.table.host();
        dispatch!(x.dtype(), R => {
            let mut y = x.real::<R>().into_owned();
            let sign = R::of(direction);
            for (t, row) in y.chunks_exact_mut(width).enumerate() {
                let cos = &cos[t * half..(t + 1) * half];
                let sin = &sin[t * half..(t + 1) * half];
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
        let quarter = std::f32::consts::FRAC_PI_2;
        let table =
            Table::new(Angles { positions: vec![1], rows: 1, axis: vec![0], frequencies: vec![quarter] });
        let x = Tensor::new(&[1, 2], vec![3.0_f32, 5.0])?;
        let y = Rope { table }.forward([&x])?.0;
        assert!(y.real::<f32>().iter().zip([-5.0, 3.0]).all(|(y, want)| (y - want).abs() < 1e-6));
        Ok(())
    }

    #[test]
    fn sections_choose_the_axis() {
        let table = Table::mrope(1e6, [1, 2, 1], &[vec![1], vec![20], vec![300]]);
        let f = inverse_frequencies(1e6, 8);
        let want = [f[0], 20.0 * f[1], 20.0 * f[2], 300.0 * f[3]].map(|a| f64::from(a).cos() as f32);
        assert_eq!(table.host()[0], want);
        // Frequencies 1 and 1/10 for a head of 8 = 4 angles: two for the row, two for the column.
        let axial = Table::axial(100.0, 8, &[(2, 3)]);
        let want = [2.0_f32, 0.2, 3.0, 0.3].map(|a| f64::from(a).sin());
        assert!(axial.host()[1].iter().zip(want).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-7));
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
