//! `docker cache`: arguments to command to exit status. The map of the program is in lib.rs.

use std::process::ExitCode;

use anyhow::Result;
use docker_cache::cli::{self, Cli, Command};
use docker_cache::commands::{self, Context};
use docker_cache::plugin::{self, Request};
use docker_cache::{cancel, docker, exit, hooks, report};

fn main() -> ExitCode {
    let request = plugin::request(std::env::args_os().skip(1));
    let done = match request {
        Request::Metadata => report::data(&plugin::metadata()).map(|()| 0),
        Request::Hooks(call) => report::data(&hooks::answer(&call)).map(|()| 0),
        Request::Complete { words, descriptions } => commands::complete::run(&words, descriptions),
        Request::Run(args) => match cli::parse(&args) {
            Ok(cli) => run(cli),
            Err(refusal) => Ok(exit::refused(&refusal)),
        },
    };
    ExitCode::from(match done {
        Ok(code) => cancel::exit_code().unwrap_or(code),
        Err(error) => exit::failed(&error),
    })
}

fn run(cli: Cli) -> Result<u8> {
    // Engines run on Linux.
    #[cfg(target_os = "linux")]
    if let Command::Inside(options) = &cli.command {
        return docker_cache::inside::main(options).map(|()| 0);
    }
    cancel::listen();
    if let Some(wrong) = docker::wrong_limit() {
        report::warning(&wrong);
    }
    let context = Context::new(&cli.docker);
    match cli.command {
        Command::Builder(options) => commands::builder::run(context, &options),
        Command::Clear(options) => commands::clear::run(context, &options),
        Command::Doctor(options) => commands::doctor::run(context, &options),
        Command::Size(options) => commands::size::run(context, &options),
        Command::Export(options) => commands::export::run(context, &options),
        Command::Import(options) => commands::import::run(context, &options),
        Command::Verify(options) => commands::verify::run(&context, &options),
        Command::Hooks(options) => commands::hooks::run(&context, &options),
        Command::Warm(options) => commands::warm::run(context, &options),
        Command::Man(options) => commands::man::run(&options),
        #[cfg(target_os = "linux")]
        Command::Inside(_) => Ok(0),
    }
}
