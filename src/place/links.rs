//! Where links and bind mounts on this host lead, without a look into what other hosts serve: one that does not answer would
//! hold up whoever asks, for as long as it does not.

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
    mounts: Vec<Mounted>,
}

/// A file system, or a directory of one, somewhere on this host.
#[derive(Debug, PartialEq)]
struct Mounted {
    /// Number of the file system.
    device: Vec<u8>,
    /// The directory of the file system that is mounted: `/` for all of it.
    root: PathBuf,
    point: PathBuf,
    /// Another host serves it, or a program that may ask one.
    far: bool,
}

impl Links {
    /// Knows what is mounted on this host at the moment, where the kernel tells (Linux).
    pub fn of_host() -> Links {
        Links { mounts: mounts(&fs::read("/proc/self/mountinfo").unwrap_or_default()) }
    }

    /// Returns the one path that all names of a directory by bind mounts (`mount --bind`) have in common: below the mount
    /// that has most of its file system. The path must be one without links.
    pub fn unbound(&self, path: &Path) -> Option<PathBuf> {
        let above = self.mounts.iter().filter(|mount| path.starts_with(&mount.point));
        // Of several at one point the last one is seen.
        let mount = above.max_by_key(|mount| mount.point.components().count())?;
        let inner = mount.root.join(path.strip_prefix(&mount.point).ok()?);
        let whole = self.mounts.iter().filter(|other| other.device == mount.device && inner.starts_with(&other.root));
        let most = whole.min_by_key(|other| other.root.components().count())?;
        Some(most.point.join(inner.strip_prefix(&most.root).ok()?))
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
            if self.mounts.iter().any(|mount| mount.far && mount.point == at) {
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

/// Returns what a table of mounts tells, as proc(5) has it. The root counts as this host's, since everything lies below it.
fn mounts(table: &[u8]) -> Vec<Mounted> {
    let mounts = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        let (device, root, point) = (words.next()?.to_vec(), unescaped(words.next()?), unescaped(words.next()?));
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        let far = is_far(kind) && point != Path::new("/");
        Some(Mounted { device, root, point, far })
    });
    mounts.collect()
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
        let found = mounts(table);
        let far: Vec<&Path> = found.iter().filter(|mount| mount.far).map(|mount| mount.point.as_path()).collect();
        assert_eq!((found.len(), far), (5, vec![Path::new("/mnt/a b"), Path::new("/mnt/ssh")]));
    }

    #[test]
    fn names_by_bind_mounts_are_one_place() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            23 22 8:17 / /data rw - ext4 /dev/sdb1 rw\n\
            24 22 8:17 /docker /var/lib/docker rw - ext4 /dev/sdb1 rw\n\
            25 22 8:17 /docker/volumes/a/_data /alias rw - ext4 /dev/sdb1 rw\n\
            26 22 8:33 /part /alone rw - ext4 /dev/sdc1 rw\n\
            27 22 0:50 / /over rw - tmpfs tmpfs rw\n\
            28 22 8:1 /srv/x /over rw - ext4 /dev/sda1 rw\n";
        let links = Links { mounts: mounts(table) };
        let of = |path: &str| links.unbound(Path::new(path)).unwrap();
        for name in ["/alias/pip", "/var/lib/docker/volumes/a/_data/pip", "/data/docker/volumes/a/_data/pip"] {
            assert_eq!(of(name), Path::new("/data/docker/volumes/a/_data/pip"), "{name}");
        }
        for (name, place) in
            [("/", "/"), ("/srv", "/srv"), ("/alone/x", "/alone/x"), ("/over/y", "/srv/x/y"), ("/alias2", "/alias2")]
        {
            assert_eq!(of(name), Path::new(place), "{name}");
        }
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
        let local = Links { mounts: Vec::new() };
        for path in ["to/link", "far/dir/up/../dir", "far", "to/dir/../../far/dir"] {
            assert_eq!(local.follow(&root.join(path)), root.join(path).canonicalize().ok(), "{path}");
        }
        for nowhere in ["none", "loop", "to/none/.."] {
            assert_eq!(local.follow(&root.join(nowhere)), None, "{nowhere}");
        }
        let (device, far) = (b"0:44".to_vec(), root.join("far"));
        let links = Links { mounts: vec![Mounted { device, root: "/".into(), point: far, far: true }] };
        for (path, leads) in [("to/link/x", "far/link/x"), ("far/none", "far/none"), ("to", "far")] {
            assert_eq!(links.follow(&root.join(path)), Some(root.join(leads)), "{path}");
        }
    }
}
