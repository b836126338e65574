//! Doctor's rules for one Dockerfile: facts in, findings and their edits out. Pure; when not sure, a rule is silent.

use super::deletions::{self, Reach};
use super::edits::{self, Edit};
use super::steps::{Facts, Mounted, Run, Use, calls, moving_option, runs_tool};
use super::{Finding, Severity};
use crate::catalogue::{self, Class, Row, Sharing};
use crate::dockerfile::Instruction;
use crate::dockerfile::bases::Os;
use crate::dockerfile::mount::{Mount, clean, within};
use crate::dockerfile::shell::Command;
use crate::dockerfile::stage::Step;
use crate::report::quote;

/// A finding, and the edits of its file that put it right; none if that is for the author to decide.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub finding: Finding,
    pub edits: Vec<Edit>,
}

/// Returns all that is found in one Dockerfile, in the order of its lines.
pub fn check(facts: &Facts<'_>) -> Vec<Found> {
    let mut found: Vec<Found> = facts
        .file
        .problems
        .iter()
        // What is wrong further down may come of the first.
        .take(1)
        .map(|problem| at(facts, "dockerfile-unreadable", Severity::Error, problem.line, problem.message.clone()))
        .collect();
    for run in &facts.runs {
        found.extend(missing_cache_mount(facts, run));
        found.extend(dead_cache_mount(facts, run));
        found.extend(defeated_cache_mount(facts, run));
        found.extend(unsafe_sharing(facts, run));
        found.extend(mount_over_install(facts, run));
        found.extend(mount_owner(facts, run));
        found.extend(cache_in_image(facts, run));
        found.extend(secret_in_cache(facts, run));
    }
    found.extend(copied_from_mount(facts));
    found.extend(copied_cache(facts));
    found.extend(several_owners(facts));
    found.extend(mount_id_clash(facts));
    found.extend(copy_before_install(facts));
    found.sort_by_key(|found| found.finding.line);
    found
}

fn at(facts: &Facts<'_>, check: &'static str, severity: Severity, line: u32, message: String) -> Found {
    let file = Some(facts.path.to_owned());
    Found { finding: Finding { check, file, line: Some(line), ..Finding::new(severity, message) }, edits: Vec::new() }
}

fn warning(facts: &Facts<'_>, check: &'static str, line: u32, message: String) -> Found {
    at(facts, check, Severity::Warning, line, message)
}

fn line_of(facts: &Facts<'_>, command: &Command) -> u32 {
    facts.file.line_of(command.span.start)
}

/// Returns the cache mounts whose target is known.
fn caches(run: &Run) -> impl Iterator<Item = (&Mounted, &str)> {
    run.mounts.iter().filter(|mount| mount.is_cache()).filter_map(|mount| Some((mount, mount.target.as_deref()?)))
}

/// bundler and gem share directories.
fn family(tool: &str) -> &str {
    if tool == "bundler" { "gem" } else { tool }
}

/// Returns the uses of a run by tool, in their order.
fn by_tool<'a>(uses: &'a [Use<'a>]) -> Vec<(&'static Row, Vec<&'a Use<'a>>)> {
    let mut groups: Vec<(&'static Row, Vec<&Use<'_>>)> = Vec::new();
    for used in uses {
        match groups.iter_mut().find(|(row, _)| row.tool == used.row.tool) {
            Some((_, group)) => group.push(used),
            None => groups.push((used.row, vec![used])),
        }
    }
    groups
}

fn covered(run: &Run, uses: &[&Use<'_>]) -> bool {
    run.mounts.iter().any(|mount| uses.iter().any(|used| used.meets(mount)))
}

/// Tells whether a step has a cache mount that is meant for a tool, wherever it is, or one whose target is not known.
fn may_have_mount(run: &Run, row: &Row) -> bool {
    run.mounts.iter().filter(|mount| mount.is_cache()).any(|mount| {
        let Some(target) = &mount.target else { return true };
        let by_name = || catalogue::for_mount(mount.option(&["id"]), target).map(|(row, _)| row);
        mount.tool.or_else(by_name).is_some_and(|other| family(other.tool) == family(row.tool))
    })
}

fn missing_cache_mount(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    let uses = facts.uses(run);
    let mut found = Vec::new();
    for (row, uses) in by_tool(&uses) {
        if covered(run, &uses) || may_have_mount(run, row) {
            continue;
        }
        if !is_missed(facts, run, row) {
            continue;
        }
        let command = uses[0].call;
        let places = uses.iter().find_map(|used| used.places);
        let message = match places {
            Some(places) => {
                let places: Vec<String> = places.iter().map(|place| format!("`{place}`")).collect();
                format!(
                    "`{command}` downloads everything again each time this step runs: {} keeps its downloads in {}, where no cache mount is",
                    row.tool,
                    places.join(" and ")
                )
            }
            None => format!(
                "`{command}` downloads everything again each time this step runs: it has no cache mount for {}",
                row.tool
            ),
        };
        let place = places.into_iter().flatten().find(|place| !has_sure_parent(facts, run, place));
        let parent = place.and_then(|place| place.rsplit_once('/')).map(|(parent, _)| parent);
        let message = match parent {
            Some(parent) => format!("{message}; with one, `{parent}` belongs to root unless it is made before"),
            None => message,
        };
        let mut missing = warning(facts, "missing-cache-mount", line_of(facts, uses[0].command), message);
        if may_be_for_the_image(facts, run, row) {
            missing.finding.severity = Severity::Note;
            missing.finding.message.push_str("; a mount would take it out of the image, which may need it there");
            found.push(missing);
            continue;
        }
        if let Some(file) = &facts.around.without_buildkit {
            missing
                .finding
                .message
                .push_str(&format!("; the legacy builder, which `{file}` builds with, would refuse a mount"));
            found.push(missing);
            continue;
        }
        // What would keep the mount empty goes as well.
        let is_set = |sign: &&&str| {
            let value = facts.scope(run).env.get(**sign).and_then(Option::as_deref);
            value.is_some_and(|value| is_on(sign, value))
        };
        let mut edits = mount_edits(facts, run, row, &uses);
        for sign in row.build.defeated_by.iter().filter(is_set) {
            let unset = unset(facts, run, row, sign, &|run| gets_mount(facts, run, row));
            if unset.is_none() {
                let told = format!("; `{sign}` would keep a mount empty, so it has to be taken out too");
                missing.finding.message.push_str(&told);
            }
            edits = edits.zip(unset).map(|(edits, unset)| [edits, vec![unset]].concat());
        }
        missing.edits = edits.unwrap_or_default();
        found.push(missing);
    }
    found
}

/// Returns the edits that mount a tool's places on a step and take out what would keep the mounts empty; `None` where a part
/// of that cannot be done, or something might need what is then no longer in the layer.
fn mount_edits(facts: &Facts<'_>, run: &Run, row: &'static Row, uses: &[&Use<'_>]) -> Option<Vec<Edit>> {
    // What `sudo` runs, the user's own mounts and the preparations of a root shell do not fit.
    if uses.iter().any(|used| used.places.is_none() || used.command.sudo) {
        return None;
    }
    if !knows_mounts(&facts.file.source) || is_special(facts, run, row) || has_secrets_alone(facts, run, row) {
        return None;
    }
    let places = with_lists(facts, run, row, uses.first()?.places?.to_vec());
    let mounts: Vec<&str> = places.iter().map(String::as_str).collect();
    if mounts.iter().any(|place| !has_sure_parent(facts, run, place) || is_needed(facts, run, row, place)) {
        return None;
    }
    let mut edits = add(facts, run, row, &places)?;
    for sign in row.build.defeated_by {
        let sets = |(name, _): &(String, String)| name == sign;
        let exports = |word: &str| word.split_once('=').is_some_and(|(name, _)| name == *sign);
        if facts.commands(run).iter().any(|command| command.env.iter().any(sets) || command.args().any(exports)) {
            return None;
        }
        for (_, edit) in uses.iter().filter_map(|used| without_flag(facts, used, sign)) {
            edits.push(edit?);
        }
    }
    for Emptying { edits: removal, .. } in emptying(facts, run, row, &mounts) {
        edits.extend(removal?);
    }
    if row.language == "system"
        && let Some(found) = emptied_by_the_image(facts, run, &facts.uses(run), &places)
    {
        if found.edits.is_empty() {
            return None;
        }
        edits.extend(found.edits);
    }
    Some(edits)
}

/// Tells whether the Dockerfile's own syntax may have mounts: that of docker/dockerfile 1.0 and 1.1 has none.
fn knows_mounts(source: &str) -> bool {
    let comments = source.lines().map_while(|line| line.trim_start_matches('\u{feff}').trim().strip_prefix('#'));
    let mut directives = comments.filter_map(|comment| comment.split_once('='));
    let syntax = directives.find(|(name, _)| name.trim().eq_ignore_ascii_case("syntax"));
    let version = syntax.and_then(|(_, image)| image.trim().rsplit_once("docker/dockerfile:")).map(|(_, tag)| tag);
    let old = version.and_then(|tag| tag.split(['.', '-', '@']).nth(1).filter(|_| tag.starts_with("1.")));
    !matches!(old, Some("0" | "1"))
}

/// Tells whether what a tool keeps is more than downloads, for other tools or for the image, or a mount on it has no effect.
fn is_special(facts: &Facts<'_>, run: &Run, row: &Row) -> bool {
    let mut commands = facts.runs.iter().flat_map(|run| facts.commands(run));
    let java = ["mvn", "mvnw", "gradle", "gradlew", "sbt", "lein", "clj", "clojure", "jbang"];
    let puts = ["install:", ":install", "build-classpath", "publishToMavenLocal"];
    match row.tool {
        // `mavenLocal()`
        _ if row.language == "java" => commands.any(|command| {
            let is_kept = |arg: &str| arg == "install" || puts.iter().any(|goal| arg.contains(goal));
            if runs_tool(command, row) { command.args().any(is_kept) } else { java.contains(&command.program()) }
        }),
        // What it installs are links into its cache.
        "uv" | "bun" => facts.around.symlinks || facts.file.source.contains("symlink"),
        "zypper" => !["keeppackages", "keep-packages"].iter().any(|word| facts.mentioned(run, word)),
        _ => false,
    }
}

/// Tells whether of a step and the others of its tool, the earlier has credentials for its downloads and the later has not.
fn has_secrets_alone(facts: &Facts<'_>, run: &Run, row: &Row) -> bool {
    let has = |run: &Run| run.mounts.iter().any(|mount| matches!(mount.kind.as_str(), "ssh" | "secret"));
    let of_tool = |other: &Run| facts.commands(other).iter().any(|command| runs_tool(command, row));
    if has(run) {
        facts.after(run).any(|other| !has(other) && of_tool(other))
    } else {
        facts.before(run).any(|other| has(other) && of_tool(other))
    }
}

/// Returns the number of a step's user, if no build argument can change it.
fn fixed_uid(facts: &Facts<'_>, run: &Run) -> Option<u32> {
    let varies = |instruction: &Instruction| instruction.args.text.contains('$');
    let user = facts.history(run).filter(|instruction| instruction.keyword == "USER").last();
    let uid = facts.scope(run).uid().filter(|_| !user.is_some_and(varies))?;
    let made = |other: &Run| made_with(facts, other, &|arg| arg.contains('$'));
    (uid == 0 || !facts.before(run).any(made)).then_some(uid)
}

/// Tells whether a step makes a user with an argument.
fn made_with(facts: &Facts<'_>, run: &Run, is_wanted: &dyn Fn(&str) -> bool) -> bool {
    let mut makers = facts.commands(run).iter().filter(|command| matches!(command.program(), "useradd" | "adduser"));
    makers.any(|command| command.args().any(is_wanted))
}

/// Tells whether the directory above a place is surely there and the user's: BuildKit makes what is missing above a mount as
/// root, and what else the user's programs put there would fail.
fn has_sure_parent(facts: &Facts<'_>, run: &Run, place: &str) -> bool {
    let scope = facts.scope(run);
    if scope.is_root() != Some(false) {
        return true;
    }
    let Some((parent, _)) = place.rsplit_once('/') else { return false };
    let makes_it = |other: &&Run| {
        let words = facts.commands(other).iter().filter(|command| command.program() == "mkdir").flat_map(Command::args);
        let mut paths = words.filter_map(|word| deletions::path(facts, other, word));
        facts.scope(other).user == scope.user && paths.any(|path| clean(&path) == parent)
    };
    let by_useradd = |other: &Run| {
        facts.commands(other).iter().any(|command| {
            let makes_home = |arg: &str| {
                arg == "--create-home" || arg.starts_with('-') && !arg.starts_with("--") && arg.contains('m')
            };
            command.program() == "useradd" && !command.args().any(makes_home)
        })
    };
    let no_home = |arg: &str| matches!(arg, "-H" | "--no-create-home" | "-M");
    let has_home = || !facts.before(run).any(|other| by_useradd(other) || made_with(facts, other, &no_home));
    let is_home = || !scope.env.contains_key("HOME") && scope.home().as_deref() == Some(parent);
    is_home() && has_home() || facts.before(run).any(|other| makes_it(&other))
}

/// Tells whether a step has a mount for all that a tool does in it, or gets one from a fix.
fn gets_mount(facts: &Facts<'_>, run: &Run, row: &'static Row) -> bool {
    let uses = facts.uses(run);
    let uses: Vec<&Use<'_>> = uses.iter().filter(|used| used.row.tool == row.tool).collect();
    covered(run, &uses) || mount_edits(facts, run, row, &uses).is_some()
}

/// Tells whether something else may need what a tool keeps in a directory, which a mount takes out of the layer.
fn is_needed(facts: &Facts<'_>, run: &Run, row: &Row, place: &str) -> bool {
    let is_above = |stage: usize| facts.is_on(stage, run.stage);
    let is_taken = |from: usize, path: &str| is_above(from) && deletions::reach(path, place) != Reach::Nothing;
    let is_bound = |mount: &Mounted| {
        let from = mount.option(&["from"]).and_then(|from| stage_of(facts, facts.stages.len(), from));
        from.is_some_and(|from| is_taken(from, &clean(mount.option(&["source", "src"]).unwrap_or("/"))))
    };
    // What restores without the packages' own directory, and what looks for wheels elsewhere, does not read it.
    let words = if matches!(row.tool, "nuget" | "pip") { &[] } else { row.build.offline };
    let works_offline = |other: &Run| {
        let offline = |command: &Command| {
            (command.args().any(|arg| words.contains(&arg)) || facts.instruction(other).flag("network") == Some("none"))
                && runs_tool(command, row)
        };
        !other.mounts.iter().any(|mount| mount.meets(place)) && facts.commands(other).iter().any(offline)
    };
    // The steps themselves are looked at where mounts are added for all of them.
    let counts = |at: usize| !row.build.read_later || facts.file.instructions[at].keyword == "ENV" || row.tool == "go";
    let speaks_of_offline = |stage: usize| {
        let mut steps = facts.stages[stage].steps.iter().enumerate();
        steps.any(|(at, step)| {
            facts.offline[step.instruction] && counts(step.instruction) && facts.is_after(stage, at, run)
        })
    };
    copies(facts).any(|copied| is_taken(copied.from, &copied.path))
        || (0..facts.stages.len()).any(speaks_of_offline)
        || facts.runs.iter().flat_map(|run| &run.mounts).any(is_bound)
        || facts.after(run).any(works_offline)
        || deletions::is_named_elsewhere(facts, run, place)
}

/// Tells whether a mount is really lacking: not where the packages of an earlier step lie in the image, and not where
/// they are to be in the image.
fn is_missed(facts: &Facts<'_>, run: &Run, row: &'static Row) -> bool {
    let earlier: Vec<&Run> = facts.before(run).filter(|other| facts.fills_tool(other, row)).collect();
    let mounted = |other: &&Run| {
        let uses = facts.uses(other);
        let uses: Vec<&Use<'_>> = uses.iter().filter(|used| used.row.tool == row.tool).collect();
        covered(other, &uses)
    };
    if row.tool == "nuget" {
        let packages = |other: &&Run| caches(other).any(|(_, target)| target.ends_with("/.nuget/packages"));
        return earlier.is_empty() || earlier.iter().any(packages);
    }
    if !row.build.read_later {
        return true;
    }
    if !earlier.is_empty() && !earlier.iter().any(mounted) {
        return false;
    }
    let uses = facts.uses(run);
    let places: Vec<&String> = uses
        .iter()
        .filter(|used| used.row.tool == row.tool)
        .flat_map(|used| used.places.into_iter().flatten().chain(used.also))
        .collect();
    let above: Vec<usize> = (0..facts.stages.len()).filter(|stage| facts.is_on(*stage, run.stage)).collect();
    // Somebody copies the packages out.
    let copied = copies(facts).any(|Copied { from, path, .. }| {
        above.contains(&from) && places.iter().any(|place| within(&path, place) || within(place, &path))
    });
    let last = facts.stages.len() - 1;
    !copied && (!above.contains(&last) || starts_tool(facts, last, row) != Some(true))
}

/// Tells whether an image may need the packages: nothing is known of what the last one starts, or one of a stage that is
/// built for itself does not surely start something else.
fn may_be_for_the_image(facts: &Facts<'_>, run: &Run, row: &Row) -> bool {
    let last = facts.stages.len() - 1;
    let needs = |end: usize| match starts_tool(facts, end, row) {
        Some(starts) => starts && end != last,
        None => true,
    };
    row.build.read_later && (0..=last).any(|end| facts.is_on(end, run.stage) && is_end(facts, end, row) && needs(end))
}

/// Tells whether a stage is for an image: the last one, one that says what it starts, or one that no other takes anything
/// of and that is not there to run the tool.
fn is_end(facts: &Facts<'_>, stage: usize, row: &Row) -> bool {
    let steps = &facts.stages[stage].steps;
    let says = |step: &Step| matches!(facts.file.instructions[step.instruction].keyword.as_str(), "CMD" | "ENTRYPOINT");
    let is_taken = |name: &str, from: usize| stage_of(facts, from, name) == Some(stage);
    let mounts = facts.runs.iter().flat_map(|run| run.mounts.iter().map(move |mount| (run.stage, mount)));
    let is_used = || {
        (0..facts.stages.len()).any(|other| other != stage && facts.is_on(other, stage))
            || copies(facts).any(|copied| copied.from == stage)
            || mounts.clone().any(|(at, mount)| mount.option(&["from"]).is_some_and(|from| is_taken(from, at)))
    };
    let runs_it = || steps.iter().flat_map(|step| &step.commands).any(|command| runs_tool(command, row));
    stage + 1 == facts.stages.len() || steps.iter().any(says) || !is_used() && !runs_it()
}

/// Tells whether the image of a stage starts the tool; `None` if neither that nor something else is sure.
fn starts_tool(facts: &Facts<'_>, end: usize, row: &Row) -> Option<bool> {
    let lineage = facts.lineage(end);
    let steps: Vec<&Step> = lineage.iter().flat_map(|stage| &facts.stages[*stage].steps).collect();
    let started_by = |keyword: &str| {
        let instructions = steps.iter().map(|step| &facts.file.instructions[step.instruction]);
        instructions
            .filter(|instruction| instruction.keyword == keyword)
            .map(crate::dockerfile::stage::scripts)
            .collect()
    };
    let (entries, commands): (Vec<Vec<Command>>, Vec<Vec<Command>>) = (started_by("ENTRYPOINT"), started_by("CMD"));
    let is_tool = |command: &Command| runs_tool(command, row) || is_opaque(command) && shell_only(command);
    if entries.iter().chain(&commands).flatten().any(is_tool) {
        return Some(true);
    }
    // What stands in `CMD` is what an entry point is given.
    let is_some = |starts: &&Vec<Command>| !starts.is_empty();
    let starts = entries.last().filter(is_some).or(commands.last().filter(is_some))?;
    let mut programs = row.build.commands.iter().filter_map(|pattern| pattern.split(' ').next());
    let is_sure = !programs.any(|name| facts.around.words.contains(name))
        && starts.iter().all(|command| is_own(facts, &steps, command, row));
    is_sure.then_some(false)
}

/// Tells whether what an image starts is surely the project's own program: what the tool built, or installed of the
/// project under a name that no step gives to anything else. A script may run any tool.
fn is_own(facts: &Facts<'_>, steps: &[&Step], command: &Command, row: &Row) -> bool {
    const OTHERS: &[&str] = &[
        "tini",
        "dumb-init",
        "catatonit",
        "gosu",
        "su-exec",
        "su",
        "env",
        "zsh",
        "ash",
        "dash",
        "sleep",
        "tail",
        "supervisord",
    ];
    const SYSTEM: &[&str] =
        &["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/cargo/bin", "/go/bin"];
    let program = command.words.first().map_or("", |word| word.text.as_str());
    if program.ends_with(".sh")
        || program.starts_with('$')
        || OTHERS.contains(&command.program())
        || shell_only(command)
    {
        return false;
    }
    if row.language == "java" {
        return command.program() == "java";
    }
    let is_it = |word: &str| word.rsplit('/').next().and_then(|name| name.split('@').next()) == Some(command.program());
    let of_tool = || steps.iter().flat_map(|step| &step.commands).filter(|command| runs_tool(command, row));
    let installs = |command: &&Command| command.args().next() == Some("install");
    let is_fetched = |command: &Command| {
        let names = |arg: &str| arg.contains('@') || command.program() == "cargo" && !arg.starts_with('-');
        installs(&command) && !command.args().any(|arg| arg.starts_with("--path")) && command.args().skip(1).any(names)
    };
    if program.contains("target/") || of_tool().any(|command| !is_fetched(command) && command.args().skip(1).any(is_it))
    {
        return true;
    }
    let is_put = |step: &&Step| {
        let instruction = &facts.file.instructions[step.instruction];
        let is_copy = matches!(instruction.keyword.as_str(), "COPY" | "ADD");
        let mut copied = instruction.args.text.split([' ', '\t', '"', ',', ']']).filter(|_| is_copy);
        let mut named =
            step.commands.iter().flat_map(|command| command.args().chain(command.outputs.iter().map(String::as_str)));
        copied.any(|word| {
            word == "/" || word.contains('/') && is_it(word) || word.trim_end_matches('/').ends_with("/bin")
        }) || named.any(is_it)
    };
    let is_in_system = program.rsplit_once('/').is_none_or(|(directory, _)| SYSTEM.contains(&directory));
    of_tool().any(|command| installs(&command) && !is_fetched(command)) && is_in_system && !steps.iter().any(is_put)
}

fn shell_only(command: &Command) -> bool {
    matches!(command.program(), "sh" | "bash" | "make" | "just" | "task" | "air" | "npm" | "watchexec")
}

/// Tells whether a command may run any tool there is.
fn is_opaque(command: &Command) -> bool {
    let program = command.words.first().map_or("", |word| word.text.as_str());
    let known = ["mvnw", "gradlew"].iter().any(|name| program.ends_with(name));
    let runner = matches!(
        program,
        "make"
            | "just"
            | "task"
            | "mage"
            | "cmake"
            | "ninja"
            | "sh"
            | "bash"
            | "npm"
            | "yarn"
            | "pnpm"
            | "bazel"
            | "eval"
    );
    !known && (runner || program.starts_with("./") || program.ends_with(".sh") || program.starts_with('$'))
}

/// Returns the edits that mount the places of a tool: on this run, and on later ones that read what it downloaded, without
/// what empties the mounts there.
fn add(facts: &Facts<'_>, run: &Run, row: &'static Row, places: &[String]) -> Option<Vec<Edit>> {
    let mut runs = vec![run];
    let mut removals = Vec::new();
    if row.build.read_later {
        for later in facts.after(run) {
            let commands = facts.commands(later);
            let reads = commands.iter().any(|command| runs_tool(command, row));
            let offline = |command: &Command| command.args().any(|arg| row.build.offline.contains(&arg));
            if commands.iter().any(|command| may_read(command, row) || (reads && offline(command)))
                || (commands.is_empty() && facts.instruction(later).json().is_none())
            {
                return None;
            }
            if reads && !places.iter().any(|place| later.mounts.iter().any(|mount| mount.meets(place))) {
                // A mount of it that is elsewhere has to be put right before.
                if may_have_mount(later, row) || facts.scope(later).uid() != facts.scope(run).uid() {
                    return None;
                }
                let mounts: Vec<&str> = places.iter().map(String::as_str).collect();
                for emptying in emptying(facts, later, row, &mounts) {
                    removals.extend(emptying.edits?);
                }
                runs.push(later);
            }
        }
    }
    let owner = match fixed_uid(facts, run)? {
        0 => String::new(),
        uid => format!(",uid={uid}"),
    };
    let ids = needs_id(facts, row);
    let mounts: Option<Vec<Edit>> = runs
        .into_iter()
        .map(|run| {
            let wanted = places.iter().filter(|place| !run.mounts.iter().any(|mount| mount.meets(place)));
            let mounts: Vec<String> = wanted
                .map(|place| {
                    let id = match (&ids, &facts.scope(run).os) {
                        (true, Some(os)) => format!(",id={}", id_of(place, os)),
                        (true, None) => return None,
                        (false, _) => String::new(),
                    };
                    let locked = if row.sharing == Sharing::Shared { "" } else { ",sharing=locked" };
                    (!place.contains([',', ' ', '"', '\'', '$']))
                        .then(|| format!("type=cache{id},target={place}{locked}{owner}"))
                })
                .collect::<Option<_>>()?;
            (!mounts.is_empty()).then(|| edits::add_mounts(facts.file, facts.instruction(run), &mounts))
        })
        .collect();
    Some([mounts?, removals].concat())
}

/// Tells whether a command may be a program of a tool's language, which then reads what the tool downloaded.
fn may_read(command: &Command, row: &Row) -> bool {
    let is_other = |other: &Row| other.language != row.language && runs_tool(command, other);
    is_opaque(command)
        || !(deletions::is_plain(command) || runs_tool(command, row) || catalogue::ROWS.iter().any(is_other))
}

/// Tells whether a command may install packages of the system without its being seen.
fn may_install(command: &Command) -> bool {
    let program = command.program();
    program == "gdebi" || is_opaque(command) && !matches!(program, "npm" | "yarn" | "pnpm" | "cmake" | "ninja")
}

/// Returns the places that may be mounted. A mount on apt's lists would hide those of an earlier step, and one on apk's
/// index likewise: such places are left out, and nothing is left of apk.
fn with_lists(facts: &Facts<'_>, run: &Run, row: &Row, places: Vec<String>) -> Vec<String> {
    let updates = |run: &Run| {
        let fresh = ["update", "-U", "--update", "--update-cache", "--no-cache"];
        let tool =
            |command: &&Command| matches!((row.tool, command.program()), ("apt", "apt" | "apt-get") | ("apk", "apk"));
        let installs = |command: &Command| command.args().any(|arg| matches!(arg, "install" | "add" | "build-dep"));
        let commands: Vec<&Command> = facts.commands(run).iter().filter(tool).collect();
        let first = commands.iter().position(|command| command.args().any(|arg| fresh.contains(&arg)));
        let install = commands.iter().position(|command| installs(command));
        install.is_none_or(|install| first.is_some_and(|first| first <= install))
    };
    let related = |other: &&Run| facts.is_on(other.stage, run.stage) || facts.is_on(run.stage, other.stage);
    let is_lists = |arg: &str| matches!(deletions::reach(arg, "/var/lib/apt/lists"), Reach::Within | Reach::Above);
    let removes = |command: &Command| command.program() == "rm" && command.args().any(is_lists);
    // What is built on the image, or runs in it, may install from lists that nobody removed.
    let leaves_lists = row.tool == "apt" && !facts.commands(run).iter().any(removes);
    if facts.runs.iter().filter(related).all(updates) && !leaves_lists {
        return places;
    }
    match row.tool {
        "apt" => places.into_iter().filter(|place| place != "/var/lib/apt/lists").collect(),
        "apk" => Vec::new(),
        _ => places,
    }
}

/// Tells whether the file has several distributions that would share a system tool's directory.
fn needs_id(facts: &Facts<'_>, row: &Row) -> bool {
    let systems: Vec<Option<Os>> =
        facts.runs.iter().filter(|run| facts.fills_tool(run, row)).map(|run| facts.scope(run).os.clone()).collect();
    row.language == "system" && systems.iter().any(|os| *os != systems[0])
}

fn id_of(place: &str, os: &Os) -> String {
    let mut id = format!("{}-{}", place.trim_start_matches('/').replace('/', "-"), os.family);
    if let Some(release) = &os.release {
        id.push_str(&format!("-{release}"));
    }
    id
}

fn dead_cache_mount(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    let uses = facts.uses(run);
    let scope = facts.scope(run);
    let mut found = Vec::new();
    for (mount, target) in caches(run) {
        let Some(row) = mount.tool else { continue };
        if let Some((sign, place)) = moved_away(facts, run, row, mount) {
            let message =
                format!("the cache mount on `{target}` stays empty: `{sign}` has {} write to `{place}`", row.tool);
            let mut dead = warning(facts, "dead-cache-mount", mount.line, message);
            dead.finding.subject = Some(target.to_owned());
            found.push(dead);
            continue;
        }
        let mine: Vec<&Use<'_>> = uses.iter().filter(|used| family(used.row.tool) == family(row.tool)).collect();
        let known = mine.iter().all(|used| used.places.is_some()) && scope.known;
        if mine.is_empty() || !known {
            continue;
        }
        let unlinked_apk = target == "/var/cache/apk" && !facts.mentioned(run, "/etc/apk/cache");
        if mine.iter().any(|used| used.meets(mount)) && !unlinked_apk {
            continue;
        }
        let mut places: Vec<&String> = mine.iter().flat_map(|used| used.places.into_iter().flatten()).collect();
        places.dedup();
        // The one that no other mount is on, or that is called alike.
        let leaf = target.rsplit('/').next();
        let unmet: Vec<&String> =
            places.iter().filter(|place| !caches(run).any(|(other, _)| other.meets(place))).copied().collect();
        let alike = unmet.iter().find(|place| place.rsplit('/').next() == leaf);
        let Some(place) = alike.or(unmet.first()).or(places.first()).copied() else { continue };
        let why = match row.tool {
            "apk" => "apk keeps packages only where `/etc/apk/cache` is or leads".to_owned(),
            _ => match scope.is_root() {
                Some(false) => format!(
                    "{} writes to `{place}` as user `{}`",
                    mine[0].row.tool,
                    scope.user.as_deref().unwrap_or_default()
                ),
                _ => format!("{} writes to `{place}` here", mine[0].row.tool),
            },
        };
        let message = format!("the cache mount on `{target}` stays empty: {why}");
        let mut dead = warning(facts, "dead-cache-mount", mount.line, message);
        dead.finding.subject = Some(target.to_owned());
        let fits = || {
            has_sure_parent(facts, run, place)
                && emptying(facts, run, mine[0].row, &[place.as_str()]).iter().all(|emptying| emptying.edits.is_some())
                && !is_needed(facts, run, mine[0].row, place)
        };
        if (alike.is_some() || unmet.len() == 1) && !place.contains([',', ' ', '"', '\'', '$']) && fits() {
            dead.edits = option(facts, mount, &["target", "dst", "destination"], place).into_iter().collect();
        }
        found.push(dead);
    }
    found
}

/// Returns the option, and its directory, by which all that may fill a mount in a step writes elsewhere.
fn moved_away(facts: &Facts<'_>, run: &Run, row: &'static Row, mount: &Mount) -> Option<(&'static str, String)> {
    let commands = facts.commands(run).iter().filter(|command| !deletions::is_plain(command));
    let moves = commands.map(|command| {
        let (sign, word) = moving_option(command, row).filter(|_| runs_tool(command, row))?;
        let place =
            deletions::path(facts, run, word).filter(|place| !place.contains(['$', '`', '*', '?', '[', '{']))?;
        let place = clean(&place);
        (!mount.meets(&place)).then_some((sign, place))
    });
    moves.collect::<Option<Vec<_>>>()?.pop()
}

/// Returns the edit that gives an option of a mount another value.
fn option(facts: &Facts<'_>, mount: &Mount, names: &[&str], value: &str) -> Option<Edit> {
    let text = facts.file.source.get(mount.span.clone())?;
    let mut at = mount.span.start;
    for part in text.split(',') {
        let key = part.split('=').next().unwrap_or_default();
        if names.contains(&key.trim().to_lowercase().as_str()) && !part.contains(['"', '\'', '\n']) {
            return Some(Edit { range: at + key.len() + 1..at + part.len(), text: value.to_owned() });
        }
        at += part.len() + 1;
    }
    None
}

/// Returns the edit that adds options to a mount.
fn append(facts: &Facts<'_>, mount: &Mount, text: &str) -> Option<Edit> {
    let plain = !facts.file.source.get(mount.span.clone())?.contains(['"', '\'', '\n']);
    plain.then(|| Edit { range: mount.span.end..mount.span.end, text: text.to_owned() })
}

fn defeated_cache_mount(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    const CHECK: &str = "defeated-cache-mount";
    let uses = facts.uses(run);
    let scope = facts.scope(run);
    let mut found = Vec::new();
    let mut say = |command: &Command, message: String, edits: Option<Vec<Edit>>| {
        let mut defeated = warning(facts, CHECK, line_of(facts, command), message);
        defeated.edits = edits.unwrap_or_default();
        found.push(defeated);
    };
    for used in &uses {
        let row = used.row;
        if !caches(run).any(|(mount, _)| used.meets(mount)) {
            continue;
        }
        for sign in row.build.defeated_by {
            if sign.starts_with('-') {
                let Some((command, edit)) = without_flag(facts, used, sign) else { continue };
                let message = format!("`{sign}` keeps {} from using the cache mount of this step", row.tool);
                say(command, message, edit.map(|edit| vec![edit]));
            } else {
                let own = used.command.env.iter().any(|(name, value)| name == sign && is_on(sign, value));
                let of_stage = scope.env.get(*sign).and_then(Option::as_deref).is_some_and(|value| is_on(sign, value));
                if own || of_stage {
                    let message = format!("`{sign}` keeps {} from using the cache mount of this step", row.tool);
                    let is_mounted = |other: &Run| {
                        let uses = facts.uses(other);
                        let uses: Vec<&Use<'_>> = uses.iter().filter(|used| used.row.tool == row.tool).collect();
                        covered(other, &uses)
                    };
                    let edit =
                        if own { None } else { unset(facts, run, row, sign, &is_mounted).map(|edit| vec![edit]) };
                    say(used.command, message, edit);
                }
            }
        }
    }
    for (row, mine) in by_tool(&uses) {
        let mounts: Vec<&str> = caches(run)
            .filter(|(mount, _)| mine.iter().any(|used| used.meets(mount)))
            .map(|(_, target)| target)
            .collect();
        for Emptying { command, message, edits } in emptying(facts, run, row, &mounts) {
            if let Some(message) = message {
                say(command, message, edits);
            }
        }
    }
    found.extend(emptied_by_the_image(facts, run, &uses, &[]));
    found
}

/// A command that empties a cache mount, or may spoil it, or delete more than is in it.
struct Emptying<'a> {
    command: &'a Command,
    /// What to say of it; `None` where that is not sure.
    message: Option<String>,
    /// What takes it out, where that surely changes nothing else.
    edits: Option<Vec<Edit>>,
}

/// Returns the call by which a command empties a tool's cache.
fn cleaner(command: &Command, row: &Row) -> Option<&'static str> {
    let pattern = row.build.cleaned_by.iter().find(|pattern| calls(command, pattern))?;
    (*pattern != "pip cache remove" || command.args().any(|arg| arg == "*")).then_some(pattern)
}

/// Returns the commands of a step that empty a tool's cache mounts, or may do so.
fn emptying<'a>(facts: &'a Facts<'_>, run: &Run, row: &Row, mounts: &[&str]) -> Vec<Emptying<'a>> {
    let commands = facts.commands(run);
    let mut found = Vec::new();
    for (index, command) in commands.iter().enumerate().filter(|_| !mounts.is_empty()) {
        if let Some(pattern) = cleaner(command, row) {
            let message = Some(format!("`{pattern}` empties the cache mount of this step"));
            // These empty another directory too.
            let more = match pattern {
                "apt-get distclean" => !mounts.iter().any(|mount| within("/var/lib/apt/lists", mount)),
                "go clean -modcache" | "go clean -cache" => {
                    let places = |used: Use<'_>| used.places.map(<[String]>::to_vec);
                    let places: Vec<String> = facts.uses(run).into_iter().filter_map(places).flatten().collect();
                    let both = ["-modcache", "-cache"].iter().all(|flag| command.args().any(|arg| arg == *flag));
                    both && !places.iter().all(|place| mounts.iter().any(|mount| within(place, mount)))
                }
                "dotnet nuget locals" => !command.args().any(|arg| arg == "http-cache"),
                _ => false,
            };
            let edits = edits::remove_command(facts.file, commands, index).filter(|_| !more).map(|edit| vec![edit]);
            found.push(Emptying { command, message, edits });
        }
        let hits = |word: &str, mount: &&str| deletions::takes_in(facts, run, word, mount) != Reach::Nothing;
        let removes = |inner: &Command, mount: &&str| {
            inner.program() == "rm" && deletions::operands(inner).any(|(_, word)| hits(word, mount))
        };
        let spoils = |command: &Command, mount: &&str| deletions::may_spoil(facts, run, command, mount);
        let may_empty = |inner: &Command| {
            cleaner(inner, row).is_some() || mounts.iter().any(|mount| removes(inner, mount) || spoils(inner, mount))
        };
        if mounts.iter().any(|mount| spoils(command, mount)) || command.substituted().iter().any(may_empty) {
            found.push(Emptying { command, message: None, edits: None });
        }
        if command.program() == "rm" {
            found.extend(removal(facts, run, row, mounts, index));
        }
    }
    found
}

/// Returns what an `rm` does to mounts. It can be taken out only as far as all that it deletes lies in them.
fn removal<'a>(facts: &'a Facts<'_>, run: &Run, row: &Row, mounts: &[&str], index: usize) -> Option<Emptying<'a>> {
    let commands = facts.commands(run);
    let command = &commands[index];
    let recursive = command.args().any(|arg| arg.starts_with('-') && arg.contains(['r', 'R', 'f']));
    let (mut doomed, mut is_sure, mut empties) = (Vec::new(), true, None);
    for (at, word) in deletions::operands(command) {
        let reaches: Vec<Reach> = mounts.iter().map(|mount| deletions::takes_in(facts, run, word, mount)).collect();
        let has = |reach| reaches.contains(&reach);
        let path = deletions::path(facts, run, word).unwrap_or_default();
        let whole = clean(path.trim_end_matches('*'));
        let is_whole = recursive || path.ends_with('*');
        let of_apt = ["/var/lib/apt/lists", "/var/cache/apt/archives"];
        let holds_all = mounts.contains(&whole.as_str()) || row.tool == "apt" && of_apt.contains(&whole.as_str());
        if has(Reach::Unknown) {
            is_sure = false;
        } else if has(Reach::Above) && is_whole {
            empties = empties.or(Some(word));
            if is_cache_home(facts, run, mounts, &whole) { doomed.push(at) } else { is_sure = false }
        } else if has(Reach::Within) && is_whole && holds_all {
            empties = empties.or(Some(word));
            doomed.push(at);
        }
    }
    if is_sure && doomed.is_empty() {
        return None;
    }
    let edits = if !is_sure {
        None
    } else if deletions::operands(command).count() == doomed.len() {
        edits::remove_command(facts.file, commands, index).map(|edit| vec![edit])
    } else if command.nested {
        None
    } else {
        doomed.iter().map(|at| edits::remove_word(facts.file, command, *at)).collect()
    };
    let message =
        empties.map(|word| format!("`rm` of `{}` empties the cache mount of this step", word.replace('`', "")));
    Some(Emptying { command, message, edits })
}

/// Tells whether a directory is the `.cache` of the user and holds nothing but what lies in the mounts.
fn is_cache_home(facts: &Facts<'_>, run: &Run, mounts: &[&str], directory: &str) -> bool {
    let home = facts.scope(run).home().map(|home| format!("{home}/.cache"));
    let uses = facts.uses(run);
    let is_mounted = |place: &String| {
        mounts.iter().any(|mount| within(place, mount)) || caches(run).any(|(_, target)| within(place, target))
    };
    let fills_mounts = |command: &Command| {
        let mut mine = uses.iter().filter(|used| std::ptr::eq(used.command, command)).peekable();
        mine.peek().is_some() && mine.all(|used| used.places.is_some_and(|places| places.iter().all(is_mounted)))
    };
    let fills_it = |command: &Command| {
        let mut words = command.args().chain(command.outputs.iter().map(String::as_str));
        command.program() != "rm" && words.any(|word| word.contains(".cache"))
    };
    home.as_deref() == Some(directory)
        && !facts.commands(run).iter().any(fills_it)
        && facts.commands(run).iter().all(|command| fills_mounts(command) || deletions::is_plain(command))
        && facts.before(run).all(|other| !facts.instruction(other).args.text.contains(".cache"))
}

/// Returns the command that has a flag, and the edit that takes it out, where that can be done.
fn without_flag<'a>(facts: &Facts<'_>, used: &Use<'a>, flag: &str) -> Option<(&'a Command, Option<Edit>)> {
    let command = used.command;
    let index = command.words.iter().position(|word| word.text == flag)?;
    let edit = edits::remove_word(facts.file, command, index).filter(|_| !command.nested).map(|mut edit| {
        if used.row.tool == "apk" {
            // Without either, apk finds no index in a fresh image.
            edit.text.insert_str(0, " --update-cache");
        }
        edit
    });
    Some((command, edit))
}

/// uv takes these for no; to pip (23.2.1), anything but nothing is yes.
fn is_on(name: &str, value: &str) -> bool {
    name.starts_with("PIP_") && !value.is_empty()
        || !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "false" | "off" | "no" | "n" | "f")
}

/// Returns the edit that takes a variable out of the last `ENV` that set it, if it then changes only steps that have mounts
/// for the tool: not where another one may run it, as a script may.
fn unset(
    facts: &Facts<'_>,
    run: &Run,
    row: &'static Row,
    name: &str,
    is_mounted: &dyn Fn(&Run) -> bool,
) -> Option<Edit> {
    let history: Vec<&Instruction> = facts.history(run).collect();
    let instruction = history.into_iter().rev().find(|instruction| {
        instruction.keyword == "ENV"
            && instruction.args.text.split_whitespace().any(|word| word.split('=').next() == Some(name))
    })?;
    let at = |other: &Run| facts.instruction(other).line;
    let sees_it = |other: &&Run| {
        let stages = facts.lineage(other.stage);
        let ends = |stage: &usize| {
            facts.stages[*stage]
                .steps
                .iter()
                .any(|step| facts.file.instructions[step.instruction].line == instruction.line)
        };
        stages.iter().any(ends) && at(other) > instruction.line
    };
    let is_harmless = |other: &Run| {
        let commands = facts.commands(other);
        let runs_it = facts.fills_tool(other, row);
        let others =
            commands.iter().all(|command| deletions::is_plain(command) || (runs_it && runs_tool(command, row)));
        !commands.is_empty() && others && (!runs_it || is_mounted(other))
    };
    let is_read = facts.file.source.contains(&format!("${name}")) || facts.file.source.contains(&format!("${{{name}"));
    let is_onbuild = |instruction: &Instruction| instruction.keyword == "ONBUILD";
    if is_read || facts.file.instructions.iter().any(is_onbuild) || !facts.runs.iter().filter(sees_it).all(is_harmless)
    {
        return None;
    }
    edits::remove_variable(facts.file, instruction, name)
}

/// What base images bring against caches of system tools: docker-clean, keepcache, a hook of pacman. `added` are places
/// that are to have mounts too.
fn emptied_by_the_image(facts: &Facts<'_>, run: &Run, uses: &[Use<'_>], added: &[String]) -> Option<Found> {
    let scope = facts.scope(run);
    let family = scope.os.as_ref()?.family;
    let of = |tool: &str, directory: &str| {
        uses.iter().find(|used| used.row.tool == tool && !used.command.sudo).filter(|_| {
            let mut mounts = caches(run).map(|(_, target)| target).chain(added.iter().map(String::as_str));
            mounts.any(|target| within(target, directory) || within(directory, target))
        })
    };
    let instruction = facts.instruction(run);
    let (used, message, edit) = if let Some(used) = of("apt", "/var/cache/apt/archives") {
        if !matches!(family, "debian" | "ubuntu")
            || facts.mentioned(run, "apt.conf.d")
            || facts.mentioned(run, "Keep-Downloaded-Packages")
        {
            return None;
        }
        let clean = "rm -f /etc/apt/apt.conf.d/docker-clean";
        // apt-get keeps packages by itself, apt does not.
        let keep = r#"echo 'Binary::apt::APT::Keep-Downloaded-Packages "true";' > /etc/apt/apt.conf.d/keep-cache"#;
        let with_apt = uses.iter().any(|used| used.command.program() == "apt");
        let command = if with_apt { format!("{clean} && {keep}") } else { clean.to_owned() };
        let message =
            "the image's `/etc/apt/apt.conf.d/docker-clean` empties the cache mount after each install".to_owned();
        // What a later step installs without a mount would stay in its layer.
        let keeps = |other: &Run| {
            let gets_none = |used: &Use<'_>| used.command.sudo || facts.instruction(other).json().is_some();
            let is_mounted = other.mounts.iter().any(|mount| mount.meets("/var/cache/apt"));
            let mut uses = facts.uses(other).into_iter().filter(|used| used.row.tool == "apt");
            facts.commands(other).iter().any(may_install) || !is_mounted && uses.any(|used| gets_none(&used))
        };
        let edit = edits::put_first(facts.file, instruction, &command);
        (used, message, edit.filter(|_| !facts.after(run).any(keeps)))
    } else if let Some(used) = of("pacman", "/var/cache/pacman/pkg") {
        if family != "arch" || facts.mentioned(run, "libalpm/hooks") || facts.mentioned(run, "NoExtract") {
            return None;
        }
        let hook = "/usr/share/libalpm/hooks/package-cleanup.hook";
        let message = format!("the image's `{hook}` empties the cache mount after each install");
        (used, message, edits::put_first(facts.file, instruction, &format!("rm -f {hook}")))
    } else {
        let used = uses.iter().find(|used| used.row.tool == "dnf" && !used.command.sudo)?;
        let place = used.places?.first()?;
        let is_mounted = added.contains(place) || caches(run).any(|(mount, _)| mount.meets(place));
        is_mounted.then_some(())?;
        if facts.mentioned(run, "keepcache") || facts.mentioned(run, "dnf.conf") || facts.mentioned(run, "yum.conf") {
            return None;
        }
        let program = used.command.words.first()?.span.end;
        let text = " --setopt=keepcache=1".to_owned();
        let all: Vec<Edit> = uses
            .iter()
            .filter(|used| used.row.tool == "dnf")
            .filter_map(|used| used.command.words.first())
            .map(|word| Edit { range: word.span.end..word.span.end, text: text.clone() })
            .collect();
        let message = format!(
            "{} removes packages after each install, so the cache mount keeps none: `keepcache` is off",
            used.command.program()
        );
        let mut found = warning(facts, "defeated-cache-mount", line_of(facts, used.command), message);
        if program > 0 && uses.iter().all(|used| !used.command.nested) {
            found.edits = all;
        }
        return Some(found);
    };
    let mut found = warning(facts, "defeated-cache-mount", line_of(facts, used.command), message);
    found.edits.extend(edit);
    Some(found)
}

fn unsafe_sharing(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    let uses = facts.uses(run);
    let mut found = Vec::new();
    for (mount, target) in caches(run) {
        let shared = matches!(mount.option(&["sharing"]), None | Some("shared"));
        let Some(row) = mount.tool.filter(|row| shared && row.sharing != Sharing::Shared) else { continue };
        if !uses.iter().any(|used| used.row.tool == row.tool && used.meets(mount)) {
            continue;
        }
        // cargo's lock lies in CARGO_HOME itself.
        if row.tool == "cargo" && (target.ends_with("cargo") || target.ends_with("/target")) {
            continue;
        }
        let message = format!(
            "builds that run side by side may harm the cache on `{target}`: {} does not lock it across containers, so the mount needs `sharing=locked`",
            row.tool
        );
        let mut sharing = warning(facts, "unsafe-sharing", mount.line, message);
        sharing.edits = match mount.option(&["sharing"]) {
            Some(_) => option(facts, mount, &["sharing"], "locked"),
            None => append(facts, mount, ",sharing=locked"),
        }
        .into_iter()
        .collect();
        found.push(sharing);
    }
    found
}

fn mount_over_install(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    let scope = facts.scope(run);
    if !scope.known {
        return Vec::new();
    }
    let commands = facts.commands(run);
    let called =
        |patterns: &[&str]| commands.iter().any(|command| patterns.iter().any(|pattern| calls(command, pattern)));
    let set = |name: &str| scope.value(name).filter(|value| value.starts_with('/')).map(|value| clean(&value));
    let home = |below: &str| scope.home().map(|home| format!("{home}{below}"));
    let no_venv = ["virtualenvs", "POETRY_VIRTUALENVS", "VIRTUAL_ENV", "poetry export", "activate"];
    let mut rules: Vec<(bool, Option<String>, &str)> = vec![
        (called(&["bundle install", "gem install"]), set("GEM_HOME"), "the gems that this step installs"),
        (called(&["bundle install"]), set("BUNDLE_PATH"), "the gems that this step installs"),
        (called(&["cargo *"]), set("CARGO_HOME").map(|path| format!("{path}/bin")), "cargo itself"),
        (called(&["conda *", "mamba *"]), set("CONDA_DIR").map(|path| format!("{path}/bin")), "conda itself"),
        (
            called(&["go install"]) && !scope.may_be_set("GOBIN"),
            set("GOPATH").map(|path| format!("{path}/bin")),
            "the programs that `go install` makes",
        ),
        (
            called(&["playwright install", "npx playwright"]) && !scope.may_be_set("PLAYWRIGHT_BROWSERS_PATH"),
            home("/.cache/ms-playwright"),
            "the browsers that this step installs",
        ),
    ];
    let made = called(&["poetry install"]) && !scope.may_be_set("POETRY_CACHE_DIR");
    let told = no_venv.iter().any(|word| facts.mentioned(run, word));
    let settings = facts.around.settings.iter().any(|name| name == "poetry.toml");
    rules.push((
        made && !told && !settings,
        home("/.cache/pypoetry/virtualenvs"),
        "the virtual environment that this step makes",
    ));
    let mut found = Vec::new();
    for (mount, target) in caches(run) {
        let covers = |path: &Option<String>| path.as_deref().is_some_and(|path| within(path, target));
        let Some((_, _, what)) = rules.iter().find(|(applies, path, _)| *applies && covers(path)) else { continue };
        let copies_out = commands.iter().any(|command| matches!(command.program(), "cp" | "mv" | "rsync" | "tar"));
        if copies_out || mount.option(&["from"]).is_some() {
            continue;
        }
        let message = format!("the cache mount on `{target}` hides {what}, which the image or this step needs");
        found.push(at(facts, "mount-over-install", Severity::Error, mount.line, message));
    }
    found
}

/// A path that a `COPY --from` takes out of a stage of the file.
struct Copied {
    from: usize,
    into: usize,
    path: String,
    line: u32,
}

/// Returns the stage before the one at `index` that has a name or number.
fn stage_of(facts: &Facts<'_>, index: usize, name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    let named = facts.stages[..index].iter().rposition(|stage| stage.name.as_deref() == Some(&name));
    named.or_else(|| name.parse().ok().filter(|at| *at < index))
}

/// Returns all of them.
fn copies<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = Copied> + use<'a> {
    facts.stages.iter().enumerate().flat_map(move |(index, stage)| {
        stage.steps.iter().flat_map(move |step| {
            let instruction = &facts.file.instructions[step.instruction];
            let from = instruction.flag("from").filter(|_| instruction.keyword == "COPY");
            let from = from.and_then(|from| stage_of(facts, index, &step.scope.expand(from)?));
            let split = || instruction.args.text.split_whitespace().map(str::to_owned).collect();
            let words = if from.is_some() { instruction.json().unwrap_or_else(split) } else { Vec::new() };
            let sources = words.len().saturating_sub(1);
            let paths: Vec<String> = words.into_iter().take(sources).collect();
            paths.into_iter().filter_map(move |path| {
                let path = step.scope.expand(&path)?;
                Some(Copied { from: from?, into: index, path: clean(&path), line: instruction.line })
            })
        })
    })
}

/// What a later stage takes from under a cache mount is not in the layer.
fn copied_from_mount(facts: &Facts<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for Copied { from, path, line, .. } in copies(facts) {
        let lineage = facts.lineage(from);
        let runs: Vec<&Run> = facts.runs.iter().filter(|run| lineage.contains(&run.stage)).collect();
        let mounted = runs.iter().find_map(|run| {
            let (mount, target) = caches(run).find(|(_, target)| within(&path, target) && path != *target)?;
            Some((run.line, mount, target))
        });
        let Some((mount_line, mount, target)) = mounted else { continue };
        let name = target.rsplit('/').next().unwrap_or_default();
        // Another step or COPY may have put it there.
        let made_elsewhere = lineage.iter().flat_map(|stage| &facts.stages[*stage].steps).any(|step| {
            let instruction = &facts.file.instructions[step.instruction];
            let has_mount = runs
                .iter()
                .any(|run| run.instruction == step.instruction && caches(run).any(|(_, other)| other == target));
            let mentions = instruction.args.text.contains(name)
                || instruction.heredocs.iter().any(|heredoc| heredoc.body.text.contains(name));
            let row = mount.known.map(|(row, _)| row);
            let runs_it = row.is_some_and(|row| {
                catalogue::ROWS
                    .iter()
                    .filter(|other| other.tool == row.tool)
                    .any(|row| step.commands.iter().any(|command| runs_tool(command, row) || is_opaque(command)))
            });
            !has_mount
                && ((instruction.keyword == "RUN" && (mentions || runs_it))
                    || (matches!(instruction.keyword.as_str(), "COPY" | "ADD") && mentions))
        });
        if !made_elsewhere && mount.option(&["from"]).is_none() {
            let message = format!(
                "`{path}` is not in the image that it is copied from: it lies in the cache mount on `{target}` of line {mount_line}; copy it elsewhere within that step"
            );
            found.push(at(facts, "mount-over-install", Severity::Error, line, message));
        }
    }
    found
}

fn mount_owner(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    let scope = facts.scope(run);
    if scope.is_root() != Some(false) {
        return Vec::new();
    }
    let uses = facts.uses(run);
    let user = scope.user.clone().unwrap_or_default();
    let mut found = Vec::new();
    for (mount, target) in caches(run) {
        let owned = ["uid", "mode", "from", "source"].iter().any(|name| mount.option(&[name]).is_some());
        if owned || !uses.iter().any(|used| used.meets(mount) && !used.command.sudo) {
            continue;
        }
        let message =
            format!("user `{user}` cannot write to the cache mount on `{target}`: without `uid` it belongs to root");
        let mut owner = warning(facts, "mount-owner", mount.line, message);
        if let Some(uid) = fixed_uid(facts, run) {
            owner.edits = append(facts, mount, &format!(",uid={uid}")).into_iter().collect();
        }
        found.push(owner);
    }
    found
}

/// One id with several owners or modes is several caches.
fn several_owners(facts: &Facts<'_>) -> Vec<Found> {
    let identity = |mount: &Mount| ["uid", "gid", "mode"].map(|name| mount.option(&[name]).map(str::to_owned));
    let mut seen: Vec<(&str, [Option<String>; 3], u32)> = Vec::new();
    let mut found = Vec::new();
    for (mount, _) in facts.runs.iter().flat_map(caches) {
        let Some(id) = mount.id().filter(|id| !id.contains('$')) else { continue };
        match seen.iter().find(|(other, _, _)| *other == id) {
            Some((_, other, line)) if *other != identity(mount) => {
                let message = format!(
                    "the cache `{id}` has another owner or mode here than in line {line}, which makes two separate caches of it"
                );
                found.push(warning(facts, "mount-owner", mount.line, message));
            }
            Some(_) => {}
            None => seen.push((id, identity(mount), mount.line)),
        }
    }
    found
}

/// A cache that a mount names, and who uses it.
#[derive(Clone, Debug)]
pub struct UsedId {
    pub path: String,
    id: String,
    row: &'static Row,
    os: Option<Os>,
    platform: Option<String>,
    line: u32,
    /// Gives the mount an id of its own.
    edit: Option<Edit>,
}

/// Returns the caches that the mounts of a file name, as far as it is known whose they are.
pub fn used_ids(facts: &Facts<'_>) -> Vec<UsedId> {
    let mounts = facts.runs.iter().flat_map(|run| caches(run).map(move |(mount, target)| (run, mount, target)));
    let used = mounts.filter_map(|(run, mount, target)| {
        let id = mount.id().filter(|id| !id.contains('$'))?;
        let row = mount.tool?;
        let os = facts.scope(run).os.clone();
        let base = facts.lineage(run.stage)[0];
        let own = os.as_ref().filter(|_| row.language == "system" && mount.option(&["id"]).is_none());
        Some(UsedId {
            path: facts.path.to_owned(),
            id: id.to_owned(),
            row,
            platform: facts.stages[base].platform.clone().filter(|platform| !platform.contains('$')),
            line: mount.line,
            edit: own.and_then(|os| append(facts, mount, &format!(",id={}", id_of(target, os)))),
            os,
        })
    });
    used.collect()
}

/// Returns the two that share an id and must not.
fn clash(one: &UsedId, other: &UsedId) -> Option<String> {
    let systems = one.os.as_ref().zip(other.os.as_ref()).filter(|(a, b)| {
        a.family != b.family || (a.release.is_some() && b.release.is_some() && a.release != b.release)
    });
    let platforms = one.platform.as_ref().zip(other.platform.as_ref()).filter(|(a, b)| a != b);
    if family(one.row.tool) != family(other.row.tool) {
        Some(format!("{} and {}", one.row.tool, other.row.tool))
    } else if other.row.language != "system" {
        None
    } else if let Some((a, b)) = systems {
        Some(format!("{} and {}", os_name(a), os_name(b)))
    } else {
        platforms.map(|(a, b)| format!("{a} and {b}"))
    }
}

fn mount_id_clash(facts: &Facts<'_>) -> Vec<Found> {
    clashes(&used_ids(facts), true).into_iter().map(|(_, found)| found).collect()
}

/// Returns the clashes within files, or those between them, each with the path of its file.
pub fn clashes(used: &[UsedId], within: bool) -> Vec<(String, Found)> {
    let mut seen: Vec<&UsedId> = Vec::new();
    let mut found: Vec<(String, Found)> = Vec::new();
    for now in used {
        let Some(other) = seen.iter().find(|other| other.id == now.id) else {
            seen.push(now);
            continue;
        };
        let Some(who) = clash(other, now).filter(|_| (other.path == now.path) == within) else { continue };
        // Another file is told once, with ids for all its mounts.
        let told = found.iter_mut().find(|(path, _)| !within && *path == now.path);
        if let Some((_, told)) = told {
            told.edits.extend(now.edit.clone());
            continue;
        }
        let place = if within { format!("line {}", other.line) } else { format!("{}:{}", other.path, other.line) };
        let message = format!(
            "{who} share the cache `{}` with {place} and overwrite each other's files; give each an `id` of its own",
            now.id
        );
        let finding = Finding {
            check: "mount-id-clash",
            file: Some(now.path.clone()),
            line: Some(now.line),
            ..Finding::new(Severity::Warning, message)
        };
        found.push((now.path.clone(), Found { finding, edits: now.edit.iter().cloned().collect() }));
    }
    found
}

fn os_name(os: &Os) -> String {
    match &os.release {
        Some(release) => format!("{} {release}", os.family),
        None => os.family.to_owned(),
    }
}

fn copy_before_install(facts: &Facts<'_>) -> Vec<Found> {
    const CHECK: &str = "copy-before-install";
    let mut found = Vec::new();
    let mut ignored_told = false;
    // A build that asks git for its version needs it.
    let needs_git =
        [".git", "git describe", "git rev-parse", "git log", "git rev-list", "git submodule", "git show", "scm"];
    let needs_git = needs_git.iter().any(|word| facts.file.source.contains(word));
    let names = facts.around.not_ignored.iter().map(String::as_str);
    let ignored: Vec<&str> = names.filter(|name| !(needs_git && *name == ".git")).collect();
    for run in &facts.runs {
        let uses = facts.uses(run);
        let steps = &facts.stages[run.stage].steps[..run.step];
        let instructions: Vec<&Instruction> =
            steps.iter().map(|step| &facts.file.instructions[step.instruction]).collect();
        let sources = instructions.iter().find(|instruction| copies_all(instruction));
        let installs = uses.iter().find(|used| {
            takes_manifest(used.command) && !facts.before(run).any(|other| facts.fills_tool(other, used.row))
        });
        if let (Some(copy), Some(used)) = (sources, installs) {
            let message = format!(
                "any changed file makes `{}` in line {} run again: copy what it reads first, install, then copy the rest",
                used.call,
                line_of(facts, used.command)
            );
            found.push(warning(facts, CHECK, copy.line, message));
        }
        found.extend(update_alone(facts, run));
        if uses.is_empty() {
            continue;
        }
        for instruction in &instructions {
            let args = &instruction.args.text;
            if instruction.keyword == "ARG" {
                let name = args.split(['=', ' ']).next().unwrap_or_default();
                if changes_each_time(name) {
                    let message = format!(
                        "`{name}` differs in each build, so every step after it runs again, such as line {}: declare it below them",
                        run.line
                    );
                    found.push(warning(facts, CHECK, instruction.line, message));
                }
            }
            let address = args.split_whitespace().next().unwrap_or_default();
            if instruction.keyword == "ADD" && moves(address) && instruction.flag("checksum").is_none() {
                let address = without_login(address);
                let message = format!(
                    "`{address}` leads to something else from time to time, and every step after it then runs again, such as line {}: name one version of it",
                    run.line
                );
                found.push(at(facts, CHECK, Severity::Note, instruction.line, message));
            }
        }
    }
    for stage in &facts.stages {
        for step in &stage.steps {
            let instruction = &facts.file.instructions[step.instruction];
            if copies_all(instruction) && !ignored.is_empty() && !ignored_told {
                ignored_told = true;
                let lacks = match &facts.around.ignore_file {
                    Some(file) => format!("`{file}` does not keep it out"),
                    None => "there is no `.dockerignore`".into(),
                };
                let message = format!(
                    "{lacks}, so `{}` is sent to the builder and any change in it makes the steps after this one run again",
                    ignored.join("`, `")
                );
                let directory = facts.path.rfind('/').map_or("", |at| &facts.path[..=at]);
                let name = facts.around.ignore_file.as_deref().unwrap_or(".dockerignore");
                let lines: Vec<String> = ignored.iter().map(quote).collect();
                // The last line of one that is there may have no end.
                let end = if facts.around.ignore_file.is_some() { "'' " } else { "" };
                let file = quote(format!("{directory}{name}"));
                let command = format!("printf '%s\\n' {end}{} >> {file}", lines.join(" "));
                let mut told = warning(facts, CHECK, instruction.line, message);
                told.finding = told.finding.command(command);
                found.push(told);
            }
        }
    }
    found.dedup_by(|a, b| a.finding == b.finding);
    let mut seen: Vec<(Option<u32>, Severity)> = Vec::new();
    // One line is told once, however many steps suffer.
    found.retain(|found| {
        let key = (found.finding.line, found.finding.severity);
        let new = !seen.contains(&key) || found.finding.message.contains(".dockerignore");
        seen.push(key);
        new
    });
    found
}

/// Tells whether what an address leads to changes: the newest release, or a branch of a git repository.
fn moves(address: &str) -> bool {
    let branches = ["", "HEAD", "main", "master", "develop", "dev", "trunk", "nightly", "latest"];
    let (place, fragment) = address.split_once('#').unwrap_or((address, ""));
    let is_git = place.starts_with("git@") || place.starts_with("git://") || place.ends_with(".git");
    let moving = ["/latest/", "/master/", "/main/", "/nightly/"];
    is_git && branches.contains(&fragment.split(':').next().unwrap_or_default())
        || place.starts_with("http") && !is_git && moving.iter().any(|part| place.contains(part))
}

/// Returns the address without what stands before its host, which may be a password.
fn without_login(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or(host))
}

fn copies_all(instruction: &Instruction) -> bool {
    let json = instruction.json();
    let words: Vec<&str> = match &json {
        Some(words) => words.iter().map(String::as_str).collect(),
        None => instruction.args.text.split_whitespace().collect(),
    };
    matches!(instruction.keyword.as_str(), "COPY" | "ADD")
        && instruction.flag("from").is_none()
        && words.len() >= 2
        && words[..words.len() - 1].iter().any(|word| matches!(*word, "." | "./" | "/"))
}

/// Tells whether a command installs what a list in the project says.
fn takes_manifest(command: &Command) -> bool {
    let has = |word: &str| command.args().any(|arg| arg == word);
    let named = || {
        let after = command.args().skip_while(|arg| !matches!(*arg, "install" | "i" | "add")).skip(1);
        after.filter(|arg| !arg.starts_with('-')).count() > 0
    };
    let any = |patterns: &[&str]| patterns.iter().any(|pattern| calls(command, pattern));
    let whole = [
        "npm ci",
        "npm clean-install",
        "yarn --frozen-lockfile",
        "pnpm fetch",
        "bundle install",
        "composer install",
        "go mod download",
        "dotnet restore",
        "poetry install",
        "pipenv install",
        "uv sync",
        "mix deps.get",
        "dart pub get",
    ];
    (calls(command, "pip install") && (has("-r") || has("--requirement")))
        || any(&whole)
        || (any(&["npm install", "npm i", "pnpm install", "pnpm i", "bun install", "yarn install"])
            && !named()
            && !has("-g"))
}

fn changes_each_time(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    [
        "BUILD_DATE",
        "BUILD_TIME",
        "BUILD_NUMBER",
        "BUILD_ID",
        "BUILD_TIMESTAMP",
        "TIMESTAMP",
        "GIT_SHA",
        "GIT_COMMIT",
        "GIT_REV",
        "GIT_HASH",
        "COMMIT_SHA",
        "COMMIT_HASH",
        "VCS_REF",
        "CI_COMMIT_SHA",
        "GITHUB_SHA",
    ]
    .contains(&name.as_str())
}

fn update_alone(facts: &Facts<'_>, run: &Run) -> Option<Found> {
    let commands = facts.commands(run);
    let is_apt = |command: &Command, words: &[&str]| {
        matches!(command.program(), "apt-get" | "apt" | "aptitude") && command.args().any(|arg| words.contains(&arg))
    };
    let installs = ["install", "upgrade", "dist-upgrade", "full-upgrade", "build-dep", "download", "source", "satisfy"];
    let update = commands.iter().find(|command| is_apt(command, &["update"]))?;
    if commands.iter().any(|command| is_apt(command, &installs) || is_opaque(command)) || caches(run).count() > 0 {
        return None;
    }
    let later = facts.runs.iter().find(|later| {
        let commands = facts.commands(later);
        facts.is_on(later.stage, run.stage)
            && (later.stage != run.stage || later.step > run.step)
            && commands.iter().any(|command| is_apt(command, &["install"]))
            && !commands.iter().any(|command| is_apt(command, &["update"]))
    })?;
    let message = format!(
        "`{} update` alone in a step is not run again when line {} changes, which then installs from an old list or fails",
        update.program(),
        later.line
    );
    Some(warning(facts, "copy-before-install", run.line, message))
}

/// The final stage carries what its steps downloaded.
fn cache_in_image(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    let last = facts.stages.len() - 1;
    if !facts.is_on(last, run.stage) {
        return Vec::new();
    }
    let uses = facts.uses(run);
    let scope = facts.scope(run);
    let commands = facts.commands(run);
    let mut found = Vec::new();
    for (row, uses) in by_tool(&uses) {
        let Some(places) = uses.iter().find_map(|used| used.places) else { continue };
        let kept_out = row.build.read_later
            || covered(run, &uses)
            || !matches!(row.tool, "pip" | "npm" | "yarn" | "uv" | "composer" | "poetry" | "apt" | "dnf")
            || uses.iter().any(|used| {
                row.build.defeated_by.iter().any(|sign| {
                    used.command.words.iter().any(|word| word.text == *sign)
                        || (!sign.starts_with('-')
                            && (scope.env.contains_key(*sign) || used.command.env.iter().any(|(name, _)| name == sign)))
                })
            })
            || commands.iter().any(|command| cleaner(command, row).is_some() && row.tool != "apt")
            || commands
                .iter()
                .any(|command| command.program() == "rm" || is_opaque(command) || command.program() == "find");
        // The packages go with docker-clean, the lists stay.
        let place = if row.tool == "apt" { "/var/lib/apt/lists" } else { &places[0] };
        if kept_out || scope.os.is_none() || !scope.known {
            continue;
        }
        let message =
            format!("the image carries what {} keeps in `{place}`: a cache mount there keeps it out", row.tool);
        found.push(at(facts, "cache-in-image", Severity::Note, line_of(facts, uses[0].command), message));
    }
    found
}

/// The final stage copies a whole cache out of another one.
fn copied_cache(facts: &Facts<'_>) -> Vec<Found> {
    let last = facts.stages.len().saturating_sub(1);
    let carried = copies(facts).filter_map(|copied| {
        let into_last = facts.is_on(last, copied.into);
        let row = match copied.path.as_str() {
            "/cache" => None,
            path => {
                let known = catalogue::known_below(path).into_iter().next()?;
                // Some programs read these while they run.
                let is_cache = known.path.is_empty() && known.class == Class::Cache && !known.row.build.read_later;
                Some(is_cache.then_some(known.row)?)
            }
        };
        let whose = row.map(|row| format!(" of {}", row.tool)).unwrap_or_default();
        let message = format!(
            "the image carries the cache{whose} in `{}`, which this line copies out of another stage: copy only what runs",
            copied.path
        );
        into_last.then(|| at(facts, "cache-in-image", Severity::Note, copied.line, message))
    });
    carried.collect()
}

fn secret_in_cache(facts: &Facts<'_>, run: &Run) -> Vec<Found> {
    const CHECK: &str = "secret-in-cache";
    let mut found = Vec::new();
    for (mount, target) in caches(run) {
        let names = [".ssh", ".aws", ".gnupg", ".kube", ".docker", ".netrc", ".npmrc"];
        let is_secret = target.rsplit('/').next().is_some_and(|name| names.contains(&name))
            || mount.known.is_some_and(|(_, class)| class == Class::Secret);
        if is_secret {
            let message = format!(
                "`{target}` holds credentials, and a cache mount shares them with every build of this builder: use `type=secret`"
            );
            found.push(at(facts, CHECK, Severity::Error, mount.line, message));
            continue;
        }
        for command in facts.commands(run) {
            let copied = matches!(command.program(), "cp" | "install" | "mv").then(|| command.args().last()).flatten();
            let written = command.outputs.iter().map(String::as_str).chain(copied);
            let paths = written.filter_map(|path| match path.strip_prefix('~') {
                Some(rest) => Some(format!("{}{rest}", facts.scope(run).home()?)),
                None => facts.scope(run).expand(path),
            });
            for path in paths.filter(|path| within(path, target) && path != target) {
                let known = catalogue::known_below(&path);
                if known.first().is_some_and(|known| known.path.is_empty() && known.class == Class::Secret) {
                    let message = format!(
                        "`{path}` with credentials goes into the cache mount on `{target}`, which every build of this builder may read: use `type=secret`"
                    );
                    found.push(at(facts, CHECK, Severity::Error, line_of(facts, command), message));
                }
            }
        }
    }
    found
}

/// Returns the text of a Dockerfile with everything put right that can be; the same text if there is nothing.
pub fn fix(path: &str, source: &str, around: &crate::project::Around, wanted: &dyn Fn(&Finding) -> bool) -> String {
    let mut text = source.to_owned();
    // One edit may reveal another: what defeats a mount shows when the mount is there.
    for _ in 0..8 {
        let file = crate::dockerfile::Dockerfile::parse(&text);
        if !file.problems.is_empty() {
            return source.to_owned();
        }
        let facts = Facts::new(path, &file, around);
        let groups: Vec<Vec<Edit>> =
            check(&facts).into_iter().filter(|found| wanted(&found.finding)).map(|found| found.edits).collect();
        let next = edits::apply(&text, &groups);
        if next == text {
            break;
        }
        text = next;
    }
    text
}
