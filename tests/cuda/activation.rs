//! SwiGLU, QuickGELU, GELU.

use crate::compare::{assert_mostly_same, assert_same, check_op, normal, on_gpu, row, scaled};
use crate::harness::gpu;
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::activation::{Gelu, QuickGelu, SwiGlu};
use othink::tensor::DType;

/// One, a few, and one past the elements of a block in f32 and in bf16.
const SIZES: [usize; 5] = [1, 3, 17, 1025, 2049];

#[test]
fn values_and_gradients() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        for n in SIZES {
            // Up to where the sigmoid is 0 or 1.
            for scale in [1.0, 16.0] {
                let (a, b) = (scaled(&normal(&[n], dtype, 1), scale), normal(&[n], dtype, 2));
                check_op("swiglu", gpu, dtype, || SwiGlu, [&a, &b]);
                check_op("quick_gelu", gpu, dtype, || QuickGelu, [&a]);
                check_op("gelu", gpu, dtype, || Gelu, [&a]);
            }
        }
    }
    Ok(())
}

/// An element's bits don't depend on where it stands, nor on what stands beside it.
#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        let [a, b, dy] = [1, 2, 3].map(|id| normal(&[5, 33], dtype, id));
        let all = [&a, &b, &dy].map(|x| on_gpu(x, dtype, gpu));
        let (y, saved) = SwiGlu.forward([&all[0], &all[1]])?;
        let d = SwiGlu.backward(saved, &all[2], [true; 2])?.map(|d| d.expect("a gradient"));
        let (g, saved) = Gelu.forward([&all[0]])?;
        let [dg] = Gelu.backward(saved, &all[2], [true])?.map(|d| d.expect("a gradient"));
        let (q, saved) = QuickGelu.forward([&all[0]])?;
        let [dq] = QuickGelu.backward(saved, &all[2], [true])?.map(|d| d.expect("a gradient"));
        for t in 0..5 {
            let alone = [&a, &b, &dy].map(|x| on_gpu(&row(x, t), dtype, gpu));
            let (y1, saved) = SwiGlu.forward([&alone[0], &alone[1]])?;
            assert_same("swiglu", &y1, &row(&y, t));
            for (d1, d) in SwiGlu.backward(saved, &alone[2], [true; 2])?.iter().zip(&d) {
                assert_same("swiglu's gradient", d1.as_ref().expect("a gradient"), &row(d, t));
            }
            let (g1, saved) = Gelu.forward([&alone[0]])?;
            assert_same("gelu", &g1, &row(&g, t));
            assert_same(
                "gelu's",
                &Gelu.backward(saved, &alone[2], [true])?[0].clone().expect("one"),
                &row(&dg, t),
            );
            let (q1, saved) = QuickGelu.forward([&alone[0]])?;
            assert_same("quick_gelu", &q1, &row(&q, t));
            assert_same(
                "quick's",
                &QuickGelu.backward(saved, &alone[2], [true])?[0].clone().expect("one"),
                &row(&dq, t),
            );
        }
    }
    Ok(())
}

/// silu is rounded to bf16 before the product, as on the CPU: otherwise a fifth of the results would be others.
#[test]
fn rounding_stands_where_the_cpu_has_it() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (a, b) = (normal(&[4096], DType::Bf16, 1), normal(&[4096], DType::Bf16, 2));
    let kernel = SwiGlu.forward([&a, &b].map(|x| on_gpu(x, DType::Bf16, gpu)).each_ref())?.0;
    let cpu = SwiGlu.forward([&a, &b].map(|x| x.to_dtype(DType::Bf16)).each_ref())?.0;
    assert_mostly_same("swiglu", &kernel, &cpu);
    Ok(())
}
