//! nftables rules over netlink: one batch of nfnetlink messages, which takes effect as a whole or not at all
//! (`linux/netfilter/nf_tables.h`). Numbers in attributes are big-endian; headers, and the values of `meta` and `ct`,
//! are in the machine's byte order.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::rules::{Action, Chain, Match, Net, Rule, Table};

/// `AF_NETLINK`, and the protocols of it that are used here.
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
const NETLINK_NETFILTER: i32 = 12;
/// Timeout of an answer of the kernel.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

const NLMSG_ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
/// `NFPROTO_INET`, `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`.
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const META_PRIORITY: u32 = 2;
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const CT_ZONE: u32 = 17;
/// `IP_CT_DIR_ORIGINAL`
const ORIGINAL: u8 = 0;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const NFT_RETURN: i32 = -5;
/// The index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;
/// Prefix length of a single IPv6 address.
const HOST: u8 = 128;

/// Subject of each message of a batch, by sequence number, for the text of a refusal.
type Messages = Vec<String>;

/// Writes `table`, replacing one of the same name.
///
/// # Errors
/// The kernel's refusal, with its likely cause.
pub fn replace(table: &Table) -> io::Result<()> {
    let mut batch = Batch::remove(table.name);
    batch.table(NEWTABLE, CREATE, table.name);
    for chain in &table.chains {
        batch.chain(table.name, chain);
        for rule in &chain.rules {
            batch.rule(table.name, chain.name, rule);
        }
    }
    batch.commit()
}

/// Removes the table `name`, if there is one.
///
/// # Errors
/// The kernel's refusal, with its likely cause.
pub fn remove(name: &str) -> io::Result<()> {
    Batch::remove(name).commit()
}

/// Adds `address` to the loopback interface, unless it is there already.
///
/// # Errors
/// The kernel's refusal.
pub fn add_to_loopback(address: Ipv6Addr) -> io::Result<()> {
    const RTM_NEWADDR: u16 = 20;
    const AF_INET6: u8 = 10;
    const IFA_F_NODAD: u8 = 2;
    let mut body = vec![AF_INET6, HOST, IFA_F_NODAD, 0];
    body.extend_from_slice(&LOOPBACK.to_ne_bytes());
    for kind in [1, 2] {
        attribute(&mut body, kind, &address.octets());
    }
    let message = message(RTM_NEWADDR, REQUEST | ACK | CREATE | EXCL, 1, &body);
    match send(NETLINK_ROUTE, &message, &[1]) {
        Err((_, error)) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        sent => sent.map_err(|(_, error)| error),
    }
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    // The sender's port id (`nlmsg_pid`), not set.
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    out
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn number(out: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(out, kind, &value.to_be_bytes());
}

fn text(out: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(out, kind, &[value.as_bytes(), &[0]].concat());
}

fn nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(out, kind | NESTED, &inner);
}

/// The expressions of a rule.
#[derive(Debug, Default)]
struct Expressions(Vec<u8>);

impl Expressions {
    fn of(rule: &Rule) -> Expressions {
        let mut all = Expressions::default();
        for condition in &rule.matches {
            all.condition(condition);
        }
        match rule.verdict {
            Action::Return => all.add("immediate", |out| {
                number(out, 1, REG_VERDICT);
                nested(out, 2, |data| {
                    let code = u32::from_ne_bytes(NFT_RETURN.to_ne_bytes());
                    nested(data, 2, |verdict| number(verdict, 1, code));
                });
            }),
            Action::Zone(zone) => {
                all.load(&zone.to_ne_bytes());
                all.add("ct", |out| {
                    number(out, 2, CT_ZONE);
                    attribute(out, 3, &[ORIGINAL]);
                    number(out, 4, REG_1);
                });
            }
            Action::Redirect(port) => {
                all.load(&port.to_be_bytes());
                all.add("redir", |out| {
                    number(out, 1, REG_1);
                    number(out, 2, REG_1);
                });
            }
        }
        all
    }

    fn load(&mut self, value: &[u8]) {
        self.add("immediate", |out| {
            number(out, 1, REG_1);
            nested(out, 2, |data| attribute(data, 1, value));
        });
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::Tcp => self.meta(META_L4PROTO, &[TCP]),
            Match::Uid(uid) => self.meta(META_SKUID, &uid.to_ne_bytes()),
            Match::Gid(gid) => self.meta(META_SKGID, &gid.to_ne_bytes()),
            Match::Priority(priority) => self.meta(META_PRIORITY, &priority.to_ne_bytes()),
            Match::OutLoopback => self.meta(META_OIF, &LOOPBACK.to_ne_bytes()),
            Match::Port(port) => {
                self.payload(TRANSPORT_HEADER, 2, 2);
                self.compare(CMP_EQ, &port.to_be_bytes());
            }
            Match::From(net) => self.net(net, [12, 8], CMP_EQ),
            Match::To(net) => self.net(net, [16, 24], CMP_EQ),
            Match::NotTo(net) => self.net(net, [16, 24], CMP_NEQ),
        }
    }

    fn add(&mut self, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
        nested(&mut self.0, 1, |expression| {
            text(expression, 1, name);
            nested(expression, 2, fill);
        });
    }

    fn meta(&mut self, key: u32, value: &[u8]) {
        self.add("meta", |out| {
            number(out, 1, REG_1);
            number(out, 2, key);
        });
        self.compare(CMP_EQ, value);
    }

    fn payload(&mut self, header: u32, offset: u32, length: u32) {
        self.add("payload", |out| {
            for (kind, value) in [(1, REG_1), (2, header), (3, offset), (4, length)] {
                number(out, kind, value);
            }
        });
    }

    fn compare(&mut self, how: u32, value: &[u8]) {
        self.add("cmp", |out| {
            number(out, 1, REG_1);
            number(out, 2, how);
            nested(out, 3, |data| attribute(data, 1, value));
        });
    }

    /// Compares an address of the IP header with `net`. `offsets` are its offsets in the header of IPv4 and of IPv6.
    fn net(&mut self, net: &Net, offsets: [u32; 2], how: u32) {
        let (family, offset, address) = match net.address {
            IpAddr::V4(v4) => (IPV4, offsets[0], v4.octets().to_vec()),
            IpAddr::V6(v6) => (IPV6, offsets[1], v6.octets().to_vec()),
        };
        let length = u32::try_from(address.len()).unwrap_or(16);
        let mask = net.mask();
        self.meta(META_NFPROTO, &[family]);
        self.payload(NETWORK_HEADER, offset, length);
        self.add("bitwise", |out| {
            number(out, 1, REG_1);
            number(out, 2, REG_1);
            number(out, 3, length);
            nested(out, 4, |data| attribute(data, 1, &mask));
            nested(out, 5, |data| attribute(data, 1, &vec![0; mask.len()]));
        });
        let masked: Vec<u8> = address.iter().zip(&mask).map(|(a, m)| a & m).collect();
        self.compare(how, &masked);
    }
}

/// A batch of nfnetlink messages, which take effect together.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    messages: Messages,
}

impl Batch {
    /// A batch that begins by removing the table `name`, even if there is none.
    fn remove(name: &str) -> Batch {
        let mut batch = Batch {
            bytes: Vec::new(),
            sequence: 0,
            messages: Vec::new(),
        };
        batch.boundary(BATCH_BEGIN);
        // Created first, so that the deletion succeeds even if there was no such table.
        batch.table(NEWTABLE, CREATE, name);
        batch.table(DELTABLE, 0, name);
        batch
    }

    fn boundary(&mut self, kind: u16) {
        let mut body = vec![0, 0];
        body.extend_from_slice(&SUBSYSTEM.to_be_bytes());
        self.push(kind, REQUEST, &body, "the batch".to_owned());
    }

    fn push(&mut self, kind: u16, flags: u16, body: &[u8], what: String) {
        let message = message(kind, flags, self.sequence, body);
        self.bytes.extend_from_slice(&message);
        self.messages.push(what);
        self.sequence += 1;
    }

    fn change(&mut self, command: u16, flags: u16, attributes: &[u8], what: String) {
        let body = [&[INET, 0, 0, 0], attributes].concat();
        self.push(SUBSYSTEM << 8 | command, REQUEST | ACK | flags, &body, what);
    }

    fn table(&mut self, command: u16, flags: u16, name: &str) {
        let mut out = Vec::new();
        text(&mut out, 1, name);
        self.change(command, flags, &out, format!("table inet {name}"));
    }

    fn chain(&mut self, table: &str, chain: &Chain) {
        let (kind, hook, priority) = chain.hook.kind();
        let hook = match hook {
            "output" => OUTPUT,
            _ => PREROUTING,
        };
        let mut out = Vec::new();
        text(&mut out, 1, table);
        text(&mut out, 3, chain.name);
        nested(&mut out, 4, |data| {
            number(data, 1, hook);
            number(data, 2, u32::from_ne_bytes(priority.to_ne_bytes()));
        });
        // Policy: accept.
        number(&mut out, 5, 1);
        text(&mut out, 7, kind);
        self.change(NEWCHAIN, CREATE, &out, format!("chain {}", chain.name));
    }

    fn rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        let mut out = Vec::new();
        text(&mut out, 1, table);
        text(&mut out, 2, chain);
        attribute(&mut out, 4 | NESTED, &Expressions::of(rule).0);
        self.change(NEWRULE, CREATE | APPEND, &out, format!("rule `{rule}`"));
    }

    fn commit(mut self) -> io::Result<()> {
        let changes: Vec<u32> = (1..self.sequence).collect();
        self.boundary(BATCH_END);
        send(NETLINK_NETFILTER, &self.bytes, &changes).map_err(|(sequence, error)| {
            let at = sequence.and_then(|sequence| self.messages.get(sequence as usize));
            explain(at.map_or("the batch", String::as_str), &error)
        })
    }
}

/// Text of a refusal: the object, and the capability or kernel feature that is missing.
fn explain(what: &str, error: &io::Error) -> io::Error {
    const EPERM: i32 = 1;
    const ENOENT: i32 = 2;
    const EACCES: i32 = 13;
    const EINVAL: i32 = 22;
    const EPROTONOSUPPORT: i32 = 93;
    const EOPNOTSUPP: i32 = 95;
    let hint = match error.raw_os_error() {
        Some(EPERM | EACCES) => {
            "; the capability NET_ADMIN is needed in the user namespace that owns this network namespace"
        }
        Some(EPROTONOSUPPORT) => "; the kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)",
        Some(EINVAL | EOPNOTSUPP) if what == "the batch" => {
            "; the kernel has no nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)"
        }
        Some(ENOENT | EOPNOTSUPP) if what.starts_with("chain") && what != "chain raw" => {
            "; the kernel has no NAT for nf_tables (CONFIG_NFT_NAT)"
        }
        Some(ENOENT | EOPNOTSUPP) if what.contains("ct original zone") => {
            "; the kernel has no zones of connection tracking (CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_ZONES)"
        }
        Some(ENOENT) if what.starts_with("rule") => {
            "; the kernel has no redirect for nf_tables (CONFIG_NFT_REDIR)"
        }
        _ => "",
    };
    io::Error::new(
        error.kind(),
        format!("nf_tables refused {what}: {error}{hint}"),
    )
}

/// Sends a message or a batch, and waits until the kernel has acknowledged each of `awaited`. A refusal comes with the
/// sequence number of the message; all of a batch is undone then.
fn send(protocol: i32, bytes: &[u8], awaited: &[u32]) -> Result<(), (Option<u32>, io::Error)> {
    let unnumbered = |error| (None, error);
    let kind = Type::from(3); // SOCK_RAW
    let socket = Socket::new(
        Domain::from(AF_NETLINK),
        kind,
        Some(Protocol::from(protocol)),
    );
    let mut socket = socket.map_err(unnumbered)?;
    socket
        .set_read_timeout(Some(REPLY_TIMEOUT))
        .map_err(unnumbered)?;
    let sent = socket.write(bytes).map_err(unnumbered)?;
    if sent != bytes.len() {
        return Err((None, io::ErrorKind::WriteZero.into()));
    }
    let mut left = awaited.len();
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let read = socket.read(&mut buffer).map_err(unnumbered)?;
        left = left.saturating_sub(acknowledged(&buffer[..read])?);
    }
    Ok(())
}

/// Number of messages that `answers` acknowledge; the first refusal is an error.
fn acknowledged(mut answers: &[u8]) -> Result<usize, (Option<u32>, io::Error)> {
    let mut count = 0;
    while let Some((head, rest)) = answers.split_first_chunk::<16>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *head;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        if u16::from_ne_bytes([k0, k1]) == NLMSG_ERROR
            && let Some(code) = rest.first_chunk::<4>()
        {
            match i32::from_ne_bytes(*code) {
                0 => count += 1,
                code => {
                    let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
                    return Err((Some(sequence), io::Error::from_raw_os_error(-code)));
                }
            }
        }
        let next = length.next_multiple_of(4).clamp(16, answers.len());
        answers = &answers[next..];
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_length() {
        let mut out = Vec::new();
        text(&mut out, 1, "leno");
        assert_eq!(out, b"\x09\0\x01\0leno\0\0\0\0");
        nested(&mut out, 2, |inner| number(inner, 1, 7));
        assert_eq!(out[12..], *b"\x0c\0\x02\x80\x08\0\x01\0\0\0\0\x07");
    }

    #[test]
    fn refusals_name_the_message_and_what_is_missing() {
        let answer = |sequence: u32, code: i32| {
            let body = [&code.to_ne_bytes()[..], &[0; 16]].concat();
            message(NLMSG_ERROR, 0, sequence, &body)
        };
        let all = [answer(1, 0), answer(2, 0)].concat();
        assert_eq!(acknowledged(&all).expect("both"), 2);
        let (sequence, error) = acknowledged(&answer(4, -1)).expect_err("a refusal");
        assert_eq!(sequence, Some(4));
        let words = explain("table inet leno", &error).to_string();
        assert!(
            words.contains("table inet leno") && words.contains("NET_ADMIN"),
            "{words}"
        );
        let missing = io::Error::from_raw_os_error(2);
        assert!(
            explain("rule `x`", &missing)
                .to_string()
                .contains("CONFIG_NFT_REDIR")
        );
        // An incomplete message is no answer.
        assert_eq!(acknowledged(&[0; 7]).expect("nothing"), 0);
        assert_eq!(acknowledged(&[0; 40]).expect("nothing"), 0);
    }
}
