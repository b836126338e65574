//! Starting programs: one call and its outcome, and programs that run beside a test and die with it.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

/// What a program printed, and how it ended: its exit code, or minus the number of the signal that ended it.
#[derive(Debug, Clone)]
pub struct Run {
    pub call: String,
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Run {
    /// Runs the command to its end.
    pub fn of(command: &mut Command) -> Run {
        let call = call_line(command);
        let output = command.output().unwrap_or_else(|error| panic!("cannot start `{call}`: {error}"));
        Run::from_output(call, output)
    }

    /// Runs a docker command to its end. With the containerd image store, an engine may lose a snapshot to its own garbage
    /// collector while it unpacks the image that it has just built (moby/buildkit#6521, seen in one of 30 builds that take
    /// a tag from an older image, Engine 28.5). Such a build runs again, and the outcome tells of each.
    pub fn of_docker(command: &mut Command) -> Run {
        let lost = |run: &Run| {
            let words = ["failed to prepare extraction snapshot", "parent snapshot", "does not exist: not found"];
            run.code != 0 && run.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)))
        };
        let (mut run, mut told) = (Run::of(command), String::new());
        for _ in 0..4 {
            if !lost(&run) {
                break;
            }
            told += &run.stderr;
            run = Run::of(command);
        }
        Run { stderr: told + &run.stderr, ..run }
    }

    /// Returns the same of an output that is already there.
    pub fn from_output(call: String, output: Output) -> Run {
        Run {
            call,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0)),
        }
    }

    /// Returns itself if the exit code was 0, and fails the test with all that was printed if not.
    #[track_caller]
    pub fn ok(self) -> Run {
        assert!(self.code == 0, "{self}");
        self
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run { call, stdout, stderr, code } = self;
        write!(f, "`{call}` ended with {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs a program and types each of these keys once it has shown what stands before them.
#[track_caller]
pub fn typed(command: Command, keys: &[(&str, &str)]) -> Run {
    typed_after(command, keys, || ())
}

/// The same; something else happens before each of the keys.
#[track_caller]
pub fn typed_after(mut command: Command, keys: &[(&str, &str)], first: impl Fn()) -> Run {
    let call = call_line(&command);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut seen, mut answered) = (Vec::new(), 0);
    for (shown, keys) in keys {
        while !seen[answered..].windows(shown.len()).any(|seen| seen == shown.as_bytes()) {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&seen)));
            seen.extend(byte);
        }
        answered = seen.len();
        first();
        stdin.write_all(keys.as_bytes()).unwrap();
    }
    stdout.read_to_end(&mut seen).unwrap();
    let mut run = Run::from_output(call, child.wait_with_output().unwrap());
    run.stdout = String::from_utf8_lossy(&seen).into_owned();
    run
}

/// Returns the program and its arguments as one line, for messages.
pub fn call_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// A program that runs beside the test: killed on drop, and by the kernel when the test process dies.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts a program with these arguments; `prepare` sets environment and streams.
    pub fn start(call: &[&str], prepare: impl FnOnce(&mut Command)) -> Background {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(call).stdin(Stdio::null());
        prepare(&mut command);
        Background(spawn(command))
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("look at a child").is_none()
    }

    /// Waits for the end of the program.
    pub fn wait(&mut self) {
        self.0.wait().expect("wait for a child");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program from a thread that lives as long as the test process: the kernel's "parent died" signal comes when the
/// *thread* that started a child ends, and the thread of one test may end before the last user of the program.
pub fn spawn(command: Command) -> Child {
    type Order = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, received) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in received {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let call = call_line(&command);
    let (reply, answer) = channel();
    spawner.lock().unwrap().send((command, reply)).expect("the spawner thread is alive");
    answer.recv().expect("the spawner thread answers").unwrap_or_else(|error| panic!("cannot start `{call}`: {error}"))
}
