//! Cache mounts reached by a helper build: the only way in that every builder offers. The build has no network and no
//! base image; its own records are pruned afterwards. It must never pass `--no-cache`: that empties cache mounts.

use std::collections::HashSet;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::helper;
use crate::docker::{BuilderRef, unique_name};
use crate::inside::{self, Job, Line};
use crate::model::{CacheRecord, MountName};

/// Some cache mounts of one builder.
#[derive(Debug)]
pub struct MountPlace {
    pub builder: BuilderRef,
    pub mounts: Vec<MountName>,
}

/// Returns true if a mount of this id can be named in a Dockerfile without being taken for anything else.
/// The mount options are CSV inside shell-like words, so quotes, `$` and backslashes are left alone.
pub fn carriable(mount: &MountName) -> bool {
    let plain = |c: char| c.is_alphanumeric() || " _./:@=+~-".contains(c);
    mount.namespace.chars().all(plain)
        && mount.id.as_ref().is_some_and(|id| !id.is_empty() && id.trim() == id && id.chars().all(plain))
}

impl MountPlace {
    pub fn roots(&self) -> Vec<PathBuf> {
        (0..self.mounts.len()).map(|at| PathBuf::from(format!("/mounts/{at}"))).collect()
    }

    pub fn run(&self, job: &Job, each: &mut (dyn FnMut(Line) + Send)) -> Result<()> {
        let name = unique_name();
        let dir = tempfile::Builder::new().prefix("docker-cache-").tempdir().context("no temporary directory")?;
        let (context, answer) = (dir.path().join("context"), dir.path().join("answer"));
        fs::create_dir(&context)?;
        fs::copy(helper::binary(&self.builder.architecture)?, context.join(&name))?;
        fs::write(context.join("job"), serde_json::to_vec(job)?)?;
        fs::write(context.join("Dockerfile"), self.dockerfile(&name))?;
        // The namespace is a property of the build, so all mounts of one place share it.
        let namespace = self.mounts.first().map(|mount| mount.namespace.as_str()).unwrap_or_default();
        let before = self.builder.records()?.into_iter().map(|record| record.id).collect();
        let _cleaner = Cleaner { builder: &self.builder, name: &name, before };
        self.builder.helper_build(&context, &answer, namespace)?;
        read_answer(&answer.join("answer"), each)
    }

    /// Every file and word of this Dockerfile is ours but the ids, and those are [`carriable`]. The helper's unique
    /// name stands in the description of each record that the build makes, so that all can be found again.
    fn dockerfile(&self, name: &str) -> String {
        let mut mounts = String::new();
        for (root, mount) in self.roots().iter().zip(&self.mounts) {
            let id = mount.id.as_deref().unwrap_or(&mount.target);
            mounts.push_str(&format!("--mount=type=cache,target={},\"id={id}\" ", root.display()));
        }
        format!(
            "FROM scratch AS {name}\nCOPY {name} job /{name}/\n\
             RUN {mounts}[\"/{name}/{name}\", \"{command}\", \"/{name}/job\", \"/{name}/answer\"]\n\
             FROM scratch\nCOPY --from={name} /{name}/answer /\n",
            command = inside::COMMAND
        )
    }
}

fn read_answer(path: &Path, each: &mut (dyn FnMut(Line) + Send)) -> Result<()> {
    use std::io::BufRead;
    let file = fs::File::open(path).context("the helper build left no answer")?;
    for line in BufReader::new(file).lines() {
        each(serde_json::from_str(&line?).context("the helper build's answer makes no sense")?);
    }
    Ok(())
}

/// Prunes the records of the helper build.
struct Cleaner<'a> {
    builder: &'a BuilderRef,
    name: &'a str,
    /// Ids of the records from before the build.
    before: HashSet<String>,
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        // The copy of the build context bears no name of ours, but it is new. Should it be that of another build which
        // began meanwhile, that build sends its files once more.
        let is_context = |record: &CacheRecord| record.kind == "source.local" && !self.before.contains(&record.id);
        prune_all(self.builder, |records| {
            let is_own = |record: &&CacheRecord| record.description.contains(self.name) || is_context(record);
            records.iter().filter(is_own).map(|record| record.id.clone()).collect()
        });
    }
}

/// Prunes the records that `choose` gives the ids of, until there is none or 2 s are over: right after a build BuildKit
/// may still use some, and not tell others. Also after a cancel.
pub(super) fn prune_all(builder: &BuilderRef, choose: impl Fn(&[CacheRecord]) -> Vec<String>) {
    for pause in [20, 50, 100, 300, 600, 900].map(Duration::from_millis) {
        let ids = choose(&builder.records_cleanup().unwrap_or_default());
        if ids.is_empty() {
            return;
        }
        let _ = builder.prune(&ids);
        thread::sleep(pause);
    }
}
