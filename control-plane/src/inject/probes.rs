//! Rewrites probes, which come from the node in plaintext and which STRICT would refuse: the node probes the sidecar,
//! on a port that isn't intercepted, and the sidecar probes the app.

use serde_json::{Map, Value, json};

use super::template::name_of;

/// The sidecar's port for probes, and the prefix of their paths.
const PORT: u16 = 15020;
const PREFIX: &str = "/app-health";

/// Redirects the probes of all containers of `spec` to the sidecar; returns the originals by path, as
/// `LENO_APP_PROBERS` takes them.
pub(super) fn rewrite(spec: &mut Value) -> Option<Value> {
    let mut probers = Map::new();
    for kind in ["initContainers", "containers"] {
        let containers = spec.get_mut(kind).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let (name, ports) = (name_of(container), container["ports"].clone());
            for (probe, word) in [
                ("livenessProbe", "livez"),
                ("readinessProbe", "readyz"),
                ("startupProbe", "startupz"),
            ] {
                let path = format!("{PREFIX}/{name}/{word}");
                let Some(probe) = container.get_mut(probe) else {
                    continue;
                };
                if let Some(asked) = original_probe(probe, &ports) {
                    redirect(probe, &path);
                    probers.insert(path, asked);
                }
            }
        }
    }
    (!probers.is_empty()).then_some(Value::Object(probers))
}

/// The original `probe`, with its port as a number: HTTP, gRPC, or a TCP connection. `None` for a command, which
/// doesn't use the network.
fn original_probe(probe: &Value, ports: &Value) -> Option<Value> {
    let timeout = probe
        .get("timeoutSeconds")
        .and_then(Value::as_u64)
        .unwrap_or(1);
    let (kind, handler) = ["httpGet", "tcpSocket", "grpc"]
        .into_iter()
        .find_map(|kind| Some((kind, probe.get(kind)?)))?;
    let mut handler = handler.clone();
    handler["port"] = json!(number(&handler["port"], ports)?);
    Some(json!({kind: handler, "timeoutSeconds": timeout}))
}

/// The number of a port that may be named.
fn number(port: &Value, ports: &Value) -> Option<u64> {
    if let Some(number) = port.as_u64() {
        return Some(number);
    }
    let name = port.as_str()?;
    let named = ports
        .as_array()?
        .iter()
        .find(|known| known["name"] == name)?;
    named["containerPort"].as_u64()
}

fn redirect(probe: &mut Value, path: &str) {
    if let Some(probe) = probe.as_object_mut() {
        probe.remove("tcpSocket");
        probe.remove("grpc");
        probe.insert("httpGet".to_owned(), json!({"path": path, "port": PORT}));
    }
}
