//! Looks into cache volumes for names that tell versions, at the depths that the rules know. Changes nothing.

use anyhow::Result;

use crate::checks::versions::{NamedVolume, Used, searches};
use crate::docker::{Docker, Overview, Volume};
use crate::inside::find::Search;
use crate::inside::{Job, Line};
use crate::inventory;
use crate::place::{Access, Place};

pub fn ask(docker: &Docker, overview: &Overview, named: &[String], used: &Used) -> Result<Vec<NamedVolume>> {
    let Overview { info, containers, volumes } = overview;
    let found: Vec<_> = inventory::cache_volumes(volumes, containers, named)?
        .into_iter()
        .map(|cache| (searches(&cache.mounted_at, used), cache))
        .filter(|(paths, _)| !paths.is_empty())
        .collect();
    let of = |name: &str| volumes.iter().find(|volume| volume.name == name);
    let raw: Vec<&Volume> = found.iter().filter_map(|(_, cache)| of(&cache.name)).collect();
    if raw.is_empty() {
        return Ok(Vec::new());
    }
    let place = Place::of_volumes(docker, info, &raw, Access::Read);
    let roots = place.roots().into_iter().zip(&found);
    let job = Job::Find(roots.map(|(root, (paths, _))| Search { root, paths: paths.clone() }).collect());
    let mut names = Vec::new();
    place.run(&job, &mut |line| {
        if let Line::Names(found) = line {
            names = found;
        }
    })?;
    let volumes = found.into_iter().zip(names);
    let named =
        volumes.map(|((_, cache), names)| NamedVolume { name: cache.name, mounted_at: cache.mounted_at, names });
    Ok(named.collect())
}
