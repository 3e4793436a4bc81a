//! Renewal with a scripted CA and a paused clock, and the checks before a certificate is used.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::PathBuf;

use leno_rules::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, SanType,
};
use tokio::time::Instant;

use super::*;
use crate::control::channel::ControlPlane;
use crate::control::state_dir::StateDir;
use crate::drain::{self, Phase};

const HOUR: Duration = Duration::from_secs(3600);

fn id(account: &str) -> SpiffeId {
    SpiffeId::of("cluster.local", "default", account).expect("an id")
}

/// Renewal for `web`, without a token, in `state`.
fn renewal(state: Option<Arc<StateDir>>) -> Renewal {
    Renewal {
        options: Options {
            target: ControlPlane {
                address: "control-plane:15010".to_owned(),
                identity: id("leno"),
            },
            id: id("web"),
            token_file: None,
            ca_root: None,
            ttl: Duration::ZERO,
            state,
        },
        credentials: Credentials::new("cluster.local"),
        metrics: Metrics::new(1000).expect("metrics"),
    }
}

/// A state directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let unique = format!("leno-identity-{name}-{}", std::process::id());
        Directory(std::env::temp_dir().join(unique))
    }

    fn open(&self) -> Arc<StateDir> {
        Arc::new(StateDir::open(&self.0, &id("web")).expect("open"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl Ca {
    fn new() -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root").pem();
        let issuer = Issuer::new(params, key);
        Ca { issuer, root }
    }

    /// A certificate of `key` for `name`, valid from an hour ago until `ends`.
    fn leaf(&self, key: &csr::Key, name: &str, ends: SystemTime) -> String {
        let csr = key.request(&id("web")).expect("a request");
        let request = CertificateSigningRequestParams::from_pem(&csr).expect("a request");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ASCII"))];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = ends.into();
        let leaf = params.signed_by(&request.public_key, &self.issuer);
        leaf.expect("signed").pem()
    }

    /// Key and chain for `web`, valid for `lives`.
    fn certify(&self, lives: Duration) -> (csr::Key, Vec<String>) {
        let key = csr::Key::generate().expect("a key");
        let leaf = self.leaf(&key, id("web").as_str(), SystemTime::now() + lives);
        (key, vec![leaf, self.root.clone()])
    }
}

/// Runs the renewal until its `answers` are used up; returns the pauses between the calls, the first since the start.
async fn pauses(renewal: &Renewal, answers: &[Result<u64, ()>]) -> Vec<Duration> {
    let (called, left) = (RefCell::new(Vec::new()), Cell::new(answers));
    let (last, ended) = (Cell::new(Instant::now()), Cell::new(false));
    let obtain = async || {
        let now = Instant::now();
        (called.borrow_mut()).push(now - last.replace(now));
        let Some((answer, rest)) = left.get().split_first() else {
            ended.set(true);
            return std::future::pending().await;
        };
        left.set(rest);
        match answer {
            Ok(seconds) => Ok(Duration::from_secs(*seconds)),
            Err(()) => Err(Error::Unreachable("scripted".to_owned())),
        }
    };
    let run = renewal.renew_for_ever(obtain);
    let _ = timeout(1000 * HOUR, run).await;
    assert!(ended.get(), "it still waits");
    called.into_inner()
}

fn assert_within(pause: Duration, from: f64, to: f64) {
    // A timer has a resolution of a millisecond.
    let seconds = pause.as_secs_f64();
    assert!(
        from - 0.002 <= seconds && seconds <= to + 0.002,
        "{pause:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_about_half_way_through_its_life_again_and_again() {
    let pauses = pauses(&renewal(None), &[Ok(3600), Ok(3600), Ok(60), Ok(3600)]).await;
    assert_eq!(pauses[0], Duration::ZERO);
    for (pause, lives) in pauses[1..].iter().zip([3600.0, 3600.0, 60.0, 3600.0]) {
        assert_within(*pause, 0.45 * lives, 0.55 * lives);
    }
    assert_eq!(pauses.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn after_failures_it_waits_longer_up_to_half_a_minute_and_begins_anew_after_success() {
    let mut answers = vec![Err(()); 9];
    answers.extend([Ok(100), Err(()), Err(())]);
    let pauses = pauses(&renewal(None), &answers).await;
    let backoff = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0];
    for (pause, backoff) in pauses[1..10].iter().zip(backoff) {
        assert_within(*pause, backoff / 2.0, backoff);
    }
    assert_within(pauses[10], 45.0, 55.0);
    assert_within(pauses[11], 0.25, 0.5);
    assert_within(pauses[12], 0.5, 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_nearer_the_end_the_more_often_it_tries() {
    let ca = Ca::new();
    // (remaining lifetime, longest pause after many failures)
    for (lives, longest) in [(3600, 30.0), (80, 10.0), (16, 2.0), (2, 0.5)] {
        let renewal = renewal(None);
        let (key, chain) = ca.certify(Duration::from_secs(lives));
        renewal.install(key, &chain, true).expect("installed");
        let pauses = pauses(&renewal, &[Err(()); 9]).await;
        for pause in &pauses[8..] {
            assert_within(*pause, 0.0, longest);
            // The certificate's own clock goes on: a second or two may have passed.
            assert!(
                pause.as_secs_f64() > longest / 4.0 || lives < 10,
                "{pause:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_ends_with_the_proxy() {
    let (signal, watch) = drain::channel();
    let renewal = renewal(None);
    let metrics = Arc::clone(&renewal.metrics);
    let started = Instant::now();
    let end = async {
        sleep(HOUR).await;
        signal.set_phase(Phase::Ending);
    };
    tokio::join!(renewal.run(watch), end);
    assert_eq!(started.elapsed(), HOUR);
    assert_eq!(metrics.rotations.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_saved_certificate_is_used_while_it_is_good() {
    let (ca, directory) = (Ca::new(), Directory::new("restart"));
    let save = |key: &csr::Key, chain: Vec<String>| {
        let key = key.pem();
        let saved = SavedIdentity { key, chain };
        directory.open().save(FILE, &saved).expect("saved");
    };
    let (key, chain) = ca.certify(HOUR);
    save(&key, chain.clone());
    let restarted = renewal(Some(directory.open()));
    let half = pauses(&restarted, &[]).await[0];
    assert_within(half, 0.44 * 3600.0, 0.55 * 3600.0);
    assert_eq!(restarted.credentials.identity().expect("one").id, id("web"));

    // Anything else is as if nothing were there: a new one is obtained at once.
    let other = csr::Key::generate().expect("a key");
    let past = SystemTime::now() - Duration::from_secs(1);
    let expired = vec![ca.leaf(&key, id("web").as_str(), past), ca.root.clone()];
    let bad: [(&str, &dyn Fn()); 5] = [
        ("of another key", &|| save(&other, chain.clone())),
        ("expired", &|| save(&key, expired.clone())),
        ("no chain", &|| save(&key, Vec::new())),
        ("cut", &|| {
            save(&key, chain.clone());
            let file = directory.0.join(FILE);
            let whole = fs::read(&file).expect("a file");
            fs::write(&file, &whole[..whole.len() - 9]).expect("written");
        }),
        ("gone", &|| {
            fs::remove_file(directory.0.join(FILE)).expect("removed")
        }),
    ];
    for (case, save) in bad {
        save();
        let restarted = renewal(Some(directory.open()));
        assert_eq!(pauses(&restarted, &[]).await, [Duration::ZERO], "{case}");
        assert!(restarted.credentials.identity().is_none(), "{case}");
    }
}

#[test]
fn only_a_chain_for_this_workload_and_key_replaces_the_certificate() {
    let (ca, renewal) = (Ca::new(), renewal(None));
    let (key, chain) = ca.certify(HOUR);
    let lives = renewal.install(key, &chain, true).expect("installed");
    assert!(lives <= HOUR && lives > HOUR - Duration::from_secs(60));
    let first = renewal.credentials.identity().expect("one").serial.clone();

    let key = || csr::Key::generate().expect("a key");
    let (own, web) = (key(), id("web"));
    let in_an_hour = SystemTime::now() + HOUR;
    let past = SystemTime::now() - Duration::from_secs(1);
    let foreign = Ca::new();
    let with_root = |leaf: String| vec![leaf, ca.root.clone()];
    let named = |name: &str| with_root(ca.leaf(&own, name, in_an_hour));
    for (chain, reason) in [
        (
            named("spiffe://cluster.local/ns/default/sa/api"),
            "is not one of",
        ),
        (
            named("spiffe://elsewhere/ns/default/sa/web"),
            "is not of trust domain",
        ),
        (named("https://web"), "is not spiffe://"),
        (
            with_root(ca.leaf(&own, web.as_str(), past)),
            "it has expired",
        ),
        (with_root(ca.leaf(&key(), web.as_str(), in_an_hour)), "key"),
        (
            vec![
                foreign.leaf(&own, web.as_str(), in_an_hour),
                foreign.root.clone(),
            ],
            "certificate not valid",
        ),
        (
            vec![ca.leaf(&own, web.as_str(), in_an_hour)],
            "no leaf and root",
        ),
        (Vec::new(), "no leaf and root"),
        (
            with_root("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n".to_owned()),
            "",
        ),
        (with_root("not PEM".to_owned()), "no leaf and root"),
    ] {
        let copy = csr::Key::from_pem(&own.pem()).expect("a key");
        let error = renewal.install(copy, &chain, false).expect_err(reason);
        let Error::Unusable(words) = error else {
            panic!("{error}");
        };
        assert!(words.contains(reason), "{words} has not {reason}");
        let serial = &renewal.credentials.identity().expect("one").serial;
        assert_eq!(*serial, first, "{reason}");
    }
    assert_eq!(renewal.metrics.rotations.get(), 1);

    let (key, chain) = ca.certify(2 * HOUR);
    renewal.install(key, &chain, false).expect("installed");
    assert_ne!(renewal.credentials.identity().expect("one").serial, first);
    assert_eq!(renewal.metrics.rotations.get(), 2);
}
