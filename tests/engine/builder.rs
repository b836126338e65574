//! `docker cache builder`: what it says and does against what docker then really does.

use serde_json::Value;

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::{Engine, Generation};

#[track_caller]
fn builders(engine: &Engine, arguments: &[&str]) -> Value {
    let run = engine.cache(&[&["builder", "ls", "--format", "json"], arguments].concat()).ok();
    serde_json::from_str::<Value>(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))["builders"].take()
}

#[track_caller]
fn builder<'a>(builders: &'a Value, name: &str) -> &'a Value {
    let found: Vec<&Value> = builders.as_array().unwrap().iter().filter(|row| row["name"] == name).collect();
    assert_eq!(found.len(), 1, "{name} in {builders:#}");
    found[0]
}

for_each_engine!(the_engines_own_builder_is_listed, [all], |engine| {
    engine.build("RUN --mount=type=cache,target=/p echo 1 > /p/a", &[]);
    let builders = builders(engine, &[]);
    let own = builder(&builders, "default");
    let bytes: u64 = engine.records().iter().map(|record| record["Size"].as_u64().unwrap()).sum();
    assert_eq!(own["cache_bytes"].as_u64(), Some(bytes));
    assert_eq!((own["driver"].as_str(), own["status"].as_str()), (Some("docker"), Some("running")));
    let can_export = engine.generation().has_buildx() && engine.generation().containerd_store();
    assert_eq!(own["can_export"].as_bool(), Some(can_export), "{own:#}");
    // What the field says is what a build then does.
    if engine.generation().has_buildx() {
        let cache = engine.folder().join("cache");
        let export = format!("type=local,dest={}", cache.display());
        assert_eq!(engine.try_build("RUN true", &["--cache-to", &export]).code == 0, can_export);
    }
});

for_each_engine!(each_command_family_uses_the_builder_that_is_told, [v26, v28_containerd], |engine| {
    let far = engine.remote_builder("far");
    let own = engine.second_context("other");
    drop(own);
    engine.docker(&["buildx", "use", &far.name]);
    let listed = builders(engine, &[]);
    assert_eq!(builder(&listed, "far")["default_for"], serde_json::json!(["docker buildx build"]));
    assert_eq!(builder(&listed, "default")["default_for"], serde_json::json!(["docker build"]));
    assert_eq!(builder(&listed, "far")["current"], true);
    let asked = Run::of(engine.cache_command(&["builder", "ls", "--format", "json"]).env("BUILDX_BUILDER", "far")).ok();
    let listed: Value = serde_json::from_str(&asked.stdout).unwrap();
    let both = serde_json::json!(["docker build", "docker buildx build"]);
    assert_eq!(builder(&listed["builders"], "far")["default_for"], both);
});

for_each_engine!(use_switches_and_says_what_stays, [v26, v28_containerd], |engine| {
    let far = engine.remote_builder("far");
    engine.build("RUN --mount=type=cache,target=/p echo 1 > /p/a", &[]);
    let run = engine.cache(&["builder", "use", &far.name]).ok();
    assert_eq!(run.stdout, "far\n");
    let current = engine.docker(&["buildx", "inspect"]).stdout;
    assert!(current.lines().next().unwrap().ends_with("far"), "{current}");
    assert!(run.stderr.contains("`docker build`") && run.stderr.contains("still use default"), "{run}");
    // This builder is the engine's own BuildKit by another name.
    assert!(!run.stderr.contains("of cache stay"), "{run}");
    // The remedy that it prints makes both agree.
    let line = run.stderr.lines().find(|line| line.contains("in this shell")).unwrap();
    let command = line.split('`').nth(1).unwrap();
    let ask = format!("{command}; docker cache builder ls --format json");
    let agreed = Run::of(engine.command("sh").args(["-c", &ask])).ok();
    let both = serde_json::json!(["docker build", "docker buildx build"]);
    let listed: Value = serde_json::from_str(&agreed.stdout).unwrap();
    assert_eq!(builder(&listed["builders"], "far")["default_for"], both);
});

for_each_engine!(use_of_a_contexts_builder_switches_the_context, [v26, v28], |engine| {
    let _second = engine.second_context("second");
    // The engine is named by DOCKER_HOST, which wins over contexts: without it contexts count.
    engine.docker(&["context", "create", "first", "--docker", &format!("host={}", engine.host())]);
    engine.docker(&["context", "use", "first"]);
    let refused = engine.cache(&["builder", "use", "second"]);
    assert!(refused.code == 1 && refused.stderr.contains("`unset DOCKER_HOST`"), "{refused}");
    let ask = |arguments: &[&str]| Run::of(engine.cache_command(arguments).env_remove("DOCKER_HOST"));
    engine.build("RUN --mount=type=cache,target=/p echo 1 > /p/a", &[]);
    let run = ask(&["builder", "use", "second"]).ok();
    assert!(run.stderr.contains("of cache stay on first"), "{run}");
    let shown =
        Run::of(engine.command(engine.docker_program()).args(["context", "show"]).env_remove("DOCKER_HOST")).ok();
    assert_eq!(shown.stdout.trim(), "second", "{run}");
    let listed: Value = serde_json::from_str(&ask(&["builder", "ls", "--format", "json"]).ok().stdout).unwrap();
    let both = serde_json::json!(["docker build", "docker buildx build"]);
    assert_eq!(builder(&listed["builders"], "second")["default_for"], both);
    // Another name of the same engine sees the same cache.
    engine.docker(&["context", "create", "twin", "--docker", &format!("host={}", engine.host())]);
    ask(&["builder", "use", "first"]).ok();
    let run = ask(&["builder", "use", "twin"]).ok();
    assert!(run.stderr.contains("now uses twin") && !run.stderr.contains("of cache stay"), "{run}");
});

for_each_engine!(a_builder_that_is_not_there_changes_nothing, [v28], |engine| {
    for name in ["nosuch", "--help-me", "'; rm -rf /"] {
        let run = engine.cache(&["builder", "use", "--", name]);
        assert_eq!(run.code, 1, "{run}");
        assert!(run.stderr.contains("hint: "), "{run}");
    }
    assert!(engine.docker(&["buildx", "inspect"]).stdout.lines().next().unwrap().ends_with("default"));
});

#[test]
fn without_buildx_there_is_nothing_to_switch() {
    let engine = Engine::start(Generation::V20);
    let run = engine.cache(&["builder", "use", "default"]);
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("no buildx") && run.stderr.contains("hint: install"), "{run}");
}

#[test]
fn before_docker_23_the_variable_does_not_reach_docker_build() {
    let engine = Engine::start(Generation::V20).with_buildx(Generation::V28);
    let far = engine.remote_builder("far");
    let asked =
        Run::of(engine.cache_command(&["builder", "ls", "--format", "json"]).env("BUILDX_BUILDER", &far.name)).ok();
    let listed: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!(builder(&listed["builders"], "far")["default_for"], serde_json::json!(["docker buildx build"]));
    assert_eq!(builder(&listed["builders"], "default")["default_for"], serde_json::json!(["docker build"]));
    let mut build = engine.command(engine.docker_program());
    let context = engine.context("RUN --mount=type=cache,target=/m echo 1 > /m/file");
    build.env("BUILDX_BUILDER", "nosuch").env("DOCKER_BUILDKIT", "1").arg("build").arg(context.path());
    Run::of(&mut build).ok();
}
