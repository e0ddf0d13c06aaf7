//! Promises about whatever bytes a client sends as a query. Each function panics where its promise is broken. libFuzzer calls
//! them (`fuzz/`, docs/testing.md), and the tests below with the same seeds.

use datafusion::sql::sqlparser::tokenizer::Token;

use crate::functions::{hex, unhex};
use crate::traceql::Traceql;
use crate::{as_of, parameters};

/// TraceQL is a tree that can be written and read again, or wrong at a place in its text.
pub fn traceql(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let query = match Traceql::parse(text) {
        Ok(query) => query,
        Err(error) => return assert!(is_place(text, error.line, error.column), "{error} is not in {text:?}"),
    };
    let written = query.to_string();
    match Traceql::parse(&written) {
        Ok(again) => {
            let tree = |query: &Traceql| format!("{:?} {:?} {:?}", query.stages, query.metrics, query.hints);
            assert_eq!(tree(&again), tree(&query), "{text:?} is written as {written:?}");
        }
        // It is written with every bracket, and those may be too many.
        Err(error) => assert!(error.message.contains("at most"), "{text:?} is written as {written:?}: {error}"),
    }
}

/// SQL keeps its places while clauses of time travel and question marks are replaced; what is wrong with those is wrong at a
/// place in the text.
pub fn sql(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let is_there = |line: u64, column: u64| is_place(text, line as usize, column as usize);
    let rewritten = as_of::rewrite_clauses(text).and_then(|tokens| parameters::number_question_marks(text, tokens));
    match rewritten {
        Ok(tokens) => {
            for token in tokens.into_iter().flatten() {
                let start = token.span.start;
                assert!(is_there(start.line, start.column), "{token:?} is not in {text:?}");
                let marked = matches!(&token.token, Token::Placeholder(name) if name.starts_with('?'));
                assert!(!marked, "{token:?} of {text:?} has no number");
            }
        }
        Err(error) => {
            let placed = error.position.is_some_and(|(line, column)| is_there(line, column));
            assert!(placed, "{error} is not in {text:?}");
        }
    }
}

/// What reads as an id is written in the same way.
pub fn id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for length in [8, 16] {
        if let Some(id) = unhex(text, length) {
            assert_eq!((hex(&id).as_str(), id.len()), (text, length));
        }
    }
}

/// Whether a text has such a place, counted from 1. The end of a line is one.
fn is_place(text: &str, line: usize, column: usize) -> bool {
    let line = line.checked_sub(1).and_then(|line| text.split('\n').nth(line));
    line.is_some_and(|line| (1..=line.chars().count() + 1).contains(&column))
}

#[cfg(test)]
mod tests;
