//! The program: arguments, logging, run, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use leno_proxy::bootstrap::{Bootstrap, Cli, Command};
use leno_proxy::{app, intercept, wrapper};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Command::Run(args) => args,
        Command::Init(args) => return print_result(intercept::init(*args)),
        Command::Clean => return print_result(intercept::clean().map(|()| String::new())),
    };
    log();
    let app = args.app.clone();
    let bootstrap = match args.into_bootstrap() {
        Ok(bootstrap) => bootstrap,
        Err(error) => {
            eprintln!("leno-proxy: {error}");
            return ExitCode::from(2);
        }
    };
    match run(bootstrap, &app) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("leno-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the result of a command, and returns its exit code.
fn print_result(outcome: Result<String, String>) -> ExitCode {
    match outcome {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("leno-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Logs go to stderr: text on a terminal, JSON otherwise. `LENO_LOG` sets the levels.
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

#[tokio::main(flavor = "current_thread")]
async fn run(bootstrap: Bootstrap, app: &[String]) -> anyhow::Result<u8> {
    let intercepts = bootstrap.capture.is_some();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let bound = app::run(bootstrap)?;
    tracing::info!(outbound = %bound.outbound, inbound = ?bound.inbound, admin = %bound.admin, "listening");
    if !app.is_empty() {
        return wrapper::run(bound, app, !intercepts).await;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    // A second signal ends at once.
    tokio::select! {
        () = bound.shutdown() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(0)
}
