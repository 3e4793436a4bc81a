//! When to renew; pure.

use std::time::Duration;

/// How long to wait before renewing a certificate that lives for `lives` from now: half of it, ± 10 % by `dice` (0 to
/// 1), so that a mesh that started at once doesn't renew at once.
///
/// The life is counted from now and not from the certificate's start: the CA back-dates that for clocks that are late.
pub fn renew_after(lives: Duration, dice: f64) -> Duration {
    lives.mul_f64(0.45 + 0.1 * dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_about_half_way() {
        let day = Duration::from_secs(24 * 3600);
        for (dice, share) in [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55), (7.0, 0.55)] {
            assert_eq!(renew_after(day, dice), day.mul_f64(share));
        }
        assert_eq!(renew_after(Duration::ZERO, 0.5), Duration::ZERO);
    }
}
