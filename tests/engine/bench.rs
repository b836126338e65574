//! Tests of the bench itself: what the other tests stand on.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::process::{Background, Run};
use crate::support::registry::Registry;
use crate::support::world::{Tree, assert_same, big_tree, fake_docker};
use crate::support::{Engine, Generation, engine};
use crate::{for_each_engine, for_each_generation};

for_each_engine!(answers_with_its_version, [all], |engine| {
    let version = engine.docker(&["version", "--format", "{{.Server.Version}} {{.Client.Version}}"]).stdout;
    let major = engine.generation().major();
    assert!(version.split(' ').all(|version| version.starts_with(major)), "{version}");
    let containerd = engine.api("/info")["DriverStatus"].to_string().contains("io.containerd.snapshotter");
    assert_eq!(containerd, engine.generation().containerd_store());
});

for_each_engine!(cache_mount_leaves_a_record, [all], |engine| {
    engine.build("RUN --mount=type=cache,id=pip,target=/root/.cache/pip echo wheel > /root/.cache/pip/wheel", &[]);
    let mounts = engine.mounts();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    let description = mounts[0]["Description"].as_str().unwrap();
    assert!(description.starts_with("cached mount /root/.cache/pip from exec"), "{description}");
    assert_eq!(description.ends_with("with id \"/pip\""), engine.generation() != Generation::V20, "{description}");
});

for_each_engine!(plugin_is_found_by_the_cli, [v20, v26, v28_containerd], |engine| {
    let run = engine.cache(&["--help"]);
    assert!(!run.stderr.contains("is not a docker command"), "{run}");
});

for_each_engine!(buildx_lists_the_engine_as_builder, [v26, v26_containerd, v28, v28_containerd], |engine| {
    let builders = engine.docker(&["buildx", "ls"]).stdout;
    assert!(builders.contains("default") && builders.contains("docker") && builders.contains("running"), "{builders}");
});

for_each_engine!(second_context_is_a_second_cache, [v26, v28_containerd], |engine| {
    let second = engine.second_context("second");
    let context = engine.context("RUN --mount=type=cache,target=/m echo 1 > /m/file");
    engine.docker(&["--context", "second", "buildx", "build", &context.path().display().to_string()]);
    assert_eq!((engine.mounts().len(), second.mounts().len()), (0, 1));
});

for_each_engine!(remote_builder_builds, [v26, v28, v28_containerd], |engine| {
    let builder = engine.remote_builder("far");
    let context = engine.context("RUN --mount=type=cache,target=/m echo 1 > /m/file");
    engine.docker(&["buildx", "build", "--builder", &builder.name, &context.path().display().to_string()]);
    assert_eq!(engine.mounts().len(), 1);
    let builders = engine.docker(&["buildx", "ls"]).stdout;
    assert!(builders.contains("far") && builders.contains("remote"), "{builders}");
});

#[test]
fn buildx_can_be_added_to_docker_20() {
    let engine = Engine::start(Generation::V20);
    assert_ne!(engine.try_docker(&["buildx", "version"]).code, 0);
    let engine = engine.with_buildx(Generation::V28);
    engine.docker(&["buildx", "version"]);
    engine.docker(&["buildx", "du"]);
}

#[test]
fn volume_is_filled_below_its_mountpoint() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/wheels/one.whl", "one"), ("npm/index", "two")]);
    assert_eq!(std::fs::read_to_string(root.join("pip/wheels/one.whl")).unwrap(), "one");
    assert_eq!(engine.api("/volumes")["Volumes"][0]["Name"], "project-cache");
}

#[test]
fn settings_reach_the_engine() {
    let engine = Engine::start_with(Generation::V26, serde_json::json!({"labels": ["bench=yes"]}));
    assert_eq!(engine.api("/info")["Labels"][0], "bench=yes");
}

#[test]
fn nothing_of_the_machine_reaches_the_clients() {
    let engine = Engine::start(Generation::V28);
    let mut words = Run::of(&mut engine.command("env")).ok().stdout;
    words.retain(|c| c != '\r');
    for word in words.lines() {
        let name = word.split('=').next().unwrap();
        let known = ["DOCKER_CONFIG", "DOCKER_HOST", "HOME", "LLVM_PROFILE_FILE", "PATH", "TMPDIR"];
        assert!(known.contains(&name), "{word}");
    }
}

#[test]
fn registry_holds_a_pushed_image() {
    let engine = Engine::start(Generation::V28Containerd);
    let registry = Registry::beside(&engine);
    let image = format!("{}/box:1", registry.address);
    engine.build("RUN true", &["--tag", &image]);
    engine.docker(&["push", &image]);
    let found = registry.skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{image}")]).ok();
    assert!(found.stdout.contains("schemaVersion"), "{found}");
}

#[test]
fn registry_on_this_machine_is_reached_by_an_online_engine() {
    let engine = Engine::online(Generation::V28);
    let registry = Registry::on_this_machine(&engine.folder().join("registry"));
    let image = format!("{}/box:1", registry.address);
    engine.build("RUN true", &["--tag", &image]);
    engine.docker(&["push", &image]);
    registry.skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{image}")]).ok();
}

#[test]
fn stopped_engine_is_still_removed() {
    let engine = Engine::start(Generation::V28);
    engine.signal(rustix::process::Signal::STOP);
    let folder = engine.folder().to_owned();
    drop(engine);
    assert_eq!(traces(&folder), Vec::<String>::new());
}

for_each_generation!(crashed_engine_is_still_removed, [v20, v28_containerd], |generation| {
    let crashing = Engine::start(generation);
    run_forever(&crashing);
    let folder = crashing.folder().to_owned();
    crashing.signal(rustix::process::Signal::KILL);
    drop(crashing);
    assert_eq!(traces(&folder), Vec::<String>::new());
});

for_each_generation!(nothing_is_left_after_drop, [v20, v26, v26_containerd, v28, v28_containerd], |generation| {
    let busy = Engine::start(generation);
    run_forever(&busy);
    let folder = busy.folder().to_owned();
    assert_ne!(traces(&folder), Vec::<String>::new());
    drop(busy);
    assert_eq!(traces(&folder), Vec::<String>::new());
});

#[test]
fn nothing_is_left_after_a_panic() {
    let panicking = std::thread::spawn(|| {
        let engine = Engine::start(Generation::V28);
        std::panic::panic_any(engine.folder().to_owned());
    });
    let folder = panicking.join().unwrap_err().downcast::<PathBuf>().unwrap();
    assert_eq!(traces(&folder), Vec::<String>::new());
}

#[test]
fn nothing_is_left_after_the_test_process_is_killed() {
    let (mut child, folder) = process_with_engine();
    assert_ne!(traces(&folder), Vec::<String>::new());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(soon(|| traces(&folder).is_empty()), "{:?}", traces(&folder));
}

#[test]
fn nothing_is_left_after_the_next_start_when_the_keeper_is_killed_too() {
    let (mut child, folder) = process_with_engine();
    let keeper = std::fs::read_to_string(folder.join("keeper.pid")).unwrap();
    Run::of(Command::new("kill").args(["-KILL", keeper.trim()])).ok();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(soon(|| !Path::new("/proc").join(keeper.trim()).exists()));
    engine::sweep();
    assert_eq!(traces(&folder), Vec::<String>::new());
}

#[test]
fn the_machines_own_docker_is_untouched() {
    let state = || {
        let commands = [
            "ip -o -4 address show docker0",
            "iptables -S",
            "iptables -t nat -S",
            "docker ps --all --quiet",
            "docker volume ls --quiet",
            "docker network ls --no-trunc",
        ];
        commands.map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            Command::new(words[0]).args(&words[1..]).output().map(|output| output.stdout).unwrap_or_default()
        })
    };
    let before = state();
    for engine in [Engine::start(Generation::V20), Engine::online(Generation::V20), Engine::online(Generation::V28)] {
        engine.build("RUN true", &["--network", "none"]);
        assert_eq!(state(), before);
    }
    assert_eq!(state(), before);
}

#[test]
fn online_engine_has_a_bridge_of_its_own_and_removes_it() {
    let engine = Engine::online(Generation::V28);
    let folder = engine.folder().to_owned();
    let bridge = Path::new("/sys/class/net").join(folder.file_name().unwrap());
    assert!(bridge.exists());
    drop(engine);
    assert!(!bridge.exists());
    assert_eq!(traces(&folder), Vec::<String>::new());
}

#[test]
fn program_beside_a_test_outlives_the_thread_that_started_it() {
    let mut sleep = std::thread::spawn(|| Background::start(&["sleep", "60"], |_| {})).join().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(sleep.is_running());
}

#[test]
fn tree_shows_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    let (left, right) = (folder.path().join("left"), folder.path().join("right"));
    big_tree(&left, 1_203, 100_000);
    std::os::unix::fs::symlink("nowhere", left.join("link")).unwrap();
    std::fs::hard_link(left.join("00/000000/00000000"), left.join("hard")).unwrap();
    Run::of(Command::new("cp").args(["--archive", &left.display().to_string(), &right.display().to_string()])).ok();
    let tree = Tree::read(&left);
    assert_eq!(tree.bytes(), 100_000);
    assert_eq!(tree.0.values().filter(|entry| entry.kind == "file").count(), 1_204);
    assert_same(&tree, &Tree::read(&right));

    std::fs::remove_file(right.join("hard")).unwrap();
    std::fs::copy(left.join("hard"), right.join("hard")).unwrap();
    std::fs::remove_file(right.join("link")).unwrap();
    let difference = tree.difference(&Tree::read(&right));
    assert!(difference.contains("only left:  \"link\""), "{difference}");
    assert!(difference.contains("differs:    \"hard\""), "{difference}");
}

#[test]
fn fake_docker_answers_as_told() {
    let folder = tempfile::tempdir().unwrap();
    let docker = fake_docker(folder.path(), "printf '{\"Name\":\"half'; exit 3");
    let run = Run::of(&mut Command::new(docker));
    assert_eq!((run.stdout.as_str(), run.code), ("{\"Name\":\"half", 3));
}

/// Leaves a container and the step of a build running, in every kind of place that has to be cleaned.
fn run_forever(engine: &Engine) {
    engine.build("RUN true", &["--tag", "box"]);
    engine.volume("data", &[("file", "1")]);
    engine.docker(&["run", "--detach", "--volume", "data:/data", "box", "/bin/busybox", "sleep", "600"]);
    let context = engine.context("RUN --mount=type=cache,target=/m echo stuck; sleep 600");
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress", "plain"]).arg(context.path());
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stuck =
        BufReader::new(build.stderr.take().unwrap()).lines().map_while(Result::ok).any(|line| line.ends_with("stuck"));
    assert!(stuck, "the build did not get to its step");
    // The client goes away; whether the step goes with it is the engine's affair.
    build.kill().unwrap();
    build.wait().unwrap();
}

/// Starts this test program again, to run [`engine_for_another_test`], and returns it with the folder of its engine.
fn process_with_engine() -> (std::process::Child, PathBuf) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bench::engine_for_another_test", "--ignored", "--nocapture"])
        .env("BENCH_HOLD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let folder = lines.filter_map(|line| line.split_once("holds ").map(|(_, folder)| PathBuf::from(folder))).next();
    (child, folder.expect("the other process starts an engine"))
}

#[test]
#[ignore = "started by other tests, which kill it"]
fn engine_for_another_test() {
    if std::env::var_os("BENCH_HOLD").is_some() {
        let engine = Engine::online(Generation::V28);
        run_forever(&engine);
        println!("holds {}", engine.folder().display());
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Returns everything that is left of an engine: its folder, its bridge, mounts, processes, cgroups.
fn traces(folder: &Path) -> Vec<String> {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let below = format!("{}/", folder.display());
    let mut traces = Vec::new();
    traces.extend(folder.exists().then(|| below.clone()));
    traces.extend(Path::new("/sys/class/net").join(name).exists().then(|| format!("bridge {name}")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    traces.extend(mounts.lines().filter(|line| line.contains(&below)).map(str::to_owned));
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(process.path().join(file)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        // Dead, and only waiting for the machine's init to notice.
        let zombie = String::from_utf8_lossy(&read("stat")).contains(") Z ");
        let related = command.contains(&below) || groups.lines().any(|line| line.contains(&format!("/{name}/")));
        traces.extend((related && !zombie).then(|| format!("{} {command}", process.path().display())));
    }
    let groups = Run::of(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", name]));
    traces.extend(groups.stdout.lines().map(str::to_owned));
    traces
}

fn soon(condition: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(30) {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}
