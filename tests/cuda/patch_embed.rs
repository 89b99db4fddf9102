//! The patch embedding from bytes.

use crate::compare::{assert_same, check_op, elements, normal, on_gpu};
use crate::harness::{gpu, is_checked};
use othink::autograd::Op;
use othink::error::Result;
use othink::ops::patch_embed::PatchEmbed;
use othink::rng::{Purpose, Stream};
use othink::tensor::{DType, Tensor};
use std::sync::Arc;

const TYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Images of so many patches each, of `width` random bytes a patch; levels that no dtype has exactly.
fn images(patches: &[usize], width: usize) -> PatchEmbed {
    let mut stream = Stream::new(5, Purpose::Init, width as u64);
    let mut image = |patches: usize| -> Arc<[u8]> {
        (0..patches * width).map(|_| (stream.normal() * 60.0 + 128.0) as u8).collect()
    };
    let levels =
        std::array::from_fn(|c| std::array::from_fn(|b| (b as f32 / 255.0 - 0.45 - 0.02 * c as f32) / 0.27));
    PatchEmbed { patches: patches.iter().map(|&n| image(n)).collect(), levels: Arc::new(levels) }
}

/// Widths whose rows of bytes begin aligned and not; one past a tile; more patches, and more bytes, than the stages of a tile take.
const SIZES: [(&[usize], usize, usize); 8] = [
    (&[1], 3, 1),
    (&[3], 12, 5),
    (&[2, 15], 27, 17),
    (&[129], 24, 3),
    (&[5], 72, 129),
    (&[100, 50], 48, 8),
    (&[4, 7], 240, 9),
    (&[1, 0, 1], 6, 2),
];

#[test]
fn forward_and_backward() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (patches, width, channels) in SIZES {
        for dtype in TYPES {
            let w = normal(&[channels, 3, 1, 1, width / 3], dtype, 1);
            let (y, [dw]) = check_op("patch_embed", gpu, dtype, || images(patches, width), [&w]);
            assert_eq!(dw.as_ref().map(Tensor::shape), Some(w.shape()));
            if dtype == DType::F32 {
                let plain = images(patches, width).forward([&w.to_dtype(dtype)])?.0;
                assert_same("the CPU's chain of multiply-adds", &y, &plain);
            }
        }
    }
    Ok(())
}

/// A patch alone equals the patch among others.
#[test]
fn a_patch_is_itself_in_any_batch() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    const PATCHES: usize = 130;
    let (width, channels) = (48, 10);
    for dtype in TYPES {
        let w = on_gpu(&normal(&[channels, 3, 1, 4, 4], dtype, 1), dtype, gpu);
        let all = images(&[PATCHES], width);
        let y = elements(&all.forward([&w])?.0);
        for patch in (0..PATCHES).filter(|patch| !is_checked() || patch % 43 == 0) {
            let bytes = Arc::from(&all.patches[0][patch * width..(patch + 1) * width]);
            let one = PatchEmbed { patches: vec![bytes], levels: all.levels.clone() };
            let want = &y[patch * channels..(patch + 1) * channels];
            assert_eq!(elements(&one.forward([&w])?.0), want, "patch {patch} in {}", dtype.name());
        }
    }
    Ok(())
}

#[test]
fn no_patches() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in TYPES {
        let w = on_gpu(&normal(&[2, 3, 1, 1, 4], dtype, 1), dtype, gpu);
        let op = images(&[], 12);
        let (y, saved) = op.forward([&w])?;
        assert_eq!(y.shape(), [0, 2]);
        let [dw] = op.backward(saved, &y, [true])?;
        assert_eq!(elements(&dw.expect("asked for")), [0.0; 24]);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let w = normal(&[2, 3, 1, 1, 4], DType::F32, 1);
    let op = images(&[3], 12);
    assert!(op.forward([&on_gpu(&normal(&[2, 3, 1, 1, 5], DType::F32, 1), DType::F32, gpu)]).is_err());
    let (y, saved) = op.forward([&on_gpu(&w, DType::F32, gpu)])?;
    assert!(op.backward(saved, &y.to_cpu()?, [true]).is_err(), "memory of two places");
    Ok(())
}
