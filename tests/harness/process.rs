//! Sidecars as processes of their own, for signals, memory and exit codes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::client::get;
use crate::mesh::Mesh;
use crate::{TIMEOUT, fresh_ip, until};

/// A sidecar, killed when it is dropped.
pub struct Sidecar {
    child: Child,
    program: PathBuf,
    arguments: Vec<String>,
    /// Its outbound address, for the app's requests.
    pub outbound: SocketAddr,
    /// Its admin address.
    pub admin: SocketAddr,
}

impl Sidecar {
    /// Starts a sidecar of `account` at `ip` with more flags, and waits until it is ready.
    pub async fn start(mesh: &Mesh, account: &str, ip: Ipv4Addr, flags: &str) -> Sidecar {
        let program = program().await;
        let local = fresh_ip();
        let (outbound, admin) = (
            SocketAddr::from((local, 15001)),
            SocketAddr::from((local, 15000)),
        );
        let token = mesh.token_file(account);
        let arguments = format!(
            "run --xds-address {} --service-account {account} --ip {ip} --token-file {} \
             --outbound-address {outbound} --admin-address {admin} \
             --metrics-address {local}:15020 --prometheus-address {local}:15090 {flags}",
            mesh.xds,
            token.display()
        );
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let sidecar = Sidecar {
            child: spawn(&program, &arguments),
            program,
            arguments,
            outbound,
            admin,
        };
        sidecar.ready().await;
        sidecar
    }

    /// Restarts it with the same arguments.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.program, &self.arguments);
        self.ready().await;
    }

    async fn ready(&self) {
        until("the sidecar is ready", || async {
            let _ = tokio::net::TcpStream::connect(self.admin).await.ok()?;
            (get(self.admin, "admin", "/ready").await.status == 200).then_some(())
        })
        .await;
    }

    /// Its inbound addresses, in the order of the flags.
    pub fn inbound(&self) -> Vec<SocketAddr> {
        let flags = self
            .arguments
            .windows(2)
            .filter(|pair| pair[0] == "--inbound");
        let listens = flags.filter_map(|pair| pair[1].split('=').next()?.parse().ok());
        listens.collect()
    }

    /// Sends a signal by name.
    ///
    /// # Panics
    /// When it doesn't run.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs");
        let kill = format!("kill -{name} {pid}");
        let sent = Command::new("sh").args(["-c", &kill]).status().await;
        assert!(sent.expect("sh").success(), "{kill}");
    }

    /// Waits until it has ended; true when its exit code is 0.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub async fn wait(&mut self) -> bool {
        let ended = timeout(3 * TIMEOUT, self.child.wait()).await;
        ended.expect("it ends").expect("a process").success()
    }

    /// Its resident memory, in bytes.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn memory(&self) -> usize {
        memory(self.child.id().expect("it runs"))
    }
}

/// The resident memory of a process, in bytes.
///
/// # Panics
/// When there is no such process.
pub fn memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.expect("a number") * 1024
}

fn spawn(program: &PathBuf, arguments: &[String]) -> Child {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LENO_LOG", "error")
        .stdin(Stdio::null());
    command
        .kill_on_drop(true)
        .spawn()
        .expect("leno-proxy starts")
}

/// `leno-proxy run … -- APP` for `account`, on addresses of its own.
pub async fn wrapped(mesh: &Mesh, account: &str, app: &[&str]) -> Command {
    let (local, token) = (fresh_ip(), mesh.token_file(account));
    let words = format!(
        "run --xds-address {} --service-account {account} --ip {local} --token-file {} \
         --outbound-address {local}:15001 --admin-address {local}:15000 --",
        mesh.xds,
        token.display()
    );
    let mut command = Command::new(program().await);
    command.args(words.split_whitespace()).args(app);
    command.env("LENO_LOG", "error").stdin(Stdio::null());
    command.kill_on_drop(true);
    command
}

/// leno-proxy's path.
pub(crate) async fn program() -> PathBuf {
    built().await.join("leno-proxy")
}

/// Runs `leno` or `leno-proxy` with these arguments to its end; returns its exit code.
///
/// # Panics
/// When it can't be started, or ends by a signal.
pub async fn exit_code(name: &str, words: &str) -> i32 {
    let program = match name {
        "leno" => built().await.join("leno"),
        _ => program().await,
    };
    let mut command = Command::new(program);
    command.args(words.split_whitespace()).stdin(Stdio::null());
    let done = command.output().await.expect("it starts");
    done.status.code().expect("an exit")
}

/// Runs `leno` with these arguments to its end; returns its success and its output.
///
/// # Panics
/// When it can't be started.
pub async fn leno(words: &[&str]) -> (bool, String) {
    let mut command = Command::new(built().await.join("leno"));
    let done = command.args(words).output().await.expect("it starts");
    let printed = [done.stdout, done.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(done.status.code().is_some_and(|code| code < 2), "{printed}");
    (done.status.success(), printed)
}

/// Builds the programs, once, in this test's profile; returns their directory. Those of the whole workspace, whose libraries are
/// compiled already: one package alone wants other features of them.
async fn built() -> &'static Path {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let build = async || {
        let own = std::env::current_exe().expect("a program");
        let directory = own.ancestors().nth(2).expect("a directory").to_owned();
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args([
            "build",
            "--quiet",
            "--workspace",
            "--bins",
            "--profile",
            profile,
        ]);
        let is_built = command.status().await.expect("cargo").success();
        assert!(is_built, "the programs build");
        directory
    };
    BUILT.get_or_init(build).await
}

/// The demo's command; flags may follow.
pub async fn demo() -> std::process::Command {
    let mut command = std::process::Command::new(built().await.join("demo"));
    command.arg("--built");
    command
}
