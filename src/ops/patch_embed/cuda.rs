//! Launches of `kernels/patch_embed.cu`.

use crate::cuda::kernels::patch_embed as kernels;
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut, Purpose};
use crate::error::Result;
use crate::ops::gemm::cuda::{Factor, Layout, Tile};
use crate::ops::launch::{self, operand};
use crate::tensor::{DType, Tensor};
use half::bf16;

/// The images on the GPU: bytes `[N, width]`, levels `[3, 256]`.
pub struct Pixels {
    bytes: Buffer<u8>,
    levels: Buffer<f32>,
    width: usize,
}

/// The kernels of both passes have the same parameters: bytes, levels, weight or dy, y or dW, sizes.
type Kernel<T> = unsafe fn(&Gpu, Grid, Const<u8>, Const<f32>, Const<T>, Mut<T>, i32, i32, i32) -> Result<()>;

impl Pixels {
    pub(super) fn new(gpu: &Gpu, bytes: &[u8], levels: &[[f32; 256]; 3], width: usize) -> Result<Pixels> {
        let bytes = gpu.upload(bytes, Purpose::Inputs)?;
        let levels = gpu.upload(levels.as_flattened(), Purpose::Inputs)?;
        Ok(Pixels { bytes, levels, width })
    }

    fn patches(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// `y = xhat W^T` for W of `channels` rows.
    pub(super) fn forward(&self, gpu: &Gpu, w: &Tensor, channels: usize) -> Result<Tensor> {
        let shape = [self.patches(), channels];
        let weights = channels * self.width;
        match w.dtype() {
            DType::Bf16 => {
                self.launch::<bf16>(gpu, Layout::Nt, w, weights, &shape, kernels::patch_embed_forward_bf16)
            }
            _ => self.launch::<f32>(gpu, Layout::Nt, w, weights, &shape, kernels::patch_embed_forward_f32),
        }
    }

    /// `dW = dy^T xhat`, of the shape of W.
    pub(super) fn backward(&self, gpu: &Gpu, dy: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let outputs = self.patches() * shape.first().copied().unwrap_or(1);
        match dy.dtype() {
            DType::Bf16 => {
                self.launch::<bf16>(gpu, Layout::Tn, dy, outputs, shape, kernels::patch_embed_backward_bf16)
            }
            _ => self.launch::<f32>(gpu, Layout::Tn, dy, outputs, shape, kernels::patch_embed_backward_f32),
        }
    }

    /// The product of the pixels and `factor`, which holds `len` elements, as a tensor of this shape, whose first dimension is that of its rows.
    fn launch<T: Factor<T>>(
        &self,
        gpu: &Gpu,
        layout: Layout,
        factor: &Tensor,
        len: usize,
        shape: &[usize],
        kernel: Kernel<T>,
    ) -> Result<Tensor> {
        const OP: &str = "patch_embed";
        let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
        let channels = if layout == Layout::Nt { columns } else { rows };
        let factor = operand::<T>(gpu, OP, factor, len)?.ptr();
        let grid = T::shape(layout, Tile::Large).grid(rows, columns)?;
        let [patches, channels, width] =
            [self.patches(), channels, self.width].map(|size| launch::dimension(OP, size));
        let (patches, channels, width) = (patches?, channels?, width?);
        // SAFETY: the bytes are patches * width, the levels 3 * 256, `factor` and the result channels * width and patches * channels in the
        // order of the pass; the kernel touches no others.
        launch::fill(gpu, shape, |out| unsafe {
            kernel(gpu, grid, self.bytes.ptr(), self.levels.ptr(), factor, out, patches, channels, width)
        })
    }
}
