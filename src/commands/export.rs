//! `docker cache export`: saves layers, mounts and volumes to one bundle. What is not surely a cache is left out and
//! named.

mod between;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::thread;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use self::between::to_builder;
use super::bundles::Carrying;
use super::layers::{Layers, Steps};
use super::{Context, layers};
use crate::builders::Builders;
use crate::bundle::location::Location;
use crate::bundle::{Entry, Layout, TREE_VERSION, TreeConfig, Writer};
use crate::catalogue::{self, Class, Known};
use crate::cli::{Export, Format, Names, Output, Selection};
use crate::docker::{BuilderRef, Docker, Info, Volume, temporary_dir};
use crate::dockerfile::{Dockerfile, mount, stage};
use crate::exit;
use crate::inside::pack::{self, Packed, Previous};
use crate::inside::rules::Rule;
use crate::inside::unpack::Unpacked;
use crate::inventory::{self, Cache, FoundBuilder, FoundVolume, Inventory, Source, Wanted};
use crate::model::{self, Bytes, CacheRecord, Kind, Mount, MountName};
use crate::place::carry;
use crate::place::{self, Access, MountPlace, Place};
use crate::report::{self, Progress};
use crate::{cancel, parallel};

/// The JSON contract of export and import.
#[derive(Debug, Default, Serialize)]
pub struct Answer {
    pub version: u32,
    pub entries: Vec<AnswerEntry>,
    pub bytes_written: u64,
    pub bytes_reused: u64,
    /// What was left out, each with the reason.
    pub left_out: Vec<String>,
    /// Something of it was asked for by name.
    #[serde(skip)]
    pub failed: bool,
    /// True if only a plan was asked for.
    #[serde(skip)]
    pub is_plan: bool,
    /// The steps of an import of layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
}

impl Answer {
    /// Adds what became of an unpacked tree.
    pub fn note(&mut self, unpacked: Unpacked) {
        self.left_out.extend(unpacked.notes);
        self.bytes_written += unpacked.bytes.saturating_sub(unpacked.kept_bytes);
        self.bytes_reused += unpacked.reused_bytes;
    }
}

#[derive(Debug, Default, Serialize)]
pub struct AnswerEntry {
    pub kind: Kind,
    pub name: String,
    pub language: Option<String>,
    /// None for a dry run.
    pub digest: Option<String>,
    pub bytes: u64,
    pub files: Option<u64>,
    /// What `--replace` would take away of what is there: in a volume bytes on the disk, of a mount all by docker's own
    /// account. None if that is not asked, or not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_replaced: Option<u64>,
}

/// Something to pack: a mount, or one tool's part of a volume.
struct Item {
    config: TreeConfig,
    /// What docker or a measurement says of it.
    estimate: (u64, Option<u64>),
    from: From,
}

impl Item {
    /// Returns true if it is all of a volume, of which no tool's cache is known.
    fn is_whole_volume(&self) -> bool {
        let TreeConfig { kind, tool, rules, .. } = &self.config;
        *kind == Kind::Volume && tool.is_none() && rules.iter().any(|rule| rule.take && rule.path.is_empty())
    }
}

enum From {
    /// Index into the plan's volumes.
    Volume(usize),
    /// Index into the plan's builders, and whether docker told the id.
    Mount(usize, Mount, bool),
}

/// What will be done.
#[derive(Default)]
struct Plan {
    items: Vec<Item>,
    volumes: Vec<FoundVolume>,
    /// The engine that has them.
    info: Option<Info>,
    builders: Vec<FoundBuilder>,
    left_out: Vec<String>,
    /// Whether some of that is left out for a failure.
    failed: bool,
}

impl Plan {
    /// Returns the way to the volumes, if there is anything to pack of them.
    fn volumes_place(&self, docker: &Docker) -> Result<Option<Place>> {
        let any = self.items.iter().any(|item| matches!(item.from, From::Volume(_)));
        let Some(info) = self.info.as_ref().filter(|_| any) else { return Ok(None) };
        let volumes: Vec<&Volume> = self.volumes.iter().map(|found| &found.volume).collect();
        let place = Place::of_volumes(docker, info, &volumes, Access::Read);
        if let Place::Container { volumes, .. } = &place {
            // Docker would make one anew.
            let of_driver = |driver: &str| self.volumes.iter().any(|found| found.volume.driver == driver);
            let there = docker.overview_of(of_driver)?.volumes;
            let gone = volumes.iter().find(|name| !there.iter().any(|volume| volume.name == **name));
            ensure!(gone.is_none(), "volume {:?} is gone", gone.map_or("", String::as_str));
        }
        Ok(Some(place))
    }
}

pub fn run(context: Context, options: &Export) -> Result<u8> {
    let (docker, settings) = context.into_docker()?;
    layers::named(&options.build)?;
    let mut plan = Plan::default();
    let Some(dest) = &options.dest else { return to_builder(&Builders::ask(&docker, &settings)?, options) };
    let of_builders = [Kind::Mount, Kind::Layer].map(|kind| options.selection.wants(kind));
    let builders = of_builders.contains(&true).then(|| Builders::ask(&docker, &settings)).transpose()?;
    if options.selection.wants(Kind::Volume) {
        let former = if options.dry_run { Former::new() } else { former(dest) };
        let mut progress = Progress::new("Measuring", options.output.telling());
        plan_volumes(&docker, options, &former, &mut plan, &mut |files, bytes| progress.update(files, bytes))?;
    }
    if let Some(builders) = builders.as_ref().filter(|_| options.selection.wants(Kind::Mount)) {
        plan_mounts(builders, options, &mut plan)?;
    }
    let layers = match builders.as_ref().filter(|_| options.selection.wants(Kind::Layer)) {
        Some(builders) => layers::plan_export(builders, options)?,
        None => Layers::None,
    };
    if let Layers::Without(why) = &layers {
        plan.left_out.push(why.clone());
    }
    // What was asked for by name and cannot be had is a failure, after all the rest is saved.
    let failed = plan.failed || (matches!(&layers, Layers::Without(_)) && options.build.directory.is_some());
    for item in plan.items.iter().filter(|item| item.is_whole_volume() && !options.output.quiet) {
        report::note(&format!(
            "volume {}: no cache is known in it; all of it goes along, but for files with names of secrets at its top",
            item.config.name
        ));
    }
    let nothing = plan.items.is_empty() && !matches!(&layers, Layers::Of(_));
    if let Location::Directory(dir) = dest
        && !nothing
    {
        ensure!(
            dir.is_dir() || !dir.exists(),
            "{} is no directory\nhint: name a bundle, or a directory that is empty or not there",
            dir.display()
        );
        for item in &plan.items {
            if let From::Volume(at) = item.from {
                place::ensure_apart(dir, &plan.volumes[at].volume)?;
            }
        }
        Layout::ensure_fit(dir)?;
    }
    if options.dry_run || nothing {
        let layer = match &layers {
            Layers::Of(export) => Some(export.planned()),
            _ => None,
        };
        let entries = plan.items.iter().map(|item| AnswerEntry {
            kind: item.config.kind,
            name: item.config.name.clone(),
            language: item.config.language.clone(),
            bytes: item.estimate.0,
            files: item.estimate.1,
            ..AnswerEntry::default()
        });
        let entries = layer.into_iter().chain(entries);
        let (entries, left_out) = (entries.collect(), plan.left_out);
        let answer = Answer { version: 1, entries, left_out, failed, is_plan: options.dry_run, ..Answer::default() };
        return show(&answer, &options.output, NOTHING);
    }
    let wait = || report::note("another export writes this bundle; waiting for it");
    let stage;
    let (dir, mut remote) = match dest {
        Location::Directory(dir) => (dir.as_path(), None),
        Location::Registry(reference) => {
            stage = temporary_dir()?;
            (stage.path(), Some(super::bundles::remote(&settings, reference, true)?))
        }
    };
    let mut writer = Writer::open(dir, wait)?;
    if let Some(remote) = &mut remote {
        let trees: Vec<String> = plan.items.iter().map(|item| item.config.ref_name()).collect();
        let layers = match &layers {
            Layers::Of(export) => Some(export.name.clone()),
            _ => None,
        };
        remote.ensure_apart(&trees.iter().cloned().chain(layers).collect::<Vec<_>>())?;
        remote.prepare(&mut writer, &trees)?;
    }
    let left_out = std::mem::take(&mut plan.left_out);
    let mut answer = Answer { version: 1, left_out, failed, ..Answer::default() };
    if let Layers::Of(export) = &layers {
        let _building = Progress::new("Building", options.output.telling());
        let exported = match &remote {
            Some(remote) => export.push(remote, &mut writer),
            None => export.run(&mut writer),
        };
        match exported {
            Ok(entry) => answer.entries.push(entry),
            Err(error) if cancel::requested() => return Err(error),
            Err(error) => {
                answer.left_out.push(format!("layers: {error:#}"));
                answer.failed = true;
            }
        }
    }
    let (files, bytes) = plan
        .items
        .iter()
        .fold((0, 0), |(files, bytes), item| (files + item.estimate.1.unwrap_or_default(), bytes + item.estimate.0));
    let mut progress = Carrying::new("Exporting", (files, bytes), "Receiving", options.output.telling());
    let place = plan.volumes_place(&docker)?;
    thread::scope(|scope| {
        // Reading by path leaves no helpers, and may be faster than docker tells of them.
        if !matches!(place, Some(Place::Here(_))) {
            scope.spawn(|| place::sweep(&docker));
        }
        act(place, plan, &mut writer, &mut answer, &mut progress)
    })
    .map_err(|error| match format!("{error:#}").contains(FULL) {
        true => {
            error.context(format!("the disk of {} has no room for the bundle; what was there is whole", dir.display()))
        }
        false => error,
    })?;
    drop(progress);
    (answer.bytes_written, answer.bytes_reused) = (writer.bytes_written, writer.bytes_reused);
    match &remote {
        Some(remote) => {
            let mut progress = Progress::new("Pushing", options.output.telling());
            let pushed = remote.push(writer, &mut |files, bytes| progress.update(files, bytes))?;
            answer.bytes_reused += answer.bytes_written.saturating_sub(pushed);
            answer.bytes_written = pushed;
        }
        None => writer.commit()?,
    }
    show(&answer, &options.output, NOTHING)
}

/// How a system says that a disk is full, this one's or that of a helper.
const FULL: &str = "No space left on device";

/// Bytes and files that a former export has of its entries, by their names.
type Former = HashMap<String, (u64, u64)>;

/// Returns what a directory has; a registry is not asked twice.
fn former(dest: &Location) -> Former {
    let Location::Directory(dir) = dest else { return Former::new() };
    let entries = Layout::open(dir).and_then(|layout| layout.entries()).unwrap_or_default();
    let sizes = |Entry { config, .. }: Entry| (config.ref_name(), (config.bytes, config.files));
    entries.into_iter().map(sizes).collect()
}

/// Returns true if the class may go into a bundle.
fn goes(class: Class, options: &Export) -> bool {
    class.is_deletable() || (class == Class::Install && options.include_installs)
}

/// Plans what is to be packed of the volumes. What a former export has of all of it need not be measured: its sizes are
/// the estimates.
fn plan_volumes(
    docker: &Docker,
    options: &Export,
    former: &Former,
    plan: &mut Plan,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<()> {
    let selection = &options.selection;
    let overview = docker.overview()?;
    let mut look = |glance| {
        let wanted = Wanted { selection, paths: &[], exact: None };
        inventory::of_volumes(docker, &overview, wanted, inventory::Look { glance, ..Default::default() }, progress)
    };
    let mut planned = Plan::default();
    if !former.is_empty() {
        items_of_volumes(look(true)?, options, &mut planned);
    }
    if planned.items.iter().any(|item| !former.contains_key(&item.config.ref_name())) || planned.items.is_empty() {
        planned = Plan::default();
        items_of_volumes(look(false)?, options, &mut planned);
    }
    for item in &mut planned.items {
        if let Some((bytes, files)) = former.get(&item.config.ref_name()) {
            item.estimate = (*bytes, Some(*files));
        }
    }
    plan.items.append(&mut planned.items);
    plan.left_out.append(&mut planned.left_out);
    (plan.volumes, plan.info) = (planned.volumes, planned.info);
    Ok(())
}

fn items_of_volumes(measured: Inventory, options: &Export, plan: &mut Plan) {
    let selection = &options.selection;
    plan.left_out.extend(measured.gaps.into_iter().chain(measured.twins));
    (plan.volumes, plan.info) = (measured.volumes, measured.info);
    for (at, FoundVolume { cache: volume, known, .. }) in plan.volumes.iter().enumerate() {
        let rows: Vec<&Cache> =
            measured.caches.iter().filter(|cache| cache.volume.as_deref() == Some(&volume.name)).collect();
        // A volume that was named and of which nothing is known: it is what the user means by a cache.
        let unknown = selection.volume.contains(&volume.name) && rows.iter().all(|row| row.tool.is_none());
        let mut parts: BTreeMap<Option<&str>, (u64, u64)> = BTreeMap::new();
        for row in &rows {
            if !selection.names.select(row.language, row.tool) {
                continue;
            }
            if goes(row.class, options) || (unknown && row.tool.is_none()) {
                let part = parts.entry(row.tool).or_default();
                part.0 += row.bytes;
                part.1 += row.files.unwrap_or_default();
            } else if row.files != Some(0) {
                let path = row.path.as_deref().unwrap_or_default();
                plan.left_out.push(left_out(&volume.name, path, row.class, row.tool.is_some()));
            }
        }
        let class_of = |part: usize| {
            let mut rows = rows.iter();
            let row = rows.find(|row| matches!(row.source, Source::Part { part: at, .. } if at == part));
            row.map_or(known[part].class, |row| row.class)
        };
        for (tool, (bytes, files)) in parts {
            let mut rules: Vec<Rule> = (known.iter().enumerate())
                .map(|(part, known)| Rule {
                    path: known.path.clone(),
                    take: Some(known.row.tool) == tool && goes(class_of(part), options),
                })
                .collect();
            if !rules.iter().any(|rule| rule.path.is_empty()) {
                rules.push(Rule { path: String::new(), take: tool.is_none() });
            }
            let language = rows.iter().find(|row| row.tool == tool).and_then(|row| row.language);
            let config = TreeConfig {
                version: TREE_VERSION,
                kind: Kind::Volume,
                name: volume.name.clone(),
                language: language.map(Into::into),
                tool: tool.map(Into::into),
                base: volume.mounted_at.clone(),
                labels: volume.labels.clone(),
                driver: volume.driver.clone(),
                rules,
                ..TreeConfig::default()
            };
            plan.items.push(Item { config, estimate: (bytes, Some(files)), from: From::Volume(at) });
        }
    }
}

/// Says why what has this class stays out: a directory that the catalogue knows, or what else is in one.
fn left_out(name: &str, path: &str, class: Class, is_known: bool) -> String {
    match class {
        Class::Install => format!("{name}: {path} holds programs or libraries; `--include-installs` takes them too"),
        Class::Secret => format!("{name}: {path} holds secrets"),
        _ if !is_known => format!("{name}: what else is in {path} is not known to be a cache"),
        class => format!("{name}: {path} holds {class}, not cache"),
    }
}

fn plan_mounts(builders: &Builders, options: &Export, plan: &mut Plan) -> Result<()> {
    let selection = &options.selection;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut named: Vec<&str> = Vec::new();
    // Of a mount that several have, the first one's is taken.
    let selected = builders.selected(selection.builder.as_deref(), selection.all_builders)?;
    let several = selected.len() > 1;
    let told = told(&layers::dockerfile(&options.build));
    let references: Vec<BuilderRef> = selected.iter().map(|builder| builders.reference(builder)).collect();
    let found = parallel::each(&references, BuilderRef::records_at_rest);
    let mut silent = Vec::new();
    for ((builder, reference), records) in selected.iter().zip(references).zip(found) {
        let records = match records {
            Ok(records) => records,
            Err(error) if several => {
                silent.push(format!("the mounts of builder {}: {error}", builder.name));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let at = plan.builders.len();
        plan.builders.push(FoundBuilder { builder: reference, records });
        // Further records of mounts that are planned, by namespace and id.
        let mut copies: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mounts: Vec<(MountName, &CacheRecord)> =
            model::mounts(&plan.builders[at].records).into_iter().map(|(record, mount)| (mount, record)).collect();
        let ids: HashSet<String> = mounts.iter().filter_map(|(mount, _)| mount.id.clone()).collect();
        let mut is_named = |id: &str, record: &MountName| is_named(selection, &mut named, id, record, &ids);
        for (mount, record) in &mounts {
            let candidates = candidates(mount, !record.parents.is_empty(), &told);
            if candidates.is_empty()
                && is_named(mount.shown(), mount)
                && is_of(&selection.names, mount.shown(), &mount.target)
            {
                plan.left_out.push(format!(
                    "mount {}: docker does not tell the uid, gid, mode or from of this variant; the Dockerfile that uses \
                     it may: `-f FILE`",
                    mount.shown()
                ));
            }
            for (carried, sure) in candidates {
                if !is_named(&carried.id, mount) {
                    continue;
                }
                let mut left = Vec::new();
                let config = of_mount(&carried, options, &mut left);
                // Copies of a mount would tell it again.
                left.retain(|left| !plan.left_out.contains(left));
                plan.left_out.extend(left);
                let (shown, Some(config)) = (&carried.id, config) else { continue };
                match seen.get(&config.ref_name()) {
                    Some(first) if *first == at => {
                        let key = (carried.namespace.clone(), shown.clone());
                        *copies.entry(key).or_default() += usize::from(sure);
                    }
                    Some(first) => plan.left_out.push(format!(
                        "mount {shown} of builder {}: that of builder {} is taken",
                        builder.name, plan.builders[*first].builder.name
                    )),
                    None => {
                        seen.insert(config.ref_name(), at);
                        let of_target = mounts.iter().find(|(mount, _)| !sure && mount.target == carried.target);
                        let bytes = of_target.map_or(record.bytes, |(_, record)| record.bytes);
                        plan.items.push(Item { config, estimate: (bytes, None), from: From::Mount(at, carried, sure) });
                    }
                }
            }
        }
        let left = copies.into_iter().filter(|(_, others)| *others > 0).map(|((_, id), others)| {
            format!(
                "mount {id}: {others} of its {} copies, which builds made side by side, as `sharing=private` lets them; the \
                 builder gives out the one that the next build would get, and no other",
                others + 1
            )
        });
        plan.left_out.extend(left);
    }
    ensure!(silent.is_empty() || !plan.builders.is_empty(), "no builder can be asked\n{}", silent.join("\n"));
    if let Some(id) = selection.mount.iter().find(|id| !named.contains(&id.as_str())) {
        let names: Vec<&str> = plan.builders.iter().map(|found| found.builder.name.as_str()).collect();
        let unknown: String = silent.iter().map(|why| format!("\nnot known: {why}")).collect();
        bail!(
            "no cache mount {id:?} in {}{unknown}\nhint: `docker cache size --all-builders` lists all",
            names.join(", ")
        );
    }
    plan.failed = !silent.is_empty();
    plan.left_out.extend(silent);
    Ok(())
}

/// Returns what an export takes of a mount, if it takes some. What it leaves out goes to `left`, a sentence each.
fn of_mount(carried: &Mount, options: &Export, left: &mut Vec<String>) -> Option<TreeConfig> {
    let (Mount { id, target, .. }, names) = (carried, &options.selection.names);
    if !is_of(names, id, target) {
        left.extend(only_whole(id, target, names, |known| goes(known.class, options)));
        return None;
    }
    if !carried.is_carriable() {
        left.push(format!("mount {id}: its id cannot be written in a Dockerfile safely"));
        return None;
    }
    let known = catalogue::for_mount(Some(id), target);
    let class = known.map_or_else(|| inventory::class_of_unknown(target), |(_, class)| class);
    let take = goes(class, options) || (!options.selection.mount.is_empty() && class != Class::Secret);
    let below = catalogue::known_below(target).into_iter().filter(|known| !known.path.is_empty());
    let mut rules: Vec<Rule> = below.map(|known| Rule { take: goes(known.class, options), path: known.path }).collect();
    if !take {
        let is_all = !rules.iter().any(|rule| rule.take);
        left.push(left_out(&format!("mount {id}"), target, class, known.is_some() && is_all));
    }
    rules.push(Rule { path: String::new(), take });
    rules.iter().any(|rule| rule.take).then(|| TreeConfig {
        version: TREE_VERSION,
        kind: Kind::Mount,
        name: id.clone(),
        language: known.map(|(row, _)| row.language.into()),
        tool: known.map(|(row, _)| row.tool.into()),
        base: target.clone(),
        namespace: carried.namespace.clone(),
        options: carried.options.clone(),
        rules,
        ..TreeConfig::default()
    })
}

/// Returns the sentence about a mount of several things of which the selection by language and tool is about one that is
/// `carried`.
pub(super) fn only_whole(id: &str, target: &str, names: &Names, carried: impl Fn(&Known) -> bool) -> Option<String> {
    let below = catalogue::known_below(target);
    below.iter().any(|known| names.select_row(known.row) && carried(known)).then(|| {
        format!(
            "mount {id}: it may hold some at {target}, and goes as a whole: `--mount {}` without `--lang` and `--tool`",
            report::quote(id)
        )
    })
}

/// Returns true if the selection by language and tool is about a mount of this id and target.
fn is_of(names: &Names, id: &str, target: &str) -> bool {
    let known = catalogue::for_mount(Some(id), target);
    names.select(known.map(|(row, _)| row.language), known.map(|(row, _)| row.tool))
}

/// Returns true if the selection is about a mount of this id, and remembers the word that names it.
fn is_named<'a>(
    selection: &'a Selection,
    named: &mut Vec<&'a str>,
    id: &str,
    record: &MountName,
    ids: &HashSet<String>,
) -> bool {
    let by_name = selection.mount.iter().find(|name| model::is_called(name, id, &record.target, ids));
    named.extend(by_name.map(String::as_str));
    selection.mount.is_empty() || by_name.is_some()
}

/// Returns what mounts a record may be, and of each whether it surely is. Engine 20.10 does not tell ids, and a record with
/// a parent was made with uid, gid, mode or from, and does not tell with which: the Dockerfile may.
fn candidates(mount: &MountName, has_options: bool, told: &[Mount]) -> Vec<(Mount, bool)> {
    let named =
        |told: &&Mount| told.options.is_empty() != has_options && mount.id.as_ref().is_none_or(|id| told.id == *id);
    let of_file = |told: &Mount| Mount {
        namespace: mount.namespace.clone(),
        target: if mount.id.is_some() { mount.target.clone() } else { told.target.clone() },
        ..told.clone()
    };
    let mut found: Vec<(Mount, bool)> = match (has_options, &mount.id) {
        (false, Some(_)) => Vec::new(),
        _ => told.iter().filter(named).map(|told| (of_file(told), false)).collect(),
    };
    if !has_options {
        found.push((Mount::plain(mount), mount.id.is_some()));
    }
    found
}

/// Returns the cache mounts of a Dockerfile; what holds variables that are not known, or begins from another image, cannot
/// be known.
fn told(text: &str) -> Vec<Mount> {
    let file = Dockerfile::parse(text);
    let stages = stage::stages(&file);
    let steps = stages.iter().flat_map(|stage| &stage.steps);
    let mut found: Vec<Mount> = steps
        .flat_map(|step| {
            let mounts = mount::Mount::all(&file, &file.instructions[step.instruction], &step.scope);
            mounts.into_iter().filter_map(|mount| {
                let value = |name: &str| Some(step.scope.expand(mount.option(&[name])?)?.trim_matches('"').to_string());
                let known = ["uid", "gid", "mode"].into_iter().filter(|name| mount.option(&[name]).is_some());
                let options: Option<Vec<String>> = known.map(|name| Some(format!("{name}={}", value(name)?))).collect();
                let target = mount.target.clone()?;
                let id = if mount.option(&["id"]).is_some() { value("id")? } else { target.clone() };
                (mount.is_cache() && mount.option(&["from"]).is_none()).then_some(Mount {
                    namespace: String::new(),
                    id,
                    options: options?.join(","),
                    target,
                })
            })
        })
        .collect();
    found.sort();
    found.dedup_by(|one, other| (&one.id, &one.options) == (&other.id, &other.options));
    found
}

/// Packs everything and puts it into the index.
fn act(
    place: Option<Place>,
    plan: Plan,
    writer: &mut Writer,
    answer: &mut Answer,
    progress: &mut Carrying,
) -> Result<()> {
    let (mut volumes, mut mounts) = (Vec::new(), BTreeMap::<(usize, String), Vec<(Item, Mount, bool)>>::new());
    for item in plan.items {
        match item.from {
            From::Volume(at) => volumes.push((at, item)),
            From::Mount(at, ref mount, told) => {
                let mount = mount.clone();
                mounts.entry((at, mount.namespace.clone())).or_default().push((item, mount, told));
            }
        }
    }
    if let Some(place) = place {
        let items: Vec<(usize, TreeConfig)> = volumes.into_iter().map(|(at, item)| (at, item.config)).collect();
        pack(&place, items, writer, answer, progress, |_| true)?;
    }
    for ((builder, _), mut group) in mounts {
        // BuildKit takes the mounts of a step in the order of their targets: in another one, this build and one of the user
        // might wait for each other.
        group.sort_by(|(_, one, _), (_, other, _)| one.target.cmp(&other.target));
        let mounts = group.iter().map(|(_, mount, _)| mount.clone());
        let place = Place::Build(MountPlace::new(&plan.builders[builder].builder, mounts));
        let told: Vec<bool> = group.iter().map(|(_, _, told)| *told).collect();
        let items = group.into_iter().enumerate().map(|(at, (item, ..))| (at, item.config)).collect();
        pack(&place, items, writer, answer, progress, |at| told[at])?;
    }
    Ok(())
}

/// Packs the trees of one place. `sure` says of each whether it is surely there: what turns out empty and is not, is
/// left out.
fn pack(
    place: &Place,
    items: Vec<(usize, TreeConfig)>,
    writer: &mut Writer,
    answer: &mut Answer,
    progress: &mut Carrying,
    sure: impl Fn(usize) -> bool,
) -> Result<()> {
    let previous = |config: &TreeConfig| {
        let former = writer.former(&config.ref_name());
        // What was taken by other rules is another tree.
        let former = former.filter(|former| former.config.rules == config.rules && former.config.base == config.base);
        former.map(|Entry { config, .. }| Previous { table: writer.layout.path(&config.table), layers: config.layers })
    };
    let trees = items.iter().map(|(at, config)| (*at, tree(config, previous(config)))).collect();
    let ingest = writer.ingest.clone();
    let packed = carry::pack(place, trees, &ingest, &mut |told| progress.tell(told))?;
    progress.next();
    let (mut guessed, mut found) = (Vec::new(), HashSet::new());
    for ((at, config), packed) in items.into_iter().zip(packed) {
        for told in left_out_of(&config, &packed) {
            // Trees of one volume tell the same of its root.
            if !answer.left_out.contains(&told) {
                answer.left_out.push(told);
            }
        }
        let Packed { table, layers, files, bytes, .. } = packed;
        match sure(at) {
            false if files == 0 => {
                guessed.push((config.name, config.base));
                continue;
            }
            false => _ = found.insert(config.base.clone()),
            true => {}
        }
        let entry = writer.add(&TreeConfig { table, layers, files, bytes, ..config })?;
        answer.entries.push(AnswerEntry {
            kind: entry.config.kind,
            name: entry.config.name,
            language: entry.config.language,
            digest: Some(entry.descriptor.digest),
            bytes,
            files: Some(files),
            ..AnswerEntry::default()
        });
    }
    // Of several guesses about one mount, only one can be right.
    guessed.retain(|(_, target)| !found.contains(target));
    answer.left_out.extend(guessed.iter().map(|(name, _)| {
        format!(
            "mount {name}: docker does not tell all of its name, and under this one it is empty; the Dockerfile that uses it \
             may tell: `-f FILE`"
        )
    }));
    Ok(())
}

/// Returns how a tree is packed.
fn tree(config: &TreeConfig, previous: Option<Previous>) -> pack::Tree {
    pack::Tree {
        root: Default::default(),
        base: config.base.clone(),
        rules: config.rules.clone(),
        secrets: catalogue::secrets(),
        previous,
    }
}

/// Returns what was left out of a tree, each with the reason.
fn left_out_of(config: &TreeConfig, packed: &Packed) -> Vec<String> {
    let name = &config.name;
    // Of a volume, the plan has told it.
    let known = if config.kind == Kind::Mount { catalogue::known_below(&config.base) } else { Vec::new() };
    let unwanted = known.iter().filter(|known| packed.unwanted.contains(&known.path)).map(|known| {
        let path = format!("{}/{}", config.base.trim_end_matches('/'), known.path);
        left_out(&format!("mount {name}"), &path, known.class, true)
    });
    let secrets = packed.secrets.iter().map(|path| format!("{path} has the name of a file of secrets"));
    let more = packed.skipped_count.saturating_sub(packed.skipped.len() as u64);
    let more = (more > 0).then(|| format!("{more} more"));
    let within = secrets.chain(packed.skipped.iter().cloned()).chain(more).map(|what| format!("{name}: {what}"));
    unwanted.chain(within).collect()
}

/// What is said of an export of nothing.
const NOTHING: &str = "Nothing to export";

/// Prints what was done, or would be; `nothing` if that is nothing. Returns the exit status.
pub fn show(answer: &Answer, output: &Output, nothing: &str) -> Result<u8> {
    let quiet = output.quiet;
    match output.format {
        Format::Json => report::json(answer)?,
        Format::Table if quiet => {
            let mut names: Vec<String> = answer.entries.iter().map(|entry| report::plain(&entry.name) + "\n").collect();
            names.dedup();
            report::data(&names.concat())?;
        }
        Format::Table if answer.entries.is_empty() && answer.steps.is_none() => report::data(&format!("{nothing}\n"))?,
        Format::Table => {
            let replaces = answer.entries.iter().any(|entry| entry.bytes_replaced.is_some());
            let rows = answer.entries.iter().map(|entry| {
                let replaced = || entry.bytes_replaced.map_or("-".into(), |bytes| Bytes(bytes).to_string());
                let row = [
                    entry.kind.as_str().into(),
                    entry.name.clone(),
                    entry.language.clone().unwrap_or("-".into()),
                    Bytes(entry.bytes).to_string(),
                    entry.files.map_or("-".into(), |files| files.to_string()),
                ];
                row.into_iter().chain(replaces.then(replaced)).collect()
            });
            let header = ["KIND", "NAME", "LANGUAGE", "SIZE", "FILES", "REPLACES"];
            let header = if replaces { &header[..] } else { &header[..5] };
            let table = report::table_within(report::room(), header, rows.collect(), &["FILES", "LANGUAGE", "KIND"]);
            let (written, reused) = (Bytes(answer.bytes_written), Bytes(answer.bytes_reused));
            let told = match answer.is_plan {
                true => "Nothing was written: this is a dry run\n".into(),
                false => format!("Written:  {written}\nReused:   {reused}\n"),
            };
            let steps = answer.steps.as_ref().map(|Steps { cached, ran }| {
                format!("Layers:   {cached} of {} steps CACHED\n", *cached as usize + ran.len())
            });
            let steps = steps.unwrap_or_default();
            report::data(&format!("{table}\n{told}{steps}"))?;
        }
    }
    if !quiet || answer.failed {
        for (at, line) in answer.left_out.iter().flat_map(|what| what.lines().enumerate()) {
            let line = report::plain(line);
            report::note(&if at == 0 { format!("left out: {line}") } else { line });
        }
    }
    Ok(if answer.failed { exit::FAILED } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_named_and_the_rest_counted() {
        let config =
            TreeConfig { kind: Kind::Mount, name: "pip".into(), base: "/root".into(), ..TreeConfig::default() };
        let (secrets, skipped) = (vec!["token".into()], vec!["pipe: is no file".into()]);
        let packed = Packed { secrets, skipped, skipped_count: 3, ..Packed::default() };
        let expected = ["pip: token has the name of a file of secrets", "pip: pipe: is no file", "pip: 2 more"];
        assert_eq!(left_out_of(&config, &packed), expected);
        assert_eq!(left_out_of(&config, &Packed::default()), [""; 0]);
    }

    #[test]
    fn mounts_are_learnt_from_a_dockerfile() {
        let text = "FROM debian\nARG WHO=7\nARG UNKNOWN\n\
                    RUN --mount=type=cache,id=a,target=/a,uid=1000,gid=5 \\\n --mount=type=cache,target=/b/,mode=0700 x\n\
                    RUN --mount=type=cache,dst=/c --mount=type=bind,target=/d,uid=1 --mount=type=cache,target=/$UNKNOWN y\n\
                    RUN --mount=type=cache,\"id=a b\",target=/e,uid=$WHO --mount=type=cache,id=a,target=/a,uid=1000,gid=5 z\n\
                    RUN --mount=type=cache,target=/f,from=debian x";
        let found = told(text);
        let found: Vec<_> =
            found.iter().map(|mount| (mount.id.as_str(), mount.options.as_str(), mount.target.as_str())).collect();
        let expected =
            [("/b", "mode=0700", "/b"), ("/c", "", "/c"), ("a", "uid=1000,gid=5", "/a"), ("a b", "uid=7", "/e")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_record_is_what_docker_and_the_dockerfile_tell() {
        let told = told("FROM x\nRUN --mount=type=cache,id=pip,target=/p --mount=type=cache,id=pip,target=/p,uid=1 y");
        let record =
            |id: Option<&str>| MountName { namespace: String::new(), id: id.map(Into::into), target: "/p".into() };
        let found = |id, has_options| {
            let found = candidates(&record(id), has_options, &told).into_iter();
            found.map(|(mount, sure)| (mount.id, mount.options, sure)).collect::<Vec<_>>()
        };
        let one = |id: &str, options: &str, sure| (id.to_string(), options.to_string(), sure);
        assert_eq!(found(Some("x"), false), [one("x", "", true)]);
        assert_eq!(found(Some("x"), true), []);
        assert_eq!(found(Some("pip"), true), [one("pip", "uid=1", false)]);
        assert_eq!(found(None, false), [one("pip", "", false), one("/p", "", false)]);
        assert_eq!(found(None, true), [one("pip", "uid=1", false)]);
    }
}
