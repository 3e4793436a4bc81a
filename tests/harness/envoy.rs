//! Envoy as a client of our control plane.

use std::net::SocketAddr;
use std::path::Path;

/// Envoy's bootstrap for `node`, over one variant of xDS. Its certificate is in `directory`.
pub fn bootstrap(
    directory: &Path,
    xds: SocketAddr,
    variant: &str,
    node: &str,
    admin: SocketAddr,
) -> String {
    let (ip, port) = (xds.ip(), xds.port());
    let (admin, at) = (admin.port(), directory.display());
    format!(
        r#"
node: {{id: "{node}", cluster: own}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  ads_config:
    api_type: {variant}
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: leno}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  secrets:
  - name: default
    tls_certificate: &certificate
      certificate_chain: {{filename: {at}/cert.pem}}
      private_key: {{filename: {at}/key.pem}}
  clusters:
  - name: leno
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: leno
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {{tls_maximum_protocol_version: TLSv1_3}}
          tls_certificates: [*certificate]
          validation_context: {{trusted_ca: {{filename: {at}/root.pem}}}}
"#
    )
}
