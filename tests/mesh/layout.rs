//! The house stays as it is drawn: who may import whom, and what must not stand where.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A module of the proxy, and the modules of ours that it may import.
const PROXY: [(&str, &str); 29] = [
    ("accept", "drain observe"),
    (
        "admin",
        "ask channel directory drain intercept observe status tls",
    ),
    (
        "app",
        "accept admin bootstrap connect directory drain export identity inbound intercept lifecycle observe outbound snapshot state status tls worker xds",
    ),
    ("ask", "channel"),
    ("balance", "error intercept observe tls"),
    (
        "bootstrap",
        "admin channel directory export intercept observe tls",
    ),
    ("channel", "tls"),
    ("connect", "balance error tls"),
    ("directory", "error snapshot"),
    ("drain", ""),
    ("error", ""),
    ("export", "ask bootstrap channel drain observe status tls"),
    ("forward", "balance connect error observe tls worker"),
    ("identify", ""),
    ("identity", "channel drain observe state tls"),
    (
        "inbound",
        "balance connect drain error forward identify intercept observe outbound snapshot tls worker",
    ),
    ("intercept", ""),
    ("lib", ""),
    ("lifecycle", "channel directory drain tls"),
    ("main", ""),
    ("observe", "error"),
    (
        "outbound",
        "balance connect error forward identify intercept observe snapshot worker",
    ),
    ("snapshot", "balance error observe tls"),
    ("state", "tls"),
    ("status", "balance directory observe tls xds"),
    ("tls", "error"),
    (
        "worker",
        "connect directory drain error observe snapshot tls",
    ),
    ("wrapper", "app drain"),
    (
        "xds",
        "balance channel directory drain observe snapshot state status tls",
    ),
];

const CONTROL_PLANE: [(&str, &str); 14] = [
    ("app", "auth ca istio map metrics source web xds"),
    ("auth", "ca"),
    ("ca", "auth metrics"),
    ("cli", "app ca inject istio mesh source"),
    ("inject", "ca"),
    ("istio", ""),
    ("lib", ""),
    ("main", ""),
    ("map", "istio mesh source"),
    ("mesh", ""),
    ("metrics", ""),
    ("source", "istio mesh"),
    ("translate", "mesh"),
    ("web", "map metrics xds"),
];
const CONTROL_PLANE_XDS: (&str, &str) = ("xds", "auth ca map mesh metrics source translate");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// True for a file of tests alone.
pub(crate) fn is_tests(path: &Path) -> bool {
    path.to_string_lossy().ends_with("tests.rs")
}

/// The code of a file before its tests.
pub(crate) fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a file");
    text.split("#[cfg(test)]")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// What a file imports of its own crate, by first name.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let list = list.split('}').next().unwrap_or_default();
            let names = list
                .split(',')
                .map(|name| name.trim().split("::").next().unwrap_or(""));
            found.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        } else {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            found.insert(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    found
}

fn check(source: &str, table: &[(&str, &str)]) {
    let directory = root().join(source);
    let mut files = Vec::new();
    sources(&directory, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&directory).expect("inside");
        let first = relative
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if is_tests(&file) {
            continue;
        }
        let allowed = table.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} has no row in the table"));
        let allowed: BTreeSet<&str> = allowed.split_whitespace().collect();
        for import in imports(&code(&file)) {
            if import != module && !allowed.contains(import.as_str()) {
                wrong.push(format!("{} imports {import}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_proxy_imports_in_one_direction() {
    check("proxy/src", &PROXY);
}

#[test]
fn the_control_plane_imports_in_one_direction() {
    let mut table = CONTROL_PLANE.to_vec();
    table.push(CONTROL_PLANE_XDS);
    check("control-plane/src", &table);
}

#[test]
fn the_path_names_neither_hypers_http1_nor_xds_nor_grpc() {
    let path = "accept.rs identify.rs inbound outbound worker.rs drain.rs error.rs tls balance connect forward observe";
    let mut files = Vec::new();
    sources(&root().join("proxy/http/src"), &mut files);
    sources(&root().join("proxy/rules/src/route"), &mut files);
    sources(&root().join("proxy/rules/src/policy"), &mut files);
    for name in path.split(' ') {
        let at = root().join("proxy/src").join(name);
        if at.is_dir() {
            sources(&at, &mut files)
        } else {
            files.push(at)
        }
    }
    for file in files {
        let text = code(&file);
        for word in [
            "hyper::",
            "hyper_util",
            "tonic",
            "prost",
            "leno_proto",
            "HeaderMap",
            "crate::xds",
            "crate::bootstrap",
        ] {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn neither_side_links_the_other() {
    for (manifest, other) in [
        ("proxy/Cargo.toml", "leno-control-plane"),
        ("control-plane/Cargo.toml", "leno-proxy"),
    ] {
        let text = std::fs::read_to_string(root().join(manifest)).expect("a manifest");
        assert!(!text.contains(other), "{manifest} depends on {other}");
    }
    for (test, other) in [
        ("xds_client.rs", "mesh::Mesh"),
        ("xds_server.rs", "mesh::Proxy"),
    ] {
        let text = std::fs::read_to_string(root().join("tests/mesh").join(test)).expect("a test");
        assert!(!text.contains(other), "{test} uses {other}");
    }
}

#[test]
fn no_file_has_grown_into_a_second_house() {
    for source in [
        "proxy/src",
        "proxy/http/src",
        "proxy/rules/src",
        "control-plane/src",
        "proto/src",
    ] {
        let mut files = Vec::new();
        sources(&root().join(source), &mut files);
        for file in files {
            let lines = code(&file).lines().count();
            assert!(lines <= 650, "{} has {lines} lines", file.display());
        }
    }
}
