//! Progress on standard error: bars on a terminal, a plain line every few seconds elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::console::escape_control;

/// Time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one counted piece of work. Writing never fails: a closed standard error is no reason to stop.
#[derive(Debug)]
pub struct Progress {
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
    Silent,
}

impl Progress {
    /// Starts showing `label` and a count towards `total`; `quiet` shows nothing.
    pub fn start(label: &str, total: u64, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let display = if quiet {
            Display::Silent
        } else if std::io::stderr().is_terminal() && !dumb {
            let bar = ProgressBar::new(total);
            // The template is fixed; were it ever broken, indicatif's own style would do.
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>20} {bar:30} {pos}/{len} {elapsed} (left {eta}) {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            Display::Bar(bar)
        } else {
            Display::Lines(Mutex::new(Lines::new(label, total, Box::new(std::io::stderr()), LINE_INTERVAL)))
        };
        Progress { display }
    }

    /// Counts `by` more; may be called from any thread.
    pub fn advance(&self, by: u64) {
        match &self.display {
            Display::Bar(bar) => bar.inc(by),
            Display::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).advance(by),
            Display::Silent => {}
        }
    }

    /// Begins at `done`: that much was there before, and says nothing of the speed.
    pub fn skip(&self, done: u64) {
        match &self.display {
            Display::Bar(bar) => {
                bar.set_position(done);
                bar.reset_eta();
            }
            Display::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).done = done,
            Display::Silent => {}
        }
    }

    /// Shows a short text behind the bar, or on the next plain line.
    pub fn note(&self, text: &str) {
        let text = escape_control(text).into_owned();
        match &self.display {
            Display::Bar(bar) => bar.set_message(text),
            Display::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).note = text,
            Display::Silent => {}
        }
    }

    /// Prints whole lines, above the bar where there is one.
    pub fn line(&self, text: &str) {
        let text = escape_control(text);
        match &self.display {
            Display::Bar(bar) => bar.println(&text),
            Display::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).print(&text),
            Display::Silent => {}
        }
    }

    /// Ends with one line that says how long it took.
    pub fn finish(self) {
        match self.display {
            Display::Bar(bar) => {
                let line = done_line(&bar.prefix(), bar.position(), bar.elapsed());
                bar.finish_and_clear();
                // As in `Lines::print`.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
            Display::Lines(lines) => lines.into_inner().unwrap_or_else(PoisonError::into_inner).finish(),
            Display::Silent => {}
        }
    }
}

fn done_line(label: &str, done: u64, elapsed: Duration) -> String {
    format!("{label}: {done} in {:.1} s", elapsed.as_secs_f64())
}

struct Lines {
    label: String,
    total: u64,
    done: u64,
    note: String,
    output: Box<dyn Write + Send>,
    interval: Duration,
    started: Instant,
    printed: Instant,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lines({} {}/{})", self.label, self.done, self.total)
    }
}

impl Lines {
    fn new(label: &str, total: u64, output: Box<dyn Write + Send>, interval: Duration) -> Self {
        let now = Instant::now();
        let label = escape_control(label).into_owned();
        Lines { label, total, done: 0, note: String::new(), output, interval, started: now, printed: now }
    }

    fn advance(&mut self, by: u64) {
        self.done += by;
        if self.printed.elapsed() >= self.interval {
            let percent = (100 * self.done).checked_div(self.total).unwrap_or(100);
            let seconds = self.started.elapsed().as_secs_f64();
            let line = format!(
                "{}: {}/{} ({percent} %) {seconds:.0} s {}",
                self.label, self.done, self.total, self.note
            );
            self.print(line.trim_end());
        }
    }

    fn print(&mut self, line: &str) {
        // Work goes on when nobody listens any more.
        let _ = writeln!(self.output, "{line}");
        self.printed = Instant::now();
    }

    fn finish(mut self) {
        let line = done_line(&self.label, self.done, self.started.elapsed());
        self.print(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn lines(output: &Shared, interval: Duration) -> Progress {
        let lines = Lines::new("sft\u{1b}", 4, Box::new(output.clone()), interval);
        Progress { display: Display::Lines(Mutex::new(lines)) }
    }

    #[test]
    fn plain_lines_are_spaced_and_end_with_a_summary() {
        let output = Shared::default();
        let progress = lines(&output, Duration::from_secs(3600));
        progress.advance(1);
        progress.line("step\u{7}");
        progress.advance(3);
        progress.finish();
        assert_eq!(output.text(), "step\\u{7}\nsft\\u{1b}: 4 in 0.0 s\n");
    }

    #[test]
    fn plain_line_has_count_share_and_note() {
        let output = Shared::default();
        let progress = lines(&output, Duration::ZERO);
        progress.note("loss 1.2");
        progress.advance(1);
        assert_eq!(output.text(), "sft\\u{1b}: 1/4 (25 %) 0 s loss 1.2\n");
    }

    #[test]
    fn closed_output_does_not_stop_the_work() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let progress = Progress {
            display: Display::Lines(Mutex::new(Lines::new("x", 1, Box::new(Closed), Duration::ZERO))),
        };
        progress.advance(1);
        progress.finish();
    }
}
