//! `LIKE` with a constant beginning, so that bounds serve it where texts are views.
//!
//! DataFusion 54 compares the bounds of such a column with plain texts, which no kernel does: that is an error, and nothing
//! would be pruned.
//!
//! | in | out |
//! |---|---|
//! | `name LIKE 'GET /a%'` | `name >= 'GET /a' AND name < 'GET /b'`, texts being ordered by their bytes |
//! | `name LIKE 'GET /a%b'` | `CAST(name AS Utf8) LIKE 'GET /a%b'` |

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::Like;
use datafusion::logical_expr::{Expr, cast, lit};

use crate::rewrite::text;

const WILDCARDS: [char; 3] = ['%', '_', '\\'];

/// The same filter.
///
/// # Errors
/// None but what walking an expression may have.
pub(crate) fn prunable(filter: Expr) -> Result<Expr> {
    let step = |expression: Expr| match &expression {
        Expr::Like(like) => match rewritten(like) {
            Some(rewritten) => Ok(Transformed::yes(rewritten)),
            None => Ok(Transformed::no(expression)),
        },
        _ => Ok(Transformed::no(expression)),
    };
    Ok(filter.transform_up(step)?.data)
}

fn rewritten(like: &Like) -> Option<Expr> {
    // `ESCAPE '\'` says what is so anyway, and DataFusion knows no other.
    let Like { negated: false, expr, pattern, escape_char: None | Some('\\'), case_insensitive: false } = like else {
        return None;
    };
    let (Expr::Column(_), Some(text)) = (expr.as_ref(), text(pattern)) else { return None };
    if text.starts_with(['%', '_']) {
        return None;
    }
    let beginning = text.strip_suffix('%').filter(|beginning| !beginning.contains(WILDCARDS));
    Some(match beginning {
        Some(beginning) => {
            let from = expr.as_ref().clone().gt_eq(lit(beginning));
            match behind(beginning) {
                Some(end) => from.and(expr.as_ref().clone().lt(lit(end))),
                None => from,
            }
        }
        None => cast(expr.as_ref().clone(), DataType::Utf8).like(lit(text)),
    })
}

/// The first text behind all that begin so, if there is one.
fn behind(beginning: &str) -> Option<String> {
    let mut end = beginning.to_owned();
    while let Some(last) = end.pop() {
        // Nothing is between two neighbours: their order is that of their bytes.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::col;

    use super::*;

    #[test]
    fn beginnings_become_ranges() {
        let like = |pattern: &str| prunable(col("name").like(lit(pattern))).expect("walks");
        let range = |from: &str, to: &str| col("name").gt_eq(lit(from)).and(col("name").lt(lit(to)));
        assert_eq!(like("GET /a%"), range("GET /a", "GET /b"));
        assert_eq!(like("\u{d7ff}%"), range("\u{d7ff}", "\u{e000}"), "no character is a half of a pair");
        assert_eq!(like("a\u{10ffff}%"), range("a\u{10ffff}", "b"));
        assert_eq!(like("\u{10ffff}%"), col("name").gt_eq(lit("\u{10ffff}")));
        for pattern in ["a%b", "a_c%", "a\\%b%"] {
            assert_eq!(like(pattern), cast(col("name"), DataType::Utf8).like(lit(pattern)));
        }
        for same in [
            col("name").like(lit("%a")),
            col("name").like(lit("%")),
            col("name").ilike(lit("a%")),
            col("name").not_like(lit("a%")),
            lit("a").like(lit("a%")),
        ] {
            assert_eq!(prunable(same.clone()).expect("walks"), same);
        }
    }
}
