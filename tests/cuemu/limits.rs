//! What the driver refuses: launches past the limits, images without twins, settings it doesn't know.

use crate::child::{run, twin};
use crate::cuemu::Flavour;
use crate::driver::{self, Driver, Result, Shape, cu};
use cudarc::driver::sys;
use std::ptr;

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
    let module = driver::load_image(&manifest(driver, "kernel clean 64 8p 8p 4\n")?)?;
    let f = driver::function(module, "clean")?;
    let p = driver::upload(&[0.0; 256])?;
    let launch = |blocks, threads, shared| {
        driver::launch(f, Shape { blocks, threads, shared }, ptr::null_mut(), p, p, 0)
    };
    let refused = |launched: Result<()>, words: &str| {
        let text = launched.expect_err(words);
        assert!(text.contains("INVALID_VALUE") && text.contains(words), "{text}");
    };
    launch(1, 64, 48 << 10)?;
    refused(launch(1, 65, 0), "kernel clean: 65 threads in a block, its launch bounds are 64");
    refused(launch(0, 64, 0), "no size may be 0");
    refused(launch(1 << 31, 64, 0), "past the device's limits");
    refused(launch(1, 64, (48 << 10) + 1), "49153 bytes of dynamic shared memory, allowed are 49152");
    let (mut limit, mut reserved, mut all) = (0, 0, 0);
    for (value, attribute) in [
        (&mut limit, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        (&mut reserved, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK),
        (&mut all, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
    ] {
        cu!(cuDeviceGetAttribute(value, attribute, 0))?;
    }
    refused(cu!(cuFuncSetAttribute(f, MORE_SHARED, limit + 1)), "a block of compute capability");
    cu!(cuFuncSetAttribute(f, MORE_SHARED, limit))?;
    launch(1, 64, limit as u32)?;
    let mut blocks = 0;
    cu!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, f, 64, limit as usize))?;
    assert_eq!((blocks, limit + reserved), (1, all), "a block of the most memory fills a multiprocessor");
    Err(format!("limit {} KiB", limit >> 10))
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
    for (cc, kibibytes) in [(80, 163), (86, 99), (89, 99), (90, 227)] {
        let Some(outcome) = run(&format!("fast cc={cc}"), "limits") else { return };
        assert_eq!(outcome.error, format!("limit {kibibytes} KiB"), "cc={cc}");
    }
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
