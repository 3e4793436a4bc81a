//! This proxy as a node of xDS.

use leno_proto::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use leno_proto::pb::google::protobuf::{Struct, Value, value::Kind};

use crate::bootstrap::Bootstrap;

/// The node. `instance` tells this process from the workload's earlier and later ones.
pub(crate) fn node(bootstrap: &Bootstrap, instance: &str) -> Node {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Node {
        id: id(bootstrap),
        cluster: format!("{}.{}", bootstrap.workload, bootstrap.id.namespace()),
        user_agent_name: "leno-proxy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(version)),
        metadata: Some(Struct {
            fields: metadata(bootstrap, instance).into(),
        }),
        ..Node::default()
    }
}

/// Its id, as Istio has it: `sidecar~IP~workload.namespace~domain`.
pub(crate) fn id(bootstrap: &Bootstrap) -> String {
    let (ip, workload) = (bootstrap.ip, &bootstrap.workload);
    let namespace = bootstrap.id.namespace();
    format!("sidecar~{ip}~{workload}.{namespace}~{namespace}.svc.cluster.local")
}

fn text(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

/// Metadata of the xDS node: the proxy's instance id and, under Istio's names, its interception mode and ports.
fn metadata(bootstrap: &Bootstrap, instance: &str) -> [(String, Value); 3] {
    let mode = if bootstrap.capture.is_some() {
        "REDIRECT"
    } else {
        "NONE"
    };
    let ports = bootstrap
        .inbound
        .iter()
        .map(|inbound| inbound.listen.port());
    let ports: Vec<String> = ports
        .map(|port| format!("{{\"containerPort\":{port}}}"))
        .collect();
    let ports = format!("[{}]", ports.join(","));
    [
        ("INSTANCE", instance),
        ("INTERCEPTION_MODE", mode),
        ("POD_PORTS", &ports),
    ]
    .map(|(name, value)| (name.to_owned(), text(value)))
}
