//! One repository of a registry, over the OCI distribution protocol: blobs and manifests, nothing of what they mean.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use serde::Deserialize;
use ureq::http::{self, Response, StatusCode, header};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::location::Reference;
use super::remote::gone;
use super::{Descriptor, MAX_JSON, check};
use crate::cancel;
use crate::docker::{Certificates, Credentials};
use crate::inside::pack::{Blob, digest};

/// What manifests may be: what buildx, and this program, write.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// How long a registry may be silent. Some check a blob only when all of it is there.
const SILENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(20);
/// How often a call is made again that failed for a reason that may pass, and the first pause before it.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(400);

/// A repository that calls are made to, as one user.
#[derive(Debug)]
pub struct Registry {
    pub reference: Reference,
    agent: Agent,
    /// `https://HOST`.
    base: String,
    credentials: Credentials,
    push: bool,
    /// The header that got through last.
    authorization: Mutex<Option<String>>,
}

/// What a call sends.
enum Sent<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Blob(&'a Path, u64, Progress<'a>),
}

/// Is told of bytes that went over the line.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

impl Registry {
    /// Finds out how the registry is reached. Like docker, plain HTTP is good enough on this machine's loopback.
    ///
    /// # Errors
    /// When it does not answer, or the certificates make no sense.
    pub fn connect(
        reference: &Reference,
        credentials: Credentials,
        certificates: &Certificates,
        push: bool,
    ) -> Result<Registry> {
        // The API of Docker Hub has a name of its own.
        let host = if reference.host == "docker.io" { "registry-1.docker.io" } else { &reference.host };
        let local = is_loopback(host);
        let lenient = reference.insecure || local;
        let tls = TlsConfig::builder()
            .root_certs(roots(certificates)?)
            .client_cert(client(certificates)?)
            .disable_verification(lenient)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_resolve(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .user_agent(concat!("docker-cache/", env!("CARGO_PKG_VERSION")));
        let config = if local { config.proxy(None) } else { config };
        let mut registry = Registry {
            reference: reference.clone(),
            agent: config.build().into(),
            base: format!("https://{host}"),
            credentials,
            push,
            authorization: Mutex::default(),
        };
        let ping =
            |registry: &Registry| registry.once("GET", &format!("{}/v2/", registry.base), &[], &Sent::Nothing, None);
        if lenient && ping(&registry).is_err() {
            registry.base = format!("http://{host}");
        }
        Ok(registry)
    }

    fn url(&self, kind: &str, rest: &str) -> String {
        format!("{}/v2/{}/{kind}/{rest}", self.base, self.reference.name)
    }

    /// Returns true if the repository has this blob or manifest: kind `blobs` or `manifests`.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn has(&self, kind: &str, digest: &str) -> Result<bool> {
        let answer = self.call("HEAD", &self.url(kind, digest), &[("accept", MANIFESTS)], &Sent::Nothing)?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(&format!("{digest} is not told of"), answer)),
        }
    }

    /// Returns the manifest of a tag or digest, if there is one, and what it is.
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or the manifest is too large or not what its digest says.
    pub fn manifest(&self, tag: &str) -> Result<Option<(Descriptor, Vec<u8>)>> {
        let answer = self.call("GET", &self.url("manifests", tag), &[("accept", MANIFESTS)], &Sent::Nothing)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.refused(&format!("cannot read {tag}"), answer)),
        }
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let media_type = kind.split(';').next().unwrap_or_default().to_string();
        let mut bytes = Vec::new();
        answer.into_body().into_reader().take(MAX_JSON + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= MAX_JSON, "the manifest {tag} is too large");
        let Blob { digest, size } = digest(&mut &bytes[..])?;
        ensure!(!tag.starts_with("sha256:") || tag == digest, "the manifest {tag} is damaged");
        Ok(Some((Descriptor { media_type, digest, size, ..Descriptor::default() }, bytes)))
    }

    /// Writes a manifest under a tag or its digest. All that it refers to must be there.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let headers = [("content-type", media_type)];
        let answer = self.call("PUT", &self.url("manifests", tag), &headers, &Sent::Bytes(bytes))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(self.refused(&format!("cannot write {tag}"), answer)),
        }
    }

    /// Sends a blob, unless the repository has it. Returns the bytes sent.
    ///
    /// # Errors
    /// When the file cannot be read, or the registry does not answer or refuses.
    pub fn upload(&self, blob: &Blob, path: &Path, progress: Progress<'_>) -> Result<u64> {
        if self.has("blobs", &blob.digest)? {
            return Ok(0);
        }
        // An upload that broke off cannot be sent again to the same address.
        patiently(|| self.upload_once(blob, path, progress))?;
        Ok(blob.size)
    }

    fn upload_once(&self, blob: &Blob, path: &Path, progress: Progress<'_>) -> Result<()> {
        let what = || format!("cannot write {}", blob.digest);
        let answer = self.as_user("POST", &self.url("blobs", "uploads/"), &[], &Sent::Bytes(&[]))?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.refused(&what(), answer));
        }
        let place = answer.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        let place = place.with_context(|| format!("{} does not say where blobs go", self.reference.host))?;
        let base = if place.starts_with('/') { self.base.as_str() } else { "" };
        let joint = if place.contains('?') { '&' } else { '?' };
        let url = format!("{base}{place}{joint}digest={}", blob.digest.replace(':', "%3A"));
        let headers = [("content-type", "application/octet-stream")];
        let answer = self.as_user("PUT", &url, &headers, &Sent::Blob(path, blob.size, progress))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(self.refused(&what(), answer)),
        }
    }

    /// Writes a blob of the repository to a file, once it is proved.
    ///
    /// # Errors
    /// When the repository does not have it, it is damaged, or the file cannot be written.
    pub fn download(&self, blob: &Blob, to: &Path, progress: Progress<'_>) -> Result<()> {
        check(blob)?;
        patiently(|| {
            let answer = self.as_user("GET", &self.url("blobs", &blob.digest), &[], &Sent::Nothing)?;
            if answer.status() == StatusCode::NOT_FOUND {
                bail!(gone(&self.reference, &blob.digest));
            }
            if !answer.status().is_success() {
                return Err(self.refused(&format!("cannot read {}", blob.digest), answer));
            }
            let mut file = File::create(to)?;
            let mut from = Counted { from: answer.into_body().into_reader().take(blob.size + 1), progress };
            io::copy(&mut from, &mut file).map_err(|error| unreachable(&self.reference, &error))?;
            file.flush()?;
            ensure!(digest(&mut File::open(to)?)? == *blob, "{} did not arrive as it should", blob.digest);
            Ok(())
        })
    }

    /// Makes a call as the user, again if it failed for a reason that may pass.
    fn call(&self, method: &str, url: &str, headers: &[(&str, &str)], sent: &Sent<'_>) -> Result<Response<Body>> {
        patiently(|| self.as_user(method, url, headers, sent))
    }

    fn as_user(&self, method: &str, url: &str, headers: &[(&str, &str)], sent: &Sent<'_>) -> Result<Response<Body>> {
        let used = self.authorization().clone();
        let mut answer = self.once(method, url, headers, sent, used.as_deref())?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            // A token has expired, or there was none yet.
            let renewed = self.log_in(&answer, used.as_ref())?;
            if renewed != used {
                answer = self.once(method, url, headers, sent, renewed.as_deref())?;
            }
        }
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            bail!(Passing(format!("{} answers {status}: {}", self.reference.host, said(answer))));
        }
        Ok(answer)
    }

    fn once(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        sent: &Sent<'_>,
        authorization: Option<&str>,
    ) -> Result<Response<Body>> {
        if cancel::requested() {
            bail!("cancelled");
        }
        let mut request = http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // Where blobs are sent to may be another host, which the credentials are not for.
        if let Some(value) = authorization.filter(|_| url.starts_with(&format!("{}/", self.base))) {
            request = request.header(header::AUTHORIZATION, value);
        }
        let answer = match sent {
            Sent::Nothing => self.agent.run(request.body(())?),
            Sent::Bytes(bytes) => self.agent.run(request.body(*bytes)?),
            Sent::Blob(path, size, progress) => {
                let mut body = Counted { from: File::open(path)?, progress };
                let body = SendBody::from_reader(&mut body);
                self.agent.run(request.header(header::CONTENT_LENGTH, *size).body(body)?)
            }
        };
        answer.map_err(|error| unreachable(&self.reference, &error))
    }

    fn authorization(&self) -> MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the header that the registry asks for, in the place of the one that did not do.
    fn log_in(&self, answer: &Response<Body>, used: Option<&String>) -> Result<Option<String>> {
        let mut authorization = self.authorization();
        if authorization.as_ref() != used {
            // Another thread was faster.
            return Ok(authorization.clone());
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<&str> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        *authorization = match challenges.iter().find_map(|challenge| after(challenge, "bearer ")) {
            Some(challenge) => Some(format!("Bearer {}", self.token(challenge)?)),
            None => self.basic(),
        };
        Ok(authorization.clone())
    }

    fn basic(&self) -> Option<String> {
        let Credentials { user, password, .. } = &self.credentials;
        let plain = format!("{user}:{password}");
        (!user.is_empty()).then(|| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain)))
    }

    /// Asks the server that a challenge names for a token: `realm="https://auth.docker.io/token",service="…"`.
    fn token(&self, challenge: &str) -> Result<String> {
        #[derive(Deserialize)]
        struct Told {
            #[serde(alias = "access_token")]
            token: String,
        }
        if !self.credentials.token.is_empty() {
            return Ok(self.credentials.token.clone());
        }
        let fields = fields(challenge);
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
        let realm = field("realm");
        ensure!(
            realm.starts_with("https://") || (realm.starts_with("http://") && self.base.starts_with("http://")),
            "{} sends to {realm:?} for a token, which is not secure",
            self.reference.host
        );
        let actions = if self.push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", self.reference.name);
        let answer = if self.credentials.identity.is_empty() {
            let mut request = self.agent.get(realm).query("service", field("service")).query("scope", &scope);
            if let Some(basic) = self.basic() {
                request = request.header(header::AUTHORIZATION, basic);
            }
            request.call()
        } else {
            self.agent.post(realm).send_form([
                ("grant_type", "refresh_token"),
                ("service", field("service")),
                ("scope", &scope),
                ("client_id", "docker-cache"),
                ("refresh_token", &self.credentials.identity),
            ])
        };
        let answer = answer.map_err(|error| unreachable(&self.reference, &error))?;
        if !answer.status().is_success() {
            return Err(self.refused("no token", answer));
        }
        let mut text = Vec::new();
        answer.into_body().into_reader().take(MAX_JSON).read_to_end(&mut text)?;
        // The answer is a secret: what is wrong with it is not shown.
        let told: Told = serde_json::from_slice(&text).ok().with_context(|| format!("{realm} gave no token"))?;
        Ok(told.token)
    }

    /// Returns what a refusal means and what can be done about it.
    fn refused(&self, what: &str, answer: Response<Body>) -> anyhow::Error {
        let Reference { host, .. } = &self.reference;
        let login = if host == "docker.io" { "docker login".into() } else { format!("docker login {host}") };
        let status = answer.status();
        let said = said(answer);
        let known = self.credentials != Credentials::default();
        match status {
            StatusCode::UNAUTHORIZED if known => {
                anyhow!("{host} refuses the stored login: it is wrong or has expired\nhint: `{login}`")
            }
            StatusCode::UNAUTHORIZED => anyhow!("{host} wants a login, and none is stored\nhint: `{login}`"),
            StatusCode::FORBIDDEN if !known => {
                anyhow!("{} is closed to those who are not logged in: {said}\nhint: `{login}`", self.reference)
            }
            StatusCode::FORBIDDEN => {
                let verb = if self.push { "write to" } else { "read" };
                anyhow!("this login may not {verb} {}: {said}\nhint: `{login}` as a user who may", self.reference)
            }
            _ => anyhow!("{}: {what}: {status}: {said}", self.reference),
        }
    }
}

/// An error that may pass.
#[derive(Debug)]
struct Passing(String);

impl std::fmt::Display for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Passing {}

/// Runs something again that failed for a reason that may pass.
fn patiently<T>(mut run: impl FnMut() -> Result<T>) -> Result<T> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match run() {
            Err(error) if error.is::<Passing>() && !cancel::requested() => thread::sleep(pause),
            done => return done,
        }
        pause *= 3;
    }
    run()
}

/// Returns who may vouch for a registry: with docker's authorities for it the system's own too, since blobs may come from
/// elsewhere.
fn roots(certificates: &Certificates) -> Result<RootCerts> {
    if certificates.authorities.is_empty() {
        return Ok(RootCerts::PlatformVerifier);
    }
    // Of the system's own, those that cannot be read vouch for nobody.
    let system = rustls_native_certs::load_native_certs().certs;
    let mut all: Vec<Certificate<'static>> = system.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    for (file, pem) in &certificates.authorities {
        let before = all.len();
        all.extend(chain(pem).with_context(|| format!("{} makes no sense", file.display()))?);
        ensure!(all.len() > before, "{} has no certificate", file.display());
    }
    Ok(RootCerts::new_with_certs(&all))
}

fn client(certificates: &Certificates) -> Result<Option<ClientCert>> {
    let Some(client) = &certificates.client else { return Ok(None) };
    let wrong = || format!("{}, or the key beside it, makes no sense", client.file.display());
    let key = PrivateKey::from_pem(&client.key).with_context(wrong)?;
    Ok(Some(ClientCert::new_with_certs(&chain(&client.certificate).with_context(wrong)?, key)))
}

/// Returns the certificates in a PEM file.
fn chain(pem: &[u8]) -> Result<Vec<Certificate<'static>>, ureq::Error> {
    let mut chain = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item? {
            chain.push(certificate);
        }
    }
    Ok(chain)
}

/// Returns the error of a call that had no answer. What the library says of TLS comes as an error of input and output.
fn unreachable(reference: &Reference, error: &(impl std::error::Error + ?Sized)) -> anyhow::Error {
    let (host, why) = (&reference.host, error.to_string());
    let why = why.trim_start_matches("io: ");
    if cancel::requested() {
        return anyhow!("cancelled");
    }
    if why.contains("fatal alert") && why.contains("Certificate") {
        return anyhow!(
            "{host} does not take what this client says of itself: {why}\nhint: put its certificate and key at \
             `/etc/docker/certs.d/{host}/client.cert` and `client.key`"
        );
    }
    if why.contains("certificate") || why.contains("corrupt message") {
        return anyhow!(
            "cannot reach {host} safely: {why}\nhint: put the certificate of its authority at \
             `/etc/docker/certs.d/{host}/ca.crt`, or write `type=registry,ref={reference},registry.insecure=true`"
        );
    }
    anyhow!(Passing(format!("cannot reach {host}: {why}")))
}

/// Returns the words of an error as registries give it.
fn said(answer: Response<Body>) -> String {
    #[derive(Deserialize)]
    struct Told {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut text = Vec::new();
    // What cannot be read says nothing.
    let _ = answer.into_body().into_reader().take(1 << 16).read_to_end(&mut text);
    let told: Option<Told> = serde_json::from_slice(&text).ok();
    let one = |one: &One| if one.message.is_empty() { one.code.clone() } else { one.message.clone() };
    let words = told.map(|told| told.errors.iter().map(one).collect::<Vec<_>>().join(", "));
    words.filter(|words| !words.is_empty()).unwrap_or("it does not say why".into())
}

/// Returns what follows a prefix, whatever its case.
fn after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let begin = text.get(..prefix.len())?;
    begin.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

/// Reads `key="value",key=value`; a comma may be within quotes.
fn fields(text: &str) -> Vec<(String, String)> {
    let mut quoted = false;
    let parts = text.split(|c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    let pairs = parts.filter_map(|part| part.trim().split_once('='));
    pairs.map(|(key, value)| (key.to_ascii_lowercase(), value.trim_matches('"').into())).collect()
}

/// Returns true for names and addresses of this machine's loopback.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A reader that tells of its bytes, and stops when the user does.
struct Counted<'a, R> {
    from: R,
    progress: Progress<'a>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if cancel::requested() {
            return Err(io::Error::other("cancelled"));
        }
        let read = self.from.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    /// A registry that wants a token, which is good for two calls, and has nothing. Returns its address.
    fn with_tokens() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let host = address.clone();
        thread::spawn(move || {
            let (mut token, mut used) = (0, 0);
            for mut stream in listener.incoming().map_while(Result::ok) {
                let reader = BufReader::new(stream.try_clone().unwrap());
                let head: Vec<String> =
                    reader.lines().map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
                let Some(call) = head.first().filter(|call| call.is_ascii()) else { continue };
                let has = |text: &str| head.iter().any(|line| line.contains(text));
                let answer = if call.contains("/token?") {
                    // me:secret
                    assert!(has("Basic bWU6c2VjcmV0") && call.contains("service=team%20s"), "{head:?}");
                    assert!(call.contains("scope=repository%3Aa%2Fb%3Apull%2Cpush"), "{head:?}");
                    (token, used) = (token + 1, 0);
                    let body = format!(r#"{{"token":"t{token}"}}"#);
                    format!("200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
                } else if has(&format!("Bearer t{token}")) && used < 2 {
                    used += 1;
                    "404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()
                } else {
                    let challenge = format!(r#"Bearer realm="http://{host}/token",service="team s",scope="x,y""#);
                    format!(
                        "401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                };
                let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes());
            }
        });
        address
    }

    #[test]
    fn tokens_are_fetched_and_renewed() {
        let reference: Reference = format!("{}/a/b:c", with_tokens()).parse().unwrap();
        let login = Credentials { user: "me".into(), password: "secret".into(), ..Credentials::default() };
        let registry = Registry::connect(&reference, login, &Certificates::default(), true).unwrap();
        for _ in 0..5 {
            assert!(!registry.has("blobs", "sha256:0").unwrap());
        }
        assert_eq!(registry.authorization().as_deref(), Some("Bearer t3"));
    }

    #[test]
    fn challenges_are_read() {
        let read = fields(r#"realm="https://a/t",Scope="repository:x:pull,push", service=s"#);
        let expected = [("realm", "https://a/t"), ("scope", "repository:x:pull,push"), ("service", "s")];
        assert_eq!(read, expected.map(|(key, value)| (key.to_string(), value.to_string())));
    }

    #[test]
    fn loopback_is_what_docker_takes_for_it() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.com", "10.0.0.1:5000", "[2001:db8::1]:5000", "ghcr.io"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
