//! Measures the directories of local cache exports that a project's files name. Reads, and changes nothing.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bundle::Layout;
use crate::checks::exports::{CACHE_EXPORT_GROWS, Export};
use crate::checks::project::Project;

/// Returns those that are there.
pub fn measure(path: &Path, project: &Project) -> Vec<Export> {
    let above = |path: &'_ Path| path.parent().filter(|above| !above.as_os_str().is_empty()).map(Path::to_owned);
    let root = if path.is_file() { above(path).unwrap_or(".".into()) } else { path.to_owned() };
    let root = root.as_path();
    let found = project.found().iter().filter(|finding| finding.check == CACHE_EXPORT_GROWS);
    let exports = found.filter_map(|finding| {
        let dest = finding.subject.clone()?;
        let beside = Path::new(finding.file.as_deref()?).parent();
        let directory = match expanded(&dest)? {
            path if path.is_absolute() => path,
            // Scripts run at the root of a project more often than where they lie.
            path => {
                [Some(root), beside].into_iter().flatten().map(|above| above.join(&path)).find(|path| path.exists())?
            }
        };
        let (bytes, orphaned) = sizes(&directory)?;
        let shown = |path: &Path| {
            path.strip_prefix(".")
                .ok()
                .filter(|path| !path.as_os_str().is_empty())
                .unwrap_or(path)
                .display()
                .to_string()
        };
        Some(Export { dest, directory: shown(&directory), project: shown(root), bytes, orphaned })
    });
    exports.collect()
}

/// Returns the path that a shell would make of it, if that is known.
fn expanded(dest: &str) -> Option<PathBuf> {
    let home = ["~/", "$HOME/", "${HOME}/"].iter().find_map(|home| dest.strip_prefix(home));
    let path = match home {
        Some(below) => dirs::home_dir()?.join(below),
        None => PathBuf::from(dest),
    };
    (!path.to_string_lossy().contains('$')).then_some(path)
}

/// Returns the bytes of all blobs, and of those that nothing refers to; None if it is no cache export, or damaged.
fn sizes(directory: &Path) -> Option<(u64, u64)> {
    let layout = Layout::open(directory).ok()?;
    let mut live = HashSet::new();
    for descriptor in &layout.index().ok()?.manifests {
        layout.reach(descriptor, 0, &mut live).ok()?;
    }
    let (mut bytes, mut orphaned) = (0, 0);
    for blob in fs::read_dir(layout.blobs()).ok()?.flatten() {
        let size = blob.metadata().ok()?.len();
        bytes += size;
        if !live.contains(&format!("sha256:{}", blob.file_name().to_string_lossy())) {
            orphaned += size;
        }
    }
    Some((bytes, orphaned))
}
