//! What must not make a build run its steps again.

use serde_json::Value;

use crate::for_each_engine;
use crate::support::Engine;
use crate::support::process::Run;

/// Gives the engine an image that a container has used: its layers lie unpacked in the image store.
fn used_image(engine: &Engine, name: &str) {
    engine.build("FROM scratch\nCOPY busybox /bin/busybox", &["--tag=seed"]);
    let tar = engine.folder().join("seed.tar");
    let tar = tar.to_str().unwrap();
    engine.docker(&["create", "--name=seed", "seed", "none"]);
    engine.docker(&["export", "--output", tar, "seed"]);
    engine.docker(&["rm", "seed"]);
    engine.docker(&["import", tar, name]);
    engine.docker(&["run", "--rm", "--network=none", name, "/bin/busybox", "true"]);
}

/// Returns the steps that a build of this directory has from the cache.
fn cached(engine: &Engine, context: &std::path::Path) -> usize {
    let mut build = engine.command(engine.docker_program());
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress=plain"]).arg(context);
    Run::of(&mut build).ok().stderr.lines().filter(|line| line.ends_with(" CACHED")).count()
}

/// Returns the records whose description bears the name of a helper, and the bytes of all that is not a build context.
fn helpers(engine: &Engine) -> (Vec<String>, u64) {
    let records = engine.records();
    let told = |record: &Value| record["Description"].as_str().unwrap_or_default().to_owned();
    let helpers = records.iter().map(told).filter(|told| told.contains("docker-cache-helper-")).collect();
    let others = records.iter().filter(|record| record["Type"] != "source.local");
    (helpers, others.map(|record| record["Size"].as_u64().unwrap()).sum())
}

for_each_engine!(steps_upon_an_image_stay_cached, [v26, v26_containerd, v28, v28_containerd], |engine| {
    used_image(engine, "base");
    let context = engine.context(
        "FROM base\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
         RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/m,id=npm \
         cd /root/.cache; /bin/busybox mkdir pip own; echo wheel > pip/wheel; echo own > own/file; echo x > /m/x\n\
         RUN echo app > /app",
    );
    cached(engine, context.path());
    assert_eq!(cached(engine, context.path()), 2);
    let (_, before) = helpers(engine);

    let mut doctor = engine.cache_command(&["doctor"]);
    let run = Run::of(doctor.current_dir(context.path()));
    assert!(run.code <= 1, "{run}");
    assert_eq!(cached(engine, context.path()), 2, "after doctor");
    let bundle = engine.folder().join("bundle").display().to_string();
    for line in [
        &["size", "--exact"][..],
        &["export", "--dest", &bundle],
        &["clear", "--lang", "python", "--force"],
        &["export", "--dest", &bundle],
        &["verify", &bundle],
    ] {
        let run = engine.cache(line).ok();
        assert_eq!(cached(engine, context.path()), 2, "after {line:?}: {run}");
    }
    let look =
        engine.build("RUN --mount=type=cache,target=/root/.cache cd /root/.cache; echo HOLDS=$(find -type f)", &[]);
    let holds = look.stderr.lines().find_map(|line| Some(line.split_once(" HOLDS=.")?.1));
    assert_eq!(holds, Some("/own/file"), "{look}");

    // What was left there is small, and goes when the builder is pruned anyway.
    let (helpers_left, after) = helpers(engine);
    assert_eq!(helpers_left.is_empty(), !engine.generation().containerd_store(), "{helpers_left:?}");
    assert!(after < before + 2_000_000, "{before} bytes grew to {after}: {:#?}", engine.records());
    engine.cache(&["clear", "--mount", "npm", "--force"]).ok();
    assert_eq!(helpers(engine).0, Vec::<String>::new());
    // What is large does not stay.
    engine.build("RUN --mount=type=cache,target=/m,id=npm head -c 40000000 /dev/urandom > /m/large", &[]);
    engine.cache(&["export", "--dest", &bundle]).ok();
    assert_eq!(helpers(engine).0, Vec::<String>::new());
});
