//! Pairs this program with what a user would run instead, in one run, on one private engine, and prints ratios.
//! `cargo bench` runs all; `cargo bench -- size` only the pairs whose name has that word. Below 1.00 we are faster.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use support::world::big_tree;
use support::{Engine, Generation};

#[path = "../tests/support/mod.rs"]
mod support;

const FILES: u64 = 224_000;
const BYTES: u64 = 1_470_000_000;
const ROUNDS: usize = 5;

/// Docker commands, one after the other.
type Calls<'a> = &'a [&'a [&'a str]];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let engine = Engine::start(Generation::V28);
    engine.build("RUN busybox --install -s /bin", &["--tag", "busybox"]);
    engine.cache(&["--help"]);
    let root = engine.volume("project-cache", &[]);
    let fill = || {
        for name in ["pip", "npm", "cargo/registry", "go-mod"] {
            if !root.join(name).join("00").exists() {
                big_tree(&root.join(name), FILES / 4, BYTES / 4);
            }
        }
    };
    println!("{FILES} files, {:.2} GB in a volume; median of {ROUNDS} alternating rounds\n", BYTES as f64 / 1e9);
    println!("{:58} {:>9} {:>9} {:>7}", "what / instead of", "ours", "theirs", "ratio");
    let du = ["run", "--rm", "-v", "project-cache:/cache", "busybox", "/bin/sh", "-c", "du -sk /cache/*"];
    let rm = ["run", "--rm", "-v", "project-cache:/c", "busybox", "/bin/sh", "-c", "rm -rf /c/*"];
    let clear = ["cache", "clear", "--volume", "project-cache", "--force"];
    let size = ["cache", "size", "--volume", "project-cache"];
    let pairs: &[(&str, Calls<'_>, Calls<'_>)] = &[
        ("size of the volume / du in a container", &[&size], &[&du]),
        ("size of everything / du in a container", &[&["cache", "size"]], &[&du]),
        ("size of everything / docker system df -v", &[&["cache", "size"]], &[&["system", "df", "-v"]]),
        ("doctor / docker info + docker buildx ls", &[&["cache", "doctor"]], &[&["info"], &["buildx", "ls"]]),
        ("doctor / docker buildx ls", &[&["cache", "doctor"]], &[&["buildx", "ls"]]),
        ("clear of the volume / rm -rf in a container", &[&clear], &[&rm]),
        ("start / docker version", &[&["cache", "--version"]], &[&["version"]]),
    ];
    for (name, ours, theirs) in pairs {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            fill();
            our_times.push(time(&engine, ours));
            fill();
            their_times.push(time(&engine, theirs));
        }
        let (ours, theirs) = (median(our_times), median(their_times));
        println!("{name:58} {:>6.0} ms {:>6.0} ms {:>7.2}", ms(ours), ms(theirs), ms(ours) / ms(theirs));
    }
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
