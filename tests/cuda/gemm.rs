//! Matrix products by both engines: our own kernels, in each of their tiles, and cuBLASLt.

use crate::compare::{assert_close, elements, normal};
use crate::harness::{VARIABLE, gpu, is_checked, is_real};
use half::bf16;
use othink::cuda::kernels::gemm as kernels;
use othink::cuda::products::Policy;
use othink::cuda::{Buffer, Gpu, Grid, Purpose};
use othink::error::{Error, Result};
use othink::ops::gemm::cuda::{Factor, Gemm, Layout, Matrix, MatrixMut, Tile};
use othink::ops::gemm::{Into, View, gemm};
use othink::tensor::{DType, DeviceReal, Tensor};
use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;

/// The GPU once more for each engine, as the choice holds for all products of a [`Gpu`].
pub fn engines() -> &'static [(&'static str, Gpu)] {
    static ENGINES: OnceLock<Vec<(&str, Gpu)>> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let Some(_) = gpu() else { return Vec::new() };
        let open = |policy| -> Result<Gpu> {
            let gpu = Gpu::open(0)?;
            gpu.set_gemm_policy(policy)?;
            Ok(gpu)
        };
        let own = open(Policy::Own).expect("our kernels need nothing else");
        let mut engines = vec![("own", own)];
        // What the library's kernels write by TMA, compute-sanitizer takes for never written.
        if std::env::var("OTHINK_GEMM").is_ok_and(|policy| policy == "own") {
            return engines;
        }
        match open(Policy::CublasLt) {
            Ok(gpu) => engines.push(("cublaslt", gpu)),
            Err(reason) if is_real() => {
                let _ = writeln!(std::io::stderr(), "skipped: products by cuBLASLt: {reason}");
            }
            Err(reason) => panic!("the emulated cuBLASLt is not found: {reason}"),
        }
        engines
    })
}

/// An element type of the tests.
trait Number: DeviceReal {
    fn of(x: f64) -> Self;
    fn f64(self) -> f64;
}

impl Number for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn f64(self) -> f64 {
        f64::from(self)
    }
}

impl Number for bf16 {
    fn of(x: f64) -> bf16 {
        bf16::from_f32(x as f32)
    }
    fn f64(self) -> f64 {
        self.to_f64()
    }
}

const LAYOUTS: [Layout; 3] = [Layout::Nt, Layout::Nn, Layout::Tn];

/// A product whose matrices may have gaps between their rows and before the first.
#[derive(Clone, Copy, Debug)]
struct Case {
    layout: Layout,
    sizes: (usize, usize, usize),
    /// Elements between the end of a row and the next, of A, B and C.
    gaps: [usize; 3],
    /// Elements before each matrix.
    offset: usize,
    bias: bool,
    into: Into,
}

impl Case {
    fn plain(layout: Layout, sizes: (usize, usize, usize)) -> Case {
        Case { layout, sizes, gaps: [0; 3], offset: 0, bias: false, into: Into::Overwrite }
    }

    /// Rows, columns and stride of A, B and C.
    fn matrices(&self) -> [(usize, usize, usize); 3] {
        let (m, n, k) = self.sizes;
        let (a, b) = match self.layout {
            Layout::Nt => ((m, k), (n, k)),
            Layout::Nn => ((m, k), (k, n)),
            Layout::Tn => ((k, m), (k, n)),
        };
        let [gap_a, gap_b, gap_c] = self.gaps;
        [(a.0, a.1, a.1 + gap_a), (b.0, b.1, b.1 + gap_b), (m, n, n + gap_c)]
    }
}

/// Numbers for a matrix, up to the last one of its last row.
fn numbers<T: Number>((rows, columns, stride): (usize, usize, usize), offset: usize, id: u64) -> Vec<T> {
    let len = if rows * columns == 0 { 0 } else { (rows - 1) * stride + columns };
    elements(&normal(&[offset + len], DType::Bf16, id)).into_iter().map(T::of).collect()
}

fn tensor(shape: &[usize], x: Vec<f64>, dtype: DType) -> Tensor {
    Tensor::new(shape, x).expect("as many numbers as the shape says").to_dtype(dtype)
}

/// The sum of products as the tensor cores of a real GPU form it at best: blocks of 8 products at a time are added to the sum without an error,
/// then what doesn't fit f32 is cut off, not rounded (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330).
fn truncated_sum(products: impl Iterator<Item = f64>) -> f32 {
    let products: Vec<f64> = products.collect();
    products.chunks(8).fold(0.0, |sum, block| {
        let exact = f64::from(sum) + block.iter().sum::<f64>();
        let nearest = exact as f32;
        if f64::from(nearest).abs() > exact.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
    })
}

/// The product by an engine or, with a tile, by that kernel of ours: `(kernel, plain, reference)`.
fn product<T: Number + Factor<C>, C: Number>(gpu: &Gpu, tile: Option<Tile>, case: Case) -> [Tensor; 3] {
    let Case { layout, sizes: (m, n, k), offset, bias, into, .. } = case;
    let [of_a, of_b, of_c] = case.matrices();
    let (a, b) = (numbers::<T>(of_a, offset, 1), numbers::<T>(of_b, offset, 2));
    let (row, old) = (numbers::<T>((1, n, n), 0, 3), numbers::<C>(of_c, offset, 4));
    let up = |x: &[T]| gpu.upload(x, Purpose::Inputs).expect("room for a test");
    let (on_a, on_b, on_row) = (up(&a), up(&b), up(&row));
    let mut on_c: Buffer<C> = gpu.upload(&old, Purpose::Inputs).expect("room for a test");
    let matrix = |buffer, of: (usize, usize, usize)| Matrix::strided(buffer, offset, (of.0, of.1), of.2);
    let call = Gemm {
        layout,
        a: matrix(&on_a, of_a).expect("inside"),
        b: matrix(&on_b, of_b).expect("inside"),
        bias: bias.then_some(&on_row),
        c: MatrixMut::strided(&mut on_c, offset, (m, n), of_c.2).expect("inside"),
        into,
    };
    let done = match tile {
        Some(tile) => call.run_tiled(tile),
        None => call.run(),
    };
    done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let c = on_c.download().expect("a device that works");

    // What is not the matrix is as it was.
    let inside = |at: usize| at >= offset && (at - offset) % of_c.2 < n;
    for (at, (new, old)) in c.iter().zip(&old).enumerate().filter(|(at, _)| !inside(*at)) {
        assert_eq!(new.f64(), old.f64(), "{case:?} wrote element {at}");
    }
    let rows = |x: &[C]| -> Vec<f64> {
        (0..m * n).map(|i| x[offset + i / n.max(1) * of_c.2 + i % n.max(1)].f64()).collect()
    };

    let wide = |x: &[T]| -> Vec<f64> { x[offset.min(x.len())..].iter().map(|x| x.f64()).collect() };
    let (wide_a, wide_b) = (wide(&a), wide(&b));
    let (narrow_a, narrow_b): (Vec<f32>, Vec<f32>) =
        (wide_a.iter().map(|&x| x as f32).collect(), wide_b.iter().map(|&x| x as f32).collect());
    let (mut reference, mut plain) = (vec![0.0; m * n], vec![0.0; m * n]);
    macro_rules! on_cpu {
        ($a:expr, $b:expr, $c:expr) => {{
            let a = if layout == Layout::Tn { View::transposed($a, of_a.2) } else { View::rows($a, of_a.2) };
            let b = if layout == Layout::Nt { View::transposed($b, of_b.2) } else { View::rows($b, of_b.2) };
            gemm((m, n, k), a, b, $c, n, Into::Overwrite);
        }};
    }
    on_cpu!(&wide_a, &wide_b, &mut reference);
    on_cpu!(&narrow_a, &narrow_b, &mut plain);
    if T::DTYPE == DType::Bf16 && is_real() {
        let element = |x: &[f64], of: (usize, usize, usize), (row, column)| x[row * of.2 + column];
        for (i, sum) in plain.iter_mut().enumerate() {
            let (row, column) = (i / n, i % n);
            *sum = truncated_sum((0..k).map(|k| {
                let in_a = if layout == Layout::Tn { (k, row) } else { (row, k) };
                let in_b = if layout == Layout::Nt { (column, k) } else { (k, column) };
                element(&wide_a, of_a, in_a) * element(&wide_b, of_b, in_b)
            }));
        }
    }
    for (i, old) in rows(&old).into_iter().enumerate() {
        if bias {
            reference[i] += row[i % n].f64();
            plain[i] += row[i % n].f64() as f32;
        }
        if into == Into::Accumulate {
            reference[i] += old;
            plain[i] += old as f32;
        }
    }
    let plain = plain.into_iter().map(f64::from).collect();
    [
        tensor(&[m, n], rows(&c), C::DTYPE),
        tensor(&[m, n], plain, C::DTYPE),
        tensor(&[m, n], reference, DType::F64),
    ]
}

/// One, odd, one past a tile, more steps along K than any tile has stages; and nothing at all.
const SIZES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (3, 5, 7),
    (17, 33, 31),
    (16, 32, 32),
    (65, 129, 40),
    (129, 130, 17),
    (30, 70, 450),
    (0, 3, 5),
    (4, 0, 5),
    (3, 4, 0),
];

/// Contiguous, gaps that leave rows unaligned, gaps that keep them aligned, a first element that is not.
const PLACES: [([usize; 3], usize); 4] = [([0; 3], 0), ([3, 5, 7], 0), ([8, 24, 2], 0), ([0; 3], 1)];

fn cases() -> impl Iterator<Item = Case> {
    let sizes = if is_checked() { &SIZES[..6] } else { &SIZES[..] };
    let all = LAYOUTS.into_iter().flat_map(move |layout| sizes.iter().map(move |&sizes| (layout, sizes)));
    all.flat_map(|(layout, sizes)| {
        PLACES.iter().enumerate().map(move |(i, &(gaps, offset))| Case {
            layout,
            sizes,
            gaps,
            offset,
            bias: i % 2 == 0,
            into: if i < 2 { Into::Overwrite } else { Into::Accumulate },
        })
    })
}

/// Whatever the tile, the bits are the same, and right.
#[test]
fn our_kernels_are_close_and_agree() {
    fn check<C: Number>(gpu: &Gpu)
    where
        bf16: Factor<C>,
    {
        for case in cases() {
            let [large, plain, reference] = product::<bf16, C>(gpu, Some(Tile::Large), case);
            assert_close(&format!("{case:?}"), &large, &plain, &reference);
            for tile in [Tile::Small, Tile::Skinny] {
                let [other, ..] = product::<bf16, C>(gpu, Some(tile), case);
                assert_eq!(elements(&other), elements(&large), "{tile:?}: {case:?}");
            }
        }
    }
    let Some((_, gpu)) = engines().first() else { return };
    check::<bf16>(gpu);
    check::<f32>(gpu);
}

/// In f32 our kernels are the CPU's chain of multiply-adds: no TF32, no other order.
#[test]
fn our_f32_products_are_the_cpus() {
    let Some((_, gpu)) = engines().first() else { return };
    for case in cases() {
        let [kernel, plain, _] = product::<f32, f32>(gpu, Some(Tile::Large), case);
        assert_eq!(elements(&kernel), elements(&plain), "{case:?}");
    }
}

#[test]
fn engines_are_close() {
    for (engine, gpu) in engines() {
        for case in cases() {
            let what = format!("{engine}: {case:?}");
            let [kernel, plain, reference] = product::<bf16, bf16>(gpu, None, case);
            assert_close(&what, &kernel, &plain, &reference);
            let [kernel, plain, reference] = product::<bf16, f32>(gpu, None, case);
            assert_close(&what, &kernel, &plain, &reference);
            let [kernel, plain, reference] = product::<f32, f32>(gpu, None, case);
            assert_close(&what, &kernel, &plain, &reference);
        }
    }
}

/// Numbers of rows that stand for all where a product takes long.
const SOME_ROWS: [usize; 5] = [1, 2, 16, 17, 128];

/// Where the sums of a product are long enough for cuBLASLt to have several blocks share each, if it is let.
const LONG: usize = 1024;

/// The last `m` rows of A alone give the last `m` rows of the whole product.
fn rows_alone<T: Number + Factor<C>, C: Number>(
    what: &str,
    gpu: &Gpu,
    layout: Layout,
    (n, k): (usize, usize),
    tile: Option<Tile>,
) {
    const ALL: usize = 130;
    let [of_a, of_b, _] = Case::plain(layout, (ALL, n, k)).matrices();
    let a = gpu.upload(&numbers::<T>(of_a, 0, 1), Purpose::Inputs).expect("room for a test");
    let b = gpu.upload(&numbers::<T>(of_b, 0, 2), Purpose::Inputs).expect("room for a test");
    let row = gpu.upload(&numbers::<T>((1, n, n), 0, 3), Purpose::Inputs).expect("room for a test");
    let last = |m: usize| -> Vec<f64> {
        let mut c = gpu.zeros::<C>(m * n, Purpose::Activations).expect("room for a test");
        let call = Gemm {
            layout,
            a: Matrix::strided(&a, (ALL - m) * k, (m, k), k).expect("inside"),
            b: Matrix::new(&b, of_b.0, of_b.1).expect("inside"),
            // cuBLASLt adds no bias of another type than the product.
            bias: (T::DTYPE == C::DTYPE || tile.is_some()).then_some(&row),
            c: MatrixMut::new(&mut c, m, n).expect("inside"),
            into: Into::Overwrite,
        };
        let done = if let Some(tile) = tile { call.run_tiled(tile) } else { call.run() };
        done.unwrap_or_else(|e| panic!("{what}: {e}"));
        c.download().expect("a device that works").into_iter().map(Number::f64).collect()
    };
    let all = last(ALL);
    let some = is_checked() || k >= LONG || n >= LONG;
    for m in (1..ALL).filter(|m| !some || SOME_ROWS.contains(m)) {
        assert_eq!(last(m), all[(ALL - m) * n..], "{what}: {m} rows, n = {n}, k = {k}, {layout:?}, {tile:?}");
    }
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    // Narrow and short, unaligned, and aligned, where cuBLASLt has more algorithms to choose from; so it has where K is long, with which our
    // kernels do nothing else than with a short one.
    for (n, k) in [(1, 3), (33, 41), (40, 72), (8, LONG)] {
        for layout in [Layout::Nt, Layout::Nn] {
            for (engine, gpu) in engines().iter().filter(|(engine, _)| k < LONG || *engine == "cublaslt") {
                rows_alone::<bf16, bf16>(engine, gpu, layout, (n, k), None);
                rows_alone::<bf16, f32>(engine, gpu, layout, (n, k), None);
                rows_alone::<f32, f32>(engine, gpu, layout, (n, k), None);
            }
        }
    }
}

/// Where the weights are large, cuBLASLt computes some numbers of rows by algorithms of their own.
#[test]
fn a_row_does_not_depend_on_who_is_quicker_for_the_number_of_rows() {
    for (_, gpu) in engines().iter().filter(|(engine, _)| *engine == "cublaslt") {
        rows_alone::<bf16, bf16>("cublaslt", gpu, Layout::Nt, (2048, 128), None);
        rows_alone::<bf16, f32>("cublaslt", gpu, Layout::Nn, (2048, 128), None);
        // The emulated one would have few rows summed in another order.
        rows_alone::<bf16, bf16>("cublaslt", gpu, Layout::Nt, (1024, 256), None);
    }
}

#[test]
fn words_that_differ_are_counted() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for n in [1, 3, 17, 257, 1000] {
        let a: Vec<u32> = (0..n).map(|i| i * 7919).collect();
        let b: Vec<u32> =
            a.iter().zip(0..).map(|(&x, i)| if i % 5 == 2 { x ^ 1 << (i % 32) } else { x }).collect();
        let (on_a, on_b) = (gpu.upload(&a, Purpose::Inputs)?, gpu.upload(&b, Purpose::Inputs)?);
        let mut count = gpu.upload(&[10_u32], Purpose::Inputs)?;
        let grid = Grid::new(a.len().div_ceil(256), 256)?;
        // SAFETY: a and b have n words, of which the kernel touches no other.
        unsafe {
            kernels::count_different(gpu, grid, on_a.ptr(), on_b.ptr(), count.ptr_mut(), i64::from(n))
        }?;
        let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count() as u32;
        assert_eq!(count.download()?, [10 + differ], "{n}");
    }
    Ok(())
}

/// Number (row, column) of a factor by which orders of summation are told apart.
fn of_factor(row: usize, column: usize, half: usize, along_rows: bool, cancels: bool, seed: u32) -> f32 {
    let (k, other) = if along_rows { (row, column) } else { (column, row) };
    let (pair, second) = if k < half { (k, false) } else { (k - half, true) };
    let mut random =
        seed ^ (other as u32).wrapping_mul(0x9e37_79b9) ^ (pair as u32).wrapping_mul(0x85eb_ca6b);
    random = (random ^ random >> 16).wrapping_mul(0x7feb_352d);
    random = (random ^ random >> 16).wrapping_mul(0x7feb_352d);
    random ^= random >> 15;
    let (first, noise) = ((random & 255) as i32 - 128, (random >> 16) as i32 % 3 - 1);
    let mantissa = match (second, cancels) {
        _ if k >= 2 * half => 0,
        (true, true) => noise - first,
        _ => first,
    };
    mantissa as f32 / 2_f32.powi((random >> 8 & 7) as i32)
}

#[test]
fn factors_that_tell_orders_apart() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (rows, columns, gap) in [(1, 1, 0), (3, 5, 0), (17, 6, 3), (40, 33, 7)] {
        for (along_rows, cancels) in [(false, true), (false, false), (true, false)] {
            let (stride, half) = (columns + gap, if along_rows { rows / 2 } else { columns / 2 });
            let number = |at: usize| match at % stride {
                gap if gap >= columns => 7.0,
                column => of_factor(at / stride, column, half, along_rows, cancels, 5),
            };
            let expected: Vec<f32> = (0..rows * stride).map(number).collect();
            let old = vec![7.0_f32; rows * stride];
            let (mut wide, mut narrow) = (
                gpu.upload(&old, Purpose::Inputs)?,
                gpu.upload(&old.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), Purpose::Inputs)?,
            );
            let grid = Grid::new((rows * columns).div_ceil(256), 256)?;
            let [along_rows, cancels] = [along_rows, cancels].map(i32::from);
            let [m, n, pitch] = [rows, columns, stride].map(|size| size as i32);
            // SAFETY: both have `rows` rows of `stride` numbers.
            unsafe {
                kernels::fill_factor_f32(gpu, grid, wide.ptr_mut(), m, n, pitch, along_rows, cancels, 5)?;
                kernels::fill_factor_bf16(gpu, grid, narrow.ptr_mut(), m, n, pitch, along_rows, cancels, 5)?;
            }
            assert_eq!(wide.download()?, expected, "{rows}x{columns}, {along_rows}, {cancels}");
            let narrow: Vec<f32> = narrow.download()?.into_iter().map(f32::from).collect();
            assert_eq!(narrow, expected, "{rows}x{columns}, {along_rows}, {cancels}, bf16");
        }
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows_in_any_tile() {
    let Some((_, gpu)) = engines().first() else { return };
    for tile in Tile::ALL {
        rows_alone::<bf16, f32>("own", gpu, Layout::Nt, (33, 41), Some(tile));
        rows_alone::<bf16, bf16>("own", gpu, Layout::Nn, (33, 72), Some(tile));
    }
}

/// That the emulated library computes a product is seen by its order of summation; of a real one, only that it was found and opened.
#[test]
fn the_library_is_used_where_it_is_found() -> Result<()> {
    let [(_, own), (_, library)] = engines() else { return Ok(()) };
    assert_eq!(own.gemm_library()?, None);
    let description = library.gemm_library()?.expect("the policy is to use it");
    assert!(description.to_string().starts_with("cuBLASLt 1"), "{description}");
    if is_real() {
        return Ok(());
    }
    // The emulated one sums aligned products in an order of its own.
    let case = Case::plain(Layout::Nt, (40, 64, 512));
    let differ = |tile: Option<Tile>| {
        let [ours, ..] = product::<bf16, f32>(own, Some(Tile::Large), case);
        let [theirs, ..] = product::<bf16, f32>(library, tile, case);
        elements(&ours) != elements(&theirs)
    };
    assert!(differ(None) && !differ(Some(Tile::Small)));
    // What it does not serve, such as a bias of another type than the product, our kernels do.
    let biased = Case { bias: true, ..case };
    let [ours, ..] = product::<bf16, f32>(own, Some(Tile::Large), biased);
    let [theirs, ..] = product::<bf16, f32>(library, None, biased);
    assert_eq!(elements(&ours), elements(&theirs));
    Ok(())
}

/// The trace names the products of cuBLASLt, and no others; and what computes them.
#[test]
fn the_trace_says_what_the_library_computes_and_how() {
    if std::env::var_os(VARIABLE).is_some() || gpu().is_none() {
        return;
    }
    let traced = |test: &str, kind: &str| -> Vec<String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let trace = folder.path().join("trace");
        let again = Command::new(std::env::current_exe().expect("a running program has a path"))
            .args(["--exact", test])
            .env(VARIABLE, "fast")
            .env("OTHINK_TRACE", &trace)
            .output()
            .expect("this program can be started again");
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
        let text = std::fs::read_to_string(&trace).expect("the trace was written");
        text.lines().filter_map(|line| line.strip_prefix(kind)).map(String::from).collect()
    };
    let products = traced("gemm::the_library_is_used_where_it_is_found", "product ");
    assert_eq!(products, ["by cuBLASLt Nt 40x64x512 Bf16 to F32"]);
    // For one row the emulated library offers the algorithm for all, or a quicker one of other bits.
    let choices = traced(
        "gemm::a_row_does_not_depend_on_who_is_quicker_for_the_number_of_rows",
        "choice of cuBLASLt for up to ",
    );
    for choice in [
        "256 tokens, Nt n 2048 k 128: an algorithm of their own",
        "128 tokens, Nt n 2048 k 128: an algorithm of their own",
        "16 tokens, Nt n 2048 k 128: the one for all",
        "256 tokens, Nn n 2048 k 128: an algorithm of their own",
        "16 tokens, Nt n 1024 k 256: the one for all",
    ] {
        assert!(choices.iter().any(|line| line == choice), "{choice} is not among {choices:?}");
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() -> Result<()> {
    let Some((_, gpu)) = engines().first() else { return Ok(()) };
    let buffer = gpu.zeros::<f32>(12, Purpose::Inputs)?;
    assert!(Matrix::new(&buffer, 3, 4).is_ok() && Matrix::new(&buffer, 4, 3).is_ok());
    assert!(Matrix::strided(&buffer, 2, (3, 2), 4).is_ok(), "the last row needs no gap behind it");
    assert!(Matrix::strided(&buffer, 3, (3, 2), 4).is_err(), "one past the end");
    assert!(Matrix::strided(&buffer, 0, (2, 4), 3).is_err(), "rows that overlap");
    let (a, b) = (Matrix::new(&buffer, 3, 4)?, Matrix::new(&buffer, 4, 3)?);
    let mut c = gpu.zeros::<f32>(9, Purpose::Inputs)?;
    let mut run = |layout, bias| {
        let c = MatrixMut::new(&mut c, 3, 3)?;
        Gemm { layout, a, b, bias, c, into: Into::Overwrite }.run()
    };
    assert!(run(Layout::Nn, None).is_ok());
    let short = gpu.zeros::<f32>(2, Purpose::Inputs)?;
    for error in [run(Layout::Nt, None), run(Layout::Tn, None), run(Layout::Nn, Some(&short))] {
        assert!(matches!(error, Err(Error::Internal(_))), "{error:?}");
    }
    Ok(())
}
