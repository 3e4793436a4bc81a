//! `leno inject`: adds the sidecar to pods and to everything with a pod template, in YAML, offline.

mod annotations;
mod pod;
mod probes;

use serde_json::{Map, Value, json};

pub use annotations::Wanted;
pub use pod::{PROXY, STATUS};

/// Settings of injected sidecars: the image, the control plane, and the credentials for it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The image, which holds `leno-proxy`.
    pub image: String,
    /// The control plane, as host:port.
    pub xds_address: String,
    /// Its SPIFFE ID; empty for the default of the trust domain.
    pub xds_identity: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// A Secret with a join token (`token`), in place of the service account's own token.
    pub join_token_secret: Option<String>,
    /// A ConfigMap with the CA's root (`root-cert.pem`), which goes with the service account's own token.
    pub ca_root_configmap: String,
}

/// The result for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A sidecar was added.
    Injected,
    /// No sidecar was added, for this reason.
    Left(String),
}

/// The results for the objects of a file, by their names.
#[derive(Debug, Default)]
pub struct Report {
    /// `Kind/namespace/name`, and the result.
    pub objects: Vec<(String, Outcome)>,
    /// Unsupported options of objects.
    pub warnings: Vec<String>,
}

/// Adds the sidecar to `object`, or to each item of a List.
pub fn inject(object: &mut Value, settings: &Settings, report: &mut Report) {
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        for item in items {
            inject(item, settings, report);
        }
        return;
    }
    let name = describe(object);
    let owner = text(object, "/metadata/name");
    let kind = text(object, "/kind");
    let is_pod = kind == "Pod";
    let Some(template) = template(object) else {
        return;
    };
    // A pod is its own workload; other pods have the name of their owner.
    let workload = if is_pod || owner.is_empty() {
        None
    } else {
        Some(owner)
    };
    let wanted = Wanted::read(template, &name, &mut report.warnings);
    let outcome = match wanted.refusal(template) {
        Some(reason) => Outcome::Left(reason),
        None => {
            pod::inject(template, workload.as_deref(), &wanted, settings);
            Outcome::Injected
        }
    };
    report.objects.push((name, outcome));
}

/// The part of `object` that is a pod: itself, or its template.
fn template(object: &mut Value) -> Option<&mut Value> {
    let is_pod = text(object, "/kind") == "Pod";
    let places = [
        "/spec/jobTemplate/spec/template",
        "/spec/template",
        "/template",
    ];
    let place = match is_pod {
        true => "",
        false => places.into_iter().find(|place| {
            let containers = format!("{place}/spec/containers");
            object.pointer(&containers).is_some_and(Value::is_array)
        })?,
    };
    let template = object.pointer_mut(place)?;
    template.pointer("/spec/containers")?.as_array()?;
    Some(template)
}

fn describe(object: &Value) -> String {
    let part = |pointer| text(object, pointer);
    let name = match (part("/metadata/name"), part("/metadata/generateName")) {
        (name, generated) if name.is_empty() => generated,
        (name, _) => name,
    };
    match part("/metadata/namespace") {
        namespace if namespace.is_empty() => format!("{}/{name}", part("/kind")),
        namespace => format!("{}/{namespace}/{name}", part("/kind")),
    }
}

fn text(value: &Value, pointer: &str) -> String {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

/// The object at `key` of `parent`, made when it isn't there.
fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    child(parent, key, json!({}), Value::is_object)
        .as_object_mut()
        .unwrap_or_else(|| unreachable!("made just now"))
}

/// The list at `key` of `parent`, made when it isn't there.
fn list<'a>(parent: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
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

#[cfg(test)]
mod tests;
