//! Finds out, as the docker command does, which context and host are meant. Reads files, starts nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::inside::pack::digest;
use crate::model::{DEFAULT_SOCKET, null_is_default};

/// Docker's global flags that say where to look, as far as this program needs them.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub context: Option<String>,
    pub host: Option<String>,
}

/// The engine that docker's flags, environment and configuration lead to.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Name of the docker context: `default` when a host is named directly.
    pub context: String,
    /// Address, when it is known without asking docker: `unix:///var/run/docker.sock`.
    pub host: Option<String>,
    /// What named it.
    pub source: Source,
    /// Docker's configuration directory.
    config: PathBuf,
    /// True if `--config` named it.
    is_config_flag: bool,
}

/// What an endpoint was named by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `--context` or `--host`.
    Flag,
    /// This environment variable.
    Variable(&'static str),
    /// config.json, as `docker context use` writes it.
    Config,
    /// Nothing: it is docker's own default.
    Default,
}

/// What this program needs of docker's config.json, in which null is as good as nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    #[serde(rename = "currentContext", deserialize_with = "null_is_default")]
    current_context: String,
    #[serde(deserialize_with = "null_is_default")]
    aliases: BTreeMap<String, Option<String>>,
    #[serde(deserialize_with = "null_is_default")]
    plugins: BTreeMap<String, Option<BTreeMap<String, Option<String>>>>,
    /// `aliases.builder`: the plugin that takes over `docker build`.
    #[serde(skip)]
    pub builder_alias: Option<String>,
    /// Docker's configuration directory.
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Settings {
    /// Reads config.json; docker too goes on with defaults when it is missing or damaged.
    pub fn read(flags: &Flags) -> Settings {
        let dir = config_dir(flags);
        let text = std::fs::read(dir.join("config.json")).unwrap_or_default();
        let mut settings: Settings = serde_json::from_slice(&text).unwrap_or_default();
        settings.builder_alias = settings.aliases.remove("builder").flatten();
        settings.dir = dir;
        settings
    }

    /// Returns the plugin's own setting of this name: `DOCKER_CACHE_NAME`, else `plugins.cache.NAME` of config.json.
    pub fn own(&self, name: &str) -> Option<String> {
        let kept = || self.plugins.get("cache")?.as_ref()?.get(name)?.clone();
        variable(&format!("DOCKER_CACHE_{}", name.to_uppercase())).or_else(kept)
    }

    /// Returns buildx's own directory: `$BUILDX_CONFIG`, else `buildx` in docker's.
    pub fn buildx(&self) -> PathBuf {
        directory("BUILDX_CONFIG").unwrap_or_else(|| self.dir.join("buildx"))
    }
}

impl Endpoint {
    /// Resolves in docker's order: `--context`, `--host`, `DOCKER_HOST`, `DOCKER_CONTEXT`, config.json, `default`.
    pub fn resolve(flags: &Flags, settings: &Settings) -> Endpoint {
        let env_host = variable("DOCKER_HOST");
        let (context, host, source) = if let Some(context) = &flags.context {
            (context.clone(), None, Source::Flag)
        } else if flags.host.is_some() {
            ("default".into(), flags.host.clone(), Source::Flag)
        } else if env_host.is_some() {
            ("default".into(), None, Source::Variable("DOCKER_HOST"))
        } else if let Some(context) = variable("DOCKER_CONTEXT") {
            (context, None, Source::Variable("DOCKER_CONTEXT"))
        } else if !settings.current_context.is_empty() {
            (settings.current_context.clone(), None, Source::Config)
        } else {
            ("default".into(), None, Source::Default)
        };
        let host = host.or_else(|| (context == "default").then(|| env_host.unwrap_or_else(|| DEFAULT_SOCKET.into())));
        Endpoint { context, host, source, config: settings.dir.clone(), is_config_flag: flags.config.is_some() }
    }

    /// Returns the socket that it is known to be: `/var/run/docker.sock`.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        let host = self.host.clone().or_else(|| self.host_of_context())?;
        let path = PathBuf::from(host.strip_prefix("unix://")?);
        path.is_absolute().then_some(path)
    }

    /// Returns the address of a named context. Docker keeps it in a directory that is named by the SHA-256 of the name.
    fn host_of_context(&self) -> Option<String> {
        let digest = digest(&mut self.context.as_bytes()).ok()?;
        let text = std::fs::read(self.config.join("contexts/meta").join(digest.file()).join("meta.json")).ok()?;
        let meta: Value = serde_json::from_slice(&text).ok()?;
        meta["Endpoints"]["docker"]["Host"].as_str().map(String::from)
    }

    /// Returns the flags that keep docker's own configuration where it is.
    pub(super) fn config_flags(&self) -> Vec<OsString> {
        match self.is_config_flag {
            true => vec!["--config".into(), self.config.clone().into()],
            false => Vec::new(),
        }
    }

    pub(super) fn in_context(&self, context: &str) -> Endpoint {
        Endpoint { context: context.into(), host: None, source: Source::Flag, ..self.clone() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => f.write_str(host),
            None => write!(f, "context {}", self.context),
        }
    }
}

/// Returns the value of an environment variable; docker and buildx take an empty one for none.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The same as [`variable`] for a directory, whose name may be no text.
fn directory(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns docker's configuration directory: `--config`, else `$DOCKER_CONFIG`, else `~/.docker`.
pub fn config_dir(flags: &Flags) -> PathBuf {
    flags
        .config
        .clone()
        .or_else(|| directory("DOCKER_CONFIG"))
        .or_else(|| dirs::home_dir().map(|home| home.join(".docker")))
        .unwrap_or_else(|| PathBuf::from(".docker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_in_the_configuration_is_as_good_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags { config: Some(dir.path().into()), ..Flags::default() };
        let settings = |rest: &str| {
            std::fs::write(dir.path().join("config.json"), format!(r#"{{"currentContext":"far",{rest}}}"#)).unwrap();
            Settings::read(&flags)
        };
        for rest in [
            r#""aliases":null,"plugins":null"#,
            r#""aliases":{"builder":null},"plugins":{"x":null}"#,
            r#""plugins":{"x":{"y":null}}"#,
        ] {
            assert_eq!(settings(rest).current_context, "far", "{rest}");
        }
        assert_eq!(
            settings(r#""plugins":{"x":null,"cache":{"of-a-test":"1"}}"#).own("of-a-test").as_deref(),
            Some("1")
        );
    }
}
