//! What is remembered between runs: small files in the user's state directory. No command may need them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Returns the directory, `~/.local/state/docker-cache`, which may not exist yet.
///
/// # Errors
/// When the user has no home directory.
pub fn directory() -> Result<PathBuf> {
    let state = dirs::state_dir().or_else(dirs::cache_dir).context("this user has no home directory")?;
    Ok(state.join("docker-cache"))
}

/// Writes a file whole: a reader, or a kill at any moment, finds the old one or the new one.
///
/// # Errors
/// When the file or its directory cannot be made.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().context("it has no directory")?;
    fs::create_dir_all(directory)?;
    let mut aside = tempfile::NamedTempFile::new_in(directory)?;
    aside.write_all(content)?;
    aside.persist(path)?;
    Ok(())
}
