//! RMSNorm and LayerNorm, alone and behind a residual addition.

use crate::compare::{assert_close, assert_mostly_same, assert_same, check_op, normal, on_gpu, row, scaled};
use crate::harness::gpu;
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::norm::{
    LayerNorm, RmsNorm, add_layer_norm, add_layer_norm_backward, add_rms_norm, add_rms_norm_backward,
};
use othink::tensor::{DType, Tensor};

const EPS: f64 = 1e-6;

/// (rows, width): single elements, odd widths, one past what a block has at once (512 in f32, 1024 in bf16), one past the rows of
/// a block, and so many rows that the second stage has more partial sums than warps, one past its columns.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (3, 3), (2, 17), (1, 513), (2, 1025), (17, 24), (145, 33), (3, 1280)];

/// Rows whose mean is not 0, and whose squares are as small as epsilon for `scale` = 2^-10.
fn rows(t: usize, c: usize, dtype: DType, id: u64, scale: f64) -> Tensor {
    let x = normal(&[t, c], dtype, id).real::<f64>().iter().map(|x| x + 1.5).collect::<Vec<f64>>();
    let x = Tensor::new(&[t, c], x).expect("as many numbers").to_dtype(dtype).to_dtype(DType::F64);
    scaled(&x, scale)
}

#[test]
fn alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        for (t, c) in SHAPES {
            for scale in [1.0, 2.0_f64.powi(-10)] {
                // Of one large number the gradient is all cancellation.
                if c == 1 && scale == 1.0 {
                    continue;
                }
                let (x, w, b) = (rows(t, c, dtype, 1, scale), normal(&[c], dtype, 2), normal(&[c], dtype, 3));
                check_op("rms_norm", gpu, dtype, || RmsNorm { eps: EPS }, [&x, &w]);
                check_op("layer_norm", gpu, dtype, || LayerNorm { eps: EPS }, [&x, &w, &b]);
            }
        }
        let (x, w) = (
            on_gpu(&Tensor::zeros(&[0, 8], DType::F64), dtype, gpu),
            on_gpu(&normal(&[8], dtype, 1), dtype, gpu),
        );
        let (y, saved) = LayerNorm { eps: EPS }.forward([&x, &w, &w])?;
        let [dx, dw, db] =
            LayerNorm { eps: EPS }.backward(saved, &y, [true; 3])?.map(|d| d.expect("a gradient"));
        assert_eq!((y.shape(), dx.shape()), (&[0, 8][..], &[0, 8][..]));
        let zeros = Tensor::zeros(&[8], dtype);
        assert_same("of no rows", &dw, &zeros);
        assert_same("of no rows", &db, &zeros);
    }
    let (x, w) = (normal(&[2, 8], DType::F32, 1), normal(&[8], DType::F32, 2));
    let (x, w) = (on_gpu(&x, DType::F32, gpu), on_gpu(&w, DType::F32, gpu));
    let (_, saved) = RmsNorm { eps: EPS }.forward([&x, &w])?;
    assert!(RmsNorm { eps: EPS }.backward(saved, &w, [true; 2]).is_err(), "a gradient of another shape");
    Ok(())
}

/// h, y and all gradients of a residual norm, as one list.
fn behind(centred: bool, [x, r, w, b, dy, dh]: [&Tensor; 6], reaches_h: bool) -> Result<Vec<Tensor>> {
    let dh = Some(dh).filter(|_| reaches_h);
    Ok(if centred {
        let (h, y, saved) = add_layer_norm(x, r, [w, b], EPS)?;
        let (dx, dw, db) = add_layer_norm_backward(&saved, dy, dh, EPS)?;
        vec![h, y, dx, dw, db]
    } else {
        let (h, y, saved) = add_rms_norm(x, r, w, EPS)?;
        let (dx, dw) = add_rms_norm_backward(&saved, dy, dh, EPS)?;
        vec![h, y, dx, dw]
    })
}

#[test]
fn behind_a_residual() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        for (t, c) in [(1, 2), (3, 3), (18, 17), (2, 513), (3, 1025)] {
            let tall = |id| normal(&[t, c], dtype, id);
            let flat = |id| normal(&[c], dtype, id);
            let inputs = [rows(t, c, dtype, 1, 1.0), tall(2), flat(3), flat(4), tall(5), tall(6)];
            let at = |place: &dyn Fn(&Tensor) -> Tensor| inputs.each_ref().map(place);
            let (kernel, plain) = (at(&|x| on_gpu(x, dtype, gpu)), at(&|x| x.to_dtype(dtype)));
            for (centred, reaches_h) in [(false, true), (false, false), (true, true), (true, false)] {
                let kernel = behind(centred, kernel.each_ref(), reaches_h)?;
                let plain = behind(centred, plain.each_ref(), reaches_h)?;
                let reference = behind(centred, inputs.each_ref(), reaches_h)?;
                let what = |i| format!("part {i} behind a residual, centred {centred}, {t} x {c}");
                assert_same("the sum", &kernel[0], &plain[0]);
                for (i, ((k, p), r)) in kernel.iter().zip(&plain).zip(&reference).enumerate() {
                    assert_close(&what(i), k, p, r);
                }
            }
        }
    }
    Ok(())
}

/// A row has the same bits alone and in a batch, forward and backward.
#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        for c in [17, 1032] {
            let (t, tall) = (19, |id| normal(&[19, c], dtype, id));
            let flat = |id| normal(&[c], dtype, id);
            let (x, r, dy, dh) = (tall(1), tall(2), tall(3), tall(4));
            let (w, b) = (on_gpu(&flat(5), dtype, gpu), on_gpu(&flat(6), dtype, gpu));
            let up = |x: &Tensor| on_gpu(x, dtype, gpu);
            for centred in [false, true] {
                let all = behind(centred, [&up(&x), &up(&r), &w, &b, &up(&dy), &up(&dh)], true)?;
                for t in [0, 1, 15, 16, t - 1] {
                    let [x, r, dy, dh] = [&x, &r, &dy, &dh].map(|x| up(&row(x, t)));
                    let alone = behind(centred, [&x, &r, &w, &b, &dy, &dh], true)?;
                    for (part, (alone, all)) in ["h", "y", "dx"].iter().zip(alone.iter().zip(&all)) {
                        assert_same(&format!("{part} of row {t}"), alone, &row(all, t));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The normalised value is rounded to bf16 before RMSNorm's weight, and not before LayerNorm's, as on the CPU.
#[test]
fn rounding_stands_where_the_cpu_has_it() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let dtype = DType::Bf16;
    let inputs = [normal(&[4, 1024], dtype, 1), normal(&[1024], dtype, 2), normal(&[1024], dtype, 3)];
    let [x, w, b] = inputs.each_ref().map(|x| on_gpu(x, dtype, gpu));
    let [cpu_x, cpu_w, cpu_b] = inputs.each_ref().map(|x| x.to_dtype(dtype));
    let kernel = RmsNorm { eps: EPS }.forward([&x, &w])?.0;
    assert_mostly_same("rms_norm", &kernel, &RmsNorm { eps: EPS }.forward([&cpu_x, &cpu_w])?.0);
    let kernel = LayerNorm { eps: EPS }.forward([&x, &w, &b])?.0;
    assert_mostly_same("layer_norm", &kernel, &LayerNorm { eps: EPS }.forward([&cpu_x, &cpu_w, &cpu_b])?.0);
    Ok(())
}
