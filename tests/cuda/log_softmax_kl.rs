//! Log-probabilities, entropies, exact KL and their gradients against `othink::ops::log_softmax_kl`.

use crate::compare::{assert_close, assert_same, elements, normal, on_gpu, row, scaled};
use crate::harness::{gpu, is_checked};
use othink::autograd::Op;
use othink::cuda::Purpose;
use othink::error::Result;
use othink::ops::log_softmax_kl::cuda::{logits, sampled_log_probs};
use othink::ops::log_softmax_kl::{LogSoftmaxKl, Reference, Target};
use othink::tensor::{DType, Tensor};

const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Hidden states and heads of a policy and a reference, logits about `size` large; f64 numbers that `dtype` represents.
struct Models {
    hidden: Tensor,
    head: Tensor,
    reference: Reference,
}

/// Rows, width, vocabulary.
type Shape = (usize, usize, usize);

impl Models {
    fn new((t, c, v): Shape, dtype: DType, size: f64) -> Models {
        let unit = size / (c as f64).sqrt().log2().round().exp2();
        let reference = Reference {
            hidden: scaled(&normal(&[t, c + 2], dtype, 3), unit),
            head: normal(&[v, c + 2], dtype, 4),
        };
        Models {
            hidden: scaled(&normal(&[t, c], dtype, 1), unit),
            head: normal(&[v, c], dtype, 2),
            reference,
        }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Models {
        let Reference { hidden, head } = &self.reference;
        Models {
            hidden: f(&self.hidden),
            head: f(&self.head),
            reference: Reference { hidden: f(hidden), head: f(head) },
        }
    }

    fn op(&self, targets: &[Target], temperature: f64, with_reference: bool) -> LogSoftmaxKl {
        LogSoftmaxKl {
            reference: with_reference.then(|| self.reference.clone()),
            ..LogSoftmaxKl::new(targets.to_vec(), temperature)
        }
    }

    /// Scores and gradients.
    fn run(&self, op: &LogSoftmaxKl, dy: &Tensor) -> Result<(Tensor, [Tensor; 2])> {
        let (scores, saved) = op.forward([&self.hidden, &self.head])?;
        let [dh, dw] = op.backward(saved, dy, [true; 2])?;
        Ok((scores, [dh.expect("it was asked for"), dw.expect("it was asked for")]))
    }
}

/// Out of order, some rows without a target, some with several, the last row with the same token twice.
fn targets((t, _, v): Shape) -> Vec<Target> {
    let spread = |i: usize| (i * 7919 + i * i) % v;
    let every = (0..t).rev().filter(|row| row % 5 != 3).map(|row| Target { row, token: spread(row) as u32 });
    let more =
        [(t - 1, v - 1), (0, 0), (t - 1, v / 2), (t - 1, v - 1), (t / 2, v - 1), (t / 2, spread(t / 2))];
    every.chain(more.map(|(row, token)| Target { row, token: token as u32 })).collect()
}

fn column(x: &Tensor, c: usize) -> Tensor {
    let values: Vec<f64> = elements(x).chunks(3).map(|row| row[c]).collect();
    Tensor::new(&[values.len()], values).expect("a column").to_dtype(x.dtype())
}

/// All columns of the scores: log-probability, entropy, KL.
const ALL: [bool; 3] = [true; 3];

/// Gradients that come in by some columns of the scores.
fn incoming(n: usize, columns: [bool; 3]) -> Tensor {
    let dy = elements(&normal(&[n, 3], DType::F32, 9));
    let dy = dy.iter().enumerate().map(|(i, &d)| if columns[i % 3] { d } else { 0.0 });
    Tensor::new(&[n, 3], dy.collect::<Vec<f64>>()).expect("three for each target")
}

fn check(shape: Shape, dtype: DType, size: f64, temperature: f64) -> Result<()> {
    check_models(shape, dtype, Models::new(shape, dtype, size), temperature)
}

fn check_models(shape: Shape, dtype: DType, exact: Models, temperature: f64) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (plain, ours) = (exact.map(|x| x.to_dtype(dtype)), exact.map(|x| on_gpu(x, dtype, gpu)));
    let targets = targets(shape);
    for (with_reference, columns) in [
        (false, [true, false, false]),
        (false, [true, true, false]),
        (true, [true, false, false]),
        (true, [true, false, true]),
        (true, ALL),
    ] {
        let dy = incoming(targets.len(), columns);
        let reference = exact.run(&exact.op(&targets, temperature, with_reference), &dy)?;
        let plain = plain.run(&plain.op(&targets, temperature, with_reference), &dy.to_dtype(DType::F32))?;
        let ours =
            ours.run(&ours.op(&targets, temperature, with_reference), &on_gpu(&dy, DType::F32, gpu))?;
        let what = format!("{shape:?} in {} at {temperature}, reference {with_reference}", dtype.name());
        for (c, name) in ["log-probability", "entropy", "KL"].into_iter().enumerate() {
            let [ours, plain, reference] = [&ours.0, &plain.0, &reference.0].map(|x| column(x, c));
            assert_close(&format!("{name}, {what}"), &ours, &plain, &reference);
        }
        for (i, name) in ["dh", "dW"].into_iter().enumerate() {
            let what = format!("{name}, {what}, by columns {columns:?}");
            assert_close(&what, &ours.1[i], &plain.1[i], &reference.1[i]);
        }
    }
    Ok(())
}

/// Vocabularies of one element, of less than a pack, one past what a block loads at once, and one past what it loads in a turn.
#[test]
fn odd_sizes() -> Result<()> {
    for dtype in DTYPES {
        for shape in
            [(1, 1, 1), (1, 3, 3), (3, 17, 17), (17, 8, 129), (5, 3, 2049), (2, 4, 2048), (2, 4, 8193)]
        {
            check(shape, dtype, 1.0, 0.75)?;
        }
        check((17, 16, 515), dtype, 4.0, 1.0)?;
    }
    Ok(())
}

/// The vocabulary of Qwen2-VL.
#[test]
fn the_largest_vocabulary() -> Result<()> {
    if is_checked() {
        return Ok(());
    }
    check((2, 4, 151_936), DType::Bf16, 2.0, 0.9)
}

/// Logits whose exponentials overflow.
#[test]
fn huge_logits() -> Result<()> {
    for dtype in DTYPES {
        check((17, 5, 300), dtype, 64.0, 1.0)?;
    }
    Ok(())
}

/// What stands beyond the end of a row is not taken for a 0, which would be the largest of it.
#[test]
fn logits_far_below_zero() -> Result<()> {
    let shape = (3, 8, 3000);
    for dtype in DTYPES {
        let low = |x: &Tensor| {
            let numbers: Vec<f64> = elements(x).iter().map(|x| x - 40.0).collect();
            let x = Tensor::new(x.shape(), numbers).expect("as many numbers");
            x.to_dtype(dtype).to_dtype(DType::F64)
        };
        let ones = |x: &Tensor| Tensor::new(x.shape(), vec![1.0; x.len()]).expect("as many numbers");
        let Models { hidden, head, reference } = Models::new(shape, dtype, 1.0);
        let reference = Reference { hidden: ones(&reference.hidden), head: low(&reference.head) };
        check_models(shape, dtype, Models { hidden: ones(&hidden), head: low(&head), reference }, 1.0)?;
    }
    Ok(())
}

#[test]
fn no_targets() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in DTYPES {
        let models = Models::new((3, 4, 5), dtype, 1.0).map(|x| on_gpu(x, dtype, gpu));
        let dy = on_gpu(&incoming(0, ALL), DType::F32, gpu);
        let (scores, gradients) = models.run(&models.op(&[], 1.0, true), &dy)?;
        assert_eq!(scores.shape(), [0, 3]);
        for (gradient, like) in gradients.iter().zip([&models.hidden, &models.head]) {
            assert_eq!((gradient.shape(), gradient.dtype()), (like.shape(), dtype));
            assert!(elements(gradient).iter().all(|&d| d == 0.0));
        }
    }
    Ok(())
}

/// Only what is needed is computed, with the same bits.
#[test]
fn one_gradient_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let shape = (4, 8, 33);
    let models = Models::new(shape, DType::Bf16, 1.0).map(|x| on_gpu(x, DType::Bf16, gpu));
    let op = models.op(&targets(shape), 0.75, true);
    let dy = on_gpu(&incoming(op.targets.len(), ALL), DType::F32, gpu);
    let (_, both) = models.run(&op, &dy)?;
    for needs in [[true, false], [false, true], [false, false]] {
        let (_, saved) = op.forward([&models.hidden, &models.head])?;
        for (gradient, (both, needed)) in op.backward(saved, &dy, needs)?.iter().zip(both.iter().zip(needs)) {
            assert_eq!(gradient.is_some(), needed);
            gradient.iter().for_each(|gradient| assert_same("a gradient alone", gradient, both));
        }
    }
    Ok(())
}

/// A reference with the policy's own weights is at distance 0 exactly, whatever the rounding.
#[test]
fn a_reference_that_is_the_policy() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let shape = (9, 16, 2500);
    for dtype in DTYPES {
        let mut models = Models::new(shape, dtype, 4.0).map(|x| on_gpu(x, dtype, gpu));
        models.reference = Reference { hidden: models.hidden.clone(), head: models.head.clone() };
        let op = models.op(&targets(shape), 0.9, true);
        let (scores, _) = op.forward([&models.hidden, &models.head])?;
        assert!(elements(&column(&scores, 2)).iter().all(|&kl| kl == 0.0));
        // And the other columns have the bits that they have without one.
        let (alone, _) = models.op(&targets(shape), 0.9, false).forward([&models.hidden, &models.head])?;
        for c in [0, 1] {
            assert_same("a column beside a reference", &column(&scores, c), &column(&alone, c));
        }
    }
    Ok(())
}

/// A row has the same bits alone and in a batch.
#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in DTYPES {
        for (t, c, v) in [(19, 16, 2500), (19, 8, 33)] {
            let exact = Models::new((t, c, v), dtype, 2.0);
            let batch = exact.map(|x| on_gpu(x, dtype, gpu));
            let all: Vec<Target> = (0..t).map(|row| Target { row, token: (row * 97 % v) as u32 }).collect();
            let dy = incoming(t, ALL);
            let (scores, [dh, _]) = batch.run(&batch.op(&all, 0.75, true), &on_gpu(&dy, DType::F32, gpu))?;
            for at in [0, 1, 15, 16, t - 1] {
                let one = |x: &Tensor| if x.matrix().0 == t { row(x, at) } else { x.clone() };
                let alone = exact.map(|x| on_gpu(&one(x), dtype, gpu));
                let target = Target { row: 0, token: all[at].token };
                let dy = on_gpu(&row(&dy, at), DType::F32, gpu);
                let (score, [d, _]) = alone.run(&alone.op(&[target], 0.75, true), &dy)?;
                assert_same("the scores of a row", &score, &row(&scores, at));
                assert_same("the gradient of a row", &d, &row(&dh, at));
            }
        }
    }
    Ok(())
}

/// How many rows have logits at a time changes no bit of scores and dh, and of dW only the rounding of its sum.
#[test]
fn pieces_change_nothing() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    if is_checked() {
        return Ok(()); // `frozen_targets` goes by pieces too, of as many rows.
    }
    // Of five rows four have targets: 1020 of them.
    let shape = (1275, 8, 17);
    for dtype in DTYPES {
        let exact = Models::new(shape, dtype, 1.0);
        let (models, plain) = (exact.map(|x| on_gpu(x, dtype, gpu)), exact.map(|x| x.to_dtype(dtype)));
        let targets = targets(shape);
        let dy = incoming(targets.len(), ALL);
        let run = |logits_bytes: usize| {
            let op = LogSoftmaxKl { logits_bytes, ..models.op(&targets, 0.75, true) };
            models.run(&op, &on_gpu(&dy, DType::F32, gpu))
        };
        let whole = run(1 << 20)?;
        let reference = exact.run(&exact.op(&targets, 0.75, true), &dy)?;
        let plain = plain.run(&plain.op(&targets, 0.75, true), &dy.to_dtype(DType::F32))?;
        // The logits of 128 rows at a time, in one piece; then of 64, less there never are, in two.
        for bytes in [128 * 17 * 4, 1] {
            let pieces = run(bytes)?;
            assert_same("scores", &pieces.0, &whole.0);
            assert_same("dh", &pieces.1[0], &whole.1[0]);
            assert_close("dW of pieces", &pieces.1[1], &plain.1[1], &reference.1[1]);
        }
    }
    Ok(())
}

/// Rows that get no gradient are left out, and nothing else changes: not a bit, where what comes in for them is 0.
#[test]
fn frozen_targets() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    // Of five rows four have targets: 1040 of them, in pieces of 512.
    let shape = (1300, 8, 17);
    for &dtype in if is_checked() { &DTYPES[..1] } else { &DTYPES[..] } {
        let models = Models::new(shape, dtype, 1.0).map(|x| on_gpu(x, dtype, gpu));
        let targets = targets(shape);
        // The whole first piece, runs of 64 and parts of them.
        let frozen: Vec<bool> = targets
            .iter()
            .map(|t| t.row < 700 || (850..1000).contains(&t.row) || t.row % 7 == 0 || t.token == 0)
            .collect();
        let garbage = incoming(targets.len(), ALL);
        let mut clean = garbage.clone();
        for (d, _) in clean.make_mut::<f64>()?.chunks_mut(3).zip(&frozen).filter(|(_, frozen)| **frozen) {
            d.fill(0.0);
        }
        let op = || LogSoftmaxKl { logits_bytes: 1, ..models.op(&targets, 0.75, true) };
        let (scores, gradients) = models.run(&op(), &on_gpu(&clean, DType::F32, gpu))?;
        let op = LogSoftmaxKl { frozen: frozen.clone(), ..op() };
        let ours = models.run(&op, &on_gpu(&garbage, DType::F32, gpu))?;
        assert_same("scores beside frozen targets", &ours.0, &scores);
        assert_same("dh beside frozen targets", &ours.1[0], &gradients[0]);
        assert_same("dW beside frozen targets", &ours.1[1], &gradients[1]);
        // What a frozen row holds doesn't reach its gradient, not even what is no number.
        let live: Vec<usize> =
            targets.iter().zip(&frozen).filter(|(_, frozen)| !**frozen).map(|(t, _)| t.row).collect();
        let mut hidden = models.hidden.to_cpu()?.to_dtype(DType::F64);
        for (t, row) in hidden.make_mut::<f64>()?.chunks_mut(8).enumerate() {
            if !live.contains(&t) {
                row[0] = f64::NAN;
            }
        }
        let poisoned = on_gpu(&hidden, dtype, gpu);
        let (_, saved) = op.forward([&poisoned, &models.head])?;
        let [dh, _] = op.backward(saved, &on_gpu(&garbage, DType::F32, gpu), [true; 2])?;
        let dh = elements(&dh.expect("it was asked for"));
        for (t, row) in dh.chunks(8).enumerate() {
            assert!(live.contains(&t) || row.iter().all(|&d| d == 0.0), "row {t}: {row:?}");
        }
    }
    Ok(())
}

/// A row that holds no number gives none, and its neighbours don't notice.
#[test]
fn what_is_no_number_stays_in_its_row() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let shape = (3, 4, 600);
    let mut exact = Models::new(shape, DType::F32, 1.0);
    let all: Vec<Target> = (0..3).map(|row| Target { row, token: 5 }).collect();
    let clean = exact.map(|x| on_gpu(x, DType::F32, gpu));
    let clean = clean.op(&all, 1.0, true).forward([&clean.hidden, &clean.head])?.0;
    exact.hidden.make_mut::<f64>()?[4] = f64::NAN;
    let models = exact.map(|x| on_gpu(x, DType::F32, gpu));
    let scores = models.op(&all, 1.0, true).forward([&models.hidden, &models.head])?.0;
    assert!(elements(&scores)[3..6].iter().all(|x| x.is_nan()));
    for t in [0, 2] {
        assert_same("a neighbour", &row(&scores, t), &row(&clean, t));
    }
    Ok(())
}

/// The sampler's log-probabilities have the bits of the op's, for any batch and any order of slots.
#[test]
fn sampled_tokens() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (dtype, temperature) in [(DType::F32, 1.0), (DType::Bf16, 0.7)] {
        for (t, c, v) in [(1, 3, 1), (17, 16, 2500), (33, 8, 8193)] {
            let exact = Models::new((t, c, v), dtype, 2.0);
            let models = exact.map(|x| on_gpu(x, dtype, gpu));
            let all: Vec<Target> = (0..t).map(|row| Target { row, token: (row * 997 % v) as u32 }).collect();
            let scores = models.op(&all, temperature, true).forward([&models.hidden, &models.head])?.0;
            let want: Vec<u32> =
                scores.to_cpu()?.real::<f32>().chunks(3).map(|row| row[0].to_bits()).collect();
            let z = logits(&models.hidden, &models.head)?;
            assert_eq!((z.shape(), z.dtype()), (&[t, v][..], DType::F32));
            // From the last slot to the first, behind one that nobody writes.
            let mut out = gpu.upload(&vec![7.0_f32; t + 1], Purpose::Inputs)?;
            let tokens: Vec<i32> = all.iter().map(|target| target.token as i32).collect();
            let slots: Vec<i32> = (0..t as i32).map(|b| t as i32 - b).collect();
            let upload = |x: &[i32]| gpu.upload(x, Purpose::Inputs);
            sampled_log_probs(&z, &upload(&tokens)?, &upload(&slots)?, temperature, &mut out)?;
            let got: Vec<u32> = out.download()?.iter().map(|x| x.to_bits()).collect();
            assert_eq!(got[0], 7.0_f32.to_bits());
            assert!(got[1..].iter().rev().eq(&want), "{got:?}, {want:?} backwards");
            // Each row alone, by a product of its own.
            for b in [0, t / 2, t - 1] {
                let z = logits(&on_gpu(&row(&exact.hidden, b), dtype, gpu), &models.head)?;
                let mut out = gpu.zeros::<f32>(1, Purpose::Inputs)?;
                sampled_log_probs(&z, &upload(&tokens[b..=b])?, &upload(&[0])?, temperature, &mut out)?;
                assert_eq!(out.download()?[0].to_bits(), want[b]);
            }
        }
    }
    Ok(())
}

/// Tokens that are none give NaN; slots that are none are left alone.
#[test]
fn tokens_and_slots_outside() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let z = on_gpu(&normal(&[6, 5], DType::F32, 1), DType::F32, gpu);
    let upload = |x: &[i32]| gpu.upload(x, Purpose::Inputs);
    let mut out = gpu.upload(&[7.0_f32; 4], Purpose::Inputs)?;
    let (tokens, slots) = (upload(&[0, -1, 4, 5, 1, 1])?, upload(&[0, 1, 2, 3, 4, -1])?);
    sampled_log_probs(&z, &tokens, &slots, 1.0, &mut out)?;
    let got = out.download()?;
    assert!(got[0] < 0.0 && got[1].is_nan() && got[2] < 0.0 && got[3].is_nan(), "{got:?}");
    let none = on_gpu(&normal(&[0, 5], DType::F32, 1), DType::F32, gpu);
    sampled_log_probs(&none, &upload(&[])?, &upload(&[])?, 1.0, &mut out)?;
    assert!(sampled_log_probs(&z, &upload(&[0])?, &slots, 1.0, &mut out).is_err());
    assert!(sampled_log_probs(&z, &tokens, &upload(&[0])?, 1.0, &mut out).is_err());
    let on_host = normal(&[6, 5], DType::F32, 1).to_dtype(DType::F32);
    assert!(sampled_log_probs(&on_host, &tokens, &slots, 1.0, &mut out).is_err());
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let exact = Models::new((3, 4, 5), DType::F32, 1.0);
    let models = exact.map(|x| on_gpu(x, DType::F32, gpu));
    let target = [Target { row: 2, token: 4 }];
    let op = || models.op(&target, 1.0, true);
    let (hidden, head) = (&models.hidden, &models.head);
    assert!(op().forward([hidden, &exact.head.to_dtype(DType::F32)]).is_err(), "a head in host memory");
    assert!(
        op().forward([hidden, &on_gpu(&exact.head, DType::Bf16, gpu)]).is_err(),
        "a head of another type"
    );
    let reference = Reference {
        hidden: exact.reference.hidden.to_dtype(DType::F32),
        head: models.reference.head.clone(),
    };
    let elsewhere = LogSoftmaxKl { reference: Some(reference), ..op() };
    assert!(elsewhere.forward([hidden, head]).is_err(), "a reference in host memory");
    for dy in [on_gpu(&incoming(2, ALL), DType::F32, gpu), on_gpu(&incoming(1, ALL), DType::Bf16, gpu)] {
        let (_, saved) = op().forward([hidden, head])?;
        assert!(op().backward(saved, &dy, [true; 2]).is_err(), "a gradient of another shape or type");
    }
    assert!(logits(hidden, &on_gpu(&normal(&[5, 3], DType::F32, 1), DType::F32, gpu)).is_err());
    assert!(logits(&exact.hidden, &exact.head).is_err());
    Ok(())
}
