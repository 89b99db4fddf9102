//! What runs in a process of its own: a driver is configured once in a process, and its errors stick.

use crate::cuemu::{self, Flavour};
use crate::driver::{self, Driver, Result, Shape, cu};
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::OnceLock;

/// `MODE|CASE`, for the process that [`child`] is in.
const VARIABLE: &str = "OTHINK_TEST_CUEMU";

/// How a case ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its error, if any.
    pub error: String,
    /// The emulator's reports.
    pub reports: String,
}

/// Runs a case in a mode; none where the emulator doesn't run, which standard error then says.
pub fn run(mode: &str, case: &str) -> Option<Outcome> {
    run_with(mode, case, &[])
}

/// The same, with environment variables.
pub fn run_with(mode: &str, case: &str, environment: &[(&str, &str)]) -> Option<Outcome> {
    if let Err(reason) = cuemu::supported() {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "skipped: tests/cuemu: {reason}");
        return None;
    }
    // Once for all: what doesn't compile shouldn't be tried by every child.
    static BUILT: [OnceLock<Result<PathBuf>>; 2] = [const { OnceLock::new() }; 2];
    let flavour = driver::flavour(mode);
    let built = BUILT[flavour as usize].get_or_init(|| twin(flavour));
    built.as_ref().unwrap_or_else(|message| panic!("{message}"));
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(program);
    command.args(["--exact", "child::child", "--nocapture"]).env(VARIABLE, format!("{mode}|{case}"));
    command.env_remove("CUEMU").envs(environment.iter().copied());
    let output = command.output().expect("this program can be started again");
    let text = String::from_utf8_lossy(&output.stdout);
    let part = |from: &str, to: &str| Some(text.split_once(from)?.1.split_once(to)?.0.trim().to_owned());
    let (Some(error), Some(reports)) = (part("<error>", "</error>"), part("<reports>", "</reports>")) else {
        panic!("{mode}|{case}: {}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    };
    Some(Outcome { error, reports })
}

#[test]
fn child() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let (mode, case) = text.split_once('|').expect("MODE|CASE");
    let driver = Driver::load(mode).expect("the emulator compiles");
    let result = match (cases().get(case), case.split_once(' ')) {
        (Some(case), _) => case(&driver),
        (None, Some(("ptx", name))) => crate::ptx::case(&driver, name),
        (None, Some(("cublaslt", name))) => crate::cublaslt::case(&driver, name),
        (None, _) => plant(&driver, case),
    };
    let error = result.err().unwrap_or_default();
    println!("<error>{error}</error><reports>{}</reports>", driver.reports());
}

/// A kernel of `plants.cu`: its launch and what it makes of `p` if it holds no bug.
struct Plant {
    name: &'static str,
    shape: Shape,
    floats: usize,
    right: fn(usize) -> f32,
}

const ONE: Shape = Shape { blocks: 1, threads: 64, shared: 0 };
const SHARED: Shape = Shape { shared: 256, ..ONE };
const TWO: Shape = Shape { blocks: 2, ..ONE };

fn index(i: usize) -> f32 {
    i as f32
}

/// What `i` threads make of their elements; the others stay.
fn threads(i: usize, value: impl Fn(usize) -> f32) -> f32 {
    if i < 64 { value(i) } else { index(i) }
}

#[rustfmt::skip]
const PLANTS: &[Plant] = &[
    Plant { name: "clean", shape: ONE, floats: 256, right: index },
    Plant { name: "barrier_raw", shape: SHARED, floats: 256, right: |i| threads(i, |t| index(t.saturating_sub(1))) },
    Plant { name: "barrier_raw_static", shape: ONE, floats: 256, right: |i| threads(i, |t| index(t.saturating_sub(1))) },
    Plant { name: "barrier_war", shape: SHARED, floats: 256, right: |i| threads(i, |t| 2.0 * index((t + 1) % 64) + 100.0) },
    Plant { name: "copy_wait", shape: Shape { shared: 1024, ..ONE }, floats: 256, right: |i| threads(i, |t| index(4 * t) + index((4 * t + 4) % 256)) },
    Plant { name: "global_overrun", shape: ONE, floats: 256, right: |i| if i == 255 { 1.0 } else { index(i) } },
    Plant { name: "global_overrun_unaligned", shape: ONE, floats: 253, right: |i| if i == 252 { 1.0 } else { index(i) } },
    Plant { name: "dynamic_overrun", shape: SHARED, floats: 256, right: index },
    Plant { name: "dynamic_underrun", shape: SHARED, floats: 256, right: index },
    Plant { name: "static_overrun", shape: ONE, floats: 256, right: index },
    Plant { name: "local_overrun", shape: ONE, floats: 256, right: |i| threads(i, |t| index(t % 4)) },
    Plant { name: "uninitialised_global", shape: ONE, floats: 256, right: index },
    Plant { name: "uninitialised_shared", shape: SHARED, floats: 256, right: index },
    Plant { name: "misaligned", shape: ONE, floats: 256, right: |i| threads(i, |t| index(4 * t % 128)) },
    Plant { name: "misaligned_pack", shape: ONE, floats: 256, right: |i| threads(i, |t| index(4 * t % 128)) },
    Plant { name: "missing_syncwarp", shape: SHARED, floats: 256, right: |i| threads(i, |t| 2.0 * index(t ^ 1)) },
    Plant { name: "divergent_barrier", shape: ONE, floats: 256, right: index },
    Plant { name: "shuffle_absent", shape: ONE, floats: 256, right: |i| threads(i, |t| index(t ^ 1)) },
    Plant { name: "shuffle_mask", shape: ONE, floats: 256, right: |i| threads(i, |t| index(t / 32 * 32)) },
    Plant { name: "stack_overflow", shape: ONE, floats: 256, right: |i| threads(i, |_| 1.0) },
    Plant { name: "blocks_write", shape: TWO, floats: 256, right: |i| if i < 128 { 7.0 } else { index(i) } },
    Plant { name: "blocks_read", shape: TWO, floats: 256, right: |i| match i { 0..64 => index(64 + i), 128..192 => index(i - 64), _ => index(i) } },
    Plant { name: "deadlock", shape: ONE, floats: 256, right: index },
    Plant { name: "named_deadlock", shape: ONE, floats: 256, right: index },
    Plant { name: "division_by_zero", shape: ONE, floats: 256, right: index },
    Plant { name: "trap", shape: ONE, floats: 256, right: index },
];

pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuemu/plants.cu")
}

/// The twin of `plants.cu`.
pub fn twin(flavour: Flavour) -> Result<PathBuf> {
    let kernels: Vec<&str> = PLANTS.iter().map(|plant| plant.name).chain(["order", "add"]).collect();
    cuemu::build_file(&source(), &kernels, flavour)
}

fn start(driver: &Driver) -> Result<sys::CUmodule> {
    driver::initialise()?;
    driver::load_twin(&twin(driver.flavour)?)
}

/// Launches a plant and compares its output; an error of `wrong result` if it's another than the right one.
fn run_plant(module: sys::CUmodule, plant: &Plant, bug: bool) -> Result<()> {
    let p = driver::upload(&(0..plant.floats).map(index).collect::<Vec<_>>())?;
    let q = driver::allocate(256)?;
    let f = driver::function(module, plant.name)?;
    driver::launch(f, plant.shape, ptr::null_mut(), p, q, bug.into())?;
    driver::synchronize()?;
    let got = driver::download(p, plant.floats)?;
    match (0..plant.floats).find(|&i| got[i] != (plant.right)(i)) {
        Some(i) => Err(format!("wrong result {} at {i} of {}", got[i], plant.name)),
        None => Ok(()),
    }
}

fn plant(driver: &Driver, name: &str) -> Result<()> {
    let plant = PLANTS.iter().find(|plant| plant.name == name).ok_or(format!("no plant {name}"))?;
    run_plant(start(driver)?, plant, true)
}

type Case = fn(&Driver) -> Result<()>;

/// Cases that are more than a launch.
fn cases() -> BTreeMap<&'static str, Case> {
    let all: [(&'static str, Case); _] = [
        ("all_clean", |d| {
            let module = start(d)?;
            PLANTS.iter().try_for_each(|plant| run_plant(module, plant, false))
        }),
        ("reset", |d| {
            let module = start(d)?;
            let trap = PLANTS.iter().find(|plant| plant.name == "trap").expect("it's there");
            run_plant(module, trap, true).expect_err("it traps");
            // The error sticks ...
            driver::allocate(1).expect_err("the context is broken");
            // ... until the context is reset.
            cu!(cuDevicePrimaryCtxReset_v2(0))?;
            run_plant(module, trap, false)
        }),
        ("freed_pointer", |d| {
            let f = driver::function(start(d)?, "clean")?;
            let p = driver::upload(&[0.0; 256])?;
            cu!(cuMemFreeAsync(p, ptr::null_mut()))?;
            driver::launch(f, ONE, ptr::null_mut(), p, p, 0)?;
            driver::synchronize()
        }),
        ("host_pointer", |d| {
            let f = driver::function(start(d)?, "clean")?;
            let host = [0.0f32; 256];
            driver::launch(f, ONE, ptr::null_mut(), host.as_ptr() as u64, 0, 0)?;
            driver::synchronize()
        }),
        ("null_pointer", |d| {
            let f = driver::function(start(d)?, "clean")?;
            driver::launch(f, ONE, ptr::null_mut(), 0, 0, 0)?;
            driver::synchronize()
        }),
        ("freed_twice", |d| {
            start(d)?;
            let p = driver::allocate(100)?;
            cu!(cuMemFree_v2(p))?;
            cu!(cuMemFree_v2(p))
        }),
        ("copy_past_the_end", |d| {
            start(d)?;
            let p = driver::allocate(100)?;
            driver::download(p, 101).map(drop)
        }),
        ("memory", |d| {
            start(d)?;
            let first = driver::allocate(200_000)?;
            let refused = driver::allocate(100_000).expect_err("1 MB are 1 MB");
            assert!(
                refused.contains("400000 bytes wanted, 800000 of the device's 1000000 are in use"),
                "{refused}"
            );
            let (mut free, mut total) = (0, 0);
            cu!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
            assert_eq!((free, total), (200_000, 1_000_000));
            // A free that is still queued counts as done.
            cu!(cuMemFreeAsync(first, ptr::null_mut()))?;
            driver::allocate(250_000).map(drop)
        }),
        ("streams_with_event", |d| streams(d, true)),
        ("streams_without_event", |d| streams(d, false)),
        ("staging", |d| staging(d, true)),
        ("staging_unawaited", |d| staging(d, false)),
        ("download", |d| download(d, true)),
        ("download_unawaited", |d| download(d, false)),
        ("graph", graph),
        ("order", |d| {
            let f = driver::function(start(d)?, "order")?;
            let (p, q) = (driver::upload(&[0.0; 256])?, driver::upload(&[0.0; 2])?);
            driver::launch(f, Shape { blocks: 128, ..ONE }, ptr::null_mut(), p, q, 0)?;
            // Not an error: the text is what the test wants to see.
            Err(format!("{:?}", &driver::download(p, 192)?))
        }),
        ("environment", |_| {
            driver::initialise()?;
            let (mut minor, mut bytes) = (0, 0);
            let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
            cu!(cuDeviceGetAttribute(&raw mut minor, attribute, 0))?;
            cu!(cuDeviceTotalMem_v2(&raw mut bytes, 0))?;
            Err(format!("minor {minor}, {bytes} bytes"))
        }),
        ("before_init", |_| driver::allocate(1).map(drop)),
        ("unemulated", |d| {
            start(d)?;
            // cudarc looks a function up when it's first called, and panics if it isn't there.
            let call = || cu!(cuArrayDestroy(ptr::null_mut()));
            let panic = std::panic::catch_unwind(call).expect_err("arrays aren't emulated");
            Err(panic.downcast_ref::<String>().cloned().unwrap_or_default())
        }),
        ("limits", crate::limits::limits),
        ("no_context", crate::limits::no_context),
        ("images", crate::limits::images),
        ("configuration", crate::limits::configuration),
        ("other_flavour", crate::limits::other_flavour),
        ("threads", threads_share_the_driver),
    ];
    all.into_iter().collect()
}

fn stream() -> Result<sys::CUstream> {
    let mut stream = ptr::null_mut();
    cu!(cuStreamCreate(&raw mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
    Ok(stream)
}

/// One stream writes what another reads, with or without an event between them.
fn streams(driver: &Driver, event: bool) -> Result<()> {
    let f = driver::function(start(driver)?, "add")?;
    let (one, two) = (stream()?, stream()?);
    let x = driver::upload(&[1.0; 256])?;
    let (y, z) = (driver::upload(&[0.0; 256])?, driver::upload(&[0.0; 256])?);
    driver::launch(f, TWO, one, y, x, 256)?;
    if event {
        let mut event = ptr::null_mut();
        cu!(cuEventCreate(&raw mut event, 0))?;
        cu!(cuEventRecord(event, one))?;
        cu!(cuStreamWaitEvent(two, event, 0))?;
    }
    driver::launch(f, TWO, two, z, y, 256)?;
    driver::synchronize()?;
    let got = driver::download(z, 256)?;
    if got == [1.0; 256] { Ok(()) } else { Err(format!("wrong result {}", got[0])) }
}

/// A pinned buffer is filled, copied, and filled again, with or without waiting for the copy.
fn staging(driver: &Driver, wait: bool) -> Result<()> {
    start(driver)?;
    let stream = stream()?;
    let p = driver::allocate(256)?;
    let mut pinned = ptr::null_mut();
    cu!(cuMemHostAlloc(&raw mut pinned, 1024, 0))?;
    let fill = |value: f32| {
        // SAFETY: the buffer has room for 256 floats.
        unsafe { std::slice::from_raw_parts_mut(pinned.cast::<f32>(), 256) }.fill(value);
    };
    fill(1.0);
    cu!(cuMemcpyHtoDAsync_v2(p, pinned, 1024, stream))?;
    if wait {
        cu!(cuStreamSynchronize(stream))?;
    }
    fill(2.0);
    driver::synchronize()?;
    let got = driver::download(p, 256)?;
    if got == [1.0; 256] { Ok(()) } else { Err(format!("wrong result {}", got[0])) }
}

/// A pinned buffer is read, having waited for the copy to it or not.
fn download(driver: &Driver, wait: bool) -> Result<()> {
    start(driver)?;
    let stream = stream()?;
    let p = driver::upload(&[1.0; 256])?;
    let mut pinned = ptr::null_mut();
    cu!(cuMemHostAlloc(&raw mut pinned, 1024, 0))?;
    cu!(cuMemcpyDtoHAsync_v2(pinned, p, 1024, stream))?;
    if wait {
        cu!(cuStreamSynchronize(stream))?;
    }
    // SAFETY: the buffer has room for 256 floats.
    let got = unsafe { std::slice::from_raw_parts(pinned.cast::<f32>(), 256) };
    if got == [1.0; 256] { Ok(()) } else { Err(format!("wrong result {}", got[0])) }
}

/// Three launches, captured once and replayed five times.
fn graph(driver: &Driver) -> Result<()> {
    let f = driver::function(start(driver)?, "add")?;
    let stream = stream()?;
    let (y, x) = (driver::upload(&[0.0; 256])?, driver::upload(&[1.0; 256])?);
    cu!(cuStreamBeginCapture_v2(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))?;
    for _ in 0..3 {
        driver::launch(f, TWO, stream, y, x, 256)?;
    }
    let refused = cu!(cuStreamSynchronize(stream)).expect_err("not while capturing");
    assert!(refused.contains("being captured"), "{refused}");
    let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
    cu!(cuStreamEndCapture(stream, &raw mut graph))?;
    cu!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0))?;
    assert_eq!(driver::download(y, 256)?, [0.0; 256], "a capture runs nothing");
    for _ in 0..5 {
        cu!(cuGraphLaunch(executable, stream))?;
    }
    driver::synchronize()?;
    let got = driver::download(y, 256)?;
    if got == [15.0; 256] { Ok(()) } else { Err(format!("wrong result {}", got[0])) }
}

/// Threads of one program use the driver at once, each with its own stream and memory.
fn threads_share_the_driver(driver: &Driver) -> Result<()> {
    let f = driver::function(start(driver)?, "add")? as usize;
    let mut context = ptr::null_mut();
    cu!(cuCtxGetCurrent(&raw mut context))?;
    let context = context as usize;
    let one = || -> Result<()> {
        cu!(cuCtxSetCurrent(context as sys::CUcontext))?;
        let stream = stream()?;
        let (y, x) = (driver::upload(&[0.0; 256])?, driver::upload(&[1.0; 256])?);
        for _ in 0..200 {
            driver::launch(f as sys::CUfunction, TWO, stream, y, x, 256)?;
        }
        cu!(cuStreamSynchronize(stream))?;
        let got = driver::download(y, 256)?;
        cu!(cuMemFreeAsync(y, stream))?;
        if got == [200.0; 256] { Ok(()) } else { Err(format!("wrong result {}", got[0])) }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        all.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}
