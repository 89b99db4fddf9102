use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const PAD: u32 = 900;
const LAYOUT: ImageLayout = ImageLayout { image_token_id: PAD, spatial_merge_size: 2 };

fn image(h: usize, w: usize) -> Patches {
    Patches { grid_thw: [1, h, w], bytes: Arc::from(vec![7u8; h * w * 12]) }
}

/// A prompt whose positions differ on every axis, so that mixed-up axes show.
fn prompt(tokens: Vec<u32>, images: Vec<Patches>) -> Prompt {
    let n = tokens.len() as i32;
    let positions_3t = [0, 1000, 2000].map(|base| (base..base + n).collect());
    Prompt { tokens, positions_3t, next_position: 50, images, text: String::new() }
}

fn pairs(targets: &[Target]) -> Vec<(usize, u32)> {
    targets.iter().map(|t| (t.row, t.token)).collect()
}

#[test]
fn a_group_by_hand() {
    let p = prompt(vec![1, PAD, PAD, 2], vec![image(2, 4)]);
    let (packed, targets) =
        Packed::group(&p, &[&[10, 11, 12], &[20], &[], &[30, 31]], LAYOUT).expect("valid");
    assert_eq!(packed.tokens, [1, PAD, PAD, 2, 10, 11, 30]);
    assert_eq!(packed.positions_3t[0], [0, 1, 2, 3, 50, 51, 50]);
    assert_eq!(packed.positions_3t[2], [2000, 2001, 2002, 2003, 50, 51, 50]);
    let segment = |rows, prefix| Segment { rows, prefix };
    assert_eq!(packed.segments, [segment(0..4, None), segment(4..6, Some(0)), segment(6..7, Some(0))]);
    assert_eq!((packed.images.len(), packed.images[0].rows.clone()), (1, 1..3));
    // Every first token is predicted by row 3, the prompt's last.
    assert_eq!(pairs(&targets[0]), [(3, 10), (4, 11), (5, 12)]);
    assert_eq!(pairs(&targets[1]), [(3, 20)]);
    assert_eq!(pairs(&targets[2]), []);
    assert_eq!(pairs(&targets[3]), [(3, 30), (6, 31)]);
    assert_eq!((packed.prefix_rows(0), packed.prefix_rows(2)), (0..0, 0..4));
    packed.validate(LAYOUT).expect("valid");
}

#[test]
fn adjacent_images_share_a_run_of_placeholders() {
    let p = prompt(vec![PAD, PAD, PAD, 5], vec![image(2, 2), image(4, 2)]);
    let (packed, _) = Packed::group(&p, &[], LAYOUT).expect("valid");
    assert_eq!(packed.images.iter().map(|i| i.rows.clone()).collect::<Vec<_>>(), [0..1, 1..3]);
}

#[test]
fn a_placeholder_in_a_completion_is_a_plain_token() {
    let p = prompt(vec![1], vec![]);
    let (packed, targets) = Packed::group(&p, &[&[PAD, 3]], LAYOUT).expect("valid");
    assert!(packed.images.is_empty());
    assert_eq!(pairs(&targets[0]), [(0, PAD), (1, 3)]);
    packed.validate(LAYOUT).expect("valid");
}

#[test]
fn bad_prompts_are_refused_and_leave_nothing_behind() {
    let mut short = prompt(vec![1, 2], vec![]);
    short.positions_3t[1].pop();
    let mut far = prompt(vec![1, 2], vec![]);
    far.next_position = i32::MAX - 1;
    let mut ragged = prompt(vec![PAD], vec![image(2, 2)]);
    ragged.images[0].bytes = Arc::from(vec![0u8; 13]);
    let cases = [
        ("no tokens", prompt(vec![], vec![])),
        ("positions on its three axes", short),
        ("largest position", far),
        ("bytes", ragged),
        ("needs 2 consecutive", prompt(vec![1, PAD, 2], vec![image(2, 4)])),
        ("needs 2 consecutive", prompt(vec![PAD, 2, PAD], vec![image(2, 4)])),
        ("needs 1 consecutive", prompt(vec![PAD, 2], vec![image(2, 2), image(2, 2)])),
        ("fill 0", prompt(vec![1, PAD], vec![])),
        ("fill 1", prompt(vec![PAD, PAD], vec![image(2, 2)])),
        ("multiples of spatial_merge_size", prompt(vec![PAD], vec![image(2, 3)])),
    ];
    let good = prompt(vec![1, PAD], vec![image(2, 2)]);
    for (message, bad) in cases {
        let (mut packed, _) = Packed::group(&good, &[&[1, 2]], LAYOUT).expect("valid");
        let before = packed.clone();
        let error = packed.push_group(&bad, &[&[1, 2, 3]], LAYOUT).expect_err(message);
        assert!(matches!(&error, Error::Input(m) if m.contains(message)), "{error}, not {message}");
        assert_eq!(packed, before, "{message}");
    }
}

#[test]
fn validation_names_the_broken_promise() {
    let p = prompt(vec![1, PAD, PAD, 2], vec![image(2, 2), image(2, 2)]);
    let (good, _) = Packed::group(&p, &[&[5, 6], &[7, 8, 9]], LAYOUT).expect("valid");
    good.validate(LAYOUT).expect("valid");
    type Break = fn(&mut Packed);
    let cases: [(&str, Break); 13] = [
        ("positions", |p| p.positions_3t[2].push(0)),
        ("segment 1 has rows", |p| p.segments[1].rows.start += 1),
        ("segment 1 has rows", |p| p.segments[1].rows.end = 4),
        ("segment 2 has rows", |p| p.segments[2].rows.end = 100),
        ("segments cover 5 of 7", |p| p.segments.truncate(2)),
        ("as its prefix", |p| p.segments[2].prefix = Some(1)),
        ("as its prefix", |p| p.segments[0].prefix = Some(1)),
        ("as its prefix", |p| p.segments[1].prefix = Some(1)),
        ("image 1 has rows 1..2; expected a range from row 2", |p| p.images[1].rows = 1..2),
        ("image 1 has rows", |p| p.images[1].rows = 7..8),
        ("instead of the placeholder", |p| p.tokens[2] = 3),
        ("2 rows but 1", |p| p.images[1].rows = 2..4),
        ("crosses a segment", |p| {
            p.images.truncate(1);
            p.images[0] = PackedImage { patches: image(2, 4), rows: 3..5 };
            p.tokens[3..5].fill(PAD);
        }),
    ];
    for (message, damage) in cases {
        let mut packed = good.clone();
        damage(&mut packed);
        let error = packed.validate(LAYOUT).expect_err(message);
        assert!(matches!(&error, Error::Input(m) if m.contains(message)), "{error}, not {message}");
    }
}

/// A prompt of text and images, at least one text token at the end.
fn any_prompt() -> impl Strategy<Value = Prompt> {
    let piece = (prop::collection::vec(0u32..PAD, 0..4), prop::option::of((1usize..4, 1usize..4)));
    (prop::collection::vec(piece, 0..4), 0u32..PAD, 0i32..1000).prop_map(|(pieces, last, next)| {
        let (mut tokens, mut images) = (Vec::new(), Vec::new());
        for (text, grid) in pieces {
            tokens.extend(text);
            if let Some((h, w)) = grid {
                tokens.extend(vec![PAD; h * w]);
                images.push(image(2 * h, 2 * w));
            }
        }
        tokens.push(last);
        Prompt { next_position: next, ..prompt(tokens, images) }
    })
}

type Group = (Prompt, Vec<Vec<u32>>);

fn any_group() -> impl Strategy<Value = Group> {
    (any_prompt(), prop::collection::vec(prop::collection::vec(0u32..PAD, 0..6), 0..5))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Taking each completion's rows and its prefix's out of a pack of several groups gives back the
    /// separate sequence: tokens, positions, images and targets.
    #[test]
    fn packing_unpacks_to_the_separate_sequences(groups in prop::collection::vec(any_group(), 1..4)) {
        let mut packed = Packed::default();
        let mut segments = 0;
        let mut rows = 0;
        for (prompt, completions) in &groups {
            let slices: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
            let targets_g = packed.push_group(prompt, &slices, LAYOUT).expect("valid");
            packed.validate(LAYOUT).expect("valid");
            prop_assert_eq!(targets_g.len(), completions.len());

            let prefix = segments;
            let prompt_rows = packed.segments[prefix].rows.clone();
            prop_assert_eq!(prompt_rows.clone(), rows..rows + prompt.tokens.len());
            segments += 1;
            for (completion, targets) in completions.iter().zip(&targets_g) {
                let mut own = prompt_rows.clone().collect::<Vec<usize>>();
                if completion.len() > 1 {
                    prop_assert_eq!(packed.prefix_rows(segments), prompt_rows.clone());
                    own.extend(packed.segments[segments].rows.clone());
                    segments += 1;
                }
                let (alone, alone_targets) = Packed::separate(prompt, completion, LAYOUT).expect("valid");
                alone.validate(LAYOUT).expect("valid");
                prop_assert_eq!(alone.segments.len(), 1);
                let tokens: Vec<u32> = own.iter().map(|r| packed.tokens[*r]).collect();
                prop_assert_eq!(&tokens, &alone.tokens);
                for axis in 0..3 {
                    let positions: Vec<i32> = own.iter().map(|r| packed.positions_3t[axis][*r]).collect();
                    prop_assert_eq!(&positions, &alone.positions_3t[axis]);
                }
                let images: Vec<PackedImage> = packed.images.iter()
                    .filter(|i| prompt_rows.contains(&i.rows.start))
                    .map(|i| PackedImage {
                        patches: i.patches.clone(),
                        rows: i.rows.start - prompt_rows.start..i.rows.end - prompt_rows.start,
                    })
                    .collect();
                prop_assert_eq!(&images, &alone.images);
                // Targets: every completion token once and in order, each predicted by the row before it.
                let written: Vec<u32> = targets.iter().map(|t| t.token).collect();
                prop_assert_eq!(&written, completion);
                let predicted: Vec<Target> = targets.iter()
                    .map(|t| Target { row: own.iter().position(|r| *r == t.row).expect("own row"), ..*t })
                    .collect();
                prop_assert_eq!(&predicted, &alone_targets);
                for (j, target) in alone_targets.iter().enumerate() {
                    prop_assert_eq!(target.row, prompt.tokens.len() - 1 + j);
                }
            }
            rows = packed.len();
        }
        prop_assert_eq!(segments, packed.segments.len());
        // No row without a use: prompts, and one row less than tokens for each completion.
        let expected: usize = groups.iter()
            .map(|(p, cs)| p.tokens.len() + cs.iter().map(|c| c.len().saturating_sub(1)).sum::<usize>())
            .sum();
        prop_assert_eq!(packed.len(), expected);
    }
}
