//! The linear layer, by both engines.

use crate::compare::{assert_same, check_op, elements, normal, on_gpu};
use crate::gemm::engines;
use crate::harness::is_checked;
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::linear::{Linear, LinearBias};
use othink::tensor::{DType, Tensor};

const TYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Rows, inputs, outputs.
const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 5, 17), (17, 3, 33), (33, 64, 31), (65, 40, 32), (129, 17, 65), (1, 130, 3)];

#[test]
fn forward_and_backward() {
    for (engine, gpu) in engines() {
        for (t, i, o) in SIZES {
            for dtype in TYPES {
                let (x, w, b) =
                    (normal(&[t, i], dtype, 1), normal(&[o, i], dtype, 2), normal(&[o], dtype, 3));
                check_op(&format!("linear by {engine}"), gpu, dtype, || LinearBias, [&x, &w, &b]);
                check_op(&format!("linear by {engine}"), gpu, dtype, || Linear, [&x, &w]);
            }
        }
    }
}

/// No rows have no output; as gradients of the weights they have zeros.
#[test]
fn no_rows() -> Result<()> {
    for (_, gpu) in engines() {
        for dtype in TYPES {
            let x = on_gpu(&Tensor::zeros(&[0, 5], DType::F64), dtype, gpu);
            let (w, b) =
                (on_gpu(&normal(&[3, 5], dtype, 1), dtype, gpu), on_gpu(&normal(&[3], dtype, 2), dtype, gpu));
            let (y, saved) = LinearBias.forward([&x, &w, &b])?;
            assert_eq!(y.shape(), [0, 3]);
            let [dx, dw, db] =
                LinearBias.backward(saved, &y, [true; 3])?.map(|gradient| gradient.expect("asked for"));
            assert_eq!(dx.shape(), [0, 5]);
            assert_eq!((elements(&dw), elements(&db)), (vec![0.0; 15], vec![0.0; 3]));
        }
    }
    Ok(())
}

#[test]
fn only_the_gradients_asked_for() -> Result<()> {
    let Some((_, gpu)) = engines().first() else { return Ok(()) };
    let tensor = |shape: &[usize]| on_gpu(&normal(shape, DType::F32, 1), DType::F32, gpu);
    let (x, w, b, dy) = (tensor(&[2, 3]), tensor(&[4, 3]), tensor(&[4]), tensor(&[2, 4]));
    for needs in [[true, false, false], [false, true, false], [false, false, true]] {
        let (_, saved) = LinearBias.forward([&x, &w, &b])?;
        let gradients = LinearBias.backward(saved, &dy, needs)?;
        assert_eq!(gradients.map(|gradient| gradient.is_some()), needs);
    }
    assert!(Linear.forward([&x, &dy]).is_err());
    assert!(Linear.forward([&x, &w.to_cpu()?]).is_err(), "memory of two places");
    Ok(())
}

/// A row alone equals the row in any batch, forward and backward.
#[test]
fn a_row_is_itself_in_any_batch() -> Result<()> {
    const ROWS: usize = 40;
    let (inner, out) = (72, 48);
    for (engine, gpu) in engines() {
        for dtype in TYPES {
            let (x, dy) = (normal(&[ROWS, inner], dtype, 1), normal(&[ROWS, out], dtype, 2));
            let w = on_gpu(&normal(&[out, inner], dtype, 3), dtype, gpu);
            let b = on_gpu(&normal(&[out], dtype, 4), dtype, gpu);
            let some = |from: usize, to: usize| -> Result<[Tensor; 2]> {
                let rows = |x: &Tensor| -> Result<Tensor> {
                    let width = x.matrix().1;
                    let data = elements(x)[from * width..to * width].to_vec();
                    Ok(on_gpu(&Tensor::new(&[to - from, width], data)?, dtype, gpu))
                };
                let (y, saved) = LinearBias.forward([&rows(&x)?, &w, &b])?;
                let [dx, ..] = LinearBias.backward(saved, &rows(&dy)?, [true, false, false])?;
                Ok([y, dx.expect("asked for")])
            };
            let all = some(0, ROWS)?;
            let rows = if is_checked() { vec![0, ROWS - 1] } else { (0..ROWS).collect() };
            for row in rows {
                let range = if row % 2 == 0 { (row, row + 1) } else { (row - 1, ROWS) };
                for (part, all) in some(range.0, range.1)?.iter().zip(&all) {
                    let width = all.matrix().1;
                    let want = elements(all)[range.0 * width..range.1 * width].to_vec();
                    assert_eq!(elements(part), want, "{engine}, {}, rows {range:?}", dtype.name());
                }
            }
        }
    }
    Ok(())
}

/// The bias' gradient is summed in an order that no other column has a say in.
#[test]
fn a_column_is_itself_beside_any_others() -> Result<()> {
    let Some((_, gpu)) = engines().first() else { return Ok(()) };
    for dtype in TYPES {
        for rows in [1, 31, 32, 33, 1000] {
            let dy = normal(&[rows, 33], dtype, 1);
            let gradient = |dy: &Tensor| -> Result<Tensor> {
                let out = dy.matrix().1;
                let (x, w) = (Tensor::zeros(&[rows, 1], DType::F64), Tensor::zeros(&[out, 1], DType::F64));
                let b = Tensor::zeros(&[out], DType::F64);
                let (_, saved) =
                    LinearBias.forward([&x, &w, &b].map(|x| on_gpu(x, dtype, gpu)).each_ref())?;
                let [.., db] = LinearBias.backward(saved, &on_gpu(dy, dtype, gpu), [false, false, true])?;
                Ok(db.expect("asked for"))
            };
            let column: Vec<f64> = elements(&dy).into_iter().skip(32).step_by(33).collect();
            let alone = gradient(&Tensor::new(&[rows, 1], column)?)?;
            let last = elements(&gradient(&dy)?)[32];
            assert_same("the last column", &alone, &Tensor::new(&[1], vec![last])?.to_dtype(dtype));
        }
    }
    Ok(())
}
