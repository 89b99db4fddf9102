//! What a reward process says on standard error: shown, but not more than a reader can take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::reward::Notes;

/// Lines shown within one [`WINDOW`].
const MOST_LINES: usize = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// Lines kept for the message of an error.
const KEPT: usize = 5;

/// The words of one reward's processes.
pub(super) struct Words {
    name: String,
    notes: Notes,
    last: VecDeque<String>,
    begun: Instant,
    shown: usize,
    left_out: usize,
}

impl Words {
    pub(super) fn new(name: &str, notes: Notes) -> Words {
        let name = name.to_owned();
        Words { name, notes, last: VecDeque::new(), begun: Instant::now(), shown: 0, left_out: 0 }
    }

    /// Shows a line, or counts it where there were too many.
    pub(super) fn say(&mut self, line: String) {
        if self.begun.elapsed() >= WINDOW {
            self.settle();
        }
        if self.shown < MOST_LINES {
            self.shown += 1;
            self.note(&line);
        } else {
            self.left_out += 1;
        }
        self.last.truncate(KEPT - 1);
        self.last.push_front(line);
    }

    /// Tells how many lines were left out, if any, and begins a new window.
    fn settle(&mut self) {
        if self.left_out > 0 {
            self.note(&format!("({} more lines were left out)", self.left_out));
        }
        (self.begun, self.shown, self.left_out) = (Instant::now(), 0, 0);
    }

    /// Shows a line of ours.
    pub(super) fn note(&self, line: &str) {
        (self.notes)(&format!("reward {}: {line}", self.name));
    }

    /// The last words, for an error, and a new start.
    pub(super) fn take_last(&mut self) -> String {
        self.settle();
        let lines: Vec<String> = self.last.drain(..).rev().collect();
        lines.join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_flood_is_counted_and_the_last_words_are_kept() {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let sink = shown.clone();
        let mut words = Words::new("mine", Arc::new(move |line| sink.lock().unwrap().push(line.to_owned())));
        (0..1000).for_each(|i| words.say(format!("line {i}")));
        assert_eq!(words.take_last(), "line 995 | line 996 | line 997 | line 998 | line 999");
        assert_eq!(words.take_last(), "");
        let shown = shown.lock().unwrap();
        assert_eq!(shown.len(), 21);
        assert_eq!(shown[0], "reward mine: line 0");
        assert_eq!(shown[20], "reward mine: (980 more lines were left out)");
    }
}
