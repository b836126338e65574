//! Cache mounts reached by a helper build: the only way in that every builder offers. The build has no network and no
//! base image; its own records are pruned afterwards where that harms no others. It must never pass `--no-cache`: that
//! empties cache mounts.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::carry::{self, Sharing, Telling, Told};
use crate::docker::BuilderRef;
use crate::inside::{Job, Line};
use crate::model::{CacheRecord, Mount};

/// Some cache mounts of one builder.
#[derive(Debug)]
pub struct MountPlace {
    pub builder: BuilderRef,
    /// All of one namespace, which is a property of the build.
    pub mounts: Vec<Mount>,
}

impl MountPlace {
    /// Returns the place of these mounts, whatever their targets: those may lie in each other.
    pub fn new(builder: &BuilderRef, mounts: impl Iterator<Item = Mount>) -> MountPlace {
        let mounts = mounts.map(|mount| Mount { target: String::new(), ..mount });
        MountPlace { builder: builder.clone(), mounts: mounts.collect() }
    }

    pub fn roots(&self) -> Vec<PathBuf> {
        self.mounts.iter().enumerate().map(|(at, mount)| mount.root(at)).collect()
    }

    pub fn run(&self, job: &Job, each: &mut (dyn FnMut(Line) + Send)) -> Result<()> {
        let mut tell = |told| match told {
            Told::Done { files, bytes } => each(Line::Progress { files, bytes }),
            Told::Travelled { .. } => {}
        };
        let (job, telling) = (|_: &Path| job.clone(), Telling::new(&mut tell));
        let answer = carry::build(self, |_| Sharing::Shared, &[], job, false, None, &telling)?;
        carry::lines(&answer[..], each)
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
