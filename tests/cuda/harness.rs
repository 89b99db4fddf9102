//! The device that the tests of this process run on.

#[path = "../../tools/cuemu/cuemu.rs"]
mod cuemu;

use cuemu::{Flavour, Libraries, Module};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use othink::cuda::Gpu;
use othink::cuda::kernels::MODULES;
use std::ffi::{CString, c_char, c_int};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Chooses the device: `device` for a real GPU, or the emulator's flavour and its configuration, such as `check sched=random seed=3`.
pub const VARIABLE: &str = "OTHINK_TEST_CUDA";

fn mode() -> String {
    std::env::var(VARIABLE).unwrap_or_else(|_| "fast".into())
}

/// The device, or none: then standard error says why, and the test has nothing to do.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| match open() {
        Ok(gpu) => Some(gpu),
        Err(reason) => {
            // Not by `eprintln!`, which is kept from sight when a test passes.
            let _ = writeln!(std::io::stderr(), "skipped: tests/cuda ({}): {reason}", mode());
            None
        }
    })
    .as_ref()
}

/// Whether the tests run on a real GPU.
pub fn is_real() -> bool {
    mode() == "device"
}

/// Whether every access is checked, which costs ten times the time: tests may leave out what only repeats.
pub fn is_checked() -> bool {
    mode().starts_with("check")
}

/// Whether this is one of the emulator's further modes: what is long and has no schedule of its own is told once there.
pub fn is_rerun() -> bool {
    !["fast", "device"].contains(&mode().as_str())
}

/// Whether this is a further mode without threads at random: in that one whole models are held to all that they promise.
pub fn is_rerun_in_order() -> bool {
    is_rerun() && !mode().contains("sched=random")
}

/// A reason to skip is an `Err`; an emulator that should work and does not is a failure.
fn open() -> Result<Gpu, String> {
    if is_real() {
        return Gpu::open(0).map_err(|e| e.to_string());
    }
    cuemu::supported()?;
    load_emulator(&mode());
    Ok(Gpu::open(0).expect("the emulated driver has a GPU"))
}

/// The emulated libraries, built where they are not.
fn libraries(flavour: Flavour) -> Libraries {
    let kernels = |module: &othink::cuda::Module| module.kernels.iter().map(|kernel| kernel.name).collect();
    let modules: Vec<Module> = MODULES
        .iter()
        .map(|module| Module { stem: module.stem, hash: module.hash, kernels: kernels(module) })
        .collect();
    cuemu::build(&modules, flavour).unwrap_or_else(|message| panic!("{message}"))
}

/// The program on the device of the tests. `OTHINK_TEST_PROGRAM` says where it is when it has been carried to a GPU.
pub fn program() -> Option<Command> {
    if !is_real() {
        return program_with_emulator("cc=90");
    }
    gpu()?;
    let carried = std::env::var_os("OTHINK_TEST_PROGRAM");
    Some(Command::new(carried.unwrap_or_else(|| env!("CARGO_BIN_EXE_othink-train").into())))
}

/// The program, with the emulated driver in the place of the machine's; none where the tests run on a GPU or can't emulate one.
pub fn program_with_emulator(configuration: &str) -> Option<Command> {
    if is_real() || gpu().is_none() {
        return None;
    }
    let libraries = libraries(Flavour::Fast);
    let mut command = Command::new(env!("CARGO_BIN_EXE_othink-train"));
    command.env("LD_LIBRARY_PATH", libraries.driver.parent().expect("a file in a folder"));
    command.env("CUEMU", format!("kernels={} {configuration}", libraries.kernels.display()));
    Some(command)
}

/// Opens the emulated libraries by their paths: the device layer's own search by name then finds them loaded.
fn load_emulator(mode: &str) {
    let (flavour, configuration) = mode.split_once(' ').unwrap_or((mode, ""));
    let libraries = libraries(match flavour {
        "fast" => Flavour::Fast,
        "check" => Flavour::Check,
        other => panic!("{VARIABLE}: `{other}` is neither `device`, `fast` nor `check`"),
    });
    let configuration = format!("kernels={} {configuration}", libraries.kernels.display());
    let driver = load(&libraries.driver);
    load(&libraries.cublaslt);
    let text = CString::new(configuration).expect("no NUL in a path");
    // SAFETY: the signature is that of tools/cuemu; the text outlives the call.
    let result = unsafe {
        let configure = driver.get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"cuemu_configure\0");
        configure.expect("the emulator's own function")(text.as_ptr())
    };
    assert_eq!(result, 0, "the emulator takes {text:?}");
}

fn load(path: &Path) -> &'static Library {
    // SAFETY: the library is ours; its initialisers only set up its own state.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    // It stays for the rest of the process: the device layer finds it by name.
    Box::leak(Box::new(library.unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
}
