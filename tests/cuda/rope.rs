//! Rotary embedding by tables for text and for the vision tower.

use crate::compare::{assert_same, check_op, normal, on_gpu, row};
use crate::harness::gpu;
use othink::autograd::Op;
use othink::cuda::Purpose;
use othink::error::Result;
use othink::ops::rope::{Rope, Table};
use othink::tensor::{DType, Device, Tensor};

fn positions(first: i32, rows: usize) -> [Vec<i32>; 3] {
    [3, 5, 7].map(|step| (0..rows as i32).map(|t| first + t * step % 11).collect())
}

#[test]
fn turns_and_their_gradients() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        // Halves of a head of one pair, of an odd number, one past a pack; more packs in a row than threads in a block.
        for (rows, heads, sections) in [
            (1, 1, [1, 0, 0]),
            (3, 2, [1, 1, 1]),
            (2, 3, [3, 3, 3]),
            (17, 1, [16, 24, 24]),
            (2, 50, [5, 6, 6]),
        ] {
            let half: usize = sections.iter().sum();
            let x = normal(&[rows, heads * 2 * half], dtype, 1);
            let table = Table::mrope(1e4, sections, &positions(1, rows));
            check_op("mrope", gpu, dtype, || Rope { table: table.clone() }, [&x]);
        }
        let places: Vec<_> = (0..6).map(|i| (i / 3, i % 3 + 1)).collect();
        let table = Table::axial(1e4, 40, &places);
        check_op("axial", gpu, dtype, || Rope { table: table.clone() }, [&normal(&[6, 3 * 40], dtype, 1)]);
        let none = Table::mrope(1e4, [1, 1, 2], &positions(0, 0));
        let empty = on_gpu(&normal(&[0, 8], dtype, 1), dtype, gpu);
        assert_eq!(Rope { table: none }.forward([&empty])?.0.shape(), [0, 8]);
    }
    Ok(())
}

/// Pairs (1, 0) turn into (cos, sin) of the angle, whose f64 values are rounded once.
#[test]
fn angles_far_out() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (rows, sections) = (65, [5, 6, 7]);
    let half: usize = sections.iter().sum();
    let far = positions(120_000, rows);
    let pairs = (0..rows * 2 * half).map(|i| if i % (2 * half) < half { 1.0_f32 } else { 0.0 }).collect();
    let x = Tensor::new(&[rows, 2 * half], pairs)?;
    let turn = || Rope { table: Table::mrope(1e6, sections, &far) };
    let (y, ()) = turn().forward([&x.to_device(&Device::Cuda(gpu.clone()), Purpose::Inputs)?])?;
    let want = turn().forward([&x])?.0;
    for (i, (y, want)) in y.download_f32()?.iter().zip(want.real::<f32>().iter()).enumerate() {
        assert!((y - want).abs() <= f32::EPSILON / 2.0, "{i}: {y} instead of {want}");
    }
    Ok(())
}

#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        let x = normal(&[5, 3 * 34], dtype, 1);
        let all = Rope { table: Table::mrope(1e4, [5, 6, 6], &positions(9, 5)) };
        let on_device = on_gpu(&x, dtype, gpu);
        let (y, ()) = all.forward([&on_device])?;
        let [dx] = all.backward((), &on_device, [true])?.map(|d| d.expect("a gradient"));
        for t in 0..5 {
            let alone = positions(9, 5).map(|axis| vec![axis[t]]);
            let alone = Rope { table: Table::mrope(1e4, [5, 6, 6], &alone) };
            let x = on_gpu(&row(&x, t), dtype, gpu);
            assert_same("a row", &alone.forward([&x])?.0, &row(&y, t));
            let [d] = alone.backward((), &x, [true])?;
            assert_same("a row's gradient", &d.expect("a gradient"), &row(&dx, t));
        }
    }
    Ok(())
}
