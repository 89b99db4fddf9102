//! Attention within windows: the order of the patches in which each window's stand together.

use crate::ops::attention::{Segment, Segments};
use crate::processor::Patches;

/// The patches of some images, window by window. Windows are squares of merge blocks, those of the last row and column as large as
/// what is left of the image; they come row by row, as do the blocks of each.
pub(super) struct Windows {
    /// The merge block at each place, by its number in the processor's order, over all images.
    order: Vec<usize>,
    /// One attention segment for each window.
    pub segments: Segments,
}

impl Windows {
    /// Windows of `side` merge blocks of `merge` patches a side. No window spans two frames.
    pub fn new(images: &[&Patches], merge: usize, side: usize) -> Windows {
        let (mut order, mut segments) = (Vec::new(), Vec::new());
        for image in images {
            let [frames, height, width] = image.grid_thw;
            let (rows, columns) = (height / merge, width / merge);
            for _ in 0..frames {
                let first = order.len();
                let corners = (0..rows)
                    .step_by(side)
                    .flat_map(|top| (0..columns).step_by(side).map(move |left| (top, left)));
                for (top, left) in corners {
                    let begin = order.len();
                    for y in top..top.saturating_add(side).min(rows) {
                        let x = left..left.saturating_add(side).min(columns);
                        order.extend(x.map(|x| first + y * columns + x));
                    }
                    let patches = merge * merge;
                    segments.push(Segment { rows: begin * patches..order.len() * patches, prefix: None });
                }
            }
        }
        Windows { order, segments: segments.into() }
    }

    /// What belongs to the patches, from the processor's order to that of the windows; the same number of items for each patch.
    pub fn arrange<T: Copy>(&self, items: &[T]) -> Vec<T> {
        let per_block = items.len().checked_div(self.order.len()).unwrap_or(0);
        self.order.iter().flat_map(|block| &items[block * per_block..][..per_block]).copied().collect()
    }

    /// The place of each merge block, in the processor's order.
    pub fn places(&self) -> Vec<usize> {
        let mut places = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(place, &block)| places[block] = place);
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn image(frames: usize, height: usize, width: usize) -> Patches {
        Patches { grid_thw: [frames, height, width], bytes: Arc::from([]) }
    }

    /// 3 x 5 blocks in windows of 2 x 2, then two frames of 1 x 3 blocks; drawn by hand.
    #[test]
    fn the_last_windows_are_smaller() {
        let (a, b) = (image(1, 6, 10), image(2, 2, 6));
        let windows = Windows::new(&[&a, &b], 2, 2);
        let want = [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
        assert_eq!(windows.order, want);
        let ends: Vec<usize> = windows.segments.iter().map(|s| s.rows.end / 4).collect();
        assert_eq!(ends, [4, 8, 10, 12, 14, 15, 17, 18, 20, 21]);
        let places = windows.places();
        assert!((0..21).all(|block| windows.order[places[block]] == block));
        let two_each: Vec<usize> = (0..42).collect();
        assert_eq!(windows.arrange(&two_each)[4..8], [10, 11, 12, 13]);
    }

    #[test]
    fn a_window_larger_than_the_image_is_the_image() {
        let windows = Windows::new(&[&image(1, 4, 6)], 2, usize::MAX);
        assert_eq!(windows.order, [0, 1, 2, 3, 4, 5]);
        assert_eq!(windows.segments.len(), 1);
        assert!(Windows::new(&[], 2, 3).arrange::<u8>(&[]).is_empty());
    }
}
