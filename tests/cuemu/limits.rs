//! What the driver refuses: launches past the limits, images without twins, settings it doesn't know.

use crate::child::{run, twin};
use crate::cuemu::Flavour;
use crate::driver::{self, Driver, Result, Shape, cu};
use cudarc::driver::sys;
use std::ptr;

const STATIC_SHARED: sys::CUfunction_attribute =
    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
const MORE_SHARED: sys::CUfunction_attribute =
    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;

/// The manifest of `plants.cu` with these kernel lines; the twin is built, and the driver told where it is.
fn manifest(driver: &Driver, kernels: &str) -> Result<String> {
    let twin = twin(driver.flavour)?;
    let name = twin.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8");
    let (stem, hash) = name.split_once('-').expect("STEM-HASH");
    Ok(format!("othink-kernels 1\nmodule {stem} {hash}\n{kernels}end\n"))
}

fn start(driver: &Driver) -> Result<()> {
    driver.configure(&format!("kernels={}", driver.libraries.kernels.display()));
    driver::initialise()
}

/// The error gives the most shared memory that a block can have, in KiB.
pub fn limits(driver: &Driver) -> Result<()> {
    start(driver)?;
    let module = driver::load_image(&manifest(driver, "kernel barrier_raw_static 64 8p 8p 4\n")?)?;
    let f = driver::function(module, "barrier_raw_static")?;
    let p = driver::upload(&[0.0; 256])?;
    let launch = |blocks, threads, shared| {
        driver::launch(f, Shape { blocks, threads, shared }, ptr::null_mut(), p, p, 0)
    };
    let refused = |launched: Result<()>, words: &str| {
        let text = launched.expect_err(words);
        assert!(text.contains("INVALID_VALUE") && text.contains(words), "{text}");
    };
    let mut fixed = 0;
    cu!(cuFuncGetAttribute(&raw mut fixed, STATIC_SHARED, f))?;
    assert_eq!(fixed, 2 * 64 * 4, "the static arrays of plants.cu");
    launch(1, 64, (48 << 10) - 512)?;
    refused(launch(1, 65, 0), "kernel barrier_raw_static: 65 threads in a block, its launch bounds are 64");
    refused(launch(0, 64, 0), "no size may be 0");
    refused(launch(1 << 31, 64, 0), "past the device's limits");
    // Static and dynamic bytes together pass the limit; the dynamic ones alone don't.
    refused(
        launch(1, 64, (48 << 10) - 511),
        "48641 bytes of dynamic shared memory, allowed are 48640 beside 512 static ones",
    );
    let (mut limit, mut reserved, mut all) = (0, 0, 0);
    for (value, attribute) in [
        (&mut limit, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        (&mut reserved, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK),
        (&mut all, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
    ] {
        cu!(cuDeviceGetAttribute(value, attribute, 0))?;
    }
    let most = limit - fixed;
    refused(cu!(cuFuncSetAttribute(f, MORE_SHARED, most + 1)), "and 512 of static shared memory, a block of");
    cu!(cuFuncSetAttribute(f, MORE_SHARED, most))?;
    launch(1, 64, most as u32)?;
    refused(launch(1, 64, most as u32 + 1), "beside 512 static ones");
    let mut blocks = 0;
    cu!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, f, 64, most as usize))?;
    assert_eq!((blocks, limit + reserved), (1, all), "a block of the most memory fills a multiprocessor");
    Err(format!("limit {} KiB", limit >> 10))
}

/// What a thread may ask for that has made no context current.
pub fn no_context(driver: &Driver) -> Result<()> {
    start(driver)?;
    let image = manifest(driver, "kernel clean 64 8p 8p 4\n")?;
    let module = driver::load_image(&image)?;
    let f = driver::function(module, "clean")?;
    let p = driver::upload(&[0.0; 256])?;
    let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
    cu!(cuCtxGetCurrent(&raw mut context))?;
    cu!(cuStreamCreate(&raw mut stream, 0))?;
    // Handles are pointers, which Rust sends to no other thread.
    let [context, stream, module, f] = [context as usize, stream as usize, module as usize, f as usize];
    let other = move || -> Result<()> {
        let (context, stream) = (context as sys::CUcontext, stream as sys::CUstream);
        let (module, f) = (module as sys::CUmodule, f as sys::CUfunction);
        let shape = Shape { blocks: 1, threads: 64, shared: 0 };
        let (mut made, mut address) = (ptr::null_mut(), 0);
        let mut data = [0.0f32; 256];
        let host = data.as_mut_ptr();
        let refused = [
            ("cuModuleLoadData", driver::load_image(&image).map(drop)),
            ("cuModuleGetFunction", driver::function(module, "clean").map(drop)),
            ("cuFuncSetAttribute", cu!(cuFuncSetAttribute(f, MORE_SHARED, 1 << 16))),
            ("cuLaunchKernel", driver::launch(f, shape, stream, p, p, 0)),
            ("cuMemAlloc_v2", driver::allocate(1).map(drop)),
            ("cuMemHostAlloc", cu!(cuMemHostAlloc(&raw mut made, 1024, 0))),
            ("cuMemcpyHtoD_v2", cu!(cuMemcpyHtoD_v2(p, host.cast(), 1024))),
            ("cuMemcpyDtoH_v2", cu!(cuMemcpyDtoH_v2(host.cast(), p, 1024))),
            ("cuMemcpyDtoD_v2", cu!(cuMemcpyDtoD_v2(p, p + 512, 512))),
            ("cuEventCreate", cu!(cuEventCreate((&raw mut made).cast(), 0))),
            ("cuStreamCreate", cu!(cuStreamCreate((&raw mut made).cast(), 0))),
            ("cuCtxSynchronize", driver::synchronize()),
            ("fill", cu!(cuMemsetD8Async(p, 0, 1024, ptr::null_mut()))),
            ("cuMemFreeAsync", cu!(cuMemFreeAsync(p, ptr::null_mut()))),
        ];
        for (call, result) in refused {
            let text = result.expect_err(call);
            let words = format!("{call}: no context is current on this thread");
            assert!(text.contains("INVALID_CONTEXT") && text.contains(&words), "{text} instead of {words}");
        }
        // A stream that was made knows its context.
        cu!(cuMemAllocAsync(&raw mut address, 1024, stream))?;
        cu!(cuMemsetD8Async(address, 0, 1024, stream))?;
        cu!(cuMemcpyHtoDAsync_v2(p, host.cast(), 1024, stream))?;
        cu!(cuMemcpyDtoDAsync_v2(address, p, 1024, stream))?;
        cu!(cuMemcpyDtoHAsync_v2(host.cast(), address, 1024, stream))?;
        cu!(cuMemFreeAsync(address, stream))?;
        cu!(cuStreamSynchronize(stream))?;
        cu!(cuCtxSetCurrent(context))?;
        driver::launch(f, shape, stream, p, p, 0)
    };
    std::thread::spawn(other).join().expect("no panic")
}

pub fn images(driver: &Driver) -> Result<()> {
    start(driver)?;
    let refused = |image: &str, words: &[&str]| {
        let text = driver::load_image(image).expect_err("a wrong image");
        for word in words {
            assert!(text.contains("INVALID_IMAGE") && text.contains(word), "{text} instead of {word}");
        }
    };
    let good = manifest(driver, "kernel clean 64 8p 8p 4\nkernel add 64 8p 8p 4\n")?;
    driver::function(driver::load_image(&good)?, "add")?;
    // A fat binary before the manifest is skipped by its own sizes.
    let mut fat = vec![0x50, 0xED, 0x55, 0xBA, 1, 0, 16, 0];
    fat.extend(9u64.to_le_bytes());
    fat.extend(b"ELF.\0\0\0..");
    fat.extend(good.as_bytes());
    fat.push(0);
    let mut module = ptr::null_mut();
    cu!(cuModuleLoadData(&raw mut module, fat.as_ptr().cast()))?;
    let missing = driver::function(module, "subtract").expect_err("it has no such kernel");
    assert!(
        missing.contains("NOT_FOUND") && missing.contains("module plants has no kernel subtract"),
        "{missing}"
    );
    refused(
        &manifest(driver, "kernel clean 64 8p 8p 8\n")?,
        &["kernel clean: the manifest declares parameters of sizes 8p 8p 8, ", "plants-", " has 8p 8p 4"],
    );
    refused(&manifest(driver, "kernel clean 64 8p 8 4\n")?, &["sizes 8p 8 4, ", " has 8p 8p 4"]);
    refused(
        &manifest(driver, "kernel subtract 64 8p\n")?,
        &["kernel subtract of the manifest isn't in ", "plants-"],
    );
    refused(&manifest(driver, "kernel clean 0 8p 8p 4\n")?, &["can't be read: kernel clean 0 8p 8p 4"]);
    refused(
        "othink-kernels 1\nmodule plants 0000000000000000\nend\n",
        &["can't load the host-compiled kernels", "kernels/plants-0000000000000000.so"],
    );
    refused("othink-kernels 2\nmodule plants 0\nend\n", &["can't be read: othink-kernels 2"]);
    refused("othink-kernels 1\nmodule plants 0\n", &["ends too early"]);
    refused("a picture", &["no manifest of kernels"]);
    Ok(())
}

pub fn configuration(driver: &Driver) -> Result<()> {
    for (text, accepted) in [
        ("", true),
        ("sched=reverse seed=7 async=eager streams=deferred cc=80 threads=1 memory=4096 poison=0", true),
        ("colour=red", false),
        ("sched=backwards", false),
        ("cc=70", false),
        ("memory=-1", false),
        ("threads=0", false),
        ("seed", false),
    ] {
        assert_eq!(driver.configure(text) == 0, accepted, "{text}");
    }
    driver::initialise()?;
    assert_ne!(driver.configure("seed=1"), 0, "too late");
    Ok(())
}

pub fn other_flavour(driver: &Driver) -> Result<()> {
    driver::initialise()?;
    let other = if driver.flavour == Flavour::Check { Flavour::Fast } else { Flavour::Check };
    driver::load_twin(&twin(other)?).map(drop)
}

#[test]
fn launch_limits_are_those_of_the_manifest_and_the_compute_capability() {
    for (cc, kibibytes) in [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227)] {
        let Some(outcome) = run(&format!("fast cc={cc}"), "limits") else { return };
        assert_eq!(outcome.error, format!("limit {kibibytes} KiB"), "cc={cc}");
    }
}

#[test]
fn a_thread_without_a_context_is_refused() {
    let Some(outcome) = run("fast", "no_context") else { return };
    assert_eq!((outcome.error.as_str(), outcome.reports.as_str()), ("", ""));
}

#[test]
fn an_image_that_does_not_fit_its_twin_is_refused() {
    let Some(outcome) = run("fast", "images") else { return };
    assert_eq!(outcome.error, "");
}

#[test]
fn a_twin_of_the_other_flavour_is_refused() {
    for mode in ["fast", "check"] {
        let Some(outcome) = run(mode, "other_flavour") else { return };
        assert!(
            outcome.error.contains("another build of the emulator (with the checks, or without)"),
            "{outcome:?}"
        );
    }
}

#[test]
fn settings_are_checked() {
    let Some(outcome) = run("fast", "configuration") else { return };
    assert_eq!(outcome.error, "");
}

#[test]
fn memory_is_limited_by_the_setting() {
    for mode in ["fast memory=1000000", "check memory=1000000 streams=deferred"] {
        let Some(outcome) = run(mode, "memory") else { return };
        assert_eq!(outcome.error, "");
    }
}
