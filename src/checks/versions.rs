//! What in cache volumes belongs to a version of a language from which no image of the project is built. Pure rules over
//! names at known depths, which tell the version.

use std::collections::BTreeMap;

use super::project::Project;
use super::{Check, Facts as AllFacts, Finding, NotRun, Severity};
use crate::catalogue;
use crate::dockerfile::stage::{Base, stages};
use crate::dockerfile::{Dockerfile, bases};
use crate::project::Kind;
use crate::report::quote;

/// A cache volume and the names that [`searches`] found in it.
#[derive(Clone, Debug)]
pub struct NamedVolume {
    pub name: String,
    pub mounted_at: String,
    /// Below the mount.
    pub names: Vec<String>,
}

/// The check's name: looking into volumes for it costs time.
pub const STALE_VERSIONS: &str = "stale-versions";

pub const CHECKS: &[Check] = &[Check {
    name: STALE_VERSIONS,
    promise: "cache volumes keep nothing for versions of languages that the Dockerfiles do not begin from",
    run: stale_versions,
}];

/// Names that tell a version.
struct Place {
    language: &'static str,
    /// Below `/cache`; `*` is any one name, and the last name tells the version.
    path: &'static str,
    /// How many of the names make what can be removed.
    unit: usize,
    version: fn(&str) -> Option<Vec<u32>>,
}

/// From the layouts of pip 25, poetry 2, pipx 1, bundler 2, rubygems 3, node-gyp 10, rustup 1 and go 1.21.
const PLACES: &[Place] = &[
    Place { language: "python", path: "pip/wheels/*/*/*/*/*", unit: 2, version: wheel },
    Place {
        language: "python",
        path: "poetry/virtualenvs/*",
        unit: 3,
        version: |name| numbers(name.rsplit_once("-py")?.1),
    },
    Place {
        language: "python",
        path: "pipx/venvs/*/lib/*",
        unit: 3,
        version: |name| numbers(name.strip_prefix("python")?),
    },
    Place { language: "ruby", path: "ruby/bundle/ruby/*", unit: 4, version: numbers },
    Place { language: "ruby", path: "bundle/ruby/*", unit: 3, version: numbers },
    Place { language: "ruby", path: "ruby/gems/extensions/*/*", unit: 5, version: numbers },
    Place { language: "node", path: "node-gyp/*", unit: 2, version: numbers },
    Place { language: "rust", path: "rustup/toolchains/*", unit: 3, version: numbers },
    Place { language: "go", path: "go-mod/golang.org/*", unit: 3, version: go },
    Place { language: "go", path: "go/mod/golang.org/*", unit: 4, version: go },
    Place { language: "go", path: "go/pkg/mod/golang.org/*", unit: 5, version: go },
];

/// Returns the numbers that a name begins with: `1.70.0-x86_64-unknown-linux-gnu`, `3.1.0-static`.
fn numbers(name: &str) -> Option<Vec<u32>> {
    let version = name.split('-').next().unwrap_or_default();
    let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).collect();
    (!numbers.is_empty()).then_some(numbers)
}

/// Reads `NAME-VERSION-cp39-cp39-PLATFORM.whl`. One of the stable ABI, or for any Python, is of no version.
fn wheel(name: &str) -> Option<Vec<u32>> {
    let mut tags = name.strip_suffix(".whl")?.rsplit('-').skip(1);
    let (abi, python) = (tags.next()?, tags.next()?.strip_prefix("cp")?);
    let (major, minor) = python.split_at_checked(1).filter(|_| abi.starts_with("cp"))?;
    Some(vec![major.parse().ok()?, minor.parse().ok()?])
}

/// Reads `toolchain@v0.0.1-go1.21.0.linux-amd64`.
fn go(name: &str) -> Option<Vec<u32>> {
    numbers(name.strip_prefix("toolchain@v0.0.1-go")?)
}

/// Returns how many numbers of a version decide whether what was made for one can be used by another.
fn depth(language: &str) -> usize {
    if language == "node" { 1 } else { 2 }
}

/// The versions that the project's Dockerfiles begin from, of each language of which all are told.
pub type Used = BTreeMap<&'static str, Vec<Vec<u32>>>;

/// Reads them. A base that is nothing but a variable may be any.
pub fn used(project: &Project) -> Used {
    let mut used = Used::new();
    let dockerfiles = project.files.files.iter().filter(|file| file.kind == Kind::Dockerfile);
    for stage in dockerfiles.flat_map(|file| stages(&Dockerfile::parse(&file.text))) {
        let Base::Image(reference) = stage.base else { continue };
        if reference.split(':').next().is_some_and(|name| name.contains('$')) {
            return Used::new();
        }
        if let Some((language, mut version)) = bases::language(&reference) {
            version.truncate(depth(language));
            used.entry(language).or_default().push(version);
        }
    }
    used.retain(|language, versions| versions.iter().all(|version| version.len() == depth(language)));
    used
}

fn is_stale(language: &str, version: &[u32], used: &[Vec<u32>]) -> bool {
    let Some(version) = version.get(..depth(language)) else { return false };
    match language {
        // A project may ask for a newer Go than its image has: that one is in use.
        "go" => used.iter().all(|used| version < used.as_slice()),
        _ => !used.iter().any(|used| used == version),
    }
}

/// Returns the paths to look for in a volume that is mounted there, and the place of each.
fn placed<'a>(mounted_at: &str, used: &'a Used) -> impl Iterator<Item = (&'static str, &'static Place)> + use<'a> {
    let below =
        mounted_at.trim_end_matches('/').strip_prefix("/cache").map(|below| below.trim_start_matches('/').to_owned());
    PLACES.iter().filter(|place| used.contains_key(place.language)).filter_map(move |place| {
        let below = below.as_deref()?;
        let path = place.path.strip_prefix(below)?;
        if below.is_empty() { Some((path, place)) } else { Some((path.strip_prefix('/')?, place)) }
    })
}

/// Returns the paths to look for in a volume that is mounted there; `*` is any one name.
pub fn searches(mounted_at: &str, used: &Used) -> Vec<String> {
    placed(mounted_at, used).map(|(path, _)| path.to_owned()).collect()
}

fn stale_versions(facts: &AllFacts) -> Result<Vec<Finding>, NotRun> {
    let used = used(facts.project.as_ref().map_err(Clone::clone)?);
    if used.is_empty() {
        return Err(NotRun::Skipped("no Dockerfile here begins from a version of a language that it tells".into()));
    }
    if facts.engine.engine.is_err() {
        return Err(NotRun::Skipped("no engine answers".into()));
    }
    let volumes = facts.caches.names.as_ref().map_err(Clone::clone)?;
    Ok(volumes.iter().flat_map(|volume| volume_findings(volume, &used)).collect())
}

/// What can be removed only as a whole, by path as containers see it: how much of it is stale, and of how many.
type Units = BTreeMap<String, (usize, usize)>;

fn volume_findings(volume: &NamedVolume, used: &Used) -> Vec<Finding> {
    let root = volume.mounted_at.trim_end_matches('/');
    let mut totals: BTreeMap<String, usize> = BTreeMap::new();
    let mut stale: BTreeMap<(&str, String), Units> = BTreeMap::new();
    for name in volume.names.iter().filter(|name| !name.contains(|c: char| c.is_control() || c == '*')) {
        let names: Vec<&str> = name.split('/').collect();
        let fits = |path: &str| {
            let path: Vec<&str> = path.split('/').collect();
            path.len() == names.len() && path.iter().zip(&names).all(|(path, name)| *path == "*" || path == name)
        };
        let Some((path, place)) = placed(&volume.mounted_at, used).find(|(path, _)| fits(path)) else { continue };
        // The mount has the first names of the place's path.
        let above = place.path.split('/').count() - path.split('/').count();
        let unit = [&[root], &names[..place.unit.saturating_sub(above)]].concat().join("/");
        *totals.entry(unit.clone()).or_default() += 1;
        let Some(version) = names.last().and_then(|name| (place.version)(name)) else { continue };
        if is_stale(place.language, &version, &used[place.language]) {
            let units = stale.entry((place.language, shown(&version[..depth(place.language)]))).or_default();
            units.entry(unit).or_default().0 += 1;
        }
    }
    let findings = stale.into_iter().map(|((language, version), mut units)| {
        units.iter_mut().for_each(|(unit, (_, total))| *total = totals[unit]);
        finding(volume, language, &version, &units, &used[language])
    });
    findings.collect()
}

/// How many directories one remedy names.
const NAMED: usize = 20;

fn finding(volume: &NamedVolume, language: &str, version: &str, units: &Units, used: &[Vec<u32>]) -> Finding {
    let root = volume.mounted_at.trim_end_matches('/');
    let known = catalogue::known_below(&volume.mounted_at);
    let mut command = format!("docker cache clear --volume {}", quote(&volume.name));
    let (mut places, mut installs) = (Vec::new(), false);
    for (path, (stale, total)) in units.iter().take(NAMED) {
        let below = path[root.len()..].trim_start_matches('/');
        installs |= catalogue::deepest(&known, below).is_some_and(|known| !known.class.is_deletable());
        command.push_str(&format!(" --path {}", quote(path)));
        places.push(if stale == total { path.clone() } else { format!("{path} ({stale} of {total})") });
    }
    if installs {
        command.push_str(" --include-installs");
    }
    let more = units.len().saturating_sub(NAMED);
    if more > 0 {
        places.push(format!("and {more} more"));
    }
    let mut used: Vec<String> = used.iter().map(|version| shown(version)).collect();
    used.sort();
    used.dedup();
    Finding::new(
        Severity::Note,
        format!(
            "volume {} keeps what was made for {language} {version}, and the Dockerfiles here begin from {}: {}",
            volume.name,
            used.join(", "),
            places.join(", ")
        ),
    )
    .command(command)
}

fn shown(version: &[u32]) -> String {
    version.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::{self, File};

    fn used_by(dockerfile: &str) -> Used {
        let file = File {
            path: "Dockerfile".into(),
            kind: Kind::Dockerfile,
            text: dockerfile.into(),
            around: Default::default(),
        };
        used(&Project::new(project::Project { files: vec![file], ..Default::default() }))
    }

    fn commands(mounted_at: &str, names: &[&str], dockerfile: &str) -> Vec<String> {
        let names = names.iter().map(ToString::to_string).collect();
        let volume = NamedVolume { name: "project-cache".into(), mounted_at: mounted_at.into(), names };
        let found = volume_findings(&volume, &used_by(dockerfile));
        found.iter().map(|finding| format!("{:?}", finding.fix)).collect()
    }

    #[test]
    fn versions_are_known_only_if_all_are_told() {
        let versions = |text: &str| used_by(text).into_iter().collect::<Vec<_>>();
        assert_eq!(versions("FROM python:3.12-slim"), [("python", vec![vec![3, 12]])]);
        assert_eq!(
            versions("ARG V=3.9\nFROM python:${V}\nFROM node:22"),
            [("node", vec![vec![22]]), ("python", vec![vec![3, 9]])]
        );
        for unknown in
            ["FROM python", "FROM python:3", "FROM python:3.12\nFROM python:latest", "ARG B\nFROM $B\nFROM ruby:3.3"]
        {
            assert_eq!(versions(unknown), [], "{unknown}");
        }
    }

    #[test]
    fn what_is_of_another_version_is_found_with_the_command_that_takes_it() {
        let cases: &[(&str, &str, &str, &str)] = &[
            (
                "/cache",
                "poetry/virtualenvs/app-1x-py3.9",
                "FROM python:3.12",
                "--path /cache/poetry/virtualenvs/app-1x-py3.9 --include-installs",
            ),
            (
                "/cache",
                "pipx/venvs/black/lib/python3.9",
                "FROM python:3.12",
                "--path /cache/pipx/venvs/black --include-installs",
            ),
            (
                "/cache/pip",
                "wheels/a/b/c/d/x-1-cp39-cp39-linux_x86_64.whl",
                "FROM python:3.12",
                "--path /cache/pip/wheels\"",
            ),
            ("/cache", "node-gyp/16.20.2", "FROM node:22", "--path /cache/node-gyp/16.20.2\""),
            (
                "/cache",
                "ruby/bundle/ruby/3.1.0",
                "FROM ruby:3.3",
                "--path /cache/ruby/bundle/ruby/3.1.0 --include-installs",
            ),
            ("/cache", "rustup/toolchains/1.70.0-x86_64-unknown-linux-gnu", "FROM rust:1.88", "--include-installs"),
            ("/cache", "go-mod/golang.org/toolchain@v0.0.1-go1.21.0.linux-amd64", "FROM golang:1.24", "linux-amd64\""),
        ];
        for (mounted_at, name, dockerfile, expected) in cases {
            let found = commands(mounted_at, &[name], dockerfile);
            assert!(found.len() == 1 && found[0].contains(expected), "{name}: {found:?}");
        }
    }

    #[test]
    fn what_is_in_use_or_of_no_version_is_left_alone() {
        let cases = [
            ("poetry/virtualenvs/app-1x-py3.12", "FROM python:3.12"),
            ("poetry/virtualenvs/app-1x-py3.9", "FROM python:3.12\nFROM python:3.9"),
            ("pip/wheels/a/b/c/d/x-1-py3-none-any.whl", "FROM python:3.12"),
            ("pip/wheels/a/b/c/d/x-1-cp39-abi3-linux_x86_64.whl", "FROM python:3.12"),
            ("rustup/toolchains/stable-x86_64-unknown-linux-gnu", "FROM rust:1.88"),
            ("go-mod/golang.org/toolchain@v0.0.1-go1.25.0.linux-amd64", "FROM golang:1.24"),
            ("go-mod/golang.org/x", "FROM golang:1.24"),
            ("node-gyp/16.20.2", "FROM python:3.12"),
        ];
        for (name, dockerfile) in cases {
            assert_eq!(commands("/cache", &[name], dockerfile), Vec::<String>::new(), "{name}");
        }
    }
}
