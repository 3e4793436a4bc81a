//! User instructions per request of one sidecar, by callgrind: A (outbound), then B (inbound).

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use leno_benches::{Side, build, build_plain, instructions};

/// Instructions per request.
#[derive(Debug, Parser)]
struct Args {
    /// Requests of the shorter run.
    #[arg(long, default_value_t = 2000)]
    few: usize,
    /// Requests of the longer run.
    #[arg(long, default_value_t = 42_000)]
    many: usize,
    /// Fails when a side takes more than this.
    #[arg(long)]
    at_most: Option<u64>,
    /// Measures what a plain `cargo build --release -p leno-proxy` makes, instead of what images hold.
    #[arg(long)]
    plain: bool,
    /// Keeps callgrind's files in this directory, for `callgrind_annotate`.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// More flags of both sidecars, after `--`.
    #[arg(last = true)]
    flags: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let programs = if args.plain { build_plain() } else { build() }?;
    let flags: Vec<&str> = args.flags.iter().map(String::as_str).collect();
    for side in [Side::A, Side::B] {
        let counts = [args.few, args.many];
        let each = instructions(&programs, side, &flags, counts, args.keep.as_deref())?;
        println!("{side:?}: {each} user instructions per request");
        if let Some(limit) = args.at_most {
            anyhow::ensure!(each <= limit, "{side:?} takes {each}, more than {limit}");
        }
    }
    Ok(())
}
