//! Finds the builders, and which of them docker's two command families use.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};

use crate::docker::endpoint::{self, variable};
use crate::docker::{BuilderRef, Docker, DockerError};
use crate::model::{Builder, Node, build_is_buildx};

/// All builders, and who uses them.
#[derive(Debug)]
pub struct Builders {
    pub list: Vec<Builder>,
    /// Name of the builder of `docker build`, `docker bake` and `docker builder prune`.
    pub of_docker_build: String,
    /// Name of the builder of `docker buildx build`, `du` and `prune`.
    pub of_buildx: String,
    /// Why buildx could not be asked; the engine's own builder is then all that is known.
    pub no_buildx: Option<DockerError>,
    docker: Docker,
}

impl Builders {
    /// Asks `docker buildx ls`. Without buildx there is one builder, the engine's own.
    ///
    /// # Errors
    /// When buildx is there and gives no usable answer.
    pub fn ask(docker: &Docker, settings: &endpoint::Settings) -> Result<Builders, DockerError> {
        let context = docker.endpoint.context.clone();
        let (list, no_buildx) = match docker.builders() {
            Ok(list) => (list, None),
            Err(error) if error.is_no_buildx() => (vec![embedded(&context)], Some(error)),
            Err(error) => return Err(error),
        };
        let chosen = variable("BUILDX_BUILDER");
        let current = list.iter().find(|builder| builder.current).map_or(&context, |builder| &builder.name);
        let of_buildx = chosen.clone().unwrap_or_else(|| current.clone());
        // docker names the context's builder unless the variable, `--builder` or the alias says otherwise. Before Docker
        // CLI 23.0 it asks the engine itself, whatever the variable says.
        let of_docker_build = match chosen {
            _ if settings.builder_alias.is_some() => of_buildx.clone(),
            Some(chosen) if build_is_buildx(&docker.client_version().unwrap_or_default()) => chosen,
            _ => context,
        };
        Ok(Builders { list, of_docker_build, of_buildx, no_buildx, docker: docker.clone() })
    }

    /// Returns the engine's own builder if there can be no other: buildx keeps each of its builders as a file of the folder
    /// `instances`, and docker each context as a folder. It takes no call, of which `docker buildx ls` is the slowest, and
    /// nothing is known of the builder but its name.
    pub fn only_own(docker: &Docker, settings: &endpoint::Settings) -> Option<Builders> {
        let context = &docker.endpoint.context;
        let alone = context == "default"
            && variable("BUILDX_BUILDER").is_none()
            && is_empty(&settings.buildx().join("instances"))
            && is_empty(&settings.dir.join("contexts/meta"));
        alone.then(|| Builders {
            list: vec![embedded(context)],
            of_docker_build: context.clone(),
            of_buildx: context.clone(),
            no_buildx: None,
            docker: docker.clone(),
        })
    }

    /// Returns the builder of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&Builder> {
        self.list.iter().find(|builder| builder.name == name)
    }

    /// Returns the builder of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(&self, name: &str) -> Result<&Builder> {
        self.get(name).with_context(|| {
            let names: Vec<&str> = self.list.iter().map(|builder| builder.name.as_str()).collect();
            format!("no builder {name:?}\nhint: there are {}; see `docker cache builder ls`", names.join(", "))
        })
    }

    /// Returns the way to call a builder.
    pub fn reference(&self, builder: &Builder) -> BuilderRef {
        BuilderRef::new(&self.docker, builder, self.no_buildx.is_none())
    }

    /// Returns the commands that use this builder by default.
    pub fn default_for(&self, name: &str) -> Vec<&'static str> {
        let uses = [("docker build", &self.of_docker_build), ("docker buildx build", &self.of_buildx)];
        let family = uses.iter().filter(|(command, _)| self.no_buildx.is_none() || *command == "docker build");
        family.filter(|(_, used)| *used == name).map(|(command, _)| *command).collect()
    }

    /// Returns the builders that a command is about: all, the named one, else those in use. That of `docker build` comes first,
    /// then that of `docker buildx build`: a BuildKit of several names goes by the first of them.
    ///
    /// # Errors
    /// When there is no builder of the given name.
    pub fn selected(&self, name: Option<&str>, all: bool) -> Result<Vec<&Builder>> {
        if let Some(name) = told(name).filter(|_| !all) {
            return Ok(vec![self.named(name)?]);
        }
        let rank = |builder: &&Builder| (builder.name != self.of_docker_build, builder.name != self.of_buildx);
        let mut selected: Vec<&Builder> =
            self.list.iter().filter(|builder| all || rank(builder) != (true, true)).collect();
        selected.sort_by_key(rank);
        Ok(selected)
    }

    /// Returns the builder of this name, else that of `docker build`.
    ///
    /// # Errors
    /// When there is none.
    pub fn one(&self, name: Option<&str>) -> Result<&Builder> {
        self.named(told(name).unwrap_or(&self.of_docker_build))
    }
}

/// Returns the name, unless it is empty, from `BUILDX_BUILDER=` say: that is none, and so it is for buildx.
fn told(name: Option<&str>) -> Option<&str> {
    name.filter(|name| !name.is_empty())
}

/// Returns true if a folder has nothing in it, or is not there.
fn is_empty(folder: &Path) -> bool {
    match folder.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Returns what is true of the engine's own builder when no buildx can tell more.
fn embedded(context: &str) -> Builder {
    let node = Node { name: context.into(), endpoint: context.into(), status: "running".into(), ..Default::default() };
    Builder { name: context.into(), driver: "docker".into(), current: true, nodes: vec![node], ..Default::default() }
}
