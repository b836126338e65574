//! What caches an image carries: its files as the engine exports them from a container that never runs. Writes nothing.

use std::collections::BTreeMap;
use std::io::{self, Read};

use anyhow::{Result, ensure};

use crate::catalogue::{self, Class, Known};
use crate::checks::caches::{Carried, Image};
use crate::docker::{Docker, unique_name};
use crate::inside::rules::{Rule, Rules};
use crate::place::ContainerCleaner;

/// Reads an image of the engine; `progress` is told files and bytes.
///
/// # Errors
/// When the engine has no such image, or it cannot be read.
pub fn read(docker: &Docker, reference: &str, progress: &mut dyn FnMut(u64, u64)) -> Result<Image> {
    ensure!(
        docker.image_id(reference)?.is_some(),
        "the engine has no image {reference:?}\nhint: `docker image ls` lists them, `docker pull` gets one"
    );
    let name = unique_name();
    let _cleaner = ContainerCleaner { docker, name: &name };
    docker.create_container(&name, reference)?;
    let env = docker.container_config(&name)?.env.unwrap_or_default();
    let carried = docker.export_container(&name, |archive| carried(archive, &known(&env), progress))??;
    Ok(Image { name: reference.into(), carried })
}

/// Returns what the catalogue knows in a whole file system, and where variables of the image put it.
fn known(env: &[String]) -> Vec<Known> {
    let mut known = catalogue::known_below("/");
    for (name, value) in env.iter().filter_map(|variable| variable.split_once('=')) {
        for row in catalogue::ROWS.iter().filter(|row| value.starts_with('/') && row.env.contains(&name)) {
            for part in row.parts {
                let path = format!("{value}/{}", part.path);
                catalogue::unhide(&mut known, &path);
                known.push(Known { path, row, class: part.class });
            }
        }
    }
    known
}

/// Sums up the caches in an archive of a file system, and what else lies in `/cache`.
fn carried(archive: impl Read, known: &[Known], progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<Carried>> {
    let paths = known.iter().map(|known| known.path.as_str()).chain(["cache"]);
    let rules: Vec<Rule> = paths.map(|path| Rule { path: path.into(), take: true }).collect();
    let tree = Rules::new(&rules);
    let mut found: BTreeMap<(Option<&'static str>, String), u64> = BTreeMap::new();
    let (mut files, mut bytes) = (0, 0);
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let entry = entry?;
        (files, bytes) = (files + 1, bytes + entry.size());
        progress(files, bytes);
        let path = entry.path_bytes();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        let Some(at) = tree.at(path).rule else { continue };
        let tool = match known.get(at) {
            Some(known) if known.class == Class::Cache => Some(known.row.tool),
            Some(_) => continue,
            None => None,
        };
        // The directory that the rule is about, with real names for its stars.
        let depth = rules[at].path.split('/').filter(|name| !name.is_empty()).count();
        let path = String::from_utf8_lossy(path);
        let place: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).take(depth).collect();
        *found.entry((tool, format!("/{}", place.join("/")))).or_default() += entry.size();
    }
    // Docker fails if nobody reads to the end.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(found.into_iter().map(|((tool, path), bytes)| Carried { tool, path, bytes }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_told_by_tool_and_directory_and_nothing_else_is() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |path: &str, size: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            archive.append_data(&mut header, path, io::repeat(0).take(size)).unwrap();
        };
        for (path, size) in [
            ("root/.cache/pip/http/a", 10),
            ("home/dev/.cache/pip/b", 20),
            ("home/dev/.cargo/registry/c", 90),
            ("srv/wheels/c", 30),
            ("cache/mine", 40),
            ("root/.cargo/bin/tool", 50),
            ("usr/lib/python3/x", 60),
            ("root/.cache/pipx/x", 70),
            ("root/.local/share/pipx/venvs/x", 80),
        ] {
            add(path, size);
        }
        let env = [
            "PIP_CACHE_DIR=/srv/wheels".into(),
            "CARGO_HOME=/home/dev/.cargo".into(),
            "npm_config_cache=relative".into(),
        ];
        let found = carried(archive.into_inner().unwrap().as_slice(), &known(&env), &mut |_, _| ()).unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.tool, found.path.as_str(), found.bytes)).collect();
        let pip = Some("pip");
        assert_eq!(
            found,
            [
                (None, "/cache", 40),
                (Some("cargo"), "/home/dev/.cargo/registry", 90),
                (pip, "/home/dev/.cache/pip", 20),
                (pip, "/root/.cache/pip", 10),
                (pip, "/srv/wheels", 30),
                // The environments of `pipx run`; those of `pipx install` are elsewhere.
                (Some("pipx"), "/root/.cache/pipx", 70),
            ]
        );
    }
}
