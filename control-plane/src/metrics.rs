//! Counters of the control plane, under Istio's names where it has one.

use prometheus::{Encoder, IntCounter, IntGauge, Registry, TextEncoder};

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Changes that were pushed to a proxy.
    pub pushes: IntCounter,
    /// Resources that proxies refused.
    pub rejects: IntCounter,
    /// Proxies that are connected.
    pub connected: IntGauge,
    /// Certificates that were issued.
    pub issued: IntCounter,
    /// Requests for one that were refused.
    pub denied: IntCounter,
}

impl Metrics {
    /// Fresh metrics.
    ///
    /// # Errors
    /// When a name is invalid or taken, which is a mistake in this file.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let connected = IntGauge::new("pilot_xds", "Proxies that are connected.")?;
        registry.register(Box::new(connected.clone()))?;
        Ok(Metrics {
            pushes: counter("pilot_xds_pushes", "Changes that were pushed to a proxy.")?,
            rejects: counter("pilot_total_xds_rejects", "Responses that a proxy refused.")?,
            issued: counter(
                "citadel_server_success_cert_issuance_count",
                "Certificates issued.",
            )?,
            denied: counter(
                "citadel_server_authentication_failure_count",
                "Requests refused.",
            )?,
            connected,
            registry,
        })
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}
