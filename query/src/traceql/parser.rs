//! TraceQL text to a tree, by recursive descent. What is known to TraceQL but not to us is refused by name.
//!
//! Operators between values, from loose to tight: `&& ||` (equal, from left to right), comparisons, `+ -`, `!`, `* / %`,
//! `^`, a leading minus. Between spansets: `&& ||`, structural ones.

use std::fmt;

use regex::{Regex, RegexBuilder};

use super::ast::{
    Expr, Field, Intrinsic, Kind, Literal, Operator, Scope, Spanset, SpansetOperator, Stage, Status, Traceql,
};
use super::lexer::{Token, TokenKind, tokens};

mod pipeline;

/// Longest query, in bytes.
const QUERY_BYTES_MAX: usize = 64 << 10;
/// Operators, brackets, stages, and fields and quantiles of lists. A chain of operators is a tree of that depth.
const NODES_MAX: usize = 400;
/// Brackets and signs within each other: it bounds the stack that reading takes.
const DEPTH_MAX: usize = 100;
/// What a compiled regular expression may take.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Regular expressions of a query: nobody counts the memory that they take, nor the time that compiling them takes.
const REGEXES_MAX: usize = 16;

/// Text that is no TraceQL, or not one that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    pub message: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// It is TraceQL, but not supported.
    pub unsupported: bool,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, line, column, unsupported } = self;
        let what = if *unsupported { "not supported" } else { "syntax error" };
        write!(f, "invalid TraceQL query: parse error at line {line}, col {column}: {what}: {message}")
    }
}

impl std::error::Error for ParseError {}

impl ParseError {
    pub(super) fn syntax(source: &str, at: usize, message: impl Into<String>) -> Self {
        let before = &source[..at.min(source.len())];
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        Self { message: message.into(), line, column, unsupported: false }
    }

    fn unsupported(source: &str, at: usize, message: impl Into<String>) -> Self {
        Self { unsupported: true, ..Self::syntax(source, at, message) }
    }
}

impl Traceql {
    /// Reads a query.
    ///
    /// # Errors
    /// [`ParseError`] with the position of what is wrong or not supported.
    pub fn parse(source: &str) -> Result<Self, ParseError> {
        if source.len() > QUERY_BYTES_MAX {
            return Err(ParseError::syntax(source, 0, format!("a query has at most {QUERY_BYTES_MAX} bytes")));
        }
        let mut parser = Parser { source, tokens: tokens(source)?, next: 0, nodes: 0, depth: 0, regexes: 0 };
        let query = parser.query()?;
        parser.end()?;
        Ok(query)
    }
}

impl Field {
    /// Reads the name of a field as a path has it: `resource.service.name`, `.x`, `status`. A bare name that is no
    /// intrinsic is an attribute without a scope.
    pub fn parse(name: &str) -> Self {
        if let Some(intrinsic) = Intrinsic::from_name(name) {
            return Self::Intrinsic(intrinsic);
        }
        let scopes = [
            ("span.", Scope::Span),
            ("resource.", Scope::Resource),
            ("event.", Scope::Event),
            ("link.", Scope::Link),
            ("instrumentation.", Scope::Instrumentation),
            (".", Scope::Any),
        ];
        let scoped = scopes.iter().find_map(|(prefix, scope)| Some((*scope, name.strip_prefix(prefix)?)));
        let (scope, name) = scoped.filter(|(_, rest)| !rest.is_empty()).unwrap_or((Scope::Any, name));
        // As in a query, a part of it may be in quotes.
        let plain = name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(name);
        Self::Attribute { parent: false, scope, name: plain.to_owned() }
    }
}

/// What an expression can be, as far as its text tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// An attribute: whatever was sent.
    Any,
    Nil,
    Bool,
    Number,
    Text,
    Status,
    Kind,
}

impl Type {
    fn of_literal(literal: &Literal) -> Self {
        match literal {
            Literal::Nil => Self::Nil,
            Literal::Bool(_) => Self::Bool,
            Literal::Int(_) | Literal::Float(_) | Literal::Duration(_) => Self::Number,
            Literal::Text(_) => Self::Text,
            Literal::Status(_) => Self::Status,
            Literal::Kind(_) => Self::Kind,
        }
    }

    fn of_intrinsic(intrinsic: Intrinsic) -> Self {
        use Intrinsic::{
            ChildCount, Duration, EventTimeSinceStart, IsRoot, Kind, NestedSetLeft, NestedSetParent, NestedSetRight,
            Status, TraceDuration,
        };
        match intrinsic {
            Duration | ChildCount | TraceDuration | NestedSetLeft | NestedSetRight | NestedSetParent
            | EventTimeSinceStart => Self::Number,
            Status => Self::Status,
            Kind => Self::Kind,
            IsRoot => Self::Bool,
            _ => Self::Text,
        }
    }

    fn of(expr: &Expr) -> Self {
        match expr {
            Expr::Literal(literal) => Self::of_literal(literal),
            Expr::Field(Field::Intrinsic(intrinsic)) => Self::of_intrinsic(*intrinsic),
            Expr::Field(Field::Attribute { .. }) => Self::Any,
            Expr::Not(_) | Expr::Match { .. } => Self::Bool,
            Expr::Negate(_) => Self::Number,
            Expr::Binary { op: Operator::And | Operator::Or, .. } => Self::Bool,
            Expr::Binary { op, .. } if op.compares() => Self::Bool,
            Expr::Binary { .. } => Self::Number,
        }
    }

    fn may_be(self, other: Self) -> bool {
        self == Self::Any || other == Self::Any || self == other
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "an attribute",
            Self::Nil => "nil",
            Self::Bool => "a boolean",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Status => "a status",
            Self::Kind => "a kind",
        }
    }
}

/// Whether the operator takes such sides; else why not.
fn check(op: Operator, left: Type, right: Type) -> Result<(), String> {
    let refuse = || Err(format!("{} does not go with {} and {}", op.symbol(), left.name(), right.name()));
    match op {
        Operator::And | Operator::Or => {
            if left.may_be(Type::Bool) && right.may_be(Type::Bool) {
                Ok(())
            } else {
                refuse()
            }
        }
        // Anything may be there or not.
        Operator::Equal | Operator::NotEqual if left == Type::Nil || right == Type::Nil => Ok(()),
        Operator::Equal | Operator::NotEqual => {
            if left.may_be(right) {
                Ok(())
            } else {
                refuse()
            }
        }
        _ if op.compares() => {
            let ordered = |kind: Type| matches!(kind, Type::Any | Type::Number | Type::Text);
            if left.may_be(right) && ordered(left) && ordered(right) { Ok(()) } else { refuse() }
        }
        _ => {
            if left.may_be(Type::Number) && right.may_be(Type::Number) {
                Ok(())
            } else {
                refuse()
            }
        }
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
    nodes: usize,
    depth: usize,
    regexes: usize,
}

/// How tight the operators are, from 1.
fn tightness(symbol: &str) -> Option<(u8, Option<Operator>)> {
    Some(match symbol {
        "&&" => (1, Some(Operator::And)),
        "||" => (1, Some(Operator::Or)),
        "=" => (2, Some(Operator::Equal)),
        "!=" => (2, Some(Operator::NotEqual)),
        "<" => (2, Some(Operator::Less)),
        "<=" => (2, Some(Operator::LessOrEqual)),
        ">" => (2, Some(Operator::Greater)),
        ">=" => (2, Some(Operator::GreaterOrEqual)),
        // Regular expressions.
        "=~" | "!~" => (2, None),
        "+" => (3, Some(Operator::Add)),
        "-" => (3, Some(Operator::Subtract)),
        "*" => (4, Some(Operator::Multiply)),
        "/" => (4, Some(Operator::Divide)),
        "%" => (4, Some(Operator::Modulo)),
        "^" => (5, Some(Operator::Power)),
        _ => return None,
    })
}

const PRODUCTS: u8 = 4;
const POWER: u8 = 5;

impl Parser<'_> {
    fn kind(&self) -> &TokenKind {
        self.kind_at(0)
    }

    fn kind_at(&self, ahead: usize) -> &TokenKind {
        self.tokens.get(self.next + ahead).map_or(&TokenKind::End, |token| &token.kind)
    }

    /// Where the next token begins.
    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.source.len(), |token| token.at)
    }

    fn error(&self, at: usize, message: impl Into<String>) -> ParseError {
        ParseError::syntax(self.source, at, message)
    }

    fn unsupported(&self, at: usize, message: impl Into<String>) -> ParseError {
        ParseError::unsupported(self.source, at, message)
    }

    fn unexpected(&self, expected: &str) -> ParseError {
        self.error(self.at(), format!("unexpected {}, expected {expected}", self.kind().describe()))
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.kind(), TokenKind::Symbol(found) if *found == symbol)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.kind(), TokenKind::Word(found) if found == word)
    }

    fn accept(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), ParseError> {
        if self.accept(symbol) { Ok(()) } else { Err(self.unexpected(symbol)) }
    }

    fn word(&self) -> Option<&str> {
        match self.kind() {
            TokenKind::Word(word) => Some(word),
            _ => None,
        }
    }

    fn end(&self) -> Result<(), ParseError> {
        if *self.kind() == TokenKind::End { Ok(()) } else { Err(self.unexpected("the end of the query")) }
    }

    /// Counts a node of the tree.
    fn grow(&mut self) -> Result<(), ParseError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.error(self.at(), format!("a query has at most {NODES_MAX} operators and brackets")));
        }
        Ok(())
    }

    /// Reads what is one level deeper.
    fn deeper<T>(&mut self, read: fn(&mut Self) -> Result<T, ParseError>) -> Result<T, ParseError> {
        self.grow()?;
        if self.depth >= DEPTH_MAX {
            return Err(self.error(self.at(), format!("brackets and signs are at most {DEPTH_MAX} deep")));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn spanset(&mut self) -> Result<Spanset, ParseError> {
        let mut left = self.related_spansets()?;
        loop {
            let op = match self.kind() {
                TokenKind::Symbol("&&") => SpansetOperator::And,
                TokenKind::Symbol("||") => SpansetOperator::Or,
                _ => return Ok(left),
            };
            self.grow()?;
            self.next += 1;
            let right = self.related_spansets()?;
            left = Spanset::Binary { op, left: Box::new(left), right: Box::new(right) };
        }
    }

    fn related_spansets(&mut self) -> Result<Spanset, ParseError> {
        let mut left = self.one_spanset()?;
        loop {
            let op = match self.kind() {
                TokenKind::Symbol(symbol) => SpansetOperator::structural(symbol),
                _ => None,
            };
            let Some(op) = op else { return Ok(left) };
            self.grow()?;
            self.next += 1;
            let right = self.one_spanset()?;
            left = Spanset::Binary { op, left: Box::new(left), right: Box::new(right) };
        }
    }

    fn one_spanset(&mut self) -> Result<Spanset, ParseError> {
        self.deeper(Self::bare_spanset)
    }

    fn bare_spanset(&mut self) -> Result<Spanset, ParseError> {
        if self.accept("{") {
            if self.accept("}") {
                return Ok(Spanset::Filter(Expr::Literal(Literal::Bool(true))));
            }
            let at = self.at();
            let expr = self.expr()?;
            if !Type::of(&expr).may_be(Type::Bool) {
                let message = format!("a filter is a condition, not {}", Type::of(&expr).name());
                return Err(self.error(at, message));
            }
            self.expect("}")?;
            return Ok(Spanset::Filter(expr));
        }
        if !self.accept("(") {
            return Err(self.unexpected("{ or ("));
        }
        let mut stages = self.pipeline()?;
        self.expect(")")?;
        Ok(match stages.pop() {
            Some(Stage::Spans(spanset)) if stages.is_empty() => spanset,
            last => Spanset::Pipeline(stages.into_iter().chain(last).collect()),
        })
    }

    fn expr(&mut self) -> Result<Expr, ParseError> {
        self.binary(1)
    }

    fn binary(&mut self, loosest: u8) -> Result<Expr, ParseError> {
        let mut left = self.unary()?;
        loop {
            let TokenKind::Symbol(symbol) = self.kind() else { return Ok(left) };
            let symbol = *symbol;
            let Some((tight, op)) = tightness(symbol).filter(|(tight, _)| *tight >= loosest) else { return Ok(left) };
            let at = self.at();
            self.grow()?;
            self.next += 1;
            let right_at = self.at();
            // Only powers group from the right.
            let right = self.binary(if tight == POWER { tight } else { tight + 1 })?;
            left = match op {
                Some(op) => self.combine(op, left, right, at)?,
                None => self.matching(left, symbol == "!~", right, at, right_at)?,
            };
        }
    }

    fn combine(&self, op: Operator, left: Expr, right: Expr, at: usize) -> Result<Expr, ParseError> {
        check(op, Type::of(&left), Type::of(&right)).map_err(|message| self.error(at, message))?;
        Ok(match (op, &left, &right) {
            (
                Operator::Less,
                Expr::Field(Field::Intrinsic(Intrinsic::NestedSetParent)),
                Expr::Literal(Literal::Int(0)),
            )
            | (
                Operator::Greater,
                Expr::Literal(Literal::Int(0)),
                Expr::Field(Field::Intrinsic(Intrinsic::NestedSetParent)),
            ) => Expr::Field(Field::Intrinsic(Intrinsic::IsRoot)),
            _ => Expr::Binary { op, left: Box::new(left), right: Box::new(right) },
        })
    }

    fn matching(
        &mut self,
        left: Expr,
        negated: bool,
        right: Expr,
        at: usize,
        right_at: usize,
    ) -> Result<Expr, ParseError> {
        let Expr::Literal(Literal::Text(source)) = right else {
            return Err(self.error(right_at, "a regular expression is a text"));
        };
        if !Type::of(&left).may_be(Type::Text) {
            let message = format!("a regular expression goes with a text, not {}", Type::of(&left).name());
            return Err(self.error(at, message));
        }
        self.regexes += 1;
        if self.regexes > REGEXES_MAX {
            return Err(self.error(right_at, format!("a query has at most {REGEXES_MAX} regular expressions")));
        }
        let regex = anchored(&source).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim().to_owned();
            self.error(right_at, format!("bad regular expression: {reason}"))
        })?;
        Ok(Expr::Match { left: Box::new(left), negated, source, regex })
    }

    fn unary(&mut self) -> Result<Expr, ParseError> {
        self.deeper(Self::bare_unary)
    }

    fn bare_unary(&mut self) -> Result<Expr, ParseError> {
        let at = self.at();
        if self.accept("!") {
            let inner = self.binary(PRODUCTS)?;
            if !Type::of(&inner).may_be(Type::Bool) {
                return Err(self.error(at, format!("! does not go with {}", Type::of(&inner).name())));
            }
            return Ok(Expr::Not(Box::new(inner)));
        }
        if self.accept("-") {
            let inner = self.unary()?;
            if !Type::of(&inner).may_be(Type::Number) {
                return Err(self.error(at, format!("- does not go with {}", Type::of(&inner).name())));
            }
            return Ok(match inner {
                Expr::Literal(Literal::Int(value)) => Expr::Literal(Literal::Int(-value)),
                Expr::Literal(Literal::Float(value)) => Expr::Literal(Literal::Float(-value)),
                Expr::Literal(Literal::Duration(nanos)) => Expr::Literal(Literal::Duration(-nanos)),
                inner => Expr::Negate(Box::new(inner)),
            });
        }
        if self.accept("(") {
            let inner = self.expr()?;
            self.expect(")")?;
            return Ok(inner);
        }
        self.operand()
    }

    fn operand(&mut self) -> Result<Expr, ParseError> {
        let literal = match self.kind() {
            TokenKind::Integer(value) => Some(Literal::Int(*value)),
            TokenKind::Float(value) => Some(Literal::Float(*value)),
            TokenKind::Duration(nanos) => Some(Literal::Duration(*nanos)),
            TokenKind::Text(text) => Some(Literal::Text(text.clone())),
            TokenKind::Word(word) => keyword(word),
            _ => None,
        };
        if let Some(literal) = literal {
            self.next += 1;
            return Ok(Expr::Literal(literal));
        }
        Ok(Expr::Field(self.field()?))
    }

    fn fields(&mut self) -> Result<Vec<Field>, ParseError> {
        let mut fields = vec![self.field()?];
        while self.accept(",") {
            self.grow()?;
            fields.push(self.field()?);
        }
        Ok(fields)
    }

    fn field(&mut self) -> Result<Field, ParseError> {
        let at = self.at();
        let field = match self.kind() {
            TokenKind::Attribute(scope, name) => attribute(scope, name),
            TokenKind::Word(word) if word == "parent" => {
                return Err(self.unsupported(at, "parent without an attribute; use nestedSetParent < 0 for roots"));
            }
            TokenKind::Word(word) => Intrinsic::from_name(word).map(Field::Intrinsic),
            TokenKind::Scoped(scope, name) => Intrinsic::from_name(&format!("{scope}:{name}")).map(Field::Intrinsic),
            _ => None,
        };
        let field = field.ok_or_else(|| self.unexpected("an attribute, an intrinsic or a value"))?;
        self.next += 1;
        Ok(field)
    }
}

/// The expression has to match the whole text.
fn anchored(source: &str) -> Result<Regex, regex::Error> {
    // By itself first: what would only be right within the group is wrong.
    RegexBuilder::new(source).size_limit(REGEX_BYTES_MAX).build()?;
    RegexBuilder::new(&format!("^(?:{source})$")).size_limit(REGEX_BYTES_MAX).build()
}

fn keyword(word: &str) -> Option<Literal> {
    let status = Status::ALL.into_iter().find(|status| status.name() == word).map(Literal::Status);
    let kind = || Kind::ALL.into_iter().find(|kind| kind.name() == word).map(Literal::Kind);
    match word {
        "true" => Some(Literal::Bool(true)),
        "false" => Some(Literal::Bool(false)),
        "nil" => Some(Literal::Nil),
        _ => status.or_else(kind),
    }
}

fn attribute(scope: &str, name: &str) -> Option<Field> {
    let attribute = |parent, scope, name: &str| Field::Attribute { parent, scope, name: name.to_owned() };
    Some(match scope {
        "" => attribute(false, Scope::Any, name),
        "span" => attribute(false, Scope::Span, name),
        "resource" => attribute(false, Scope::Resource, name),
        "event" => attribute(false, Scope::Event, name),
        "link" => attribute(false, Scope::Link, name),
        "instrumentation" => attribute(false, Scope::Instrumentation, name),
        "parent" => match (name.strip_prefix("span."), name.strip_prefix("resource.")) {
            (Some(rest), _) => attribute(true, Scope::Span, rest),
            (_, Some(rest)) => attribute(true, Scope::Resource, rest),
            _ => attribute(true, Scope::Any, name),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
