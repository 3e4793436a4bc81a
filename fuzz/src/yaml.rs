//! YAML as a mesh: any text is read, and what is read compiles and explains itself.

use std::path::PathBuf;
use std::sync::Arc;

use leno_control_plane::compile::{Settings, compile};
use leno_control_plane::istio::{Limits, read};
use leno_control_plane::mesh::OutboundTrafficPolicy;

/// Runs one execution.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let contents = read(&Arc::new(PathBuf::from("a.yaml")), text, &Limits::default());
    let settings = Settings {
        trust_domain: "cluster.local".to_owned(),
        root_namespace: "istio-system".to_owned(),
        outbound_traffic_policy: OutboundTrafficPolicy::AllowAny,
    };
    let objects: Vec<_> = contents.objects.into_iter().map(Arc::new).collect();
    let (_, problems) = compile(&settings, &objects, &contents.problems, &contents.pods);
    for problem in contents.problems.iter().chain(&problems) {
        assert!(!problem.to_string().is_empty());
    }
}
