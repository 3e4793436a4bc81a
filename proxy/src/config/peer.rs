//! What a sidecar says of its workload to the one at the other end: Istio's `x-envoy-peer-metadata`, a
//! `google.protobuf.Struct` in base64, on the first request of a connection.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use leno_proto::pb::google::protobuf::{Struct, Value, value::Kind};
use leno_proto::prost::Message;

use super::endpoints::Workload;

/// Longest value that is read.
const MAX: usize = 4096;
/// Longest name in it: that of a Kubernetes object.
const MAX_NAME: usize = 253;

/// `workload` as the field's value.
pub fn encode(workload: &Workload) -> Vec<u8> {
    let labels = fields(&[("app", &workload.app), ("version", &workload.version)]);
    let labels = Value {
        kind: Some(Kind::StructValue(labels)),
    };
    let mut message = fields(&[
        ("WORKLOAD_NAME", &workload.name),
        ("NAMESPACE", &workload.namespace),
        ("CLUSTER_ID", "Kubernetes"),
    ]);
    message.fields.insert("LABELS".to_owned(), labels);
    BASE64.encode(message.encode_to_vec()).into_bytes()
}

/// What is known of `pairs`.
fn fields(pairs: &[(&str, &str)]) -> Struct {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let known = pairs.iter().filter(|(_, value)| !value.is_empty());
    Struct {
        fields: known
            .map(|(name, value)| ((*name).to_owned(), text(value)))
            .collect(),
    }
}

/// The workload that the field's `value` tells of; nothing when it isn't one that could be.
pub fn decode(value: &[u8]) -> Option<Workload> {
    let bytes = BASE64.decode(value.get(..value.len().min(MAX))?).ok()?;
    let message = Struct::decode(bytes.as_slice()).ok()?;
    let labels = match message.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => Some(labels),
        _ => None,
    };
    let of = |fields: &Struct, name: &str| match fields.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => is_name(text).then(|| text.clone()),
        _ => None,
    };
    let label = |name| labels.and_then(|labels| of(labels, name));
    Some(Workload {
        name: of(&message, "WORKLOAD_NAME")?,
        namespace: of(&message, "NAMESPACE")?,
        app: label("app").unwrap_or_default(),
        version: label("version").unwrap_or_default(),
    })
}

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_arrives_as_it_was_sent() {
        let workload = Workload {
            name: "orders-v1".to_owned(),
            namespace: "shop".to_owned(),
            app: "orders".to_owned(),
            version: String::new(),
        };
        assert_eq!(decode(&encode(&workload)), Some(workload));
    }

    #[test]
    fn rubbish_is_nobody() {
        let named = |name: &str| {
            encode(&Workload {
                name: name.to_owned(),
                namespace: "shop".to_owned(),
                ..Workload::default()
            })
        };
        assert_eq!(decode(b"!"), None);
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&named("")), None);
        assert_eq!(decode(&named("a\"} 1\n")), None);
        assert_eq!(decode(&named(&"a".repeat(300))), None);
        assert_eq!(decode(&named("a").repeat(1000)), None);
    }
}
