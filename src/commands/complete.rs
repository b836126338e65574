//! Completion over docker's `__complete` protocol: the words so far in, one candidate a line and a directive out.
//! It follows the grammar of [`cli`], so a new command or flag is completed without a word here; only values that live
//! elsewhere are named in [`source`]. It never fails and never waits long.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::builder::ValueHint;
use clap::{Arg, ArgAction, Command, FromArgMatches};

use super::Context;
use crate::budget::NAMES;
use crate::builders::Builders;
use crate::cli::{self, DockerFlags};
use crate::docker::Docker;
use crate::docker::endpoint::Settings;
use crate::inventory::cache_volumes;
use crate::{catalogue, model, parallel, report};

/// How long a question to docker may take. A second one is asked only after an answer to the first.
const LIMIT: Duration = Duration::from_secs(2);

/// What the shell does when no candidate fits: cobra's ShellCompDirective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directive {
    Files = 0,
    Nothing = 4,
    Directories = 16,
}

/// A word that could stand there, and what it means.
type Candidate = (String, String);

/// Where the values of an argument come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Languages,
    Tools,
    Volumes,
    Mounts,
    Builders,
    Containers,
    Images,
    Budgets,
    /// Whatever `docker cache size` takes as a name.
    Caches,
    Paths(Directive),
}

/// The one table of values that the grammar itself does not tell: the names of arguments, then of their values.
fn source(arg: &Arg) -> Option<Source> {
    // Directories in caches, not of this host.
    if arg.get_long() == Some("path") {
        return None;
    }
    let by_name = match arg.get_id().as_str() {
        "lang" => Some(Source::Languages),
        "tool" => Some(Source::Tools),
        "volume" | "to_volume" => Some(Source::Volumes),
        "mount" | "to_mount" => Some(Source::Mounts),
        "builder" | "name" => Some(Source::Builders),
        "names" => Some(Source::Caches),
        "container" => Some(Source::Containers),
        "image" => Some(Source::Images),
        "budget" | "keep" => Some(Source::Budgets),
        _ => None,
    };
    let value = arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str());
    by_name.or(match (arg.get_value_hint(), value) {
        (ValueHint::DirPath, _) | (_, Some("DIR" | "PATH" | "CONTEXT" | "DEST" | "SRC")) => {
            Some(Source::Paths(Directive::Directories))
        }
        (ValueHint::AnyPath | ValueHint::FilePath, _) | (_, Some("FILE")) => Some(Source::Paths(Directive::Files)),
        _ => None,
    })
}

/// Prints what could stand in place of the last word.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(words: &[String], descriptions: bool) -> Result<u8> {
    let mut grammar = cli::grammar();
    grammar.build();
    let words = own_words(&grammar, words);
    let (candidates, directive) = answer(&grammar, words, &mut |source| ask(source, words));
    let mut text = String::new();
    for (word, description) in candidates {
        text.push_str(&word);
        let description = description.lines().next().unwrap_or_default().trim();
        if descriptions && !description.is_empty() {
            text.push_str(&format!("\t{}", report::plain(description)));
        }
        text.push('\n');
    }
    report::data(&format!("{text}:{}\n", directive as i32))?;
    Ok(0)
}

/// Returns the words after `cache`: docker's older bash script leaves its own global flags and the name in.
fn own_words<'a>(grammar: &Command, words: &'a [String]) -> &'a [String] {
    let Some((_, before)) = words.split_last() else { return words };
    let known = before.first().is_none_or(|word| word.starts_with('-') || grammar.find_subcommand(word).is_some());
    match before.iter().position(|word| word == "cache") {
        Some(at) if !known => &words[at + 1..],
        _ => words,
    }
}

/// Returns the candidates for the last word, and what to do if there are none. `ask` finds the values of a source.
fn answer(
    grammar: &Command,
    words: &[String],
    ask: &mut dyn FnMut(Source) -> Vec<Candidate>,
) -> (Vec<Candidate>, Directive) {
    let nothing = (Vec::new(), Directive::Nothing);
    let Some((typed, before)) = words.split_last() else { return nothing };
    let Some(position) = Position::after(grammar, before) else { return nothing };
    if let Some(arg) = position.waiting {
        return values(arg, typed, ask);
    }
    if typed.starts_with('-') && !position.flags_ended {
        return match typed.split_once('=') {
            // The shell puts the name of the flag back itself.
            Some((name, value)) => position.flag(name).map_or(nothing, |arg| values(arg, value, ask)),
            None => (fitting(position.flags(typed), typed), Directive::Nothing),
        };
    }
    let mut found = position.commands();
    let mut directive = Directive::Nothing;
    if let Some(arg) = position.positional() {
        let (more, then) = values(arg, typed, ask);
        found.extend(more);
        directive = then;
    }
    let mut found = fitting(found, typed);
    if typed.is_empty() && !position.flags_ended {
        found.extend(position.required());
    }
    (found, directive)
}

/// Where in the grammar the words before the one being typed lead.
struct Position<'a> {
    command: &'a Command,
    /// Positional arguments given so far.
    positionals: usize,
    /// The flag whose value comes next.
    waiting: Option<&'a Arg>,
    /// Flags given so far.
    used: Vec<&'a Arg>,
    /// After `--`.
    flags_ended: bool,
}

impl<'a> Position<'a> {
    /// Follows the words; None if one of them is no command.
    fn after(grammar: &'a Command, words: &[String]) -> Option<Position<'a>> {
        let mut position =
            Position { command: grammar, positionals: 0, waiting: None, used: Vec::new(), flags_ended: false };
        for word in words {
            if position.waiting.take().is_some() {
                continue;
            }
            match word.as_str() {
                _ if position.flags_ended => position.positionals += 1,
                "--" => position.flags_ended = true,
                word if word.starts_with("--") => {
                    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
                    position.read(name, value.is_some());
                }
                word if word.starts_with('-') && word.len() > 1 => position.read_letters(&word[1..]),
                word if position.positionals == 0 && position.command.has_subcommands() => {
                    position.command = position.command.find_subcommand(word)?;
                }
                _ => position.positionals += 1,
            }
        }
        Some(position)
    }

    fn read(&mut self, name: &str, has_value: bool) {
        let Some(arg) = self.flag(name) else { return };
        self.used.push(arg);
        self.waiting = (takes_value(arg) && !has_value).then_some(arg);
    }

    /// Reads `-q`, `-qH`, `-Hunix:///sock`.
    fn read_letters(&mut self, letters: &str) {
        for (at, letter) in letters.char_indices() {
            let rest = &letters[at + letter.len_utf8()..];
            self.read(&format!("-{letter}"), !rest.is_empty());
            if self.used.last().is_some_and(|arg| arg.get_short() == Some(letter) && takes_value(arg)) {
                return;
            }
        }
    }

    fn flag(&self, name: &str) -> Option<&'a Arg> {
        let mut args = self.command.get_arguments();
        match name.strip_prefix("--") {
            Some(long) => args.find(|arg| {
                arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
            }),
            None => args.find(|arg| arg.get_short().map(|letter| format!("-{letter}")).as_deref() == Some(name)),
        }
    }

    /// Returns the flags that can still be given; letters too while only a dash is typed.
    fn flags(&self, typed: &str) -> Vec<Candidate> {
        let again = |arg: &Arg| matches!(arg.get_action(), ArgAction::Append);
        let args = self.command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
        let args = args.filter(|arg| again(arg) || self.used.iter().all(|used| used.get_id() != arg.get_id()));
        args.flat_map(|arg| {
            let long = arg.get_long().map(|name| (format!("--{name}"), help(arg)));
            let short = arg.get_short().filter(|_| !typed.starts_with("--"));
            long.into_iter().chain(short.map(|letter| (format!("-{letter}"), help(arg))))
        })
        .collect()
    }

    /// Returns the flags without which the command is refused.
    fn required(&self) -> Vec<Candidate> {
        let args = self.command.get_arguments().filter(|arg| !arg.is_positional() && arg.is_required_set());
        let args = args.filter(|arg| self.used.iter().all(|used| used.get_id() != arg.get_id()));
        args.filter_map(|arg| Some((format!("--{}", arg.get_long()?), help(arg)))).collect()
    }

    fn commands(&self) -> Vec<Candidate> {
        let shown = self.command.get_subcommands().filter(|inner| self.positionals == 0 && !inner.is_hide_set());
        let about = |inner: &Command| inner.get_about().map(ToString::to_string).unwrap_or_default();
        shown.map(|inner| (inner.get_name().to_string(), about(inner))).collect()
    }

    /// Returns the positional argument that comes next; the last one may take any number. What is handed on after `--`
    /// belongs to another program.
    fn positional(&self) -> Option<&'a Arg> {
        if self.flags_ended && self.command.get_positionals().any(Arg::is_last_set) {
            return None;
        }
        let args: Vec<&Arg> = self.command.get_positionals().filter(|arg| !arg.is_last_set()).collect();
        let many = |arg: &&&Arg| matches!(arg.get_action(), ArgAction::Append);
        args.get(self.positionals).or_else(|| args.last().filter(many)).copied()
    }
}

fn takes_value(arg: &Arg) -> bool {
    // `--tls` may have a value, but never as a word of its own.
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

fn help(arg: &Arg) -> String {
    arg.get_help().map(ToString::to_string).unwrap_or_default()
}

/// Returns what an argument can be, as far as it begins with what is typed; after a comma, of one more value.
fn values(arg: &Arg, typed: &str, ask: &mut dyn FnMut(Source) -> Vec<Candidate>) -> (Vec<Candidate>, Directive) {
    let listed = match arg.get_value_delimiter().and_then(|comma| typed.rfind(comma)) {
        Some(at) => &typed[..=at],
        None => "",
    };
    let mut found: Vec<Candidate> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| (value.get_name().into(), value.get_help().map(ToString::to_string).unwrap_or_default()))
        .collect();
    let mut directive = Directive::Nothing;
    match source(arg) {
        Some(Source::Paths(then)) => directive = then,
        Some(source) => found.extend(ask(source)),
        None => {}
    }
    found.retain(|(word, _)| listed.is_empty() || !listed.split(',').any(|other| other == word));
    for (word, description) in found.iter_mut().filter(|_| !listed.is_empty()) {
        word.insert_str(0, listed);
        // Docker's bash script drops a word with a comma if any word has a description: it compares it escaped, `\,`.
        description.clear();
    }
    (fitting(found, typed), directive)
}

/// Returns those that begin with what is typed, each once. A name that a terminal or a command line would take for
/// something else is not offered.
fn fitting(mut found: Vec<Candidate>, typed: &str) -> Vec<Candidate> {
    let mut seen = BTreeSet::new();
    found.retain(|(word, _)| {
        let harmless = !word.chars().any(char::is_control) && (!word.starts_with('-') || typed.starts_with('-'));
        word.starts_with(typed) && harmless && seen.insert(word.clone())
    });
    found
}

/// Finds the values of a source. What cannot be found out in time is left out.
fn ask(source: Source, words: &[String]) -> Vec<Candidate> {
    let languages = || catalogue::languages().map(|name| (name.to_string(), "language".to_string()));
    let tools = || catalogue::ROWS.iter().map(|row| (row.tool.to_string(), format!("tool, {}", row.language)));
    match source {
        Source::Languages => languages().collect(),
        Source::Tools => tools().collect(),
        Source::Budgets => {
            NAMES.iter().map(|(name, gigabytes)| ((*name).into(), format!("budget, {gigabytes} GB"))).collect()
        }
        Source::Containers => Asked::of(words).map(|asked| asked.containers()).unwrap_or_default(),
        Source::Images => Asked::of(words).map(|asked| asked.images()).unwrap_or_default(),
        Source::Paths(_) => Vec::new(),
        Source::Volumes => Asked::of(words).map(|asked| asked.volumes()).unwrap_or_default(),
        Source::Mounts => Asked::of(words).and_then(|asked| Some(asked.mounts(&asked.builders()?))).unwrap_or_default(),
        Source::Builders => Asked::of(words).and_then(|asked| Some(named(&asked.builders()?))).unwrap_or_default(),
        Source::Caches => {
            let mut found = Asked::of(words).map(|asked| asked.caches()).unwrap_or_default();
            found.extend(tools().chain(languages()));
            found
        }
    }
}

/// Docker, as the words so far choose it.
struct Asked {
    docker: Docker,
    settings: Settings,
    builder: Option<String>,
    all_builders: bool,
}

impl Asked {
    /// Reads the flags among the words.
    fn of(words: &[String]) -> Option<Asked> {
        let before = &words[..words.len().saturating_sub(1)];
        let line = std::iter::once("docker cache").chain(before.iter().map(String::as_str));
        let matches = cli::grammar().ignore_errors(true).try_get_matches_from(line).ok()?;
        let flags = DockerFlags::from_arg_matches(&matches).ok()?;
        let mut inner = &matches;
        while let Some((_, next)) = inner.subcommand() {
            inner = next;
        }
        let builder = inner.try_get_one::<String>("builder").ok().flatten().cloned();
        let all_builders = matches!(inner.try_get_one::<bool>("all_builders"), Ok(Some(true)));
        let (docker, settings) = Context::new(&flags).into_docker().ok()?;
        Some(Asked { docker: docker.within(LIMIT), settings, builder, all_builders })
    }

    fn volumes(&self) -> Vec<Candidate> {
        let volumes = self.docker.overview_of_local().map(|overview| overview.volumes).unwrap_or_default();
        volumes.into_iter().map(|volume| (volume.name, "volume".into())).collect()
    }

    fn containers(&self) -> Vec<Candidate> {
        let containers = self.docker.overview_of_local().map(|overview| overview.containers).unwrap_or_default();
        containers.iter().map(|container| (container.name().into(), "container".into())).collect()
    }

    fn images(&self) -> Vec<Candidate> {
        let names = self.docker.image_names().unwrap_or_default();
        names.into_iter().map(|name| (name, "image".into())).collect()
    }

    fn cache_volumes(&self) -> Vec<Candidate> {
        let overview = self.docker.overview_of_local().and_then(|overview| self.docker.with_parts(overview)).ok();
        let found = overview.and_then(|overview| cache_volumes(&overview, &[]).ok()).unwrap_or_default();
        found.into_iter().map(|volume| (volume.name, "cache volume".into())).collect()
    }

    fn builders(&self) -> Option<Builders> {
        Builders::ask(&self.docker, &self.settings).ok()
    }

    fn mounts(&self, builders: &Builders) -> Vec<Candidate> {
        let selected = builders.selected(self.builder.as_deref(), self.all_builders).unwrap_or_default();
        let records = parallel::each(&selected, |builder| builders.reference(builder).records().unwrap_or_default());
        let mounts = records.iter().flat_map(|records| model::mounts(records));
        mounts.map(|(_, mount)| (mount.shown().to_string(), format!("cache mount at {}", mount.target))).collect()
    }

    fn caches(&self) -> Vec<Candidate> {
        thread::scope(|scope| {
            // One `docker buildx ls`: two at a time wait for each other.
            let built = scope.spawn(|| self.builders().map(|builders| (self.mounts(&builders), named(&builders))));
            let mut found = self.cache_volumes();
            let (mounts, builders) = parallel::join(built).unwrap_or_default();
            found.extend(mounts.into_iter().chain(builders));
            found
        })
    }
}

fn named(builders: &Builders) -> Vec<Candidate> {
    builders.list.iter().map(|builder| (builder.name.clone(), format!("builder, {}", builder.driver))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the candidates for the last word of a line, and the directive. The world has one cache, `own`.
    fn complete(line: &str) -> (Vec<String>, Directive) {
        let mut grammar = cli::grammar();
        grammar.build();
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        let (found, directive) = answer(&grammar, own_words(&grammar, &words), &mut |source| match source {
            Source::Languages | Source::Tools | Source::Budgets => ask(source, &[]),
            _ => vec![("own".into(), "of the test".into()), ("--own".into(), String::new())],
        });
        (found.into_iter().map(|(word, _)| word).collect(), directive)
    }

    fn words(line: &str) -> Vec<String> {
        complete(line).0
    }

    #[test]
    fn commands_are_those_that_help_shows() {
        assert_eq!(words("si"), ["size"]);
        assert_eq!(words("builder "), ["ls", "use"]);
        assert!(words("").contains(&"doctor".to_string()));
        assert!(!words("").contains(&crate::inside::COMMAND.to_string()));
        assert_eq!(complete("nosuch "), (vec![], Directive::Nothing));
    }

    #[test]
    fn flags_are_offered_once_and_only_when_asked_for() {
        assert_eq!(words("size --fo"), ["--format"]);
        assert!(words("size -").contains(&"-q".to_string()));
        assert!(!words("size --").contains(&"-q".to_string()));
        assert!(!words("size --format json --").contains(&"--format".to_string()));
        assert!(!words("size -q --").contains(&"--quiet".to_string()));
        assert!(words("size --lang go --").contains(&"--lang".to_string()));
        assert!(!words("size --").contains(&"--tlskey".to_string()));
        assert!(words("size ").iter().all(|word| !word.starts_with('-')));
        assert_eq!(complete("size -- --fo"), (vec![], Directive::Nothing));
    }

    #[test]
    fn values_come_from_the_grammar_the_catalogue_and_docker() {
        assert_eq!(words("size --format "), ["table", "json"]);
        assert_eq!(words("size --format=j"), ["json"]);
        assert_eq!(words("size --lang py"), ["python"]);
        assert_eq!(words("size --lang go,py"), ["go,python"]);
        assert_eq!(words("size --lang=go,py"), ["go,python"]);
        assert!(!words("size --lang go,").contains(&"go,go".to_string()));
        assert_eq!(words("doctor --check buildx-missing,builder-s"), ["buildx-missing,builder-split"]);
        assert_eq!(words("size --volume "), ["own"]);
        assert_eq!(words("size own "), ["own"]);
        assert_eq!(words("doctor --container "), ["own"]);
        assert_eq!(words("warm --image "), ["own"]);
        assert_eq!(words("clear --to-budget "), ["small", "medium", "large"]);
        assert_eq!(words("size --budget l"), ["large"]);
        assert_eq!(words("builder use "), ["own"]);
        assert_eq!(words("builder use own "), [""; 0]);
        assert_eq!(words("size --all-builders=x"), [""; 0]);
    }

    #[test]
    fn flag_that_must_be_given_is_offered_unasked() {
        assert_eq!(complete("import "), (vec!["--src".into()], Directive::Directories));
        assert_eq!(complete("export --dest x "), (vec![], Directive::Directories));
        assert_eq!(complete("export --dest x . -- "), (vec![], Directive::Nothing));
        assert_eq!(words("import --to-volume "), ["own"]);
    }

    #[test]
    fn paths_are_left_to_the_shell() {
        assert_eq!(complete("--config "), (vec![], Directive::Directories));
        assert_eq!(complete("--tlskey="), (vec![], Directive::Files));
        assert_eq!(complete("size --mount").1, Directive::Nothing);
        assert_eq!(complete("clear --volume v --path ").1, Directive::Nothing);
    }

    #[test]
    fn global_flags_may_stand_in_front() {
        assert_eq!(words("--context size -Dl debug -Hunix:///s --tls size --by la"), ["language"]);
        // Docker's older bash script.
        assert_eq!(words("x cache size --by la"), ["language"]);
        assert_eq!(words("size --volume cache --by la"), ["language"]);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "(-{0,2}[a-zé=,]{0,4}|size|builder|cache|--|--lang| ){0,8}") {
            complete(&line);
        }
    }
}
