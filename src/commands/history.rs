//! `docker cache size --history`: what each `size` of everything found. Asks the engine nothing.

use anyhow::Result;
use serde::Serialize;

use super::Context;
use crate::cli::{Format, Size};
use crate::docker::endpoint::{Endpoint, Settings};
use crate::history::{self, Sample, Scope};
use crate::inventory::Cache;
use crate::model::{Bytes, Moment};
use crate::report;

/// The JSON contract.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    #[serde(flatten)]
    scope: &'a Scope,
    samples: &'a [Sample],
}

pub fn run(context: &Context, options: &Size) -> Result<u8> {
    let scope = scope(&context.endpoint, options);
    let samples = history::read(&scope)?;
    match options.output.format {
        Format::Json => report::json(&Answer { version: 1, scope: &scope, samples: &samples })?,
        Format::Table => report::data(&table(&samples))?,
    }
    if is_off(&context.settings) {
        report::note("Nothing is added: the history is switched off");
    } else if samples.is_empty() {
        report::note("Each `docker cache size` of all caches adds a line");
    }
    Ok(0)
}

/// Remembers what a `size` of everything found. What stands in the way of that is of no interest to the user of `size`.
pub fn keep(endpoint: &Endpoint, settings: &Settings, caches: &[Cache], options: &Size) {
    let of_all = options.names.is_empty() && !options.selection.narrows();
    if of_all && !is_off(settings) {
        let _ = history::add(scope(endpoint, options), Sample::of(caches, Moment::now().0));
    }
}

fn is_off(settings: &Settings) -> bool {
    settings.own("history").is_some_and(|value| value == "off")
}

fn scope(endpoint: &Endpoint, options: &Size) -> Scope {
    let builder = options.selection.builder.clone().filter(|name| !name.is_empty());
    Scope { engine: endpoint.to_string(), builder, all_builders: options.selection.all_builders }
}

/// Returns a row for each sample, the newest last, with bars on a terminal.
fn table(samples: &[Sample]) -> String {
    let most = samples.iter().map(|sample| sample.total_bytes).max().unwrap_or_default().max(1);
    let now = Moment::now();
    let before = std::iter::once(None).chain(samples.iter().map(Some));
    let rows = samples.iter().zip(before).map(|(sample, before)| {
        let size = |bytes| Bytes(bytes).to_string();
        let change =
            before.map_or("-".into(), |before| report::signed(sample.total_bytes as f64 - before.total_bytes as f64));
        let bar = report::is_terminal().then(|| report::bar(sample.total_bytes as f64 / most as f64));
        let sizes = [sample.total_bytes, sample.layer_bytes, sample.mount_bytes, sample.volume_bytes].map(size);
        [Moment(sample.at).ago(now)].into_iter().chain(sizes).chain([change]).chain(bar).collect()
    });
    let header = ["MEASURED", "TOTAL", "LAYERS", "MOUNTS", "VOLUMES", "CHANGE", ""];
    let columns = header.len() - usize::from(!report::is_terminal());
    report::table_within(report::room(), &header[..columns], rows.collect(), &["LAYERS", "MOUNTS", "VOLUMES", ""])
}
