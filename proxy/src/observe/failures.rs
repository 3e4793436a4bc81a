//! Requests that Leno answered itself, or cut short, for the control plane's live map.

use std::time::SystemTime;

use super::record::{Reporter, RequestRecord};
use leno_http::head::FieldName;

/// Most failures that wait to be reported: those of a second.
pub const WAITING: usize = 256;
/// Longest text field, in bytes.
const MAX_TEXT: usize = 1024;

/// A request that failed, with its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureRecord {
    /// Time of the failure.
    pub at: SystemTime,
    /// The sidecar that reports it.
    pub reporter: Reporter,
    /// Namespace and service of the client.
    pub source: (String, String),
    /// Namespace and service of the destination.
    pub destination: (String, String),
    /// The request's method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// HTTP status of the response.
    pub status: u16,
    /// Envoy's response flag.
    pub flag: &'static str,
    /// Explanation, with the configuration object behind the failure.
    pub explanation: String,
    /// The request's id.
    pub request_id: String,
}

impl FailureRecord {
    /// The failure of a finished request or connection; `None` without an error of ours, or if the client left.
    pub(super) fn of(record: &RequestRecord<'_>) -> Option<FailureRecord> {
        let error = record.error.filter(|error| !error.is_client_disconnect())?;
        let label = |name| record.labels.get(name).to_owned();
        let id = record.request.get(FieldName::RequestId).unwrap_or_default();
        Some(FailureRecord {
            at: SystemTime::now(),
            reporter: record.log_context.reporter,
            source: (
                label("source_workload_namespace"),
                label("source_canonical_service"),
            ),
            destination: (
                label("destination_service_namespace"),
                label("destination_service_name"),
            ),
            method: cut(String::from_utf8_lossy(record.request.method()).into_owned()),
            path: cut(record.path()),
            status: record.status,
            flag: record.flag,
            explanation: cut(error.to_string()),
            request_id: cut(String::from_utf8_lossy(id).into_owned()),
        })
    }

    /// True if both have the same peers, status, flag and explanation.
    pub fn is_like(&self, other: &FailureRecord) -> bool {
        (self.status, self.flag) == (other.status, other.flag)
            && self.explanation == other.explanation
            && self.source == other.source
            && self.destination == other.destination
    }
}

fn cut(mut text: String) -> String {
    let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}
