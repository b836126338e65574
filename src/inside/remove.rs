//! Removes parts of trees: what belongs to a part and nothing else. The directories that the parts name stay, empty, with
//! their owners and modes, for a tool that is not root could not make them again.

use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::fs::{AtFlags, Mode, Stat, fchmod, statat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::measure::{self, Measured, Tree, is_work_tree};
use super::unpack;
use super::walk::{self, Counters, Folder, Troubles, Visit, blocks, last_used};

/// A tree to remove parts of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cut {
    pub root: PathBuf,
    /// The paths that tell the parts apart, as in [`super::measure::Tree::known`]. A directory whose path ends in `/` goes too.
    pub known: Vec<String>,
    /// What to remove of each, and last of what none of them covers.
    pub take: Vec<Take>,
    /// As in [`super::measure::Tree::secrets`].
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The parts that are meant to go although they are git work trees.
    #[serde(default)]
    pub work_trees: Vec<usize>,
}

/// What to remove of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Take {
    Nothing,
    Everything,
    /// Only files that were last used at the first moment or later, and before the second; seconds since 1970, 0 if nobody
    /// knows.
    Between(u64, u64),
    /// Everything, as long as [`measure::Sum::touched`] is this: nothing of it was used since.
    Unused(u64),
}

/// What was removed of a tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    /// Bytes on the disk that nothing refers to any more.
    pub freed: u64,
    /// The first of the entries that could not be removed, each with the reason.
    pub failed: Vec<String>,
    /// Number of entries that could not be removed.
    pub failed_count: u64,
    /// The first of the mount points that were not entered.
    pub mounts: Vec<String>,
    /// The paths of the parts that stayed because they were used.
    pub used: Vec<String>,
}

/// Cuts all trees side by side; calls `progress` with files and bytes so far, five times a second.
pub fn all(cuts: &[Cut], progress: &mut (dyn FnMut(u64, u64) + Send)) -> Vec<Removed> {
    let mut cuts = cuts.to_vec();
    let used = keep_used(&mut cuts);
    let counters = Counters::default();
    let removals: Vec<Removal> = cuts.iter().map(|cut| Removal::new(cut, &counters)).collect();
    for (cut, removal) in cuts.iter().zip(&removals) {
        if let Err(error) = unpack::sweep(&cut.root) {
            removal.failed.tell(format!("{error:#}"));
        }
    }
    let walks = cuts.iter().zip(&removals).map(|(cut, removal)| (&cut.root, &cut.known, removal));
    walk::all(walks, &counters, progress);
    removals.into_iter().zip(used).map(|(removal, used)| Removed { used, ..removal.finish() }).collect()
}

/// Decides about each [`Take::Unused`] by what is there now. Returns the paths of the parts that stay, for each tree.
fn keep_used(cuts: &mut [Cut]) -> Vec<Vec<String>> {
    let by_use = |cut: &Cut| cut.take.iter().any(|take| matches!(take, Take::Unused(_)));
    let tree = |cut: &Cut| Tree { root: cut.root.clone(), known: cut.known.clone(), ..Tree::default() };
    let at_issue = cuts.iter().enumerate().filter(|(_, cut)| by_use(cut)).map(|(at, cut)| (at, tree(cut)));
    let (places, trees): (Vec<usize>, Vec<Tree>) = at_issue.unzip();
    let mut used = vec![Vec::new(); cuts.len()];
    for (at, Measured { known, rest, .. }) in places.into_iter().zip(measure::all(&trees, &mut |_, _| ())) {
        let Cut { take, known: paths, .. } = &mut cuts[at];
        for (part, (take, now)) in take.iter_mut().zip(known.into_iter().chain([rest])).enumerate() {
            let Take::Unused(touched) = *take else { continue };
            *take = if now.touched == touched { Take::Everything } else { Take::Nothing };
            if *take == Take::Nothing {
                used[at].push(paths.get(part).cloned().unwrap_or_default());
            }
        }
    }
    used
}

struct Removal<'a> {
    cut: &'a Cut,
    /// The parts that stay, for a git work tree begins there that was not there before.
    spared: Vec<AtomicBool>,
    counters: &'a Counters,
    freed: AtomicU64,
    /// Held while one of several hard links is removed, so that the last one is known to be the last.
    links: Mutex<()>,
    failed: Troubles,
    mounts: Troubles,
}

impl<'a> Removal<'a> {
    fn new(cut: &'a Cut, counters: &'a Counters) -> Self {
        Removal {
            cut,
            spared: cut.take.iter().map(|_| AtomicBool::default()).collect(),
            counters,
            freed: AtomicU64::new(0),
            links: Mutex::default(),
            failed: Troubles::default(),
            mounts: Troubles::default(),
        }
    }

    fn take(&self, part: usize) -> Take {
        let stays = self.spared.get(part).is_none_or(|spared| spared.load(Relaxed));
        if stays { Take::Nothing } else { self.cut.take[part] }
    }

    fn finish(self) -> Removed {
        let (failed, failed_count) = self.failed.finish();
        let (mounts, _) = self.mounts.finish();
        Removed { freed: self.freed.into_inner(), failed, failed_count, mounts, used: Vec::new() }
    }

    /// Removes one name and returns the bytes that this freed.
    fn unlink(&self, folder: &Folder, name: &CStr, stat: &Stat) -> rustix::io::Result<u64> {
        if stat.st_nlink <= 1 {
            unlink(folder, name, AtFlags::empty())?;
            return Ok(blocks(stat));
        }
        let _one_at_a_time = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        unlink(folder, name, AtFlags::empty())?;
        Ok(if stat.st_nlink <= 1 { blocks(&stat) } else { 0 })
    }

    fn count(&self, freed: u64) {
        self.freed.fetch_add(freed, Relaxed);
        self.counters.bytes.fetch_add(freed, Relaxed);
    }
}

/// Removes a name from a directory that its owner may have closed to writing, as Go does with its module cache.
fn unlink(folder: &Folder, name: &CStr, flags: AtFlags) -> rustix::io::Result<()> {
    match unlinkat(&folder.fd, name, flags) {
        Err(Errno::ACCESS) => {
            folder.opened.store(true, Relaxed);
            fchmod(&folder.fd, Mode::from_raw_mode(folder.stat.st_mode) | Mode::RWXU)?;
            unlinkat(&folder.fd, name, flags)
        }
        done => done,
    }
}

impl Visit for Removal<'_> {
    /// Names removed, and the bytes that this freed.
    type Local = (u64, u64);

    fn enters(&self, part: usize, leads_on: bool) -> bool {
        leads_on || self.take(part) != Take::Nothing
    }

    fn folder(&self, folder: &Folder) {
        let may_go = self.take(folder.part) == Take::Nothing || self.cut.work_trees.contains(&folder.part);
        if !may_go && folder.is_top() && is_work_tree(&folder.fd) {
            self.spared[folder.part].store(true, Relaxed);
            self.failed.tell(format!("{}: it is a git work tree now", folder.path(c"")));
        }
    }

    fn entry(&self, folder: &Folder, name: &CStr, part: usize, (files, freed): &mut (u64, u64)) {
        let take = self.take(part);
        if take == Take::Nothing || measure::stays(folder, name, part, &self.cut.secrets) {
            return;
        }
        let removed = statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW).and_then(|stat| match take {
            Take::Between(from, before) if !(from..before).contains(&last_used(&stat)) => Ok(None),
            _ => self.unlink(folder, name, &stat).map(Some),
        });
        match removed {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                *files += 1;
                *freed += bytes;
            }
            // Gone, or replaced by a directory, since its directory was read: a cache in use.
            Err(Errno::NOENT | Errno::ISDIR) => {}
            Err(error) => self.refused(folder.path(name), error),
        }
    }

    fn listed(&self, _folder: &Folder, (files, freed): (u64, u64)) {
        self.counters.files.fetch_add(files, Relaxed);
        self.count(freed);
    }

    fn done(&self, folder: &Folder) {
        if folder.opened.load(Relaxed) {
            let closed = fchmod(&folder.fd, Mode::from_raw_mode(folder.stat.st_mode));
            let _ = closed.inspect_err(|error| self.refused(folder.path(c""), *error));
        }
        let Some(above) = folder.above.as_deref().filter(|_| !folder.named) else { return };
        if self.take(folder.part) != Take::Everything {
            return;
        }
        match unlink(above, &folder.name, AtFlags::REMOVEDIR) {
            Ok(()) => self.count(blocks(&folder.stat)),
            // Something in it stays, and has been told of, or is new: a cache in use.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {}
            // Gone, or replaced by a link, which is none of ours.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => self.refused(above.path(&folder.name), error),
        }
    }

    fn refused(&self, path: String, error: Errno) {
        self.failed.add(path, error);
    }

    fn other_mount(&self, path: String) {
        self.mounts.add(path, Errno::XDEV);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::catalogue::{self, Known};

    fn cut(root: &Path, known: &[&str], take: &[Take]) -> Removed {
        let known = known.iter().map(ToString::to_string).collect();
        all(&[Cut { root: root.into(), known, take: take.to_vec(), ..Cut::default() }], &mut |_, _| ()).remove(0)
    }

    /// Makes a directory with these files.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "1").unwrap();
        }
        dir
    }

    /// Returns all paths below a directory, following no link.
    fn paths(root: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut ahead = vec![root.to_path_buf()];
        while let Some(dir) = ahead.pop() {
            for entry in fs::read_dir(&dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    ahead.push(entry.path());
                }
                found.insert(entry.path().strip_prefix(root).unwrap().to_path_buf());
            }
        }
        found
    }

    #[test]
    fn a_part_is_emptied_and_its_directory_stays() {
        let dir = tree(&[
            "pip/wheels/a/b",
            "cargo/bin/tool",
            "cargo/registry/x/y",
            "other/f",
            ".docker-cache-import/new-0/a",
        ]);
        fs::set_permissions(dir.path().join("pip"), fs::Permissions::from_mode(0o2770)).unwrap();
        let all = Take::Everything;
        let removed = cut(dir.path(), &["cargo", "cargo/registry", "pip"], &[Take::Nothing, all, all, Take::Nothing]);
        assert_eq!(removed.failed_count, 0, "{removed:?}");
        let left: Vec<_> = paths(dir.path()).into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(left, ["cargo", "cargo/bin", "cargo/bin/tool", "cargo/registry", "other", "other/f", "pip"]);
        assert_eq!(fs::metadata(dir.path().join("pip")).unwrap().mode() & 0o7777, 0o2770);
    }

    #[test]
    fn a_directory_whose_path_ends_in_a_slash_goes_too_unless_something_in_it_stays() {
        let dir =
            tree(&["toolchains/old/bin/rustc", "toolchains/new/bin/rustc", "bundle/old/gem/f", "bundle/old/config/f"]);
        let known = ["toolchains", "toolchains/old/", "bundle/old/", "bundle/old/config"];
        let take = [Take::Nothing, Take::Everything, Take::Everything, Take::Nothing, Take::Nothing];
        let tree = Tree { root: dir.path().into(), known: known.map(str::to_owned).to_vec(), ..Tree::default() };
        let planned = measure::all(&[tree], &mut |_, _| ()).remove(0).known;
        let removed = cut(dir.path(), &known, &take);
        assert_eq!(removed.failed_count, 0, "{removed:?}");
        assert_eq!((planned[1].staying, planned[2].staying), (0, 0));
        let left: Vec<_> = paths(dir.path()).into_iter().map(|path| path.display().to_string()).collect();
        let expected =
            ["bundle", "bundle/old", "bundle/old/config", "bundle/old/config/f", "toolchains", "toolchains/new"];
        assert_eq!(left, [&expected[..], &["toolchains/new/bin", "toolchains/new/bin/rustc"]].concat());
    }

    #[test]
    fn a_git_work_tree_that_nobody_meant_stays_whole() {
        let dir = tree(&["pip/.git/HEAD", "pip/src/main.py", "npm/.git/HEAD", "npm/mine", "uv/a/.git/HEAD"]);
        let known = ["pip", "npm", "uv"].map(str::to_owned).to_vec();
        let take = [vec![Take::Everything; 3], vec![Take::Nothing]].concat();
        let cut = Cut { root: dir.path().into(), known, take, work_trees: vec![1], ..Cut::default() };
        let removed = all(&[cut], &mut |_, _| ()).remove(0);
        assert_eq!(removed.failed, ["pip: it is a git work tree now"]);
        let left: Vec<_> = paths(dir.path()).into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(left, ["npm", "pip", "pip/.git", "pip/.git/HEAD", "pip/src", "pip/src/main.py", "uv"]);
    }

    #[test]
    fn files_of_secrets_stay_where_tools_have_them_unless_they_are_named() {
        let dir = tree(&["npm/.npmrc", "npm/_cacache/.npmrc", "npm/key.pem", "uv/.netrc", "other/.npmrc"]);
        let known = ["npm", "npm/.npmrc/", "uv"].map(str::to_owned).to_vec();
        let secrets = vec![".npmrc".to_owned(), ".netrc".into(), "*.pem".into()];
        let tree = Tree { root: dir.path().into(), known: known.clone(), secrets: secrets.clone(), ..Tree::default() };
        let sums = measure::all(&[tree], &mut |_, _| ()).remove(0).known;
        let planned: u64 = sums.iter().map(|sum| sum.bytes - sum.staying).sum();
        let told: Vec<&str> = sums.iter().flat_map(|sum| &sum.secrets).map(|(path, _)| path.as_str()).collect();
        assert_eq!(told, ["npm/key.pem", "uv/.netrc"]);
        let take = [vec![Take::Everything; 3], vec![Take::Nothing]].concat();
        let removed =
            all(&[Cut { root: dir.path().into(), known, take, secrets, ..Cut::default() }], &mut |_, _| ()).remove(0);
        assert_eq!((removed.failed_count, removed.freed), (0, planned), "{removed:?}");
        let left: Vec<_> = paths(dir.path()).into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(left, ["npm", "npm/key.pem", "other", "other/.npmrc", "uv", "uv/.netrc"]);
    }

    #[test]
    fn links_go_and_what_they_point_to_stays() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("precious"), "1").unwrap();
        fs::create_dir(dir.path().join("pip")).unwrap();
        symlink(outside.path(), dir.path().join("pip/dir")).unwrap();
        symlink(outside.path().join("precious"), dir.path().join("pip/file")).unwrap();
        symlink(outside.path(), dir.path().join("uv")).unwrap();
        let removed = cut(dir.path(), &["pip", "uv"], &[Take::Everything, Take::Everything, Take::Nothing]);
        assert_eq!(removed.failed_count, 0, "{removed:?}");
        assert_eq!((paths(dir.path()), paths(outside.path()).len()), (["pip".into()].into(), 1));
        // A root that is a link is not a place to clear.
        symlink(outside.path(), dir.path().join("root")).unwrap();
        let removed = cut(&dir.path().join("root"), &[], &[Take::Everything]);
        assert_eq!(removed.failed_count, 1);
        assert_eq!(paths(outside.path()).len(), 1);
    }

    #[test]
    fn names_are_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"a\nb"[..], b"\xff\xfe", b"-rf", b"*", b"; rm -rf ~", b"'\"$(x)`"] {
            fs::create_dir_all(dir.path().join("pip").join(OsStr::from_bytes(name))).unwrap();
            fs::write(dir.path().join("pip").join(OsStr::from_bytes(name)).join(OsStr::from_bytes(name)), "1").unwrap();
        }
        let removed = cut(dir.path(), &["pip"], &[Take::Everything, Take::Nothing]);
        assert_eq!(removed.failed_count, 0, "{removed:?}");
        assert_eq!(paths(dir.path()).len(), 1);
    }

    #[test]
    fn only_old_files_go_by_age() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pip/http")).unwrap();
        for (name, seconds) in [("unknown", 1), ("old", 10_000), ("edge", 20_000), ("new", 30_000)] {
            let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            let file = fs::File::create(dir.path().join("pip/http").join(name)).unwrap();
            file.set_times(fs::FileTimes::new().set_accessed(moment).set_modified(moment)).unwrap();
        }
        let left = || fs::read_dir(dir.path().join("pip/http")).unwrap().count();
        cut(dir.path(), &["pip"], &[Take::Between(3600, 20_000), Take::Nothing]);
        assert_eq!(left(), 3);
        assert!(!dir.path().join("pip/http/old").exists());
        cut(dir.path(), &["pip"], &[Take::Between(0, 20_000), Take::Nothing]);
        assert_eq!(left(), 2);
        assert!(!dir.path().join("pip/http/unknown").exists());
    }

    #[test]
    fn what_was_used_since_the_plan_was_made_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let known = ["pip", "npm", "uv", "yarn", "go"];
        // Times in the future hide nothing.
        for file in ["pip/old", "npm/index", "uv/read", "yarn/linked", "go/gone", "go/sum", "other"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let moment = std::time::SystemTime::now() + std::time::Duration::from_secs(100_000_000);
            let times = fs::FileTimes::new().set_accessed(moment).set_modified(moment);
            fs::File::create(path).unwrap().set_times(times).unwrap();
        }
        let tree = Tree { root: dir.path().into(), known: known.map(str::to_owned).to_vec(), ..Tree::default() };
        let planned = measure::all(&[tree], &mut |_, _| ()).remove(0).known;
        fs::create_dir(dir.path().join("npm/deep")).unwrap();
        fs::write(dir.path().join("npm/deep/new"), "").unwrap();
        let now = fs::FileTimes::new().set_accessed(std::time::SystemTime::now());
        fs::File::open(dir.path().join("uv/read")).unwrap().set_times(now).unwrap();
        fs::hard_link(dir.path().join("yarn/linked"), dir.path().join("link")).unwrap();
        fs::remove_file(dir.path().join("go/gone")).unwrap();
        fs::write(dir.path().join("other"), "1").unwrap();
        let take: Vec<Take> = planned.iter().map(|sum| Take::Unused(sum.touched)).chain([Take::Nothing]).collect();
        let removed = cut(dir.path(), &known, &take);
        assert_eq!(removed.used, known[1..]);
        assert_eq!(fs::read_dir(dir.path().join("pip")).unwrap().count(), 0);
        assert!(known[1..].iter().all(|part| fs::read_dir(dir.path().join(part)).unwrap().count() > 0));
    }

    #[test]
    fn each_tree_is_judged_by_its_own_use() {
        let dir = tempfile::tempdir().unwrap();
        let cut_of = |name: &str, changed: u64| {
            let root = dir.path().join(name);
            fs::create_dir_all(root.join("pip")).unwrap();
            fs::write(root.join("pip/a"), "").unwrap();
            let known = vec!["pip".to_string()];
            let tree = Tree { root: root.clone(), known: known.clone(), ..Tree::default() };
            let touched = measure::all(&[tree], &mut |_, _| ())[0].known[0].touched;
            Cut { root, known, take: vec![Take::Unused(touched + changed), Take::Nothing], ..Cut::default() }
        };
        let cuts = [Cut { take: vec![Take::Everything; 2], ..cut_of("a", 0) }, cut_of("b", 1), cut_of("c", 0)];
        let used: Vec<Vec<String>> = all(&cuts, &mut |_, _| ()).into_iter().map(|removed| removed.used).collect();
        assert_eq!(used, [vec![], vec!["pip".to_string()], vec![]]);
        let left = ["a", "b", "c"].map(|name| dir.path().join(name).join("pip/a").exists());
        assert_eq!(left, [false, true, false]);
    }

    #[test]
    fn hard_links_free_their_bytes_with_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        for at in ["uv/a", "uv/b", "venv"] {
            fs::create_dir_all(dir.path().join(at)).unwrap();
        }
        for (file, link) in [("uv/a/inner", "uv/b/inner"), ("uv/a/outer", "venv/outer")] {
            fs::write(dir.path().join(file), vec![7; 50_000]).unwrap();
            fs::hard_link(dir.path().join(file), dir.path().join(link)).unwrap();
        }
        let blocks = |path: &str| fs::metadata(dir.path().join(path)).unwrap().blocks() * 512;
        let expected = blocks("uv/a/inner") + blocks("uv/a") + blocks("uv/b");
        let tree = Tree { root: dir.path().into(), known: vec!["uv".into()], ..Tree::default() };
        let planned = measure::all(&[tree], &mut |_, _| ()).remove(0).known.remove(0);
        let removed = cut(dir.path(), &["uv"], &[Take::Everything, Take::Nothing]);
        assert_eq!(removed.freed, expected);
        assert_eq!(planned.bytes - planned.staying, expected);
    }

    #[test]
    fn a_directory_swapped_for_a_link_leads_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for at in 0..200 {
            fs::create_dir_all(outside.path().join(format!("{at}"))).unwrap();
            fs::write(outside.path().join(format!("{at}/precious")), "1").unwrap();
        }
        let before = paths(outside.path());
        for _ in 0..20 {
            for at in 0..200 {
                fs::create_dir_all(dir.path().join(format!("pip/{at}"))).unwrap();
                fs::write(dir.path().join(format!("pip/{at}/precious")), "1").unwrap();
            }
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        for at in 0..200 {
                            let (here, aside) =
                                (dir.path().join(format!("pip/{at}")), dir.path().join(format!("aside{at}")));
                            if fs::rename(&here, &aside).is_ok() {
                                let _ = symlink(outside.path().join(format!("{at}")), &here);
                            }
                        }
                    }
                });
                cut(dir.path(), &["pip"], &[Take::Everything, Take::Nothing]);
                done.store(true, Relaxed);
            });
            fs::remove_dir_all(dir.path()).unwrap();
        }
        assert_eq!(paths(outside.path()), before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn directories_that_their_owner_has_closed_to_writing_are_emptied_and_stay_closed() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["go/mod/x@v1", "go/bin"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for (path, mode) in [("go/mod/x@v1", 0o555), ("go/mod", 0o555), ("go/bin", 0o755)] {
            fs::write(dir.path().join(path).join("file"), "1").unwrap();
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        // Root writes anyway: as somebody else, which the threads of the walk are, too.
        let removed = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                if rustix::process::geteuid().is_root() {
                    let user = rustix::fs::Uid::from_raw(1000);
                    paths(dir.path())
                        .into_iter()
                        .chain([PathBuf::new()])
                        .for_each(|path| std::os::unix::fs::chown(dir.path().join(path), Some(1000), None).unwrap());
                    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                }
                cut(dir.path(), &["go/mod"], &[Take::Everything, Take::Nothing])
            });
            other.join().unwrap()
        });
        assert_eq!(removed.failed_count, 0, "{removed:?}");
        assert_eq!(fs::read_dir(dir.path().join("go/mod")).unwrap().count(), 0);
        assert_eq!(dir.path().join("go/mod").metadata().unwrap().permissions().mode() & 0o777, 0o555);
    }

    #[test]
    fn very_deep_trees_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut fd = rustix::fs::open(dir.path(), rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&fd, "deep", Mode::RWXU).unwrap();
            fd = rustix::fs::openat(&fd, "deep", rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
        }
        let removed = cut(dir.path(), &[], &[Take::Everything]);
        assert_eq!((removed.failed_count, paths(dir.path()).len()), (0, 0), "{removed:?}");
    }

    fn any_name() -> impl Strategy<Value = Vec<u8>> {
        const NAMES: &[&str] = &[
            "pip",
            "cargo",
            "registry",
            "bin",
            "git",
            "npm",
            "go",
            "mod",
            "poetry",
            "cache",
            "virtualenvs",
            "x",
            ".cache",
        ];
        prop_oneof![
            4 => proptest::sample::select(NAMES).prop_map(|name| name.as_bytes().to_vec()),
            1 => proptest::collection::vec(1u8..=255, 1..6)
                .prop_filter("a name", |name| !name.contains(&b'/') && !matches!(&name[..], b"." | b"..")),
        ]
    }

    #[derive(Clone, Debug)]
    enum Made {
        File(usize),
        Dir,
        Link,
        HardLink(usize),
    }

    fn any_tree() -> impl Strategy<Value = Vec<(Vec<Vec<u8>>, Made)>> {
        let made = prop_oneof![
            5 => (0usize..20_000).prop_map(Made::File),
            1 => Just(Made::Dir),
            1 => Just(Made::Link),
            1 => (0usize..8).prop_map(Made::HardLink),
        ];
        proptest::collection::vec((proptest::collection::vec(any_name(), 1..5), made), 0..24)
    }

    fn plant(root: &Path, tree: &[(Vec<Vec<u8>>, Made)], outside: &Path) {
        fs::create_dir(root).unwrap();
        let mut files: Vec<PathBuf> = Vec::new();
        for (names, made) in tree {
            let path = names.iter().fold(root.to_path_buf(), |path, name| path.join(OsStr::from_bytes(name)));
            if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
                continue;
            }
            match made {
                Made::File(size) => fs::write(&path, vec![7; *size]).unwrap(),
                Made::Dir => fs::create_dir(&path).unwrap(),
                Made::Link => symlink(outside, &path).unwrap(),
                Made::HardLink(at) => match files.get(*at) {
                    Some(file) => fs::hard_link(file, &path).unwrap(),
                    None => continue,
                },
            }
            if matches!(made, Made::File(_)) {
                files.push(path);
            }
        }
    }

    /// Returns what of a tree stays when these parts go. Who owns a path is said by the catalogue, not by the walk: the
    /// deepest row at or above it.
    fn staying(root: &Path, known: &[Known], goes: impl Fn(&Known) -> bool) -> BTreeSet<PathBuf> {
        let owned = |path: &Path| {
            let text: String = path.as_os_str().as_bytes().iter().map(|byte| *byte as char).collect();
            catalogue::deepest(known, &text).is_some_and(&goes)
        };
        let leads = |path: &Path| {
            let path: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
            known.iter().any(|known| {
                let name: Vec<&[u8]> = known.path.split('/').map(str::as_bytes).collect();
                name.len() >= path.len() && path.iter().zip(&name).all(|(a, b)| a == b || *b == b"*")
            })
        };
        let is_dir = |path: &Path| root.join(path).symlink_metadata().unwrap().is_dir();
        paths(root).into_iter().filter(|path| !owned(path) || (is_dir(path) && leads(path))).collect()
    }

    proptest! {
        // Of many trees each: most of the time of a walk goes into its threads.
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn what_the_plan_measured_is_what_goes_and_nothing_else(
            trees in proptest::collection::vec(any_tree(), 1..40),
            language in proptest::sample::select(vec!["python", "rust", "node", "go"]),
            // Most are: ext4 takes long to make files where many were removed within the last seconds.
            is_in_memory in proptest::bool::weighted(0.9),
        ) {
            let memory = Path::new("/dev/shm");
            let temp = if is_in_memory && memory.is_dir() { memory.into() } else { std::env::temp_dir() };
            let [dir, outside] = [(); 2].map(|()| tempfile::tempdir_in(&temp).unwrap());
            fs::write(outside.path().join("precious"), "1").unwrap();
            let roots: Vec<PathBuf> = (0..trees.len()).map(|at| dir.path().join(at.to_string())).collect();
            for (root, tree) in roots.iter().zip(&trees) {
                plant(root, tree, outside.path());
            }
            let known = catalogue::known_below("/cache");
            let goes = |known: &Known| known.class.is_deletable() && known.row.language == language;
            let names: Vec<String> = known.iter().map(|known| known.path.clone()).collect();
            let tree = |root: &PathBuf| Tree { root: root.clone(), known: names.clone(), ages: true, ..Tree::default() };
            let measured = measure::all(&roots.iter().map(tree).collect::<Vec<_>>(), &mut |_, _| ());
            let planned = measured.iter().map(|measured| {
                let going = known.iter().zip(&measured.known).filter(|(known, _)| goes(known));
                going.map(|(_, sum)| {
                    // A file with links in several parts goes if all of them do.
                    let go = |parts: &[usize]| parts.iter().all(|part| known.get(*part).is_some_and(goes));
                    let shared = sum.shared.iter().filter(|shared| go(&shared.parts));
                    sum.bytes - sum.staying + shared.map(|shared| shared.bytes).sum::<u64>()
                }).sum()
            });
            let planned: Vec<u64> = planned.collect();
            let outside_before = paths(outside.path());
            let expected: Vec<BTreeSet<PathBuf>> = roots.iter().map(|root| staying(root, &known, goes)).collect();

            let take = known.iter().map(|known| if goes(known) { Take::Everything } else { Take::Nothing });
            let take: Vec<Take> = take.chain([Take::Nothing]).collect();
            let cut = |root: &PathBuf| Cut { root: root.clone(), known: names.clone(), take: take.clone(), ..Cut::default() };
            let removed = all(&roots.iter().map(cut).collect::<Vec<_>>(), &mut |_, _| ());
            prop_assert!(removed.iter().all(|removed| removed.failed_count == 0), "{:?}", removed);
            prop_assert_eq!(roots.iter().map(|root| paths(root)).collect::<Vec<_>>(), expected);
            // What the trees' links lead to, which may have been written through them.
            prop_assert_eq!(paths(outside.path()), outside_before);
            prop_assert_eq!(removed.iter().map(|removed| removed.freed).collect::<Vec<_>>(), planned);
        }
    }
}
