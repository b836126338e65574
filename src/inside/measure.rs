//! Measures trees: the blocks that files take on the disk, hard links once, other file systems never.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CStr;
use std::iter;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dirs::DIRECTORY;
use super::scan::{changed, is_secret};
use super::walk::{self, Counters, Folder, Troubles, Visit, blocks, last_used};

/// A tree to measure.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tree {
    pub root: PathBuf,
    /// Paths below the root that get numbers of their own; a component `*` stands for any name.
    /// A deeper one takes its bytes from those above it. What none of them covers is counted as the rest.
    pub known: Vec<String>,
    /// True to tell how old the files are.
    #[serde(default)]
    pub ages: bool,
    /// True to find out only which parts hold something: where a file was seen, no deeper directory is entered, and all
    /// sums are too small.
    #[serde(default)]
    pub glance: bool,
    /// Names of files that stay where a known path, or the root, has them, as in [`super::pack::Tree::secrets`].
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// What a tree holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// In the order of [`Tree::known`].
    pub known: Vec<Sum>,
    pub rest: Sum,
    /// The first of the entries that could not be read, each with the reason.
    pub unreadable: Vec<String>,
    /// Number of entries that could not be read.
    pub unreadable_count: u64,
}

/// The sum over a part of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Bytes on the disk, as `du` counts them: blocks, directories included.
    pub bytes: u64,
    /// Those of the bytes that stay when the part is emptied: the directories that known paths name or lead through,
    /// files that have further hard links outside the part, and files of secrets.
    #[serde(default)]
    pub staying: u64,
    /// Number of entries that are not directories; hard links of one file count once.
    pub files: u64,
    /// Latest access or change of a file, seconds since 1970; 0 if there is none, or nobody knows.
    pub last_used: u64,
    /// Another number whenever a file has come, gone, or been read, changed or linked: the sum of when each was last read
    /// and when its inode changed, nanoseconds since 1970, wrapped. It tells what times in the future hide from the latest.
    #[serde(default)]
    pub touched: u64,
    /// False if the path does not exist.
    pub exists: bool,
    /// True if a git work tree begins just there: somebody's own, whatever the path is called. What tools keep of git lies
    /// deeper, or is bare.
    #[serde(default)]
    pub is_work_tree: bool,
    /// If [`Tree::ages`]: files by the hour since 1970 of their last use; in hour 0 are those of which nobody knows it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ages: BTreeMap<u64, Aged>,
    /// Those of the staying bytes that go with other parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<Shared>,
    /// Paths of files of secrets below the root, which stay, and their bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<(String, u64)>,
}

/// The files that were last used in one hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aged {
    /// Without those that stay because of further hard links outside the part.
    pub bytes: u64,
    pub files: u64,
}

/// Files last used in one hour that have hard links in each of some parts, and nowhere else: their bytes go with the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// The first one, whose sum this is of, and the others, in the order of [`Tree::known`].
    pub parts: Vec<usize>,
    pub hour: u64,
    pub bytes: u64,
}

impl Sum {
    /// Returns the number of files without those of secrets.
    pub fn removable_files(&self) -> u64 {
        self.files - self.secrets.len() as u64
    }

    fn add(&mut self, other: Sum) {
        self.bytes += other.bytes;
        self.staying += other.staying;
        self.files += other.files;
        self.last_used = self.last_used.max(other.last_used);
        self.touched = self.touched.wrapping_add(other.touched);
        self.exists |= other.exists;
        self.is_work_tree |= other.is_work_tree;
        for (hour, aged) in other.ages {
            let sum = self.ages.entry(hour).or_default();
            sum.bytes += aged.bytes;
            sum.files += aged.files;
        }
        self.shared.extend(other.shared);
        self.secrets.extend(other.secrets);
    }

    fn add_file(&mut self, Use { bytes, staying, moment, touched }: Use, ages: bool) {
        self.files += 1;
        self.bytes += bytes;
        self.staying += staying;
        self.last_used = self.last_used.max(moment);
        self.touched = self.touched.wrapping_add(touched);
        self.exists = true;
        if ages {
            let aged = self.ages.entry(moment / 3600).or_default();
            aged.bytes += bytes - staying;
            aged.files += 1;
        }
    }
}

/// Measures all trees side by side; calls `progress` with files and bytes so far, five times a second.
pub fn all(trees: &[Tree], progress: &mut (dyn FnMut(u64, u64) + Send)) -> Vec<Measured> {
    let counters = Counters::default();
    let measures: Vec<Measure> = trees.iter().map(|tree| Measure::new(tree, &counters)).collect();
    let walks = trees.iter().zip(&measures).map(|(tree, measure)| (&tree.root, &tree.known, measure));
    walk::all(walks, &counters, progress);
    measures.into_iter().map(Measure::finish).collect()
}

struct Measure<'a> {
    ages: bool,
    glance: bool,
    secrets: &'a [String],
    /// The known paths, then the rest.
    parts: Vec<Mutex<Sum>>,
    counters: &'a Counters,
    links: Mutex<HashMap<u64, Link>>,
    unreadable: Troubles,
}

/// What a file takes, and when it was last used.
#[derive(Clone, Copy)]
struct Use {
    bytes: u64,
    /// As in [`Sum`], and so is what follows.
    staying: u64,
    moment: u64,
    touched: u64,
}

impl Use {
    fn of(stat: &Stat) -> Use {
        let read = i128::from(stat.st_atime) * 1_000_000_000 + i128::from(stat.st_atime_nsec);
        Use { bytes: blocks(stat), staying: 0, moment: last_used(stat), touched: (read + changed(stat)) as u64 }
    }
}

/// A file with several hard links.
struct Link {
    file: Use,
    /// How many there are of it, and how many of them were seen.
    links: u64,
    seen: u64,
    /// The first part that has some of them, and the others.
    part: usize,
    others: BTreeSet<usize>,
}

impl Link {
    /// The first part that has a link has the bytes: which thread came first must not decide.
    fn add(&mut self, other: &Link) {
        self.seen += other.seen;
        if self.part != other.part {
            self.others.insert(self.part.max(other.part));
            self.part = self.part.min(other.part);
        }
    }
}

impl<'a> Measure<'a> {
    fn new(tree: &'a Tree, counters: &'a Counters) -> Self {
        Measure {
            ages: tree.ages,
            glance: tree.glance,
            secrets: &tree.secrets,
            parts: (0..=tree.known.len()).map(|_| Mutex::default()).collect(),
            counters,
            links: Mutex::default(),
            unreadable: Troubles::default(),
        }
    }

    fn part(&self, part: usize) -> MutexGuard<'_, Sum> {
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, part: usize, sum: Sum) {
        self.counters.files.fetch_add(sum.files, Relaxed);
        self.counters.bytes.fetch_add(sum.bytes, Relaxed);
        self.part(part).add(sum);
    }

    fn finish(self) -> Measured {
        let mut parts: Vec<Sum> =
            self.parts.into_iter().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut shared: BTreeMap<(Vec<usize>, u64), u64> = BTreeMap::new();
        for link in self.links.into_inner().unwrap_or_else(PoisonError::into_inner).into_values() {
            let Link { file, links, seen, part, others } = link;
            let staying = if seen < links || !others.is_empty() { file.bytes } else { 0 };
            parts[part].add_file(Use { staying, ..file }, self.ages);
            for other in &others {
                parts[*other].add_file(Use { bytes: 0, ..file }, self.ages);
            }
            if seen >= links && !others.is_empty() {
                let all = iter::once(part).chain(others).collect();
                *shared.entry((all, file.moment / 3600)).or_default() += file.bytes;
            }
        }
        for ((all, hour), bytes) in shared {
            parts[all[0]].shared.push(Shared { parts: all, hour, bytes });
        }
        let rest = parts.pop().unwrap_or_default();
        let (unreadable, unreadable_count) = self.unreadable.finish();
        Measured { known: parts, rest, unreadable, unreadable_count }
    }
}

impl Visit for Measure<'_> {
    /// What belongs to the folder's own part, and hard links of any part, by inode.
    type Local = (Sum, Vec<(u64, Link)>);

    fn enters(&self, part: usize, leads_on: bool) -> bool {
        !self.glance || leads_on || self.part(part).files == 0
    }

    fn folder(&self, folder: &Folder) {
        let bytes = blocks(&folder.stat);
        let staying = if folder.named { bytes } else { 0 };
        let is_work_tree = folder.is_top() && is_work_tree(&folder.fd);
        self.add(folder.part, Sum { bytes, staying, exists: true, is_work_tree, ..Sum::default() });
    }

    fn entry(&self, folder: &Folder, name: &CStr, part: usize, (sum, links): &mut Self::Local) {
        if self.glance {
            let seen = Sum { files: 1, exists: true, ..Sum::default() };
            return if part == folder.part { sum.add(seen) } else { self.add(part, seen) };
        }
        match statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stays(folder, name, part, self.secrets) => {
                let bytes = blocks(&stat);
                sum.add_file(Use { staying: bytes, ..Use::of(&stat) }, false);
                sum.secrets.push((folder.path(name), bytes));
            }
            Ok(stat) if stat.st_nlink > 1 => {
                #[allow(clippy::unnecessary_cast, reason = "its width differs between systems")]
                let count = stat.st_nlink as u64;
                let (file, others) = (Use::of(&stat), BTreeSet::new());
                links.push((stat.st_ino, Link { file, links: count, seen: 1, part, others }));
            }
            Ok(stat) if part == folder.part => sum.add_file(Use::of(&stat), self.ages),
            Ok(stat) => {
                let mut own = Sum::default();
                own.add_file(Use::of(&stat), self.ages);
                self.add(part, own);
            }
            // Deleted since the directory was read: a cache in use.
            Err(Errno::NOENT) => {}
            Err(error) => self.refused(folder.path(name), error),
        }
    }

    fn listed(&self, folder: &Folder, (sum, links): Self::Local) {
        self.add(folder.part, sum);
        if links.is_empty() {
            return;
        }
        let mut known = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (inode, link) in links {
            match known.entry(inode) {
                Entry::Occupied(mut same) => same.get_mut().add(&link),
                Entry::Vacant(place) => drop(place.insert(link)),
            }
        }
    }

    fn refused(&self, path: String, error: Errno) {
        self.unreadable.add(path, error);
    }
}

/// Tells whether an entry stays because of its name: that of a file of secrets, in the root or where a known path leads,
/// unless such a path names the entry itself.
pub fn stays(folder: &Folder, name: &CStr, part: usize, secrets: &[String]) -> bool {
    folder.named && part == folder.part && is_secret(secrets, name.to_bytes())
}

/// Tells whether git takes a directory for the top of a work tree: its `.git` is a repository, a link, or a file that says
/// where one is, as `git worktree` and submodules have it. An empty file, as uv has one in its cache, is none of these.
pub fn is_work_tree(dir: impl AsFd) -> bool {
    let open = |flags| openat(&dir, c".git", flags, Mode::empty());
    let found = statat(&dir, c".git", AtFlags::SYMLINK_NOFOLLOW);
    match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Directory) => {
            open(DIRECTORY).and_then(|git| statat(git, c"HEAD", AtFlags::SYMLINK_NOFOLLOW)).is_ok()
        }
        Ok(FileType::RegularFile) => {
            let mut start = [0; 8];
            let read =
                open(DIRECTORY.difference(OFlags::DIRECTORY)).and_then(|file| rustix::io::read(file, &mut start));
            read.is_ok() && start == *b"gitdir: "
        }
        found => found == Ok(FileType::Symlink),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn measure(root: &std::path::Path, known: &[&str]) -> Measured {
        let tree =
            Tree { root: root.into(), known: known.iter().map(ToString::to_string).collect(), ..Tree::default() };
        all(&[tree], &mut |_, _| ()).remove(0)
    }

    #[test]
    fn bytes_go_to_the_deepest_known_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["pip/wheels", "cargo/registry", "cargo/bin", "other", "venvs/a/lib", "venvs/b/lib"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
            fs::write(dir.path().join(path).join("f"), vec![7; 10_000]).unwrap();
        }
        let found = measure(dir.path(), &["pip", "cargo", "cargo/registry", "venvs/*/lib", "gone"]);
        let files: Vec<u64> = found.known.iter().map(|sum| sum.files).collect();
        assert_eq!(files, [1, 1, 1, 2, 0]);
        assert_eq!(found.rest.files, 1);
        assert!(found.known[1].bytes >= 10_000 && found.known[1].last_used > 0);
        assert!(!found.known[4].exists && found.known[0].exists);
    }

    #[test]
    fn hard_links_count_once_sparse_files_by_blocks_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![7; 100_000]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        symlink("/usr", dir.path().join("usr")).unwrap();
        let found = measure(dir.path(), &[]);
        let own = fs::metadata(dir.path()).unwrap().blocks() * 512;
        let file = fs::metadata(dir.path().join("a")).unwrap().blocks() * 512;
        assert_eq!(found.rest.bytes, own + file);
        assert_eq!(found.rest.files, 3);
    }

    #[test]
    fn a_missing_root_is_reported() {
        let found = measure(std::path::Path::new("/nonexistent/tree"), &["pip"]);
        assert_eq!(found.unreadable_count, 1);
        assert!(found.unreadable[0].contains("No such file"), "{:?}", found.unreadable);
    }

    #[test]
    fn bytes_that_stay_are_those_of_named_folders_and_of_links_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pip/inner")).unwrap();
        fs::create_dir_all(dir.path().join("venv")).unwrap();
        for (file, link) in [("pip/a", "venv/a"), ("pip/b", "pip/inner/b")] {
            fs::write(dir.path().join(file), vec![7; 100_000]).unwrap();
            fs::hard_link(dir.path().join(file), dir.path().join(link)).unwrap();
        }
        let found = measure(dir.path(), &["pip"]);
        let blocks = |path: &str| fs::metadata(dir.path().join(path)).unwrap().blocks() * 512;
        assert_eq!(found.known[0].files, 2);
        assert_eq!(found.known[0].staying, blocks("pip") + blocks("pip/a"));
        let shared = [Shared { parts: vec![0, 1], hour: found.known[0].last_used / 3600, bytes: blocks("pip/a") }];
        assert_eq!(found.known[0].shared, shared);
        // A name counts where it lies, and its bytes once.
        assert_eq!((found.rest.files, found.rest.bytes), (1, blocks("") + blocks("venv")));
    }

    #[test]
    fn a_work_tree_at_the_top_of_a_part_is_told_and_none_below() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["vcpkg", "pre-commit/repo1", "cargo/git/checkouts/a/b", "old/"] {
            fs::create_dir_all(dir.path().join(path).join(".git")).unwrap();
            fs::write(dir.path().join(path).join(".git/HEAD"), "ref: refs/heads/main").unwrap();
        }
        // A linked work tree or a submodule has a file there.
        for (path, text) in
            [("uv", "gitdir: /repo/.git/worktrees/uv\n"), ("go/vcs/a", "gitdir: x"), ("pip", ""), ("npm", "x")]
        {
            fs::create_dir_all(dir.path().join(path)).unwrap();
            fs::write(dir.path().join(path).join(".git"), text).unwrap();
        }
        for (path, target) in [("yarn", "../vcpkg/.git"), ("bun", "/nowhere")] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
            symlink(target, dir.path().join(path).join(".git")).unwrap();
        }
        fs::create_dir_all(dir.path().join("deno/.git")).unwrap();
        // What ends in a slash was named by the user.
        let none = ["pre-commit", "cargo", "cargo/git", "old/", "go", "pip", "npm", "deno"];
        let known = [&["vcpkg", "uv", "yarn", "bun"][..], &none].concat();
        let found = measure(dir.path(), &known).known;
        let told: Vec<&str> =
            known.into_iter().zip(found).filter(|(_, sum)| sum.is_work_tree).map(|(path, _)| path).collect();
        assert_eq!(told, ["vcpkg", "uv", "yarn", "bun"]);
    }

    #[test]
    fn a_glance_tells_which_parts_hold_something() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["pip/deep/deeper", "cargo/registry", "cargo/bin", "npm/none", "other"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for path in ["pip/deep/deeper/a", "cargo/config", "cargo/bin/b", "other/c"] {
            fs::write(dir.path().join(path), "1").unwrap();
        }
        let known = ["pip", "cargo", "cargo/bin", "cargo/registry", "npm", "gone"];
        let known = known.iter().map(ToString::to_string).collect();
        let found = all(&[Tree { root: dir.path().into(), known, glance: true, ..Tree::default() }], &mut |_, _| ());
        let held: Vec<(bool, bool)> = found[0].known.iter().map(|sum| (sum.exists, sum.files > 0)).collect();
        assert_eq!(held, [(true, true), (true, true), (true, true), (true, false), (true, false), (false, false)]);
        assert!(found[0].rest.files > 0);
    }

    #[test]
    fn ages_are_told_by_the_hour_and_hard_links_are_one_file() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = ["old", "linked", "outside", "unknown", "before"].map(|name| dir.path().join(name));
        for (path, seconds) in paths.iter().zip([7300i64, 7400, 7500, 0, -5000]) {
            fs::write(path, vec![7; 10_000]).unwrap();
            let moment = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: moment, last_modification: moment };
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty()).unwrap();
        }
        fs::hard_link(&paths[1], dir.path().join("link")).unwrap();
        fs::hard_link(&paths[2], outside.path().join("link")).unwrap();
        fs::write(dir.path().join("new"), "1").unwrap();
        let found = all(&[Tree { root: dir.path().into(), ages: true, ..Tree::default() }], &mut |_, _| ()).remove(0);
        let ages: Vec<(u64, Aged)> = found.rest.ages.into_iter().take(2).collect();
        let bytes = 2 * fs::metadata(&paths[0]).unwrap().blocks() * 512;
        // What has a link outside frees nothing.
        assert_eq!(ages, [(0, Aged { bytes, files: 2 }), (2, Aged { bytes, files: 3 })]);
    }
}
