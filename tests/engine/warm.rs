//! `docker cache warm` with real package managers: what it fetched is enough when the network is cut.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::debian::{Tool, proxies};
use crate::support::process::{Background, Run};
use crate::support::world::write_files;
use crate::support::{Engine, Generation, parts};

/// Serves a folder on loopback in the engine's network.
fn serve(engine: &Engine, folder: &Path) -> Background {
    let words = engine.network();
    let busybox = parts::busybox().display().to_string();
    let folder = folder.display().to_string();
    let mut call: Vec<&str> = words.iter().map(String::as_str).collect();
    call.extend([busybox.as_str(), "httpd", "-f", "-p", "127.0.0.1:8099", "-h", &folder]);
    Background::start(&call, |_| {})
}

fn shell(folder: &Path, script: &str) -> Run {
    Run::of(Command::new("sh").args(["-ec", script]).current_dir(folder)).ok()
}

/// Makes a package of npm's and a module of go's in `served`, and projects that need them in `project`.
fn npm_and_go(served: &Path, project: &Path) {
    write_files(
        served,
        &[
            ("package/package.json", r#"{"name":"small","version":"1.0.0"}"#),
            ("package/index.js", "module.exports = 1"),
            ("example.com/small/@v/list", "v1.0.0\n"),
            ("example.com/small/@v/v1.0.0.info", r#"{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z"}"#),
            ("example.com/small/@v/v1.0.0.mod", "module example.com/small\n"),
        ],
    );
    shell(served, "tar -czf small-1.0.0.tgz package");
    let module = "import zipfile\nz = zipfile.ZipFile('example.com/small/@v/v1.0.0.zip', 'w')\n\
                  z.writestr('example.com/small@v1.0.0/go.mod', 'module example.com/small\\n')\n\
                  z.writestr('example.com/small@v1.0.0/small.go', 'package small\\n\\nconst One = 1\\n')\n";
    Run::of(Command::new("python3").args(["-c", module]).current_dir(served)).ok();
    write_files(
        project,
        &[
            ("web/package.json", r#"{"name":"web","version":"1.0.0","dependencies":{"small":"1.0.0"}}"#),
            (
                "web/package-lock.json",
                r#"{"name":"web","version":"1.0.0","lockfileVersion":2,"requires":true,"packages":{
                "":{"name":"web","version":"1.0.0","dependencies":{"small":"1.0.0"}},
                "node_modules/small":{"version":"1.0.0","resolved":"http://127.0.0.1:8099/small-1.0.0.tgz"}},
                "dependencies":{"small":{"version":"1.0.0","resolved":"http://127.0.0.1:8099/small-1.0.0.tgz"}}}"#,
            ),
            (
                "web/Dockerfile",
                "FROM debian-npm:bench\nRUN --mount=type=cache,target=/root/.npm,sharing=locked npm ci\n",
            ),
            ("api/go.mod", "module api\n\ngo 1.19\n\nrequire example.com/small v1.0.0\n"),
            ("api/go.sum", ""),
            ("api/main.go", "package main\n\nimport \"example.com/small\"\n\nfunc main() { println(small.One) }\n"),
            (
                "api/Dockerfile",
                "FROM debian-go:bench\nENV GOFLAGS=-mod=mod GONOSUMDB=* GONOSUMCHECK=1 GOSUMDB=off\n\
                 RUN --mount=type=cache,id=modules,target=/root/go/pkg/mod go mod download\n",
            ),
        ],
    );
}

#[test]
fn npm_and_go_need_no_network_after_a_warm() {
    let engine = Engine::start(Generation::V26);
    let (npm, go) = (Tool::Npm.image(&engine), Tool::Go.image(&engine));
    let folder = engine.folder().join("home");
    let (served, project) = (folder.join("served"), folder.join("project"));
    npm_and_go(&served, &project);
    let _server = serve(&engine, &served);
    let volume = engine.volume("project-cache", &[]);
    let proxy = ["--network=host", "--env=GOPROXY=http://127.0.0.1:8099"];
    let warm = |more: &[&str]| {
        Run::of(engine.cache_command(&[&["warm", "project"], &proxy[..], more].concat()).current_dir(&folder))
    };

    let before = engine.records().len();
    let planned = warm(&["--volume=project-cache", "--dry-run"]).ok();
    assert!(planned.stdout.contains("npm ci --ignore-scripts"), "{planned}");
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0, "a dry run fills nothing");

    // Volumes: what the containers have afterwards is all they need.
    let run = warm(&["--volume=project-cache"]).ok();
    assert!(volume.join("npm/_cacache/content-v2").is_dir() && volume.join("go-mod/cache/download").is_dir(), "{run}");
    let offline = |image: &str, env: &str, at: &str, script: &str| {
        let source = format!("--volume={}:/src:ro", project.join(at).display());
        let script = format!("cp -r /src /tmp/w && cd /tmp/w && {script}");
        let words =
            ["run", "--rm", "--network=none", "--volume=project-cache:/cache", &source, env, image, "sh", "-ec"];
        engine.docker(&[&words[..], &[&script]].concat())
    };
    offline(
        &npm,
        "--env=npm_config_cache=/cache/npm",
        "web",
        "npm ci --offline && test -e node_modules/small/index.js",
    );
    let go_build = "GOFLAGS=-mod=mod GOPROXY=off GOSUMDB=off CGO_ENABLED=0 go build -o /tmp/x . && /tmp/x";
    offline(&go, "--env=GOMODCACHE=/cache/go-mod", "api", go_build);

    // Mounts: the project's own steps find all that they need.
    let run = warm(&[]).ok();
    assert_eq!(engine.mounts().len(), 2, "{run}");
    let names: Vec<_> = engine.records().iter().map(|record| record["Description"].to_string()).collect();
    assert!(
        !names.iter().any(|name| name.contains("docker-cache-helper") || name.contains("mount / from")),
        "{names:#?}"
    );
    assert!(engine.records().len() <= before + 8, "{names:#?}");
    let build = |at: &str, dockerfile: &str| {
        fs::write(project.join(at).join("Offline"), dockerfile).unwrap();
        let context = project.join(at).display().to_string();
        engine.docker(&["build", "--network=none", "--file", &format!("{context}/Offline"), &context])
    };
    build(
        "web",
        "FROM debian-npm:bench\nWORKDIR /w\nCOPY package*.json ./\nRUN --mount=type=cache,target=/root/.npm,sharing=locked npm ci --offline\n",
    );
    build(
        "api",
        &format!(
            "FROM debian-go:bench\nWORKDIR /w\nCOPY . .\nRUN --mount=type=cache,id=modules,target=/root/go/pkg/mod {go_build}\n"
        ),
    );

    // A tool that is not there is said, and the others go on.
    let missing = warm(&["--volume=project-cache", "--image=debian-go:bench", "--env=GOSUMDB=off"]);
    assert_eq!(missing.code, 1, "{missing}");
    assert!(missing.stderr.contains("there is no `npm` in debian-go:bench"), "{missing}");
    assert!(missing.stderr.contains("✓ go  api/go.sum"), "{missing}");
    let left = engine.docker(&["ps", "--all", "--quiet"]).stdout;
    assert_eq!(left, "", "containers are gone");
}

#[test]
fn pip_and_cargo_need_no_network_after_a_warm() {
    let engine = Engine::online(Generation::V28);
    let (pip, cargo) = (Tool::Pip.image(&engine), Tool::Cargo.image(&engine));
    let folder = engine.folder().join("home");
    write_files(
        &folder.join("project"),
        &[
            ("requirements.txt", "six==1.16.0\n"),
            (
                "Dockerfile",
                &format!("FROM {pip}\nRUN --mount=type=cache,target=/cache pip install -r requirements.txt\n"),
            ),
            (
                "rust/Cargo.toml",
                "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[dependencies]\nitoa = \"1\"\n",
            ),
            ("rust/src/lib.rs", "pub use itoa::Buffer;\n"),
            ("rust/Dockerfile", &format!("FROM {cargo}\nRUN cargo build\n")),
        ],
    );
    let rust = format!("--volume={}:/src", folder.join("project/rust").display());
    let proxies: Vec<String> = proxies().map(|proxy| format!("--env={proxy}")).collect();
    let proxies: Vec<&str> = proxies.iter().map(String::as_str).collect();
    let lock = ["run", "--rm", "--network=host", &rust, "--workdir=/src"];
    engine.docker(&[&lock[..], &proxies[..], &[&cargo, "cargo", "generate-lockfile"]].concat());
    let volume = engine.volume("project-cache", &[]);
    let warm = ["warm", "project", "--volume=project-cache", "--network=host", "--format=json"];
    let run = Run::of(engine.cache_command(&[&warm[..], &proxies[..]].concat()).current_dir(&folder)).ok();
    let answer: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(answer["downloads"].as_array().unwrap().len(), 2, "{run}");
    assert!(volume.join("pip/wheelhouse").is_dir() && volume.join("cargo/registry/cache").is_dir(), "{run}");

    let offline = |image: &str, script: &str| {
        let source = format!("--volume={}:/src:ro", folder.join("project").display());
        let words = [
            "run",
            "--rm",
            "--network=none",
            "--volume=project-cache:/cache",
            &source,
            "--env=CARGO_HOME=/cache/cargo",
        ];
        engine.docker(&[&words[..], &[image, "sh", "-ec", script]].concat())
    };
    offline(&pip, "pip install --no-index --find-links /cache/pip/wheelhouse --target /tmp/x -r /src/requirements.txt");
    offline(&cargo, "cp -r /src/rust /tmp/w && cd /tmp/w && cargo build --offline");
}

#[test]
fn uv_needs_no_network_after_a_warm() {
    let engine = Engine::online(Generation::V28);
    let proxies = |flag: &str| proxies().map(|proxy| format!("{flag}={proxy}")).collect::<Vec<_>>();
    let docker = |words: &[&str], more: &[String], rest: &[&str]| {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        engine.docker(&[words, &more, rest].concat())
    };
    let project = engine.folder().join("home/project");
    let image = format!("FROM {}\nRUN pip install --break-system-packages uv\n", Tool::Pip.image(&engine));
    write_files(
        &project,
        &[
            ("uv/Dockerfile", &image),
            ("Dockerfile", "FROM debian-uv:bench\nRUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen\n"),
            (
                "pyproject.toml",
                "[project]\nname = \"user\"\nversion = \"1\"\nrequires-python = \">=3.9\"\ndependencies = [\"six==1.16.0\"]\n",
            ),
        ],
    );
    let context = project.join("uv").display().to_string();
    docker(&["build", "--network=host", "--tag=debian-uv:bench"], &proxies("--build-arg"), &[&context]);
    let source = format!("--volume={}:/src", project.display());
    // The machine's own authorities count, as they do for pip.
    let certificates = ["--env=UV_SYSTEM_CERTS=1", "--env=UV_NATIVE_TLS=1"];
    let lock = [&["run", "--rm", "--network=host", &source, "--workdir=/src"], &certificates[..]].concat();
    docker(&lock, &proxies("--env"), &["debian-uv:bench", "uv", "lock"]);
    let volume = engine.volume("project-cache", &[]);
    let warm = [&["warm", "project", "--volume=project-cache", "--network=host"], &certificates[..]].concat();
    let variables = proxies("--env");
    let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
    let run =
        Run::of(engine.cache_command(&[&warm[..], &variables].concat()).current_dir(engine.folder().join("home")));
    assert!(run.code == 0 && run.stderr.contains("✓ uv  uv.lock"), "{run}");
    assert!(volume.join("uv").is_dir() && !project.join(".venv").exists(), "{run}");
    let offline = "cp /src/pyproject.toml /src/uv.lock /tmp && cd /tmp && uv sync --frozen --offline --no-install-project && \
                   .venv/bin/python -c 'import six'";
    let words =
        ["run", "--rm", "--network=none", "--volume=project-cache:/cache", "--env=UV_CACHE_DIR=/cache/uv", &source];
    docker(&words, &[], &["debian-uv:bench", "sh", "-ec", offline]);
}
