//! How well a box in the answer covers the one in the solution.

use std::sync::LazyLock;

use regex::Regex;

use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// Intersection over union of the first box in the completion's first answer tag and the first box in the solution, from 0 to
/// 1; 0 for a completion without a tag or a box, `None` for a row whose solution has no box.
///
/// A box is `[x1, y1, x2, y2]`, alone or somewhere in JSON (`{"bbox_2d": [..]}`), or Qwen2-VL's `(x1,y1),(x2,y2)`. Both boxes
/// have to be in the same coordinates, whichever they are: pixels, thousandths, shares.
///
/// Source: VLM-R1's `iou_reward` for referring expressions. Differences: there an intersection at most one pixel wide or high
/// counts as none, coordinates are whole numbers, and newer versions scale the answer from the size at which the model sees
/// the image to that of the file.
pub struct Iou;

/// Four numbers in brackets, the first and the last two possibly in brackets of their own. Each is of bounded length.
static BOX: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"(-?[0-9]{1,20}(?:\.[0-9]{0,20})?)";
    Regex::new(&format!(
        r"[\[(]\s*{number}\s*,\s*{number}\s*[)\]]?\s*,\s*[\[(]?\s*{number}\s*,\s*{number}\s*[\])]"
    ))
    .expect("the pattern is constant")
});

/// Left, top, right, bottom.
type Corners = [f64; 4];

/// How much of a text is looked at, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// The first box in a text.
fn first_box(text: &str) -> Option<Corners> {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|&end| text.is_char_boundary(end))?;
    let groups = BOX.captures(&text[..end])?;
    let mut sides = [0.0; 4];
    for (side, group) in sides.iter_mut().zip(groups.iter().skip(1)) {
        *side = group?.as_str().parse().ok()?;
    }
    Some(sides)
}

/// The text in the first answer tag.
fn tagged(text: &str) -> Option<&str> {
    let (_, behind) = text.split_once("<answer>")?;
    behind.split_once("</answer>").map(|(inside, _)| inside)
}

/// 0 for a box without an area.
fn intersection_over_union(a: Corners, b: Corners) -> f64 {
    let area = |b: Corners| (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0);
    let shared = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    if shared > 0.0 { shared / (area(a) + area(b) - shared) } else { 0.0 }
}

impl Reward for Iou {
    fn name(&self) -> &str {
        "iou"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let of = |c: &Completed<'_>| {
            let wanted = first_box(c.sample.solution.as_deref()?)?;
            let given = tagged(c.text).and_then(first_box);
            Some(given.map_or(0.0, |given| intersection_over_union(given, wanted)))
        };
        Ok(completions.iter().map(of).collect())
    }

    fn needs_solution(&self) -> bool {
        true
    }
}
