//! The operator's command: one file a subcommand.

pub mod inject;
pub mod serve;
pub mod status;
pub mod token;
pub mod validate;

use clap::{Parser, Subcommand};

/// Leno's control plane and command line.
#[derive(Debug, Parser)]
#[command(name = "leno", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane on a directory of YAML.
    Serve(serve::Args),
    /// Add the sidecar to the pods of a YAML file, and to whatever has a template of pods.
    Inject(inject::Args),
    /// Say what is wrong with YAML, by file:line:column. Exit code 1 on errors.
    Validate(validate::Args),
    /// Make or revoke a join token for a workload outside Kubernetes.
    Token(token::Args),
    /// Show connected proxies, what they refuse, and what is wrong with the configuration.
    Status(status::Args),
}
