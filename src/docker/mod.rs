//! The only door to docker: one method is one call of the command, or one exchange with the Engine API. It decides nothing and
//! prints nothing.

mod api;
mod builder;
mod buildx;
mod certificates;
mod credentials;
pub mod endpoint;
mod error;
mod helper;
pub mod parse;
mod volume;
mod warm;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Write, pipe};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use duct::Handle;
use rustix::process::{Pid, Signal, kill_process_group};

pub use self::api::{Container, ContainerConfig, ContainerMount, Info, Overview, Volume};
pub use self::builder::BuilderRef;
pub use self::certificates::Certificates;
pub use self::credentials::Credentials;
pub use self::error::{Cause, DockerError};
pub use self::helper::{BLOBS, abandoned, field, is_helper, temporary_dir, unique_name};
pub use self::warm::Warmer;
use crate::cancel;
use crate::model::{CacheRecord, Moment};
pub use crate::report::quote;

/// How long a call may take that only asks: buildx itself waits 20 s for a builder that does not answer.
pub const ASK_LIMIT: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, DockerError>;

/// The docker command, with the global flags that this program was called with.
#[derive(Clone, Debug)]
pub struct Docker {
    program: PathBuf,
    globals: Vec<OsString>,
    /// Where the flags lead, for messages: `unix:///var/run/docker.sock`.
    pub endpoint: endpoint::Endpoint,
    /// True if it is docker that started this program: any other may be a script that goes elsewhere than the endpoint.
    is_caller: bool,
    limit: Duration,
    /// True for calls that clean up: they run, and finish, after the user cancelled.
    survives_cancel: bool,
}

impl Docker {
    /// Finds the docker command: the one that started this plugin, else the one on PATH.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(globals: Vec<OsString>, endpoint: endpoint::Endpoint) -> Result<Docker> {
        let original = std::env::var_os("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND").map(PathBuf::from);
        let is_caller = original.is_some();
        let program = original
            // In a completion the variable holds the plugin's own path.
            .filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("docker-")))
            .and_then(|name| which::which(name).ok())
            .or_else(|| which::which("docker").ok())
            .ok_or_else(|| DockerError::new("docker", Cause::NoDocker))?;
        let limit = limit_of_user().unwrap_or(ASK_LIMIT);
        Ok(Docker { program, globals, endpoint, is_caller, limit, survives_cancel: false })
    }

    /// Returns the same command aimed at another docker context.
    pub fn in_context(&self, context: &str) -> Docker {
        let mut globals = self.endpoint.config_flags();
        globals.extend(["--context".into(), context.into()]);
        Docker { globals, endpoint: self.endpoint.in_context(context), ..self.clone() }
    }

    /// Returns the same command with less patience, unless the user said how much: for questions that nobody waits for.
    pub fn within(&self, limit: Duration) -> Docker {
        Docker { limit: limit_of_user().unwrap_or(limit), ..self.clone() }
    }

    /// Returns the same command for calls that clean up: they run, and finish, after the user cancelled.
    pub fn cleanup(&self) -> Docker {
        Docker { survives_cancel: true, ..self.clone() }
    }

    /// Begins a call of `docker ARGS…`.
    fn call<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call<'_> {
        Call {
            docker: self,
            args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect(),
            env: Vec::new(),
            limit: Some(self.limit),
            survives_cancel: self.survives_cancel,
            merged: false,
        }
    }
}

/// Asks for the records of a builder, and again for up to two seconds while it says that a snapshot is gone: of layers it
/// makes a snapshot for a moment after a build, and with the containerd image store the question fails if that goes
/// meanwhile (seen in one of 50 on Engine 28.5).
///
/// # Errors
/// The last one.
fn settled<T>(ask: impl Fn() -> Result<T>) -> Result<T> {
    let is_passing = |error: &DockerError| matches!(&error.cause, Cause::Refused(why) if why.contains("snapshot") && why.contains("does not exist"));
    for pause in [20, 50, 100, 300, 600, 900].map(Duration::from_millis) {
        match ask() {
            Err(error) if is_passing(&error) => thread::sleep(pause),
            answer => return answer,
        }
    }
    ask()
}

/// Returns these records if none was used within a second of now, else the first of two answers in a row (100 ms apart, at
/// most 2 s) that tell of the same ones, used as often.
///
/// # Errors
/// Those of `ask`.
pub(crate) fn at_rest(
    mut records: Vec<CacheRecord>,
    now: Moment,
    ask: impl Fn() -> Result<Vec<CacheRecord>>,
) -> Result<Vec<CacheRecord>> {
    let told = |records: &[CacheRecord]| {
        records.iter().map(|record| (record.id.clone(), record.uses)).collect::<BTreeSet<_>>()
    };
    if records.iter().any(|record| record.last_used.is_some_and(|used| used.abs_diff(now.0) <= 1)) {
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(100));
            let before = std::mem::replace(&mut records, ask()?);
            if told(&before) == told(&records) {
                break;
            }
        }
    }
    Ok(records)
}

const LIMIT: &str = "DOCKER_CACHE_TIMEOUT";

/// Returns what `DOCKER_CACHE_TIMEOUT` says, if it can be read: `30s`.
fn limit_of_user() -> Option<Duration> {
    humantime::parse_duration(&endpoint::variable(LIMIT)?).ok().filter(|limit| !limit.is_zero())
}

/// Returns the line that says so if `DOCKER_CACHE_TIMEOUT` cannot be read.
pub fn wrong_limit() -> Option<String> {
    let value = endpoint::variable(LIMIT).filter(|_| limit_of_user().is_none())?;
    Some(format!("{LIMIT}={} is not used: a number and its unit are needed, such as 30s", quote(value)))
}

/// One call of docker, before it is started.
struct Call<'a> {
    docker: &'a Docker,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    limit: Option<Duration>,
    survives_cancel: bool,
    /// What it writes to standard error goes where its output goes.
    merged: bool,
}

/// What a call reads from its standard input.
enum Input {
    Nothing,
    /// Bytes, after which the pipe stays open until the call ends.
    Held(Vec<u8>),
    Pipe(PipeReader),
}

impl Call<'_> {
    /// Lets the call take as long as it needs.
    fn unlimited(mut self) -> Self {
        self.limit = None;
        self
    }

    /// Sends standard error where the output goes, in the order in which both were written.
    fn merged(mut self) -> Self {
        self.merged = true;
        self
    }

    /// Lets the call run, and finish, after the user cancelled: it cleans up.
    fn cleanup(mut self) -> Self {
        self.survives_cancel = true;
        self
    }

    /// Lets the call finish once it has begun. The engine would finish it even if docker were ended, a moment after a look
    /// for what is to be removed.
    ///
    /// # Errors
    /// When the user has already cancelled, and it does not clean up.
    fn whole(self) -> Result<Self> {
        if cancel::requested() && !self.survives_cancel {
            Err(DockerError::new(self.words(), Cause::Interrupted))
        } else {
            Ok(self.cleanup())
        }
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Returns the command as a user would type it.
    fn words(&self) -> String {
        let words = std::iter::once("docker".into()).chain(self.args.iter().map(quote));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Runs the call by `run`, with a pipe for its standard input that `send` fills at the same time.
    fn fed<T>(
        self,
        send: impl FnOnce(PipeWriter) -> std::io::Result<()> + Send,
        run: impl FnOnce(Self, PipeReader) -> Result<T>,
    ) -> Result<T> {
        let words = self.words();
        let failed = |error: std::io::Error| DockerError::new(&words, Cause::Refused(error.to_string()));
        let (reader, writer) = pipe().map_err(failed)?;
        thread::scope(|scope| {
            let sender = scope.spawn(|| send(writer));
            let done = run(self, reader);
            match (crate::parallel::join(sender), done) {
                (Ok(()), done) => done,
                // Docker itself says why it read no more.
                (Err(error), Err(docker))
                    if error.kind() == ErrorKind::BrokenPipe || matches!(docker.cause, Cause::Interrupted) =>
                {
                    Err(docker)
                }
                (Err(error), _) => Err(failed(error)),
            }
        })
    }

    /// Runs the call and returns its standard output.
    fn run(self) -> Result<Vec<u8>> {
        self.run_with(Input::Nothing)
    }

    fn run_with(self, input: Input) -> Result<Vec<u8>> {
        let (limit, words) = (self.limit, self.words());
        let (running, _held) = self.start(input, None, None)?;
        running.finish(limit, words).map(|(output, _)| output)
    }

    /// Runs the call and returns what it wrote to standard error: that is where builds tell their steps.
    fn run_told(self) -> Result<String> {
        let (limit, words) = (self.limit, self.words());
        let (running, _held) = self.start(Input::Nothing, None, None)?;
        running.finish(limit, words).map(|(_, told)| String::from_utf8_lossy(&told).into_owned())
    }

    /// Runs the call and hands its standard output to `read` while it runs.
    fn stream<T>(self, input: Input, read: impl FnOnce(PipeReader) -> T) -> Result<T> {
        let words = self.words();
        let (reader, writer) = pipe().map_err(|error| DockerError::new(&words, Cause::Refused(error.to_string())))?;
        let (running, _held) = self.start(input, Some(writer), None)?;
        let value = read(reader);
        running.finish(None, words)?;
        Ok(value)
    }

    /// Runs the call and hands each line of its standard error to `each`, and its standard output to `read`, while it
    /// runs.
    fn stream_telling<T>(
        self,
        input: Input,
        each: &mut (dyn FnMut(&str) + Send),
        read: impl FnOnce(PipeReader) -> T,
    ) -> Result<T> {
        let words = self.words();
        let failed = |error: std::io::Error| DockerError::new(&words, Cause::Refused(error.to_string()));
        let ((output, output_end), (errors, errors_end)) = (pipe().map_err(failed)?, pipe().map_err(failed)?);
        let (mut running, _held) = self.start(input, Some(output_end), Some(errors_end))?;
        let told = &mut running.told;
        let value = thread::scope(|scope| {
            scope.spawn(move || {
                for line in BufReader::new(errors).split(b'\n').map_while(std::io::Result::ok) {
                    each(&String::from_utf8_lossy(&line));
                    told.extend(line);
                    told.push(b'\n');
                }
            });
            read(output)
        });
        running.finish(None, words)?;
        Ok(value)
    }

    /// Starts the process in a group of its own, so that a cancel or a time limit ends docker and its plugins alike.
    fn start(
        self,
        input: Input,
        output: Option<PipeWriter>,
        errors: Option<PipeWriter>,
    ) -> Result<(Running, Option<PipeWriter>)> {
        let words = self.words();
        let failed = |error: std::io::Error| DockerError::new(&words, Cause::Refused(error.to_string()));
        if cancel::requested() && !self.survives_cancel {
            return Err(DockerError::new(words, Cause::Interrupted));
        }
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        let mut command = duct::cmd(&self.docker.program, self.docker.globals.iter().chain(&self.args))
            .unchecked()
            // They are about this plugin, not about the child's plugins.
            .env_remove("DOCKER_CLI_PLUGIN_SOCKET")
            .env_remove("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND")
            .before_spawn(|command| {
                command.process_group(0);
                Ok(())
            });
        // What is said first of a stream holds, and what follows of it does not count.
        if self.merged {
            command = command.stderr_to_stdout();
        }
        command = match output {
            Some(pipe) => command.stdout_file(pipe),
            None => command.stdout_capture(),
        };
        command = match errors {
            Some(pipe) => command.stderr_file(pipe),
            None => command.stderr_capture(),
        };
        let mut held: Option<(PipeWriter, Vec<u8>)> = None;
        command = match input {
            Input::Nothing => command.stdin_null(),
            Input::Pipe(reader) => command.stdin_file(reader),
            Input::Held(bytes) => {
                let (reader, writer) = pipe().map_err(failed)?;
                held = Some((writer, bytes));
                command.stdin_file(reader)
            }
        };
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        // It is about the user's builds: docker starts nothing at all, plugins included, if it is neither true nor false.
        command = command.env_remove("DOCKER_BUILDKIT");
        let handle = command.start().map_err(failed)?;
        // It has the reading end of the pipe too, by which a write would wait for ever once docker has ended.
        drop(command);
        let group = handle.pids().first().and_then(|pid| Pid::from_raw(*pid as i32));
        let guard = group.filter(|_| !self.survives_cancel).map(cancel::watch);
        let endpoint = self.docker.endpoint.to_string();
        let held = held.map(|(mut writer, bytes)| {
            // A process that ends before it has read all says why on stderr.
            let _ = writer.write_all(&bytes);
            writer
        });
        let survives_cancel = self.survives_cancel;
        Ok((Running { handle, group, endpoint, told: Vec::new(), survives_cancel, _guard: guard }, held))
    }
}

struct Running {
    handle: Handle,
    group: Option<Pid>,
    endpoint: String,
    /// What was already read of its standard error.
    told: Vec<u8>,
    survives_cancel: bool,
    _guard: Option<cancel::Guard>,
}

impl Running {
    /// Returns what it wrote to standard output and standard error.
    fn finish(self, limit: Option<Duration>, words: String) -> Result<(Vec<u8>, Vec<u8>)> {
        let failed = |error: std::io::Error| DockerError::new(&words, Cause::Refused(error.to_string()));
        let output = match limit {
            Some(limit) => match self.handle.wait_timeout(limit).map_err(failed)? {
                Some(output) => output,
                None => {
                    self.kill();
                    return Err(DockerError::new(words, Cause::TimedOut(limit)));
                }
            },
            None => self.handle.wait().map_err(failed)?,
        };
        if output.status.success() {
            return Ok((output.stdout.clone(), output.stderr.clone()));
        }
        let told = [&self.told[..], &output.stderr].concat();
        if cancel::requested() && !self.survives_cancel {
            return Err(DockerError::new(words, Cause::Interrupted));
        }
        Err(DockerError::from_stderr(words, &String::from_utf8_lossy(&told), &self.endpoint))
    }

    fn kill(&self) {
        if let Some(group) = self.group {
            // It may have ended in this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.handle.wait();
    }
}

/// Returns bytes of docker's output as text.
fn text(call: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| DockerError::new(call, Cause::Garbage("it is not UTF-8".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_asked_for_again_when_a_snapshot_has_just_gone() {
        let refused = |why: &str| DockerError::new("docker", Cause::Refused(why.into()));
        let asked = std::cell::Cell::new(0);
        let ask = |why: &'static str, until: u32| {
            asked.set(0);
            settled(|| {
                asked.set(asked.get() + 1);
                if asked.get() > until { Ok(()) } else { Err(refused(why)) }
            })
        };
        assert!(ask("NotFound: snapshot x-view does not exist: not found", 2).is_ok());
        assert_eq!(asked.get(), 3);
        assert!(ask("no such builder", 1).is_err());
        assert_eq!(asked.get(), 1);
    }

    /// A docker that does this instead.
    fn script(script: &str) -> Docker {
        let flags = endpoint::Flags { host: Some("unix:///nowhere".into()), ..Default::default() };
        Docker {
            program: which::which("sh").unwrap(),
            globals: vec!["-c".into(), script.into()],
            endpoint: endpoint::Endpoint::resolve(&flags, &endpoint::Settings::default()),
            is_caller: false,
            limit: ASK_LIMIT,
            survives_cancel: false,
        }
    }

    #[test]
    fn the_side_that_failed_first_says_why() {
        let told = |docker: Docker, send: fn(PipeWriter) -> std::io::Result<()>| {
            let run = |call: Call<'_>, input| call.run_with(Input::Pipe(input)).map(drop);
            docker.call(["cp"]).fed(send, run).unwrap_err().to_string()
        };
        let waiting = script("cat >/dev/null; echo unexpected EOF >&2; exit 1");
        assert_eq!(told(waiting, |_| Err(std::io::Error::other("bad disk"))), "`docker cp` failed: bad disk");
        let full = script("echo disk full >&2; exit 1");
        assert_eq!(told(full, |mut pipe| pipe.write_all(&[0; 200_000])), "`docker cp` failed: disk full");
    }

    #[test]
    fn docker_that_ends_before_it_has_read_all_is_an_error() {
        let docker = script("exit 1");
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            // More than a pipe holds.
            let answer = docker.call(["system", "dial-stdio"]).run_with(Input::Held(vec![0; 200_000]));
            sender.send(answer.is_err()).unwrap();
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(true));
    }

    #[test]
    fn records_of_a_build_that_has_just_ended_come_to_rest() {
        let record = |id: &str| CacheRecord { id: id.into(), last_used: Some(100), ..Default::default() };
        let asked = std::cell::Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            Ok(["a", "b"].map(record).into())
        };
        assert_eq!(at_rest(vec![record("a")], Moment(101), ask).unwrap().len(), 2);
        assert_eq!(asked.get(), 2, "the first answer differs from the one before");
        assert_eq!(at_rest(vec![record("a")], Moment(102), ask).unwrap().len(), 1);
        assert_eq!(asked.get(), 2, "nothing was used just now");
    }
}
