//! Rewards computed by a process of the user's, which speaks JSON lines on its standard input and output.
//!
//! One request for each completion:
//!
//! ```json
//! {"id": 7, "prompt": [{"role": "user", "content": "..."}], "completion": "...", "completion_ids": [1, 2],
//!  "images": ["/path/a.png"], "columns": {"solution": "3"}, "step": 0, "max_steps": 100, "epoch": 0.0,
//!  "last": false}
//! ```
//!
//! and one answer for each request, in any order, one of
//!
//! ```json
//! {"id": 7, "reward": 0.5}
//! {"id": 7, "reward": null}
//! {"id": 7, "error": "why there is none"}
//! ```
//!
//! All completions of a batch are sent without waiting for answers; the last one says so. An image that the dataset holds as
//! bytes comes as a `data:` URI. `step` is the number of optimiser steps done, of `max_steps` (0 outside of training, as `epoch` is).
//!
//! Each completion has a deadline of its own: an answer has to come in time after the one before. A process that works on
//! several at once says so before it begins, by a line `{"takes": 5}`, and then has five times as long for its next answer, of
//! more than ten ten times: who never answers shall be found out.
//!
//! A process that takes long to get ready may say so: `{"ready": false}` first, and `{"ready": true}` when it is. It has ten
//! times as long for that, and the run begins once it is ready.
//!
//! What is computed never depends on timing: an answer is whose id it has. A process that ends, or gives no answer for too
//! long, is ended with its whole group and started again, and the completions without an answer are sent again: together,
//! and after a second failure one by one, so that the third one is the fault of a known completion. What is no crash but a
//! mistake (a line that is no answer, an unknown id, a second answer) is an error at once.

mod protocol;
mod words;
mod worker;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Completed, Notes, Progress, Reward};
use crate::error::{Error, Result};
use crate::rollout::Watch;

use protocol::{Line, Said, line, request};
use words::Words;
use worker::{Ended, Worker};

/// Failures in a row, no answer between them, after which a reward is given up.
const MOST_FAILURES: usize = 3;
/// Completions taken at once have so many times `reward_timeout` at most; so has what gets ready.
const MOST_TIMES: usize = 10;
/// Requests are made while fewer bytes than this wait to be written.
const AHEAD_BYTES: usize = 1 << 16;
/// How long the process may take to end by itself once nothing more is asked.
const END_GRACE: Duration = Duration::from_secs(2);
/// Time before the process is started again, for each failure in a row.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// Time in which a command that cannot be started at all is noticed, and in which it may say that it gets ready.
const START_TIME: Duration = Duration::from_millis(500);
/// Longest wait between two looks at the watch and the clock.
const TICK: Duration = Duration::from_millis(20);

/// A reward that a process computes.
pub struct External {
    name: String,
    session: Mutex<Session>,
}

impl External {
    /// The reward `name`, computed by `command`, which `sh` runs; `timeout` is what it has for each completion.
    /// `notes` is told what the process says on standard error, and of its failures.
    pub fn new(name: &str, command: &str, timeout: Duration, notes: Notes) -> External {
        let session = Session {
            name: name.to_owned(),
            command: command.to_owned(),
            timeout,
            worker: None,
            next_id: 0,
            progress: Progress::default(),
            words: Words::new(name, notes),
        };
        External { name: name.to_owned(), session: Mutex::new(session) }
    }
}

impl Reward for External {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self, watch: Watch<'_>) -> Result<()> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).try_out(watch)
    }

    fn progress(&self, progress: Progress) {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).progress = progress;
    }

    fn score(&self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let scores = session.score(completions, watch);
        if scores.is_err() {
            // It may still owe answers, which nobody waits for.
            session.end(Duration::ZERO);
        }
        scores
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.session.get_mut().unwrap_or_else(PoisonError::into_inner).end(END_GRACE);
    }
}

/// Why a process has to be started again.
enum Failure {
    /// It ended, or will not answer.
    Over,
    /// It gave no answer in so many times the timeout.
    Late(usize),
    /// The system refused.
    System(std::io::Error),
}

impl Failure {
    /// How long the process may take to end by itself: whether it was ending tells what was wrong.
    fn grace(&self) -> Duration {
        match self {
            Failure::Over => Duration::from_millis(300),
            Failure::Late(_) | Failure::System(_) => Duration::ZERO,
        }
    }
}

/// A reward's process, if one runs, and what was asked of it.
struct Session {
    name: String,
    command: String,
    timeout: Duration,
    worker: Option<Worker>,
    next_id: u64,
    progress: Progress,
    words: Words,
}

impl Session {
    /// Starts the process ahead of time, waits for one that says that it gets ready, and fails where it ends.
    fn try_out(&mut self, watch: Watch<'_>) -> Result<()> {
        let (mut start, mut limit, mut promised) = (Instant::now(), START_TIME, false);
        let mut failure = None;
        while failure.is_none() && start.elapsed() < limit {
            watch(0)?;
            match self.worker().and_then(|worker| worker.exchange(TICK)) {
                Ok(heard) => {
                    heard.said.into_iter().for_each(|text| self.words.say(text));
                    for text in heard.answers.iter().filter(|text| !is_blank(text)) {
                        match line(text) {
                            Ok(Line::Ready(false)) => {
                                (start, promised) = (Instant::now(), true);
                                limit = self.timeout.saturating_mul(MOST_TIMES as u32);
                            }
                            Ok(Line::Ready(true)) => return Ok(()),
                            _ => {
                                let what = format!("was asked nothing yet, and wrote {}", shown(text));
                                return Err(self.mistake(&what));
                            }
                        }
                    }
                    failure = heard.is_over.then_some(Failure::Over);
                }
                Err(error) => failure = Some(Failure::System(error)),
            }
        }
        let failure = match failure {
            None if !promised => return Ok(()),
            None => Failure::Late(MOST_TIMES),
            Some(failure) => failure,
        };
        let ended = self.end(failure.grace());
        Err(self.given_up(&failure, ended, None))
    }

    fn worker(&mut self) -> std::io::Result<&mut Worker> {
        match &mut self.worker {
            Some(worker) => Ok(worker),
            none => Ok(none.insert(Worker::start(&self.command)?)),
        }
    }

    fn end(&mut self, grace: Duration) -> Option<Ended> {
        let words = &mut self.words;
        self.worker.take().map(|mut worker| worker.end(grace, &mut |line| words.say(line)))
    }

    fn score(&mut self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let first_id = self.next_id;
        self.next_id += completions.len() as u64;
        let mut batch = Batch { completions, first_id, scores: vec![None; completions.len()] };
        let (mut in_a_row, mut failures) = (0, 0);
        loop {
            let mut owed = batch.owed();
            if owed.is_empty() {
                return Ok(batch.scores.into_iter().flatten().collect());
            }
            if failures >= MOST_FAILURES - 1 {
                owed.truncate(1);
            }
            let Err(failure) = self.ask(&mut batch, &owed, watch)? else {
                in_a_row = 0;
                continue;
            };
            let has_answered = owed.iter().any(|&i| batch.scores[i].is_some());
            in_a_row = if has_answered { 1 } else { in_a_row + 1 };
            failures += 1;
            let ended = self.end(failure.grace());
            if in_a_row >= MOST_FAILURES {
                let guilty = (owed.len() == 1).then(|| &batch.completions[owed[0]]);
                return Err(self.given_up(&failure, ended, guilty));
            }
            self.words.note(&format!("{}; starting it again", self.reason(&failure, ended)));
            let start = Instant::now();
            while start.elapsed() < RESTART_DELAY * in_a_row as u32 {
                watch(0)?;
                std::thread::sleep(TICK);
            }
        }
    }

    /// Asks for the completions `owed`, and takes answers until each has one. The inner error is the process's failure.
    fn ask(
        &mut self,
        batch: &mut Batch<'_>,
        owed: &[usize],
        watch: Watch<'_>,
    ) -> Result<std::result::Result<(), Failure>> {
        let mut to_send = owed.iter().copied().peekable();
        let mut left = owed.len();
        // Those of an announcement that have no answer yet; whether the process gets ready.
        let (mut taken, mut getting_ready): (usize, bool) = (0, false);
        let (mut heard_last, mut told) = (Instant::now(), false);
        while left > 0 {
            watch(0)?;
            let progress = self.progress;
            let worker = match self.worker() {
                Ok(worker) => worker,
                Err(error) => return Ok(Err(Failure::System(error))),
            };
            while worker.waiting() < AHEAD_BYTES
                && let Some(i) = to_send.next()
            {
                let is_last = to_send.peek().is_none();
                let id = batch.first_id + i as u64;
                worker.send(&request(id, &batch.completions[i], progress, is_last));
            }
            let heard = match worker.exchange(TICK) {
                Ok(heard) => heard,
                Err(error) => return Ok(Err(Failure::System(error))),
            };
            heard.said.into_iter().for_each(|line| self.words.say(line));
            for text in heard.answers.iter().filter(|text| !is_blank(text)) {
                match line(text).map_err(|wrong| self.mistake(&format!("wrote {wrong}")))? {
                    Line::Takes(count) if count == 0 || count > left - taken => {
                        let rest = left - taken;
                        return Err(
                            self.mistake(&format!("said that it takes {count} of {rest} completions"))
                        );
                    }
                    Line::Takes(count) => taken += count,
                    Line::Ready(is_ready) => getting_ready = !is_ready,
                    Line::Answer(id, said) => {
                        self.take(batch, owed, id, said)?;
                        left -= 1;
                        taken = taken.saturating_sub(1);
                    }
                }
                (heard_last, told) = (Instant::now(), false);
            }
            if heard.answers.is_empty() && heard.is_over {
                return Ok(Err(Failure::Over));
            }
            let times = if getting_ready { MOST_TIMES } else { taken.clamp(1, MOST_TIMES) };
            if heard_last.elapsed() < self.timeout || left == 0 {
                continue;
            }
            if heard_last.elapsed().as_secs_f64() >= self.timeout.as_secs_f64() * times as f64 {
                return Ok(Err(Failure::Late(times)));
            }
            if !told && taken > 0 {
                let (one, all) = (self.timeout.as_secs_f64(), self.timeout.as_secs_f64() * times as f64);
                self.words.note(&format!(
                    "no answer for {one} s; the {taken} completions that it took have {all} s"
                ));
                told = true;
            }
        }
        Ok(Ok(()))
    }

    /// Puts an answer where it belongs.
    fn take(&mut self, batch: &mut Batch<'_>, owed: &[usize], id: u64, said: Said) -> Result<()> {
        let place = id.checked_sub(batch.first_id).and_then(|place| usize::try_from(place).ok());
        let Some(place) = place.filter(|place| owed.binary_search(place).is_ok()) else {
            return Err(self.mistake(&format!("answered the id {id}, which it was not asked for")));
        };
        if batch.scores[place].is_some() {
            return Err(self.mistake(&format!("answered the id {id} twice")));
        }
        match said {
            Said::Reward(reward) => batch.scores[place] = Some(reward),
            Said::Error(text) => {
                let failed = format!("the reward `{}` failed: {text}", self.name);
                return Err(Error::Reward(at_row(&failed, &batch.completions[place])));
            }
        }
        Ok(())
    }

    /// The error of a process that does not keep to the protocol.
    fn mistake(&self, what: &str) -> Error {
        Error::Reward(format!(
            "the command of the reward `{}` {what}; it has to write one line {{\"id\": .., \"reward\": number or null}} for \
             each line that it reads, {{\"takes\": N}} before it works on N of them at once, and nothing else (what it has to say \
             otherwise belongs on standard error)",
            self.name
        ))
    }

    /// The error of a process that fails again and again.
    fn given_up(&mut self, failure: &Failure, ended: Option<Ended>, guilty: Option<&Completed<'_>>) -> Error {
        let last = self.words.take_last();
        let said = if last.is_empty() { String::new() } else { format!("; it said: {last}") };
        let mend = match (failure, ended.and_then(Ended::code)) {
            (Failure::Late(_), _) => "mend it, or raise --reward_timeout",
            (Failure::Over, Some(126 | 127)) => "--reward_command is NAME=COMMAND, run by sh",
            _ => "mend it",
        };
        let message = format!(
            "the reward `{}` cannot be computed: its command {}{said}; {mend}: {}",
            self.name,
            self.reason(failure, ended),
            self.command
        );
        Error::Reward(match guilty {
            Some(completed) => at_row(&message, completed),
            None => message,
        })
    }

    fn reason(&self, failure: &Failure, ended: Option<Ended>) -> String {
        match (failure, ended) {
            (Failure::Late(1), _) => {
                format!("gave no answer for {} s (--reward_timeout)", self.timeout.as_secs_f64())
            }
            (Failure::Late(times), _) => format!(
                "gave no answer for {times} times {} s (--reward_timeout, for what it said that it does)",
                self.timeout.as_secs_f64()
            ),
            (Failure::Over, Some(ended)) => ended.to_string(),
            (Failure::Over, None) => "ended".into(),
            (Failure::System(error), _) => format!("cannot be run: {error}"),
        }
    }
}

/// A message with the row whose completion it is about.
fn at_row(message: &str, completed: &Completed<'_>) -> String {
    completed.sample.blame(Error::Input(message.into())).to_string()
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// The start of a line that should not be there.
fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned()
}

/// Completions to score, and the scores that there are.
struct Batch<'a> {
    completions: &'a [Completed<'a>],
    first_id: u64,
    /// `None` while it is owed; `Some(None)` where the reward does not apply.
    scores: Vec<Option<Option<f64>>>,
}

impl Batch<'_> {
    fn owed(&self) -> Vec<usize> {
        (0..self.scores.len()).filter(|&i| self.scores[i].is_none()).collect()
    }
}

#[cfg(test)]
mod tests;
