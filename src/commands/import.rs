//! `docker cache import`: restores a bundle, on this machine or another. All that is selected is proved before anything
//! is written.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::bundles::{Carrying, Source};
use super::export::{Answer, AnswerEntry, only_whole, show};
use super::{Context, layers};
use crate::builders::Builders;
use crate::bundle::location::Location;
use crate::bundle::verify::{self, Verified};
use crate::bundle::{Descriptor, Entry, Layout, TreeConfig};
use crate::catalogue::{self, Known};
use crate::cli::{Import, Selection};
use crate::docker::{BuilderRef, ContainerMount, Docker, DockerError, Overview, Volume, endpoint};
use crate::inside::archive::{self, unsafe_path};
use crate::inside::measure;
use crate::inside::rules::{Rule, Rules};
use crate::inside::table::Table;
use crate::inside::unpack::{Target, Unpacked, placed};
use crate::inventory::{self, Held};
use crate::model::{self, CacheVolume, Kind, Mount, MountName};
use crate::parallel;
use crate::place::carry;
use crate::place::{self, Access, MountPlace, Place};
use crate::report::{self, Progress};

/// What goes where.
struct Plan {
    entries: Vec<Entry>,
    steps: Vec<Step>,
    /// The engine as it was looked at, if something goes to volumes.
    overview: Option<Overview>,
    /// What is passed over, each with the reason.
    left_out: Vec<String>,
}

/// Where an entry goes, or a part of one.
struct Step {
    entry: Entry,
    to: To,
    /// See [`Target`].
    rules: Vec<Rule>,
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
        let whole = source(&self.entry.config);
        if self.from.is_empty() { whole } else { format!("{} of {whole}", self.from) }
    }

    fn goes_to(&self, volume: &str) -> bool {
        matches!(&self.to, To::Volume(name) if name == volume)
    }

    fn taken(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.take)
    }

    /// Returns where a rule's path lies below the root of where it goes; None if it does not go there.
    fn placed(&self, rule: &Rule) -> Option<String> {
        String::from_utf8(placed(rule.path.as_bytes(), &self.from, &self.below)?).ok()
    }

    /// Returns the directories that it replaces, below the root of where it goes.
    fn places(&self) -> Vec<PathBuf> {
        self.taken().filter_map(|rule| self.placed(rule)).map(PathBuf::from).collect()
    }
}

/// Returns what an entry was packed of.
fn source(config: &TreeConfig) -> String {
    format!("{} {}", config.kind.as_str(), config.name)
}

/// What is said of an import of nothing.
const NOTHING: &str = "Nothing to import";

pub fn run(context: Context, options: &Import) -> Result<u8> {
    layers::named(&options.build)?;
    let (docker, settings) = context.into_docker()?;
    let mut with_layers =
        options.selection.wants(Kind::Layer) && options.to_volume.is_none() && options.to_mount.is_none();
    if let (Location::Registry(_), true, Some(missing)) = (&options.src, with_layers, layers::missing(&options.build)) {
        report::note(&format!("{missing}; the rest is imported"));
        with_layers = false;
    }
    let source = Source::open(&settings, &options.src, options.output.telling(), |config| match config {
        // Which ids there are is not known yet: more may be fetched than is chosen.
        Some(config) => selects(&options.selection, config, &HashSet::new()).0,
        None => with_layers,
    })?;
    let layout = &source.layout;
    let _lock = layout.lock(|| report::note("an export writes this bundle; waiting for it"))?;
    let imports_layers = with_layers && layers::missing(&options.build).is_none();
    let checking = Progress::new("Checking", options.output.telling());
    let mut plan = plan(&docker, layout, options, imports_layers)?;
    drop(checking);
    for step in plan.steps.iter().filter(|_| !options.output.quiet) {
        if let To::Volume(volume) = &step.to
            && !(step.from.is_empty() && step.below.is_empty())
        {
            let place = if step.below.is_empty() { "the top" } else { &step.below };
            report::note(&format!("{} goes to {place} of volume {volume}", step.source()));
        }
    }
    let any_mount = plan.steps.iter().any(|step| matches!(step.to, To::Mount(_)));
    let any_layer = imports_layers && layout.index()?.manifests.iter().any(|descriptor| !descriptor.is_tree());
    let is_asked = match options.dry_run {
        true => options.to_mount.is_some() || (any_mount && options.replace),
        false => any_mount || any_layer,
    };
    let builder = is_asked.then(|| builder(&docker, &settings, options)).transpose()?;
    if let Some(builder) = builder.as_ref().filter(|_| options.to_mount.is_some()) {
        ensure_found(builder, &plan.steps)?;
    }
    if let Some(overview) = plan.overview.take() {
        plan.overview = Some(ensure_free(&docker, layout, &plan.steps, overview, options)?);
    }
    let entries = plan.entries.iter().map(answer).collect();
    let (left_out, is_plan) = (std::mem::take(&mut plan.left_out), options.dry_run);
    let mut answer = Answer { version: 1, entries, left_out, is_plan, ..Answer::default() };
    if options.dry_run {
        if options.replace {
            let looking = Progress::new("Looking at what is there", options.output.telling());
            tell_replaced(&docker, builder.as_ref(), &plan, &mut answer.entries)?;
            drop(looking);
        }
        if imports_layers {
            answer.entries.extend(layers::listed(&layout.index()?.manifests));
        }
        return show(&answer, &options.output, NOTHING);
    }
    let (files, bytes) = plan
        .entries
        .iter()
        .fold((0, 0), |(files, bytes), Entry { config, .. }| (files + config.files, bytes + config.bytes));
    let mut progress = Carrying::new("Importing", (files, bytes), "Sending", options.output.telling());
    thread::scope(|scope| {
        scope.spawn(|| place::sweep(&docker));
        act(&docker, builder.as_ref(), layout, plan, options, &mut answer, &mut progress)
    })?;
    drop(progress);
    let building = Progress::new("Building", options.output.telling());
    answer.failed = with_layers && !layers::import(builder.as_ref(), layout, options, &mut answer)?;
    drop(building);
    show(&answer, &options.output, NOTHING)
}

/// Tells of each entry how much of what is there now a replacement of it takes away.
fn tell_replaced(
    docker: &Docker,
    builder: Option<&BuilderRef>,
    plan: &Plan,
    entries: &mut [AnswerEntry],
) -> Result<()> {
    let records = builder.map(BuilderRef::records).transpose()?.unwrap_or_default();
    let mounts = model::mounts(&records);
    let is_there = |volume: &&Volume| plan.steps.iter().any(|step| step.goes_to(&volume.name));
    let volumes: Vec<&Volume> = plan.overview.iter().flat_map(|overview| &overview.volumes).filter(is_there).collect();
    // Of each volume a directory once, though several steps may know of it.
    let known = |volume: &&Volume| {
        let steps = plan.steps.iter().filter(|step| step.goes_to(&volume.name));
        let placed: BTreeSet<String> =
            steps.flat_map(|step| step.rules.iter().filter_map(|rule| step.placed(rule))).collect();
        Vec::from_iter(placed)
    };
    let known: Vec<Vec<String>> = volumes.iter().map(known).collect();
    let measured = match &plan.overview {
        Some(overview) if !volumes.is_empty() => {
            let place = Place::of_volumes(docker, &overview.info, &volumes, Access::Read);
            let tree = |(root, known): (PathBuf, &Vec<String>)| measure::Tree {
                root,
                known: known.clone(),
                secrets: catalogue::secrets(),
                ..measure::Tree::default()
            };
            place.measure(place.roots().into_iter().zip(&known).map(tree).collect(), &mut |_, _| ())?
        }
        _ => Vec::new(),
    };
    let replaces = |step: &Step| match &step.to {
        To::Volume(name) => {
            let Some(at) = volumes.iter().position(|volume| volume.name == *name) else { return Some(0) };
            let taken: BTreeSet<String> = step.taken().filter_map(|rule| step.placed(rule)).collect();
            let sums = known[at].iter().zip(&measured[at].known).filter(|(path, _)| taken.contains(*path));
            Some(sums.map(|(_, sum)| sum.bytes - sum.staying).sum())
        }
        // All of a mount, by docker's own account.
        To::Mount(mount) => {
            let is_it = |name: &MountName| name.id.as_ref() == Some(&mount.id) && name.namespace == mount.namespace;
            let mut found = mounts.iter().filter(|(_, name)| is_it(name)).map(|(record, _)| record.bytes);
            match (found.next(), found.next()) {
                (found, None) => Some(found.unwrap_or_default()),
                // Which variant it is nobody tells.
                _ => None,
            }
        }
    };
    for (entry, answer) in plan.entries.iter().zip(entries) {
        let steps = plan.steps.iter().filter(|step| step.entry.descriptor.digest == entry.descriptor.digest);
        answer.bytes_replaced = steps.map(replaces).sum();
    }
    Ok(())
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
        ..AnswerEntry::default()
    }
}

/// Proves what is selected of the bundle and says what goes where.
fn plan(docker: &Docker, layout: &Layout, options: &Import, with_layers: bool) -> Result<Plan> {
    let selection = &options.selection;
    let (mut used, mut chosen, mut left_out) = (HashSet::new(), HashSet::new(), Vec::new());
    let index = layout.index()?;
    let trees = index.manifests.iter().filter(|descriptor| descriptor.is_tree());
    let config = |descriptor| layout.entry(descriptor).map_or_else(|_| descriptor.told(), |entry| entry.config);
    let trees: Vec<(&Descriptor, TreeConfig)> = trees.map(|descriptor| (descriptor, config(descriptor))).collect();
    let ids: HashSet<String> = trees.iter().map(|(_, config)| config.name.clone()).collect();
    for (descriptor, config) in &trees {
        let (wanted, by_name) = selects(selection, config, &ids);
        used.extend(by_name);
        let is_named = selection.mount.is_empty() || by_name.is_some();
        if wanted {
            chosen.insert(descriptor.digest.clone());
        } else if config.kind == Kind::Mount && selection.wants(Kind::Mount) && is_named {
            let taken = |known: &Known| config.rules.iter().any(|rule| rule.take && rule.path == known.path);
            left_out.extend(only_whole(&config.name, &config.base, &selection.names, taken));
        }
    }
    let found = verify::digests(layout, |descriptor| match descriptor.is_tree() {
        true => chosen.contains(&descriptor.digest),
        false => with_layers,
    })?;
    let broken = |found: &&Verified| found.broken.is_some();
    if let Some(Verified { kind, name, broken: Some(why), .. }) = found.iter().find(broken) {
        bail!(
            "nothing was imported: {kind} {name} is broken: {why}\nhint: `docker cache verify {}` tells all of it, and what \
             is whole can be had by name: `--mount`, `--volume`, `--tool`",
            crate::docker::quote(options.src.to_string())
        );
    }
    if let Some(name) = selection.volume.iter().chain(&selection.mount).find(|name| !used.contains(name.as_str())) {
        bail!(
            "the bundle has no {name:?}\nhint: `docker cache verify {}` lists what it has",
            crate::docker::quote(options.src.to_string())
        );
    }
    let entries: Vec<Entry> = found.into_iter().filter_map(|found| found.entry).collect();
    let volumes = Volumes::ask(docker, &entries, options)?;
    let mut steps = Vec::new();
    for entry in &entries {
        match volume(&entry.config, options) {
            Some(name) => steps.extend(steps_to_volume(layout, entry, name, volumes.mounted_at(&entry.config, name))?),
            None => steps.push(step_to_mount(entry, options)?),
        }
    }
    if let Some((one, other)) = poured(&steps) {
        bail!(
            "{} and {} go to one mount, and a mount has one place\nhint: select one of them by `--mount`, `--volume` or `--tool`",
            one.source(),
            other.source()
        );
    }
    if let Some((one, other)) = rivals(&steps).filter(|_| options.replace) {
        bail!(
            "{} and {} go to one place, and with --replace the last would be all that stays\nhint: select one of them by \
             `--mount`, `--volume` or `--tool`, or leave out `--replace`",
            one.source(),
            other.source()
        );
    }
    let lost = |step| Some((step, volumes.loses_its_own(step)?));
    if let Some((step, name)) = steps.iter().find_map(lost).filter(|_| options.replace) {
        bail!(
            "{} is not of volume {name}, and --replace would remove all that the volume holds\nhint: leave out `--replace`, \
             or name a new volume by `--to-volume`",
            step.source()
        );
    }
    Ok(Plan { entries, steps, overview: volumes.overview, left_out })
}

/// Returns two steps by which one mount would get what different tools have in different directories.
fn poured(steps: &[Step]) -> Option<(&Step, &Step)> {
    let differ = |one: &Step, other: &Step| match (&one.to, &other.to) {
        (To::Mount(mount), To::Mount(to)) if one.to.is(&other.to) => {
            let tool = &one.entry.config.tool;
            mount.target != to.target && (tool.is_none() || *tool != other.entry.config.tool)
        }
        _ => false,
    };
    pair(steps, differ)
}

/// Returns the first two steps that are so to each other.
fn pair(steps: &[Step], are: impl Fn(&Step, &Step) -> bool) -> Option<(&Step, &Step)> {
    let mut steps = steps.iter().enumerate().map(|(at, one)| (one, &steps[at + 1..]));
    steps.find_map(|(one, later)| later.iter().find(|other| are(one, other)).map(|other| (one, other)))
}

/// Makes sure that a mount that another one's files go to is used where a tool finds them.
///
/// # Errors
/// When it is used elsewhere, or the builder cannot be asked.
fn ensure_found(builder: &BuilderRef, steps: &[Step]) -> Result<()> {
    let records = builder.records()?;
    let mounts = model::mounts(&records);
    let tool = |id: &str, target: &str| catalogue::for_mount(Some(id), target).map(|(row, _)| row.tool);
    for step in steps {
        let To::Mount(mount) = &step.to else { continue };
        let wanted = step.entry.config.tool.as_deref();
        let is_elsewhere = |name: &MountName| {
            name.id.as_ref() == Some(&mount.id)
                && name.namespace == mount.namespace
                && name.target != mount.target
                && tool(&mount.id, &name.target) != wanted
        };
        if let Some((_, name)) = mounts.iter().find(|(_, name)| is_elsewhere(name)) {
            bail!(
                "mount {} is used at {}, where {} is of no use\nhint: name another id by `--to-mount`",
                mount.id,
                name.target,
                step.source()
            );
        }
    }
    Ok(())
}

/// Returns two steps of different sources that would replace each other's files.
fn rivals(steps: &[Step]) -> Option<(&Step, &Step)> {
    // What was packed of one volume, tool by tool, was apart there too; all of it, when it was no tool's, was not.
    let apart = |one: &Step, other: &Step| {
        matches!(one.to, To::Volume(_))
            && [one, other].iter().all(|step| step.entry.config.tool.is_some())
            && one.entry.config.kind == Kind::Volume
            && source(&one.entry.config) == source(&other.entry.config)
            && (&one.from, &one.below) == (&other.from, &other.below)
    };
    let overlap = |one: &Step, other: &Step| {
        let others = other.places();
        one.places().iter().any(|a| others.iter().any(|b| a.starts_with(b) || b.starts_with(a)))
    };
    pair(steps, |one, other| one.to.is(&other.to) && !apart(one, other) && overlap(one, other))
}

/// Returns true if the selection is about this entry, and the word that names it.
fn selects<'a>(selection: &'a Selection, config: &TreeConfig, ids: &HashSet<String>) -> (bool, Option<&'a str>) {
    let named = match config.kind {
        Kind::Volume => &selection.volume,
        _ => &selection.mount,
    };
    let by_name = named.iter().find(|name| model::is_called(name, &config.name, &config.base, ids));
    let wanted = selection.wants(config.kind)
        && (named.is_empty() || by_name.is_some())
        && selection.names.select(config.language.as_deref(), config.tool.as_deref());
    (wanted, by_name.map(String::as_str))
}

/// Returns the volume that an entry goes to, if it goes to one.
fn volume<'a>(config: &'a TreeConfig, options: &'a Import) -> Option<&'a str> {
    let own = || Some(config.name.as_str()).filter(|_| config.kind == Kind::Volume && options.to_mount.is_none());
    options.to_volume.as_deref().or_else(own)
}

/// The volumes that entries go to, those that are there.
#[derive(Default)]
struct Volumes {
    overview: Option<Overview>,
    found: Vec<CacheVolume>,
}

impl Volumes {
    fn ask(docker: &Docker, entries: &[Entry], options: &Import) -> Result<Volumes> {
        let goes_to: HashSet<&str> = entries.iter().filter_map(|entry| volume(&entry.config, options)).collect();
        if goes_to.is_empty() {
            return Ok(Volumes::default());
        }
        let look = |overview: Overview| -> Result<Volumes> {
            let there = overview.volumes.iter().map(|volume| volume.name.clone());
            let there: Vec<String> = there.filter(|name| goes_to.contains(name.as_str())).collect();
            let found = if there.is_empty() { Vec::new() } else { inventory::cache_volumes(&overview, &there)? };
            Ok(Volumes { overview: Some(overview), found })
        };
        let volumes = look(docker.overview_of(|_| true)?)?;
        let is_elsewhere = |entry: &Entry| {
            let now = volume(&entry.config, options).and_then(|name| volumes.mounted_at(&entry.config, name));
            now.is_some_and(|now| now != entry.config.base)
        };
        match volumes.overview {
            // A container may have a part of the volume there.
            Some(overview) if entries.iter().any(is_elsewhere) => look(docker.with_parts(overview)?),
            overview => Ok(Volumes { overview, ..volumes }),
        }
    }

    /// Returns the volume of which a step would replace all by what is no tool's, and not its own: it may hold more than
    /// caches.
    fn loses_its_own<'a>(&self, step: &'a Step) -> Option<&'a str> {
        let To::Volume(name) = &step.to else { return None };
        let Entry { config, .. } = &step.entry;
        let is_own = config.kind == Kind::Volume && config.name == *name;
        let is_there = self.found.iter().any(|found| found.name == *name);
        let is_all = || step.places().iter().any(|place| place.as_os_str().is_empty());
        (is_there && !is_own && config.tool.is_none() && is_all()).then_some(name)
    }

    /// Returns where the rest of this program takes a volume to be mounted. None if it is not there, or if it is the
    /// entry's own and nobody mounts it: it is then as it was.
    fn mounted_at(&self, config: &TreeConfig, name: &str) -> Option<&str> {
        let found = self.found.iter().find(|found| found.name == name)?;
        let is_own = config.kind == Kind::Volume && config.name == name;
        let is_mounted = found.users.iter().any(|user| user.is_whole && user.destination.is_some());
        (is_mounted || !is_own).then_some(&found.mounted_at)
    }
}

/// Says where an entry goes in a volume, which is mounted at `now`: to where programs look for it there.
///
/// # Errors
/// When they look for it nowhere there.
fn steps_to_volume(layout: &Layout, entry: &Entry, volume: &str, now: Option<&str>) -> Result<Vec<Step>> {
    let config = &entry.config;
    let step = |rules: Vec<Rule>, (from, below): (String, String)| Step {
        entry: entry.clone(),
        to: To::Volume(volume.into()),
        rules,
        from,
        below,
    };
    let is_volume = config.kind == Kind::Volume;
    let now = match now {
        Some(now) => now.to_owned(),
        None if is_volume => return Ok(vec![step(config.rules.clone(), Default::default())]),
        None => catalogue::volume_root(volume).unwrap_or_else(|| "/cache".into()),
    };
    let of_mount = || catalogue::for_mount(Some(&config.name), &config.base).map(|(row, _)| row);
    let row = if is_volume { None } else { of_mount() };
    let move_of = |rule: &Rule| catalogue::moved(row, &config.base, &rule.path, &now);
    let mut moves: Vec<(usize, Option<(String, String)>)> =
        config.rules.iter().enumerate().filter(|(_, rule)| rule.take).map(|(at, rule)| (at, move_of(rule))).collect();
    if moves.iter().any(|(_, to)| to.is_none() || *to != moves[0].1) {
        // A tool may keep its files in one of several places.
        let held = held(layout, config)?;
        moves.retain(|(at, _)| held.contains(at));
    }
    let mut groups: BTreeMap<(String, String), HashSet<usize>> = BTreeMap::new();
    for (at, to) in moves {
        let Some(to) = to.filter(|(from, to)| [from, to].iter().all(|path| unsafe_path(path.as_bytes()).is_none()))
        else {
            let others = match is_volume {
                true => "`--to-volume` with the name of a new volume imports it as it was; `--tool` and `--volume`",
                false => "`--to-volume` may name another volume; `--tool` and `--mount`",
            };
            bail!(
                "{}: what was in {} has no place in volume {volume}, which is for {now}\nhint: {others} select others",
                source(config),
                format!("{}/{}", config.base, config.rules[at].path).trim_end_matches('/')
            );
        };
        groups.entry(to).or_default().insert(at);
    }
    let of_group = |(to, taken): ((String, String), HashSet<usize>)| {
        let rules = config.rules.iter().enumerate();
        step(rules.map(|(at, rule)| Rule { take: taken.contains(&at), ..rule.clone() }).collect(), to)
    };
    Ok(groups.into_iter().map(of_group).collect())
}

/// Returns the rules that an entry has files by.
fn held(layout: &Layout, config: &TreeConfig) -> Result<HashSet<usize>> {
    let rules = Rules::new(&config.rules);
    let mut held = HashSet::new();
    let mut table = Table::open(&layout.path(&config.table))?;
    while let Some(row) = table.next_row()? {
        held.extend(rules.at(&row.path).rule.filter(|_| row.kind != archive::Kind::Dir));
    }
    Ok(held)
}

/// Says how an entry goes to a mount.
fn step_to_mount(entry: &Entry, options: &Import) -> Result<Step> {
    let config = &entry.config;
    let mut from = String::new();
    let own = || Mount {
        namespace: config.namespace.clone(),
        id: config.name.clone(),
        options: config.options.clone(),
        target: config.base.clone(),
    };
    let mount = match (&options.to_mount, config.kind) {
        (Some(id), Kind::Volume) => {
            from = place_in_tree(config)?;
            let target = format!("{}/{from}", config.base.trim_end_matches('/'));
            Mount { namespace: String::new(), id: id.clone(), options: String::new(), target }
        }
        (Some(id), _) => Mount { id: id.clone(), ..own() },
        (None, _) => own(),
    };
    if !mount.is_carriable() {
        bail!(
            "mount {}: its id cannot be written in a Dockerfile safely\nhint: `--to-mount ID` imports it under another id; \
             `--mount` and `--tool` select others",
            mount.id
        );
    }
    Ok(Step { entry: entry.clone(), to: To::Mount(mount), rules: config.rules.clone(), from, below: String::new() })
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
    plan: Plan,
    options: &Import,
    answer: &mut Answer,
    progress: &mut Carrying,
) -> Result<()> {
    let mut volumes: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    let mut mounts: Vec<(&Mount, &Step)> = Vec::new();
    for step in &plan.steps {
        match &step.to {
            To::Volume(name) => volumes.entry(name).or_default().push(step),
            To::Mount(mount) => mounts.push((mount, step)),
        }
    }
    if let Some(overview) = plan.overview.filter(|_| !volumes.is_empty()) {
        let unpacked = into_volumes(docker, layout, &volumes, overview, options, progress)?;
        unpacked.into_iter().for_each(|unpacked| answer.note(unpacked));
        progress.next();
    }
    for (mount, step) in mounts {
        let builder = builder.context("there is no builder")?.clone();
        let place = Place::Build(MountPlace { builder, mounts: vec![mount.clone()] });
        let trees = vec![(0, target(step, options))];
        let done = carry::unpack(&place, trees, &layout.blobs(), &mut |told| progress.tell(told));
        progress.next();
        let unpacked = done.with_context(|| format!("mount {}", mount.id))?;
        unpacked.into_iter().for_each(|unpacked| answer.note(unpacked));
    }
    Ok(())
}

/// Volumes that an import has made. Those that hold nothing go with the value, for nothing came of them.
struct Made<'a> {
    docker: &'a Docker,
    volumes: Vec<Volume>,
}

impl Made<'_> {
    /// Asks for all volumes of their drivers.
    fn overview(&self, docker: &Docker) -> Result<Overview, DockerError> {
        docker.overview_of(|driver| self.volumes.iter().any(|volume| volume.driver == driver))
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if self.volumes.is_empty() {
            return;
        }
        let docker = self.docker.cleanup();
        let Ok(Overview { info, volumes, .. }) = self.overview(&docker) else { return };
        let is_made = |volume: &&Volume| self.volumes.iter().any(|made| made.name == volume.name);
        let made: Vec<&Volume> = volumes.iter().filter(is_made).collect();
        // Somebody may have made one at the same time, or used it meanwhile.
        let place = Place::of_volumes(&docker, &info, &made, Access::Read);
        let found = place.find(vec![vec![".".into()]; made.len()]).unwrap_or_default();
        for (volume, _) in made.into_iter().zip(found).filter(|(_, found)| found.is_empty()) {
            // One that a container has stays.
            let _ = docker.remove_volume(&volume.name);
        }
    }
}

/// Makes sure that nothing is in the way of an import into volumes. Returns the overview with all that is told of them.
///
/// # Errors
/// When the bundle lies in one, or something is in use there that would be taken away.
fn ensure_free(
    docker: &Docker,
    layout: &Layout,
    steps: &[Step],
    mut overview: Overview,
    options: &Import,
) -> Result<Overview> {
    let goes_to = |volume: &&Volume| steps.iter().any(|step| step.goes_to(&volume.name));
    let held = Held::of(&overview.containers, &overview.volumes);
    if overview.volumes.iter().filter(goes_to).flat_map(|volume| held.users(volume)).any(|user| user.running) {
        overview = docker.with_parts(overview)?;
    }
    let held = Held::of(&overview.containers, &overview.volumes);
    for volume in overview.volumes.iter().filter(goes_to) {
        place::ensure_apart(&layout.dir, volume)?;
        // Only `--replace` moves directories; without it newer files still take the place of others.
        let may_go = |mount: &ContainerMount| options.replace || !mount.is_directory();
        held.ensure_free(volume, may_go)?;
    }
    for volume in overview.volumes.iter().filter(goes_to).filter(|_| options.replace) {
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
    Ok(overview)
}

/// Unpacks into volumes, and makes those that are not there; should that fail, the new ones go again.
fn into_volumes(
    docker: &Docker,
    layout: &Layout,
    volumes: &BTreeMap<&str, Vec<&Step>>,
    Overview { info, volumes: mut there, .. }: Overview,
    options: &Import,
    progress: &mut Carrying,
) -> Result<Vec<Unpacked>> {
    let mut made = Made { docker, volumes: Vec::new() };
    let is_new = |name: &&str| !there.iter().any(|volume| volume.name == **name);
    let new: Vec<Volume> =
        volumes.keys().copied().filter(is_new).map(|name| like(name, &volumes[name][0].entry.config)).collect();
    let created = parallel::each(&new, |volume| docker.create_volume(volume));
    made.volumes
        .extend(new.iter().zip(&created).filter(|(_, created)| created.is_ok()).map(|(volume, _)| volume.clone()));
    created.into_iter().collect::<Result<(), _>>()?;
    for volume in new.iter().filter(|_| !options.output.quiet) {
        let label = volume.labels.as_ref().and_then(|labels| labels.get("com.docker.compose.volume"));
        let mut names = [Some(&volume.name), label].into_iter().flatten();
        if !names.any(|name| catalogue::volume_root(name).is_some()) {
            report::note(&format!(
                "volume {} is new, and its name does not call it a cache: until a container mounts it at a cache path, \
                 `docker cache size --volume {}` shows it",
                volume.name,
                crate::docker::quote(&volume.name)
            ));
        }
    }
    if !made.volumes.is_empty() {
        there.extend(made.overview(docker)?.volumes);
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
    let unpacked = carry::unpack(&place, trees, &layout.blobs(), &mut |told| progress.tell(told))?;
    made.volumes.clear();
    Ok(unpacked)
}

/// Returns what a new volume is to be: what the packed one was, if it has its name.
fn like(name: &str, packed: &TreeConfig) -> Volume {
    let same = packed.kind == Kind::Volume && packed.name == name;
    Volume {
        name: name.into(),
        driver: if same && !packed.driver.is_empty() { packed.driver.clone() } else { "local".into() },
        labels: same.then(|| packed.labels.clone()),
        ..Volume::default()
    }
}

fn target(step: &Step, options: &Import) -> Target {
    Target {
        rules: step.rules.clone(),
        from: step.from.clone(),
        to: step.below.clone(),
        replace: options.replace,
        owner: options.owner,
        secrets: catalogue::secrets(),
        ..step.entry.config.target()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};
    use crate::inside::pack;

    #[test]
    fn a_mount_whose_id_fits_no_dockerfile_is_refused_with_a_way_out() {
        let config = TreeConfig { kind: Kind::Mount, name: "a$b".into(), base: "/m".into(), ..TreeConfig::default() };
        let entry = Entry { config, descriptor: Descriptor::default() };
        let of = |line: &str| {
            let Ok(parsed) = cli::parse(&line.split(' ').map(Into::into).collect::<Vec<_>>()) else { panic!("{line}") };
            let Command::Import(options) = parsed.command else { panic!("{line}") };
            step_to_mount(&entry, &options)
        };
        let refused = of("import --src bundle").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("hint: `--to-mount ID`"), "{refused}");
        assert!(of("import --src bundle --to-mount other").is_ok());
    }

    fn rules(rules: &[(&str, bool)]) -> Vec<Rule> {
        rules.iter().map(|(path, take)| Rule { path: (*path).into(), take: *take }).collect()
    }

    /// Returns an entry of a bundle in a directory, with these files.
    fn packed(layout: &Layout, files: &[&str], config: TreeConfig) -> Entry {
        let tree = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::create_dir_all(tree.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(tree.path().join(file), "").unwrap();
        }
        std::fs::create_dir_all(layout.blobs()).unwrap();
        let (root, base, rules) = (tree.path().into(), config.base.clone(), config.rules.clone());
        let tree = pack::Tree { root, base, rules, secrets: Vec::new(), previous: None };
        let packed = pack::all(&pack::Pack { out: layout.blobs(), trees: vec![tree] }, &mut |_, _| ()).unwrap();
        Entry { config: TreeConfig { table: packed[0].table.clone(), ..config }, descriptor: Descriptor::default() }
    }

    #[test]
    fn an_entry_goes_to_where_programs_look_in_the_volume_or_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { dir: dir.path().into() };
        let go = || {
            let rules =
                rules(&[("", false), ("go-build", true), ("go-mod", true), ("go/mod", true), ("go/bin", false)]);
            TreeConfig { kind: Kind::Volume, name: "v".into(), base: "/cache".into(), rules, ..Default::default() }
        };
        let moved = |entry: &Entry, now: Option<&str>| -> Result<Vec<(String, String, String)>> {
            let steps = steps_to_volume(&layout, entry, "team-cache", now)?;
            let taken = |step: &Step| -> Vec<String> {
                step.rules.iter().filter(|rule| rule.take).map(|rule| rule.path.clone()).collect()
            };
            Ok(steps.into_iter().map(|step| (taken(&step).join(" "), step.from, step.below)).collect())
        };
        let step = |taken: &str, from: &str, below: &str| (taken.to_owned(), from.to_owned(), below.to_owned());

        let entry = packed(&layout, &["go-build/a", "go/mod/b"], go());
        for now in [None, Some("/cache"), Some("/srv/cache")] {
            assert_eq!(moved(&entry, now).unwrap(), [step("go-build go-mod go/mod", "", "")]);
        }
        // What holds nothing has no need of a place, and replaces nothing.
        let expected = [step("go-build", "go-build", ".cache/go-build"), step("go/mod", "go/mod", "go/pkg/mod")];
        assert_eq!(moved(&entry, Some("/root")).unwrap(), expected);
        let refused = moved(&entry, Some("/go")).unwrap_err().to_string();
        assert!(
            refused.contains("/cache/go-build has no place in volume team-cache, which is for /go\nhint: "),
            "{refused}"
        );
        let entry = packed(&layout, &["go-mod/a", "go/mod/b"], go());
        let steps = steps_to_volume(&layout, &entry, "team-cache", Some("/go")).unwrap();
        assert!(rivals(&steps).is_some_and(|(one, other)| one.source() != other.source()));

        let whole = |base: &str, kind: Kind| {
            let (base, rules) = (base.into(), rules(&[("", true)]));
            packed(&layout, &["a"], TreeConfig { kind, name: "v".into(), base, rules, ..Default::default() })
        };
        let data = whole("/var/lib/data", Kind::Volume);
        assert_eq!(moved(&data, None).unwrap(), [step("", "", "")]);
        assert_eq!(moved(&data, Some("/var/lib")).unwrap(), [step("", "", "data")]);
        assert!(moved(&data, Some("/cache")).unwrap_err().to_string().contains("name of a new volume"));
        assert_eq!(moved(&whole("/root/.cache/pip", Kind::Mount), None).unwrap(), [step("", "", "pip")]);
        for (kind, base) in [(Kind::Volume, "/root/.cache/pip/../../x"), (Kind::Mount, "/root/.cache/pip/..")] {
            moved(&whole(base, kind), Some("/cache")).unwrap_err();
        }
    }

    #[test]
    fn what_would_replace_each_other_in_one_place_is_seen() {
        let step = |name: &str, tool: &str, base: &str, to: To| {
            let (name, base) = (name.into(), base.into());
            let config = TreeConfig { kind: Kind::Volume, name, base, ..Default::default() };
            Step {
                entry: Entry { descriptor: Default::default(), config },
                from: if matches!(to, To::Mount(_)) { tool.into() } else { String::new() },
                to,
                rules: rules(&[(tool, true)]),
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
