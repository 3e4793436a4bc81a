//! The pod with its sidecar: a native one, which starts before the app and ends after it.

use serde_json::{Value, json};

use super::annotations::SidecarOptions;
use super::probes;
use super::template::{PROXY, STATUS, list, object};
use crate::ca::service_account::AUDIENCE;

const INIT: &str = "leno-init";
const USER: u32 = 1337;
const STATE: &str = "/var/lib/leno";
const TOKEN: &str = "/var/run/secrets/leno";
/// The file with the CA's root, and its key in the ConfigMap: Istio's names.
const ROOT: &str = "root-cert.pem";
/// Lifetime of a service account's token, in seconds; the node replaces it before.
const LIFE: u64 = 3600;
/// Default of a pod's termination grace period, and the part of a period that the sidecar's drain leaves, in seconds.
const GRACE: (u64, u64) = (30, 5);

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

/// Adds the sidecar to `template`, a pod of `workload`.
pub(super) fn inject(
    template: &mut Value,
    workload: Option<&str>,
    wanted: &SidecarOptions,
    settings: &Settings,
) {
    annotate(template, wanted);
    let probers = match wanted.intercepts && wanted.rewrites_probes {
        true => probes::rewrite(&mut template["spec"]),
        false => None,
    };
    let sidecar = sidecar(template, workload, probers, wanted, settings);
    let spec = &mut template["spec"];
    let before = list(spec, "initContainers");
    let mut first = Vec::new();
    if wanted.intercepts {
        first.push(init(wanted, settings));
    }
    first.push(sidecar);
    before.splice(0..0, first);
    list(spec, "volumes").extend([
        json!({"name": "leno-state", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
        json!({"name": "leno-token", "projected": {"sources": sources(settings)}}),
    ]);
    // The group makes the token readable for the sidecar.
    let security = object(spec, "securityContext");
    security.entry("fsGroup").or_insert(USER.into());
}

/// Sources of the token's volume: a join token, which pins the CA's root itself, or another token with the root.
fn sources(settings: &Settings) -> Vec<Value> {
    let item = |path: &str| json!([{"key": path, "path": path}]);
    match &settings.join_token_secret {
        Some(name) => vec![json!({"secret": {"name": name, "items": item("token")}})],
        None => vec![
            json!({"serviceAccountToken": {
                "audience": AUDIENCE, "expirationSeconds": LIFE, "path": "token",
            }}),
            json!({"configMap": {"name": settings.ca_root_configmap, "items": item(ROOT)}}),
        ],
    }
}

/// Adds the labels and annotations that Istio's tools and Prometheus read.
fn annotate(template: &mut Value, wanted: &SidecarOptions) {
    let label = |name: &str| {
        let labels = template.pointer("/metadata/labels");
        labels
            .and_then(|labels| labels.get(name))
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let name = label("service.istio.io/canonical-name")
        .or_else(|| label("app.kubernetes.io/name"))
        .or_else(|| label("app"));
    let revision = label("service.istio.io/canonical-revision")
        .or_else(|| label("app.kubernetes.io/version"))
        .or_else(|| label("version"));
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    let metadata = &mut template["metadata"];
    let labels = object(metadata, "labels");
    if wanted.intercepts {
        // Without interception nothing ensures that connections to the app pass through the sidecar.
        labels.insert("security.istio.io/tlsMode".to_owned(), json!("istio"));
    }
    if let Some(name) = name {
        labels.insert("service.istio.io/canonical-name".to_owned(), json!(name));
    }
    let revision = revision.unwrap_or_else(|| "latest".to_owned());
    labels.insert(
        "service.istio.io/canonical-revision".to_owned(),
        json!(revision),
    );
    let containers = match wanted.intercepts {
        true => json!([INIT, PROXY]),
        false => json!([PROXY]),
    };
    let status = json!({"initContainers": containers, "volumes": ["leno-state", "leno-token"]});
    let annotations = object(metadata, "annotations");
    for (name, value) in [
        (STATUS, status.to_string()),
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", "15020".to_owned()),
        ("prometheus.io/path", "/stats/prometheus".to_owned()),
    ] {
        annotations.insert(name.to_owned(), json!(value));
    }
}

fn image<'a>(wanted: &'a SidecarOptions, settings: &'a Settings) -> &'a str {
    wanted.image.as_deref().unwrap_or(&settings.image)
}

fn resources(wanted: &SidecarOptions) -> Value {
    let resources = &wanted.resources;
    let mut all = json!({"requests": {
        "cpu": resources.cpu.as_deref().unwrap_or("10m"),
        "memory": resources.memory.as_deref().unwrap_or("16Mi"),
    }});
    // No CPU limit: being throttled costs a sidecar its tail latency.
    for (name, limit) in [
        ("cpu", &resources.cpu_limit),
        ("memory", &resources.memory_limit),
    ] {
        if let Some(limit) = limit {
            all["limits"][name] = json!(limit);
        }
    }
    all
}

fn init(wanted: &SidecarOptions, settings: &Settings) -> Value {
    let mut args = vec!["init".to_owned()];
    args.extend(wanted.init_flags.iter().cloned());
    json!({
        "name": INIT,
        "image": image(wanted, settings),
        "args": args,
        "resources": resources(&SidecarOptions::default()),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
        },
    })
}

fn env(
    template: &Value,
    workload: Option<&str>,
    probers: Option<Value>,
    wanted: &SidecarOptions,
    settings: &Settings,
) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let grace = template.pointer("/spec/terminationGracePeriodSeconds");
    let grace = grace.and_then(Value::as_u64).unwrap_or(GRACE.0);
    let mut env = vec![
        value("LENO_XDS_ADDRESS", &settings.xds_address),
        value("LENO_TRUST_DOMAIN", &settings.trust_domain),
        field("LENO_NAMESPACE", "metadata.namespace"),
        field("LENO_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("LENO_IP", "status.podIP"),
        match workload {
            Some(workload) => value("LENO_WORKLOAD", workload),
            None => field("LENO_WORKLOAD", "metadata.name"),
        },
        value("LENO_TOKEN_FILE", &format!("{TOKEN}/token")),
        // A directory of its own: the volume is open to the pod.
        value("LENO_STATE_DIR", &format!("{STATE}/state")),
        value(
            "LENO_DRAIN_TIMEOUT",
            &format!("{}s", grace.saturating_sub(GRACE.1).max(1)),
        ),
        value(
            "LENO_INTERCEPTION_MODE",
            if wanted.intercepts {
                "REDIRECT"
            } else {
                "NONE"
            },
        ),
    ];
    let has_root = settings.join_token_secret.is_none();
    let optional = [
        ("LENO_CA_ROOT", has_root.then(|| format!("{TOKEN}/{ROOT}"))),
        (
            "LENO_XDS_IDENTITY",
            Some(settings.xds_identity.clone()).filter(|id| !id.is_empty()),
        ),
        ("LENO_LOG", wanted.log_level.clone()),
        ("LENO_APP_METRICS", wanted.app_metrics.clone()),
        (
            "LENO_APP_PROBERS",
            probers.map(|probers| probers.to_string()),
        ),
    ];
    let optional = optional.into_iter();
    env.extend(optional.filter_map(|(name, text)| Some(value(name, &text?))));
    env
}

fn sidecar(
    template: &Value,
    workload: Option<&str>,
    probers: Option<Value>,
    wanted: &SidecarOptions,
    settings: &Settings,
) -> Value {
    let env = env(template, workload, probers, wanted, settings);
    let ready = json!({"path": "/healthz/ready", "port": 15020});
    json!({
        "name": PROXY,
        "image": image(wanted, settings),
        "args": ["run"],
        "env": env,
        "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
        "restartPolicy": "Always",
        // The app starts when this has succeeded.
        "startupProbe": {"httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600},
        "readinessProbe": {"httpGet": ready, "periodSeconds": 15, "timeoutSeconds": 3, "failureThreshold": 4},
        "resources": resources(wanted),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "runAsUser": USER,
        },
        "volumeMounts": [
            {"name": "leno-state", "mountPath": STATE},
            {"name": "leno-token", "mountPath": TOKEN, "readOnly": true},
        ],
    })
}
