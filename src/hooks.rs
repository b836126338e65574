//! The hook: one line that docker shows after a build, when something is wrong that costs nothing to know. It starts no
//! process and asks neither engine nor network, and says nothing when all is well.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use crate::docker::endpoint::{Endpoint, Flags, Settings, variable};
use crate::model::{Bytes, Disk};
use crate::place;
use crate::report::plain;

/// What docker tells of the command that has just ended.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Call {
    /// What config.json has that it matched: `buildx build`.
    root_cmd: String,
    /// Names without dashes; docker blanks most values.
    flags: BTreeMap<String, String>,
    /// Empty if the command did well.
    command_error: String,
}

impl Call {
    /// Tells whether a flag was given. Of a plugin's command docker hands over `--no-cache=true` with the value in the name.
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|(name, value)| {
            let (name, value) = name.split_once('=').unwrap_or((name, value));
            name == flag && value != "false"
        })
    }
}

/// What is known beside the call.
#[derive(Debug, Default)]
struct Around {
    disk: Option<Disk>,
    /// The builders of `docker build`, which was called, and of `docker buildx`, if they differ.
    builders: Option<(String, String)>,
}

/// What docker is told, in one file with the metadata: the commands to wait for, and the texts.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Texts {
    after: String,
    disk_full: String,
    disk_low: String,
    legacy_builder: String,
    no_cache: String,
    other_builder: String,
}

/// Returns the commands after which docker is to ask, as config.json has them.
pub fn commands() -> String {
    texts().after
}

fn texts() -> Texts {
    #[expect(clippy::expect_used, reason = "it is compiled in, and a test reads it")]
    serde_json::from_str(include_str!("../plugin-metadata/hooks.json")).expect("hooks.json is what it is here")
}

/// Returns the answer to `docker-cli-plugin-hooks CALL`.
pub fn answer(call: &str) -> String {
    let call: Call = serde_json::from_str(call).unwrap_or_default();
    let settings = Settings::read(&Flags::default());
    let endpoint = Endpoint::resolve(&Flags::default(), &settings);
    let around = Around { disk: disk(&endpoint), builders: builders(&call, &endpoint, &settings) };
    let answer = match line(&call, around) {
        // Docker reads it as a template of Go's.
        Some(line) => json!({"Type": 0, "Template": plain(&line).replace("{{", "{ {")}),
        None => json!({}),
    };
    format!("{answer}\n")
}

/// Returns the gravest of what is wrong.
fn line(call: &Call, around: Around) -> Option<String> {
    let texts = texts();
    let Around { disk, builders } = around;
    let low = disk.filter(Disk::is_low);
    if call.command_error.contains("no space left on device") {
        Some(texts.disk_full)
    } else if let Some(Disk { free, total, .. }) = low {
        let told = texts.disk_low.replace("@FREE@", &Bytes(free).to_string());
        Some(told.replace("@TOTAL@", &Bytes(total).to_string()))
    } else if matches!(call.root_cmd.as_str(), "build" | "image build") {
        Some(texts.legacy_builder)
    } else if !call.command_error.is_empty() {
        None
    } else if call.has("no-cache") {
        Some(texts.no_cache)
    } else {
        builders.map(|(build, buildx)| texts.other_builder.replace("@BUILD@", &build).replace("@BUILDX@", &buildx))
    }
}

/// Returns the disk of the engine, if it is surely the one of this host that lives in the usual place.
fn disk(endpoint: &Endpoint) -> Option<Disk> {
    let host = endpoint.host.as_deref()?.strip_prefix("unix://")?;
    if !["/var/run/docker.sock", "/run/docker.sock"].contains(&host) {
        return None;
    }
    let file = std::fs::read(place::DAEMON_JSON).unwrap_or_default();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap_or_default();
    place::disk(file["data-root"].as_str().unwrap_or(place::DATA_ROOT)).ok()
}

/// Returns the two builders that a user may take for one: only `docker build` leaves the choice of `docker buildx use` out.
fn builders(call: &Call, endpoint: &Endpoint, settings: &Settings) -> Option<(String, String)> {
    let chosen = variable("BUILDX_BUILDER").is_some();
    if call.root_cmd != "buildx build" || chosen || call.has("builder") || settings.builder_alias.is_some() {
        return None;
    }
    // Docker tells the same of `docker buildx build`.
    let parent = std::fs::read(format!("/proc/{}/cmdline", std::os::unix::process::parent_id())).ok()?;
    if parent.is_empty() || parent.split(|byte| *byte == 0).any(|word| word == b"buildx") {
        return None;
    }
    let current = current(&settings.buildx(), endpoint)?;
    (current != endpoint.context).then(|| (endpoint.context.clone(), current))
}

/// Returns the builder that `docker buildx use` chose for an engine, from the file where buildx keeps it.
fn current(directory: &Path, endpoint: &Endpoint) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    #[derive(Default)]
    struct Current {
        /// The context, or the address of the engine, that it is for.
        key: String,
        name: String,
        global: bool,
    }
    let current: Current = serde_json::from_slice(&std::fs::read(directory.join("current")).ok()?).ok()?;
    let key = endpoint.host.as_ref().filter(|_| endpoint.context == "default").unwrap_or(&endpoint.context);
    let applies = !current.name.is_empty() && (current.global || current.key == *key);
    applies.then_some(current.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(call: serde_json::Value, around: Around) -> Option<String> {
        line(&serde_json::from_value(call).unwrap(), around)
    }

    fn low() -> Around {
        Around {
            disk: Some(Disk { path: "/d".into(), free: 1_000_000_000, total: 100_000_000_000 }),
            builders: Some(("default".into(), "far".into())),
        }
    }

    #[test]
    fn nothing_is_said_when_all_is_well() {
        let roomy = Disk { path: "/d".into(), free: 50_000_000_000, total: 100_000_000_000 };
        let around = Around { disk: Some(roomy), builders: None };
        assert_eq!(told(json!({"RootCmd": "buildx build", "Flags": {"t": ""}, "CommandError": ""}), around), None);
        assert_eq!(
            told(json!({"RootCmd": "buildx build", "CommandError": "exited with code 1"}), Around::default()),
            None
        );
        assert_eq!(told(json!({"RootCmd": "buildx build", "Flags": {"no-cache": "false"}}), Around::default()), None);
        assert_eq!(told(json!({"RootCmd": "buildx build", "Flags": {"no-cache=false": ""}}), Around::default()), None);
    }

    #[test]
    fn the_gravest_is_said_in_one_line() {
        let error = "write /x: no space left on device";
        let cases = [
            (json!({"RootCmd": "build", "CommandError": error}), low(), "was full: `docker cache clear --keep"),
            (json!({"RootCmd": "build"}), low(), "Only 1GB of 100GB are free"),
            (json!({"RootCmd": "buildx build", "CommandError": "exited with code 1"}), low(), "Only 1GB of 100GB"),
            (json!({"RootCmd": "image build"}), Around::default(), "legacy builder"),
            (json!({"RootCmd": "build", "CommandError": "requires BuildKit"}), Around::default(), "legacy builder"),
            (json!({"RootCmd": "buildx bake", "Flags": {"no-cache": ""}}), Around::default(), "`--no-cache`"),
            (json!({"RootCmd": "buildx bake", "Flags": {"no-cache=true": ""}}), Around::default(), "`--no-cache`"),
            (
                json!({"RootCmd": "buildx build"}),
                Around { disk: None, ..low() },
                "the builder default, not of far, which",
            ),
        ];
        for (call, around, expected) in cases {
            let text = told(call.clone(), around).unwrap_or_default();
            assert!(text.contains(expected) && !text.contains('@') && !text.contains('\n'), "{call}: {text}");
        }
    }

    #[test]
    fn the_texts_are_whole() {
        assert_eq!(commands(), "buildx build,buildx bake,build,image build");
        assert_eq!(answer("garbage").lines().count(), 1);
    }
}
