//! A log beside tables that know more: what tells them apart, and how long a halt lasts.

use super::cluster::{ALL, Cluster, others};
use super::*;
use crate::group::Recovered;

/// Scenario: a log without the last entries of before goes on, and comes with new ones to the index at which a table was
/// flushed from the lost ones.
/// Guarantees: it is told by its terms that the table is of another log, and from which entry on its own are not there.
#[tokio::test]
async fn a_log_that_grew_past_a_lost_flush_is_not_the_one_that_was_flushed() {
    let machine = Machine::new();
    let (groups, _sink) = machine.start().await;
    let one = write(&groups, "one").await.position.index;
    let flushed_in = groups.homes(&tenant()).remove(0).term();
    groups.close().await;
    let (groups, _sink) = machine.start().await;
    let two = write(&groups, "two").await.position.index;
    let group = groups.homes(&tenant()).remove(0);
    let term = group.term();
    assert!(flushed_in < term && one < two);
    for (index, flushed_in, expected) in
        [(one, flushed_in, true), (two, flushed_in, false), (two, term, true), (two + 9, term, false)]
    {
        assert_eq!(group.may_have_flushed(index, flushed_in), expected, "{index} in term {flushed_in}");
    }
    let last = group.last_entry_until(two, flushed_in).expect("reads");
    assert!((one..two).contains(&last), "{one} {last} {two}");
    assert_eq!(group.last_entry_until(two, term).expect("reads"), two);
    groups.close().await;
}

#[tokio::test]
async fn a_halt_ends_when_the_operator_accepts() {
    let (groups, _sink) = Machine::new().start().await;
    write(&groups, "one").await;
    let group = groups.homes(&tenant()).remove(0);
    group.halt("older".to_owned());
    let refused = group.append(append("two"), None, TIMEOUT).await;
    assert!(matches!(refused, Err(WriteError::Rejected(RejectReason::Halted(_)))), "{refused:?}");
    for accept in [false, true] {
        let recovered = group.recover(accept).await.expect("the leader is here");
        assert_eq!(recovered, Recovered::Halted { reason: "older".to_owned(), done: accept });
        assert_eq!(group.halted().is_none(), accept);
    }
    write(&groups, "two").await;
    assert!(group.unreadable().is_some_and(|reason| reason.contains("new incarnation")));
    groups.close().await;
}

/// Scenario: the leader of a group halts it; another one is elected.
/// Guarantees: the halt was the old leader's, and it is not halted for ever.
#[tokio::test]
async fn a_halt_ends_with_the_leadership_that_found_it() {
    let mut cluster = Cluster::form().await;
    let leader = cluster.leader_among(&ALL).await;
    cluster.group(leader).halt("older".to_owned());
    assert!(cluster.group(leader).halted().is_some());
    cluster.isolate(leader);
    cluster.leader_among(&others(leader)).await;
    cluster.heal();
    cluster.leader_among(&ALL).await;
    assert_eq!(cluster.group(leader).halted(), None);
    cluster.write(leader, "one").await;
    cluster.close().await;
}
