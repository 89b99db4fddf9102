//! From scored completions to micro-batches of packed input.

use crate::error::{Error, Result};
use crate::packed::{ImageLayout, Packed, Target};
use crate::processor::Prompt;
use std::ops::Range;

/// A prompt and the completions that are computed behind it.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The prompt.
    pub prompt: &'a Prompt,
    /// Token ids of each completion.
    pub completions: Vec<&'a [u32]>,
}

/// What one forward and backward pass sees.
#[derive(Clone, Debug, Default)]
pub struct MicroBatch {
    /// The model's input: every prompt once, its completions behind it.
    pub packed: Packed,
    /// The completions' tokens, completion after completion.
    pub targets: Vec<Target>,
    /// Where each completion's targets start, and the end: `B + 1` entries.
    pub offsets: Vec<usize>,
    /// Which completions these are, counted over all groups.
    pub members: Range<usize>,
}

/// Cuts groups into micro-batches of `size` completions (the last may be smaller), in order.
///
/// Completions of one group that fall into the same micro-batch share their prompt's rows; a group that is cut
/// repeats its prompt in each part, which changes nothing but the cost.
pub fn micro_batches(groups: &[Group<'_>], size: usize, layout: ImageLayout) -> Result<Vec<MicroBatch>> {
    if size == 0 {
        return Err(Error::Internal("micro-batches of no completions".into()));
    }
    let mut batches: Vec<MicroBatch> = Vec::new();
    let mut seen = 0;
    for group in groups {
        let mut rest = &group.completions[..];
        while !rest.is_empty() {
            let room = match batches.last() {
                Some(last) if last.members.len() < size => size - last.members.len(),
                _ => {
                    batches.push(MicroBatch {
                        offsets: vec![0],
                        members: seen..seen,
                        ..MicroBatch::default()
                    });
                    size
                }
            };
            let (part, later) = rest.split_at(room.min(rest.len()));
            rest = later;
            seen += part.len();
            if let Some(batch) = batches.last_mut() {
                batch.push(group.prompt, part, layout)?;
            }
        }
    }
    Ok(batches)
}

impl MicroBatch {
    fn push(&mut self, prompt: &Prompt, completions: &[&[u32]], layout: ImageLayout) -> Result<()> {
        for targets in self.packed.push_group(prompt, completions, layout)? {
            self.targets.extend(targets);
            self.offsets.push(self.targets.len());
        }
        self.members.end += completions.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: ImageLayout = ImageLayout { image_token_id: 99, spatial_merge_size: 2 };

    fn prompt(tokens: &[u32]) -> Prompt {
        let positions: Vec<i32> = (0..tokens.len() as i32).collect();
        Prompt {
            tokens: tokens.to_vec(),
            next_position: tokens.len() as i32,
            positions_3t: std::array::from_fn(|_| positions.clone()),
            images: Vec::new(),
            text: String::new(),
        }
    }

    #[test]
    fn a_cut_group_repeats_its_prompt() -> Result<()> {
        let (a, b) = (prompt(&[1, 2]), prompt(&[3]));
        let (x, y): (&[u32], &[u32]) = (&[7, 8], &[9]);
        let groups =
            [Group { prompt: &a, completions: vec![x, y, x] }, Group { prompt: &b, completions: vec![y, x] }];
        let batches = micro_batches(&groups, 2, LAYOUT)?;
        let members: Vec<_> = batches.iter().map(|b| b.members.clone()).collect();
        assert_eq!(members, [0..2, 2..4, 4..5]);
        assert_eq!(batches[0].packed.tokens, [1, 2, 7]);
        assert_eq!(batches[1].packed.tokens, [1, 2, 7, 3]);
        assert_eq!(batches[1].offsets, [0, 2, 3]);
        assert_eq!(batches[2].targets, [Target { row: 0, token: 7 }, Target { row: 1, token: 8 }]);
        assert!(micro_batches(&groups, 0, LAYOUT).is_err());
        Ok(())
    }
}
