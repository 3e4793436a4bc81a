//! Each object of a text is read as an object or reported in a problem, in whatever form it is written.

use super::tests::{only, place, read_text};
use super::*;
use crate::object::Severity;

/// The problems of a text, each as a person reads it.
fn problems(text: &str) -> Vec<String> {
    let all = read_text(text).problems;
    all.iter().map(ToString::to_string).collect()
}

/// The problems of a text, each with its fail-closed effect.
fn closings(text: &str) -> Vec<String> {
    let all = read_text(text).problems;
    let one = |problem: &Problem| {
        let key = problem
            .key
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        let closes = problem.fail_closed.as_ref();
        let closes =
            closes.map_or_else(String::new, |c| format!("{:?} {:?}", c.effect, c.selector));
        format!(
            "{} {:?} {key} {closes}",
            place(&problem.origin).line,
            problem.severity
        )
    };
    all.iter().map(one).collect()
}

const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: users}\n\
    spec: {template: {metadata: {labels: {app: users}}}}\n";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n\
    spec: {selector: {matchLabels: {app: users}}, mtls: {mode: STRICT}}\n";
const DENY: &str = "kind: AuthorizationPolicy\napiVersion: security.istio.io/v1\nmetadata: {name: q}\n\
    spec: {action: DENY, rules: [{}]}\n";

#[test]
fn what_stands_behind_a_missing_separator_is_named_and_closes() {
    let strict = r#"Error shop/p PeerAuthentication Strict {"app": "users"}"#;
    let deny = "Error default/q AuthorizationPolicy Deny {}";
    for (text, problems) in [
        (
            format!("{DEPLOYMENT}{STRICT}{DENY}"),
            vec![
                "1 Notice default/users Deployment ".to_owned(),
                format!("5 {strict}"),
                format!("9 {deny}"),
            ],
        ),
        (
            format!("{STRICT}\n# and\n{DEPLOYMENT}"),
            vec![
                format!("7 {strict}"),
                "7 Error default/users Deployment ".to_owned(),
                "7 Notice default/users Deployment ".to_owned(),
            ],
        ),
        (
            // One that names its kind before its apiVersion, and one that is cut off.
            format!("{DENY}kind: PeerAuthentication\n"),
            vec![
                format!("5 {deny}"),
                "5 Error ?/? PeerAuthentication ".to_owned(),
                "5 Error ?/? PeerAuthentication Strict {}".to_owned(),
            ],
        ),
        (
            format!("{DEPLOYMENT}{}", DENY.replace("[{}]", "[{}")),
            vec!["8 Error ?/q AuthorizationPolicy Deny {}".to_owned()],
        ),
        (
            r#"{"kind": "List", "apiVersion": "v1", "items": [{"apiVersion": "v1", "kind": "Service", "kind": "AuthorizationPolicy"}]}"#.to_owned(),
            vec![
                "1 Error ?/? Service ".to_owned(),
                "1 Error ?/? Service ".to_owned(),
                "1 Error ?/? Service ".to_owned(),
                "1 Error ?/? AuthorizationPolicy ".to_owned(),
                "1 Error ?/? AuthorizationPolicy Deny {}".to_owned(),
            ],
        ),
    ] {
        assert_eq!(closings(&text), problems, "{text}");
        assert!(read_text(&text).objects.is_empty(), "{text}");
    }
}

#[test]
fn the_items_of_a_list_are_objects_with_places_of_their_own() {
    let block = "apiVersion: v1\nitems:\n- apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n  metadata:\n    name: p\n    \
        annotations:\n      last: |\n        {\"kind\": \"Service\"}\n    managedFields:\n    - apiVersion: v1\n  spec:\n    mtls:\n      mode: STRICT\n  \
        status: {}\n\n# next\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: s\n  spec:\n    ports:\n    - port: 80000\nkind: List\n\
        metadata:\n  resourceVersion: \"\"\n";
    let Contents {
        objects, problems, ..
    } = read_text(block);
    assert_eq!(objects.len(), 1, "{problems:?}");
    assert_eq!(objects[0].origin.to_string(), "a.yaml:3:3");
    assert_eq!(problems[0].origin.to_string(), "a.yaml:24:13");
    // Its text is an object by itself, as a restart reads it.
    let alone = only(&objects[0].text).expect("an object");
    assert_eq!(
        (&alone.key, &alone.spec),
        (&objects[0].key, &objects[0].spec)
    );

    let flow = "{\n\t\"apiVersion\": \"networking.istio.io/v1\", \"kind\": \"VirtualServiceList\",\n\t\"items\": [\n\t\t\
        {\"apiVersion\": \"networking.istio.io/v1\", \"kind\": \"VirtualService\", \"metadata\": {\"name\": \"v\"},\n\t\t \"spec\": {\"hosts\": [\"a\"]}},\n\
        {\"kind\": \"VirtualService\"}, 5]}";
    let Contents {
        objects, problems, ..
    } = read_text(flow);
    assert_eq!(objects[0].origin.to_string(), "a.yaml:4:3");
    assert_eq!(
        only(&objects[0].text).expect("an object").spec,
        objects[0].spec
    );
    let places: Vec<u64> = problems.iter().map(|p| place(&p.origin).line).collect();
    assert_eq!(places, [6, 6], "{problems:?}");
    assert_eq!(closings("apiVersion: v1\nkind: List\n"), ["1 Error  "]);
    assert!(closings("apiVersion: v1\nkind: List\nitems: []\n").is_empty());
}

#[test]
fn every_mistake_of_an_object_is_told_in_one_reading() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  gateways: [g]\n  host: [b]\n  http:\n  \
        - timeouts: 5s\n    timeout: 5\n    route:\n    - destination: {host: b, port: {number: 0}}\n      weight: -1\n    match:\n    \
        - uri: {exact: a, prefix: b}\n      zone: x\n  - retries: {attempts: many}\n  - timeout: 1s\n    timeout: 2s\n";
    let told: Vec<String> = (problems(text).iter())
        .map(|told| told.replace("error: default/a VirtualService: ", ""))
        .collect();
    let right = [
        "a.yaml:18:5: duplicate key `timeout`: it stands in line 17 already",
        "a.yaml:5:3: the field `gateways` is Istio's, and not supported yet by this version of Leno",
        "a.yaml:6:3: no such field `host`; the nearest is `hosts`",
        "a.yaml:8:5: no such field `timeouts`; the nearest is `timeout`",
        "a.yaml:9:14: \"5\" is not a duration such as 30s, 1m30s or 250ms",
        "a.yaml:11:45: 0 is not a port; it must be 1 to 65535",
        "a.yaml:12:15: weight -1 must be 0 to 1000000",
        "a.yaml:14:12: exact, prefix and regex exclude each other",
        "a.yaml:15:7: no such field `zone`; there are `name`, `uri`, `method`, `headers`, `queryParams`",
        "a.yaml:16:25: \"many\" stands here, where a number is expected",
    ];
    assert_eq!(told, right);
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  action: AUDIT\n  rules:\n  - from:\n    - source: {ipBlocks: [a]}\n  - to: []\n";
    let all = problems(text);
    let words = [
        "`AUDIT` is Istio's",
        "`ipBlocks` is Istio's",
        "the list is empty",
    ];
    assert_eq!(all.len(), words.len(), "{all:?}");
    for (problem, words) in all.iter().zip(words) {
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn what_is_no_object_is_a_notice_unless_it_is_meant_as_one() {
    for (text, problems) in [
        ("name: chart\nversion: 1\n", &["1 Notice  "][..]),
        ("apiVersion: v2\nname: chart\n", &["1 Notice  "]),
        ("kind: DaemonSet\nimage: a\n", &["1 Notice ?/? DaemonSet "]),
        ("- a\n- b\n", &["1 Notice  "]),
        (
            "extra:\n- apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n",
            &["1 Notice  "],
        ),
        (
            "kind: AuthorizationPolicy\n",
            &["1 Error ?/? AuthorizationPolicy Deny {}"],
        ),
        (
            "apiVersion: security.istio.io/v1\n",
            &["1 Error ?/? ? Deny {}"],
        ),
        (
            "apiversion: security.istio.io/v1\nKind: PeerAuthentication\n",
            &["1 Error ?/? PeerAuthentication Strict {}"],
        ),
        (
            "- apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n",
            &["1 Error ?/? PeerAuthentication Strict {}"],
        ),
    ] {
        assert_eq!(closings(text), problems, "{text}");
    }
}

#[test]
fn a_namespace_that_may_have_been_meant_closes_the_mesh() {
    for (metadata, namespace) in [
        ("{name: a}", "default"),
        ("{name: a, namespace: shop}", "shop"),
        ("{name: a, namepsace: shop}", ""),
        ("{name: a, Namespace: shop}", ""),
        ("{name: a, namespace: shop, namespace: other}", ""),
        ("{name: a}\nmetdata: {namespace: shop}", ""),
        ("{name: a}\nnamespace: shop", ""),
        ("\nname: a\nnamespace: shop", ""),
        ("{name: a, namespace: '${NAMESPACE}'}", ""),
        ("{name: a, namespace: [shop]}", ""),
        ("{name: a, namespace: Shop}", ""),
        ("{name: a, namespace: }", "default"),
        ("{name: a}\nmetadata: {namespace: shop}", "shop"),
    ] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {metadata}\nspec: {{mtls: {{mode: STRICKT}}}}\n"
        );
        for problem in read_text(&text).problems {
            let key = problem.key.as_ref().expect("known");
            assert_eq!(key.namespace, namespace, "{text}");
            assert!(problem.fail_closed.is_some(), "{text}");
        }
    }
    let problem = only("apiVersion: v1\nkind: Service\nmetadata: {name: a, label: {}}\n");
    let problem = problem.expect_err("no such field").to_string();
    assert!(
        problem.contains("no such field `label`; the nearest is `labels`"),
        "{problem}"
    );
}

#[test]
fn a_dry_run_is_read_and_never_closes() {
    let policy = |value: &str, action: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
            metadata: {{name: a, annotations: {{istio.io/dry-run: \"{value}\"}}}}\nspec: {{action: {action}, rules: [{{}}]}}\n"
        )
    };
    for (value, is_dry) in [
        ("true", true),
        ("1", true),
        ("T", true),
        ("false", false),
        ("0", false),
    ] {
        assert_eq!(
            only(&policy(value, "DENY")).expect("good").dry_run,
            is_dry,
            "{value}"
        );
    }
    let broken = only(&policy("true", "DENI")).expect_err("no action");
    assert_eq!(
        (broken.severity, broken.fail_closed),
        (Severity::Error, None)
    );
    assert!(
        only(&policy("false", "DENI"))
            .expect_err("no action")
            .fail_closed
            .is_some()
    );
    let unclear = read_text(&policy("maybe", "DENY"));
    assert!(!unclear.objects[0].dry_run);
    assert_eq!(unclear.problems[0].severity, Severity::Warning);
}

#[test]
fn aliases_and_merges_are_read_as_their_text() {
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: &m {name: a}\nspec:\n  host: b\n  subsets:\n  \
        - &one\n    name: v1\n    labels: {version: 1.10}\n  - <<: *one\n    name: v2\n";
    let object = only(rule).expect("good");
    let Spec::DestinationRule(rule) = &object.spec else {
        panic!("{object:?}");
    };
    let subsets: Vec<_> = rule
        .subsets
        .iter()
        .map(|s| (&*s.name, &*s.labels["version"]))
        .collect();
    assert_eq!(subsets, [("v1", "1.10"), ("v2", "1.10")]);
    for (text, words) in [
        (
            "apiVersion: v1\nkind: &a [*a]\n",
            "refers to what it stands in",
        ),
        ("apiVersion: v1\nkind: !!binary aGk=\n", "tags of this kind"),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, portLevelMtls: {80: {}, 0x50: {}}}\n",
            "duplicate key `0x50`",
        ),
    ] {
        let problem = only(text).expect_err(text);
        assert!(problem.message.contains(words), "{problem}");
    }
    let bomb = (1..9).fold(
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(),
        |text, i| {
            let of = vec![format!("*a{}", i - 1); 10].join(", ");
            format!("{text}a{i}: &a{i} [{of}]\n")
        },
    );
    assert!(
        only(&bomb)
            .expect_err("too much")
            .message
            .contains("more than 100000 values")
    );
}

#[test]
fn a_string_that_matches_nothing_is_an_error_in_a_deny_and_a_warning_in_an_allow() {
    let policy = |action: &str, rule: &str| {
        read_text(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec:\n  action: {action}\n  rules:\n  - {rule}\n"
        ))
    };
    let from = |source: &str| format!("from: [{{source: {{{source}}}}}]");
    let to = |operation: &str| format!("to: [{{operation: {{{operation}}}}}]");
    for rule in [
        from("principals: ['spiffe://cluster.local/ns/a/sa/b']"),
        from("principals: [cluster.local/ns/a/sa/b, a*b]"),
        from("namespaces: ['a/b']"),
        to("methods: [get]"),
        to("paths: ['users/*']"),
        to("paths: ['/ok', '/a*b']"),
    ] {
        let denied = policy("DENY", &rule);
        assert!(denied.objects.is_empty(), "{rule}");
        assert_eq!(denied.problems.len(), 1, "{:?}", denied.problems);
        let problem = &denied.problems[0];
        assert_eq!(
            (problem.severity, place(&problem.origin).line),
            (Severity::Error, 7)
        );
        assert!(
            place(&problem.origin).column > 10 && problem.fail_closed.is_some(),
            "{problem}"
        );
        let allowed = policy("ALLOW", &rule);
        assert_eq!(allowed.objects.len(), 1, "{:?}", allowed.problems);
        assert_eq!(allowed.problems[0].severity, Severity::Warning, "{rule}");
    }
    let template = policy("ALLOW", &to("paths: ['/a/{*}']"));
    assert_eq!(template.problems[0].severity, Severity::Error);
}

#[test]
fn what_only_seems_to_be_read_is_an_error() {
    let policy = |metadata: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec: {spec}\n"
        )
    };
    let deny = policy("{name: p}", "{action: DENY, rules: [{}]}");
    let item = format!("- {}", deny.trim_end().replace('\n', "\n  "));
    let mesh = "Error ?/p AuthorizationPolicy Deny {}";
    let own = "Error default/p AuthorizationPolicy Deny {}";
    for (text, closes) in [
        // Lists that say more than their items, or say them twice.
        (format!("apiVersion: v1\nkind: List\nitems: []\nitems:\n{item}\n"), own),
        (format!("apiVersion: v1\nkind: List\nitems: []\nItems:\n{item}\n"), "Error"),
        ("apiVersion: v1\nkind: List\nitems: []\nspec: {action: DENY, rules: [{}]}\n".to_owned(), "Error"),
        ("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems:\n- metadata: {name: p}\n  spec: {action: DENY}\n".to_owned(), own),
        ("apiVersion: v1\nkind: List\nitems:\n- metadata: {name: p}\n".to_owned(), "Error"),
        (format!("apiVersion: v1\nitems:\n  {}\n", deny.trim_end().replace('\n', "\n  ")), "Deny"),
        // Merge keys that merge nothing.
        (policy("{name: p}", "{<<: '*strict'}"), "Deny"),
        (policy("{name: p}", "{action: ALLOW, rules: [{<<: '*only-admin'}]}"), "Deny"),
        (policy("{name: p}", "{<<: }"), "Deny"),
        (policy("{name: p}", "{<<: {action: DENY}, <<: {action: ALLOW}}"), "Deny"),
        // Namespaces that there can't be, or that stand where none is read.
        (policy("{name: p, namespace: {{ .Values.namespace }}}", "{}"), mesh),
        (policy("{name: p, namespace: '${NAMESPACE}'}", "{}"), mesh),
        (policy("{name: p, namespace: Prod}", "{}"), mesh),
        (policy("{name: p, namespace: |\n    prod\n  }", "{}"), "Deny"),
        (deny.replace("{name: p}\n", "\n  name: p\nnamespace: prod\n"), mesh),
        (deny.replace("{name: p}\n", "\nname: p\nnamespace: prod\n"), "Error ?/? AuthorizationPolicy Deny {}"),
        // Texts that are torn.
        (r#"{"metadata":{"name":"p","annotations":{"a":"ticket #12"}},"kind":"AuthorizationPolicy","apiVersion":"security.istio.io/v1","spec":{}"#.to_owned(), mesh),
        (format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c, namespace: a}}\n  {}", deny.replace('\n', "\n  ")), "Error ?/? AuthorizationPolicy Deny {}"),
        ("kind: AuthorizationPolicy\nmetadata: {name: p, labels: {namespace: a}\n".to_owned(), mesh),
        // Said twice, once as a dry run.
        (policy("{name: p, annotations: {istio.io/dry-run: 'true', istio.io/dry-run: 'false'}}", "{}"), own),
        // Half a header.
        ("Kind: RequestAuthentication\nmetadata: {name: p}\n".to_owned(), "Deny"),
        ("version: security.istio.io/v1\ntype: AuthorizationPolicy\n".to_owned(), "Deny"),
        ("apiVersion: v1\nmetadata: {name: p}\nspec: {ports: [{port: 80}]}\n".to_owned(), "Error"),
        (format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n{}", deny.replace("kind", "Kind").replace("apiVersion", "apiversion")), "Deny"),
        // Restrictions of a Sidecar, and its detour.
        ("apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: p}\nspec: {outboundTrafficPolicy: {}}\n".to_owned(), "Error"),
        ("apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: p}\nspec: {ingress: [{port: {number: 1}}]}\n".to_owned(), "Error"),
    ] {
        let told = closings(&text);
        assert!(told.iter().any(|told| told.contains(closes)), "{text}\n{told:#?}");
        assert!(read_text(&text).objects.is_empty(), "{text}");
    }
    let harmless = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: p}\nspec: {egress: [{hosts: ['*/*']}]}\n";
    assert_eq!(closings(harmless), ["1 Notice default/p Sidecar "]);
}

#[test]
fn what_would_be_looked_at_again_for_each_of_its_parts_is_not() {
    // Each of these would take minutes.
    let list = |item: &str| {
        format!(
            "apiVersion: v1\nkind: List\nitems: [{}]\n",
            [item].repeat(8000).join(", ")
        )
    };
    let twice = format!("{STRICT}x:\n{}", "  a: 1\n".repeat(8000));
    let torn = format!("[\n{}", "kind: PeerAuthentication\n".repeat(8000));
    for (text, most) in [
        (list("1"), 1),
        (list("{kind: PeerAuthentication}"), 8000),
        (twice, 41),
        (torn, 1),
        ("a: 1\n---\n".repeat(5000), 1001),
    ] {
        let count = read_text(&text).problems.len();
        assert!((1..=most).contains(&count), "{count} of {}", &text[..40]);
    }
}
