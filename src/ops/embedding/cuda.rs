//! Launches of `kernels/embedding.cu`.

use super::Embedding;
use crate::cuda::kernels::embedding as kernels;
use crate::cuda::{Const, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::launch::{self, dimension, operand, pack};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

/// Threads of a block (the kernels' launch bounds).
const THREADS: usize = 128;

type Gather<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Const<i32>, Mut<T>, i32) -> Result<()>;
type Scatter<T> =
    unsafe fn(&Gpu, Grid, Const<T>, Const<i32>, Const<i32>, Const<i32>, Mut<T>, i32) -> Result<()>;

/// The kernels of an element type.
struct Kernels<T> {
    gather: Gather<T>,
    scatter: Scatter<T>,
}

const BF16: Kernels<bf16> =
    Kernels { gather: kernels::embedding_forward_bf16, scatter: kernels::embedding_backward_bf16 };
const F32: Kernels<f32> =
    Kernels { gather: kernels::embedding_forward_f32, scatter: kernels::embedding_backward_f32 };

/// The caller has checked that every token has a row in the table, and every image row a feature and a place.
pub(super) fn forward(gpu: &Gpu, op: &Embedding, table: &Tensor, image: &Tensor) -> Result<Tensor> {
    let mut source: Vec<i32> = op.tokens.iter().map(|&id| id as i32).collect();
    for (feature, &row) in op.image_rows.iter().enumerate() {
        source[row] = -1 - dimension("embedding", feature)?;
    }
    gather_rows(gpu, table, image, &source)
}

/// Rows of `table` `[V, C]`, and of `image` from -1 downwards; the caller has checked that the sources are within the two.
pub(in crate::ops) fn gather_rows(
    gpu: &Gpu,
    table: &Tensor,
    image: &Tensor,
    source: &[i32],
) -> Result<Tensor> {
    dimension("embedding", table.matrix().0)?;
    match table.dtype() {
        DType::Bf16 => gather(gpu, table, image, source, &BF16),
        _ => gather(gpu, table, image, source, &F32),
    }
}

/// Rows of `table` `[V, C]`, and of `image` for the sources below 0. The sources are within the two.
fn gather<T: DeviceReal>(
    gpu: &Gpu,
    table: &Tensor,
    image: &Tensor,
    source: &[i32],
    kernels: &Kernels<T>,
) -> Result<Tensor> {
    let (_, width) = table.matrix();
    let (from, features) = (table.buffer::<T>()?.ptr(), image.buffer::<T>()?.ptr());
    let places = gpu.upload(source, Purpose::Inputs)?;
    launch::fill(gpu, &[source.len(), width], |y| {
        let grid = Grid::new(source.len(), THREADS as u32)?;
        // SAFETY: y holds a row for each source, and each source is a row of the table or, from -1 downwards, of the image.
        unsafe {
            (kernels.gather)(gpu, grid, from, features, places.ptr(), y, dimension("embedding", width)?)
        }
    })
}

/// `(dtable, dimage)`; the former only if it is needed.
pub(super) fn backward(
    gpu: &Gpu,
    op: &Embedding,
    table: &[usize],
    dy: &Tensor,
    needs_table: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    match dy.dtype() {
        DType::Bf16 => backward_of::<bf16>(gpu, op, table, dy, needs_table, &BF16),
        _ => backward_of::<f32>(gpu, op, table, dy, needs_table, &F32),
    }
}

fn backward_of<T: DeviceReal>(
    gpu: &Gpu,
    op: &Embedding,
    table: &[usize],
    dy: &Tensor,
    needs_table: bool,
    kernels: &Kernels<T>,
) -> Result<(Option<Tensor>, Tensor)> {
    let (_, width) = dy.matrix();
    if table.last() != Some(&width) {
        return Err(Error::Internal(format!("embedding: a gradient {:?} for a table {table:?}", dy.shape())));
    }
    let d = operand::<T>(gpu, "embedding", dy, op.tokens.len() * width)?;
    let image_rows: Vec<i32> =
        op.image_rows.iter().map(|&t| dimension("embedding", t)).collect::<Result<_>>()?;
    let d_image = gather(gpu, dy, dy, &image_rows, kernels)?;
    if !needs_table {
        return Ok((None, d_image));
    }
    let mut d_table = gpu.zeros::<T>(table.iter().product(), Purpose::Gradients)?;
    let segments = Segments::of(op)?;
    if width > 0 && !segments.tokens.is_empty() {
        let [tokens, starts, rows] =
            [&segments.tokens, &segments.starts, &segments.rows].map(|x| gpu.upload(x, Purpose::Inputs));
        let (tokens, starts, rows) = (tokens?, starts?, rows?);
        let tiles = width.div_ceil(THREADS * pack::<T>());
        let grid = Grid::new_3d([segments.tokens.len(), tiles, 1], THREADS as u32)?;
        let columns = dimension("embedding", width)?;
        // SAFETY: the rows are rows of dy, the tokens were found within the table by the forward pass, and no two segments have
        // the same token.
        unsafe {
            (kernels.scatter)(
                gpu,
                grid,
                d.ptr(),
                tokens.ptr(),
                starts.ptr(),
                rows.ptr(),
                d_table.ptr_mut(),
                columns,
            )?;
        }
    }
    Ok((Some(Tensor::from_buffer(table, d_table)?), d_image))
}

/// The rows of each distinct token, in order: token k has `rows[starts[k] .. starts[k + 1]]`.
#[derive(Debug, PartialEq)]
struct Segments {
    tokens: Vec<i32>,
    starts: Vec<i32>,
    rows: Vec<i32>,
}

impl Segments {
    fn of(op: &Embedding) -> Result<Segments> {
        let mut is_image = vec![false; op.tokens.len()];
        op.image_rows.iter().for_each(|&t| is_image[t] = true);
        let mut order: Vec<usize> = (0..op.tokens.len()).filter(|&t| !is_image[t]).collect();
        // Stable: rows of one token stay in their order.
        order.sort_by_key(|&t| op.tokens[t]);
        let mut segments = Segments { tokens: Vec::new(), starts: Vec::new(), rows: Vec::new() };
        for t in order {
            let id = op.tokens[t] as i32;
            if segments.tokens.last() != Some(&id) {
                segments.tokens.push(id);
                segments.starts.push(dimension("embedding", segments.rows.len())?);
            }
            segments.rows.push(dimension("embedding", t)?);
        }
        segments.starts.push(dimension("embedding", segments.rows.len())?);
        Ok(segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_keep_the_order_of_rows_and_leave_images_out() -> Result<()> {
        let op = Embedding { tokens: vec![7, 3, 9, 7, 3, 7], image_rows: vec![2] };
        let want = Segments { tokens: vec![3, 7], starts: vec![0, 2, 5], rows: vec![1, 4, 0, 3, 5] };
        assert_eq!(Segments::of(&op)?, want);
        let none = Segments { tokens: vec![], starts: vec![0], rows: vec![] };
        assert_eq!(Segments::of(&Embedding { tokens: vec![1], image_rows: vec![0] })?, none);
        Ok(())
    }
}
