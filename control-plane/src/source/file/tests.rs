//! The source with a paused clock and events of the test's own in place of a watch.

use std::fs;

use super::*;
use crate::compile::Settings;
use crate::mesh::OutboundTrafficPolicy;

/// A directory of its own, removed at the end, and a source that follows it.
struct Fixture {
    directory: PathBuf,
    events: mpsc::UnboundedSender<()>,
    addresses: watch::Sender<Arc<Addresses>>,
    _draining: watch::Sender<Arc<Draining>>,
    states: watch::Receiver<State>,
    running: tokio::task::JoinHandle<Result<(), String>>,
}

impl Fixture {
    /// Starts with one object in `a.yaml`, and returns when it is published.
    async fn start(name: &str) -> Fixture {
        let unique = format!("leno-file-source-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(unique);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("a.yaml"), entry("a")).expect("written");
        let source = Source::new(Options {
            paths: vec![directory.clone()],
            last_good: None,
            settings: Settings {
                trust_domain: "cluster.local".to_owned(),
                root_namespace: "istio-system".to_owned(),
                outbound_traffic_policy: OutboundTrafficPolicy::default(),
            },
            limits: Limits::default(),
        });
        let (events, changed) = mpsc::unbounded_channel();
        let (addresses, resolved) = watch::channel(Arc::default());
        let (draining, drained) = watch::channel(Arc::default());
        let (publish, states) = watch::channel(State::default());
        let running = tokio::spawn(source.follow(changed, publish, resolved, drained));
        let mut fixture = Fixture {
            directory,
            events,
            addresses,
            _draining: draining,
            states,
            running,
        };
        fixture.published().await;
        assert_eq!(fixture.hosts(), ["a.test"]);
        fixture
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).expect("written");
        self.events.send(()).expect("followed");
    }

    /// Waits for the next state; returns the time until then.
    async fn published(&mut self) -> Duration {
        let start = Instant::now();
        self.states.changed().await.expect("a source");
        self.states.borrow_and_update();
        start.elapsed()
    }

    /// Hosts of the published services.
    fn hosts(&self) -> Vec<String> {
        let mesh = Arc::clone(&self.states.borrow().mesh);
        let mut hosts: Vec<_> = (mesh.services.values())
            .map(|service| service.host.to_string())
            .collect();
        hosts.sort();
        hosts
    }

    /// Texts of the published problems.
    fn problems(&self) -> Vec<String> {
        let problems = Arc::clone(&self.states.borrow().problems);
        problems.iter().map(|p| p.message.clone()).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.running.abort();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A ServiceEntry for the host `NAME.test`.
fn entry(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [{name}.test]\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  \
         endpoints: [{{address: 127.0.0.1}}]\n"
    )
}

/// A timer's resolution, and the pause of a whole turn.
const TICK: Duration = Duration::from_millis(20);

fn assert_about(elapsed: Duration, expected: Duration) {
    assert!(
        expected <= elapsed && elapsed <= expected + TICK,
        "{elapsed:?}, not {expected:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_change_is_read_after_a_moment_of_quiet() {
    let mut fixture = Fixture::start("quiet").await;
    fixture.write("b.yaml", &entry("b"));
    assert_about(fixture.published().await, QUIET);
    assert_eq!(fixture.hosts(), ["a.test", "b.test"]);
    fs::remove_file(fixture.directory.join("a.yaml")).expect("removed");
    fixture.events.send(()).expect("followed");
    assert_about(fixture.published().await, QUIET);
    assert_eq!(fixture.hosts(), ["b.test"]);
}

#[tokio::test(start_paused = true)]
async fn without_an_event_it_is_read_all_the_same() {
    let mut fixture = Fixture::start("lost").await;
    fs::write(fixture.directory.join("b.yaml"), entry("b")).expect("written");
    assert_about(fixture.published().await, REREAD);
    assert_eq!(fixture.hosts(), ["a.test", "b.test"]);
}

#[tokio::test(start_paused = true)]
async fn addresses_are_published_at_once() {
    let mut fixture = Fixture::start("addresses").await;
    let addresses = [(
        "a.test".to_owned(),
        vec!["127.0.0.9".parse().expect("an address")],
    )];
    let addresses: Arc<Addresses> = Arc::new(addresses.into_iter().collect());
    fixture.addresses.send_replace(Arc::clone(&addresses));
    assert_eq!(fixture.published().await, Duration::ZERO);
    assert_eq!(fixture.states.borrow().mesh.resolved, addresses);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_emptied_holds_what_it_held_for_two_seconds() {
    let mut fixture = Fixture::start("emptied").await;
    fixture.write("a.yaml", "\n");
    assert_about(fixture.published().await, QUIET);
    assert_eq!(fixture.hosts(), ["a.test"]);
    let problem = "is empty; what it held runs on for a moment";
    assert_eq!(fixture.problems(), [problem]);
    assert_about(fixture.published().await, EMPTY);
    assert_eq!((fixture.hosts(), fixture.problems()), (vec![], vec![]));

    // Empty at first: there is nothing to hold.
    fixture.write("b.yaml", "");
    fixture.write("c.yaml", &entry("c"));
    assert_about(fixture.published().await, QUIET);
    assert_eq!(fixture.hosts(), ["c.test"]);
    assert!(fixture.problems().is_empty());

    // Truncated and written, as some editors save.
    fixture.write("c.yaml", "");
    fixture.published().await;
    assert_eq!(fixture.hosts(), ["c.test"]);
    fixture.write("c.yaml", &entry("d"));
    fixture.published().await;
    assert_eq!(
        (fixture.hosts(), fixture.problems().len()),
        (vec!["d.test".to_owned()], 0)
    );
}

#[tokio::test(start_paused = true)]
async fn while_the_directory_cannot_be_read_everything_runs_on() {
    let mut fixture = Fixture::start("gone").await;
    let aside = fixture.directory.with_extension("aside");
    fs::rename(&fixture.directory, &aside).expect("renamed");
    fixture.events.send(()).expect("followed");
    assert_about(fixture.published().await, QUIET);
    assert_eq!(fixture.hosts(), ["a.test"]);
    let problems = fixture.problems();
    assert!(problems[0].starts_with("cannot be read: "), "{problems:?}");
    fs::rename(&aside, &fixture.directory).expect("renamed");
    assert_about(fixture.published().await, REREAD);
    assert_eq!(
        (fixture.hosts(), fixture.problems().len()),
        (vec!["a.test".to_owned()], 0)
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_watch_is_an_error() {
    let mut fixture = Fixture::start("end").await;
    let (other, _) = mpsc::unbounded_channel();
    drop(std::mem::replace(&mut fixture.events, other));
    let ended = (&mut fixture.running).await.expect("no panic");
    assert_eq!(ended, Err("the watch on the directory ended".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn quiet_is_waited_for_but_not_for_ever() {
    // (milliseconds between the events, their number, milliseconds until it is settled)
    for (between, count, settled) in [(0, 0, 100), (60, 5, 400), (99, 3, 397), (60, 50, 1000)] {
        let (events, mut changed) = mpsc::unbounded_channel();
        let sending = async {
            for _ in 0..count {
                sleep(Duration::from_millis(between)).await;
                let _ = events.send(());
            }
            // A watch lives on.
            std::future::pending::<()>().await;
        };
        let start = Instant::now();
        tokio::select! {
            () = sending => {}
            () = settle(&mut changed) => {}
        }
        let expected = Duration::from_millis(settled);
        assert_about(start.elapsed(), expected);
    }
    let (events, mut changed) = mpsc::unbounded_channel();
    drop(events);
    let start = Instant::now();
    settle(&mut changed).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}
