//! Accepted resources by type and name, each validated alone.
//!
//! Invariant: a refused resource changes nothing but the list of refusals; its last good version stays.
//!
//! State: accepted resources, versions and refusals, until removed or unsubscribed; at most 20,000 resources a
//! response, within `--max-xds-message`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use leno_proto::Any;
use leno_proto::leno::Refused;
use leno_proto::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as Sent};
use leno_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
use serde::{Deserialize, Serialize};

use crate::snapshot::{ResourceState, Resources};
use leno_rules::config::cluster::{Cluster, Discovery};
use leno_rules::config::listener::Filter;
use leno_rules::config::route::RouteConfig;
use leno_rules::config::secret::Roots;
use leno_rules::config::{Invalid, decode};

/// Most resources read from a response; any more are ignored.
const MAX_RESOURCES: usize = 20_000;

/// The accepted resources, and the refusals.
#[derive(Debug, Default)]
pub struct Store {
    /// Resources that plans are built from.
    pub resources: Resources,
    /// Trusted roots, once the control plane has sent them.
    pub roots: Option<Arc<Roots>>,
    versions: HashMap<(&'static str, String), String>,
    /// Resources as they were sent, if they are saved for a restart.
    bodies: Option<HashMap<(&'static str, String), Any>>,
    refused: BTreeMap<(String, String), Refused>,
}

/// Result of applying a response.
#[derive(Debug, Default)]
pub struct Applied {
    /// Refused resources.
    pub refused: Vec<Refused>,
}

/// A resource as it is saved for a restart.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedResource {
    type_url: String,
    name: String,
    version: String,
    /// Its encoding, in base64.
    body: String,
}

impl SavedResource {
    /// The resources of `kept` as the control plane would send them: a response for each type, in the order of
    /// `type_url::ALL`.
    pub fn responses(kept: Vec<SavedResource>) -> Vec<DeltaDiscoveryResponse> {
        let mut responses: Vec<_> = leno_proto::type_url::ALL
            .map(|type_url| DeltaDiscoveryResponse {
                type_url: type_url.to_owned(),
                ..DeltaDiscoveryResponse::default()
            })
            .into();
        for one in kept {
            let response = responses.iter_mut().find(|r| r.type_url == one.type_url);
            let (Some(response), Ok(value)) = (response, BASE64.decode(&one.body)) else {
                continue;
            };
            response.resources.push(Sent {
                name: one.name,
                version: one.version,
                resource: Some(Any {
                    type_url: one.type_url,
                    value,
                }),
                ..Sent::default()
            });
        }
        responses
    }
}

impl Store {
    /// The version held of a resource.
    pub fn version(&self, type_url: &str, name: &str) -> Option<String> {
        let key = leno_proto::type_url::ALL
            .into_iter()
            .find(|t| *t == type_url)?;
        self.versions.get(&(key, name.to_owned())).cloned()
    }

    /// Versions held: type, name, version.
    pub fn versions(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        let versions = self.versions.iter();
        versions.map(|((type_url, name), version)| (*type_url, name.as_str(), version.as_str()))
    }

    /// Resources refused now. A refusal stays until a version is accepted, or the resource is removed.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    /// Applies a response.
    pub fn apply(&mut self, response: &DeltaDiscoveryResponse) -> Applied {
        let mut applied = Applied::default();
        let Some(type_url) = leno_proto::type_url::ALL
            .into_iter()
            .find(|t| *t == response.type_url)
        else {
            let invalid = Invalid::new("type_url", "is not one that Leno asks for");
            applied
                .refused
                .push(refused(&response.type_url, "", "", invalid));
            return applied;
        };
        let mut seen = BTreeSet::new();
        for sent in response.resources.iter().take(MAX_RESOURCES) {
            let outcome = match seen.insert(&sent.name) {
                true => self.accept(type_url, sent),
                false => Err(Invalid::new("name", "stands twice in the response")),
            };
            self.record(type_url, sent, outcome, &mut applied);
        }
        for name in &response.removed_resources {
            self.miss(type_url, name, "the control plane removed it");
        }
        for error in &response.resource_errors {
            let name = error.resource_name.as_ref().map_or("", |name| &name.name);
            let detail = error.error_detail.as_ref();
            self.miss(type_url, name, detail.map_or("not found", |d| &d.message));
        }
        applied
    }

    fn record(
        &mut self,
        type_url: &'static str,
        sent: &Sent,
        outcome: Result<(), Invalid>,
        applied: &mut Applied,
    ) {
        let key = (type_url.to_owned(), sent.name.clone());
        match outcome {
            Ok(()) => {
                self.refused.remove(&key);
                let key = (type_url, sent.name.clone());
                if let (Some(bodies), Some(any)) = (&mut self.bodies, &sent.resource) {
                    bodies.insert(key.clone(), any.clone());
                }
                self.versions.insert(key, sent.version.clone());
            }
            Err(invalid) => {
                let refusal = refused(type_url, &sent.name, &sent.version, invalid);
                self.refused.insert(key, refusal.clone());
                applied.refused.push(refusal);
            }
        }
    }

    fn accept(&mut self, type_url: &str, sent: &Sent) -> Result<(), Invalid> {
        let missing = || Invalid::new("resource", "is required");
        let any = sent.resource.as_ref().ok_or_else(missing)?;
        if any.type_url != type_url {
            let reason = format!("is a {}", any.type_url);
            return Err(Invalid::new("resource.type_url", reason));
        }
        let name = sent.name.clone();
        let resources = &mut self.resources;
        match type_url {
            LISTENER => {
                let listener = ResourceState::Present(Arc::new(decode(&name, any)?));
                resources.listeners.insert(name, listener);
            }
            ROUTE => {
                let routes = ResourceState::Present(Arc::new(decode(&name, any)?));
                resources.routes.insert(name, routes);
            }
            CLUSTER => {
                let cluster = ResourceState::Present(Arc::new(decode(&name, any)?));
                resources.clusters.insert(name, cluster);
            }
            ENDPOINTS => {
                let endpoints = ResourceState::Present(Arc::new(decode(&name, any)?));
                resources.endpoints.insert(name, endpoints);
            }
            _ => self.roots = Some(Arc::new(decode(&name, any)?)),
        }
        Ok(())
    }

    fn miss(&mut self, type_url: &'static str, name: &str, reason: &str) {
        self.versions.remove(&(type_url, name.to_owned()));
        self.refused.remove(&(type_url.to_owned(), name.to_owned()));
        let (name, reason) = (name.to_owned(), Arc::<str>::from(reason));
        let resources = &mut self.resources;
        match type_url {
            LISTENER => drop(
                resources
                    .listeners
                    .insert(name, ResourceState::Missing(reason)),
            ),
            ROUTE => drop(
                resources
                    .routes
                    .insert(name, ResourceState::Missing(reason)),
            ),
            CLUSTER => drop(
                resources
                    .clusters
                    .insert(name, ResourceState::Missing(reason)),
            ),
            ENDPOINTS => drop(
                resources
                    .endpoints
                    .insert(name, ResourceState::Missing(reason)),
            ),
            // Roots are replaced, never removed: without any, nothing could be verified.
            _ => {}
        }
    }

    /// Holds resources also as they were sent from now on, for [`Store::kept`].
    pub fn keep_bodies(&mut self) {
        self.bodies.get_or_insert_default();
    }

    /// Every accepted resource that is held, as it was sent.
    pub fn kept(&mut self) -> Vec<SavedResource> {
        let (versions, bodies) = (&self.versions, self.bodies.get_or_insert_default());
        bodies.retain(|key, _| versions.contains_key(key));
        let kept = bodies.iter().map(|((type_url, name), any)| SavedResource {
            type_url: (*type_url).to_owned(),
            name: name.clone(),
            version: versions
                .get(&(*type_url, name.clone()))
                .cloned()
                .unwrap_or_default(),
            body: BASE64.encode(&any.value),
        });
        kept.collect()
    }

    /// Drops a resource that is not subscribed any more.
    pub fn forget(&mut self, type_url: &'static str, name: &str) {
        self.versions.remove(&(type_url, name.to_owned()));
        self.refused.remove(&(type_url.to_owned(), name.to_owned()));
        let resources = &mut self.resources;
        match type_url {
            LISTENER => drop(resources.listeners.remove(name)),
            ROUTE => drop(resources.routes.remove(name)),
            CLUSTER => drop(resources.clusters.remove(name)),
            ENDPOINTS => drop(resources.endpoints.remove(name)),
            _ => {}
        }
    }

    /// Names that the accepted resources refer to, by type: the subscriptions required besides the Listeners.
    pub fn referenced_names(&self) -> BTreeMap<&'static str, BTreeSet<String>> {
        let mut routes = BTreeSet::new();
        let mut clusters = BTreeSet::new();
        let named = |config: &RouteConfig, clusters: &mut BTreeSet<String>| {
            clusters.extend(config.clusters().map(str::to_owned));
        };
        for listener in present(&self.resources.listeners) {
            for chain in listener.all_chains() {
                match &chain.filter {
                    Filter::Tcp(cluster) => drop(clusters.insert(cluster.clone())),
                    Filter::HttpInline(config) => named(config, &mut clusters),
                    Filter::HttpNamed(route) => {
                        routes.insert(route.clone());
                    }
                }
            }
        }
        for name in &routes {
            if let Some(ResourceState::Present(config)) = self.resources.routes.get(name) {
                named(config, &mut clusters);
            }
        }
        let present = clusters
            .iter()
            .filter_map(|name| match self.resources.clusters.get(name) {
                Some(ResourceState::Present(cluster)) => eds_name(cluster),
                _ => None,
            });
        let endpoints = present.collect();
        BTreeMap::from([(ROUTE, routes), (CLUSTER, clusters), (ENDPOINTS, endpoints)])
    }

    /// True for types that may change plans themselves, not just the endpoints that they use.
    pub fn shapes_plans(type_url: &str) -> bool {
        type_url != ENDPOINTS && type_url != SECRET
    }
}

fn eds_name(cluster: &Cluster) -> Option<String> {
    match &cluster.discovery {
        Discovery::Eds(name) => Some(name.clone()),
        Discovery::OriginalDst => None,
    }
}

fn present<T>(answers: &HashMap<String, ResourceState<T>>) -> impl Iterator<Item = &Arc<T>> {
    answers.values().filter_map(|answer| match answer {
        ResourceState::Present(value) => Some(value),
        ResourceState::Missing(_) => None,
    })
}

fn refused(type_url: &str, name: &str, version: &str, invalid: Invalid) -> Refused {
    Refused {
        r#type: type_url.to_owned(),
        name: name.to_owned(),
        version: version.to_owned(),
        field: invalid.field,
        reason: invalid.reason,
    }
}

#[cfg(test)]
pub(crate) mod tests;
