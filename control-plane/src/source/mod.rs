//! Where configuration comes from, and what is made of it: objects in, a [`Mesh`] out.

pub mod compile;
mod convert;
pub mod dns;
pub mod file;
pub mod last_good;
mod security;

use std::sync::Arc;

use crate::istio::{Key, Place, Problem};
use crate::mesh::Mesh;

/// An object that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Which it is.
    pub key: Key,
    /// Where it begins.
    pub place: Place,
    /// What it says.
    pub text: Arc<str>,
}

/// What the source says at a moment.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// What is meant.
    pub mesh: Arc<Mesh>,
    /// What is wrong, or worth a word.
    pub problems: Arc<Vec<Problem>>,
    /// Objects that could be read.
    pub objects: Arc<Vec<Known>>,
    /// Whether the source has been read whole at least once: until then nothing is said to be gone.
    pub complete: bool,
}
