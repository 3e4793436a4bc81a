//! String and header matchers, as route matches and policies share them.

use leno_proto::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use leno_proto::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use regex::bytes::{Regex, RegexBuilder};

use super::Invalid;

/// Most memory of a compiled regular expression, in bytes.
const REGEX_SIZE: usize = 256 * 1024;

/// String matcher.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// Equal to this.
    Exact(String),
    /// Begins with this.
    Prefix(String),
    /// Ends with this.
    Suffix(String),
    /// Matched as a whole by this (RE2 syntax).
    Regex(Regex),
}

impl StringMatch {
    /// True if `value` matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            StringMatch::Exact(exact) => value == exact.as_bytes(),
            StringMatch::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            StringMatch::Suffix(suffix) => value.ends_with(suffix.as_bytes()),
            StringMatch::Regex(regex) => regex.is_match(value),
        }
    }

    pub(super) fn validate(message: StringMatcher) -> Result<StringMatch, Invalid> {
        use string_matcher::MatchPattern as P;
        match super::required(message.match_pattern, "match_pattern")? {
            P::Exact(exact) => Ok(StringMatch::Exact(exact)),
            P::Prefix(prefix) => Ok(StringMatch::Prefix(prefix)),
            P::Suffix(suffix) => Ok(StringMatch::Suffix(suffix)),
            P::SafeRegex(regex) => Ok(StringMatch::Regex(
                full_match(&regex.regex).map_err(|invalid| invalid.within("safe_regex"))?,
            )),
            P::Contains(_) | P::Custom(_) => Err(Invalid::new("match_pattern", "is not supported")),
        }
    }
}

/// Compiles `pattern` to match the whole of a value, as Istio's and Envoy's regex matches do.
pub(super) fn full_match(pattern: &str) -> Result<Regex, Invalid> {
    RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(REGEX_SIZE)
        .dot_matches_new_line(true)
        .build()
        .map_err(|error| Invalid::new("regex", error.to_string()))
}

/// Header matcher.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Header, or pseudo-header, that is compared.
    pub subject: Subject,
    /// Value that is required; `None` when presence is enough.
    pub value: Option<StringMatch>,
    /// Inverts the result.
    pub invert: bool,
}

/// Part of a request that a header's name refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `:method`
    Method,
    /// `:path`: the path and the query.
    Path,
    /// `:authority`
    Authority,
    /// A field of this name, in lower case.
    Field(String),
}

impl Subject {
    /// The part that `name` refers to, regardless of its case.
    pub fn of(name: &str) -> Subject {
        match name.to_ascii_lowercase() {
            name if name == ":method" => Subject::Method,
            name if name == ":path" => Subject::Path,
            name if name == ":authority" => Subject::Authority,
            name => Subject::Field(name),
        }
    }
}

impl HeaderMatch {
    pub(super) fn validate(message: HeaderMatcher) -> Result<HeaderMatch, Invalid> {
        use header_matcher::HeaderMatchSpecifier as S;
        super::named(&message.name)?;
        let (value, absent) = match super::required(message.header_match_specifier, "string_match")?
        {
            S::StringMatch(value) => {
                let value = StringMatch::validate(value);
                (Some(value.map_err(|e| e.within("string_match"))?), false)
            }
            S::PresentMatch(present) => (None, !present),
            _ => return Err(Invalid::new("header_match_specifier", "is not supported")),
        };
        Ok(HeaderMatch {
            subject: Subject::of(&message.name),
            value,
            invert: message.invert_match != absent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regex_describes_the_whole_value() {
        let regex = StringMatch::Regex(full_match("a|b").expect("valid"));
        assert!(regex.matches(b"a"));
        assert!(!regex.matches(b"ab"));
        let mobile = StringMatch::Regex(full_match(".*Mobile.*").expect("valid"));
        assert!(mobile.matches(b"Mozilla/5.0 (iPhone) Mobile/15E148"));
        assert!(!mobile.matches(b"Mozilla/5.0"));
    }

    #[test]
    fn a_regex_that_takes_too_much_memory_is_refused() {
        let error = full_match("(?:a{1000}){1000}").expect_err("too large");
        assert_eq!(error.field, "regex");
    }
}
