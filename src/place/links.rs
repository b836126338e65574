//! Where links on this host lead, without a look into what other hosts serve: one that does not answer would hold up
//! whoever asks, for as long as it does not.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::inside::dirs::unescaped;

/// As many links may follow each other as Linux allows.
const MAX_LINKS: usize = 40;

/// Follows links.
#[derive(Debug)]
pub struct Links {
    /// Where file systems of other hosts are mounted.
    far: Vec<PathBuf>,
}

impl Links {
    /// Knows what is mounted on this host at the moment, where the kernel tells (Linux).
    pub fn of_host() -> Links {
        Links { far: far(&fs::read("/proc/self/mountinfo").unwrap_or_default()) }
    }

    /// Returns where an absolute path leads. What it names of another host's files stays as it is written. None if it leads
    /// nowhere.
    pub fn follow(&self, path: &Path) -> Option<PathBuf> {
        let mut at = PathBuf::from("/");
        let mut links = 0;
        // The last one is the next.
        let mut ahead: Vec<OsString> = Vec::new();
        let push = |path: &Path, ahead: &mut Vec<OsString>| {
            let relative = path.strip_prefix("/").unwrap_or(path);
            ahead.extend(relative.iter().rev().map(OsString::from));
        };
        push(path, &mut ahead);
        while let Some(name) = ahead.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            if self.far.contains(&at) {
                at.extend(ahead.into_iter().rev());
                break;
            }
            match fs::read_link(&at) {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    at.pop();
                    if target.is_absolute() {
                        at = "/".into();
                    }
                    push(&target, &mut ahead);
                }
                // No link.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                _ => return None,
            }
        }
        Some(at)
    }
}

/// Returns the mount points in a table of mounts, as proc(5) has it, of what other hosts serve: all but the root, below which
/// everything lies.
fn far(table: &[u8]) -> Vec<PathBuf> {
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let point = unescaped(words.nth(4)?);
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        (is_far(kind) && point != Path::new("/")).then_some(point)
    });
    points.collect()
}

/// Tells of a type of file system whether another host serves it, or a program that may ask one.
fn is_far(kind: &[u8]) -> bool {
    const FAR: &[&str] = &[
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "afs",
        "ncpfs",
        "autofs",
        "fuse",
    ];
    std::str::from_utf8(kind).is_ok_and(|kind| FAR.contains(&kind) || kind.starts_with("fuse."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_other_hosts_serve_is_known_by_its_type() {
        let table = b"22 1 0:20 / / rw - nfs host:/root rw\n\
            23 22 8:1 / /home rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            24 22 0:44 / /mnt/a\\040b rw shared:2 master:3 - nfs4 host:/export rw,addr=10.0.0.1\n\
            25 22 0:45 / /nfs rw - tmpfs nfs4 rw\n\
            26 22 0:46 / /mnt/ssh rw - fuse.sshfs me@host:/ rw\nnonsense\n";
        assert_eq!(far(table), [Path::new("/mnt/a b"), Path::new("/mnt/ssh")]);
    }

    #[test]
    fn links_are_followed_up_to_what_another_host_serves() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("far/dir")).unwrap();
        symlink("dir", root.join("far/link")).unwrap();
        symlink(root.join("far"), root.join("to")).unwrap();
        symlink("../to/./link", root.join("far/dir/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let local = Links { far: Vec::new() };
        for path in ["to/link", "far/dir/up/../dir", "far", "to/dir/../../far/dir"] {
            assert_eq!(local.follow(&root.join(path)), root.join(path).canonicalize().ok(), "{path}");
        }
        for nowhere in ["none", "loop", "to/none/.."] {
            assert_eq!(local.follow(&root.join(nowhere)), None, "{nowhere}");
        }
        let links = Links { far: vec![root.join("far")] };
        for (path, leads) in [("to/link/x", "far/link/x"), ("far/none", "far/none"), ("to", "far")] {
            assert_eq!(links.follow(&root.join(path)), Some(root.join(leads)), "{path}");
        }
    }
}
