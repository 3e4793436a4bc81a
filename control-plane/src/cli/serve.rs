//! `leno serve`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, Bootstrap};
use crate::ca::service_account::ServiceAccounts;
use crate::compile::Settings;
use crate::istio::Limits;
use crate::mesh::OutboundTrafficPolicy;

/// Flags of `serve`. Each may come from an environment variable, `LENO_…`, instead.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of YAML; watched.
    #[arg(long, env = "LENO_CONFIG")]
    pub config: PathBuf,
    /// Directory for the CA's key and what must survive a restart.
    #[arg(long, env = "LENO_STATE_DIR", default_value = "leno-state")]
    pub state_dir: PathBuf,
    /// Where proxies get xDS and certificates, over TLS.
    #[arg(long, env = "LENO_XDS_ADDRESS", default_value = "127.0.0.1:15012")]
    pub xds_address: SocketAddr,
    /// Where /ready, /metrics and /debug/status are.
    #[arg(
        long,
        env = "LENO_MONITORING_ADDRESS",
        default_value = "127.0.0.1:15014"
    )]
    pub monitoring_address: SocketAddr,
    /// Trust domain of the mesh.
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Namespace whose policies are for the whole mesh.
    #[arg(long, env = "LENO_ROOT_NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
    /// What becomes of connections to addresses that nothing is known of: ALLOW_ANY or REGISTRY_ONLY.
    #[arg(
        long,
        env = "LENO_OUTBOUND_TRAFFIC_POLICY",
        value_enum,
        ignore_case = true,
        default_value = "ALLOW_ANY"
    )]
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Longest life of workload certificates.
    #[arg(long, env = "LENO_MAX_CERTIFICATE_TTL", value_parser = crate::istio::scalar::duration, default_value = "24h")]
    pub max_certificate_ttl: Duration,
    /// A Kubernetes cluster's key set (`kubectl get --raw /openid/v1/jwks`): its service accounts' tokens for leno-ca get
    /// certificates.
    #[arg(long, env = "LENO_SERVICE_ACCOUNT_JWKS_FILE")]
    pub service_account_jwks_file: Option<PathBuf>,
    /// That cluster's issuer of tokens.
    #[arg(
        long,
        env = "LENO_SERVICE_ACCOUNT_ISSUER",
        default_value = "https://kubernetes.default.svc.cluster.local"
    )]
    pub service_account_issuer: String,
    /// Bytes of a YAML file.
    #[arg(long, env = "LENO_MAX_YAML_BYTES", default_value_t = 4 * 1024 * 1024)]
    pub max_yaml_bytes: usize,
    /// How deep a YAML document may nest.
    #[arg(long, env = "LENO_MAX_YAML_DEPTH", default_value_t = 64)]
    pub max_yaml_depth: usize,
    /// Aliases of a YAML document.
    #[arg(long, env = "LENO_MAX_YAML_ALIASES", default_value_t = 1000)]
    pub max_yaml_aliases: usize,
    /// Bytes of a message from a proxy.
    #[arg(long, env = "LENO_MAX_XDS_MESSAGE", default_value_t = 4 * 1024 * 1024)]
    pub max_xds_message: usize,
    /// DNS server to ask, as IP:port; default: the system's.
    #[arg(long, env = "LENO_DNS_SERVER")]
    pub dns_server: Option<SocketAddr>,
}

impl Args {
    fn into_bootstrap(self) -> Bootstrap {
        Bootstrap {
            config: self.config,
            state: self.state_dir,
            xds: self.xds_address,
            monitoring: self.monitoring_address,
            settings: Settings {
                trust_domain: self.trust_domain,
                root_namespace: self.root_namespace,
                outbound_traffic_policy: self.outbound_traffic_policy,
            },
            max_ttl: self.max_certificate_ttl,
            service_accounts: self.service_account_jwks_file.map(|keys| ServiceAccounts {
                keys,
                issuer: self.service_account_issuer,
            }),
            limits: Limits {
                bytes: self.max_yaml_bytes,
                depth: self.max_yaml_depth,
                aliases: self.max_yaml_aliases,
            },
            max_xds_message: self.max_xds_message,
            dns_server: self.dns_server,
        }
    }
}

/// Serves until a signal.
///
/// # Errors
/// When it can't start, or a task ends.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut bound = app::run(args.into_bootstrap()).await?;
    tracing::info!(xds = %bound.xds, monitoring = %bound.monitoring, "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        failed = bound.failed() => return failed,
    }
    bound.shutdown().await;
    Ok(())
}
