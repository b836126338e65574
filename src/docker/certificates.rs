//! What docker trusts of a registry beyond the system's own authorities, and shows to it: the files in `certs.d/HOST:PORT`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The certificates of one registry, as PEM; there may be none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// `*.crt`: authorities that may vouch for it.
    pub authorities: Vec<(PathBuf, Vec<u8>)>,
    /// `*.cert` and the `*.key` of the same name: who the client is. Of several the first.
    pub client: Option<Client>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Client {
    pub file: PathBuf,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the first directory of a registry that there is: beside config.json as Docker Desktop has it, that of a rootless
    /// engine, then `/etc/docker/certs.d`.
    ///
    /// # Errors
    /// When a file cannot be read, or a key lacks its certificate or the other way round.
    pub fn of(host: &str, config_dir: &Path) -> Result<Certificates> {
        let rootless = dirs::config_dir().map(|dir| dir.join("docker"));
        let parents = [Some(config_dir.to_owned()), rootless, Some("/etc/docker".into())];
        let dirs = parents.into_iter().flatten().map(|dir| dir.join("certs.d").join(host));
        for dir in dirs {
            match fs::read_dir(&dir) {
                // What others alone may read is not for this user.
                Err(error) if [ErrorKind::NotFound, ErrorKind::PermissionDenied].contains(&error.kind()) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
                Ok(files) => {
                    let mut files = files.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
                    files.sort();
                    return Certificates::read(&files);
                }
            }
        }
        Ok(Certificates::default())
    }

    fn read(files: &[PathBuf]) -> Result<Certificates> {
        let read = |file: &PathBuf| fs::read(file).with_context(|| format!("cannot read {}", file.display()));
        let mut found = Certificates::default();
        for file in files {
            let partner = |extension| match file.with_extension(extension) {
                partner if files.contains(&partner) => Ok(partner),
                partner => bail!("{} needs {} beside it, which is not there", file.display(), partner.display()),
            };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.authorities.push((file.clone(), read(file)?)),
                Some("cert") => {
                    let key = partner("key")?;
                    if found.client.is_none() {
                        found.client = Some(Client { file: file.clone(), certificate: read(file)?, key: read(&key)? });
                    }
                }
                Some("key") => _ = partner("cert")?,
                _ => {}
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_those_of_the_registry_and_keys_come_in_pairs() {
        let config = tempfile::tempdir().unwrap();
        let dir = config.path().join("certs.d/h.test:5000");
        fs::create_dir_all(&dir).unwrap();
        let write = |name: &str| fs::write(dir.join(name), name).unwrap();
        let of = |host: &str| Certificates::of(host, config.path());
        ["ca.crt", "notes.txt", "b.cert", "b.key", "a.cert", "a.key"].into_iter().for_each(write);
        let found = of("h.test:5000").unwrap();
        assert_eq!(found.authorities, [(dir.join("ca.crt"), b"ca.crt".to_vec())]);
        let client = found.client.unwrap();
        assert_eq!((&client.certificate[..], &client.key[..]), (&b"a.cert"[..], &b"a.key"[..]));
        assert!(!format!("{client:?}").contains("97"), "keys are not printed");
        assert_eq!(of("h.test").unwrap(), Certificates::default());
        fs::remove_file(dir.join("b.cert")).unwrap();
        assert!(of("h.test:5000").unwrap_err().to_string().contains("needs"));
    }
}
