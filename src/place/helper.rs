//! Finds the binary that runs inside an engine: this one where it fits, else one that was put beside it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Returns the helper binary for an engine on Linux of this architecture, as Go (`amd64`) or the kernel (`x86_64`)
/// names it.
///
/// # Errors
/// When there is none, with one sentence on how to get it.
pub fn binary(architecture: &str) -> Result<PathBuf> {
    choose(architecture, std::env::consts::OS, &std::env::current_exe()?)
}

/// The file has the version in its name, since a job is only understood by the same version. The name does not begin with
/// `docker-`, or docker would take it for a plugin and warn.
fn choose(architecture: &str, os: &str, own: &Path) -> Result<PathBuf> {
    let (wanted, own_architecture) = (go_name(architecture), go_name(std::env::consts::ARCH));
    if os == "linux" && wanted == own_architecture {
        return Ok(own.into());
    }
    let version = env!("CARGO_PKG_VERSION");
    let beside = own.with_file_name(format!("cache-helper-{version}-linux-{wanted}"));
    // The plugin may be a link to where a package manager keeps it.
    let behind = own.canonicalize().ok().and_then(|path| Some(path.with_file_name(beside.file_name()?)));
    if let Some(found) = [Some(beside.clone()), behind].into_iter().flatten().find(|path| path.is_file()) {
        return Ok(found);
    }
    bail!(
        "there is no helper for an engine on linux/{wanted}, as this program is for {os}/{own_architecture}\n\
         hint: a release brings it: `./install.sh --from RELEASE`; or build version {version} on such a machine with \
         `cargo build --release` and put it at `{}`",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_found_beside_the_plugin_or_what_it_links_to() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("docker-cache"), folder.path().join("plugins/docker-cache"));
        std::fs::write(&real, "").unwrap();
        std::fs::create_dir(folder.path().join("plugins")).unwrap();
        std::os::unix::fs::symlink("../docker-cache", &link).unwrap();
        let own = std::env::consts::ARCH;
        assert_eq!(choose(own, "linux", &link).unwrap(), link);

        let told = choose("riscv64", "linux", &link).unwrap_err().to_string();
        assert!(told.starts_with("there is no helper for an engine on linux/riscv64, "), "{told}");
        let name = concat!("cache-helper-", env!("CARGO_PKG_VERSION"), "-linux-riscv64");
        assert!(
            told.contains(&format!("put it at `{}`", folder.path().join("plugins").join(name).display())),
            "{told}"
        );
        for place in [folder.path().join(name), link.with_file_name(name)] {
            std::fs::write(&place, "").unwrap();
            assert_eq!(
                choose("riscv64", "linux", &link).unwrap().canonicalize().unwrap(),
                place.canonicalize().unwrap()
            );
        }
        assert!(choose(own, "macos", &link).is_err());
    }
}
