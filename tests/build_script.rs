//! `build.rs` as a program of its own: what it makes of kernels and of an nvcc, and what it says of wrong ones.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const KERNEL: &str = "// __global__ in a comment is none { /* */\nextern \"C\" __global__ void __launch_bounds__(256)\n\
     scale_bf16(const bf16* __restrict__ x, bf16 *y, float by, int64_t n) { scale(x, y, by, n); }\n\
     extern \"C\" __global__ void __launch_bounds__(32, 2) tick(uint8_t* a, const double* b, uint32_t c) {}\n";

fn build_script() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build_script");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = Command::new(rustc).args(["--edition=2024", "-o"]).arg(&program).arg(source).status();
        assert!(status.unwrap().success());
        program
    })
}

/// A folder with `kernels/scale.cu` and, perhaps, a program to be taken for nvcc.
struct Project {
    folder: tempfile::TempDir,
    nvcc: Option<PathBuf>,
}

fn project(kernel: &str, nvcc: Option<&str>) -> Project {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("kernels")).unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::write(folder.path().join("kernels/scale.cu"), kernel).unwrap();
    let nvcc = nvcc.map(|script| {
        let path = folder.path().join("nvcc");
        let version = "Cuda compilation tools, release 12.8, V12.8.61";
        let text =
            format!("#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; exit; fi\n{script}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    });
    Project { folder, nvcc }
}

impl Project {
    fn build(&self, environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(build_script());
        command.current_dir(&self.folder).env("OUT_DIR", self.folder.path().join("out"));
        for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "OTHINK_CUDA_ARCHS"] {
            command.env_remove(name);
        }
        // Neither an nvcc on the PATH nor one that was fetched.
        command.env("PATH", "/usr/bin:/bin").env("XDG_CACHE_HOME", self.folder.path());
        command.envs(self.nvcc.iter().map(|nvcc| ("NVCC", nvcc))).envs(environment.iter().copied());
        command.output().unwrap()
    }

    fn fails(&self, environment: &[(&str, &str)]) -> String {
        let output = self.build(environment);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    fn succeeds(&self, environment: &[(&str, &str)]) -> String {
        let output = self.build(environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn made(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join("out").join(name)).unwrap()
    }
}

#[test]
fn without_nvcc_the_image_is_the_manifest() {
    if Path::new("/usr/bin/nvcc").exists() {
        let _ = writeln!(std::io::stderr(), "skipped: a build without nvcc: there is one in /usr/bin");
        return;
    }
    let project = project(KERNEL, None);
    let said = project.succeeds(&[]);
    assert_eq!(said.matches("cargo:warning=no CUDA images (no nvcc").count(), 1, "{said}");
    let image = project.made("scale.image");
    let lines: Vec<&str> = image.lines().collect();
    assert_eq!(lines[0], "othink-kernels 1");
    assert!(lines[1].starts_with("module scale ") && lines[1].len() == "module scale ".len() + 16, "{image}");
    assert_eq!(lines[2..], ["kernel scale_bf16 256 8p 8p 4 8", "kernel tick 32 8p 8p 4", "end", "\0"]);
    assert!(project.made("kernels.rs").contains("TOOLKIT: Option<Toolkit> = None"));
}

#[test]
fn launchers_have_the_types_of_the_prototype() {
    let project = project(KERNEL, None);
    project.succeeds(&[("OTHINK_CUDA_ARCHS", "none")]);
    let code = project.made("kernels.rs");
    for expected in [
        "pub unsafe fn scale_bf16(gpu: &Gpu, grid: Grid, x: Const<bf16>, y: Mut<bf16>, by: f32, n: i64) -> Result<()>",
        "pub unsafe fn tick(gpu: &Gpu, grid: Grid, a: Mut<u8>, b: Const<f64>, c: u32) -> Result<()>",
        "Kernel { name: \"scale_bf16\", max_threads: 256 }, Kernel { name: \"tick\", max_threads: 32 }",
    ] {
        assert!(code.contains(expected), "{expected} is missing:\n{code}");
    }
}

#[test]
fn a_change_of_a_header_changes_the_hash() {
    let project = project(KERNEL, None);
    let hash = |header: &str| {
        fs::write(project.folder.path().join("kernels/common.cuh"), header).unwrap();
        project.succeeds(&[("OTHINK_CUDA_ARCHS", "none")]);
        project.made("scale.image").lines().nth(1).unwrap().to_owned()
    };
    let (first, second) = (hash("// one"), hash("// two"));
    assert_ne!(first, second);
    assert_eq!(first, hash("// one"));
}

/// The script writes its arguments where nvcc would write the image.
#[test]
fn nvccs_output_stands_before_the_manifest() {
    let script = "for last; do [ \"$before\" = -o ] && out=$last; before=$last; done; echo \"$@\" >\"$out\"";
    let project = project(KERNEL, Some(script));
    let said = project.succeeds(&[("OTHINK_CUDA_ARCHS", "sm_90a, compute_80")]);
    assert!(!said.contains("warning"), "{said}");
    let image = project.made("scale.image");
    let (arguments, manifest) = image.split_once('\n').unwrap();
    for flag in
        ["-fatbin", "arch=compute_90a,code=sm_90a", "arch=compute_80,code=compute_80", "kernels/scale.cu"]
    {
        assert!(arguments.contains(flag), "{flag}: {arguments}");
    }
    assert!(manifest.starts_with("othink-kernels 1\n"), "{image}");
    let code = project.made("kernels.rs");
    assert!(code.contains("Toolkit { version: (12, 8), targets: &[\"sm_90a\", \"compute_80\"] }"), "{code}");
}

#[test]
fn a_kernel_that_does_not_compile_ends_the_build_with_nvccs_message() {
    let project = project(KERNEL, Some("echo 'scale.cu(3): error: expected a \";\"' >&2; exit 2"));
    let message = project.fails(&[]);
    assert!(message.contains("kernels/scale.cu does not compile"), "{message}");
    assert!(message.contains("scale.cu(3): error: expected a \";\""), "{message}");
    // Nor does the next build take what the failed one left.
    assert!(project.fails(&[]).contains("does not compile"));
}

#[test]
fn what_is_wrong_is_named() {
    for (kernel, parts) in [
        ("extern \"C\" __global__ void __launch_bounds__(64) f(half* x) {}", ["kernels/scale.cu", "`half`"]),
        ("extern \"C\" __global__ void f(float* x) {}", ["kernels/scale.cu", "__launch_bounds__"]),
        ("extern \"C\" __global__ void __launch_bounds__(N) f(float* x) {}", ["kernels/scale.cu", "`N`"]),
        (
            "__global__ void __launch_bounds__(64) f(float* x) {}",
            ["kernels/scale.cu", "extern \"C\" __global__"],
        ),
        (
            "extern \"C\" __global__ int __launch_bounds__(64) f(float* x) {}",
            ["kernels/scale.cu", "return void"],
        ),
    ] {
        let message = project(kernel, None).fails(&[("OTHINK_CUDA_ARCHS", "none")]);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let message = project(KERNEL, None).fails(&[("NVCC", "/no/such/nvcc")]);
    assert!(message.contains("NVCC=/no/such/nvcc"), "{message}");
    let message = project(KERNEL, Some("exit 0")).fails(&[("OTHINK_CUDA_ARCHS", "hopper")]);
    assert!(message.contains("`hopper` is neither sm_NN nor compute_NN"), "{message}");
}
