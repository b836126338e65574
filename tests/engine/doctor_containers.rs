//! `docker cache doctor` on containers that belong to a project: what they really keep in their own layers, and beside
//! the volumes that were mounted for it.

use std::fs;

use serde_json::Value;

use crate::for_each_engine;
use crate::support::Engine;
use crate::support::world::write_files;

/// Returns check, line and message of what is found.
#[track_caller]
fn findings(engine: &Engine, arguments: &[&str]) -> Vec<(String, Option<u64>, String)> {
    let run = engine.cache(&[&["doctor", "--format", "json"], arguments].concat());
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    let statuses: Vec<&str> =
        answer["checks"].as_array().unwrap().iter().map(|check| check["status"].as_str().unwrap()).collect();
    assert!(statuses.iter().all(|status| ["ok", "found"].contains(status)), "{run}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = answer["findings"].as_array().unwrap().iter();
    findings.map(|found| (text(&found["check"]), found["line"].as_u64(), text(&found["message"]))).collect()
}

for_each_engine!(what_containers_keep_in_their_own_layers_is_found, [v20, v28_containerd], |engine| {
    let project = engine.folder().join("tmp/project");
    let compose =
        "services:\n  web:\n    image: box\n  dev:\n    image: box\n    command: npm ci\n    volumes: [n:/n]\n";
    write_files(&project, &[("compose.yaml", compose)]);
    let project = fs::canonicalize(&project).unwrap().display().to_string();
    engine.build("ENV npm_config_cache=/n\nRUN true\nUSER 1000", &["--tag", "box"]);
    let run = |name: &str, options: &[&str], writes: &[&str]| {
        let touch: Vec<String> = writes.iter().map(|path| format!("busybox mkdir -p {path} && : > {path}/x")).collect();
        let script = touch.join("; ");
        let own = ["run", "--user", "0", "--name", name];
        engine.docker(&[&own, options, &["box", "/bin/busybox", "sh", "-c", &script]].concat());
    };
    let of_project = |service: &str| {
        [
            "--label",
            &format!("com.docker.compose.project.working_dir={project}"),
            "--label",
            &format!("com.docker.compose.service={service}"),
        ]
        .map(str::to_owned)
    };
    let web = of_project("web");
    let web: Vec<&str> = web.iter().map(String::as_str).collect();
    run("p-web-1", &web, &["/root/.cache/pip/http", "/usr/lib/python3/site-packages/a-1.dist-info", "/var/cache/apt"]);
    run("p-kept-1", &[&web[..], &["--volume", "pip:/root/.cache/pip"]].concat(), &["/root/.cache/pip/http"]);
    run("stranger", &["--volume", "common:/cache"], &["/root/.npm/_cacache"]);

    let found = findings(engine, &["--check", "cache-not-mounted,volume-unused", &project]);
    assert_eq!(found.len(), 2, "{found:?}");
    let (check, line, message) = &found[0];
    assert_eq!((check.as_str(), *line), ("cache-not-mounted", Some(2)), "{message}");
    assert!(message.contains("p-web-1") && message.contains("2 entries of pip in `/root/.cache/pip`"), "{message}");
    assert!(found[1].2.contains("1 package was") && found[1].2.contains("site-packages"), "{found:?}");

    let named = findings(engine, &["--container", "stranger"]);
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!(named[0].0, "volume-unused");
    assert!(named[0].2.contains("beside volume common at `/cache`: set `NPM_CONFIG_CACHE=/cache/npm`"), "{named:?}");
    let nobody = engine.cache(&["doctor", "--container", "nobody"]);
    assert!(nobody.code == 1 && nobody.stdout.contains("no container \"nobody\""), "{nobody}");
    assert!(!nobody.stdout.contains('✓'), "{nobody}");
});
