//! Rows for people to read: pages of a table, or each row as a list of its columns.
//!
//! A result may be larger than memory: the widths are those of a page, and when a later page needs more, the head comes
//! again. What rows say is shown, never obeyed: control characters of a log body do nothing to the terminal.

use anyhow::Context;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A page ends with so many rows, or bytes.
const PAGE_ROWS: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;

/// When rows are lists of their columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Expanded {
    On,
    Off,
    /// When the table is wider than the terminal.
    Auto,
}

/// A result that is being shown.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    layout: Layout,
    /// Cells of the page that is gathered.
    rows: Vec<Vec<String>>,
    bytes: usize,
    /// Rows of earlier pages.
    shown: usize,
    /// There is a head that nothing closes yet.
    open: bool,
}

#[derive(Debug)]
struct Column {
    name: String,
    is_number: bool,
    width: usize,
}

#[derive(Debug)]
struct Layout {
    expanded: Expanded,
    /// Columns of the terminal, when it is one.
    terminal: Option<usize>,
}

/// Takes what is to be written.
type Emit<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<()>;

impl Table {
    pub(crate) fn new(schema: &Schema, expanded: Expanded, terminal: Option<usize>) -> Self {
        let columns = schema.fields().iter().map(|field| {
            let name = printable(field.name()).replace('\n', "\\n");
            Column { width: name.width(), name, is_number: field.data_type().is_numeric() }
        });
        let layout = Layout { expanded, terminal };
        Self { columns: columns.collect(), layout, rows: Vec::new(), bytes: 0, shown: 0, open: false }
    }

    /// Adds rows, and writes the pages that are full.
    ///
    /// # Errors
    /// Those of `emit`, and values that have no text.
    pub(crate) fn add(&mut self, batch: &RecordBatch, emit: Emit<'_>) -> anyhow::Result<()> {
        const OPTIONS: FormatOptions<'static> = FormatOptions::new().with_null("null");
        let formatters = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &OPTIONS));
        let formatters = formatters.collect::<Result<Vec<_>, _>>().context("show the rows")?;
        for row in 0..batch.num_rows() {
            let mut cells = Vec::with_capacity(formatters.len());
            for (column, formatter) in batch.columns().iter().zip(&formatters) {
                let cell = match column.is_null(row) {
                    true => String::new(),
                    false => printable(&formatter.value(row).try_to_string().context("show a value")?),
                };
                self.bytes += cell.len();
                cells.push(cell);
            }
            self.rows.push(cells);
            if self.rows.len() >= PAGE_ROWS || self.bytes >= PAGE_BYTES {
                self.page(emit)?;
            }
        }
        Ok(())
    }

    /// Writes what is left, and how many rows there were.
    ///
    /// # Errors
    /// Those of `emit`.
    pub(crate) fn finish(mut self, emit: Emit<'_>) -> anyhow::Result<()> {
        if !self.rows.is_empty() || (self.shown == 0 && self.layout.expanded != Expanded::On) {
            self.page(emit)?;
        }
        if self.open {
            self.line(&self.rule(), emit)?;
        }
        emit(&format!("{} row{}\n", self.shown, if self.shown == 1 { "" } else { "s" }))
    }

    fn page(&mut self, emit: Emit<'_>) -> anyhow::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let rule = self.rule();
        let mut grown = !self.open;
        for (at, column) in self.columns.iter_mut().enumerate() {
            let width = rows.iter().flat_map(|row| lines(&row[at])).map(UnicodeWidthStr::width).max().unwrap_or(0);
            grown |= width > column.width;
            column.width = column.width.max(width);
        }
        let is_too_wide = self.layout.terminal.is_some_and(|terminal| self.rule().len() > terminal);
        if self.layout.expanded == Expanded::Auto && is_too_wide {
            self.layout.expanded = Expanded::On;
        }
        let expanded = self.layout.expanded == Expanded::On;
        if self.open && (grown || expanded) {
            self.line(&rule, emit)?;
        }
        if expanded {
            self.open = false;
            self.lists(&rows, emit)?;
        } else {
            if grown {
                self.head(emit)?;
            }
            self.open = true;
            for row in &rows {
                self.row(row, emit)?;
            }
        }
        self.shown += rows.len();
        Ok(())
    }

    fn head(&self, emit: Emit<'_>) -> anyhow::Result<()> {
        self.line(&self.rule(), emit)?;
        let names = self.columns.iter().map(|column| padded(&column.name, column.width, false));
        self.line(&format!("| {} |", names.collect::<Vec<_>>().join(" | ")), emit)?;
        self.line(&self.rule(), emit)
    }

    fn rule(&self) -> String {
        let dashes: Vec<String> = self.columns.iter().map(|column| "-".repeat(column.width + 2)).collect();
        format!("+{}+", dashes.join("+"))
    }

    /// As many lines as the cell with the most has.
    fn row(&self, row: &[String], emit: Emit<'_>) -> anyhow::Result<()> {
        let cells: Vec<Vec<&str>> = row.iter().map(|cell| lines(cell).collect()).collect();
        for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let cells = self.columns.iter().zip(&cells).map(|(column, cell)| {
                padded(cell.get(line).copied().unwrap_or_default(), column.width, column.is_number)
            });
            self.line(&format!("| {} |", cells.collect::<Vec<_>>().join(" | ")), emit)?;
        }
        Ok(())
    }

    /// Rows as lists of their columns.
    fn lists(&self, rows: &[Vec<String>], emit: Emit<'_>) -> anyhow::Result<()> {
        let width = self.columns.iter().map(|column| column.name.width()).max().unwrap_or(0);
        for (at, row) in rows.iter().enumerate() {
            emit(&format!("-[ row {} ]{}\n", self.shown + at + 1, "-".repeat(width)))?;
            for (column, cell) in self.columns.iter().zip(row) {
                for (n, line) in lines(cell).enumerate() {
                    let name = if n == 0 { column.name.as_str() } else { "" };
                    emit(&format!("{} | {line}\n", padded(name, width, false)))?;
                }
            }
        }
        Ok(())
    }

    /// A line of a table is cut at the terminal's edge: wrapped, no column would be one.
    fn line(&self, line: &str, emit: Emit<'_>) -> anyhow::Result<()> {
        match self.layout.terminal {
            Some(terminal) if line.width() > terminal => emit(&format!("{}…\n", cut(line, terminal - 1))),
            _ => emit(&format!("{line}\n")),
        }
    }
}

/// What a column's values are, in words of SQL.
pub(crate) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::UInt64 => "bigint unsigned".to_owned(),
        DataType::Int32 => "int".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytes".to_owned()
        }
        DataType::Timestamp(_, zone) => match zone.as_deref() {
            Some("+00:00" | "UTC") => "timestamp UTC".to_owned(),
            Some(zone) => format!("timestamp {zone}"),
            None => "timestamp".to_owned(),
        },
        DataType::Dictionary(_, values) => type_name(values),
        DataType::List(of) | DataType::LargeList(of) => format!("list({})", type_name(of.data_type())),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => {
                let types: Vec<String> = fields.iter().map(|field| type_name(field.data_type())).collect();
                format!("map({})", types.join(", "))
            }
            other => format!("map({})", type_name(other)),
        },
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| format!("{} {}", field.name(), type_name(field.data_type())));
            format!("struct({})", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The text with what could move the cursor, or turn the line around, as escapes; new lines stay.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.extend(c.escape_unicode()),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// At least one; a new line at the end begins none.
fn lines(cell: &str) -> impl Iterator<Item = &str> {
    cell.strip_suffix('\n').unwrap_or(cell).split('\n')
}

fn padded(text: &str, width: usize, right: bool) -> String {
    let blanks = " ".repeat(width.saturating_sub(text.width()));
    if right { format!("{blanks}{text}") } else { format!("{text}{blanks}") }
}

/// As much of the beginning as `width` columns have room for.
fn cut(line: &str, width: usize) -> &str {
    let mut taken = 0;
    for (at, c) in line.char_indices() {
        taken += c.width().unwrap_or(0);
        if taken > width {
            return &line[..at];
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, TimeUnit};

    use super::*;

    fn shown(batches: &[RecordBatch], expanded: Expanded, terminal: Option<usize>) -> String {
        let mut out = String::new();
        let mut emit = |text: &str| {
            out.push_str(text);
            Ok(())
        };
        let mut table = Table::new(&batches[0].schema(), expanded, terminal);
        for batch in batches {
            table.add(batch, &mut emit).expect("shown");
        }
        table.finish(&mut emit).expect("shown");
        out
    }

    fn spans() -> RecordBatch {
        let times = TimestampMicrosecondArray::from(vec![1_767_323_045_000_123, 1_767_323_046_000_000]);
        let columns: [(&str, ArrayRef); 4] = [
            ("timestamp", Arc::new(times.with_timezone("+00:00"))),
            ("name", Arc::new(StringArray::from(vec![Some("größe"), None]))),
            ("n", Arc::new(Int64Array::from(vec![Some(7), Some(12_345)]))),
            ("p99", Arc::new(Float64Array::from(vec![0.5, 10.25]))),
        ];
        RecordBatch::try_from_iter(columns).expect("a batch")
    }

    fn texts(name: &str, values: Vec<&str>) -> RecordBatch {
        let column: ArrayRef = Arc::new(StringArray::from(values));
        RecordBatch::try_from_iter([(name, column)]).expect("a batch")
    }

    #[test]
    fn numbers_are_on_the_right_and_widths_are_those_of_the_eye() {
        let expected = "\
+-----------------------------+-------+-------+-------+
| timestamp                   | name  | n     | p99   |
+-----------------------------+-------+-------+-------+
| 2026-01-02T03:04:05.000123Z | größe |     7 |   0.5 |
| 2026-01-02T03:04:06Z        |       | 12345 | 10.25 |
+-----------------------------+-------+-------+-------+
2 rows
";
        assert_eq!(shown(&[spans()], Expanded::Off, None), expected);
        assert_eq!(shown(&[spans()], Expanded::Auto, Some(80)), expected);
    }

    #[test]
    fn what_is_too_wide_for_the_terminal_becomes_lists() {
        let lists = "\
-[ row 1 ]---------
timestamp | 2026-01-02T03:04:05.000123Z
name      | größe
n         | 7
p99       | 0.5
-[ row 2 ]---------
timestamp | 2026-01-02T03:04:06Z
name      | \n\
n         | 12345
p99       | 10.25
2 rows
";
        assert_eq!(shown(&[spans()], Expanded::Auto, Some(40)), lists);
        assert_eq!(shown(&[spans()], Expanded::On, None), lists);
    }

    #[test]
    fn a_table_that_must_be_one_is_cut_at_the_edge() {
        let text = shown(&[texts("名前", vec!["一二三四五六"])], Expanded::Off, Some(10));
        assert_eq!(text, "+--------…\n| 名前   …\n+--------…\n| 一二三…\n+--------…\n1 row\n");
    }

    #[test]
    fn nothing_has_a_head_and_no_rows() {
        let empty = spans().slice(0, 0);
        assert!(shown(std::slice::from_ref(&empty), Expanded::Auto, None).ends_with("-+\n0 rows\n"));
        assert_eq!(shown(&[empty], Expanded::On, None), "0 rows\n");
    }

    #[test]
    fn lines_stay_lines_and_nothing_reaches_the_terminal() {
        let batch = texts("body", vec!["at Shop.pay\n\tat Main\n", "\u{1b}[2Jgone\u{202e}\r"]);
        let table = shown(std::slice::from_ref(&batch), Expanded::Off, None);
        for line in ["| at Shop.pay ", "| \\tat Main ", "| \\u{1b}[2Jgone\\u{202e}\\r |"] {
            assert!(table.lines().any(|shown| shown.starts_with(line)), "{line}: {table}");
        }
        let lists = shown(&[batch], Expanded::On, None);
        assert!(lists.starts_with("-[ row 1 ]----\nbody | at Shop.pay\n     | \\tat Main\n-[ row 2 ]"), "{lists}");
    }

    #[test]
    fn a_large_result_comes_in_pages_that_have_a_head_when_they_are_wider() {
        let narrow = texts("k", vec!["a"; PAGE_ROWS]);
        let wide = texts("k", vec!["bbbb"]);
        let text = shown(&[narrow.clone(), narrow.clone(), wide], Expanded::Off, None);
        assert_eq!(text.lines().filter(|line| line.starts_with("| k")).count(), 2);
        let rules: Vec<&str> = text.lines().filter(|line| line.starts_with('+')).collect();
        assert_eq!(rules, ["+---+", "+---+", "+---+", "+------+", "+------+", "+------+"]);
        assert!(text.ends_with("2001 rows\n"));
        let mut table = Table::new(&narrow.schema(), Expanded::Off, None);
        for _ in 0..50 {
            table.add(&narrow, &mut |_| Ok(())).expect("shown");
            assert!(table.rows.len() < PAGE_ROWS);
        }
    }

    #[test]
    fn types_have_short_names() {
        let text = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
        let entries = Field::new("entries", DataType::Struct(vec![text("key"), text("value")].into()), false);
        let map = DataType::Map(Arc::new(entries), false);
        let event = DataType::Struct(vec![text("name"), Arc::new(Field::new("attributes", map.clone(), true))].into());
        let events = DataType::List(Arc::new(Field::new("element", event, true)));
        for (data_type, expected) in [
            (DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), "timestamp UTC"),
            (DataType::FixedSizeBinary(16), "bytes"),
            (map, "map(text, text)"),
            (events, "list(struct(name text, attributes map(text, text)))"),
            (DataType::UInt32, "UInt32"),
        ] {
            assert_eq!(type_name(&data_type), expected);
        }
    }
}
