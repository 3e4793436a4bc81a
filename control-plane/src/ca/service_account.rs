//! Kubernetes' service account tokens as proof of identity: those that the cluster issues for our own audience, as
//! projected volumes hold them, verified against the cluster's key set (RFC 7517, RFC 7519). The cluster itself is not
//! asked, so a token is valid until it expires, even if its pod has ended before.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::SystemTime;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::identity::seconds;
use super::labels::is_name;

/// Audience that tokens must have; `leno inject` requests it from the cluster.
pub const AUDIENCE: &str = "leno-ca";
/// Longest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Largest key set, in bytes.
const MAX_KEYS: u64 = 256 * 1024;
/// Longest quote from a token in an error, in characters.
const MAX_TOLD: usize = 64;
/// Tolerated delay of our clock, in seconds: a token is valid from the moment it is issued.
const LATE: u64 = 60;

/// Verifier of the service account tokens of one cluster.
#[derive(Debug, Clone)]
pub struct ServiceAccounts {
    /// The cluster's key set, as `kubectl get --raw /openid/v1/jwks` prints it. Read again for each token, since clusters
    /// replace their keys.
    pub keys: PathBuf,
    /// The cluster's `--service-account-issuer`.
    pub issuer: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audiences,
    exp: u64,
    #[serde(default)]
    nbf: u64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default)]
    kid: Option<String>,
    /// Its use; only keys for signatures, or without a use, count.
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(flatten)]
    public: Public,
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum Public {
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "EC")]
    Ec { crv: String, x: String, y: String },
    /// A key type that isn't supported.
    #[serde(other)]
    Other,
}

/// Signature algorithm of a token (RFC 7518, section 3.1). Neither a shared secret nor `none` is accepted.
enum Algorithm {
    Rsa(&'static RsaParameters),
    Ec(&'static str, &'static EcdsaVerificationAlgorithm),
}

impl Algorithm {
    fn named(name: &str) -> Option<Algorithm> {
        Some(match name {
            "RS256" => Algorithm::Rsa(&RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Algorithm::Rsa(&RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Algorithm::Rsa(&RSA_PKCS1_2048_8192_SHA512),
            "ES256" => Algorithm::Ec("P-256", &ECDSA_P256_SHA256_FIXED),
            "ES384" => Algorithm::Ec("P-384", &ECDSA_P384_SHA384_FIXED),
            _ => return None,
        })
    }

    /// True when `signature` is that of `message` by `key`.
    fn verifies(&self, key: &Public, message: &[u8], signature: &[u8]) -> bool {
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        match (self, key) {
            (Algorithm::Rsa(parameters), Public::Rsa { n, e }) => {
                let (n, e) = (bytes(n), bytes(e));
                let key = RsaPublicKeyComponents { n: &n, e: &e };
                key.verify(parameters, message, signature).is_ok()
            }
            (Algorithm::Ec(curve, algorithm), Public::Ec { crv, x, y }) if crv == curve => {
                // An uncompressed point (SEC 1, section 2.3.3).
                let point = [&[4][..], &bytes(x), &bytes(y)].concat();
                let key = UnparsedPublicKey::new(*algorithm, point);
                key.verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// True for a bearer token in the form of a JWT, of three parts: join tokens have two.
pub(super) fn is_one(token: &str) -> bool {
    token.split('.').count() == 3
}

impl ServiceAccounts {
    /// Verifies a token; returns its `(namespace, account)`.
    ///
    /// # Errors
    /// The reason when it isn't accepted.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<(String, String), String> {
        let wrong = |why: String| format!("service account token: {why}");
        self.check(token.trim(), seconds(now)).map_err(wrong)
    }

    fn check(&self, token: &str, now: u64) -> Result<(String, String), String> {
        const NOT: &str = "it is none";
        if token.len() > MAX_TOKEN {
            return Err(format!("it is longer than {MAX_TOKEN} bytes"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(NOT)?;
        let (header, claims) = signed.split_once('.').ok_or(NOT)?;
        let header: Header = part(header).ok_or(NOT)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| NOT)?;
        self.check_signature(&header, signed.as_bytes(), &signature)?;
        let claims: Claims = part(claims).ok_or("its claims are not those of a service account")?;
        if claims.iss != self.issuer {
            let own = &self.issuer;
            return Err(format!("its issuer is {}, not {own}", told(&claims.iss)));
        }
        let is_ours = match &claims.aud {
            Audiences::One(audience) => audience == AUDIENCE,
            Audiences::Many(audiences) => audiences.iter().any(|one| one == AUDIENCE),
        };
        if !is_ours {
            return Err(format!("it is not for {AUDIENCE}"));
        }
        if now >= claims.exp {
            return Err(format!("it ended {} s ago", now - claims.exp));
        }
        if now + LATE < claims.nbf {
            let early = claims.nbf - now;
            return Err(format!(
                "it begins in {early} s: one of the clocks is wrong"
            ));
        }
        let (namespace, account) = (
            claims.kubernetes.namespace,
            claims.kubernetes.serviceaccount.name,
        );
        let is_whole = is_name(&namespace) && is_name(&account);
        if !is_whole || claims.sub != format!("system:serviceaccount:{namespace}:{account}") {
            return Err(format!("its subject is {}", told(&claims.sub)));
        }
        Ok((namespace, account))
    }

    fn check_signature(
        &self,
        header: &Header,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), String> {
        let name = &header.alg;
        let refused = || format!("{} is not accepted", told(name));
        let algorithm = Algorithm::named(name).ok_or_else(refused)?;
        let keys = self.keys().map_err(|error| {
            tracing::error!(error, "no service account token can be verified");
            "the cluster's keys can't be read"
        })?;
        // A token without `kid` may be signed by any key.
        let may_be = |key: &&Key| header.kid.is_none() || key.kid == header.kid;
        let mut candidates = keys.iter().filter(may_be).peekable();
        if candidates.peek().is_none() {
            let kid = told(header.kid.as_deref().unwrap_or_default());
            return Err(format!("the cluster has no key {kid}"));
        }
        match candidates.any(|key| algorithm.verifies(&key.public, signed, signature)) {
            true => Ok(()),
            false => Err("no key of the cluster signed it".to_owned()),
        }
    }

    fn keys(&self) -> Result<Vec<Key>, String> {
        let wrong = |error: String| format!("{}: {error}", self.keys.display());
        let mut json = Vec::new();
        let limit = MAX_KEYS + 1;
        let read = File::open(&self.keys).and_then(|file| file.take(limit).read_to_end(&mut json));
        read.map_err(|error| wrong(error.to_string()))?;
        if json.len() as u64 > MAX_KEYS {
            return Err(wrong(format!("larger than {MAX_KEYS} bytes")));
        }
        let set: KeySet =
            serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
        // A key that can't be parsed is no reason to do without the others.
        let keys = set.keys.into_iter();
        let keys = keys.filter_map(|key| serde_json::from_value::<Key>(key).ok());
        let signs = |key: &Key| {
            key.purpose
                .as_deref()
                .is_none_or(|purpose| purpose == "sig")
        };
        Ok(keys.filter(signs).collect())
    }

    /// Checks that the key set can be read now.
    ///
    /// # Errors
    /// The reason when it can't.
    pub fn check_readable(&self) -> Result<(), String> {
        self.keys().map(drop)
    }
}

/// The beginning of a token's value, for an error.
fn told(text: &str) -> String {
    text.chars().take(MAX_TOLD).collect()
}

fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    let json = URL_SAFE_NO_PAD.decode(text).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    };
    use serde_json::json;

    use super::*;

    /// A cluster: its two keys, and the file with their public halves.
    struct Cluster {
        rsa: RsaKeyPair,
        ec: EcdsaKeyPair,
        accounts: ServiceAccounts,
    }

    fn encoded(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    impl Cluster {
        fn new() -> Cluster {
            let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
            let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
            let (public, point) = (rsa.public_key(), ec.public_key().as_ref());
            let keys = json!({"keys": [
                {"kty": "oct", "kid": "secret", "k": "AAAA"},
                {"kty": "RSA", "kid": "broken"},
                {"kty": "RSA", "kid": "other", "use": "enc", "n": "AAAA", "e": "AQAB"},
                {"kty": "RSA", "kid": "r", "use": "sig", "alg": "RS256",
                 "n": encoded(public.modulus().big_endian_without_leading_zero()),
                 "e": encoded(public.exponent().big_endian_without_leading_zero())},
                {"kty": "EC", "kid": "e", "crv": "P-256", "x": encoded(&point[1..33]), "y": encoded(&point[33..])},
            ]});
            let path = std::env::temp_dir().join(format!("leno-jwks-{:016x}", fastrand::u64(..)));
            std::fs::write(&path, keys.to_string()).expect("written");
            let issuer = "https://kubernetes.default.svc.cluster.local".to_owned();
            Cluster {
                rsa,
                ec,
                accounts: ServiceAccounts { keys: path, issuer },
            }
        }

        /// A token as the cluster makes it, but for what `change` does to its claims.
        fn token(&self, header: &Value, change: impl FnOnce(&mut Value)) -> String {
            let mut claims = json!({
                "aud": ["leno-ca"], "exp": 4600, "iat": 1000, "nbf": 1000,
                "iss": self.accounts.issuer, "sub": "system:serviceaccount:shop:orders",
                "kubernetes.io": {
                    "namespace": "shop", "pod": {"name": "orders-1", "uid": "1"},
                    "serviceaccount": {"name": "orders", "uid": "2"}},
            });
            change(&mut claims);
            let text = [header, &claims]
                .map(|part| encoded(part.to_string()))
                .join(".");
            let (random, message) = (SystemRandom::new(), text.as_bytes());
            let signature = match header["alg"].as_str() {
                Some("RS256") => {
                    let mut signature = vec![0; self.rsa.public_modulus_len()];
                    let signed = self
                        .rsa
                        .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature);
                    signed.map(|()| signature).expect("signed")
                }
                Some("ES256") => self
                    .ec
                    .sign(&random, message)
                    .expect("signed")
                    .as_ref()
                    .to_vec(),
                _ => Vec::new(),
            };
            format!("{text}.{}", encoded(signature))
        }

        fn verify(&self, token: &str) -> Result<(String, String), String> {
            let now = UNIX_EPOCH + Duration::from_secs(2000);
            self.accounts.verify(token, now)
        }
    }

    impl Drop for Cluster {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.accounts.keys);
        }
    }

    #[test]
    fn the_clusters_keys_prove_a_service_account() {
        let cluster = Cluster::new();
        for header in [
            json!({"alg": "RS256", "kid": "r"}),
            json!({"alg": "RS256"}),
            json!({"alg": "ES256", "kid": "e", "typ": "JWT"}),
        ] {
            // The cluster's clock is somewhat ahead of ours.
            let token = cluster.token(&header, |claims| {
                claims["aud"] = json!("leno-ca");
                claims["nbf"] = json!(2010);
            });
            let found = cluster.verify(&format!("{token}\n"));
            assert_eq!(
                found,
                Ok(("shop".to_owned(), "orders".to_owned())),
                "{header}"
            );
        }
    }

    #[test]
    fn claims_that_do_not_fit_are_refused_with_the_reason() {
        let cluster = Cluster::new();
        let header = json!({"alg": "RS256", "kid": "r"});
        type Change = fn(&mut Value);
        let changes: [(&str, Change); 8] = [
            ("it is not for leno-ca", |c| c["aud"] = json!(["vault"])),
            ("its issuer is https://other", |c| {
                c["iss"] = json!("https://other")
            }),
            ("it ended 0 s ago", |c| c["exp"] = json!(2000)),
            ("it begins in 100 s", |c| c["nbf"] = json!(2100)),
            ("its subject is system:serviceaccount:shop:admin", |c| {
                c["sub"] = json!("system:serviceaccount:shop:admin");
            }),
            ("its subject is system:serviceaccount:a/b:orders", |c| {
                c["sub"] = json!("system:serviceaccount:a/b:orders");
                c["kubernetes.io"]["namespace"] = json!("a/b");
            }),
            ("not those of a service account", |c| {
                c["kubernetes.io"] = json!({})
            }),
            ("not those of a service account", |c| {
                c["exp"] = json!("never")
            }),
        ];
        for (words, change) in changes {
            let error = cluster
                .verify(&cluster.token(&header, change))
                .expect_err(words);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_the_clusters_keys_did_not_sign_is_refused() {
        let cluster = Cluster::new();
        let header = json!({"alg": "RS256", "kid": "r"});
        for (words, header) in [
            ("none is not accepted", json!({"alg": "none"})),
            (
                "HS256 is not accepted",
                json!({"alg": "HS256", "kid": "secret"}),
            ),
            ("has no key x", json!({"alg": "RS256", "kid": "x"})),
            ("has no key other", json!({"alg": "RS256", "kid": "other"})),
            ("signed it", json!({"alg": "RS256", "kid": "e"})),
            ("signed it", json!({"alg": "ES256", "kid": "r"})),
        ] {
            let error = cluster
                .verify(&cluster.token(&header, |_| {}))
                .expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        let other = Cluster::new().token(&header, |_| {});
        assert!(
            cluster
                .verify(&other)
                .expect_err("another's")
                .contains("signed it")
        );
        let good = cluster.token(&header, |_| {});
        let parts: Vec<&str> = good.split('.').collect();
        let claims = encoded(json!({"sub": "system:serviceaccount:shop:admin"}).to_string());
        for wrong in [
            format!("{}.{claims}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            "a.b.c".to_owned(),
            "..".to_owned(),
            "x".repeat(MAX_TOKEN + 1),
        ] {
            assert!(
                cluster.verify(&wrong).is_err(),
                "{}",
                &wrong[..20.min(wrong.len())]
            );
        }
        let _ = std::fs::remove_file(&cluster.accounts.keys);
        let error = cluster.verify(&good).expect_err("no keys");
        assert!(error.contains("can't be read"), "{error}");
    }
}
