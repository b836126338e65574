//! Packs trees into archives of bounded size, on all cores. What a former export has, by the prints in its table, is
//! neither read nor written again; archives are packed anew once much of them is rubbish.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, OFlags, Stat, fstat};
use rustix::io::{Errno, pread};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::archive::{self, Attribute, Kind, MAX_ATTRIBUTES, Member, walk_order};
use super::dirs::{DIRECTORY, Dirs, open_to_read};
use super::rules::{Rule, Rules};
use super::scan::{Found, NAMED, scan, state};
use super::shown;
use super::table::{self, MAX_LAYERS, MAX_ROWS, Row, Rows, Table, Writer};
use super::walk::{Counters, permissions};
use crate::parallel;

/// Trees to pack, and the directory for the blobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pack {
    pub out: PathBuf,
    pub trees: Vec<Tree>,
}

/// A tree to pack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tree {
    pub root: PathBuf,
    /// Where programs see the root: links to absolute paths below it stay within the tree.
    pub base: String,
    pub rules: Vec<Rule>,
    /// Names of files that are left out where a rule's path, or the root, has them; `*` at one end stands for anything.
    pub secrets: Vec<String>,
    pub previous: Option<Previous>,
}

/// What a former export has of a tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Previous {
    pub table: PathBuf,
    pub layers: Vec<Layer>,
}

/// A blob, named by its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    pub size: u64,
}

impl Blob {
    /// Returns the name of its file: the 64 hexadecimal digits.
    pub fn file(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }

    /// Checks that a digest is one, so that it can be a file name.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> Result<()> {
        let hex = self.digest.strip_prefix("sha256:").unwrap_or_default();
        let digits = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        ensure!(hex.len() == 64 && hex.bytes().all(digits), "{:?} is no SHA-256 digest", self.digest);
        Ok(())
    }
}

/// An archive of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    #[serde(flatten)]
    pub blob: Blob,
    /// Bytes before compression.
    pub raw: u64,
    /// Number of its members, those that no row of the table has any more among them.
    pub entries: u64,
    /// What its members cost when they were all in use.
    pub cost: u64,
    /// False if the blob is gone or of another length: what it had is packed again.
    #[serde(default = "yes", skip_serializing)]
    pub usable: bool,
}

fn yes() -> bool {
    true
}

/// What a packed tree has come to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Packed {
    pub table: Blob,
    pub layers: Vec<Layer>,
    /// Entries of the table that are no directories.
    pub files: u64,
    pub bytes: u64,
    /// Files with secret names, and so left out.
    pub secrets: Vec<String>,
    /// Paths of rules that do not take what is there.
    pub unwanted: BTreeSet<String>,
    /// What could not be packed, each with the reason; the first hundred.
    pub skipped: Vec<String>,
    pub skipped_count: u64,
}

impl Packed {
    /// Returns the bytes of the blobs that were not there before.
    pub fn made(&self, tree: &Tree) -> u64 {
        let former = tree.previous.as_ref().map_or(&[][..], |previous| &previous.layers);
        let is_new = |layer: &&Layer| !former.iter().any(|former| former.blob == layer.blob);
        self.table.size + self.layers.iter().filter(is_new).map(|layer| layer.blob.size).sum::<u64>()
    }

    fn skip(&mut self, path: &[u8], why: &str) {
        self.skipped_count += 1;
        if self.skipped.len() < NAMED {
            self.skipped.push(format!("{}: {why}", shown(path)));
        }
    }

    /// Tells whether the blob of this file is of it.
    fn has(&self, name: &str) -> bool {
        self.layers.iter().map(|layer| &layer.blob).chain([&self.table]).any(|blob| blob.file() == name)
    }
}

/// Bytes and files that make one archive.
const MAX_BYTES: u64 = 32 << 20;
const MAX_FILES: usize = 4096;
/// How many archives that are far from full are left alone.
const MAX_PARTIAL: usize = 8;
/// How many archives may be empty.
const MAX_EMPTY: usize = 8;
/// Files up to this size are read before they are written, and read again if they change meanwhile.
const IN_MEMORY: u64 = 1 << 20;
/// How hard to compress: most of what caches hold is compressed already, and this is three times as fast on it as
/// zstd's default.
const LEVEL: i32 = 1;
/// Bytes that are compressed at once, before compression.
const FRAME: usize = 1 << 20;
/// Bytes that go through pipes, files and compressors at once.
const BUFFER: usize = 1 << 17;

/// Packs all trees, two at a time, so that one goes on while the other is at its last archive or its table; calls
/// `progress` with the files and bytes that are done.
///
/// # Errors
/// When a root cannot be read, a blob not be written, or a tree is larger than a bundle may have it.
pub fn all(job: &Pack, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<Vec<Packed>> {
    let read = Counters::default();
    let stale = Mutex::new(BTreeSet::new());
    let packed: Vec<OnceLock<Packed>> = job.trees.iter().map(|_| OnceLock::new()).collect();
    read.telling(progress, || {
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            // The workers alone hold it: should all be gone, no walk must wait for them.
            let receiver = Arc::new(Mutex::new(receiver));
            for _ in 0..parallel::workers() {
                let (receiver, read) = (receiver.clone(), &read);
                scope.spawn(move || work(job, &receiver, read));
            }
            drop(receiver);
            let trees: Vec<_> = job.trees.iter().zip(&packed).enumerate().collect();
            let packing = Packing { job, sender, read: &read, stale: &stale };
            parallel::try_each(2, &trees, |(number, (tree, packed))| {
                let done = packing.tree(tree, *number)?;
                packed.get_or_init(|| done);
                Ok(())
            })
        })
    })?;
    let packed: Vec<Packed> = packed.into_iter().filter_map(OnceLock::into_inner).collect();
    let stale = stale.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Another tree may hold the same.
    for name in stale.into_iter().filter(|name| !packed.iter().any(|packed| packed.has(name))) {
        fs::remove_file(job.out.join(name))?;
    }
    Ok(packed)
}

/// What all trees of a job share.
struct Packing<'a> {
    job: &'a Pack,
    /// To the workers.
    sender: SyncSender<Task>,
    read: &'a Counters,
    /// The files of blobs that were packed in vain.
    stale: &'a Mutex<BTreeSet<String>>,
}

impl Packing<'_> {
    fn tree(&self, tree: &Tree, number: usize) -> Result<Packed> {
        let former = tree.previous.as_ref().map_or(&[][..], |previous| &previous.layers);
        let mut kept: Vec<bool> = former.iter().map(|layer| layer.usable).collect();
        loop {
            let (packed, used) = self.new_of_tree(tree, number, &kept)?;
            let worth_it = match packed.layers.len() > MAX_LAYERS {
                true => vec![false; kept.len()],
                false => worth_keeping(former, &kept, &used),
            };
            if worth_it == kept {
                return Ok(packed);
            }
            // Once more, with those packed anew.
            let blobs = packed.layers.iter().map(|layer| &layer.blob);
            let new = blobs.filter(|blob| !former.iter().any(|layer| layer.blob == **blob)).chain([&packed.table]);
            let names = new.map(|blob| blob.file().to_owned());
            self.stale.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
            kept = worth_it;
            self.read.take_back(packed.files, packed.bytes);
        }
    }

    /// Packs what the former archives that are `kept` do not have. Returns also how much of each of them is in use. Where
    /// nothing is, an empty one takes the place, so that the rows of the others can stay as they were; many go altogether.
    fn new_of_tree(&self, tree: &Tree, number: usize, kept: &[bool]) -> Result<(Packed, Vec<u64>)> {
        let (rules, read, out) = (Rules::new(&tree.rules), self.read, &self.job.out);
        let mut layers: Vec<Layer> = tree.previous.iter().flat_map(|previous| previous.layers.clone()).collect();
        let mut used = vec![0; layers.len()];
        let old = layers.len();
        let mut packed = Packed::default();
        let mut path = out.join(format!("table-{number}"));
        let mut table = Writer::new(encoder(&path)?);
        let mut chunks = Chunks::new(number, self.sender.clone());
        let mut previous = tree.previous.as_ref().and_then(Former::open);
        let mut count = 0;
        // The states of the inodes that hard links have, in the order of the rows.
        let mut links = Vec::new();
        let notes = scan(tree, &rules, &mut |path, found| {
            count += 1;
            ensure!(
                count <= MAX_ROWS,
                "it has more than {MAX_ROWS} files and directories, the most that a bundle can carry of one"
            );
            let (kind, size, print) = (found.kind, found.size(), found.print);
            let former = previous.as_mut().and_then(|previous| previous.row(path));
            let same = former.filter(|row| print != 0 && (row.kind, row.size, row.print) == (kind, size, print));
            let same = same.filter(|row| kept.get(row.layer as usize) == Some(&true));
            packed.files += u64::from(kind != Kind::Dir);
            packed.bytes += size;
            links.extend((kind == Kind::Hardlink).then(|| state(&found.stat)));
            if let Some(row) = same {
                used[row.layer as usize] += row.cost();
                read.files.fetch_add(u64::from(kind != Kind::Dir), Relaxed);
                read.bytes.fetch_add(size, Relaxed);
                return Ok(table.write(row)?);
            }
            let layer = (old + chunks.add(path.into(), found.clone())?) as u32;
            Ok(table.write(&Row { layer, kind, size, print, path: path.into() })?)
        })?;
        let (made, amended) = chunks.finish()?;
        layers.extend(made);
        packed.skipped_count = notes.skipped_count;
        packed.skipped = notes.skipped;
        (packed.secrets, packed.unwanted) = (notes.secrets, notes.unwanted);
        let mut table = table.finish().finish()?;
        let stays = |at: usize| at >= old || used[at] > 0;
        let gone: Vec<usize> = (0..old).filter(|at| !stays(*at)).collect();
        if amended.is_empty() && gone.len() <= MAX_EMPTY {
            if !gone.is_empty() {
                let empty = empty(&layers, &out.join(format!("empty-{number}")), out)?;
                gone.into_iter().for_each(|at| layers[at] = empty.clone());
            }
            packed.layers = layers;
        } else {
            table.flush()?;
            let mut next = 0..;
            let numbers: Vec<u32> =
                (0..layers.len()).map(|at| if stays(at) { next.next().unwrap_or_default() } else { 0 }).collect();
            let written = std::mem::replace(&mut path, out.join(format!("amended-{number}")));
            let mut amending = Writer::new(encoder(&path)?);
            amend(Table::open(&written)?, &mut amending, &numbers, links, amended, &mut packed)?;
            table = amending.finish().finish()?;
            fs::remove_file(written)?;
            packed.layers =
                layers.into_iter().enumerate().filter(|(at, _)| stays(*at)).map(|(_, layer)| layer).collect();
        }
        packed.table = store(table, &path, out)?;
        Ok((packed, used))
    }
}

/// Returns which of the former archives stay: all but many small ones, and, once a tenth of all is rubbish, those of which
/// more than a tenth is. Before that they stay: to pack some anew, everything is looked at once more.
fn worth_keeping(former: &[Layer], kept: &[bool], used: &[u64]) -> Vec<bool> {
    let stays = |((layer, kept), used): ((&Layer, &bool), &u64)| (*kept && *used > 0).then_some((layer.cost, *used));
    let (cost, in_use) = former
        .iter()
        .zip(kept)
        .zip(used)
        .filter_map(stays)
        .fold((0, 0), |(cost, in_use), (more, used)| (cost + more, in_use + used));
    let is_clean = |cost: u64, used: u64| cost.saturating_sub(used) <= cost / 10;
    let all_clean = is_clean(cost, in_use);
    let is_worth = |((layer, kept), used): ((&Layer, &bool), &u64)| {
        *kept && (*used == 0 || all_clean || is_clean(layer.cost, *used))
    };
    let mut kept: Vec<bool> = former.iter().zip(kept).zip(used).map(is_worth).collect();
    let partial = |layer: &Layer| layer.cost < MAX_BYTES / 2 && layer.entries < MAX_FILES as u64 / 2;
    let few = |at: &usize| kept[*at] && used[*at] > 0 && partial(&former[*at]);
    let partials: Vec<usize> = (0..kept.len()).filter(few).collect();
    if partials.len() > MAX_PARTIAL {
        partials.into_iter().for_each(|at| kept[at] = false);
    }
    kept
}

/// The former table, read alongside a walk, as far as it makes sense: what follows is packed anew.
struct Former {
    rows: Table,
    /// Whether there is one more.
    has_row: bool,
}

impl Former {
    fn open(previous: &Previous) -> Option<Former> {
        let mut rows = Table::open(&previous.table).ok()?;
        let has_row = rows.advance().ok()?;
        Some(Former { rows, has_row })
    }

    /// Returns the row of a path; the paths asked for must be in the order of a walk.
    fn row(&mut self, path: &[u8]) -> Option<&Row> {
        while self.has_row && self.rows.row().path != path && walk_order(&self.rows.row().path, path).is_lt() {
            self.has_row = self.rows.advance().unwrap_or_default();
        }
        Some(self.rows.row()).filter(|row| self.has_row && row.path == path)
    }
}

/// An archive for a worker.
struct Task {
    /// Of the tree.
    number: usize,
    /// Number of the archive, from 0.
    at: usize,
    /// What goes into it, as the walk finds it: path by path, until it is full.
    members: Receiver<(Vec<u8>, Found)>,
    answer: Sender<Result<Made>>,
}

/// An archive that a worker has made.
struct Made {
    at: usize,
    layer: Layer,
    amended: Vec<Amended>,
}

/// Divides what is to be packed of a tree into archives, which workers pack as it comes.
struct Chunks {
    number: usize,
    workers: SyncSender<Task>,
    /// To the archive that is not full yet.
    next: Option<Sender<(Vec<u8>, Found)>>,
    bytes: u64,
    files: usize,
    /// How many archives are full.
    full: usize,
    answer: Sender<Result<Made>>,
    answers: Receiver<Result<Made>>,
    made: Vec<Made>,
}

impl Chunks {
    fn new(number: usize, workers: SyncSender<Task>) -> Chunks {
        let (answer, answers) = channel();
        Chunks { number, workers, next: None, bytes: 0, files: 0, full: 0, answer, answers, made: Vec::new() }
    }

    /// Returns the number of the archive that it goes to, from 0.
    fn add(&mut self, path: Vec<u8>, found: Found) -> Result<usize> {
        let next = match self.next.take() {
            Some(next) => next,
            None => self.begin()?,
        };
        self.bytes += table::cost(found.size());
        self.files += 1;
        // A worker that has failed takes no more, and its answer says why.
        let _ = next.send((path, found));
        let number = self.full;
        match self.bytes >= MAX_BYTES || self.files >= MAX_FILES {
            true => self.full += 1,
            false => self.next = Some(next),
        }
        Ok(number)
    }

    /// Begins an archive, as soon as a worker is to be had.
    fn begin(&mut self) -> Result<Sender<(Vec<u8>, Found)>> {
        ensure!(
            self.full < MAX_LAYERS,
            "it makes more than {MAX_LAYERS} archives, the most that a bundle can have of one"
        );
        // One that failed ends the walk.
        while let Ok(made) = self.answers.try_recv() {
            self.made.push(made?);
        }
        let (next, members) = channel();
        let task = Task { number: self.number, at: self.full, members, answer: self.answer.clone() };
        self.workers.send(task).ok().context("packing stopped")?;
        (self.bytes, self.files) = (0, 0);
        Ok(next)
    }

    /// Waits for all archives, and returns them in order, and what became of files meanwhile.
    fn finish(mut self) -> Result<(Vec<Layer>, Vec<Amended>)> {
        drop((self.next, self.answer));
        for made in self.answers {
            self.made.push(made?);
        }
        self.made.sort_by_key(|made| made.at);
        let (layers, amended): (Vec<_>, Vec<_>) = self.made.into_iter().map(|made| (made.layer, made.amended)).unzip();
        Ok((layers, amended.into_iter().flatten().collect()))
    }
}

/// A path, and what became of it after the walk.
type Amended = (Vec<u8>, Change);

/// What became of a file or directory after the walk.
#[derive(Debug)]
struct Change {
    /// The size with which it was packed, or why it was not.
    packed: Result<u64, String>,
    /// The state that it had, if it had other names: they may no longer be names of what is packed.
    linked: Option<u64>,
}

impl Change {
    fn new(found: &Found, packed: Result<u64, String>) -> Option<Change> {
        let is_linked = found.kind == Kind::File && found.stat.st_nlink > 1;
        Some(Change { packed, linked: is_linked.then(|| state(&found.stat)) })
    }

    /// Returns what became of what was packed as it is `now`, if it is not what was found.
    fn between(found: &Found, now: &Found) -> Option<Change> {
        if state(&now.stat) == state(&found.stat) { None } else { Change::new(found, Ok(now.size())) }
    }

    fn gone(found: &Found, why: impl Into<String>) -> Option<Change> {
        Change::new(found, Err(why.into()))
    }

    fn failed(found: &Found, error: &io::Error) -> Option<Change> {
        match Errno::from_io_error(error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Change::gone(found, CHANGED),
            _ => Change::gone(found, error.to_string()),
        }
    }
}

/// Why something that was there a moment ago is not packed.
const CHANGED: &str = "it changed while it was read";

/// Packs archives until there are no more.
fn work(job: &Pack, tasks: &Mutex<Receiver<Task>>, read: &Counters) {
    let mut buffer = Vec::new();
    loop {
        let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Task { number, at, members, answer }) = next else { return };
        // Nobody waits any more when the walk has failed.
        let _ = answer.send(make(job, number, at, members, &mut buffer, read));
    }
}

/// Packs an archive.
fn make(
    job: &Pack,
    number: usize,
    at: usize,
    members: Receiver<(Vec<u8>, Found)>,
    buffer: &mut Vec<u8>,
    read: &Counters,
) -> Result<Made> {
    let root = &job.trees[number].root;
    let mut dirs = Dirs::open(root, false).with_context(|| format!("cannot open {}", root.display()))?;
    let path = job.out.join(format!("layer-{number}-{at}"));
    let mut out = encoder(&path)?;
    let mut layer = Layer { usable: true, ..Layer::default() };
    let mut amended = Vec::new();
    for (path, found) in members {
        crate::cancel::check()?;
        let change = member(&mut dirs, &path, &found, &mut out, buffer, read)
            .with_context(|| format!("packing {}", shown(&path)))?;
        // What changed meanwhile may be in the archive all the same: this is the most that there can be.
        layer.entries += 1;
        layer.cost += table::cost(found.size());
        amended.extend(change.map(|change| (path, change)));
        read.files.fetch_add(u64::from(found.kind != Kind::Dir), Relaxed);
    }
    archive::finish(&mut out)?;
    layer.raw = out.bytes;
    layer.blob = store(out.finish()?, &path, &job.out)?;
    Ok(Made { at, layer, amended })
}

/// Compresses what is written to it, one zstd frame after the other: from memory in one go, for that is faster than as
/// a stream.
struct Frames<W> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    next: Vec<u8>,
    frame: Vec<u8>,
    /// Before compression.
    bytes: u64,
}

impl<W: Write> Frames<W> {
    fn new(out: W) -> io::Result<Frames<W>> {
        let frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME));
        let compressor = zstd::bulk::Compressor::new(LEVEL)?;
        Ok(Frames { out, compressor, next: Vec::with_capacity(FRAME), frame, bytes: 0 })
    }

    fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.next.len() == FRAME {
            self.flush()?;
        }
        let taken = bytes.len().min(FRAME - self.next.len());
        self.next.extend_from_slice(&bytes[..taken]);
        self.bytes += taken as u64;
        Ok(taken)
    }

    /// Ends the frame.
    fn flush(&mut self) -> io::Result<()> {
        if !self.next.is_empty() {
            self.frame.clear();
            self.compressor.compress_to_buffer(&self.next, &mut self.frame)?;
            self.next.clear();
            self.out.write_all(&self.frame)?;
        }
        Ok(())
    }
}

/// Writes one member. Returns what became of it since the walk, if anything: its path may lead to another file by now, so
/// all that is told of a file or directory comes from what is open.
fn member(
    dirs: &mut Dirs,
    path: &[u8],
    found: &Found,
    out: &mut impl Write,
    buffer: &mut Vec<u8>,
    read: &Counters,
) -> Result<Option<Change>> {
    let described = |found: &Found, attributes| Member {
        path: path.into(),
        kind: found.kind,
        mode: permissions(&found.stat),
        uid: found.stat.st_uid,
        gid: found.stat.st_gid,
        modified: (found.stat.st_mtime, found.stat.st_mtime_nsec as u32),
        size: found.size(),
        link: found.link.clone(),
        attributes,
        extents: None,
    };
    if matches!(found.kind, Kind::Symlink | Kind::Hardlink) {
        archive::write(out, &described(found, Vec::new()), io::empty())?;
        return Ok(None);
    }
    let flags = match found.kind {
        Kind::Dir => DIRECTORY,
        _ => OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
    };
    let opened = dirs.parent(path).and_then(|(dir, name)| Ok(open_to_read(dir, &*name, flags)?));
    let fd = match opened {
        Ok(fd) => fd,
        Err(error) => return Ok(Change::failed(found, &error)),
    };
    let file = File::from(fd);
    let mut now = found.clone();
    for _ in 0..3 {
        let before = state(&now.stat);
        let attributes = match attributes(file.as_fd()) {
            Ok(attributes) => attributes,
            Err(error) => return Ok(Change::gone(found, format!("{error:#}"))),
        };
        if found.kind == Kind::Dir {
            now.stat = fstat(&file)?;
            archive::write(out, &described(&now, attributes), io::empty())?;
            return Ok(Change::between(found, &now));
        }
        if found.size() > IN_MEMORY || has_holes(&found.stat) {
            return large(&file, found, described(found, attributes), out, read);
        }
        let length = match read_small(&file, now.size() as usize, buffer) {
            Ok(length) => length,
            Err(error) => return Ok(Change::failed(found, &error)),
        };
        now.stat = fstat(&file)?;
        // Another file with other names may be one of secrets.
        let may_be_secret = now.stat.st_ino != found.stat.st_ino && now.stat.st_nlink > 1;
        if FileType::from_raw_mode(now.stat.st_mode) != FileType::RegularFile || may_be_secret {
            break;
        }
        if state(&now.stat) == before && now.size() == length as u64 {
            archive::write(out, &described(&now, attributes), &buffer[..length])?;
            read.bytes.fetch_add(now.size(), Relaxed);
            return Ok(Change::between(found, &now));
        }
    }
    Ok(Change::gone(found, CHANGED))
}

/// Writes a file that is read as it is written: it must be what was found, before and after.
fn large(
    file: &File,
    found: &Found,
    mut member: Member,
    out: &mut impl Write,
    read: &Counters,
) -> Result<Option<Change>> {
    if state(&fstat(file)?) != state(&found.stat) {
        return Ok(Change::gone(found, CHANGED));
    }
    member.extents = extents(file, &found.stat)?;
    let parts = member.extents.clone().unwrap_or(vec![(0, found.size())]);
    let mut extents = Extents { file, parts, read, failed: None };
    archive::write(out, &member, &mut extents)?;
    Ok(match extents.failed {
        Some(error) => Change::failed(found, &error.into()),
        None if state(&fstat(file)?) != state(&found.stat) => Change::gone(found, CHANGED),
        None => None,
    })
}

/// Reads a file that should have `size` bytes into a buffer, in one call if it has; no further than one byte more.
/// Returns how many there were.
fn read_small(file: &File, size: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let most = size.min(IN_MEMORY as usize) + 1;
    if buffer.len() < most {
        buffer.resize(most, 0);
    }
    let mut length = 0;
    loop {
        match pread(file, &mut buffer[length..most], length as u64) {
            Ok(0) => return Ok(length),
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if length == size || length == most {
            return Ok(length);
        }
    }
}

fn has_holes(stat: &Stat) -> bool {
    stat.st_blocks * 512 < stat.st_size
}

/// Returns the parts of a file that are not holes, or None if it has no holes.
fn extents(file: &File, stat: &Stat) -> io::Result<Option<Vec<(u64, u64)>>> {
    if !has_holes(stat) {
        return Ok(None);
    }
    let size = stat.st_size as u64;
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(_) => return Ok(None),
        };
        // One that was cut off just now is left out when its state is compared.
        let Ok(end) = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)) else { return Ok(None) };
        let end = end.min(size);
        parts.push((start, end - start));
        at = end;
        // More than an archive may have: its holes are packed as zeros.
        if parts.len() > archive::MAX_EXTENTS {
            return Ok(None);
        }
    }
    Ok((parts != [(0, size)]).then_some(parts))
}

/// The parts of a file one after the other; what the file no longer has, or cannot be read, reads as zeros.
struct Extents<'a> {
    file: &'a File,
    parts: Vec<(u64, u64)>,
    read: &'a Counters,
    failed: Option<Errno>,
}

impl Read for Extents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.parts.retain(|(_, length)| *length > 0);
        let Some((at, length)) = self.parts.first_mut() else { return Ok(0) };
        let wanted = buffer.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
        let mut read = match pread(self.file, &mut buffer[..wanted], *at) {
            Err(Errno::INTR) => return Err(io::ErrorKind::Interrupted.into()),
            Err(error) => {
                self.failed = Some(error);
                0
            }
            Ok(read) => read,
        };
        if read == 0 {
            buffer[..wanted].fill(0);
            read = wanted;
        }
        *at += read as u64;
        *length -= read as u64;
        self.read.bytes.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

/// Returns the extended attributes of a file that can be read; none where there are no such things.
///
/// # Errors
/// When there are more than an archive may have, or than the kernel lists: 64 KiB of names (listxattr(2)).
pub fn attributes(fd: BorrowedFd<'_>) -> Result<Vec<Attribute>> {
    let Ok(1..) = rustix::fs::flistxattr_query(fd) else { return Ok(Vec::new()) };
    let (mut names, mut value) = (vec![0; 65536], vec![0; 65536]);
    let length = rustix::fs::flistxattr(fd, &mut names[..]).context("its attributes cannot be listed")?;
    let (mut attributes, mut bytes) = (Vec::new(), 0);
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Ok(length) = rustix::fs::fgetxattr(fd, name, &mut value[..]) {
            bytes += name.len() + length;
            ensure!(bytes <= MAX_ATTRIBUTES, "its attributes are too large");
            attributes.push((name.to_vec(), value[..length].to_vec()));
        }
    }
    Ok(attributes)
}

/// Copies rows with other numbers of archives, without the files that vanished or may no longer be the one that they
/// are a link to, and with the sizes of those that changed.
fn amend(
    mut rows: Rows<impl Read>,
    table: &mut Writer<impl Write>,
    numbers: &[u32],
    links: Vec<u64>,
    amended: Vec<Amended>,
    packed: &mut Packed,
) -> Result<()> {
    let mut gone: BTreeMap<&[u8], &str> = BTreeMap::new();
    let mut sizes: HashMap<&[u8], u64> = HashMap::new();
    let mut changed: HashSet<u64> = HashSet::new();
    for (path, change) in &amended {
        match &change.packed {
            Ok(size) => _ = sizes.insert(path, *size),
            Err(why) => _ = gone.insert(path, why),
        }
        changed.extend(change.linked);
    }
    gone.iter().for_each(|(path, why)| packed.skip(path, why));
    (packed.files, packed.bytes) = (0, 0);
    let mut links = links.into_iter();
    while let Some(mut row) = rows.next_row()? {
        let is_lost = row.kind == Kind::Hardlink && links.next().is_some_and(|state| changed.contains(&state));
        let mut above = row.path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &row.path[..at]);
        let below_gone = !gone.is_empty() && above.any(|path| gone.contains_key(path));
        if is_lost {
            packed.skip(&row.path, "it was another name of a file that changed while it was read");
        }
        if is_lost || below_gone || gone.contains_key(row.path.as_slice()) {
            continue;
        }
        if let Some(size) = sizes.get(row.path.as_slice()) {
            row.size = *size;
            row.print = 0;
        }
        row.layer = numbers.get(row.layer as usize).copied().unwrap_or_default();
        packed.files += u64::from(row.kind != Kind::Dir);
        packed.bytes += row.size;
        table.write(&row)?;
    }
    Ok(())
}

/// Returns an archive without members: the one among `layers`, if there is one, or one made at `path`.
fn empty(layers: &[Layer], path: &Path, out: &Path) -> Result<Layer> {
    if let Some(layer) = layers.iter().find(|layer| layer.usable && layer.entries == 0) {
        return Ok(layer.clone());
    }
    let mut file = encoder(path)?;
    archive::finish(&mut file)?;
    let raw = file.bytes;
    Ok(Layer { blob: store(file.finish()?, path, out)?, raw, usable: true, ..Layer::default() })
}

/// A file that is compressed and hashed as it is written.
type Compressed = Frames<Hashed<BufWriter<File>>>;

/// Begins to compress into a file.
fn encoder(path: &Path) -> io::Result<Compressed> {
    Frames::new(Hashed::new(BufWriter::with_capacity(BUFFER, File::create(path)?)))
}

/// Names a written file by its digest; to sync it is up to whoever takes the blob.
fn store(written: Hashed<BufWriter<File>>, path: &Path, out: &Path) -> Result<Blob> {
    let (file, blob) = written.finish();
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    begin_writing(&file);
    fs::rename(path, out.join(blob.file()))?;
    Ok(blob)
}

/// Tells the kernel to begin writing a file to the disk, so that syncing it later waits for little.
fn begin_writing(file: &File) {
    // Advice; a file system may not take any.
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Returns the digest and the size of what is left to read.
///
/// # Errors
/// When it cannot be read.
pub fn digest(input: &mut impl Read) -> io::Result<Blob> {
    let mut hashed = Hashed::new(input);
    let mut buffer = vec![0; BUFFER];
    loop {
        match hashed.read(&mut buffer) {
            Ok(0) => return Ok(hashed.finish().1),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hashes what goes through.
#[derive(Debug)]
pub struct Hashed<T> {
    inner: T,
    hash: Sha256,
    size: u64,
}

impl<T> Hashed<T> {
    pub fn new(inner: T) -> Hashed<T> {
        Hashed { inner, hash: Sha256::new(), size: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Returns what it went to or came from, and the digest and size of all that went through.
    pub fn finish(self) -> (T, Blob) {
        let hex: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (self.inner, Blob { digest: format!("sha256:{hex}"), size: self.size })
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.add(&buffer[..read]);
        Ok(read)
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_former_table_counts_as_far_as_it_makes_sense() {
        let dir = tempfile::tempdir().unwrap();
        let previous = Previous { table: dir.path().join("table"), layers: Vec::new() };
        assert!(Former::open(&previous).is_none());
        let mut rows = Writer::new(Vec::new());
        rows.write(&Row { layer: 0, kind: Kind::File, size: 1, print: 1, path: b"a".to_vec() }).unwrap();
        let rubbish = [rows.finish(), vec![b'x'; 100]].concat();
        fs::write(&previous.table, zstd::encode_all(&rubbish[..], 1).unwrap()).unwrap();
        let mut former = Former::open(&previous).unwrap();
        assert!(former.row(b"a").is_some() && former.row(b"b").is_none() && former.row(b"c").is_none());
    }

    #[test]
    fn an_archive_that_another_tree_has_too_stays_when_one_is_packed_anew() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let pack = |out: usize, trees: Vec<Tree>| {
            let out = dir.path().join(out.to_string());
            fs::create_dir(&out).unwrap();
            (all(&Pack { out: out.clone(), trees }, &mut |_, _| ()).unwrap(), out)
        };
        let take = |path: &str, take| Rule { path: path.into(), take };
        let tree = |rules, previous| Tree { root: root.clone(), base: "/c".into(), rules, secrets: vec![], previous };
        let mut previous = None;
        for at in 0..=MAX_PARTIAL + 1 {
            // Large beside the root, which is packed each time.
            fs::write(root.join(at.to_string()), [0; 20_000]).unwrap();
            // Past the moment in which times cannot tell a change.
            thread::sleep(std::time::Duration::from_millis(40));
            let mut trees = vec![tree(vec![take("", true)], previous.take())];
            if at <= MAX_PARTIAL {
                let (mut packed, out) = pack(at, trees);
                let Packed { table, layers, .. } = packed.remove(0);
                assert_eq!(layers.len(), at + 1);
                previous = Some(Previous { table: out.join(table.file()), layers });
                continue;
            }
            trees.push(tree(vec![take("", false), take(&at.to_string(), true)], None));
            let (packed, out) = pack(at, trees);
            assert_eq!(packed.iter().map(|packed| packed.layers.len()).collect::<Vec<_>>(), [1, 1]);
            let files: BTreeSet<_> = fs::read_dir(out).unwrap().map(|file| file.unwrap().file_name()).collect();
            let blobs = packed.iter().flat_map(|packed| [&packed.layers[0].blob, &packed.table]);
            assert_eq!(files, blobs.map(|blob| blob.file().into()).collect());
        }
    }

    #[test]
    fn archives_are_packed_anew_once_a_tenth_of_all_is_rubbish() {
        let former = [100, 100, 100].map(|cost| Layer { cost, entries: MAX_FILES as u64, ..Layer::default() });
        let kept = |used: [u64; 3]| worth_keeping(&former, &[true; 3], &used);
        assert_eq!(kept([75, 100, 100]), [true; 3]);
        assert_eq!(kept([60, 95, 100]), [false, true, true]);
        // One of which nothing is in use goes anyway, and is no rubbish.
        assert_eq!(kept([0, 95, 100]), [true; 3]);
    }

    #[test]
    fn a_tree_with_more_archives_than_a_bundle_may_have_is_refused() {
        let found = Found { kind: Kind::File, stat: fstat(File::open(".").unwrap()).unwrap(), link: vec![], print: 0 };
        let (sender, receiver) = sync_channel(2);
        let mut chunks = Chunks { full: MAX_LAYERS - 1, ..Chunks::new(0, sender) };
        for _ in 0..MAX_FILES {
            chunks.add(b"a".to_vec(), found.clone()).unwrap();
        }
        assert!(chunks.add(b"a".to_vec(), found).is_err());
        assert_eq!(receiver.try_iter().count(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_cannot_be_read_is_told_with_its_error() {
        // It can be opened and not be read.
        let file = File::open("/proc/self/mem").unwrap();
        let read = Counters::default();
        let mut extents = Extents { file: &file, parts: vec![(0, 10)], read: &read, failed: None };
        let mut bytes = Vec::new();
        extents.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes, extents.failed), (vec![0; 10], Some(Errno::IO)));

        let mut dirs = Dirs::open(&PathBuf::from(format!("/proc/{}", std::process::id())), false).unwrap();
        let mut change = |name: &[u8]| {
            let found = Found { kind: Kind::File, stat: fstat(&file).unwrap(), link: vec![], print: 0 };
            match member(&mut dirs, name, &found, &mut io::sink(), &mut Vec::new(), &read).unwrap() {
                Some(Change { packed: Err(why), linked: None }) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(change(b"mem"), io::Error::from(Errno::IO).to_string());
        assert_eq!(change(b"gone"), CHANGED);
    }

    fn found(path: &Path) -> Found {
        let stat = rustix::fs::lstat(path).unwrap();
        let kind = if path.is_dir() { Kind::Dir } else { Kind::File };
        Found { kind, stat, link: vec![], print: 1 }
    }

    /// Packs what was found at `a` as it is now; returns also what is then in the archive.
    fn pack_a(root: &Path, found: &Found) -> (Option<Change>, Vec<(Member, String)>) {
        let mut dirs = Dirs::open(root, false).unwrap();
        let (mut archive, mut members) = (Vec::new(), Vec::new());
        let change = member(&mut dirs, b"a", found, &mut archive, &mut Vec::new(), &Counters::default()).unwrap();
        archive::finish(&mut archive).unwrap();
        archive::read(&archive[..], u64::MAX, 1, |member, data| {
            members.push((member, io::read_to_string(data)?));
            Ok(())
        })
        .unwrap();
        (change, members)
    }

    #[test]
    fn what_took_the_place_of_another_is_packed_with_its_own_mode_and_owner() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for (is_dir, content) in [(false, "PRIVATE"), (true, "")] {
            let make = |path: &Path, content: &str, mode: u32| {
                match is_dir {
                    true => fs::create_dir(path).unwrap(),
                    false => fs::write(path, content).unwrap(),
                }
                fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
            };
            fs::create_dir(&root).unwrap();
            make(&root.join("a"), "public", 0o755);
            let before = found(&root.join("a"));
            make(&root.join("new"), content, 0o700);
            rustix::fs::setxattr(root.join("new"), "user.new", b"", rustix::fs::XattrFlags::empty()).unwrap();
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(root.join("new"), Some(1000), Some(1001)).unwrap();
            }
            fs::rename(root.join("new"), root.join("a")).unwrap();
            let (change, members) = pack_a(&root, &before);
            // The next export looks at it again.
            assert_eq!(change.unwrap().packed, Ok(content.len() as u64));
            let ([(member, packed)], now) = (&members[..], found(&root.join("a")).stat) else { panic!("{members:?}") };
            assert_eq!((member.mode, member.uid, member.gid), (0o700, now.st_uid, now.st_gid));
            assert_eq!(member.modified, (now.st_mtime, now.st_mtime_nsec as u32));
            assert_eq!((&packed[..], &member.attributes[..]), (content, &[(b"user.new".to_vec(), vec![])][..]));
            fs::remove_dir_all(&root).unwrap();
        }
    }

    #[test]
    fn a_name_of_another_file_that_came_meanwhile_is_not_packed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "old").unwrap();
        let before = found(&at("a"));
        // The walk leaves out all names of it.
        fs::write(at("token"), "secret").unwrap();
        fs::hard_link(at("token"), at("new")).unwrap();
        fs::rename(at("new"), at("a")).unwrap();
        let (change, members) = pack_a(dir.path(), &before);
        assert_eq!((change.unwrap().packed, members), (Err(CHANGED.into()), vec![]));
    }

    #[test]
    fn a_file_that_was_replaced_takes_its_other_names_with_it_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, link) in [("a", "z"), ("b", "y")] {
            fs::write(at(name), "LINKED").unwrap();
            fs::hard_link(at(name), at(link)).unwrap();
        }
        let names = [("a", Kind::File), ("b", Kind::File), ("y", Kind::Hardlink), ("z", Kind::Hardlink)];
        let mut rows = Writer::new(File::create(at("rows")).unwrap());
        for (name, kind) in names {
            let row = Row { layer: 0, kind, size: 0, print: 1, path: name.into() };
            rows.write(&row).unwrap();
        }
        let links = vec![state(&found(&at("y")).stat), state(&found(&at("z")).stat)];
        let before = found(&at("a"));
        for new in [Some("ALONE"), None] {
            match new {
                Some(new) => {
                    fs::write(at("new"), new).unwrap();
                    fs::rename(at("new"), at("a")).unwrap();
                }
                None => fs::remove_file(at("a")).unwrap(),
            }
            let (change, members) = pack_a(dir.path(), &before);
            assert_eq!(members.first().map(|(_, content)| &content[..]), new);
            let (mut table, mut packed) = (Writer::new(Vec::new()), Packed::default());
            let amended = vec![(b"a".to_vec(), change.unwrap())];
            amend(Rows::new(File::open(at("rows")).unwrap()), &mut table, &[0], links.clone(), amended, &mut packed)
                .unwrap();
            let table = table.finish();
            let (mut rows, mut left) = (Rows::new(&table[..]), Vec::new());
            while let Some(row) = rows.next_row().unwrap() {
                left.push((String::from_utf8(row.path).unwrap(), row.size, row.print));
            }
            let mut expected = vec![("b".into(), 0, 1), ("y".into(), 0, 1)];
            // Without a print the next export looks at it again.
            expected.splice(0..0, new.map(|new| ("a".into(), new.len() as u64, 0)));
            assert_eq!(left, expected);
            assert_eq!((packed.files, packed.skipped_count), (left.len() as u64, 4 - left.len() as u64));
            assert!(packed.skipped.iter().any(|told| told.starts_with("z: ")), "{packed:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_with_more_attributes_than_the_kernel_lists_is_told() {
        // Other file systems do not take as many, nor does this one before Linux 6.6.
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
        let path = dir.path().join("a");
        fs::write(&path, "a").unwrap();
        let add = |number: u32| {
            let name = format!("user.{number:0250}");
            rustix::fs::setxattr(&path, name, b"", rustix::fs::XattrFlags::empty()).is_ok()
        };
        if (0..300).all(add) {
            let why = pack_a(dir.path(), &found(&path)).0.unwrap().packed.unwrap_err();
            assert!(why.starts_with("its attributes cannot be listed"), "{why}");
        }
    }
}
