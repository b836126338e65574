//! Tests of bundles in a registry: what is pushed comes back, unchanged content does not move, and the tag is always whole.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use serde_json::Value;

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::registry::Registry;
use crate::support::world::{Tree, assert_same, write_files};
use crate::support::{Engine, Generation};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Reads the answer of a command that must succeed.
#[track_caller]
fn json(run: Run) -> Value {
    let run = run.ok();
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

/// Returns bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    noise
}

fn settle() {
    thread::sleep(std::time::Duration::from_millis(60));
}

const BUILD: &str = "RUN --mount=type=cache,id=pip,target=/root/.cache/pip mkdir -p /root/.cache/pip/http && \
    echo wheel > /root/.cache/pip/http/w && touch -d @86400 /root/.cache/pip/http/w\nRUN head -c 99999 /dev/urandom > /layer";

#[test]
fn what_is_pushed_comes_back_elsewhere_and_unchanged_content_does_not_move() {
    let engine = Engine::start(Generation::V28Containerd);
    let registry = Registry::beside(&engine);
    let root = engine.volume("project-cache", &[("pip/http/a", "a"), ("npm/_cacache/index-v5/x", "x")]);
    fs::write(root.join("pip/large"), noise(3 << 20)).unwrap();
    let context = engine.context(BUILD);
    let context_text = text(context.path());
    engine.docker(&["build", &context_text]);
    settle();
    let place = format!("type=registry,ref={}/team/cache:main", registry.address);
    let export = || json(registry.cache(&engine, &["export", "--dest", &place, &context_text, "--format", "json"]));
    let first = export();
    assert_eq!(first["entries"].as_array().unwrap().len(), 4, "{first}");
    assert!(first["bytes_written"].as_u64() > Some(3 << 20), "{first}");

    let moved = || (registry.count("PUT", "/blobs/"), registry.count("PATCH", "/"));
    let (before, tags) = (moved(), registry.count("PUT", "/manifests/main "));
    assert!(before.0 > 3 && tags == 1, "{before:?}");
    let second = export();
    assert_eq!((second["bytes_written"].as_u64(), &second["entries"]), (Some(0), &first["entries"]), "{second}");
    assert_eq!(moved(), before, "a push of unchanged content moves no blobs");
    assert_eq!(registry.count("PUT", "/manifests/main "), tags);
    fs::write(root.join("npm/_cacache/index-v5/x"), "y").unwrap();
    settle();
    let third = export();
    assert!(third["bytes_written"].as_u64() < Some(100_000), "{third}");
    registry.collect();
    registry.cache(&engine, &["verify", &place]).ok();

    // Another machine of another generation, in the engine's network only for the registry.
    let other = Engine::start(Generation::V26);
    registry.cache(&other, &["import", "--src", &place, "--volume", "project-cache"]).ok();
    assert_same(&Tree::read(&root), &Tree::read(&other.mountpoint("project-cache")));
    let same = Engine::start(Generation::V28Containerd);
    let imported = json(registry.cache(&same, &["import", "--src", &place, &context_text, "--format", "json"]));
    assert_eq!(imported["steps"]["cached"], 3, "{imported}");
    drop(registry);
    // What was imported is really there: the registry is gone, and the last step must run on the layers before it.
    let file = context.path().join("Dockerfile");
    let busted = fs::read_to_string(&file).unwrap() + "RUN wc -c /layer && true\n";
    fs::write(&file, busted).unwrap();
    let run = same.docker(&["build", "--progress", "plain", &context_text]);
    assert!(run.stderr.matches("CACHED").count() == 3 && run.stderr.contains("99999 /layer"), "{run}");
    let run =
        same.build("RUN --mount=type=cache,id=pip,target=/m echo found $(cat /m/http/w) $(stat -c %Y /m/http/w)", &[]);
    assert!(run.stderr.contains("found wheel 86400"), "{run}");
}

#[test]
fn another_registry_takes_and_gives_all_of_it_and_is_mended_after_it_lost_something() {
    let engine = Engine::start(Generation::V28Containerd);
    let registry = Registry::of_crane(&engine);
    let root = engine.volume("project-cache", &[("pip/http/a", "a"), ("npm/_cacache/index-v5/x", "x")]);
    let context = engine.context(BUILD);
    let context_text = text(context.path());
    engine.docker(&["build", &context_text]);
    settle();
    let place = format!("type=registry,ref={}/deep/team/cache:main", registry.address);
    let export = || json(registry.cache(&engine, &["export", "--dest", &place, &context_text, "--format", "json"]));
    let first = export();
    assert_eq!(first["entries"].as_array().unwrap().len(), 4, "{first}");
    assert_eq!(export()["bytes_written"], 0);
    let npm = first["entries"].as_array().unwrap().iter().find(|entry| entry["language"] == "node").unwrap();
    let lost = format!("{}/deep/team/cache@{}", registry.address, npm["digest"].as_str().unwrap());
    registry.crane(&["delete", &lost]).ok();
    assert_eq!(registry.cache(&engine, &["verify", &place]).code, 1);
    export();
    registry.cache(&engine, &["verify", &place]).ok();

    let other = Engine::start(Generation::V28Containerd);
    let imported = json(registry.cache(&other, &["import", "--src", &place, &context_text, "--format", "json"]));
    assert_eq!(imported["steps"]["cached"], 3, "{imported}");
    assert_same(&Tree::read(&root), &Tree::read(&other.mountpoint("project-cache")));
}

#[test]
fn what_is_deleted_of_one_bundle_is_collected_and_takes_nothing_of_another_with_it() {
    let engine = Engine::start(Generation::V28Containerd);
    let registry = Registry::beside(&engine);
    let root = engine.volume("pip-cache", &[("a", "a")]);
    fs::write(root.join("large"), noise(1 << 20)).unwrap();
    let context = engine.context(BUILD);
    let context_text = text(context.path());
    let place = |tag: &str| format!("type=registry,ref={}/team/cache:{tag}", registry.address);
    let export = |tag: &str| {
        json(registry.cache(&engine, &["export", "--dest", &place(tag), &context_text, "--format", "json"]))
    };
    let first = export("main");
    let entry = first["entries"].as_array().unwrap().iter().find(|entry| entry["kind"] == "volume").unwrap();
    let replaced = format!("team/cache@{}", entry["digest"].as_str().unwrap());
    assert!(registry.manifest(&replaced).is_some());
    fs::write(root.join("large"), noise(1 << 20)).unwrap();
    settle();
    // Twice, since the first one fills the mount.
    (0..2).for_each(|_| drop(export("main")));
    export("old");
    let before = registry.bytes();
    registry.collect();
    assert!(registry.bytes() + (1 << 20) <= before, "what the tag named before is not collected");
    assert_eq!(registry.manifest(&replaced), None);

    let before = registry.cache(&engine, &["verify", &place("main"), "--format", "json"]).ok().stdout;
    let mut tags = registry.tags("team/cache");
    // They name the same, and go with it.
    tags.retain(|tag| !tag.ends_with(".next"));
    assert_eq!(tags.len(), 8, "{tags:?}");
    tags.iter().filter(|tag| tag.starts_with("old")).for_each(|tag| registry.delete(&format!("team/cache:{tag}")));
    registry.collect();
    assert_eq!(registry.tags("team/cache").len(), 7);
    let run = registry.cache(&engine, &["import", "--src", &place("old")]);
    assert!(run.code == 1 && run.stderr.contains("there is no 127.0.0.1:"), "{run}");
    assert_eq!(registry.cache(&engine, &["verify", &place("main"), "--format", "json"]).ok().stdout, before);
    let other = Engine::start(Generation::V28Containerd);
    let import = ["import", "--src", &place("main"), &context_text, "--format", "json"];
    let imported = json(registry.cache(&other, &import));
    assert_eq!(imported["steps"]["cached"], 3, "{imported}");
    assert_same(&Tree::read(&root), &Tree::read(&other.mountpoint("pip-cache")));

    // One entry alone: it is told, and the next export has it again.
    let entry = tags.iter().find(|tag| tag.starts_with("main-volume")).unwrap();
    registry.delete(&format!("team/cache:{entry}"));
    registry.collect();
    let run = registry.cache(&other, &import);
    assert!(run.code == 1 && run.stderr.contains("does not have any more\nhint: export again"), "{run}");
    registry.cache(&other, &["import", "--src", &place("main"), "--mount", "pip"]).ok();
    export("main");
    json(registry.cache(&other, &import));
    assert_same(&Tree::read(&root).timeless(), &Tree::read(&other.mountpoint("pip-cache")).timeless());

    // The tag of the layers is good for buildx alone.
    engine.docker(&["buildx", "prune", "--all", "--force"]);
    let layers = tags.iter().find(|tag| tag.starts_with("main-layers")).unwrap();
    let from = format!("--cache-from=type=registry,ref={}/team/cache:{layers}", registry.address);
    let run = engine.docker(&["buildx", "build", "--progress=plain", &from, &context_text]);
    // Of a step whose layer is fetched, buildx may tell that alone.
    let taken = run
        .stderr
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, told)| *told == "CACHED" || told.starts_with("sha256:"));
    assert_eq!(taken.map(|(step, _)| step).collect::<HashSet<_>>().len(), 3, "{run}");
}

#[test]
fn what_a_registry_has_damaged_stops_no_export_and_is_sent_again_once_it_is_removed() {
    let engine = Engine::start(Generation::V28);
    let registry = Registry::beside(&engine);
    for (volume, content) in [("pip-cache", "a"), ("npm-cache", "b")] {
        engine.volume(volume, &[("a", content)]);
    }
    let place = format!("type=registry,ref={}/team/cache:main", registry.address);
    let export = || json(registry.cache(&engine, &["export", "--dest", &place, "--format", "json"]));
    export();
    let blobs = |volume: &str| {
        let tags = registry.tags("team/cache");
        let tag = tags.iter().find(|tag| tag.starts_with(&format!("main-volume-{volume}"))).unwrap();
        let manifest: Value = serde_json::from_str(&registry.manifest(&format!("team/cache:{tag}")).unwrap()).unwrap();
        let blobs = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]).cloned();
        blobs.map(|blob| blob["digest"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (one, other) in blobs("pip-cache").iter().zip(&blobs("npm-cache")) {
        registry.damage(one);
        registry.damage(other);
        export();
        let run = registry.cache(&engine, &["import", "--src", &place]);
        assert!(run.code == 1 && run.stderr.contains("is damaged in the registry"), "{run}");
        let run = registry.cache(&engine, &["verify", &place]);
        assert!([one, other].iter().all(|digest| run.stderr.contains(*digest)), "all is told: {run}");
        // What is printed is what helps.
        let commands: Vec<&str> = run.stderr.split('`').filter_map(|text| text.strip_prefix("skopeo ")).collect();
        assert_eq!(commands.len(), 2, "{run}");
        commands.iter().for_each(|words| drop(registry.skopeo(&words.split(' ').collect::<Vec<_>>()).ok()));
        registry.collect();
        export();
        registry.cache(&engine, &["verify", &place]).ok();
    }
    // A manifest: the registry answers that it failed, and answers for all else.
    let entries = json(registry.cache(&engine, &["verify", &place, "--format", "json"]));
    registry.damage(entries["entries"][0]["digest"].as_str().unwrap());
    for arguments in [&["verify", &place][..], &["import", "--src", &place]] {
        let run = registry.cache(&engine, arguments);
        assert!(run.code == 1 && run.stderr.contains("\nhint: export to another tag"), "{run}");
        assert_eq!(run.stdout.matches(" ok\n").count(), usize::from(arguments[0] == "verify"), "{run}");
    }
    let place = place.replace(":main", ":again");
    json(registry.cache(&engine, &["export", "--dest", &place, "--format", "json"]));
    registry.cache(&engine, &["verify", &place]).ok();
}

#[test]
fn a_login_is_docker_s_own_and_a_wrong_one_is_told() {
    let engine = Engine::start(Generation::V28);
    let registry = Registry::with_login(&engine);
    engine.volume("pip-cache", &[("a", "a")]);
    let place = format!("type=registry,ref={}/team/cache:main", registry.address);
    let export = ["export", "--dest", &place];
    let config = engine.config().join("config.json");
    let hint = format!("hint: `docker login {}`", registry.address);
    let run = registry.cache(&engine, &export);
    assert!(run.code == 1 && run.stderr.contains("wants a login") && run.stderr.contains(&hint), "{run}");

    // me:wrong
    fs::write(&config, format!(r#"{{"auths":{{"{}":{{"auth":"bWU6d3Jvbmc="}}}}}}"#, registry.address)).unwrap();
    let run = registry.cache(&engine, &export);
    assert!(run.code == 1 && run.stderr.contains("wrong or has expired") && run.stderr.contains(&hint), "{run}");
    assert!(!run.stderr.contains("d3Jvbmc"), "{run}");

    // A helper is asked as docker asks it.
    let bin = engine.folder().join("bin");
    let answer = r#"{"ServerURL":"x","Username":"me","Secret":"right"}"#;
    let script = format!("#!/bin/sh\n[ \"$1 $(cat)\" = 'get {}' ] && echo '{answer}'\n", registry.address);
    write_files(&bin, &[("docker-credential-test", &script)]);
    Run::of(std::process::Command::new("chmod").arg("755").arg(bin.join("docker-credential-test"))).ok();
    fs::write(&config, format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, registry.address)).unwrap();
    let path = format!("{}:{}", bin.display(), engine.generation().suite().path());
    for arguments in [&export[..], &["verify", &place]] {
        let run = Run::of(registry.cache_command(&engine, arguments).env("PATH", &path));
        assert_eq!(run.code, 0, "{run}");
    }
}

/// Hands on connections until so many bytes have gone to the registry; then it hangs up, and is gone.
fn dying(registry: &str, after: usize) -> String {
    between(registry, after, false)
}

/// Hands on connections; when so many bytes have gone to the registry, it waits for some seconds once.
fn pausing(registry: &str, after: usize) -> String {
    between(registry, after, true)
}

fn between(registry: &str, after: usize, goes_on: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let registry = registry.to_owned();
    thread::spawn(move || {
        let left = std::sync::Arc::new(std::sync::Mutex::new(after));
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&registry).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut from, &mut to));
            let left = left.clone();
            thread::spawn(move || hand_on(client, server, &left, goes_on));
        }
    });
    address
}

fn hand_on(mut client: TcpStream, mut server: TcpStream, left: &std::sync::Mutex<usize>, goes_on: bool) {
    let mut bytes = [0; 1 << 14];
    loop {
        let read = client.read(&mut bytes).unwrap_or(0);
        let mut left = left.lock().unwrap();
        if *left < read {
            thread::sleep(std::time::Duration::from_secs(if goes_on { 7 } else { 0 }));
            *left = if goes_on { usize::MAX } else { 0 };
        }
        // A connection that is just over takes nothing from the others.
        if read == 0 || *left < read || server.write_all(&bytes[..read]).is_err() {
            let _ = (client.shutdown(std::net::Shutdown::Both), server.shutdown(std::net::Shutdown::Both));
            return;
        }
        *left -= read;
    }
}

#[test]
fn a_registry_that_dies_leaves_the_last_tag_and_two_pushers_lose_nothing() {
    let engine = Engine::start(Generation::V26);
    let registry = Registry::on_this_machine(&engine.folder().join("registry"));
    let root = engine.volume("pip-cache", &[("a", "a")]);
    engine.volume("npm-cache", &[("b", "b")]);
    let place = |address: &str| format!("type=registry,ref={address}/team/cache:main");
    let sound = place(&registry.address);
    engine.cache(&["export", "--dest", &sound, "--volume", "pip-cache"]).ok();
    let before = engine.cache(&["verify", &sound, "--format", "json"]).ok().stdout;

    fs::write(root.join("large"), noise(8 << 20)).unwrap();
    let run = engine.cache(&["export", "--dest", &place(&dying(&registry.address, 3 << 20)), "--volume", "pip-cache"]);
    assert!(run.code == 1 && run.stderr.contains("cannot reach 127.0.0.1:"), "{run}");
    assert_eq!(engine.cache(&["verify", &sound, "--format", "json"]).ok().stdout, before);
    assert_eq!(fs::read_dir(engine.folder().join("tmp")).unwrap().count(), 0);

    let children = ["pip-cache", "npm-cache"]
        .map(|volume| engine.cache_command(&["export", "-q", "--dest", &sound, "--volume", volume]).spawn().unwrap());
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    let other = Engine::start(Generation::V20);
    other.cache(&["import", "--src", &sound]).ok();
    for volume in ["pip-cache", "npm-cache"] {
        assert_same(&Tree::read(&engine.mountpoint(volume)), &Tree::read(&other.mountpoint(volume)));
    }

    // A tag that is something else is not written over, and one that does not exist is told.
    let run = engine.cache(&["import", "--src", &sound.replace(":main", ":other")]);
    assert!(run.code == 1 && run.stderr.contains("there is no 127.0.0.1:"), "{run}");
    let image = format!("docker://{}/team/cache", registry.address);
    let index: Value = serde_json::from_str(
        &registry.skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("{image}:main")]).ok().stdout,
    )
    .unwrap();
    let tree = format!("{image}@{}", index["manifests"][0]["digest"].as_str().unwrap());
    registry
        .skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &tree, &format!("{image}:image")])
        .ok();
    let run = engine.cache(&["export", "--dest", &sound.replace(":main", ":image"), "--volume", "pip-cache"]);
    assert!(run.code == 1 && run.stderr.contains("something else than a bundle"), "{run}");
}

#[test]
fn a_push_that_stops_before_the_tag_leaves_all_of_the_last_one_to_a_registry_that_collects() {
    let engine = Engine::start(Generation::V28Containerd);
    let registry = Registry::beside(&engine);
    let root = engine.volume("pip-cache", &[("a", "a")]);
    let context = engine.context("RUN date +%N > /layer");
    let context_text = text(context.path());
    let place = format!("type=registry,ref={}/team/cache:main", registry.address);
    let export = ["export", "--dest", &place, &context_text];
    registry.cache(&engine, &export).ok();
    let pushed = || registry.cache(&engine, &["verify", &place, "--format", "json"]).ok().stdout;
    let before = pushed();
    let change = |content: &str| {
        fs::write(root.join("a"), content).unwrap();
        fs::write(context.path().join("Dockerfile"), format!("FROM scratch\nCOPY Dockerfile /{content}\n")).unwrap();
        settle();
    };
    // Twice: the second one comes upon what the first one left.
    for content in ["b", "c"] {
        change(content);
        registry.with_stuck("team/cache", "main", || {
            let run = registry.cache(&engine, &export);
            assert!(run.code == 1 && run.stderr.contains("500"), "{run}");
        });
        registry.collect();
        assert_eq!(pushed(), before);
    }
    // It stops after the tag, and the next one before it.
    registry.with_stuck("team/cache", "main-volume-pip-cache-pip", || {
        assert_eq!(registry.cache(&engine, &export).code, 1);
    });
    registry.collect();
    let before = pushed();
    change("d");
    registry.with_stuck("team/cache", "main", || assert_eq!(registry.cache(&engine, &export).code, 1));
    registry.collect();
    assert_eq!(pushed(), before);
    let other = Engine::start(Generation::V28Containerd);
    registry.cache(&other, &["import", "--src", &place, &context_text]).ok();
    assert_eq!(fs::read_to_string(other.mountpoint("pip-cache").join("a")).unwrap(), "c");
}

/// Hands on connections, and runs something once before the tag `main` is written.
fn before_the_tag(registry: &str, run: impl FnOnce() + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let registry = registry.to_owned();
    thread::spawn(move || {
        let run = std::sync::Arc::new(std::sync::Mutex::new(Some(run)));
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut server = TcpStream::connect(&registry).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut from, &mut to));
            let run = run.clone();
            thread::spawn(move || {
                let mut bytes = [0; 1 << 14];
                loop {
                    let read = client.read(&mut bytes).unwrap_or(0);
                    if bytes[..read].starts_with(b"PUT /v2/team/cache/manifests/main ")
                        && let Some(run) = run.lock().unwrap().take()
                    {
                        run();
                    }
                    if read == 0 || server.write_all(&bytes[..read]).is_err() {
                        let _ = server.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn of_two_that_push_one_entry_the_last_stays_when_the_registry_collects() {
    let engine = std::sync::Arc::new(Engine::start(Generation::V26));
    let registry = Registry::on_this_machine(&engine.folder().join("registry"));
    let root = engine.volume("pip-cache", &[("a", "a")]);
    let place = |address: &str| format!("type=registry,ref={address}/team/cache:main");
    let sound = place(&registry.address);
    engine.cache(&["export", "--dest", &sound]).ok();

    fs::write(root.join("a"), "of the one that is late").unwrap();
    settle();
    let late = before_the_tag(&registry.address, {
        let (engine, root, sound) = (engine.clone(), root.clone(), sound.clone());
        move || {
            fs::write(root.join("a"), "of the other").unwrap();
            settle();
            engine.cache(&["export", "--dest", &sound]).ok();
        }
    });
    engine.cache(&["export", "--dest", &place(&late)]).ok();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "of the other");
    registry.collect();
    engine.cache(&["verify", &sound]).ok();
    engine.cache(&["import", "--src", &sound, "--replace"]).ok();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "of the one that is late");
}

#[test]
fn tags_of_others_are_not_written_over() {
    let engine = Engine::start(Generation::V26);
    let registry = Registry::on_this_machine(&engine.folder().join("registry"));
    for volume in ["pip-cache", "npm-cache"] {
        engine.volume(volume, &[("a", "a")]);
    }
    let place = |tag: &str| format!("type=registry,ref={}/team/cache:{tag}", registry.address);
    let bundle = "z-volume-npm-cache-npm";
    engine.cache(&["export", "--dest", &place(bundle), "--volume", "pip-cache"]).ok();
    let entry = format!("docker://{}/team/cache:{bundle}-volume-pip-cache-pip", registry.address);
    for image in ["main-volume-npm-cache-npm", "old-volume-npm-cache-npm.next"] {
        let image = format!("docker://{}/team/cache:{image}", registry.address);
        registry.skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &entry, &image]).ok();
    }
    let tags = registry.tags("team/cache");
    for tag in ["z", "main", "old"] {
        let run = engine.cache(&["export", "--dest", &place(tag)]);
        let hint = format!("something else than an entry of this bundle\nhint: name another tag, such as {tag}-cache");
        assert!(run.code == 1 && run.stderr.contains(&hint), "{run}");
    }
    assert_eq!(registry.tags("team/cache"), tags);
    engine.cache(&["verify", &place(bundle)]).ok();
    engine.cache(&["export", "--dest", &place("z-cache")]).ok();
}

#[test]
fn certificates_of_docker_are_used_and_the_registry_is_not_trusted_without() {
    let engine = Engine::start(Generation::V28);
    let registry = Registry::with_tls(&engine);
    let root = engine.volume("pip-cache", &[("a", "a")]);
    let place = format!("type=registry,ref={}/team/cache:main", registry.address);
    let export = ["export", "--dest", &place];
    let (made, certs) = (engine.folder().join("certificates"), engine.config().join("certs.d").join(&registry.address));
    let run = registry.cache(&engine, &export);
    let hint = format!("/etc/docker/certs.d/{}/ca.crt", registry.address);
    assert!(run.code == 1 && run.stderr.contains("safely") && run.stderr.contains(&hint), "{run}");

    fs::create_dir_all(&certs).unwrap();
    fs::copy(made.join("ca.crt"), certs.join("ca.crt")).unwrap();
    let run = registry.cache(&engine, &export);
    let hint = format!("/etc/docker/certs.d/{}/client.cert", registry.address);
    assert!(run.code == 1 && run.stderr.contains(&hint), "the registry wants to know its clients: {run}");
    fs::copy(made.join("tls.crt"), certs.join("client.cert")).unwrap();
    let run = registry.cache(&engine, &export);
    assert!(run.code == 1 && run.stderr.contains("client.cert needs"), "{run}");
    fs::copy(made.join("tls.key"), certs.join("client.key")).unwrap();
    registry.cache(&engine, &export).ok();

    let before = Tree::read(&root);
    fs::remove_file(root.join("a")).unwrap();
    registry.cache(&engine, &["import", "--src", &place]).ok();
    assert_same(&before, &Tree::read(&root));
}

/// Gives tokens that a registry takes for six seconds, to the user `me` with the password `right` and for the refresh token
/// `mine`: as many as `left` says. Returns its address.
fn token_server(certificates: &Path, left: std::sync::Arc<std::sync::Mutex<usize>>) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let at = |name: &str| certificates.join(name);
    let pem = fs::read_to_string(at("tls.crt")).unwrap();
    let der: String = pem.lines().filter(|line| !line.contains("----")).collect();
    let key = text(&at("tls.key"));
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut bytes = [0; 1 << 14];
            let mut asked = String::new();
            while !asked.contains("\r\n\r\n") || (asked.starts_with("POST") && !asked.contains("refresh_token=")) {
                match stream.read(&mut bytes).unwrap_or(0) {
                    0 => break,
                    read => asked.push_str(&String::from_utf8_lossy(&bytes[..read])),
                }
            }
            let login = format!("Basic {}", STANDARD.encode("me:right"));
            let known = asked.contains(&login) || asked.contains("refresh_token=mine");
            let mut left = left.lock().unwrap();
            let answer = if known && *left > 0 && asked.contains("%3Ateam%2Fcache%3Apull") {
                *left -= 1;
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
                let head = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
                // The registry allows clocks to differ by a minute.
                let claims = serde_json::json!({"iss": "test", "sub": "me", "aud": "team", "exp": now - 54, "nbf": now - 99,
                    "iat": now - 99, "jti": "1", "access": [{"type": "repository", "name": "team/cache",
                    "actions": ["pull", "push"]}]});
                let signed = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
                let mut sign = std::process::Command::new("openssl");
                sign.args(["dgst", "-sha256", "-sign", &key]).stdin(std::process::Stdio::piped());
                let mut sign = sign.stdout(std::process::Stdio::piped()).spawn().unwrap();
                sign.stdin.take().unwrap().write_all(signed.as_bytes()).unwrap();
                let signature = URL_SAFE_NO_PAD.encode(sign.wait_with_output().unwrap().stdout);
                let body = format!(r#"{{"access_token":"{signed}.{signature}"}}"#);
                format!("200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            } else {
                "401 Unauthorized\r\nContent-Length: 0\r\n\r\n".into()
            };
            let _ = stream
                .write_all(format!("HTTP/1.1 {}", answer.replacen("\r\n", "\r\nConnection: close\r\n", 1)).as_bytes());
        }
    });
    address
}

#[test]
fn tokens_are_renewed_in_the_middle_of_a_push_and_a_login_that_ends_there_leaves_the_last_tag() {
    let engine = Engine::start(Generation::V28);
    let certificates = engine.folder().join("certificates");
    crate::support::registry::authority(&certificates);
    let left = std::sync::Arc::new(std::sync::Mutex::new(100));
    let realm = token_server(&certificates, left.clone());
    let registry = Registry::with_tokens(&engine.folder().join("registry"), &realm, &certificates);
    let root = engine.volume("pip-cache", &[("a", "a")]);
    let place = |address: &str| format!("type=registry,ref={address}/team/cache:main");
    let sound = place(&registry.address);
    let config = engine.config().join("config.json");
    let log_in = |address: &str| {
        let auths =
            serde_json::json!({address: {"auth": "bWU6cmlnaHQ="}, registry.address.as_str(): {"auth": "bWU6cmlnaHQ="}});
        fs::write(&config, serde_json::json!({"auths": auths}).to_string()).unwrap();
    };
    log_in("x.test");
    engine.cache(&["export", "--dest", &sound]).ok();

    fs::write(root.join("large"), noise(8 << 20)).unwrap();
    let slow = pausing(&registry.address, 3 << 20);
    log_in(&slow);
    let before = *left.lock().unwrap();
    engine.cache(&["export", "--dest", &place(&slow)]).ok();
    assert!(before - *left.lock().unwrap() >= 2);
    let pushed = engine.cache(&["verify", &sound, "--format", "json"]).ok().stdout;

    fs::write(root.join("more"), noise(8 << 20)).unwrap();
    let slow = pausing(&registry.address, 3 << 20);
    log_in(&slow);
    *left.lock().unwrap() = 1;
    let run = engine.cache(&["export", "--dest", &place(&slow)]);
    assert!(run.code == 1 && run.stderr.contains("has expired\nhint: `docker login"), "{run}");
    *left.lock().unwrap() = 100;
    assert_eq!(engine.cache(&["verify", &sound, "--format", "json"]).ok().stdout, pushed);

    // An identity token, as `docker login` leaves it with a helper for all registries.
    let bin = engine.folder().join("bin");
    let script = "#!/bin/sh\necho '{\"Username\":\"<token>\",\"Secret\":\"mine\"}'\n";
    write_files(&bin, &[("docker-credential-all", script)]);
    Run::of(std::process::Command::new("chmod").arg("755").arg(bin.join("docker-credential-all"))).ok();
    fs::write(&config, r#"{"credsStore":"all"}"#).unwrap();
    let path = format!("{}:{}", bin.display(), engine.generation().suite().path());
    for arguments in [["export", "--dest", &sound], ["import", "--src", &sound]] {
        let run = Run::of(engine.cache_command(&arguments).env("PATH", &path));
        assert_eq!(run.code, 0, "{run}");
    }
}

for_each_engine!(layers_and_mounts_go_from_builder_to_builder, [v26_containerd, v28_containerd], |engine| {
    let other = engine.second_context("far");
    let context = engine
        .context("RUN --mount=type=cache,id=pip,target=/p echo wheel > /p/w; date +%N > /x\nRUN echo $(cat /x) > /y");
    let build = |engine: &Engine| {
        let mut build = engine.command(engine.docker_program());
        Run::of(build.args(["buildx", "build", "--progress=plain"]).arg(context.path())).ok().stderr
    };
    build(engine);
    let line = ["export", "--to-builder", "far", "--format", "json", context.path().to_str().unwrap()];
    let planned = json(engine.cache(&[&line[..], &["--dry-run"]].concat()));
    assert_eq!(other.records(), Vec::<Value>::new());
    let copied = json(engine.cache(&line));
    let names = |answer: &Value| {
        let entries = answer["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["name"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!((names(&copied), names(&copied).len()), (names(&planned), 2), "{copied}");
    assert_eq!((&copied["left_out"], &copied["steps"]["ran"]), (&serde_json::json!([]), &serde_json::json!([])));
    let built = build(&other);
    let ran: Vec<&str> = built.lines().filter(|line| line.contains("] RUN ")).collect();
    let cached = built.lines().filter(|line| line.ends_with(" CACHED")).count();
    assert!(ran.len() == 2 && cached > 2, "{built}");
    let read = other.build("RUN --mount=type=cache,id=pip,target=/p echo found $(cat /p/w)", &[]);
    assert!(read.stderr.contains("found wheel"), "{read}");
    assert_eq!(fs::read_dir(engine.folder().join("tmp")).unwrap().count(), 1, "the context alone");
});

#[test]
fn mounts_go_from_builder_to_builder_without_a_bundle() {
    let engine = Engine::start(Generation::V28);
    let other = Engine::start(Generation::V26);
    engine.docker(&["context", "create", "far", "--docker", &format!("host={}", other.host())]);
    let fill = "RUN --mount=type=cache,id=pip,target=/root/.cache/pip --mount=type=cache,target=/root/.npm \
        echo wheel > /root/.cache/pip/w && chown 1000:1001 /root/.cache/pip/w && touch -d @86400 /root/.cache/pip/w && \
        head -c 3000000 /dev/urandom > /root/.npm/large && md5sum < /root/.npm/large";
    let filled = engine.build(fill, &[]).stderr;
    let sum =
        filled.lines().find_map(|line| line.strip_suffix("  -")).and_then(|line| line.rsplit(' ').next()).unwrap();
    let count = engine.records().len();
    let copied = json(engine.cache(&["export", "--to-builder", "far", "--format", "json"]));
    assert_eq!(copied["left_out"], serde_json::json!([]), "{copied}");
    assert_eq!((copied["entries"].as_array().unwrap().len(), &copied["bytes_written"]), (2, &Value::from(3_000_006)));
    let again = json(engine.cache(&["export", "--to-builder", "far", "--format", "json"]));
    assert_eq!(
        (&again["bytes_written"], &again["bytes_reused"]),
        (&Value::from(0), &Value::from(3_000_006)),
        "{again}"
    );
    assert_eq!(engine.records().len(), count, "{:?}", engine.records());
    assert!(other.records().iter().all(|record| record["Type"] == "exec.cachemount"), "{:?}", other.records());
    assert_eq!(fs::read_dir(engine.folder().join("tmp")).unwrap().count(), 0);
    let read = "RUN --mount=type=cache,id=pip,target=/p --mount=type=cache,target=/root/.npm \
        echo found $(cat /p/w) $(stat -c %u:%g:%Y /p/w) $(md5sum < /root/.npm/large)";
    let run = other.build(read, &[]);
    assert!(run.stderr.contains(&format!("found wheel 1000:1001:86400 {sum}")), "{run}");
    // Who names mounts means no layers, and who names a directory does.
    let run = engine.cache(&["export", "--to-builder", "far", "--mount", "pip"]).ok();
    assert!(!run.stderr.contains("layers"), "{run}");
    let context = engine.context("RUN echo 1 > /x");
    let run = engine.cache(&["export", "--to-builder", "far", context.path().to_str().unwrap()]);
    assert!(run.code == 1 && run.stderr.contains("layers: builder default cannot export them"), "{run}");
    let run = engine.cache(&["export", "--to-builder", "default"]);
    assert!(run.code == 1 && run.stderr.contains("is where the mounts are"), "{run}");
}
