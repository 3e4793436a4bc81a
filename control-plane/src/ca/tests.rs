use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use rustls::pki_types::CertificateDer;

use super::*;

/// A directory of this test's own, removed at its end.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Temporary {
        let path = std::env::temp_dir().join(format!("leno-ca-{:016x}", fastrand::u64(..)));
        std::fs::create_dir_all(&path).expect("a directory");
        Temporary(path)
    }

    fn ca(&self) -> Ca {
        Ca::open(&self.0, "cluster.local", DEFAULT_TTL).expect("a CA")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ID: &str = "spiffe://cluster.local/ns/default/sa/web";

fn web(labels: &[(&str, &str)]) -> Bearer {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Bearer {
        namespace: "default".to_owned(),
        account: "web".to_owned(),
        labels: labels.iter().map(own).collect(),
    }
}

fn csr(name: &str) -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ASCII"))];
    params.is_ca = rcgen::IsCa::NoCa;
    params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("a request")
}

fn leaf(issued: &issue::Issued) -> Identity {
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(issued.chain[0].as_bytes()).expect("PEM");
    Identity::of(&der).expect("an identity")
}

#[test]
fn the_ca_decides_the_name_whatever_the_request_asks() {
    let directory = Temporary::new();
    let csr = csr("spiffe://cluster.local/ns/kube-system/sa/admin");
    let issued = directory
        .ca()
        .issue(&web(&[]), &csr, Duration::ZERO)
        .expect("issued");
    assert_eq!(leaf(&issued).id, ID);
    assert_eq!(issued.chain.len(), 2);
}

#[test]
fn a_life_is_what_was_asked_for_within_bounds() {
    let directory = Temporary::new();
    let ca = directory.ca();
    for (asked, granted) in [(0, 86_400), (30, 30), (10_000_000, 86_400), (1, 2)] {
        let issued = ca
            .issue(&web(&[]), &csr(ID), Duration::from_secs(asked))
            .expect("issued");
        let left = leaf(&issued)
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        // Certificates count whole seconds, and some time has passed.
        assert!(left.as_secs().abs_diff(granted) <= 2, "{asked}: {left:?}");
    }
}

#[test]
fn a_request_that_does_not_prove_its_key_is_refused() {
    let directory = Temporary::new();
    let good = csr(ID);
    let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
    let last = lines.len() - 2;
    lines[last] = lines[last].chars().rev().collect();
    let ca = directory.ca();
    assert!(
        ca.issue(&web(&[]), &lines.join("\n"), Duration::ZERO)
            .is_err()
    );
    assert!(ca.issue(&web(&[]), "rubbish", Duration::ZERO).is_err());
    assert!(
        ca.issue(&web(&[]), &"x".repeat(100_000), Duration::ZERO)
            .is_err()
    );
}

#[test]
fn a_root_survives_a_restart_and_its_key_is_its_owners() {
    let directory = Temporary::new();
    let pem = directory.ca().root_pem().to_owned();
    assert_eq!(directory.ca().root_pem(), pem);
    let key = directory.0.join("root-key.pem");
    let mode = std::fs::metadata(&key).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = Ca::open(&directory.0, "cluster.local", DEFAULT_TTL).expect_err("readable");
    assert!(error.contains("0600"), "{error}");
}

#[test]
fn a_token_is_for_one_identity_one_key_and_a_while() {
    let directory = Temporary::new();
    let (ca, now) = (directory.ca(), SystemTime::now());
    let token = ca
        .token(&web(&[]), Duration::from_secs(60), 1, now)
        .expect("a token");
    assert_eq!(ca.redeem(&token, b"key", now), Ok(web(&[])));
    assert!(
        ca.redeem(&token, b"key", now).is_ok(),
        "a lost answer can be asked for again"
    );
    assert!(
        ca.redeem(&token, b"other", now)
            .is_err_and(|e| e.contains("used already"))
    );
    let restarted = directory.ca();
    assert!(
        restarted
            .redeem(&token, b"other", now)
            .is_err_and(|e| e.contains("used already"))
    );
    let late = now + Duration::from_secs(61);
    assert!(
        ca.redeem(&token, b"key", late)
            .is_err_and(|e| e.contains("expired"))
    );
    let mut forged = token.clone();
    forged.replace_range(0..1, "f");
    assert!(ca.redeem(&forged, b"key", now).is_err());
    assert!(
        Temporary::new().ca().redeem(&token, b"key", now).is_err(),
        "another mesh's"
    );
    let nobody = Bearer {
        namespace: "a/b".to_owned(),
        ..web(&[])
    };
    assert!(ca.token(&nobody, Duration::ZERO, 1, now).is_err());
}

#[test]
fn what_is_revoked_gets_nothing_any_more() {
    let directory = Temporary::new();
    let (ca, now) = (directory.ca(), SystemTime::now());
    let token = ca
        .token(&web(&[]), Duration::from_secs(60), 5, now)
        .expect("a token");
    assert!(ca.redeem(&token, b"a", now).is_ok());
    // Another process, beside the control plane that runs.
    directory.ca().revoke(&token).expect("revoked");
    assert!(
        ca.redeem(&token, b"b", now)
            .is_err_and(|e| e.contains("revoked"))
    );
    assert!(ca.check_not_denied("default", "web").is_ok());
    directory.ca().revoke("default/web").expect("revoked");
    assert!(ca.check_not_denied("default", "web").is_err());
}

#[test]
fn a_tokens_labels_stand_in_each_certificate_that_it_leads_to() {
    let directory = Temporary::new();
    let (ca, now) = (directory.ca(), SystemTime::now());
    let labelled = web(&[
        ("app", "users"),
        ("app.kubernetes.io/name", "users"),
        ("empty", ""),
    ]);
    let token = ca
        .token(&labelled, Duration::from_secs(60), 1, now)
        .expect("a token");
    let bearer = ca.redeem(&token, b"key", now).expect("redeemed");
    assert_eq!(bearer, labelled);
    let issued = ca.issue(&bearer, &csr(ID), Duration::ZERO);
    let identity = leaf(&issued.expect("issued"));
    assert_eq!(
        (identity.id.as_str(), identity.labels),
        (ID, labelled.labels)
    );
    for wrong in [
        ("", "a"),
        ("a b", "c"),
        ("a", "b c"),
        ("a", "*"),
        ("a/", "b"),
        ("/a", "b"),
        ("*", "b"),
    ] {
        let refused = ca.token(&web(&[wrong]), Duration::ZERO, 1, now);
        assert!(
            refused.is_err_and(|e| e.contains("is not a label")),
            "{wrong:?}"
        );
    }
    let many: Vec<String> = (0..200)
        .map(|number| format!("name-of-a-label-{number:08}"))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "v")).collect();
    let refused = ca.token(&web(&many), Duration::ZERO, 1, now);
    assert!(refused.is_err_and(|e| e.contains("at most 4096")));
    let short: Vec<String> = (0..700).map(|number| format!("{number}")).collect();
    let short: Vec<(&str, &str)> = short.iter().map(|name| (name.as_str(), "v")).collect();
    let refused = ca.token(&web(&short), Duration::ZERO, 1, now);
    assert!(refused.is_err_and(|e| e.contains("too many labels")));
}
