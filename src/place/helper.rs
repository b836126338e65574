//! Finds the binary that runs inside an engine: this one where it fits, else one that was put beside it.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// Returns the helper binary for an engine on Linux of this architecture, as Go (`amd64`) or the kernel (`x86_64`)
/// names it.
///
/// # Errors
/// When there is none, with one sentence on how to get it.
pub fn binary(architecture: &str) -> Result<PathBuf> {
    let wanted = go_name(architecture);
    let own = std::env::current_exe()?;
    if cfg!(target_os = "linux") && wanted == go_name(std::env::consts::ARCH) {
        return Ok(own);
    }
    let name = format!("docker-cache-linux-{wanted}");
    let beside = own.with_file_name(&name);
    if beside.is_file() {
        return Ok(beside);
    }
    bail!(
        "no helper for an engine on linux/{wanted}: this program runs on {}/{} and has none beside it\n\
         hint: build it on such a machine with `cargo build --release` and put it at `{}`",
        std::env::consts::OS,
        go_name(std::env::consts::ARCH),
        beside.display()
    )
}

/// Returns Go's name of an architecture: docker's platforms use it.
fn go_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" => "arm",
        "i686" | "i386" | "x86" => "386",
        other => other,
    }
}
