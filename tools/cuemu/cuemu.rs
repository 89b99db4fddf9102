//! Builds the emulated CUDA driver and the host-compiled kernels ("twins"), for tests and benches that include this file by `#[path]`.
//!
//! Everything stands below `target/cuemu/`, in one folder per version of the emulator's sources, compiler and flavour, and a twin's
//! name holds the hash of its sources: what is there is up to date.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, io};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// How the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Optimised, with what the schedule, the poison and the guard pages find.
    Fast,
    /// Every access checked: bounds, initialisation, alignment, races.
    Check,
}

/// A `.cu` file of `kernels/`.
pub struct Module<'a> {
    /// Its name without the ending.
    pub stem: &'a str,
    /// Hash of its sources, as in its image's manifest.
    pub hash: &'a str,
    /// Its kernels.
    pub kernels: Vec<&'a str>,
}

/// What was built.
pub struct Libraries {
    /// `libcuda.so`.
    pub driver: PathBuf,
    /// `libcublasLt.so.13`.
    pub cublaslt: PathBuf,
    /// The folder of the twins.
    pub kernels: PathBuf,
}

/// Whether this machine can run the emulator.
///
/// # Errors
/// Why it can't: another system or processor than Linux on x86-64 with AVX2, or no C++ compiler.
pub fn supported() -> Result<(), String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("the CUDA emulator runs on Linux on x86-64 only".into());
    }
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2"))
    {
        return Err("the CUDA emulator needs a processor with AVX2, FMA and BMI2".into());
    }
    compiler().as_ref().map(drop).map_err(Clone::clone)
}

/// Compiles what is missing. Any number of programs may do so at once: one works, the others wait.
///
/// # Errors
/// The compiler's message, or why a file can't be read or written.
pub fn build(modules: &[Module], flavour: Flavour) -> Result<Libraries, String> {
    let twins = modules.iter().filter(|module| !module.kernels.is_empty());
    let twins = twins.map(|module| Twin {
        source: Path::new(ROOT).join("kernels").join(format!("{}.cu", module.stem)),
        hash: module.hash.to_owned(),
        kernels: &module.kernels,
    });
    Build::new(flavour)?.run(&twins.collect::<Vec<_>>())
}

/// Compiles one `.cu` that isn't in `kernels/`, and gives the path of its twin, for `cuModuleLoad`.
///
/// # Errors
/// As for [`build`].
#[allow(dead_code)] // For tests of single sources; the other programs build all of kernels/.
pub fn build_file(source: &Path, kernels: &[&str], flavour: Flavour) -> Result<PathBuf, String> {
    let mut twin = Twin { source: source.to_owned(), hash: String::new(), kernels };
    let mut headers = files(&Path::new(ROOT).join("kernels"), &["cuh"])?;
    headers.sort();
    let mut text = twin.code() + &read(source)?;
    for header in headers {
        text.push_str(&read(&header)?);
    }
    twin.hash = format!("{:016x}", fnv1a(text.as_bytes()));
    let build = Build::new(flavour)?;
    let path = build.kernels().join(format!("{}.so", twin.name()));
    build.run(&[twin])?;
    Ok(path)
}

/// Of every compiled file. What floating-point code means is nvcc's default: products and sums contract to fused
/// multiply-adds, nothing else is reordered.
const FLAGS: &[&str] = &[
    "-std=c++20",
    "-O2",
    "-g1",
    "-w",
    "-Wno-psabi",
    "-march=x86-64-v3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fcf-protection=none",
    "-fvisibility=hidden",
    "-fPIC",
];
/// Of twins. Unique symbols would make all twins share one copy of a template's static variables; large frames must
/// touch the guard pages of the fibers' small stacks.
const TWIN_FLAGS: &[&str] =
    &["-fno-exceptions", "-fno-threadsafe-statics", "-fno-gnu-unique", "-fstack-clash-protection"];

/// The emulator's own sources, below tools/cuemu. The files of a folder are compiled as one, since most of the time goes
/// into the standard library's headers; so what they keep to themselves needs different names.
const FOLDERS: [&str; 3] = ["runtime", "driver", "cublaslt"];

fn one_source(folder: &str) -> Result<String, String> {
    let mut sources = files(&tools().join(folder), &["cc"])?;
    sources.sort();
    Ok(sources.iter().map(|source| format!("#include \"{}\"\n", source.display())).collect())
}

/// A twin to compile.
struct Twin<'a> {
    source: PathBuf,
    hash: String,
    kernels: &'a [&'a str],
}

impl Twin<'_> {
    fn stem(&self) -> &str {
        self.source.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    }

    fn name(&self) -> String {
        format!("{}-{}", self.stem(), self.hash)
    }

    /// What is compiled: the kernels, and the table that exports them.
    fn code(&self) -> String {
        let mut code = format!("#include \"{}\"\nCUEMU_MODULE({:?}", self.source.display(), self.stem());
        for kernel in self.kernels {
            write!(code, ", CUEMU_KERNEL({kernel})").expect("a string");
        }
        code + ")\n"
    }
}

/// A library to make of compiled sources.
struct Library {
    path: PathBuf,
    soname: &'static str,
    sources: Vec<PathBuf>,
    flags: Vec<String>,
}

struct Build {
    compiler: PathBuf,
    flavour: Flavour,
    /// Hash of all that the emulator is made of.
    version: u64,
    folder: PathBuf,
}

impl Build {
    fn new(flavour: Flavour) -> Result<Build, String> {
        let (compiler, compiler_version) = compiler().clone()?;
        let mut text =
            format!("{compiler_version} {FLAGS:?} {TWIN_FLAGS:?} {flavour:?} {}", include_str!("cuemu.rs"));
        let mut sources = files(&tools(), &["h", "cc"])?;
        sources.sort();
        for source in sources {
            text.push_str(&read(&source)?);
        }
        let version = fnv1a(text.as_bytes());
        // Cargo's folder for the files of tests lies in its target folder.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("target"));
        let name = format!("{flavour:?}-{version:016x}").to_lowercase();
        Ok(Build { compiler, flavour, version, folder: target.join("cuemu").join(name) })
    }

    fn kernels(&self) -> PathBuf {
        self.folder.join("kernels")
    }

    fn run(&self, twins: &[Twin]) -> Result<Libraries, String> {
        let made = Libraries {
            driver: self.folder.join("libcuda.so"),
            cublaslt: self.folder.join("libcublasLt.so.13"),
            kernels: self.kernels(),
        };
        let missing = || -> Vec<Library> {
            let mut libraries = self.libraries(&made, twins);
            libraries.retain(|library| !library.path.exists());
            libraries
        };
        if missing().is_empty() {
            return Ok(made);
        }
        let wrong = |e: io::Error| format!("{}: {e}", self.folder.display());
        let objects = self.folder.join("objects");
        for folder in [&made.kernels, &objects] {
            fs::create_dir_all(folder).map_err(wrong)?;
        }
        // Held until this function returns.
        let turn = File::create(self.folder.join("lock")).map_err(wrong)?;
        turn.lock().map_err(wrong)?;
        for folder in FOLDERS {
            fs::write(objects.join(format!("{folder}.cc")), one_source(folder)?).map_err(wrong)?;
        }
        for twin in twins {
            fs::write(objects.join(format!("{}.cc", twin.name())), twin.code()).map_err(wrong)?;
        }
        let libraries = missing();
        self.compile(&libraries)?;
        for library in &libraries {
            self.link(library)?;
        }
        // The name under which programs look for the driver at run time.
        let link = self.folder.join("libcuda.so.1");
        #[cfg(unix)]
        if !link.exists() {
            std::os::unix::fs::symlink("libcuda.so", &link).map_err(wrong)?;
        }
        Ok(made)
    }

    fn libraries(&self, made: &Libraries, twins: &[Twin]) -> Vec<Library> {
        let source = |name: &str| self.folder.join("objects").join(format!("{name}.cc"));
        let [runtime, driver, cublaslt] = FOLDERS.map(source);
        let library =
            |path: &Path, soname, sources| Library { path: path.into(), soname, sources, flags: Vec::new() };
        let mut libraries = vec![
            library(&made.driver, "libcuda.so", vec![runtime, driver]),
            library(&made.cublaslt, "libcublasLt.so.13", vec![cublaslt]),
        ];
        for twin in twins {
            let name = twin.name();
            let mut flags: Vec<String> = TWIN_FLAGS.iter().map(|&flag| flag.to_owned()).collect();
            flags.push(format!("-I{ROOT}/kernels"));
            if self.flavour == Flavour::Check {
                flags.push("-fsanitize=thread,alignment,bounds".into());
            }
            libraries.push(Library {
                path: made.kernels.join(format!("{name}.so")),
                soname: "",
                sources: vec![source(&name)],
                flags,
            });
        }
        libraries
    }

    /// Two compilers at a time: enough to halve the wait, and few enough to share a small machine.
    fn compile(&self, libraries: &[Library]) -> Result<(), String> {
        let all =
            libraries.iter().flat_map(|library| library.sources.iter().map(move |s| (s, &library.flags)));
        // Taken from the end: the emulator's own sources, which take longest, come first.
        let mut all: Vec<_> = all.collect();
        all.reverse();
        let queue = Mutex::new(all);
        let errors = Mutex::new(String::new());
        let work = || {
            // The block ends the lock before the work begins.
            while let Some((source, flags)) = { lock(&queue).pop() } {
                let mut command = Command::new(&self.compiler);
                command.args(FLAGS).args(flags).arg(format!("-I{}", tools().join("include").display()));
                command.arg(format!("-DCUEMU_BUILD=0x{:016x}ull", self.version));
                if self.flavour == Flavour::Check {
                    command.arg("-DCUEMU_CHECK");
                }
                command.arg("-c").arg(source).arg("-o").arg(object(source));
                // For tools/flip-operators, which compiles changed kernels in the same way.
                let _ = fs::write(source.with_extension("command"), format!("{command:?}"));
                if let Err(message) = run(&mut command) {
                    lock(&errors).push_str(&message);
                    lock(&queue).clear();
                }
            }
        };
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
        let errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Links without the sanitizers' libraries: their hooks are the driver's.
    fn link(&self, library: &Library) -> Result<(), String> {
        let unfinished = library.path.with_extension("unfinished");
        let mut command = Command::new(&self.compiler);
        command.args(["-shared", "-Wl,-z,now"]);
        if !library.soname.is_empty() {
            command.arg(format!("-Wl,-soname,{}", library.soname));
        }
        command.arg("-o").arg(&unfinished).args(library.sources.iter().map(|source| object(source)));
        command.args(["-ldl", "-lpthread"]);
        run(&mut command)?;
        fs::rename(&unfinished, &library.path).map_err(|e| format!("{}: {e}", library.path.display()))
    }
}

fn object(source: &Path) -> PathBuf {
    source.with_extension("o")
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// The C++ compiler and what it says of itself; the first of `$CXX`, c++, g++ and clang++ that runs.
fn compiler() -> &'static Result<(PathBuf, String), String> {
    static COMPILER: OnceLock<Result<(PathBuf, String), String>> = OnceLock::new();
    COMPILER.get_or_init(|| {
        let named = env::var_os("CXX").filter(|name| !name.is_empty()).map(PathBuf::from);
        for path in named.into_iter().chain(["c++", "g++", "clang++"].map(PathBuf::from)) {
            let output = Command::new(&path).arg("--version").output();
            if let Some(output) = output.ok().filter(|output| output.status.success()) {
                return Ok((path, String::from_utf8_lossy(&output.stdout).into_owned()));
            }
        }
        Err("the CUDA emulator needs a C++ compiler: install g++, or set CXX".into())
    })
}

fn tools() -> PathBuf {
    Path::new(ROOT).join("tools").join("cuemu")
}

/// The files below a folder with one of these endings.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|have| endings.iter().any(|&ending| have == ending)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Fowler, Noll and Vo's 64-bit hash 1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
