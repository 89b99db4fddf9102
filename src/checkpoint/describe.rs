//! What a checkpoint or run folder holds, for `inspect`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::manifest::Manifest;
use super::plan::COMPANION_FILES;
use super::state::{Identity, has_trainer_state, read_trainer_state};
use crate::error::{Error, Result};
use crate::hub;
use crate::model::config::{ModelConfig, WindowConfig};
use crate::model::folder::{Dialect, ModelFolder};

/// What a folder holds.
#[derive(Debug)]
pub enum Description {
    /// A model in Hugging Face layout.
    Checkpoint(Box<CheckpointDescription>),
    /// The folder of a training run.
    Run(RunDescription),
}

/// What a model folder holds.
#[derive(Debug)]
pub struct CheckpointDescription {
    /// The folder.
    pub dir: PathBuf,
    /// Sizes and special ids.
    pub config: ModelConfig,
    /// How `config.json` is arranged.
    pub dialect: Dialect,
    /// Number of values per module, in the order of the data flow.
    pub parameters_by_module: Vec<(&'static str, u64)>,
    /// Number of tensors stored in each dtype.
    pub tensors_by_dtype: BTreeMap<String, usize>,
    /// What the files call the first parameter of the first text layer.
    pub stored_name_example: String,
    /// Weight files and their sizes in bytes.
    pub weight_files: Vec<(String, u64)>,
    /// Whether an index spreads the weights over shards.
    pub sharded: bool,
    /// Tokens that end a completion.
    pub eos_token_ids: Vec<u32>,
    /// Which tokenizer, processor and generation files are there.
    pub companions: Vec<&'static str>,
    /// Whether a run can go on from it, in words.
    pub resumable: String,
}

/// What a run folder holds.
#[derive(Debug)]
pub struct RunDescription {
    /// The folder.
    pub dir: PathBuf,
    /// Which of the run's own files are there, with their sizes in bytes.
    pub files: Vec<(&'static str, u64)>,
    /// The last line of `metrics.jsonl`.
    pub last_metrics: Option<Value>,
    /// The model folders below it, and what they hold or why they cannot be read.
    pub checkpoints: Vec<(PathBuf, std::result::Result<CheckpointDescription, String>)>,
}

/// Files by which a run folder is known.
const RUN_FILES: [&str; 6] = [
    "config.toml",
    "metrics.jsonl",
    "sft_metrics.jsonl",
    "eval_metrics.jsonl",
    "completions.jsonl",
    "report.html",
];
/// How many levels below a run folder model folders are looked for, and how many are listed.
const SEARCH_DEPTH: usize = 3;
const MAX_CHECKPOINTS: usize = 200;

/// Says what the folder `path_or_name` (a path, or a model of the Hugging Face cache) holds.
///
/// # Errors
/// [`Error::Missing`] if there is no such folder, [`Error::Content`] if it is neither a model folder
/// nor a run folder or cannot be understood.
pub fn describe(path_or_name: &str) -> Result<Description> {
    let dir = hub::resolve(path_or_name)?;
    let is_run = RUN_FILES.iter().any(|name| dir.join(name).is_file());
    if is_run && !dir.join("config.json").exists() {
        return Ok(Description::Run(describe_run(&dir)?));
    }
    Ok(Description::Checkpoint(Box::new(describe_checkpoint(path_or_name)?)))
}

fn describe_checkpoint(path_or_name: &str) -> Result<CheckpointDescription> {
    let folder = ModelFolder::open(path_or_name)?;
    let mut modules = MODULES.map(|(name, _)| (name, 0u64));
    let mut tensors_by_dtype = BTreeMap::new();
    for parameter in folder.stored_parameters() {
        let elements: u64 = parameter.shape.iter().map(|&size| size as u64).product();
        let module = MODULES.iter().position(|(_, prefix)| parameter.name.starts_with(prefix));
        if let Some((_, sum)) = module.and_then(|n| modules.get_mut(n)) {
            *sum += elements;
        }
        *tensors_by_dtype.entry(parameter.dtype.to_string()).or_insert(0) += 1;
    }
    let mut weight_files = Vec::new();
    for path in folder.weight_files() {
        let bytes = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?.len();
        weight_files.push((file_name(path), bytes));
    }
    let example = folder.stored_parameters().iter().find(|p| p.name.starts_with("model.layers."));
    Ok(CheckpointDescription {
        dialect: folder.dialect(),
        parameters_by_module: modules.into_iter().filter(|(_, sum)| *sum > 0).collect(),
        tensors_by_dtype,
        stored_name_example: example.map(|p| p.stored_name.clone()).unwrap_or_default(),
        weight_files,
        sharded: folder.is_sharded(),
        eos_token_ids: folder.generation.eos_token_ids.clone(),
        resumable: resumable(&folder.dir),
        companions: COMPANION_FILES.into_iter().filter(|name| folder.dir.join(name).is_file()).collect(),
        config: folder.config,
        dir: folder.dir,
    })
}

/// Whether a run can go on from a folder, and where. Sizes and checksums are compared, so every file is read.
fn resumable(dir: &Path) -> String {
    if !has_trainer_state(dir) {
        return "no: it holds a model alone".to_owned();
    }
    match (Manifest::verify(dir), read_trainer_state(dir)) {
        (Ok(()), Ok(state)) => {
            let Identity { command, max_steps, .. } = state.identity;
            format!("yes: {command}, step {} of {max_steps}", state.global_step)
        }
        (Err(flaw), _) => format!("no: it {flaw}"),
        (_, Err(error)) => format!("no: {error}"),
    }
}

/// Modules in the order of the data flow, and what their parameters' names begin with.
const MODULES: [(&str, &str); 7] = [
    ("vision patch embedding", "visual.patch_embed."),
    ("vision blocks", "visual.blocks."),
    ("vision merger", "visual.merger."),
    ("token embedding", "model.embed_tokens."),
    ("text layers", "model.layers."),
    ("final norm", "model.norm."),
    ("output head", "lm_head."),
];

fn describe_run(dir: &Path) -> Result<RunDescription> {
    let size = |name: &'static str| {
        fs::metadata(dir.join(name)).ok().filter(|m| m.is_file()).map(|m| (name, m.len()))
    };
    let mut folders = Vec::new();
    find_model_folders(dir, SEARCH_DEPTH, &mut folders);
    folders.sort();
    let checkpoints = folders
        .into_iter()
        .map(|folder| {
            let described = match folder.to_str() {
                Some(path) => describe_checkpoint(path).map_err(|e| e.to_string()),
                None => Err("its name is not UTF-8 text".to_owned()),
            };
            (folder.strip_prefix(dir).map(Path::to_path_buf).unwrap_or(folder), described)
        })
        .collect();
    Ok(RunDescription {
        dir: dir.to_path_buf(),
        files: RUN_FILES.into_iter().filter_map(size).collect(),
        last_metrics: last_json_line(&dir.join("metrics.jsonl"))?,
        checkpoints,
    })
}

/// Folders below `dir` that hold a `config.json`; links are not followed.
fn find_model_folders(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if found.len() == MAX_CHECKPOINTS {
            return;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if path.join("config.json").is_file() {
                found.push(path);
            } else {
                find_model_folders(&path, depth - 1, found);
            }
        }
    }
}

/// The last line of a JSONL file that is whole and valid, read from the file's end; `None` if there
/// is no file or no such line. (A run that was killed may have left half a line.)
fn last_json_line(path: &Path) -> Result<Option<Value>> {
    const TAIL_BYTES: u64 = 1 << 20;
    if !path.is_file() {
        return Ok(None);
    }
    let io = |e| Error::io(path, "read", e);
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).map_err(io)?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).map_err(io)?;
    Ok(tail
        .rsplit(|&b| b == b'\n')
        .find_map(|line| serde_json::from_slice::<Value>(line).ok().filter(Value::is_object)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Description::Checkpoint(checkpoint) => checkpoint.fmt(f),
            Description::Run(run) => run.fmt(f),
        }
    }
}

impl CheckpointDescription {
    /// Number of values of the whole model.
    pub fn parameters(&self) -> u64 {
        self.parameters_by_module.iter().map(|(_, sum)| sum).sum()
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_files.iter().map(|(_, bytes)| bytes).sum()
    }

    fn dtypes(&self) -> String {
        let parts: Vec<String> = self
            .tensors_by_dtype
            .iter()
            .map(|(dtype, tensors)| format!("{dtype} ({tensors} tensors)"))
            .collect();
        parts.join(", ")
    }
}

impl fmt::Display for CheckpointDescription {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ModelConfig { family, text, vision, .. } = &self.config;
        writeln!(f, "checkpoint     {}", self.dir.display())?;
        writeln!(f, "family         {}", family.model_type())?;
        writeln!(f, "config.json    {}", self.dialect)?;
        writeln!(
            f,
            "text           {} layers, width {}, {} query and {} key/value heads of {}, MLP {}, vocabulary {}, context {}",
            text.num_hidden_layers,
            text.hidden_size,
            text.num_attention_heads,
            text.num_key_value_heads,
            text.head_dim,
            text.intermediate_size,
            text.vocab_size,
            text.max_position_embeddings
        )?;
        write!(
            f,
            "vision         {} blocks, width {}, {} heads, MLP {}, patch {}x{}x{}, merge {}x{}",
            vision.depth,
            vision.embed_dim,
            vision.num_heads,
            vision.mlp_dim,
            vision.temporal_patch_size,
            vision.patch_size,
            vision.patch_size,
            vision.spatial_merge_size,
            vision.spatial_merge_size
        )?;
        match &vision.windows {
            None => writeln!(f)?,
            Some(WindowConfig { size, full_blocks }) => {
                writeln!(f, ", windows of {size}x{size} pixels but in blocks {full_blocks:?}")?;
            }
        }
        let head = if self.config.tie_word_embeddings { "tied to the embedding" } else { "its own matrix" };
        writeln!(f, "output head    {head}")?;
        writeln!(f, "end tokens     {:?}", self.eos_token_ids)?;
        writeln!(f, "dtype          {}", self.dtypes())?;
        writeln!(f, "names          like {:?}", self.stored_name_example)?;
        writeln!(f, "parameters     {}", grouped(self.parameters()))?;
        for (module, sum) in &self.parameters_by_module {
            writeln!(f, "  {module:<24}{:>15}", grouped(*sum))?;
        }
        let layout = if self.sharded { "sharded" } else { "single file" };
        writeln!(f, "weight files   {} bytes, {layout}", grouped(self.weight_bytes()))?;
        for (name, bytes) in &self.weight_files {
            writeln!(f, "  {name}  {}", grouped(*bytes))?;
        }
        let companions =
            if self.companions.is_empty() { "none".to_owned() } else { self.companions.join(", ") };
        writeln!(f, "other files    {companions}")?;
        write!(f, "resumable      {}", self.resumable)
    }
}

impl fmt::Display for RunDescription {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "run            {}", self.dir.display())?;
        for (name, bytes) in &self.files {
            writeln!(f, "  {name:<20}{:>15} bytes", grouped(*bytes))?;
        }
        match &self.last_metrics {
            Some(metrics) => writeln!(f, "last metrics   {metrics}")?,
            None => writeln!(f, "last metrics   none")?,
        }
        write!(f, "checkpoints    {}", self.checkpoints.len())?;
        for (path, described) in &self.checkpoints {
            match described {
                Ok(checkpoint) => write!(
                    f,
                    "\n  {}  {} parameters, {}, {} bytes; resumable {}",
                    path.display(),
                    grouped(checkpoint.parameters()),
                    checkpoint.dtypes(),
                    grouped(checkpoint.weight_bytes()),
                    checkpoint.resumable
                )?,
                Err(message) => write!(f, "\n  {}  cannot be read: {message}", path.display())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> String {
        format!("{}/tests/bundles/qwen2_vl_a", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn a_checkpoint_is_described() {
        let Description::Checkpoint(found) = describe(&bundle()).expect("described") else {
            panic!("a checkpoint, not a run");
        };
        // Sum of the shapes in the file's header: 1,651,200 bytes of f32.
        assert_eq!(found.parameters(), 1_651_200 / 4);
        assert_eq!(found.tensors_by_dtype, BTreeMap::from([("F32".to_owned(), 70)]));
        assert_eq!(found.weight_files, [("model.safetensors".to_owned(), 1_658_072)]);
        assert_eq!(found.eos_token_ids, [501, 499]);
        assert_eq!(found.dialect, Dialect::Nested);
        let text = found.to_string();
        for part in
            ["412,800", "3 layers, width 64", "its own matrix", "tokenizer.json", "chat_template.jinja"]
        {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_tower_with_windows_is_described() {
        let bundle = bundle().replace("qwen2_vl_a", "qwen2_5_tied_odd");
        let text = describe(&bundle).expect("described").to_string();
        for part in [
            "family         qwen2_5_vl\n",
            "3 blocks, width 24, 3 heads, MLP 37, patch 2x14x14, merge 2x2, windows of 84x84 pixels but in blocks [1]\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_run_is_described() {
        let root = tempfile::tempdir().expect("temporary folder");
        fs::write(root.path().join("config.toml"), "seed = 1\n").expect("write");
        fs::write(root.path().join("metrics.jsonl"), "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3, \"lo")
            .expect("write");
        let broken = root.path().join("checkpoints/step-2");
        fs::create_dir_all(&broken).expect("create");
        fs::write(broken.join("config.json"), "{").expect("write");
        let Description::Run(run) = describe(root.path().to_str().expect("UTF-8")).expect("described") else {
            panic!("a run, not a checkpoint");
        };
        assert_eq!(run.last_metrics, Some(serde_json::json!({"step": 2})));
        assert_eq!(run.files, [("config.toml", 9), ("metrics.jsonl", 39)]);
        assert_eq!(run.checkpoints.len(), 1);
        let text = run.to_string();
        assert!(text.contains("step-2") && text.contains("cannot be read"), "{text}");
    }

    #[test]
    fn what_is_neither_is_refused() {
        let root = tempfile::tempdir().expect("temporary folder");
        fs::write(root.path().join("notes.txt"), "x").expect("write");
        let path = root.path().to_str().expect("UTF-8");
        assert_eq!(describe(path).expect_err("neither").exit_code(), 65);
        assert_eq!(describe("/no/such/folder").expect_err("absent").exit_code(), 66);
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
