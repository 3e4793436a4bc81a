//! `leno token`: join tokens, made offline on the CA's directory.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Subcommand;

use crate::ca::{Bearer, Ca, DEFAULT_TTL};

/// Flags of `token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the CA, as given to `leno serve`.
    #[arg(
        long,
        env = "LENO_STATE_DIR",
        default_value = "leno-state",
        global = true
    )]
    pub state_dir: PathBuf,
    /// Trust domain of the mesh.
    #[arg(
        long,
        env = "LENO_TRUST_DOMAIN",
        default_value = "cluster.local",
        global = true
    )]
    pub trust_domain: String,
    /// What to do with tokens.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Print a token that gets a workload its first certificate.
    Create {
        /// Namespace of the workload.
        #[arg(long, default_value = "default")]
        namespace: String,
        /// Service account of the workload.
        #[arg(long)]
        service_account: String,
        /// A label of the workload, as NAME=VALUE: selectors find it by these, whether or not the registry has it.
        #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// How long the token is good for.
        #[arg(long, value_parser = crate::istio::scalar::duration, default_value = "1h")]
        expires: Duration,
        /// How many workloads it may be used by.
        #[arg(long, default_value_t = 1)]
        uses: u32,
    },
    /// Make a token, or an identity NAMESPACE/SERVICE-ACCOUNT, worth nothing from now on.
    Revoke {
        /// The token, its id, or the identity.
        what: String,
    },
}

/// Creates or revokes a token, and prints the result.
///
/// # Errors
/// When the CA can't be used, or a name is wrong.
pub fn run(args: Args) -> Result<(), String> {
    let ca = Ca::open(&args.state_dir, &args.trust_domain, DEFAULT_TTL)?;
    let output = match args.action {
        Action::Create {
            namespace,
            service_account,
            labels,
            expires,
            uses,
        } => {
            let given = labels.len();
            let bearer = Bearer {
                namespace,
                account: service_account,
                labels: labels.into_iter().collect(),
            };
            if bearer.labels.len() < given {
                return Err("--label: one name has two values".to_owned());
            }
            ca.token(&bearer, expires, uses, SystemTime::now())?
        }
        Action::Revoke { what } => ca.revoke(&what)?,
    };
    println!("{output}");
    Ok(())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE, such as app=users"))?;
    Ok((name.to_owned(), value.to_owned()))
}
