//! Golden files: `NAME.in.yaml` becomes `NAME.out.yaml`, with its report in `NAME.txt`. `LENO_REWRITE=1` writes them.

use std::path::Path;

use super::{Injection, Settings};
use crate::cli::inject::inject;

fn settings() -> Settings {
    Settings {
        image: "localhost/leno-proxy:test".to_owned(),
        xds_address: "leno.leno-system.svc:15012".to_owned(),
        xds_identity: String::new(),
        trust_domain: "cluster.local".to_owned(),
        join_token_secret: None,
        ca_root_configmap: "leno-ca-root-cert".to_owned(),
    }
}

fn golden(file: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/inject/golden")
        .join(file);
    if std::env::var_os("LENO_REWRITE").is_some() {
        std::fs::write(&path, found).expect("written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file");
    assert_eq!(found, expected, "{file}");
}

#[test]
fn every_kind_gets_its_sidecar_and_what_can_not_have_one_says_why() {
    for (name, text) in [
        ("shop", include_str!("golden/shop.in.yaml")),
        ("left", include_str!("golden/left.in.yaml")),
    ] {
        let (out, report) = inject(text, "x.yaml", &settings()).expect("YAML");
        golden(&format!("{name}.out.yaml"), &out);
        let objects = report
            .objects
            .iter()
            .map(|(object, outcome)| match outcome {
                Injection::Injected => format!("{object}: injected\n"),
                Injection::Skipped(reason) => format!("{object}: {reason}\n"),
            });
        let warnings = report.warnings.iter().map(|warning| format!("{warning}\n"));
        golden(
            &format!("{name}.txt"),
            &objects.chain(warnings).collect::<String>(),
        );
        // A second injection changes nothing.
        let (again, report) = inject(&out, "x.yaml", &settings()).expect("YAML");
        assert_eq!(again, out, "{name}");
        assert!(
            report
                .objects
                .iter()
                .all(|(_, outcome)| *outcome != Injection::Injected)
        );
    }
}

#[test]
fn a_join_token_can_come_from_a_secret() {
    let settings = Settings {
        join_token_secret: Some("join".to_owned()),
        ..settings()
    };
    let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";
    let (out, _) = inject(pod, "x.yaml", &settings).expect("YAML");
    assert!(
        out.contains("secret:") && !out.contains("serviceAccountToken") && !out.contains("CA_ROOT"),
        "{out}"
    );
}

#[test]
fn what_is_no_yaml_is_told_by_its_line() {
    let error = inject("kind: Pod\n---\na: [\n", "x.yaml", &settings()).expect_err("no YAML");
    let text = error.to_string();
    assert!(text.starts_with("x.yaml:"), "{text}");
}
