//! Attention over packed rows, and over pages.

use super::meter::Meter;
use criterion::Criterion;
use othink::ops::Cost;
use othink::ops::attention::paged::{DecodeBatch, PAGE, PagedKv, Pages, Sequence, Slots};
use othink::ops::attention::{Attention, Heads, Segment};

/// A prompt of `prompt` rows and completions of at most `completion` rows that fill the rest.
fn group(rows: usize, prompt: usize, completion: usize) -> Vec<Segment> {
    let prompt = 0..prompt.min(rows);
    let mut segments = vec![Segment { rows: prompt.clone(), prefix: None }];
    for start in (prompt.end..rows).step_by(completion) {
        segments.push(Segment { rows: start..rows.min(start + completion), prefix: Some(prompt.clone()) });
    }
    segments
}

/// Segments of at most `length` rows.
fn separate(rows: usize, length: usize) -> Vec<Segment> {
    let starts = (0..rows).step_by(length);
    starts.map(|start| Segment { rows: start..rows.min(start + length), prefix: None }).collect()
}

/// The text tower's attention within sequences and within a group, the vision tower's within images and within windows.
pub fn packed(meter: &Meter, criterion: &mut Criterion) {
    let rows = meter.size(8192, 128);
    let text = Heads { query: meter.size(12, 2), key: meter.size(2, 1), dim: meter.size(128, 64) };
    let vision = Heads { query: meter.size(16, 2), key: meter.size(16, 2), dim: 80 };
    let (long, image) = (meter.size(8192, 128), meter.size(4096, 64));
    let (sequence, prompt, completion) = (meter.size(1024, 32), meter.size(1024, 32), meter.size(512, 16));
    for (what, heads, causal, make) in [
        ("causal", text, true, &(|rows| separate(rows, long)) as &dyn Fn(usize) -> Vec<Segment>),
        ("causal", text, true, &|rows| separate(rows, sequence)),
        ("group", text, true, &|rows| group(rows, prompt, completion)),
        ("images", vision, false, &|rows| separate(rows, image)),
        ("windows", vision, false, &|rows| separate(rows, 64)),
    ] {
        let op = |rows| Attention { heads, segments: make(rows).into(), causal };
        let Heads { query, key, dim } = heads;
        let many = op(rows);
        let shape =
            format!("{what} {}x{} {query}:{key}x{dim}", many.segments.len(), many.segments[0].rows.len());
        meter.op(
            criterion,
            "attention",
            (rows, &shape),
            op,
            |rows| [vec![rows, query * dim], vec![rows, key * dim], vec![rows, key * dim]],
            [many.forward_cost(meter.dtype), many.backward_cost(meter.dtype)],
        );
    }
}

/// One row for each sequence of groups of 8, behind a prompt of 320 tokens and 256 of their own; on a GPU only.
pub fn decode(meter: &Meter, criterion: &mut Criterion) {
    const GROUP: usize = 8;
    const TOKENS: [usize; 2] = [320, 256];
    let Some(gpu) = meter.gpu() else { return };
    let heads = Heads { query: 12, key: 2, dim: 128 };
    let [prompt, own] = TOKENS.map(|n| n.div_ceil(PAGE));
    for batch in [64, 256] {
        let pages = batch / GROUP * prompt + batch * own;
        let mut kv = PagedKv::new(gpu, pages, heads, meter.dtype).expect("room for a cache");
        let all = Slots::new(gpu, &(0..pages * PAGE).collect::<Vec<_>>()).expect("room for a table");
        let [k, v] = [1, 2].map(|id| meter.normal(&[pages * PAGE, heads.key * heads.dim], id));
        kv.store(&k, &v, &all).expect("rows of the cache");
        let width = heads.key * heads.dim;
        let rows = [4, 5].map(|id| meter.normal(&[batch, width], id));
        let newest = Slots::new(gpu, &(0..batch).map(|b| b * own * PAGE).collect::<Vec<_>>())
            .expect("room for a table");
        meter.bench(
            criterion,
            ["attention_store", "fwd", &format!("{batch} rows of {width}")],
            Cost { flops: 0, bytes: (4 * batch * width * meter.dtype.size() + 4 * batch) as u64 },
            || Ok(()),
            |()| kv.store(&rows[0], &rows[1], &newest),
        );
        let run = |first: usize, n: usize, len| Pages { numbers: (first..first + n).collect(), len };
        let sequences = (0..batch).map(|b| Sequence {
            prefix: run(b / GROUP * prompt, prompt, TOKENS[0]),
            own: run(batch / GROUP * prompt + b * own, own, TOKENS[1]),
        });
        let table = DecodeBatch::new(gpu, &sequences.collect::<Vec<_>>()).expect("room for a table");
        let q = meter.normal(&[batch, heads.query * heads.dim], 3);
        let keys = batch / GROUP * TOKENS[0] + batch * TOKENS[1];
        let pairs = batch * (TOKENS[0] + TOKENS[1]);
        let cost = Cost {
            flops: (4 * pairs * heads.query * heads.dim) as u64,
            bytes: ((2 * keys * heads.key + 2 * batch * heads.query) * heads.dim * meter.dtype.size()) as u64,
        };
        let shape = format!("{batch} sequences, 320 + 256 keys");
        meter.bench(
            criterion,
            ["attention_decode", "fwd", &shape],
            cost,
            || Ok(()),
            |()| kv.decode(&q, &table).map(drop),
        );
    }
}
