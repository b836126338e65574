//! Unpacks archives of a bundle into trees: all of it beside the tree first, checked as it is read, then moved in by
//! renames. Until then the tree is as it was; no link is ever followed.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fchown, flock, fsetxattr, futimens, linkat, mkdirat, openat, renameat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::archive::{self, Kind, Member, leads_in};
use super::dirs::{self, DIRECTORY, Dirs, names};
use super::measure::is_work_tree;
use super::moves::{self, Moves, Name};
use super::pack::{Blob, Hashed, Layer, digest};
use super::rules::{At, Rule, Rules};
use super::scan::is_secret;
use super::shown;
use super::table::{self, MAX_ROWS, Row, Table, decoder};
use super::walk::{Counters, mount_of};
use crate::parallel;
use crate::report;

/// Name of the directory in a tree where things are unpacked and, for a moment, what they replace is kept.
pub const STAGING: &CStr = c".docker-cache-import";

/// Trees to unpack, and the directory with the blobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unpack {
    pub blobs: PathBuf,
    pub trees: Vec<Target>,
}

/// A tree to unpack, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    pub root: PathBuf,
    /// Where programs saw the packed tree.
    pub base: String,
    pub table: Blob,
    pub layers: Vec<Layer>,
    pub rules: Vec<Rule>,
    /// Only what is below this path of the packed tree is unpacked,
    pub from: String,
    /// and goes below this path of the root.
    pub to: String,
    /// Makes what the rules take equal to the bundle, instead of adding to it.
    pub replace: bool,
    /// Owner of everything, instead of what the bundle says.
    pub owner: Option<(u32, u32)>,
    /// Names of files that are not replaced, as in [`super::pack::Tree::secrets`].
    pub secrets: Vec<String>,
}

/// What became of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    pub bytes: u64,
    /// Bytes of the bundle's files that did not come: what is there is as new, newer, or of another kind.
    pub kept_bytes: u64,
    /// Those of them whose files are there already.
    pub reused_bytes: u64,
    /// What could not be restored, such as attributes that the file system does not have.
    pub notes: Vec<String>,
}

const NAMED: usize = 20;
/// More members than this no archive of this program has.
pub const MAX_ENTRIES: u64 = 65_536;

/// Unpacks all trees beside their roots, and when all of them are whole moves them in; calls `progress` with files and
/// bytes.
///
/// # Errors
/// When a blob is not what it should be, or something cannot be written beside or moved in; the trees are then as they
/// were. What could not be moved back is kept, and the error says where.
pub fn all(job: &Unpack, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<Vec<Unpacked>> {
    for path in job.trees.iter().flat_map(|target| [&target.from, &target.to]) {
        if let Some(why) = archive::unsafe_path(path.as_bytes()) {
            bail!("the path {path:?} {why}");
        }
    }
    let done = Counters::default();
    done.telling(progress, || unpack(job, &done))
}

fn unpack(job: &Unpack, done: &Counters) -> Result<Vec<Unpacked>> {
    let mut places: Vec<Place<'_>> = Vec::new();
    let mut trees = Vec::new();
    for (number, target) in job.trees.iter().enumerate() {
        let root = openat(rustix::fs::CWD, &target.root, DIRECTORY, Mode::empty())
            .with_context(|| format!("cannot open {}", target.root.display()))?;
        let id = inode(&root)?;
        // Two volumes may be one directory.
        let at = match places.iter().position(|place| place.inode == id) {
            Some(at) if target.replace && places[at].path != target.root => bail!(
                "{} and {} are one directory, and with --replace the last would be all that stays\nhint: select one of \
                 the volumes by `--volume`, or leave out `--replace`",
                places[at].path.display(),
                target.root.display()
            ),
            Some(at) => at,
            None => {
                places.push(Place::make(&target.root, root)?);
                places.len() - 1
            }
        };
        if target.replace {
            places[at].refuse_mounts()?;
            let rules = placed_rules(target);
            refuse_work_trees(places[at].root.as_fd(), &target.root, &rules)?;
        }
        let staging = places[at].staging(number)?;
        trees.push((at, Unpacking::new(&job.blobs, target, staging, done)?));
    }
    // Two at a time, so that one goes on while the other is at its table or its last archive.
    parallel::try_each(2, &trees, |(_, tree)| tree.beside())?;
    crate::cancel::check()?;
    let _moving = super::MOVING.lock();
    if let Err(error) = trees.iter_mut().try_for_each(|(at, tree)| tree.move_in(&mut places[*at])) {
        return Err(places.iter_mut().rev().fold(error, |error, place| place.undo(error)));
    }
    let left = places.iter().filter_map(|place| {
        let why = place.clean().err()?;
        Some(format!("what was replaced stays in {}/{}: {why:#}", place.path.display(), STAGING.to_string_lossy()))
    });
    let left: Vec<String> = left.collect();
    let mut told: Vec<Unpacked> = trees.into_iter().map(|(at, tree)| tree.told(&places[at])).collect();
    told.iter_mut().take(1).for_each(|unpacked| unpacked.notes.extend(left.iter().cloned()));
    Ok(told)
}

struct Unpacking<'a> {
    blobs: &'a Path,
    target: &'a Target,
    staging: Staging,
    rules: Rules,
    /// Directories and hard links, for when all else is there: there may be too many for the memory.
    later: Mutex<Later>,
    notes: Mutex<Vec<String>>,
    /// Of all files that are unpacked.
    bytes: AtomicU64,
    unpacked: Unpacked,
    done: &'a Counters,
}

impl<'a> Unpacking<'a> {
    fn new(blobs: &'a Path, target: &'a Target, staging: Staging, done: &'a Counters) -> Result<Unpacking<'a>> {
        Ok(Unpacking {
            blobs,
            target,
            rules: Rules::new(&target.rules),
            later: Mutex::new(Later::new(&staging.later)?),
            staging,
            notes: Mutex::default(),
            bytes: AtomicU64::default(),
            unpacked: Unpacked::default(),
            done,
        })
    }

    /// Unpacks the tree into its staging directory.
    fn beside(&self) -> Result<()> {
        let (path, target) = (self.table(), self.target);
        let mut table = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        ensure!(digest(&mut table)? == target.table, "{} is damaged", target.table.digest);
        for part in table::parts(&target.layers) {
            let rows = self.rows(&part)?;
            self.bytes.fetch_add(rows.iter().flatten().map(|row| row.size).sum(), Relaxed);
            self.layers(&target.layers[part], &rows)?;
        }
        self.finish()
    }

    /// Moves what is unpacked into its place.
    fn move_in(&mut self, place: &mut Place<'_>) -> Result<()> {
        let target = self.target;
        let merged_rules = placed_rules(target);
        let rules = Rules::new(&merged_rules);
        let secrets = match target.replace {
            true => secrets(place.root.as_fd(), &merged_rules, rules.root(), &target.secrets)?,
            false => BTreeSet::new(),
        };
        let mut merge = Merge {
            rules: &merged_rules,
            replace: target.replace,
            secrets: &secrets,
            tree: self.staging.number,
            moves: &mut place.moves,
            path: Vec::new(),
            newer: Vec::new(),
            newer_count: 0,
            unpacked: &mut self.unpacked,
        };
        let moved = merge.directory(Some(self.staging.new.as_fd()), place.root.as_fd(), rules.root());
        moved.with_context(|| match merge.path.is_empty() {
            true => place.path.display().to_string(),
            false => format!("{}/{}", place.path.display(), shown(&merge.path)),
        })?;
        let kept = secrets.iter().take(NAMED).map(|path| shown(path.as_os_str().as_bytes()));
        let kept = kept.map(|path| format!("{path}: it has the name of a file of secrets, and stays"));
        merge.unpacked.notes.extend(kept);
        let newer = shown(&merge.newer);
        match merge.newer_count {
            0 => {}
            1 => merge.unpacked.notes.push(format!("{newer}: what is there is newer, and stays")),
            count => {
                merge.unpacked.notes.push(format!("{newer} and {} more: what is there is newer, and stays", count - 1))
            }
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.target.from.is_empty() && self.target.to.is_empty()
    }

    /// Restores the directories above what was moved in, times and all, and tells what became of the tree.
    fn told(mut self, place: &Place<'_>) -> Unpacked {
        if (self.target.replace || place.was_empty)
            && let Err(error) = self.shared_directories(place)
        {
            self.unpacked.notes.push(format!("directories have other owners, modes or times: {error:#}"));
        }
        self.unpacked.notes.extend(self.notes.into_inner().unwrap_or_else(PoisonError::into_inner));
        self.unpacked.bytes = self.bytes.into_inner();
        self.unpacked
    }

    /// Returns where a path of the packed tree goes, if it is wanted.
    fn wanted(&self, path: &[u8], kind: Kind) -> Option<Vec<u8>> {
        let at = self.rules.at(path);
        let taken = at.rule.is_some_and(|rule| self.target.rules[rule].take) || (kind == Kind::Dir && at.takes_below());
        taken.then(|| placed(path, &self.target.from, &self.target.to))?
    }

    fn table(&self) -> PathBuf {
        self.blobs.join(self.target.table.file())
    }

    /// Reads the table and returns the wanted rows of each archive of this part.
    fn rows(&self, part: &Range<usize>) -> Result<Vec<Vec<Row>>> {
        let mut rows: Vec<Vec<Row>> = vec![Vec::new(); part.len()];
        let mut table = Table::open(&self.table())?;
        let mut count = 0;
        while let Some(row) = table.next_row()? {
            count += 1;
            ensure!(count <= MAX_ROWS, "the table has more than {MAX_ROWS} rows");
            if self.wanted(&row.path, row.kind).is_some() {
                table::sort_in(&mut rows, part, &self.target.layers, row)?;
            }
        }
        Ok(rows)
    }

    /// Unpacks archives on all cores.
    fn layers(&self, layers: &[Layer], rows: &[Vec<Row>]) -> Result<()> {
        let layers: Vec<_> = layers.iter().zip(rows).collect();
        parallel::try_each(parallel::workers(), &layers, |(layer, rows)| {
            self.layer(layer, rows).with_context(|| layer.blob.digest.clone())
        })
    }

    fn layer(&self, layer: &Layer, rows: &[Row]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let path = self.blobs.join(layer.blob.file());
        let mut blob = Hashed::new(File::open(path)?);
        let mut dirs = Dirs::at(self.staging.new.try_clone()?, true);
        let mut buffer = vec![0; 1 << 17];
        let mut rows = rows.iter().peekable();
        archive::read(decoder(&mut blob)?, layer.raw, layer.entries.min(MAX_ENTRIES), |member, data| {
            crate::cancel::check()?;
            match rows.next_if(|row| row.path == member.path) {
                Some(row) => {
                    check(&member, row, &self.target.base)?;
                    self.place(&mut dirs, member, data, &mut buffer)
                }
                None => Ok(()),
            }
        })?;
        io::copy(&mut blob, &mut io::sink())?;
        if let Some(row) = rows.next() {
            bail!("{:?} is not in its archive", String::from_utf8_lossy(&row.path));
        }
        ensure!(blob.finish().1 == layer.blob, "it is damaged");
        Ok(())
    }

    /// Puts one member into the staging tree.
    fn place(&self, dirs: &mut Dirs, mut member: Member, data: &mut dyn Read, buffer: &mut [u8]) -> Result<()> {
        let Some(path) = self.wanted(&member.path, member.kind) else { return Ok(()) };
        member.path = path;
        match member.kind {
            Kind::Dir => {
                if !member.path.is_empty() {
                    // Made by the way to a path in it.
                    dirs.parent(&[&member.path[..], b"/."].concat())?;
                }
                return self.later().push(&member);
            }
            Kind::Hardlink => {
                match self.wanted(&member.link, Kind::File) {
                    Some(link) => {
                        member.link = link;
                        self.later().push(&member)?;
                    }
                    None => self.note(&member, "its first name is not among what was selected"),
                }
                return Ok(());
            }
            Kind::File => {
                let (dir, name) = dirs.parent(&member.path)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
                self.fill(&file, &member, data, buffer)?;
                self.metadata(file.as_fd(), &member)?;
            }
            Kind::Symlink if !member.link.starts_with(b"/") && !leads_in(&member.path, &member.link, "") => {
                self.note(&member, "it is a link that would lead out from there");
                return Ok(());
            }
            Kind::Symlink => {
                let (dir, name) = dirs.parent(&member.path)?;
                symlinkat(&member.link[..], dir, &name)?;
                let (uid, gid) = self.owner(&member);
                chownat(dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                utimensat(dir, &name, &times(&member), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        self.done.files.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Writes the content of a file, leaving its holes.
    fn fill(&self, mut file: &File, member: &Member, data: &mut dyn Read, buffer: &mut [u8]) -> Result<()> {
        let Some(extents) = &member.extents else { return self.copy(data, file, member.size, buffer) };
        for (at, length) in extents {
            file.seek(SeekFrom::Start(*at))?;
            self.copy(data, file, *length, buffer)?;
        }
        file.set_len(member.size)?;
        Ok(())
    }

    fn copy(&self, data: &mut dyn Read, mut file: &File, mut length: u64, buffer: &mut [u8]) -> Result<()> {
        while length > 0 {
            let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let read = data.read(&mut buffer[..wanted])?;
            ensure!(read > 0, "it is cut off");
            file.write_all(&buffer[..read])?;
            self.done.bytes.fetch_add(read as u64, Relaxed);
            length -= read as u64;
        }
        Ok(())
    }

    fn later(&self) -> MutexGuard<'_, Later> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes hard links, then gives the directories what they are to have.
    fn finish(&self) -> Result<()> {
        let new = || self.staging.new.try_clone();
        let (mut from, mut to) = (Dirs::at(new()?, false), Dirs::at(new()?, true));
        let mut later = self.later();
        later.each(Kind::Hardlink, |member| {
            let (dir, name) = to.parent(&member.path)?;
            let there = from.parent(&member.link).and_then(|(dir, first)| {
                let stat = statat(dir, &first, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok((dir, first, stat))
            });
            let (first_dir, first, first_stat) = match there {
                // The directory of its first name went while the export read it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.note(member, "it is a link to a file that is not in the bundle");
                    return Ok(());
                }
                there => there?,
            };
            ensure!(FileType::from_raw_mode(first_stat.st_mode) == FileType::RegularFile, "it goes to no file");
            Ok(linkat(first_dir, &first, dir, &name, AtFlags::empty())?)
        })?;
        let mut dirs = Dirs::at(new()?, false);
        later.each(Kind::Dir, |member| {
            if member.path == self.target.to.as_bytes() {
                self.way(&mut dirs, member)?;
            }
            if member.path.is_empty() { Ok(()) } else { self.directory(&mut dirs, member) }
        })
    }

    /// Gives the directories on the way to the top of the tree, which no bundle tells of, its owner.
    fn way(&self, dirs: &mut Dirs, top: &Member) -> Result<()> {
        let (uid, gid) = self.owner(top);
        let ends = top.path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for above in ends.map(|at| &top.path[..at]) {
            let (dir, name) = dirs.parent(above)?;
            let fd = openat(dir, name, DIRECTORY, Mode::empty())?;
            fchown(&fd, Some(uid), Some(gid))?;
            fchmod(&fd, Mode::from_raw_mode(0o755))?;
        }
        Ok(())
    }

    /// Gives those directories what they are to have that were not moved in as a whole: the root, if it is the tree's own,
    /// those that several trees have in common, if nothing else was in the root, and those of which deeper rules leave
    /// something out.
    fn shared_directories(&self, place: &Place<'_>) -> Result<()> {
        let mut dirs = Dirs::at(place.root.try_clone()?, false);
        let placed = placed_rules(self.target);
        let rules = Rules::new(&placed);
        let was_empty = place.was_empty && self.is_whole();
        self.later().each(Kind::Dir, |member| {
            let at = rules.at(&member.path);
            let taken = at.rule.is_some_and(|rule| placed[rule].take);
            let is_shared = if taken { member.path.is_empty() || !at.is_whole() } else { was_empty };
            match if is_shared { self.directory(&mut dirs, member) } else { Ok(()) } {
                // What is in its place was told of.
                Err(error) if error.downcast_ref().is_some_and(moves::is_gone) => {}
                Err(error) => self.note(member, &format!("its owner, mode or time cannot be set: {error:#}")),
                Ok(()) => {}
            }
            Ok(())
        })
    }

    fn directory(&self, dirs: &mut Dirs, member: &Member) -> Result<()> {
        let (dir, name) = dirs.parent(&member.path)?;
        let fd = openat(dir, name, DIRECTORY, Mode::empty()).map_err(io::Error::from)?;
        self.metadata(fd.as_fd(), member)
    }

    /// Gives a file or directory its owner, attributes, mode and times, in the order in which none undoes another.
    fn metadata(&self, fd: BorrowedFd<'_>, member: &Member) -> Result<()> {
        let (uid, gid) = self.owner(member);
        fchown(fd, Some(uid), Some(gid))
            .with_context(|| format!("{:?} cannot be given to {uid}:{gid}", String::from_utf8_lossy(&member.path)))?;
        for (name, value) in &member.attributes {
            if let Err(error) = fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                let name = shown(name);
                self.note(member, &format!("its attribute {name} cannot be set: {}", io::Error::from(error)));
            }
        }
        fchmod(fd, Mode::from_raw_mode(member.mode as RawMode))?;
        futimens(fd, &times(member))?;
        Ok(())
    }

    fn owner(&self, member: &Member) -> (Uid, Gid) {
        let (uid, gid) = self.target.owner.unwrap_or((member.uid, member.gid));
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }

    fn note(&self, member: &Member, why: &str) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NAMED {
            notes.push(format!("{}: {why}", shown(&member.path)));
        }
    }
}

/// Returns the rules as they are where the tree goes: what was left out of it is not replaced there either.
fn placed_rules(target: &Target) -> Vec<Rule> {
    let rules = target.rules.iter();
    rules
        .filter_map(|rule| {
            let path = placed(rule.path.as_bytes(), &target.from, &target.to)?;
            Some(Rule { path: String::from_utf8(path).ok()?, take: rule.take })
        })
        .collect()
}

/// Calls `each` for a directory and those below it that lead to a rule, with their paths.
fn each_ruled(
    dir: BorrowedFd<'_>,
    path: &mut PathBuf,
    at: At<'_>,
    each: &mut dyn FnMut(BorrowedFd<'_>, &Path, At<'_>) -> Result<()>,
) -> Result<()> {
    each(dir, path, at)?;
    if at.is_whole() {
        return Ok(());
    }
    for name in names(dir)? {
        let at = at.child(name.to_bytes());
        if at.leads_on() && is_dir(&statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?) {
            let below = openat(dir, &name, DIRECTORY, Mode::empty())?;
            path.push(OsStr::from_bytes(name.to_bytes()));
            each_ruled(below.as_fd(), path, at, each)?;
            path.pop();
        }
    }
    Ok(())
}

/// Refuses a git work tree in a place that the rules take: it is somebody's own, whatever the place is called.
fn refuse_work_trees(root: BorrowedFd<'_>, path: &Path, rules: &[Rule]) -> Result<()> {
    each_ruled(root, &mut path.to_owned(), Rules::new(rules).root(), &mut |dir, path, at| {
        let taken = at.is_named() && at.rule.is_some_and(|rule| rules[rule].take);
        ensure!(
            !(taken && is_work_tree(dir)),
            "{} is a git work tree, which --replace would take away\nhint: move it elsewhere, or import without `--replace`",
            path.display()
        );
        Ok(())
    })
}

/// Finds what has one of the names of files of secrets in the directories that the rules name, or in the root, and take: no
/// bundle has it.
fn secrets(root: BorrowedFd<'_>, rules: &[Rule], at: At<'_>, secrets: &[String]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    each_ruled(root, &mut PathBuf::new(), at, &mut |dir, path, at| {
        let is_guarded = at.is_named() || path.as_os_str().is_empty();
        if !is_guarded || !at.rule.is_some_and(|rule| rules[rule].take) {
            return Ok(());
        }
        for name in names(dir)? {
            let is_own = !at.child(name.to_bytes()).is_named();
            if is_own && is_secret(secrets, name.to_bytes()) && !is_dir(&statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?)
            {
                found.insert(path.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Returns where a path goes if the directory `from` becomes `to`; None if it does not lie there.
pub fn placed(path: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    let below = match from.is_empty() {
        true => path,
        false => path.strip_prefix(from.as_bytes()).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))?,
    };
    let below = below.strip_prefix(b"/").unwrap_or(below);
    Some(match (to.is_empty(), below.is_empty()) {
        (true, _) => below.to_vec(),
        (false, true) => to.into(),
        (false, false) => [to.as_bytes(), b"/", below].concat(),
    })
}

/// Members that wait in a file: an archive without contents, in no order.
struct Later {
    out: BufWriter<zstd::Encoder<'static, File>>,
    count: u64,
}

impl Later {
    fn new(file: &File) -> Result<Later> {
        Ok(Later { out: BufWriter::new(zstd::Encoder::new(file.try_clone()?, 1)?), count: 0 })
    }

    fn push(&mut self, member: &Member) -> Result<()> {
        self.count += 1;
        Ok(archive::write(&mut self.out, member, io::empty())?)
    }

    /// Hands out the members of one kind. None can come after that.
    fn each(&mut self, kind: Kind, mut each: impl FnMut(&Member) -> Result<()>) -> Result<()> {
        self.out.flush()?;
        self.out.get_mut().do_finish()?;
        let mut file = self.out.get_ref().get_ref();
        file.seek(SeekFrom::Start(0))?;
        archive::read_unordered(zstd::Decoder::new(file)?, u64::MAX, self.count, |member, _| {
            if member.kind == kind { each(&member) } else { Ok(()) }
        })
    }
}

/// Checks that a member is what its row says, and that it is no way out of the tree.
///
/// # Errors
/// With the first thing that is wrong.
pub fn check(member: &Member, row: &Row, base: &str) -> Result<()> {
    ensure!(member.kind == row.kind, "it is of another kind than the table says");
    if member.kind == Kind::File {
        ensure!(member.size == row.size, "it has {} bytes, and {} in the table", member.size, row.size);
    }
    if member.kind == Kind::Symlink && !leads_in(&member.path, &member.link, base) {
        bail!("it is a link that leads out, to {:?}", String::from_utf8_lossy(&member.link));
    }
    Ok(())
}

fn times(member: &Member) -> Timestamps {
    let (tv_sec, nanoseconds) = member.modified;
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A root with a directory for what comes, beside what is there. That directory goes with the value.
struct Place<'a> {
    path: &'a Path,
    /// Device and inode of the root.
    inode: (u64, u64),
    root: OwnedFd,
    beside: OwnedFd,
    moves: Moves,
    was_empty: bool,
    /// Whether what is beside stays.
    keeps: bool,
}

/// Where one tree is unpacked.
struct Staging {
    number: usize,
    new: OwnedFd,
    /// A file without a name.
    later: File,
}

impl Place<'_> {
    fn make(path: &Path, root: OwnedFd) -> Result<Place<'_>> {
        let inode = inode(&root)?;
        // Of two imports at once one waits: they would take each other's directory for what an interrupted one left.
        let waiting = || report::note(&format!("another import writes to {}; waiting for it", path.display()));
        dirs::lock(&root, FlockOperation::NonBlockingLockExclusive, waiting).context("it cannot be locked")?;
        collect(root.as_fd(), path)?;
        let was_empty = names(root.as_fd())?.is_empty();
        let beside = make_dir(root.as_fd(), STAGING).context("nothing can be written there")?;
        let moves = Moves::begin(beside.as_fd())?;
        Ok(Place { path, inode, root, beside, moves, was_empty, keeps: false })
    }

    /// What is mounted somewhere in the tree would be moved away with the directories above it.
    fn refuse_mounts(&self) -> Result<()> {
        match dirs::mounts_below(self.root.as_fd()).first() {
            Some(mount) => bail!(
                "something is mounted at {}, which --replace would move away\nhint: unmount it, or import without \
                 `--replace`",
                mount.display()
            ),
            None => Ok(()),
        }
    }

    fn staging(&self, number: usize) -> Result<Staging> {
        let new = make_dir(self.beside.as_fd(), &CString::new(moves::new(number))?)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let later = openat(&self.beside, c"later", flags, Mode::from_raw_mode(0o600))?;
        unlinkat(&self.beside, c"later", AtFlags::empty())?;
        Ok(Staging { number, new, later: later.into() })
    }

    /// Makes the tree what it was before anything was moved in, because of an error, which is returned. If it cannot,
    /// what is beside the tree stays, under a name that no import removes.
    fn undo(&mut self, error: anyhow::Error) -> anyhow::Error {
        let Err(why) = self.moves.undo(&self.root) else { return error };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let kept = CString::new(format!("docker-cache-replaced-{}", now.as_secs())).unwrap_or_default();
        let kept = renameat(&self.root, STAGING, &self.root, &kept).map_or(STAGING, |()| &kept);
        self.keeps = true;
        let (kept, path) = (kept.to_string_lossy(), self.path.display());
        error.context(format!("{why:#}; what was there is kept in {path}/{kept}"))
    }

    fn clean(&self) -> Result<()> {
        remove(self.root.as_fd(), STAGING)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.keeps {
            // What cannot be removed now the next run removes.
            let _ = self.clean();
        }
    }
}

/// Puts back what a killed import took out of a tree, and removes what else it left there.
fn collect(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    if let Ok(left) = openat(root, STAGING, DIRECTORY, Mode::empty()) {
        moves::recover(root, left.as_fd()).map_err(|error| {
            let (path, staging) = (path.display(), STAGING.to_string_lossy());
            anyhow!(
                "what a killed import took out of {path} cannot be put back, and is kept in {staging}/old there: \
                 {error:#}\nhint: move out of it what is still wanted, remove {staging}, and import again"
            )
        })?;
    }
    remove(root, STAGING).with_context(|| {
        let staging = STAGING.to_string_lossy();
        format!("what an earlier import left in {}/{staging} cannot be removed", path.display())
    })
}

/// Removes what a killed import left in a tree, unless another is at it.
///
/// # Errors
/// When it cannot be removed, or what it took out of the tree cannot be put back.
pub fn sweep(path: &Path) -> Result<()> {
    let Ok(root) = openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty()) else { return Ok(()) };
    let is_left = statat(&root, STAGING, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if is_left && flock(&root, FlockOperation::NonBlockingLockExclusive).is_ok() {
        collect(root.as_fd(), path)?;
    }
    Ok(())
}

/// Returns the device and the inode of an open directory.
fn inode(dir: &OwnedFd) -> Result<(u64, u64)> {
    let meta = File::from(dir.try_clone()?).metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn make_dir(above: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    mkdirat(above, name, Mode::from_raw_mode(0o700))?;
    Ok(openat(above, name, DIRECTORY, Mode::empty())?)
}

/// Moves a staging tree into a tree.
struct Merge<'a> {
    rules: &'a [Rule],
    replace: bool,
    /// Paths of files that are not replaced.
    secrets: &'a BTreeSet<PathBuf>,
    /// Number of the staging tree.
    tree: usize,
    moves: &'a mut Moves,
    /// Where it is; where it failed after an error.
    path: Vec<u8>,
    /// The first file that stays because it is newer, and how many there are.
    newer: Vec<u8>,
    newer_count: u64,
    unpacked: &'a mut Unpacked,
}

impl Merge<'_> {
    fn directory(&mut self, new: Option<BorrowedFd<'_>>, old: BorrowedFd<'_>, at: At<'_>) -> Result<()> {
        let arriving = new.map_or(Ok(Vec::new()), names)?;
        for name in &arriving {
            self.below(name, |this| this.entry(new.unwrap_or(old), old, name, at.child(name.to_bytes())))?;
        }
        if !self.replace {
            return Ok(());
        }
        let arrived: HashSet<&CString> = arriving.iter().collect();
        for name in names(old)?.iter().filter(|name| !arrived.contains(name)) {
            if !(self.path.is_empty() && name.as_c_str() == STAGING) {
                self.below(name, |this| this.leaving(old, name, at.child(name.to_bytes())))?;
            }
        }
        Ok(())
    }

    /// Does something with a name of the directory that it is in.
    fn below(&mut self, name: &CStr, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let above = self.path.len();
        if above > 0 {
            self.path.push(b'/');
        }
        self.path.extend(name.to_bytes());
        act(self)?;
        self.path.truncate(above);
        Ok(())
    }

    fn entry(&mut self, new: BorrowedFd<'_>, old: BorrowedFd<'_>, name: &CStr, at: At<'_>) -> Result<()> {
        let arriving = statat(new, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let there = match statat(old, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => match self.bring(new, &arriving, old, name, false) {
                // A program in the volume was sooner.
                Err(error) if error.downcast_ref() == Some(&Errno::EXIST) => {
                    statat(old, name, AtFlags::SYMLINK_NOFOLLOW)?
                }
                brought => return brought,
            },
            Err(error) => return Err(error.into()),
        };
        if self.secrets.contains(Path::new(OsStr::from_bytes(&self.path))) {
            return self.keep(new, name);
        }
        if self.goes(at) {
            return self.bring(new, &arriving, old, name, true);
        }
        match (is_dir(&arriving), is_dir(&there)) {
            (true, true) => {
                let new = openat(new, name, DIRECTORY, Mode::empty())?;
                let old = openat(old, name, DIRECTORY, Mode::empty())?;
                self.directory(Some(new.as_fd()), old.as_fd(), at)
            }
            (false, false) => match modified(&arriving).cmp(&modified(&there)) {
                Ordering::Greater => self.bring(new, &arriving, old, name, true),
                Ordering::Equal => {
                    self.unpacked.reused_bytes += size(&arriving);
                    self.keep(new, name)
                }
                Ordering::Less => {
                    if self.newer_count == 0 {
                        self.newer.clone_from(&self.path);
                    }
                    self.newer_count += 1;
                    self.keep(new, name)
                }
            },
            _ => {
                if self.unpacked.notes.len() < NAMED {
                    let path = shown(&self.path);
                    self.unpacked.notes.push(format!("{path}: something of another kind is there, and stays"));
                }
                self.keep(new, name)
            }
        }
    }

    /// Counts the bytes of what does not come, with all that is below.
    fn keep(&mut self, new: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let arriving = statat(new, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_dir(&arriving) {
            let below = openat(new, name, DIRECTORY, Mode::empty())?;
            return names(below.as_fd())?.iter().try_for_each(|name| self.keep(below.as_fd(), name));
        }
        self.unpacked.kept_bytes += size(&arriving);
        Ok(())
    }

    /// Tells whether what is there goes with all that is in it.
    fn goes(&self, at: At<'_>) -> bool {
        let is_kept = |secret: &PathBuf| secret.starts_with(OsStr::from_bytes(&self.path));
        self.replace && self.taken(at) && at.is_whole() && !self.secrets.iter().any(is_kept)
    }

    /// Takes away, of what does not arrive, what the rules take.
    fn leaving(&mut self, old: BorrowedFd<'_>, name: &CStr, at: At<'_>) -> Result<()> {
        if self.goes(at) {
            self.moves.take_away(Name { dir: old, name, path: &self.path })
        } else if is_dir(&statat(old, name, AtFlags::SYMLINK_NOFOLLOW)?) && (self.taken(at) || at.takes_below()) {
            let below = openat(old, name, DIRECTORY, Mode::empty())?;
            self.directory(None, below.as_fd(), at)
        } else {
            Ok(())
        }
    }

    fn bring(
        &mut self,
        new: BorrowedFd<'_>,
        arriving: &Stat,
        old: BorrowedFd<'_>,
        name: &CStr,
        replaces: bool,
    ) -> Result<()> {
        let to = Name { dir: old, name, path: &self.path };
        self.moves.bring(self.tree, new, arriving.st_ino, to, replaces)
    }

    fn taken(&self, at: At<'_>) -> bool {
        at.rule.is_some_and(|rule| self.rules[rule].take)
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Returns the bytes of a file that came, its share of them if it has several names; what is no file has none.
fn size(stat: &Stat) -> u64 {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if is_file { stat.st_size as u64 / stat.st_nlink.max(1) } else { 0 }
}

fn modified(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec as i64)
}

/// Removes a tree, following no link and entering nothing that is mounted there; that it is not there is fine.
fn remove(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let error = match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(error) => error,
    };
    if !statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_dir(&stat)) {
        return Err(error).with_context(|| name.to_string_lossy().into_owned());
    }
    let inner = openat(dir, name, DIRECTORY, Mode::empty())?;
    ensure!(mount_of(&inner)? == mount_of(dir)?, "something is mounted at {}", name.to_string_lossy());
    for below in names(inner.as_fd())? {
        remove(inner.as_fd(), &below)?;
    }
    Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::*;
    use crate::inside::pack::{self, Pack, Packed, Previous, Tree};

    const ALL: &[(&str, bool)] = &[("", true)];

    fn rules(rules: &[(&str, bool)]) -> Vec<Rule> {
        rules.iter().map(|(path, take)| Rule { path: (*path).into(), take: *take }).collect()
    }

    fn pack(root: &Path, out: &Path, taken: &[(&str, bool)], previous: Option<&Packed>) -> Packed {
        let previous =
            previous.map(|packed| Previous { table: out.join(packed.table.file()), layers: packed.layers.clone() });
        let tree = Tree {
            root: root.into(),
            base: "/cache".into(),
            rules: rules(taken),
            secrets: vec!["token".into()],
            previous,
        };
        pack::all(&Pack { out: out.into(), trees: vec![tree] }, &mut |_, _| ()).unwrap().remove(0)
    }

    fn target(packed: &Packed, root: &Path) -> Target {
        Target {
            root: root.into(),
            base: "/cache".into(),
            table: packed.table.clone(),
            layers: packed.layers.clone(),
            rules: rules(ALL),
            from: String::new(),
            to: String::new(),
            replace: false,
            owner: None,
            secrets: Vec::new(),
        }
    }

    fn unpack(target: Target, blobs: &Path) -> Result<Unpacked> {
        Ok(all(&Unpack { blobs: blobs.into(), trees: vec![target] }, &mut |_, _| ())?.remove(0))
    }

    /// Everything that must be the same, by path.
    fn listing(root: &Path) -> Vec<String> {
        fn below(root: &Path, path: &Path, lines: &mut Vec<String>, first: &mut Vec<(u64, PathBuf)>) {
            let meta = fs::symlink_metadata(root.join(path)).unwrap();
            let link = match first.iter().find(|(inode, _)| *inode == meta.ino()) {
                Some((_, link)) => link.clone(),
                None => {
                    first.push((meta.ino(), path.into()));
                    path.into()
                }
            };
            let content = match () {
                () if meta.is_file() => {
                    format!("{:?}", pack::digest(&mut File::open(root.join(path)).unwrap()).unwrap())
                }
                () if meta.is_symlink() => format!("{:?}", fs::read_link(root.join(path)).unwrap()),
                () => String::new(),
            };
            let (mode, owner) = (meta.mode(), (meta.uid(), meta.gid()));
            let time = (meta.mtime(), meta.mtime_nsec());
            lines.push(format!("{path:?} {mode:o} {owner:?} {time:?} {link:?} {content}"));
            if meta.is_dir() {
                let mut names: Vec<_> =
                    fs::read_dir(root.join(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names.iter().for_each(|name| below(root, &path.join(name), lines, first));
            }
        }
        let mut lines = Vec::new();
        below(root, Path::new(""), &mut lines, &mut Vec::new());
        lines
    }

    fn dirs() -> (tempfile::TempDir, PathBuf, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let [tree, out, back] = ["tree", "out", "back"].map(|name| dir.path().join(name));
        [&tree, &out, &back].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        (dir, tree, out, back)
    }

    /// Past the moment in which times cannot tell a change.
    fn settle() {
        std::thread::sleep(std::time::Duration::from_millis(40));
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let (_dir, tree, out, back) = dirs();
        fs::create_dir_all(tree.join("pip/http")).unwrap();
        fs::write(tree.join("pip/http/a"), "a").unwrap();
        fs::write(tree.join("pip/empty"), "").unwrap();
        fs::write(tree.join("pip/large"), vec![7; 3 << 20]).unwrap();
        fs::hard_link(tree.join("pip/http/a"), tree.join("pip/b")).unwrap();
        symlink("http/a", tree.join("pip/link")).unwrap();
        symlink("/cache/pip/http", tree.join("pip/inner")).unwrap();
        fs::write(tree.join(format!("pip/{}", "long".repeat(60))), "long").unwrap();
        let sparse = File::create(tree.join("pip/sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 32 << 20).unwrap();
        fsetxattr(&sparse, "user.note", b"kept\n\0", XattrFlags::empty()).unwrap();
        fsetxattr(&sparse, "user.a=b%3D", b"=", XattrFlags::empty()).unwrap();
        futimens(
            &sparse,
            &Timestamps {
                last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
                last_modification: Timespec { tv_sec: -3, tv_nsec: 500_000_001 },
            },
        )
        .unwrap();
        fs::set_permissions(tree.join("pip/http"), fs::Permissions::from_mode(0o555)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(tree.join("pip/empty"), Some(1234), Some(3_000_000_000)).unwrap();
        }
        let packed = pack(&tree, &out, ALL, None);
        assert_eq!((packed.skipped_count, packed.files), (0, 8), "{packed:?}");
        let unpacked = unpack(target(&packed, &back), &out).unwrap();
        assert_eq!(unpacked.notes, Vec::<String>::new());
        assert_eq!(listing(&tree), listing(&back));
        let mut value = [0; 16];
        let copy = File::open(back.join("pip/sparse")).unwrap();
        assert_eq!(rustix::fs::fgetxattr(&copy, "user.note", &mut value[..]).unwrap(), 6);
        assert_eq!(pack::attributes(copy.as_fd()).unwrap(), pack::attributes(sparse.as_fd()).unwrap());
        assert!(copy.metadata().unwrap().blocks() < 100);
    }

    #[test]
    fn unchanged_files_are_not_packed_again_and_rubbish_does_not_stay() {
        let (_dir, tree, out, back) = dirs();
        for folder in 0..40 {
            fs::create_dir(tree.join(format!("{folder}"))).unwrap();
            (0..50).for_each(|file| fs::write(tree.join(format!("{folder}/{file}")), vec![file; 3000]).unwrap());
        }
        settle();
        let first = pack(&tree, &out, ALL, None);
        let again = pack(&tree, &out, ALL, Some(&first));
        assert_eq!((&first.table, &first.layers), (&again.table, &again.layers));
        fs::write(tree.join("7/7"), "changed").unwrap();
        settle();
        let third = pack(&tree, &out, ALL, Some(&again));
        assert_eq!(third.layers.len(), 2);
        assert_eq!(third.layers[0], first.layers[0]);
        assert!(third.layers[1].entries <= 2);
        unpack(target(&third, &back), &out).unwrap();
        assert_eq!(listing(&tree), listing(&back));
        let (mut last, mut empty) = (third, 0);
        for _ in 0..20 {
            fs::write(tree.join("8/8"), vec![1; 20_000]).unwrap();
            settle();
            last = pack(&tree, &out, ALL, Some(&last));
            let now = last.layers.iter().filter(|layer| layer.entries == 0).count();
            assert!(now == empty + 1 || now == 0, "{last:?}");
            empty = now;
        }
        assert!(empty > 0 && last.layers.len() < 15, "{last:?}");
        fs::remove_dir_all(&back).unwrap();
        fs::create_dir(&back).unwrap();
        unpack(target(&last, &back), &out).unwrap();
        assert_eq!(listing(&tree), listing(&back));
        let cost = |packed: &Packed| packed.layers.iter().map(|layer| layer.cost).sum::<u64>();
        assert!(cost(&last) < cost(&first) * 12 / 10, "{last:?}");
    }

    #[test]
    fn only_what_the_rules_take_is_packed_and_secrets_are_named() {
        let (_dir, tree, out, back) = dirs();
        for path in ["pip/http/token", "pip/a", "pip/token", "cargo/bin/x", "cargo/registry/y", "other/z"] {
            fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs::write(tree.join(path), path).unwrap();
        }
        symlink("/etc/passwd", tree.join("pip/out")).unwrap();
        let taken = [("", false), ("pip", true), ("cargo", false), ("cargo/registry", true)];
        let packed = pack(&tree, &out, &taken, None);
        assert_eq!(packed.secrets, ["pip/token"]);
        assert_eq!(packed.skipped, ["pip/out: it is a link that leads out, to /etc/passwd"]);
        unpack(target(&packed, &back), &out).unwrap();
        let found: Vec<bool> = ["pip/a", "pip/http/token", "cargo/registry/y", "pip/token", "cargo/bin", "other"]
            .map(|path| back.join(path).exists())
            .into();
        assert_eq!(found, [true, true, true, false, false, false]);
    }

    #[test]
    fn other_names_of_a_secret_are_left_out_wherever_they_are() {
        let (_dir, tree, out, back) = dirs();
        for path in ["pip/http", "npm/x"] {
            fs::create_dir_all(tree.join(path)).unwrap();
        }
        fs::write(tree.join("npm/token"), "secret").unwrap();
        fs::write(tree.join("npm/both"), "both").unwrap();
        for (from, to) in [
            ("npm/token", "copy"),
            ("npm/token", "pip/http/copy"),
            ("npm/token", "npm/zcopy"),
            ("npm/both", "npm/x/both"),
        ] {
            fs::hard_link(tree.join(from), tree.join(to)).unwrap();
        }
        let packed = pack(&tree, &out, &[("", true), ("*", true)], None);
        assert_eq!((packed.secrets.len(), packed.skipped_count), (1, 3), "{packed:?}");
        unpack(target(&packed, &back), &out).unwrap();
        let files: Vec<bool> = ["npm/both", "npm/x/both", "npm/token", "copy", "pip/http/copy", "npm/zcopy"]
            .map(|path| back.join(path).exists())
            .into();
        assert_eq!(files, [true, true, false, false, false, false]);
    }

    #[test]
    fn paths_that_are_too_long_for_a_bundle_are_left_out_and_told() {
        let (_dir, tree, out, back) = dirs();
        let name = "d".repeat(255);
        let mut above = OwnedFd::from(File::open(&tree).unwrap());
        for _ in 0..17 {
            let file = openat(&above, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            drop(file);
            above = make_dir(above.as_fd(), &CString::new(name.as_str()).unwrap()).unwrap();
        }
        let packed = pack(&tree, &out, ALL, None);
        // One file just does not fit, nor does the directory beside it.
        assert_eq!((packed.files, packed.skipped_count), (16, 2), "{packed:?}");
        unpack(target(&packed, &back), &out).unwrap();
        settle();
        assert_eq!(pack(&tree, &out, ALL, Some(&packed)).files, 16);
    }

    #[test]
    fn links_that_lead_out_from_where_they_would_go_do_not_come() {
        let (_dir, tree, out, back) = dirs();
        fs::create_dir_all(tree.join("pip/http")).unwrap();
        for (link, to) in [("pip/in", "http"), ("pip/http/up", "../in"), ("pip/out", "../other")] {
            symlink(to, tree.join(link)).unwrap();
        }
        let packed = pack(&tree, &out, ALL, None);
        let unpacked = unpack(Target { from: "pip".into(), ..target(&packed, &back) }, &out).unwrap();
        assert_eq!(unpacked.notes.len(), 1, "{unpacked:?}");
        let found = ["in", "http/up", "out"].map(|path| back.join(path).is_symlink());
        assert_eq!(found, [true, true, false]);
    }

    #[test]
    fn a_tree_goes_nowhere_but_below_its_root() {
        let (dir, tree, out, back) = dirs();
        fs::write(tree.join("a"), "a").unwrap();
        let packed = pack(&tree, &out, ALL, None);
        let before = listing(dir.path());
        for to in ["../other", "pip/../../other", "/tmp/other", "./x"] {
            unpack(Target { to: to.into(), ..target(&packed, &back) }, &out).unwrap_err();
            unpack(Target { from: to.into(), ..target(&packed, &back) }, &out).unwrap_err();
        }
        assert_eq!(listing(dir.path()), before);
    }

    #[test]
    fn directories_on_the_way_to_a_tree_can_be_used_by_its_owner() {
        let (_dir, tree, out, back) = dirs();
        fs::write(tree.join("a"), "a").unwrap();
        let packed = pack(&tree, &out, ALL, None);
        let is_root = rustix::process::geteuid().is_root();
        let owner = is_root.then_some((1000, 1001));
        unpack(Target { to: "x/y/z".into(), owner, ..target(&packed, &back) }, &out).unwrap();
        for path in ["x", "x/y"] {
            let meta = fs::metadata(back.join(path)).unwrap();
            assert_eq!(meta.mode() & 0o7777, 0o755);
            assert!(!is_root || (meta.uid(), meta.gid()) == (1000, 1001), "{meta:?}");
        }
    }

    #[test]
    fn one_directory_by_two_paths_is_one_place() {
        let (dir, tree, out, back) = dirs();
        fs::create_dir(tree.join("d")).unwrap();
        fs::write(tree.join("a"), "a").unwrap();
        let packed = pack(&tree, &out, ALL, None);
        let other = dir.path().join("tree/../back");
        let job = |replace| {
            let trees = [&back, &other].map(|root| Target { replace, ..target(&packed, root) });
            all(&Unpack { blobs: out.clone(), trees: trees.into() }, &mut |_, _| ())
        };
        assert_eq!(job(false).unwrap().len(), 2);
        let error = job(true).unwrap_err().to_string();
        assert!(error.contains("are one directory"), "{error}");
    }

    #[test]
    fn adding_keeps_what_is_newer_and_replacing_takes_away_only_what_the_rules_take() {
        let (_dir, tree, out, back) = dirs();
        fs::create_dir_all(tree.join("pip")).unwrap();
        fs::write(tree.join("pip/a"), "old").unwrap();
        let packed = pack(&tree, &out, &[("", false), ("pip", true)], None);
        settle();
        for path in ["pip/a", "pip/b", "state/c"] {
            fs::create_dir_all(back.join(path).parent().unwrap()).unwrap();
            fs::write(back.join(path), "new").unwrap();
        }
        let added = unpack(target(&packed, &back), &out).unwrap();
        assert_eq!((added.kept_bytes, added.reused_bytes, added.notes.len()), (3, 0, 1), "{added:?}");
        assert_eq!(fs::read_to_string(back.join("pip/a")).unwrap(), "new");
        let rules = rules(&[("", false), ("pip", true)]);
        unpack(Target { replace: true, rules, ..target(&packed, &back) }, &out).unwrap();
        assert_eq!(fs::read_to_string(back.join("pip/a")).unwrap(), "old");
        let again = unpack(target(&packed, &back), &out).unwrap();
        assert_eq!((again.kept_bytes, again.reused_bytes, again.notes.len()), (3, 3, 0), "{again:?}");
        assert!(
            !back.join("pip/b").exists()
                && back.join("state/c").exists()
                && !back.join(STAGING.to_str().unwrap()).exists()
        );
    }

    #[test]
    fn replacing_takes_no_git_work_tree_away() {
        let (_dir, tree, out, back) = dirs();
        let places = ["pip", "venvs/a/lib", "state"];
        for place in places {
            fs::create_dir_all(tree.join(place)).unwrap();
            fs::write(tree.join(place).join("f"), "").unwrap();
        }
        let taken = [("", false), ("pip", true), ("venvs/*/lib", true)];
        let packed = pack(&tree, &out, &taken, None);
        for place in places {
            let git = back.join(place).join(".git");
            fs::create_dir_all(&git).unwrap();
            fs::write(git.join("HEAD"), "ref: refs/heads/main").unwrap();
            let before = listing(&back);
            let target = Target { rules: rules(&taken), ..target(&packed, &back) };
            let replaced = unpack(Target { replace: true, ..target.clone() }, &out);
            match place {
                "state" => drop(replaced.unwrap()),
                _ => {
                    let error = replaced.unwrap_err().to_string();
                    let path = back.join(place);
                    assert!(error.starts_with(&format!("{} is a git work tree", path.display())), "{error}");
                    assert_eq!(listing(&back)[1..], before[1..]);
                    unpack(target, &out).unwrap();
                    assert!(path.join("f").exists());
                    fs::remove_dir_all(git).unwrap();
                }
            }
        }
        let whole = Target { from: "pip".into(), to: "state".into(), replace: true, ..target(&packed, &back) };
        let whole = Target { rules: rules(&taken), ..whole };
        assert!(unpack(whole, &out).unwrap_err().to_string().contains("/state is a git work tree"));
    }

    #[test]
    fn files_of_secrets_are_not_replaced() {
        let (_dir, tree, out, back) = dirs();
        let taken = [("pip", true), ("npm", true), ("venvs/*", true), ("venvs/*/lib", false), ("state", false)];
        let write = |root: &Path, path: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), path).unwrap();
        };
        ["pip/http/a", "pip/token", "venvs/x/bin"].iter().for_each(|path| write(&tree, path));
        let packed = pack(&tree, &out, &taken, None);
        let stays = ["npm/token", "pip/token", "state/token", "venvs/x/lib/a", "venvs/x/token", "venvs/y/token"];
        let goes = ["pip/http/old", "pip/http/token", "npm/_cacache/a", "venvs/x/old", "venvs/y/old"];
        stays.iter().chain(&goes).for_each(|path| write(&back, path));
        let replacing = Target { replace: true, rules: rules(&taken), ..target(&packed, &back) };
        let unpacked = unpack(Target { secrets: vec!["token".into()], ..replacing }, &out).unwrap();
        let told = unpacked
            .notes
            .iter()
            .filter_map(|note| note.strip_suffix(": it has the name of a file of secrets, and stays"));
        assert_eq!(told.collect::<Vec<_>>(), ["npm/token", "pip/token", "venvs/x/token", "venvs/y/token"]);
        for path in stays.iter().chain(&["pip/http/a", "venvs/x/bin"]) {
            assert_eq!(fs::read_to_string(back.join(path)).unwrap(), *path);
        }
        assert_eq!(goes.map(|path| back.join(path).exists()), [false; 5]);
    }

    #[test]
    fn directories_of_others_keep_their_mode_and_the_top_gets_that_of_what_becomes_it() {
        let (_dir, tree, out, back) = dirs();
        let taken = [("pip", true), ("cargo/registry", true)];
        for path in ["pip/http", "cargo/registry/cache"] {
            fs::create_dir_all(tree.join(path)).unwrap();
        }
        let set = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(tree.join("pip"), 0o711);
        let packed = pack(&tree, &out, &taken, None);
        for path in ["pip/old", "cargo/registry/old", "cargo/bin", "mine"] {
            fs::create_dir_all(back.join(path)).unwrap();
        }
        ["", "cargo"].into_iter().for_each(|path| set(back.join(path), 0o770));
        unpack(Target { replace: true, rules: rules(&taken), ..target(&packed, &back) }, &out).unwrap();
        let mode = |path: &str| fs::metadata(back.join(path)).unwrap().mode() & 0o777;
        assert_eq!(["", "cargo", "pip"].map(mode), [0o770, 0o770, 0o711]);
        assert!(back.join("cargo/bin").is_dir() && !back.join("cargo/registry/old").exists());

        let top = Target { from: "pip".into(), rules: rules(&taken[..1]), ..target(&packed, &back) };
        for replace in [true, false] {
            if !replace {
                fs::remove_dir_all(&back).unwrap();
                fs::create_dir(&back).unwrap();
            }
            set(back.clone(), 0o700);
            unpack(Target { replace, ..top.clone() }, &out).unwrap();
            assert_eq!((mode(""), back.join("http").is_dir()), (0o711, true), "{replace}");
        }
    }

    #[test]
    fn replacing_restores_directories_that_only_deeper_rules_leave_something_out_of() {
        let (_dir, tree, out, back) = dirs();
        let taken = [("", false), ("bundle", true), ("bundle/inner/state", false)];
        let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        for (root, mode) in [(&tree, 0o700), (&back, 0o755)] {
            fs::create_dir_all(root.join("bundle/inner/state")).unwrap();
            fs::write(root.join("bundle/inner/f"), "").unwrap();
            for path in ["bundle/inner", "bundle"] {
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        for path in ["bundle/inner", "bundle"] {
            File::open(tree.join(path)).unwrap().set_modified(moment).unwrap();
        }
        let packed = pack(&tree, &out, &taken, None);
        let replacing = Target { replace: true, rules: rules(&taken), ..target(&packed, &back) };
        let moved = Target { from: "bundle".into(), to: "ruby/bundle".into(), ..replacing.clone() };
        fs::create_dir_all(back.join("ruby/bundle/inner/state")).unwrap();
        for (target, to) in [(replacing, "bundle"), (moved, "ruby/bundle")] {
            unpack(target, &out).unwrap();
            for path in ["", "inner"] {
                let found = fs::metadata(back.join(to).join(path)).unwrap();
                assert_eq!((found.mode() & 0o777, found.modified().unwrap()), (0o700, moment), "{to} {path}");
            }
            assert!(back.join(to).join("inner/state").exists());
        }
    }

    #[test]
    fn what_is_in_the_way_of_another_kind_stays_and_is_told() {
        let (_dir, tree, out, back) = dirs();
        for path in ["a/b/c", "a/b/d/e", "file"] {
            fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs::write(tree.join(path), "12").unwrap();
        }
        let taken = [("", false), ("a", false), ("a/b", true), ("file", true)];
        let packed = pack(&tree, &out, &taken, None);
        fs::create_dir_all(back.join("file/mine")).unwrap();
        fs::write(back.join("replaced"), "").unwrap();
        symlink("elsewhere", back.join("a")).unwrap();
        let note = |path| format!("{path}: something of another kind is there, and stays");
        let added = unpack(Target { rules: rules(&taken), ..target(&packed, &back) }, &out).unwrap();
        assert_eq!((&added.notes, added.kept_bytes), (&vec![note("a"), note("file")], 6));
        assert!(back.join("a").is_symlink() && back.join("file/mine").is_dir());
        let replacing = Target { replace: true, rules: rules(&taken), ..target(&packed, &back) };
        let replaced = unpack(replacing, &out).unwrap();
        assert_eq!((&replaced.notes, replaced.kept_bytes), (&vec![note("a")], 4));
        assert!(back.join("a").is_symlink() && back.join("file").is_file());
    }

    #[test]
    fn a_damaged_blob_leaves_the_tree_as_it_was() {
        let (_dir, tree, out, back) = dirs();
        fs::write(tree.join("a"), vec![1; 5000]).unwrap();
        fs::write(back.join("mine"), "mine").unwrap();
        let packed = pack(&tree, &out, ALL, None);
        let before = listing(&back);
        for blob in [&packed.table, &packed.layers[0].blob] {
            let path = out.join(blob.file());
            let bytes = fs::read(&path).unwrap();
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                fs::write(&path, &damaged).unwrap();
                unpack(target(&packed, &back), &out).unwrap_err();
                fs::write(&path, &bytes[..at]).unwrap();
                unpack(target(&packed, &back), &out).unwrap_err();
            }
            fs::write(&path, &bytes).unwrap();
        }
        // Its time changed, for the staging directory was there.
        assert_eq!(listing(&back)[1..], before[1..]);
    }

    /// Makes a file that not even root can move, and tells whether this user may.
    #[cfg(target_os = "linux")]
    fn nail(path: &Path, down: bool) -> bool {
        let flags = if down { rustix::fs::IFlags::IMMUTABLE } else { rustix::fs::IFlags::empty() };
        rustix::fs::ioctl_setflags(File::open(path).unwrap(), flags).is_ok()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_moved_is_moved_back_when_something_cannot_be() {
        let (dir, tree, out, back) = dirs();
        let other = dir.path().join("other");
        for (path, text) in [("a/f", "new"), ("b/both", "new"), ("b/more", "new"), ("z", "new")] {
            fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs::write(tree.join(path), text).unwrap();
        }
        let packed = pack(&tree, &out, ALL, None);
        for path in ["a/mine", "b/both", "b/mine", "z"] {
            for root in [&other, &back] {
                fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
                fs::write(root.join(path), "old").unwrap();
                File::open(root.join(path)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            }
        }
        if !nail(&back.join("z"), true) {
            return;
        }
        // Directories have another time now.
        let files =
            |root: &Path| -> Vec<String> { listing(root).into_iter().filter(|line| !line.ends_with(' ')).collect() };
        let before = [&other, &back].map(|root| files(root));
        let whole = rules(&[("", false), ("a", true), ("b", true), ("z", true)]);
        for (replace, rules) in [(true, whole), (true, rules(ALL)), (false, rules(ALL))] {
            let target = |root| Target { replace, rules: rules.clone(), ..target(&packed, root) };
            let trees = vec![target(&other), target(&back)];
            let error = all(&Unpack { blobs: out.clone(), trees }, &mut |_, _| ()).unwrap_err();
            assert!(format!("{error:#}").contains(&back.join("z").display().to_string()), "{error:#}");
            assert_eq!([&other, &back].map(|root| files(root)), before, "{replace}");
            assert_eq!(names(File::open(&back).unwrap().as_fd()).unwrap(), [c"a", c"b", c"z"].map(CString::from));
        }
        nail(&back.join("z"), false);
    }

    #[test]
    fn what_a_killed_run_took_away_is_back_with_the_next() {
        let (_dir, tree, out, back) = dirs();
        fs::write(tree.join("new"), "").unwrap();
        let packed = pack(&tree, &out, ALL, None);
        for name in ["alone", "replaced"] {
            fs::write(back.join(name), "old").unwrap();
        }
        let mut place = Place::make(&back, File::open(&back).unwrap().into()).unwrap();
        for name in [c"alone", c"replaced"] {
            place.moves.take_away(Name { dir: place.root.as_fd(), name, path: name.to_bytes() }).unwrap();
        }
        fs::write(back.join("replaced"), "new").unwrap();
        place.keeps = true;
        sweep(&back).unwrap();
        assert!(!back.join("alone").exists(), "one that runs is left alone");
        drop(place);
        sweep(&back).unwrap();
        assert!(!back.join(STAGING.to_str().unwrap()).exists());
        unpack(target(&packed, &back), &out).unwrap();
        let texts = ["alone", "replaced", "new"].map(|name| fs::read_to_string(back.join(name)).unwrap());
        assert_eq!(texts, ["old", "new", ""]);
        assert_eq!(fs::read_dir(&back).unwrap().count(), 3);
    }

    #[test]
    fn what_a_killed_run_took_away_stays_where_its_journal_is_too_long() {
        let (_dir, tree, out, back) = dirs();
        let packed = pack(&tree, &out, ALL, None);
        let beside = back.join(STAGING.to_str().unwrap());
        fs::create_dir_all(beside.join("old")).unwrap();
        fs::write(beside.join("old/1"), "old").unwrap();
        File::create(beside.join("moves")).unwrap().set_len((256 << 20) + 1).unwrap();
        let error = unpack(target(&packed, &back), &out).unwrap_err().to_string();
        assert!(error.contains("is kept in .docker-cache-import/old there") && error.contains("\nhint: "), "{error}");
        assert!(beside.join("old/1").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_tree_comes_back(files in prop::collection::btree_map("[a-c .*/'é]{1,12}", prop::collection::vec(any::<u8>(), 0..400), 0..20)) {
            let (_dir, tree, out, back) = dirs();
            for (path, content) in &files {
                let clean: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | "." | "..")).collect();
                let path = tree.join(clean.join("/"));
                if fs::create_dir_all(path.parent().unwrap()).is_ok() {
                    let _ = fs::write(path, content);
                }
            }
            settle();
            let packed = pack(&tree, &out, ALL, None);
            unpack(target(&packed, &back), &out).unwrap();
            prop_assert_eq!(listing(&tree), listing(&back));
            let again = pack(&tree, &out, ALL, Some(&packed));
            prop_assert_eq!(again.layers, packed.layers);
        }
    }
}
