//! Asks the engine for the containers that belong to a project, for what they wrote beside their volumes, and for the
//! images that the project's containers are made of. It judges nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::checks::containers::Image;
use crate::checks::live::{self, Container};
use crate::checks::project::Project;
use crate::checks::{Fact, NotRun};
use crate::cli::Doctor;
use crate::docker::{self, Docker, DockerError, Overview};
use crate::parallel;

/// Returns the containers that were named, else those of the project, and tells the project what its images give.
pub fn ask(
    docker: &Docker,
    overview: &Overview,
    options: &Doctor,
    project: Option<&mut Project>,
) -> Fact<Vec<Container>> {
    let failed = |error: DockerError| NotRun::Failed(error.to_string());
    if let Some(project) = project {
        let described = project.containers.described.iter();
        let mut references: Vec<String> = described.filter_map(|described| described.image.clone()).collect();
        references.sort();
        references.dedup();
        let configs = parallel::each(&references, |reference| docker.image_config(reference));
        for (reference, config) in references.into_iter().zip(configs) {
            if let Some(config) = config.map_err(failed)? {
                let image = Image { user: config.user, env: config.env.unwrap_or_default() };
                project.images.insert(reference, image);
            }
        }
    } else if options.container.is_empty() {
        return Err(NotRun::Skipped("there is no project here; name one with `docker cache doctor PATH`".into()));
    }
    let all = &overview.containers;
    if let Some(name) = options.container.iter().find(|name| !all.iter().any(|container| is_called(container, name))) {
        return Err(NotRun::Failed(format!("no container {name:?}; `docker ps -a` lists all containers")));
    }
    let wanted: Vec<&docker::Container> = match options.container.as_slice() {
        [] => of_project(overview, options),
        names => all.iter().filter(|container| names.iter().any(|name| is_called(container, name))).collect(),
    };
    parallel::each(&wanted, |container| look(docker, container)).into_iter().collect::<Result<_, _>>().map_err(failed)
}

/// Returns the containers that were made from the project's files.
pub fn of_project<'a>(overview: &'a Overview, options: &Doctor) -> Vec<&'a docker::Container> {
    let root = options.path.as_deref().unwrap_or(Path::new("."));
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    overview.containers.iter().filter(|container| belongs(container, &root)).collect()
}

fn is_called(container: &docker::Container, name: &str) -> bool {
    let is_id = name.len() >= 4 && container.id.starts_with(name);
    is_id || container.names.iter().any(|own| own.trim_start_matches('/') == name)
}

/// Tells whether a container was made from the files below a directory: by docker compose, or as a dev container.
fn belongs(container: &docker::Container, root: &Path) -> bool {
    let label = |name: &str| container.labels.get(name).map(PathBuf::from);
    let files = container.labels.get("com.docker.compose.project.config_files").map(String::as_str).unwrap_or_default();
    let mut places = ["com.docker.compose.project.working_dir", "devcontainer.local_folder"]
        .into_iter()
        .filter_map(label)
        .chain(files.split(',').map(PathBuf::from));
    places.any(|place| place.starts_with(root))
}

fn look(docker: &Docker, container: &docker::Container) -> Result<Container, DockerError> {
    let changes = docker.container_changes(&container.id)?;
    let env = docker.container_config(&container.id)?.env.unwrap_or_default();
    let volumes = container.mounts.iter().filter(|mount| mount.r#type == "volume");
    let volumes: BTreeMap<String, String> =
        volumes.map(|mount| (mount.destination.clone(), mount.name.clone())).collect();
    Ok(Container {
        name: container.name().to_owned(),
        service: container.labels.get("com.docker.compose.service").cloned(),
        is_dev: container.labels.contains_key("devcontainer.local_folder"),
        config_file: container.labels.get("devcontainer.config_file").cloned(),
        volumes,
        caches: live::caches(&changes, &env),
        installed: live::installed(&changes),
    })
}
