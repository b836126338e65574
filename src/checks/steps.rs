//! What the `RUN` steps of a Dockerfile do with the tools of the catalogue: which they call, where those write, and
//! which mounts are there. Facts for the rules; judges nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;

use super::deletions;
use crate::catalogue::{self, Class, ROWS, Row};
use crate::dockerfile::mount::{Mount, clean, within};
use crate::dockerfile::shell::Command;
use crate::dockerfile::stage::{Base, Scope, Stage, Step, stages};
use crate::dockerfile::{Dockerfile, Instruction};
use crate::project::Around;

/// A Dockerfile with everything that the rules look at.
#[derive(Debug)]
pub struct Facts<'a> {
    /// As it is shown.
    pub path: &'a str,
    pub file: &'a Dockerfile,
    pub around: &'a Around,
    pub stages: Vec<Stage>,
    pub runs: Vec<Run>,
    /// What each instruction says, here-documents included.
    pub scripts: Vec<String>,
    /// Of each instruction, that it asks for work without a network.
    pub offline: Vec<bool>,
    /// Of directories that were asked for, which instructions name them.
    named: RefCell<HashMap<String, Rc<[bool]>>>,
    /// The runs that may set where a tool keeps its cache.
    settings: Vec<usize>,
    /// Of each run; rules ask for them again and again.
    filled: Vec<Vec<Filled>>,
}

/// One `RUN`.
#[derive(Debug)]
pub struct Run {
    /// In the list of the facts.
    pub index: usize,
    pub stage: usize,
    pub step: usize,
    pub instruction: usize,
    pub line: u32,
    pub mounts: Vec<Mounted>,
}

/// A mount, and what the catalogue says of its target alone: the id is only a name. The rules ask for it again and again.
#[derive(Clone, Debug)]
pub struct Mounted {
    mount: Mount,
    pub known: Option<(&'static Row, Class)>,
    /// The tool that it surely belongs to.
    pub tool: Option<&'static Row>,
}

impl Deref for Mounted {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}

/// A command that fills the cache of a tool.
#[derive(Clone, Debug)]
pub struct Use<'a> {
    pub row: &'static Row,
    pub command: &'a Command,
    /// The call, without options: `pip install`.
    pub call: &'static str,
    /// Where it writes; `None` if that cannot be known.
    pub places: Option<&'a [String]>,
    /// Where other versions of it write, as far as known.
    pub also: &'a [String],
}

/// What a [`Use`] refers to.
#[derive(Debug)]
struct Filled {
    row: &'static Row,
    command: usize,
    call: &'static str,
    places: Option<Vec<String>>,
    also: Vec<String>,
}

impl Use<'_> {
    /// Tells whether a mount is on a directory that the tool may write to.
    pub fn meets(&self, mount: &Mount) -> bool {
        self.places.into_iter().flatten().chain(self.also).any(|place| mount.meets(place))
    }
}

impl<'a> Facts<'a> {
    pub fn new(path: &'a str, file: &'a Dockerfile, around: &'a Around) -> Facts<'a> {
        let stages = stages(file);
        let mut runs = Vec::new();
        for (stage, content) in stages.iter().enumerate() {
            for (step, content) in content.steps.iter().enumerate() {
                let instruction = &file.instructions[content.instruction];
                if instruction.keyword == "RUN" {
                    runs.push(Run {
                        index: runs.len(),
                        stage,
                        step,
                        instruction: content.instruction,
                        line: instruction.line,
                        mounts: Mount::all(file, instruction, &content.scope).into_iter().map(mounted).collect(),
                    });
                }
            }
        }
        let scripts: Vec<String> = file.instructions.iter().map(deletions::script).collect();
        let offline = scripts.iter().map(|script| deletions::speaks_of_offline(script)).collect();
        let sets = |run: &&Run| {
            let commands = &stages[run.stage].steps[run.step].commands;
            commands.iter().any(|command| command.args().any(|arg| matches!(arg, "config" | "-w")))
        };
        let settings = runs.iter().filter(sets).map(|run| run.index).collect();
        let (named, filled) = Default::default();
        let mut facts = Facts { path, file, around, stages, runs, scripts, offline, named, settings, filled };
        facts.filled = facts.runs.iter().map(|run| facts.filled_by(run)).collect();
        facts
    }

    pub fn step(&self, run: &Run) -> &Step {
        &self.stages[run.stage].steps[run.step]
    }

    pub fn scope(&self, run: &Run) -> &Scope {
        &self.step(run).scope
    }

    pub fn commands(&self, run: &Run) -> &[Command] {
        &self.step(run).commands
    }

    pub fn instruction(&self, run: &Run) -> &Instruction {
        &self.file.instructions[run.instruction]
    }

    /// Returns a stage and those that it is built on, the first one first.
    pub fn lineage(&self, stage: usize) -> Vec<usize> {
        let mut lineage = vec![stage];
        while let Base::Stage(below) = self.stages[lineage[lineage.len() - 1]].base {
            lineage.push(below);
        }
        lineage.reverse();
        lineage
    }

    /// Tells whether `stage` is built on `below`, or is it.
    pub fn is_on(&self, stage: usize, below: usize) -> bool {
        let mut at = Some(stage);
        while let Some(stage) = at.filter(|stage| *stage != below) {
            at = match self.stages[stage].base {
                Base::Stage(base) => Some(base),
                Base::Image(_) => None,
            };
        }
        at.is_some()
    }

    /// Returns the runs whose layers are there when this one begins.
    pub fn before(&self, run: &Run) -> impl Iterator<Item = &Run> {
        let lineage = self.lineage(run.stage);
        let (stage, step) = (run.stage, run.step);
        self.runs
            .iter()
            .filter(move |other| lineage.contains(&other.stage) && (other.stage != stage || other.step < step))
    }

    /// Tells whether a step of a stage begins with this run's layer below it.
    pub fn is_after(&self, stage: usize, step: usize, run: &Run) -> bool {
        self.is_on(stage, run.stage) && (stage != run.stage || step > run.step)
    }

    /// Returns the runs that begin with this one's layer below them.
    pub fn after(&self, run: &Run) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |other| self.is_after(other.stage, other.step, run))
    }

    /// Returns the instructions that the layers of this run were made by, itself among them.
    pub fn history(&self, run: &Run) -> impl Iterator<Item = &Instruction> {
        let (stage, step) = (run.stage, run.step);
        self.lineage(stage).into_iter().flat_map(move |at| {
            let steps = &self.stages[at].steps;
            let end = if at == stage { step + 1 } else { steps.len() };
            steps[..end].iter().map(|step| &self.file.instructions[step.instruction])
        })
    }

    /// Tells whether a word stands anywhere in what made this run's layers, here-documents and names of files included.
    pub fn mentioned(&self, run: &Run, word: &str) -> bool {
        self.history(run).any(|instruction| {
            instruction.args.text.contains(word)
                || instruction.heredocs.iter().any(|heredoc| heredoc.body.text.contains(word))
        })
    }

    /// Tells of each instruction whether it names a directory otherwise than to make it or to remove it.
    pub fn naming(&self, directory: &str) -> Rc<[bool]> {
        let mut named = self.named.borrow_mut();
        if !named.contains_key(directory) {
            let mut of_each = vec![false; self.scripts.len()];
            for step in self.stages.iter().flat_map(|stage| &stage.steps) {
                of_each[step.instruction] = deletions::is_named(step, &self.scripts[step.instruction], directory);
            }
            named.insert(directory.to_owned(), of_each.into());
        }
        named[directory].clone()
    }

    /// Tells whether this step or one before it sets where a tool keeps its cache: `npm config set cache`, `go env -w`.
    fn is_configured(&self, run: &Run, row: &Row) -> bool {
        let places = ["cache", "path", "store"];
        let sets = |command: &Command| {
            let mut words = command.args().map(str::to_lowercase);
            command.args().any(|arg| matches!(arg, "config" | "-w"))
                && runs_tool(command, row)
                && words.any(|word| places.iter().any(|place| word.contains(place)))
        };
        let settings = self.settings.iter().map(|index| &self.runs[*index]);
        let before = settings
            .filter(|other| self.is_on(run.stage, other.stage) && (other.stage != run.stage || other.step <= run.step));
        before.flat_map(|other| self.commands(other)).any(sets)
    }

    /// Tells whether another version of pnpm or yarn, or a setting, may have its cache in an unusual place.
    fn may_be_elsewhere(&self, run: &Run, row: &Row) -> bool {
        let words: &[&str] = match (row.tool, self.around.yarn_classic) {
            ("pnpm", _) => &["pnpm@5", "pnpm@6", "store-dir", "store_dir", "STORE_DIR", "storeDir", "npmrc"],
            ("yarn", Some(true)) => &["yarnrc", "npmrc", "cache-folder", "cache_folder", "CACHE_FOLDER"],
            _ => return true,
        };
        !self.around.settings.is_empty() || words.iter().any(|word| self.mentioned(run, word))
    }

    /// Returns what in a run fills a cache.
    pub fn uses(&self, run: &Run) -> Vec<Use<'_>> {
        let commands = self.commands(run);
        let uses = self.filled[run.index].iter().map(|filled| Use {
            row: filled.row,
            command: &commands[filled.command],
            call: filled.call,
            places: filled.places.as_deref(),
            also: &filled.also,
        });
        uses.collect()
    }

    /// Tells whether a run fills the cache of a row's tool.
    pub fn fills_tool(&self, run: &Run, row: &Row) -> bool {
        self.filled[run.index].iter().any(|filled| filled.row.tool == row.tool)
    }

    /// Tells whether a step runs a tool, whatever for.
    pub fn runs_tool(&self, run: &Run, row: &Row) -> bool {
        self.fills_tool(run, row) || self.commands(run).iter().any(|command| program(command).0 == row.tool)
    }

    fn filled_by(&self, run: &Run) -> Vec<Filled> {
        let instruction = self.instruction(run);
        if instruction.flag("network") == Some("none") {
            return Vec::new();
        }
        let scope = self.scope(run);
        let commands = self.commands(run);
        let mut uses = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            let Some((row, call)) = ROWS.iter().find_map(|row| Some((row, self.fills(run, row, command)?))) else {
                continue;
            };
            if moved(row, command, scope) || self.is_configured(run, row) {
                continue;
            }
            let home_is_sure = !command.sudo || row.language == "system";
            let places = if home_is_sure { places(row, command, commands, scope) } else { None };
            // Where a release of it would write does not matter once the release is known.
            let other: &[&str] = if row.tool == "dnf" && places.is_some() { &[] } else { row.build.also };
            let other = other.iter().filter(|path| {
                // Of pnpm before 7, and of yarn before 1.
                !matches!(**path, "~/.pnpm-store" | "~/.yarn") || self.may_be_elsewhere(run, row)
            });
            let also = other.filter_map(|path| place(&[path], command, commands, scope)?).collect();
            uses.push(Filled { row, command: index, call, places, also });
        }
        uses
    }

    /// Returns the call by which a command fills a row's cache.
    fn fills(&self, run: &Run, row: &'static Row, command: &Command) -> Option<&'static str> {
        let build = &row.build;
        let pattern = build.commands.iter().find(|pattern| calls(command, pattern))?;
        if command.args().any(|arg| build.offline.contains(&arg)) || asks_for_help(command) {
            return None;
        }
        let downloads = match row.tool {
            "yarn" => self.is_yarn_classic(run, command),
            "pip" => !takes_local_files_only(command),
            "cargo" => !self.around.vendored,
            "go" => !self.around.vendored && !self.around.go_without_dependencies,
            "pnpm" => !self.around.settings.iter().any(|name| name == ".npmrc"),
            _ => true,
        };
        downloads.then(|| pattern.trim_end_matches(" *"))
    }

    /// Berry's global cache is read at run time, so only what is surely yarn 1 counts.
    fn is_yarn_classic(&self, run: &Run, command: &Command) -> bool {
        let flags = ["--frozen-lockfile", "--pure-lockfile", "--production"];
        match self.around.yarn_classic {
            Some(classic) => classic,
            None => !self.mentioned(run, ".yarnrc.yml") && command.args().any(|arg| flags.contains(&arg)),
        }
    }
}

/// Returns what a command in a container fills: the tool, the call, and where it writes if that can be known. Where
/// yarn and pnpm write depends on the project's settings and file systems, and a distribution's packages belong into
/// the image, so these are left out.
pub fn filled(
    command: &Command,
    commands: &[Command],
    scope: &Scope,
) -> Option<(&'static Row, &'static str, Option<Vec<String>>)> {
    let rows = ROWS.iter().filter(|row| row.language != "system" && !matches!(row.tool, "yarn" | "pnpm"));
    let (row, call) = rows.into_iter().find_map(|row| {
        let call = row.build.commands.iter().find(|pattern| calls(command, pattern))?;
        Some((row, call.trim_end_matches(" *")))
    })?;
    let offline = command.args().any(|arg| row.build.offline.contains(&arg));
    let local = row.tool == "pip" && takes_local_files_only(command);
    if offline || local || asks_for_help(command) || moved(row, command, scope) {
        return None;
    }
    let defeated =
        row.build.defeated_by.iter().any(|sign| {
            command.args().any(|arg| arg == *sign) || scope.value(sign).is_some_and(|value| !value.is_empty())
        });
    let places = if command.sudo { None } else { places(row, command, commands, scope) };
    (!defeated).then_some((row, call, places))
}

/// Returns the call of a tool of a language in a command, such as `pip install`.
pub fn language_call(command: &Command) -> Option<&'static str> {
    let rows = ROWS.iter().filter(|row| row.language != "system");
    let call = rows.flat_map(|row| row.build.commands).find(|pattern| calls(command, pattern))?;
    Some(call.trim_end_matches(" *"))
}

/// Returns the name by which the catalogue's commands go: `pip` for `python3 -m pip` and `pip3.12`, `mvn` for `./mvnw`.
/// The second is how many words it takes.
fn program(command: &Command) -> (String, usize) {
    let program = command.program();
    let is = |prefix: &str| {
        program.strip_prefix(prefix).is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    let argument = |at: usize| command.words.get(at).map(|word| word.text.as_str());
    match program {
        _ if is("python") && argument(1) == Some("-m") => (argument(2).unwrap_or_default().to_owned(), 3),
        "php" if argument(1).is_some_and(|word| word.contains("composer")) => ("composer".into(), 2),
        "corepack" if matches!(argument(1), Some("yarn" | "pnpm" | "npm")) => {
            (argument(1).unwrap_or_default().to_owned(), 2)
        }
        _ if is("pip") => ("pip".into(), 1),
        "mvnw" => ("mvn".into(), 1),
        "gradlew" => ("gradle".into(), 1),
        "composer.phar" => ("composer".into(), 1),
        "pacman" | "yum" | "dnf" => (program.into(), 1),
        _ => (program.to_owned(), 1),
    }
}

/// Tells whether a command is a call of `pip install` or the like. Options may stand before its words.
pub fn calls(command: &Command, pattern: &str) -> bool {
    let mut pattern = pattern.split(' ');
    let (name, skip) = program(command);
    if pattern.next() != Some(name.as_str()) {
        return false;
    }
    let mut args = command.words.iter().skip(skip).map(|word| word.text.as_str());
    let mut follows_option = false;
    for wanted in pattern {
        if wanted == "*" {
            return true;
        }
        loop {
            let Some(arg) = args.next() else { return false };
            if arg == wanted {
                break;
            }
            let option = arg.starts_with(['-', '+']);
            if !option && !follows_option {
                return false;
            }
            follows_option = option && !arg.contains('=');
        }
    }
    true
}

/// Tells whether a command runs a program of the tool at all, also one that only reads its cache.
pub fn runs_tool(command: &Command, row: &Row) -> bool {
    let (name, _) = program(command);
    row.build.commands.iter().any(|pattern| pattern.split(' ').next() == Some(name.as_str()))
}

fn asks_for_help(command: &Command) -> bool {
    command.args().any(|arg| matches!(arg, "--version" | "--help" | "-h" | "-v" | "--dry-run" | "-version"))
        && !command.args().any(|arg| arg == "install")
}

/// Tells whether all that is installed are wheels that are there: nothing is downloaded but what they lack.
fn takes_local_files_only(command: &Command) -> bool {
    let words: Vec<&str> = command.args().skip_while(|arg| *arg != "install").skip(1).collect();
    let named: Vec<&&str> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let from_list = words.iter().any(|word| matches!(*word, "-r" | "--requirement"));
    let wheels = |word: &str| word.ends_with(".whl") || (word.contains('/') && word.ends_with('*'));
    let alone = words.iter().any(|word| matches!(*word, "--no-deps"));
    let local = |word: &str| wheels(word) || (alone && (word.starts_with('.') || word.starts_with('/')));
    !from_list && !named.is_empty() && named.iter().all(|word| local(word))
}

fn moved(row: &Row, command: &Command, scope: &Scope) -> bool {
    row.build.moved_by.iter().any(|sign| {
        if sign.starts_with('-') {
            command.args().any(|arg| arg == *sign || arg.strip_prefix(sign).is_some_and(|rest| rest.starts_with('=')))
        } else {
            command.env.iter().any(|(name, _)| name == sign)
                || (scope.known && scope.may_be_set(sign))
                || scope.env.contains_key(*sign)
        }
    })
}

/// Returns the option by which a command has its tool keep the cache in another directory, and that directory.
pub fn moving_option<'a>(command: &'a Command, row: &'static Row) -> Option<(&'static str, &'a str)> {
    let mut signs = row.build.moved_by.iter().filter(|sign| sign.starts_with("--cache") || **sign == "--store-dir");
    signs.find_map(|sign| {
        let mut args = command.args();
        let value =
            args.find_map(|arg| arg.strip_prefix(sign).filter(|rest| rest.is_empty() || rest.starts_with('=')))?;
        Some((*sign, value.strip_prefix('=').or_else(|| args.next())?))
    })
}

fn places(row: &Row, command: &Command, commands: &[Command], scope: &Scope) -> Option<Vec<String>> {
    if row.tool == "dnf" {
        return dnf(command, scope).map(|place| vec![place.to_owned()]);
    }
    if row.build.writes.is_empty() {
        return None;
    }
    // What lies below /usr/local/share is root's.
    if row.tool == "yarn" && scope.is_root() != Some(true) {
        let paths = ["$YARN_CACHE_FOLDER", "$XDG_CACHE_HOME/yarn", "~/.cache/yarn"];
        return place(&paths, command, commands, scope).flatten().map(|place| vec![place]);
    }
    row.build.writes.iter().map(|paths| place(paths, command, commands, scope).flatten()).collect()
}

/// Fedora 41 came with dnf5, which keeps its cache elsewhere; microdnf differs from release to release.
fn dnf(command: &Command, scope: &Scope) -> Option<&'static str> {
    let os = scope.os.as_ref()?;
    let release = os.release.as_deref().map(|release| release.split('.').next().unwrap_or_default().parse::<u32>());
    match (os.family, release) {
        _ if command.program() == "microdnf" => None,
        ("fedora", None) => Some("/var/cache/libdnf5"),
        ("fedora", Some(Ok(41..))) => Some("/var/cache/libdnf5"),
        ("fedora", Some(Ok(22..=40))) | ("rhel", Some(Ok(8..=10))) | ("amazon", Some(Ok(2023..))) => {
            Some("/var/cache/dnf")
        }
        ("rhel", Some(Ok(7))) | ("amazon", Some(Ok(2))) => Some("/var/cache/yum"),
        _ => None,
    }
}

/// Returns the first path whose variables are set: `Some(None)` if none is, `None` if one of them is not known.
fn place(paths: &[&str], command: &Command, commands: &[Command], scope: &Scope) -> Option<Option<String>> {
    for path in paths {
        let path = match path.strip_prefix('$') {
            Some(rest) => {
                let (name, below) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
                let value = variable(name, command, commands, scope)?;
                if value.is_empty() {
                    continue;
                }
                format!("{value}{below}")
            }
            None => match path.strip_prefix('~') {
                Some(below) => {
                    format!("{}{below}", variable("HOME", command, commands, scope)?.trim_end_matches('/'))
                }
                None => (*path).to_owned(),
            },
        };
        // A relative one depends on where the command runs.
        return Some(clean(&path)).filter(|place| path.starts_with('/') && may_be_own(place)).map(Some);
    }
    Some(None)
}

/// Tells whether a cleaned path may be a directory of a tool's own: no device, none that others need, nothing installed.
fn may_be_own(place: &str) -> bool {
    const SYSTEM: &[&str] = &[
        "bin", "boot", "etc", "games", "home", "include", "lib", "lib32", "lib64", "libexec", "local", "media", "mnt",
        "opt", "root", "run", "sbin", "share", "snap", "srv", "src", "tmp", "usr", "var",
    ];
    let names: Vec<&str> = place.split('/').filter(|name| !name.is_empty()).collect();
    let below = match &names[..] {
        ["usr", "local", below @ ..] | ["usr" | "var", below @ ..] | below => below,
    };
    let is_system = match below {
        [] | ["dev" | "proc" | "sys", ..] | ["home", _] => true,
        [name] => SYSTEM.contains(name) || names[0] == "var" && matches!(*name, "cache" | "log" | "spool"),
        _ => false,
    };
    !is_system && !names.iter().any(|name| matches!(*name, ".." | "site-packages" | "dist-packages" | "node_modules"))
}

/// Returns a variable as a command sees it: set before it, exported in the script, or by the stage.
fn variable(name: &str, command: &Command, commands: &[Command], scope: &Scope) -> Option<String> {
    let own = command.env.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone());
    let exported = || {
        let exports = commands.iter().filter(|other| other.program() == "export" || other.words.is_empty());
        let assigned = exports.flat_map(|other| {
            let words = other.args().filter_map(crate::dockerfile::shell::assignment);
            words.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(other.env.iter().cloned())
        });
        assigned.filter(|(set, _)| set == name).last().map(|(_, value)| value)
    };
    match own.or_else(exported) {
        Some(value) => scope.expand(&value),
        None => scope.value(name),
    }
}

/// Looks a mount up.
fn mounted(mount: Mount) -> Mounted {
    let target = mount.target.as_deref();
    let known = target.and_then(|target| catalogue::for_mount(None, target));
    let tool = known.zip(target).filter(|((row, _), target)| is_surely_of(target, row)).map(|((row, _), _)| row);
    Mounted { mount, known, tool }
}

/// Tells whether a target is a row's for a fact: `…/target` and a last name are conventions.
fn is_surely_of(target: &str, row: &Row) -> bool {
    let is_home = |home: &&str| {
        let home = home.trim_start_matches('~');
        home.starts_with('/') && (target.contains(home) || within(home, target))
    };
    row.homes.iter().any(is_home) || row.in_volume.iter().any(|path| within(target, &format!("/cache/{path}")))
}
