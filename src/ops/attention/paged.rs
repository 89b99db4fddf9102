//! Decode attention over a cache in pages, on a GPU.
//!
//! A page holds the keys, and in a tensor of its own the values, of [`PAGE`] tokens of one sequence or prompt. Completions of a group
//! name the same pages of their prompt. A page is the tile in which training's kernels take keys, so a row decoded from pages
//! has the bits of the same row in [`super::Attention`], wherever its pages lie and whatever else is in the batch.

use super::{Heads, cuda, plan};
use crate::cuda::{Buffer, Gpu, Purpose};
use crate::error::{Error, Result};
use crate::ops::launch::dimension;
use crate::tensor::{DType, Tensor};
use half::bf16;

/// Tokens of a page.
pub const PAGE: usize = plan::KEYS;

/// Tokens in pages: token i is row `i % PAGE` of page `numbers[i / PAGE]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// The pages, in the order of the tokens.
    pub numbers: Vec<usize>,
    /// How many tokens they hold.
    pub len: usize,
}

impl Pages {
    /// The row of the cache in which token `i` stands.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is no page for it.
    pub fn slot(&self, i: usize) -> Result<usize> {
        let page = self.numbers.get(i / PAGE);
        let page =
            page.ok_or_else(|| Error::Internal(format!("token {i} of {} pages", self.numbers.len())))?;
        Ok(page * PAGE + i % PAGE)
    }
}

/// What the next row of a sequence attends to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Keys shared with others.
    pub prefix: Pages,
    /// Keys of its own, the row's own included.
    pub own: Pages,
}

/// Sequences that grow by one row each, on the GPU: one for all layers of a step.
#[derive(Debug)]
pub struct DecodeBatch {
    tables: cuda::Tables,
    newest: Slots,
    /// One more than the highest page.
    pages: usize,
}

impl DecodeBatch {
    /// # Errors
    /// [`Error::Internal`] for a sequence without a row of its own, or with fewer pages than its tokens need; those of device memory.
    pub fn new(gpu: &Gpu, sequences: &[Sequence]) -> Result<DecodeBatch> {
        let (mut table, mut numbers, mut newest, mut pages) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for Sequence { prefix, own } in sequences {
            let places = [numbers.len(), numbers.len() + prefix.numbers.len()];
            for n in [prefix.len, own.len].into_iter().chain(places) {
                table.push(dimension("attention", n)?);
            }
            let last = own.len.checked_sub(1);
            let last = last.ok_or_else(|| Error::Internal("attention: a sequence without a row".into()))?;
            newest.push(own.slot(last)?);
            prefix.len.checked_sub(1).map(|last| prefix.slot(last)).transpose()?;
            for &page in prefix.numbers.iter().chain(&own.numbers) {
                pages = pages.max(page + 1);
                numbers.push(dimension("attention", page)?);
            }
        }
        Ok(DecodeBatch {
            tables: cuda::Tables::new(gpu, &table, &numbers)?,
            newest: Slots::new(gpu, &newest)?,
            pages,
        })
    }

    /// Where the new row of each sequence goes.
    pub fn newest(&self) -> &Slots {
        &self.newest
    }
}

/// Rows of a cache, on the GPU: one for all layers.
#[derive(Debug)]
pub struct Slots {
    rows: Buffer<i32>,
    /// One more than the last row.
    end: usize,
}

impl Slots {
    /// # Errors
    /// [`Error::Internal`] for a row that comes twice; those of device memory.
    pub fn new(gpu: &Gpu, rows: &[usize]) -> Result<Slots> {
        let mut sorted = rows.to_vec();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Internal(format!("attention: row {} of the cache for two tokens", twice[0])));
        }
        let end = sorted.last().map_or(0, |last| last + 1);
        let rows = rows.iter().map(|&row| dimension("attention", row)).collect::<Result<Vec<_>>>()?;
        Ok(Slots { rows: gpu.upload(&rows, Purpose::Inputs)?, end })
    }
}

/// Keys and values of one layer, `[pages * PAGE, K * D]` each, D being as wide as the kernels'.
#[derive(Debug)]
pub struct PagedKv {
    gpu: Gpu,
    heads: Heads,
    keys: Tensor,
    values: Tensor,
}

impl PagedKv {
    /// A cache of undefined content.
    ///
    /// # Errors
    /// Those of device memory.
    pub fn new(gpu: &Gpu, pages: usize, heads: Heads, dtype: DType) -> Result<PagedKv> {
        let shape = [pages * PAGE, heads.key * heads.wide().dim];
        let len = shape.iter().product();
        let memory = || match dtype {
            DType::Bf16 => Tensor::from_buffer(&shape, gpu.alloc::<bf16>(len, Purpose::KvCache)?),
            _ => Tensor::from_buffer(&shape, gpu.alloc::<f32>(len, Purpose::KvCache)?),
        };
        Ok(PagedKv { gpu: gpu.clone(), heads, keys: memory()?, values: memory()? })
    }

    /// Bytes of one page of one layer.
    pub fn page_bytes(heads: Heads, dtype: DType) -> usize {
        2 * PAGE * heads.key * heads.wide().dim * dtype.size()
    }

    /// Writes k and v `[n, K * D]`: row i to the row of the cache that `slots` has for it.
    ///
    /// # Errors
    /// [`Error::Internal`] when shapes, types or slots don't fit; those of launching.
    pub fn store(&mut self, k: &Tensor, v: &Tensor, slots: &Slots) -> Result<()> {
        let fits = |x: &Tensor| {
            x.shape() == [slots.rows.len(), self.heads.key * self.heads.dim] && x.dtype() == self.keys.dtype()
        };
        if !fits(k) || !fits(v) || slots.end > self.keys.shape()[0] {
            return Err(Error::Internal(format!(
                "attention: k {:?} and v {:?} to {} rows up to {} of a cache of {:?}",
                k.shape(),
                v.shape(),
                slots.rows.len(),
                slots.end,
                self.keys.shape()
            )));
        }
        if slots.rows.is_empty() {
            return Ok(());
        }
        let [k, v] = [self.heads.widen(k)?, self.heads.widen(v)?];
        cuda::store(&self.gpu, [&k, &v], [&mut self.keys, &mut self.values], &slots.rows)
    }

    /// Attention of one row for each sequence, q and result `[B, H * D]`.
    ///
    /// # Errors
    /// [`Error::Internal`] when shapes, types or pages don't fit, [`Error::Input`] for a head dimension without kernels; those of
    /// launching.
    pub fn decode(&self, q: &Tensor, batch: &DecodeBatch) -> Result<Tensor> {
        let rows = q.rows_of("attention", self.heads.query * self.heads.dim)?;
        if rows != batch.newest.rows.len()
            || q.dtype() != self.keys.dtype()
            || batch.pages * PAGE > self.keys.shape()[0]
        {
            return Err(Error::Internal(format!(
                "attention: {rows} rows in {}, {} sequences, pages up to {} of a cache of {:?} in {}",
                q.dtype().name(),
                batch.newest.rows.len(),
                batch.pages,
                self.keys.shape(),
                self.keys.dtype().name()
            )));
        }
        let (heads, q) = (self.heads, self.heads.widen(q)?);
        let cache = [&self.keys, &self.values];
        let o = cuda::decode(&self.gpu, heads.wide(), &q, cache, &batch.tables, heads.exponent())?;
        heads.narrow(&o)
    }
}
