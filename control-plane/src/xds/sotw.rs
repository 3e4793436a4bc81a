//! One client's state-of-the-world stream as a state machine without IO, for clients without delta xDS, such as gRPC.
//!
//! Invariants: one response of a type is under way at a time; a Listener or Cluster response holds everything that is
//! subscribed (an absent one is deleted), the others only the changes; a version that was refused is not offered again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use leno_proto::Any;
use leno_proto::leno::Refused;
use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use leno_proto::pb::google::rpc::Status;
use leno_proto::type_url::{ALL, CLUSTER, LISTENER};

use super::{MAX_NAME, MAX_NAMES, ResourceSource, XdsStream};
use crate::translate::{INBOUND, LookupResult};

/// Resources by name, with their versions.
type Set = BTreeMap<String, (String, Any)>;

/// A client's stream.
#[derive(Debug, Default)]
pub struct StateOfTheWorld {
    types: HashMap<&'static str, Type>,
    nonce: u64,
}

/// The state of one type.
#[derive(Debug, Default)]
struct Type {
    names: BTreeSet<String>,
    /// True for a wildcard subscription.
    wildcard: bool,
    /// Resources that the client holds.
    accepted: Set,
    offer: Option<Offer>,
    /// True when a change came while an offer was under way.
    stale: bool,
    refused: BTreeMap<String, Refused>,
    /// Resources that were refused together with others, to be offered one by one.
    alone: VecDeque<String>,
}

/// A response that waits for its ACK or NACK.
#[derive(Debug)]
struct Offer {
    nonce: String,
    set: Set,
    changed: BTreeSet<String>,
}

impl XdsStream for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request_type(request: &DiscoveryRequest) -> &str {
        &request.type_url
    }

    fn response_type(response: &DiscoveryResponse) -> &str {
        &response.type_url
    }

    fn error(request: &DiscoveryRequest) -> Option<&Status> {
        request.error_detail.as_ref()
    }

    fn request(
        &mut self,
        request: &DiscoveryRequest,
        lookup: &dyn ResourceSource,
    ) -> Vec<DiscoveryResponse> {
        let Some(type_url) = ALL.into_iter().find(|known| *known == request.type_url) else {
            return Vec::new();
        };
        let state = self.types.entry(type_url).or_default();
        if !state.take_answer(type_url, request) {
            return Vec::new();
        }
        let all = request.resource_names.iter();
        let names = all.filter(|name| name.len() <= MAX_NAME).take(MAX_NAMES);
        let names: BTreeSet<String> = names.cloned().collect();
        let is_whole = type_url == LISTENER || type_url == CLUSTER;
        let is_first = request.response_nonce.is_empty();
        state.wildcard =
            is_whole && (names.contains("*") || (names.is_empty() && (is_first || state.wildcard)));
        let is_new = is_first || !names.is_subset(&state.names);
        let is_same = !is_first && names == state.names;
        state.names = names;
        if is_same && !state.stale && state.alone.is_empty() {
            return Vec::new();
        }
        let set = state.build(type_url, lookup, false);
        if is_first && request.version_info == version(&set) && !set.is_empty() {
            // The client reconnected, and holds the current version already.
            state.accepted = set;
            return Vec::new();
        }
        self.nonce += 1;
        let response = state.offer(type_url, set, self.nonce, is_new && is_whole);
        let next = || state.offer_next(type_url, lookup, self.nonce);
        response.or_else(next).into_iter().collect()
    }

    fn changed(&mut self, lookup: &dyn ResourceSource) -> Vec<DiscoveryResponse> {
        let mut responses = Vec::new();
        for type_url in ALL {
            let Some(state) = self.types.get_mut(type_url) else {
                continue;
            };
            if state.offer.is_some() {
                state.stale = true;
                continue;
            }
            let set = state.build(type_url, lookup, true);
            self.nonce += 1;
            let response = state.offer(type_url, set, self.nonce, false);
            let next = || state.offer_next(type_url, lookup, self.nonce);
            responses.extend(response.or_else(next));
        }
        responses
    }

    fn refused(&self) -> Vec<&Refused> {
        let types = self.types.values();
        types.flat_map(|state| state.refused.values()).collect()
    }

    fn inbound(&self) -> Option<&str> {
        let listeners = self.types.get(LISTENER)?;
        listeners
            .accepted
            .get(INBOUND)
            .map(|(version, _)| version.as_str())
    }

    fn is_settled(&self) -> bool {
        self.types
            .values()
            .all(|of| of.offer.is_none() && !of.stale)
    }

    fn versions(&self) -> Vec<(&'static str, String, String)> {
        let all = self.types.iter().flat_map(|(type_url, of)| {
            let accepted = of.accepted.iter();
            accepted.map(move |(name, (version, _))| (*type_url, name.clone(), version.clone()))
        });
        all.collect()
    }

    fn names(&self) -> usize {
        let held = |state: &Type| state.names.len().max(state.accepted.len());
        self.types.values().map(held).sum()
    }
}

impl Type {
    /// Takes the ACK or NACK that a request carries; `false` when it answers an older response.
    fn take_answer(&mut self, type_url: &str, request: &DiscoveryRequest) -> bool {
        if request.response_nonce.is_empty() {
            self.offer = None;
            return true;
        }
        let Some(offer) = self.offer.take() else {
            // A new list of names under the nonce that was answered already.
            return true;
        };
        if offer.nonce != request.response_nonce {
            self.offer = Some(offer);
            return false;
        }
        match &request.error_detail {
            None => {
                self.alone.retain(|name| !offer.changed.contains(name));
                self.refused.retain(|name, _| !offer.changed.contains(name));
                self.accepted = offer.set;
            }
            Some(status) => self.take_refusal(type_url, offer, status),
        }
        true
    }

    /// Takes a NACK, which is of a whole response: when more than one resource had changed in it, each is offered again
    /// alone.
    fn take_refusal(&mut self, type_url: &str, offer: Offer, status: &Status) {
        if offer.changed.len() > 1 {
            self.alone = offer.changed.into_iter().collect();
            return;
        }
        for name in offer.changed {
            self.alone.retain(|waiting| *waiting != name);
            let version = offer.set.get(&name).map(|(version, _)| version.clone());
            let refused = Refused {
                r#type: type_url.to_owned(),
                name: name.clone(),
                version: version.unwrap_or_default(),
                reason: status.message.clone(),
                ..Refused::default()
            };
            self.refused.insert(name, refused);
        }
    }

    /// The set that the client should hold: the current resources; but those that it refused, that are pending, or that
    /// wait to be offered alone stay as it holds them.
    fn build(&self, type_url: &str, lookup: &dyn ResourceSource, changes: bool) -> Set {
        let names = match self.wildcard {
            true => lookup.wildcard_names(type_url),
            false => self.names.clone(),
        };
        let mut set = Set::new();
        for name in names {
            let held = self.accepted.get(&name);
            let waits = self.alone.iter().skip(1).any(|waiting| *waiting == name);
            if waits || (changes && held.is_some() && !lookup.touches(type_url, &name)) {
                set.extend(held.map(|held| (name, held.clone())));
                continue;
            }
            match lookup.resource(type_url, &name) {
                LookupResult::Present(any, version) => {
                    let refused = self.refused.get(&name);
                    if refused.is_some_and(|refused| refused.version == version) {
                        set.extend(held.map(|held| (name, held.clone())));
                    } else {
                        set.insert(name, (version, any));
                    }
                }
                LookupResult::Pending(_) => set.extend(held.map(|held| (name, held.clone()))),
                LookupResult::Missing(_) => {}
            }
        }
        set
    }

    /// Goes on with the resources to be offered alone, when the one whose turn it was needs no offer any more.
    fn offer_next(
        &mut self,
        type_url: &'static str,
        lookup: &dyn ResourceSource,
        nonce: u64,
    ) -> Option<DiscoveryResponse> {
        while self.alone.pop_front().is_some() {
            let set = self.build(type_url, lookup, false);
            if let Some(response) = self.offer(type_url, set, nonce, false) {
                return Some(response);
            }
        }
        None
    }

    /// Offers `set`, if it differs from the set that the client holds, or `always`.
    fn offer(
        &mut self,
        type_url: &'static str,
        set: Set,
        nonce: u64,
        always: bool,
    ) -> Option<DiscoveryResponse> {
        self.stale = false;
        let is_whole = type_url == LISTENER || type_url == CLUSTER;
        let differs = |(name, (version, _)): &(&String, &(String, Any))| {
            let held = self.accepted.get(*name);
            held.is_none_or(|(before, _)| before != version)
        };
        let changed = set.iter().filter(differs);
        let changed: BTreeSet<String> = changed.map(|(name, _)| name.clone()).collect();
        let removed = self.accepted.keys().any(|name| !set.contains_key(name));
        if changed.is_empty() && !always && !(removed && is_whole) {
            // Clients drop resources of the other types by themselves, once nothing refers to them.
            self.accepted = set;
            return None;
        }
        let sent = set
            .iter()
            .filter(|(name, _)| is_whole || changed.contains(*name));
        let response = DiscoveryResponse {
            version_info: version(&set),
            resources: sent.map(|(_, (_, any))| any.clone()).collect(),
            type_url: type_url.to_owned(),
            nonce: nonce.to_string(),
            ..DiscoveryResponse::default()
        };
        self.offer = Some(Offer {
            nonce: response.nonce.clone(),
            set,
            changed,
        });
        Some(response)
    }
}

/// The version of a whole set: a hash of its names and versions.
fn version(set: &Set) -> String {
    let mut hasher = DefaultHasher::new();
    for (name, (version, _)) in set {
        (name, version).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use leno_proto::type_url::{ENDPOINTS, short};

    use super::*;
    use crate::mesh::Client;

    /// Resources that the test sets.
    #[derive(Default)]
    struct World(RefCell<BTreeMap<(&'static str, String), &'static str>>);

    impl World {
        fn with(all: &[(&'static str, &str, &'static str)]) -> World {
            let world = World::default();
            for (type_url, name, version) in all {
                world.set(type_url, name, Some(version));
            }
            world
        }

        fn set(&self, type_url: &'static str, name: &str, version: Option<&'static str>) {
            let key = (type_url, name.to_owned());
            match version {
                Some(version) => self.0.borrow_mut().insert(key, version),
                None => self.0.borrow_mut().remove(&key),
            };
        }
    }

    impl ResourceSource for World {
        fn client(&self) -> Client {
            Client::Grpc
        }

        fn resource(&self, type_url: &str, name: &str) -> LookupResult {
            let all = self.0.borrow();
            let found = all.iter().find(|((t, n), _)| *t == type_url && n == name);
            let missing = || LookupResult::Missing(format!("no {name}"));
            found.map_or_else(missing, |(_, version)| {
                let any = Any {
                    type_url: format!("{name} {version}"),
                    ..Any::default()
                };
                LookupResult::Present(any, (*version).to_owned())
            })
        }

        fn dependencies(&self, _listener: &str) -> Vec<(&'static str, String)> {
            Vec::new()
        }

        fn wildcard_names(&self, type_url: &str) -> BTreeSet<String> {
            let all = self.0.borrow();
            let names = all.keys().filter(|(of, _)| *of == type_url);
            names.map(|(_, name)| name.clone()).collect()
        }

        fn touches(&self, _type_url: &str, _name: &str) -> bool {
            true
        }
    }

    fn ask(type_url: &str, names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(|&name| name.to_owned()).collect(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    fn refuse(request: DiscoveryRequest) -> DiscoveryRequest {
        DiscoveryRequest {
            error_detail: Some(Status {
                message: "bad".to_owned(),
                ..Status::default()
            }),
            ..request
        }
    }

    /// The contents of responses: the type, then name and version of each resource.
    fn held(responses: &[DiscoveryResponse]) -> Vec<String> {
        let line = |response: &DiscoveryResponse| {
            let resources = response.resources.iter().map(|any| any.type_url.as_str());
            let all: Vec<&str> = [short(&response.type_url)]
                .into_iter()
                .chain(resources)
                .collect();
            all.join(", ")
        };
        responses.iter().map(line).collect()
    }

    #[test]
    fn a_cluster_response_is_whole_and_an_endpoint_response_holds_what_changed() {
        let world = World::with(&[
            (CLUSTER, "a", "1"),
            (CLUSTER, "b", "1"),
            (ENDPOINTS, "a", "1"),
            (ENDPOINTS, "b", "1"),
        ]);
        let mut stream = StateOfTheWorld::default();
        for (type_url, after) in [
            (CLUSTER, "Cluster, a 2, b 1"),
            (ENDPOINTS, "ClusterLoadAssignment, a 2"),
        ] {
            let first = stream.request(&ask(type_url, &["a", "b"], ""), &world);
            assert_eq!(held(&first), [format!("{}, a 1, b 1", short(type_url))]);
            let ack = ask(type_url, &["a", "b"], &first[0].nonce);
            assert!(stream.request(&ack, &world).is_empty());
            world.set(type_url, "a", Some("2"));
            let next = stream.changed(&world);
            assert_eq!(held(&next), [after]);
            let ack = ask(type_url, &["a", "b"], &next[0].nonce);
            assert!(stream.request(&ack, &world).is_empty());
        }
        assert!(stream.changed(&world).is_empty(), "nothing is sent twice");
        world.set(CLUSTER, "b", None);
        assert_eq!(held(&stream.changed(&world)), ["Cluster, a 2"]);
    }

    #[test]
    fn everything_is_told_to_who_names_nothing_and_nothing_is_told_by_silence() {
        let world = World::with(&[(LISTENER, "a", "1")]);
        let mut stream = StateOfTheWorld::default();
        let first = stream.request(&ask(LISTENER, &[], ""), &world);
        assert_eq!(held(&first), ["Listener, a 1"]);
        world.set(LISTENER, "b", Some("1"));
        assert!(stream.changed(&world).is_empty(), "one at a time");
        let next = stream.request(&ask(LISTENER, &[], &first[0].nonce), &world);
        assert_eq!(held(&next), ["Listener, a 1, b 1"]);
        let mut stream = StateOfTheWorld::default();
        let none = stream.request(&ask(LISTENER, &["x"], ""), &world);
        assert_eq!(held(&none), ["Listener"]);
    }

    #[test]
    fn an_answer_to_something_older_is_left_alone() {
        let world = World::with(&[(CLUSTER, "a", "1")]);
        let mut stream = StateOfTheWorld::default();
        let first = stream.request(&ask(CLUSTER, &["a"], ""), &world);
        assert!(
            stream
                .request(&ask(CLUSTER, &["b"], "old"), &world)
                .is_empty()
        );
        let ack = ask(CLUSTER, &["a"], &first[0].nonce);
        assert!(stream.request(&ack, &world).is_empty());
    }

    #[test]
    fn after_a_reconnect_nothing_is_sent_that_is_held() {
        let world = World::with(&[(CLUSTER, "a", "1")]);
        let first = StateOfTheWorld::default().request(&ask(CLUSTER, &["a"], ""), &world);
        let again = DiscoveryRequest {
            version_info: first[0].version_info.clone(),
            ..ask(CLUSTER, &["a"], "")
        };
        let mut stream = StateOfTheWorld::default();
        assert!(stream.request(&again, &world).is_empty());
        world.set(CLUSTER, "a", Some("2"));
        assert_eq!(held(&stream.changed(&world)), ["Cluster, a 2"]);
    }

    #[test]
    fn the_bad_one_of_several_is_found_and_the_good_ones_get_through() {
        let world = World::with(&[
            (CLUSTER, "a", "1"),
            (CLUSTER, "bad", "1"),
            (CLUSTER, "c", "1"),
        ]);
        let names = ["a", "bad", "c"];
        let mut stream = StateOfTheWorld::default();
        let mut responses = stream.request(&ask(CLUSTER, &names, ""), &world);
        let mut last = Vec::new();
        for _ in 0..8 {
            let Some(response) = responses.pop() else {
                break;
            };
            last = held(std::slice::from_ref(&response));
            let answer = ask(CLUSTER, &names, &response.nonce);
            let is_bad = last[0].contains("bad 1");
            let answer = if is_bad { refuse(answer) } else { answer };
            responses = stream.request(&answer, &world);
        }
        assert_eq!(last, ["Cluster, a 1, c 1"]);
        let refused = stream.refused();
        assert_eq!(refused.len(), 1);
        assert_eq!(
            (refused[0].name.as_str(), refused[0].reason.as_str()),
            ("bad", "bad")
        );
        assert!(stream.changed(&world).is_empty(), "not offered again");
        world.set(CLUSTER, "bad", Some("2"));
        assert_eq!(held(&stream.changed(&world)), ["Cluster, a 1, bad 2, c 1"]);
    }
}
