//! `leno validate`: what is wrong with YAML, without a control plane.

use std::path::PathBuf;

use crate::istio::{Limits, Severity};
use crate::source::compile::Settings;
use crate::source::file::{Options, Source};

/// Flags of `validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories of YAML.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Trust domain of the mesh.
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Namespace whose policies are for the whole mesh.
    #[arg(long, env = "LENO_ROOT_NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
}

/// Prints what is wrong; true when nothing is.
pub fn run(args: Args) -> bool {
    let mut good = true;
    for directory in args.paths {
        let settings = Settings {
            trust_domain: args.trust_domain.clone(),
            root_namespace: args.root_namespace.clone(),
            outbound_traffic_policy: crate::mesh::OutboundTrafficPolicy::default(),
        };
        let source = Source::new(Options {
            directory,
            last_good: None,
            settings,
            limits: Limits::default(),
        });
        for problem in source.read_once().problems.iter() {
            println!("{problem}");
            good &= problem.severity != Severity::Error;
        }
    }
    good
}
