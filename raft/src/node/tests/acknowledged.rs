//! What clients were told, compared with what the group then has: nothing acknowledged is lost, nothing is stored twice.

use tokio::time::{sleep, timeout};

use super::cluster::{ALL, Cluster, others, until};
use super::*;

/// How long a client waits for an answer that may never come.
const PATIENCE: Duration = Duration::from_secs(1);
/// Long enough for some elections, and for what must not come of them.
const ELECTIONS: Duration = Duration::from_secs(4);

/// The writes that were acknowledged.
#[derive(Debug, Default)]
struct Told(BTreeSet<String>);

impl Told {
    /// A client writes at a node, and is told so or not.
    async fn write(&mut self, group: &Group, text: &str) {
        if group.append(append(text), None, PATIENCE).await.is_ok() {
            self.0.insert(text.to_owned());
        }
    }

    /// The same, where there is nothing in the way.
    async fn written(&mut self, group: &Group, text: &str) {
        group.append(append(text), None, TIMEOUT).await.expect("commits");
        self.0.insert(text.to_owned());
    }

    fn compare(&self, rows: &[String]) {
        let count = |text: &String| rows.iter().filter(|row| *row == text).count();
        let lost: Vec<&String> = self.0.iter().filter(|text| count(text) == 0).collect();
        let twice: BTreeSet<&String> = rows.iter().filter(|row| count(row) > 1).collect();
        assert!(
            lost.is_empty() && twice.is_empty(),
            "acknowledged and not there: {lost:?}; there more than once: {twice:?}; all rows: {rows:?}"
        );
    }
}

/// What a node has once it has applied everything before a write that it acknowledges now, as the leader.
async fn rows_now(cluster: &Cluster, told: &mut Told, leader: u64) -> Vec<String> {
    told.written(&cluster.group(leader), "at last").await;
    until("the leader applies it", || cluster.rows(leader).iter().any(|row| row == "at last")).await;
    cluster.rows(leader)
}

/// What a strong read at node `n` shows.
async fn strong_read(cluster: &Cluster, n: u64) -> Result<Vec<String>, ReadError> {
    let group = cluster.group(n);
    let index = group.read_index_here().await?;
    group.wait_applied(index, TIMEOUT).await?;
    Ok(cluster.rows(n))
}

/// Scenario: a leader is cut off; a client writes there, and another one at the leader that the others elect.
/// Guarantees: whatever a client was told is true when all are together again.
#[tokio::test]
async fn a_leader_that_is_cut_off_acknowledges_nothing_that_gets_lost() {
    let (mut cluster, mut told) = (Cluster::form().await, Told::default());
    let cut_off = cluster.leader_among(&ALL).await;
    told.written(&cluster.group(cut_off), "everywhere").await;
    cluster.isolate(cut_off);
    told.write(&cluster.group(cut_off), "cut off").await;
    let next = cluster.leader_among(&others(cut_off)).await;
    told.written(&cluster.group(next), "after").await;
    cluster.heal();
    let leader = cluster.leader_among(&ALL).await;
    let rows = rows_now(&cluster, &mut told, leader).await;
    told.compare(&rows);
    cluster.close().await;
}

/// Scenario: two nodes acknowledge entries that the third does not see; the machine of one of the two crashes and loses
/// them, and the other is out of reach. The crashed one and the third, a majority, are left to themselves.
/// Guarantees: if they elect a leader, it has what was acknowledged.
#[tokio::test]
async fn a_majority_that_lost_what_was_acknowledged_never_leads_without_it() {
    let (mut cluster, mut told) = (Cluster::form().await, Told::default());
    let away = cluster.leader_among(&ALL).await;
    told.written(&cluster.group(away), "everywhere").await;
    cluster.wait_same().await;
    let [crashed, behind] = others(away);
    cluster.isolate(behind);
    for text in ["one", "two"] {
        told.written(&cluster.group(away), text).await;
    }
    cluster.isolate(away);
    cluster.lose_power(crashed);
    cluster.start(&[crashed]).await;
    assert!(cluster.end(crashed).await < cluster.end(away).await, "it lost entries");
    cluster.connect(crashed, behind);
    if let Ok(leader) = timeout(ELECTIONS, cluster.leader_among(&[crashed, behind])).await {
        let rows = rows_now(&cluster, &mut told, leader).await;
        told.compare(&rows);
    }
    cluster.heal();
    let leader = cluster.leader_among(&ALL).await;
    let rows = rows_now(&cluster, &mut told, leader).await;
    told.compare(&rows);
    cluster.close().await;
}

/// Scenario: a leader is cut off, the others elect another one, and a client writes there; a second client reads at the
/// first.
/// Guarantees: a strong read that is answered shows what was acknowledged before it.
#[tokio::test]
async fn a_deposed_leader_answers_no_strong_read_without_what_came_after() {
    let (mut cluster, mut told) = (Cluster::form().await, Told::default());
    let deposed = cluster.leader_among(&ALL).await;
    told.written(&cluster.group(deposed), "before").await;
    cluster.isolate(deposed);
    let next = cluster.leader_among(&others(deposed)).await;
    told.written(&cluster.group(next), "after").await;
    if let Ok(Ok(rows)) = timeout(ELECTIONS, strong_read(&cluster, deposed)).await {
        told.compare(&rows);
    }
    told.compare(&strong_read(&cluster, next).await.expect("it leads"));
    cluster.close().await;
}

/// Scenario: clients send what was acknowledged once more, to a node that goes on and to one that was started again.
/// Guarantees: each is there once.
#[tokio::test]
async fn what_is_sent_again_is_there_once() {
    let (machine, mut told) = (Machine::new(), Told::default());
    for _ in 0..2 {
        let (groups, sink) = machine.start().await;
        let group = groups.home(&tenant(), TIMEOUT).await.expect("placed");
        for text in ["one", "two", "one"] {
            told.written(&group, text).await;
        }
        told.compare(&texts(&sink));
        groups.close().await;
    }
}

/// Scenario: a flush has cut, and has brought nothing into a table yet; time passes in which the log could be shortened;
/// the node starts again.
/// Guarantees: every row is there: the snapshot and the log behind it keep to the watermarks of the tables.
#[tokio::test]
async fn rows_of_a_cut_that_no_table_has_survive_a_restart() {
    let (machine, mut told) = (Machine::new(), Told::default());
    let (groups, _sink) = machine.start().await;
    let group = groups.home(&tenant(), TIMEOUT).await.expect("placed");
    for text in ["one", "two", "three"] {
        told.written(&group, text).await;
    }
    group.propose_index(&Command::FlushCut { at: UnixNanos(0) }, TIMEOUT).await.expect("cuts");
    told.written(&group, "four").await;
    let purged = async {
        while group.purged_index() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    // It should not be, and nothing says when it would be.
    drop(timeout(PATIENCE, purged).await);
    groups.close().await;
    let (groups, sink) = machine.start().await;
    told.compare(&texts(&sink));
    groups.close().await;
}
