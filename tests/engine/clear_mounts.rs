//! `docker cache clear` of cache mounts, for all that the catalogue knows.

use std::collections::BTreeSet;
use std::io::Write;
use std::iter;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use docker_cache::catalogue::{self, Known, ROWS};
use serde_json::Value;

use crate::support::debian::{Tool, proxies};
use crate::support::process::Run;
use crate::support::world::write_files;
use crate::support::{Engine, Generation};
use crate::{for_each_engine, for_each_generation};

/// A cache mount, as a Dockerfile has it.
struct Mount {
    /// None if it is the target.
    id: Option<&'static str>,
    target: String,
}

impl Mount {
    /// Returns what the catalogue knows in it, as far as this engine tells what it is.
    fn known(&self, tells_ids: bool) -> Vec<Known> {
        let mut known = catalogue::known_below(&self.target);
        if known.is_empty() {
            let id = self.id.unwrap_or(&self.target);
            let row = catalogue::for_mount(Some(id).filter(|_| tells_ids), &self.target);
            known.extend(row.map(|(row, class)| Known { path: String::new(), row, class }));
        }
        known
    }

    /// Returns the paths of the files that are to be in it: in each directory that is known, and where nobody knows.
    fn files(&self) -> BTreeSet<String> {
        let known = self.known(true).into_iter().map(|known| known.path.replace('*', "any"));
        let folders = known.chain(["nobody/knows".into(), String::new()]);
        folders.flat_map(|folder| [folder.clone(), format!("{folder}/deep/er")]).collect()
    }

    fn words(&self) -> String {
        let id = self.id.map(|id| format!("id={id},")).unwrap_or_default();
        format!("--mount=type=cache,{id}target={} ", self.target)
    }
}

/// Returns a mount for every directory of every row, in root's home, another user's and a project, and for every id.
fn mounts_of_the_catalogue() -> Vec<Mount> {
    let mut targets = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for row in ROWS {
        ids.extend(row.ids);
        let volumes = row.in_volume.iter().map(|path| format!("/cache/{path}"));
        let homes = row.homes.iter().flat_map(|home| match home.strip_prefix('~') {
            Some(below) => vec![format!("/root{below}"), format!("/home/dev{below}")],
            None if home.starts_with('/') => vec![(*home).to_owned()],
            None => vec![format!("/src/app/{home}")],
        });
        for base in volumes.chain(homes) {
            targets.extend(row.parts.iter().map(|part| format!("{base}/{}", part.path.replace('*', "any"))));
        }
    }
    targets.extend(["/cache", "/root/.cache", "/root", "/usr/local"].map(String::from));
    let targets = targets.into_iter().map(|target| Mount { id: None, target: target.trim_end_matches('/').into() });
    let ids = ids.into_iter().enumerate().map(|(at, id)| Mount { id: Some(id), target: format!("/m/{at}") });
    targets.chain(ids).collect()
}

/// Fills them, by a step for as many as do not lie in each other.
fn fill(engine: &Engine, mounts: &[Mount]) {
    let mut steps: Vec<Vec<&Mount>> = Vec::new();
    for mount in mounts {
        let within = |one: &Mount, other: &Mount| Path::new(&one.target).starts_with(&other.target);
        let apart = |other: &&Mount| !within(mount, other) && !within(other, mount);
        match steps.iter_mut().find(|step| step.iter().all(apart)) {
            Some(step) => step.push(mount),
            None => steps.push(vec![mount]),
        }
    }
    let lines = |mount: &&Mount| -> String {
        let target = &mount.target;
        mount.files().iter().map(|folder| format!("w '{target}' '{folder}'\n")).collect()
    };
    let write = format!("set -e; w() {{ mkdir -p \"$1/$2\"; echo \"$1|$2\" > \"$1/$2/{MARKED}\"; }}\n");
    let runs = steps.iter().enumerate().map(|(at, step)| {
        let mounts: String = step.iter().map(|mount| mount.words()).collect();
        format!("RUN {mounts}. /fill/{at}\n")
    });
    let context = engine.context(&format!("COPY fill /fill\n{}", runs.collect::<String>()));
    for (at, step) in steps.iter().enumerate() {
        let lines: String = step.iter().map(lines).collect();
        write_files(context.path(), &[(&format!("fill/{at}"), &format!("{write}{lines}"))]);
    }
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress=plain"]).arg(context.path());
    Run::of_docker(&mut build).ok();
}

/// The name of every file that [`fill`] makes.
const MARKED: &str = "byte-of-a-cache";

/// Returns what is in all files of that name that the engine has, wherever it keeps them, sorted.
fn marked(folder: &Path) -> Vec<String> {
    // The engine tidies up meanwhile, and a directory that goes while it is read is an error.
    let find = || Run::of(Command::new("find").arg(folder).args(["-name", MARKED, "-exec", "cat", "{}", "+"]));
    let found = iter::repeat_with(find).take(5).find(|run| run.code == 0).unwrap_or_else(find).ok();
    let mut found: Vec<String> = found.stdout.lines().map(String::from).collect();
    found.sort();
    found
}

for_each_engine!(a_language_goes_from_mounts_and_every_other_byte_stays, [v20, v26, v28_containerd], |engine| {
    let tells_ids = engine.generation() != Generation::V20;
    let mounts = mounts_of_the_catalogue();
    fill(engine, &mounts);
    engine.volume("project-cache", &[(&format!("pip/{MARKED}"), "volume\n")]);
    let data = engine.folder().join("data");
    // What is not a python cache, as the catalogue has it. A mount of an engine that tells no ids goes as a whole or not.
    let goes = |known: &[Known], folder: &str| {
        let path = format!("{folder}/{MARKED}");
        catalogue::deepest(known, &path)
            .is_some_and(|known| known.row.language == "python" && known.class.is_deletable())
    };
    let mut stays = vec!["volume".to_owned()];
    for mount in &mounts {
        let (known, files) = (mount.known(tells_ids), mount.files());
        let all = files.iter().all(|folder| goes(&known, folder));
        let left = files.iter().filter(|folder| if tells_ids { !goes(&known, folder) } else { !all });
        stays.extend(left.map(|folder| format!("{}|{folder}", mount.target)));
    }
    stays.sort();
    let everything = marked(&data);
    assert_eq!(everything.len(), 1 + mounts.iter().map(|mount| mount.files().len()).sum::<usize>());
    assert!(stays.len() + 50 < everything.len());

    let line = ["clear", "--lang", "python", "--kind", "mount", "--format", "json"];
    // When it was last used, and with the containerd image store its size, may be told otherwise after a look inside.
    let plan = |more: &str| -> BTreeSet<[String; 2]> {
        let run = engine.cache(&[&line[..], &[more]].concat()).ok();
        let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
        let rows = answer["plan"].as_array().unwrap().iter();
        rows.map(|row| ["name", "path"].map(|key| row[key].to_string())).collect()
    };
    let planned = plan("--dry-run");
    assert_eq!(marked(&data), everything);
    assert_eq!(plan("--force"), planned);
    let left = marked(&data);
    let only = |these: &[String], those: &[String]| these.iter().filter(|one| !those.contains(one)).cloned().collect();
    let (wrongly_gone, wrongly_left): (Vec<String>, Vec<String>) = (only(&stays, &left), only(&left, &stays));
    assert!(left == stays, "gone: {wrongly_gone:#?}\nleft: {wrongly_left:#?}");
});

/// Builds with the real pip while clears run, each while pip installs; `target` is where the build has the mount. Returns what
/// the clears said.
#[track_caller]
fn clear_while_pip_installs(engine: &Engine, target: &str, clears: &[&str]) -> Vec<Run> {
    // The step asks after each install whether there is to be another: it cannot end before the last clear has.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ask = format!(
        "python3 -c 'import socket; print(socket.create_connection((\"127.0.0.1\", {port})).makefile().read())'"
    );
    let install = Tool::Pip.script();
    let context = engine.context(&format!(
        "FROM {}\nRUN --mount=type=cache,target={target} set -e; while test \"$({ask})\" = again; do {install} --force-reinstall; done; \
         python3 -c 'import six'; test -d /root/.cache/pip/wheels",
        Tool::Pip.image(engine)
    ));
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress=plain", "--network=host"]);
    build.args(proxies().map(|proxy| format!("--build-arg={proxy}"))).arg(context.path());
    let build = thread::spawn(move || Run::of_docker(&mut build));
    let said = clears.iter().map(|clear| {
        let mut asked = accept(&listener, &build);
        asked.write_all(b"again").unwrap();
        drop(asked);
        engine.cache(&clear.split(' ').collect::<Vec<_>>())
    });
    let said: Vec<Run> = said.collect();
    drop(accept(&listener, &build));
    build.join().unwrap().ok();
    said
}

/// Waits for the step of a build to connect.
#[track_caller]
fn accept(listener: &TcpListener, build: &thread::JoinHandle<Run>) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
        assert!(!build.is_finished(), "the build is over before the step asked");
    }
}

// Both a mount of pip alone and one that has its cache beside others stay while a build uses them.
for_each_generation!(a_build_with_pip_succeeds_while_its_cache_is_cleared, [v20, v28_containerd], |generation| {
    let engine = &Engine::online(generation);
    let clears = ["clear --lang python --force", "clear --lang python --force --force-in-use"];
    for target in ["/root/.cache/pip", "/root/.cache"] {
        for run in clear_while_pip_installs(engine, target, &clears) {
            let shown = run.to_string();
            let named = |line: &str| line.contains(&format!("{target} ")) && line.contains("running build");
            assert!(run.code == 0 && shown.lines().any(named), "{run}");
        }
    }
    // Idle, it goes.
    let run = engine.cache(&["clear", "--tool", "pip", "--force"]).ok();
    let left = engine.mounts();
    assert!(left.len() == 1 && left[0].to_string().contains("mount /root/.cache from"), "{run}\n{left:#?}");
});
