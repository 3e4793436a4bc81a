use std::path::PathBuf;

use super::*;
use crate::object::{Origin, Place, Severity};

/// The place of an origin in a file.
pub(super) fn place(origin: &Origin) -> &Place {
    let Origin::File(place) = origin;
    place
}

pub(super) fn read_text(text: &str) -> Contents {
    read(&Arc::new(PathBuf::from("a.yaml")), text, &Limits::default())
}

pub(super) fn only(text: &str) -> Result<Object, Problem> {
    let Contents {
        mut objects,
        mut problems,
        ..
    } = read_text(text);
    assert_eq!(
        objects.len() + problems.len(),
        1,
        "{objects:?} {problems:?}"
    );
    problems.pop().map_or_else(|| Ok(objects.remove(0)), Err)
}

const GUIDE: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: user-service
spec:
  hosts:
  - user-service
  http:
  - match:
    - headers:
        user-agent:
          regex: ".*Mobile.*"
    route:
    - destination:
        host: user-service
        subset: v2  # Route mobile users to v2
      weight: 100
  - route:
    - destination:
        host: user-service
        subset: v1
      weight: 90
    - destination:
        host: user-service
        subset: v2
      weight: 10
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: user-service
spec:
  host: user-service
  trafficPolicy:
    loadBalancer:
      simple: LEAST_CONN
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 50
        maxRequestsPerConnection: 2
    outlierDetection:  # Circuit breaking
      consecutive5xxErrors: 5
      interval: 30s
      baseEjectionTime: 30s
      maxEjectionPercent: 50
  subsets:
  - name: v1
    labels:
      version: v1
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: user-service-authz
  namespace: default
spec:
  selector:
    matchLabels:
      app: user-service
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/order-service"]
    to:
    - operation:
        methods: ["GET"]
        paths: ["/users/*"]
"#;

#[test]
fn the_guides_objects_are_read_as_they_stand() {
    let Contents {
        objects, problems, ..
    } = read_text(GUIDE);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(objects.len(), 3);
    assert_eq!(
        objects[0].key.to_string(),
        "default/user-service VirtualService"
    );
    assert_eq!(objects[1].origin.to_string(), "a.yaml:29:1");
    let Spec::VirtualService(rules) = &objects[0].spec else {
        panic!("{objects:?}");
    };
    let mobile = &rules.http[0].matches[0].headers["user-agent"];
    assert_eq!(
        *mobile,
        virtual_service::StringMatch::Regex(".*Mobile.*".to_owned())
    );
    let Spec::DestinationRule(rule) = &objects[1].spec else {
        panic!("{objects:?}");
    };
    let policy = rule.traffic_policy.as_ref().expect("given");
    let simple = policy.load_balancer.expect("given").simple;
    assert_eq!(simple, destination_rule::SimpleLb::LeastRequest);
}

#[test]
fn a_mistake_is_told_with_its_place_and_its_object() {
    let header = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: a\n";
    for (spec, place, words) in [
        (
            "spec:\n  hosts: [b]\n  http:\n  - mirror: {host: b}\n",
            "a.yaml:8:5",
            "mirror",
        ),
        (
            "spec:\n  hosts: [b]\n  http:\n  - timeout: 5\n",
            "a.yaml:8:14",
            "not a duration",
        ),
        ("spec:\n  hosts: ['*.b']\n", "a.yaml:6:11", "wildcard"),
        (
            "spec:\n  hosts: [b]\n  http:\n  - match:\n    - uri: {regex: '('}\n",
            "a.yaml:9:20",
            "not a regular expression",
        ),
        (
            "spec:\n  hosts: [b]\n  http:\n  - match:\n    - uri: {exact: a, prefix: b}\n",
            "a.yaml:9:",
            "exclude each other",
        ),
        (
            "spec:\n  hosts: [b]\n  hosts: [c]\n",
            "a.yaml:7:3",
            "duplicate",
        ),
    ] {
        let problem = only(&format!("{header}{spec}")).expect_err(spec);
        let text = problem.to_string();
        assert!(text.starts_with(place), "{text}");
        assert!(text.contains(words), "{text}");
        assert!(text.contains("default/a VirtualService"), "{text}");
    }
}

#[test]
fn a_broken_document_leaves_its_neighbours_alone() {
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    let all = read_text(&format!(
        "{service}---\nkind: [\n---\n# nothing\n---\n{service}"
    ));
    assert_eq!((all.objects.len(), all.problems.len()), (2, 1), "{all:?}");
    assert_eq!(place(&all.objects[1].origin).line, 10);
    assert!(all.is_incomplete);
}

#[test]
fn other_kinds_are_a_notice_but_what_protects_is_an_error() {
    let of = |version: &str, kind: &str| {
        only(&format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"
        ))
        .expect_err("not used")
    };
    assert_eq!(of("apps/v1", "Deployment").severity, Severity::Notice);
    assert_eq!(
        of("networking.istio.io/v1", "Gateway").severity,
        Severity::Notice
    );
    let request = of("security.istio.io/v1", "RequestAuthentication");
    assert_eq!(request.severity, Severity::Error);
}

#[test]
fn a_broken_policy_still_says_whom_it_is_for() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n\
                spec:\n  selector: {matchLabels: {app: x}}\n  rules: [{when: []}]\n";
    let problem = only(text).expect_err("when is not supported");
    let closes = problem.fail_closed.expect("it protects");
    assert_eq!(closes.selector.get("app").map(String::as_str), Some("x"));
    let text = text.replace("matchLabels", "matchLables");
    let all = read_text(&text).problems;
    assert_eq!(all.len(), 2, "{all:?}");
    for problem in all {
        assert!(
            problem
                .fail_closed
                .expect("it protects")
                .selector
                .is_empty()
        );
    }
}

#[test]
fn a_rule_that_renders_to_nothing_does_not_mean_everyone() {
    let policy = |rules: &str| {
        only(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec: {{rules: [{rules}]}}\n"
        ))
    };
    for rules in [
        "{from: []}",
        "{from: [{}]}",
        "{from: [{source: {}}]}",
        "{from: [{source: {principals: []}}]}",
        "{to: []}",
        "{to: [{operation: {methods: []}}]}",
        "{to: [{operation: {paths: ['/a/{*}/b']}}]}",
    ] {
        assert!(policy(rules).is_err(), "{rules}");
    }
    assert!(policy("{}").is_ok());
    assert!(policy("{from: [{source: {namespaces: [a]}}]}").is_ok());
}

#[test]
fn yaml_is_bounded() {
    let file = Arc::new(PathBuf::from("a.yaml"));
    let with = |limits: Limits, text: &str| {
        let Contents {
            mut objects,
            mut problems,
            ..
        } = read(&file, text, &limits);
        problems.pop().map_or_else(|| Ok(objects.remove(0)), Err)
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let bytes = |bytes| Limits {
        bytes,
        ..Limits::default()
    };
    assert!(with(bytes(service.len()), service).is_ok());
    let error = with(bytes(service.len() - 1), service).expect_err("too large");
    assert!(error.message.contains("at most"), "{error}");

    let nested = |depth: usize| format!("{service}x: {}{}\n", "[".repeat(depth), "]".repeat(depth));
    let depth = |depth| Limits {
        depth,
        ..Limits::default()
    };
    let within = with(depth(9), &nested(8)).expect_err("x is no field");
    assert!(within.message.contains("no such field"), "{within}");
    let error = with(depth(9), &nested(9)).expect_err("too deep");
    assert!(error.message.to_lowercase().contains("depth"), "{error}");

    let aliases = |count: usize| {
        let list = ["*a"].repeat(count).join(", ");
        format!("x: &a 1\ny: [{list}]\n{service}")
    };
    let limits = Limits {
        aliases: 3,
        ..Limits::default()
    };
    let error = with(limits, &aliases(4)).expect_err("too many");
    assert!(error.message.to_lowercase().contains("alias"), "{error}");
    let within = with(limits, &aliases(3)).expect_err("x is no field");
    assert!(within.message.contains("no such field"), "{within}");
}
