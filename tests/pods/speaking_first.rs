//! Server-first protocols: the greeting comes at once, on declared ports and others.

use std::net::SocketAddr;
use std::time::Duration;

use leno_tests::mesh::mtls;
use leno_tests::pods::{Pod, Pods};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::interception::service;

const GREETING: &[u8] = b"5.7.0-greeting";

/// Starts a server that greets each connection and then echoes.
async fn greeter(pod: &Pod, port: u16) {
    let listening = async move {
        let listener = TcpListener::bind(("::", port)).await.expect("an address");
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = tcp.write_all(GREETING).await;
                    let (mut read, mut write) = tcp.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    };
    pod.run(listening).await;
}

/// Time until the greeting; bytes sent afterwards are echoed.
async fn greeted(pod: &Pod, address: SocketAddr) -> Duration {
    pod.run(async move {
        let begun = Instant::now();
        let mut tcp = TcpStream::connect(address).await.expect("connected");
        let mut greeting = [0; GREETING.len()];
        tcp.read_exact(&mut greeting).await.expect("a greeting");
        let took = begun.elapsed();
        assert_eq!(greeting, GREETING);
        tcp.write_all(b"hello").await.expect("written");
        // Half closed: the answer still arrives.
        tcp.shutdown().await.expect("shut down");
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.expect("an answer");
        assert_eq!(answer, b"hello");
        took
    })
    .await
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_comes_at_once_on_any_port() {
    let pods = Pods::new(3);
    let [caller, callee, outside] = &pods.pods[..] else {
        panic!("three pods");
    };
    for port in [3306, 3307] {
        greeter(callee, port).await;
        greeter(outside, port).await;
    }
    let yaml = [
        service("database", "tcp-mysql", 3306, 3306, &[callee.ip.into()]),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: unnamed}\nspec:\n  selector: {app: database}\n  ports: [{port: 3307}]\n".to_owned(),
        mtls("STRICT"),
    ];
    let mesh = pods.mesh(&yaml.concat()).await;
    let _callee = callee.inject(&mesh, "database", "").await;
    let _caller = caller.inject(&mesh, "order-service", "").await;
    for (what, address) in [
        ("declared as TCP", SocketAddr::from((callee.ip, 3306))),
        ("declared as nothing", (callee.ip, 3307).into()),
        ("outside of the mesh", (outside.ip, 3307).into()),
    ] {
        let mut all = Vec::new();
        for _ in 0..11 {
            all.push(greeted(caller, address).await);
        }
        let (first, usual) = (all[0], median(all));
        println!("{what}: first {first:?}, median {usual:?}");
        // The timeout of protocol detection is 5 s.
        assert!(first < Duration::from_secs(2), "{what}: {first:?}");
    }
}
