//! `docker cache doctor --fix` on builds with real package managers: what it changes still builds to the same, and the
//! next build downloads nothing.

use std::fs;

use serde_json::Value;

use crate::support::debian::Tool;
use crate::support::process::Run;
use crate::support::{Engine, Generation};

/// A build context on an engine that reaches the package registries.
struct Project {
    engine: Engine,
    context: tempfile::TempDir,
}

impl Project {
    /// Makes a project whose base image is a Debian with the tool, under a name that doctor knows Debian by.
    fn new(tool: Tool, dockerfile: &str, files: &[(&str, &str)]) -> Project {
        let generation = Generation::V28Containerd;
        let engine = if tool.needs_registry() { Engine::online(generation) } else { Engine::start(generation) };
        let image = tool.image(&engine);
        engine.docker(&["tag", &image, "debian:bookworm-slim"]);
        let context = engine.context(dockerfile);
        crate::support::world::write_files(context.path(), files);
        Project { engine, context }
    }

    fn doctor(&self, arguments: &[&str]) -> Run {
        let path = self.context.path().display().to_string();
        self.engine.cache(&[&["doctor"], arguments, &[&path]].concat())
    }

    fn dockerfile(&self) -> String {
        fs::read_to_string(self.context.path().join("Dockerfile")).unwrap()
    }

    /// Returns the output of a build that differs from others in the argument CHANGE.
    #[track_caller]
    fn build(&self, change: &str) -> String {
        let mut build = self.engine.command(self.engine.docker_program());
        build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress=plain", "--network=host", "--tag=built"]);
        build.arg(format!("--build-arg=CHANGE={change}"));
        for name in ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] {
            if let Ok(value) = std::env::var(name) {
                build.arg(format!("--build-arg={name}={value}"));
            }
        }
        Run::of(build.arg(self.context.path())).ok().stderr
    }

    #[track_caller]
    fn run(&self, command: &[&str]) -> String {
        self.engine.docker(&[&["run", "--rm", "--network=host", "built"], command].concat()).stdout
    }

    fn findings(&self, check: &str) -> usize {
        let answer: Value = serde_json::from_str(&self.doctor(&["--format", "json", "--check", check]).stdout).unwrap();
        answer["findings"].as_array().unwrap().len()
    }

    /// Builds, fixes, builds, and builds again after a change; returns the outputs of the two last builds.
    #[track_caller]
    fn fixed(&self, shows: &[&str]) -> (String, String) {
        self.build("0");
        let before = self.run(shows);
        assert!(self.findings("missing-cache-mount") > 0);
        self.doctor(&["--fix"]).ok();
        let once = self.dockerfile();
        assert_eq!(self.findings("missing-cache-mount") + self.findings("defeated-cache-mount"), 0, "{once}");
        assert_eq!(self.doctor(&["--fix"]).ok().stdout, "");
        assert_eq!(self.dockerfile(), once);
        let first = self.build("1");
        let second = self.build("2");
        assert_eq!(self.run(shows), before, "{once}");
        (first, second)
    }
}

#[test]
fn a_fixed_apt_build_downloads_no_package_again() {
    let project = Project::new(
        Tool::Apt,
        "FROM debian:bookworm-slim\nARG CHANGE\nRUN echo $CHANGE && apt-get update && apt-get install -y \\\n    --no-install-recommends tree \\\n && rm -rf /var/lib/apt/lists/*",
        &[],
    );
    let (first, second) = project.fixed(&["dpkg-query", "-W", "tree"]);
    assert!(!first.contains("Need to get 0 B") && first.contains("Need to get"), "{first}");
    assert!(second.contains("Need to get 0 B"), "{second}");
}

#[test]
fn a_fixed_pip_build_downloads_no_package_again() {
    let project = Project::new(
        Tool::Pip,
        "FROM debian:bookworm-slim\nARG CHANGE\nENV PIP_NO_CACHE_DIR=1\nCOPY requirements.txt .\nRUN pip install --no-cache-dir --break-system-packages --use-pep517 -r requirements.txt",
        &[("requirements.txt", "docopt==0.6.2\n")],
    );
    let (first, second) = project.fixed(&["pip", "list", "--format=freeze"]);
    // It has no wheel, and what pip builds itself it keeps, whatever the index says about caching.
    assert!(first.contains("Downloading docopt") && first.contains("Building wheel for docopt"), "{first}");
    assert!(!second.contains("Downloading") && !second.contains("Building wheel"), "{second}");
}

#[test]
fn a_fixed_cargo_build_downloads_no_crate_again() {
    let project = Project::new(
        Tool::Cargo,
        "FROM debian:bookworm-slim\nARG CHANGE\nWORKDIR /src\nCOPY Cargo.toml ./\nCOPY src src\nRUN cargo fetch\nRUN cargo build\nCMD [\"/src/target/debug/user\"]",
        &[
            (
                "Cargo.toml",
                "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\nitoa = \"1\"\n",
            ),
            ("src/main.rs", "fn main() { println!(\"{}\", itoa::Buffer::new().format(42)) }\n"),
        ],
    );
    let (first, second) = project.fixed(&["/src/target/debug/user"]);
    assert!(first.contains("Downloaded itoa"), "{first}");
    assert!(!second.contains("Downloaded"), "{second}");
}

#[test]
fn a_fixed_npm_build_fills_the_mount() {
    let script = Tool::Npm.script();
    let project = Project::new(Tool::Npm, &format!("FROM debian:bookworm-slim\nARG CHANGE\nRUN {script}"), &[]);
    project.fixed(&["ls", "/tmp/user/node_modules"]);
    let mounts = project.engine.mounts();
    assert!(mounts.iter().any(|mount| mount["Size"].as_u64() > Some(0)), "{mounts:?}");
}
