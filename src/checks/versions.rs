//! What in cache volumes and mounts belongs to a version of a language that no image of the project has. Pure rules over
//! names at known depths, which tell the version.

use std::collections::BTreeMap;

use super::project::Project;
use super::{Check, Facts as AllFacts, Finding, NotRun, Severity};
use crate::catalogue;
use crate::dockerfile::stage::{Base, stages};
use crate::dockerfile::{Dockerfile, bases};
use crate::model::Kind;
use crate::project::Kind as FileKind;
use crate::report::quote;

/// What was found of versions.
#[derive(Clone, Debug, Default)]
pub struct Named {
    pub used: Used,
    pub places: Vec<NamedPlace>,
    /// Why no cache mount was looked into, if they were to be.
    pub unknown_mounts: Option<NotRun>,
}

/// A cache volume or mount, and the names that [`searches`] found in it.
#[derive(Clone, Debug)]
pub struct NamedPlace {
    pub kind: Kind,
    /// Name of the volume, or id of the mount.
    pub name: String,
    pub mounted_at: String,
    /// Below the mount.
    pub names: Vec<String>,
}

/// Variables, as `NAME=value`, of what the engine has of the project.
#[derive(Clone, Debug, Default)]
pub struct AtHand {
    /// Of images, by the reference that the project uses.
    pub images: BTreeMap<String, Vec<String>>,
    /// Of each of the project's containers.
    pub containers: Vec<Vec<String>>,
}

/// The check's name: looking into caches for it costs time.
pub const STALE_VERSIONS: &str = "stale-versions";

pub const CHECKS: &[Check] = &[Check {
    name: STALE_VERSIONS,
    promise: "cache volumes keep nothing for versions of languages that the project does not use",
    run: stale_versions,
}];

/// Names that tell a version.
struct Place {
    language: &'static str,
    /// Where the tool's directory may be; `~` is any home.
    bases: &'static [&'static str],
    /// Below that; `*` is any one name, and the last name tells the version.
    path: &'static str,
    /// How many of the names of the path make what can be removed.
    unit: usize,
    version: fn(&str) -> Option<Vec<u32>>,
}

const GEMS: &[&str] = &["/cache/ruby/gems", "/usr/local/bundle"];
const GO_MODULES: &[&str] = &["/cache/go-mod", "/cache/go/mod", "/cache/go/pkg/mod", "/go/pkg/mod", "~/go/pkg/mod"];

/// From the layouts of pip 25, poetry 2, pipx 1, bundler 2, rubygems 3, node-gyp 10, rustup 1 and go 1.21.
const PLACES: &[Place] = &[
    Place {
        language: "python",
        bases: &["/cache/pip", "~/.cache/pip"],
        path: "wheels/*/*/*/*/*",
        unit: 1,
        version: wheel,
    },
    Place {
        language: "python",
        bases: &["/cache/poetry", "~/.cache/pypoetry", "/tmp/poetry_cache"],
        path: "virtualenvs/*",
        unit: 2,
        version: |name| numbers(name.rsplit_once("-py")?.1),
    },
    Place {
        language: "python",
        bases: &["/cache/pipx", "~/.local/share/pipx", "~/.local/pipx", "/opt/pipx"],
        path: "venvs/*/lib/*",
        unit: 2,
        version: |name| numbers(name.strip_prefix("python")?),
    },
    Place {
        language: "ruby",
        bases: &["/cache/ruby/bundle", "/cache/bundle", "/usr/local/bundle"],
        path: "ruby/*",
        unit: 2,
        version: numbers,
    },
    Place { language: "ruby", bases: GEMS, path: "extensions/*/*", unit: 3, version: numbers },
    Place { language: "node", bases: &["/cache/node-gyp", "~/.cache/node-gyp"], path: "*", unit: 1, version: numbers },
    Place {
        language: "rust",
        bases: &["/cache/rustup", "/usr/local/rustup", "~/.rustup"],
        path: "toolchains/*",
        unit: 2,
        version: numbers,
    },
    Place { language: "go", bases: GO_MODULES, path: "golang.org/*", unit: 2, version: go },
    Place {
        language: "go",
        bases: GO_MODULES,
        path: "cache/download/golang.org/toolchain/@v/*",
        unit: 6,
        version: |name| numbers(name.strip_prefix("v0.0.1-go")?),
    },
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

/// The versions that the project uses, of each language of which all are told.
pub type Used = BTreeMap<&'static str, Vec<Vec<u32>>>;

/// Returns the images that the project names, and whether a Dockerfile begins from it.
pub fn references(project: &Project) -> impl Iterator<Item = (String, bool)> {
    let dockerfiles = project.files.files.iter().filter(|file| file.kind == FileKind::Dockerfile);
    let bases =
        dockerfiles.flat_map(|file| stages(&Dockerfile::parse(&file.text))).filter_map(|stage| match stage.base {
            Base::Image(reference) => Some((reference, true)),
            Base::Stage(_) => None,
        });
    bases.chain(project.containers.described.iter().filter_map(|described| Some((described.image.clone()?, false))))
}

/// Reads them from the tags of images and from what the engine has of those. A base that is nothing but a variable may
/// be any.
pub fn used(project: &Project, at_hand: &AtHand) -> Used {
    let mut used = Used::new();
    // What such a file names is in use as well.
    let mut unknown = project.files.pinned.clone();
    let described = project.containers.described.iter();
    let of_dev_containers = described.flat_map(|described| described.image.iter().chain(&described.features));
    unknown.extend(of_dev_containers.filter_map(|name| of_dev_container(name)));
    let mut add = |(language, version): (&'static str, Vec<u32>)| used.entry(language).or_default().push(version);
    for (reference, is_base) in references(project) {
        if is_base && reference.split(':').next().is_some_and(|name| name.contains('$')) {
            return Used::new();
        }
        let told = at_hand.images.get(&reference).map(|env| versions(env)).unwrap_or_default();
        if let Some((language, mut version)) = bases::language(&reference) {
            version.truncate(depth(language));
            if version.len() == depth(language) {
                add((language, version));
            } else if !told.iter().any(|(other, _)| *other == language) {
                unknown.insert(language);
            }
        }
        told.into_iter().for_each(&mut add);
    }
    at_hand.containers.iter().flat_map(|env| versions(env)).for_each(&mut add);
    used.retain(|language, _| !unknown.contains(language));
    used
}

/// Returns the language that an image or a feature of the dev container project brings, in a version that its name does not
/// tell for sure.
fn of_dev_container(name: &str) -> Option<&'static str> {
    let name = name.split_once("/devcontainers/")?.1;
    let name = name.rsplit('/').next()?.split(':').next()?;
    ["python", "node", "ruby", "go", "rust"].into_iter().find(|language| name.ends_with(language))
}

/// Returns what official images tell of themselves.
fn versions(env: &[String]) -> Vec<(&'static str, Vec<u32>)> {
    const TOLD: [(&str, &str); 5] = [
        ("PYTHON_VERSION", "python"),
        ("NODE_VERSION", "node"),
        ("RUBY_VERSION", "ruby"),
        ("GOLANG_VERSION", "go"),
        ("RUST_VERSION", "rust"),
    ];
    let pairs = env.iter().filter_map(|pair| pair.split_once('='));
    let told = pairs.filter_map(|(name, value)| {
        let (_, language) = TOLD.iter().find(|(variable, _)| *variable == name)?;
        let version = numbers(value)?.get(..depth(language))?.to_vec();
        Some((*language, version))
    });
    told.collect()
}

fn is_stale(language: &str, version: &[u32], used: &[Vec<u32>]) -> bool {
    let Some(version) = version.get(..depth(language)) else { return false };
    match language {
        // A project may ask for a newer Go than its image has: that one is in use.
        "go" => used.iter().all(|used| version < used.as_slice()),
        _ => !used.iter().any(|used| used == version),
    }
}

/// Returns the paths to look for in a tree that is mounted there, how many names of each make what can be removed, and
/// the place of each.
fn placed(mounted_at: &str, used: &Used) -> Vec<(String, usize, &'static Place)> {
    let tree: Vec<&str> = mounted_at.split('/').filter(|name| !name.is_empty()).collect();
    let mut found = Vec::new();
    for place in PLACES.iter().filter(|place| used.contains_key(place.language)) {
        for base in place.bases.iter().flat_map(|base| [base.replace('~', "/root"), base.replace('~', "/home/*")]) {
            let base: Vec<&str> = base.split('/').filter(|name| !name.is_empty()).collect();
            let all: Vec<&str> = base.iter().copied().chain(place.path.split('/')).collect();
            if tree.len() < all.len() && tree.iter().zip(&all).all(|(name, wanted)| *wanted == "*" || name == wanted) {
                found.push((all[tree.len()..].join("/"), (base.len() + place.unit).saturating_sub(tree.len()), place));
            }
        }
    }
    found
}

/// Returns the paths to look for in a volume or mount that is mounted there; `*` is any one name.
pub fn searches(mounted_at: &str, used: &Used) -> Vec<String> {
    placed(mounted_at, used).into_iter().map(|(path, ..)| path).collect()
}

fn stale_versions(facts: &AllFacts) -> Result<Vec<Finding>, NotRun> {
    facts.project.as_ref().map_err(Clone::clone)?;
    facts.engine()?;
    let Named { used, places, unknown_mounts } = facts.caches.names.as_ref().map_err(Clone::clone)?;
    if used.is_empty() {
        return Err(NotRun::Skipped("no image of the project tells the version of a language".into()));
    }
    let found: Vec<Finding> = places.iter().flat_map(|place| place_findings(place, used)).collect();
    match unknown_mounts {
        Some(why) if found.is_empty() => Err(why.clone()),
        _ => Ok(found),
    }
}

/// What can be removed only as a whole, by path as containers see it: how much of it is stale, and of how many.
type Units = BTreeMap<String, (usize, usize)>;

fn place_findings(volume: &NamedPlace, used: &Used) -> Vec<Finding> {
    let known = placed(&volume.mounted_at, used);
    let root = volume.mounted_at.trim_end_matches('/');
    let mut totals: BTreeMap<String, usize> = BTreeMap::new();
    let mut stale: BTreeMap<(&str, String), Units> = BTreeMap::new();
    for name in volume.names.iter().filter(|name| !name.contains(|c: char| c.is_control() || c == '*')) {
        let names: Vec<&str> = name.split('/').collect();
        let fits = |path: &str| {
            let path: Vec<&str> = path.split('/').collect();
            path.len() == names.len() && path.iter().zip(&names).all(|(path, name)| *path == "*" || path == name)
        };
        let Some((_, unit, place)) = known.iter().find(|(path, ..)| fits(path)) else { continue };
        let unit = [&[root], &names[..*unit]].concat().join("/");
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

fn finding(volume: &NamedPlace, language: &str, version: &str, units: &Units, used: &[Vec<u32>]) -> Finding {
    let root = volume.mounted_at.trim_end_matches('/');
    let known = catalogue::known_below(&volume.mounted_at);
    let kind = volume.kind.as_str();
    let mut command = format!("docker cache clear --{kind} {}", quote(&volume.name));
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
            "{kind} {} keeps what was made for {language} {version}, and the project uses {}: {}",
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
        used_with(dockerfile, &AtHand::default())
    }

    fn used_with(dockerfile: &str, at_hand: &AtHand) -> Used {
        let file = File {
            path: "Dockerfile".into(),
            kind: FileKind::Dockerfile,
            text: dockerfile.into(),
            around: Default::default(),
        };
        used(&Project::new(project::Project { files: vec![file], ..Default::default() }), at_hand)
    }

    fn commands(mounted_at: &str, names: &[&str], dockerfile: &str) -> Vec<String> {
        let names = names.iter().map(ToString::to_string).collect();
        let kind = if mounted_at.starts_with("/cache") { Kind::Volume } else { Kind::Mount };
        let place = NamedPlace { kind, name: "project-cache".into(), mounted_at: mounted_at.into(), names };
        let found = place_findings(&place, &used_by(dockerfile));
        found.iter().map(|finding| format!("{:?}", finding.fix)).collect()
    }

    #[test]
    fn a_version_that_a_file_or_a_dev_container_may_name_is_not_stale() {
        let of = |image: &str| of_dev_container(image);
        assert_eq!(of("mcr.microsoft.com/devcontainers/typescript-node:22"), Some("node"));
        assert_eq!(of("ghcr.io/devcontainers/features/python:1"), Some("python"));
        assert_eq!((of("python:3.12"), of("ghcr.io/devcontainers/features/git:1")), (None, None));
        let file = File {
            path: "Dockerfile".into(),
            kind: FileKind::Dockerfile,
            text: "FROM rust:1.88\nFROM ruby:3.3".into(),
            around: Default::default(),
        };
        let files = project::Project { files: vec![file], pinned: ["rust"].into(), ..Default::default() };
        let used = used(&Project::new(files), &AtHand::default());
        assert_eq!(used.into_keys().collect::<Vec<_>>(), ["ruby"]);
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
    fn images_and_containers_at_hand_tell_versions_as_well() {
        let env = |pairs: &[&str]| pairs.iter().map(ToString::to_string).collect::<Vec<_>>();
        let images =
            [("python:3", env(&["PATH=/bin", "PYTHON_VERSION=3.12.4"])), ("me/base", env(&["RUST_VERSION=1.88.0"]))];
        let images = images.map(|(name, env)| (name.to_owned(), env)).into();
        let at_hand = AtHand { images, containers: vec![env(&["PYTHON_VERSION=3.9.1", "NODE_VERSION=odd"])] };
        let found: Vec<_> = used_with("FROM python:3\nFROM me/base\nFROM ruby:latest", &at_hand).into_iter().collect();
        assert_eq!(found, [("python", vec![vec![3, 12], vec![3, 9]]), ("rust", vec![vec![1, 88]])]);
        assert!(used_with("FROM ruby:3.3", &at_hand).contains_key("python"));
        assert_eq!(used_with("FROM $ANY", &at_hand), Used::new());
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
            (
                "/go/pkg/mod",
                "cache/download/golang.org/toolchain/@v/v0.0.1-go1.21.0.linux-amd64.zip",
                "FROM golang:1.24",
                "--mount project-cache --path /go/pkg/mod/cache/download/golang.org/toolchain/@v/v0.0.1-go1.21.0.linux-amd64.zip\"",
            ),
            (
                "/root/.cache",
                "pip/wheels/a/b/c/d/x-1-cp39-cp39-linux_x86_64.whl",
                "FROM python:3.12",
                "clear --mount project-cache --path /root/.cache/pip/wheels\"",
            ),
            (
                "/home/dev/.local/share/pipx/venvs",
                "black/lib/python3.9",
                "FROM python:3.12",
                "--path /home/dev/.local/share/pipx/venvs/black --include-installs",
            ),
            (
                "/usr/local/bundle",
                "ruby/3.1.0",
                "FROM ruby:3.3",
                "--path /usr/local/bundle/ruby/3.1.0 --include-installs",
            ),
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
