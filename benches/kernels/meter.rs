//! Time on the device at hand, and what it is worth.

use criterion::{Bencher, BenchmarkId, Criterion, Throughput};
use othink::autograd::Op;
use othink::cuda::{Buffer, Gpu, Purpose};
use othink::error::Result;
use othink::ops::Cost;
use othink::ops::gemm::{Into, View, gemm};
use othink::ops::linear::{self, Linear};
use othink::rng::{Purpose as StreamPurpose, Stream};
use othink::tensor::{DType, Device, Tensor};
use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// More than any GPU's L2 cache.
const CACHE_BYTES: usize = 256 << 20;

/// The device, and its rates.
pub struct Meter {
    /// Where the ops run.
    pub device: Device,
    /// In which type.
    pub dtype: DType,
    /// Memory that is overwritten before each run on a GPU.
    cache: Option<RefCell<Buffer<u8>>>,
    /// Operations and bytes in a second.
    flops_per_second: f64,
    bytes_per_second: f64,
    /// Whether ops are only checked (`cargo bench -- --test`).
    test: bool,
}

impl Meter {
    /// The first GPU if there is one, else the CPU.
    pub fn new() -> Meter {
        let test = std::env::args().any(|argument| argument == "--test");
        let gpu = Gpu::open(0).ok();
        let cache = gpu
            .as_ref()
            .map(|gpu| gpu.alloc(CACHE_BYTES, Purpose::Workspace).expect("room for a cache's worth"));
        let (device, dtype) = gpu.map_or((Device::Cpu, DType::F32), |gpu| (Device::Cuda(gpu), DType::Bf16));
        let cache = cache.map(RefCell::new);
        let mut meter =
            Meter { device, dtype, cache, flops_per_second: f64::NAN, bytes_per_second: f64::NAN, test };
        if !test {
            (meter.flops_per_second, meter.bytes_per_second) = meter.rates().expect("a product and a copy");
        }
        meter
    }

    /// One of two sizes; the small one too where nothing is timed.
    pub fn size(&self, gpu: usize, cpu: usize) -> usize {
        if self.gpu().is_some() && !self.test { gpu } else { cpu }
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        if let Device::Cuda(gpu) = &self.device { Some(gpu) } else { None }
    }

    /// Normal numbers in device memory, in the ops' type.
    pub fn normal(&self, shape: &[usize], id: u64) -> Tensor {
        let x = normal(shape, self.dtype, id);
        x.to_device(&self.device, Purpose::Activations).expect("room for the benches' shapes")
    }

    fn rates(&self) -> Result<(f64, f64)> {
        let n = self.size(8192, 768);
        let (x, w) = (self.normal(&[n, n], 1), self.normal(&[n, n], 2));
        let product = match self.gpu() {
            Some(_) => self.median(|| Linear.forward([&x, &w]).map(drop)),
            None => {
                let (a, b) = (x.real::<f32>(), w.real::<f32>());
                let mut c = vec![0.0; n * n];
                self.median(|| {
                    gemm(
                        (n, n, n),
                        View::rows(&a, n),
                        View::transposed(&b, n),
                        black_box(&mut c),
                        n,
                        Into::Overwrite,
                    );
                    Ok(())
                })
            }
        };
        let bytes = self.size(1 << 30, 64 << 20);
        let copy = match self.gpu() {
            Some(gpu) => {
                let (from, mut to) =
                    (gpu.zeros::<u8>(bytes, Purpose::Workspace)?, gpu.alloc(bytes, Purpose::Workspace)?);
                self.median(|| to.copy_from(&from))
            }
            None => {
                let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
                self.median(|| {
                    black_box(&mut to[..]).copy_from_slice(black_box(&from));
                    Ok(())
                })
            }
        };
        Ok((
            linear::forward_cost((n, n, n), false, self.dtype).flops as f64 / product,
            2.0 * bytes as f64 / copy,
        ))
    }

    /// Seconds of one run, the cache being cold.
    fn once(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        match (&self.device, &self.cache) {
            (Device::Cuda(gpu), Some(cache)) => {
                cache.borrow_mut().fill_zero()?;
                gpu.time(work)
            }
            _ => {
                let start = Instant::now();
                work()?;
                Ok(start.elapsed().as_secs_f64())
            }
        }
    }

    fn median(&self, mut work: impl FnMut() -> Result<()>) -> f64 {
        let mut seconds: Vec<f64> =
            (0..11).map(|_| self.once(&mut work).expect("work that was checked")).collect();
        seconds.sort_by(f64::total_cmp);
        seconds[5]
    }

    /// Times `work` on what `prepare` makes anew, untimed, for every run, as `op/pass`.
    pub fn bench<T>(
        &self,
        criterion: &mut Criterion,
        [op, pass, shape]: [&str; 3],
        cost: Cost,
        mut prepare: impl FnMut() -> Result<T>,
        mut work: impl FnMut(T) -> Result<()>,
    ) {
        let mut run = || {
            let prepared = prepare()?;
            self.once(|| work(prepared))
        };
        if !self.test {
            let mut seconds: Vec<f64> = (0..11).map(|_| run().expect("work that was checked")).collect();
            seconds.sort_by(f64::total_cmp);
            self.report([op, pass, shape], cost, seconds[5]);
        }
        let mut group = criterion.benchmark_group(format!("{op}/{pass}"));
        group.sample_size(10).throughput(Throughput::Bytes(cost.bytes));
        group.bench_function(BenchmarkId::new(self.dtype.name(), shape), |bencher: &mut Bencher| {
            bencher.iter_custom(|runs| {
                (0..runs).map(|_| Duration::from_secs_f64(run().expect("work that was checked"))).sum()
            });
        });
        group.finish();
    }

    fn report(&self, [op, pass, shape]: [&str; 3], cost: Cost, seconds: f64) {
        let floor =
            (cost.flops as f64 / self.flops_per_second).max(cost.bytes as f64 / self.bytes_per_second);
        let bound = if cost.flops as f64 / self.flops_per_second < floor { "bytes" } else { "operations" };
        println!(
            "BENCH {op}/{pass} {} {shape}: {:.2} us, {:.3} TFLOP/s, {:.1} GB/s, {:.0} % of the floor (bound by {bound})",
            self.dtype.name(),
            seconds * 1e6,
            cost.flops as f64 / seconds / 1e12,
            cost.bytes as f64 / seconds / 1e9,
            100.0 * floor / seconds
        );
    }

    /// Checks an op on few rows and benches both passes on many; `inputs` and `make` take the number of rows.
    pub fn op<const N: usize, O: Op<N>>(
        &self,
        criterion: &mut Criterion,
        op: &str,
        (rows, shape): (usize, &str),
        make: impl Fn(usize) -> O,
        inputs: impl Fn(usize) -> [Vec<usize>; N],
        [forward, backward]: [Cost; 2],
    ) {
        self.check(op, || make(3), inputs(3));
        let mut id = 0;
        let inputs = inputs(rows).map(|shape| {
            id += 1;
            self.normal(&shape, id)
        });
        let inputs = inputs.each_ref();
        let run = || make(rows).forward(inputs);
        self.bench(
            criterion,
            [op, "fwd", shape],
            forward,
            || Ok(make(rows)),
            |op| op.forward(inputs).map(drop),
        );
        let dy = self.normal(run().expect("an op that was checked").0.shape(), 99);
        let backward_of = |saved| make(rows).backward(saved, &dy, [true; N]).map(drop);
        self.bench(criterion, [op, "bwd", shape], backward, || Ok(run()?.1), backward_of);
    }

    /// Forward and backward on this device against f64: as close as rounding to the type explains.
    fn check<const N: usize, O: Op<N>>(&self, op: &str, make: impl Fn() -> O, shapes: [Vec<usize>; N]) {
        let mut id = 100;
        let exact = shapes.map(|shape| {
            id += 1;
            normal(&shape, self.dtype, id).to_dtype(DType::F64)
        });
        let place = |x: &Tensor| {
            x.to_dtype(self.dtype).to_device(&self.device, Purpose::Activations).expect("few rows")
        };
        let rounded = exact.each_ref().map(place);
        let reference = make().forward(exact.each_ref()).expect("an op of this shape");
        let ours = make().forward(rounded.each_ref()).expect("an op of this shape");
        self.close(op, &ours.0, &reference.0);
        let dy = normal(reference.0.shape(), self.dtype, 199).to_dtype(DType::F64);
        let reference = make().backward(reference.1, &dy, [true; N]).expect("an op of this shape");
        let ours = make().backward(ours.1, &place(&dy), [true; N]).expect("an op of this shape");
        for (ours, reference) in ours.iter().zip(&reference) {
            if let (Some(ours), Some(reference)) = (ours, reference) {
                self.close(op, ours, reference);
            }
        }
    }

    /// A function of tensors on this device against f64, for few rows.
    pub fn check_function<const N: usize>(
        &self,
        op: &str,
        shapes: [&[usize]; N],
        f: impl Fn([&Tensor; N]) -> Result<Vec<Tensor>>,
    ) {
        let mut id = 200;
        let exact = shapes.map(|shape| {
            id += 1;
            normal(shape, self.dtype, id).to_dtype(DType::F64)
        });
        let place = |x: &Tensor| {
            x.to_dtype(self.dtype).to_device(&self.device, Purpose::Activations).expect("few rows")
        };
        let rounded = exact.each_ref().map(place);
        let reference = f(exact.each_ref()).expect("a function of these shapes");
        let ours = f(rounded.each_ref()).expect("a function of these shapes");
        ours.iter().zip(&reference).for_each(|(ours, reference)| self.close(op, ours, reference));
    }

    fn close(&self, op: &str, ours: &Tensor, reference: &Tensor) {
        let ours = ours.to_cpu().expect("a device that works").to_dtype(DType::F64);
        let (ours, reference) = (ours.real::<f64>(), reference.real::<f64>());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut ours.iter().zip(reference.iter()).map(|(a, b)| a - b));
        let size = norm(&mut reference.iter().copied());
        let unit = if self.dtype == DType::Bf16 { 1.0 / 256.0 } else { f64::from(f32::EPSILON) * 64.0 };
        assert!(error <= 2.0 * unit * size, "{op}: error {error:.3e} of {size:.3e}");
    }
}

/// `NVIDIA H200 (...): 790.1 TFLOP/s, 4300 GB/s`.
impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gpu() {
            Some(gpu) => write!(f, "{}", gpu.description())?,
            None => write!(f, "CPU, {} threads", rayon::current_num_threads())?,
        }
        if self.test {
            return write!(f, ", checked and not timed");
        }
        let (flops, bytes) = (self.flops_per_second / 1e12, self.bytes_per_second / 1e9);
        write!(f, ": {flops:.3} TFLOP/s in a large product, {bytes:.0} GB/s in a large copy")
    }
}

/// Normal numbers in host memory, as `dtype` represents them.
pub fn normal(shape: &[usize], dtype: DType, id: u64) -> Tensor {
    // A million different numbers are as good as more.
    const PERIOD: usize = 1_000_003;
    let mut stream = Stream::new(1, StreamPurpose::Init, id);
    let numbers: Vec<f32> = (0..PERIOD.min(shape.iter().product())).map(|_| stream.normal()).collect();
    let all = numbers.iter().copied().cycle().take(shape.iter().product()).collect();
    Tensor::new(shape, all).expect("as many numbers as the shape says").to_dtype(dtype)
}
