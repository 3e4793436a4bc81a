//! An xDS message as configuration: of each type, any bytes are refused or become a valid value.

use leno_proto::{Any, type_url};
use leno_rules::config::cluster::Cluster;
use leno_rules::config::decode;
use leno_rules::config::endpoints::Assignment;
use leno_rules::config::listener::Listener;
use leno_rules::config::route::RouteConfig;
use leno_rules::config::secret::Roots;

/// Runs one execution.
pub fn run(bytes: &[u8]) {
    let Some((first, value)) = bytes.split_first() else {
        return;
    };
    let any = |type_url: &str| Any {
        type_url: type_url.to_owned(),
        value: value.to_vec(),
    };
    match first % 5 {
        0 => drop(decode::<Cluster>("c", &any(type_url::CLUSTER))),
        1 => drop(decode::<Assignment>("c", &any(type_url::ENDPOINTS))),
        2 => drop(decode::<Listener>("c", &any(type_url::LISTENER))),
        3 => drop(decode::<RouteConfig>("c", &any(type_url::ROUTE))),
        _ => drop(decode::<Roots>("c", &any(type_url::SECRET))),
    }
}
