//! Matching of requests by path, headers and query; pure.

use crate::config::matching::{HeaderMatch, StringMatch, Subject};
use crate::config::route::RouteMatch;
use leno_http::head::Head;

/// A request as matchers see it: the path and the query apart, split once.
#[derive(Debug)]
pub struct RequestView<'a> {
    /// Its head.
    pub head: &'a Head,
    /// The requested authority, lower-case, without the port.
    pub authority: &'a [u8],
    /// The path, normalised, without the query.
    pub path: &'a [u8],
    /// The query, without the question mark.
    pub query: &'a [u8],
    /// The path and the query, as they stand in the head.
    target: &'a [u8],
}

impl<'a> RequestView<'a> {
    /// A view of `head` for `authority`. The target `*` of OPTIONS becomes the path `/*`, as in Envoy: rules about
    /// every path apply to it as well.
    pub fn new<A>(head: &'a Head, authority: &'a A) -> RequestView<'a>
    where
        A: AsRef<[u8]> + ?Sized,
    {
        let target = match head.target() {
            b"*" => &b"/*"[..],
            target => target,
        };
        let (path, query) = match target.iter().position(|&b| b == b'?') {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &[][..]),
        };
        RequestView {
            head,
            authority: authority.as_ref(),
            path,
            query,
            target,
        }
    }
}

/// True when every condition of `wanted` holds.
pub fn matches(wanted: &RouteMatch, request: &RequestView<'_>) -> bool {
    wanted.path.matches(request.path)
        && wanted.headers.iter().all(|h| header_matches(h, request))
        && wanted
            .query
            .iter()
            .all(|(name, value)| query_matches(name, value.as_ref(), request))
}

/// True when a header satisfies `wanted`. Several values are compared one by one, and as one value joined by commas,
/// since a recipient may read them so (RFC 9110, section 5.3).
pub fn header_matches(wanted: &HeaderMatch, request: &RequestView<'_>) -> bool {
    let holds = match &wanted.subject {
        Subject::Field(name) => any_matches(wanted, request.head, name),
        Subject::Method => value_matches(wanted, request.head.method()),
        Subject::Path => value_matches(wanted, request.target),
        Subject::Authority => value_matches(wanted, request.authority),
    };
    holds != wanted.invert
}

fn value_matches(wanted: &HeaderMatch, value: &[u8]) -> bool {
    wanted
        .value
        .as_ref()
        .is_none_or(|match_| match_.matches(value))
}

fn any_matches(wanted: &HeaderMatch, head: &Head, name: &str) -> bool {
    let mut values = head.values(name);
    let first = match (values.next(), values.next()) {
        (None, _) => return false,
        (Some(only), None) => return value_matches(wanted, only),
        (Some(first), Some(_)) => first,
    };
    let mut joined = first.to_vec();
    for value in head.values(name).skip(1) {
        joined.push(b',');
        joined.extend_from_slice(value);
    }
    let mut each = head.values(name);
    value_matches(wanted, &joined) || each.any(|value| value_matches(wanted, value))
}

fn query_matches(name: &str, wanted: Option<&StringMatch>, request: &RequestView<'_>) -> bool {
    let mut parameters = request.query.split(|&b| b == b'&');
    parameters.any(|parameter| {
        let at = parameter.iter().position(|&b| b == b'=');
        let (key, value) = match at {
            Some(at) => (&parameter[..at], &parameter[at + 1..]),
            None => (parameter, &[][..]),
        };
        key == name.as_bytes() && wanted.is_none_or(|match_| match_.matches(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(text: &str) -> Option<StringMatch> {
        Some(StringMatch::Exact(text.to_owned()))
    }

    #[test]
    fn headers_match_by_name_whatever_the_case_and_by_value() {
        let mut head = Head::request("GET", "/a?x=1&y");
        head.add("User-Agent", b"curl");
        head.add("X-Many", b"a");
        head.add("X-Many", b"b");
        let view = RequestView::new(&head, "h");
        for (name, value, invert, expected) in [
            ("user-agent", exact("curl"), false, true),
            ("user-agent", exact("CURL"), false, false),
            ("user-agent", None, false, true),
            ("user-agent", None, true, false),
            ("absent", None, false, false),
            ("absent", None, true, true),
            ("x-many", exact("b"), false, true),
            ("x-many", exact("a,b"), false, true),
            (":method", exact("GET"), false, true),
            (":authority", exact("h"), false, true),
        ] {
            let subject = Subject::of(name);
            let wanted = HeaderMatch {
                subject,
                value,
                invert,
            };
            assert_eq!(header_matches(&wanted, &view), expected, "{wanted:?}");
        }
    }

    #[test]
    fn the_target_of_options_is_seen_as_a_path() {
        let head = Head::request("OPTIONS", "*");
        let view = RequestView::new(&head, "h");
        assert_eq!((view.path, view.query), (&b"/*"[..], &b""[..]));
        let wanted = HeaderMatch {
            subject: Subject::Path,
            value: Some(StringMatch::Prefix("/".to_owned())),
            invert: false,
        };
        assert!(header_matches(&wanted, &view));
    }

    #[test]
    fn query_parameters_match_by_name_and_value() {
        let head = Head::request("GET", "/a?x=1&y&z=");
        let view = RequestView::new(&head, "h");
        assert_eq!(view.path, b"/a");
        assert!(query_matches("x", exact("1").as_ref(), &view));
        assert!(!query_matches("x", exact("2").as_ref(), &view));
        assert!(query_matches("y", None, &view));
        assert!(query_matches("z", exact("").as_ref(), &view));
        assert!(!query_matches("w", None, &view));
    }
}
