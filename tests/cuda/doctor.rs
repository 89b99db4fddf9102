//! `doctor` with the emulated driver in the place of the machine's: what is found, and one clear message for each thing that is wrong.

use crate::harness::program_with_emulator;
use othink::cuda::kernels::TOOLKIT;

/// Standard output and error, and the exit code, of `doctor --device cuda`.
fn doctor(configuration: &str) -> Option<(String, String, i32)> {
    let output = program_with_emulator(configuration)?.args(["doctor", "--device", "cuda"]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some((text(output.stdout), text(output.stderr), output.status.code().unwrap()))
}

#[test]
fn a_gpu_is_found_and_works() {
    let Some((found, said, code)) = doctor("cc=90") else { return };
    assert_eq!(code, 0, "{found}{said}");
    for part in ["NVIDIA driver  serves CUDA ", "GPU 0 ", "compute capability 9.0", "usable", "cuBLASLt"] {
        assert!(found.contains(part), "{part} is missing: {found}");
    }
}

#[test]
fn a_gpu_that_is_too_old() {
    let Some((found, said, code)) = doctor("cc=75") else { return };
    assert_eq!(code, 69, "{found}{said}");
    assert!(found.contains("compute capability 7.5") && !found.contains("usable"), "{found}");
    assert!(
        said.starts_with("error: GPU 0 is too old: ") && said.contains("need compute capability 8.0"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_driver_that_is_too_old() {
    let Some((found, said, code)) = doctor("driver=11080") else { return };
    assert_eq!(code, 69, "{found}{said}");
    assert!(said.contains("serves CUDA 11.8; update it to R525 or newer"), "{said}");
}

/// The emulated driver has nothing that the manifests name: as a real one that gets no image.
#[test]
fn kernels_that_are_not_there() {
    let Some((found, said, code)) = doctor("kernels=/nonexistent") else { return };
    assert_eq!(code, 69, "{found}{said}");
    let expected = match &TOOLKIT {
        None => "this program holds no CUDA kernels: no nvcc was found when it was built",
        Some(_) => "which this GPU does not take",
    };
    assert!(said.contains(expected), "{said}");
}

#[test]
fn no_gpu_at_all() {
    let Some((found, said, code)) = doctor("devices=0") else { return };
    assert_eq!(code, 69, "{found}{said}");
    assert!(said.contains("sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"), "{said}");
}
