//! `docker cache doctor --fix`: plans all changes, shows them as a diff, and writes exactly those.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::checks::project::{MOUNT_OWNER, diff};
use crate::checks::{self, Check, Finding, Severity, containers, dockerfile};
use crate::cli::{Doctor, DoctorFormat};
use crate::exit::FAILED;
use crate::project::{File, Kind, Project};
use crate::rewrite::{ensure_one_name, rewrite, take_after};
use crate::{cancel, project, report};

/// What becomes of one file.
#[derive(Serialize)]
struct Change {
    file: String,
    diff: String,
    /// Why it was not made.
    error: Option<String>,
    #[serde(skip)]
    before: String,
    #[serde(skip)]
    after: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    changes: &'a [Change],
}

/// Returns the status to exit with: a file that cannot be written hinders no other.
///
/// # Errors
/// When nothing can be printed, and when it is cancelled: between two files.
pub fn run(files: &Project, checks: &[&'static Check], options: &Doctor) -> Result<u8> {
    let mut changes = plan(files, checks);
    let is_json = options.format == DoctorFormat::Json;
    if !is_json {
        report::data(&changes.iter().map(|change| change.diff.as_str()).collect::<String>())?;
    }
    for change in &mut changes {
        if let Err(error) = cancel::check().and_then(|()| write(change, options)) {
            change.error = Some(format!("{error:#}"));
            if !cancel::requested() {
                report::error(&error.context(format!("cannot change `{}`", change.file)));
            }
        }
    }
    if is_json {
        report::json(&Answer { version: 1, changes: &changes })?;
    }
    cancel::check()?;
    let planned = changes.len();
    let made: Vec<Change> = changes.into_iter().filter(|change| change.error.is_none()).collect();
    let left = left(files, &made, checks);
    // What the owners of mounts come to is told after this.
    let more = options.check == [MOUNT_OWNER] && planned == 0 && left == 0;
    if !options.quiet && !more {
        let done = match (made.len(), options.dry_run) {
            (0, _) if planned == 0 => "Nothing to fix".into(),
            (1, true) => "1 file would be changed".into(),
            (1, false) => "1 file changed".into(),
            (count, true) => format!("{count} files would be changed"),
            (count, false) => format!("{count} files changed"),
        };
        let path = options.path.as_deref().unwrap_or(Path::new("."));
        let left = match left {
            0 => String::new(),
            1 => format!("; 1 problem is left to you: `docker cache doctor {}`", report::quote(path)),
            count => format!("; {count} problems are left to you: `docker cache doctor {}`", report::quote(path)),
        };
        report::note(&format!("{done}{left}"));
    }
    Ok(if made.len() < planned { FAILED } else { 0 })
}

/// Returns how many problems of the files the changes put right, and makes none.
pub fn mended(files: &Project, checks: &[&'static Check]) -> usize {
    let changes = plan(files, checks);
    // Each count checks all files anew.
    if changes.is_empty() { 0 } else { left(files, &[], checks).saturating_sub(left(files, &changes, checks)) }
}

fn plan(files: &Project, checks: &[&'static Check]) -> Vec<Change> {
    let wanted = |finding: &Finding| checks.iter().any(|check| check.name == finding.check);
    let described = containers::fix(&files.files, &wanted);
    let after = |file: &File| match file.kind {
        Kind::Dockerfile => Some(dockerfile::fix(&file.path, &file.text, &file.around, &wanted)),
        _ => described.get(&file.path).cloned(),
    };
    let change = |file: &File, after: String| Change {
        file: file.path.clone(),
        diff: diff(&file.path, &file.text, &after),
        error: None,
        before: file.text.clone(),
        after,
    };
    let changed = files.distinct();
    let changed = changed.filter_map(|file| Some((file, after(file)?))).filter(|(file, after)| *after != file.text);
    changed.map(|(file, after)| change(file, after)).collect()
}

/// Counts the problems that the files have after the changes; notes are none.
fn left(files: &Project, changes: &[Change], checks: &[&'static Check]) -> usize {
    let mut files = files.clone();
    for file in &mut files.files {
        if let Some(change) = changes.iter().find(|change| change.file == file.path) {
            file.text.clone_from(&change.after);
        }
    }
    let is_left = |finding: &&Finding| {
        finding.severity > Severity::Note && checks.iter().any(|check| check.name == finding.check)
    };
    checks::project::Project::new(files).found().iter().filter(is_left).count()
}

/// Writes the file, or just makes sure that it could be; a link stays, and what it leads to is changed if that is in the
/// project.
fn write(change: &Change, options: &Doctor) -> Result<()> {
    let path = fs::canonicalize(&change.file)?;
    let root = options.path.as_deref().unwrap_or(Path::new("."));
    ensure!(
        path.starts_with(fs::canonicalize(root)?),
        "it is a link out of `{}`, and what it leads to may belong to another project\nhint: docker cache doctor --fix {}",
        root.display(),
        report::quote(&change.file)
    );
    let now = project::text(&path).map_err(anyhow::Error::msg)?;
    ensure!(now == change.before, "it was changed by somebody else meanwhile");
    ensure_one_name(&path)?;
    if options.dry_run {
        return Ok(());
    }
    if options.backup {
        keep(&path)?;
    }
    rewrite(&path, &change.after)
}

/// Copies a file, with its owner and mode, to the first name that is free of `FILE.bak`, `FILE.bak1`, …
fn keep(path: &Path) -> Result<()> {
    let mut backups = (0..).map(|number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(".bak");
        if number > 0 {
            name.push(number.to_string());
        }
        PathBuf::from(name)
    });
    let free = backups.find_map(|name| match fs::File::create_new(&name) {
        Ok(file) => Some(Ok(file)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
        Err(error) => Some(Err(error)),
    });
    let (mut old, mut new) = (project::open(path)?, free.context("no name is free")??);
    take_after(&new, &old)?;
    std::io::copy(&mut old, &mut new)?;
    Ok(())
}
