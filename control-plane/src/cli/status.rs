//! `leno status`: connected proxies and the resources that they refuse, from a running control plane.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Flags of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The control plane's monitoring address.
    #[arg(
        long,
        env = "LENO_MONITORING_ADDRESS",
        default_value = "127.0.0.1:15014"
    )]
    pub monitoring_address: SocketAddr,
}

/// Prints the status; false when a proxy refuses a resource, a workload is held closed, or an object is broken.
///
/// # Errors
/// When the control plane doesn't answer.
pub async fn run(args: Args) -> Result<bool, String> {
    let status = fetch_status(args.monitoring_address).await?;
    Ok(print(&status))
}

/// Requests the status of the control plane at `address`.
pub(super) async fn fetch_status(address: SocketAddr) -> Result<Value, String> {
    let asked = timeout(Duration::from_secs(5), get(address)).await;
    let answer = asked.unwrap_or_else(|_| Err("it took too long".to_owned()));
    answer.map_err(|error| format!("no answer from the control plane at {address}: {error}"))
}

async fn get(address: SocketAddr) -> Result<Value, String> {
    let mut tcp = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let request = format!("GET /debug/status HTTP/1.0\r\nhost: {address}\r\n\r\n");
    tcp.write_all(request.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut answer = String::new();
    tcp.take(64 * 1024 * 1024)
        .read_to_string(&mut answer)
        .await
        .map_err(|e| e.to_string())?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("it is no HTTP")?;
    serde_json::from_str(body).map_err(|error| error.to_string())
}

fn print(status: &Value) -> bool {
    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let mut good = true;
    for proxy in list("proxies") {
        println!(
            "{}  {} names{}",
            text(&proxy, "node"),
            proxy["names"],
            health(&proxy)
        );
        for refused in proxy["refused"].as_array().into_iter().flatten() {
            good = false;
            let (kind, name) = (text(refused, "type"), text(refused, "name"));
            println!(
                "  refuses {kind} {name}: {}: {}",
                text(refused, "field"),
                text(refused, "reason")
            );
        }
    }
    for proxy in list("proxies") {
        if let Some(why) = proxy["inbound_closed"].as_str() {
            good = false;
            println!(
                "{}: refuses a change of who gets in, so its inbound is closed: {why}",
                text(&proxy, "node")
            );
        }
    }
    for (node, held) in list("proxies").iter().filter_map(held) {
        good = false;
        println!("{node}: its labels are not known, so it is held closed by what may be for it:");
        held["by"]
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|object| {
                println!("  {}", object.as_str().unwrap_or_default());
            });
        println!("  {}", text(held, "why"));
    }
    good &= print_rejected(status);
    println!("{}", text(status, "read"));
    for problem in list("problems") {
        let problem = problem.as_str().unwrap_or_default();
        good &= !problem.contains(": error: ");
        println!("{problem}");
    }
    good
}

/// Prints the objects whose text is not in force; true when there are none.
pub(super) fn print_rejected(status: &Value) -> bool {
    let rejected = status["rejected"].as_array();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    for one in rejected.into_iter().flatten() {
        println!(
            "{}: {}: {}",
            text(one, "place"),
            text(one, "object"),
            text(one, "standing")
        );
    }
    rejected.is_none_or(Vec::is_empty)
}

/// A proxy's node id, with the objects that hold its workload closed because its labels aren't known, if any do.
fn held(proxy: &Value) -> Option<(&str, &Value)> {
    let held = proxy.get("held_closed").filter(|held| !held.is_null())?;
    Some((proxy["node"].as_str()?, held))
}

/// A sidecar's health in a few words: certificate, age of the configuration, clock.
fn health(proxy: &Value) -> String {
    let mut words = Vec::new();
    if let Some(days) = proxy["certificate_days_left"].as_f64() {
        words.push(format!("certificate ends in {}", life(days)));
    }
    if let Some(age) = proxy["config_age_seconds"]
        .as_f64()
        .filter(|age| *age > 0.0)
    {
        words.push(format!("configuration is {age:.0} s old"));
    }
    if let Some(clock) = proxy["clock"].as_str() {
        words.push(format!("clock {clock}"));
    }
    words.iter().map(|word| format!("  {word}")).collect()
}

fn life(days: f64) -> String {
    match days * 24.0 {
        hours if hours >= 48.0 => format!("{days:.0} days"),
        hours if hours >= 2.0 => format!("{hours:.0} h"),
        hours => format!("{:.0} min", hours * 60.0),
    }
}
