//! Attributes that an operator promotes: copies of what is in the maps, in columns of their own (ADR 13).
//!
//! A value that is written otherwise than a value of the column's type has null there:
//!
//! | in the map | `text` | `int` | `bool` | `double` |
//! |---|---|---|---|---|
//! | `42` | `42` | 42 | null | 42.0 |
//! | `042` | `042` | null | null | null |
//! | `1.5` | `1.5` | null | null | 1.5 |
//! | `true` | `true` | null | true | null |

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, MapArray, StringArray};

use crate::any_value::write_double;
use crate::schema::{Column, ColumnKind};

/// Integers up to here are doubles, too.
const DOUBLE_INTEGER_MAX: u64 = 1 << 53;

/// Whose attributes are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    Resource,
    Scope,
    Record,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::Resource, Self::Scope, Self::Record];

    pub fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Scope => "scope",
            Self::Record => "record",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The column that has the attributes as a map.
    pub fn map(self) -> &'static str {
        match self {
            Self::Resource => "resource_attributes",
            Self::Scope => "scope_attributes",
            Self::Record => "attributes",
        }
    }

    /// Begins the names of copies, and of no column of ours.
    fn prefix(self) -> &'static str {
        match self {
            Self::Resource => "resource_attr_",
            Self::Scope => "scope_attr_",
            Self::Record => "attr_",
        }
    }

    /// The column that the attribute `key` is copied into.
    pub fn column_name(self, key: &str) -> String {
        let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
        self.prefix().chars().chain(key.chars().map(letter)).collect()
    }
}

/// Type of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyKind {
    Text,
    Integer,
    Boolean,
    Double,
}

impl CopyKind {
    pub const ALL: [Self; 4] = [Self::Text, Self::Integer, Self::Boolean, Self::Double];

    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "int",
            Self::Boolean => "bool",
            Self::Double => "double",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub fn column_kind(self) -> ColumnKind {
        match self {
            Self::Text => ColumnKind::String,
            Self::Integer => ColumnKind::Long,
            Self::Boolean => ColumnKind::Boolean,
            Self::Double => ColumnKind::Double,
        }
    }

    /// What the texts are as values of this type, null where they are none.
    pub fn values(self, texts: &StringArray) -> ArrayRef {
        let each = || texts.iter();
        match self {
            Self::Text => Arc::new(texts.clone()),
            Self::Integer => Arc::new(each().map(|text| integer(text?)).collect::<Int64Array>()),
            Self::Boolean => Arc::new(each().map(|text| boolean(text?)).collect::<BooleanArray>()),
            Self::Double => Arc::new(each().map(|text| double(text?)).collect::<Float64Array>()),
        }
    }
}

/// An attribute and the column that it is copied into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedAttribute {
    pub key: String,
    pub level: Level,
    pub kind: CopyKind,
    pub column: Column,
}

impl CopiedAttribute {
    /// The column for the rows of `map`, and whether it is whole: whether it alone says what the map has under the key.
    pub fn fill(&self, map: &MapArray) -> (ArrayRef, bool) {
        let texts = texts(map, &self.key);
        let values = self.kind.values(&texts);
        let whole = self.kind != CopyKind::Double && values.null_count() == texts.null_count();
        (values, whole)
    }
}

/// The value of `key` in each row; its first one, as `map['key']` has it.
fn texts(map: &MapArray, key: &str) -> StringArray {
    let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
    let text = |row: usize| {
        let mut entries = map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize;
        let at = entries.find(|at| keys.value(*at) == key)?;
        values.is_valid(at).then(|| values.value(at))
    };
    (0..map.len()).map(text).collect()
}

/// The integer that is written so; `+1` and `01` are how none is.
pub fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let written_so = text == "0" || (digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.starts_with('0'));
    if written_so { text.parse().ok() } else { None }
}

/// The boolean that is written so.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The double that is written so; an integer is one if it is exact.
fn double(text: &str) -> Option<f64> {
    if let Some(integer) = integer(text) {
        return (integer.unsigned_abs() <= DOUBLE_INTEGER_MAX).then_some(integer as f64);
    }
    let value: f64 = text.parse().ok()?;
    let mut written = String::new();
    write_double(value, &mut written);
    (written == text).then_some(value)
}

#[cfg(test)]
mod tests {
    use arrow::array::{MapBuilder, StringBuilder};
    use arrow::datatypes::{Float64Type, Int64Type};

    use super::*;
    use crate::schema;
    use crate::table::SignalTable;

    const TEXTS: [Option<&str>; 18] = [
        None,
        Some(""),
        Some("0"),
        Some("42"),
        Some("-7"),
        Some("042"),
        Some("+1"),
        Some("-0"),
        Some("-"),
        Some("9223372036854775807"),
        Some("9223372036854775808"),
        Some("1.5"),
        Some("1.50"),
        Some("true"),
        Some("True"),
        Some("NaN"),
        Some("Infinity"),
        Some("inf"),
    ];

    #[test]
    fn only_what_is_written_as_a_value_is_one() {
        let texts = StringArray::from(TEXTS.to_vec());
        let kept = |values: &dyn Array| -> Vec<&str> {
            (0..TEXTS.len()).filter(|at| values.is_valid(*at)).filter_map(|at| TEXTS[at]).collect()
        };
        assert_eq!(CopyKind::Text.values(&texts).as_string::<i32>(), &texts);
        let integers = CopyKind::Integer.values(&texts);
        assert_eq!(kept(&integers), ["0", "42", "-7", "9223372036854775807"]);
        assert_eq!(integers.as_primitive::<Int64Type>().value(4), -7);
        assert_eq!(kept(&CopyKind::Boolean.values(&texts)), ["true"]);
        let doubles = CopyKind::Double.values(&texts);
        assert_eq!(kept(&doubles), ["0", "42", "-7", "1.5", "NaN", "Infinity"]);
        assert_eq!(doubles.as_primitive::<Float64Type>().value(11), 1.5);
    }

    /// Rows of a map, each a list of keys and values.
    fn map(rows: &[&[(&str, Option<&str>)]]) -> MapArray {
        let mut builder = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        for row in rows {
            for (key, value) in *row {
                builder.keys().append_value(key);
                builder.values().append_option(*value);
            }
            builder.append(true).expect("keys and values are as many");
        }
        builder.finish()
    }

    fn fill(kind: CopyKind, map: &MapArray) -> (ArrayRef, bool) {
        let column = Column { name: "attr_k".to_owned(), id: 1_000_000, kind: kind.column_kind() };
        CopiedAttribute { key: "k".to_owned(), level: Level::Record, kind, column }.fill(map)
    }

    #[test]
    fn a_copy_is_whole_when_it_has_every_value_of_the_map() {
        let fits = map(&[&[("a", Some("x")), ("k", Some("5"))], &[], &[("k", None)]]);
        let (values, whole) = fill(CopyKind::Integer, &fits);
        assert!(whole, "a key without a value is null in map and column alike");
        assert_eq!((values.as_primitive::<Int64Type>().value(0), values.null_count(), values.len()), (5, 2, 3));
        assert!(!fill(CopyKind::Double, &fits).1, "many doubles have more than one text");
        let odd = map(&[&[("k", Some("5"))], &[("k", Some("five")), ("k", Some("6"))]]);
        let (values, whole) = fill(CopyKind::Integer, &odd);
        assert_eq!((values.is_null(1), whole), (true, false), "the first value counts");
        assert!(fill(CopyKind::Text, &odd).1, "a text is whatever the map has");
        // Of a part of an array.
        let (values, whole) = fill(CopyKind::Integer, &odd.slice(0, 1));
        assert_eq!((values.len(), values.null_count(), whole), (1, 0, true));
    }

    #[test]
    fn names_are_plain_and_no_column_of_ours_has_one_of_them() {
        assert_eq!(Level::Record.column_name("Tenant.plan-é"), "attr_tenant_plan__");
        assert_eq!(Level::Resource.column_name("tenant.plan"), "resource_attr_tenant_plan");
        for column in SignalTable::ALL.iter().flat_map(|table| &schema::of(*table).columns) {
            let could_be = Level::ALL.iter().any(|level| column.name.starts_with(level.prefix()));
            assert!(!could_be, "{} could be the name of a copy", column.name);
        }
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        for kind in CopyKind::ALL {
            assert_eq!(CopyKind::from_name(kind.name()), Some(kind));
        }
    }
}
