//! What can be wrong inside cache volumes. Pure rules over [`Facts`].

use std::collections::{BTreeMap, BTreeSet};

use super::versions::NamedVolume;
use super::{Check, Fact, Facts as AllFacts, Finding, NotRun, Severity};
use crate::inside::own::Owner;
use crate::report::quote;

/// What is known of the insides of caches.
#[derive(Debug)]
pub struct Facts {
    /// The cache volumes that containers have mounted.
    pub volumes: Fact<Vec<OwnedVolume>>,
    /// Names in cache volumes that tell versions.
    pub names: Fact<Vec<NamedVolume>>,
}

impl Default for Facts {
    fn default() -> Self {
        let none = || NotRun::Skipped("nobody looked into the volumes".into());
        Facts { volumes: Err(none()), names: Err(none()) }
    }
}

/// A cache volume, who writes to it, and who owns what in it.
#[derive(Clone, Debug, Default)]
pub struct OwnedVolume {
    pub name: String,
    pub writers: Vec<Writer>,
    pub parts: Vec<OwnedPart>,
}

/// A container, and as whom it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    pub container: String,
    pub uid: u32,
    pub gid: u32,
}

/// A directory that the catalogue knows, or the rest of a volume.
#[derive(Clone, Debug, Default)]
pub struct OwnedPart {
    /// As the containers see it.
    pub path: String,
    /// Number of entries of each owner.
    pub owners: Vec<(Owner, u64)>,
}

/// A part that has to be given to the one who writes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gift {
    /// Index in [`OwnedVolume::parts`].
    pub part: usize,
    pub to: (u32, u32),
    /// The owners it has beside, and the number of their entries, which all change.
    pub from: Vec<((u32, u32), u64)>,
    /// Number of entries that the writer cannot write to.
    pub closed: u64,
}

/// The check whose remedy `doctor --fix` carries out in volumes.
pub const VOLUME_OWNER: &str = "volume-owner";

pub const CHECKS: &[Check] = &[Check {
    name: VOLUME_OWNER,
    promise: "containers may write to the cache volumes that they have mounted",
    run: volume_owner,
}];

impl OwnedVolume {
    /// Returns whoever writes here without being root, by user and group.
    fn others_than_root(&self) -> BTreeSet<(u32, u32)> {
        self.writers.iter().filter(|writer| writer.uid != 0).map(|writer| (writer.uid, writer.gid)).collect()
    }

    /// Returns what has to be given away so that the one who writes here can; nothing if that would lock out another.
    pub fn gifts(&self) -> Vec<Gift> {
        let writers = self.others_than_root();
        let Some(&to) = writers.first().filter(|_| writers.len() == 1) else { return Vec::new() };
        let gifts = self.parts.iter().enumerate().map(|(part, owned)| {
            let mut from: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (owner, count) in owned.owners.iter().filter(|(owner, _)| (owner.uid, owner.gid) != to) {
                *from.entry((owner.uid, owner.gid)).or_default() += count;
            }
            let closed = owned.owners.iter().filter(|(owner, _)| is_closed(owner, to)).map(|(_, count)| count).sum();
            Gift { part, to, from: from.into_iter().collect(), closed }
        });
        gifts.filter(|gift| gift.closed > 0).collect()
    }
}

fn is_closed(owner: &Owner, (uid, gid): (u32, u32)) -> bool {
    owner.uid != uid && !owner.all_write && !(owner.group_writes && owner.gid == gid)
}

/// Returns the command that gives a volume's entries to whoever writes there.
fn fix_command(volume: &str) -> String {
    format!("docker cache doctor --fix --check {VOLUME_OWNER} --volume {}", quote(volume))
}

fn volume_owner(facts: &AllFacts) -> Result<Vec<Finding>, NotRun> {
    if facts.engine.engine.is_err() {
        return Err(NotRun::Skipped("no engine answers".into()));
    }
    let volumes = facts.caches.volumes.as_ref().map_err(Clone::clone)?;
    Ok(volumes.iter().filter_map(volume_findings).collect())
}

fn volume_findings(volume: &OwnedVolume) -> Option<Finding> {
    let name = &volume.name;
    let writers = volume.others_than_root();
    let who = |writer: &Writer| format!("container {} writes as {}:{}", writer.container, writer.uid, writer.gid);
    let writing: Vec<String> = volume.writers.iter().filter(|writer| writer.uid != 0).map(who).collect();
    if writers.iter().map(|(uid, _)| uid).collect::<BTreeSet<_>>().len() > 1 {
        return Some(Finding::new(
            Severity::Warning,
            format!(
                "several users share volume {name}, and what one makes the others cannot change: {}; build their images \
                 with the same `--build-arg USER_UID=…`, or run them with the same `--user`",
                writing.join(", ")
            ),
        ));
    }
    let gifts = volume.gifts();
    let (closed, to) = (gifts.iter().map(|gift| gift.closed).sum::<u64>(), gifts.first()?.to);
    let mut owners: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    for (owner, count) in gifts.iter().flat_map(|gift| &gift.from) {
        *owners.entry(*owner).or_default() += count;
    }
    let others: Vec<String> = owners.keys().map(|(uid, gid)| format!("{uid}:{gid}")).collect();
    let rebuild = match owners.iter().max_by_key(|(_, count)| **count) {
        Some(((uid, _), _)) if *uid != 0 && *uid != to.0 => {
            format!("; or rebuild the image with `--build-arg USER_UID={uid}`")
        }
        _ => String::new(),
    };
    let entries = if closed == 1 { "1 entry" } else { &format!("{closed} entries") };
    let first = volume.parts.get(gifts.first()?.part).map_or("", |part| &part.path);
    Some(
        Finding::new(
            Severity::Error,
            format!(
                "{} and may not write to {entries} of volume {name}, from {first} on, which belong to {}: it is told \
                 \"Permission denied\"{rebuild}",
                writing.first().map_or("", String::as_str),
                others.join(", ")
            ),
        )
        .command(fix_command(name)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: u32, gid: u32) -> Owner {
        Owner { uid, gid, group_writes: false, all_write: false }
    }

    fn volume(writers: &[(u32, u32)], owners: &[(Owner, u64)]) -> OwnedVolume {
        let writers = writers.iter().map(|(uid, gid)| Writer { container: format!("c{uid}"), uid: *uid, gid: *gid });
        let parts = vec![OwnedPart { path: "/cache/pip".into(), owners: owners.to_vec() }];
        OwnedVolume { name: "project-cache".into(), writers: writers.collect(), parts }
    }

    #[test]
    fn a_volume_of_others_is_found_with_both_remedies() {
        let found =
            volume_findings(&volume(&[(1000, 1000)], &[(owner(1001, 1001), 7), (owner(1000, 1000), 2)])).unwrap();
        assert!(found.message.contains("7 entries") && found.message.contains("USER_UID=1001"), "{}", found.message);
        assert!(format!("{:?}", found.fix).contains("--fix --check volume-owner --volume project-cache"));
        let found = volume_findings(&volume(&[(1000, 1000), (0, 0)], &[(owner(0, 0), 1)])).unwrap();
        assert!(found.message.contains("1 entry") && !found.message.contains("USER_UID"), "{}", found.message);
    }

    #[test]
    fn what_may_be_written_is_no_problem() {
        let group = Owner { group_writes: true, ..owner(0, 50) };
        let all = Owner { all_write: true, ..owner(0, 0) };
        for (writers, owners) in [
            (&[(0, 0)][..], &[(owner(1000, 1000), 9)][..]),
            (&[(1000, 1000)], &[(owner(1000, 0), 9)]),
            (&[(1000, 50)], &[(group, 9), (all, 9)]),
            (&[], &[(owner(0, 0), 9)]),
        ] {
            assert_eq!(volume_findings(&volume(writers, owners)), None, "{writers:?} {owners:?}");
        }
    }

    #[test]
    fn two_users_of_one_volume_cannot_both_be_right() {
        let shared = volume(&[(1000, 1000), (1001, 1001)], &[(owner(1000, 1000), 9)]);
        let found = volume_findings(&shared).unwrap();
        assert!(found.message.contains("c1000") && found.message.contains("c1001") && found.fix.is_none());
        assert_eq!(shared.gifts(), []);
    }
}
