//! `envoy.config.listener.v3.Listener`: an outbound one for each authority that is dialled, and one inbound one.

use leno_proto::pb::envoy::config::core::v3::{TrafficDirection, transport_socket};
use leno_proto::pb::envoy::config::listener::v3::{
    Filter as FilterMessage, FilterChain, FilterChainMatch, Listener as ListenerMessage, filter,
};
use leno_proto::pb::envoy::extensions::filters::http::{
    rbac::v3::Rbac as HttpRbac, router::v3::Router,
};
use leno_proto::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
    },
    rbac::v3::Rbac as NetworkRbac,
    tcp_proxy::v3::{TcpProxy, tcp_proxy},
};
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use leno_proto::prost::Name;

use super::endpoints::Workload;
use super::rbac::Rbac;
use super::route::RouteConfig;
use super::{Invalid, Resource};

/// Filter chains for connections to one authority, or to this workload.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name: an authority such as `user-service:80`, or `virtualInbound`.
    pub name: String,
    /// Direction of its connections.
    pub direction: Direction,
    /// Filter chains; the most specific match wins.
    pub chains: Vec<Chain>,
    /// Filter chain for connections that match no other.
    pub default_chain: Option<Chain>,
}

/// Direction of a Listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the app.
    Outbound,
    /// To the app.
    Inbound,
}

/// One filter chain.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Match on connections.
    pub matches: ChainMatch,
    /// True if it terminates mutual TLS.
    pub tls: bool,
    /// Object that decided on its mTLS mode.
    pub rule: String,
    /// True if the port's protocol isn't declared, so that it is detected.
    pub is_undeclared: bool,
    /// Workload that they reach, for metrics.
    pub workload: Workload,
    /// The service that they reach, for metrics.
    pub service: String,
    /// Terminal filter.
    pub filter: Filter,
    /// Policies, in the order of their filters.
    pub policies: Vec<Rbac>,
}

/// Match of a filter chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// Workload port; `None`: any.
    pub port: Option<u16>,
    /// True for a connection that begins with a TLS handshake, false for any other; `None`: either.
    pub tls: Option<bool>,
    /// ALPN protocols of which the client must offer one; empty: any.
    pub alpn: Vec<String>,
}

/// Terminal filter of a chain.
#[derive(Debug, Clone)]
pub enum Filter {
    /// HTTP, routed by the RouteConfiguration of this name.
    HttpNamed(String),
    /// HTTP, routed by these routes.
    HttpInline(RouteConfig),
    /// Opaque TCP for this cluster.
    Tcp(String),
}

impl Resource for Listener {
    type Message = ListenerMessage;

    fn name(&self) -> &str {
        &self.name
    }

    fn validate(message: ListenerMessage) -> Result<Listener, Invalid> {
        super::named(&message.name)?;
        let direction = match TrafficDirection::try_from(message.traffic_direction) {
            Ok(TrafficDirection::Outbound) => Direction::Outbound,
            Ok(TrafficDirection::Inbound) => Direction::Inbound,
            _ => {
                let reason = "must be INBOUND or OUTBOUND";
                return Err(Invalid::new("traffic_direction", reason));
            }
        };
        let mut chains = Vec::new();
        for (i, chain) in message.filter_chains.into_iter().enumerate() {
            let valid = Chain::validate(chain);
            chains.push(valid.map_err(|e| e.within(&format!("filter_chains[{i}]")))?);
        }
        let default_chain = message.default_filter_chain.map(Chain::validate);
        let default_chain = default_chain.transpose();
        let listener = Listener {
            name: message.name,
            direction,
            chains,
            default_chain: default_chain.map_err(|e| e.within("default_filter_chain"))?,
        };
        listener.check()?;
        Ok(listener)
    }
}

impl Listener {
    fn check(&self) -> Result<(), Invalid> {
        if self.chains.is_empty() && self.default_chain.is_none() {
            return Err(Invalid::new("filter_chains", "is required"));
        }
        for (i, chain) in self.chains.iter().enumerate() {
            let earlier = self.chains[..i]
                .iter()
                .position(|c| c.matches == chain.matches);
            if let Some(earlier) = earlier {
                let field = format!("filter_chains[{i}].filter_chain_match");
                return Err(Invalid::new(
                    field,
                    format!("equals filter_chains[{earlier}]'s"),
                ));
            }
        }
        let one_plain = self.chains.len() == 1 && self.default_chain.is_none();
        if self.direction == Direction::Outbound && !one_plain {
            return Err(Invalid::new(
                "filter_chains",
                "an outbound Listener has exactly one",
            ));
        }
        Ok(())
    }

    /// Every chain.
    pub fn all_chains(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter().chain(&self.default_chain)
    }
}

impl Chain {
    fn validate(message: FilterChain) -> Result<Chain, Invalid> {
        let metadata = message.metadata.as_ref();
        let leno = |key| super::provenance(metadata, key).unwrap_or_default();
        let (rule, service) = (leno("rule"), leno("service"));
        let is_undeclared = leno("protocol") == "auto";
        let workload = Workload::of(metadata);
        let matches = message.filter_chain_match.map(chain_match).transpose();
        let tls = match message
            .transport_socket
            .and_then(|socket| socket.config_type)
        {
            None => false,
            Some(transport_socket::ConfigType::TypedConfig(any)) => {
                let within = |e: Invalid| e.within("transport_socket");
                downstream_tls(&super::typed(&any).map_err(within)?).map_err(within)?;
                true
            }
        };
        let (filter, policies) = filters(message.filters)?;
        Ok(Chain {
            matches: matches
                .map_err(|e| e.within("filter_chain_match"))?
                .unwrap_or_default(),
            tls,
            rule,
            is_undeclared,
            workload,
            service,
            filter,
            policies,
        })
    }
}

fn downstream_tls(context: &DownstreamTlsContext) -> Result<(), Invalid> {
    let required = context.require_client_certificate.as_ref();
    match required.is_some_and(|required| required.value) {
        true => Ok(()),
        false => Err(Invalid::new(
            "typed_config.require_client_certificate",
            "must be true: Leno terminates mutual TLS only",
        )),
    }
}

fn chain_match(message: FilterChainMatch) -> Result<ChainMatch, Invalid> {
    let port = message.destination_port.map(|port| port.value);
    let port = port.map(u16::try_from).transpose();
    let tls = match message.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(true),
        "raw_buffer" => Some(false),
        _ => {
            return Err(Invalid::new(
                "transport_protocol",
                "must be tls or raw_buffer",
            ));
        }
    };
    Ok(ChainMatch {
        port: port.map_err(|_| Invalid::new("destination_port", "must be at most 65535"))?,
        tls,
        alpn: message.application_protocols,
    })
}

/// Reads the filters of a chain: policies first, then exactly one terminal filter.
fn filters(messages: Vec<FilterMessage>) -> Result<(Filter, Vec<Rbac>), Invalid> {
    let last = messages.len().checked_sub(1);
    let last = last.ok_or_else(|| Invalid::new("filters", "is required"))?;
    let mut policies = Vec::new();
    for (i, message) in messages.into_iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("filters[{i}]"));
        let config = super::required(message.config_type, "typed_config").map_err(within)?;
        let filter::ConfigType::TypedConfig(any) = config else {
            return Err(within(Invalid::new("config_discovery", "is not supported")));
        };
        if any.type_url == NetworkRbac::type_url() {
            let rbac: NetworkRbac = super::typed(&any).map_err(within)?;
            let rules = super::required(rbac.rules, "typed_config.rules").map_err(within)?;
            policies.push(Rbac::validate(rules).map_err(within)?);
            continue;
        }
        if i != last {
            return Err(within(Invalid::new(
                "typed_config",
                "must be the last filter",
            )));
        }
        if any.type_url == TcpProxy::type_url() {
            return Ok((
                tcp(super::typed(&any).map_err(within)?).map_err(within)?,
                policies,
            ));
        }
        let (filter, more) = http(super::typed(&any).map_err(within)?)
            .map_err(|e| within(e.within("typed_config")))?;
        policies.extend(more);
        return Ok((filter, policies));
    }
    Err(Invalid::new(
        "filters",
        "must end with an HTTP connection manager or a TCP proxy",
    ))
}

fn tcp(message: TcpProxy) -> Result<Filter, Invalid> {
    match message.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            Ok(Filter::Tcp(name))
        }
        _ => Err(Invalid::new("typed_config.cluster", "is required")),
    }
}

fn http(message: HttpConnectionManager) -> Result<(Filter, Vec<Rbac>), Invalid> {
    let policies = http_filters(message.http_filters)?;
    let filter = match super::required(message.route_specifier, "rds")? {
        RouteSpecifier::Rds(rds) if !rds.route_config_name.is_empty() => {
            Filter::HttpNamed(rds.route_config_name)
        }
        RouteSpecifier::Rds(_) => {
            return Err(Invalid::new("rds.route_config_name", "is required"));
        }
        RouteSpecifier::RouteConfig(config) => {
            let config = RouteConfig::inline(config).map_err(|e| e.within("route_config"))?;
            Filter::HttpInline(config)
        }
        RouteSpecifier::ScopedRoutes(_) => {
            return Err(Invalid::new("scoped_routes", "is not supported"));
        }
    };
    Ok((filter, policies))
}

/// Reads policies, then the router: without it Envoy would accept the Listener and never answer a request.
fn http_filters(messages: Vec<HttpFilter>) -> Result<Vec<Rbac>, Invalid> {
    let mut policies = Vec::new();
    let mut ends_in_router = false;
    for (i, message) in messages.into_iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("http_filters[{i}]"));
        if ends_in_router {
            return Err(within(Invalid::new("", "stands after the router")));
        }
        let Some(http_filter::ConfigType::TypedConfig(any)) = message.config_type else {
            return Err(within(Invalid::new("typed_config", "is required")));
        };
        if any.type_url == Router::type_url() {
            ends_in_router = true;
            continue;
        }
        let rbac: HttpRbac = super::typed(&any).map_err(within)?;
        // Without rules the filter enforces nothing, as Envoy documents.
        if let Some(rules) = rbac.rules {
            let rules = Rbac::validate(rules).map_err(|e| e.within("typed_config.rules"));
            policies.push(rules.map_err(within)?);
        }
    }
    match ends_in_router {
        true => Ok(policies),
        false => Err(Invalid::new("http_filters", "must end with the router")),
    }
}
