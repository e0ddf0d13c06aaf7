use super::*;

#[path = "../../../fuzz/inputs.rs"]
mod inputs;

const TRACEQL: &str = "{ } ( ) && || >> !~ &< | ! - . , = =~ ^ \" ` \\ \\n \n 5 5s 1e3 0.5 nil true é span. parent. \
    parent.span. resource. event: nestedSetParent<0 duration status error kind by( select( coalesce() count() avg( rate() \
    quantile_over_time( topk(3) with(exemplars=5)";

const SQL: &str = "FOR\nTIMESTAMP\nAS\nOF FOR\nVERSION\nAS\nOF FOR\nSYSTEM_TIME\nAS\nOF FOR AS OF now() ( ) 7 '2026-01-01' ' \" \
    traces . , ? ?2 $1 $name -- /* \n é ; t";

#[test]
fn traceql_is_written_as_it_reads_or_wrong_at_a_place_in_its_text() {
    inputs::hold("traceql", traceql, TRACEQL, 4000);
}

#[test]
fn sql_keeps_its_places_while_clauses_and_question_marks_are_replaced() {
    inputs::hold("sql", sql, SQL, 4000);
}

#[test]
fn ids_are_written_as_they_are_read() {
    inputs::hold("trace_id", id, "0 a F g é +", 1000);
}

#[test]
fn the_end_of_a_line_is_a_place_and_nothing_behind_it() {
    for (line, column, expected) in
        [(1, 1, true), (1, 3, true), (1, 4, false), (2, 2, true), (3, 1, false), (0, 1, false), (1, 0, false)]
    {
        assert_eq!(is_place("ab\né", line, column), expected, "{line}:{column}");
    }
}
