//! What well-known base images bring along, as far as it decides where a tool keeps its cache. Pure look-ups over one
//! table; of an image that is not in it, nothing is assumed.

/// A family of Linux distributions and, where the tag tells it, the release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Os {
    pub family: &'static str,
    pub release: Option<String>,
}

/// An image that the table knows. All of these start as root.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    names: &'static [&'static str],
    /// Family of the tags that name none.
    os: &'static str,
    pub env: &'static [(&'static str, &'static str)],
    /// Users besides root: name, uid, home.
    pub users: &'static [(&'static str, u32, &'static str)],
}

const IMAGE: Image = Image { names: &[], os: "debian", env: &[], users: &[] };

const VSCODE: &[(&str, u32, &str)] = &[("vscode", 1000, "/home/vscode")];

const IMAGES: &[Image] = &[
    Image {
        names: &[
            "debian",
            "python",
            "pypy",
            "php",
            "perl",
            "gcc",
            "julia",
            "erlang",
            "elixir",
            "haskell",
            "r-base",
            "buildpack-deps",
            "dart",
            "nginx",
            "httpd",
            "postgres",
            "redis",
            "ghcr.io/astral-sh/uv",
        ],
        ..IMAGE
    },
    Image { names: &["node"], users: &[("node", 1000, "/home/node")], ..IMAGE },
    Image {
        names: &["rust"],
        env: &[("CARGO_HOME", "/usr/local/cargo"), ("RUSTUP_HOME", "/usr/local/rustup")],
        ..IMAGE
    },
    Image { names: &["golang"], env: &[("GOPATH", "/go")], ..IMAGE },
    Image { names: &["ruby"], env: &[("GEM_HOME", "/usr/local/bundle")], ..IMAGE },
    Image { names: &["composer"], os: "alpine", env: &[("COMPOSER_HOME", "/tmp")], ..IMAGE },
    // ~/.gradle of root is a link to this one
    Image {
        names: &["gradle"],
        os: "ubuntu",
        env: &[("GRADLE_USER_HOME", "/home/gradle/.gradle")],
        users: &[("gradle", 1000, "/home/gradle")],
    },
    Image { names: &["maven", "eclipse-temurin", "rocker/r-ver", "nvidia/cuda"], os: "ubuntu", ..IMAGE },
    Image { names: &["ubuntu", "swift"], os: "ubuntu", users: &[("ubuntu", 1000, "/home/ubuntu")], ..IMAGE },
    Image {
        names: &["mcr.microsoft.com/dotnet/sdk", "mcr.microsoft.com/dotnet/aspnet", "mcr.microsoft.com/dotnet/runtime"],
        users: &[("app", 1654, "/home/app")],
        ..IMAGE
    },
    Image { names: &["oven/bun"], users: &[("bun", 1000, "/home/bun")], ..IMAGE },
    Image { names: &["continuumio/miniconda3", "continuumio/anaconda3"], env: &[("CONDA_DIR", "/opt/conda")], ..IMAGE },
    Image {
        names: &["condaforge/miniforge3", "condaforge/mambaforge"],
        os: "ubuntu",
        env: &[("CONDA_DIR", "/opt/conda")],
        ..IMAGE
    },
    // Debian or Ubuntu, as the tag says; dev containers run as this user
    Image {
        names: &[
            "mcr.microsoft.com/devcontainers/base",
            "mcr.microsoft.com/devcontainers/cpp",
            "mcr.microsoft.com/devcontainers/python",
            "mcr.microsoft.com/devcontainers/dotnet",
        ],
        users: VSCODE,
        ..IMAGE
    },
    Image {
        names: &["mcr.microsoft.com/devcontainers/rust"],
        env: &[("CARGO_HOME", "/usr/local/cargo"), ("RUSTUP_HOME", "/usr/local/rustup")],
        users: VSCODE,
        ..IMAGE
    },
    Image { names: &["mcr.microsoft.com/devcontainers/go"], env: &[("GOPATH", "/go")], users: VSCODE, ..IMAGE },
    Image {
        names: &["mcr.microsoft.com/devcontainers/javascript-node", "mcr.microsoft.com/devcontainers/typescript-node"],
        users: &[("node", 1000, "/home/node")],
        ..IMAGE
    },
    Image { names: &["alpine"], os: "alpine", ..IMAGE },
    Image { names: &["fedora", "quay.io/fedora/fedora"], os: "fedora", ..IMAGE },
    Image {
        names: &[
            "centos",
            "quay.io/centos/centos",
            "rockylinux",
            "rockylinux/rockylinux",
            "almalinux",
            "redhat/ubi8",
            "redhat/ubi9",
            "registry.access.redhat.com/ubi8/ubi",
            "registry.access.redhat.com/ubi9/ubi",
            "registry.access.redhat.com/ubi8",
            "registry.access.redhat.com/ubi9",
        ],
        os: "rhel",
        ..IMAGE
    },
    Image { names: &["amazonlinux"], os: "amazon", ..IMAGE },
    Image { names: &["archlinux", "archlinux/archlinux"], os: "arch", ..IMAGE },
    Image { names: &["opensuse/leap", "opensuse/tumbleweed"], os: "suse", ..IMAGE },
];

const PREFIXES: &[&str] = &[
    "docker.io/library/",
    "docker.io/",
    "index.docker.io/library/",
    "library/",
    "public.ecr.aws/docker/library/",
    "mirror.gcr.io/library/",
];

const DEBIANS: &[&str] = &["buster", "bullseye", "bookworm", "trixie", "forky", "sid"];
const UBUNTUS: &[(&str, &str)] =
    &[("focal", "20.04"), ("jammy", "22.04"), ("noble", "24.04"), ("plucky", "25.04"), ("resolute", "26.04")];

/// Returns the user of dev containers made from an image, where the image says so itself.
pub fn dev_user(reference: &str) -> Option<&'static str> {
    let dev = reference.starts_with("mcr.microsoft.com/devcontainers/");
    look_up(reference).filter(|_| dev)?.0.users.first().map(|(name, ..)| *name)
}

/// Returns an image's name without tag, digest and docker's own registry.
pub fn name(reference: &str) -> &str {
    let reference = reference.split('@').next().unwrap_or_default();
    let slash = reference.rfind('/').map_or(0, |at| at + 1);
    let end = reference[slash..].find(':').map_or(reference.len(), |at| slash + at);
    PREFIXES.iter().find_map(|prefix| reference[..end].strip_prefix(prefix)).unwrap_or(&reference[..end])
}

/// Returns what is known of an image reference, and its distribution. `None` for an image that is not in the table,
/// and for Windows.
pub fn look_up(reference: &str) -> Option<(&'static Image, Os)> {
    let (name, tag) = (name(reference), tag(reference));
    let image = IMAGES.iter().find(|image| image.names.contains(&name))?;
    if is_windows(reference) {
        return None;
    }
    Some((image, os(image, name, tag)))
}

/// Tells whether an image is surely for Windows.
pub fn is_windows(reference: &str) -> bool {
    let tag = tag(reference);
    reference.contains("microsoft.com/windows")
        || ["windows", "nanoserver", "ltsc20"].iter().any(|word| tag.contains(word))
}

/// Returns the tag of a reference, `""` if it has none.
fn tag(reference: &str) -> &str {
    let reference = reference.split('@').next().unwrap_or_default();
    let slash = reference.rfind('/').map_or(0, |at| at + 1);
    reference[slash..].split_once(':').map_or("", |(_, tag)| tag)
}

/// Returns the language of an image that brings one, and the numbers of its version as far as the tag tells them.
pub fn language(reference: &str) -> Option<(&'static str, Vec<u32>)> {
    let (name, tag) = (name(reference), tag(reference));
    let languages = [("python", "python"), ("node", "node"), ("ruby", "ruby"), ("golang", "go"), ("rust", "rust")];
    let (_, language) = languages.into_iter().find(|(image, _)| *image == name)?;
    let version = tag.split('-').next().unwrap_or_default();
    Some((language, version.split('.').map_while(|number| number.parse().ok()).collect()))
}

fn os(image: &Image, name: &str, tag: &str) -> Os {
    let words: Vec<&str> = tag.split('-').collect();
    let release = |version: &str| (!version.is_empty()).then(|| version.to_owned());
    for word in &words {
        if let Some(version) = word.strip_prefix("alpine") {
            return Os { family: "alpine", release: release(version) };
        }
        if DEBIANS.contains(word) {
            return Os { family: "debian", release: release(word) };
        }
        if let Some((_, version)) = UBUNTUS.iter().find(|(code, _)| code == word) {
            return Os { family: "ubuntu", release: release(version) };
        }
        if let Some(version) = word.strip_prefix("ubuntu") {
            return Os { family: "ubuntu", release: release(version) };
        }
        if ["ubi", "rocky", "centos", "fedora", "oracle", "al2", "amazoncorretto", "wolfi", "azurelinux", "ol"]
            .iter()
            .any(|other| word.starts_with(other))
        {
            return Os { family: "", release: None };
        }
    }
    let number = words[0];
    let release = match name {
        "debian" => {
            let major = number.split('.').next().unwrap_or_default();
            [("10", "buster"), ("11", "bullseye"), ("12", "bookworm"), ("13", "trixie")]
                .iter()
                .find(|(version, _)| *version == major)
                .and_then(|(_, code)| release(code))
        }
        "alpine" => release(&number.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")),
        "ubuntu" | "fedora" | "centos" | "rockylinux" | "almalinux" | "amazonlinux" => release(number),
        _ if name.contains("ubi8") => release("8"),
        _ if name.contains("ubi9") => release("9"),
        _ => None,
    };
    Os { family: image.os, release: release.filter(|release| release != "latest" && release != "edge") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_the_version_of_a_language() {
        let cases = [
            ("python:3.12-slim", Some(("python", vec![3, 12]))),
            ("docker.io/library/golang:1.22.4@sha256:00", Some(("go", vec![1, 22, 4]))),
            ("node:lts", Some(("node", vec![]))),
            ("ruby", Some(("ruby", vec![]))),
            ("python:3.13.0rc1", Some(("python", vec![3, 13]))),
            ("me/python:3.12", None),
            ("debian:12", None),
        ];
        for (image, expected) in cases {
            assert_eq!(language(image), expected, "{image}");
        }
    }

    #[test]
    fn tags_tell_the_distribution() {
        let cases = [
            ("python", "debian", None),
            ("python:3.12-slim-bookworm", "debian", Some("bookworm")),
            ("docker.io/library/python:3.12-alpine3.20@sha256:00", "alpine", Some("3.20")),
            ("node:22-alpine", "alpine", None),
            ("debian:12.5-slim", "debian", Some("bookworm")),
            ("alpine:3.20.1", "alpine", Some("3.20")),
            ("ubuntu:noble", "ubuntu", Some("24.04")),
            ("nvidia/cuda:12.4.1-devel-ubuntu22.04", "ubuntu", Some("22.04")),
            ("mcr.microsoft.com/dotnet/sdk:8.0-jammy", "ubuntu", Some("22.04")),
            ("fedora:41", "fedora", Some("41")),
            ("maven:3-amazoncorretto-21", "", None),
        ];
        for (image, family, release) in cases {
            let os = look_up(image).unwrap().1;
            assert_eq!((os.family, os.release.as_deref()), (family, release), "{image}");
        }
        for unknown in ["registry.example.com:5000/python", "me/python:3", "golang:1-windowsservercore", "", ":", "@"] {
            assert!(look_up(unknown).is_none(), "{unknown}");
        }
    }
}
