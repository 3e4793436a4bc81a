//! Renewal times, as pure functions.

use std::time::Duration;

/// Delay before renewing a certificate with a remaining lifetime of `lives`: half of it, ± 10 % by `dice` (0 to 1), so
/// that a mesh that started at once doesn't renew at once.
///
/// The lifetime counts from now and not from the certificate's start: the CA back-dates that for clocks that are late.
pub fn renew_after(lives: Duration, dice: f64) -> Duration {
    lives.mul_f64(0.45 + 0.1 * dice.clamp(0.0, 1.0))
}

/// Delay after a failed renewal: `backoff`, but at most an eighth of the certificate's remaining lifetime `left`, or
/// `least` if that is longer. Otherwise only a few attempts would be left before it expires, or an outage of the
/// control plane would outlast its end by a whole backoff. Once it has expired (`left` is zero), `backoff`.
pub fn retry_after(backoff: Duration, left: Duration, least: Duration) -> Duration {
    match left.is_zero() {
        true => backoff,
        false => backoff.min((left / 8).max(least)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_closer_as_the_end_does() {
        let [s, ms] = [Duration::from_secs, Duration::from_millis];
        for (backoff, left, expected) in [
            (s(30), s(12 * 3600), s(30)),
            (s(30), s(80), s(10)),
            (s(8), s(6), ms(750)),
            (s(8), s(1), ms(500)),
            (ms(500), s(1), ms(500)),
            (s(30), s(0), s(30)),
        ] {
            assert_eq!(retry_after(backoff, left, ms(500)), expected);
        }
    }

    #[test]
    fn renewal_comes_about_half_way() {
        let day = Duration::from_secs(24 * 3600);
        for (dice, share) in [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55), (7.0, 0.55)] {
            assert_eq!(renew_after(day, dice), day.mul_f64(share));
        }
        assert_eq!(renew_after(Duration::ZERO, 0.5), Duration::ZERO);
    }
}
