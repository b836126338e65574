//! One repository of a registry, over the OCI distribution protocol: blobs and manifests, nothing of what they mean.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::HeaderName;
use ureq::http::{self, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, ResponseExt, SendBody};

use super::location::Reference;
use super::{Descriptor, MAX_JSON};
use crate::cancel;
use crate::docker::{Certificates, Credentials};
use crate::inside::pack::{Blob, digest};
use crate::report::plain;

/// What manifests may be: what buildx, and this program, write.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// How long a registry may be silent. Some check a blob only when all of it is there.
const SILENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(20);
/// How often a call is made that fails for a reason that may pass, and the first pause.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(400);
/// How often it is made if the registry itself tells how long to wait, and how long that may be.
const TOLD_TRIES: u32 = 6;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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

/// What a manifest says of itself.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MediaType {
    #[serde(default)]
    media_type: String,
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
        let (local, lenient) = (is_loopback(host), is_lenient(reference));
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
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
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

    /// Finds out early whether this user may write: begins an upload, and gives it up.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn may_push(&self) -> Result<()> {
        let place = patiently(|| self.begin_upload("cannot write"))?;
        // A registry that does not know how to give up forgets it by itself.
        let _ = self.as_user("DELETE", &place, &[], &Sent::Nothing);
        Ok(())
    }

    fn url(&self, kind: &str, rest: &str) -> String {
        format!("{}/v2/{}/{kind}/{rest}", self.base, self.reference.name)
    }

    /// Returns true if the repository has this blob or manifest: kind `blobs` or `manifests`.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn has(&self, kind: &str, digest: &str) -> Result<bool> {
        let answer = self.call("HEAD", &self.url(kind, digest), &[("accept", MANIFESTS)], &Sent::Nothing);
        let answer = answer.map_err(|error| self.of_one(digest, error))?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(&format!("{digest} is not told of"), answer)),
        }
    }

    /// Returns the manifest of a tag or digest, if there is one, and what it is.
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or the manifest is too large or [`Broken`].
    pub fn manifest(&self, tag: &str) -> Result<Option<(Descriptor, Vec<u8>)>> {
        let found = patiently(|| {
            let url = self.url("manifests", tag);
            let answer = self.as_user("GET", &url, &[("accept", MANIFESTS)], &Sent::Nothing)?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Ok(None),
                _ => return Err(self.refused(&format!("cannot read {tag}"), answer)),
            }
            let kind = header_of(&answer, header::CONTENT_TYPE).unwrap_or_default();
            let media_type = kind.split(';').next().unwrap_or_default().to_string();
            let bytes = read(answer, MAX_JSON + 1).map_err(|error| unreachable(&self.reference, &error))?;
            Ok(Some((media_type, bytes)))
        });
        let found = found.map_err(|error| self.of_one(tag, error))?;
        let Some((mut media_type, bytes)) = found else { return Ok(None) };
        if !MANIFESTS.contains(&media_type) || media_type.is_empty() {
            // Storage behind a registry may call it just JSON.
            let own = serde_json::from_slice::<MediaType>(&bytes).unwrap_or_default();
            media_type = own.media_type;
        }
        ensure!(bytes.len() as u64 <= MAX_JSON, "the manifest {tag} is too large");
        let Blob { digest, size } = digest(&mut &bytes[..])?;
        ensure!(!tag.starts_with("sha256:") || tag == digest, Broken::Damaged(tag.into()));
        Ok(Some((Descriptor { media_type, digest, size, ..Descriptor::default() }, bytes)))
    }

    /// Returns the digest of the manifest of a tag, if there is one. Where pulls are counted, this is none.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn digest(&self, tag: &str) -> Result<Option<String>> {
        const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
        let answer = self.call("HEAD", &self.url("manifests", tag), &[("accept", MANIFESTS)], &Sent::Nothing);
        let answer = answer.map_err(|error| self.of_one(tag, error))?;
        match (answer.status(), header_of(&answer, DIGEST)) {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (StatusCode::OK, Some(digest)) => Ok(Some(digest.to_owned())),
            _ => Ok(self.manifest(tag)?.map(|(descriptor, _)| descriptor.digest)),
        }
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
        let what = format!("cannot write {}", blob.digest);
        let place = self.begin_upload(&what)?;
        let joint = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{joint}digest={}", blob.digest.replace(':', "%3A"));
        let headers = [("content-type", "application/octet-stream")];
        let answer = self.as_user("PUT", &url, &headers, &Sent::Blob(path, blob.size, progress))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(self.refused(&what, answer)),
        }
    }

    /// Returns the address that a blob is to be sent to.
    fn begin_upload(&self, what: &str) -> Result<String> {
        let url = self.url("blobs", "uploads/");
        let answer = self.as_user("POST", &url, &[], &Sent::Bytes(&[]))?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.refused(what, answer));
        }
        let place = header_of(&answer, header::LOCATION);
        let place = place.with_context(|| format!("{} does not say where blobs go", self.reference.host))?;
        Ok(resolve(&url, place))
    }

    /// Returns true for addresses of the registry itself: blobs may lie on other hosts, which the login is not for.
    fn is_own(&self, uri: &Uri) -> bool {
        let base: Option<Uri> = self.base.parse().ok();
        base.is_some_and(|base| origin(&base) == origin(uri))
    }

    /// Writes a blob of the repository to a file, once it is proved.
    ///
    /// # Errors
    /// When it is [`Broken`], or the file cannot be written.
    pub fn download(&self, blob: &Blob, to: &Path, progress: Progress<'_>) -> Result<()> {
        blob.check()?;
        patiently(|| {
            let answer = self.as_user("GET", &self.url("blobs", &blob.digest), &[], &Sent::Nothing)?;
            if answer.status() == StatusCode::NOT_FOUND {
                bail!(Broken::Gone(blob.digest.clone()));
            }
            if !answer.status().is_success() {
                return Err(self.refused(&format!("cannot read {}", blob.digest), answer));
            }
            let mut file = File::create(to).map_err(|error| unwritten(to, &error))?;
            let mut from =
                Counted { from: cancel::Reader(answer.into_body().into_reader().take(blob.size + 1)), progress };
            let mut buffer = vec![0; 1 << 17];
            loop {
                let read = from.read(&mut buffer).map_err(|error| unreachable(&self.reference, &error))?;
                if read == 0 {
                    break;
                }
                file.write_all(&buffer[..read]).map_err(|error| unwritten(to, &error))?;
            }
            ensure!(digest(&mut File::open(to)?)? == *blob, Broken::Damaged(blob.digest.clone()));
            Ok(())
        })
    }

    /// Makes a call as the user, again if it failed for a reason that may pass.
    fn call(&self, method: &str, url: &str, headers: &[(&str, &str)], sent: &Sent<'_>) -> Result<Response<Body>> {
        patiently(|| self.as_user(method, url, headers, sent))
    }

    /// Tells what the registry cannot answer for alone from an outage, in which it does not answer for the tag either.
    fn of_one(&self, tag: &str, error: anyhow::Error) -> anyhow::Error {
        let failed = error.downcast_ref::<Passing>().is_some_and(|passing| passing.failed);
        let is_one = *tag != self.reference.tag;
        match failed && is_one && self.digest(&self.reference.tag).is_ok() {
            true => anyhow!(Broken::Unreadable(format!("{tag} cannot be read: {error:#}"))),
            false => error,
        }
    }

    fn as_user(&self, method: &str, url: &str, headers: &[(&str, &str)], sent: &Sent<'_>) -> Result<Response<Body>> {
        let used = self.authorization().clone();
        let mut answer = self.once(method, url, headers, sent, used.as_deref())?;
        if answer.status() == StatusCode::UNAUTHORIZED && !self.is_own(answer.get_uri()) {
            bail!("{}: the storage behind it wants a login of its own", self.reference);
        }
        if answer.status() == StatusCode::UNAUTHORIZED {
            // A token has expired, or there was none yet.
            let renewed = self.log_in(&answer, used.as_ref())?;
            if renewed != used {
                answer = self.once(method, url, headers, sent, renewed.as_deref())?;
            }
        }
        self.unless_passing(answer)
    }

    /// Returns an answer, unless the registry has too much to do now.
    fn unless_passing(&self, answer: Response<Body>) -> Result<Response<Body>> {
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            let after = header_of(&answer, header::RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
            let why = format!("{} answers {status}: {}", self.reference.host, said(answer));
            bail!(Passing { why, after: after.map(Duration::from_secs), failed: status.is_server_error() });
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
        cancel::check()?;
        let uri: Uri = url.parse().with_context(|| format!("{} sends to {url:?}", self.reference.host))?;
        let is_own = self.is_own(&uri);
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(value) = authorization.filter(|_| is_own) {
            request = request.header(header::AUTHORIZATION, value);
        }
        let agent = self.agent.clone();
        let answer = match sent {
            Sent::Nothing => {
                let request = request.body(())?;
                unless_cancelled(move || agent.run(request))?
            }
            Sent::Bytes(bytes) => {
                let request = request.body(bytes.to_vec())?;
                unless_cancelled(move || agent.run(request))?
            }
            Sent::Blob(path, size, progress) => {
                let mut body = Counted { from: cancel::Reader(File::open(path)?), progress };
                let body = SendBody::from_reader(&mut body);
                agent.run(request.header(header::CONTENT_LENGTH, *size).body(body)?)
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
        // Some servers give both names, one for OAuth2.
        #[derive(Deserialize)]
        struct Told {
            token: Option<String>,
            access_token: Option<String>,
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
            unless_cancelled(move || request.call())?
        } else {
            let form = [
                ("grant_type", "refresh_token"),
                ("service", field("service")),
                ("scope", &scope),
                ("client_id", "docker-cache"),
                ("refresh_token", &self.credentials.identity),
            ];
            let (request, form) = (self.agent.post(realm), form.map(|(name, value)| (name, value.to_owned())));
            unless_cancelled(move || request.send_form(form))?
        };
        let answer = self.unless_passing(answer.map_err(|error| unreachable(&self.reference, &error))?)?;
        if !answer.status().is_success() {
            return Err(self.refused("no token", answer));
        }
        let text = read(answer, MAX_JSON)?;
        // The answer is a secret: what is wrong with it is not shown.
        let told: Option<Told> = serde_json::from_slice(&text).ok();
        let tokens = told.map(|told| [told.token, told.access_token]).into_iter().flatten().flatten();
        tokens.into_iter().find(|token| !token.is_empty()).with_context(|| format!("{realm} gave no token"))
    }

    /// Returns what a refusal means and what can be done about it.
    fn refused(&self, what: &str, answer: Response<Body>) -> anyhow::Error {
        let Reference { host, .. } = &self.reference;
        let login = if host == "docker.io" { "docker login".into() } else { format!("docker login {host}") };
        let mut status = answer.status();
        // A token that is good, but not for this.
        let challenge = header_of(&answer, header::WWW_AUTHENTICATE).unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED && challenge.contains("insufficient_scope") {
            status = StatusCode::FORBIDDEN;
        }
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

/// What a bundle refers to and the registry does not have, or not as it was.
#[derive(Debug)]
pub enum Broken {
    /// It has something else of this digest. To send it again does not help: registries keep what they have of one.
    Damaged(String),
    /// It fails for this manifest alone, and why. Distribution then neither removes it nor collects anything.
    Unreadable(String),
    /// It has nothing of this digest.
    Gone(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Damaged(digest) => write!(f, "{digest} is damaged in the registry"),
            Broken::Unreadable(why) => f.write_str(why),
            Broken::Gone(digest) => write!(f, "it refers to {digest}, which the registry does not have any more"),
        }
    }
}

impl std::error::Error for Broken {}

/// An error that may pass.
#[derive(Debug)]
struct Passing {
    why: String,
    /// How long to wait, if the registry told it.
    after: Option<Duration>,
    /// The registry answered, and said that it failed.
    failed: bool,
}

impl std::fmt::Display for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Passing {}

/// Runs something again that failed for a reason that may pass.
fn patiently<T>(mut run: impl FnMut() -> Result<T>) -> Result<T> {
    let mut pause = PAUSE;
    let mut tries = 1;
    loop {
        let done = run();
        let passing = done.as_ref().err().and_then(|error| error.downcast_ref::<Passing>());
        let Some(Passing { after, .. }) = passing else { return done };
        if tries >= after.map_or(TRIES, |_| TOLD_TRIES) {
            return done;
        }
        let end = Instant::now() + after.unwrap_or(pause).min(LONGEST_PAUSE);
        while Instant::now() < end {
            if cancel::requested() {
                return done;
            }
            thread::sleep(Duration::from_millis(50));
        }
        (tries, pause) = (tries + 1, pause * 3);
    }
}

fn header_of(answer: &Response<Body>, name: HeaderName) -> Option<&str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Returns the address that a `Location` means in the answer to a call of `url`.
fn resolve(url: &str, place: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or_default();
    match place {
        _ if place.contains("://") => place.to_owned(),
        _ if place.starts_with("//") => format!("{scheme}:{place}"),
        _ if place.starts_with('/') => format!("{scheme}://{host}{place}"),
        _ => format!("{}/{place}", url.rsplit_once('/').map_or(url, |(directory, _)| directory)),
    }
}

/// Returns what makes two addresses those of one server: scheme, host and port.
fn origin(uri: &Uri) -> (String, String, u16) {
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    (scheme, uri.host().unwrap_or_default().to_ascii_lowercase(), port)
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

/// Makes a call that may wait long for an answer; when the user cancels, nobody waits for it any more.
///
/// # Errors
/// When the user cancels.
fn unless_cancelled<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, answer) = channel();
    thread::spawn(move || sender.send(call()));
    loop {
        match answer.recv_timeout(Duration::from_millis(100)) {
            Err(RecvTimeoutError::Timeout) => cancel::check()?,
            answer => return answer.context("the call ended without an answer"),
        }
    }
}

/// Returns what an answer has, up to this many bytes; a cancel ends it.
fn read(answer: Response<Body>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    cancel::Reader(answer.into_body().into_reader().take(most)).read_to_end(&mut bytes)?;
    Ok(bytes)
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
    anyhow!(Passing { why: format!("cannot reach {host}: {why}"), after: None, failed: false })
}

/// Returns the error of a file that what comes from a registry goes to.
fn unwritten(to: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!("cannot write {}: {error}\nhint: `TMPDIR` names the disk for what comes from a registry", to.display())
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
    // What cannot be read says nothing.
    let text = read(answer, 1 << 16).unwrap_or_default();
    let told: Option<Told> = serde_json::from_slice(&text).ok();
    let one = |one: &One| if one.message.is_empty() { one.code.clone() } else { one.message.clone() };
    let words = told.map(|told| told.errors.iter().map(one).collect::<Vec<_>>().join(", "));
    words.filter(|words| !words.is_empty()).map_or("it does not say why".into(), |words| plain(&words))
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

/// Tells whether plain HTTP, or a certificate that nobody vouches for, is good enough.
pub fn is_lenient(reference: &Reference) -> bool {
    reference.insecure || is_loopback(&reference.host)
}

/// Returns true for names and addresses of this machine's loopback.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A reader that tells of its bytes.
struct Counted<'a, R> {
    from: R,
    progress: Progress<'a>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::mpsc;

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
                    let body = format!(r#"{{"token":"t{token}","access_token":"t{token}"}}"#);
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

    /// Answers calls one after the other as it is told; returns the address, and the heads of the calls.
    fn answering(answers: Vec<String>) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (heads, seen) = mpsc::channel();
        thread::spawn(move || {
            let mut answers = answers.into_iter();
            for mut stream in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head: Vec<String> = lines.map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
                if head.first().is_none_or(|call| !call.contains(" HTTP/1.1")) {
                    continue;
                }
                let Some(answer) = answers.next() else { return };
                let _ = heads.send(head.join("\n"));
                let end = if answer.contains("Content-Length") { "" } else { "\r\nContent-Length: 0" };
                let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
                let _ = stream.write_all(format!("HTTP/1.1 {head}{end}\r\nConnection: close\r\n\r\n{body}").as_bytes());
            }
        });
        (address, seen)
    }

    fn connect(address: &str) -> Registry {
        let reference: Reference = format!("{address}/a/b:c").parse().unwrap();
        let login = Credentials { user: "me".into(), password: "secret".into(), ..Credentials::default() };
        Registry::connect(&reference, login, &Certificates::default(), true).unwrap()
    }

    #[test]
    fn a_busy_registry_is_given_the_time_it_asks_for() {
        let busy = "429 Too Many Requests\r\nRetry-After: 0".to_string();
        let (address, _heads) = answering(vec![busy.clone(), busy.clone(), busy.clone(), busy, "200 OK".into()]);
        assert!(connect(&address).has("blobs", "sha256:0").unwrap());
    }

    #[test]
    fn a_manifest_that_breaks_off_is_read_again() {
        let answer = |body| format!("200 OK\r\nContent-Type: {INDEX}\r\nContent-Length: 2\r\n\r\n{body}");
        let (address, heads) = answering(vec![answer("{"), answer("{}")]);
        let (descriptor, bytes) = connect(&address).manifest("c").unwrap().unwrap();
        assert_eq!((descriptor.media_type.as_str(), &bytes[..], heads.try_iter().count()), (INDEX, &b"{}"[..], 2));
    }

    #[test]
    fn a_host_that_is_sent_to_gets_no_login() {
        let challenge =
            |address: &str| format!("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{address}/t\"");
        let (thief, heads) = answering(vec![]);
        drop(heads);
        let (storage, stored) = answering(vec![challenge(&thief)]);
        let redirect = format!("307 Temporary Redirect\r\nLocation: http://{storage}/blob");
        let (address, _heads) = answering(vec![redirect]);
        let blob = Blob { digest: format!("sha256:{:064}", 0), size: 1 };
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = connect(&address).download(&blob, file.path(), &|_| ()).unwrap_err().to_string();
        assert!(error.contains("the storage behind it wants a login"), "{error}");
        assert!(!stored.recv().unwrap().to_lowercase().contains("authorization"));
    }

    #[test]
    fn a_full_disk_is_no_unreachable_registry() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx");
            }
        });
        let blob = digest(&mut &b"x"[..]).unwrap();
        let error = connect(&address.to_string()).download(&blob, Path::new("/dev/full"), &|_| ()).unwrap_err();
        assert!(!error.is::<Passing>() && error.to_string().contains("TMPDIR"), "{error}");
    }

    #[test]
    fn a_token_that_does_not_reach_is_no_wrong_login() {
        let refusal = "401 Unauthorized\r\nWWW-Authenticate: Basic error=\"insufficient_scope\"".to_string();
        let (address, _heads) = answering(vec![refusal.clone(), refusal]);
        let error = connect(&address).may_push().unwrap_err().to_string();
        assert!(error.contains("this login may not write to"), "{error}");
    }

    #[test]
    fn addresses_are_resolved_and_told_apart() {
        let call = "https://a.example/v2/x/blobs/uploads/";
        for (place, expected) in [
            ("https://b.example/u?s=1", "https://b.example/u?s=1"),
            ("//b.example/u", "https://b.example/u"),
            ("/v2/u", "https://a.example/v2/u"),
            ("u?s=1", "https://a.example/v2/x/blobs/uploads/u?s=1"),
        ] {
            assert_eq!(resolve(call, place), expected);
        }
        let origin = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(origin("https://A.example/x"), origin("https://a.example:443/y"));
        for other in ["http://a.example", "https://a.example:444", "https://b.example", "https://a.example.org"] {
            assert_ne!(origin("https://a.example"), origin(other));
        }
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
