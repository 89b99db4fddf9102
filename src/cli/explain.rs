//! Clap's errors in one sentence each.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::num::IntErrorKind;

use super::arguments::{PROGRAM, known_options};
use crate::config::file::ConfigFile;
use crate::config::names::{foreign, nearest, nearest_of_all};

/// One sentence for clap's error, with the nearest known name and the place in the config file.
pub(super) fn explain(
    error: &clap::Error,
    top: &clap::Command,
    command: &clap::Command,
    words: &str,
    file: Option<&ConfigFile>,
) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    let option = argument.split([' ', '=']).next().unwrap_or_default().to_owned();
    let origin = file.and_then(|file| file.origin(option.trim_start_matches('-')));
    let origin = origin.map_or(String::new(), |origin| format!("{origin}: "));
    let see = format!("see `{words} --help`");
    match error.kind() {
        ErrorKind::UnknownArgument if option.starts_with("--") => {
            let name = option.trim_start_matches("--");
            if let Some(advice) = foreign(name) {
                return format!("unknown option {option}: {advice} ({see})");
            }
            if let Some(owner) = owner(top, name) {
                return format!("unknown option {option} for `{words}`; `{PROGRAM} {owner}` has it ({see})");
            }
            let options = known_options(command);
            let names = || options.iter().map(|known| known.name.as_str());
            match (nearest(name, names()), nearest_of_all(name, names())) {
                (Some(meant), _) => format!("unknown option {option}; did you mean --{meant}? ({see})"),
                (None, Some(known)) => {
                    format!("unknown option {option}; the nearest known one is --{known} ({see})")
                }
                (None, None) => format!("unknown option {option} ({see})"),
            }
        }
        ErrorKind::UnknownArgument => format!("unexpected argument '{argument}' ({see})"),
        ErrorKind::InvalidSubcommand => {
            let given = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            let hint = nearest(&given, names.iter().copied()).map_or_else(
                || format!("it is one of {}", names.join(", ")),
                |name| format!("did you mean `{name}`?"),
            );
            format!("unknown command '{given}'; {hint} ({see})")
        }
        ErrorKind::InvalidValue => {
            let given = text(ContextKind::InvalidValue).unwrap_or_default();
            if given.is_empty() {
                return format!("{origin}{option} needs a value ({see})");
            }
            let allowed = text(ContextKind::ValidValue).unwrap_or_default();
            let allowed_names = allowed.split(", ").collect::<Vec<_>>();
            let hint = nearest(&given, allowed_names)
                .map_or(String::new(), |name| format!("; did you mean {name}?"));
            format!("{origin}{option} is '{given}', but must be one of {allowed}{hint}")
        }
        ErrorKind::ValueValidation => {
            let given = text(ContextKind::InvalidValue).unwrap_or_default();
            let reason = std::error::Error::source(error).map_or(String::new(), |reason| {
                let reason =
                    match reason.downcast_ref::<std::num::ParseIntError>().map(std::num::ParseIntError::kind)
                    {
                        Some(IntErrorKind::InvalidDigit | IntErrorKind::Empty) => {
                            "it has to be a whole number".to_owned()
                        }
                        _ => reason.to_string(),
                    };
                format!(": {reason}")
            });
            format!("{origin}{option} is '{given}'{reason} ({see})")
        }
        ErrorKind::ArgumentConflict if text(ContextKind::PriorArg).as_deref() == Some(&argument) => {
            format!("{option} is given more than once ({see})")
        }
        ErrorKind::MissingRequiredArgument => {
            format!("required: {argument} ({see})")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            format!("a command is missing after `{words}`: one of {} ({see})", names.join(", "))
        }
        _ => {
            // Clap's own first line, without its prefix.
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            format!("{} ({see})", line.trim_start_matches("error: "))
        }
    }
}

/// The first command that has the option `name`, as typed.
fn owner(top: &clap::Command, name: &str) -> Option<String> {
    let has = |command: &clap::Command| known_options(command).iter().any(|option| option.answers_to(name));
    top.get_subcommands().find(|command| has(command)).map(|command| command.get_name().to_owned())
}
