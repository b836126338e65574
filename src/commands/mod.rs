//! One file a command: options, plan, act, report. Each returns the exit status.

pub mod builder;
mod bundles;
pub mod clear;
pub mod complete;
pub mod doctor;
pub mod export;
mod history;
pub mod hooks;
pub mod import;
mod layers;
pub mod man;
pub mod size;
pub mod verify;
pub mod warm;
mod watch;

use crate::cli::DockerFlags;
use crate::docker::endpoint::{Endpoint, Flags, Settings};
use crate::docker::{Docker, DockerError};
use crate::plugin;

/// What every command needs: docker, and docker's settings.
#[derive(Debug)]
pub struct Context {
    /// The docker command, or why there is none.
    pub docker: Result<Docker, DockerError>,
    pub settings: Settings,
    pub endpoint: Endpoint,
}

impl Context {
    /// Resolves docker's flags; asks docker nothing.
    pub fn new(flags: &DockerFlags) -> Context {
        let chosen =
            Flags { config: flags.config.clone(), context: flags.context.clone(), host: flags.host.first().cloned() };
        let settings = Settings::read(&chosen);
        let endpoint = Endpoint::resolve(&chosen, &settings);
        Context { docker: Docker::find(plugin::global_args(flags), endpoint.clone()), settings, endpoint }
    }

    /// Returns docker for a command that cannot do without.
    ///
    /// # Errors
    /// When there is no docker command.
    pub fn into_docker(self) -> anyhow::Result<(Docker, Settings)> {
        Ok((self.docker?, self.settings))
    }
}
