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
    let found = missed(engine, &path, &["--", "--build-arg=V=hunter2"]);
    assert!(found[0].1.as_ref().unwrap().contains("dropped it from its cache"), "{found:?}");
    assert_eq!(engine.docker(&["image", "ls", "--all", "--quiet"]).stdout, "", "it builds into the cache alone");
    assert_eq!(engine.cache(&["doctor", "--explain", &path, "--", "--no-cache"]).code, 1);
});
