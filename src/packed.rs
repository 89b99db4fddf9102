//! The model's one input type: prompts with their completions, packed into rows without padding.
//!
//! ```text
//! rows      0 ........ p-1 | p ....... | ......... | ...
//! segment   prompt         | c_1 .. -1 | c_2 .. -1 | next prompt ...
//! keys      own, causal    | prompt, then own, causal
//! ```
//!
//! A group `[prompt, c_1 .. c_G]` holds its prompt and images once. Row r computes what comes after
//! its token, so the first token of every completion is predicted by the prompt's last row, and
//! each further one by the row before it. The last token of a completion predicts nothing that is
//! needed: it gets no row, only a [`Target`]. A completion of one token therefore has no segment.
//!
//! Token j of a completion has position `prompt.next_position + j` on all three axes, as if the
//! completion followed the prompt alone: attending over `[prompt, own rows]` is exactly the
//! computation on the separate sequence.

use std::ops::Range;

use crate::error::{Error, Result};
pub use crate::ops::log_softmax_kl::Target;
use crate::processor::{Patches, Prompt};

/// Packed input of T rows. Build with [`Packed::push_group`]; fields are open for the model's use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// `[T]` token ids, image placeholders included.
    pub tokens: Vec<u32>,
    /// `[3][T]` temporal, vertical and horizontal positions (M-RoPE).
    pub positions_3t: [Vec<i32>; 3],
    /// Consecutive, non-empty ranges that cover all rows.
    pub segments: Vec<Segment>,
    /// Images in the order of their rows.
    pub images: Vec<PackedImage>,
}

/// A run of rows that attend causally to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its rows.
    pub rows: Range<usize>,
    /// Index of the segment whose rows are all attended to as well, before its own. That segment
    /// comes earlier and has no prefix itself.
    pub prefix: Option<usize>,
}

/// An image and where its embeddings go.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedImage {
    /// The patches, shared with the prompt.
    pub patches: Patches,
    /// The placeholder rows that its merged patches replace, in order. Only these: an image
    /// placeholder that the policy wrote itself is a token like any other.
    pub rows: Range<usize>,
}

/// How images stand in a model's token stream (from its config).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLayout {
    /// Id of the image placeholder.
    pub image_token_id: u32,
    /// Side of the block of patches that becomes one token.
    pub spatial_merge_size: usize,
}

impl ImageLayout {
    /// Number of placeholder tokens of an image.
    ///
    /// # Errors
    /// `Input` if the grid is empty or not whole merge blocks.
    pub fn tokens_of(&self, patches: &Patches) -> Result<usize> {
        let [t, h, w] = patches.grid_thw;
        let merge = self.spatial_merge_size;
        if merge == 0 || t == 0 || h == 0 || w == 0 || !h.is_multiple_of(merge) || !w.is_multiple_of(merge) {
            return Err(Error::Input(format!(
                "an image has a grid of {t} x {h} x {w} patches; height and width have to be positive \
                 multiples of spatial_merge_size ({merge})"
            )));
        }
        [h / merge, w / merge].into_iter().try_fold(t, usize::checked_mul).ok_or_else(|| {
            Error::Input(format!("an image's grid of {t} x {h} x {w} patches is too large to count"))
        })
    }
}

impl Packed {
    /// One group alone; see [`Packed::push_group`].
    ///
    /// # Errors
    /// As [`Packed::push_group`].
    pub fn group(
        prompt: &Prompt,
        completions: &[&[u32]],
        layout: ImageLayout,
    ) -> Result<(Self, Vec<Vec<Target>>)> {
        let mut packed = Packed::default();
        let targets = packed.push_group(prompt, completions, layout)?;
        Ok((packed, targets))
    }

    /// One plain sequence, `prompt` followed by `completion` in a single segment: what packing has to
    /// be equal to.
    ///
    /// # Errors
    /// As [`Packed::push_group`].
    pub fn separate(prompt: &Prompt, completion: &[u32], layout: ImageLayout) -> Result<(Self, Vec<Target>)> {
        let mut packed = Packed::default();
        let mut targets = packed.push_group(prompt, &[completion], layout)?;
        if let [first, second] = packed.segments.as_mut_slice() {
            first.rows.end = second.rows.end;
            packed.segments.truncate(1);
        }
        Ok((packed, targets.pop().unwrap_or_default()))
    }

    /// Appends a prompt with its completions (none: the prompt alone, as in prefill). Returns, for
    /// each completion, one target per token, in order. Nothing is appended on an error.
    ///
    /// # Errors
    /// `Input` if the prompt is empty, if its positions do not match its tokens, if its placeholders
    /// do not match its images, or if a position exceeds an i32.
    pub fn push_group(
        &mut self,
        prompt: &Prompt,
        completions: &[&[u32]],
        layout: ImageLayout,
    ) -> Result<Vec<Vec<Target>>> {
        let length = prompt.tokens.len();
        if length == 0 {
            return Err(Error::Input("a prompt has no tokens".to_string()));
        }
        if prompt.positions_3t.iter().any(|axis| axis.len() != length) {
            return Err(Error::Input(format!(
                "a prompt of {length} tokens has {:?} positions on its three axes",
                prompt.positions_3t.each_ref().map(Vec::len)
            )));
        }
        let longest = completions.iter().map(|c| c.len()).max().unwrap_or(0);
        if i32::try_from(longest).ok().and_then(|n| prompt.next_position.checked_add(n)).is_none() {
            return Err(Error::Input(format!(
                "a completion of {longest} tokens from position {} exceeds the largest position",
                prompt.next_position
            )));
        }
        let image_rows = image_rows(&prompt.tokens, &prompt.images, layout)?;

        let start = self.tokens.len();
        let prefix = self.segments.len();
        self.tokens.extend_from_slice(&prompt.tokens);
        for (axis, positions) in self.positions_3t.iter_mut().zip(&prompt.positions_3t) {
            axis.extend_from_slice(positions);
        }
        self.segments.push(Segment { rows: start..start + length, prefix: None });
        self.images.extend(prompt.images.iter().zip(image_rows).map(|(patches, rows)| PackedImage {
            patches: patches.clone(),
            rows: start + rows.start..start + rows.end,
        }));

        let last_prompt_row = start + length - 1;
        let mut targets_g = Vec::with_capacity(completions.len());
        for completion in completions {
            let first_row = self.tokens.len();
            let inputs = completion.split_last().map_or(&[][..], |(_, inputs)| inputs);
            self.tokens.extend_from_slice(inputs);
            for axis in &mut self.positions_3t {
                axis.extend((prompt.next_position..).take(inputs.len()));
            }
            if !inputs.is_empty() {
                let rows = first_row..first_row + inputs.len();
                self.segments.push(Segment { rows, prefix: Some(prefix) });
            }
            let rows = std::iter::once(last_prompt_row).chain(first_row..);
            targets_g.push(completion.iter().zip(rows).map(|(&token, row)| Target { row, token }).collect());
        }
        Ok(targets_g)
    }

    /// Number of rows T.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The rows that every row of segment number `segment` attends to before its own segment's; empty
    /// without a prefix.
    pub fn prefix_rows(&self, segment: usize) -> Range<usize> {
        let prefix = self.segments.get(segment).and_then(|s| s.prefix);
        prefix.and_then(|p| self.segments.get(p)).map_or(0..0, |p| p.rows.clone())
    }

    /// Checks every promise of the fields, for input that was not built here.
    ///
    /// # Errors
    /// `Input`, saying which promise is broken where.
    pub fn validate(&self, layout: ImageLayout) -> Result<()> {
        let broken = |message: String| Err(Error::Input(format!("packed input: {message}")));
        let rows = self.len();
        let axes = self.positions_3t.each_ref().map(Vec::len);
        if axes != [rows; 3] {
            return broken(format!("{rows} tokens have {axes:?} positions on the three axes"));
        }
        let mut next = 0;
        for (index, segment) in self.segments.iter().enumerate() {
            let Range { start, end } = segment.rows;
            if start != next || end <= start || end > rows {
                return broken(format!(
                    "segment {index} has rows {start}..{end}; expected a non-empty range from row {next} within {rows} rows"
                ));
            }
            next = end;
            if let Some(prefix) = segment.prefix {
                let earlier = self.segments.get(prefix).filter(|_| prefix < index);
                if earlier.is_none_or(|p| p.prefix.is_some()) {
                    return broken(format!(
                        "segment {index} has segment {prefix} as its prefix, which is not an earlier one without a prefix"
                    ));
                }
            }
        }
        if next != rows {
            return broken(format!("segments cover {next} of {rows} rows"));
        }
        let mut free = 0;
        for (index, image) in self.images.iter().enumerate() {
            check_patches(index, &image.patches)?;
            let Range { start, end } = image.rows;
            let wanted = layout.tokens_of(&image.patches)?;
            let Some(tokens) = self.tokens.get(start..end).filter(|_| start >= free) else {
                return broken(format!(
                    "image {index} has rows {start}..{end}; expected a range from row {free} on within {rows} rows"
                ));
            };
            if tokens.len() != wanted {
                return broken(format!(
                    "image {index} has {} rows but {wanted} merged patches",
                    tokens.len()
                ));
            }
            if let Some(at) = tokens.iter().position(|t| *t != layout.image_token_id) {
                return broken(format!(
                    "row {} of image {index} holds token {} instead of the placeholder {}",
                    start + at,
                    tokens[at],
                    layout.image_token_id
                ));
            }
            if !self.segments.iter().any(|s| s.rows.start <= start && end <= s.rows.end) {
                return broken(format!("image {index} (rows {start}..{end}) crosses a segment's border"));
            }
            free = end;
        }
        Ok(())
    }
}

/// For each image, the run of placeholder tokens in `tokens` that it fills.
fn image_rows(tokens: &[u32], images: &[Patches], layout: ImageLayout) -> Result<Vec<Range<usize>>> {
    let placeholders = tokens.iter().filter(|t| **t == layout.image_token_id).count();
    let mut from = 0;
    let mut found = Vec::with_capacity(images.len());
    let mut filled = 0;
    for (index, patches) in images.iter().enumerate() {
        check_patches(index, patches)?;
        let wanted = layout.tokens_of(patches)?;
        let rest = tokens.get(from..).unwrap_or_default();
        let start = from + rest.iter().take_while(|t| **t != layout.image_token_id).count();
        let run = tokens[start..].iter().take(wanted).take_while(|t| **t == layout.image_token_id).count();
        if run != wanted {
            return Err(Error::Input(format!(
                "image {index} needs {wanted} consecutive placeholder tokens ({}), but the prompt has {run} \
                 in its place",
                layout.image_token_id
            )));
        }
        from = start + wanted;
        filled += wanted;
        found.push(start..from);
    }
    if filled != placeholders {
        return Err(Error::Input(format!(
            "the prompt has {placeholders} image placeholder tokens ({}), but its {} images fill {filled}",
            layout.image_token_id,
            images.len()
        )));
    }
    Ok(found)
}

/// The bytes of an image have to be whole patches.
fn check_patches(index: usize, patches: &Patches) -> Result<()> {
    let count = patches.grid_thw.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).unwrap_or(0);
    if count == 0 || patches.bytes.is_empty() || !patches.bytes.len().is_multiple_of(count) {
        return Err(Error::Input(format!(
            "image {index} has {} bytes for a grid of {:?} patches, which is not the same number for each",
            patches.bytes.len(),
            patches.grid_thw
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
