//! Launches of `kernels/flash_attention.cu`, `kernels/flash_attention_backward.cu` and `kernels/paged_attention.cu`.

use super::plan::{KEYS, Keys, Queries};
use super::{Attention, Heads, Saved};
use crate::cuda::kernels::{flash_attention, flash_attention_backward, paged_attention};
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::launch::{self, dimension, operand};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

/// Threads of a block (the kernels' launch bounds).
const THREADS: u32 = 128;

/// Query rows, or keys in the gradient of keys, of a block in f32.
const F32_ROWS: usize = 16;

type Forward<T> = unsafe fn(
    &Gpu,
    Grid,
    Const<T>,
    Const<T>,
    Const<T>,
    Mut<T>,
    Mut<f32>,
    Const<i32>,
    Const<i32>,
    i32,
    i32,
    i32,
    i32,
    i32,
    f32,
) -> Result<()>;
type BackwardQueries<T> = unsafe fn(
    &Gpu,
    Grid,
    Const<T>,
    Const<T>,
    Const<T>,
    Const<T>,
    Const<T>,
    Const<f32>,
    Mut<f32>,
    Mut<T>,
    Const<i32>,
    Const<i32>,
    i32,
    i32,
    i32,
    i32,
    i32,
    f32,
) -> Result<()>;
type BackwardKeys<T> = unsafe fn(
    &Gpu,
    Grid,
    Const<T>,
    Const<T>,
    Const<T>,
    Const<T>,
    Const<f32>,
    Const<f32>,
    Mut<T>,
    Mut<T>,
    Const<i32>,
    Const<i32>,
    Const<i32>,
    i32,
    i32,
    i32,
    i32,
    i32,
    f32,
) -> Result<()>;
type Decode<T> = unsafe fn(
    &Gpu,
    Grid,
    Const<T>,
    Const<T>,
    Const<T>,
    Mut<T>,
    Const<i32>,
    Const<i32>,
    i32,
    i32,
    i32,
    f32,
) -> Result<()>;
type Store<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Mut<T>, Mut<T>, Const<i32>, i32) -> Result<()>;

/// The kernels of an element type, for a head dimension.
struct Kernels<T> {
    forward: Forward<T>,
    backward_queries: BackwardQueries<T>,
    backward_keys: BackwardKeys<T>,
    decode: Decode<T>,
    /// Packed query rows of a block, when there are many and when a sequence has a single token.
    height: usize,
    decode_height: usize,
    /// Threads of a block that decodes.
    decode_threads: u32,
    /// Blocks that share a tile of keys in `backward_keys`.
    key_blocks: usize,
    shared: Shared,
}

/// Bytes of shared memory of a block.
struct Shared {
    /// Forward and decoding.
    forward: usize,
    backward_queries: usize,
    backward_keys: usize,
}

macro_rules! bf16_kernels {
    ($forward:ident, $queries:ident, $keys:ident, $decode:ident) => {
        (
            flash_attention::$forward,
            flash_attention_backward::$queries,
            flash_attention_backward::$keys,
            paged_attention::$decode,
        )
    };
}

#[rustfmt::skip] // One line for each dimension.
fn bf16_kernels(dim: usize) -> Result<Kernels<bf16>> {
    type All = (Forward<bf16>, BackwardQueries<bf16>, BackwardKeys<bf16>, Decode<bf16>);
    let (forward, backward_queries, backward_keys, decode): All = match dim {
        16 => bf16_kernels!(attention_d16_forward_bf16, attention_d16_backward_queries_bf16, attention_d16_backward_keys_bf16, attention_d16_decode_bf16),
        32 => bf16_kernels!(attention_d32_forward_bf16, attention_d32_backward_queries_bf16, attention_d32_backward_keys_bf16, attention_d32_decode_bf16),
        48 => bf16_kernels!(attention_d48_forward_bf16, attention_d48_backward_queries_bf16, attention_d48_backward_keys_bf16, attention_d48_decode_bf16),
        64 => bf16_kernels!(attention_d64_forward_bf16, attention_d64_backward_queries_bf16, attention_d64_backward_keys_bf16, attention_d64_decode_bf16),
        80 => bf16_kernels!(attention_d80_forward_bf16, attention_d80_backward_queries_bf16, attention_d80_backward_keys_bf16, attention_d80_decode_bf16),
        96 => bf16_kernels!(attention_d96_forward_bf16, attention_d96_backward_queries_bf16, attention_d96_backward_keys_bf16, attention_d96_decode_bf16),
        112 => bf16_kernels!(attention_d112_forward_bf16, attention_d112_backward_queries_bf16, attention_d112_backward_keys_bf16, attention_d112_decode_bf16),
        128 => bf16_kernels!(attention_d128_forward_bf16, attention_d128_backward_queries_bf16, attention_d128_backward_keys_bf16, attention_d128_decode_bf16),
        _ => return Err(unknown_dimension(dim)),
    };
    // A step of `backward_keys` brings half a tile of q and dO, twice at a time, and three numbers of each row.
    let keys = shared_bf16(dim, 4) + KEYS * 3 * size_of::<f32>();
    Ok(Kernels {
        forward,
        backward_queries,
        backward_keys,
        decode,
        height: 64,
        decode_height: 16,
        decode_threads: 32,
        key_blocks: 1,
        shared: Shared { forward: shared_bf16(dim, 4), backward_queries: shared_bf16(dim, 4), backward_keys: keys },
    })
}

/// One kernel serves all head dimensions in f32, with the same limits.
fn f32_kernels(dim: usize) -> Result<Kernels<f32>> {
    if !dim.is_multiple_of(16) || !(16..=128).contains(&dim) {
        return Err(unknown_dimension(dim));
    }
    let (one, two) = (shared_f32(dim, 2, 1), shared_f32(dim, 2, 2));
    Ok(Kernels {
        forward: flash_attention::attention_forward_f32,
        backward_queries: flash_attention_backward::attention_backward_queries_f32,
        backward_keys: flash_attention_backward::attention_backward_keys_f32,
        decode: paged_attention::attention_decode_f32,
        height: F32_ROWS,
        decode_height: F32_ROWS,
        decode_threads: THREADS,
        key_blocks: KEYS / F32_ROWS,
        shared: Shared {
            forward: one,
            // One of the two has its products in registers only.
            backward_queries: two,
            backward_keys: two + KEYS * 3 * size_of::<f32>(),
        },
    })
}

fn unknown_dimension(dim: usize) -> Error {
    Error::Input(format!(
        "attention with a head dimension of {dim}: on a GPU there are kernels for 128 at most; use --device cpu"
    ))
}

/// Bytes of `tiles` tiles of 64 rows in bf16 (PITCH in kernels/attention_bf16.cuh).
fn shared_bf16(dim: usize, tiles: usize) -> usize {
    tiles * KEYS * (dim + 8) * size_of::<bf16>()
}

/// Bytes of `tiles` tiles of 64 rows in f32 (`pitch` in kernels/attention_f32.cuh), and as many times `blocks` the block's rows
/// and what each of them multiplies a tile with.
fn shared_f32(dim: usize, tiles: usize, blocks: usize) -> usize {
    (tiles * KEYS * (dim + 4) + blocks * F32_ROWS * (dim + KEYS)) * size_of::<f32>()
}

/// Sizes as the kernels take them.
struct Sizes {
    rows: i32,
    heads: i32,
    key_heads: i32,
    dim: i32,
    causal: i32,
    scale: f32,
}

impl Sizes {
    fn of(op: &Attention, rows: usize, scale: f32) -> Result<Sizes> {
        let Heads { query, key, dim } = op.heads;
        Ok(Sizes {
            rows: dimension("attention", rows)?,
            heads: dimension("attention", query)?,
            key_heads: dimension("attention", key)?,
            dim: dimension("attention", dim)?,
            causal: i32::from(op.causal),
            scale,
        })
    }
}

/// o, and `[H, T]` the base-2 logarithm of each row's sum of `2^(scale q k)`. The caller has checked shapes and segments.
pub(super) fn forward(
    gpu: &Gpu,
    op: &Attention,
    inputs: [&Tensor; 3],
    scale: f32,
) -> Result<(Tensor, Tensor)> {
    match inputs[0].dtype() {
        DType::Bf16 => forward_of(gpu, op, inputs, scale, &bf16_kernels(op.heads.dim)?),
        _ => forward_of(gpu, op, inputs, scale, &f32_kernels(op.heads.dim)?),
    }
}

fn forward_of<T: DeviceReal>(
    gpu: &Gpu,
    op: &Attention,
    [q, k, v]: [&Tensor; 3],
    scale: f32,
    kernels: &Kernels<T>,
) -> Result<(Tensor, Tensor)> {
    let rows = q.matrix().0;
    let sizes = Sizes::of(op, rows, scale)?;
    let [q_at, k_at, v_at] = op.operands(gpu, [q, k, v], rows)?;
    let mut lse = launch::alloc::<f32>(gpu, op.heads.query * rows)?;
    let o = launch::fill(gpu, q.shape(), |o| {
        let list = Queries::of(gpu, op, kernels.height)?;
        let grid = list.grid(op, THREADS)?.shared(kernels.shared.forward);
        let (segments, tiles) = (list.segments.ptr(), list.tiles.ptr());
        let Sizes { rows, heads, key_heads, dim, causal, scale } = sizes;
        // SAFETY: q, o hold `rows` rows of `heads` heads, k, v of `key_heads` heads, lse a number for each row of q; the segments
        // lie within the rows, the tiles name segments and packed rows of theirs; the kernels are those of `dim`, the shared
        // memory is what they use.
        unsafe {
            (kernels.forward)(
                gpu,
                grid,
                q_at,
                k_at,
                v_at,
                o,
                lse.ptr_mut(),
                segments,
                tiles,
                rows,
                heads,
                key_heads,
                dim,
                causal,
                scale,
            )
        }
    })?;
    Ok((o, Tensor::from_buffer(&[op.heads.query, rows], lse)?))
}

/// dq, dk, dv.
pub(super) fn backward(
    gpu: &Gpu,
    op: &Attention,
    saved: &Saved,
    dy: &Tensor,
    scale: f32,
) -> Result<[Tensor; 3]> {
    match saved.q.dtype() {
        DType::Bf16 => backward_of(gpu, op, saved, dy, scale, &bf16_kernels(op.heads.dim)?),
        _ => backward_of(gpu, op, saved, dy, scale, &f32_kernels(op.heads.dim)?),
    }
}

fn backward_of<T: DeviceReal>(
    gpu: &Gpu,
    op: &Attention,
    Saved { q, k, v, o, lse }: &Saved,
    dy: &Tensor,
    scale: f32,
    kernels: &Kernels<T>,
) -> Result<[Tensor; 3]> {
    let t = q.matrix().0;
    let Sizes { rows, heads, key_heads, dim, causal, scale } = Sizes::of(op, t, scale)?;
    let [q_at, k_at, v_at] = op.operands(gpu, [q, k, v], t)?;
    let [o_at, dy_at] = [o, dy].map(|x| operand::<T>(gpu, "attention", x, q.len()).map(Buffer::ptr));
    let (o_at, dy_at, lse) =
        (o_at?, dy_at?, operand::<f32>(gpu, "attention", lse, t * op.heads.query)?.ptr());
    if t == 0 {
        return Ok([q, k, v].map(Tensor::clone));
    }
    let list = Queries::of(gpu, op, kernels.height)?;
    let (segments, tiles) = (list.segments.ptr(), list.tiles.ptr());
    let mut delta = gpu.alloc::<f32>(t * op.heads.query, Purpose::Workspace)?;
    let dq = launch::fill(gpu, q.shape(), |dq| {
        let grid = list.grid(op, THREADS)?.shared(kernels.shared.backward_queries);
        // SAFETY: as in `forward_of`; o, dy, dq are like q, delta like lse.
        unsafe {
            (kernels.backward_queries)(
                gpu,
                grid,
                q_at,
                k_at,
                v_at,
                o_at,
                dy_at,
                lse,
                delta.ptr_mut(),
                dq,
                segments,
                tiles,
                rows,
                heads,
                key_heads,
                dim,
                causal,
                scale,
            )
        }
    })?;
    let keys = Keys::of(gpu, op)?;
    let blocks = [keys.tiles.len() / 4, op.heads.key, kernels.key_blocks];
    let mut dv = launch::alloc::<T>(gpu, v.len())?;
    let dk = launch::fill(gpu, k.shape(), |dk| {
        let grid = Grid::new_3d(blocks, THREADS)?.shared(kernels.shared.backward_keys);
        let (tiles, viewers, delta) = (keys.tiles.ptr(), keys.viewers.ptr(), delta.ptr());
        // SAFETY: as above; dk, dv are like k, v; tiles name segments, keys of theirs and parts of `viewers`, which names segments.
        unsafe {
            (kernels.backward_keys)(
                gpu,
                grid,
                q_at,
                k_at,
                v_at,
                dy_at,
                lse,
                delta,
                dk,
                dv.ptr_mut(),
                segments,
                tiles,
                viewers,
                rows,
                heads,
                key_heads,
                dim,
                causal,
                scale,
            )
        }
    })?;
    Ok([dq, dk, Tensor::from_buffer(v.shape(), dv)?])
}

/// The tables of a batch of sequences, on the GPU (`kernels/paged_attention.cu`).
#[derive(Debug)]
pub(super) struct Tables {
    sequences: Buffer<i32>,
    pages: Buffer<i32>,
}

impl Tables {
    pub(super) fn new(gpu: &Gpu, sequences: &[i32], pages: &[i32]) -> Result<Tables> {
        Ok(Tables {
            sequences: gpu.upload(sequences, Purpose::Inputs)?,
            pages: gpu.upload(pages, Purpose::Inputs)?,
        })
    }
}

/// `[B, H * D]`: attention of each sequence's one row. The caller has checked that the cache has all pages of the tables.
pub(super) fn decode(
    gpu: &Gpu,
    heads: Heads,
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    tables: &Tables,
    scale: f32,
) -> Result<Tensor> {
    match q.dtype() {
        DType::Bf16 => decode_of(gpu, heads, q, [k, v], tables, scale, &bf16_kernels(heads.dim)?),
        _ => decode_of(gpu, heads, q, [k, v], tables, scale, &f32_kernels(heads.dim)?),
    }
}

fn decode_of<T: DeviceReal>(
    gpu: &Gpu,
    heads: Heads,
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    tables: &Tables,
    scale: f32,
    kernels: &Kernels<T>,
) -> Result<Tensor> {
    let batch = q.matrix().0;
    let from = operand::<T>(gpu, "attention", q, batch * heads.query * heads.dim)?.ptr();
    let (k, v) = (k.buffer::<T>()?.ptr(), v.buffer::<T>()?.ptr());
    let [query, key, dim] = [heads.query, heads.key, heads.dim].map(|n| dimension("attention", n));
    let (query, key, dim) = (query?, key?, dim?);
    let blocks = [batch, heads.key, heads.per_key().div_ceil(kernels.decode_height)];
    launch::fill(gpu, q.shape(), |o| {
        let grid = Grid::new_3d(blocks, kernels.decode_threads)?.shared(kernels.shared.forward);
        let (sequences, pages) = (tables.sequences.ptr(), tables.pages.ptr());
        // SAFETY: q and o hold a row for each sequence; the tables' pages are pages of k and v, whose rows have `key` heads.
        unsafe { (kernels.decode)(gpu, grid, from, k, v, o, sequences, pages, query, key, dim, scale) }
    })
}

/// Writes rows of k and v into a cache: row b to row `slots[b]`, which the caller has checked.
pub(super) fn store(
    gpu: &Gpu,
    [k, v]: [&Tensor; 2],
    cache: [&mut Tensor; 2],
    slots: &Buffer<i32>,
) -> Result<()> {
    match k.dtype() {
        DType::Bf16 => store_of::<bf16>(gpu, [k, v], cache, slots, paged_attention::paged_store_bf16),
        _ => store_of::<f32>(gpu, [k, v], cache, slots, paged_attention::paged_store_f32),
    }
}

fn store_of<T: DeviceReal>(
    gpu: &Gpu,
    [k, v]: [&Tensor; 2],
    [k_cache, v_cache]: [&mut Tensor; 2],
    slots: &Buffer<i32>,
    store: Store<T>,
) -> Result<()> {
    let (rows, width) = k.matrix();
    let (k, v) = (k.buffer::<T>()?.ptr(), operand::<T>(gpu, "attention", v, rows * width)?.ptr());
    let (k_cache, v_cache) = (k_cache.buffer_mut::<T>()?.ptr_mut(), v_cache.buffer_mut::<T>()?.ptr_mut());
    let grid = Grid::new(rows, THREADS)?;
    // SAFETY: k, v and the cache have rows of `width` elements; the slots, one for each row of k, are different rows of the cache.
    unsafe { store(gpu, grid, k, v, k_cache, v_cache, slots.ptr(), dimension("attention", width)?) }
}

impl Attention {
    /// The addresses of a tensor of queries and of two of keys.
    fn operands<T: DeviceReal>(
        &self,
        gpu: &Gpu,
        [q, k, v]: [&Tensor; 3],
        rows: usize,
    ) -> Result<[Const<T>; 3]> {
        let Heads { query, key, dim } = self.heads;
        Ok([
            operand::<T>(gpu, "attention", q, rows * query * dim)?.ptr(),
            operand::<T>(gpu, "attention", k, rows * key * dim)?.ptr(),
            operand::<T>(gpu, "attention", v, rows * key * dim)?.ptr(),
        ])
    }
}
