//! `docker cache doctor`: asks everything at once, lets the rules judge, and tells it.

mod containers;
mod explain;
mod exports;
mod facts;
mod fix;
mod own;
mod sarif;
mod secrets;
mod versions;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::Context;
use crate::cancel;
use crate::checks::project::{CACHE_IN_IMAGE, MOUNT_OWNER, Project};
use crate::checks::{self, Check, Finding, Fix, Outcome, Severity};
use crate::checks::{NotRun, caches, live};
use crate::cli::{Doctor, DoctorFormat, FailOn};
use crate::exit::FAILED;
use crate::project;
use crate::report::{self, Paint, paint, plain};

/// The JSON contract.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    findings: Vec<&'a Finding>,
    checks: Vec<Status<'a>>,
}

#[derive(Serialize)]
struct Status<'a> {
    name: &'a str,
    status: &'static str,
    why: Option<&'a str>,
}

/// The JSON of `--list-checks`.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    promise: &'static str,
}

type Results = [(&'static Check, Outcome)];

pub fn run(context: Context, options: &Doctor) -> Result<u8> {
    if options.explain {
        return explain::run(context, options);
    }
    // What is named is all that is looked at, unless checks are named too.
    let aimed = options.is_aimed();
    let at_aim = |name| {
        options.image.is_some() && name == CACHE_IN_IMAGE
            || !options.container.is_empty() && live::WANTED_BY.contains(&name)
    };
    let chosen = |check: &&Check| match options.check.as_slice() {
        [] => !aimed || at_aim(check.name),
        names => names.iter().any(|name| name == check.name),
    };
    let checks: Vec<&'static Check> = checks::all().filter(chosen).collect();
    if options.list_checks {
        return list(&checks, options.format).map(|()| 0);
    }
    if options.fix && options.check == [caches::VOLUME_OWNER] {
        return own::run(&context.into_docker()?.0, options);
    }
    let files = if aimed && options.path.is_none() { None } else { files(options.path.as_deref())? };
    if options.fix {
        let Some(files) = files else { bail!("there is no project here\nhint: docker cache doctor --fix PATH") };
        // Owners in mounts are put right as the Dockerfiles stand: those that change get mounts of their own.
        let owners = options.check == [MOUNT_OWNER] && options.format == DoctorFormat::Table;
        let project = Project::new(files);
        let status = fix::run(&project.files, &checks, options)?;
        return if owners && status == 0 { own::mounts(context, &project, options) } else { Ok(status) };
    }
    let none = || NotRun::Skipped("there is no project here; name one with `docker cache doctor PATH`".into());
    let facts = facts::gather(&context, &checks, options, files.map(Project::new).ok_or_else(none));
    cancel::check()?;
    let results: Vec<_> = checks.iter().map(|check| (*check, check.outcome(&facts))).collect();
    match options.format {
        DoctorFormat::Json => report::json(&answer(&results))?,
        DoctorFormat::Table => {
            report::data(&text(&results, options.quiet, report::stdout_colour(), report::room()))?;
            if !options.quiet {
                let mended = facts.project.as_ref().map_or(0, |project| fix::mended(&project.files, &checks));
                report::data(&format!("{}{}\n", verdict(&results), by_fix(mended, options)))?;
            }
        }
        DoctorFormat::Sarif => report::json(&sarif::log(&results))?,
        DoctorFormat::Github => report::data(&findings(&results).map(annotation).collect::<String>())?,
    }
    Ok(if is_failure(&results, options.fail_on) { FAILED } else { 0 })
}

/// Reads the project that is named, or the one in the working directory if there is one.
fn files(path: Option<&Path>) -> Result<Option<project::Project>> {
    match path {
        Some(path) => {
            std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok(Some(project::read(path)))
        }
        None => Ok(project::is_one(Path::new(".")).then(|| project::read(Path::new(".")))),
    }
}

/// Returns a line that GitHub Actions shows beside the file.
fn annotation(finding: &Finding) -> String {
    let level = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "notice",
    };
    let escaped = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| escaped(text).replace(':', "%3A").replace(',', "%2C");
    let file = finding.file.as_deref().map(sarif::from_here);
    let file = file.map(|file| format!("file={},", property(file))).unwrap_or_default();
    let line = finding.line.map(|line| format!("line={line},")).unwrap_or_default();
    format!("::{level} {file}{line}title={}::{}\n", property(finding.check), escaped(&finding.message))
}

fn list(checks: &[&'static Check], format: DoctorFormat) -> Result<()> {
    match format {
        DoctorFormat::Json => {
            let checks: Vec<Listed> = checks.iter().map(|c| Listed { name: c.name, promise: c.promise }).collect();
            report::json(&serde_json::json!({"version": 1, "checks": checks}))
        }
        _ => {
            let rows: Vec<_> = checks.iter().map(|check| vec![check.name.into(), check.promise.into()]).collect();
            report::data(&report::table_within(report::room(), &["CHECK", "FINDS NOTHING IF"], rows, &[]))
        }
    }
}

/// A check that failed counts like an error: nobody knows what it would have found.
fn is_failure(results: &Results, fail_on: FailOn) -> bool {
    let limit = match fail_on {
        FailOn::Never => return false,
        FailOn::Error => Severity::Error,
        FailOn::Warning => Severity::Warning,
        FailOn::Note => Severity::Note,
    };
    results.iter().any(|(_, outcome)| match outcome {
        Outcome::Ran(findings) => findings.iter().any(|finding| finding.severity >= limit),
        Outcome::Failed(_) => true,
        Outcome::Skipped(_) => false,
    })
}

fn findings(results: &Results) -> impl Iterator<Item = &Finding> {
    results.iter().flat_map(|(_, outcome)| match outcome {
        Outcome::Ran(findings) => findings.as_slice(),
        _ => &[],
    })
}

fn answer(results: &Results) -> Answer<'_> {
    let checks = results.iter().map(|(check, outcome)| {
        let (status, why) = match outcome {
            Outcome::Ran(findings) if findings.is_empty() => ("ok", None),
            Outcome::Ran(_) => ("found", None),
            Outcome::Skipped(why) => ("skipped", Some(why.as_str())),
            Outcome::Failed(why) => ("failed", Some(why.as_str())),
        };
        Status { name: check.name, status, why }
    });
    Answer { version: 1, findings: findings(results).collect(), checks: checks.collect() }
}

/// Returns a line for each check, with findings and their remedies; if quiet, findings only.
fn text(results: &Results, quiet: bool, colour: bool, room: usize) -> String {
    let mut text = String::new();
    // Many checks are skipped for one reason, such as that there is no project: that is one line.
    let mut skipped: Vec<(&str, Vec<&str>)> = Vec::new();
    for (check, outcome) in results {
        let name = check.name;
        match outcome {
            Outcome::Ran(findings) => {
                findings.iter().for_each(|finding| text.push_str(&shown(finding, colour, room)));
                if findings.is_empty() && !quiet {
                    text.push_str(&marked(&paint(Paint::Green, "✓", colour), check.promise, room));
                }
            }
            Outcome::Skipped(why) => match skipped.iter_mut().find(|(known, _)| known == why) {
                Some((_, names)) => names.push(name),
                None => skipped.push((why, vec![name])),
            },
            Outcome::Failed(why) => {
                let mark = paint(Paint::Red, "✗", colour);
                text.push_str(&marked(&mark, &format!("{name}: could not be checked, {why}"), room));
            }
        }
    }
    if !quiet {
        for (why, names) in skipped {
            text.push_str(&marked("-", &format!("skipped, {why}: {}", names.join(", ")), room));
        }
        text.push('\n');
    }
    text
}

/// Returns text behind a mark of one cell, in lines no wider than the room.
fn marked(mark: &str, text: &str, room: usize) -> String {
    format!("{mark} {}\n", report::wrapped(&plain(text), room.saturating_sub(2)).join("\n  "))
}

/// Returns the finding, and below it what puts it right, on lines of its own.
fn shown(finding: &Finding, colour: bool, room: usize) -> String {
    let mark = match finding.severity {
        Severity::Error => paint(Paint::Red, "✗", colour),
        Severity::Warning => paint(Paint::Yellow, "!", colour),
        Severity::Note => "i".into(),
    };
    let place = match (&finding.file, finding.line) {
        (Some(file), Some(line)) => format!("{file}:{line}: "),
        (Some(file), None) => format!("{file}: "),
        (None, _) => String::new(),
    };
    let mut text = marked(&mark, &format!("{}: {place}{}", finding.check, finding.message), room);
    match &finding.fix {
        Some(Fix::Command { command }) => {
            text.push_str(&format!("    {}\n", paint(Paint::Bold, &plain(command), colour)))
        }
        Some(Fix::Diff { diff, .. }) => {
            // `patch` needs the tabs.
            let kept = |line: &str| line.split('\t').map(plain).collect::<Vec<_>>().join("\t");
            diff.lines().for_each(|line| text.push_str(&format!("    {}\n", kept(line))));
        }
        None => {}
    }
    text
}

/// Returns what the verdict adds where some problems are put right by `--fix`.
fn by_fix(mended: usize, options: &Doctor) -> String {
    if mended == 0 || options.has_owners_among_others() {
        return String::new();
    }
    let checks = if options.check.is_empty() { String::new() } else { format!(" --check {}", options.check.join(",")) };
    let path = options.path.as_deref().map(|path| format!(" {}", report::quote(path))).unwrap_or_default();
    format!("; `docker cache doctor --fix{checks}{path}` puts {mended} of them right")
}

/// Returns the sentence that sums it all up.
fn verdict(results: &Results) -> String {
    let count = |number: usize, word: &str| match number {
        0 => None,
        1 => Some(format!("1 {word}")),
        _ => Some(format!("{number} {word}s")),
    };
    let notes = findings(results).filter(|finding| finding.severity == Severity::Note).count();
    let problems = findings(results).count() - notes;
    let failed = results.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))).count();
    let skipped = results.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Skipped(_))).count();
    let parts = [
        count(problems, "problem"),
        count(notes, "note"),
        count(failed, "check").map(|checks| format!("{checks} that could not be finished")),
        count(skipped, "check").map(|checks| format!("{checks} skipped")),
    ];
    let parts = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    match (problems + failed, parts.is_empty()) {
        (0, true) => "Your caches are in order".into(),
        (0, false) => format!("Your caches are in order: {parts}"),
        _ => parts,
    }
}
