//! Doctor's findings as SARIF 2.1.0, for code scanning.

use std::path::Path;

use serde_json::{Value, json};

use super::{Results, findings};
use crate::checks::{Finding, Fix, Severity};

/// Returns the log. A finding that concerns no file is told at the project's root, as code scanning wants a place.
pub fn log(results: &Results) -> Value {
    let rules: Vec<Value> = results
        .iter()
        .map(|(check, _)| json!({"id": check.name, "shortDescription": {"text": check.promise}}))
        .collect();
    let driver = json!({
        "name": "docker-cache",
        "version": env!("CARGO_PKG_VERSION"),
        "rules": rules,
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": findings(results).map(result).collect::<Vec<_>>()}],
    })
}

fn result(finding: &Finding) -> Value {
    let level = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let location = json!({
        "physicalLocation": {
            "artifactLocation": {"uri": uri(finding.file.as_deref().unwrap_or("."))},
            "region": {"startLine": finding.line.unwrap_or(1).max(1)},
        },
    });
    let mut result = json!({
        "ruleId": finding.check,
        "level": level,
        "message": {"text": finding.message},
        "locations": [location],
    });
    if let Some(Fix::Diff { file, diff }) = &finding.fix {
        let change = json!({"artifactLocation": {"uri": uri(file)}, "replacements": replacements(diff)});
        result["fixes"] = json!([{"description": {"text": "what `--fix` does"}, "artifactChanges": [change]}]);
    }
    result
}

/// Returns a path as it is seen from the working directory, which code scanning takes for the root of the repository.
pub fn from_here(path: &str) -> &str {
    let here = std::env::current_dir().ok();
    let below = here.as_deref().and_then(|here| Path::new(path).strip_prefix(here).ok()).and_then(Path::to_str);
    below.filter(|below| !below.is_empty()).unwrap_or(path)
}

/// Returns a path as a relative reference; one that lies elsewhere on this machine stays absolute.
fn uri(path: &str) -> String {
    let encoded = from_here(path).bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    let encoded: String = encoded.collect();
    if encoded.starts_with('/') { format!("file://{encoded}") } else { encoded }
}

/// Returns the hunks of a unified diff: each replaces whole lines, without the end of the last.
fn replacements(diff: &str) -> Vec<Value> {
    let mut replacements = Vec::new();
    for hunk in diff.split("\n@@ -").skip(1) {
        let Some((header, body)) = hunk.split_once('\n') else { continue };
        let start: u64 = header.split([',', ' ']).next().and_then(|start| start.parse().ok()).unwrap_or(1).max(1);
        let lines =
            |mark: char| body.split('\n').filter(move |line| line.starts_with([' ', mark])).map(|line| &line[1..]);
        let inserted = lines('+').collect::<Vec<_>>().join("\n");
        replacements.push(json!({
            "deletedRegion": {"startLine": start, "endLine": (start + lines('-').count() as u64 - 1).max(start)},
            "insertedContent": {"text": inserted.trim_end_matches('\r')},
        }));
    }
    replacements
}
