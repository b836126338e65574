//! Bundles in registries, for the commands that read or write them.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use tempfile::TempDir;

use crate::bundle::location::{Location, Reference};
use crate::bundle::registry::Broken;
use crate::bundle::remote::{self, Remote};
use crate::bundle::{Layout, TreeConfig};
use crate::docker::endpoint::Settings;
use crate::docker::{Certificates, Credentials, temporary_dir};
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
                let stage = temporary_dir()?;
                let mut progress = Progress::new("Fetching", telling);
                let remote = remote(settings, reference, false)?;
                let broken = fetch(&remote, stage.path(), &mut |files, bytes| progress.update(files, bytes))?;
                Ok(Source { layout: Layout::open(stage.path())?, broken, _fetched: Some(stage) })
            }
        }
    }
}
