//! Directories below a root, opened name by name and never through a link: the way to files that cannot be led astray.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, mkdirat, openat};
use rustix::io::Errno;
use rustix::path::Arg;

/// How a directory is opened.
pub const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens something to read it without a trace: when it was last used stays as it is, as far as the system lets this user have
/// that (open(2): only owners, and who may act as one).
///
/// # Errors
/// When it cannot be opened.
pub fn open_to_read(dir: impl AsFd, name: impl Arg + Copy, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => {}
        opened => return opened,
    }
    openat(dir, name, flags, Mode::empty())
}

/// Takes a lock on an open directory; `waiting` is called once if there is something to wait for.
///
/// # Errors
/// When the file system knows no locks, or the user cancels.
pub fn lock(dir: impl AsFd, how: FlockOperation, waiting: impl FnOnce()) -> Result<()> {
    let mut waiting = Some(waiting);
    loop {
        match flock(&dir, how) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(waiting) = waiting.take() {
            waiting();
        }
        crate::cancel::check()?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// Returns the names in a directory, sorted.
///
/// # Errors
/// When it cannot be read.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns where something is mounted below an open directory, as far as the kernel tells it.
pub fn mounts_below(dir: BorrowedFd<'_>) -> Vec<PathBuf> {
    use std::os::fd::AsRawFd;
    let Ok(root) = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())) else { return Vec::new() };
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescaped).filter(|point| point.starts_with(&root) && *point != root).collect()
}

/// Undoes the escapes of proc(5): a space is `\040`.
pub fn unescaped(mut text: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    while let Some((byte, rest)) = text.split_first() {
        let octal = rest.get(..3).filter(|_| *byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => (bytes.push(escaped), text = &rest[3..]),
            None => (bytes.push(*byte), text = rest),
        };
    }
    OsString::from_vec(bytes).into()
}

/// A root, and the directories from it to the one that was used last.
#[derive(Debug)]
pub struct Dirs {
    root: OwnedFd,
    open: Vec<(Vec<u8>, OwnedFd)>,
    /// Whether missing directories are made.
    create: bool,
}

impl Dirs {
    /// Opens a root.
    ///
    /// # Errors
    /// When it is not a directory that can be read.
    pub fn open(root: &Path, create: bool) -> io::Result<Dirs> {
        Ok(Dirs { root: openat(CWD, root, DIRECTORY, Mode::empty())?, open: Vec::new(), create })
    }

    /// Returns a root that is already open.
    pub fn at(root: OwnedFd, create: bool) -> Dirs {
        Dirs { root, open: Vec::new(), create }
    }

    /// Returns the directory that a path is in, and the path's last name.
    ///
    /// # Errors
    /// When one on the way is missing, a link, or no directory, or the way leads up.
    pub fn parent(&mut self, path: &[u8]) -> io::Result<(BorrowedFd<'_>, CString)> {
        let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        if names.contains(&&b".."[..]) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out by `..`"));
        }
        let last = CString::new(names.pop().unwrap_or(b"."))?;
        let same = self.open.iter().zip(&names).take_while(|((open, _), name)| open == *name).count();
        self.open.truncate(same);
        for name in &names[same..] {
            let above = self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let fd = match openat(above, *name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if self.create => {
                    match mkdirat(above, *name, Mode::from_raw_mode(0o700)) {
                        // Another worker was faster.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    openat(above, *name, DIRECTORY, Mode::empty())
                }
                other => other,
            };
            self.open.push((name.to_vec(), fd?));
        }
        Ok((self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()), last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/a")).unwrap();
        let mut dirs = Dirs::open(&dir.path().join("root"), true).unwrap();
        for path in [&b"../x/y"[..], b"a/../../x/y", b"..", b"a/.."] {
            dirs.parent(path).unwrap_err();
        }
        dirs.parent(b"a/x").unwrap();
    }
}
