//! Tests of `export` and `import` with the caches of real package managers from one generation of engines to another: what
//! is carried is the same on the other side, and enough for a build that has no network.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::debian::{self, Tool};
use crate::support::process::Run;
use crate::support::{Engine, Generation};

const TOOLS: [Tool; 4] = [Tool::Apt, Tool::Pip, Tool::Npm, Tool::Cargo];

/// Returns the image of a tool. That of cargo is large, for the sake of a compiler: see [`debian::cargo_alone`].
fn image(tool: Tool, engine: &Engine) -> String {
    if tool == Tool::Cargo { Tool::Apt.image(engine) } else { tool.image(engine) }
}

/// What puts cargo into its image. Without a compiler it wants to know of one all the same; it unpacks crates by itself.
const CARGO: &str = r#"COPY cargo /
RUN printf '#!/bin/sh\necho "rustc 1.85.0\nhost: x86_64-unknown-linux-gnu\nrelease: 1.85.0"\n' > /usr/bin/rustc && chmod 755 /usr/bin/rustc
"#;

/// Returns how a tool installs from the network, and from its cache alone. The registry of npm has this port of the machine.
fn scripts(tool: Tool, port: u16) -> (String, String) {
    match tool {
        Tool::Apt => {
            let keep = "rm -f /etc/apt/apt.conf.d/docker-clean";
            let install = "apt-get install --yes --no-install-recommends tree";
            (format!("{keep} && apt-get update && {install}"), format!("{keep} && {install} && tree --version"))
        }
        Tool::Cargo => {
            let new = "rm -rf /tmp/user && cargo init --vcs none --lib /tmp/user && cd /tmp/user";
            let has = "test -f vendor/itoa/src/lib.rs";
            (
                format!("{new} && cargo add itoa@1 && cargo vendor && {has}"),
                format!("{new} && cargo add --offline itoa@1 && cargo vendor --offline && {has}"),
            )
        }
        Tool::Pip => {
            // pip looks for a wheel that it built by the address of its source, and asks no index then.
            let find = "pip install --dry-run --break-system-packages --no-deps --no-binary six --report /tmp/report six==1.16.0";
            let url =
                "import json; print(json.load(open(\"/tmp/report\"))[\"install\"][0][\"download_info\"][\"url\"])";
            let install = "pip install --break-system-packages --use-pep517 \"six @ $(cat /root/.cache/pip/address)\"";
            // What no cache of pip has, and a carried one must keep.
            let odd = "cd /root/.cache/pip && ln address hard && ln -s address link && chown -h 7:8 link && \
                       mkdir shut && chmod 2700 shut && chown 1000:1001 shut && touch -d @86400.5 shut && \
                       python3 -c 'import os; os.setxattr(\"address\", \"user.told\", b\"a\\0b\")'";
            let fill = format!("{find} && python3 -c '{url}' > /root/.cache/pip/address && {odd} && {install}");
            (fill, format!("{install} && python3 -c 'import six'"))
        }
        _ => {
            let package = "mkdir /tmp/small && cd /tmp/small && npm init --yes && npm pack";
            let project = "mkdir -p /tmp/user && cd /tmp/user && npm init --yes";
            let address = format!("http://127.0.0.1:{port}");
            let registry = r#"node -e 'require("http").createServer((asked, answer) => answer.end(asked.url.endsWith(".tgz")
                ? require("fs").readFileSync("/tmp/small/small-1.0.0.tgz")
                : JSON.stringify({name: "small", "dist-tags": {latest: "1.0.0"}, versions: {"1.0.0": {name: "small",
                    version: "1.0.0", dist: {tarball: "ADDRESS/small-1.0.0.tgz"}}}}))).listen(PORT)' &"#;
            let registry = registry.replace("ADDRESS", &address).replace("PORT", &port.to_string());
            let install = format!("npm install --no-audit --no-fund --registry={address} small");
            (
                format!("({}) ; {package} && {project} && sleep 1 && {install}", registry.replace('\n', " \\\n")),
                format!("{project} && {install} --offline && test -d node_modules/small"),
            )
        }
    }
}

/// Returns the mounts of a tool; those of pip have an id of their own.
fn mounts(tool: Tool, at: impl Fn(&str) -> String) -> String {
    let id = |target: &str| if tool == Tool::Pip { "wheels".into() } else { target.to_string() };
    let mount = |target: &&str| format!("--mount=type=cache,\"id={}\",target={} ", id(target), at(target));
    tool.targets().iter().map(mount).collect()
}

/// Returns a Dockerfile that installs with all tools: over the network, and from the mounts alone if that fails or `BUST` is
/// set.
fn dockerfile(engine: &Engine, port: u16) -> String {
    let stage = |tool: Tool| {
        let ((fill, offline), mounts) = (scripts(tool, port), mounts(tool, str::to_string));
        format!(
            "FROM {} AS {name}\n{}RUN echo first > /first\nARG BUST=none\n\
             RUN {mounts}if [ $BUST = none ] && ({fill}); then true; else {offline} && echo {name} from the mount; fi\n\
             RUN echo {name} > /done-{name}\n",
            image(tool, engine),
            if tool == Tool::Cargo { CARGO } else { "" },
            name = tool.name(),
        )
    };
    let stages: String = TOOLS.map(stage).concat();
    let copies: String = TOOLS.iter().map(|tool| format!("COPY --from={0} /done-{0} /\n", tool.name())).collect();
    format!("{stages}FROM scratch\n{copies}")
}

/// Lists everything in all mounts, by a build with Python and without our program: type, mode, owner, time, size, links,
/// extended attributes and content.
fn listing(engine: &Engine) -> String {
    let script = r#"
import hashlib, os, stat
inodes, targets = {}, tuple("/listed%s/" % target for target in TARGETS)
with open("/out/listing", "w") as out:
    for at, dirs, files in os.walk("/listed"):
        dirs.sort()
        for name in sorted(dirs + files):
            path = os.path.join(at, name)
            if not path.startswith(targets):
                continue
            told = os.lstat(path)
            kind = stat.S_IFMT(told.st_mode)
            what = os.readlink(path) if kind == stat.S_IFLNK else ""
            if kind == stat.S_IFREG:
                what = hashlib.sha256(open(path, "rb").read()).hexdigest()
            first = inodes.setdefault(told.st_ino, path) if told.st_nlink > 1 and kind != stat.S_IFDIR else ""
            size = 0 if kind == stat.S_IFDIR else told.st_size
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            print(path, oct(told.st_mode), told.st_uid, told.st_gid, told.st_mtime_ns, size, what, first, xattrs, file=out)
"#;
    let all: String = TOOLS.iter().map(|tool| mounts(*tool, |target| format!("/listed{target}"))).collect();
    let image = Tool::Pip.image(engine);
    let file = format!(
        "FROM {image} AS list\nCOPY list.py /\nRUN mkdir /out\nARG AGAIN\nRUN {all}python3 /list.py\n\
                        FROM scratch\nCOPY --from=list /out/ /\n"
    );
    let context = tempfile::tempdir_in(engine.folder()).unwrap();
    fs::write(context.path().join("Dockerfile"), file).unwrap();
    let targets: Vec<&str> = TOOLS.iter().flat_map(|tool| tool.targets()).copied().collect();
    fs::write(context.path().join("list.py"), format!("TARGETS = {targets:?}{script}")).unwrap();
    let output = context.path().join("output");
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--network=none", "--output"]).arg(&output).arg(context.path());
    Run::of_docker(&mut build).ok();
    fs::read_to_string(output.join("listing")).unwrap()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Fills the mounts of all tools on one engine, carries them to an empty one without a network, and installs
/// there from the mounts. `port` is of the machine, whose network the first engine has, and of this test alone.
fn carries(from: Generation, to: Generation, port: u16) {
    let with_buildx = |engine: Engine| match engine.generation() {
        Generation::V20 => engine.with_buildx(Generation::V28),
        _ => engine,
    };
    let engine = with_buildx(Engine::online(from));
    let context = tempfile::tempdir_in(engine.folder()).unwrap();
    fs::write(context.path().join("Dockerfile"), dockerfile(&engine, port)).unwrap();
    Run::of(Command::new("cp").arg("--recursive").arg(debian::cargo_alone()).arg(context.path().join("cargo"))).ok();
    let directory = text(context.path());
    let mut further = vec!["--".to_string(), "--network=host".into()];
    further.extend(debian::proxies().map(|proxy| format!("--build-arg={proxy}")));
    let build = |engine: &Engine, words: &[String]| {
        let mut build = engine.command(engine.docker_program());
        build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress=plain"]).args(words).arg(&directory);
        Run::of_docker(&mut build).ok()
    };
    build(&engine, &further[1..]);
    let bundle = text(&engine.folder().join("bundle"));
    let cache = |engine: &Engine, words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().chain(further.iter().map(String::as_str)).collect();
        engine.cache(&words)
    };
    let export = cache(&engine, &["export", "--dest", &bundle, &directory]);
    assert_eq!(export.code, i32::from(!from.containerd_store()), "{export}");
    let before = listing(&engine);
    for target in
        TOOLS.iter().flat_map(|tool| tool.targets()).chain(&["/root/.cache/pip/wheels", "/root/.npm/_cacache"])
    {
        assert!(before.contains(&format!("/listed{target}/")), "{target}: {before}");
    }
    let images: Vec<String> = TOOLS.iter().map(|tool| image(*tool, &engine)).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let archive = text(&engine.folder().join("images.tar"));
    engine.docker(&[&["save", "--output", &archive], &images[..]].concat());

    let other = with_buildx(Engine::start(to));
    other.docker(&["load", "--input", &archive]);
    other.cache(&["import", "--src", &bundle]).ok();
    // What apt knows of the installed system is state, which is not carried.
    let state = |line: &&str| line.starts_with("/listed/var/lib/apt/extended_states ");
    assert_eq!(before.lines().filter(state).count(), 1);
    let after = listing(&other);
    let lost: Vec<&str> = before.lines().filter(|line| !state(line) && !after.contains(line)).collect();
    let new: Vec<&str> = after.lines().filter(|line| !before.contains(line) || state(line)).collect();
    assert_eq!((lost, new), (Vec::new(), Vec::new()));
    if from.containerd_store() && to.has_buildx() {
        // Steps that run use the mounts.
        let run = cache(&other, &["import", "--format=json", "--src", &bundle, &directory]).ok();
        let steps = &serde_json::from_str::<Value>(&run.stdout).unwrap()["steps"];
        // BuildKit keys steps with cache mounts otherwise in each generation: those are named with that reason.
        let keyed = |step: &&Value| step.as_str().unwrap().contains("generations");
        assert_eq!(steps["ran"].as_array().unwrap().iter().filter(keyed).count(), TOOLS.len(), "{steps}");
        assert!(steps["cached"].as_u64().unwrap() >= 2, "{steps}");
    }
    fs::remove_dir_all(&bundle).unwrap();
    // BuildKit holds a mount for a moment after a build, and may give the next one an empty one meanwhile.
    let begin = Instant::now();
    while other.mounts().iter().any(|mount| mount["InUse"] == true) && begin.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(50));
    }
    let run = build(&other, &["--build-arg=BUST=now".into(), "--network=none".into()]);
    for tool in TOOLS {
        assert!(run.stderr.contains(&format!("{} from the mount", tool.name())), "{run}");
    }
}

#[test]
fn package_managers_install_from_what_was_carried_from_20_to_28() {
    carries(Generation::V20, Generation::V28, 4873);
}

#[test]
fn package_managers_install_from_what_was_carried_from_26_to_28() {
    carries(Generation::V26Containerd, Generation::V28Containerd, 4874);
}

#[test]
fn package_managers_install_from_what_was_carried_from_28_to_26() {
    carries(Generation::V28Containerd, Generation::V26Containerd, 4875);
}

#[test]
fn package_managers_install_from_what_was_carried_from_28_to_20() {
    carries(Generation::V28Containerd, Generation::V20, 4876);
}
