//! Path normalisation: routes and policies match the same path that is forwarded.
//!
//! Istio's `BASE` rules (RFC 3986, section 6, as Envoy's `normalize_path`): `.` and `..` segments are resolved, `\`
//! becomes `/`, percent-encoded unreserved characters are decoded; `%2F` and repeated slashes stay. A dot segment with
//! parameters (`..;a=b`) is a dot segment: servlet containers strip the parameters before they resolve it.

use std::borrow::Cow;

/// Error of a path that can't be normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// `%00`, or a `%` that isn't followed by two hexadecimal digits.
    #[error("invalid percent-encoding in the path")]
    Encoding,
}

/// Normalises the path of an origin-form target; the query is left alone.
///
/// # Errors
/// [`InvalidPath`] when its percent-encoding is malformed or encodes NUL.
pub fn normalise(target: &[u8]) -> Result<Cow<'_, [u8]>, InvalidPath> {
    if is_normal(target) {
        return Ok(Cow::Borrowed(target));
    }
    let end = target.iter().position(|&b| b == b'?');
    let (path, query) = target.split_at(end.unwrap_or(target.len()));
    let decoded = decode(path)?;
    let mut normal = resolve_dots(&decoded);
    normal.extend_from_slice(query);
    Ok(Cow::Owned(normal))
}

/// True when the path, up to the query, needs no normalisation.
fn is_normal(target: &[u8]) -> bool {
    // Most paths hold no byte that may have to change. Eight bytes at a time, the last eight perhaps twice.
    if let Some(last) = target.last_chunk()
        && !may_change(last)
        && !target.as_chunks().0.iter().any(may_change)
    {
        return true;
    }
    let mut before = 0;
    for &byte in target {
        match byte {
            b'?' => return true,
            b'%' | b'\\' => return false,
            b'.' if before == b'/' => return false,
            byte => before = byte,
        }
    }
    true
}

/// True when one of eight bytes is `%`, `\`, or a dot.
fn may_change(eight: &[u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(*eight);
    let is_there = |byte: u8| {
        let differing = word ^ (u64::from(byte) * ONES);
        differing.wrapping_sub(ONES) & !differing
    };
    (is_there(b'%') | is_there(b'\\') | is_there(b'.')) & (0x80 * ONES) != 0
}

/// Decodes unreserved characters and turns backslashes into slashes.
fn decode(path: &[u8]) -> Result<Vec<u8>, InvalidPath> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        match path[at] {
            b'\\' => out.push(b'/'),
            b'%' => {
                let byte = encoded(path, at)?;
                match byte {
                    0 => return Err(InvalidPath::Encoding),
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        out.push(byte);
                    }
                    _ => out.extend_from_slice(&path[at..at + 3]),
                }
                at += 2;
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    Ok(out)
}

fn encoded(path: &[u8], at: usize) -> Result<u8, InvalidPath> {
    let digit = |i: usize| {
        let byte = *path.get(i).ok_or(InvalidPath::Encoding)?;
        let digit = char::from(byte).to_digit(16).ok_or(InvalidPath::Encoding)?;
        u8::try_from(digit).map_err(|_| InvalidPath::Encoding)
    };
    Ok(digit(at + 1)? << 4 | digit(at + 2)?)
}

/// Removes dot segments (RFC 3986, section 5.2.4).
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut parts = path.split(|&b| b == b'/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        match without_parameters(part) {
            dots @ (b"." | b"..") => {
                if dots == b".." {
                    segments.pop();
                }
                if is_last {
                    segments.push(b"");
                }
            }
            _ => segments.push(part),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// A segment up to its parameters (RFC 3986, section 3.3), which a semicolon begins, encoded or not.
fn without_parameters(segment: &[u8]) -> &[u8] {
    let begins = |at: &usize| {
        let rest = &segment[*at..];
        rest.starts_with(b";") || rest.starts_with(b"%3b") || rest.starts_with(b"%3B")
    };
    let end = (0..segment.len()).find(begins);
    &segment[..end.unwrap_or(segment.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_reach_the_same_place_look_the_same() {
        for (path, normal) in [
            ("/users/1", "/users/1"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/users/..", "/"),
            ("/users/.", "/users/"),
            ("/../../etc", "/etc"),
            ("/users/%2e%2E/admin", "/admin"),
            ("/users\\..\\admin", "/admin"),
            ("/%75sers/1", "/users/1"),
            ("/a%2Fb", "/a%2Fb"),
            ("//a//b", "//a//b"),
            ("/a?x=/../b&y=%2e", "/a?x=/../b&y=%2e"),
            ("/a/..?q", "/?q"),
            ("/.hidden/..x", "/.hidden/..x"),
            ("/x/..;/admin", "/admin"),
            ("/x/..;a=b/admin", "/admin"),
            ("/x/..;a=b;c/../admin", "/admin"),
            ("/x/%2e%2E;a/admin", "/admin"),
            ("/x/..%3Ba/admin", "/admin"),
            ("/x/..%3b/admin", "/admin"),
            ("/x\\..;\\admin", "/admin"),
            ("/.;/admin", "/admin"),
            ("/public/..;/admin", "/admin"),
            ("/x/..;", "/"),
            ("/x/.;a?..;/y", "/x/?..;/y"),
            ("/..;/..;/admin;a=b", "/admin;a=b"),
            ("/a;b/.c;d/...;e", "/a;b/.c;d/...;e"),
        ] {
            let got = normalise(path.as_bytes()).expect("valid");
            assert_eq!(std::str::from_utf8(&got), Ok(normal), "{path}");
            let again = normalise(&got).expect("valid");
            assert_eq!(again, got, "{path}: normalising twice changes nothing");
        }
    }

    #[test]
    fn what_is_to_be_changed_is_seen_wherever_it_stands() {
        for length in 1..40 {
            for at in 0..length {
                for segment in ["%41", "\\", "/.", "/../"] {
                    let mut path = format!("/{}", "a\u{80}".repeat(length));
                    path.truncate(path.floor_char_boundary(at));
                    path.push_str(segment);
                    path.push_str(&"b".repeat(length - at));
                    let is_dots =
                        path.ends_with("/.") || path.contains("/./") || path.contains("/../");
                    let changes = segment == "%41" || segment == "\\" || is_dots;
                    let got = normalise(path.as_bytes()).expect("valid");
                    assert_eq!(*got != *path.as_bytes(), changes, "{path}");
                }
            }
        }
    }

    #[test]
    fn an_encoding_that_hides_something_is_refused() {
        for path in ["/a%00b", "/a%", "/a%2", "/a%zz"] {
            assert_eq!(
                normalise(path.as_bytes()),
                Err(InvalidPath::Encoding),
                "{path}"
            );
        }
    }
}
