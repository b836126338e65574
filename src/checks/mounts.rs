//! Who writes to cache mounts without being root, and who owns what in them. Pure: Dockerfiles and what a look into the
//! mounts told go in, findings come out.

use std::collections::{BTreeMap, BTreeSet};

use super::caches::is_closed;
use super::project::Project;
use super::steps::Facts as Steps;
use super::{Finding, Severity};
use crate::dockerfile::Dockerfile;
use crate::inside::own::Owner;
use crate::model::entries;
use crate::project::Kind;
use crate::report::quote;

/// A step that writes to a cache mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    pub file: String,
    /// Of the mount.
    pub line: u32,
    /// As `USER` has it.
    pub user: String,
    pub uid: u32,
    /// `None` if only the image knows.
    pub gid: Option<u32>,
    /// The Dockerfile takes the user's number from a build argument.
    pub has_user_uid: bool,
}

/// A cache mount as Dockerfiles name it, and who but root writes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub id: String,
    /// `uid=1000,mode=0700`, or empty.
    pub options: String,
    pub target: String,
    pub writers: Vec<Writer>,
}

/// The same, and who owns what in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedMount {
    pub written: Written,
    pub builder: String,
    /// Number of entries of each owner.
    pub owners: Vec<(Owner, u64)>,
}

/// Returns the mounts that steps of the project write to without being root; what variables or other images decide is left
/// out.
pub fn written(project: &Project) -> Vec<Written> {
    let mut found: BTreeMap<(String, String), Written> = BTreeMap::new();
    for file in project.files.distinct().filter(|file| file.kind == Kind::Dockerfile) {
        let read = Dockerfile::parse(&file.text);
        let steps = Steps::new(&file.path, &read, &file.around);
        for run in &steps.runs {
            let scope = steps.scope(run);
            let Some(uid) = scope.uid().filter(|uid| *uid != 0) else { continue };
            let commands = steps.commands(run);
            if !commands.is_empty() && commands.iter().all(|command| command.sudo) {
                continue;
            }
            let user = scope.user.clone().unwrap_or_default();
            for mount in run.mounts.iter().filter(|mount| mount.is_cache()) {
                let (Some(id), Some(target)) = (mount.id(), &mount.target) else { continue };
                let told =
                    ["uid", "gid", "mode"].iter().filter_map(|name| Some(format!("{name}={}", mount.option(&[name])?)));
                let options = told.collect::<Vec<_>>().join(",");
                if mount.option(&["from", "source"]).is_some() || id.contains('$') || options.contains('$') {
                    continue;
                }
                let written = found.entry((id.to_owned(), options.clone())).or_insert_with(|| Written {
                    id: id.to_owned(),
                    options,
                    target: target.clone(),
                    writers: Vec::new(),
                });
                written.writers.push(Writer {
                    file: file.path.clone(),
                    line: mount.line,
                    user: user.clone(),
                    uid,
                    gid: user.split_once(':').and_then(|(_, group)| group.parse().ok()),
                    has_user_uid: scope.env.contains_key("USER_UID"),
                });
            }
        }
    }
    found.into_values().collect()
}

impl Written {
    fn option(&self, name: &str) -> Option<u32> {
        self.options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    }
}

impl OwnedMount {
    /// Returns the owner and group to give all to, if what is in it has to be given to its only writer.
    pub fn gift(&self) -> Option<(u32, u32)> {
        let uids: BTreeSet<u32> = self.written.writers.iter().map(|writer| writer.uid).collect();
        let writer = self.written.writers.first().filter(|_| uids.len() == 1)?;
        // Without an owner or a mode of its own the mount belongs to root, and the Dockerfile is what has to be changed.
        let is_own = !self.written.options.is_empty();
        let gid = writer.gid.or_else(|| self.written.option("gid")).unwrap_or(0);
        (is_own && !self.closed(writer).is_empty()).then_some((writer.uid, gid))
    }

    /// Returns the owners of what a writer cannot write to, and the number of their entries.
    fn closed(&self, writer: &Writer) -> BTreeMap<(u32, u32), u64> {
        let mut closed = BTreeMap::new();
        for (owner, count) in &self.owners {
            // A group that is not known may be the right one.
            if is_closed(owner, (writer.uid, writer.gid.unwrap_or(owner.gid))) {
                *closed.entry((owner.uid, owner.gid)).or_default() += count;
            }
        }
        closed
    }

    /// Returns the owners beside `to`, and the number of their entries.
    pub fn others(&self, to: (u32, u32)) -> BTreeMap<(u32, u32), u64> {
        let mut others = BTreeMap::new();
        for (owner, count) in self.owners.iter().filter(|(owner, _)| (owner.uid, owner.gid) != to) {
            *others.entry((owner.uid, owner.gid)).or_default() += count;
        }
        others
    }

    /// Returns what is wrong, for each step that cannot write.
    pub fn findings(&self) -> Vec<Finding> {
        let Written { id, options, writers, .. } = &self.written;
        let found = writers.iter().map(|writer| (writer, self.closed(writer))).filter(|(_, closed)| !closed.is_empty());
        let found = found.map(|(writer, closed)| {
            let count: u64 = closed.values().sum();
            let entries = entries(count);
            let shown: Vec<String> = closed.keys().map(|(uid, gid)| format!("{uid}:{gid}")).collect();
            let mut remedies = Vec::new();
            if !options.contains("uid=") {
                remedies.push(format!("give the mount `uid={}`", writer.uid));
            }
            match closed.iter().max_by_key(|(_, count)| **count) {
                Some(((uid, _), _)) if *uid != 0 && writer.has_user_uid => {
                    remedies.push(format!("build with `--build-arg USER_UID={uid}`"));
                }
                _ => {}
            }
            if self.gift().is_some() {
                remedies.push("change the owner of what is in it".into());
            }
            let message = format!(
                "user `{}` may not write to {entries} of the cache mount `{id}`, which belong to {} in builder {}: {}",
                writer.user,
                shown.join(", "),
                self.builder,
                if remedies.is_empty() { "let its users be one".into() } else { remedies.join(", or ") }
            );
            let mut finding = Finding::new(Severity::Warning, message);
            finding.file = Some(writer.file.clone());
            finding.line = Some(writer.line);
            match self.gift() {
                Some(_) => finding.command(fix_command(&writer.file)),
                None => finding,
            }
        });
        found.collect()
    }
}

/// Returns the command that gives what is in mounts to whoever writes there.
fn fix_command(file: &str) -> String {
    format!("docker cache doctor --fix --check mount-owner {}", quote(file))
}
