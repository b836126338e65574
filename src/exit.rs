//! Exit statuses, and docker's manner of refusing a command line: 0 done, 1 failed, 125 wrong flags, 130 interrupted.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::Refusal;
use crate::{cancel, catalogue, report};

/// The command failed, or doctor found a problem. Docker's status of an unknown command and of a wrong number of
/// arguments too.
pub const FAILED: u8 = 1;
/// A flag was wrong.
pub const USAGE: u8 = 125;

/// Reports a failed command and returns the exit status.
pub fn failed(error: &anyhow::Error) -> u8 {
    match cancel::exit_code() {
        Some(code) => code,
        None => {
            report::error(error);
            FAILED
        }
    }
}

/// Answers help and version on standard output; refuses anything else in docker's words, and returns the exit status.
pub fn refused(refusal: &Refusal) -> u8 {
    let Refusal { error, command, path, takes_build_flags } = refusal;
    let asks = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Some(error.render())
        }
        // `docker --context NAME cache`
        ErrorKind::MissingSubcommand => Some(command.clone().render_help()),
        _ => None,
    };
    if let Some(answer) = asks {
        return report::data(&answer.to_string()).map_or_else(|error| failed(&error), |()| 0);
    }
    let (what, status) = what(error, path);
    report::note(&what);
    if error.kind() == ErrorKind::InvalidValue && what.contains("{{") {
        report::note("hint: Go templates are not understood; `--format json` has every field, for jq");
    }
    let like = of_docker(error, path)
        .or_else(|| word(error, ContextKind::SuggestedArg))
        .or_else(|| word(error, ContextKind::SuggestedSubcommand))
        .or_else(|| named(error, path));
    if let Some(like) = like {
        report::note(&format!("hint: did you mean `{like}`?"));
    }
    if *takes_build_flags && error.kind() == ErrorKind::UnknownArgument && what.starts_with("unknown ") {
        report::note("hint: flags of `docker build` go after `--`, at the end");
    }
    let usage = command.clone().render_usage().to_string();
    report::note(&format!(
        "\nUsage:  {}\n\nRun '{path} --help' for more information",
        usage.trim_start_matches("Usage: ")
    ));
    status
}

/// Returns what is wrong, as docker puts it, and docker's exit status for it.
fn what(error: &clap::Error, command: &str) -> (String, u8) {
    // clap names an argument with its value: `--format <FORMAT>`.
    let arg = word(error, ContextKind::InvalidArg).unwrap_or_default();
    let name = arg.split([' ', '=', '[']).next().unwrap_or_default();
    let value = word(error, ContextKind::InvalidValue).unwrap_or_default();
    let invalid = |why: &str| format!("invalid argument {value:?} for {name:?} flag: {why}");
    let is_flag = name.starts_with('-');
    match error.kind() {
        ErrorKind::UnknownArgument if name.starts_with("--") => (format!("unknown flag: {name}"), USAGE),
        ErrorKind::UnknownArgument if is_flag => {
            (format!("unknown shorthand flag: '{}' in {name}", name.trim_start_matches('-')), USAGE)
        }
        ErrorKind::UnknownArgument => (format!("docker: '{command}' does not take the argument {arg:?}"), FAILED),
        ErrorKind::InvalidSubcommand => {
            let unknown = word(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            (format!("docker: unknown command: {command} {unknown}"), FAILED)
        }
        ErrorKind::MissingRequiredArgument if is_flag => (format!("required flag {name:?} not set"), USAGE),
        ErrorKind::MissingRequiredArgument => {
            (format!("docker: '{command}' requires {}", arg.trim_matches(['<', '>', '.'])), FAILED)
        }
        ErrorKind::InvalidValue if is_flag && value.is_empty() => (format!("flag needs an argument: {name}"), USAGE),
        ErrorKind::InvalidValue if is_flag => {
            let valid = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(valid)) => valid.join(", "),
                _ => String::new(),
            };
            (invalid(&format!("must be one of {valid}")), USAGE)
        }
        ErrorKind::ValueValidation if is_flag => {
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            (invalid(&why), USAGE)
        }
        ErrorKind::TooManyValues if is_flag => (invalid("it takes no value"), USAGE),
        // clap's first line says what is wrong; its tips and usage follow.
        _ => {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            (first.trim_start_matches("error: ").trim_end().to_string(), USAGE)
        }
    }
}

/// Returns what does here what a word does in other commands of docker.
fn of_docker(error: &clap::Error, command: &str) -> Option<String> {
    let unknown = word(error, ContextKind::InvalidSubcommand)?;
    let like = match (command, unknown.as_str()) {
        ("docker cache", "ls" | "list" | "df" | "du" | "ps" | "info" | "inspect" | "status" | "stats") => "size",
        ("docker cache", "prune" | "rm" | "remove" | "clean") => "clear",
        ("docker cache", "check") => "doctor",
        ("docker cache", "save" | "push") => "export",
        ("docker cache", "load" | "pull" | "restore") => "import",
        ("docker cache", "version") => "docker cache --version",
        ("docker cache builder", "create" | "inspect" | "prune" | "rm" | "stop") => {
            return Some(format!("docker buildx {unknown}"));
        }
        _ => return None,
    };
    Some(like.into())
}

/// Returns what the user may mean by a name where none is taken.
fn named(error: &clap::Error, command: &str) -> Option<String> {
    let name = |kind| word(error, kind).filter(|name| !name.starts_with('-'));
    match (error.kind(), command) {
        (ErrorKind::InvalidSubcommand, "docker cache builder") => {
            Some(format!("{command} use {}", report::quote(name(ContextKind::InvalidSubcommand)?)))
        }
        (ErrorKind::UnknownArgument, "docker cache clear") => {
            let name = name(ContextKind::InvalidArg)?;
            let flag = match (catalogue::tool(&name), catalogue::language(&name)) {
                (Some(_), _) => "--tool",
                (None, Some(_)) => "--lang",
                (None, None) => "--volume",
            };
            Some(format!("{flag} {}", report::quote(name)))
        }
        _ => None,
    }
}

fn word(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        // What is most like what the user wrote comes last.
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    }
}
