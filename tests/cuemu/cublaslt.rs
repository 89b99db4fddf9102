//! The emulated cuBLASLt: right where the real one is, and different from itself where the real one is.

use crate::bugs::{caught, missed};
use crate::driver::{self, Driver, Result, cu};
use cudarc::driver::sys;
use half::bf16;
use libloading::os::unix::{Library, RTLD_NOW};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::{self, null_mut};

const F32: i32 = 0;
const BF16: i32 = 14;
const COMPUTE_32F: i32 = 68;
const FAST_TF32: i32 = 77;
const INVALID_VALUE: i32 = 7;
const ARCH_MISMATCH: i32 = 8;
const NOT_SUPPORTED: i32 = 15;
// cublasLtMatmulAlgoConfigAttributes_t
const CONFIG_ID: i32 = 0;
const CONFIG_SPLITS: i32 = 2;
const CONFIG_REDUCTION: i32 = 3;
// cublasLtReductionScheme_t
const INPLACE: u32 = 1;
const COMPUTE_TYPE: u32 = 2;
const OUTPUT_TYPE: u32 = 4;

type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Candidate {
    algorithm: Algorithm,
    workspace: usize,
    status: i32,
    waves: f32,
    reserved: [i32; 4],
}

struct Lt {
    library: Library,
    handle: *mut c_void,
}

/// Calls a function of the library; its status.
macro_rules! lt {
    ($lt:expr, $name:literal, $($argument:expr => $type:ty),*) => {{
        // SAFETY: the types are those of cublasLt.h; the objects and pointers live during the call.
        unsafe {
            let function = $lt.library.get::<unsafe extern "C" fn($($type),*) -> i32>($name.as_bytes());
            function.expect($name)($($argument),*)
        }
    }};
}

type Object = *mut c_void;

/// Operation, layouts of A, B and D (also of C).
struct Objects([Object; 4]);

/// D[m, n] = alpha * op(A)[m, k] * op(B)[k, n] + beta * D + bias[m].
#[derive(Clone)]
struct Product {
    input: i32,
    output: i32,
    m: usize,
    n: usize,
    k: usize,
    compute: i32,
    transpose: [bool; 2],
    /// Of A, B, D: rows are contiguous.
    row_major: [bool; 3],
    /// Elements behind the contiguous ones.
    padding: usize,
    alpha: f32,
    beta: f32,
    bias: u64,
}

impl Product {
    fn new(input: i32, output: i32, [m, n, k]: [usize; 3]) -> Product {
        Product {
            input,
            output,
            m,
            n,
            k,
            compute: COMPUTE_32F,
            transpose: [false, false],
            row_major: [false; 3],
            padding: 0,
            alpha: 1.0,
            beta: 0.0,
            bias: 0,
        }
    }

    /// Rows, columns and elements from line to line, as matrix `i` of A, B and D is stored.
    fn stored(&self, i: usize) -> (usize, usize, usize) {
        let (rows, columns) = [(self.m, self.k), (self.k, self.n), (self.m, self.n)][i];
        let (rows, columns) = if i < 2 && self.transpose[i] { (columns, rows) } else { (rows, columns) };
        (rows, columns, self.padding + if self.row_major[i] { columns } else { rows })
    }

    /// Elements of matrix `i`'s memory.
    fn len(&self, i: usize) -> usize {
        let (rows, columns, leading) = self.stored(i);
        leading * if self.row_major[i] { rows } else { columns }
    }

    /// Where element (row, column) of op(matrix `i`) stands.
    fn at(&self, i: usize, row: usize, column: usize) -> usize {
        let (row, column) = if i < 2 && self.transpose[i] { (column, row) } else { (row, column) };
        let leading = self.stored(i).2;
        if self.row_major[i] { row * leading + column } else { column * leading + row }
    }
}

impl Lt {
    fn open(path: &Path) -> Result<Lt> {
        driver::initialise()?;
        // SAFETY: the library is the project's own.
        let library = unsafe { Library::open(Some(path), RTLD_NOW) }.map_err(|e| e.to_string())?;
        let mut lt = Lt { library, handle: null_mut() };
        let status = lt!(lt, "cublasLtCreate", &raw mut lt.handle => *mut Object);
        if status == 0 { Ok(lt) } else { Err(format!("cublasLtCreate: {status}")) }
    }

    fn objects(&self, p: &Product) -> Objects {
        let mut made = Objects([null_mut(); 4]);
        let [operation, layouts @ ..] = &mut made.0;
        assert_eq!(
            lt!(self, "cublasLtMatmulDescCreate", operation => *mut Object, p.compute => i32, F32 => i32),
            0
        );
        let set = |attribute: i32, value: *const c_void, bytes: usize| {
            let status = lt!(self, "cublasLtMatmulDescSetAttribute", *operation => Object, attribute => i32,
                value => *const c_void, bytes => usize);
            assert_eq!(status, 0, "attribute {attribute}");
        };
        for (attribute, transposed) in [(3, p.transpose[0]), (4, p.transpose[1])] {
            let value = i32::from(transposed);
            set(attribute, (&raw const value).cast(), 4);
        }
        if p.bias != 0 {
            let epilogue = 4u32;
            set(7, (&raw const epilogue).cast(), 4);
            set(8, (&raw const p.bias).cast(), 8);
        }
        for (i, layout) in layouts.iter_mut().enumerate() {
            let (rows, columns, leading) = p.stored(i);
            let element = if i < 2 { p.input } else { p.output };
            let status = lt!(self, "cublasLtMatrixLayoutCreate", layout => *mut Object, element => i32, rows as u64 => u64,
                columns as u64 => u64, leading as i64 => i64);
            assert_eq!(status, 0);
            let order = i32::from(p.row_major[i]);
            let status = lt!(self, "cublasLtMatrixLayoutSetAttribute", *layout => Object, 1 => i32,
                (&raw const order).cast() => *const c_void, 4 => usize);
            assert_eq!(status, 0);
        }
        made
    }

    /// The heuristic's candidates for a workspace and a mask of reduction schemes.
    fn heuristic(&self, p: &Product, workspace: u64, reductions: u32) -> Vec<Candidate> {
        let Objects([operation, a, b, d]) = self.objects(p);
        let mut preference = null_mut();
        assert_eq!(lt!(self, "cublasLtMatmulPreferenceCreate", &raw mut preference => *mut Object), 0);
        for (attribute, value, bytes) in
            [(1, (&raw const workspace).cast(), 8), (3, (&raw const reductions).cast::<c_void>(), 4)]
        {
            let status = lt!(self, "cublasLtMatmulPreferenceSetAttribute", preference => Object, attribute => i32,
                value => *const c_void, bytes => usize);
            assert_eq!(status, 0);
        }
        let mut found = [Candidate::default(); 8];
        let mut count = 0;
        let status = lt!(self, "cublasLtMatmulAlgoGetHeuristic", self.handle => Object, operation => Object, a => Object,
            b => Object, d => Object, d => Object, preference => Object, 8 => i32, found.as_mut_ptr() => *mut Candidate,
            &raw mut count => *mut i32);
        assert!(status == 0 || (status == NOT_SUPPORTED && count == 0), "{status}");
        found[..count as usize].to_vec()
    }

    /// The ids of all algorithms for the types.
    fn ids(&self, p: &Product) -> Vec<i32> {
        let (mut ids, mut count) = ([0; 16], 0);
        let status = lt!(self, "cublasLtMatmulAlgoGetIds", self.handle => Object, p.compute => i32, F32 => i32, p.input => i32,
            p.input => i32, p.output => i32, p.output => i32, 16 => i32, ids.as_mut_ptr() => *mut i32,
            &raw mut count => *mut i32);
        assert_eq!(status, 0);
        ids[..count as usize].to_vec()
    }

    fn algorithm(&self, p: &Product, id: i32) -> Algorithm {
        let mut algorithm = [0; 8];
        let status = lt!(self, "cublasLtMatmulAlgoInit", self.handle => Object, p.compute => i32, F32 => i32, p.input => i32,
            p.input => i32, p.output => i32, p.output => i32, id => i32, &raw mut algorithm => *mut Algorithm);
        assert_eq!(status, 0);
        algorithm
    }

    fn configured(&self, algorithm: &Algorithm, attribute: i32) -> u32 {
        let (mut value, mut bytes) = (0u32, 0usize);
        let status = lt!(self, "cublasLtMatmulAlgoConfigGetAttribute", algorithm => *const Algorithm, attribute => i32,
            &raw mut value => *mut u32, 4 => usize, &raw mut bytes => *mut usize);
        assert_eq!((status, bytes), (0, 4));
        value
    }

    fn configure(&self, algorithm: &mut Algorithm, attribute: i32, value: u32) {
        let status = lt!(self, "cublasLtMatmulAlgoConfigSetAttribute", algorithm => *mut Algorithm, attribute => i32,
            &raw const value => *const u32, 4 => usize);
        assert_eq!(status, 0);
    }

    /// Whether the algorithm takes the product, and its workspace.
    fn check(&self, p: &Product, algorithm: &Algorithm) -> (i32, usize) {
        let Objects([operation, a, b, d]) = self.objects(p);
        let mut result = Candidate::default();
        let status = lt!(self, "cublasLtMatmulAlgoCheck", self.handle => Object, operation => Object, a => Object, b => Object,
            d => Object, d => Object, algorithm => *const Algorithm, &raw mut result => *mut Candidate);
        (status, result.workspace)
    }

    /// Queues the product on a stream; its status.
    fn multiply(
        &self,
        p: &Product,
        algorithm: Option<&Algorithm>,
        [a, b, d]: [u64; 3],
        workspace: (u64, usize),
        stream: sys::CUstream,
    ) -> i32 {
        let Objects([operation, a_layout, b_layout, d_layout]) = self.objects(p);
        let algorithm = algorithm.map_or(ptr::null(), ptr::from_ref);
        lt!(self, "cublasLtMatmul", self.handle => Object, operation => Object, &raw const p.alpha => *const f32, a => u64,
            a_layout => Object, b => u64, b_layout => Object, &raw const p.beta => *const f32, d => u64, d_layout => Object,
            d => u64, d_layout => Object, algorithm => *const Algorithm, workspace.0 => u64, workspace.1 => usize,
            stream => sys::CUstream)
    }

    /// The product of two matrices' memory, added to nothing, with as much workspace as it wants; D's memory as f32.
    fn product(&self, p: &Product, algorithm: &Algorithm, a: &[f32], b: &[f32]) -> Result<Vec<f32>> {
        let (status, bytes) = self.check(p, algorithm);
        if status != 0 {
            return Err(format!("AlgoCheck: {status}"));
        }
        let workspace = driver::allocate(bytes / 4 + 1)?;
        let (a, b) = (upload(p.input, a)?, upload(p.input, b)?);
        let d = upload(p.output, &vec![0.0; p.len(2)])?;
        let status = self.multiply(p, Some(algorithm), [a, b, d], (workspace, bytes), null_mut());
        if status != 0 {
            return Err(format!("Matmul: {status}"));
        }
        driver::synchronize()?;
        download(p.output, d, p.len(2))
    }
}

fn upload(element: i32, data: &[f32]) -> Result<u64> {
    if element == F32 {
        return driver::upload(data);
    }
    let halves: Vec<u16> = data.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
    let address = driver::allocate(halves.len().div_ceil(2))?;
    cu!(cuMemcpyHtoD_v2(address, halves.as_ptr().cast(), 2 * halves.len()))?;
    Ok(address)
}

fn download(element: i32, address: u64, len: usize) -> Result<Vec<f32>> {
    if element == F32 {
        return driver::download(address, len);
    }
    let mut halves = vec![0u16; len];
    cu!(cuMemcpyDtoH_v2(halves.as_mut_ptr().cast(), address, 2 * len))?;
    Ok(halves.into_iter().map(|v| bf16::from_bits(v).to_f32()).collect())
}

/// Numbers of bf16 in (-1, 1).
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / 8_388_608.0 - 1.0).to_f32()
    };
    (0..count).map(|_| next()).collect()
}

/// Small integers, with which every order gives the same.
fn integers(seed: u32, count: usize) -> Vec<f32> {
    numbers(seed, count).into_iter().map(|v| (v * 4.0).round()).collect()
}

/// Element (row, column) of a product, in f64, over the first `k`.
fn exact(p: &Product, a: &[f32], b: &[f32], row: usize, column: usize, k: usize) -> f64 {
    (0..k).map(|k| f64::from(a[p.at(0, row, k)]) * f64::from(b[p.at(1, k, column)])).sum()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn near(p: &Product, a: &[f32], b: &[f32], d: &[f32], k: usize, bound: f64) {
    for (row, column) in (0..p.m * p.n).map(|i| (i / p.n, i % p.n)) {
        let (got, want) = (d[p.at(2, row, column)], exact(p, a, b, row, column, k));
        assert!((f64::from(got) - want).abs() <= bound, "({row}, {column}): {got} for {want}");
    }
}

fn stream() -> Result<sys::CUstream> {
    let mut stream = null_mut();
    cu!(cuStreamCreate(&raw mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
    Ok(stream)
}

/// Runs a case of this file in a process of its own.
pub fn case(driver: &Driver, name: &str) -> Result<()> {
    let lt = Lt::open(&driver.libraries.cublaslt)?;
    match name {
        "layouts" => layouts(&lt),
        "orders" => orders(&lt),
        "rows" => rows(&lt),
        "heuristic" => heuristic(&lt),
        "splits" => splits(&lt),
        "refusals" => refusals(&lt),
        "tf32" => tf32(&lt),
        "no_wgmma" => no_wgmma(&lt),
        "stream" => stream_order(&lt),
        "graph" => graph(&lt),
        "overrun" => overrun(&lt),
        "uninitialised" => uninitialised(&lt),
        _ => Err(format!("no case {name}")),
    }
}

/// All transpositions, orders and types, with alpha, beta and bias, on integers: exact.
fn layouts(lt: &Lt) -> Result<()> {
    for (input, output) in [(F32, F32), (BF16, F32), (BF16, BF16)] {
        for variant in 0..32 {
            let bit = |i: u32| variant >> i & 1 == 1;
            let mut p = Product::new(input, output, [11, 5, 23]);
            p.transpose = [bit(0), bit(1)];
            p.row_major = [bit(2), bit(3), bit(4)];
            p.padding = 3;
            p.alpha = 2.0;
            let (a, b) = (integers(1, p.len(0)), integers(2, p.len(1)));
            let (c, bias) = (integers(3, p.len(2)), integers(4, p.m));
            if !p.row_major[2] {
                p.bias = upload(output, &bias)?;
            }
            for beta in [0.0, 0.5] {
                p.beta = beta;
                let d = upload(output, &c)?;
                let operands = [upload(input, &a)?, upload(input, &b)?, d];
                assert_eq!(lt.multiply(&p, None, operands, (0, 0), null_mut()), 0);
                driver::synchronize()?;
                let got = download(output, d, p.len(2))?;
                let mut expected = c.clone();
                for (row, column) in (0..p.m * p.n).map(|i| (i / p.n, i % p.n)) {
                    let at = p.at(2, row, column);
                    let sum = 2.0 * exact(&p, &a, &b, row, column, p.k) as f32 + beta * c[at];
                    let sum = sum + if p.bias == 0 { 0.0 } else { bias[row] };
                    expected[at] = if output == BF16 { bf16::from_f32(sum).to_f32() } else { sum };
                }
                assert_eq!(got, expected, "types {input} and {output}, variant {variant}, beta {beta}");
            }
        }
    }
    Ok(())
}

/// Every algorithm gives the same bits again, and no two the same.
fn orders(lt: &Lt) -> Result<()> {
    for input in [F32, BF16] {
        let p = Product::new(input, F32, [32, 24, 512]);
        let (a, b) = (numbers(1, p.len(0)), numbers(2, p.len(1)));
        let mut seen = BTreeSet::new();
        let ids = lt.ids(&p);
        assert!(ids.len() >= 3, "{ids:?}");
        for &id in &ids {
            let algorithm = lt.algorithm(&p, id);
            assert_eq!(lt.configured(&algorithm, CONFIG_ID), id as u32);
            let d = lt.product(&p, &algorithm, &a, &b)?;
            near(&p, &a, &b, &d, p.k, 1e-4);
            assert_eq!(bits(&d), bits(&lt.product(&p, &algorithm, &a, &b)?), "algorithm {id} twice");
            assert!(seen.insert(bits(&d)), "algorithm {id} sums like another one");
        }
    }
    Ok(())
}

/// One algorithm gives a row the same bits in every number of rows, on either side of D.
fn rows(lt: &Lt) -> Result<()> {
    for input in [F32, BF16] {
        let whole = Product::new(input, F32, [40, 16, 96]);
        for id in lt.ids(&whole) {
            for rows_of_d in [true, false] {
                // The operand of many rows has its k contiguous, so that fewer of them are its beginning.
                let product = |count: usize| {
                    let (m, n) = if rows_of_d { (count, 16) } else { (16, count) };
                    let mut p = Product::new(input, F32, [m, n, 96]);
                    p.transpose = [true, false];
                    p.row_major = [false, false, rows_of_d];
                    p
                };
                let p = product(40);
                let algorithm = lt.algorithm(&p, id);
                let (a, b) = (numbers(5, p.len(0)), numbers(6, p.len(1)));
                let all = lt.product(&p, &algorithm, &a, &b)?;
                for count in [1, 3, 17] {
                    let p = product(count);
                    let some = lt.product(&p, &algorithm, &a[..p.len(0)], &b[..p.len(1)])?;
                    assert_eq!(bits(&some), bits(&all[..some.len()]), "algorithm {id}, {count} rows");
                }
            }
        }
    }
    Ok(())
}

/// The first choice depends on the number of rows, split-K comes first where there is little else to share, and the mask and
/// the workspace keep it away.
fn heuristic(lt: &Lt) -> Result<()> {
    for input in [F32, BF16] {
        let first = |m: usize, k: usize, workspace: u64, mask: u32| {
            let found = lt.heuristic(&Product::new(input, F32, [256, m, k]), workspace, mask);
            let Candidate { algorithm, .. } = found[0];
            (lt.configured(&algorithm, CONFIG_ID), lt.configured(&algorithm, CONFIG_SPLITS))
        };
        let choices: BTreeSet<_> = [1, 32, 1024].map(|m| first(m, 512, 1 << 24, 7)).into();
        assert_eq!(choices.len(), 3, "{choices:?}");
        assert!(choices.iter().all(|&(_, splits)| splits == 1));
        assert_eq!(first(32, 2048, 1 << 24, 7).1, 4);
        assert_eq!(first(32, 2048, 1 << 24, 0).1, 1, "no scheme is permitted");
        let p = Product::new(input, F32, [256, 32, 2048]);
        for (workspace, mask) in [(0, 7), (1 << 24, COMPUTE_TYPE), (1 << 24, INPLACE | OUTPUT_TYPE), (0, 0)] {
            for found in lt.heuristic(&p, workspace, mask) {
                let scheme = lt.configured(&found.algorithm, CONFIG_REDUCTION);
                assert!(scheme & !mask == 0 && found.workspace as u64 <= workspace, "{scheme} of {mask}");
                assert_eq!(lt.check(&p, &found.algorithm), (0, found.workspace));
            }
        }
        // What is left of K over by whole stages is summed by none that is offered.
        let odd = Product::new(input, F32, [256, 32, 2040]);
        assert!(
            lt.heuristic(&odd, 1 << 24, 7).iter().all(|c| lt.configured(&c.algorithm, CONFIG_SPLITS) == 1)
        );
    }
    Ok(())
}

/// Split-K sums in an order of its own for each scheme, and drops what is left over by whole stages.
fn splits(lt: &Lt) -> Result<()> {
    for input in [F32, BF16] {
        let p = Product::new(input, F32, [32, 24, 1024]);
        let id = lt.configured(&lt.heuristic(&p, 1 << 24, COMPUTE_TYPE)[0].algorithm, CONFIG_ID) as i32;
        let split = |p: &Product, splits: u32, scheme: u32| {
            let mut algorithm = lt.algorithm(p, id);
            lt.configure(&mut algorithm, CONFIG_SPLITS, splits);
            lt.configure(&mut algorithm, CONFIG_REDUCTION, scheme);
            algorithm
        };
        let with = |splits, scheme| split(&p, splits, scheme);
        let (a, b) = (numbers(7, p.len(0)), numbers(8, p.len(1)));
        let mut seen = BTreeSet::new();
        for (splits, scheme) in [(1, 0), (2, COMPUTE_TYPE), (4, COMPUTE_TYPE)] {
            let d = lt.product(&p, &with(splits, scheme), &a, &b)?;
            near(&p, &a, &b, &d, p.k, 1e-4);
            assert!(seen.insert(bits(&d)), "{splits} parts, scheme {scheme}");
        }
        if input == BF16 {
            // Where parts or their sums are rounded to the output's type, it shows.
            let p = Product::new(BF16, BF16, [32, 24, 1024]);
            for (splits, scheme) in [(1, 0), (4, OUTPUT_TYPE), (4, INPLACE)] {
                let d = lt.product(&p, &split(&p, splits, scheme), &a, &b)?;
                near(&p, &a, &b, &d, p.k, 0.5);
                assert!(seen.insert(bits(&d)), "{splits} parts, scheme {scheme}");
            }
        }
        assert_eq!(lt.check(&p, &with(4, COMPUTE_TYPE)).1, 32 * 24 * 4 * 4);
        assert_eq!(lt.check(&p, &with(4, 0)).0, INVALID_VALUE, "parts have to be added up somehow");
        let short = (driver::allocate(1)?, 4);
        let memory = [upload(input, &a)?, upload(input, &b)?, driver::allocate(p.len(2))?];
        let status = lt.multiply(&p, Some(&with(4, COMPUTE_TYPE)), memory, short, null_mut());
        assert_eq!(status, INVALID_VALUE, "the workspace is too small");

        let mut odd = Product::new(input, F32, [32, 24, 1000]);
        odd.transpose = [true, false];
        let (a, b) = (numbers(9, odd.len(0)), numbers(10, odd.len(1)));
        let mut algorithm = lt.algorithm(&odd, id);
        near(&odd, &a, &b, &lt.product(&odd, &algorithm, &a, &b)?, 1000, 1e-4);
        lt.configure(&mut algorithm, CONFIG_SPLITS, 2);
        lt.configure(&mut algorithm, CONFIG_REDUCTION, COMPUTE_TYPE);
        near(&odd, &a, &b, &lt.product(&odd, &algorithm, &a, &b)?, 992, 1e-4);
    }
    Ok(())
}

/// Leading dimensions and pointers that aren't 16-byte aligned are refused by those who need it, and only by them.
fn refusals(lt: &Lt) -> Result<()> {
    for input in [F32, BF16] {
        let mut p = Product::new(input, F32, [32, 24, 64]);
        let aligned = lt.heuristic(&p, 0, 0).len();
        p.padding = 1;
        let found = lt.heuristic(&p, 0, 0);
        assert!(!found.is_empty() && found.len() < aligned, "{} of {aligned}", found.len());
        let statuses: BTreeSet<i32> =
            lt.ids(&p).iter().map(|&id| lt.check(&p, &lt.algorithm(&p, id)).0).collect();
        assert_eq!(statuses, BTreeSet::from([0, NOT_SUPPORTED]));
        p.padding = 0;
        let memory = [driver::allocate(8192)?, driver::allocate(8192)?, driver::allocate(8192)?];
        let shifted = memory.map(|address| address + 4);
        for id in lt.ids(&p) {
            let algorithm = lt.algorithm(&p, id);
            let mut odd = p.clone();
            odd.padding = 1;
            let picky = lt.check(&odd, &algorithm).0 != 0;
            let status = lt.multiply(&p, Some(&algorithm), shifted, (0, 0), null_mut());
            assert_eq!(status, if picky { NOT_SUPPORTED } else { 0 }, "algorithm {id}");
        }
        // Another shape than the layouts'.
        let Objects([operation, a, b, _]) = lt.objects(&p);
        let Objects([.., d]) = lt.objects(&Product::new(input, F32, [33, 24, 64]));
        let mut result = Candidate::default();
        let algorithm = lt.algorithm(&p, lt.ids(&p)[0]);
        let status = lt!(lt, "cublasLtMatmulAlgoCheck", lt.handle => Object, operation => Object, a => Object, b => Object,
            d => Object, d => Object, &raw const algorithm => *const Algorithm, &raw mut result => *mut Candidate);
        assert_eq!(status, INVALID_VALUE);
    }
    Ok(())
}

/// TF32 is another product than f32.
fn tf32(lt: &Lt) -> Result<()> {
    let mut p = Product::new(F32, F32, [16, 16, 64]);
    let a: Vec<f32> = numbers(11, p.len(0)).iter().map(|v| v * 1.0001).collect();
    let b = numbers(12, p.len(1));
    let f32s = lt.product(&p, &lt.heuristic(&p, 0, 0)[0].algorithm, &a, &b)?;
    near(&p, &a, &b, &f32s, p.k, 1e-5);
    p.compute = FAST_TF32;
    let tf32s = lt.product(&p, &lt.heuristic(&p, 0, 0)[0].algorithm, &a, &b)?;
    near(&p, &a, &b, &tf32s, p.k, 1e-2);
    let worst = f32s.iter().zip(&tf32s).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst > 1e-4, "{worst}");
    Ok(())
}

/// Before compute capability 9.0 there is one algorithm less.
fn no_wgmma(lt: &Lt) -> Result<()> {
    let p = Product::new(BF16, F32, [256, 256, 64]);
    let statuses: Vec<i32> = lt.ids(&p).iter().map(|&id| lt.check(&p, &lt.algorithm(&p, id)).0).collect();
    assert_eq!(statuses.iter().filter(|&&status| status == ARCH_MISMATCH).count(), 1, "{statuses:?}");
    assert!(!lt.heuristic(&p, 0, 0).is_empty());
    Ok(())
}

/// A product takes its place among the other work of its stream.
fn stream_order(lt: &Lt) -> Result<()> {
    let p = Product::new(F32, F32, [8, 8, 8]);
    let (a, b) = (integers(13, 64), integers(14, 64));
    let stream = stream()?;
    let [x, y, d] = [driver::allocate(64)?, upload(F32, &b)?, driver::allocate(64)?];
    let staged = upload(F32, &a)?;
    cu!(cuMemcpyDtoDAsync_v2(x, staged, 256, stream))?;
    assert_eq!(lt.multiply(&p, None, [x, y, d], (0, 0), stream), 0);
    cu!(cuMemsetD8Async(x, 0, 256, stream))?;
    cu!(cuStreamSynchronize(stream))?;
    near(&p, &a, &b, &download(F32, d, 64)?, 8, 0.0);
    Ok(())
}

/// A captured product runs as often as its graph.
fn graph(lt: &Lt) -> Result<()> {
    let mut p = Product::new(F32, F32, [8, 8, 8]);
    p.beta = 1.0;
    let (a, b) = (integers(15, 64), integers(16, 64));
    let operands = [upload(F32, &a)?, upload(F32, &b)?, upload(F32, &[0.0; 64])?];
    let stream = stream()?;
    cu!(cuStreamBeginCapture_v2(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))?;
    assert_eq!(lt.multiply(&p, None, operands, (0, 0), stream), 0);
    let (mut graph, mut executable) = (null_mut(), null_mut());
    cu!(cuStreamEndCapture(stream, &raw mut graph))?;
    cu!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0))?;
    for _ in 0..3 {
        cu!(cuGraphLaunch(executable, stream))?;
    }
    cu!(cuStreamSynchronize(stream))?;
    let thrice: Vec<f32> = a.iter().map(|v| 3.0 * v).collect();
    near(&p, &thrice, &b, &download(F32, operands[2], 64)?, 8, 0.0);
    Ok(())
}

fn overrun(lt: &Lt) -> Result<()> {
    let p = Product::new(F32, F32, [8, 8, 8]);
    let operands = [upload(F32, &[1.0; 60])?, upload(F32, &[1.0; 64])?, driver::allocate(64)?];
    lt.multiply(&p, None, operands, (0, 0), null_mut());
    driver::synchronize()
}

fn uninitialised(lt: &Lt) -> Result<()> {
    let p = Product::new(F32, F32, [8, 8, 8]);
    let operands = [driver::allocate(64)?, upload(F32, &[1.0; 64])?, driver::allocate(64)?];
    lt.multiply(&p, None, operands, (0, 0), null_mut());
    driver::synchronize()
}

#[test]
fn products_are_right_in_every_layout() {
    missed("fast", "cublaslt layouts");
    missed("check", "cublaslt layouts");
}

#[test]
fn algorithms_sum_in_different_orders() {
    missed("fast", "cublaslt orders");
}

#[test]
fn an_algorithm_sums_a_row_alike_in_every_number_of_rows() {
    missed("fast", "cublaslt rows");
}

#[test]
fn the_first_choice_depends_on_the_shape() {
    missed("fast", "cublaslt heuristic");
}

#[test]
fn splits_sum_in_yet_other_orders_and_drop_a_tail() {
    missed("fast", "cublaslt splits");
}

#[test]
fn some_algorithms_need_alignment() {
    missed("fast", "cublaslt refusals");
}

#[test]
fn tf32_is_rounded() {
    missed("fast", "cublaslt tf32");
}

#[test]
fn older_devices_have_fewer_algorithms() {
    missed("fast cc=80", "cublaslt no_wgmma");
    missed("fast cc=89", "cublaslt no_wgmma");
}

#[test]
fn products_keep_the_order_of_their_stream() {
    for mode in ["fast", "fast streams=deferred seed=1", "check streams=deferred seed=2"] {
        missed(mode, "cublaslt stream");
        missed(mode, "cublaslt graph");
    }
}

#[test]
fn operands_out_of_bounds_or_uninitialised() {
    for mode in ["fast", "check", "fast streams=deferred"] {
        let what = ["a library's read of 32 bytes is out of bounds: ", "allocation 1 (240 bytes)"];
        caught(mode, "cublaslt overrun", &what);
    }
    caught(
        "check",
        "cublaslt uninitialised",
        &["a library reads uninitialised global memory: ", "allocation 1"],
    );
}
