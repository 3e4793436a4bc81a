//! Workload metadata that sidecars exchange: a `google.protobuf.Struct`. On a connection of HTTP requests, it is
//! Istio's field `x-envoy-peer-metadata` of the first, in base64; on a TCP connection, it precedes the payload, framed
//! as in Envoy's metadata exchange.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use leno_proto::Any;
use leno_proto::pb::google::protobuf::{Struct, Value, value::Kind};
use leno_proto::prost::{Message, Name};

use super::endpoints::Workload;

/// Longest value that is read, in bytes.
const MAX: usize = 4096;
/// Longest name in it: that of a Kubernetes object.
const MAX_NAME: usize = 253;

/// Name of the field.
pub const FIELD: &str = "x-envoy-peer-metadata";
/// Magic number at the start of a frame.
const MAGIC: u32 = 0x3D23_0467;
/// Length of a frame's magic number and length field, in bytes.
pub const PREFACE: usize = 8;

/// Encodes `workload` as the field's value.
pub fn encode(workload: &Workload) -> Vec<u8> {
    BASE64
        .encode(describe(workload).encode_to_vec())
        .into_bytes()
}

/// Encodes `workload` as a frame.
pub fn frame(workload: &Workload) -> Vec<u8> {
    let metadata = Value {
        kind: Some(Kind::StructValue(describe(workload))),
    };
    let outer = Struct {
        fields: [(FIELD.to_owned(), metadata)].into(),
    };
    let any = Any {
        type_url: Struct::type_url(),
        value: outer.encode_to_vec(),
    };
    let body = any.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&MAGIC.to_be_bytes(), &length.to_be_bytes(), body.as_slice()].concat()
}

/// Length of the body after a frame's `preface`; `None` if it isn't a frame, or longer than is read.
pub fn frame_length(preface: [u8; PREFACE]) -> Option<usize> {
    let [m0, m1, m2, m3, l0, l1, l2, l3] = preface;
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).ok()?;
    (u32::from_be_bytes([m0, m1, m2, m3]) == MAGIC && length <= MAX).then_some(length)
}

/// Decodes the workload in a frame's body; `None` if it is malformed.
pub fn read_frame(body: &[u8]) -> Option<Workload> {
    let any = Any::decode(body).ok()?;
    let mut outer = Struct::decode(any.value.as_slice()).ok()?;
    match outer.fields.remove(FIELD)?.kind? {
        Kind::StructValue(metadata) => read(&metadata),
        _ => None,
    }
}

fn describe(workload: &Workload) -> Struct {
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
    message
}

/// A Struct of those `pairs` that have a value.
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

/// Decodes the workload in the field's `value`; `None` if it is malformed.
pub fn decode(value: &[u8]) -> Option<Workload> {
    let bytes = BASE64.decode(value.get(..value.len().min(MAX))?).ok()?;
    read(&Struct::decode(bytes.as_slice()).ok()?)
}

fn read(message: &Struct) -> Option<Workload> {
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
        name: of(message, "WORKLOAD_NAME")?,
        namespace: of(message, "NAMESPACE")?,
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
        assert_eq!(decode(&encode(&workload)).as_ref(), Some(&workload));
        let frame = frame(&workload);
        let (preface, body) = frame.split_first_chunk().expect("a preface");
        assert_eq!(frame_length(*preface), Some(body.len()));
        assert_eq!(read_frame(body), Some(workload));
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
        assert_eq!(frame_length(*b"GET / HT"), None);
        assert_eq!(
            frame_length([0x3D, 0x23, 0x04, 0x67, 0, 1, 0, 0]),
            None,
            "too long"
        );
        assert_eq!(read_frame(b"!"), None);
        assert_eq!(read_frame(&frame(&Workload::default())[PREFACE..]), None);
        assert_eq!(decode(b"!"), None);
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&named("")), None);
        assert_eq!(decode(&named("a\"} 1\n")), None);
        assert_eq!(decode(&named(&"a".repeat(300))), None);
        assert_eq!(decode(&named("a").repeat(1000)), None);
    }
}
