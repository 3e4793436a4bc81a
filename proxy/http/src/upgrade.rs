//! The protocols that a request may switch to (RFC 9110, section 7.8). No rule sees the bytes that follow a switch: by
//! default only WebSocket is forwarded.

use std::str::FromStr;

use super::h1::is_token;
use super::head::{FieldName, Head};

/// The protocol that is always forwarded.
const WEBSOCKET: &str = "websocket";

/// A protocol that `Upgrade` names, such as `websocket` or `irc/6.9`.
#[derive(Debug, Clone)]
struct Protocol(String);

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Protocol, String> {
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.split('/');
        let name = parts.next().unwrap_or_default();
        if matches!(name, "h2c" | "h2" | "http" | "tls") {
            let text =
                format!("{text:?} is not passed on: it carries requests, which no rule would see");
            return Err(text);
        }
        let is_one = is_token(name.as_bytes()) && parts.clone().count() < 2;
        match is_one && parts.all(|version| is_token(version.as_bytes())) {
            true => Ok(Protocol(lower)),
            false => Err(format!(
                "{text:?} is not a protocol, such as {WEBSOCKET} or irc/6.9"
            )),
        }
    }
}

/// The protocols that requests may switch to: WebSocket, and those of a comma-separated list.
#[derive(Debug, Clone, Default)]
pub struct Upgrades(Vec<Protocol>);

impl FromStr for Upgrades {
    type Err = String;

    fn from_str(text: &str) -> Result<Upgrades, String> {
        let named = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        named
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Upgrades)
    }
}

impl Upgrades {
    /// The first allowed protocol among the request's `Upgrade` fields, on any line and in a list or not, spelt as in
    /// the request.
    pub fn find<'a>(&self, request: &'a Head) -> Option<&'a [u8]> {
        let lines = request.get_all(FieldName::Upgrade);
        let mut named =
            lines.flat_map(|line| line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
        named.find(|name| self.has(name))
    }

    fn has(&self, name: &[u8]) -> bool {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        is(WEBSOCKET) || self.0.iter().any(|protocol| is(&protocol.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(upgrades: &Upgrades, lines: &[&str]) -> Option<String> {
        let mut head = Head::request("GET", "/");
        lines
            .iter()
            .for_each(|line| head.add("Upgrade", line.as_bytes()));
        let found = upgrades.find(&head)?;
        Some(String::from_utf8_lossy(found).into_owned())
    }

    #[test]
    fn websocket_alone_is_found_wherever_it_stands() {
        let upgrades = Upgrades::default();
        for (lines, expected) in [
            (&[][..], None),
            (&["websocket"][..], Some("websocket")),
            (&["WebSocket"][..], Some("WebSocket")),
            (&["websocket, h2c"][..], Some("websocket")),
            (&["h2c,\twebsocket"][..], Some("websocket")),
            (&["h2c", "websocket"][..], Some("websocket")),
            (&["h2c"][..], None),
            (&["foo"][..], None),
            (&["foo, h2c"][..], None),
            (&["TLS/1.0"][..], None),
            (&["websocket/13"][..], None),
            (&["web socket"][..], None),
            (&["\"websocket\""][..], None),
            (&["", ","][..], None),
        ] {
            assert_eq!(found(&upgrades, lines).as_deref(), expected, "{lines:?}");
        }
    }

    #[test]
    fn others_are_named_and_those_that_carry_requests_cannot_be() {
        let upgrades: Upgrades = "IRC/6.9, foo".parse().expect("two");
        assert_eq!(
            found(&upgrades, &["h2c, irc/6.9"]).as_deref(),
            Some("irc/6.9")
        );
        assert_eq!(found(&upgrades, &["FOO"]).as_deref(), Some("FOO"));
        assert_eq!(found(&upgrades, &["irc"]), None);
        assert_eq!(
            found(&upgrades, &["websocket"]).as_deref(),
            Some("websocket")
        );
        for text in [
            "h2c", "H2C", "HTTP/2.0", "TLS/1.0", "tls", "a/b/c", "a b", "a/", "/a", "foo,h2c",
        ] {
            assert!(text.parse::<Upgrades>().is_err(), "{text}");
        }
        assert!(
            "".parse::<Upgrades>().is_ok(),
            "an empty variable names none"
        );
    }
}
