//! Files of statements in the format of sqllogictest: their answers are the same however the work is shared.

use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::object_store::ObjectStoreUrl;

use super::*;
use crate::engine::tests::{At, STORE, session_and_store};

const SPANS: &str = include_str!("spans.slt");

/// A statement and its answer.
#[derive(Debug)]
struct Question<'a> {
    sql: String,
    any_order: bool,
    rows: Vec<&'a str>,
}

fn questions(file: &str) -> Vec<Question<'_>> {
    let mut questions = Vec::new();
    for record in file.split("\n\n") {
        let mut lines = record.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let Some(head) = lines.next() else { continue };
        assert!(head.starts_with("query "), "{head}");
        let sql = lines.by_ref().take_while(|line| *line != "----").collect::<Vec<_>>().join(" ");
        let (any_order, mut rows) = (head.ends_with("rowsort"), lines.collect::<Vec<_>>());
        if any_order {
            rows.sort_unstable();
        }
        questions.push(Question { sql, any_order, rows });
    }
    questions
}

async fn rows_of(context: &SessionContext, question: &Question<'_>) -> Vec<String> {
    let sql = &question.sql;
    let batches = context.sql(sql).await.expect(sql).collect().await.expect(sql);
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in &batches {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>().expect("values have texts");
        let row = |at: usize| columns.iter().map(|column| column.value(at).to_string()).collect::<Vec<_>>().join(" ");
        rows.extend((0..batch.num_rows()).map(row));
    }
    if question.any_order {
        rows.sort_unstable();
    }
    rows
}

/// The same session with datafusion-distributed's own way of dealing out unions on or off: plans that are cut know nothing of it.
fn with_isolation(context: &SessionContext, on: bool) -> SessionContext {
    let mut state = context.state();
    state.config_mut().set_distributed_children_isolator_unions(on).expect("there is such a setting");
    SessionContext::new_with_state(state)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_statements_have_the_same_answers_on_one_node_and_on_several() {
    let questions = questions(SPANS);
    assert!(questions.len() > 20, "the file is not read");
    for parts in [[At::File; 3], [At::File, At::File, At::Memory]] {
        let (local, store) = session_and_store(parts).await;
        let url = ObjectStoreUrl::parse(STORE).expect("a URL");
        let stores = Stores::new(Some((url, store)));
        let mut modes = vec![("here".to_owned(), local.clone())];
        let mut nodes = Vec::new();
        for count in 1..=4 {
            let started = start_nodes(count, &local.state(), &stores, Fault::None, None);
            let spread = started.spread(&local);
            nodes.push(started);
            match count {
                // Nobody to share with, and nothing to set.
                1 => modes.push(("one node".to_owned(), spread)),
                _ => modes.extend([true, false].map(|isolation| {
                    (format!("{count} nodes, isolation {isolation}"), with_isolation(&spread, isolation))
                })),
            }
        }
        for question in &questions {
            for (mode, context) in &modes {
                assert_eq!(rows_of(context, question).await, question.rows, "{parts:?}, {mode}: {}", question.sql);
            }
        }
        let mut spread = 0;
        for question in &questions {
            let plan = answer(&modes[2].1, &format!("EXPLAIN {}", question.sql)).await.expect("explains");
            spread += usize::from(plan.contains("NetworkCoalesceExec"));
        }
        assert!(spread > questions.len() / 2, "{spread} of {} statements", questions.len());
    }
}
