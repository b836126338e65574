//! Where a bundle is: a directory or a tag of a registry, written as buildx writes the places of its cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What `--dest` and `--src` name: `DIR`, `type=local,dest=DIR` or `type=registry,ref=HOST/NAME:TAG`. A bare word that
/// begins with the name of a host is neither, unless that is a directory here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Directory(PathBuf),
    Registry(Reference),
}

/// A tag in a repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host and port, `docker.io` for Docker Hub.
    pub host: String,
    pub name: String,
    pub tag: String,
    /// `registry.insecure=true`: plain HTTP, or certificates that nobody vouches for.
    pub insecure: bool,
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        if text.is_empty() {
            return Err("it names no directory".into());
        }
        if !text.starts_with("type=") {
            let first = text.split('/').next().unwrap_or_default();
            let of_host = text.parse::<Reference>().is_ok_and(|reference| reference.host == first && first != text);
            if of_host && !Path::new(first).exists() {
                return Err(format!(
                    "it looks like a tag of a registry, which is `type=registry,ref={text}`\nhint: a directory of that name is \
                     `./{text}`"
                ));
            }
            return Ok(Location::Directory(text.into()));
        }
        let (mut kind, mut place, mut insecure) = ("", None, false);
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("type", value)) => kind = value,
                Some(("dest" | "src", value)) if kind == "local" => place = Some(value),
                Some(("ref", value)) if kind == "registry" => place = Some(value),
                Some(("registry.insecure", value)) if kind == "registry" => {
                    insecure =
                        value.parse().map_err(|_| format!("registry.insecure is true or false, not {value:?}"))?;
                }
                _ => {
                    return Err(format!("{field:?} is none of type=local,dest=DIR or type=registry,ref=HOST/NAME:TAG"));
                }
            }
        }
        match (kind, place) {
            ("local", Some(dir)) if !dir.is_empty() => Ok(Location::Directory(dir.into())),
            ("local", _) => Err("it names no directory: type=local,dest=DIR".into()),
            ("registry", Some(text)) => Ok(Location::Registry(Reference { insecure, ..text.parse()? })),
            ("registry", None) => Err("it names no tag: type=registry,ref=HOST/NAME:TAG".into()),
            _ => Err(format!("type is local or registry, not {kind:?}")),
        }
    }
}

impl FromStr for Reference {
    type Err = String;

    /// Reads a reference as docker does: what comes first is a host if it can be no name.
    fn from_str(text: &str) -> Result<Reference, String> {
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        let is_host = !rest.is_empty() && (first.contains(['.', ':']) || first == "localhost");
        let (host, path) = match first {
            "index.docker.io" | "registry-1.docker.io" => ("docker.io", rest),
            _ if is_host => (first, rest),
            _ => ("docker.io", text),
        };
        if path.contains('@') {
            return Err(format!("{text:?} names a digest, and a tag is needed: HOST/NAME:TAG"));
        }
        let (name, tag) = path.split_once(':').unwrap_or((path, "latest"));
        let in_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
        let in_tag = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let named = name.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()));
        let tagged = (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-']);
        if !(host.chars().all(in_host) && named && name.chars().all(in_name) && tagged && tag.chars().all(in_tag)) {
            return Err(format!("{text:?} is no reference: HOST/NAME:TAG is one, its name in lower case"));
        }
        let name = if host != "docker.io" || name.contains('/') { name.into() } else { format!("library/{name}") };
        Ok(Reference { host: host.into(), name, tag: tag.into(), insecure: false })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.host, self.name, self.tag)
    }
}

impl fmt::Display for Location {
    /// Writes it as the command line takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(dir) => f.write_str(&dir.to_string_lossy()),
            Location::Registry(reference) => {
                let insecure = if reference.insecure { ",registry.insecure=true" } else { "" };
                write!(f, "type=registry,ref={reference}{insecure}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn registry(text: &str) -> (String, String, String, bool) {
        match text.parse() {
            Ok(Location::Registry(Reference { host, name, tag, insecure })) => (host, name, tag, insecure),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn parts(host: &str, name: &str, tag: &str, insecure: bool) -> (String, String, String, bool) {
        (host.into(), name.into(), tag.into(), insecure)
    }

    #[test]
    fn places_are_read_as_buildx_reads_them() {
        for (text, dir) in [("/tmp/a=b", "/tmp/a=b"), ("type=local,dest=x", "x"), ("type=local,src=/y", "/y")] {
            assert_eq!(text.parse(), Ok(Location::Directory(dir.into())));
        }
        for dir in ["./ghcr.io/x", "../x", "src/x", "a.b", "team/cache:main", "Up.per/x:y/z"] {
            assert_eq!(dir.parse(), Ok(Location::Directory(dir.into())));
        }
        assert_eq!(
            registry("type=registry,ref=ghcr.io/team/cache:main"),
            parts("ghcr.io", "team/cache", "main", false)
        );
        assert_eq!(registry("type=registry,ref=localhost/c"), parts("localhost", "c", "latest", false));
        assert_eq!(registry("type=registry,ref=me/c:1"), parts("docker.io", "me/c", "1", false));
        assert_eq!(registry("type=registry,ref=index.docker.io/c"), parts("docker.io", "library/c", "latest", false));
        assert_eq!(registry("type=registry,ref=c"), parts("docker.io", "library/c", "latest", false));
        let insecure = "type=registry,ref=reg:5000/c:v1,registry.insecure=true";
        assert_eq!(registry(insecure), parts("reg:5000", "c", "v1", true));
        assert_eq!(insecure.parse::<Location>().unwrap().to_string(), insecure);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let wrong = [
            "",
            "localhost:5000/team/cache:main",
            "localhost/cache",
            "ghcr.io/team/cache",
            "type=s3,ref=x",
            "type=registry",
            "type=local",
            "type=registry,dest=/x",
            "type=registry,ref=h.io/Name:t",
            "type=registry,ref=h.io/n:",
            "type=registry,ref=h.io/../n:t",
            "type=registry,ref=h.io/n:t?x",
            "type=registry,ref=u:p@h.io/n:t",
            "type=registry,ref=h.io/n@sha256:00",
            "type=registry,ref=h.io/n:t,registry.insecure=maybe",
        ];
        for text in wrong {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
