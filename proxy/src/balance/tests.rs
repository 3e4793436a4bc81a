//! Picking, ejecting, returning.

use super::*;
fn config(balance: Balance) -> config::cluster::Cluster {
    config::cluster::Cluster {
        name: "c".to_owned(),
        rule: "o".to_owned(),
        discovery: config::cluster::Discovery::OriginalDst,
        balance,
        connect_timeout: Duration::from_secs(1),
        tls: None,
        limits: config::cluster::Limits::default(),
        outlier: None,
        connections: Connections::default(),
    }
}

/// Pick for a request that was never sent.
fn first() -> Ask<'static> {
    Ask {
        tried: &[],
        is_replayable: true,
        now: Instant::now(),
    }
}

fn cluster(balance: Balance, weights: &[u32]) -> Cluster {
    of(&config(balance), weights)
}

fn of(config: &config::cluster::Cluster, weights: &[u32]) -> Cluster {
    let cluster = Cluster::new(config, None);
    let endpoint = |(i, &weight): (usize, &u32)| {
        let port = u16::try_from(i + 1).expect("few");
        Arc::new(Endpoint::plain(([127, 0, 0, 1], port).into(), weight))
    };
    cluster.set_endpoints(weights.iter().enumerate().map(endpoint).collect());
    cluster
}

/// Number of picks of each endpoint in `rounds`, when each request is over before the next.
fn counts(cluster: &Cluster, rounds: usize) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = vec![0; cluster.endpoints().endpoints().len()];
    for _ in 0..rounds {
        let lease = cluster
            .pick(first(), || rng.u32(..))
            .expect("there are endpoints");
        counts[usize::from(lease.endpoint().address.port()) - 1] += 1;
    }
    counts
}

#[test]
fn an_empty_cluster_is_an_explained_error() {
    let error = cluster(Balance::Random, &[])
        .pick(first(), || 0)
        .expect_err("empty");
    assert_eq!(error.kind, Kind::NoEndpoint);
    assert_eq!(error.object.as_deref(), Some("o"));
}

#[test]
fn requests_in_flight_send_the_next_one_elsewhere() {
    let cluster = cluster(Balance::LeastRequest, &[1, 1, 1]);
    let mut rng = fastrand::Rng::with_seed(1);
    let leases: Vec<_> = (0..9)
        .map(|_| cluster.pick(first(), || rng.u32(..)).expect("one"))
        .collect();
    for endpoint in cluster.endpoints().endpoints() {
        assert_eq!(endpoint.in_flight(), 3);
    }
    drop(leases);
    for endpoint in cluster.endpoints().endpoints() {
        assert_eq!(endpoint.in_flight(), 0);
    }
}

#[test]
fn weights_are_respected_by_every_policy() {
    for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
        let counts = counts(&cluster(balance, &[1, 2, 5]), 8000);
        for (count, share) in counts.iter().zip([1000, 2000, 5000]) {
            assert!(count.abs_diff(share) < 200, "{balance:?}: {counts:?}");
        }
    }
}

#[test]
fn round_robin_takes_turns() {
    assert_eq!(
        counts(&cluster(Balance::RoundRobin, &[1, 1, 1]), 9),
        [3, 3, 3]
    );
}

#[test]
fn equals_share_equally() {
    for balance in [Balance::Random, Balance::LeastRequest] {
        for count in counts(&cluster(balance, &[1; 40]), 40_000) {
            assert!(count.abs_diff(1000) < 200, "{balance:?}: {count}");
        }
    }
}

/// A cluster that ejects after two 5xx in a row.
fn watched(max_percent: u32) -> config::cluster::Cluster {
    config::cluster::Cluster {
        outlier: Some(Outlier {
            consecutive_5xx: 2,
            consecutive_gateway: 0,
            consecutive_local: 5,
            split: false,
            interval: Duration::from_secs(1),
            base_time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            max_percent,
        }),
        ..config(Balance::RoundRobin)
    }
}

/// The port of the endpoint that takes the next request, which answers with `status`.
fn next(cluster: &Cluster, ask: Ask<'_>, status: u16) -> Result<u16, Error> {
    let mut lease = cluster.pick(ask, || 0)?;
    cluster.report(&mut lease, Verdict::Status(status), ask.now);
    Ok(lease.endpoint().address.port())
}

/// Fails every request to `port` until it takes none any more.
fn eject(cluster: &Cluster, port: u16) {
    for _ in 0..20 {
        let mut lease = cluster.pick(first(), || 0).expect("one is left");
        let status = if lease.endpoint().address.port() == port {
            500
        } else {
            200
        };
        cluster.report(&mut lease, Verdict::Status(status), Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn who_fails_is_left_out_and_one_request_tries_it_again() {
    let cluster = of(&watched(50), &[1, 1, 1]);
    eject(&cluster, 2);
    let set = cluster.endpoints();
    let why = set.endpoints()[1].health.ejection().expect("ejected");
    assert_eq!(why.reason, "2 5xx responses in a row");
    for _ in 0..12 {
        assert_ne!(next(&cluster, first(), 200).expect("others"), 2);
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    // A request that can't be sent again doesn't probe it, and one probe at a time is enough.
    let careful = Ask {
        is_replayable: false,
        ..first()
    };
    assert_ne!(next(&cluster, careful, 200).expect("others"), 2);
    let probe = cluster.pick(first(), || 0).expect("a probe");
    assert!(probe.is_probe() && probe.endpoint().address.port() == 2);
    assert_ne!(next(&cluster, first(), 200).expect("others"), 2);
    drop(probe);
    // It fails: out for twice as long. It succeeds: back.
    assert_eq!(next(&cluster, first(), 500).expect("the probe"), 2);
    tokio::time::advance(Duration::from_secs(19)).await;
    assert_ne!(next(&cluster, first(), 200).expect("others"), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(next(&cluster, first(), 200).expect("the probe"), 2);
    let ports = (0..3).map(|_| next(&cluster, first(), 200).expect("one"));
    assert!(ports.collect::<Vec<_>>().contains(&2));
}

#[tokio::test(start_paused = true)]
async fn when_all_are_ejected_nobody_is_asked_until_the_time_is_up() {
    let cluster = of(&watched(100), &[1, 1]);
    for _ in 0..4 {
        next(&cluster, first(), 503).expect("not yet");
    }
    let error = next(&cluster, first(), 200).expect_err("all are out");
    assert_eq!(error.kind, Kind::NoEndpoint);
    assert!(error.detail.contains("ejected, after 2 5xx"), "{error}");
    tokio::time::advance(Duration::from_secs(10)).await;
    // Nothing else is left: even a request that can't be sent again may probe.
    let careful = Ask {
        is_replayable: false,
        ..first()
    };
    next(&cluster, careful, 200).expect("a probe");
    next(&cluster, careful, 200).expect("it is back");
}

#[tokio::test(start_paused = true)]
async fn an_ejection_survives_a_push() {
    let config = watched(50);
    let cluster = of(&config, &[1, 1, 1]);
    eject(&cluster, 2);
    let same = cluster.endpoints().endpoints().to_vec();
    let next_config = config::cluster::Cluster {
        connect_timeout: Duration::from_secs(9),
        ..config
    };
    let replaced = Cluster::new(&next_config, Some(&cluster));
    replaced.set_endpoints(same);
    for _ in 0..12 {
        assert_ne!(next(&replaced, first(), 200).expect("others"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_tried_by_any_request_is_looked_after() {
    let cluster = of(&watched(50), &[1, 1, 1]);
    eject(&cluster, 2);
    tokio::time::advance(Duration::from_secs(19)).await;
    assert!(cluster.due_for_a_look(Instant::now()).is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut lease = cluster.due_for_a_look(Instant::now()).expect("due");
    assert!(
        cluster.due_for_a_look(Instant::now()).is_none(),
        "one is enough"
    );
    cluster.report(&mut lease, Verdict::Status(200), Instant::now());
    assert!(
        cluster.endpoints().endpoints()[1]
            .health
            .ejection()
            .is_none()
    );
}

#[test]
fn another_try_goes_elsewhere_while_there_is_an_elsewhere() {
    let cluster = cluster(Balance::LeastRequest, &[1, 1]);
    let ids: Vec<u64> = cluster
        .endpoints()
        .endpoints()
        .iter()
        .map(|e| e.id)
        .collect();
    for (tried, expected) in [
        (&ids[..1], Some(ids[1])),
        (&ids[1..], Some(ids[0])),
        (&ids[..], None),
    ] {
        let ask = Ask { tried, ..first() };
        let lease = cluster.pick(ask, || 7).expect("one");
        assert!(expected.is_none_or(|id| lease.endpoint().id == id));
    }
}
