//! A TraceQL query as a tree. `Display` writes it with every bracket, in a form that parses to the same tree.

use std::fmt;

use regex::Regex;

/// Where an attribute is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The span, else its resource.
    Any,
    Span,
    Resource,
    Event,
    Link,
    Instrumentation,
}

/// What a span or its trace has without attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intrinsic {
    Duration,
    Name,
    Status,
    StatusMessage,
    Kind,
    ChildCount,
    SpanId,
    ParentId,
    /// Whether the span has no parent: `nestedSetParent < 0`, which needs no other span to be known.
    IsRoot,
    RootName,
    RootServiceName,
    TraceDuration,
    TraceId,
    NestedSetLeft,
    NestedSetRight,
    NestedSetParent,
    EventName,
    EventTimeSinceStart,
    LinkTraceId,
    LinkSpanId,
    InstrumentationName,
    InstrumentationVersion,
}

impl Intrinsic {
    /// Spellings; the first is the one that is shown.
    pub(super) const NAMES: &'static [(&'static str, Self)] = &[
        ("duration", Self::Duration),
        ("span:duration", Self::Duration),
        ("name", Self::Name),
        ("span:name", Self::Name),
        ("status", Self::Status),
        ("span:status", Self::Status),
        ("statusMessage", Self::StatusMessage),
        ("span:statusMessage", Self::StatusMessage),
        ("kind", Self::Kind),
        ("span:kind", Self::Kind),
        ("span:childCount", Self::ChildCount),
        ("childCount", Self::ChildCount),
        ("span:id", Self::SpanId),
        ("span:parentID", Self::ParentId),
        ("rootName", Self::RootName),
        ("trace:rootName", Self::RootName),
        ("rootServiceName", Self::RootServiceName),
        ("trace:rootService", Self::RootServiceName),
        ("traceDuration", Self::TraceDuration),
        ("trace:duration", Self::TraceDuration),
        ("trace:id", Self::TraceId),
        ("nestedSetLeft", Self::NestedSetLeft),
        ("nestedSetRight", Self::NestedSetRight),
        ("nestedSetParent", Self::NestedSetParent),
        ("event:name", Self::EventName),
        ("event:timeSinceStart", Self::EventTimeSinceStart),
        ("link:traceID", Self::LinkTraceId),
        ("link:spanID", Self::LinkSpanId),
        ("instrumentation:name", Self::InstrumentationName),
        ("instrumentation:version", Self::InstrumentationVersion),
    ];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, intrinsic)| *intrinsic)
    }

    /// Whether other spans of the trace must be known.
    pub(super) fn needs_trace(self) -> bool {
        matches!(
            self,
            Self::ChildCount
                | Self::RootName
                | Self::RootServiceName
                | Self::TraceDuration
                | Self::NestedSetLeft
                | Self::NestedSetRight
                | Self::NestedSetParent
        )
    }
}

impl fmt::Display for Intrinsic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::IsRoot {
            return f.write_str("nestedSetParent < 0");
        }
        let name = Self::NAMES.iter().find(|(_, intrinsic)| intrinsic == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

/// Something of a span that has a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    Attribute {
        /// Of the parent instead.
        parent: bool,
        scope: Scope,
        name: String,
    },
    Intrinsic(Intrinsic),
}

impl Field {
    pub(super) fn needs_trace(&self) -> bool {
        match self {
            Self::Attribute { parent, .. } => *parent,
            Self::Intrinsic(intrinsic) => intrinsic.needs_trace(),
        }
    }

    /// The key that a span of a result has it under.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Attribute { parent: false, scope: Scope::Event | Scope::Link | Scope::Instrumentation, .. } => {
                self.to_string()
            }
            Self::Attribute { parent: false, name, .. } => name.clone(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intrinsic(intrinsic) => intrinsic.fmt(f),
            Self::Attribute { parent, scope, name } => {
                if *parent {
                    f.write_str("parent")?;
                }
                f.write_str(match (parent, scope) {
                    (_, Scope::Any) => ".",
                    (true, Scope::Span) => ".span.",
                    (true, _) => ".resource.",
                    (false, Scope::Span) => "span.",
                    (false, Scope::Resource) => "resource.",
                    (false, Scope::Event) => "event.",
                    (false, Scope::Link) => "link.",
                    (false, Scope::Instrumentation) => "instrumentation.",
                })?;
                // `.5` is a number.
                let number = !parent && *scope == Scope::Any && name.starts_with(|c: char| c.is_ascii_digit());
                let special = |c: char| super::lexer::ends_name(c) || c == '"' || c == '\\';
                if number || name.chars().any(special) { f.write_str(&quoted(name)) } else { f.write_str(name) }
            }
        }
    }
}

/// Status of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    Unset,
    Ok,
    Error,
}

/// Kind of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Unspecified,
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

impl Status {
    pub const ALL: [Self; 3] = [Self::Error, Self::Ok, Self::Unset];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Unspecified, Self::Internal, Self::Server, Self::Client, Self::Producer, Self::Consumer];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// A value that is written in the query.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Nanoseconds.
    Duration(i64),
    Status(Status),
    Kind(Kind),
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Duration(nanos) => write!(f, "{nanos}ns"),
            Self::Status(status) => f.write_str(status.name()),
            Self::Kind(kind) => f.write_str(kind.name()),
        }
    }
}

/// A text as the lexer reads it.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
    format!("\"{text}\"")
}

/// Operators between values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    And,
    Or,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Power,
}

impl Operator {
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::And => "&&",
            Self::Or => "||",
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Modulo => "%",
            Self::Power => "^",
        }
    }

    /// The same with its sides exchanged.
    pub(super) fn mirrored(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            other => other,
        }
    }

    pub(super) fn compares(self) -> bool {
        use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        matches!(self, Equal | NotEqual | Less | LessOrEqual | Greater | GreaterOrEqual)
    }
}

/// An expression over one span.
#[derive(Debug, Clone)]
pub enum Expr {
    Literal(Literal),
    Field(Field),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary {
        op: Operator,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    /// `left =~ "source"`; the expression is anchored at both ends.
    Match {
        left: Box<Expr>,
        negated: bool,
        source: String,
        regex: Regex,
    },
}

impl Expr {
    /// Calls `visit` for every field in it.
    pub(super) fn fields(&self, visit: &mut impl FnMut(&Field)) {
        match self {
            Self::Literal(_) => {}
            Self::Field(field) => visit(field),
            Self::Not(inner) | Self::Negate(inner) | Self::Match { left: inner, .. } => inner.fields(visit),
            Self::Binary { left, right, .. } => {
                left.fields(visit);
                right.fields(visit);
            }
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(literal) => literal.fmt(f),
            Self::Field(Field::Intrinsic(Intrinsic::IsRoot)) => f.write_str("(nestedSetParent < 0)"),
            Self::Field(field) => field.fmt(f),
            Self::Not(inner) => write!(f, "!({inner})"),
            Self::Negate(inner) => write!(f, "-({inner})"),
            Self::Binary { op, left, right } => write!(f, "({left} {} {right})", op.symbol()),
            Self::Match { left, negated, source, .. } => {
                let op = if *negated { "!~" } else { "=~" };
                write!(f, "({left} {op} {})", Literal::Text(source.clone()))
            }
        }
    }
}

/// How the spans on the right of an operator must relate to those on its left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Child,
    Descendant,
    Parent,
    Ancestor,
    Sibling,
}

/// Which spans a structural operator keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Those on the right that relate to one on the left.
    Plain,
    /// Those on the right that relate to none.
    Negated,
    /// Those on both sides that relate to one on the other.
    Union,
}

/// Operators between spansets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpansetOperator {
    And,
    Or,
    Structural(Form, Relation),
}

impl SpansetOperator {
    pub(super) fn structural(symbol: &str) -> Option<Self> {
        let (form, rest) = match symbol.as_bytes().first()? {
            b'!' => (Form::Negated, &symbol[1..]),
            b'&' => (Form::Union, &symbol[1..]),
            _ => (Form::Plain, symbol),
        };
        let relation = match rest {
            ">" => Relation::Child,
            ">>" => Relation::Descendant,
            "<" => Relation::Parent,
            "<<" => Relation::Ancestor,
            "~" => Relation::Sibling,
            _ => return None,
        };
        Some(Self::Structural(form, relation))
    }
}

impl fmt::Display for SpansetOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And => f.write_str("&&"),
            Self::Or => f.write_str("||"),
            Self::Structural(form, relation) => {
                f.write_str(match form {
                    Form::Plain => "",
                    Form::Negated => "!",
                    Form::Union => "&",
                })?;
                f.write_str(match relation {
                    Relation::Child => ">",
                    Relation::Descendant => ">>",
                    Relation::Parent => "<",
                    Relation::Ancestor => "<<",
                    Relation::Sibling => "~",
                })
            }
        }
    }
}

/// What selects spans of a trace.
#[derive(Debug, Clone)]
pub enum Spanset {
    Filter(Expr),
    /// A pipeline in brackets.
    Pipeline(Vec<Stage>),
    Binary {
        op: SpansetOperator,
        left: Box<Spanset>,
        right: Box<Spanset>,
    },
}

impl fmt::Display for Spanset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(expr) => write!(f, "{{ {expr} }}"),
            Self::Pipeline(stages) => write!(f, "({})", Stages(stages)),
            Self::Binary { op, left, right } => write!(f, "({left} {op} {right})"),
        }
    }
}

/// What is computed from the spans of a spanset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    Count,
    Min,
    Max,
    Avg,
    Sum,
}

/// A number of a spanset.
#[derive(Debug, Clone)]
pub enum Scalar {
    Literal(Literal),
    Aggregate(Aggregate, Option<Expr>),
    Negate(Box<Scalar>),
    Binary { op: Operator, left: Box<Scalar>, right: Box<Scalar> },
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(literal) => literal.fmt(f),
            Self::Negate(inner) => write!(f, "-({inner})"),
            Self::Binary { op, left, right } => write!(f, "({left} {} {right})", op.symbol()),
            Self::Aggregate(aggregate, of) => {
                let name = match aggregate {
                    Aggregate::Count => "count",
                    Aggregate::Min => "min",
                    Aggregate::Max => "max",
                    Aggregate::Avg => "avg",
                    Aggregate::Sum => "sum",
                };
                match of {
                    Some(of) => write!(f, "{name}({of})"),
                    None => write!(f, "{name}()"),
                }
            }
        }
    }
}

/// One step of a pipeline.
#[derive(Debug, Clone)]
pub enum Stage {
    Spans(Spanset),
    Having { op: Operator, left: Scalar, right: Scalar },
    By(Expr),
    Coalesce,
    Select(Vec<Field>),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spans(spanset) => spanset.fmt(f),
            Self::Having { op, left, right } => write!(f, "{left} {} {right}", op.symbol()),
            Self::By(expr) => write!(f, "by({expr})"),
            Self::Coalesce => f.write_str("coalesce()"),
            Self::Select(fields) => write!(f, "select({})", List(fields)),
        }
    }
}

struct Stages<'a>(&'a [Stage]);

impl fmt::Display for Stages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, stage) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" | ")?;
            }
            stage.fmt(f)?;
        }
        Ok(())
    }
}

struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

/// What makes series of spans.
#[derive(Debug, Clone)]
pub enum Function {
    Rate,
    CountOverTime,
    MinOverTime(Field),
    MaxOverTime(Field),
    AvgOverTime(Field),
    SumOverTime(Field),
    QuantileOverTime(Field, Vec<f64>),
    HistogramOverTime(Field),
    Compare(Box<Comparison>),
}

/// What tells some of the spans from the others.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Spans that are selected; the others are the baseline.
    pub selection: Expr,
    /// Values of each attribute that are shown of each of the two.
    pub top: usize,
    /// When selected spans begin, in nanoseconds since 1970; the start is included, the end is not.
    pub within: Option<(u64, u64)>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ {} }}, {}", self.selection, self.top)?;
        match self.within {
            Some((start, end)) => write!(f, ", {start}, {end}"),
            None => Ok(()),
        }
    }
}

impl Function {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::CountOverTime => "count_over_time",
            Self::MinOverTime(_) => "min_over_time",
            Self::MaxOverTime(_) => "max_over_time",
            Self::AvgOverTime(_) => "avg_over_time",
            Self::SumOverTime(_) => "sum_over_time",
            Self::QuantileOverTime(..) => "quantile_over_time",
            Self::HistogramOverTime(_) => "histogram_over_time",
            Self::Compare(_) => "compare",
        }
    }

    /// What it is computed of.
    pub(super) fn field(&self) -> Option<&Field> {
        match self {
            Self::Rate | Self::CountOverTime | Self::Compare(_) => None,
            Self::MinOverTime(field)
            | Self::MaxOverTime(field)
            | Self::AvgOverTime(field)
            | Self::SumOverTime(field)
            | Self::QuantileOverTime(field, _)
            | Self::HistogramOverTime(field) => Some(field),
        }
    }
}

/// Which series are kept at each moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    Top(usize),
    Bottom(usize),
}

/// The end of a query that asks for series.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub function: Function,
    pub by: Vec<Field>,
    pub ranks: Vec<Rank>,
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.function.name())?;
        if let Some(field) = self.function.field() {
            field.fmt(f)?;
        }
        match &self.function {
            Function::QuantileOverTime(_, quantiles) => {
                quantiles.iter().try_for_each(|quantile| write!(f, ", {quantile:?}"))?;
            }
            Function::Compare(comparison) => comparison.fmt(f)?,
            _ => {}
        }
        f.write_str(")")?;
        if !self.by.is_empty() {
            write!(f, " by({})", List(&self.by))?;
        }
        for rank in &self.ranks {
            match rank {
                Rank::Top(count) => write!(f, " | topk({count})")?,
                Rank::Bottom(count) => write!(f, " | bottomk({count})")?,
            }
        }
        Ok(())
    }
}

/// A whole query.
#[derive(Debug, Clone)]
pub struct Traceql {
    /// As it was written.
    pub source: String,
    pub stages: Vec<Stage>,
    pub metrics: Option<Metrics>,
    pub hints: Vec<(String, Literal)>,
}

impl fmt::Display for Traceql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Stages(&self.stages).fmt(f)?;
        if let Some(metrics) = &self.metrics {
            write!(f, " | {metrics}")?;
        }
        if !self.hints.is_empty() {
            let hints: Vec<String> = self.hints.iter().map(|(name, value)| format!("{name}={value}")).collect();
            write!(f, " with({})", hints.join(", "))?;
        }
        Ok(())
    }
}
