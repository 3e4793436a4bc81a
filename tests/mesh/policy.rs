//! AuthorizationPolicies: allowed and refused requests.

use leno_tests::client::{Client, get};
use leno_tests::mesh::{mtls, pair};
use leno_tests::until;
use leno_tests::upstream::Upstream;

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

const WEB: &str = "cluster.local/ns/default/sa/web";

#[tokio::test(flavor = "multi_thread")]
async fn rules_decide_and_the_refusal_names_the_nearest() {
    let app = Upstream::named("users").await;
    let allow = policy(
        "readers",
        &format!(
            "{{selector: {{matchLabels: {{app: users}}}}, rules: [{{from: [{{source: {{principals: [{WEB}]}}}}], to: [{{operation: {{methods: [GET], paths: [/users/*, '*.css', /exact]}}}}]}}]}}"
        ),
    );
    let deny = policy(
        "secrets",
        "{action: DENY, rules: [{to: [{operation: {paths: [/users/secret*]}}]}]}",
    );
    let yaml = format!("{}{allow}{deny}", mtls("STRICT"));
    let (_mesh, caller, _callee, _) = pair(app.address, &yaml, "").await;
    let mut client = Client::connect(caller.outbound).await;
    for (method, path, status) in [
        ("GET", "/users/1", 200),
        ("GET", "/a/b.css", 200),
        ("GET", "/exact", 200),
        ("GET", "/users", 403),
        ("GET", "/exact/more", 403),
        ("POST", "/users/1", 403),
        ("GET", "/users/secret/1", 403),
        ("GET", "/users/%73ecret/1", 403),
        ("GET", "/users/../admin", 403),
        ("GET", "/x/../users/1", 200),
    ] {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: users\r\nContent-Length: 0\r\n\r\n");
        let response = client.round_trip(request).await;
        assert_eq!(response.status, status, "{method} {path}");
        if status == 403 {
            assert_eq!(response.text(), "RBAC: access denied");
            assert!(
                response.proxy_status().contains("ns[default]-policy["),
                "{}",
                response.proxy_status()
            );
        }
    }
    assert_eq!(app.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_and_an_empty_policy() {
    for (spec, allowed) in [
        (
            "{rules: [{from: [{source: {namespaces: [default]}}]}]}",
            true,
        ),
        (
            "{rules: [{from: [{source: {namespaces: ['def*']}}]}]}",
            true,
        ),
        (
            "{rules: [{from: [{source: {namespaces: [other]}}]}]}",
            false,
        ),
        ("{rules: [{from: [{source: {principals: ['*']}}]}]}", true),
        ("{rules: [{}]}", true),
        ("{}", false),
    ] {
        let app = Upstream::named("users").await;
        let yaml = format!("{}{}", mtls("STRICT"), policy("one", spec));
        let (_mesh, caller, _callee, _) = pair(app.address, &yaml, "").await;
        let status = get(caller.outbound, "users", "/").await.status;
        assert_eq!(status == 200, allowed, "{spec}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_policy_denies_and_one_that_breaks_stays_as_it_was() {
    let app = Upstream::named("users").await;
    let (mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    let status = || async { get(caller.outbound, "users", "/").await.status };
    assert_eq!(status().await, 200);
    // Never valid: it fails closed for the workloads that it selects.
    mesh.write(
        "policy.yaml",
        &policy(
            "one",
            "{selector: {matchLabels: {app: users}}, rules: [{when: [{key: x}]}]}",
        ),
    );
    until("the broken policy denies", || async {
        (status().await == 403).then_some(())
    })
    .await;
    assert!(
        mesh.problems()[0].contains("policy.yaml:5:"),
        "{:?}",
        mesh.problems()
    );
    mesh.write(
        "policy.yaml",
        &policy("one", "{rules: [{to: [{operation: {methods: [GET]}}]}]}"),
    );
    until("the mended policy allows", || async {
        (status().await == 200).then_some(())
    })
    .await;
    // Valid once: its last good form stays in force.
    mesh.write(
        "policy.yaml",
        &policy("one", "{rules: [{to: [{operation: {methodz: [PUT]}}]}]}"),
    );
    until("the mistake is told", || async {
        (!mesh.problems().is_empty()).then_some(())
    })
    .await;
    assert_eq!(status().await, 200);
}
