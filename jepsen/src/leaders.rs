//! Who led which group when, by the nodes' own words.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// A leadership as it was seen: in one term a group has one leader, who leads without a break. Times are nanoseconds since
/// the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Reign {
    pub(crate) group: u64,
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// All leaderships that were seen.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    /// First and last seen, by group, term and node.
    seen: BTreeMap<(u64, u64, u64), (u64, u64)>,
}

impl Leaders {
    /// Looks at a node's account (`/api/v1/cluster`) that came at `at`.
    pub(crate) fn sample(&mut self, at: u64, state: &Value) {
        let Some(node) = state["node"].as_u64() else { return };
        for group in state["groups"].as_array().into_iter().flatten() {
            let (Some(id), Some(term)) = (group["group"].as_u64(), group["term"].as_u64()) else { continue };
            if group["state"] == "leader" {
                let (first, last) = self.seen.entry((id, term, node)).or_insert((at, at));
                (*first, *last) = ((*first).min(at), (*last).max(at));
            }
        }
    }

    /// By group, and the terms of each in their order.
    pub(crate) fn reigns(&self) -> Vec<Reign> {
        let reign = |(&(group, term, node), &(first, last)): (&(u64, u64, u64), &(u64, u64))| Reign {
            group,
            term,
            node,
            first,
            last,
        };
        self.seen.iter().map(reign).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(node: u64, group: u64, term: u64, state: &str) -> Value {
        json!({"node": node, "groups": [{"group": group, "term": term, "state": state}]})
    }

    #[test]
    fn a_leadership_lasts_from_its_first_to_its_last_sample() {
        let mut leaders = Leaders::default();
        for at in [10, 20, 90] {
            leaders.sample(at, &state(1, 0, 1, "leader"));
            leaders.sample(at, &state(2, 0, 1, "follower"));
        }
        leaders.sample(100, &state(3, 0, 2, "leader"));
        leaders.sample(5, &json!({"error": "no"}));
        let reign = |term, node, first, last| Reign { group: 0, term, node, first, last };
        assert_eq!(leaders.reigns(), [reign(1, 1, 10, 90), reign(2, 3, 100, 100)]);
    }

    #[test]
    fn a_deposed_leader_that_does_not_know_it_is_seen_beside_the_new_one() {
        let mut leaders = Leaders::default();
        leaders.sample(10, &state(1, 4, 1, "leader"));
        leaders.sample(20, &state(2, 4, 2, "leader"));
        leaders.sample(30, &state(1, 4, 1, "leader"));
        assert_eq!(leaders.reigns().iter().map(|one| (one.node, one.last)).collect::<Vec<_>>(), [(1, 30), (2, 20)]);
    }
}
