//! Doctor's rules for the containers that a project describes: facts in, findings out. Pure; when not sure, a rule is
//! silent.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::described_edits;
use super::dockerfile::Found;
use super::edits::{self, Edit};
use super::project::diff;
use super::scripts::NO_CACHE;
use super::steps::{filled, language_call};
use super::{Finding, Fix, Severity};
use crate::catalogue::{self, Row};
use crate::dockerfile::mount::within;
use crate::dockerfile::stage::{Base, Scope, of_image, stages_with};
use crate::dockerfile::{Dockerfile, Text, bases, shell};
use crate::project::container::{self, Containers, Described, Mount, MountKind, Place};
use crate::project::{File, Kind};
use crate::report::quote;

/// What people call in an image that brings a tool.
const TOOLS: &[(&str, &str)] = &[
    ("python", "pip install"),
    ("node", "npm install"),
    ("rust", "cargo build"),
    ("golang", "go build"),
    ("maven", "mvn package"),
    ("gradle", "gradle build"),
    ("composer", "composer install"),
    ("oven/bun", "bun install"),
    ("ghcr.io/astral-sh/uv", "uv sync"),
    ("mcr.microsoft.com/dotnet/sdk", "dotnet restore"),
    ("mcr.microsoft.com/devcontainers/python", "pip install"),
    ("mcr.microsoft.com/devcontainers/javascript-node", "npm install"),
    ("mcr.microsoft.com/devcontainers/typescript-node", "npm install"),
    ("mcr.microsoft.com/devcontainers/rust", "cargo build"),
    ("mcr.microsoft.com/devcontainers/go", "go build"),
    ("mcr.microsoft.com/devcontainers/dotnet", "dotnet restore"),
    ("ghcr.io/devcontainers/features/python", "pip install"),
    ("ghcr.io/devcontainers/features/node", "npm install"),
    ("ghcr.io/devcontainers/features/rust", "cargo build"),
    ("ghcr.io/devcontainers/features/go", "go build"),
    ("ghcr.io/devcontainers/features/dotnet", "dotnet restore"),
];

/// Variables that look as if a tool read them, and those that it reads.
const VANITY: &[(&str, &str, &str)] = &[
    ("PNPM_STORE_DIR", "pnpm", "npm_config_store_dir"),
    ("PNPM_STORE", "pnpm", "npm_config_store_dir"),
    ("YARN_CACHE_DIR", "yarn", "YARN_CACHE_FOLDER"),
    ("NPM_CACHE_DIR", "npm", "npm_config_cache"),
];

/// What an image of the engine gives to its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// `""` for root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
}

/// A tool of a container.
struct Writes {
    row: &'static Row,
    call: &'static str,
    /// `None` if that cannot be known.
    places: Option<Vec<String>>,
    /// The container calls it by itself, here.
    script: Option<Place>,
}

/// A described container with what is known of its image.
struct Workload<'a> {
    described: &'a Described,
    scope: Scope,
    writes: Vec<Writes>,
    /// Everything that may prepare directories: the Dockerfile and all scripts.
    preparation: String,
    /// Settings of a tool may move its directories.
    is_configured: bool,
    /// `sudo` needs no password there.
    has_sudo: bool,
}

/// Returns all that is found in the containers that are described.
pub fn check(files: &[File], containers: &Containers, images: &BTreeMap<String, Image>) -> Vec<Found> {
    let workloads: Vec<Workload<'_>> =
        containers.described.iter().map(|described| Workload::new(described, files, images)).collect();
    let mut found: Vec<Found> = containers
        .problems
        .iter()
        .map(|(file, problem)| {
            let place = Place { file: file.clone(), line: problem.line };
            at("file-unreadable", Severity::Error, &place, problem.why.clone())
        })
        .collect();
    for workload in &workloads {
        let mut told = no_cache(workload, files);
        told.extend(volume_unused(workload, files));
        told.extend(cache_not_mounted(workload, &workloads, files));
        told.extend(volume_owner(workload));
        if containers.is_reused(workload.described) {
            told.iter_mut().for_each(|found| leave_to_the_author(found, files));
        }
        found.extend(told);
    }
    found.extend(several_owners(&workloads));
    // What several files share is told once.
    let mut seen = BTreeSet::new();
    found.retain(|Found { finding, .. }| {
        seen.insert((finding.check, finding.file.clone(), finding.line, finding.message.clone()))
    });
    found.sort_by(|a, b| (&a.finding.file, a.finding.line).cmp(&(&b.finding.file, b.finding.line)));
    found
}

/// Returns the files in which everything is put right that can be, by path. Others are not among them.
pub fn fix(files: &[File], wanted: &dyn Fn(&Finding) -> bool) -> BTreeMap<String, String> {
    let mut files = files.to_vec();
    let mut changed = BTreeMap::new();
    // One change may stand in the way of the next, which is then made in the next round.
    for _ in 0..50 {
        let containers = container::read(&files);
        let mut groups: BTreeMap<String, Vec<Vec<Edit>>> = BTreeMap::new();
        for found in check(&files, &containers, &BTreeMap::new()) {
            if let Some(file) = found.finding.file.clone().filter(|_| !found.edits.is_empty() && wanted(&found.finding))
            {
                groups.entry(file).or_default().push(found.edits);
            }
        }
        if groups.is_empty() {
            break;
        }
        for file in &mut files {
            if let Some(groups) = groups.get(&file.path) {
                file.text = edits::apply(&file.text, groups);
                changed.insert(file.path.clone(), file.text.clone());
            }
        }
    }
    changed
}

/// Keeps the change as a proposal: it would reach further than what it is for.
fn leave_to_the_author(found: &mut Found, files: &[File]) {
    let edits = std::mem::take(&mut found.edits);
    let file = files.iter().find(|file| Some(&file.path) == found.finding.file.as_ref());
    if let Some(file) = file.filter(|_| !edits.is_empty()) {
        let text = edits::apply(&file.text, &[edits]);
        found.finding.fix = Some(Fix::Diff { file: file.path.clone(), diff: diff(&file.path, &file.text, &text) });
        found.finding.message.push_str(" (`--fix` leaves it to you, as others extend or include this)");
    }
}

fn at(check: &'static str, severity: Severity, place: &Place, message: String) -> Found {
    let file = Some(place.file.clone());
    Found {
        finding: Finding { check, file, line: Some(place.line), ..Finding::new(severity, message) },
        edits: Vec::new(),
    }
}

impl<'a> Workload<'a> {
    fn new(described: &'a Described, files: &[File], images: &BTreeMap<String, Image>) -> Workload<'a> {
        let mut scope = Scope { posix: true, ..Scope::default() };
        let mut image = described.image.clone().unwrap_or_default();
        let mut preparation = String::new();
        let mut calls: Vec<String> = Vec::new();
        if let Some(build) = &described.build {
            image.clear();
            let file = build.dockerfile.as_ref().and_then(|path| files.iter().find(|file| file.path == *path));
            let text = build.inline.as_ref().map(|(text, _)| text).or(file.map(|file| &file.text));
            // A larger one is not read again for each service.
            if let Some(text) = text.filter(|text| text.len() <= 1 << 17) {
                preparation.push_str(text);
                let read = Dockerfile::parse(text);
                let stages = stages_with(&read, &build.args);
                let target = build.target.as_deref().map(str::to_lowercase);
                let wanted = match &target {
                    Some(target) => stages.iter().rposition(|stage| stage.name.as_ref() == Some(target)),
                    None => stages.len().checked_sub(1),
                };
                if let Some(mut index) = wanted.filter(|_| read.problems.is_empty()) {
                    scope = stages[index].end.clone();
                    loop {
                        let commands = stages[index].steps.iter().flat_map(|step| &step.commands);
                        calls.extend(commands.filter_map(language_call).map(str::to_owned));
                        match &stages[index].base {
                            Base::Stage(below) => index = *below,
                            Base::Image(reference) => {
                                image.clone_from(reference);
                                break;
                            }
                        }
                    }
                }
            }
        } else if let Some(config) = images.get(&image) {
            scope = of_config(config, &image);
        } else if !image.is_empty() {
            scope = of_image(&image);
        }
        let names = [bases::name(&image)].into_iter().chain(described.features.iter().map(|name| bases::name(name)));
        let names: Vec<&str> = names.collect();
        calls.extend(TOOLS.iter().filter(|(name, _)| names.contains(name)).map(|(_, call)| (*call).to_owned()));
        for (feature, name, value) in [("rust", "CARGO_HOME", "/usr/local/cargo"), ("go", "GOPATH", "/go")] {
            if names.contains(&format!("ghcr.io/devcontainers/features/{feature}").as_str()) {
                scope.set(name, Some(value.into()));
            }
        }
        let official = |name: &&str| name.starts_with("ghcr.io/devcontainers/features/");
        scope.known &= !described.has_unknown_env && names.iter().skip(1).all(official);
        for (name, value) in &described.env {
            scope.set(name, value.clone());
        }
        let dev_user = bases::dev_user(&image).filter(|_| described.is_dev && described.service.is_none());
        if let Some(user) = described.user.clone().or_else(|| dev_user.map(str::to_owned)) {
            scope.user = Some(user);
        }
        let mut writes: Vec<Writes> = Vec::new();
        let scripts = described.scripts.iter().map(|script| (script.text.as_str(), Some(&script.place)));
        for (text, place) in scripts.chain(calls.iter().map(|call| (call.as_str(), None))) {
            let commands = shell::commands(&Text::of(text));
            for command in &commands {
                let Some((row, call, places)) = filled(command, &commands, &scope) else { continue };
                // A volume on `git/db` alone would leave `git`, where cargo checks out, to root.
                let places = places.map(|places| {
                    let whole = |place: &String| place.strip_suffix("/git/db").map(|git| format!("{git}/git"));
                    places.iter().map(|place| whole(place).unwrap_or_else(|| place.clone())).collect()
                });
                if !writes.iter().any(|known| known.row.tool == row.tool) {
                    writes.push(Writes { row, call, places, script: place.cloned() });
                }
            }
        }
        described.scripts.iter().for_each(|script| preparation.push_str(&script.text));
        let settings =
            ["config set", "cache-dir", "pip.conf", ".npmrc", "npmrc", "settings.xml", "cache_dir", "env -w"];
        let is_configured = settings.iter().any(|word| preparation.contains(word));
        let has_sudo = image.starts_with("mcr.microsoft.com/devcontainers/");
        Workload { described, scope, writes, preparation, is_configured, has_sudo }
    }

    /// Returns what lies in a mount, or has one in it.
    fn mount_of(&self, place: &str) -> Option<&'a Mount> {
        self.described.mounts.iter().find(|mount| within(place, &mount.target) || within(&mount.target, place))
    }

    fn has_mounts_for(&self, writes: &Writes) -> bool {
        writes.places.iter().flatten().any(|place| self.mount_of(place).is_some())
    }

    /// Tells whether the image's steps or the container's scripts speak of a path, or of one below it.
    fn prepares(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        self.preparation.match_indices(path).any(|(at, _)| {
            let (before, after) = (&self.preparation[..at], &self.preparation[at + path.len()..]);
            !before.ends_with(is_of_name) && !after.starts_with(is_of_name)
        })
    }

    /// Returns the volumes that somebody means to keep.
    fn volumes(&self) -> impl Iterator<Item = (&'a str, &'a Mount)> {
        let volumes = self.described.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
        volumes.filter_map(|mount| Some((mount.source.as_deref()?, mount)))
    }

    fn is_same(&self, other: &Workload<'_>) -> bool {
        self.described.directory == other.described.directory && self.described.service == other.described.service
    }
}

fn of_config(config: &Image, image: &str) -> Scope {
    let pairs = config.env.iter().filter_map(|pair| pair.split_once('='));
    Scope {
        env: pairs.map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).collect(),
        known: true,
        user: Some(if config.user.is_empty() { "root".into() } else { config.user.clone() }),
        ..of_image(image)
    }
}

fn no_cache(workload: &Workload<'_>, files: &[File]) -> Vec<Found> {
    let place = workload.described.build.as_ref().and_then(|build| build.no_cache.as_ref());
    let Some(place) = place else { return Vec::new() };
    let by_key = workload.described.service.is_some();
    let message = if by_key { NO_CACHE.replacen("--no-cache", "no_cache: true", 1) } else { NO_CACHE.into() };
    let mut found = at("no-cache-flag", Severity::Warning, place, message);
    let edits = file_of(files, place).and_then(|file| described_edits::with_cache(file, workload.described, place));
    found.edits = edits.unwrap_or_default();
    vec![found]
}

/// Returns the volume that is mounted for many tools, at `/cache`, and where in it a row's directory would be. One below a
/// directory of the project, such as `/app/cache`, is the program's own.
fn common_volume<'a>(workload: &Workload<'a>, row: &Row) -> Option<(&'a str, &'a Mount, String)> {
    let below = row.in_volume.first()?;
    workload.volumes().find_map(|(name, mount)| {
        let target = mount.target.trim_end_matches('/');
        matches!(target, "/cache" | "/caches").then(|| (name, mount, format!("{target}/{below}")))
    })
}

/// A volume where no tool writes, and a tool that writes beside the volume.
fn volume_unused(workload: &Workload<'_>, files: &[File]) -> Vec<Found> {
    const CHECK: &str = "volume-unused";
    let mut found = Vec::new();
    for (wrong, tool, right) in VANITY {
        let Some(Some(value)) = workload.described.env.get(*wrong) else { continue };
        let set = workload.scope.env.keys().any(|name| name.eq_ignore_ascii_case(right));
        let Some((name, mount)) = workload.volumes().find(|(_, mount)| within(value, &mount.target)) else { continue };
        // The directory of the tool itself may be in the volume all the same.
        if !set && !workload.is_configured {
            let message = format!(
                "volume {name} stays without {tool}'s downloads: {tool} does not read `{wrong}`, set `{right}: {value}` instead"
            );
            found.push(at(CHECK, Severity::Warning, &mount.place, message));
        }
    }
    if workload.is_configured {
        return found;
    }
    for writes in &workload.writes {
        let (tool, Some(places)) = (writes.row.tool, &writes.places) else { continue };
        if workload.has_mounts_for(writes) {
            continue;
        }
        let written = list(places);
        let own = workload.volumes().find(|(_, mount)| {
            tool_at(&mount.target).is_some_and(|row| row.tool == tool && rest_is_cache(row, &mount.target))
        });
        if let Some((name, mount)) = own.filter(|(_, mount)| !workload.prepares(&mount.target)) {
            let who = workload.scope.user.as_deref().filter(|_| workload.scope.is_root() == Some(false));
            let who = who.map(|user| format!(" as user {user}")).unwrap_or_default();
            let message = format!("volume {name} at `{}` stays empty: {tool} writes to {written}{who}", mount.target);
            let mut unused = at(CHECK, Severity::Warning, &mount.place, message);
            // Docker gives to root what it makes for a volume, unless the image has it.
            let is_theirs = |place: &String| workload.scope.is_root() == Some(true) || workload.prepares(place);
            if let ([place], Some(file)) = (places.as_slice(), file_of(files, &mount.place))
                && is_theirs(place)
            {
                let edits = described_edits::move_target(file, workload.described, mount, place);
                unused.edits = edits.unwrap_or_default();
            }
            found.push(unused);
        } else if let Some((name, mount, place)) = common_volume(workload, writes.row)
            && let Some(variable) = writes.row.env.last()
            && !workload.prepares(&mount.target)
        {
            let message = format!(
                "{tool} writes to {written}, beside volume {name} at `{}`: set `{variable}={place}` in its environment",
                mount.target
            );
            found.push(at(CHECK, Severity::Warning, &mount.place, message));
        }
    }
    found
}

/// Returns the tool that a directory belongs to for sure.
fn tool_at(target: &str) -> Option<&'static Row> {
    catalogue::known_below(target).into_iter().find(|known| known.path.is_empty()).map(|known| known.row)
}

/// Tells whether what is mounted there is a cache; programs and settings are no loss for one.
fn rest_is_cache(row: &Row, target: &str) -> bool {
    let class = catalogue::for_mount(None, target).filter(|(other, _)| other.tool == row.tool).map(|(_, class)| class);
    class.is_some_and(|class| class.is_deletable())
}

fn list(places: &[String]) -> String {
    places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>().join(" and ")
}

fn file_of<'a>(files: &'a [File], place: &Place) -> Option<&'a File> {
    files.iter().find(|file| file.path == place.file)
}

/// Caches that lie in the container's own layer and go with it.
fn cache_not_mounted(workload: &Workload<'_>, all: &[Workload<'_>], files: &[File]) -> Option<Found> {
    let described = workload.described;
    if described.has_unknown_mount {
        return None;
    }
    let is_lost = |writes: &&Writes| {
        let kept = all.iter().filter(|other| other.is_same(workload) || other.described.place == described.place).any(
            |other| {
                other.described.has_unknown_mount
                    || writes.places.iter().flatten().any(|at| other.mount_of(at).is_some())
            },
        );
        let beside = common_volume(workload, writes.row).is_some()
            || workload
                .volumes()
                .any(|(_, mount)| tool_at(&mount.target).is_some_and(|row| row.tool == writes.row.tool));
        (described.is_dev || writes.script.is_some()) && writes.places.is_some() && !kept && !beside
    };
    let lost: Vec<&Writes> = workload.writes.iter().filter(is_lost).collect();
    let called = lost.iter().find_map(|writes| Some((writes.call, writes.script.as_ref()?)));
    let caches: Vec<String> = lost
        .iter()
        .map(|writes| format!("{} ({})", writes.row.tool, list(writes.places.as_deref().unwrap_or_default())))
        .collect();
    if caches.is_empty() {
        return None;
    }
    let runs = called.map(|(call, _)| format!(" runs `{call}` and")).unwrap_or_default();
    let end = match described.service {
        Some(_) => "after `docker compose down` or with a new image",
        None => "with each rebuild",
    };
    let message = format!(
        "{}{runs} keeps the downloads of {} in its own layer, gone {end}: mount a volume there{}",
        described.name(),
        caches.join(" and "),
        if workload.scope.is_root() == Some(false) { ", in a directory that the image gives to its user" } else { "" }
    );
    let severity = if called.is_some() { Severity::Warning } else { Severity::Note };
    let place = called.map_or(&described.place, |(_, place)| place);
    let mut finding = at("cache-not-mounted", severity, place, message);
    finding.edits = with_volumes(workload, &lost, files).unwrap_or_default();
    Some(finding)
}

/// Returns the change of the describing file that mounts volumes; `None` where it is not written in the usual way.
fn with_volumes(workload: &Workload<'_>, lost: &[&Writes], files: &[File]) -> Option<Vec<Edit>> {
    let described = workload.described;
    let file = file_of(files, &described.place)?;
    let volumes: Vec<(String, &str)> = lost
        .iter()
        .flat_map(|writes| {
            let places = writes.places.as_deref().unwrap_or_default();
            places.iter().map(|place| (described_edits::volume_name(writes.row, place, places.len()), place.as_str()))
        })
        .collect();
    // One that is mounted elsewhere already may be meant for this.
    if workload.volumes().any(|(source, _)| volumes.iter().any(|(name, _)| source.ends_with(name))) {
        return None;
    }
    let is_root = workload.scope.is_root()?;
    match (file.kind, &described.service) {
        (Kind::Compose, Some(_)) if is_root => described_edits::mount_in_compose(file, described, &volumes),
        (Kind::Devcontainer, None) if is_root => described_edits::mount_in_dev(file, &volumes, None),
        (Kind::Devcontainer, None) if workload.has_sudo => {
            described_edits::mount_in_dev(file, &volumes, Some(&workload.scope.home()?))
        }
        _ => None,
    }
}

/// A fresh volume belongs to root, unless the image has the directory and gives it to its user.
fn volume_owner(workload: &Workload<'_>) -> Option<Found> {
    let scope = &workload.scope;
    if scope.is_root() != Some(false) || !scope.known {
        return None;
    }
    let (user, home) = (scope.user.as_deref()?, scope.home()?);
    let user = user.split(':').next()?;
    let prepared = |mount: &Mount| {
        let from = if within(&mount.target, &home) { &mount.target[home.len()..] } else { mount.target.as_str() };
        let first = from.trim_start_matches('/').split('/').next().unwrap_or_default();
        first.is_empty() || workload.preparation.contains(first)
    };
    let mount = workload.volumes().map(|(_, mount)| mount).find(|mount| {
        let writes = |writes: &Writes| writes.places.iter().flatten().any(|place| within(place, &mount.target));
        workload.writes.iter().any(writes)
            && (within(&mount.target, &home) || within(&mount.target, "/cache"))
            && !prepared(mount)
    })?;
    let name = mount.source.as_deref()?;
    let target = &mount.target;
    let remedy = match (workload.described.service.is_some(), workload.has_sudo) {
        (_, true) => format!("add `\"onCreateCommand\": \"sudo chown $(id -u) {}\"`", quote(target)),
        _ => format!("add `RUN install -d -o {} {}` to the Dockerfile, as root", quote(user), quote(target)),
    };
    let message = format!(
        "user {user} cannot write to volume {name} at `{target}` when it is new: nothing makes that directory theirs, so docker gives it to root; {remedy}"
    );
    Some(at("volume-owner", Severity::Warning, &mount.place, message))
}

/// A volume that containers of different users share.
fn several_owners(workloads: &[Workload<'_>]) -> Vec<Found> {
    struct User<'a> {
        uid: u32,
        volume: &'a str,
        workload: &'a Workload<'a>,
        mount: &'a Mount,
    }
    let of_service = |workload: &&Workload<'_>| workload.described.service.is_some();
    let users = workloads.iter().filter(of_service).flat_map(|workload| {
        let uid = workload.scope.uid().filter(|uid| *uid != 0);
        let caches = workload.volumes().filter(|(_, mount)| catalogue::is_cache_path(&mount.target));
        caches.filter_map(move |(volume, mount)| Some(User { uid: uid?, volume, workload, mount }))
    });
    let mut first: BTreeMap<(&str, &str), User<'_>> = BTreeMap::new();
    let mut found = Vec::new();
    for user in users {
        match first.entry((&user.workload.described.directory, user.volume)) {
            Entry::Vacant(entry) => drop(entry.insert(user)),
            Entry::Occupied(entry) => {
                let one = entry.get();
                if one.uid == user.uid || one.workload.is_same(user.workload) {
                    continue;
                }
                let message = format!(
                    "{} writes to volume {} as user {}, {} as user {}: what one makes the other cannot change; give both the same `user:`",
                    one.workload.described.name(),
                    user.volume,
                    one.uid,
                    user.workload.described.name(),
                    user.uid
                );
                found.push(at("volume-owner", Severity::Warning, &user.mount.place, message));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::project::with_diff;
    use crate::project::Around;

    /// Returns the findings of files whose paths tell their kinds: check, line, message.
    fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
        let files = read(files);
        let found = check(&files, &container::read(&files), &BTreeMap::new()).into_iter();
        let file = |found: &Found| files.iter().find(|file| found.finding.file.as_ref() == Some(&file.path));
        found.map(|found| with_diff(file(&found), found)).collect()
    }

    fn read(files: &[(&str, &str)]) -> Vec<File> {
        let kind = |path: &str| match path.rsplit('/').next().unwrap_or_default() {
            ".env" => Kind::Env,
            "devcontainer.json" => Kind::Devcontainer,
            name if name.contains("compose") => Kind::Compose,
            _ => Kind::Dockerfile,
        };
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).into(),
            kind: kind(path),
            text: (*text).into(),
            around: Around::default(),
        };
        files.iter().map(file).collect()
    }

    fn found(files: &[(&str, &str)]) -> Vec<(&'static str, u32)> {
        findings(files).iter().map(|finding| (finding.check, finding.line.unwrap())).collect()
    }

    fn compose(service: &str) -> String {
        let body: String = service.lines().map(|line| format!("    {line}\n")).collect();
        format!("services:\n  web:\n{body}")
    }

    const NPM: &str = "image: node:22\ncommand: sh -c 'npm install && npm run dev'\n";

    #[test]
    fn a_service_that_installs_without_a_volume_is_told_with_one_to_paste() {
        let found = findings(&[("compose.yaml", &compose(NPM))]);
        assert_eq!((found[0].check, found[0].line), ("cache-not-mounted", Some(4)), "{found:?}");
        assert!(found[0].message.contains("`npm install`") && found[0].message.contains("`/root/.npm`"));
        let Some(Fix::Diff { diff, .. }) = &found[0].fix else { panic!("{found:?}") };
        assert!(diff.contains("+    volumes:\n+      - npm-cache:/root/.npm\n"), "{diff}");
        assert!(diff.contains("+volumes:\n+  npm-cache:\n"), "{diff}");
        let with_bind = compose(&format!("{NPM}volumes:\n  - .:/app\n"));
        let found = findings(&[("compose.yaml", &format!("{with_bind}\nvolumes:\n  db:\n"))]);
        let Some(Fix::Diff { diff, .. }) = &found[0].fix else { panic!("{found:?}") };
        assert!(diff.contains("+      - npm-cache:/root/.npm\n       - .:/app\n"), "{diff}");
        assert!(diff.contains(" volumes:\n+  npm-cache:\n   db:\n"), "{diff}");
    }

    #[test]
    fn caches_in_a_container_are_found() {
        let lost = |line| vec![("cache-not-mounted", line)];
        for (service, line) in [
            ("image: rust:1\nworking_dir: /src\ncommand: [cargo, run]", 5),
            ("image: golang:${GO:-1.23}\nentrypoint:\n  - go\n  - run\n  - .", 4),
            ("image: python:3.12-slim\ncommand: bash -c \"pip install -r requirements.txt && python app.py\"", 4),
            ("image: maven:3\ncommand: mvn spring-boot:run\nvolumes: [\"./src:/src\"]", 4),
            ("image: node:22\nuser: node\ncommand: npm ci\nvolumes:\n  - npm:/root/.npm", 0),
            ("image: python:3.12\ncommand: sleep infinity\nvolumes:\n  - .:/work", 2),
        ] {
            let expected = if line == 0 { vec![("volume-unused", 7)] } else { lost(line) };
            assert_eq!(found(&[("compose.yml", &compose(service))]), expected, "{service}");
        }
        let dockerfile =
            ("web/Dockerfile", "FROM debian AS base\nENV PIP_CACHE_DIR=/var/pip\nFROM base AS dev\nFROM base\nRUN x\n");
        let built = compose("build: {context: ./web, target: dev}\ncommand: pip install -e .");
        assert_eq!(found(&[("compose.yml", &built), dockerfile]), lost(4));
        let message = &findings(&[("compose.yml", &built), dockerfile])[0].message;
        assert!(message.contains("`/var/pip`"), "{message}");
    }

    #[test]
    fn what_is_mounted_or_unknown_is_left_alone() {
        for service in [
            "image: node:22\ncommand: npm ci\nvolumes:\n  - npm-cache:/root/.npm",
            "image: node:22\ncommand: npm ci\nvolumes:\n  - type: volume\n    source: npm-cache\n    target: /root",
            "image: node:22\ncommand: npm ci\nvolumes:\n  - ${HOME}/.npm:/root/.npm",
            "image: node:22\ncommand: npm ci\nvolumes:\n  - cache:${NPM_DIR}",
            "image: node:22\nuser: node\ncommand: npm ci\nvolumes:\n  - ~/.npm:/home/node/.npm",
            "image: node:22\ncommand: npm ci\nvolumes: [cache:/cache]\nenvironment:\n  npm_config_cache: /cache/npm",
            "image: node:22\ncommand: npm ci\nvolumes: [cache:/cache]\nenvironment:\n  - npm_config_cache=/cache/npm",
            "image: node:22\ncommand: npm ci\nvolumes: [cache:/cache]\nenvironment:\n  - npm_config_cache",
            "image: node:22\ncommand: npm ci\nenv_file: .env.node\nvolumes: [cache:/cache]",
            "image: node:22\ncommand: npm ci --cache /app/.npm",
            "image: node:22\ncommand: npm run dev",
            "image: postgres:16\nvolumes: [db:/var/lib/postgresql/data]",
            "image: example.com/team/app\nuser: app\ncommand: npm ci",
            "image: ${IMAGE}\ncommand: npm ci\nvolumes: [cache:/cache]",
            "image: python:3.12\ncommand: pip install --no-cache-dir x",
            "image: python:3.12\ncommand: python app.py",
            "image: nginx",
            "build: .\ncommand: npm ci --help",
            "image: debian\ncommand: apt-get install -y x",
        ] {
            assert_eq!(found(&[("compose.yml", &compose(service))]), [], "{service}");
        }
        let lost = compose(NPM);
        let over = compose("volumes:\n  - npm:/root/.npm");
        for other in ["compose.override.yaml", "docker-compose.dev.yml"] {
            assert_eq!(found(&[("compose.yaml", &lost), (other, &over)]), [], "{other}");
        }
    }

    #[test]
    fn a_volume_where_no_tool_writes_is_found() {
        let unused = |line| vec![("volume-unused", line)];
        for (service, line, says) in [
            ("image: python:3.12\nvolumes:\n  - .:/app\n  - pip-cache:/cache/pip", 6, "`/root/.cache/pip`"),
            ("image: python:3.12\ncommand: python x\nvolumes: [\"c:/cache\"]", 5, "PIP_CACHE_DIR=/cache/pip"),
            ("image: node:22\nuser: \"1000:1000\"\nvolumes:\n  - npm:/root/.npm", 6, "`/home/node/.npm` as user 1000"),
            ("image: rust:1\nvolumes: [cargo:/root/.cargo/registry]", 4, "`/usr/local/cargo/registry`"),
            (
                "image: node\nvolumes: [\"p:/cache/pnpm\"]\nenvironment: {PNPM_STORE_DIR: /cache/pnpm}",
                4,
                "npm_config_store_dir",
            ),
        ] {
            let files = compose(service);
            assert_eq!(found(&[("compose.yml", &files)]), unused(line), "{service}");
            let message = findings(&[("compose.yml", &files)])[0].message.clone();
            assert!(message.contains(says), "{message}");
        }
        let service = compose("build: .\ncommand: pip install x\nvolumes: [\"c:/cache/\"]");
        for (step, expected) in [
            ("--mount=type=cache,target=/var/cache/apt apt-get update", unused(5)),
            ("mkdir -p /cache/pip && chown 1000 /cache", vec![]),
        ] {
            let dockerfile = format!("FROM python:3.12\nRUN {step}\n");
            assert_eq!(found(&[("compose.yml", &service), ("Dockerfile", &dockerfile)]), expected, "{step}");
        }
        for service in [
            "image: node:22\nuser: node\nvolumes:\n  - npm:/root/.npm",
            "image: node:22\nuser: $U\nvolumes:\n  - npm:/root/.npm",
        ] {
            assert!(
                findings(&[("compose.yml", &compose(service))]).iter().all(|found| found.fix.is_none()),
                "{service}"
            );
        }
        let moved = findings(&[("compose.yml", &compose("image: python:3\nvolumes:\n  - pip:/cache/pip"))]);
        let Some(Fix::Diff { diff, .. }) = &moved[0].fix else { panic!("{moved:?}") };
        assert!(diff.contains("+      - pip:/root/.cache/pip\n"), "{diff}");
    }

    #[test]
    fn a_volume_that_is_used_or_prepared_is_left_alone() {
        for (service, dockerfile) in [
            ("image: python:3.12\nvolumes: [pip:/root/.cache/pip]", ""),
            ("image: python:3.12\nvolumes: [all:/root/.cache]", ""),
            ("image: python:3.12\nvolumes: [files:/app/cache]", ""),
            ("image: python:3.12\nvolumes: [c:/cache]\nenvironment: {PIP_CACHE_DIR: /cache/pip}", ""),
            ("image: python:3.12\nvolumes: [c:/cache]\nenvironment: {XDG_CACHE_HOME: /cache}", ""),
            ("build: .\nvolumes: [c:/cache]", "FROM python\nENV PIP_CACHE_DIR=/cache/pip\n"),
            ("build: .\nvolumes: [c:/cache]", "FROM python\nRUN pip config set global.cache-dir /cache/pip\n"),
            ("build: .\nvolumes: [c:/cache]", "FROM python\nRUN ln -s /cache/pip /root/.cache/pip\n"),
            ("build: .\nvolumes: [c:/cache]", "FROM example.com/base\nRUN pip install x\n"),
            ("image: rust:1\nvolumes: [r:/usr/local/cargo/registry, g:/usr/local/cargo/git]", ""),
            ("image: golang\nvolumes: [m:/go/pkg/mod, b:/root/.cache/go-build]", ""),
            ("image: nginx\nvolumes: [c:/var/cache/nginx]", ""),
            ("image: redis\nvolumes: [c:/cache]", ""),
        ] {
            let files = compose(service);
            assert_eq!(found(&[("compose.yml", &files), ("Dockerfile", dockerfile)]), [], "{service}\n{dockerfile}");
        }
    }

    #[test]
    fn a_volume_that_its_user_cannot_write_to_is_found() {
        let service = "image: node:22\nuser: node\nvolumes:\n  - npm:/home/node/.npm";
        let found_in =
            |service: &str, dockerfile: &str| found(&[("compose.yml", &compose(service)), ("Dockerfile", dockerfile)]);
        assert_eq!(found_in(service, ""), [("volume-owner", 6)]);
        let built = "build: .\nvolumes:\n  - npm:/home/node/.npm";
        assert_eq!(found_in(built, "FROM node\nUSER node\n"), [("volume-owner", 5)]);
        for dockerfile in [
            "FROM node\nRUN install -d -o node /home/node/.npm\nUSER node\n",
            "FROM node\nUSER node\nRUN mkdir ~/.npm\n",
            "FROM node\n",
            "FROM example.com/node\nUSER node\n",
        ] {
            assert!(!found_in(built, dockerfile).contains(&("volume-owner", 5)), "{dockerfile}");
        }
        let two = "services:\n  a: {image: x, user: '1000', volumes: [c:/cache]}\n  b: {image: y, user: '1001', volumes: [c:/cache]}\n";
        assert_eq!(found(&[("compose.yml", two)]), [("volume-owner", 3)]);
        let same = two.replace("1001", "1000");
        assert_eq!(found(&[("compose.yml", &same)]), []);
    }

    #[test]
    fn dev_containers_are_read_in_all_their_forms() {
        let at = ".devcontainer/devcontainer.json";
        let image = "mcr.microsoft.com/devcontainers/python:3.12";
        let plain = format!(
            "// python\n{{\n  \"name\": \"x\",\n  \"image\": \"{image}\",\n  \"postCreateCommand\": \"pip install -r requirements.txt\",\n}}\n"
        );
        let told = findings(&[(at, &plain)]);
        assert_eq!((told[0].check, told[0].line), ("cache-not-mounted", Some(5)));
        let Some(Fix::Diff { diff, .. }) = &told[0].fix else { panic!("{told:?}") };
        assert!(diff.contains("target=/home/vscode/.cache/pip,type=volume"), "{diff}");
        assert!(
            diff.contains("sudo chown \\\"$(id -u):$(id -g)\\\" /home/vscode/.cache /home/vscode/.cache/pip"),
            "{diff}"
        );
        let with = |more: &str| format!("{{\n\"image\": \"{image}\",\n{more}\n}}");
        for (text, expected) in [
            (
                with("\"mounts\": [\"source=pip,target=/home/vscode/.cache/pip,type=volume\"]"),
                vec![("volume-owner", 3)],
            ),
            (
                with(
                    "\"mounts\": [{\"source\": \"pip\", \"target\": \"/home/vscode/.cache\", \"type\": \"volume\"}], \"onCreateCommand\": \"sudo chown vscode ~/.cache\"",
                ),
                vec![],
            ),
            (with("\"mounts\": [\"source=/tmp/pip,target=/home/vscode/.cache,type=bind\"]"), vec![]),
            (with("\"runArgs\": [\"-v\", \"pip:/home/vscode/.cache\"]"), vec![]),
            (with("\"remoteUser\": \"root\""), vec![("cache-not-mounted", 2)]),
            (with("\"mounts\": [\"source=pip,target=/root/.cache/pip,type=volume\"]"), vec![("volume-unused", 3)]),
            ("{\"image\": \"example.com/team/dev\"}".into(), vec![]),
            (
                "{\"image\": \"debian\", \"features\": {\"ghcr.io/devcontainers/features/node:1\": {}}}".into(),
                vec![("cache-not-mounted", 1)],
            ),
            (
                "{\"build\": {\"dockerfile\": \"Dockerfile\", \"options\": [\"--no-cache\"]}}".into(),
                vec![("no-cache-flag", 1)],
            ),
            ("{\n\"image\": \"x\" \"y\": }".into(), vec![("file-unreadable", 2)]),
            ("[]".into(), vec![]),
        ] {
            assert_eq!(found(&[(at, &text)]), expected, "{text}");
        }
        let composed = "{\"dockerComposeFile\": \"../compose.yml\", \"service\": \"web\", \"remoteUser\": \"node\"}";
        let files = [("compose.yml", compose("image: node:22\ncommand: node x\n")), (at, composed.into())];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        assert_eq!(found(&files), [("cache-not-mounted", 1)]);
    }

    #[test]
    fn broken_files_are_told_and_the_others_read() {
        let broken = "services:\n  web:\n    image: [node\n  db: {}\n";
        let files = [("a/compose.yml", broken), ("b/compose.yml", "services: []\n"), ("compose.yml", &compose(NPM))];
        assert_eq!(found(&files), [("file-unreadable", 4), ("file-unreadable", 1), ("cache-not-mounted", 4)]);
        let flags = "services:\n  web:\n    build: &b {context: ., no_cache: true}\n  other:\n    build: *b\n";
        assert_eq!(found(&[("compose.yml", flags)]), [("no-cache-flag", 3)]);
    }

    /// Returns what `fix` makes of the first file, and proves that a second time it changes nothing.
    fn fixed(files: &[(&str, &str)]) -> String {
        let once = fix(&read(files), &|_| true).remove(files[0].0).unwrap_or_else(|| files[0].1.to_owned());
        let again: Vec<(&str, &str)> =
            std::iter::once((files[0].0, once.as_str())).chain(files[1..].iter().copied()).collect();
        assert_eq!(fix(&read(&again), &|_| true).get(files[0].0), None, "{once}");
        once
    }

    #[test]
    fn a_fix_keeps_what_the_author_wrote() {
        for (before, after) in [
            // Comments, quotes, an indent of four, a list as deep as its key.
            (
                "services:\n    web: # the site\n        image: 'node:22' # fixed\n        # why\n        command: npm ci\n        volumes:\n        # sources\n        - .:/app\n\n    db: {image: postgres}\n",
                "services:\n    web: # the site\n        image: 'node:22' # fixed\n        # why\n        command: npm ci\n        volumes:\n        - npm-cache:/root/.npm\n        # sources\n        - .:/app\n\n    db: {image: postgres}\n\nvolumes:\n  npm-cache:\n",
            ),
            // No volumes yet, no line end at the end of the file, line ends of Windows.
            (
                "services:\r\n  web:\r\n    image: node\r\n    command: |\r\n      npm ci\r\n      node x\r\n\r\n  # the end\r\nvolumes:\r\n    db:",
                "services:\r\n  web:\r\n    image: node\r\n    command: |\r\n      npm ci\r\n      node x\r\n    volumes:\r\n      - npm-cache:/root/.npm\r\n\r\n  # the end\r\nvolumes:\r\n    npm-cache:\r\n    db:",
            ),
            (
                "services:\n  a:\n    image: node\n    command: npm ci",
                "services:\n  a:\n    image: node\n    command: npm ci\n    volumes:\n      - npm-cache:/root/.npm\n\nvolumes:\n  npm-cache:",
            ),
            // Two services get a volume each.
            (
                "services:\n  a:\n    image: node\n    command: npm ci\n  b:\n    image: node:22\n    command: npm ci\n",
                "services:\n  a:\n    image: node\n    command: npm ci\n    volumes:\n      - npm-cache:/root/.npm\n  b:\n    image: node:22\n    command: npm ci\n    volumes:\n      - b-npm-cache:/root/.npm\n\nvolumes:\n  b-npm-cache:\n  npm-cache:\n",
            ),
            // A dead path, in both forms.
            (
                "services:\n  a:\n    image: python\n    volumes: [\"pip:/cache/pip\", x:/y] # z\n",
                "services:\n  a:\n    image: python\n    volumes: [\"pip:/root/.cache/pip\", x:/y] # z\n",
            ),
            (
                "services:\n  a:\n    image: python\n    volumes:\n      - type: volume\n        source: pip\n        target: \"/cache/pip\"\n",
                "services:\n  a:\n    image: python\n    volumes:\n      - type: volume\n        source: pip\n        target: \"/root/.cache/pip\"\n",
            ),
            (
                "services:\n  a:\n    build:\n      context: .\n      no_cache: true # why\n",
                "services:\n  a:\n    build:\n      context: .\n",
            ),
            (
                "services:\n  a:\n    build: {no_cache: true, context: .}\n",
                "services:\n  a:\n    build: {context: .}\n",
            ),
            (
                "services:\n  a:\n    build: {context: ., no_cache: true}\n",
                "services:\n  a:\n    build: {context: .}\n",
            ),
        ] {
            assert_eq!(fixed(&[("compose.yaml", before)]), after);
        }
        let dev = "{\n  // dev\n  \"build\": {\n    \"dockerfile\": \"Dockerfile\",\n    \"options\": [\n      \"--ssh\",\n      \"--no-cache\"\n    ]\n  }\n}\n";
        assert_eq!(fixed(&[("devcontainer.json", dev)]), dev.replace("\"--ssh\",\n      \"--no-cache\"", "\"--ssh\""));
        let one_line = "{\"build\": {\"dockerfile\": \"Dockerfile\", \"options\": [\"--no-cache\", \"--ssh\"]}}";
        assert_eq!(fixed(&[("devcontainer.json", one_line)]), one_line.replace("\"--no-cache\", ", ""));
        let mounts = "{\n\t\"image\": \"rust\",\n\t\"mounts\": [\"source=x,target=/y,type=volume\"]\n}\n";
        assert_eq!(
            fixed(&[("devcontainer.json", mounts)]),
            mounts.replace("[", "[\"source=cargo-registry,target=/usr/local/cargo/registry,type=volume\", \"source=cargo-git,target=/usr/local/cargo/git,type=volume\", ")
        );
    }

    #[test]
    fn what_a_change_would_carry_further_is_left_to_the_author() {
        for text in [
            // An anchor that others take, by alias or merged.
            "services:\n  a: &a\n    image: node\n    command: npm ci\n  b: *a\n",
            "x-a: &a\n  image: node\n  command: npm ci\n  volumes:\n    - .:/app\nservices:\n  a:\n    <<: *a\n",
            "services:\n  a:\n    build: &b {context: ., no_cache: true}\n  b:\n    build: *b\n",
            "services:\n  a:\n    image: python\n    volumes: &v\n      - pip:/cache/pip\n  b:\n    image: nginx\n    volumes: *v\n",
            // Others extend it.
            "services:\n  a:\n    image: node\n    command: npm ci\n  b:\n    extends: a\n    command: node x\n",
            // One line, or keys that are there twice.
            "services: {a: {image: node, command: npm ci}}\n",
            "services:\n  a:\n    image: node\n    command: npm ci\n    volumes:\n",
            "services:\n  a:\n    image: node\n    command: npm ci\nvolumes: {}\n",
            "services:\n  a:\n    image: node\n    command: npm ci\n---\nx: y\n",
            // Nothing but the flag, and one in a comment.
            "services:\n  a:\n    build:\n      no_cache: true\n",
        ] {
            assert!(!found(&[("compose.yaml", text)]).is_empty(), "{text}");
            assert_eq!(fixed(&[("compose.yaml", text)]), text);
        }
        let part = "services:\n  a:\n    image: node\n    command: npm ci\n";
        let files = [("part/compose.yaml", part), ("compose.yaml", "include:\n  - part/compose.yaml\n")];
        let told = findings(&files);
        assert!(matches!(&told[0].fix, Some(Fix::Diff { diff, .. }) if diff.contains("+  npm-cache:")), "{told:?}");
        assert_eq!(fixed(&files), part);
    }

    #[test]
    fn compose_files_are_laid_over_each_other_as_docker_compose_does() {
        let lost = ("compose.yaml", "services:\n  a:\n    image: node:22\n    command: npm ci\n");
        let over = "services:\n  a:\n    volumes: [npm:/root/.npm]\n";
        assert_eq!(
            found(&[
                lost,
                (".env", "COMPOSE_FILE=compose.yaml:dev/over.compose.yml\n"),
                ("dev/over.compose.yml", over)
            ]),
            []
        );
        let cases: &[(&[(&str, &str)], usize)] = &[
            // The command of the one that it extends does not run.
            (
                &[(
                    "compose.yaml",
                    "services:\n  a:\n    image: node\n    command: npm ci\n    volumes: [n:/root/.npm]\n  b:\n    extends: {service: a}\n    command: node x\n",
                )],
                0,
            ),
            (
                &[(
                    "compose.yaml",
                    "services:\n  b:\n    extends: {file: gone/compose.yml, service: a}\n    command: npm ci\n    image: node\n",
                )],
                0,
            ),
            (
                &[
                    (
                        "compose.yaml",
                        "services:\n  b:\n    extends: {file: x/compose.yml, service: a}\n    command: npm ci\n",
                    ),
                    ("x/compose.yml", "services:\n  a:\n    image: node\n"),
                ],
                1,
            ),
            // Profiles are services like others.
            (&[("compose.yaml", "services:\n  b:\n    profiles: [dev]\n    image: node\n    command: npm ci\n")], 1),
            (
                &[(
                    "compose.yaml",
                    "services:\n  b:\n    image: node\n    command: npm ci\n    tmpfs: [\"/root/.npm:size=1g\"]\n",
                )],
                0,
            ),
            (&[("compose.yaml", "services:\n  b:\n    image: node\n    command: npm ci\n    volumes_from: [x]\n")], 0),
            // Variables.
            (&[("compose.yaml", "services:\n  b:\n    image: ${IMAGE:-node}:${TAG-22}\n    command: npm ci\n")], 1),
            (&[("compose.yaml", "services:\n  b:\n    image: ${IMAGE:?}\n    command: npm ci\n")], 0),
            (
                &[
                    ("compose.yaml", "services:\n  b:\n    image: $IMAGE\n    command: npm ci\n"),
                    (".env", "V=22 # lts\nexport IMAGE=\"node:${V}\"\n"),
                ],
                1,
            ),
            (
                &[
                    ("compose.yaml", "services:\n  b:\n    image: ${IMAGE:-node}\n    command: npm ci\n"),
                    (".env", "IMAGE=$UNKNOWN\n"),
                ],
                0,
            ),
            (
                &[
                    (
                        "compose.yaml",
                        "services:\n  b:\n    image: node\n    command: npm ci\n    volumes: ['n:${D:+/root/.npm}']\n",
                    ),
                    (".env", "D=1\n"),
                ],
                0,
            ),
            // Arguments of the build, and a Dockerfile in the file.
            (
                &[
                    (
                        "compose.yaml",
                        "services:\n  b:\n    build: {context: ., args: {BASE: node}}\n    command: npm ci\n",
                    ),
                    ("Dockerfile", "ARG BASE=nginx\nFROM $BASE\n"),
                ],
                1,
            ),
            (
                &[
                    ("compose.yaml", "services:\n  b:\n    build: {context: ., args: [BASE]}\n    command: npm ci\n"),
                    ("Dockerfile", "ARG BASE=node\nFROM $BASE\n"),
                ],
                0,
            ),
            (
                &[(
                    "compose.yaml",
                    "services:\n  b:\n    build:\n      dockerfile_inline: |\n        FROM node\n        ENV npm_config_cache=/n\n    command: npm ci\n    volumes: [\"n:/n\"]\n",
                )],
                0,
            ),
            (
                &[(
                    "compose.yaml",
                    "services:\n  b:\n    build:\n      dockerfile_inline: |\n        FROM node\n    command: npm ci\n",
                )],
                1,
            ),
            // What is included has its own variables, and is not laid over the rest.
            (
                &[
                    ("compose.yaml", "include: [{path: x/compose.yml}]\nservices:\n  a:\n    image: nginx\n"),
                    ("x/.env", "IMAGE=node\n"),
                    ("x/compose.yml", "services:\n  a:\n    image: $IMAGE\n    command: npm ci\n"),
                ],
                1,
            ),
            (
                &[
                    ("compose.yaml", "include: [{path: x/compose.yml, env_file: x/other}]\n"),
                    (
                        "x/compose.yml",
                        "services:\n  a:\n    image: ${IMAGE:-node}\n    command: npm ci\n    volumes: [\"n:${D:-/root/.npm}\"]\n",
                    ),
                ],
                0,
            ),
        ];
        for (files, count) in cases {
            let told = findings(files);
            let lost = told.iter().filter(|found| found.check == "cache-not-mounted").count();
            assert_eq!(lost, *count, "{files:?}\n{told:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_compose_file_makes_a_rule_panic(
            service in "((image|build|user|volumes|command|extends|environment|<<): ?[-\\[{a-z:/$\\}\\]\", ]{0,20}\n){0,5}",
            dev in "[{\\[\"]?(\"(image|mounts|dockerComposeFile|service|build|runArgs)\": ?[-\\[{a-z:/$\\}\\]\", ]{0,12},?){0,4}[}\\]]?",
        ) {
            let files = [("compose.yml", compose(&service)), ("devcontainer.json", dev)];
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            let _ = found(&files);
            fixed(&files);
        }
    }
}
