//! One proxy's delta stream as a state machine without IO: requests and changes in, responses out.
//!
//! Invariants: each version is recorded when it is sent; it is sent once for a subscription, and a refused one not
//! again until it changes (but alone, after a NACK that doesn't name the resource); clusters go before endpoints, those
//! before listeners, those before routes.
//!
//! State of one stream, at most until the client's certificate ends: 20,000 names a type, 1,000 unanswered responses.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use leno_proto::leno::Refused;
use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, ResourceError, ResourceName,
};
use leno_proto::pb::google::rpc::Status;
use leno_proto::type_url::{ALL, CLUSTER, LISTENER};

use super::{MAX_NAME, MAX_NAMES, ResourceSource, XdsStream};
use crate::mesh::Client;
use crate::translate::{INBOUND, LookupResult};

/// The name of a wildcard subscription.
const ANY: &str = "*";
/// gRPC's NOT_FOUND, the code of a resource error.
const NOT_FOUND: i32 = 5;
/// Most responses that a proxy may leave unanswered.
const MAX_UNANSWERED: usize = 1000;

/// The answer last sent for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SentState {
    /// Nothing yet: the answer is pending.
    Nothing,
    /// This version.
    Version(String),
    /// No such resource, for this reason.
    Missing(String),
}

/// A proxy's stream.
#[derive(Debug, Default)]
pub struct DeltaStream {
    subscribed: HashMap<&'static str, BTreeMap<String, SentState>>,
    /// Types with a wildcard subscription.
    wildcards: BTreeSet<&'static str>,
    refused: BTreeMap<(String, String), Refused>,
    /// The version of the inbound Listener that the client accepted last, or reported as held.
    inbound: Option<String>,
    nonce: u64,
    /// Resources of the unanswered responses, by nonce.
    sent: HashMap<String, Vec<(&'static str, String, String)>>,
    /// Resources of a NACK that doesn't name one, to be sent alone.
    isolate: Vec<(&'static str, String)>,
}

impl XdsStream for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request_type(request: &DeltaDiscoveryRequest) -> &str {
        &request.type_url
    }

    fn response_type(response: &DeltaDiscoveryResponse) -> &str {
        &response.type_url
    }

    fn error(request: &DeltaDiscoveryRequest) -> Option<&Status> {
        request.error_detail.as_ref()
    }

    fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        lookup: &dyn ResourceSource,
    ) -> Vec<DeltaDiscoveryResponse> {
        self.take_answer(request);
        let Some(type_url) = ALL.into_iter().find(|known| *known == request.type_url) else {
            return Vec::new();
        };
        let mut fresh = self.take_wildcard(type_url, request, lookup);
        let names = self.subscribed.entry(type_url).or_default();
        for name in &request.resource_names_unsubscribe {
            names.remove(name);
            self.refused.remove(&(type_url.to_owned(), name.clone()));
        }
        for name in &request.resource_names_subscribe {
            if names.len() >= MAX_NAMES || name.len() > MAX_NAME || name == ANY {
                continue;
            }
            let held = held(request, name);
            if let (LISTENER, INBOUND, SentState::Version(version)) =
                (type_url, name.as_str(), &held)
            {
                self.inbound = Some(version.clone());
            }
            names.insert(name.clone(), held);
            fresh.insert((type_url, name.clone()));
        }
        let fresh = self.with_chains(fresh, lookup);
        let mut responses = self.send_alone(lookup);
        responses.extend(self.respond(&fresh, lookup));
        responses
    }

    fn changed(&mut self, lookup: &dyn ResourceSource) -> Vec<DeltaDiscoveryResponse> {
        let mut names = BTreeSet::new();
        for type_url in self.wildcards.clone() {
            names.extend(self.adopt_everything(type_url, lookup));
        }
        for (type_url, subscribed) in &self.subscribed {
            let touched = subscribed
                .keys()
                .filter(|name| lookup.touches(type_url, name));
            names.extend(touched.map(|name| (*type_url, name.clone())));
        }
        let names = self.with_chains(names, lookup);
        self.respond(&names, lookup)
    }

    fn refused(&self) -> Vec<&Refused> {
        self.refused.values().collect()
    }

    fn inbound(&self) -> Option<&str> {
        self.inbound.as_deref()
    }

    fn is_settled(&self) -> bool {
        self.sent.is_empty()
    }

    fn versions(&self) -> Vec<(&'static str, String, String)> {
        let mut held = Vec::new();
        for (type_url, names) in &self.subscribed {
            held.extend(names.iter().filter_map(|(name, state)| match state {
                SentState::Version(version) => Some((*type_url, name.clone(), version.clone())),
                _ => None,
            }));
        }
        held
    }

    fn names(&self) -> usize {
        self.subscribed.values().map(BTreeMap::len).sum()
    }

    fn is_overrun(&self) -> bool {
        self.sent.len() > MAX_UNANSWERED
    }
}

/// The version that the client reports as held, at the start of a stream. A repeated subscription is answered again.
fn held(request: &DeltaDiscoveryRequest, name: &str) -> SentState {
    let version = request.initial_resource_versions.get(name);
    version.map_or(SentState::Nothing, |version| {
        SentState::Version(version.clone())
    })
}

impl DeltaStream {
    /// Takes a wildcard subscription: `*`, or the first request of a type without a name, asks for all Listeners or
    /// Clusters there are, as Envoy does.
    fn take_wildcard(
        &mut self,
        type_url: &'static str,
        request: &DeltaDiscoveryRequest,
        lookup: &dyn ResourceSource,
    ) -> BTreeSet<(&'static str, String)> {
        let is_first = !self.subscribed.contains_key(type_url);
        let subscribe = &request.resource_names_subscribe;
        let is_bare = is_first && subscribe.is_empty() && request.response_nonce.is_empty();
        let is_any = |name: &String| name == ANY;
        let is_whole = type_url == LISTENER || type_url == CLUSTER;
        if request.resource_names_unsubscribe.iter().any(is_any) {
            self.wildcards.remove(type_url);
        }
        if !is_whole || !(is_bare || subscribe.iter().any(is_any)) {
            return BTreeSet::new();
        }
        self.wildcards.insert(type_url);
        let names = self.subscribed.entry(type_url).or_default();
        for name in request.initial_resource_versions.keys() {
            names.insert(name.clone(), held(request, name));
        }
        let mut fresh = self.adopt_everything(type_url, lookup);
        // Resources that it holds and that are gone must be removed.
        let held = request.initial_resource_versions.keys();
        fresh.extend(held.map(|name| (type_url, name.clone())));
        fresh
    }

    /// Subscribes to every name of a type; returns the new ones.
    fn adopt_everything(
        &mut self,
        type_url: &'static str,
        lookup: &dyn ResourceSource,
    ) -> BTreeSet<(&'static str, String)> {
        let names = self.subscribed.entry(type_url).or_default();
        let all = lookup.wildcard_names(type_url).into_iter();
        let mut fresh = BTreeSet::new();
        for name in all.take(MAX_NAMES) {
            if !names.contains_key(&name) {
                names.insert(name.clone(), SentState::Nothing);
                fresh.insert((type_url, name));
            }
        }
        fresh
    }

    /// Handles an ACK or NACK: a resource that it doesn't name was accepted.
    fn take_answer(&mut self, request: &DeltaDiscoveryRequest) {
        let Some(sent) = self.sent.remove(&request.response_nonce) else {
            return;
        };
        let details = request
            .error_detail
            .as_ref()
            .map_or(&[][..], |status| &status.details);
        let refused: Vec<Refused> = details
            .iter()
            .filter_map(|any| leno_proto::unpack(any).ok())
            .collect();
        if let Some(status) = request.error_detail.as_ref().filter(|_| refused.is_empty()) {
            return self.take_blunt_refusal(sent, status);
        }
        for (type_url, name, version) in sent {
            let key = (type_url.to_owned(), name.clone());
            match refused
                .iter()
                .find(|r| r.name == name && r.r#type == type_url)
            {
                Some(refusal) => {
                    let refusal = Refused {
                        version,
                        ..refusal.clone()
                    };
                    self.refused.insert(key, refusal);
                }
                None => {
                    self.refused.remove(&key);
                    if (type_url, name.as_str()) == (LISTENER, INBOUND) {
                        self.inbound = Some(version);
                    }
                }
            }
        }
    }

    /// Takes a NACK that doesn't name the resource, such as Envoy's: each one is sent again alone, until a NACK is of
    /// one resource.
    fn take_blunt_refusal(&mut self, sent: Vec<(&'static str, String, String)>, status: &Status) {
        if let [(type_url, name, version)] = sent.as_slice() {
            let refusal = Refused {
                r#type: (*type_url).to_owned(),
                name: name.clone(),
                version: version.clone(),
                reason: match status.message.is_empty() {
                    true => "refused without a reason".to_owned(),
                    false => status.message.clone(),
                },
                ..Refused::default()
            };
            self.refused
                .insert(((*type_url).to_owned(), name.clone()), refusal);
            return;
        }
        self.isolate
            .extend(sent.into_iter().map(|(type_url, name, _)| (type_url, name)));
    }

    /// Sends the resources that must go alone, a response each.
    fn send_alone(&mut self, lookup: &dyn ResourceSource) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for (type_url, name) in std::mem::take(&mut self.isolate) {
            if let Some(state) = self
                .subscribed
                .get_mut(type_url)
                .and_then(|n| n.get_mut(&name))
            {
                *state = SentState::Nothing;
                responses.extend(self.respond(&BTreeSet::from([(type_url, name)]), lookup));
            }
        }
        responses
    }

    /// Adds the resources that the Listeners among `names` lead to: a sidecar of ours takes them without a
    /// subscription.
    fn with_chains(
        &mut self,
        mut names: BTreeSet<(&'static str, String)>,
        lookup: &dyn ResourceSource,
    ) -> BTreeSet<(&'static str, String)> {
        if lookup.client() != Client::Leno {
            return names;
        }
        let listeners = names.iter().filter(|(type_url, _)| *type_url == LISTENER);
        let listeners: Vec<String> = listeners.map(|(_, name)| name.clone()).collect();
        for listener in listeners {
            for (type_url, name) in lookup.dependencies(&listener) {
                let known = self.subscribed.entry(type_url).or_default();
                if !known.contains_key(&name) {
                    known.insert(name.clone(), SentState::Nothing);
                    names.insert((type_url, name));
                }
            }
        }
        names
    }

    /// One response a type, in the order in which changes must be made, of the resources that differ from those last
    /// sent.
    fn respond(
        &mut self,
        names: &BTreeSet<(&'static str, String)>,
        lookup: &dyn ResourceSource,
    ) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for type_url in ALL {
            let empty = DeltaDiscoveryResponse {
                type_url: type_url.to_owned(),
                ..DeltaDiscoveryResponse::default()
            };
            let mut response = empty.clone();
            let mut sent = Vec::new();
            for (_, name) in names.iter().filter(|(of, _)| *of == type_url) {
                self.append(type_url, name, lookup, &mut response, &mut sent);
            }
            if response == empty {
                continue;
            }
            self.nonce += 1;
            response.nonce = self.nonce.to_string();
            self.sent.insert(response.nonce.clone(), sent);
            responses.push(response);
        }
        responses
    }

    fn append(
        &mut self,
        type_url: &'static str,
        name: &str,
        lookup: &dyn ResourceSource,
        response: &mut DeltaDiscoveryResponse,
        sent: &mut Vec<(&'static str, String, String)>,
    ) {
        let Some(state) = self
            .subscribed
            .get_mut(type_url)
            .and_then(|names| names.get_mut(name))
        else {
            return;
        };
        match lookup.resource(type_url, name) {
            LookupResult::Pending(_) => {}
            LookupResult::Present(any, version) => {
                if *state == SentState::Version(version.clone()) {
                    return;
                }
                *state = SentState::Version(version.clone());
                sent.push((type_url, name.to_owned(), version.clone()));
                response.resources.push(Resource {
                    name: name.to_owned(),
                    version,
                    resource: Some(any),
                    ..Resource::default()
                });
            }
            LookupResult::Missing(reason) => {
                if *state == SentState::Missing(reason.clone()) {
                    return;
                }
                let was_there = matches!(state, SentState::Version(_));
                *state = SentState::Missing(reason.clone());
                if lookup.client() != Client::Leno {
                    // Other clients support removals only: a resource that never existed isn't answered.
                    if was_there {
                        response.removed_resources.push(name.to_owned());
                    }
                    return;
                }
                response.resource_errors.push(ResourceError {
                    resource_name: Some(ResourceName {
                        name: name.to_owned(),
                        ..ResourceName::default()
                    }),
                    error_detail: Some(Status {
                        code: NOT_FOUND,
                        message: reason,
                        details: Vec::new(),
                    }),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use leno_proto::Any;
    use leno_proto::type_url::{CLUSTER, ENDPOINTS, ROUTE};

    use super::*;

    /// Resources that the test sets.
    #[derive(Default)]
    struct World {
        client: Client,
        versions: RefCell<HashMap<(&'static str, String), &'static str>>,
    }

    impl World {
        fn set(&self, type_url: &'static str, name: &str, version: &'static str) {
            self.versions
                .borrow_mut()
                .insert((type_url, name.to_owned()), version);
        }
    }

    impl ResourceSource for World {
        fn client(&self) -> Client {
            self.client
        }

        fn wildcard_names(&self, type_url: &str) -> BTreeSet<String> {
            let versions = self.versions.borrow();
            let names = versions.keys().filter(|(of, _)| *of == type_url);
            names.map(|(_, name)| name.clone()).collect()
        }

        fn resource(&self, type_url: &str, name: &str) -> LookupResult {
            let versions = self.versions.borrow();
            let found = versions
                .iter()
                .find(|((t, n), _)| *t == type_url && n == name);
            match found {
                Some((_, &"?")) => LookupResult::Pending(vec![name.to_owned()]),
                Some((_, version)) => LookupResult::Present(Any::default(), (*version).to_owned()),
                None => LookupResult::Missing(format!("no {name}")),
            }
        }

        fn dependencies(&self, listener: &str) -> Vec<(&'static str, String)> {
            [CLUSTER, ENDPOINTS, LISTENER, ROUTE]
                .map(|t| (t, listener.to_owned()))
                .to_vec()
        }

        fn touches(&self, _type_url: &str, _name: &str) -> bool {
            true
        }
    }

    fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: LISTENER.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn world() -> World {
        let world = World::default();
        for type_url in [CLUSTER, ENDPOINTS, LISTENER, ROUTE] {
            world.set(type_url, "a", "1");
        }
        world
    }

    fn types(responses: &[DeltaDiscoveryResponse]) -> Vec<&str> {
        responses
            .iter()
            .map(|r| leno_proto::type_url::short(&r.type_url))
            .collect()
    }

    #[test]
    fn a_listener_is_answered_with_its_whole_chain_in_order() {
        let mut connection = DeltaStream::default();
        let responses = connection.request(&subscribe(&["a"]), &world());
        let expected = [
            "Cluster",
            "ClusterLoadAssignment",
            "Listener",
            "RouteConfiguration",
        ];
        assert_eq!(types(&responses), expected);
        assert!(
            connection.changed(&world()).is_empty(),
            "nothing is sent twice"
        );
    }

    #[test]
    fn only_what_changed_is_sent_again() {
        let (mut connection, world) = (DeltaStream::default(), world());
        connection.request(&subscribe(&["a"]), &world);
        world.set(ROUTE, "a", "2");
        let responses = connection.changed(&world);
        assert_eq!(types(&responses), ["RouteConfiguration"]);
        assert_eq!(responses[0].resources[0].version, "2");
    }

    #[test]
    fn what_is_held_already_is_not_sent_after_a_reconnect() {
        let mut connection = DeltaStream::default();
        let mut request = subscribe(&["a"]);
        request
            .initial_resource_versions
            .insert("a".to_owned(), "1".to_owned());
        let responses = connection.request(&request, &world());
        assert!(!types(&responses).contains(&"Listener"));
    }

    #[test]
    fn a_refused_version_is_not_sent_again_until_it_changes() {
        let (mut connection, world) = (DeltaStream::default(), world());
        let responses = connection.request(&subscribe(&["a"]), &world);
        let listener = &responses[2];
        let refusal = Refused {
            r#type: LISTENER.to_owned(),
            name: "a".to_owned(),
            field: "filter_chains".to_owned(),
            ..Refused::default()
        };
        let nack = DeltaDiscoveryRequest {
            type_url: LISTENER.to_owned(),
            response_nonce: listener.nonce.clone(),
            error_detail: Some(Status {
                details: vec![leno_proto::pack(&refusal)],
                ..Status::default()
            }),
            ..DeltaDiscoveryRequest::default()
        };
        assert!(connection.request(&nack, &world).is_empty());
        assert!(connection.changed(&world).is_empty());
        let shown = connection.refused();
        assert_eq!(
            (shown[0].version.as_str(), shown[0].field.as_str()),
            ("1", "filter_chains")
        );
        world.set(LISTENER, "a", "2");
        let responses = connection.changed(&world);
        assert_eq!(types(&responses), ["Listener"]);
        let ack = DeltaDiscoveryRequest {
            type_url: LISTENER.to_owned(),
            response_nonce: responses[0].nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        connection.request(&ack, &world);
        assert_eq!(connection.refused().len(), 0);
    }

    #[test]
    fn what_is_refused_without_a_word_is_sent_again_one_by_one() {
        let (mut connection, world) = (DeltaStream::default(), world());
        for type_url in [CLUSTER, ENDPOINTS, LISTENER, ROUTE] {
            world.set(type_url, "b", "1");
        }
        let responses = connection.request(&subscribe(&["a", "b"]), &world);
        let nack = |nonce: &str| DeltaDiscoveryRequest {
            type_url: CLUSTER.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: Some(Status::default()),
            ..DeltaDiscoveryRequest::default()
        };
        let alone = connection.request(&nack(&responses[0].nonce), &world);
        assert_eq!(types(&alone), ["Cluster", "Cluster"]);
        assert!(alone.iter().all(|response| response.resources.len() == 1));
        assert!(
            connection
                .request(&nack(&alone[1].nonce), &world)
                .is_empty()
        );
        let refused: Vec<_> = connection
            .refused()
            .iter()
            .map(|r| r.name.as_str())
            .collect();
        assert_eq!(refused, ["b"]);
    }

    #[test]
    fn a_name_without_anything_is_answered_once_and_stays_subscribed() {
        let (mut connection, world) = (DeltaStream::default(), world());
        let responses = connection.request(&subscribe(&["b"]), &world);
        let listener = responses
            .iter()
            .find(|r| r.type_url == LISTENER)
            .expect("answered");
        let error = &listener.resource_errors[0];
        let detail = error.error_detail.as_ref().expect("explained");
        assert_eq!((detail.code, detail.message.as_str()), (NOT_FOUND, "no b"));
        assert!(connection.changed(&world).is_empty());
        world.set(LISTENER, "b", "1");
        assert_eq!(types(&connection.changed(&world)), ["Listener"]);
    }

    #[test]
    fn what_is_pending_is_answered_when_it_is_known() {
        let (mut connection, world) = (DeltaStream::default(), world());
        world.set(ENDPOINTS, "a", "?");
        let responses = connection.request(&subscribe(&["a"]), &world);
        assert_eq!(
            types(&responses),
            ["Cluster", "Listener", "RouteConfiguration"]
        );
        world.set(ENDPOINTS, "a", "1");
        assert_eq!(
            types(&connection.changed(&world)),
            ["ClusterLoadAssignment"]
        );
    }

    #[test]
    fn what_is_given_back_is_not_sent() {
        let (mut connection, world) = (DeltaStream::default(), world());
        connection.request(&subscribe(&["a"]), &world);
        let request = DeltaDiscoveryRequest {
            type_url: ROUTE.to_owned(),
            resource_names_unsubscribe: vec!["a".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        connection.request(&request, &world);
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: Vec::new(),
            resource_names_unsubscribe: vec!["a".to_owned()],
            ..subscribe(&[])
        };
        connection.request(&request, &world);
        world.set(LISTENER, "a", "2");
        world.set(ROUTE, "a", "2");
        assert!(connection.changed(&world).is_empty());
    }
}
