//! The files of a build context as a build sees them: without what `.dockerignore` keeps out, each with a print of its
//! content. Reads, follows no link, and changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use glob::{MatchOptions, Pattern};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::inside::pack::digest;
use crate::project;

/// Files of a context, by path below it.
pub type Files = BTreeMap<String, Print>;

/// How docker reads patterns: `*` stops at a slash.
const AS_DOCKER: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// More files than this are not compared.
const MOST: usize = 100_000;

/// What tells whether a file is still the same. BuildKit looks at content and mode, and not at times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Print {
    /// Of content, or the target of a link.
    pub digest: String,
    pub mode: u32,
    /// Size, and time of the last change in nanoseconds: if both stayed, the content is not read again.
    state: (u64, i128),
}

impl Print {
    /// Returns true if BuildKit takes both for the same.
    pub fn is_same(&self, other: &Print) -> bool {
        (&self.digest, self.mode) == (&other.digest, other.mode)
    }
}

/// Reads a context. What is known `before` spares reading what nobody touched.
///
/// # Errors
/// When a file cannot be read, or there are too many.
pub fn read(root: &Path, dockerfile: &Path, before: &Files) -> Result<Files> {
    let mut ignore_file = dockerfile.as_os_str().to_owned();
    ignore_file.push(".dockerignore");
    let ignored = project::text(Path::new(&ignore_file)).or_else(|_| project::text(&root.join(".dockerignore")));
    let ignore = Ignore::parse(&ignored.unwrap_or_default());
    let mut found = Vec::new();
    walk(root, &PathBuf::new(), &ignore, &mut found)?;
    let print = |(path, metadata): &(PathBuf, Metadata)| {
        let name = path.to_string_lossy().into_owned();
        let print = print(&root.join(path), metadata, before.get(&name));
        print.map(|print| (name, print)).with_context(|| format!("cannot read `{}`", root.join(path).display()))
    };
    found.par_iter().map(print).collect()
}

fn walk(root: &Path, below: &Path, ignore: &Ignore, found: &mut Vec<(PathBuf, Metadata)>) -> Result<()> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read `{}`", directory.display()))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let metadata = entry.metadata()?;
        let is_out = ignore.has(&path);
        if metadata.is_dir() {
            if !is_out || ignore.has_exceptions {
                walk(root, &path, ignore, found)?;
            }
        } else if !is_out && (metadata.is_file() || metadata.is_symlink()) {
            ensure!(found.len() < MOST, "the build context has more than {MOST} files");
            found.push((path, metadata));
        }
    }
    Ok(())
}

fn print(path: &Path, metadata: &Metadata, before: Option<&Print>) -> Result<Print> {
    let state = (metadata.len(), i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()));
    let digest = match before {
        Some(before) if before.state == state => before.digest.clone(),
        _ if metadata.is_symlink() => digest(&mut fs::read_link(path)?.as_os_str().as_bytes())?.digest,
        _ => digest(&mut project::open(path)?)?.digest,
    };
    Ok(Print { digest, mode: metadata.mode() & 0o7777, state })
}

/// One pattern of a path, as `.dockerignore` and `.gitignore` have them. However it is made, it is tried a number of
/// times that is no more than its length times the path's.
#[derive(Debug)]
pub struct Rule {
    /// For each name of the path; `None` for `**`, any number of names.
    parts: Vec<Option<Part>>,
}

#[derive(Debug)]
enum Part {
    /// With `*` alone.
    Plain(String),
    /// With classes, escapes or `?`.
    Other(Pattern),
}

impl Rule {
    /// Reads a pattern without slashes at its ends; `None` for one that makes no sense.
    pub fn parse(pattern: &str) -> Option<Rule> {
        let names: Vec<&str> = pattern.split('/').collect();
        let mut parts = Vec::new();
        for (at, name) in names.iter().enumerate() {
            match *name {
                // Behind the last slash it stands for something.
                "**" if at > 0 && at + 1 == names.len() => parts.extend([Some(Part::Plain("*".into())), None]),
                "**" => parts.push(None),
                name if !name.contains(['[', '\\', '?']) => parts.push(Some(Part::Plain(name.to_owned()))),
                // The library tries each `*` at each place.
                name if name.matches('*').count() > 3 => return None,
                name => parts.push(Some(Part::Other(Pattern::new(name).ok()?))),
            }
        }
        Some(Rule { parts })
    }

    pub fn fits(&self, path: &Path) -> bool {
        let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
        let same = |part: &Option<Part>, name: &str| match part {
            Some(Part::Plain(part)) => {
                fits_all(part.as_bytes(), name.as_bytes(), |part| *part == b'*', |part, byte| part == byte)
            }
            Some(Part::Other(part)) => part.matches_with(name, AS_DOCKER),
            None => false,
        };
        fits_all(&self.parts, &names, Option::is_none, |part, name| same(part, name.as_ref()))
    }
}

/// Tells whether all of a row fits a pattern, some parts of which stand for any number of things.
pub fn fits_all<P, T>(pattern: &[P], row: &[T], is_any: impl Fn(&P) -> bool, same: impl Fn(&P, &T) -> bool) -> bool {
    let (mut at, mut seen) = (0, 0);
    // The last that stands for any number, and where what follows it was tried.
    let mut any = None;
    while seen < row.len() {
        match pattern.get(at) {
            Some(part) if is_any(part) => {
                any = Some((at, seen));
                at += 1;
            }
            Some(part) if same(part, &row[seen]) => (at, seen) = (at + 1, seen + 1),
            _ => {
                let Some((back, tried)) = any else { return false };
                any = Some((back, tried + 1));
                (at, seen) = (back + 1, tried + 1);
            }
        }
    }
    pattern[at..].iter().all(is_any)
}

/// The rules of a `.dockerignore`: the last one that a path, or a directory above it, meets decides.
#[derive(Debug, Default)]
struct Ignore {
    /// Each with true if it keeps out, and false for an exception.
    rules: Vec<(Rule, bool)>,
    has_exceptions: bool,
}

impl Ignore {
    fn parse(text: &str) -> Ignore {
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let rules = lines.filter_map(|line| {
            let pattern = line.strip_prefix('!').unwrap_or(line).trim();
            let names: Vec<&str> = pattern.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
            // One that makes no sense keeps nothing out here: more is compared than need be.
            Some((Rule::parse(&names.join("/"))?, !line.starts_with('!')))
        });
        let rules: Vec<_> = rules.collect();
        Ignore { has_exceptions: rules.iter().any(|(_, out)| !out), rules }
    }

    fn has(&self, path: &Path) -> bool {
        let met = |rule: &Rule| {
            let mut above = path.ancestors().filter(|path| !path.as_os_str().is_empty());
            above.any(|path| rule.fits(path))
        };
        self.rules.iter().rev().find(|(rule, _)| met(rule)).is_some_and(|(_, out)| *out)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn dockerignore_is_read_as_docker_reads_it() {
        let ignore =
            Ignore::parse("# comment\n/node_modules/\n*.md\n**/*.log\n!README.md\nbuild/*\n!build/keep\n./tmp\n[");
        let cases = [
            ("node_modules/a/b", true),
            ("web/node_modules", false),
            ("notes.md", true),
            ("README.md", false),
            ("docs/notes.md", false),
            ("x.log", true),
            ("a/b/x.log", true),
            ("build/out/x", true),
            ("build/keep/x", false),
            ("tmp", true),
            ("src/main.rs", false),
        ];
        for (path, out) in cases {
            assert_eq!(ignore.has(Path::new(path)), out, "{path}");
        }
        assert!(Ignore::parse("\u{feff}*.md").has(Path::new("notes.md")));
    }

    #[test]
    fn patterns_that_could_be_tried_for_ever_are_not() {
        let name = "a".repeat(255);
        let path = vec![name.as_str(); 15].join("/");
        for pattern in [format!("{}b", "*a".repeat(100)), format!("{}b", "**/".repeat(20)), "**/*a*/".repeat(12) + "b"]
        {
            assert!(!Ignore::parse(&pattern).has(Path::new(&path)), "{pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_dockerignore_makes_it_panic(text in "([-!a./*?\\[\\]\\\\# é\u{feff}\r\n]|\\*\\*/){0,40}", path in "[a./é]{0,20}") {
            Ignore::parse(&text).has(Path::new(&path));
        }
    }

    #[test]
    fn content_and_mode_count_and_times_do_not() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir(at("out")).unwrap();
        for path in ["a", "b", "out/c", "Dockerfile"] {
            fs::write(at(path), path).unwrap();
        }
        fs::write(at(".dockerignore"), "out").unwrap();
        std::os::unix::fs::symlink("/nowhere", at("link")).unwrap();
        let read = |before: &Files| read(root.path(), &at("Dockerfile"), before).unwrap();
        let first = read(&Files::new());
        assert_eq!(first.keys().collect::<Vec<_>>(), [".dockerignore", "Dockerfile", "a", "b", "link"]);
        let touched = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        fs::File::options().write(true).open(at("a")).unwrap().set_modified(touched).unwrap();
        fs::set_permissions(at("b"), fs::Permissions::from_mode(0o755)).unwrap();
        let second = read(&first);
        assert!(second["a"].is_same(&first["a"]) && second["a"] != first["a"]);
        assert!(!second["b"].is_same(&first["b"]) && second["link"] == first["link"]);
    }
}
