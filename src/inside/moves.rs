//! Moves names between a tree and a directory beside it, each written down first: so all can be undone after an error,
//! and a kill in between two moves loses nothing.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, mkdirat, openat, renameat, renameat_with, statat};
use rustix::io::Errno;

use super::archive::unsafe_path;
use super::dirs::{DIRECTORY, Dirs};
use super::shown;

/// What was moved, a [`Move`] a line: `KIND NUMBER INODE PATH` and a zero byte.
const JOURNAL: &CStr = c"moves";
/// The directory for what was taken away, by number.
const OLD: &CStr = c"old";
/// Bytes of a killed run's journal that are read: anybody may have written it.
const MAX_JOURNAL: u64 = 256 << 20;

/// Returns the name of the directory beside a tree from which things come.
pub fn new(number: usize) -> String {
    format!("new-{number}")
}

/// Moves that were made in a tree.
pub struct Moves {
    beside: OwnedFd,
    old: OwnedFd,
    journal: File,
    /// Number of names taken away.
    away: usize,
}

/// A name to move, and its path in the tree.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a CStr,
    pub path: &'a [u8],
}

/// One line of a journal.
struct Move {
    /// From `new-NUMBER/PATH` into the tree; else out of it, to `old/NUMBER`.
    came: bool,
    number: usize,
    /// Of what came.
    inode: u64,
    path: Vec<u8>,
}

impl Moves {
    /// Begins a journal in the directory beside a tree.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn begin(beside: BorrowedFd<'_>) -> Result<Moves> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let journal = openat(beside, JOURNAL, flags, Mode::from_raw_mode(0o600))?.into();
        mkdirat(beside, OLD, Mode::from_raw_mode(0o700))?;
        let old = openat(beside, OLD, DIRECTORY, Mode::empty())?;
        Ok(Moves { beside: beside.try_clone_to_owned()?, old, journal, away: 0 })
    }

    /// Moves the inode that has the same path in the directory `new` of the `number`th tree into the tree, and what is
    /// there in its place, if `replaces`.
    ///
    /// # Errors
    /// When it cannot; with [`Errno::EXIST`] if something is there that it is not to replace.
    pub fn bring(
        &mut self,
        number: usize,
        new: BorrowedFd<'_>,
        inode: u64,
        to: Name<'_>,
        replaces: bool,
    ) -> Result<()> {
        self.note(true, number, inode, to.path)?;
        let flags = if replaces { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        match renameat_with(new, to.name, to.dir, to.name, flags) {
            Err(error) if replaces && has_no_flags(error) => {
                self.take_away(to)?;
                self.bring(number, new, inode, to, false)
            }
            Err(error) if has_no_flags(error) => Ok(renameat(new, to.name, to.dir, to.name)?),
            moved => Ok(moved?),
        }
    }

    /// Takes a name out of the tree.
    ///
    /// # Errors
    /// See [`Moves::bring`].
    pub fn take_away(&mut self, from: Name<'_>) -> Result<()> {
        self.away += 1;
        self.note(false, self.away, 0, from.path)?;
        Ok(renameat(from.dir, from.name, &self.old, self.away.to_string())?)
    }

    fn note(&mut self, came: bool, number: usize, inode: u64, path: &[u8]) -> Result<()> {
        let kind = if came { '+' } else { '-' };
        let line = [format!("{kind} {number} {inode} ").as_bytes(), path, b"\0"].concat();
        self.journal.write_all(&line).context("what is moved in cannot be written down")
    }

    /// Moves everything back, the last first.
    ///
    /// # Errors
    /// With the first that cannot be moved back; all others are.
    pub fn undo(&mut self, root: &OwnedFd) -> Result<()> {
        self.journal.seek(SeekFrom::Start(0))?;
        let mut moves = read(&mut self.journal)?;
        let (mut tree, mut beside) = (Dirs::at(root.try_clone()?, false), Dirs::at(self.beside.try_clone()?, false));
        let undone = moves.drain(..).rev().map(|one| {
            let back =
                if one.came { one.send_back(&mut tree, &mut beside) } else { one.put_back(&mut tree, &mut beside) };
            back.and_then(|free| if free { Ok(()) } else { bail!("something else is in its place") })
                .with_context(|| format!("{} cannot be moved back", shown(&one.path)))
        });
        undone.fold(Ok(()), Result::and)
    }
}

/// Puts back what a run that was killed had taken away, unless something is in its place: that came from the same run,
/// or is newer.
///
/// # Errors
/// With the first that cannot be put back; all others are. When there is more to read than may be, none is.
pub fn recover(root: BorrowedFd<'_>, beside: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let journal = match openat(beside, JOURNAL, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => File::from(opened?),
    };
    let length = journal.metadata()?.len();
    ensure!(length <= MAX_JOURNAL, "its journal has {length} bytes, and may have {MAX_JOURNAL}");
    let (mut tree, mut beside) =
        (Dirs::at(root.try_clone_to_owned()?, false), Dirs::at(beside.try_clone_to_owned()?, false));
    let taken = read(&mut journal.take(MAX_JOURNAL))?.into_iter().rev().filter(|one| !one.came);
    taken.map(|one| one.put_back(&mut tree, &mut beside).map(|_| ())).fold(Ok(()), Result::and)
}

impl Move {
    /// Returns the path beside the tree.
    fn aside(&self) -> Vec<u8> {
        match self.came {
            true => [new(self.number).as_bytes(), b"/", &self.path].concat(),
            false => format!("{}/{}", OLD.to_string_lossy(), self.number).into_bytes(),
        }
    }

    /// Moves what came out again, and what it replaced to its place, if that was done. Returns false if it is not there
    /// any more.
    fn send_back(&self, tree: &mut Dirs, beside: &mut Dirs) -> Result<bool> {
        let (new, new_name) = beside.parent(&self.aside())?;
        let (dir, name) = match tree.parent(&self.path) {
            Err(error) if is_gone(&error) => return Ok(false),
            parent => parent?,
        };
        if inode(dir, &name)? != Some(self.inode) {
            return Ok(inode(new, &new_name)? == Some(self.inode));
        }
        match renameat_with(dir, &name, new, &new_name, RenameFlags::EXCHANGE) {
            // It replaced nothing.
            Err(error) if error == Errno::NOENT || has_no_flags(error) => renameat(dir, &name, new, &new_name)?,
            done => done?,
        }
        Ok(true)
    }

    /// Puts what was taken away to its place, if that was done. Returns false if something is there, or no directory
    /// for it.
    fn put_back(&self, tree: &mut Dirs, beside: &mut Dirs) -> Result<bool> {
        let (old, old_name) = beside.parent(&self.aside())?;
        if inode(old, &old_name)?.is_none() {
            return Ok(true);
        }
        let (dir, name) = match tree.parent(&self.path) {
            Err(error) if is_gone(&error) => return Ok(false),
            parent => parent?,
        };
        let is_free = inode(dir, &name)?.is_none();
        if is_free {
            renameat(old, &old_name, dir, &name)?;
        }
        Ok(is_free)
    }
}

/// Tells the error of a way to a path that is there no more.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// Reads a journal, but for a last line that was cut off.
fn read(journal: &mut impl Read) -> Result<Vec<Move>> {
    let mut text = Vec::new();
    journal.read_to_end(&mut text)?;
    let lines = text.split_inclusive(|byte| *byte == 0).filter_map(|line| line.strip_suffix(b"\0"));
    Ok(lines.map_while(parse).collect())
}

fn parse(line: &[u8]) -> Option<Move> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let (came, number, inode) = (word()? == "+", word()?.parse().ok()?, word()?.parse().ok()?);
    let path = words.next()?.to_vec();
    unsafe_path(&path).is_none().then_some(Move { came, number, inode, path })
}

fn inode(dir: BorrowedFd<'_>, name: &CString) -> Result<Option<u64>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Tells the error of a file system that cannot exchange two names in one step, or leave one that is there.
fn has_no_flags(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn moves_are_undone_the_last_first_and_what_cannot_be_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (root, beside) = (dir.path().join("root"), dir.path().join("beside"));
        for path in ["root/a/x", "beside/new-0/a", "beside/new-1/b"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let texts = || ["a/x/f", "a/y", "b"].map(|path| fs::read_to_string(root.join(path)).unwrap_or_default());
        for (path, text) in [("a/x/f", "old"), ("a/y", "old")] {
            fs::write(root.join(path), text).unwrap();
        }
        fs::write(beside.join("new-0/a/y"), "new").unwrap();
        let before = texts();
        let [root_fd, beside_fd, a, new] = [&root, &beside, &root.join("a"), &beside.join("new-0/a")]
            .map(|path| OwnedFd::from(fs::File::open(path).unwrap()));
        let mut moves = Moves::begin(beside_fd.as_fd()).unwrap();
        let name = |dir, name, path| Name { dir, name, path };
        let inode = |path: &str| beside.join(path).metadata().unwrap().ino();
        moves.take_away(name(a.as_fd(), c"x", b"a/x")).unwrap();
        moves.bring(0, new.as_fd(), inode("new-0/a/y"), name(a.as_fd(), c"y", b"a/y"), true).unwrap();
        moves.take_away(name(root_fd.as_fd(), c"a", b"a")).unwrap();
        let new = OwnedFd::from(fs::File::open(beside.join("new-1")).unwrap());
        moves.bring(1, new.as_fd(), inode("new-1/b"), name(root_fd.as_fd(), c"b", b"b"), false).unwrap();
        moves.bring(0, new.as_fd(), inode("new-0/a"), name(root_fd.as_fd(), c"a", b"a"), true).unwrap_err();
        assert!(!root.join("a").exists() && root.join("b").exists());
        moves.undo(&root_fd).unwrap();
        assert_eq!((texts(), root.join("b").exists()), (before, false));

        moves.take_away(name(a.as_fd(), c"y", b"a/y")).unwrap();
        fs::write(root.join("a/y"), "of another").unwrap();
        moves.undo(&root_fd).unwrap_err();
        assert_eq!(texts()[1], "of another");
    }

    #[test]
    fn a_journal_leads_to_no_place_outside_of_the_tree() {
        assert!(parse(b"- 1 0 a/b").is_some());
        for line in [&b"- 1 0 ../a"[..], b"- 1 0 /a", b"- ../1 0 a", b"- 1 0"] {
            assert!(parse(line).is_none());
        }
    }
}
