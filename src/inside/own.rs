//! Tells who owns what in trees, and gives parts of them to another owner: entries themselves, never what links point to.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, fstat, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::measure::Tree;
use super::walk::{self, Counters, Folder, Troubles, Visit};

/// Who owns what in a tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Owned {
    /// The owners of each known path, and last of what none of them covers, with the number of their entries, directories
    /// included.
    pub parts: Vec<Vec<(Owner, u64)>>,
    /// The first of the entries that could not be read, each with the reason.
    pub unreadable: Vec<String>,
    /// Number of entries that could not be read.
    pub unreadable_count: u64,
}

/// An owner, and who else may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    pub group_writes: bool,
    /// Also true for links, whose mode means nothing.
    pub all_write: bool,
}

/// A tree to give away in parts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gift {
    pub root: PathBuf,
    /// The paths that tell the parts apart, as in [`Tree::known`].
    pub known: Vec<String>,
    /// The new owner and group of each, and last of what none of them covers.
    pub to: Vec<Option<(u32, u32)>>,
}

/// What became of a [`Gift`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Given {
    pub changed: u64,
    /// The first of the entries that could not be changed, each with the reason.
    pub failed: Vec<String>,
    /// Number of entries that could not be changed.
    pub failed_count: u64,
}

/// Returns who owns what in each tree.
pub fn owners(trees: &[Tree], progress: &mut (dyn FnMut(u64, u64) + Send)) -> Vec<Owned> {
    let counters = Counters::default();
    let counts: Vec<Count> = trees
        .iter()
        .map(|tree| Count {
            parts: (0..=tree.known.len()).map(|_| Mutex::default()).collect(),
            counters: &counters,
            unreadable: Troubles::default(),
        })
        .collect();
    let walks = trees.iter().zip(&counts).map(|(tree, count)| (&tree.root, &tree.known, count));
    walk::all(walks, &counters, progress);
    let finish = |count: Count| {
        let parts = count.parts.into_iter().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner));
        let parts = parts.map(|owners| owners.into_iter().collect()).collect();
        let (unreadable, unreadable_count) = count.unreadable.finish();
        Owned { parts, unreadable, unreadable_count }
    };
    counts.into_iter().map(finish).collect()
}

struct Count<'a> {
    /// The known paths, then the rest.
    parts: Vec<Mutex<BTreeMap<Owner, u64>>>,
    counters: &'a Counters,
    unreadable: Troubles,
}

impl Count<'_> {
    fn add(&self, part: usize, stat: &Stat) {
        let mode = Mode::from_raw_mode(stat.st_mode);
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let owner = Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
            group_writes: mode.contains(Mode::WGRP),
            all_write: mode.contains(Mode::WOTH) || is_link,
        };
        *self.parts[part].lock().unwrap_or_else(PoisonError::into_inner).entry(owner).or_default() += 1;
        self.counters.files.fetch_add(1, Relaxed);
    }
}

impl Visit for Count<'_> {
    type Local = ();

    fn folder(&self, folder: &Folder) {
        self.add(folder.part, &folder.stat);
    }

    fn entry(&self, folder: &Folder, name: &CStr, part: usize, (): &mut ()) {
        match statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => self.add(part, &stat),
            // Deleted since the directory was read.
            Err(Errno::NOENT) => {}
            Err(error) => self.refused(folder.path(name), error),
        }
    }

    fn refused(&self, path: String, error: Errno) {
        self.unreadable.add(path, error);
    }
}

/// Gives all trees away side by side; calls `progress` with the entries changed so far, five times a second. A cancel
/// ends it early, which does no harm: the same gift goes on with what still differs.
pub fn give(gifts: &[Gift], progress: &mut (dyn FnMut(u64, u64) + Send)) -> Vec<Given> {
    let counters = Counters::default();
    let givings: Vec<Giving> = gifts
        .iter()
        .map(|gift| Giving {
            to: &gift.to,
            counters: &counters,
            changed: AtomicU64::new(0),
            failed: Troubles::default(),
        })
        .collect();
    let walks = gifts.iter().zip(&givings).map(|(gift, giving)| (&gift.root, &gift.known, giving));
    walk::all(walks, &counters, progress);
    let finish = |giving: Giving| {
        let (failed, failed_count) = giving.failed.finish();
        Given { changed: giving.changed.into_inner(), failed, failed_count }
    };
    givings.into_iter().map(finish).collect()
}

struct Giving<'a> {
    to: &'a [Option<(u32, u32)>],
    counters: &'a Counters,
    changed: AtomicU64,
    failed: Troubles,
}

/// The bits that a change of owner takes from a file.
const SET_ID: Mode = Mode::SUID.union(Mode::SGID);

impl Giving<'_> {
    /// Returns the owner and group to set, if they differ.
    fn wanted(&self, part: usize, stat: &Stat) -> Option<(Option<Uid>, Option<Gid>)> {
        let (uid, gid) = self.to.get(part).copied().flatten()?;
        let differs = stat.st_uid != uid || stat.st_gid != gid;
        differs.then(|| (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
    }

    fn count(&self, path: impl Fn() -> String, done: rustix::io::Result<()>) {
        match done {
            Ok(()) => {
                self.changed.fetch_add(1, Relaxed);
                self.counters.files.fetch_add(1, Relaxed);
            }
            // Deleted since the directory was read.
            Err(Errno::NOENT) => {}
            Err(error) => self.refused(path(), error),
        }
    }
}

impl Visit for Giving<'_> {
    type Local = ();

    fn enters(&self, part: usize, leads_on: bool) -> bool {
        leads_on || self.to.get(part).is_some_and(Option::is_some)
    }

    fn entry(&self, folder: &Folder, name: &CStr, part: usize, (): &mut ()) {
        let stat = match statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.count(|| folder.path(name), Err(error)),
        };
        let Some((uid, gid)) = self.wanted(part, &stat) else { return };
        let mode = Mode::from_raw_mode(stat.st_mode);
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let done = if is_file && mode.intersects(SET_ID) {
            // Opened, so that owner and mode are set on one and the same file.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            openat(&folder.fd, name, flags, Mode::empty()).and_then(|fd| {
                let mode = Mode::from_raw_mode(fstat(&fd)?.st_mode);
                fchown(&fd, uid, gid)?;
                fchmod(&fd, mode)
            })
        } else {
            chownat(&folder.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        };
        self.count(|| folder.path(name), done);
    }

    /// After everything below it: while the directory is not given, the walk is not done.
    fn done(&self, folder: &Folder) {
        if let Some((uid, gid)) = self.wanted(folder.part, &folder.stat) {
            self.count(|| folder.path(c""), fchown(&folder.fd, uid, gid));
        }
    }

    fn refused(&self, path: String, error: Errno) {
        self.failed.add(path, error);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn own(root: &Path, known: &[&str], to: &[Option<(u32, u32)>]) -> Given {
        let known = known.iter().map(ToString::to_string).collect();
        give(&[Gift { root: root.into(), known, to: to.to_vec() }], &mut |_, _| ()).remove(0)
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let roots = [dir.path().into(), dir.path().join("gone")];
        let trees = roots.map(|root| Tree { root, ..Tree::default() });
        let [there, gone] = owners(&trees, &mut |_, _| ()).try_into().unwrap();
        assert_eq!((there.parts[0].len(), there.unreadable_count), (1, 0));
        assert_eq!((gone.parts[0].len(), gone.unreadable_count), (0, 1));
        assert!(gone.unreadable[0].contains("No such file"), "{:?}", gone.unreadable);
    }

    #[test]
    fn only_entries_of_the_part_that_differ_change_and_modes_stay() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("precious"), "1").unwrap();
        for (file, mode) in [("pip/a/file", 0o644), ("pip/tool", 0o6755), ("pip/token", 0o600), ("npm/file", 0o644)] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "1").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink(outside.path().join("precious"), dir.path().join("pip/link")).unwrap();
        symlink(outside.path(), dir.path().join("pip/dir")).unwrap();
        std::os::unix::fs::chown(dir.path().join("pip/a/file"), Some(1000), Some(1000)).unwrap();
        let stat = |path: &str| dir.path().join(path).symlink_metadata().unwrap();
        let modes = || ["pip", "pip/a", "pip/tool", "pip/token"].map(|path| stat(path).mode());
        let (before, changed) = (modes(), stat("pip/a/file").ctime_nsec());
        let trees = [Tree { root: dir.path().into(), known: vec!["pip".into()], ..Tree::default() }];
        let counted = owners(&trees, &mut |_, _| ()).remove(0).parts.remove(0);
        let others: u64 = counted.iter().filter(|(owner, _)| owner.uid != 1000).map(|(_, count)| count).sum();
        let given = own(dir.path(), &["pip"], &[Some((1000, 1000)), None]);
        assert_eq!(given, Given { changed: others, ..Given::default() });
        assert_eq!(others, 6);
        for path in ["pip", "pip/a", "pip/tool", "pip/token", "pip/link", "pip/dir"] {
            assert_eq!((stat(path).uid(), stat(path).gid()), (1000, 1000), "{path}");
        }
        assert_eq!(modes(), before);
        assert_eq!(stat("pip/a/file").ctime_nsec(), changed);
        assert_eq!((stat("npm/file").uid(), stat("npm").uid()), (0, 0));
        assert_eq!(outside.path().metadata().unwrap().uid(), 0);
        assert_eq!(outside.path().join("precious").metadata().unwrap().uid(), 0);
        assert_eq!(own(dir.path(), &["pip"], &[Some((1000, 1000)), None]).changed, 0);
    }
}
