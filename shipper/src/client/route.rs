//! Which aggregator gets what is captured: the first, in this node's order, that is not out of reach for too long.
//!
//! Owns the order and the clock of it; [`Standing`] is pure. Every lane (the client of one aggregator) says how it
//! fares; the route says who is chosen, and when one has been away for so long that another may have its batches.

use std::time::Duration;

use sha1::{Digest as _, Sha1};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::spool::Role;

/// The order of a node's aggregators: by the highest random weight of node and name, so that nodes spread evenly, and
/// one aggregator more or less moves only its share (Thaler and Ravishankar, 1996).
pub fn rendezvous<T>(node: &str, aggregators: &mut [T], name: impl Fn(&T) -> &str) {
    aggregators.sort_by_cached_key(|aggregator| {
        let mut hash = Sha1::new();
        hash.update(node.as_bytes());
        // Neither name has such a byte.
        hash.update([0]);
        hash.update(name(aggregator).as_bytes());
        std::cmp::Reverse(<[u8; 20]>::from(hash.finalize()))
    });
}

/// How an aggregator fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Nobody tries, or it has welcomed this shipper.
    Well,
    /// Tried without success since then.
    Sought(Instant),
    /// Given up: another one has its batches until it is back.
    Away,
}

/// Of all aggregators, in this node's order.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    reach: Vec<Reach>,
    takeover_after: Duration,
}

impl Standing {
    fn new(aggregators: usize, takeover_after: Duration) -> Self {
        Self { reach: vec![Reach::Well; aggregators], takeover_after }
    }

    /// The one that new batches go to. When all are away it is the first; whoever comes back is chosen then.
    pub(super) fn chosen(&self) -> usize {
        self.reach.iter().position(|reach| *reach != Reach::Away).unwrap_or(0)
    }

    pub(super) fn role(&self, index: usize) -> Role {
        match self.reach.get(index) {
            _ if index == self.chosen() => Role::Chosen,
            Some(Reach::Away) if index < self.chosen() || !self.reach.iter().any(|r| *r != Reach::Away) => {
                Role::Returning
            }
            _ => Role::Other,
        }
    }

    /// One that is to be given up now.
    fn overdue(&self, now: Instant) -> Option<usize> {
        (0..self.reach.len()).find(|index| self.due(*index).is_some_and(|due| due <= now))
    }

    /// When the next one is to be given up.
    fn next_due(&self) -> Option<Instant> {
        (0..self.reach.len()).filter_map(|index| self.due(index)).min()
    }

    /// When this one is to be given up, if another one is left.
    fn due(&self, index: usize) -> Option<Instant> {
        let others = self.reach.iter().enumerate().any(|(other, r)| other != index && *r != Reach::Away);
        match self.reach[index] {
            Reach::Sought(since) if others => Some(since + self.takeover_after),
            _ => None,
        }
    }
}

/// Shared by the lanes.
#[derive(Debug)]
pub(super) struct Route {
    standing: watch::Sender<Standing>,
}

impl Route {
    pub(super) fn new(aggregators: usize, takeover_after: Duration) -> Self {
        Self { standing: watch::Sender::new(Standing::new(aggregators, takeover_after)) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(super) fn role(&self, index: usize) -> Role {
        self.standing.borrow().role(index)
    }

    pub(super) fn chosen(&self) -> usize {
        self.standing.borrow().chosen()
    }

    /// A lane tries to connect, or lost its stream.
    pub(super) fn sought(&self, index: usize, now: Instant) {
        self.set(index, |reach| match reach {
            Reach::Well => Reach::Sought(now),
            other => other,
        });
    }

    /// The aggregator welcomed this shipper, or there is nothing to do there.
    pub(super) fn well(&self, index: usize) {
        self.set(index, |_| Reach::Well);
    }

    /// A lane has nothing to do: nobody knows whether the aggregator is up.
    pub(super) fn idle(&self, index: usize) {
        self.set(index, |reach| if reach == Reach::Away { reach } else { Reach::Well });
    }

    /// What was never sent there may go to another one now.
    pub(super) fn away(&self, index: usize) {
        self.set(index, |_| Reach::Away);
    }

    fn set(&self, index: usize, change: impl FnOnce(Reach) -> Reach) {
        self.standing.send_if_modified(|standing| {
            let before = standing.reach[index];
            standing.reach[index] = change(before);
            standing.reach[index] != before
        });
    }

    /// Waits until an aggregator is to be given up, and says which.
    pub(super) async fn overdue(&self) -> usize {
        let mut standing = self.watch();
        loop {
            let (overdue, next) = {
                let standing = standing.borrow_and_update();
                (standing.overdue(Instant::now()), standing.next_due())
            };
            if let Some(index) = overdue {
                return index;
            }
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is here.
                _ = standing.changed() => {}
                () = due => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);

    #[test]
    fn the_first_that_is_not_away_is_chosen() {
        let route = Route::new(3, AFTER);
        assert_eq!((route.chosen(), route.role(0), route.role(1)), (0, Role::Chosen, Role::Other));
        let since = Instant::now();
        route.sought(0, since);
        let given_up = |seconds| route.watch().borrow().clone().overdue(since + Duration::from_secs(seconds));
        assert_eq!((given_up(29), given_up(30)), (None, Some(0)));
        // What is tried again and again is sought since the first time.
        route.sought(0, since + Duration::from_secs(20));
        assert_eq!((given_up(29), given_up(30)), (None, Some(0)));
        route.away(0);
        assert_eq!((route.chosen(), route.role(0)), (1, Role::Returning));
        route.away(1);
        route.sought(2, since);
        assert_eq!((route.chosen(), given_up(1000)), (2, None), "the last one is not given up");
        route.away(2);
        let roles: Vec<_> = (0..3).map(|index| route.role(index)).collect();
        assert_eq!(roles, [Role::Chosen, Role::Returning, Role::Returning]);
        route.well(1);
        assert_eq!((route.chosen(), route.role(0), route.role(2)), (1, Role::Returning, Role::Other));
        route.well(0);
        assert_eq!((route.chosen(), route.role(1)), (0, Role::Other));
        route.idle(2);
        assert_eq!(route.watch().borrow().reach[2], Reach::Away, "not seen again");
    }

    #[tokio::test]
    async fn one_is_given_up_when_its_time_is_over() {
        let after = Duration::from_millis(50);
        let route = Route::new(2, after);
        let since = Instant::now();
        route.sought(0, since);
        assert_eq!(route.overdue().await, 0);
        assert!(since.elapsed() >= after);
        route.away(0);
        // The other one is the last.
        route.sought(1, since);
        assert!(tokio::time::timeout(2 * after, route.overdue()).await.is_err());
        // The first is back: now the other one is overdue at once.
        route.well(0);
        assert_eq!(route.overdue().await, 1);
    }

    #[test]
    fn nodes_spread_and_one_more_moves_only_its_share() {
        let first = |node: usize, names: &[&str]| {
            let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            rendezvous(&format!("node-{node}"), &mut names, |name| name);
            names.swap_remove(0)
        };
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        let mut moved = 0;
        for node in 0..3000 {
            let (three, four) = (first(node, &["a", "b", "c"]), first(node, &["c", "d", "b", "a"]));
            if four != three {
                assert_eq!(four, "d");
                moved += 1;
            }
            *counts.entry(three).or_default() += 1;
        }
        assert!(counts.len() == 3 && counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert!((650..850).contains(&moved), "{moved}");
    }
}
