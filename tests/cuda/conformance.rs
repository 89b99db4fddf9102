//! The wrappers of kernels/arch.cuh against the PTX manual.
//!
//! Each kernel of kernels/conformance.cu hands one wrapper small exact integers and writes out what came, register by register. What
//! should come is computed here from the layouts of the PTX ISA ([`layout`]), which the emulator states on its own and otherwise: that a
//! kernel and the emulator misread the manual alike does not pass. On a GPU the same tests show that the wrappers say what we mean.

use crate::harness::gpu;
use cudarc::driver::sys;
use half::bf16;
use othink::cuda::kernels::{Grid, conformance as kernels};
use othink::cuda::{Buffer, Const, Element, Gpu, Mut, Purpose, TensorMap};
use othink::error::Result;

/// Where elements stand, as the PTX ISA says it: in its terms, `groupID` is `lane >> 2` and `threadID_in_group` is `lane % 4`.
mod layout {
    /// "Matrix Fragments for mma.m16n8k16 with floating point type", A: row and column of element `i` (0 to 7) of a lane.
    pub fn mma_a(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
        let column = thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
        (row, column)
    }

    /// The same, B: row (k) and column of element `i` (0 to 3).
    pub fn mma_b(lane: usize, i: usize) -> (usize, usize) {
        let row = (lane % 4) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
        (row, lane >> 2)
    }

    /// The same, C and D: row and column of element `i` (0 to 3).
    pub fn mma_d(lane: usize, i: usize) -> (usize, usize) {
        let row = if i < 2 { lane >> 2 } else { (lane >> 2) + 8 };
        (row, (lane % 4) * 2 + (i & 1))
    }

    /// "ldmatrix": the two elements (row, column) of an 8x8 matrix in a lane's register.
    pub fn ldmatrix(lane: usize, transposed: bool) -> [(usize, usize); 2] {
        let (row, column) = (lane / 4, lane % 4 * 2);
        if transposed { [(column, row), (column + 1, row)] } else { [(row, column), (row, column + 1)] }
    }

    /// "Register Fragments for wgmma.mma_async.m64nNk16", D: row and column of element `i` of a thread of the warpgroup.
    pub fn wgmma_d(thread: usize, i: usize) -> (usize, usize) {
        let (warp, lane) = (thread / 32, thread % 32);
        let row = 16 * warp + (lane >> 2) + 8 * ((i & 2) >> 1);
        (row, 8 * (i / 4) + lane % 4 * 2 + (i & 1))
    }

    /// "Swizzling modes" of tensor maps and matrix descriptors: where a byte of a tile that begins at a multiple of 1024 goes. Within a
    /// line of 128 bytes the chunks of 16 are exchanged: by the line's number, of which the mode takes the lowest 0 to 3 bits.
    pub fn swizzled(byte: usize, bits: u32) -> usize {
        let (line, chunk, within) = (byte / 128, byte / 16 % 8, byte % 16);
        line * 128 + (chunk ^ (line % (1 << bits))) * 16 + within
    }

    /// "Shared memory matrix layout", K-major, 128-byte swizzle, all of 64 k: where element (row, k) of bf16 stands, in bytes. Groups of
    /// eight rows follow each other.
    pub fn k_major(row: usize, k: usize) -> usize {
        swizzled(row / 8 * 1024 + row % 8 * 128 + k * 2, 3)
    }

    /// The same, MN-major: element (k, n) of a matrix of 64 k. Blocks of 64 n follow each other.
    pub fn mn_major(k: usize, n: usize) -> usize {
        swizzled(n / 64 * 8192 + k / 8 * 1024 + k % 8 * 128 + n % 64 * 2, 3)
    }
}

/// Small integers, the same for the same seed.
fn integers(seed: u32, count: usize) -> Vec<i32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as i32 % 15 - 7
    };
    (0..count).map(|_| next()).collect()
}

fn bits(value: i32) -> u16 {
    bf16::from_f32(value as f32).to_bits()
}

/// A register of two elements: the first one in its low half.
fn pair(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

fn upload<T: Element>(gpu: &Gpu, data: &[T]) -> Buffer<T> {
    gpu.upload(data, Purpose::Inputs).unwrap()
}

/// Uploads a result's first value, lets the kernel work on it and gives what it left.
fn result<T: Element>(gpu: &Gpu, initial: &[T], launch: impl FnOnce(Mut<T>) -> Result<()>) -> Vec<T> {
    let mut buffer = upload(gpu, initial);
    launch(buffer.ptr_mut()).unwrap();
    gpu.synchronize().unwrap();
    buffer.download().unwrap()
}

fn one_block(threads: u32, shared_bytes: usize) -> Grid {
    Grid::new(1, threads).unwrap().shared(shared_bytes)
}

/// The GPU, if it is of that compute capability: a later one runs what was compiled for an earlier, without its instructions.
fn gpu_of(capability: (u32, u32)) -> Option<&'static Gpu> {
    gpu().filter(|gpu| gpu.capability() == capability)
}

#[test]
fn dynamic_shared_memory_begins_at_a_multiple_of_1024() {
    let Some(gpu) = gpu() else { return };
    // SAFETY: 32 threads write an element each.
    let addresses = result(gpu, &[7u32; 32], |to| unsafe {
        kernels::conform_shared_address(gpu, one_block(32, 4096), to)
    });
    assert!(addresses.iter().all(|&address| address % 1024 == 0 && address == addresses[0]), "{addresses:?}");
}

type Ldmatrix = unsafe fn(&Gpu, Grid, Const<u8>, i32, Const<u32>, Mut<u32>) -> Result<()>;

#[test]
fn ldmatrix() {
    let Some(gpu) = gpu() else { return };
    let cases: [(usize, bool, Ldmatrix); 6] = [
        (1, false, kernels::conform_ldmatrix_x1),
        (2, false, kernels::conform_ldmatrix_x2),
        (4, false, kernels::conform_ldmatrix_x4),
        (1, true, kernels::conform_ldmatrix_x1_trans),
        (2, true, kernels::conform_ldmatrix_x2_trans),
        (4, true, kernels::conform_ldmatrix_x4_trans),
    ];
    // 32 rows of 8 elements in a shuffled order, every element another number.
    let place = |row: usize| 16 * (row * 13 % 32);
    let element = |row: usize, column: usize| (row * 8 + column + 1) as u16;
    let mut tile = vec![0u8; 512];
    for (row, column) in (0..256).map(|i| (i / 8, i % 8)) {
        let at = place(row) + 2 * column;
        tile[at..at + 2].copy_from_slice(&element(row, column).to_le_bytes());
    }
    let tile = upload(gpu, &tile);
    for (matrices, transposed, kernel) in cases {
        // The lanes behind those that give rows must not matter.
        let rows: Vec<u32> =
            (0..32).map(|lane| if lane < 8 * matrices { place(lane) as u32 } else { 8 }).collect();
        let rows = upload(gpu, &rows);
        // SAFETY: the tile has 512 bytes, in which the rows lie; 32 lanes get one register per matrix.
        let got = result(gpu, &vec![0u32; 32 * matrices], |to| unsafe {
            kernel(gpu, one_block(32, 512), tile.ptr(), 512, rows.ptr(), to)
        });
        for (lane, m) in (0..32).flat_map(|lane| (0..matrices).map(move |m| (lane, m))) {
            let [first, second] =
                layout::ldmatrix(lane, transposed).map(|(row, column)| element(8 * m + row, column));
            assert_eq!(
                got[lane * matrices + m],
                pair(first, second),
                "x{matrices}, transposed {transposed}, lane {lane}, matrix {m}"
            );
        }
    }
}

/// The lanes' registers of A, for a matrix of 16 rows of 16.
fn a_registers(a: &[i32]) -> Vec<u32> {
    let element = |lane, i| {
        let (row, column) = layout::mma_a(lane, i);
        bits(a[16 * row + column])
    };
    (0..128).map(|r| pair(element(r / 4, r % 4 * 2), element(r / 4, r % 4 * 2 + 1))).collect()
}

#[test]
fn mma_m16n8k16() {
    let Some(gpu) = gpu() else { return };
    let (a, b, c) = (integers(1, 256), integers(2, 128), integers(3, 128));
    let b_element = |lane, i| {
        let (k, n) = layout::mma_b(lane, i);
        bits(b[8 * k + n])
    };
    let b_registers: Vec<u32> =
        (0..64).map(|r| pair(b_element(r / 2, r % 2 * 2), b_element(r / 2, r % 2 * 2 + 1))).collect();
    let of_lanes = |matrix: &dyn Fn(usize, usize) -> i32| -> Vec<f32> {
        let element = |i: usize| {
            let (row, column) = layout::mma_d(i / 4, i % 4);
            matrix(row, column) as f32
        };
        (0..128).map(element).collect()
    };
    let initial = of_lanes(&|row, column| c[8 * row + column]);
    let expected = of_lanes(&|row, column| {
        c[8 * row + column] + (0..16).map(|k| a[16 * row + k] * b[8 * k + column]).sum::<i32>()
    });
    let (a, b) = (upload(gpu, &a_registers(&a)), upload(gpu, &b_registers));
    // SAFETY: 32 lanes have 4, 2 and 4 registers of A, B and D.
    let got = result(gpu, &initial, |d| unsafe {
        kernels::conform_mma_m16n8k16(gpu, one_block(32, 0), a.ptr(), b.ptr(), d)
    });
    assert_eq!(got, expected);
}

#[test]
fn mma_ldmatrix() {
    let Some(gpu) = gpu() else { return };
    // Two tiles of 16 columns; rows of 16 elements of B, 48 bytes apart: B is stored [n, k], or transposed [k, n].
    const PITCH: usize = 48;
    let (a, b, c) = (integers(4, 256), integers(5, 16 * 32), integers(6, 16 * 32));
    let registers = upload(gpu, &a_registers(&a));
    for transposed in [false, true] {
        let mut tile = vec![0u8; 32 * PITCH];
        for (k, n) in (0..512).map(|i| (i / 32, i % 32)) {
            let (line, column) = if transposed { (16 * (n / 16) + k, n % 16) } else { (n, k) };
            let at = line * PITCH + 2 * column;
            tile[at..at + 2].copy_from_slice(&bits(b[32 * k + n]).to_le_bytes());
        }
        // Matrix m of ldmatrix.x4 is the register b(m % 2) of the tile's half m / 2: k from 8 * (m % 2), n from 8 * (m / 2).
        let row = |lane: usize, t: usize| {
            let (k, n, r) = (8 * (lane / 8 % 2), 8 * (lane / 16), lane % 8);
            let (line, column) = if transposed { (k + r, n) } else { (n + r, k) };
            ((16 * t + line) * PITCH + 2 * column) as u32
        };
        let rows: Vec<u32> = (0..64).map(|i| row(i / 2, i % 2)).collect();
        let of_lanes = |matrix: &dyn Fn(usize, usize) -> i32| -> Vec<f32> {
            let element = |i: usize| {
                let (row, column) = layout::mma_d(i / 16, i % 4);
                matrix(row, i / 4 % 4 * 8 + column) as f32
            };
            (0..512).map(element).collect()
        };
        let initial = of_lanes(&|row, column| c[32 * row + column]);
        let expected = of_lanes(&|row, column| {
            c[32 * row + column] + (0..16).map(|k| a[16 * row + k] * b[32 * k + column]).sum::<i32>()
        });
        let bytes = tile.len();
        let (tile, rows) = (upload(gpu, &tile), upload(gpu, &rows));
        let kernel =
            if transposed { kernels::conform_mma_ldmatrix_trans } else { kernels::conform_mma_ldmatrix };
        // SAFETY: the rows lie in the tile; 32 lanes have two rows, 4 registers of A and 16 of D.
        let got = result(gpu, &initial, |d| unsafe {
            kernel(gpu, one_block(32, bytes), tile.ptr(), bytes as i32, rows.ptr(), registers.ptr(), d)
        });
        assert_eq!(got, expected, "transposed: {transposed}");
    }
}

type CpAsync = unsafe fn(&Gpu, Grid, Const<u8>, Const<i32>, Mut<u8>) -> Result<()>;

#[test]
fn cp_async_fills_up_with_zeros() {
    let Some(gpu) = gpu() else { return };
    let cases: [(usize, CpAsync); 3] =
        [(16, kernels::conform_cp_async16), (8, kernels::conform_cp_async8), (4, kernels::conform_cp_async4)];
    for (size, kernel) in cases {
        let from: Vec<u8> = (0..32 * size).map(|i| (i % 255 + 1) as u8).collect();
        let counts: Vec<i32> = (0..32).map(|t| (t % (size + 1)) as i32).collect();
        let expected: Vec<u8> = (0..32 * size)
            .map(|i| if ((i % size) as i32) < counts[i / size] { from[i] } else { 0 })
            .collect();
        let (from, counts) = (upload(gpu, &from), upload(gpu, &counts));
        // SAFETY: 32 threads copy `size` bytes each.
        let got = result(gpu, &vec![7u8; 32 * size], |to| unsafe {
            kernel(gpu, one_block(32, 32 * size), from.ptr(), counts.ptr(), to)
        });
        assert_eq!(got, expected, "{size} bytes");
    }
}

#[test]
fn cp_async_waits_for_groups() {
    let Some(gpu) = gpu() else { return };
    let numbers: Vec<u32> = (0..64).map(|i| 1000 + i).collect();
    let from = upload(gpu, &numbers);
    // SAFETY: 32 threads copy two numbers each.
    let got = result(gpu, &[0u32; 64], |to| unsafe {
        kernels::conform_cp_async_groups(gpu, one_block(32, 256), from.ptr(), to)
    });
    assert_eq!(got, numbers);
}

#[test]
fn named_barriers_order_two_warps_of_three() {
    let Some(gpu) = gpu() else { return };
    let from: Vec<u32> = (0..64).map(|i| 100 + i).collect();
    // Threads of warp 1 read warp 0's numbers from the end, and the other way round, with a thousand more.
    let expected: Vec<u32> = (0..64).map(|t| 100 + 63 - t + if t < 32 { 1000 } else { 0 }).collect();
    let from = upload(gpu, &from);
    // SAFETY: the first two warps read and write one number per thread.
    let got = result(gpu, &[0u32; 64], |to| unsafe {
        kernels::conform_named_barrier(gpu, one_block(96, 256), from.ptr(), to)
    });
    assert_eq!(got, expected);
}

#[test]
fn mbarrier_phases() {
    let Some(gpu) = gpu_of((9, 0)) else { return };
    let phases = 5;
    let expected: Vec<u32> = (0..64 * phases).map(|i| 64 * (i / 64) + (i % 64 + 33) % 64).collect();
    // SAFETY: 64 threads write one number in each phase.
    let got = result(gpu, &vec![0u32; 64 * phases as usize], |to| unsafe {
        kernels::conform_mbarrier(gpu, one_block(64, 16 + 256), phases as i32, to)
    });
    assert_eq!(got, expected);
}

/// A tensor on the device and the box that is taken from it, innermost dimension first.
struct Tiled {
    element_bytes: usize,
    element_type: sys::CUtensorMapDataType,
    sizes: Vec<usize>,
    pitches: Vec<usize>,
    boxed: Vec<usize>,
    swizzle_bits: u32,
}

impl Tiled {
    fn map(&self, tensor: &Buffer<u8>) -> TensorMap {
        use sys::CUtensorMapSwizzle_enum as Swizzle;
        let swizzles = [
            Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        ];
        let sizes: Vec<u64> = self.sizes.iter().map(|&n| n as u64).collect();
        let pitches: Vec<u64> = self.pitches.iter().map(|&n| n as u64).collect();
        let boxed: Vec<u32> = self.boxed.iter().map(|&n| n as u32).collect();
        let ones = vec![1u32; sizes.len()];
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have as many entries as there are dimensions (strides: one less), the map 128 bytes.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                self.element_type,
                sizes.len() as u32,
                tensor.ptr().address() as *mut _,
                sizes.as_ptr(),
                pitches.as_ptr(),
                boxed.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzles[self.swizzle_bits as usize],
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        assert_eq!(status, sys::CUresult::CUDA_SUCCESS);
        map
    }

    fn box_bytes(&self) -> usize {
        self.boxed.iter().product::<usize>() * self.element_bytes
    }

    /// Shared memory after the box at `start` has come, with the 16 bytes behind it that keep their 0xee.
    fn expected(&self, tensor: &[u8], start: &[i32]) -> Vec<u8> {
        let mut shared = vec![0xee; self.box_bytes() + 16];
        for element in 0..self.boxed.iter().product::<usize>() {
            let (mut rest, mut inside, mut at) = (element, true, 0);
            for (d, &extent) in self.boxed.iter().enumerate() {
                let index = i64::from(start[d]) + (rest % extent) as i64;
                rest /= extent;
                inside &= (0..self.sizes[d] as i64).contains(&index);
                at += index * if d == 0 { self.element_bytes } else { self.pitches[d - 1] } as i64;
            }
            for byte in 0..self.element_bytes {
                let to = layout::swizzled(element * self.element_bytes + byte, self.swizzle_bits);
                shared[to] = if inside { tensor[at as usize + byte] } else { 0 };
            }
        }
        shared
    }
}

/// Bytes none of which is 0 or 0xee.
fn tensor_bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 31 % 227 + 1) as u8).collect()
}

#[test]
fn tma_2d() {
    use sys::CUtensorMapDataType_enum as Type;
    let Some(gpu) = gpu_of((9, 0)) else { return };
    let types: [(usize, Type); 3] = [
        (1, Type::CU_TENSOR_MAP_DATA_TYPE_UINT8),
        (2, Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
        (4, Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32),
    ];
    for (element_bytes, element_type) in types {
        for swizzle_bits in 0..4 {
            // A box row is as long as the swizzle's span; without one, 48 bytes.
            let row_bytes = if swizzle_bits == 0 { 48 } else { 16 << swizzle_bits };
            let boxed = row_bytes / element_bytes;
            let (width, height) = (boxed + 5, 21);
            let pitch = (width * element_bytes).next_multiple_of(16) + 16;
            let tiled = Tiled {
                element_bytes,
                element_type,
                sizes: vec![width, height],
                pitches: vec![pitch],
                boxed: vec![boxed, 16],
                swizzle_bits,
            };
            let bytes = tensor_bytes(pitch * height);
            let tensor = upload(gpu, &bytes);
            let map = tiled.map(&tensor);
            // Along x in steps of 16 bytes, outside the tensor too.
            let step = 16 / element_bytes as i32;
            let beyond = width.next_multiple_of(16 / element_bytes) as i32;
            for start in [[0, 0], [step, 5], [-step, -2], [2 * step, 9], [beyond, 0], [0, -16]] {
                let size = tiled.box_bytes();
                // SAFETY: the box fits into shared memory and the output has 16 bytes more.
                let got = result(gpu, &vec![0u8; size + 16], |to| unsafe {
                    kernels::conform_tma_2d(
                        gpu,
                        one_block(64, 1024 + size + 16),
                        map,
                        start[0],
                        start[1],
                        size as u32,
                        to,
                    )
                });
                assert_eq!(
                    got,
                    tiled.expected(&bytes, &start),
                    "{element_bytes}-byte elements, {swizzle_bits} swizzle bits, box at {start:?}"
                );
            }
        }
    }
}

#[test]
fn tma_3d() {
    let Some(gpu) = gpu_of((9, 0)) else { return };
    let tiled = Tiled {
        element_bytes: 2,
        element_type: sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        sizes: vec![70, 7, 5],
        pitches: vec![160, 160 * 8],
        boxed: vec![64, 4, 3],
        swizzle_bits: 3,
    };
    let bytes = tensor_bytes(160 * 8 * 5);
    let tensor = upload(gpu, &bytes);
    let map = tiled.map(&tensor);
    for start in [[0, 0, 0], [8, 3, 2], [-8, 5, 3], [40, -2, -2]] {
        let size = tiled.box_bytes();
        // SAFETY: the box fits into shared memory and the output has 16 bytes more.
        let got = result(gpu, &vec![0u8; size + 16], |to| unsafe {
            let [x, y, z] = start;
            kernels::conform_tma_3d(gpu, one_block(64, 1024 + size + 16), map, x, y, z, size as u32, to)
        });
        assert_eq!(got, tiled.expected(&bytes, &start), "box at {start:?}");
    }
}

/// The elements of a matrix as bytes, each at the place that `place` gives.
fn placed(
    bytes: usize,
    rows: usize,
    columns: usize,
    matrix: &[i32],
    place: impl Fn(usize, usize) -> usize,
) -> Vec<u8> {
    let mut out = vec![0xffu8; bytes];
    for (row, column) in (0..rows * columns).map(|i| (i / columns, i % columns)) {
        let at = place(row, column);
        out[at..at + 2].copy_from_slice(&bits(matrix[row * columns + column]).to_le_bytes());
    }
    out
}

type Wgmma =
    unsafe fn(&Gpu, Grid, Const<u8>, i32, Const<u8>, i32, u32, u32, u32, i32, Mut<f32>) -> Result<()>;

#[test]
fn wgmma() {
    let Some(gpu) = gpu_of((9, 0)) else { return };
    let cases: [(usize, bool, Wgmma); 6] = [
        (64, false, kernels::conform_wgmma_n64_k),
        (64, true, kernels::conform_wgmma_n64_mn),
        (128, false, kernels::conform_wgmma_n128_k),
        (128, true, kernels::conform_wgmma_n128_mn),
        (256, false, kernels::conform_wgmma_n256_k),
        (256, true, kernels::conform_wgmma_n256_mn),
    ];
    // Tiles of 64 k, of which one product takes 16.
    let a = integers(7, 64 * 64);
    let a_tile = placed(8192, 64, 64, &a, layout::k_major);
    let a_tile = upload(gpu, &a_tile);
    for (n, mn_major, kernel) in cases {
        let (b, c) = (integers(8, 64 * n), integers(9, 64 * n));
        let b_bytes = 128 * n;
        let b_tile = placed(b_bytes, 64, n, &b, |k, column| {
            if mn_major { layout::mn_major(k, column) } else { layout::k_major(column, k) }
        });
        let b_tile = upload(gpu, &b_tile);
        let of_threads = |matrix: &dyn Fn(usize, usize) -> i32| -> Vec<f32> {
            let element = |i: usize| {
                let (row, column) = layout::wgmma_d(i / (n / 2), i % (n / 2));
                matrix(row, column) as f32
            };
            (0..64 * n).map(element).collect()
        };
        for (step, accumulate) in [(0, true), (1, false), (2, true), (3, true)] {
            let initial = of_threads(&|row, column| c[n * row + column]);
            let expected = of_threads(&|row, column| {
                let products = (16 * step..16 * step + 16).map(|k| a[64 * row + k] * b[n * k + column]);
                products.sum::<i32>() + if accumulate { c[n * row + column] } else { 0 }
            });
            let a_start = 32 * step as u32;
            let b_start = if mn_major { 2048 * step as u32 } else { a_start };
            // SAFETY: the tiles have 8192 and 128 n bytes, 128 threads n / 2 registers each.
            let got = result(gpu, &initial, |d| unsafe {
                kernel(
                    gpu,
                    one_block(128, 8192 + b_bytes),
                    a_tile.ptr(),
                    8192,
                    b_tile.ptr(),
                    b_bytes as i32,
                    a_start,
                    b_start,
                    8192,
                    i32::from(accumulate),
                    d,
                )
            });
            assert_eq!(got, expected, "n {n}, MN-major {mn_major}, step {step}, accumulate {accumulate}");
        }
    }
}

#[test]
fn wgmma_waits_for_groups() {
    let Some(gpu) = gpu_of((9, 0)) else { return };
    let (a, b) = (integers(10, 64 * 64), integers(11, 64 * 64));
    let a_tile = upload(gpu, &placed(8192, 64, 64, &a, layout::k_major));
    // B is given as [n, k].
    let b_tile = upload(gpu, &placed(8192, 64, 64, &b, layout::k_major));
    let of_threads = |stop: usize| -> Vec<f32> {
        let element = |i: usize| {
            let (row, column) = layout::wgmma_d(i / 32, i % 32);
            (0..stop).map(|k| a[64 * row + k] * b[64 * column + k]).sum::<i32>() as f32
        };
        (0..64 * 64).map(element).collect()
    };
    let mut whole = upload(gpu, &vec![0f32; 64 * 64]);
    // SAFETY: the tiles have 8192 bytes, 128 threads 32 registers each, twice.
    let first = result(gpu, &vec![0f32; 64 * 64], |to| unsafe {
        kernels::conform_wgmma_groups(
            gpu,
            one_block(128, 16384),
            a_tile.ptr(),
            b_tile.ptr(),
            to,
            whole.ptr_mut(),
        )
    });
    assert_eq!(first, of_threads(32));
    assert_eq!(whole.download().unwrap(), of_threads(64));
}

type Unary = unsafe fn(&Gpu, Grid, Const<f32>, Mut<f32>, i32) -> Result<()>;

fn elementwise(gpu: &Gpu, kernel: Unary, x: &[f32]) -> Vec<f32> {
    let from = upload(gpu, x);
    // SAFETY: as many elements are read and written as there are.
    result(gpu, &vec![0f32; x.len()], |to| unsafe {
        kernel(gpu, one_block(32, 0), from.ptr(), to, x.len() as i32)
    })
}

/// The manual's bounds of ex2.approx.ftz.f32 and rcp.approx.ftz.f32, and its tables of special values.
#[test]
fn approximations() {
    let Some(gpu) = gpu() else { return };
    let x: Vec<f32> = (0..1000).map(|i| (i - 500) as f32 * 0.213 + 0.011).collect();
    let close = |got: f32, exact: f64, bound: f64| ((f64::from(got) - exact) / exact).abs() <= bound;
    for (&x, y) in x.iter().zip(elementwise(gpu, kernels::conform_exp2, &x)) {
        assert!(close(y, f64::from(x).exp2(), 2f64.powi(-22)), "2^{x} = {y}");
    }
    for (&x, y) in x.iter().zip(elementwise(gpu, kernels::conform_rcp, &x)) {
        assert!(close(y, 1.0 / f64::from(x), 2f64.powi(-23)), "1 / {x} = {y}");
    }
    let (tiny, infinite) = (f32::from_bits(1), f32::INFINITY);
    let special = [-infinite, -tiny, -0.0, 0.0, tiny, infinite, f32::NAN];
    let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
    let exp2 = elementwise(gpu, kernels::conform_exp2, &special);
    assert_eq!(bits(&exp2[..6]), bits(&[0.0, 1.0, 1.0, 1.0, 1.0, infinite]));
    assert!(exp2[6].is_nan());
    let rcp = elementwise(gpu, kernels::conform_rcp, &special);
    assert_eq!(bits(&rcp[..6]), bits(&[-0.0, -infinite, -infinite, infinite, infinite, 0.0]));
    assert!(rcp[6].is_nan());
}
