//! Real neighbours: programs of other projects, on the other end of Leno's protocols.
//!
//! `nginx`, `haproxy`, `envoy`, `prometheus`, `chromium` with its driver, and a `python3` with grpcio and selenium must
//! be on PATH; CONTRIBUTING says where they come from.

mod grpc;
mod h2spec;
mod http1;
mod map;
mod mix;
mod prometheus;
#[path = "../differential/reader.rs"]
mod reader;
mod xds;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running program, killed when it is dropped. Its output is shown when the test fails.
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `name`; its output goes to a file in `directory`.
    fn start(name: &str, arguments: &[&str], directory: &Path) -> Program {
        Program::with(name, arguments, directory, &[])
    }

    /// Starts `name` with more environment.
    fn with(
        name: &str,
        arguments: &[&str],
        directory: &Path,
        environment: &[(&str, &str)],
    ) -> Program {
        let path = directory.join(format!("{name}.log"));
        let log = std::fs::File::create(&path).expect("a file");
        let child = Command::new(name)
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn();
        Program {
            child: child.unwrap_or_else(|error| panic!("{name} must be on PATH: {error}")),
            log: path,
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("{}:\n{said}", self.log.display());
        }
    }
}

/// A free address of loopback.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
    listener.local_addr().expect("an address")
}
