//! xDS towards the proxies: the two variants of a stream without IO, and the service that pumps between them and the wire.

pub mod connection;
mod guard;
pub mod hub;
pub mod lifecycle;
pub mod reports;
pub mod server;
pub mod sotw;
mod workloads;

use std::collections::BTreeSet;

use leno_proto::leno::Refused;
use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::google::rpc::Status;

use crate::mesh::Client;
use crate::translate::Answer;

/// Names that one client may subscribe to, of one type.
const MAX_NAMES: usize = 20_000;
/// Bytes of a name; a host has 253 at most.
const MAX_NAME: usize = 512;

/// Answers what there is under a name, for one client.
pub trait Lookup {
    /// What kind of client it is.
    fn client(&self) -> Client;
    /// The resource `name` of a type.
    fn resource(&self, type_url: &str, name: &str) -> Answer;
    /// Everything that a Listener leads to, in the order in which a client should have it.
    fn chain(&self, listener: &str) -> Vec<(&'static str, String)>;
    /// Every name of a type, for clients that ask for all there is.
    fn everything(&self, type_url: &str) -> BTreeSet<String>;
    /// Whether a change touches a name; everything, when nothing is said about what changed.
    fn touches(&self, type_url: &str, name: &str) -> bool;
}

/// One stream's side of the conversation: requests and changes in, responses out.
pub trait Dialog: Default + Send + Sync {
    /// What the client sends.
    type Request: Send + Sync;
    /// What it is sent.
    type Response: Send;

    /// Who the client says it is; in the first request.
    fn node(request: &Self::Request) -> Option<&Node>;
    /// The type that a request is about.
    fn of(request: &Self::Request) -> &str;
    /// The type that a response is about.
    fn sent(response: &Self::Response) -> &str;
    /// What it says against the response that the request answers.
    fn error(request: &Self::Request) -> Option<&Status>;
    /// Takes a request; returns what to send.
    fn request(&mut self, request: &Self::Request, lookup: &dyn Lookup) -> Vec<Self::Response>;
    /// Something changed; returns what to send.
    fn changed(&mut self, lookup: &dyn Lookup) -> Vec<Self::Response>;
    /// What the client refuses now.
    fn refused(&self) -> Vec<&Refused>;
    /// The version of the inbound Listener that the client took last.
    fn inbound(&self) -> Option<&str>;
    /// Whether the client has answered everything that it was sent.
    fn is_settled(&self) -> bool;
    /// What it was sent of what it asks for: type, name, version.
    fn held(&self) -> Vec<(&'static str, String, String)>;
    /// Names that are subscribed.
    fn names(&self) -> usize;
    /// Whether the client leaves too much unanswered to be served on.
    fn is_overrun(&self) -> bool {
        false
    }
}
