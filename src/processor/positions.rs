//! Image placeholders to runs of tokens, and the three-axis positions of M-RoPE.

use crate::error::{Error, Result};
use crate::processor::patches::Patches;

/// Token ids with their M-RoPE positions.
#[derive(Debug, PartialEq)]
pub(crate) struct Positioned {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions_3t: [Vec<i32>; 3],
    pub(crate) next_position: i32,
}

/// Replaces the i-th `image_token` of `tokens` by one token per merged block of the i-th image, and gives every token
/// its position (Qwen2-VL, arXiv 2409.12191, section 2.1).
///
/// A text token has the same position `p` on all three axes and the next one `p + 1`. The tokens of an image that starts
/// at `p` have `(p + t, p + y, p + x)`, in units of merged blocks; the token after it has `p + max(t, h, w)`.
///
/// # Errors
/// [`Error::Input`] where the number of placeholders is not the number of images, or positions exceed `i32`.
pub(crate) fn expand_images(
    tokens: &[u32],
    image_token: u32,
    images: &[Patches],
    merge_size: usize,
) -> Result<Positioned> {
    let placeholders = tokens.iter().filter(|&&token| token == image_token).count();
    if placeholders != images.len() {
        return Err(Error::Input(format!(
            "the rendered prompt has {placeholders} image placeholders for {} images: the chat template must write \
             <|image_pad|> once for every image",
            images.len()
        )));
    }
    let length = tokens.len() + images.iter().map(|image| image.merged_tokens(merge_size)).sum::<usize>();
    let fits = |value: usize| {
        i32::try_from(value).map_err(|_| Error::Input(format!("a prompt of {length} tokens is too long")))
    };
    fits(length)?;
    let mut expanded = Vec::with_capacity(length);
    let mut positions_3t: [Vec<i32>; 3] = std::array::from_fn(|_| Vec::with_capacity(length));
    let mut next = 0i32;
    let mut images = images.iter();
    for &token in tokens {
        let image = if token == image_token { images.next() } else { None };
        let Some(image) = image else {
            expanded.push(token);
            positions_3t.iter_mut().for_each(|axis| axis.push(next));
            next += 1;
            continue;
        };
        let [frames, height, width] = image.grid_thw;
        let (height, width) = (height / merge_size, width / merge_size);
        for index in 0..frames * height * width {
            let place = [index / (height * width), index / width % height, index % width];
            expanded.push(image_token);
            for (axis, offset) in positions_3t.iter_mut().zip(place) {
                axis.push(next + fits(offset)?);
            }
        }
        next += fits(frames.max(height).max(width))?;
    }
    Ok(Positioned { tokens: expanded, positions_3t, next_position: next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn image(height: usize, width: usize) -> Patches {
        Patches { grid_thw: [1, height, width], bytes: Arc::from([].as_slice()) }
    }

    #[test]
    fn images_expand_and_text_goes_on_after_the_longer_side() {
        // 4 x 6 patches merge to 2 x 3 tokens; 2 x 2 to one.
        let out = expand_images(&[7, 9, 8, 9, 7], 9, &[image(4, 6), image(2, 2)], 2).unwrap();
        assert_eq!(out.tokens, [7, 9, 9, 9, 9, 9, 9, 8, 9, 7]);
        assert_eq!(out.positions_3t[0], [0, 1, 1, 1, 1, 1, 1, 4, 5, 6]);
        assert_eq!(out.positions_3t[1], [0, 1, 1, 1, 2, 2, 2, 4, 5, 6]);
        assert_eq!(out.positions_3t[2], [0, 1, 2, 3, 1, 2, 3, 4, 5, 6]);
        assert_eq!(out.next_position, 7);
    }

    #[test]
    fn a_wrong_number_of_placeholders_is_told_with_both_counts() {
        for (tokens, images) in [(vec![1, 9], vec![]), (vec![1], vec![image(2, 2)])] {
            let error = expand_images(&tokens, 9, &images, 2).unwrap_err().to_string();
            let counts = format!("{} image placeholders for {} images", tokens.len() - 1, images.len());
            assert!(error.contains(&counts), "{error}");
        }
    }
}
