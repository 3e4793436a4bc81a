//! A stand-in for a Kubernetes cluster, as far as its service accounts' tokens go.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use leno_control_plane::ca::service_account::{AUDIENCE, ServiceAccounts};
use serde_json::{Value, json};

use crate::Directory;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A cluster's signing key, and the directory of its key set.
pub struct Cluster {
    key: EcdsaKeyPair,
    directory: Directory,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster::new()
    }
}

impl Cluster {
    /// A cluster with a key of its own.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn new() -> Cluster {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let directory = Directory::new();
        let point = key.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|half| URL_SAFE_NO_PAD.encode(half));
        let key_set = json!({"keys": [{"kty": "EC", "kid": "1", "crv": "P-256", "x": x, "y": y}]});
        std::fs::write(directory.path().join("jwks"), key_set.to_string()).expect("written");
        Cluster { key, directory }
    }

    /// The control plane's settings for this cluster's tokens.
    pub fn accounts(&self) -> ServiceAccounts {
        ServiceAccounts {
            keys: self.directory.path().join("jwks"),
            issuer: ISSUER.to_owned(),
        }
    }

    /// The token of a service account, as a projected volume holds it.
    ///
    /// # Panics
    /// When it can't be signed.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("now")
            .as_secs();
        let claims = json!({
            "iss": ISSUER, "aud": [AUDIENCE], "iat": now, "nbf": now, "exp": now + 3600,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account}},
        });
        let header = json!({"alg": "ES256", "kid": "1"});
        let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let text = format!("{}.{}", part(&header), part(&claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), text.as_bytes())
            .expect("signed");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A directory with the token of an account and `root`, as an injected pod's volume holds them.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn volume(&self, namespace: &str, account: &str, root: &Path) -> PathBuf {
        let path = self.directory.path().join(format!("{namespace}-{account}"));
        std::fs::create_dir_all(&path).expect("a directory");
        std::fs::write(path.join("token"), self.token(namespace, account)).expect("written");
        std::fs::copy(root, path.join("root-cert.pem")).expect("written");
        path
    }
}
