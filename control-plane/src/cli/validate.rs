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
}

/// Prints what is wrong; true when nothing is.
pub fn run(args: Args) -> bool {
    let mut good = true;
    for directory in args.paths {
        let settings = Settings {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
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
