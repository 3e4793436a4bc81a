//! The program: arguments, logging, run, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use leno_control_plane::cli::{Cli, Command, inject, serve, status, token, validate};
use tracing_subscriber::EnvFilter;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => {
            log();
            serve::run(args)
                .await
                .map(|()| true)
                .map_err(|error| format!("{error:#}"))
        }
        Command::Inject(args) => inject::run(args)
            .map(|()| true)
            .map_err(|error| format!("{error:#}")),
        Command::Validate(args) => validate::run(args).await,
        Command::Token(args) => token::run(args).map(|()| true),
        Command::Status(args) => status::run(args).await,
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leno: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sets up logging to stderr: text on a terminal, JSON otherwise. `LENO_LOG` sets the levels.
fn log() {
    let filter = EnvFilter::try_from_env("LENO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match std::io::stderr().is_terminal() {
        true => log.init(),
        false => log.json().init(),
    }
}
