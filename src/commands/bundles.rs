//! Bundles in registries, for the commands that read or write them.

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::bundle::location::{Location, Reference};
use crate::bundle::remote::Remote;
use crate::bundle::{Layout, TreeConfig};
use crate::docker::endpoint::Settings;
use crate::docker::{Certificates, Credentials};
use crate::report::{Progress, Telling};

/// Looks at a tag of a registry with the login and the certificates that docker has for it.
///
/// # Errors
/// When the registry does not answer or refuses, or the tag is no bundle.
pub fn remote(settings: &Settings, reference: &Reference, push: bool) -> Result<Remote> {
    let credentials = Credentials::of(&reference.host, &settings.dir)?;
    Remote::open(reference, credentials, &Certificates::of(&reference.host, &settings.dir)?, push)
}

/// Makes a directory for blobs on their way, on the disk that `TMPDIR` names; gone with the value.
///
/// # Errors
/// When it cannot be made.
pub fn stage() -> Result<TempDir> {
    tempfile::Builder::new().prefix("docker-cache-").tempdir().context("no directory for temporary files")
}

/// A bundle to read.
#[derive(Debug)]
pub struct Source {
    pub layout: Layout,
    _fetched: Option<TempDir>,
}

impl Source {
    /// Opens a bundle; what is wanted of one in a registry is fetched first. `wanted` is asked of each mount and volume,
    /// and of layers with nothing.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer or refuses.
    pub fn open(
        settings: &Settings,
        location: &Location,
        telling: Telling,
        wanted: impl Fn(Option<&TreeConfig>) -> bool,
    ) -> Result<Source> {
        match location {
            Location::Directory(dir) => Ok(Source { layout: Layout::open(dir)?, _fetched: None }),
            Location::Registry(reference) => {
                let stage = stage()?;
                let mut progress = Progress::new("Fetching", telling);
                remote(settings, reference, false)?
                    .fetch(stage.path(), wanted, &mut |files, bytes| progress.update(files, bytes))?;
                Ok(Source { layout: Layout::open(stage.path())?, _fetched: Some(stage) })
            }
        }
    }
}
