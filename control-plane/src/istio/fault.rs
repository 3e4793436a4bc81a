//! Mistakes that reading a type finds.

use std::fmt::Display;

use serde::de;

use super::yaml::Id;

/// A mistake, and the node that it is in.
#[derive(Debug)]
pub(super) struct Fault {
    /// None until it is known.
    pub(super) node: Option<Id>,
    pub(super) mistake: Mistake,
}

/// The kinds of mistakes.
#[derive(Debug)]
pub(super) enum Mistake {
    /// The type `owner` has no such field.
    UnknownField {
        owner: &'static str,
        field: String,
        expected: &'static [&'static str],
    },
    /// The type `owner` has no such value.
    UnknownVariant {
        owner: &'static str,
        variant: String,
        expected: &'static [&'static str],
    },
    /// A required field is missing.
    Missing(&'static str),
    /// Anything else.
    Other(String),
}

impl Fault {
    pub(super) fn new(mistake: Mistake) -> Fault {
        Fault {
            node: None,
            mistake,
        }
    }

    /// Attributes the mistake to `node`, unless a node within it is known already.
    pub(super) fn at(mut self, node: Id) -> Fault {
        self.node.get_or_insert(node);
        self
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.mistake {
            Mistake::UnknownField { field, .. } => write!(f, "no such field `{field}`"),
            Mistake::UnknownVariant { variant, .. } => write!(f, "no such value `{variant}`"),
            Mistake::Missing(field) => write!(f, "`{field}` is required"),
            Mistake::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(text: T) -> Fault {
        Fault::new(Mistake::Other(text.to_string()))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Fault {
        Fault::new(Mistake::UnknownField {
            owner: "",
            field: field.to_owned(),
            expected,
        })
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Fault {
        Fault::new(Mistake::UnknownVariant {
            owner: "",
            variant: variant.to_owned(),
            expected,
        })
    }

    fn missing_field(field: &'static str) -> Fault {
        Fault::new(Mistake::Missing(field))
    }
}
