//! `docker cache clear`: what was chosen goes, every other byte stays.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use docker_cache::catalogue::{self, Known};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::debian::Tool;
use crate::support::plugin::VolumePlugin;
use crate::support::process::Run;
use crate::support::world::{Tree, assert_same, write_files};
use crate::support::{Engine, Generation, parts};
use crate::{for_each_engine, for_each_generation};

/// Fills a volume with two files for every path of the catalogue, and some that nobody knows.
fn fill_with_catalogue(root: &Path) {
    for Known { path, .. } in catalogue::known_below("/cache") {
        let at = root.join(path.replace('*', "any"));
        write_files(&at, &[("file", "1"), ("deep/er/file", "22")]);
    }
    write_files(root, &[("file at the top", "1"), ("nobody/knows/this", "1"), ("pip2/file", "1"), ("bin/pip", "1")]);
}

/// Returns what must be left: the rule, told by the catalogue and not by the program's walk.
fn without(before: Tree, gone: impl Fn(&Known) -> bool) -> Tree {
    let known = catalogue::known_below("/cache");
    let named: Vec<PathBuf> = known.iter().map(|known| known.path.replace('*', "any").into()).collect();
    before.only(|path| {
        let text: String = path.as_os_str().as_bytes().iter().map(|byte| *byte as char).collect();
        let goes = catalogue::deepest(&known, &text).is_some_and(&gone);
        !goes || named.iter().any(|name| name.starts_with(path))
    })
}

#[track_caller]
fn json(engine: &Engine, arguments: &[&str]) -> Value {
    let run = engine.cache(&[&["clear", "--format", "json"], arguments].concat()).ok();
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

/// Returns whatever a clear may leave on an engine by mistake.
fn leftovers(engine: &Engine) -> String {
    let containers = engine.docker(&["ps", "--all", "--quiet"]).stdout;
    let images =
        engine.docker(&["image", "ls", "--all", "--quiet", "--filter", "reference=docker-cache-helper-*"]).stdout;
    containers + &images
}

for_each_engine!(nothing_but_y_at_the_prompt_clears, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/wheel", "1"), ("npm/_cacache/index", "1")]);
    let before = Tree::read(&root);
    for (keys, code) in [("n\n", 0), ("\n", 0), ("yes please\n", 0), ("\u{4}", 0), ("\u{3}", 130)] {
        let run = engine.at_terminal("clear --lang python", "[y/N] ", keys);
        assert_eq!(run.code, code, "{run}");
        assert!(run.stdout.contains("WARNING!") && run.stdout.contains("pip"), "{run}");
        assert_same(&Tree::read(&root), &before);
        assert_eq!(leftovers(engine), "", "{run}");
    }
    engine.at_terminal("clear --lang python", "[y/N] ", "y\n").ok();
    assert!(!root.join("pip/wheel").exists() && root.join("npm/_cacache/index").exists());
    assert_eq!(leftovers(engine), "");
});

for_each_engine!(a_language_goes_and_every_other_byte_stays, [v20, v26, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[]);
    fill_with_catalogue(&root);
    let before = Tree::read(&root);
    let plan = json(engine, &["--lang", "python", "--dry-run"]);
    assert_same(&before, &Tree::read(&root));
    assert!(plan["freed_bytes"].is_null());
    let done = json(engine, &["--lang", "python", "--force"]);
    assert_eq!(done["plan"], plan["plan"]);
    assert_eq!(done["freed_bytes"], plan["total_bytes"]);
    assert!(plan["total_bytes"].as_u64() > Some(0));
    let python = |known: &Known| known.row.language == "python" && known.class.is_deletable();
    assert_same(&without(before, python).timeless(), &Tree::read(&root).timeless());
    assert_eq!(json(engine, &["--lang", "python", "--force"])["freed_bytes"], 0);
    assert_eq!(leftovers(engine), "");
});

for_each_engine!(a_volume_loses_its_caches_and_nothing_that_is_none, [v20, v26, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[]);
    fill_with_catalogue(&root);
    let other = engine.volume("other-cache", &[("pip/file", "1")]);
    let before = Tree::read(&root);
    engine.cache(&["clear", "--volume", "project-cache", "--force"]).ok();
    assert_same(&without(before, |known| known.class.is_deletable()).timeless(), &Tree::read(&root).timeless());
    assert!(other.join("pip/file").exists());
});

for_each_engine!(installs_go_only_by_name_and_on_demand, [v20, v28_containerd], |engine| {
    let files = &[
        ("pipx/venvs/a/bin/tool", "1"),
        ("pipx/.cache/x", "1"),
        ("cargo/bin/tool", "1"),
        ("cargo/credentials.toml", "1"),
    ];
    let root = engine.volume("project-cache", files);
    assert_eq!(engine.cache(&["clear", "--lang", "python", "--include-installs", "--force"]).code, 125);
    assert!(root.join("pipx/.cache/x").exists());
    engine.cache(&["clear", "--all", "--force"]).ok();
    assert!(root.join("pipx/venvs/a/bin/tool").exists() && !root.join("pipx/.cache/x").exists());
    engine.cache(&["clear", "--tool", "pipx", "--include-installs", "--force"]).ok();
    assert!(!root.join("pipx/venvs").exists());
    assert!(root.join("cargo/bin/tool").exists() && root.join("cargo/credentials.toml").exists());
});

const MOUNTS: &str = "RUN --mount=type=cache,target=/root/.cache/pip --mount=type=cache,id=uv,target=/root/.cache/uv \
     --mount=type=cache,target=/root/.npm --mount=type=cache,target=/usr/local/cargo/registry \
     --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/go/pkg/mod \
     for at in /root/.cache/pip /root/.cache/uv /root/.npm /usr/local/cargo/registry /var/cache/apt /go/pkg/mod; do \
     echo $at > $at/file; done\n\
     RUN --mount=type=cache,target=/root/.cache/pip,uid=1000,mode=0777 echo variant > /root/.cache/pip/file";

/// Returns the targets of the mounts that an engine has, sorted.
fn targets(engine: &Engine) -> Vec<String> {
    let words = |mount: &Value| mount["Description"].as_str().unwrap().split(' ').nth(2).unwrap().to_owned();
    let mut targets: Vec<String> = engine.mounts().iter().map(words).collect();
    targets.sort();
    targets
}

/// Builds [`MOUNTS`] and waits for their records: right after a build an engine may not tell of all of them.
#[track_caller]
fn fill_mounts(engine: &Engine) {
    engine.build(MOUNTS, &["--tag", "kept"]);
    let begin = Instant::now();
    while targets(engine).len() != 7 {
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", targets(engine));
        std::thread::sleep(Duration::from_millis(50));
    }
}

for_each_engine!(mounts_of_a_language_go_with_all_variants_and_the_others_stay, [all], |engine| {
    fill_mounts(engine);
    let before = engine.records();
    let python = |record: &Value| {
        let text = record["Description"].as_str().unwrap();
        record["Type"] == "exec.cachemount"
            && (text.contains("mount /root/.cache/pip") || text.contains("mount /root/.cache/uv"))
    };
    let plan = json(engine, &["--lang", "python", "--dry-run"]);
    assert_eq!(engine.records().len(), before.len());
    let done = json(engine, &["--lang", "python", "--force"]);
    assert_eq!(done["plan"], plan["plan"]);
    let ids = |records: &[Value]| -> Vec<String> {
        let mut ids: Vec<_> = records.iter().map(|record| record["ID"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let expected: Vec<Value> = before.iter().filter(|record| !python(record)).cloned().collect();
    assert_eq!(ids(&engine.records()), ids(&expected));
    engine.build(
        "RUN --mount=type=cache,target=/root/.npm --mount=type=cache,target=/root/.cache/pip \
         test \"$(cat /root/.npm/file)\" = /root/.npm && test ! -e /root/.cache/pip/file",
        &[],
    );
});

for_each_engine!(one_mount_goes_by_its_id_or_target, [all], |engine| {
    fill_mounts(engine);
    let name = if engine.generation() == Generation::V20 { "/root/.cache/uv" } else { "uv" };
    engine.cache(&["clear", "--mount", name, "--force"]).ok();
    assert_eq!(targets(engine).len(), 6);
    assert!(!targets(engine).contains(&"/root/.cache/uv".to_owned()));
    let wrong = engine.cache(&["clear", "--mount", "u", "--force"]);
    assert_eq!((wrong.code, targets(engine).len()), (1, 6), "{wrong}");
    // No engine tells an id that is the target without its slash.
    engine.build("RUN --mount=type=cache,id=small,target=/small true", &[]);
    let name = if engine.generation() == Generation::V20 { "/small" } else { "small" };
    engine.cache(&["clear", "--mount", name, "--force"]).ok();
    assert!(!targets(engine).contains(&"/small".to_owned()) && targets(engine).len() == 6);
});

/// Returns the files in a mount, by a build that looks.
fn inside(engine: &Engine, target: &str) -> Vec<String> {
    static NONCE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let nonce = NONCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let look = format!(
        "RUN --mount=type=cache,target={target} : {nonce}; cd {}; find . -type f | sed s/^/FILE=/",
        target.split(',').next().unwrap()
    );
    let run = engine.build(&look, &[]);
    let mut files: Vec<String> =
        run.stderr.lines().filter_map(|line| Some(line.split_once(" FILE=./")?.1.to_owned())).collect();
    files.sort();
    files
}

for_each_engine!(
    a_mount_of_many_things_loses_only_what_was_chosen,
    [v20, v26, v26_containerd, v28, v28_containerd],
    |engine| {
        engine.build(
        "RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/usr/local/cargo \
         cd /root/.cache; mkdir -p pip/wheels go-build own; echo 1 > pip/wheels/a; echo 1 > go-build/b; echo 1 > own/c; \
         cd /usr/local/cargo; mkdir -p bin registry/cache; echo 1 > bin/tool; echo 1 > registry/cache/x; echo 1 > credentials.toml",
        &[],
    );
        let count = engine.lasting_records().len();
        let run = engine.cache(&["clear", "--lang", "python,rust", "--force"]).ok();
        if engine.generation() == Generation::V20 {
            // Its records tell no ids, so a build might get another mount.
            assert!(run.stderr.contains("not looked into"), "{run}");
            assert_eq!(inside(engine, "/root/.cache").len(), 3);
            assert_eq!(inside(engine, "/usr/local/cargo").len(), 3);
            return;
        }
        assert_eq!(engine.lasting_records().len(), count, "{:?}", engine.records());
        assert_eq!(inside(engine, "/root/.cache"), ["go-build/b", "own/c"], "{run}");
        assert_eq!(inside(engine, "/usr/local/cargo"), ["bin/tool", "credentials.toml"], "{run}");
    }
);

for_each_engine!(a_mount_on_all_of_a_home_loses_only_its_caches, [v20, v26, v28_containerd], |engine| {
    engine.build(
        "RUN --mount=type=cache,target=/root cd /root; mkdir -p .ssh .cargo .cache/pip; \
         echo 1 > .ssh/id; echo 1 > .cargo/credentials.toml; echo 1 > .cache/pip/wheel",
        &[],
    );
    let kept = [".cache/pip/wheel", ".cargo/credentials.toml", ".ssh/id"];
    // Engine 20.10 tells no ids, so that no build can be sure to look into this mount.
    let kept = if engine.generation() == Generation::V20 { &kept[..] } else { &kept[1..] };
    for chosen in [&["--mount", "/root"][..], &["--all"]] {
        let run = engine.cache(&[&["clear", "--force"], chosen].concat()).ok();
        assert_eq!(inside(engine, "/root"), kept, "{run}");
    }
});

for_each_engine!(a_mount_on_all_of_cache_loses_only_its_caches, [v26, v28, v28_containerd], |engine| {
    for (round, chosen) in [&["--mount", "/cache"][..], &["--all"], &["--keep", "1B"]].into_iter().enumerate() {
        engine.build(
            &format!("RUN --mount=type=cache,target=/cache : {round}; cd /cache; mkdir -p pip/wheels cargo/bin cargo/registry own; \
             echo 1 > pip/wheels/a; echo 1 > cargo/bin/tool; echo 1 > cargo/credentials.toml; echo 1 > cargo/registry/x; \
             echo 1 > own/c"),
            &[],
        );
        let run = engine.cache(&[&["clear", "--force"], chosen].concat()).ok();
        assert_eq!(inside(engine, "/cache"), ["cargo/bin/tool", "cargo/credentials.toml", "own/c"], "{run}");
    }
});

#[test]
fn what_looks_into_mounts_leave_goes_first_and_with_the_next_clear_of_all() {
    let engine = Engine::start(Generation::V28Containerd);
    engine.build("RUN --mount=type=cache,target=/root mkdir -p /root/.cache/pip; echo 1 > /root/.cache/pip/wheel", &[]);
    engine.build("COPY busybox /copied", &[]);
    let programs = || {
        let is = |record: &Value| record["Description"] == "local source for docker-cache-program";
        engine.records().into_iter().filter(is).count()
    };
    let contexts = || {
        let is = |record: &Value| {
            record["Description"] == "local source for context" && record["Size"].as_u64() > Some(1_000_000)
        };
        engine.records().into_iter().filter(is).count()
    };
    let look = || {
        let before = programs();
        engine.cache(&["size", "--exact"]).ok();
        // One of them is of its `.dockerignore`, which is not there.
        assert_eq!((before, programs()), (0, 2), "{:#?}", engine.records());
    };
    look();
    let before = contexts();
    // More than all others have, and less than with the program. Not always does the engine tell at once what images share.
    let run = engine.cache(&["clear", "--layers", "--keep", "15MB", "--force"]).ok();
    assert_eq!((programs(), contexts()), (0, before), "{run} {:#?}", engine.records());
    assert!(before > 0, "{run}");
    look();
    engine.cache(&["clear", "--all", "--force"]).ok();
    assert_eq!(programs(), 0, "{:#?}", engine.records());
    assert!(inside(&engine, "/root").is_empty());
    engine.cache(&["clear", "--all", "--force"]).ok();
    assert_eq!(programs(), 0, "{:#?}", engine.records());
}

for_each_engine!(one_directory_of_a_mount_goes_with_itself_and_nothing_else, [v26, v28, v28_containerd], |engine| {
    engine.build(
        "RUN --mount=type=cache,target=/root/.cache --mount=type=cache,id=go-mod,target=/m \
         cd /root/.cache; mkdir -p pip/wheels/a pip/http pypoetry/virtualenvs/old own; echo 1 > pip/wheels/a/b; echo 1 > pip/http/c; \
         echo 1 > pypoetry/virtualenvs/old/d; echo 1 > own/e; ln -s /root/.cache/own pip/link; cd /m; mkdir -p golang.org/a golang.org/b; \
         echo 1 > golang.org/a/f; echo 1 > golang.org/b/g",
        &[],
    );
    let clear = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        engine.cache(&[&["clear", "--force"], &words[..]].concat())
    };
    assert_eq!(clear("--path /root/.cache/pip").code, 125);
    for nowhere in ["/root/.cache/own", "/root/.cache/../.cache/pip", "/elsewhere", "/root/.cache/pip/../own", "pip"] {
        let run = clear(&format!("--mount /root/.cache --path {nowhere}"));
        assert_eq!(run.code, 1, "{run}");
    }
    clear("--mount /root/.cache --path /root/.cache/pip/wheels").ok();
    let rest = ["own/e", "pip/http/c", "pypoetry/virtualenvs/old/d"];
    assert_eq!(inside(engine, "/root/.cache"), rest);
    clear("--mount /root/.cache --path /root/.cache/pypoetry/virtualenvs/old").ok();
    clear("--mount /root/.cache --path /root/.cache/pip/link").ok();
    assert_eq!(inside(engine, "/root/.cache"), rest);
    clear("--mount /root/.cache --path /root/.cache/pypoetry/virtualenvs/old --include-installs").ok();
    assert_eq!(inside(engine, "/root/.cache"), &rest[..2]);
    clear("--mount go-mod --path /m/golang.org/a").ok();
    assert_eq!(inside(engine, "/m,id=go-mod"), ["golang.org/b/g"]);
    engine.build("RUN --mount=type=cache,target=/root/.cache,uid=1000 true", &[]);
    let several = clear("--mount /root/.cache --path /root/.cache/pip");
    assert!(several.code == 1 && several.stderr.contains("several variants"), "{several}");
    assert_eq!(inside(engine, "/root/.cache"), &rest[..2]);
});

for_each_engine!(layers_go_alone, [all], |engine| {
    fill_mounts(engine);
    let root = engine.volume("project-cache", &[("pip/file", "1")]);
    let mounts = targets(engine);
    engine.cache(&["clear", "--layers", "--force"]).ok();
    assert!(root.join("pip/file").exists());
    assert_eq!(targets(engine), mounts);
    let left: Vec<Value> = engine.records().into_iter().filter(|record| record["Type"] != "exec.cachemount").collect();
    // A variant of a mount is built on a layer, which has to stay with it.
    assert!(left.len() <= 2, "{left:?}");
});

for_each_engine!(nothing_chosen_explains_and_removes_nothing, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/file", "1")]);
    for arguments in [&["clear"][..], &["clear", "--force"], &["clear", "--all-builders", "--force"]] {
        let run = engine.cache(arguments);
        assert_eq!(run.code, 125, "{run}");
        assert!(run.stderr.contains("--lang") && run.stdout.is_empty(), "{run}");
    }
    let run = engine.cache(&["clear", "--all"]);
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("--force"), "{run}");
    assert!(root.join("pip/file").exists());
});

/// Starts a container `worker` that has the volume `project-cache` at `/cache`.
fn start_worker(engine: &Engine) {
    engine.build("RUN true", &["--tag", "box"]);
    let run = "run --detach --name worker --volume project-cache:/cache box /bin/busybox sleep 600";
    engine.docker(&run.split(' ').collect::<Vec<_>>());
}

for_each_engine!(what_a_container_uses_stays_and_is_named, [v20, v26, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/file", "1")]);
    start_worker(engine);
    let run = engine.cache(&["clear", "--lang", "python", "--force"]).ok();
    assert!(run.stdout.contains("in use by container worker"), "{run}");
    assert!(root.join("pip/file").exists());
    if engine.generation().has_buildx() {
        let bundle = engine.folder().join("bundle").display().to_string();
        engine.cache(&["export", "--dest", &bundle, "--volume", "project-cache"]).ok();
        fs::write(root.join("pip/newer"), "1").unwrap();
        let refused = engine.cache(&["import", "--src", &bundle, "--volume", "project-cache", "--replace"]);
        assert!(refused.code == 1 && refused.stderr.contains("container worker"), "{refused}");
        assert!(root.join("pip/newer").exists());
        engine.cache(&["import", "--src", &bundle, "--volume", "project-cache", "--replace", "--force-in-use"]).ok();
        assert!(!root.join("pip/newer").exists());
    }
    engine.cache(&["clear", "--lang", "python", "--force", "--force-in-use"]).ok();
    assert!(!root.join("pip/file").exists());
    engine.docker(&["rm", "--force", "worker"]);
});

for_each_engine!(files_of_secrets_stay_and_are_named_until_somebody_names_them, [v20, v28], |engine| {
    let root = engine.volume("project-cache", &[("npm/_cacache/a", "1"), ("npm/.npmrc", "1"), ("pip/id_rsa", "1")]);
    let clear = |words: &[&str]| engine.cache(&[&["clear", "--volume", "project-cache", "--force"], words].concat());
    let run = clear(&["--format", "json"]).ok();
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    let kept = told["kept"].as_array().unwrap().iter();
    let kept: Vec<_> = kept.map(|row| (row["path"].as_str().unwrap(), row["class"].as_str().unwrap())).collect();
    assert_eq!(kept, [("/cache/npm/.npmrc", "secret"), ("/cache/pip/id_rsa", "secret")], "{run}");
    assert!(
        !root.join("npm/_cacache").exists() && root.join("npm/.npmrc").exists() && root.join("pip/id_rsa").exists()
    );
    let refused = clear(&["--recreate"]);
    assert!(refused.code == 1 && refused.stderr.contains("/cache/npm/.npmrc (secret)"), "{refused}");
    write_files(&root, &[("npm/_cacache/a", "1")]);
    let bundle = engine.folder().join("bundle").display().to_string();
    engine.cache(&["export", "--dest", &bundle, "--volume", "project-cache"]).ok();
    write_files(&root, &[("npm/_cacache/b", "1")]);
    let run = engine.cache(&["import", "--src", &bundle, "--volume", "project-cache", "--replace"]).ok();
    assert!(run.stderr.contains("npm/.npmrc: it has the name of a file of secrets, and stays"), "{run}");
    let is_there = ["npm/_cacache/a", "npm/_cacache/b", "npm/.npmrc"].map(|path| root.join(path).exists());
    assert_eq!(is_there, [true, false, true]);
    clear(&["--path", "/cache/npm/.npmrc", "--include-installs"]).ok();
    assert!(!root.join("npm/.npmrc").exists() && root.join("pip/id_rsa").exists());
});

for_each_engine!(nothing_is_unmounted_in_a_container_whoever_insists, [v20, v28], |engine| {
    let root = engine.volume("project-cache", &[("pip/file", "1"), ("pip/http/below", "1")]);
    engine.volume("inner-cache", &[]);
    engine.build("RUN true", &["--tag", "box"]);
    fs::remove_file(root.join("pip/http/below")).unwrap();
    let (by_name, by_path) = ("project-cache:/cache".into(), format!("{}:/cache", root.display()));
    for (outer, inner) in [
        (&by_name, ["--volume", "inner-cache:/cache/pip/http"]),
        (&by_name, ["--mount", "type=tmpfs,target=/cache/pip/http"]),
        (&by_name, ["--tmpfs", "/cache/pip/http"]),
        (&by_path, ["--tmpfs", "/cache/pip/http"]),
    ] {
        let run = ["run", "--detach", "--name=worker", "--volume", outer];
        engine.docker(&[&run[..], &inner, &["box", "/bin/busybox", "sleep", "600"]].concat());
        for how in [&[][..], &["--recreate"]] {
            let clear = ["clear", "--volume", "project-cache", "--force", "--force-in-use"];
            let run = engine.cache(&[&clear[..], how].concat());
            let told = run.stderr.contains("container worker") && run.stderr.contains("/cache/pip/http");
            assert!(run.code == 1 && told && root.join("pip/file").exists(), "{inner:?}: {run}");
        }
        engine.docker(&["exec", "worker", "/bin/busybox", "grep", "/cache/pip/http", "/proc/mounts"]);
        engine.docker(&["rm", "--force", "worker"]);
    }
});

for_each_engine!(a_volume_is_in_use_by_whatever_name_a_container_has_it, [v20, v28], |engine| {
    engine.build("RUN true", &["--tag", "box"]);
    let root = engine.volume("project-cache", &[("pip/file", "1")]);
    let there = engine.folder().join("tmp/there");
    write_files(&there, &[("pip/file", "1")]);
    for (name, end) in [("one-cache", ""), ("same-cache", "/"), ("part-cache", "/pip")] {
        let device = format!("device={}{end}", there.display());
        engine.docker(&["volume", "create", "--opt=type=none", "--opt=o=bind", "--opt", &device, name]);
    }
    let run = engine
        .cache(&[
            "size",
            "--volume",
            "one-cache",
            "--volume",
            "part-cache",
            "--volume",
            "same-cache",
            "--format",
            "json",
        ])
        .ok();
    let size: Value = serde_json::from_str(&run.stdout).unwrap();
    let rows = size["caches"].as_array().unwrap();
    assert!(
        rows.iter().all(|row| row["volume"] == "one-cache") && rows.iter().any(|row| row["tool"] == "pip"),
        "{run}"
    );
    let alias = engine.folder().join("tmp/alias");
    fs::create_dir_all(&alias).unwrap();
    Run::of(std::process::Command::new("mount").arg("--bind").args([&root, &alias])).ok();
    let bind = |path: &Path| format!("{}:/cache", path.display());
    for (volume, mount) in [
        ("project-cache", bind(&alias)),
        ("one-cache", "same-cache:/cache".into()),
        ("one-cache", "part-cache:/cache".into()),
        ("one-cache", bind(&there)),
        ("one-cache", bind(there.parent().unwrap())),
        ("project-cache", bind(&root.join("pip"))),
        ("project-cache", bind(root.parent().unwrap())),
    ] {
        let user = engine.docker(&["run", "--detach", "--volume", &mount, "box", "/bin/busybox", "sleep", "600"]);
        let run = engine.cache(&["clear", "--volume", volume, "--force"]).ok();
        assert!(run.stdout.contains("in use by container"), "{mount}: {run}");
        assert!(root.join("pip/file").exists() && there.join("pip/file").exists(), "{mount}: {run}");
        engine.docker(&["rm", "--force", user.stdout.trim_end()]);
    }
});

for_each_engine!(what_a_stopped_container_has_as_its_data_stays, [v20, v28_containerd], |engine| {
    engine.build("RUN true", &["--tag", "box"]);
    let there = engine.folder().join("tmp/there");
    let of_compose = |volume: &str| format!("--label=com.docker.compose.volume={volume}");
    let device = format!("--opt=device={}", there.display());
    engine.docker(&["volume", "create", &of_compose("pgdata"), "pip-cache_pgdata"]);
    engine.docker(&["volume", "create", &of_compose("npm-cache"), "proj_npm-cache"]);
    fs::create_dir_all(&there).unwrap();
    for name in ["one", "twin"] {
        engine.docker(&["volume", "create", "--opt=type=none", "--opt=o=bind", &device, name]);
    }
    for mount in [
        "pip-cache_pgdata:/var/lib/postgresql/data",
        "proj_npm-cache:/verdaccio/storage",
        "one:/root/.cache/pip",
        "twin:/var/lib/app",
        "shared:/root/.cache/pip",
        "shared:/var/lib/db",
    ] {
        engine.docker(&["create", "--volume", mount, "box", "true"]);
    }
    let shared = engine.mountpoint("shared");
    let data = [there, engine.mountpoint("pip-cache_pgdata"), engine.mountpoint("proj_npm-cache"), shared];
    data.iter().for_each(|root| write_files(root, &[("base", "precious")]));
    let all = engine.cache(&["clear", "--kind", "volume", "--force"]).ok();
    let named = engine.cache(&["clear", "--volume", "shared", "--force"]).ok();
    assert!(named.stdout.contains("has it at /var/lib/db"), "{named}");
    for root in data {
        assert!(root.join("base").exists(), "{}: {all} {named}", root.display());
    }
});

for_each_engine!(what_a_build_uses_stays_and_the_build_succeeds, [all], |engine| {
    engine.build("RUN --mount=type=cache,id=idle,target=/root/.cache/pip echo 1 > /root/.cache/pip/f", &[]);
    let dockerfile = "RUN --mount=type=cache,id=busy,target=/root/.cache/pip,sharing=locked \
         for i in 1 2 3 4 5 6 7 8 9 10; do echo $i > /root/.cache/pip/$i; echo step; sleep 0.5; done; \
         test $(ls /root/.cache/pip | wc -l) = 10";
    let (mut build, lines) = start_build(engine, dockerfile, "step");
    let done = json(engine, &["--all", "--force"]);
    let rest: Vec<String> = lines.collect();
    assert!(build.wait().unwrap().success(), "{rest:?}");
    let kept = done["kept"].as_array().unwrap();
    assert!(kept.iter().any(|row| row["kind"] == "mount" && row["why"] == "in use by a running build"), "{done}");
    assert_eq!(engine.mounts().len(), 1);
});

/// Starts a build, and returns it once this line of its steps has come.
fn start_build(engine: &Engine, dockerfile: &str, line: &str) -> (Child, impl Iterator<Item = String>) {
    let context = engine.context(dockerfile);
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress", "plain"]).arg(context.path());
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(build.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|told| told.ends_with(line)));
    (build, lines)
}

for_each_engine!(a_mount_that_a_build_takes_meanwhile_stays_alone, [v26, v28, v28_containerd], |engine| {
    let mounts = ["/root/.cache", "/home/one/.cache", "/home/two/.cache"];
    let words: String = mounts.iter().map(|target| format!("--mount=type=cache,target={target} ")).collect();
    let fill = "for at in /root /home/one /home/two; do mkdir -p $at/.cache/pip $at/.cache/own; \
                echo 1 > $at/.cache/pip/f; echo 1 > $at/.cache/own/f; done";
    engine.build(&format!("RUN {words} {fill}"), &[]);
    // The first question about records after the mounts were looked into is the last before they are cleared.
    let folder = engine.folder().join("tmp");
    let (looked, go) = (folder.join("looked"), folder.join("go"));
    let script = format!(
        "[[ ! ( -e {looked} && \"$1 $2\" = 'system dial-stdio' ) ]] || until [ -e {go} ]; do sleep 0.05; done\n\
         docker \"$@\"; status=$?; [[ \" $* \" != *' build '* ]] || touch {looked}; exit $status",
        looked = looked.display(),
        go = go.display()
    );
    let clear = ["clear", "--lang", "python", "--kind", "mount", "--force"];
    let (run, build) = thread::scope(|scope| {
        let clear = scope.spawn(|| engine.cache_through(&script, &clear));
        while !looked.exists() {
            assert!(!clear.is_finished(), "it has not looked into the mounts");
            thread::sleep(Duration::from_millis(20));
        }
        let busy = "RUN --mount=type=cache,target=/home/one/.cache,sharing=locked echo begun; sleep 1000";
        let (build, _lines) = start_build(engine, busy, "begun");
        fs::write(&go, "").unwrap();
        (clear.join().unwrap(), build)
    });
    kill_process(Pid::from_child(&build), Signal::INT).unwrap();
    build.wait_with_output().unwrap();
    let failures: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("ERROR: ")).collect();
    assert!(
        run.code == 1 && failures.len() == 1 && failures[0].contains("mount /home/one/.cache is not cleared"),
        "{run}"
    );
    let told =
        engine.build(&format!("RUN {words} find / -name f -path '*/.cache/*' -exec echo FILE={{}} \\;"), &[]).stderr;
    let mut left: Vec<&str> = told
        .lines()
        .filter_map(|line| line.split_once(" FILE=").map(|(_, file)| file))
        .filter(|file| file.starts_with('/'))
        .collect();
    left.sort();
    let own = ["/home/one/.cache/own/f", "/home/one/.cache/pip/f", "/home/two/.cache/own/f", "/root/.cache/own/f"];
    assert_eq!(left, own, "{run}");
});

/// Returns one number for all that the mounts of these targets hold, names and bytes.
fn sums(engine: &Engine, targets: &[&str]) -> String {
    static NONCE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let mounts: String = targets.iter().map(|target| format!("--mount=type=cache,target={target} ")).collect();
    let nonce = NONCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let sum = "-exec sha256sum {} + | sort | sha256sum | sed s/^/SUM=/";
    let run = engine.build(&format!("RUN {mounts} : {nonce}; find {} -type f {sum}", targets.join(" ")), &[]);
    let mut sums = run.stderr.lines().filter_map(|line| line.split_once(" SUM=").map(|(_, sum)| sum.to_owned()));
    sums.next_back().unwrap_or_else(|| panic!("{run}"))
}

// Caches that the tools themselves filled, in a volume and in mounts.
for_each_generation!(real_python_caches_go_and_every_other_byte_stays, [v20, v26, v28_containerd], |generation| {
    let engine = &Engine::online(generation);
    let root = engine.volume("project-cache", &[]);
    for tool in Tool::all() {
        tool.fill_mounts(engine);
        if !tool.variables().is_empty() {
            tool.fill_volume(engine, "project-cache");
        }
    }
    let others: Vec<&str> =
        Tool::all().iter().filter(|tool| **tool != Tool::Pip).flat_map(|tool| tool.targets()).copied().collect();
    let (before, mounts) = (Tree::read(&root), targets(engine));
    assert!(before.0.keys().any(|path| path.starts_with("pip/wheels")));
    assert!(before.0.keys().any(|path| path.starts_with("cargo/registry")));
    let (sum, pip) = (sums(engine, &others), sums(engine, Tool::Pip.targets()));
    let plan = json(engine, &["--lang", "python", "--dry-run"]);
    let done = json(engine, &["--lang", "python", "--force"]);
    let rows = |answer: &Value| -> Vec<(Value, Value)> {
        let rows = answer["plan"].as_array().unwrap().iter();
        rows.map(|row| (row["name"].clone(), row["bytes"].clone())).collect()
    };
    assert_eq!(rows(&done), rows(&plan));
    assert_eq!(done["freed_bytes"], plan["total_bytes"]);
    let python = |known: &Known| known.row.language == "python" && known.class.is_deletable();
    assert_same(&without(before, python).timeless(), &Tree::read(&root).timeless());
    let expected: Vec<String> = mounts.into_iter().filter(|target| target != "/root/.cache/pip").collect();
    assert_eq!(targets(engine), expected);
    assert_eq!(sums(engine, &others), sum);
    assert_ne!(sums(engine, Tool::Pip.targets()), pip);
    // Go closes the directories of its modules; what dpkg knows of the system is no cache.
    engine.cache(&["clear", "--all", "--force"]).ok();
    assert_eq!(targets(engine), ["/var/lib/apt"]);
    assert_eq!(fs::read_dir(root.join("go/mod")).unwrap().count(), 0);
});

for_each_engine!(only_what_is_old_goes, [v20, v28_containerd], |engine| {
    let files = &[
        ("pip/http/old", "1"),
        ("pip/http/new", "1"),
        ("npm/_cacache/old", "1"),
        ("npm/_cacache/new", "1"),
        ("yarn/old", "1"),
    ];
    let root = engine.volume("project-cache", files);
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(40 * 86_400);
    for old in ["pip/http/old", "npm/_cacache/old", "yarn/old"] {
        let file = fs::File::options().write(true).open(root.join(old)).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
    }
    let plan = json(engine, &["--older-than", "30d", "--dry-run"]);
    assert_eq!(plan["plan"].as_array().unwrap().len(), 2, "{plan}");
    engine.cache(&["clear", "--older-than", "30d", "--force"]).ok();
    let left = |path: &str| root.join(path).exists();
    assert!(!left("pip/http/old") && left("pip/http/new"));
    // npm's index refers to its content: all or nothing.
    assert!(left("npm/_cacache/old") && left("npm/_cacache/new") && !left("yarn/old"));
});

for_each_engine!(the_least_recently_used_go_until_the_size_to_keep, [v20, v28_containerd], |engine| {
    let big = "7".repeat(100_000);
    let root = engine.volume("project-cache", &[("yarn/f", &big), ("npm/f", &big), ("uv/f", &big)]);
    for (path, days) in [("yarn/f", 3), ("npm/f", 2), ("uv/f", 1)] {
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(days * 86_400);
        let file = fs::File::options().write(true).open(root.join(path)).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
    }
    engine.cache(&["clear", "--keep", "250kB", "--force"]).ok();
    assert!(!root.join("yarn/f").exists() && root.join("npm/f").exists() && root.join("uv/f").exists());
    engine.cache(&["clear", "--keep", "0", "--force"]).ok();
    assert!(!root.join("npm/f").exists() && !root.join("uv/f").exists());
});

for_each_engine!(
    a_volume_is_no_cache_if_only_a_part_of_it_is_or_another_container_has_it_elsewhere,
    [v26, v28_containerd],
    |engine| {
        engine.build("RUN true", &["--tag", "box"]);
        let root = engine.volume("data", &[("pipcache/http/a", "1"), ("pgdata/base", "precious")]);
        let part = "--mount=type=volume,src=data,dst=/root/.cache/pip,volume-subpath=pipcache";
        engine.docker(&["create", part, "box", "true"]);
        engine.volume("shared", &[("base", "precious")]);
        engine.docker(&["create", "--volume=shared:/root/.npm", "box", "true"]);
        engine.docker(&["create", "--volume=shared:/var/lib/app", "box", "true"]);
        engine.docker(&["create", "--volume=cached:/root/.cache/pip", "box", "true"]);
        let cached = engine.mountpoint("cached");
        write_files(&cached, &[("http/a", "1")]);
        let before = [Tree::read(&root), Tree::read(&engine.mountpoint("shared"))];
        let run = engine.cache(&["clear", "--lang", "python,node", "--force"]).ok();
        assert_same(&before[0], &Tree::read(&root));
        assert_same(&before[1], &Tree::read(&engine.mountpoint("shared")));
        assert!(!cached.join("http/a").exists(), "{run}");
        let bundle = engine.folder().join("bundle").display().to_string();
        let run = engine.cache(&["export", "--dest", &bundle, "--format", "json"]).ok();
        assert!(!run.stdout.contains("\"data\"") && !run.stdout.contains("\"shared\""), "{run}");
    }
);

for_each_engine!(a_volume_is_made_anew_as_it_was, [v20, v26, v28_containerd], |engine| {
    let source = engine.folder().join("tmp/source");
    write_files(&source, &[("pip/file", "1"), ("cargo/bin/tool", "1")]);
    engine.docker(&[
        "volume",
        "create",
        "--label",
        "a=b c",
        "--label",
        "empty=",
        "--opt",
        "type=tmpfs",
        "--opt",
        "device=tmpfs",
        "--opt",
        "o=size=10m,uid=1000",
        "tmp-cache",
    ]);
    let describe = || {
        let volume = &engine.api("/volumes/tmp-cache");
        (volume["Driver"].clone(), volume["Labels"].clone(), volume["Options"].clone())
    };
    let (before, created) = (describe(), engine.api("/volumes/tmp-cache")["CreatedAt"].clone());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    engine.cache(&["clear", "--volume", "tmp-cache", "--recreate", "--force"]).ok();
    assert_eq!(describe(), before);
    assert_ne!(engine.api("/volumes/tmp-cache")["CreatedAt"], created);

    // Docker would leave what lies elsewhere.
    let device = format!("device={}", source.display());
    engine.docker(&["volume", "create", "--opt=type=none", "--opt=o=bind", "--opt", &device, "bind-cache"]);
    engine.cache(&["clear", "--volume", "bind-cache", "--recreate", "--include-installs", "--force"]).ok();
    assert_eq!(fs::read_dir(&source).unwrap().count(), 0);

    // Nor may it delete what is mounted in there, and another volume is made anew all the same.
    let mounted = engine.volume("mounted-cache", &[("pip/file", "1"), ("pip/mnt/none", "1")]).join("pip/mnt");
    fs::write(source.join("photo"), "precious").unwrap();
    Run::of(Command::new("mount").args(["--bind".as_ref(), source.as_os_str(), mounted.as_os_str()])).ok();
    let created = engine.api("/volumes/tmp-cache")["CreatedAt"].clone();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let anew = ["clear", "--volume", "mounted-cache", "--volume", "tmp-cache", "--recreate", "--include-installs"];
    let run = engine.cache(&[&anew[..], &["--force"]].concat());
    Run::of(Command::new("umount").arg(&mounted)).ok();
    assert!(source.join("photo").exists() && run.stderr.contains("not entered"), "{run}");
    assert!(run.code == 1 && run.stderr.contains("volume mounted-cache is not made anew"), "{run}");
    assert_ne!(engine.api("/volumes/tmp-cache")["CreatedAt"], created);

    let root = engine.volume("project-cache", &[("pip/file", "1"), ("cargo/bin/tool", "1")]);
    let refused = engine.cache(&["clear", "--volume", "project-cache", "--recreate", "--force"]);
    assert_eq!(refused.code, 1, "{refused}");
    assert!(refused.stderr.contains("/cache/cargo/bin") && root.join("pip/file").exists(), "{refused}");
    start_worker(engine);
    let anew = ["clear", "--volume", "project-cache", "--recreate", "--include-installs", "--force"];
    let refused = engine.cache(&anew);
    assert!(refused.code == 1 && refused.stderr.contains("worker"), "{refused}");
    assert!(root.join("pip/file").exists());
    let run = engine.cache(&[&anew[..], &["--force-in-use"]].concat()).ok();
    assert!(run.stderr.contains("docker restart worker"), "{run}");
    assert_eq!(Tree::read(&root).0.len(), 1);
    engine.docker(&["rm", "--force", "worker"]);
});

for_each_engine!(a_volume_whose_removal_is_stopped_is_made_anew_all_the_same, [v20, v28_containerd], |engine| {
    for name in ["one-cache", "two-cache"] {
        engine.docker(&["volume", "create", "--label", "keep=me", name]);
        write_files(&engine.mountpoint(name), &[("pip/file", "1")]);
    }
    // The plugin is stopped once the engine has removed the first volume, and docker not yet ended.
    let script =
        "docker \"$@\"; status=$?; [ \"$1 $2\" != 'volume rm' ] || { kill -TERM $PPID; sleep 1; }; exit $status";
    let line = ["clear", "--volume", "one-cache", "--volume", "two-cache", "--recreate", "--force"];
    let run = engine.cache_through(script, &line);
    assert_eq!(run.code, 143, "{run}");
    assert!(run.stderr.contains("interrupted: ") && run.stderr.contains("what is not removed yet stays"), "{run}");
    for name in ["one-cache", "two-cache"] {
        let volumes = engine.api("/volumes");
        let volume = volumes["Volumes"].as_array().unwrap().iter().find(|volume| volume["Name"] == name);
        assert_eq!(volume.expect(name)["Labels"]["keep"], "me", "{run}");
    }
});

for_each_engine!(what_comes_while_the_user_is_asked_keeps_a_volume_as_it_is, [v20, v28_containerd], |engine| {
    engine.build("RUN true", &["--tag", "box"]);
    let root = engine.volume("q-cache", &[("pip/file", "1")]);
    let anew = |first: &dyn Fn()| engine.at_terminal_after("clear --volume q-cache --recreate", "[y/N] ", "y\n", first);
    let create = ["create", "--name", "late", "--volume", "q-cache:/cache", "box", "true"];
    let run = anew(&|| drop(engine.docker(&create)));
    assert!(run.code == 1 && run.stdout.contains("container late began to use it"), "{run}");
    assert!(root.join("pip/file").exists());
    engine.docker(&["rm", "late"]);
    let clear = |first: &dyn Fn()| engine.at_terminal_after("clear --volume q-cache", "[y/N] ", "y\n", first);
    let run =
        clear(&|| drop(engine.docker(&["create", "--name", "db", "--volume", "q-cache:/var/lib/db", "box", "true"])));
    assert!(run.code == 1 && run.stdout.contains("container db began to use it"), "{run}");
    assert!(root.join("pip/file").exists());
    engine.docker(&["rm", "db"]);
    let run = anew(&|| write_files(&root, &[("mydb/base", "precious")]));
    assert!(run.code == 1 && run.stdout.contains("not made anew"), "{run}");
    assert!(root.join("mydb/base").exists() && !root.join("pip/file").exists());
    // Another one of its name.
    let anew = |first: &dyn Fn()| {
        engine.at_terminal_after("clear --volume q-cache --recreate --include-installs", "[y/N] ", "y\n", first)
    };
    let run = anew(&|| {
        engine.docker(&["volume", "rm", "q-cache"]);
        // Engine 20.10 does not tell when it was made.
        let label: &[&str] = if engine.generation() == Generation::V20 { &["--label=mine"] } else { &[] };
        engine.docker(&[&["volume", "create"], label, &["q-cache"]].concat());
        write_files(&root, &[("mydb/base", "precious")]);
    });
    assert!(run.code == 1 && run.stdout.contains("volume q-cache is another one now"), "{run}");
    assert!(root.join("mydb/base").exists());
});

#[test]
fn what_is_used_while_the_user_is_asked_is_old_no_more() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("yarn/old", "1"), ("npm/old", "1")]);
    let mount = |id: &str, file: &str| format!("RUN --mount=type=cache,id={id},target=/{id} echo 1 > /{id}/{file}");
    engine.build(&[mount("pip", "old"), mount("uv", "old")].join("\n"), &[]);
    let use_some = || {
        write_files(&root, &[("npm/new", "1")]);
        engine.build(&mount("pip", "new"), &[]);
    };
    let clear = "clear --kind mount --kind volume --keep 0";
    let run = engine.at_terminal_after(clear, "[y/N] ", "y\n", use_some);
    assert!(run.code == 0 && run.stdout.contains("npm stays") && run.stdout.contains("pip stays"), "{run}");
    assert!(!root.join("yarn/old").exists() && root.join("npm/old").exists());
    let left: Vec<String> = engine.mounts().iter().map(|mount| mount["Description"].to_string()).collect();
    assert!(left.len() == 1 && left[0].contains("mount /pip from"), "{left:?} {run}");
}

#[test]
fn somebodys_git_work_tree_is_no_cache_whatever_it_is_called() {
    let engine = Engine::start(Generation::V28);
    let files = [("vcpkg/.git/HEAD", "ref: refs/heads/main"), ("vcpkg/mine", "1"), ("vcpkg-downloads/file", "1")];
    let root = engine.volume("project-cache", &files);
    write_files(&root, &[("uv/.git", "gitdir: /repo/.git/worktrees/uv\n"), ("uv/mine", "1")]);
    let bundle = engine.folder().join("bundle").display().to_string();
    let run = engine.cache(&["export", "--dest", &bundle, "--format", "json"]).ok();
    let exported: Value = serde_json::from_str(&run.stdout).unwrap();
    let entries = exported["entries"].as_array().unwrap();
    assert!(entries.len() == 1 && entries[0]["files"] == 1, "{exported}");
    engine.cache(&["clear", "--all", "--force"]).ok();
    assert!(root.join("vcpkg/mine").exists() && root.join("uv/mine").exists());
    assert!(!root.join("vcpkg-downloads/file").exists());
}

for_each_engine!(go_closed_directories_are_removed, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("go/mod/example.com/small@v1.0.0/small.go", "1")]);
    for at in ["go/mod/example.com/small@v1.0.0", "go/mod/example.com"] {
        fs::set_permissions(root.join(at), fs::Permissions::from_mode(0o555)).unwrap();
    }
    engine.cache(&["clear", "--lang", "go", "--force"]).ok();
    assert_eq!(fs::read_dir(root.join("go/mod")).unwrap().count(), 0);
});

for_each_engine!(links_and_strange_names_lead_nowhere, [v20, v28_containerd], |engine| {
    let precious = engine.folder().join("tmp/precious");
    write_files(&precious, &[("file", "1"), ("deep/file", "1")]);
    let root = engine.volume("project-cache", &[("pip/file", "1")]);
    symlink(&precious, root.join("pip/dir")).unwrap();
    symlink("/etc", root.join("pip/etc")).unwrap();
    symlink(precious.join("file"), root.join("pip/link")).unwrap();
    symlink(&precious, root.join("uv")).unwrap();
    for name in [&b"a\nb"[..], b"\xff\xfe", b"-rf", b"$(reboot)", b"--volume=:host"] {
        fs::write(root.join("pip").join(std::ffi::OsStr::from_bytes(name)), "1").unwrap();
    }
    let (before, etc) = (Tree::read(&precious), fs::read_dir("/etc").unwrap().count());
    let run = engine.cache(&["clear", "--lang", "python", "--force"]).ok();
    assert!(!run.stdout.contains('\u{1b}'));
    assert_same(&before, &Tree::read(&precious));
    assert_eq!(fs::read_dir("/etc").unwrap().count(), etc);
    assert_eq!(fs::read_dir(root.join("pip")).unwrap().count(), 0);
});

for_each_engine!(a_mount_inside_a_volume_is_not_entered, [v26, v28_containerd], |engine| {
    let precious = engine.folder().join("tmp/precious");
    write_files(&precious, &[("file", "1")]);
    let root = engine.volume("project-cache", &[("pip/file", "1"), ("pip/inner/.keep", "")]);
    let inner = root.join("pip/inner");
    Run::of(std::process::Command::new("mount").arg("--bind").args([&precious, &inner])).ok();
    let run = engine.cache(&["clear", "--lang", "python", "--force"]);
    Run::of(std::process::Command::new("umount").arg(&inner)).ok();
    assert_eq!(run.code, 0, "{run}");
    assert!(precious.join("file").exists() && !root.join("pip/file").exists(), "{run}");
    assert!(run.stderr.contains("pip/inner"), "{run}");
});

for_each_engine!(a_full_disk_is_cleared, [v20, v26, v28_containerd], |engine| {
    engine.docker(&[
        "volume",
        "create",
        "--opt",
        "type=tmpfs",
        "--opt",
        "device=tmpfs",
        "--opt",
        "o=size=1m",
        "full-cache",
    ]);
    engine.build("RUN true", &["--tag", "box"]);
    // A tmpfs lives as long as something has it mounted.
    let fill = "mkdir -p /cache/pip; cat /dev/zero > /cache/pip/file; mkdir /cache/npm; sleep 600";
    engine.docker(&[
        "run",
        "--detach",
        "--name",
        "worker",
        "--volume",
        "full-cache:/cache",
        "box",
        "/bin/busybox",
        "sh",
        "-c",
        fill,
    ]);
    let used = || {
        let run = engine.docker(&["exec", "worker", "/bin/busybox", "df", "-k", "/cache"]);
        run.stdout.lines().last().unwrap().split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()
    };
    let begin = Instant::now();
    while used() < 1000 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the worker does not fill the volume");
        thread::sleep(Duration::from_millis(100));
    }
    let done = json(engine, &["--lang", "python", "--force", "--force-in-use"]);
    assert!(done["freed_bytes"].as_u64() > Some(900_000), "{done}");
    assert!(used() < 100);
    engine.docker(&["rm", "--force", "worker"]);
    assert_eq!(leftovers(engine), "");
});

for_each_engine!(a_volume_that_cannot_be_written_says_so, [v20, v28_containerd], |engine| {
    let source = engine.folder().join("tmp/source");
    write_files(&source, &[("pip/file", "1")]);
    let device = format!("device={}", source.display());
    engine.docker(&["volume", "create", "--opt", "type=none", "--opt", &device, "--opt", "o=bind,ro", "ro-cache"]);
    let run = engine.cache(&["clear", "--lang", "python", "--force"]);
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("volume ro-cache") && run.stderr.contains("Read-only file system"), "{run}");
    assert!(source.join("pip/file").exists());
    assert_eq!(leftovers(engine), "");
});

for_each_engine!(a_volume_that_cannot_be_mounted_says_so, [v20, v28_containerd], |engine| {
    let nowhere = format!("device={}", engine.folder().join("tmp/nowhere").display());
    engine.docker(&["volume", "create", "--opt", "type=none", "--opt", &nowhere, "--opt", "o=bind", "gone-cache"]);
    let run = engine.cache(&["clear", "--volume", "gone-cache", "--force"]);
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("ERROR: `docker start") && run.stderr.contains("no such file"), "{run}");
    assert_eq!(leftovers(engine), "");

    let root = engine.volume("project-cache", &[("pip/file", "1"), ("npm/_cacache/file", "1")]);
    let size = engine.cache(&["size", "--format", "json"]).ok();
    assert!(size.stderr.contains("volume gone-cache is not looked into: `docker start"), "{size}");
    assert!(size.stdout.contains("\"volume\":\"project-cache\""), "{size}");
    let run = engine.cache(&["clear", "--lang", "python", "--force"]).ok();
    assert!(run.stderr.contains("volume gone-cache is not looked into"), "{run}");
    assert!(!root.join("pip/file").exists() && root.join("npm/_cacache/file").exists());
    assert_eq!(leftovers(engine), "");
});

// Clears where volumes of the driver `fake` are.
for_each_generation!(
    a_driver_that_is_gone_is_named_and_the_other_volumes_are_cleared,
    [v20, v28_containerd],
    |generation| {
        let engine = &Engine::with_plugins(generation);
        let plugin = VolumePlugin::start(engine, "lost-cache");
        let (root, lost) = (engine.volume("project-cache", &[]), engine.folder().join("fake"));
        let fill = || [&root, &lost].map(|root| write_files(root, &[("pip/file", "1"), ("npm/_cacache/file", "1")]));
        let clear = |named: bool| {
            fill();
            // The engine itself waits 60 s for a plugin that hangs: longer than a question to docker may take.
            let run = engine.cache(&["clear", "--lang", "python", "--force"]).ok();
            assert_eq!(run.stderr.contains("volumes of the driver fake are left out"), named, "{run}");
            assert!(!root.join("pip/file").exists() && root.join("npm/_cacache/file").exists(), "{run}");
            assert_eq!(lost.join("pip/file").exists(), named, "{run}");
        };
        clear(false);
        plugin.hang();
        clear(true);
        drop(plugin);
        clear(true);
        let run = engine.cache(&["clear", "--volume", "lost-cache", "--force"]);
        assert!(run.code == 1 && run.stderr.contains("of the driver fake, which does not answer"), "{run}");
        assert_eq!(leftovers(engine), "");
    }
);

for_each_engine!(no_permission_is_a_clear_error, [v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/file", "1")]);
    let mut command = engine.cache_command(&["clear", "--all", "--force"]);
    let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let program = command.get_program().to_owned();
    command = engine.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program).args(words);
    let run = Run::of(&mut command);
    assert_ne!(run.code, 0, "{run}");
    assert!(run.stderr.to_lowercase().contains("permission denied"), "{run}");
    assert!(root.join("pip/file").exists());
});

for_each_engine!(one_buildkit_of_two_names_is_cleared_and_counted_once, [v26, v28_containerd], |engine| {
    fill_mounts(engine);
    engine.docker(&["context", "create", "twin", "--docker", &format!("host={}", engine.host())]);
    let once = json(engine, &["--kind", "mount", "--dry-run"]);
    let twice = json(engine, &["--kind", "mount", "--all-builders", "--dry-run"]);
    assert_eq!(twice["plan"].as_array().unwrap().len(), once["plan"].as_array().unwrap().len());
    assert_eq!(twice["total_bytes"], once["total_bytes"]);
    let done = json(engine, &["--kind", "mount", "--all-builders", "--force"]);
    assert_eq!((&done["freed_bytes"], &done["failed"]), (&once["total_bytes"], &serde_json::json!([])));
    assert!(targets(engine).is_empty());
});

for_each_engine!(all_builders_are_cleared_and_only_on_demand, [v26, v28_containerd], |engine| {
    let second = engine.second_context("second");
    let fill = |content: &str| {
        format!(
            "RUN --mount=type=cache,target=/root/.cache/pip --mount=type=cache,target=/root/.npm \
             echo {content} | tee /root/.cache/pip/f > /root/.npm/f"
        )
    };
    engine.build(&fill("old"), &[]);
    second.build(&fill("old"), &[]);
    let clear = ["clear", "--lang", "python", "--force"];
    engine.cache(&clear).ok();
    assert_eq!((targets(engine), targets(&second).len()), (vec!["/root/.npm".into()], 2));
    engine.build(&fill("new"), &[]);
    let dry = json(engine, &["--lang", "python", "--all-builders", "--dry-run"]);
    let builders: Vec<&Value> = dry["plan"].as_array().unwrap().iter().map(|step| &step["builder"]).collect();
    assert_eq!(builders.len(), 2, "{dry}");
    engine.cache(&[&clear[..], &["--all-builders"]].concat()).ok();
    assert_eq!((targets(engine), targets(&second)), (vec!["/root/.npm".into()], vec!["/root/.npm".into()]));
    // One directory of a mount goes where it is.
    let fill = |at: &str| format!("RUN --mount=type=cache,id=all,target={at} mkdir -p {at}/pip && echo 1 > {at}/pip/f");
    engine.build(&fill("/root/.cache"), &[]);
    second.build(&fill("/cache"), &[]);
    let clear = ["clear", "--mount", "all", "--path", "/cache/pip", "--all-builders", "--force"];
    engine.cache(&clear).ok();
    assert_eq!(inside(&second, "/cache,id=all"), [""; 0]);
    assert_eq!(inside(engine, "/root/.cache,id=all"), ["pip/f"]);
});

for_each_engine!(aliases_keep_the_status_and_ask_nobody_without_a_terminal, [v28], |engine| {
    let root = engine.volume("project-cache", &[]);
    let docker = engine.cache_command(&[]).get_program().to_str().unwrap().to_owned();
    for (program, begin) in [(PathBuf::from("bash"), "shopt -s expand_aliases"), (parts::zsh(), "unsetopt global_rcs")]
    {
        write_files(&root, &[("pip/wheel", "1")]);
        let shell = |line: &str| {
            let aliases = "alias dcs='docker cache size' dcc='docker cache clear'";
            let script = format!("{begin}\ndocker() {{ {docker} \"$@\"; }}\n{aliases}\n{line}");
            // Of a script that is an argument, zsh reads all before it knows the aliases.
            let file = engine.folder().join("script");
            fs::write(&file, script).unwrap();
            Run::of(engine.command(&program).arg(file).stdin(Stdio::null()))
        };
        let size = shell("dcs --format json").ok();
        let size: Value = serde_json::from_str(&size.stdout).unwrap();
        assert_eq!(size["caches"][0]["tool"], "pip");
        assert_eq!(shell("dcs --nonsense").code, 125);
        assert_eq!(shell("dcs --budget 1B --volume project-cache").code, 1);
        assert_eq!(shell("dcc").code, 125);
        let asked = shell("dcc --all");
        assert!(asked.code == 1 && asked.stderr.contains("nobody to ask"), "{asked}");
        assert!(root.join("pip/wheel").exists());
        shell("dcc --all --force && dcs").ok();
        assert!(!root.join("pip/wheel").exists());
    }
});
