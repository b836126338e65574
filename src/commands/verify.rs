//! `docker cache verify`: proves a bundle, and says what of it can be used.

use anyhow::Result;
use serde::Serialize;

use super::Context;
use super::bundles::Source;
use crate::bundle::verify::{self, Verified};
use crate::cli::{Format, Verify};
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
    report::note(&format!(
        "{} of {} entries can be used\nhint: export again, which replaces what is broken",
        entries.len() - broken.len(),
        entries.len()
    ));
    Ok(exit::FAILED)
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
