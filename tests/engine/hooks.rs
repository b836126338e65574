//! `docker cache hooks`: what real clients show after real builds, on a terminal.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use serde_json::Value;

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::{Engine, Generation};

/// A Dockerfile that builds in a moment.
const DOCKERFILE: &str = "RUN --mount=type=cache,target=/c echo 1 > /c/x";

/// Runs docker at a terminal and returns all that it shows.
fn at_terminal(engine: &Engine, words: &str, environment: &[(&str, &str)]) -> Run {
    engine.cache_command(&[]);
    let mut command = engine.command("script");
    let line = format!("{} {words}", engine.docker_program().display());
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    Run::of(command.envs(environment.iter().copied()))
}

/// Builds at a terminal, with flags, and returns what is shown from docker's headline of hooks on.
fn shown_after(engine: &Engine, build: &str, environment: &[(&str, &str)]) -> String {
    let context = engine.context(DOCKERFILE);
    let run = at_terminal(engine, &format!("{build} {}", context.path().display()), environment);
    run.stdout.split_once("What's next:\u{1b}[0m").map(|(_, shown)| shown.replace("\r", "")).unwrap_or_default()
}

for_each_engine!(docker_shows_one_line_after_a_build_when_something_is_wrong, [v26, v28_containerd], |engine| {
    engine.cache(&["hooks", "enable"]).ok();
    let builder = engine.remote_builder("far");
    assert_eq!(shown_after(engine, "build", &[]), "", "all is well");
    let told = shown_after(engine, "build --no-cache", &[]);
    assert!(told.contains("    `--no-cache` emptied the cache mounts"), "{told:?}");
    assert_eq!(told.trim().lines().count(), 1, "{told:?}");
    assert_eq!(shown_after(engine, "build --no-cache", &[("DOCKER_CLI_HOOKS", "0")]), "");
    // It fails at the cache mount.
    let told = shown_after(engine, "build", &[("DOCKER_BUILDKIT", "0")]);
    assert!(told.contains("This was the legacy builder"), "{told:?}");

    engine.docker(&["buildx", "use", &builder.name]);
    let told = shown_after(engine, "build", &[]);
    assert!(told.contains("of the builder default, not of far,"), "{told:?}");
    for agreed in ["build --builder default", "buildx build", "--context default build --builder=far"] {
        assert_eq!(shown_after(engine, agreed, &[]), "", "{agreed}");
    }
    assert_eq!(shown_after(engine, "build", &[("BUILDX_BUILDER", "default")]), "");
    engine.cache(&["hooks", "disable"]).ok();
    assert_eq!(shown_after(engine, "build --no-cache", &[]), "");
});

#[test]
fn config_json_keeps_all_else_and_its_place() {
    let engine = Engine::start(Generation::V28);
    let (config, real) = (engine.config().join("config.json"), engine.folder().join("real.json"));
    let before = "{\n\t\"auths\": {\n\t\t\"x\": {\"auth\": \"YTpi\"}\n\t},\n\t\"plugins\": {\"debug\": {\"hooks\": \"exec\"}},\n\t\"psFormat\": \"table {{.ID}}\"\n}\n";
    fs::write(&real, before).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&real, Some(1000), Some(1000)).unwrap();
    symlink(&real, &config).unwrap();
    let status = |engine: &Engine| -> Value {
        serde_json::from_str(&engine.cache(&["hooks", "status", "--format", "json"]).ok().stdout).unwrap()
    };
    assert_eq!((&status(&engine)["enabled"], &status(&engine)["shown"]), (&false.into(), &false.into()));
    for _ in 0..2 {
        engine.cache(&["hooks", "enable"]).ok();
        let text = fs::read_to_string(&real).unwrap();
        assert!(text.starts_with("{\n\t\"auths\": {\n\t\t\"x\": {\"auth\": \"YTpi\"}\n\t},\n"), "{text}");
        let (meta, read) = (fs::metadata(&real).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 1000, 1000));
        assert_eq!((&read["features"]["hooks"], &read["psFormat"]), (&"true".into(), &"table {{.ID}}".into()));
        assert_eq!(read["plugins"]["debug"]["hooks"], "exec");
    }
    assert!(fs::symlink_metadata(&config).unwrap().is_symlink());
    assert_eq!((&status(&engine)["enabled"], &status(&engine)["shown"]), (&true.into(), &true.into()));
    // Docker itself still reads the file, and keeps the hooks when it writes it.
    assert_eq!(engine.docker(&["context", "use", "default"]).stderr.matches("WARNING").count(), 0);
    assert_eq!(status(&engine)["shown"], true);
    engine.cache(&["hooks", "disable"]).ok();
    let read: Value = serde_json::from_str(&fs::read_to_string(&real).unwrap()).unwrap();
    assert_eq!((&read["plugins"]["cache"], &read["features"]["hooks"]), (&Value::Null, &"true".into()), "{read}");
    // Nothing is left beside it.
    for folder in [engine.config(), real.parent().unwrap().to_owned()] {
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name == "config.json" || !name.starts_with("config.json"), "{name}");
        }
    }
}

#[test]
fn a_config_json_that_is_broken_or_elsewhere_is_left_alone() {
    let engine = Engine::start(Generation::V28);
    let config = engine.config().join("config.json");
    for broken in ["{\"auths\": {", "[]", "{\"plugins\": {\"cache\": {\"hooks\": true}}}"] {
        fs::write(&config, broken).unwrap();
        let run = engine.cache(&["hooks", "enable"]);
        assert!(run.code == 1 && run.stderr.contains("is left as it was"), "{run}");
        assert_eq!(fs::read_to_string(&config).unwrap(), broken);
    }
    fs::remove_file(&config).unwrap();
    engine.cache(&["hooks", "disable"]).ok();
    assert!(!config.exists());
    engine.cache(&["hooks", "enable"]).ok();
    assert_eq!(fs::metadata(&config).unwrap().mode() & 0o7777, 0o600);
    let other = engine.folder().join("other");
    let mut command = Command::new(env!("CARGO_BIN_EXE_docker-cache"));
    Run::of(command.args(["--config", other.to_str().unwrap(), "hooks", "enable"])).ok();
    assert!(other.join("config.json").exists());
}
