//! `docker cache doctor --fix --check volume-owner` and `mount-owner`: gives what is in cache volumes and mounts to whoever
//! writes there. A plan is made, shown, asked about, and then just that plan is carried out.

use anyhow::{Result, bail};
use serde::Serialize;

use super::super::Context;
use crate::builders::Builders;
use crate::cancel;
use crate::checks::mounts::written;
use crate::checks::project::Project;
use crate::checks::{Finding, caches};
use crate::cli::{Doctor, DoctorFormat};
use crate::docker::Docker;
use crate::inside::own::Gift;
use crate::inside::{Job, Line};
use crate::inventory::{self, FoundVolume, paths};
use crate::model::entries;
use crate::ownership;
use crate::place::{Access, Place};
use crate::report::{self, Progress};

/// The JSON of what is given to somebody else in volumes.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    owners: &'a [Change],
    /// Number of entries; null if nothing was to be changed.
    changed: Option<u64>,
}

/// One owner's entries in one directory, as users and groups go: `1000:1000`.
#[derive(Serialize)]
struct Change {
    volume: String,
    directory: String,
    entries: u64,
    from: String,
    to: String,
}

pub fn run(docker: &Docker, options: &Doctor) -> Result<u8> {
    let overview = docker.overview()?;
    inventory::left_out(&overview).for_each(|gap| report::warning(&gap));
    let volumes = ownership::ask(docker, &overview, &options.volume)?;
    let plan: Vec<(&FoundVolume, Vec<caches::Gift>)> =
        volumes.iter().map(|(found, owned)| (found, owned.gifts())).filter(|(_, gifts)| !gifts.is_empty()).collect();
    let changes = volumes.iter().flat_map(|(_, owned)| {
        owned.gifts().into_iter().flat_map(move |gift| {
            gift.from.into_iter().map(move |((uid, gid), entries)| Change {
                volume: owned.name.clone(),
                directory: owned.parts[gift.part].path.clone(),
                entries,
                from: format!("{uid}:{gid}"),
                to: format!("{}:{}", gift.to.0, gift.to.1),
            })
        })
    });
    let changes: Vec<Change> = changes.collect();
    let is_json = options.format == DoctorFormat::Json;
    let tell = |changed| match is_json {
        true => report::json(&Answer { version: 1, owners: &changes, changed }),
        false => changed.map_or(Ok(()), told),
    };
    if !is_json {
        report::data(&shown(&changes))?;
    }
    if changes.is_empty() || options.dry_run {
        return tell(None).map(|()| 0);
    }
    let volumes = if plan.len() == 1 { "1 volume".into() } else { format!("{} volumes", plan.len()) };
    if !options.force && !report::ask(&format!("This will change the owner of these entries in {volumes}."))? {
        return tell(None).map(|()| 0);
    }
    let raw: Vec<_> = plan.iter().map(|(found, _)| &found.volume).collect();
    let place = Place::of_volumes(docker, &overview.info, &raw, Access::Write);
    let gifts = place.roots().into_iter().zip(&plan).map(|(root, (found, gifts))| {
        let mut to = vec![None; found.known.len() + 1];
        gifts.iter().for_each(|gift| to[gift.part] = Some(gift.to));
        Gift { root, known: paths(&found.known), to }
    });
    let names: Vec<String> = plan.iter().map(|(found, _)| format!("volume {}", found.cache.name)).collect();
    give(place, gifts.collect(), &names, options, |changed| tell(Some(changed)))
}

fn shown(changes: &[Change]) -> String {
    let rows = changes.iter().map(|Change { volume, directory, entries, from, to }| {
        vec![volume.clone(), directory.clone(), entries.to_string(), from.clone(), to.clone()]
    });
    match changes {
        [] => "Nothing to change\n".into(),
        _ => report::table(&["VOLUME", "DIRECTORY", "ENTRIES", "FROM", "TO"], &rows.collect::<Vec<_>>()),
    }
}

/// Tells how many entries were changed.
fn told(changed: u64) -> Result<()> {
    report::data(&format!("Entries changed: {changed}\n"))
}

/// Gives what is in cache mounts to the step that writes there without being root.
pub fn mounts(context: Context, project: &Project, options: &Doctor) -> Result<u8> {
    let written = written(project);
    let (docker, settings) = context.into_docker()?;
    let builders = Builders::ask(&docker, &settings)?;
    let Some(builder) = builders.get(&builders.of_docker_build).map(|builder| builders.reference(builder)) else {
        return Ok(0);
    };
    let owned = ownership::of_mounts(&builder, &builder.records()?, written)?;
    let (mut plan, mut left) = (Vec::new(), Vec::new());
    for owned in owned {
        match owned.gift() {
            Some(to) => plan.push((owned, to)),
            None => left.extend(owned.findings()),
        }
    }
    left.retain(|finding| !project.tells_owner(finding));
    for Finding { file, line, message, .. } in &left {
        let (file, line) = (file.as_deref().unwrap_or_default(), line.unwrap_or_default());
        report::note(&format!("left to you: {file}:{line}: {message}"));
    }
    if plan.is_empty() {
        if left.is_empty() {
            report::note("No owner to change in cache mounts");
        }
        return Ok(0);
    }
    let rows = plan.iter().flat_map(|(owned, to)| {
        owned.others(*to).into_iter().map(move |((uid, gid), count)| {
            let written = &owned.written;
            let (from, to) = (format!("{uid}:{gid}"), format!("{}:{}", to.0, to.1));
            vec![written.id.clone(), written.target.clone(), count.to_string(), from, to]
        })
    });
    report::data(&report::table(&["MOUNT", "DIRECTORY", "ENTRIES", "FROM", "TO"], &rows.collect::<Vec<_>>()))?;
    if options.dry_run {
        return Ok(0);
    }
    let mounts = if plan.len() == 1 { "1 mount".into() } else { format!("{} mounts", plan.len()) };
    if !options.force && !report::ask(&format!("This will change the owner of these entries in {mounts}."))? {
        return Ok(0);
    }
    let place = ownership::place_of(&builder, plan.iter().map(|(owned, _)| &owned.written));
    let gifts = place.roots().into_iter().zip(&plan);
    let gifts = gifts.map(|(root, (_, to))| Gift { root, known: Vec::new(), to: vec![Some(*to)] }).collect();
    let names: Vec<String> = plan.iter().map(|(owned, _)| format!("mount {}", owned.written.id)).collect();
    give(place, gifts, &names, options, told)
}

/// Carries a plan out and tells what came of it; the names are those of the volumes or mounts of the place.
fn give(
    place: Place,
    gifts: Vec<Gift>,
    names: &[String],
    options: &Doctor,
    tell: impl Fn(u64) -> Result<()>,
) -> Result<u8> {
    let mut progress = Progress::new("Changing owners", options.telling());
    let given = place.ask(&Job::Give(gifts), &mut |files, bytes| progress.update(files, bytes), |line| match line {
        Line::Given(given) => Some(given),
        _ => None,
    });
    drop(progress);
    if cancel::requested() {
        report::note("interrupted: run it again to go on with what is left");
        bail!("cancelled");
    }
    let given = given?;
    tell(given.iter().map(|given| given.changed).sum())?;
    let failed = names.iter().zip(&given).filter_map(|(name, given)| {
        let first = given.failed.first()?;
        Some(format!("{name}: {} could not be changed, the first: {first}", entries(given.failed_count)))
    });
    let failed: Vec<String> = failed.collect();
    failed.iter().for_each(|failure| report::error(&anyhow::Error::msg(failure.clone())));
    Ok(u8::from(!failed.is_empty()))
}
