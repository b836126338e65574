//! What the caches held when they were measured before: samples, thinner the older they are, in one small file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::inventory::Cache;
use crate::model::Kind;
use crate::state;

/// What the caches of one engine held at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since 1970.
    pub at: u64,
    pub total_bytes: u64,
    pub layer_bytes: u64,
    pub mount_bytes: u64,
    pub volume_bytes: u64,
}

/// What samples have in common that can be compared: the engine, and which of its builders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Its address, or the docker context that leads there.
    pub engine: String,
    /// None for those in use.
    pub builder: Option<String>,
    pub all_builders: bool,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    scope: Scope,
    #[serde(flatten)]
    sample: Sample,
}

/// A sample goes if the two beside it are less than this part of its age apart: some hundred stay in a year.
const PART_OF_AGE: u64 = 10;
/// So many lines are kept, of all engines; the oldest go first.
const LINES: usize = 1000;
/// Bytes of the file that are looked at: more than this program writes.
const MAX: u64 = 4 << 20;

impl Sample {
    /// Sums up what was found at this moment.
    pub fn of(caches: &[Cache], at: u64) -> Sample {
        let sum = |kind| caches.iter().filter(|cache| cache.kind == kind).map(|cache| cache.bytes).sum();
        let (layer_bytes, mount_bytes, volume_bytes) = (sum(Kind::Layer), sum(Kind::Mount), sum(Kind::Volume));
        Sample { at, total_bytes: layer_bytes + mount_bytes + volume_bytes, layer_bytes, mount_bytes, volume_bytes }
    }
}

/// Returns the samples of a scope, the oldest first.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(scope: &Scope) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> =
        lines()?.into_iter().filter(|line| line.scope == *scope).map(|line| line.sample).collect();
    samples.sort_by_key(|sample| sample.at);
    Ok(samples)
}

/// Adds a sample, and forgets what is old and close to others.
///
/// # Errors
/// When the file cannot be written, or others write it all the time.
pub fn add(scope: Scope, sample: Sample) -> Result<()> {
    let directory = state::directory()?;
    fs::create_dir_all(&directory)?;
    let lock = File::open(&directory)?;
    // Writing takes milliseconds. Nobody is to wait for one that was stopped in the midst of it.
    for attempt in 0.. {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(_) if attempt < 20 => thread::sleep(Duration::from_millis(10)),
            locked => {
                locked?;
                break;
            }
        }
    }
    let mut lines = lines()?;
    lines.push(Line { scope, sample });
    let text = kept(lines).iter().map(serde_json::to_string).collect::<serde_json::Result<Vec<_>>>()?;
    state::replace(&file()?, format!("{}\n", text.join("\n")).as_bytes())
}

fn file() -> Result<PathBuf> {
    Ok(state::directory()?.join("sizes.jsonl"))
}

/// Reads the file without the lines that make no sense.
fn lines() -> Result<Vec<Line>> {
    let path = file()?;
    let mut text = Vec::new();
    // A FIFO would wait for somebody who writes.
    let open = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&path);
    match open.and_then(|file| file.take(MAX).read_to_end(&mut text)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        read => read.with_context(|| format!("`{}` cannot be read", path.display()))?,
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Thins out the lines of the scope of the last one, which is the newest.
fn kept(mut lines: Vec<Line>) -> Vec<Line> {
    let Some(Line { scope, sample: Sample { at: now, .. } }) = lines.last().cloned() else { return lines };
    let (mut ours, mut kept): (Vec<Line>, Vec<Line>) = lines.drain(..).partition(|line| line.scope == scope);
    // The oldest and the newest stay.
    for at in (1..ours.len().saturating_sub(1)).rev() {
        let age = now.saturating_sub(ours[at].sample.at);
        let between = ours[at + 1].sample.at.saturating_sub(ours[at - 1].sample.at);
        if between < age / PART_OF_AGE {
            ours.remove(at);
        }
    }
    kept.append(&mut ours);
    kept.sort_by_key(|line| line.sample.at);
    kept.drain(..kept.len().saturating_sub(LINES));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(engine: &str, at: u64) -> Line {
        let scope = Scope { engine: engine.into(), builder: None, all_builders: false };
        Line { scope, sample: Sample { at, total_bytes: at, layer_bytes: at, mount_bytes: 0, volume_bytes: 0 } }
    }

    #[test]
    fn old_samples_are_thinned_out_and_recent_ones_stay() {
        const MINUTE: u64 = 60;
        const YEAR: u64 = 365 * 24 * 60 * MINUTE;
        let mut lines = vec![line("other", 0)];
        for at in (0..YEAR).step_by(10 * MINUTE as usize) {
            lines.push(line("here", at));
            lines = kept(lines);
            assert!(lines.len() < 250);
        }
        let now = YEAR - 10 * MINUTE;
        let here: Vec<u64> = lines.iter().map(|line| line.sample.at).collect();
        assert_eq!(lines[..2], [line("other", 0), line("here", 0)]);
        assert!(here.ends_with(&[now - 20 * MINUTE, now - 10 * MINUTE, now]), "{here:?}");
        // Nowhere is there a hole, the first weeks included.
        for pair in here[1..].windows(2) {
            assert!(pair[1] - pair[0] <= (now - pair[0]) / PART_OF_AGE + 10 * MINUTE, "{pair:?} of {here:?}");
        }
    }

    #[test]
    fn the_file_stays_small_however_many_engines_there_are() {
        // The newest is not of the engine that was measured last.
        let newest = line("newest", 5000);
        let mut lines = vec![newest.clone()];
        for at in 0..LINES as u64 + 9 {
            lines.push(line(&at.to_string(), at));
        }
        let kept = kept(lines);
        assert_eq!((kept.len(), kept[0].sample.at, kept.last()), (LINES, 10, Some(&newest)));
    }

    #[test]
    fn a_clock_that_goes_back_loses_no_later_sample() {
        assert_eq!(kept(vec![line("here", 900), line("here", 100)]).len(), 2);
    }
}
