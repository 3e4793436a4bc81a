//! Resident memory of a static release build: idle, and after 1,000 requests.

use anyhow::Result;
use clap::Parser;

use leno_benches::{Lab, build, memory};

/// Resident memory.
#[derive(Debug, Parser)]
struct Args {
    /// Requests before the second look.
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Fails when a side takes more KiB than this after the requests.
    #[arg(long)]
    at_most: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let lab = Lab::start(&build()?, None, &[])?;
    let pids = [("A", lab.a.0.id()), ("B", lab.b.0.id())];
    let idle = pids.map(|(_, pid)| resident(pid));
    lab.send(args.requests, 16)?;
    lab.check(args.requests)?;
    for ((side, pid), idle) in pids.into_iter().zip(idle) {
        let (idle, after) = (idle?, resident(pid)?);
        let (program, own) = (memory(pid, "RssFile:")?, memory(pid, "RssAnon:")?);
        println!(
            "{side}: VmRSS {idle} KiB idle, {after} KiB after {} requests ({program} of the program, {own} its own)",
            args.requests
        );
        if let Some(limit) = args.at_most {
            anyhow::ensure!(
                after <= limit,
                "{side} takes {after} KiB, more than {limit}"
            );
        }
    }
    Ok(())
}

fn resident(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}
