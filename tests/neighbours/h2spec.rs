//! h2spec, an independent suite of RFC 9113 and RFC 7541, against the inbound and the outbound port, in plaintext.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use leno_tests::client::get;
use leno_tests::mesh::{mtls, pair};
use leno_tests::until;
use leno_tests::upstream::Upstream;

/// The cases that fail, by section and text: the port takes HTTP/1 as well, and answers a broken preface in it.
const FAILING: [&str; 1] = ["http2/3.5 Sends invalid connection preface"];

/// The cases of h2spec.
const CASES: usize = 145;

/// The program, built once and kept by `tests/neighbours/build`.
fn program() -> String {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("neighbours/build");
    let built = Command::new(build).arg("h2spec").output().expect("bash");
    let log = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "h2spec can't be built: {log}");
    String::from_utf8_lossy(&built.stdout).trim().to_owned()
}

/// The attribute `name` of an XML element.
fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    let value = element.split(&format!(" {name}=\"")).nth(1);
    value
        .and_then(|value| value.split('"').next())
        .unwrap_or("")
}

/// The YAML that has the host `localhost` lead to the app: h2spec names a port by the address at which it finds it.
fn registered(port: u16, app: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: localhost}}\nspec:\n  hosts: [localhost]\n  \
         ports: [{{number: {port}, name: http, protocol: HTTP, targetPort: {}}}]\n  resolution: STATIC\n  location: MESH_EXTERNAL\n  \
         endpoints: [{{address: {}}}]\n",
        app.port(),
        app.ip()
    )
}

/// Runs all cases against `port`; returns their number, and those that failed.
fn run(program: &str, host: &str, port: SocketAddr) -> (usize, Vec<String>) {
    let report = std::env::temp_dir().join(format!("leno-h2spec-{port}.xml"));
    let number = port.port().to_string();
    let output = Command::new(program)
        .args(["-h", host, "-p", &number, "-P", "/", "-o", "2", "-j"])
        .arg(&report)
        .output()
        .expect("h2spec runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let xml = std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let _ = std::fs::remove_file(&report);
    let cases: Vec<&str> = xml.split("<testcase ").skip(1).collect();
    let failed = cases
        .iter()
        .filter(|case| case.contains("<failure>") || case.contains("<error>"));
    let name = |case: &&&str| {
        let case = format!(" {case}");
        format!(
            "{} {}",
            attribute(&case, "package"),
            attribute(&case, "classname")
        )
    };
    println!("{text}");
    (cases.len(), failed.map(|case| name(&case)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_as_h2spec_has_it_at_both_ports() {
    let program = program();
    let app =
        Upstream::start(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec()).await;
    let (mesh, caller, callee, _) = pair(app.address, &mtls("DISABLE"), "").await;
    let (inbound, outbound) = (callee.inbound[0], caller.outbound);
    mesh.write("localhost.yaml", &registered(outbound.port(), app.address));
    let authority = format!("localhost:{}", outbound.port());
    until("localhost leads to the app", || async {
        let answer = get(outbound, &authority, "/").await;
        (answer.status == 200).then_some(())
    })
    .await;
    for (name, host, port) in [
        ("inbound", inbound.ip().to_string(), inbound),
        ("outbound", "localhost".to_owned(), outbound),
    ] {
        let program = program.clone();
        let (cases, failed) = tokio::task::spawn_blocking(move || run(&program, &host, port))
            .await
            .expect("no panic");
        println!("{name}: {} of {cases} pass", cases - failed.len());
        assert_eq!(cases, CASES, "{name}");
        assert_eq!(failed, FAILING, "{name}");
    }
}
