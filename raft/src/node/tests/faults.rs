//! What crashes, pauses and cut wires must not do: the tests that docs/testing.md lists by name.

use futures::future::join_all;
use signaldb_model::AckLevel;
use signaldb_proto::peer;

use super::cluster::{ALL, Cluster, others, until};
use super::wires::Flow;
use super::*;
use crate::group::Recovered;
use crate::peers::Lane;

/// Scenario: entries are acknowledged at `quorum` and on no disk; all three processes are killed at once.
/// Guarantees: every entry is there, once, and nobody has to recover.
#[tokio::test]
async fn kill_9_of_all_at_quorum_loses_nothing() {
    let mut cluster = Cluster::form().await;
    let texts: Vec<String> = (0..20).map(|n| format!("entry {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut last = 0;
    for (text, n) in texts.iter().zip(ALL.into_iter().cycle()) {
        let written = cluster.write(n, text).await;
        assert_eq!(written.level, AckLevel::Quorum);
        last = written.position.index;
    }
    for n in ALL {
        assert!(cluster.group(n).synced_index() < last, "a disk of node {n} had it: a kill could not lose it");
    }
    ALL.into_iter().for_each(|n| cluster.kill(n));
    cluster.start(&ALL).await;
    assert!(ALL.into_iter().all(|n| !cluster.group(n).is_recovering()));
    cluster.wait_rows(&ALL, &texts).await;
}

/// Scenario: two nodes acknowledge entries that the third does not see. The machine of one of the two crashes and loses
/// them, the other is paused, the third is back: a majority, none of which holds what was acknowledged.
/// Guarantees: the crashed one abstains, so they elect nobody; when the paused one goes on, everything is there.
#[tokio::test]
async fn one_crash_of_a_machine_and_a_pause_lose_nothing() {
    for leader_crashes in [false, true] {
        let mut cluster = Cluster::form().await;
        cluster.write(1, "everywhere").await;
        cluster.wait_rows(&ALL, &["everywhere"]).await;
        let leader = cluster.leader_among(&ALL).await;
        let [other, behind] = others(leader);
        cluster.isolate(behind);
        for text in ["one", "two", "three"] {
            cluster.write(leader, text).await;
        }
        let (crashed, paused) = if leader_crashes { (leader, other) } else { (other, leader) };
        let held = cluster.end(crashed).await;
        cluster.isolate(paused);
        cluster.lose_power(crashed);
        cluster.start(&[crashed]).await;
        let (left, end) = (cluster.end(crashed).await, cluster.end(behind).await);
        assert!(left < held && left <= end, "it lost entries, and by its log it would vote: {left:?} {held:?} {end:?}");
        cluster.connect(crashed, behind);
        cluster.wait_vote(behind, crashed, end).await;
        assert!(!cluster.would_vote(crashed, behind, end).await);
        assert!(cluster.group(crashed).is_recovering());
        cluster.heal();
        cluster.wait_rows(&ALL, &["everywhere", "one", "two", "three"]).await;
        cluster.wait_recovered(crashed).await;
        cluster.close().await;
    }
}

/// Scenario: a follower acknowledges an entry; before that arrives its machine crashes, and it forgets the entry. It comes
/// back, and asks the leader how far it has to get. Then the acknowledgment arrives, counts, and makes the entry
/// committed; the leader is paused, and only the leader holds the entry.
/// Guarantees: the leader named its last entry, not the last committed one; without it the follower elects nobody.
#[tokio::test]
async fn an_acknowledgment_from_before_a_crash_that_arrives_late_loses_nothing() {
    for _ in 0..5 {
        if late_acknowledgment().await {
            return;
        }
    }
    panic!("the acknowledgment never arrived late");
}

/// False when the acknowledgment was not on its way at the moment of the crash, or the entry came again.
async fn late_acknowledgment() -> bool {
    let mut cluster = Cluster::form().await;
    cluster.write(1, "everywhere").await;
    cluster.wait_rows(&ALL, &["everywhere"]).await;
    let leader = cluster.leader_among(&ALL).await;
    let [crashed, behind] = others(leader);
    cluster.isolate(behind);
    cluster.set(leader, crashed, Flow::HoldAnswers);
    let (leading, index) = (cluster.group(leader), cluster.end(leader).await.index + 1);
    let mut late = Box::pin(leading.append(append("late"), None, TIMEOUT));
    tokio::select! {
        written = &mut late => panic!("not without a majority: {written:?}"),
        () = cluster.wait_end(crashed, index) => {}
    }
    // Time for its answer to leave the node. Whether it did shows below.
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.lose_power(crashed);
    cluster.start(&[crashed]).await;
    let request = peer::RecoveryRequest { group: leading.id().0 };
    let asked = cluster.peers(crashed).call(NodeId(leader), Lane::Control, "RecoveryTarget", &request, TIMEOUT);
    let target: peer::RecoveryTarget = asked.await.expect("the leader answers");
    assert_eq!(target.last_index, index);
    assert!(leading.status().commit_index < index, "it is not committed yet");
    cluster.set(leader, crashed, Flow::LastAnswers);
    let arrived = tokio::time::timeout(Duration::from_secs(2), late).await;
    if !matches!(arrived, Ok(Ok(_))) || cluster.end(crashed).await.index >= index {
        return false;
    }
    cluster.isolate(leader);
    let end = cluster.end(behind).await;
    assert!(cluster.end(crashed).await <= end, "by its log it would vote");
    cluster.connect(crashed, behind);
    cluster.wait_vote(behind, crashed, end).await;
    assert!(!cluster.would_vote(crashed, behind, end).await);
    cluster.heal();
    cluster.wait_rows(&ALL, &["everywhere", "late"]).await;
    cluster.wait_recovered(crashed).await;
    cluster.close().await;
    true
}

/// Scenario: a leader's process is killed, or its machine crashes, and it is back before anybody noticed.
/// Guarantees: it does not lead; whoever leads next was elected in a newer term.
#[tokio::test]
async fn no_start_resumes_a_leadership() {
    for crash in [false, true] {
        let mut cluster = Cluster::form().await;
        cluster.write(1, "one").await;
        let leader = cluster.leader_among(&ALL).await;
        let term = cluster.group(leader).term();
        // Nobody may elect meanwhile.
        cluster.isolate_all();
        if crash {
            cluster.lose_power(leader);
        } else {
            cluster.kill(leader);
        }
        cluster.start(&[leader]).await;
        assert!(cluster.term(leader).await >= term);
        cluster.group(leader).recovery_target().await.expect_err("its core leads again");
        assert_eq!(cluster.group(leader).is_recovering(), crash);
        cluster.heal();
        let next = cluster.leader_among(&ALL).await;
        assert!(cluster.group(next).term() > term);
        cluster.wait_rows(&ALL, &["one"]).await;
        cluster.close().await;
    }
}

/// Scenario: all processes are killed, and a follower comes back alone; the vote on its disk names the leader of before.
/// Guarantees: it is not ready by that: not before it hears a leader.
#[tokio::test]
async fn a_leader_that_only_the_vote_on_disk_names_makes_no_node_ready() {
    let mut cluster = Cluster::form().await;
    cluster.write(1, "one").await;
    let leader = cluster.leader_among(&ALL).await;
    cluster.wait_rows(&ALL, &["one"]).await;
    let follower = others(leader)[0];
    ALL.into_iter().for_each(|n| cluster.kill(n));
    cluster.start(&[follower]).await;
    let leaderless = "group 1 has no leader".to_owned();
    // Nobody is there who would vote for it, so that it keeps its vote.
    let named = Some(NodeId(leader));
    until("its vote names the leader of before", || cluster.group(follower).leadership().leader == named).await;
    assert!(cluster.not_ready(follower).contains(&leaderless), "{:?}", cluster.not_ready(follower));
    cluster.start(&others(follower)).await;
    until("it has a leader", || !cluster.not_ready(follower).contains(&leaderless)).await;
    cluster.close().await;
}

/// Scenario: one node's log is damaged at one place after the other; at last it is needed for a majority.
/// Guarantees: nothing is lost, on it or on others.
#[tokio::test]
async fn a_bit_flip_on_a_minority_never_deletes_data() {
    const PLACES: usize = 7;
    let mut cluster = Cluster::form().await;
    let texts: Vec<String> = (0..10 * PLACES).map(|n| format!("entry {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let victim = others(cluster.leader_among(&ALL).await)[0];
    for place in 0..PLACES {
        for text in &texts[10 * place..][..10] {
            cluster.write(victim, text).await;
        }
        cluster.wait_rows(&[victim], &texts[..10 * (place + 1)]).await;
        cluster.kill(victim);
        cluster.flip(victim, 2 * place + 1, 2 * PLACES);
        cluster.start(&[victim]).await;
        cluster.wait_rows(&ALL, &texts[..10 * (place + 1)]).await;
        cluster.wait_recovered(victim).await;
    }
    let leader = cluster.leader_among(&ALL).await;
    let away = if leader == victim { others(victim)[0] } else { leader };
    cluster.isolate(away);
    let left = others(away);
    cluster.leader_among(&left).await;
    cluster.write(victim, "after").await;
    cluster.heal();
    cluster.wait_rows(&ALL, &[&texts[..], &["after"]].concat()).await;
}

/// Scenario: a leader is cut off with entries of its own, another is elected, the first truncates what it alone had; every
/// machine crashes in turn, at a moment when its newest term is in a log that it may lose.
/// Guarantees: whatever a crash takes from the log, and a truncation, no node comes back with an older term than one in
/// which it has voted or acknowledged.
#[tokio::test]
async fn the_term_never_regresses() {
    let mut cluster = Cluster::form().await;
    cluster.write(1, "one").await;
    let first = cluster.leader_among(&ALL).await;
    cluster.isolate(first);
    cluster.strand(first, 3).await;
    let second = cluster.leader_among(&others(first)).await;
    cluster.write(second, "two").await;
    let term = cluster.group(second).term();
    cluster.heal();
    cluster.wait_rows(&ALL, &["one", "two"]).await;
    cluster.wait_same().await;
    assert!(term > 1);
    for (n, text) in ALL.into_iter().zip(["three", "four", "five"]) {
        let leader = cluster.leader_among(&ALL).await;
        cluster.write(leader, text).await;
        // Having acknowledged an entry of its leader, a node has the vote for that leader on disk.
        cluster.wait_same().await;
        let term = cluster.end(n).await.term;
        cluster.isolate(n);
        cluster.lose_power(n);
        cluster.start(&[n]).await;
        assert!(cluster.term(n).await >= term, "node {n} has forgotten term {term}");
        cluster.heal();
        cluster.wait_same().await;
        cluster.wait_recovered(n).await;
    }
    cluster.wait_rows(&ALL, &["one", "two", "three", "four", "five"]).await;
}

/// Scenario: a leader is cut off and goes on writing; the others elect, write, flush and purge. When it is back there is
/// only a snapshot for it, which ends before or behind the tail that nobody else has.
/// Guarantees: the tail goes, state and log are the leader's, also after a kill and after a crash.
#[tokio::test]
async fn a_snapshot_replaces_a_conflicting_tail() {
    for (stranded, newer) in [(30, 3), (2, 30)] {
        let mut cluster = Cluster::form().await;
        cluster.write(1, "common").await;
        cluster.wait_same().await;
        let cut_off = cluster.leader_among(&ALL).await;
        cluster.isolate(cut_off);
        cluster.strand(cut_off, stranded).await;
        let left = others(cut_off);
        let leader = cluster.leader_among(&left).await;
        for n in 0..newer {
            cluster.write(leader, &format!("newer {n}")).await;
        }
        let hi = flush(&cluster, leader).await;
        until("the log is purged", || left.iter().all(|n| cluster.group(*n).purged_index() >= hi)).await;
        cluster.write(leader, "after").await;
        let tail = cluster.end(cut_off).await.index;
        assert_eq!(tail > hi, stranded > newer, "the tail ends at {tail}, the snapshot at {hi}");
        cluster.heal();
        cluster.wait_same().await;
        until("it was given the snapshot", || cluster.group(cut_off).purged_index() >= hi).await;
        cluster.kill(cut_off);
        cluster.start(&[cut_off]).await;
        cluster.wait_same().await;
        cluster.lose_power(cut_off);
        cluster.start(&[cut_off]).await;
        cluster.wait_same().await;
        for text in ["common", "newer 0", "after"] {
            assert!(cluster.write(cut_off, text).await.deduplicated, "{text}");
        }
        assert!(!cluster.write(cut_off, "stranded 0").await.deduplicated);
        cluster.wait_same().await;
        cluster.close().await;
    }
}

/// A cut whose only table is committed; returns its index.
async fn flush(cluster: &Cluster, leader: u64) -> u64 {
    let group = cluster.group(leader);
    let hi = group.propose_index(&Command::FlushCut { at: UnixNanos(0) }, TIMEOUT).await.expect("cuts");
    let table = append("x").table_ids().next().expect("one table");
    let done = Command::FlushCommitted { table, hi, version: 1, location: "file:///v1".into() };
    group.propose_index(&done, TIMEOUT).await.expect("commits");
    hi
}

/// Scenario: a node was away; the wire breaks while the leader sends it what it missed, and it is killed; then the leader is
/// paused.
/// Guarantees: with a part of the log it does not lead, the one with all of it does; later it gets the rest.
#[tokio::test]
async fn a_catch_up_that_ends_midway_makes_no_leader() {
    const ENTRY_BYTES: usize = 256 << 10;
    const ENTRIES: usize = 60;
    let mut cluster = Cluster::form().await;
    cluster.write(1, "everywhere").await;
    cluster.wait_same().await;
    let leader = cluster.leader_among(&ALL).await;
    let [whole, behind] = others(leader);
    cluster.isolate(behind);
    let begun = cluster.end(behind).await.index;
    let leading = cluster.group(leader);
    let large = |n: usize| Append {
        raw_len: ENTRY_BYTES as u32,
        payload: vec![b'x'; ENTRY_BYTES].into(),
        ..append(&format!("large {n}"))
    };
    let writes = join_all((0..ENTRIES).map(|n| leading.append(large(n), None, TIMEOUT))).await;
    assert!(writes.iter().all(Result::is_ok), "{writes:?}");
    cluster.set(behind, leader, Flow::Open);
    for _ in 0..3 {
        // Each time one message of about 4 MiB passes; it may be lost with the connection.
        cluster.wire(leader, behind).ration(6 << 20);
        until("the wire breaks", || cluster.wire(leader, behind).flow() == Flow::Cut).await;
        if cluster.flushed(behind) > begun {
            break;
        }
    }
    until("a part arrives", || cluster.flushed(behind) > begun).await;
    cluster.isolate(behind);
    cluster.kill(behind);
    cluster.start(&[behind]).await;
    let midway = cluster.end(behind).await.index;
    assert!(begun < midway && midway < cluster.end(leader).await.index, "it holds {midway}, after {begun}");
    elects_the_whole_log(&mut cluster, leader, whole, behind).await;
    assert!(ALL.into_iter().all(|n| cluster.rows(n).len() == ENTRIES + 1), "every entry, once");
}

/// Scenario: a node was away; before it hears of what was acknowledged meanwhile the leader is paused, and the node
/// campaigns first.
/// Guarantees: the one that holds everything leads.
#[tokio::test]
async fn a_stale_node_cannot_lead() {
    let mut cluster = Cluster::form().await;
    cluster.write(1, "everywhere").await;
    cluster.wait_same().await;
    let leader = cluster.leader_among(&ALL).await;
    let [whole, behind] = others(leader);
    cluster.isolate(behind);
    cluster.write(leader, "missed").await;
    elects_the_whole_log(&mut cluster, leader, whole, behind).await;
    cluster.wait_rows(&ALL, &["everywhere", "missed"]).await;
}

/// The leader is paused, and whoever is behind may campaign as often as it likes.
async fn elects_the_whole_log(cluster: &mut Cluster, leader: u64, whole: u64, behind: u64) {
    cluster.isolate(leader);
    assert!(cluster.end(behind).await < cluster.end(whole).await);
    cluster.connect(whole, behind);
    for _ in 0..3 {
        cluster.group(behind).raft().trigger().elect(false).await.expect("campaigns");
    }
    assert_eq!(cluster.leader_among(&[whole, behind]).await, whole);
    cluster.heal();
    cluster.wait_same().await;
}

/// Scenario: a node that recovers is killed, stopped, and crashes again, before it could catch up.
/// Guarantees: it recovers until it has caught up, whatever happens in between.
#[tokio::test]
async fn kill_9_while_recovering_stays_recovering() {
    let mut cluster = Cluster::form().await;
    cluster.write(1, "one").await;
    cluster.wait_same().await;
    let victim = others(cluster.leader_among(&ALL).await)[0];
    cluster.isolate(victim);
    cluster.lose_power(victim);
    for end in ["crash", "kill", "kill", "stop", "crash", "kill"] {
        cluster.start(&[victim]).await;
        assert!(cluster.group(victim).is_recovering(), "before the {end}");
        match end {
            "crash" => cluster.lose_power(victim),
            "kill" => cluster.kill(victim),
            _ => cluster.stop(victim).await,
        }
    }
    cluster.heal();
    cluster.start(&[victim]).await;
    cluster.wait_recovered(victim).await;
    cluster.wait_rows(&ALL, &["one"]).await;
    cluster.isolate(victim);
    cluster.stop(victim).await;
    cluster.start(&[victim]).await;
    assert!(!cluster.group(victim).is_recovering());
}

/// Scenario: an operator gives up a voter that alone holds acknowledged entries; it was only out of reach, and comes back.
/// Guarantees: it acknowledges nothing beside what the others lost: it stops, and says why; they go on.
#[tokio::test]
async fn a_voter_that_was_given_up_stops_when_it_comes_back() {
    let mut cluster = Cluster::form().await;
    cluster.write(1, "everywhere").await;
    cluster.wait_rows(&ALL, &["everywhere"]).await;
    let given_up = cluster.leader_among(&ALL).await;
    let [crashed, behind] = others(given_up);
    cluster.isolate(behind);
    for text in ["one", "two", "three"] {
        cluster.write(given_up, text).await;
    }
    cluster.isolate(given_up);
    cluster.lose_power(crashed);
    cluster.start(&[crashed]).await;
    cluster.connect(crashed, behind);
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while !matches!(cluster.group(behind).recover(true).await, Ok(Recovered::Elected { .. })) {
        assert!(tokio::time::Instant::now() < deadline, "nobody was chosen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.leader_among(&[crashed, behind]).await;
    cluster.wait_recovered(crashed).await;
    for text in ["four", "five", "six"] {
        cluster.write(behind, text).await;
    }
    cluster.heal();
    until("it stops", || cluster.peers(given_up).refused().is_some()).await;
    let reason = cluster.peers(given_up).refused().expect("it stops").to_owned();
    assert!(reason.contains("--accept-data-loss"), "{reason}");
    cluster.write(behind, "seven").await;
    cluster.wait_rows(&[crashed, behind], &["everywhere", "four", "five", "six", "seven"]).await;
    cluster.close().await;
}
