//! The demo's mesh, small, for measuring: one user-service, its sidecar B, order-service's sidecar A, and a client with a
//! few keep-alive connections. Static release builds, one worker each, the demo's YAML.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The PGO profile of leno-proxy, below the project's directory.
pub const PROFILE: &str = "proxy/leno-proxy.profdata";
/// Target triple of the static builds.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Addresses of this lab's own.
const XDS: &str = "127.0.7.1:15012";
const MONITORING: &str = "127.0.7.1:15014";
/// A's outbound and admin addresses.
pub const A: (&str, &str) = ("127.0.7.2:15001", "127.0.7.2:15000");
/// B's outbound and admin addresses.
pub const B: (&str, &str) = ("127.0.7.3:15001", "127.0.7.3:15000");

/// The request that is sent on each connection.
const REQUEST: &str =
    "GET /users/1 HTTP/1.1\r\nHost: user-service\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n";

/// A process, killed when it is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Sends SIGTERM to it, and waits until it has ended.
    ///
    /// # Errors
    /// When it can't be signalled.
    pub fn end(mut self) -> Result<()> {
        let pid = self.0.id().to_string();
        ensure!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()?
                .success(),
            "kill {pid}"
        );
        self.0.wait()?;
        Ok(())
    }
}

/// The mesh.
#[derive(Debug)]
pub struct Lab {
    /// The caller's sidecar.
    pub a: Process,
    /// The callee's sidecar.
    pub b: Process,
    directory: PathBuf,
    _others: Vec<Process>,
}

/// The sidecar that runs under a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Side {
    A,
    B,
}

/// Paths of the built programs.
#[derive(Debug)]
pub struct Programs {
    /// The sidecar.
    proxy: PathBuf,
    /// The directory of the others.
    others: PathBuf,
}

/// Builds the programs as images have them: static, and leno-proxy optimised by its profile.
///
/// # Errors
/// When the build fails.
pub fn build() -> Result<Programs> {
    build_with(None)
}

/// Builds the programs; leno-proxy as a plain `cargo build --release -p leno-proxy` makes it: linked dynamically, without the profile.
///
/// # Errors
/// When the build fails.
pub fn build_plain() -> Result<Programs> {
    let target = target()?;
    let mut command = release(&["leno-proxy"], &target);
    ensure!(
        command.env_remove("RUSTFLAGS").status()?.success(),
        "the build failed"
    );
    Ok(Programs {
        others: others()?,
        proxy: target.join("release/leno-proxy"),
    })
}

/// Builds the programs; the linker writes its map of leno-proxy to `map`.
///
/// # Errors
/// When the build fails.
pub fn build_with(map: Option<&Path>) -> Result<Programs> {
    Ok(Programs {
        others: others()?,
        proxy: cargo(&["leno-proxy"], &used()?, map, "")?.join("leno-proxy"),
    })
}

/// Builds the programs; leno-proxy writes its execution counts to the directory `data`.
///
/// # Errors
/// When the build fails.
pub fn build_for_training(data: &Path) -> Result<Programs> {
    let made = format!("-C profile-generate={}", data.display());
    Ok(Programs {
        others: others()?,
        proxy: cargo(&["leno-proxy"], &made, None, "training")?.join("leno-proxy"),
    })
}

/// The compiler's flag that applies the profile.
fn used() -> Result<String> {
    let profile = fs::canonicalize(root().join(PROFILE)).context(PROFILE)?;
    Ok(format!("-C profile-use={}", profile.display()))
}

/// Builds the other programs. leno-proxy is built on its own: packages built with it may change the features of its
/// libraries, and so the symbol names in the profile. Without the profile's flag, since everything built with it is
/// rebuilt when the profile changes.
fn others() -> Result<PathBuf> {
    cargo(&["leno-control-plane", "leno-examples"], "", None, "others")
}

/// `cargo build --release` of packages.
fn release(packages: &[&str], target: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--release", "--bins", "--target-dir"])
        .arg(target)
        .current_dir(root());
    for package in packages {
        command.args(["--package", package]);
    }
    command
}

/// Builds packages with more flags of the compiler, in `below` the target directory; returns the programs' directory.
fn cargo(packages: &[&str], flags: &str, map: Option<&Path>, below: &str) -> Result<PathBuf> {
    let target = target()?.join(below);
    let mut command = release(packages, &target);
    command.args(["--target", TARGET]);
    // Packed relocations: the plain table is half a megabyte that start-up reads and nothing needs afterwards.
    let fixed = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";
    command.env("RUSTFLAGS", format!("{fixed} {flags}"));
    if let Some(map) = map {
        command.env("LENO_LINK_MAP", map);
    }
    ensure!(command.status()?.success(), "the build failed");
    Ok(target.join(TARGET).join("release"))
}

/// The target directory.
///
/// # Errors
/// When the running program isn't inside one.
pub fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("a target directory")?;
    Ok(target.to_owned())
}

/// The project's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Lab {
    /// Starts the mesh, both sidecars with more `flags`; the command `tool` precedes the program of one side.
    ///
    /// # Errors
    /// When something doesn't start, or isn't ready in time.
    pub fn start(
        programs: &Programs,
        tool: Option<(Side, Vec<String>)>,
        flags: &[&str],
    ) -> Result<Lab> {
        let directory = std::env::temp_dir().join(format!("leno-lab-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let yaml = directory.join("yaml");
        fs::create_dir_all(&yaml)?;
        write_yaml(&yaml)?;
        let mut serve = Command::new(programs.others.join("leno"));
        serve.args([
            "serve",
            "--xds-address",
            XDS,
            "--monitoring-address",
            MONITORING,
        ]);
        serve.arg("--config").arg(&yaml);
        serve.arg("--state-dir").arg(directory.join("state"));
        let mut control_plane = Process(quiet(serve).spawn()?);
        ready(&mut control_plane, MONITORING)?;
        let mut app = Command::new(programs.others.join("shop"));
        app.args(["--service", "user-service", "--log"])
            .arg(directory.join("app.log"));
        let mut app = quiet(app).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        BufReader::new(app.stdout.take().context("a pipe")?).read_line(&mut address)?;
        let inbound = format!("127.0.7.3:3001={}", address.trim());
        let sidecar = |side, account, addresses, own: [&str; 2]| {
            let of = tool.as_ref().filter(|(of, _)| *of == side);
            let words = of.map_or(&[][..], |(_, words)| words);
            let flags = [&own, flags].concat();
            sidecar(programs, &directory, words, account, addresses, &flags)
        };
        Ok(Lab {
            b: sidecar(Side::B, "user-service", B, ["--inbound", &inbound])?,
            a: sidecar(Side::A, "order-service", A, ["--ip", "127.0.7.2"])?,
            _others: vec![control_plane, Process(app)],
            directory,
        })
    }

    /// Sends `count` requests to user-service through both sidecars in rounds: one request on each of the keep-alive
    /// `connections`, then the responses.
    ///
    /// # Errors
    /// When a response isn't a 200.
    pub fn send(&self, count: usize, connections: usize) -> Result<()> {
        self.send_this(REQUEST, count, connections)
    }

    /// Sends `count` requests with bodies of 20,000 bytes, half of them with a Content-Length and half chunked.
    ///
    /// # Errors
    /// When a response isn't a 200.
    pub fn send_bodies(&self, count: usize, connections: usize) -> Result<()> {
        let body = "x".repeat(20_000);
        let head = REQUEST.trim_end();
        let told = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (coding, length) = ("Transfer-Encoding: chunked", body.len());
        let chunked = format!("{head}\r\n{coding}\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n");
        self.send_this(&told, count / 2, connections)?;
        self.send_this(&chunked, count - count / 2, connections)
    }

    fn send_this(&self, request: &str, count: usize, connections: usize) -> Result<()> {
        let mut open = Vec::new();
        for _ in 0..connections {
            let tcp = TcpStream::connect(A.0)?;
            tcp.set_nodelay(true)?;
            tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
            open.push(tcp);
        }
        let mut left = count;
        while left > 0 {
            let round = left.min(connections);
            for tcp in &mut open[..round] {
                tcp.write_all(request.as_bytes())?;
            }
            for tcp in &mut open[..round] {
                read_answer(tcp)?;
            }
            left -= round;
        }
        Ok(())
    }

    /// Ends both sidecars gracefully, by SIGTERM.
    ///
    /// # Errors
    /// When they can't be signalled.
    pub fn end(&mut self) -> Result<()> {
        for sidecar in [&mut self.a, &mut self.b] {
            let none = Process(Command::new("true").spawn()?);
            std::mem::replace(sidecar, none).end()?;
        }
        Ok(())
    }

    /// Asserts that the app saw `count` requests with a trace context and the caller's identity, and that both sidecars
    /// counted as many.
    ///
    /// # Errors
    /// The first assertion that fails.
    pub fn check(&self, count: usize) -> Result<()> {
        let log = fs::read_to_string(self.directory.join("app.log"))?;
        let lines: Vec<&str> = log.lines().collect();
        ensure!(
            lines.len() == count,
            "the app saw {} of {count} requests",
            lines.len()
        );
        for line in lines {
            let seen: serde_json::Value = serde_json::from_str(line)?;
            let text = |name: &str| seen[name].as_str().unwrap_or_default().to_owned();
            ensure!(text("traceparent").len() == 55, "no traceparent: {line}");
            let cert = text("x-forwarded-client-cert");
            ensure!(
                cert.ends_with("URI=spiffe://cluster.local/ns/default/sa/order-service"),
                "{cert}"
            );
        }
        for (side, admin) in [("source", A.1), ("destination", B.1)] {
            let metrics = page(admin, "/metrics")?;
            let reporter = format!("reporter=\"{side}\"");
            let lines = metrics
                .lines()
                .filter(|line| line.starts_with("istio_requests_total{"));
            let counted: f64 = lines
                .filter(|line| line.contains(&reporter) && line.contains("response_code=\"200\""))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum();
            ensure!(
                (counted - count as f64).abs() < 0.5,
                "{side} counted {counted} of {count}"
            );
        }
        Ok(())
    }
}

/// User instructions per request of `side`; both sidecars get `flags`. The difference of two runs under callgrind with
/// different numbers of requests leaves out start-up and background work. `keep` receives callgrind's files.
///
/// # Errors
/// When a request fails, or valgrind does.
pub fn instructions(
    programs: &Programs,
    side: Side,
    flags: &[&str],
    counts: [usize; 2],
    keep: Option<&Path>,
) -> Result<u64> {
    let [few, many] = counts.map(|count| collect(programs, side, flags, count, keep));
    Ok((many? - few?) / (counts[1] - counts[0]) as u64)
}

/// All user instructions of `side` for `count` requests.
fn collect(
    programs: &Programs,
    side: Side,
    flags: &[&str],
    count: usize,
    keep: Option<&Path>,
) -> Result<u64> {
    let text = profile(programs, side, flags, count, &[])?;
    if let Some(directory) = keep {
        fs::write(directory.join(format!("{side:?}-{count}")), &text)?;
    }
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = totals.and_then(|line| line.split(' ').next());
    Ok(total.context("no totals")?.parse()?)
}

/// callgrind's output for `side` and `count` requests, from its start to its end; `more` are flags of callgrind.
///
/// # Errors
/// When a request fails, or valgrind does.
pub fn profile(
    programs: &Programs,
    side: Side,
    flags: &[&str],
    count: usize,
    more: &[&str],
) -> Result<String> {
    let out = std::env::temp_dir().join(format!("leno-callgrind-{}", std::process::id()));
    let file = format!("--callgrind-out-file={}", out.display());
    let tool = ["valgrind", "--tool=callgrind", "--quiet", &file];
    let tool = [&tool, more]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut lab = Lab::start(programs, Some((side, tool)), flags)?;
    lab.send(count, 64)?;
    lab.check(count)?;
    let none = Command::new("true").spawn()?;
    let measured = match side {
        Side::A => std::mem::replace(&mut lab.a, Process(none)),
        Side::B => std::mem::replace(&mut lab.b, Process(none)),
    };
    measured.end()?;
    let text = fs::read_to_string(&out).context("valgrind wrote nothing; is it installed?")?;
    fs::remove_file(out)?;
    Ok(text)
}

/// A figure of `/proc/PID/status`, in KiB.
///
/// # Errors
/// When the process is gone.
pub fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("a figure")?.parse()?)
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn read_answer(tcp: &mut TcpStream) -> Result<()> {
    let (mut buffer, mut answer) = ([0; 4096], String::new());
    while !answer.ends_with("}\n") {
        let read = tcp.read(&mut buffer)?;
        ensure!(read > 0, "closed after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// The demo's YAML with one endpoint a service, on this lab's addresses; one instance serves as either version.
fn write_yaml(directory: &Path) -> Result<()> {
    let shop = root().join("examples/shop");
    for entry in fs::read_dir(shop)? {
        let path = entry?.path();
        let mut text = fs::read_to_string(&path)?;
        for (before, after) in [
            ("127.0.1.4", "127.0.7.3"),
            ("127.0.2.1", "127.0.7.2"),
            ("version: v2}", "version: v1}"),
            ("version: v2\n", "version: v1\n"),
        ] {
            text = text.replace(before, after);
        }
        let name = path.file_name().context("a file")?;
        fs::write(directory.join(name), one_endpoint(&text))?;
    }
    Ok(())
}

/// Starts a sidecar of `account`, behind the command `tool` if any, and waits until it is ready.
fn sidecar(
    programs: &Programs,
    directory: &Path,
    tool: &[String],
    account: &str,
    (outbound, admin): (&str, &str),
    flags: &[&str],
) -> Result<Process> {
    let token = directory.join(format!("{account}.token"));
    let mut make = Command::new(programs.others.join("leno"));
    make.args([
        "token",
        "create",
        "--service-account",
        account,
        "--state-dir",
    ])
    .arg(directory.join("state"));
    fs::write(&token, make.output()?.stdout)?;
    let program = &programs.proxy;
    let mut command = match tool {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["run", "--xds-address", XDS, "--service-account", account]);
    command.args(["--outbound-address", outbound, "--admin-address", admin]);
    command.args(flags).arg("--token-file").arg(token);
    let mut process = Process(quiet(command).spawn()?);
    ready(&mut process, admin)?;
    Ok(process)
}

/// Keeps only this lab's endpoints of each registry entry.
fn one_endpoint(text: &str) -> String {
    let (mut out, mut skipping) = (String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("- address: ") {
            skipping = !line.contains("127.0.7.");
        } else if !line.starts_with("    ") {
            skipping = false;
        }
        if !skipping {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn quiet(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn page(address: &str, path: &str) -> Result<String> {
    let mut tcp = TcpStream::connect(address)?;
    write!(tcp, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Waits until the `/ready` page of `process` answers with 200, a minute at most.
fn ready(process: &mut Process, address: &str) -> Result<()> {
    for _ in 0..1200 {
        if let Some(status) = process.0.try_wait()? {
            bail!("what was to serve {address} ended: {status}");
        }
        if page(address, "/ready").is_ok_and(|answer| answer.contains(" 200 ")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{address} is not ready after a minute")
}
