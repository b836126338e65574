//! Bundles in registries, for the commands that read or write them.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::bundle::location::{Location, Reference};
use crate::bundle::registry::Broken;
use crate::bundle::remote::{self, Remote};
use crate::bundle::{Layout, TreeConfig};
use crate::docker::endpoint::Settings;
use crate::docker::{Certificates, Credentials, abandoned, unique_name};
use crate::place::carry::Told;
use crate::report::{Progress, State, Telling};

/// Looks at a tag of a registry with the login and the certificates that docker has for it.
///
/// # Errors
/// When the registry does not answer or refuses, or the tag is no bundle.
pub fn remote(settings: &Settings, reference: &Reference, push: bool) -> Result<Remote> {
    let credentials = Credentials::of(&reference.host, &settings.dir)?;
    Remote::open(reference, credentials, &Certificates::of(&reference.host, &settings.dir)?, push)
}

/// Makes a directory for blobs on their way, on the disk that `TMPDIR` names; gone with the value. Those that killed runs have
/// left there go first.
///
/// # Errors
/// When it cannot be made.
pub fn stage() -> Result<TempDir> {
    stage_in(&std::env::temp_dir())
}

fn stage_in(dir: &Path) -> Result<TempDir> {
    for left in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = left.file_name();
        let is_over = name.to_str().is_some_and(|name| abandoned(name) == Some(name));
        // Not of what a link leads to.
        let is_own = |found: Metadata| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if is_over && left.metadata().is_ok_and(is_own) {
            // What cannot be removed now, the next run removes.
            let _ = fs::remove_dir_all(left.path());
        }
    }
    let named = tempfile::Builder::new().prefix(&unique_name()).rand_bytes(0).tempdir_in(dir);
    named.context("no directory for temporary files")
}

/// Tells how far an export or import is: its own work, and meanwhile blobs on their way from a builder or to one.
#[derive(Debug)]
pub struct Carrying {
    progress: Progress,
    work: State,
    /// Files and bytes of jobs that are over.
    before: (u64, u64),
    travelling: &'static str,
    /// Since when something travels.
    travel: Option<Instant>,
}

impl Carrying {
    /// Begins with the words for the work, of about so many files and bytes, and for what travels: "Receiving".
    pub fn new(what: &'static str, total: (u64, u64), travelling: &'static str, telling: Telling) -> Carrying {
        let work = State { what, total: Some(total), started: Instant::now(), files: 0, bytes: 0 };
        let mut progress = Progress::new(what, telling);
        progress.show(work);
        Carrying { progress, work, before: (0, 0), travelling, travel: None }
    }

    pub fn tell(&mut self, told: Told) {
        match told {
            Told::Done { files, bytes } => {
                if self.travel.is_some() {
                    // From builder to builder: what was packed has travelled, and now is unpacked.
                    self.next();
                }
                (self.work.files, self.work.bytes) = (self.before.0 + files, self.before.1 + bytes);
                self.progress.show(self.work);
            }
            Told::Travelled { bytes, of } => {
                let started = *self.travel.get_or_insert_with(Instant::now);
                self.progress.show(State { what: self.travelling, total: Some((0, of)), started, files: 0, bytes });
            }
        }
    }

    /// Ends a job: the next one counts from nothing again.
    pub fn next(&mut self) {
        self.travel = None;
        self.before = (self.work.files, self.work.bytes);
    }
}

/// A bundle to read.
#[derive(Debug)]
pub struct Source {
    pub layout: Layout,
    /// What a registry does not have of it, by the digest of the entry.
    pub broken: HashMap<String, Broken>,
    _fetched: Option<TempDir>,
}

impl Source {
    /// Opens a bundle; what is wanted of one in a registry is fetched first. `wanted` is asked of each mount and volume,
    /// and of layers with nothing.
    ///
    /// # Errors
    /// When there is none, what is wanted is not whole, or the registry does not answer or refuses.
    pub fn open(
        settings: &Settings,
        location: &Location,
        telling: Telling,
        wanted: impl Fn(Option<&TreeConfig>) -> bool,
    ) -> Result<Source> {
        Source::by(settings, location, telling, |remote, dir, progress| {
            remote.fetch(dir, wanted, progress).map(|()| HashMap::new())
        })
    }

    /// Opens a bundle to prove it: as much of it as there is.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer or refuses.
    pub fn open_all(settings: &Settings, location: &Location, telling: Telling) -> Result<Source> {
        Source::by(settings, location, telling, Remote::fetch_all)
    }

    fn by(
        settings: &Settings,
        location: &Location,
        telling: Telling,
        fetch: impl FnOnce(&Remote, &Path, remote::Progress<'_>) -> Result<HashMap<String, Broken>>,
    ) -> Result<Source> {
        match location {
            Location::Directory(dir) => {
                Ok(Source { layout: Layout::open(dir)?, broken: HashMap::new(), _fetched: None })
            }
            Location::Registry(reference) => {
                let stage = stage()?;
                let mut progress = Progress::new("Fetching", telling);
                let remote = remote(settings, reference, false)?;
                let broken = fetch(&remote, stage.path(), &mut |files, bytes| progress.update(files, bytes))?;
                Ok(Source { layout: Layout::open(stage.path())?, broken, _fetched: Some(stage) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_has_left_goes_with_the_next_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let running = stage_in(dir.path()).unwrap();
        // No process has this id: it is above what Linux gives.
        let gone = || unique_name().replace(&format!("-{}-", std::process::id()), "-99999999-");
        let [left, file, link, of_user] = [gone(), gone(), gone(), format!("my-{}", gone())];
        let [left, file, link, of_user] = [left, file, link, of_user].map(|name| dir.path().join(name));
        let elsewhere = dir.path().join("elsewhere");
        for folder in [&left, &of_user, &elsewhere] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("blob"), "").unwrap();
        }
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        stage_in(dir.path()).unwrap();
        assert!(!left.exists());
        for stays in [running.path(), &file, &link, &of_user.join("blob"), &elsewhere.join("blob")] {
            assert!(stays.exists(), "{}", stays.display());
        }
    }
}
