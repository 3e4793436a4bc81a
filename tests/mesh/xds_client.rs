//! The proxy against a scripted control plane: the real one isn't used here.

use std::time::Duration;

use leno_proto::leno::Refused;
use leno_proto::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
};
use leno_proto::pb::envoy::config::core::v3::{
    Address, ConfigSource, SocketAddress, TrafficDirection, address,
    config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
};
use leno_proto::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use leno_proto::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use leno_proto::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
    route_action::ClusterSpecifier, route_match::PathSpecifier, weighted_cluster::ClusterWeight,
};
use leno_proto::pb::envoy::extensions::filters::http::router::v3::Router;
use leno_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
};
use leno_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use leno_proto::pb::envoy::r#type::matcher::v3::RegexMatcher;
use leno_proto::pb::google::protobuf::{BoolValue, Duration as WireDuration, UInt32Value};
use leno_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};
use leno_proto::{Any, pack};
use leno_tests::ads::{Ads, ServerStream};
use leno_tests::client::{Client, get};
use leno_tests::mesh::Proxy;
use leno_tests::until;
use leno_tests::upstream::Upstream;

const LIFE: Duration = Duration::from_secs(600);

fn ads_source() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(Default::default())),
        ..ConfigSource::default()
    })
}

fn listener(name: &str, routes: &str) -> Listener {
    let router = HttpFilter {
        name: "router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(
            &Router::default(),
        ))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads_source(),
            route_config_name: routes.to_owned(),
        })),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    Listener {
        name: name.to_owned(),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "http".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

fn routes(name: &str, cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..RouteMatch::default()
                }),
                action: Some(route::Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads_source(),
            service_name: String::new(),
        }),
        ..Cluster::default()
    }
}

fn endpoints(name: &str, app: &Upstream) -> ClusterLoadAssignment {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: app.address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(app.address.port().into())),
            ..SocketAddress::default()
        })),
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                    address: Some(address),
                    ..Endpoint::default()
                })),
                ..LbEndpoint::default()
            }],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

/// A proxy that has received `a:80` → routes `r` → cluster `c` → `app`.
async fn serving(app: &Upstream) -> (Ads, ServerStream, Proxy) {
    let mut ads = Ads::start(LIFE).await;
    let proxy = ads.proxy("--config-wait 3s");
    let mut stream = ads.stream().await;
    let outbound = proxy.outbound;
    let first = tokio::spawn(async move { get(outbound, "a", "/").await });
    stream
        .request_matching(|r| r.resource_names_subscribe.contains(&"a:80".to_owned()))
        .await;
    accepted(
        stream
            .send(CLUSTER, vec![("c", "1", pack(&cluster("c")))])
            .await,
    );
    accepted(
        stream
            .send(ENDPOINTS, vec![("c", "1", pack(&endpoints("c", app)))])
            .await,
    );
    accepted(
        stream
            .send(LISTENER, vec![("a:80", "1", pack(&listener("a:80", "r")))])
            .await,
    );
    accepted(
        stream
            .send(ROUTE, vec![("r", "1", pack(&routes("r", "c")))])
            .await,
    );
    assert_eq!(
        first.await.expect("no panic").status,
        200,
        "the first request waited"
    );
    (ads, stream, proxy)
}

fn accepted(answer: DeltaDiscoveryRequest) {
    assert!(answer.error_detail.is_none(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kinds_of_bad_resources_are_refused_beside_good_ones_and_change_nothing() {
    let app = Upstream::named("app").await;
    let (_ads, mut stream, proxy) = serving(&app).await;
    let any = |type_url: &str, value: Vec<u8>| Any {
        type_url: type_url.to_owned(),
        value,
    };
    let negative = Cluster {
        connect_timeout: Some(WireDuration {
            seconds: -1,
            nanos: 0,
        }),
        ..cluster("c")
    };
    let mut unknown_field = listener("a:80", "r");
    unknown_field.transparent = Some(BoolValue { value: true });
    let mut no_router = listener("a:80", "r");
    no_router.filter_chains[0].filters[0].config_type = Some(filter::ConfigType::TypedConfig(
        pack(&HttpConnectionManager {
            route_specifier: Some(RouteSpecifier::Rds(Rds {
                config_source: ads_source(),
                route_config_name: "r".to_owned(),
            })),
            ..HttpConnectionManager::default()
        }),
    ));
    let mut regex = routes("r", "c");
    regex.virtual_hosts[0].routes[0].r#match = Some(RouteMatch {
        path_specifier: Some(PathSpecifier::SafeRegex(RegexMatcher {
            regex: "(".to_owned(),
            ..RegexMatcher::default()
        })),
        ..RouteMatch::default()
    });
    let mut weightless = routes("r", "c");
    weightless.virtual_hosts[0].routes[0].action = Some(route::Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: vec![ClusterWeight {
                name: "c".to_owned(),
                weight: Some(UInt32Value { value: 0 }),
                ..ClusterWeight::default()
            }],
            ..WeightedCluster::default()
        })),
        ..RouteAction::default()
    }));
    let mut no_address = endpoints("c", &app);
    no_address.endpoints[0].lb_endpoints[0].host_identifier = None;
    let mut twice = endpoints("c", &app);
    let again = twice.endpoints[0].clone();
    twice.endpoints.push(again);
    let static_type = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        ..cluster("c")
    };
    let bad: Vec<(&str, &str, Any, &str)> = vec![
        (CLUSTER, "c", any(CLUSTER, vec![0xff, 0xff]), ""),
        (CLUSTER, "c", pack(&negative), "connect_timeout"),
        (CLUSTER, "c", pack(&static_type), "type"),
        (CLUSTER, "c", pack(&cluster("other")), "name"),
        (LISTENER, "a:80", pack(&unknown_field), "transparent"),
        (
            LISTENER,
            "a:80",
            pack(&no_router),
            "filter_chains[0].filters[0].typed_config.http_filters",
        ),
        (
            ROUTE,
            "r",
            pack(&regex),
            "virtual_hosts[0].routes[0].match.safe_regex.regex",
        ),
        (
            ROUTE,
            "r",
            pack(&weightless),
            "virtual_hosts[0].routes[0].route.weighted_clusters",
        ),
        (
            ENDPOINTS,
            "c",
            pack(&no_address),
            "endpoints[0].lb_endpoints[0].endpoint",
        ),
        (ENDPOINTS, "c", pack(&twice), "endpoints"),
    ];
    for (i, (type_url, name, resource, field)) in bad.into_iter().enumerate() {
        let neighbour = match type_url {
            CLUSTER => pack(&cluster("good")),
            LISTENER => pack(&listener("good", "r")),
            ROUTE => pack(&routes("good", "c")),
            _ => pack(&endpoints("good", &app)),
        };
        let version = format!("good{i}");
        let resources = vec![
            (name, "bad", resource),
            ("good", version.as_str(), neighbour),
        ];
        let answer = stream.send(type_url, resources).await;
        let status = answer.error_detail.expect("a NACK");
        let details: Vec<Refused> = status
            .details
            .iter()
            .map(|any| leno_proto::unpack(any).expect("ours"))
            .collect();
        assert_eq!(details.len(), 1, "{field}: only the bad one");
        assert_eq!(
            (details[0].name.as_str(), details[0].field.as_str()),
            (name, field)
        );
        assert_eq!(
            get(proxy.outbound, "a", "/").await.text(),
            "app",
            "{field}: the last serves"
        );
        let config = proxy.config().await;
        let refused = config["refused"].as_array().expect("a list");
        assert!(
            refused
                .iter()
                .any(|r| r["name"] == name && r["field"] == field),
            "{config:#}"
        );
        let good = config["resources"].as_array().expect("a list").iter();
        assert!(
            { good }.any(|r| r["name"] == "good" && r["version"] == version),
            "the good lives"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_comes_late_fails_no_request() {
    let (old, new) = (Upstream::named("old").await, Upstream::named("new").await);
    let (_ads, mut stream, proxy) = serving(&old).await;
    accepted(
        stream
            .send(ROUTE, vec![("r", "2", pack(&routes("r", "late")))])
            .await,
    );
    let outbound = proxy.outbound;
    let load = tokio::spawn(async move {
        let mut client = Client::connect(outbound).await;
        let mut texts = Vec::new();
        while texts.last().is_none_or(|text| text != "new") {
            let response = client.round_trip("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(response.status, 200, "{}", response.proxy_status());
            texts.push(response.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        texts.len()
    });
    stream
        .request_matching(|r| r.resource_names_subscribe.contains(&"late".to_owned()))
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    accepted(
        stream
            .send(CLUSTER, vec![("late", "1", pack(&cluster("late")))])
            .await,
    );
    accepted(
        stream
            .send(
                ENDPOINTS,
                vec![("late", "1", pack(&endpoints("late", &new)))],
            )
            .await,
    );
    assert!(load.await.expect("none failed") > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_negative_answer_is_given_at_once_with_its_reason_and_may_change() {
    let app = Upstream::named("app").await;
    let (_ads, mut stream, proxy) = serving(&app).await;
    let outbound = proxy.outbound;
    let asked = tokio::spawn(async move { get(outbound, "b", "/").await });
    stream
        .request_matching(|r| r.resource_names_subscribe.contains(&"b:80".to_owned()))
        .await;
    stream
        .send_missing(LISTENER, "b:80", "no service b; did you mean a?")
        .await;
    let response = asked.await.expect("no panic");
    assert_eq!(response.status, 404);
    assert!(
        response
            .proxy_status()
            .contains("no service b; did you mean a?"),
        "{}",
        response.proxy_status()
    );
    accepted(
        stream
            .send(LISTENER, vec![("b:80", "1", pack(&listener("b:80", "r")))])
            .await,
    );
    until("it is served", || async {
        (get(proxy.outbound, "b", "/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_and_repetition_are_survived() {
    let app = Upstream::named("app").await;
    let (_ads, mut stream, proxy) = serving(&app).await;
    let twice = vec![
        ("c", "2", pack(&cluster("c"))),
        ("c", "3", pack(&cluster("c"))),
    ];
    let answer = stream.send(CLUSTER, twice).await;
    assert!(
        answer
            .error_detail
            .is_some_and(|status| status.message.contains("twice"))
    );
    for _ in 0..3 {
        accepted(
            stream
                .send(CLUSTER, vec![("c", "2", pack(&cluster("c")))])
                .await,
        );
    }
    let answer = stream
        .send("type.googleapis.com/no.such.Type", vec![])
        .await;
    assert!(answer.error_detail.is_some());
    let empty = DeltaDiscoveryResponse {
        type_url: CLUSTER.to_owned(),
        resources: vec![Resource {
            name: "c".to_owned(),
            ..Resource::default()
        }],
        removed_resources: vec!["never-heard-of".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    assert!(stream.send_raw(empty).await.error_detail.is_some());
    assert_eq!(get(proxy.outbound, "a", "/").await.text(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_begins_with_what_is_held() {
    let app = Upstream::named("app").await;
    let (mut ads, stream, proxy) = serving(&app).await;
    drop(stream);
    let mut stream = ads.stream().await;
    let mut held = std::collections::HashMap::new();
    let mut nodes = 0;
    for _ in 0..5 {
        let request = stream.request().await;
        nodes += usize::from(request.node.is_some());
        held.extend(request.initial_resource_versions);
    }
    assert_eq!(nodes, 1);
    for name in ["a:80", "r", "c"] {
        assert_eq!(
            held.get(name).map(String::as_str),
            Some("1"),
            "{name}: {held:?}"
        );
    }
    assert_eq!(get(proxy.outbound, "a", "/").await.text(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_used_are_given_back() {
    let app = Upstream::named("app").await;
    let mut ads = Ads::start(LIFE).await;
    let proxy = ads.proxy("--idle-names 1s");
    let mut stream = ads.stream().await;
    let outbound = proxy.outbound;
    let first = tokio::spawn(async move { get(outbound, "a", "/").await });
    stream
        .request_matching(|r| r.resource_names_subscribe.contains(&"a:80".to_owned()))
        .await;
    accepted(
        stream
            .send(LISTENER, vec![("a:80", "1", pack(&listener("a:80", "r")))])
            .await,
    );
    accepted(
        stream
            .send(ROUTE, vec![("r", "1", pack(&routes("r", "c")))])
            .await,
    );
    accepted(
        stream
            .send(CLUSTER, vec![("c", "1", pack(&cluster("c")))])
            .await,
    );
    accepted(
        stream
            .send(ENDPOINTS, vec![("c", "1", pack(&endpoints("c", &app)))])
            .await,
    );
    assert_eq!(first.await.expect("no panic").status, 200);
    let gone = |name: &'static str| {
        move |r: &DeltaDiscoveryRequest| r.resource_names_unsubscribe.contains(&name.to_owned())
    };
    stream.request_matching(gone("a:80")).await;
    let mut left = std::collections::BTreeSet::from(["c".to_owned(), "r".to_owned()]);
    while !left.is_empty() {
        for name in stream.request().await.resource_names_unsubscribe {
            left.remove(&name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_says_nothing_is_named() {
    let mut ads = Ads::start(LIFE).await;
    let proxy = ads.proxy("--config-wait 300ms");
    let _stream = ads.stream().await;
    let response = get(proxy.outbound, "a", "/").await;
    assert_eq!(response.status, 503);
    assert_eq!(get(proxy.admin, "admin", "/ready").await.status, 503);
}
