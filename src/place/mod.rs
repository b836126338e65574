//! Reaches the inside of volumes and cache mounts the cheapest way that is right: by path, by container, by build.
//! Commands run a job on a place and do not know which way it was.

pub mod between;
mod build;
pub mod carry;
mod container;
mod helper;
pub mod links;
pub mod warm;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use self::build::MountPlace;
pub use self::container::ContainerCleaner;
use crate::docker::{BuilderRef, Docker, Info, Volume};
use crate::inside::find::Search;
use crate::inside::measure::{Measured, Tree};
use crate::inside::{self, Job, Line};
use crate::model::{CacheRecord, Disk};

/// Where the engine of this host has its configuration, and where it keeps everything if that says nothing else.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";
pub const DATA_ROOT: &str = "/var/lib/docker";

/// Returns the file system that a directory of this host is on.
pub fn disk(path: &str) -> rustix::io::Result<Disk> {
    let found = rustix::fs::statvfs(path)?;
    let bytes = |blocks| blocks * found.f_frsize;
    Ok(Disk { path: path.into(), total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
}

/// What a job may do to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Some volumes of one engine, or some cache mounts of one builder, that a job can run on.
#[derive(Debug)]
pub enum Place {
    /// Directories of this host.
    Here(Vec<PathBuf>),
    /// Volumes mounted into a helper container.
    Container { docker: Docker, info: Info, volumes: Vec<String>, access: Access },
    /// Cache mounts of a helper build.
    Build(MountPlace),
}

impl Place {
    /// Returns the way to these volumes: by path if the engine is provably this host and all can be read, else by one
    /// container for all of them. The volumes must exist: docker would create them.
    pub fn of_volumes(docker: &Docker, info: &Info, volumes: &[&Volume], access: Access) -> Place {
        let here = is_here(docker, info) && volumes.iter().all(|volume| is_plain(volume, info, access));
        if here {
            return Place::Here(volumes.iter().map(|volume| PathBuf::from(&volume.mountpoint)).collect());
        }
        Place::Container {
            docker: docker.clone(),
            info: info.clone(),
            volumes: volumes.iter().map(|volume| volume.name.clone()).collect(),
            access,
        }
    }

    /// Returns where the volumes or mounts are while a job runs, in their order.
    pub fn roots(&self) -> Vec<PathBuf> {
        match self {
            Place::Here(roots) => roots.clone(),
            Place::Container { volumes, .. } => container::roots(volumes),
            Place::Build(mounts) => mounts.roots(),
        }
    }

    /// Runs a job there and hands on each line of its answer.
    ///
    /// # Errors
    /// When the place cannot be reached or the job fails as a whole.
    pub fn run(&self, job: &Job, each: &mut (dyn FnMut(Line) + Send)) -> Result<()> {
        match self {
            Place::Here(_) => inside::perform(job, each),
            Place::Container { docker, info, volumes, access } => {
                container::run(docker, info, volumes, *access, job, each)
            }
            Place::Build(mounts) => mounts.run(job, each),
        }
    }

    /// Runs a job there, tells `progress` of files and bytes, and returns what `pick` picks of its answer.
    ///
    /// # Errors
    /// See [`Place::run`]; also when there is no such line.
    pub fn ask<T: Send>(
        &self,
        job: &Job,
        progress: &mut (dyn FnMut(u64, u64) + Send),
        pick: fn(Line) -> Option<T>,
    ) -> Result<T> {
        let mut answer = None;
        self.run(job, &mut |line| match line {
            Line::Progress { files, bytes } => progress(files, bytes),
            line => answer = pick(line).or(answer.take()),
        })?;
        answer.context("the helper gave no answer")
    }

    /// Measures trees below the roots.
    ///
    /// # Errors
    /// See [`Place::ask`].
    pub fn measure(&self, trees: Vec<Tree>, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<Vec<Measured>> {
        self.ask(&Job::Measure(trees), progress, |line| match line {
            Line::Measured(measured) => Some(measured),
            _ => None,
        })
    }

    /// Returns the names that fit the patterns of each root, in their order. Changes nothing.
    ///
    /// # Errors
    /// See [`Place::ask`].
    pub fn find(&self, paths: Vec<Vec<String>>) -> Result<Vec<Vec<String>>> {
        let searches = self.roots().into_iter().zip(paths).map(|(root, paths)| Search { root, paths });
        self.ask(&Job::Find(searches.collect()), &mut |_, _| (), |line| match line {
            Line::Names(names) => Some(names),
            _ => None,
        })
    }
}

/// Removes the helper containers and images that killed runs of this program left in an engine.
pub fn sweep(docker: &Docker) {
    // What cannot be asked or removed now, the next run removes.
    for name in docker.abandoned_helpers().unwrap_or_default() {
        drop(container::Cleaner { docker, name: &name });
    }
}

/// Prunes what runs of this program left in a builder, if these records show some or it had reason to leave some since.
pub fn sweep_records(builder: &BuilderRef, records: &[CacheRecord]) {
    if builder.forgets_when_pruned || !carry::left(records).is_empty() {
        build::prune_all(builder, carry::left);
    }
}

/// Returns true if the engine runs on this host, and sees the same files: the socket is local, and the engine's own id
/// file (Engine 24 and later) holds the id that the engine tells.
pub fn is_here(docker: &Docker, info: &Info) -> bool {
    let local = docker.endpoint.host.as_deref().is_none_or(|host| host.starts_with("unix://"));
    let id = std::fs::read_to_string(Path::new(&info.docker_root_dir).join("engine-id")).unwrap_or_default();
    local && !info.id.is_empty() && id.trim() == info.id
}

/// Makes sure that a bundle and a volume do not lie in each other: an import would replace what it reads, and an export pack
/// what it writes.
///
/// # Errors
/// When they do.
pub fn ensure_apart(bundle: &Path, volume: &Volume) -> Result<()> {
    let bundle = resolved(bundle)?;
    // By their inodes, for a bind mount has another path.
    let inode = |path: &Path| path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
    let lies_in = |path: &Path, above: &Path| {
        let above = inode(above);
        above.is_some() && path.ancestors().any(|path| inode(path) == above)
    };
    let roots = volume.directories().filter(|path| path.starts_with('/'));
    for root in roots.filter_map(|path| Path::new(path).canonicalize().ok()) {
        ensure!(
            !lies_in(&bundle, &root) && !lies_in(&root, &bundle),
            "the bundle {} and volume {} lie in each other\nhint: name a directory outside of {}",
            bundle.display(),
            volume.name,
            root.display()
        );
    }
    Ok(())
}

/// Returns where a path leads that may not be there yet: what is not there counts as a directory, as it will be one.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    Ok(path.components().fold(PathBuf::new(), |mut at, part| {
        if part == Component::ParentDir {
            at.pop();
            return at;
        }
        let at = at.join(part);
        at.canonicalize().unwrap_or(at)
    }))
}

/// Returns true for a volume that is a plain directory of the engine. One with options (nfs, bind, tmpfs) is only
/// mounted while a container uses it.
fn is_plain(volume: &Volume, info: &Info, access: Access) -> bool {
    let path = Path::new(&volume.mountpoint);
    let wanted = match access {
        Access::Read => rustix::fs::Access::READ_OK | rustix::fs::Access::EXEC_OK,
        Access::Write => rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    };
    volume.driver == "local"
        && volume.options.as_ref().is_none_or(|options| options.is_empty())
        && path.starts_with(Path::new(&info.docker_root_dir).join("volumes"))
        // Docker follows a link there, and no job does.
        && path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
        && rustix::fs::access(path, wanted).is_ok()
        // Only root may read what other users have put there.
        && rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_in_a_volume_is_found_however_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume/_data");
        std::fs::create_dir_all(root.join("pip")).unwrap();
        std::os::unix::fs::symlink(&root, dir.path().join("link")).unwrap();
        let volume = Volume { mountpoint: root.display().to_string(), ..Default::default() };
        for inside in ["volume/_data", "volume/_data/pip/new/bundle", "volume", "link", "link/new", "none/../link/new"]
        {
            ensure_apart(&dir.path().join(inside), &volume).unwrap_err();
        }
        for outside in ["bundle", "volume/_data2", "volume/bundle/new"] {
            ensure_apart(&dir.path().join(outside), &volume).unwrap();
        }
        let options = Some([("device".into(), dir.path().join("link").display().to_string())].into());
        let bound = Volume { options, ..Default::default() };
        ensure_apart(&root.join("pip"), &bound).unwrap_err();
    }
}
