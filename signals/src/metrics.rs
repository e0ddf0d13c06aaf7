//! Metrics to columns: one row per data point, one table per kind of data.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder as _, ArrayRef, BooleanBuilder, FixedSizeBinaryBuilder, Float64Builder, Int32Builder, Int64Array,
    Int64Builder, StringBuilder,
};

use crate::attributes::AttributesBuilder;
use crate::decode::{
    Columns, Common, DecodedTable, RowsBuilder, append_enum, append_id, append_text, list_of_numbers, list_of_structs,
    struct_fields, timestamps,
};
use crate::promoted;
use crate::request::{messages, metric_table, number};
use crate::table::SignalTable;
use crate::wire::{Fields, Value, packed_fixed64, packed_varint};

pub(crate) const TEMPORALITIES: &[&str] = &["UNSPECIFIED", "DELTA", "CUMULATIVE"];

/// Builders of the five metric tables.
#[derive(Debug)]
pub(crate) struct MetricsBuilder {
    tables: Vec<PointsBuilder>,
}

/// Rows of one metric table; builders of columns that the table does not have stay empty.
#[derive(Debug)]
struct PointsBuilder {
    table: SignalTable,
    common: Common,
    /// Addresses of the resource and scope that `common` saw last.
    current: (usize, usize),
    metrics: MetricColumns,
    metric_of_row: Vec<u32>,
    start: Vec<i64>,
    time: Vec<u64>,
    flags: Vec<i64>,
    attributes: AttributesBuilder,
    value_int: Int64Builder,
    value_double: Float64Builder,
    count: Int64Builder,
    sum: Float64Builder,
    min: Float64Builder,
    max: Float64Builder,
    bucket_counts: Numbers<Int64Builder>,
    explicit_bounds: Numbers<Float64Builder>,
    scale: Int32Builder,
    zero_count: Int64Builder,
    zero_threshold: Float64Builder,
    positive_offset: Int32Builder,
    positive_counts: Numbers<Int64Builder>,
    negative_offset: Int32Builder,
    negative_counts: Numbers<Int64Builder>,
    quantile_offsets: Vec<i32>,
    quantile: Float64Builder,
    quantile_value: Float64Builder,
    exemplars: ExemplarsBuilder,
}

/// One value a metric, spread over its points.
#[derive(Debug)]
struct MetricColumns {
    count: u32,
    name: StringBuilder,
    description: StringBuilder,
    unit: StringBuilder,
    metadata: AttributesBuilder,
    temporality: StringBuilder,
    is_monotonic: BooleanBuilder,
}

/// A list of numbers a row.
#[derive(Debug)]
struct Numbers<B> {
    offsets: Vec<i32>,
    values: B,
}

#[derive(Debug)]
struct ExemplarsBuilder {
    offsets: Vec<i32>,
    time: Int64Builder,
    value_int: Int64Builder,
    value_double: Float64Builder,
    trace_id: FixedSizeBinaryBuilder,
    span_id: FixedSizeBinaryBuilder,
    attributes: AttributesBuilder,
}

impl MetricsBuilder {
    pub(crate) fn new() -> Self {
        Self { tables: Vec::new() }
    }

    fn table(&mut self, table: SignalTable) -> &mut PointsBuilder {
        let at = self.tables.iter().position(|builder| builder.table == table).unwrap_or_else(|| {
            self.tables.push(PointsBuilder::new(table));
            self.tables.len() - 1
        });
        &mut self.tables[at]
    }
}

impl RowsBuilder for MetricsBuilder {
    fn start_resource(&mut self, _resource: &[u8]) {}

    fn start_scope(&mut self, _scope: &[u8]) {}

    fn append(&mut self, item: &[u8], resource: &[u8], scope: &[u8], number: u64) {
        for (field, data) in Fields::of(item) {
            let Some(table) = metric_table(field) else { continue };
            if messages(data.bytes(), 1).next().is_some() {
                self.table(table).append(item, data.bytes(), resource, scope, number);
            }
        }
    }

    fn finish(self) -> Vec<DecodedTable> {
        self.tables.into_iter().map(PointsBuilder::finish).collect()
    }
}

impl PointsBuilder {
    fn new(table: SignalTable) -> Self {
        Self {
            table,
            common: Common::new(),
            current: (0, 0),
            metrics: MetricColumns {
                count: 0,
                name: StringBuilder::new(),
                description: StringBuilder::new(),
                unit: StringBuilder::new(),
                metadata: AttributesBuilder::new(promoted::NONE),
                temporality: StringBuilder::new(),
                is_monotonic: BooleanBuilder::new(),
            },
            metric_of_row: Vec::new(),
            start: Vec::new(),
            time: Vec::new(),
            flags: Vec::new(),
            attributes: AttributesBuilder::new(promoted::NONE),
            value_int: Int64Builder::new(),
            value_double: Float64Builder::new(),
            count: Int64Builder::new(),
            sum: Float64Builder::new(),
            min: Float64Builder::new(),
            max: Float64Builder::new(),
            bucket_counts: Numbers::new(Int64Builder::new()),
            explicit_bounds: Numbers::new(Float64Builder::new()),
            scale: Int32Builder::new(),
            zero_count: Int64Builder::new(),
            zero_threshold: Float64Builder::new(),
            positive_offset: Int32Builder::new(),
            positive_counts: Numbers::new(Int64Builder::new()),
            negative_offset: Int32Builder::new(),
            negative_counts: Numbers::new(Int64Builder::new()),
            quantile_offsets: vec![0],
            quantile: Float64Builder::new(),
            quantile_value: Float64Builder::new(),
            exemplars: ExemplarsBuilder::new(),
        }
    }

    fn append(&mut self, metric: &[u8], data: &[u8], resource: &[u8], scope: &[u8], request: u64) {
        let (resource_at, scope_at) = (resource.as_ptr() as usize, scope.as_ptr() as usize);
        if self.current.0 != resource_at {
            self.common.start_resource(resource);
        }
        if self.current != (resource_at, scope_at) {
            self.common.start_scope(scope);
        }
        self.current = (resource_at, scope_at);
        self.metrics.append(metric, data);
        for point in messages(data, 1) {
            self.common.row(request);
            self.metric_of_row.push(self.metrics.count - 1);
            self.start.push(number(point, 2) as i64);
            self.time.push(number(point, 3));
            match self.table {
                SignalTable::MetricsHistogram => self.append_histogram(point),
                SignalTable::MetricsExponentialHistogram => self.append_exponential_histogram(point),
                SignalTable::MetricsSummary => self.append_summary(point),
                _ => self.append_number(point),
            }
            self.exemplars.end_row();
        }
    }

    fn append_number(&mut self, point: &[u8]) {
        let (mut int, mut double, mut flags) = (None, None, 0);
        for (field, value) in Fields::of(point) {
            match field {
                4 => (int, double) = (None, Some(value.double())),
                6 => (int, double) = (Some(value.number() as i64), None),
                5 => self.exemplars.append(value.bytes()),
                8 => flags = value.number(),
                _ => {}
            }
        }
        self.value_int.append_option(int);
        self.value_double.append_option(double);
        self.flags.push(flags as i64);
        self.attributes.append(point, 7);
    }

    fn append_histogram(&mut self, point: &[u8]) {
        let (mut count, mut sum, mut min, mut max, mut flags) = (0, None, None, None, 0);
        for (field, value) in Fields::of(point) {
            match field {
                4 => count = value.number(),
                5 => sum = Some(value.double()),
                6 => self.bucket_counts.extend_fixed64(value),
                7 => self.explicit_bounds.extend(value),
                8 => self.exemplars.append(value.bytes()),
                10 => flags = value.number(),
                11 => min = Some(value.double()),
                12 => max = Some(value.double()),
                _ => {}
            }
        }
        self.append_distribution(count, sum, min, max);
        self.bucket_counts.end_row();
        self.explicit_bounds.end_row();
        self.flags.push(flags as i64);
        self.attributes.append(point, 9);
    }

    fn append_exponential_histogram(&mut self, point: &[u8]) {
        let (mut count, mut sum, mut min, mut max, mut flags) = (0, None, None, None, 0);
        let (mut scale, mut zero_count, mut zero_threshold) = (0, 0, 0.0);
        let (mut positive, mut negative) = (&[][..], &[][..]);
        for (field, value) in Fields::of(point) {
            match field {
                4 => count = value.number(),
                5 => sum = Some(value.double()),
                6 => scale = zigzag(value.number()),
                7 => zero_count = value.number(),
                8 => positive = value.bytes(),
                9 => negative = value.bytes(),
                10 => flags = value.number(),
                11 => self.exemplars.append(value.bytes()),
                12 => min = Some(value.double()),
                13 => max = Some(value.double()),
                14 => zero_threshold = value.double(),
                _ => {}
            }
        }
        self.append_distribution(count, sum, min, max);
        self.scale.append_value(scale);
        self.zero_count.append_value(zero_count as i64);
        self.zero_threshold.append_value(zero_threshold);
        append_buckets(&mut self.positive_offset, &mut self.positive_counts, positive);
        append_buckets(&mut self.negative_offset, &mut self.negative_counts, negative);
        self.flags.push(flags as i64);
        self.attributes.append(point, 1);
    }

    fn append_summary(&mut self, point: &[u8]) {
        let (mut count, mut sum, mut flags) = (0, 0.0, 0);
        for (field, value) in Fields::of(point) {
            match field {
                4 => count = value.number(),
                5 => sum = value.double(),
                6 => {
                    let part = |field| f64::from_bits(number(value.bytes(), field));
                    self.quantile.append_value(part(1));
                    self.quantile_value.append_value(part(2));
                }
                8 => flags = value.number(),
                _ => {}
            }
        }
        self.count.append_value(count as i64);
        self.sum.append_value(sum);
        self.quantile_offsets.push(self.quantile.len() as i32);
        self.flags.push(flags as i64);
        self.attributes.append(point, 7);
    }

    fn append_distribution(&mut self, count: u64, sum: Option<f64>, min: Option<f64>, max: Option<f64>) {
        self.count.append_value(count as i64);
        self.sum.append_option(sum);
        self.min.append_option(min);
        self.max.append_option(max);
    }

    fn finish(mut self) -> DecodedTable {
        let mut columns = Columns::of(self.table);
        let metric = columns.share(std::mem::take(&mut self.metric_of_row));
        columns.put("timestamp", timestamps(&self.time));
        columns.put("time_unix_nano", Int64Array::from_iter_values(self.time.iter().map(|nanos| *nanos as i64)));
        columns.put("start_time_unix_nano", Int64Array::from(std::mem::take(&mut self.start)));
        columns.put("flags", Int64Array::from(std::mem::take(&mut self.flags)));
        let mut metrics = self.metrics;
        columns.put_in(metric, "metric_name", metrics.name.finish());
        columns.put_in(metric, "description", metrics.description.finish());
        columns.put_in(metric, "unit", metrics.unit.finish());
        let metadata = metrics.metadata.finish(&columns.data_type("metadata"));
        columns.put_attributes_in(metric, "metadata", "metadata_types", metadata);
        columns.put_attributes(self.attributes);
        if !matches!(self.table, SignalTable::MetricsGauge | SignalTable::MetricsSummary) {
            columns.put_in(metric, "aggregation_temporality", metrics.temporality.finish());
        }
        match self.table {
            SignalTable::MetricsSum => {
                columns.put_in(metric, "is_monotonic", metrics.is_monotonic.finish());
                columns.put("value_int", self.value_int.finish());
                columns.put("value_double", self.value_double.finish());
            }
            SignalTable::MetricsSummary => {
                columns.put("count", self.count.finish());
                columns.put("sum", self.sum.finish());
                let arrays: Vec<ArrayRef> =
                    vec![Arc::new(self.quantile.finish()), Arc::new(self.quantile_value.finish())];
                let list = columns.data_type("quantile_values");
                columns.put("quantile_values", list_of_structs(&list, self.quantile_offsets, arrays));
            }
            SignalTable::MetricsHistogram | SignalTable::MetricsExponentialHistogram => {
                columns.put("count", self.count.finish());
                columns.put("sum", self.sum.finish());
                columns.put("min", self.min.finish());
                columns.put("max", self.max.finish());
                if self.table == SignalTable::MetricsHistogram {
                    let counts = Arc::new(self.bucket_counts.values.finish());
                    put_numbers(&mut columns, "bucket_counts", self.bucket_counts.offsets, counts);
                    let bounds = Arc::new(self.explicit_bounds.values.finish());
                    put_numbers(&mut columns, "explicit_bounds", self.explicit_bounds.offsets, bounds);
                } else {
                    columns.put("scale", self.scale.finish());
                    columns.put("zero_count", self.zero_count.finish());
                    columns.put("zero_threshold", self.zero_threshold.finish());
                    columns.put("positive_offset", self.positive_offset.finish());
                    let counts = Arc::new(self.positive_counts.values.finish());
                    put_numbers(&mut columns, "positive_bucket_counts", self.positive_counts.offsets, counts);
                    columns.put("negative_offset", self.negative_offset.finish());
                    let counts = Arc::new(self.negative_counts.values.finish());
                    put_numbers(&mut columns, "negative_bucket_counts", self.negative_counts.offsets, counts);
                }
            }
            _ => {
                columns.put("value_int", self.value_int.finish());
                columns.put("value_double", self.value_double.finish());
            }
        }
        if self.table != SignalTable::MetricsSummary {
            self.exemplars.finish(&mut columns);
        }
        self.common.finish(self.table, columns)
    }
}

fn put_numbers(columns: &mut Columns, name: &str, offsets: Vec<i32>, values: ArrayRef) {
    let list = columns.data_type(name);
    columns.put(name, list_of_numbers(&list, offsets, values));
}

fn append_buckets(offset: &mut Int32Builder, counts: &mut Numbers<Int64Builder>, buckets: &[u8]) {
    let mut at = 0;
    for (field, value) in Fields::of(buckets) {
        match field {
            1 => at = zigzag(value.number()),
            2 => packed_varint(value, |count| counts.values.append_value(count as i64)),
            _ => {}
        }
    }
    offset.append_value(at);
    counts.end_row();
}

/// sint32 on the wire.
fn zigzag(value: u64) -> i32 {
    let value = value as u32;
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

impl<B> Numbers<B> {
    fn new(values: B) -> Self {
        Self { offsets: vec![0], values }
    }
}

impl Numbers<Int64Builder> {
    fn extend_fixed64(&mut self, value: Value<'_>) {
        packed_fixed64(value, |count| self.values.append_value(count as i64));
    }

    fn end_row(&mut self) {
        self.offsets.push(self.values.len() as i32);
    }
}

impl Numbers<Float64Builder> {
    fn extend(&mut self, value: Value<'_>) {
        packed_fixed64(value, |bits| self.values.append_value(f64::from_bits(bits)));
    }

    fn end_row(&mut self) {
        self.offsets.push(self.values.len() as i32);
    }
}

impl MetricColumns {
    fn append(&mut self, metric: &[u8], data: &[u8]) {
        self.count += 1;
        append_text(&mut self.name, messages(metric, 1).last());
        append_text(&mut self.description, messages(metric, 2).last());
        append_text(&mut self.unit, messages(metric, 3).last());
        self.metadata.append(metric, 12);
        append_enum(&mut self.temporality, TEMPORALITIES, number(data, 2));
        self.is_monotonic.append_value(number(data, 3) != 0);
    }
}

impl ExemplarsBuilder {
    fn new() -> Self {
        Self {
            offsets: vec![0],
            time: Int64Builder::new(),
            value_int: Int64Builder::new(),
            value_double: Float64Builder::new(),
            trace_id: FixedSizeBinaryBuilder::new(16),
            span_id: FixedSizeBinaryBuilder::new(8),
            attributes: AttributesBuilder::new(promoted::NONE),
        }
    }

    fn append(&mut self, exemplar: &[u8]) {
        let (mut time, mut int, mut double) = (0, None, None);
        let (mut trace_id, mut span_id) = (&[][..], &[][..]);
        for (field, value) in Fields::of(exemplar) {
            match field {
                2 => time = value.number(),
                3 => (int, double) = (None, Some(value.double())),
                4 => span_id = value.bytes(),
                5 => trace_id = value.bytes(),
                6 => (int, double) = (Some(value.number() as i64), None),
                _ => {}
            }
        }
        self.time.append_value(time as i64);
        self.value_int.append_option(int);
        self.value_double.append_option(double);
        append_id(&mut self.trace_id, trace_id);
        append_id(&mut self.span_id, span_id);
        self.attributes.append(exemplar, 7);
    }

    fn end_row(&mut self) {
        self.offsets.push(self.time.len() as i32);
    }

    fn finish(mut self, columns: &mut Columns) {
        let list = columns.data_type("exemplars");
        let attributes = self.attributes.finish(struct_fields(&list)[5].data_type());
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish()),
            Arc::new(self.value_int.finish()),
            Arc::new(self.value_double.finish()),
            Arc::new(self.trace_id.finish()),
            Arc::new(self.span_id.finish()),
            attributes.map,
            attributes.types,
        ];
        columns.put("exemplars", list_of_structs(&list, self.offsets, arrays));
    }
}
