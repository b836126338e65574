//! Volumes reached by a helper container: an image with nothing but this binary, no network, a read-only root, and no
//! capability but those that the job needs. Image and container are gone afterwards, whatever happens.

use std::path::PathBuf;

use anyhow::Result;

use super::carry::lines;
use super::{Access, helper};
use crate::docker::{Docker, Info, unique_name};
use crate::inside::{Job, Line};

/// Returns where the volumes are mounted, in their order.
pub fn roots(volumes: &[String]) -> Vec<PathBuf> {
    (0..volumes.len()).map(|at| PathBuf::from(format!("/volumes/{at}"))).collect()
}

pub fn run(
    docker: &Docker,
    info: &Info,
    volumes: &[String],
    access: Access,
    job: &Job,
    each: &mut (dyn FnMut(Line) + Send),
) -> Result<()> {
    let name = unique_name();
    let _cleaner = Cleaner { docker, name: &name };
    docker.import_image(&helper::binary(&info.architecture)?, &name)?;
    let mounts: Vec<(&str, PathBuf)> = volumes.iter().map(String::as_str).zip(roots(volumes)).collect();
    let job = format!("{}\n", serde_json::to_string(job)?).into_bytes();
    docker.create_helper(&name, &mounts, access == Access::Write)?;
    docker.start_helper(&name, job, |output| lines(output, each))?
}

/// Removes a container at its end, with the volumes that have no name.
#[derive(Debug)]
pub struct ContainerCleaner<'a> {
    pub docker: &'a Docker,
    pub name: &'a str,
}

impl Drop for ContainerCleaner<'_> {
    fn drop(&mut self) {
        // It may not exist.
        let _ = self.docker.remove_container(self.name);
    }
}

/// Removes the helper's container and image.
pub(super) struct Cleaner<'a> {
    pub docker: &'a Docker,
    pub name: &'a str,
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        // Neither may exist.
        let _ = self.docker.remove_container(self.name);
        let _ = self.docker.remove_image(self.name);
    }
}
