//! Planned events fail no request; faults fail as few as they must, with a reason and for a short time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leno_tests::client::{Client, get};
use leno_tests::mesh::{Mesh, PORT, mtls, service};
use leno_tests::process::Sidecar;
use leno_tests::{fresh_ip, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use crate::LOAD;
use crate::traffic::{
    Apps, Outcome, Traffic, assert_fault_bounds, check_delivery, failures, hold_memory,
};

/// The port of the instances that carries gRPC.
const CALLS: u16 = PORT + 1;

/// Three instances of `users`, which also serve `calls` over gRPC, and a caller.
struct Shop {
    mesh: Mesh,
    apps: Vec<Apps>,
    instances: Vec<Sidecar>,
    caller: Sidecar,
    idle: usize,
}

impl Shop {
    /// Starts the shop; with `detour`, callers reach the first instance by that address.
    async fn open(detour: Option<Ipv4Addr>) -> Shop {
        let ips = [fresh_ip(), fresh_ip(), fresh_ip()];
        let listed = [detour.unwrap_or(ips[0]), ips[1], ips[2]].map(|ip| (ip, "v1"));
        let calls = service("calls", &listed)
            .replace("name: http, protocol: HTTP", "name: grpc, protocol: GRPC")
            .replace(&PORT.to_string(), &CALLS.to_string())
            .replace("serviceAccount: calls", "serviceAccount: users");
        // Repeatable requests are retried elsewhere when an instance hangs.
        let retries = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: users}\nspec:\n  hosts: [users]\n  http:\n  \
             - match: [{method: {exact: GET}}]\n    retries: {attempts: 3, perTryTimeout: 1s, retryOn: \"gateway-error,connect-failure,reset\"}\n    route: [{destination: {host: users}}]\n  \
             - route: [{destination: {host: users}}]\n";
        let yaml = format!(
            "{}{calls}{retries}{}",
            service("users", &listed),
            mtls("STRICT")
        );
        let mesh = Mesh::start(&yaml).await;
        mesh.wait_routed().await;
        let (mut apps, mut instances) = (Vec::new(), Vec::new());
        for ip in ips {
            let own = Apps::start().await;
            let [h1, h2] = own.addresses();
            let flags = format!(
                "--inbound {ip}:{PORT}={h1} --inbound {ip}:{CALLS}={h2} --certificate-ttl 13s"
            );
            let listed = if ip == ips[0] { listed[0].0 } else { ip };
            instances.push(Sidecar::start(&mesh, "users", listed, &flags).await);
            apps.push(own);
        }
        let caller = Sidecar::start(&mesh, "web", fresh_ip(), "--certificate-ttl 13s").await;
        let idle = caller.memory();
        Shop {
            mesh,
            apps,
            instances,
            caller,
            idle,
        }
    }

    /// Waits until an instance serves again, 5 s after `healed` at most.
    async fn serves_again(&self, instance: usize, healed: Instant) {
        let before = self.apps[instance].count();
        while self.apps[instance].count() == before {
            assert!(
                healed.elapsed() < Duration::from_secs(5),
                "instance {instance} serves nothing"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the traffic, and checks its outcomes against the requests that arrived.
    async fn close(self, traffic: Traffic) -> Vec<Outcome> {
        let outcomes = traffic.end().await;
        let outcomes = check_delivery(outcomes, &self.apps);
        let sidecars = self.instances.iter().chain([&self.caller]);
        hold_memory(sidecars.map(Sidecar::memory), self.idle);
        outcomes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_events_fail_nothing_whatever_is_spoken() {
    let _shared = LOAD.read().await;
    // More in the long forms.
    let runs = std::env::var("LENO_RUNS");
    let runs: u32 = runs.map_or(1, |runs| runs.parse().expect("a number"));
    for run in 1..=runs {
        let mut shop = Shop::open(None).await;
        let traffic = Traffic::start(shop.caller.outbound);
        let begun = Instant::now();
        sleep(Duration::from_secs(2)).await;
        for instance in &mut shop.instances {
            instance.signal("TERM").await;
            assert!(instance.wait().await, "it ends in order");
            instance.restart().await;
            sleep(Duration::from_secs(1)).await;
        }
        shop.mesh.stop_control_plane().await;
        sleep(Duration::from_secs(4)).await;
        shop.mesh.start_control_plane().await;
        // Half of a certificate's lifetime has passed on every connection by then.
        sleep(Duration::from_secs(10).saturating_sub(begun.elapsed() / 4)).await;
        let rotations = get(shop.caller.admin, "admin", "/metrics").await.text();
        let rotations = rotations
            .lines()
            .find_map(|line| line.strip_prefix("leno_certificates_total "));
        let rotations: f64 = rotations.and_then(|n| n.parse().ok()).expect("a number");
        let outcomes = shop.close(traffic).await;
        let failed = failures(&outcomes);
        println!(
            "run {run}: {} requests in {:?}, three instances replaced, control plane away, {rotations} certificates: {} failed",
            outcomes.len(),
            begun.elapsed(),
            failed.len()
        );
        assert!(failed.is_empty(), "{failed:#?}");
        assert!(rotations >= 2.0, "{rotations}");
        assert!(
            outcomes.len() > 2000,
            "{}: the load was not there",
            outcomes.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_costs_little() {
    let _shared = LOAD.read().await;
    let mut shop = Shop::open(None).await;
    let traffic = Traffic::start(shop.caller.outbound);
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    for instance in &mut shop.instances[..2] {
        instance.signal("KILL").await;
        assert!(!instance.wait().await);
        sleep(Duration::from_millis(1500)).await;
        instance.restart().await;
    }
    let healed = Instant::now();
    shop.serves_again(0, healed).await;
    shop.serves_again(1, healed).await;
    sleep(Duration::from_secs(11)).await;
    let outcomes = shop.close(traffic).await;
    assert_fault_bounds("kill -9", &outcomes, began, healed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_stops_costs_little() {
    let _shared = LOAD.read().await;
    let shop = Shop::open(None).await;
    let traffic = Traffic::start(shop.caller.outbound);
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    shop.instances[0].signal("STOP").await;
    sleep(Duration::from_secs(4)).await;
    shop.instances[0].signal("CONT").await;
    let healed = Instant::now();
    shop.serves_again(0, healed).await;
    sleep(Duration::from_secs(11)).await;
    let outcomes = shop.close(traffic).await;
    assert_fault_bounds("a peer that stops reading", &outcomes, began, healed);
}

/// Relays connections from `from` to `to`, and resets each after a moment while `storm` is set.
async fn relay_with_resets(from: SocketAddr, to: SocketAddr, storm: Arc<AtomicBool>) {
    let listener = TcpListener::bind(from).await.expect("listen");
    tokio::spawn(async move {
        while let Ok((mut down, _)) = listener.accept().await {
            let storm = Arc::clone(&storm);
            tokio::spawn(async move {
                let Ok(mut up) = TcpStream::connect(to).await else {
                    return;
                };
                let reset = async {
                    loop {
                        sleep(Duration::from_millis(fastrand::u64(5..80))).await;
                        if storm.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                };
                let is_reset = tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut down, &mut up) => false,
                    () = reset => true,
                };
                if is_reset {
                    // An abortive close: RST both ways.
                    let _ = down.set_zero_linger();
                    let _ = up.set_zero_linger();
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_resets_costs_little() {
    let _shared = LOAD.read().await;
    let detour = fresh_ip();
    let shop = Shop::open(Some(detour)).await;
    let storm = Arc::new(AtomicBool::new(false));
    for (port, inbound) in [PORT, CALLS].into_iter().zip(shop.instances[0].inbound()) {
        relay_with_resets(
            SocketAddr::from((detour, port)),
            inbound,
            Arc::clone(&storm),
        )
        .await;
    }
    let traffic = Traffic::start(shop.caller.outbound);
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    storm.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(5)).await;
    storm.store(false, Ordering::Relaxed);
    let healed = Instant::now();
    shop.serves_again(0, healed).await;
    sleep(Duration::from_secs(11)).await;
    let outcomes = shop.close(traffic).await;
    assert_fault_bounds("a storm of resets", &outcomes, began, healed);
}

/// An app that answers each connection's first request after `after`.
async fn slow_app(after: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _ = tcp.read(&mut head).await;
                sleep(after).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow";
                let _ = tcp.write_all(answer).await;
            });
        }
    });
    address
}

/// A sidecar in front of a slow app, and a client with a request under way.
async fn slow(after: Duration) -> (Mesh, Sidecar, Client) {
    let ip = fresh_ip();
    let mesh = Mesh::start(&service("users", &[(ip, "v1")])).await;
    let flags = format!("--inbound {ip}:{PORT}={}", slow_app(after).await);
    let sidecar = Sidecar::start(&mesh, "users", ip, &flags).await;
    let mut client = Client::connect(sidecar.inbound()[0]).await;
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n").await;
    until("it is under way", || async {
        let config = get(sidecar.admin, "admin", "/config").await;
        let config: serde_json::Value = serde_json::from_slice(&config.body).ok()?;
        let clusters = config["clusters"].as_array()?;
        let mut requests = clusters.iter().map(|c| c["under_way"]["requests"].as_u64());
        requests.any(|count| count == Some(1)).then_some(())
    })
    .await;
    (mesh, sidecar, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_four_seconds_outlives_the_signal() {
    let _shared = LOAD.read().await;
    let (_mesh, mut sidecar, mut client) = slow(Duration::from_secs(4)).await;
    sidecar.signal("TERM").await;
    let response = client.response().await.expect("an answer");
    assert_eq!(response.text(), "slow");
    assert_eq!(response.header("connection"), Some("close"));
    assert!(sidecar.wait().await, "it ends in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let _shared = LOAD.read().await;
    let (_mesh, mut sidecar, mut client) = slow(Duration::from_secs(600)).await;
    sidecar.signal("TERM").await;
    let inbound = sidecar.inbound()[0];
    until("the listener is closed", || async {
        TcpStream::connect(inbound).await.is_err().then_some(())
    })
    .await;
    let again = Instant::now();
    sidecar.signal("TERM").await;
    sidecar.wait().await;
    assert!(
        again.elapsed() < Duration::from_secs(2),
        "{:?}",
        again.elapsed()
    );
    assert!(client.response().await.is_none());
}
