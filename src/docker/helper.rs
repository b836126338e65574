//! Calls that put this binary to work inside an engine and take it away again.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use tempfile::TempDir;

use crate::inside::{self, pack::digest};

use super::{Cause, Docker, DockerError, Input, Result};

/// Begins the names of all that is short-lived: containers, images, stages of builds.
const PREFIX: &str = "docker-cache-helper-";

/// Returns a name for something short-lived that no other run uses: `docker-cache-helper-MACHINE-PID-NANOSECONDS`.
pub fn unique_name() -> String {
    format!("{PREFIX}{}-{}-{}", machine(), std::process::id(), now().as_nanos())
}

/// Tells whether a name is one of [`unique_name`].
pub fn is_helper(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Returns the name of a helper that a text holds (a name, or the description of a record), if the run that made it is
/// surely over: its process is gone from this machine, or it was another machine's and a day ago.
pub fn abandoned(text: &str) -> Option<&str> {
    let name = &text[text.find(PREFIX)?..];
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(name.len());
    let name = &name[..end];
    let mut words = name[PREFIX.len()..].split('-');
    let (of, process, made) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let over = match of == machine() {
        true => !is_alive(process),
        false => now().as_nanos().saturating_sub(made) > DAY.as_nanos(),
    };
    over.then_some(name)
}

/// Makes a directory for what is on its way, on the disk that `TMPDIR` names; gone with the value. Those that killed runs have
/// left there go first.
///
/// # Errors
/// When it cannot be made.
pub fn temporary_dir() -> io::Result<TempDir> {
    temporary_dir_in(&std::env::temp_dir())
}

fn temporary_dir_in(dir: &Path) -> io::Result<TempDir> {
    for left in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = left.file_name();
        let is_over = name.to_str().is_some_and(|name| abandoned(name) == Some(name));
        // Not of what a link leads to.
        let is_own = |found: Metadata| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if is_over && left.metadata().is_ok_and(is_own) {
            // What cannot be removed now, the next run removes.
            let _ = fs::remove_dir_all(left.path());
        }
    }
    let made = tempfile::Builder::new().prefix(&unique_name()).rand_bytes(0).tempdir_in(dir);
    made.map_err(|error| io::Error::new(error.kind(), format!("no temporary directory: {error}")))
}

/// Returns false for a process that is gone, or of which nothing is left but its exit status.
fn is_alive(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X']));
    !is_zombie && Pid::from_raw(process).is_some_and(|process| test_kill_process(process) != Err(Errno::SRCH))
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns what tells this run of this machine, and the process ids that count here, from all others.
fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let processes = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let node = rustix::system::uname();
    let text = format!("{boot}{}{}", processes.display(), node.nodename().to_string_lossy());
    digest(&mut text.as_bytes()).map(|blob| blob.file()[..8].to_string()).unwrap_or_default()
}

impl Docker {
    /// `docker import - NAME`: an image that holds one file, the helper binary.
    ///
    /// # Errors
    /// When the binary cannot be read or docker refuses.
    pub fn import_image(&self, binary: &Path, name: &str) -> Result<()> {
        let call = self.call(["import", "--message=docker cache helper", "-", name]).whole()?;
        let words = call.words();
        let failed = |error: io::Error| DockerError::new(&words, Cause::Refused(error.to_string()));
        let file = File::open(binary).map_err(failed)?;
        call.fed(|archive| send_tar(file, archive), |call, archive| call.run_with(Input::Pipe(archive)).map(drop))
    }

    /// `docker create …`: a helper on some volumes.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn create_helper(&self, name: &str, volumes: &[(&str, PathBuf)], write: bool) -> Result<()> {
        let mut args = vec!["create".into(), "--interactive".into(), format!("--name={name}")];
        args.extend(CONFINED.map(String::from));
        if write {
            args.extend(["DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID"].map(|cap| format!("--cap-add={cap}")));
        }
        args.extend(volumes.iter().map(|(volume, target)| mount(volume, target, write)));
        args.extend([name.into(), "/docker-cache".into(), inside::COMMAND.into()]);
        self.call(args).whole()?.run().map(drop)
    }

    /// `docker create …`: a helper on some volumes that has blobs at [`BLOBS`]: in a directory of the engine's host,
    /// else in a volume of its own, to be filled by [`Docker::put`] and emptied by
    /// [`Docker::take_blobs`].
    ///
    /// # Errors
    /// When docker refuses.
    pub fn create_carrier(
        &self,
        name: &str,
        volumes: &[(&str, PathBuf)],
        blobs: Option<&Path>,
        packs: bool,
    ) -> Result<()> {
        let mut args = vec!["create".into(), "--interactive".into(), format!("--name={name}")];
        args.extend(CONFINED.map(String::from));
        // Blobs go to a directory of any owner; files of any owner are restored with all that they had.
        args.extend(["DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID", "SETFCAP"].map(|cap| format!("--cap-add={cap}")));
        args.extend(volumes.iter().map(|(volume, target)| mount(volume, target, !packs)));
        args.push(match blobs {
            Some(dir) => {
                let mode = if packs { "" } else { ",readonly" };
                format!("--mount=type=bind,{},target={BLOBS}{mode}", field("source", &dir.to_string_lossy()))
            }
            // Without a driver the engine first asks all of them.
            None => format!("--mount=type=volume,target={BLOBS},volume-driver=local"),
        });
        args.extend([name.into(), "/docker-cache".into(), inside::COMMAND.into()]);
        self.call(args).whole()?.run().map(drop)
    }

    /// `docker start --attach --interactive NAME`: `job` goes to its standard input, `read` gets its output.
    ///
    /// # Errors
    /// When docker cannot start it, or it fails.
    pub fn start_helper<T>(&self, name: &str, job: Vec<u8>, read: impl FnOnce(PipeReader) -> T) -> Result<T> {
        self.call(["start", "--attach", "--interactive", name]).unlimited().stream(Input::Held(job), read)
    }

    /// `docker create … IMAGE`: a container to read the image's files from; it is never started.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn create_container(&self, name: &str, image: &str) -> Result<()> {
        let name = format!("--name={name}");
        // An image may have no command, and docker wants one.
        self.call(["create", "--pull=never", "--network=none", &name, "--", image, "/none"]).whole()?.run().map(drop)
    }

    /// `docker export NAME`: the files of a container as a tar archive, which `read` must read to its end.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn export_container<T>(&self, name: &str, read: impl FnOnce(PipeReader) -> T) -> Result<T> {
        self.call(["export", name]).unlimited().stream(Input::Nothing, read)
    }

    /// `docker cp - NAME:DIR`: unpacks the tar archive that `send` writes in a container that does not run yet.
    ///
    /// # Errors
    /// When docker refuses, or the archive cannot be made.
    pub fn put(&self, name: &str, dir: &str, send: impl FnOnce(PipeWriter) -> io::Result<()> + Send) -> Result<()> {
        let call = self.call(["cp", "-", &format!("{name}:{dir}")]).unlimited();
        let send = |pipe| match send(pipe) {
            // If docker does not read it to the end, docker says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent,
        };
        call.fed(send, |call, archive| call.run_with(Input::Pipe(archive)).map(drop))
    }

    /// `docker cp NAME:/bundle/. DIR`: takes what a helper has at [`BLOBS`]. Faster than its standard streams.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn take_blobs(&self, name: &str, dir: &Path) -> Result<()> {
        let from = format!("{name}:{BLOBS}/.");
        self.call([OsStr::new("cp"), from.as_ref(), dir.as_os_str()]).unlimited().run().map(drop)
    }

    /// `docker rm --force --volumes NAME`, with the volumes that have no name, also after a cancel.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn remove_container(&self, name: &str) -> Result<()> {
        self.call(["rm", "--force", "--volumes", name]).cleanup().run().map(drop)
    }

    /// `docker image rm --force NAME`, also after a cancel.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn remove_image(&self, name: &str) -> Result<()> {
        self.call(["image", "rm", "--force", name]).cleanup().run().map(drop)
    }
}

/// Where a carrier has blobs.
pub const BLOBS: &str = "/bundle";

/// What every helper container is: nothing that it does not need.
const CONFINED: [&str; 7] = [
    "--pull=never",
    "--network=none",
    "--read-only",
    "--log-driver=none",
    "--security-opt=no-new-privileges",
    "--cap-drop=ALL",
    "--cap-add=DAC_READ_SEARCH",
];

fn mount(volume: &str, target: &Path, write: bool) -> String {
    let mode = if write { "" } else { ",readonly" };
    format!("--mount=type=volume,{},target={}{mode},volume-nocopy", field("source", volume), target.display())
}

/// Returns a field of CSV: quotes keep a comma in a name from becoming an option.
pub fn field(key: &str, value: &str) -> String {
    format!("\"{key}={}\"", value.replace('"', "\"\""))
}

/// Writes a tar archive of one executable file, `/docker-cache`.
fn send_tar(mut file: File, out: impl Write) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(file.metadata()?.len());
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(out);
    archive.append_data(&mut header, "docker-cache", &mut file)?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ended_runs_are_abandoned() {
        let own = unique_name();
        assert_eq!(abandoned(&own), None);
        // No process has this id: it is above what Linux gives.
        let gone = format!("{PREFIX}{}-99999999-{}", machine(), now().as_nanos());
        assert_eq!(abandoned(&format!("[{gone} 2/3] COPY x /{gone}/")), Some(gone.as_str()));
        let other = |age: Duration| format!("{PREFIX}0-99999999-{}", (now() - age).as_nanos());
        assert_eq!(abandoned(&other(Duration::from_secs(60))), None);
        assert!(abandoned(&other(DAY * 2)).is_some());
        for foreign in ["docker-cache-helper-", "docker-cache-helper-mine", "my-helper-1-2-3"] {
            assert_eq!(abandoned(foreign), None);
        }
    }

    #[test]
    fn what_a_killed_run_has_left_goes_with_the_next_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let running = temporary_dir_in(dir.path()).unwrap();
        // No process has this id: it is above what Linux gives.
        let gone = || unique_name().replace(&format!("-{}-", std::process::id()), "-99999999-");
        let [left, file, link, of_user] = [gone(), gone(), gone(), format!("my-{}", gone())];
        let [left, file, link, of_user] = [left, file, link, of_user].map(|name| dir.path().join(name));
        let elsewhere = dir.path().join("elsewhere");
        for folder in [&left, &of_user, &elsewhere] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("blob"), "").unwrap();
        }
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        temporary_dir_in(dir.path()).unwrap();
        assert!(!left.exists());
        for stays in [running.path(), &file, &link, &of_user.join("blob"), &elsewhere.join("blob")] {
            assert!(stays.exists(), "{}", stays.display());
        }
    }
}
