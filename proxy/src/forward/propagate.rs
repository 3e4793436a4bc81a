//! Trace context of a request: read from `traceparent` (W3C Trace Context), else `b3`, else `x-b3-…` (B3 propagation), and
//! passed on in the form that it came in, always also as `traceparent`.

use super::headers::hexadecimal;
use crate::observe::RequestStats;
use crate::observe::trace::{ActiveSpan, TraceContext};
use crate::worker::Worker;
use leno_http::head::{FieldName, Head};

/// Ensures that the request carries a trace context, as one carried by a sidecar of ours already does; when it is
/// sampled, the context of a span of ours.
pub fn trace(worker: &Worker, request: &mut Head, is_carried: bool, stats: &mut RequestStats) {
    let Some(traces) = &worker.shared.observer.traces else {
        if is_carried {
            return;
        }
        // No span of ours: a parent that isn't recorded must not get into the client's trace.
        if !request
            .get(FieldName::Traceparent)
            .is_some_and(TraceContext::is_traceparent)
        {
            let context = read(request).unwrap_or_else(|| begin(worker, false));
            write_traceparent(request, context);
        }
        return;
    };
    // The root of the trace decided not to sample: the context is forwarded as it is.
    if (request.get(FieldName::Traceparent)).is_some_and(TraceContext::is_unsampled) {
        return;
    }
    let parent = read(request);
    if !traces.samples(parent, || worker.random_u32()) {
        return match parent {
            Some(parent) => write_traceparent(request, parent),
            None => write_traceparent(request, begin(worker, false)),
        };
    }
    let own = match parent {
        Some(parent) => TraceContext {
            span: worker.random(|rng| rng.u64(..)) | 1,
            sampled: Some(true),
            ..parent
        },
        None => begin(worker, true),
    };
    write_traceparent(request, own);
    write_b3(request, own, parent);
    let parent = parent.map_or(0, |parent| parent.span);
    stats.trace = Some(Box::new(ActiveSpan::new(own, parent)));
}

fn begin(worker: &Worker, is_sampled: bool) -> TraceContext {
    worker.random(|rng| TraceContext {
        trace: rng.u128(..) | 1,
        span: rng.u64(..) | 1,
        sampled: Some(is_sampled),
    })
}

fn read(request: &Head) -> Option<TraceContext> {
    let context = request
        .get(FieldName::Traceparent)
        .and_then(TraceContext::parse);
    context
        .or_else(|| TraceContext::parse_b3(request.get(FieldName::B3)?))
        .or_else(|| {
            request.get(FieldName::B3Multiple)?;
            let text = |name| std::str::from_utf8(request.values(name).next()?).ok();
            let sampled = match (text("x-b3-flags"), text("x-b3-sampled")) {
                (Some("1"), _) | (_, Some("1" | "true")) => Some(true),
                (_, Some("0" | "false")) => Some(false),
                _ => None,
            };
            TraceContext::of(text("x-b3-traceid")?, text("x-b3-spanid")?, sampled)
        })
}

#[allow(clippy::cast_possible_truncation)] // word by word
fn write_traceparent(request: &mut Head, context: TraceContext) {
    let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let word = |number: u128, at: u32| hexadecimal((number >> (32 * at)) as u32);
    let (trace, span) = (context.trace, context.span.into());
    value[3..11].copy_from_slice(&word(trace, 3));
    value[11..19].copy_from_slice(&word(trace, 2));
    value[19..27].copy_from_slice(&word(trace, 1));
    value[27..35].copy_from_slice(&word(trace, 0));
    value[36..44].copy_from_slice(&word(span, 1));
    value[44..52].copy_from_slice(&word(span, 0));
    value[54] = if context.sampled == Some(true) {
        b'1'
    } else {
        b'0'
    };
    request.set("traceparent", FieldName::Traceparent, &value);
}

/// Updates the B3 fields that are present.
fn write_b3(request: &mut Head, own: TraceContext, parent: Option<TraceContext>) {
    let parent = parent.map(|parent| format!("{:016x}", parent.span));
    let (trace, span) = (format!("{:032x}", own.trace), format!("{:016x}", own.span));
    if request.get(FieldName::B3).is_some() {
        let parent = parent.as_ref().map(|parent| format!("-{parent}"));
        let value = format!("{trace}-{span}-1{}", parent.unwrap_or_default());
        request.set("b3", FieldName::B3, value.as_bytes());
    }
    if request.get(FieldName::B3Multiple).is_some() {
        request.remove(FieldName::B3Multiple);
        let fields = [
            ("x-b3-traceid", Some(&*trace)),
            ("x-b3-spanid", Some(&*span)),
            ("x-b3-parentspanid", parent.as_deref()),
            ("x-b3-sampled", Some("1")),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                request.add(name, value.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    fn context(fields: &[(&str, &str)]) -> Option<(u128, u64, Option<bool>)> {
        let mut head = Head::request("GET", "/");
        for (name, value) in fields {
            head.add(name, value.as_bytes());
        }
        read(&head).map(|context| (context.trace, context.span, context.sampled))
    }

    #[test]
    fn a_context_is_read_in_any_of_its_forms() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let found = |sampled| Some((TRACE, SPAN, sampled));
        let w3c = |flags: &str| format!("00-{trace}-{span}-{flags}");
        let b3 = |rest: &str| format!("{trace}-{span}{rest}");
        assert_eq!(context(&[("traceparent", &w3c("01"))]), found(Some(true)));
        assert_eq!(context(&[("traceparent", &w3c("00"))]), found(Some(false)));
        assert_eq!(context(&[("b3", &b3("-1"))]), found(Some(true)));
        assert_eq!(
            context(&[("B3", &b3("-d-00f067aa0ba902b8"))]),
            found(Some(true))
        );
        assert_eq!(context(&[("b3", &b3("-0"))]), found(Some(false)));
        assert_eq!(context(&[("b3", &b3(""))]), found(None));
        let multiple = [("X-B3-TraceId", trace), ("X-B3-SpanId", span)];
        assert_eq!(context(&multiple), found(None));
        let sampled = [multiple[0], multiple[1], ("x-b3-sampled", "1")];
        assert_eq!(context(&sampled), found(Some(true)));
        let short = [("x-b3-traceid", "a3ce929d0e0e4736"), ("x-b3-spanid", span)];
        assert_eq!(
            context(&short),
            Some((TRACE & u128::from(u64::MAX), SPAN, None))
        );
        for rubbish in [
            "0",
            "x-y-1",
            "",
            "00000000000000000000000000000000-0000000000000000-1",
        ] {
            assert_eq!(context(&[("b3", rubbish)]), None, "{rubbish}");
        }
    }

    #[test]
    fn b3_stays_b3_and_names_its_parent() {
        let own = TraceContext {
            trace: TRACE,
            span: 1,
            sampled: Some(true),
        };
        let parent = TraceContext { span: SPAN, ..own };
        let mut head = Head::request("GET", "/");
        head.add("X-B3-TraceId", b"1");
        head.add("b3", b"1-1");
        write_b3(&mut head, own, Some(parent));
        let value = |name| {
            String::from_utf8_lossy(head.values(name).next().unwrap_or(b"none")).into_owned()
        };
        assert_eq!(value("x-b3-parentspanid"), "00f067aa0ba902b7");
        assert_eq!(value("x-b3-traceid"), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(
            value("b3"),
            "4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-1-00f067aa0ba902b7"
        );
    }
}
