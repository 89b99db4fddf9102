//! Bugs in the use of the wrappers of kernels/arch.cuh, planted in `ptx.cu`: in which modes each is caught, and by which words.

use crate::bugs::{caught, missed, wrong};
use crate::child::run;
use crate::cuemu;
use crate::driver::{self, Driver, Result, cu};
use cudarc::driver::sys;
use othink::cuda::TensorMap;
use std::ffi::c_void;
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;

const FLOATS: usize = 8192;
const THREADS: u32 = 128;
const SHARED_BYTES: u32 = 16400;

/// A kernel's name and what it makes of element `t` of `p` if it holds no bug.
type Plant = (&'static str, fn(usize) -> f32);

fn index(t: usize) -> f32 {
    t as f32
}

/// Element `t` of the box whose first row is `row` of `p`.
fn boxed(row: usize, t: usize) -> f32 {
    ((row + t / 32) * 64 + t % 32) as f32
}

const PLANTS: &[Plant] = &[
    ("ldmatrix_misaligned", |_| 1.0),
    ("ldmatrix_overrun", |_| 1.0),
    ("ldmatrix_unordered", |_| 1.0),
    ("ldmatrix_partial_warp", |_| 1.0),
    ("cp_async_misaligned", |t| index(4 * t + 512)),
    ("cp_async_size", |_| 513.0),
    ("cp_async_barrier", |t| index(512 + 127 - t)),
    ("named_barrier_zero", |_| 1.0),
    ("named_barrier_order", |t| index(t % 64)),
    ("mbarrier_arrivals", |t| index(127 - t)),
    ("mbarrier_parity", |t| index(127 - t)),
    ("mbarrier_uninitialised", |_| 1.0),
    ("mbarrier_twice", |_| 1.0),
    ("tma_wait", |t| boxed(8, t)),
    ("tma_misaligned", |t| boxed(8, t)),
    ("tma_start", |t| boxed(8, t)),
    ("tma_no_barrier", |t| boxed(8, t)),
    ("tma_no_fence", |t| boxed(8, t)),
    ("tma_bytes", |t| boxed(8, t)),
    ("tma_swizzle", |t| boxed(8, t)),
    ("tma_wrong_rank", |_| 1.0),
    ("tma_stage", |t| boxed(8, t) + boxed(16, t)),
    ("wgmma_wait_late", |_| 16.0),
    ("wgmma_group", |_| 32.0),
    ("wgmma_stage", |_| 16.0),
    ("wgmma_no_fence", |_| 16.0),
    ("wgmma_proxy", |_| 16.0),
    ("wgmma_write", |_| 16.0),
    ("wgmma_unawaited", |_| 16.0),
    ("wgmma_layout", |_| 16.0),
    ("wgmma_refence", |_| 16.0),
    ("cc_mbarrier", |_| 1.0),
    ("cc_tma", |_| 1.0),
    ("cc_wgmma", |_| 1.0),
    ("cc_proxy", |_| 1.0),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuemu/ptx.cu")
}

/// `ptx.cu:LINE` of the line with this name.
fn at(name: &str) -> String {
    let text = fs::read_to_string(source()).expect("ptx.cu");
    let mark = format!("// @{name}");
    let (line, _) = (1..).zip(text.lines()).find(|(_, line)| line.ends_with(&mark)).expect(name);
    format!("ptx.cu:{line}")
}

/// The map that the kernels take; zeros on a device that has none.
fn tensor_map(p: u64) -> Result<TensorMap> {
    let mut map = TensorMap([0; 16]);
    let mut major = 0;
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    cu!(cuDeviceGetAttribute(&raw mut major, attribute, 0))?;
    if major >= 9 {
        let (sizes, pitches, boxed, ones) = ([64, FLOATS as u64 / 64], [256], [32, 8], [1, 1]);
        cu!(cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            2,
            p as *mut c_void,
            sizes.as_ptr(),
            pitches.as_ptr(),
            boxed.as_ptr(),
            ones.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))?;
    }
    Ok(map)
}

/// Launches a kernel on `p`, and gives what `p` is then.
fn launch(module: sys::CUmodule, name: &str, p: &[f32], bug: bool) -> Result<Vec<f32>> {
    let p = driver::upload(p)?;
    let (map, bug) = (tensor_map(p)?, i32::from(bug));
    let mut arguments: [*mut c_void; 3] = [
        (&raw const map).cast_mut().cast(),
        (&raw const p).cast_mut().cast(),
        (&raw const bug).cast_mut().cast(),
    ];
    cu!(cuLaunchKernel(
        driver::function(module, name)?,
        1,
        1,
        1,
        THREADS,
        1,
        1,
        SHARED_BYTES,
        ptr::null_mut(),
        arguments.as_mut_ptr(),
        ptr::null_mut(),
    ))?;
    driver::synchronize()?;
    driver::download(p, FLOATS)
}

fn run_plant(module: sys::CUmodule, (name, right): &Plant, bug: bool) -> Result<()> {
    let got = launch(module, name, &(0..FLOATS).map(index).collect::<Vec<_>>(), bug)?;
    let expected = |i| if i < THREADS as usize { right(i) } else { index(i) };
    match (0..FLOATS).find(|&i| got[i] != expected(i)) {
        Some(i) => Err(format!("wrong result {} at {i} of {name}", got[i])),
        None => Ok(()),
    }
}

/// Runs a case of this file: `clean` (all kernels without their bugs), `sums`, or a kernel with its bug.
pub fn case(driver: &Driver, name: &str) -> Result<()> {
    driver::initialise()?;
    let kernels: Vec<&str> = PLANTS.iter().map(|plant| plant.0).chain(["sums"]).collect();
    let module = driver::load_twin(&cuemu::build_file(&source(), &kernels, driver.flavour)?)?;
    match name {
        "clean" => PLANTS.iter().try_for_each(|plant| run_plant(module, plant, false)),
        "sums" => sums(module),
        _ => run_plant(module, PLANTS.iter().find(|plant| plant.0 == name).ok_or("no such kernel")?, true),
    }
}

/// Counts in how many of 128 sums of 16 products each pair of orders differs.
fn sums(module: sys::CUmodule) -> Result<()> {
    let mut p = vec![0f32; FLOATS];
    let mut state = 1u32;
    for value in &mut p[..4096] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Of many sizes: sums of 16 products of like size come out exact in any order.
        let scale = f32::from(state as u8 % 12).exp2();
        *value = half::bf16::from_f32(((state >> 8) as f32 / 8_388_608.0 - 1.0) * scale).to_f32();
    }
    let got = launch(module, "sums", &p, false)?;
    let mut differ = [0; 3];
    for (set, sums) in got[4096..].chunks_exact(3).take(128).enumerate() {
        let (x, y) = p[32 * set..32 * set + 32].split_at(16);
        let products = || x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y));
        let (exact, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
        if let Some(sum) = sums.iter().find(|&&sum| (f64::from(sum) - exact).abs() > 1e-6 * size) {
            return Err(format!("wrong result {sum} for {exact}"));
        }
        differ[0] += usize::from(sums[0] != sums[1]);
        differ[1] += usize::from(sums[1] != sums[2]);
        differ[2] += usize::from(sums[2] != sums[0]);
    }
    match differ.iter().all(|&count| count > 30) {
        true => Ok(()),
        false => Err(format!("orders of summation that hardly differ: {differ:?} of 128")),
    }
}

const BOTH: [&str; 2] = ["fast", "check"];

#[test]
fn clean_kernels_pass_in_all_modes() {
    for mode in [
        "fast",
        "fast sched=reverse async=eager",
        "fast sched=random async=random seed=1",
        "check",
        "check sched=reverse async=eager",
        "check sched=random async=random seed=2",
    ] {
        missed(mode, "ptx clean");
    }
}

#[test]
fn mma_wgmma_and_a_loop_sum_in_different_orders() {
    missed("fast", "ptx sums");
}

#[test]
fn ldmatrix() {
    for mode in BOTH {
        caught(
            mode,
            "ptx ldmatrix_misaligned",
            &["ldmatrix at ", &at("ldmatrix_misaligned"), "row address 0x8 of lane 0 is not 16-byte aligned"],
        );
        caught(mode, "ptx ldmatrix_overrun", &["ldmatrix at ", &at("ldmatrix_overrun"), "0x8000"]);
        let line = at("ldmatrix_partial_warp");
        caught(mode, "ptx ldmatrix_partial_warp", &["ldmatrix.x4 at ", &line, "by the lanes ffffff7f alone"]);
    }
    let (read, write) = (at("ldmatrix_unordered"), at("ldmatrix_unordered write"));
    caught("check sched=reverse", "ptx ldmatrix_unordered", &["uninitialised byte ", "ldmatrix at ", &read]);
    caught("check", "ptx ldmatrix_unordered", &["read-after-write race", "ldmatrix at ", &read, &write]);
    wrong("fast", "ptx ldmatrix_unordered");
}

#[test]
fn cp_async() {
    for mode in BOTH {
        let line = at("cp_async_misaligned");
        caught(mode, "ptx cp_async_misaligned", &["cp.async at ", &line, "not 16-byte aligned"]);
        caught(
            mode,
            "ptx cp_async_size",
            &["cp.async at ", &at("cp_async_size"), "12 bytes out of a copy of 8"],
        );
    }
    let (read, copy) = (at("cp_async_barrier read"), at("cp_async_barrier copy"));
    caught("check", "ptx cp_async_barrier", &["uninitialised byte ", &read]);
    caught("check", "ptx cp_async_barrier", &["race", &read, "cp.async", &copy[..6]]);
    wrong("fast", "ptx cp_async_barrier");
}

#[test]
fn named_barriers() {
    for mode in BOTH {
        caught(
            mode,
            "ptx named_barrier_zero",
            &["named barrier 0 for 128 threads at ", &at("named_barrier_zero")],
        );
    }
    let (read, write) = (at("named_barrier_order read"), at("named_barrier_order write"));
    caught("check", "ptx named_barrier_order", &["read-after-write race", &read, &write]);
    wrong("fast sched=reverse", "ptx named_barrier_order");
    missed("fast", "ptx named_barrier_order");
}

#[test]
fn mbarriers() {
    for mode in BOTH {
        caught(
            mode,
            "ptx mbarrier_arrivals",
            &["mbarrier.arrive at ", "more arrivals in a phase than the 32"],
        );
        let line = at("mbarrier_uninitialised");
        caught(
            mode,
            "ptx mbarrier_uninitialised",
            &[&line, "no mbarrier has been initialised at shared address 0x0"],
        );
        caught(
            mode,
            "ptx mbarrier_twice",
            &[&at("mbarrier_twice"), "there is an mbarrier at 0x4000 already"],
        );
    }
    caught("check", "ptx mbarrier_parity", &["uninitialised byte ", &at("mbarrier_parity read")]);
    caught(
        "check sched=random seed=3",
        "ptx mbarrier_parity",
        &["shared memory: ", &at("mbarrier_parity read")],
    );
    caught("fast", "ptx mbarrier_parity", &["deadlock", "wait in mbarrier.try_wait at "]);
}

#[test]
fn tma() {
    let line = at("tma");
    for mode in BOTH {
        let what = ["TMA at ", &line, "shared destination 0x80 is not 1024-byte aligned"];
        caught(mode, "ptx tma_misaligned", &what);
        let what = ["TMA at ", &line, "begins at element 2 of the innermost dimension"];
        caught(mode, "ptx tma_start", &what);
        let what = ["TMA at ", &line, "no mbarrier has been initialised at shared address 0x4008"];
        caught(mode, "ptx tma_no_barrier", &what);
        caught(mode, "ptx tma_no_fence", &["TMA at ", &line, "no mbarrier_fence_init after mbarrier_init"]);
        caught(mode, "ptx tma_bytes", &["deadlock", "wait in mbarrier.try_wait at ", &at("tma wait")]);
        caught(mode, "ptx tma_wrong_rank", &[&at("tma_wrong_rank"), "not a 3-D tensor map"]);
        wrong(mode, "ptx tma_swizzle");
    }
    let read = at("box_element");
    caught("check", "ptx tma_wait", &["uninitialised byte ", &read]);
    caught("check async=eager", "ptx tma_wait", &["read-after-write race", &read, "TMA at ", &line]);
    wrong("fast", "ptx tma_wait");
    missed("fast async=eager", "ptx tma_wait");
    for mode in ["check", "check async=eager", "check sched=random seed=5"] {
        caught(mode, "ptx tma_stage", &["race", &at("tma_stage")]);
    }
    wrong("fast", "ptx tma_stage");
}

#[test]
fn wgmma() {
    let line = at("wgmma");
    for mode in BOTH {
        let what = ["wgmma at ", &line, "no wgmma_fence since its accumulators were written"];
        caught(mode, "ptx wgmma_no_fence", &what);
        let again = at("wgmma again");
        caught(
            mode,
            "ptx wgmma_refence",
            &["wgmma at ", &again, "no wgmma_fence since its accumulators were written"],
        );
        let what = ["wgmma at ", &line, "accumulator 5 of lane 0 was written before the product was awaited"];
        caught(mode, "ptx wgmma_write", &what);
        caught(
            mode,
            "ptx wgmma_unawaited",
            &["wgmma at ", &line, "was never awaited: its thread has returned"],
        );
        caught(mode, "ptx wgmma_layout", &["wgmma at ", &line, "only the 128-byte swizzle"]);
    }
    for mode in ["fast", "fast async=eager", "check", "check async=eager"] {
        wrong(mode, "ptx wgmma_wait_late");
        wrong(mode, "ptx wgmma_group");
    }
    let (stores, operand) = (at("fill_tiles"), "wgmma operand at ");
    for mode in ["check", "check async=eager"] {
        caught(mode, "ptx wgmma_stage", &["read-after-write race", operand, &line, &stores]);
        let what = [operand, &line, "wrote this shared memory, and no fence_proxy_async followed"];
        caught(mode, "ptx wgmma_proxy", &what);
    }
    wrong("fast", "ptx wgmma_stage");
    missed("fast async=eager", "ptx wgmma_stage");
    missed("fast", "ptx wgmma_proxy");
}

#[test]
fn what_a_device_lacks() {
    for (case, what, line) in [
        ("cc_mbarrier", "mbarrier.init at ", "make_mbarrier"),
        ("cc_tma", "TMA at ", "cc_tma"),
        ("cc_wgmma", "wgmma at ", "cc_wgmma"),
        ("cc_proxy", "fence.proxy.async at ", "cc_proxy"),
    ] {
        for (mode, has) in [("fast cc=80", "8.0"), ("check cc=89", "8.9")] {
            let lacks = format!("needs compute capability 9.0, this device has {has}");
            caught(mode, &format!("ptx {case}"), &[what, &at(line), &lacks]);
        }
        let outcome = run("fast cc=90", &format!("ptx {case}"));
        assert!(outcome.is_none_or(|outcome| !outcome.reports.contains("compute capability")), "{case}");
    }
}
