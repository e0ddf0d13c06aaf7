//! What earlier rounds wrote, read once more at the end of a run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::checker::{Checks, examine};
use crate::history::{self, Operation};
use crate::verdict::LeftOut;
use crate::workload;

use super::{Ledger, Run};

/// How long what earlier rounds wrote is read again at the end of a run.
const AGAIN: Duration = Duration::from_secs(15 * 60);

impl Run {
    /// Reads what earlier rounds wrote, from the nodes and from the tables: nothing that came later may have taken it. What
    /// there was no time for is returned.
    pub(super) async fn look_again(&self, ledger: &mut Ledger) -> Option<LeftOut> {
        let (blackouts, until) = (self.blackouts(), Instant::now() + AGAIN);
        let mut rounds = std::mem::take(&mut ledger.judged).into_iter().enumerate();
        let all = rounds.len();
        while Instant::now() < until {
            let Some((round, (tenants, operations))) = rounds.next() else { break };
            let test = self.test(tenants);
            let keys = history::keys(&operations);
            match Box::pin(workload::last_reads(&test, &keys, self.python.as_deref())).await {
                Ok(missing) => ledger.troubles.extend(missing),
                Err(error) => ledger.troubles.push(format!("{error:#}")),
            }
            let Some(history) = Arc::into_inner(test.history) else {
                ledger.troubles.push(format!("what was read again of round {} is not known", round + 1));
                continue;
            };
            let whole: Vec<Operation> = operations.into_iter().chain(history.into_operations()).collect();
            let (findings, checks) = (examine(&whole, &blackouts), Checks::of(&whole, &blackouts));
            if !(findings.is_sound() && checks.is_sound())
                && let Err(error) = self.store.write_history(round, tenants, &whole)
            {
                ledger.troubles.push(format!("{error:#}"));
            }
            ledger.findings.add_again(findings);
            ledger.checks.add_again(checks);
        }
        let left = rounds.len();
        println!("nodes and tables were read again of {} of {all} rounds", all - left);
        let why = format!("{left} of {all} rounds: there were {} minutes for all of them", AGAIN.as_secs() / 60);
        (left > 0).then(|| LeftOut::checker("reading earlier rounds again", &why))
    }
}
