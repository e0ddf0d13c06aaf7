//! Parameters of a statement: `?`, `$1` or `$name` in the text, values beside it.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::error::{QueryError, QueryErrorKind};

/// Parameters of one statement: `$1000000` must not make a list of a million.
const PARAMETERS_MAX: usize = 1000;

/// Values of a statement's parameters: a column for each of them, a row for each time that the statement runs.
#[derive(Debug, Clone, Default)]
pub struct Parameters(Option<RecordBatch>);

impl Parameters {
    /// The columns are the parameters, in their order, with their names.
    pub fn of_rows(rows: RecordBatch) -> Self {
        Self(Some(rows))
    }

    /// Whether nothing is bound.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|rows| rows.num_columns() == 0)
    }

    /// What each run of the statement has, one row; without parameters it runs once.
    pub(crate) fn runs(self) -> impl Iterator<Item = Self> {
        let count = self.0.as_ref().map_or(1, RecordBatch::num_rows);
        (0..count).map(move |at| Self(self.0.as_ref().map(|rows| rows.slice(at, 1))))
    }

    /// The values of the first run, with their names.
    ///
    /// # Errors
    /// For a row that is not there, or values of a type that no query has.
    fn values(&self) -> Result<Vec<(String, ScalarValue)>, QueryError> {
        let Some(rows) = &self.0 else { return Ok(Vec::new()) };
        let schema = rows.schema();
        let values = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
            if column.is_empty() {
                return Err(invalid("no row of parameters is bound"));
            }
            Ok((field.name().clone(), ScalarValue::try_from_array(column, 0)?))
        });
        values.collect()
    }
}

/// `?` as `$1`, `$2` and so on, which is what the planner knows. `rewritten` are the tokens, if there are some already.
///
/// # Errors
/// When `?` stands beside parameters that have numbers or names: nobody can say which is which.
pub(crate) fn number_question_marks(
    sql: &str,
    rewritten: Option<Vec<TokenWithSpan>>,
) -> Result<Option<Vec<TokenWithSpan>>, QueryError> {
    if !sql.contains('?') {
        return Ok(rewritten);
    }
    let tokens = rewritten.clone().or_else(|| Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().ok());
    // What cannot be read is left to the parser, which says why.
    let Some(mut tokens) = tokens else { return Ok(None) };
    let (mut unnumbered, mut others, mut found) = (0_usize, false, false);
    for token in &mut tokens {
        let Token::Placeholder(name) = &token.token else { continue };
        let marked = name.strip_prefix('?').map(str::to_owned);
        match marked.as_deref() {
            Some("") => unnumbered += 1,
            Some(_) | None => others = true,
        }
        if unnumbered > 0 && others {
            let start = token.span.start;
            let error = invalid("a statement has parameters as ? or as $1 or $name, not both");
            return Err(QueryError { position: Some((start.line, start.column)), ..error });
        }
        if let Some(number) = marked {
            found = true;
            let number = if number.is_empty() { unnumbered.to_string() } else { number };
            token.token = Token::Placeholder(format!("${number}"));
        }
    }
    Ok(if found { Some(tokens) } else { rewritten })
}

/// Which parameters a plan has.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// `$1` up to this one; not each of them has to be used.
    Numbered(usize),
    Named(BTreeSet<String>),
}

impl Wanted {
    fn of(names: impl IntoIterator<Item = String>) -> Result<Self, QueryError> {
        let names: BTreeSet<String> = names.into_iter().map(|name| name.trim_start_matches('$').to_owned()).collect();
        let numbers: Vec<usize> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let highest = numbers.iter().copied().max().unwrap_or(0);
        if highest > PARAMETERS_MAX || names.len() > PARAMETERS_MAX {
            return Err(invalid(format!("a statement has at most {PARAMETERS_MAX} parameters")));
        }
        match (numbers.len(), names.len()) {
            (numbered, all) if numbered == all => Ok(Self::Numbered(highest)),
            (0, _) => Ok(Self::Named(names)),
            _ => Err(invalid("a statement has numbered or named parameters, not both")),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Numbered(highest) => (1..=*highest).map(|number| format!("${number}")).collect(),
            Self::Named(names) => names.iter().map(|name| format!("${name}")).collect(),
        }
    }

    fn values(&self, bound: &[(String, ScalarValue)]) -> Result<ParamValues, QueryError> {
        match self {
            Self::Numbered(wanted) if *wanted == bound.len() => {
                Ok(ParamValues::from(bound.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>()))
            }
            Self::Numbered(0) => {
                Err(invalid(format!("{} parameters are bound, and the statement has none", bound.len())))
            }
            Self::Numbered(wanted) => {
                Err(invalid(format!("the statement has {wanted} parameters, and {} are bound", bound.len())))
            }
            Self::Named(names) => {
                let named: HashMap<String, ScalarValue> = bound
                    .iter()
                    .map(|(name, value)| (name.trim_start_matches('$').to_owned(), value.clone()))
                    .collect();
                if let Some(missing) = names.iter().find(|name| !named.contains_key(*name)) {
                    return Err(invalid(format!("the parameter ${missing} is not bound")));
                }
                if let Some(unknown) = named.keys().find(|name| !names.contains(*name)) {
                    return Err(invalid(format!("{unknown:?} is bound, and the statement has no such parameter")));
                }
                Ok(ParamValues::from(named))
            }
        }
    }
}

/// The plan with values for all of its parameters, those of the first run.
///
/// # Errors
/// When a parameter has no value, or a value has no parameter.
pub(crate) fn bind(plan: LogicalPlan, parameters: &Parameters) -> Result<LogicalPlan, QueryError> {
    let wanted = Wanted::of(plan.get_parameter_names()?)?;
    if wanted == Wanted::Numbered(0) && parameters.is_empty() {
        return Ok(plan);
    }
    Ok(plan.replace_params_with_values(&wanted.values(&parameters.values()?)?)?)
}

/// The parameters of a plan as columns, `Null` where nothing says which type is meant.
pub(crate) fn schema_of(plan: &LogicalPlan) -> Result<SchemaRef, QueryError> {
    let names = Wanted::of(plan.get_parameter_names()?)?.names();
    // One parameter in two places of different types: what is bound decides.
    let types = plan.get_parameter_types().unwrap_or_default();
    let fields = names.into_iter().map(|name| {
        let kind = types.get(&name).cloned().flatten().unwrap_or(DataType::Null);
        Field::new(name, kind, true)
    });
    Ok(Schema::new(fields.collect::<Vec<_>>()).into())
}

fn invalid(message: impl Into<String>) -> QueryError {
    QueryError::new(QueryErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use datafusion::prelude::SessionContext;

    use super::*;

    fn numbered(sql: &str) -> Option<String> {
        let tokens = number_question_marks(sql, None).expect("reads")?;
        let words = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        Some(words.map(|token| token.token.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn question_marks_are_counted() {
        for (sql, expected) in [
            ("SELECT ? + ?", Some("SELECT $1 + $2")),
            ("SELECT ?2 + ?1", Some("SELECT $2 + $1")),
            ("SELECT '?', \"a?\" -- ?", None),
            ("SELECT $1", None),
            ("SELECT '?", None),
        ] {
            assert_eq!(numbered(sql).as_deref(), expected, "{sql}");
        }
        for mixed in ["SELECT ? + $1", "SELECT $1 + ?", "SELECT $a + ?", "SELECT ? + ?1"] {
            assert!(number_question_marks(mixed, None).is_err(), "{mixed}");
        }
    }

    async fn plan(sql: &str) -> LogicalPlan {
        let frame = SessionContext::new().sql(sql).await.expect("plans");
        frame.into_parts().1
    }

    fn row() -> RecordBatch {
        let schema = Schema::new(vec![Field::new("0", DataType::Int64, true), Field::new("1", DataType::Utf8, true)]);
        let columns: Vec<Arc<dyn Array>> =
            vec![Arc::new(Int64Array::from(vec![7])), Arc::new(StringArray::from(vec!["x"]))];
        RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
    }

    #[tokio::test]
    async fn parameters_are_described_with_their_types() {
        let plan =
            plan("SELECT column1 FROM (VALUES (1, 'a')) WHERE column2 = $2 AND column1 < $1 AND $3 IS NULL").await;
        let schema = schema_of(&plan).expect("describes");
        let found: Vec<_> = schema.fields().iter().map(|field| (field.name().as_str(), field.data_type())).collect();
        assert_eq!(found, [("$1", &DataType::Int64), ("$2", &DataType::Utf8), ("$3", &DataType::Null)]);
    }

    #[tokio::test]
    async fn values_take_their_places_by_number() {
        let row = Parameters::of_rows(row());
        let plan = bind(plan("SELECT $2, $1 + 1").await, &row).expect("binds").display_indent().to_string();
        assert!(plan.contains("\"x\"") && plan.contains("Int64(7)"), "{plan}");
    }

    #[tokio::test]
    async fn what_is_bound_must_fit() {
        let two = Parameters::of_rows(row());
        let no_row = Parameters::of_rows(row().slice(0, 0));
        for (sql, parameters) in [
            ("SELECT $1", &two),
            ("SELECT $3", &two),
            ("SELECT 1", &two),
            ("SELECT $1", &Parameters::default()),
            ("SELECT $1, $2", &no_row),
            ("SELECT $a", &two),
            ("SELECT $a, $1", &two),
        ] {
            let error = bind(plan(sql).await, parameters).expect_err("refused");
            assert_eq!(error.kind, QueryErrorKind::Invalid, "{sql}: {error}");
        }
        assert!(bind(plan("SELECT 1").await, &Parameters::default()).is_ok());
        assert!(schema_of(&plan("SELECT $4000000000").await).is_err());
    }

    #[test]
    fn a_statement_runs_once_for_each_row() {
        let column: Arc<dyn Array> = Arc::new(Int64Array::from(vec![7, 8, 9]));
        let rows = RecordBatch::try_from_iter([("0", column)]).expect("a batch");
        let runs = Parameters::of_rows(rows).runs().map(|run| run.values().expect("a row")).collect::<Vec<_>>();
        let expected = [7, 8, 9].map(|value| vec![("0".to_owned(), ScalarValue::Int64(Some(value)))]);
        assert_eq!(runs, expected);
        assert_eq!(Parameters::default().runs().count(), 1);
        assert_eq!(Parameters::of_rows(row().slice(0, 0)).runs().count(), 0);
    }
}
