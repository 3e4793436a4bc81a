//! Telemetry of requests: standard metrics, spans, the access log, the live map.

use leno_tests::client::{Client, get};
use leno_tests::collector::{Collector, attribute};
use leno_tests::mesh::{mtls, pair};
use leno_tests::upstream::Upstream;
use leno_tests::{Directory, until};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn spans(collector: &Collector, count: usize) -> Vec<Span> {
    until("the spans are there", || async {
        let spans = collector.spans();
        (spans.len() >= count).then_some(spans)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_two_spans_of_one_trace_and_the_app_sees_the_second() {
    let (app, collector) = (Upstream::named("v1").await, Collector::start().await);
    let flags = format!(
        "--otlp-endpoint http://{} --trace-sampling 1",
        collector.address
    );
    let (_mesh, caller, _callee, ip) = pair(app.address, &mtls("STRICT"), &flags).await;
    let answer = get(caller.outbound, "users", "/users/1?secret=1").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let spans = spans(&collector, 2).await;
    let of_kind = |kind| spans.iter().find(|span| span.kind == kind).expect("a span");
    let (client, server) = (of_kind(3), of_kind(2));
    assert_eq!(client.trace_id, server.trace_id);
    assert_eq!(server.parent_span_id, client.span_id);
    assert!(client.parent_span_id.is_empty());
    let seen = app.requests();
    let context = seen[0].header("traceparent").expect("a context");
    let expected = format!("00-{}-{}-01", hex(&server.trace_id), hex(&server.span_id));
    assert_eq!(context, expected);
    for span in [client, server] {
        assert_eq!(span.name, "users.default.svc.cluster.local:80/*");
        for (name, value) in [
            ("component", "proxy"),
            ("http.request.method", "GET"),
            ("http.method", "GET"),
            ("url.path", "/users/1"),
            ("http.url", "http://users/users/1"),
            ("http.response.status_code", "200"),
            ("http.status_code", "200"),
            ("response_flags", "-"),
        ] {
            assert_eq!(attribute(span, name).as_deref(), Some(value), "{name}");
        }
        let id = seen[0].header("x-request-id").map(str::to_owned);
        assert_eq!(attribute(span, "guid:x-request-id"), id);
        assert!(
            !format!("{span:?}").contains("secret"),
            "no query in a span"
        );
    }
    let cluster = attribute(client, "upstream_cluster").expect("a cluster");
    assert_eq!(cluster, "outbound|80||users.default.svc.cluster.local");
    let peer = attribute(client, "network.peer.address").expect("an address");
    assert!(peer.starts_with(&format!("{ip}:")), "{peer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_began_a_trace_decides_in_any_form_of_context() {
    let (app, collector) = (Upstream::named("v1").await, Collector::start().await);
    let flags = format!(
        "--otlp-endpoint http://{} --trace-sampling 0",
        collector.address
    );
    let (_mesh, caller, _callee, _) = pair(app.address, "", &flags).await;
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut client = Client::connect(caller.outbound).await;
    for context in [
        format!("traceparent: 00-{trace}-{span}-00"),
        format!("b3: {trace}-{span}-0"),
        format!("traceparent: 00-{trace}-{span}-01\r\ntracestate: a=b"),
        format!("b3: {trace}-{span}-1"),
        format!("x-b3-traceid: {trace}\r\nx-b3-spanid: {span}\r\nx-b3-sampled: 1"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: users\r\n{context}\r\n\r\n");
        assert_eq!(client.round_trip(request).await.status, 200);
    }
    // Two for each of the three sampled contexts.
    let spans = spans(&collector, 6).await;
    assert_eq!(spans.len(), 6);
    assert!(spans.iter().all(|s| hex(&s.trace_id) == trace));
    let first = spans.iter().filter(|s| hex(&s.parent_span_id) == span);
    assert_eq!(first.count(), 3, "the caller's own span is the parent");
    let seen = app.requests();
    let value = |at: usize, name: &str| seen[at].header(name).unwrap_or_default().to_owned();
    assert_eq!(value(0, "traceparent"), format!("00-{trace}-{span}-00"));
    assert_eq!(value(2, "tracestate"), "a=b");
    assert!(value(3, "b3").starts_with(&format!("{trace}-")) && !value(3, "b3").contains("-0-"));
    assert_eq!(value(4, "x-b3-traceid"), trace);
    let ids: Vec<String> = spans.iter().map(|s| hex(&s.span_id)).collect();
    assert!(
        ids.contains(&value(4, "x-b3-spanid")),
        "the app is under the callee's span"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_lenos_has_a_span_whatever_the_sampling() {
    let (app, collector) = (Upstream::named("v1").await, Collector::start().await);
    let flags = format!(
        "--otlp-endpoint http://{} --trace-sampling 0",
        collector.address
    );
    let (_mesh, caller, _callee, _) = pair(app.address, "", &flags).await;
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    assert_eq!(get(caller.outbound, "nobody", "/").await.status, 404);
    let spans = spans(&collector, 1).await;
    assert_eq!(spans.len(), 1);
    let status = spans[0].status.as_ref().expect("a status");
    assert!(status.message.contains("nobody"), "{}", status.message);
    assert_eq!(attribute(&spans[0], "error").as_deref(), Some("true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    let app = Upstream::named("v1").await;
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("an address");
    let address = hanging.local_addr().expect("an address");
    for flags in [
        format!("--otlp-endpoint http://{address} --trace-sampling 1"),
        "--otlp-endpoint http://127.0.0.1:1 --otlp-protocol http/protobuf --trace-sampling 1"
            .to_owned(),
    ] {
        let (_mesh, caller, _callee, _) = pair(app.address, "", &flags).await;
        let mut client = Client::connect(caller.outbound).await;
        for _ in 0..700 {
            let answer = client
                .round_trip("GET / HTTP/1.1\r\nhost: users\r\n\r\n")
                .await;
            assert_eq!(answer.status, 200);
        }
        until("what has no room is counted", || async {
            let dropped = caller.metric("leno_spans_dropped_total", &[]).await;
            (dropped > 0.0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_a_line_for_each_request_and_says_why() {
    let (app, directory) = (Upstream::named("v1").await, Directory::new());
    let path = directory.path().join("access.log");
    let flags = format!("--access-log {}", path.display());
    let (_mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), &flags).await;
    let secret =
        "GET /a?b=c HTTP/1.1\r\nhost: users\r\nauthorization: s3cret\r\ncookie: s3cret\r\n\r\n";
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.round_trip(secret).await.status, 200);
    assert_eq!(get(caller.outbound, "nobody", "/x").await.status, 404);
    let text = until("the lines are written", || async {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // Both sidecars write to it: one line by the callee's, two by the caller's.
        (text.lines().count() == 3).then_some(text)
    })
    .await;
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let out = |line: &&Value| {
        line["upstream_cluster"]
            .as_str()
            .is_some_and(|c| c.starts_with("outbound|80|"))
    };
    let good = lines.iter().find(out).expect("the caller's line");
    assert_eq!(
        (good["method"].as_str(), good["path"].as_str()),
        (Some("GET"), Some("/a?b=c"))
    );
    assert_eq!(
        (&good["response_code"], &good["bytes_sent"]),
        (&200.into(), &2.into())
    );
    assert_eq!(good["response_code_details"], "via_upstream");
    // Both ends of each connection: the callee's remote address is the caller's local one.
    let callees = lines
        .iter()
        .find(|line| !out(line) && line["response_code"] == 200)
        .expect("the callee's line");
    let outbound = caller.outbound.to_string();
    assert_eq!(good["downstream_local_address"], outbound.as_str());
    assert!(good["downstream_remote_address"].is_string());
    assert!(good["upstream_local_address"].is_string());
    assert_eq!(
        good["upstream_local_address"],
        callees["downstream_remote_address"]
    );
    assert_eq!(good["upstream_host"], callees["downstream_local_address"]);
    assert_eq!(callees["upstream_host"], app.address.to_string().as_str());
    let name = "outbound_.80_._.users.default.svc.cluster.local";
    assert_eq!(callees["requested_server_name"], name);
    let rule = good["route_name"].as_str().unwrap_or_default();
    assert!(rule.contains("users"), "{rule}");
    let bad = lines
        .iter()
        .find(|line| line["response_code"] == 404)
        .expect("a 404");
    assert_eq!(bad["response_flags"], "NR");
    let why = bad["response_code_details"].as_str().unwrap_or_default();
    assert!(why.contains("nobody"), "{why}");
    assert!(!text.contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_reporters_count_what_the_client_counts() {
    let app = Upstream::start(|seen| {
        let status = if seen.target() == "/broken" {
            "500 Broken"
        } else {
            "200 OK"
        };
        format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok").into_bytes()
    })
    .await;
    let (_mesh, caller, callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    let mut client = Client::connect(caller.outbound).await;
    for i in 0..200 {
        let path = if i % 10 == 0 { "/broken" } else { "/" };
        client
            .round_trip(format!("GET {path} HTTP/1.1\r\nhost: users\r\n\r\n"))
            .await;
    }
    let principal = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    let both = [
        "source_workload=\"web\"".to_owned(),
        "source_canonical_service=\"web\"".to_owned(),
        "source_workload_namespace=\"default\"".to_owned(),
        "source_cluster=\"Kubernetes\"".to_owned(),
        format!("source_principal=\"{}\"", principal("web")),
        format!("destination_principal=\"{}\"", principal("users")),
        "destination_service=\"users.default.svc.cluster.local\"".to_owned(),
        "destination_service_name=\"users\"".to_owned(),
        "destination_service_namespace=\"default\"".to_owned(),
        "destination_app=\"users\"".to_owned(),
        "destination_version=\"v1\"".to_owned(),
        "destination_canonical_revision=\"v1\"".to_owned(),
        "request_protocol=\"http\"".to_owned(),
    ];
    for (proxy, reporter, security) in [
        (&caller, "source", "unknown"),
        (&callee, "destination", "mutual_tls"),
    ] {
        let (reporter, security) = (
            format!("reporter=\"{reporter}\""),
            format!("connection_security_policy=\"{security}\""),
        );
        for (code, count) in [("200", 180.0), ("500", 20.0)] {
            let code = format!("response_code=\"{code}\"");
            let mut labels: Vec<&str> = both.iter().map(String::as_str).collect();
            labels.extend([&*reporter, &security, &code, "response_flags=\"-\""]);
            for name in [
                "istio_requests_total",
                "istio_request_duration_milliseconds_count",
                "istio_response_bytes_count",
            ] {
                let counted = proxy.metric(name, &labels).await;
                assert!(
                    (counted - count).abs() < 0.5,
                    "{name} {labels:?}: {counted}"
                );
            }
        }
    }
    for address in caller.stats {
        let page = get(address, "stats", "/stats/prometheus").await.text();
        assert!(page.contains("istio_requests_total") && page.contains("istio_build"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_hosts_and_paths_add_few_series() {
    let app = Upstream::named("v1").await;
    let (_mesh, caller, _callee, _) = pair(app.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let ask = "GET / HTTP/1.1\r\nhost: users\r\n\r\n";
    client.round_trip(ask).await;
    let lines = || async {
        get(caller.admin, "a", "/metrics")
            .await
            .text()
            .lines()
            .filter(|l| l.starts_with("istio_requests_total"))
            .count()
    };
    let before = lines().await;
    for i in 0..9_000 {
        client
            .round_trip(format!(
                "GET /{i}-{} HTTP/1.1\r\nhost: users\r\n\r\n",
                fastrand::u64(..)
            ))
            .await;
    }
    for i in 0..1_000 {
        client
            .round_trip(format!(
                "GET / HTTP/1.1\r\nhost: h{i}-{:x}\r\n\r\n",
                fastrand::u64(..)
            ))
            .await;
    }
    let after = lines().await;
    assert!(after - before < 50, "{before} before, {after} after");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_shows_who_calls_whom_and_what_failed() {
    let app = Upstream::named("v1").await;
    let (mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    for _ in 0..5 {
        assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    }
    assert_eq!(get(caller.outbound, "nobody", "/x?y").await.status, 404);
    let map = until("the edge and the failure are on the map", || async {
        let map = mesh.map().await;
        let edges = map["edges"].as_array()?;
        let is_it = |e: &&Value| {
            e["from"] == "default/web" && e["to"] == "default/users" && e["mtls"] == true
        };
        edges.iter().find(is_it)?;
        let errors = map["errors"].as_array()?;
        errors.iter().find(|e| e["flag"] == "NR")?;
        Some(map)
    })
    .await;
    let failure = &map["errors"][0];
    assert_eq!(
        (failure["path"].as_str(), failure["source"].as_str()),
        (Some("/x"), Some("default/web"))
    );
    assert!(
        failure["explanation"]
            .as_str()
            .is_some_and(|e| e.contains("nobody"))
    );
    let proxies = map["proxies"].as_array().expect("a list");
    assert_eq!(proxies.len(), 2);
    assert!(
        proxies
            .iter()
            .all(|p| p["clock"] == "in step" || p["clock"] == "not compared yet")
    );
    let users = map["services"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|s| s["id"] == "default/users");
    assert_eq!(users.expect("users")["endpoints"][0]["state"], "serving");
    mesh.write("broken.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: broken}\nspec: {hosts: [users], htp: []}\n");
    until("the broken object is shown", || async {
        let map = mesh.map().await;
        let objects = map["objects"].as_array()?.clone();
        objects
            .into_iter()
            .find(|o| o["name"] == "broken" && o["state"] == "error")
    })
    .await;
    let page = get(mesh.monitoring(), "leno", "/").await;
    assert!(page.text().contains("<svg") || page.text().contains("svg"));
    let metrics = get(mesh.monitoring(), "leno", "/metrics").await.text();
    for name in [
        "pilot_xds_pushes",
        "pilot_proxy_convergence_time",
        "pilot_services",
        "process_cpu_seconds_total",
        "galley_validation_failed",
        "istio_build",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
}
