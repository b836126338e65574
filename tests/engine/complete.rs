//! Completion: what docker's own scripts ask, and what a shell makes of the answer.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::{Engine, Generation, parts};

/// Asks as docker's scripts do and returns candidates with their descriptions, and the directive.
fn complete(engine: &Engine, words: &[&str]) -> (Vec<(String, String)>, String) {
    engine.cache_command(&[]);
    let mut command = engine.command(engine.docker_program());
    // A busy machine may need longer than anybody waits at a TAB.
    command.env("DOCKER_CACHE_TIMEOUT", "60s").args(["__complete", "cache"]).args(words);
    let run = Run::of(&mut command).ok();
    let mut lines: Vec<&str> = run.stdout.lines().collect();
    let directive = lines.pop().unwrap_or_default().to_owned();
    let split = |line: &str| {
        let (word, text) = line.split_once('\t').unwrap_or((line, ""));
        (word.to_owned(), text.to_owned())
    };
    (lines.into_iter().map(split).collect(), directive)
}

fn words(engine: &Engine, line: &str) -> Vec<String> {
    let asked: Vec<&str> = line.split(' ').collect();
    let mut words: Vec<String> = complete(engine, &asked).0.into_iter().map(|(word, _)| word).collect();
    words.sort();
    words
}

// Docker 20.10 leaves plugins out of its completion.
for_each_engine!(docker_passes_tab_on, [v26, v28], |engine| {
    let (found, directive) = complete(engine, &["si"]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == "size" && found[0].1.starts_with("Show what"), "{found:?}");
    assert_eq!(directive, ":4");
});

for_each_engine!(names_of_the_engine_are_offered, [v26, v28_containerd], |engine| {
    engine.volume("project-cache", &[("pip/wheel", "1")]);
    engine.volume("data", &[("file", "1")]);
    engine.build("RUN --mount=type=cache,id=my-pip,target=/root/.cache/pip echo 1 > /root/.cache/pip/wheel", &[]);
    let builder = engine.remote_builder("far");

    assert_eq!(words(engine, "size --volume "), ["data", "project-cache"]);
    assert_eq!(words(engine, "size --volume=pro"), ["project-cache"]);
    assert_eq!(words(engine, "size --mount m"), ["my-pip"]);
    assert_eq!(words(engine, "size --builder far --mount "), ["my-pip"]);
    assert_eq!(words(engine, "builder use f"), [builder.name.as_str()]);
    assert_eq!(words(engine, "size my-"), ["my-pip"]);
    assert_eq!(words(engine, "size pro"), ["project-cache"]);
    assert_eq!(words(engine, "size dat"), [""; 0], "no cache, so not offered");
    assert_eq!(words(engine, "size --lang python,no"), ["python,node"]);
});

for_each_engine!(the_context_among_the_words_is_asked, [v28], |engine| {
    let second = engine.second_context("second");
    second.volume("there", &[]);
    engine.volume("here", &[]);
    assert_eq!(words(engine, "--context second size --volume "), ["there"]);
    assert_eq!(words(engine, "size --context=second --volume "), ["there"]);
    assert_eq!(words(engine, "size --volume "), ["here"]);
});

#[test]
fn an_engine_that_hangs_costs_little_and_fails_nothing() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[]);
    engine.cache_command(&[]);
    engine.signal(rustix::process::Signal::STOP);
    let begin = Instant::now();
    let mut command = engine.command(engine.docker_program());
    command.env_remove("DOCKER_CACHE_TIMEOUT").args(["__complete", "cache", "size", "--volume", ""]);
    let run = Run::of(&mut command).ok();
    let spent = begin.elapsed();
    engine.signal(rustix::process::Signal::CONT);
    assert_eq!(run.stdout, ":4\n");
    assert!(spent < Duration::from_secs(6), "{spent:?}");
}

#[test]
fn descriptions_can_be_switched_off() {
    let engine = Engine::start(Generation::V28);
    let plugin = engine.config().join("cli-plugins/docker-cache");
    engine.cache_command(&[]);
    let mut command = engine.command(engine.docker_program());
    command.env("DOCKER_CLI_DISABLE_COMPLETION_DESCRIPTION", "1").args(["__complete", "cache", "si"]);
    assert_eq!(Run::of(&mut command).ok().stdout, "size\n:4\n");
    // Docker's older bash script calls the plugin itself.
    let run = Run::of(engine.command(plugin).args(["__completeNoDesc", "si"]));
    assert_eq!(run.ok().stdout, "size\n:4\n");
}

/// Presses TAB at the end of the line, in a bash with the script of `docker completion bash`, and returns its COMPREPLY.
fn tab(engine: &Engine, line: &[&str]) -> Vec<String> {
    engine.cache_command(&[]);
    let script = engine.folder().join("completion.bash");
    std::fs::write(&script, engine.docker(&["completion", "bash"]).stdout).unwrap();
    // The package bash-completion brings this function; here the words are not split at `=` in the first place.
    const PRESS: &str = r#"
        _get_comp_words_by_ref() {
            cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
        }
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_TYPE=9
        COMP_POINT=${#COMP_LINE}
        compopt() { :; }
        __start_docker
        printf '%s\n' "${COMPREPLY[@]}""#;
    let docker = engine.docker_program();
    let folder = docker.parent().unwrap().display().to_string();
    let mut bash = engine.command("bash");
    let path = std::env::join_paths(
        [std::path::PathBuf::from(folder)].into_iter().chain(std::env::split_paths(&engine.env()["PATH"])),
    );
    bash.env("PATH", path.unwrap()).stderr(Stdio::inherit());
    bash.args(["--norc", "-c", PRESS, "bash"]).arg(script).args(line);
    let run = Run::of(&mut bash).ok();
    run.stdout.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn tab_in_bash_completes_what_is_typed() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[]);
    assert_eq!(tab(&engine, &["docker", "cache", "si"]), ["size"]);
    assert_eq!(tab(&engine, &["docker", "cache", "size", "--fo"]), ["--format"]);
    assert_eq!(tab(&engine, &["docker", "cache", "size", "--format", ""]), ["table", "json"]);
    assert_eq!(tab(&engine, &["docker", "cache", "size", "--format=j"]), ["json"]);
    assert_eq!(tab(&engine, &["docker", "cache", "size", "--lang", "python,no"]), [r"python\,node"]);
    assert_eq!(tab(&engine, &["docker", "cache", "size", "--volume", ""]), ["project-cache"]);
    assert_eq!(tab(&engine, &["docker", "--host", &engine.host(), "cache", "size", "--volume", ""]), ["project-cache"]);
}

#[test]
fn tab_in_zsh_completes_behind_an_alias() {
    let engine = Engine::start(Generation::V28);
    engine.cache_command(&[]);
    let home = engine.folder().join("home");
    std::fs::write(home.join(".zshenv"), format!("unsetopt global_rcs\n{}", parts::zsh_paths())).unwrap();
    let docker = engine.docker_program();
    let rc = format!(
        "path=({} $path)\nautoload -Uz compinit && compinit -u -D\nsource <(docker completion zsh)\n\
         compdef _docker docker\nalias dcs='docker cache size'\nPROMPT='READY> '\n",
        docker.parent().unwrap().display()
    );
    std::fs::write(home.join(".zshrc"), rc).unwrap();
    let mut script = engine.command("script");
    script.env("TERM", "dumb").env("DOCKER_CACHE_TIMEOUT", "60s");
    let zsh = format!("{} -i", parts::zsh().display());
    script.args(["--quiet", "--return", "--command", &zsh, "/dev/null"]);
    let run = crate::support::process::typed(script, &[("READY> ", "dcs --histo\t\n"), ("MEASURED", "exit\n")]).ok();
    assert!(run.stdout.contains("dcs --history"), "{run}");
}
