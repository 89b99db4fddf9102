//! Which image files a dataset may name.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The folders under which a dataset's images have to lie, with every link resolved.
pub(super) struct ImageRoots {
    /// (as the user wrote it, canonical); searched in order.
    roots: Vec<(PathBuf, PathBuf)>,
    /// Whether an absolute path may lie anywhere.
    any_absolute: bool,
}

impl ImageRoots {
    /// The folder of `jsonl`, then `image_dir`.
    pub(super) fn new(jsonl: &Path, image_dir: Option<&Path>) -> Result<Self> {
        let beside = match jsonl.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut roots = Vec::new();
        for folder in std::iter::once(beside).chain(image_dir) {
            let canonical =
                fs::canonicalize(folder).map_err(|e| Error::io(folder, "open the image folder", e))?;
            roots.push((folder.to_path_buf(), canonical));
        }
        Ok(ImageRoots { roots, any_absolute: false })
    }

    /// Also takes what links lead to under `folder`: the files of a cached repository.
    pub(super) fn with_linked(mut self, folder: Option<&Path>) -> Self {
        let linked = folder.and_then(|folder| Some((folder.to_path_buf(), fs::canonicalize(folder).ok()?)));
        self.roots.extend(linked);
        self
    }

    /// Takes absolute paths wherever they lie: for files that the user's own run wrote.
    pub(super) fn with_any_absolute(self, any_absolute: bool) -> Self {
        ImageRoots { any_absolute, ..self }
    }

    /// The file that `name` means, or why it is refused.
    ///
    /// A relative path is looked for under each root in turn; an absolute one has to lie
    /// under a root. `..`, links that leave the roots, URLs and non-files are refused:
    /// a dataset is data from elsewhere, and must not make us read other files.
    pub(super) fn resolve(&self, name: &str) -> std::result::Result<PathBuf, String> {
        if name.contains("://") || name.starts_with("data:") {
            let shown: String = name.chars().take(80).collect();
            return Err(format!("image `{shown}` is a URL; nothing is fetched: save the image as a file"));
        }
        if name.is_empty() || name.contains('\0') {
            return Err(format!("image path {name:?} is not a file name"));
        }
        let path = Path::new(name);
        if path.components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(format!("image `{name}`: `..` is not allowed in an image path; {}", self.mend()));
        }
        for (_, root) in &self.roots {
            // `join` with an absolute path is that path.
            let Ok(found) = fs::canonicalize(root.join(path)) else { continue };
            let trusted = self.any_absolute && path.is_absolute();
            if !trusted && !self.roots.iter().any(|(_, root)| found.starts_with(root)) {
                return Err(format!(
                    "image `{name}` lies outside the allowed folders (it resolves to {}); {}",
                    found.display(),
                    self.mend()
                ));
            }
            if !fs::metadata(&found).is_ok_and(|m| m.is_file()) {
                return Err(format!("image `{name}` is not a regular file"));
            }
            return Ok(found);
        }
        Err(format!("image `{name}` not found; {}", self.mend()))
    }

    fn mend(&self) -> String {
        let folders: Vec<_> = self.roots.iter().map(|(shown, _)| shown.display().to_string()).collect();
        format!("images are looked for under {} (name another folder with --image_dir)", folders.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn case_38_only_regular_files_under_the_roots() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for folder in ["set/images", "other", "set-secret"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["set/images/a.png", "other/b.png", "secret.png", "set-secret/s.png"] {
            fs::write(at(file), b"x").unwrap();
        }
        std::os::unix::fs::symlink(at("secret.png"), at("set/images/link.png")).unwrap();
        std::os::unix::fs::symlink(at("set/images/a.png"), at("set/good.png")).unwrap();
        std::os::unix::fs::symlink(at("other"), at("set/folder")).unwrap();

        let jsonl = at("set/train.jsonl");
        let narrow = ImageRoots::new(&jsonl, None).unwrap();
        assert!(narrow.resolve("images/a.png").unwrap().ends_with("set/images/a.png"));
        assert!(narrow.resolve("good.png").unwrap().ends_with("set/images/a.png"));
        assert!(narrow.resolve(at("set/images/a.png").to_str().unwrap()).is_ok());
        let (secret, sibling) = (at("secret.png"), at("set-secret/s.png"));
        let refused = [
            ("../secret.png", "`..`"),
            ("images/../images/a.png", "`..`"),
            (secret.to_str().unwrap(), "outside"),
            // A folder whose name begins like the root's is not under it.
            (sibling.to_str().unwrap(), "outside"),
            ("images/link.png", "outside"),
            ("folder/b.png", "outside"),
            ("images", "not a regular file"),
            ("images/none.png", "not found"),
            ("https://example.com/a.png", "URL"),
            ("file:///etc/passwd", "URL"),
            ("data:image/png;base64,AAAA", "URL"),
            ("", "not a file name"),
            ("a\0b", "not a file name"),
        ];
        for (name, reason) in refused {
            let message = narrow.resolve(name).unwrap_err();
            assert!(message.contains(reason), "{name}: {message}");
        }

        let own = ImageRoots::new(&jsonl, None).unwrap().with_any_absolute(true);
        assert!(own.resolve(secret.to_str().unwrap()).is_ok());
        for name in ["../secret.png", "images/link.png", "file:///etc/passwd"] {
            assert!(own.resolve(name).is_err(), "{name}");
        }

        let wide = ImageRoots::new(&jsonl, Some(&at("other"))).unwrap();
        assert!(wide.resolve("b.png").unwrap().ends_with("other/b.png"));
        assert!(wide.resolve("folder/b.png").is_ok());
        assert!(wide.resolve("images/link.png").is_err());
        assert_eq!(ImageRoots::new(&jsonl, Some(&at("nowhere"))).err().unwrap().exit_code(), 66);
    }
}
