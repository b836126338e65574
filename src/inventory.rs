//! Everything that is cached, as rows: asks builders, volumes and the catalogue, side by side. Changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::slice;
use std::thread;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::answers::Answers;
use crate::cancel;
use crate::catalogue::{self, Class, Known, Unit};
use crate::cli::{Names, Selection};
use crate::docker::{BuilderRef, Container, ContainerMount, Docker, Info, Overview, Volume, endpoint, is_helper};
use crate::inside::measure::{Measured, Sum, Tree};
use crate::model::{self, Bytes, CacheRecord, CacheVolume, Kind, Moment, Mount, MountName, VolumeUser};
use crate::parallel;
use crate::place::links::Links;
use crate::place::{Access, MountPlace, Place};
use crate::report::quote;

/// One cache, or a part of one; rows of one place never count a byte twice.
#[derive(Clone, Debug, Serialize)]
pub struct Cache {
    pub kind: Kind,
    /// The type of the records, the id of the mount, or the name of the volume.
    pub name: String,
    pub builder: Option<String>,
    pub volume: Option<String>,
    /// The target of the mount, or the directory as the containers see it.
    pub path: Option<String>,
    pub language: Option<&'static str>,
    pub tool: Option<&'static str>,
    #[serde(serialize_with = "class_word")]
    pub class: Class,
    pub bytes: u64,
    pub files: Option<u64>,
    /// False where the number is docker's own record of a mount, which may be old, or a rounded one.
    pub exact: bool,
    /// Seconds since 1970.
    pub last_used: Option<u64>,
    #[serde(skip)]
    pub source: Source,
}

/// Where the bytes of a row are, for a command that changes them.
#[derive(Clone, Debug)]
pub enum Source {
    /// Records of a builder.
    Records(Vec<CacheRecord>),
    /// A part of a volume or mount: the known path of this index, or the rest.
    Part { holder: Holder, part: usize, unit: Unit, sum: Sum },
}

/// What a part is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Index in [`Inventory::volumes`].
    Volume(usize),
    /// Index in [`Inventory::mounts`].
    Mount(usize),
}

impl Cache {
    /// Returns the tool as tables show it: `pip (python)`.
    pub fn shown_tool(&self) -> String {
        match (self.tool, self.language) {
            (Some(tool), Some(language)) if tool != language => format!("{tool} ({language})"),
            (Some(tool), _) => tool.into(),
            _ => "-".into(),
        }
    }

    /// Returns the records behind a row of a builder.
    pub fn records(&self) -> &[CacheRecord] {
        match &self.source {
            Source::Records(records) => records,
            Source::Part { .. } => &[],
        }
    }

    /// Returns the bytes that a clear frees: what images share of layers stays with them.
    pub fn clearable_bytes(&self) -> u64 {
        match &self.source {
            Source::Records(records) if self.kind == Kind::Layer => {
                records.iter().map(CacheRecord::clearable_bytes).sum()
            }
            _ => self.bytes,
        }
    }

    /// Tells whether a word means this row: its name, builder, path, tool, language or kind.
    pub fn is_about(&self, word: &str) -> bool {
        [Some(self.name.as_str()), self.builder.as_deref(), self.path.as_deref(), self.tool].contains(&Some(word))
            || catalogue::language(word).is_some_and(|name| self.language == Some(name))
            || word == self.kind.as_str()
    }

    /// Tells whether a word means this row or, of a mount that holds several things, a part that it may have.
    pub fn may_be_about(&self, word: &str) -> bool {
        let language = catalogue::language(word);
        let means = |known: &Known| known.row.tool == word || Some(known.row.language) == language;
        self.is_about(word) || (is_mixed(self, &Names::default()) && known_in(self).iter().any(means))
    }

    fn push(&mut self, record: &CacheRecord) {
        if let Source::Records(records) = &mut self.source {
            records.push(record.clone());
        }
    }
}

fn class_word<S: serde::Serializer>(class: &Class, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(class.as_str())
}

/// What was found, and what could not be.
#[derive(Debug, Default)]
pub struct Inventory {
    pub caches: Vec<Cache>,
    /// What is missing from the rows, and why: a builder that does not answer, files that cannot be read.
    pub gaps: Vec<String>,
    /// Sentences about volumes that are, or lie in, the directory of another one, whose rows have all of theirs.
    pub twins: Vec<String>,
    /// The volumes that were looked into, those that are not selected by language or tool included.
    pub volumes: Vec<FoundVolume>,
    /// The mounts that were looked into, because they hold more than one thing.
    pub mounts: Vec<FoundMount>,
    /// Mounts of which only a part is what was asked for, and that were not looked into: nobody knows how large it is.
    pub unmeasured: Vec<Cache>,
    /// The builders that answered.
    pub builders: Vec<FoundBuilder>,
    /// The engine that has the volumes, if any were looked for.
    pub info: Option<Info>,
}

/// A volume that holds caches.
#[derive(Clone, Debug)]
pub struct FoundVolume {
    pub cache: CacheVolume,
    /// The same, as docker tells it.
    pub volume: Volume,
    /// What the catalogue looks for in it.
    pub known: Vec<Known>,
}

/// Returns the paths that tell the parts of a volume or mount apart.
pub fn paths(known: &[Known]) -> Vec<String> {
    known.iter().map(|known| known.path.clone()).collect()
}

/// A cache mount that holds more than one thing, as a whole `~/.cache` or CARGO_HOME does.
#[derive(Clone, Debug)]
pub struct FoundMount {
    pub builder: BuilderRef,
    pub name: MountName,
    /// What the catalogue looks for in it.
    pub known: Vec<Known>,
}

/// A builder and all that it holds.
#[derive(Clone, Debug)]
pub struct FoundBuilder {
    pub builder: BuilderRef,
    pub records: Vec<CacheRecord>,
}

impl FoundBuilder {
    /// Returns true if records of another builder are of the same BuildKit, reached by another name: BuildKit draws their
    /// ids at random.
    pub fn shares(&self, others: &[CacheRecord]) -> bool {
        let ids: HashSet<&str> = self.records.iter().map(|record| record.id.as_str()).collect();
        others.iter().any(|record| ids.contains(record.id.as_str()))
    }
}

/// What to look for, and how closely.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub selection: &'a Selection,
    /// Only these directories of volumes, as the containers see them.
    pub paths: &'a [String],
    /// Measure inside the mounts that these names are about, or all if there are none. BuildKit takes that for a use.
    pub exact: Option<&'a [String]>,
}

/// Where to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub volumes: bool,
    pub mounts: bool,
    pub layers: bool,
    /// Tell how old the files of volumes are.
    pub ages: bool,
    /// Look into mounts that hold more than one thing, by a build that uses them.
    pub inside: bool,
    /// Tell only which parts of volumes hold something, and not how much.
    pub glance: bool,
}

impl Wanted<'_> {
    fn look(&self) -> Look {
        let [volumes, mounts, layers] = [Kind::Volume, Kind::Mount, Kind::Layer].map(|kind| self.selection.wants(kind));
        Look { volumes, mounts, layers, ..Look::default() }
    }
}

/// Finds all caches that are wanted. `progress` is told files and bytes while volumes are measured.
///
/// # Errors
/// When the engine cannot be asked, or something that was named does not exist. A builder that does not answer is a gap.
pub fn collect(
    docker: &Docker,
    settings: &endpoint::Settings,
    wanted: Wanted<'_>,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Inventory> {
    let mut answers = Answers::new(docker, settings);
    if wanted.exact.is_none() {
        answers = answers.without_buildx();
    }
    collect_in(&answers, wanted, wanted.look(), progress)
}

/// The same as [`collect`], in the places that the caller chose. Layers belong to no language and no tool, so a choice of
/// those does not narrow them.
///
/// # Errors
/// See there.
pub fn collect_in(
    answers: &Answers<'_>,
    wanted: Wanted<'_>,
    look: Look,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Inventory> {
    let names = &wanted.selection.names;
    let mut inventory = thread::scope(|scope| -> Result<Inventory> {
        let built = look.mounts || look.layers;
        let built = built.then(|| scope.spawn(|| of_builders(answers, wanted, look)));
        let mut inventory = match look.volumes {
            true => of_volumes(answers.docker, answers.overview()?, wanted, look, progress)?,
            false => Inventory::default(),
        };
        if let Some(built) = built {
            let built = parallel::join(built)?;
            inventory.caches.extend(built.caches);
            inventory.gaps.extend(built.gaps);
            inventory.builders = built.builders;
            inventory.mounts = built.mounts;
        }
        Ok(inventory)
    })?;
    // Half of what was asked for is not an answer.
    cancel::check()?;
    let is_unmeasured = |cache: &&Cache| {
        cache.kind == Kind::Mount && matches!(cache.source, Source::Records(_)) && is_mixed(cache, names)
    };
    inventory.unmeasured = inventory.caches.iter().filter(is_unmeasured).cloned().collect();
    inventory.caches.retain(|cache| cache.kind == Kind::Layer || names.select(cache.language, cache.tool));
    inventory.caches.sort_by(|a, b| {
        b.bytes.cmp(&a.bytes).then_with(|| (a.kind, &a.name, &a.path).cmp(&(b.kind, &b.name, &b.path)))
    });
    Ok(inventory)
}

/// Finds layers and mounts of the selected builders.
fn of_builders(answers: &Answers<'_>, wanted: Wanted<'_>, look: Look) -> Result<Inventory> {
    let Selection { names, builder, all_builders, mount, .. } = wanted.selection;
    // Most often docker's own builder is the one in use: it is asked while `docker buildx ls` runs.
    let context = &answers.docker.endpoint.context;
    let maybe_own = *all_builders || builder.as_ref().is_none_or(|name| name.is_empty() || name == context);
    let (builders, mut early) = thread::scope(|scope| {
        let early = maybe_own.then(|| scope.spawn(|| answers.build_cache()));
        let builders = answers.builders();
        (builders, early.map(parallel::join))
    });
    let builders = builders?;
    let selected = builders.selected(builder.as_deref(), *all_builders)?;
    let references: Vec<BuilderRef> = selected.iter().map(|builder| builders.reference(builder)).collect();
    let own = |reference: &BuilderRef| reference.is_of_context(context);
    let found = parallel::each(&references, |reference| (!own(reference)).then(|| reference.records_at_rest()));
    let mut inventory = Inventory::default();
    let mut there: HashSet<String> = HashSet::new();
    let mut met: HashSet<String> = HashSet::new();
    for ((builder, reference), records) in selected.iter().zip(&references).zip(found) {
        let records = records.or_else(|| early.take()).unwrap_or_else(|| reference.records_at_rest());
        match records {
            Ok(records) if inventory.builders.iter().any(|found| found.shares(&records)) => {}
            Ok(records) => {
                if look.layers {
                    inventory.caches.extend(layers(&builder.name, &records));
                }
                let mut mounts = match look.mounts {
                    true => mounts(&builder.name, &records),
                    false => Vec::new(),
                };
                let ids: HashSet<String> = mounts.iter().map(|(_, cache)| cache.name.clone()).collect();
                let is_called = |cache: &Cache, name: &str| {
                    model::is_called(name, &cache.name, cache.path.as_deref().unwrap_or_default(), &ids)
                };
                mounts.retain(|(_, cache)| mount.is_empty() || mount.iter().any(|name| is_called(cache, name)));
                there.extend(
                    mounts.iter().flat_map(|(_, cache)| [Some(cache.name.clone()), cache.path.clone()]).flatten(),
                );
                let by_path = !wanted.paths.is_empty();
                let is_looked_into = |cache: &Cache| match wanted.exact {
                    Some(named) => {
                        (names.select(cache.language, cache.tool) || is_mixed(cache, names))
                            && (named.is_empty() || named.iter().any(|name| cache.may_be_about(name)))
                    }
                    None => look.inside && (by_path || is_mixed(cache, names)),
                };
                let inside = mounts.extract_if(.., |(_, cache)| is_looked_into(cache));
                let inside = inside.map(|(records, cache)| {
                    let known = if by_path || is_mixed(&cache, names) { known_in(&cache) } else { Vec::new() };
                    (records, cache, known)
                });
                look_inside(reference, inside.collect(), look.ages, wanted.paths, &mut met, &mut inventory)?;
                inventory.caches.extend(mounts.into_iter().map(|(_, cache)| cache));
                inventory.builders.push(FoundBuilder { builder: reference.clone(), records });
            }
            Err(error) if selected.len() == 1 => return Err(error.into()),
            Err(error) => {
                let hint = error.hint().map_or(String::new(), |hint| format!("; {hint}"));
                inventory.gaps.push(format!("builder {} is not counted: {error}{hint}", builder.name));
            }
        }
    }
    for id in mount {
        if !there.contains(id) {
            bail!(
                "no cache mount {id:?} in {}\nhint: `docker cache size --all-builders` lists all",
                selected.iter().map(|builder| builder.name.as_str()).collect::<Vec<_>>().join(", ")
            );
        }
    }
    let mut of_mounts = wanted.paths.iter().filter(|_| !mount.is_empty());
    match of_mounts.find(|path| !met.contains(*path)) {
        Some(path) => bail!(unknown_directory(path)),
        None => Ok(inventory),
    }
}

fn unknown_directory(path: &str) -> String {
    format!(
        "{path:?} is neither a directory of a tool nor in one\nhint: `docker cache size` shows which tool has which"
    )
}

/// Returns a row for each type of record but cache mounts. A shared record's bytes belong to an image as well.
fn layers(builder: &str, records: &[CacheRecord]) -> Vec<Cache> {
    let mut by_type: BTreeMap<&str, Cache> = BTreeMap::new();
    for record in records.iter().filter(|record| record.kind != "exec.cachemount") {
        let row = by_type.entry(&record.kind).or_insert_with(|| Cache {
            kind: Kind::Layer,
            name: record.kind.clone(),
            builder: Some(builder.into()),
            volume: None,
            path: None,
            language: None,
            tool: None,
            class: Class::Cache,
            bytes: 0,
            files: None,
            exact: true,
            last_used: None,
            source: Source::Records(Vec::new()),
        });
        row.bytes += record.bytes;
        row.exact &= record.exact;
        row.last_used = row.last_used.max(record.last_used);
        row.push(record);
    }
    by_type.into_values().collect()
}

/// Returns a row for each cache mount: all records of one id, which differ by uid, gid, mode or by being private.
/// BuildKit before v0.12 tells no ids; there the target stands for one.
fn mounts(builder: &str, records: &[CacheRecord]) -> Vec<(MountRecords, Cache)> {
    let mut by_name: BTreeMap<_, (MountRecords, Cache)> = BTreeMap::new();
    let named = model::mounts(records);
    for (record, mount) in named.clone() {
        let known = catalogue::for_mount(mount.id.as_deref(), &mount.target);
        // Variants of one id may belong to different tools, each with a directory of its own.
        let key = (mount.namespace.clone(), mount.shown().to_string(), known.map(|(row, class)| (row.tool, class)));
        let (_, row) = by_name.entry(key).or_insert_with(|| {
            let cache = Cache {
                kind: Kind::Mount,
                name: mount.shown().into(),
                builder: Some(builder.into()),
                volume: None,
                path: Some(mount.target.clone()),
                language: known.map(|(row, _)| row.language),
                tool: known.map(|(row, _)| row.tool),
                class: known.map_or_else(|| class_of_unknown(&mount.target), |(_, class)| class),
                bytes: 0,
                files: None,
                exact: false,
                last_used: None,
                source: Source::Records(Vec::new()),
            };
            (MountRecords { name: mount, plain: 0, variants: 0 }, cache)
        });
        row.bytes += record.bytes;
        row.last_used = row.last_used.max(record.last_used);
        row.push(record);
    }
    // A build that names an id may get any record of it, whatever tool that is of.
    let mut of_id: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
    for (record, mount) in named {
        let (plain, variants) = of_id.entry((mount.namespace.clone(), mount.shown().into())).or_default();
        *if record.parents.is_empty() { plain } else { variants } += 1;
    }
    by_name
        .into_iter()
        .map(|((namespace, id, _), (mut records, row))| {
            (records.plain, records.variants) = of_id.get(&(namespace, id)).copied().unwrap_or_default();
            (records, row)
        })
        .collect()
}

/// Returns the class of a mount that no tool has for itself. It is made for caching, but all of `/root` or `/usr/local` has
/// programs, settings and secrets in it.
pub fn class_of_unknown(target: &str) -> Class {
    let is_cache = |known: Known| known.class.is_deletable();
    match catalogue::is_cache_path(target) || catalogue::known_below(target).into_iter().all(is_cache) {
        true => Class::Cache,
        false => Class::State,
    }
}

/// Returns the mounts that a build is sure to reach: no other has their id, and none runs that uses them.
pub fn reachable(records: &[CacheRecord]) -> Vec<MountName> {
    let free = |(records, cache): &(MountRecords, Cache)| {
        records.unreachable().is_none() && !cache.records().iter().any(|record| record.in_use)
    };
    mounts("", records).into_iter().filter(free).map(|(records, _)| records.name).collect()
}

/// A mount and how many records its id has: those with a parent were made with uid, gid, mode or from.
struct MountRecords {
    name: MountName,
    plain: u32,
    variants: u32,
}

impl MountRecords {
    /// Returns why a build cannot be sure to get this mount and no other, if it cannot.
    fn unreachable(&self) -> Option<&'static str> {
        if self.name.id.is_none() {
            Some("this engine does not tell the ids of cache mounts")
        } else if self.plain != 1 || self.variants != 0 {
            Some("it has several variants (uid, gid, mode, from or private)")
        } else if !Mount::plain(&self.name).is_carriable() {
            Some("its id cannot be written in a Dockerfile safely")
        } else {
            None
        }
    }
}

/// Measures mounts of one namespace; the roots of the trees are filled in.
fn measure_inside(builder: &BuilderRef, mounts: Vec<MountName>, mut trees: Vec<Tree>) -> Result<Vec<Measured>> {
    let place = Place::Build(MountPlace::new(builder, mounts.iter().map(Mount::plain)));
    for (tree, root) in trees.iter_mut().zip(place.roots()) {
        tree.root = root;
    }
    place.measure(trees, &mut |_, _| ())
}

/// Returns true for a mount of which only a part is what was asked for: it holds something to be kept, or may do so, or caches
/// of several tools of which one was named.
fn is_mixed(cache: &Cache, names: &Names) -> bool {
    let path = cache.path.as_deref().unwrap_or_default();
    let is_one = cache.tool.is_some() || !(names.any() || catalogue::is_for_all(path));
    let whole = cache.class.is_deletable() && is_one;
    let below = || catalogue::known_below(path);
    let wanted = |known: Known| known.class.is_deletable() && names.select_row(known.row);
    !whole && below().into_iter().any(wanted)
}

/// Adds the rows of mounts that a build measures inside: of what mixed ones hold, each with what the catalogue looks for in
/// it, one for each part, and only of the named directories if there are such. Those of these that are met go to `met`.
///
/// # Errors
/// When a directory was named, and a mount that has it cannot be looked into: a part of it was to go, and not all of it.
fn look_inside(
    builder: &BuilderRef,
    mounts: Vec<(MountRecords, Cache, Vec<Known>)>,
    ages: bool,
    named: &[String],
    met: &mut HashSet<String>,
    inventory: &mut Inventory,
) -> Result<()> {
    let mut by_namespace: BTreeMap<String, Vec<(MountRecords, Cache, Vec<Known>)>> = BTreeMap::new();
    for (records, cache, mut known) in mounts {
        let has = |path: &&String| {
            let below = cache.path.as_deref().and_then(|path_of| Path::new(path).strip_prefix(path_of).ok()?.to_str());
            below.is_some_and(|below| catalogue::single_out(&mut known, below))
        };
        let here: Vec<String> = named.iter().filter(has).cloned().collect();
        if here.is_empty() && !named.is_empty() {
            continue;
        }
        met.extend(here);
        let in_use = cache.records().iter().any(|record| record.in_use);
        // A build that has locked it would leave the helper an empty mount of its own.
        match in_use.then_some("a running build uses it").or(records.unreachable()) {
            Some(why) if !named.is_empty() => bail!("mount {} is not looked into: {why}", cache.name),
            Some(why) => inventory.gaps.push(format!("mount {} is not looked into: {why}", cache.name)),
            None => {
                by_namespace.entry(records.name.namespace.clone()).or_default().push((records, cache, known));
                continue;
            }
        }
        inventory.caches.push(cache);
    }
    for mounts in by_namespace.into_values() {
        let names = mounts.iter().map(|(records, ..)| records.name.clone()).collect();
        let tree =
            |known: &[Known]| Tree { known: paths(known), ages, secrets: catalogue::secrets(), ..Tree::default() };
        let trees = mounts.iter().map(|(.., known)| tree(known)).collect();
        let found = match measure_inside(builder, names, trees) {
            Ok(found) => found,
            Err(error) if !named.is_empty() => return Err(error),
            Err(error) => {
                let which = &builder.name;
                inventory.gaps.push(format!("mounts of builder {which} are not looked into: {error:#}"));
                inventory.caches.extend(mounts.into_iter().map(|(_, cache, _)| cache));
                continue;
            }
        };
        for ((records, cache, known), measured) in mounts.into_iter().zip(found) {
            report_unreadable(&format!("mount {}", cache.name), &measured, &mut inventory.gaps);
            if known.is_empty() {
                let Sum { bytes, files, .. } = measured.rest;
                inventory.caches.push(Cache { bytes, files: Some(files), exact: true, ..cache });
                continue;
            }
            let holder = Holder::Mount(inventory.mounts.len());
            let rows = parts(measured, known.len()).map(|(part, sum)| part_row(&cache, &known, holder, part, sum));
            inventory.caches.extend(rows.filter(|row| is_at(row, named)));
            inventory.mounts.push(FoundMount { builder: builder.clone(), name: records.name, known });
        }
    }
    Ok(())
}

/// Returns what the catalogue knows in a mount.
fn known_in(cache: &Cache) -> Vec<Known> {
    catalogue::known_in_mount(&cache.name, cache.path.as_deref().unwrap_or_default())
}

/// Tells whether a row lies in one of the named directories, if there are such.
fn is_at(row: &Cache, named: &[String]) -> bool {
    let at = Path::new(row.path.as_deref().unwrap_or_default());
    named.is_empty() || named.iter().any(|path| at.starts_with(path))
}

/// Finds and measures cache volumes.
///
/// # Errors
/// See [`collect`].
pub fn of_volumes(
    docker: &Docker,
    overview: &Overview,
    wanted: Wanted<'_>,
    look: Look,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Inventory> {
    let found = cache_volumes(overview, &wanted.selection.volume)?;
    let found = found.into_iter().filter_map(|cache| {
        let volume = overview.volumes.iter().find(|volume| volume.name == cache.name)?.clone();
        let known = catalogue::known_below(&cache.mounted_at);
        Some(FoundVolume { cache, volume, known })
    });
    let mut found: Vec<FoundVolume> = found.collect();
    for path in wanted.paths {
        let single_out = |found: &mut FoundVolume| {
            let below = Path::new(path).strip_prefix(&found.cache.mounted_at).ok().and_then(Path::to_str);
            below.is_some_and(|below| catalogue::single_out(&mut found.known, below))
        };
        // In every volume, and not only in the first that has it.
        if found.iter_mut().filter_map(|found| single_out(found).then_some(())).count() == 0 {
            bail!(unknown_directory(path));
        }
    }
    let named = !wanted.selection.volume.is_empty();
    let twins = take_twins(&mut found);
    let mut inventory = measure_volumes(docker, overview.info.clone(), found, named, look, progress)?;
    inventory.twins = twins;
    inventory.caches.retain(|cache| is_at(cache, wanted.paths));
    inventory.gaps.extend(left_out(overview));
    Ok(inventory)
}

/// Takes out the volumes that are, or lie in, the directory of another one: no byte is counted twice. Returns a sentence for
/// each.
fn take_twins(found: &mut Vec<FoundVolume>) -> Vec<String> {
    let links = Links::of_host();
    let all: Vec<Vec<PathBuf>> = found.iter().map(|found| places(&found.volume, &links)).collect();
    let names: Vec<String> = found.iter().map(|found| found.cache.name.clone()).collect();
    let outer = |at: usize| {
        let holds = |other: &usize| {
            let mut met = all[at].iter().flat_map(|own| all[*other].iter().map(move |theirs| (own, theirs)));
            met.any(|(own, theirs)| own.starts_with(theirs) && (own != theirs || *other < at))
        };
        (0..all.len()).filter(|other| *other != at).find(holds)
    };
    let outers: Vec<Option<usize>> = (0..all.len()).map(outer).collect();
    let mut is_own = outers.iter().map(Option::is_none);
    found.retain(|_| is_own.next().unwrap_or(true));
    let told = |(name, outer): (&String, &Option<usize>)| {
        let outer = &names[(*outer)?];
        Some(format!("volume {name} is a directory of volume {outer} too, and counted there"))
    };
    names.iter().zip(&outers).filter_map(told).collect()
}

/// Returns a sentence for each driver whose volumes nobody knows.
pub fn left_out(overview: &Overview) -> impl Iterator<Item = String> {
    let silent = overview.silent.iter();
    silent.map(|driver| format!("volumes of the driver {driver} are left out: it does not answer"))
}

/// Returns the volumes that hold caches: those that no container has at another path than a cache's, if one has it there or
/// their name, or compose's, calls them a cache; and the named ones whatever they are.
///
/// # Errors
/// When there is no volume of a given name.
pub fn cache_volumes(overview: &Overview, named: &[String]) -> Result<Vec<CacheVolume>> {
    let Overview { containers, volumes, silent, .. } = overview;
    for name in named {
        if !volumes.iter().any(|volume| volume.name == *name) {
            if !silent.is_empty() {
                bail!("no volume {name:?}, unless it is of the driver {}, which does not answer", silent.join(", "));
            }
            bail!(
                "no volume {name:?}\nhint: {}",
                one_by_one(name).unwrap_or("`docker volume ls` lists all volumes".into())
            );
        }
    }
    let held = Held::of(containers, volumes);
    let found = volumes.iter().filter(|volume| named.is_empty() || named.contains(&volume.name)).filter_map(|volume| {
        let users = held.users(volume);
        let asked = named.contains(&volume.name);
        // What one container takes for a cache, another may have for its data.
        let at = |user: &VolumeUser| user.destination.clone();
        let other = users.iter().filter_map(at).find(|path| !catalogue::is_cache_path(path));
        let labels = volume.labels.clone().unwrap_or_default();
        // A builder's own state is counted as that builder's cache.
        let is_state = volume.name.starts_with("buildx_buildkit_") && volume.name.ends_with("_state");
        // The name that compose gives begins with that of the project, whose other volumes are no caches.
        let name = labels.get("com.docker.compose.volume").unwrap_or(&volume.name);
        let mounted_at = match other {
            Some(_) => other.filter(|_| asked),
            None => (users.iter().filter(|user| user.is_whole).find_map(at))
                .or_else(|| catalogue::volume_root(name).filter(|_| !is_state))
                .or_else(|| asked.then(|| "/cache".into())),
        }?;
        Some(CacheVolume {
            name: volume.name.clone(),
            driver: volume.driver.clone(),
            mountpoint: volume.mountpoint.clone(),
            labels,
            mounted_at,
            users,
        })
    });
    let mut found: Vec<CacheVolume> = found.collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Returns the flags for a list of volumes where one was to be named: other flags take lists, and no name has a comma.
pub fn one_by_one(names: &str) -> Option<String> {
    let flag = |name: &str| (!name.is_empty()).then(|| format!("--volume {}", quote(name)));
    let flags = || names.split(',').filter_map(flag).collect::<Vec<_>>().join(" ");
    names.contains(',').then(|| format!("name each volume by itself: `{}`", flags()))
}

/// Returns absolute paths as they are written, without what means nothing, and where their links and bind mounts lead on this
/// host. If the engine is elsewhere, that adds paths that mean nothing there.
fn on_host<'a>(paths: impl IntoIterator<Item = &'a String>, links: &Links) -> Vec<PathBuf> {
    let paths = paths.into_iter().map(|path| Path::new(path).components().collect::<PathBuf>());
    let paths = paths.filter(|path| path.is_absolute());
    let names = |path: PathBuf| {
        let led = links.follow(&path);
        [led.as_deref().and_then(|led| links.unbound(led)), led, Some(path)]
    };
    paths.flat_map(names).flatten().collect()
}

/// Returns where a volume is, on this host and on others.
fn places(volume: &Volume, links: &Links) -> Vec<PathBuf> {
    on_host(volume.directories(), links).into_iter().chain(volume.exports()).collect()
}

/// The mounts of containers.
#[derive(Debug)]
pub struct Held<'a> {
    /// Each with the directories of the host that it is.
    mounts: Vec<(&'a Container, &'a ContainerMount, Vec<PathBuf>)>,
    links: Links,
}

impl<'a> Held<'a> {
    /// Finds the directories of all mounts.
    pub fn of(containers: &'a [Container], volumes: &[Volume]) -> Held<'a> {
        let links = Links::of_host();
        let of_volumes: BTreeMap<&str, Vec<PathBuf>> =
            volumes.iter().map(|volume| (volume.name.as_str(), places(volume, &links))).collect();
        let mounts =
            containers.iter().flat_map(|container| container.mounts.iter().map(move |mount| (container, mount)));
        let directories = |mount: &ContainerMount| match mount.r#type.as_str() {
            "volume" => of_volumes.get(mount.name.as_str()).cloned().unwrap_or_default(),
            _ => on_host([&mount.source], &links),
        };
        Held { mounts: mounts.map(|(container, mount)| (container, mount, directories(mount))).collect(), links }
    }

    /// Refuses if a running container has something else, which is `wanted`, mounted below where it has a volume: the kernel
    /// unmounts what another mount namespace has at an entry that is moved or removed.
    ///
    /// # Errors
    /// With the container and where it has that.
    pub fn ensure_free(&self, volume: &Volume, wanted: impl Fn(&ContainerMount) -> bool) -> Result<()> {
        for user in self.users(volume).iter().filter(|user| user.running) {
            let Some(outer) = user.destination.as_ref().map(Path::new) else { continue };
            let below = |mount: &ContainerMount| {
                let inner = Path::new(&mount.destination);
                inner != outer && inner.starts_with(outer) && wanted(mount)
            };
            let mut held = self.mounts.iter();
            if let Some((_, mount, _)) = held.find(|(of, mount, _)| of.name() == user.container && below(mount)) {
                bail!(
                    "container {} has something else mounted at {}, in volume {}: it would be unmounted there\n\
                     hint: stop the container",
                    user.container,
                    mount.destination,
                    volume.name
                );
            }
        }
        Ok(())
    }

    /// Returns the containers that mount a volume, running ones first: by its name, or by a directory of the host that is
    /// the volume's, lies in it or holds it. Those that have all volumes of the engine, or all of the host, only watch.
    pub fn users(&self, volume: &Volume) -> Vec<VolumeUser> {
        let directories = places(volume, &self.links);
        let all: Vec<PathBuf> = on_host([&volume.mountpoint], &self.links)
            .iter()
            .filter_map(|point| Some(point.ancestors().nth(2)?.to_owned()))
            .collect();
        // Where a container sees the volume, or what it has of it.
        let seen = |mount: &ContainerMount, own: &Path, theirs: &Path| match own.strip_prefix(theirs) {
            Ok(_) if theirs.parent().is_none() => None,
            Ok(_) if all.iter().any(|all| own.starts_with(all) && all.starts_with(theirs)) => None,
            Ok(below) => Some(Path::new(&mount.destination).join(below).components().collect()),
            Err(_) => theirs.starts_with(own).then(|| PathBuf::from(&mount.destination)),
        };
        let users = self.mounts.iter().filter_map(|(container, mount, theirs)| {
            let by_name = mount.r#type == "volume" && mount.name == volume.name;
            let destination = match by_name {
                true => mount.destination.clone(),
                false => {
                    let met = directories.iter().flat_map(|own| theirs.iter().map(move |theirs| (own, theirs)));
                    met.filter_map(|(own, theirs)| seen(mount, own, theirs)).next()?.display().to_string()
                }
            };
            Some(VolumeUser {
                container: container.name().into(),
                destination: Some(destination).filter(|_| !is_helper(container.name())),
                is_whole: by_name && !mount.is_part,
                running: container.is_running(),
            })
        });
        let mut users: Vec<VolumeUser> = users.collect();
        users.sort_by_key(|user| (!user.running, user.container.clone()));
        users
    }
}

/// Measures volumes, all at once. Unless they were named, those that cannot be mounted are gaps, as long as there are
/// others.
fn measure_volumes(
    docker: &Docker,
    info: Info,
    mut found: Vec<FoundVolume>,
    named: bool,
    look: Look,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Inventory> {
    let mut inventory = Inventory::default();
    let measured = match measure(docker, &info, &found, look, progress) {
        Err(_) if !named && found.len() > 1 && !cancel::requested() => {
            let mut each = Vec::new();
            found.retain(|found| match measure(docker, &info, slice::from_ref(found), look, progress) {
                Ok(measured) => {
                    each.extend(measured);
                    true
                }
                Err(error) => {
                    inventory.gaps.push(format!("volume {} is not looked into: {error:#}", found.cache.name));
                    false
                }
            });
            each
        }
        measured => measured?,
    };
    for (at, (found, measured)) in found.iter().zip(measured).enumerate() {
        report_unreadable(&format!("volume {}", found.cache.name), &measured, &mut inventory.gaps);
        let row = volume_row(&found.cache);
        let parts = parts(measured, found.known.len());
        let holder = Holder::Volume(at);
        inventory.caches.extend(parts.map(|(part, sum)| part_row(&row, &found.known, holder, part, sum)));
    }
    inventory.volumes = found;
    inventory.info = Some(info);
    Ok(inventory)
}

/// Returns a directory of a volume that holds files, if any does by now.
///
/// # Errors
/// When the volume cannot be looked into.
pub fn left_in(docker: &Docker, info: &Info, found: &FoundVolume) -> Result<Option<String>> {
    let now = measure_volumes(docker, info.clone(), vec![found.clone()], true, Look::default(), &mut |_, _| ())?;
    let row = now.caches.into_iter().find(|row| row.files != Some(0));
    Ok(row.and_then(|row| row.path))
}

fn measure(
    docker: &Docker,
    info: &Info,
    found: &[FoundVolume],
    look: Look,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Vec<Measured>> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let volumes: Vec<&Volume> = found.iter().map(|found| &found.volume).collect();
    let place = Place::of_volumes(docker, info, &volumes, Access::Read);
    let Look { ages, glance, .. } = look;
    let trees = place.roots().into_iter().zip(found);
    let trees = trees.map(|(root, found)| Tree {
        root,
        known: paths(&found.known),
        ages,
        glance,
        secrets: catalogue::secrets(),
    });
    place.measure(trees.collect(), progress)
}

/// Returns the parts that are there, by their index; the rest only if it holds something, or is all there is.
fn parts(measured: Measured, rest: usize) -> impl Iterator<Item = (usize, Sum)> {
    let rest_is_all = !measured.known.iter().any(|sum| sum.exists);
    let rest = (measured.rest.files > 0 || rest_is_all).then_some((rest, measured.rest));
    measured.known.into_iter().enumerate().filter(|(_, sum)| sum.exists).chain(rest)
}

fn volume_row(volume: &CacheVolume) -> Cache {
    Cache {
        kind: Kind::Volume,
        name: volume.name.clone(),
        builder: None,
        volume: Some(volume.name.clone()),
        path: Some(volume.mounted_at.clone()),
        language: None,
        tool: None,
        class: Class::State,
        bytes: 0,
        files: None,
        exact: true,
        last_used: None,
        source: Source::Records(Vec::new()),
    }
}

/// Returns the row of one part of a volume or mount.
fn part_row(whole: &Cache, known: &[Known], holder: Holder, part: usize, mut sum: Sum) -> Cache {
    let known = known.get(part);
    let root = whole.path.as_deref().unwrap_or_default().trim_end_matches('/');
    sum.secrets.iter_mut().for_each(|(path, _)| *path = format!("{root}/{path}"));
    let path = known.map_or("", |known| known.path.trim_end_matches('/'));
    Cache {
        path: Some(if path.is_empty() { root.into() } else { format!("{root}/{path}") }),
        language: known.map(|known| known.row.language),
        tool: known.map(|known| known.row.tool),
        // What nobody knows is kept: it is not surely a cache.
        class: known.filter(|_| !sum.is_work_tree).map_or(Class::State, |known| known.class),
        bytes: sum.bytes,
        files: Some(sum.files),
        exact: true,
        last_used: (sum.last_used > 0).then_some(sum.last_used),
        source: Source::Part { holder, part, unit: known.map_or(Unit::Whole, |known| known.row.unit), sum },
        ..whole.clone()
    }
}

fn report_unreadable(what: &str, measured: &Measured, gaps: &mut Vec<String>) {
    if let Some(first) = measured.unreadable.first() {
        let entries = model::entries(measured.unreadable_count);
        gaps.push(format!("{what}: {entries} could not be read, the first: {first}"));
    }
}

/// Returns the sum of all rows.
pub fn total(caches: &[Cache]) -> Bytes {
    caches.iter().map(|cache| Bytes(cache.bytes)).sum()
}

/// Returns when a row was last used, in docker's words.
pub fn last_used(cache: &Cache, now: Moment) -> String {
    cache.last_used.map_or("N/A".into(), |moment| Moment(moment).ago(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> Volume {
        Volume { name: name.into(), mountpoint: format!("/v/{name}/_data"), ..Volume::default() }
    }

    fn of_compose(name: &str) -> Volume {
        let label = ("com.docker.compose.volume".into(), name.into());
        Volume { labels: Some([label].into()), ..volume(&format!("pip-cache_{name}")) }
    }

    fn overview(volumes: &[Volume], containers: &[Container]) -> Overview {
        let (volumes, containers) = (volumes.to_vec(), containers.to_vec());
        Overview { info: Info::default(), containers, volumes, silent: Vec::new() }
    }

    /// Returns the names of the volumes that are caches, with where they are mounted.
    fn caches(overview: &Overview, named: &[String]) -> Vec<(String, String)> {
        let found = cache_volumes(overview, named).unwrap().into_iter();
        found.map(|cache| (cache.name, cache.mounted_at)).collect()
    }

    /// Returns a container with one mount, given as `docker run --volume` takes it.
    fn container(mount: &str) -> Container {
        let (source, destination) = mount.split_once(':').unwrap();
        let (kind, name) = if source.starts_with('/') { ("bind", "") } else { ("volume", source) };
        let source = if name.is_empty() { source.into() } else { format!("/v/{name}/_data") };
        let (r#type, name, destination) = (kind.into(), name.into(), destination.into());
        let mount = ContainerMount { r#type, name, source, destination, is_part: false };
        Container { names: vec![format!("/of {}", mount.destination)], mounts: vec![mount], ..Container::default() }
    }

    #[test]
    fn a_list_of_volumes_is_refused_with_the_flags_that_take_it() {
        let refused =
            |name: &str| cache_volumes(&overview(&[volume("a")], &[]), &[name.into()]).unwrap_err().to_string();
        assert_eq!(refused("a,b"), "no volume \"a,b\"\nhint: name each volume by itself: `--volume a --volume b`");
        assert_eq!(refused("b"), "no volume \"b\"\nhint: `docker volume ls` lists all volumes");
    }

    #[test]
    fn of_volumes_of_one_directory_one_is_looked_into() {
        let volumes = [
            volume("a"),
            at_device("b-twin", "/srv/x"),
            at_device("c-inner", "/srv/x/pip"),
            at_device("d-other", "/srv/xy"),
            at_device("e-twin", "/srv/x/"),
            on_nfs("f", "10.0.0.1", ":/x"),
            on_nfs("g-twin", "10.0.0.1", "nas:/x"),
        ];
        let found = |volume: &Volume| {
            let named = slice::from_ref(&volume.name);
            let cache = cache_volumes(&overview(slice::from_ref(volume), &[]), named).unwrap().remove(0);
            FoundVolume { cache, volume: volume.clone(), known: Vec::new() }
        };
        let mut all: Vec<FoundVolume> = volumes.iter().map(found).collect();
        let told = take_twins(&mut all);
        let left: Vec<&str> = all.iter().map(|found| found.cache.name.as_str()).collect();
        assert_eq!(left, ["a", "b-twin", "d-other", "f"]);
        let of = |name: &str, outer: &str| {
            told.iter().any(|line| line.starts_with(&format!("volume {name} is a directory of volume {outer} ")))
        };
        assert!(of("c-inner", "b-twin") && of("e-twin", "b-twin") && of("g-twin", "f") && told.len() == 3, "{told:?}");
    }

    fn on_nfs(name: &str, addr: &str, device: &str) -> Volume {
        let option = |name: &str, value: &str| (name.into(), value.into());
        let options = [option("type", "nfs"), option("o", &format!("addr={addr},{name}")), option("device", device)];
        Volume { options: Some(options.into()), ..volume(name) }
    }

    fn at_device(name: &str, device: &str) -> Volume {
        let option = |name: &str, value: &str| (name.into(), value.into());
        let options = [option("type", "none"), option("o", "bind"), option("device", device)];
        Volume { options: Some(options.into()), ..volume(name) }
    }

    #[test]
    fn a_container_that_has_a_volume_as_something_else_is_believed() {
        let all = [of_compose("npm-cache"), volume("pip-cache"), at_device("a", "/srv/x"), at_device("b", "/srv/x/")];
        let cached = |mounts: &[&str], name: &str| {
            let containers: Vec<Container> = mounts.iter().map(|mount| container(mount)).collect();
            caches(&overview(&all, &containers), &[]).into_iter().find(|(found, _)| found == name).map(|(_, at)| at)
        };
        assert_eq!(cached(&["pip-cache_npm-cache:/root/.npm"], "pip-cache_npm-cache").as_deref(), Some("/root/.npm"));
        assert_eq!(cached(&["pip-cache_npm-cache:/verdaccio/storage"], "pip-cache_npm-cache"), None);
        assert_eq!(cached(&[], "pip-cache").as_deref(), Some("/cache/pip"));
        for other in ["/v/pip-cache/_data/db:/db", "/v/pip-cache:/all"] {
            assert_eq!(cached(&[other], "pip-cache"), None, "{other}");
        }
        let as_cache = "a:/root/.cache/pip";
        for agreed in ["b:/cache", "/srv/x/y:/cache/y", "/srv:/cache", "/:/rootfs", "/srv/xy:/db"] {
            assert_eq!(cached(&[as_cache, agreed], "a").as_deref(), Some("/root/.cache/pip"), "{agreed}");
        }
        for other in ["b:/db", "/srv/x:/db", "/srv/x/y:/db", "/srv:/db"] {
            assert_eq!(cached(&[as_cache, other], "a"), None, "{other}");
        }
        let mut part = container("pip-cache:/db");
        part.mounts[0].is_part = true;
        assert_eq!(caches(&overview(&all, &[part]), &[]).iter().find(|(name, _)| name == "pip-cache"), None);
        for watcher in ["/v:/volumes", "/:/host"] {
            assert_eq!(cached(&[watcher], "pip-cache").as_deref(), Some("/cache/pip"), "{watcher}");
        }
    }

    #[test]
    fn volumes_of_one_export_are_one_place() {
        let all = [
            on_nfs("whole", "10.0.0.1", ":/srv"),
            on_nfs("same", "10.0.0.1", ":/srv/"),
            on_nfs("within", "10.0.0.1", ":/srv/a/b"),
            on_nfs("beside", "10.0.0.1", ":/srv2"),
            on_nfs("elsewhere", "10.0.0.2", ":/srv"),
        ];
        let containers = ["whole:/whole", "same:/same", "within:/within", "beside:/beside", "elsewhere:/elsewhere"];
        let containers = containers.map(container);
        let held = Held::of(&containers, &all);
        let seen = |at: usize| -> Vec<String> {
            let mut seen: Vec<String> = held.users(&all[at]).into_iter().filter_map(|user| user.destination).collect();
            seen.sort();
            seen
        };
        assert_eq!(seen(0), ["/same", "/whole", "/within"]);
        assert_eq!(seen(2), ["/same/a/b", "/whole/a/b", "/within"]);
        assert_eq!(seen(4), ["/elsewhere"]);
    }

    #[test]
    fn a_helper_has_no_opinion_what_a_volume_is() {
        let mut helper = container("pip-cache:/volumes/0");
        helper.names = vec![crate::docker::unique_name()];
        assert_eq!(caches(&overview(&[volume("pip-cache")], &[helper]), &[])[0].1, "/cache/pip");
    }

    #[test]
    fn a_volume_that_was_named_is_still_what_a_container_takes_it_for() {
        let containers = ["shared:/root/.cache/pip", "shared:/var/lib/db"].map(container);
        let found = caches(&overview(&[volume("shared")], &containers), &["shared".into()]);
        assert_eq!(found, [("shared".into(), "/var/lib/db".into())]);
    }

    #[test]
    fn directories_meet_through_links() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let volume = at_device("a", &path("link"));
        let mount = format!("{}:/data", path(""));
        assert_eq!(Held::of(&[container(&mount)], slice::from_ref(&volume)).users(&volume).len(), 1);
    }

    #[test]
    fn a_mount_on_all_of_a_home_is_no_cache_as_a_whole() {
        for (target, class) in [
            ("/root", Class::State),
            ("/home", Class::State),
            ("/usr/local", Class::State),
            ("/root/.cache", Class::Cache),
            ("/var/cache", Class::Cache),
            ("/cache", Class::Cache),
            ("/data", Class::Cache),
            ("/app", Class::Cache),
        ] {
            assert_eq!(class_of_unknown(target), class, "{target}");
        }
    }

    #[test]
    fn the_name_of_a_compose_project_makes_none_of_its_volumes_a_cache() {
        let overview = overview(&[of_compose("pgdata"), of_compose("npm-cache")], &[]);
        assert_eq!(caches(&overview, &[]), [("pip-cache_npm-cache".into(), "/cache/npm".into())]);
    }
}
