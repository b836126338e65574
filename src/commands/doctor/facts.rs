//! Gathers what doctor's rules judge: every docker call once, all side by side. It judges nothing.

use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use serde_json::{Map, Value};

use super::super::Context;
use super::{containers, exports, secrets};
use crate::answers::Answers;
use crate::budget::Budget;
use crate::builders::Builders;
use crate::checks::caches::{Held, Image, OwnedVolume, Records, Writer};
use crate::checks::engine::{self, Client, Engine, NamedBy, NoEngine, System};
use crate::checks::exports::CACHE_EXPORT_GROWS;
use crate::checks::project::{CACHE_IN_IMAGE, DEAD_CACHE_MOUNT, MOUNT_OWNER, Project};
use crate::checks::secrets::SECRET_IN_CACHE;
use crate::checks::{Check, Fact, Facts, NotRun, caches, live, mounts, versions};
use crate::cli::{Doctor, Selection};
use crate::docker::endpoint::{Source, variable};
use crate::docker::{BuilderRef, Cause, Container, Docker, DockerError, Info, Overview};
use crate::inventory::{self, Inventory, Look, Wanted};
use crate::model::{CacheRecord, Disk, build_is_buildx, major};
use crate::report::{self, Progress};
use crate::{image, ownership, place};

/// Asks docker and this host for everything that the rules want to know of them.
pub fn gather(context: &Context, checks: &[&Check], options: &Doctor, project: Fact<Project>) -> Facts {
    let mut facts = ask(context, checks, options, project);
    if let (true, Ok(project)) = (checks.iter().any(|check| check.name == CACHE_EXPORT_GROWS), &facts.project) {
        facts.caches.exports = exports::measure(options.path.as_deref().unwrap_or(Path::new(".")), project);
    }
    facts
}

fn ask(context: &Context, checks: &[&Check], options: &Doctor, mut project: Fact<Project>) -> Facts {
    let client = client(context);
    let named = !options.check.is_empty() || options.is_aimed();
    let docker = match &context.docker {
        Ok(docker) => docker,
        Err(error) => {
            let live = Err(NotRun::Skipped(error.to_string()));
            let engine = without_docker(client);
            return Facts { named, engine, caches: caches::Facts::default(), live, project };
        }
    };
    let wants = |name| checks.iter().any(|check| check.name == name);
    let wants_containers = live::WANTED_BY.iter().copied().any(wants);
    let locks = project.as_ref().ok().map(|project| project.files.locks);
    let written = project.as_ref().ok().filter(|_| wants(MOUNT_OWNER)).map(mounts::written).unwrap_or_default();
    // A build of its own for what is only a note: where it was asked for.
    let wants_versions_of_mounts = options.check.iter().any(|name| name == versions::STALE_VERSIONS);
    let answers = Answers::new(docker, &context.settings);
    let (engine, caches, live) = thread::scope(|scope| {
        let held = wants(caches::OVER_BUDGET).then(|| scope.spawn(|| held(&answers, options, locks)));
        let image = options.image.as_deref().filter(|_| wants(CACHE_IN_IMAGE));
        let image = image.map(|image| scope.spawn(|| image_of(docker, image, options)));
        // The advice counts for older docker commands only.
        let client_facts = scope.spawn(|| {
            let version = docker.client_version();
            let advice = match &version {
                Ok(version) if build_is_buildx(version) => Ok(None),
                _ => docker.advised_builder(),
            };
            (fact(version), fact(advice))
        });
        let builders = scope.spawn(|| answers.builders());
        let overview = answers.overview();
        if let Some(overview) = overview.as_ref().ok().filter(|_| !wants(engine::VOLUME_DRIVER_SILENT)) {
            inventory::left_out(overview).for_each(|gap| report::warning(&gap));
        }
        let of_overview = |known: fn(&Overview) -> Vec<String>| fact(overview.clone().map(known));
        let in_mounts = options.check.iter().any(|name| name == SECRET_IN_CACHE);
        let wants_records =
            [DEAD_CACHE_MOUNT, MOUNT_OWNER].into_iter().any(wants) || in_mounts || wants_versions_of_mounts;
        let skipped = |why: &str| Err(NotRun::Skipped(why.into()));
        let wanted = match &overview {
            _ if !wants_records => skipped("it was not asked for"),
            Err(_) => skipped("no engine answers"),
            // These measure all volumes to tell records, before 23.
            Ok(overview) if major(&overview.info.server_version) < 24 => {
                skipped("engines before 24 do not tell the ids of cache mounts")
            }
            Ok(_) => Ok(()),
        };
        let answers = &answers;
        let builders = scope.spawn(move || {
            // Most often docker's own builder is the one in use: it is asked while `docker buildx ls` runs.
            let own = wanted.map(|()| answers.build_cache());
            let builders = builders.join().unwrap_or_else(|_| Err(crashed()));
            let found = own.and_then(|own| records(docker, fact(builders.clone())?, own));
            let secrets = in_mounts.then(|| {
                let (found, reference) = found.as_ref().map_err(Clone::clone)?;
                secrets::in_mounts(reference, &found.records).map_err(failed)
            });
            let owners = match &found {
                Ok((found, builder)) if !written.is_empty() => {
                    ownership::of_mounts(builder, &found.records, written).map_err(failed)
                }
                _ => Ok(Vec::new()),
            };
            (builders, found, secrets, owners)
        });
        let live = match &overview {
            Ok(overview) if wants_containers => containers::ask(docker, overview, options, project.as_mut().ok()),
            Ok(_) => Err(NotRun::Skipped("it was not asked for".into())),
            Err(_) => Err(NotRun::Skipped("no engine answers".into())),
        };
        // Threads of their own: if one panics, the others go on.
        let (owned, told, secrets) = thread::scope(|scope| {
            let asked = |name| overview.as_ref().ok().filter(|_| wants(name));
            let owned = asked(caches::VOLUME_OWNER)
                .map(|overview| scope.spawn(|| ownership::ask(docker, overview, &options.volume)));
            let told = asked(versions::STALE_VERSIONS)
                .zip(project.as_ref().ok())
                .map(|(overview, project)| scope.spawn(|| super::versions::ask(docker, overview, options, project)));
            let secrets = asked(SECRET_IN_CACHE)
                .map(|overview| scope.spawn(|| secrets::in_volumes(docker, overview, &options.volume)));
            (owned.map(ScopedJoinHandle::join), told.map(ScopedJoinHandle::join), secrets.map(ScopedJoinHandle::join))
        });
        let (mut owned, mut told, mut secrets) =
            (looked(owned, &overview), looked(told, &overview), looked(secrets, &overview));
        if let Some(why) = live.as_ref().err().filter(|_| !options.container.is_empty()) {
            owned = Err(why.clone());
        }
        let (client_version, advised_builder) =
            client_facts.join().unwrap_or_else(|_| (fact(Err(crashed())), fact(Err(crashed()))));
        let (builders, records, in_mounts, mounts) =
            builders.join().unwrap_or_else(|_| (Err(crashed()), fact(Err(crashed())), None, Ok(Vec::new())));
        if let (Ok(secrets), Some(found)) = (&mut secrets, in_mounts) {
            match found {
                Ok(found) => {
                    secrets.holders.extend(found.holders);
                    secrets.gaps.extend(found.gaps);
                }
                Err(why) => secrets.unknown_mounts = Some(why),
            }
        }
        if let Ok(named) = told.as_mut()
            && wants_versions_of_mounts
            && options.volume.is_empty()
            && !named.used.is_empty()
        {
            let places = records.as_ref().map_err(Clone::clone).and_then(|(found, builder)| {
                super::versions::in_mounts(builder, &found.records, &named.used).map_err(failed)
            });
            match places {
                Ok(places) => named.places.extend(places),
                Err(why) => named.unknown_mounts = Some(why),
            }
        }
        let engine = engine::Facts {
            client,
            client_version,
            advised_builder,
            builders: fact(builders).map(|builders| {
                builders.no_buildx.is_none().then(|| engine::Builders {
                    list: builders.list.clone(),
                    of_docker_build: builders.of_docker_build.clone(),
                    of_buildx: builders.of_buildx.clone(),
                })
            }),
            volumes: of_overview(|overview| overview.volumes.iter().map(|volume| volume.name.clone()).collect()),
            silent_drivers: of_overview(|overview| overview.silent.clone()),
            containers: of_overview(|overview| overview.containers.iter().flat_map(names).collect()),
            disk: match &overview {
                Ok(overview) => disk(docker, &overview.info),
                Err(error) => Err(NotRun::Failed(error.to_string())),
            },
            daemon_json: overview.as_ref().ok().and_then(|overview| daemon_json(docker, &overview.info)),
            engine: match overview {
                Ok(Overview { info, .. }) => {
                    Ok(Engine { version: info.server_version.clone(), os_type: info.os_type.clone() })
                }
                Err(error) => Err(no_engine(&error)),
            },
        };
        let of_named = |owned: &OwnedVolume| {
            let is_named = |writer: &Writer| live.iter().flatten().any(|container| container.name == writer.container);
            options.container.is_empty() || owned.writers.iter().any(is_named)
        };
        let caches = caches::Facts {
            volumes: owned.map(|found| found.into_iter().map(|(_, owned)| owned).filter(of_named).collect()),
            names: told,
            secrets,
            exports: Vec::new(),
            mounts,
            held: match held {
                None => Err(NotRun::Skipped("it was not asked for".into())),
                Some(held) => joined(held),
            },
            image: image.map(joined),
            records: records.map(|(found, _)| found),
        };
        (engine, caches, live)
    });
    Facts { named, engine, caches, live, project }
}

/// Returns what the builder of `docker build` holds; `own` is what the engine's own holds.
fn records(
    docker: &Docker,
    builders: &Builders,
    own: Result<Vec<CacheRecord>, DockerError>,
) -> Fact<(Records, BuilderRef)> {
    let builder = builders.one(None).map_err(failed)?;
    let reference = builders.reference(builder);
    let records = if reference.is_of_context(&docker.endpoint.context) { own } else { reference.records() };
    Ok((Records { builder: builder.name.clone(), records: fact(records)? }, reference))
}

/// Measures what counts against the budget: that of the user, else that of the project.
fn held(answers: &Answers<'_>, options: &Doctor, locks: Option<usize>) -> Fact<Held> {
    let (budget, locks) = match (options.budget, locks) {
        (Some(budget), _) => (budget, None),
        (None, Some(locks)) => (Budget::of_project(locks), Some(locks)),
        (None, None) => {
            return Err(NotRun::Skipped(
                "there is no project here to tell a budget from; give one with `--budget`".into(),
            ));
        }
    };
    let volumes = options.volume.clone();
    let look = Look {
        volumes: true,
        mounts: volumes.is_empty(),
        layers: volumes.is_empty() && locks.is_none(),
        ..Look::default()
    };
    let selection = Selection { volume: volumes.clone(), builder: variable("BUILDX_BUILDER"), ..Selection::default() };
    let wanted = Wanted { selection: &selection, paths: &[], exact: None };
    let found = inventory::collect_in(answers, wanted, look, &mut |_, _| ()).map_err(failed)?;
    let Inventory { caches, unmeasured, gaps, .. } = found;
    Ok(Held { caches, unmeasured, gaps, budget, locks, volumes })
}

fn image_of(docker: &Docker, name: &str, options: &Doctor) -> Fact<Image> {
    let mut progress = Progress::new("Reading the image", options.telling());
    let read = image::read(docker, name, &mut |files, bytes| progress.update(files, bytes));
    read.map_err(failed)
}

fn names(container: &Container) -> impl Iterator<Item = String> {
    container.names.iter().map(|name| name.trim_start_matches('/').to_string())
}

/// Returns what a thread found out. One that panicked has failed, and the others go on.
fn joined<T>(thread: ScopedJoinHandle<'_, Fact<T>>) -> Fact<T> {
    thread.join().unwrap_or_else(|_| Err(NotRun::Failed(crashed().to_string())))
}

/// A builder that sleeps has not failed.
fn fact<T>(answer: Result<T, DockerError>) -> Fact<T> {
    answer.map_err(|error| match error.cause {
        Cause::Asleep(_) => NotRun::Skipped(error.to_string()),
        _ => NotRun::Failed(error.to_string()),
    })
}

fn failed(error: anyhow::Error) -> NotRun {
    NotRun::Failed(format!("{error:#}"))
}

/// Returns what a look into volumes came to, if there was one.
fn looked<T>(answer: Option<thread::Result<anyhow::Result<T>>>, overview: &Result<&Overview, DockerError>) -> Fact<T> {
    match (answer, overview) {
        (Some(answer), _) => answer.unwrap_or_else(|_| Err(crashed().into())).map_err(failed),
        (None, Err(error)) => Err(NotRun::Failed(error.to_string())),
        (None, Ok(_)) => Err(NotRun::Skipped("it was not asked for".into())),
    }
}

fn crashed() -> DockerError {
    DockerError::new("docker", Cause::Garbage("reading it crashed; please report it".into()))
}

/// Returns the facts of a host that has no docker command.
fn without_docker(client: Client) -> engine::Facts {
    let none = || NotRun::Skipped("there is no docker command".into());
    engine::Facts {
        client,
        client_version: Err(none()),
        engine: Err(NoEngine::NoDocker),
        advised_builder: Err(none()),
        builders: Err(none()),
        volumes: Err(none()),
        silent_drivers: Err(none()),
        containers: Err(none()),
        disk: Err(none()),
        daemon_json: None,
    }
}

/// Sorts the failure of the first question to the engine.
fn no_engine(error: &DockerError) -> NoEngine {
    match &error.cause {
        Cause::NoDocker => NoEngine::NoDocker,
        Cause::Unreachable(why) if why.starts_with("permission denied") => NoEngine::PermissionDenied(why.clone()),
        Cause::Unreachable(why) => NoEngine::Dead(why.clone()),
        Cause::TimedOut(_) => NoEngine::Hangs(error.to_string()),
        Cause::NoContext(_) => NoEngine::NoContext,
        _ => NoEngine::Unclear(error.to_string()),
    }
}

fn client(context: &Context) -> Client {
    let endpoint = &context.endpoint;
    Client {
        docker_buildkit: variable("DOCKER_BUILDKIT"),
        buildx_builder: variable("BUILDX_BUILDER"),
        builder_alias: context.settings.builder_alias.clone(),
        context: endpoint.context.clone(),
        host: endpoint.host.clone(),
        named_by: match endpoint.source {
            Source::Flag => NamedBy::Flag,
            Source::Variable(name) => NamedBy::Variable(name),
            Source::Config => NamedBy::Config,
            Source::Default => NamedBy::Default,
        },
        system: system(),
    }
}

fn system() -> System {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches(['"', '\'']).to_string()
    };
    let exists = |path: &str| Path::new(path).exists();
    System {
        os: std::env::consts::OS.into(),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64".into(),
            "aarch64" => "arm64".into(),
            other => other.into(),
        },
        family: format!("{} {}", field("ID"), field("ID_LIKE")).trim().into(),
        version: field("VERSION_ID"),
        docker_packages: exists("/var/lib/dpkg/info/docker-ce-cli.list") || exists("/etc/yum.repos.d/docker-ce.repo"),
        systemd: exists("/run/systemd/system"),
    }
}

/// Returns true if the engine runs on this host. Its directory tells only root; for others the same socket, host name and
/// kernel must do, which a virtual machine or container does not share.
fn is_here(docker: &Docker, info: &Info) -> bool {
    let system = rustix::system::uname();
    let same = system.nodename().to_string_lossy() == info.name
        && system.release().to_string_lossy() == info.kernel_version
        && docker.endpoint.host.as_deref().is_some_and(|host| host.starts_with("unix://"));
    same || place::is_here(docker, info)
}

fn disk(docker: &Docker, info: &Info) -> Fact<Disk> {
    let path = &info.docker_root_dir;
    if !is_here(docker, info) {
        return Err(NotRun::Skipped("the engine does not run on this host, as far as can be told".into()));
    }
    place::disk(path).map_err(|error| NotRun::Failed(format!("cannot read the file system of `{path}`: {error}")))
}

/// Returns the configuration of the engine, if it is the one of this host that lives in the usual place: the directory that
/// the file names, or docker's default, is the engine's.
fn daemon_json(docker: &Docker, info: &Info) -> Option<Map<String, Value>> {
    if !is_here(docker, info) {
        return None;
    }
    let file: Map<String, Value> = match std::fs::read(place::DAEMON_JSON) {
        Ok(text) => serde_json::from_slice(&text).ok()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(_) => return None,
    };
    let root = file.get("data-root").map_or(Some(place::DATA_ROOT), Value::as_str);
    (root == Some(info.docker_root_dir.as_str())).then_some(file)
}
