//! Requests that Istio's sidecar refuses, in every spelling and over every protocol.

use std::net::Ipv4Addr;

use leno_tests::ca::{self, Ca};
use leno_tests::client::{Client, Response, get};
use leno_tests::h2;
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, pair, service};
use leno_tests::probe::{Answer, App, Transport, ask, caller, reaches_app};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};

fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: one}}\nspec: {{{spec}}}\n"
    )
}

/// A policy that denies `operation`.
fn deny(operation: &str) -> String {
    policy(&format!(
        "action: DENY, rules: [{{to: [{{operation: {{{operation}}}}}]}}]"
    ))
}

const OVER_HTTP: [Transport; 4] = [
    Transport::Http1,
    Transport::Http2,
    Transport::Tls1,
    Transport::Tls2,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_strict_takes_no_plaintext_whatever_the_workloads_mode_is() {
    for mode in ["", "mtls: {mode: PERMISSIVE}, ", "mtls: {mode: DISABLE}, "] {
        for port in [
            "protocol: HTTP, ",
            "protocol: GRPC, ",
            "protocol: TCP, ",
            "",
            "undeclared",
        ] {
            let (ip, app) = (fresh_ip(), App::start().await);
            let declared = service("users", &[(ip, "v1")]);
            let declared = match port {
                // The service is on another port.
                "undeclared" => {
                    declared.replace(&format!("targetPort: {PORT}"), "targetPort: 3002")
                }
                port => declared.replace("name: http, protocol: HTTP, ", port),
            };
            let object = format!(
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: one}}\nspec: {{{mode}\
                 selector: {{matchLabels: {{app: users}}}}, portLevelMtls: {{{PORT}: {{mode: STRICT}}}}}}\n"
            );
            let mesh = Mesh::start(&format!("{declared}{object}")).await;
            let _proxy = mesh.workload("users", ip, app.address).await;
            let ca = mesh.ca();
            for way in Transport::ALL {
                let reached = reaches_app((ip, PORT).into(), way, &ca).await;
                let is_taken = match port {
                    "protocol: HTTP, " | "protocol: GRPC, " => way.is_http(),
                    // On a TCP port HTTP is opaque bytes as well.
                    "protocol: TCP, " if way.is_http() && !way.is_plaintext() => continue,
                    _ => true,
                };
                let expected = is_taken && !way.is_plaintext();
                assert_eq!(reached, expected, "{mode:?} {port:?} {way:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dot_segment_with_parameters_is_judged_routed_and_sent_on_as_a_dot_segment() {
    let (ip, app) = (fresh_ip(), App::start().await);
    let route = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: users}\nspec:\n  hosts: [users]\n  http:\n  \
         - match: [{uri: {prefix: /elsewhere}}]\n    route: [{destination: {host: nowhere}}]\n  - route: [{destination: {host: users}}]\n";
    let yaml = format!(
        "{}{route}{}",
        service("users", &[(ip, "v1")]),
        deny("paths: [/admin]")
    );
    let mesh = Mesh::start(&yaml).await;
    let _proxy = mesh.workload("users", ip, app.address).await;
    let sidecar = mesh.proxy("web", "").await;
    let (ca, address) = (mesh.ca(), (ip, PORT).into());
    for way in OVER_HTTP {
        for path in [
            "/x/..;/admin",
            "/..;a=b/admin",
            "/.;/admin",
            "/public/..;/admin",
            "/x/%2e%2e;/admin",
            "/x/..%3ba/admin",
        ] {
            let answer = ask(address, way, &ca, "GET", path).await;
            assert_eq!(answer, Answer::Status(403), "{way:?} {path}");
        }
        assert_eq!(
            ask(address, way, &ca, "GET", "/x/..;a/ok;b=c?q=/..;/").await,
            Answer::App
        );
    }
    let seen = app.paths();
    let is_resolved = |path: &String| path.starts_with("/ok;b=c");
    assert!(seen.len() == 4 && seen.iter().all(is_resolved), "{seen:?}");
    for (path, status) in [
        ("/x/..;/admin", 403),
        ("/x/..;/elsewhere", 503),
        ("/elsewhere/..;/ok", 200),
    ] {
        let response = get(sidecar.outbound, "users", path).await;
        assert_eq!(
            response.status,
            status,
            "{path}: {}",
            response.proxy_status()
        );
    }
    mesh.write(
        "mesh.yaml",
        &format!(
            "{}{}",
            service("users", &[(ip, "v1")]),
            policy("rules: [{to: [{operation: {paths: [/public/*]}}]}]")
        ),
    );
    until("the other policy is in force", || async {
        (ask(address, Transport::Http1, &ca, "GET", "/ok").await == Answer::Status(403))
            .then_some(())
    })
    .await;
    for way in OVER_HTTP {
        assert_eq!(
            ask(address, way, &ca, "GET", "/public/..;/admin").await,
            Answer::Status(403)
        );
        assert_eq!(
            ask(address, way, &ca, "GET", "/x/..;/public/a").await,
            Answer::App
        );
    }
}

/// An app that accepts every upgrade.
async fn eager() -> Upstream {
    Upstream::start(|seen| match seen.header("upgrade") {
        Some(_) => b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: it\r\ncontent-length: 0\r\n\r\n".to_vec(),
        None => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
    })
    .await
}

fn upgrading(lines: &str) -> String {
    format!(
        "GET /ok HTTP/1.1\r\nHost: users\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n{lines}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn only_websocket_and_what_is_named_is_switched_to() {
    let app = eager().await;
    let (mesh, caller, _callee, ip) = pair(app.address, &deny("paths: [/admin]"), "").await;
    let tries = [
        ("Upgrade: foo\r\n", None),
        ("Upgrade: TLS/1.0\r\n", None),
        ("Upgrade: foo, h2c\r\n", None),
        ("Upgrade: h2c\r\n", None),
        ("Upgrade: H2C\r\n", None),
        ("Upgrade: foo\r\nUpgrade: h2c\r\n", None),
        ("Upgrade: websocket/13\r\n", None),
        ("Upgrade: websocket\r\n", Some("websocket")),
        ("Upgrade: websocket, h2c\r\n", Some("websocket")),
        ("Upgrade: h2c\r\nUpgrade: WebSocket\r\n", Some("WebSocket")),
    ];
    for (lines, switched) in tries {
        for address in [caller.outbound, (ip, PORT).into()] {
            let mut client = Client::connect(address).await;
            let response = client.round_trip(upgrading(lines)).await;
            let seen = app.requests().pop().expect("it came");
            assert_eq!(seen.header("upgrade"), switched, "{lines:?} at {address}");
            assert_eq!(seen.header("http2-settings"), None, "{lines:?}");
            let status = if switched.is_some() { 101 } else { 200 };
            assert_eq!(response.status, status, "{lines:?} at {address}");
            if switched.is_none() {
                // The next bytes are a request, which the rules judge.
                let refused = client
                    .round_trip("GET /admin HTTP/1.1\r\nHost: users\r\n\r\n")
                    .await;
                assert_eq!(refused.status, 403, "{lines:?}");
            }
        }
        let certified = caller_tls(&mesh.ca(), (ip, PORT).into()).await;
        let mut client = Client::over(certified);
        assert_eq!(
            client.round_trip(upgrading(lines)).await.status == 101,
            switched.is_some(),
            "{lines:?}"
        );
    }
    // HTTP2-Settings is removed even when Connection doesn't name it.
    let mut client = Client::connect((ip, PORT).into()).await;
    client
        .round_trip("GET / HTTP/1.1\r\nHost: users\r\nHTTP2-Settings: AAMA\r\n\r\n")
        .await;
    assert_eq!(
        app.requests()
            .pop()
            .expect("it came")
            .header("http2-settings"),
        None
    );
    // Extended CONNECT for a protocol that isn't passed on would have nothing left.
    for address in [caller.outbound, (ip, PORT).into()] {
        let before = app.requests().len();
        for (protocol, status) in [("foo", 501), ("h2c", 501), ("connect-udp", 501)] {
            let sender = h2::connect(address).await;
            let mut request = h2::request("CONNECT", "http://users/ok", &[]);
            request
                .extensions_mut()
                .insert(::h2::ext::Protocol::from(protocol));
            let answer = h2::round_trip(&sender, request, b"", None)
                .await
                .expect("an answer");
            assert_eq!(answer.status, status, "{protocol} at {address}");
        }
        assert_eq!(app.requests().len(), before);
    }
}

async fn caller_tls(
    ca: &Ca,
    address: std::net::SocketAddr,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let tls = ca::connect(address, Some(caller(ca)), &[b"istio-http/1.1"]).await;
    tls.expect("a handshake")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_the_operator_names_is_switched_to() {
    let app = eager().await;
    let (_mesh, caller, _callee, _) = pair(app.address, "", "--upgrades irc/6.9,foo").await;
    for (lines, switched) in [
        ("Upgrade: foo\r\n", Some("foo")),
        ("Upgrade: h2c, IRC/6.9\r\n", Some("IRC/6.9")),
        ("Upgrade: bar\r\n", None),
    ] {
        let mut client = Client::connect(caller.outbound).await;
        let response = client.round_trip(upgrading(lines)).await;
        assert_eq!(response.status == 101, switched.is_some(), "{lines:?}");
        assert_eq!(
            app.requests().pop().expect("it came").header("upgrade"),
            switched,
            "{lines:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_in_another_case_is_refused_and_options_of_all_is_judged_as_a_path() {
    let (ip, app) = (fresh_ip(), App::start().await);
    let yaml = format!(
        "{}{}",
        service("users", &[(ip, "v1")]),
        deny("methods: [GET, DELETE]")
    );
    let mesh = Mesh::start(&yaml).await;
    let _proxy = mesh.workload("users", ip, app.address).await;
    let sidecar = mesh.proxy("web", "").await;
    let (ca, address) = (mesh.ca(), (ip, PORT).into());
    for way in OVER_HTTP {
        for (method, answer) in [
            ("GET", Answer::Status(403)),
            ("get", Answer::Status(400)),
            ("Get", Answer::Status(400)),
            ("delete", Answer::Status(400)),
            ("propFind", Answer::Status(400)),
            ("POST", Answer::App),
            ("purge", Answer::App),
        ] {
            assert_eq!(
                ask(address, way, &ca, method, "/").await,
                answer,
                "{way:?} {method}"
            );
        }
    }
    for way in [Transport::Http1, Transport::Http2] {
        assert_eq!(
            ask(sidecar.outbound, way, &ca, "get", "/").await,
            Answer::Status(400)
        );
        assert_eq!(
            ask(sidecar.outbound, way, &ca, "purge", "/").await,
            Answer::App
        );
    }
    let options = |address| async move {
        let mut client = Client::connect(address).await;
        client
            .round_trip("OPTIONS * HTTP/1.1\r\nHost: users\r\n\r\n")
            .await
    };
    for address in [address, sidecar.outbound] {
        let response: Response = options(address).await;
        assert_eq!(response.status, 200, "{}", response.proxy_status());
        assert_eq!(
            app.paths().pop().as_deref(),
            Some("*"),
            "it is sent on as it came"
        );
    }
    mesh.write(
        "mesh.yaml",
        &format!(
            "{}{}",
            service("users", &[(ip, "v1")]),
            deny("paths: ['/*']")
        ),
    );
    until("every path is denied", || async {
        (ask(address, Transport::Http1, &ca, "POST", "/").await == Answer::Status(403))
            .then_some(())
    })
    .await;
    for address in [address, sidecar.outbound] {
        assert_eq!(options(address).await.status, 403);
    }
}

#[test]
fn what_a_sidecar_refuses_in_another_case_no_rule_may_name_in_it() {
    use leno_control_plane::istio::{self, wildcard::METHODS};
    use leno_http::h1::{HeadLimits, LastHead, parse_request};
    use leno_http::head::Head;
    let denies = |method: &str| {
        let yaml = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n\
             spec: {{action: DENY, rules: [{{to: [{{operation: {{methods: ['{method}']}}}}]}}]}}\n"
        );
        let file = std::sync::Arc::new("a.yaml".into());
        istio::read(&file, &yaml, &istio::Limits::default())
            .problems
            .is_empty()
    };
    for method in METHODS.split(' ') {
        let lower = method.to_ascii_lowercase();
        assert!(denies(method), "{method}");
        assert!(!denies(&lower), "{lower}");
        let mut head = Head::default();
        let text = format!("{lower} / HTTP/1.1\r\nHost: h\r\n\r\n");
        head.buffer().extend_from_slice(text.as_bytes());
        let read = parse_request(&mut head, &HeadLimits::default(), &mut LastHead::default());
        assert!(read.is_err(), "{lower}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_declared_http_gets_http_and_no_strangers_tls() {
    for mode in ["PERMISSIVE", "DISABLE"] {
        for protocol in ["protocol: HTTP, ", "protocol: GRPC, ", ""] {
            let (ip, app) = (fresh_ip(), App::start().await);
            let yaml =
                service("users", &[(ip, "v1")]).replace("name: http, protocol: HTTP, ", protocol);
            let mesh = Mesh::start(&format!("{yaml}{}", mtls(mode))).await;
            let _proxy = mesh.workload("users", ip, app.address).await;
            for alpn in [&[][..], &[&b"h2"[..]], &[b"http/1.1"]] {
                // The handshake may fail in any way: the bytes that the app received count.
                let tls = ca::connect((ip, PORT).into(), None, alpn).await;
                assert!(tls.is_err(), "nobody here speaks TLS to strangers");
            }
            let reached = app.reached() > 0;
            assert_eq!(reached, protocol.is_empty(), "{mode} {protocol:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_istio_callers_offers_are_taken_for_http_where_nobody_declared_the_port() {
    let app = Upstream::named("users").await;
    for mode in ["PERMISSIVE", "STRICT"] {
        let ip = fresh_ip();
        let yaml = service("users", &[(ip, "v1")]).replace("name: http, protocol: HTTP, ", "");
        let rules = policy("rules: [{to: [{operation: {methods: [GET]}}]}]");
        let mesh = Mesh::start(&format!("{yaml}{}{rules}", mtls(mode))).await;
        let _proxy = mesh.workload("users", ip, app.address).await;
        let offers: [&[&[u8]]; 4] = [
            &[b"istio-http/1.1", b"istio", b"http/1.1"],
            &[b"istio", b"istio-http/1.1"],
            &[b"istio-peer-exchange", b"istio", b"istio-http/1.1"],
            &[b"istio-h2", b"istio", b"h2"],
        ];
        for offer in offers {
            let tls = ca::connect((ip, PORT).into(), Some(caller(&mesh.ca())), offer).await;
            let tls = tls.expect("a handshake");
            let chosen = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            let is_h2 = chosen.as_deref() == Some(b"istio-h2");
            assert!(
                is_h2 || chosen.as_deref() == Some(b"istio-http/1.1"),
                "{offer:?}: {chosen:?}"
            );
            let mut client = Client::over(tls);
            let forged = "GET / HTTP/1.1\r\nHost: users\r\nX-Forwarded-Client-Cert: By=me;URI=spiffe://cluster.local/ns/default/sa/root\r\n\r\n";
            let response = client.round_trip(forged).await;
            assert_eq!(response.status, 200, "{offer:?}");
            let seen = app.requests().pop().expect("it came");
            let cert = seen.header("x-forwarded-client-cert").expect("XFCC");
            assert!(
                cert.ends_with("URI=spiffe://cluster.local/ns/default/sa/web"),
                "{cert}"
            );
            assert_eq!(
                client
                    .round_trip("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 0\r\n\r\n")
                    .await
                    .status,
                403
            );
        }
    }
}

/// A mesh of two workloads, `users` and `shop`, in front of one app, with their addresses and sidecars.
pub(crate) async fn users_and_shop() -> (Mesh, [Ipv4Addr; 2], [Proxy; 2]) {
    let (ips, app) = ([fresh_ip(), fresh_ip()], App::start().await);
    let services = format!(
        "{}{}",
        service("users", &[(ips[0], "v1")]),
        service("shop", &[(ips[1], "v1")])
    );
    let mesh = Mesh::start(&services).await;
    let users = mesh.workload("users", ips[0], app.address).await;
    let shop = mesh.workload("shop", ips[1], app.address).await;
    (mesh, ips, [users, shop])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_istio_refuses_is_closed_for_whom_it_selects_until_it_is_mended() {
    let (mesh, ips, _proxies) = users_and_shop().await;
    let ca = mesh.ca();
    let of = "selector: {matchLabels: {app: users}}, ";
    for (spec, words) in [
        (
            "action: DENY, rules: [{from: [{source: {namespaces: [default/sa]}}]}]",
            "no namespace's name",
        ),
        (
            "rules: [{from: [{source: {principals: ['*//cluster.local/ns/default/sa/web']}}]}]",
            "without spiffe://",
        ),
        (
            "action: DENY, rules: [{to: [{operation: {methods: [get]}}]}]",
            "in capitals",
        ),
        (
            "action: DENY, rules: [{to: [{operation: {paths: ['/a/*/b']}}]}]",
            "* stands alone",
        ),
        (
            "action: DENY, rules: [{to: [{operation: {paths: ['']}}]}]",
            "is empty",
        ),
        ("action: DENY", "without rules denies nothing"),
        ("action: DENY, rules: []", "without rules denies nothing"),
        ("rules: [{from: }]", "is empty"),
        (
            "rules: [{from: [{source: {principals: [], namespaces: [default]}}]}]",
            "is empty",
        ),
    ] {
        mesh.write("policy.yaml", &policy(&format!("{of}{spec}")));
        until(&format!("{spec} closes"), || async {
            (ask((ips[0], PORT).into(), Transport::Tls1, &ca, "GET", "/").await
                == Answer::Status(403))
            .then_some(())
        })
        .await;
        for way in Transport::ALL {
            assert!(
                !reaches_app((ips[0], PORT).into(), way, &ca).await,
                "{spec} by {way:?}"
            );
        }
        let problems = mesh.problems();
        assert!(
            problems
                .iter()
                .any(|p| p.contains("policy.yaml:5:") && p.contains(words)),
            "{spec}: {problems:?}"
        );
        assert!(
            reaches_app((ips[1], PORT).into(), Transport::Http1, &ca).await,
            "{spec}: another app"
        );
        mesh.write("policy.yaml", "# mended\n");
        until("it is open again", || async {
            reaches_app((ips[0], PORT).into(), Transport::Http1, &ca)
                .await
                .then_some(())
        })
        .await;
    }
    for (spec, words) in [
        (
            "selector: {matchLabels: {app: '*'}}, action: DENY, rules: [{}]",
            "knows no *",
        ),
        (
            "selector: {matchLabels: {'': users}}, action: DENY, rules: [{}]",
            "have names",
        ),
    ] {
        mesh.write("policy.yaml", &policy(spec));
        until(&format!("{spec} closes its namespace"), || async {
            let open = reaches_app((ips[0], PORT).into(), Transport::Http1, &ca).await
                || reaches_app((ips[1], PORT).into(), Transport::Http1, &ca).await;
            (!open).then_some(())
        })
        .await;
        let problems = mesh.problems();
        assert!(
            problems.iter().any(|p| p.contains(words)),
            "{spec}: {problems:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_authentication_that_istio_refuses_is_strict_for_whom_it_selects() {
    let (mesh, ips, _proxies) = users_and_shop().await;
    let ca = mesh.ca();
    let of = "selector: {matchLabels: {app: users}}, ";
    for (spec, words, closes_all) in [
        (
            format!("{of}portLevelMtls: {{0: {{mode: STRICT}}}}"),
            "0 is not a port",
            false,
        ),
        (
            format!("{of}portLevelMtls: {{}}"),
            "portLevelMtls is empty",
            false,
        ),
        (format!("{of}mtls: {{mode: OPEN}}"), "OPEN", false),
        (
            "portLevelMtls: {3001: {mode: DISABLE}}".to_owned(),
            "needs a selector",
            true,
        ),
        (
            "selector: {matchLabels: {app: '*'}}, mtls: {mode: STRICT}".to_owned(),
            "knows no *",
            true,
        ),
    ] {
        let object = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: one}}\nspec: {{{spec}}}\n"
        );
        mesh.write("mode.yaml", &object);
        until(&format!("{spec} closes"), || async {
            let mut open = reaches_app((ips[0], PORT).into(), Transport::Http1, &ca).await;
            open |= closes_all && reaches_app((ips[1], PORT).into(), Transport::Http1, &ca).await;
            (!open).then_some(())
        })
        .await;
        for way in OVER_HTTP {
            let open = reaches_app((ips[0], PORT).into(), way, &ca).await;
            assert_eq!(open, !way.is_plaintext(), "{spec} by {way:?}");
            let other = reaches_app((ips[1], PORT).into(), way, &ca).await;
            assert_eq!(
                other,
                !(closes_all && way.is_plaintext()),
                "{spec} by {way:?}: another app"
            );
        }
        let problems = mesh.problems();
        let is_said =
            |p: &String| p.contains("mode.yaml:") && p.contains(": error: ") && p.contains(words);
        assert!(problems.iter().any(is_said), "{spec}: {problems:?}");
        mesh.write("mode.yaml", "# mended\n");
        until("both are open again", || async {
            let open = reaches_app((ips[0], PORT).into(), Transport::Http1, &ca).await
                && reaches_app((ips[1], PORT).into(), Transport::Http1, &ca).await;
            open.then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_modes_of_one_level_the_stricter_counts_and_it_is_said() {
    let (ip, app) = (fresh_ip(), App::start().await);
    let mesh = Mesh::start(&service("users", &[(ip, "v1")])).await;
    let _proxy = mesh.workload("users", ip, app.address).await;
    let (ca, address) = (mesh.ca(), (ip, PORT).into());
    let object = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    };
    let by_app = "selector: {matchLabels: {app: users}}, ";
    let by_version = "selector: {matchLabels: {version: v1}}, ";
    for (namespace, selectors) in [
        ("istio-system", ["", ""]),
        ("default", ["", ""]),
        ("default", [by_app, by_app]),
        ("default", [by_app, by_version]),
    ] {
        for modes in [["STRICT", "PERMISSIVE"], ["DISABLE", "STRICT"]] {
            let spec = |at: usize| format!("{}mtls: {{mode: {}}}", selectors[at], modes[at]);
            let both = format!(
                "{}{}",
                object("a", namespace, &spec(0)),
                object("b", namespace, &spec(1))
            );
            mesh.write("mode.yaml", &both);
            until(
                &format!("{namespace} {selectors:?} {modes:?} is strict"),
                || async { (!reaches_app(address, Transport::Http1, &ca).await).then_some(()) },
            )
            .await;
            assert!(reaches_app(address, Transport::Tls1, &ca).await);
            let problems = mesh.problems();
            let said = format!("{namespace}/a PeerAuthentication is for the same workloads");
            assert!(
                problems
                    .iter()
                    .any(|p| p.contains(": warning: ") && p.contains(&said)),
                "{problems:?}"
            );
            mesh.write("mode.yaml", "# nothing\n");
            until("it is open again", || async {
                reaches_app(address, Transport::Http1, &ca)
                    .await
                    .then_some(())
            })
            .await;
        }
    }
}
