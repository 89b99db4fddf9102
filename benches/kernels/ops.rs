//! The ops of the model.

use super::meter::Meter;
use criterion::Criterion;
use othink::autograd::Op;
use othink::ops::activation::{Gelu, QuickGelu, SwiGlu};
use othink::ops::elementwise::{Add, Columns, cast, cast_cost};
use othink::ops::embedding::Embedding;
use othink::ops::linear::{self, LinearBias};
use othink::ops::norm::{
    LayerNorm, RmsNorm, add_layer_norm, add_layer_norm_backward, add_rms_norm, add_rms_norm_backward,
};
use othink::ops::patch_embed::{self, PatchEmbed};
use othink::ops::rope::{Rope, Table};
use othink::tensor::{DType, Tensor};
use std::sync::Arc;

/// The text tower's projections (queries, keys and values, the feed-forward's two shapes), one of the vision tower's, and the head.
pub fn linear(meter: &Meter, criterion: &mut Criterion) {
    for (tokens, inner, out) in [
        (8192, 1536, 1536),
        (8192, 1536, 256),
        (8192, 1536, 8960),
        (8192, 8960, 1536),
        (8192, 1280, 5120),
        (512, 1536, 151_936),
    ] {
        let rows = meter.size(tokens, 64);
        let (inner, out) = (meter.size(inner, inner / 12), meter.size(out, out / 12));
        let shape = format!("{rows}x{out}x{inner}");
        let cost = (rows, inner, out);
        meter.op(
            criterion,
            "linear",
            (rows, &shape),
            |_| LinearBias,
            |rows| [vec![rows, inner], vec![out, inner], vec![out]],
            [linear::forward_cost(cost, true, meter.dtype), linear::backward_cost(cost, true, meter.dtype)],
        );
    }
}

pub fn patch_embed(meter: &Meter, criterion: &mut Criterion) {
    let (patches, side, channels) = (meter.size(8192, 64), meter.size(14, 4), meter.size(1280, 64));
    let width = 3 * 2 * side * side;
    let levels = Arc::new(std::array::from_fn(|c| {
        std::array::from_fn(|byte| byte as f32 / 64.0 - 2.0 + c as f32 / 8.0)
    }));
    let bytes = |rows: usize| -> Arc<[u8]> { (0..rows * width).map(|i| (i * 167 + i / 255) as u8).collect() };
    let many = bytes(patches);
    let make = |rows| PatchEmbed {
        patches: vec![if rows == patches { many.clone() } else { bytes(rows) }],
        levels: Arc::clone(&levels),
    };
    let cost = (patches, width, channels);
    meter.op(
        criterion,
        "patch_embed",
        (patches, &format!("{patches}x{channels}x{width}")),
        make,
        |_| [vec![channels, 3, 2, side, side]],
        [patch_embed::forward_cost(cost, meter.dtype), patch_embed::backward_cost(cost, meter.dtype)],
    );
}

/// RMSNorm at the text tower's width, LayerNorm at the vision tower's, alone and behind a residual sum.
pub fn norms(meter: &Meter, criterion: &mut Criterion) {
    const EPS: f64 = 1e-6;
    let rows = meter.size(8192, 64);
    let (text, vision) = (meter.size(1536, 256), meter.size(1280, 256));
    let cost = |f: fn(usize, usize, bool, DType) -> othink::ops::Cost, width, residual| {
        f(rows, width, residual, meter.dtype)
    };
    let shape = [format!("{rows}x{text}"), format!("{rows}x{vision}")];
    meter.op(
        criterion,
        "rms_norm",
        (rows, &shape[0]),
        |_| RmsNorm { eps: EPS },
        |rows| [vec![rows, text], vec![text]],
        [cost(RmsNorm::forward_cost, text, false), cost(RmsNorm::backward_cost, text, false)],
    );
    meter.op(
        criterion,
        "layer_norm",
        (rows, &shape[1]),
        |_| LayerNorm { eps: EPS },
        |rows| [vec![rows, vision], vec![vision], vec![vision]],
        [cost(LayerNorm::forward_cost, vision, false), cost(LayerNorm::backward_cost, vision, false)],
    );
    let [x, r, dy, dh] = [1, 2, 3, 4].map(|id| meter.normal(&[rows, text], id));
    let w = meter.normal(&[text], 5);
    let op = "add_rms_norm";
    meter.check_function(op, [&[3, text], &[3, text], &[text], &[3, text]], |[x, r, w, d]| {
        let (h, y, saved) = add_rms_norm(x, r, w, EPS)?;
        let (dh, dw) = add_rms_norm_backward(&saved, d, Some(x), EPS)?;
        Ok(vec![h, y, dh, dw])
    });
    let forward = || add_rms_norm(&x, &r, &w, EPS);
    let costs = [cost(RmsNorm::forward_cost, text, true), cost(RmsNorm::backward_cost, text, true)];
    meter.bench(criterion, [op, "fwd", &shape[0]], costs[0], || Ok(()), |()| forward().map(drop));
    let backward = |saved| add_rms_norm_backward(&saved, &dy, Some(&dh), EPS).map(drop);
    meter.bench(criterion, [op, "bwd", &shape[0]], costs[1], || Ok(forward()?.2), backward);
    let [x, r, dy, dh] = [1, 2, 3, 4].map(|id| meter.normal(&[rows, vision], id));
    let [w, b] = [5, 6].map(|id| meter.normal(&[vision], id));
    let op = "add_layer_norm";
    meter.check_function(op, [&[3, vision], &[3, vision], &[vision], &[3, vision]], |[x, r, w, d]| {
        let (h, y, saved) = add_layer_norm(x, r, [w, w], EPS)?;
        let (dh, dw, db) = add_layer_norm_backward(&saved, d, Some(x), EPS)?;
        Ok(vec![h, y, dh, dw, db])
    });
    let forward = || add_layer_norm(&x, &r, [&w, &b], EPS);
    let costs = [cost(LayerNorm::forward_cost, vision, true), cost(LayerNorm::backward_cost, vision, true)];
    meter.bench(criterion, [op, "fwd", &shape[1]], costs[0], || Ok(()), |()| forward().map(drop));
    let backward = |saved| add_layer_norm_backward(&saved, &dy, Some(&dh), EPS).map(drop);
    meter.bench(criterion, [op, "bwd", &shape[1]], costs[1], || Ok(forward()?.2), backward);
}

/// M-RoPE on the text tower's queries, and its angles.
pub fn rope(meter: &Meter, criterion: &mut Criterion) {
    let (rows, heads) = (meter.size(8192, 64), meter.size(12, 2));
    let table = |rows: usize| {
        let positions = std::array::from_fn(|axis| (0..rows as i32).map(|t| t / (axis as i32 + 1)).collect());
        Table::mrope(1e6, [16, 24, 24], &positions)
    };
    let many = table(rows);
    let cost = Rope::cost(rows, heads * 128, 128, meter.dtype);
    meter.op(
        criterion,
        "rope",
        (rows, &format!("{rows}x{heads}x128")),
        |n| Rope { table: if n == rows { many.clone() } else { table(n) } },
        |rows| [vec![rows, heads * 128]],
        [cost, cost],
    );
    meter.bench(
        criterion,
        ["rope_angles", "fwd", &format!("{rows}x64")],
        many.cost(),
        || Ok(table(rows)),
        |table| table.form(meter.gpu()),
    );
}

/// SwiGLU of the text tower, QuickGELU of the vision tower, GELU of the merger.
pub fn activations(meter: &Meter, criterion: &mut Criterion) {
    let rows = meter.size(8192, 64);
    let width = meter.size(8960, 512);
    let n = rows * width;
    meter.op(
        criterion,
        "swiglu",
        (rows, &format!("{rows}x{width}")),
        |_| SwiGlu,
        |rows| [vec![rows, width], vec![rows, width]],
        [SwiGlu::forward_cost(n, meter.dtype), SwiGlu::backward_cost(n, meter.dtype)],
    );
    let width = meter.size(5120, 512);
    let n = rows * width;
    meter.op(
        criterion,
        "quick_gelu",
        (rows, &format!("{rows}x{width}")),
        |_| QuickGelu,
        |rows| [vec![rows, width]],
        [QuickGelu::forward_cost(n, meter.dtype), QuickGelu::backward_cost(n, meter.dtype)],
    );
    let rows = rows / 4;
    let n = rows * width;
    meter.op(
        criterion,
        "gelu",
        (rows, &format!("{rows}x{width}")),
        |_| Gelu,
        |rows| [vec![rows, width]],
        [Gelu::forward_cost(n, meter.dtype), Gelu::backward_cost(n, meter.dtype)],
    );
}

/// A quarter of the rows are image rows.
pub fn embedding(meter: &Meter, criterion: &mut Criterion) {
    let (rows, vocab, width) = (meter.size(8192, 64), meter.size(151_936, 512), meter.size(1536, 256));
    let image_rows = |rows: usize| rows / 4;
    let make = |rows: usize| Embedding {
        tokens: (0..rows).map(|t| ((t * 7919) % vocab) as u32).collect(),
        image_rows: (0..image_rows(rows)).collect(),
    };
    let costs = [
        Embedding::forward_cost(rows, width, meter.dtype),
        Embedding::backward_cost(rows, vocab, width, meter.dtype),
    ];
    let inputs = |rows: usize| [vec![vocab, width], vec![image_rows(rows), width]];
    meter.op(criterion, "embedding", (rows, &format!("{rows}x{width} of {vocab}")), make, inputs, costs);
}

/// The residual sum, the parts of a fused projection, and the rounding of f32 numbers.
pub fn elementwise(meter: &Meter, criterion: &mut Criterion) {
    let (rows, width) = (meter.size(8192, 64), meter.size(1536, 256));
    let shape = format!("{rows}x{width}");
    let add = Add::cost(rows * width, meter.dtype);
    let (x, y) = (meter.normal(&[rows, width], 1), meter.normal(&[rows, width], 2));
    meter.check_function("add", [&[3, width], &[3, width]], |[x, y]| {
        let mut sum = x.clone();
        sum.accumulate(y)?;
        Ok(vec![Add.forward([x, y])?.0, sum])
    });
    // The backward pass hands the gradient on as it is.
    meter.bench(criterion, ["add", "fwd", &shape], add, || Ok(()), |()| Add.forward([&x, &y]).map(drop));
    let total = width + 2 * width / 6;
    meter.op(
        criterion,
        "columns",
        (rows, &format!("{rows}x{width} of {total}")),
        |_| Columns { from: 0, width },
        |rows| [vec![rows, total]],
        [
            Columns::forward_cost(rows, width, meter.dtype),
            Columns::backward_cost(rows, width, total, meter.dtype),
        ],
    );
    for (op, from, to) in
        [("cast_to_bf16", DType::F32, DType::Bf16), ("cast_to_f32", DType::Bf16, DType::F32)]
    {
        let x = cast(&x, from).expect("a conversion");
        let again = cast(&cast(&x, to).expect("a conversion"), from).expect("a conversion");
        let elements = |x: &Tensor| {
            let on_cpu = x.to_cpu().expect("a device that works").to_dtype(DType::F64);
            on_cpu.real::<f64>().to_vec()
        };
        assert!(
            elements(&again).iter().zip(elements(&x)).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0),
            "{op}"
        );
        let cost = cast_cost(rows * width, from, to);
        meter.bench(criterion, [op, "fwd", &shape], cost, || Ok(()), |()| cast(&x, to).map(drop));
    }
}
