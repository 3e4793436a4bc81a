//! Health of the sidecar: its clock, its configuration, its certificate, as metrics and for the control plane.
//!
//! State: one set of values, for the life of the process.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, Metric, MetricFamily, MetricType};

/// Seconds of skew below which clocks count as in step: a certificate is back-dated by two minutes.
const IN_STEP: f64 = 5.0;
/// Skew that isn't known yet.
const UNKNOWN: i64 = i64::MIN;

/// Health of the sidecar.
#[derive(Debug)]
pub struct Health {
    /// Our clock less the control plane's, in milliseconds.
    skew: AtomicI64,
    /// Resources that are refused now.
    refused: AtomicU64,
    /// Expiry of the certificate, in milliseconds since 1970; 0 for none.
    expires: AtomicU64,
    /// Time at which the configuration was last known to be current; `None` while it is.
    confirmed: Mutex<Option<SystemTime>>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            skew: AtomicI64::new(UNKNOWN),
            refused: AtomicU64::new(0),
            expires: AtomicU64::new(0),
            confirmed: Mutex::new(Some(SystemTime::now())),
        }
    }
}

impl Health {
    /// Records the clock skew: the control plane reported the time `theirs` between `asked` and now.
    pub fn clock(&self, asked: SystemTime, theirs: SystemTime) {
        let ours = millis(asked) / 2 + millis(SystemTime::now()) / 2;
        self.skew.store(ours - millis(theirs), Ordering::Relaxed);
    }

    /// Seconds by which our clock is ahead of the control plane's, if known.
    #[allow(clippy::cast_precision_loss)] // seconds
    pub fn skew(&self) -> Option<f64> {
        let skew = self.skew.load(Ordering::Relaxed);
        (skew != UNKNOWN).then_some(skew as f64 / 1000.0)
    }

    /// The clock skew as text.
    pub fn clock_words(&self) -> String {
        match self.skew() {
            None => "not compared yet".to_owned(),
            Some(skew) if skew.abs() < IN_STEP => "in step".to_owned(),
            Some(skew) if skew > 0.0 => format!("{skew:.0} s ahead of the control plane's"),
            Some(skew) => format!("{:.0} s behind the control plane's", -skew),
        }
    }

    /// Sets the number of resources that are refused now.
    pub fn set_refused(&self, count: usize) {
        self.refused.store(count as u64, Ordering::Relaxed);
    }

    /// Number of resources that are refused now.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Records that the configuration is current (`None`), or was until the given time.
    pub fn set_confirmed(&self, until: Option<SystemTime>) {
        let mut confirmed = self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *confirmed = until;
    }

    /// Time since the configuration was last known to be current; zero while it is.
    pub fn config_age(&self) -> Duration {
        let confirmed = self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let age = confirmed.map(|until| SystemTime::now().duration_since(until));
        age.and_then(Result::ok).unwrap_or_default()
    }

    /// Records the expiry of the certificate.
    pub fn set_certificate_expiry(&self, expires: SystemTime) {
        let expires = u64::try_from(millis(expires)).unwrap_or_default();
        self.expires.store(expires, Ordering::Relaxed);
    }

    /// Expiry of the certificate, in milliseconds since 1970; 0 for none.
    pub fn certificate_expires(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    #[allow(clippy::cast_precision_loss)] // seconds
    fn values(&self) -> Vec<(&'static str, &'static str, f64)> {
        let mut values = vec![
            (
                "leno_config_age_seconds",
                "For how long the configuration hasn't been confirmed by the control plane.",
                self.config_age().as_secs_f64(),
            ),
            (
                "leno_xds_resources_refused",
                "xDS resources whose newest version is refused now.",
                self.refused() as f64,
            ),
        ];
        let expires = self.certificate_expires();
        if expires > 0 {
            let ends = UNIX_EPOCH + Duration::from_millis(expires);
            let left = match ends.duration_since(SystemTime::now()) {
                Ok(left) => left.as_secs_f64(),
                Err(over) => -over.duration().as_secs_f64(),
            };
            let seconds = (ends.duration_since(UNIX_EPOCH).unwrap_or_default()).as_secs_f64();
            values.push((
                "leno_certificate_expiry_timestamp_seconds",
                "When the workload's certificate ends.",
                seconds,
            ));
            values.push((
                "leno_certificate_days_left",
                "Days until the workload's certificate ends.",
                left / 86_400.0,
            ));
        }
        if let Some(skew) = self.skew() {
            values.push((
                "leno_clock_skew_seconds",
                "By how much this clock is ahead of the control plane's.",
                skew,
            ));
        }
        values
    }
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Health as gauges, read at each scrape.
#[derive(Debug)]
pub(super) struct Gauges(pub(super) std::sync::Arc<Health>);

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let family = |(name, help, value): (&str, &str, f64)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::default();
            metric.set_gauge(gauge);
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(MetricType::GAUGE);
            family.set_metric(vec![metric]);
            family
        };
        self.0.values().into_iter().map(family).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_with_its_direction() {
        let health = Health::default();
        assert_eq!(health.clock_words(), "not compared yet");
        for (offset, words) in [
            (0, "in step"),
            (-95, "95 s ahead of the control plane's"),
            (95, "95 s behind the control plane's"),
        ] {
            let now = SystemTime::now();
            let offset_by = Duration::from_secs(u64::from(i32::unsigned_abs(offset)));
            let theirs = if offset < 0 {
                now - offset_by
            } else {
                now + offset_by
            };
            health.clock(now, theirs);
            assert_eq!(health.clock_words(), words);
        }
    }

    #[test]
    fn a_configuration_is_as_old_as_its_last_confirmation() {
        let health = Health::default();
        health.set_confirmed(Some(SystemTime::now() - Duration::from_secs(60)));
        assert!(health.config_age() >= Duration::from_secs(60));
        health.set_confirmed(None);
        assert_eq!(health.config_age(), Duration::ZERO);
    }
}
