//! `envoy.config.cluster.v3.Cluster`.

use std::time::Duration;

use leno_proto::pb::envoy::config::cluster::v3::{
    CircuitBreakers as CircuitBreakersMessage, Cluster as ClusterMessage, OutlierDetection,
    cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy, TransportSocketMatch},
};
use leno_proto::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use leno_proto::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use leno_proto::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
};
use leno_proto::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use leno_proto::pb::google::protobuf::{Duration as Period, UInt32Value, value::Kind};
use leno_proto::prost::Name;
use rustls_pki_types::ServerName;

use super::{Invalid, Resource};
use crate::spiffe::SpiffeId;

/// Envoy's connect timeout for a cluster that sets none.
const DEFAULT_CONNECT: Duration = Duration::from_secs(5);

/// A set of endpoints that can serve the same requests.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name: `outbound|80|v1|user-service.default.svc.cluster.local`.
    pub name: String,
    /// Object that it comes from.
    pub rule: String,
    /// Source of its endpoints.
    pub discovery: Discovery,
    /// Load balancing policy.
    pub balance: Balance,
    /// Timeout of connecting, TLS included.
    pub connect_timeout: Duration,
    /// TLS to endpoints with a sidecar; without it, all are reached in plaintext.
    pub tls: Option<Tls>,
    /// Circuit breakers.
    pub limits: CircuitBreakers,
    /// Outlier detection; without it, endpoints are never ejected.
    pub outlier: Option<Outlier>,
    /// Settings of its connections.
    pub connections: Connections,
}

/// HTTP version of connections to a cluster's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1, Envoy's default.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// The version of the downstream request.
    Downstream,
}

/// Settings of a cluster's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// HTTP version.
    pub protocol: UpstreamProtocol,
    /// Most requests on one connection.
    pub max_requests: Option<u32>,
    /// Longest time that one is kept idle.
    pub idle_timeout: Option<Duration>,
    /// TCP keepalive.
    pub keepalive: Option<Keepalive>,
}

/// TCP keepalive; unset fields are as for every connection of a sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Unanswered probes after which the connection is dead.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// Circuit breakers of one cluster; unset ones are unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CircuitBreakers {
    /// HTTP/1 exchanges and opaque connections at once.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests at once.
    pub requests: Option<u32>,
    /// Retries at once, instead of the budget.
    pub retries: Option<u32>,
}

/// Outlier detection: the conditions and durations of ejections (`envoy.config.cluster.v3.OutlierDetection`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    /// Consecutive 5xx until an ejection, failed connections included unless `split`; 0 is never.
    pub consecutive_5xx: u32,
    /// Consecutive 502, 503 or 504, failed connections included unless `split`; 0 is never.
    pub consecutive_gateway: u32,
    /// Consecutive failed connections, if `split`; 0 is never.
    pub consecutive_local: u32,
    /// True if failed connections are counted apart from responses.
    pub split: bool,
    /// Interval of Envoy's sweeps: endpoints return at a multiple of it.
    pub interval: Duration,
    /// Duration of the first ejection; the n-th in a row lasts n times as long.
    pub base_time: Duration,
    /// Longest duration of an ejection, unless `base_time` is longer.
    pub max_time: Duration,
    /// Percentage of the cluster that may be ejected. One of two or more always may.
    pub max_percent: u32,
}

/// Source of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// EDS: the ClusterLoadAssignment of this name.
    Eds(String),
    /// The local app, or the address that a connection dialled.
    OriginalDst,
}

/// Load balancing policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The fewest requests in flight for the weight.
    LeastRequest,
    /// Round robin by weight.
    RoundRobin,
    /// Random by weight.
    Random,
}

/// Mutual TLS to a peer with a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Server name indication: `outbound_.80_.v1_.user-service.default.svc.cluster.local`.
    pub sni: String,
    /// Identities that are allowed for any endpoint, unless the endpoint names its own.
    pub identities: Vec<SpiffeId>,
}

impl Resource for Cluster {
    type Message = ClusterMessage;

    fn name(&self) -> &str {
        &self.name
    }

    fn validate(message: ClusterMessage) -> Result<Cluster, Invalid> {
        super::named(&message.name)?;
        let rule = super::provenance(message.metadata.as_ref(), "rule");
        let connect_timeout = match &message.connect_timeout {
            None => DEFAULT_CONNECT,
            Some(value) => match super::duration(value) {
                Ok(value) if !value.is_zero() => value,
                Ok(_) => return Err(Invalid::new("connect_timeout", "must be positive")),
                Err(reason) => return Err(Invalid::new("connect_timeout", reason)),
            },
        };
        Ok(Cluster {
            discovery: discovery(&message)?,
            balance: balance(&message)?,
            connect_timeout,
            tls: tls(&message.transport_socket_matches)?,
            limits: limits(message.circuit_breakers.as_ref())?,
            outlier: message
                .outlier_detection
                .as_ref()
                .map(outlier)
                .transpose()
                .map_err(|e| e.within("outlier_detection"))?,
            connections: connections(&message)?,
            rule: rule.unwrap_or_else(|| message.name.clone()),
            name: message.name,
        })
    }
}

/// Circuit breakers of the default priority; the last entry wins, as with Envoy.
fn limits(breakers: Option<&CircuitBreakersMessage>) -> Result<CircuitBreakers, Invalid> {
    let mut limits = CircuitBreakers::default();
    for (i, threshold) in breakers.iter().flat_map(|b| &b.thresholds).enumerate() {
        if threshold.priority != 0 {
            let field = format!("circuit_breakers.thresholds[{i}].priority");
            return Err(Invalid::new(field, "must be DEFAULT"));
        }
        let value = |value: Option<UInt32Value>| value.map(|value| value.value);
        limits = CircuitBreakers {
            connections: value(threshold.max_connections),
            pending: value(threshold.max_pending_requests),
            requests: value(threshold.max_requests),
            retries: value(threshold.max_retries),
        };
    }
    Ok(limits)
}

/// Reads outlier detection, with Envoy's defaults for unset fields. A detector that is enforced at 0 % is off.
fn outlier(detection: &OutlierDetection) -> Result<Outlier, Invalid> {
    let number = |value: Option<UInt32Value>, default| value.map_or(default, |value| value.value);
    let count = |threshold, default, enforcing, enforced: u32| match number(enforcing, enforced) {
        0 => 0,
        _ => number(threshold, default),
    };
    let time = |name: &'static str, value: Option<&Period>, default: u64| match value {
        None => Ok(Duration::from_secs(default)),
        Some(value) => super::duration(value).map_err(|reason| Invalid::new(name, reason)),
    };
    let interval = time("interval", detection.interval.as_ref(), 10)?;
    if interval.is_zero() {
        return Err(Invalid::new("interval", "must be positive"));
    }
    Ok(Outlier {
        consecutive_5xx: count(
            detection.consecutive_5xx,
            5,
            detection.enforcing_consecutive_5xx,
            100,
        ),
        consecutive_gateway: count(
            detection.consecutive_gateway_failure,
            5,
            detection.enforcing_consecutive_gateway_failure,
            0,
        ),
        consecutive_local: count(
            detection.consecutive_local_origin_failure,
            5,
            detection.enforcing_consecutive_local_origin_failure,
            100,
        ),
        split: detection.split_external_local_origin_errors,
        interval,
        base_time: time(
            "base_ejection_time",
            detection.base_ejection_time.as_ref(),
            30,
        )?,
        max_time: time(
            "max_ejection_time",
            detection.max_ejection_time.as_ref(),
            300,
        )?,
        max_percent: number(detection.max_ejection_percent, 10).min(100),
    })
}

fn protocol(options: Option<&UpstreamProtocolOptions>) -> Result<UpstreamProtocol, Invalid> {
    match options {
        None => Ok(UpstreamProtocol::Http1),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => {
            Ok(UpstreamProtocol::Downstream)
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match explicit.protocol_config {
                None | Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(UpstreamProtocol::Http1),
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(UpstreamProtocol::Http2),
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    let field = "explicit_http_config.http3_protocol_options";
                    Err(Invalid::new(field, "is not supported"))
                }
            }
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            Err(Invalid::new("auto_config", "is not supported"))
        }
    }
}

fn connections(message: &ClusterMessage) -> Result<Connections, Invalid> {
    let mut connections = Connections::default();
    for (name, any) in &message.typed_extension_protocol_options {
        let within = |e: Invalid| e.within(&format!("typed_extension_protocol_options[{name}]"));
        let options: HttpProtocolOptions = super::typed(any).map_err(within)?;
        connections.protocol =
            protocol(options.upstream_protocol_options.as_ref()).map_err(within)?;
        let common = options.common_http_protocol_options.unwrap_or_default();
        let max = common.max_requests_per_connection.map(|max| max.value);
        connections.max_requests = max.filter(|max| *max > 0);
        connections.idle_timeout = match &common.idle_timeout {
            None => None,
            Some(value) => {
                let field = "common_http_protocol_options.idle_timeout";
                let value = super::duration(value).map_err(|r| within(Invalid::new(field, r)))?;
                Some(value).filter(|value| !value.is_zero())
            }
        };
    }
    let options = message.upstream_connection_options.as_ref();
    let keepalive = options.and_then(|options| options.tcp_keepalive.as_ref());
    let seconds = |value: Option<UInt32Value>| value.map(|s| Duration::from_secs(s.value.into()));
    connections.keepalive = keepalive.map(|keepalive| Keepalive {
        probes: keepalive.keepalive_probes.map(|value| value.value),
        time: seconds(keepalive.keepalive_time),
        interval: seconds(keepalive.keepalive_interval),
    });
    Ok(connections)
}

fn discovery(message: &ClusterMessage) -> Result<Discovery, Invalid> {
    let kind = match message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind),
        _ => return Err(Invalid::new("type", "is required")),
    };
    match kind {
        Ok(DiscoveryType::OriginalDst) => Ok(Discovery::OriginalDst),
        Ok(DiscoveryType::Eds) => {
            let eds = message.eds_cluster_config.as_ref();
            let name = eds.map_or("", |eds| eds.service_name.as_str());
            let name = if name.is_empty() { &message.name } else { name };
            Ok(Discovery::Eds(name.to_owned()))
        }
        _ => Err(Invalid::new("type", "must be EDS or ORIGINAL_DST")),
    }
}

fn balance(message: &ClusterMessage) -> Result<Balance, Invalid> {
    match LbPolicy::try_from(message.lb_policy) {
        Ok(LbPolicy::RoundRobin | LbPolicy::ClusterProvided) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::LeastRequest) => Ok(Balance::LeastRequest),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        _ => Err(Invalid::new("lb_policy", "is not supported")),
    }
}

/// Reads Istio's auto mTLS: a match on `tlsMode: istio` is TLS, the match on nothing is plaintext.
fn tls(matches: &[TransportSocketMatch]) -> Result<Option<Tls>, Invalid> {
    let mut tls = None;
    for (i, socket) in matches.iter().enumerate() {
        let within = |invalid: Invalid| invalid.within(&format!("transport_socket_matches[{i}]"));
        let fields = socket.r#match.as_ref().map(|wanted| &wanted.fields);
        let wants_tls = match fields {
            None => false,
            Some(fields) if fields.is_empty() => false,
            Some(fields) => {
                let mode = fields.get("tlsMode").and_then(|value| value.kind.as_ref());
                match (mode, fields.len()) {
                    (Some(Kind::StringValue(mode)), 1) if mode == "istio" => true,
                    _ => return Err(within(Invalid::new("match", "must be tlsMode: istio"))),
                }
            }
        };
        let socket = super::required(socket.transport_socket.as_ref(), "transport_socket");
        let parsed = socket
            .and_then(|s| upstream_tls(s).map_err(|invalid| invalid.within("transport_socket")));
        match (wants_tls, parsed.map_err(within)?) {
            (true, Some(context)) => tls = Some(context),
            (false, None) => {}
            _ => {
                return Err(within(Invalid::new(
                    "match",
                    "must be TLS for tlsMode: istio only",
                )));
            }
        }
    }
    Ok(tls)
}

/// Reads a transport socket: TLS, or `None` for plaintext.
fn upstream_tls(socket: &TransportSocket) -> Result<Option<Tls>, Invalid> {
    let transport_socket::ConfigType::TypedConfig(any) =
        super::required(socket.config_type.as_ref(), "typed_config")?;
    if any.type_url == RawBuffer::type_url() {
        return Ok(None);
    }
    let context: UpstreamTlsContext = super::typed(any)?;
    if ServerName::try_from(context.sni.as_str()).is_err() {
        let reason = format!("{:?} is not the name of a server", context.sni);
        return Err(Invalid::new("typed_config.sni", reason));
    }
    let within = |e: Invalid| e.within("typed_config.common_tls_context");
    let common = context.common_tls_context.unwrap_or_default();
    Ok(Some(Tls {
        identities: identities(&common).map_err(within)?,
        sni: context.sni,
    }))
}

fn identities(common: &CommonTlsContext) -> Result<Vec<SpiffeId>, Invalid> {
    let Some(ValidationContextType::CombinedValidationContext(combined)) =
        &common.validation_context_type
    else {
        return Ok(Vec::new());
    };
    let context = combined.default_validation_context.as_ref();
    let matchers = context.map_or(&[][..], |c| &c.match_typed_subject_alt_names);
    let mut ids = Vec::new();
    for (i, san) in matchers.iter().enumerate() {
        let field = format!("combined_validation_context.match_typed_subject_alt_names[{i}]");
        let pattern = san.matcher.as_ref().and_then(|m| m.match_pattern.as_ref());
        let Some(MatchPattern::Exact(text)) = pattern else {
            return Err(Invalid::new(field, "must be exact"));
        };
        ids.push(SpiffeId::parse(text).map_err(|reason| Invalid::new(field, reason))?);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_that_tls_does_not_take_is_refused_and_never_plaintext() {
        let socket = |sni: &str| TransportSocket {
            config_type: Some(transport_socket::ConfigType::TypedConfig(leno_proto::pack(
                &UpstreamTlsContext {
                    sni: sni.to_owned(),
                    ..UpstreamTlsContext::default()
                },
            ))),
            ..TransportSocket::default()
        };
        let refused = upstream_tls(&socket("outbound_.80_._.10.0.0.1")).expect_err("refused");
        assert_eq!(refused.field, "typed_config.sni");
    }
}
