//! `docker cache doctor --fix --check volume-owner` and `mount-owner`: gives what is in cache volumes and mounts to whoever
//! writes there. A plan is made, shown, asked about, and then just that plan is carried out.

use anyhow::{Result, bail};

use super::super::Context;
use crate::builders::Builders;
use crate::cancel;
use crate::checks::caches;
use crate::checks::mounts::{OwnedMount, written};
use crate::checks::project::Project;
use crate::cli::Doctor;
use crate::docker::Docker;
use crate::inside::own::{Gift, Given};
use crate::inside::{Job, Line};
use crate::inventory::{self, FoundVolume, paths};
use crate::ownership;
use crate::place::{Access, Place};
use crate::report::{self, Progress};

pub fn run(docker: &Docker, options: &Doctor) -> Result<u8> {
    let overview = docker.overview()?;
    inventory::left_out(&overview).for_each(|gap| report::warning(&gap));
    let volumes = ownership::ask(docker, &overview, &options.volume)?;
    let plan: Vec<(&FoundVolume, Vec<caches::Gift>)> =
        volumes.iter().map(|(found, owned)| (found, owned.gifts())).filter(|(_, gifts)| !gifts.is_empty()).collect();
    let rows = volumes.iter().flat_map(|(_, owned)| {
        owned.gifts().into_iter().flat_map(move |gift| {
            gift.from.into_iter().map(move |((uid, gid), count)| {
                let to = format!("{}:{}", gift.to.0, gift.to.1);
                vec![
                    owned.name.clone(),
                    owned.parts[gift.part].path.clone(),
                    count.to_string(),
                    format!("{uid}:{gid}"),
                    to,
                ]
            })
        })
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        report::data("Nothing to change\n")?;
        return Ok(0);
    }
    report::data(&report::table(&["VOLUME", "DIRECTORY", "ENTRIES", "FROM", "TO"], &rows))?;
    if options.dry_run {
        return Ok(0);
    }
    let volumes = if plan.len() == 1 { "1 volume".into() } else { format!("{} volumes", plan.len()) };
    if !options.force && !report::ask(&format!("This will change the owner of these entries in {volumes}."))? {
        return Ok(0);
    }
    let raw: Vec<_> = plan.iter().map(|(found, _)| &found.volume).collect();
    let place = Place::of_volumes(docker, &overview.info, &raw, Access::Write);
    let gifts = place.roots().into_iter().zip(&plan).map(|(root, (found, gifts))| {
        let mut to = vec![None; found.known.len() + 1];
        gifts.iter().for_each(|gift| to[gift.part] = Some(gift.to));
        Gift { root, known: paths(&found.known), to }
    });
    let names: Vec<String> = plan.iter().map(|(found, _)| format!("volume {}", found.cache.name)).collect();
    give(place, gifts.collect(), &names, options)
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
    let plan: Vec<(OwnedMount, (u32, u32))> =
        owned.into_iter().filter_map(|owned| owned.gift().map(|to| (owned, to))).collect();
    if plan.is_empty() {
        report::note("No owner to change in cache mounts");
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
    give(place, gifts, &names, options)
}

/// Carries a plan out and tells what came of it; the names are those of the volumes or mounts of the place.
fn give(place: Place, gifts: Vec<Gift>, names: &[String], options: &Doctor) -> Result<u8> {
    let mut progress = Progress::new("Changing owners", options.telling());
    let mut given: Vec<Given> = Vec::new();
    let done = place.run(&Job::Give(gifts), &mut |line| match line {
        Line::Progress { files, bytes } => progress.update(files, bytes),
        Line::Given(done) => given = done,
        _ => {}
    });
    drop(progress);
    if cancel::requested() {
        report::note("interrupted: run it again to go on with what is left");
        bail!("interrupted");
    }
    done?;
    let changed: u64 = given.iter().map(|given| given.changed).sum();
    report::data(&format!("Entries changed: {changed}\n"))?;
    let failed = names.iter().zip(&given).filter_map(|(name, given)| {
        let first = given.failed.first()?;
        Some(format!("{name}: {} entries could not be changed, the first: {first}", given.failed_count))
    });
    let failed: Vec<String> = failed.collect();
    failed.iter().for_each(|failure| report::error(&anyhow::Error::msg(failure.clone())));
    Ok(u8::from(!failed.is_empty()))
}
