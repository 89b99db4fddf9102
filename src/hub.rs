//! Where a model or a dataset is: a path, or a name looked up in the local Hugging Face cache.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::read_bounded;

/// The folder that `path_or_name` means: a folder of that path, else the snapshot of
/// `org/name` in the local Hugging Face cache. Nothing is ever downloaded.
///
/// The cache is the first that is set of `HF_HUB_CACHE`, `HF_HOME/hub`,
/// `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
///
/// # Errors
/// [`Error::Missing`] with the download command when there is neither.
pub fn resolve(path_or_name: &str) -> Result<PathBuf> {
    resolve_with(path_or_name, |name| std::env::var_os(name))
}

fn resolve_with(path_or_name: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let path = Path::new(path_or_name);
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(path.to_path_buf()),
        Ok(_) => {
            return Err(Error::missing(
                path,
                "is a file; the model is a folder that holds config.json, tokenizer.json and model.safetensors",
            ));
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(e) => return Err(Error::io(path, "read the model folder", e)),
    }
    let Some((org, name)) = hub_name(path_or_name) else {
        return Err(Error::missing(
            path,
            "no such model folder; give a folder, or the org/name of a model fetched with `hf download org/name`",
        ));
    };
    let Some(cache) = cache_dir(env) else {
        return Err(Error::missing(
            path,
            format!(
                "no such folder, and no Hugging Face cache to look in (set HF_HOME); fetch it with: hf download {org}/{name}"
            ),
        ));
    };
    let repository = repository(&cache, "models", org, name);
    snapshot(&repository).ok_or_else(|| {
        Error::missing(
            path,
            format!(
                "no such folder, and not in the Hugging Face cache {}; fetch it with: hf download {org}/{name}",
                cache.display()
            ),
        )
    })
}

/// The snapshot of the dataset `org/name` in the local Hugging Face cache, and its repository's folder, which holds the
/// files that the snapshot's links lead to. `None` if `name` is not of that form.
///
/// # Errors
/// [`Error::Missing`] with the download command when it is not in the cache.
pub fn cached_dataset(name: &str) -> Result<Option<(PathBuf, PathBuf)>> {
    cached_dataset_with(name, |name| std::env::var_os(name))
}

fn cached_dataset_with(
    text: &str,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(PathBuf, PathBuf)>> {
    let Some((org, name)) = hub_name(text) else { return Ok(None) };
    let cache = cache_dir(env);
    let repository = cache.as_ref().map(|cache| repository(cache, "datasets", org, name));
    let found = repository.and_then(|repository| Some((snapshot(&repository)?, repository)));
    found.map(Some).ok_or_else(|| {
        let cache = cache.map_or("none is set; see HF_HOME".into(), |cache| cache.display().to_string());
        Error::missing(
            text,
            format!(
                "no such dataset: give a file or a folder (`tasks make` writes one); or, as it is not in the Hugging Face \
                 cache either ({cache}), fetch it with: hf download --repo-type dataset {org}/{name}"
            ),
        )
    })
}

fn repository(cache: &Path, kind: &str, org: &str, name: &str) -> PathBuf {
    cache.join(format!("{kind}--{org}--{name}"))
}

/// `org/name` if `text` has that form.
fn hub_name(text: &str) -> Option<(&str, &str)> {
    let part_is_valid = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    text.split_once('/').filter(|(org, name)| part_is_valid(org) && part_is_valid(name))
}

/// The folder of the Hugging Face cache, as `huggingface_hub` finds it.
fn cache_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let home = env("HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let set = |name: &str| {
        let value = PathBuf::from(env(name).filter(|v| !v.is_empty())?);
        match (value.strip_prefix("~"), &home) {
            (Ok(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(value),
        }
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface").join("hub")))
        .or_else(|| Some(home.as_ref()?.join(".cache").join("huggingface").join("hub")))
}

/// The snapshot folder that `refs/main` of a cached repository names.
fn snapshot(repository: &Path) -> Option<PathBuf> {
    let commit = read_bounded(&repository.join("refs").join("main"), 256).ok()?;
    let commit = std::str::from_utf8(&commit).ok()?.trim();
    if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    Some(repository.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn cache_order_is_huggingface_hubs() {
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let expected = ["/a", "/b", "/c/hub", "/d/huggingface/hub", "/e/.cache/huggingface/hub"];
        for (skip, want) in expected.iter().enumerate() {
            assert_eq!(cache_dir(env(&all[skip..])), Some(PathBuf::from(want)));
        }
        assert_eq!(cache_dir(env(&[])), None);
        assert_eq!(
            cache_dir(env(&[("HF_HOME", "~/hf"), ("HOME", "/home/u")])),
            Some(PathBuf::from("/home/u/hf/hub"))
        );
        assert_eq!(
            cache_dir(env(&[("HF_HOME", ""), ("HOME", "/u")])),
            Some("/u/.cache/huggingface/hub".into())
        );
    }

    #[test]
    fn names_resolve_through_refs_main() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let cache = temp.path().to_str().expect("UTF-8 path");
        let repository = temp.path().join("models--Qwen--Qwen2-VL-2B-Instruct");
        let folder = repository.join("snapshots").join("abc123");
        fs::create_dir_all(&folder).expect("create");
        fs::create_dir_all(repository.join("refs")).expect("create");
        let name = "Qwen/Qwen2-VL-2B-Instruct";
        let vars = [("HF_HUB_CACHE", cache)];

        let error = resolve_with(name, env(&vars)).expect_err("no refs/main yet");
        assert_eq!(error.exit_code(), 66);
        assert!(error.to_string().contains("hf download Qwen/Qwen2-VL-2B-Instruct"), "{error}");

        fs::write(repository.join("refs/main"), "abc123\n").expect("write");
        assert_eq!(resolve_with(name, env(&vars)).expect("cached"), folder);
        // A ref that would climb out of the cache is no commit.
        fs::write(repository.join("refs/main"), "../../..").expect("write");
        assert_eq!(resolve_with(name, env(&vars)).expect_err("bad ref").exit_code(), 66);
    }

    #[test]
    fn datasets_lie_beside_models() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let repository = temp.path().join("datasets--leonardPKU--clevr");
        let folder = repository.join("snapshots/abc123");
        fs::create_dir_all(&folder).expect("create");
        fs::create_dir_all(repository.join("refs")).expect("create");
        let vars = [("HF_HUB_CACHE", temp.path().to_str().expect("UTF-8 path"))];
        let error = cached_dataset_with("leonardPKU/clevr", env(&vars)).expect_err("no refs/main yet");
        assert_eq!(error.exit_code(), 66);
        let command = "hf download --repo-type dataset leonardPKU/clevr";
        assert!(error.to_string().contains(command), "{error}");
        fs::write(repository.join("refs/main"), "abc123").expect("write");
        let found = cached_dataset_with("leonardPKU/clevr", env(&vars)).expect("cached");
        assert_eq!(found, Some((folder, repository)));
        for no_name in ["clevr", "a/b/c", "../x", "/a"] {
            assert_eq!(cached_dataset_with(no_name, env(&vars)).expect("no name"), None);
        }
    }

    #[test]
    fn what_is_no_folder_is_missing() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let file = temp.path().join("model.gguf");
        fs::write(&file, "x").expect("write");
        for given in [file.to_str().expect("UTF-8"), "/no/such/folder", "nosuchfolder", "../x/y", "a/b/c", ""]
        {
            let error = resolve_with(given, env(&[])).expect_err("must fail");
            assert_eq!(error.exit_code(), 66, "{given}: {error}");
        }
    }
}
