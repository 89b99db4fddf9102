//! Rotary embedding by tables for text and for the vision tower.

use crate::compare::{assert_same, check_op, normal, on_gpu, row};
use crate::harness::gpu;
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::rope::{Rope, Table};
use othink::tensor::DType;

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
