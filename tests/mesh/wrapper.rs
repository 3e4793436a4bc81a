//! `leno-proxy run -- APP`: a job, and a service that is ended by a signal.

use std::process::Stdio;

use leno_tests::client::get;
use leno_tests::fresh_ip;
use leno_tests::mesh::{Mesh, mtls, service};
use leno_tests::process::wrapped;
use leno_tests::upstream::Upstream;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Prints `HTTP_PROXY` and its argument, and exits with 7 after a line of input.
const JOB: &str = r#"echo "$HTTP_PROXY $1"; read word; exit 7"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_the_mesh_and_its_exit_code_is_the_wrappers() {
    let (ip, app) = (fresh_ip(), Upstream::named("hello").await);
    let mesh = Mesh::start(&(service("users", &[(ip, "v1")]) + &mtls("STRICT"))).await;
    let _callee = mesh.workload("users", ip, app.address).await;
    let mut command = wrapped(&mesh, "job", &["sh", "-c", JOB, "sh", "--flag"]).await;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let said = BufReader::new(child.stdout.take().expect("a pipe"))
        .lines()
        .next_line()
        .await;
    let said = said.expect("a line").expect("a line");
    let sidecar = said
        .strip_prefix("http://")
        .and_then(|said| said.strip_suffix(" --flag"));
    // The sidecar is ready by then.
    let sidecar = sidecar.and_then(|at| at.parse().ok()).expect("an address");
    let answer = get(sidecar, "users", "/").await;
    assert_eq!(answer.text(), "hello");
    let seen = app.requests();
    let proof = seen[0].header("x-forwarded-client-cert");
    assert!(proof.unwrap_or_default().ends_with("sa/job"), "{proof:?}");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"end\n")
        .await
        .expect("written");
    assert_eq!(child.wait().await.expect("it ends").code(), Some(7));
}

/// Prints `runs`, and on SIGTERM `told`; exits with 3.
const SERVICE: &str = r#"trap "echo told; exit 3" TERM; echo runs; while :; do sleep 0.1; done"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_app_and_the_end_is_its_own() {
    let mesh = Mesh::start(&mtls("STRICT")).await;
    let mut command = wrapped(&mesh, "service", &["sh", "-c", SERVICE]).await;
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    assert_eq!(
        said.next_line().await.expect("a line").as_deref(),
        Some("runs")
    );
    let pid = child.id().expect("it runs").to_string();
    let kill = tokio::process::Command::new("sh")
        .args(["-c", &format!("kill -TERM {pid}")])
        .status();
    assert!(kill.await.expect("sh").success());
    assert_eq!(child.wait().await.expect("it ends").code(), Some(3));
    assert_eq!(
        said.next_line().await.expect("a line").as_deref(),
        Some("told")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_can_not_be_started_says_why() {
    let mesh = Mesh::start(&mtls("STRICT")).await;
    let mut command = wrapped(&mesh, "service", &["/no/such/program"]).await;
    let done = command
        .stderr(Stdio::piped())
        .output()
        .await
        .expect("it ends");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        !done.status.success() && said.contains("/no/such/program can't be started"),
        "{said}"
    );
}
