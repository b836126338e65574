//! `docker cache builder`: the builders, what they hold, and which command uses which.

use anyhow::{Result, bail};
use serde::Serialize;

use super::Context;
use crate::builders::Builders;
use crate::cli::{self, BuilderCommand, Format, Output};
use crate::docker::endpoint::{self, Source};
use crate::docker::quote;
use crate::inventory::FoundBuilder;
use crate::model::{Builder, Bytes, ERROR};
use crate::{parallel, report};

/// The JSON contract.
#[derive(Serialize)]
struct Answer {
    version: u32,
    builders: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    driver: String,
    current: bool,
    default_for: Vec<&'static str>,
    status: String,
    /// Version of BuildKit.
    buildkit: Option<String>,
    can_export: bool,
    cannot_export_because: Option<&'static str>,
    cache_bytes: Option<u64>,
    nodes: Vec<NodeRow>,
    error: Option<String>,
}

#[derive(Serialize)]
struct NodeRow {
    name: String,
    endpoint: String,
    status: String,
    buildkit: Option<String>,
    platforms: Vec<String>,
}

pub fn run(context: Context, options: &cli::Builder) -> Result<u8> {
    match &options.command {
        None => list(context, &options.output),
        Some(BuilderCommand::Ls(options)) => list(context, &options.output),
        Some(BuilderCommand::Use(options)) => switch(context, &options.name),
    }
}

fn list(context: Context, output: &Output) -> Result<u8> {
    let (docker, settings) = context.into_docker()?;
    let builders = Builders::ask(&docker, &settings)?;
    let rows = parallel::each(&builders.list, |builder| row(&builders, builder));
    match output.format {
        Format::Json => report::json(&Answer { version: 1, builders: rows })?,
        Format::Table if output.quiet => {
            report::data(&rows.iter().map(|row| format!("{}\n", report::plain(&row.name))).collect::<String>())?;
        }
        Format::Table => {
            report::data(&table(&rows))?;
            for row in &rows {
                if let Some(error) = &row.error {
                    report::warning(&format!("builder {}: {error}", row.name));
                }
            }
            if builders.of_docker_build != builders.of_buildx {
                report::note(&format!(
                    "\n`docker build` and `docker buildx build` use different builders, each with a cache of its own\n\
                     hint: `docker cache builder use {}` tells how to make them agree",
                    quote(&builders.of_buildx)
                ));
            }
            if let Some(error) = &builders.no_buildx {
                report::warning(&format!("{error}; this is the engine's own builder"));
            }
        }
    }
    Ok(0)
}

fn row(builders: &Builders, builder: &Builder) -> Row {
    let records = builder.is_running().then(|| builders.reference(builder).records());
    let (cache_bytes, failure) = match records {
        Some(Ok(records)) => (Some(records.iter().map(|record| record.bytes).sum()), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    };
    let own = builder.err.clone().or_else(|| builder.nodes.iter().find_map(|node| node.err.clone()));
    let known = |version: &str| (!version.is_empty() && !version.contains("unknown")).then(|| version.to_string());
    let cannot = match &builders.no_buildx {
        Some(_) => Some("docker has no buildx"),
        None if builder.status() == ERROR => Some("it does not answer"),
        None => builder.cannot_export(),
    };
    Row {
        name: builder.name.clone(),
        driver: builder.driver.clone(),
        current: builder.current,
        default_for: builders.default_for(&builder.name),
        status: builder.status().into(),
        buildkit: builder.nodes.first().and_then(|node| known(&node.version)),
        can_export: cannot.is_none(),
        cannot_export_because: cannot,
        cache_bytes,
        nodes: builder
            .nodes
            .iter()
            .map(|node| NodeRow {
                name: node.name.clone(),
                endpoint: node.endpoint.clone(),
                status: node.status.clone(),
                buildkit: known(&node.version),
                platforms: node.platforms.clone(),
            })
            .collect(),
        error: own.or(failure),
    }
}

fn table(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            if row.current { format!("{}*", row.name) } else { row.name.clone() },
            // Of a context whose engine does not answer, buildx tells none.
            if row.driver.is_empty() { "-".into() } else { row.driver.clone() },
            row.status.clone(),
            row.buildkit.clone().unwrap_or("N/A".into()),
            row.cache_bytes.map_or("N/A".into(), |bytes| Bytes(bytes).to_string()),
            match row.cannot_export_because {
                _ if row.status == ERROR => "-".into(),
                Some(why) => format!("no: {why}"),
                None => "yes".into(),
            },
            match row.default_for.is_empty() {
                true => "-".into(),
                false => row.default_for.join(", "),
            },
        ]
    });
    let header = ["NAME", "DRIVER", "STATUS", "BUILDKIT", "CACHE", "CAN EXPORT LAYERS", "USED BY"];
    report::table_within(
        report::room(),
        &header,
        cells.collect(),
        &["BUILDKIT", "DRIVER", "CAN EXPORT LAYERS", "STATUS"],
    )
}

/// Switches, and says what that does and does not change.
fn switch(context: Context, name: &str) -> Result<u8> {
    let (docker, settings) = context.into_docker()?;
    let before = Builders::ask(&docker, &settings)?;
    if let Some(error) = before.no_buildx {
        return Err(error.into());
    }
    let wanted = before.named(name)?;
    // A builder of the driver docker is its context's: buildx refuses to use it from another context.
    let of_context = wanted.driver == "docker" && name != docker.endpoint.context;
    if let (true, Source::Variable(variable)) = (of_context, &docker.endpoint.source) {
        bail!(
            "{name} is the builder of a docker context, and {variable}, which is set, wins over the context in use\n\
             hint: `unset {variable}`, then `docker cache builder use {}`",
            quote(name)
        );
    }
    // Asked before the switch: docker would ask the new context.
    let old = before.get(&before.of_buildx).filter(|old| old.is_running()).and_then(|old| {
        let builder = before.reference(old);
        Some(FoundBuilder { records: builder.records().ok()?, builder })
    });
    if of_context {
        docker.use_context(name)?;
    } else {
        docker.use_builder(name)?;
    }
    let now = if of_context { docker.in_context(name) } else { docker.clone() };
    let after = Builders::ask(&now, &settings)?;
    let mut text = String::new();
    if endpoint::variable("BUILDX_BUILDER").is_some() {
        text.push_str("\nBUILDX_BUILDER is set and wins over this choice in this shell: `unset BUILDX_BUILDER`\n");
    }
    text.push_str(&format!("\n`docker buildx build` now uses {}.\n", after.of_buildx));
    if after.of_docker_build == after.of_buildx {
        text.push_str(&format!("`docker build` uses {} too.\n", after.of_docker_build));
    } else {
        text.push_str(&format!(
            "`docker build`, `docker bake` and `docker builder prune` still use {}: they follow the docker context.\n\
             To make both agree in this shell: `export BUILDX_BUILDER={}`\n\
             To make `docker build` follow buildx for good: `docker buildx install`\n",
            after.of_docker_build,
            quote(name)
        ));
    }
    let new = after.get(&after.of_buildx).filter(|new| new.is_running());
    let new = new.and_then(|new| after.reference(new).records().ok()).unwrap_or_default();
    if let Some(FoundBuilder { builder, records }) =
        old.filter(|old| old.builder.name != after.of_buildx && !old.shares(&new))
    {
        let bytes: Bytes = records.iter().map(|record| Bytes(record.bytes)).sum();
        text.push_str(&format!(
            "{bytes} of cache stay on {}; the new builder does not see them: `docker cache size --builder {}`\n",
            builder.name,
            quote(&builder.name)
        ));
    }
    report::data(&format!("{name}\n"))?;
    report::note(text.trim_end());
    Ok(0)
}
