//! How much caches may hold: what a budget is, what counts against it, and what a project needs by itself.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::catalogue::ROWS;
use crate::inventory::Cache;
use crate::model::Bytes;

/// The size that caches should stay within, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(pub Bytes);

/// The names of budgets, and the gigabytes that each stands for: what the recommendations for cache volumes allow at most.
pub const NAMES: [(&str, u64); 3] = [("small", 2), ("medium", 5), ("large", 10)];

/// Lock files of tools that the catalogue cannot warm.
const OTHER_LOCKS: &[&str] =
    &["deno.lock", "Gemfile.lock", "gradle.lockfile", "Package.resolved", "rebar.lock", "renv.lock", "stack.yaml.lock"];

impl FromStr for Budget {
    type Err = String;

    /// Reads `small`, `medium`, `large` or a size.
    fn from_str(text: &str) -> Result<Budget, String> {
        match NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, gigabytes)) => Ok(Budget(Bytes(gigabytes * 1_000_000_000))),
            // Who writes 10 thinks of gigabytes.
            None if text.parse().is_ok_and(|bytes: u64| (1..1_000_000).contains(&bytes)) => {
                Err(format!("{text} needs a unit, as `{text}GB` or `{text}B`"))
            }
            None => text.parse().map(Budget).map_err(|_| "a budget is small, medium, large, or a size as `3GB`".into()),
        }
    }
}

/// Returns true if a file of this name says which packages a project needs.
pub fn is_lock(name: &str) -> bool {
    // Of `requirements*.txt` the plain one counts.
    let is =
        |lock: &&str| lock.split_once('*').map_or(*lock == name, |(start, end)| name.strip_prefix(start) == Some(end));
    OTHER_LOCKS.contains(&name) || ROWS.iter().any(|row| row.warm.locks.iter().any(is))
}

impl fmt::Display for Budget {
    /// Shows the size as it is read back: in full where docker's four digits would round it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.to_string();
        match shown.parse() == Ok(*self) {
            true => f.pad(&shown),
            false => write!(f, "{}B", self.0.0),
        }
    }
}

impl Budget {
    /// Returns the budget of a project with this many lock files: one is a small project, more than four are a monorepo.
    pub fn of_project(locks: usize) -> Budget {
        let (_, gigabytes) = NAMES[match locks {
            0..=1 => 0,
            2..=4 => 1,
            _ => 2,
        }];
        Budget(Bytes(gigabytes * 1_000_000_000))
    }

    /// Compares the caches with the budget. Of the unmeasured ones nobody knows how much counts, and if some are `missing`,
    /// nobody knows how much there is.
    pub fn spent(self, caches: &[Cache], unmeasured: &[Cache], missing: bool) -> Spent {
        let counted = caches.iter().filter(|cache| cache.class.is_deletable());
        let used = counted.map(Cache::clearable_bytes).sum();
        let unmeasured_bytes = unmeasured.iter().map(|cache| cache.bytes).sum();
        Spent { bytes: self.0.0, used_bytes: used, unmeasured_bytes, missing, over: used > self.0.0 }
    }
}

/// What caches use of their budget. Programs, settings and secrets beside them do not count, nor what images share of layers:
/// no clear frees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// Of the budget.
    pub bytes: u64,
    pub used_bytes: u64,
    /// Of mounts of which only a part counts, and that were not looked into.
    pub unmeasured_bytes: u64,
    /// Whether something could not be looked into, so that there is more.
    pub missing: bool,
    /// Even without all that.
    pub over: bool,
}

impl Spent {
    /// Returns true if all is within the budget, whatever is not measured.
    pub fn is_surely_within(&self) -> bool {
        !self.missing && self.used_bytes + self.unmeasured_bytes <= self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_has_a_name_or_a_size() {
        let read = |text: &str| text.parse::<Budget>().ok().map(|budget| budget.0.0);
        assert_eq!(read("medium"), Some(5_000_000_000));
        assert_eq!(read("300MB"), Some(300_000_000));
        assert_eq!((read("10B"), read("1000000")), (Some(10), Some(1_000_000)));
        assert!(["huge", "10", "999999"].into_iter().all(|text| read(text).is_none()));
        for bytes in [5_000_000_000, 300_000, 1_234_567, 0] {
            assert_eq!(read(&Budget(Bytes(bytes)).to_string()), Some(bytes));
        }
        assert!(["go.sum", "requirements.txt", "Gemfile.lock"].into_iter().all(is_lock));
        assert!(!["requirements-dev.txt", "go.mod", ""].into_iter().any(is_lock));
        assert_eq!([0, 1, 2, 4, 5].map(|locks| Budget::of_project(locks).0.0 / 1_000_000_000), [2, 2, 5, 5, 10]);
    }
}
