use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::data::{ReadOptions, read};

fn options(difficulty: Difficulty, train: usize, test: usize) -> TaskOptions {
    TaskOptions { difficulty, seed: 1, train, test, image_size: 112, question_type: None }
}

fn every() -> impl Iterator<Item = (Task, Difficulty)> {
    Task::ALL.into_iter().flat_map(|t| Difficulty::ALL.map(|d| (t, d)))
}

fn solutions(samples: &[Sample]) -> Vec<String> {
    samples.iter().map(|s| s.solution.clone().unwrap()).collect()
}

fn pixels(sample: &Sample) -> RgbImage {
    image::load_from_memory(&sample.images[0].encoded().unwrap()).unwrap().to_rgb8()
}

/// What is written is read back by the dataset reader as what is made in memory.
#[test]
fn folder_and_memory_agree() {
    let dir = tempfile::tempdir().unwrap();
    for (task, difficulty) in every() {
        let options = options(difficulty, 7, 5);
        let folder = dir.path().join(format!("{task}-{difficulty}"));
        let count = AtomicUsize::new(0);
        write(task, &options, &folder, &|| {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(count.into_inner(), 12);
        for split in Split::ALL {
            let read_options =
                ReadOptions { split: split.name().into(), need_solution: true, ..ReadOptions::default() };
            let read = read(&folder, &read_options).unwrap();
            let mut from_disk: Vec<_> = read.iter().map(Result::unwrap).collect();
            let in_memory = samples(task, &options, split, PromptTemplate::R1v).unwrap();
            for (a, b) in from_disk.iter_mut().zip(&in_memory) {
                assert_eq!(a.images[0].encoded().unwrap(), b.images[0].encoded().unwrap());
                a.images = b.images.clone();
                a.origin = None;
            }
            assert_eq!(from_disk, in_memory);
            let image = pixels(&in_memory[0]);
            assert_eq!(image.dimensions(), (112, 112));
            assert_eq!(Split::of_image(image_hash(&image)), split);
        }
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_half_written_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("set");
    fs::create_dir(&folder).unwrap();
    let error = write(Task::Counting, &options(Difficulty::Easy, 1, 1), &folder, &|| {}).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("exists already"), "{error}");
    let tiny = TaskOptions { image_size: 20, ..options(Difficulty::Easy, 1, 1) };
    let error = write(Task::Geometry, &tiny, &dir.path().join("new"), &|| {}).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("84 to 2048"), "{error}");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["set"]);
    assert!(fs::read_dir(&folder).unwrap().next().is_none());
}

/// Given the question, every answer is exactly as frequent as every other.
#[test]
fn answers_are_balanced_given_the_question() {
    for (task, difficulty) in every() {
        let questions = task.questions(difficulty);
        let round: usize = questions.iter().map(|q| q.answers.len()).sum();
        let mut options = options(difficulty, 0, 2 * round);
        options.image_size = task.smallest_side_px(difficulty).max(56);
        let drawn = samples(task, &options, Split::Test, PromptTemplate::None).unwrap();
        let mut counts: HashMap<String, HashMap<String, usize>> = HashMap::new();
        for (sample, solution) in drawn.iter().zip(solutions(&drawn)) {
            let question = format!("{:?}", sample.messages);
            *counts.entry(question).or_default().entry(solution).or_default() += 1;
        }
        assert_eq!(counts.len(), questions.len());
        for (question, answers) in &counts {
            assert!(answers.len() >= 5 && answers.values().all(|n| *n == 2), "{question}: {answers:?}");
        }
        let majority = majority_accuracy(&solutions(&drawn));
        let limit = if (task, difficulty) == (Task::Counting, Difficulty::Easy) { 0.2 } else { 0.17 };
        assert!(majority <= limit, "{task} {difficulty}: {majority}");
    }
}

/// The demo's size: 300 held-out images of the easy task, 60 for each of five answers.
#[test]
fn the_easy_test_split_is_stratified_exactly() {
    let options = TaskOptions { image_size: 56, ..options(Difficulty::Easy, 0, 300) };
    let drawn = samples(Task::Counting, &options, Split::Test, PromptTemplate::None).unwrap();
    assert_eq!(majority_accuracy(&solutions(&drawn)), 0.2);
}

/// No image of a test split is in any training split, whatever the seeds.
#[test]
fn splits_cannot_overlap() {
    for (task, difficulty) in every() {
        let mut owner: HashMap<Vec<u8>, Split> = HashMap::new();
        for seed in 0..3 {
            let mut options = options(difficulty, 60, 60);
            options.seed = seed;
            options.image_size = task.smallest_side_px(difficulty);
            for split in Split::ALL {
                let drawn = samples(task, &options, split, PromptTemplate::None).unwrap();
                let mut own = std::collections::HashSet::new();
                for sample in &drawn {
                    let image = pixels(sample);
                    assert_eq!(Split::of_image(image_hash(&image)), split);
                    assert!(own.insert(image.as_raw().clone()), "an image is in a split twice");
                    assert_eq!(*owner.entry(image.into_raw()).or_insert(split), split);
                }
            }
        }
    }
}

#[test]
fn seeds_repeat_exactly_and_rows_do_not_depend_on_their_number() {
    for (task, difficulty) in every() {
        let few = options(difficulty, 4, 0);
        let first = samples(task, &few, Split::Train, PromptTemplate::R1v).unwrap();
        assert_eq!(first, samples(task, &few, Split::Train, PromptTemplate::R1v).unwrap());
        let more =
            samples(task, &TaskOptions { train: 9, ..few }, Split::Train, PromptTemplate::R1v).unwrap();
        assert_eq!(first, more[..4]);
        let other =
            samples(task, &TaskOptions { seed: 2, ..few }, Split::Train, PromptTemplate::R1v).unwrap();
        assert!(first.iter().zip(&other).all(|(a, b)| a.images != b.images));
    }
}

/// Every blanked image is the same, so a blind policy has nothing but the question.
#[test]
fn blanked_images_are_all_alike() {
    let options = options(Difficulty::Medium, 6, 0);
    let drawn = samples(Task::Counting, &options, Split::Train, PromptTemplate::None).unwrap();
    let blanked: Vec<_> = drawn.iter().map(|s| blank_sample(s).unwrap()).collect();
    assert!(blanked.iter().all(|b| b.images == blanked[0].images));
    assert!(blanked.iter().zip(&drawn).all(|(b, s)| b.messages == s.messages && b.images != s.images));
}

/// The hash is FNV-1a with a finish: values from an independent implementation (Python).
#[test]
fn image_hash_is_fixed() {
    let black = RgbImage::new(1, 1);
    let ramp = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, (x + y) as u8]));
    assert_eq!([image_hash(&black), image_hash(&ramp)], [0xeb05_4c0f_782e_9ed1, 0x5e5d_4b10_152c_7365]);
}

#[test]
fn names_are_parsed_with_a_hint() {
    assert_eq!("Counting".parse::<Task>().unwrap(), Task::Counting);
    assert_eq!("hard".parse::<Difficulty>().unwrap(), Difficulty::Hard);
    let message = "geometri".parse::<Task>().unwrap_err().to_string();
    assert!(message.contains("did you mean `geometry`?"), "{message}");
}
