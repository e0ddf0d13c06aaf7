//! How much memory rows need for themselves.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::DataType;

/// Bytes of the rows themselves: a slice of a memtable, or of a batch, shares its buffers with all others.
pub(super) fn bytes_of(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(bytes_of_column).sum()
}

fn bytes_of_column(column: &ArrayRef) -> usize {
    match column.data_type() {
        DataType::Utf8View => {
            let texts: usize = column.as_string_view().lengths().map(|bytes| bytes as usize).sum();
            texts + column.len() * size_of::<u128>()
        }
        // Arrow takes all that there is below a slice for the slice's.
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            bytes_of_items(list.offsets(), list.values())
        }
        DataType::Map(..) => {
            let map = column.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            bytes_of_items(map.offsets(), &entries)
        }
        DataType::Struct(_) => column.as_struct().columns().iter().map(bytes_of_column).sum(),
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    }
}

fn bytes_of_items(offsets: &OffsetBuffer<i32>, items: &ArrayRef) -> usize {
    let (from, to) = (offsets.first().copied().unwrap_or(0) as usize, offsets.last().copied().unwrap_or(0) as usize);
    bytes_of_column(&items.slice(from, to - from)) + size_of_val(&offsets[..])
}

#[cfg(test)]
mod tests {
    use arrow::array::{MapBuilder, StringArray, StringBuilder, StringViewArray};

    use super::*;

    #[test]
    fn a_slice_has_the_bytes_of_its_own_rows() {
        let mut maps = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        for row in 0..100 {
            maps.keys().append_value("key");
            maps.values().append_value("v".repeat(if row == 0 { 100_000 } else { 100 }));
            maps.append(true).expect("as many keys as values");
        }
        let texts: Vec<String> = (0..100).map(|row| "x".repeat(if row == 0 { 50_000 } else { 50 })).collect();
        let columns: [(&str, ArrayRef); 3] = [
            ("map", Arc::new(maps.finish())),
            ("view", Arc::new(StringViewArray::from_iter_values(&texts))),
            ("text", Arc::new(StringArray::from_iter_values(&texts))),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("a batch");
        let large = bytes_of(&batch.slice(0, 1));
        assert!((200_000..201_000).contains(&large), "{large}");
        let small = bytes_of(&batch.slice(10, 10));
        assert!((2_000..4_000).contains(&small), "{small}");
        assert!(bytes_of(&batch.slice(5, 0)) < 100);
    }
}
