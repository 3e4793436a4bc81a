//! The one inbound Listener of a proxy: chains by workload port, each with its mTLS mode, policies and protocol, and
//! chains without a port for ports that the registry doesn't know.

use std::collections::BTreeSet;

use leno_proto::pack;
use leno_proto::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
};
use leno_proto::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use leno_proto::pb::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, Metadata, SocketAddress, TrafficDirection,
};
use leno_proto::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener,
};
use leno_proto::pb::envoy::config::rbac::v3::Rbac;
use leno_proto::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use leno_proto::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use leno_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use leno_proto::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use leno_proto::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier as TcpCluster,
};
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, common_tls_context::ValidationContextType,
};
use leno_proto::pb::google::protobuf::BoolValue;
use leno_proto::type_url::CLUSTER;

use super::context::{INBOUND, LookupResult, PASSTHROUGH, ROOTS, TranslationContext, present};
use super::policies::TrafficKind;
use super::{clusters, policies, wire};
use crate::mesh::policy::Mode;
use crate::mesh::route::Policy;
use crate::mesh::service::PortProtocol;
use crate::mesh::workload::{WorkloadDescription, WorkloadPort};
use crate::mesh::{Client, Node};

/// ALPN protocols that only a sidecar offers: two for HTTP, and one for anything else.
const SIDECAR: [&str; 3] = ["istio-h2", "istio-http/1.1", "istio"];
/// Application protocols of a plaintext connection that is detected as HTTP.
const HTTP: [&str; 2] = ["http/1.1", "h2c"];
/// ALPN protocols of mutual TLS that carries HTTP: a sidecar's, then those of other clients.
const HTTP_TLS: [&str; 4] = ["istio-h2", "istio-http/1.1", "h2", "http/1.1"];

/// The inbound Listener of `node`.
pub(super) fn listener(world: TranslationContext<'_>, node: &Node) -> Listener {
    let TranslationContext { mesh, workload, .. } = world;
    let labels = workload.labels();
    // The same on every port.
    let [http, tcp] = [TrafficKind::Http, TrafficKind::Tcp]
        .map(|carried| policies::filters(mesh.policies_for(&node.namespace, &labels), carried));
    let chains_of = |port, known| port_chains(world, node, (port, known), (&http, &tcp));
    let mut chains = Vec::new();
    for (port, known) in &workload.ports {
        chains.extend(chains_of(Some(*port), known));
    }
    let unknown = WorkloadPort::default();
    for port in mesh.ports_with_modes(&node.namespace, &labels) {
        if !workload.ports.contains_key(&port) {
            chains.extend(chains_of(Some(port), &unknown));
        }
    }
    chains.extend(chains_of(None, &unknown));
    Listener {
        name: INBOUND.to_owned(),
        traffic_direction: TrafficDirection::Inbound.into(),
        filter_chains: chains,
        ..Listener::default()
    }
}

/// The inbound Listener of a client that refuses the intended one: it lets nothing in.
pub(super) fn closed(meant: Listener) -> Listener {
    let filters = tcp_filters(&[policies::deny_all()], &passthrough());
    Listener {
        filter_chains: vec![FilterChain {
            name: "closed".to_owned(),
            filters,
            ..FilterChain::default()
        }],
        ..meant
    }
}

/// The inbound Listener without names and metadata of its chains: two that agree in the rest let in the same.
pub(super) fn guard(mut listener: Listener) -> Listener {
    for chain in &mut listener.filter_chains {
        (chain.metadata, chain.name) = (None, String::new());
    }
    listener
}

/// The clusters that the inbound Listener names.
pub(super) fn cluster_names(workload: &WorkloadDescription) -> BTreeSet<String> {
    let ports = workload.ports.keys();
    ports
        .map(|port| format!("inbound|{port}||"))
        .chain([passthrough()])
        .collect()
}

/// The cluster of ports that the registry doesn't know, under Istio's name.
fn passthrough() -> String {
    "inbound|0||".to_owned()
}

/// The cluster `inbound|PORT||`: the app behind a workload port.
pub(super) fn cluster(workload: &WorkloadDescription, node: &Node, name: &str) -> LookupResult {
    let port = name
        .strip_prefix("inbound|")
        .and_then(|rest| rest.strip_suffix("||"));
    let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) else {
        return LookupResult::Missing(format!("{name:?} is no cluster's name"));
    };
    let known = workload.ports.get(&port);
    if known.is_none() && port != 0 {
        return LookupResult::Missing(format!("the workload has no port {port}"));
    }
    let policy = Policy {
        max_requests_per_connection: known.and_then(|known| known.max_requests_per_connection),
        ..Policy::default()
    };
    let protocol = known
        .and_then(|known| known.protocol)
        .unwrap_or(PortProtocol::Auto);
    let cluster = original_dst_cluster(node, name, &policy, protocol, "the local app");
    present(
        CLUSTER,
        &Cluster {
            upstream_bind_config: (node.client == Client::Envoy).then(from_the_sidecar),
            ..cluster
        },
    )
}

/// The source addresses of a sidecar's connections to its app, Istio's: connections from them aren't intercepted, so it
/// doesn't call itself. A sidecar of ours knows them without this.
fn from_the_sidecar() -> BindConfig {
    let source = |address: &str| SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    BindConfig {
        source_address: Some(source("127.0.0.6")),
        extra_source_addresses: vec![ExtraSourceAddress {
            address: Some(source("::6")),
            ..ExtraSourceAddress::default()
        }],
        ..BindConfig::default()
    }
}

/// The cluster of connections to their original destination.
pub(super) fn passthrough_cluster(node: &Node) -> LookupResult {
    let rule = "outboundTrafficPolicy ALLOW_ANY";
    let cluster = original_dst_cluster(
        node,
        PASSTHROUGH,
        &Policy::default(),
        PortProtocol::Auto,
        rule,
    );
    present(CLUSTER, &cluster)
}

fn original_dst_cluster(
    node: &Node,
    name: &str,
    policy: &Policy,
    protocol: PortProtocol,
    rule: &str,
) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst.into(),
        )),
        connect_timeout: Some(wire::duration(clusters::CONNECT)),
        lb_policy: LbPolicy::ClusterProvided.into(),
        typed_extension_protocol_options: clusters::http_options(node.client, policy, protocol),
        metadata: Some(wire::metadata(&[("rule", rule)])),
        ..Cluster::default()
    }
}

/// The chains of one port: for mutual TLS, and for other connections where the mode permits them.
fn port_chains(
    world: TranslationContext<'_>,
    node: &Node,
    (port, known): (Option<u16>, &WorkloadPort),
    (http, tcp): (&[Rbac], &[Rbac]),
) -> Vec<FilterChain> {
    let TranslationContext { mesh, workload, .. } = world;
    let labels = workload.labels();
    let (mode, object) = mesh.mode(&node.namespace, &labels, port);
    let known_port = port.filter(|port| workload.ports.contains_key(port));
    let cluster = known_port.map_or_else(passthrough, |port| format!("inbound|{port}||"));
    let (http, tcp) = (http_filters(http, &cluster), tcp_filters(tcp, &cluster));
    let protocol = known.protocol.unwrap_or(PortProtocol::Auto);
    let rule = match object {
        Some(object) => format!("{}{}", object.object, labels.fit(object.selector.as_ref())),
        None => "mesh default: PERMISSIVE".to_owned(),
    };
    let metadata = describe(&rule, node, workload, known);
    let chain = |takes: ChainMatch| FilterChain {
        name: format!("{cluster}{} {}", takes.transport, takes.alpn.join(",")),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port.map(|port| wire::number(port.into())),
            transport_protocol: takes.transport.to_owned(),
            application_protocols: takes.alpn.iter().map(|&alpn| alpn.to_owned()).collect(),
            ..FilterChainMatch::default()
        }),
        filters: match takes.carried {
            TrafficKind::Http => http.clone(),
            TrafficKind::Tcp => tcp.clone(),
        },
        transport_socket: takes.terminates.then(|| downstream_tls(node.client)),
        metadata: Some(metadata.clone()),
        ..FilterChain::default()
    };
    taken(protocol, mode).into_iter().map(chain).collect()
}

/// The connections that a chain matches.
#[derive(Debug)]
struct ChainMatch {
    carried: TrafficKind,
    /// Envoy's `transport_protocol`.
    transport: &'static str,
    /// ALPN protocols; any, when empty.
    alpn: &'static [&'static str],
    /// True when mutual TLS is terminated.
    terminates: bool,
}

/// The chains of a port that carries `protocol` under `mode`.
fn taken(protocol: PortProtocol, mode: Mode) -> Vec<ChainMatch> {
    use TrafficKind::{Http, Tcp};
    let takes = |carried, transport, alpn, terminates| ChainMatch {
        carried,
        transport,
        alpn,
        terminates,
    };
    let mutual = |carried, alpn| takes(carried, "tls", alpn, true);
    let plain = |carried, alpn| takes(carried, "raw_buffer", alpn, false);
    let declared = if protocol == PortProtocol::Tcp {
        Tcp
    } else {
        Http
    };
    let mut taken = match (protocol, mode) {
        (_, Mode::Disable) => vec![],
        (PortProtocol::Auto, Mode::Strict) => vec![mutual(Http, &HTTP_TLS), mutual(Tcp, &[])],
        (PortProtocol::Auto, _) => vec![mutual(Http, &HTTP_TLS[..2]), mutual(Tcp, &SIDECAR[2..])],
        (_, Mode::Strict) => vec![mutual(declared, &[])],
        _ => vec![mutual(declared, &SIDECAR)],
    };
    match protocol {
        _ if mode == Mode::Strict => {}
        // TLS that isn't the mesh's passes to the app as it is.
        PortProtocol::Auto => taken.extend([plain(Http, &HTTP), takes(Tcp, "", &[], false)]),
        PortProtocol::Tcp => taken.extend([plain(Tcp, &[]), takes(Tcp, "tls", &[], false)]),
        // A port that is declared HTTP takes HTTP only: rules can't look into TLS that isn't terminated here.
        PortProtocol::Http | PortProtocol::Http2 => taken.push(plain(Http, &[])),
    }
    taken
}

/// The metadata of a chain, for explanations and metrics.
fn describe(
    rule: &str,
    node: &Node,
    workload: &WorkloadDescription,
    known: &WorkloadPort,
) -> Metadata {
    let label = |name: &str| workload.labels().get(name).unwrap_or_default();
    wire::metadata(&[
        ("rule", rule),
        ("service", &known.service),
        ("workload", &workload.name),
        ("namespace", &node.namespace),
        ("app", label("app")),
        ("version", label("version")),
    ])
}

pub(super) fn http_filters(rbac: &[Rbac], cluster: &str) -> Vec<Filter> {
    let mut filters: Vec<_> = (rbac.iter())
        .map(|rules| {
            let config = HttpRbac {
                rules: Some(rules.clone()),
                ..HttpRbac::default()
            };
            wire::http_filter("envoy.filters.http.rbac", &config)
        })
        .collect();
    filters.push(wire::router());
    let manager = HttpConnectionManager {
        stat_prefix: cluster.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(app_route(cluster))),
        http_filters: filters,
        normalize_path: Some(BoolValue { value: true }),
        ..HttpConnectionManager::default()
    };
    vec![wire::filter(
        "envoy.filters.network.http_connection_manager",
        &manager,
    )]
}

fn tcp_filters(rbac: &[Rbac], cluster: &str) -> Vec<Filter> {
    let mut filters: Vec<_> = (rbac.iter())
        .map(|rules| {
            let config = NetworkRbac {
                rules: Some(rules.clone()),
                stat_prefix: cluster.to_owned(),
                ..NetworkRbac::default()
            };
            wire::filter("envoy.filters.network.rbac", &config)
        })
        .collect();
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(TcpCluster::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    filters.push(wire::filter("envoy.filters.network.tcp_proxy", &proxy));
    filters
}

fn app_route(cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(wire::duration(std::time::Duration::ZERO)),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    };
    RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: cluster.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn downstream_tls(client: Client) -> leno_proto::pb::envoy::config::core::v3::TransportSocket {
    let context = DownstreamTlsContext {
        require_client_certificate: Some(BoolValue { value: true }),
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: ["h2", "istio-http/1.1", "istio"]
                .map(str::to_owned)
                .to_vec(),
            tls_certificate_sds_secret_configs: vec![wire::own_certificate(client)],
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
                wire::secret(ROOTS),
            )),
            ..CommonTlsContext::default()
        }),
        ..DownstreamTlsContext::default()
    };
    wire::socket("envoy.transport_sockets.tls", pack(&context))
}
