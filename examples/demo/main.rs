//! `cargo demo`: the shop in a mesh of real processes, and a story whose steps are judged by evidence that the demo did
//! not write: the apps' own logs, the bytes on the wire, the answers to a foreign client.

mod foreign;
mod http;
mod load;
mod mesh;
mod relay;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use tokio::signal::ctrl_c;
use tokio::time::{Instant as Clock, sleep};

use load::Load;
use mesh::{MONITORING, Mesh, ORDER_OUTBOUND, WEB_OUTBOUND};

/// Text in every user's record, which must never be on the wire.
const MARKER: &str = "MARKER-7f3a";
const PHONE: &str = "Mozilla/5.0 (iPhone) Mobile/15E148";

/// The demo.
#[derive(Debug, Parser)]
struct Args {
    /// End after the story; exit code 0 only if every step held.
    #[arg(long)]
    once: bool,
    /// The programs are built, and stand beside this one.
    #[arg(long)]
    built: bool,
    /// Sabotage this step, and begin with it: the story must fail there.
    #[arg(long = "break", value_enum)]
    sabotage: Option<Step>,
}

/// The steps of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// The programs are the real ones.
    Programs,
    /// Traffic is split by weight and by user agent.
    Split,
    /// Both sides prove who they are, and nothing is readable between them.
    Mtls,
    /// Plaintext is refused.
    Plaintext,
    /// A foreign certificate is refused.
    Foreign,
    /// A caller or a request that isn't allowed is refused.
    Denied,
    /// An instance that fails is ejected, tried again, and taken back.
    Ejection,
    /// A sidecar is killed; its requests go elsewhere.
    Retry,
    /// Each v1 sidecar is replaced under load: told to end, awaited, started again.
    Rollout,
    /// An edit of the YAML moves traffic without a failed request.
    Reload,
    /// More requests than may be under way: those above are told so at once.
    Overflow,
    /// A certificate is renewed under load.
    Rotation,
    /// The control plane is killed, and traffic goes on.
    ControlPlane,
    /// Sidecars are killed and started again while the control plane is dead and its directory gone.
    Restart,
}

impl Step {
    /// Steps that must have happened before this one: some find all traffic at v2.
    fn groundwork(self) -> &'static [Step] {
        match self {
            Step::Overflow | Step::Restart => &[Step::Reload],
            _ => &[],
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match demo(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nFAILED {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(args: &Args) -> Result<()> {
    println!(
        "{} the shop…",
        if args.built {
            "Starting"
        } else {
            "Building the programs and starting"
        }
    );
    let mut mesh = Mesh::start(args.built).await?;
    println!("The live map: http://{MONITORING}/");
    let told = tokio::select! {
        told = run_story(&mut mesh, args.sabotage) => told,
        _ = ctrl_c() => Ok(()),
    };
    if told.is_ok() && !args.once {
        println!("\nThe mesh stays up. Try it:");
        println!("  curl -i -H 'Host: user-service' http://{ORDER_OUTBOUND}/users/1");
        println!("  curl -i -x http://{WEB_OUTBOUND} http://user-service/users/1");
        println!("  curl -s http://127.0.2.1:15000/config");
        println!("  the live map: http://{MONITORING}/");
        println!("  edit {}", mesh.directory.join("yaml").display());
        println!("Ctrl-C ends it.");
        ctrl_c().await?;
    }
    mesh.end().await?;
    told
}

/// Runs the story, from start to end. A sabotaged one is over with its step, which has only its groundwork before it.
async fn run_story(mesh: &mut Mesh, sabotage: Option<Step>) -> Result<()> {
    for step in Step::value_variants() {
        let broken = sabotage == Some(*step);
        if sabotage.is_some_and(|s| !broken && !s.groundwork().contains(step)) {
            continue;
        }
        if broken {
            break_it(mesh, *step).await?;
        }
        let name = step.to_possible_value().context("a name")?;
        let said = match step {
            Step::Programs => programs(mesh),
            Step::Split => split(mesh).await,
            Step::Mtls => mtls(mesh).await,
            Step::Plaintext => plaintext(mesh).await,
            Step::Foreign => foreigner(mesh, broken).await,
            Step::Denied => denied(mesh).await,
            Step::Ejection => ejection(mesh).await,
            Step::Retry => retry(mesh).await,
            Step::Rollout => rollout(mesh, broken).await,
            Step::Reload => reload(mesh, broken).await,
            Step::Overflow => overflow(mesh, broken).await,
            Step::Rotation => rotation(mesh, broken).await,
            Step::ControlPlane => control_plane(mesh, broken).await,
            Step::Restart => restart(mesh, broken).await,
        };
        let said = said.with_context(|| format!("at step {}", name.get_name()))?;
        println!("\n✓ {}\n  {}", name.get_name(), said.replace('\n', "\n  "));
    }
    println!("\nEvery step held.");
    Ok(())
}

/// Sabotages a step, which must then fail. An edit has two seconds to reach the proxies. Steps that can only be broken from inside take `broken`.
async fn break_it(mesh: &mut Mesh, step: Step) -> Result<()> {
    match step {
        Step::Programs => {
            mesh.sidecars[0].child.kill().await?;
            mesh.sidecars[0].child = tokio::process::Command::new("sleep").arg("60").spawn()?;
        }
        Step::Split => mesh.edit("routing.yaml", "weight: 90", "weight: 10")?,
        Step::Mtls => {
            mesh.edit("security.yaml", "mode: STRICT", "mode: DISABLE")?;
            mesh.edit("security.yaml", "  - from:", "  - {}\n  - from:")?;
        }
        Step::Plaintext => {
            mesh.edit("security.yaml", "mode: STRICT", "mode: PERMISSIVE")?;
            mesh.edit("security.yaml", "  - from:", "  - {}\n  - from:")?;
        }
        Step::Denied => mesh.edit("security.yaml", "  - from:", "  - {}\n  - from:")?,
        Step::Ejection => {
            mesh.edit(
                "routing.yaml",
                "consecutive5xxErrors: 5",
                "consecutive5xxErrors: 0",
            )?;
        }
        Step::Retry => mesh.edit("routing.yaml", "  - route:", "  - retries: {}\n    route:")?,
        Step::Foreign
        | Step::Rollout
        | Step::Reload
        | Step::Overflow
        | Step::Rotation
        | Step::ControlPlane
        | Step::Restart => return Ok(()),
    }
    sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// Checks the program behind each process, by `/proc/PID/exe`.
fn programs(mesh: &Mesh) -> Result<String> {
    let programs = mesh.programs()?;
    let is = |name: &str| {
        programs
            .iter()
            .filter(|(.., path)| path.file_name().is_some_and(|f| f == name))
            .count()
    };
    let (planes, proxies, apps) = (is("leno"), is("leno-proxy"), is("shop"));
    ensure!(
        (planes, proxies, apps) == (1, 6, 5),
        "by /proc/PID/exe there are {planes} leno, {proxies} leno-proxy and {apps} shop"
    );
    let pids: Vec<String> = programs.iter().map(|(_, pid, _)| pid.to_string()).collect();
    Ok(format!(
        "1 leno, 6 leno-proxy, 5 shop apps, by /proc/PID/exe of {}",
        pids.join(" ")
    ))
}

/// Number of requests that each version of user-service saw since `from`.
fn versions(requests: &[Value], from: usize) -> (usize, usize) {
    let saw = |version: &str| {
        requests[from..]
            .iter()
            .filter(|r| r["version"] == version)
            .count()
    };
    (saw("v1"), saw("v2"))
}

async fn orders(mesh: &Mesh, count: usize, agent: &str) -> Result<()> {
    for i in 0..count {
        let path = format!("/orders/{i}");
        let answer = http::send(mesh.order_app, "GET", "order-service", &path, agent).await?;
        ensure!(
            answer.status == 200,
            "order {i}: {} {}",
            answer.status,
            answer.body
        );
    }
    Ok(())
}

/// Requests so far, by version. The logs of several files are concatenated, so callers subtract counts instead of
/// slicing.
fn counts(mesh: &Mesh) -> Result<(usize, usize)> {
    Ok(versions(&mesh.user_requests()?, 0))
}

async fn split(mesh: &Mesh) -> Result<String> {
    let before = counts(mesh)?;
    orders(mesh, 400, "curl").await?;
    let others = counts(mesh)?;
    let (v1, v2) = (others.0 - before.0, others.1 - before.1);
    ensure!(v1 + v2 == 400, "the apps saw {} of 400 requests", v1 + v2);
    // 400 requests at one in ten: five standard deviations are 30.
    ensure!(
        (10..=70).contains(&v2),
        "v2 saw {v2} of 400 requests; one in ten was meant"
    );
    orders(mesh, 50, PHONE).await?;
    let mobile = counts(mesh)?;
    let phones = (mobile.0 - others.0, mobile.1 - others.1);
    ensure!(phones == (0, 50), "of 50 phones {} got v1", phones.0);
    Ok(format!(
        "90/10: of 400 requests v1 saw {v1} and v2 {v2}; of 50 phones v2 saw all, by the apps' own logs"
    ))
}

async fn mtls(mesh: &Mesh) -> Result<String> {
    let before = mesh.wire.len();
    orders(mesh, 40, "curl").await?;
    let passed = mesh.wire.len() - before;
    ensure!(passed > 0, "nothing passed the relay");
    let requests = mesh.user_requests()?;
    let (by, uri) = (
        "By=spiffe://cluster.local/ns/default/sa/user-service;",
        ";URI=spiffe://cluster.local/ns/default/sa/order-service",
    );
    for request in &requests {
        let seen = request["x-forwarded-client-cert"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            seen.contains(by) && seen.ends_with(uri),
            "an app saw {seen:?}"
        );
    }
    ensure!(
        !mesh.wire.contains(MARKER),
        "{MARKER} passed between the sidecars in the clear"
    );
    let seen = requests
        .last()
        .map(|r| r["x-forwarded-client-cert"].to_string());
    Ok(format!(
        "the app saw {}\n{passed} bytes passed the relay between two sidecars; {MARKER}, which every answer holds, is not among them",
        seen.unwrap_or_default()
    ))
}

async fn plaintext(mesh: &Mesh) -> Result<String> {
    let before = mesh.user_requests()?.len();
    let address: SocketAddr = "127.0.1.4:3001".parse()?;
    let answer = http::get(address, "user-service", "/users/1").await;
    let after = mesh.user_requests()?.len();
    ensure!(after == before, "a plaintext request reached the app");
    match answer {
        Ok(answer) => anyhow::bail!("plaintext was answered with {}", answer.status),
        Err(error) => Ok(format!(
            "GET http://{address}/users/1 without TLS: {error}; the app saw nothing"
        )),
    }
}

async fn foreigner(mesh: &Mesh, broken: bool) -> Result<String> {
    let before = mesh.user_requests()?.len();
    let stolen = mesh.directory.join("state");
    let visit = foreign::visit("127.0.1.4:3001".parse()?, broken.then_some(&*stolen)).await?;
    let refusal = visit.refusal.context("a foreigner was let in")?;
    ensure!(
        mesh.user_requests()?.len() == before,
        "a foreigner's request reached the app"
    );
    Ok(format!(
        "a self-made certificate that claims to be order-service: {refusal}\nthe server proved to be {}",
        visit.identity
    ))
}

async fn denied(mesh: &Mesh) -> Result<String> {
    let before = mesh.user_requests()?.len();
    let web = http::get(WEB_OUTBOUND.parse()?, "user-service", "/users/1").await?;
    ensure!(web.status == 403, "web was answered with {}", web.status);
    let order: SocketAddr = ORDER_OUTBOUND.parse()?;
    let post = http::send(order, "POST", "user-service", "/users/1", "demo").await?;
    let path = http::get(order, "user-service", "/users/../admin").await?;
    ensure!(
        (post.status, path.status) == (403, 403),
        "{} and {}",
        post.status,
        path.status
    );
    ensure!(
        mesh.user_requests()?.len() == before,
        "a refused request reached the app"
    );
    let why = |answer: &http::Answer| answer.header("proxy-status").unwrap_or_default().to_owned();
    ensure!(
        why(&web).contains("policy[user-service-authz]"),
        "{}",
        why(&web)
    );
    Ok(format!(
        "web, GET /users/1: 403\n  {}\norder-service, POST /users/1: 403\n  {}\norder-service, GET /users/../admin: 403\nthe apps saw none of them",
        why(&web),
        why(&post)
    ))
}

/// Sends `count` requests to user-service through order-service's sidecar; returns the number of 5xx responses.
async fn users(count: usize) -> Result<usize> {
    let mut failed = 0;
    for _ in 0..count {
        let answer = http::get(ORDER_OUTBOUND.parse()?, "user-service", "/users/1").await?;
        failed += usize::from(answer.status >= 500);
    }
    Ok(failed)
}

async fn ejection(mesh: &Mesh) -> Result<String> {
    const BAD: &str = "127.0.1.2";
    let seen = || Ok::<_, anyhow::Error>(mesh.requests_of(BAD)?.len());
    mesh.edit("routing.yaml", "interval: 30s", "interval: 1s")?;
    mesh.edit(
        "routing.yaml",
        "baseEjectionTime: 30s",
        "baseEjectionTime: 4s",
    )?;
    sleep(Duration::from_secs(1)).await;
    mesh.afflict(BAD, "broken", true)?;
    let began = Clock::now();
    let mut failed = 0;
    while failed < 5 && began.elapsed() < Duration::from_secs(10) {
        failed += users(10).await?;
    }
    let (before, ejected) = (seen()?, Clock::now());
    let more = users(60).await?;
    ensure!(
        (failed, more, seen()?) == (5, 0, before),
        "{failed} requests failed, and {more} of 60 after that; the broken app saw {} of those",
        seen()? - before
    );
    mesh.afflict(BAD, "broken", false)?;
    while seen()? < before + 5 {
        ensure!(
            users(10).await? == 0,
            "a request failed after the app was healed"
        );
        ensure!(
            ejected.elapsed() < Duration::from_secs(15),
            "the healed app is not taken back"
        );
    }
    Ok(format!(
        "one of three v1 instances answered 500: 5 requests failed, then it saw none of 60; healed, it was taken back {:.1} s later",
        ejected.elapsed().as_secs_f32()
    ))
}

async fn retry(mesh: &mut Mesh) -> Result<String> {
    const GONE: &str = "127.0.1.3";
    let again = |all: &[Value]| {
        all.iter()
            .filter(|r| r["x-envoy-attempt-count"] == "2")
            .count()
    };
    mesh.kill_sidecar(GONE).await?;
    let before = again(&mesh.user_requests()?);
    let failed = users(60).await?;
    let saved = again(&mesh.user_requests()?) - before;
    ensure!(failed == 0, "{failed} of 60 requests failed");
    ensure!(saved > 0, "no request was tried twice");
    mesh.restart_sidecar(GONE)?;
    mesh.ready().await?;
    Ok(format!(
        "a v1 sidecar killed: of 60 requests {saved} met it and were answered by another at the second try, by the apps' own logs; 0 failed"
    ))
}

/// Sends a request to user-service; returns the response and its duration.
async fn timed() -> Result<(http::Answer, Duration)> {
    let began = Clock::now();
    let answer = http::get(ORDER_OUTBOUND.parse()?, "user-service", "/users/1").await?;
    Ok((answer, began.elapsed()))
}

async fn overflow(mesh: &Mesh, broken: bool) -> Result<String> {
    let connections = if broken {
        "maxConnections: 99"
    } else {
        "maxConnections: 1"
    };
    mesh.edit("routing.yaml", "maxConnections: 100", connections)?;
    mesh.edit(
        "routing.yaml",
        "http1MaxPendingRequests: 50",
        "http1MaxPendingRequests: 1",
    )?;
    sleep(Duration::from_secs(1)).await;
    // All traffic goes to v2 since the reload.
    mesh.afflict("127.0.1.4", "slow", true)?;
    let before = mesh.user_requests()?.len();
    let asked: Vec<_> = (0..5).map(|_| tokio::spawn(timed())).collect();
    let (mut served, mut refused, mut why) = (0, Vec::new(), String::new());
    for request in asked {
        let (answer, took) = request.await??;
        if answer.header("x-envoy-overloaded") == Some("true") {
            refused.push(took);
            answer
                .header("proxy-status")
                .unwrap_or_default()
                .clone_into(&mut why);
        } else {
            served += usize::from(answer.status == 200);
        }
    }
    mesh.afflict("127.0.1.4", "slow", false)?;
    let seen = mesh.user_requests()?.len() - before;
    let slowest = refused.iter().max().copied().unwrap_or_default();
    ensure!(
        (served, refused.len(), seen) == (2, 3, 2),
        "of 5 requests {served} were served and {} refused; the app saw {seen}",
        refused.len()
    );
    ensure!(
        slowest < Duration::from_millis(100),
        "refused after {slowest:?}"
    );
    mesh.edit("routing.yaml", "maxConnections: 1", "maxConnections: 100")?;
    mesh.edit(
        "routing.yaml",
        "http1MaxPendingRequests: 1",
        "http1MaxPendingRequests: 50",
    )?;
    sleep(Duration::from_secs(1)).await;
    Ok(format!(
        "one request may be under way, one may wait: of 5 the app saw 2, and 3 were told within {} ms\n  {why}",
        slowest.as_millis()
    ))
}

async fn rollout(mesh: &mut Mesh, broken: bool) -> Result<String> {
    const V1: [&str; 3] = ["127.0.1.1", "127.0.1.2", "127.0.1.3"];
    let before = mesh.user_requests()?.len();
    let load = Load::start(mesh.order_app);
    sleep(Duration::from_secs(1)).await;
    let mut slowest = Duration::ZERO;
    for ip in V1 {
        let began = Clock::now();
        let signal = if broken { "KILL" } else { "TERM" };
        let status = mesh.signal_sidecar(ip, signal).await?;
        ensure!(status.success(), "the sidecar at {ip} ended with {status}");
        slowest = slowest.max(began.elapsed());
        mesh.restart_sidecar(ip)?;
        mesh.ready().await?;
        let (seen, began) = (mesh.requests_of(ip)?.len(), Clock::now());
        while mesh.requests_of(ip)?.len() == seen {
            let waited = began.elapsed();
            ensure!(
                waited < Duration::from_secs(5),
                "{ip} serves nothing after its return"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }
    let (sent, failed) = load.stop().await?;
    let seen = mesh.user_requests()?.len() - before;
    ensure!(failed == 0, "{failed} of {sent} requests failed");
    ensure!(
        seen == sent,
        "{sent} requests were sent, the apps saw {seen}"
    );
    Ok(format!(
        "3 v1 sidecars, one after the other: SIGTERM, ended in order after {} ms at most, started again\n  {sent} requests under way, 0 failed; the apps saw each of them once",
        slowest.as_millis()
    ))
}

async fn reload(mesh: &Mesh, broken: bool) -> Result<String> {
    let load = Load::start(mesh.order_app);
    sleep(Duration::from_secs(1)).await;
    if !broken {
        mesh.edit("routing.yaml", "weight: 90", "weight: 0")?;
    }
    let edited = Clock::now();
    // v2 alone serves once v1's count stands still while v2's grows.
    let took = loop {
        let before = counts(mesh)?;
        sleep(Duration::from_millis(400)).await;
        let after = counts(mesh)?;
        if after.0 == before.0 && after.1 > before.1 + 10 {
            break edited.elapsed().saturating_sub(Duration::from_millis(400));
        }
        if edited.elapsed() > Duration::from_secs(8) {
            load.stop().await?;
            anyhow::bail!("traffic did not follow the YAML within 8 s");
        }
    };
    let (sent, failed) = load.stop().await?;
    ensure!(failed == 0, "{failed} of {sent} requests failed");
    Ok(format!(
        "routing.yaml edited to 0/100: v1 saw no request {} ms later at most; {sent} requests under way, 0 failed",
        took.as_millis()
    ))
}

async fn rotation(mesh: &Mesh, broken: bool) -> Result<String> {
    let load = Load::start(mesh.order_app);
    let address = "127.0.1.4:3001".parse()?;
    let first = foreign::visit(address, None).await?.serial;
    let began = Clock::now();
    let limit = Duration::from_secs(if broken { 0 } else { 14 });
    let mut seen = first.clone();
    while seen == first && began.elapsed() < limit {
        sleep(Duration::from_millis(250)).await;
        seen = foreign::visit(address, None).await?.serial;
    }
    let (sent, failed) = load.stop().await?;
    ensure!(seen != first, "the same certificate after {limit:?}");
    ensure!(failed == 0, "{failed} of {sent} requests failed");
    let short = |serial: &str| serial.chars().take(11).collect::<String>();
    Ok(format!(
        "user-service's serial number went from {}… to {}… after {:.1} s; {sent} requests under way, 0 failed",
        short(&first),
        short(&seen),
        began.elapsed().as_secs_f32()
    ))
}

async fn control_plane(mesh: &mut Mesh, broken: bool) -> Result<String> {
    let load = Load::start(mesh.order_app);
    mesh.kill_control_plane().await?;
    if broken {
        for sidecar in &mut mesh.sidecars {
            sidecar.child.kill().await?;
        }
    }
    sleep(Duration::from_secs(3)).await;
    let (sent, failed) = load.stop().await?;
    ensure!(failed == 0, "{failed} of {sent} requests failed");
    mesh.start_control_plane().await?;
    orders(mesh, 10, "curl").await?;
    Ok(format!(
        "killed for 3 s: {sent} requests, 0 failed; it is back"
    ))
}

async fn restart(mesh: &mut Mesh, broken: bool) -> Result<String> {
    // All traffic goes to v2 since the reload.
    const SIDECARS: [&str; 2] = ["127.0.1.4", "127.0.2.1"];
    mesh.kill_control_plane().await?;
    mesh.hide_state(true)?;
    for ip in SIDECARS {
        mesh.kill_sidecar(ip).await?;
        if broken {
            std::fs::remove_dir_all(mesh.state_dir(ip))?;
        }
    }
    let before = mesh.requests_of(SIDECARS[0])?.len();
    for ip in SIDECARS {
        mesh.restart_sidecar(ip)?;
    }
    let began = Clock::now();
    while orders(mesh, 1, "curl").await.is_err() {
        ensure!(
            began.elapsed() < Duration::from_secs(5),
            "no request was served within 5 s"
        );
        sleep(Duration::from_millis(20)).await;
    }
    let took = began.elapsed();
    let seen = mesh.requests_of(SIDECARS[0])?;
    let last = seen.last().filter(|_| seen.len() > before);
    let cert = last.context("the app saw no request")?["x-forwarded-client-cert"].to_string();
    ensure!(cert.contains("sa/order-service"), "no mutual TLS: {cert}");
    mesh.hide_state(false)?;
    mesh.start_control_plane().await?;
    Ok(format!(
        "control plane dead, its directory gone, both sidecars killed: mutual TLS again {} ms after their start",
        took.as_millis()
    ))
}
