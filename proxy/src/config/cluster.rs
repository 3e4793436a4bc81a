//! `envoy.config.cluster.v3.Cluster`.

use std::collections::HashMap;
use std::time::Duration;

use leno_proto::Any;
use leno_proto::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster as ClusterMessage, OutlierDetection,
    cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy, TransportSocketMatch},
};
use leno_proto::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use leno_proto::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use leno_proto::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use leno_proto::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use leno_proto::pb::google::protobuf::value::Kind;
use leno_proto::prost::Name;

use super::{Invalid, Resource};
use crate::tls::SpiffeId;

/// Envoy's connect timeout for a cluster that sets none.
const DEFAULT_CONNECT: Duration = Duration::from_secs(5);

/// A set of endpoints that can serve the same requests.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name: `outbound|80|v1|user-service.default.svc.cluster.local`.
    pub name: String,
    /// Which object it comes from.
    pub rule: String,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How one is picked.
    pub balance: Balance,
    /// How long a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// How endpoints are spoken to that have a sidecar; without it, none are.
    pub tls: Option<Tls>,
    /// Limits and ejection: held and shown, not acted on by this version.
    pub pending: Pending,
}

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// A ClusterLoadAssignment of this name.
    Eds(String),
    /// The local app.
    OriginalDst,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests in flight for its weight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// By chance.
    Random,
}

/// How a peer with a sidecar is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Server name indication: `outbound_.80_.v1_.user-service.default.svc.cluster.local`.
    pub sni: String,
    /// Identities that any endpoint may have, unless the endpoint names its own.
    pub identities: Vec<SpiffeId>,
}

/// What is held for the next version and shown in `/config`.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    /// `circuit_breakers`, as they came.
    pub circuit_breakers: Option<CircuitBreakers>,
    /// `outlier_detection`, as it came.
    pub outlier_detection: Option<OutlierDetection>,
    /// `max_requests_per_connection` of the HTTP protocol options.
    pub max_requests_per_connection: Option<u32>,
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
            pending: Pending {
                circuit_breakers: message.circuit_breakers,
                outlier_detection: message.outlier_detection,
                max_requests_per_connection: max_requests(
                    &message.typed_extension_protocol_options,
                )?,
            },
            rule: rule.unwrap_or_else(|| message.name.clone()),
            name: message.name,
        })
    }
}

fn max_requests(options: &HashMap<String, Any>) -> Result<Option<u32>, Invalid> {
    let mut max = None;
    for (name, any) in options {
        let options: HttpProtocolOptions = super::typed(any)
            .map_err(|e| e.within(&format!("typed_extension_protocol_options[{name}]")))?;
        let common = options.common_http_protocol_options.unwrap_or_default();
        max = common
            .max_requests_per_connection
            .map(|max| max.value)
            .or(max);
    }
    Ok(max)
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

/// Istio's auto mTLS: a match on `tlsMode: istio` speaks TLS, the match on nothing speaks plaintext.
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

/// A transport socket: TLS, or `None` for plaintext.
fn upstream_tls(socket: &TransportSocket) -> Result<Option<Tls>, Invalid> {
    let transport_socket::ConfigType::TypedConfig(any) =
        super::required(socket.config_type.as_ref(), "typed_config")?;
    if any.type_url == RawBuffer::type_url() {
        return Ok(None);
    }
    let context: UpstreamTlsContext = super::typed(any)?;
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
