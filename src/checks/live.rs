//! What can be wrong with the caches of containers: those that the project describes, and those of the engine that were
//! made from it. Pure rules over [`Container`] and what the project's files say.

use std::collections::BTreeMap;

use super::{Check, Facts, Finding, NotRun, Severity};
use crate::catalogue::{self, Class, ROWS, Row};
use crate::dockerfile::mount::{clean, within};
use crate::model::entries;
use crate::project::container::Described;

/// A container of the engine that belongs to the project, or that was named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// Of docker compose.
    pub service: Option<String>,
    /// Its labels say that it is a dev container.
    pub is_dev: bool,
    /// The `devcontainer.json` that it was made from, if its labels say so.
    pub config_file: Option<String>,
    /// Volumes by where they are mounted.
    pub volumes: BTreeMap<String, String>,
    /// Caches in its own layer.
    pub caches: Vec<Written>,
    /// Packages in its own layer: the directory, and how many lie right in it.
    pub installed: Vec<(String, usize)>,
}

/// A cache in a container's own layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub row: &'static Row,
    pub path: String,
    /// Number of entries below it.
    pub entries: usize,
}

pub const CACHE_NOT_MOUNTED: &str = "cache-not-mounted";
pub const VOLUME_UNUSED: &str = "volume-unused";

/// The checks that look at containers, and into the images that they are made of.
pub const WANTED_BY: &[&str] = &[CACHE_NOT_MOUNTED, VOLUME_UNUSED, super::caches::VOLUME_OWNER];

pub const CHECKS: &[Check] = &[
    Check {
        name: CACHE_NOT_MOUNTED,
        promise: "the caches of the project's containers outlive them",
        run: |facts| with_live(facts, CACHE_NOT_MOUNTED, cache_not_mounted),
    },
    Check {
        name: VOLUME_UNUSED,
        promise: "tools write to the cache volumes that are mounted for them",
        run: |facts| with_live(facts, VOLUME_UNUSED, volume_unused),
    },
];

/// Returns what both the project's files and its containers say. A container is told in the place of the file that
/// describes it: what it really holds says more.
fn with_live(facts: &Facts, name: &str, rule: fn(&Container) -> Vec<Finding>) -> Result<Vec<Finding>, NotRun> {
    let mut told = facts.told(name)?;
    let live = match facts.engine() {
        Ok(_) => facts.live.as_deref().map_err(Clone::clone)?,
        Err(_) => &[],
    };
    let project = facts.project.as_ref().ok();
    let mut found = Vec::new();
    for container in live {
        let mut findings = rule(container);
        let described = project.and_then(|project| {
            project.containers.described.iter().find(|described| container.is_described_by(described))
        });
        if let (Some(first), Some(described)) = (findings.first_mut(), described) {
            first.file = Some(described.place.file.clone());
            first.line = Some(described.place.line);
            let mounts = |finding: &Finding| {
                let lines = described.mounts.iter().filter(|mount| Some(&mount.place.file) == finding.file.as_ref());
                lines.into_iter().any(|mount| Some(mount.place.line) == finding.line)
            };
            let is_same = |finding: &Finding| {
                finding.file == first.file && (finding.message.starts_with(&described.name()) || mounts(finding))
            };
            if let Some(at) = told.iter().position(is_same) {
                let file = told.remove(at);
                first.line = file.line;
                first.fix = file.fix;
            }
        }
        found.extend(findings);
    }
    Ok(found.into_iter().chain(told).collect())
}

impl Container {
    fn is_described_by(&self, described: &Described) -> bool {
        match &described.service {
            Some(service) => self.service.as_ref() == Some(service),
            // A project may have several.
            None => match &self.config_file {
                Some(file) => below_project(file) == below_project(&described.place.file),
                None => self.is_dev,
            },
        }
    }

    /// Returns the volume that is mounted for many tools, and where in it a row's directory would be.
    fn common_volume(&self, row: &Row) -> Option<(&str, &str, String)> {
        let below = row.in_volume.first()?;
        let is_common = |path: &&String| matches!(path.rsplit('/').next(), Some("cache" | "caches"));
        let path = self.volumes.keys().find(is_common)?;
        Some((self.volumes.get(path)?, path, format!("{path}/{below}")))
    }

    /// Returns a volume that is mounted where the catalogue has this tool's cache.
    fn own_volume(&self, row: &Row) -> Option<(&str, &str)> {
        let of_tool = |path: &&String| {
            let known = catalogue::known_below(path);
            known.iter().any(|known| known.path.is_empty() && known.row.tool == row.tool && known.class == Class::Cache)
        };
        let path = self.volumes.keys().find(of_tool)?;
        Some((self.volumes.get(path)?, path))
    }
}

/// Returns what of a `devcontainer.json`'s path is the same from wherever one looks.
fn below_project(path: &str) -> Option<&str> {
    path.rfind(".devcontainer").map(|at| &path[at..])
}

fn cache_not_mounted(container: &Container) -> Vec<Finding> {
    let name = &container.name;
    let lost: Vec<String> = container
        .caches
        .iter()
        .filter(|cache| container.common_volume(cache.row).is_none() && container.own_volume(cache.row).is_none())
        .map(|cache| format!("{} of {} in `{}`", entries(cache.entries as u64), cache.row.tool, cache.path))
        .collect();
    let mut found = Vec::new();
    if !lost.is_empty() {
        let message = format!(
            "container {name} keeps {} in its own layer, which goes when it is removed: mount a volume there",
            lost.join(" and ")
        );
        found.push(Finding::new(Severity::Warning, message));
    }
    for (directory, count) in &container.installed {
        let (packages, goes, it) = match count {
            1 => ("1 package was".into(), "it goes", "it"),
            _ => (format!("{count} packages were"), "they go", "them"),
        };
        let message = format!(
            "{packages} installed into container {name} itself, in `{directory}`: {goes} with the container, and no cache volume brings {it} back; install {it} in the image"
        );
        found.push(Finding::new(Severity::Note, message));
    }
    found
}

fn volume_unused(container: &Container) -> Vec<Finding> {
    let beside = container.caches.iter().filter_map(|cache| {
        let tool = cache.row.tool;
        let wrote = format!(
            "in container {} {tool} wrote {} to `{}`",
            container.name,
            entries(cache.entries as u64),
            cache.path
        );
        let message = match (container.own_volume(cache.row), container.common_volume(cache.row), cache.row.env.last())
        {
            (Some((volume, path)), _, _) => {
                format!("{wrote}, not to volume {volume} at `{path}`: mount the volume at `{}`", cache.path)
            }
            (None, Some((volume, path, place)), Some(variable)) => {
                format!("{wrote}, beside volume {volume} at `{path}`: set `{variable}={place}` in its environment")
            }
            _ => return None,
        };
        Some(Finding::new(Severity::Warning, message))
    });
    beside.collect()
}

/// Returns the caches among the paths that a container added or changed, where something lies in them. The system's own
/// package manager is left out: its packages belong into the image.
pub fn caches(changes: &[String], env: &[String]) -> Vec<Written> {
    let rows = || ROWS.iter().filter(|row| row.language != "system");
    let mut places: BTreeMap<String, &'static Row> = BTreeMap::new();
    for known in catalogue::known_below("/") {
        if known.class == Class::Cache && known.row.language != "system" {
            places.insert(format!("/{}", known.path), known.row);
        }
    }
    // Where variables move them.
    for (name, value) in env.iter().filter_map(|pair| pair.split_once('=')).filter(|(_, value)| value.starts_with('/'))
    {
        if let Some(row) = rows().find(|row| row.env.contains(&name)) {
            let base = clean(value);
            for part in row.parts.iter().filter(|part| part.class == Class::Cache) {
                places.insert(clean(&format!("{base}/{}", part.path)), row);
            }
        }
    }
    let mut found: BTreeMap<&str, Written> = BTreeMap::new();
    for path in changes {
        // A cache in a cache is told with the outer one.
        let holder = ancestors(path).filter(|above| *above != path).find_map(|above| {
            let row = places.get(above).or_else(|| places.get(&in_any_home(above)?))?;
            Some((above, *row))
        });
        if let Some((above, row)) = holder {
            let new = || Written { row, path: above.to_owned(), entries: 0 };
            found.entry(above).or_insert_with(new).entries += 1;
        }
    }
    found.into_values().collect()
}

/// Returns a path and what it lies in, the outermost first.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]).filter(|above| !above.is_empty())
}

/// Returns the path as the catalogue has it for all users.
fn in_any_home(path: &str) -> Option<String> {
    let (_, below) = path.strip_prefix("/home/")?.split_once('/')?;
    Some(format!("/home/*/{below}"))
}

/// Returns the directories that packages were installed into, with the number of packages in each.
pub fn installed(changes: &[String]) -> Vec<(String, usize)> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for path in changes {
        let Some((directory, name)) = path.rsplit_once('/') else { continue };
        let is_package = match directory.rsplit('/').next() {
            // Each has one of these.
            Some("site-packages" | "dist-packages") => name.ends_with(".dist-info"),
            Some("node_modules") => directory.ends_with("/lib/node_modules") && !name.starts_with('.'),
            Some("gems") => directory.starts_with("/usr/") && name.contains('-'),
            _ => false,
        };
        // A project's own environment may lie anywhere.
        if is_package && (within(path, "/usr") || within(path, "/opt")) {
            *found.entry(directory).or_default() += 1;
        }
    }
    found.into_iter().map(|(directory, count)| (directory.to_owned(), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    fn told(paths: &[&str], env: &[&str]) -> Vec<(&'static str, String, usize)> {
        let found = caches(&changes(paths), &changes(env));
        found.into_iter().map(|cache| (cache.row.tool, cache.path, cache.entries)).collect()
    }

    #[test]
    fn caches_are_found_in_every_home_and_where_variables_put_them() {
        let pip = ["/root", "/root/.cache", "/root/.cache/pip", "/root/.cache/pip/http", "/root/.cache/pip/http/a"];
        assert_eq!(told(&pip, &[]), [("pip", "/root/.cache/pip".into(), 2)]);
        assert_eq!(told(&["/home/ann/.npm/_cacache"], &[]), [("npm", "/home/ann/.npm".into(), 1)]);
        assert_eq!(told(&["/srv/c/x"], &["PIP_CACHE_DIR=/srv/c/"]), [("pip", "/srv/c".into(), 1)]);
        assert_eq!(told(&["/w/registry/index"], &["CARGO_HOME=/w"]), [("cargo", "/w/registry".into(), 1)]);
        for other in
            ["/root/.cache/pip", "/var/cache/apt/archives/x.deb", "/usr/local/cargo/bin/x", "/app/.npm/x", "", "/"]
        {
            assert_eq!(told(&[other], &["PIP_CACHE_DIR=", "npm_config_cache=c"]), [], "{other}");
        }
    }

    #[test]
    fn packages_of_the_system_are_counted_and_those_of_projects_not() {
        let paths = [
            "/usr/local/lib/python3.12/site-packages/a",
            "/usr/local/lib/python3.12/site-packages/a-1.dist-info",
            "/usr/local/lib/python3.12/site-packages/b-1.dist-info",
            "/usr/local/lib/node_modules/tsx",
            "/app/.venv/lib/python3.12/site-packages/a-1.dist-info",
            "/app/node_modules/x",
        ];
        let expected =
            [("/usr/local/lib/node_modules".into(), 1), ("/usr/local/lib/python3.12/site-packages".into(), 2)];
        assert_eq!(installed(&changes(&paths)), expected);
    }

    #[test]
    fn a_cache_beside_a_volume_is_the_volumes_matter() {
        let container = |volume: &str, path: &str| Container {
            name: "web".into(),
            volumes: [(volume.to_owned(), "v".to_owned())].into(),
            caches: caches(&changes(&[path]), &[]),
            ..Container::default()
        };
        for (volume, path, lost, unused) in [
            ("/data", "/root/.cache/pip/x", 1, 0),
            ("/cache", "/root/.cache/pip/x", 0, 1),
            ("/cache/pip", "/root/.cache/pip/x", 0, 1),
            ("/root/.npm", "/home/node/.npm/x", 0, 1),
            ("/root/.npm", "/root/.cache/pip/x", 1, 0),
            ("/cache", "/data/x", 0, 0),
        ] {
            let container = container(volume, path);
            assert_eq!(
                (cache_not_mounted(&container).len(), volume_unused(&container).len()),
                (lost, unused),
                "{volume} {path}"
            );
        }
    }
}
