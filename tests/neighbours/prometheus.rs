//! A real Prometheus scrapes a running mesh: every query of Istio's dashboards, of Kiali and of ours is answered, and
//! counts are right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leno_tests::client::get;
use leno_tests::{Directory, until};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use crate::mix::{Labels, MixMesh, expected};
use crate::{Program, free};

/// Seconds between two scrapes of a target. A range of 60 s holds four scrapes, which are 45 s apart.
const INTERVAL: u32 = 15;
/// Seconds that a scrape takes at most.
const SCRAPE: f64 = 0.1;

fn configuration(watched: &MixMesh) -> String {
    let targets: Vec<String> = watched.targets().map(|at| format!("'{at}'")).collect();
    format!(
        "global: {{scrape_interval: {INTERVAL}s}}\nscrape_configs:\n- job_name: leno-proxy\n  metrics_path: /stats/prometheus\n  \
         static_configs: [{{targets: [{}]}}]\n- job_name: leno\n  static_configs: [{{targets: ['{}']}}]\n",
        targets.join(", "),
        watched.mesh.monitoring()
    )
}

/// A Prometheus, and the time of the evaluation, in seconds since 1970.
#[derive(Clone, Copy)]
struct Moment(SocketAddr, f64);

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64()
}

/// The result of a query.
async fn ask(Moment(prometheus, time): Moment, query: &str) -> Result<Vec<Value>, String> {
    let mut encoded = String::new();
    for byte in query.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    let path = format!("/api/v1/query?time={time}&query={encoded}");
    let answer: Value = serde_json::from_slice(&get(prometheus, "p", &path).await.body)
        .map_err(|e| e.to_string())?;
    let result = answer["data"]["result"].as_array().cloned();
    result.ok_or_else(|| answer.to_string())
}

/// A query of the file, and its expected result.
struct Query {
    id: String,
    query: String,
    expect: String,
}

/// The queries of the file: `query:` is quoted and may span several lines.
fn queries() -> Vec<Query> {
    let text = include_str!("queries.yaml");
    let one = |part: &str| {
        let id = part.lines().next().unwrap_or_default().to_owned();
        let expect = part
            .lines()
            .find_map(|line| line.strip_prefix("  expect: "));
        let (_, query) = part.split_once("query: '").expect("a query");
        let query = query.split('\'').next().unwrap_or_default();
        let words: Vec<&str> = query.split_whitespace().collect();
        Query {
            expect: expect
                .unwrap_or_else(|| panic!("{id} expects nothing"))
                .to_owned(),
            query: words.join(" "),
            id,
        }
    };
    text.split("\n- id: ").skip(1).map(one).collect()
}

impl Query {
    /// True when the values are as expected.
    fn is_met(&self, values: &[f64]) -> bool {
        let (series, what) = self
            .expect
            .split_once(" series, ")
            .expect("a number of series");
        if series.parse() != Ok(values.len()) {
            return false;
        }
        let number = |text: &str| text.parse::<f64>().expect("a number");
        if let Some(range) = what.strip_prefix("each ") {
            let (low, high) = range.split_once("..").expect("a range");
            let range = number(low)..=number(high);
            return values.iter().all(|value| range.contains(value));
        }
        let expected = match what.split_once(" per ") {
            Some((count, time)) => number(count) / number(time.trim_end_matches('s')),
            None => number(what),
        };
        (values.iter().sum::<f64>() - expected).abs() <= 0.01 * expected
    }
}

/// Every panel's query of the dashboards under `deploy/grafana`, with their variables filled in.
fn panels() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).expect("dashboards") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("read");
        let board: Value = serde_json::from_str(&text).expect("JSON");
        collect(
            &path.file_stem().expect("a name").to_string_lossy(),
            &board["panels"],
            &mut all,
        );
    }
    all
}

fn collect(board: &str, panels: &Value, all: &mut Vec<(String, String)>) {
    for panel in panels.as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap_or_default();
            let query = query
                .replace("$__rate_interval", "60s")
                .replace("$__range", "60s")
                .replace("$reporter", "source|destination")
                .replace("$service", ".*")
                .replace("$workload", ".*")
                .replace("$namespace", "default")
                .replace("$datasource", "");
            let title = panel["title"].as_str().unwrap_or_default();
            all.push((format!("{board}: {title}"), query));
        }
        collect(board, &panel["panels"], all);
    }
}

/// Waits for the longest pause between scrapes, for a mix; returns its length. With eight targets it is nearly two
/// seconds at least.
async fn pause(at: SocketAddr) -> Duration {
    let last = ask(Moment(at, now()), "timestamp(up == 1)").await;
    let interval = f64::from(INTERVAL);
    let phases = last.expect("scrapes");
    let mut phases: Vec<f64> = phases.iter().map(|one| value(one) % interval).collect();
    phases.sort_by(f64::total_cmp);
    let next = |i: usize| phases.get(i + 1).map_or(phases[0] + interval, |next| *next);
    let gap = |i: usize| next(i) - phases[i];
    let longest = (0..phases.len()).max_by(|a, b| gap(*a).total_cmp(&gap(*b)));
    let longest = longest.expect("a target");
    let begin = phases[longest] + SCRAPE;
    let wait = (begin - now()).rem_euclid(interval);
    sleep(Duration::from_secs_f64(wait)).await;
    Duration::from_secs_f64(gap(longest) - 2.0 * SCRAPE)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dashboards_and_kiali_ask_is_answered_as_it_is_expected() {
    let watched = Arc::new(MixMesh::start().await);
    let directory = Directory::new();
    let at = free();
    std::fs::write(directory.path().join("p.yaml"), configuration(&watched)).expect("written");
    let listen = format!("--web.listen-address={at}");
    let arguments = ["--config.file=p.yaml", "--storage.tsdb.path=data", &*listen];
    // A rate needs a series that was there before it grew, and a range without other events.
    watched.mix().await;
    let _prometheus = Program::start("prometheus", &arguments, directory.path());
    let interval = Duration::from_secs(INTERVAL.into());
    sleep(interval).await;
    let targets = watched.targets().count() + 1;
    until("every target is scraped", || async {
        let up = ask(Moment(at, now()), "up == 1").await.ok()?;
        (up.len() == targets).then_some(())
    })
    .await;
    sleep(2 * interval).await;
    let (mut begun, mut took);
    loop {
        let at_most = pause(at).await;
        begun = Instant::now();
        watched.mix().await;
        took = begun.elapsed();
        if took < at_most {
            break;
        }
        // The machine was busy: a scrape saw half of the mix, which must be out of every range before the next one.
        println!("a mix took {took:?} of {at_most:?}");
        sleep(4 * interval).await;
    }
    // The same pause, after one more scrape of each target.
    sleep_until(begun + interval).await;
    let moment = Moment(at, now());
    let (counted, expected) = (counted(moment).await, expected(&watched.tally()));
    let all: BTreeSet<&Labels> = counted.keys().chain(expected.keys()).collect();
    let differ = |labels: &&&Labels| counted.get(*labels) != expected.get(*labels);
    let told = |labels: &Labels| {
        let (counted, expected) = (counted.get(labels), expected.get(labels));
        format!("counted {counted:?}, expected {expected:?}: {labels:?}")
    };
    let mut wrong: Vec<String> = all
        .iter()
        .filter(differ)
        .map(|labels| told(labels))
        .collect();
    wrong.extend(what_is_asked(moment).await);
    wrong.extend(what_panels_ask(moment).await);
    assert!(
        wrong.is_empty(),
        "the mix took {took:?}\n{}",
        wrong.join("\n")
    );
}

/// Every series of requests and of opened TCP connections.
async fn counted(moment: Moment) -> BTreeMap<Labels, u64> {
    let query = "{__name__=~\"istio_requests_total|istio_tcp_connections_opened_total\"}";
    let mut all = BTreeMap::new();
    for one in ask(moment, query).await.expect("an answer") {
        let labels = one["metric"].as_object().expect("labels").iter();
        let own = |name: &str| !["__name__", "instance", "job"].contains(&name);
        let labels = labels.filter(|(name, _)| own(name));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let labels = labels.map(|(name, value)| (name.clone(), text(value)));
        let count = one["value"][1]
            .as_str()
            .and_then(|count| count.parse::<u64>().ok());
        *all.entry(labels.collect()).or_default() += count.expect("a count");
    }
    all
}

fn value(one: &Value) -> f64 {
    let text = one["value"][1].as_str().unwrap_or_default();
    text.parse().unwrap_or(f64::NAN)
}

/// Queries of the file with an unexpected answer.
async fn what_is_asked(moment: Moment) -> Vec<String> {
    let asked = queries();
    assert!(asked.len() > 60, "{} queries", asked.len());
    let mut wrong = Vec::new();
    for asked in asked {
        match ask(moment, &asked.query).await {
            Err(error) => wrong.push(format!("{}: {error}", asked.id)),
            Ok(found) => {
                let values: Vec<f64> = found.iter().map(value).collect();
                if !asked.is_met(&values) {
                    let (id, expect) = (&asked.id, &asked.expect);
                    wrong.push(format!("{id}: expected {expect}: {values:?}"));
                }
            }
        }
    }
    wrong
}

/// Panels with a failing or empty query.
async fn what_panels_ask(moment: Moment) -> Vec<String> {
    let panels = panels();
    assert!(panels.len() > 50, "{} panels", panels.len());
    let mut wrong = Vec::new();
    for (panel, query) in panels {
        match ask(moment, &query).await {
            Err(error) => wrong.push(format!("{panel}: {error}: {query}")),
            Ok(found) if found.is_empty() => wrong.push(format!("{panel}: empty: {query}")),
            Ok(_) => {}
        }
    }
    wrong
}
