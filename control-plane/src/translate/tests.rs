//! Golden files: `golden/NAME.yaml` beside `golden/NAME.golden`. `LENO_REWRITE=1` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leno_proto::fields::{ValueType, table};
use leno_proto::prost::Message;
use leno_proto::type_url::short;
use leno_proto::{Any, fields};

use super::*;
use crate::compile::Settings;
use crate::istio::{Limits, read};
use crate::mesh::OutboundTrafficPolicy;
use crate::source::last_good::{LastGood, Reading};

/// An encoded message as text: names from the field table, maps sorted.
fn text(message: &str, mut bytes: &[u8], indent: usize, out: &mut String) {
    use leno_proto::prost::bytes::Buf;
    use leno_proto::prost::encoding::{WireType, decode_key, decode_varint};
    let fields = &table()[message];
    let pad = "  ".repeat(indent);
    let mut entries = Vec::new();
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).expect("well-formed");
        let field = fields
            .iter()
            .find(|field| field.number == number)
            .expect("in the table");
        if wire == WireType::Varint {
            let value = decode_varint(&mut bytes).expect("well-formed");
            writeln!(out, "{pad}{}: {value}", field.name).expect("a string");
            continue;
        }
        let length = decode_varint(&mut bytes).expect("well-formed");
        let value = &bytes[..usize::try_from(length).expect("small")];
        bytes.advance(value.len());
        let mut inside = String::new();
        match field.inside {
            None => {
                let plain = std::str::from_utf8(value)
                    .ok()
                    .filter(|v| !v.chars().any(char::is_control));
                let shown = plain.map_or_else(|| format!("{value:02x?}"), str::to_owned);
                writeln!(out, "{pad}{}: {shown}", field.name).expect("a string");
                continue;
            }
            Some(ValueType::Message(name)) => text(name, value, indent + 1, &mut inside),
            Some(ValueType::Any) => {
                let any = Any::decode(value).expect("an Any");
                writeln!(inside, "{pad}  @type {}", short(&any.type_url)).expect("a string");
                let name = any.type_url.rsplit('/').next().expect("a name");
                text(name, &any.value, indent + 1, &mut inside);
            }
        }
        let block = format!("{pad}{}:\n{inside}", field.name);
        match field.inside {
            Some(ValueType::Message(name)) if name.ends_with("Entry") => entries.push(block),
            _ => out.push_str(&block),
        }
    }
    entries.sort();
    out.push_str(&entries.concat());
}

fn mesh(yaml: &str) -> (Mesh, Vec<String>) {
    let settings = Settings {
        trust_domain: "cluster.local".to_owned(),
        root_namespace: "istio-system".to_owned(),
        outbound_traffic_policy: crate::mesh::OutboundTrafficPolicy::default(),
    };
    let file = Arc::new(PathBuf::from("mesh.yaml"));
    let documents = read(&file, yaml, &Limits::default());
    let reading = Reading::from([(file, documents)]);
    let applied = LastGood::default().apply(&settings, reading, std::time::UNIX_EPOCH);
    let (mesh, problems) = (applied.mesh, applied.problems);
    (mesh, problems.iter().map(ToString::to_string).collect())
}

/// All resources of a client that dials the authorities of the `# dial:` lines, as the workload that `# node:` names.
fn told(yaml: &str) -> String {
    let (mesh, problems) = mesh(yaml);
    let mut out = String::new();
    for problem in problems {
        writeln!(out, "# {problem}").expect("a string");
    }
    let lines = |word: &'static str| yaml.lines().filter_map(move |line| line.strip_prefix(word));
    let node = Node {
        ip: lines("# node: ")
            .next()
            .unwrap_or("127.0.0.9")
            .parse()
            .expect("an address"),
        namespace: "default".to_owned(),
        account: "users".to_owned(),
        client: Client::of(lines("# client: ").next().unwrap_or_default()),
        labels: BTreeMap::new(),
    };
    let workload = mesh.describe(&node);
    let world = TranslationContext {
        mesh: &mesh,
        workload: &workload,
        roots: "PEM",
    };
    let mut names = Vec::new();
    for listener in lines("# dial: ") {
        names.extend(chain(world, &node, listener));
    }
    if node.client == Client::Envoy {
        let clusters = everything(world, &node, CLUSTER);
        names.extend(clusters.into_iter().map(|name| (CLUSTER, name)));
        let listeners = everything(world, &node, LISTENER);
        names.extend(listeners.into_iter().map(|name| (LISTENER, name)));
        names.push((ROUTE, envoy::OUTBOUND.to_owned()));
    }
    {
        for (type_url, name) in names {
            writeln!(out, "\n=== {} {name}", short(type_url)).expect("a string");
            match resource(world, &node, type_url, &name) {
                LookupResult::Present(any, version) => {
                    assert_eq!(version.len(), 16);
                    let message = any.type_url.rsplit('/').next().expect("a name").to_owned();
                    text(&message, &any.value, 0, &mut out);
                    let refused = fields::check(&any.type_url, &any.value).err();
                    let refused = refused.filter(|_| node.client == Client::Leno);
                    assert_eq!(refused, None, "nothing that a proxy refuses");
                }
                LookupResult::Missing(reason) => {
                    writeln!(out, "missing: {reason}").expect("a string")
                }
                LookupResult::Pending(names) => {
                    writeln!(out, "pending: {names:?}").expect("a string")
                }
            }
        }
    }
    out
}

#[test]
fn yaml_becomes_what_the_golden_files_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/translate/golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(&directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        seen += 1;
        let got = told(&std::fs::read_to_string(&path).expect("a file"));
        let golden = path.with_extension("golden");
        if std::env::var_os("LENO_REWRITE").is_some() {
            std::fs::write(&golden, &got).expect("written");
        }
        let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
        let differs = got.lines().zip(wanted.lines()).position(|(a, b)| a != b);
        assert!(
            got == wanted,
            "{}: line {:?} differs; LENO_REWRITE=1 writes it anew",
            golden.display(),
            differs.map(|at| at + 1)
        );
    }
    assert!(seen >= 4, "{seen} golden files");
}

#[test]
fn a_hundred_translations_have_one_version() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/translate/golden");
    let yaml = std::fs::read_to_string(directory.join("policies.yaml")).expect("a file");
    let versions = |(): ()| {
        let (mesh, _) = mesh(&yaml);
        let node = Node::sidecar("10.0.0.1", "users");
        let workload = mesh.describe(&node);
        let world = TranslationContext {
            mesh: &mesh,
            workload: &workload,
            roots: "PEM",
        };
        match resource(world, &node, LISTENER, INBOUND) {
            LookupResult::Present(_, version) => version,
            other => panic!("{other:?}"),
        }
    };
    let first = versions(());
    assert!((0..100).all(|_| versions(()) == first));
}

#[test]
fn an_address_that_nobody_knows_is_refused_where_only_the_registry_may() {
    let (mut mesh, _) = mesh("");
    let node = Node::sidecar("127.0.0.9", "users");
    let dial = |mesh: &Mesh, name: &str| listeners::outbound(mesh, &node, name);
    assert!(matches!(
        dial(&mesh, "192.0.2.9:443"),
        LookupResult::Present(..)
    ));
    // A name is no address: it would have to be resolved.
    assert!(matches!(
        dial(&mesh, "example.com:443"),
        LookupResult::Missing(_)
    ));
    mesh.outbound_traffic_policy = OutboundTrafficPolicy::RegistryOnly;
    let LookupResult::Missing(reason) = dial(&mesh, "192.0.2.9:443") else {
        panic!("refused");
    };
    assert!(reason.contains("REGISTRY_ONLY"), "{reason}");
}
