//! `docker cache doctor --explain`: names the step that missed the cache, and what changed.

use std::fs;

use serde_json::Value;

use crate::for_each_engine;
use crate::support::Engine;
use crate::support::world::write_files;

/// Explains a build, and returns of each step that ran the beginning of its text and the reason.
#[track_caller]
fn missed(engine: &Engine, context: &str, arguments: &[&str]) -> Vec<(String, Option<String>)> {
    let run = engine.cache(&[&["doctor", "--explain", "--format", "json", context], arguments].concat()).ok();
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    let steps = answer["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 6, "{answer:#}");
    let ran = steps.iter().filter(|step| step["cached"] == false);
    let ran = ran.map(|step| (step["text"].as_str().unwrap()[..8].to_owned(), step["why"].as_str().map(str::to_owned)));
    let ran: Vec<_> = ran.collect();
    assert_eq!(answer["missed"], ran.len());
    assert!(answer["missed_seconds"].as_f64().unwrap().is_sign_positive(), "{answer:#}");
    ran
}

for_each_engine!(a_step_that_missed_is_named_with_what_changed, [v20, v26, v28_containerd], |engine| {
    let dockerfile = "FROM scratch AS tool\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
                      FROM tool AS work\nCOPY pkg/*.json src /src/\nRUN --mount=type=cache,target=/c busybox cat /src/a\n\
                      FROM tool\nCOPY --from=work /src /out\nRUN echo middle\nARG V=1\nRUN echo last\n";
    let context = engine.context(dockerfile);
    write_files(context.path(), &[("src/a", "1"), ("pkg/x.json", "1"), (".dockerignore", "**/*.log\n")]);
    let path = context.path().display().to_string();
    let first = missed(engine, &path, &[]);
    assert!(first.iter().filter_map(|(_, why)| why.as_ref()).all(|why| why.contains("no earlier run")), "{first:?}");
    assert_eq!(missed(engine, &path, &[]), []);

    write_files(context.path(), &[("src/noise.log", "1"), ("other", "1")]);
    assert_eq!(missed(engine, &path, &[]), []);
    write_files(context.path(), &[("src/a", "2"), ("pkg/y.json", "1"), ("pkg/y.txt", "1")]);
    let found = missed(engine, &path, &[]);
    assert_eq!(found[0], ("COPY pkg".into(), Some("pkg/y.json and src/a changed".into())));
    assert!(found[1..].iter().all(|(_, why)| why.is_none()), "{found:?}");

    let found = missed(engine, &path, &["--", "--build-arg", "V=hunter2"]);
    assert_eq!(found, [("RUN echo".into(), Some("the build argument V changed".into()))]);
    let kept = engine.folder().join("home/.local/state/docker-cache/builds");
    let kept: Vec<_> =
        fs::read_dir(kept).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert!(kept.len() == 1 && !kept[0].contains("hunter2"), "one build, and no values of its arguments: {kept:?}");

    engine.docker(&["builder", "prune", "--all", "--force"]);
    if engine.generation().has_buildx() {
        let run = engine.cache(&["doctor", "--explain", &path, "--", "--build-arg=V=2"]).ok();
        assert!(run.stdout.contains("; cache mount /c was empty"), "{run}");
        engine.docker(&["builder", "prune", "--all", "--force", "--filter", "type=regular"]);
        write_files(context.path(), &[("src/a", "3")]);
        let run = engine.cache(&["doctor", "--explain", &path, "--", "--build-arg=V=3"]).ok();
        assert!(!run.stdout.contains("was empty"), "{run}");
        engine.docker(&["builder", "prune", "--all", "--force"]);
    }
    let found = missed(engine, &path, &["--", "--build-arg=V=hunter2"]);
    assert!(found[0].1.as_ref().unwrap().contains("dropped it from its cache"), "{found:?}");
    assert_eq!(engine.docker(&["image", "ls", "--all", "--quiet"]).stdout, "", "it builds into the cache alone");
    assert_eq!(engine.cache(&["doctor", "--explain", &path, "--", "--no-cache"]).code, 1);
    engine.cache(&["doctor", "--explain", &path, "--", "--no-cache=false"]).ok();
});

/// Returns of each step that ran and is explained the first words and the reason.
#[track_caller]
fn reasons(engine: &Engine, context: &str, arguments: &[&str]) -> Vec<(String, String)> {
    let run = engine.cache(&[&["doctor", "--explain", "--format", "json", context, "--"], arguments].concat()).ok();
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    let steps = answer["steps"].as_array().unwrap().iter();
    let explained = steps.filter_map(|step| Some((step["text"].as_str()?, step["why"].as_str()?)));
    explained.map(|(text, why)| (text.split(' ').take(2).collect::<Vec<_>>().join(" "), why.to_owned())).collect()
}

for_each_engine!(every_kind_of_change_is_named, [v20, v26, v28_containerd], |engine| {
    let context = engine.context("FROM scratch\n");
    engine.build("ENV A=1", &["--tag", "base"]);
    let at = context.path().display().to_string();
    let shared = engine.folder().join("tmp/shared");
    write_files(&shared, &[("lib/a", "1"), (".dockerignore", "noise\n")]);
    write_files(context.path(), &[("src/a", "1"), ("deep/er/b", "1"), (".dockerignore", "Dockerfile\n*.log\n")]);
    let has_contexts = engine.generation() != crate::support::Generation::V20;
    let file = |arg: &str, env: &str, shell: &str, body: &str| {
        let named = if has_contexts { "COPY --from=shared lib /lib2\n" } else { "" };
        let script = if has_contexts {
            format!("RUN <<EOF\necho one\necho two\necho three {body}\nEOF\n")
        } else {
            String::new()
        };
        format!(
            "ARG TOP={arg}\nFROM base AS one\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nCOPY . .\n\
             FROM base AS two\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nRUN echo free\nARG TOP\nRUN echo $TOP\n\
             FROM base AS three\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nENV E={env}\nRUN echo env\n\
             FROM base AS four\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nRUN echo root\nSHELL [\"/bin/busybox\", \"sh\", \"{shell}\"]\nRUN echo shell\n\
             FROM base AS five\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nRUN echo x\n{script}\
             FROM base\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n{named}ADD deep/er /deep\n\
             COPY --from=one /src /1\nCOPY --from=two /bin /2\nCOPY --from=three /bin /3\nCOPY --from=four /bin /4\nCOPY --from=five /bin /5\n"
        )
    };
    let write = |text: String| write_files(context.path(), &[("Dockerfile", &text)]);
    let flag = format!("--build-context=shared={}", shared.display());
    let flags: &[&str] = if has_contexts { &[&flag] } else { &[] };
    let missed = || reasons(engine, &at, flags);
    let of = |step: &str, why: &str| vec![(step.to_owned(), why.to_owned())];

    write(file("1", "1", "-c", ""));
    assert!(missed().iter().all(|(_, why)| why.contains("no earlier run")));
    assert_eq!(missed(), []);

    write_files(context.path(), &[("deep/er/b", "2")]);
    let mut found = missed();
    found.sort();
    assert_eq!(
        found,
        [("ADD deep/er".into(), "deep/er/b changed".into()), ("COPY .".into(), "deep/er/b changed".into())]
    );
    fs::File::options()
        .write(true)
        .open(context.path().join("src/a"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(missed(), [], "a time is no change");
    fs::set_permissions(context.path().join("src/a"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(missed(), of("COPY .", "src/a changed"), "a mode is");
    write_files(context.path(), &[(".dockerignore", "Dockerfile\n*.log\nsrc/a\n"), ("x.log", "1")]);
    assert_eq!(missed(), of("COPY .", ".dockerignore and src/a changed"));

    write(file("2", "1", "-c", ""));
    assert_eq!(missed(), of("RUN echo", "ARG TOP in line 1 is new, or not what it was"));
    let with_argument = [flags, &["--build-arg=TOP=3"]].concat();
    assert_eq!(reasons(engine, &at, &with_argument), of("RUN echo", "the build argument TOP changed"));
    assert_eq!(missed(), of("RUN echo", "the build argument TOP changed").split_off(1), "2 is still in the cache");
    write(file("2", "2", "-c", ""));
    assert_eq!(missed(), of("RUN echo", "ENV E in line 12 is new, or not what it was"));
    write(file("2", "2", "-ec", ""));
    assert_eq!(missed(), of("RUN echo", "SHELL in line 17 is new, or not what it was"));
    if has_contexts {
        write(file("2", "2", "-ec", "more"));
        assert_eq!(missed(), of("RUN <<EOF", "the instruction is new, or not what it was"));
        write_files(&shared, &[("lib/a", "2"), ("noise", "1"), ("other", "1")]);
        assert_eq!(missed(), of("COPY --from=shared", "lib/a changed"));
        let secret = engine.folder().join("tmp/secret");
        fs::write(&secret, "hunter2").unwrap();
        let with_secret = format!("--secret=id=s,src={}", secret.display());
        assert_eq!(reasons(engine, &at, &[flags, &[&with_secret]].concat()), [], "secrets are no part of the cache");
    }

    engine.build("ENV A=2", &["--tag", "base"]);
    let found = missed();
    assert!(
        !found.is_empty() && found.iter().all(|(_, why)| why.starts_with("the image ") && why.contains("base")),
        "{found:?}"
    );
    let target = [flags, &["--target=two"]].concat();
    assert!(reasons(engine, &at, &target).iter().all(|(_, why)| why.contains("no earlier run")));
});
