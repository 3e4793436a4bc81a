//! The loop of a change: format, words, lints, unit tests and the mesh in-process, each with its time.

use std::process::{Command, ExitCode};
use std::time::SystemTime;

use leno_benches::root;

/// The steps, the quickest to fail first.
const STEPS: [&str; 5] = [
    "cargo fmt --all --check",
    ".ci/words",
    "cargo clippy --workspace --all-targets --quiet -- -D warnings",
    "cargo test --workspace --lib --quiet",
    "cargo test --workspace --test mesh --quiet",
];

fn main() -> ExitCode {
    let begun = SystemTime::now();
    for step in STEPS {
        let since = SystemTime::now();
        let mut words = step.split(' ');
        let program = words.next().unwrap_or_default();
        let status = Command::new(program)
            .args(words)
            .current_dir(root())
            .status();
        let seconds = since.elapsed().unwrap_or_default().as_secs();
        match status {
            Ok(status) if status.success() => println!("=== {step}: {seconds} s"),
            Ok(_) => {
                eprintln!("=== {step} FAILED after {seconds} s");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("=== {step} can't be run: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = begun.elapsed().unwrap_or_default().as_secs();
    println!("=== all in {seconds} s");
    ExitCode::SUCCESS
}
