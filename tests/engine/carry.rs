//! Tests of `export`, `import` and `verify`: what is carried is the same on the other side, and nothing is lost.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_cache::inside::table::Rows;
use serde_json::Value;

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::world::{Tree, assert_same, write_files};
use crate::support::{Engine, Generation};

/// Runs a command of the plugin that must succeed and returns its JSON.
#[track_caller]
fn json(engine: &Engine, arguments: &[&str]) -> Value {
    let run = engine.cache(&[arguments, &["--format", "json"]].concat()).ok();
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Fills a volume with everything that a tree can have.
fn fill(root: &Path) {
    write_files(
        root,
        &[
            ("pip/http/a", "a"),
            ("pip/wheels/one.whl", "one"),
            ("npm/_cacache/index-v5/x", "x"),
            ("cargo/registry/cache/c.crate", "c"),
            ("cargo/bin/tool", "program"),
            ("cargo/credentials.toml", "secret"),
            ("docker/config.json", "secret"),
            ("mine/notes", "state"),
        ],
    );
    let pip = root.join("pip");
    fs::hard_link(pip.join("http/a"), pip.join("b")).unwrap();
    symlink("http/a", pip.join("link")).unwrap();
    std::os::unix::fs::chown(pip.join("wheels"), Some(1000), Some(1001)).unwrap();
    fs::File::create(pip.join("sparse")).unwrap().set_len(10 << 20).unwrap();
    let mut set = std::process::Command::new("touch");
    Run::of(set.args(["--date", "2001-02-03 04:05:06.789"]).arg(pip.join("http/a"))).ok();
    Run::of(std::process::Command::new("chmod").arg("4711").arg(pip.join("wheels/one.whl"))).ok();
}

/// Whether a path of the volume of [`fill`] is carried without being asked for.
fn is_cache(path: &Path) -> bool {
    let carried = ["pip", "npm", "cargo/registry"].iter().any(|part| path.starts_with(part));
    carried || path == Path::new("") || path == Path::new("cargo")
}

/// Past the moment in which times cannot tell a change.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

/// Returns the sizes of all files of a bundle.
fn size(bundle: &Path) -> u64 {
    Tree::read(bundle).bytes()
}

fn blobs(bundle: &Path) -> Vec<PathBuf> {
    let mut blobs: Vec<_> =
        fs::read_dir(bundle.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()).collect();
    blobs.sort();
    blobs
}

for_each_engine!(volumes_come_back_as_they_were, [v20, v26, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[]);
    fill(&root);
    let before = Tree::read(&root);
    let bundle = engine.folder().join("bundle");
    let exported = json(engine, &["export", "--dest", &text(&bundle)]);
    assert_same(&before, &Tree::read(&root));
    assert_eq!(exported["entries"].as_array().unwrap().len(), 3, "{exported}");
    let left_out = exported["left_out"].to_string();
    for named in ["/cache/cargo/bin", "/cache/docker", "not known to be a cache"] {
        assert!(left_out.contains(named), "{left_out}");
    }
    engine.cache(&["verify", &text(&bundle)]).ok();

    engine.docker(&["volume", "rm", "project-cache"]);
    json(engine, &["import", "--src", &text(&bundle)]);
    assert_same(&before.only(is_cache), &Tree::read(&engine.mountpoint("project-cache")));
    let images = engine.docker(&["image", "ls", "--quiet"]).stdout;
    let containers = engine.docker(&["ps", "--all", "--quiet"]).stdout;
    assert_eq!((images.as_str(), containers.as_str()), ("", ""));
});

for_each_engine!(an_export_is_no_use_of_what_it_reads, [v20, v28_containerd], |engine| {
    let root = engine.volume("project-cache", &[("pip/http/a", "1"), ("pip/http/large", &"1".repeat(3 << 20))]);
    let files = ["pip/http/a", "pip/http/large"].map(|path| root.join(path));
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(40 * 86_400);
    let times = fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago);
    files.iter().for_each(|file| fs::File::options().write(true).open(file).unwrap().set_times(times).unwrap());
    let used = || files.each_ref().map(|file| fs::metadata(file).unwrap().accessed().unwrap());
    let before = used();
    let exported = json(engine, &["export", "--dest", &text(&engine.folder().join("bundle"))]);
    assert_eq!(exported["entries"][0]["files"], 2, "{exported}");
    assert_eq!(used(), before);
    files.iter().for_each(|file| drop(fs::read(file).unwrap()));
    assert!(used() != before, "the file system of the tests does not tell when files were used");
});

for_each_engine!(dry_runs_change_nothing, [v20, v28], |engine| {
    let root = engine.volume("project-cache", &[("pip/a", "a")]);
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle), "--dry-run"]).ok();
    assert!(!bundle.exists());
    let refused = engine.cache(&["export", "--dest", "/etc", "--dry-run"]);
    assert!(refused.code == 1 && refused.stderr.contains("is no bundle"), "{refused}");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    fs::remove_file(root.join("pip/a")).unwrap();
    let (volume, disk) = (Tree::read(&root), Tree::read(&bundle));
    let planned = json(engine, &["import", "--src", &text(&bundle), "--dry-run"]);
    assert_eq!(planned["entries"][0]["files"], 1);
    assert_same(&volume, &Tree::read(&root));
    assert_same(&disk, &Tree::read(&bundle));
});

const FILL: &str = "RUN --mount=type=cache,id=pip,target=/root/.cache/pip --mount=type=cache,target=/root/.npm \
    mkdir -p /root/.cache/pip/http && echo wheel > /root/.cache/pip/http/w && echo pack > /root/.npm/p && \
    chown 1000:1000 /root/.npm/p && touch -d @86400 /root/.cache/pip/http/w";

const READ: &str = "RUN --mount=type=cache,id=pip,target=/root/.cache/pip --mount=type=cache,target=/root/.npm \
    echo found $(cat /root/.cache/pip/http/w /root/.npm/p) $(stat -c %u:%Y /root/.npm/p /root/.cache/pip/http/w)";

for_each_engine!(mounts_come_back_under_their_ids, [v26, v28, v28_containerd], |engine| {
    engine.build(FILL, &[]);
    let before = engine.lasting_records();
    let bundle = engine.folder().join("bundle");
    let exported = json(engine, &["export", "--dest", &text(&bundle)]);
    assert_eq!(exported["entries"].as_array().unwrap().len(), 2, "{exported}");
    assert_eq!(ids(&engine.lasting_records()), ids(&before), "{:?}", engine.records());
    engine.cache(&["verify", &text(&bundle)]).ok();

    let other = Engine::start(engine.generation());
    json(&other, &["import", "--src", &text(&bundle)]);
    let records = other.records();
    assert!(records.iter().all(|record| record["Type"] == "exec.cachemount"), "{records:?}");
    let told: Vec<&str> = records.iter().map(|record| record["Description"].as_str().unwrap()).collect();
    assert!(told.iter().any(|told| told.starts_with("cached mount /root/.npm from")), "{told:?}");
    let run = other.build(READ, &[]);
    assert!(run.stderr.contains("found wheel pack 1000:"), "{run}");
    assert!(run.stderr.contains("0:86400"), "{run}");
});

for_each_engine!(an_import_into_volumes_asks_about_no_builder_and_no_single_container, [v20, v28], |engine| {
    engine.volume("project-cache", &[("pip/a", "a")]);
    engine.build("RUN true", &["--tag", "box"]);
    engine.docker(&["create", "--volume", "project-cache:/cache", "box", "/bin/busybox", "true"]);
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle, "--volume", "project-cache"]).ok();
    let (run, calls) = engine.cache_told(&["import", "--src", &bundle]);
    assert!(run.ok().stdout.contains("project-cache") && !calls.contains("buildx"), "{calls}");
    let of_container = |line: &&str| line.starts_with("GET /containers/") && !line.contains("/containers/json");
    assert_eq!(calls.lines().find(of_container), None);
});

for_each_engine!(an_import_into_a_builder_that_is_not_there_writes_nothing, [v26, v28_containerd], |engine| {
    engine.volume("project-cache", &[("pip/a", "a")]);
    engine.build(FILL, &[]);
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle]).ok();
    engine.docker(&["volume", "rm", "project-cache"]);
    let run = engine.cache(&["import", "--src", &bundle, "--builder", "nowhere"]);
    assert!(run.code == 1 && run.stderr.contains("no builder \"nowhere\""), "{run}");
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).stdout, "", "{run}");
});

/// Two stages that use mounts of these ids at the same time, each with a copy of its own.
fn side_by_side(ids: &[&str]) -> String {
    let mount = |id: &&str| format!("--mount=type=cache,id={id},target=/of-{id},sharing=private ");
    let mounts: String = ids.iter().map(mount).collect();
    let stage = |own: &str, other: &str| {
        let write: String = ids.iter().map(|id| format!("echo {own} > /of-{id}/who; ")).collect();
        format!(
            "FROM base AS {own}\nRUN {mounts}--mount=type=cache,id=meet,target=/meet {write} \
             touch /meet/{own}; until [ -e /meet/{other} ]; do sleep 0.1; done; touch /{own}\n"
        )
    };
    format!(
        "FROM scratch AS base\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nENV PATH=/bin\n{}{}\
         FROM base\nCOPY --from=one /one /\nCOPY --from=two /two /",
        stage("one", "two"),
        stage("two", "one")
    )
}

for_each_engine!(of_copies_the_one_that_builds_get_is_carried_and_the_others_are_named, [v26, v28], |engine| {
    // By chance another copy would be carried once in sixteen times.
    let ids = ["a", "b", "c", "d"];
    engine.build(&side_by_side(&ids), &[]);
    assert_eq!(engine.mounts().len(), 2 * ids.len() + 1);
    let bundle = engine.folder().join("bundle");
    let select: Vec<&str> = ids.iter().flat_map(|id| ["--mount", id]).collect();
    for dry_run in [&["--dry-run"][..], &[]] {
        let exported = json(engine, &[&["export", "--dest", &text(&bundle)], &select[..], dry_run].concat());
        assert_eq!(exported["entries"].as_array().unwrap().len(), ids.len(), "{exported}");
        for id in ids {
            let told = exported["left_out"].to_string();
            assert!(told.contains(&format!("mount {id}: 1 of its 2 copies")), "{exported}");
        }
    }
    for id in ids {
        let copy = format!("copy-of-{id}");
        engine.cache(&["import", "--src", &text(&bundle), "--mount", id, "--to-mount", &copy]).ok();
        engine.build(
            &format!(
                "RUN --mount=type=cache,id={id},target=/a --mount=type=cache,id={copy},target=/b cmp /a/who /b/who"
            ),
            &[],
        );
    }
});

/// Starts an export of a mount and stops the helper while it has the mount. Returns the export and its helper.
fn stopped_export(engine: &Engine, bundle: &Path) -> (std::process::Child, rustix::process::Pid) {
    let mut command = engine.cache_command(&["export", "--dest", &text(bundle), "--mount", "pip"]);
    let mut export = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let group = format!("/{}/", engine.folder().file_name().unwrap().display());
    let helper = |process: fs::DirEntry| {
        let read = |name: &str| fs::read_to_string(process.path().join(name)).unwrap_or_default();
        let is_helper = read("cmdline").starts_with("/docker-cache-helper-") && read("cgroup").contains(&group);
        is_helper.then(|| process.file_name().to_str()?.parse().ok()).flatten()
    };
    loop {
        if let Some(pid) = fs::read_dir("/proc").unwrap().flatten().find_map(helper) {
            let helper = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(helper, rustix::process::Signal::STOP).unwrap();
            return (export, helper);
        }
        assert!(export.try_wait().unwrap().is_none(), "the helper was not seen");
    }
}

for_each_engine!(a_build_that_begins_during_an_export_has_the_mount, [v26, v28_containerd], |engine| {
    // Enough to be seen at work.
    let many = "for i in $(seq 5000); do echo $i > /c/$i; done";
    engine.build(&format!("RUN --mount=type=cache,id=pip,target=/c {many}"), &[]);
    let bundle = engine.folder().join("bundle");
    let (mut export, helper) = stopped_export(engine, &bundle);
    engine.build("RUN --mount=type=cache,id=pip,target=/c test -e /c/5000 && echo mine > /c/mine", &[]);
    rustix::process::kill_process(helper, rustix::process::Signal::CONT).unwrap();
    assert!(export.wait().unwrap().success());
    assert_eq!(engine.mounts().len(), 1);
    engine.build("RUN --mount=type=cache,id=pip,target=/c test -e /c/5000 && test -e /c/mine", &[]);
    let entries = json(engine, &["verify", &text(&bundle)])["entries"].clone();
    assert!(entries[0]["files"].as_u64() >= Some(5000), "{entries}");
});

for_each_engine!(only_empty_mounts_are_looked_at_twice, [v26, v28_containerd], |engine| {
    engine.build(
        "RUN --mount=type=cache,id=pip,target=/p --mount=type=cache,id=npm,target=/n \
         --mount=type=cache,id=go,target=/g echo 1 > /p/one; echo 2 > /g/two",
        &[],
    );
    let uses = || {
        let mounts = engine.mounts();
        ["/p", "/n", "/g"].map(|target| {
            let told = format!("mount {target} from ");
            let mount = mounts.iter().find(|mount| mount["Description"].to_string().contains(&told)).unwrap();
            mount["UsageCount"].as_u64().unwrap()
        })
    };
    let (before, bundle) = (uses(), engine.folder().join("bundle"));
    let mounts = ["--mount", "pip", "--mount", "npm", "--mount", "go"];
    let exported = json(engine, &[&["export", "--dest", &text(&bundle)], &mounts[..]].concat());
    let files: Vec<_> = exported["entries"].as_array().unwrap().iter().map(|entry| entry["files"].as_u64()).collect();
    let after = uses();
    let more: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(more[1] > more[0] && more[0] == more[2], "{more:?} of {exported}");
    assert_eq!(files, [Some(1), Some(0), Some(1)], "{exported}");
    engine.cache(&["verify", &text(&bundle)]).ok();
});

for_each_engine!(an_export_waits_for_a_build_that_has_locked_the_mount, [v26, v28_containerd], |engine| {
    let context = engine.context(
        "RUN --mount=type=cache,id=pip,target=/c,sharing=locked --mount=type=cache,id=meet,target=/meet \
         echo early > /c/early; echo has locked; until [ -e /meet/go ]; do sleep 0.1; done; echo late > /c/late",
    );
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress", "plain"]).arg(context.path());
    let mut build = build.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(build.stderr.take().unwrap())).map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(" has locked")));
    let bundle = engine.folder().join("bundle");
    let mut export = engine.cache_command(&["export", "--dest", &text(&bundle), "--mount", "pip"]).spawn().unwrap();
    // Its helper build is there, and waits for the mount.
    while !engine.api("/system/df?type=build-cache").to_string().contains("docker-cache-helper-") {
        assert!(export.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    engine.build("RUN --mount=type=cache,id=meet,target=/meet touch /meet/go", &[]);
    let rest: Vec<String> = lines.collect();
    assert!(build.wait().unwrap().success(), "{rest:?}");
    assert!(export.wait().unwrap().success());
    assert_eq!(engine.mounts().len(), 2);
    let entries = json(engine, &["verify", &text(&bundle)])["entries"].clone();
    assert_eq!(entries[0]["files"], 2, "{entries}");
});

fn ids(records: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = records.iter().map(|record| record["ID"].to_string()).collect();
    ids.sort();
    ids
}

const FILL_VARIANT: &str = "\nRUN --mount=type=cache,id=pip,target=/v,uid=1000,mode=0750 echo owned > /v/f";

const READ_VARIANT: &str = "\nRUN --mount=type=cache,id=pip,target=/v,uid=1000,mode=0750 \
    echo found $(cat /v/f) $(stat -c %u:%a /v)";

/// Carries mounts, a variant of one and a volume from one generation to another. Engine 20.10 does not tell ids, and none
/// tells the options of a variant, but the Dockerfile does.
fn crosses(from: Generation, to: Generation) {
    let start = |generation| match generation {
        Generation::V20 => Engine::start(generation).with_buildx(Generation::V28),
        _ => Engine::start(generation),
    };
    let (from, to) = (start(from), start(to));
    let fill_all = format!("{FILL}{FILL_VARIANT}");
    from.build(&fill_all, &[]);
    fill(&from.volume("project-cache", &[]));
    let before = Tree::read(&from.mountpoint("project-cache")).only(is_cache);
    let records = ids(&from.lasting_records());
    let bundle = from.folder().join("bundle");
    let file = text(&from.context(&fill_all).keep().join("Dockerfile"));
    let exported = json(&from, &["export", "--dest", &text(&bundle), "-f", &file]);
    let mounts = exported["entries"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "mount");
    assert_eq!(mounts.count(), 3, "{exported}");
    assert_eq!(ids(&from.lasting_records()), records, "{:?}", from.records());
    json(&to, &["import", "--src", &text(&bundle)]);
    assert_same(&before, &Tree::read(&to.mountpoint("project-cache")));
    let run = to.build(&format!("{READ}{READ_VARIANT}"), &[]);
    for found in ["found wheel pack 1000:", "0:86400", "found owned 1000:750"] {
        assert!(run.stderr.contains(found), "{run}");
    }
}

#[test]
fn from_26_to_28() {
    crosses(Generation::V26, Generation::V28Containerd);
}

#[test]
fn from_28_to_26() {
    crosses(Generation::V28, Generation::V26);
}

#[test]
fn from_20_to_28() {
    crosses(Generation::V20, Generation::V28);
}

#[test]
fn from_28_to_20() {
    crosses(Generation::V28, Generation::V20);
}

#[test]
fn second_export_writes_what_changed_and_ten_are_as_large_as_one() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[]);
    fill(&root);
    settle();
    let bundle = engine.folder().join("bundle");
    let export = || json(&engine, &["export", "--dest", &text(&bundle)]);
    let first = export()["bytes_written"].as_u64().unwrap();
    let before = Tree::read(&bundle);
    assert_eq!(export()["bytes_written"], 0);
    assert_eq!(before.bytes(), size(&bundle));
    for round in 0..10 {
        fs::write(root.join("pip/wheels/one.whl"), format!("{round}")).unwrap();
        settle();
        export();
    }
    assert!(size(&bundle) < before.bytes() + first / 10, "{} {}", size(&bundle), before.bytes());
    engine.cache(&["verify", &text(&bundle)]).ok();
}

#[test]
fn every_flipped_or_cut_blob_is_found_before_anything_is_written() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "a"), ("npm/b", "b")]);
    engine.build(FILL, &[]);
    let bundle = engine.folder().join("bundle");
    json(&engine, &["export", "--dest", &text(&bundle)]);
    fs::write(root.join("pip/a"), "mine").unwrap();
    let before = Tree::read(&root);
    let all = blobs(&bundle);
    assert!(all.len() >= 16, "{all:?}");
    for (at, blob) in all.iter().enumerate() {
        let bytes = fs::read(blob).unwrap();
        let mut flipped = bytes.clone();
        flipped[at * 37 % bytes.len()] ^= 1 << (at % 8);
        for damaged in [&flipped[..], &bytes[..bytes.len() - 1], &[]] {
            fs::write(blob, damaged).unwrap();
            assert_eq!(engine.cache(&["verify", &text(&bundle)]).code, 1);
            let run = engine.cache(&["import", "--src", &text(&bundle), "--replace"]);
            assert!(run.code == 1 && run.stderr.contains("nothing was imported"), "{run}");
        }
        fs::write(blob, &bytes).unwrap();
    }
    assert_same(&before, &Tree::read(&root));
    engine.cache(&["verify", &text(&bundle)]).ok();
}

/// A project with steps of every kind, the second with a cache mount.
fn project(engine: &Engine) -> tempfile::TempDir {
    let context = engine.context(
        "RUN echo one > /one\nRUN --mount=type=cache,id=pip,target=/root/.cache/pip echo two > /two\nRUN cat /one /two > /three",
    );
    fs::write(context.path().join("more"), "").unwrap();
    context
}

/// Exports layers on one engine, imports them on another, and builds there after the bundle is gone.
fn carries_layers(from: Generation, to: Generation, expected: u64) {
    let engine = Engine::start(from);
    let context = project(&engine);
    let bundle = engine.folder().join("bundle");
    let exported = json(&engine, &["export", "--dest", &text(&bundle), &text(context.path())]);
    assert!(exported["entries"].as_array().unwrap().iter().any(|entry| entry["kind"] == "layer"), "{exported}");
    engine.cache(&["verify", &text(&bundle)]).ok();
    // buildx writes its own manifest anew each time, in another order.
    let again = json(&engine, &["export", "--dest", &text(&bundle), &text(context.path())]);
    assert!(again["bytes_written"].as_u64().unwrap() < 8192, "{again}");

    let other = Engine::start(to);
    let imported = json(&other, &["import", "--src", &text(&bundle), &text(context.path())]);
    assert_eq!(imported["steps"]["cached"], expected, "{imported}");
    assert_eq!(imported["steps"]["ran"].as_array().unwrap().len() as u64, 4 - expected, "{imported}");
    fs::remove_dir_all(&bundle).unwrap();
    // A step on top needs the files of all below.
    let dockerfile = context.path().join("Dockerfile");
    let more = fs::read_to_string(&dockerfile).unwrap() + "RUN echo top $(cat /three)\n";
    fs::write(&dockerfile, more).unwrap();
    let run = other.docker(&["buildx", "build", "--progress", "plain", &text(context.path())]);
    assert!(run.stderr.contains("top one two"), "{run}");
    assert_eq!(run.stderr.matches(" CACHED").count(), 4, "{run}");
}

#[test]
fn layers_are_local_after_an_import_on_26() {
    carries_layers(Generation::V26Containerd, Generation::V26, 4);
}

#[test]
fn layers_are_local_after_an_import_on_28() {
    carries_layers(Generation::V28Containerd, Generation::V28Containerd, 4);
}

#[test]
fn layers_that_do_not_travel_between_generations_are_named() {
    carries_layers(Generation::V26Containerd, Generation::V28Containerd, 2);
}

for_each_engine!(plain_buildx_reads_the_layers_of_a_bundle, [v26_containerd, v28_containerd], |engine| {
    let context = project(engine);
    let bundle = engine.folder().join("bundle");
    engine.volume("project-cache", &[("pip/a", "a")]);
    engine.cache(&["export", "--dest", &text(&bundle), &text(context.path())]).ok();
    engine.docker(&["buildx", "prune", "--all", "--force"]);
    let from = format!("type=local,src={}", bundle.display());
    let build = ["buildx", "build", "--progress", "plain", "--cache-from", &from, &text(context.path())];
    let run = engine.docker(&build);
    assert_eq!(run.stderr.matches(" CACHED").count(), 4, "{run}");
    // And buildx may write there: our entries stay.
    let to = format!("type=local,dest={},mode=max", bundle.display());
    engine.docker(&["buildx", "build", "--cache-to", &to, &text(context.path())]);
    let entries = json(engine, &["verify", &text(&bundle)]);
    assert!(entries["entries"].to_string().contains("project-cache"), "{entries}");

    // What it wrote is layers; an image that comes there under the same name is not, and stays.
    let export = || engine.cache(&["export", "--dest", &text(&bundle), &text(context.path())]).ok().stderr;
    let told = export();
    assert!(!told.contains("another tool"), "{told}");
    let image = format!("type=oci,tar=false,dest={}", bundle.display());
    engine.docker(&["buildx", "build", "--output", &image, &text(context.path())]);
    let latest = || {
        let index: Value = serde_json::from_slice(&fs::read(bundle.join("index.json")).unwrap()).unwrap();
        let entries = index["manifests"].as_array().unwrap().iter();
        let mut names = entries.map(|entry| (&entry["annotations"]["org.opencontainers.image.ref.name"], entry));
        names.find(|(name, _)| *name == "latest").unwrap().1["digest"].clone()
    };
    let before = latest();
    let told = export();
    assert_eq!(latest(), before);
    let tag = told.split_once(",tag=").and_then(|(_, rest)| rest.split_once('`')).unwrap_or_else(|| panic!("{told}")).0;
    engine.cache(&["verify", &text(&bundle)]).ok();
    engine.docker(&["buildx", "prune", "--all", "--force"]);
    let from = format!("{from},tag={tag}");
    let run = engine.docker(&["buildx", "build", "--progress", "plain", "--cache-from", &from, &text(context.path())]);
    assert_eq!(run.stderr.matches(" CACHED").count(), 4, "{run}");
    engine.docker(&["buildx", "prune", "--all", "--force"]);
    let imported = json(engine, &["import", "--src", &text(&bundle), &text(context.path())]);
    assert_eq!((&imported["steps"]["cached"], &imported["steps"]["ran"]), (&4.into(), &Value::Array(Vec::new())));
});

/// Exports from an engine's own builder and by the driver remote, which leads to the same one and knows nothing of engines.
/// `able` of the two are said to be able to export layers before they are asked to.
fn cannot_export_layers(engine: &Engine, able: usize) {
    let _far = engine.remote_builder("far");
    let context = project(engine);
    let bundle = engine.folder().join("bundle");
    engine.volume("project-cache", &[("pip/a", "a")]);
    let export = ["export", "--dest", &text(&bundle), &text(context.path())];
    let builders = json(engine, &["builder", "ls"]);
    let said = builders["builders"].as_array().unwrap().iter().filter(|row| row["can_export"] == true);
    assert_eq!(said.count(), able, "{builders}");
    if able == 0 {
        let run = engine.cache(&[&export[..], &["--switch"]].concat());
        assert!(run.code == 1 && run.stderr.contains("no other that runs can"), "{run}");
    }
    for builder in ["default", "far"] {
        let run = engine.cache(&[&export[..], &["--builder", builder]].concat());
        assert_eq!(run.code, 1, "{run}");
        assert!(
            run.stderr
                .contains(&format!("layers: builder {builder} cannot export them: its engine uses a graph driver")),
            "{run}"
        );
        assert!(run.stderr.contains("hint: `") && run.stderr.contains("containerd-snapshotter"), "{run}");
        let quiet = engine.cache(&[&export[..], &["--builder", builder, "--quiet"]].concat());
        assert!(quiet.code == 1 && quiet.stderr.contains("cannot export them"), "{quiet}");
        let entries = json(engine, &["verify", &text(&bundle)]);
        assert!(entries["entries"].to_string().contains("project-cache"), "{entries}");
    }
}

for_each_engine!(a_builder_that_cannot_export_layers_is_told_with_the_choices, [v26, v28], |engine| {
    cannot_export_layers(engine, 0);
});

/// Engine 20.10 does not tell a builder of another driver what it is: only the build does.
#[test]
fn a_builder_that_turns_out_unable_to_export_layers_is_told_with_the_choices() {
    cannot_export_layers(&Engine::start(Generation::V20).with_buildx(Generation::V28), 1);
}

/// Runs the command of a hint: what is in its first backquotes.
fn follow(hint: &Run) {
    let (_, command) = hint.stderr.split_once("hint: `").unwrap_or_else(|| panic!("{hint}"));
    let command = command.split('`').next().unwrap();
    Run::of(std::process::Command::new("sh").args(["-ec", command])).ok();
}

#[test]
fn what_is_damaged_is_repaired_as_verify_says_and_a_damaged_table_by_the_next_export() {
    let engine = Engine::start(Generation::V28Containerd);
    engine.volume("project-cache", &[("pip/a", "a"), ("npm/b", "b")]);
    engine.volume("pip-cache", &[("a", "a")]);
    let context = engine.context("RUN head -c 9999 /dev/urandom > /layer");
    let bundle = engine.folder().join("bundle");
    let export = || json(&engine, &["export", "--dest", &text(&bundle), &text(context.path())]);
    let verify = || engine.cache(&["verify", &text(&bundle)]);
    let flip = |blob: &Path| {
        let mut bytes = fs::read(blob).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(blob, bytes).unwrap();
    };
    assert_eq!(export()["entries"].as_array().unwrap().len(), 4);
    let tables = blobs(&bundle).into_iter().filter(|blob| {
        let rows = fs::read(blob).ok().and_then(|bytes| zstd::decode_all(&bytes[..]).ok());
        rows.is_some_and(|rows| Rows::new(&rows[..]).next_row().is_ok_and(|row| row.is_some()))
    });
    let tables: Vec<_> = tables.collect();
    assert_eq!(tables.len(), 3);
    tables.iter().for_each(|table| flip(table));
    export();
    verify().ok();
    for blob in blobs(&bundle) {
        flip(&blob);
        let told = verify();
        assert_eq!(told.code, 1, "{told}");
        follow(&told);
        export();
        verify().ok();
    }
    // What is not there any more cannot be saved again, and goes.
    blobs(&bundle).iter().for_each(|blob| flip(blob));
    engine.docker(&["volume", "rm", "pip-cache"]);
    follow(&verify());
    assert_eq!(export()["entries"].as_array().unwrap().len(), 3);
    let verified = verify().ok();
    assert!(!verified.stdout.contains("pip-cache"), "{verified}");
}

/// Runs the plugin and kills it, and the docker commands that it started, after some time.
fn kill_after(engine: &Engine, arguments: &[&str], wait: Duration) {
    use std::os::unix::process::CommandExt;
    let mut command = engine.cache_command(arguments);
    let mut child = command
        .process_group(0)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(wait);
    let group = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    child.wait().unwrap();
}

/// Moments between nothing and `limit`, always the same ones.
fn moments(count: u64, limit: Duration) -> impl Iterator<Item = Duration> {
    (1..=count).map(move |at| limit.mul_f64(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) as f64 / u64::MAX as f64))
}

/// Returns a bit more than the time that the plugin takes.
fn time_of(engine: &Engine, arguments: &[&str]) -> Duration {
    let begin = std::time::Instant::now();
    engine.cache(arguments).ok();
    begin.elapsed().mul_f64(1.1)
}

/// Returns what helpers have left in the engine: containers, images, records.
fn rubbish(engine: &Engine) -> Vec<String> {
    let containers = engine.docker(&["ps", "--all", "--format", "{{.Names}}"]).stdout;
    let images = engine.docker(&["image", "ls", "--format", "{{.Repository}}"]).stdout;
    let records = engine.records().into_iter().map(|record| record["Description"].to_string());
    let names = containers.lines().chain(images.lines()).map(String::from).chain(records);
    names.filter(|name| name.contains("docker-cache-helper")).collect()
}

#[test]
fn killed_exports_leave_a_bundle_that_verifies_and_the_next_collects_the_rubbish() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[]);
    engine.build(FILL, &[]);
    (0..200).for_each(|at| write_files(&root, &[(&format!("pip/{}/{at}", at % 7), &"x".repeat(5_000 + at))]));
    let bundle = engine.folder().join("bundle");
    let all = ["export", "--dest", &text(&bundle)];
    let volume = [&all[..], &["--volume", "project-cache"]].concat();
    engine.cache(&all).ok();
    for (export, count) in [(&volume[..], 188), (&all[..], 12)] {
        for (round, wait) in moments(count, time_of(&engine, export)).enumerate() {
            write_files(&root, &[(&format!("pip/{}/{round}", round % 7), &format!("{round}").repeat(2000))]);
            kill_after(&engine, export, wait);
            engine.cache(&["verify", &text(&bundle)]).ok();
        }
    }
    // What a killed plugin had docker do goes on for a moment.
    let collected = (0..20).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        engine.cache(&all).ok();
        rubbish(&engine).is_empty()
    });
    assert!(collected, "{:?}", rubbish(&engine));
    assert_eq!(fs::read_dir(bundle.join("ingest")).unwrap().count(), 0);
    let fresh = engine.folder().join("fresh");
    engine.cache(&["export", "--dest", &text(&fresh)]).ok();
    assert!(size(&bundle) < size(&fresh) * 12 / 10, "{} {}", size(&bundle), size(&fresh));
}

#[test]
fn killed_imports_leave_whole_contents() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[]);
    (0..200).for_each(|at| write_files(&root, &[(&format!("pip/{}/{at}", at % 7), &format!("new {at} ").repeat(500))]));
    let new = Tree::read(&root.join("pip"));
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    let import = ["import", "--src", &text(&bundle), "--replace"];
    for wait in moments(200, time_of(&engine, &import)) {
        fs::remove_dir_all(root.join("pip")).unwrap();
        (0..50).for_each(|at| write_files(&root, &[(&format!("pip/old/{at}"), "old")]));
        let old = Tree::read(&root.join("pip"));
        kill_after(&engine, &import, wait);
        let now = Tree::read(&root.join("pip"));
        assert!(now.difference(&old).is_empty() || now.difference(&new).is_empty(), "neither old nor new");
    }
    engine.cache(&import).ok();
    assert_same(&new, &Tree::read(&root.join("pip")));
    assert!(!root.join(".docker-cache-import").exists());
}

#[test]
fn what_killed_helpers_left_is_removed_by_the_next_run() {
    let engine = Engine::start(Generation::V28);
    let folder = engine.folder().join("elsewhere");
    (0..50).for_each(|at| write_files(&folder, &[(&format!("pip/{at}"), &"x".repeat(5_000 + at))]));
    let device = format!("device={}", folder.display());
    engine.docker(&["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", &device, "project-cache"]);
    let new = Tree::read(&folder.join("pip"));
    let bundle = engine.folder().join("bundle");
    let export = ["export", "--dest", &text(&bundle)];
    let import = ["import", "--src", &text(&bundle), "--replace"];
    engine.cache(&export).ok();
    // What a killed plugin had docker do goes on for a moment, and its container may begin to use the volume only then.
    let in_the_end = |arguments: &[&str]| {
        let done = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            engine.cache(arguments).code == 0
        });
        assert!(done, "{}", engine.cache(arguments));
    };
    for arguments in [&export[..], &import[..]] {
        in_the_end(arguments);
        for wait in moments(6, time_of(&engine, arguments)) {
            kill_after(&engine, arguments, wait);
        }
    }
    // Of another machine, and too young to be surely over.
    let other = "docker-cache-helper-00000000-1-99999999999999999999";
    engine.build("RUN true", &["--tag", "box"]);
    engine.docker(&["create", "--name", other, "box", "/x"]);
    let swept = (0..20).any(|_| {
        in_the_end(&import);
        rubbish(&engine) == [other]
    });
    assert!(swept, "{:?}", rubbish(&engine));
    assert_same(&new, &Tree::read(&folder.join("pip")));
}

#[test]
fn what_a_killed_import_left_is_neither_counted_nor_exported_and_is_told() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("pip-cache", &[("a", "a"), (".docker-cache-import/new-0/b", "b")]);
    let size = |engine: &Engine| json(engine, &["size", "--volume", "pip-cache"])["total_bytes"].as_u64();
    let with = size(&engine);
    let bundle = engine.folder().join("bundle");
    let export = json(&engine, &["export", "--dest", &text(&bundle)]);
    assert_eq!(export["entries"][0]["files"], 1);
    assert!(export["left_out"].to_string().contains("an import goes on here, or was killed"), "{export}");
    fs::remove_dir_all(root.join(".docker-cache-import")).unwrap();
    assert_eq!(with, size(&engine));
}

#[test]
fn two_exports_at_once_lose_nothing() {
    let engine = Engine::start(Generation::V28);
    engine.volume("pip-cache", &[("a", "a")]);
    engine.volume("npm-cache", &[("b", "b")]);
    let bundle = engine.folder().join("bundle");
    let children = ["pip-cache", "npm-cache"]
        .map(|volume| engine.cache_command(&["export", "--dest", &text(&bundle), "--volume", volume]).spawn().unwrap());
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    let entries = json(&engine, &["verify", &text(&bundle)])["entries"].to_string();
    assert!(entries.contains("pip-cache") && entries.contains("npm-cache"), "{entries}");
}

#[test]
fn a_full_disk_leaves_the_last_bundle() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "a")]);
    let bundle = engine.folder().join("bundle");
    fs::create_dir(&bundle).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", &text(&bundle)];
    Run::of(std::process::Command::new("mount").args(mount)).ok();
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    let before = Tree::read(&bundle);
    let mut noise = vec![0; 6 << 20];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
    fs::write(root.join("pip/large"), noise).unwrap();
    let run = engine.cache(&["export", "--dest", &text(&bundle)]);
    let after = Tree::read(&bundle);
    let verified = engine.cache(&["verify", &text(&bundle)]);
    Run::of(std::process::Command::new("umount").arg(&bundle)).ok();
    assert!(run.code == 1 && run.stderr.contains("No space left on device"), "{run}");
    assert!(run.stderr.contains("has no room for the bundle"), "{run}");
    assert_eq!(verified.code, 0, "{verified}");
    let files = |tree: Tree| tree.only(|path| path.starts_with("blobs/sha256/") || path.ends_with("index.json"));
    assert_same(&files(before), &files(after));
}

#[test]
fn a_directory_that_is_no_bundle_or_cannot_be_written_is_refused() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[("pip/a", "a")]);
    let bundle = engine.folder().join("bundle");
    write_files(&bundle, &[("thesis.txt", "mine")]);
    let run = engine.cache(&["export", "--dest", &text(&bundle)]);
    assert!(run.code == 1 && run.stderr.contains("thesis.txt"), "{run}");
    assert_eq!(fs::read_dir(&bundle).unwrap().count(), 1);
    let run = engine.cache(&["export", "--dest", "/proc/bundle"]);
    assert!(run.code == 1 && run.stderr.contains("cannot write /proc/bundle"), "{run}");
    let run = engine.cache(&["import", "--src", &text(&bundle)]);
    assert!(run.code == 1 && run.stderr.contains("is no bundle"), "{run}");
}

#[test]
fn an_export_of_nothing_writes_no_bundle() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[("pip/a", "a")]);
    let bundle = engine.folder().join("bundle");
    let run = engine.cache(&["export", "--dest", &text(&bundle), "--lang", "ruby"]).ok();
    assert_eq!((run.stdout.as_str(), bundle.exists()), ("Nothing to export\n", false));
    let run = engine.cache(&["export", "--dest", &text(&bundle), &text(&engine.folder().join("nosuch"))]);
    assert_eq!((run.code, bundle.exists()), (1, false), "{run}");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    let before = Tree::read(&bundle);
    engine.cache(&["export", "--dest", &text(&bundle), "--lang", "ruby"]).ok();
    assert_same(&before, &Tree::read(&bundle));
    let run = engine.cache(&["import", "--src", &text(&bundle), "--lang", "ruby"]).ok();
    assert_eq!(run.stdout, "Nothing to import\n");
    // Neither name nor container says that the one volume is a cache.
    for (volume, told) in [("tools", true), ("team-cache", false)] {
        let run = engine.cache(&["import", "--src", &text(&bundle), "--to-volume", volume]).ok();
        let hint = format!("`docker cache size --volume {volume}`");
        assert_eq!(run.stderr.contains(&hint), told, "{run}");
        let size = json(&engine, &["size"]);
        assert_eq!(size.to_string().contains(&format!("\"{volume}\"")), !told, "{size}");
    }
}

#[test]
fn an_import_takes_what_is_selected_and_replaces_only_that() {
    let engine = Engine::start(Generation::V28);
    engine.docker(&["volume", "create", "--label", "team=ours", "project-cache"]);
    let root = engine.mountpoint("project-cache");
    write_files(&root, &[("pip/a", "a"), ("npm/_cacache/index-v5/x", "x")]);
    engine.build(FILL, &[]);
    let bundle = engine.folder().join("bundle");
    json(&engine, &["export", "--dest", &text(&bundle)]);
    let whole = Tree::read(&root);
    write_files(&root, &[("pip/more", "1"), ("npm/more", "2")]);
    let more = FILL.split(" mkdir").next().unwrap().to_owned();
    engine.build(&format!("{more} echo 1 > /root/.cache/pip/more && echo 2 > /root/.npm/more"), &[]);
    let import = |further: &[&str]| json(&engine, &[&["import", "--src", &text(&bundle)], further].concat());
    let grown = Tree::read(&root);
    let names = |answer: Value| {
        let names = answer["entries"].as_array().unwrap().iter().map(|entry| entry["name"].to_string());
        names.collect::<Vec<_>>().join(" ")
    };

    assert_eq!(names(import(&["--lang", "python"])), r#""project-cache" "pip""#);
    let below = |path: &Path| path != Path::new("");
    assert_same(&grown.clone().only(below), &Tree::read(&root).only(below));
    let sizes = json(&engine, &["size", "--mount", "pip"])["caches"].clone();
    let blocks = |name: &str| fs::metadata(root.join("pip").join(name)).unwrap().blocks() * 512;
    let planned = import(&["--tool", "pip", "--replace", "--dry-run"])["entries"].clone();
    assert_eq!(planned[0]["bytes_replaced"], blocks("a") + blocks("more"));
    assert_eq!(planned[1]["bytes_replaced"], sizes[0]["bytes"]);
    let other = import(&["--volume", "project-cache", "--to-volume", "other-cache", "--replace", "--dry-run"]);
    assert!(other["entries"].as_array().unwrap().iter().all(|entry| entry["bytes_replaced"] == 0), "{other}");
    assert_same(&grown.only(below), &Tree::read(&root).only(below));

    import(&["--tool", "pip", "--replace"]);
    let now = Tree::read(&root);
    assert!(!root.join("pip/more").exists() && root.join("npm/more").exists());
    assert_same(&whole.clone().only(|path| path.starts_with("pip")), &now.only(|path| path.starts_with("pip")));
    let run = engine.build(&format!("{more} echo found $(cd /root && echo .cache/pip/* .npm/*)"), &[]);
    assert!(run.stderr.contains("found .cache/pip/http .npm/more .npm/p"), "{run}");

    engine.docker(&["volume", "rm", "project-cache"]);
    assert_eq!(names(import(&["--volume", "project-cache"])), r#""project-cache" "project-cache""#);
    assert_same(&whole, &Tree::read(&engine.mountpoint("project-cache")));
    let labels = engine.docker(&["volume", "inspect", "--format", "{{.Labels.team}}", "project-cache"]).stdout;
    assert_eq!(labels.trim(), "ours");
}

#[test]
fn what_is_broken_hinders_no_import_of_what_is_not() {
    let engine = Engine::start(Generation::V28Containerd);
    let root = engine.volume("project-cache", &[("pip/a", "a"), ("npm/b", "b")]);
    let context = engine.context("RUN true");
    let (bundle, context) = (engine.folder().join("bundle"), text(context.path()));
    json(&engine, &["export", "--dest", &text(&bundle), "--tool", "pip"]);
    let good = blobs(&bundle);
    json(&engine, &["export", "--dest", &text(&bundle), &context]);
    for blob in blobs(&bundle).iter().filter(|blob| !good.contains(blob)) {
        fs::write(blob, "damaged").unwrap();
    }
    let before = Tree::read(&root);
    fs::remove_file(root.join("npm/b")).unwrap();
    for selection in [&["--tool", "npm"][..], &[&context]] {
        let run = engine.cache(&[&["import", "--src", &text(&bundle)], selection].concat());
        assert!(run.code == 1 && !root.join("npm/b").exists(), "{run}");
    }
    fs::remove_file(root.join("pip/a")).unwrap();
    json(&engine, &["import", "--src", &text(&bundle), "--tool", "pip"]);
    let pip = |tree: Tree| tree.only(|path| path.starts_with("pip")).timeless();
    assert_same(&pip(before), &pip(Tree::read(&root)));
}

#[test]
fn skopeo_reads_every_entry() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[("pip/a", "a")]);
    engine.build(FILL, &[]);
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    let registry = crate::support::registry::Registry::beside(&engine);
    let index: Value = serde_json::from_slice(&fs::read(bundle.join("index.json")).unwrap()).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    for (at, entry) in entries.iter().enumerate() {
        let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
        let from = format!("oci:{}:{name}", bundle.display());
        let to = format!("docker://{}/cache:{at}", registry.address);
        registry.skopeo(&["copy", "--dest-tls-verify=false", &from, &to]).ok();
        let manifest = registry.skopeo(&["inspect", "--raw", "--tls-verify=false", &to]).ok().stdout;
        assert!(manifest.contains("docker-cache"), "{manifest}");
    }
}

#[test]
fn mounts_and_volumes_move_into_each_other_and_owners_are_mapped() {
    let engine = Engine::start(Generation::V28);
    engine.build(FILL, &[]);
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    let to =
        ["import", "--src", &text(&bundle), "--mount", "pip", "--to-volume", "project-cache", "--owner", "1000:1001"];
    engine.cache(&to).ok();
    let tree = Tree::read(&engine.mountpoint("project-cache"));
    let file = &tree.0[Path::new("pip/http/w")];
    assert_eq!((file.uid, file.gid), (1000, 1001));

    engine.cache(&["export", "--dest", &text(&bundle), "--volume", "project-cache"]).ok();
    let back = ["import", "--src", &text(&bundle), "--volume", "project-cache", "--tool", "pip", "--to-mount", "other"];
    engine.cache(&back).ok();
    let run = engine.build("RUN --mount=type=cache,id=other,target=/m echo found $(cat /m/http/w)", &[]);
    assert!(run.stderr.contains("found wheel"), "{run}");

    // What was not taken along is not replaced either.
    let cargo = "RUN --mount=type=cache,target=/usr/local/cargo mkdir -p /usr/local/cargo/registry/cache && \
                 echo new > /usr/local/cargo/registry/cache/a.crate && echo mine > /usr/local/cargo/credentials.toml";
    engine.build(cargo, &[]);
    engine.cache(&["export", "--dest", &text(&bundle), "--tool", "cargo"]).ok();
    let files =
        [("cargo/bin/tool", "mine"), ("cargo/credentials.toml", "mine"), ("cargo/registry/cache/b.crate", "old")];
    let root = engine.volume("tools-cache", &files);
    let replace = ["import", "--src", &text(&bundle), "--tool", "cargo", "--to-volume", "tools-cache", "--replace"];
    engine.cache(&replace).ok();
    assert!(root.join("cargo/bin/tool").exists() && root.join("cargo/credentials.toml").exists());
    assert!(root.join("cargo/registry/cache/a.crate").exists() && !root.join("cargo/registry/cache/b.crate").exists());

    // Two of one tool: beside each other, but never one in place of the other.
    let second = "RUN --mount=type=cache,id=second,target=/root/.cache/pip mkdir /root/.cache/pip/second";
    engine.build(second, &[]);
    engine.cache(&["export", "--dest", &text(&bundle), "--tool", "pip"]).ok();
    let both = ["import", "--src", &text(&bundle), "--mount", "pip", "--mount", "second", "--to-volume", "both-cache"];
    let refused = engine.cache(&[&both[..], &["--replace"]].concat());
    // The engine tells its mounts in any order.
    let names = ["mount pip and mount second", "mount second and mount pip"];
    let said = names.iter().any(|names| refused.stderr.contains(&format!("{names} go to one place")));
    assert!(refused.code == 1 && said, "{refused}");
    engine.cache(&both).ok();
    let again = json(&engine, &both);
    assert!(again["bytes_written"] == 0 && again["bytes_reused"].as_u64() > Some(0), "{again}");
    let tree = Tree::read(&engine.mountpoint("both-cache"));
    assert!(["pip/http/w", "pip/second"].iter().all(|path| tree.0.contains_key(Path::new(path))), "{tree:?}");

    // A mount is one directory, and used where it is.
    engine.build("RUN --mount=type=cache,id=home,target=/root mkdir -p /root/.cache/pip/http", &[]);
    let to_mount = |words: &[&str]| engine.cache(&[&["import", "--src", &text(&bundle)], words].concat());
    let mixed = to_mount(&["--mount", "second", "--mount", "/usr/local/cargo", "--to-mount", "new"]);
    assert!(mixed.code == 1 && mixed.stderr.contains("go to one mount"), "{mixed}");
    for dry_run in [&[][..], &["--dry-run"]] {
        let lost = to_mount(&[&["--mount", "second", "--to-mount", "home"], dry_run].concat());
        assert!(lost.code == 1 && lost.stderr.contains("mount home is used at /root, "), "{lost}");
    }
    assert!(engine.mounts().iter().all(|mount| !mount["Description"].as_str().unwrap().contains("\"/new\"")));
    let run = engine.cache(&["export", "--dest", &text(&bundle), "--tool", "pip", "--format", "json"]).ok();
    let whole = "mount home: it may hold some at /root, and goes as a whole";
    assert!(run.stdout.contains(whole), "{run}");
    engine.cache(&["export", "--dest", &text(&bundle), "--mount", "home"]).ok();
    for (words, told) in [
        (&["--tool", "pip"][..], true),
        (&["--tool", "apt"], false),
        (&["--tool", "pip", "--mount", "home"], true),
        (&["--tool", "pip", "--mount", "second"], false),
    ] {
        let run = to_mount(&[words, &["--dry-run", "--format", "json"]].concat()).ok();
        assert_eq!(run.stdout.contains(whole), told, "{words:?}");
    }
}

#[test]
fn an_import_goes_to_where_the_volume_is_mounted_now_or_nowhere() {
    let engine = Engine::start(Generation::V28);
    engine.build("RUN true", &["--tag", "box"]);
    let mounted = |name: &str, volume: &str| {
        engine.docker(&["create", "--name", name, "--volume", volume, "box", "/bin/busybox", "true"]);
    };
    let root = engine.volume("same", &[("wheel", "w")]);
    mounted("first", "same:/root/.cache/pip");
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle, "--volume", "same"]).ok();
    let import = |further: &[&str]| engine.cache(&[&["import", "--src", &bundle], further].concat());
    engine.docker(&["rm", "first"]);
    mounted("second", "same:/cache");
    fs::remove_file(root.join("wheel")).unwrap();
    let others = [("npm/mine", "1"), ("cargo/bin/mine", "2"), ("notes/mine", "3")];
    let files = [&others[..], &[("pip/old", "old")]].concat();
    let is_as_meant = |root: &Path| {
        assert!(root.join("pip/wheel").exists() && !root.join("pip/old").exists() && !root.join("wheel").exists());
        assert!(others.iter().all(|(path, _)| root.join(path).exists()), "{}", root.display());
    };

    write_files(&root, &files);
    let planned = import(&["--replace", "--dry-run"]).ok().stderr;
    let replaced = import(&["--replace"]).ok().stderr;
    assert!(planned.contains("volume same goes to pip of volume same\n"), "{planned}");
    assert_eq!(planned, replaced);
    is_as_meant(&root);
    // Of one that nobody mounts its name tells.
    let root = engine.volume("team-cache", &files);
    import(&["--to-volume", "team-cache", "--replace"]).ok();
    is_as_meant(&root);
    // The volume's own that nobody mounts, and a new one, are as they were.
    engine.docker(&["rm", "second"]);
    import(&[]).ok();
    import(&["--to-volume", "new-cache", "--replace"]).ok();
    assert!(
        [&engine.mountpoint("same"), &engine.mountpoint("new-cache")].iter().all(|root| root.join("wheel").exists())
    );

    let git = [("pip/.git/HEAD", "ref: refs/heads/main"), ("pip/mine", "mine")];
    for (volume, at, files, why) in [
        (
            "db",
            "/var/lib/db",
            &others[..],
            "what was in /root/.cache/pip has no place in volume db, which is for /var/lib/db",
        ),
        ("wt-cache", "/cache", &git[..], "pip is a git work tree"),
    ] {
        let root = engine.volume(volume, files);
        mounted(volume, &format!("{volume}:{at}"));
        let before = Tree::read(&root).timeless();
        let refused = import(&["--to-volume", volume, "--replace"]);
        assert!(refused.code == 1 && refused.stderr.contains(why) && refused.stderr.contains("hint: "), "{refused}");
        assert_same(&before, &Tree::read(&root).timeless());
    }
}

// No engine before 24 proves that it runs here: there a container looks into the volumes.
for_each_engine!(an_import_that_fails_leaves_no_new_volume, [v20, v28], |engine| {
    engine.volume("new-cache", &[("pip/wheel", "w")]);
    let there = engine.volume("old-cache", &[("npm/_cacache/x", "x")]);
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle]).ok();
    engine.docker(&["volume", "rm", "new-cache"]);
    write_files(&there, &[("npm/.git/HEAD", "ref: refs/heads/main")]);
    let before = Tree::read(&there).timeless();
    let refused = engine.cache(&["import", "--src", &bundle, "--replace"]);
    assert!(refused.code == 1 && refused.stderr.contains("npm is a git work tree"), "{refused}");
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).stdout, "old-cache\n");
    assert_same(&before, &Tree::read(&there).timeless());
    fs::remove_dir_all(there.join("npm/.git")).unwrap();
    engine.cache(&["import", "--src", &bundle, "--replace"]).ok();
    assert!(engine.mountpoint("new-cache").join("pip/wheel").exists());
});

#[test]
fn of_a_mount_on_all_of_a_home_only_what_is_a_cache_is_exported() {
    let engine = Engine::start(Generation::V28);
    let fill = "RUN --mount=type=cache,target=/root --mount=type=cache,target=/build-cache \
                mkdir -p /root/.cache/pip /root/.cargo/bin && cd /root && \
                touch .cache/pip/wheel key source .cargo/bin/tool /build-cache/one /build-cache/two";
    engine.build(fill, &[]);
    let bundle = text(&engine.folder().join("bundle"));
    let files = |arguments: &[&str]| {
        let exported = json(&engine, &[&["export", "--dest", &bundle], arguments].concat());
        let entries = exported["entries"].as_array().unwrap().iter();
        let mut files: Vec<_> = entries
            .map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry["files"].as_u64().unwrap()))
            .collect();
        files.sort();
        (files, exported["left_out"].to_string())
    };
    let (home, cache) = (|files| ("/root".to_owned(), files), ("/build-cache".to_owned(), 2));
    let installs = "mount /root: /root/.cargo/bin holds programs or libraries; `--include-installs` takes them too";
    for (arguments, expected) in [(&[][..], vec![cache, home(1)]), (&["--mount", "/root"], vec![home(3)])] {
        let (found, left_out) = files(arguments);
        assert_eq!(found, expected);
        assert!(left_out.contains(installs), "{left_out}");
    }
}

for_each_engine!(variants_of_a_mount_are_carried_where_the_dockerfile_tells_them, [v26, v28_containerd], |engine| {
    let file = engine.context(&format!("{FILL}{FILL_VARIANT}"));
    engine.docker(&["buildx", "build", &text(file.path())]);
    let unknown = json(engine, &["export", "--dest", &text(&engine.folder().join("unknown"))]);
    assert!(unknown["left_out"].to_string().contains("variant"), "{unknown}");
    let (bundle, file) = (engine.folder().join("bundle"), text(&file.path().join("Dockerfile")));
    let export = json(engine, &["export", "--dest", &text(&bundle), "--mount", "pip", "-f", &file]);
    assert_eq!(export["entries"].as_array().unwrap().len(), 2, "{export}");
    let other = Engine::start(engine.generation());
    json(&other, &["import", "--src", &text(&bundle)]);
    // What another run of the plugin prunes as its own leaves the variant where it is.
    json(&other, &["export", "--dest", &text(&bundle), "--mount", "pip", "-f", &file]);
    let run = other.build(READ_VARIANT, &[]);
    assert!(run.stderr.contains("found owned 1000:750"), "{run}");
});

// No engine before 24 proves that it runs here: there a container looks into the volumes.
for_each_engine!(no_volume_is_replaced_by_another_that_is_no_cache, [v20, v28], |engine| {
    engine.volume("scratch-db", &[("a", "a")]);
    let root = engine.volume("app-data", &[("db.sqlite", "precious"), ("uploads/1", "1")]);
    let bundle = text(&engine.folder().join("bundle"));
    let run = engine.cache(&["export", "--dest", &bundle, "--volume", "scratch-db"]).ok();
    assert!(run.stderr.contains("volume scratch-db: no cache is known in it; all of it goes along"), "{run}");
    let before = Tree::read(&root);
    let import = ["import", "--src", &bundle, "--to-volume", "app-data"];
    for more in [&["--replace"][..], &["--replace", "--dry-run"]] {
        let refused = engine.cache(&[&import[..], more].concat());
        assert!(refused.code == 1 && refused.stderr.contains("remove all that the volume holds\nhint: "), "{refused}");
        assert_same(&before, &Tree::read(&root));
    }
    engine.cache(&import).ok();
    assert!(["a", "db.sqlite", "uploads/1"].iter().all(|path| root.join(path).exists()));
    // It is the volume's own in its place.
    let own = engine.mountpoint("scratch-db");
    write_files(&own, &[("b", "b")]);
    engine.cache(&["import", "--src", &bundle, "--replace"]).ok();
    assert!(own.join("a").exists() && !own.join("b").exists());
    // What the bundle has of it from before a cache was there is not all of it any more.
    write_files(&own, &[("pip/http/a", "a"), ("b", "b")]);
    engine.cache(&["export", "--dest", &bundle, "--volume", "scratch-db"]).ok();
    let refused = engine.cache(&["import", "--src", &bundle, "--replace"]);
    assert!(refused.code == 1 && refused.stderr.contains("go to one place") && own.join("b").exists(), "{refused}");
    engine.cache(&["import", "--src", &bundle, "--replace", "--tool", "pip"]).ok();
    assert!(own.join("b").exists());
});

#[test]
fn a_bundle_in_a_volume_that_it_carries_is_refused() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "a")]);
    let (inside, outside) = (root.join("pip/bundle"), engine.folder().join("bundle"));
    let before = Tree::read(&root);
    let refused = engine.cache(&["export", "--dest", &text(&inside)]);
    assert!(refused.code == 1 && refused.stderr.contains("lie in each other"), "{refused}");
    assert_same(&before, &Tree::read(&root));

    engine.cache(&["export", "--dest", &text(&outside)]).ok();
    for dir in ["volume", "volume/pip"] {
        let other = engine.volume("other-cache", &[]);
        let bundle = other.parent().unwrap().join(dir.replace("volume", "_data"));
        Run::of(std::process::Command::new("cp").arg("-rT").arg(&outside).arg(&bundle)).ok();
        let import = ["import", "--src", &text(&bundle), "--to-volume", "other-cache", "--replace"];
        let refused = engine.cache(&import);
        assert!(refused.code == 1 && refused.stderr.contains("lie in each other"), "{refused}");
        engine.cache(&["verify", &text(&bundle)]).ok();
        engine.docker(&["volume", "rm", "other-cache"]);
    }
}

#[test]
fn two_volumes_of_one_directory_are_imported_one_into_the_other() {
    let engine = Engine::start(Generation::V28);
    let folder = engine.folder().join("elsewhere");
    write_files(&folder, &[("pip/a", "a")]);
    let device = format!("device={}", folder.display());
    let bundle = engine.folder().join("bundle");
    for name in ["one-cache", "two-cache"] {
        engine.docker(&["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", &device, name]);
        // At once only one of them would be exported.
        engine.cache(&["export", "--dest", &text(&bundle), "--volume", name]).ok();
    }
    fs::remove_dir_all(folder.join("pip")).unwrap();
    engine.cache(&["import", "--src", &text(&bundle)]).ok();
    assert_eq!(fs::read_to_string(folder.join("pip/a")).unwrap(), "a");
    let refused = engine.cache(&["import", "--src", &text(&bundle), "--replace"]);
    assert!(refused.code == 1 && refused.stderr.contains("are one directory"), "{refused}");
}

#[test]
fn an_import_takes_no_mount_from_a_running_container() {
    let engine = Engine::start(Generation::V28);
    engine.build("RUN true", &["--tag", "box"]);
    let root = engine.volume("project-cache", &[("pip/sub/a", "a")]);
    engine.volume("inner-cache", &[("mine", "mine")]);
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle), "--volume", "project-cache"]).ok();
    fs::remove_file(root.join("pip/sub/a")).unwrap();
    let import = |further: &[&str]| engine.cache(&[&["import", "--src", &text(&bundle)], further].concat());
    let run = |name: &str, inner: &str| {
        let run = format!(
            "run --detach --name {name} --volume project-cache:/cache --volume {inner} box /bin/busybox sleep 600"
        );
        engine.docker(&run.split_whitespace().collect::<Vec<_>>());
    };
    run("worker", "inner-cache:/cache/pip/sub");
    for dry_run in [&["--dry-run"][..], &[]] {
        let refused = import(&[&["--replace", "--force-in-use"], dry_run].concat());
        let told = refused.stderr.contains("container worker") && refused.stderr.contains("/cache/pip/sub");
        assert!(refused.code == 1 && told, "{refused}");
    }
    // What is added leaves all directories where they are.
    import(&[]).ok();
    assert!(root.join("pip/sub/a").exists());
    let found = engine.docker(&["exec", "worker", "/bin/busybox", "cat", "/cache/pip/sub/mine"]).stdout;
    assert_eq!(found, "mine");

    // But a newer file takes the place of one.
    let file = engine.folder().join("file");
    fs::write(&file, "mine").unwrap();
    run("other", &format!("{}:/cache/pip/file", file.display()));
    let refused = import(&[]);
    assert!(refused.code == 1 && refused.stderr.contains("container other"), "{refused}");
}

#[test]
fn a_volume_with_options_is_reached_by_a_container() {
    let engine = Engine::start(Generation::V28);
    let folder = engine.folder().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    fill(&folder);
    let device = format!("device={}", folder.display());
    engine.docker(&["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", &device, "project-cache"]);
    let before = Tree::read(&folder);
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    fs::remove_dir_all(folder.join("pip")).unwrap();
    engine.cache(&["import", "--src", &text(&bundle)]).ok();
    let pip = |path: &Path| path.starts_with("pip");
    assert_same(&before.only(pip), &Tree::read(&folder).only(pip));
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).stdout, "");
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).stdout.trim(), "project-cache");
}

#[test]
fn a_volume_that_is_a_link_to_elsewhere_is_one_like_others() {
    let engine = Engine::start(Generation::V28);
    let (there, here) = (engine.volume("project-cache", &[]), engine.folder().join("elsewhere"));
    fill(&here);
    fs::remove_dir(&there).unwrap();
    symlink(&here, &there).unwrap();
    let before = Tree::read(&here);
    let size = engine.cache(&["size"]).ok();
    assert!(size.stdout.contains("/cache/pip") && !size.stderr.contains("project-cache"), "{size}");
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    engine.cache(&["clear", "--tool", "pip", "--force"]).ok();
    let is_pip = |path: &Path| path.starts_with("pip");
    fs::remove_dir(here.join("pip")).unwrap();
    engine.cache(&["import", "--src", &text(&bundle)]).ok();
    assert_same(&before.only(is_pip), &Tree::read(&here).only(is_pip));
}

#[test]
fn an_engine_elsewhere_gets_all_blobs_in_one_call() {
    // This one does not tell by what it could be known to be here.
    let engine = Engine::start(Generation::V20);
    fill(&engine.volume("project-cache", &[]));
    let before = Tree::read(&engine.mountpoint("project-cache")).only(is_cache);
    let bundle = engine.folder().join("bundle");
    engine.cache(&["export", "--dest", &text(&bundle)]).ok();
    engine.docker(&["volume", "rm", "project-cache"]);
    engine.cache(&["import", "--src", &text(&bundle)]).ok();
    assert_same(&before, &Tree::read(&engine.mountpoint("project-cache")));
    // Docker takes whole seconds alone: what happened in this one is told by the next.
    let copies = ["events", "--since=1h", "--until=-1s", "--filter=event=extract-to-dir", "--format={{.Action}}"];
    assert_eq!(engine.docker(&copies).stdout, "extract-to-dir\n");
}

for_each_engine!(a_remote_builder_has_its_layers_and_mounts_carried, [v26_containerd, v28_containerd], |engine| {
    let _far = engine.remote_builder("far");
    let other = Engine::start(engine.generation());
    let _other_far = other.remote_builder("far");
    assert_far_is_carried(engine, &other);
});

for_each_engine!(a_container_builder_is_started_and_carried, [v26_containerd, v28_containerd], |engine| {
    let _far = engine.container_builder("far");
    let run = engine.cache(&["size", "--builder", "far"]);
    assert!(run.code == 1 && run.stderr.contains("docker buildx inspect --bootstrap far"), "{run}");
    let all = engine.cache(&["size", "--all-builders"]).ok();
    assert!(all.stderr.contains("builder far is not counted: the builder far does not run; start it"), "{all}");
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).stdout, "", "nothing but the user starts it");
    let other = Engine::start(engine.generation());
    let _other_far = other.container_builder("far");
    other.docker(&["buildx", "inspect", "--bootstrap", "far"]);
    assert_far_is_carried(engine, &other);
    let names = engine.docker(&["ps", "--all", "--format", "{{.Names}}"]).stdout;
    assert_eq!(names, "buildx_buildkit_far0\n", "its container is no cache of anybody");
});

/// Fills the builder "far" of an engine, carries all of it to that of the other, and builds on there.
fn assert_far_is_carried(engine: &Engine, other: &Engine) {
    let context = engine.context(&format!("RUN echo one > /one\n{FILL}\nRUN cat /one > /two"));
    engine.docker(&["buildx", "build", "--builder", "far", &text(context.path())]);
    let bundle = engine.folder().join("bundle");
    let exported = json(engine, &["export", "--dest", &text(&bundle), "--builder", "far", &text(context.path())]);
    let kinds = exported["entries"].as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap());
    assert_eq!(kinds.collect::<Vec<_>>(), ["layer", "mount", "mount"], "{exported}");

    let import = ["import", "--src", &text(&bundle), "--builder", "far", &text(context.path())];
    let planned = json(other, &[&import[..], &["--dry-run"]].concat());
    let imported = json(other, &import);
    assert_eq!(planned["entries"], imported["entries"]);
    assert_eq!((&imported["steps"]["cached"], &imported["steps"]["ran"]), (&4.into(), &serde_json::json!([])));
    fs::remove_dir_all(&bundle).unwrap();
    let file = context.path().join("Dockerfile");
    fs::write(&file, format!("{}\nRUN cat /two\n{READ}\n", fs::read_to_string(&file).unwrap())).unwrap();
    let run = other.docker(&["buildx", "build", "--builder", "far", "--progress", "plain", &text(context.path())]);
    assert_eq!(run.stderr.matches(" CACHED").count(), 4, "{run}");
    assert!(run.stderr.contains("found wheel pack 1000:"), "{run}");
}

#[test]
fn layers_are_exported_by_another_builder_when_asked_to_switch() {
    let engine = Engine::start(Generation::V28);
    let other = Engine::start(Generation::V28Containerd);
    engine.docker(&["context", "create", "far", "--docker", &format!("host={}", other.host())]);
    let context = project(&engine);
    let bundle = engine.folder().join("bundle");
    let export = ["export", "--dest", &text(&bundle), &text(context.path())];
    let run = engine.cache(&export);
    assert!(run.code == 1 && run.stderr.contains("hint: `--builder far` or `--switch`, which builds again"), "{run}");
    let run = engine.cache(&[&export[..], &["--switch"]].concat()).ok();
    assert!(run.stderr.contains("layers: builder far exports them"), "{run}");
    let imported = json(&engine, &["import", "--src", &text(&bundle), &text(context.path())]);
    assert_eq!((&imported["steps"]["cached"], &imported["steps"]["ran"]), (&4.into(), &serde_json::json!([])));
}
