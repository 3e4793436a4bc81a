//! Cost of a dead trace collector to a sidecar, compared with no export at all: user instructions per request under
//! callgrind, and VmRSS after a minute of requests. The collector refuses connections, or accepts them and never
//! answers.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use leno_benches::{Lab, Programs, Side, build, instructions, memory};

/// What a dead collector costs.
#[derive(Debug, Parser)]
struct Args {
    /// How long requests are sent for.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Fails when a request costs more than this times as many instructions.
    #[arg(long, default_value_t = 1.02)]
    at_most: f64,
    /// Fails when memory is greater by more KiB than this.
    #[arg(long, default_value_t = 2048)]
    memory: u64,
}

/// An OTLP endpoint on which nothing listens.
const REFUSING: &str = "http://127.0.7.9:4317";

fn main() -> Result<()> {
    let args = Args::parse();
    let programs = build()?;
    let hanging = Hanging::start()?;
    let (mut base, mut base_memory) = (None, None);
    for (name, endpoint) in [
        ("no export", None),
        ("a collector that refuses", Some(REFUSING.to_owned())),
        ("a collector that hangs", Some(hanging.endpoint()?)),
    ] {
        let flags: Vec<&str> = endpoint
            .iter()
            .flat_map(|at| ["--otlp-endpoint", at])
            .collect();
        // So many requests that one TLS handshake more or less, some millions of instructions, doesn't show.
        let each = instructions(&programs, Side::A, &flags, [2000, 102_000], None)?;
        let resident = after_requests(&programs, &flags, args.seconds)?;
        println!("{name}: {each} user instructions per request, {resident} KiB");
        let (base, base_memory) = (
            *base.get_or_insert(each),
            *base_memory.get_or_insert(resident),
        );
        let ratio = each as f64 / base as f64;
        ensure!(
            ratio <= args.at_most,
            "{name}: {ratio:.3} times as many instructions"
        );
        let more = resident.saturating_sub(base_memory);
        ensure!(more <= args.memory, "{name}: {more} KiB more");
    }
    Ok(())
}

/// VmRSS of A, in KiB, after 2,000 requests for each of `seconds`, at most 2,000 a second.
fn after_requests(programs: &Programs, flags: &[&str], seconds: u64) -> Result<u64> {
    let lab = Lab::start(programs, None, flags)?;
    let (rounds, each) = (usize::try_from(seconds)? * 5, 400);
    for _ in 0..rounds {
        lab.send(each, 16)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    lab.check(rounds * each)?;
    memory(lab.a.0.id(), "VmRSS:")
}

/// A collector that accepts connections and never answers.
struct Hanging(TcpListener);

impl Hanging {
    fn start() -> Result<Hanging> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let accepting = listener.try_clone()?;
        std::thread::spawn(move || {
            let accepted: Vec<TcpStream> = accepting.incoming().flatten().collect();
            drop(accepted);
        });
        Ok(Hanging(listener))
    }

    fn endpoint(&self) -> Result<String> {
        Ok(format!("http://{}", self.0.local_addr()?))
    }
}
