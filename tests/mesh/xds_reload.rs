//! Changes of the YAML reach the proxies, live.

use leno_tests::client::get;
use leno_tests::dns::Dns;
use leno_tests::mesh::{Mesh, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};
use std::net::Ipv4Addr;

fn all_to(subset: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: users}}\nspec:\n  hosts: [users]\n  http:\n  - route: [{{destination: {{host: users, subset: {subset}}}}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: users}}\nspec: {{host: users, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n"
    )
}

async fn two_versions() -> (Mesh, Vec<Proxy>, String) {
    let ips: [Ipv4Addr; 2] = [fresh_ip(), fresh_ip()];
    let yaml = service("users", &[(ips[0], "v1"), (ips[1], "v2")]) + &mtls("STRICT");
    let mesh = Mesh::start(&yaml).await;
    mesh.write("routing.yaml", &all_to("v1"));
    mesh.wait_routed().await;
    let mut callees = Vec::new();
    for (ip, name) in ips.into_iter().zip(["v1", "v2"]) {
        let app = Upstream::named(name).await;
        callees.push(mesh.workload("users", ip, app.address).await);
    }
    (mesh, callees, yaml)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_keeps_its_last_good_form_and_is_told() {
    let (mesh, _callees, _) = two_versions().await;
    let caller = mesh.proxy("web", "").await;
    assert_eq!(get(caller.outbound, "users", "/").await.text(), "v1");
    mesh.write("routing.yaml", &all_to("v2").replace("http:", "htpp:"));
    until("the mistake is told", || async {
        mesh.problems()
            .first()
            .filter(|p| p.contains("routing.yaml:7:3"))
            .map(drop)
    })
    .await;
    assert_eq!(get(caller.outbound, "users", "/").await.text(), "v1");
    mesh.write("routing.yaml", &all_to("v2"));
    until("the mended form runs", || async {
        (get(caller.outbound, "users", "/").await.text() == "v2").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_goes_on_without_a_control_plane_and_takes_up_what_changed() {
    let (mut mesh, _callees, _) = two_versions().await;
    let caller = mesh.proxy("web", "--config-wait 300ms").await;
    assert_eq!(get(caller.outbound, "users", "/").await.text(), "v1");
    mesh.stop_control_plane().await;
    assert_eq!(get(caller.outbound, "users", "/").await.text(), "v1");
    until("an unknown name says why", || async {
        let response = get(caller.outbound, "others", "/").await;
        response
            .proxy_status()
            .contains("control plane unreachable since")
            .then_some(())
    })
    .await;
    mesh.write("routing.yaml", &all_to("v2"));
    mesh.start_control_plane().await;
    until("the change is taken up", || async {
        (get(caller.outbound, "users", "/").await.text() == "v2").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_service_is_found_by_who_asked_for_it_before() {
    let (mesh, _callees, yaml) = two_versions().await;
    let caller = mesh.proxy("web", "").await;
    assert_eq!(get(caller.outbound, "late", "/").await.status, 404);
    let (ip, app) = (fresh_ip(), Upstream::named("late").await);
    mesh.write(
        "mesh.yaml",
        &format!("{yaml}{}", service("late", &[(ip, "v1")])),
    );
    let _late = mesh.workload("late", ip, app.address).await;
    until("it is found", || async {
        (get(caller.outbound, "late", "/").await.text() == "late").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_when_they_are_used_and_kept_when_they_vanish() {
    let (dns, app) = (Dns::start().await, Upstream::named("external").await);
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e}}\nspec:\n  hosts: [api.example.com, unused.example.com]\n  resolution: DNS\n  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {}}}]\n",
        app.address.port()
    );
    let mesh = Mesh::start_with(&entry, |bootstrap| bootstrap.dns_server = Some(dns.address)).await;
    let caller = mesh.proxy("web", "").await;
    let status = || async { get(caller.outbound, "api.example.com", "/").await.status };
    assert_eq!(status().await, 503, "there is no such name yet");
    let asked = dns.queries("api.example.com");
    assert!(
        asked > 0 && dns.queries("unused.example.com") == 0,
        "{asked}"
    );
    dns.set("api.example.com", &[Ipv4Addr::LOCALHOST], 1);
    until("the name is found", || async {
        (status().await == 200).then_some(())
    })
    .await;
    let again = dns.queries("api.example.com") + 1;
    dns.remove("api.example.com");
    until("it is asked for again", || async {
        (dns.queries("api.example.com") > again).then_some(())
    })
    .await;
    assert_eq!(
        status().await,
        200,
        "what can't be resolved keeps its addresses"
    );
    let other = fresh_ip();
    dns.set("api.example.com", &[other], 1);
    until("the new address is used", || async {
        (status().await == 503).then_some(())
    })
    .await;
}
