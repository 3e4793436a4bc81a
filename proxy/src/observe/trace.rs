//! Spans: the sampling decision, and the attributes by OpenTelemetry's semantic conventions for HTTP and under the
//! names of Istio's tags.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use super::labels::UNKNOWN;
use super::queue::Queue;
use super::record::{Reporter, RequestRecord, Share};
use leno_http::head::{FieldName, Version};

/// Most spans that wait to be exported. One takes about 2 KiB, so that a collector that hangs costs about 1 MiB.
pub const WAITING: usize = 512;
/// Most events of one span.
const MAX_EVENTS: usize = 16;

/// Trace context of a request (W3C Trace Context, B3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace ID.
    pub trace: u128,
    /// Span ID; in an incoming request, that of the parent.
    pub span: u64,
    /// Sampling decision; `None` leaves it to the receiver.
    pub sampled: Option<bool>,
}

/// True if the last bit of a hexadecimal digit is set.
fn is_odd(digit: u8) -> bool {
    matches!(digit, b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f')
}

impl TraceContext {
    /// True for a valid `traceparent` (W3C Trace Context, level 1 and later).
    pub fn is_traceparent(value: &[u8]) -> bool {
        // No early exit, so that many bytes are compared at once.
        let is_hex = |part: &[u8]| {
            part.iter().fold(true, |so_far, b| {
                so_far & (b.is_ascii_digit() | (b'a'..=b'f').contains(b))
            })
        };
        let is_zero = |part: &[u8]| part.iter().all(|&b| b == b'0');
        let Some((known, rest)) = value.split_at_checked(55) else {
            return false;
        };
        let (version, trace, span) = (&known[..2], &known[3..35], &known[36..52]);
        [known[2], known[35], known[52]] == *b"---"
            && version != b"ff"
            && (rest.is_empty() || (version != b"00" && rest[0] == b'-'))
            && [version, trace, span, &known[53..]].into_iter().all(is_hex)
            && !is_zero(trace)
            && !is_zero(span)
    }

    /// True for the `traceparent` of a trace that isn't sampled.
    pub fn is_unsampled(value: &[u8]) -> bool {
        TraceContext::is_traceparent(value) && !is_odd(value[54])
    }

    /// Parses the value of `traceparent`.
    pub fn parse(value: &[u8]) -> Option<TraceContext> {
        let known = value
            .get(..55)
            .filter(|_| TraceContext::is_traceparent(value))?;
        let is_sampled = is_odd(known[54]);
        let text = |part| std::str::from_utf8(part).ok();
        TraceContext::of(
            text(&known[3..35])?,
            text(&known[36..52])?,
            Some(is_sampled),
        )
    }

    /// Parses the value of `b3`: `trace-span[-sampled[-parent]]`.
    pub fn parse_b3(value: &[u8]) -> Option<TraceContext> {
        let mut parts = std::str::from_utf8(value).ok()?.split('-');
        let (trace, span) = (parts.next()?, parts.next()?);
        let sampled = match parts.next() {
            Some("1" | "d") => Some(true),
            Some("0") => Some(false),
            _ => None,
        };
        TraceContext::of(trace, span, sampled)
    }

    /// Parses hexadecimal IDs, neither of which is zero.
    pub fn of(trace: &str, span: &str, sampled: Option<bool>) -> Option<TraceContext> {
        let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let sizes = matches!(trace.len(), 16 | 32) && span.len() == 16;
        if !sizes || !is_hex(trace) || !is_hex(span) {
            return None;
        }
        let context = TraceContext {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            sampled,
        };
        (context.trace != 0 && context.span != 0).then_some(context)
    }
}

/// A sampled span, until its request ends.
#[derive(Debug)]
pub struct ActiveSpan {
    /// Context of the span itself.
    pub own: TraceContext,
    /// Span ID of its parent; 0 for a root span.
    pub parent: u64,
    events: Vec<Event>,
}

/// An event of a span.
#[derive(Debug, Clone)]
pub struct Event {
    /// Time of the event.
    pub at: SystemTime,
    /// Name, as one word.
    pub name: &'static str,
    /// Attempt that it is about.
    pub attempt: u32,
    /// Reason, as text.
    pub reason: String,
}

impl ActiveSpan {
    /// A span under `parent`.
    pub fn new(own: TraceContext, parent: u64) -> ActiveSpan {
        ActiveSpan {
            own,
            parent,
            events: Vec::new(),
        }
    }

    /// Adds the event that the request is retried after `attempt`.
    pub fn retried(&mut self, attempt: u32, reason: String) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(Event {
                at: SystemTime::now(),
                name: "retry",
                attempt,
                reason,
            });
        }
    }
}

/// Sampling of traces, and the queue of finished spans.
#[derive(Debug)]
pub struct Tracer {
    /// Share of the requests that arrive without a sampling decision.
    share: Share,
    /// `node_id`.
    node: Box<str>,
    spans: Arc<Queue<Span>>,
}

/// A finished span.
#[derive(Debug)]
pub struct Span {
    /// Trace ID.
    pub trace: u128,
    /// Span ID.
    pub id: u64,
    /// Span ID of the parent; 0 for none.
    pub parent: u64,
    /// The sidecar that recorded it: the client's, or the server's.
    pub reporter: Reporter,
    /// Name of the operation.
    pub name: String,
    /// Start and end.
    pub time: (SystemTime, SystemTime),
    /// Attributes.
    pub attributes: Vec<(&'static str, Value)>,
    /// Events.
    pub events: Vec<Event>,
    /// Error message, if it failed; empty for a 5xx of the upstream.
    pub error: Option<String>,
}

/// The value of an attribute.
#[derive(Debug)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
    /// True or false.
    Flag(bool),
}

impl Tracer {
    /// Samples a share of requests, for `node`.
    pub fn new(share: f64, node: &str, spans: Arc<Queue<Span>>) -> Tracer {
        Tracer {
            share: Share::new(share),
            node: node.into(),
            spans,
        }
    }

    /// Sampling decision for a request: that of `parent`, else by `dice`.
    pub fn samples(&self, parent: Option<TraceContext>, dice: impl FnOnce() -> u32) -> bool {
        let sampled = parent.and_then(|parent| parent.sampled);
        sampled.unwrap_or_else(|| self.share.has(dice()))
    }

    /// Queues the span of a finished request.
    pub(super) fn record(&self, record: &RequestRecord<'_>, trace: &ActiveSpan) {
        self.spans.push_with(|| {
            let ended = SystemTime::now();
            Span {
                trace: trace.own.trace,
                id: trace.own.span,
                parent: trace.parent,
                reporter: record.log_context.reporter,
                name: name(record),
                time: (ended - record.took, ended),
                attributes: self.attributes(record),
                events: trace.events.clone(),
                error: error(record),
            }
        });
    }

    fn attributes(&self, record: &RequestRecord<'_>) -> Vec<(&'static str, Value)> {
        let mut all = Attributes(Vec::with_capacity(32));
        let request = record.request;
        all.text("component", "proxy");
        all.text("node_id", self.node.to_string());
        let path = record.path();
        all.bytes("http.request.method", request.method());
        all.bytes("http.method", request.method());
        all.text("url.path", path.clone());
        let host = record.authority();
        all.text("http.url", format!("http://{host}{path}"));
        let (name, port) = host.rsplit_once(':').unwrap_or((&host, ""));
        all.text("server.address", name.to_owned());
        if let Ok(port) = port.parse() {
            all.0.push(("server.port", Value::Number(port)));
        }
        let (version, protocol) = match request.version() {
            Version::Http10 => ("1.0", "HTTP/1.0"),
            Version::Http11 => ("1.1", "HTTP/1.1"),
            Version::Http2 => ("2", "HTTP/2"),
        };
        all.text("network.protocol.version", version);
        all.text("http.protocol", protocol);
        all.number("http.response.status_code", u64::from(record.status));
        all.number("http.status_code", u64::from(record.status));
        if let Some(status) = record.grpc {
            all.number("rpc.grpc.status_code", u64::from(status));
        }
        if let Some(agent) = request.values("user-agent").next() {
            all.bytes("user_agent.original", agent);
            all.bytes("user_agent", agent);
        }
        all.bytes(
            "guid:x-request-id",
            request.get(FieldName::RequestId).unwrap_or(b""),
        );
        all.number("request_size", record.bodies.0);
        all.number("response_size", record.bodies.1);
        all.text("response_flags", record.flag);
        if let Some(reached) = record.reached {
            all.text("upstream_cluster", reached.cluster.to_string());
            all.text("upstream_cluster.name", reached.cluster.to_string());
            all.text("network.peer.address", reached.address.to_string());
        }
        let peer = record.log_context.peer;
        all.text("peer.address", peer.to_string());
        all.text("client.address", peer.ip().to_string());
        all.istio(record);
        all.error(record);
        all.0
    }
}

struct Attributes(Vec<(&'static str, Value)>);

impl Attributes {
    /// Adds the attributes of the reporting workload, under Istio's names.
    fn istio(&mut self, record: &RequestRecord<'_>) {
        let own = |source, destination| match record.log_context.reporter {
            Reporter::Source => record.labels.get(source).to_owned(),
            Reporter::Destination => record.labels.get(destination).to_owned(),
        };
        let canonical = ("source_canonical_service", "destination_canonical_service");
        self.text("istio.canonical_service", own(canonical.0, canonical.1));
        let revision = (
            "source_canonical_revision",
            "destination_canonical_revision",
        );
        self.text("istio.canonical_revision", own(revision.0, revision.1));
        let namespace = (
            "source_workload_namespace",
            "destination_workload_namespace",
        );
        self.text("istio.namespace", own(namespace.0, namespace.1));
        self.text("istio.mesh_id", "cluster.local");
        self.text("istio.cluster_id", super::labels::CLUSTER);
        self.text("downstream_cluster", "-");
    }

    fn error(&mut self, record: &RequestRecord<'_>) {
        if let Some(error) = record.error {
            self.0.push(("error", Value::Flag(true)));
            self.text("error.type", error.answer().error);
        } else if record.status >= 500 {
            self.0.push(("error", Value::Flag(true)));
            self.text("error.type", record.status.to_string());
        }
    }

    fn text(&mut self, name: &'static str, value: impl Into<Cow<'static, str>>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((name, Value::Text(value)));
        }
    }

    fn bytes(&mut self, name: &'static str, value: &[u8]) {
        self.text(name, String::from_utf8_lossy(value).into_owned());
    }

    fn number(&mut self, name: &'static str, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.push((name, Value::Number(value)));
    }
}

/// Istio's name of the operation: the service's host and port, without the path.
fn name(record: &RequestRecord<'_>) -> String {
    let host = record.labels.get("destination_service");
    let authority = record.authority();
    let port = authority.rsplit_once(':').map_or("80", |(_, port)| port);
    match host == UNKNOWN {
        true => format!("{authority}/*"),
        false => format!("{host}:{port}/*"),
    }
}

fn error(record: &RequestRecord<'_>) -> Option<String> {
    match record.error {
        Some(error) => Some(error.to_string()),
        None if record.status >= 500 => Some(String::new()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(share: f64) -> Tracer {
        let dropped = prometheus::IntCounter::new("dropped", "dropped").expect("a name");
        Tracer::new(share, "node", Arc::new(Queue::new(1, dropped)))
    }

    #[test]
    fn whoever_began_the_trace_decides_and_else_the_dice() {
        let parent = |sampled| {
            Some(TraceContext {
                trace: 1,
                span: 1,
                sampled,
            })
        };
        for (share, parent, dice, sampled) in [
            (0.0, None, 0, false),
            (1.0, None, u32::MAX, true),
            (0.5, None, u32::MAX / 2, true),
            (0.5, None, u32::MAX / 2 + 2, false),
            (0.0, parent(Some(true)), 0, true),
            (1.0, parent(Some(false)), 0, false),
            (1.0, parent(None), 0, true),
        ] {
            let what = format!("{share} {parent:?} {dice}");
            assert_eq!(traces(share).samples(parent, || dice), sampled, "{what}");
        }
    }

    #[test]
    fn a_traceparent_is_one_or_is_not() {
        let valid: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (value, is_one) in [
            (valid, true),
            (
                b"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                true,
            ),
            (
                b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                false,
            ),
            (
                b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                false,
            ),
            (
                b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                false,
            ),
            (
                b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                false,
            ),
            (
                b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                false,
            ),
            (b"rubbish", false),
        ] {
            let context = TraceContext::parse(value);
            assert_eq!(
                context.is_some(),
                is_one,
                "{}",
                String::from_utf8_lossy(value)
            );
        }
    }
}
