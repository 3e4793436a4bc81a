//! Client side of a delta xDS stream as a state machine without IO: subscriptions, and the requests that state them.
//!
//! Invariant: a request is made only by [`Session::initial_requests`], [`Session::subscribe`], [`Session::unsubscribe`] and
//! [`Session::ack_or_nack`]; the driver of the stream sends the requests in the order in which they were made.
//!
//! Bound: `--max-names` authorities, and the names that they lead to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use leno_proto::leno::Refused;
use leno_proto::pack;
use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use leno_proto::pb::google::rpc::Status;
use leno_proto::type_url::ALL;

/// gRPC's INVALID_ARGUMENT, the code of a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// State of a delta xDS stream; the subscriptions outlive a reconnection.
#[derive(Debug)]
pub struct Session {
    node: Node,
    subscribed: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Session {
    /// A session of `node`, subscribed to nothing.
    pub fn new(node: Node) -> Session {
        Session {
            node,
            subscribed: ALL.iter().map(|&kind| (kind, BTreeSet::new())).collect(),
        }
    }

    /// Subscribed names of a type.
    pub fn subscribed(&self, type_url: &str) -> &BTreeSet<String> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        self.subscribed.get(type_url).unwrap_or(&NONE)
    }

    /// The first requests of a new stream: every subscription, and the versions held of its resources, so that only
    /// those that changed meanwhile are sent. `versions` returns the version held of a type's resource.
    pub fn initial_requests(
        &self,
        versions: impl Fn(&str, &str) -> Option<String>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for (type_url, names) in &self.subscribed {
            if names.is_empty() {
                continue;
            }
            let held = names.iter();
            let held = held.filter_map(|name| Some((name.clone(), versions(type_url, name)?)));
            requests.push(DeltaDiscoveryRequest {
                type_url: (*type_url).to_owned(),
                resource_names_subscribe: names.iter().cloned().collect(),
                initial_resource_versions: held.collect::<HashMap<_, _>>(),
                ..DeltaDiscoveryRequest::default()
            });
        }
        // The node identifies the stream, and is sent once.
        if let Some(first) = requests.first_mut() {
            first.node = Some(self.node.clone());
        }
        requests
    }

    /// Subscribes to `names`; returns the request to send, if any of them is new.
    pub fn subscribe(
        &mut self,
        type_url: &str,
        names: impl IntoIterator<Item = String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let subscribed = self.subscribed.get_mut(type_url)?;
        let names = names.into_iter();
        let new: Vec<String> = names.filter(|n| subscribed.insert(n.clone())).collect();
        (!new.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: new,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Unsubscribes from `names`; returns the request to send, if any of them was subscribed.
    pub fn unsubscribe(
        &mut self,
        type_url: &str,
        names: impl IntoIterator<Item = String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let subscribed = self.subscribed.get_mut(type_url)?;
        let gone: Vec<String> = names.into_iter().filter(|n| subscribed.remove(n)).collect();
        (!gone.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_unsubscribe: gone,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Adds a resource that the server pushed unrequested, since another refers to it, to the subscriptions, as the
    /// server does.
    pub fn adopt(&mut self, type_url: &str, name: &str) {
        if let Some(subscribed) = self.subscribed.get_mut(type_url)
            && !subscribed.contains(name)
        {
            subscribed.insert(name.to_owned());
        }
    }

    /// The ACK of a response, or its NACK, which names each refused resource; the others were accepted.
    pub fn ack_or_nack(
        &self,
        type_url: &str,
        nonce: &str,
        refused: &[Refused],
    ) -> DeltaDiscoveryRequest {
        let error_detail = refused.first().map(|first| Status {
            code: INVALID_ARGUMENT,
            message: match refused.len() {
                1 => format!("{}: {}: {}", first.name, first.field, first.reason),
                more => format!(
                    "{more} resources refused, the first: {}: {}",
                    first.name, first.reason
                ),
            },
            details: refused.iter().map(pack).collect(),
        });
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use leno_proto::type_url::{CLUSTER, LISTENER};

    use super::*;

    fn session() -> Session {
        Session::new(Node {
            id: "sidecar~127.0.0.1~a.b~b".to_owned(),
            ..Node::default()
        })
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn only_what_is_new_is_asked_for_and_only_what_was_is_given_back() {
        let mut session = session();
        let request = session
            .subscribe(LISTENER, names(&["a:80", "b:80"]))
            .expect("new");
        assert_eq!(request.resource_names_subscribe, names(&["a:80", "b:80"]));
        assert!(request.node.is_none());
        assert!(session.subscribe(LISTENER, names(&["a:80"])).is_none());
        let request = session
            .unsubscribe(LISTENER, names(&["a:80", "c:80"]))
            .expect("was");
        assert_eq!(request.resource_names_unsubscribe, names(&["a:80"]));
        assert!(session.unsubscribe(LISTENER, names(&["a:80"])).is_none());
    }

    #[test]
    fn a_new_stream_begins_with_what_is_held_and_says_who_we_are_once() {
        let mut session = session();
        session.subscribe(LISTENER, names(&["a:80", "b:80"]));
        session.adopt(CLUSTER, "c");
        let version = |_: &str, name: &str| (name != "b:80").then(|| format!("v-{name}"));
        let requests = session.initial_requests(version);
        assert_eq!(requests.len(), 2);
        assert_eq!(requests.iter().filter(|r| r.node.is_some()).count(), 1);
        assert!(requests[0].node.is_some());
        let listener = requests
            .iter()
            .find(|r| r.type_url == LISTENER)
            .expect("asked");
        assert_eq!(listener.resource_names_subscribe, names(&["a:80", "b:80"]));
        assert_eq!(listener.initial_resource_versions.len(), 1);
        assert_eq!(listener.initial_resource_versions["a:80"], "v-a:80");
    }

    #[test]
    fn a_nack_names_what_was_refused_and_an_ack_nothing() {
        let session = session();
        assert!(
            session
                .ack_or_nack(CLUSTER, "n1", &[])
                .error_detail
                .is_none()
        );
        let refused = Refused {
            r#type: CLUSTER.to_owned(),
            name: "c".to_owned(),
            version: "2".to_owned(),
            field: "connect_timeout".to_owned(),
            reason: "must be positive".to_owned(),
        };
        let nack = session.ack_or_nack(CLUSTER, "n2", std::slice::from_ref(&refused));
        assert_eq!(nack.response_nonce, "n2");
        let status = nack.error_detail.expect("a NACK");
        let detail: Refused = leno_proto::unpack(&status.details[0]).expect("ours");
        assert_eq!(detail, refused);
    }
}
