//! The CPU ops that a step spends its time in. One group per op; ids are `variant/shape`.
//!
//! `Throughput::Elements` counts floating-point operations (a multiply-add is two), so criterion's `elem/s` are FLOP/s.
//! Each variant is checked against a plain computation of one of its numbers before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use othink::autograd::Op;
use othink::ops::attention::{Attention, Heads, Segment};
use othink::ops::gemm::{Into, View, gemm};
use othink::ops::log_softmax_kl::{LogSoftmaxKl, Reference, Target};
use othink::rng::{Purpose, Stream};
use othink::tensor::Tensor;
use std::hint::black_box;

fn numbers(n: usize, id: u64) -> Vec<f32> {
    let mut stream = Stream::new(1, Purpose::Init, id);
    (0..n).map(|_| stream.normal()).collect()
}

fn matrix(rows: usize, width: usize, id: u64) -> Tensor {
    Tensor::new(&[rows, width], numbers(rows * width, id)).expect("as many numbers as the shape says")
}

/// `x W^T` at the row counts of decoding, of a prompt, and of a training batch.
fn bench_gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for (m, n, k) in [(1, 1536, 1536), (8, 1536, 1536), (64, 1536, 1536), (512, 1536, 1536), (512, 33, 64)] {
        let (a, w) = (numbers(m * k, 1), numbers(n * k, 2));
        let mut out = vec![0.0; m * n];
        let mut run = || {
            gemm(
                (m, n, k),
                View::rows(&a, k),
                View::transposed(&w, k),
                black_box(&mut out),
                n,
                Into::Overwrite,
            );
            out[m * n - 1]
        };
        let (x, y) = (&a[(m - 1) * k..], &w[(n - 1) * k..]);
        assert_eq!(run(), x.iter().zip(y).fold(0.0, |sum, (x, y)| x.mul_add(*y, sum)));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        group.bench_function(BenchmarkId::new("x_wt", format!("{m}x{n}x{k}")), |b| b.iter(&mut run));
    }
    group.finish();
}

/// Segments of P groups, each a prompt and G completions; with `shared`, the prompt's rows stand once.
fn segments(
    prompts: usize,
    prompt: usize,
    completions: usize,
    completion: usize,
    shared: bool,
) -> Vec<Segment> {
    let mut list = Vec::new();
    let mut next = 0;
    let mut push = |rows: usize, prefix| {
        list.push(Segment { rows: next..next + rows, prefix });
        next += rows;
    };
    for p in 0..prompts {
        if shared {
            let start = p * (prompt + completions * completion);
            push(prompt, None);
            (0..completions).for_each(|_| push(completion, Some(start..start + prompt)));
        } else {
            (0..completions).for_each(|_| push(prompt + completion, None));
        }
    }
    list
}

/// Multiply-adds of the visible scores and of the weighted sum, two operations each.
fn attention_flops(heads: Heads, segments: &[Segment]) -> u64 {
    let visible = |s: &Segment| {
        let (own, prefix) = (s.rows.len(), s.prefix.as_ref().map_or(0, ExactSizeIterator::len));
        own * prefix + own * (own + 1) / 2
    };
    4 * (heads.query * heads.dim * segments.iter().map(visible).sum::<usize>()) as u64
}

/// A group packed behind its prompt against its separate sequences: the same results, and time to the same work.
fn bench_attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    group.sample_size(20);
    let heads = Heads { query: 12, key: 2, dim: 128 };
    let (prompt, completions, completion) = (256, 8, 32);
    let separate_flops = attention_flops(heads, &segments(1, prompt, completions, completion, false));
    for (name, shared) in [("packed", true), ("separate", false)] {
        let segments = segments(1, prompt, completions, completion, shared);
        let rows = segments.last().map_or(0, |s| s.rows.end);
        let (q, k, v) = (matrix(rows, 12 * 128, 1), matrix(rows, 2 * 128, 2), matrix(rows, 2 * 128, 3));
        let d_out = matrix(rows, 12 * 128, 4);
        let op = || Attention { heads, segments: segments.clone().into(), causal: true };
        let forward = || op().forward([&q, &k, &v]).expect("the shapes fit");
        // The first row of a causal segment sees only itself.
        assert_eq!(forward().0.to_f32()[..128], v.to_f32()[..128]);
        let id = format!("{prompt}+{completions}x{completion}");
        // Both count the work of the separate sequences, so the two rates compare as the times do.
        group.throughput(Throughput::Elements(separate_flops));
        group.bench_function(BenchmarkId::new(format!("{name}_forward"), &id), |b| b.iter(forward));
        group.throughput(Throughput::Elements(separate_flops * 7 / 2));
        group.bench_function(BenchmarkId::new(format!("{name}_forward_backward"), &id), |b| {
            b.iter(|| op().backward(forward().1, &d_out, [true; 3]).expect("the shapes fit"));
        });
    }
    group.finish();
}

/// The fused head, sampled and with the exact KL.
fn bench_log_softmax_kl(c: &mut Criterion) {
    let mut group = c.benchmark_group("log_softmax_kl");
    group.sample_size(10);
    let (rows, width, vocab) = (256, 256, 8192);
    // Logits of unit size.
    let state = |id| {
        let numbers = numbers(rows * width, id).iter().map(|x| x / (width as f32).sqrt()).collect();
        Tensor::new(&[rows, width], numbers).expect("as many numbers as the shape says")
    };
    let (hidden, head) = (state(1), matrix(vocab, width, 2));
    let reference = Reference { hidden: state(3), head: matrix(vocab, width, 4) };
    let dy = matrix(rows, 3, 5);
    let product = 2 * (rows * width * vocab) as u64;
    for (name, reference, products) in [("sampled", None, [1, 4]), ("exact_kl", Some(reference), [2, 6])] {
        let op = || LogSoftmaxKl {
            reference: reference.clone(),
            ..LogSoftmaxKl::new((0..rows).map(|row| Target { row, token: (7 * row) as u32 }).collect(), 0.9)
        };
        let forward = || op().forward([&hidden, &head]).expect("the shapes fit");
        let scores = forward().0.to_f32().to_vec();
        assert!(
            scores.chunks(3).all(|row| row[0] < 0.0 && row[1] > 0.0 && (row[2] > 0.5) == reference.is_some())
        );
        let id = format!("{rows}x{width}x{vocab}");
        group.throughput(Throughput::Elements(products[0] * product));
        group.bench_function(BenchmarkId::new(format!("{name}_forward"), &id), |b| b.iter(forward));
        // The backward pass forms the logits again, then both gradients.
        group.throughput(Throughput::Elements(products[1] * product));
        group.bench_function(BenchmarkId::new(format!("{name}_forward_backward"), &id), |b| {
            b.iter(|| op().backward(forward().1, &dy, [true; 2]).expect("the shapes fit"));
        });
    }
    group.finish();
}

criterion_group!(benches, bench_gemm, bench_attention, bench_log_softmax_kl);
criterion_main!(benches);
