//! Finds what a tree has, in the order of a table. One thread reads the directories and others look at what is in them,
//! a little ahead of whoever takes it: all cores ask the file system, and little is in memory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CStr;
use std::hash::{Hash, Hasher};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use siphasher::sip::SipHasher13;

use super::archive::{Kind, MAX_NAME, MAX_PATH, leads_in};
use super::dirs::{DIRECTORY, open_to_read};
use super::pack::Tree;
use super::rules::{At, Rules};
use super::shown;
use super::unpack::STAGING;
use super::walk::{Entries, Mount, mount_of};
use crate::parallel;

/// Entries that a thread looks at in one go.
const BATCH: usize = 1024;
/// Directories that they may be in: each is open until then, and a process may have 1,024 open files.
const BATCH_DIRS: usize = 16;
/// Batches on their way.
const AHEAD: usize = 8;
/// A file that changed this short a time ago may change again without its times telling: two ticks of a slow kernel.
const RACY_NANOSECONDS: i128 = 20_000_000;
/// How many of those that could not be taken are named.
pub const NAMED: usize = 100;

/// What a scan found at a path.
#[derive(Clone, Debug)]
pub struct Found {
    pub kind: Kind,
    pub stat: Stat,
    /// As in [`super::archive::Member`].
    pub link: Vec<u8>,
    /// As in [`super::table::Row`].
    pub print: u64,
}

impl Found {
    pub fn size(&self) -> u64 {
        if self.kind == Kind::File { u64::try_from(self.stat.st_size).unwrap_or_default() } else { 0 }
    }
}

/// What a scan could not take.
#[derive(Debug, Default)]
pub struct Notes {
    pub secrets: Vec<String>,
    /// As in [`super::pack::Packed`].
    pub unwanted: BTreeSet<String>,
    /// The first [`NAMED`], each with the reason.
    pub skipped: Vec<String>,
    pub skipped_count: u64,
}

impl Notes {
    fn skip(&mut self, path: &[u8], why: &str) {
        let skipped = vec![format!("{}: {why}", shown(path))];
        self.add(Notes { skipped, skipped_count: 1, ..Notes::default() });
    }

    /// Notes why something could not be taken, unless it is gone since its directory was read: a cache in use.
    fn fail(&mut self, path: &[u8], error: Errno) {
        if error != Errno::NOENT {
            self.skip(path, &io::Error::from(error).to_string());
        }
    }

    fn add(&mut self, more: Notes) {
        self.secrets.extend(more.secrets);
        self.unwanted.extend(more.unwanted);
        self.skipped_count += more.skipped_count;
        let room = NAMED.saturating_sub(self.skipped.len());
        self.skipped.extend(more.skipped.into_iter().take(room));
    }
}

/// Entries of directories, yet to be looked at.
#[derive(Default)]
struct Batch {
    /// One after the other.
    paths: Vec<u8>,
    dirs: Vec<Arc<OwnedFd>>,
    entries: Vec<Entry>,
}

struct Entry {
    /// Index of the directory that has it.
    dir: usize,
    path: Range<usize>,
    /// Where its name begins.
    name: usize,
    /// Of a directory, which was opened.
    stat: Option<Box<Stat>>,
}

/// What became of a batch.
struct Seen {
    paths: Vec<u8>,
    found: Vec<(Range<usize>, Found)>,
    notes: Notes,
}

/// Tells `sink` of everything in a tree that the rules take: of a directory before what is in it, sorted by name.
///
/// # Errors
/// When the root cannot be read, the sink fails, or the user cancels. What else cannot be read is noted.
pub fn scan(tree: &Tree, rules: &Rules, sink: &mut dyn FnMut(&[u8], &Found) -> Result<()>) -> Result<Notes> {
    let dir = openat(CWD, &tree.root, DIRECTORY, Mode::empty())
        .with_context(|| format!("cannot read {}", tree.root.display()))?;
    let (root, mount) = (fstat(&dir)?, mount_of(&dir)?);
    let mut notes = Notes::default();
    if statat(&dir, STAGING, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        notes
            .skip(STAGING.to_bytes(), "an import goes on here, or was killed: the next one puts back what it took out");
    }
    let mut linked_secrets = HashSet::new();
    add_linked_secrets(&dir, c".", rules.root(), &tree.secrets, &mut linked_secrets);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let look = Look { base: &tree.base, racy: now.as_nanos() as i128 - RACY_NANOSECONDS };
    let (batches, queue) = sync_channel(AHEAD);
    let (in_order, answers) = sync_channel(AHEAD);
    // Those who look alone hold it: when all have failed, the reader must not wait for them.
    let queue = Arc::new(Mutex::new(queue));
    thread::scope(|scope| {
        for _ in 0..parallel::workers() {
            let (queue, look) = (queue.clone(), &look);
            scope.spawn(move || look.at_all(&queue));
        }
        drop(queue);
        let read = move || -> Result<Notes> {
            let (next, notes) = (Batch::default(), Notes::default());
            let mut reader = Reader { tree, root, mount, batches, in_order, next, notes };
            reader.all(dir, rules)?;
            Ok(reader.notes)
        };
        let reader = thread::Builder::new().stack_size(super::STACK).spawn_scoped(scope, read)?;
        // First paths of files with several names, by their states: an inode may be another file's by now.
        let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
        // Taken, so that the reader ends when the sink fails.
        let sunk = answers.into_iter().try_for_each(|answer: Receiver<Seen>| {
            let Seen { paths, mut found, notes: more } = answer.recv().context("packing stopped")?;
            notes.add(more);
            found.iter_mut().try_for_each(|(path, found)| {
                let path = &paths[path.clone()];
                if found.kind == Kind::File && found.stat.st_nlink > 1 {
                    if linked_secrets.contains(&found.stat.st_ino) {
                        notes.skip(path, "it is another name of a file of secrets");
                        return Ok(());
                    }
                    let state = state(&found.stat);
                    match first.get(&state) {
                        Some(first) => *found = look.found(Kind::Hardlink, found.stat, first.clone()),
                        None => _ = first.insert(state, path.into()),
                    }
                }
                sink(path, found)
            })
        });
        let read = parallel::join(reader);
        sunk?;
        notes.add(read?);
        Ok(notes)
    })
}

/// Reads the directories.
struct Reader<'a> {
    tree: &'a Tree,
    root: Stat,
    /// Of the root: what is in another is not the tree's own.
    mount: Mount,
    batches: SyncSender<(Batch, SyncSender<Seen>)>,
    in_order: SyncSender<Receiver<Seen>>,
    next: Batch,
    notes: Notes,
}

impl Reader<'_> {
    fn all(&mut self, root: OwnedFd, rules: &Rules) -> Result<()> {
        let dir = Arc::new(root);
        self.add(&dir, b"", 0, Some(self.root))?;
        self.directory(&dir, &mut Vec::new(), rules.root())?;
        self.flush()
    }

    fn directory(&mut self, dir: &Arc<OwnedFd>, path: &mut Vec<u8>, at: At<'_>) -> Result<()> {
        crate::cancel::check()?;
        let mut entries = Entries::default();
        match entries.read(dir, path.is_empty()) {
            Ok(()) => {}
            // Else it would pass for an empty one.
            Err(error) if path.is_empty() => {
                return Err(error).with_context(|| format!("cannot read {}", self.tree.root.display()));
            }
            Err(error) => {
                self.notes.fail(path, error);
                return Ok(());
            }
        }
        entries.sort();
        let is_guarded = path.is_empty() || at.is_named();
        for (name, kind) in entries.iter() {
            let at = at.child(name.to_bytes());
            let rule = at.rule.map(|rule| &self.tree.rules[rule]);
            let taken = rule.is_some_and(|rule| rule.take);
            self.notes.unwanted.extend(rule.filter(|_| !taken && at.is_named()).map(|rule| rule.path.clone()));
            if !taken && !at.takes_below() {
                continue;
            }
            let above = path.len();
            if above > 0 {
                path.push(b'/');
            }
            let at_name = path.len();
            path.extend(name.to_bytes());
            let is_secret = || is_guarded && is_secret(&self.tree.secrets, name.to_bytes());
            if path.len() > MAX_PATH || name.to_bytes().len() > MAX_NAME {
                self.notes.skip(path, "its path is too long for a bundle");
            } else if is_directory(dir, name, kind) {
                self.enter(dir, path, at_name, at)?;
            } else if taken && is_secret() {
                self.notes.secrets.push(shown(path));
            } else if taken {
                self.add(dir, path, at_name, None)?;
            }
            path.truncate(above);
        }
        Ok(())
    }

    fn enter(&mut self, above: &Arc<OwnedFd>, path: &mut Vec<u8>, name: usize, at: At<'_>) -> Result<()> {
        let opened = open_to_read(above, &path[name..], DIRECTORY);
        match opened.and_then(|fd| Ok((mount_of(&fd)?, fstat(&fd)?, fd))) {
            Ok((mount, ..)) if mount != self.mount => self.notes.skip(path, "something else is mounted there"),
            Ok((_, stat, fd)) => {
                self.add(above, path, name, Some(stat))?;
                self.directory(&Arc::new(fd), path, at)?;
            }
            Err(error) => self.notes.fail(path, error),
        }
        Ok(())
    }

    fn add(&mut self, dir: &Arc<OwnedFd>, path: &[u8], name: usize, stat: Option<Stat>) -> Result<()> {
        let Batch { paths, dirs, entries } = &mut self.next;
        let dir = dirs.iter().rposition(|held| Arc::ptr_eq(held, dir)).unwrap_or_else(|| {
            dirs.push(dir.clone());
            dirs.len() - 1
        });
        let start = paths.len();
        paths.extend(path);
        entries.push(Entry { dir, path: start..paths.len(), name: start + name, stat: stat.map(Box::new) });
        if entries.len() >= BATCH || dirs.len() >= BATCH_DIRS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let (answer, seen) = sync_channel(1);
        self.batches.send((std::mem::take(&mut self.next), answer)).ok().context("packing stopped")?;
        self.in_order.send(seen).ok().context("packing stopped")
    }
}

/// Tells what something is that a directory was read to have.
fn is_directory(dir: &OwnedFd, name: &CStr, kind: FileType) -> bool {
    match kind {
        FileType::Unknown => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        _ => kind == FileType::Directory,
    }
}

/// Tells whether a name in a directory that a rule names, or in the root, is that of a file of secrets.
pub fn is_secret(secrets: &[impl AsRef<str>], name: &[u8]) -> bool {
    secrets.iter().any(|secret| fits(secret.as_ref(), name))
}

/// Finds the inodes of files of secrets that have more names than one. It reads those directories alone that the rules
/// name; what cannot be read there the walk tells.
fn add_linked_secrets(above: &OwnedFd, name: &CStr, at: At<'_>, secrets: &[String], inodes: &mut HashSet<u64>) {
    let Ok(dir) = openat(above, name, DIRECTORY, Mode::empty()) else { return };
    let mut entries = Entries::default();
    let is_root = name == c".";
    let _ = entries.read(&dir, is_root);
    let is_guarded = is_root || at.is_named();
    for (name, kind) in entries.iter() {
        let below = at.child(name.to_bytes());
        if is_guarded && kind != FileType::Directory && is_secret(secrets, name.to_bytes()) {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
            inodes.extend(stat.ok().filter(|stat| stat.st_nlink > 1).map(|stat| stat.st_ino));
        } else if below.leads_on() {
            add_linked_secrets(&dir, name, below, secrets, inodes);
        }
    }
}

/// Looks at what directories have.
struct Look<'a> {
    /// As in [`Tree`].
    base: &'a str,
    /// What changed after this moment may change again without its times telling.
    racy: i128,
}

impl Look<'_> {
    fn at_all(&self, queue: &Mutex<Receiver<(Batch, SyncSender<Seen>)>>) {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((batch, answer)) = next else { return };
            let (mut found, mut notes) = (Vec::with_capacity(batch.entries.len()), Notes::default());
            for entry in &batch.entries {
                if let Some(seen) = self.at(entry, &batch, &mut notes) {
                    found.push((entry.path.clone(), seen));
                }
            }
            // Nobody waits any more when the sink has failed.
            let _ = answer.send(Seen { paths: batch.paths, found, notes });
        }
    }

    fn at(&self, entry: &Entry, batch: &Batch, notes: &mut Notes) -> Option<Found> {
        if let Some(stat) = &entry.stat {
            return Some(self.found(Kind::Dir, **stat, Vec::new()));
        }
        let dir = &batch.dirs[entry.dir];
        let (path, name) = (&batch.paths[entry.path.clone()], &batch.paths[entry.name..entry.path.end]);
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => {
                notes.fail(path, error);
                return None;
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return Some(self.found(Kind::File, stat, Vec::new())),
            FileType::Symlink => match readlinkat(dir, name, Vec::new()).map(|target| target.into_bytes()) {
                Ok(target) if leads_in(path, &target, self.base) => {
                    return Some(self.found(Kind::Symlink, stat, target));
                }
                Ok(target) => {
                    notes.skip(path, &format!("it is a link that leads out, to {}", shown(&target)));
                }
                Err(error) => notes.fail(path, error),
            },
            FileType::Directory => notes.skip(path, "it changed while it was read"),
            _ => notes.skip(path, "it is no file, directory or link"),
        }
        None
    }

    fn found(&self, kind: Kind, stat: Stat, link: Vec<u8>) -> Found {
        let print = if changed(&stat) >= self.racy { 0 } else { print(kind, &stat, &link) };
        Found { kind, stat, link, print }
    }
}

/// Returns true if a name is what a pattern says, `*` at one of its ends standing for anything.
fn fits(pattern: &str, name: &[u8]) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end.as_bytes()),
        (_, Some(start)) => name.starts_with(start.as_bytes()),
        _ => name == pattern.as_bytes(),
    }
}

/// Returns when an inode changed, in nanoseconds since 1970.
pub fn changed(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
}

/// Returns a number that tells a file from another, and from what it was: it is the same for all its names.
pub fn state(stat: &Stat) -> u64 {
    let mut hasher = SipHasher13::new();
    (stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, changed(stat)).hash(&mut hasher);
    hasher.finish()
}

/// Returns a number that changes with a file: with its content, owner, mode, times and attributes, by what stat tells.
fn print(kind: Kind, stat: &Stat, link: &[u8]) -> u64 {
    let size = if kind == Kind::Dir { 0 } else { stat.st_size };
    let modified = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    let pair = |one: u64, other: u64| one << 32 | other;
    let numbers = [
        pair(kind.letter().into(), stat.st_mode.into()),
        pair(stat.st_uid.into(), stat.st_gid.into()),
        size as u64,
        modified as u64,
        changed(stat) as u64,
        stat.st_ino,
    ];
    let mut hasher = SipHasher13::new();
    hasher.write(numbers.map(u64::to_le_bytes).as_flattened());
    hasher.write(link);
    // Zero means "cannot be told".
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::rules::Rule;
    use super::*;

    #[test]
    fn a_name_is_no_link_to_what_its_inode_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "").unwrap();
        ["y", "z"].iter().for_each(|name| fs::hard_link(at("a"), at(name)).unwrap());
        // More than is looked at ahead.
        (0..BATCH * (2 * AHEAD)).for_each(|number| fs::write(at(&format!("b{number}")), "").unwrap());
        let rules = vec![Rule { path: String::new(), take: true }];
        let tree = Tree { root: dir.path().into(), base: "/c".into(), rules, secrets: vec![], previous: None };
        let mut names = Vec::new();
        scan(&tree, &Rules::new(&tree.rules), &mut |path, found| {
            if path == b"a" {
                fs::set_permissions(at("a"), fs::Permissions::from_mode(0o600))?;
            }
            if found.stat.st_nlink == 3 {
                names.push((path.to_vec(), found.kind, found.link.clone()));
            }
            Ok(())
        })
        .unwrap();
        let name = |path: &[u8], kind, link: &[u8]| (path.to_vec(), kind, link.to_vec());
        let expected = [name(b"a", Kind::File, b""), name(b"y", Kind::File, b""), name(b"z", Kind::Hardlink, b"y")];
        assert_eq!(names, expected);
    }
}
