//! The ledger of used and revoked tokens and of denied identities, on disk.
//!
//! File: `tokens.json` (0600); uses are kept until the token ends, the rest for good.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::identity::seconds;
use super::root::write_secret;

/// Payload of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Payload {
    /// Unique among tokens.
    pub id: String,
    /// The namespace of the identity.
    pub namespace: String,
    /// The service account of the identity.
    pub service_account: String,
    /// The workload's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Expiry, in seconds since 1970.
    pub expires: u64,
    /// Number of keys that it may get a certificate for.
    pub uses: u32,
    /// SHA-256 of the roots, in hexadecimal.
    pub roots: Vec<String>,
}

/// Used tokens, revoked tokens and denied identities, on disk: `leno token` works on it beside a running control plane.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    pub(super) entries: Entries,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Entries {
    /// Fingerprints of keys by token, with the token's expiry.
    #[serde(default)]
    used: BTreeMap<String, (u64, BTreeSet<String>)>,
    #[serde(default)]
    pub(super) revoked: BTreeSet<String>,
    #[serde(default)]
    pub(super) denied: BTreeSet<String>,
}

impl Ledger {
    pub(super) fn open(directory: &Path) -> Result<Ledger, String> {
        let mut ledger = Ledger {
            path: directory.join("tokens.json"),
            entries: Entries::default(),
        };
        ledger.refresh()?;
        Ok(ledger)
    }

    pub(super) fn refresh(&mut self) -> Result<(), String> {
        let path = self.path.display();
        match fs::read(&self.path) {
            Ok(json) => {
                let entries = serde_json::from_slice(&json);
                self.entries = entries.map_err(|error| format!("{path}: {error}"))?;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    pub(super) fn check(&self, namespace: &str, account: &str) -> Result<(), String> {
        let identity = format!("{namespace}/{account}");
        match self.entries.denied.contains(&identity) {
            true => Err(format!("{identity} was revoked")),
            false => Ok(()),
        }
    }

    pub(super) fn redeem(
        &mut self,
        payload: &Payload,
        key: &[u8],
        now: SystemTime,
    ) -> Result<(), String> {
        if self.entries.revoked.contains(&payload.id) {
            return Err("the join token was revoked".to_owned());
        }
        let now = seconds(now);
        self.entries.used.retain(|_, (expires, _)| *expires > now);
        let entry = self.entries.used.entry(payload.id.clone());
        let (_, keys) = entry.or_insert_with(|| (payload.expires, BTreeSet::new()));
        let key =
            URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key));
        if keys.contains(&key) {
            return Ok(());
        }
        if keys.len() >= payload.uses as usize {
            return Err("the join token has been used already".to_owned());
        }
        keys.insert(key);
        self.save()
    }

    pub(super) fn save(&self) -> Result<(), String> {
        let json =
            serde_json::to_string_pretty(&self.entries).map_err(|error| error.to_string())?;
        write_secret(&self.path, &json)
    }
}
