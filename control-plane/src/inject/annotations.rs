//! A pod's options for its sidecar, from Istio's annotations and labels.

use serde_json::Value;

use super::template::{PROXY, STATUS};

/// A pod's options for its sidecar.
#[derive(Debug, Clone, Default)]
pub struct SidecarOptions {
    /// `sidecar.istio.io/inject`
    inject: Option<bool>,
    /// `sidecar.istio.io/proxyImage`
    pub image: Option<String>,
    /// `sidecar.istio.io/logLevel`
    pub log_level: Option<String>,
    /// `sidecar.istio.io/proxyCPU`, and so on: requests and limits.
    pub resources: Resources,
    /// `sidecar.istio.io/interceptionMode` is not NONE.
    pub intercepts: bool,
    /// Flags of `leno-proxy init`.
    pub init_flags: Vec<String>,
    /// `sidecar.istio.io/rewriteAppHTTPProbers` is not false.
    pub rewrites_probes: bool,
    /// Address and path of the app's own metrics, in the form of `--app-metrics`.
    pub app_metrics: Option<String>,
}

/// Resource requests and limits of a container.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// The CPU request.
    pub cpu: Option<String>,
    /// The memory request.
    pub memory: Option<String>,
    /// The CPU limit.
    pub cpu_limit: Option<String>,
    /// The memory limit.
    pub memory_limit: Option<String>,
}

const TRAFFIC: [(&str, &str); 6] = [
    ("includeInboundPorts", "--include-inbound-ports"),
    ("excludeInboundPorts", "--exclude-inbound-ports"),
    ("includeOutboundPorts", "--include-outbound-ports"),
    ("excludeOutboundPorts", "--exclude-outbound-ports"),
    ("includeOutboundIPRanges", "--include-outbound-ip-ranges"),
    ("excludeOutboundIPRanges", "--exclude-outbound-ip-ranges"),
];

/// Converts a log level of Istio's.
fn level(text: &str) -> Option<&'static str> {
    Some(match text {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        _ => return None,
    })
}

impl SidecarOptions {
    /// Reads the options of `template`; an unsupported one becomes a warning about the object `name`.
    pub fn read(template: &Value, name: &str, warnings: &mut Vec<String>) -> SidecarOptions {
        let mut wanted = SidecarOptions {
            intercepts: true,
            rewrites_probes: true,
            ..SidecarOptions::default()
        };
        let pairs = |of: &str| {
            let all = template.pointer(of).and_then(Value::as_object);
            let all = all.into_iter().flatten();
            all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        };
        for (key, value) in pairs("/metadata/annotations") {
            if !wanted.take(&key, &value) {
                let text = format!(
                    "{name}: annotation {key}: {value} is not supported, and means nothing here"
                );
                warnings.push(text);
            }
        }
        // The label is Istio's newer form, and takes precedence.
        let label = pairs("/metadata/labels").find(|(key, _)| key == "sidecar.istio.io/inject");
        wanted.inject = label.map(|(_, value)| value != "false").or(wanted.inject);
        wanted.metrics(template);
        wanted
    }

    /// Applies an annotation; false for one of Istio's that isn't supported.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let own = || Some(value.to_owned());
        if let Some(name) = key.strip_prefix("traffic.sidecar.istio.io/") {
            let known = TRAFFIC.iter().find(|(known, _)| *known == name);
            if let Some((_, flag)) = known {
                self.init_flags
                    .extend([(*flag).to_owned(), value.to_owned()]);
            }
            return known.is_some();
        }
        match key {
            "sidecar.istio.io/inject" => self.inject = Some(value != "false"),
            "sidecar.istio.io/proxyImage" => self.image = own(),
            "sidecar.istio.io/logLevel" => match level(value) {
                Some(level) => self.log_level = Some(level.to_owned()),
                None => return false,
            },
            "sidecar.istio.io/proxyCPU" => self.resources.cpu = own(),
            "sidecar.istio.io/proxyMemory" => self.resources.memory = own(),
            "sidecar.istio.io/proxyCPULimit" => self.resources.cpu_limit = own(),
            "sidecar.istio.io/proxyMemoryLimit" => self.resources.memory_limit = own(),
            "sidecar.istio.io/interceptionMode" => {
                self.intercepts = value != "NONE";
                return matches!(value, "NONE" | "REDIRECT");
            }
            "sidecar.istio.io/rewriteAppHTTPProbers" => self.rewrites_probes = value != "false",
            "sidecar.istio.io/nativeSidecar" | STATUS => {}
            key => return !key.contains("sidecar.istio.io/") && key != "proxy.istio.io/config",
        }
        true
    }

    /// Sets up scraping of the app's own metrics through the sidecar, if the annotations ask for scraping.
    fn metrics(&mut self, template: &Value) {
        let annotation = |name: &str| {
            let all = template.pointer("/metadata/annotations")?;
            all.get(format!("prometheus.io/{name}"))?.as_str()
        };
        if annotation("scrape") == Some("true") {
            let (port, path) = (
                annotation("port").unwrap_or("80"),
                annotation("path").unwrap_or("/metrics"),
            );
            let path = path.trim_start_matches('/');
            self.app_metrics = Some(format!("127.0.0.1:{port}/{path}"));
        }
    }

    /// The reason for leaving `template` without a sidecar, if there is one.
    pub fn skip_reason(&self, template: &Value) -> Option<String> {
        let is_true = |pointer| template.pointer(pointer) == Some(&Value::Bool(true));
        let has = |kind: &str| {
            let all = template
                .pointer(&format!("/spec/{kind}"))
                .and_then(Value::as_array);
            all.into_iter()
                .flatten()
                .any(|container| container["name"] == PROXY)
        };
        if self.inject == Some(false) {
            return Some("sidecar.istio.io/inject is false".to_owned());
        }
        if has("initContainers") || has("containers") {
            return Some("it has a sidecar already".to_owned());
        }
        is_true("/spec/hostNetwork").then(|| {
            "hostNetwork: its connections are the node's own, and can't be taken over".to_owned()
        })
    }
}
