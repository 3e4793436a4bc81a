//! The access log: a line for each request or connection, in Istio's JSON, Envoy's text or a format of the operator's.
//!
//! A format is compiled once. A line is formatted here and queued; it holds only the parts of a request that the format
//! names.

use std::io::Write;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use super::queue::Queue;
use super::record::{RequestRecord, Share};
use super::standard::RequestProtocol;
use crate::error::Kind;
use leno_http::head::{FieldName, Head, Version};

/// Most lines that wait to be written.
pub const WAITING: usize = 4096;

/// Istio's text format, which is Envoy's with its own fields.
pub const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// Istio's JSON fields.
const JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
];

/// Format of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// An object with these fields.
    Json(Vec<(&'static str, Operator)>),
    /// These parts, one after the other.
    Text(Vec<Operator>),
}

/// Part of a line: literal text, or one of Envoy's command operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// Literal text of the format.
    Literal(String),
    /// A field of the request, or the second one where the first is missing: `%REQ(X?Y)%`.
    Request(String, Option<String>),
    /// A field of the response.
    Response(String),
    /// A command without an argument, such as `%DURATION%`.
    Known(&'static str),
}

/// Commands without an argument.
const COMMANDS: [&str; 19] = [
    "START_TIME",
    "PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_FLAGS",
    "RESPONSE_CODE_DETAILS",
    "CONNECTION_TERMINATION_DETAILS",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "DURATION",
    "UPSTREAM_HOST",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "REQUESTED_SERVER_NAME",
    "ROUTE_NAME",
    "GRPC_STATUS_NUMBER",
    "TRACE_ID",
];

impl Format {
    /// Istio's JSON.
    pub fn json() -> Format {
        let one = |(name, text): (&'static str, &str)| {
            let operator = operators(text).ok()?.into_iter().next()?;
            Some((name, operator))
        };
        Format::Json(JSON.into_iter().filter_map(one).collect())
    }
}

impl FromStr for Format {
    type Err = String;

    /// A format in Envoy's syntax.
    fn from_str(text: &str) -> Result<Format, String> {
        operators(text).map(Format::Text)
    }
}

fn operators(text: &str) -> Result<Vec<Operator>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        let open = format!("{from:?}: a % without its end; a percent sign is %%");
        let (command, after) = from[1..].split_once('%').ok_or(open)?;
        let literal = |text: &str| Operator::Literal(text.to_owned());
        if !before.is_empty() {
            parts.push(literal(before));
        }
        parts.push(match command {
            "" => literal("%"),
            _ => operator(command)?,
        });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Operator::Literal(rest.to_owned()));
    }
    Ok(parts)
}

fn operator(command: &str) -> Result<Operator, String> {
    let unknown = || {
        format!(
            "%{command}% is not known; there are %REQ(NAME)%, %RESP(NAME)%, %{}%",
            COMMANDS.join("%, %")
        )
    };
    if let Some((kind, name)) = command.split_once('(') {
        let name = name
            .strip_suffix(')')
            .ok_or_else(unknown)?
            .to_ascii_lowercase();
        let (first, other) = match name.split_once('?') {
            Some((first, other)) => (first.to_owned(), Some(other.to_owned())),
            None => (name, None),
        };
        return match kind {
            "REQ" => Ok(Operator::Request(first, other)),
            "RESP" => Ok(Operator::Response(first)),
            _ => Err(unknown()),
        };
    }
    let known = COMMANDS.into_iter().find(|known| *known == command);
    known.map(Operator::Known).ok_or_else(unknown)
}

/// The access log: the format of its lines, the requests that it covers, and the queue to its writer.
#[derive(Debug)]
pub struct Log {
    format: Format,
    /// Share of the successful requests.
    share: Share,
    errors_only: bool,
    lines: Arc<Queue<Vec<u8>>>,
}

impl Log {
    /// A log of a share of requests, or of the failed ones only.
    pub fn new(format: Format, share: f64, errors_only: bool, lines: Arc<Queue<Vec<u8>>>) -> Log {
        Log {
            format,
            share: Share::new(share),
            errors_only,
            lines,
        }
    }

    /// Sampling decision for a success.
    pub(super) fn samples(&self, dice: u32) -> bool {
        !self.errors_only && self.share.has(dice)
    }

    /// Queues a line for a finished request or connection: always for a failure, otherwise if it was sampled.
    pub(super) fn write(&self, record: &RequestRecord<'_>) {
        let has_failed = record.error.is_some() || record.status >= 500 || record.flag != "-";
        if has_failed || record.is_logged {
            self.lines.push(line(&self.format, record));
        }
    }
}

fn line(format: &Format, record: &RequestRecord<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    match format {
        Format::Text(parts) => {
            for part in parts {
                match part {
                    Operator::Literal(text) => out.extend_from_slice(text.as_bytes()),
                    part => match value(part, record) {
                        Some(Shown::Number(number)) => drop(write!(out, "{number}")),
                        Some(Shown::Text(text)) => escape(&text, &mut out),
                        None => out.push(b'-'),
                    },
                }
            }
        }
        Format::Json(fields) => {
            let fields = fields.iter().map(|(name, part)| {
                let value = match value(part, record) {
                    Some(Shown::Number(number)) => number.into(),
                    Some(Shown::Text(text)) => text.into(),
                    None => serde_json::Value::Null,
                };
                ((*name).to_owned(), value)
            });
            let object: serde_json::Map<_, _> = fields.collect();
            // Serialising this object can't fail.
            let _ = serde_json::to_writer(&mut out, &object);
        }
    }
    out.push(b'\n');
    out
}

/// Escapes a value that the client sends: it must not end the line, nor the quotes around it.
fn escape(text: &str, out: &mut Vec<u8>) {
    for character in text.chars() {
        match character {
            '"' | '\\' => drop(write!(out, "\\{character}")),
            c if c.is_control() => drop(write!(out, "{}", c.escape_default())),
            c => drop(write!(out, "{c}")),
        }
    }
}

enum Shown {
    Text(String),
    Number(u64),
}

fn value(part: &Operator, record: &RequestRecord<'_>) -> Option<Shown> {
    let text = |text: String| (!text.is_empty()).then_some(Shown::Text(text));
    let lossy = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    match part {
        Operator::Literal(literal) => text(literal.clone()),
        Operator::Request(name, other) => {
            let found = field(record.request, name);
            let found = found.or(other
                .as_ref()
                .and_then(|other| field(record.request, other)));
            text(lossy(found?))
        }
        Operator::Response(name) => text(lossy(record.response.values(name).next()?)),
        Operator::Known(command) => known(command, record),
    }
}

fn field<'a>(request: &'a Head, name: &'a str) -> Option<&'a [u8]> {
    match name {
        ":method" => Some(request.method()),
        ":path" => Some(request.target()),
        ":authority" => request.get(FieldName::Host),
        name => request.values(name).next(),
    }
}

fn known(command: &str, record: &RequestRecord<'_>) -> Option<Shown> {
    let text = |text: &str| Some(Shown::Text(text.to_owned()));
    let address = |address: SocketAddr| Some(Shown::Text(address.to_string()));
    let is_tcp = record.protocol == RequestProtocol::Tcp;
    match command {
        "START_TIME" => text(&super::time::rfc3339_millis(
            SystemTime::now() - record.took,
        )),
        "PROTOCOL" if is_tcp || record.request.method().is_empty() => None,
        "PROTOCOL" => text(match record.request.version() {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        }),
        "RESPONSE_CODE" => Some(Shown::Number(u64::from(record.status))),
        "RESPONSE_FLAGS" => text(record.flag),
        "RESPONSE_CODE_DETAILS" if is_tcp => None,
        "RESPONSE_CODE_DETAILS" => match record.error {
            Some(error) => text(&error.to_string()),
            None => text("via_upstream"),
        },
        "CONNECTION_TERMINATION_DETAILS" => text(&record.error.filter(|_| is_tcp)?.to_string()),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => {
            let of_transport = |kind| matches!(kind, Kind::Tls | Kind::Peer);
            let error = record.error.filter(|error| of_transport(error.kind))?;
            text(&error.detail)
        }
        "BYTES_RECEIVED" => Some(Shown::Number(record.bodies.0)),
        "BYTES_SENT" => Some(Shown::Number(record.bodies.1)),
        "DURATION" => {
            let took = u64::try_from(record.took.as_millis());
            Some(Shown::Number(took.unwrap_or(u64::MAX)))
        }
        "UPSTREAM_HOST" => address(record.reached?.address),
        "UPSTREAM_CLUSTER" => text(&record.reached?.cluster),
        "UPSTREAM_LOCAL_ADDRESS" => address(record.reached?.local?),
        "ROUTE_NAME" => text(record.reached?.rule.as_deref()?),
        "DOWNSTREAM_REMOTE_ADDRESS" => address(record.log_context.peer),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(record.log_context.local?),
        "REQUESTED_SERVER_NAME" => text(record.log_context.server_name?),
        "GRPC_STATUS_NUMBER" => Some(Shown::Number(u64::from(record.grpc?))),
        "TRACE_ID" => {
            let value = record.request.get(FieldName::Traceparent)?;
            text(std::str::from_utf8(value.get(3..35)?).ok()?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Error;
    use crate::observe::labels::Labels;
    use crate::observe::{LogContext, Reporter, UpstreamInfo};

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn lines(format: &str, fields: &[(&str, &str)], error: Option<&Error>) -> String {
        let mut request = Head::request("GET", "/users/1?token=x");
        for (name, value) in fields {
            request.add(name, value.as_bytes());
        }
        let reached = UpstreamInfo {
            cluster: "outbound|80||a".into(),
            address: address("127.0.0.9:3001"),
            local: Some(address("127.0.0.1:9")),
            rule: Some("VirtualService shop/a rule 1".into()),
        };
        let record = RequestRecord {
            log_context: LogContext {
                reporter: Reporter::Source,
                peer: address("127.0.0.1:5"),
                local: Some(address("10.0.0.1:80")),
                server_name: Some("a.shop.svc"),
            },
            request: &request,
            response: &Head::response(200),
            labels: &Labels::other(),
            protocol: RequestProtocol::Http,
            status: error.map_or(200, |error| error.answer().status),
            flag: error.map_or("-", Error::flag),
            grpc: None,
            took: Duration::from_millis(12),
            bodies: (3, 4),
            reached: Some(&reached),
            error,
            is_logged: true,
        };
        let format = match format {
            "json" => Format::json(),
            format => format.parse().expect("a format"),
        };
        String::from_utf8(line(&format, &record)).expect("UTF-8")
    }

    #[test]
    fn a_format_says_what_a_line_holds() {
        let format = "%REQ(:METHOD)% %REQ(X-NONE?:PATH)% %RESPONSE_CODE% %DURATION% %UPSTREAM_CLUSTER% 100%% %REQ(NONE)%";
        assert_eq!(
            lines(format, &[], None),
            "GET /users/1?token=x 200 12 outbound|80||a 100% -\n"
        );
        let format = "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% \
                      %REQUESTED_SERVER_NAME% \"%ROUTE_NAME%\"";
        assert_eq!(
            lines(format, &[], None),
            "127.0.0.1:5 10.0.0.1:80 127.0.0.1:9 127.0.0.9:3001 a.shop.svc \"VirtualService shop/a rule 1\"\n"
        );
        assert!(TEXT.parse::<Format>().is_ok());
        for (wrong, words) in [("%NONE%", "%NONE%"), ("%REQ(A%", "REQ(A"), ("a % b", "%%")] {
            let error = wrong.parse::<Format>().expect_err(wrong);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_a_caller_sends_stays_inside_its_quotes_and_secrets_stay_out() {
        let fields = [
            ("user-agent", "a\" \u{1b}[31m"),
            ("authorization", "Bearer s3cret"),
            ("cookie", "s3cret"),
        ];
        let text = lines(TEXT, &fields, None);
        assert!(text.contains("\"a\\\" \\u{1b}[31m\""), "{text}");
        assert!(!text.contains("s3cret") && text.lines().count() == 1);
        let json = lines("json", &fields, None);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["user_agent"], "a\" \u{1b}[31m");
        assert_eq!(json["response_code"], 200);
        assert_eq!(json["x_forwarded_for"], serde_json::Value::Null);
        assert!(!json.to_string().contains("s3cret"));
        assert_eq!(lines("%REQ(Cookie)%", &fields, None), "s3cret\n");
    }

    #[test]
    fn an_error_of_ours_says_why() {
        let error = Error::own(Kind::NoEndpoint, "nobody").behind(&"rule".into());
        let json = lines("json", &[], Some(&error));
        assert!(
            json.contains(r#""response_code_details":"nobody (rule)""#),
            "{json}"
        );
        assert!(json.contains(r#""response_flags":"UH""#), "{json}");
    }
}
