//! What lets callers in at one client: the inbound Listener as it is meant, or, where the client refuses a change of who gets
//! in, one that lets nothing in. A client that goes on with what it had would leave open what was just closed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use leno_proto::leno::Refused;
use leno_proto::type_url::LISTENER;

use crate::translate::INBOUND;

/// The state of one client's inbound Listener.
#[derive(Debug, Default)]
pub(super) struct Guard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The Listener that is meant: its version, and that of what protects in it.
    offered: Option<(String, String)>,
    /// What protects in the last one that the client took.
    taken: Option<String>,
    /// The version that it refused, and why, while that is the one that is meant.
    refused: Option<(String, String)>,
}

impl Guard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the Listener is meant to be of this `version`, with this `guard` in it. True when the client refused that,
    /// and is to be closed.
    pub(super) fn is_refused(&self, version: &str, guard: &str) -> bool {
        let mut state = self.state();
        state.offered = Some((version.to_owned(), guard.to_owned()));
        if state.refused.as_ref().is_some_and(|(of, _)| of != version) {
            state.refused = None;
        }
        state.refused.is_some()
    }

    /// Looks at what the client refuses; `is_settled` when it has answered everything. True when it is to be closed from now on.
    pub(super) fn judge(&self, refused: &[&Refused], is_settled: bool) -> bool {
        let mut state = self.state();
        let Some((version, guard)) = state.offered.clone() else {
            return false;
        };
        let is_inbound = |r: &&&Refused| r.r#type == LISTENER && r.name == INBOUND;
        let refused = refused.iter().find(is_inbound);
        match refused.filter(|refused| refused.version == version) {
            Some(_) if state.taken.as_ref() == Some(&guard) => false,
            Some(refused) => {
                let before = state.refused.replace((version, refused.reason.clone()));
                before.is_none()
            }
            None => {
                if is_settled && state.refused.is_none() {
                    state.taken = Some(guard);
                }
                false
            }
        }
    }

    /// Why the client is closed, if it is.
    pub(super) fn closed(&self) -> Option<String> {
        self.state().refused.as_ref().map(|(_, why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(version: &str) -> Refused {
        Refused {
            r#type: LISTENER.to_owned(),
            name: INBOUND.to_owned(),
            version: version.to_owned(),
            reason: "no".to_owned(),
            ..Refused::default()
        }
    }

    #[test]
    fn a_client_that_refuses_who_gets_in_is_closed_until_that_changes() {
        let guard = Guard::default();
        let meant = |version: &str, guards: &str| guard.is_refused(version, guards);
        assert!(!meant("1", "open"));
        assert!(!guard.judge(&[], true), "it takes the first");
        // What protects stays as it is: the client goes on with what it has.
        assert!(!meant("2", "open"));
        assert!(!guard.judge(&[&refuses("2")], true) && guard.closed().is_none());
        assert!(!meant("3", "deny"));
        assert!(
            guard.judge(&[&refuses("3")], true),
            "a change of who gets in"
        );
        assert!(!guard.judge(&[&refuses("3")], true), "once");
        assert!(meant("3", "deny"), "it is closed");
        assert_eq!(guard.closed().as_deref(), Some("no"));
        // An answer to the closed form is no word on the one that is meant.
        assert!(!guard.judge(&[], true));
        assert!(meant("3", "deny"));
        assert!(!meant("4", "deny"), "another one is tried");
        assert!(!guard.judge(&[], true) && guard.closed().is_none());
    }

    #[test]
    fn a_client_that_never_took_one_is_closed_as_well() {
        let guard = Guard::default();
        assert!(!guard.judge(&[], true), "nothing was asked for");
        assert!(!guard.is_refused("1", "deny"));
        assert!(guard.judge(&[&refuses("1")], false));
    }
}
