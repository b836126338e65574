//! `docker-cache man DIR`: writes the manual pages, of what `--help` is made of too. For install.sh, and hidden.

use std::fs;

use anyhow::{Context, Result};

use crate::cli::{self, Man};

pub fn run(options: &Man) -> Result<u8> {
    let directory = &options.directory;
    let written = fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(cli::grammar(), directory));
    written.with_context(|| format!("cannot write manual pages to `{}`", directory.display()))?;
    Ok(0)
}
