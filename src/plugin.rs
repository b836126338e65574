//! Docker's plugin protocol: the forms in which docker calls this binary, and the answers to those that are not a
//! command. It must not ask the engine anything, completion excepted.

use std::ffi::{OsStr, OsString};

use crate::cli::DockerFlags;

/// What docker, or a user, wants of this process.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// `docker-cli-plugin-metadata`: before every call, so it must cost nothing.
    Metadata,
    /// `cache docker-cli-plugin-hooks JSON`: after a build, if the user's configuration says so.
    Hooks(String),
    /// `__complete cache WORD…` or `__completeNoDesc WORD…`: the words, the last one being typed.
    Complete { words: Vec<String>, descriptions: bool },
    /// Everything else: arguments for the grammar, without the word `cache`.
    Run(Vec<OsString>),
}

/// Docker's global flags that take a value, as pflag spells them.
const VALUE_FLAGS: [&str; 7] =
    ["--config", "--context", "--host", "--log-level", "--tlscacert", "--tlscert", "--tlskey"];

/// Sorts the arguments into the forms of docker's plugin protocol. Docker hands over its own command line whole, global
/// flags first; run by hand, the word `cache` is missing.
pub fn request(args: impl IntoIterator<Item = OsString>) -> Request {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut at = 0;
    let mut help = false;
    while let Some(arg) = args.get(at) {
        let text = arg.to_string_lossy();
        if text == "--" {
            at += 1;
            break;
        } else if !text.starts_with('-') {
            break;
        } else if text == "--help" || text == "-h" {
            help = true;
        }
        at += 1 + usize::from(takes_next(&text));
    }
    let at = at.min(args.len());
    let (flags, rest) = args.split_at(at);
    let mut globals: Vec<OsString> =
        flags.iter().filter(|flag| !["--help", "-h", "--"].iter().any(|word| *flag == word)).cloned().collect();
    let word = |index: usize| rest.get(index).map(|arg: &OsString| arg.to_string_lossy()).unwrap_or_default();

    if word(0) == "docker-cli-plugin-metadata" {
        return Request::Metadata;
    }
    if word(0) == "docker-cli-plugin-hooks" || (word(0) == "cache" && word(1) == "docker-cli-plugin-hooks") {
        return Request::Hooks(rest.last().map(|call| call.to_string_lossy().into_owned()).unwrap_or_default());
    }
    if word(0) == "__complete" || word(0) == "__completeNoDesc" {
        let wanted = word(0) == "__complete" && variable_is_empty("DOCKER_CLI_DISABLE_COMPLETION_DESCRIPTION");
        let named = usize::from(word(1) == "cache" && rest.len() > 2);
        let words = rest[1 + named..].iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        return Request::Complete { words, descriptions: wanted };
    }
    let mut words = rest;
    if word(0) == "help" {
        help = true;
        words = &words[1..];
    }
    if words.first().is_some_and(|first| first == "cache") {
        words = &words[1..];
    }
    // `docker cache -- size` and `docker cache help size`
    if words.first().is_some_and(|first| first == "--") {
        words = &words[1..];
    }
    if words.first().is_some_and(|first| first == "help") {
        help = true;
        words = &words[1..];
    }
    globals.extend(words.iter().cloned());
    if help {
        globals.push("--help".into());
    }
    // pflag's long way to set a switch, which clap's switches do not know.
    globals.retain(|arg| !["--debug=false", "-D=false"].iter().any(|word| arg == word));
    for arg in &mut globals {
        if ["--debug=true", "-D=true"].iter().any(|word| arg == word) {
            *arg = "--debug".into();
        }
    }
    Request::Run(globals)
}

/// Returns true if this global flag takes the next argument as its value, `--host X`, `-H X`, `-Dc X`; not `-HX`.
fn takes_next(flag: &str) -> bool {
    if flag.starts_with("--") {
        return VALUE_FLAGS.contains(&flag);
    }
    let mut letters = flag[1..].chars();
    letters.find(|letter| "cHl".contains(*letter)).is_some() && letters.next().is_none()
}

fn variable_is_empty(name: &str) -> bool {
    std::env::var_os(name).unwrap_or_default().is_empty()
}

/// Returns the answer to `docker-cli-plugin-metadata`: plugin-metadata/metadata.json with the crate's version.
pub fn metadata() -> String {
    const TEMPLATE: &str = include_str!("../plugin-metadata/metadata.json");
    TEMPLATE.replace("@VERSION@", concat!("v", env!("CARGO_PKG_VERSION")))
}

/// Returns docker's global flags in one spelling, to stand in front of every docker call.
pub fn global_args(flags: &DockerFlags) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: &OsStr| {
        let mut flag = OsString::from(name);
        flag.push("=");
        flag.push(value);
        args.push(flag);
    };
    if let Some(dir) = &flags.config {
        add("--config", dir.as_os_str());
    }
    if let Some(name) = &flags.context {
        add("--context", name.as_ref());
    }
    for host in &flags.host {
        add("--host", host.as_ref());
    }
    if let Some(level) = &flags.log_level {
        add("--log-level", level.as_ref());
    }
    for (name, value) in [("--tlscacert", &flags.tlscacert), ("--tlscert", &flags.tlscert), ("--tlskey", &flags.tlskey)]
    {
        if let Some(file) = value {
            add(name, file);
        }
    }
    for (name, value) in
        [("--debug", flags.debug.then_some(true)), ("--tls", flags.tls), ("--tlsverify", flags.tlsverify)]
    {
        if let Some(on) = value {
            add(name, if on { "true" } else { "false" }.as_ref());
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str) -> Request {
        request(line.split(' ').map(|word| OsString::from(if word == "''" { "" } else { word })))
    }

    fn run(line: &str) -> Request {
        Request::Run(line.split(' ').filter(|word| !word.is_empty()).map(Into::into).collect())
    }

    #[test]
    fn every_form_of_the_protocol_is_told_apart() {
        assert_eq!(ask("docker-cli-plugin-metadata"), Request::Metadata);
        assert_eq!(ask("cache docker-cli-plugin-hooks {}"), Request::Hooks("{}".into()));
        assert_eq!(ask("cache size --format json"), run("size --format json"));
        assert_eq!(ask("--context x cache size"), run("--context x size"));
        assert_eq!(ask("-c cache -D -l debug cache size"), run("-c cache -D -l debug size"));
        assert_eq!(ask("-Dc cache cache size"), run("-Dc cache size"));
        assert_eq!(ask("-Hunix:///s --tls=false cache size -D"), run("-Hunix:///s --tls=false size -D"));
        assert_eq!(ask("--debug=true cache -D=false size"), run("--debug size"));
        assert_eq!(ask("-- cache size"), run("size"));
        assert_eq!(ask("cache -- size"), run("size"));
        assert_eq!(ask("help cache size"), run("size --help"));
        assert_eq!(ask("-D help cache"), run("-D --help"));
        assert_eq!(ask("--help cache size"), run("size --help"));
        assert_eq!(ask("-h cache"), run("--help"));
        assert_eq!(ask("cache help size"), run("size --help"));
        assert_eq!(ask("-v cache"), run("-v"));
        assert_eq!(ask("size"), run("size"));
        assert_eq!(ask("cache"), run(""));
    }

    #[test]
    fn completion_words_lose_the_plugin_name() {
        let complete = |line| match ask(line) {
            Request::Complete { words, descriptions } => (words, descriptions),
            other => panic!("{other:?}"),
        };
        assert_eq!(complete("__complete cache size ''"), (vec!["size".into(), "".into()], true));
        assert_eq!(complete("__complete cache ''"), (vec!["".into()], true));
        assert_eq!(complete("__completeNoDesc s"), (vec!["s".into()], false));
    }

    #[test]
    fn metadata_is_what_docker_demands() {
        let metadata: serde_json::Value = serde_json::from_str(&metadata()).unwrap();
        assert_eq!(metadata["SchemaVersion"], "0.1.0");
        assert_eq!(metadata["Version"], concat!("v", env!("CARGO_PKG_VERSION")));
        assert!(!metadata["Vendor"].as_str().unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_command_line_makes_it_panic(args in proptest::collection::vec("(-{0,2}[a-zA-Z=]{0,6}|cache|help|--|__complete)", 0..6)) {
            request(args.into_iter().map(OsString::from));
        }
    }
}
