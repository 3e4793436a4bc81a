//! Selectors, and the workloads that they apply to, also those that the registry doesn't describe.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use leno_tests::ca::Ca;
use leno_tests::client::{Client, get};
use leno_tests::mesh::{Mesh, PORT, Proxy, service};
use leno_tests::probe::{Answer, App, Transport, ask, reaches_app};
use leno_tests::{fresh_ip, until};

/// A file without objects: unlike an empty file, it takes effect at once.
const NOTHING: &str = "# nothing\n";

/// A policy for all workloads, written along with others to show that they are in force.
const MARKER: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: marker}\n\
    spec: {action: DENY, rules: [{to: [{operation: {paths: [/marker]}}]}]}\n";

fn deny(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

fn strict(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}}}\nspec: {{{spec}mtls: {{mode: STRICT}}}}\n"
    )
}

/// A selector by app.
fn of(app: &str) -> String {
    format!("selector: {{matchLabels: {{app: {app}}}}}, ")
}

/// Objects that close an app, each with its label in messages.
fn closing(app: &str) -> [(&'static str, String); 4] {
    let of = of(app);
    [
        ("STRICT", strict("closing", &of)),
        (
            "DENY",
            deny("closing", &format!("{of}action: DENY, rules: [{{}}]")),
        ),
        (
            "ALLOW nothing",
            deny("closing", &format!("{of}action: ALLOW")),
        ),
        (
            "broken",
            deny("closing", &format!("{of}rules: [{{when: [{{key: x}}]}}]")),
        ),
    ]
}

/// An object of the registry that may describe a workload.
fn entry(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn service_entry(name: &str, namespace: &str, spec: &str) -> String {
    let host = format!("hosts: [{name}.{namespace}.svc.cluster.local], ");
    let ports = format!("ports: [{{number: 80, name: any, targetPort: {PORT}}}], ");
    entry(
        "ServiceEntry",
        name,
        namespace,
        &format!("{host}{ports}{spec}"),
    )
}

/// A form of the registry's objects for a workload at `ip`, and true when it describes the workload.
type Form = (&'static str, bool, fn(&str, Ipv4Addr) -> String);

const FORMS: [Form; 9] = [
    ("no account", true, |name, ip| {
        let endpoint = format!("endpoints: [{{address: {ip}, labels: {{app: users}}}}]");
        service_entry(name, "default", &format!("resolution: STATIC, {endpoint}"))
    }),
    ("a WorkloadEntry without account", true, |name, ip| {
        entry(
            "WorkloadEntry",
            name,
            "default",
            &format!("address: {ip}, labels: {{app: users}}"),
        )
    }),
    ("another account", false, |name, ip| {
        let endpoint = format!("{{address: {ip}, labels: {{app: other}}, serviceAccount: other}}");
        let spec = format!("location: MESH_INTERNAL, resolution: STATIC, endpoints: [{endpoint}]");
        service_entry(name, "default", &spec)
    }),
    ("no labels", false, |name, ip| {
        let endpoint = format!("{{address: {ip}, serviceAccount: users}}");
        let spec = format!("location: MESH_INTERNAL, resolution: STATIC, endpoints: [{endpoint}]");
        service_entry(name, "default", &spec)
    }),
    ("DNS", false, |name, ip| {
        let endpoint = format!("{{address: {ip}, labels: {{app: other}}}}");
        service_entry(
            name,
            "default",
            &format!("resolution: DNS, endpoints: [{endpoint}]"),
        )
    }),
    ("another namespace", false, |name, ip| {
        let endpoint = format!("{{address: {ip}, labels: {{app: other}}}}");
        service_entry(
            name,
            "shop",
            &format!("resolution: STATIC, endpoints: [{endpoint}]"),
        )
    }),
    ("a refused ServiceEntry", false, |name, ip| {
        let endpoint = format!("{{address: {ip}, labels: {{app: other}}}}");
        service_entry(
            name,
            "default",
            &format!("resolution: STATIC, endpoints: [{endpoint}], nonsense: 1"),
        )
    }),
    ("no endpoints", false, |name, _| {
        service_entry(name, "default", "resolution: STATIC, endpoints: []")
    }),
    ("nothing", false, |_, _| String::new()),
];

/// A workload in front of an app of its own, and its form in the registry.
struct Workload {
    what: &'static str,
    is_described: bool,
    address: SocketAddr,
    app: App,
    _proxy: Proxy,
}

async fn workloads(mesh: &Mesh, ips: &[Ipv4Addr]) -> Vec<Workload> {
    let mut all = Vec::new();
    for ((what, is_described, _), ip) in FORMS.iter().zip(ips) {
        let app = App::start().await;
        all.push(Workload {
            what,
            is_described: *is_described,
            address: (*ip, PORT).into(),
            _proxy: mesh.workload("users", *ip, app.address).await,
            app,
        });
    }
    all
}

fn registry(ips: &[Ipv4Addr]) -> String {
    let forms = FORMS.iter().zip(ips).enumerate();
    forms
        .map(|(number, ((.., yaml), ip))| yaml(&format!("form-{number}"), *ip))
        .collect()
}

impl Workload {
    /// Waits until the marker is in force.
    async fn wait_marked(&self, ca: &Ca) {
        until(&format!("{} has the marker", self.what), || async {
            let answer = ask(self.address, Transport::Tls1, ca, "GET", "/marker").await;
            (answer == Answer::Status(403)).then_some(())
        })
        .await;
    }

    /// Waits until plaintext HTTP is refused, then asserts the same of every other way that should be closed.
    async fn assert_closed(&self, why: &str, mode: &str, ca: &Ca) {
        until(&format!("{why}: {} is closed", self.what), || async {
            (!reaches_app(self.address, Transport::Http1, ca).await).then_some(())
        })
        .await;
        let before = self.app.reached();
        let mut mutual = 0;
        for way in Transport::ALL {
            let open = reaches_app(self.address, way, ca).await;
            // The marker has HTTP conditions: it denies TCP.
            let may = mode == "STRICT" && way.is_http() && !way.is_plaintext();
            assert_eq!(open, may, "{why}: {} by {way:?}", self.what);
            mutual += usize::from(may);
        }
        assert_eq!(self.app.reached(), before + mutual, "{why}: {}", self.what);
    }

    async fn wait_open(&self, why: &str, ca: &Ca) {
        until(&format!("{why}: {} is open", self.what), || async {
            reaches_app(self.address, Transport::Http1, ca)
                .await
                .then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_nothing_describes_is_held_closed_by_every_selector() {
    let ips: Vec<Ipv4Addr> = FORMS.iter().map(|_| fresh_ip()).collect();
    let mesh = Mesh::start(&registry(&ips)).await;
    let (ca, all) = (mesh.ca(), workloads(&mesh, &ips).await);
    for workload in &all {
        workload.wait_open("no object", &ca).await;
    }
    for app in ["users", "another"] {
        for (mode, object) in closing(app) {
            let why = format!("{mode} for {app}");
            mesh.write("closing.yaml", &format!("{object}{MARKER}"));
            // The update has reached every sidecar.
            for workload in &all {
                workload.wait_marked(&ca).await;
            }
            // A workload that is described as another app's stays open.
            for workload in &all {
                if app == "users" || !workload.is_described {
                    workload.assert_closed(&why, mode, &ca).await;
                }
            }
            for workload in all.iter().filter(|w| app != "users" && w.is_described) {
                assert!(
                    reaches_app(workload.address, Transport::Http1, &ca).await,
                    "{why}: {}",
                    workload.what
                );
            }
            mesh.write("closing.yaml", NOTHING);
            for workload in &all {
                workload.wait_open(&format!("{why} is gone"), &ca).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_nothing_describes_starts_closed_and_opens_once_it_is_described() {
    let ips: Vec<Ipv4Addr> = FORMS.iter().map(|_| fresh_ip()).collect();
    let yaml = format!("{}{}", registry(&ips), closing("another")[1].1);
    let mesh = Mesh::start(&yaml).await;
    let (ca, all) = (mesh.ca(), workloads(&mesh, &ips).await);
    for workload in &all {
        for way in Transport::ALL {
            let open = reaches_app(workload.address, way, &ca).await;
            assert_eq!(open, workload.is_described, "{} by {way:?}", workload.what);
        }
    }
    // A late description opens them.
    let entries = ips.iter().enumerate().map(|(number, ip)| {
        let spec = format!("address: {ip}, labels: {{app: users}}, serviceAccount: users");
        entry("WorkloadEntry", &format!("late-{number}"), "default", &spec)
    });
    mesh.write("late.yaml", &entries.collect::<String>());
    for workload in &all {
        workload.wait_open("described", &ca).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_the_root_namespace_with_a_selector_holds_as_well_and_an_allow_opens_what_each_would()
 {
    let (ip, app) = (fresh_ip(), App::start().await);
    let root = |name: &str, spec: &str| {
        deny(name, spec).replace("metadata: {", "metadata: {namespace: istio-system, ")
    };
    let allow = |name: &str, app: &str, path: &str| {
        deny(
            name,
            &format!(
                "{}rules: [{{to: [{{operation: {{paths: [{path}, /both]}}}}]}}]",
                of(app)
            ),
        )
    };
    let yaml = format!(
        "{}{}{}",
        root(
            "secrets",
            &format!(
                "{}action: DENY, rules: [{{to: [{{operation: {{paths: [/secret]}}}}]}}]",
                of("vault")
            )
        ),
        allow("one", "one", "/one"),
        allow("two", "two", "/two"),
    );
    let mesh = Mesh::start(&yaml).await;
    let _proxy = mesh.workload("users", ip, app.address).await;
    let path = |path: &'static str| async move { get((ip, PORT).into(), "users", path).await };
    assert_eq!(path("/both").await.status, 200);
    for closed in ["/one", "/two", "/secret", "/other"] {
        assert_eq!(path(closed).await.status, 403, "{closed}");
    }
    // An ALLOW that surely applies opens its paths under any labels; a DENY that may apply holds.
    mesh.write(
        "all.yaml",
        &deny(
            "all",
            "rules: [{to: [{operation: {paths: [/other, /secret]}}]}]",
        ),
    );
    until("what is for all opens", || async {
        (path("/other").await.status == 200).then_some(())
    })
    .await;
    for closed in ["/one", "/two", "/both", "/secret"] {
        assert_eq!(path(closed).await.status, 403, "{closed}");
    }
    assert_eq!(
        app.paths()
            .iter()
            .filter(|path| !["/both", "/other"].contains(&path.as_str()))
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_a_join_token_select_a_workload_and_survive_the_renewal_of_its_certificate() {
    let (ip, app) = (fresh_ip(), App::start().await);
    let mesh = Mesh::start(&closing("another")[1].1).await;
    let token = mesh.token_with("default", "users", &[("app", "users")]);
    let file = mesh.state().join("labelled");
    std::fs::write(&file, token).expect("written");
    let proxy = Proxy::start(&format!(
        "--xds-address {} --service-account users --token-file {} --certificate-ttl 4s --inbound {ip}:{PORT}={}",
        mesh.xds,
        file.display(),
        app.address
    ));
    proxy.ready().await;
    let ca = mesh.ca();
    assert!(
        reaches_app((ip, PORT).into(), Transport::Http1, &ca).await,
        "it is of app users"
    );
    until("the certificate was renewed twice", || async {
        (proxy.metric("leno_certificates_total", &[]).await >= 3.0).then_some(())
    })
    .await;
    mesh.write("closing.yaml", &closing("users")[1].1);
    until("what selects app users closes", || async {
        (!reaches_app((ip, PORT).into(), Transport::Http1, &ca).await).then_some(())
    })
    .await;
    mesh.write("closing.yaml", NOTHING);
    until("it opens again", || async {
        reaches_app((ip, PORT).into(), Transport::Http1, &ca)
            .await
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_descriptions_a_selector_that_fits_either_holds_and_it_is_said() {
    let (ip, app) = (fresh_ip(), App::start().await);
    let described = |name: &str, labels: &str| {
        let spec = format!(
            "location: MESH_INTERNAL, resolution: STATIC, endpoints: [{{address: {ip}, labels: {{{labels}}}, serviceAccount: users}}]"
        );
        service_entry(name, "default", &spec)
    };
    let yaml = format!(
        "{}{}",
        described("a", "app: users, tier: front"),
        described("b", "app: shop, version: v1")
    );
    let mesh = Mesh::start(&yaml).await;
    let _proxy = mesh.workload("users", ip, app.address).await;
    let problems = mesh.problems();
    let said = format!("{ip} has other labels in default/a ServiceEntry");
    assert!(
        problems
            .iter()
            .any(|p| p.contains("default/b ServiceEntry") && p.contains(&said)),
        "{problems:?}"
    );
    let (ca, address) = (mesh.ca(), (ip, PORT).into());
    for (labels, fits) in [
        ("app: users", true),
        ("app: shop", true),
        ("app: users, tier: front", true),
        ("app: users, version: v1", true),
        ("app: other", false),
        ("app: users, version: v2", false),
    ] {
        let of = format!("selector: {{matchLabels: {{{labels}}}}}, ");
        for (mode, object) in [
            ("STRICT", strict("closing", &of)),
            (
                "DENY",
                deny("closing", &format!("{of}action: DENY, rules: [{{}}]")),
            ),
            ("ALLOW", deny("closing", &of)),
        ] {
            mesh.write("closing.yaml", &format!("{object}{MARKER}"));
            until("the objects are in force", || async {
                let answer = ask(address, Transport::Tls1, &ca, "GET", "/marker").await;
                (answer == Answer::Status(403)).then_some(())
            })
            .await;
            assert_eq!(
                !reaches_app(address, Transport::Http1, &ca).await,
                fits,
                "{mode} for {labels}"
            );
            mesh.write("closing.yaml", NOTHING);
            until("they are gone", || async {
                let answer = ask(address, Transport::Http1, &ca, "GET", "/marker").await;
                (answer == Answer::App).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_closed_is_named_with_what_would_describe_it() {
    let (ip, app) = (fresh_ip(), App::start().await);
    let endpoint = format!("{{address: {ip}, labels: {{app: users}}, serviceAccount: other}}");
    let registry = service_entry(
        "users",
        "default",
        &format!("resolution: STATIC, endpoints: [{endpoint}]"),
    );
    let yaml = format!(
        "{registry}{}{}",
        strict("locked", &of("x")),
        deny("nobody", &of("y"))
    );
    let mesh = Mesh::start(&yaml).await;
    let callee = mesh.workload("users", ip, app.address).await;
    let _caller = mesh.proxy("web", "").await;
    let held = until("the map names it", || async {
        let map = mesh.map().await;
        let proxies = map["proxies"].as_array().cloned().unwrap_or_default();
        let held: Vec<_> = proxies
            .into_iter()
            .filter(|p| !p["held_closed"].is_null())
            .collect();
        (!held.is_empty()).then_some(held)
    })
    .await;
    assert_eq!(
        held.len(),
        1,
        "a caller without inbound ports feels nothing of it: {held:?}"
    );
    assert_eq!(held[0]["workload"], "users");
    let by = held[0]["held_closed"]["by"].to_string();
    assert!(
        by.contains("default/locked PeerAuthentication")
            && by.contains("default/nobody AuthorizationPolicy"),
        "{by}"
    );
    let why = held[0]["held_closed"]["why"].to_string();
    for words in [
        "default/users ServiceEntry",
        "serviceAccount other",
        "WorkloadEntry",
        "namespace default",
        "join token",
    ] {
        assert!(why.contains(words), "{words}: {why}");
    }
    assert!(mesh.status().await.contains("held_closed"));
    let metric = || async {
        let text = get(mesh.monitoring(), "leno", "/metrics").await.text();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("leno_workload_labels_unknown{"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let lines = metric().await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains(&ip.to_string()) && lines[0].ends_with(" 2"),
        "{lines:?}"
    );
    // A request is refused as well.
    let refused = ask((ip, PORT).into(), Transport::Tls1, &mesh.ca(), "GET", "/").await;
    assert_eq!(refused, Answer::Status(403));
    // The report ends with the proxy, as with the reason.
    callee.stop().await;
    until("nobody is held any more", || async {
        metric().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_removed_while_its_sidecar_runs_and_drains_opens_nothing_and_fails_nothing()
 {
    let (ips, app) = ([fresh_ip(), fresh_ip()], App::start().await);
    let listed = |ips: &[Ipv4Addr]| {
        let workloads: Vec<_> = ips.iter().map(|ip| (*ip, "v1")).collect();
        service("users", &workloads)
    };
    let secret = format!(
        "{}action: DENY, rules: [{{to: [{{operation: {{paths: [/secret]}}}}]}}]",
        of("users")
    );
    // Without known labels, this one would close the sidecar.
    let other = format!("{}action: DENY, rules: [{{}}]", of("other"));
    let objects = format!(
        "{}{}{}",
        strict("locked", &of("users")),
        deny("secret", &secret),
        deny("other", &other)
    );
    let mesh = Mesh::start(&listed(&ips)).await;
    mesh.write("objects.yaml", &objects);
    let leaving = mesh.workload("users", ips[0], app.address).await;
    let _staying = mesh.workload("users", ips[1], app.address).await;
    let caller = mesh.proxy("web", "").await;
    let (outbound, ca, address) = (caller.outbound, mesh.ca(), SocketAddr::from((ips[0], PORT)));
    until("the objects are in force", || async {
        let refused = get(outbound, "users", "/secret").await.status == 403;
        let closed = !reaches_app(address, Transport::Http1, &ca).await;
        (refused && closed && get(outbound, "users", "/").await.status == 200).then_some(())
    })
    .await;

    let secrets = || app.paths().iter().filter(|path| *path == "/secret").count();
    let before = secrets();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let good = tokio::spawn(async move {
        let (mut client, mut count) = (Client::connect(outbound).await, 0);
        while !is_over.load(Ordering::Relaxed) {
            let response = client
                .round_trip("GET /ok HTTP/1.1\r\nHost: users\r\n\r\n")
                .await;
            assert_eq!(response.status, 200, "{count}: {}", response.proxy_status());
            let refused = client
                .round_trip("GET /secret HTTP/1.1\r\nHost: users\r\n\r\n")
                .await;
            assert_eq!(refused.status, 403, "{count}: {}", refused.proxy_status());
            count += 1;
        }
        count
    });
    let is_over = Arc::clone(&over);
    let bad = tokio::spawn(async move {
        let mut count = 0;
        while !is_over.load(Ordering::Relaxed) {
            for way in [Transport::Http1, Transport::Http2, Transport::Tcp] {
                assert_eq!(
                    ask(address, way, &ca, "GET", "/ok").await,
                    Answer::Closed,
                    "{way:?}"
                );
            }
            count += 1;
        }
        count
    });
    let reached = || app.reached();
    let more = async |what: &str| {
        let before = reached();
        until(what, || async { (reached() > before + 50).then_some(()) }).await;
    };
    more("traffic before").await;
    // The endpoint goes, comes back and goes again; then its sidecar drains.
    mesh.write("mesh.yaml", &listed(&ips[1..]));
    more("traffic without the endpoint").await;
    mesh.write("mesh.yaml", &listed(&ips));
    more("traffic with it again").await;
    mesh.write("mesh.yaml", &listed(&ips[1..]));
    more("traffic without the endpoint").await;
    leaving.stop().await;
    more("traffic after the drain").await;
    over.store(true, Ordering::Relaxed);
    let (good, bad) = (
        good.await.expect("no request failed"),
        bad.await.expect("nobody got in"),
    );
    assert!(good > 100 && bad > 20, "{good}, {bad}");
    assert_eq!(secrets(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_removed_leaves_its_sidecar_as_it_was_while_another_life_of_it_is_closed()
{
    let (ip, app) = (fresh_ip(), App::start().await);
    let mesh = Mesh::start(&service("users", &[(ip, "v1")])).await;
    mesh.write("objects.yaml", &closing("other")[1].1);
    let proxy = mesh.workload("users", ip, app.address).await;
    let (ca, address) = (mesh.ca(), (ip, PORT).into());
    assert!(
        reaches_app(address, Transport::Tls1, &ca).await,
        "it is of another app"
    );
    let empty = service("users", &[]).replace("endpoints:", "endpoints: []");
    for gone in [empty, NOTHING.to_owned()] {
        mesh.write("mesh.yaml", &gone);
        until("it is gone", || async {
            let state = mesh
                .control_plane
                .as_ref()
                .expect("it runs")
                .state
                .borrow()
                .clone();
            (state.mesh.endpoints_at(ip.into()).count() == 0).then_some(())
        })
        .await;
        // A later write is seen later.
        mesh.write("marker.yaml", MARKER);
        until("the marker is in force", || async {
            (ask(address, Transport::Http1, &ca, "GET", "/marker").await == Answer::Status(403))
                .then_some(())
        })
        .await;
        assert!(
            reaches_app(address, Transport::Http1, &ca).await,
            "it stays what it was"
        );
        mesh.write("marker.yaml", NOTHING);
        until("the marker is gone", || async {
            (ask(address, Transport::Http1, &ca, "GET", "/marker").await == Answer::App)
                .then_some(())
        })
        .await;
    }
    proxy.stop().await;
    let _next = mesh.workload("users", ip, app.address).await;
    assert!(
        !reaches_app(address, Transport::Tls1, &ca).await,
        "nobody knows what it is"
    );
}
