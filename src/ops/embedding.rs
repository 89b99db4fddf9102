//! Token embedding with the images' features spliced in.
//!
//! Row t of the result is `image[s]` when t is the s-th image row, else `E[token_t]`. Shapes: E `[V, C]`,
//! image `[S, C]`, y `[T, C]`. Gradients: rows of dy are added to `dE[token_t]` in the order of t (deterministic),
//! and copied to `dimage[s]`.

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use crate::autograd::Op;
use crate::cuda::Purpose;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

/// The token ids and the rows that images fill.
pub struct Embedding {
    /// One id per row.
    pub tokens: Vec<u32>,
    /// Rows taken by the image features, in the order of the features.
    pub image_rows: Vec<usize>,
}

impl Embedding {
    /// Operations and bytes of gathering `rows` rows.
    pub fn forward_cost(rows: usize, width: usize, dtype: DType) -> Cost {
        Cost { flops: 0, bytes: (rows * (2 * width * dtype.size() + 4)) as u64 }
    }

    /// Operations and bytes of the table's whole gradient `[vocab, width]`, of `rows` rows.
    pub fn backward_cost(rows: usize, vocab: usize, width: usize, dtype: DType) -> Cost {
        Cost {
            flops: (rows * width) as u64,
            bytes: ((rows + vocab) * width * dtype.size() + rows * 4) as u64,
        }
    }
}

/// Rows of `x [T, C]` by their numbers, in the given order and as often as they are named.
///
/// # Errors
/// [`Error::Internal`] for a row that there is not; those of launching.
pub fn gather_rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (count, width) = x.matrix();
    let tokens = rows.iter().map(|&row| u32::try_from(row).ok().filter(|_| row < count));
    let tokens = tokens.collect::<Option<Vec<u32>>>();
    let tokens = tokens.ok_or_else(|| Error::Internal(format!("row {:?} of {count}", rows.iter().max())))?;
    let none = Tensor::zeros(&[0, width], x.dtype()).to_device(&x.device(), Purpose::Inputs)?;
    Ok(Embedding { tokens, image_rows: Vec::new() }.forward([x, &none])?.0)
}

impl Op<2> for Embedding {
    const NAME: &'static str = "embedding";
    type Saved = (Vec<usize>, Vec<usize>);

    fn forward(&self, [table, image]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        let (vocab, width) = table.matrix();
        let features = image.rows_of(Self::NAME, width)?;
        if features != self.image_rows.len() || self.image_rows.iter().any(|&t| t >= self.tokens.len()) {
            return Err(Error::Internal(format!(
                "embedding: {features} image features for {} image rows of {} tokens",
                self.image_rows.len(),
                self.tokens.len()
            )));
        }
        if let Some(id) = self.tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Input(format!(
                "token id {id} is outside the model's vocabulary of {vocab}: tokenizer and model do not belong together"
            )));
        }
        if let Some(gpu) = table.gpu() {
            let y = cuda::forward(gpu, self, table, image)?;
            return Ok((y, (table.shape().to_vec(), image.shape().to_vec())));
        }
        dispatch!(table.dtype(), R => {
            let (e, f) = (table.real::<R>(), image.real::<R>());
            let mut y = Vec::with_capacity(self.tokens.len() * width);
            for &id in &self.tokens {
                y.extend_from_slice(&e[id as usize * width..(id as usize + 1) * width]);
            }
            for (&t, row) in self.image_rows.iter().zip(f.chunks_exact(width)) {
                y[t * width..(t + 1) * width].copy_from_slice(row);
            }
            let y = Tensor::rounded(&[self.tokens.len(), width], y, table.dtype())?;
            Ok((y, (table.shape().to_vec(), image.shape().to_vec())))
        })
    }

    fn backward(
        &self,
        (table, image): Self::Saved,
        dy: &Tensor,
        needs: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let (_, width) = dy.matrix();
        if let Some(gpu) = dy.gpu() {
            let (d_table, d_image) = cuda::backward(gpu, self, &table, dy, needs[0])?;
            return Ok([d_table, Some(d_image)]);
        }
        dispatch!(dy.dtype(), R => {
            let d = dy.real::<R>();
            let mut is_image = vec![false; self.tokens.len()];
            let mut d_image = Vec::with_capacity(self.image_rows.len() * width);
            for &t in &self.image_rows {
                is_image[t] = true;
                d_image.extend_from_slice(&d[t * width..(t + 1) * width]);
            }
            let mut d_table = vec![R::ZERO; if needs[0] { table.iter().product() } else { 0 }];
            if needs[0] {
                for (t, &id) in self.tokens.iter().enumerate().filter(|(t, _)| !is_image[*t]) {
                    let row = &mut d_table[id as usize * width..(id as usize + 1) * width];
                    row.iter_mut().zip(&d[t * width..(t + 1) * width]).for_each(|(a, &b)| *a += b);
                }
            }
            Ok([
                if needs[0] { Some(Tensor::rounded(&table, d_table, dy.dtype())?) } else { None },
                Some(Tensor::rounded(&image, d_image, dy.dtype())?),
            ])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    #[test]
    fn image_rows_replace_placeholders() -> Result<()> {
        let table = Tensor::new(&[3, 1], vec![10.0_f32, 20.0, 30.0])?;
        let image = Tensor::new(&[2, 1], vec![-1.0_f32, -2.0])?;
        let op = Embedding { tokens: vec![2, 1, 1, 0, 2], image_rows: vec![1, 2] };
        let (y, saved) = op.forward([&table, &image])?;
        assert_eq!(y.real::<f32>().as_ref(), [30.0, -1.0, -2.0, 10.0, 30.0]);
        let dy = Tensor::new(&[5, 1], vec![1.0_f32, 2.0, 3.0, 4.0, 5.0])?;
        let [dt, di] = op.backward(saved, &dy, [true, true])?;
        assert_eq!(dt.map(|t| t.real::<f32>().to_vec()), Some(vec![4.0, 0.0, 6.0]));
        assert_eq!(di.map(|t| t.real::<f32>().to_vec()), Some(vec![2.0, 3.0]));
        Ok(())
    }

    #[test]
    fn gradient_and_errors() -> Result<()> {
        let make = || Embedding { tokens: vec![0, 3, 3, 1], image_rows: vec![2] };
        let (e, f) = (random(&[4, 3], 1)?, random(&[1, 3], 2)?);
        assert!(gradcheck(make, [&e, &f])? < 1e-7);
        assert!(make().forward([&random(&[3, 3], 1)?, &f]).is_err());
        assert!(make().forward([&e, &random(&[2, 3], 2)?]).is_err());
        Ok(())
    }
}
