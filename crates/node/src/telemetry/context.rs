//! The W3C trace context that comes with a call.

use http::HeaderMap;
use tropism_crdt::TraceContext;

/// What a call says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// Nothing.
    Absent,
    /// Something that is no `traceparent`: as good as nothing.
    Malformed,
    /// It belongs to a trace that is not recorded.
    Unsampled,
    /// It belongs to a trace that is.
    Sampled(TraceContext),
}

impl Incoming {
    /// Reads `traceparent`. Baggage and `tracestate` are not looked at.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all("traceparent").iter();
        let Some(value) = sent.next() else { return Self::Absent };
        match (value.to_str().ok().and_then(parse), sent.next()) {
            (Some(context), None) if context.flags & 1 == 1 => Self::Sampled(context),
            (Some(_), None) => Self::Unsampled,
            _ => Self::Malformed,
        }
    }
}

fn parse(text: &str) -> Option<TraceContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let [version] = hex::<1>(version)?;
    let (trace_id, span_id, [flags]) = (hex::<16>(trace)?, hex::<8>(span)?, hex::<1>(flags)?);
    let known = version != 0xff && (version != 0 || parts.next().is_none());
    (known && trace_id != [0; 16] && span_id != [0; 8]).then_some(TraceContext { trace_id, span_id, flags })
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None, // upper case is not allowed there
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use http::HeaderMap;

    use super::Incoming;

    #[test]
    fn a_trace_context_is_taken_and_what_is_malformed_is_said_to_be() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            Incoming::of(&headers)
        };
        const IDS: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        let Incoming::Sampled(taken) = of(&format!("00-{IDS}-01")) else { panic!("it is sampled") };
        assert_eq!((taken.trace_id[0], taken.span_id[7], taken.flags), (0x0a, 0x31, 1));
        assert!(matches!(of(&format!("cc-{IDS}-03-what the future brings")), Incoming::Sampled(_)));
        assert_eq!(of(&format!("00-{IDS}-00")), Incoming::Unsampled);
        for text in [
            "",
            "00",
            &format!("00-{IDS}"),
            &format!("ff-{IDS}-01"),
            &format!("00-{IDS}-01-more"),
            &format!("00-{}-01", IDS.to_uppercase()),
            &format!("00-{}-01", IDS.replace("b7ad6b7169203331", "0000000000000000")),
            &format!("00-{}-01", &IDS[1..]),
            &"0-".repeat(5000),
        ] {
            assert_eq!(of(text), Incoming::Malformed, "{text}");
        }
        assert_eq!(Incoming::of(&HeaderMap::new()), Incoming::Absent);
        let mut two = HeaderMap::new();
        two.append("traceparent", format!("00-{IDS}-01").parse().unwrap());
        two.append("traceparent", format!("00-{IDS}-01").parse().unwrap());
        assert_eq!(Incoming::of(&two), Incoming::Malformed);
    }
}
