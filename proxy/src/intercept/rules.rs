//! nftables rules that redirect the pod's connections: pure values, printed in the syntax of `nft`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use leno_http::stream::SOCKET_PRIORITY;

/// Source addresses of the sidecar's connections to the app, which are never redirected: Istio's 127.0.0.6, and its
/// counterpart for IPv6.
pub const PASSTHROUGH_SOURCES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
    IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
];
/// The source address for connections to `address`: the one of [`PASSTHROUGH_SOURCES`] of the same family.
pub fn passthrough_source(address: IpAddr) -> IpAddr {
    let [v4, v6] = PASSTHROUGH_SOURCES;
    if address.is_ipv4() { v4 } else { v6 }
}

/// Port of the self-test, without a listener: a connection to [`PASSTHROUGH_SOURCES`] on it succeeds only if it is redirected.
pub const PROBE: u16 = 15002;

/// Conntrack zone of the sidecar's own connections. An entry that one of them leaves, such as that of an unanswered
/// SYN, must not match an app's connection between the same two ends: that one would not be redirected.
const ZONE: u16 = 15001;

/// A range of addresses (CIDR).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    /// An address of it.
    pub address: IpAddr,
    /// Prefix length, in bits.
    pub prefix: u8,
}

impl Net {
    fn host(address: IpAddr) -> Net {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Net { address, prefix }
    }

    /// Its mask, as long as its address.
    pub fn mask(&self) -> Vec<u8> {
        let length = if self.address.is_ipv4() { 4 } else { 16 };
        let byte = |i: u8| {
            let bits = self.prefix.saturating_sub(8 * i).min(8);
            0xff_u8.checked_shl(u32::from(8 - bits)).unwrap_or(0)
        };
        (0..length).map(byte).collect()
    }

    fn family(&self) -> &'static str {
        if self.address.is_ipv4() { "ip" } else { "ip6" }
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let wrong = || format!("{text:?} is not a range such as 10.0.0.0/8 or fd00::/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let host = Net::host(address.parse().map_err(|_| wrong())?);
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| wrong())?,
            None => host.prefix,
        };
        let net = Net { prefix, ..host };
        (prefix <= host.prefix).then_some(net).ok_or_else(wrong)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix == Net::host(self.address).prefix {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

/// Value of an include or exclude flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection<T> {
    /// `*`
    All,
    /// The listed ones.
    These(Vec<T>),
}

impl<T: FromStr> FromStr for Selection<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Selection<T>, String> {
        if text.trim() == "*" {
            return Ok(Selection::All);
        }
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let each = |part: &str| {
            part.parse()
                .map_err(|_| format!("{part:?} is not allowed here"))
        };
        parts
            .map(each)
            .collect::<Result<_, _>>()
            .map(Selection::These)
    }
}

/// Settings of the interception, as Istio's annotations `traffic.sidecar.istio.io/…` have them.
#[derive(Debug, Clone)]
pub struct RuleOptions {
    /// User ids of the sidecar. Of its connections only those to the pod's own address are redirected.
    pub uids: Vec<u32>,
    /// Group ids of the sidecar, likewise.
    pub gids: Vec<u32>,
    /// Port that the app's connections are redirected to.
    pub outbound_port: u16,
    /// Port that connections to the app are redirected to.
    pub inbound_port: u16,
    /// `includeInboundPorts`
    pub include_inbound_ports: Selection<u16>,
    /// `excludeInboundPorts`, and the sidecar's own.
    pub exclude_inbound_ports: Vec<u16>,
    /// `includeOutboundPorts`: redirected even outside `includeOutboundIPRanges`.
    pub include_outbound_ports: Vec<u16>,
    /// `excludeOutboundPorts`
    pub exclude_outbound_ports: Vec<u16>,
    /// `includeOutboundIPRanges`
    pub include_outbound_ranges: Selection<Net>,
    /// `excludeOutboundIPRanges`
    pub exclude_outbound_ranges: Vec<Net>,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// TCP.
    Tcp,
    /// The socket belongs to this user.
    Uid(u32),
    /// The socket belongs to this group.
    Gid(u32),
    /// The packet has this priority (`SO_PRIORITY`).
    Priority(u32),
    /// Leaves by the loopback interface.
    OutLoopback,
    /// The destination port.
    Port(u16),
    /// The source address is in this range.
    From(Net),
    /// The destination address is in this range.
    To(Net),
    /// The destination address is of the same family, outside this range.
    NotTo(Net),
}

/// Action on a connection that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It isn't redirected.
    Return,
    /// It is redirected to this port of the sidecar.
    Redirect(u16),
    /// Its original direction is tracked in this conntrack zone.
    Zone(u16),
}

/// A rule: the first that matches and returns or redirects decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// The action.
    pub verdict: Action,
}

/// Netfilter hook of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Connections from the pod, before connection tracking.
    Raw,
    /// Connections from the pod.
    Output,
    /// Connections to the pod.
    Prerouting,
}

/// Rules for one direction.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Its hook.
    pub hook: Hook,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// The nftables table (family `inet`: IPv4 and IPv6).
#[derive(Debug, Clone)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// Name of Leno's table.
pub const TABLE: &str = "leno";

impl Hook {
    /// The type, hook and priority of its chain.
    pub fn kind(self) -> (&'static str, &'static str, i32) {
        match self {
            Hook::Raw => ("filter", "output", -300),
            Hook::Output => ("nat", "output", -100),
            Hook::Prerouting => ("nat", "prerouting", -100),
        }
    }
}

impl RuleOptions {
    /// The table of rules for these settings.
    pub fn table(&self) -> Table {
        let chain = |name, hook, rules| Chain { name, hook, rules };
        let apart = Rule {
            matches: vec![Match::Tcp, Match::Priority(SOCKET_PRIORITY)],
            verdict: Action::Zone(ZONE),
        };
        Table {
            name: TABLE,
            chains: vec![
                chain("raw", Hook::Raw, vec![apart]),
                chain("output", Hook::Output, self.output()),
                chain("prerouting", Hook::Prerouting, self.prerouting()),
            ],
        }
    }

    fn output(&self) -> Vec<Rule> {
        let mut rules = Rules::default();
        for passing in PASSTHROUGH_SOURCES.map(Net::host) {
            // The self-test, from any user.
            let probe = [Match::To(passing), Match::Tcp, Match::Port(PROBE)];
            rules.add(&probe, Action::Redirect(self.outbound_port));
            // From the sidecar to the app.
            rules.add(&[Match::From(passing)], Action::Return);
        }
        let uids = self.uids.iter().map(|uid| Match::Uid(*uid));
        for own in uids.chain(self.gids.iter().map(|gid| Match::Gid(*gid))) {
            self.own_service(&mut rules, &own);
            rules.add(&[own], Action::Return);
        }
        rules.add(&[Match::OutLoopback], Action::Return);
        for range in &self.exclude_outbound_ranges {
            rules.add(&[Match::To(*range)], Action::Return);
        }
        for port in &self.exclude_outbound_ports {
            rules.add(&[Match::Tcp, Match::Port(*port)], Action::Return);
        }
        let redirect = Action::Redirect(self.outbound_port);
        for port in &self.include_outbound_ports {
            rules.add(&[Match::Tcp, Match::Port(*port)], redirect);
        }
        match &self.include_outbound_ranges {
            Selection::All => rules.add(&[Match::Tcp], redirect),
            Selection::These(ranges) => {
                for range in ranges {
                    rules.add(&[Match::To(*range), Match::Tcp], redirect);
                }
            }
        }
        rules.0
    }

    /// Rules for a pod that calls its own service, to be served like any other caller: the sidecar's connections to the
    /// pod's own address are redirected to the inbound port.
    fn own_service(&self, rules: &mut Rules, own: &Match) {
        let loopback = [
            Net {
                address: Ipv4Addr::new(127, 0, 0, 0).into(),
                prefix: 8,
            },
            Net::host(Ipv6Addr::LOCALHOST.into()),
        ];
        let mine = [own.clone(), Match::OutLoopback];
        for port in self.never_inbound() {
            let on = [&mine[..], &[Match::Tcp, Match::Port(port)]].concat();
            rules.add(&on, Action::Return);
        }
        let redirect = Action::Redirect(self.inbound_port);
        for local in loopback {
            let elsewhere = [&mine[..], &[Match::NotTo(local), Match::Tcp]].concat();
            match &self.include_inbound_ports {
                Selection::All => rules.add(&elsewhere, redirect),
                Selection::These(ports) => {
                    for port in ports {
                        let on = [&elsewhere[..], &[Match::Port(*port)]].concat();
                        rules.add(&on, redirect);
                    }
                }
            }
        }
    }

    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = Rules::default();
        for port in self.never_inbound() {
            rules.add(&[Match::Tcp, Match::Port(port)], Action::Return);
        }
        let redirect = Action::Redirect(self.inbound_port);
        match &self.include_inbound_ports {
            Selection::All => rules.add(&[Match::Tcp], redirect),
            Selection::These(ports) => {
                for port in ports {
                    rules.add(&[Match::Tcp, Match::Port(*port)], redirect);
                }
            }
        }
        rules.0
    }

    fn never_inbound(&self) -> impl Iterator<Item = u16> {
        let own = [self.inbound_port, self.outbound_port];
        own.into_iter()
            .chain(self.exclude_inbound_ports.iter().copied())
    }
}

#[derive(Default)]
struct Rules(Vec<Rule>);

impl Rules {
    fn add(&mut self, matches: &[Match], verdict: Action) {
        let matches = matches.to_vec();
        self.0.push(Rule { matches, verdict });
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Tcp => write!(f, "meta l4proto tcp"),
            Match::Uid(uid) => write!(f, "meta skuid {uid}"),
            Match::Gid(gid) => write!(f, "meta skgid {gid}"),
            Match::Priority(priority) => write!(f, "meta priority 0:{priority:x}"),
            Match::OutLoopback => write!(f, "oif \"lo\""),
            Match::Port(port) => write!(f, "th dport {port}"),
            Match::From(net) => write!(f, "{} saddr {net}", net.family()),
            Match::To(net) => write!(f, "{} daddr {net}", net.family()),
            Match::NotTo(net) => write!(f, "{} daddr != {net}", net.family()),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        match self.verdict {
            Action::Return => write!(f, "return"),
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
            Action::Zone(zone) => write!(f, "ct original zone set {zone}"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for chain in &self.chains {
            let (kind, hook, priority) = chain.hook.kind();
            writeln!(f, "  chain {} {{", chain.name)?;
            writeln!(
                f,
                "    type {kind} hook {hook} priority {priority}; policy accept;"
            )?;
            for rule in &chain.rules {
                writeln!(f, "    {rule}")?;
            }
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> RuleOptions {
        RuleOptions {
            uids: vec![1337],
            gids: vec![],
            outbound_port: 15001,
            inbound_port: 15006,
            include_inbound_ports: Selection::All,
            exclude_inbound_ports: vec![15020, 15090],
            include_outbound_ports: vec![],
            exclude_outbound_ports: vec![],
            include_outbound_ranges: Selection::All,
            exclude_outbound_ranges: vec![],
        }
    }

    fn rules(wanted: &RuleOptions, chain: usize) -> Vec<String> {
        let rules = &wanted.table().chains[chain].rules;
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_is_taken_over_but_the_sidecar_and_loopback() {
        let wanted = wanted();
        assert_eq!(
            rules(&wanted, 0),
            ["meta l4proto tcp meta priority 0:4 ct original zone set 15001"]
        );
        assert_eq!(
            rules(&wanted, 1),
            [
                "ip daddr 127.0.0.6 meta l4proto tcp th dport 15002 redirect to :15001",
                "ip saddr 127.0.0.6 return",
                "ip6 daddr ::6 meta l4proto tcp th dport 15002 redirect to :15001",
                "ip6 saddr ::6 return",
                "meta skuid 1337 oif \"lo\" meta l4proto tcp th dport 15006 return",
                "meta skuid 1337 oif \"lo\" meta l4proto tcp th dport 15001 return",
                "meta skuid 1337 oif \"lo\" meta l4proto tcp th dport 15020 return",
                "meta skuid 1337 oif \"lo\" meta l4proto tcp th dport 15090 return",
                "meta skuid 1337 oif \"lo\" ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006",
                "meta skuid 1337 oif \"lo\" ip6 daddr != ::1 meta l4proto tcp redirect to :15006",
                "meta skuid 1337 return",
                "oif \"lo\" return",
                "meta l4proto tcp redirect to :15001",
            ]
        );
        assert_eq!(
            rules(&wanted, 2).last().expect("rules"),
            "meta l4proto tcp redirect to :15006"
        );
        assert_eq!(rules(&wanted, 2).len(), 5);
    }

    #[test]
    fn ports_and_ranges_are_included_and_excluded() {
        let wanted = RuleOptions {
            include_inbound_ports: "80, 443".parse().expect("ports"),
            include_outbound_ranges: "10.0.0.0/8,fd00::/8".parse().expect("ranges"),
            include_outbound_ports: vec![9000],
            exclude_outbound_ports: vec![22],
            exclude_outbound_ranges: vec!["10.1.2.3".parse().expect("a range")],
            ..wanted()
        };
        let output = rules(&wanted, 1);
        let from = output
            .iter()
            .position(|rule| rule == "oif \"lo\" return")
            .expect("it");
        assert_eq!(
            output[from + 1..],
            [
                "ip daddr 10.1.2.3 return",
                "meta l4proto tcp th dport 22 return",
                "meta l4proto tcp th dport 9000 redirect to :15001",
                "ip daddr 10.0.0.0/8 meta l4proto tcp redirect to :15001",
                "ip6 daddr fd00::/8 meta l4proto tcp redirect to :15001",
            ]
        );
        let prerouting = rules(&wanted, 2);
        assert_eq!(
            prerouting[4..],
            [
                "meta l4proto tcp th dport 80 redirect to :15006",
                "meta l4proto tcp th dport 443 redirect to :15006",
            ]
        );
        let nothing = RuleOptions {
            include_inbound_ports: "".parse().expect("none"),
            ..wanted
        };
        assert!(
            !rules(&nothing, 2)
                .iter()
                .any(|rule| rule.contains("redirect"))
        );
    }

    #[test]
    fn ranges_are_read_and_masked() {
        for (text, mask) in [
            ("10.0.0.0/8", &[255, 0, 0, 0][..]),
            ("10.0.0.0/0", &[0, 0, 0, 0]),
            ("10.0.0.1", &[255; 4]),
            ("10.128.0.0/9", &[255, 128, 0, 0]),
        ] {
            assert_eq!(text.parse::<Net>().expect("a range").mask(), mask, "{text}");
        }
        for wrong in ["10.0.0.0/33", "x", "10.0.0.0/", "fd00::/129", "/8"] {
            assert!(wrong.parse::<Net>().is_err(), "{wrong}");
        }
        assert!("80,x".parse::<Selection<u16>>().is_err());
    }
}
