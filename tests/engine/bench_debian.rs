//! Tests of the bench's real package managers: each fills the caches that it is there to fill.

use crate::for_each_engine;
use crate::support::debian::Tool;
use crate::support::world::Tree;
use crate::support::{Engine, Generation};

/// Fills mounts by a build and a volume by a container, and looks for a path that only the real tool makes.
#[track_caller]
fn fills(tool: Tool, expected: &str) {
    let generation = Generation::V28;
    let engine = if tool.needs_registry() { Engine::online(generation) } else { Engine::start(generation) };
    tool.fill_mounts(&engine);
    assert_eq!(engine.mounts().len(), tool.targets().len(), "{:?}", engine.mounts());
    assert!(engine.mounts().iter().all(|mount| mount["Size"].as_u64() > Some(0)), "{:?}", engine.mounts());
    if !tool.variables().is_empty() {
        let volume = engine.volume("project-cache", &[]);
        tool.fill_volume(&engine, "project-cache");
        let tree = Tree::read(&volume);
        assert!(tree.0.keys().any(|path| path.starts_with(expected)), "{:?}", tree.0.keys());
    }
}

#[test]
fn apt_keeps_packages_in_a_mount() {
    fills(Tool::Apt, "");
}

#[test]
fn pip_keeps_the_wheel_it_built() {
    fills(Tool::Pip, "pip/wheels");
}

#[test]
fn npm_keeps_the_package_it_installed() {
    fills(Tool::Npm, "npm/_cacache/content-v2");
}

#[test]
fn go_keeps_modules_and_builds() {
    fills(Tool::Go, "go/mod/cache/download/example.com/small");
}

#[test]
fn cargo_keeps_crates() {
    fills(Tool::Cargo, "cargo/registry/cache");
}

for_each_engine!(imported_debian_runs, [all], |engine| {
    let image = Tool::Apt.image(engine);
    let id = engine.docker(&["run", "--rm", &image, "cat", "/etc/debian_version"]).stdout;
    assert!(id.starts_with("12."), "{id}");
    engine.build(&format!("FROM {image}\nRUN test -e /etc/apt/apt.conf.d/docker-clean"), &[]);
});
