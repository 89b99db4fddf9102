//! `othink-train parity`: a table of differences from a reference, one line per tensor.

use std::fmt::Write;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::checkpoint::{NamedTensor, write_safetensors};
use crate::config::{DtypeChoice, ParityConfig};
use crate::error::{Error, Result};
use crate::hub;
use crate::parity::bundle::Bundle;
use crate::parity::compare::{Row, Verdict};
use crate::parity::{LARGE, Outcome};
use crate::processor::ProcessorOptions;
use crate::report::Progress;
use crate::report::console::{escape_control, one_line};
use crate::tensor::{DType, Placement};
use crate::train::policy::Policy;

/// Widest column of keys.
const MAX_KEY_WIDTH: usize = 64;

/// Runs the command: arithmetic is f32 on every device unless `--dtype bf16`.
///
/// # Errors
/// Those of the checkpoint and the bundle; [`Error::Protect`] when a tensor differs, after the table has been printed
/// and the dump written.
pub fn run(options: &ParityConfig) -> Result<()> {
    let mut placement = super::prepare(&options.hardware)?;
    if options.hardware.dtype == DtypeChoice::Auto {
        placement.dtype = DType::F32;
    }
    let model = hub::resolve(&options.model.model)?;
    let bundle = Bundle::open(options.bundle.as_deref().unwrap_or(&model))?;
    if let Some(dump) = &options.dump {
        check_dump(dump, &bundle)?;
    }
    let limits = bundle.pixel_limits();
    let processor = ProcessorOptions {
        min_pixels: limits.min_pixels,
        max_pixels: limits.max_pixels,
        chat_template_path: options.model.chat_template.clone(),
        ..ProcessorOptions::default()
    };
    let policy = Policy::load(&options.model.model, &processor, &Placement::HOST)?;
    for warning in policy.processor.warnings() {
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "warning: {}", one_line(&warning));
    }
    let progress = Progress::start("parity", bundle.stages(), policy.params.count().0 <= LARGE);
    let outcome = crate::parity::run(&policy, &bundle, &placement, options.dump.is_some(), &progress)?;
    progress.finish();
    super::print(&table(&outcome.rows))?;
    if let Some(dump) = &options.dump {
        write_dump(dump, &outcome)?;
    }
    let failed = outcome.rows.iter().filter(|row| row.failed()).count();
    if failed == 0 {
        return Ok(());
    }
    let first = outcome.rows.iter().find(|row| row.failed()).map_or("", |row| row.key.as_str());
    Err(Error::Protect(format!(
        "{failed} of {} tensors differ from the reference in {}, first {first}: see the rows marked FAIL",
        outcome.rows.len(),
        bundle.expected_path().display()
    )))
}

/// Refuses a dump that could not be written, or would replace the reference.
fn check_dump(dump: &Path, bundle: &Bundle) -> Result<()> {
    let folder = dump.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::missing(folder, "not a folder; --dump needs one to write into"));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(dump, bundle.expected_path()) {
        return Err(Error::Usage(format!("--dump {} would replace the expected values", dump.display())));
    }
    Ok(())
}

fn write_dump(path: &Path, outcome: &Outcome) -> Result<()> {
    let tensors: Vec<NamedTensor<'_>> = outcome
        .computed
        .iter()
        .map(|tensor| NamedTensor {
            name: &tensor.key,
            shape: &tensor.shape,
            values: tensor.values.to_file(),
        })
        .collect();
    let mut file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
    write_safetensors(&mut file, path, &tensors)?;
    file.sync_all().map_err(|e| Error::io(path, "force to disk", e))
}

/// The rows under a heading, and a last line that sums them up.
fn table(rows: &[Row]) -> String {
    let keys: Vec<_> = rows.iter().map(|row| escape_control(&row.key).into_owned()).collect();
    let shapes: Vec<_> = rows.iter().map(|row| format!("{:?}", row.shape)).collect();
    let widest = |texts: &[String], least: usize| {
        texts.iter().map(|t| t.chars().count()).max().unwrap_or(0).max(least)
    };
    let (key_width, shape_width) = (widest(&keys, 6).min(MAX_KEY_WIDTH), widest(&shapes, 5));
    let mut text = String::new();
    let mut line = |key: &str, shape: &str, cells: [&str; 3], verdict: &str| {
        let [max_abs, l2, limit] = cells;
        // Writing to a String cannot fail.
        let line =
            format!("{key:key_width$}  {shape:shape_width$}  {max_abs:>8}  {l2:>8}  {limit:>8}  {verdict}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("tensor", "shape", ["max abs", "rel l2", "limit"], "");
    for ((row, key), shape) in rows.iter().zip(&keys).zip(&shapes) {
        let verdict = match &row.verdict {
            Verdict::Ok => "ok".to_owned(),
            Verdict::Given => "ok (given)".to_owned(),
            Verdict::Skipped(reason) => format!("skipped ({reason})"),
            Verdict::Fail(reason) => format!("FAIL {reason}"),
        };
        let (max_abs, l2, limit) = match &row.measured {
            Some(m) => (format!("{:.1e}", m.max_abs), format!("{:.1e}", m.relative_l2), m.bound.to_string()),
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        line(key, shape, [&max_abs, &l2, &limit], &verdict);
    }
    let _ = writeln!(text, "{}", summary(rows));
    text
}

fn summary(rows: &[Row]) -> String {
    let count = |wanted: fn(&Verdict) -> bool| rows.iter().filter(|row| wanted(&row.verdict)).count();
    let ok = count(|v| matches!(v, Verdict::Ok | Verdict::Given));
    let skipped = count(|v| matches!(v, Verdict::Skipped(_)));
    let failed = count(|v| matches!(v, Verdict::Fail(_)));
    let mut text = format!("parity: {} tensors, {ok} ok, {failed} FAIL", rows.len());
    if skipped > 0 {
        let _ = write!(text, ", {skipped} skipped");
    }
    let ratios = rows.iter().filter_map(|row| Some((row.measured?.ratio()?, row)));
    if let Some((ratio, row)) = ratios.max_by(|a, b| a.0.total_cmp(&b.0)) {
        let _ = write!(text, "; largest error/limit {ratio:.3} ({})", escape_control(&row.key));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parity::compare::{Bound, Measured};

    fn row(key: &str, measured: Option<Measured>, verdict: Verdict) -> Row {
        Row { key: key.to_owned(), shape: vec![2, 3], measured, verdict }
    }

    #[test]
    fn a_line_per_tensor_and_a_summary() {
        let measured = |bound| Some(Measured { max_abs: 2.5e-5, relative_l2: 1e-6, bound });
        let rows = [
            row("ex0.logits", measured(Bound::MaxAbs(5e-5)), Verdict::Ok),
            row("ex0.gen_ids", None, Verdict::Skipped("in bfloat16")),
            row("new\u{1b}key", None, Verdict::Fail("unknown key".into())),
            row("grpo_e2e.rewards", None, Verdict::Given),
        ];
        let want = "\
tensor            shape    max abs    rel l2     limit\n\
ex0.logits        [2, 3]    2.5e-5    1.0e-6    5.0e-5  ok\n\
ex0.gen_ids       [2, 3]         -         -         -  skipped (in bfloat16)\n\
new\\u{1b}key      [2, 3]         -         -         -  FAIL unknown key\n\
grpo_e2e.rewards  [2, 3]         -         -         -  ok (given)\n\
parity: 4 tensors, 2 ok, 1 FAIL, 1 skipped; largest error/limit 0.500 (ex0.logits)\n";
        assert_eq!(table(&rows), want);
    }
}
