//! Every object of the configuration is in force, closed or reported: by `leno validate`, and in a served mesh.

use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use leno_control_plane::istio::Limits;
use leno_tests::client::get;
use leno_tests::mesh::{Mesh, PORT, service};
use leno_tests::probe::{Answer, App, Transport, ask, reaches_app};
use leno_tests::process::leno;
use leno_tests::{fresh_ip, until};

use crate::closed::users_and_shop;

/// Access that callers have to `users`; those of `shop` get in unless the whole mesh or namespace is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// They get in.
    Open,
    /// Only callers with mutual TLS get in.
    Strict,
    /// No caller gets in.
    Denied,
    /// No caller gets in, nor to `shop`.
    AllDenied,
}

/// Files that are added to the directory, and their effect.
struct Case {
    name: &'static str,
    write: fn(&Path),
    users: Users,
    /// True when `leno validate` succeeds.
    is_valid: bool,
    /// Words of its output; those of an entry are in one line.
    says: &'static [&'static [&'static str]],
}

/// A policy that denies every request to `users`.
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny}\n\
    spec: {selector: {matchLabels: {app: users}}, action: DENY, rules: [{}]}\n";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict}\n\
    spec: {selector: {matchLabels: {app: users}}, mtls: {mode: STRICT}}\n";
const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: users}\n\
    spec: {template: {metadata: {labels: {app: users}}}}\n";

fn file(at: &Path, name: &str, text: impl AsRef<[u8]>) {
    let path = at.join(name);
    std::fs::create_dir_all(path.parent().expect("below")).expect("a directory");
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("written");
    std::fs::rename(next, path).expect("renamed");
}

fn cases() -> Vec<Case> {
    use Users::{AllDenied, Denied, Open, Strict};
    let mut all = hidden();
    all.extend(unread());
    let of = |name, write, users, is_valid, says| Case {
        name,
        write,
        users,
        is_valid,
        says,
    };
    all.extend([
        of(
            "a list as kubectl writes it",
            |at| {
                let items = format!("{DENY}---\n{STRICT}")
                    .replace("---\n", "")
                    .replace('\n', "\n  ");
                let items = items
                    .replace("apiVersion", "- apiVersion")
                    .replace("  - ", "- ");
                let text = format!(
                    "apiVersion: v1\nitems:\n{}\nkind: List\nmetadata: {{resourceVersion: ''}}\n",
                    items.trim_end()
                );
                file(at, "list.yaml", text);
            },
            Denied,
            true,
            &[],
        ),
        of(
            "a dry run",
            |at| {
                file(
                    at,
                    "p.yaml",
                    DENY.replace(
                        "{name: deny}",
                        "{name: deny, annotations: {istio.io/dry-run: 'true'}}",
                    ),
                )
            },
            Open,
            true,
            &[&[
                "notice",
                "default/deny AuthorizationPolicy",
                "dry run: not judged yet",
            ]],
        ),
        of(
            "a kind that isn't supported yet",
            |at| {
                file(
                    at,
                    "p.yaml",
                    STRICT.replace("PeerAuthentication", "RequestAuthentication"),
                )
            },
            Denied,
            false,
            &[
                &[
                    "p.yaml:1:1",
                    "error",
                    "RequestAuthentication",
                    "not supported yet",
                ],
                &[
                    "closed",
                    "default/strict RequestAuthentication",
                    "denies every request to app=users",
                    "users",
                ],
            ],
        ),
        of(
            "an action that isn't supported yet",
            |at| file(at, "p.yaml", DENY.replace("DENY", "AUDIT")),
            Denied,
            false,
            &[
                &["p.yaml:4:", "`AUDIT` is Istio's, and not supported yet"],
                &["closed", "app=users"],
            ],
        ),
        of(
            "a policy of another service's waypoint",
            |at| {
                file(
                    at,
                    "p.yaml",
                    DENY.replace(
                        "selector: {matchLabels: {app: users}}",
                        "targetRefs: [{kind: Service, name: x}]",
                    ),
                )
            },
            AllDenied,
            false,
            &[
                &["`targetRefs` is Istio's"],
                &["closed", "denies every request to namespace default"],
            ],
        ),
        of(
            "a string that matches nothing, in a DENY",
            |at| {
                file(
                    at,
                    "p.yaml",
                    DENY.replace(
                        "rules: [{}]",
                        "rules: [{to: [{operation: {methods: [get]}}]}]",
                    ),
                )
            },
            Denied,
            false,
            &[&["error", "\"get\" matches nothing, and so denies nothing"]],
        ),
        of(
            "a string that matches nothing, in an ALLOW",
            |at| {
                let rules = "rules: [{to: [{operation: {methods: [get, GET]}}]}]";
                file(
                    at,
                    "p.yaml",
                    DENY.replace("DENY", "ALLOW").replace("rules: [{}]", rules),
                );
            },
            Open,
            true,
            &[&["warning", "\"get\" matches nothing, and so allows nothing"]],
        ),
        of(
            "a selector that selects nobody",
            |at| file(at, "p.yaml", DENY.replace("app: users", "app: user")),
            Open,
            true,
            &[&[
                "warning",
                "selects no workload of namespace default",
                "app=user",
            ]],
        ),
        of(
            "a mistake in a strict mode",
            |at| file(at, "p.yaml", STRICT.replace("STRICT", "STRICKT")),
            Strict,
            false,
            &[
                &["no such value `STRICKT`; the nearest is `STRICT`"],
                &["closed", "requires mutual TLS of app=users"],
            ],
        ),
    ]);
    all
}

/// Objects behind others, and under names that are nearly right.
fn hidden() -> Vec<Case> {
    use Users::{Denied, Open, Strict};
    vec![
        Case {
            name: "a policy behind a missing separator",
            write: |at| file(at, "p.yaml", format!("{DEPLOYMENT}{STRICT}{DENY}")),
            users: Denied,
            is_valid: false,
            says: &[
                &[
                    "p.yaml:5:1",
                    "error",
                    "default/strict PeerAuthentication",
                    "`---` is missing",
                ],
                &[
                    "p.yaml:9:1",
                    "error",
                    "default/deny AuthorizationPolicy",
                    "`---` is missing",
                ],
                &["p.yaml:1:1", "notice", "default/users Deployment"],
            ],
        },
        Case {
            name: "a mode behind a missing separator and a broken object",
            write: |at| {
                file(
                    at,
                    "p.yaml",
                    format!("{}{STRICT}", DEPLOYMENT.replace("}}}}", "}}}")),
                )
            },
            users: Strict,
            is_valid: false,
            says: &[
                &["error", "default/strict PeerAuthentication"],
                &["closed", "app=users"],
            ],
        },
        Case {
            name: "a kind in another country's spelling",
            write: |at| file(at, "p.yaml", DENY.replace("Authorization", "Authorisation")),
            users: Denied,
            is_valid: false,
            says: &[&[
                "p.yaml:1:1",
                "no kind AuthorisationPolicy; the nearest is AuthorizationPolicy",
            ]],
        },
        Case {
            name: "a group with a slip",
            write: |at| {
                file(
                    at,
                    "p.yaml",
                    STRICT.replace("security.istio.io", "security.istio.oi"),
                )
            },
            users: Strict,
            is_valid: false,
            says: &[&["no such group security.istio.oi; the nearest is security.istio.io"]],
        },
        Case {
            name: "kinds that could hold authorization",
            write: |at| {
                let of = |group: &str, kind: &str| {
                    format!("---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: a}}\n")
                };
                let text = of("networking.istio.io/v1alpha3", "EnvoyFilter")
                    + &of("extensions.istio.io/v1alpha1", "WasmPlugin");
                file(at, "p.yaml", text);
            },
            users: Open,
            is_valid: false,
            says: &[
                &[
                    "error",
                    "EnvoyFilter is not supported",
                    "use an AuthorizationPolicy",
                ],
                &[
                    "error",
                    "WasmPlugin is not supported",
                    "use an AuthorizationPolicy",
                ],
            ],
        },
        Case {
            name: "what others read",
            write: |at| {
                file(at, "values.yaml", "replicas: 3\n");
                file(at, "package.json", "{\n\t\"name\": \"a\"\n}\n");
                file(
                    at,
                    "knative.yaml",
                    "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n",
                );
                file(at, "README.md", "# a\n");
            },
            users: Open,
            is_valid: true,
            says: &[
                &["values.yaml:1:1", "notice", "this is no object"],
                &["package.json:1:1", "notice"],
                &[
                    "knative.yaml:1:1",
                    "notice",
                    "serving.knative.dev/v1 Service is not used",
                ],
                &["notice", "README.md"],
            ],
        },
    ]
}

/// Files that are easily missed, and files that aren't text.
fn unread() -> Vec<Case> {
    use Users::{AllDenied, Denied, Open};
    let of = |name, write, users, says: &'static [&'static [&'static str]]| Case {
        name,
        write,
        users,
        is_valid: says.is_empty(),
        says,
    };
    vec![
        of(
            "a policy in a directory below",
            |at| file(at, "a/b/p.yaml", DENY),
            Denied,
            &[],
        ),
        of(
            "a policy in JSON",
            |at| {
                let text = r#"{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "deny"}, "spec": {"selector": {"matchLabels": {"app": "users"}}, "action": "DENY", "rules": [{}]}}"#;
                file(at, "p.json", text.replace("    ", "\t"));
            },
            Denied,
            &[],
        ),
        of(
            "a policy in capitals",
            |at| file(at, "P.YAML", DENY),
            Denied,
            &[],
        ),
        of(
            "a policy with marks of another system",
            |at| {
                file(
                    at,
                    "p.yml",
                    format!("\u{feff}{}", DENY.replace('\n', "\r\n")),
                );
            },
            Denied,
            &[],
        ),
        of(
            "a ConfigMap's volume",
            |at| {
                file(at, "..1/p.yaml", DENY);
                symlink("..1", at.join("..data")).expect("a link");
                symlink("..data/p.yaml", at.join("p.yaml")).expect("a link");
            },
            Denied,
            &[],
        ),
        of(
            "a link that leads out",
            |at| symlink("/", at.join("out")).expect("a link"),
            Open,
            &[&["error", "leads out of"]],
        ),
        of(
            "a policy with a byte that is no text",
            |at| {
                let mut bytes = DENY
                    .replace("{name: deny}", "{name: deny, namespace: default}")
                    .into_bytes();
                bytes.extend(b"# \xe9\n");
                file(at, "p.yaml", bytes);
            },
            Denied,
            &[
                &["p.yaml:1:1", "is not UTF-8", "line 5"],
                &["closed", "app=users"],
            ],
        ),
        of(
            "a policy in UTF-16",
            |at| {
                let bytes: Vec<u8> = DENY.encode_utf16().flat_map(u16::to_le_bytes).collect();
                file(at, "p.yaml", [vec![0xff, 0xfe], bytes].concat());
            },
            Denied,
            &[&["p.yaml:1:1", "UTF-16"], &["closed", "app=users"]],
        ),
        of(
            "a policy in a file that is too large",
            |at| {
                file(
                    at,
                    "p.yaml",
                    format!("{DENY}# {}\n", "x".repeat(Limits::default().bytes)),
                );
            },
            Denied,
            &[&["p.yaml:1:1", "at most"], &["closed", "app=users"]],
        ),
        of(
            "a policy in a file of which nothing else is known",
            |at| {
                file(
                    at,
                    "p.yaml",
                    format!("{}security.istio.io [", " ".repeat(Limits::default().bytes)),
                );
            },
            AllDenied,
            &[&["closed", "denies every request to the whole mesh"]],
        ),
        of(
            "a large file that protects nothing",
            |at| {
                file(at, "p.yaml", "x".repeat(Limits::default().bytes + 1));
            },
            Open,
            &[&["error", "at most"]],
        ),
    ]
}

/// True when callers have the access `users`.
async fn is_so(mesh: &Mesh, ips: [Ipv4Addr; 2], users: Users) -> bool {
    let (ca, users_at, shop_at) = (mesh.ca(), (ips[0], PORT).into(), (ips[1], PORT).into());
    let plain = reaches_app(users_at, Transport::Http1, &ca).await;
    let mutual = ask(users_at, Transport::Tls1, &ca, "GET", "/").await == Answer::App;
    let shop = reaches_app(shop_at, Transport::Tls1, &ca).await;
    (plain, mutual, shop)
        == match users {
            Users::Open => (true, true, true),
            Users::Strict => (false, true, true),
            Users::Denied => (false, false, true),
            Users::AllDenied => (false, false, false),
        }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_stands_in_the_directory_is_in_force_or_closed_or_named() {
    let (mesh, ips, _proxies) = users_and_shop().await;
    let config = mesh.config().to_owned();
    let path = config.display().to_string();
    for case in cases() {
        let before: Vec<PathBuf> = paths(&config);
        (case.write)(&config);
        // A policy that selects no workload shows that the files written with it were read.
        mesh.write(
            "mark.yaml",
            &DENY
                .replace("deny", "mark")
                .replace("app: users", "app: nobody"),
        );
        until(case.name, || async {
            let is_read = mesh
                .problems()
                .iter()
                .any(|problem| problem.contains("default/mark"));
            (is_read && is_so(&mesh, ips, case.users).await).then_some(())
        })
        .await;
        let (is_valid, printed) = leno(&["validate", &path]).await;
        assert_eq!(is_valid, case.is_valid, "{}: {printed}", case.name);
        let strict = leno(&["validate", "--strict", &path]).await;
        assert!(!strict.0, "{}: the mark is a warning", case.name);
        for words in case.says {
            let is_said = printed
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)));
            assert!(is_said, "{}: {words:?}: {printed}", case.name);
        }
        // The problems and the status say the same.
        let problems = mesh.problems();
        let lines: Vec<&str> = printed
            .lines()
            .filter(|line| line.contains(": error: ") || line.contains(": warning: "))
            .collect();
        for line in lines {
            assert!(
                problems.iter().any(|problem| problem == line),
                "{}: {line}",
                case.name
            );
        }
        let is_closed = printed.contains(": closed: ");
        let metrics = get(mesh.monitoring(), "leno", "/metrics").await.text();
        let series = metrics.lines().any(|line| {
            line.starts_with("leno_config_rejected_since_seconds{")
                && line.contains(r#"runs="closed""#)
        });
        assert_eq!(series, is_closed, "{}: {metrics}", case.name);
        assert_eq!(
            mesh.status().await.contains(r#""runs":"closed""#),
            is_closed,
            "{}",
            case.name
        );
        for path in paths(&config)
            .into_iter()
            .filter(|path| !before.contains(path))
        {
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        until("it is open again", || async {
            is_so(&mesh, ips, Users::Open).await.then_some(())
        })
        .await;
    }
}

/// Entries of a directory.
fn paths(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_block_pasted_whole_is_closed_and_named() {
    let guide = include_str!("../fixtures/guide.yaml");
    let (ip, app) = (fresh_ip(), App::start().await);
    let mesh = Mesh::start(&service("user-service", &[(ip, "v1")])).await;
    let _proxy = mesh.workload("user-service", ip, app.address).await;
    let ca = mesh.ca();
    assert!(reaches_app((ip, PORT).into(), Transport::Http1, &ca).await);
    mesh.write("guide.yaml", guide);
    until("it is closed", || async {
        let plain = ask((ip, PORT).into(), Transport::Http1, &ca, "POST", "/admin").await;
        let mutual = ask((ip, PORT).into(), Transport::Tls1, &ca, "POST", "/admin").await;
        (plain != Answer::App && mutual == Answer::Status(403)).then_some(())
    })
    .await;
    let path = mesh.config().join("guide.yaml").display().to_string();
    let (is_valid, printed) = leno(&["validate", &path]).await;
    assert!(!is_valid);
    for line in [45, 74, 104, 120, 146, 157] {
        let place = format!("guide.yaml:{line}:1: error: ");
        assert!(printed.contains(&place), "{place} {printed}");
    }
    // With the missing separators the guide is valid.
    let whole = guide
        .replace("\n# 3", "\n---\n# 3")
        .replace("\n# 4", "\n---\n# 4")
        .replace("\n# 5", "\n---\n# 5");
    let whole = whole
        .replace("\n# 6", "\n---\n# 6")
        .replace("\n# 7", "\n---\n# 7")
        .replace("\n# 8", "\n---\n# 8");
    std::fs::write(
        &path,
        whole.replace(
            "name: user-service\nspec:\n  selector",
            "name: unused\nspec:\n  selector",
        ),
    )
    .expect("written");
    let (is_valid, printed) = leno(&["validate", &path]).await;
    assert!(is_valid, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_form_that_runs_on_is_told_with_its_time_until_the_text_is_good() {
    let (mesh, ips, _proxies) = users_and_shop().await;
    let monitoring = mesh.monitoring().to_string();
    let asked = ["validate", "--control-plane", &monitoring];
    assert!(leno(&asked).await.0);
    mesh.write("policy.yaml", STRICT);
    until("it is strict", || async {
        is_so(&mesh, ips, Users::Strict).await.then_some(())
    })
    .await;
    mesh.write("policy.yaml", &STRICT.replace("STRICT", "DISABLED"));
    let told = until("it is told", || async {
        let status = mesh.status().await;
        status.contains(r#""runs":"last_good""#).then_some(status)
    })
    .await;
    assert!(
        told.contains("policy.yaml:4:") && told.contains("no such value `DISABLED`"),
        "{told}"
    );
    assert!(is_so(&mesh, ips, Users::Strict).await);
    for command in [&asked[..], &["status", "--monitoring-address", &monitoring]] {
        let (is_good, printed) = leno(command).await;
        assert!(!is_good, "{printed}");
        let line = printed
            .lines()
            .find(|line| line.contains("default/strict PeerAuthentication: runs the form of 20"));
        let line = line.unwrap_or_else(|| panic!("{printed}"));
        assert!(
            line.contains(", since 20")
                && line.contains("no such value `DISABLED`; the nearest is `DISABLE`"),
            "{line}"
        );
    }
    let map = mesh.map().await.to_string();
    assert!(map.contains("runs the form of 20"), "{map}");
    let metrics = get(mesh.monitoring(), "leno", "/metrics").await.text();
    assert!(
        metrics.contains(r#"kind="PeerAuthentication",name="strict",namespace="default","#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"runs="last_good""#), "{metrics}");
    mesh.write("policy.yaml", &STRICT.replace("STRICT", "DISABLE"));
    until("nothing is told", || async {
        (!mesh.status().await.contains("last_good")).then_some(())
    })
    .await;
    assert!(leno(&asked).await.0);
}
