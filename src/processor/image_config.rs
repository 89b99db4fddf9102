//! The image half of a processor's configuration, in every dialect that Hugging Face has written.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{file_inside, read_json_object, shown};

/// Which files may hold the image settings, best first (transformers 5 looks in this order).
const FILES: [&str; 2] = ["processor_config.json", "preprocessor_config.json"];

/// How images become patches.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// Fewest pixels of a resized image (`size.shortest_edge`, `min_pixels`).
    pub min_pixels: u64,
    /// Most pixels of a resized image (`size.longest_edge`, `max_pixels`).
    pub max_pixels: u64,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Patches per side of a block that the merger turns into one token.
    pub merge_size: usize,
    /// Frames per patch; a still image is repeated this often.
    pub temporal_patch_size: usize,
    /// What the patch embedding does to grey levels before it multiplies.
    pub normalisation: Normalisation,
}

/// The map from grey level to model input: `(level * rescale_factor - mean) / std`, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    /// Factor on the grey level, applied in f64 and rounded to f32.
    pub rescale_factor: f64,
    /// Per channel (red, green, blue), in rescaled units.
    pub mean: [f32; 3],
    /// Per channel, in rescaled units; positive.
    pub std: [f32; 3],
}

impl Normalisation {
    /// The model input of each grey level per channel, `[3][256]`: the same roundings as transformers' PIL backend
    /// (rescale in f64, round to f32, subtract and divide in f32).
    pub fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                let rescaled = (level as f64 * self.rescale_factor) as f32;
                (rescaled - self.mean[channel]) / self.std[channel]
            })
        })
    }
}

impl Default for ImageConfig {
    /// The defaults of transformers' `Qwen2VLImageProcessor`: 56^2 to 1280 * 28^2 pixels, CLIP's mean and deviation.
    fn default() -> Self {
        ImageConfig {
            min_pixels: 56 * 56,
            max_pixels: 28 * 28 * 1280,
            patch_size: 14,
            merge_size: 2,
            temporal_patch_size: 2,
            normalisation: Normalisation {
                rescale_factor: 1.0 / 255.0,
                mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
                std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            },
        }
    }
}

impl ImageConfig {
    /// Reads the settings from a checkpoint folder: `image_processor` of `processor_config.json` (transformers 5), else
    /// `preprocessor_config.json`. Keys that are absent take [`ImageConfig::default`]'s values. A `min_pixels` or
    /// `max_pixels` at the top wins over `size`, as in transformers.
    ///
    /// # Errors
    /// [`Error::Content`] where neither file has them, one is a link out of the folder or not JSON, a value has the wrong
    /// type or range, or asks for what is not implemented (another filter than bicubic, no resizing).
    pub fn load(folder: &Path) -> Result<Self> {
        for name in FILES {
            let Some(path) = file_inside(folder, name)? else { continue };
            let mut json = read_json_object(&path)?;
            if name == FILES[0] {
                match json.remove("image_processor") {
                    Some(Value::Object(nested)) => json = nested,
                    Some(_) => return Err(Error::content(&path, "image_processor must be an object")),
                    None => continue,
                }
            }
            return Self::from_json(&json, &path);
        }
        Err(Error::content(
            folder.join(FILES[1]),
            "is not there: the folder needs preprocessor_config.json (or processor_config.json with an image_processor); \
             copy it from the original checkpoint",
        ))
    }

    /// The same with caller's limits in place of the file's.
    ///
    /// # Errors
    /// [`Error::Usage`] where a limit is 0 or the lower exceeds the upper.
    pub fn with_limits(mut self, min_pixels: Option<u64>, max_pixels: Option<u64>) -> Result<Self> {
        self.min_pixels = min_pixels.unwrap_or(self.min_pixels);
        self.max_pixels = max_pixels.unwrap_or(self.max_pixels);
        if self.min_pixels == 0 || self.min_pixels > self.max_pixels {
            return Err(Error::Usage(format!(
                "min_pixels ({}) must be at least 1 and at most max_pixels ({})",
                self.min_pixels, self.max_pixels
            )));
        }
        Ok(self)
    }

    /// Sides of a resized image are multiples of this many pixels: one merged token.
    pub fn factor(&self) -> usize {
        self.patch_size * self.merge_size
    }

    /// Bytes per patch: channels * frames * side * side.
    pub fn patch_bytes(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    fn from_json(json: &Map<String, Value>, path: &Path) -> Result<Self> {
        let read = Reader { json, path };
        let default = ImageConfig::default();
        let size = match json.get("size") {
            None | Some(Value::Null) => &Map::new(),
            Some(Value::Object(size)) => size,
            Some(_) => return Err(read.wrong("size", "an object with shortest_edge and longest_edge")),
        };
        let size = Reader { json: size, path };
        let pixels = |top: &str, edge: &str, default: u64| -> Result<u64> {
            let found = match read.integer(top)? {
                Some(value) => Some(value),
                None => match size.integer(edge)? {
                    Some(value) => Some(value),
                    None => size.integer(top)?,
                },
            };
            Ok(found.unwrap_or(default))
        };
        // Every image is repeated for each frame of a patch.
        let side = |key: &str, default: usize, most: u64| -> Result<usize> {
            match read.integer(key)? {
                None => Ok(default),
                Some(value) if (1..=most).contains(&value) => Ok(value as usize),
                Some(_) => Err(read.wrong(key, &format!("1 to {most}"))),
            }
        };
        let wants = |key: &str| read.flag(key, true);
        if !wants("do_resize")? {
            return Err(Error::content(path, "do_resize = false is not supported; remove the key"));
        }
        if read.integer("resample")?.is_some_and(|filter| filter != 3) {
            return Err(read.wrong("resample", "3 (bicubic), the only filter there is here"));
        }
        let mut normalisation = default.normalisation;
        if !wants("do_rescale")? {
            normalisation.rescale_factor = 1.0;
        } else if let Some(factor) = read.number("rescale_factor")? {
            normalisation.rescale_factor = factor;
        }
        if wants("do_normalize")? {
            normalisation.mean = read.triple("image_mean")?.unwrap_or(normalisation.mean);
            normalisation.std = read.triple("image_std")?.unwrap_or(normalisation.std);
        } else {
            normalisation.mean = [0.0; 3];
            normalisation.std = [1.0; 3];
        }
        if normalisation.std.iter().any(|&s| s <= 0.0) {
            return Err(read.wrong("image_std", "three positive numbers"));
        }
        if normalisation.table().iter().flatten().any(|level| !level.is_finite()) {
            return Err(Error::content(
                path,
                "rescale_factor, image_mean and image_std make infinite numbers of grey levels; copy them from the \
                 original checkpoint",
            ));
        }
        let config = ImageConfig {
            min_pixels: pixels("min_pixels", "shortest_edge", default.min_pixels)?,
            max_pixels: pixels("max_pixels", "longest_edge", default.max_pixels)?,
            patch_size: side("patch_size", default.patch_size, 256)?,
            merge_size: side("merge_size", default.merge_size, 16)?,
            temporal_patch_size: side("temporal_patch_size", default.temporal_patch_size, 16)?,
            normalisation,
        };
        config.with_limits(None, None).map_err(|error| Error::content(path, error.to_string()))
    }
}

/// Typed look-ups that blame the file.
struct Reader<'a> {
    json: &'a Map<String, Value>,
    path: &'a Path,
}

impl Reader<'_> {
    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.json.get(key).map_or("nothing".to_string(), shown);
        Error::content(self.path, format!("{key} is {found}; expected {expected}"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.value(key).map(|v| v.as_u64().ok_or_else(|| self.wrong(key, "a whole number"))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key)
            .map(|v| v.as_f64().filter(|n| n.is_finite()).ok_or_else(|| self.wrong(key, "a number")))
            .transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.value(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    /// Three numbers, or one for all three channels.
    fn triple(&self, key: &str) -> Result<Option<[f32; 3]>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || self.wrong(key, "three numbers");
        let numbers: Vec<f32> = match value {
            Value::Array(items) => {
                items.iter().map(|v| v.as_f64().map(|n| n as f32)).collect::<Option<_>>().ok_or_else(wrong)?
            }
            other => vec![other.as_f64().ok_or_else(wrong)? as f32; 3],
        };
        let triple: [f32; 3] = numbers.try_into().map_err(|_| wrong())?;
        if triple.iter().all(|n| n.is_finite()) { Ok(Some(triple)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ImageConfig> {
        let Value::Object(object) = serde_json::from_str(json).unwrap() else { panic!("{json}") };
        ImageConfig::from_json(&object, Path::new("preprocessor_config.json"))
    }

    #[test]
    fn pixel_limits_come_from_every_dialect() {
        let limits = |json| parse(json).map(|c| (c.min_pixels, c.max_pixels)).unwrap();
        assert_eq!(limits("{}"), (3136, 1_003_520));
        assert_eq!(limits(r#"{"size":{"shortest_edge":7,"longest_edge":9}}"#), (7, 9));
        assert_eq!(limits(r#"{"min_pixels":3136,"max_pixels":12845056}"#), (3136, 12_845_056));
        assert_eq!(limits(r#"{"size":{"min_pixels":5,"max_pixels":6}}"#), (5, 6));
        // transformers lets the old top-level keys win.
        assert_eq!(limits(r#"{"min_pixels":8,"size":{"shortest_edge":7,"longest_edge":9}}"#), (8, 9));
        assert_eq!(limits(r#"{"min_pixels":null,"size":{"shortest_edge":7,"longest_edge":9}}"#), (7, 9));
    }

    #[test]
    fn wrong_values_are_named_with_what_was_expected() {
        for (json, expected) in [
            (r#"{"patch_size":0}"#, "patch_size is 0; expected 1 to 256"),
            (r#"{"merge_size":1024}"#, "merge_size is 1024; expected 1 to 16"),
            (r#"{"patch_size":"14"}"#, "patch_size is \"14\"; expected a whole number"),
            (r#"{"resample":2}"#, "resample is 2; expected 3 (bicubic)"),
            (r#"{"image_std":[1,0,1]}"#, "expected three positive numbers"),
            (r#"{"rescale_factor":1e300}"#, "infinite numbers"),
            (r#"{"image_std":1e-45}"#, "infinite numbers"),
            (r#"{"image_mean":[1,2]}"#, "image_mean is [1,2]; expected three numbers"),
            (
                r#"{"min_pixels":10,"max_pixels":9}"#,
                "min_pixels (10) must be at least 1 and at most max_pixels (9)",
            ),
            (r#"{"do_resize":false}"#, "do_resize"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.to_string().contains(expected), "{json}: {error}");
            assert_eq!(error.exit_code(), 65);
        }
        let error = ImageConfig::default().with_limits(Some(10), Some(2)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn nested_processor_config_wins_over_the_flat_file() {
        let folder = tempfile::tempdir().unwrap();
        let load = || ImageConfig::load(folder.path());
        assert_eq!(load().unwrap_err().exit_code(), 65);
        std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"max_pixels": 5000}"#).unwrap();
        std::fs::write(
            folder.path().join("processor_config.json"),
            r#"{"processor_class":"Qwen2VLProcessor"}"#,
        )
        .unwrap();
        assert_eq!(load().unwrap().max_pixels, 5000);
        let nested =
            "\u{feff}{\"image_processor\":{\"size\":{\"longest_edge\":6000,\"shortest_edge\":3136}}}";
        std::fs::write(folder.path().join("processor_config.json"), nested).unwrap();
        assert_eq!(load().unwrap().max_pixels, 6000);
        std::fs::write(folder.path().join("processor_config.json"), "{\n\"a\": }").unwrap();
        assert!(load().unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn switched_off_steps_become_identities() {
        let config = parse(r#"{"do_rescale":false,"do_normalize":false,"image_mean":[9,9,9]}"#).unwrap();
        assert_eq!(config.normalisation.table()[1][200], 200.0);
    }
}
