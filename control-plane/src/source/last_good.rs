//! Forms of the objects that run: a broken object keeps its last good form, and security objects without one fail
//! closed. Pure; the reader of the files passes their contents in.
//!
//! State: a form is kept while its object stands in a file.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Counts, EffectiveForm, Rejected};
use crate::compile::{Settings, compile};
use crate::istio::{Contents, Object, PodTemplate};
use crate::mesh::Mesh;
use crate::object::{ObjectKey, Problem, Severity};

/// The contents of each file. A directory that can't be read stands for all files below it.
pub type Reading = BTreeMap<Arc<PathBuf>, Contents>;

/// Most workloads that are named where an object holds them closed.
const MAX_NAMED: usize = 20;

/// The last good form of an object.
#[derive(Debug, Clone)]
pub struct Good {
    /// The form.
    pub object: Arc<Object>,
    /// Time of the reading that brought it.
    pub taken: SystemTime,
    /// Time since which the file holds another text, if it does.
    pub stale: Option<SystemTime>,
}

/// The last good form of every object.
#[derive(Debug, Default)]
pub struct LastGood {
    good: BTreeMap<ObjectKey, Good>,
    rejected: Vec<Rejected>,
}

/// The outcome of a reading.
#[derive(Debug, Default)]
pub struct Applied {
    /// The compiled mesh.
    pub mesh: Mesh,
    /// Errors, warnings and notices.
    pub problems: Vec<Problem>,
    /// Objects whose text is not in force.
    pub rejected: Vec<Rejected>,
    /// Counts of the reading.
    pub counts: Counts,
}

impl LastGood {
    /// Begins with the good forms from before a restart.
    pub fn restore(forms: impl IntoIterator<Item = Good>) -> LastGood {
        let keyed = forms
            .into_iter()
            .map(|good| (good.object.key.clone(), good));
        LastGood {
            good: keyed.collect(),
            rejected: Vec::new(),
        }
    }

    /// Every object's last good form.
    pub fn forms(&self) -> impl Iterator<Item = &Good> {
        self.good.values()
    }

    /// Applies a reading that was made `now`.
    pub fn apply(&mut self, settings: &Settings, reading: Reading, now: SystemTime) -> Applied {
        let mut read = Read::default();
        read.counts.files = reading.len();
        for (file, contents) in reading {
            read.take_file(&file, contents, &self.good);
        }
        let mut used: Vec<Arc<Object>> = read.objects.values().cloned().collect();
        // Objects that run come first: where two conflict, the newcomer is the one that is wrong.
        used.sort_by_key(|object| !self.runs(object));
        let broken: Vec<Problem> = read.broken.values().flatten().cloned().collect();
        let (mut mesh, mut problems) = compile(settings, &used, &broken, &read.pods);
        let failed: BTreeMap<ObjectKey, Problem> = (problems.iter())
            .filter(|problem| problem.severity == Severity::Error)
            .filter_map(|problem| Some((problem.key.clone()?, problem.clone())))
            .collect();
        if !failed.is_empty() {
            // Objects with contradictions that only the compilation finds fall back as well, once.
            used = (used.iter())
                .filter_map(|object| self.fallback(object, &failed))
                .collect();
            let (again, more) = compile(settings, &used, &broken, &read.pods);
            mesh = again;
            let known: HashSet<Problem> = problems.iter().cloned().collect();
            problems.extend(more.into_iter().filter(|problem| !known.contains(problem)));
        }
        read.stale.extend(failed);
        let rejected = self.rejected(&read, &used, &mesh, now);
        self.keep(used, &rejected, now);
        read.problems.extend(problems);
        read.problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        let stale: HashSet<&ObjectKey> = rejected.iter().map(|rejected| &rejected.key).collect();
        let is_stale = |key: &ObjectKey| stale.contains(key);
        let in_force = self.good.values().filter(|good| !good.object.dry_run);
        read.counts.objects = in_force.filter(|good| !is_stale(&good.object.key)).count();
        read.counts.rejected = rejected.len();
        self.rejected.clone_from(&rejected);
        Applied {
            mesh,
            problems: read.problems,
            rejected,
            counts: read.counts,
        }
    }

    fn runs(&self, object: &Object) -> bool {
        let good = self.good.get(&object.key);
        good.is_some_and(|good| good.object.has_same_effect(object))
    }

    fn fallback(
        &self,
        object: &Arc<Object>,
        failed: &BTreeMap<ObjectKey, Problem>,
    ) -> Option<Arc<Object>> {
        if !failed.contains_key(&object.key) {
            return Some(Arc::clone(object));
        }
        let good = &self.good.get(&object.key)?.object;
        (!good.has_same_effect(object)).then(|| Arc::clone(good))
    }

    /// The objects whose text is not in force after a reading of which `used` runs.
    fn rejected(
        &self,
        read: &Read,
        used: &[Arc<Object>],
        mesh: &Mesh,
        now: SystemTime,
    ) -> Vec<Rejected> {
        let before: BTreeMap<&ObjectKey, &Rejected> =
            self.rejected.iter().map(|r| (&r.key, r)).collect();
        let since = |key: &ObjectKey| {
            let before = before.get(key);
            let stale = || self.good.get(key).and_then(|good| good.stale);
            before
                .map(|before| before.since)
                .or_else(stale)
                .unwrap_or(now)
        };
        let running: BTreeSet<&ObjectKey> = used.iter().map(|object| &object.key).collect();
        let of = |key: &ObjectKey, problem: &Problem, runs: EffectiveForm| Rejected {
            since: since(key),
            key: key.clone(),
            origin: problem.origin.clone(),
            reason: problem.message.clone(),
            runs,
        };
        let stale = read.stale.iter().map(|(key, problem)| {
            let good = self.good.get(key).filter(|_| running.contains(key));
            of(
                key,
                problem,
                good.map_or(EffectiveForm::Nothing, |good| {
                    EffectiveForm::LastGood(good.taken)
                }),
            )
        });
        let broken = read.broken.values().flatten().filter_map(|problem| {
            let key = problem.key.as_ref()?;
            let runs = match &problem.fail_closed {
                None => EffectiveForm::Nothing,
                Some(closes) => EffectiveForm::Closed {
                    closes: closes.clone(),
                    workloads: mesh.workload_names(&key.namespace, &closes.selector, MAX_NAMED),
                },
            };
            Some(of(key, problem, runs))
        });
        stale.chain(broken).collect()
    }

    fn keep(&mut self, used: Vec<Arc<Object>>, rejected: &[Rejected], now: SystemTime) {
        let stale: BTreeMap<&ObjectKey, SystemTime> =
            rejected.iter().map(|r| (&r.key, r.since)).collect();
        let keep = |object: Arc<Object>| {
            let before = self.good.get(&object.key);
            let same = before.filter(|before| before.object.has_same_effect(&object));
            let good = Good {
                taken: same.map_or(now, |same| same.taken),
                stale: stale.get(&object.key).copied(),
                object,
            };
            (good.object.key.clone(), good)
        };
        self.good = used.into_iter().map(keep).collect();
    }
}

/// A reading while its files are merged.
#[derive(Default)]
struct Read {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// Problems of objects without a good form, the first of each distinct closing.
    broken: BTreeMap<ObjectKey, Vec<Problem>>,
    /// Problems of objects with a good form that runs on, the first of each.
    stale: BTreeMap<ObjectKey, Problem>,
    problems: Vec<Problem>,
    pods: Vec<PodTemplate>,
    counts: Counts,
}

impl Read {
    fn take_file(
        &mut self,
        file: &Arc<PathBuf>,
        contents: Contents,
        good: &BTreeMap<ObjectKey, Good>,
    ) {
        let mut named = BTreeSet::new();
        // A torn document may be any object that this file held before and doesn't hold now.
        let mut unnamed = contents.is_incomplete;
        let mut why = None;
        for object in contents.objects {
            named.insert(object.key.clone());
            self.take(object);
        }
        for problem in contents.problems {
            match (&problem.key, problem.severity) {
                (Some(key), Severity::Error) => {
                    named.insert(key.clone());
                    self.keep(key, &problem, good);
                    // It may be an object that this file held under another name, or its name was guessed wrongly.
                    unnamed |= !good.contains_key(key);
                }
                (None, Severity::Error) => unnamed = true,
                (_, Severity::Notice) => self.counts.unused += 1,
                _ => {}
            }
            if problem.severity == Severity::Error {
                why.get_or_insert_with(|| problem.clone());
            }
            self.problems.push(problem);
        }
        self.pods.extend(contents.pods);
        let Some(why) = why.filter(|_| unnamed) else {
            return;
        };
        let held = good.values().map(|good| &good.object);
        let held = held.filter(|object| object.origin.is_below(file));
        for object in held.filter(|object| !named.contains(&object.key)) {
            if !self.objects.contains_key(&object.key) {
                self.objects.insert(object.key.clone(), Arc::clone(object));
                self.stale.insert(object.key.clone(), why.clone());
            }
        }
    }

    fn take(&mut self, object: Object) {
        // A good form that a broken text left in place gives way to a good text elsewhere; the broken text still
        // closes.
        match (
            self.stale.remove(&object.key),
            self.objects.get(&object.key),
        ) {
            (Some(problem), _) => self.break_beside(problem),
            (None, Some(first)) => {
                self.problems.push(Problem {
                    message: format!("stands at {} as well; that one is used", first.origin),
                    origin: object.origin,
                    key: Some(object.key),
                    fail_closed: None,
                    severity: Severity::Error,
                });
                return;
            }
            (None, None) => {}
        }
        self.objects.insert(object.key.clone(), Arc::new(object));
    }

    fn keep(&mut self, key: &ObjectKey, problem: &Problem, good: &BTreeMap<ObjectKey, Good>) {
        match (self.objects.contains_key(key), good.get(key)) {
            (true, _) if self.stale.contains_key(key) => {}
            (true, _) => self.break_beside(problem.clone()),
            (false, Some(good)) => {
                self.objects.insert(key.clone(), Arc::clone(&good.object));
                self.stale.insert(key.clone(), problem.clone());
            }
            (false, None) => self.break_new(key, problem),
        }
    }

    /// Takes a broken text beside a good one of the same name: either may be the intended one, so the broken one
    /// closes.
    fn break_beside(&mut self, problem: Problem) {
        if let Some(key) = problem
            .key
            .clone()
            .filter(|_| problem.fail_closed.is_some())
        {
            self.break_new(&key, &problem);
        }
    }

    fn break_new(&mut self, key: &ObjectKey, problem: &Problem) {
        let own = self.broken.entry(key.clone()).or_default();
        let same = own.iter_mut().find(|known| {
            let says_more = known.fail_closed.is_some() && problem.fail_closed.is_some();
            known.fail_closed == problem.fail_closed || !says_more
        });
        match same {
            Some(known) if known.fail_closed.is_none() => {
                known.fail_closed.clone_from(&problem.fail_closed)
            }
            Some(_) => {}
            None => own.push(problem.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
        let applied = apply_at(last, files, UNIX_EPOCH);
        let problems = applied.problems.iter().map(ToString::to_string);
        (applied.mesh, problems.collect())
    }

    fn apply_at(last: &mut LastGood, files: &[(&str, &str)], now: SystemTime) -> Applied {
        let reading = files.iter().map(|(name, text)| {
            let file = Arc::new(PathBuf::from(name));
            let contents = read(&file, text, &Limits::default());
            (file, contents)
        });
        last.apply(&settings(), reading.collect(), now)
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
    fn a_broken_text_beside_a_good_one_of_its_name_closes_in_either_order() {
        let good = STRICT.replace("STRICT", "PERMISSIVE");
        let broken = STRICT.replace("STRICT", "STRICKT");
        for files in [
            [("a.yaml", &good), ("b.yaml", &broken)],
            [("a.yaml", &broken), ("b.yaml", &good)],
        ] {
            let files = files.map(|(name, text)| (name, text.as_str()));
            let mut last = LastGood::default();
            for _ in 0..2 {
                let (mesh, _) = apply(&mut last, &files);
                let mode = mesh.mode("default", &Labels::default(), None).0;
                assert_eq!(mode, Mode::Strict, "{files:?}");
            }
        }
    }

    #[test]
    fn what_is_not_in_force_is_told_with_its_times() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut last = LastGood::default();
        let standing = |last: &mut LastGood, files: &[(&str, &str)], now: u64| -> Vec<String> {
            let rejected = apply_at(last, files, at(now)).rejected;
            rejected
                .iter()
                .map(|one| format!("{} {}", one.key, one.standing()))
                .collect()
        };
        assert!(standing(&mut last, &[("p.yaml", STRICT)], 0).is_empty());
        assert!(standing(&mut last, &[("p.yaml", STRICT)], 10).is_empty());
        let broken = STRICT.replace("STRICT", "STRICKT");
        for now in [20, 30] {
            let told = standing(&mut last, &[("p.yaml", &broken)], now);
            let of = "default/p PeerAuthentication runs the form of 1970-01-01T00:00:00Z, since 1970-01-01T00:00:20Z: ";
            assert!(told.len() == 1 && told[0].starts_with(of), "{told:?}");
        }
        // Its file can't be read: its good form runs on, for that reason.
        let told = standing(&mut last, &[("p.yaml", "a: [")], 40);
        assert!(
            told.len() == 1 && told[0].contains("since 1970-01-01T00:00:20Z: "),
            "{told:?}"
        );
        assert!(standing(&mut last, &[("p.yaml", STRICT)], 50).is_empty());
        // Without a good form it closes.
        let told = standing(&mut LastGood::default(), &[("p.yaml", &broken)], 60);
        let of = "default/p PeerAuthentication requires mutual TLS of namespace default, since 1970-01-01T00:01:00Z: ";
        assert!(told.len() == 1 && told[0].starts_with(of), "{told:?}");
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
        let forms: Vec<Good> = last.forms().cloned().collect();
        let mut restarted = LastGood::restore(forms);
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
            let is_other = |problem: &String| !problem.contains("were not judged");
            assert!(!problems.iter().any(is_other), "{problems:?}");
            let by = mesh.closing_objects(&node, &mesh.describe(&node));
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
                        && problems[0].contains(": warning: ")
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
