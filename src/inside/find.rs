//! Tells which names there are at known depths of a tree: a look at a few directories, and no walk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Dir, Mode, openat};
use serde::{Deserialize, Serialize};

use super::dirs::DIRECTORY;

/// Names to look for in a tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Search {
    pub root: PathBuf,
    /// Below the root; a component `*` stands for any name.
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
    let names = if *name == "*" { list(dir) } else { vec![(*name).to_owned()] };
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

/// Returns the names in a directory; those that are no text are of no tool.
fn list(dir: &OwnedFd) -> Vec<String> {
    let entries = Dir::read_from(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
    names.filter(|name| name != "." && name != "..").collect()
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
}
