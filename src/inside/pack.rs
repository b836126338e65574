//! Packs trees into archives of bounded size, on all cores. What a former export has, by the prints in its table, is
//! neither read nor written again; archives are packed anew once much of them is rubbish.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::{Errno, pread};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::archive::{self, Kind, MAX_ATTRIBUTES, Member, walk_order};
use super::dirs::{DIRECTORY, Dirs};
use super::rules::{Rule, Rules};
use super::scan::{Found, NAMED, Notes, changed, scan};
use super::table::{self, MAX_LAYERS, MAX_ROWS, Row, Rows};
use super::walk::{Counters, permissions};

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
}

/// Bytes and files that make one archive.
const MAX_BYTES: u64 = 32 << 20;
const MAX_FILES: usize = 4096;
/// How many archives that are far from full are left alone.
const MAX_PARTIAL: usize = 8;
/// Files up to this size are read before they are written, and read again if they change meanwhile.
const IN_MEMORY: u64 = 1 << 20;
/// How hard to compress: most of what caches hold is compressed already, and this is three times as fast on it as
/// zstd's default.
const LEVEL: i32 = 1;
/// Bytes that are compressed at once, before compression.
const FRAME: usize = 1 << 21;
/// Bytes that go through pipes, files and compressors at once.
const BUFFER: usize = 1 << 17;

/// Packs all trees, one after the other; calls `progress` with the files and bytes that are done.
///
/// # Errors
/// When a root cannot be read, a blob not be written, or a tree is larger than a bundle may have it.
pub fn all(job: &Pack, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<Vec<Packed>> {
    let read = Counters::default();
    let mut done: Vec<Packed> = Vec::new();
    for (at, tree) in job.trees.iter().enumerate() {
        let packed = pack(job, tree, at, &done, &read, progress)?;
        done.push(packed);
    }
    Ok(done)
}

fn pack(
    job: &Pack,
    tree: &Tree,
    number: usize,
    done: &[Packed],
    read: &Counters,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Packed> {
    let former = tree.previous.as_ref().map_or(&[][..], |previous| &previous.layers);
    let mut kept: Vec<bool> = former.iter().map(|layer| layer.usable).collect();
    let begun = (read.files.load(Relaxed), read.bytes.load(Relaxed));
    loop {
        let (packed, used) = pack_new(job, tree, number, &kept, read, progress)?;
        let worth_it = match packed.layers.len() > MAX_LAYERS {
            true => vec![false; kept.len()],
            false => worth_keeping(former, &kept, &used),
        };
        if worth_it == kept {
            return Ok(packed);
        }
        // Once more, with those packed anew.
        let blobs = |packed: &Packed| -> Vec<Blob> {
            packed.layers.iter().map(|layer| &layer.blob).chain([&packed.table]).cloned().collect()
        };
        // Another tree may hold the same.
        let others: Vec<Blob> = done.iter().flat_map(blobs).collect();
        let is_new = |blob: &Blob| !others.contains(blob) && !former.iter().any(|layer| layer.blob == *blob);
        for blob in blobs(&packed).into_iter().filter(is_new) {
            fs::remove_file(job.out.join(blob.file()))?;
        }
        kept = worth_it;
        read.files.store(begun.0, Relaxed);
        read.bytes.store(begun.1, Relaxed);
    }
}

/// Packs what the former archives that are `kept` do not have. Returns also how much of each of them is in use; those
/// of which nothing is, are not among the new ones.
fn pack_new(
    job: &Pack,
    tree: &Tree,
    number: usize,
    kept: &[bool],
    read: &Counters,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<(Packed, Vec<u64>)> {
    let rules = Rules::new(&tree.rules);
    let mut layers: Vec<Layer> = tree.previous.iter().flat_map(|previous| previous.layers.clone()).collect();
    let mut used = vec![0; layers.len()];
    let old = layers.len();
    let mut packed = Packed::default();
    let rows = job.out.join(format!("table-{number}"));
    let mut table = encoder(&rows)?;
    let amended = Mutex::new(Vec::new());
    let notes = thread::scope(|scope| -> Result<Notes> {
        let (sender, receiver) = sync_channel::<(usize, Chunk)>(1);
        // The workers alone hold it: when all have failed, the walk must not wait for them.
        let receiver = Arc::new(Mutex::new(receiver));
        let workers: Vec<_> = (0..crate::parallel::workers())
            .map(|_| {
                let (receiver, amended) = (receiver.clone(), &amended);
                scope.spawn(move || work(job, tree, number, &receiver, amended, read))
            })
            .collect();
        drop(receiver);
        let mut chunks = Chunks { sender, next: Vec::new(), bytes: 0, sent: 0 };
        let mut previous = match &tree.previous {
            Some(previous) => Former::open(previous),
            None => None,
        };
        let mut count = 0;
        let scanned = scan(tree, &rules, &mut |path, found| {
            count += 1;
            ensure!(
                count <= MAX_ROWS,
                "it has more than {MAX_ROWS} files and directories, the most that a bundle can carry of one"
            );
            let former = match &mut previous {
                Some(previous) => previous.row(path),
                None => None,
            };
            let same = former.filter(|row| row.print == found.print && row.print != 0 && row.kind == found.kind);
            let same = same.filter(|row| kept.get(row.layer as usize) == Some(&true));
            let (kind, size, print) = (found.kind, found.size(), found.print);
            packed.files += u64::from(kind != Kind::Dir);
            packed.bytes += size;
            read.tell(progress);
            if let Some(row) = same {
                used[row.layer as usize] += row.cost();
                read.files.fetch_add(u64::from(kind != Kind::Dir), Relaxed);
                read.bytes.fetch_add(size, Relaxed);
                return Ok(table::write(&mut table, row)?);
            }
            let row = Row { layer: (old + chunks.sent) as u32, kind, size, print, path: path.into() };
            table::write(&mut table, &row)?;
            chunks.add(row.path, found.clone())
        });
        let sent = scanned.and_then(|notes| chunks.flush().map(|()| notes));
        drop(chunks);
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(2));
            read.tell(progress);
        }
        let mut made: Vec<(usize, Layer)> = Vec::new();
        let mut failed = None;
        for worker in workers {
            match crate::parallel::join(worker) {
                Ok(done) => made.extend(done),
                Err(error) => failed = Some(error),
            }
        }
        // A worker that fails makes the walk fail too, for want of a receiver; its own reason is the one to tell.
        if let Some(error) = failed {
            return Err(error);
        }
        made.sort_by_key(|(at, _)| *at);
        layers.extend(made.into_iter().map(|(_, layer)| layer));
        sent
    })?;
    let mut table = finish(table)?;
    let amended = amended.into_inner().unwrap_or_else(PoisonError::into_inner);
    packed.skipped_count = notes.skipped_count;
    packed.skipped = notes.skipped;
    // Those that nothing refers to go, and the others get their numbers.
    let stays = |at: usize| at >= old || used[at] > 0;
    let mut next = 0..;
    let numbers: Vec<u32> =
        (0..layers.len()).map(|at| if stays(at) { next.next().unwrap_or_default() } else { 0 }).collect();
    if !amended.is_empty() || !(0..old).all(stays) {
        table.flush()?;
        table = amend(&rows, &numbers, amended, &mut packed)?;
    }
    packed.secrets = notes.secrets;
    packed.table = store(table, &rows, &job.out)?;
    packed.layers = layers.into_iter().enumerate().filter(|(at, _)| stays(*at)).map(|(_, layer)| layer).collect();
    Ok((packed, used))
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
    rows: Rows<File>,
    row: Option<Row>,
}

impl Former {
    fn open(previous: &Previous) -> Option<Former> {
        let mut rows = Rows::new(File::open(&previous.table).ok()?).ok()?;
        let row = rows.next_row().ok()?;
        Some(Former { rows, row })
    }

    /// Returns the row of a path; the paths asked for must be in the order of a walk.
    fn row(&mut self, path: &[u8]) -> Option<&Row> {
        while self.row.as_ref().is_some_and(|row| row.path != path && walk_order(&row.path, path).is_lt()) {
            self.row = self.rows.next_row().unwrap_or_default();
        }
        self.row.as_ref().filter(|row| row.path == path)
    }
}

/// What makes one archive, by path.
type Chunk = Vec<(Vec<u8>, Found)>;

/// Gathers what is to be packed into archives.
struct Chunks {
    sender: SyncSender<(usize, Chunk)>,
    next: Chunk,
    bytes: u64,
    sent: usize,
}

impl Chunks {
    fn add(&mut self, path: Vec<u8>, found: Found) -> Result<()> {
        self.bytes += table::cost(found.size());
        self.next.push((path, found));
        if self.bytes >= MAX_BYTES || self.next.len() >= MAX_FILES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.next.is_empty() {
            let chunk = std::mem::take(&mut self.next);
            ensure!(
                self.sent < MAX_LAYERS,
                "it makes more than {MAX_LAYERS} archives, the most that a bundle can have of one"
            );
            self.sender.send((self.sent, chunk)).context("packing stopped")?;
            self.sent += 1;
            self.bytes = 0;
        }
        Ok(())
    }
}

/// A path, and what became of it after the walk.
type Amended = (Vec<u8>, Change);

/// What became of a file after the walk.
#[derive(Debug)]
enum Change {
    /// It has another size.
    Size(u64),
    /// It could not be packed.
    Gone {
        why: String,
        /// It had other names.
        linked: bool,
    },
}

impl Change {
    fn gone(found: &Found, why: impl Into<String>) -> Option<Change> {
        Some(Change::Gone { why: why.into(), linked: found.kind == Kind::File && found.stat.st_nlink > 1 })
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
fn work(
    job: &Pack,
    tree: &Tree,
    number: usize,
    chunks: &Mutex<Receiver<(usize, Chunk)>>,
    amended: &Mutex<Vec<Amended>>,
    read: &Counters,
) -> Result<Vec<(usize, Layer)>> {
    let mut made = Vec::new();
    let mut dirs = Dirs::open(&tree.root, false).with_context(|| format!("cannot open {}", tree.root.display()))?;
    let mut buffer = Vec::new();
    loop {
        let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((at, chunk)) = next else { return Ok(made) };
        let path = job.out.join(format!("layer-{number}-{at}"));
        let blob = Hashed::new(BufWriter::with_capacity(BUFFER, File::create(&path)?));
        let mut out = Frames::new(blob)?;
        let mut layer = Layer { usable: true, ..Layer::default() };
        for (path, found) in chunk {
            if crate::cancel::requested() {
                bail!("cancelled");
            }
            let change = member(&mut dirs, &path, &found, &mut out, &mut buffer, read)
                .with_context(|| format!("packing {}", String::from_utf8_lossy(&path)))?;
            // What changed meanwhile may be in the archive all the same: this is the most that there can be.
            layer.entries += 1;
            layer.cost += table::cost(found.size());
            if let Some(change) = change {
                amended.lock().unwrap_or_else(PoisonError::into_inner).push((path, change));
            }
            read.files.fetch_add(u64::from(found.kind != Kind::Dir), Relaxed);
        }
        archive::finish(&mut out)?;
        layer.raw = out.bytes;
        layer.blob = store(out.finish()?, &path, &job.out)?;
        made.push((at, layer));
    }
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

/// Writes one member. Returns what became of it since the walk, if anything.
fn member(
    dirs: &mut Dirs,
    path: &[u8],
    found: &Found,
    out: &mut impl Write,
    buffer: &mut Vec<u8>,
    read: &Counters,
) -> Result<Option<Change>> {
    let mut member = Member {
        path: path.into(),
        kind: found.kind,
        mode: permissions(&found.stat),
        uid: found.stat.st_uid,
        gid: found.stat.st_gid,
        modified: (found.stat.st_mtime, found.stat.st_mtime_nsec as u32),
        size: found.size(),
        link: found.link.clone(),
        attributes: Vec::new(),
        extents: None,
    };
    if matches!(found.kind, Kind::Symlink | Kind::Hardlink) {
        archive::write(out, &member, io::empty())?;
        return Ok(None);
    }
    let flags = match found.kind {
        Kind::Dir => DIRECTORY,
        _ => OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
    };
    let opened = dirs.parent(path).and_then(|(dir, name)| Ok(openat(dir, name, flags, Mode::empty())?));
    let fd = match opened {
        Ok(fd) => fd,
        Err(error) => return Ok(Change::failed(found, &error)),
    };
    member.attributes = attributes(fd.as_fd());
    if member.attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_ATTRIBUTES {
        return Ok(Change::gone(found, "its attributes are too large"));
    }
    if found.kind == Kind::Dir {
        archive::write(out, &member, io::empty())?;
        return Ok(None);
    }
    let file = File::from(fd);
    let state = |stat: &Stat| (stat.st_ino, changed(stat), stat.st_size);
    if found.size() > IN_MEMORY || has_holes(&found.stat) {
        if state(&fstat(&file)?) != state(&found.stat) {
            return Ok(Change::gone(found, CHANGED));
        }
        member.extents = extents(&file, &found.stat)?;
        let parts = member.extents.clone().unwrap_or(vec![(0, found.size())]);
        let mut extents = Extents { file: &file, parts, read, failed: None };
        archive::write(out, &member, &mut extents)?;
        return Ok(match extents.failed {
            Some(error) => Change::failed(found, &error.into()),
            None if state(&fstat(&file)?) != state(&found.stat) => Change::gone(found, CHANGED),
            None => None,
        });
    }
    let mut before = found.stat;
    for _ in 0..3 {
        let length = match read_small(&file, before.st_size as usize, buffer) {
            Ok(length) => length,
            Err(error) => return Ok(Change::failed(found, &error)),
        };
        let after = fstat(&file)?;
        if FileType::from_raw_mode(after.st_mode) != FileType::RegularFile {
            break;
        }
        if state(&after) == state(&before) && after.st_size == length as i64 {
            member.size = length as u64;
            member.modified = (after.st_mtime, after.st_mtime_nsec as u32);
            archive::write(out, &member, &buffer[..length])?;
            read.bytes.fetch_add(member.size, Relaxed);
            return Ok(if state(&after) == state(&found.stat) { None } else { Some(Change::Size(member.size)) });
        }
        before = after;
    }
    Ok(Change::gone(found, CHANGED))
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
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?.min(size);
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
pub fn attributes(fd: BorrowedFd<'_>) -> Vec<(String, Vec<u8>)> {
    let Ok(1..) = rustix::fs::flistxattr_query(fd) else { return Vec::new() };
    let mut names = vec![0; 65536];
    let length = rustix::fs::flistxattr(fd, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::fgetxattr(fd, name, &mut value[..]).ok()?;
        value.truncate(length);
        Some((String::from_utf8(name.to_vec()).ok()?, value))
    };
    names.filter_map(value).collect()
}

/// Writes a table anew, with other numbers of archives, without the files that vanished and with the sizes of those that changed.
fn amend(rows: &Path, numbers: &[u32], amended: Vec<Amended>, packed: &mut Packed) -> Result<Hashed<BufWriter<File>>> {
    let aside = rows.with_extension("amended");
    let mut old = Rows::new(File::open(rows)?)?;
    let mut table = encoder(&aside)?;
    let mut gone: BTreeMap<&[u8], &str> = BTreeMap::new();
    let mut sizes: HashMap<&[u8], u64> = HashMap::new();
    let mut gone_had_links = false;
    for (path, change) in &amended {
        match change {
            Change::Size(size) => _ = sizes.insert(path, *size),
            Change::Gone { why, linked } => {
                gone.insert(path, why);
                gone_had_links |= linked;
            }
        }
    }
    packed.skipped_count += gone.len() as u64;
    let room = NAMED.saturating_sub(packed.skipped.len());
    let told = |(path, why): (&&[u8], &&str)| format!("{}: {why}", String::from_utf8_lossy(path));
    packed.skipped.extend(gone.iter().take(room).map(told));
    (packed.files, packed.bytes) = (0, 0);
    let mut links = 0;
    while let Some(mut row) = old.next_row()? {
        // Another name of a file that is gone would be a link to nothing; which one it is the table does not tell.
        let lost = gone_had_links && row.kind == Kind::Hardlink;
        let mut above = row.path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &row.path[..at]);
        let below_gone = !gone.is_empty() && above.any(|path| gone.contains_key(path));
        if lost || below_gone || gone.contains_key(row.path.as_slice()) {
            links += u64::from(lost);
            continue;
        }
        if let Some(size) = sizes.get(row.path.as_slice()) {
            row.size = *size;
            row.print = 0;
        }
        row.layer = numbers.get(row.layer as usize).copied().unwrap_or_default();
        packed.files += u64::from(row.kind != Kind::Dir);
        packed.bytes += row.size;
        table::write(&mut table, &row)?;
    }
    if links > 0 {
        packed.skipped_count += links;
        packed
            .skipped
            .push(format!("{links} further names of files with hard links: one of them may lead to what changed"));
    }
    fs::rename(&aside, rows)?;
    Ok(finish(table)?)
}

/// A file that is compressed and hashed as it is written. The buffer in front is for rows, which are written in small
/// pieces.
type Compressed = BufWriter<zstd::Encoder<'static, Hashed<BufWriter<File>>>>;

/// Begins to compress into a file.
fn encoder(path: &Path) -> io::Result<Compressed> {
    let file = BufWriter::with_capacity(BUFFER, File::create(path)?);
    Ok(BufWriter::with_capacity(BUFFER, zstd::Encoder::new(Hashed::new(file), LEVEL)?))
}

fn finish(table: Compressed) -> io::Result<Hashed<BufWriter<File>>> {
    table.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
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
    use super::*;

    #[test]
    fn a_former_table_counts_as_far_as_it_makes_sense() {
        let dir = tempfile::tempdir().unwrap();
        let previous = Previous { table: dir.path().join("table"), layers: Vec::new() };
        assert!(Former::open(&previous).is_none());
        fs::write(&previous.table, zstd::encode_all(&b"0 f 1 1 a\0rubbish\0"[..], 1).unwrap()).unwrap();
        let mut former = Former::open(&previous).unwrap();
        assert!(former.row(b"a").is_some() && former.row(b"b").is_none() && former.row(b"c").is_none());
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
        let mut chunks = Chunks { sender, next: Vec::new(), bytes: 0, sent: MAX_LAYERS - 1 };
        for is_sent in [true, false] {
            chunks.add(b"a".to_vec(), found.clone()).unwrap();
            assert_eq!(chunks.flush().is_ok(), is_sent);
        }
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
                Some(Change::Gone { why, linked: false }) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(change(b"mem"), io::Error::from(Errno::IO).to_string());
        assert_eq!(change(b"gone"), CHANGED);
    }

    #[test]
    fn only_a_file_with_other_names_takes_hard_links_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let rows = dir.path().join("rows");
        for (linked, files) in [(false, 2), (true, 1)] {
            let mut table = encoder(&rows).unwrap();
            for (path, kind) in
                [("dir", Kind::Dir), ("dir/a", Kind::File), ("gone", Kind::File), ("link", Kind::Hardlink)]
            {
                let row = Row { layer: 0, kind, size: 0, print: 0, path: path.into() };
                table::write(&mut table, &row).unwrap();
            }
            finish(table).unwrap().flush().unwrap();
            let mut packed = Packed::default();
            let gone = Change::Gone { why: CHANGED.into(), linked };
            amend(&rows, &[0], vec![(b"gone".to_vec(), gone)], &mut packed).unwrap();
            assert_eq!((packed.files, packed.skipped_count), (files, 3 - files));
        }
    }
}
