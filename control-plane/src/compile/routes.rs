//! VirtualServices and DestinationRules as the routes and policies of services.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use super::convert::{policy, qualified, rule};
use crate::istio::destination_rule as dr;
use crate::istio::virtual_service as vs;
use crate::istio::{Object, Spec};
use crate::mesh::route::{DestinationRule, Routing, Subset, Target};
use crate::object::Severity;

impl Compiler<'_> {
    pub(super) fn rules(&mut self, objects: &[Arc<Object>]) {
        for object in objects {
            match &object.spec {
                Spec::DestinationRule(spec) => self.destination_rule(object, spec),
                Spec::VirtualService(spec) => self.virtual_service(object, spec),
                _ => {}
            }
        }
    }

    fn destination_rule(&mut self, object: &Object, spec: &dr::DestinationRule) {
        let Some(host) = &spec.host.0 else {
            return self.error(object, "spec.host is required");
        };
        let host = qualified(&host.0, &object.key.namespace);
        let whole = policy(spec.traffic_policy.as_ref(), None);
        let mut subsets = BTreeMap::new();
        for subset in &spec.subsets {
            let own = Subset {
                labels: subset.labels.clone(),
                policy: policy(subset.traffic_policy.as_ref(), Some(&whole)),
            };
            if subsets.insert(subset.name.clone(), own).is_some() {
                return self.error(object, format!("subset {} stands there twice", subset.name));
            }
        }
        let rule = DestinationRule {
            object: object.key.to_string(),
            policy: whole,
            subsets,
        };
        match self.services.get_mut(&host) {
            None => {
                let text = format!("host {host} is no service of the mesh: the rule has no effect");
                self.problem(object, Severity::Warning, text);
            }
            Some(service) => match service.rules.get(&object.key.namespace) {
                Some(other) => {
                    let text = format!("{} is for the same host", other.object);
                    self.error(object, text);
                }
                None => drop(service.rules.insert(object.key.namespace.clone(), rule)),
            },
        }
    }

    fn virtual_service(&mut self, object: &Object, spec: &vs::VirtualService) {
        let mut rules = Vec::new();
        for (i, route) in spec.http.iter().enumerate() {
            match rule(object, i, route) {
                Ok(mut rule) => {
                    rule.targets
                        .iter_mut()
                        .for_each(|target| self.default_port(target));
                    rules.push(rule);
                }
                Err(message) => return self.error(object, format!("http[{i}]: {message}")),
            }
        }
        for host in &spec.hosts {
            let host = qualified(&host.0, &object.key.namespace);
            match self.services.get_mut(&host) {
                None => {
                    let text = format!("host {host} is no service of the mesh: it is not routed");
                    self.problem(object, Severity::Warning, text);
                }
                Some(service) if service.routing.is_some() => {
                    let text = format!("host {host} has a VirtualService already");
                    self.error(object, text);
                }
                Some(service) => {
                    service.routing = Some(Routing {
                        rules: rules.clone(),
                    });
                }
            }
        }
    }

    /// Sets the port of a destination without one, if its service has just one; else it is the dialled port, as in
    /// Istio.
    fn default_port(&self, target: &mut Target) {
        if let (None, Some(service)) = (target.port, self.services.get(&target.host))
            && let [only] = service.ports.as_slice()
        {
            target.port = Some(only.number);
        }
    }
}
