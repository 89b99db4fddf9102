//! The rows of an experiment: drawn, or found where they were fetched to.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::plan::{DATA, Mixture, TaskData, text};
use super::recipe::{Recipe, Start, TaskRecipe, TaskRows, WarmUp};
use crate::checkpoint::{create_dir_all, replace_file};
use crate::config::ReproduceConfig;
use crate::data::{MAX_LINE_BYTES, objects};
use crate::disk::{Disk, SystemDisk};
use crate::error::{Error, Result};
use crate::report::Progress;
use crate::tasks::{self, Difficulty, Task, TaskOptions};

/// Where the rows of each task are, or will be.
///
/// # Errors
/// [`Error::Usage`] for a path that is not UTF-8.
pub fn locate(recipe: &Recipe, options: &ReproduceConfig) -> Result<[TaskData; 2]> {
    let one = |task: &TaskRecipe| of_task(task, options);
    Ok([one(&recipe.tasks[0])?, one(&recipe.tasks[1])?])
}

fn of_task(task: &TaskRecipe, options: &ReproduceConfig) -> Result<TaskData> {
    let own = options.output_dir.join(DATA);
    Ok(match &task.rows {
        TaskRows::Drawn { .. } => {
            let rows = own.join(&task.name);
            let words = vec!["--dataset".to_owned(), text(&rows)?];
            let validation = Some(rows.join("validation.jsonl"));
            TaskData { train: words.clone(), test: words, validation }
        }
        TaskRows::Published { train, .. } => {
            let fetched = data_dir(options);
            let local = local_train(fetched, train);
            let name = if local.is_dir() { text(&local)? } else { train.clone() };
            TaskData {
                train: vec!["--dataset".into(), name],
                test: vec![
                    "--dataset".into(),
                    text(&mapped(&own, task))?,
                    "--image_dir".into(),
                    text(fetched)?,
                ],
                validation: None,
            }
        }
    })
}

/// Where published data was fetched to.
pub fn data_dir(options: &ReproduceConfig) -> &Path {
    options.data_dir.as_deref().unwrap_or(Path::new("."))
}

/// Where a dataset of the hub lies under the data folder.
pub fn local_train(data_dir: &Path, dataset: &str) -> PathBuf {
    data_dir.join(dataset.rsplit('/').next().unwrap_or(dataset))
}

fn mapped(own: &Path, task: &TaskRecipe) -> PathBuf {
    own.join(format!("{}-test.jsonl", task.name))
}

/// Makes the rows, unless they are there.
///
/// # Errors
/// [`Error::Missing`] for published data that was not fetched; [`Error::Content`] for rows that are not as expected;
/// [`Error::Io`].
pub fn prepare(recipe: &Recipe, options: &ReproduceConfig) -> Result<()> {
    let own = options.output_dir.join(DATA);
    if own.is_dir() {
        return Ok(());
    }
    let io = |path: &Path, action| {
        let path = path.to_path_buf();
        move |e| Error::io(path, action, e)
    };
    // Whole or not at all: what a run cut short left is made again.
    let partial = options.output_dir.join(format!("{DATA}.partial"));
    if partial.exists() {
        SystemDisk.remove_dir_all(&partial).map_err(io(&partial, "remove the unfinished data"))?;
    }
    create_dir_all(&SystemDisk, &partial)?;
    match &recipe.start {
        Start::WarmUp(warm_up) => draw(recipe, warm_up, &partial, options.quiet.quiet)?,
        Start::Checkpoint(_) => recipe.tasks.iter().try_for_each(|task| map_test(task, options, &partial))?,
    }
    SystemDisk.rename(&partial, &own).map_err(io(&own, "rename the data"))?;
    SystemDisk.sync(&options.output_dir).map_err(io(&options.output_dir, "force to disk"))
}

/// Draws both tasks, and puts rows aside for validation and for the warm-up.
fn draw(recipe: &Recipe, warm_up: &WarmUp, dir: &Path, quiet: bool) -> Result<()> {
    let mut set_aside: [Vec<String>; 2] = Default::default();
    for (index, task) in recipe.tasks.iter().enumerate() {
        let mixture_rows = warm_up.mixture_rows[index];
        let TaskRows::Drawn { task: drawn, difficulty, question_type } = &task.rows else {
            return Err(Error::Internal(format!("{} is not drawn, but is to be warmed up", task.name)));
        };
        let (drawn, difficulty): (Task, Difficulty) = (drawn.parse()?, difficulty.parse()?);
        let kind = |name: &String| drawn.question(name, difficulty).map(|question| question.kind);
        let (train, validation) = (warm_up.train_rows, warm_up.validation_rows);
        let options = TaskOptions {
            difficulty,
            seed: warm_up.data_seed,
            train: train + validation + mixture_rows,
            test: warm_up.test_rows,
            image_size: warm_up.image_side,
            question_type: question_type.as_ref().map(kind).transpose()?,
        };
        let folder = dir.join(&task.name);
        let progress =
            Progress::start(&format!("draw {}", task.name), (options.train + options.test) as u64, quiet);
        tasks::write(drawn, &options, &folder, &|| progress.advance(1))?;
        progress.finish();
        let path = folder.join("train.jsonl");
        let rows = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let rows: Vec<&str> = rows.lines().collect();
        let write = |name: &str, rows: &[&str]| {
            replace_file(&SystemDisk, &folder.join(name), (rows.join("\n") + "\n").as_bytes())
        };
        write("validation.jsonl", &rows[train..train + validation])?;
        let moved = rows[train + validation..].iter().map(|row| moved(row, &task.name));
        set_aside[index] = moved.collect::<Result<_>>()?;
        write("train.jsonl", &rows[..train])?;
    }
    for mixture in Mixture::EACH {
        let (all, other) = (&set_aside[mixture.all_of], &set_aside[1 - mixture.all_of]);
        let text = [&all[..], &other[..other.len() / mixture.one_in]].concat().join("\n") + "\n";
        replace_file(&SystemDisk, &dir.join(mixture.file(recipe)), text.as_bytes())?;
    }
    Ok(())
}

/// A row whose image is named from the folder above.
fn moved(row: &str, folder: &str) -> Result<String> {
    let broken = |e| Error::Internal(format!("a drawn row is no JSON object: {e}"));
    let mut row: Map<String, Value> = serde_json::from_str(row).map_err(broken)?;
    let image = row.get("image").and_then(Value::as_str).unwrap_or_default();
    let image = format!("{folder}/{image}");
    row.insert("image".into(), image.into());
    Ok(Value::from(row).to_string())
}

/// Writes R1-V's test prompts (`image_path`, `question`, `ground_truth`) as rows of `image`, `problem`, `solution`.
fn map_test(task: &TaskRecipe, options: &ReproduceConfig, dir: &Path) -> Result<()> {
    let TaskRows::Published { test, test_rows, .. } = &task.rows else {
        return Err(Error::Internal(format!("{} is drawn, but starts from a checkpoint", task.name)));
    };
    let source = data_dir(options).join(test);
    if !source.is_file() {
        return Err(Error::missing(
            &source,
            "there are no test prompts; --dry_run prints the commands that fetch them",
        ));
    }
    let (mut rows, mut count) = (String::new(), 0);
    for object in objects(&source, MAX_LINE_BYTES)? {
        let (line, object) = object?;
        let bad = |what: String| Error::content(&source, format!("line {line}: {what}"));
        let field = |name: &str| match object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            _ => Err(bad(format!(
                "has no {name}; rows of R1-V's test prompts have image_path, question, ground_truth"
            ))),
        };
        let image_path = field("image_path")?;
        let image = find_image(data_dir(options), &image_path).ok_or_else(|| {
            bad(format!(
                "the image {image_path:?} is not under {}; unpack the images there",
                data_dir(options).display()
            ))
        })?;
        let row = json!({
            "image": image,
            "problem": field("question")?,
            "solution": format!("<answer> {} </answer>", field("ground_truth")?),
        });
        rows += &row.to_string();
        rows.push('\n');
        count += 1;
    }
    if count != *test_rows {
        let wrong = format!("has {count} rows, and the paper's test has {test_rows}; fetch the file again");
        return Err(Error::content(&source, wrong));
    }
    replace_file(&SystemDisk, &mapped(dir, task), rows.as_bytes())
}

/// The file under `dir` that a path from another machine names: its longest tail that is there. Nothing leads out of `dir`.
fn find_image(dir: &Path, path: &str) -> Option<String> {
    let names: Vec<&str> = Path::new(path)
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let tails = (0..names.len()).map(|first| names[first..].join("/"));
    tails.into_iter().find(|tail| dir.join(tail).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_their_longest_tail_and_only_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("Geo170K/images/test")).unwrap();
        fs::write(root.join("Geo170K/images/test/0.png"), "").unwrap();
        fs::write(root.join("0.png"), "").unwrap();
        fs::write(dir.path().join("out.png"), "").unwrap();
        let found = |path: &str| find_image(&root, path);
        assert_eq!(found("./Geo170K/images/test/0.png").as_deref(), Some("Geo170K/images/test/0.png"));
        assert_eq!(found("/home/x/Geo170K/images/test/0.png").as_deref(), Some("Geo170K/images/test/0.png"));
        assert_eq!(found("images/other/0.png").as_deref(), Some("0.png"));
        assert_eq!(found("../out.png"), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn moved_rows_keep_their_columns() {
        let row = moved(r#"{"image":"images/a.png","problem":"p","solution":"s"}"#, "counting").unwrap();
        assert_eq!(row, r#"{"image":"counting/images/a.png","problem":"p","solution":"s"}"#);
    }
}
