//! What a step deletes or gives away of a directory that is, or is to be, a cache mount, and who but its tool needs what lies there. Pure.

use std::borrow::Cow;

use super::steps::{Facts, Mounted, Run};
use crate::dockerfile::Instruction;
use crate::dockerfile::shell::{Command, assignment};
use crate::dockerfile::stage::{Scope, Step};

/// Programs that keep nothing in a home directory and start no package manager of a language.
const PLAIN: &[&str] = &[
    "",
    ":",
    "[",
    "addgroup",
    "adduser",
    "apk",
    "apt",
    "apt-get",
    "cat",
    "cd",
    "chmod",
    "chown",
    "cp",
    "curl",
    "dnf",
    "echo",
    "export",
    "git",
    "grep",
    "groupadd",
    "install",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "printf",
    "rm",
    "sed",
    "set",
    "strip",
    "tar",
    "test",
    "touch",
    "true",
    "update-ca-certificates",
    "useradd",
    "wget",
    "yum",
];

/// Tells whether a command surely runs no package manager of a language.
pub fn is_plain(command: &Command) -> bool {
    PLAIN.contains(&command.program())
}

/// What a path, perhaps with wildcards, takes in of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Nothing,
    /// The directory itself, or something in it.
    Within,
    /// Something that the directory is only a part of.
    Above,
    Unknown,
}

/// Tells what an absolute path takes in of a directory.
pub fn reach(path: &str, directory: &str) -> Reach {
    let mut names = path.split('/').filter(|name| !matches!(*name, "" | ".")).peekable();
    if !path.starts_with('/') || path.split('/').any(|name| name == "..") {
        return Reach::Unknown;
    }
    let mut below = directory.split('/').filter(|name| !name.is_empty());
    while let Some(name) = names.next() {
        let Some(wanted) = below.next() else { return Reach::Within };
        if name == wanted {
            continue;
        }
        // A wildcard does not match names that begin with a dot.
        let is_hidden = wanted.starts_with('.') && name.starts_with(['*', '?', '[']);
        return match name {
            "*" if !is_hidden && names.peek().is_none() => Reach::Above,
            _ if !is_hidden && name.contains(['*', '?', '[', '{', '$', '`']) => Reach::Unknown,
            _ => Reach::Nothing,
        };
    }
    if below.next().is_none() { Reach::Within } else { Reach::Above }
}

/// Returns the absolute path that a word of a step's script is, with the wildcards that it has; of what cannot be known, a
/// `$` stays, and `None` stands for a path below a directory that cannot be known.
pub fn path(facts: &Facts<'_>, run: &Run, word: &str) -> Option<String> {
    let scope = facts.scope(run);
    let script = &facts.scripts[run.instruction];
    let word = match word.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("$HOME{rest}"),
        Some(_) => return None,
        None => word.to_owned(),
    };
    let is_known = |name: &str| {
        let set_here = [format!("{name}="), format!("for {name} "), format!("read {name}")];
        (name == "HOME" || scope.env.contains_key(name)) && !set_here.iter().any(|set| script.contains(set))
    };
    let names = word.split('$').skip(1).map(|rest| {
        let rest = rest.trim_start_matches('{');
        &rest[..rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len())]
    });
    let word = if names.into_iter().all(is_known) { scope.expand(&word).unwrap_or(word) } else { word };
    if word.starts_with('/') {
        return Some(word);
    }
    let moves = facts.commands(run).iter().any(|command| matches!(command.program(), "cd" | "pushd"));
    let workdir = scope.workdir.as_deref().filter(|_| !moves && !word.starts_with(['$', '`']))?;
    Some(format!("{}/{word}", workdir.trim_end_matches('/')))
}

/// Tells what a word of a step's script takes in of a directory.
pub fn takes_in(facts: &Facts<'_>, run: &Run, word: &str, directory: &str) -> Reach {
    let first = word.split('/').find(|name| !matches!(*name, "" | ".")).unwrap_or(".");
    match path(facts, run, word) {
        Some(path) => reach(&path, directory),
        // Wherever it lies, it is not on the way to the directory.
        None if !first.contains(['*', '?', '[', '{', '$', '`', '~'])
            && !matches!(first, "." | "..")
            && !word.contains("..")
            && !directory.split('/').any(|name| name == first) =>
        {
            Reach::Nothing
        }
        None => Reach::Unknown,
    }
}

/// Returns the words of a command that are not options, with their places.
pub fn operands(command: &Command) -> impl Iterator<Item = (usize, &str)> {
    let words = command.words.iter().enumerate().skip(1);
    words.map(|(at, word)| (at, word.text.as_str())).filter(|(_, word)| !word.starts_with('-'))
}

/// Tells whether a command changes all that lies below the files it names.
fn is_recursive(command: &Command) -> bool {
    let is_it =
        |arg: &str| arg.starts_with("--rec") || !arg.starts_with("--") && arg.starts_with('-') && arg.contains('R');
    command.args().any(is_it)
}

/// Tells whether a command other than `rm` may delete or move a directory, or change whose all that lies in it is or who may
/// use it.
pub fn may_spoil(facts: &Facts<'_>, run: &Run, command: &Command, directory: &str) -> bool {
    let hits = |word: &str| takes_in(facts, run, word, directory) != Reach::Nothing;
    let deeds = ["-delete", "rm", "rmdir", "mv", "chown", "chgrp", "chmod"];
    match command.program() {
        "mv" | "rmdir" => operands(command).any(|(_, word)| hits(word)),
        // The first word is an owner or a mode, unless that begins with `-` or is taken from a file.
        program @ ("chown" | "chgrp" | "chmod") => {
            let is_mode =
                |arg: &str| program == "chmod" && arg.starts_with('-') && arg.contains(['r', 'w', 'x', 'X', 's', 't']);
            let has_none = command.args().any(|arg| arg.starts_with("--ref") || !arg.starts_with("--") && is_mode(arg));
            let mut files = operands(command).skip(usize::from(!has_none)).peekable();
            // What there is none of comes from `xargs`.
            files.peek().is_none() || is_recursive(command) && files.any(|(_, word)| hits(word))
        }
        "find" if command.args().any(|arg| deeds.contains(&arg)) => {
            let roots = command.args().skip_while(|arg| matches!(*arg, "-L" | "-H" | "-P"));
            let mut roots = roots.take_while(|arg| !arg.starts_with(['-', '(', '!'])).peekable();
            roots.peek().is_none() || roots.any(hits)
        }
        "rsync" if command.args().any(|arg| arg.starts_with("--del") || arg == "--remove-source-files") => {
            operands(command).any(|(_, word)| hits(word))
        }
        "rm" => operands(command).next().is_none(),
        _ => false,
    }
}

/// Returns what an instruction says, here-documents included.
pub fn script(instruction: &Instruction) -> String {
    let mut text = instruction.args.text.clone();
    for heredoc in &instruction.heredocs {
        text.push('\n');
        text.push_str(&heredoc.body.text);
    }
    text
}

/// Tells whether a text names a directory, or one of the hidden directories of a home that it lies in.
fn names(text: &str, directory: &str, scope: &Scope) -> bool {
    let home = scope.home().unwrap_or_else(|| "/root".into());
    let below = directory.strip_prefix(&format!("{home}/"));
    let above = below.and_then(|below| below.split_once('/')).map(|(first, _)| first);
    let mut names: Vec<String> = [directory].into_iter().chain(below).chain(above).map(str::to_owned).collect();
    let variables = scope.env.iter().filter(|(name, value)| {
        let value = value.as_deref().unwrap_or_default();
        *name != "HOME" && crate::dockerfile::mount::within(value, directory)
    });
    names.extend(variables.flat_map(|(name, _)| [format!("${name}"), format!("${{{name}")]));
    let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_named = |name: &String| {
        text.match_indices(name.as_str()).any(|(at, _)| {
            let after = &text[at + name.len()..];
            let other =
                Some(name.as_str()) == above && after.strip_prefix('/').is_some_and(|rest| rest.starts_with(goes_on));
            !text[..at].ends_with(goes_on) && !after.starts_with(goes_on) && !other
        })
    };
    names.iter().any(is_named)
}

/// Tells whether an `rm` does not mind when there is nothing to remove.
fn is_forced(command: &Command) -> bool {
    command.program() == "rm"
        && command
            .args()
            .any(|arg| arg == "--force" || !arg.starts_with("--") && arg.starts_with('-') && arg.contains('f'))
}

/// Tells whether anything but the tool names a directory that a step fills: another command of the step, or an
/// instruction that needs it in a layer.
pub fn is_named_elsewhere(facts: &Facts<'_>, run: &Run, directory: &str) -> bool {
    let scope = facts.scope(run);
    let here = facts.commands(run).iter().filter(|command| !matches!(command.program(), "rm" | "mkdir"));
    let mut words = here.flat_map(|command| {
        let words = command.args().filter(|word| assignment(word).is_none());
        words.chain(command.outputs.iter().map(String::as_str))
    });
    if words.any(|word| names(word, directory, scope)) {
        return true;
    }
    let naming = facts.naming(directory);
    let related = |stage: usize| facts.is_on(stage, run.stage) || facts.is_on(run.stage, stage);
    facts.stages.iter().enumerate().filter(|(stage, _)| related(*stage)).any(|(stage, content)| {
        content.steps.iter().enumerate().any(|(at, step)| {
            let counts = match facts.file.instructions[step.instruction].keyword.as_str() {
                "COPY" | "ADD" => true,
                "RUN" => step.instruction != run.instruction,
                "CMD" | "ENTRYPOINT" | "VOLUME" | "WORKDIR" => facts.is_after(stage, at, run),
                _ => false,
            };
            let is_mounted = |mount: &Mounted| mount.meets(directory);
            let has_mount = |other: &Run| other.instruction == step.instruction && other.mounts.iter().any(is_mounted);
            counts && naming[step.instruction] && !facts.runs.iter().any(has_mount)
        })
    })
}

/// Tells whether a step names a directory otherwise than to make it or to remove it.
pub fn is_named(step: &Step, script: &str, directory: &str) -> bool {
    let mut text = Cow::Borrowed(script);
    for command in step.commands.iter().filter(|command| is_forced(command) || command.program() == "mkdir") {
        for (_, word) in operands(command).filter(|(_, word)| names(word, directory, &step.scope)) {
            text = text.replace(word, " ").into();
        }
    }
    names(&text, directory, &step.scope)
}

/// Tells whether an instruction asks for work without a network, and not only prefers it.
pub fn speaks_of_offline(script: &str) -> bool {
    let text = script.to_lowercase();
    text.contains("goproxy=off") || text.replace("prefer-offline", "").replace("prefer_offline", "").contains("offline")
}
