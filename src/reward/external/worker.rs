//! A long-lived child process that is spoken to by lines, and that nothing it does can make hang.
//!
//! All reading and writing is done by one [`Worker::exchange`] with a time limit, on pipes that never block: a process
//! that reads nothing, writes nothing or writes without end costs its own time only, and a bounded buffer.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Longest line of an answer, in bytes.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Longest line of standard error that is kept whole, in bytes; of a longer one, the start.
const MAX_SAID_BYTES: usize = 1000;
/// Most bytes read from a pipe at once.
const READ_BYTES: usize = 1 << 16;
/// How long a process may take to end when it is asked to.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// Longest wait between two looks at whether the process has ended.
const TICK: Duration = Duration::from_millis(20);

/// A process of its own group, with pipes to its three standard streams.
pub(super) struct Worker {
    child: Child,
    group: Pid,
    /// `None` once it is closed, by us or by the process.
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    outgoing: Vec<u8>,
    sent: usize,
    answers: Lines,
    said: Lines,
    over: Option<Ended>,
}

/// What came in one exchange.
#[derive(Default)]
pub(super) struct Heard {
    /// Lines of standard output; what stands behind the last line end is none.
    pub(super) answers: Vec<Vec<u8>>,
    /// Lines of standard error.
    pub(super) said: Vec<String>,
    /// Whether nothing more will come: the process has ended, or has closed one of its two ends.
    pub(super) is_over: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// By itself, or by somebody else's signal.
    Alone(ExitStatus),
    /// By our signal.
    Asked,
}

impl Ended {
    /// The exit code of a process that ended by itself.
    pub(super) fn code(self) -> Option<i32> {
        match self {
            Ended::Alone(status) => status.code(),
            Ended::Asked => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Alone(status) => match (status.code(), status.signal()) {
                (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
                (code, _) => write!(f, "ended with exit code {}", code.unwrap_or_default()),
            },
            Ended::Asked => write!(f, "closed its standard input or output"),
        }
    }
}

impl Worker {
    /// Starts `command` by `sh -c`, in a process group of its own: a signal of the terminal does not reach it, and it can be
    /// ended with all that it has started.
    ///
    /// # Errors
    /// The system's, when there is no shell or no more process.
    pub(super) fn start(command: &str) -> io::Result<Worker> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let group = Pid::from_child(&child);
        let worker = Worker {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
            group,
            outgoing: Vec::new(),
            sent: 0,
            answers: Lines::new(MAX_ANSWER_BYTES),
            said: Lines::new(MAX_SAID_BYTES),
            over: None,
        };
        // From here on an error drops the worker, which ends the process.
        worker.stdin.as_ref().map_or(Ok(()), |pipe| rustix::io::ioctl_fionbio(pipe, true))?;
        worker.stdout.as_ref().map_or(Ok(()), |pipe| rustix::io::ioctl_fionbio(pipe, true))?;
        worker.stderr.as_ref().map_or(Ok(()), |pipe| rustix::io::ioctl_fionbio(pipe, true))?;
        Ok(worker)
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Puts a line behind those that wait to be written.
    pub(super) fn send(&mut self, line: &str) {
        self.outgoing.drain(..self.sent);
        self.sent = 0;
        self.outgoing.extend_from_slice(line.as_bytes());
        self.outgoing.push(b'\n');
    }

    /// Writes and reads what can be written and read now, after waiting up to `wait` for something to do.
    ///
    /// # Errors
    /// The system's; an end of the process is none.
    pub(super) fn exchange(&mut self, wait: Duration) -> io::Result<Heard> {
        self.wait_for_pipes(wait)?;
        let mut heard = Heard { is_over: !self.write()?, ..Heard::default() };
        let read = read_lines(&mut self.stdout, &mut self.answers, &mut heard.answers)?;
        let mut said = Vec::new();
        read_lines(&mut self.stderr, &mut self.said, &mut said)?;
        if self.stderr.is_none() {
            said.extend(self.said.rest());
        }
        heard.said = said.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        // A process that it has started may keep the pipe open; what stands in the pipe is read first.
        heard.is_over |= self.stdout.is_none() || (read == 0 && self.has_ended());
        Ok(heard)
    }

    fn wait_for_pipes(&self, wait: Duration) -> io::Result<()> {
        let mut pipes = Vec::with_capacity(3);
        if self.waiting() > 0 {
            pipes.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        }
        pipes.extend(self.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        pipes.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let wait = wait.min(TICK);
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut pipes, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the pipe takes. `false` once the process has closed its end.
    fn write(&mut self) -> io::Result<bool> {
        let Some(pipe) = &mut self.stdin else { return Ok(false) };
        while self.sent < self.outgoing.len() {
            match pipe.write(&self.outgoing[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    self.stdin = None;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether the process itself has ended. It stays in the system's table, so that its number and its group's stay its own.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.group), options), Ok(Some(_)))
    }

    /// Ends the process and all of its group: closes its standard input and gives it `grace` to end by itself, then asks it
    /// by SIGTERM, then kills. Gives how it ended; what it said meanwhile goes to `said`.
    pub(super) fn end(&mut self, grace: Duration, said: &mut dyn FnMut(String)) -> Ended {
        if let Some(over) = self.over {
            return over;
        }
        self.stdin = None;
        let alone = self.ends_within(grace, said);
        if !alone {
            // A group that is gone needs no signal.
            let _ = kill_process_group(self.group, Signal::TERM);
        }
        let ended = alone || self.ends_within(TERM_GRACE, said);
        // Also after the process itself has gone: what it has started goes with it.
        let _ = kill_process_group(self.group, Signal::KILL);
        if !ended {
            self.ends_within(TERM_GRACE, said);
        }
        (self.stdout, self.stderr) = (None, None);
        // One that does not even end now waits for the system; we do not wait for it.
        let status = self.has_ended().then(|| self.child.wait().ok()).flatten();
        let over = status.filter(|_| alone).map_or(Ended::Asked, Ended::Alone);
        self.over = Some(over);
        over
    }

    /// Waits for the end of the process, and reads what would keep it from ending.
    fn ends_within(&mut self, grace: Duration, said: &mut dyn FnMut(String)) -> bool {
        let start = Instant::now();
        loop {
            // Read once more after the end, for the last words.
            let ended = self.has_ended();
            if let Ok(heard) = self.exchange(TICK) {
                heard.said.into_iter().for_each(&mut *said);
            }
            if ended || start.elapsed() >= grace {
                return ended;
            }
            if self.stdout.is_none() && self.stderr.is_none() {
                std::thread::sleep(TICK);
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end(TERM_GRACE, &mut |_| {});
    }
}

/// Reads what a pipe holds, up to [`READ_BYTES`], into lines. Gives the number of bytes; closes the pipe at its end.
fn read_lines(
    pipe: &mut Option<impl Read>,
    lines: &mut Lines,
    found: &mut Vec<Vec<u8>>,
) -> io::Result<usize> {
    let Some(open) = pipe else { return Ok(0) };
    let mut buffer = [0; READ_BYTES];
    loop {
        return match open.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                Ok(0)
            }
            Ok(count) => {
                lines.push(&buffer[..count], found);
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
    }
}

/// Cuts bytes into lines of bounded length: of a longer one, the first `most` bytes and one more are given, as soon as they
/// are there, and the rest is left out.
struct Lines {
    most: usize,
    line: Vec<u8>,
    /// Whether the line that is being read was given already.
    is_given: bool,
}

impl Lines {
    fn new(most: usize) -> Lines {
        Lines { most, line: Vec::new(), is_given: false }
    }

    fn push(&mut self, bytes: &[u8], found: &mut Vec<Vec<u8>>) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            if !self.is_given {
                let room = self.most + 1 - self.line.len();
                self.line.extend_from_slice(&text[..text.len().min(room)]);
                if ends || self.line.len() > self.most {
                    found.push(std::mem::take(&mut self.line));
                    self.is_given = true;
                }
            }
            self.is_given &= !ends;
        }
    }

    /// The last line, if it has no end.
    fn rest(&mut self) -> Option<Vec<u8>> {
        (!self.line.is_empty()).then(|| std::mem::take(&mut self.line))
    }
}
