//! Logits, log-probabilities and their gradient on the GPU: products of [`gemm`](crate::ops::gemm::cuda) and
//! `kernels/log_softmax_kl.cu` between them.
//!
//! Logits are always f32, and exist for as many rows at a time as [`LogSoftmaxKl::logits_bytes`] holds, a multiple of 64. Their
//! gradient, in the type of the hidden states, waits for the two products behind it until it has a piece of 8 times as many rows: fewer
//! give the GPU too few tiles of dh, and have all of dW read and written for each.
//!
//! What stands in a row depends on neither number. dW is added up piece after piece in f32, so its last bits depend on the size of the
//! pieces, hence on the vocabulary and on `logits_bytes`, and on nothing else: rows that get no gradient leave the pieces as they are
//! and are left out of them in aligned runs of 64, a multiple of what a product adds at once. They are zeros there, so that not a bit
//! changes.

use super::{LogSoftmaxKl, Reference};
use crate::autograd::Op;
use crate::cuda::kernels::log_softmax_kl as kernels;
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::elementwise::cast;
use crate::ops::embedding::cuda::gather_rows;
use crate::ops::gemm::Into;
use crate::ops::gemm::cuda::{Factor, Gemm, Layout, Matrix, MatrixMut};
use crate::ops::launch::{alloc, dimension, operand};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;
use std::ops::Range;

const NAME: &str = LogSoftmaxKl::NAME;

/// Threads of a block (the kernels' launch bounds).
const THREADS: u32 = 512;

/// Numbers that are kept of a row (KEPT in the kernels).
const KEPT: usize = 6;

/// Rows are left out of the backward products in runs of so many.
pub const RUN: usize = 64;

/// Parts, each with its logits at a time, in a piece that the backward products take at once.
pub const PARTS: usize = 8;

/// The rows that an op looks at, with their targets, cut into pieces for the backward products.
struct Plan {
    /// Rows of the hidden states, ascending.
    rows: Vec<i32>,
    /// Which of all distinct rows each is.
    slots: Vec<i32>,
    /// Where each row's targets start, and the end.
    starts: Vec<i32>,
    /// Token of each target.
    tokens: Vec<i32>,
    /// Place of each target in the op's list.
    places: Vec<i32>,
    /// Pieces of `rows`.
    pieces: Vec<Range<usize>>,
    /// Rows whose logits exist at a time.
    at_once: usize,
}

impl Plan {
    /// All rows and targets; for the backward pass without the targets that get no gradient, and without runs of rows that
    /// have no other.
    fn new(op: &LogSoftmaxKl, vocab: usize, for_backward: bool) -> Result<Plan> {
        dimension(NAME, op.targets.len())?;
        let takes_part = |&&i: &&usize| !(for_backward && op.is_frozen(i));
        let mut order: Vec<usize> = (0..op.targets.len()).collect();
        order.sort_by_key(|&i| op.targets[i].row);
        let distinct: Vec<&[usize]> =
            order.chunk_by(|&i, &j| op.targets[i].row == op.targets[j].row).collect();
        let at_once = (op.logits_bytes / (size_of::<f32>() * vocab.max(1)) / RUN * RUN).max(RUN);
        let mut plan = Plan {
            rows: Vec::new(),
            slots: Vec::new(),
            starts: vec![0],
            tokens: Vec::new(),
            places: Vec::new(),
            pieces: Vec::new(),
            at_once,
        };
        for (piece, rows) in distinct.chunks(PARTS * at_once).enumerate() {
            let first = plan.rows.len();
            for (run, rows) in rows.chunks(RUN).enumerate() {
                if !rows.iter().any(|targets| targets.iter().any(|i| takes_part(&i))) {
                    continue;
                }
                for (slot, targets) in rows.iter().enumerate() {
                    plan.rows.push(dimension(NAME, op.targets[targets[0]].row)?);
                    plan.slots.push((piece * PARTS * at_once + run * RUN + slot) as i32);
                    for &i in targets.iter().filter(takes_part) {
                        plan.tokens.push(dimension(NAME, op.targets[i].token as usize)?);
                        plan.places.push(i as i32);
                    }
                    plan.starts.push(plan.tokens.len() as i32);
                }
            }
            if plan.rows.len() > first {
                plan.pieces.push(first..plan.rows.len());
            }
        }
        Ok(plan)
    }

    /// Rows of the largest piece.
    fn largest(&self) -> usize {
        self.pieces.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }

    /// The parts of some of the rows whose logits exist at a time.
    fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (at_once, end) = (self.at_once, rows.end);
        rows.step_by(at_once).map(move |first| first..end.min(first + at_once))
    }

    fn upload(&self, gpu: &Gpu) -> Result<Targets> {
        let upload = |x: &[i32]| gpu.upload(x, Purpose::Inputs);
        Ok(Targets {
            slots: upload(&self.slots)?,
            starts: upload(&self.starts)?,
            tokens: upload(&self.tokens)?,
            places: upload(&self.places)?,
        })
    }
}

/// A plan's arrays in device memory.
struct Targets {
    slots: Buffer<i32>,
    starts: Buffer<i32>,
    tokens: Buffer<i32>,
    places: Buffer<i32>,
}

/// Hidden states and a head, and room for the logits of a part.
struct Logits<'a> {
    /// The plan's rows `[R, C]`.
    hidden: Tensor,
    /// `[V, C]`.
    head: &'a Tensor,
    logits: Buffer<f32>,
}

impl<'a> Logits<'a> {
    fn new(gpu: &Gpu, plan: &Plan, hidden: &Tensor, head: &'a Tensor) -> Result<Logits<'a>> {
        let rows = plan.largest().min(plan.at_once);
        let logits = gpu.alloc(rows * head.matrix().0, Purpose::Workspace)?;
        // The plan's rows are rows of the hidden states, so no other source is looked at.
        Ok(Logits { hidden: gather_rows(gpu, hidden, hidden, &plan.rows)?, head, logits })
    }

    fn of_reference(gpu: &Gpu, plan: &Plan, reference: Option<&'a Reference>) -> Result<Option<Logits<'a>>> {
        reference.map(|reference| Logits::new(gpu, plan, &reference.hidden, &reference.head)).transpose()
    }

    /// The logits of a part; the next call writes over them.
    fn fill(&mut self, part: &Range<usize>) -> Result<Const<f32>> {
        product(&self.hidden, part, self.head, &mut self.logits)?;
        Ok(self.logits.ptr())
    }
}

/// The address of the reference's logits of a part, null without one.
fn fill_reference(reference: Option<&mut Logits<'_>>, part: &Range<usize>) -> Result<Const<f32>> {
    reference.map_or_else(|| Ok(Const::null()), |reference| reference.fill(part))
}

/// `logits = hidden[rows] head^T`.
fn product(hidden: &Tensor, rows: &Range<usize>, head: &Tensor, logits: &mut Buffer<f32>) -> Result<()> {
    match head.dtype() {
        DType::Bf16 => product_of::<bf16>(hidden, rows, head, logits),
        _ => product_of::<f32>(hidden, rows, head, logits),
    }
}

fn product_of<T: Factor<f32>>(
    hidden: &Tensor,
    rows: &Range<usize>,
    head: &Tensor,
    logits: &mut Buffer<f32>,
) -> Result<()> {
    let (vocab, width) = head.matrix();
    Gemm {
        layout: Layout::Nt,
        a: Matrix::strided(hidden.buffer::<T>()?, rows.start * width, (rows.len(), width), width)?,
        b: Matrix::new(head.buffer::<T>()?, vocab, width)?,
        bias: None,
        c: MatrixMut::new(logits, rows.len(), vocab)?,
        into: Into::Overwrite,
    }
    .run()
}

/// Logits `[n, V]` in f32 of hidden states `[n, C]` by a head `[V, C]` of their type, by the product that the op uses.
///
/// # Errors
/// [`Error::Internal`] when shapes, types or devices don't fit; those of allocating and launching.
pub fn logits(hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
    let Some(gpu) = head.gpu() else {
        return Err(Error::Internal(format!("{NAME}: logits on the device of a head in host memory")));
    };
    let (rows, width) = hidden.matrix();
    if head.matrix().1 != width {
        return Err(Error::Internal(format!("{NAME}: hidden {:?}, head {:?}", hidden.shape(), head.shape())));
    }
    let vocab = head.matrix().0;
    let mut logits = alloc::<f32>(gpu, rows * vocab)?;
    product(hidden, &(0..rows), head, &mut logits)?;
    Tensor::from_buffer(&[rows, vocab], logits)
}

/// `out[slots[b]]` = the log-probability, at a temperature, of `tokens[b]` by row b of the logits `[B, V]`, f32 and not yet divided by
/// it. The bits are those of the op's first column for the same row, whatever else is in the batch.
///
/// A token below 0, or outside the vocabulary, gives NaN. A slot that `out` doesn't have is not written.
///
/// # Errors
/// [`Error::Internal`] when sizes, types or devices don't fit; those of launching.
pub fn sampled_log_probs(
    logits: &Tensor,
    tokens: &Buffer<i32>,
    slots: &Buffer<i32>,
    temperature: f64,
    out: &mut Buffer<f32>,
) -> Result<()> {
    let (rows, vocab) = logits.matrix();
    let gpu = out.gpu().clone();
    let from = operand::<f32>(&gpu, NAME, logits, rows * vocab)?.ptr();
    if [tokens, slots].iter().any(|x| x.len() != rows || *x.gpu() != gpu) {
        return Err(Error::Internal(format!(
            "{NAME}: {} tokens and {} slots for logits {:?}",
            tokens.len(),
            slots.len(),
            logits.shape()
        )));
    }
    if rows == 0 {
        return Ok(());
    }
    let (grid, len) = (Grid::new(rows, THREADS)?, out.len() as i64);
    let (width, temperature) = (dimension(NAME, vocab)?, temperature as f32);
    // SAFETY: the logits hold rows * vocab elements, tokens and slots one for each row; the kernel reads no logit outside of its
    // row and writes no slot outside of `out`.
    unsafe {
        kernels::sampled_log_probs_forward_f32(
            &gpu,
            grid,
            from,
            tokens.ptr(),
            slots.ptr(),
            out.ptr_mut(),
            len,
            width,
            temperature,
        )
    }
}

/// The scores `[n, 3]`, and what the backward pass needs of each distinct row. The op has checked itself.
pub(super) fn forward(
    gpu: &Gpu,
    op: &LogSoftmaxKl,
    hidden: &Tensor,
    head: &Tensor,
) -> Result<(Tensor, Buffer<f32>)> {
    let vocab = head.matrix().0;
    let plan = Plan::new(op, vocab, false)?;
    let targets = plan.upload(gpu)?;
    let mut kept = alloc::<f32>(gpu, plan.rows.len() * KEPT)?;
    let mut scores = alloc::<f32>(gpu, op.targets.len() * 3)?;
    let mut policy = Logits::new(gpu, &plan, hidden, head)?;
    let mut reference = Logits::of_reference(gpu, &plan, op.reference.as_ref())?;
    for part in plan.parts(0..plan.rows.len()) {
        let z = policy.fill(&part)?;
        let q = fill_reference(reference.as_mut(), &part)?;
        // SAFETY: both logits hold a row for each of the part's; the starts are within tokens and places, the tokens within the
        // vocabulary and the places within the scores; each row writes its own targets and its own row of `kept`.
        unsafe {
            kernels::log_softmax_kl_forward_f32(
                gpu,
                Grid::new(part.len(), THREADS)?,
                z,
                q,
                targets.starts.ptr().offset(part.start),
                targets.tokens.ptr(),
                targets.places.ptr(),
                kept.ptr_mut().offset(part.start * KEPT),
                scores.ptr_mut(),
                dimension(NAME, vocab)?,
                op.temperature as f32,
            )?;
        }
    }
    Ok((Tensor::from_buffer(&[op.targets.len(), 3], scores)?, kept))
}

/// `(dh, dW)` where they are needed.
pub(super) fn backward(
    gpu: &Gpu,
    op: &LogSoftmaxKl,
    saved: (&Tensor, &Tensor, &Buffer<f32>),
    dscores: &Tensor,
    needs: [bool; 2],
) -> Result<[Option<Tensor>; 2]> {
    match saved.0.dtype() {
        DType::Bf16 => backward_of(gpu, op, saved, dscores, needs, kernels::log_softmax_kl_backward_bf16),
        _ => backward_of(gpu, op, saved, dscores, needs, kernels::log_softmax_kl_backward_f32),
    }
}

type Backward<T> = unsafe fn(
    &Gpu,
    Grid,
    Const<f32>,
    Const<f32>,
    Const<f32>,
    Const<i32>,
    Const<i32>,
    Const<i32>,
    Const<i32>,
    Const<f32>,
    Mut<T>,
    i32,
    f32,
) -> Result<()>;

fn backward_of<T: Factor<f32> + Factor<T>>(
    gpu: &Gpu,
    op: &LogSoftmaxKl,
    (hidden, head, kept): (&Tensor, &Tensor, &Buffer<f32>),
    dscores: &Tensor,
    needs: [bool; 2],
    kernel: Backward<T>,
) -> Result<[Option<Tensor>; 2]> {
    let (vocab, width) = head.matrix();
    let incoming = operand::<f32>(gpu, NAME, dscores, op.targets.len() * 3)?.ptr();
    let plan = Plan::new(op, vocab, true)?;
    let targets = plan.upload(gpu)?;
    let mut policy = Logits::new(gpu, &plan, hidden, head)?;
    let mut reference = Logits::of_reference(gpu, &plan, op.reference.as_ref())?;
    let mut dz = gpu.alloc::<T>(plan.largest() * vocab, Purpose::Workspace)?;
    let mut d_rows = alloc::<T>(gpu, plan.rows.len() * width)?;
    let mut dw = gpu.alloc::<f32>(if needs[1] { vocab * width } else { 0 }, Purpose::Gradients)?;
    if plan.pieces.is_empty() {
        dw.fill_zero()?;
    }
    for (i, piece) in plan.pieces.iter().enumerate() {
        for part in plan.parts(piece.clone()) {
            let z = policy.fill(&part)?;
            let q = fill_reference(reference.as_mut(), &part)?;
            // SAFETY: logits hold a row for each of the part's, dz for each of the piece's, `kept` for each distinct row; the starts
            // are within tokens and places, the tokens within the vocabulary and the places within the incoming gradient.
            unsafe {
                kernel(
                    gpu,
                    Grid::new(part.len(), THREADS)?,
                    z,
                    q,
                    kept.ptr(),
                    targets.slots.ptr().offset(part.start),
                    targets.starts.ptr().offset(part.start),
                    targets.tokens.ptr(),
                    targets.places.ptr(),
                    incoming,
                    dz.ptr_mut().offset((part.start - piece.start) * vocab),
                    dimension(NAME, vocab)?,
                    op.temperature as f32,
                )?;
            }
        }
        let (rows, first) = (piece.len(), piece.start * width);
        if needs[0] {
            Gemm {
                layout: Layout::Nn,
                a: Matrix::new(&dz, rows, vocab)?,
                b: Matrix::new(head.buffer::<T>()?, vocab, width)?,
                bias: None,
                c: MatrixMut::strided(&mut d_rows, first, (rows, width), width)?,
                into: Into::Overwrite,
            }
            .run()?;
        }
        if needs[1] {
            Gemm {
                layout: Layout::Tn,
                a: Matrix::new(&dz, rows, vocab)?,
                b: Matrix::strided(policy.hidden.buffer::<T>()?, first, (rows, width), width)?,
                bias: None,
                c: MatrixMut::new(&mut dw, vocab, width)?,
                into: if i == 0 { Into::Overwrite } else { Into::Accumulate },
            }
            .run()?;
        }
    }
    let dh = needs[0].then(|| scattered(gpu, &plan, d_rows, hidden.shape())).transpose()?;
    let dw = match needs[1] {
        true => Some(cast(&Tensor::from_buffer(head.shape(), dw)?, T::DTYPE)?),
        false => None,
    };
    Ok([dh, dw])
}

/// The gradient of the hidden states from that of the plan's rows `[R, C]`; the other rows are 0.
fn scattered<T: DeviceReal>(gpu: &Gpu, plan: &Plan, d_rows: Buffer<T>, shape: &[usize]) -> Result<Tensor> {
    let width = shape.last().copied().unwrap_or(1);
    let d_rows = Tensor::from_buffer(&[plan.rows.len(), width], d_rows)?;
    let zero = Tensor::from_buffer(&[1, width], gpu.zeros::<T>(width, Purpose::Inputs)?)?;
    // Source -1 is the row of zeros.
    let mut source = vec![-1; shape[..shape.len() - 1].iter().product()];
    for (slot, &row) in plan.rows.iter().enumerate() {
        source[row as usize] = slot as i32;
    }
    gather_rows(gpu, &d_rows, &zero, &source)?.reshape(shape)
}
