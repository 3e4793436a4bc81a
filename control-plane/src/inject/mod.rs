//! `leno inject`: adds the sidecar to pods and to everything with a pod template, in YAML, offline.

mod annotations;
mod pod;
mod probes;
mod template;

use serde_json::Value;

pub use annotations::SidecarOptions;
pub use pod::Settings;
use template::text;
pub use template::{PROXY, STATUS};

/// The result for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// A sidecar was added.
    Injected,
    /// No sidecar was added, for this reason.
    Skipped(String),
}

/// The results for the objects of a file, by their names.
#[derive(Debug, Default)]
pub struct Report {
    /// `Kind/namespace/name`, and the result.
    pub objects: Vec<(String, Injection)>,
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
    let Some(template) = template_of(object) else {
        return;
    };
    // A pod is its own workload; other pods have the name of their owner.
    let workload = if is_pod || owner.is_empty() {
        None
    } else {
        Some(owner)
    };
    let wanted = SidecarOptions::read(template, &name, &mut report.warnings);
    let outcome = match wanted.skip_reason(template) {
        Some(reason) => Injection::Skipped(reason),
        None => {
            pod::inject(template, workload.as_deref(), &wanted, settings);
            Injection::Injected
        }
    };
    report.objects.push((name, outcome));
}

/// The part of `object` that is a pod: itself, or its template.
fn template_of(object: &mut Value) -> Option<&mut Value> {
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

#[cfg(test)]
mod tests;
