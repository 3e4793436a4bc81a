//! Labels in certificates: those of a join token stand in each certificate that it leads to, so that every replica of the
//! control plane knows them, also after a restart.
//!
//! The extension is Leno's own, and not critical: other programs ignore it. Its value is a JSON object.

use std::collections::BTreeMap;

use rcgen::CustomExtension;
use x509_parser::prelude::X509Certificate;

/// OID of the extension, below the arc `2.25`, which needs no registration (ITU-T X.667): `LenoLabl` in ASCII.
const OID: [u64; 3] = [2, 25, 0x4c65_6e6f_4c61_626c];
/// Most bytes of a workload's labels, so that certificates and tokens stay small.
const MAX: usize = 4096;

/// Checks the labels of a workload.
///
/// # Errors
/// When one isn't a label (Kubernetes' syntax), with its name, or all together are too long.
pub fn check(labels: &BTreeMap<String, String>) -> Result<(), String> {
    let is_value = |value: &str| value.is_empty() || (value.len() <= 63 && is_name(value));
    let is_label = |(name, value): &(&String, &String)| match name.rsplit_once('/') {
        Some((prefix, name)) => {
            prefix.len() <= 253
                && is_name(prefix)
                && !name.is_empty()
                && is_value(name)
                && is_value(value)
        }
        None => !name.is_empty() && is_value(name) && is_value(value),
    };
    let size: usize = labels
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if size > MAX {
        return Err(format!("labels of {size} bytes; at most {MAX} are taken"));
    }
    match labels.iter().find(|label| !is_label(label)) {
        Some((name, value)) => Err(format!("{name}={value} is not a label")),
        None => Ok(()),
    }
}

/// The extension that holds `labels`; `None` without any.
pub(super) fn extension(
    labels: &BTreeMap<String, String>,
) -> Result<Option<CustomExtension>, String> {
    if labels.is_empty() {
        return Ok(None);
    }
    let json = serde_json::to_vec(labels).map_err(|error| error.to_string())?;
    Ok(Some(CustomExtension::from_oid_content(&OID, json)))
}

/// The labels in a certificate.
///
/// # Errors
/// When they can't be read.
pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<BTreeMap<String, String>, String> {
    let extensions = certificate.extensions().iter();
    let mut ours = extensions.filter(|own| own.oid.iter().is_some_and(|oid| oid.eq(OID)));
    let labels = ours.next().map(|own| serde_json::from_slice(own.value));
    let labels = labels
        .transpose()
        .map_err(|error| format!("its labels: {error}"))?;
    Ok(labels.unwrap_or_default())
}

/// True for a text that can be a part of a SPIFFE ID.
pub fn is_name(part: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !part.is_empty() && part.bytes().all(allowed)
}
