//! Arithmetic of series: `100 * ({ status = error } | rate()) / ({} | rate()) > 5`.
//!
//! Series are in brackets, numbers need none. Numbers alone are computed here: integers stay integers.

use std::collections::BTreeSet;

use super::super::ast::{Body, Function, Literal, Operator, SeriesExpr};
use super::super::lexer::TokenKind;
use super::{ParseError, Parser, tightness};

/// One side of an operator.
enum Side {
    Number(Literal),
    Series(SeriesExpr),
}

impl Parser<'_> {
    /// Whether the query makes series of spans within brackets, and only there.
    pub(super) fn computes_with_series(&self) -> bool {
        let mut within = false;
        for (ahead, depth) in self.depths() {
            if self.pipes_to_series(ahead) {
                if depth == 0 {
                    return false;
                }
                within = true;
            }
        }
        within
    }

    /// Whether what is in the bracket that was just opened makes series of spans itself.
    fn is_series_pipeline(&self) -> bool {
        self.depths()
            .take_while(|(_, depth)| *depth >= 0)
            .any(|(ahead, depth)| depth == 0 && self.pipes_to_series(ahead))
    }

    /// The tokens that follow, and in how many brackets each is; less than none behind a closing one.
    fn depths(&self) -> impl Iterator<Item = (usize, i32)> {
        let ahead = self.tokens.len().saturating_sub(self.next);
        (0..ahead).scan(0_i32, move |depth, ahead| {
            match self.kind_at(ahead) {
                TokenKind::Symbol("(") => *depth += 1,
                TokenKind::Symbol(")") => *depth -= 1,
                _ => {}
            }
            Some((ahead, *depth))
        })
    }

    fn pipes_to_series(&self, ahead: usize) -> bool {
        *self.kind_at(ahead) == TokenKind::Symbol("|") && self.makes_series(ahead + 1)
    }

    pub(super) fn is_arithmetic(&self) -> bool {
        matches!(self.kind(), TokenKind::Symbol("+" | "-" | "*" | "/" | "%" | "^"))
    }

    /// A whole query of it.
    pub(super) fn computed_series(&mut self) -> Result<SeriesExpr, ParseError> {
        let at = self.at();
        match self.side()? {
            Side::Series(series) => Ok(series),
            Side::Number(_) => Err(self.error(at, "numbers alone are no series")),
        }
    }

    /// What is computed, and what is kept of that.
    fn side(&mut self) -> Result<Side, ParseError> {
        let side = self.computed(0)?;
        let at = self.at();
        let kept = self.kept()?;
        match side {
            Side::Series(series) => Ok(Side::Series(series.keeping(kept))),
            Side::Number(_) if !kept.is_empty() => Err(self.error(at, "that goes with series, not with a number")),
            number => Ok(number),
        }
    }

    fn computed(&mut self, loosest: u8) -> Result<Side, ParseError> {
        let mut left = self.deeper(Self::bare_side)?;
        while let Some((tight, op)) = self.operator_of_series().filter(|(tight, _)| *tight >= loosest) {
            let at = self.at();
            self.grow()?;
            self.next += 1;
            let right = self.computed(tight + 1)?;
            left = self.compute(op, left, right, at)?;
        }
        Ok(left)
    }

    fn operator_of_series(&self) -> Option<(u8, Operator)> {
        let TokenKind::Symbol(symbol @ ("+" | "-" | "*" | "/")) = self.kind() else { return None };
        let (tight, op) = tightness(symbol)?;
        Some((tight, op?))
    }

    fn bare_side(&mut self) -> Result<Side, ParseError> {
        let at = self.at();
        if self.accept("-") {
            return match self.deeper(Self::bare_side)? {
                Side::Number(Literal::Int(value)) => Ok(Side::Number(Literal::Int(-value))),
                Side::Number(Literal::Float(value)) => Ok(Side::Number(Literal::Float(-value))),
                _ => Err(self.error(at, "a sign goes with a number: -1 * (...)")),
            };
        }
        if self.accept("(") {
            let side = if self.is_series_pipeline() { Side::Series(self.series_of_spans()?) } else { self.side()? };
            self.expect(")")?;
            return Ok(side);
        }
        let number = match self.kind() {
            TokenKind::Integer(value) => Literal::Int(*value),
            TokenKind::Float(value) => Literal::Float(*value),
            TokenKind::Duration(_) => return Err(self.error(at, "one computes with numbers, not with durations")),
            _ => return Err(self.unexpected("a number, or series in brackets")),
        };
        self.next += 1;
        Ok(Side::Number(number))
    }

    fn series_of_spans(&mut self) -> Result<SeriesExpr, ParseError> {
        let at = self.at();
        match self.body()? {
            Body::Series(SeriesExpr::Spans(spans)) if matches!(spans.metrics.function, Function::Compare(_)) => {
                Err(self.error(at, "compare() goes with no arithmetic, and without brackets"))
            }
            Body::Series(series) => Ok(series),
            Body::Traces(_) => Err(self.unexpected("rate() or the like")),
        }
    }

    fn compute(&self, op: Operator, left: Side, right: Side, at: usize) -> Result<Side, ParseError> {
        let with_number = |of: SeriesExpr, number: Literal, number_first: bool| {
            Ok(Side::Series(SeriesExpr::WithNumber { op, of: Box::new(of), number, number_first }))
        };
        match (left, right) {
            (Side::Number(left), Side::Number(right)) => {
                let number = of_numbers(op, &left, &right);
                let message = || format!("{left} {} {right} is no number, or one out of range", op.symbol());
                number.map(Side::Number).ok_or_else(|| self.error(at, message()))
            }
            (Side::Number(number), Side::Series(of)) => with_number(of, number, true),
            (Side::Series(of), Side::Number(number)) => with_number(of, number, false),
            (Side::Series(left), Side::Series(right)) => {
                let (known, other) = (left.labels(), right.labels());
                if !known.is_empty() && !other.is_empty() && known != other {
                    let list = |labels: BTreeSet<String>| labels.into_iter().collect::<Vec<_>>().join(", ");
                    let message = format!(
                        "series by {} do not go with series by {}: group both sides alike, or one of them alone",
                        list(known),
                        list(other)
                    );
                    return Err(self.error(at, message));
                }
                Ok(Side::Series(SeriesExpr::Between { op, left: Box::new(left), right: Box::new(right) }))
            }
        }
    }
}

/// `1 / 2` is 0, `1.0 / 2` is a half.
fn of_numbers(op: Operator, left: &Literal, right: &Literal) -> Option<Literal> {
    if let (Literal::Int(left), Literal::Int(right)) = (left, right) {
        let value = match op {
            Operator::Add => left.checked_add(*right),
            Operator::Subtract => left.checked_sub(*right),
            Operator::Multiply => left.checked_mul(*right),
            _ => left.checked_div(*right),
        };
        // The least has no opposite: it cannot be written.
        return value.filter(|value| *value != i64::MIN).map(Literal::Int);
    }
    let real = |literal: &Literal| match literal {
        Literal::Int(value) => Some(*value as f64),
        Literal::Float(value) => Some(*value),
        _ => None,
    };
    let (left, right) = (real(left)?, real(right)?);
    let value = match op {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        _ => left / right,
    };
    value.is_finite().then_some(Literal::Float(value))
}
