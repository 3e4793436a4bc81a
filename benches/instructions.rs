//! User instructions per request of one sidecar, by callgrind: A (outbound), then B (inbound). Two runs with different
//! numbers of requests each; the difference leaves start-up and background work out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;

use leno_benches::{Lab, Process, Side, build};

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
    /// Keeps callgrind's files in this directory, for `callgrind_annotate`.
    #[arg(long)]
    keep: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let programs = build()?;
    for side in [Side::A, Side::B] {
        let few = collect(&programs, side, args.few, args.keep.as_deref())?;
        let many = collect(&programs, side, args.many, args.keep.as_deref())?;
        let each = (many - few) / (args.many - args.few) as u64;
        println!(
            "{side:?}: {each} user instructions per request ({few} for {}, {many} for {})",
            args.few, args.many
        );
        if let Some(limit) = args.at_most {
            anyhow::ensure!(each <= limit, "{side:?} takes {each}, more than {limit}");
        }
    }
    Ok(())
}

/// All user instructions of `side` for `count` requests.
fn collect(programs: &Path, side: Side, count: usize, keep: Option<&Path>) -> Result<u64> {
    let out = std::env::temp_dir().join(format!("leno-callgrind-{}", std::process::id()));
    let file = format!("--callgrind-out-file={}", out.display());
    let tool = ["valgrind", "--tool=callgrind", "--quiet", &file]
        .map(str::to_owned)
        .to_vec();
    let mut lab = Lab::start(programs, Some((side, tool)))?;
    lab.send(count, 64)?;
    lab.check(count)?;
    let none = std::process::Command::new("true").spawn()?;
    let measured = match side {
        Side::A => std::mem::replace(&mut lab.a, Process(none)),
        Side::B => std::mem::replace(&mut lab.b, Process(none)),
    };
    measured.end()?;
    let text = fs::read_to_string(&out).context("valgrind wrote nothing; is it installed?")?;
    if let Some(directory) = keep {
        fs::copy(&out, directory.join(format!("{side:?}-{count}")))?;
    }
    fs::remove_file(out)?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = totals
        .context("no totals")?
        .split(' ')
        .next()
        .context("a number")?;
    Ok(total.parse()?)
}
