//! What must hold of the nodes' own accounts of themselves (`/api/v1/cluster`), sampled over the run.

use std::collections::BTreeMap;

use serde_json::Value;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// Who said that it leads, by group and term.
    leaders: BTreeMap<(u64, u64), u64>,
    /// Accounts that were looked at.
    samples: u64,
    violations: Vec<String>,
}

impl Invariants {
    /// Looks at one node's account.
    pub(crate) fn sample(&mut self, state: &Value) {
        let Some(node) = state["node"].as_u64() else { return };
        self.samples += 1;
        for group in state["groups"].as_array().into_iter().flatten() {
            let number = |name: &str| group[name].as_u64().unwrap_or(0);
            let (id, term) = (number("group"), number("term"));
            if group["state"] == "leader" {
                let first = *self.leaders.entry((id, term)).or_insert(node);
                if first != node {
                    self.violations.push(format!("group {id} has two leaders in term {term}: {first} and {node}"));
                }
            }
            if number("applied_index") > number("commit_index") {
                self.violations.push(format!("node {node} applied more than is committed in group {id}: {group}"));
            }
            if number("flushed_index") > number("commit_index") {
                self.violations.push(format!("node {node} flushed more than is committed in group {id}: {group}"));
            }
        }
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(node: u64, term: u64, applied: u64) -> Value {
        let group = json!({"group": 1, "term": term, "state": "leader", "applied_index": applied, "commit_index": 5});
        json!({"node": node, "groups": [group]})
    }

    #[test]
    fn two_leaders_of_one_term_and_impossible_indexes_are_found() {
        let mut good = Invariants::default();
        good.sample(&state(1, 1, 5));
        good.sample(&state(1, 1, 5));
        good.sample(&state(2, 2, 5));
        assert!(good.violations().is_empty(), "{:?}", good.violations());
        let mut two = Invariants::default();
        two.sample(&state(1, 1, 5));
        two.sample(&state(2, 1, 5));
        assert!(two.violations()[0].contains("two leaders"));
        let mut ahead = Invariants::default();
        ahead.sample(&state(1, 1, 6));
        assert!(ahead.violations()[0].contains("applied more"));
    }
}
