//! What this binary does inside a volume or a mount: on this host, in a helper container, or in a helper build.
//! Knows nothing of docker: a job comes as JSON, the answer goes to stdout as JSON lines.

pub mod archive;
pub mod dirs;
pub mod find;
pub mod measure;
mod moves;
pub mod own;
pub mod pack;
pub mod remove;
pub mod rules;
pub mod scan;
pub mod table;
pub mod unpack;
mod walk;

use std::io::{self, BufRead, Write};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use self::find::Search;
use self::measure::{Measured, Tree};
use self::own::{Gift, Given, Owned};
use self::pack::{Pack, Packed};
use self::remove::{Cut, Removed};
use self::unpack::{Unpack, Unpacked};
use crate::{parallel, report};

/// Name of the hidden subcommand.
pub const COMMAND: &str = "inside";

/// Returns a path for messages: one line of text, whatever somebody has called a file.
fn shown(path: &[u8]) -> String {
    report::plain(&String::from_utf8_lossy(path))
}

/// Something to do inside.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Job {
    /// Measures trees.
    Measure(Vec<Tree>),
    /// Removes parts of trees.
    Remove(Vec<Cut>),
    /// Tells which names there are in trees.
    Find(Vec<Search>),
    /// Tells who owns what in trees.
    Owners(Vec<Tree>),
    /// Gives parts of trees to other owners.
    Give(Vec<Gift>),
    /// Packs trees into archives.
    Pack(Pack),
    /// Unpacks archives into trees.
    Unpack(Unpack),
}

/// A line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// How far the job is.
    Progress { files: u64, bytes: u64 },
    /// Bytes of the blobs that a [`Job::Pack`] has made, which are now to be fetched.
    Made { bytes: u64 },
    /// What a [`Job::Measure`] found, in the order of its trees.
    Measured(Vec<Measured>),
    /// What a [`Job::Remove`] removed, in the order of its trees.
    Removed(Vec<Removed>),
    /// What a [`Job::Find`] found, in the order of its trees.
    Names(Vec<Vec<String>>),
    /// What a [`Job::Owners`] found, in the order of its trees.
    Owners(Vec<Owned>),
    /// What a [`Job::Give`] did, in the order of its trees.
    Given(Vec<Given>),
    /// What a [`Job::Pack`] made, in the order of its trees.
    Packed(Vec<Packed>),
    /// What a [`Job::Unpack`] did, in the order of its trees.
    Unpacked(Vec<Unpacked>),
}

/// Runs a job and hands out the lines of its answer.
///
/// # Errors
/// When the job fails as a whole; what cannot be read inside is part of the answer.
pub fn perform(job: &Job, each: &mut (dyn FnMut(Line) + Send)) -> anyhow::Result<()> {
    raise_open_files();
    thread::scope(|scope| {
        let job = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || run(job, each))?;
        parallel::join(job)
    })
}

/// Bytes of stack for what goes down a tree level by level; untouched ones cost nothing.
const STACK: usize = 64 << 20;

fn run(job: &Job, each: &mut (dyn FnMut(Line) + Send)) -> anyhow::Result<()> {
    match job {
        Job::Measure(trees) => {
            let found = measure::all(trees, &mut |files, bytes| each(Line::Progress { files, bytes }));
            each(Line::Measured(found));
        }
        Job::Remove(cuts) => {
            let removed = remove::all(cuts, &mut |files, bytes| each(Line::Progress { files, bytes }));
            each(Line::Removed(removed));
        }
        Job::Find(searches) => each(Line::Names(searches.iter().map(find::names).collect())),
        Job::Owners(trees) => {
            let found = own::owners(trees, &mut |files, bytes| each(Line::Progress { files, bytes }));
            each(Line::Owners(found));
        }
        Job::Give(gifts) => {
            let given = own::give(gifts, &mut |files, bytes| each(Line::Progress { files, bytes }));
            each(Line::Given(given));
        }
        Job::Pack(job) => {
            let packed = pack::all(job, &mut |files, bytes| each(Line::Progress { files, bytes }))?;
            each(Line::Made { bytes: job.trees.iter().zip(&packed).map(|(tree, packed)| packed.made(tree)).sum() });
            each(Line::Packed(packed));
        }
        Job::Unpack(job) => {
            let unpacked = unpack::all(job, &mut |files, bytes| each(Line::Progress { files, bytes }))?;
            each(Line::Unpacked(unpacked));
        }
    }
    Ok(())
}

/// Allows as many open files as there may be: jobs hold a directory open for each level of a tree and each thread, and
/// the usual soft limit of 1,024 is for select(), not for them.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, what lies too deep is told as any other file that cannot be opened.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Held while things are moved into a tree, or back: what a signal left half moved could not be told from what was there.
static MOVING: Mutex<()> = Mutex::new(());

/// Runs the hidden subcommand on an engine's Linux: the other end of a [`crate::place::Place`].
///
/// # Errors
/// See [`serve`].
#[cfg(target_os = "linux")]
pub fn main(options: &crate::cli::Inside) -> anyhow::Result<()> {
    use std::fs::File;
    // As the first process of a container it has no default handlers: without these a cancelled run would go on.
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            crate::cancel::request();
            // Time to take away what is half done; a measurement just ends.
            std::thread::sleep(Duration::from_secs(5));
            let _moved = MOVING.lock();
            std::process::exit(143);
        }
    });
    match (&options.job, &options.answer) {
        // A build hands on what its steps tell on standard error, and its files at the end.
        (Some(job), Some(answer)) => serve(io::BufReader::new(File::open(job)?), File::create(answer)?, io::stderr()),
        _ => serve(io::stdin().lock(), io::stdout(), io::stdout()),
    }
}

/// Runs the job that `input` begins with and writes the answer to `out`, progress to `told`: the other end
/// of a [`crate::place::Place`].
///
/// # Errors
/// When the job is not known, fails, or the answer cannot be written.
pub fn serve(input: impl BufRead, mut out: impl Write + Send, mut told: impl Write + Send) -> anyhow::Result<()> {
    // Its end is that of the value: the input may stay open.
    let mut job = serde_json::Deserializer::from_reader(input.take(MAX_JOB));
    let job = Job::deserialize(&mut job).context("the job is not one that this version knows")?;
    let mut written = Ok(());
    perform(&job, &mut |line| {
        if written.is_ok() {
            written = match line {
                Line::Progress { .. } | Line::Made { .. } => write(&mut told, &line),
                _ => write(&mut out, &line),
            };
        }
    })?;
    Ok(written?)
}

/// Bytes that a job may have.
const MAX_JOB: u64 = 64 << 20;

fn write(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{Mode, mkdirat, openat};
    use rustix::process::{Resource, getrlimit, setrlimit};

    use super::*;

    #[test]
    fn trees_deeper_than_the_usual_limit_of_open_files_are_carried() {
        let dir = tempfile::tempdir().unwrap();
        let [root, out, back] = ["root", "out", "back"].map(|name| dir.path().join(name));
        [&root, &out, &back].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let mut above = std::os::fd::OwnedFd::from(File::open(&root).unwrap());
        for _ in 0..1100 {
            mkdirat(&above, "d", Mode::RWXU).unwrap();
            above = openat(&above, "d", dirs::DIRECTORY, Mode::empty()).unwrap();
        }
        openat(&above, "file", rustix::fs::OFlags::CREATE, Mode::RWXU).unwrap();
        let lower = || {
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(1024), ..limit }).unwrap();
        };
        let rules = vec![rules::Rule { path: String::new(), take: true }];
        let tree = pack::Tree { root, base: "/cache".into(), rules: rules.clone(), secrets: vec![], previous: None };
        lower();
        let mut packed = Vec::new();
        let job = Job::Pack(Pack { out: out.clone(), trees: vec![tree] });
        perform(&job, &mut |line| {
            if let Line::Packed(all) = line {
                packed = all
            }
        })
        .unwrap();
        let packed = packed.remove(0);
        assert_eq!((packed.files, packed.skipped_count), (1, 0), "{packed:?}");
        let target = unpack::Target {
            root: back,
            base: "/cache".into(),
            table: packed.table,
            layers: packed.layers,
            rules,
            from: String::new(),
            to: String::new(),
            replace: false,
            owner: None,
            secrets: Vec::new(),
        };
        lower();
        let mut unpacked = Vec::new();
        let job = Job::Unpack(Unpack { blobs: out, trees: vec![target] });
        perform(&job, &mut |line| {
            if let Line::Unpacked(all) = line {
                unpacked = all
            }
        })
        .unwrap();
        assert!(unpacked[0].notes.is_empty(), "{unpacked:?}");
    }
}
