//! `docker cache size`: what every cache holds.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, bail};
use serde::Serialize;

use super::Context;
use crate::budget::Spent;
use crate::cli::{Format, GroupBy, Size};
use crate::docker::endpoint::Settings;
use crate::docker::{Docker, quote};
use crate::exit::FAILED;
use crate::inventory::{self, Cache, Inventory, Wanted, last_used, total};
use crate::model::{Bytes, Kind, Moment};
use crate::report::{self, Progress};

/// The JSON contract.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    version: u32,
    caches: &'a [Cache],
    total_bytes: u64,
    budget: Option<Spent>,
}

pub fn run(context: Context, options: &Size) -> Result<u8> {
    if let Some(seconds) = options.watch {
        return super::watch::run(context, options, seconds);
    }
    if options.history {
        return super::history::run(&context, options);
    }
    let (docker, settings) = context.into_docker()?;
    let mut progress = Progress::new("Measuring", options.output.telling());
    let found = look(&docker, &settings, options, &mut |files, bytes| progress.update(files, bytes));
    drop(progress);
    let found = found?;
    let answer = answer(&found, options);
    let Inventory { caches, gaps, twins, .. } = &found;
    if gaps.is_empty() {
        super::history::keep(&docker.endpoint, &settings, caches, options);
    }
    match options.output.format {
        Format::Json => report::json(&answer)?,
        Format::Table if options.output.quiet => {
            let mut names: Vec<&str> = caches.iter().map(|cache| cache.name.as_str()).collect();
            let mut told = HashSet::new();
            names.retain(|name| told.insert(*name));
            report::data(&names.iter().map(|name| format!("{}\n", report::plain(name))).collect::<String>())?;
        }
        Format::Table => {
            report::data(&format!("{}\n{}", table(caches, options, report::room()), sums(&found, options)))?;
        }
    }
    if !options.output.quiet {
        gaps.iter().chain(twins).for_each(|gap| report::warning(gap));
    }
    Ok(if answer.budget.is_none_or(|spent| spent.is_surely_within()) { 0 } else { FAILED })
}

/// Finds what was asked for.
///
/// # Errors
/// See [`inventory::collect`]; and when nothing has a name that was given.
pub fn look(
    docker: &Docker,
    settings: &Settings,
    options: &Size,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Inventory> {
    let wanted = Wanted { selection: &options.selection, paths: &[], exact: options.exact.then_some(&options.names) };
    let mut found = inventory::collect(docker, settings, wanted, progress)?;
    if !options.names.is_empty() {
        named(&mut found, options)?;
    }
    Ok(found)
}

/// Returns what is told to programs.
pub fn answer<'a>(found: &'a Inventory, options: &Size) -> Answer<'a> {
    let caches = &found.caches;
    Answer { version: 1, caches, total_bytes: total(caches).0, budget: spent(found, options) }
}

/// Returns the rows for people, with as many columns as there is room for.
pub fn table(caches: &[Cache], options: &Size, room: usize) -> String {
    match options.by {
        None => listed(caches, room),
        Some(by) => grouped(caches, by, room),
    }
}

/// Returns the lines below the rows.
pub fn sums(found: &Inventory, options: &Size) -> String {
    format!("Total:    {}\n{}", total(&found.caches), spent(found, options).map(told).unwrap_or_default())
}

fn spent(Inventory { caches, unmeasured, gaps, .. }: &Inventory, options: &Size) -> Option<Spent> {
    options.budget.map(|budget| budget.spent(caches, unmeasured, !gaps.is_empty()))
}

/// Returns the line that compares with a budget.
fn told(spent: Spent) -> String {
    let Spent { bytes, used_bytes, unmeasured_bytes, missing, over } = spent;
    let more = match over {
        true => format!(", over by {}", Bytes(used_bytes - bytes)),
        false if spent.is_surely_within() => String::new(),
        false if missing => ", and what could not be counted".into(),
        false => format!(
            ", and some of {} in mounts that hold more than caches: --exact looks into them",
            Bytes(unmeasured_bytes)
        ),
    };
    format!("Budget:   {} of {} used{more}\n", Bytes(used_bytes), Bytes(bytes))
}

/// Keeps the rows that one of the names is about.
fn named(Inventory { caches, unmeasured, .. }: &mut Inventory, Size { names, selection, .. }: &Size) -> Result<()> {
    unmeasured.retain(|cache| names.iter().any(|name| cache.may_be_about(name)));
    for name in names {
        if !caches.iter().any(|cache| cache.is_about(name)) {
            if let Some(mount) = unmeasured.iter().find(|cache| cache.may_be_about(name)) {
                bail!(
                    "no cache called {name:?}, unless in mount {}, which holds several things\n\
                     hint: `docker cache size --exact {}` looks into it",
                    mount.name,
                    quote(name)
                );
            }
            if selection.narrows() {
                bail!("no cache called {name:?} is among those selected\nhint: `docker cache size` lists all");
            }
            bail!(
                "no cache called {name:?}\nhint: `docker cache size` lists all; `--volume NAME` takes any volume, \
                 `--builder NAME` any builder"
            );
        }
    }
    caches.retain(|cache| names.iter().any(|name| cache.is_about(name)));
    Ok(())
}

/// Returns the table of all rows, largest first.
fn listed(caches: &[Cache], room: usize) -> String {
    let sum = total(caches).0;
    let now = Moment::now();
    let builders: std::collections::BTreeSet<_> = caches.iter().filter_map(|cache| cache.builder.as_deref()).collect();
    let several = builders.len() > 1;
    let rows = caches.iter().map(|cache| {
        let name = match (&cache.builder, several) {
            (Some(builder), true) => format!("{builder}: {}", cache.name),
            _ => cache.name.clone(),
        };
        vec![
            cache.kind.as_str().into(),
            name,
            match (&cache.path, cache.kind, cache.tool) {
                // What no tool of the catalogue writes.
                (Some(path), Kind::Volume, None) => format!("{path} (rest)"),
                (Some(path), ..) => path.clone(),
                (None, ..) => "-".into(),
            },
            cache.shown_tool(),
            cache.class.to_string(),
            Bytes(cache.bytes).to_string(),
            share(cache.bytes, sum),
            last_used(cache, now),
        ]
    });
    report::table_within(
        room,
        &["KIND", "NAME", "DIRECTORY", "TOOL", "CLASS", "SIZE", "SHARE", "LAST USED"],
        rows.collect(),
        &["LAST USED", "SHARE", "CLASS", "KIND", "TOOL"],
    )
}

/// Returns one row for each group, largest first.
fn grouped(caches: &[Cache], by: GroupBy, room: usize) -> String {
    let (title, key): (_, fn(&Cache) -> String) = match by {
        GroupBy::Language => ("LANGUAGE", |cache| cache.language.unwrap_or(no_language(cache)).into()),
        GroupBy::Kind => ("KIND", |cache| cache.kind.as_str().into()),
        GroupBy::Builder => ("BUILDER", |cache| cache.builder.clone().unwrap_or("(volumes)".into())),
        GroupBy::Directory => ("DIRECTORY", |cache| cache.path.clone().unwrap_or_else(|| format!("({})", cache.name))),
    };
    let mut groups: BTreeMap<String, (u64, u64, Option<u64>)> = BTreeMap::new();
    for cache in caches {
        let group = groups.entry(key(cache)).or_default();
        group.0 += cache.bytes;
        group.1 += 1;
        group.2 = group.2.max(cache.last_used);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, (bytes, ..))| std::cmp::Reverse(*bytes));
    let sum = total(caches).0;
    let now = Moment::now();
    let rows = groups.into_iter().map(|(name, (bytes, count, used))| {
        let used = used.map_or("N/A".into(), |used| Moment(used).ago(now));
        vec![name, count.to_string(), Bytes(bytes).to_string(), share(bytes, sum), used]
    });
    let header = [title, "CACHES", "SIZE", "SHARE", "LAST USED"];
    report::table_within(room, &header, rows.collect(), &["LAST USED", "SHARE", "CACHES"])
}

fn no_language(cache: &Cache) -> &'static str {
    if cache.kind == Kind::Layer { "(layers)" } else { "(unknown)" }
}

/// Returns a percentage, behind a bar on a terminal.
fn share(bytes: u64, sum: u64) -> String {
    let share = if sum == 0 { 0.0 } else { bytes as f64 / sum as f64 };
    let percent = format!("{:.0}%", share * 100.0);
    if report::is_terminal() { format!("{} {percent:>4}", report::bar(share)) } else { percent }
}
