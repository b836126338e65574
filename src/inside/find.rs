//! Tells which names there are at known depths of a tree: a look at a few directories, and no walk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, openat, statat};
use serde::{Deserialize, Serialize};

use super::dirs::{self, DIRECTORY};

/// Names to look for in a tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Search {
    pub root: PathBuf,
    /// Below the root. A component `*` stands for any name, `*END` for any with that end. A path that does not end in
    /// `*` is told only if something is in it.
    pub paths: Vec<String>,
}

/// How many names are told of a tree.
const MOST: usize = 10_000;

/// Returns the paths below the root that are there, following no link; what cannot be read is not there.
pub fn names(search: &Search) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(root) = openat(CWD, &search.root, DIRECTORY, Mode::empty()) {
        for path in &search.paths {
            let path: Vec<&str> = path.split('/').collect();
            below(&root, &path, "", &mut found);
        }
    }
    found.sort();
    found.dedup();
    found
}

fn below(dir: &OwnedFd, path: &[&str], above: &str, found: &mut Vec<String>) {
    let Some((name, rest)) = path.split_first() else { return };
    let mut names = match name.strip_prefix('*') {
        Some(end) => list(dir).into_iter().filter(|name| name.ends_with(end)).collect(),
        None => vec![(*name).to_owned()],
    };
    if rest.is_empty() && *name != "*" {
        names.retain(|name| holds_something(dir, name));
    }
    for name in names {
        if found.len() >= MOST {
            return;
        }
        let shown = if above.is_empty() { name.clone() } else { format!("{above}/{name}") };
        if rest.is_empty() {
            found.push(shown);
        } else if let Ok(dir) = openat(dir.as_fd(), name.as_str(), DIRECTORY, Mode::empty()) {
            below(&dir, rest, &shown, found);
        }
    }
}

/// Tells whether there is a file with content, or a directory with something in it; one that cannot be listed may have.
fn holds_something(dir: &OwnedFd, name: &str) -> bool {
    let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => stat.st_size > 0,
        FileType::Directory => {
            let is_empty = |dir: OwnedFd| dirs::names(dir.as_fd()).is_ok_and(|names| names.is_empty());
            openat(dir.as_fd(), name, DIRECTORY, Mode::empty()).is_ok_and(|dir| !is_empty(dir))
        }
        _ => false,
    }
}

/// Returns the names in a directory; those that are no text are of no tool.
fn list(dir: &OwnedFd) -> Vec<String> {
    let names = dirs::names(dir.as_fd()).unwrap_or_default();
    names.into_iter().filter_map(|name| name.into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_found_at_their_depth_and_not_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["pipx/venvs/black/lib/python3.9", "pipx/venvs/ruff/lib/python3.12", "pipx/bin", "outside/lib/x"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        symlink(dir.path().join("outside"), dir.path().join("pipx/venvs/link")).unwrap();
        let search = Search { root: dir.path().into(), paths: vec!["pipx/venvs/*/lib/*".into(), "gone/*".into()] };
        assert_eq!(names(&search), ["pipx/venvs/black/lib/python3.9", "pipx/venvs/ruff/lib/python3.12"]);
    }

    #[test]
    fn a_name_is_there_if_something_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["full/x", "empty", "a"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for (path, text) in [("a/token", "x"), ("token", ""), ("a/ca-key.pem", "x"), ("a/ca.pem", "x")] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        symlink("a/token", dir.path().join("a/link")).unwrap();
        let paths = ["full", "empty", "token", "*/token", "a/link", "*/*-key.pem"].map(String::from);
        let search = Search { root: dir.path().into(), paths: paths.into() };
        assert_eq!(names(&search), ["a/ca-key.pem", "a/token", "full"]);
    }
}
