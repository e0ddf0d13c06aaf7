use super::*;

#[path = "../../../fuzz/inputs.rs"]
mod inputs;

/// Tags of protobuf's first fields, lengths, and numbers at their edges.
const PROTOBUF: &str = "\n \n\0 \u{12} \u{12}\u{1} \u{1a} \" * 2 : B \u{8} \0 \u{1} \u{7f} \u{10} acme é";

const JSON: &str = r#"{ } [ ] : , null true "" -1 1e400 18446744073709551616 "NaN" \ud800 é "traceId":"00" "spans":[{}]
    "arrayValue":{} "kvlistValue":{"values":[{}]} "value":{"stringValue":"v"} "timeUnixNano":"1""#;

#[test]
fn a_ticket_is_one_of_ours_or_refused() {
    inputs::hold("ticket", ticket, PROTOBUF, 2000);
}

#[test]
fn credentials_are_read_or_refused() {
    inputs::hold("credentials", credentials, "Bearer Basic basic sdb1. sdb2. = YWNtZTpzaw acme : \t", 2000);
}

#[test]
fn a_session_that_no_node_sealed_opens_nothing() {
    inputs::hold("session", session, "\0 \u{1} sdb2.", 500);
}

#[test]
fn an_otlp_request_is_refused_or_decodes_to_the_rows_that_were_counted() {
    inputs::hold("otlp", otlp, PROTOBUF, 1000);
}

#[test]
fn otlp_json_is_refused_or_a_request() {
    inputs::hold("otlp_json", otlp_json, JSON, 1000);
}

#[test]
fn a_trace_id_is_a_number_in_hex_or_refused() {
    inputs::hold("trace_id", trace_id, "0 a F g é +", 1000);
}
