//! `docker cache clear`: removes caches, by language, tool, place, age or size. A plan is made, shown, asked about, and then
//! just that plan is carried out.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Error, Result, bail};
use serde::Serialize;

use super::Context;
use crate::answers::Answers;
use crate::catalogue::{self, Known};
use crate::cli::{CacheKind, Clear, Format};
use crate::docker::{BuilderRef, Docker, Overview, Volume, quote};
use crate::exit::USAGE;
use crate::inside::remove::{Cut, Removed, Take};
use crate::inside::{Job, Line};
use crate::inventory::{
    self, Cache, FoundBuilder, FoundMount, FoundVolume, Holder, Inventory, Look, Source, Wanted, last_used, paths,
};
use crate::model::{Bytes, CacheRecord, Kind, Moment, Mount, VolumeUser, entries, major};
use crate::place::carry;
use crate::place::{self, Access, MountPlace, Place};
use crate::plan::{Act, Plan, Rules, Step};
use crate::report::{self, Progress};
use crate::{cancel, parallel};

/// The JSON contract.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    #[serde(flatten)]
    plan: &'a Plan,
    total_bytes: u64,
    /// Measured; null if nothing was tried.
    freed_bytes: Option<u64>,
    failed: &'a [String],
}

const NOTHING_CHOSEN: &str = "\
nothing chosen to clear

Choose by what it is      --lang python,node   --tool pip   --kind mount|volume|layer   --layers
       by where it is     --volume NAME   --mount ID   [--path DIR]   (--builder NAME, --all-builders)
       by age or size     --older-than 30d   --keep 10GB
       or everything      --all

'docker cache size' shows what there is, '--dry-run' what would go.
Programs, settings and secrets beside the caches stay.

Usage:  docker cache clear [OPTIONS]

Run 'docker cache clear --help' for more information";

pub fn run(context: Context, options: &Clear) -> Result<u8> {
    if let Some(why) = misuse(options) {
        report::note(why);
        return Ok(USAGE);
    }
    let (docker, settings) = context.into_docker()?;
    if !options.dry_run {
        place::sweep(&docker);
    }
    let now = Moment::now();
    let wanted = Wanted { selection: &options.selection, paths: &options.path, exact: None };
    let mut progress = Progress::new("Measuring", options.output.telling());
    let found = inventory::collect_in(&Answers::new(&docker, &settings), wanted, look(options), &mut |files, bytes| {
        progress.update(files, bytes);
    });
    drop(progress);
    let found = found?;
    let plan = match options.recreate {
        true => recreate(&found, options)?,
        false => {
            let mut plan = Plan::new(&found, &rules(options, now), now);
            if !look(options).layers && !look(options).ages {
                let contexts: Vec<Step> = worth_pruning(&found, &plan).filter_map(unused_contexts).collect();
                plan.steps.extend(contexts);
            }
            plan
        }
    };
    show(&plan, &found, options, now)?;
    let go = !options.dry_run && !plan.steps.is_empty();
    if go && !options.force && !report::ask(&warning(&plan))? {
        return Ok(0);
    }
    let mut outcome = Outcome::default();
    if go {
        let mut progress = Progress::new("Removing", options.output.telling());
        outcome = act(&docker, &found, &plan, options, &mut |files, bytes| progress.update(files, bytes));
        drop(progress);
    }
    if !options.dry_run {
        worth_pruning(&found, &plan).for_each(|found| place::sweep_records(&found.builder, &found.records));
    }
    if cancel::requested() {
        if go {
            outcome.tell();
            report::note(&format!(
                "interrupted: at least {} freed; what is not removed yet stays as it was",
                Bytes(outcome.freed)
            ));
        }
        bail!("cancelled");
    }
    match options.output.format {
        Format::Json => report::json(&Answer {
            version: 1,
            total_bytes: plan.bytes().0,
            plan: &plan,
            freed_bytes: (!options.dry_run).then_some(outcome.freed),
            failed: &outcome.failed,
        })?,
        Format::Table if go && !options.output.quiet => {
            report::data(&format!("Total reclaimed space: {}\n", Bytes(outcome.freed)))?;
        }
        Format::Table => {}
    }
    outcome.tell();
    Ok(u8::from(!outcome.failed.is_empty()))
}

/// Returns what is wrong with the flags, if anything is.
fn misuse(options: &Clear) -> Option<&'static str> {
    let Clear { selection, layers, kind, older_than, keep, all, .. } = options;
    if !(selection.narrows() || *layers || *all || !kind.is_empty() || older_than.is_some() || keep.is_some()) {
        return Some(NOTHING_CHOSEN);
    }
    if !options.path.is_empty() && selection.volume.is_empty() == selection.mount.is_empty() {
        return Some("--path is a directory of one place\nhint: add either `--volume NAME` or `--mount ID`");
    }
    let by_name = !selection.names.tool.is_empty() || !selection.mount.is_empty() || !options.path.is_empty();
    if options.include_installs && !options.recreate && !by_name {
        return Some(
            "--include-installs removes only what is named\nhint: add `--tool NAME`, `--mount ID` or `--path DIR`, or `--volume NAME --recreate`",
        );
    }
    if options.output.format == Format::Json && !options.dry_run && !options.force {
        return Some("--format json cannot ask for confirmation\nhint: add `--dry-run` or `--force`");
    }
    None
}

/// Returns where to look.
fn look(options: &Clear) -> Look {
    let Clear { selection, layers, kind, .. } = options;
    let rest_too = !layers || selection.narrows() || options.all;
    let of_kind = |wanted| if kind.is_empty() { rest_too } else { kind.contains(&wanted) };
    Look {
        volumes: of_kind(CacheKind::Volume) && selection.wants(Kind::Volume),
        mounts: of_kind(CacheKind::Mount) && selection.wants(Kind::Mount),
        layers: *layers || (of_kind(CacheKind::Layer) && selection.wants(Kind::Layer)),
        ages: by_age(options),
        inside: true,
        glance: false,
    }
}

/// Returns true if it depends on their last use what goes.
fn by_age(options: &Clear) -> bool {
    options.older_than.is_some() || options.keep.is_some()
}

fn rules(options: &Clear, now: Moment) -> Rules {
    Rules {
        before: options.older_than.map(|age| now.0.saturating_sub(age.as_secs())),
        keep: options.keep.map(|budget| budget.0),
        include_installs: options.include_installs,
        tools: options.selection.names.tool.clone(),
        mounts: options.selection.mount.clone(),
        by_path: !options.path.is_empty(),
        force_in_use: options.force_in_use,
    }
}

/// Returns true if the plan prunes records of this builder.
fn is_pruned(builder: &BuilderRef, plan: &Plan) -> bool {
    let of = |step: &Step| step.cache.builder.as_ref() == Some(&builder.name);
    plan.steps.iter().any(|step| of(step) && matches!(step.act, Act::Prune(_)))
}

/// Returns the builders that may be pruned of what nobody chose: not those that forget others' steps by it, unless the plan
/// prunes them anyway.
fn worth_pruning<'a>(found: &'a Inventory, plan: &'a Plan) -> impl Iterator<Item = &'a FoundBuilder> {
    let is_worth = |found: &&FoundBuilder| !found.builder.forgets_when_pruned || is_pruned(&found.builder, plan);
    found.builders.iter().filter(is_worth)
}

/// Plans to take the contexts that no build can use any more, most of them from killed runs; layers list them anyway.
fn unused_contexts(FoundBuilder { builder, records }: &FoundBuilder) -> Option<Step> {
    let contexts = carry::unused_contexts(records);
    let cache = Cache {
        kind: Kind::Layer,
        name: "unused context".into(),
        builder: Some(builder.name.clone()),
        volume: None,
        path: None,
        language: None,
        tool: None,
        class: catalogue::Class::Scratch,
        bytes: contexts.iter().map(|record| record.bytes).sum(),
        files: None,
        exact: true,
        last_used: contexts.iter().filter_map(|record| record.last_used).max(),
        source: Source::Records(Vec::new()),
    };
    let ids: Vec<String> = contexts.into_iter().map(|record| record.id).collect();
    (!ids.is_empty()).then_some(Step { cache, act: Act::Prune(ids) })
}

/// Plans to make volumes anew. What is in them goes whatever it is, so that must be wanted.
fn recreate(found: &Inventory, options: &Clear) -> Result<Plan> {
    let mut plan = Plan::default();
    for (volume, FoundVolume { cache, .. }) in found.volumes.iter().enumerate() {
        let name = &cache.name;
        let rows = || {
            found
                .caches
                .iter()
                .filter(|row| matches!(row.source, Source::Part { holder: Holder::Volume(at), .. } if at == volume))
        };
        let secrets = rows().filter(|row| row.class.is_deletable()).flat_map(|row| match &row.source {
            Source::Part { sum, .. } => &sum.secrets[..],
            Source::Records(_) => &[],
        });
        let kept: Vec<String> = rows()
            .filter(|row| !row.class.is_deletable() && row.files != Some(0))
            .map(|row| format!("{} ({})", row.path.as_deref().unwrap_or_default(), row.class))
            .chain(secrets.map(|(path, _)| format!("{path} ({})", catalogue::Class::Secret)))
            .collect();
        if !kept.is_empty() && !options.include_installs {
            bail!(
                "volume {name} holds more than caches: {}\nhint: `docker cache clear --volume {}` clears only its caches; \
                 `--include-installs` lets go of the rest",
                kept.join(", "),
                quote(name)
            );
        }
        let users: Vec<&str> = cache.users.iter().map(|user| user.container.as_str()).collect();
        if !users.is_empty() && !options.force_in_use {
            bail!(
                "volume {name} is used by container {}\nhint: remove the container, or let `--force-in-use` empty the volume \
                 under it",
                users.join(", ")
            );
        }
        // What lies elsewhere would outlive the volume.
        let mut settings = found.volumes[volume].volume.options.iter().flatten();
        let is_elsewhere = settings.any(|(name, value)| name == "device" && value != "tmpfs");
        let emptied = !users.is_empty() || is_elsewhere;
        let Some(largest) = rows().max_by_key(|row| row.bytes) else { continue };
        let whole = Cache {
            path: Some(cache.mounted_at.clone()),
            language: None,
            tool: None,
            class: rows().map(|row| row.class).find(|class| !class.is_deletable()).unwrap_or(catalogue::Class::Cache),
            bytes: rows().map(|row| row.bytes).sum(),
            files: rows().map(|row| row.files).sum(),
            last_used: rows().filter_map(|row| row.last_used).max(),
            ..largest.clone()
        };
        plan.steps.push(Step { cache: whole, act: Act::Recreate { volume, emptied } });
    }
    Ok(plan)
}

fn show(plan: &Plan, found: &Inventory, options: &Clear, now: Moment) -> Result<()> {
    if options.output.quiet {
        if options.output.format == Format::Table {
            let names: Vec<String> = plan.steps.iter().map(|step| report::plain(&step.cache.name)).collect();
            report::data(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        }
        return Ok(());
    }
    found.gaps.iter().chain(&found.twins).for_each(|gap| report::warning(gap));
    if options.output.format == Format::Json {
        return Ok(());
    }
    let without_layers = plan.steps.iter().all(|step| step.cache.kind != Kind::Layer);
    let forgets = |builder: &BuilderRef| without_layers && builder.forgets_when_pruned && is_pruned(builder, plan);
    for FoundBuilder { builder, .. } in found.builders.iter().filter(|found| forgets(&found.builder)) {
        report::note(&format!(
            "with the containerd image store, BuildKit forgets steps upon images when anything is pruned: the next build of {} \
             may run them once more",
            builder.name
        ));
    }
    if options.keep.is_some() && found.caches.iter().any(|cache| cache.kind == Kind::Mount && !cache.exact) {
        report::note(
            "sizes of cache mounts are docker's own here and may be old; `docker cache size --exact` measures them",
        );
    }
    let several = found.builders.len() > 1;
    let start = |cache: &Cache| {
        let name = match &cache.builder {
            Some(builder) if several => format!("{builder}: {}", cache.name),
            _ => cache.name.clone(),
        };
        let path = cache.path.clone().filter(|_| cache.kind != Kind::Layer).unwrap_or("-".into());
        vec![cache.kind.as_str().into(), name, path, cache.shown_tool(), cache.class.to_string()]
    };
    let goes = plan.steps.iter().map(|step| {
        let mut row = start(&step.cache);
        row.extend([Bytes(step.cache.bytes).to_string(), last_used(&step.cache, now)]);
        row
    });
    let kept = plan.kept.iter().map(|kept| {
        let mut row = start(&kept.cache);
        row.extend([Bytes(kept.cache.bytes).to_string(), kept.why.clone()]);
        row
    });
    let (goes, kept): (Vec<_>, Vec<_>) = (goes.collect(), kept.collect());
    let any = !goes.is_empty();
    let mut text = match goes.is_empty() {
        true => "Nothing to remove\n".into(),
        false => format!(
            "{}\nTotal:    {}\n",
            report::table_within(
                report::room(),
                &["KIND", "NAME", "DIRECTORY", "TOOL", "CLASS", "SIZE", "LAST USED"],
                goes,
                &["CLASS", "TOOL", "LAST USED", "KIND"],
            ),
            plan.bytes()
        ),
    };
    if !kept.is_empty() {
        let header = ["KIND", "NAME", "DIRECTORY", "TOOL", "CLASS", "SIZE", "WHY"];
        let table = report::table_within(report::room(), &header, kept, &["TOOL", "CLASS", "SIZE", "KIND"]);
        text.push_str(&format!("\nKept:\n{table}"));
    }
    if any && !options.dry_run {
        text.push('\n');
    }
    report::data(&text)
}

fn warning(plan: &Plan) -> String {
    let count = plan.steps.len();
    let anew = plan.steps.iter().any(|step| matches!(step.act, Act::Recreate { .. }));
    match anew {
        true => format!("This will remove everything in {count} volume{}, {}.", plural(count), plan.bytes()),
        false => format!("This will remove {count} cache{}, {}.", plural(count), plan.bytes()),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// What a run of the plan came to.
#[derive(Debug, Default)]
struct Outcome {
    freed: u64,
    notes: Vec<String>,
    failed: Vec<String>,
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.freed += other.freed;
        self.notes.extend(other.notes);
        self.failed.extend(other.failed);
    }

    /// After a cancel it is no news that something was not done.
    fn failure(why: impl std::fmt::Display) -> Outcome {
        let failed = if cancel::requested() { Vec::new() } else { vec![why.to_string()] };
        Outcome { failed, ..Outcome::default() }
    }

    fn tell(&self) {
        self.notes.iter().for_each(|note| report::note(note));
        self.failed.iter().for_each(|failure| report::error(&anyhow::Error::msg(failure.clone())));
    }
}

/// Carries the plan out: builders and volumes side by side. What fails in one place does not stop the others.
fn act(
    docker: &Docker,
    found: &Inventory,
    plan: &Plan,
    options: &Clear,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Outcome {
    let cuts = cuts(found, plan, options);
    thread::scope(|scope| {
        let builders = scope.spawn(|| {
            let mut outcomes = parallel::each(&found.builders, |builder| prune(builder, plan, options));
            outcomes.push(cut_mounts(found, plan, &cuts));
            outcomes
        });
        let volumes = cut_volumes(docker, found, plan, &cuts, options, progress);
        let mut outcome = volumes.unwrap_or_else(|error| Outcome::failure(format!("{error:#}")));
        parallel::join(builders).into_iter().for_each(|other| outcome.add(other));
        outcome
    })
}

/// How many records one call names: an argument of a command may have 128 KiB.
const RECORDS_IN_CALL: usize = 4000;

/// Prunes what the plan names of one builder, and looks what is really gone.
fn prune(FoundBuilder { builder, records }: &FoundBuilder, plan: &Plan, options: &Clear) -> Outcome {
    let mut steps: Vec<&Step> =
        plan.steps.iter().filter(|step| step.cache.builder.as_ref() == Some(&builder.name)).collect();
    let mut notes = Vec::new();
    // As parts of volumes do, a mount stays that was used while the user was asked.
    if by_age(options) && steps.iter().any(|step| step.cache.kind == Kind::Mount) {
        let now = match builder.records() {
            Ok(now) => now,
            Err(error) => return Outcome::failure(error),
        };
        let used = steps.extract_if(.., |step| step.cache.kind == Kind::Mount && is_used(step.cache.records(), &now));
        notes.extend(used.map(|step| format!("mount {} stays: it was used meanwhile", step.cache.name)));
    }
    let ids: BTreeMap<&String, &Step> = steps
        .into_iter()
        .flat_map(|step| match &step.act {
            Act::Prune(ids) => ids.iter().map(|id| (id, step)).collect(),
            _ => Vec::new(),
        })
        .collect();
    if ids.is_empty() {
        return Outcome { notes, ..Outcome::default() };
    }
    let names: Vec<String> = ids.keys().map(ToString::to_string).collect();
    let pruned = names.chunks(RECORDS_IN_CALL).try_for_each(|names| builder.remove(names));
    let left = match builder.records() {
        Ok(left) => left,
        Err(error) => return Outcome::failure(pruned.err().unwrap_or(error)),
    };
    let mut outcome = pruned.map_or_else(Outcome::failure, |()| Outcome::default());
    outcome.notes = notes;
    let mut stayed: Vec<String> = Vec::new();
    for (id, step) in ids {
        match left.iter().find(|record| record.id == *id) {
            Some(record) => {
                let why = if record.in_use { "a running build uses it" } else { "the builder kept it" };
                let cache = &step.cache;
                stayed.push(format!(
                    "{} {} of builder {} is not removed: {why}",
                    cache.kind.as_str(),
                    cache.name,
                    builder.name
                ));
            }
            None => {
                let record = records.iter().find(|record| record.id == *id);
                outcome.freed += record.map_or(0, CacheRecord::clearable_bytes);
            }
        }
    }
    stayed.dedup();
    outcome.failed.extend(stayed);
    outcome
}

/// Returns true if one of these records was used since they were listed. The time of that may be a rounded one.
fn is_used(then: &[CacheRecord], now: &[CacheRecord]) -> bool {
    then.iter().any(|then| now.iter().any(|now| now.id == then.id && now.uses > then.uses))
}

/// Returns the part of the plan that is done inside volumes and mounts, whose roots are not known yet.
fn cuts(found: &Inventory, plan: &Plan, options: &Clear) -> BTreeMap<Holder, Cut> {
    let mut cuts: BTreeMap<Holder, Cut> = BTreeMap::new();
    for step in &plan.steps {
        match step.act {
            Act::Cut { holder, part, take } => {
                let cut = cuts.entry(holder).or_insert_with(|| {
                    let known = paths(match holder {
                        Holder::Volume(at) => &found.volumes[at].known,
                        Holder::Mount(at) => &found.mounts[at].known,
                    });
                    let take = vec![Take::Nothing; known.len() + 1];
                    Cut { known, take, secrets: catalogue::secrets(), ..Cut::default() }
                });
                cut.take[part] = take;
                if matches!(&step.cache.source, Source::Part { sum, .. } if sum.is_work_tree) {
                    cut.work_trees.push(part);
                }
            }
            Act::Recreate { volume, .. } => {
                let known = &found.volumes[volume].known;
                let take = |known: &Known| match known.class.is_deletable() {
                    true => Take::Everything,
                    false => Take::Nothing,
                };
                // What came after the plan was made may be no cache.
                let of_volume = match options.include_installs {
                    true => Cut { take: vec![Take::Everything], work_trees: vec![0], ..Cut::default() },
                    false => Cut {
                        known: paths(known),
                        take: known.iter().map(take).chain([Take::Nothing]).collect(),
                        secrets: catalogue::secrets(),
                        ..Cut::default()
                    },
                };
                cuts.insert(Holder::Volume(volume), of_volume);
            }
            Act::Prune(_) => {}
        }
    }
    cuts
}

/// Runs the removal in a place and tells what came of it; `names` are those of its volumes or mounts. Returns also which of
/// them, by their indices, nothing stays in that was to go.
fn cut(
    place: &Place,
    cuts: Vec<&Cut>,
    names: &[String],
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> (Outcome, Vec<usize>) {
    let cuts = place.roots().into_iter().zip(cuts).map(|(root, cut)| Cut { root, ..cut.clone() });
    let mut removed: Vec<Removed> = Vec::new();
    let ran = place.run(&Job::Remove(cuts.collect()), &mut |line| match line {
        Line::Progress { files, bytes } => progress(files, bytes),
        Line::Removed(found) => removed = found,
        _ => {}
    });
    let mut outcome = match ran {
        Ok(()) => Outcome::default(),
        Err(error) => Outcome::failure(format!("{error:#}")),
    };
    let mut done = Vec::new();
    for (at, (name, removed)) in names.iter().zip(removed).enumerate() {
        if removed.failed.is_empty() && removed.mounts.is_empty() && removed.used.is_empty() {
            done.push(at);
        }
        outcome.freed += removed.freed;
        if let Some(first) = removed.failed.first() {
            let entries = entries(removed.failed_count);
            outcome.failed.push(format!("{name}: {entries} could not be removed, the first: {first}"));
        }
        outcome.notes.extend(removed.mounts.iter().map(|mount| format!("{name}: not entered: {mount}")));
        outcome.notes.extend(removed.used.iter().map(|path| match path.as_str() {
            "" => format!("{name} stays: it was used meanwhile"),
            path => format!("{name}: {path} stays: it was used meanwhile"),
        }));
    }
    (outcome, done)
}

/// Empties parts of mounts, by one build for all mounts of a builder that share a namespace.
fn cut_mounts(found: &Inventory, plan: &Plan, cuts: &BTreeMap<Holder, Cut>) -> Outcome {
    let mut places: BTreeMap<(&str, &str), Vec<(&FoundMount, &Cut)>> = BTreeMap::new();
    for (holder, cut) in cuts {
        if let Holder::Mount(at) = holder {
            let mount = &found.mounts[*at];
            places.entry((&mount.builder.name, &mount.name.namespace)).or_default().push((mount, cut));
        }
    }
    let mut outcome = Outcome::default();
    for mounts in places.into_values() {
        // A build that began meanwhile may have the mount for itself, and ours would get another, empty one.
        let reachable = match mounts[0].0.builder.records() {
            Ok(records) => inventory::reachable(&records),
            Err(error) => {
                outcome.add(Outcome::failure(error));
                continue;
            }
        };
        let (mounts, busy): (Vec<_>, Vec<_>) =
            mounts.into_iter().partition(|(mount, _)| reachable.contains(&mount.name));
        for (mount, _) in busy {
            let name = mount.name.shown();
            outcome.add(Outcome::failure(format!("mount {name} is not cleared: a build uses it now, or it is gone")));
        }
        if mounts.is_empty() {
            continue;
        }
        let names = mounts.iter().map(|(mount, _)| Mount::plain(&mount.name));
        let mut builder = mounts[0].0.builder.clone();
        // What is pruned anyway need not keep the steps of this build either.
        builder.forgets_when_pruned &= !is_pruned(&builder, plan);
        let place = Place::Build(MountPlace::new(&builder, names));
        let names: Vec<String> = mounts.iter().map(|(mount, _)| format!("mount {}", mount.name.shown())).collect();
        outcome.add(cut(&place, mounts.iter().map(|(_, cut)| *cut).collect(), &names, &mut |_, _| ()).0);
    }
    outcome
}

/// Empties parts of volumes, and makes volumes anew.
fn cut_volumes(
    docker: &Docker,
    found: &Inventory,
    plan: &Plan,
    of_holders: &BTreeMap<Holder, Cut>,
    options: &Clear,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut cuts: Vec<(&FoundVolume, &Cut)> = Vec::new();
    for (holder, cut) in of_holders {
        if let Holder::Volume(at) = holder {
            cuts.push((&found.volumes[*at], cut));
        }
    }
    let Some(info) = found.info.as_ref().filter(|_| !cuts.is_empty()) else { return Ok(outcome) };
    // The world may have changed while the user was asked.
    let all_local = cuts.iter().all(|(found, _)| found.volume.driver == "local");
    let mut overview = docker.overview_of(|_| !all_local)?;
    if options.force_in_use {
        overview = docker.with_parts(overview)?;
    }
    let Overview { volumes, containers, .. } = overview;
    let held = inventory::Held::of(&containers, &volumes);
    cuts.retain(|(FoundVolume { cache, volume, .. }, _)| {
        let name = &volume.name;
        // Engine 20.10 tells when something in it changed instead of when it was made.
        let is_told = major(&info.server_version) >= 24;
        let made = |now: &Volume| if is_told { now.created_at.clone() } else { volume.created_at.clone() };
        if !volumes.iter().any(|now| Volume { created_at: made(now), ..now.clone() } == *volume) {
            let what =
                if volumes.iter().any(|now| now.name == *name) { "another one now" } else { "not there any more" };
            outcome.failed.push(format!("volume {name} is {what}"));
            return false;
        }
        if let Err(error) = held.ensure_free(volume, |_| true) {
            outcome.failed.push(error.to_string());
            return false;
        }
        let is_same = |was: &&VolumeUser, user: &VolumeUser| {
            (&was.container, &was.destination) == (&user.container, &user.destination)
        };
        let was = |user: &VolumeUser| cache.users.iter().find(|was| is_same(was, user));
        // What a container has as something else is no cache any more, and to make a volume anew, not even one that was only
        // created may have it.
        let is_elsewhere =
            |user: &VolumeUser| user.destination.as_deref().is_some_and(|at| !catalogue::is_cache_path(at));
        let is_new = |user: &&VolumeUser| match was(user) {
            Some(was) => user.running && !was.running,
            None => user.running || options.recreate || is_elsewhere(user),
        };
        let users = held.users(volume);
        match users.iter().find(is_new).filter(|_| !options.force_in_use) {
            Some(user) => {
                outcome
                    .failed
                    .push(format!("volume {name} is not cleared: container {} began to use it", user.container));
                false
            }
            None => true,
        }
    });
    if cuts.is_empty() {
        return Ok(outcome);
    }
    let raw: Vec<&Volume> = cuts.iter().map(|(found, _)| &found.volume).collect();
    let place = Place::of_volumes(docker, info, &raw, Access::Write);
    let names: Vec<String> = raw.iter().map(|volume| format!("volume {}", volume.name)).collect();
    let (cleared, done) = cut(&place, cuts.iter().map(|(_, cut)| *cut).collect(), &names, progress);
    outcome.add(cleared);
    let is_made_anew = |name: &str| {
        let is_of = |step: &Step| matches!(step.act, Act::Recreate { emptied: false, .. }) && step.cache.name == name;
        plan.steps.iter().any(is_of)
    };
    for (at, (emptied, _)) in cuts.iter().enumerate().filter(|(_, (found, _))| is_made_anew(&found.volume.name)) {
        let volume = &emptied.volume;
        let stays = |why: &str| Err(Error::msg(format!("volume {} is not made anew: {why}", volume.name)));
        // Docker would delete what is mounted in a volume along with it: only what is empty is left to it.
        let made = match done.contains(&at) {
            false => stays("not all that is in it could be removed"),
            true => match inventory::left_in(docker, info, emptied) {
                Ok(None) => {
                    docker.remove_volume(&volume.name).and_then(|()| docker.create_volume(volume)).map_err(Error::from)
                }
                Ok(Some(path)) => stays(&format!("{path} holds new files")),
                Err(error) => Err(error),
            },
        };
        outcome.failed.extend(made.err().map(|error| format!("{error:#}")));
    }
    for (FoundVolume { cache, .. }, _) in cuts.iter().filter(|_| options.recreate) {
        let running: Vec<String> =
            cache.users.iter().filter(|user| user.running).map(|user| quote(&user.container)).collect();
        if !running.is_empty() {
            let name = &cache.name;
            outcome
                .notes
                .push(format!("hint: restart what used volume {name}: `docker restart {}`", running.join(" ")));
        }
    }
    Ok(outcome)
}
