//! Token embedding: the CPU's bits, forward and backward.

use crate::compare::{assert_same, normal, on_gpu};
use crate::harness::gpu;
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::embedding::Embedding;
use othink::tensor::{DType, Tensor};

/// Output and gradients of both inputs are those of the CPU to the bit.
fn check(dtype: DType, vocab: usize, width: usize, tokens: &[u32], image_rows: &[usize]) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let op = Embedding { tokens: tokens.to_vec(), image_rows: image_rows.to_vec() };
    let inputs = [normal(&[vocab, width], dtype, 1), normal(&[image_rows.len(), width], dtype, 2)];
    let dy = normal(&[tokens.len(), width], dtype, 3);
    let on_cpu = inputs.each_ref().map(|x| x.to_dtype(dtype));
    let on_device = inputs.each_ref().map(|x| on_gpu(x, dtype, gpu));
    let (y, saved) = op.forward(on_cpu.each_ref())?;
    let (kernel, kernel_saved) = op.forward(on_device.each_ref())?;
    let what = format!("{} of {tokens:?} with images in {image_rows:?}, width {width}", dtype.name());
    assert_same(&what, &kernel, &y);
    let grads = op.backward(saved, &dy.to_dtype(dtype), [true; 2])?;
    let kernels = op.backward(kernel_saved.clone(), &on_gpu(&dy, dtype, gpu), [true; 2])?;
    for (kernel, grad) in kernels.iter().zip(&grads) {
        assert_same(&what, kernel.as_ref().expect("a gradient"), grad.as_ref().expect("a gradient"));
    }
    let [table, image] = op.backward(kernel_saved, &on_gpu(&dy, dtype, gpu), [false, true])?;
    assert!(table.is_none());
    assert_same(&what, &image.expect("a gradient"), grads[1].as_ref().expect("a gradient"));
    Ok(())
}

#[test]
fn gather_and_scatter() -> Result<()> {
    for dtype in [DType::F32, DType::Bf16] {
        // Widths of one, a few, and one past what a block has at once in f32 and in bf16.
        for width in [1, 3, 17, 513, 1025] {
            check(dtype, 6, width, &[5, 1, 1, 0, 5, 5, 2], &[1, 2])?;
        }
        check(dtype, 3, 8, &[2], &[])?;
        // Every row an image, nothing at all, and a token that comes very often.
        check(dtype, 3, 8, &[1, 1, 1], &[0, 1, 2])?;
        check(dtype, 3, 8, &[], &[])?;
        let often: Vec<u32> = (0..300).map(|t| if t % 3 == 0 { 4 } else { t % 4 }).collect();
        check(dtype, 5, 24, &often, &[7, 3, 299])?;
    }
    Ok(())
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let table = on_gpu(&normal(&[4, 8], DType::F32, 1), DType::F32, gpu);
    let image = on_gpu(&Tensor::zeros(&[0, 8], DType::F64), DType::F32, gpu);
    assert!(Embedding { tokens: vec![4], image_rows: vec![] }.forward([&table, &image]).is_err());
    let op = Embedding { tokens: vec![3], image_rows: vec![] };
    let (_, saved) = op.forward([&table, &image])?;
    let dy = on_gpu(&normal(&[2, 8], DType::F32, 1), DType::F32, gpu);
    assert!(op.backward(saved, &dy, [true; 2]).is_err(), "a gradient of more rows");
    Ok(())
}

/// A row is the same one in any batch.
#[test]
fn rows_alone() -> Result<()> {
    for t in 0..7_usize {
        check(DType::Bf16, 6, 17, &[5, 1, 1, 0, 5, 5, 2][t..=t], &[])?;
    }
    Ok(())
}
