//! Resources for gRPC's library, which dials by name like a sidecar and takes the subset of xDS that gRFC A27 to A36 name: a
//! Listener with an `api_listener`, Clusters with round robin, and TLS by the certificate providers of its bootstrap.

use std::collections::BTreeSet;

use leno_proto::pack;
use leno_proto::pb::envoy::config::cluster::v3::{Cluster, cluster::LbPolicy};
use leno_proto::pb::envoy::config::listener::v3::{ApiListener, Listener};
use leno_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
    UpstreamTlsContext, common_tls_context::ValidationContextType,
};

use super::context::ROOTS;
use super::wire;

/// gRPC's Listener for an authority that it dials.
pub(super) fn grpc_listener(authority: &str, manager: &HttpConnectionManager) -> Listener {
    Listener {
        name: authority.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(pack(manager)),
        }),
        ..Listener::default()
    }
}

/// A Cluster as gRPC takes it.
pub(super) fn grpc_cluster(cluster: Cluster, identities: &BTreeSet<String>) -> Cluster {
    let provider = |name: &str| CertificateProviderPluginInstance {
        instance_name: "default".to_owned(),
        certificate_name: name.to_owned(),
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(provider("default")),
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    ca_certificate_provider_instance: Some(provider(ROOTS)),
                    match_typed_subject_alt_names: identities
                        .iter()
                        .map(|id| wire::san(id))
                        .collect(),
                    ..CertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    Cluster {
        lb_policy: LbPolicy::RoundRobin.into(),
        transport_socket: (!identities.is_empty())
            .then(|| wire::socket("envoy.transport_sockets.tls", pack(&context))),
        transport_socket_matches: Vec::new(),
        ..cluster
    }
}
