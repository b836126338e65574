//! Tests of `export` and `import` with the caches of real package managers: what is carried is enough for a build that
//! has no network.

use std::fs;

use serde_json::Value;

use crate::support::debian::Tool;
use crate::support::{Engine, Generation};

/// Returns a Dockerfile whose install step runs again for another `BUST`, with the tool's cache mounts.
fn dockerfile(engine: &Engine, tool: Tool, script: &str) -> String {
    let mounts = tool.targets().iter().map(|target| format!("--mount=type=cache,target={target} "));
    let (image, mounts) = (tool.image(engine), mounts.collect::<String>());
    format!("FROM {image}\nRUN echo first > /first\nARG BUST=none\nRUN {mounts}: $BUST && {script}\n")
}

/// Fills a tool's mounts on one engine, carries mounts and layers to an empty one without a network, and builds there:
/// first what was exported, then a step that installs anew.
fn carries(tool: Tool, fill: &str, offline: &str) {
    let generation = Generation::V28Containerd;
    let engine = if tool.needs_registry() { Engine::online(generation) } else { Engine::start(generation) };
    let file = dockerfile(&engine, tool, fill);
    let context = tempfile::tempdir_in(engine.folder()).unwrap();
    fs::write(context.path().join("Dockerfile"), file).unwrap();
    let directory = context.path().display().to_string();
    let further = ["--", "--network=host"];
    let words: Vec<String> = crate::support::debian::proxies().map(|proxy| format!("--build-arg={proxy}")).collect();
    let further = further.into_iter().map(String::from).chain(words);
    let bundle = engine.folder().join("bundle").display().to_string();
    let mut export = vec!["export".to_string(), "--dest".into(), bundle.clone(), directory.clone()];
    export.extend(further.clone());
    // The export builds, and so fills the mounts; what they then hold, the second one takes.
    for _ in 0..2 {
        engine.cache(&export.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    }
    let image = engine.folder().join("image.tar").display().to_string();
    engine.docker(&["save", "--output", &image, &tool.image(&engine)]);

    let other = Engine::start(generation);
    other.docker(&["load", "--input", &image]);
    let mut import =
        vec!["import".to_string(), "--format=json".into(), "--src".into(), bundle.clone(), directory.clone()];
    import.extend(further);
    let run = other.cache(&import.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(answer["steps"]["ran"], serde_json::json!([]), "{answer}");
    fs::remove_dir_all(&bundle).unwrap();
    fs::write(context.path().join("Dockerfile"), dockerfile(&other, tool, offline)).unwrap();
    let build = ["buildx", "build", "--progress=plain", "--build-arg=BUST=now", "--network=none", &directory];
    let run = other.docker(&build);
    assert!(run.stderr.contains("installed from the mount"), "{run}");
}

#[test]
fn apt_installs_from_a_carried_mount() {
    let install = "apt-get install --yes --no-install-recommends tree";
    let keep = "rm -f /etc/apt/apt.conf.d/docker-clean";
    carries(
        Tool::Apt,
        &format!("{keep} && apt-get update && {install}"),
        &format!("{keep} && {install} && tree --version && echo installed from the mount"),
    );
}

#[test]
fn pip_installs_from_a_carried_mount() {
    // pip looks for a wheel that it built by the address of its source, and asks no index then.
    let find =
        "pip install --dry-run --break-system-packages --no-deps --no-binary six --report /tmp/report six==1.16.0";
    let url = "import json; print(json.load(open(\"/tmp/report\"))[\"install\"][0][\"download_info\"][\"url\"])";
    let install = "pip install --break-system-packages --use-pep517 \"six @ $(cat /root/.cache/pip/address)\"";
    carries(
        Tool::Pip,
        &format!("{find} && python3 -c '{url}' > /root/.cache/pip/address && {install}"),
        &format!("{install} && python3 -c 'import six' && echo installed from the mount"),
    );
}

#[test]
fn cargo_builds_from_a_carried_mount() {
    let new = "cargo init --vcs none --lib /tmp/user && cd /tmp/user";
    carries(
        Tool::Cargo,
        &format!("{new} && cargo add itoa@1 && cargo build"),
        &format!("{new} && cargo add --offline itoa@1 && cargo build --offline && echo installed from the mount"),
    );
}

#[test]
fn npm_installs_from_a_carried_mount() {
    let package = "mkdir /tmp/small && cd /tmp/small && npm init --yes && npm pack";
    let project = "mkdir /tmp/user && cd /tmp/user && npm init --yes";
    let registry = r#"node -e 'require("http").createServer((asked, answer) => answer.end(asked.url.endsWith(".tgz")
        ? require("fs").readFileSync("/tmp/small/small-1.0.0.tgz")
        : JSON.stringify({name: "small", "dist-tags": {latest: "1.0.0"}, versions: {"1.0.0": {name: "small",
            version: "1.0.0", dist: {tarball: "http://127.0.0.1:4873/small-1.0.0.tgz"}}}}))).listen(4873)' &"#;
    let install = "npm install --no-audit --no-fund --registry=http://127.0.0.1:4873 small";
    carries(
        Tool::Npm,
        &format!("({}) ; {package} && {project} && sleep 1 && {install}", registry.replace('\n', " \\\n")),
        &format!("{project} && {install} --offline && test -d node_modules/small && echo installed from the mount"),
    );
}
