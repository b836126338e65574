//! Calls that run a package manager's own download in an image, and take what it ran in away again.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, PipeWriter, Write};

use super::{Call, Cause, Docker, DockerError, Input, Result, field};

/// A container that fills cache volumes.
#[derive(Debug)]
pub struct Warmer<'a> {
    pub image: &'a str,
    /// None for the image's own.
    pub user: Option<&'a str>,
    /// A variable without a value has that of this process; a value is one line.
    pub env: &'a [(String, Option<String>)],
    /// `--network`, if not docker's default.
    pub network: Option<&'a str>,
    pub volume: &'a str,
    pub target: &'a str,
    pub workdir: &'a str,
    /// Program and arguments.
    pub command: &'a [String],
}

impl Docker {
    /// `docker pull IMAGE`.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn pull(&self, image: &str) -> Result<()> {
        self.call(["pull", "--quiet", "--", image]).unlimited().run().map(drop)
    }

    /// `docker create …`: a container of an image with a volume, which runs one command. Docker reads the values of variables
    /// from its standard input: no list of processes shows them, no error tells them, and none is about docker itself.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn create_warmer(&self, name: &str, warmer: &Warmer<'_>) -> Result<()> {
        let Warmer { image, user, env, network, volume, target, workdir, command } = warmer;
        let mut args = vec!["create".into(), format!("--name={name}"), "--log-driver=none".into()];
        args.push("--security-opt=no-new-privileges".into());
        args.extend(user.iter().map(|user| format!("--user={user}")));
        args.extend(network.iter().map(|network| format!("--network={network}")));
        args.push("--env-file=/dev/stdin".into());
        args.extend(env.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| format!("--env={name}")));
        args.push(format!("--mount=type=volume,{},{}", field("source", volume), field("target", target)));
        args.push(format!("--workdir={workdir}"));
        // The image's own entry point would take the words for its arguments.
        args.push(format!("--entrypoint={}", command.first().map_or("", String::as_str)));
        args.extend(["--".into(), (*image).into()]);
        args.extend(command.iter().skip(1).cloned());
        let values = env.iter().filter_map(|(name, value)| Some(format!("{name}={}\n", value.as_ref()?)));
        let values: String = values.collect();
        let send = |mut pipe: PipeWriter| pipe.write_all(values.as_bytes());
        self.call(args).whole()?.fed(send, |call, values| call.run_with(Input::Pipe(values)).map(drop))
    }

    /// `docker start --attach NAME`: hands on what it says, line by line.
    ///
    /// # Errors
    /// When it cannot start, or fails; the cause is in docker's or the program's own words.
    pub fn attach(&self, name: &str, each: &mut dyn FnMut(&str)) -> Result<()> {
        told(self.call(["start", "--attach", name]).unlimited(), Input::Nothing, each)
    }
}

/// Runs a build of the context in `archive` and hands on what it tells.
pub(super) fn build(call: Call<'_>, archive: Vec<u8>, each: &mut dyn FnMut(&str)) -> Result<()> {
    let send = |mut pipe: PipeWriter| {
        // If docker does not read it to the end, docker says why.
        let _ = pipe.write_all(&archive);
        Ok(())
    };
    call.fed(send, |call, context| told(call, Input::Pipe(context), each))
}

/// Runs a call and hands on both of its outputs; the last lines are the reason if it fails. They are the program's as much
/// as docker's: its "connection refused" says nothing of the engine.
fn told(call: Call<'_>, input: Input, each: &mut dyn FnMut(&str)) -> Result<()> {
    let mut last: VecDeque<String> = VecDeque::new();
    let done = call.merged().stream(input, |output| {
        for line in BufReader::new(output).split(b'\n').map_while(|line| line.ok()) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            each(&line);
            last.push_back(line);
            if last.len() > 200 {
                last.pop_front();
            }
        }
    });
    done.map_err(|error| match error.cause {
        Cause::Refused(why) if why.is_empty() => {
            DockerError::new(error.call, Cause::Refused(last.make_contiguous().join("\n")))
        }
        _ => error,
    })
}
