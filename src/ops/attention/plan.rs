//! The kernels' work lists: which block has which rows or keys (`kernels/attention.cuh`).

use super::{Attention, Segment};
use crate::cuda::{Buffer, Gpu, Grid, Purpose};
use crate::error::{Error, Result};
use crate::ops::launch::dimension;
use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

/// Keys of a tile; tokens of a page.
pub(super) const KEYS: usize = 64;

/// Of each segment its first row and number of rows, and the same of its prefix: `[S, 4]`.
pub(super) fn segments(op: &Attention) -> Result<Vec<i32>> {
    let mut list = Vec::with_capacity(4 * op.segments.len());
    for segment in op.segments.iter() {
        let prefix = segment.prefix_rows();
        prefix_of(op, segment)?;
        for n in [segment.rows.start, segment.rows.len(), prefix.start, prefix.len()] {
            list.push(dimension("attention", n)?);
        }
    }
    Ok(list)
}

/// The segment that is the prefix of another; none for an empty prefix.
fn prefix_of(op: &Attention, segment: &Segment) -> Result<Option<usize>> {
    let prefix = segment.prefix_rows();
    if prefix.is_empty() {
        return Ok(None);
    }
    match op.segments.binary_search_by_key(&prefix.start, |s| s.rows.start) {
        Ok(index) if op.segments[index].rows == prefix => Ok(Some(index)),
        _ => Err(Error::Internal(format!("attention: the prefix {prefix:?} is no segment"))),
    }
}

/// Tiles of `height` packed query rows, as `(segment, first packed row)`: `[*, 2]`. Those with the most keys come first, so
/// that no block begins with them when the others are about to end.
pub(super) fn query_tiles(op: &Attention, height: usize) -> Result<Vec<i32>> {
    let per_key = op.heads.per_key();
    let mut tiles = Vec::new();
    for (index, segment) in op.segments.iter().enumerate() {
        for first in (0..segment.rows.len() * per_key).step_by(height) {
            let last = (first + height).div_ceil(per_key).min(segment.rows.len()) - 1;
            tiles.push((segment.prefix_rows().len() + op.visible_own(segment, last), index, first));
        }
    }
    tiles.sort_by_key(|&(keys, ..)| Reverse(keys));
    let mut list = Vec::with_capacity(2 * tiles.len());
    for (_, index, first) in tiles {
        list.extend([dimension("attention", index)?, dimension("attention", first)?]);
    }
    Ok(list)
}

/// Tiles of keys, and the segments whose rows see them.
#[derive(Debug, PartialEq)]
pub(super) struct KeyTiles {
    /// `(segment, first key, begin and end of its part of viewers)`: `[*, 4]`; those seen by the most rows first.
    pub tiles: Vec<i32>,
    /// Segments: the keys' own, then those that have it as their prefix.
    pub viewers: Vec<i32>,
}

pub(super) fn key_tiles(op: &Attention) -> Result<KeyTiles> {
    let mut viewers_of: Vec<Vec<usize>> = (0..op.segments.len()).map(|index| vec![index]).collect();
    for (index, segment) in op.segments.iter().enumerate() {
        if let Some(prefix) = prefix_of(op, segment)? {
            viewers_of[prefix].push(index);
        }
    }
    let (mut tiles, mut viewers) = (Vec::new(), Vec::new());
    for (index, list) in viewers_of.iter().enumerate() {
        let begin = viewers.len();
        for &viewer in list {
            viewers.push(dimension("attention", viewer)?);
        }
        let rows = op.segments[index].rows.len();
        let others: usize = list[1..].iter().map(|&viewer| op.segments[viewer].rows.len()).sum();
        for first in (0..rows).step_by(KEYS) {
            let own = if op.causal { rows - first } else { rows };
            tiles.push((own + others, [index, first, begin, viewers.len()]));
        }
    }
    tiles.sort_by_key(|&(rows, _)| Reverse(rows));
    let numbers = tiles.iter().flat_map(|(_, tile)| tile);
    let tiles = numbers.map(|&n| dimension("attention", n)).collect::<Result<_>>()?;
    Ok(KeyTiles { tiles, viewers })
}

/// The work list of kernels that have query rows, on the GPU.
#[derive(Debug)]
pub(super) struct Queries {
    pub segments: Buffer<i32>,
    pub tiles: Buffer<i32>,
}

/// The work list of kernels that have keys, on the GPU.
#[derive(Debug)]
pub(super) struct Keys {
    pub tiles: Buffer<i32>,
    pub viewers: Buffer<i32>,
}

/// What tells work lists of the same segments apart: packed rows of a tile, query heads that share keys, causal or not.
type Shape = (usize, usize, bool);

/// Work lists in device memory, made by the first kernel that needs them and shared by all layers.
#[derive(Debug, Default)]
pub(super) struct WorkLists {
    queries: Mutex<Vec<(Shape, Arc<Queries>)>>,
    keys: Mutex<Vec<(Shape, Arc<Keys>)>>,
}

/// The list of this shape, made now if there is none.
fn shared<L>(
    lists: &Mutex<Vec<(Shape, Arc<L>)>>,
    shape: Shape,
    make: impl FnOnce() -> Result<L>,
) -> Result<Arc<L>> {
    let mut lists = lists.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, list)) = lists.iter().find(|(own, _)| *own == shape) {
        return Ok(list.clone());
    }
    let list = Arc::new(make()?);
    lists.push((shape, list.clone()));
    Ok(list)
}

impl Queries {
    pub(super) fn of(gpu: &Gpu, op: &Attention, height: usize) -> Result<Arc<Queries>> {
        let list = shared(&op.segments.work.queries, (height, op.heads.per_key(), op.causal), || {
            Ok(Queries {
                segments: gpu.upload(&segments(op)?, Purpose::Inputs)?,
                tiles: gpu.upload(&query_tiles(op, height)?, Purpose::Inputs)?,
            })
        })?;
        on_one_gpu(gpu, &list.tiles)?;
        Ok(list)
    }

    /// A block for each tile and key head.
    pub(super) fn grid(&self, op: &Attention, threads: u32) -> Result<Grid> {
        Grid::new_3d([self.tiles.len() / 2, op.heads.key, 1], threads)
    }
}

impl Keys {
    pub(super) fn of(gpu: &Gpu, op: &Attention) -> Result<Arc<Keys>> {
        let list = shared(&op.segments.work.keys, (KEYS, 1, op.causal), || {
            let keys = key_tiles(op)?;
            Ok(Keys {
                tiles: gpu.upload(&keys.tiles, Purpose::Inputs)?,
                viewers: gpu.upload(&keys.viewers, Purpose::Inputs)?,
            })
        })?;
        on_one_gpu(gpu, &list.tiles)?;
        Ok(list)
    }
}

fn on_one_gpu(gpu: &Gpu, list: &Buffer<i32>) -> Result<()> {
    if list.gpu() == gpu {
        return Ok(());
    }
    Err(Error::Internal("attention: the work lists are in the memory of another GPU".into()))
}

#[cfg(test)]
mod tests {
    use super::super::Heads;
    use super::*;

    fn group(causal: bool) -> Attention {
        let segments = vec![
            Segment { rows: 0..100, prefix: None },
            Segment { rows: 100..103, prefix: Some(0..100) },
            Segment { rows: 103..105, prefix: Some(0..0) },
            Segment { rows: 105..150, prefix: Some(0..100) },
        ];
        Attention { heads: Heads { query: 6, key: 2, dim: 16 }, segments: segments.into(), causal }
    }

    #[test]
    fn query_tiles_cover_all_packed_rows_and_begin_with_the_longest() -> Result<()> {
        let order = |causal| query_tiles(&group(causal), 64);
        // 300, 9, 6 and 135 packed rows; the last tile of 135 sees 145 keys.
        assert_eq!(order(true)?, [3, 128, 3, 64, 3, 0, 1, 0, 0, 256, 0, 192, 0, 128, 0, 64, 0, 0, 2, 0]);
        assert_eq!(order(false)?[..8], [3, 0, 3, 64, 3, 128, 1, 0]);
        assert_eq!(segments(&group(true))?, [0, 100, 0, 0, 100, 3, 0, 100, 103, 2, 0, 0, 105, 45, 0, 100]);
        Ok(())
    }

    #[test]
    fn key_tiles_know_who_sees_them() -> Result<()> {
        let want = |tiles: &[[i32; 4]]| KeyTiles { tiles: tiles.concat(), viewers: vec![0, 1, 3, 1, 2, 3] };
        let causal = [[0, 0, 0, 3], [0, 64, 0, 3], [3, 0, 5, 6], [1, 0, 3, 4], [2, 0, 4, 5]];
        assert_eq!(key_tiles(&group(true))?, want(&causal));
        assert_eq!(key_tiles(&group(false))?, want(&causal));
        Ok(())
    }

    #[test]
    fn a_prefix_is_a_segment() {
        let segments = [Segment { rows: 0..4, prefix: None }, Segment { rows: 4..6, prefix: Some(0..3) }];
        let op = Attention { segments: segments.into(), ..group(true) };
        assert!(segments_fail(&op) && key_tiles(&op).is_err());
    }

    fn segments_fail(op: &Attention) -> bool {
        segments(op).is_err()
    }
}
