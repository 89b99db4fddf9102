//! Patch embedding: grey levels to tokens.
//!
//! `y = xhat W^T`, `xhat[n, c, ...] = levels[c][byte]`, the normalised value `(byte / 255 - mean_c) / std_c`. Hugging Face writes it as a Conv3d with kernel
//! and stride (2, 14, 14), which on cut-out patches is this product. Shapes: bytes `[N, channels * frames * side^2]`
//! (Conv3d order), W `[C, channels, frames, side, side]`, y `[N, C]`. `dW = dy^T xhat`; bytes have no gradient.

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use super::gemm::{self, Into, View, gemm};
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};
use std::sync::Arc;

/// The images' bytes and how they are normalised.
pub struct PatchEmbed {
    /// Patches of all images, one after the other, as the processor cuts them.
    pub patches: Vec<Arc<[u8]>>,
    /// The normalised value of each grey level, per channel.
    pub levels: Arc<[[f32; 256]; 3]>,
}

/// What the backward pass needs of the images: normalised pixels in host memory, or their bytes on the GPU.
pub enum Pixels {
    /// Normalised pixels `[N, width]`, rounded to the dtype.
    Cpu(Tensor),
    /// Bytes and levels; the kernels normalise while they load.
    Cuda(cuda::Pixels),
}

impl PatchEmbed {
    /// Normalised pixels `[N, width]`, rounded to `dtype`.
    fn pixels<R: Real>(&self, rows: usize, width: usize, dtype: DType) -> Result<Tensor> {
        let per_channel = width / 3;
        let x: Vec<R> = self
            .patches
            .iter()
            .flat_map(|p| p.iter().enumerate())
            .map(|(i, &byte)| R::of(f64::from(self.levels[(i % width) / per_channel][usize::from(byte)])))
            .collect();
        Tensor::rounded(&[rows, width], x, dtype)
    }

    /// The number of patches of `width` bytes; fails where an image isn't whole patches.
    fn rows(&self, width: usize) -> Result<usize> {
        let total: usize = self.patches.iter().map(|p| p.len()).sum();
        if width == 0 || !width.is_multiple_of(3) || self.patches.iter().any(|p| p.len() % width != 0) {
            return Err(Error::Internal(format!("patch_embed: {total} bytes in rows of {width}")));
        }
        Ok(total / width)
    }
}

/// Cost of y for `patches` of `width` bytes.
pub fn forward_cost((patches, width, channels): (usize, usize, usize), dtype: DType) -> Cost {
    let rest = gemm::cost((patches, channels, width), dtype, dtype);
    Cost { flops: rest.flops, bytes: rest.bytes - (patches * width * (dtype.size() - 1)) as u64 }
}

/// Cost of dW.
pub fn backward_cost((patches, width, channels): (usize, usize, usize), dtype: DType) -> Cost {
    let rest = gemm::cost((channels, width, patches), dtype, dtype);
    Cost { flops: rest.flops, bytes: rest.bytes - (patches * width * (dtype.size() - 1)) as u64 }
}

impl Op<1> for PatchEmbed {
    const NAME: &'static str = "patch_embed";
    type Saved = (Pixels, Vec<usize>);

    fn forward(&self, [w]: [&Tensor; 1]) -> Result<(Tensor, Self::Saved)> {
        let out = w.shape().first().copied().unwrap_or(1);
        let width = w.len() / out.max(1);
        let rows = self.rows(width)?;
        if let Some(gpu) = w.gpu() {
            let pixels = cuda::Pixels::new(gpu, &self.patches.concat(), &self.levels, width)?;
            return Ok((pixels.forward(gpu, w, out)?, (Pixels::Cuda(pixels), w.shape().to_vec())));
        }
        dispatch!(w.dtype(), R => {
            let pixels = self.pixels::<R>(rows, width, w.dtype())?;
            let mut y = vec![R::ZERO; rows * out];
            let (x, ws) = (pixels.real::<R>(), w.real::<R>());
            gemm((rows, out, width), View::rows(&x, width), View::transposed(&ws, width), &mut y, out, Into::Overwrite);
            Ok((Tensor::rounded(&[rows, out], y, w.dtype())?, (Pixels::Cpu(pixels.clone()), w.shape().to_vec())))
        })
    }

    fn backward(
        &self,
        (pixels, shape): Self::Saved,
        dy: &Tensor,
        _: [bool; 1],
    ) -> Result<[Option<Tensor>; 1]> {
        let pixels = match (pixels, dy.gpu()) {
            (Pixels::Cuda(pixels), Some(gpu)) => return Ok([Some(pixels.backward(gpu, dy, &shape)?)]),
            (Pixels::Cpu(pixels), None) => pixels,
            _ => return Err(Error::Internal("patch_embed: dy and the images are on two devices".into())),
        };
        let (rows, width) = pixels.matrix();
        let (_, out) = dy.matrix();
        dispatch!(dy.dtype(), R => {
            let mut dw = vec![R::ZERO; out * width];
            let (x, d) = (pixels.real::<R>(), dy.real::<R>());
            gemm((out, width, rows), View::transposed(&d, out), View::rows(&x, width), &mut dw, width, Into::Overwrite);
            Ok([Some(Tensor::rounded(&shape, dw, dy.dtype())?)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    fn levels() -> Arc<[[f32; 256]; 3]> {
        Arc::new(std::array::from_fn(|c| std::array::from_fn(|b| b as f32 / 100.0 - c as f32)))
    }

    #[test]
    fn each_channel_has_its_own_levels() -> Result<()> {
        let op = PatchEmbed { patches: vec![Arc::from([200, 0, 50])], levels: levels() };
        let w = Tensor::new(&[1, 3, 1, 1, 1], vec![1.0_f32, 100.0, 10.0])?;
        assert_eq!(op.forward([&w])?.0.real::<f32>().as_ref(), [2.0 - 100.0 - 15.0]);
        Ok(())
    }

    #[test]
    fn costs_by_hand() {
        // 2 patches of 6 bytes, W and dW of 5 x 6, y and dy of 2 x 5.
        let pass = Cost { flops: 2 * 60, bytes: 12 + 2 * (30 + 10) };
        assert_eq!(forward_cost((2, 6, 5), DType::Bf16), pass);
        assert_eq!(backward_cost((2, 6, 5), DType::Bf16), pass);
    }

    #[test]
    fn gradient() -> Result<()> {
        let bytes: Arc<[u8]> = (0..36u8).map(|i| i.wrapping_mul(37)).collect();
        let make = || PatchEmbed { patches: vec![bytes.clone(), bytes.clone()], levels: levels() };
        assert!(gradcheck(make, [&random(&[5, 3, 1, 2, 2], 1)?])? < 1e-7);
        assert!(make().forward([&random(&[5, 3, 1, 2, 4], 1)?]).is_err());
        Ok(())
    }
}
