//! An upright image to patches in the order of the vision tower.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::processor::decode::RgbImage;
use crate::processor::image_config::{ImageConfig, Normalisation};
use crate::processor::resize::{resize_bicubic, smart_resize};

/// One image, resized and cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// Temporal, vertical and horizontal number of patches (`image_grid_thw`), before merging.
    pub grid_thw: [usize; 3],
    /// `[N, channels * temporal_patch_size * patch * patch]` grey levels, rows in the order
    /// Hugging Face uses (2x2 merge blocks), columns in Conv3d order (channel, frame, y, x).
    /// Normalisation happens at the patch embedding.
    pub bytes: Arc<[u8]>,
}

impl Patches {
    /// Number of patches, `N = t * h * w`.
    pub fn patches(&self) -> usize {
        self.grid_thw.iter().product()
    }

    /// Number of tokens that stand for this image in a prompt: one per `merge_size` x `merge_size` block.
    pub fn merged_tokens(&self, merge_size: usize) -> usize {
        self.patches() / (merge_size * merge_size).max(1)
    }

    /// The model's input (`pixel_values`), `[N, columns]` f32 in the layout of [`Patches::bytes`]: equal to what
    /// transformers' PIL backend computes.
    pub fn normalised(&self, normalisation: &Normalisation) -> Vec<f32> {
        let columns = self.bytes.len() / self.patches().max(1);
        let per_channel = (columns / 3).max(1);
        let table = normalisation.table();
        self.bytes
            .chunks_exact(per_channel)
            .zip(table.iter().cycle())
            .flat_map(|(levels, row)| levels.iter().map(|&level| row[usize::from(level)]))
            .collect()
    }
}

/// Most bytes of one image's patches. A still image is repeated `temporal_patch_size` times, which a file says.
const MAX_PATCH_BYTES: usize = 1 << 30;

/// Resizes to what [`smart_resize`] says and cuts the result into patches.
///
/// # Errors
/// [`Error::Input`] as [`smart_resize`], and where the patches would take more than 1 GiB.
pub fn patches_of(image: &RgbImage, config: &ImageConfig) -> Result<Patches> {
    let (height, width) =
        smart_resize(image.height, image.width, config.factor(), config.min_pixels, config.max_pixels)?;
    if height * width * 3 * config.temporal_patch_size > MAX_PATCH_BYTES {
        return Err(Error::Input(format!(
            "an image becomes {width} x {height} pixels of {} frames, more than {MAX_PATCH_BYTES} bytes; lower max_pixels",
            config.temporal_patch_size
        )));
    }
    patchify(&resize_bicubic(image, height, width), config)
}

/// Cuts an image whose sides are multiples of [`ImageConfig::factor`] into patches.
///
/// Row order: blocks of `merge_size` x `merge_size` patches in raster order, the patches of a block in raster order.
/// Column order: channel, frame (the same image `temporal_patch_size` times), y, x.
///
/// # Errors
/// [`Error::Internal`] where a side is not such a multiple.
pub fn patchify(image: &RgbImage, config: &ImageConfig) -> Result<Patches> {
    let (patch, merge) = (config.patch_size, config.merge_size);
    let factor = config.factor();
    if !image.height.is_multiple_of(factor) || !image.width.is_multiple_of(factor) {
        return Err(Error::Internal(format!(
            "an image of {} x {} pixels cannot be cut into blocks of {factor}",
            image.width, image.height
        )));
    }
    let (grid_h, grid_w) = (image.height / patch, image.width / patch);
    let mut bytes = Vec::with_capacity(grid_h * grid_w * config.patch_bytes());
    let mut channel_bytes = Vec::with_capacity(patch * patch);
    for block_y in 0..grid_h / merge {
        for block_x in 0..grid_w / merge {
            for inner in 0..merge * merge {
                let top = (block_y * merge + inner / merge) * patch;
                let left = (block_x * merge + inner % merge) * patch;
                for channel in 0..3 {
                    channel_bytes.clear();
                    for y in top..top + patch {
                        let start = (y * image.width + left) * 3;
                        let row = &image.pixels[start..start + patch * 3];
                        channel_bytes.extend(row.chunks_exact(3).map(|pixel| pixel[channel]));
                    }
                    for _frame in 0..config.temporal_patch_size {
                        bytes.extend_from_slice(&channel_bytes);
                    }
                }
            }
        }
    }
    Ok(Patches { grid_thw: [1, grid_h, grid_w], bytes: bytes.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> ImageConfig {
        ImageConfig { patch_size: 2, merge_size: 2, temporal_patch_size: 2, ..ImageConfig::default() }
    }

    #[test]
    fn patches_go_block_by_block_and_repeat_the_frame() {
        // 4 x 8 pixels, patches of 2 x 2, merge blocks of 4 x 4: two blocks side by side. Red numbers the pixel.
        let pixels = (0..32u8).flat_map(|i| [i, i + 100, i + 200]).collect();
        let image = RgbImage { width: 8, height: 4, pixels };
        let patches = patchify(&image, &tiny()).unwrap();
        assert_eq!(patches.grid_thw, [1, 2, 4]);
        assert_eq!((patches.patches(), patches.merged_tokens(2)), (8, 2));
        let corners: Vec<u8> = patches.bytes.chunks_exact(24).map(|row| row[0]).collect();
        assert_eq!(corners, [0, 2, 16, 18, 4, 6, 20, 22]);
        let first = [0, 1, 8, 9];
        let expected: Vec<u8> = [0, 100, 200]
            .iter()
            .flat_map(|c| [first, first].concat().into_iter().map(move |v| v + c))
            .collect();
        assert_eq!(patches.bytes[..24], expected[..]);
    }

    #[test]
    fn normalised_applies_each_channels_own_numbers() {
        let patches = Patches { grid_thw: [1, 1, 2], bytes: Arc::from([0, 255, 51, 255, 0, 51].as_slice()) };
        let normalisation =
            Normalisation { rescale_factor: 1.0 / 255.0, mean: [0.0, 0.5, 0.2], std: [1.0, 0.5, 0.1] };
        assert_eq!(patches.normalised(&normalisation), [0.0, 1.0, 0.0, 1.0, -1.0, 0.0]);
    }

    #[test]
    fn repeated_frames_are_bounded() {
        let config =
            ImageConfig { temporal_patch_size: 1024, min_pixels: 1 << 20, max_pixels: 1 << 20, ..tiny() };
        let image = RgbImage { width: 1, height: 1, pixels: vec![0; 3] };
        let error = patches_of(&image, &config).unwrap_err();
        assert!(error.to_string().contains("1024 x 1024 pixels of 1024 frames"), "{error}");
    }

    #[test]
    fn sides_that_do_not_divide_are_our_bug() {
        let image = RgbImage { width: 6, height: 4, pixels: vec![0; 72] };
        assert_eq!(patchify(&image, &tiny()).unwrap_err().exit_code(), 1);
    }
}
