//! A real image registry (CNCF Distribution, as Debian packages it) on loopback, and skopeo to look into it.

use std::fs;
use std::path::Path;
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
    _process: Background,
}

impl Registry {
    /// Starts a registry that the engine, its builds and its clients in its network reach, and nobody else.
    pub fn beside(engine: &Engine) -> Registry {
        Registry::start(&engine.folder().join("registry"), engine.network())
    }

    /// Starts a registry on this machine's own loopback: for clients and `Engine::online`.
    pub fn on_this_machine(folder: &Path) -> Registry {
        Registry::start(folder, Vec::new())
    }

    fn start(folder: &Path, network: Vec<String>) -> Registry {
        fs::create_dir_all(folder).unwrap();
        let (config, log) = (folder.join("config.yml"), folder.join("log"));
        let data = folder.join("data");
        // Port 0: the kernel picks one, and the log names it.
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}}}\n",
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
                return Registry { address: address.to_owned(), network, _process: process };
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "the registry does not come up: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
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
