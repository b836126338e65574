//! Small things around an engine: trees of files to compare or to fill, and a `docker` that misbehaves.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// All that there is to know about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `file`, `folder`, `link`, `pipe`, `socket`, `device`.
    pub kind: &'static str,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Bytes of a file or a link; 0 for anything else, where the file system decides.
    pub size: u64,
    /// Where a symbolic link points.
    pub target: Option<PathBuf>,
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// SHA-256 of a file's content.
    pub digest: Option<String>,
    /// The first path, in order, of the same file: hard links share it.
    pub link_of: PathBuf,
    /// Major and minor number of a device.
    pub device: u64,
}

/// A folder with everything below it, by path relative to it; the folder itself is the empty path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(pub BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Reads a folder, following no link.
    pub fn read(root: &Path) -> Tree {
        let mut found = BTreeMap::new();
        collect(root, PathBuf::new(), &mut found);
        let mut first_path = BTreeMap::new();
        let mut tree = Tree::default();
        for (path, meta) in found {
            let link_of = first_path.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone();
            tree.0.insert(path.clone(), entry(&root.join(&path), &meta, link_of));
        }
        tree
    }

    /// Returns the tree without what the closure refuses.
    pub fn only(mut self, keep: impl Fn(&Path) -> bool) -> Tree {
        self.0.retain(|path, _| keep(path));
        self
    }

    /// Returns the tree without the times of folders, which change with what is in them.
    pub fn timeless(mut self) -> Tree {
        self.0.values_mut().filter(|entry| entry.kind == "folder").for_each(|entry| entry.modified = (0, 0));
        self
    }

    /// Returns the bytes of all files, each hard-linked file once.
    pub fn bytes(&self) -> u64 {
        let files = self.0.iter().filter(|(path, entry)| entry.kind == "file" && entry.link_of == **path);
        files.map(|(_, entry)| entry.size).sum()
    }

    /// Returns what differs, a line each, or nothing.
    pub fn difference(&self, other: &Tree) -> String {
        let mut text = String::new();
        for (path, entry) in &self.0 {
            match other.0.get(path) {
                None => writeln!(text, "only left:  {path:?} ({})", entry.kind).unwrap(),
                Some(theirs) if theirs != entry => {
                    writeln!(text, "differs:    {path:?}\n  {entry:?}\n  {theirs:?}").unwrap()
                }
                Some(_) => {}
            }
        }
        for (path, entry) in other.0.iter().filter(|(path, _)| !self.0.contains_key(*path)) {
            writeln!(text, "only right: {path:?} ({})", entry.kind).unwrap();
        }
        text
    }
}

/// Fails the test with the list of differences if two folders are not the same to the last byte, bit and second.
#[track_caller]
pub fn assert_same(left: &Tree, right: &Tree) {
    let difference = left.difference(right);
    assert!(difference.is_empty(), "the trees differ\n{difference}");
}

fn collect(root: &Path, path: PathBuf, found: &mut BTreeMap<PathBuf, Metadata>) {
    let meta = fs::symlink_metadata(root.join(&path)).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    if meta.is_dir() {
        for inner in fs::read_dir(root.join(&path)).unwrap() {
            collect(root, path.join(inner.unwrap().file_name()), found);
        }
    }
    found.insert(path, meta);
}

fn entry(path: &Path, meta: &Metadata, link_of: PathBuf) -> Entry {
    let kind = meta.file_type();
    Entry {
        kind: match () {
            () if kind.is_file() => "file",
            () if kind.is_dir() => "folder",
            () if kind.is_symlink() => "link",
            () if kind.is_fifo() => "pipe",
            () if kind.is_socket() => "socket",
            () => "device",
        },
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        size: if kind.is_file() || kind.is_symlink() { meta.size() } else { 0 },
        target: kind.is_symlink().then(|| fs::read_link(path).unwrap()),
        attributes: attributes(path),
        digest: kind.is_file().then(|| digest(path)),
        link_of,
        device: meta.rdev(),
    }
}

/// Returns the SHA-256 of a file, as 64 hexadecimal digits.
pub fn digest(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the extended attributes of a file, POSIX ACLs and file capabilities among them.
fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    names.map(|name| (String::from_utf8_lossy(name).into_owned(), read(name))).collect()
}

/// Fills a folder with a tree like a package manager's: `files` files in folders of 500, `bytes` in all.
pub fn big_tree(root: &Path, files: u64, bytes: u64) {
    const IN_FOLDER: u64 = 500;
    (0..files.div_ceil(IN_FOLDER)).into_par_iter().for_each(|number| {
        let folder = root.join(format!("{:02x}", number % 256)).join(format!("{number:06}"));
        fs::create_dir_all(&folder).unwrap();
        for file in number * IN_FOLDER..files.min((number + 1) * IN_FOLDER) {
            let size = bytes / files + u64::from(file < bytes % files);
            fs::write(folder.join(format!("{file:08}")), noise(file, size as usize)).unwrap();
        }
    });
}

/// Returns bytes that do not compress and that no other seed gives.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Installs a shell script as `docker` in a folder, to be put first in PATH: a docker that hangs, lies, or stops in a line.
pub fn fake_docker(folder: &Path, script: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let docker = folder.join("docker");
    fs::write(&docker, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
    docker
}

/// Writes files below a folder, making the folders between.
pub fn write_files(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}
