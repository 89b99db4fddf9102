//! The `othink-train` binary; everything is in [`othink::cli`].

fn main() -> std::process::ExitCode {
    othink::cli::run(std::env::args_os())
}
