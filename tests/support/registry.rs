//! A real image registry (CNCF Distribution, as Debian packages it) on loopback, and skopeo to look into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::parts::Suite;
use super::process::{Background, Run};

/// A running registry; its data is below the folder it was started with. It ends with the value.
#[derive(Debug)]
pub struct Registry {
    /// `127.0.0.1:PORT`, where engines accept plain HTTP.
    pub address: String,
    network: Vec<String>,
    folder: PathBuf,
    _process: Background,
}

/// The only user of [`Registry::with_login`], who has the password `right`.
const USER: &str = "me:$2b$04$KyLoPsWvOyUSyrFCzpExJei5zyBKhM.mgrYapznny9qSsYEcf55za\n";

impl Registry {
    /// Starts a registry that the engine, its builds and its clients in its network reach, and nobody else.
    pub fn beside(engine: &Engine) -> Registry {
        Registry::start(&engine.folder().join("registry"), engine.network(), false)
    }

    /// Starts a registry that only serves the user `me` with the password `right`.
    pub fn with_login(engine: &Engine) -> Registry {
        Registry::start(&engine.folder().join("registry"), engine.network(), true)
    }

    /// Starts a registry on this machine's own loopback: for clients and `Engine::online`.
    pub fn on_this_machine(folder: &Path) -> Registry {
        Registry::start(folder, Vec::new(), false)
    }

    fn start(folder: &Path, network: Vec<String>, login: bool) -> Registry {
        fs::create_dir_all(folder).unwrap();
        let (config, log) = (folder.join("config.yml"), folder.join("log"));
        let data = folder.join("data");
        // Port 0: the kernel picks one, and the log names it.
        let passwords = folder.join("htpasswd");
        let auth = match login {
            true => format!("auth: {{htpasswd: {{realm: team, path: '{}'}}}}\n", passwords.display()),
            false => String::new(),
        };
        fs::write(passwords, USER).unwrap();
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}}}\n{auth}",
            data.display()
        );
        fs::write(&config, settings).unwrap();
        let program = Suite::Bookworm.root().join("usr/bin/docker-registry").display().to_string();
        let config = config.display().to_string();
        let network_words = network.iter().map(String::as_str);
        let call: Vec<&str> = network_words.chain([program.as_str(), "serve", config.as_str()]).collect();
        let process = Background::start(&call, |command| {
            command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        });
        let begin = Instant::now();
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some((_, rest)) = text.split_once("listening on ") {
                let address = rest.split(|c: char| c == '"' || c.is_whitespace()).next().unwrap_or_default();
                let folder = folder.to_owned();
                return Registry { address: address.to_owned(), network, folder, _process: process };
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "the registry does not come up: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns how many calls were answered so far: `count("PUT", "/manifests/")`.
    pub fn count(&self, method: &str, kind: &str) -> usize {
        let log = fs::read_to_string(self.folder.join("log")).unwrap();
        let method = format!("http.request.method={method} ");
        let done = |line: &&str| line.contains("response completed") && line.contains(&method) && line.contains(kind);
        log.lines().filter(done).count()
    }

    /// Removes what no tag leads to, as the registry sees it.
    pub fn collect(&self) {
        let program = Suite::Bookworm.root().join("usr/bin/docker-registry");
        let mut collect = Command::new(program);
        Run::of(collect.args(["garbage-collect", "--delete-untagged"]).arg(self.folder.join("config.yml"))).ok();
    }

    /// Runs `docker cache …` for an engine where it reaches the registry.
    pub fn cache(&self, engine: &Engine, arguments: &[&str]) -> Run {
        Run::of(&mut self.cache_command(engine, arguments))
    }

    pub fn cache_command(&self, engine: &Engine, arguments: &[&str]) -> Command {
        let plain = engine.cache_command(arguments);
        let words = self.network.iter().map(std::ffi::OsStr::new).chain([plain.get_program()]).chain(plain.get_args());
        let words: Vec<_> = words.collect();
        let mut command = engine.command(words[0]);
        command.args(&words[1..]);
        command
    }

    /// Runs skopeo where it reaches the registry: `registry.skopeo(&["inspect", "--tls-verify=false", "docker://…"])`.
    pub fn skopeo(&self, arguments: &[&str]) -> Run {
        let root = Suite::Bookworm.root();
        let skopeo = root.join("usr/bin/skopeo").display().to_string();
        let words: Vec<&str> = self.network.iter().map(String::as_str).chain([skopeo.as_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--insecure-policy").args(arguments);
        Run::of(command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu")))
    }
}
