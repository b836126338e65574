//! What a clear removes and what it keeps, as a value that is shown first and then carried out. Pure: rows of the
//! inventory and the user's rules go in, nothing is asked and nothing is touched.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::catalogue::{self, Class, Unit};
use crate::inside::measure::Shared;
use crate::inside::remove::Take;
use crate::inventory::{Cache, Holder, Inventory, Source};
use crate::model::{Bytes, CacheRecord, Kind, Moment, VolumeUser};
use crate::place::carry;

/// How the user narrowed or widened a clear.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Only what was last used before this moment, seconds since 1970.
    pub before: Option<u64>,
    /// Only so much that these bytes remain, least recently used first.
    pub keep: Option<Bytes>,
    /// What is not a cache goes as well, if it was named: the tools and mounts below.
    pub include_installs: bool,
    pub tools: Vec<&'static str>,
    pub mounts: Vec<String>,
    /// True if all rows of volumes are of directories that were named.
    pub by_path: bool,
    /// Take also what a running container uses.
    pub force_in_use: bool,
}

impl Rules {
    fn by_age(&self) -> bool {
        self.before.is_some() || self.keep.is_some()
    }
}

/// What goes and what stays.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    #[serde(rename = "plan")]
    pub steps: Vec<Step>,
    pub kept: Vec<Kept>,
}

/// One row that goes, whole or in part.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// With the bytes that go and not those that stay.
    #[serde(flatten)]
    pub cache: Cache,
    #[serde(skip)]
    pub act: Act,
}

/// How a row goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// These records of its builder are pruned.
    Prune(Vec<String>),
    /// A part of a volume or mount is emptied, as [`Source::Part`] has it.
    Cut { holder: Holder, part: usize, take: Take },
    /// The volume of this index is emptied, and then made again unless containers hold on to it or its files lie elsewhere.
    Recreate { volume: usize, emptied: bool },
}

/// One row, or the rest of it, that was selected and stays.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// With the bytes that stay.
    #[serde(flatten)]
    pub cache: Cache,
    pub why: String,
}

/// The smallest thing that goes or stays as a whole.
struct Piece {
    row: usize,
    what: What,
    bytes: u64,
    files: Option<u64>,
    last_used: Option<u64>,
}

enum What {
    Row,
    /// The files of a part that were last used in this hour since 1970; 0 if nobody knows.
    Hour(u64),
    /// All records of a mount, or one of another kind.
    Records(Vec<String>),
}

impl Plan {
    /// Decides about every row.
    pub fn new(inventory: &Inventory, rules: &Rules, now: Moment) -> Plan {
        let mut plan = Plan::default();
        let mut pieces = Vec::new();
        // Bytes that stay because something uses them count as kept.
        let mut staying = 0;
        for (row, cache) in inventory.caches.iter().enumerate() {
            if let Source::Part { sum, .. } = &cache.source
                && cache.class.is_deletable()
            {
                for (path, bytes) in &sum.secrets {
                    let secret =
                        Cache { path: Some(path.clone()), class: Class::Secret, files: Some(1), ..cache.clone() };
                    plan.keep(&secret, *bytes, "it has the name of a file of secrets".into());
                }
            }
            if is_empty(cache) {
                continue;
            }
            if let Some(why) = refusal(cache, inventory, rules) {
                plan.keep(cache, cache.bytes, why);
                continue;
            }
            if let Some(why) = users(cache, inventory).filter(|_| !rules.force_in_use) {
                staying += cache.bytes;
                plan.keep(cache, cache.bytes, why);
                continue;
            }
            // BuildKit removes none of these, whoever insists.
            let used = cache.records().iter().filter(|record| record.in_use);
            let (count, bytes) = used.fold((0, 0), |(count, bytes), record| (count + 1, bytes + record.bytes));
            if count > 0 {
                staying += bytes;
                plan.keep(cache, bytes, "in use by a running build".into());
            }
            pieces.extend(split(row, cache, rules));
        }
        pieces.sort_by_key(|piece| (piece.last_used, piece.row));
        if let Some(before) = rules.before {
            // What is too young to go counts as kept, too.
            staying += total(inventory, &pieces);
            plan.keep_young(inventory, &mut pieces, before, now);
            staying -= total(inventory, &pieces);
        }
        for (at, bytes) in shared(inventory, &pieces) {
            pieces[at].bytes += bytes;
        }
        if let Some(keep) = rules.keep {
            plan.keep_recent(inventory, &mut pieces, keep, staying);
        }
        plan.keep_parents(inventory, &mut pieces);
        plan.assemble(inventory, pieces, rules);
        plan
    }

    /// Returns the bytes that go.
    pub fn bytes(&self) -> Bytes {
        self.steps.iter().map(|step| Bytes(step.cache.bytes)).sum()
    }

    fn keep(&mut self, cache: &Cache, bytes: u64, why: String) {
        self.kept.push(Kept { cache: Cache { bytes, ..cache.clone() }, why });
    }

    /// Keeps the pieces that fail the test; a row of which nothing goes is told as kept.
    fn retain(
        &mut self,
        inventory: &Inventory,
        pieces: &mut Vec<Piece>,
        goes: impl Fn(&Piece) -> bool,
        why: impl Fn(&Cache) -> String,
    ) {
        let mut kept: BTreeMap<usize, u64> = BTreeMap::new();
        pieces.retain(|piece| {
            let goes = goes(piece);
            if !goes {
                *kept.entry(piece.row).or_default() += piece.bytes;
            }
            goes
        });
        for (row, bytes) in kept {
            let cache = &inventory.caches[row];
            self.keep(cache, bytes, why(cache));
        }
    }

    fn keep_young(&mut self, inventory: &Inventory, pieces: &mut Vec<Piece>, before: u64, now: Moment) {
        self.retain(
            inventory,
            pieces,
            |piece| piece.last_used.is_some_and(|used| used < before),
            |cache| match cache.last_used {
                // What stays with a row that is old itself is of no known age; pieces end with their hour.
                Some(used) if used + 3600 > before => format!("used {}", Moment(used).ago(now)),
                _ => "nobody knows when it was last used".into(),
            },
        );
    }

    /// Keeps the last of the pieces, the most recently used ones, with the records that they are built on, as long as no more
    /// than `keep` bytes remain.
    fn keep_recent(&mut self, inventory: &Inventory, pieces: &mut Vec<Piece>, keep: Bytes, staying: u64) {
        let of: BTreeMap<&str, usize> = (pieces.iter().enumerate())
            .flat_map(|(at, piece)| piece.records().iter().map(move |id| (id.as_str(), at)))
            .collect();
        let mut counted = vec![false; pieces.len()];
        let mut count = |at: usize| if std::mem::replace(&mut counted[at], true) { 0 } else { pieces[at].bytes };
        let mut held = Held::new(inventory);
        let stays = held.hold_all_but(&of.keys().copied().collect());
        let mut remaining = staying + stays.iter().filter_map(|id| of.get(id)).map(|at| count(*at)).sum::<u64>();
        let mut first = pieces.len();
        while let Some(at) = first.checked_sub(1) {
            let below = held.hold(pieces[at].records());
            remaining += count(at) + below.iter().filter_map(|id| of.get(id)).map(|at| count(*at)).sum::<u64>();
            if remaining > keep.0 {
                break;
            }
            first = at;
        }
        let mut recent = pieces.split_off(first);
        self.retain(inventory, &mut recent, |_| false, |_| format!("within the {keep} to keep"));
    }

    /// Keeps records that others are built on which stay: BuildKit would not remove them.
    fn keep_parents(&mut self, inventory: &Inventory, pieces: &mut Vec<Piece>) {
        let mut held = Held::new(inventory);
        held.hold_all_but(&pieces.iter().flat_map(Piece::records).map(String::as_str).collect());
        self.retain(
            inventory,
            pieces,
            |piece| !piece.records().iter().any(|id| held.needs(id)),
            |_| "records that stay are built on it".into(),
        );
    }

    /// Puts the pieces of each row together again.
    fn assemble(&mut self, inventory: &Inventory, pieces: Vec<Piece>, rules: &Rules) {
        let mut rows: BTreeMap<usize, Vec<Piece>> = BTreeMap::new();
        for piece in pieces {
            rows.entry(piece.row).or_default().push(piece);
        }
        for (row, pieces) in rows {
            let cache = &inventory.caches[row];
            let act = match &cache.source {
                Source::Records(_) => Act::Prune(pieces.iter().flat_map(Piece::records).cloned().collect()),
                Source::Part { holder, part, sum, .. } => {
                    let hours: Vec<u64> = pieces.iter().filter_map(Piece::hour).collect();
                    let take = match (hours.iter().min(), hours.iter().max()) {
                        (Some(first), Some(last)) => {
                            // A file that was used since then stays.
                            Take::Between(first * 3600, ((last + 1) * 3600).min(sum.last_used + 1))
                        }
                        // What is used while the user thinks it over is old no more.
                        _ if rules.by_age() => Take::Unused(sum.touched),
                        _ => Take::Everything,
                    };
                    Act::Cut { holder: *holder, part: *part, take }
                }
            };
            let bytes = pieces.iter().map(|piece| piece.bytes).sum();
            let files = pieces.iter().map(|piece| piece.files).sum();
            self.steps.push(Step { cache: Cache { bytes, files, ..cache.clone() }, act });
        }
    }
}

impl Piece {
    fn records(&self) -> &[String] {
        match &self.what {
            What::Records(ids) => ids,
            _ => &[],
        }
    }

    fn hour(&self) -> Option<u64> {
        match self.what {
            What::Hour(hour) => Some(hour),
            _ => None,
        }
    }
}

/// What records that stay are built on, near and far.
struct Held<'a> {
    records: BTreeMap<&'a str, &'a CacheRecord>,
    needed: HashSet<&'a str>,
}

impl<'a> Held<'a> {
    fn new(inventory: &'a Inventory) -> Held<'a> {
        let all = inventory.builders.iter().flat_map(|found| &found.records);
        Held { records: all.map(|record| (record.id.as_str(), record)).collect(), needed: HashSet::new() }
    }

    /// Holds all but these. Returns what that needs and was not needed before.
    fn hold_all_but(&mut self, going: &HashSet<&str>) -> Vec<&'a str> {
        let staying = self.records.values().filter(|record| !going.contains(record.id.as_str())).copied();
        self.follow(staying.collect())
    }

    /// Holds these, and returns the same.
    fn hold(&mut self, ids: &[String]) -> Vec<&'a str> {
        self.follow(ids.iter().filter_map(|id| self.records.get(id.as_str()).copied()).collect())
    }

    fn follow(&mut self, mut ahead: Vec<&'a CacheRecord>) -> Vec<&'a str> {
        let mut new = Vec::new();
        while let Some(record) = ahead.pop() {
            for parent in &record.parents {
                if self.needed.insert(parent) {
                    new.push(parent.as_str());
                    ahead.extend(self.records.get(parent.as_str()));
                }
            }
        }
        new
    }

    fn needs(&self, id: &str) -> bool {
        self.needed.contains(id)
    }
}

/// Returns true if there is nothing in a row that could go.
fn is_empty(cache: &Cache) -> bool {
    match &cache.source {
        Source::Records(records) => records.is_empty(),
        Source::Part { sum, .. } => sum.removable_files() == 0 && sum.bytes <= sum.staying,
    }
}

/// Returns why a row may not go, if it may not: the class is law, unless the row was named and the user insists.
fn refusal(cache: &Cache, inventory: &Inventory, rules: &Rules) -> Option<String> {
    let named = match cache.kind {
        Kind::Mount => rules.mounts.iter().any(|name| *name == cache.name || Some(name) == cache.path.as_ref()),
        Kind::Volume => rules.by_path,
        Kind::Layer => false,
    } || cache.tool.is_some_and(|tool| rules.tools.contains(&tool));
    if cache.class.is_deletable() || (named && rules.include_installs) {
        return None;
    }
    Some(match cache.tool {
        _ if matches!(&cache.source, Source::Part { sum, .. } if sum.is_work_tree) => "it is a git work tree".into(),
        None => {
            let other = other_use(cache, inventory).map_or(String::new(), |other| format!(": {other}"));
            format!("not known to be a cache{other}")
        }
        Some(_) => match cache.class {
            Class::Install => "programs or libraries, not downloads".into(),
            Class::Secret => "secrets".into(),
            class => format!("{class}, not downloads"),
        },
    })
}

/// Returns which container has a volume as something else than a cache.
fn other_use(cache: &Cache, inventory: &Inventory) -> Option<String> {
    let Source::Part { holder: Holder::Volume(volume), .. } = cache.source else { return None };
    let mut users = inventory.volumes[volume].cache.users.iter();
    users.find_map(|VolumeUser { container, destination, .. }| {
        let path = destination.as_ref().filter(|path| !catalogue::is_cache_path(path))?;
        Some(format!("container {container} has it at {path}"))
    })
}

/// Returns which running containers use a volume.
fn users(cache: &Cache, inventory: &Inventory) -> Option<String> {
    let Source::Part { holder: Holder::Volume(volume), .. } = cache.source else { return None };
    let users = inventory.volumes[volume].cache.users.iter().filter(|user| user.running);
    let mut names: Vec<&str> = users.map(|user| user.container.as_str()).collect();
    names.dedup();
    (!names.is_empty()).then(|| format!("in use by container {}; `--force-in-use` clears it too", names.join(", ")))
}

/// Splits a row into the pieces that age and size are decided by.
fn split(row: usize, cache: &Cache, rules: &Rules) -> Vec<Piece> {
    match &cache.source {
        Source::Records(records) => {
            let going: Vec<&CacheRecord> = records.iter().filter(|record| !record.in_use).collect();
            let piece = |records: &[&CacheRecord], last_used| Piece {
                row,
                what: What::Records(records.iter().map(|record| record.id.clone()).collect()),
                bytes: records.iter().map(|record| record.clearable_bytes()).sum(),
                files: None,
                last_used,
            };
            match cache.kind {
                Kind::Mount if going.is_empty() => Vec::new(),
                Kind::Mount => vec![piece(&going, cache.last_used)],
                _ => {
                    // Nobody misses what helper builds left.
                    let used = |record: &CacheRecord| match carry::is_of_helpers(record) {
                        true => Some(0),
                        false => record.last_used.or(record.created),
                    };
                    going.iter().map(|record| piece(&[*record], used(record))).collect()
                }
            }
        }
        Source::Part { unit: Unit::File, sum, .. } if rules.by_age() => sum
            .ages
            .iter()
            .map(|(hour, aged)| Piece {
                row,
                what: What::Hour(*hour),
                bytes: aged.bytes,
                files: Some(aged.files),
                // The end of the hour, or the last use of all if that is in it: no file goes early.
                last_used: (*hour > 0).then_some((hour * 3600 + 3599).min(sum.last_used)),
            })
            .collect(),
        Source::Part { sum, .. } => vec![Piece {
            row,
            what: What::Row,
            bytes: sum.bytes.saturating_sub(sum.staying),
            files: Some(sum.removable_files()),
            last_used: cache.last_used,
        }],
    }
}

/// Returns the bytes that pieces take, with what they share.
fn total(inventory: &Inventory, pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.bytes).chain(shared(inventory, pieces).into_iter().map(|(_, bytes)| bytes)).sum()
}

/// Returns the bytes of files with hard links in several parts, each with the index of the piece that goes last of all that
/// have some, if each link may go. Pieces go in their order.
fn shared(inventory: &Inventory, pieces: &[Piece]) -> Vec<(usize, u64)> {
    let of = |row: usize| match &inventory.caches[row].source {
        Source::Part { holder, part, sum, .. } => Some((*holder, *part, sum)),
        Source::Records(_) => None,
    };
    let places: BTreeMap<(Holder, usize, Option<u64>), usize> = (pieces.iter().enumerate())
        .filter_map(|(at, piece)| of(piece.row).map(|(holder, part, _)| ((holder, part, piece.hour()), at)))
        .collect();
    let mut found = Vec::new();
    for (holder, _, sum) in (0..inventory.caches.len()).filter_map(of) {
        for Shared { parts, hour, bytes } in &sum.shared {
            let place = |part: &usize| places.get(&(holder, *part, Some(*hour))).or(places.get(&(holder, *part, None)));
            let all: Option<Vec<&usize>> = parts.iter().map(place).collect();
            found.extend(all.and_then(|all| all.into_iter().max()).map(|last| (*last, *bytes)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inside::measure::{self, Aged, Sum, Tree};
    use crate::inside::remove::{self, Cut};

    fn part(name: &str, class: Class, unit: Unit, sum: Sum) -> Cache {
        Cache {
            kind: Kind::Volume,
            name: name.into(),
            builder: None,
            volume: Some(name.into()),
            path: None,
            language: None,
            tool: None,
            class,
            bytes: sum.bytes,
            files: Some(sum.files),
            exact: true,
            last_used: (sum.last_used > 0).then_some(sum.last_used),
            // No volume stands behind it, and so no container uses it.
            source: Source::Part { holder: Holder::Mount(0), part: 0, unit, sum },
        }
    }

    fn whole(name: &str, bytes: u64, last_used: u64) -> Cache {
        let sum = Sum { bytes, files: 1, last_used, exists: true, ..Sum::default() };
        part(name, Class::Cache, Unit::Whole, sum)
    }

    fn plan(caches: Vec<Cache>, rules: &Rules) -> Plan {
        Plan::new(&Inventory { caches, ..Inventory::default() }, rules, Moment(1_000_000))
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.steps.iter().map(|step| step.cache.name.as_str()).collect()
    }

    #[test]
    fn only_caches_go_and_the_rest_is_told() {
        let sum = || Sum { bytes: 9, files: 1, exists: true, ..Sum::default() };
        let rows = [Class::Cache, Class::Install, Class::State, Class::Secret, Class::Scratch];
        let rows = rows.map(|class| part(class.as_str(), class, Unit::Whole, sum())).to_vec();
        let made = plan(rows, &Rules { include_installs: true, ..Rules::default() });
        assert_eq!(names(&made), ["cache", "scratch"]);
        assert_eq!(made.kept.len(), 3);
        assert_eq!(made.bytes(), Bytes(18));
    }

    #[test]
    fn the_least_recently_used_go_until_enough_is_gone() {
        let rows = || vec![whole("new", 40, 300), whole("old", 30, 100), whole("middle", 20, 200)];
        for (keep, expected) in [(90, vec![]), (89, vec!["old"]), (60, vec!["old"]), (59, vec!["old", "middle"])] {
            let made = plan(rows(), &Rules { keep: Some(Bytes(keep)), ..Rules::default() });
            assert_eq!(names(&made), expected, "{keep}");
            assert_eq!(made.kept.len(), 3 - expected.len());
        }
        assert_eq!(names(&plan(rows(), &Rules { keep: Some(Bytes(0)), ..Rules::default() })).len(), 3);
        // What is too young to go is kept and counted.
        for (keep, expected) in
            [(90, vec![]), (60, vec!["old"]), (59, vec!["old", "middle"]), (0, vec!["old", "middle"])]
        {
            let made = plan(rows(), &Rules { keep: Some(Bytes(keep)), before: Some(250), ..Rules::default() });
            assert_eq!(names(&made), expected, "{keep}");
        }
    }

    #[test]
    fn files_go_by_the_hour_and_units_as_a_whole() {
        let ages = [(1, 10), (2, 20), (9, 30)].map(|(hour, bytes)| (hour, Aged { bytes, files: 1 }));
        let ages = ages.into();
        let sum = Sum { bytes: 60, files: 3, last_used: 9 * 3600, touched: 7, exists: true, ages, ..Sum::default() };
        let rows =
            vec![part("files", Class::Cache, Unit::File, sum.clone()), part("whole", Class::Cache, Unit::Whole, sum)];
        let made = plan(rows.clone(), &Rules { before: Some(3 * 3600), ..Rules::default() });
        assert_eq!((names(&made), made.bytes()), (vec!["files"], Bytes(30)));
        let take = Take::Between(3600, 3 * 3600);
        assert_eq!(made.steps[0].act, Act::Cut { holder: Holder::Mount(0), part: 0, take });
        // The end of an hour decides, so that no file goes early.
        let made = plan(rows.clone(), &Rules { before: Some(3 * 3600 - 1), ..Rules::default() });
        assert_eq!(made.bytes(), Bytes(10));
        // A unit goes only if nothing uses it meanwhile, and so does what was used in the last hour.
        let take = Take::Unused(7);
        let made = plan(rows, &Rules { before: Some(9 * 3600 + 1), ..Rules::default() });
        let until_then = Take::Between(3600, 9 * 3600 + 1);
        assert_eq!(made.steps[0].act, Act::Cut { holder: Holder::Mount(0), part: 0, take: until_then });
        assert_eq!(made.steps[1].act, Act::Cut { holder: Holder::Mount(0), part: 0, take });
    }

    #[test]
    fn what_nobody_knows_the_last_use_of_is_not_old_but_goes_first() {
        let aged = Aged { bytes: 10, files: 1 };
        let sum = |last_used, ages: &[u64]| Sum {
            bytes: 10 * ages.len() as u64,
            files: ages.len() as u64,
            last_used,
            exists: true,
            ages: ages.iter().map(|hour| (*hour, aged)).collect(),
            ..Sum::default()
        };
        let rows = || {
            vec![
                part("mixed", Class::Cache, Unit::File, sum(7200, &[0, 2])),
                part("files", Class::Cache, Unit::File, sum(0, &[0])),
                part("whole", Class::Cache, Unit::Whole, sum(0, &[0])),
            ]
        };
        let made = plan(rows(), &Rules { before: Some(900_000), ..Rules::default() });
        assert_eq!((names(&made), made.bytes()), (vec!["mixed"], Bytes(10)));
        assert!(matches!(made.steps[0].act, Act::Cut { take: Take::Between(7200, 7201), .. }));
        assert_eq!(made.kept.len(), 3);
        assert!(made.kept.iter().all(|kept| kept.why == "nobody knows when it was last used"), "{:?}", made.kept);
        let made = plan(rows(), &Rules { keep: Some(Bytes(10)), ..Rules::default() });
        assert_eq!((names(&made), made.bytes()), (vec!["mixed", "files", "whole"], Bytes(30)));
        assert!(matches!(made.steps[0].act, Act::Cut { take: Take::Between(0, 3600), .. }));
    }

    /// Plans a clear of a tree, with rows for the first two of these parts by file and for the third as a whole, and carries
    /// it out. Returns the files that it lists and the kilobytes that it frees.
    fn clear(root: &std::path::Path, rules: &Rules) -> (u64, u64) {
        let known = ["pip", "go", "uv"].map(str::to_owned).to_vec();
        let tree = Tree { root: root.into(), known: known.clone(), ages: true, ..Tree::default() };
        let measured = measure::all(&[tree], &mut |_, _| ()).remove(0).known;
        let mut rows = Vec::new();
        for (at, sum) in measured.into_iter().enumerate() {
            let unit = if at < 2 { Unit::File } else { Unit::Whole };
            let mut row = part(&known[at], Class::Cache, unit, sum);
            if let Source::Part { part, .. } = &mut row.source {
                *part = at;
            }
            rows.push(row);
        }
        let made = plan(rows, rules);
        let mut takes = vec![Take::Nothing; 4];
        for step in &made.steps {
            if let Act::Cut { part, take, .. } = step.act {
                takes[part] = take;
            }
        }
        let cut = Cut { root: root.into(), known, take: takes, ..Cut::default() };
        let removed = remove::all(&[cut], &mut |_, _| ()).remove(0);
        assert_eq!((made.bytes().0, removed.failed_count), (removed.freed, 0));
        (made.steps.iter().filter_map(|step| step.cache.files).sum(), removed.freed / 1024)
    }

    #[test]
    fn hard_links_go_as_the_plan_says() {
        let all = || Rules::default();
        let before = |hour: u64| Rules { before: Some(hour * 3600), ..Rules::default() };
        let keep = |kilobytes: u64| Rules { keep: Some(Bytes(kilobytes * 1024)), ..Rules::default() };
        for (link, rules, listed_and_freed) in [
            ("pip/http/b", before(11), (1, 64)),
            ("pip/http/b", before(13), (2, 68)),
            ("pip/http/b", keep(8), (1, 64)),
            ("pip/http/b", keep(72), (0, 0)),
            // Two parts by file: the bytes go with the last.
            ("go/b", before(11), (2, 64)),
            ("go/b", keep(8), (2, 64)),
            ("go/b", keep(72), (0, 0)),
            ("go/b", all(), (4, 72)),
            // A part that goes as a whole, or stays.
            ("uv/b", before(11), (1, 0)),
            ("uv/b", before(16), (4, 72)),
            ("uv/b", keep(68), (2, 4)),
            ("uv/b", keep(8), (4, 72)),
            // No cache.
            ("venv/b", before(11), (1, 0)),
            ("venv/b", keep(4), (2, 4)),
            ("venv/b", all(), (3, 8)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (path, kilobytes, hour) in [("pip/a", 64, 10), ("pip/single", 4, 12), ("uv/new", 4, 15)] {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, vec![7; kilobytes * 1024]).unwrap();
                let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(hour * 3600);
                let times = std::fs::FileTimes::new().set_accessed(moment).set_modified(moment);
                std::fs::File::open(path).unwrap().set_times(times).unwrap();
            }
            std::fs::create_dir_all(dir.path().join(link).parent().unwrap()).unwrap();
            std::fs::hard_link(dir.path().join("pip/a"), dir.path().join(link)).unwrap();
            assert_eq!(clear(dir.path(), &rules), listed_and_freed, "{link} {rules:?}");
        }
    }

    fn record(id: &str, parent: &str, bytes: u64, last_used: u64) -> CacheRecord {
        CacheRecord {
            id: id.into(),
            parents: vec![parent.into()],
            kind: "regular".into(),
            bytes,
            last_used: Some(last_used),
            ..CacheRecord::default()
        }
    }

    /// Returns an inventory of one builder with these layers.
    fn layers(records: Vec<CacheRecord>) -> Inventory {
        let row = Cache {
            kind: Kind::Layer,
            builder: Some("b".into()),
            volume: None,
            source: Source::Records(records.clone()),
            ..whole("regular", records.iter().map(|record| record.bytes).sum(), 900_000)
        };
        let docker = crate::docker::endpoint::Endpoint::resolve(&Default::default(), &Default::default());
        let docker = crate::docker::Docker::find(Vec::new(), docker).unwrap();
        let builder = crate::docker::BuilderRef::new(&docker, &Default::default(), true);
        let found = crate::inventory::FoundBuilder { builder, records };
        Inventory { caches: vec![row], builders: vec![found], ..Inventory::default() }
    }

    #[test]
    fn records_go_with_what_is_built_on_them_or_not_at_all() {
        let records =
            vec![record("base", "", 10, 100), record("young", "base", 10, 900_000), record("alone", "", 10, 100)];
        let made = Plan::new(&layers(records), &Rules { before: Some(1000), ..Rules::default() }, Moment(1_000_000));
        assert_eq!(made.steps.len(), 1);
        assert_eq!(made.steps[0].act, Act::Prune(vec!["alone".into()]));
    }

    #[test]
    fn what_recent_records_are_built_on_counts_as_kept() {
        let records =
            || vec![record("base", "", 50, 100), record("alone", "", 30, 200), record("empty", "base", 0, 300)];
        for (keep, expected) in [
            (80, vec![]),
            (79, vec!["alone"]),
            (50, vec!["alone"]),
            // The empty record cannot stay without its base.
            (49, vec!["alone", "base", "empty"]),
        ] {
            let made = Plan::new(
                &layers(records()),
                &Rules { keep: Some(Bytes(keep)), ..Rules::default() },
                Moment(1_000_000),
            );
            let mut going: Vec<&str> = Vec::new();
            for step in &made.steps {
                match &step.act {
                    Act::Prune(ids) => going.extend(ids.iter().map(String::as_str)),
                    other => panic!("{other:?}"),
                }
            }
            going.sort();
            assert_eq!(going, expected, "{keep}");
        }
    }
}
