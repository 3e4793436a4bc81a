//! Treatment of every field of every message that the proxy accepts: [`check`] walks the encoded bytes of a resource
//! and refuses fields that `fields.txt` doesn't allow.
//!
//! The invariant: nothing that was set is ever ignored unless the table says that ignoring it is harmless. prost drops
//! fields that it doesn't know, so the bytes are walked before they are decoded.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::Any;

/// Maximum nesting depth of messages. Envoy's own recursion (RBAC's `and_rules`) is bounded by it.
const MAX_DEPTH: usize = 32;

/// Treatment of a field that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Acted on.
    Honoured,
    /// Accepted; ignoring it changes nothing that a user can see.
    Harmless,
    /// Read and shown, not acted on yet.
    Pending,
    /// The resource is refused.
    Refused,
}

/// One field of one message.
#[derive(Debug)]
pub struct Field {
    /// Field number.
    pub number: u32,
    /// Field name, as in the .proto file.
    pub name: &'static str,
    /// Its treatment.
    pub class: Class,
    /// Type of its value, if the walk descends into it.
    pub inside: Option<ValueType>,
}

/// Type of a value that the walk descends into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// A message of this full name.
    Message(&'static str),
    /// A `google.protobuf.Any`, whose type URL names the message.
    Any,
}

/// A field that makes a resource unacceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Path of the field, such as `filter_chains[0].use_proxy_proto`. Empty for the resource as a whole.
    pub field: String,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

type Table = HashMap<&'static str, Vec<Field>>;

/// The whole table, by full message name.
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| parse(include_str!("../fields.txt")))
}

/// Checks every field that is set in `bytes`, an encoded message of `type_url`, however deep.
///
/// # Errors
/// The first field that is refused, unknown, of a type that isn't supported, or not well-formed.
pub fn check(type_url: &str, bytes: &[u8]) -> Result<(), Unsupported> {
    let name = type_url
        .strip_prefix("type.googleapis.com/")
        .unwrap_or(type_url);
    let mut path = Path(Vec::new());
    walk(name, bytes, &mut path).map_err(|reason| Unsupported {
        field: path.to_string(),
        reason,
    })
}

/// A version for a resource: a hash of its canonical form, in which the entries of maps are sorted. The encoder's bytes
/// won't do: it holds maps in hash order, which differs from run to run.
///
/// # Errors
/// When `bytes` isn't a well-formed message of a type in the table.
pub fn version(type_url: &str, bytes: &[u8]) -> Result<String, Unsupported> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let hash = digest(name, bytes, 0).map_err(|reason| Unsupported {
        field: String::new(),
        reason,
    })?;
    Ok(format!("{hash:016x}"))
}

fn digest(message: &str, mut bytes: &[u8], depth: usize) -> Result<u64, String> {
    let fields = table().get(message).filter(|_| depth <= MAX_DEPTH);
    let fields = fields.ok_or_else(|| format!("{message} is not supported"))?;
    let (mut entries, mut hasher) = (Vec::new(), DefaultHasher::new());
    while bytes.has_remaining() {
        let start = bytes;
        let (number, wire) = decode_key(&mut bytes).map_err(|_| malformed())?;
        let value = take_value(wire, &mut bytes)?;
        let field = fields.iter().find(|field| field.number == number);
        match field.and_then(|field| field.inside) {
            Some(ValueType::Message(inside)) if inside.ends_with("Entry") => {
                entries.push((number, digest(inside, value, depth + 1)?));
            }
            Some(ValueType::Message(inside)) => {
                (number, digest(inside, value, depth + 1)?).hash(&mut hasher);
            }
            Some(ValueType::Any) => {
                let any = Any::decode(value).map_err(|_| malformed())?;
                let inside = any.type_url.rsplit('/').next().unwrap_or_default();
                let inside = digest(inside, &any.value, depth + 1)?;
                (number, &any.type_url, inside).hash(&mut hasher);
            }
            None => start[..start.len() - bytes.len()].hash(&mut hasher),
        }
    }
    entries.sort_unstable();
    entries.hash(&mut hasher);
    Ok(hasher.finish())
}

fn parse(text: &'static str) -> Table {
    let mut table = Table::new();
    let (mut message, mut class) = ("", Class::Refused);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if !line.starts_with(' ') {
            message = line.trim();
            if !message.is_empty() {
                table.entry(message).or_default();
            }
            continue;
        }
        let fields = match line.trim().split_once(": ") {
            Some((word, fields)) => {
                class = class_of(word);
                fields
            }
            None => line,
        };
        let fields = fields.split(',').map(str::trim).filter(|f| !f.is_empty());
        let parsed = fields.filter_map(|field| parse_field(field, class));
        table.entry(message).or_default().extend(parsed);
    }
    table
}

fn class_of(word: &str) -> Class {
    match word {
        "honoured" => Class::Honoured,
        "harmless" => Class::Harmless,
        "pending" => Class::Pending,
        _ => Class::Refused,
    }
}

fn parse_field(text: &'static str, class: Class) -> Option<Field> {
    let (number, rest) = text.split_once(' ')?;
    let (name, inside) = match rest.split_once(" > ") {
        Some((name, "*")) => (name, Some(ValueType::Any)),
        Some((name, message)) => (name, Some(ValueType::Message(message))),
        None => (rest, None),
    };
    Some(Field {
        number: number.parse().ok()?,
        name,
        class,
        inside,
    })
}

fn walk(message: &str, mut bytes: &[u8], path: &mut Path) -> Result<(), String> {
    if path.0.len() > MAX_DEPTH {
        return Err(format!("nested more than {MAX_DEPTH} deep"));
    }
    let Some(fields) = table().get(message) else {
        return Err(format!("{message} is not supported"));
    };
    let mut seen: HashMap<u32, usize> = HashMap::new();
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(|_| malformed())?;
        let Some(field) = fields.iter().find(|field| field.number == number) else {
            return Err(format!("{message} has no field {number} that Leno knows"));
        };
        let index = seen.entry(number).or_default();
        path.0.push((field.name, *index));
        *index += 1;
        if field.class == Class::Refused {
            return Err("is not supported".to_owned());
        }
        let value = take_value(wire, &mut bytes)?;
        match field.inside {
            Some(ValueType::Message(inside)) => walk(inside, value, path)?,
            Some(ValueType::Any) => walk_any(value, path)?,
            None => {}
        }
        path.0.pop();
    }
    Ok(())
}

fn walk_any(mut bytes: &[u8], path: &mut Path) -> Result<(), String> {
    let (mut type_url, mut inside) = (&[][..], &[][..]);
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(|_| malformed())?;
        let value = take_value(wire, &mut bytes)?;
        match number {
            1 => type_url = value,
            2 => inside = value,
            _ => return Err(malformed()),
        }
    }
    let type_url = std::str::from_utf8(type_url).map_err(|_| malformed())?;
    let name = type_url.rsplit('/').next().unwrap_or_default();
    walk(name, inside, path)
}

/// The bytes of one value, taken off the front; empty for numbers.
fn take_value<'a>(wire: WireType, bytes: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let skip = match wire {
        WireType::Varint => {
            decode_varint(bytes).map_err(|_| malformed())?;
            return Ok(&[]);
        }
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => {
            let length = decode_varint(bytes).map_err(|_| malformed())?;
            usize::try_from(length).map_err(|_| malformed())?
        }
        WireType::StartGroup | WireType::EndGroup => return Err(malformed()),
    };
    let value = bytes.get(..skip).ok_or_else(malformed)?;
    bytes.advance(skip);
    Ok(if wire == WireType::LengthDelimited {
        value
    } else {
        &[]
    })
}

fn malformed() -> String {
    "is not a well-formed message".to_owned()
}

/// Position of the walk: field names with the index of their occurrence.
struct Path(Vec<(&'static str, usize)>);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, index)) in self.0.iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            write!(f, "{dot}{name}")?;
            if *index > 0 {
                write!(f, "[{index}]")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use prost_reflect::{DescriptorPool, Kind};

    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
    use crate::type_url;

    /// The descriptors that envoy-types ships beside its sources.
    fn descriptors() -> DescriptorPool {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .output()
            .expect("cargo runs");
        let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
        let at = text
            .match_indices("envoy-types-")
            .find_map(|(at, _)| {
                let start = text[..at].rfind('"')? + 1;
                let end = start + text[start..].find("/Cargo.toml")?;
                let dir = &text[start..end];
                (dir.starts_with('/') && !dir.contains('"')).then(|| dir.to_owned())
            })
            .expect("envoy-types is a dependency");
        let bytes = std::fs::read(format!("{at}/src/generated/types.bin")).expect("descriptors");
        DescriptorPool::decode(bytes.as_slice()).expect("a descriptor set")
    }

    #[test]
    fn every_field_of_every_accepted_message_is_classified() {
        let pool = descriptors();
        for (name, fields) in table() {
            let message = pool
                .get_message_by_name(name)
                .unwrap_or_else(|| panic!("{name} is not a message"));
            let ours: BTreeSet<_> = fields.iter().map(|f| (f.number, f.name)).collect();
            assert_eq!(ours.len(), fields.len(), "{name}: a field is listed twice");
            let declared: Vec<_> = message.fields().collect();
            let theirs: BTreeSet<_> = declared.iter().map(|f| (f.number(), f.name())).collect();
            assert_eq!(ours, theirs, "{name}: the table and the descriptor differ");
        }
    }

    #[test]
    fn every_accepted_message_field_is_looked_into() {
        let leaves = ["Duration", "BoolValue", "UInt32Value"];
        let pool = descriptors();
        for (name, fields) in table() {
            let message = pool.get_message_by_name(name).expect("checked above");
            for field in fields.iter().filter(|f| f.class != Class::Refused) {
                let declared = message.get_field(field.number).expect("checked above");
                let Kind::Message(inside) = declared.kind() else {
                    assert_eq!(field.inside, None, "{name}.{}", field.name);
                    continue;
                };
                let expected = match inside.full_name() {
                    "google.protobuf.Any" => Some(ValueType::Any),
                    full if leaves.contains(&full.trim_start_matches("google.protobuf.")) => None,
                    full => {
                        let (known, _) = table()
                            .get_key_value(full)
                            .unwrap_or_else(|| panic!("{full} has no table"));
                        Some(ValueType::Message(known))
                    }
                };
                assert_eq!(field.inside, expected, "{name}.{}", field.name);
            }
        }
    }

    #[test]
    fn a_refused_field_is_named_with_its_path() {
        let filter = |name: &str| Filter {
            name: name.to_owned(),
            config_type: None,
        };
        let mut listener = Listener {
            name: "a:80".to_owned(),
            filter_chains: vec![FilterChain {
                filters: vec![filter("one"), filter("two")],
                ..FilterChain::default()
            }],
            ..Listener::default()
        };
        assert_eq!(check(type_url::LISTENER, &listener.encode_to_vec()), Ok(()));
        listener.filter_chains[0].filters[1].config_type = Some(filter::ConfigType::TypedConfig(
            crate::pack(&Cluster::default()),
        ));
        listener.transparent = Some(crate::pb::google::protobuf::BoolValue { value: true });
        let error = check(type_url::LISTENER, &listener.encode_to_vec()).expect_err("refused");
        assert_eq!(error.field, "transparent");
    }

    #[test]
    fn a_version_does_not_depend_on_the_order_of_maps() {
        use crate::pb::envoy::config::core::v3::Metadata;
        use crate::pb::google::protobuf::{Struct, Value, value::Kind};
        let listener = |last: &str| {
            let text = |text: &str| Value {
                kind: Some(Kind::StringValue(text.to_owned())),
            };
            let fields = (0..20).map(|i| (format!("key{i}"), text(last)));
            let filter_metadata = (0..20).map(|i| {
                (
                    format!("filter{i}"),
                    Struct {
                        fields: fields.clone().collect(),
                    },
                )
            });
            let metadata = Metadata {
                filter_metadata: filter_metadata.collect(),
                ..Metadata::default()
            };
            Listener {
                metadata: Some(metadata),
                ..Listener::default()
            }
            .encode_to_vec()
        };
        let of = |bytes: &[u8]| version(type_url::LISTENER, bytes).expect("valid");
        let (a, b) = (listener("x"), listener("x"));
        assert_ne!(a, b, "two maps are encoded in different orders");
        assert_eq!(of(&a), of(&b));
        assert_ne!(of(&a), of(&listener("y")));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let error = check(type_url::CLUSTER, &[0x0a, 0xff, 0x01]).expect_err("refused");
        assert!(error.reason.contains("well-formed"), "{error}");
    }
}
