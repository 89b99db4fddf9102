//! Device memory: copies, counting, the end of it.

use crate::compare::{assert_same, normal, on_gpu};
use crate::harness::gpu;
use half::bf16;
use othink::autograd::Op;
use othink::cuda::{Gpu, Purpose};
use othink::error::{Error, Result};
use othink::ops::elementwise::Add;
use othink::ops::linear::Linear;
use othink::ops::norm::RmsNorm;
use othink::tensor::{DType, Tensor};

#[test]
fn what_goes_up_comes_down() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    // Nothing, one, an odd number of bytes, and more than both halves of the staging memory.
    for len in [0, 1, 17, 5 << 20] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + i / 251) as u8).collect();
        let mut buffer = gpu.upload(&bytes, Purpose::Inputs)?;
        assert_eq!(buffer.download()?, bytes);
        let copy = buffer.try_clone()?;
        buffer.fill_zero()?;
        assert!(buffer.download()?.iter().all(|&byte| byte == 0));
        assert_eq!(copy.download()?, bytes);
    }
    let x: Vec<bf16> = (0..100).map(|i| bf16::from_f32(i as f32 / 8.0)).collect();
    assert_eq!(gpu.upload(&x, Purpose::Inputs)?.download()?, x);
    assert!(gpu.zeros::<f64>(3, Purpose::Workspace)?.download()? == [0.0; 3]);
    Ok(())
}

/// Staging memory is written again only after the copy out of it has happened.
#[test]
fn many_uploads_in_a_row_do_not_meet() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let buffers: Vec<_> =
        (0..20_u32).map(|i| gpu.upload(&vec![i; 100_000], Purpose::Inputs)).collect::<Result<_>>()?;
    for (i, buffer) in buffers.iter().enumerate() {
        assert!(buffer.download()?.iter().all(|&x| x as usize == i), "upload {i}");
    }
    Ok(())
}

#[test]
fn gradients_add_up_in_place() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        for n in [1, 3, 17, 257, 1000] {
            let (a, b) = (normal(&[n], dtype, 1), normal(&[n], dtype, 2));
            let (mut on_device, mut on_host) = (on_gpu(&a, dtype, gpu), a.to_dtype(dtype));
            let shared = on_device.clone();
            on_device.accumulate(&on_gpu(&b, dtype, gpu))?;
            on_host.accumulate(&b.to_dtype(dtype))?;
            assert_same("the sum", &on_device, &on_host);
            assert_same("the other owner's tensor", &shared, &a.to_dtype(dtype));
        }
        let empty = on_gpu(&Tensor::zeros(&[0, 4], DType::F64), dtype, gpu);
        empty.clone().accumulate(&empty)?;
    }
    let (a, b) = (normal(&[3], DType::F32, 1), normal(&[3], DType::F32, 2).to_dtype(DType::F32));
    assert!(on_gpu(&a, DType::F32, gpu).accumulate(&b).is_err(), "memory of two places");
    Ok(())
}

#[test]
fn the_ledger_says_what_memory_is_for() -> Result<()> {
    if gpu().is_none() {
        return Ok(());
    }
    // A ledger of its own, in which no other test counts.
    let gpu = Gpu::open(0)?;
    let buffer = gpu.alloc::<bf16>(1000, Purpose::KvCache)?;
    let weights = gpu.alloc::<f32>(3, Purpose::Weights)?;
    assert_eq!(gpu.ledger().bytes(Purpose::KvCache), 2000);
    drop(buffer);
    assert_eq!((gpu.ledger().bytes(Purpose::KvCache), gpu.ledger().peak_bytes(Purpose::KvCache)), (0, 2000));
    assert_eq!(gpu.ledger().bytes(Purpose::Weights), 4 * weights.len());
    Ok(())
}

/// A view is the same memory; it is freed, and no longer counted, with the last that lies in it.
#[test]
fn a_view_shares_its_allocation() -> Result<()> {
    if gpu().is_none() {
        return Ok(());
    }
    let gpu = Gpu::open(0)?;
    let weights = || gpu.ledger().bytes(Purpose::Weights);
    let numbers: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let mut arena = gpu.upload(&numbers, Purpose::Weights)?;
    assert!(!arena.is_shared());
    let view = arena.view(10, 80)?;
    let mut inner = view.view(7, 5)?;
    let (end, nothing) = (arena.view(99, 1)?, arena.view(100, 0)?);
    assert_eq!((inner.len(), inner.purpose(), inner.is_shared()), (5, Purpose::Weights, true));
    assert_eq!(inner.download()?, numbers[17..22]);
    assert_eq!(inner.download_at(2, 2)?, numbers[19..21]);
    assert_eq!((end.download()?, nothing.download()?), (vec![99.0], vec![]));
    assert_eq!(weights(), 400);
    // Writing goes both ways, and nowhere else.
    arena.write_at(17, &[-1.0, -2.0])?;
    assert_eq!(inner.download()?, [-1.0, -2.0, 19.0, 20.0, 21.0]);
    inner.fill_zero()?;
    inner.write_at(4, &[5.0])?;
    assert_eq!(arena.download()?[15..24], [15.0, 16.0, 0.0, 0.0, 0.0, 0.0, 5.0, 22.0, 23.0]);
    let mut copy = inner.try_clone()?;
    copy.copy_from(&view.view(20, 5)?)?;
    assert_eq!((copy.download()?, weights()), (numbers[30..35].to_vec(), 420));
    assert_eq!(inner.download()?, [0.0, 0.0, 0.0, 0.0, 5.0]);
    for (start, len) in [(0, 6), (6, 0), (5, 1), (usize::MAX, 2)] {
        assert!(inner.view(start, len).is_err(), "{start}, {len}");
    }
    drop((arena, view, end, nothing, copy));
    assert_eq!((weights(), inner.is_shared()), (400, false));
    drop(inner);
    assert_eq!(weights(), 0);
    Ok(())
}

/// Who writes a tensor writes a copy: what it views belongs to somebody else.
#[test]
fn a_tensor_over_a_view_is_copied_before_it_is_written() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let mut arena = gpu.upload(&[1.0_f32, 2.0, 3.0, 4.0, 5.0], Purpose::Weights)?;
    let mut x = Tensor::from_buffer(&[2], arena.view(1, 2)?)?;
    let (seen, kept) = (x.clone(), x.detached()?);
    x.accumulate(&seen)?;
    assert_eq!(x.to_cpu()?.to_f32()[..], [4.0, 6.0]);
    assert_eq!(arena.download()?, [1.0, 2.0, 3.0, 4.0, 5.0]);
    arena.write_at(2, &[-3.0])?;
    assert_eq!(seen.to_cpu()?.to_f32()[..], [2.0, -3.0], "a view");
    assert_eq!(kept.to_cpu()?.to_f32()[..], [2.0, 3.0], "a copy");
    assert_eq!(x.to_cpu()?.to_f32()[..], [4.0, 6.0]);
    Ok(())
}

#[test]
fn running_out_of_memory_says_what_to_lower() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let weights = gpu.alloc::<f32>(1 << 20, Purpose::Weights)?;
    let error = gpu.alloc::<f32>(1 << 40, Purpose::Activations).unwrap_err();
    assert!(matches!(error, Error::Memory(_)), "{error}");
    assert_eq!(error.exit_code(), 71);
    let text = error.to_string();
    for part in [
        "4096.0 GiB more for activations",
        "weights",
        "MiB",
        "--per_device_train_batch_size",
        "--gradient_checkpointing",
    ] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    // The GPU is usable afterwards.
    drop(weights);
    assert_eq!(gpu.upload(&[1_u8, 2], Purpose::Inputs)?.download()?, [1, 2]);
    Ok(())
}

/// The second one has a stream of its own, which nothing orders with the first.
#[test]
fn operands_of_two_gpus_are_refused() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let other = Gpu::open(0)?;
    let x = normal(&[5, 8], DType::F32, 1);
    let (here, there) = (on_gpu(&x, DType::F32, gpu), on_gpu(&x, DType::F32, &other));
    let w = on_gpu(&normal(&[8], DType::F32, 2), DType::F32, &other);
    assert!(Add.forward([&here, &there]).is_err());
    assert!(RmsNorm { eps: 1e-6 }.forward([&here, &w]).is_err());
    assert!(Linear.forward([&here, &there]).is_err());
    assert!(here.clone().accumulate(&there).is_err());
    assert_same("a sum on the second", &Add.forward([&there, &there])?.0, &Add.forward([&here, &here])?.0);
    Ok(())
}
