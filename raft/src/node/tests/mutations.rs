//! Each thing that the log can be told to do wrong is noticed (docs/testing.md).

use signaldb_model::mutation::{Mutation, assert_caught};

fn check(mutation: Mutation, test: &str, anomaly: &str) {
    assert_caught(mutation, &format!("node::tests::{test}"), anomaly);
}

#[test]
fn an_acknowledgment_before_a_quorum_is_caught() {
    let test = "acknowledged::a_leader_that_is_cut_off_acknowledges_nothing_that_gets_lost";
    // The row before that one may not have left the leader either.
    check(Mutation::AckBeforeQuorum, test, r#"acknowledged and not there: ["cut off""#);
}

#[test]
fn a_gate_that_is_skipped_is_caught() {
    let test = "acknowledged::a_majority_that_lost_what_was_acknowledged_never_leads_without_it";
    check(Mutation::SkipRecoveryGate, test, r#"acknowledged and not there: ["one", "two"]"#);
}

#[test]
fn a_dedup_window_that_is_off_is_caught() {
    let test = "acknowledged::what_is_sent_again_is_there_once";
    check(Mutation::DedupOff, test, r#"there more than once: {"one"}"#);
}

#[test]
fn a_purge_past_the_watermark_is_caught() {
    let test = "acknowledged::rows_of_a_cut_that_no_table_has_survive_a_restart";
    check(Mutation::PurgePastWatermark, test, r#"acknowledged and not there: ["one", "three", "two"]"#);
}

#[test]
fn a_strong_read_without_a_read_index_is_caught() {
    let test = "acknowledged::a_deposed_leader_answers_no_strong_read_without_what_came_after";
    check(Mutation::StaleStrongRead, test, r#"acknowledged and not there: ["after"]"#);
}

#[test]
fn a_leader_that_is_restored_is_caught() {
    check(Mutation::LeaderRestore, "faults::no_start_resumes_a_leadership", "its core leads again");
}
