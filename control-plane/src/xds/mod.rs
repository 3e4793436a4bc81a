//! xDS for the proxies: the two variants of a stream without IO, and the state that streams share.

pub mod connection;
pub mod drains;
mod guard;
pub mod hub;
pub mod sotw;
mod workloads;

use std::collections::BTreeSet;

use leno_proto::leno::Refused;
use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::google::rpc::Status;

use crate::mesh::Client;
use crate::translate::LookupResult;

/// Most names of one type that one client may subscribe to.
const MAX_NAMES: usize = 20_000;
/// Longest name, in bytes; a host has 253 at most.
const MAX_NAME: usize = 512;

/// The resources as one client gets them.
pub trait ResourceSource {
    /// The kind of the client.
    fn client(&self) -> Client;
    /// The resource `name` of a type.
    fn resource(&self, type_url: &str, name: &str) -> LookupResult;
    /// Type and name of each resource that a Listener leads to, in the order in which a client should have them.
    fn dependencies(&self, listener: &str) -> Vec<(&'static str, String)>;
    /// Every name of a type, for wildcard subscriptions.
    fn wildcard_names(&self, type_url: &str) -> BTreeSet<String>;
    /// True when a change touches a name; always true when the change isn't known.
    fn touches(&self, type_url: &str, name: &str) -> bool;
}

/// The server's side of one xDS stream: requests and changes in, responses out.
pub trait XdsStream: Default + Send + Sync {
    /// A request of the client.
    type Request: Send + Sync;
    /// A response to the client.
    type Response: Send;

    /// The client's node, in the first request.
    fn node(request: &Self::Request) -> Option<&Node>;
    /// The type URL of a request.
    fn request_type(request: &Self::Request) -> &str;
    /// The type URL of a response.
    fn response_type(response: &Self::Response) -> &str;
    /// The error of a request that is a NACK.
    fn error(request: &Self::Request) -> Option<&Status>;
    /// Handles a request; returns the responses to send.
    fn request(
        &mut self,
        request: &Self::Request,
        lookup: &dyn ResourceSource,
    ) -> Vec<Self::Response>;
    /// Handles a change; returns the responses to send.
    fn changed(&mut self, lookup: &dyn ResourceSource) -> Vec<Self::Response>;
    /// The resources that the client refuses now.
    fn refused(&self) -> Vec<&Refused>;
    /// The version of the inbound Listener that the client accepted last.
    fn inbound(&self) -> Option<&str>;
    /// True when the client has answered (ACK or NACK) every response.
    fn is_settled(&self) -> bool;
    /// Type, name and version of the subscribed resources that it holds.
    fn versions(&self) -> Vec<(&'static str, String, String)>;
    /// The number of subscribed names.
    fn names(&self) -> usize;
    /// True when the client leaves too many responses unanswered to be served on.
    fn is_overrun(&self) -> bool {
        false
    }
}
