//! Trains the compiler: writes `proxy/leno-proxy.profdata`, by which static release builds of leno-proxy are optimised.
//!
//! Both sidecars count the executions of each part of the code while they serve requests with and without bodies. Needs
//! `llvm-profdata` of the compiler's own LLVM: `rustup component add llvm-tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use leno_benches::{Lab, PROFILE, build_for_training, root, target};

/// Trains the compiler.
#[derive(Debug, Parser)]
struct Args {
    /// Requests; a tenth as many are sent with bodies.
    #[arg(long, default_value_t = 40_000)]
    requests: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let tool = profdata()?;
    // Always the same directory, so that the libraries needn't be rebuilt; an older run's counts are of no use.
    let data = target()?.join("training/counts");
    let _ = fs::remove_dir_all(&data);
    fs::create_dir_all(&data)?;
    let mut lab = Lab::start(&build_for_training(&data)?, None, &[])?;
    lab.send(args.requests, 64)?;
    lab.send_bodies(args.requests / 10, 64)?;
    lab.check(args.requests + args.requests / 10)?;
    lab.end()?;
    merge(&tool, &data)
}

/// The compiler's `llvm-profdata`.
fn profdata() -> Result<PathBuf> {
    let said = |what: &[&str]| -> Result<String> {
        let output = Command::new("rustc")
            .args(what)
            .current_dir(root())
            .output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let host = said(&["--print", "host-tuple"])?;
    let sysroot = PathBuf::from(said(&["--print", "sysroot"])?);
    let tool = sysroot
        .join("lib/rustlib")
        .join(host)
        .join("bin/llvm-profdata");
    ensure!(
        tool.exists(),
        "{} is missing: rustup component add llvm-tools",
        tool.display()
    );
    Ok(tool)
}

/// Merges the sidecars' counts in `data` into the profile.
fn merge(tool: &Path, data: &Path) -> Result<()> {
    let files = fs::read_dir(data)?.map(|entry| Ok(entry?.path()));
    let files = files.collect::<Result<Vec<_>>>()?;
    ensure!(!files.is_empty(), "the sidecars wrote no counts");
    let status = Command::new(tool)
        .args(["merge", "--sparse", "--output"])
        .arg(root().join(PROFILE))
        .args(files)
        .status()
        .context("llvm-profdata")?;
    ensure!(status.success(), "llvm-profdata failed");
    Ok(())
}
