//! Access to a pod template, which is JSON: only the parts that concern a sidecar are looked at.

use serde_json::{Map, Value, json};

/// The name of the sidecar's container.
pub const PROXY: &str = "leno-proxy";
/// The annotation that lists the injected parts, for Kiali and people.
pub const STATUS: &str = "sidecar.istio.io/status";

/// The name of a container, for the paths of its probes.
pub(super) fn name_of(container: &Value) -> String {
    text(container, "/name")
}

pub(super) fn text(value: &Value, pointer: &str) -> String {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

/// The object at `key` of `parent`, made when it isn't there.
pub(super) fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    child(parent, key, json!({}), Value::is_object)
        .as_object_mut()
        .unwrap_or_else(|| unreachable!("made just now"))
}

/// The list at `key` of `parent`, made when it isn't there.
pub(super) fn list<'a>(parent: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    child(parent, key, json!([]), Value::is_array)
        .as_array_mut()
        .unwrap_or_else(|| unreachable!("made just now"))
}

fn child<'a>(
    parent: &'a mut Value,
    key: &str,
    empty: Value,
    fits: impl Fn(&Value) -> bool,
) -> &'a mut Value {
    if !parent.get(key).is_some_and(fits) {
        parent[key] = empty;
    }
    &mut parent[key]
}
