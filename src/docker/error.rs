//! What can go wrong with a docker call, and what the user can do about it.

use std::fmt;
use std::time::Duration;

use crate::report::quote;

/// A docker call that gave no usable answer.
#[derive(Clone, Debug)]
pub struct DockerError {
    /// The command as a user would type it: `docker buildx ls`.
    pub call: String,
    pub cause: Cause,
}

/// Why a docker call gave no usable answer.
#[derive(Clone, Debug)]
pub enum Cause {
    /// There is no docker command.
    NoDocker,
    /// The docker command exists and has no buildx.
    NoBuildx,
    /// No engine answers at the endpoint; docker's own words.
    Unreachable(String),
    /// There is no docker context of this name.
    NoContext(String),
    /// Docker said no; its own words.
    Refused(String),
    /// The builder of this name must be started first.
    Asleep(String),
    /// There was no answer within this time.
    TimedOut(Duration),
    /// The user cancelled.
    Interrupted,
    /// The answer is not what this docker prints; what was wrong with it.
    Garbage(String),
}

impl DockerError {
    pub fn new(call: impl Into<String>, cause: Cause) -> Self {
        DockerError { call: call.into(), cause }
    }

    /// Sorts a failed call by what docker wrote to stderr.
    pub fn from_stderr(call: String, stderr: &str, endpoint: &str) -> Self {
        let words = stderr.trim();
        let has = |text: &str| words.contains(text);
        let of_builder = call.contains(" --builder=");
        let cause = if has("unknown command: docker buildx")
            || has("'buildx' is not a docker command")
            || has("buildx component is missing")
            // A docker without buildx reads its flags as its own and prints its own usage (20.10, 28.2).
            || (call.starts_with("docker buildx") && has("Usage:  docker [OPTIONS] COMMAND"))
        {
            Cause::NoBuildx
        } else if let Some(name) = missing_context(words) {
            Cause::NoContext(name)
        } else if has("permission denied")
            && (has("daemon socket") || (!of_builder && (has("docker.sock") || has("dial unix"))))
        {
            Cause::Unreachable(format!("permission denied for the Docker daemon at {endpoint}"))
        } else if has("command [ssh") {
            // `error while Copy (stream to stdout): command [ssh …] has exited with …: stderr=ssh: connect to …`
            let why = words.rsplit("stderr=").next().unwrap_or_default();
            Cause::Unreachable(format!("Cannot connect to the Docker daemon at {endpoint}: {}", error_line(why)))
        } else if has("raw stream connection") || (has("connection refused") && !of_builder) {
            Cause::Unreachable(format!(
                "Cannot connect to the Docker daemon at {endpoint}. Is the docker daemon running?"
            ))
        } else if has("Cannot connect to the Docker daemon") || has("error during connect") {
            Cause::Unreachable(error_line(words))
        } else {
            Cause::Refused(error_line(words))
        };
        DockerError { call, cause }
    }

    /// Returns one sentence that says what to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match &self.cause {
            Cause::NoDocker => "install the docker CLI, or put it on PATH".into(),
            Cause::NoBuildx => {
                "install the buildx plugin (package docker-buildx or docker-buildx-plugin), then check it with \
                 `docker buildx version`"
                    .into()
            }
            Cause::Unreachable(why) if why.starts_with("permission denied") => {
                "run it with sudo, or become a member of the group docker: `sudo usermod -aG docker $USER`, then log in \
                 again"
                    .into()
            }
            Cause::Unreachable(_) => {
                "start the engine, or name another one: `docker context ls`, then `docker --context NAME cache …`".into()
            }
            Cause::NoContext(_) => "`docker context ls` lists those that are there".into(),
            Cause::TimedOut(_) => {
                "see whether the engine answers at all: `docker version`; `docker buildx ls` shows builders that hang"
                    .into()
            }
            Cause::Asleep(name) => format!("start it: `docker buildx inspect --bootstrap {}`", quote(name)),
            Cause::Garbage(_) => "see what docker prints: run the command by hand".into(),
            Cause::Refused(_) | Cause::Interrupted => return None,
        })
    }
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DockerError { call, cause } = self;
        match cause {
            Cause::NoDocker => write!(f, "no `docker` command found"),
            Cause::NoBuildx => write!(f, "`{call}`: docker has no buildx"),
            Cause::Unreachable(why) => write!(f, "`{call}`: {why}"),
            Cause::NoContext(name) => write!(f, "there is no docker context {name:?}"),
            Cause::Refused(why) if why.is_empty() => write!(f, "`{call}` failed without a word"),
            Cause::Refused(why) => write!(f, "`{call}` failed: {why}"),
            Cause::Asleep(name) => write!(f, "the builder {name} does not run"),
            Cause::TimedOut(limit) => {
                write!(f, "`{call}` did not answer within {}", humantime::format_duration(*limit))
            }
            Cause::Interrupted => write!(f, "`{call}` was cancelled"),
            Cause::Garbage(what) => write!(f, "`{call}` gave an answer that makes no sense: {what}"),
        }
    }
}

impl std::error::Error for DockerError {}

/// Returns the name in `context "NAME": context not found: open …`, or of Docker CLI 20.10 in `context "NAME" does not exist`
/// and `Current context "NAME" is not found on the file system`.
fn missing_context(stderr: &str) -> Option<String> {
    let (name, rest) = stderr.split_once("context \"")?.1.split_once('"')?;
    let ends = [": context not found", " does not exist", " is not found on the file system"];
    ends.iter().any(|end| rest.starts_with(end)).then(|| name.to_owned())
}

/// Returns docker's error line without its prefixes: the last one that calls itself an error, else the first, since the
/// others are progress, warnings and usage.
fn error_line(stderr: &str) -> String {
    const PREFIXES: [&str; 5] = ["ERROR: ", "Error response from daemon: ", "Error: ", "error: ", "docker: "];
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("WARNING"));
    // Docker 20.10 tells a failed build without a prefix, after all its steps.
    let is_error =
        |line: &&str| PREFIXES.iter().any(|prefix| line.starts_with(prefix)) || line.starts_with("failed to solve");
    let named = lines().rfind(is_error);
    let mut line = named.or_else(|| lines().next()).unwrap_or_default();
    for prefix in PREFIXES {
        line = line.strip_prefix(prefix).unwrap_or(line);
    }
    line.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_builder_is_not_the_engines() {
        let cause = |call: &str, words: &str| DockerError::from_stderr(call.into(), words, "unix:///engine").cause;
        let denied = "ERROR: dial unix /run/buildkitd.sock: connect: permission denied";
        assert!(matches!(cause("docker buildx du --builder=r", denied), Cause::Refused(_)));
        assert!(matches!(cause("docker system dial-stdio", denied), Cause::Unreachable(_)));
        let of_engine = "permission denied while trying to connect to the Docker daemon socket at unix:///engine";
        assert!(matches!(cause("docker buildx du --builder=r", of_engine), Cause::Unreachable(_)));
    }
}
