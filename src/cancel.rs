//! Turns SIGINT, SIGTERM, SIGHUP and docker's cancel socket into one fact, "cancelled", and ends the docker children.
//! The work then fails with [`crate::docker::Cause::Interrupted`] and unwinds, so that guards clean the engine.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Default)]
struct State {
    signal: Option<i32>,
    presses: u32,
    groups: HashSet<Pid>,
}

/// Stands for a key by which the user left; no signal has this number.
const LEFT: i32 = 0;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens for SIGINT, SIGTERM, SIGHUP (unless `nohup` wants it ignored) and the end of docker's plugin socket.
/// Without a terminal docker signals nobody and only closes that socket (docker CLI 25.0 and later).
pub fn listen() {
    let hangup = hangup_counts().then_some(SIGHUP);
    if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup)) {
        thread::spawn(move || signals.forever().for_each(pressed));
    }
    if let Some(mut socket) = plugin_socket() {
        thread::spawn(move || {
            // Docker sends no data: the read returns when docker closes the socket.
            if matches!(socket.read(&mut [0]), Ok(0)) {
                cancel(&mut state(), SIGINT);
            }
        });
    }
}

/// Returns the exit status that a cancelled program must have: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
pub fn exit_code() -> Option<u8> {
    state().signal.map(status_of)
}

fn status_of(signal: i32) -> u8 {
    if signal == LEFT {
        return 0;
    }
    // Docker shows any death by a signal as 255, so the shell's number for it is the exit status.
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Returns true once the user asked to stop.
pub fn requested() -> bool {
    state().signal.is_some()
}

/// Stops work between two of its steps.
///
/// # Errors
/// When the user asked to stop.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!requested(), "cancelled");
    Ok(())
}

/// Asks everything to stop, because the user is done: no failure.
pub fn leave() {
    cancel(&mut state(), LEFT);
}

/// Asks everything to stop, as SIGTERM does.
pub fn request() {
    cancel(&mut state(), SIGTERM);
}

/// A reader that stops when the user does.
#[derive(Debug)]
pub struct Reader<R>(pub R);

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if requested() {
            return Err(io::Error::other("cancelled"));
        }
        self.0.read(buffer)
    }
}

/// Keeps a process group on the list of those that a cancel ends, until dropped.
#[derive(Debug)]
pub struct Guard(Pid);

/// Registers a process group; when the program is already cancelled it is ended at once.
pub fn watch(group: Pid) -> Guard {
    let mut state = state();
    state.groups.insert(group);
    if state.signal.is_some() {
        end(group);
    }
    Guard(group)
}

impl Drop for Guard {
    fn drop(&mut self) {
        state().groups.remove(&self.0);
    }
}

fn pressed(signal: i32) {
    let mut state = state();
    cancel(&mut state, signal);
    state.presses += 1;
    if state.presses >= 3 {
        #[expect(clippy::exit, reason = "the third Ctrl-C means: now, whatever is left behind")]
        std::process::exit(status_of(signal).into());
    }
}

fn cancel(state: &mut State, signal: i32) {
    state.signal.get_or_insert(signal);
    state.groups.iter().copied().for_each(end);
}

/// Returns true if SIGHUP is surely not ignored, as `nohup` has it. Without /proc (macOS) nothing tells: it is then left as it
/// is, and the end of the terminal ends this process without a clean-up.
fn hangup_counts() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (SIGHUP - 1) == 0)
}

/// SIGTERM: docker passes it on to its plugins, and buildx cancels the build on the builder.
fn end(group: Pid) {
    // The group may have ended by itself.
    let _ = kill_process_group(group, Signal::TERM);
}

#[cfg(target_os = "linux")]
fn plugin_socket() -> Option<std::os::unix::net::UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let name = std::env::var("DOCKER_CLI_PLUGIN_SOCKET").ok()?;
    match name.strip_prefix('@') {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).ok()?).ok(),
        None => UnixStream::connect(name).ok(),
    }
}

#[cfg(not(target_os = "linux"))]
fn plugin_socket() -> Option<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(std::env::var_os("DOCKER_CLI_PLUGIN_SOCKET")?).ok()
}
