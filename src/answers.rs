//! Questions to docker that several parts of a command have: who comes first asks, and the others wait for the answer.

use std::sync::OnceLock;

use crate::builders::Builders;
use crate::docker::{self, Docker, DockerError, Overview, endpoint};
use crate::model::{CacheRecord, Moment};

/// The answers so far.
#[derive(Debug)]
pub struct Answers<'a> {
    pub docker: &'a Docker,
    settings: &'a endpoint::Settings,
    builders: OnceLock<Result<Builders, DockerError>>,
    overview: OnceLock<Result<Overview, DockerError>>,
    build_cache: OnceLock<Result<Vec<CacheRecord>, DockerError>>,
}

impl<'a> Answers<'a> {
    pub fn new(docker: &'a Docker, settings: &'a endpoint::Settings) -> Answers<'a> {
        Answers { docker, settings, builders: OnceLock::new(), overview: OnceLock::new(), build_cache: OnceLock::new() }
    }

    /// Takes the engine's own builder for the only one where docker's files say so, see [`Builders::only_own`]: for those
    /// who ask a builder for its records alone.
    pub fn without_buildx(self) -> Answers<'a> {
        if let Some(builders) = Builders::only_own(self.docker, self.settings) {
            let _ = self.builders.set(Ok(builders));
        }
        self
    }

    /// See [`Builders::ask`].
    ///
    /// # Errors
    /// See there.
    pub fn builders(&self) -> Result<&Builders, DockerError> {
        let answer = self.builders.get_or_init(|| Builders::ask(self.docker, self.settings));
        answer.as_ref().map_err(Clone::clone)
    }

    /// See [`Docker::overview`].
    ///
    /// # Errors
    /// See there.
    pub fn overview(&self) -> Result<&Overview, DockerError> {
        self.overview.get_or_init(|| self.docker.overview()).as_ref().map_err(Clone::clone)
    }

    /// The records of the engine's own builder, see [`docker::BuilderRef::records_at_rest`].
    ///
    /// # Errors
    /// See there.
    pub fn build_cache(&self) -> Result<Vec<CacheRecord>, DockerError> {
        let ask = || self.docker.build_cache();
        self.build_cache.get_or_init(|| docker::at_rest(ask()?, Moment::now(), ask)).clone()
    }
}
