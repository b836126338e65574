//! `docker cache import`: restores a bundle, on this machine or another. All that is selected is proved before anything
//! is written.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::bundles::{Carrying, Source};
use super::export::{Answer, AnswerEntry, show};
use super::{Context, layers};
use crate::builders::Builders;
use crate::bundle::location::Location;
use crate::bundle::verify::{self, Verified};
use crate::bundle::{Entry, Layout, TreeConfig};
use crate::catalogue;
use crate::cli::{Import, Selection};
use crate::docker::{BuilderRef, ContainerMount, Docker, Overview, Volume, endpoint};
use crate::exit;
use crate::inside::archive::unsafe_path;
use crate::inside::unpack::{Target, Unpacked};
use crate::inventory::{self, Held, Kind, Names};
use crate::place::carry::{self, Mount};
use crate::place::{self, Access, MountPlace, Place};
use crate::report::{self, Progress};

/// Where an entry goes.
struct Step {
    entry: Entry,
    to: To,
    /// See [`Target`].
    from: String,
    below: String,
}

enum To {
    Volume(String),
    Mount(Mount),
}

impl To {
    /// Returns true if both are one place. A mount is the same whatever its target.
    fn is(&self, other: &To) -> bool {
        let mount = |mount: &Mount| Mount { target: String::new(), ..mount.clone() };
        match (self, other) {
            (To::Volume(one), To::Volume(other)) => one == other,
            (To::Mount(one), To::Mount(other)) => mount(one) == mount(other),
            _ => false,
        }
    }
}

impl Step {
    /// Returns what it comes from, as a user would call it.
    fn source(&self) -> String {
        format!("{} {}", self.entry.config.kind.as_str(), self.entry.config.name)
    }

    /// Returns the directories that it replaces, below the root of where it goes.
    fn places(&self) -> Vec<&str> {
        let rules = self.entry.config.rules.iter().filter(|rule| rule.take).map(|rule| rule.path.as_str());
        match (&self.to, self.entry.config.kind) {
            (To::Volume(_), Kind::Volume) => rules.collect(),
            _ => vec![&self.below],
        }
    }
}

/// What is said of an import of nothing.
const NOTHING: &str = "Nothing to import";

pub fn run(context: Context, options: &Import) -> Result<u8> {
    layers::named(&options.build)?;
    let (docker, settings) = context.into_docker()?;
    let names = inventory::names(&options.selection)?;
    let mut with_layers =
        options.selection.wants(Kind::Layer) && options.to_volume.is_none() && options.to_mount.is_none();
    if let (Location::Registry(_), true, Some(missing)) = (&options.src, with_layers, layers::missing(&options.build)) {
        report::note(&format!("{missing}; the rest is imported"));
        with_layers = false;
    }
    let source = Source::open(&settings, &options.src, options.output.telling(), |config| match config {
        Some(config) => selects(&options.selection, &names, config).0,
        None => with_layers,
    })?;
    let layout = &source.layout;
    let _lock = layout.lock(|| report::note("an export writes this bundle; waiting for it"))?;
    let imports_layers = with_layers && layers::missing(&options.build).is_none();
    let checking = Progress::new("Checking", options.output.telling());
    let steps = plan(layout, options, &names, imports_layers)?;
    drop(checking);
    let mut answer =
        Answer { version: 1, entries: steps.iter().map(|step| answer(&step.entry)).collect(), ..Answer::default() };
    if options.dry_run {
        if imports_layers {
            answer.entries.extend(layers::listed(&layout.index()?.manifests));
        }
        show(&answer, &options.output, NOTHING)?;
        return Ok(0);
    }
    let any_mount = steps.iter().any(|step| matches!(step.to, To::Mount(_)));
    let any_layer = imports_layers && layout.index()?.manifests.iter().any(|descriptor| !descriptor.is_tree());
    let builder = (any_mount || any_layer).then(|| builder(&docker, &settings, options)).transpose()?;
    let (files, bytes) = steps
        .iter()
        .fold((0, 0), |(files, bytes), Step { entry, .. }| (files + entry.config.files, bytes + entry.config.bytes));
    let mut progress = Carrying::new("Importing", (files, bytes), "Sending", options.output.telling());
    thread::scope(|scope| {
        scope.spawn(|| place::sweep(&docker));
        act(&docker, builder.as_ref(), layout, &steps, options, &mut answer, &mut progress)
    })?;
    drop(progress);
    let building = Progress::new("Building", options.output.telling());
    let whole = !with_layers || layers::import(builder.as_ref(), layout, options, &mut answer)?;
    drop(building);
    show(&answer, &options.output, NOTHING)?;
    Ok(if whole { 0 } else { exit::FAILED })
}

/// Returns the builder that mounts and layers are imported into.
fn builder(docker: &Docker, settings: &endpoint::Settings, options: &Import) -> Result<BuilderRef> {
    let builders = Builders::ask(docker, settings)?;
    Ok(builders.reference(builders.one(options.selection.builder.as_deref())?))
}

fn answer(entry: &Entry) -> AnswerEntry {
    AnswerEntry {
        kind: entry.config.kind,
        name: entry.config.name.clone(),
        language: entry.config.language.clone(),
        digest: Some(entry.descriptor.digest.clone()),
        bytes: entry.config.bytes,
        files: Some(entry.config.files),
    }
}

/// Proves what is selected of the bundle and says what goes where.
fn plan(layout: &Layout, options: &Import, names: &Names, with_layers: bool) -> Result<Vec<Step>> {
    let selection = &options.selection;
    let (mut used, mut chosen) = (HashSet::new(), HashSet::new());
    for descriptor in layout.index()?.manifests.iter().filter(|descriptor| descriptor.is_tree()) {
        let config = layout.entry(descriptor).map_or_else(|_| descriptor.told(), |entry| entry.config);
        let (wanted, by_name) = selects(selection, names, &config);
        used.extend(by_name);
        if wanted {
            chosen.insert(descriptor.digest.clone());
        }
    }
    let found = verify::digests(layout, |descriptor| match descriptor.is_tree() {
        true => chosen.contains(&descriptor.digest),
        false => with_layers,
    })?;
    let broken = |found: &&Verified| found.broken.is_some();
    if let Some(Verified { kind, name, broken: Some(why), .. }) = found.iter().find(broken) {
        bail!(
            "nothing was imported: {kind} {name} is broken: {why}\nhint: `docker cache verify {}` tells all of it",
            crate::docker::quote(options.src.to_string())
        );
    }
    if let Some(name) = selection.volume.iter().chain(&selection.mount).find(|name| !used.contains(name.as_str())) {
        bail!(
            "the bundle has no {name:?}\nhint: `docker cache verify {}` lists what it has",
            crate::docker::quote(options.src.to_string())
        );
    }
    let entries = found.iter().filter_map(|found| found.entry.as_ref());
    let steps: Vec<Step> = entries.map(|entry| step(entry, options)).collect::<Result<_>>()?;
    if let Some((one, other)) = rivals(&steps).filter(|_| options.replace) {
        bail!(
            "{} and {} go to one place, and with --replace the last would be all that stays\nhint: select one of them by \
             `--mount` or `--volume`, or leave out `--replace`",
            one.source(),
            other.source()
        );
    }
    Ok(steps)
}

/// Returns two steps of different sources that would replace each other's files.
fn rivals(steps: &[Step]) -> Option<(&Step, &Step)> {
    // What was packed of one volume, tool by tool, was apart there too. Of a mount each would be the root.
    let apart = |one: &Step, other: &Step| {
        matches!(one.to, To::Volume(_)) && one.entry.config.kind == Kind::Volume && one.source() == other.source()
    };
    let overlap = |one: &Step, other: &Step| {
        let others = other.places();
        one.places().iter().any(|a| others.iter().any(|b| Path::new(a).starts_with(b) || Path::new(b).starts_with(a)))
    };
    steps.iter().enumerate().find_map(|(at, one)| {
        let mut later = steps[at + 1..].iter();
        later.find(|other| one.to.is(&other.to) && !apart(one, other) && overlap(one, other)).map(|other| (one, other))
    })
}

/// Returns true if the selection is about this entry, and the word that names it.
fn selects<'a>(selection: &'a Selection, names: &Names, config: &TreeConfig) -> (bool, Option<&'a str>) {
    let named = match config.kind {
        Kind::Volume => &selection.volume,
        _ => &selection.mount,
    };
    let by_name = named.iter().find(|name| **name == config.name || **name == config.base);
    let wanted = selection.wants(config.kind)
        && (named.is_empty() || by_name.is_some())
        && names.select(config.language.as_deref(), config.tool.as_deref());
    (wanted, by_name.map(String::as_str))
}

fn step(entry: &Entry, options: &Import) -> Result<Step> {
    let config = &entry.config;
    let (mut from, mut below) = (String::new(), String::new());
    let mount = || Mount {
        namespace: config.namespace.clone(),
        id: config.name.clone(),
        options: config.options.clone(),
        target: config.base.clone(),
    };
    let to = match (&options.to_volume, &options.to_mount, config.kind) {
        (Some(volume), _, Kind::Volume) => To::Volume(volume.clone()),
        (Some(volume), ..) => {
            below = place_in_volume(config, volume)?;
            To::Volume(volume.clone())
        }
        (_, Some(id), Kind::Volume) => {
            from = place_in_tree(config)?;
            let target = format!("{}/{from}", config.base.trim_end_matches('/'));
            To::Mount(Mount { namespace: String::new(), id: id.clone(), options: String::new(), target })
        }
        (_, Some(id), _) => To::Mount(Mount { id: id.clone(), ..mount() }),
        (None, None, Kind::Volume) => To::Volume(config.name.clone()),
        (None, None, _) => To::Mount(mount()),
    };
    if let To::Mount(mount) = &to
        && !mount.is_carriable()
    {
        bail!(
            "mount {}: its id cannot be written in a Dockerfile safely\nhint: `--to-mount ID` imports it under another id; \
             `--mount` and `--tool` select others",
            mount.id
        );
    }
    Ok(Step { entry: entry.clone(), to, from, below })
}

/// Returns the directory of a volume where a mount's tool keeps its cache: `pip` below `/cache`.
fn place_in_volume(config: &TreeConfig, volume: &str) -> Result<String> {
    let root = catalogue::volume_root(volume).unwrap_or_else(|| "/cache".into());
    let row = catalogue::for_mount(Some(&config.name), &config.base).map(|(row, _)| row);
    // `/root/.cargo/registry` is `cargo/registry` of a volume: what follows the tool's own directory is kept.
    let home = row.and_then(|row| {
        let homes = row.homes.iter().map(|home| home.trim_start_matches('~'));
        let rest = homes.filter_map(|home| config.base.split_once(home)).map(|(_, rest)| rest);
        rest.filter(|rest| rest.is_empty() || rest.starts_with('/'))
            .min_by_key(|rest| rest.len())
            .map(ToString::to_string)
    });
    let place = row.and_then(|row| row.in_volume.first()).context(format!(
        "mount {} belongs to no tool that has a place in a volume\nhint: `--tool` and `--mount` select others",
        config.name
    ))?;
    let path = format!("/cache/{place}{}", home.unwrap_or_default());
    let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(place);
    let below = below.trim_matches('/');
    match unsafe_path(below.as_bytes()) {
        Some(why) => bail!("mount {}: where it would go in volume {volume}, {below:?}, {why}", config.name),
        None => Ok(below.into()),
    }
}

/// Returns the directory of a packed volume that is one mount's worth: the only one that was taken.
fn place_in_tree(config: &TreeConfig) -> Result<String> {
    let taken: Vec<&str> = config.rules.iter().filter(|rule| rule.take).map(|rule| rule.path.as_str()).collect();
    match taken[..] {
        [one] if !one.contains('*') => Ok(one.into()),
        _ => bail!(
            "volume {}: {} has several directories, and a mount is one\nhint: select one tool by `--tool`",
            config.name,
            config.tool.as_deref().unwrap_or("it")
        ),
    }
}

fn act(
    docker: &Docker,
    builder: Option<&BuilderRef>,
    layout: &Layout,
    steps: &[Step],
    options: &Import,
    answer: &mut Answer,
    progress: &mut Carrying,
) -> Result<()> {
    let mut volumes: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    let mut mounts: Vec<(&Mount, &Step)> = Vec::new();
    for step in steps {
        match &step.to {
            To::Volume(name) => volumes.entry(name).or_default().push(step),
            To::Mount(mount) => mounts.push((mount, step)),
        }
    }
    if !volumes.is_empty() {
        note(into_volumes(docker, layout, &volumes, options, progress)?, answer);
        progress.next();
    }
    for (mount, step) in mounts {
        let builder = builder.context("there is no builder")?.clone();
        let place = Place::Build(MountPlace { builder, mounts: vec![mount.clone()] });
        let trees = vec![(0, target(step, options))];
        let done = carry::unpack(&place, trees, &layout.blobs(), &mut |told| progress.tell(told));
        progress.next();
        note(done.with_context(|| format!("mount {}", mount.id))?, answer);
    }
    let bytes: u64 = answer.entries.iter().map(|entry| entry.bytes).sum();
    answer.bytes_written = bytes.saturating_sub(answer.bytes_reused);
    Ok(())
}

/// Unpacks into volumes, and makes those that are not there.
fn into_volumes(
    docker: &Docker,
    layout: &Layout,
    volumes: &BTreeMap<&str, Vec<&Step>>,
    options: &Import,
    progress: &mut Carrying,
) -> Result<Vec<Unpacked>> {
    let mut overview = docker.overview_of(|_| true)?;
    let goes_to = |volume: &&Volume| volumes.contains_key(volume.name.as_str());
    let held = Held::of(&overview.containers, &overview.volumes);
    if overview.volumes.iter().filter(goes_to).any(|volume| held.mounted_within(volume, |_| true).is_some()) {
        overview = docker.with_parts(overview)?;
    }
    let Overview { info, volumes: mut there, containers, .. } = overview;
    let held = Held::of(&containers, &there);
    for volume in there.iter().filter(goes_to) {
        place::ensure_apart(&layout.dir, volume)?;
        // Only `--replace` moves directories; without it newer files still take the place of others.
        let may_go = |mount: &ContainerMount| options.replace || !mount.is_directory();
        if let Some((container, path)) = held.mounted_within(volume, may_go) {
            bail!(
                "container {container} has something else mounted at {path}, in volume {}: it would be unmounted there\n\
                 hint: stop the container",
                volume.name
            );
        }
    }
    for volume in there.iter().filter(goes_to).filter(|_| options.replace) {
        let users = held.users(volume);
        if let Some(user) = users.iter().find(|user| user.running).filter(|_| !options.force_in_use) {
            bail!(
                "volume {} is used by container {}, which --replace would take the files from\n\
                 hint: stop the container, import without `--replace`, or add `--force-in-use`",
                volume.name,
                user.container
            );
        }
    }
    let mut made = Vec::new();
    for (&name, steps) in volumes.iter().filter(|(name, _)| !there.iter().any(|volume| volume.name == **name)) {
        let config = &steps[0].entry.config;
        let same = config.kind == Kind::Volume && config.name == name;
        let driver = if same && !config.driver.is_empty() { config.driver.as_str() } else { "local" };
        docker.create_volume(&Volume {
            name: name.into(),
            driver: driver.into(),
            labels: same.then(|| config.labels.clone()),
            ..Volume::default()
        })?;
        let label = config.labels.get("com.docker.compose.volume").filter(|_| same);
        let mut names = [Some(name), label.map(String::as_str)].into_iter().flatten();
        if !options.output.quiet && !names.any(|name| catalogue::volume_root(name).is_some()) {
            report::note(&format!(
                "volume {name} is new, and its name does not call it a cache: until a container mounts it at a cache path, \
                 `docker cache size --volume {}` shows it",
                crate::docker::quote(name)
            ));
        }
        made.push(driver);
    }
    if !made.is_empty() {
        there.extend(docker.overview_of(|driver| made.contains(&driver))?.volumes);
    }
    let places = volumes.keys().map(|name| {
        there.iter().find(|volume| volume.name == **name).with_context(|| {
            format!(
                "volume {name} is gone, or its driver does not tell of it\nhint: look by `docker volume inspect {}`, then \
                 import again",
                crate::docker::quote(name)
            )
        })
    });
    let places = places.collect::<Result<Vec<_>>>()?;
    let place = Place::of_volumes(docker, &info, &places, Access::Write);
    let trees = volumes.values().enumerate().flat_map(|(at, steps)| steps.iter().map(move |step| (at, step)));
    let trees = trees.map(|(at, step)| (at, target(step, options))).collect();
    carry::unpack(&place, trees, &layout.blobs(), &mut |told| progress.tell(told))
}

fn target(step: &Step, options: &Import) -> Target {
    Target {
        from: step.from.clone(),
        to: step.below.clone(),
        replace: options.replace,
        owner: options.owner,
        ..step.entry.config.target()
    }
}

fn note(unpacked: Vec<Unpacked>, answer: &mut Answer) {
    for unpacked in unpacked {
        answer.left_out.extend(unpacked.notes);
        answer.bytes_reused += unpacked.kept_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Descriptor;
    use crate::cli::{self, Command};

    #[test]
    fn a_mount_whose_id_fits_no_dockerfile_is_refused_with_a_way_out() {
        let config = TreeConfig { kind: Kind::Mount, name: "a$b".into(), base: "/m".into(), ..TreeConfig::default() };
        let entry = Entry { config, descriptor: Descriptor::default() };
        let of = |line: &str| {
            let Ok(parsed) = cli::parse(&line.split(' ').map(Into::into).collect::<Vec<_>>()) else { panic!("{line}") };
            let Command::Import(options) = parsed.command else { panic!("{line}") };
            step(&entry, &options)
        };
        let refused = of("import --src bundle").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("hint: `--to-mount ID`"), "{refused}");
        assert!(of("import --src bundle --to-mount other").is_ok());
    }

    #[test]
    fn a_mount_goes_to_no_place_outside_of_a_volume() {
        let place = |base: &str| {
            let config = TreeConfig { kind: Kind::Mount, name: "pip".into(), base: base.into(), ..Default::default() };
            place_in_volume(&config, "project-cache")
        };
        assert_eq!(place("/root/.cache/pip").unwrap(), "pip");
        assert_eq!(place("/root/.cache/pip/http").unwrap(), "pip/http");
        for base in ["/root/.cache/pip/../../x", "/root/.cache/pip/./x", "/root/.cache/pip/.."] {
            place(base).unwrap_err();
        }
    }

    #[test]
    fn what_would_replace_each_other_in_one_place_is_seen() {
        let step = |name: &str, tool: &str, base: &str, to: To| {
            let rules = vec![crate::inside::rules::Rule { path: tool.into(), take: true }];
            let (name, base) = (name.into(), base.into());
            let config = TreeConfig { kind: Kind::Volume, name, base, rules, ..Default::default() };
            Step {
                entry: Entry { descriptor: Default::default(), config },
                to,
                from: tool.into(),
                below: String::new(),
            }
        };
        let mount = |id: &str, target: &str| {
            let (id, target) = (id.into(), target.into());
            To::Mount(Mount { namespace: String::new(), id, options: String::new(), target })
        };
        let rival =
            |one: To, other: To| rivals(&[step("v", "pip", "/a", one), step("v", "npm", "/b", other)]).is_some();
        assert!(rival(mount("id", "/a/pip"), mount("id", "/b/npm")));
        assert!(!rival(mount("id", "/a/pip"), mount("other", "/a/pip")));
        assert!(!rival(To::Volume("one".into()), To::Volume("one".into())));
    }
}
