//! Pods under load: planned events, and faults of the network between them. Planned events fail no request, and no
//! request arrives twice unless it may be repeated.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use leno_tests::client::Client;
use leno_tests::mesh::{Mesh, mtls};
use leno_tests::pods::{Pod, PodSidecar, Pods};
use leno_tests::upstream::{ReceivedRequest, Upstream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use crate::interception::service;
use crate::traffic::{
    Apps, Outcome, Traffic, arrived, assert_fault_bounds, check_delivery, failures, hold_memory,
};

/// One load at a time: two cores carry it.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Duration of a fault.
const FAULT: Duration = Duration::from_secs(6);

/// A caller's pod and three instances of a service, with their apps, sidecars and control plane.
struct Shop {
    apps: Vec<Apps>,
    caller: PodSidecar,
    callees: Vec<PodSidecar>,
    idle: usize,
    mesh: Mesh,
    pods: Pods,
}

fn registry<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> String {
    let ips: Vec<_> = pods.into_iter().map(|pod| pod.ip.into()).collect();
    let calls = "---\napiVersion: v1\nkind: Service\nmetadata: {name: calls}\nspec:\n  selector: {app: users}\n  \
                 ports: [{port: 80, name: grpc, targetPort: 3002}]\n";
    service("users", "http", 80, 3001, &ips) + calls + &mtls("STRICT")
}

async fn apps(pod: &Pod) -> Apps {
    let at = [3001, 3002].map(|port| SocketAddr::from((pod.ip, port)));
    pod.run(async move { Apps::at(at).await }).await
}

/// The registry without the instance `i`.
fn without(pods: &[Pod], i: usize) -> String {
    let others = pods[1..].iter().enumerate().filter(|(j, _)| *j != i);
    registry(others.map(|(_, pod)| pod))
}

impl Shop {
    async fn open() -> Shop {
        Shop::with("").await
    }

    /// Starts the shop, with more flags for the callees' sidecars.
    async fn with(flags: &str) -> Shop {
        let pods = Pods::new(4);
        let mesh = pods.mesh(&registry(&pods.pods[1..])).await;
        let flags = format!("--certificate-ttl 30s {flags}");
        let (mut all, mut callees) = (Vec::new(), Vec::new());
        for pod in &pods.pods[1..] {
            all.push(apps(pod).await);
            callees.push(pod.inject(&mesh, "users", &flags).await);
        }
        let caller = pods.pods[0].inject(&mesh, "web", "").await;
        Shop {
            apps: all,
            idle: caller.memory(),
            caller,
            callees,
            mesh,
            pods,
        }
    }

    /// About 200 requests a second to an unused address: they are routed by host name.
    async fn traffic(&self) -> Traffic {
        let anywhere = SocketAddr::from(([10, 100, 0, 1], 80));
        self.pods.pods[0]
            .run(async move { Traffic::start(anywhere) })
            .await
    }

    /// Replaces an instance as a rollout does: it leaves the registry 2 s after its end has begun. With `app_first` its
    /// app ends before its sidecar, as in a pod with a native sidecar.
    async fn replace(&mut self, i: usize, app_first: bool) {
        let pod = &self.pods.pods[i + 1];
        let begun = Instant::now();
        if app_first {
            let app = self.apps[i].clone();
            pod.run(async move { app.end().await }).await;
        }
        self.callees[i].terminate().await;
        sleep_until(begun + Duration::from_secs(2)).await;
        self.mesh.write("mesh.yaml", &without(&self.pods.pods, i));
        assert!(self.callees[i].ended().await, "it ends in order");
        if app_first {
            let old = std::mem::replace(&mut self.apps[i], apps(pod).await);
            self.apps.push(old);
        }
        self.callees[i] = pod.sidecar(&self.mesh, "users", "").await;
        self.mesh
            .write("mesh.yaml", &registry(&self.pods.pods[1..]));
        sleep(Duration::from_secs(1)).await;
    }

    /// Connections between the caller's pod and the others that only one end still has, by the caller's end.
    fn half_open(&self) -> Vec<SocketAddr> {
        let [caller, callees @ ..] = &self.pods.pods[..] else {
            return Vec::new();
        };
        let is_ours = |from: &SocketAddr, to: &SocketAddr| {
            from.ip() == caller.ip && callees.iter().any(|pod| to.ip() == pod.ip)
        };
        let calls = caller.connections("established").into_iter();
        let calls = calls.filter_map(|[own, peer]| is_ours(&own, &peer).then_some(own));
        let called = callees
            .iter()
            .flat_map(|pod| pod.connections("established"));
        let called = called.filter_map(|[own, peer]| is_ours(&peer, &own).then_some(peer));
        let (calls, called): (BTreeSet<_>, BTreeSet<_>) = (calls.collect(), called.collect());
        calls.symmetric_difference(&called).copied().collect()
    }

    /// Ends the traffic, and checks its outcomes against the requests that arrived.
    async fn close(self, traffic: Traffic) -> Vec<Outcome> {
        let outcomes = self.pods.pods[0].run(traffic.end()).await;
        self.check_delivery(outcomes)
    }

    /// Checks outcomes against the requests that arrived, and the sidecars' memory against its bound.
    fn check_delivery(&self, outcomes: Vec<(usize, Outcome)>) -> Vec<Outcome> {
        let outcomes = check_delivery(outcomes, &self.apps);
        let sidecars = self.callees.iter().chain([&self.caller]);
        hold_memory(sidecars.map(PodSidecar::memory), self.idle);
        outcomes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_events_in_pods_fail_nothing() {
    let _alone = ALONE.lock().await;
    let mut shop = Shop::open().await;
    let traffic = shop.traffic().await;
    let begun = Instant::now();
    sleep(Duration::from_secs(2)).await;
    for app_first in [false, true] {
        for i in 0..shop.callees.len() {
            shop.replace(i, app_first).await;
        }
    }
    // The control plane is away for a minute.
    let mut mesh = shop.mesh;
    mesh = shop
        .pods
        .world
        .run(async move {
            mesh.stop_control_plane().await;
            mesh
        })
        .await;
    sleep(Duration::from_secs(60)).await;
    mesh = shop
        .pods
        .world
        .run(async move {
            mesh.start_control_plane().await;
            mesh
        })
        .await;
    shop.mesh = mesh;
    sleep(Duration::from_secs(3)).await;
    let outcomes = shop.close(traffic).await;
    let failed = failures(&outcomes);
    println!(
        "4 pods, {} requests in {:?}, each of three instances replaced twice, control plane away for a minute: {} failed",
        outcomes.len(),
        begun.elapsed(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(
        outcomes.len() > 5000,
        "{}: the load was not there",
        outcomes.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_an_app_that_starts_after_its_sidecar() {
    let _alone = ALONE.lock().await;
    let pods = Pods::new(2);
    let mesh = pods.mesh(&registry(&pods.pods[1..])).await;
    let _callee = pods.pods[1].inject(&mesh, "users", "").await;
    let _caller = pods.pods[0].inject(&mesh, "web", "").await;
    let anywhere = SocketAddr::from(([10, 100, 0, 1], 80));
    let traffic = pods.pods[0]
        .run(async move { Traffic::start(anywhere) })
        .await;
    sleep(Duration::from_secs(5)).await;
    let apps = apps(&pods.pods[1]).await;
    sleep(Duration::from_secs(2)).await;
    let outcomes = pods.pods[0].run(traffic.end()).await;
    let arrived = arrived(&[apps]);
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.failed.is_some())
        .collect();
    println!(
        "2 pods, {} requests, the app 5 s late: {} failed",
        outcomes.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    for (id, _) in &outcomes {
        assert_eq!(arrived.get(id), Some(&1), "request {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_as_they_are_used_again_cost_nothing() {
    let _alone = ALONE.lock().await;
    // About the time between two requests on a connection, so that the callees' sidecars close many while the next
    // request is on its way to them.
    let shop = Shop::with("--idle-timeout 20ms").await;
    let traffic = shop.traffic().await;
    let mut ports = BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        let ends = shop.pods.pods[0].connections("established").into_iter();
        ports.extend(ends.filter_map(|[own, peer]| (peer.port() == 3001).then_some(own.port())));
        sleep(Duration::from_millis(100)).await;
    }
    let outcomes = shop.close(traffic).await;
    let failed = failures(&outcomes);
    println!(
        "4 pods, {} requests over more than {} connections that were closed when idle for 20 ms: {} failed",
        outcomes.len(),
        ports.len(),
        failed.len()
    );
    // The first POSTs may meet a close that the caller's sidecar can't foresee yet.
    for outcome in failed {
        assert!(!outcome.is_get && outcome.is_explained, "{outcome:?}");
    }
    assert!(ports.len() > 100, "connections were not closed");
}

/// A fault under traffic: the scripts `begin` and `heal` run in the bridge's namespace.
async fn fault(what: &str, begin: &str, heal: &str) {
    fault_at(|pods| &pods.world, what, begin, heal).await;
}

/// The same, with the scripts in one of the pods.
async fn fault_at(at: impl Fn(&Pods) -> &Pod, what: &str, begin: &str, heal: &str) {
    let _alone = ALONE.lock().await;
    let shop = Shop::open().await;
    let traffic = shop.traffic().await;
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    at(&shop.pods).script(begin);
    sleep(FAULT).await;
    at(&shop.pods).script(heal);
    let healed = Instant::now();
    let before = shop.apps[0].count();
    while shop.apps[0].count() == before {
        assert!(
            healed.elapsed() < Duration::from_secs(5),
            "{what}: nothing arrives 5 s after it"
        );
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_secs(5)).await;
    let outcomes = shop.pods.pods[0].run(traffic.end()).await;
    while let stuck = shop.half_open()
        && !stuck.is_empty()
    {
        assert!(
            healed.elapsed() < Duration::from_secs(60),
            "{what}: half open a minute after it: {stuck:?}"
        );
        sleep(Duration::from_millis(500)).await;
    }
    println!("{what}: nothing half open {:?} after it", healed.elapsed());
    let outcomes = shop.check_delivery(outcomes);
    assert_fault_bounds(&format!("4 pods, {what}"), &outcomes, began, healed);
}

/// A script that drops frames of the first instance's link that match `fit`, in either direction.
fn dropping(fit: &str) -> String {
    let chain = |hook| {
        format!("chain {hook} {{ type filter hook {hook} device \"v2\" priority 0; {fit} drop; }};")
    };
    nft(&format!(
        "table netdev loss {{ {} {} }}",
        chain("ingress"),
        chain("egress")
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_loses_frames_costs_no_get() {
    let begin = dropping("numgen random mod 100 < 5");
    fault(
        "a link that loses 5 %",
        &begin,
        "nft delete table netdev loss",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_costs_no_get() {
    let begin = dropping("");
    fault("a black hole", &begin, "nft delete table netdev loss").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_costs_no_get() {
    let begin = "tc qdisc replace dev v2 root tbf rate 256kbit burst 16k latency 200ms";
    fault("a link of 256 kbit/s", begin, "tc qdisc del dev v2 root").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_vanishes_costs_no_get() {
    fault(
        "an instance cut off",
        "ip link set v2 down",
        "ip link set v2 up",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_costs_no_get() {
    let rules = "table bridge cut { chain forward { type filter hook forward priority 0; \
                 iifname \"v1\" oifname \"v2\" drop; iifname \"v2\" oifname \"v1\" drop; }; }";
    fault("a partition", &nft(rules), "nft delete table bridge cut").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_resets_between_pods_costs_no_get() {
    // One packet in fifty to the first instance's sidecar is answered by a reset.
    let rules = "table inet storm { chain input { type filter hook input priority 0; \
                 tcp dport 15006 numgen random mod 50 < 1 reject with tcp reset; }; }";
    let heal = "nft delete table inet storm";
    fault_at(|pods| &pods.pods[1], "a storm of resets", &nft(rules), heal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_four_seconds_outlives_its_sidecars_signal() {
    let _alone = ALONE.lock().await;
    let pods = Pods::new(2);
    let [caller, callee] = &pods.pods[..] else {
        panic!("two pods");
    };
    let ips = [callee.ip.into()];
    let yaml = service("slow", "http", 80, 3003, &ips) + &mtls("STRICT");
    let mesh = pods.mesh(&yaml).await;
    let at = SocketAddr::from((callee.ip, 3003));
    let answer = |_: &ReceivedRequest| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec();
    let _app = callee
        .run(Upstream::at(at, Duration::from_secs(4), answer))
        .await;
    let mut sidecar = callee.inject(&mesh, "slow", "").await;
    let _caller = caller.inject(&mesh, "web", "").await;
    let asking = async move {
        let mut client = Client::connect(SocketAddr::from(([10, 100, 0, 1], 80))).await;
        client
            .round_trip("POST / HTTP/1.1\r\nhost: slow\r\ncontent-length: 2\r\n\r\nhi")
            .await
    };
    let ending = async {
        sleep(Duration::from_secs(1)).await;
        sidecar.terminate().await;
        sidecar.ended().await
    };
    let (answer, in_order) = tokio::join!(caller.run(asking), ending);
    assert_eq!(
        (answer.status, answer.text()),
        (200, "ok".to_owned()),
        "{}",
        answer.proxy_status()
    );
    assert!(in_order);
}

fn nft(rules: &str) -> String {
    format!("echo \"{}\" | nft -f -", rules.replace('"', "\\\""))
}
