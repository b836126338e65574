//! `docker cache verify`: proves a bundle, and says what of it can be used.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use super::Context;
use super::bundles::Source;
use crate::bundle::location::Location;
use crate::bundle::verify::{self, Verified};
use crate::bundle::{Layout, remote};
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
    let source = Source::open(&context.settings, &options.src, options.output.telling(), |_| true)?;
    let layout = &source.layout;
    let _lock = layout.lock(|| report::note("another program writes this bundle; waiting for it"))?;
    let entries = verify::all(layout, |_| true)?;
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
    report::note(&format!("hint: {}, and export again", removal(&options.src, layout, &broken)));
    Ok(exit::FAILED)
}

/// Says how the manifests of entries are removed: what has none is exported anew, all of it.
fn removal(src: &Location, layout: &Layout, entries: &[&Verified]) -> String {
    match src {
        Location::Registry(reference) => {
            let entries = entries.iter().map(|entry| remote::removal(reference, entry.descriptor.ref_name()));
            entries.collect::<Vec<_>>().join(", ")
        }
        Location::Directory(_) => {
            let blobs = entries.iter().filter_map(|entry| entry.descriptor.blob().ok());
            let paths: BTreeSet<String> = blobs.map(|blob| quote(layout.path(&blob))).collect();
            format!("`rm -f {}`", paths.into_iter().collect::<Vec<_>>().join(" "))
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
            if entry.broken.is_some() { "broken" } else { "ok" }.into(),
        ]
    });
    report::table(&["KIND", "NAME", "LANGUAGE", "SIZE", "FILES", "STATE"], &rows.collect::<Vec<_>>())
}
