//! The wire types of Leno: Envoy's xDS v3 messages, Istio's certificate service, and Leno's few additions.
//!
//! Nothing here decides anything. Messages stop at `proxy::config` on one side and start at `control_plane::translate`
//! on the other; [`fields`] classifies every field of every message that the proxy accepts.

pub mod fields;

pub use envoy_types::pb;
pub use envoy_types::pb::google::protobuf::Any;
pub use prost;
pub use tonic;

/// `leno.v1`: Leno's additions to xDS on the wire.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod leno {
    tonic::include_proto!("leno.v1");
}

impl prost::Name for leno::Refused {
    const NAME: &'static str = "Refused";
    const PACKAGE: &'static str = "leno.v1";

    fn type_url() -> String {
        "type.googleapis.com/leno.v1.Refused".to_owned()
    }
}

/// `istio.v1.auth`: the certificate call, wire-compatible with Istio's.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `grpc.health.v1`: gRPC's health checking, for probes of apps.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// Type URLs of the resources that the stream carries.
pub mod type_url {
    /// `envoy.config.listener.v3.Listener`
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// `envoy.config.route.v3.RouteConfiguration`
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// `envoy.config.cluster.v3.Cluster`
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    pub const ENDPOINTS: &str =
        "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

    /// Every type, in xDS's order of updates (make before break): secrets, clusters, endpoints, listeners, routes.
    pub const ALL: [&str; 5] = [SECRET, CLUSTER, ENDPOINTS, LISTENER, ROUTE];

    /// The last part of a type URL: `Listener`, `Cluster`…
    pub fn short(type_url: &str) -> &str {
        type_url.rsplit('.').next().unwrap_or(type_url)
    }
}

/// Packs `message` with the type URL that its descriptor gives it.
pub fn pack<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Unpacks `any` as an `M`.
///
/// # Errors
/// When the type URL names another message, or the bytes aren't an `M`; the text says which.
pub fn unpack<M: prost::Message + prost::Name + Default>(any: &Any) -> Result<M, String> {
    if any.type_url != M::type_url() {
        return Err(format!("is a {}, not a {}", any.type_url, M::full_name()));
    }
    M::decode(any.value.as_slice()).map_err(|error| format!("cannot be decoded: {error}"))
}
