//! Snapshots, build by build, on a paused clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use leno_rules::config::cluster::{Balance, CircuitBreakers, Connections, Discovery};
use leno_rules::config::endpoints::{Endpoint, Workload};
use leno_rules::config::listener::{Chain, Direction, Filter};
use tokio::time::{Instant, advance};

use super::*;
use crate::balance;
use crate::observe::metrics::Metrics;
use crate::tls::Credentials;

/// Longest time that a plan waits for the resources that it names.
const WARMING: Duration = Duration::from_secs(5);
/// Workload port of the app.
const PORT: u16 = 8080;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn builder() -> Builder {
    Builder::new(
        Credentials::new("cluster.local"),
        Metrics::new(1000).expect("metrics"),
        Party::default(),
        HashMap::from([(PORT, address(9000))]),
    )
}

fn listener(name: &str, filter: Filter) -> Listener {
    Listener {
        name: name.to_owned(),
        direction: match name == INBOUND {
            true => Direction::Inbound,
            false => Direction::Outbound,
        },
        chains: vec![Chain {
            matches: ChainMatch::default(),
            tls: false,
            rule: "r".to_owned(),
            is_undeclared: false,
            workload: Workload::default(),
            service: "s".to_owned(),
            filter,
            policies: Vec::new(),
        }],
        default_chain: None,
    }
}

fn cluster(name: &str, discovery: Discovery) -> cluster::Cluster {
    cluster::Cluster {
        name: name.to_owned(),
        rule: "r".to_owned(),
        discovery,
        balance: Balance::LeastRequest,
        connect_timeout: Duration::from_secs(1),
        tls: None,
        limits: CircuitBreakers::default(),
        outlier: None,
        connections: Connections::default(),
    }
}

fn assignment(name: &str, endpoints: &[(u16, u32)]) -> Assignment {
    let endpoint = |&(port, weight): &(u16, u32)| Endpoint {
        address: address(port),
        weight,
        tls: false,
        identities: Vec::new(),
        workload: Workload::default(),
    };
    Assignment {
        name: name.to_owned(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn tcp(cluster: &str) -> Filter {
    Filter::Tcp(cluster.to_owned())
}

fn eds(name: &str) -> cluster::Cluster {
    cluster(name, Discovery::Eds(name.to_owned()))
}

/// The resources of one proxy, and the snapshots built of them.
struct World {
    resources: Resources,
    builder: Builder,
    snapshot: Snapshot,
}

impl World {
    /// Authority `a:80` by cluster `c`, with endpoints at these ports of these weights.
    fn of(endpoints: &[(u16, u32)]) -> World {
        let mut world = World {
            resources: Resources::default(),
            builder: builder(),
            snapshot: Snapshot::default(),
        };
        world.listener(listener("a:80", tcp("c")));
        world.cluster(eds("c"));
        world.endpoints(assignment("c", endpoints));
        world.build();
        world
    }

    fn listener(&mut self, listener: Listener) {
        let name = listener.name.clone();
        let state = ResourceState::Present(Arc::new(listener));
        self.resources.listeners.insert(name, state);
    }

    fn cluster(&mut self, cluster: cluster::Cluster) {
        let name = cluster.name.clone();
        let state = ResourceState::Present(Arc::new(cluster));
        self.resources.clusters.insert(name, state);
    }

    fn endpoints(&mut self, assignment: Assignment) {
        let name = assignment.name.clone();
        let state = ResourceState::Present(Arc::new(assignment));
        self.resources.endpoints.insert(name, state);
    }

    /// Builds and publishes; returns the time until the next build is due.
    fn build(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let (snapshot, due) = self.builder.build(&self.resources, &self.snapshot, now);
        self.snapshot = snapshot;
        due.map(|due| due - now)
    }

    /// The target of an authority's connections.
    fn target(&self, authority: &str) -> Option<Target> {
        let entry = self.snapshot.outbound.get(authority)?;
        match &entry.answer.as_ref().expect("a plan").kind {
            OutboundKind::Tcp(target) => Some(target.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn running(&self, authority: &str) -> Arc<Cluster> {
        let target = self.target(authority).expect("published");
        target.cluster.expect("a cluster")
    }
}

/// The endpoints of a cluster, by port.
fn endpoints(cluster: &Cluster) -> HashMap<u16, Arc<balance::Endpoint>> {
    let set = cluster.endpoints();
    let endpoints = set.endpoints().iter();
    endpoints
        .map(|endpoint| (endpoint.address.port(), Arc::clone(endpoint)))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_plan_waits_for_all_that_it_names_but_not_for_ever() {
    let mut world = World {
        resources: Resources::default(),
        builder: builder(),
        snapshot: Snapshot::default(),
    };
    world.listener(listener("a:80", tcp("c")));
    assert_eq!(world.build(), Some(WARMING));
    assert!(!world.snapshot.knows("a:80"));
    advance(Duration::from_secs(2)).await;
    world.cluster(eds("c"));
    // The wait began with the Listener, and nothing prolongs it.
    assert_eq!(world.build(), Some(WARMING - Duration::from_secs(2)));
    assert!(!world.snapshot.knows("a:80"));
    advance(Duration::from_secs(3)).await;
    assert_eq!(world.build(), None);
    assert!(endpoints(&world.running("a:80")).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_an_answer_is_an_explained_error() {
    let mut world = World::of(&[(1, 1)]);
    world.listener(listener("b:80", tcp("d")));
    world.build();
    advance(WARMING).await;
    world.build();
    let reason = world.target("b:80").expect("published").cluster;
    let reason = reason.expect_err("no cluster");
    assert!(reason.contains("did not answer for cluster d"), "{reason}");
    let missing = ResourceState::Missing("no service d".into());
    world.resources.clusters.insert("d".to_owned(), missing);
    world.build();
    let reason = world.target("b:80").expect("published").cluster;
    assert_eq!(&*reason.expect_err("no cluster"), "no service d");
}

#[tokio::test(start_paused = true)]
async fn the_old_plan_serves_while_the_new_one_warms() {
    let mut world = World::of(&[(1, 1)]);
    world.listener(listener("a:80", tcp("d")));
    assert_eq!(world.build(), Some(WARMING));
    assert_eq!(&*world.target("a:80").expect("published").name, "c");
    world.cluster(eds("d"));
    world.endpoints(assignment("d", &[(2, 1)]));
    assert_eq!(world.build(), None);
    assert_eq!(&*world.target("a:80").expect("published").name, "d");
}

#[tokio::test(start_paused = true)]
async fn what_did_not_change_runs_on() {
    let mut world = World::of(&[(1, 1), (2, 1), (3, 1)]);
    let before = world.running("a:80");
    let old = endpoints(&before);

    // Another authority changes nothing of this one.
    world.listener(listener("b:80", tcp("c")));
    world.build();
    assert!(Arc::ptr_eq(&before, &world.running("a:80")));

    // Of new endpoints, those that are the same stay the same; the others end.
    world.endpoints(assignment("c", &[(1, 1), (2, 5), (4, 1)]));
    world.builder.refresh(&world.resources);
    assert!(Arc::ptr_eq(&before, &world.running("a:80")));
    let new = endpoints(&world.running("a:80"));
    assert!(Arc::ptr_eq(&old[&1], &new[&1]));
    assert!(!Arc::ptr_eq(&old[&2], &new[&2]));
    let retired = [1, 2, 3].map(|port| old[&port].is_retired());
    assert_eq!(retired, [false, true, true]);
    assert!(new.values().all(|endpoint| !endpoint.is_retired()));

    // Another policy is another cluster, with the same endpoints.
    world.cluster(cluster::Cluster {
        balance: Balance::RoundRobin,
        ..eds("c")
    });
    world.build();
    let after = world.running("a:80");
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&new[&1], &endpoints(&after)[&1]));
}

#[tokio::test(start_paused = true)]
async fn what_no_resource_names_any_more_ends() {
    let mut world = World::of(&[(1, 1)]);
    let old = endpoints(&world.running("a:80"));
    world.resources.listeners.remove("a:80");
    let missing = ResourceState::Missing("gone".into());
    world.resources.clusters.insert("c".to_owned(), missing);
    world.build();
    assert!(!world.snapshot.knows("a:80"));
    assert!(old[&1].is_retired());
    assert!(
        world
            .builder
            .clusters()
            .all(|(config, _)| config.name != "c")
    );
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_is_missing_says_why() {
    let mut world = World::of(&[(1, 1)]);
    let missing = ResourceState::Missing("no service a".into());
    world.resources.listeners.insert("a:80".to_owned(), missing);
    assert_eq!(world.build(), None);
    let entry = world.snapshot.find("a:80", 0).expect("answered");
    assert_eq!(
        &**entry.answer.as_ref().expect_err("missing"),
        "no service a"
    );
}

#[tokio::test(start_paused = true)]
async fn a_removed_inbound_listener_leaves_the_plan_with_its_policies() {
    let mut world = World::of(&[(1, 1)]);
    assert!(world.snapshot.inbound.is_none());
    world.listener(listener(INBOUND, tcp("inbound|8080||")));
    // The control plane need not name the app's cluster.
    advance(WARMING).await;
    world.build();
    advance(WARMING).await;
    world.build();
    let plan = world.snapshot.inbound.clone().expect("a plan");
    let missing = ResourceState::Missing("removed".into());
    world
        .resources
        .listeners
        .insert(INBOUND.to_owned(), missing);
    world.build();
    let after = world.snapshot.inbound.clone().expect("a plan");
    assert!(Arc::ptr_eq(&plan, &after));
}

#[tokio::test(start_paused = true)]
async fn the_app_is_reached_before_the_control_plane_names_it() {
    let mut world = World::of(&[(1, 1)]);
    world.listener(listener(INBOUND, tcp("c")));
    world.build();
    let plan = world.snapshot.inbound.clone().expect("a plan");
    let chain = plan.find(PORT, false, &[]).expect("a chain");
    let app = chain.app(PORT).expect("an app").cluster.clone();
    let app = app.expect("a cluster");
    assert_eq!(endpoints(&app).into_keys().collect::<Vec<_>>(), [9000]);
    assert!(chain.app(1).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_dialled_is_its_clusters_one_endpoint() {
    let mut world = World::of(&[(1, 1)]);
    world.cluster(cluster("passthrough", Discovery::OriginalDst));
    for authority in ["127.0.0.1:11", "127.0.0.1:12"] {
        world.listener(listener(authority, tcp("passthrough")));
    }
    assert_eq!(world.build(), None);
    for (authority, port) in [("127.0.0.1:11", 11), ("127.0.0.1:12", 12)] {
        let running = world.running(authority);
        assert_eq!(endpoints(&running).into_keys().collect::<Vec<_>>(), [port]);
    }
    let first = endpoints(&world.running("127.0.0.1:11"));
    world.resources.listeners.remove("127.0.0.1:11");
    world.build();
    assert!(first[&11].is_retired());
    assert!(!endpoints(&world.running("127.0.0.1:12"))[&12].is_retired());
}

#[tokio::test(start_paused = true)]
async fn time_of_use_and_detection_pass_on_to_the_next_plan() {
    let mut world = World::of(&[(1, 1)]);
    world.listener(listener(INBOUND, tcp("c")));
    world.build();
    let entry = world.snapshot.find("a:80", 17).expect("known");
    let plan = Arc::clone(entry.answer.as_ref().expect("a plan"));
    plan.is_server_first.store(true, Ordering::Relaxed);
    let inbound = world.snapshot.inbound.clone().expect("a plan");
    let chain = inbound.find(PORT, false, &[]).expect("a chain");
    chain.is_server_first.store(true, Ordering::Relaxed);

    world.listener(listener("a:80", tcp("c")));
    world.listener(listener(INBOUND, tcp("c")));
    world.build();
    assert_eq!(world.snapshot.uses().collect::<Vec<_>>(), [("a:80", 17)]);
    let entry = &world.snapshot.outbound["a:80"];
    let next = entry.answer.as_ref().expect("a plan");
    assert!(!Arc::ptr_eq(&plan, next) && next.is_server_first.load(Ordering::Relaxed));
    let next = world.snapshot.inbound.clone().expect("a plan");
    let chain = next.find(PORT, false, &[]).expect("a chain");
    assert!(!Arc::ptr_eq(&inbound, &next) && chain.is_server_first.load(Ordering::Relaxed));
}
