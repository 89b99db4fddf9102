//! Signals that ask a run to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// Whether somebody has asked the run to stop. Clones share the request.
///
/// The work asks between two tokens of a rollout and between two micro-batches, so it stops soon and at a place where
/// nothing is half done.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    /// Number of the signal; 0 while there was none.
    signal: Arc<AtomicUsize>,
}

/// How the process is asked to stop: by a scheduler, at the keyboard, by a batch system's warning, by a terminal that
/// goes.
#[cfg(unix)]
const SIGNALS: [i32; 4] = [
    signal_hook::consts::SIGTERM,
    signal_hook::consts::SIGINT,
    signal_hook::consts::SIGUSR1,
    signal_hook::consts::SIGHUP,
];
#[cfg(not(unix))]
const SIGNALS: [i32; 2] = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];

impl Interrupt {
    /// Listens to SIGTERM, SIGINT, SIGUSR1 and SIGHUP. The first one is a request; one that comes a second or more later
    /// ends the process at once, as if nobody listened. (What comes sooner is the same request: `timeout` and batch
    /// systems signal a process and then its group.) A signal that the parent process has switched off (nohup) stays off.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses.
    pub fn by_signals() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let insistent = Arc::new(AtomicBool::new(false));
        for signal in SIGNALS.into_iter().filter(|&signal| !is_ignored(signal)) {
            signal_hook::flag::register_conditional_default(signal, insistent.clone())
                .and_then(|_| {
                    signal_hook::flag::register_usize(signal, interrupt.signal.clone(), signal as usize)
                })
                .map_err(|e| Error::Io { path: "signals".into(), action: "listen", source: e })?;
        }
        let signal = interrupt.signal.clone();
        let wait = move || {
            while signal.load(Ordering::Relaxed) == 0 {
                thread::sleep(Duration::from_millis(100));
            }
            thread::sleep(Duration::from_secs(1));
            insistent.store(true, Ordering::Relaxed);
        };
        thread::Builder::new().name("signals".into()).spawn(wait).map_err(|source| Error::Io {
            path: "signals".into(),
            action: "start the thread that counts",
            source,
        })?;
        Ok(interrupt)
    }

    /// Asks to stop, as the signal would.
    pub fn request(&self, signal: usize) {
        self.signal.store(signal, Ordering::Relaxed);
    }

    /// Fails once somebody has asked to stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => {
                let name = i32::try_from(signal).ok().and_then(signal_hook::low_level::signal_name);
                Err(Error::Interrupted(match name {
                    Some(name) => format!("stopped by {name}"),
                    None => format!("stopped by signal {signal}"),
                }))
            }
        }
    }
}

/// Whether the process was started with this signal switched off. Only Linux tells without unsafe code.
fn is_ignored(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_by_every_clone_and_named() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        assert!(clone.check().is_ok());
        interrupt.request(15);
        let error = clone.check().unwrap_err();
        assert_eq!(error.exit_code(), 75);
        assert_eq!(error.to_string(), "stopped by SIGTERM");
        interrupt.request(1000);
        assert_eq!(clone.check().unwrap_err().to_string(), "stopped by signal 1000");
    }
}
