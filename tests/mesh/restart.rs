//! A proxy that restarts while the control plane is gone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use leno_tests::client::get;
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{Directory, fresh_ip, until};
use tokio::time::Instant;

/// Flags of a proxy that keeps its state in `directory`.
fn flags(account: &str, directory: &Path, mesh: &Mesh) -> String {
    let state = directory.join(account);
    format!(
        "--xds-address {} --service-account {account} --state-dir {} ",
        mesh.xds,
        state.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_proxy_serves_before_the_control_plane_is_back() {
    let (ip, directory) = (fresh_ip(), Directory::new());
    let app = Upstream::named("app").await;
    let yaml = format!("{}{}", service("users", &[(ip, "v1")]), mtls("STRICT"));
    let mut mesh = Mesh::start(&yaml).await;
    let inbound = format!("--inbound {ip}:{PORT}={} ", app.address);
    let state =
        |account: &str| format!("--state-dir {} ", directory.path().join(account).display());
    let callee = mesh
        .proxy("users", &format!("{inbound}{}", state("users")))
        .await;
    let caller = mesh.proxy("web", &state("web")).await;
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    let kept = |account: &str| directory.path().join(account).join("configuration");
    for (account, words) in [("users", "virtualInbound"), ("web", "users:80")] {
        until("what runs is kept", || async {
            let text = std::fs::read_to_string(kept(account)).ok()?;
            text.contains(words).then_some(())
        })
        .await;
    }
    // Everything goes: the control plane with its directory, then both proxies at once.
    mesh.stop_control_plane().await;
    std::fs::remove_dir_all(mesh.state()).expect("removed");
    drop((caller, callee));
    let flags = |account: &str, more: &str| flags(account, directory.path(), &mesh) + more;
    let begun = Instant::now();
    let (callee, caller) = until("the addresses are free", || async {
        let callee = Proxy::try_start(&flags("users", &inbound))?;
        Some((callee, Proxy::start(&flags("web", ""))))
    })
    .await;
    until("they serve", || async {
        (get(caller.outbound, "users", "/").await.status == 200).then_some(())
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let seen = app.requests().pop().expect("a request");
    let cert = seen.header("x-forwarded-client-cert").expect("mutual TLS");
    assert!(cert.ends_with("/sa/web"), "{cert}");
    let config = caller.config().await;
    let words = config["control_plane"]["detail"].to_string();
    assert!(words.contains("is from before a restart"), "{words}");
    // A destination never requested before can't be known; the answer says why.
    let unknown = get(caller.outbound, "others", "/").await;
    assert_eq!(unknown.status, 503);
    assert!(
        unknown
            .proxy_status()
            .contains("control plane unreachable since"),
        "{}",
        unknown.proxy_status()
    );
    drop(callee);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_not_its_own_is_left_alone() {
    let directory = Directory::new();
    let mesh = Mesh::start(&mtls("STRICT")).await;
    let state =
        |account: &str| format!("--state-dir {} ", directory.path().join(account).display());
    let first = mesh.proxy("web", &state("web")).await;
    let serial = first.config().await["identity"]["serial"].to_string();
    first.stop().await;
    let file = directory.path().join("web").join("identity");
    let whole = std::fs::read(&file).expect("kept");
    let serial_with = async |bytes: &[u8], mode: u32| {
        std::fs::write(&file, bytes).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
        let proxy = mesh.proxy("web", &state("web")).await;
        let serial = proxy.config().await["identity"]["serial"].to_string();
        proxy.stop().await;
        serial
    };
    assert_eq!(serial_with(&whole, 0o600).await, serial, "its own is used");
    assert_ne!(
        serial_with(&whole[..whole.len() - 1], 0o600).await,
        serial,
        "cut short"
    );
    assert_ne!(serial_with(&whole, 0o644).await, serial, "open to others");
    let other = String::from_utf8_lossy(&whole).replace("/sa/web", "/sa/other");
    assert_ne!(
        serial_with(other.as_bytes(), 0o600).await,
        serial,
        "of another"
    );
}
