//! What can be wrong inside cache volumes. Pure rules over [`Facts`].

use std::collections::{BTreeMap, BTreeSet};

use super::exports::Export;
use super::mounts::OwnedMount;
use super::secrets::Secrets;
use super::versions::Named;
use super::{Check, Fact, Facts as AllFacts, Finding, NotRun, Severity};
use crate::budget::{Budget, Spent};
use crate::inside::own::Owner;
use crate::inventory::Cache;
use crate::model::{self, Bytes, CacheRecord};
use crate::report::quote;

/// What is known of the insides of caches.
#[derive(Debug)]
pub struct Facts {
    /// The cache volumes that containers have mounted.
    pub volumes: Fact<Vec<OwnedVolume>>,
    /// Names in cache volumes and mounts that tell versions.
    pub names: Fact<Named>,
    /// The cache mounts that somebody who is not root writes to.
    pub mounts: Fact<Vec<OwnedMount>>,
    /// Names of credentials in caches.
    pub secrets: Fact<Secrets>,
    /// The directories that the project's builds export their cache to.
    pub exports: Vec<Export>,
    /// What counts against the budget.
    pub held: Fact<Held>,
    /// The image that was named, if one was.
    pub image: Option<Fact<Image>>,
    pub records: Fact<Records>,
}

/// What a builder holds.
#[derive(Debug)]
pub struct Records {
    pub builder: String,
    pub records: Vec<CacheRecord>,
}

/// An image, and the caches in it.
#[derive(Debug)]
pub struct Image {
    pub name: String,
    pub carried: Vec<Carried>,
}

/// A cache directory in an image.
#[derive(Debug)]
pub struct Carried {
    /// None for what else lies in `/cache`.
    pub tool: Option<&'static str>,
    pub path: String,
    pub bytes: u64,
}

/// Some caches, and how much they may hold.
#[derive(Debug)]
pub struct Held {
    pub caches: Vec<Cache>,
    /// See [`Inventory::unmeasured`](crate::inventory::Inventory::unmeasured).
    pub unmeasured: Vec<Cache>,
    /// What could not be measured, and why: a sentence each.
    pub gaps: Vec<String>,
    pub budget: Budget,
    /// How many lock files the budget is told from; none if the user gave it. Then layers count as well: they belong to
    /// the whole machine, not to one project.
    pub locks: Option<usize>,
    /// The volumes that doctor was narrowed to.
    pub volumes: Vec<String>,
}

impl Default for Facts {
    fn default() -> Self {
        let none = || NotRun::Skipped("nobody looked into the caches".into());
        Facts {
            volumes: Err(none()),
            names: Err(none()),
            secrets: Err(none()),
            exports: Vec::new(),
            mounts: Err(none()),
            held: Err(none()),
            image: None,
            records: Err(none()),
        }
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

/// The check that needs all caches measured.
pub const OVER_BUDGET: &str = "cache-over-budget";

pub const CHECKS: &[Check] = &[
    Check {
        name: VOLUME_OWNER,
        promise: "containers may write to the cache volumes that they have mounted",
        run: volume_owner,
    },
    Check { name: OVER_BUDGET, promise: "the caches are within their budget", run: cache_over_budget },
];

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

pub(super) fn is_closed(owner: &Owner, (uid, gid): (u32, u32)) -> bool {
    owner.uid != uid && !owner.all_write && !(owner.group_writes && owner.gid == gid)
}

/// Returns the command that gives a volume's entries to whoever writes there.
fn fix_command(volume: &str) -> String {
    format!("docker cache doctor --fix --check {VOLUME_OWNER} --volume {}", quote(volume))
}

/// Bytes of one tool that are worth a word: every image has a few small files of its system's package manager.
const WORTH_TELLING: u64 = 1_000_000;

/// Returns what the named image carries for nothing, the largest first.
pub fn cache_in_image(image: &Image) -> Vec<Finding> {
    let mut by_tool: BTreeMap<Option<&str>, Vec<&Carried>> = BTreeMap::new();
    for carried in &image.carried {
        by_tool.entry(carried.tool).or_default().push(carried);
    }
    let sum = |carried: &[&Carried]| carried.iter().map(|carried| carried.bytes).sum::<u64>();
    let mut found: Vec<_> = by_tool.into_iter().filter(|(_, carried)| sum(carried) >= WORTH_TELLING).collect();
    found.sort_by_key(|(_, carried)| std::cmp::Reverse(sum(carried)));
    let told = found.into_iter().map(|(tool, mut carried)| {
        carried.sort_by_key(|carried| std::cmp::Reverse(carried.bytes));
        let places: Vec<String> = carried.iter().map(|carried| format!("`{}`", carried.path)).collect();
        let whose = tool.map(|tool| format!(" of {tool}")).unwrap_or_default();
        let message = format!(
            "image {} carries {}{whose} in {}: give the step that writes there a cache mount, or copy only what runs from \
             that stage into a last one",
            image.name,
            Bytes(sum(&carried)),
            places.join(", ")
        );
        Finding::new(Severity::Warning, message)
    });
    told.collect()
}

fn cache_over_budget(facts: &AllFacts) -> Result<Vec<Finding>, NotRun> {
    facts.engine()?;
    let held = facts.caches.held.as_ref().map_err(Clone::clone)?;
    match over_budget(held) {
        None if !held.gaps.is_empty() => Err(NotRun::Failed(held.gaps.join("; "))),
        None if !held.spent().is_surely_within() => Err(NotRun::Skipped(
            "mounts that hold more than caches are not looked into: `docker cache size --exact` does".into(),
        )),
        found => Ok(found.into_iter().collect()),
    }
}

impl Held {
    fn spent(&self) -> Spent {
        self.budget.spent(&self.caches, &self.unmeasured, !self.gaps.is_empty())
    }
}

fn over_budget(held: &Held) -> Option<Finding> {
    let (Held { caches, budget, locks, volumes, .. }, spent) = (held, held.spent());
    if !spent.over {
        return None;
    }
    let mut largest: Vec<&Cache> = caches.iter().filter(|cache| cache.class.is_deletable()).collect();
    largest.sort_by_key(|cache| std::cmp::Reverse(cache.clearable_bytes()));
    let largest: Vec<String> = largest
        .iter()
        .take(3)
        .map(|cache| {
            let tool = cache.tool.map(|tool| format!("{tool} in ")).unwrap_or_default();
            format!("{tool}{} {} ({})", cache.kind.as_str(), cache.name, Bytes(cache.clearable_bytes()))
        })
        .collect();
    let (used, over) = (Bytes(spent.used_bytes), Bytes(spent.used_bytes - spent.bytes));
    let (severity, message) = match locks {
        None => (Severity::Warning, format!("the caches hold {used}, {over} over the budget of {budget}")),
        Some(locks) => {
            let files = if *locks == 1 { "1 lock file".into() } else { format!("{locks} lock files") };
            let message = format!(
                "cache mounts and volumes hold {used}, and a project with {files} does with {budget}; `--budget` sets another"
            );
            (Severity::Note, message)
        }
    };
    let mut narrowed: String = volumes.iter().map(|name| format!("--volume {} ", quote(name))).collect();
    if locks.is_some() && volumes.is_empty() {
        narrowed.push_str("--kind mount,volume ");
    }
    let finding = Finding::new(severity, format!("{message}; the largest: {}", largest.join(", ")));
    Some(finding.command(format!("docker cache clear {narrowed}--to-budget {budget}")))
}

fn volume_owner(facts: &AllFacts) -> Result<Vec<Finding>, NotRun> {
    let described = facts.told(VOLUME_OWNER)?;
    if facts.engine().is_err() {
        return Ok(described);
    }
    let volumes = facts.caches.volumes.as_ref().map_err(Clone::clone)?;
    Ok(volumes.iter().filter_map(volume_findings).chain(described).collect())
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
    let entries = model::entries(closed);
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

/// BuildKit makes a cache of its own for each uid, gid, mode and `from` of an id; a record of such a one has a parent.
/// Several without are copies for steps that ran side by side with `sharing=private`.
pub(super) fn several_owners(Records { builder, records }: &Records) -> Vec<Finding> {
    let mut by_id: BTreeMap<(String, String), Vec<&CacheRecord>> = BTreeMap::new();
    for (record, mount) in model::mounts(records) {
        let Some(id) = mount.id else { continue };
        by_id.entry((mount.namespace, id)).or_default().push(record);
    }
    by_id.retain(|_, records| records.len() > 1 && records.iter().any(|record| !record.parents.is_empty()));
    let findings = by_id.into_iter().map(|((_, id), records)| {
        let sizes: Vec<String> = records.iter().map(|record| Bytes(record.bytes).to_string()).collect();
        Finding::new(
            // Files that disagree are told by themselves: what is left of an older one is no problem.
            Severity::Note,
            format!(
                "builder {builder} keeps {} separate caches ({}) of the mount `{id}`: builds give it another `uid`, \
                 `gid`, `mode` or `from`, and do not find what the others have put there; once cleared, only those come back that builds use",
                records.len(),
                sizes.join(", "),
            ),
        )
        .command(format!("docker cache clear --builder {} --mount {}", quote(builder), quote(&id)))
    });
    findings.collect()
}

/// How many bytes an engine with the containerd image store counts for an empty mount: the block of its directory, on ext4.
const EMPTY: u64 = 4096;

/// Adds that a mount is empty in a builder, if it is said to stay so. Without the containerd image store engines go on
/// telling the size that they counted first, so a 0 of theirs proves nothing.
pub(super) fn confirm_empty(finding: &mut Finding, Records { builder, records }: &Records) {
    let at = |record: &&CacheRecord| record.mount().is_some_and(|mount| Some(mount.target) == finding.subject);
    let sizes: Vec<u64> = records.iter().filter(at).map(|record| record.bytes).collect();
    if !sizes.is_empty() && sizes.iter().all(|bytes| *bytes == EMPTY) {
        finding.message.push_str(&format!("; in builder {builder} it is empty"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Class;
    use crate::inventory::Source;
    use crate::model::Kind;

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

    fn held(locks: Option<usize>, budget: u64) -> Held {
        let cache = |kind, name: &str, tool, class, bytes| Cache {
            kind,
            name: name.into(),
            builder: None,
            volume: None,
            path: None,
            language: None,
            tool,
            class,
            bytes,
            files: None,
            exact: true,
            last_used: None,
            source: Source::Records(Vec::new()),
        };
        let caches = vec![
            cache(Kind::Mount, "/root/.npm", Some("npm"), Class::Cache, 20),
            cache(Kind::Volume, "project-cache", Some("pip"), Class::Cache, 30),
            cache(Kind::Volume, "project-cache", None, Class::State, 900),
        ];
        Held {
            caches,
            unmeasured: Vec::new(),
            gaps: Vec::new(),
            budget: Budget(Bytes(budget)),
            locks,
            volumes: Vec::new(),
        }
    }

    #[test]
    fn more_than_the_budget_is_found_with_the_largest_and_what_brings_it_under() {
        let found = over_budget(&held(None, 49)).unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.message.contains("50B, 1B over"), "{}", found.message);
        assert!(found.message.ends_with("pip in volume project-cache (30B), npm in mount /root/.npm (20B)"));
        assert!(format!("{:?}", found.fix).contains("\"docker cache clear --to-budget 49B\""));
        let told = over_budget(&held(Some(1), 49)).unwrap();
        assert!(told.severity == Severity::Note && told.message.contains("with 1 lock file does with 49B"));
        assert!(format!("{:?}", told.fix).contains("--kind mount,volume --to-budget 49B"));
        let narrowed = over_budget(&Held { volumes: vec!["a b".into()], ..held(None, 49) }).unwrap();
        assert!(format!("{:?}", narrowed.fix).contains("clear --volume 'a b' --to-budget 49B"));
    }

    #[test]
    fn what_no_clear_takes_does_not_count_against_the_budget() {
        assert_eq!(over_budget(&held(None, 50)), None);
        assert_eq!(over_budget(&held(Some(9), 50)), None);
    }

    #[test]
    fn several_caches_of_one_mount_are_a_note_with_what_clears_them() {
        let record = |parents: &[&str]| CacheRecord {
            kind: "exec.cachemount".into(),
            description: "cached mount /m from exec x with id \"/pip\"".into(),
            parents: parents.iter().map(ToString::to_string).collect(),
            ..CacheRecord::default()
        };
        let records = Records { builder: "b".into(), records: vec![record(&[]), record(&["p"])] };
        let found = several_owners(&records).remove(0);
        assert_eq!(found.severity, Severity::Note);
        assert!(format!("{:?}", found.fix).contains("docker cache clear --builder b --mount pip"), "{found:?}");
    }

    #[test]
    fn what_could_not_be_measured_is_not_within_a_budget() {
        let check = |held: Held| {
            let engine = super::super::engine::Facts::healthy();
            let caches = Facts { held: Ok(held), ..Facts::default() };
            let none = || NotRun::Skipped("no project".into());
            cache_over_budget(&AllFacts { named: false, engine, caches, live: Err(none()), project: Err(none()) })
        };
        let gaps = || vec!["builder b is not counted".into()];
        assert_eq!(check(held(None, 50)), Ok(Vec::new()));
        assert_eq!(check(Held { gaps: gaps(), ..held(None, 50) }), Err(NotRun::Failed(gaps().concat())));
        assert_eq!(check(Held { gaps: gaps(), ..held(None, 49) }).map(|found| found.len()), Ok(1));
    }

    #[test]
    fn variants_of_a_mount_are_seen_also_where_buildkit_does_not_tell_its_id() {
        let record = |description: &str, parents: &[&str]| CacheRecord {
            kind: "exec.cachemount".into(),
            description: description.into(),
            parents: parents.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        let npm = record(r#"cached mount /root/.npm from exec sh with id "//root/.npm""#, &[]);
        let pip = |parents: &[&str]| record("cached mount /pip from exec sh", parents);
        let found = |records| several_owners(&Records { builder: "default".into(), records });
        assert_eq!(found(vec![npm.clone(), pip(&[]), pip(&[])]), []);
        let several = found(vec![npm, pip(&[]), pip(&["x"])]);
        assert!(several.len() == 1 && several[0].message.contains("of the mount `pip`"), "{several:?}");
    }

    #[test]
    fn an_image_is_told_by_tool_and_what_is_small_is_not() {
        let carried = |tool, path: &str, bytes| Carried { tool, path: path.into(), bytes };
        let image = Image {
            name: "app".into(),
            carried: vec![
                carried(Some("apt"), "/var/cache/apt", 999_999),
                carried(None, "/cache", 1_000_000),
                carried(Some("pip"), "/a", 600_000),
                carried(Some("pip"), "/b", 700_000),
            ],
        };
        let found: Vec<String> = cache_in_image(&image).into_iter().map(|finding| finding.message).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("image app carries 1.3MB of pip in `/b`, `/a`: "), "{found:?}");
        assert!(found[1].starts_with("image app carries 1MB in `/cache`: "), "{found:?}");
    }

    #[test]
    fn two_users_of_one_volume_cannot_both_be_right() {
        let shared = volume(&[(1000, 1000), (1001, 1001)], &[(owner(1000, 1000), 9)]);
        let found = volume_findings(&shared).unwrap();
        assert!(found.message.contains("c1000") && found.message.contains("c1001") && found.fix.is_none());
        assert_eq!(shared.gifts(), []);
    }
}
