//! `docker cache doctor --check volume-owner`, and its fix: whoever writes to a volume may do so afterwards.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::world::{Tree, assert_same, big_tree, write_files};
use crate::support::{Engine, Generation};

#[track_caller]
fn findings(engine: &Engine) -> Vec<Value> {
    let run = engine.cache(&["doctor", "--check", "volume-owner", "--format", "json"]);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    assert!(["ok", "found"].contains(&answer["checks"][0]["status"].as_str().unwrap()), "{run}");
    answer["findings"].as_array().unwrap().clone()
}

for_each_engine!(a_volume_is_given_to_the_container_that_writes_to_it, [v20, v26, v28_containerd], |engine| {
    let outside = engine.folder().join("tmp/outside");
    write_files(&outside, &[("precious", "1")]);
    let root =
        engine.volume("project-cache", &[("pip/http/a", "1"), ("npm/tool", "1"), ("cargo/credentials.toml", "1")]);
    for (path, mode) in [("npm/tool", 0o4755), ("cargo/credentials.toml", 0o600)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink(&outside, root.join("pip/dir")).unwrap();
    symlink(outside.join("precious"), root.join("pip/link")).unwrap();
    engine.build("RUN mkdir -p /etc && echo dev:x:1234:4321::/:/bin/sh > /etc/passwd\nUSER dev", &["--tag", "box"]);
    assert_eq!(findings(engine), Vec::<Value>::new());
    engine.docker(&["create", "--name", "dev", "--volume", "project-cache:/cache", "box", "/bin/busybox", "true"]);
    let write =
        ["run", "--rm", "--volume", "project-cache:/cache", "box", "/bin/busybox", "touch", "/cache/pip/http/new"];
    assert_ne!(engine.try_docker(&write).code, 0);

    let found = findings(engine);
    assert_eq!(found.len(), 1, "{found:?}");
    let message = found[0]["message"].as_str().unwrap();
    assert!(message.contains("dev writes as 1234:4321") && message.contains("project-cache"), "{message}");
    let remedy = found[0]["fix"]["command"].as_str().unwrap();
    let words: Vec<&str> = remedy.strip_prefix("docker cache ").unwrap().split(' ').collect();
    let (before, owner) = (Tree::read(&root), outside.metadata().unwrap().uid());
    let refused = engine.cache(&words);
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{refused}");
    let dry = engine.cache(&[&words[..], &["--dry-run"]].concat()).ok();
    let json = engine.cache(&[&words[..], &["--dry-run", "--format", "json"]].concat()).ok();
    let told: Value = serde_json::from_str(&json.stdout).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_same(&before, &Tree::read(&root));
    let done = engine.cache(&[&words[..], &["--force"]].concat()).ok();
    assert!(done.stdout.starts_with(&dry.stdout), "{done}");

    let after = Tree::read(&root);
    let planned: usize =
        dry.stdout.lines().skip(1).map(|line| line.split_whitespace().nth(2).unwrap().parse::<usize>().unwrap()).sum();
    let changed = after.0.iter().filter(|(path, entry)| entry.uid != before.0[*path].uid).count();
    assert_eq!(planned, changed, "{done}");
    assert_eq!(
        told["owners"].as_array().unwrap().iter().filter_map(|row| row["entries"].as_u64()).sum::<u64>(),
        planned as u64
    );
    assert!(told["changed"].is_null(), "{told}");
    let json = engine.cache(&[&words[..], &["--force", "--format", "json"]].concat()).ok();
    assert_eq!(json.stdout, "{\"version\":1,\"owners\":[],\"changed\":null}\n");
    assert!(after.0.values().all(|entry| (entry.uid, entry.gid) == (1234, 4321)), "{after:?}");
    let modes = |tree: &Tree| tree.0.values().map(|entry| entry.mode).collect::<Vec<_>>();
    assert_eq!(modes(&after), modes(&before));
    assert_eq!((outside.metadata().unwrap().uid(), outside.join("precious").metadata().unwrap().uid()), (owner, owner));
    engine.docker(&write);
    assert_eq!(findings(engine), Vec::<Value>::new());
});

for_each_engine!(what_is_of_an_old_version_goes_by_the_printed_command, [v20, v28_containerd], |engine| {
    let old = "rustup/toolchains/1.70.0-x86_64-unknown-linux-gnu";
    let (rustc, kept) = (format!("{old}/bin/rustc"), "rustup/toolchains/stable-x86_64-unknown-linux-gnu/bin/rustc");
    let root = engine.volume("project-cache", &[(&rustc, "1"), (kept, "1"), ("cargo/registry/cache/a", "1")]);
    let project = engine.folder().join("tmp/project");
    write_files(&project, &[("Dockerfile", "FROM rust:1.88\n")]);
    let path = project.display().to_string();
    let check = ["doctor", "--check", "stale-versions", "--format", "json", &path];
    let look = || -> Value { serde_json::from_str(&engine.cache(&check).stdout).unwrap() };
    let found = look();
    let remedy = found["findings"][0]["fix"]["command"].as_str().unwrap_or_else(|| panic!("{found}"));
    let words: Vec<&str> = remedy.strip_prefix("docker cache ").unwrap().split(' ').collect();
    let before = Tree::read(&root);
    let refused: Vec<&str> = words.iter().copied().filter(|word| *word != "--include-installs").collect();
    engine.cache(&[&refused[..], &["--force"]].concat()).ok();
    assert_same(&before, &Tree::read(&root));
    let done = engine.cache(&[&words[..], &["--force", "--format", "json"]].concat()).ok();
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(done["freed_bytes"], done["total_bytes"], "{done}");
    assert!(!root.join(old).exists() && root.join(kept).exists() && root.join("cargo/registry/cache/a").exists());
    // Engine 20.10 does not tell which cache mounts it has, and they are looked into as well.
    let is_told = engine.generation() != Generation::V20;
    assert_eq!(look()["checks"][0]["status"], if is_told { "ok" } else { "skipped" });
});

for_each_engine!(two_users_of_one_volume_are_told_and_nothing_is_changed, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/a", "1")]);
    engine.build("RUN true", &["--tag", "box"]);
    for (name, user) in [("one", "1000"), ("two", "1001")] {
        engine.docker(&[
            "create",
            "--name",
            name,
            "--user",
            user,
            "--volume",
            "project-cache:/cache",
            "box",
            "/bin/busybox",
            "true",
        ]);
    }
    let found = findings(engine);
    assert!(found[0]["message"].as_str().unwrap().contains("USER_UID") && found[0]["fix"].is_null(), "{found:?}");
    let before = Tree::read(&root);
    engine.cache(&["doctor", "--fix", "--check", "volume-owner", "--force"]).ok();
    assert_same(&before, &Tree::read(&root));
});

for_each_engine!(what_the_builder_has_of_a_mount_is_told, [v26, v28_containerd], |engine| {
    let project = engine.folder().join("tmp/project");
    fs::create_dir_all(&project).unwrap();
    let path = project.display().to_string();
    let messages = |check: &str| -> Vec<String> {
        let run = engine.cache(&["doctor", "--check", check, "--format", "json", &path]);
        let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
        let found = answer["findings"].as_array().unwrap().iter();
        found.map(|finding| finding["message"].as_str().unwrap().to_owned()).collect()
    };
    let mount = |options: &str| format!("RUN --mount=type=cache,{options} echo {options}\n");
    engine.build(&mount("id=one,target=/m"), &[]);
    assert_eq!(messages("mount-owner"), Vec::<String>::new());
    engine.build(&(mount("id=pip,target=/m") + &mount("id=pip,target=/m,uid=1000,mode=0700")), &[]);
    let found = messages("mount-owner");
    assert!(
        found.len() == 1 && found[0].contains("keeps 2 separate caches") && found[0].contains("`pip`"),
        "{found:?}"
    );
    engine.cache(&["clear", "--mount", "pip", "--force"]).ok();
    assert_eq!(messages("mount-owner"), Vec::<String>::new());

    let step = "RUN --mount=type=cache,target=/root/.cache/pip pip install six";
    write_files(&project, &[("Dockerfile", &format!("FROM python:3.12\nENV PIP_CACHE_DIR=/elsewhere\n{step}\n"))]);
    let confirmed = || {
        let found = messages("dead-cache-mount");
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].ends_with("; in builder default it is empty")
    };
    assert!(!confirmed());
    engine.build(&mount("target=/root/.cache/pip"), &[]);
    assert_eq!(confirmed(), engine.generation() == Generation::V28Containerd);
    engine.build("RUN --mount=type=cache,target=/root/.cache/pip echo wheel > /root/.cache/pip/wheel", &[]);
    assert!(!confirmed());
});

/// Returns the findings of one check about a project.
#[track_caller]
fn about(engine: &Engine, check: &str, project: &str) -> Vec<Value> {
    let run = engine.cache(&["doctor", "--check", check, "--format", "json", project]);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    assert!(["ok", "found"].contains(&answer["checks"][0]["status"].as_str().unwrap()), "{run}");
    answer["findings"].as_array().unwrap().clone()
}

for_each_engine!(a_mount_is_given_to_the_step_that_writes_to_it, [v26, v28, v28_containerd], |engine| {
    let project = engine.folder().join("tmp/project");
    let mount = "RUN --mount=type=cache,id=work,target=/work,uid=1234,mode=0755";
    let dockerfile = format!("FROM debian:12\nARG USER_UID=1234\nUSER $USER_UID\n{mount} make\n");
    write_files(&project, &[("Dockerfile", &dockerfile)]);
    let path = project.display().to_string();
    engine.build(&format!("{mount} mkdir /work/own && echo 1 > /work/own/file && chown -R 1234 /work/own"), &[]);
    assert_eq!(about(engine, "mount-owner", &path), Vec::<Value>::new());

    let fill = "ln -s /bin/busybox /work/link; mkdir /work/a; echo 1 > /work/a/b; echo 1 > /work/s; chmod 600 /work/s; chown -R 77:77 /work/a";
    engine.build(&format!("{mount} {fill}"), &[]);
    let other = "RUN --mount=type=cache,id=other,target=/work mkdir /work/a";
    engine.build(other, &[]);
    let found = about(engine, "mount-owner", &path);
    assert_eq!(found.len(), 1, "{found:?}");
    let message = found[0]["message"].as_str().unwrap();
    assert!(message.contains("user `1234` may not write to 3 entries of the cache mount `work`"), "{message}");
    assert!(message.contains("77:77") && message.contains("USER_UID=77"), "{message}");
    let remedy = found[0]["fix"]["command"].as_str().unwrap();
    let words: Vec<&str> = remedy.strip_prefix("docker cache ").unwrap().split(' ').collect();
    let refused = engine.cache(&words);
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{refused}");
    let count = engine.lasting_records().len();
    let dry = engine.cache(&[&words[..], &["--dry-run"]].concat()).ok();
    assert_eq!(about(engine, "mount-owner", &path), found);
    let done = engine.cache(&[&words[..], &["--force"]].concat()).ok();
    assert!(done.stdout.starts_with(&dry.stdout), "{done}");
    assert_eq!(about(engine, "mount-owner", &path), Vec::<Value>::new());
    assert_eq!(engine.lasting_records().len(), count, "{:#?}", engine.records());
    assert_eq!(fs::read_to_string(project.join("Dockerfile")).unwrap(), dockerfile);
    let look = "set -e; test $(find /work -user 1234 | wc -l) = 7; test $(stat -c %a /work/s) = 600; \
         test \"$(stat -c %u /bin/busybox)\" = 0";
    engine.build(&format!("{mount} {look}"), &[]);
});

for_each_engine!(
    a_mount_whose_owner_only_the_dockerfile_can_change_is_left_with_the_reason,
    [v28_containerd],
    |engine| {
        let project = engine.folder().join("tmp/project");
        let mount = "RUN --mount=type=cache,id=own,target=/work";
        write_files(&project, &[("Dockerfile", &format!("FROM base:1\nUSER 1000\n{mount} make\n"))]);
        let path = project.display().to_string();
        let fix = ["doctor", "--fix", "--check", "mount-owner", "--dry-run", &path];
        assert_eq!(engine.cache(&fix).ok().stderr, "No owner to change in cache mounts\n");
        engine.build(&format!("{mount} mkdir /work/a"), &[]);
        let found = about(engine, "mount-owner", &path);
        let message = found[0]["message"].as_str().unwrap();
        assert!(found[0]["fix"].is_null() && message.ends_with("give the mount `uid=1000`"), "{found:?}");
        assert_eq!(engine.cache(&fix).ok().stderr, format!("left to you: {path}/Dockerfile:3: {message}\n"));
    }
);

for_each_engine!(what_is_of_an_old_version_goes_from_a_mount_by_the_printed_command, [v26, v28_containerd], |engine| {
    let project = engine.folder().join("tmp/project");
    write_files(&project, &[("Dockerfile", "FROM python:3\n")]);
    let path = project.display().to_string();
    let fill = "mkdir -p pip/wheels/a/b/c/d pypoetry/virtualenvs/app-1-py3.9 pypoetry/virtualenvs/app-2-py3.12; \
         echo 1 > pip/wheels/a/b/c/d/x-1-cp39-cp39-linux_x86_64.whl; for at in 9 12; do \
         echo 1 > $(echo pypoetry/virtualenvs/*py3.$at)/file; done";
    engine.build(&format!("RUN --mount=type=cache,target=/root/.cache cd /root/.cache; {fill}"), &[]);
    let check = ["doctor", "--check", "stale-versions", "--format", "json", &path];
    let look = || -> Value { serde_json::from_str(&engine.cache(&check).stdout).unwrap() };
    // The tag does not tell the version, and then the image at hand does.
    assert_eq!(look()["checks"][0]["status"], "skipped");
    engine.build("ENV PYTHON_VERSION=3.12.4", &["--tag", "python:3"]);
    let found = look();
    let remedy = found["findings"][0]["fix"]["command"].as_str().unwrap_or_else(|| panic!("{found}"));
    assert!(remedy.contains("--mount /root/.cache --path") && !remedy.contains("py3.12"), "{remedy}");
    let words: Vec<&str> = remedy.strip_prefix("docker cache ").unwrap().split(' ').collect();
    engine.cache(&[&words[..], &["--force"]].concat()).ok();
    assert_eq!(look()["checks"][0]["status"], "ok");
    let rest = "test \"$(find /root/.cache -type f)\" = /root/.cache/pypoetry/virtualenvs/app-2-py3.12/file";
    engine.build(&format!("RUN --mount=type=cache,target=/root/.cache {rest}"), &[]);
});

/// The owner and group of every entry below a folder must be one of these; returns how many have the second.
#[track_caller]
fn given(tree: &Tree, from: (u32, u32), to: (u32, u32)) -> usize {
    let owner = |path: &std::path::PathBuf| (tree.0[path].uid, tree.0[path].gid);
    let strange: Vec<_> = tree.0.keys().filter(|path| ![from, to].contains(&owner(path))).collect();
    assert!(strange.is_empty(), "{strange:?}");
    tree.0.keys().filter(|path| owner(path) == to).count()
}

for_each_engine!(a_stopped_change_of_owner_does_no_harm_and_can_be_done_again, [v20, v28_containerd], |engine| {
    let outside = engine.folder().join("tmp/outside");
    write_files(&outside, &[("precious", "1")]);
    let root = engine.volume("project-cache", &[("cargo/credentials.toml", "1")]);
    big_tree(&root.join("pip"), 8000, 80_000);
    fs::set_permissions(root.join("cargo/credentials.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&outside, root.join("pip/dir")).unwrap();
    symlink(outside.join("precious"), root.join("pip/link")).unwrap();
    engine.build("RUN true", &["--tag", "box"]);
    let create = "create --user 1234:4321 --volume project-cache:/cache box /bin/busybox true";
    engine.docker(&create.split(' ').collect::<Vec<_>>());
    let before = Tree::read(&root);
    let modes = |tree: &Tree| tree.0.values().map(|entry| entry.mode).collect::<Vec<_>>();
    let samples: Vec<_> = before.0.keys().filter(|path| before.0[*path].kind == "file").step_by(400).collect();
    let fix = ["cache", "doctor", "--fix", "--check", "volume-owner", "--force"];
    engine.cache_command(&[]);
    let (mut stopped, mut halfway) = (0, 0);
    for round in 0..8 {
        before.0.keys().for_each(|path| lchown(root.join(path), Some(0), Some(0)).unwrap());
        let mut command = engine.command(engine.config().join("cli-plugins/docker-cache"));
        let child = command.args(fix).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Once the first entries are given, at another moment each time.
        let begin = Instant::now();
        let begun = || samples.iter().any(|path| root.join(path).symlink_metadata().unwrap().uid() == 1234);
        while !begun() {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is given");
        }
        thread::sleep(Duration::from_millis(round * 2));
        let signal = if round % 2 == 0 { Signal::INT } else { Signal::KILL };
        kill_process(Pid::from_child(&child), signal).unwrap();
        let run = Run::from_output(fix.join(" "), child.wait_with_output().unwrap());
        assert!(run.code == 0 || signal == Signal::KILL || run.code == 130, "{run}");
        stopped += usize::from(run.code != 0);
        let now = Tree::read(&root);
        let count = given(&now, (0, 0), (1234, 4321));
        let half = count < before.0.len();
        assert!(!half || signal == Signal::KILL || run.stderr.contains("run it again to go on"), "{run}");
        halfway += usize::from(half);
        assert_eq!(modes(&now), modes(&before));

        engine.cache(&fix[1..]).ok();
        let after = Tree::read(&root);
        assert_eq!(given(&after, (0, 0), (1234, 4321)), before.0.len());
        assert_eq!(modes(&after), modes(&before));
        assert!([&outside, &outside.join("precious")].iter().all(|path| path.metadata().unwrap().uid() == 0));
    }
    assert!(stopped >= 2 && halfway >= 1, "{stopped} were stopped, {halfway} of them halfway");
});

/// Stops this engine's plugin for longer than a second, once it has begun.
fn hold(engine: &Engine, begun: impl Fn() -> bool) {
    let plugin = engine.config().join("cli-plugins/docker-cache");
    let begin = Instant::now();
    while !begun() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is given");
    }
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == plugin);
    // It may be over.
    let pids: Vec<Pid> = pids.filter(is_it).filter_map(Pid::from_raw).collect();
    for signal in [Signal::STOP, Signal::CONT] {
        let _ = pids.iter().try_for_each(|pid| kill_process(*pid, signal));
        thread::sleep(Duration::from_millis(1200 * u64::from(signal == Signal::STOP)));
    }
}

for_each_engine!(a_change_of_owner_is_counted_at_a_terminal, [v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[]);
    big_tree(&root.join("pip"), 30_000, 30_000);
    engine.build("RUN true", &["--tag", "box"]);
    let create = "create --user 1234:4321 --volume project-cache:/cache box /bin/busybox true";
    engine.docker(&create.split(' ').collect::<Vec<_>>());
    let paths: Vec<_> = Tree::read(&root).0.into_keys().map(|path| root.join(path)).collect();
    let given = |path: &std::path::PathBuf| path.symlink_metadata().unwrap().uid() == 1234;
    let done = format!("\r\x1b[KEntries changed: {}\r\n", paths.len());
    // It tells nothing in its first second, in which a fast machine may do it all.
    let told = (0..10).any(|_| {
        paths.iter().for_each(|path| lchown(path, Some(0), Some(0)).unwrap());
        let run = thread::scope(|scope| {
            scope.spawn(|| hold(engine, || paths.iter().step_by(400).any(given)));
            engine.at_terminal("doctor --fix --check volume-owner", "[y/N] ", "y\n").ok()
        });
        assert!(paths.iter().all(given), "{run}");
        let states: Vec<_> = run.stdout.split("\r\x1b[KChanging owners  ").skip(1).collect();
        // As long as nothing is changed it tells the time: "1s".
        let counts = states.iter().filter_map(|state| state.split_once(" files")?.0.parse().ok());
        let counts: Vec<usize> = counts.collect();
        assert!(counts.is_sorted() && counts.iter().all(|count| *count <= paths.len()), "{run}");
        // What was told of the way is gone at the end.
        assert_eq!(run.stdout.ends_with(&done), !states.is_empty(), "{run:?}");
        !counts.is_empty()
    });
    assert!(told, "ten changes of {} owners took less than a second each", paths.len());
});
