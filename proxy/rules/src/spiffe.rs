//! SPIFFE IDs, the identities of workloads.

use std::fmt;
use std::sync::Arc;

/// A SPIFFE ID: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Reads a SPIFFE ID of the form that the mesh issues.
    ///
    /// # Errors
    /// The text as it was, when it is of another form.
    pub fn parse(text: &str) -> Result<SpiffeId, String> {
        let malformed = || format!("{text:?} is not spiffe://<domain>/ns/<ns>/sa/<account>");
        let rest = text.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [domain, "ns", namespace, "sa", account]
                if [domain, namespace, account]
                    .iter()
                    .all(|part| is_name(part)) =>
            {
                Ok(SpiffeId(text.into()))
            }
            _ => Err(malformed()),
        }
    }

    /// The ID of a service account.
    ///
    /// # Errors
    /// When a part holds a character that a SPIFFE ID can't.
    pub fn of(domain: &str, namespace: &str, account: &str) -> Result<SpiffeId, String> {
        SpiffeId::parse(&format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        self.part(2)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.part(4)
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        self.part(6)
    }

    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_name(part: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !part.is_empty() && part.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_has_exactly_its_parts() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/order-service");
        let id = id.expect("valid");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "order-service");
        for text in [
            "",
            "cluster.local/ns/default/sa/a",
            "https://cluster.local/ns/default/sa/a",
            "spiffe://cluster.local/ns/default/sa/",
            "spiffe://cluster.local/ns/default/sa/a/b",
            "spiffe://cluster.local/ns/default",
            "spiffe:///ns/default/sa/a",
            "spiffe://a/ns/b/sa/c?d",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }
}
