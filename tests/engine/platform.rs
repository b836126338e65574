//! Engines of another architecture than the plugin's, and users who build for another one than the engine's.

use std::fs;

use serde_json::Value;

use crate::for_each_engine;
use crate::support::engine::{Engine, Generation};
use crate::support::process::Run;
use crate::support::world::fake_docker;

/// The architecture of this machine as engines tell it, and another one as Go has it, both in quotes and of one length.
const OWN: &str = if cfg!(target_arch = "aarch64") { r#""aarch64""# } else { r#""x86_64""# };
const OTHER: &str = if cfg!(target_arch = "aarch64") { r#""amd64"  "# } else { r#""arm64" "# };

/// Makes a volume that is only mounted in containers, so that the program must run there.
fn volume(engine: &Engine) {
    let dir = engine.folder().join("behind");
    fs::create_dir_all(dir.join("pip")).unwrap();
    fs::write(dir.join("pip/wheel"), vec![1; 100_000]).unwrap();
    let device = format!("device={}", dir.display());
    engine.docker(&["volume", "create", "--opt=type=none", "--opt=o=bind", "--opt", &device, "project-cache"]);
}

fn bytes(run: Run, kind: &str) -> u64 {
    let answer: Value = serde_json::from_str(&run.ok().stdout).unwrap();
    let caches = answer["caches"].as_array().unwrap().iter();
    caches.filter(|cache| cache["kind"] == kind).map(|cache| cache["bytes"].as_u64().unwrap()).sum()
}

#[track_caller]
fn assert_clean(engine: &Engine) {
    for all in [["ps", "--all", "--quiet"], ["image", "ls", "--quiet"]] {
        assert_eq!(engine.docker(&all).stdout, "");
    }
}

#[test]
fn engine_of_another_architecture_gets_the_helper_beside_the_plugin() {
    let engine = Engine::start(Generation::V28);
    volume(&engine);
    let (folder, real) = (engine.folder().join("elsewhere"), engine.docker_program());
    let script = format!(
        "[ \"$*\" = 'system dial-stdio' ] || exec {real} \"$@\"\n{real} \"$@\" | sed --unbuffered 's/{OWN}/{OTHER}/'",
        real = real.display()
    );
    fake_docker(&folder, &script);
    let plugin = folder.join("docker-cache");
    fs::copy(env!("CARGO_BIN_EXE_docker-cache"), &plugin).unwrap();
    let path = format!("{}:{}", folder.display(), engine.generation().suite().path());
    let size = || {
        Run::of(engine.command(&plugin).env("PATH", &path).args(["size", "--volume=project-cache", "--format=json"]))
    };

    let run = size();
    let other = OTHER.trim_matches(['"', ' ']);
    assert!(run.stderr.contains(&format!("there is no helper for an engine on linux/{other}, ")), "{run}");
    assert_clean(&engine);

    // The engine is really of this architecture, so this is what it can run.
    let helper = folder.join(format!("cache-helper-{}-linux-{other}", env!("CARGO_PKG_VERSION")));
    fs::rename(&plugin, &helper).unwrap();
    fs::copy(&helper, &plugin).unwrap();
    let found = bytes(size(), "volume");
    assert!((100_000..150_000).contains(&found), "{found}");
    assert_clean(&engine);
}

for_each_engine!(default_platform_of_the_user_is_not_for_helpers, [v28, v28_containerd], |engine| {
    volume(engine);
    engine.build("RUN --mount=type=cache,id=pip,target=/p dd if=/dev/zero of=/p/f bs=4096 count=50", &[]);
    let other = OTHER.trim_matches(['"', ' ']);
    let size = |arguments: &[&str]| {
        let mut command = engine.cache_command(&["size", "--format=json"]);
        Run::of(command.args(arguments).env("DOCKER_DEFAULT_PLATFORM", format!("linux/{other}")))
    };
    assert!((100_000..150_000).contains(&bytes(size(&["--volume=project-cache"]), "volume")));
    assert!((50 * 4096..60 * 4096).contains(&bytes(size(&["--exact", "--mount=pip"]), "mount")));
});
