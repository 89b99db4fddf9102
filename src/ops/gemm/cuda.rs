//! Matrix products on the GPU: cuBLASLt's or our own (`kernels/gemm.cu`).
//!
//! **The law.** An element's bits depend on its row of A, on its column of B and on the order of the sum, and that order is the same for every number of
//! rows. Our kernels come in three shapes of tiles that give the same bits, so each product takes the quickest; of cuBLASLt's
//! algorithms one is chosen per shape of the weights, and others only where they have been seen to give its bits
//! ([`crate::cuda::cublaslt`]). Sums run in f32; f32 factors are not rounded to TF32.

use crate::cuda::kernels::gemm as kernels;
use crate::cuda::products::{Product, Scalar};
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut};
use crate::error::{Error, Result};
use crate::tensor::{DType, DeviceReal};
use half::bf16;

use super::Into;
pub use crate::cuda::products::Layout;

/// A row-major matrix in device memory that is read.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T: DeviceReal> {
    buffer: &'a Buffer<T>,
    place: Place,
}

/// A row-major matrix in device memory that is written.
pub struct MatrixMut<'a, T: DeviceReal> {
    buffer: &'a mut Buffer<T>,
    place: Place,
}

/// Where a matrix lies in its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: usize,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl Place {
    /// Fails unless the matrix lies inside a buffer of `len` elements and a kernel can count its sizes.
    fn checked(self, len: usize) -> Result<Place> {
        let Place { offset, rows, columns, stride } = self;
        let end = if rows == 0 || columns == 0 { 0 } else { offset + (rows - 1) * stride + columns };
        let largest = rows.max(columns).max(stride);
        if end > len || columns > stride || i32::try_from(largest).is_err() {
            return Err(Error::Internal(format!("{self:?} is not a matrix in a buffer of {len} elements")));
        }
        Ok(self)
    }
}

impl<'a, T: DeviceReal> Matrix<'a, T> {
    /// The rows of a buffer that holds nothing else.
    ///
    /// # Errors
    /// [`Error::Internal`] when the buffer is shorter.
    pub fn new(buffer: &'a Buffer<T>, rows: usize, columns: usize) -> Result<Self> {
        Matrix::strided(buffer, 0, (rows, columns), columns)
    }

    /// Rows and columns from element `offset` on, rows `stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Internal`] when the matrix is not inside the buffer.
    pub fn strided(
        buffer: &'a Buffer<T>,
        offset: usize,
        (rows, columns): (usize, usize),
        stride: usize,
    ) -> Result<Self> {
        let place = Place { offset, rows, columns, stride }.checked(buffer.len())?;
        Ok(Matrix { buffer, place })
    }

    fn ptr(&self) -> Const<T> {
        self.buffer.ptr().offset(self.place.offset)
    }
}

impl<'a, T: DeviceReal> MatrixMut<'a, T> {
    /// The rows of a buffer that holds nothing else.
    ///
    /// # Errors
    /// [`Error::Internal`] when the buffer is shorter.
    pub fn new(buffer: &'a mut Buffer<T>, rows: usize, columns: usize) -> Result<Self> {
        MatrixMut::strided(buffer, 0, (rows, columns), columns)
    }

    /// Rows and columns from element `offset` on, rows `stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Internal`] when the matrix is not inside the buffer.
    pub fn strided(
        buffer: &'a mut Buffer<T>,
        offset: usize,
        (rows, columns): (usize, usize),
        stride: usize,
    ) -> Result<Self> {
        let place = Place { offset, rows, columns, stride }.checked(buffer.len())?;
        Ok(MatrixMut { buffer, place })
    }
}

/// What our kernels compute per block: a shape of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 128, for products that fill the GPU with such tiles.
    Large,
    /// 64 x 64.
    Small,
    /// 16 x 32, for few rows of C. Only layout NT has it; the others are small then.
    Skinny,
}

/// The most rows that the skinny tile is taken for.
const SKINNY_ROWS: usize = 16;

impl Tile {
    /// The shapes that there are.
    pub const ALL: [Tile; 3] = [Tile::Large, Tile::Small, Tile::Skinny];

    /// The tile that a layout has for this one.
    fn of_layout(self, layout: Layout) -> Tile {
        if layout != Layout::Nt && self == Tile::Skinny { Tile::Small } else { self }
    }

    /// The quickest for a product of bf16 factors.
    fn of(gpu: &Gpu, layout: Layout, m: usize, n: usize) -> Tile {
        if layout == Layout::Nt && m <= SKINNY_ROWS {
            Tile::Skinny
        } else if m.div_ceil(128) * n.div_ceil(128) < gpu.multiprocessors() as usize {
            Tile::Small
        } else {
            Tile::Large
        }
    }
}

/// One of the kernels of a pair of types; all have the same parameters.
type Launcher<T, C> = unsafe fn(
    &Gpu,
    Grid,
    Const<T>,
    Const<T>,
    Const<T>,
    Mut<C>,
    i32,
    i32,
    i32,
    i32,
    i32,
    i32,
    i32,
) -> Result<()>;

/// A kernel, and how it has to be launched (the shapes of `kernels/gemm.cuh` and `gemm_f32.cuh`).
pub struct Shape<T, C> {
    kernel: Launcher<T, C>,
    rows: usize,
    columns: usize,
    threads: u32,
    shared_bytes: usize,
}

impl<T, C> Shape<T, C> {
    /// The blocks that compute an `[m, n]` product.
    pub(crate) fn grid(&self, m: usize, n: usize) -> Result<Grid> {
        Ok(Grid::new_3d([m.div_ceil(self.rows), n.div_ceil(self.columns), 1], self.threads)?
            .shared(self.shared_bytes))
    }
}

/// A type of factors whose products can be stored as `C`.
pub trait Factor<C: DeviceReal>: DeviceReal {
    /// The kernel for a layout and, if there is a choice, a tile.
    fn shape(layout: Layout, tile: Tile) -> Shape<Self, C>;
}

fn tiled<C>(tile: Tile, kernel: Launcher<bf16, C>) -> Shape<bf16, C> {
    let (rows, columns, threads, stages) = match tile {
        Tile::Large => (128, 128, 256, 4),
        Tile::Small => (64, 64, 128, 4),
        Tile::Skinny => (16, 32, 64, 12),
    };
    // A stage holds rows of 32 elements and 8 of padding; transposed tiles take less.
    let shared_bytes = stages * (rows + columns) * 40 * size_of::<bf16>();
    Shape { kernel, rows, columns, threads, shared_bytes }
}

impl Factor<bf16> for bf16 {
    fn shape(layout: Layout, tile: Tile) -> Shape<bf16, bf16> {
        let kernel: Launcher<bf16, bf16> = match (layout, tile) {
            (Layout::Nt, Tile::Large) => kernels::gemm_nt_128x128_bf16,
            (Layout::Nt, Tile::Small) => kernels::gemm_nt_64x64_bf16,
            (Layout::Nt, Tile::Skinny) => kernels::gemm_nt_16x32_bf16,
            (Layout::Nn, Tile::Large) => kernels::gemm_nn_128x128_bf16,
            (Layout::Nn, Tile::Small | Tile::Skinny) => kernels::gemm_nn_64x64_bf16,
            (Layout::Tn, Tile::Large) => kernels::gemm_tn_128x128_bf16,
            (Layout::Tn, Tile::Small | Tile::Skinny) => kernels::gemm_tn_64x64_bf16,
        };
        tiled(tile.of_layout(layout), kernel)
    }
}

impl Factor<f32> for bf16 {
    fn shape(layout: Layout, tile: Tile) -> Shape<bf16, f32> {
        let kernel: Launcher<bf16, f32> = match (layout, tile) {
            (Layout::Nt, Tile::Large) => kernels::gemm_nt_128x128_bf16_f32,
            (Layout::Nt, Tile::Small) => kernels::gemm_nt_64x64_bf16_f32,
            (Layout::Nt, Tile::Skinny) => kernels::gemm_nt_16x32_bf16_f32,
            (Layout::Nn, Tile::Large) => kernels::gemm_nn_128x128_bf16_f32,
            (Layout::Nn, Tile::Small | Tile::Skinny) => kernels::gemm_nn_64x64_bf16_f32,
            (Layout::Tn, Tile::Large) => kernels::gemm_tn_128x128_bf16_f32,
            (Layout::Tn, Tile::Small | Tile::Skinny) => kernels::gemm_tn_64x64_bf16_f32,
        };
        tiled(tile.of_layout(layout), kernel)
    }
}

impl Factor<f32> for f32 {
    fn shape(layout: Layout, _: Tile) -> Shape<f32, f32> {
        let kernel: Launcher<f32, f32> = match layout {
            Layout::Nt => kernels::gemm_nt_f32,
            Layout::Nn => kernels::gemm_nn_f32,
            Layout::Tn => kernels::gemm_tn_f32,
        };
        Shape { kernel, rows: 64, columns: 64, threads: 64, shared_bytes: 8704 }
    }
}

/// `c = a b`, with a row added to every row of the product, or added to the old `c`. Everything is added in f32, then rounded once.
pub struct Gemm<'a, T: DeviceReal, C: DeviceReal> {
    /// How `a` and `b` are stored.
    pub layout: Layout,
    /// `[M, K]`, or `[K, M]` in layout TN.
    pub a: Matrix<'a, T>,
    /// `[N, K]` in layout NT, else `[K, N]`.
    pub b: Matrix<'a, T>,
    /// `[N]`.
    pub bias: Option<&'a Buffer<T>>,
    /// `[M, N]`.
    pub c: MatrixMut<'a, C>,
    /// What becomes of the old `c`.
    pub into: Into,
}

impl<T: Factor<C>, C: DeviceReal> Gemm<'_, T, C> {
    /// Asks the GPU for the product: cuBLASLt or our kernels, as `OTHINK_GEMM` says.
    ///
    /// # Errors
    /// [`Error::Internal`] when the shapes don't fit; those of [`Gpu::multiply_by_library`] and of a launch.
    pub fn run(self) -> Result<()> {
        let Gemm { layout, a, .. } = self;
        let product = self.product()?;
        let gpu = a.buffer.gpu().clone();
        // The library knows no empty matrices.
        if product.k > 0 && product.m > 0 && product.n > 0 {
            let bias = self.bias.map_or(0, |bias| bias.ptr().address());
            let addresses =
                [a.ptr().address(), self.b.ptr().address(), bias, self.c.place.address(self.c.buffer)];
            // SAFETY: the matrices are inside their buffers, and `product` has checked that they are of these sizes; C is borrowed for
            // writing.
            if unsafe { gpu.multiply_by_library(&product, addresses) }? {
                return Ok(());
            }
        }
        let tile = Tile::of(&gpu, layout, product.m, product.n);
        self.run_tiled(tile)
    }

    /// Asks the GPU for the product by our kernel of this tile. The tile changes no bit of it.
    ///
    /// # Errors
    /// As [`Gemm::run`].
    pub fn run_tiled(self, tile: Tile) -> Result<()> {
        let Product { m, n, k, strides: [a_stride, b_stride, c_stride], .. } = self.product()?;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let shape = T::shape(self.layout, tile);
        let grid = shape.grid(m, n)?;
        let bias = self.bias.map_or(Const::null(), Buffer::ptr);
        let c = self.c.buffer.ptr_mut().offset(self.c.place.offset);
        let [m, n, k, a_stride, b_stride, c_stride] =
            [m, n, k, a_stride, b_stride, c_stride].map(|size| size as i32);
        let accumulate = i32::from(self.into == Into::Accumulate);
        // SAFETY: the matrices are inside their buffers and `product` has checked that they are of these sizes, which fit 31 bits; the kernel
        // touches nothing outside of them.
        unsafe {
            (shape.kernel)(
                self.a.buffer.gpu(),
                grid,
                self.a.ptr(),
                self.b.ptr(),
                bias,
                c,
                m,
                n,
                k,
                a_stride,
                b_stride,
                c_stride,
                accumulate,
            )
        }
    }

    /// The sizes, if they fit each other.
    fn product(&self) -> Result<Product> {
        let (a, b, c) = (self.a.place, self.b.place, self.c.place);
        let k = if self.layout == Layout::Tn { a.rows } else { a.columns };
        let product = Product {
            layout: self.layout,
            m: c.rows,
            n: c.columns,
            k,
            strides: [a.stride, b.stride, c.stride],
            alignments: [
                a.alignment(self.a.buffer),
                b.alignment(self.b.buffer),
                c.alignment(self.c.buffer),
                self.bias.map_or(16, |bias| alignment(bias.ptr().address())),
            ],
            factors: scalar::<T>(),
            product: scalar::<C>(),
            bias: self.bias.is_some(),
            accumulate: self.into == Into::Accumulate,
        };
        let gpu = self.a.buffer.gpu();
        let fits = [a, b, c].map(|place| [place.rows, place.columns]) == product.stored()
            && self.bias.is_none_or(|bias| bias.len() == c.columns && bias.gpu() == gpu)
            && self.b.buffer.gpu() == gpu
            && self.c.buffer.gpu() == gpu;
        if !fits {
            return Err(Error::Internal(format!(
                "gemm {:?}: {a:?} and {b:?} into {c:?}, bias {:?}",
                self.layout,
                self.bias.map(Buffer::len)
            )));
        }
        Ok(product)
    }
}

impl Place {
    fn address<T: DeviceReal>(self, buffer: &Buffer<T>) -> u64 {
        buffer.ptr().offset(self.offset).address()
    }

    /// What every row begins at a multiple of.
    fn alignment<T: DeviceReal>(self, buffer: &Buffer<T>) -> u32 {
        alignment(self.address(buffer) | (self.stride * size_of::<T>()) as u64)
    }
}

/// The largest power of two, up to 16, that divides a number.
fn alignment(bytes: u64) -> u32 {
    1 << bytes.trailing_zeros().min(4)
}

fn scalar<T: DeviceReal>() -> Scalar {
    match T::DTYPE {
        DType::Bf16 => Scalar::Bf16,
        _ => Scalar::F32,
    }
}
