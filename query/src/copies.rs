//! Attributes that an operator promoted, as columns that every row has (ADR 13).
//!
//! A data file that was written with the column has the attribute there, as it follows from the map. Where rows have the
//! map alone (files of before, rows that are not flushed, files of other writers), the column is computed from it, so that
//! a query does not depend on what was flushed or compacted when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::functions::core::get_field;
use datafusion::logical_expr::{Expr, ScalarUDF, ident, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use iceberg::spec::DataFile;
use signaldb_signals::copies::CopiedAttribute;
use signaldb_signals::schema::{Column, TableSchema};

use crate::functions::CopyOf;
use crate::rewrite::text;

/// The promoted attributes of a table.
#[derive(Debug, Default)]
pub(crate) struct Copies(Vec<Copied>);

#[derive(Debug)]
struct Copied {
    attribute: CopiedAttribute,
    /// What the column has, by what the map has.
    from_map: Expr,
}

impl Copies {
    /// Of the columns that `schema` has for them.
    ///
    /// # Errors
    /// When it lacks one.
    pub(crate) fn new(attributes: Vec<CopiedAttribute>, schema: &TableSchema) -> Result<Self> {
        let copied = |attribute: CopiedAttribute| {
            let field = Arc::new(schema.arrow.field_with_name(&attribute.column.name)?.clone());
            let in_map = get_field().call(vec![ident(attribute.level.map()), lit(attribute.key.as_str())]);
            let from_map = ScalarUDF::from(CopyOf::new(attribute.kind, field)).call(vec![in_map]);
            Ok(Copied { attribute, from_map })
        };
        Ok(Self(attributes.into_iter().map(copied).collect::<Result<_>>()?))
    }

    /// The column that `expression`, `map['key']`, is copied into.
    pub(crate) fn column_of(&self, expression: &Expr) -> Option<&Column> {
        let Expr::ScalarFunction(call) = expression else { return None };
        let [Expr::Column(map), key] = call.args.as_slice() else { return None };
        let key = text(key).filter(|_| call.func.name() == "get_field")?;
        let found =
            self.0.iter().find(|Copied { attribute, .. }| attribute.key == key && attribute.level.map() == map.name);
        found.map(|copied| &copied.attribute.column)
    }

    /// The copies that a query shows or filters by, by their columns' names.
    pub(crate) fn named(&self, schema: &SchemaRef, shown: &[usize], filters: &[Expr]) -> BTreeSet<&str> {
        let names = self.0.iter().map(|copied| copied.attribute.column.name.as_str());
        let filtered =
            |name: &str| filters.iter().any(|filter| filter.column_refs().iter().any(|one| one.name == name));
        let is_named = |name: &&str| shown.iter().any(|at| schema.field(*at).name() == name) || filtered(name);
        names.filter(is_named).collect()
    }

    /// Those of `named` that the file's rows do not have.
    pub(crate) fn absent<'a>(&'a self, named: &BTreeSet<&'a str>, file: &DataFile) -> BTreeSet<&'a str> {
        let columns = self.0.iter().map(|copied| &copied.attribute.column);
        let asked = columns.filter(|column| named.contains(column.name.as_str()));
        asked.filter(|column| !signaldb_lake::is_filled(file, column)).map(|column| column.name.as_str()).collect()
    }

    /// `filter` where rows do not have the columns `absent`.
    pub(crate) fn without(&self, absent: &BTreeSet<&str>, filter: Expr) -> Result<Expr> {
        let step = |expression: Expr| {
            let computed = match &expression {
                Expr::Column(column) if absent.contains(column.name.as_str()) => self.map_lookup(&column.name),
                _ => None,
            };
            Ok(computed.map_or_else(|| Transformed::no(expression), Transformed::yes))
        };
        if absent.is_empty() { Ok(filter) } else { Ok(filter.transform_up(step)?.data) }
    }

    fn map_lookup(&self, column: &str) -> Option<Expr> {
        let copied = self.0.iter().find(|copied| copied.attribute.column.name == column)?;
        Some(copied.from_map.clone())
    }

    /// How rows without the columns `absent` become rows with those of `wanted`.
    pub(crate) fn view(&self, schema: &SchemaRef, wanted: &[usize], absent: &BTreeSet<&str>) -> Result<RowView> {
        let (mut columns, mut computed) = (Vec::new(), BTreeMap::new());
        for at in wanted {
            let name = schema.field(*at).name();
            match self.map_lookup(name).filter(|_| absent.contains(name.as_str())) {
                Some(from_map) => drop(computed.insert(*at, from_map)),
                None => columns.push(*at),
            }
        }
        for column in computed.values().flat_map(Expr::column_refs) {
            let map = schema.index_of(&column.name)?;
            if !columns.contains(&map) {
                columns.push(map);
            }
        }
        Ok(RowView { schema: Arc::clone(schema), wanted: wanted.to_vec(), columns, computed })
    }
}

/// The columns of a query over rows that may lack some of them.
#[derive(Debug)]
pub(crate) struct RowView {
    schema: SchemaRef,
    wanted: Vec<usize>,
    columns: Vec<usize>,
    /// By position in the schema.
    computed: BTreeMap<usize, Expr>,
}

impl RowView {
    /// What the rows are asked for.
    pub(crate) fn columns(&self) -> &Vec<usize> {
        &self.columns
    }

    /// Puts the wanted columns over a plan of [`Self::columns`].
    pub(crate) fn over(&self, state: &dyn Session, rows: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        if self.computed.is_empty() {
            return Ok(rows);
        }
        let has = DFSchema::try_from(rows.schema())?;
        let column = |at: &usize| {
            let name = self.schema.field(*at).name();
            let expression = self.computed.get(at).cloned().unwrap_or_else(|| ident(name));
            Ok(ProjectionExpr::new(state.create_physical_expr(expression, &has)?, name))
        };
        let columns = self.wanted.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(columns, rows)?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use datafusion::logical_expr::col;
    use datafusion::prelude::SessionContext;
    use signaldb_signals::copies::{CopyKind, Level};
    use signaldb_signals::{SignalTable, schema};

    use super::*;
    use crate::views;

    /// `tenant.plan` of records as text, `retries` as an integer, `cached` as a boolean, `cost` as a double.
    pub(crate) fn example() -> (TableSchema, Copies) {
        let keys = [
            ("tenant.plan", CopyKind::Text),
            ("retries", CopyKind::Integer),
            ("cached", CopyKind::Boolean),
            ("cost", CopyKind::Double),
        ];
        let attribute = |(at, (key, kind)): (usize, (&str, CopyKind))| {
            let name = Level::Record.column_name(key);
            let column = Column { name, id: 1_000_000 + at as i32, kind: kind.column_kind() };
            CopiedAttribute { key: key.to_owned(), level: Level::Record, kind, column }
        };
        let attributes: Vec<CopiedAttribute> = keys.into_iter().enumerate().map(attribute).collect();
        let columns = attributes.iter().map(|attribute| attribute.column.clone());
        let schema = views::in_queries(&schema::of(SignalTable::Traces).with(columns));
        let copies = Copies::new(attributes, &schema).expect("has the columns");
        (schema, copies)
    }

    pub(crate) fn in_map(map: &str, key: &str) -> Expr {
        get_field().call(vec![col(map), lit(key)])
    }

    #[test]
    fn only_the_attributes_of_the_right_map_have_a_column() {
        let (_, copies) = example();
        let column = |map: &str, key: &str| copies.column_of(&in_map(map, key)).map(|column| column.name.as_str());
        assert_eq!(column("attributes", "tenant.plan"), Some("attr_tenant_plan"));
        assert_eq!(column("attributes", "tenant"), None);
        assert_eq!(column("resource_attributes", "tenant.plan"), None);
        assert_eq!(copies.column_of(&col("attr_tenant_plan")), None);
    }

    #[test]
    fn what_rows_do_not_have_comes_from_their_maps() {
        let (schema, copies) = example();
        let at = |name: &str| schema.arrow.index_of(name).expect("exists");
        let wanted = [at("attr_tenant_plan"), at("name"), at("attr_retries")];
        let filters = [col("attr_cached").is_true().and(col("kind").is_null())];
        let named = copies.named(&schema.arrow, &wanted, &filters);
        assert_eq!(named, BTreeSet::from(["attr_cached", "attr_retries", "attr_tenant_plan"]));

        let view = copies.view(&schema.arrow, &wanted, &named).expect("has the map");
        assert_eq!(view.columns(), &[at("name"), at("attributes")], "the map is read once");
        let some = copies.view(&schema.arrow, &wanted, &BTreeSet::from(["attr_retries"])).expect("has the map");
        assert_eq!(some.columns(), &[at("attr_tenant_plan"), at("name"), at("attributes")]);
        let all = copies.view(&schema.arrow, &wanted, &BTreeSet::new()).expect("nothing is computed");
        assert_eq!(all.columns(), &wanted);

        let filter = copies.without(&named, filters[0].clone()).expect("walks");
        assert!(
            filter.column_refs().iter().all(|column| ["attributes", "kind"].contains(&column.name.as_str())),
            "{filter}"
        );
        assert_eq!(copies.without(&BTreeSet::new(), filters[0].clone()).expect("walks"), filters[0]);
    }

    /// What a view of the computed columns yields has the very fields of the table: other plans are put beside it.
    #[test]
    fn computed_columns_are_the_tables_fields() {
        let (schema, copies) = example();
        let wanted: Vec<usize> = (0..schema.arrow.fields().len()).collect();
        let named = copies.named(&schema.arrow, &wanted, &[]);
        let view = copies.view(&schema.arrow, &wanted, &named).expect("has the map");
        let state = SessionContext::new().state();
        let rows = crate::memory::scan(&state, &schema.arrow, &[], Some(view.columns()), &[], Default::default());
        let rows = rows.expect("plans");
        let shown = view.over(&state, rows).expect("plans");
        assert_eq!(shown.schema().fields(), schema.arrow.fields());
    }
}
