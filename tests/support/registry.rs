//! A real image registry (CNCF Distribution, as Debian packages it) on loopback, and skopeo to look into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::parts::Suite;
use super::process::{Background, Run};
use super::world::Tree;

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

/// Port 0: the kernel picks one, and the log names it.
const LOOPBACK: &str = "{addr: '127.0.0.1:0'}";

/// Makes an authority `ca.crt`, and `tls.crt` with `tls.key` that it vouches for, good for a server and for a client.
pub fn authority(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let names = "subjectAltName=IP:10.213.0.9\nextendedKeyUsage=serverAuth,clientAuth\n";
    fs::write(folder.join("names"), names).unwrap();
    let openssl = |words: &str| {
        Run::of(Command::new("openssl").current_dir(folder).args(words.split(' '))).ok();
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=authority");
    openssl("req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=registry");
    openssl("x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out tls.crt -days 2 -extfile names");
}

impl Registry {
    /// Starts a registry that the engine, its builds and its clients in its network reach, and nobody else.
    pub fn beside(engine: &Engine) -> Registry {
        Registry::start(&engine.folder().join("registry"), engine.network(), LOOPBACK, "")
    }

    /// Starts the registry that crane brings, another implementation: it keeps blobs on the disk and manifests in memory.
    pub fn of_crane(engine: &Engine) -> Registry {
        let (network, folder) = (engine.network(), engine.folder().join("crane"));
        fs::create_dir_all(&folder).unwrap();
        let (program, disk) =
            (Suite::Sid.root().join("usr/bin/crane").display().to_string(), folder.display().to_string());
        let address = "127.0.0.1:5055".to_owned();
        let serve = [&program, "registry", "serve", "--disk", &disk, "--address", &address];
        let call: Vec<&str> = network.iter().map(String::as_str).chain(serve).collect();
        let process = Background::start(&call, |command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        });
        let crane = Registry { address, network, folder, _process: process };
        let begin = Instant::now();
        while crane.crane(&["catalog", &crane.address]).code != 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "crane's registry does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        crane
    }

    /// Runs `crane …` in the registry's network.
    pub fn crane(&self, words: &[&str]) -> Run {
        let program = Suite::Sid.root().join("usr/bin/crane").display().to_string();
        let words: Vec<&str> =
            self.network.iter().map(String::as_str).chain([program.as_str()]).chain(words.iter().copied()).collect();
        Run::of(Command::new(words[0]).args(&words[1..]))
    }

    /// Starts a registry that only serves the user `me` with the password `right`.
    pub fn with_login(engine: &Engine) -> Registry {
        let passwords = engine.folder().join("htpasswd");
        fs::write(&passwords, USER).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: team, path: '{}'}}}}\n", passwords.display());
        Registry::start(&engine.folder().join("registry"), engine.network(), LOOPBACK, &auth)
    }

    /// Starts a registry that is not on loopback, with TLS: its certificate, `tls.crt`, is of `ca.crt`, and so must those of
    /// its clients be. They are in the folder `certificates` of the engine.
    pub fn with_tls(engine: &Engine) -> Registry {
        let network = engine.network();
        let address = ["ip", "address", "add", "10.213.0.9/32", "dev", "lo"];
        let words: Vec<&str> = network.iter().map(String::as_str).chain(address).collect();
        Run::of(Command::new(words[0]).args(&words[1..])).ok();
        let at = |name: &str| engine.folder().join("certificates").join(name).display().to_string();
        authority(&engine.folder().join("certificates"));
        let http = format!(
            "{{addr: '10.213.0.9:0', tls: {{certificate: '{}', key: '{}', clientcas: ['{}']}}}}",
            at("tls.crt"),
            at("tls.key"),
            at("ca.crt")
        );
        Registry::start(&engine.folder().join("registry"), network, &http, "")
    }

    /// Starts a registry on this machine's own loopback: for clients and `Engine::online`.
    pub fn on_this_machine(folder: &Path) -> Registry {
        Registry::start(folder, Vec::new(), LOOPBACK, "")
    }

    /// Starts one on this machine's loopback that wants tokens from the server at this address, signed by `tls.key` of an
    /// [`authority`] in this folder.
    pub fn with_tokens(folder: &Path, realm: &str, certificates: &Path) -> Registry {
        let bundle = certificates.join("ca.crt");
        let auth = format!(
            "auth: {{token: {{realm: 'http://{realm}/token', service: team, issuer: test, rootcertbundle: '{}'}}}}\n",
            bundle.display()
        );
        Registry::start(folder, Vec::new(), LOOPBACK, &auth)
    }

    fn start(folder: &Path, network: Vec<String>, http: &str, auth: &str) -> Registry {
        fs::create_dir_all(folder).unwrap();
        let (config, log) = (folder.join("config.yml"), folder.join("log"));
        let data = folder.join("data");
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {http}\n\
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
                let address = rest.split(|c: char| "\",".contains(c) || c.is_whitespace()).next().unwrap_or_default();
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

    /// Returns the bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        Tree::read(&self.folder.join("data/docker/registry/v2/blobs")).bytes()
    }

    /// Returns the tags of a repository.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let from = format!("docker://{}/{repository}", self.address);
        let all = self.skopeo(&["list-tags", "--tls-verify=false", &from]).ok().stdout;
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        all["Tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
    }

    /// Returns the manifest of a tag, `team/cache:main`, or of a digest, if there is one.
    pub fn manifest(&self, image: &str) -> Option<String> {
        let run =
            self.skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{}/{image}", self.address)]);
        (run.code == 0).then_some(run.stdout)
    }

    /// Deletes what a tag names, and so every tag that names the same.
    pub fn delete(&self, image: &str) {
        self.skopeo(&["delete", "--tls-verify=false", &format!("docker://{}/{image}", self.address)]).ok();
    }

    /// Runs something while the registry fails to change a tag.
    pub fn with_stuck(&self, repository: &str, tag: &str, run: impl FnOnce()) {
        let index =
            self.folder.join("data/docker/registry/v2/repositories").join(repository).join("_manifests/tags").join(tag);
        let (index, aside) = (index.join("index"), index.join("aside"));
        fs::rename(&index, &aside).unwrap();
        fs::write(&index, "").unwrap();
        run();
        fs::remove_file(&index).unwrap();
        fs::rename(&aside, &index).unwrap();
    }

    /// Flips a bit of a blob on the registry's disk.
    pub fn damage(&self, digest: &str) {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.folder.join("data/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
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
