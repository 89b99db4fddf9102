//! Attention against a plain computation, its gradient, and decoding.

use super::*;
use crate::autograd::gradcheck::{gradcheck, random};
use crate::tensor::DType;

const HEADS: Heads = Heads { query: 4, key: 2, dim: 6 };

fn group(prompt: usize, completions: &[usize]) -> Segments {
    let mut segments = vec![Segment { rows: 0..prompt, prefix: None }];
    let mut next = prompt;
    for n in completions {
        segments.push(Segment { rows: next..next + n, prefix: Some(0..prompt) });
        next += n;
    }
    segments.into()
}

/// The definition, one row at a time in f64.
fn reference(heads: Heads, segments: &[Segment], causal: bool, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let d = heads.dim;
    let mut o = vec![0.0; q.len()];
    for segment in segments {
        for i in segment.rows.clone() {
            let own = if causal { segment.rows.start..i + 1 } else { segment.rows.clone() };
            let keys: Vec<usize> = segment.prefix_rows().chain(own).collect();
            for h in 0..heads.query {
                let kh = h / (heads.query / heads.key);
                let at = |row: usize| (row * heads.key + kh) * d;
                let qi = &q[(i * heads.query + h) * d..][..d];
                let s: Vec<f64> = keys
                    .iter()
                    .map(|&j| (0..d).map(|e| qi[e] * k[at(j) + e]).sum::<f64>() / (d as f64).sqrt())
                    .collect();
                let z: f64 = s.iter().map(|s| s.exp()).sum();
                for (s, &j) in s.iter().zip(&keys) {
                    for e in 0..d {
                        o[(i * heads.query + h) * d + e] += s.exp() / z * v[at(j) + e];
                    }
                }
            }
        }
    }
    o
}

#[test]
fn equals_the_definition() -> Result<()> {
    for (causal, segments) in [(true, group(5, &[3, 1, 4])), (false, group(7, &[])), (true, group(1, &[1]))] {
        let t = segments[segments.len() - 1].rows.end;
        let (q, k, v) = (random(&[t, 24], 1)?, random(&[t, 12], 2)?, random(&[t, 12], 3)?);
        let want = reference(HEADS, &segments, causal, &q.real(), &k.real(), &v.real());
        let (got, _) = Attention { heads: HEADS, segments, causal }.forward([&q, &k, &v])?;
        assert!(got.real::<f64>().iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12));
    }
    Ok(())
}

#[test]
fn gradients() -> Result<()> {
    for (causal, segments) in [(true, group(3, &[2, 1, 3])), (false, group(4, &[]))] {
        let t = segments[segments.len() - 1].rows.end;
        let (q, k, v) = (random(&[t, 24], 1)?, random(&[t, 12], 2)?, random(&[t, 12], 3)?);
        let make = || Attention { heads: HEADS, segments: segments.clone(), causal };
        assert!(gradcheck(make, [&q, &k, &v])? < 1e-7);
    }
    Ok(())
}

fn rows(x: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let (_, w) = x.matrix();
    Tensor::new(&[range.len(), w], x.real::<f32>()[range.start * w..range.end * w].to_vec())
}

fn concat(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let data = [a.real::<f32>(), b.real::<f32>()].concat();
    Tensor::new(&[a.matrix().0 + b.matrix().0, a.matrix().1], data)
}

#[test]
fn a_shared_prefix_gives_the_bits_of_separate_sequences() -> Result<()> {
    let (prompt, lengths) = (21, [9, 1, 17]);
    let segments = group(prompt, &lengths);
    let t = prompt + 27;
    let f32s = |width, id| Ok::<_, Error>(random(&[t, width], id)?.to_dtype(DType::F32));
    let (q, k, v) = (f32s(24, 1)?, f32s(12, 2)?, f32s(12, 3)?);
    let packed =
        Attention { heads: HEADS, segments: segments.clone(), causal: true }.forward([&q, &k, &v])?.0;
    for s in &segments[1..] {
        let join = |x: &Tensor| concat(&rows(x, 0..prompt)?, &rows(x, s.rows.clone())?);
        let alone = Segments::from([Segment { rows: 0..prompt + s.rows.len(), prefix: None }]);
        let (o, _) = Attention { heads: HEADS, segments: alone, causal: true }.forward([
            &join(&q)?,
            &join(&k)?,
            &join(&v)?,
        ])?;
        assert_eq!(
            rows(&o, prompt..prompt + s.rows.len())?.real::<f32>(),
            rows(&packed, s.rows.clone())?.real::<f32>()
        );
    }
    Ok(())
}

#[test]
fn decoding_from_a_cache_gives_the_bits_of_training() -> Result<()> {
    let (prompt, lengths) = (19, [5, 2, 8]);
    let segments = group(prompt, &lengths);
    let t = prompt + 15;
    let f32s = |width, id| Ok::<_, Error>(random(&[t, width], id)?.to_dtype(DType::F32));
    let (q, k, v) = (f32s(24, 4)?, f32s(12, 5)?, f32s(12, 6)?);
    let full = Attention { heads: HEADS, segments: segments.clone(), causal: true }.forward([&q, &k, &v])?.0;
    let (qs, ks, vs) = (q.real::<f32>(), k.real::<f32>(), v.real::<f32>());
    let cached = |r: Range<usize>| Cached {
        keys: &ks[r.start * 12..r.end * 12],
        values: &vs[r.start * 12..r.end * 12],
    };
    for step in 0..8 {
        let alive: Vec<&Segment> = segments[1..].iter().filter(|s| s.rows.len() > step).collect();
        let own: Vec<Cached<'_>> =
            alive.iter().map(|s| cached(s.rows.start..s.rows.start + step + 1)).collect();
        let rows: Vec<usize> = alive.iter().map(|s| s.rows.start + step).collect();
        let q: Vec<f32> = rows.iter().flat_map(|r| qs[r * 24..(r + 1) * 24].to_vec()).collect();
        let o = decode(HEADS, &q, cached(0..prompt), &own);
        let want: Vec<f32> =
            rows.iter().flat_map(|r| full.real::<f32>()[r * 24..(r + 1) * 24].to_vec()).collect();
        assert_eq!(o, want, "step {step}");
    }
    Ok(())
}

#[test]
fn cost_counts_visible_pairs() {
    // Pairs of heads: causal 15 + 3 * 5 + 6, full 25 + 3 * 5 + 9; 4 query heads of 6 elements.
    for (causal, pairs) in [(true, 36), (false, 49)] {
        let op = Attention { heads: HEADS, segments: group(5, &[3]), causal };
        let forward = Cost { flops: 4 * pairs * 24, bytes: 8 * (2 * 24 + 2 * 12) * 2 + 8 * 4 * 4 };
        assert_eq!(op.forward_cost(DType::Bf16), forward);
        let backward = Cost { flops: 10 * pairs * 24, bytes: 8 * (4 * 24 + 4 * 12) * 4 + 8 * 4 * 4 };
        assert_eq!(op.backward_cost(DType::F32), backward);
    }
}

#[test]
fn wrong_segments_are_refused() -> Result<()> {
    let (q, kv) = (random(&[4, 24], 1)?, random(&[4, 12], 2)?);
    for segments in
        [vec![], vec![Segment { rows: 0..3, prefix: None }], vec![Segment { rows: 0..4, prefix: Some(0..2) }]]
    {
        let op = Attention { heads: HEADS, segments: segments.into(), causal: true };
        assert!(op.forward([&q, &kv, &kv]).is_err());
    }
    Ok(())
}
