//! The strings of an AuthorizationPolicy's rules: a text, or one with `*` at one end, or `*` alone. In `namespaces` a
//! `*` may be anywhere.
//!
//! A string that can match nothing is reported: in a DENY it would deny nothing, in an ALLOW it allows nothing.

use serde::{Deserialize, Deserializer};

/// A comparison of strings: Istio's exact, prefix, suffix and presence match.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Wildcard {
    /// `*`: any value, if present.
    Present,
    /// The whole value.
    Exact(String),
    /// `text*`: a prefix.
    Prefix(String),
    /// `*text`: a suffix.
    Suffix(String),
}

impl TryFrom<String> for Wildcard {
    type Error = String;

    fn try_from(text: String) -> Result<Wildcard, String> {
        let (inner, wildcard): (_, fn(String) -> Wildcard) =
            match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(""), _) => return Ok(Wildcard::Present),
                (Some(suffix), _) => (suffix, Wildcard::Suffix),
                (None, Some(prefix)) => (prefix, Wildcard::Prefix),
                (None, None) => (text.as_str(), Wildcard::Exact),
            };
        match inner {
            "" => Err("'' is empty; it would match nothing".to_owned()),
            inner => Ok(wildcard(inner.to_owned())),
        }
    }
}

impl Wildcard {
    /// The text beside the `*`.
    fn text(&self) -> &str {
        match self {
            Wildcard::Present => "",
            Wildcard::Exact(text) | Wildcard::Prefix(text) | Wildcard::Suffix(text) => text,
        }
    }
}

/// A flaw of a string in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It can match nothing.
    Never(&'static str),
    /// Istio gives it a meaning that Leno doesn't.
    Unsupported(&'static str),
}

/// The flaw of a string in the list `field` of a rule, if it has one.
pub(super) fn flaw(field: &str, pattern: &Wildcard) -> Option<Flaw> {
    let never = |is_good: bool, why| (!is_good).then_some(Flaw::Never(why));
    let text = pattern.text();
    match field {
        "namespaces" => never(is_part(&text.replace('*', "")), "it is no namespace's name"),
        "paths" if text.contains(['{', '}']) => {
            Some(Flaw::Unsupported("templates are not supported yet"))
        }
        _ if text.contains('*') => Some(Flaw::Never("* stands alone or at one end, nowhere else")),
        "principals" => {
            let form = "a principal is DOMAIN/ns/NAMESPACE/sa/ACCOUNT, without spiffe://";
            never(may_be_principal(pattern), form)
        }
        "methods" => {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b);
            let is_variant = |method: &str| method != text && method.eq_ignore_ascii_case(text);
            match pattern {
                Wildcard::Exact(_) if METHODS.split(' ').any(is_variant) => Some(Flaw::Never(
                    "methods have case, and this one is in capitals",
                )),
                _ => never(text.bytes().all(token), "it is no method"),
            }
        }
        _ => path_flaw(pattern).map(Flaw::Never),
    }
}

/// The reason that no normalised path can match, if none can.
fn path_flaw(pattern: &Wildcard) -> Option<&'static str> {
    // Samples with the `*` filled in: if none of them is a normalised path, nothing can match.
    let paths = match pattern {
        Wildcard::Present => return None,
        Wildcard::Exact(text) => vec![text.clone()],
        Wildcard::Prefix(text) => ["x", "2F", "F"]
            .map(|rest| format!("{text}{rest}"))
            .to_vec(),
        Wildcard::Suffix(text) => ["/", "/x"].map(|start| format!("{start}{text}")).to_vec(),
    };
    match pattern.text() {
        _ if !paths[0].starts_with('/') => Some("a path begins with /"),
        text if text.contains('?') => Some("the query is no part of the path"),
        _ if !paths.iter().any(|path| is_normal(path)) => {
            Some("paths are normalised before they are compared")
        }
        _ => None,
    }
}

/// The methods of IANA's HTTP Method Registry, as sidecars have them.
pub const METHODS: &str = "ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE \
    MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PRI PROPFIND PROPPATCH PUT \
    QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL";

/// True for a part of a SPIFFE ID, or the beginning or end of one.
fn is_part(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    text.bytes().all(allowed)
}

fn may_be_principal(wildcard: &Wildcard) -> bool {
    /// The parts of a principal; `None` for one that may be any name.
    const FORM: [Option<&str>; 5] = [None, Some("ns"), None, Some("sa"), None];
    let text = wildcard.text();
    let parts: Vec<&str> = text.split('/').collect();
    let Some(missing) = FORM.len().checked_sub(parts.len()) else {
        return false;
    };
    let whole = |part: &str, form: Option<&str>| match form {
        Some(name) => part == name,
        None => !part.is_empty() && is_part(part),
    };
    let cut = |part: &str, form: Option<&str>, fits: fn(&str, &str) -> bool| {
        form.map_or_else(|| is_part(part), |name| fits(name, part))
    };
    let last = parts.len() - 1;
    match wildcard {
        Wildcard::Present => true,
        Wildcard::Exact(_) => missing == 0 && parts.iter().zip(FORM).all(|(p, f)| whole(p, f)),
        Wildcard::Prefix(_) => {
            parts[..last].iter().zip(FORM).all(|(p, f)| whole(p, f))
                && cut(parts[last], FORM[last], |name, part| name.starts_with(part))
        }
        Wildcard::Suffix(_) => {
            let form = &FORM[missing..];
            parts[1..].iter().zip(&form[1..]).all(|(p, f)| whole(p, *f))
                && cut(parts[0], form[0], |name, part| name.ends_with(part))
        }
    }
}

/// True for a valid path that normalisation leaves as it is: Istio's `BASE`, as the sidecar applies it.
fn is_normal(path: &str) -> bool {
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let bytes = path.as_bytes();
    let escape = |at: usize| {
        let digits = path.get(at + 1..at + 3)?;
        let byte = u8::from_str_radix(digits, 16).ok()?;
        (digits.bytes().all(|b| b.is_ascii_hexdigit()) && byte != 0 && !is_unreserved(byte))
            .then_some(())
    };
    let is_clear = bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => escape(at).is_some(),
        b'\\' | b'#' | b'"' | b'<' | b'>' | b'`' => false,
        byte => byte.is_ascii_graphic(),
    });
    let mut segments = path.split('/').map(|segment| {
        let ends = [";", "%3b", "%3B"].map(|parameters| segment.find(parameters));
        let end = ends.into_iter().flatten().min();
        &segment[..end.unwrap_or(segment.len())]
    });
    is_clear && !segments.any(|segment| matches!(segment, "." | ".."))
}

/// Deserializes a list that must not be empty when present: an empty one would match anything, and a template that
/// renders to nothing must not open the access that it was written to close.
pub(super) fn not_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default();
    match list.is_empty() {
        true => Err(serde::de::Error::custom(
            "the list is empty; leave it out to mean any",
        )),
        false => Ok(list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_good(field: &str, text: &str) -> bool {
        let read = Wildcard::try_from(text.to_owned());
        read.is_ok_and(|read| flaw(field, &read).is_none())
    }

    #[test]
    fn a_star_stands_alone_or_at_one_end() {
        let read = |text: &str| Wildcard::try_from(text.to_owned());
        assert_eq!(read("*"), Ok(Wildcard::Present));
        assert_eq!(read("a"), Ok(Wildcard::Exact("a".to_owned())));
        assert_eq!(read("a*"), Ok(Wildcard::Prefix("a".to_owned())));
        assert_eq!(read("*a"), Ok(Wildcard::Suffix("a".to_owned())));
        assert!(read("").is_err());
        for text in ["a*b", "*a*", "**", "a**", "***"] {
            let read = read(text).expect("Istio takes it");
            for field in ["principals", "methods", "paths"] {
                assert!(flaw(field, &read).is_some(), "{field} {text}");
            }
        }
    }

    #[test]
    fn a_principal_that_nobody_can_be_is_told() {
        for text in [
            "cluster.local/ns/default/sa/a",
            "cluster.local/ns/default/*",
            "cluster.local/n*",
            "cluster*",
            "*/sa/a",
            "*sa/a",
            "*a/sa/a",
            "*a/ns/b/sa/c",
            "*local/ns/default/sa/a",
            "*",
        ] {
            assert!(is_good("principals", text), "{text}");
        }
        for text in [
            "spiffe://cluster.local/ns/default/sa/a",
            "spiffe://*",
            "*//cluster.local/ns/default/sa/a",
            "*/cluster.local/ns/default/sa/a",
            "*/ns/default",
            "default/sa/a",
            "cluster.local/ns/default",
            "cluster.local/sa*",
            "cluster.local/ns//sa/a",
            "cluster.local/ns/default/sa/a/b*",
            "cluster.local/ns/default/sa/a b",
            "*/ns/default/a",
            "/ns*",
            "",
        ] {
            assert!(!is_good("principals", text), "{text}");
        }
    }

    #[test]
    fn a_namespace_is_a_name() {
        for (text, read) in [
            ("shop", true),
            ("sh*", true),
            ("*op", true),
            ("*", true),
            ("s*p", true),
            ("*ho*", true),
            ("s*/p", false),
            ("default/sa", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_good("namespaces", text), read, "{text}");
        }
    }

    #[test]
    fn a_method_has_case() {
        for (text, read) in [
            ("GET", true),
            ("PROP*", true),
            ("purge", true),
            ("get", false),
            ("Delete", false),
            ("propfind", false),
            ("G*T", false),
            ("GET,POST", false),
            ("GET POST", false),
            ("", false),
        ] {
            assert_eq!(is_good("methods", text), read, "{text}");
        }
    }

    #[test]
    fn a_path_that_no_request_can_have_is_told() {
        for text in [
            "/", "/admin", "/admin/*", "/a%2Fb", "*.css", "*/info", "*admin", "*", "/a;b=c",
            "/.a/..b", "//a", "/.*", "/a/..*",
        ] {
            assert!(is_good("paths", text), "{text}");
        }
        for text in [
            "",
            "admin",
            "admin*",
            "/a?b",
            "*?b",
            "/a/../b",
            "/a/./b*",
            "/a/..",
            "*/../b",
            "/a/..;/b",
            "/a/..%3bx;y/b",
            "/a`b",
            "/%61dmin",
            "/a%",
            "/a%0",
            "/a%00",
            "/a%+1",
            "/a\\b",
            "/a b",
            "/ü",
            "/a#b",
            "/a/*/b",
            "/users/{id}",
            "spiffe://a",
        ] {
            assert!(!is_good("paths", text), "{text}");
        }
    }
}
