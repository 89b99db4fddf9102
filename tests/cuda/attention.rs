//! Attention over packed segments, and decoding over pages.

use crate::compare::{assert_close, assert_same, check_op, elements, normal, on_gpu, scaled};
use crate::harness::{gpu, is_checked};
use half::bf16;
use othink::autograd::Op;
use othink::cuda::Gpu;
use othink::error::{Error, Result};
use othink::ops::attention::paged::{DecodeBatch, PAGE, PagedKv, Pages, Sequence, Slots};
use othink::ops::attention::{Attention, Heads, Segment};
use othink::tensor::{DType, Tensor};
use std::ops::Range;
use std::slice;

const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

fn heads(query: usize, key: usize, dim: usize) -> Heads {
    Heads { query, key, dim }
}

/// A prompt and its completions, from row `first` on.
fn group(first: usize, prompt: usize, completions: &[usize]) -> Vec<Segment> {
    let shared = first..first + prompt;
    let mut segments = vec![Segment { rows: shared.clone(), prefix: None }];
    for &n in completions {
        let start = segments[segments.len() - 1].rows.end;
        segments.push(Segment { rows: start..start + n, prefix: Some(shared.clone()) });
    }
    segments
}

/// Segments without a prefix.
fn separate(lengths: &[usize]) -> Vec<Segment> {
    let starts = lengths.iter().scan(0, |next, n| {
        *next += n;
        Some(*next - n)
    });
    // An empty prefix is none.
    let segments =
        starts.zip(lengths).map(|(start, n)| Segment { rows: start..start + n, prefix: Some(0..0) });
    segments.collect()
}

/// q, k, v, as f64.
fn inputs(heads: Heads, rows: usize, dtype: DType) -> [Tensor; 3] {
    let key = heads.key * heads.dim;
    [(heads.query * heads.dim, 1), (key, 2), (key, 3)].map(|(width, id)| normal(&[rows, width], dtype, id))
}

fn rows_of(segments: &[Segment]) -> usize {
    segments[segments.len() - 1].rows.end
}

/// Some rows of a matrix, in host memory.
fn rows(x: &Tensor, ranges: &[Range<usize>]) -> Tensor {
    let (_, width) = x.matrix();
    let all = elements(x);
    let part: Vec<f64> = ranges.iter().flat_map(|r| all[r.start * width..r.end * width].to_vec()).collect();
    Tensor::new(&[part.len() / width, width], part).expect("whole rows").to_dtype(x.dtype())
}

fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// o, dq, dk, dv, as plainly as products of bf16 with f32 sums allow: P and dS are rounded for theirs. The CPU's op keeps both in f32,
/// as no tensor core can, so it isn't the measure of what one loses.
fn plain_bf16(op: &Attention, [q, k, v, dy]: [&Tensor; 4]) -> [Tensor; 4] {
    let Heads { query, key, dim } = op.heads;
    let scale = 1.0 / (dim as f32).sqrt();
    let f32s = |x: &Tensor| elements(x).iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let [q, k, v, dy] = [(q, query), (k, key), (v, key), (dy, query)].map(|(x, heads)| (f32s(x), heads));
    let mut sums = [&q, &q, &k, &v].map(|(x, _)| vec![0.0_f32; x.len()]);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let add =
        |to: &mut [f32], factor: f32, x: &[f32]| to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
    for segment in op.segments.iter() {
        for (row, head) in segment.rows.clone().flat_map(|row| (0..query).map(move |head| (row, head))) {
            let last = if op.causal { row + 1 } else { segment.rows.end };
            let keys = segment.prefix.clone().unwrap_or(0..0).chain(segment.rows.start..last);
            let place = |row: usize, head: usize, heads: usize| {
                let at = (row * heads + head) * dim;
                at..at + dim
            };
            let (own, key_head) = (place(row, head, query), head / (query / key));
            let keys: Vec<Range<usize>> = keys.map(|row| place(row, key_head, key)).collect();
            let s: Vec<f32> =
                keys.iter().map(|at| dot(&q.0[own.clone()], &k.0[at.clone()]) * scale).collect();
            let top = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = s.iter().map(|s| (s - top).exp()).sum();
            let [o, dq, dk, dv] = &mut sums;
            let o = &mut o[own.clone()];
            s.iter().zip(&keys).for_each(|(s, at)| add(o, rounded((s - top).exp()), &v.0[at.clone()]));
            o.iter_mut().for_each(|o| *o = rounded(*o / total));
            let dy = &dy.0[own.clone()];
            let delta = dot(o, dy);
            for (s, at) in s.iter().zip(&keys) {
                let p = (s - top).exp() / total;
                let ds = rounded(p * (dot(dy, &v.0[at.clone()]) - delta));
                add(&mut dv[at.clone()], rounded(p), dy);
                add(&mut dk[at.clone()], ds * scale, &q.0[own.clone()]);
                add(&mut dq[own.clone()], ds * scale, &k.0[at.clone()]);
            }
        }
    }
    let rows = rows_of(&op.segments);
    let tensor = |x: &Vec<f32>| {
        Tensor::new(&[rows, x.len() / rows], x.clone()).expect("whole rows").to_dtype(DType::Bf16)
    };
    sums.each_ref().map(tensor)
}

/// Holds both passes to the rule of `compare`.
fn check(gpu: &Gpu, dtype: DType, make: impl Fn() -> Attention, [q, k, v]: [&Tensor; 3]) -> Result<()> {
    let op = make();
    let what = format!("{:?} {} {:?}", op.heads, op.causal, op.segments);
    if dtype != DType::Bf16 {
        check_op(&what, gpu, dtype, make, [q, k, v]);
        return Ok(());
    }
    let dy = normal(q.shape(), dtype, 999);
    let (o, saved) = op.forward([q, k, v])?;
    let gradients = op.backward(saved, &dy, [true; 3])?.map(|d| d.expect("a gradient"));
    let plain = plain_bf16(&op, [q, k, v, &dy]);
    let kernel = run(gpu, &op, [q, k, v, &dy], dtype)?;
    for (i, reference) in [o].iter().chain(&gradients).enumerate() {
        assert_close(
            &format!("{} of {what} in bf16", ["o", "dq", "dk", "dv"][i]),
            &kernel[i],
            &plain[i],
            reference,
        );
    }
    Ok(())
}

#[test]
fn equals_the_definition() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let two_groups = [group(0, 3, &[2, 64]), group(69, 66, &[1])].concat();
    // Lengths of 1, 3, 17, and around a tile; as many query heads as key heads, and 6 times as many; every head dimension.
    let cases: [(Heads, Vec<Segment>, bool); 14] = [
        (heads(2, 2, 16), separate(&[64, 1, 63, 3, 65]), false),
        (heads(2, 2, 16), separate(&[17, 129]), true),
        (heads(4, 2, 16), two_groups, true),
        (heads(6, 1, 32), group(0, 65, &[1, 3, 17]), true),
        (heads(2, 1, 48), group(0, 5, &[66]), true),
        (heads(6, 1, 64), group(0, 64, &[1, 65]), true),
        (heads(2, 2, 80), separate(&[129, 3]), false),
        (heads(3, 1, 96), group(0, 17, &[33, 2]), true),
        (heads(2, 1, 112), separate(&[65]), true),
        (heads(1, 1, 128), group(0, 63, &[64, 2]), true),
        (heads(6, 1, 128), separate(&[34]), false),
        // Between the kernels' dimensions.
        (heads(4, 2, 8), group(0, 17, &[3, 66]), true),
        (heads(3, 1, 12), separate(&[19, 1]), false),
        (heads(2, 2, 81), group(0, 5, &[2]), true),
    ];
    for dtype in DTYPES {
        for (heads, segments, causal) in &cases {
            let [q, k, v] = inputs(*heads, rows_of(segments), dtype);
            let op = || Attention { heads: *heads, segments: segments.clone().into(), causal: *causal };
            check(gpu, dtype, op, [&q, &k, &v])?;
        }
        // Scores so large that few keys have all the weight, and the largest so far changes from tile to tile.
        let segments = group(0, 130, &[70]);
        let [q, k, v] = inputs(heads(1, 1, 32), 200, dtype);
        let op = || Attention { heads: heads(1, 1, 32), segments: segments.clone().into(), causal: true };
        check(gpu, dtype, op, [&scaled(&q, 8.0), &k, &v])?;
        let op = Attention { heads: heads(1, 1, 16), segments: [].into(), causal: true };
        let empty = on_gpu(&normal(&[0, 16], dtype, 1), dtype, gpu);
        let (o, saved) = op.forward([&empty, &empty, &empty])?;
        let dq = op.backward(saved, &o, [true; 3])?;
        assert!(o.is_empty() && dq.iter().flatten().count() == 3);
    }
    Ok(())
}

/// o, dq, dk, dv on the GPU.
fn run(gpu: &Gpu, op: &Attention, [q, k, v, dy]: [&Tensor; 4], dtype: DType) -> Result<[Tensor; 4]> {
    let [q, k, v, dy] = [q, k, v, dy].map(|x| on_gpu(x, dtype, gpu));
    let (o, saved) = op.forward([&q, &k, &v])?;
    let [dq, dk, dv] = op.backward(saved, &dy, [true; 3])?.map(|d| d.expect("a gradient"));
    Ok([o, dq, dk, dv])
}

/// A completion behind its prompt has the same bits whatever else is in the batch, and so has a row whatever comes after it.
#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (dtype, heads) in DTYPES.into_iter().flat_map(|t| [(t, heads(6, 1, 32)), (t, heads(2, 2, 80))]) {
        let segments = [group(0, 70, &[1, 5, 66]), group(142, 9, &[3])].concat();
        let total = rows_of(&segments);
        let [q, k, v] = inputs(heads, total, dtype);
        let all = [&q, &k, &v, &normal(q.shape(), dtype, 9)];
        let op = Attention { heads, segments: segments.clone().into(), causal: true };
        let batch = run(gpu, &op, all, dtype)?;
        if is_checked() {
            continue; // The rest asks for equal bits, of the same kernels.
        }
        for segment in &segments {
            let prompt = segment.prefix.clone().unwrap_or(0..0);
            // The whole segment, and its first rows.
            for n in [segment.rows.len(), segment.rows.len().div_ceil(2)] {
                let own = segment.rows.start..segment.rows.start + n;
                let ranges = [prompt.clone(), own.clone()];
                let alone = all.map(|x| rows(x, &ranges));
                let mut segments = group(0, prompt.len(), &[n]);
                if prompt.is_empty() {
                    segments = separate(&[n]);
                }
                let op = Attention { heads, segments: segments.into(), causal: true };
                let alone = run(gpu, &op, alone.each_ref(), dtype)?;
                let behind = prompt.len()..prompt.len() + n;
                for (part, name) in ["o", "dq"].iter().enumerate() {
                    let what = format!("{name} of rows {own:?}, {heads:?}");
                    assert_same(
                        &what,
                        &rows(&alone[part], slice::from_ref(&behind)),
                        &rows(&batch[part], slice::from_ref(&own)),
                    );
                }
            }
        }
        // Nothing in the backward pass depends on the order in which blocks and threads run.
        for (again, before) in run(gpu, &op, all, dtype)?.iter().zip(&batch) {
            assert_same("a second run", again, before);
        }
    }
    Ok(())
}

/// Pages of `len` tokens by their numbers, taken from `free`.
fn take(free: &mut Vec<usize>, len: usize) -> Pages {
    Pages { numbers: free.split_off(free.len() - len.div_ceil(PAGE)), len }
}

fn fill(kv: &mut PagedKv, gpu: &Gpu, [k, v]: [&Tensor; 2], range: Range<usize>, pages: &Pages) -> Result<()> {
    let slots = (0..range.len()).map(|i| pages.slot(i)).collect::<Result<Vec<_>>>()?;
    let [k, v] = [k, v].map(|x| on_gpu(&rows(x, slice::from_ref(&range)), k.dtype(), gpu));
    kv.store(&k, &v, &Slots::new(gpu, &slots)?)
}

/// Rows decoded over pages have the bits of the forward pass, for any layout of pages and any batch.
#[test]
fn decoding_over_pages() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let heads = [
        heads(2, 2, 16),
        heads(18, 1, 16),
        heads(4, 2, 12),
        heads(6, 1, 32),
        heads(2, 1, 48),
        heads(12, 2, 64),
        heads(2, 2, 80),
        heads(3, 1, 96),
        heads(1, 1, 112),
        heads(6, 1, 128),
    ];
    for (dtype, heads) in DTYPES.into_iter().flat_map(|dtype| heads.map(|heads| (dtype, heads))) {
        // Three tiles of keys; for the checker two.
        let long = if is_checked() { 65 } else { 130 };
        let segments = [group(0, 67, &[1, 66, long]), group(134 + long, 64, &[2])].concat();
        let total = rows_of(&segments);
        let [q, k, v] = inputs(heads, total, dtype).map(|x| x.to_dtype(dtype));
        let on_device = [&q, &k, &v].map(|x| on_gpu(x, dtype, gpu));
        let op = Attention { heads, segments: segments.clone().into(), causal: true };
        let (o, _) = op.forward(on_device.each_ref())?;
        let width = heads.query * heads.dim;
        let o = elements(&o);
        for layout in if is_checked() { 1..2 } else { 0..2 } {
            // Numbers of pages in ascending order, or all over the cache.
            let mut free: Vec<usize> =
                (0..17).map(|i| if layout == 0 { 16 - i } else { i * 7 % 17 }).collect();
            let mut kv = PagedKv::new(gpu, 17, heads, dtype)?;
            let (mut prompts, mut grown) = (Vec::new(), Vec::new());
            for segment in &segments {
                let pages = take(&mut free, segment.rows.len());
                fill(&mut kv, gpu, [&k, &v], segment.rows.clone(), &pages)?;
                match &segment.prefix {
                    None => prompts.push((segment.rows.clone(), pages)),
                    Some(prefix) => {
                        let prefix =
                            prompts.iter().find(|(rows, _)| rows == prefix).expect("the prompt is there");
                        grown.push((segment, Sequence { prefix: prefix.1.clone(), own: pages }));
                    }
                }
            }
            // Sequences as they were after some rows; the cache holds later ones too, as old content of its pages.
            let cut = |n: usize, which: &[usize]| {
                let some = which.iter().map(|&i| &grown[i]).filter(|(segment, _)| segment.rows.len() >= n);
                some.map(|(segment, sequence)| {
                    let own = Pages { len: n, ..sequence.own.clone() };
                    (segment.rows.start + n - 1, Sequence { own, ..sequence.clone() })
                })
                .collect::<Vec<_>>()
            };
            for batch in
                [cut(1, &[0, 1, 2, 3]), cut(2, &[3, 1]), cut(64, &[2, 1]), cut(65, &[1]), cut(long, &[2])]
            {
                let sequences: Vec<Sequence> = batch.iter().map(|(_, sequence)| sequence.clone()).collect();
                let newest: Vec<Range<usize>> = batch.iter().map(|&(row, _)| row..row + 1).collect();
                let decoding = DecodeBatch::new(gpu, &sequences)?;
                let [q, k, v] = [&q, &k, &v].map(|x| on_gpu(&rows(x, &newest), dtype, gpu));
                kv.store(&k, &v, decoding.newest())?;
                let got = kv.decode(&q, &decoding)?;
                let want: Vec<f64> =
                    newest.iter().flat_map(|r| o[r.start * width..r.end * width].to_vec()).collect();
                let want = Tensor::new(&[batch.len(), width], want)?.to_dtype(dtype);
                assert_same(&format!("rows {newest:?}, {heads:?}, layout {layout}"), &got, &want);
            }
        }
    }
    Ok(())
}

#[test]
fn what_the_kernels_cannot_do_is_refused() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let matrix = |width| on_gpu(&normal(&[6, width], DType::F32, 1), DType::F32, gpu);
    for (dtype, dim) in DTYPES.into_iter().flat_map(|dtype| [129, 144].map(|dim| (dtype, dim))) {
        let x = on_gpu(&normal(&[6, dim], dtype, 1), dtype, gpu);
        let op = Attention { heads: heads(1, 1, dim), segments: group(0, 6, &[]).into(), causal: true };
        assert!(matches!(op.forward([&x, &x, &x]), Err(Error::Input(_))), "{dim}");
    }
    let mut part = group(0, 4, &[2]);
    part[1].prefix = Some(0..3);
    let op = Attention { heads: heads(1, 1, 16), segments: part.into(), causal: true };
    assert!(op.forward([&matrix(16), &matrix(16), &matrix(16)]).is_err(), "a part of a segment as prefix");

    let pages = |numbers: &[usize], len| Pages { numbers: numbers.to_vec(), len };
    let batch = |prefix, own| DecodeBatch::new(gpu, &[Sequence { prefix, own }]);
    assert!(batch(pages(&[], 0), pages(&[0], 0)).is_err(), "no row");
    assert!(batch(pages(&[], 0), pages(&[0], 65)).is_err(), "a page too few");
    assert!(batch(pages(&[], 1), pages(&[0], 1)).is_err(), "a page too few for the prefix");
    assert!(Slots::new(gpu, &[3, 1, 3]).is_err(), "a row twice");
    let mut kv = PagedKv::new(gpu, 2, heads(2, 1, 16), DType::F32)?;
    let one = |width| on_gpu(&normal(&[1, width], DType::F32, 1), DType::F32, gpu);
    assert!(kv.store(&one(16), &one(16), &Slots::new(gpu, &[128])?).is_err(), "beyond the cache");
    assert!(kv.store(&one(16), &one(16), &Slots::new(gpu, &[1, 2])?).is_err(), "another number of rows");
    assert!(kv.decode(&one(32), &batch(pages(&[], 0), pages(&[2], 1))?).is_err(), "a page beyond the cache");
    assert!(
        kv.decode(&matrix(32), &batch(pages(&[], 0), pages(&[1], 1))?).is_err(),
        "another number of rows"
    );
    assert_eq!(PagedKv::page_bytes(heads(2, 1, 16), DType::Bf16), 2 * 64 * 16 * 2);
    Ok(())
}
