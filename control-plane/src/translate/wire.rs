//! Small messages that all translations share.

use std::time::Duration;

use leno_proto::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, Metadata, SocketAddress,
    TransportSocket, address, config_source::ConfigSourceSpecifier, data_source::Specifier,
    socket_address::PortSpecifier, transport_socket,
};
use leno_proto::pb::envoy::config::listener::v3::{Filter, filter};
use leno_proto::pb::envoy::extensions::filters::http::router::v3::Router;
use leno_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use leno_proto::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use leno_proto::pb::google::protobuf::{self, Struct, Value, value::Kind};
use leno_proto::prost::{Message, Name};
use leno_proto::{Any, pack};

use crate::mesh::Client;
use crate::mesh::route::StringMatch;

/// The source of every resource: this ADS stream.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(
            ConfigSourceSpecifier::Ads(AggregatedConfigSource::default()),
        ),
        ..ConfigSource::default()
    }
}

/// The workload's own certificate. Envoy has it in its bootstrap, as a static secret.
pub(super) fn own_certificate(client: Client) -> SdsSecretConfig {
    SdsSecretConfig {
        name: "default".to_owned(),
        sds_config: (client != Client::Envoy).then(ads),
    }
}

/// A socket address.
pub(super) fn address((address, port): (&str, u16)) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    }
}

pub(super) fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    }
}

pub(super) fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn number(value: u32) -> protobuf::UInt32Value {
    protobuf::UInt32Value { value }
}

pub(super) fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    }
}

/// A `Struct` of texts, without empty ones.
pub(super) fn texts(pairs: &[(&str, &str)]) -> Struct {
    let fields = pairs
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| {
            let kind = Some(Kind::StringValue((*text).to_owned()));
            ((*name).to_owned(), Value { kind })
        });
    Struct {
        fields: fields.collect(),
    }
}

/// Leno's own metadata beside Envoy's fields, such as the rule and its object, for explanations and metrics.
pub(super) fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    Metadata {
        filter_metadata: [("leno".to_owned(), texts(pairs))].into(),
        ..Metadata::default()
    }
}

pub(super) fn filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(config))),
    }
}

pub(super) fn http_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(config))),
        ..HttpFilter::default()
    }
}

/// The last HTTP filter: without it Envoy accepts a listener and never answers.
pub(super) fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", &Router::default())
}

pub(super) fn socket(name: &str, config: Any) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// A string matcher; `None` when the string only has to be present.
pub(super) fn string(matching: &StringMatch) -> Option<StringMatcher> {
    let pattern = match matching {
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringMatch::Suffix(text) => MatchPattern::Suffix(text.clone()),
        StringMatch::Regex(text) => MatchPattern::SafeRegex(regex(text)),
        StringMatch::Present => return None,
    };
    Some(StringMatcher {
        match_pattern: Some(pattern),
        ..StringMatcher::default()
    })
}

pub(super) fn regex(text: &str) -> RegexMatcher {
    RegexMatcher {
        regex: text.to_owned(),
        ..RegexMatcher::default()
    }
}

/// TLS 1.3 for Envoy's upstream connections, as between sidecars: by default they use 1.2.
pub(super) fn tls_params(client: Client) -> Option<TlsParameters> {
    let version = TlsProtocol::TlSv13.into();
    (client == Client::Envoy).then(|| TlsParameters {
        tls_minimum_protocol_version: version,
        tls_maximum_protocol_version: version,
        ..TlsParameters::default()
    })
}

/// A matcher of a SPIFFE ID in a certificate.
pub(super) fn san(identity: &str) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: string(&StringMatch::Exact(identity.to_owned())),
        ..SubjectAltNameMatcher::default()
    }
}
