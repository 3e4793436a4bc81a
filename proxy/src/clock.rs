//! What time it is to a worker: it is read once a turn, in which all is done that can be done without waiting. Turns are short,
//! since a worker looks for what has come after a few dozen steps of its tasks, whatever else there is to do.

use std::cell::Cell;

use tokio::time::Instant;

thread_local! {
    /// Whether the thread says when its turns begin, and what time it is in this one, if anybody has asked.
    static TURN: Cell<(bool, Option<Instant>)> = const { Cell::new((false, None)) };
}

/// A turn begins. Threads that don't say so read the clock each time.
pub fn turn() {
    TURN.set((true, None));
}

/// When this turn began, or a moment later.
pub fn now() -> Instant {
    match TURN.get() {
        (_, Some(now)) => now,
        (has_turns, None) => {
            let now = Instant::now();
            TURN.set((has_turns, has_turns.then_some(now)));
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_is_read_once_a_turn_where_there_are_turns() {
        let pass = || tokio::time::advance(Duration::from_secs(1));
        let begun = now();
        pass().await;
        assert_ne!(now(), begun);
        turn();
        let begun = now();
        pass().await;
        assert_eq!(now(), begun);
        turn();
        assert_eq!(now(), begun + Duration::from_secs(1));
    }
}
