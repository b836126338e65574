//! `docker cache size`: its rows against what the engines really hold.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::for_each_engine;
use crate::support::debian::Tool;
use crate::support::process::{self, Run};
use crate::support::world::{Tree, assert_same, fake_docker, write_files};
use crate::support::{Engine, Generation};

/// Runs `docker cache size --format json ARGS` and returns its object.
#[track_caller]
fn size(engine: &Engine, arguments: &[&str]) -> Value {
    let run = engine.cache(&[&["size", "--format", "json"], arguments].concat()).ok();
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

/// Returns the rows whose fields have these values.
fn rows<'a>(answer: &'a Value, fields: &[(&str, &str)]) -> Vec<&'a Value> {
    let caches = answer["caches"].as_array().unwrap().iter();
    caches.filter(|row| fields.iter().all(|(name, value)| row[name] == *value)).collect()
}

#[track_caller]
fn row<'a>(answer: &'a Value, fields: &[(&str, &str)]) -> &'a Value {
    let found = rows(answer, fields);
    assert_eq!(found.len(), 1, "{fields:?} in {answer:#}");
    found[0]
}

/// Returns what `du` would say of a tree: its blocks, hard links once.
fn disk_bytes(root: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    fn walk(path: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
        let stat = fs::symlink_metadata(path).unwrap();
        if !seen.insert(stat.ino()) {
            return 0;
        }
        let below = match stat.is_dir() {
            true => fs::read_dir(path).unwrap().map(|entry| walk(&entry.unwrap().path(), seen)).sum(),
            false => 0,
        };
        stat.blocks() * 512 + below
    }
    walk(root, &mut seen)
}

const FILES: &[(&str, &str)] = &[
    ("pip/wheels/a", "wheel"),
    ("npm/_cacache/b", "package"),
    ("cargo/registry/c", "crate"),
    ("cargo/bin/tool", "program"),
    ("cargo/credentials.toml", "token"),
    ("1password/secrets/s", "secret"),
    ("mine/notes", "nobody knows this"),
];

for_each_engine!(volume_rows_are_what_the_disk_holds, [v20, v26, v28_containerd], |engine| {
    let root = engine.volume("project-cache", FILES);
    let answer = size(engine, &[]);
    for (directory, tool, class) in [
        ("pip", "pip", "cache"),
        ("npm", "npm", "cache"),
        ("cargo/registry", "cargo", "cache"),
        ("cargo/bin", "cargo", "install"),
        ("cargo/credentials.toml", "cargo", "secret"),
    ] {
        let path = format!("/cache/{directory}");
        let row = row(&answer, &[("kind", "volume"), ("path", &path)]);
        assert_eq!((row["tool"].as_str(), row["class"].as_str()), (Some(tool), Some(class)), "{path}");
        assert_eq!(row["bytes"].as_u64().unwrap(), disk_bytes(&root.join(directory)), "{path}");
    }
    assert_eq!(row(&answer, &[("path", "/cache")])["class"], "state", "what nobody knows is no cache");
    let secrets = rows(&answer, &[("class", "secret")]);
    assert!(secrets.iter().any(|row| row["path"].as_str().unwrap().starts_with("/cache/1password")), "{answer:#}");
    let sum: u64 = rows(&answer, &[("kind", "volume")]).iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, disk_bytes(&root), "no byte twice, none missing");
});

for_each_engine!(measuring_changes_nothing_and_leaves_nothing, [all], |engine| {
    let root = engine.volume("project-cache", FILES);
    engine.build("RUN --mount=type=cache,id=pip,target=/root/.cache/pip echo 1 > /root/.cache/pip/wheel", &[]);
    let state = |engine: &Engine| {
        let ids = |path: &str, key: &str| {
            let mut ids: Vec<String> =
                engine.api(path).as_array().unwrap().iter().map(|item| item[key].to_string()).collect();
            ids.sort();
            ids
        };
        let mut records: Vec<String> = engine.lasting_records().iter().map(|record| record["ID"].to_string()).collect();
        records.sort();
        (ids("/images/json?all=1", "Id"), ids("/containers/json?all=1", "Id"), engine.api("/volumes"), records)
    };
    let (tree, before) = (Tree::read(&root), state(engine));
    size(engine, &["--exact"]);
    assert_same(&tree, &Tree::read(&root));
    assert_eq!(before, state(engine));
});

for_each_engine!(volumes_are_found_by_mounts_labels_and_names, [v20, v26, v28_containerd], |engine| {
    engine.build("RUN true", &["--tag", "box"]);
    for name in ["work_pip-cache", "plain", "database", "labelled", "x_npm"] {
        engine.volume(name, &[("file", "content")]);
    }
    engine.docker(&["volume", "create", "--label", "com.docker.compose.volume=npm-cache", "proj_1"]);
    let create = ["create", "--volume", "plain:/root/.cargo/registry", "--volume", "database:/var/lib/postgresql/data"];
    engine.docker(&[&create[..], &["--volume", "x_npm:/home/dev/.npm", "box", "true"]].concat());
    let answer = size(engine, &[]);
    let found: std::collections::BTreeSet<&str> =
        rows(&answer, &[("kind", "volume")]).iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["plain", "proj_1", "work_pip-cache", "x_npm"]);
    assert_eq!(row(&answer, &[("name", "plain")])["tool"], "cargo");
    assert_eq!(row(&answer, &[("name", "x_npm")])["path"], "/home/dev/.npm");
    assert_eq!(row(&answer, &[("name", "work_pip-cache")])["tool"], "pip");
    let named = size(engine, &["--volume", "database"]);
    assert_eq!(rows(&named, &[]).len(), 1, "{named:#}");
    assert_eq!(row(&named, &[("name", "database")])["class"], "state");
});

for_each_engine!(mount_rows_are_the_engines_records, [all], |engine| {
    engine.build(
        "RUN --mount=type=cache,target=/root/.cache/pip echo 12345 > /root/.cache/pip/wheel\n\
         RUN --mount=type=cache,id=npm,target=/root/.npm echo 1 > /root/.npm/a\n\
         RUN --mount=type=cache,id=npm,target=/root/.npm,uid=1000 echo 2 > /root/.npm/a\n\
         RUN --mount=type=cache,\"id=a b with id x\",target=/q echo 3 > /q/a; echo ' with id \"/zzz\"'",
        &[],
    );
    let answer = size(engine, &[]);
    let sum = |kind: &str, key: &str| -> u64 {
        rows(&answer, &[("kind", kind)]).iter().map(|row| row[key].as_u64().unwrap()).sum()
    };
    let bytes = |mounts: bool| -> u64 {
        let records = engine.records().into_iter();
        let wanted = records.filter(|record| (record["Type"] == "exec.cachemount") == mounts);
        wanted.map(|record| record["Size"].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("mount", "bytes"), sum("layer", "bytes")), (bytes(true), bytes(false)));
    assert_eq!(row(&answer, &[("kind", "mount"), ("tool", "pip")])["name"], "/root/.cache/pip");
    let tells_ids = engine.generation() != Generation::V20;
    let named = if tells_ids { ["npm", "a b with id x"] } else { ["/root/.npm", "/q"] };
    for name in named {
        row(&answer, &[("kind", "mount"), ("name", name)]);
    }
    assert_eq!(rows(&answer, &[("kind", "mount")]).len(), 3, "{answer:#}");
    let only = size(engine, &["--mount", named[0]]);
    assert_eq!(rows(&only, &[]).len(), 1);
    assert!(row(&only, &[])["last_used"].as_u64().unwrap() > 1_700_000_000);
});

for_each_engine!(exact_sizes_come_from_inside_the_mount, [v26, v26_containerd, v28, v28_containerd], |engine| {
    let dockerfile =
        |n: u32| format!("RUN --mount=type=cache,id=pip,target=/p dd if=/dev/zero of=/p/f{n} bs=4096 count=50 # {n}");
    engine.build(&dockerfile(1), &[]);
    size(engine, &[]);
    engine.build(&dockerfile(2), &[]);
    engine.build(&dockerfile(3), &[]);
    let answer = size(engine, &["--exact"]);
    let pip = row(&answer, &[("kind", "mount"), ("name", "pip")]);
    let bytes = pip["bytes"].as_u64().unwrap();
    assert!((3 * 50 * 4096..3 * 50 * 4096 + 20_000).contains(&bytes), "{pip}");
    assert_eq!((pip["exact"].as_bool(), pip["files"].as_u64()), (Some(true), Some(3)));
});

for_each_engine!(a_mount_of_several_things_counts_for_a_budget_by_its_caches, [v26, v28_containerd], |engine| {
    engine.build(
        "RUN --mount=type=cache,target=/usr/local/cargo cd /usr/local/cargo; mkdir -p bin registry/cache; \
         dd if=/dev/zero of=bin/tool bs=4096 count=100; dd if=/dev/zero of=registry/cache/x bs=4096 count=50",
        &[],
    );
    let size = |exact: &[&str]| {
        let line = ["size", "--mount", "/usr/local/cargo", "--budget", "300kB", "--format", "json"];
        let run = engine.cache(&[&line[..], exact].concat());
        let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
        (run.code, answer)
    };
    let (code, answer) = size(&[]);
    let budget = &answer["budget"];
    assert_eq!((code, &budget["used_bytes"], &budget["over"]), (1, &0.into(), &false.into()), "{answer:#}");
    assert!(budget["unmeasured_bytes"].as_u64().unwrap() > 600_000, "{answer:#}");
    let (code, answer) = size(&["--exact"]);
    let budget = &answer["budget"];
    assert_eq!((code, &budget["unmeasured_bytes"]), (0, &0.into()), "{answer:#}");
    assert!((200_000..300_000).contains(&budget["used_bytes"].as_u64().unwrap()), "{answer:#}");
    assert_eq!(row(&answer, &[("path", "/usr/local/cargo/bin")])["class"], "install");

    // A word means a part of a mount, too, which only a look into it can tell.
    engine.build("RUN --mount=type=cache,target=/root mkdir -p /root/.npm; echo 1 > /root/.npm/x", &[]);
    let run = engine.cache(&["size", "npm"]);
    assert!(run.code == 1 && run.stderr.contains("hint: `docker cache size --exact npm`"), "{run}");
    let answer: Value =
        serde_json::from_str(&engine.cache(&["size", "--exact", "npm", "--format", "json"]).ok().stdout).unwrap();
    assert_eq!(row(&answer, &[])["path"], "/root/.npm");
    let run = engine.cache(&["size", "--tool", "npm", "--budget", "1B", "--format", "json"]);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(run.code == 1 && answer["budget"]["unmeasured_bytes"].as_u64() > Some(0), "{run}");
});

for_each_engine!(a_budget_counts_what_its_clear_frees, [v20, v26, v28, v28_containerd], |engine| {
    engine.build("COPY busybox /again", &["--tag", "kept"]);
    engine.build("COPY busybox /other", &[]);
    let size = || {
        let run = engine.cache(&["size", "--budget", "1MB", "--format", "json"]);
        (run.code, serde_json::from_str::<Value>(&run.stdout).unwrap())
    };
    let (code, answer) = size();
    assert_eq!((code, &answer["budget"]["over"]), (1, &true.into()), "{answer:#}");
    let run = engine.cache(&["clear", "--layers", "--to-budget", "1MB", "--force"]).ok();
    let (code, answer) = size();
    assert_eq!(code, 0, "{run} {answer:#}");
    engine.docker(&["image", "inspect", "kept"]);
});

for_each_engine!(filters_narrow, [v20, v28_containerd], |engine| {
    engine.volume("project-cache", FILES);
    engine.build("RUN --mount=type=cache,target=/root/.cache/pip echo 1 > /root/.cache/pip/wheel", &[]);
    let tools = |arguments: &[&str]| -> Vec<String> {
        let answer = size(engine, arguments);
        let mut tools: Vec<String> = rows(&answer, &[]).iter().map(|row| row["tool"].to_string()).collect();
        tools.sort();
        tools.dedup();
        tools
    };
    assert_eq!(tools(&["--lang", "python"]), ["\"pip\""]);
    assert_eq!(tools(&["--lang", "js,rs"]), ["\"cargo\"", "\"npm\""]);
    assert_eq!(tools(&["--tool", "npm"]), ["\"npm\""]);
    assert_eq!(tools(&["npm"]), ["\"npm\""]);
    let volume = size(engine, &["--volume", "project-cache"]);
    assert_eq!(rows(&volume, &[("kind", "mount")]).len() + rows(&volume, &[("kind", "layer")]).len(), 0);
    for (arguments, word) in [
        (["--volume", "nosuch"], "nosuch"),
        (["--mount", "nosuch"], "nosuch"),
        (["--builder", "nosuch"], "nosuch"),
        (["nosuch", "--quiet"], "nosuch"),
    ] {
        let run = engine.cache(&[&["size"], &arguments[..]].concat());
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run}");
        assert!(run.stderr.contains(word) && run.stderr.contains("hint: "), "{run}");
    }
    assert!(!engine.api("/volumes").to_string().contains("nosuch"), "asking for a volume must not make it");
});

for_each_engine!(all_builders_are_counted, [v26, v28_containerd], |engine| {
    let second = engine.second_context("second");
    let far = second.remote_builder("unused");
    engine.docker(&["buildx", "create", "--driver", "remote", "--name", "far", &far.address()]);
    let context = engine.context("RUN --mount=type=cache,id=pip,target=/p echo 1 > /p/a");
    engine.docker(&["--context", "second", "buildx", "build", &context.path().display().to_string()]);
    assert_eq!(rows(&size(engine, &[]), &[("kind", "mount")]).len(), 0);
    let answer = size(engine, &["--all-builders"]);
    // The same BuildKit, once over the Engine API and once over `buildx du`, is counted once.
    assert!(row(&answer, &[("kind", "mount")])["bytes"].as_u64().unwrap() > 0, "{answer:#}");
    assert_eq!(rows(&size(engine, &["--builder", "second"]), &[("kind", "mount")]).len(), 1);
    assert_eq!(rows(&size(engine, &["--builder", "far"]), &[("kind", "mount")]).len(), 1);
    let asked = Run::of(engine.cache_command(&["size", "--format", "json"]).env("BUILDX_BUILDER", "second")).ok();
    assert!(asked.stdout.contains("\"second\""), "{asked}");
});

for_each_engine!(
    an_engine_is_not_asked_for_its_build_cache_if_another_builder_is_meant,
    [v26, v28_containerd],
    |engine| {
        let _far = engine.remote_builder("far");
        let (run, calls) = engine.cache_told(&["size", "--builder", "far"]);
        run.ok();
        assert!(
            calls.contains("docker buildx ls") && calls.contains("GET /volumes") && !calls.contains("/system/df"),
            "{calls}"
        );
        let (run, calls) = engine.cache_told(&["size"]);
        run.ok();
        assert!(calls.contains("GET /system/df"), "{calls}");
    }
);

for_each_engine!(buildx_is_asked_only_where_there_may_be_other_builders, [v26, v28_containerd], |engine| {
    engine.build("RUN --mount=type=cache,id=pip,target=/p echo 1 > /p/a", &[]);
    let asks_buildx = |words: &[&str]| {
        let (run, calls) = engine.cache_told(words);
        let answer: Value = serde_json::from_str(&run.ok().stdout).unwrap();
        assert_eq!(rows(&answer, &[("kind", "mount"), ("builder", "default")]).len(), 1, "{answer:#}");
        calls.contains("docker buildx ls")
    };
    let size = ["size", "--format", "json"];
    assert!(!asks_buildx(&size));
    assert!(!asks_buildx(&[&size[..], &["--all-builders"]].concat()));
    engine.docker(&["buildx", "create", "--driver", "remote", "--name", "dead", "tcp://127.0.0.1:9"]);
    assert!(asks_buildx(&size));
    engine.docker(&["buildx", "rm", "dead"]);
    assert!(!asks_buildx(&size));
    engine.docker(&["context", "create", "other", "--docker", "host=tcp://127.0.0.1:9"]);
    assert!(asks_buildx(&size));
    let run = engine.cache(&["size", "--builder", "nosuch"]);
    assert!(run.code == 1 && run.stderr.contains("no builder \"nosuch\""), "{run}");
});

for_each_engine!(context_flag_asks_that_context, [v20, v28], |engine| {
    let second = engine.second_context("second");
    second.volume("there-cache", &[("pip/a", "b")]);
    let plugin = ["--context", "second", "cache", "size", "--format", "json"];
    engine.cache(&["--help"]);
    let run = engine.docker(&plugin);
    assert!(run.stdout.contains("there-cache"), "{run}");
    assert!(!engine.cache(&["size"]).stdout.contains("there-cache"));
});

for_each_engine!(dead_builder_is_a_gap_not_an_end, [v28], |engine| {
    engine.docker(&["buildx", "create", "--driver", "remote", "--name", "dead", "tcp://127.0.0.1:9"]);
    let run = engine.cache(&["size", "--all-builders"]);
    assert_eq!(run.code, 0, "{run}");
    assert!(run.stderr.contains("builder dead is not counted"), "{run}");
    // It may hold anything.
    let run = engine.cache(&["size", "--all-builders", "--budget", "1TB", "--format", "json"]);
    assert!(run.code == 1 && run.stdout.contains("\"missing\":true,\"over\":false"), "{run}");
    let run = engine.cache(&["size", "--builder", "dead"]);
    assert!(run.code == 1 && run.stderr.contains("127.0.0.1:9"), "{run}");
    assert!(!run.stderr.contains("start the engine"), "{run}");
    let export = ["export", "--dest", &engine.folder().join("bundle").display().to_string()];
    let run = engine.cache(&[&export[..], &["--all-builders"]].concat());
    assert!(run.code == 1 && run.stderr.contains("left out: the mounts of builder dead"), "{run}");
});

#[test]
fn another_file_system_in_a_volume_is_not_counted() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "b")]);
    let tmpfs = root.join("pip").display().to_string();
    Run::of(std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs", &tmpfs])).ok();
    fs::write(root.join("pip/hidden"), vec![1; 100_000]).unwrap();
    let answer = size(&engine, &[]);
    Run::of(std::process::Command::new("umount").arg(&tmpfs)).ok();
    assert!(answer["total_bytes"].as_u64().unwrap() < 100_000, "{answer:#}");
}

#[test]
fn unreadable_entries_are_counted_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let (program, tree) = (folder.path().join("docker-cache"), folder.path().join("tree"));
    fs::copy(env!("CARGO_BIN_EXE_docker-cache"), &program).unwrap();
    write_files(&tree, &[("open/a", "b"), ("closed/c", "d")]);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    let job = folder.path().join("job");
    fs::write(&job, serde_json::json!({"measure": [{"root": tree, "known": []}]}).to_string() + "\n").unwrap();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let run = Run::of(
        std::process::Command::new("setpriv")
            .args(nobody)
            .arg(&program)
            .arg("inside")
            .stdin(fs::File::open(job).unwrap()),
    );
    let answer: Value = serde_json::from_str(run.ok().stdout.lines().last().unwrap()).unwrap();
    let measured = &answer["measured"][0];
    assert_eq!((measured["rest"]["files"].as_u64(), measured["unreadable_count"].as_u64()), (Some(1), Some(1)));
    assert!(measured["unreadable"][0].as_str().unwrap().starts_with("closed: Permission denied"), "{measured}");
}

#[test]
fn real_package_managers_caches_are_told_apart() {
    let engine = Engine::online(Generation::V28);
    for tool in [Tool::Pip, Tool::Cargo, Tool::Apt] {
        tool.fill_mounts(&engine).ok();
    }
    let answer = size(&engine, &["--exact"]);
    for tool in ["pip", "cargo", "apt"] {
        let found = rows(&answer, &[("kind", "mount"), ("tool", tool)]);
        let bytes: u64 = found.iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
        assert!(bytes > 10_000, "{tool}: {answer:#}");
    }
}

#[test]
fn a_lying_docker_gives_an_error_and_no_rows() {
    let engine = Engine::start(Generation::V28);
    for answer in ["garbage", r#"printf 'HTTP/1.0 200 OK\r\n\r\n{"Volumes":[{"Na'"#, "true", "printf '\\377\\376'"] {
        let script = if answer == "garbage" { "echo garbage" } else { answer };
        let folder = engine.folder().join("fake");
        fake_docker(&folder, script);
        let run = Run::of(
            engine
                .command(env!("CARGO_BIN_EXE_docker-cache"))
                .args(["size"])
                .env("PATH", format!("{}:/usr/bin:/bin", folder.display())),
        );
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{answer}: {run}");
        assert!(run.stderr.starts_with("ERROR: ") && !run.stderr.contains("panicked"), "{answer}: {run}");
    }
}

for_each_engine!(a_watch_tells_a_line_each_time_until_it_is_stopped, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/wheel", "1")]);
    engine.cache_command(&[]);
    let mut command = engine.command(engine.config().join("cli-plugins/docker-cache"));
    command.args(["cache", "size", "--volume", "project-cache", "--watch", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = line();
    write_files(&root, &[("pip/other", "22")]);
    // The volume may be in the middle of being measured.
    let later = [line(), line()].into_iter().last().unwrap();
    assert!(later["total_bytes"].as_u64() > first["total_bytes"].as_u64(), "{first} {later}");
    assert!(later["at"].as_u64() > first["at"].as_u64(), "{first} {later}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let run = Run::from_output("size --watch".into(), child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (130, ""), "{run}");
    // A reader that goes away ends it.
    let pipe = format!("{} cache size --watch 1 | head -n 1", engine.docker_program().display());
    assert!(Run::of(engine.command("timeout").args(["120", "sh", "-c", &pipe])).ok().stdout.starts_with("{\"at\":"));
    let containers = engine.docker(&["ps", "--all", "--quiet"]).stdout;
    assert_eq!(containers, "");
});

for_each_engine!(a_watch_leaves_the_terminal_as_it_was, [v28], |engine| {
    engine.volume("project-cache", &[("pip/wheel", "1")]);
    for (keys, code) in [("q", 0), ("\u{3}", 130)] {
        let run = engine.at_terminal("size --watch 1", "a minute", keys);
        assert_eq!(run.code, code, "{run}");
        assert!(run.stdout.contains("/cache/pip") && run.stdout.contains("Growth:   +0B in"), "{run}");
        assert!(run.stdout.trim_end().ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{run}");
    }
});

/// Returns the samples of `size --history`.
fn history(engine: &Engine, arguments: &[&str]) -> Vec<Value> {
    let answer = size(engine, &[&["--history"], arguments].concat());
    assert_eq!(answer["engine"], engine.host());
    answer["samples"].as_array().unwrap().clone()
}

for_each_engine!(each_size_of_everything_is_remembered, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/wheel", "1")]);
    assert_eq!(engine.cache(&["size", "--history"]).ok().stdout.lines().count(), 1);
    let first = size(engine, &[]);
    fs::write(root.join("pip/other"), [1; 100_000]).unwrap();
    engine.build("RUN --mount=type=cache,target=/c echo 1 > /c/x", &[]);
    // A part of the caches is nothing to compare with, nor are those of other builders.
    for part in [&["pip"][..], &["--lang", "python"], &["--volume", "project-cache"], &["--all-builders"]] {
        size(engine, part);
    }
    let second = size(engine, &[]);
    let found = history(engine, &[]);
    let totals: Vec<_> = found.iter().map(|sample| &sample["total_bytes"]).collect();
    assert_eq!(totals, [&first["total_bytes"], &second["total_bytes"]]);
    for sample in &found {
        let kinds = ["layer_bytes", "mount_bytes", "volume_bytes"].map(|kind| sample[kind].as_u64().unwrap());
        assert_eq!(Some(kinds.iter().sum()), sample["total_bytes"].as_u64(), "{sample}");
    }
    assert!(found[1]["volume_bytes"].as_u64().unwrap() >= found[0]["volume_bytes"].as_u64().unwrap() + 100_000);
    assert_eq!(history(engine, &["--all-builders"]).len(), 1);
    let table = engine.cache(&["size", "--history"]).ok().stdout;
    assert!(table.lines().count() == 3 && table.lines().nth(2).unwrap().contains("   +"), "{table}");
    // It is about what was, so it needs no engine. Docker 20.10 itself would wait for it.
    engine.signal(Signal::STOP);
    let told = Run::of(engine.command(engine.config().join("cli-plugins/docker-cache")).args(["size", "--history"]));
    engine.signal(Signal::CONT);
    assert_eq!(told.ok().stdout.lines().count(), 3);
});

#[test]
fn a_history_that_cannot_be_kept_troubles_nobody() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[("pip/wheel", "1")]);
    let file = engine.folder().join("home/.local/state/docker-cache/sizes.jsonl");
    // Two at once, and more.
    let started: Vec<_> = (0..6)
        .map(|_| engine.cache_command(&["size"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in started {
        let run = Run::from_output("size".into(), child.wait_with_output().unwrap()).ok();
        assert_eq!(run.stderr, "");
    }
    assert_eq!(history(&engine, &[]).len(), 6);
    // Killed while writing, or written by something else.
    let whole = fs::read(&file).unwrap();
    fs::write(&file, [b"\xff\0{]\n{\"engine\":1}\n", &whole[..], b"\n{\"engine\":\"uni"].concat()).unwrap();
    assert_eq!(history(&engine, &[]).len(), 6);
    size(&engine, &[]);
    assert_eq!(history(&engine, &[]).len(), 7);
    // Somebody else holds the file, and no end is in sight.
    let lock = fs::File::open(file.parent().unwrap()).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(engine.cache(&["size"]).ok().stderr, "");
    drop(lock);
    assert_eq!(history(&engine, &[]).len(), 7);
    // No room for a directory; root may write anywhere, so there is a file in the way.
    let state = engine.folder().join("home/.local/state");
    fs::rename(&state, engine.folder().join("state")).unwrap();
    fs::write(&state, "").unwrap();
    assert_eq!(engine.cache(&["size"]).ok().stderr, "");
    let refused = engine.cache(&["size", "--history"]);
    assert!(refused.code == 1 && refused.stderr.contains("sizes.jsonl` cannot be read"), "{refused}");
}

#[test]
fn a_history_can_be_switched_off() {
    let engine = Engine::start(Generation::V28);
    let off = |engine: &Engine| {
        let mut command = engine.cache_command(&["size"]);
        Run::of(command.env("DOCKER_CACHE_HISTORY", "off")).ok();
        history(engine, &[]).len()
    };
    assert_eq!(off(&engine), 0);
    let config = engine.config().join("config.json");
    fs::write(&config, r#"{"plugins":{"cache":{"history":"off"}}}"#).unwrap();
    size(&engine, &[]);
    let told = engine.cache(&["size", "--history"]).ok();
    assert!(told.stderr.contains("switched off") && told.stdout.lines().count() == 1, "{told}");
    // The variable goes before the file.
    let mut command = engine.cache_command(&["size"]);
    Run::of(command.env("DOCKER_CACHE_HISTORY", "on")).ok();
    assert_eq!(history(&engine, &[]).len(), 1);
}

#[test]
fn ctrl_z_gives_the_terminal_back_to_the_shell() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[("pip/wheel", "1")]);
    let watch = format!("{} cache size --watch 1\n", engine.cache_command(&[]).get_program().display());
    let mut script = engine.command("script");
    script.env("PS1", "READY> ").env("TERM", "dumb");
    script.args(["--quiet", "--return", "--command", "bash --norc --noediting -i", "/dev/null"]);
    let keys = [
        ("READY> ", watch.as_str()),
        ("a minute", "\u{1a}"),
        ("Stopped", "stty --all\n"),
        ("susp = ^Z", "fg\n"),
        ("a minute", "q"),
        ("READY> ", "exit\n"),
    ];
    let run = process::typed(script, &keys).ok();
    let before_shell = run.stdout.split("Stopped").next().unwrap_or_default();
    assert!(before_shell.contains("\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l"), "{run}");
}
