//! Doctor's findings as SARIF 2.1.0, for code scanning.

use serde_json::{Value, json};

use super::{Results, findings};
use crate::checks::{Finding, Severity};

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
    let uri = finding.file.as_deref().unwrap_or(".").replace('%', "%25").replace(' ', "%20").replace('#', "%23");
    let location = json!({
        "physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": finding.line.unwrap_or(1)},
        },
    });
    json!({
        "ruleId": finding.check,
        "level": level,
        "message": {"text": finding.message},
        "locations": [location],
    })
}
