//! Walks trees by many threads, for jobs that count, remove or change what they find. Folders are opened from their parents,
//! links are not followed and mount points are not crossed, so a walk stays inside its tree whatever happens there.

use std::ffi::{CStr, CString};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rayon::ThreadPoolBuilder;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::dirs::DIRECTORY;
use super::rules::{At, Rules};
use super::shown;
use super::unpack::STAGING;
use crate::cancel;

/// A folder that the walk is in.
#[derive(Debug)]
pub struct Folder {
    pub fd: OwnedFd,
    /// Empty for the root.
    pub name: CString,
    pub above: Option<Arc<Folder>>,
    /// The part that the folder itself belongs to.
    pub part: usize,
    /// True for the root and for what a path of the tree names or leads through, but nothing at or below one that ends in `/`.
    pub named: bool,
    pub stat: Stat,
    /// Whether the visitor has opened it to writing; it is as it was again once all below it is done.
    pub opened: AtomicBool,
}

impl Folder {
    /// Returns true if its part begins here: the root, or what a path names.
    pub fn is_top(&self) -> bool {
        self.named && self.above.as_ref().is_none_or(|above| above.part != self.part)
    }

    /// Returns the path of an entry below the root, for messages.
    pub fn path(&self, last: &CStr) -> String {
        let mut names = vec![last.to_bytes(), self.name.to_bytes()];
        let mut above = &self.above;
        while let Some(folder) = above {
            names.push(folder.name.to_bytes());
            above = &folder.above;
        }
        names.reverse();
        names.retain(|name| !name.is_empty());
        match names.is_empty() {
            true => ".".into(),
            false => shown(&names.join(&b'/')),
        }
    }
}

/// What a job does on its way. Calls come from many threads.
pub trait Visit: Sync {
    /// Sums of one folder, so that threads do not meet at every entry.
    type Local: Default;

    /// Tells whether a folder is entered that belongs to `part`; `leads_on` if other parts may lie below it.
    fn enters(&self, _part: usize, _leads_on: bool) -> bool {
        true
    }

    /// Sees a folder before its entries.
    fn folder(&self, _folder: &Folder) {}

    /// Sees an entry that is no folder.
    fn entry(&self, folder: &Folder, name: &CStr, part: usize, local: &mut Self::Local);

    /// Sees the sums of a folder's own entries, which have all been visited; folders below it may not.
    fn listed(&self, _folder: &Folder, _local: Self::Local) {}

    /// Sees a folder after everything below it.
    fn done(&self, _folder: &Folder) {}

    /// Is told what could not be opened, read or changed.
    fn refused(&self, path: String, error: Errno);

    /// Is told of a mount point, which is not entered.
    fn other_mount(&self, _path: String) {}
}

/// The first of the entries that something went wrong with, and how many there are.
#[derive(Debug, Default)]
pub struct Troubles {
    named: Mutex<Vec<String>>,
    count: AtomicU64,
}

/// How many entries are named.
const NAMED: usize = 20;

impl Troubles {
    pub fn add(&self, path: String, error: Errno) {
        self.tell(format!("{path}: {}", io::Error::from(error)));
    }

    pub fn tell(&self, trouble: String) {
        self.count.fetch_add(1, Relaxed);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED {
            named.push(trouble);
        }
    }

    /// Returns the first ones, sorted, and the number of all.
    pub fn finish(self) -> (Vec<String>, u64) {
        let mut named = self.named.into_inner().unwrap_or_else(PoisonError::into_inner);
        named.sort();
        (named, self.count.into_inner())
    }
}

/// How far a job is.
#[derive(Debug, Default)]
pub struct Counters {
    pub files: AtomicU64,
    pub bytes: AtomicU64,
}

impl Counters {
    /// Takes back what is done once more.
    pub fn take_back(&self, files: u64, bytes: u64) {
        for (counter, counted) in [(&self.files, files), (&self.bytes, bytes)] {
            let _ = counter.fetch_update(Relaxed, Relaxed, |all| Some(all.saturating_sub(counted)));
        }
    }

    /// Does something and meanwhile calls `progress` with files and bytes so far, five times a second.
    pub fn telling<T>(&self, progress: &mut (dyn FnMut(u64, u64) + Send), work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            // Dropped at the end of the work, and in a panic: so the thread ends.
            let (_working, done) = channel::<()>();
            scope.spawn(move || {
                while done.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
                    progress(self.files.load(Relaxed), self.bytes.load(Relaxed));
                }
            });
            work()
        })
    }
}

/// Walks trees side by side, each told as its root, the paths below that are told apart, and what visits it; calls `progress`
/// as [`Counters::telling`] does. A component `*` of a path stands for any name. The deepest path that holds an entry decides
/// which part the entry belongs to: they are numbered in their order, and what none covers is the part after the last. A
/// directory is not kept for itself if its path ends in `/`. A cancel ends it early.
pub fn all<'a, V: Visit + 'a>(
    trees: impl Iterator<Item = (&'a PathBuf, &'a Vec<String>, &'a V)>,
    counters: &Counters,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) {
    let walks: Vec<_> =
        trees.map(|(root, paths, visit)| (root.as_path(), paths, Rules::of_paths(paths), visit)).collect();
    counters.telling(progress, || match ThreadPoolBuilder::new().num_threads(threads()).build() {
        Ok(pool) => pool.scope(|scope| begin(scope, &walks)),
        // As many as there are cores, if this user may have no more.
        Err(_) => rayon::scope(|scope| begin(scope, &walks)),
    });
}

fn begin<'s, V: Visit>(scope: &rayon::Scope<'s>, walks: &'s [(&'s Path, &'s Vec<String>, Rules, &'s V)]) {
    for (root, paths, rules, visit) in walks {
        scope.spawn(move |scope| Walk { paths, visit: *visit }.root(scope, root, rules.root()));
    }
}

/// Returns more than there may be cores: where nothing is cached most threads wait for the disk, which serves many at once.
/// With 8 instead of 2 on two cores a walk takes a fifth of the time there, and no longer where all is cached.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).max(8)
}

struct Walk<'s, V> {
    paths: &'s [String],
    visit: &'s V,
}

impl<V> Clone for Walk<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Walk<'_, V> {}

impl<'s, V: Visit> Walk<'s, V> {
    fn root(self, scope: &rayon::Scope<'s>, root: &Path, at: At<'s>) {
        let opened = openat(CWD, root, DIRECTORY, Mode::empty()).and_then(|fd| Ok((fstat(&fd)?, mount_of(&fd)?, fd)));
        match opened {
            Ok((stat, mount, fd)) => {
                let folder = Folder {
                    fd,
                    name: CString::default(),
                    above: None,
                    part: self.part(at),
                    named: true,
                    stat,
                    opened: AtomicBool::default(),
                };
                self.list(scope, Arc::new(folder), at, mount);
            }
            Err(error) => self.visit.refused(".".into(), error),
        }
    }

    fn part(self, at: At<'_>) -> usize {
        at.rule.unwrap_or(self.paths.len())
    }

    /// Visits the entries of one folder and leaves its folders to other cores.
    fn list(self, scope: &rayon::Scope<'s>, folder: Arc<Folder>, at: At<'s>, mount: Mount) {
        if cancel::requested() {
            return;
        }
        self.visit.folder(&folder);
        let mut local = V::Local::default();
        let entries = self.entries(&folder);
        for (name, kind) in entries.iter() {
            let below = at.child(name.to_bytes());
            let is_folder = match kind {
                FileType::Directory => true,
                FileType::Unknown => statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                _ => false,
            };
            if !is_folder {
                self.visit.entry(&folder, name, self.part(below), &mut local);
            } else {
                let (above, name) = (folder.clone(), name.to_owned());
                scope.spawn(move |scope| self.enter(scope, above, name, below, mount));
            }
        }
        self.visit.listed(&folder, local);
        self.leave(folder);
    }

    fn entries(self, folder: &Folder) -> Entries {
        let mut found = Entries::default();
        match found.read(&folder.fd, folder.above.is_none()) {
            // Deleted since its parent was read.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => self.visit.refused(folder.path(c""), error),
        }
        found
    }

    fn enter(self, scope: &rayon::Scope<'s>, above: Arc<Folder>, name: CString, at: At<'s>, mount: Mount) {
        let part = self.part(at);
        if !self.visit.enters(part, !at.is_whole()) {
            return self.leave(above);
        }
        let opened =
            openat(&above.fd, &name, DIRECTORY, Mode::empty()).and_then(|fd| Ok((fstat(&fd)?, mount_of(&fd)?, fd)));
        match opened {
            Ok((stat, here, fd)) if here == mount => {
                let goes_whole = at.is_named() && self.paths[part].ends_with('/');
                let named = above.named && at.leads_on() && !goes_whole;
                let folder = Folder { fd, name, above: Some(above), part, named, stat, opened: AtomicBool::default() };
                self.list(scope, Arc::new(folder), at, mount);
                return;
            }
            Ok(_) => self.visit.other_mount(above.path(&name)),
            // Deleted, or replaced by a link, since its parent was read.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => self.visit.refused(above.path(&name), error),
        }
        self.leave(above);
    }

    /// Lets go of a folder. The last one to do so has seen everything below it; so it goes up, without recursion.
    fn leave(self, folder: Arc<Folder>) {
        let mut next = Some(folder);
        while let Some(folder) = next.and_then(Arc::into_inner) {
            self.visit.done(&folder);
            next = folder.above;
        }
    }
}

/// All names in a folder, read before any is visited: what a job removes must not disturb the reading.
#[derive(Debug, Default)]
pub struct Entries {
    /// Each with a NUL at its end.
    names: Vec<u8>,
    /// Where each is without that, and what it is.
    found: Vec<(Range<usize>, FileType)>,
}

impl Entries {
    /// Adds those of a folder that was just opened, but for what is no part of a tree: what an import has beside it in
    /// its root, or left there when it was killed.
    ///
    /// # Errors
    /// When it cannot be read; what came before is there.
    pub fn read(&mut self, folder: &OwnedFd, is_root: bool) -> rustix::io::Result<()> {
        read(folder, |name, kind| {
            if name != c"." && name != c".." && !(is_root && name == STAGING) {
                let at = self.names.len();
                self.found.push((at..at + name.to_bytes().len(), kind));
                self.names.extend_from_slice(name.to_bytes_with_nul());
            }
        })
    }

    /// Sorts them by name.
    pub fn sort(&mut self) {
        self.found.sort_unstable_by(|(one, _), (other, _)| self.names[one.clone()].cmp(&self.names[other.clone()]));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&CStr, FileType)> {
        let name = |at: &Range<usize>| CStr::from_bytes_until_nul(&self.names[at.start..]).unwrap_or_default();
        self.found.iter().map(move |(at, kind)| (name(at), *kind))
    }
}

/// Reads a folder that was just opened.
#[cfg(target_os = "linux")]
fn read(folder: &OwnedFd, mut each: impl FnMut(&CStr, FileType)) -> rustix::io::Result<()> {
    // As the C library does; rustix's `Dir` begins with 768 bytes, opens the folder again and allocates each name.
    let mut buffer: Vec<u8> = Vec::with_capacity(1 << 15);
    let mut entries = rustix::fs::RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        each(entry.file_name(), entry.file_type());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn read(folder: &OwnedFd, mut each: impl FnMut(&CStr, FileType)) -> rustix::io::Result<()> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        each(entry.file_name(), entry.file_type());
    }
    Ok(())
}

/// What tells one mounted file system from another: its device, and the mount's own number where the kernel tells it
/// (Linux 5.8), for a bind mount has the device of its source.
pub type Mount = (u64, u64);

/// Returns the mounted file system that an open file is in.
///
/// # Errors
/// When the kernel does not tell.
#[cfg(target_os = "linux")]
pub fn mount_of(fd: impl AsFd) -> rustix::io::Result<Mount> {
    use rustix::fs::{StatxFlags, statx};
    let found = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
    Ok((device, if told { found.stx_mnt_id } else { 0 }))
}

#[cfg(not(target_os = "linux"))]
pub fn mount_of(fd: impl AsFd) -> rustix::io::Result<Mount> {
    Ok((fstat(fd)?.st_dev as u64, 0))
}

/// Returns the bytes that an entry takes on the disk; st_blocks counts units of 512 bytes on every system.
pub fn blocks(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or_default() * 512
}

/// Returns the permission bits with setuid, setgid and sticky; some systems keep them in 16 bits.
#[allow(clippy::useless_conversion)]
pub fn permissions(stat: &Stat) -> u32 {
    u32::from(stat.st_mode) & 0o7777
}

/// Returns when a file was last used, seconds since 1970: read or changed. 0 if nobody knows: a time before 1970, or in its
/// first hour, is what those write who have none, as Nix writes second 1.
pub fn last_used(stat: &Stat) -> u64 {
    u64::try_from(stat.st_atime.max(stat.st_mtime)).ok().filter(|moment| *moment >= 3600).unwrap_or_default()
}
