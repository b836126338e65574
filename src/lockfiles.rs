//! Finds the lock files of a project, with the files that their tools read beside them. Follows no link, runs nothing.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::catalogue::{ROWS, Row};
use crate::project::{self, container::join};

/// Lock files are large, but not larger than this, in bytes.
const LARGEST: u64 = 64 << 20;
/// A lock file names no more files than this, itself among them.
const MOST_INCLUDED: usize = 100;

/// A lock file, and all that its tool needs to download what it says.
#[derive(Clone, Debug)]
pub struct Lock {
    pub row: &'static Row,
    /// Below the root of the project: `web/package-lock.json`.
    pub path: String,
    /// Without its directory.
    pub name: String,
    /// The lock file's directory in the copy, with the slash: empty unless it reads what lies above.
    pub directory: String,
    /// Names in the copy, that of the lock file among them, and contents; of some only the name counts.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Returns the lock files below a directory, sorted by path.
///
/// # Errors
/// When one cannot be read.
pub fn find(root: &Path) -> Result<Vec<Lock>> {
    if !root.is_dir() {
        bail!("{} is not a directory\nhint: name the project's directory: `docker cache warm DIR`", root.display());
    }
    let mut paths = Vec::new();
    walk(root, "", 0, &mut paths);
    paths.sort();
    let mut locks: Vec<Lock> = Vec::new();
    for row in ROWS.iter().filter(|row| !row.warm.locks.is_empty()) {
        for path in paths.iter().filter(|path| row.warm.locks.iter().any(|lock| matches(lock, split(path).1))) {
            let (directory, name) = split(path);
            // A pom.xml stands for those below it, its modules; a settings.gradle also for the build.gradle beside it.
            let rank = |name: &str| row.warm.locks.iter().position(|lock| *lock == name);
            let stands_for_it = |other: &String| {
                let (above, its_name) = split(other);
                let beside = above == directory && rank(its_name) < rank(name);
                rank(its_name).is_some() && directory.starts_with(above) && (beside || above != directory)
            };
            if row.warm.reads.contains(&name) && paths.iter().any(stands_for_it) {
                continue;
            }
            let mut files = vec![(path.clone(), content(&root.join(path))?)];
            if !String::from_utf8_lossy(&files[0].1).contains(row.warm.says) {
                continue;
            }
            for (below, path) in paths.iter().filter_map(|path| Some((path.strip_prefix(directory)?, path))) {
                let is = |names: &[&str]| names.iter().any(|pattern| matches(pattern, split(below).1));
                if below != name && is(row.warm.reads) {
                    files.push((path.clone(), content(&root.join(path))?));
                } else if is(row.warm.stubs) {
                    files.push((path.clone(), Vec::new()));
                }
            }
            include(root, &paths, row.warm.includes, &mut files)?;
            files.extend(row.warm.adds.map(|(name, text)| (format!("{directory}{name}"), text.into())));
            let above = if files.iter().all(|(path, _)| path.starts_with(directory)) { directory } else { "" };
            files.iter_mut().for_each(|(path, _)| drop(path.drain(..above.len())));
            let directory = directory[above.len()..].to_owned();
            locks.push(Lock { row, path: path.clone(), name: name.to_owned(), directory, files });
        }
    }
    locks.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(locks)
}

/// Adds the files that the first one names by options, and those that they name, as far as they are among `paths`.
fn include(root: &Path, paths: &[String], options: &[&str], files: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let mut included = vec![files[0].0.clone()];
    let mut next = 0;
    while let Some(path) = included.get(next).cloned() {
        next += 1;
        let at = match files.iter().position(|(known, _)| *known == path) {
            Some(at) => at,
            None => {
                files.push((path.clone(), content(&root.join(&path))?));
                files.len() - 1
            }
        };
        let text = String::from_utf8_lossy(&files[at].1);
        for name in text.lines().filter_map(|line| named(line, options)) {
            // What leads out of the project is not among its files.
            let path = join(split(&path).0, name);
            if included.len() < MOST_INCLUDED && paths.binary_search(&path).is_ok() && !included.contains(&path) {
                included.push(path);
            }
        }
    }
    Ok(())
}

/// Returns the file that a line names by an option: `-r FILE`, `-rFILE`, `--requirement=FILE`.
fn named<'a>(line: &'a str, options: &[&str]) -> Option<&'a str> {
    let value = |option: &&str| {
        let rest = line.trim_start().strip_prefix(option)?;
        let is_long = option.starts_with("--");
        (!is_long || rest.starts_with([' ', '\t', '=']))
            .then(|| rest.strip_prefix('=').filter(|_| is_long).unwrap_or(rest))
    };
    let value = options.iter().find_map(value)?.trim_start();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    match quote {
        Some(quote) => value[1..].split(quote).next(),
        None => value.split_whitespace().next(),
    }
}

/// Returns the directory, with the slash, and the name.
fn split(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |at| at + 1))
}

/// Tells whether a name fits a pattern with at most one `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
        None => name == pattern,
    }
}

fn walk(directory: &Path, prefix: &str, depth: usize, paths: &mut Vec<String>) {
    // A directory that cannot be read has no lock files for us.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else { continue };
        if paths.len() > project::MOST {
            return;
        }
        if kind.is_file() {
            paths.push(format!("{prefix}{name}"));
        } else if kind.is_dir() && depth < project::DEEPEST && !is_skipped(prefix, &name) {
            walk(&entry.path(), &format!("{prefix}{name}/"), depth + 1, paths);
        }
    }
}

/// Of `.yarn`, yarn reads itself, its plugins and patches before it downloads anything.
fn is_skipped(prefix: &str, name: &str) -> bool {
    if split(prefix.trim_end_matches('/')).1 == ".yarn" {
        return !["releases", "plugins", "patches"].contains(&name);
    }
    name != ".yarn" && project::SKIPPED.contains(&name)
}

fn content(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = project::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > LARGEST {
        bail!("{} is larger than 64 MiB", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns for each lock file its path, its directory in the copy if it has one, and the files in the copy as `shown`.
    fn told(root: &Path, shown: fn(&(String, Vec<u8>)) -> String) -> Vec<String> {
        let locks = find(root).unwrap();
        let line = |lock: &Lock| {
            let files = lock.files.iter().map(shown);
            let at = if lock.directory.is_empty() { String::new() } else { format!("at {} ", lock.directory) };
            format!("{} {at}{}", lock.path, files.collect::<Vec<_>>().join(","))
        };
        locks.iter().map(line).collect()
    }

    #[test]
    fn what_a_lock_file_includes_comes_along_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("x.txt");
        fs::write(&secret, "").unwrap();
        let up = "../".repeat(30);
        let many: String = (0..200).map(|number| format!("-r many/{number}.txt\n")).collect();
        let outside_only = format!("-r {0}\n-r {up}{0}\n-c link.txt\n-r link/x.txt\nx # -r no.txt\n", secret.display());
        for (path, text) in [
            ("requirements.txt", "six\r\n  -r requirements/dev.txt # why\r\n--constraint='a b.txt'\r\n"),
            ("requirements/dev.txt", "-rbase.txt\n-c ../pins.txt\n-r dev.txt\n"),
            ("requirements/base.txt", "--requirement ./dev.txt\n--requirements no.txt\n"),
            ("pins.txt", "-r https://x/no.txt\n"),
            ("a b.txt", ""),
            ("no.txt", ""),
            ("web/api/requirements.txt", "-r ../shared.txt\n"),
            ("web/shared.txt", "-r api/base.txt"),
            ("web/api/base.txt", ""),
            ("c/requirements-all.txt", &many),
            ("d/requirements.txt", &outside_only),
        ] {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), text).unwrap();
        }
        fs::create_dir(root.path().join("c/many")).unwrap();
        for number in 0..200 {
            fs::write(root.path().join(format!("c/many/{number}.txt")), "").unwrap();
        }
        std::os::unix::fs::symlink(&secret, root.path().join("d/link.txt")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("d/link")).unwrap();
        let told = told(root.path(), |(name, _)| name.clone());
        assert_eq!(told[0].matches("many/").count(), MOST_INCLUDED - 1);
        assert_eq!(
            told[1..],
            [
                "d/requirements.txt requirements.txt",
                "requirements.txt requirements.txt,c/requirements-all.txt,d/requirements.txt,web/api/requirements.txt,\
                 requirements/dev.txt,a b.txt,requirements/base.txt,pins.txt",
                "web/api/requirements.txt at web/api/ web/api/requirements.txt,web/shared.txt,web/api/base.txt",
            ]
        );
    }

    #[test]
    fn a_lock_file_comes_with_what_its_tool_reads() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "requirements.txt",
            "requirements-dev.txt",
            "Cargo.lock",
            "Cargo.toml",
            "crates/a/Cargo.toml",
            "crates/a/src/lib.rs",
            "web/package-lock.json",
            "web/package.json",
            "web/node_modules/x/package-lock.json",
            "java/pom.xml",
            "java/core/pom.xml",
            "jvm/settings.gradle",
            "jvm/build.gradle",
            "jvm/lib/build.gradle",
            "berry/yarn.lock",
            "berry/.yarn/releases/yarn-4.9.1.cjs",
            "berry/.yarn/patches/small.patch",
            "berry/.yarn/unplugged/small/package.json",
            "secret.txt",
        ] {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), if path == "berry/yarn.lock" { "__metadata:" } else { "text" }).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("uv.lock")).unwrap();
        assert_eq!(
            told(root.path(), |(name, content)| format!("{name}:{}", content.len())),
            [
                "Cargo.lock Cargo.lock:4,Cargo.toml:4,crates/a/Cargo.toml:4,crates/a/src/lib.rs:0",
                "berry/yarn.lock yarn.lock:11,.yarn/patches/small.patch:4,.yarn/releases/yarn-4.9.1.cjs:4",
                "java/pom.xml pom.xml:4,core/pom.xml:4",
                "jvm/settings.gradle settings.gradle:4,build.gradle:4,lib/build.gradle:4,docker-cache.init.gradle:145",
                "requirements-dev.txt requirements-dev.txt:4,requirements.txt:4",
                "requirements.txt requirements.txt:4,requirements-dev.txt:4",
                "web/package-lock.json package-lock.json:4,package.json:4",
            ]
        );
    }
}
