//! How close a kernel has to come.
//!
//! The reference is the CPU's op in f64 on the same inputs; the measure is the error of the CPU's op in the type of the kernel, the plain
//! low-precision implementation. A kernel may be off by twice that (its sums run in another order), by the largest error and by the root
//! mean square, plus four units in the last place of f32 at the size of the largest value, for where plain happens to be exact.
//!
//! One op has a measure of its own: attention in bf16, whose kernels have to round P and dS for the tensor cores' products. The CPU keeps
//! them in f32, so there a plain computation with these two roundings, and no others, stands in its place (`attention::plain_bf16`).

use othink::autograd::Op;
use othink::cuda::{Gpu, Purpose};
use othink::rng::{Purpose as StreamPurpose, Stream};
use othink::tensor::{DType, Device, Tensor};

/// Normal numbers that `dtype` represents, as f64.
pub fn normal(shape: &[usize], dtype: DType, id: u64) -> Tensor {
    let mut stream = Stream::new(23, StreamPurpose::Init, id);
    let numbers = (0..shape.iter().product()).map(|_| stream.normal()).collect::<Vec<f32>>();
    Tensor::new(shape, numbers)
        .expect("as many numbers as the shape says")
        .to_dtype(dtype)
        .to_dtype(DType::F64)
}

/// The tensor in a type, on the GPU.
pub fn on_gpu(x: &Tensor, dtype: DType, gpu: &Gpu) -> Tensor {
    x.to_dtype(dtype).to_device(&Device::Cuda(gpu.clone()), Purpose::Inputs).expect("room for a test")
}

/// Elements of any tensor, widened.
pub fn elements(x: &Tensor) -> Vec<f64> {
    x.to_cpu().expect("a device that works").to_dtype(DType::F64).real::<f64>().to_vec()
}

/// Whether two tensors hold the same bits; wherever they are.
pub fn assert_same(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{what}");
    let (a, b) = (elements(a), elements(b));
    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let first = bits(&a).iter().zip(bits(&b)).position(|(a, b)| *a != b);
    assert!(
        first.is_none(),
        "{what}: element {first:?} is {:?} and {:?}",
        a[first.unwrap()],
        b[first.unwrap()]
    );
}

/// Fails unless `kernel` is as close to `reference` as the rule above says.
pub fn assert_close(what: &str, kernel: &Tensor, plain: &Tensor, reference: &Tensor) {
    assert_eq!((kernel.shape(), kernel.dtype()), (plain.shape(), plain.dtype()), "{what}");
    let (kernel, plain, reference) = (elements(kernel), elements(plain), elements(reference));
    let largest = reference.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let slack = 4.0 * f64::from(f32::EPSILON) * largest;
    let error = |x: &[f64]| -> (f64, f64) {
        let errors: Vec<f64> = x.iter().zip(&reference).map(|(x, r)| (x - r).abs()).collect();
        // NaN is the largest error of all.
        let worst = errors.iter().fold(0.0_f64, |m, &e| if e.is_nan() { f64::INFINITY } else { m.max(e) });
        (worst, (errors.iter().map(|e| e * e).sum::<f64>() / errors.len().max(1) as f64).sqrt())
    };
    let (ours, theirs) = (error(&kernel), error(&plain));
    let worst = kernel.iter().zip(&reference).map(|(k, r)| (k - r).abs()).enumerate();
    let at = worst.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at);
    assert!(
        ours.0 <= 2.0 * theirs.0 + slack && ours.1 <= 2.0 * theirs.1 + slack,
        "{what}: error {:.3e} (root mean square {:.3e}), plain {:.3e} ({:.3e}); element {at} is {:?} instead of {:?}",
        ours.0,
        ours.1,
        theirs.0,
        theirs.1,
        kernel.get(at),
        reference.get(at)
    );
}

/// Holds an op's forward and backward pass on the GPU to the rule, in a type; `inputs` are f64 numbers that the type represents.
///
/// Gives output and gradients of the GPU, for further comparisons.
pub fn check_op<const N: usize, O: Op<N>>(
    what: &str,
    gpu: &Gpu,
    dtype: DType,
    make: impl Fn() -> O,
    inputs: [&Tensor; N],
) -> (Tensor, [Option<Tensor>; N]) {
    let what = format!("{what} in {} for {:?}", dtype.name(), inputs.map(Tensor::shape));
    let on_cpu = inputs.map(|x| x.to_dtype(dtype));
    let on_device = inputs.map(|x| on_gpu(x, dtype, gpu));
    let reference = make().forward(inputs).expect("the shapes fit");
    let plain = make().forward(on_cpu.each_ref()).expect("the shapes fit");
    let kernel = make().forward(on_device.each_ref()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_close(&format!("{what}: forward"), &kernel.0, &plain.0, &reference.0);
    let dy = normal(reference.0.shape(), dtype, 999);
    let needs = [true; N];
    let reference = make().backward(reference.1, &dy, needs).expect("the shapes fit");
    let plain = make().backward(plain.1, &dy.to_dtype(dtype), needs).expect("the shapes fit");
    let dxs =
        make().backward(kernel.1, &on_gpu(&dy, dtype, gpu), needs).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (i, ((kernel, plain), reference)) in dxs.iter().zip(&plain).zip(&reference).enumerate() {
        match (kernel, plain, reference) {
            (Some(kernel), Some(plain), Some(reference)) => {
                assert_close(&format!("{what}: gradient {i}"), kernel, plain, reference);
            }
            (kernel, plain, _) => assert_eq!(kernel.is_some(), plain.is_some(), "{what}: gradient {i}"),
        }
    }
    (kernel.0, dxs)
}

/// The same numbers times a power of two, which any type represents.
pub fn scaled(x: &Tensor, factor: f64) -> Tensor {
    let numbers = x.real::<f64>().iter().map(|x| x * factor).collect::<Vec<f64>>();
    Tensor::new(x.shape(), numbers).expect("the same shape")
}

/// Row t of a matrix as a matrix of one row, in host memory.
pub fn row(x: &Tensor, t: usize) -> Tensor {
    let (_, width) = x.matrix();
    let numbers = elements(x)[t * width..(t + 1) * width].to_vec();
    Tensor::new(&[1, width], numbers).expect("a row").to_dtype(x.dtype())
}

/// Whether two bf16 tensors differ in less than one element of 200: both round at the same places, and only now and then does
/// the rounding of f32 before it decide.
pub fn assert_mostly_same(what: &str, a: &Tensor, b: &Tensor) {
    let (a, b) = (elements(a), elements(b));
    let different = a.iter().zip(&b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert!(200 * different < a.len(), "{what}: {different} of {} elements differ", a.len());
}
