//! Decision on a retry: one table; pure.
//!
//! Connection failed before the request was sent: always. After that, and before any response: when the method may be
//! repeated (RFC 9110, section 9.2.2), or an explicit policy says so. Response status or timeout of one attempt: as an
//! explicit policy says. Never once a byte of the response was sent downstream.

use std::time::Duration;

use crate::error::{Error, Kind, Progress, Side};
use leno_http::head::Head;
use leno_rules::config::route::{Retry, RetryOn};

/// Failure of an attempt.
#[derive(Debug, Clone, Copy)]
pub enum Failure<'a> {
    /// No response.
    Error(&'a Error),
    /// A response with this status, and the gRPC status in its head, if there is one.
    Status(u16, Option<u8>),
}

/// Decision on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The policy retries this failure, if attempts, body and budget allow.
    Again,
    /// The failure is none of those that are retried.
    Final,
    /// A retry would be due, but is withheld for this reason.
    Withheld(&'static str),
}

/// True when `request` may be repeated after any failure.
pub fn is_idempotent(request: &Head) -> bool {
    const METHODS: [&[u8]; 6] = [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"];
    METHODS.contains(&request.method()) || request.values("idempotency-key").next().is_some()
}

/// The decision table.
pub fn decide(retry: &Retry, is_idempotent: bool, failure: Failure<'_>) -> Decision {
    let on = |conditions: &[RetryOn]| {
        retry.is_explicit && conditions.iter().any(|w| retry.on.contains(w))
    };
    let broken = [RetryOn::FiveXx, RetryOn::GatewayError, RetryOn::Reset];
    let error = match failure {
        Failure::Status(status, grpc) => {
            let class = match status {
                502..=504 => &[RetryOn::FiveXx, RetryOn::GatewayError][..],
                500.. => &[RetryOn::FiveXx],
                409 => &[RetryOn::Retriable4xx],
                _ => &[],
            };
            let grpc = grpc.is_some_and(|status| on(&[RetryOn::Grpc(status)]));
            return match on(class) || on(&[RetryOn::Status(status)]) || grpc {
                true => Decision::Again,
                false => Decision::Final,
            };
        }
        Failure::Error(error) => error,
    };
    match (error.side, error.kind, error.progress) {
        // Timeout of one attempt, not of the whole request.
        (Side::Own, Kind::Timeout, Progress::Nothing | Progress::Sent) => match on(&broken) {
            true => Decision::Again,
            false => Decision::Final,
        },
        (Side::Up, Kind::Protocol, _) | (Side::Down | Side::Own, ..) => Decision::Final,
        (Side::Up, _, Progress::Nothing) => Decision::Again,
        (Side::Up, _, Progress::Sent) => match is_idempotent || on(&broken) {
            true => Decision::Again,
            false => Decision::Withheld("not idempotent"),
        },
        (Side::Up, _, Progress::Informed | Progress::Answered) => Decision::Final,
    }
}

/// Pause before attempt `number` (the second is 2): full jitter over 2^(`number` - 1) - 1 times the base, up to the
/// longest.
pub fn backoff(retry: &Retry, number: u32, dice: u32) -> Duration {
    let (base, longest) = retry.backoff;
    let factor = (1_u32 << (number - 1).min(16)) - 1;
    let span = base.saturating_mul(factor).min(longest);
    span.mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(is_explicit: bool, on: &[RetryOn]) -> Retry {
        Retry {
            attempts: 2,
            per_try: None,
            is_explicit,
            on: on.to_vec(),
            backoff: (Duration::from_millis(25), Duration::from_millis(250)),
        }
    }

    fn up(kind: Kind, progress: Progress) -> Error {
        Error::up(kind, "").at(progress)
    }

    #[test]
    #[allow(clippy::too_many_lines)] // a table
    fn the_table() {
        use Decision::{Again, Final, Withheld};
        use Progress::{Answered, Nothing, Sent};
        let default = retry(false, &[RetryOn::Grpc(14)]);
        let named = |on: RetryOn| retry(true, &[on]);
        let (reset, five) = (named(RetryOn::Reset), named(RetryOn::FiveXx));
        let other = named(RetryOn::Status(429));
        let late = Error::own(Kind::Timeout, "").at(Sent);
        let caller = Error::down(Kind::Reset, "").at(Sent);
        let overload = Error::own(Kind::Overload, "");
        for (i, (retry, idempotent, failure, expected)) in [
            (
                &default,
                false,
                Failure::Error(&up(Kind::Connect, Nothing)),
                Again,
            ),
            (
                &default,
                false,
                Failure::Error(&up(Kind::Tls, Nothing)),
                Again,
            ),
            (
                &other,
                false,
                Failure::Error(&up(Kind::ConnectTimeout, Nothing)),
                Again,
            ),
            (
                &default,
                true,
                Failure::Error(&up(Kind::Reset, Sent)),
                Again,
            ),
            (
                &default,
                false,
                Failure::Error(&up(Kind::Reset, Sent)),
                Withheld("not idempotent"),
            ),
            (&reset, false, Failure::Error(&up(Kind::Reset, Sent)), Again),
            (&five, false, Failure::Error(&up(Kind::Reset, Sent)), Again),
            (
                &other,
                false,
                Failure::Error(&up(Kind::Reset, Sent)),
                Withheld("not idempotent"),
            ),
            (
                &reset,
                true,
                Failure::Error(&up(Kind::Reset, Answered)),
                Final,
            ),
            (
                &five,
                true,
                Failure::Error(&up(Kind::Protocol, Sent)),
                Final,
            ),
            (&five, true, Failure::Error(&late), Again),
            (&default, true, Failure::Error(&late), Final),
            (&five, true, Failure::Error(&caller), Final),
            (&five, true, Failure::Error(&overload), Final),
            (&default, true, Failure::Status(503, None), Final),
            (&default, true, Failure::Status(200, Some(14)), Final),
            (&five, false, Failure::Status(503, None), Again),
            (&five, false, Failure::Status(404, None), Final),
            (
                &named(RetryOn::GatewayError),
                true,
                Failure::Status(500, None),
                Final,
            ),
            (
                &named(RetryOn::GatewayError),
                true,
                Failure::Status(502, None),
                Again,
            ),
            (
                &named(RetryOn::Retriable4xx),
                true,
                Failure::Status(409, None),
                Again,
            ),
            (&other, false, Failure::Status(429, None), Again),
            (
                &named(RetryOn::Grpc(14)),
                false,
                Failure::Status(200, Some(14)),
                Again,
            ),
            (
                &named(RetryOn::Grpc(14)),
                false,
                Failure::Status(200, Some(1)),
                Final,
            ),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(decide(retry, idempotent, failure), expected, "row {i}");
        }
    }

    #[test]
    fn what_may_be_repeated() {
        for (method, key, expected) in [
            ("GET", false, true),
            ("PUT", false, true),
            ("POST", false, false),
            ("POST", true, true),
            ("PATCH", false, false),
        ] {
            let mut head = Head::request(method, "/");
            if key {
                head.add("Idempotency-Key", b"1");
            }
            assert_eq!(is_idempotent(&head), expected, "{method} {key}");
        }
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        let retry = retry(true, &[]);
        let longest = [2, 3, 4, 5, 60].map(|n| backoff(&retry, n, u32::MAX).as_millis());
        assert_eq!(longest, [25, 75, 175, 250, 250]);
        assert_eq!(backoff(&retry, 5, 0), Duration::ZERO);
    }
}
