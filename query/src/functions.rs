//! The functions of the logical view: ids as hex, the whole attribute map, one attribute of it, and a copy of one.
//!
//! Columns of texts are views ([`crate::views`]), texts in maps are not. What stands for `map['key']` is `Utf8` as well, so that
//! an expression that is rewritten keeps its type; so are ids, which nobody has as text already. A copy is its column.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, StringViewArray};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, is_not_null};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use signaldb_signals::copies::CopyKind;
use signaldb_signals::merge_attributes;
use signaldb_signals::promoted::{self, Promoted};

pub(crate) const HEX_ID: &str = "signaldb_hex_id";
pub(crate) const ATTRIBUTES: &str = "signaldb_attributes";
pub(crate) const ATTRIBUTE: &str = "signaldb_attribute";
const COPY: &str = "signaldb_copy";

/// `signaldb_hex_id(fixed binary) -> text`, lower-case hex.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct HexId(Signature);

impl HexId {
    pub(crate) fn new() -> Self {
        Self(Signature::any(1, Volatility::Immutable))
    }
}

impl ScalarUDFImpl for HexId {
    fn name(&self) -> &str {
        HEX_ID
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [DataType::FixedSizeBinary(_)] => Ok(DataType::Utf8),
            other => plan_err!("{HEX_ID} takes an id, not {other:?}"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ids = arguments.args[0].to_array(arguments.number_rows)?;
        let hex: StringArray = ids.as_fixed_size_binary().iter().map(|id| id.map(hex)).collect();
        Ok(ColumnarValue::Array(Arc::new(hex)))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    digits.map(char::from).collect()
}

/// Bytes of lower-case hex digits of exactly `bytes` bytes; anything else equals no id.
pub(crate) fn unhex(text: &str, bytes: usize) -> Option<Vec<u8>> {
    let lower = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if text.len() != 2 * bytes || !text.bytes().all(lower) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// `signaldb_attributes(map, promoted columns in their order) -> map`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attributes(Signature);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self(Signature::variadic_any(Volatility::Immutable))
    }
}

/// The promoted list that a call is about, by how many columns it has.
pub(crate) fn promoted_list(columns: usize) -> &'static [Promoted] {
    if columns == promoted::RESOURCE.len() { promoted::RESOURCE } else { promoted::RECORD }
}

impl ScalarUDFImpl for Attributes {
    fn name(&self) -> &str {
        ATTRIBUTES
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments.first() {
            Some(map @ DataType::Map(..)) => Ok(map.clone()),
            other => plan_err!("{ATTRIBUTES} takes a map first, not {other:?}"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let map = arguments.args[0].to_array(rows)?;
        let columns = arguments.args[1..].iter().map(|column| Ok(Some(column.to_array(rows)?)));
        let columns = columns.collect::<Result<Vec<Option<ArrayRef>>>>()?;
        let merged = merge_attributes(map.as_map(), promoted_list(columns.len()), &columns);
        Ok(ColumnarValue::Array(Arc::new(merged)))
    }
}

/// `signaldb_attribute(promoted column, map['its key']) -> text`: the column's value, where there is none the map's.
///
/// Like `coalesce`, but nobody takes it apart: [`crate::whole`] has to find it in the filters of a scan.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attribute(Signature);

impl Attribute {
    pub(crate) fn new() -> Self {
        Self(Signature::any(2, Volatility::Immutable))
    }
}

impl ScalarUDFImpl for Attribute {
    fn name(&self) -> &str {
        ATTRIBUTE
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [DataType::Utf8View | DataType::Utf8 | DataType::Int64, DataType::Utf8] => Ok(DataType::Utf8),
            other => plan_err!("{ATTRIBUTE} takes a promoted column and a text, not {other:?}"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let (column, in_map) = (arguments.args[0].to_array(rows)?, arguments.args[1].to_array(rows)?);
        let value: ArrayRef = match (column.null_count(), column.as_string_view_opt()) {
            (0, _) => cast(&column, &DataType::Utf8)?,
            (nulls, _) if nulls == column.len() => in_map,
            // Each text is copied once.
            (_, Some(texts)) => Arc::new(either(texts, in_map.as_string::<i32>())),
            (_, None) => zip(&is_not_null(&column)?, &cast(&column, &DataType::Utf8)?, &in_map)?,
        };
        Ok(ColumnarValue::Array(value))
    }
}

/// The column's texts, and those of the map where there are none.
fn either(column: &StringViewArray, in_map: &StringArray) -> StringArray {
    column.iter().zip(in_map).map(|(column, in_map)| column.or(in_map)).collect()
}

/// `signaldb_copy(map['its key']) -> the column that the attribute is copied into`, where rows do not have the column.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct CopyOf {
    signature: Signature,
    kind: CopyKind,
    /// The column: what is computed must be the very same field.
    field: FieldRef,
}

impl CopyOf {
    pub(crate) fn new(kind: CopyKind, field: FieldRef) -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable), kind, field }
    }
}

impl ScalarUDFImpl for CopyOf {
    fn name(&self) -> &str {
        COPY
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [DataType::Utf8] => Ok(self.field.data_type().clone()),
            other => plan_err!("{COPY} takes a text, not {other:?}"),
        }
    }

    fn return_field_from_args(&self, _arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::clone(&self.field))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = arguments.args[0].to_array(arguments.number_rows)?;
        let values = self.kind.values(texts.as_string::<i32>());
        Ok(ColumnarValue::Array(cast(&values, self.field.data_type())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_and_back() {
        assert_eq!(hex(&[0x0a, 0xff]), "0aff");
        assert_eq!(unhex("0aff", 2), Some(vec![0x0a, 0xff]));
        for bad in ["", "0af", "0AFF", "0aff00", "+aff", "zzzz", "é0a"] {
            assert_eq!(unhex(bad, 2), None, "{bad}");
        }
    }

    #[test]
    fn an_attribute_is_the_columns_text_or_else_the_maps() {
        let in_map = StringArray::from(vec![Some("m"), Some("in the map as well"), None, Some("m")]);
        let long = "in the column, and longer than a view";
        let column = StringViewArray::from(vec![None, Some(long), Some("c"), None]);
        let expected = [Some("m"), Some(long), Some("c"), Some("m")];
        assert_eq!(either(&column, &in_map).iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn promoted_lists_differ_in_length() {
        assert_ne!(promoted::RESOURCE.len(), promoted::RECORD.len());
    }
}
