//! `othink-train doctor`.

use crate::autograd::Op;
use crate::config::DoctorConfig;
use crate::cuda::kernels::{MODULES, TOOLKIT};
use crate::cuda::{self, Gpu, Purpose};
use crate::error::{Error, Result};
use crate::ops::linear::Linear;
use crate::report::console::escape_control;
use crate::tensor::{Device, Tensor};

/// Runs the command.
///
/// # Errors
/// With `--device cuda`, that of the first GPU if it cannot be used.
pub fn run(options: &DoctorConfig) -> Result<()> {
    let mut text = String::new();
    let mut line = |label: &str, found: &str| text += &format!("{label:<15}{found}\n");
    line("othink-train", env!("CARGO_PKG_VERSION"));
    line("CPU", &processor());
    line("CUDA kernels", &kernels());
    let first = match cuda::probe() {
        Ok(driver) => {
            line("NVIDIA driver", &format!("serves CUDA {}.{}", driver.version.0, driver.version.1));
            let mut states = driver.gpus.iter().map(|gpu| {
                let state = Gpu::open(gpu.ordinal).and_then(|gpu| self_test(&gpu));
                line(&format!("GPU {}", gpu.ordinal), &gpu.to_string());
                line(
                    "",
                    &state
                        .as_ref()
                        .map_or_else(ToString::to_string, |products| format!("usable; {products}")),
                );
                state.map(drop)
            });
            let first = states.next().unwrap_or(Ok(()));
            states.for_each(drop);
            first
        }
        Err(error) => {
            line("NVIDIA driver", &error.to_string());
            Err(error)
        }
    };
    super::print(&escape_control(&text))?;
    if options.device == "cuda" { first } else { Ok(()) }
}

fn processor() -> String {
    let threads = rayon::current_num_threads();
    #[cfg(target_arch = "x86_64")]
    let fma = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let fma = cfg!(target_arch = "aarch64");
    let speed =
        if fma { "fused multiply-add in hardware" } else { "no fused multiply-add in hardware: slow" };
    format!("{}, {threads} threads, {speed}", std::env::consts::ARCH)
}

fn kernels() -> String {
    let count: usize = MODULES.iter().map(|module| module.kernels.len()).sum();
    match &TOOLKIT {
        Some(toolkit) => {
            let (major, minor) = toolkit.version;
            format!("{count}, compiled by nvcc {major}.{minor} for {}", toolkit.targets.join(" "))
        }
        None => "not compiled in: no nvcc was found when this program was built (install the CUDA toolkit, then touch build.rs, or \
                 run tools/get-nvcc; build again)"
            .to_owned(),
    }
}

/// Copies, adds, multiplies and copies back; gives what computes the products.
fn self_test(gpu: &Gpu) -> Result<String> {
    let numbers: Vec<f32> = (0..1024).map(|i| (i % 13) as f32 - 6.0).collect();
    let x = Tensor::new(&[32, 32], numbers)?;
    let on_gpu = x.to_device(&Device::Cuda(gpu.clone()), Purpose::Workspace)?;
    // Small integers, so that every order of the sums gives the same.
    let double = |x: &Tensor, y: Tensor| -> Result<Tensor> {
        let mut sum = Linear.forward([x, &y])?.0;
        sum.accumulate(&y)?;
        Ok(sum)
    };
    let [ours, right] = [double(&on_gpu, on_gpu.clone())?.to_cpu()?, double(&x, x.clone())?];
    if ours.real::<f32>() != right.real::<f32>() {
        return Err(Error::Device(
            "the GPU computes wrongly: its memory, its driver or cuBLASLt is faulty".into(),
        ));
    }
    Ok(match gpu.gemm_library()? {
        Some(library) => format!("products by {library}"),
        None => match cuda::cublaslt::probe() {
            Ok(library) => format!("products by our own kernels (OTHINK_GEMM), beside {library}"),
            Err(error) => format!("products by our own kernels: {error}"),
        },
    })
}
