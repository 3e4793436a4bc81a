//! Interception: nftables rules in the pod's network namespace, written by `leno-proxy init`, redirect its connections.

pub mod netlink;
pub mod rules;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;
use socket2::SockRef;

pub use rules::passthrough_source;
use rules::{Net, PASSTHROUGH_SOURCES, PROBE, RuleOptions, Selection, TABLE};

/// Timeout of the self-test's connection.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Flags of `init`. Each may come from an environment variable instead; the names are those of Istio's annotations
/// `traffic.sidecar.istio.io/…`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Prints the rules, as `nft -f` takes them, and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// The port that the app's connections are taken to.
    #[arg(long, env = "LENO_PROXY_PORT", default_value_t = 15001)]
    pub proxy_port: u16,
    /// The port that connections to the app are taken to.
    #[arg(long, env = "LENO_INBOUND_CAPTURE_PORT", default_value_t = 15006)]
    pub inbound_capture_port: u16,
    /// The user of the sidecar, whose connections are left alone.
    #[arg(
        long,
        env = "LENO_PROXY_UID",
        default_value = "1337",
        value_delimiter = ','
    )]
    pub proxy_uid: Vec<u32>,
    /// The group of the sidecar, if it is to be told by that as well.
    #[arg(long, env = "LENO_PROXY_GID", value_delimiter = ',')]
    pub proxy_gid: Vec<u32>,
    /// Ports of the app that are taken over: `*`, or a list.
    #[arg(long, env = "LENO_INCLUDE_INBOUND_PORTS", default_value = "*")]
    pub include_inbound_ports: Selection<u16>,
    /// Ports of the app that are not.
    #[arg(long, env = "LENO_EXCLUDE_INBOUND_PORTS", default_value = "")]
    pub exclude_inbound_ports: Selection<u16>,
    /// Ports that are taken over wherever they are.
    #[arg(long, env = "LENO_INCLUDE_OUTBOUND_PORTS", default_value = "")]
    pub include_outbound_ports: Selection<u16>,
    /// Ports that are not taken over, wherever they are.
    #[arg(long, env = "LENO_EXCLUDE_OUTBOUND_PORTS", default_value = "")]
    pub exclude_outbound_ports: Selection<u16>,
    /// Addresses to which connections are taken over: `*`, or ranges.
    #[arg(long, env = "LENO_INCLUDE_OUTBOUND_IP_RANGES", default_value = "*")]
    pub include_outbound_ip_ranges: Selection<Net>,
    /// Addresses to which they are not.
    #[arg(long, env = "LENO_EXCLUDE_OUTBOUND_IP_RANGES", default_value = "")]
    pub exclude_outbound_ip_ranges: Selection<Net>,
}

/// Ports of the sidecar that are never redirected: metrics and health.
const OWN: [u16; 2] = [15020, 15090];

impl InitArgs {
    fn wanted(self) -> Result<RuleOptions, String> {
        let exclude_inbound = listed("--exclude-inbound-ports", self.exclude_inbound_ports)?;
        Ok(RuleOptions {
            uids: self.proxy_uid,
            gids: self.proxy_gid,
            outbound_port: self.proxy_port,
            inbound_port: self.inbound_capture_port,
            include_inbound_ports: self.include_inbound_ports,
            exclude_inbound_ports: OWN.into_iter().chain(exclude_inbound).collect(),
            include_outbound_ports: listed(
                "--include-outbound-ports",
                self.include_outbound_ports,
            )?,
            exclude_outbound_ports: listed(
                "--exclude-outbound-ports",
                self.exclude_outbound_ports,
            )?,
            include_outbound_ranges: self.include_outbound_ip_ranges,
            exclude_outbound_ranges: listed(
                "--exclude-outbound-ip-ranges",
                self.exclude_outbound_ip_ranges,
            )?,
        })
    }
}

fn listed<T>(flag: &str, which: Selection<T>) -> Result<Vec<T>, String> {
    match which {
        Selection::These(these) => Ok(these),
        Selection::All => Err(format!("{flag} takes a list, not *")),
    }
}

/// Writes the rules into this network namespace in one transaction, replacing earlier ones, and tests that they
/// redirect; returns the text to print.
///
/// # Errors
/// An invalid flag, a proxy port in use, the kernel's refusal with its likely cause, or rules that redirect nothing.
pub fn init(args: InitArgs) -> Result<String, String> {
    let is_dry = args.dry_run;
    let wanted = args.wanted()?;
    let table = wanted.table();
    if is_dry {
        return Ok(format!(
            "table inet {TABLE}\ndelete table inet {TABLE}\n{table}"
        ));
    }
    let port = wanted.outbound_port;
    // Bound before anything changes: a process that holds the port already would get the app's connections.
    let listener = std::net::TcpListener::bind((IpAddr::from([127, 0, 0, 1]), port));
    let listener =
        listener.map_err(|error| format!("port {port} is to be the sidecar's: {error}"))?;
    netlink::replace(&table).map_err(|error| error.to_string())?;
    for passing in PASSTHROUGH_SOURCES {
        if let IpAddr::V6(address) = passing
            && let Err(error) = netlink::add_to_loopback(address)
        {
            eprintln!(
                "leno-proxy: {address} can't be added to lo: the app won't be reached over IPv6: {error}"
            );
        }
    }
    self_test().map_err(|error| error.to_string())?;
    drop(listener);
    let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
    Ok(format!(
        "table inet {TABLE}: {rules} rules; outbound to :{port}, inbound to :{}\n",
        wanted.inbound_port
    ))
}

/// Removes the rules.
///
/// # Errors
/// The kernel's refusal, with its likely cause.
pub fn clean() -> Result<(), String> {
    netlink::remove(TABLE).map_err(|error| error.to_string())
}

/// Tests that the pod's connections are redirected: one to a port without a listener must reach the outbound port.
///
/// # Errors
/// When they aren't; the text names the remedy.
pub fn self_test() -> io::Result<()> {
    let probe = SocketAddr::new(PASSTHROUGH_SOURCES[0], PROBE);
    match TcpStream::connect_timeout(&probe, SELF_TEST_TIMEOUT) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "connections are not taken over: one to {probe} was not redirected to the outbound port ({error}); \
                 `leno-proxy init` must have run in this network namespace, with the capability NET_ADMIN"
            ),
        )),
    }
}

/// True when `address` is the self-test's.
pub fn is_probe(address: SocketAddr) -> bool {
    address.port() == PROBE && PASSTHROUGH_SOURCES.contains(&address.ip())
}

/// Original destination (`SO_ORIGINAL_DST`) of a redirected connection; `None` when the peer dialled `own` itself.
pub fn original_destination(tcp: &tokio::net::TcpStream) -> Option<SocketAddr> {
    let own = tcp.local_addr().ok()?;
    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
    let socket = SockRef::from(tcp);
    let original = match own {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = original.ok()?.as_socket()?;
    (original != own).then_some(original)
}
