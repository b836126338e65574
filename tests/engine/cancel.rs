//! A cancel at any moment must leave no container, no image, no volume and no record behind.

use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::for_each_engine;
use crate::support::Engine;
use crate::support::process::Run;
use crate::support::world::{Tree, assert_same, big_tree};

/// How the user stops it.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Interrupt,
    Terminate,
    /// What docker does to a plugin without a terminal.
    SocketEnds,
}

/// When the user stops it.
#[derive(Clone, Copy, Debug)]
enum Moment {
    After(Duration),
    ImageIsThere,
    ContainerIsThere,
    ContainerRuns,
}

impl Stop {
    fn all() -> [Stop; 3] {
        [Stop::Interrupt, Stop::Terminate, Stop::SocketEnds]
    }

    fn code(self) -> i32 {
        if matches!(self, Stop::Terminate) { 143 } else { 130 }
    }
}

/// Returns everything that the engine holds, as far as a helper could leave something there.
fn holds(engine: &Engine, records: bool) -> [Vec<String>; 4] {
    let list = |value: Value, key: &str| {
        let mut found: Vec<String> = value.as_array().into_iter().flatten().map(|item| item[key].to_string()).collect();
        found.sort();
        found
    };
    [
        list(engine.api("/containers/json?all=1"), "Names"),
        list(engine.api("/images/json?all=1"), "RepoTags"),
        list(engine.api("/volumes")["Volumes"].clone(), "Name"),
        // To tell them the engine measures all volumes.
        list(if records { engine.lasting_records().into() } else { Value::Null }, "Description"),
    ]
}

/// Runs a `size`, stops it at this moment, and fails the test if the engine holds anything more than before. Returns
/// false if the plugin was done before.
fn stop(engine: &Engine, arguments: &[&str], how: Stop, when: Moment) -> bool {
    let records = arguments.contains(&"--mount");
    let before = holds(engine, records);
    engine.cache_command(&[]);
    let name = format!("docker_cli_{}_{}", engine.folder().file_name().unwrap().display(), line!());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    // The plugin itself: docker would keep the socket to itself.
    let mut command: Command = engine.command(engine.config().join("cli-plugins/docker-cache"));
    command.arg("cache").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.env("DOCKER_CLI_PLUGIN_SOCKET", format!("@{name}")).spawn().unwrap();
    let (connection, _) = listener.accept().unwrap();
    let pid = Pid::from_child(&child);
    wait_for(engine, &mut child, when, &before);
    match how {
        _ if child.try_wait().unwrap().is_some() => {}
        Stop::Interrupt => kill_process(pid, Signal::INT).unwrap(),
        Stop::Terminate => kill_process(pid, Signal::TERM).unwrap(),
        Stop::SocketEnds => connection.shutdown(Shutdown::Both).unwrap(),
    }
    let begin = Instant::now();
    let run = Run::from_output(arguments.join(" "), child.wait_with_output().unwrap());
    let spent = begin.elapsed();
    // What docker was about to do may come to pass a little later.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(holds(engine, records), before, "{how:?} {when:?}: {run}");
    // A cancel between the answer and the end changes only the status.
    if run.code == 0 || run.code == how.code() && run.stdout.contains("\nTotal: ") {
        return false;
    }
    assert_eq!((run.code, run.stdout.as_str()), (how.code(), ""), "{how:?} {when:?}: {run}");
    // Less than a call that only asks may take.
    assert!(spent < Duration::from_secs(25), "{how:?} {when:?}: it took {spent:?} to stop");
    let left = std::fs::read_dir(engine.folder().join("tmp")).unwrap().flatten();
    let left: Vec<_> = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("docker-cache-")).collect();
    assert!(left.is_empty(), "{how:?} {when:?}: {left:?}");
    true
}

/// Waits for a moment, or until the plugin is done.
fn wait_for(engine: &Engine, child: &mut Child, when: Moment, before: &[Vec<String>; 4]) {
    let begin = Instant::now();
    let there = |path: &str, count: usize| engine.api(path).as_array().map_or(0, Vec::len) > count;
    let reached = || match when {
        Moment::After(time) => begin.elapsed() >= time,
        Moment::ImageIsThere => there("/images/json?all=1", before[1].len()),
        Moment::ContainerIsThere => there("/containers/json?all=1", before[0].len()),
        Moment::ContainerRuns => there("/containers/json", 0),
    };
    while !reached() && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{when:?} never comes");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Moments before the plugin is done, by the time of a whole run.
fn moments(engine: &Engine, arguments: &[&str]) -> [Moment; 4] {
    let time = |_| {
        let begin = Instant::now();
        engine.cache(arguments).ok();
        begin.elapsed()
    };
    // The machine may be busy with something else during one of them.
    let whole = (0..2).map(time).min().unwrap();
    [0.02, 0.2, 0.4, 0.7].map(|part| Moment::After(whole.mul_f64(part)))
}

/// Makes a volume that takes a helper container a while to measure.
fn big_volume(engine: &Engine) {
    let root = match engine.generation().major() {
        // No engine before 24 proves that it runs here, so volumes are reached by a container.
        "20" => engine.volume("big-cache", &[]),
        _ => {
            let folder = engine.folder().join("bound");
            std::fs::create_dir_all(&folder).unwrap();
            let device = format!("--opt=device={}", folder.display());
            engine.docker(&["volume", "create", "--opt=type=none", "--opt=o=bind", &device, "big-cache"]);
            folder
        }
    };
    big_tree(Path::new(&root), 15_000, 150_000);
}

for_each_engine!(stopped_container_leaves_nothing, [v20, v28], |engine| {
    big_volume(engine);
    let line = ["size", "--volume", "big-cache"];
    let mut stopped = 0;
    for how in Stop::all() {
        for when in [Moment::ImageIsThere, Moment::ContainerIsThere, Moment::ContainerRuns] {
            stopped += usize::from(stop(engine, &line, how, when));
        }
    }
    for (when, how) in moments(engine, &line).into_iter().zip(Stop::all().into_iter().cycle()) {
        stopped += usize::from(stop(engine, &line, how, when));
    }
    assert!(stopped >= 9, "only {stopped} of 13 were stopped before they were done");
});

for_each_engine!(a_stopped_import_leaves_no_new_volume_that_is_empty, [v20, v28], |engine| {
    big_tree(&engine.volume("pip-cache", &[]).join("pip"), 15_000, 30_000_000);
    let all = files(&engine.mountpoint("pip-cache"));
    let bundle = engine.folder().join("bundle").display().to_string();
    engine.cache(&["export", "--dest", &bundle]).ok();
    engine.docker(&["volume", "rm", "pip-cache"]);
    engine.cache_command(&[]);
    let before = holds(engine, false);
    let mut stopped = 0;
    for round in 0..6 {
        let mut command = engine.command(engine.config().join("cli-plugins/docker-cache"));
        let child = command.args(["cache", "import", "--src", &bundle]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        while holds(engine, false)[2] == before[2] && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_millis(round * 60));
        if child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&child), if round % 2 == 0 { Signal::INT } else { Signal::TERM }).unwrap();
        }
        let run = Run::from_output("import".into(), child.wait_with_output().unwrap());
        if holds(engine, false)[2] == before[2] {
            stopped += 1;
            assert_ne!(run.code, 0, "{run}");
        } else {
            assert_eq!(files(&engine.mountpoint("pip-cache")), all, "{run}");
            engine.docker(&["volume", "rm", "pip-cache"]);
        }
        assert_eq!(holds(engine, false), before, "{run}");
    }
    assert!(stopped >= 2, "only {stopped} of 6 were stopped before they were done");
});

for_each_engine!(stopped_helper_build_leaves_nothing, [v28, v28_containerd], |engine| {
    engine.build("RUN --mount=type=cache,id=pip,target=/m echo wheel > /m/wheel", &[]);
    let line = ["size", "--mount", "pip", "--exact"];
    let moments = moments(engine, &line);
    let mut stopped = 0;
    for how in Stop::all() {
        for when in moments {
            stopped += usize::from(stop(engine, &line, how, when));
        }
    }
    assert!(stopped >= 6, "only {stopped} of 12 were stopped before they were done");
    let run = engine.cache(&["size", "--mount", "pip", "--exact", "--format", "json"]).ok();
    let size: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&size["caches"][0]["files"], &size["caches"][0]["exact"]), (&1.into(), &true.into()), "{run}");
});

for_each_engine!(a_clear_takes_away_what_a_killed_one_left, [v20, v28], |engine| {
    big_volume(engine);
    engine.cache_command(&[]);
    let before = holds(engine, false);
    let mut command = engine.command(engine.config().join("cli-plugins/docker-cache"));
    command.args(["cache", "clear", "--volume", "big-cache", "--force"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_for(engine, &mut child, Moment::ContainerIsThere, &before);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(holds(engine, false), before);
    engine.cache(&["clear", "--volume", "big-cache", "--force"]).ok();
    assert_eq!(holds(engine, false), before);
});

/// Counts what is below a folder.
fn files(folder: &Path) -> usize {
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    below.map(|entry| 1 + if entry.path().is_dir() { files(&entry.path()) } else { 0 }).sum()
}

for_each_engine!(a_stopped_clear_can_be_done_again, [v20, v28], |engine| {
    let root = engine.volume("project-cache", &[("nobody/knows", "1"), ("npm/_cacache/index", "1")]);
    std::fs::create_dir(root.join("pip")).unwrap();
    let before = Tree::read(&root).timeless();
    engine.cache_command(&[]);
    let held = holds(engine, false);
    let line = ["cache", "clear", "--lang", "python", "--force"];
    let (mut stopped, mut halfway) = (0, 0);
    for round in 0.. {
        if round >= 6 && stopped >= 3 && halfway >= 1 {
            break;
        }
        assert!(round < 60, "{stopped} of {round} were stopped, {halfway} of them halfway");
        big_tree(&root.join("pip"), 6000, 60_000);
        let all = files(&root.join("pip"));
        let mut command = engine.command(engine.config().join("cli-plugins/docker-cache"));
        let child = command.args(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Once the removal has begun, at another moment each time.
        let begin = Instant::now();
        while files(&root.join("pip")) == all && begin.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_millis(round % 6 * 8));
        kill_process(Pid::from_child(&child), if round % 2 == 0 { Signal::INT } else { Signal::TERM }).unwrap();
        let run = Run::from_output(line.join(" "), child.wait_with_output().unwrap());
        assert!(run.code == 0 || run.code == if round % 2 == 0 { 130 } else { 143 }, "{run}");
        stopped += usize::from(run.code != 0);
        let half = files(&root.join("pip")) > 0;
        assert!(!half || run.stderr.contains("interrupted: at least "), "{run}");
        halfway += usize::from(half);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(holds(engine, false), held, "{run}");
        engine.cache(&line[1..]).ok();
        assert_same(&Tree::read(&root).timeless(), &before);
    }
});

/// Fills a mount of many tools and one of pip alone.
fn fill_mounts(engine: &Engine, round: u64) {
    let fill = format!(
        "RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/m,id=pip : {round}; cd /root/.cache; \
         mkdir -p pip/http go-build own; for at in $(seq 300); do echo $at > pip/http/$at; done; \
         cp -r pip/http /m; echo build > go-build/file; echo own > own/file"
    );
    engine.build(&fill, &[]);
}

/// Returns the files of the mounts that [`fill_mounts`] fills.
fn in_mounts(engine: &Engine, round: &str) -> Vec<String> {
    let look = format!(
        "RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/m,id=pip : {round}; \
         find /root/.cache /m -type f | sed s/^/FILE=/"
    );
    let run = engine.build(&look, &[]);
    let mut files: Vec<String> =
        run.stderr.lines().filter_map(|line| Some(line.split_once(" FILE=/")?.1.to_owned())).collect();
    files.sort();
    files
}

/// Returns those of these records that only a helper build of ours leaves.
fn of_helpers(records: Vec<Value>) -> Vec<Value> {
    let of_ours = ["docker-cache-helper-", "buildkit-session", "copy /context /"];
    records.into_iter().filter(|record| of_ours.iter().any(|word| record.to_string().contains(word))).collect()
}

/// Returns the ids and descriptions of the records that helper builds left and that nothing uses. What a build uses that
/// goes on cannot be taken away; nor what BuildKit takes to be in use until the engine ends: all that some builds used
/// whose client was killed (seen for minutes after the last build had ended, in one of ten kills on Engine 28.5).
fn left(engine: &Engine) -> Vec<String> {
    let idle = of_helpers(engine.records()).into_iter().filter(|record| record["InUse"] == false);
    let mut left: Vec<String> = idle.map(|record| format!("{} {}", record["ID"], record["Description"])).collect();
    left.sort();
    left
}

/// Starts the plugin itself and kills it a while after its build has begun. Returns false if it was done before.
fn kill(engine: &Engine, line: &str, after: Duration) -> bool {
    engine.cache_command(&[]);
    let count =
        || of_helpers(engine.api("/system/df?type=build-cache")["BuildCache"].as_array().unwrap().clone()).len();
    let before = count();
    let mut command = engine.command(engine.config().join("cli-plugins/docker-cache"));
    let mut child = command.args(line.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while count() <= before && child.try_wait().unwrap().is_none() {}
    thread::sleep(after);
    child.kill().unwrap();
    let killed = !child.wait().unwrap().success();
    // The build that it began may go on.
    thread::sleep(Duration::from_millis(1000));
    killed
}

for_each_engine!(a_killed_clear_of_mounts_takes_nothing_else_and_the_next_ends_it, [v26, v28], |engine| {
    let kept = ["root/.cache/go-build/file", "root/.cache/own/file"];
    let (mut killed, mut rubbish) = (0, 0);
    for round in 0.. {
        if round >= 3 && killed >= 2 && rubbish > 0 {
            break;
        }
        assert!(round < 20, "{killed} of {round} were killed and left {rubbish} records");
        fill_mounts(engine, round);
        killed += u32::from(kill(engine, "cache clear --lang python --force", Duration::from_millis(150 * round)));
        rubbish += left(engine).len();
        let files = in_mounts(engine, &format!("killed {round}"));
        let pip = |file: &String| file.starts_with("root/.cache/pip/http/") || file.starts_with("m/http/");
        assert_eq!(files.iter().filter(|file| !pip(file)).collect::<Vec<_>>(), kept, "round {round}");
        // A build that went on may end meanwhile, and leave its records only now.
        let begin = Instant::now();
        loop {
            let run = engine.cache(&["clear", "--lang", "python", "--force"]).ok();
            let left = left(engine);
            if left.is_empty() {
                break;
            }
            let late = begin.elapsed() > Duration::from_secs(60);
            assert!(!late, "round {round}: {left:#?} of {:#?} after {run}", engine.records());
        }
        assert_eq!(in_mounts(engine, &format!("cleared {round}")), kept, "round {round}");
    }
});

for_each_engine!(what_a_killed_look_into_mounts_left_goes_with_the_next_clear_or_look, [v26, v28], |engine| {
    for next in [&["size", "--exact"][..], &["clear", "--mount", "pip", "--force"]] {
        // A look takes only what surely is ours.
        let goes = |told: &String| next[0] == "clear" || told.contains("docker-cache-helper-");
        let mut before = Vec::new();
        for round in 0..20 {
            fill_mounts(engine, round);
            // From 100 ms to 7 s: a machine may be busy.
            kill(engine, "cache size --exact", Duration::from_millis(100).mul_f64(1.25_f64.powi(round as i32)));
            before = left(engine).into_iter().filter(goes).collect();
            if !before.is_empty() {
                break;
            }
        }
        assert!(!before.is_empty(), "no kill left a record that can go: {:#?}", engine.records());
        let run = engine.cache(next).ok();
        let still: Vec<String> = left(engine).into_iter().filter(|told| before.contains(told)).collect();
        assert!(still.is_empty(), "{still:#?} of {before:#?} stay: {:#?} after {run}", engine.records());
    }
});

for_each_engine!(contexts_that_no_build_can_use_are_listed_before_they_go, [v26, v28], |engine| {
    // What a run on another machine left long ago, and the context of a build of the user's own.
    let name = "docker-cache-helper-0-99999999-1";
    engine.build(&format!("FROM scratch AS {name}\nCOPY busybox /x\nFROM scratch\nCOPY --from={name} /x /y"), &[]);
    let folder = engine.context("FROM scratch\nCOPY Dockerfile /mine");
    let archive = engine.folder().join("context.tar");
    Run::of(Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(folder.path()).arg(".")).ok();
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "-"]).stdin(std::fs::File::open(archive).unwrap());
    Run::of(&mut build).ok();
    let before = left(engine);
    assert!(before.iter().any(|told| told.contains("buildkit-session")), "{before:#?}");
    assert!(before.iter().any(|told| told.contains(name)), "{before:#?}");

    engine.cache(&["clear", "--lang", "python", "--older-than", "30d", "--force"]).ok();
    let named = |told: &String| told.contains(name);
    let contexts: Vec<String> = before.into_iter().filter(|told| !named(told)).collect();
    assert_eq!(left(engine), contexts);
    let clear = ["clear", "--lang", "python", "--format", "json"];
    let plan =
        |more| -> Value { serde_json::from_str(&engine.cache(&[&clear[..], &[more]].concat()).ok().stdout).unwrap() };
    let planned = plan("--dry-run");
    assert_eq!(planned["plan"][0]["name"], "unused context", "{planned}");
    assert_eq!(left(engine), contexts);
    let done = plan("--force");
    assert_eq!((&done["plan"], &done["freed_bytes"]), (&planned["plan"], &planned["total_bytes"]));
    assert_eq!(left(engine), Vec::<String>::new());
});
