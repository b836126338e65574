//! Doctor's checks of a project's files, by name. Each tells what the rules for its kind of file found.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::dockerfile::{self, Found, UsedId};
use super::edits::Edit;
use super::exports::{self, CACHE_EXPORT_GROWS};
use super::mounts::OwnedMount;
use super::secrets::{self, SECRET_IN_CACHE};
use super::steps::Facts as Steps;
use super::{Check, Facts, Finding, Fix, NotRun, Severity, caches, containers, edits, scripts};
use crate::dockerfile::Dockerfile;
use crate::project::Around;
use crate::project::container::{self, Containers, Place};
use crate::project::{self, Kind};
use crate::report::quote;

/// A project's files, and what is found in them.
#[derive(Debug, Default)]
pub struct Project {
    pub files: project::Project,
    pub containers: Containers,
    /// What the engine's images give to the containers that are made of them, by the reference that the project uses.
    pub images: BTreeMap<String, containers::Image>,
    found: OnceLock<Vec<Finding>>,
}

impl Project {
    pub fn new(files: project::Project) -> Project {
        let containers = container::read(&files.files);
        Project { files, containers, images: BTreeMap::new(), found: OnceLock::new() }
    }

    /// Returns the findings of all checks, by file and line.
    pub fn found(&self) -> &[Finding] {
        self.found.get_or_init(|| {
            let unread = self.files.unread.iter().map(|unread| Finding {
                check: "file-unreadable",
                file: Some(unread.path.clone()),
                ..Finding::new(Severity::Warning, unread.why.clone())
            });
            let files = &self.files.files;
            let described = containers::check(files, &self.containers, &self.images).into_iter().map(|found| {
                with_diff(files.iter().find(|file| found.finding.file.as_ref() == Some(&file.path)), found)
            });
            let for_windows = files.iter().any(is_for_windows);
            let (found, used): (Vec<_>, Vec<_>) = files.par_iter().map(|file| of_file(file, for_windows)).unzip();
            let used: Vec<UsedId> = used.into_iter().flatten().collect();
            let clashes = dockerfile::clashes(&used, false).into_iter().filter_map(|(path, clash)| {
                let file = self.files.files.iter().find(|file| file.path == path)?;
                Some(with_diff(Some(file).filter(|file| Dockerfile::parse(&file.text).problems.is_empty()), clash))
            });
            let written = in_compose(&self.containers);
            let all = unread.chain(found.into_iter().flatten()).chain(clashes).chain(described).chain(written);
            let is_first =
                |finding: &Finding| finding.file.as_ref().is_none_or(|path| !self.files.again.contains(path));
            all.filter(is_first).collect()
        })
    }

    /// Tells whether the Dockerfile alone tells what was found inside a mount: then it comes with the change that puts it
    /// right.
    pub fn tells_owner(&self, inside: &Finding) -> bool {
        let is_it = |told: &Finding| (&told.file, told.line) == (&inside.file, inside.line);
        self.found().iter().any(|told| told.check == MOUNT_OWNER && is_it(told))
    }
}

/// Tells whether a Dockerfile begins from an image of Windows.
fn is_for_windows(file: &project::File) -> bool {
    let mut bases = file.text.lines().map(str::to_lowercase).filter(|line| line.trim_start().starts_with("from "));
    let is_windows = |base: String| ["windows", "nanoserver", "servercore"].iter().any(|name| base.contains(name));
    file.kind == Kind::Dockerfile && bases.any(is_windows)
}

/// Returns what is wrong in a file, and the ids of cache mounts that it shares with others.
fn of_file(file: &project::File, for_windows: bool) -> (Vec<Finding>, Vec<UsedId>) {
    if file.kind != Kind::Dockerfile {
        return (scripts::check(file, for_windows), Vec::new());
    }
    let read = Dockerfile::parse(&file.text);
    let steps = Steps::new(&file.path, &read, &file.around);
    // A file that does not parse is not changed.
    let sound = Some(file).filter(|_| read.problems.is_empty());
    let mut found = dockerfile::check(&steps);
    let used = dockerfile::used_ids(&steps);
    if let Some(file) = sound {
        // What several need is in the change of the first.
        let mut made: Vec<Edit> = Vec::new();
        for found in &mut found {
            found.edits.retain(|edit| !made.contains(edit));
            made.extend(found.edits.iter().cloned());
        }
        let touched: Vec<Vec<Range<usize>>> = found.iter().map(|found| lines(&read, &found.edits)).collect();
        for (at, found) in found.iter_mut().enumerate().filter(|(_, found)| !found.edits.is_empty()) {
            let others = touched.iter().enumerate().filter(|(other, _)| *other != at).flat_map(|(_, lines)| lines);
            let text = edits::apply(&file.text, &[std::mem::take(&mut found.edits)]);
            let diff = diff_beside(&file.path, &file.text, &text, &others.cloned().collect::<Vec<_>>());
            found.finding.fix = Some(Fix::Diff { file: file.path.clone(), diff });
        }
    }
    (found.into_iter().map(|found| found.finding).collect(), used)
}

/// Returns the lines that edits touch, counted from 0.
fn lines(file: &Dockerfile, edits: &[Edit]) -> Vec<Range<usize>> {
    let line = |at| file.line_of(at) as usize;
    edits.iter().map(|edit| line(edit.range.start) - 1..line(edit.range.end)).collect()
}

/// Returns what is wrong in the Dockerfiles that are written right in compose files, each once.
fn in_compose(containers: &Containers) -> Vec<Finding> {
    let mut inline: Vec<_> =
        containers.described.iter().filter_map(|described| described.build.as_ref()?.inline.as_ref()).collect();
    inline.sort_by_key(|(_, place)| place);
    inline.dedup();
    let of_one = |(text, place): &(String, Place)| {
        let read = Dockerfile::parse(text);
        let around = Around::default();
        let found = dockerfile::check(&Steps::new(&place.file, &read, &around));
        // A block begins in the line where its text does.
        let line = |finding: &Finding| finding.line.map(|line| place.line + line - 1);
        found.into_iter().map(|found| Finding { line: line(&found.finding), ..found.finding }).collect::<Vec<_>>()
    };
    inline.into_iter().flat_map(of_one).collect()
}

/// Adds the diff of a finding's own edits of its file.
pub(super) fn with_diff(file: Option<&project::File>, found: Found) -> Finding {
    let mut finding = found.finding;
    if let Some(file) = file.filter(|_| !found.edits.is_empty()) {
        let text = edits::apply(&file.text, &[found.edits]);
        finding.fix = Some(Fix::Diff { file: file.path.clone(), diff: diff(&file.path, &file.text, &text) });
    }
    finding
}

/// Returns a unified diff as `patch -p1` and `git apply` take it in the working directory. What lies elsewhere is named in
/// its own directory, and the line before says that; both programs skip it.
pub fn diff(path: &str, before: &str, after: &str) -> String {
    diff_beside(path, before, after, &[])
}

/// The same with so little context that none of it is in `others`, lines that other diffs of the file change: `patch`
/// takes one after the other.
fn diff_beside(path: &str, before: &str, after: &str, others: &[Range<usize>]) -> String {
    // Neither `patch` nor git takes a name that leads out of the directory it works in.
    let leads_out = path.starts_with('/') || path.split('/').any(|name| name == "..");
    let directory = container::parent(path);
    let (intro, path) = match leads_out {
        true => (format!("patch -p1 -d {}\n", quote(directory)), path[directory.len()..].trim_start_matches('/')),
        false => (String::new(), path),
    };
    // As git quotes names that would break the line; a blank would end one without the tab.
    let name = |side: &str| match path.contains(|c: char| c.is_control() || c == '"') {
        true => format!("{:?}", format!("{side}/{path}")),
        false if path.contains(' ') => format!("{side}/{path}\t"),
        false => format!("{side}/{path}"),
    };
    let changes = similar::TextDiff::from_lines(before, after);
    // Without any context, only the old text of a hunk tells its place.
    let is_apart = |op: &similar::DiffOp| match op.tag() {
        similar::DiffTag::Equal => {
            let own = op.old_range();
            !others.iter().any(|other| own.start < other.end && other.start < own.end)
        }
        _ => true,
    };
    let is_placed = |op: &similar::DiffOp| op.tag() != similar::DiffTag::Insert;
    let fits = |context: &usize| {
        let hunks = changes.grouped_ops(*context);
        hunks.iter().flatten().all(|op| is_apart(op) && (*context > 0 || is_placed(op)))
    };
    let context = (0..=3).rev().find(fits).unwrap_or(3);
    let diff = changes.unified_diff().context_radius(context).header(&name("a"), &name("b")).to_string();
    if diff.is_empty() { diff } else { intro + &diff }
}

macro_rules! checks {
    ($($name:tt: $promise:literal,)*) => {
        pub const CHECKS: &[Check] = &[$(Check { name: $name, promise: $promise, run: |facts| of(facts, $name) }),*];
    };
}

checks! {
    "file-unreadable": "the project's files can be read",
    "dockerfile-unreadable": "the project's Dockerfiles can be parsed",
    "missing-cache-mount": "every step that downloads has a cache mount",
    DEAD_CACHE_MOUNT: "cache mounts are where the tools write",
    "defeated-cache-mount": "nothing empties or avoids the cache mounts",
    "unsafe-sharing": "cache mounts are locked where the tool does not",
    "mount-over-install": "no cache mount hides what the image needs",
    MOUNT_OWNER: "users can write to their cache mounts",
    "mount-id-clash": "no two systems or tools share a cache mount",
    "copy-before-install": "steps that download do not run again without need",
    "no-cache-flag": "nothing builds without the cache by habit",
    CACHE_IN_IMAGE: "images carry no package caches",
    CACHE_EXPORT_GROWS: "local cache exports do not grow for ever",
    SECRET_IN_CACHE: "caches hold no credentials that others read",
}

/// The check that looks into an image as well.
pub const CACHE_IN_IMAGE: &str = "cache-in-image";

/// The checks that look at a builder's records as well.
pub const DEAD_CACHE_MOUNT: &str = "dead-cache-mount";
pub const MOUNT_OWNER: &str = "mount-owner";

fn of(facts: &Facts, name: &str) -> Result<Vec<Finding>, NotRun> {
    let known = &facts.caches;
    if matches!(name, MOUNT_OWNER | SECRET_IN_CACHE) {
        let told = facts.told(name)?;
        if facts.engine().is_err() {
            return Ok(told);
        }
    }
    let told = match name {
        CACHE_IN_IMAGE => match &known.image {
            Some(image) => Some(caches::cache_in_image(image.as_ref().map_err(Clone::clone)?)),
            None => None,
        },
        MOUNT_OWNER => known.records.as_ref().ok().map(caches::several_owners),
        SECRET_IN_CACHE => Some(secrets::secret_in_cache(known.secrets.as_ref().map_err(Clone::clone)?)?),
        _ => None,
    };
    let project = match (&facts.project, &told) {
        (Err(why), None) => return Err(why.clone()),
        (project, _) => project.iter(),
    };
    let mut found: Vec<Finding> = told.into_iter().flatten().collect();
    found.extend(project.flat_map(Project::found).filter(|finding| finding.check == name).cloned());
    match (name, &known.records) {
        (DEAD_CACHE_MOUNT, Ok(records)) => found.iter_mut().for_each(|finding| caches::confirm_empty(finding, records)),
        (CACHE_EXPORT_GROWS, _) => found.iter_mut().for_each(|finding| exports::complete(finding, facts)),
        _ => {}
    }
    if name == MOUNT_OWNER {
        let inside = facts.caches.mounts.iter().flatten().flat_map(OwnedMount::findings);
        let is_told = |inside: &Finding| facts.project.as_ref().is_ok_and(|project| project.tells_owner(inside));
        found.extend(inside.filter(|finding| !is_told(finding)));
        if found.is_empty() {
            known.records.as_ref().map_err(Clone::clone)?;
            known.mounts.as_ref().map_err(Clone::clone)?;
        }
    }
    Ok(found)
}
