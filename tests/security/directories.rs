//! Directories of pieces, good and bad, put together at random: a security object in the text is always known or
//! reported, and keeps callers out. A second reader, which knows only lines, finds the objects in the text.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use leno_control_plane::compile::Settings;
use leno_control_plane::istio::Limits;
use leno_control_plane::mesh::policy::Mode;
use leno_control_plane::mesh::workload::Labels;
use leno_control_plane::mesh::{Mesh, OutboundTrafficPolicy};
use leno_control_plane::object::{Origin, Severity};
use leno_control_plane::source::State;
use leno_control_plane::source::file::{Options, Source};
use leno_tests::Directory;

/// Limit on the bytes of a file that are read: some files are larger.
const BYTES: usize = 1500;

/// An object, in block style. Each security object keeps callers without an identity out of the workloads that it
/// selects.
fn piece(rng: &mut Rng, number: usize) -> String {
    let namespace = match rng.u8(..3) {
        0 => String::new(),
        i => format!("  namespace: n{i}\n"),
    };
    let metadata = format!("metadata:\n  name: p{number}\n{namespace}");
    let security = rng
        .choice(["security.istio.io/v1", "security.istio.io/v1beta1"])
        .expect("one");
    let selector = format!("selector: {{matchLabels: {{app: a{}}}}}, ", rng.u8(..2));
    let selector = if rng.u8(..4) == 0 { "" } else { &selector };
    let kinds = match rng.u8(..12) {
        0 => ["Authorizationpolicy", "PeerAuthenticaton"],
        1 => ["AuthorisationPolicy", "PeerAuthentications"],
        _ => ["AuthorizationPolicy", "PeerAuthentication"],
    };
    let spec = |rest: &str| format!("spec: {{{selector}{rest}}}\n");
    let (kind, spec) = match rng.u8(..10) {
        0 => (kinds[0], spec("action: DENY, rules: [{}]")),
        1 => (kinds[0], spec("action: ALLOW")),
        2 => (kinds[0], spec("action: DENY, rules: [{when: []}]")),
        3 => (kinds[0], spec("action: DENI")),
        4 => (kinds[1], spec("mtls: {mode: STRICT}")),
        5 => (kinds[1], spec("mtls: {mode: STRICT")),
        6 => ("RequestAuthentication", spec("jwtRules: []")),
        7 => {
            return format!(
                "apiVersion: apps/v1\nkind: Deployment\n{metadata}spec: {{template: {{}}}}\n"
            );
        }
        8 => {
            return format!(
                "apiVersion: v1\nkind: Service\n{metadata}spec: {{ports: [{{port: 80}}]}}\n"
            );
        }
        _ => return "replicas: 3\nimage: a\n".to_owned(),
    };
    let comment = if rng.u8(..4) == 0 {
        "# kind: nothing\n"
    } else {
        ""
    };
    match rng.bool() {
        true => format!("apiVersion: {security}\n{comment}kind: {kind}\n{metadata}{spec}"),
        false => format!("kind: {kind}\n{comment}apiVersion: {security}\n{metadata}{spec}"),
    }
}

/// The pieces of a list as `kubectl` writes them.
fn list(pieces: &[String]) -> String {
    let items = pieces.iter().filter(|piece| piece.contains("kind"));
    let items: String = items
        .map(|piece| format!("- {}\n", piece.trim_end().replace('\n', "\n  ")))
        .collect();
    format!("apiVersion: v1\nitems:\n{items}kind: List\n")
}

/// A file of pieces, sometimes damaged.
fn text(rng: &mut Rng, next: &mut usize) -> Vec<u8> {
    let pieces: Vec<String> = (0..rng.usize(1..5))
        .map(|_| {
            *next += 1;
            piece(rng, *next)
        })
        .collect();
    let mut text = String::new();
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 {
            let separators = [
                "---\n",
                "---\n",
                "---\n",
                "",
                "--- # next\n",
                "...\n",
                "\n# next\n",
                "---\n---\n",
                "\u{feff}---\n",
            ];
            text.push_str(rng.choice(separators).expect("one"));
        }
        text.push_str(piece);
    }
    if rng.u8(..8) == 0 {
        text = list(&pieces);
    }
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = rng.usize(..lines.len());
    text = match rng.u8(..16) {
        0 => [&lines[..at], &lines[(at + 1).min(lines.len())..]]
            .concat()
            .concat(),
        1 => [&lines[..=at], &lines[at..]].concat().concat(),
        2 => text[..text.floor_char_boundary(rng.usize(..text.len()))].to_owned(),
        3 => text.replace('\n', "\r\n"),
        4 => text.replace('\n', "\r"),
        5 => format!("\u{feff}{text}"),
        6 => format!("{text}# {}\n", "x".repeat(BYTES)),
        7 => text.replace("\nspec", "\n\tspec"),
        _ => text,
    };
    let mut bytes = text.into_bytes();
    // One fault at a time: a misspelt kind in a torn group can't be recognised as a security object.
    let has_slip = String::from_utf8_lossy(&bytes).contains("Authoris");
    match rng.u8(..20) {
        0 if !has_slip => bytes.insert(rng.usize(..=bytes.len()), 0xe9),
        1 => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            bytes = [0xff, 0xfe]
                .into_iter()
                .chain(text.encode_utf16().flat_map(u16::to_le_bytes))
                .collect();
        }
        _ => {}
    }
    bytes
}

/// A security object found by the second reader.
#[derive(Debug)]
struct Seen {
    file: PathBuf,
    /// Its own lines, from 1.
    lines: std::ops::RangeInclusive<u64>,
    namespace: String,
    app: String,
    /// False when its spec names no callers to keep out.
    has_spec: bool,
}

/// The security objects of a file: lines that begin with `kind:`, or, in a list, with a dash or indentation before it.
fn seen(file: &Path, bytes: &[u8]) -> Vec<Seen> {
    let bytes: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&bytes)
        .replace("\r\n", "\n")
        .replace('\r', "\n");
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim_start_matches(['\u{feff}', '\u{fffd}']))
        .collect();
    let kind = |line: &&str| {
        line.trim_start_matches("- ")
            .trim_start()
            .strip_prefix("kind:")
            .map(str::trim)
            .map(str::to_owned)
    };
    let kinds: Vec<(usize, String)> = lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| Some((at, kind(line)?)))
        .collect();
    let is_security = |kind: &str| {
        ["Authori", "Authentic"]
            .iter()
            .any(|word| kind.contains(word))
    };
    let mut all = Vec::new();
    for (i, (at, kind)) in kinds.iter().enumerate() {
        if !is_security(kind) {
            continue;
        }
        let end = kinds.get(i + 1).map_or(lines.len(), |(next, _)| *next);
        // Its first lines may stand before its kind, and those of the next one before that one's.
        let own = &lines[*at..end];
        let ends = own
            .iter()
            .position(|line| line.starts_with("---") || line.starts_with("..."));
        let own = &own[..ends.unwrap_or(own.len())];
        // A next object without a kind is recognised by its apiVersion.
        let is =
            |line: &&str, key: &str| line.trim_start_matches("- ").trim_start().starts_with(key);
        let metadata = own
            .iter()
            .position(|line| is(line, "metadata:"))
            .unwrap_or(0);
        let next = own
            .iter()
            .skip(metadata)
            .position(|line| is(line, "apiVersion:"));
        let own = &own[..next.map_or(own.len(), |next| metadata + next)];
        let value = |name: &str| {
            let found = own.iter().find_map(|line| line.split_once(name));
            found.map(|(_, rest)| {
                rest.trim_end_matches(|c: char| !c.is_alphanumeric())
                    .chars()
                    .take_while(char::is_ascii_alphanumeric)
                    .collect::<String>()
            })
        };
        all.push(Seen {
            file: file.to_owned(),
            lines: (*at as u64).saturating_sub(2)..=end as u64 + 1,
            namespace: value("namespace: ").unwrap_or_else(|| "default".to_owned()),
            app: value("app: ").unwrap_or_else(|| "a0".to_owned()),
            has_spec: own
                .iter()
                .any(|line| line.trim_start().starts_with("spec: {") && line.len() > 12),
        });
    }
    all
}

/// True when callers without an identity get in to a workload.
fn gets_in(mesh: &Mesh, namespace: &str, app: &str) -> bool {
    let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
    let labels = Labels::new([&labels]);
    let is_strict = mesh.mode(namespace, &labels, None).0 == Mode::Strict;
    // No piece allows anything.
    !is_strict && mesh.policies_for(namespace, &labels).next().is_none()
}

fn read(directory: &Path) -> State {
    Source::new(Options {
        paths: vec![directory.to_owned()],
        last_good: None,
        settings: Settings {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
        },
        limits: Limits {
            bytes: BYTES,
            ..Limits::default()
        },
    })
    .read_once()
}

#[test]
fn a_security_object_in_the_text_is_never_without_effect_and_without_a_word() {
    let (mut in_force, mut closed, mut unread) = (0, 0, 0);
    // `.ci/long` runs more seeds.
    let seeds = std::env::var("LENO_SEEDS").map_or(1000, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        let (mut rng, mut next) = (Rng::with_seed(seed), 0);
        let directory = Directory::new();
        let root = directory.path().join("yaml");
        let mut files: Vec<(PathBuf, Vec<u8>, bool)> = Vec::new();
        for _ in 0..rng.usize(1..4) {
            let names = [
                ("a.yaml", true),
                ("b.YML", true),
                ("c.Json", true),
                ("d/e.yaml", true),
                ("d/f/g.yml", true),
                (".h.yaml", false),
                ("i", false),
                ("j.yaml~", false),
                ("d/k.txt", false),
                ("l m.yaml", true),
                ("-.yaml", true),
            ];
            let (name, is_read) = *rng.choice(&names).expect("one");
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("below")).expect("a directory");
            let bytes = text(&mut rng, &mut next);
            fs::write(&path, &bytes).expect("written");
            if rng.u8(..4) == 0 {
                // A second link to the same file, and a cycle.
                let _ = symlink(&path, root.join("z.yaml"));
                let _ = symlink(".", root.join("around"));
            }
            files.retain(|(known, ..)| *known != path);
            files.push((path, bytes, is_read));
        }
        let state = read(&root);
        for (path, bytes, is_read) in &files {
            for seen in seen(path, bytes) {
                let words = || {
                    format!(
                        "seed {seed}: {seen:?}\n{}\n{:#?}",
                        String::from_utf8_lossy(bytes),
                        state.problems
                    )
                };
                let name = path.file_name().expect("a name").to_string_lossy();
                let is_known = state.objects.iter().any(|known| {
                    let Origin::File(place) = &known.origin;
                    *place.file == seen.file && seen.lines.contains(&place.line)
                });
                let is_named = state.problems.iter().any(|problem| {
                    let Origin::File(place) = &problem.origin;
                    let is_its_own = *place.file == seen.file
                        && (problem.severity == Severity::Error || !seen.has_spec);
                    is_its_own || problem.message.contains(&*name)
                });
                assert!(is_known || is_named, "not a word: {}", words());
                if !is_read {
                    // A link with another name may lead there.
                    unread += 1;
                    continue;
                }
                if !seen.has_spec {
                    continue;
                }
                assert!(
                    !gets_in(&state.mesh, &seen.namespace, &seen.app),
                    "without effect: {}",
                    words()
                );
                in_force += usize::from(is_known);
                closed += usize::from(!is_known);
            }
        }
    }
    // Enough objects were seen.
    for (what, count, least) in [
        ("in force", in_force, 500),
        ("closed", closed, 500),
        ("unread", unread, 200),
    ] {
        assert!(count >= least, "{what}: {count}");
    }
}
