//! Pairs this program with what a user would run instead, in one run, on one private engine, and prints ratios.
//! `cargo bench` runs all; `cargo bench -- size` only the pairs whose name has that word. Below 1.00 we are faster.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::world::big_tree;
use support::{Engine, Generation};

#[path = "../tests/support/mod.rs"]
mod support;

const FILES: u64 = 224_000;
const BYTES: u64 = 1_470_000_000;
const ROUNDS: usize = 5;
const FEW_ROUNDS: usize = 3;
/// Directories of the volume.
const TOOLS: [&str; 4] = ["pip", "npm", "cargo/registry", "go-mod"];

/// Docker commands, one after the other.
type Calls<'a> = &'a [&'a [&'a str]];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let engine = Engine::start(Generation::V28);
    engine.build("RUN busybox --install -s /bin", &["--tag", "busybox"]);
    engine.cache(&["--help"]);
    let root = fill(&engine, "project-cache");
    println!("{FILES} files, {:.2} GB in a volume; median of {ROUNDS} alternating rounds\n", BYTES as f64 / 1e9);
    println!("{:58} {:>9} {:>9} {:>7}", "what / instead of", "ours", "theirs", "ratio");
    let du = ["run", "--rm", "-v", "project-cache:/cache", "busybox", "/bin/sh", "-c", "du -sk /cache/*"];
    let size = ["cache", "size", "--volume", "project-cache"];
    let pairs: &[(&str, Calls<'_>, Calls<'_>)] = &[
        ("size of the volume / du in a container", &[&size], &[&du]),
        ("size of everything / du in a container", &[&["cache", "size"]], &[&du]),
        ("size of everything / docker system df -v", &[&["cache", "size"]], &[&["system", "df", "-v"]]),
        ("doctor / docker info + docker buildx ls", &[&["cache", "doctor"]], &[&["info"], &["buildx", "ls"]]),
        ("doctor / docker buildx ls", &[&["cache", "doctor"]], &[&["buildx", "ls"]]),
        ("start / docker version", &[&["cache", "--version"]], &[&["version"]]),
    ];
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    for (name, ours, theirs) in pairs {
        if !is_wanted(name) {
            continue;
        }
        let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            our_times.push(time(&engine, ours));
            their_times.push(time(&engine, theirs));
        }
        tell(name, our_times, their_times);
    }
    if is_wanted("clear") {
        clear(&engine);
    }
    if is_wanted("export import") {
        carry(&engine, &root);
    }
}

/// Makes a volume of many files and returns its folder.
fn fill(engine: &Engine, name: &str) -> PathBuf {
    let root = engine.volume(name, &[]);
    TOOLS.iter().for_each(|tool| big_tree(&root.join(tool), FILES / 4, BYTES / 4));
    root
}

/// Pairs clear with rm. All that is to be removed is there, and on the disk, before the first round.
fn clear(engine: &Engine) {
    let names: Vec<String> = (0..2 * FEW_ROUNDS).map(|number| format!("cache-{number}")).collect();
    names.iter().for_each(|name| drop(fill(engine, name)));
    run(&mut Command::new("sync"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in names.chunks(2) {
        ours.push(time(engine, &[&["cache", "clear", "--volume", &pair[0], "--force"]]));
        let mount = format!("{}:/c", pair[1]);
        theirs.push(time(engine, &[&["run", "--rm", "-v", &mount, "busybox", "/bin/sh", "-c", "rm -rf /c/*"]]));
    }
    let is_empty = |name: &String| !engine.mountpoint(name).join("pip/00").exists();
    assert!(names.iter().all(is_empty), "something is not removed");
    tell("clear of the volume / rm -rf in a container", ours, theirs);
}

/// Pairs export and import with tar. Nothing is removed between the rounds: ext4 takes minutes to hand out the inodes of
/// deleted files again. Our bundles are synced to the disk, and their archives are not.
fn carry(engine: &Engine, root: &Path) {
    let at = |name: String| engine.folder().join(name).display().to_string();
    let box_ = |words: &str, volume: &str| {
        let mounts = ["-v".into(), format!("{volume}:/cache"), "-v".into(), format!("{}:/out", at("out".into()))];
        let mut command = engine.command(engine.docker_program());
        command.args(["run", "--rm"]).args(mounts).args(["busybox", "/bin/sh", "-c", words]);
        command
    };
    let (mut export, mut again, mut import) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gzip, mut zstd, mut gunzip) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..FEW_ROUNDS {
        let (bundle, volume, theirs) =
            (at(format!("bundle-{round}")), format!("ours-{round}"), format!("theirs-{round}"));
        let first = ["export", "--dest", &bundle, "--volume", "project-cache"];
        export.push(run(&mut engine.cache_command(&first)));
        let pipe = format!("tar -C {} -c . | zstd -q -T0 -o {}", root.display(), at(format!("{round}.tar.zst")));
        zstd.push(run(Command::new("sh").args(["-c", &pipe])));
        gzip.push(run(&mut box_(&format!("tar czf /out/{round}.tar.gz -C /cache ."), "project-cache")));
        import.push(run(&mut engine.cache_command(&["import", "--src", &bundle, "--to-volume", &volume])));
        engine.docker(&["volume", "create", &theirs]);
        gunzip.push(run(&mut box_(&format!("tar xzf /out/{round}.tar.gz -C /cache"), &theirs)));
        let changed =
            (0..FILES / 4).step_by(100).map(|file| format!("{:02x}/{:06}/{file:08}", file / 500 % 256, file / 500));
        changed.for_each(|path| {
            for tool in TOOLS {
                std::fs::write(root.join(tool).join(&path), format!("{round}").repeat(5000)).unwrap();
            }
        });
        again.push(run(&mut engine.cache_command(&first)));
    }
    tell("export of the volume / tar | zstd -T0", export.clone(), zstd);
    tell("export of the volume / tar czf in a container", export.clone(), gzip);
    tell("import into a volume / tar xzf in a container", import, gunzip);
    tell("export after 1 % of the files changed / the first", again, export);
}

/// Returns how long a command takes that must succeed.
fn run(command: &mut Command) -> Duration {
    let started = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it starts");
    assert!(status.success(), "{command:?}");
    started.elapsed()
}

fn tell(name: &str, our_times: Vec<Duration>, their_times: Vec<Duration>) {
    let (ours, theirs) = (median(our_times), median(their_times));
    println!("{name:58} {:>6.0} ms {:>6.0} ms {:>7.2}", ms(ours), ms(theirs), ms(ours) / ms(theirs));
}

/// Returns how long these docker commands take one after the other.
fn time(engine: &Engine, calls: Calls<'_>) -> Duration {
    let started = Instant::now();
    for call in calls {
        let mut command = engine.command(engine.docker_program());
        command.args(*call).stdout(Stdio::null()).stderr(Stdio::null());
        // Doctor's status says whether it found something.
        command.status().expect("docker runs");
    }
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
