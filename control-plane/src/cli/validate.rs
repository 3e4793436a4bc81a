//! `leno validate`: problems of YAML, without a control plane; and the objects that a running control plane rejects.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::status;
use crate::compile::Settings;
use crate::istio::Limits;
use crate::object::Severity;
use crate::source::file::{Options, Source};

/// Flags of `validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories of YAML as `leno serve` reads them; together they are one configuration.
    #[arg(required_unless_present = "control_plane")]
    pub paths: Vec<PathBuf>,
    /// Fail on warnings and notices as well: on kinds and files that aren't used, and on what hardly does what was meant.
    #[arg(long, env = "LENO_STRICT")]
    pub strict: bool,
    /// Monitoring address of a control plane that runs: tells which of its objects are not in force, and what runs instead.
    #[arg(long, env = "LENO_CONTROL_PLANE")]
    pub control_plane: Option<SocketAddr>,
    /// Trust domain of the mesh.
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Namespace whose policies are for the whole mesh.
    #[arg(long, env = "LENO_ROOT_NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
}

/// Prints all problems; false on an error or a rejected object, and with `--strict` on any problem.
///
/// # Errors
/// When the control plane doesn't answer.
pub async fn run(args: Args) -> Result<bool, String> {
    let mut good = true;
    if let Some(address) = args.control_plane {
        let status = status::fetch_status(address).await?;
        good &= status::print_rejected(&status);
    }
    if args.paths.is_empty() {
        return Ok(good);
    }
    let source = Source::new(Options {
        paths: args.paths,
        last_good: None,
        settings: Settings {
            trust_domain: args.trust_domain,
            root_namespace: args.root_namespace,
            outbound_traffic_policy: crate::mesh::OutboundTrafficPolicy::default(),
        },
        limits: Limits::default(),
    });
    let state = source.read_once();
    for problem in state.problems.iter() {
        println!("{problem}");
        good &= problem.severity != Severity::Error && !args.strict;
    }
    for closed in state
        .rejected
        .iter()
        .filter_map(|one| Some((one, one.closes()?)))
    {
        let (one, how) = closed;
        println!("{}: closed: {}: {how}", one.origin, one.key);
    }
    eprintln!("{}", state.counts);
    Ok(good)
}
