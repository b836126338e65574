//! `docker cache warm` with real package managers: what it fetched is enough when the network is cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::for_each_engine;
use crate::support::debian::{Image, Tool, proxies};
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

/// Serves a folder on loopback as Python's index serves: a page must be asked for again each time, a package never.
fn serve_index(engine: &Engine, folder: &Path) -> Background {
    let words = engine.network();
    let folder = folder.display().to_string();
    let mut call: Vec<&str> = words.iter().map(String::as_str).collect();
    call.extend(["python3", "-c", INDEX_SERVER, &folder]);
    Background::start(&call, |command| {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    })
}

const INDEX_SERVER: &str = r#"
import http.server, os, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        package = self.path.endswith('.whl')
        self.send_header('Cache-Control', 'max-age=365000000, immutable' if package else 'no-cache')
        super().end_headers()

os.chdir(sys.argv[1])
http.server.ThreadingHTTPServer(('127.0.0.1', 8099), Handler).serve_forever()
"#;

/// Returns where the projects of a test lie.
fn project(engine: &Engine) -> PathBuf {
    engine.folder().join("home/project")
}

/// Fills, with the network that the served folder is on.
fn warm(engine: &Engine, words: &[&str]) -> Run {
    let words = [&["warm", "project", "--network=host"], words].concat();
    Run::of(engine.cache_command(&words).current_dir(engine.folder().join("home")))
}

/// Runs a script in a copy of a directory of the project, with the volume and without any network.
#[track_caller]
fn offline(engine: &Engine, image: &str, at: &str, script: &str) {
    run_copy(engine, "none", image, at, script);
}

#[track_caller]
fn run_copy(engine: &Engine, network: &str, image: &str, at: &str, script: &str) {
    let network = format!("--network={network}");
    let source = format!("--volume={}:/src:ro", project(engine).join(at).display());
    let script = format!("cp -r /src /tmp/w && cd /tmp/w && {script}");
    engine.docker(&["run", "--rm", &network, "--volume=project-cache:/cache", &source, image, "sh", "-ec", &script]);
}

/// Builds a directory of the project without any network.
#[track_caller]
fn offline_build(engine: &Engine, image: &str, at: &str, step: &str) {
    build_copy(engine, "none", image, at, step);
}

#[track_caller]
fn build_copy(engine: &Engine, network: &str, image: &str, at: &str, step: &str) {
    let context = project(engine).join(at).display().to_string();
    let dockerfile = format!("{context}/Offline");
    fs::write(&dockerfile, format!("FROM {image}\nWORKDIR /w\nCOPY . .\n{step}\n")).unwrap();
    engine.docker(&["build", &format!("--network={network}"), "--file", &dockerfile, &context]);
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
    let served = engine.folder().join("home/served");
    npm_and_go(&served, &project(&engine));
    let _server = serve(&engine, &served);
    let volume = engine.volume("project-cache", &[]);
    let warm = |words: &[&str]| {
        let words = [&["warm", "project", "--network=host", "--env=GOPROXY"], words].concat();
        let mut command = engine.cache_command(&words);
        Run::of(command.env("GOPROXY", "http://127.0.0.1:8099").current_dir(engine.folder().join("home")))
    };

    let before = engine.records().len();
    let planned = warm(&["--volume=project-cache", "--dry-run"]).ok();
    assert!(planned.stdout.contains("npm ci --ignore-scripts"), "{planned}");
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0, "a dry run fills nothing");

    // Volumes: what the containers have afterwards is all they need.
    let run = warm(&["--volume=project-cache"]).ok();
    assert_eq!(run.stdout, planned.stdout, "the plan is shown alike");
    assert!(volume.join("npm/_cacache/content-v2").is_dir() && volume.join("go-mod/cache/download").is_dir(), "{run}");
    let npm_ci = "npm ci --offline && test -e node_modules/small/index.js";
    offline(&engine, &npm, "web", &format!("npm_config_cache=/cache/npm {npm_ci}"));
    let go_build = "GOFLAGS=-mod=mod GOPROXY=off GOSUMDB=off CGO_ENABLED=0 go build -o /tmp/x . && /tmp/x";
    offline(&engine, &go, "api", &format!("export GOMODCACHE=/cache/go-mod; {go_build}"));

    // Mounts: the project's own steps find all that they need.
    let run = warm(&[]).ok();
    assert_eq!(engine.mounts().len(), 2, "{run}");
    let names: Vec<_> = engine.records().iter().map(|record| record["Description"].to_string()).collect();
    assert!(
        !names.iter().any(|name| name.contains("docker-cache-helper") || name.contains("mount / from")),
        "{names:#?}"
    );
    assert!(engine.records().len() <= before + 8, "{names:#?}");
    offline_build(&engine, &npm, "web", &format!("RUN --mount=type=cache,target=/root/.npm,sharing=locked {npm_ci}"));
    let modules = format!("RUN --mount=type=cache,id=modules,target=/root/go/pkg/mod {go_build}");
    offline_build(&engine, &go, "api", &modules);

    // A tool that is not there is said, and the others go on.
    let missing = warm(&["--volume=project-cache", "--image=debian-go:bench", "--env=GOSUMDB=off"]);
    assert_eq!(missing.code, 1, "{missing}");
    assert!(missing.stderr.contains("there is no `npm` in debian-go:bench"), "{missing}");
    assert!(missing.stderr.contains("✓ go  api/go.sum"), "{missing}");
    // What a tool says of its server is not taken for the engine's.
    engine.docker(&["volume", "create", "go-mod-cache"]);
    let refused = warm(&["--volume=go-mod-cache", "--tool=go", "--env=GOPROXY=http://127.0.0.1:9"]);
    assert!(refused.code == 1 && refused.stderr.contains("connect: connection refused"), "{refused}");
    assert!(!refused.stderr.contains("Docker daemon"), "{refused}");
    let left = engine.docker(&["ps", "--all", "--quiet"]).stdout;
    assert_eq!(left, "", "containers are gone");
}

for_each_engine!(no_list_of_processes_shows_what_the_variables_of_a_container_are, [v20, v28], |engine| {
    let tool =
        "printf '#!/bin/busybox sh\\n/bin/busybox env > /cache/env\\n' > /bin/npm; /bin/busybox chmod 755 /bin/npm";
    engine.build(&format!("RUN {tool}"), &["--tag", "box"]);
    let volume = engine.volume("project-cache", &[]);
    let folder = project(engine);
    write_files(&folder, &[("package-lock.json", "{}"), ("package.json", "{}")]);
    let given = ["TOKEN= s3cret 'of # mine", "DOCKER_HOST=tcp://127.0.0.1:9", "LD_PRELOAD=/none", "#NO=s3cret"];
    let flags: Vec<String> = given.iter().map(|pair| format!("--env={pair}")).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let create = ["create", "--volume=project-cache:/cache", "--env=KEY=one\ns3cret"];
    engine.docker(&[&create, &flags[..], &["box", "npm"]].concat());
    let (run, calls) = engine.cache_told(&["warm", &folder.display().to_string(), "--volume=project-cache"]);
    let run = run.ok();
    let told = fs::read_to_string(volume.join("env")).unwrap();
    assert!(given[..3].iter().all(|pair| told.lines().any(|line| line == *pair)), "{told} {run}");
    assert!(calls.contains("docker create --name") && !calls.contains("s3cret"), "{calls}");
    assert!(!told.contains("KEY") && run.stderr.contains("the variable KEY is left out"), "{told} {run}");
});

#[test]
fn pip_and_cargo_need_no_network_after_a_warm() {
    let engine = Engine::online(Generation::V28);
    let (pip, cargo) = (Tool::Pip.image(&engine), Tool::Cargo.image(&engine));
    let folder = engine.folder().join("home");
    write_files(
        &folder.join("project"),
        &[
            ("py/requirements.txt", "-r needed/base.txt\n"),
            ("py/needed/base.txt", "six\n-c ../../pins.txt\n"),
            ("pins.txt", "six==1.16.0\n"),
            (
                "py/Dockerfile",
                &format!(
                    "FROM {pip}\nRUN --mount=type=cache,target=/root/.cache/pip pip install -r requirements.txt\n"
                ),
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
    let warm = ["warm", "project", "--tool=pip", "--network=host"];
    Run::of(engine.cache_command(&[&warm[..], &proxies[..]].concat()).current_dir(&folder)).ok();

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
    offline(
        &pip,
        "pip install --no-index --find-links /cache/pip/wheelhouse --target /tmp/x -r /src/py/requirements.txt",
    );
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

/// Makes an index of gems, a package of PHP's, and projects that need them: two that share the gems' cache.
fn gems_and_php(engine: &Engine, served: &Path) {
    let gem = |name: &str| {
        let lines = "s.version='1'; s.summary=s.name; s.authors=['a']; s.files=[]";
        format!("Gem::Specification.new{{|s| s.name='{name}'; {lines}}}")
    };
    write_files(
        served,
        &[
            ("small.gemspec", &gem("small")),
            ("tiny.gemspec", &gem("tiny")),
            ("php/composer.json", r#"{"name":"acme/small","autoload":{"classmap":["."]}}"#),
            ("php/small.php", "<?php class Small {}"),
        ],
    );
    let index = "cd /served && gem build small.gemspec && gem build tiny.gemspec && mkdir gems && mv *.gem gems && \
                 gem generate_index";
    let volume = format!("--volume={}:/served", served.display());
    let image = Image::BUNDLER.import(engine);
    engine.docker(&["run", "--rm", "--network=none", &volume, &image, "sh", "-ec", index]);
    let zip = "import zipfile\nz = zipfile.ZipFile('small.zip', 'w')\n\
               for name in 'composer.json', 'small.php': z.write('php/' + name)\n";
    Run::of(Command::new("python3").args(["-c", zip]).current_dir(served)).ok();
    let lock = |name: &str| {
        format!(
            "GEM\n  remote: http://127.0.0.1:8099/\n  specs:\n    {name} (1)\n\n\
             PLATFORMS\n  ruby\n\nDEPENDENCIES\n  {name}\n\nBUNDLED WITH\n   2.3.15\n"
        )
    };
    let ruby = format!("FROM {image}\nENV GEM_HOME=/usr/local/bundle\nRUN {GEMS} bundle install\n");
    let php = format!("FROM {}\nRUN {PHP} composer install\n", Image::COMPOSER.import(engine));
    write_files(
        &project(engine),
        &[
            ("one/Gemfile", "source 'http://127.0.0.1:8099'\ngem 'small'\n"),
            ("one/Gemfile.lock", &lock("small")),
            ("one/Dockerfile", &ruby),
            ("two/Gemfile", "source 'http://127.0.0.1:8099'\ngem 'tiny'\n"),
            ("two/Gemfile.lock", &lock("tiny")),
            (
                "php/composer.json",
                r#"{"name":"acme/user","config":{"secure-http":false},"repositories":[{"packagist.org":false}],
                "require":{"acme/small":"1.0.0","ext-of-another-image":"*"}}"#,
            ),
            (
                "php/composer.lock",
                r#"{"content-hash":"0","packages":[{"name":"acme/small","version":"1.0.0","type":"library",
                "dist":{"type":"zip","url":"http://127.0.0.1:8099/small.zip","reference":"0123456789","shasum":""},
                "autoload":{"classmap":["."]}}],"packages-dev":[],"platform":{"ext-of-another-image":"*"}}"#,
            ),
            ("php/Dockerfile", &php),
        ],
    );
}

const GEMS: &str = "--mount=type=cache,target=/usr/local/bundle/cache,sharing=locked";
const PHP: &str = "--mount=type=cache,target=/root/.composer/cache";

#[test]
fn bundler_and_composer_need_no_network_after_a_warm() {
    let engine = Engine::start(Generation::V28);
    let served = engine.folder().join("home/served");
    gems_and_php(&engine, &served);
    let server = serve(&engine, &served);
    let (bundler, composer) = (Image::BUNDLER.import(&engine), Image::COMPOSER.import(&engine));
    let volume = engine.volume("project-cache", &[]);

    let run = warm(&engine, &["--volume=project-cache"]).ok();
    let gems = volume.join("ruby/bundle/cache");
    assert!(
        gems.join("small-1.gem").exists() && gems.join("tiny-1.gem").exists(),
        "one project keeps the other's: {run}"
    );
    assert!(volume.join("composer/cache/files/acme/small").is_dir(), "{run}");
    let run = warm(&engine, &[]).ok();
    assert_eq!(engine.mounts().len(), 2, "{run}");
    let missing = warm(&engine, &[&format!("--image={bundler}")]);
    assert_eq!(missing.code, 1, "{missing}");
    assert!(missing.stderr.contains(&format!("there is no `composer` in {bundler}")), "{missing}");
    assert!(missing.stderr.contains("✓ bundler  one/Gemfile.lock"), "{missing}");

    drop(server);
    let install =
        |cache: &str| format!("BUNDLE_NO_PRUNE=1 BUNDLE_CACHE_PATH={cache} bundle install --local && bundle exec true");
    for at in ["one", "two"] {
        offline(&engine, &bundler, at, &install("/cache/ruby/bundle/cache"));
        offline_build(&engine, &bundler, at, &format!("RUN {GEMS} {}", install("/usr/local/bundle/cache")));
    }
    let install = "composer install --ignore-platform-reqs && php -r 'require \"vendor/autoload.php\"; new Small();'";
    offline(&engine, &composer, "php", &format!("export COMPOSER_HOME=/cache/composer; {install}"));
    offline_build(&engine, &composer, "php", &format!("RUN {PHP} {install}"));
}

/// Serves a package as npm's registry does, and returns its digest.
fn npm_registry(served: &Path) -> String {
    write_files(
        served,
        &[
            (
                "package/package.json",
                r#"{"name":"small","version":"1.0.0","scripts":{"postinstall":"touch /cache/ran"}}"#,
            ),
            ("package/index.js", "module.exports = 1"),
        ],
    );
    let pack = "tar -czf small.tgz package && openssl dgst -sha512 -binary small.tgz | base64 -w0";
    let digest = shell(served, pack).stdout;
    let small = format!(
        r#"{{"name":"small","dist-tags":{{"latest":"1.0.0"}},"versions":{{"1.0.0":{{"name":"small","version":"1.0.0",
        "dist":{{"tarball":"http://127.0.0.1:8099/small.tgz","integrity":"sha512-{digest}"}}}}}}}}"#
    );
    write_files(served, &[("small", &small)]);
    digest
}

/// Each in its own directory: yarn 1, yarn 3 as a project carries it along, bun.
#[test]
fn yarn_and_bun_need_no_network_after_a_warm_and_run_no_scripts() {
    let engine = Engine::start(Generation::V28);
    let served = engine.folder().join("home/served");
    npm_registry(&served);
    let image = "debian-nodes:yarn";
    engine.build(&format!("FROM {}\nRUN ln -s yarnpkg /usr/bin/yarn", Image::NODES.import(&engine)), &["--tag", image]);
    engine.docker(&["tag", image, "debian-nodes:berry"]);
    let package = r#"{"name":"web","version":"1.0.0","license":"MIT","dependencies":{"small":"1.0.0"}}"#;
    let mount = |target: &str| format!("RUN --mount=type=cache,target={target},sharing=locked");
    let dockerfile = |target: &str, install: &str| format!("FROM {image}\n{} {install}\n", mount(target));
    let (classic, berry, bun) = ("/usr/local/share/.cache/yarn", "/root/.yarn/berry/cache", "/root/.bun/install/cache");
    write_files(
        &project(&engine),
        &[
            ("classic/package.json", package),
            (
                "classic/yarn.lock",
                "# yarn lockfile v1\n\n\nsmall@1.0.0:\n  version \"1.0.0\"\n  \
                 resolved \"http://127.0.0.1:8099/small.tgz\"\n",
            ),
            ("classic/Dockerfile", &dockerfile(classic, "yarn install --frozen-lockfile")),
            ("berry/package.json", package),
            (
                "berry/.yarnrc.yml",
                "yarnPath: .yarn/releases/yarn-3.5.0.cjs\nnpmRegistryServer: http://127.0.0.1:8099\n\
                 unsafeHttpWhitelist: [127.0.0.1]\nenableTelemetry: false\n",
            ),
            ("berry/Dockerfile", &dockerfile(berry, "yarn install --immutable").replace(image, "debian-nodes:berry")),
            ("bun/package.json", package),
            ("bun/bunfig.toml", "[install]\nregistry = \"http://127.0.0.1:8099\"\n"),
            ("bun/Dockerfile", &dockerfile(bun, "bun install --frozen-lockfile")),
        ],
    );
    let server = serve(&engine, &served);
    let source = format!("--volume={}:/src", project(&engine).display());
    let lock = "cd /src/berry && mkdir -p .yarn/releases && touch yarn.lock && \
                cp /usr/local/lib/python3*/dist-packages/jupyter_builder/yarn.js .yarn/releases/yarn-3.5.0.cjs && \
                yarn install --mode=update-lockfile && rm -rf .yarn/cache && cd ../bun && bun install --lockfile-only";
    engine.docker(&["run", "--rm", "--network=host", &source, image, "sh", "-ec", lock]);
    let volume = engine.volume("project-cache", &[]);
    let run = warm(&engine, &["--volume=project-cache"]).ok();
    assert!(volume.join("yarn/v6").is_dir() && volume.join("yarn-berry/cache").is_dir(), "{run}");
    assert!(run.stdout.contains(" debian-nodes:berry "), "{run}");
    assert!(volume.join("bun/install/cache").is_dir() && !volume.join("ran").exists(), "{run}");
    let run = warm(&engine, &[]).ok();
    assert_eq!(engine.mounts().len(), 3, "{run}");
    drop(server);
    let needs = "node -e 'require(\"small\")'";
    let install = format!("yarn install --offline --frozen-lockfile --ignore-scripts && {needs}");
    offline(&engine, image, "classic", &format!("export YARN_CACHE_FOLDER=/cache/yarn; {install}"));
    offline_build(&engine, image, "classic", &format!("{} {install}", mount(classic)));
    // What yarn 4 does unasked is to read the global cache alone.
    let install = "export YARN_ENABLE_SCRIPTS=false; yarn install --immutable && yarn node -e 'require(\"small\")'";
    offline(&engine, image, "berry", &format!("export YARN_GLOBAL_FOLDER=/cache/yarn-berry; {install}"));
    offline_build(&engine, image, "berry", &format!("{} {install}", mount(berry)));
    let global = "export YARN_ENABLE_GLOBAL_CACHE=true;";
    offline_build(&engine, image, "berry", &format!("{} {global} {install}", mount(berry)));
    let install = format!("bun install --frozen-lockfile && {needs}");
    offline(&engine, image, "bun", &format!("export BUN_INSTALL=/cache/bun; {install}"));
    offline_build(&engine, image, "bun", &format!("{} {install}", mount(bun)));
}

/// Starts a container "server" with what Debian builds Java programs with, which such an image has laid out as a server has it.
fn serve_java(engine: &Engine, image: &str) {
    let busybox = format!("--volume={}:/busybox:ro", parts::busybox().display());
    let serve = ["/busybox", "httpd", "-f", "-p", "127.0.0.1:8099", "-h", "/usr/share/maven-repo"];
    engine.docker(&[&["run", "--detach", "--name=server", "--network=host", &busybox, image], &serve[..]].concat());
}

#[test]
fn maven_needs_no_network_after_a_warm() {
    let engine = Engine::start(Generation::V28);
    let image = Image::MAVEN.import(&engine);
    let repository = |of: &str| {
        format!(
            "<{of}><id>central</id><url>http://127.0.0.1:8099/</url>\
             <releases><checksumPolicy>ignore</checksumPolicy></releases></{of}>"
        )
    };
    let module = |name: &str, more: &str| {
        format!(
            "<project><modelVersion>4.0.0</modelVersion><artifactId>{name}</artifactId>{more}\
             <parent><groupId>com.example</groupId><artifactId>user</artifactId><version>1</version></parent></project>"
        )
    };
    let needs = |group: &str, name: &str, version: &str| {
        format!(
            "<dependencies><dependency><groupId>{group}</groupId><artifactId>{name}</artifactId>\
             <version>{version}</version></dependency></dependencies>"
        )
    };
    let pom = format!(
        "<project><modelVersion>4.0.0</modelVersion><groupId>com.example</groupId><artifactId>user</artifactId>\
         <version>1</version><packaging>pom</packaging><modules><module>one</module><module>two</module></modules>\
         <repositories>{}</repositories><pluginRepositories>{}</pluginRepositories><build><pluginManagement><plugins>\
         <plugin><artifactId>maven-site-plugin</artifactId><version>3.12.1</version></plugin>\
         </plugins></pluginManagement></build></project>",
        repository("repository"),
        repository("pluginRepository"),
    );
    let mount = "RUN --mount=type=cache,target=/root/.m2/repository,sharing=locked";
    write_files(
        &project(&engine),
        &[
            ("pom.xml", &pom),
            ("one/pom.xml", &module("one", &needs("commons-io", "commons-io", "2.11.0"))),
            ("two/pom.xml", &module("two", &needs("com.example", "one", "1"))),
            ("Dockerfile", &format!("FROM {image}\n{mount} mvn package\n")),
        ],
    );
    serve_java(&engine, &image);
    let volume = engine.volume("project-cache", &[]);
    let run = warm(&engine, &["--volume=project-cache"]).ok();
    assert!(volume.join("maven/repository/commons-io/commons-io/2.11.0").is_dir(), "{run}");
    warm(&engine, &[]).ok();
    engine.docker(&["rm", "--force", "server"]);
    offline(&engine, &image, "", "mvn --batch-mode -o -Dmaven.repo.local=/cache/maven/repository package");
    offline_build(&engine, &image, "", &format!("{mount} mvn --batch-mode -o package"));
}

#[test]
fn gradle_needs_no_network_after_a_warm() {
    let engine = Engine::start(Generation::V28);
    let image = Image::GRADLE.import(&engine);
    let module = |needs: &str| {
        format!(
            "apply plugin: 'java'\nrepositories {{ maven {{ url 'http://127.0.0.1:8099/' }} }}\n\
             dependencies {{ compile {needs} }}\n"
        )
    };
    let mount = "RUN --mount=type=cache,target=/root/.gradle,sharing=locked";
    write_files(
        &project(&engine),
        &[
            ("settings.gradle", "include 'one', 'two'\n"),
            ("build.gradle", ""),
            ("one/build.gradle", &module("'commons-io:commons-io:2.11.0'")),
            ("one/src/main/java/One.java", "class One { Object it = org.apache.commons.io.IOUtils.class; }"),
            ("two/build.gradle", &module("project(':one')")),
            ("Dockerfile", &format!("FROM {image}\n{mount} gradle build\n")),
        ],
    );
    serve_java(&engine, &image);
    let volume = engine.volume("project-cache", &[]);
    let run = warm(&engine, &["--volume=project-cache"]).ok();
    assert!(volume.join("gradle/caches/modules-2/files-2.1/commons-io").is_dir(), "{run}");
    assert_eq!(run.stderr.matches("✓ gradle").count(), 1, "{run}");
    warm(&engine, &[]).ok();
    engine.docker(&["rm", "--force", "server"]);
    let build = "gradle --no-daemon --offline build && test -s one/build/libs/one.jar";
    offline(&engine, &image, "", &format!("export GRADLE_USER_HOME=/cache/gradle; {build}"));
    offline_build(&engine, &image, "", &format!("{mount} {build}"));
}

/// Makes an index with one wheel.
const INDEX: &str = r#"
import base64, hashlib, os, zipfile

os.makedirs('simple/small')
info, wheel = 'small-1.0.0.dist-info/', 'small-1.0.0-py3-none-any.whl'
files = {
    'small.py': 'One = 1\n',
    info + 'METADATA': 'Metadata-Version: 2.1\nName: small\nVersion: 1.0.0\n',
    info + 'WHEEL': 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
}
digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')
files[info + 'RECORD'] = ''.join(f'{name},sha256={digest(text)},{len(text)}\n' for name, text in files.items())
with zipfile.ZipFile('simple/small/' + wheel, 'w') as archive:
    for name, text in files.items():
        archive.writestr(name, text)
told = hashlib.sha256(open('simple/small/' + wheel, 'rb').read()).hexdigest()
open('simple/small/index.html', 'w').write(f'<!DOCTYPE html><a href="{wheel}#sha256={told}">{wheel}</a>')
"#;

/// poetry, pdm and pipenv ask the index each time what there is, and then take what they have.
#[test]
fn poetry_pdm_and_pipenv_download_nothing_after_a_warm() {
    let engine = Engine::start(Generation::V28);
    let image = Image::PYTHONS.import(&engine);
    let served = engine.folder().join("home/served");
    fs::create_dir_all(&served).unwrap();
    Run::of(Command::new("python3").args(["-c", INDEX]).current_dir(&served)).ok();
    let pyproject =
        "[project]\nname = \"user\"\nversion = \"1\"\nrequires-python = \">=3.9\"\ndependencies = [\"small\"]\n";
    let index = "url = \"http://127.0.0.1:8099/simple/\"\n";
    // Of each: directory, variable and directory of the cache, manifest, how it locks and installs.
    let tools = [
        (
            "poetry",
            "POETRY_CACHE_DIR",
            "/root/.cache/pypoetry",
            format!("{pyproject}[tool.poetry]\npackage-mode = false\n[[tool.poetry.source]]\nname = \"here\"\n{index}"),
            "export POETRY_VIRTUALENVS_IN_PROJECT=true; poetry install --no-root",
        ),
        (
            "pdm",
            "PDM_CACHE_DIR",
            "/root/.cache/pdm",
            format!("{pyproject}[tool.pdm]\ndistribution = false\n[[tool.pdm.source]]\nname = \"pypi\"\n{index}"),
            "pdm sync --no-self",
        ),
        (
            "pipenv",
            "PIPENV_CACHE_DIR",
            "/root/.cache/pipenv",
            format!("[[source]]\nname = \"here\"\n{index}verify_ssl = false\n[packages]\nsmall = \"*\"\n"),
            "export PIPENV_VENV_IN_PROJECT=1; pipenv sync",
        ),
    ];
    let _server = serve_index(&engine, &served);
    for (tool, _, target, manifest, install) in &tools {
        let name = if *tool == "pipenv" { "Pipfile" } else { "pyproject.toml" };
        let dockerfile = format!("FROM {image}\nRUN --mount=type=cache,target={target},sharing=locked {install}\n");
        let at = project(&engine).join(tool);
        write_files(&at, &[(name, manifest), ("Dockerfile", &dockerfile)]);
        let source = format!("--volume={}:/src", at.display());
        let lock = format!("cp {name} /tmp && cd /tmp && {tool} lock && cp *.lock /src");
        engine.docker(&["run", "--rm", "--network=host", &source, "--workdir=/src", &image, "sh", "-ec", &lock]);
    }
    engine.docker(&["volume", "create", "project-cache"]);
    warm(&engine, &["--volume=project-cache"]).ok();
    warm(&engine, &["--tool=poetry"]).ok();
    fs::remove_file(served.join("simple/small/small-1.0.0-py3-none-any.whl")).unwrap();
    for (tool, variable, target, _, install) in &tools {
        let install = format!("{install} && .venv/bin/python -c 'import small'");
        run_copy(&engine, "host", &image, tool, &format!("export {variable}=/cache/{tool}; {install}"));
        // Where the cache lies makes no difference to them: one mount stands for all, for the time that it takes.
        if *tool == "poetry" {
            let step = format!("RUN --mount=type=cache,target={target},sharing=locked {install}");
            build_copy(&engine, "host", &image, tool, &step);
        }
    }
}

#[test]
fn deno_needs_no_network_after_a_warm() {
    let engine = Engine::start(Generation::V28);
    let image = "debian-deno:npm";
    let registry = "ENV NPM_CONFIG_REGISTRY=http://127.0.0.1:8099";
    engine.build(&format!("FROM {}\n{registry}", Image::PYTHONS.import(&engine)), &["--tag", image]);
    let served = engine.folder().join("home/served");
    let digest = npm_registry(&served);
    let lock = format!(
        r#"{{"version":"5","specifiers":{{"npm:small@1.0.0":"1.0.0"}},"npm":{{"small@1.0.0":{{"integrity":"sha512-{digest}",
        "tarball":"http://127.0.0.1:8099/small.tgz"}}}},"workspace":{{"dependencies":["npm:small@1.0.0"]}}}}"#
    );
    let mount = "RUN --mount=type=cache,target=/root/.cache/deno";
    write_files(
        &project(&engine),
        &[
            ("deno.json", r#"{"imports":{"small":"npm:small@1.0.0"}}"#),
            ("deno.lock", &lock),
            ("main.ts", "import one from \"small\"; console.log(one)"),
            ("Dockerfile", &format!("FROM {image}\n{mount} deno install\n")),
        ],
    );
    let server = serve(&engine, &served);
    engine.docker(&["volume", "create", "project-cache"]);
    warm(&engine, &["--volume=project-cache", "--image", image]).ok();
    warm(&engine, &[]).ok();
    drop(server);
    let run = "deno run --frozen --cached-only main.ts";
    offline(&engine, image, "", &format!("export DENO_DIR=/cache/deno; {run}"));
    offline_build(&engine, image, "", &format!("{mount} {run}"));
}

#[test]
fn hex_needs_no_network_after_a_warm() {
    let engine = Engine::start(Generation::V28);
    let image = Image::ELIXIR.import(&engine);
    let served = engine.folder().join("home/served");
    let mix = |name: &str, more: &str| {
        format!(
            "defmodule :{name}_mix do\n  use Mix.Project\n  def project, do: [app: :{name}, version: \"1.0.0\", {more}]\nend\n"
        )
    };
    let about = "description: \"d\", package: [licenses: [\"MIT\"], links: %{}, files: [\"lib\", \"mix.exs\"]]";
    write_files(
        &served,
        &[("small/mix.exs", &mix("small", about)), ("small/lib/small.ex", "defmodule Small do def one, do: 1 end")],
    );
    let mount = "RUN --mount=type=cache,target=/root/.hex";
    // Signed by a key of its own, under the name that a mirror has.
    let mirror = "HEX_MIRROR=http://127.0.0.1:8099 HEX_UNSAFE_REGISTRY=1";
    write_files(
        &project(&engine),
        &[
            ("mix.exs", &mix("user", "deps: [{:small, \"~> 1.0\"}]")),
            ("Dockerfile", &format!("FROM {image}\nENV {mirror}\n{mount} mix deps.get\n")),
        ],
    );
    let run = |script: &str| {
        let volumes = [&served, &project(&engine)].map(|path| format!("--volume={0}:{0}", path.display()));
        let at = format!("--workdir={}", served.display());
        let words = [&volumes[0], &volumes[1], &at, &image, "sh", "-ec", script];
        engine.docker(&[&["run", "--rm", "--network=host"][..], &words].concat());
    };
    run(
        "(cd small && mix hex.build --output ../small.tar) && mkdir tarballs && mv small.tar tarballs/small-1.0.0.tar && \
         openssl genrsa -out key.pem && mix hex.registry build . --name=hexpm --private-key=key.pem",
    );
    let server = serve(&engine, &served);
    run(&format!("cp -r ../project /tmp/p && (cd /tmp/p && {mirror} mix deps.get) && cp /tmp/p/mix.lock ../project"));

    let volume = engine.volume("project-cache", &[]);
    let filled = warm(&engine, &["--volume=project-cache"]).ok();
    assert!(volume.join("hex/packages/hexpm/small-1.0.0.tar").exists(), "{filled}");
    warm(&engine, &[]).ok();
    drop(server);
    let install = format!("export HEX_OFFLINE=1 {mirror}; mix deps.get && mix run -e '1 = Small.one()'");
    offline(&engine, &image, "", &format!("export HEX_HOME=/cache/hex; {install}"));
    offline_build(&engine, &image, "", &format!("{mount} {install}"));
}
