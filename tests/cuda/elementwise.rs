//! Sums, casts, columns: the CPU's bits.

use crate::compare::{assert_same, check_op, elements, normal, on_gpu, row};
use crate::harness::gpu;
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::elementwise::{Add, Columns, cast};
use othink::tensor::{DType, Tensor};

/// One, a few, and one past the elements of a block in f32 and in bf16.
const SIZES: [usize; 5] = [1, 3, 17, 1025, 2049];

#[test]
fn sums() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        for n in SIZES {
            let (a, b) = (normal(&[n], dtype, 1), normal(&[n], dtype, 2));
            let (y, _) = check_op("add", gpu, dtype, || Add, [&a, &b]);
            assert_same("the sum", &y, &Add.forward([&a.to_dtype(dtype), &b.to_dtype(dtype)])?.0);
        }
        let empty = on_gpu(&Tensor::zeros(&[0, 4], DType::F64), dtype, gpu);
        assert_eq!(Add.forward([&empty, &empty])?.0.shape(), [0, 4]);
    }
    // Operands that the CPU would refuse, and memory of two places.
    let (a, b) = (normal(&[3], DType::F32, 1), normal(&[3], DType::F32, 2).to_dtype(DType::F32));
    assert!(Add.forward([&on_gpu(&a, DType::F32, gpu), &b]).is_err());
    Ok(())
}

#[test]
fn casts_round_to_nearest_even() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    // Ties, both ways; what rounds to infinity; subnormal numbers; zeros of both signs.
    let edges = [
        0x3f80_8000_u32,
        0x3f81_8000,
        0x3f80_8001,
        0x3f80_7fff,
        0xbf80_8000,
        0x7f7f_ffff,
        0x7f7f_7fff,
        1,
        0x0001_8000,
        0x8000_0000,
        0,
        0x7f80_0000,
        0xff80_0000,
    ];
    for n in SIZES {
        let mut x: Vec<f32> = normal(&[n], DType::F32, n as u64).to_f32().to_vec();
        x.iter_mut().zip(edges).for_each(|(x, bits)| *x = f32::from_bits(bits));
        let x = Tensor::new(&[n], x)?;
        let narrow = cast(&on_gpu(&x, DType::F32, gpu), DType::Bf16)?;
        assert_same("rounded", &narrow, &x.to_dtype(DType::Bf16));
        assert_same("widened", &cast(&narrow, DType::F32)?, &x.to_dtype(DType::Bf16).to_dtype(DType::F32));
    }
    let x = on_gpu(&normal(&[3], DType::F32, 1), DType::F32, gpu);
    assert_same("its own type", &cast(&x, DType::F32)?, &x);
    assert!(cast(&x, DType::F64).is_err());
    assert!(elements(&cast(&on_gpu(&Tensor::scalar(f32::NAN), DType::F32, gpu), DType::Bf16)?)[0].is_nan());
    Ok(())
}

#[test]
fn columns() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        // (rows, columns, first, width): aligned or not, one past what the block moves at once, no rows at all.
        for (rows, total, from, width) in [
            (1, 1, 0, 1),
            (3, 3, 1, 2),
            (2, 17, 0, 17),
            (3, 96, 32, 48),
            (2, 2100, 8, 1025),
            (5, 530, 17, 513),
            (0, 4, 1, 2),
        ] {
            let x = normal(&[rows, total], dtype, 1);
            let (y, [dx]) = check_op("columns", gpu, dtype, || Columns { from, width }, [&x]);
            let op = Columns { from, width };
            assert_same("cut out", &y, &op.forward([&x.to_dtype(dtype)])?.0);
            let dy = normal(&[rows, width], dtype, 999).to_dtype(dtype);
            let [want] = op.backward(total, &dy, [true])?;
            assert_same("put back", &dx.expect("a gradient"), &want.expect("a gradient"));
        }
    }
    Ok(())
}

/// A row has the same bits alone and in a batch.
#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        let [a, b] = [1, 2].map(|id| on_gpu(&normal(&[19, 57], dtype, id), dtype, gpu));
        let cut = Columns { from: 5, width: 33 };
        let dy = on_gpu(&normal(&[19, 33], dtype, 3), dtype, gpu);
        let to = if dtype == DType::F32 { DType::Bf16 } else { DType::F32 };
        let all = |a: &Tensor, b: &Tensor, dy: &Tensor| -> Result<[Tensor; 4]> {
            let (piece, saved) = cut.forward([a])?;
            let [back] = cut.backward(saved, dy, [true])?;
            Ok([Add.forward([a, b])?.0, cast(a, to)?, piece, back.expect("a gradient")])
        };
        let batch = all(&a, &b, &dy)?;
        for t in 0..19 {
            let one = |x: &Tensor| on_gpu(&row(x, t), x.dtype(), gpu);
            for (alone, batch) in all(&one(&a), &one(&b), &one(&dy))?.iter().zip(&batch) {
                assert_same(&format!("row {t} in {}", dtype.name()), alone, &row(batch, t));
            }
        }
    }
    Ok(())
}
