//! Values with a grammar of their own: durations, patterns, ports, host names.

use std::time::Duration;

use serde::Deserialize;

/// A duration as Go and Istio write it: `30s`, `1m30s`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Period, String> {
        let form = || format!("{text:?} is not a duration such as 30s, 1m30s or 250ms");
        let mut rest = text.as_str();
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(form());
        }
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(form)?;
            let number: f64 = rest[..digits].parse().map_err(|_| form())?;
            let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit());
            let end = unit_end.map_or(rest.len(), |end| digits + end);
            let seconds = match &rest[digits..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(form()),
            };
            let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| form())?;
            total = total.checked_add(part).ok_or_else(form)?;
            rest = &rest[end..];
        }
        Ok(Period(total))
    }
}

/// A regular expression in RE2's syntax.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(pub String);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Pattern, String> {
        let compiled = regex::RegexBuilder::new(&text)
            .size_limit(256 * 1024)
            .build();
        match compiled {
            Ok(_) => Ok(Pattern(text)),
            Err(error) => {
                let words = error.to_string();
                let last = words.lines().last().unwrap_or_default();
                Err(format!("{text:?} is not a regular expression: {last}"))
            }
        }
    }
}

/// A port number: 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u64")]
pub struct Port(pub u16);

impl TryFrom<u64> for Port {
    type Error = String;

    fn try_from(number: u64) -> Result<Port, String> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(Port(port)),
            _ => Err(format!("{number} is not a port; it must be 1 to 65535")),
        }
    }
}

/// A host name, lower-case; no wildcards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Host(pub String);

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Host, String> {
        let host = text.trim_end_matches('.').to_ascii_lowercase();
        let label = |label: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed)
        };
        if host.contains('*') {
            return Err(format!("{text:?}: wildcard hosts are not supported yet"));
        }
        match host.len() <= 253 && host.split('.').all(label) {
            true => Ok(Host(host)),
            false => Err(format!("{text:?} is not a host name")),
        }
    }
}

/// A weight: 0 to 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Weight(pub u32);

impl TryFrom<i64> for Weight {
    type Error = String;

    fn try_from(number: i64) -> Result<Weight, String> {
        match u32::try_from(number) {
            Ok(weight) if weight <= 1_000_000 => Ok(Weight(weight)),
            _ => Err(format!("weight {number} must be 0 to 1000000")),
        }
    }
}

/// A duration as Istio writes it: `24h`, `1h30m`, `30s`.
///
/// # Errors
/// When it is of another form.
pub fn duration(text: &str) -> Result<Duration, String> {
    Period::try_from(text.to_owned()).map(|period| period.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, milliseconds) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("0s", 0),
        ] {
            let period = Period::try_from(text.to_owned()).expect(text);
            assert_eq!(period.0, Duration::from_millis(milliseconds));
        }
        for text in ["", "30", "s", "-1s", "1x", "1s2", "999999999999999999999h"] {
            assert!(Period::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_names() {
        assert_eq!(
            Host::try_from("API.Stripe.com.".to_owned()),
            Ok(Host("api.stripe.com".to_owned()))
        );
        for text in ["", "a..b", "a b", "*.a", "a/b", "-".repeat(64).as_str()] {
            assert!(Host::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
