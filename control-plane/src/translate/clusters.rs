//! Clusters: a service's port, or a subset of it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use leno_proto::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection, UpstreamConnectionOptions,
    circuit_breakers::Thresholds,
    cluster::{
        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy, TransportSocketMatch,
    },
};
use leno_proto::pb::envoy::config::core::v3::{
    Http1ProtocolOptions as Http1, Http2ProtocolOptions as Http2, HttpProtocolOptions as Common,
    TcpKeepalive,
};
use leno_proto::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
};
use leno_proto::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};
use leno_proto::type_url::CLUSTER;
use leno_proto::{Any, pack};

use super::context::{ClusterName, LookupResult, ROOTS, present};
use super::{grpc, wire};
use crate::mesh::route::{Balance, DestinationRule, HttpVersion, Keepalive, Policy};
use crate::mesh::service::{Endpoints, PortProtocol, Service};
use crate::mesh::{Client, Mesh, Node, address_of};

/// Istio's connect timeout.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// The cluster `name`.
pub fn outbound(mesh: &Mesh, node: &Node, name: &str) -> LookupResult {
    let (service, parsed, rule) = match find(mesh, node, name) {
        Ok(found) => found,
        Err(reason) => return LookupResult::Missing(reason),
    };
    let default = Policy::default();
    let (policy, object) = match (rule, parsed.subset) {
        (None, _) => (&default, service.object.clone()),
        (Some(rule), "") => (&rule.policy, service.object.clone()),
        (Some(rule), subset) => match rule.subsets.get(subset) {
            Some(of) => {
                let labels: Vec<String> = of
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                let labels = labels.join(",");
                (
                    &of.policy,
                    format!("{} subset {subset} ({labels})", rule.object),
                )
            }
            None => (&default, service.object.clone()),
        },
    };
    let identities = identities(mesh, service);
    let port = service.port(parsed.port).map(|port| port.protocol);
    let protocol = upstream_protocol(port.unwrap_or(PortProtocol::Auto), policy.version);
    let alpn: &[&str] = match protocol {
        PortProtocol::Http2 => &["istio-h2", "h2", "istio"],
        _ => &["istio-http/1.1", "istio"],
    };
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(wire::ads()),
            service_name: name.to_owned(),
        }),
        connect_timeout: Some(wire::duration(policy.connect_timeout.unwrap_or(CONNECT))),
        lb_policy: match policy.balance {
            Balance::LeastRequest => LbPolicy::LeastRequest,
            Balance::RoundRobin => LbPolicy::RoundRobin,
            Balance::Random => LbPolicy::Random,
        }
        .into(),
        transport_socket_matches: sockets(node, &identities, &parsed, alpn),
        circuit_breakers: breakers(policy),
        typed_extension_protocol_options: http_options(node.client, policy, protocol),
        upstream_connection_options: policy.keepalive.map(|settings| UpstreamConnectionOptions {
            tcp_keepalive: Some(keepalive(settings)),
            ..UpstreamConnectionOptions::default()
        }),
        outlier_detection: ejection(policy),
        metadata: Some(wire::metadata(&[("rule", &object)])),
        ..Cluster::default()
    };
    match node.client {
        Client::Grpc => present(CLUSTER, &grpc::grpc_cluster(cluster, &identities)),
        Client::Leno | Client::Envoy => present(CLUSTER, &cluster),
    }
}

/// The SPIFFE IDs of a service's endpoints with a sidecar.
fn identities(mesh: &Mesh, service: &Service) -> BTreeSet<String> {
    let Endpoints::Static(endpoints) = &service.endpoints else {
        return BTreeSet::new();
    };
    let meshed = endpoints.iter().filter(|endpoint| endpoint.meshed);
    meshed.filter_map(|e| mesh.identity(e)).collect()
}

type Parts<'a> = (&'a Service, ClusterName<'a>, Option<&'a DestinationRule>);

/// The service, and the rule, that a cluster's name stands for.
pub(super) fn find<'a>(mesh: &'a Mesh, node: &Node, name: &'a str) -> Result<Parts<'a>, String> {
    let parsed =
        ClusterName::parse(name).ok_or_else(|| format!("{name:?} is no cluster's name"))?;
    let service = mesh.service(parsed.host);
    let service = service.ok_or_else(|| format!("there is no service {}", parsed.host))?;
    if service.port(parsed.port).is_none() {
        return Err(format!("{} has no port {}", service.object, parsed.port));
    }
    let rule = service.rule(&node.namespace, &mesh.root_namespace);
    if parsed.subset.is_empty() || rule.is_some_and(|r| r.subsets.contains_key(parsed.subset)) {
        return Ok((service, parsed, rule));
    }
    let subset = parsed.subset;
    Err(match rule {
        None => format!(
            "no DestinationRule defines subset {subset} of {}",
            parsed.host
        ),
        Some(rule) => {
            let known: Vec<&str> = rule.subsets.keys().map(String::as_str).collect();
            let known = known.join(", ");
            format!("{} defines no subset {subset}; it has {known}", rule.object)
        }
    })
}

/// Istio's auto mTLS: endpoints with `tlsMode: istio` in their metadata get mutual TLS, the others plaintext.
fn sockets(
    node: &Node,
    identities: &BTreeSet<String>,
    name: &ClusterName<'_>,
    alpn: &[&str],
) -> Vec<TransportSocketMatch> {
    if identities.is_empty() {
        return Vec::new();
    }
    let subset = if name.subset.is_empty() {
        "_"
    } else {
        &format!("{}_", name.subset)
    };
    // An IP address is no server name for SNI: dashes make a label of it.
    let host = match address_of(name.host) {
        Some(_) => &name.host.replace(['.', ':'], "-"),
        None => name.host,
    };
    let context = UpstreamTlsContext {
        sni: format!("outbound_.{}_.{subset}.{host}", name.port),
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
            tls_params: wire::tls_params(node.client),
            tls_certificate_sds_secret_configs: vec![wire::own_certificate(node.client)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(CertificateValidationContext {
                        match_typed_subject_alt_names: identities
                            .iter()
                            .map(|id| wire::san(id))
                            .collect(),
                        ..CertificateValidationContext::default()
                    }),
                    validation_context_sds_secret_config: Some(wire::secret(ROOTS)),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    let tls = wire::socket("envoy.transport_sockets.tls", pack(&context));
    let raw = wire::socket(
        "envoy.transport_sockets.raw_buffer",
        pack(&RawBuffer::default()),
    );
    vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(wire::texts(&[("tlsMode", "istio")])),
            transport_socket: Some(tls),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(wire::texts(&[])),
            transport_socket: Some(raw),
        },
    ]
}

pub(super) fn breakers(policy: &Policy) -> Option<CircuitBreakers> {
    let thresholds = Thresholds {
        max_connections: policy.max_connections.map(wire::number),
        max_pending_requests: policy.max_pending_requests.map(wire::number),
        max_requests: policy.max_requests.map(wire::number),
        max_retries: policy.max_retries.map(wire::number),
        ..Thresholds::default()
    };
    (thresholds != Thresholds::default()).then(|| CircuitBreakers {
        thresholds: vec![thresholds],
        ..CircuitBreakers::default()
    })
}

/// The protocol towards the endpoints of a port, from the port's own and the policy's HTTP version.
fn upstream_protocol(port: PortProtocol, version: HttpVersion) -> PortProtocol {
    match (port, version) {
        (PortProtocol::Tcp, _) => PortProtocol::Tcp,
        (_, HttpVersion::Client) => PortProtocol::Auto,
        (PortProtocol::Http, HttpVersion::Upgraded) => PortProtocol::Http2,
        (port, _) => port,
    }
}

/// The HTTP options of upstream connections. Without a declared protocol they use the request's version.
pub(super) fn http_options(
    client: Client,
    policy: &Policy,
    protocol: PortProtocol,
) -> HashMap<String, Any> {
    let common = Common {
        max_requests_per_connection: policy.max_requests_per_connection.map(wire::number),
        idle_timeout: policy.idle_timeout.map(wire::duration),
        ..Common::default()
    };
    let is_http1 = matches!(protocol, PortProtocol::Http | PortProtocol::Tcp);
    if common == Common::default() && (is_http1 || client == Client::Grpc) {
        return HashMap::new();
    }
    let explicit = |protocol| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(common),
        upstream_protocol_options: Some(match protocol {
            PortProtocol::Http | PortProtocol::Tcp => {
                explicit(ProtocolConfig::HttpProtocolOptions(Http1::default()))
            }
            PortProtocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(Http2::default())),
            PortProtocol::Auto => {
                UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                    http2_protocol_options: Some(Http2::default()),
                    ..UseDownstreamHttpConfig::default()
                })
            }
        }),
        ..HttpProtocolOptions::default()
    };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    [(key, pack(&options))].into()
}

fn keepalive(settings: Keepalive) -> TcpKeepalive {
    let seconds = |time: Duration| wire::number(u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    TcpKeepalive {
        keepalive_probes: settings.probes.map(wire::number),
        keepalive_time: settings.time.map(seconds),
        keepalive_interval: settings.interval.map(seconds),
    }
}

fn ejection(policy: &Policy) -> Option<OutlierDetection> {
    let ejection = policy.ejection.as_ref()?;
    Some(OutlierDetection {
        // 0 switches it off; for Envoy that is an enforcing percentage of 0.
        consecutive_5xx: ejection
            .consecutive_5xx
            .filter(|n| *n > 0)
            .map(wire::number),
        enforcing_consecutive_5xx: (ejection.consecutive_5xx == Some(0)).then(|| wire::number(0)),
        consecutive_gateway_failure: ejection
            .consecutive_gateway
            .filter(|n| *n > 0)
            .map(wire::number),
        enforcing_consecutive_gateway_failure: ejection
            .consecutive_gateway
            .map(|n| wire::number(if n > 0 { 100 } else { 0 })),
        interval: ejection.interval.map(wire::duration),
        base_ejection_time: ejection.base_time.map(wire::duration),
        max_ejection_percent: ejection.max_percent.map(wire::number),
        split_external_local_origin_errors: ejection.split,
        consecutive_local_origin_failure: ejection
            .consecutive_local
            .filter(|n| *n > 0)
            .map(wire::number),
        enforcing_consecutive_local_origin_failure: (ejection.consecutive_local == Some(0))
            .then(|| wire::number(0)),
        ..OutlierDetection::default()
    })
}
