//! The stages of a Dockerfile, and what holds at each of their steps: variables, user, working directory. What cannot
//! be known from the file and the table of base images is unknown, never guessed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bases::{self, Os};
use super::shell::{self, Command};
use super::{Dockerfile, Instruction};

/// What a value may grow to, in bytes: variables can double each other.
const LONGEST: usize = 1 << 16;

/// Commands of one file that are looked at, as rules compare each with the others; a step with more is one that nobody knows.
const MOST_COMMANDS: usize = 2000;

/// An account that the image or the file made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub uid: Option<u32>,
    pub home: Option<String>,
}

/// What holds at one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// A variable that is set to something unknown is `None`.
    pub env: BTreeMap<String, Option<String>>,
    /// The base image is known, so a variable that is not here is not set.
    pub known: bool,
    /// `None` if the base image decides and is not known.
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub accounts: BTreeMap<String, Account>,
    pub os: Option<Os>,
    /// Commands of `RUN` are read by a POSIX shell.
    pub posix: bool,
}

impl Scope {
    /// Returns the text with its variables filled in; `None` if one of them is not known.
    pub fn expand(&self, text: &str) -> Option<String> {
        let mut done = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            done.push_str(&rest[..at]);
            if done.len() > LONGEST {
                return None;
            }
            rest = &rest[at + 1..];
            let name_end =
                |text: &str| text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
            if let Some(inner) = rest.strip_prefix('{') {
                let (inner, after) = inner.split_once('}')?;
                let (name, operation) = inner.split_at(name_end(inner));
                match operation.get(..2) {
                    _ if operation.is_empty() => done.push_str(&self.value(name)?),
                    Some(":-") => match self.value(name) {
                        Some(value) if !value.is_empty() => done.push_str(&value),
                        Some(_) => done.push_str(&self.expand(&operation[2..])?),
                        None => return None,
                    },
                    _ => return None,
                }
                rest = after;
            } else {
                let (name, after) = rest.split_at(name_end(rest));
                if name.is_empty() {
                    return None;
                }
                done.push_str(&self.value(name)?);
                rest = after;
            }
        }
        done.push_str(rest);
        Some(done)
    }

    /// Returns the value of a variable, `""` for one that is surely not set, `None` for an unknown one.
    pub fn value(&self, name: &str) -> Option<String> {
        match self.env.get(name) {
            Some(value) => value.clone(),
            None if name == "HOME" => self.home(),
            None => self.known.then(String::new),
        }
    }

    /// Tells whether a variable is set, or may be.
    pub fn may_be_set(&self, name: &str) -> bool {
        self.value(name).is_none_or(|value| !value.is_empty())
    }

    /// Returns the user's home directory.
    pub fn home(&self) -> Option<String> {
        if let Some(home) = self.env.get("HOME") {
            return home.clone();
        }
        if self.is_root()? {
            return Some("/root".into());
        }
        self.account().and_then(|account| account.home.clone())
    }

    /// Returns the user's number.
    pub fn uid(&self) -> Option<u32> {
        let name = self.user.as_deref()?.split(':').next()?;
        if self.is_root()? { Some(0) } else { name.parse().ok().or_else(|| self.account()?.uid) }
    }

    /// Tells whether the user is root; `None` if that is not known.
    pub fn is_root(&self) -> Option<bool> {
        let name = self.user.as_deref()?.split(':').next()?;
        if name.contains('$') {
            return None;
        }
        Some(matches!(name, "root" | "0"))
    }

    fn is_windows(&self) -> bool {
        self.os.as_ref().is_some_and(|os| os.family == "windows")
    }

    fn account(&self) -> Option<&Account> {
        let name = self.user.as_deref()?.split(':').next()?;
        let number = name.parse::<u32>().ok();
        self.accounts
            .get(name)
            .or_else(|| self.accounts.values().find(|account| number.is_some() && account.uid == number))
    }

    pub fn set(&mut self, name: &str, value: Option<String>) {
        self.env.insert(name.to_owned(), value);
    }
}

/// One instruction and what held before it.
#[derive(Clone, Debug)]
pub struct Step {
    /// In the list of the file.
    pub instruction: usize,
    pub scope: Arc<Scope>,
    /// Of a `RUN` in shell form.
    pub commands: Vec<Command>,
}

/// What a stage begins from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    Stage(usize),
    /// The reference as far as it is known.
    Image(String),
}

/// One `FROM` and what follows.
#[derive(Clone, Debug)]
pub struct Stage {
    pub name: Option<String>,
    pub base: Base,
    pub platform: Option<String>,
    /// The first is `FROM` itself.
    pub steps: Vec<Step>,
    /// What holds in a container of it.
    pub end: Scope,
}

/// Values of `--build-arg`; one that is not known is `None`.
pub type Args = BTreeMap<String, Option<String>>;

/// Returns the stages of a file.
pub fn stages(file: &Dockerfile) -> Vec<Stage> {
    stages_with(file, &Args::new())
}

/// Returns the stages of a file that is built with arguments.
pub fn stages_with(file: &Dockerfile, args: &Args) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    let mut ends: Vec<Scope> = Vec::new();
    let mut global = Scope { known: false, ..Scope::default() };
    let mut left = MOST_COMMANDS;
    for (index, instruction) in file.instructions.iter().enumerate() {
        if instruction.keyword == "FROM" {
            let (stage, scope) = begin(instruction, &stages, &ends, &global, index);
            stages.push(stage);
            ends.push(scope);
            continue;
        }
        let (Some(stage), Some(scope)) = (stages.last_mut(), ends.last_mut()) else {
            if instruction.keyword == "ARG" {
                arguments(&mut global, instruction, None, args);
            }
            continue;
        };
        let is_read = scope.posix || names_program(instruction) && !scope.is_windows();
        let mut commands = if instruction.keyword == "RUN" && is_read { scripts(instruction) } else { Vec::new() };
        if commands.len() > left {
            commands.clear();
        }
        left -= commands.len();
        stage.steps.push(Step { instruction: index, scope: Arc::new(scope.clone()), commands });
        after(scope, instruction, (&global, args), stage.steps.last().map_or(&[], |step| &step.commands));
    }
    for (stage, end) in stages.iter_mut().zip(ends) {
        stage.end = end;
    }
    stages
}

fn begin(instruction: &Instruction, stages: &[Stage], ends: &[Scope], global: &Scope, index: usize) -> (Stage, Scope) {
    let words: Vec<&str> = instruction.args.text.split_whitespace().collect();
    let image = words.first().copied().unwrap_or_default();
    let name = words
        .get(1)
        .filter(|word| word.eq_ignore_ascii_case("as"))
        .and_then(|_| words.get(2))
        .map(|name| name.to_lowercase());
    let shown = global.expand(image).unwrap_or_else(|| image.to_owned());
    let stage_index = stages.iter().rposition(|stage| stage.name.as_deref() == Some(shown.to_lowercase().as_str()));
    let (base, scope) = match stage_index {
        Some(at) => (Base::Stage(at), ends[at].clone()),
        None => (Base::Image(shown.clone()), of_image(&shown)),
    };
    let step = Step { instruction: index, scope: Arc::new(scope.clone()), commands: Vec::new() };
    let platform = instruction.flag("platform").map(str::to_owned);
    (Stage { name, base, platform, steps: vec![step], end: Scope::default() }, scope)
}

/// Returns what an image brings. The tag may be a variable that is not known, the name may not.
pub fn of_image(reference: &str) -> Scope {
    if bases::is_windows(reference) {
        return Scope { os: Some(Os { family: "windows", release: None }), ..Scope::default() };
    }
    let mut scope = Scope { posix: true, ..Scope::default() };
    let reference = match reference.split_once('$') {
        None => reference,
        Some((before, _)) if before.ends_with([':', '-', '.', '@']) && before.contains(':') => before,
        Some(_) => return scope,
    };
    if reference == "scratch" {
        return Scope { known: true, user: Some("root".into()), workdir: Some("/".into()), ..scope };
    }
    let Some((image, os)) = bases::look_up(reference.trim_end_matches([':', '-', '.', '@'])) else { return scope };
    scope.known = true;
    scope.user = Some("root".into());
    scope.workdir = Some("/".into());
    scope.env = image.env.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
    scope.accounts = image
        .users
        .iter()
        .map(|(name, uid, home)| ((*name).to_owned(), Account { uid: Some(*uid), home: Some((*home).to_owned()) }))
        .collect();
    scope.os = (!os.family.is_empty()).then_some(os);
    scope
}

/// Returns the commands of a `RUN`: its line, or the here-document that is its script.
pub fn scripts(instruction: &Instruction) -> Vec<Command> {
    if let Some(words) = instruction.json() {
        let mut text = super::Text::default();
        let words: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
        text.push(&words.join(" "), instruction.start);
        let mut commands = shell::commands(&text);
        for command in &mut commands {
            command.nested = true;
            command.span = instruction.start..instruction.start;
            command.words.iter_mut().for_each(|word| word.span = instruction.start..instruction.start);
        }
        return commands;
    }
    let line = instruction.args.text.trim();
    let script = instruction.heredocs.first().filter(|_| line.starts_with("<<"));
    match script {
        Some(heredoc) => {
            let interpreter = line.split_whitespace().nth(1).map(|word| word.rsplit('/').next().unwrap_or_default());
            let shebang = heredoc.body.text.strip_prefix("#!").and_then(|rest| rest.lines().next());
            let posix = |name: &str| matches!(name, "sh" | "bash" | "ash" | "dash" | "zsh");
            let reads = interpreter.is_none_or(posix) && shebang.is_none_or(|line| line.split(['/', ' ']).any(posix));
            if reads { shell::commands(&heredoc.body) } else { Vec::new() }
        }
        None => shell::commands(&instruction.args),
    }
}

/// Tells whether a `RUN` says itself which program reads it, whatever the shell of the stage is.
fn names_program(instruction: &Instruction) -> bool {
    instruction.json().is_some()
        || instruction.heredocs.first().is_some_and(|script| script.body.text.starts_with("#!"))
}

fn after(scope: &mut Scope, instruction: &Instruction, given: (&Scope, &Args), commands: &[Command]) {
    let text = instruction.args.text.trim();
    match instruction.keyword.as_str() {
        "ENV" => {
            for (name, value) in pairs(text) {
                let value = scope.expand(&value);
                scope.set(&name, value);
            }
        }
        "ARG" => arguments(scope, instruction, Some(given.0), given.1),
        "USER" => scope.user = Some(scope.expand(text).unwrap_or_else(|| text.to_owned())),
        "WORKDIR" => {
            scope.workdir = scope.expand(text.trim_matches(['"', '\''])).and_then(|path| {
                if path.starts_with('/') { Some(path) } else { Some(format!("{}/{path}", scope.workdir.as_deref()?)) }
            });
        }
        "SHELL" => {
            let words = instruction.json().unwrap_or_default();
            // `env bash -c`, `busybox sh -c`
            let starts = |word: &&str| !matches!(*word, "env" | "busybox" | "-S");
            let name = words.iter().map(|word| word.rsplit('/').next().unwrap_or_default()).find(starts);
            scope.posix = matches!(name, Some("sh" | "bash" | "ash" | "dash" | "zsh"));
        }
        "RUN" => commands.iter().for_each(|command| account(scope, command)),
        _ => {}
    }
}

fn arguments(scope: &mut Scope, instruction: &Instruction, global: Option<&Scope>, args: &Args) {
    for word in words(&instruction.args.text) {
        let name = word.split('=').next().unwrap_or_default();
        if let Some(value) = args.get(name) {
            scope.set(name, value.clone());
            continue;
        }
        match word.split_once('=') {
            Some((name, value)) => {
                let value = scope.expand(value);
                scope.set(name, value);
            }
            None => {
                let value = global.and_then(|global| global.env.get(&word).cloned().flatten());
                // ENV wins over an ARG of the same name.
                if value.is_some() || !scope.env.contains_key(&word) {
                    scope.set(&word, value);
                }
            }
        }
    }
}

/// Returns names and values of an `ENV`, in its old and its new form.
fn pairs(text: &str) -> Vec<(String, String)> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let value = text[first.len()..].trim();
        return vec![(first.to_owned(), value.to_owned())];
    }
    words(text)
        .into_iter()
        .filter_map(|word| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect()
}

/// Returns words split at blanks, without their quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut at = super::skip_blank(text, 0);
    while at < text.len() {
        let end = super::word_end(text, at);
        words.push(super::unquoted(&text[at..end]));
        at = super::skip_blank(text, end);
    }
    words
}

/// Notes the account that `useradd` or `adduser` makes.
fn account(scope: &mut Scope, command: &Command) {
    let busybox = scope.os.as_ref().is_some_and(|os| os.family == "alpine");
    let tool = command.program();
    if tool == "usermod" || tool == "userdel" || tool == "deluser" {
        if let Some(name) = command.args().last().and_then(|name| scope.expand(name)) {
            scope.accounts.remove(&name);
        }
        return;
    }
    if tool != "useradd" && tool != "adduser" {
        return;
    }
    let (mut uid, mut home, mut system) = (None, None, false);
    let mut names = Vec::new();
    let mut args = command.args();
    while let Some(arg) = args.next() {
        let (flag, value) = arg.split_once('=').map_or((arg, None), |(flag, value)| (flag, Some(value.to_owned())));
        let mut value = || value.clone().or_else(|| args.next().map(str::to_owned));
        match (tool, flag) {
            (_, "--uid" | "-u") => uid = value(),
            ("useradd", "-d" | "--home-dir" | "--home") | (_, "--home") => home = value(),
            ("adduser", "-h") if busybox => home = value(),
            (
                _,
                "--gid" | "-g" | "-s" | "--shell" | "-G" | "--groups" | "-c" | "--comment" | "--gecos" | "--ingroup",
            )
            | ("useradd", "-b" | "-k" | "-p" | "-e" | "-f" | "-K") => {
                value();
            }
            (_, "--system" | "-r" | "-S") => system = true,
            // `-lmu 1000`: the last letter takes the value
            ("useradd", _) if flag.starts_with('-') && !flag.starts_with("--") => match flag.chars().last() {
                Some('u') => uid = value(),
                Some('d') => home = value(),
                Some('g' | 'G' | 's' | 'c') => {
                    value();
                }
                _ => {}
            },
            ("adduser", _) if busybox && flag.starts_with('-') && !flag.starts_with("--") => {
                match flag.chars().last() {
                    Some('u') => uid = value(),
                    Some('h') => home = value(),
                    Some('g' | 'G' | 's') => {
                        value();
                    }
                    _ => {}
                }
            }
            _ if flag.starts_with('-') => {}
            _ => names.push(arg.to_owned()),
        }
    }
    // `adduser USER GROUP` adds to a group
    let name = if tool == "useradd" { names.last() } else { names.first() };
    let Some(name) = name.and_then(|name| scope.expand(name)) else { return };
    if tool == "adduser" && names.len() > 1 && scope.accounts.contains_key(&name) {
        return;
    }
    let home = match home {
        Some(home) => scope.expand(&home),
        None if system && tool == "adduser" && !busybox => None,
        None => Some(format!("/home/{name}")),
    };
    let uid = uid.and_then(|uid| scope.expand(&uid)).and_then(|uid| uid.parse().ok());
    scope.accounts.insert(name, Account { uid, home });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(source: &str) -> Scope {
        let file = Dockerfile::parse(source);
        stages(&file).last().and_then(|stage| stage.steps.last()).map(|step| (*step.scope).clone()).unwrap()
    }

    #[test]
    fn variables_come_from_the_image_the_arguments_and_the_stage_below() {
        let scope = last(
            "ARG V=3.12\nFROM python:${V}-slim AS base\nENV A=1 B=\"x y\"\nARG V\nENV C=$A/${D:-z} OLD=$V\nFROM base\nRUN x",
        );
        assert_eq!(scope.value("B").as_deref(), Some("x y"));
        assert_eq!(scope.value("C").as_deref(), Some("1/z"));
        assert_eq!(scope.value("OLD").as_deref(), Some("3.12"));
        assert_eq!(scope.home().as_deref(), Some("/root"));
        let unknown = last("FROM example.com/base\nENV A=$B\nRUN x");
        assert_eq!(
            (unknown.value("A"), unknown.value("X"), unknown.home(), unknown.is_root()),
            (None, None, None, None)
        );
        let later = last("ARG T\nFROM node:$T\nENV CACHE=/c\nUSER node\nRUN x");
        assert_eq!((later.uid(), later.home().as_deref()), (Some(1000), Some("/home/node")));
    }

    #[test]
    fn accounts_are_those_that_the_file_makes() {
        let cases = [
            ("debian", "useradd -m -u 1001 -s /bin/bash app", Some(1001), Some("/home/app")),
            ("debian", "groupadd -g 5 app && useradd --uid=7 --gid 5 --home-dir /srv app", Some(7), Some("/srv")),
            ("debian", "useradd -rm app", None, Some("/home/app")),
            ("debian", "adduser --system --group app", None, None),
            ("alpine", "addgroup -S app && adduser -S app -G app -u 9", Some(9), Some("/home/app")),
            ("alpine", "adduser -D -u 1000 -h /app app", Some(1000), Some("/app")),
            ("debian", "true", None, None),
        ];
        for (image, run, uid, home) in cases {
            let scope = last(&format!("FROM {image}\nRUN {run}\nUSER app\nRUN x"));
            assert_eq!((scope.uid(), scope.home().as_deref()), (uid, home), "{run}");
        }
        let by_number = last("FROM node\nUSER 1000:1000\nRUN x");
        assert_eq!((by_number.uid(), by_number.home().as_deref()), (Some(1000), Some("/home/node")));
    }

    #[test]
    fn a_run_is_read_if_it_is_known_who_reads_it() {
        let read = |source: &str| {
            let file = Dockerfile::parse(source);
            stages(&file).last().and_then(|stage| stage.steps.last()).is_some_and(|step| !step.commands.is_empty())
        };
        for source in [
            "FROM debian\nSHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN npm ci",
            "FROM debian\nSHELL [\"/usr/bin/env\", \"-S\", \"bash\", \"-c\"]\nRUN npm ci",
            "FROM debian\nSHELL [\"pwsh\", \"-Command\"]\nRUN [\"npm\", \"ci\"]",
            "FROM debian\nSHELL [\"python\", \"-c\"]\nRUN <<EOF\n#!/bin/sh\nnpm ci\nEOF",
            "FROM debian AS a\nSHELL [\"python\", \"-c\"]\nFROM debian\nRUN npm ci",
        ] {
            assert!(read(source), "{source}");
        }
        for source in [
            "FROM debian\nSHELL [\"pwsh\", \"-Command\"]\nRUN npm ci",
            "FROM debian\nSHELL [\"python\", \"-c\"]\nRUN <<EOF\nnpm ci\nEOF",
            "FROM debian AS a\nSHELL [\"cmd\", \"/S\", \"/C\"]\nFROM a\nRUN npm ci",
            "FROM python:3-windowsservercore\nRUN npm ci",
            "FROM mcr.microsoft.com/windows/servercore:ltsc2022\nRUN [\"npm\", \"ci\"]",
        ] {
            assert!(!read(source), "{source}");
        }
    }
}
