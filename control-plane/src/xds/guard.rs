//! The inbound Listener of one client: the intended one, or, where the client refuses a change of inbound access, one
//! that lets nothing in. A client that goes on with its last Listener would leave open traffic that was just closed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use leno_proto::leno::Refused;
use leno_proto::type_url::LISTENER;

use crate::translate::INBOUND;

/// Most versions of inbound Listeners that are remembered.
const MAX_KNOWN: usize = 50_000;

/// The guards of inbound Listeners, by the Listeners' versions: of all clients, so that one which reconnects is known
/// by the version that it holds.
#[derive(Debug, Default)]
pub(crate) struct Guards(Mutex<HashMap<String, String>>);

impl Guards {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, version: &str, guard: &str) {
        let mut known = self.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        if known.get(version).is_none_or(|known| known != guard) {
            known.insert(version.to_owned(), guard.to_owned());
        }
    }

    fn get(&self, version: &str) -> Option<String> {
        self.lock().get(version).cloned()
    }
}

/// The state of one client's inbound Listener.
#[derive(Debug, Default)]
pub(crate) struct Guard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The intended version.
    intended: Option<String>,
    /// The reason of its NACK of that version.
    refused: Option<String>,
    /// The version that lets nothing in, and the reason of a NACK of that as well.
    closed: Option<(String, Option<String>)>,
}

impl Guard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the intended `version` of the Listener, with the `guard` in it. True when the client has refused that
    /// version, and is to be closed.
    pub(crate) fn set_intended(&self, guards: &Guards, version: &str, guard: &str) -> bool {
        guards.insert(version, guard);
        let mut state = self.state();
        if state.intended.as_deref() != Some(version) {
            *state = State {
                intended: Some(version.to_owned()),
                ..State::default()
            };
        }
        state.refused.is_some()
    }

    /// Sets the version that lets nothing in.
    pub(crate) fn set_closed_version(&self, version: &str) {
        let mut state = self.state();
        if state
            .closed
            .as_ref()
            .is_none_or(|(known, _)| known != version)
        {
            state.closed = Some((version.to_owned(), None));
        }
    }

    /// Checks the client's NACKs against the version that it `acked` last. True when it is to be closed from now on.
    pub(crate) fn check_nacks(
        &self,
        guards: &Guards,
        refused: &[&Refused],
        took: Option<&str>,
    ) -> bool {
        let mut state = self.state();
        let is_inbound = |r: &&&Refused| r.r#type == LISTENER && r.name == INBOUND;
        let (Some(meant), Some(refused)) =
            (state.intended.clone(), refused.iter().find(is_inbound))
        else {
            return false;
        };
        if let Some((closed, why)) = &mut state.closed
            && *closed == refused.version
        {
            *why = Some(refused.reason.clone());
        }
        let took = took.and_then(|version| guards.get(version));
        // The version that it has holds the intended guard: it goes on with that.
        let is_same = took.is_some() && took == guards.get(&meant);
        if refused.version != meant || is_same {
            return false;
        }
        state.refused.replace(refused.reason.clone()).is_none()
    }

    /// The reason why the client is closed, if it is.
    pub(crate) fn closed(&self) -> Option<String> {
        let state = self.state();
        let why = state.refused.as_ref()?;
        Some(match &state.closed {
            Some((_, Some(again))) => {
                format!(
                    "{why}; AND IT REFUSES TO BE CLOSED, so it goes on with what it had: {again}"
                )
            }
            _ => why.clone(),
        })
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
        let (guards, guard) = (Guards::default(), Guard::default());
        let meant = |version: &str, own: &str| guard.set_intended(&guards, version, own);
        let judge = |refused: &[&Refused], took| guard.check_nacks(&guards, refused, took);
        assert!(!meant("1", "open"));
        assert!(!judge(&[], Some("1")), "it takes the first");
        // What protects stays as it is: the client goes on with what it has.
        assert!(!meant("2", "open"));
        assert!(!judge(&[&refuses("2")], Some("1")) && guard.closed().is_none());
        assert!(!meant("3", "deny"));
        assert!(
            judge(&[&refuses("3")], Some("1")),
            "a change of who gets in"
        );
        assert!(!judge(&[&refuses("3")], Some("1")), "once");
        assert!(meant("3", "deny"), "it is closed");
        guard.set_closed_version("closed");
        assert_eq!(guard.closed().as_deref(), Some("no"));
        // An ACK of the closed Listener says nothing about the intended one.
        assert!(!judge(&[], Some("closed")));
        assert!(meant("3", "deny"));
        assert!(!meant("4", "open"), "another one is tried");
        assert!(!judge(&[], Some("closed")) && guard.closed().is_none());
        // It is refused as well, while the client lets nothing in: that stays so, and is reported.
        assert!(judge(&[&refuses("4")], Some("closed")));
        assert!(meant("4", "open"));
    }

    #[test]
    fn a_client_that_never_took_one_is_closed_and_one_that_comes_back_is_known() {
        let guards = Guards::default();
        let fresh = Guard::default();
        assert!(
            !fresh.check_nacks(&guards, &[], None),
            "nothing was asked for"
        );
        assert!(!fresh.set_intended(&guards, "1", "deny"));
        assert!(fresh.check_nacks(&guards, &[&refuses("1")], None));
        let back = Guard::default();
        assert!(!back.set_intended(&guards, "2", "deny"));
        assert!(
            !back.check_nacks(&guards, &[&refuses("2")], Some("1")),
            "it holds as much"
        );
    }

    #[test]
    fn a_client_that_refuses_to_be_closed_is_not_said_to_be() {
        let (guards, guard) = (Guards::default(), Guard::default());
        assert!(!guard.set_intended(&guards, "1", "deny"));
        assert!(guard.check_nacks(&guards, &[&refuses("1")], None));
        guard.set_closed_version("closed");
        assert!(!guard.check_nacks(&guards, &[&refuses("closed")], None));
        assert!(
            guard
                .closed()
                .expect("told")
                .contains("REFUSES TO BE CLOSED")
        );
    }
}
