//! `FOR TIMESTAMP AS OF` and `FOR VERSION AS OF` as other engines write them, turned into the table functions.
//!
//! | in | out |
//! |---|---|
//! | `traces FOR TIMESTAMP AS OF '...' t` | `table_at('traces', '...') t` |
//! | `d.traces FOR VERSION AS OF 7` | `table_at_snapshot('d.traces', 7) AS "traces"` |
//!
//! It works on tokens, for the parser does not know the clause in the dialect that is spoken here. After `OF` comes a
//! literal, a call, or anything in parentheses. Tokens keep their places, so that errors name the right ones.

use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::{Keyword, RESERVED_FOR_TABLE_ALIAS};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Word};

use super::{TABLE_AT, TABLE_AT_SNAPSHOT, invalid};
use crate::error::QueryError;

/// The tokens with every clause replaced; `None` when there is none, or the text is none that can be read.
///
/// # Errors
/// When a clause has no table before it or no moment behind it.
pub(crate) fn rewrite(sql: &str) -> Result<Option<Vec<TokenWithSpan>>, QueryError> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location() else { return Ok(None) };
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    let mut found = false;
    while let Some(token) = tokens.get(at) {
        let Some((function, moment)) = clause(&tokens, at) else {
            out.push(token.clone());
            at += 1;
            continue;
        };
        found = true;
        let name = take_name(&mut out).ok_or_else(|| misplaced(token, "AS OF follows a table's name"))?;
        let end = end_of_expression(&tokens, moment).ok_or_else(|| {
            let place = significant(&tokens, moment).and_then(|at| tokens.get(at)).unwrap_or(token);
            misplaced(place, "after AS OF comes a literal, a call, or an expression in parentheses")
        })?;
        let mut push = |new: Token| out.push(TokenWithSpan::new(new, token.span));
        push(Token::make_word(function, None));
        push(Token::LParen);
        push(Token::SingleQuotedString(name.join(".")));
        push(Token::Comma);
        out.extend_from_slice(tokens.get(moment..end).unwrap_or_default());
        let mut push = |new: Token| out.push(TokenWithSpan::new(new, token.span));
        push(Token::RParen);
        if let Some(table) = name.last().filter(|_| !has_alias(&tokens, end)) {
            push(Token::make_keyword("AS"));
            push(Token::make_word(table, Some('"')));
        }
        at = end;
    }
    Ok(found.then_some(out))
}

/// One statement of rewritten tokens.
///
/// # Errors
/// What the parser says.
pub(crate) fn parse(tokens: Vec<TokenWithSpan>, recursion_limit: usize) -> Result<Statement, QueryError> {
    let parser = DFParserBuilder::new(tokens).with_recursion_limit(recursion_limit).build();
    let mut statements = parser.and_then(|mut parser| parser.parse_statements()).map_err(QueryError::from)?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(DataFusionError::NotImplemented("one statement at a time is answered".to_owned()).into()),
    }
}

fn misplaced(token: &TokenWithSpan, message: &str) -> QueryError {
    let start = token.span.start;
    QueryError { position: Some((start.line, start.column)), ..invalid(message) }
}

/// The function that a clause which begins at `at` stands for, and where its moment begins.
fn clause(tokens: &[TokenWithSpan], at: usize) -> Option<(&'static str, usize)> {
    (keyword(tokens, at)? == Keyword::FOR).then_some(())?;
    let kind = significant(tokens, at + 1)?;
    let function = match keyword(tokens, kind)? {
        Keyword::TIMESTAMP | Keyword::SYSTEM_TIME => TABLE_AT,
        Keyword::VERSION => TABLE_AT_SNAPSHOT,
        _ => return None,
    };
    let r#as = significant(tokens, kind + 1)?;
    let of = significant(tokens, r#as + 1)?;
    let complete = keyword(tokens, r#as)? == Keyword::AS && keyword(tokens, of)? == Keyword::OF;
    complete.then_some((function, of + 1))
}

fn keyword(tokens: &[TokenWithSpan], at: usize) -> Option<Keyword> {
    match &tokens.get(at)?.token {
        Token::Word(word) => Some(word.keyword),
        _ => None,
    }
}

/// The first token from `from` on that is not white space.
fn significant(tokens: &[TokenWithSpan], from: usize) -> Option<usize> {
    let rest = tokens.get(from..)?;
    rest.iter().position(|token| !matches!(token.token, Token::Whitespace(_))).map(|at| from + at)
}

/// Takes the table's name, as it resolves, from the end of what was written so far.
fn take_name(out: &mut Vec<TokenWithSpan>) -> Option<Vec<String>> {
    while matches!(out.last()?.token, Token::Whitespace(_)) {
        out.pop();
    }
    let mut parts = Vec::new();
    loop {
        let Token::Word(word) = &out.last()?.token else { return None };
        parts.push(normalized(word));
        out.pop();
        if out.last().is_none_or(|token| token.token != Token::Period) {
            break;
        }
        out.pop();
    }
    parts.reverse();
    Some(parts)
}

fn normalized(word: &Word) -> String {
    if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() }
}

/// Where the moment that begins at `from` ends.
fn end_of_expression(tokens: &[TokenWithSpan], from: usize) -> Option<usize> {
    let first = significant(tokens, from)?;
    match &tokens.get(first)?.token {
        Token::SingleQuotedString(_) | Token::Number(..) => Some(first + 1),
        Token::LParen => closing(tokens, first),
        // TIMESTAMP '...', now()
        Token::Word(_) => {
            let second = significant(tokens, first + 1)?;
            match &tokens.get(second)?.token {
                Token::SingleQuotedString(_) => Some(second + 1),
                Token::LParen => closing(tokens, second),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Behind the parenthesis that closes the one at `open`.
fn closing(tokens: &[TokenWithSpan], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

fn has_alias(tokens: &[TokenWithSpan], from: usize) -> bool {
    match significant(tokens, from).and_then(|at| tokens.get(at)).map(|token| &token.token) {
        Some(Token::Word(word)) => word.quote_style.is_some() || !RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(sql: &str) -> Option<String> {
        let tokens = rewrite(sql).expect("reads")?;
        let words = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        Some(words.map(|token| token.token.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn clauses_become_functions() {
        for (sql, expected) in [
            (
                "SELECT * FROM traces FOR TIMESTAMP AS OF '2026-01-01' WHERE traces.name = 'x'",
                r#"SELECT * FROM table_at ( 'traces' , '2026-01-01' ) AS "traces" WHERE traces . name = 'x'"#,
            ),
            (
                "select * from Staging.Traces for system_time as of TIMESTAMP '2026-01-01' t join traces on true",
                "select * from table_at ( 'staging.traces' , TIMESTAMP '2026-01-01' ) t join traces on true",
            ),
            (
                "SELECT 1 FROM (SELECT * FROM logs FOR TIMESTAMP AS OF (now() - INTERVAL '1 hour')) AS a",
                r#"SELECT 1 FROM ( SELECT * FROM table_at ( 'logs' , ( now ( ) - INTERVAL '1 hour' ) ) AS "logs" ) AS a"#,
            ),
            (
                "FROM signaldb.\"a-b\".logs FOR VERSION AS OF 12, traces FOR TIMESTAMP AS OF now() AS old",
                r#"FROM table_at_snapshot ( 'signaldb.a-b.logs' , 12 ) AS "logs" , table_at ( 'traces' , now ( ) ) AS old"#,
            ),
        ] {
            assert_eq!(rewritten(sql).as_deref(), Some(expected), "{sql}");
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        for sql in [
            "SELECT substring(name FROM 1 FOR 2) FROM traces",
            "SELECT 'traces FOR VERSION AS OF 1'",
            "SELECT 1 -- FOR VERSION AS OF 1",
            "SELECT 'not closed",
        ] {
            assert_eq!(rewritten(sql), None, "{sql}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_its_place() {
        for (sql, place) in [
            ("SELECT * FROM (SELECT 1) FOR TIMESTAMP AS OF '2026-01-01'", (1, 26)),
            ("SELECT * FROM traces\nFOR VERSION AS OF WHERE true", (2, 19)),
            ("SELECT * FROM traces FOR TIMESTAMP AS OF (now()", (1, 42)),
            ("SELECT * FROM traces FOR TIMESTAMP AS OF", (1, 22)),
        ] {
            let error = rewrite(sql).expect_err("refused");
            assert_eq!(error.position, Some(place), "{sql}: {error}");
        }
    }

    #[test]
    fn rewritten_tokens_parse() {
        let tokens = rewrite("SELECT * FROM traces FOR VERSION AS OF 1 WHERE x").expect("reads").expect("has a clause");
        let statement = parse(tokens, 50).expect("parses").to_string();
        assert_eq!(statement, "SELECT * FROM table_at_snapshot('traces', 1) AS \"traces\" WHERE x");
        let two = rewrite("SELECT 1 FROM traces FOR VERSION AS OF 1; SELECT 2").expect("reads").expect("has a clause");
        assert!(parse(two, 50).is_err());
    }
}
