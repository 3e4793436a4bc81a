//! The store, response by response; and wire messages for the tests of what reads them.

use std::sync::Arc;

use leno_proto::pack;
use leno_proto::pb::envoy::config::cluster::v3::Cluster as ClusterMessage;
use leno_proto::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use leno_proto::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use leno_proto::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use leno_proto::pb::envoy::config::core::v3::{
    Address, ConfigSource, DataSource, SocketAddress, TrafficDirection, address, data_source,
};
use leno_proto::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use leno_proto::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use leno_proto::pb::envoy::config::listener::v3::{
    Filter as FilterMessage, FilterChain, Listener as ListenerMessage, filter,
};
use leno_proto::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret,
};
use leno_proto::pb::envoy::service::discovery::v3::{ResourceError, ResourceName};
use leno_proto::pb::google::protobuf::Duration as WireDuration;
use leno_proto::pb::google::rpc;
use rcgen::{CertificateParams, KeyPair};

use super::*;

/// An outbound Listener `name` that carries bytes to `cluster`.
pub(crate) fn listener(name: &str, cluster: &str) -> Any {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    let filter = FilterMessage {
        name: "tcp".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&proxy))),
    };
    pack(&ListenerMessage {
        name: name.to_owned(),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            ..FilterChain::default()
        }],
        ..ListenerMessage::default()
    })
}

/// A Cluster whose endpoints come by EDS, with its connect timeout in seconds.
pub(crate) fn cluster(name: &str, timeout: i64) -> Any {
    let source = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(Default::default())),
        ..ConfigSource::default()
    };
    pack(&ClusterMessage {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(source),
            service_name: String::new(),
        }),
        connect_timeout: Some(WireDuration {
            seconds: timeout,
            nanos: 0,
        }),
        ..ClusterMessage::default()
    })
}

/// The endpoints of a cluster: `ports` of 127.0.0.1.
pub(crate) fn endpoints(name: &str, ports: &[u32]) -> Any {
    let endpoint = |port: &u32| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(SocketAddress {
                    address: "127.0.0.1".to_owned(),
                    port_specifier: Some(PortSpecifier::PortValue(*port)),
                    ..SocketAddress::default()
                })),
            }),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    pack(&ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: ports.iter().map(endpoint).collect(),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    })
}

/// Trusted roots: one new certificate.
fn roots() -> Any {
    let key = KeyPair::generate().expect("a key");
    let root = CertificateParams::default().self_signed(&key).expect("one");
    pack(&Secret {
        name: "ROOTCA".to_owned(),
        r#type: Some(secret::Type::ValidationContext(
            CertificateValidationContext {
                trusted_ca: Some(DataSource {
                    specifier: Some(data_source::Specifier::InlineString(root.pem())),
                    ..DataSource::default()
                }),
                ..CertificateValidationContext::default()
            },
        )),
    })
}

/// A response with resources by name and version.
pub(crate) fn response(
    type_url: &str,
    resources: Vec<(&str, &str, Any)>,
) -> DeltaDiscoveryResponse {
    let resources = resources.into_iter().map(|(name, version, any)| Sent {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(any),
        ..Sent::default()
    });
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        resources: resources.collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// A response that says of a resource that there is none, as an error, or as removed.
pub(crate) fn missing(type_url: &str, name: &str, reason: Option<&str>) -> DeltaDiscoveryResponse {
    let error = |reason: &str| ResourceError {
        resource_name: Some(ResourceName {
            name: name.to_owned(),
            ..ResourceName::default()
        }),
        error_detail: Some(rpc::Status {
            code: 5,
            message: reason.to_owned(),
            details: Vec::new(),
        }),
    };
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        resource_errors: reason.map(error).into_iter().collect(),
        removed_resources: match reason {
            Some(_) => Vec::new(),
            None => vec![name.to_owned()],
        },
        ..DeltaDiscoveryResponse::default()
    }
}

fn held(store: &Store, name: &str) -> Option<Result<Arc<Cluster>, Arc<str>>> {
    Some(match store.resources.clusters.get(name)? {
        ResourceState::Present(cluster) => Ok(Arc::clone(cluster)),
        ResourceState::Missing(reason) => Err(Arc::clone(reason)),
    })
}

#[test]
fn a_refused_resource_leaves_its_last_good_form_and_the_others_alone() {
    let mut store = Store::default();
    store.apply(&response(CLUSTER, vec![("c", "1", cluster("c", 1))]));
    let good = held(&store, "c").expect("answered").expect("accepted");

    let second = vec![
        ("a", "2", cluster("a", 1)),
        ("c", "2", cluster("c", -1)),
        ("d", "2", cluster("d", 1)),
    ];
    let applied = store.apply(&response(CLUSTER, second));
    let [refusal] = applied.refused.as_slice() else {
        panic!("one is refused: {applied:?}");
    };
    assert_eq!((&*refusal.name, &*refusal.version), ("c", "2"));
    assert_eq!(refusal.field, "connect_timeout");
    let same = held(&store, "c").expect("answered").expect("accepted");
    assert!(Arc::ptr_eq(&good, &same));
    assert_eq!(store.version(CLUSTER, "c").as_deref(), Some("1"));
    for accepted in ["a", "d"] {
        assert_eq!(store.version(CLUSTER, accepted).as_deref(), Some("2"));
    }
    assert_eq!(store.refused().count(), 1);
}

#[test]
fn a_refusal_ends_with_a_good_form_or_with_the_resource() {
    let (good, bad) = (cluster("c", 1), cluster("c", -1));
    for end in [
        response(CLUSTER, vec![("c", "3", good)]),
        missing(CLUSTER, "c", None),
        missing(CLUSTER, "c", Some("no service c")),
    ] {
        let mut store = Store::default();
        store.apply(&response(CLUSTER, vec![("c", "2", bad.clone())]));
        assert_eq!(store.refused().count(), 1);
        store.apply(&end);
        assert_eq!(store.refused().count(), 0, "{end:?}");
    }
    let mut store = Store::default();
    store.apply(&response(CLUSTER, vec![("c", "2", bad)]));
    store.forget(CLUSTER, "c");
    assert_eq!(store.refused().count(), 0);
}

#[test]
fn an_answer_that_is_not_what_it_says_is_refused() {
    let twice = vec![("c", "1", cluster("c", 1)), ("c", "2", cluster("c", 2))];
    let mut empty = response(CLUSTER, vec![("c", "1", cluster("c", 1))]);
    empty.resources[0].resource = None;
    for (answer, name, field) in [
        (
            response(CLUSTER, vec![("other", "1", cluster("c", 1))]),
            "other",
            "name",
        ),
        (response(CLUSTER, twice), "c", "name"),
        (empty, "c", "resource"),
        (
            response(CLUSTER, vec![("c", "1", endpoints("c", &[1]))]),
            "c",
            "resource.type_url",
        ),
        (
            response("type.googleapis.com/x.Y", vec![("c", "1", cluster("c", 1))]),
            "",
            "type_url",
        ),
    ] {
        let applied = Store::default().apply(&answer);
        let [refusal] = applied.refused.as_slice() else {
            panic!("one is refused: {applied:?}");
        };
        assert_eq!((&*refusal.name, &*refusal.field), (name, field));
    }
}

#[test]
fn a_resource_that_is_gone_says_why_and_has_no_version() {
    for (reason, expected) in [
        (None, "the control plane removed it"),
        (Some("no service c"), "no service c"),
    ] {
        let mut store = Store::default();
        store.apply(&response(CLUSTER, vec![("c", "1", cluster("c", 1))]));
        store.apply(&missing(CLUSTER, "c", reason));
        let error = held(&store, "c").expect("answered").expect_err("missing");
        assert_eq!(&*error, expected);
        assert_eq!(store.version(CLUSTER, "c"), None);
    }
}

#[test]
fn roots_are_replaced_and_never_removed() {
    let mut store = Store::default();
    store.apply(&response(SECRET, vec![("ROOTCA", "1", roots())]));
    let first = store.roots.clone().expect("roots");
    store.apply(&missing(SECRET, "ROOTCA", None));
    assert!(Arc::ptr_eq(&first, store.roots.as_ref().expect("roots")));
    store.apply(&response(SECRET, vec![("ROOTCA", "2", roots())]));
    let second = store.roots.expect("roots");
    assert_ne!(first.certificates, second.certificates);
}

#[test]
fn names_lead_from_listeners_to_endpoints() {
    let mut store = Store::default();
    let names = |store: &Store, type_url| -> Vec<String> {
        let names = store.referenced_names();
        names[type_url].iter().cloned().collect()
    };
    store.apply(&response(
        LISTENER,
        vec![("a:80", "1", listener("a:80", "c"))],
    ));
    assert_eq!(names(&store, CLUSTER), ["c"]);
    assert!(names(&store, ENDPOINTS).is_empty());
    store.apply(&response(CLUSTER, vec![("c", "1", cluster("c", 1))]));
    assert_eq!(names(&store, ENDPOINTS), ["c"]);
    // A Cluster that no Listener leads to any more doesn't lead further.
    store.apply(&missing(LISTENER, "a:80", None));
    assert!(names(&store, CLUSTER).is_empty() && names(&store, ENDPOINTS).is_empty());
}

#[test]
fn what_is_kept_for_a_restart_is_what_was_accepted() {
    let mut store = Store::default();
    store.keep_bodies();
    let listeners = vec![
        ("a:80", "1", listener("a:80", "c")),
        ("b:80", "1", listener("b:80", "d")),
    ];
    store.apply(&response(LISTENER, listeners));
    store.apply(&response(CLUSTER, vec![("c", "7", cluster("c", 1))]));
    store.apply(&response(CLUSTER, vec![("c", "8", cluster("c", -1))]));
    store.apply(&response(
        ENDPOINTS,
        vec![("c", "2", endpoints("c", &[1, 2]))],
    ));
    store.apply(&missing(LISTENER, "b:80", None));
    let text = serde_json::to_string(&store.kept()).expect("JSON");

    let kept: Vec<SavedResource> = serde_json::from_str(&text).expect("JSON");
    let mut restored = Store::default();
    for answer in SavedResource::responses(kept) {
        let applied = restored.apply(&answer);
        assert!(applied.refused.is_empty(), "{applied:?}");
    }
    let mut versions: Vec<_> = restored.versions().collect();
    versions.sort_unstable();
    let mut expected = vec![
        (LISTENER, "a:80", "1"),
        (CLUSTER, "c", "7"),
        (ENDPOINTS, "c", "2"),
    ];
    expected.sort_unstable();
    assert_eq!(versions, expected);
}
