//! Tests under load, apart from the tests of behaviour: those that measure run one after the other.
#![allow(clippy::too_many_lines)]

mod demo;
mod events;
mod traffic;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use leno_tests::client::{Client, get};
use leno_tests::fresh_ip;
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use tokio::sync::RwLock;
use tokio::time::{Instant, interval};

/// Held for writing by what measures, and so has the machine for itself; what only must not be disturbed by that holds it for
/// reading.
static LOAD: RwLock<()> = RwLock::const_new(());

fn all_to(subset: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: users}}\nspec:\n  hosts: [users]\n  http:\n  - route: [{{destination: {{host: users, subset: {subset}}}}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: users}}\nspec: {{host: users, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n"
    )
}

/// Two versions of `users`, with certificates of the lifetime `ttl`.
async fn two_versions(ttl: &str) -> (Mesh, Vec<Proxy>, [Upstream; 2]) {
    let ips: [Ipv4Addr; 2] = [fresh_ip(), fresh_ip()];
    let yaml = service("users", &[(ips[0], "v1"), (ips[1], "v2")]) + &mtls("STRICT");
    let mesh = Mesh::start(&yaml).await;
    mesh.write("routing.yaml", &all_to("v1"));
    mesh.wait_routed().await;
    let apps = [Upstream::named("v1").await, Upstream::named("v2").await];
    let mut callees = Vec::new();
    for (ip, app) in ips.into_iter().zip(&apps) {
        let flags = format!(
            "--inbound {ip}:{PORT}={} --certificate-ttl {ttl}",
            app.address
        );
        callees.push(mesh.proxy("users", &flags).await);
    }
    (mesh, callees, apps)
}

/// Counts of the clients' requests.
#[derive(Debug, Default)]
struct Tally {
    sent: AtomicUsize,
    failed: AtomicUsize,
}

/// Sends one request of the load, with an id of its own; three in ten are POSTs.
async fn one(
    client: &mut Option<Client>,
    address: SocketAddr,
    number: usize,
) -> Result<(), String> {
    if client.is_none() {
        *client = Some(Client::connect(address).await);
    }
    let connection = client.as_mut().expect("set");
    let request = match number % 10 {
        0..3 => format!(
            "POST /users HTTP/1.1\r\nHost: users\r\nX-Id: {number}\r\nContent-Length: 5\r\n\r\nhello"
        ),
        _ => format!("GET /users/{number} HTTP/1.1\r\nHost: users\r\nX-Id: {number}\r\n\r\n"),
    };
    connection.send(request).await;
    let failed = match connection.response().await {
        None => Some("the connection ended".to_owned()),
        Some(response) if response.status >= 500 => {
            Some(format!("{} {}", response.status, response.proxy_status()))
        }
        Some(_) => None,
    };
    match failed {
        None => Ok(()),
        Some(words) => {
            *client = None;
            Err(words)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_comes_twice_while_everything_changes() {
    const CLIENTS: usize = 8;
    // Longer in a soak.
    let seconds = std::env::var("LENO_SECONDS");
    let seconds: u64 = seconds.map_or(60, |seconds| seconds.parse().expect("a number"));
    let _alone = LOAD.write().await;
    // 13 s of life: about six renewals in a minute.
    let (mut mesh, callees, apps) = two_versions("13s").await;
    let caller = mesh.proxy("web", "--certificate-ttl 13s").await;
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    let before: usize = apps.iter().map(|app| app.requests().len()).sum();
    let (tally, ends) = (
        Arc::new(Tally::default()),
        Instant::now() + Duration::from_secs(seconds),
    );
    let mut clients = Vec::new();
    for index in 0..CLIENTS {
        let (tally, address) = (Arc::clone(&tally), caller.outbound);
        clients.push(tokio::spawn(async move {
            // 200 requests a second from all of them.
            let mut tick = interval(Duration::from_millis(5 * CLIENTS as u64));
            let (mut client, mut number) = (None, index);
            while Instant::now() < ends {
                tick.tick().await;
                if let Err(words) = one(&mut client, address, number).await {
                    println!("failed: {words}");
                    tally.failed.fetch_add(1, Ordering::Relaxed);
                }
                tally.sent.fetch_add(1, Ordering::Relaxed);
                number += CLIENTS;
            }
        }));
    }
    let mut reloads = 0;
    let mut tick = interval(Duration::from_millis(2500));
    // The last change has time to be served.
    while Instant::now() + Duration::from_secs(10) < ends {
        tick.tick().await;
        mesh.write(
            "routing.yaml",
            &all_to(if reloads % 2 == 0 { "v2" } else { "v1" }),
        );
        reloads += 1;
        match reloads % 20 {
            8 => mesh.stop_control_plane().await,
            10 => mesh.start_control_plane().await,
            _ => {}
        }
    }
    if (8..10).contains(&(reloads % 20)) {
        mesh.start_control_plane().await;
    }
    for client in clients {
        client.await.expect("no panic");
    }
    let rotations = callees[0].metric("leno_certificates_total", &[]).await;
    let mut ids = Vec::new();
    for app in &apps {
        ids.extend(
            app.requests()
                .iter()
                .filter_map(|seen| seen.header("x-id").map(str::to_owned)),
        );
    }
    let distinct: HashSet<&String> = ids.iter().collect();
    let (sent, failed) = (
        tally.sent.load(Ordering::Relaxed),
        tally.failed.load(Ordering::Relaxed),
    );
    println!(
        "{sent} requests in {seconds} s, {reloads} reloads, {rotations} certificates a proxy, control plane away for 5 s of each 50: {failed} failed, {} duplicates",
        ids.len() - distinct.len()
    );
    assert!(rotations >= 4.0, "{rotations} certificates");
    assert!(
        sent as u64 > 180 * seconds,
        "{sent} requests: the load was not there"
    );
    assert_eq!(failed, 0);
    assert_eq!(ids.len(), distinct.len(), "an id came twice");
    let after: usize = apps.iter().map(|app| app.requests().len()).sum();
    assert_eq!(after - before, sent, "each request reached an app once");
    assert!(
        apps.iter().all(|app| !app.requests().is_empty()),
        "the reloads moved traffic"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn from_rename_to_new_behaviour_takes_less_than_a_second_in_99_of_100() {
    let _alone = LOAD.write().await;
    let (mesh, _callees, _) = two_versions("24h").await;
    let mut callers = Vec::new();
    for _ in 0..5 {
        callers.push(mesh.proxy("web", "").await);
    }
    let mut clients = Vec::new();
    for caller in &callers {
        clients.push(Client::connect(caller.outbound).await);
    }
    let mut took = Vec::new();
    for round in 0..50 {
        let version = if round % 2 == 0 { "v2" } else { "v1" };
        mesh.write("routing.yaml", &all_to(version));
        let edited = Instant::now();
        for client in &mut clients {
            loop {
                let response = client
                    .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
                    .await;
                assert_eq!(response.status, 200, "{}", response.proxy_status());
                if response.text() == version {
                    break;
                }
                assert!(edited.elapsed() < Duration::from_secs(10), "round {round}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            took.push(edited.elapsed());
        }
    }
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    println!(
        "50 edits, 5 proxies: p50 {:?}, p99 {p99:?}",
        took[took.len() / 2]
    );
    assert!(p99 <= Duration::from_secs(1), "{p99:?}");
}
