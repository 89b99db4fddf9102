//! The command line: `run` parses, dispatches, and turns every outcome into one line and an exit code.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use crate::config::HardwareOptions;
use crate::error::{Error, Result};
use crate::report::console::one_line;
use crate::tensor::{Device, Placement};

pub mod arguments;

mod data;
mod demo;
mod doctor;
mod eval;
mod explain;
mod generate;
mod grpo;
mod inputs;
mod inspect;
mod output;
mod parity;
pub mod reproduce;
mod reward;
mod score;
mod sft;
mod tasks;
mod training;

use arguments::{Command, Request, TasksCommand};

/// Runs the program; `arguments` starts with its name.
///
/// One message on standard error whatever goes wrong, a panic included, and the exit code of the error's class.
/// A reader of standard output that has gone away (`| head`) ends the program silently with 0.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let panicked = record_panics();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let outcome = catch_unwind(AssertUnwindSafe(|| match arguments::parse(arguments)? {
        Request::Show(text) => print(&text),
        Request::Run(command) => dispatch(&command),
    }))
    .unwrap_or_else(|_| {
        let message = panicked.lock().ok().and_then(|mut message| message.take());
        Err(Error::Internal(message.unwrap_or_else(|| "panic without a message".to_owned())))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell it to when standard error is closed too.
            let _ = writeln!(std::io::stderr(), "error: {}", one_line(&error.to_string()));
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: &Command) -> Result<()> {
    match command {
        Command::Demo(options) => demo::run(options),
        Command::Grpo(options) => grpo::train(options),
        Command::Sft(options) => sft::train(options),
        Command::Eval(options) => eval::run(options),
        Command::Generate(options) => generate::run(options),
        Command::Parity(options) => parity::run(options),
        Command::Score(options) => score::run(options),
        Command::Reward(options) => reward::run(options),
        Command::Tasks(TasksCommand::Make(task)) => tasks::run(task),
        Command::Reproduce(options) => reproduce::run(options),
        Command::Data(command) => data::run(command),
        Command::Inspect(options) => inspect::run(options),
        Command::Doctor(options) => doctor::run(options),
    }
}

/// Opens the device and sets the number of threads. Gives the device and the storage type to compute in.
///
/// # Errors
/// [`Error::Device`] for a device that this build or machine does not have.
fn prepare(hardware: &HardwareOptions) -> Result<Placement> {
    let (device, passed_over) = Device::open(hardware.device)?;
    if let Some(reason) = passed_over {
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "computing on the CPU: {}", one_line(&reason.to_string()));
    }
    if let Some(threads) = hardware.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|e| Error::Usage(format!("--threads {threads}: {e}")))?;
    }
    Ok(Placement::new(device, hardware.dtype))
}

/// Writes a text to standard output.
///
/// # Errors
/// [`Error::Io`]; with [`ErrorKind::BrokenPipe`] when the reader has gone, which [`run`] takes as a quiet end.
pub fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Error::io("standard output", "write", error))
}

/// Replaces the panic hook by one that keeps the latest panic's message and place, and prints nothing. (An earlier one may
/// have been caught: an image decoder's.)
fn record_panics() -> &'static Mutex<Option<String>> {
    static LATEST: Mutex<Option<String>> = Mutex::new(None);
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("panic without a message");
        let place =
            panic.location().map_or(String::new(), |place| format!(" at {}:{}", place.file(), place.line()));
        if let Ok(mut latest) = LATEST.lock() {
            *latest = Some(format!("{message}{place}"));
        }
    }));
    &LATEST
}
