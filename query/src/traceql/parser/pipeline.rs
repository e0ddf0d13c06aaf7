//! Pipelines: their stages, the numbers of a spanset, what makes series of spans, and hints.

use super::super::ast::{
    Aggregate, Comparison, Expr, Function, Literal, Metrics, Rank, Scalar, Spanset, Stage, Traceql,
};
use super::super::lexer::TokenKind;
use super::{POWER, ParseError, Parser, Type, tightness};

/// Hints that change how a query is sampled or ordered elsewhere; answers here are always exact, newest first.
const HINTS: &[&str] = &["sample", "trace_sample", "span_sample", "exemplars", "most_recent", "extrapolate"];

/// Values of each attribute that `compare()` shows, when it does not say how many, and at most.
const TOP: u64 = 10;
const TOP_MAX: u64 = 1_000;

impl Parser<'_> {
    pub(super) fn query(&mut self) -> Result<Traceql, ParseError> {
        if *self.kind() == TokenKind::End {
            return Err(self.unexpected("a query"));
        }
        let mut stages = vec![self.stage(true)?];
        let mut metrics = None;
        while self.accept("|") {
            if let Some(found) = self.metrics()? {
                metrics = Some(found);
                break;
            }
            stages.push(self.stage(false)?);
        }
        if metrics.is_some() && tightness_of_series(self.kind()) {
            let what = self.kind().describe();
            return Err(self.unsupported(self.at(), format!("{what} on series")));
        }
        let hints = self.hints()?;
        Ok(Traceql { source: self.source.to_owned(), stages, metrics, hints })
    }

    /// Stages up to the closing bracket.
    pub(super) fn pipeline(&mut self) -> Result<Vec<Stage>, ParseError> {
        let mut stages = vec![self.stage(true)?];
        while self.accept("|") {
            let at = self.at();
            if self.metrics()?.is_some() {
                return Err(self.unsupported(at, "arithmetic of series"));
            }
            stages.push(self.stage(false)?);
        }
        Ok(stages)
    }

    fn stage(&mut self, first: bool) -> Result<Stage, ParseError> {
        self.grow()?;
        let at = self.at();
        match self.word() {
            Some("by") => {
                self.next += 1;
                self.expect("(")?;
                let expr = self.expr()?;
                self.expect(")")?;
                Ok(Stage::By(expr))
            }
            Some("coalesce") if !first => {
                self.next += 1;
                self.expect("(")?;
                self.expect(")")?;
                Ok(Stage::Coalesce)
            }
            Some("select") => {
                self.next += 1;
                self.expect("(")?;
                let fields = self.fields()?;
                self.expect(")")?;
                Ok(Stage::Select(fields))
            }
            _ if self.begins_spanset() => Ok(Stage::Spans(self.spanset()?)),
            _ => self.having(at),
        }
    }

    /// Behind its opening brackets a spanset has a filter, or a stage with a name.
    fn begins_spanset(&self) -> bool {
        let brackets = (0..).take_while(|ahead| matches!(self.kind_at(*ahead), TokenKind::Symbol("("))).count();
        match self.kind_at(brackets) {
            TokenKind::Symbol(symbol) => *symbol == "{",
            TokenKind::Word(word) => brackets > 0 && matches!(word.as_str(), "by" | "select"),
            _ => false,
        }
    }

    /// `count() > 2`: a number of the spanset, compared.
    fn having(&mut self, at: usize) -> Result<Stage, ParseError> {
        let left = self.scalar(3)?;
        let op = match self.kind() {
            TokenKind::Symbol(symbol) => tightness(symbol).and_then(|(_, op)| op).filter(|op| op.compares()),
            _ => None,
        };
        let op = op.ok_or_else(|| self.unexpected("a comparison"))?;
        self.next += 1;
        let right = self.scalar(3)?;
        if !has_aggregate(&left) && !has_aggregate(&right) {
            return Err(self.error(at, "one side must be count(), min(), max(), avg() or sum()"));
        }
        Ok(Stage::Having { op, left, right })
    }

    fn scalar(&mut self, tightest: u8) -> Result<Scalar, ParseError> {
        let mut left = self.one_scalar()?;
        while let TokenKind::Symbol(symbol) = self.kind() {
            let Some((tight, Some(op))) = tightness(symbol) else { break };
            if tight < tightest.max(3) {
                break;
            }
            self.grow()?;
            self.next += 1;
            let right = self.scalar(if tight == POWER { tight } else { tight + 1 })?;
            left = Scalar::Binary { op, left: Box::new(left), right: Box::new(right) };
        }
        Ok(left)
    }

    fn one_scalar(&mut self) -> Result<Scalar, ParseError> {
        self.deeper(Self::bare_scalar)
    }

    fn bare_scalar(&mut self) -> Result<Scalar, ParseError> {
        if self.accept("-") {
            return Ok(Scalar::Negate(Box::new(self.one_scalar()?)));
        }
        if self.accept("(") {
            let inner = self.scalar(3)?;
            self.expect(")")?;
            return Ok(inner);
        }
        let literal = match self.kind() {
            TokenKind::Integer(value) => Some(Literal::Int(*value)),
            TokenKind::Float(value) => Some(Literal::Float(*value)),
            TokenKind::Duration(nanos) => Some(Literal::Duration(*nanos)),
            _ => None,
        };
        if let Some(literal) = literal {
            self.next += 1;
            return Ok(Scalar::Literal(literal));
        }
        let aggregate = match self.word() {
            Some("count") => Aggregate::Count,
            Some("min") => Aggregate::Min,
            Some("max") => Aggregate::Max,
            Some("avg") => Aggregate::Avg,
            Some("sum") => Aggregate::Sum,
            _ => return Err(self.unexpected("a filter in {}, an aggregate or a stage of a pipeline")),
        };
        self.next += 1;
        self.expect("(")?;
        let of = if aggregate == Aggregate::Count {
            None
        } else {
            let at = self.at();
            let expr = self.expr()?;
            if !Type::of(&expr).may_be(Type::Number) {
                return Err(self.error(at, format!("an aggregate is of numbers, not {}", Type::of(&expr).name())));
            }
            Some(expr)
        };
        self.expect(")")?;
        Ok(Scalar::Aggregate(aggregate, of))
    }

    /// `rate() by(resource.service.name) | topk(3)`, if that is what follows.
    fn metrics(&mut self) -> Result<Option<Metrics>, ParseError> {
        const FUNCTIONS: &[&str] = &[
            "rate",
            "count_over_time",
            "min_over_time",
            "max_over_time",
            "avg_over_time",
            "sum_over_time",
            "quantile_over_time",
            "histogram_over_time",
            "compare",
        ];
        let Some(name) = self.word().filter(|word| FUNCTIONS.contains(word)).map(str::to_owned) else {
            return Ok(None);
        };
        self.next += 1;
        self.expect("(")?;
        if name == "compare" {
            let function = Function::Compare(Box::new(self.comparison()?));
            self.expect(")")?;
            // It groups by everything.
            return Ok(Some(Metrics { function, by: Vec::new(), ranks: Vec::new() }));
        }
        let function = self.function(&name)?;
        self.expect(")")?;
        let mut by = Vec::new();
        if self.is_word("by") {
            self.next += 1;
            self.expect("(")?;
            by = self.fields()?;
            self.expect(")")?;
        }
        let mut ranks = Vec::new();
        while self.accept("|") {
            ranks.push(self.rank()?);
        }
        Ok(Some(Metrics { function, by, ranks }))
    }

    fn function(&mut self, name: &str) -> Result<Function, ParseError> {
        if name == "rate" {
            return Ok(Function::Rate);
        }
        if name == "count_over_time" {
            return Ok(Function::CountOverTime);
        }
        let at = self.at();
        let field = self.field()?;
        let kind = Type::of(&Expr::Field(field.clone()));
        if !kind.may_be(Type::Number) {
            return Err(self.error(at, format!("{name}() is of numbers, not {}", kind.name())));
        }
        Ok(match name {
            "min_over_time" => Function::MinOverTime(field),
            "max_over_time" => Function::MaxOverTime(field),
            "avg_over_time" => Function::AvgOverTime(field),
            "sum_over_time" => Function::SumOverTime(field),
            "histogram_over_time" => Function::HistogramOverTime(field),
            _ => {
                let mut quantiles = Vec::new();
                while self.accept(",") {
                    self.grow()?;
                    quantiles.push(self.quantile()?);
                }
                if quantiles.is_empty() {
                    return Err(self.unexpected("a quantile between 0 and 1"));
                }
                Function::QuantileOverTime(field, quantiles)
            }
        })
    }

    /// `{ status = error }, 10, 1700000000000000000, 1700000060000000000`; only the filter must be there.
    fn comparison(&mut self) -> Result<Comparison, ParseError> {
        let at = self.at();
        let Spanset::Filter(selection) = self.one_spanset()? else {
            return Err(self.error(at, "compare() selects spans by one filter in braces"));
        };
        let top = if self.accept(",") { self.number_up_to(TOP_MAX)? } else { TOP };
        let mut within = None;
        if self.accept(",") {
            let at = self.at();
            let start = self.number_up_to(i64::MAX as u64)?;
            self.expect(",")?;
            let end = self.number_up_to(i64::MAX as u64)?;
            if end <= start {
                return Err(self.error(at, "the end of a selection must be after its start"));
            }
            within = Some((start, end));
        }
        Ok(Comparison { selection, top: usize::try_from(top).unwrap_or(usize::MAX), within })
    }

    fn number_up_to(&mut self, most: u64) -> Result<u64, ParseError> {
        let number = match self.kind() {
            TokenKind::Integer(number) => u64::try_from(*number).ok().filter(|number| *number > 0 && *number <= most),
            _ => None,
        };
        let number = number.ok_or_else(|| self.unexpected(&format!("a number from 1 to {most}")))?;
        self.next += 1;
        Ok(number)
    }

    fn quantile(&mut self) -> Result<f64, ParseError> {
        let value = match self.kind() {
            TokenKind::Float(value) => Some(*value),
            TokenKind::Integer(value) => Some(*value as f64),
            _ => None,
        };
        let value = value.filter(|value| (0.0..=1.0).contains(value));
        let value = value.ok_or_else(|| self.unexpected("a quantile between 0 and 1"))?;
        self.next += 1;
        Ok(value)
    }

    fn rank(&mut self) -> Result<Rank, ParseError> {
        let top = match self.word() {
            Some("topk") => true,
            Some("bottomk") => false,
            _ => return Err(self.unexpected("topk or bottomk")),
        };
        self.next += 1;
        self.expect("(")?;
        let count = match self.kind() {
            TokenKind::Integer(count) => usize::try_from(*count).ok().filter(|count| *count > 0),
            _ => None,
        };
        let count = count.ok_or_else(|| self.unexpected("a number above 0"))?;
        self.next += 1;
        self.expect(")")?;
        Ok(if top { Rank::Top(count) } else { Rank::Bottom(count) })
    }

    fn hints(&mut self) -> Result<Vec<(String, Literal)>, ParseError> {
        let mut hints = Vec::new();
        if !self.is_word("with") {
            return Ok(hints);
        }
        self.next += 1;
        self.expect("(")?;
        loop {
            let at = self.at();
            let name = self.word().map(str::to_owned).ok_or_else(|| self.unexpected("the name of a hint"))?;
            if !HINTS.contains(&name.as_str()) {
                return Err(self.unsupported(at, format!("the hint {name}")));
            }
            self.next += 1;
            self.expect("=")?;
            match self.operand()? {
                Expr::Literal(value) => hints.push((name, value)),
                other => return Err(self.error(at, format!("{other} is no value for a hint"))),
            }
            if !self.accept(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(hints)
    }
}

/// Whether a token would compute with series.
fn tightness_of_series(kind: &TokenKind) -> bool {
    matches!(kind, TokenKind::Symbol(symbol) if tightness(symbol).is_some())
}

fn has_aggregate(scalar: &Scalar) -> bool {
    match scalar {
        Scalar::Literal(_) => false,
        Scalar::Aggregate(..) => true,
        Scalar::Negate(inner) => has_aggregate(inner),
        Scalar::Binary { left, right, .. } => has_aggregate(left) || has_aggregate(right),
    }
}
