//! What runs of what was read: a broken object keeps its last good form, and security objects without one fail closed.
//! Pure; whoever reads the files feeds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::compile::{Settings, compile};
use crate::istio::{Key, Object, Problem, Severity};
use crate::mesh::Mesh;

/// What a reading of the source gave, file by file.
pub type Reading = BTreeMap<Arc<PathBuf>, Vec<Result<Object, Problem>>>;

/// The last good form of every object.
#[derive(Debug, Default)]
pub struct LastGood {
    good: BTreeMap<Key, Arc<Object>>,
}

impl LastGood {
    /// Begins with what was good before a restart.
    pub fn restore(objects: impl IntoIterator<Item = Object>) -> LastGood {
        let keyed = objects
            .into_iter()
            .map(|object| (object.key.clone(), Arc::new(object)));
        LastGood {
            good: keyed.collect(),
        }
    }

    /// Every object's last good form.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.good.values()
    }

    /// What runs after a reading.
    pub fn apply(&mut self, settings: &Settings, reading: Reading) -> (Mesh, Vec<Problem>) {
        let mut now = Now::default();
        for (file, documents) in reading {
            now.take_file(&file, documents, &self.good);
        }
        let mut used: Vec<Arc<Object>> = now.objects.into_values().collect();
        // What runs comes first: where two objects claim the same thing, the newcomer is the one that is wrong.
        used.sort_by_key(|object| !self.runs(object));
        let (mut mesh, mut problems) = compile(settings, &used, &now.broken);
        let failed: BTreeMap<Key, Problem> = (problems.iter())
            .filter(|problem| problem.severity == Severity::Error)
            .filter_map(|problem| Some((problem.key.clone()?, problem.clone())))
            .collect();
        if !failed.is_empty() {
            // What contradicts itself only when it is put together falls back as well, once.
            used = used
                .iter()
                .filter_map(|object| self.fallback(object, &failed))
                .collect();
            let (again, more) = compile(settings, &used, &now.broken);
            mesh = again;
            let known = problems.clone();
            problems.extend(more.into_iter().filter(|problem| !known.contains(problem)));
        }
        self.good = used
            .into_iter()
            .map(|object| (object.key.clone(), object))
            .collect();
        now.problems.extend(problems);
        now.problems.sort_by(|a, b| a.place.cmp(&b.place));
        (mesh, now.problems)
    }

    fn runs(&self, object: &Object) -> bool {
        let good = self.good.get(&object.key);
        good.is_some_and(|good| good.spec == object.spec)
    }

    fn fallback(
        &self,
        object: &Arc<Object>,
        failed: &BTreeMap<Key, Problem>,
    ) -> Option<Arc<Object>> {
        if !failed.contains_key(&object.key) {
            return Some(Arc::clone(object));
        }
        let good = self.good.get(&object.key)?;
        (good.spec != object.spec).then(|| Arc::clone(good))
    }
}

/// A reading, as it is put together.
#[derive(Default)]
struct Now {
    objects: BTreeMap<Key, Arc<Object>>,
    broken: Vec<Problem>,
    problems: Vec<Problem>,
}

impl Now {
    fn take_file(
        &mut self,
        file: &Arc<PathBuf>,
        documents: Vec<Result<Object, Problem>>,
        good: &BTreeMap<Key, Arc<Object>>,
    ) {
        let mut named = BTreeSet::new();
        let mut unnamed = false;
        for document in documents {
            match document {
                Ok(object) => {
                    named.insert(object.key.clone());
                    self.take(object);
                }
                Err(problem) => {
                    match &problem.key {
                        Some(key) => {
                            named.insert(key.clone());
                            self.keep(key, &problem, good);
                            // It may be what this file held under another name, or under one that was guessed wrongly.
                            let is_new = !good.contains_key(key);
                            unnamed |= is_new && problem.severity == Severity::Error;
                        }
                        // Nobody knows what it was: whatever this file held and holds no more may be it.
                        None => unnamed |= problem.severity == Severity::Error,
                    }
                    self.problems.push(problem);
                }
            }
        }
        if unnamed {
            let held = good.values().filter(|object| object.place.file == *file);
            for object in held.filter(|object| !named.contains(&object.key)) {
                self.objects
                    .entry(object.key.clone())
                    .or_insert_with(|| Arc::clone(object));
            }
        }
    }

    fn take(&mut self, object: Object) {
        if let Some(first) = self.objects.get(&object.key) {
            self.problems.push(Problem {
                message: format!("stands at {} as well; that one is used", first.place),
                place: object.place,
                key: Some(object.key),
                selector: None,
                severity: Severity::Error,
            });
            return;
        }
        self.objects.insert(object.key.clone(), Arc::new(object));
    }

    fn keep(&mut self, key: &Key, problem: &Problem, good: &BTreeMap<Key, Arc<Object>>) {
        match good.get(key) {
            _ if problem.severity == Severity::Notice => {}
            Some(object) => drop(self.objects.insert(key.clone(), Arc::clone(object))),
            None => self.broken.push(problem.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::{Limits, read};
    use crate::mesh::Node;
    use crate::mesh::policy::Mode;
    use crate::mesh::workload::Labels;

    fn settings() -> Settings {
        Settings {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            outbound_traffic_policy: crate::mesh::OutboundTrafficPolicy::default(),
        }
    }

    fn apply(last: &mut LastGood, files: &[(&str, &str)]) -> (Mesh, Vec<String>) {
        let reading = files.iter().map(|(name, text)| {
            let file = Arc::new(PathBuf::from(name));
            let documents = read(&file, text, &Limits::default());
            (file, documents)
        });
        let (mesh, problems) = last.apply(&settings(), reading.collect());
        (mesh, problems.iter().map(ToString::to_string).collect())
    }

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: STRICT}}\n";
    const HOST: &str = "a.default.svc.cluster.local";

    #[test]
    fn a_broken_object_keeps_its_last_good_form_until_it_is_removed() {
        let mut last = LastGood::default();
        let (mesh, problems) = apply(&mut last, &[("s.yaml", SERVICE)]);
        assert!(mesh.services.contains_key(HOST) && problems.is_empty());
        for broken in [
            &SERVICE.replace("80", "80000"),
            "kind: [",
            &SERVICE.replace("spec", "spek"),
        ] {
            let (mesh, problems) = apply(&mut last, &[("s.yaml", broken)]);
            assert_eq!(mesh.services[HOST].ports[0].number, 80, "{broken}");
            assert_eq!(problems.len(), 1, "{broken}");
        }
        let (mesh, _) = apply(&mut last, &[("s.yaml", &SERVICE.replace("80", "81"))]);
        assert_eq!(mesh.services[HOST].ports[0].number, 81);
        let (mesh, _) = apply(&mut last, &[("s.yaml", "# nothing\n")]);
        assert!(mesh.services.is_empty());
    }

    #[test]
    fn what_contradicts_itself_falls_back_as_well() {
        let rule = |subsets: &str| {
            format!(
                "{SERVICE}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r}}\nspec: {{host: a, subsets: [{subsets}]}}\n"
            )
        };
        let mut last = LastGood::default();
        apply(&mut last, &[("s.yaml", &rule("{name: v1}"))]);
        let (mesh, problems) = apply(&mut last, &[("s.yaml", &rule("{name: v2}, {name: v2}"))]);
        let rule = mesh.services[HOST].rule("default", "x").expect("kept");
        assert!(rule.subsets.contains_key("v1"));
        assert!(
            problems[0].contains("s.yaml:6:1") && problems[0].contains("twice"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_security_object_without_a_good_form_fails_closed() {
        let mut last = LastGood::default();
        let (mesh, _) = apply(
            &mut last,
            &[("p.yaml", &STRICT.replace("STRICT", "STRIKT"))],
        );
        assert_eq!(
            mesh.mode("default", &Labels::default(), None).0,
            Mode::Strict
        );
        assert_eq!(
            mesh.mode("other", &Labels::default(), None).0,
            Mode::Permissive
        );

        let (mesh, _) = apply(
            &mut LastGood::default(),
            &[("p.yaml", &STRICT.replace("STRICT}", "STRICT"))],
        );
        assert_eq!(
            mesh.mode("default", &Labels::default(), None).0,
            Mode::Strict,
            "a lost bracket"
        );

        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                      spec: {selector: {matchLabels: {app: x}}, rules: [{when: []}]}\n";
        let (mesh, _) = apply(&mut LastGood::default(), &[("p.yaml", policy)]);
        let of = |app: &str| {
            let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
            mesh.policies_for("default", &Labels::new([&labels]))
                .count()
        };
        assert_eq!((of("x"), of("y")), (1, 0));
        assert!(mesh.policies[0].denies);
    }

    #[test]
    fn a_broken_object_is_strict_whatever_others_say() {
        let good = STRICT.replace("STRICT", "PERMISSIVE");
        let broken = STRICT.replace("name: p", "name: q").replace("STRICT", "?");
        let (mesh, _) = apply(
            &mut LastGood::default(),
            &[("a.yaml", &good), ("b.yaml", &broken)],
        );
        assert_eq!(
            mesh.mode("default", &Labels::default(), None).0,
            Mode::Strict
        );
    }

    #[test]
    fn a_syntax_error_opens_nothing_that_was_closed() {
        let prod = STRICT.replace("{name: p}", "{name: p, namespace: prod}");
        let mut last = LastGood::default();
        apply(&mut last, &[("p.yaml", &prod)]);
        let (mesh, _) = apply(&mut last, &[("p.yaml", &prod.replace("STRICT}", "STRICT"))]);
        assert_eq!(mesh.mode("prod", &Labels::default(), None).0, Mode::Strict);
        let flow = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {";
        let (mesh, _) = apply(&mut LastGood::default(), &[("p.yaml", flow)]);
        assert_eq!(
            mesh.mode("anywhere", &Labels::default(), None).0,
            Mode::Strict
        );
    }

    #[test]
    fn a_newcomer_does_not_displace_what_runs() {
        let mut last = LastGood::default();
        apply(&mut last, &[("s.yaml", SERVICE)]);
        let newcomer = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: a, namespace: aaa}}\nspec: {{hosts: [{HOST}], resolution: STATIC, ports: [{{number: 99}}]}}\n"
        );
        let (mesh, problems) = apply(&mut last, &[("n.yaml", &newcomer), ("s.yaml", SERVICE)]);
        assert_eq!(mesh.services[HOST].ports[0].number, 80);
        assert!(problems[0].contains("aaa/a ServiceEntry"), "{problems:?}");
    }

    #[test]
    fn good_forms_survive_a_restart() {
        let mut last = LastGood::default();
        apply(
            &mut last,
            &[("p.yaml", &STRICT.replace("STRICT", "DISABLE"))],
        );
        let objects: Vec<Object> = last.objects().map(|object| (**object).clone()).collect();
        let mut restarted = LastGood::restore(objects);
        let (mesh, problems) = apply(
            &mut restarted,
            &[("p.yaml", &STRICT.replace("STRICT", "?"))],
        );
        assert_eq!(
            mesh.mode("default", &Labels::default(), None).0,
            Mode::Disable
        );
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_workload_that_nothing_describes_is_held_by_what_closes_it_and_by_what_would_open_it() {
        let node = Node::sidecar("10.0.0.1", "users");
        let object = |kind: &str, name: &str, spec: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
            )
        };
        let peer = |name: &str, spec: &str| object("PeerAuthentication", name, spec);
        let policy = |name: &str, spec: &str| object("AuthorizationPolicy", name, spec);
        let of = "selector: {matchLabels: {app: x}}, ";
        for (yaml, held) in [
            (peer("a", &format!("{of}mtls: {{mode: DISABLE}}")), ""),
            (peer("a", &format!("{of}mtls: {{mode: STRICT}}")), "a"),
            (
                peer("a", &format!("{of}portLevelMtls: {{1: {{mode: STRICT}}}}")),
                "a",
            ),
            (peer("a", "mtls: {mode: STRICT}"), ""),
            (
                peer("a", "mtls: {mode: STRICT}")
                    + &peer("b", &format!("{of}mtls: {{mode: STRICT}}")),
                "",
            ),
            (
                peer("a", "mtls: {mode: STRICT}")
                    + &peer("b", &format!("{of}mtls: {{mode: PERMISSIVE}}")),
                "b",
            ),
            (
                policy("a", "") + &policy("b", &format!("{of}rules: [{{}}]")),
                "b",
            ),
            (
                policy("a", &format!("{of}action: DENY, rules: [{{}}]")),
                "a",
            ),
            (policy("a", ""), ""),
        ] {
            let (mesh, problems) = apply(&mut LastGood::default(), &[("o.yaml", &yaml)]);
            assert!(problems.is_empty(), "{problems:?}");
            let by = mesh.held_by(&node, &mesh.describe(&node));
            let names: Vec<&str> = by.iter().map(|o| &o["default/".len()..][..1]).collect();
            assert_eq!(names.concat(), held, "{yaml}");
        }
    }

    #[test]
    fn what_no_selector_can_tell_is_named() {
        let entry = |kind: &str, spec: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: e}}\nspec: {{{spec}}}\n"
            )
        };
        let service = |more: &str| {
            let spec =
                "hosts: [e.default.svc.cluster.local], ports: [{number: 80}], resolution: STATIC";
            entry("ServiceEntry", &format!("{spec}, {more}"))
        };
        let bare = "endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, labels: {app: a}}, {address: 10.0.0.3}]";
        for (yaml, named) in [
            (
                entry("WorkloadEntry", "address: 10.0.0.1"),
                "address without labels",
            ),
            (
                service(&format!("location: MESH_INTERNAL, {bare}")),
                "endpoints[0], endpoints[2] without labels",
            ),
            (
                service("endpoints: [{address: 10.0.0.1, serviceAccount: a}]"),
                "endpoints[0] without labels",
            ),
            // A service outside of the mesh has no sidecars.
            (service(bare), ""),
            (
                service(
                    "endpoints: [{address: 10.0.0.1, labels: {a: b}}, {address: 10.0.0.1, labels: {a: c}}]",
                ),
                "10.0.0.1 has other labels in default/e ServiceEntry",
            ),
            (
                service(
                    "endpoints: [{address: 10.0.0.1, labels: {a: b}, serviceAccount: x}, {address: 10.0.0.1, labels: {a: c}, serviceAccount: y}]",
                ),
                "",
            ),
            (
                entry("WorkloadEntry", "address: 10.0.0.1, labels: {app: a}"),
                "",
            ),
        ] {
            let (_, problems) = apply(&mut LastGood::default(), &[("e.yaml", &yaml)]);
            match named {
                "" => assert!(problems.is_empty(), "{problems:?}"),
                named => assert!(
                    problems.len() == 1
                        && problems[0].contains(": notice: ")
                        && problems[0].contains(named),
                    "{named}: {problems:?}"
                ),
            }
        }
    }

    #[test]
    fn an_object_that_stands_twice_names_both_places() {
        let (_, problems) = apply(
            &mut LastGood::default(),
            &[("a.yaml", SERVICE), ("b.yaml", SERVICE)],
        );
        assert!(problems[0].starts_with("b.yaml:1:1") && problems[0].contains("a.yaml:1:1"));
    }
}
