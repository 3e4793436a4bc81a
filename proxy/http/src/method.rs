//! Methods and their case.

/// IANA's HTTP Method Registry.
const REGISTERED: &str = "ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE \
    MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PRI PROPFIND PROPPATCH PUT \
    QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL";

/// True for a registered method in another case. Methods have case (RFC 9110, section 9.1): no rule about GET is
/// about `get`, which an app may take for GET all the same.
pub(super) fn is_registered_in_another_case(method: &[u8]) -> bool {
    let is_variant = |known: &str| method.eq_ignore_ascii_case(known.as_bytes());
    method.iter().any(u8::is_ascii_lowercase) && REGISTERED.split(' ').any(is_variant)
}
