//! Reads the kernels of `kernels/*.cu`, compiles them where nvcc is found, and generates typed launchers.
//!
//! A kernel's prototype in its `.cu` is the only declaration: the launcher that Rust calls is made from it. For every `.cu` one image is
//! embedded: the fat binary that nvcc makes (absent without nvcc), followed by a manifest that names the kernels, their parameters and
//! a hash of the sources. A driver reads the former; the emulated driver of `tools/cuemu` reads the latter.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, and where `tools/get-nvcc` puts it. `OTHINK_CUDA_ARCHS` chooses the targets:
//! a list such as `sm_90a,compute_80`, or `none` for no images.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;

/// What is compiled unless `OTHINK_CUDA_ARCHS` says otherwise; PTX serves what is newer than the newest.
const TARGETS: &str = "sm_80,sm_86,sm_89,sm_90a,compute_80";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "OTHINK_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let modules = read_modules(Path::new("kernels"));
    let targets = env::var("OTHINK_CUDA_ARCHS").unwrap_or_else(|_| TARGETS.into());
    let targets: Vec<&str> = targets.split([',', ' ']).filter(|target| !target.is_empty()).collect();
    let compiler = if targets == ["none"] { None } else { find_nvcc() };
    match &compiler {
        Some(compiler) => compile(compiler, &targets, &modules, &out),
        None => println!(
            "cargo:warning=no CUDA images ({}); the CPU backend is complete",
            if targets == ["none"] {
                "OTHINK_CUDA_ARCHS=none"
            } else {
                "no nvcc was found: README, building with CUDA"
            }
        ),
    }
    let mut code = String::new();
    for module in &modules {
        let mut image = compiler
            .as_ref()
            .map_or_else(Vec::new, |_| fs::read(module.compiled(&out)).expect("nvcc has written it"));
        image.extend_from_slice(module.manifest().as_bytes());
        image.push(0);
        fs::write(out.join(format!("{}.image", module.stem)), image).expect("OUT_DIR can be written");
        module.generate(&mut code);
    }
    let list: Vec<_> = modules.iter().map(|module| format!("&{}::MODULE", module.stem)).collect();
    writeln!(code, "/// All modules.\npub static MODULES: &[&Module] = &[{}];", list.join(", "))
        .expect("a string");
    let toolkit = match &compiler {
        Some(nvcc) => format!("Some(Toolkit {{ version: {:?}, targets: &{targets:?} }})", nvcc.version),
        None => "None".into(),
    };
    writeln!(
        code,
        "/// What compiled the images, if anything did.\npub static TOOLKIT: Option<Toolkit> = {toolkit};"
    )
    .expect("a string");
    fs::write(out.join("kernels.rs"), code).expect("OUT_DIR can be written");
}

fn fail(message: &str) -> ! {
    // What a build script writes to standard error is shown, with cargo's own report, when it fails.
    eprintln!("{message}");
    exit(1)
}

struct Parameter {
    name: String,
    /// The type on the Rust side.
    rust: String,
    /// Its size, with a `p` for a pointer.
    size: String,
}

struct Kernel {
    name: String,
    max_threads: u32,
    /// As it stands in the source, for the docs.
    prototype: String,
    parameters: Vec<Parameter>,
}

struct Module {
    stem: String,
    source: PathBuf,
    hash: u64,
    kernels: Vec<Kernel>,
}

/// The modules in the order of their names; each hash covers the source and all headers of the folder.
fn read_modules(folder: &Path) -> Vec<Module> {
    let mut sources = BTreeMap::new();
    let mut headers = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| fail(&format!("{}: {e}", folder.display())));
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            let read =
                || fs::read_to_string(&path).unwrap_or_else(|e| fail(&format!("{}: {e}", path.display())));
            match path.extension().and_then(|e| e.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("cu") => drop(sources.insert(path.clone(), read())),
                Some("cuh" | "h") => drop(headers.insert(path.clone(), read())),
                _ => {}
            }
        }
    }
    let headers: String =
        headers.into_iter().map(|(path, text)| format!("{}\n{text}\n", path.display())).collect();
    let module = |(source, text): (PathBuf, String)| {
        let stem = source
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("kernel files have plain names")
            .to_owned();
        let hash = fnv1a(format!("{stem}\n{text}\n{headers}").as_bytes());
        let kernels = read_kernels(&text).unwrap_or_else(|e| fail(&format!("{}: {e}", source.display())));
        Module { stem, source, hash, kernels }
    };
    sources.into_iter().map(module).collect()
}

/// Fowler, Noll and Vo's 64-bit hash 1a: tells versions of a source apart.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The kernels that a source declares.
fn read_kernels(text: &str) -> Result<Vec<Kernel>, String> {
    let text = without_comments(text);
    let mut kernels = Vec::new();
    for part in text.split("__global__").skip(1) {
        let end = part.find('{').ok_or("a __global__ function without a body")?;
        let prototype = part[..end].split_whitespace().collect::<Vec<_>>().join(" ");
        kernels.push(read_kernel(&prototype).map_err(|e| format!("cannot read `{prototype}`: {e}"))?);
    }
    let exported = text.matches("extern \"C\" __global__").count();
    if exported != kernels.len() {
        return Err(format!(
            "{} of {} kernels are not `extern \"C\" __global__`",
            kernels.len() - exported,
            kernels.len()
        ));
    }
    Ok(kernels)
}

fn without_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        out.push_str(&rest[..at]);
        let end = if rest[at..].starts_with("//") {
            rest[at..].find('\n')
        } else {
            rest[at..].find("*/").map(|n| n + 2)
        };
        rest = end.map_or("", |n| &rest[at + n..]);
    }
    out + rest
}

/// Reads `void __launch_bounds__(N) NAME(PARAMETERS)`.
fn read_kernel(prototype: &str) -> Result<Kernel, String> {
    let rest = prototype.strip_prefix("void ").ok_or("it has to return void")?;
    let rest =
        rest.strip_prefix("__launch_bounds__(").ok_or("__launch_bounds__(THREADS) has to follow void")?;
    let (bounds, rest) = rest.split_once(')').ok_or("unbalanced parentheses")?;
    let threads = bounds.split(',').next().unwrap_or_default().trim();
    let max_threads = threads.parse().map_err(|_| format!("launch bounds `{threads}` are not a number"))?;
    let (name, rest) = rest.split_once('(').ok_or("no parameter list")?;
    let list = rest.trim_end().strip_suffix(')').ok_or("unbalanced parentheses")?;
    let parameters = list.split(',').map(read_parameter).collect::<Result<_, _>>()?;
    Ok(Kernel { name: name.trim().to_owned(), max_threads, prototype: prototype.to_owned(), parameters })
}

fn read_parameter(text: &str) -> Result<Parameter, String> {
    let spaced = text.replace('*', " * ").replace("__restrict__", "");
    let words: Vec<&str> = spaced.split_whitespace().filter(|&word| word != "__grid_constant__").collect();
    let (constant, words) = match words.split_first() {
        Some((&"const", rest)) => (true, rest),
        _ => (false, &words[..]),
    };
    let (&name, kind) = words.split_last().ok_or("an empty parameter")?;
    let element = |name| {
        Ok(match name {
            "bf16" => ("bf16", 2),
            "float" => ("f32", 4),
            "double" => ("f64", 8),
            "uint8_t" => ("u8", 1),
            "int32_t" => ("i32", 4),
            "uint32_t" => ("u32", 4),
            "int64_t" => ("i64", 8),
            "uint64_t" => ("u64", 8),
            "CUtensorMap" => ("TensorMap", 128),
            _ => return Err(format!("`{name}` is not one of the types a kernel may take")),
        })
    };
    let (rust, size) = match kind {
        [kind, "*"] => {
            (format!("{}<{}>", if constant { "Const" } else { "Mut" }, element(kind)?.0), "8p".into())
        }
        [kind] => (element(kind)?.0.to_owned(), element(kind)?.1.to_string()),
        _ => return Err(format!("`{}` is not one of the types a kernel may take", kind.join(" "))),
    };
    Ok(Parameter { name: name.to_owned(), rust, size })
}

impl Module {
    fn manifest(&self) -> String {
        let mut text = format!("othink-kernels 1\nmodule {} {:016x}\n", self.stem, self.hash);
        for kernel in &self.kernels {
            let sizes: String = kernel.parameters.iter().map(|p| format!(" {}", p.size)).collect();
            writeln!(text, "kernel {} {}{sizes}", kernel.name, kernel.max_threads).expect("a string");
        }
        text + "end\n"
    }

    /// Where nvcc's output stands.
    fn compiled(&self, out: &Path) -> PathBuf {
        out.join(format!("{}.fatbin", self.stem))
    }

    /// Writes the Rust module of this `.cu`.
    fn generate(&self, code: &mut String) {
        let stem = &self.stem;
        writeln!(code, "/// Kernels of `kernels/{stem}.cu`.\npub mod {stem} {{\n    use super::*;")
            .expect("a string");
        let list: String = self
            .kernels
            .iter()
            .map(|k| format!("Kernel {{ name: {:?}, max_threads: {} }}, ", k.name, k.max_threads))
            .collect();
        writeln!(
            code,
            "    static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.image\")));\n    \
             /// The image and its kernels.\n    \
             pub static MODULE: Module = Module {{ stem: {stem:?}, hash: \"{:016x}\", kernels: &[{list}], image: IMAGE }};",
            self.hash
        )
        .expect("a string");
        for (index, kernel) in self.kernels.iter().enumerate() {
            let typed: String =
                kernel.parameters.iter().map(|p| format!(", {}: {}", p.name, p.rust)).collect();
            let pointers: String =
                kernel.parameters.iter().map(|p| format!("pointer(&{}), ", p.name)).collect();
            writeln!(
                code,
                "    /// `{}`\n    ///\n    /// # Safety\n    /// The pointers lead to as many elements as the kernel reads and writes for these sizes and this grid.\n    \
                 pub unsafe fn {}(gpu: &Gpu, grid: Grid{typed}) -> Result<()> {{\n        \
                 // SAFETY: the arguments are those of the prototype; what they point to is the caller's promise.\n        \
                 unsafe {{ gpu.launch(&MODULE, {index}, grid, &mut [{pointers}]) }}\n    }}",
                kernel.prototype, kernel.name
            )
            .expect("a string");
        }
        code.push_str("}\n\n");
    }
}

struct Nvcc {
    path: PathBuf,
    version: (u32, u32),
}

/// The first nvcc among the places in the file's head; a place named by hand has to hold one.
fn find_nvcc() -> Option<Nvcc> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let ask = |path: PathBuf| {
        let output =
            Command::new(&path).arg("--version").output().ok().filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (major, minor) = text.split("release ").nth(1)?.split(',').next()?.split_once('.')?;
        Some(Nvcc { path, version: (major.parse().ok()?, minor.parse().ok()?) })
    };
    if let Some(path) = variable("NVCC") {
        return Some(
            ask(path.clone())
                .unwrap_or_else(|| fail(&format!("NVCC={} is not an nvcc that runs", path.display()))),
        );
    }
    let home = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("bin/nvcc"));
    let path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    // The folder of `tools/get-nvcc`.
    let fetched = cache.map(|cache| cache.join("othink/cuda-13.0/nvidia/cu13/bin/nvcc"));
    let candidates = home.chain(path.map(|folder| folder.join("nvcc"))).chain(fetched);
    candidates.filter(|path| path.is_file()).find_map(ask)
}

/// Compiles what changed since OUT_DIR was last written; the build ends with nvcc's message where that fails.
fn compile(nvcc: &Nvcc, targets: &[&str], modules: &[Module], out: &Path) {
    let mut flags: Vec<String> = ["-fatbin", "-std=c++17", "-O3", "-I", "kernels"].map(String::from).to_vec();
    for target in targets {
        let number =
            target.strip_prefix("sm_").or_else(|| target.strip_prefix("compute_")).unwrap_or_else(|| {
                fail(&format!(
                    "OTHINK_CUDA_ARCHS: `{target}` is neither sm_NN nor compute_NN (nor is the list `none`)"
                ))
            });
        flags.extend(["-gencode".to_owned(), format!("arch=compute_{number},code={target}")]);
    }
    let stale = |module: &&Module| {
        let made_of = format!("{:016x} {:?} {flags:?}", module.hash, nvcc.version);
        fs::read_to_string(module.compiled(out).with_extension("made_of")).ok() != Some(made_of)
    };
    let queue = Mutex::new(modules.iter().filter(stale).collect::<Vec<_>>());
    let errors = Mutex::new(String::new());
    let work = || {
        while let Some(module) = { queue.lock().expect("no compile panics").pop() } {
            let (target, mark) = (module.compiled(out), module.compiled(out).with_extension("made_of"));
            let _ = fs::remove_file(&mark);
            let output =
                Command::new(&nvcc.path).args(&flags).arg("-o").arg(&target).arg(&module.source).output();
            let problem = match output {
                Ok(output) if output.status.success() => {
                    let made_of = format!("{:016x} {:?} {flags:?}", module.hash, nvcc.version);
                    fs::write(mark, made_of).err().map(|e| e.to_string())
                }
                Ok(output) => {
                    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
                }
                Err(e) => Some(e.to_string()),
            };
            if let Some(problem) = problem {
                let mut errors = errors.lock().expect("no compile panics");
                let _ = write!(
                    errors,
                    "{} does not compile with {}:\n{problem}",
                    module.source.display(),
                    nvcc.path.display()
                );
            }
        }
    };
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    let errors = errors.into_inner().expect("no compile panics");
    if !errors.is_empty() {
        fail(&errors);
    }
}
