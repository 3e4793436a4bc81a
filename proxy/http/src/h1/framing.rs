//! The framing of a message's body (RFC 9112, section 6.3), in the strict reading: a head that two parsers could read
//! differently is an error, never a guess.

use super::InvalidHead;
use crate::head::{FieldName, Head, Version};

/// Framing of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// This many bytes.
    Fixed(u64),
    /// Delimited by the chunked coding.
    Chunked,
    /// Delimited by the connection's end; responses only.
    UntilClose,
}

/// The framing of a request's body.
///
/// # Errors
/// When `Content-Length` and `Transfer-Encoding` are invalid or ambiguous.
pub fn request_framing(head: &Head) -> Result<Framing, InvalidHead> {
    Ok(declared(head)?.unwrap_or(Framing::Empty))
}

/// The framing of a response's body; `is_head` when the request was a HEAD.
///
/// # Errors
/// When `Content-Length` and `Transfer-Encoding` are invalid or ambiguous.
pub fn response_framing(head: &Head, is_head: bool) -> Result<Framing, InvalidHead> {
    let declared = declared(head)?;
    let bodiless = is_head || matches!(head.status(), 100..=199 | 204 | 304);
    match bodiless {
        true => Ok(Framing::Empty),
        false => Ok(declared.unwrap_or(Framing::UntilClose)),
    }
}

/// The framing that the head declares, if it does.
fn declared(head: &Head) -> Result<Option<Framing>, InvalidHead> {
    if head.get(FieldName::TransferEncoding).is_none()
        && head.get(FieldName::ContentLength).is_none()
    {
        return Ok(None);
    }
    let mut codings = head.get_all(FieldName::TransferEncoding);
    let mut lengths = head.get_all(FieldName::ContentLength);
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(InvalidHead::Syntax(
            "Content-Length together with Transfer-Encoding",
        )),
        (Some(coding), None) => {
            if head.version() == Version::Http10 {
                return Err(InvalidHead::Syntax("Transfer-Encoding in HTTP/1.0"));
            }
            if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(InvalidHead::Syntax("Transfer-Encoding other than chunked"));
            }
            Ok(Some(Framing::Chunked))
        }
        (None, Some(length)) => {
            if lengths.next().is_some() {
                return Err(InvalidHead::Syntax("more than one Content-Length"));
            }
            decimal(length)
                .map(|length| Some(Framing::Fixed(length)))
                .ok_or(InvalidHead::Syntax("invalid Content-Length"))
        }
    }
}

/// Parses a decimal number that fits into 64 bits: only digits, no sign, no list, no space.
fn decimal(digits: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    digits.split_first()?;
    digits.iter().try_fold(0_u64, |number, byte| {
        number.checked_mul(10)?.checked_add(digit(byte)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Result<Framing, InvalidHead> {
        let mut head = Head::request("POST", "/");
        for (name, value) in fields {
            head.add(name, value.as_bytes());
        }
        request_framing(&head)
    }

    #[test]
    fn a_request_says_its_length_in_one_way_or_is_refused() {
        assert_eq!(request(&[]), Ok(Framing::Empty));
        assert_eq!(request(&[("content-length", "0")]), Ok(Framing::Fixed(0)));
        assert_eq!(request(&[("Content-Length", "12")]), Ok(Framing::Fixed(12)));
        assert_eq!(
            request(&[("Transfer-Encoding", "Chunked")]),
            Ok(Framing::Chunked)
        );
        for fields in [
            &[("content-length", "1"), ("content-length", "1")][..],
            &[("content-length", "1"), ("transfer-encoding", "chunked")],
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "xchunked")],
            &[("transfer-encoding", "")],
            &[("content-length", "+1")],
            &[("content-length", "-1")],
            &[("content-length", "0x1")],
            &[("content-length", "1, 1")],
            &[("content-length", "")],
            &[("content-length", "18446744073709551616")],
        ] {
            assert!(request(fields).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn a_response_without_a_body_has_none_whatever_it_declares() {
        let of = |status, is_head| {
            let mut head = Head::response(status);
            head.add("content-length", b"5");
            response_framing(&head, is_head)
        };
        for status in [100, 103, 204, 304] {
            assert_eq!(of(status, false), Ok(Framing::Empty));
        }
        assert_eq!(of(200, true), Ok(Framing::Empty));
        assert_eq!(of(200, false), Ok(Framing::Fixed(5)));
        assert_eq!(
            response_framing(&Head::response(200), false),
            Ok(Framing::UntilClose)
        );
    }
}
