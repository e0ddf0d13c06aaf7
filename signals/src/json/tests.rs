use super::*;

fn span_of(json: &str) -> Result<Span, JsonError> {
    let body = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{json}]}}]}}]}}"#);
    let bytes = to_protobuf(SignalKind::Traces, body.as_bytes())?;
    let request = ExportTraceServiceRequest::decode(bytes.as_slice()).expect("decodes");
    Ok(request.resource_spans[0].scope_spans[0].spans[0].clone())
}

fn value_of(json: &str) -> Result<AnyValue, JsonError> {
    any_value_from_json(&serde_json::from_str(json).expect("JSON"))
}

#[test]
fn ids_are_hex_of_either_case_and_integers_may_be_texts() {
    let span = span_of(
        r#"{"traceId":"5B8EFFF798038103d269b633813fc60c","spanId":"","startTimeUnixNano":"1544712660000000000",
        "endTimeUnixNano":1544712661000000000,"kind":2,"unknown":{"x":1},"status":null,"trace_id":"ignored"}"#,
    )
    .expect("valid");
    assert_eq!(span.trace_id[..3], [0x5b, 0x8e, 0xff]);
    assert!(span.span_id.is_empty());
    assert_eq!(
        (span.start_time_unix_nano, span.end_time_unix_nano),
        (1_544_712_660_000_000_000, 1_544_712_661_000_000_000)
    );
    assert_eq!(span.status, None);
}

#[test]
fn every_form_of_a_value_is_accepted() {
    let cases = [
        ("{}", None),
        (r#"{"intValue":"9007199254740993"}"#, Some(Any::IntValue(9_007_199_254_740_993))),
        (r#"{"intValue":-3}"#, Some(Any::IntValue(-3))),
        (r#"{"doubleValue":"Infinity"}"#, Some(Any::DoubleValue(f64::INFINITY))),
        (r#"{"doubleValue":"1.5"}"#, Some(Any::DoubleValue(1.5))),
        (r#"{"doubleValue":2}"#, Some(Any::DoubleValue(2.0))),
        (r#"{"arrayValue":{}}"#, Some(Any::ArrayValue(ArrayValue::default()))),
        (r#"{"kvlistValue":{"values":null}}"#, Some(Any::KvlistValue(KeyValueList::default()))),
        (r#"{"bytesValue":"-_8"}"#, Some(Any::BytesValue(vec![0xfb, 0xff]))),
        (r#"{"stringValue":""}"#, Some(Any::StringValue(String::new()))),
        (r#"{"newKindOfValue":1}"#, None),
    ];
    for (json, expected) in cases {
        assert_eq!(value_of(json).expect(json).value, expected, "{json}");
    }
    let Some(Any::DoubleValue(nan)) = value_of(r#"{"doubleValue":"NaN"}"#).expect("valid").value else {
        panic!("a double")
    };
    assert!(nan.is_nan());
}

#[test]
fn errors_say_where() {
    let error = span_of(r#"{"name":"a","attributes":[{"key":"k","value":{"intValue":"x"}}]}"#).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "$.resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.intValue: expected an integer"
    );
    for bad in ["[]", "{", r#"{"resourceSpans":{}}"#, "\"x\""] {
        assert!(to_protobuf(SignalKind::Traces, bad.as_bytes()).is_err(), "{bad}");
    }
    for bad in [r#"{"traceId":"xyz"}"#, r#"{"traceId":"abc"}"#, r#"{"kind":"SPAN_KIND_SERVER"}"#, r#"{"flags":-1}"#] {
        assert!(span_of(bad).is_err(), "{bad}");
    }
}

#[test]
fn metrics_keep_doubles_that_json_cannot_say() {
    let body = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"m","gauge":{"dataPoints":[
        {"asDouble":"NaN"},{"asInt":"5"},{"asDouble":1}]}}]}]}]}"#;
    let bytes = to_protobuf(SignalKind::Metrics, body.as_bytes()).expect("valid");
    let request = ExportMetricsServiceRequest::decode(bytes.as_slice()).expect("decodes");
    let Some(metric::Data::Gauge(gauge)) = &request.resource_metrics[0].scope_metrics[0].metrics[0].data else {
        panic!("a gauge")
    };
    let values: Vec<_> = gauge.data_points.iter().map(|point| point.value).collect();
    assert!(matches!(values[0], Some(number_data_point::Value::AsDouble(value)) if value.is_nan()));
    assert_eq!(values[1..], [Some(number_data_point::Value::AsInt(5)), Some(number_data_point::Value::AsDouble(1.0))]);
}
