//! xDS configuration, turned into values that can't be wrong: one resource a file, message in, valid type out.
//!
//! Invariant: past this module no value is out of range, and no field that was set has been overlooked. An unsupported
//! field is refused with its path; `leno_proto::fields` is the table of supported ones.

pub mod cluster;
pub mod endpoints;
pub mod listener;
pub mod matching;
pub mod peer;
pub mod rbac;
pub mod route;
pub mod secret;

use std::fmt;
use std::time::Duration;

use leno_proto::pb::envoy::config::core::v3::Metadata;
use leno_proto::pb::google::protobuf::{self, value::Kind};
use leno_proto::prost::{Message, Name};
use leno_proto::{Any, fields};

/// Reason for refusing a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the field; empty for the resource as a whole.
    pub field: String,
    /// Reason, as text.
    pub reason: String,
}

impl Invalid {
    /// Refuses `field` for `reason`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Invalid {
        Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// Prefixes the path with that of the message in a larger one.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Invalid {
        self.field = match self.field.is_empty() {
            true => outer.to_owned(),
            false => format!("{outer}.{}", self.field),
        };
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.is_empty() {
            true => f.write_str(&self.reason),
            false => write!(f, "{}: {}", self.field, self.reason),
        }
    }
}

/// A kind of resource, and the validation of its message.
pub trait Resource: Sized {
    /// The wire message.
    type Message: Message + Name + Default;

    /// The resource's own name.
    fn name(&self) -> &str;

    /// Checks the message and converts it.
    ///
    /// # Errors
    /// [`Invalid`] with the field's path.
    fn validate(message: Self::Message) -> Result<Self, Invalid>;
}

/// Decodes and validates a resource that was sent under `name`.
///
/// # Errors
/// [`Invalid`] when the bytes, a field, or the name isn't acceptable.
pub fn decode<R: Resource>(name: &str, any: &Any) -> Result<R, Invalid> {
    fields::check(&any.type_url, &any.value).map_err(|e| Invalid::new(e.field, e.reason))?;
    let message = leno_proto::unpack(any).map_err(|reason| Invalid::new("", reason))?;
    let resource = R::validate(message)?;
    if resource.name() != name {
        let reason = format!("is {:?}, but was sent under {name:?}", resource.name());
        return Err(Invalid::new("name", reason));
    }
    Ok(resource)
}

/// The Any in an extension's `typed_config`, unpacked.
fn typed<M: Message + Name + Default>(any: &Any) -> Result<M, Invalid> {
    leno_proto::unpack(any).map_err(|reason| Invalid::new("typed_config", reason))
}

fn duration(value: &protobuf::Duration) -> Result<Duration, &'static str> {
    let seconds = u64::try_from(value.seconds).map_err(|_| "must not be negative")?;
    let nanos = u32::try_from(value.nanos).map_err(|_| "must not be negative")?;
    match nanos < 1_000_000_000 && seconds < 315_576_000_000 {
        true => Ok(Duration::new(seconds, nanos)),
        false => Err("is out of range"),
    }
}

fn required<T>(value: Option<T>, field: &str) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is required"))
}

fn named(name: &str) -> Result<(), Invalid> {
    match name.is_empty() {
        true => Err(Invalid::new("name", "is required")),
        false => Ok(()),
    }
}

/// A string that Leno's control plane put into `filter_metadata.leno`, such as the object and rule of a route.
fn provenance(metadata: Option<&Metadata>, key: &str) -> Option<String> {
    let fields = &metadata?.filter_metadata.get("leno")?.fields;
    match fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}
