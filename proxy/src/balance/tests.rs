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
        limits: config::cluster::CircuitBreakers::default(),
        outlier: None,
        connections: Connections::default(),
    }
}

/// Pick for a request that was never sent.
fn first() -> PickContext<'static> {
    PickContext {
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
fn next(cluster: &Cluster, context: PickContext<'_>, status: u16) -> Result<u16, Error> {
    let mut lease = cluster.pick(context, || 0)?;
    cluster.report(&mut lease, EndpointResult::Status(status), context.now);
    Ok(lease.endpoint().address.port())
}

/// Fails requests to `port` until it takes none any more.
fn eject(cluster: &Cluster, port: u16) {
    let set = cluster.endpoints();
    let mut lease = Lease::new(&set.endpoints()[usize::from(port) - 1]);
    while !lease.endpoint().health.is_ejected() {
        cluster.report(&mut lease, EndpointResult::Status(500), Instant::now());
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
    let careful = PickContext {
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
    let careful = PickContext {
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
    assert!(cluster.next_probe(Instant::now()).is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut lease = cluster.next_probe(Instant::now()).expect("due");
    assert!(
        cluster.next_probe(Instant::now()).is_none(),
        "one is enough"
    );
    cluster.report(&mut lease, EndpointResult::Status(200), Instant::now());
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
        let context = PickContext { tried, ..first() };
        let lease = cluster.pick(context, || 7).expect("one");
        assert!(expected.is_none_or(|id| lease.endpoint().id == id));
    }
}

/// Shares of `picks` among the endpoints that weren't tried, with those of `out` ejected.
fn shares(balance: Balance, weights: &[u32], out: &[u16], tried: &[u16]) -> Vec<usize> {
    let config = config::cluster::Cluster {
        balance,
        ..watched(100)
    };
    let cluster = of(&config, weights);
    out.iter().for_each(|port| eject(&cluster, *port));
    let set = cluster.endpoints();
    let id = |port: &u16| set.endpoints()[usize::from(*port) - 1].id;
    let tried: Vec<u64> = tried.iter().map(id).collect();
    let mut rng = fastrand::Rng::with_seed(9);
    let mut counts = vec![0; weights.len()];
    for _ in 0..8000 {
        let context = PickContext {
            tried: &tried,
            ..first()
        };
        let lease = cluster.pick(context, || rng.u32(..)).expect("one is left");
        counts[usize::from(lease.endpoint().address.port()) - 1] += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn the_rest_share_by_weight_what_is_passed_over() {
    for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
        for (weights, out, tried, expected) in [
            (&[1, 2, 5][..], &[3][..], &[][..], &[2667, 5333, 0][..]),
            (&[1, 2, 5], &[], &[3], &[2667, 5333, 0]),
            (&[1, 2, 5], &[1], &[3], &[0, 8000, 0]),
            (&[1, 1, 1, 1], &[1], &[2], &[0, 0, 4000, 4000]),
            // One that was tried is taken again where the others are ejected.
            (&[1, 1, 1], &[1, 2], &[3], &[0, 0, 8000]),
        ] {
            let counts = shares(balance, weights, out, tried);
            let near = |(count, share): (&usize, &usize)| count.abs_diff(*share) < 200;
            let is_fair = counts.iter().zip(expected).all(near);
            assert!(
                is_fair,
                "{balance:?} {weights:?} {out:?} {tried:?}: {counts:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pick_allocates_nothing_whatever_it_passes_over() {
    for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
        for weights in [&[1; 20][..], &[1, 2, 3, 4, 5, 6, 7]] {
            let config = config::cluster::Cluster {
                balance,
                ..watched(100)
            };
            let cluster = of(&config, weights);
            eject(&cluster, 2);
            eject(&cluster, 4);
            let set = cluster.endpoints();
            assert_eq!(set.ejected().len(), 2, "{balance:?}");
            let tried = [set.endpoints()[0].id, set.endpoints()[2].id];
            let mut rng = fastrand::Rng::with_seed(5);
            for tried in [&tried[..0], &tried[..1], &tried[..]] {
                let context = PickContext { tried, ..first() };
                // The first load of a swap in a thread allocates its own slot.
                drop(cluster.pick(context, || rng.u32(..)));
                let allocated = allocation_counter::measure(|| {
                    for _ in 0..100 {
                        drop(cluster.pick(context, || rng.u32(..)).expect("one is left"));
                    }
                });
                assert_eq!(allocated.count_total, 0, "{balance:?}, {tried:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_ejection_that_another_cluster_ended_is_over_here_too() {
    let config = watched(50);
    let cluster = of(&config, &[1, 1, 1]);
    eject(&cluster, 2);
    let replaced = Cluster::new(&config, Some(&cluster));
    replaced.set_endpoints(cluster.endpoints().endpoints().to_vec());
    tokio::time::advance(Duration::from_secs(10)).await;
    // A request of the replaced cluster probes the endpoint, which does well.
    assert_eq!(next(&cluster, first(), 200).expect("the probe"), 2);
    let ports: Vec<_> = (0..3)
        .map(|_| next(&replaced, first(), 200).expect("one"))
        .collect();
    assert!(ports.contains(&2), "{ports:?}");
}
