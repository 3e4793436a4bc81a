//! `leno inject`: YAML in, YAML with sidecars out.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::inject::{self, Injection, Report, Settings};
use crate::istio::documents;

/// Most bytes of YAML that are read.
const MAX: u64 = 64 * 1024 * 1024;

/// Flags of `inject`. Each may come from an environment variable, `LENO_…`, instead.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file, or `-` for what is piped in.
    pub file: PathBuf,
    /// The sidecar's image.
    #[arg(long, env = "LENO_IMAGE", default_value = concat!("localhost/leno-proxy:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// The control plane, as host:port, as pods reach it.
    #[arg(
        long,
        env = "LENO_XDS_ADDRESS",
        default_value = "leno.leno-system.svc:15012"
    )]
    pub xds_address: String,
    /// The control plane's SPIFFE ID, where it isn't the trust domain's default.
    #[arg(long, env = "LENO_XDS_IDENTITY", default_value = "")]
    pub xds_identity: String,
    /// The mesh's trust domain.
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// A Secret whose key `token` is a join token, in place of the service account's own token.
    #[arg(long, env = "LENO_JOIN_TOKEN_SECRET")]
    pub join_token_secret: Option<String>,
    /// A ConfigMap whose key `root-cert.pem` is the CA's root; for service accounts' own tokens.
    #[arg(
        long,
        env = "LENO_CA_ROOT_CONFIGMAP",
        default_value = "leno-ca-root-cert"
    )]
    pub ca_root_configmap: String,
}

/// Prints the YAML with sidecars; the outcome of each object, and warnings, go to stderr.
///
/// # Errors
/// When the file can't be read, or isn't YAML, with the line and the reason.
pub fn run(args: Args) -> Result<()> {
    let name = args.file.display().to_string();
    let text = read(&args.file).with_context(|| name.clone())?;
    let settings = Settings {
        image: args.image,
        xds_address: args.xds_address,
        xds_identity: args.xds_identity,
        trust_domain: args.trust_domain,
        join_token_secret: args.join_token_secret,
        ca_root_configmap: args.ca_root_configmap,
    };
    let (out, report) = inject(&text, &name, &settings)?;
    print!("{out}");
    for (object, outcome) in &report.objects {
        match outcome {
            Injection::Injected => eprintln!("{object}: injected"),
            Injection::Skipped(reason) => eprintln!("{object}: not injected: {reason}"),
        }
    }
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn read(file: &PathBuf) -> Result<String> {
    let mut text = String::new();
    match file.as_os_str() == "-" {
        true => std::io::stdin().take(MAX).read_to_string(&mut text)?,
        false => std::fs::File::open(file)?
            .take(MAX)
            .read_to_string(&mut text)?,
    };
    ensure!((text.len() as u64) < MAX, "more than {MAX} bytes");
    Ok(text)
}

/// Every document of `text` with its sidecars.
///
/// # Errors
/// When a document of the file `name` isn't YAML, with its line and the reason.
pub fn inject(text: &str, name: &str, settings: &Settings) -> Result<(String, Report)> {
    let (mut out, mut report) = (String::new(), Report::default());
    for (line, document) in documents(text) {
        let options = serde_saphyr::options! {
            // As Kubernetes reads it: 0644 is a file's mode.
            legacy_octal_numbers: true,
            with_snippet: false,
        };
        let parsed = serde_saphyr::from_str_with_options(document, options);
        let mut object: Value = parsed.map_err(|error| {
            let at = error.location().map_or(1, |location| location.line());
            anyhow::anyhow!("{name}:{}: {error}", line + at)
        })?;
        inject::inject(&mut object, settings, &mut report);
        let written = serde_saphyr::to_string(&object).with_context(|| format!("{name}:{line}"))?;
        if !out.is_empty() {
            out.push_str("---\n");
        }
        let _ = writeln!(out, "{}", written.trim_end());
    }
    Ok((out, report))
}
