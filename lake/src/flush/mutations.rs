//! Each thing that flushes can be told to do wrong is noticed (docs/testing.md).

use signaldb_model::mutation::{Mutation, assert_caught};

const TEST: &str = "flush::exactly_once::a_flush_that_fails_at_any_step_and_is_tried_again_loses_and_doubles_nothing";

#[test]
fn a_flush_that_ignores_the_watermark_is_caught() {
    // Then some are doubled.
    assert_caught(Mutation::FlushWithoutWatermark, TEST, ": 0 rows missing, ");
}

#[test]
fn a_commit_error_that_is_read_as_success_is_caught() {
    // And calls the table a smaller number.
    assert_caught(Mutation::CommitErrorIsSuccess, TEST, "the log calls ");
}
