//! Exports spans to a collector: OTLP over gRPC, or over HTTP as binary protobuf.
//!
//! A collector that is down or silent costs nothing but its spans: the queue is bounded, and losses are counted.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Uri, header};
use leno_proto::prost::Message;
use leno_proto::tonic::transport::{Channel, Endpoint as Connection};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as SpanMessage, Status,
    span::{Event as EventMessage, SpanKind},
    status::StatusCode,
};
use tokio::time::{sleep, timeout};

use crate::control::channel::{Dialer, error_text};
use crate::control::http_client::{body, send_request};
use crate::drain::Watch;
use crate::observe::Reporter;
use crate::observe::queue::Queue;
use crate::observe::trace::{Event, Span, Value};
use leno_http::stream::connect_to;

/// Time that spans are collected for one message.
const COLLECT: Duration = Duration::from_millis(100);
/// Most spans of one message.
const BATCH: usize = 128;
/// Timeout for connecting to a collector, and for its response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// First pause after a failure; each further one doubles it.
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Largest response of a collector, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// How spans are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// gRPC; collectors listen on 4317.
    Grpc,
    /// HTTP with binary protobuf, at `/v1/traces`; collectors listen on 4318.
    #[value(name = "http/protobuf", alias = "http")]
    Http,
}

/// Address of a collector: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Uri);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let form = || format!("{text:?} is not http://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| form())?;
        match (uri.scheme_str(), uri.authority(), uri.port_u16()) {
            (Some("http"), Some(_), Some(_)) => Ok(Address(uri)),
            (Some("https"), ..) => Err(format!(
                "{text:?}: TLS to a collector is not supported; use one on this machine, or inside the mesh"
            )),
            _ => Err(form()),
        }
    }
}

/// Exporter of spans.
#[derive(Debug)]
pub struct Exporter {
    /// Address of the collector.
    pub address: Address,
    /// OTLP's transport.
    pub protocol: Protocol,
    /// `service.name` of the resource.
    pub service: String,
    /// `service.instance.id` of the resource.
    pub node: String,
    /// Queue of spans.
    pub spans: Arc<Queue<Span>>,
}

impl Exporter {
    /// Exports spans until the proxy ends.
    pub async fn run(self, watch: Watch) {
        let uri = self.address.0.clone();
        let authority = self.authority();
        let dial = Dialer::new(move || {
            let authority = authority.clone();
            async move { connect_to(&authority).await }
        });
        let channel = Connection::from(uri)
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT)
            .connect_with_connector_lazy(dial);
        let mut client = TraceServiceClient::new(channel);
        let mut pause = MIN_PAUSE;
        loop {
            let is_over = tokio::select! {
                () = self.spans.filled() => false,
                () = watch.ended() => true,
            };
            if !is_over {
                sleep(COLLECT).await;
            }
            let batch = self.spans.take(BATCH);
            let count = batch.len();
            if count > 0 {
                match self.export(&mut client, batch).await {
                    Ok(refused) => {
                        self.spans.lost(refused);
                        pause = MIN_PAUSE;
                    }
                    Err(reason) => {
                        self.spans.lost(count);
                        if pause == MIN_PAUSE {
                            let address = &self.address.0;
                            tracing::warn!(%address, reason, "spans are lost");
                        }
                        if !is_over {
                            tokio::select! {
                                () = sleep(pause) => {}
                                () = watch.ended() => {}
                            }
                        }
                        pause = (pause * 2).min(MAX_PAUSE);
                    }
                }
            }
            if is_over {
                return;
            }
        }
    }

    /// The collector's `host:port`.
    fn authority(&self) -> String {
        let authority = self.address.0.authority();
        authority.map(ToString::to_string).unwrap_or_default()
    }

    /// Exports spans; returns the number of those that the collector refused.
    async fn export(
        &self,
        client: &mut TraceServiceClient<Channel>,
        spans: Vec<Span>,
    ) -> Result<usize, String> {
        let request = self.request(spans);
        let sending = async {
            match self.protocol {
                Protocol::Grpc => {
                    let answer = client.export(request).await;
                    answer
                        .map_err(|status| error_text(&status))
                        .map(|a| a.into_inner())
                }
                Protocol::Http => self.post(request).await,
            }
        };
        let answer = timeout(TIMEOUT, sending).await;
        let late = |_| format!("no answer within {TIMEOUT:?}");
        let refused = answer.map_err(late)??.partial_success;
        let refused = refused.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(refused).unwrap_or_default())
    }

    async fn post(
        &self,
        request: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, String> {
        let uri = &self.address.0;
        let authority = self.authority();
        let tcp = connect_to(&authority).await.map_err(|e| e.to_string())?;
        let path = match uri.path() {
            "/" | "" => "/v1/traces",
            path => path,
        };
        let request = Request::post(path)
            .header(header::HOST, &authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Bytes::from(request.encode_to_vec()))
            .map_err(|error| error.to_string())?;
        let answer = send_request(tcp, request, async |answer| {
            let status = answer.status();
            if !status.is_success() {
                return Err(format!("the collector answered {status}"));
            }
            body(answer, MAX_ANSWER).await
        });
        Ok(ExportTraceServiceResponse::decode(answer.await?).unwrap_or_default())
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "leno-proxy".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let text = |name: &str, value: &str| attribute(name, text(value));
        let resource = Resource {
            attributes: vec![
                text("service.name", &self.service),
                text("service.instance.id", &self.node),
            ],
            ..Resource::default()
        };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: spans.into_iter().map(message).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        }
    }
}

fn message(span: Span) -> SpanMessage {
    let kind = match span.reporter {
        Reporter::Source => SpanKind::Client,
        Reporter::Destination => SpanKind::Server,
    };
    let value = |value| match value {
        Value::Text(value) => text(&value),
        Value::Number(value) => any_value::Value::IntValue(value),
        Value::Flag(value) => any_value::Value::BoolValue(value),
    };
    let attributes = span.attributes.into_iter();
    SpanMessage {
        trace_id: span.trace.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        parent_span_id: match span.parent {
            0 => Vec::new(),
            parent => parent.to_be_bytes().to_vec(),
        },
        // Sampled.
        flags: 1,
        name: span.name,
        kind: kind.into(),
        start_time_unix_nano: nanos(span.time.0),
        end_time_unix_nano: nanos(span.time.1),
        attributes: attributes.map(|(n, v)| attribute(n, value(v))).collect(),
        events: span.events.into_iter().map(event).collect(),
        status: span.error.map(|message| Status {
            message,
            code: StatusCode::Error.into(),
        }),
        ..SpanMessage::default()
    }
}

fn event(event: Event) -> EventMessage {
    let attempt = any_value::Value::IntValue(event.attempt.into());
    EventMessage {
        time_unix_nano: nanos(event.at),
        name: event.name.to_owned(),
        attributes: vec![
            attribute("attempt", attempt),
            attribute("reason", text(&event.reason)),
        ],
        ..EventMessage::default()
    }
}

fn text(text: &str) -> any_value::Value {
    any_value::Value::StringValue(text.to_owned())
}

fn attribute(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_in_one_form() {
        assert!("http://127.0.0.1:4317".parse::<Address>().is_ok());
        for (wrong, words) in [
            ("127.0.0.1:4317", "http://HOST:PORT"),
            ("http://collector", "http://HOST:PORT"),
            ("https://a:4317", "TLS"),
        ] {
            let error = wrong.parse::<Address>().expect_err(wrong);
            assert!(error.contains(words), "{error}");
        }
    }
}
