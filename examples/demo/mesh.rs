//! The mesh of the demo: real processes, each workload on an address of its own, as pods have.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::http;
use crate::relay::{self, Recording};

/// The control plane's xDS and monitoring addresses.
pub(crate) const XDS: &str = "127.0.4.1:15012";
pub(crate) const MONITORING: &str = "127.0.4.1:15014";
/// Outbound addresses of the sidecars of order-service and of web, a stranger.
pub(crate) const ORDER_OUTBOUND: &str = "127.0.2.1:15001";
pub(crate) const WEB_OUTBOUND: &str = "127.0.3.1:15001";
/// Lifetime of certificates, short enough for a renewal to be watched.
const TTL: &str = "16s";
/// Longest time that anything may take to become ready.
const READY: Duration = Duration::from_secs(20);

/// A user-service instance: its sidecar's address, its version, and its address in the registry.
const USERS: [(&str, &str, &str); 4] = [
    ("127.0.1.1", "v1", "127.0.1.101"),
    ("127.0.1.2", "v1", "127.0.1.2"),
    ("127.0.1.3", "v1", "127.0.1.3"),
    ("127.0.1.4", "v2", "127.0.1.4"),
];

/// A process, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) child: Child,
    /// Its arguments, for a sidecar that is restarted.
    args: Vec<OsString>,
}

/// The mesh.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// Directory of all files that the mesh writes.
    pub(crate) directory: PathBuf,
    programs: PathBuf,
    control_plane: Option<Process>,
    pub(crate) sidecars: Vec<Process>,
    apps: Vec<Process>,
    /// The bytes between order-service's sidecar and the first user-service's.
    pub(crate) wire: Recording,
    /// Listening address of order-service itself.
    pub(crate) order_app: SocketAddr,
}

impl Mesh {
    /// Builds the programs unless they are, starts everything and waits until it is ready.
    pub(crate) async fn start(is_built: bool) -> Result<Mesh> {
        let own = std::env::current_exe()?;
        let programs = own.parent().context("a directory")?.to_owned();
        if !is_built {
            build(&programs).await?;
        }
        let directory = std::env::temp_dir().join(format!("leno-demo-{}", std::process::id()));
        fs::create_dir_all(directory.join("yaml"))?;
        for entry in fs::read_dir(source().join("shop"))? {
            let path = entry?.path();
            let name = path.file_name().context("a file")?;
            fs::copy(&path, directory.join("yaml").join(name))?;
        }
        let wire = relay::start("127.0.1.101:3001".parse()?, "127.0.1.1:3001".parse()?).await?;
        let mut mesh = Mesh {
            directory,
            programs,
            control_plane: None,
            sidecars: Vec::new(),
            apps: Vec::new(),
            wire,
            order_app: "127.0.0.1:0".parse()?,
        };
        mesh.start_control_plane().await?;
        for (ip, version, registered) in USERS {
            let log = format!("user-{ip}.log");
            let app = mesh
                .app(&["--service", "user-service", "--version", version], &log)
                .await?;
            let inbound = format!("{ip}:3001={app}");
            let own = ["--service-account", "user-service", "--ip", registered];
            mesh.sidecar(ip, &own, Some(&inbound)).await?;
        }
        let sidecar = ["--service", "order-service", "--sidecar", ORDER_OUTBOUND];
        mesh.order_app = mesh.app(&sidecar, "order.log").await?;
        let inbound = format!("127.0.2.1:3002={}", mesh.order_app);
        mesh.sidecar(
            "127.0.2.1",
            &["--service-account", "order-service"],
            Some(&inbound),
        )
        .await?;
        mesh.sidecar(
            "127.0.3.1",
            &["--service-account", "web", "--ip", "127.0.3.1"],
            None,
        )
        .await?;
        mesh.ready().await?;
        Ok(mesh)
    }

    /// Starts or restarts the control plane.
    pub(crate) async fn start_control_plane(&mut self) -> Result<()> {
        let mut command = Command::new(self.programs.join("leno"));
        command
            .arg("serve")
            .args(["--xds-address", XDS, "--monitoring-address", MONITORING]);
        command.arg("--config").arg(self.directory.join("yaml"));
        command.arg("--state-dir").arg(self.directory.join("state"));
        self.control_plane = Some(self.spawn("control plane", command)?);
        answers(MONITORING, "/ready")
            .await
            .context("the control plane")
    }

    /// Kills the control plane with SIGKILL.
    pub(crate) async fn kill_control_plane(&mut self) -> Result<()> {
        let mut process = self.control_plane.take().context("it runs")?;
        process.child.kill().await?;
        Ok(())
    }

    async fn app(&mut self, args: &[&str], log: &str) -> Result<SocketAddr> {
        let mut command = Command::new(self.programs.join("shop"));
        command
            .args(args)
            .arg("--log")
            .arg(self.directory.join(log))
            .stdout(Stdio::piped());
        let mut process = self.spawn(args[1], command)?;
        let stdout = process.child.stdout.take().context("a pipe")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        self.apps.push(process);
        Ok(line.context("the app prints its address")?.parse()?)
    }

    async fn sidecar(&mut self, ip: &str, args: &[&str], inbound: Option<&str>) -> Result<()> {
        let account = args[1];
        let token = self.directory.join(format!("{ip}.token"));
        let mut make = Command::new(self.programs.join("leno"));
        make.args(["token", "create", "--service-account", account]);
        let made = make
            .arg("--state-dir")
            .arg(self.directory.join("state"))
            .output()
            .await?;
        ensure!(
            made.status.success(),
            "leno token: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        fs::write(&token, made.stdout)?;
        let mut command = Command::new(self.programs.join("leno-proxy"));
        command
            .arg("run")
            .args(["--xds-address", XDS, "--certificate-ttl", TTL])
            .args(args);
        command.args(["--outbound-address", &format!("{ip}:15001")]);
        command.args(["--admin-address", &format!("{ip}:15000")]);
        command.args(["--metrics-address", &format!("{ip}:15020")]);
        command.args(["--prometheus-address", &format!("{ip}:15090")]);
        command.arg("--token-file").arg(token);
        command.arg("--state-dir").arg(self.state_dir(ip));
        if let Some(inbound) = inbound {
            command.args(["--inbound", inbound]);
        }
        let process = self.spawn(&format!("sidecar {account} {ip}"), command)?;
        self.sidecars.push(process);
        Ok(())
    }

    fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        let file = self
            .directory
            .join(format!("{}.stderr", name.replace(' ', "-")));
        let stderr = fs::File::create(file)?;
        let args = command.as_std().get_args().map(OsString::from).collect();
        let child = command
            .stdin(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn();
        Ok(Process {
            name: name.to_owned(),
            child: child.with_context(|| format!("cannot start {name}"))?,
            args,
        })
    }

    /// State directory of the sidecar at `ip`, from which it starts after a restart.
    pub(crate) fn state_dir(&self, ip: &str) -> PathBuf {
        self.directory.join(format!("{ip}.state"))
    }

    /// Kills the sidecar at `ip` with SIGKILL.
    pub(crate) async fn kill_sidecar(&mut self, ip: &str) -> Result<()> {
        let found = self.sidecars.iter_mut().find(|s| s.name.ends_with(ip));
        found.context("it runs")?.child.kill().await?;
        Ok(())
    }

    /// Sends a signal to the sidecar at `ip`, and waits for its end.
    pub(crate) async fn signal_sidecar(&mut self, ip: &str, name: &str) -> Result<ExitStatus> {
        let found = self.sidecars.iter_mut().find(|s| s.name.ends_with(ip));
        let child = &mut found.context("it runs")?.child;
        let kill = format!("kill -{name} {}", child.id().context("it runs")?);
        let sent = Command::new("sh").args(["-c", &kill]).status().await?;
        ensure!(sent.success(), "{kill} failed");
        Ok(child.wait().await?)
    }

    /// Restarts the sidecar at `ip` with its first arguments.
    pub(crate) fn restart_sidecar(&mut self, ip: &str) -> Result<()> {
        let at = self.sidecars.iter().position(|s| s.name.ends_with(ip));
        let at = at.context("it was started")?;
        let mut command = Command::new(self.programs.join("leno-proxy"));
        command.args(&self.sidecars[at].args);
        self.sidecars[at] = self.spawn(&self.sidecars[at].name.clone(), command)?;
        Ok(())
    }

    /// Moves the control plane's state directory away, or back.
    pub(crate) fn hide_state(&self, hidden: bool) -> Result<()> {
        let (here, there) = (self.directory.join("state"), self.directory.join("hidden"));
        match hidden {
            true => fs::rename(here, there)?,
            false => fs::rename(there, here)?,
        }
        Ok(())
    }

    /// The request log of one instance of user-service.
    pub(crate) fn requests_of(&self, ip: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.directory.join(format!("user-{ip}.log")))?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// Makes the instance of user-service at `ip` `broken` or `slow`, or heals it.
    pub(crate) fn afflict(&self, ip: &str, how: &str, is_so: bool) -> Result<()> {
        let file = self.directory.join(format!("user-{ip}.{how}"));
        match is_so {
            true => fs::write(file, "")?,
            false => fs::remove_file(file)?,
        }
        Ok(())
    }

    /// Waits until every sidecar is ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        for (ip, ..) in USERS {
            answers(&format!("{ip}:15000"), "/ready")
                .await
                .with_context(|| format!("sidecar {ip}"))?;
        }
        answers("127.0.2.1:15000", "/ready")
            .await
            .context("order-service's sidecar")?;
        answers("127.0.3.1:15000", "/ready")
            .await
            .context("the stranger's sidecar")
    }

    /// Every process, with the program behind it, by `/proc/PID/exe`.
    pub(crate) fn programs(&self) -> Result<Vec<(String, u32, PathBuf)>> {
        let all = self
            .control_plane
            .iter()
            .chain(&self.sidecars)
            .chain(&self.apps);
        all.map(|process| {
            let pid = process
                .child
                .id()
                .with_context(|| format!("{} ended", process.name))?;
            let program = fs::read_link(format!("/proc/{pid}/exe"))?;
            Ok((process.name.clone(), pid, program))
        })
        .collect()
    }

    /// The request logs of all instances of user-service.
    pub(crate) fn user_requests(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for (ip, ..) in USERS {
            all.extend(self.requests_of(ip)?);
        }
        Ok(all)
    }

    /// Replaces `before` by `after` in a file of the mesh's configuration, by rename.
    pub(crate) fn edit(&self, file: &str, before: &str, after: &str) -> Result<()> {
        let path = self.directory.join("yaml").join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(before), "{file} has no {before:?}");
        let next = path.with_extension("next");
        fs::write(&next, text.replace(before, after))?;
        fs::rename(next, path)?;
        Ok(())
    }

    /// Ends everything, and removes all files.
    pub(crate) async fn end(mut self) -> Result<()> {
        let processes = self.sidecars.drain(..).chain(self.apps.drain(..));
        for mut process in processes.chain(self.control_plane.take()) {
            process.child.kill().await?;
        }
        fs::remove_dir_all(&self.directory)?;
        Ok(())
    }
}

/// The directory `examples/`.
fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the programs in the profile whose directory is `programs`. Those of the whole workspace, as `cargo build` and
/// `cargo test` do: libraries would be compiled anew for other features.
async fn build(programs: &Path) -> Result<()> {
    let profile = match programs.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bins",
            "--profile",
            profile,
        ])
        .current_dir(source());
    ensure!(command.status().await?.success(), "the build failed");
    Ok(())
}

/// Waits until a page answers with 200.
async fn answers(address: &str, path: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let deadline = Instant::now() + READY;
    loop {
        let last = match http::get(address, &address.to_string(), path).await {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => answer.body.trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            bail!("not ready after {READY:?}: {last}");
        }
        sleep(Duration::from_millis(50)).await;
    }
}
