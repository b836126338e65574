//! `docker cache verify`: proves a bundle, and says what of it can be used.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use super::Context;
use super::bundles::Source;
use crate::bundle::location::Location;
use crate::bundle::remote;
use crate::bundle::verify::{self, Verified};
use crate::bundle::{OtherVersion, TREE_VERSION};
use crate::cli::{Format, Verify};
use crate::docker::quote;
use crate::model::Bytes;
use crate::{exit, report};

/// The JSON contract.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    entries: &'a [Verified],
    bytes_written: u64,
    bytes_reused: u64,
}

pub fn run(context: &Context, options: &Verify) -> Result<u8> {
    let source = Source::open_all(&context.settings, &options.src, options.output.telling())?;
    let layout = &source.layout;
    let _lock = layout.lock(|| report::note("another program writes this bundle; waiting for it"))?;
    let mut entries = verify::all(layout)?;
    for entry in &mut entries {
        // Of what did not come, the registry knows more.
        let why = source.broken.get(&entry.digest).map(ToString::to_string);
        entry.broken = why.or(entry.broken.take());
    }
    let broken: Vec<&Verified> = entries.iter().filter(|entry| entry.broken.is_some()).collect();
    match options.output.format {
        Format::Json => {
            report::json(&Answer { version: 1, entries: &entries, bytes_written: 0, bytes_reused: 0 })?;
        }
        Format::Table if options.output.quiet => {
            report::data(&broken.iter().map(|entry| format!("{}\n", report::plain(&entry.name))).collect::<String>())?;
        }
        Format::Table => report::data(&table(&entries))?,
    }
    for entry in &broken {
        let (kind, name) = (&entry.kind, &entry.name);
        report::warning(&format!("{kind} {name} cannot be used: {}", entry.broken.as_deref().unwrap_or_default()));
    }
    if broken.is_empty() {
        return Ok(0);
    }
    report::note(&format!("{} of {} entries can be used", entries.len() - broken.len(), entries.len()));
    let (others, damaged): (Vec<&Verified>, Vec<&Verified>) = broken.iter().partition(|entry| entry.other.is_some());
    if others.iter().filter_map(|entry| entry.other).any(|OtherVersion(version)| version > TREE_VERSION) {
        report::note("hint: update this plugin to use what a newer one wrote");
    } else if !others.is_empty() {
        report::note("hint: export again: what an older one wrote is packed anew");
    }
    for remedy in remedies(&options.src, &source, &damaged) {
        report::note(&format!("hint: {remedy}"));
    }
    Ok(exit::FAILED)
}

/// Says how entries are exported anew, all of them: without their manifests.
fn remedies(src: &Location, source: &Source, entries: &[&Verified]) -> BTreeSet<String> {
    match src {
        Location::Registry(reference) => {
            let remedy = |entry: &&Verified| {
                remote::remedy(reference, entry.descriptor.ref_name(), source.broken.get(&entry.digest))
            };
            entries.iter().map(remedy).collect()
        }
        Location::Directory(_) => {
            let blobs = entries.iter().filter_map(|entry| entry.descriptor.blob().ok());
            let paths: BTreeSet<String> = blobs.map(|blob| quote(source.layout.path(&blob))).collect();
            let paths: Vec<String> = paths.into_iter().collect();
            if paths.is_empty() {
                return BTreeSet::new();
            }
            let manifests = if paths.len() == 1 { "manifest" } else { "manifests" };
            [format!("`rm -f {}` removes the {manifests} of what is broken; then export again", paths.join(" "))].into()
        }
    }
}

fn table(entries: &[Verified]) -> String {
    let rows = entries.iter().map(|entry| {
        vec![
            entry.kind.clone(),
            entry.name.clone(),
            entry.language.clone().unwrap_or("-".into()),
            Bytes(entry.bytes).to_string(),
            entry.files.map_or("-".into(), |files| files.to_string()),
            match (&entry.broken, entry.other) {
                (_, Some(OtherVersion(version))) => format!("version {version}"),
                (Some(_), None) => "broken".into(),
                (None, None) => "ok".into(),
            },
        ]
    });
    let header = ["KIND", "NAME", "LANGUAGE", "SIZE", "FILES", "STATE"];
    report::table_within(report::room(), &header, rows.collect(), &["FILES", "LANGUAGE", "KIND"])
}
