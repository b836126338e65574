//! Who owns what in cache volumes and mounts, and who writes there: asks docker and looks inside. Changes nothing.

use anyhow::{Result, bail};

use crate::checks::caches::{OwnedPart, OwnedVolume, Writer};
use crate::checks::mounts::{OwnedMount, Written};
use crate::docker::{BuilderRef, Container, Docker, Info, Overview};
use crate::inside::measure::Tree;
use crate::inside::own::Owned;
use crate::inside::{Job, Line};
use crate::inventory::{self, FoundVolume, paths};
use crate::model::{self, CacheRecord, Mount, MountName};
use crate::place::{Access, MountPlace, Place};
use crate::{cancel, catalogue, parallel, report};

/// Looks into the cache volumes of an engine that a container has mounted, or only into the named ones.
///
/// # Errors
/// When the engine cannot be asked, or a volume that was named does not exist.
pub fn ask(docker: &Docker, overview: &Overview, named: &[String]) -> Result<Vec<(FoundVolume, OwnedVolume)>> {
    let Overview { info, containers, volumes, .. } = overview;
    let mut found: Vec<(FoundVolume, OwnedVolume)> = Vec::new();
    for cache in inventory::cache_volumes(overview, named)? {
        let Some(volume) = volumes.iter().find(|volume| volume.name == cache.name).cloned() else { continue };
        let mounts = |container: &&Container| {
            container.mounts.iter().any(|mount| mount.r#type == "volume" && mount.name == cache.name && !mount.is_part)
        };
        let users: Vec<&Container> = containers.iter().filter(mounts).collect();
        let writers = parallel::each(&users, |container| writer(docker, container));
        let writers = writers.into_iter().collect::<Result<Vec<Writer>>>()?;
        if writers.is_empty() {
            continue;
        }
        let known = catalogue::known_below(&cache.mounted_at);
        let owned = OwnedVolume { name: cache.name.clone(), writers, parts: Vec::new() };
        found.push((FoundVolume { cache, volume, known }, owned));
    }
    if !found.is_empty() {
        look_inside(docker, info, &mut found)?;
    }
    cancel::check()?;
    Ok(found)
}

fn look_inside(docker: &Docker, info: &Info, found: &mut [(FoundVolume, OwnedVolume)]) -> Result<()> {
    let raw: Vec<_> = found.iter().map(|(found, _)| &found.volume).collect();
    let place = Place::of_volumes(docker, info, &raw, Access::Read);
    let trees = place.roots().into_iter().zip(found.iter());
    let trees = trees.map(|(root, (found, _))| Tree { root, known: paths(&found.known), ..Tree::default() });
    let names = found.iter().map(|(found, _)| format!("volume {}", found.cache.name)).collect::<Vec<_>>();
    let inside = owners(&place, trees.collect(), &names)?;
    for ((found, owned), inside) in found.iter_mut().zip(inside) {
        let root = found.cache.mounted_at.trim_end_matches('/');
        let known = found.known.iter().map(|known| known.path.as_str()).chain([""]);
        owned.parts = known
            .zip(inside.parts)
            .map(|(path, owners)| OwnedPart {
                path: if path.is_empty() { found.cache.mounted_at.clone() } else { format!("{root}/{path}") },
                owners,
            })
            .collect();
    }
    Ok(())
}

/// Returns who owns what in the trees of a place, and warns of what could not be read; the names are those of its volumes
/// or mounts.
fn owners(place: &Place, trees: Vec<Tree>, names: &[String]) -> Result<Vec<Owned>> {
    let owners = place.ask(&Job::Owners(trees), &mut |_, _| (), |line| match line {
        Line::Owners(owners) => Some(owners),
        _ => None,
    })?;
    for (name, Owned { unreadable, unreadable_count, .. }) in names.iter().zip(&owners) {
        if let Some(first) = unreadable.first() {
            report::warning(&format!(
                "{name}: {} could not be read, the first: {first}",
                model::entries(*unreadable_count)
            ));
        }
    }
    Ok(owners)
}

/// Looks into those of these mounts that a builder has, as the Dockerfiles name them; what runs now is left alone.
///
/// # Errors
/// When the build that looks fails.
pub fn of_mounts(builder: &BuilderRef, records: &[CacheRecord], written: Vec<Written>) -> Result<Vec<OwnedMount>> {
    let mounts = model::mounts(records);
    let is_there = |written: &Written| {
        let is_meant = |name: &MountName| name.namespace.is_empty() && name.id.as_ref() == Some(&written.id);
        let of_id = mounts.iter().filter(|(_, name)| is_meant(name)).map(|(record, _)| *record);
        // A record with a parent was made with options. Several without are private copies.
        let (plain, variants): (Vec<&CacheRecord>, Vec<&CacheRecord>) =
            of_id.partition(|record| record.parents.is_empty());
        let idle = !plain.iter().chain(&variants).any(|record| record.in_use);
        idle && if written.options.is_empty() { plain.len() == 1 } else { !variants.is_empty() }
    };
    let written: Vec<Written> =
        written.into_iter().filter(|written| is_there(written) && carried(written).is_carriable()).collect();
    if written.is_empty() {
        return Ok(Vec::new());
    }
    let place = place_of(builder, &written);
    let trees = place.roots().into_iter().map(|root| Tree { root, ..Tree::default() }).collect();
    let names = written.iter().map(|written| format!("mount {}", written.id)).collect::<Vec<_>>();
    let inside = owners(&place, trees, &names)?;
    let owned = written.into_iter().zip(inside).map(|(written, inside)| OwnedMount {
        written,
        builder: builder.name.clone(),
        owners: inside.parts.concat(),
    });
    Ok(owned.collect())
}

/// Returns the way to mounts as Dockerfiles name them.
pub fn place_of<'a>(builder: &BuilderRef, written: impl IntoIterator<Item = &'a Written>) -> Place {
    Place::Build(MountPlace::new(builder, written.into_iter().map(carried)))
}

fn carried(written: &Written) -> Mount {
    Mount {
        namespace: String::new(),
        id: written.id.clone(),
        options: written.options.clone(),
        target: written.target.clone(),
    }
}

/// Returns as whom a container writes.
fn writer(docker: &Docker, container: &Container) -> Result<Writer> {
    let config = docker.container_config(&container.id)?;
    let name = container.name().to_owned();
    // A container without users of its own knows only numbers.
    let passwd = match config.user.is_empty() {
        true => String::new(),
        false => docker.container_passwd(&container.id).unwrap_or_default(),
    };
    match resolve(&config.user, &passwd) {
        Some((uid, gid)) => Ok(Writer { container: name, uid, gid }),
        None => bail!("container {name} runs as {:?}, which its /etc/passwd does not know", config.user),
    }
}

/// Returns user and group of docker's `USER[:GROUP]`; a user whom nobody knows has the group 0. A group's name is not
/// looked up: the user's own group stands for it.
fn resolve(user: &str, passwd: &str) -> Option<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, ""));
    if user.is_empty() {
        return Some((0, group.parse().unwrap_or(0)));
    }
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|line| line.len() > 3 && (line[0] == user || line[2] == user));
    let uid = user.parse().ok().or_else(|| line.as_ref()?[2].parse().ok())?;
    let own_group = line.and_then(|line| line[3].parse().ok()).unwrap_or(0);
    Some((uid, group.parse().unwrap_or(own_group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names_of_the_container() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1001::/home/dev:/bin/sh\nhalf:x\n";
        let cases = [
            ("", Some((0, 0))),
            ("1000", Some((1000, 1001))),
            ("dev", Some((1000, 1001))),
            ("dev:5", Some((1000, 5))),
            ("dev:users", Some((1000, 1001))),
            ("4242", Some((4242, 0))),
            ("4242:7", Some((4242, 7))),
            ("half", None),
            ("nobody-knows", None),
        ];
        for (user, expected) in cases {
            assert_eq!(resolve(user, passwd), expected, "{user}");
        }
    }
}
