//! Writes a file of the user's anew, without losing anything that is not its text.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, fremovexattr, fsetxattr};

use crate::inside::pack::attributes;
use crate::report::quote;

/// Writes beside the file and renames, so that it is always whole. Owner, mode and attributes stay, as access lists are; one
/// that is new only its owner reads. The path leads through no link.
///
/// # Errors
/// When the file has other names, which would keep the old text, or something of it cannot be written.
pub fn rewrite(path: &Path, text: &str) -> Result<()> {
    let mut aside = tempfile::NamedTempFile::new_in(path.parent().context("it has no directory")?)?;
    aside.write_all(text.as_bytes())?;
    if path.exists() {
        ensure_one_name(path)?;
        take_after(aside.as_file(), &File::open(path)?)?;
    }
    aside.as_file().sync_all()?;
    aside.persist(path)?;
    Ok(())
}

/// Makes sure that a rename over the file changes all that has its text.
///
/// # Errors
/// When it has hard links.
pub fn ensure_one_name(path: &Path) -> Result<()> {
    let names = fs::metadata(path)?.nlink();
    ensure!(
        names == 1,
        "it has {names} names (hard links), and the others would keep the old text\nhint: change it in an editor, or make it a \
         file of its own with `sed -i -e '' {}`",
        quote(path)
    );
    Ok(())
}

/// Gives a new file the owner, the attributes and the mode of an old one.
///
/// # Errors
/// When one of them cannot be given.
pub fn take_after(new: &File, old: &File) -> Result<()> {
    let (from, to) = (old.metadata()?, new.metadata()?);
    if (from.uid(), from.gid()) != (to.uid(), to.gid()) {
        fchown(new, Some(from.uid()), Some(from.gid()))?;
    }
    let (from_attributes, to_attributes) = (attributes(old.as_fd())?, attributes(new.as_fd())?);
    // The directory's default access list.
    for (name, _) in to_attributes.iter().filter(|(name, _)| from_attributes.iter().all(|(other, _)| other != name)) {
        fremovexattr(new, &name[..])?;
    }
    // macOS itself says of each file who made it.
    let own = |name: &[u8]| name != b"com.apple.provenance";
    for (name, value) in from_attributes.iter().filter(|pair| own(&pair.0) && !to_attributes.contains(pair)) {
        fsetxattr(new, &name[..], value, XattrFlags::empty())
            .with_context(|| format!("its attribute `{}` cannot be kept", String::from_utf8_lossy(name)))?;
    }
    Ok(new.set_permissions(from.permissions())?)
}
