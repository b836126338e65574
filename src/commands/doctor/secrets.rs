//! Looks for names of credentials in cache volumes, and in cache mounts by a build. Opens no file, and changes nothing.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::checks::secrets::{Holder, Kind, Secrets, searches};
use crate::docker::{BuilderRef, Docker, Overview, Volume};
use crate::inventory;
use crate::model::{self, CacheRecord, Mount, MountName};
use crate::place::{Access, MountPlace, Place};

/// Looks into the cache volumes of an engine, or into the named ones.
///
/// # Errors
/// When they cannot be looked into, or one that was named does not exist.
pub fn in_volumes(docker: &Docker, overview: &Overview, named: &[String]) -> Result<Secrets> {
    let Overview { info, volumes, .. } = overview;
    let found = inventory::cache_volumes(overview, named)?.into_iter();
    let found = found.filter_map(|cache| Some((volumes.iter().find(|volume| volume.name == cache.name)?, cache)));
    let (raw, caches): (Vec<&Volume>, Vec<_>) = found.unzip();
    if raw.is_empty() {
        return Ok(Secrets::default());
    }
    let paths = caches.iter().map(|cache| searches(&cache.mounted_at)).collect();
    let names = Place::of_volumes(docker, info, &raw, Access::Read).find(paths)?;
    let holders = caches.into_iter().zip(names).map(|(cache, names)| Holder {
        kind: Kind::Volume(cache.users),
        name: cache.name,
        mounted_at: cache.mounted_at,
        names,
    });
    Ok(Secrets { holders: holders.collect(), ..Secrets::default() })
}

/// Looks into the cache mounts of a builder that a build can be sure to get.
///
/// # Errors
/// When the build fails.
pub fn in_mounts(builder: &BuilderRef, records: &[CacheRecord]) -> Result<Secrets> {
    let mut by_id: BTreeMap<(String, String), Vec<(&CacheRecord, MountName)>> = BTreeMap::new();
    for (record, mount) in model::mounts(records) {
        by_id.entry((mount.namespace.clone(), mount.shown().to_owned())).or_default().push((record, mount));
    }
    let mut secrets = Secrets::default();
    let mut by_namespace: BTreeMap<String, Vec<(&CacheRecord, MountName)>> = BTreeMap::new();
    for ((namespace, id), mut mounts) in by_id {
        let why = match mounts.as_slice() {
            [(record, _)] if record.in_use => "a build uses it",
            [(record, mount)]
                if record.parents.is_empty() && mount.id.is_some() && Mount::plain(mount).is_carriable() =>
            {
                by_namespace.entry(namespace).or_default().append(&mut mounts);
                continue;
            }
            [_] => "no build can be sure to get it",
            _ => "it has several variants, and no build can tell them apart",
        };
        secrets.gaps.push(format!("cache mount {id} of builder {} was not looked into: {why}", builder.name));
    }
    for mounts in by_namespace.into_values() {
        let place = Place::Build(MountPlace::new(builder, mounts.iter().map(|(_, mount)| Mount::plain(mount))));
        let paths = mounts.iter().map(|(_, mount)| searches(&mount.target)).collect();
        let found = place.find(paths)?;
        secrets.holders.extend(mounts.into_iter().zip(found).map(|((record, mount), names)| Holder {
            kind: Kind::Mount { builder: builder.name.clone(), record: record.id.clone() },
            name: mount.shown().to_owned(),
            mounted_at: mount.target,
            names,
        }));
    }
    Ok(secrets)
}
