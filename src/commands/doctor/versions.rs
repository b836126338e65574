//! Looks into cache volumes and mounts for names that tell versions, at the depths that the rules know, and asks what the
//! engine has of the project. Changes nothing.

use std::collections::BTreeMap;

use anyhow::Result;

use super::containers::of_project;
use crate::checks::project::Project;
use crate::checks::versions::{AtHand, Named, NamedPlace, Used, references, searches, used};
use crate::cli::Doctor;
use crate::docker::{BuilderRef, Docker, Overview, Volume};
use crate::inventory;
use crate::model::{CacheRecord, Kind, Mount};
use crate::parallel;
use crate::place::{Access, MountPlace, Place};

/// Returns the versions that the project uses, and what cache volumes have of versions.
pub fn ask(docker: &Docker, overview: &Overview, options: &Doctor, project: &Project) -> Result<Named> {
    let used = used(project, &at_hand(docker, overview, options, project)?);
    let Overview { info, volumes, .. } = overview;
    let found: Vec<(Volume, NamedPlace)> = inventory::cache_volumes(overview, &options.volume)?
        .into_iter()
        .filter(|cache| !searches(&cache.mounted_at, &used).is_empty())
        .filter_map(|cache| {
            let volume = volumes.iter().find(|volume| volume.name == cache.name)?.clone();
            let (name, mounted_at) = (cache.name, cache.mounted_at);
            Some((volume, NamedPlace { kind: Kind::Volume, name, mounted_at, names: Vec::new() }))
        })
        .collect();
    let raw: Vec<&Volume> = found.iter().map(|(volume, _)| volume).collect();
    let mut places = Vec::new();
    if !raw.is_empty() {
        let place = Place::of_volumes(docker, info, &raw, Access::Read);
        places = look(&place, found.into_iter().map(|(_, place)| place).collect(), &used)?;
    }
    Ok(Named { used, places, unknown_mounts: None })
}

/// Returns what cache mounts of a builder have of versions, of those that a build is sure to reach.
pub fn in_mounts(builder: &BuilderRef, records: &[CacheRecord], used: &Used) -> Result<Vec<NamedPlace>> {
    let mut by_namespace: BTreeMap<String, Vec<Mount>> = BTreeMap::new();
    for mount in inventory::reachable(records).iter().map(Mount::plain) {
        if !searches(&mount.target, used).is_empty() {
            by_namespace.entry(mount.namespace.clone()).or_default().push(mount);
        }
    }
    let mut found = Vec::new();
    for mounts in by_namespace.into_values() {
        let named = mounts.iter().map(|mount| NamedPlace {
            kind: Kind::Mount,
            name: mount.id.clone(),
            mounted_at: mount.target.clone(),
            names: Vec::new(),
        });
        let named = named.collect();
        found.extend(look(&Place::Build(MountPlace::new(builder, mounts.into_iter())), named, used)?);
    }
    Ok(found)
}

fn look(place: &Place, mut found: Vec<NamedPlace>, used: &Used) -> Result<Vec<NamedPlace>> {
    let names = place.find(found.iter().map(|found| searches(&found.mounted_at, used)).collect())?;
    found.iter_mut().zip(names).for_each(|(place, names)| place.names = names);
    Ok(found)
}

fn at_hand(docker: &Docker, overview: &Overview, options: &Doctor, project: &Project) -> Result<AtHand> {
    let mut names: Vec<String> = references(project).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let images = parallel::each(&names, |name| docker.image_config(name));
    let containers = parallel::each(&of_project(overview, options), |container| docker.container_config(&container.id));
    let mut at_hand = AtHand::default();
    for (name, config) in names.into_iter().zip(images) {
        at_hand.images.extend(config?.map(|config| (name, config.env.unwrap_or_default())));
    }
    for config in containers {
        at_hand.containers.push(config?.env.unwrap_or_default());
    }
    Ok(at_hand)
}
