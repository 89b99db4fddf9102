//! Rows made ready ahead of the step that needs them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rayon::prelude::*;

use crate::error::Result;

/// Threads that make the next step's rows ready, unless the caller says otherwise.
pub const READ_AHEAD: usize = 1;

/// Makes the next step's rows ready while the present one is computed: at most one step's rows are held.
///
/// What comes out is what would come out at the step itself, errors included, which are told at the step that needs the
/// row. The threads are not those of the computation: on a machine with few cores they take what it leaves.
pub struct Ahead<T> {
    workers: usize,
    job: Option<Job<T>>,
}

struct Job<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    rows: Vec<usize>,
    /// The next of `rows` that no thread has taken.
    next: AtomicUsize,
    done: Mutex<Vec<Option<Result<T>>>>,
    stop: AtomicBool,
}

impl<T: Send + 'static> Ahead<T> {
    /// Nothing is read yet; `workers` of 0 never reads ahead.
    pub fn new(workers: usize) -> Ahead<T> {
        Ahead { workers, job: None }
    }

    /// Starts on `rows`; what was begun before is given up.
    pub fn start(&mut self, rows: Vec<usize>, work: impl Fn(usize) -> Result<T> + Send + Sync + 'static) {
        self.give_up();
        let workers = self.workers.min(rows.len());
        if workers == 0 {
            return;
        }
        let done = Mutex::new(rows.iter().map(|_| None).collect());
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { rows, next, done, stop });
        let work = Arc::new(work);
        let spawn = |_| {
            let (shared, work) = (shared.clone(), work.clone());
            // A system without threads to spare reads at the step.
            thread::Builder::new().name("read ahead".into()).spawn(move || shared.run(&*work)).ok()
        };
        let threads = (0..workers).filter_map(spawn).collect();
        self.job = Some(Job { shared, threads });
    }

    /// What `work` makes of `rows`, in order: what was started, if it was on these rows, else now on all threads.
    ///
    /// # Errors
    /// That of the first row that has one.
    pub fn take(&mut self, rows: &[usize], work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        let begun = self.job.take_if(|job| job.shared.rows == rows);
        self.give_up();
        let Some(mut job) = begun else {
            // Not collected at once, so that the error is the first row's and not the first thread's.
            let made: Vec<Result<T>> = rows.par_iter().map(|&row| work(row)).collect();
            return made.into_iter().collect();
        };
        // A thread that has panicked leaves its row to be made here.
        job.threads.drain(..).for_each(|thread| drop(thread.join()));
        let done = std::mem::take(&mut *job.shared.done.lock().unwrap_or_else(PoisonError::into_inner));
        done.into_iter().zip(rows).map(|(made, &row)| made.unwrap_or_else(|| work(row))).collect()
    }

    fn give_up(&mut self) {
        self.job = None;
    }
}

impl<T> Shared<T> {
    fn run(&self, work: &(dyn Fn(usize) -> Result<T> + Sync)) {
        while !self.stop.load(Ordering::Relaxed) {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&row) = self.rows.get(place) else { return };
            let made = work(row);
            self.done.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(made);
        }
    }
}

/// A job that is dropped is not waited for: its threads end with the row that each is at.
impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn work(row: usize) -> Result<usize> {
        if row % 10 == 9 { Err(Error::Input(format!("row {row}"))) } else { Ok(2 * row) }
    }

    #[test]
    fn what_was_made_ahead_is_what_would_be_made_now() {
        for workers in [0, 1, 3] {
            let mut ahead = Ahead::new(workers);
            ahead.start(vec![3, 1, 2], work);
            // Made ahead: a step that asks for these rows makes none of them.
            let made = ahead.take(&[3, 1, 2], |row| if workers == 0 { work(row) } else { panic!("{row}") });
            assert_eq!(made.unwrap(), [6, 2, 4]);
            // Others are made now, and what was begun is given up.
            ahead.start(vec![1, 2], work);
            assert_eq!(ahead.take(&[5], work).unwrap(), [10]);
            assert_eq!(ahead.take(&[1, 2], work).unwrap(), [2, 4]);
            // The first row's error, at the step that needs it.
            ahead.start(vec![1, 19, 9], work);
            assert_eq!(ahead.take(&[1, 19, 9], work).unwrap_err().to_string(), "row 19");
        }
    }

    #[test]
    fn a_panic_ahead_is_a_row_to_be_made_at_the_step() {
        let mut ahead = Ahead::new(1);
        ahead.start(vec![1, 2], |row| if row == 1 { panic!("of the test") } else { Ok(row) });
        assert_eq!(ahead.take(&[1, 2], Ok).unwrap(), [1, 2]);
    }

    #[test]
    fn what_is_given_up_is_not_waited_for() {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let mut ahead = Ahead::new(1);
        ahead.start(vec![0, 1], move |row| {
            _ = wait.lock().unwrap().recv();
            Ok(row)
        });
        drop(ahead);
        drop(send);
    }
}
