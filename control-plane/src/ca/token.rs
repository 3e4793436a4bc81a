//! Join tokens: signed by the CA, for one service account, a limited time and a number of uses.
//!
//! A token is `base64url(payload) "." base64url(signature)`; the payload holds the fingerprints of the roots, so that
//! its bearer can verify the control plane at first contact.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::authority::Ca;
use super::identity::{Bearer, seconds};
use super::labels::{self, is_name};
use super::ledger::{Ledger, Payload};
use super::service_account;

/// Default lifetime of a token.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(3600);

/// Longest token, in bytes.
const MAX_TOKEN: usize = 8192;

impl Ca {
    /// Makes a token.
    ///
    /// # Errors
    /// When a name can't be part of an identity, or the key can't sign.
    pub fn token(
        &self,
        bearer: &Bearer,
        life: Duration,
        uses: u32,
        now: SystemTime,
    ) -> Result<String, String> {
        for name in [&bearer.namespace, &bearer.account] {
            if !is_name(name) {
                return Err(format!("{name:?} can't be part of an identity"));
            }
        }
        labels::check(&bearer.labels)?;
        let payload = Payload {
            id: format!("{:032x}", fastrand::u128(..)),
            namespace: bearer.namespace.clone(),
            service_account: bearer.account.clone(),
            labels: bearer.labels.clone(),
            expires: seconds(now + life),
            uses,
            roots: vec![self.root.fingerprint()],
        };
        let json = serde_json::to_vec(&payload).map_err(|error| error.to_string())?;
        let text = URL_SAFE_NO_PAD.encode(json);
        let signature = self.signer()?.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| "the root key can't sign".to_owned())?;
        let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
        match token.len() {
            length if length > MAX_TOKEN => Err(format!(
                "a token of {length} bytes; at most {MAX_TOKEN} are taken: it has too many labels"
            )),
            _ => Ok(token),
        }
    }

    /// Redeems a token, and returns its bearer: a service account's token, or a join token that is neither expired,
    /// used up nor revoked. A use is a (token, key): a proxy that missed the response may repeat the request with the
    /// same key.
    ///
    /// # Errors
    /// The reason when it isn't accepted.
    pub fn redeem(&self, token: &str, key: &[u8], now: SystemTime) -> Result<Bearer, String> {
        if service_account::is_one(token) {
            let none = "service account tokens are not accepted here: --service-account-jwks-file";
            let accepted = self.service_accounts.as_ref().ok_or(none)?;
            let (namespace, account) = accepted.verify(token, now)?;
            self.check_not_denied(&namespace, &account)?;
            return Ok(Bearer {
                namespace,
                account,
                labels: BTreeMap::new(),
            });
        }
        let payload = self.read_token(token)?;
        if seconds(now) >= payload.expires {
            return Err("the join token has expired".to_owned());
        }
        let (mut ledger, _alone) = self.ledger()?;
        ledger.refresh()?;
        ledger.check(&payload.namespace, &payload.service_account)?;
        ledger.redeem(&payload, key, now)?;
        Ok(Bearer {
            namespace: payload.namespace,
            account: payload.service_account,
            labels: payload.labels,
        })
    }

    /// Checks that an identity may get certificates.
    ///
    /// # Errors
    /// When it is denied, or the ledger can't be read.
    pub fn check_not_denied(&self, namespace: &str, account: &str) -> Result<(), String> {
        let (mut ledger, _alone) = self.ledger()?;
        ledger.refresh()?;
        ledger.check(namespace, account)
    }

    /// Revokes a token by its id (or by itself), or denies an identity `namespace/account` from now on.
    ///
    /// # Errors
    /// When the text is neither a token nor an identity, or the ledger can't be written.
    pub fn revoke(&self, what: &str) -> Result<String, String> {
        let (mut ledger, _alone) = self.ledger()?;
        ledger.refresh()?;
        let output = match what.split_once('/') {
            Some((namespace, account)) if is_name(namespace) && is_name(account) => {
                ledger.entries.denied.insert(what.to_owned());
                format!("{what} gets no certificate any more; what it has ends by itself")
            }
            _ => {
                let id = match self.read_token(what) {
                    Ok(payload) => payload.id,
                    Err(_) if what.len() == 32 => what.to_owned(),
                    Err(error) => return Err(error),
                };
                ledger.entries.revoked.insert(id.clone());
                format!("token {id} is worth nothing any more")
            }
        };
        ledger.save()?;
        Ok(output)
    }

    /// The ledger, with the file lock that keeps other processes out.
    fn ledger(&self) -> Result<(MutexGuard<'_, Ledger>, fs::File), String> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory().join("lock");
        let held = fs::File::create(&path).and_then(|file| file.lock().map(|()| file));
        let held = held.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((ledger, held))
    }

    fn read_token(&self, token: &str) -> Result<Payload, String> {
        const NOT: &str = "not a join token of this mesh";
        if token.len() > MAX_TOKEN {
            return Err(NOT.to_owned());
        }
        let (text, signature) = token.trim().split_once('.').ok_or(NOT)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| NOT)?;
        let signer = self.signer()?;
        let public = signer.public_key().as_ref();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public)
            .verify(text.as_bytes(), &signature)
            .map_err(|_| NOT)?;
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| NOT)?;
        serde_json::from_slice(&json).map_err(|_| NOT.to_owned())
    }

    fn signer(&self) -> Result<EcdsaKeyPair, String> {
        let key = self.root.key()?.serialize_der();
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key);
        signer.map_err(|error| format!("root key: {error}"))
    }
}
