use super::*;

/// Each query, and how it is understood.
const QUERIES: &[(&str, &str)] = &[
    ("{}", "{ true }"),
    ("{ }", "{ true }"),
    ("{ true }", "{ true }"),
    ("{ .a }", "{ .a }"),
    ("{ .a = 1 }", "{ (.a = 1) }"),
    ("{ 1 = .a }", "{ (1 = .a) }"),
    ("{ .a = -1 }", "{ (.a = -1) }"),
    ("{ .a = 1.5 }", "{ (.a = 1.5) }"),
    ("{ .a = .5 }", "{ (.a = 0.5) }"),
    ("{ .a = 1e3 }", "{ (.a = 1000.0) }"),
    ("{ .a = 2E-1 }", "{ (.a = 0.2) }"),
    ("{.a=true&&.b=false}", "{ ((.a = true) && (.b = false)) }"),
    // && and || are equally tight.
    ("{ .a || .b && .c }", "{ ((.a || .b) && .c) }"),
    ("{ .a && .b || .c }", "{ ((.a && .b) || .c) }"),
    ("{ .a || (.b && .c) }", "{ (.a || (.b && .c)) }"),
    ("{ .a + 1 * 2 > 3 }", "{ ((.a + (1 * 2)) > 3) }"),
    ("{ .a - 1 - 2 > 3 }", "{ (((.a - 1) - 2) > 3) }"),
    ("{ 2 ^ 3 ^ .a = 1 }", "{ ((2 ^ (3 ^ .a)) = 1) }"),
    ("{ .a % 2 / 3 = 0 }", "{ (((.a % 2) / 3) = 0) }"),
    ("{ -.a > 1 }", "{ (-(.a) > 1) }"),
    ("{ !.a }", "{ !(.a) }"),
    ("{ !(.a = 1) && .b }", "{ (!((.a = 1)) && .b) }"),
    ("{ .a = nil }", "{ (.a = nil) }"),
    ("{ nil != span.a }", "{ (nil != span.a) }"),
    ("{ name = nil }", "{ (name = nil) }"),
    // Names run up to a blank or an operator.
    ("{ span.data-size > 1 }", "{ (span.data-size > 1) }"),
    ("{ span.a/b*c+d:e = 1 }", "{ (span.a/b*c+d:e = 1) }"),
    ("{ span.data - 1 > 1 }", "{ ((span.data - 1) > 1) }"),
    ("{ .a.b.c!=\"\" }", "{ (.a.b.c != \"\") }"),
    (r#"{ span."a b" = 1 }"#, r#"{ (span."a b" = 1) }"#),
    (r#"{ span."a\nb" = 1 }"#, r#"{ (span."a\nb" = 1) }"#),
    (r#"{ ."5s" = .x5s }"#, r#"{ (."5s" = .x5s) }"#),
    (r#"{ parent."5s" = span.5s }"#, r#"{ (parent.5s = span.5s) }"#),
    (r#"{ span."a \"b\"".c = 1 }"#, r#"{ (span."a \"b\".c" = 1) }"#),
    ("{ .été = \"ü\" }", "{ (.été = \"ü\") }"),
    ("{ resource.service.name = \"shop\" }", "{ (resource.service.name = \"shop\") }"),
    ("{ event.exception.type = \"x\" }", "{ (event.exception.type = \"x\") }"),
    ("{ link.a = 1 }", "{ (link.a = 1) }"),
    ("{ instrumentation.a = 1 }", "{ (instrumentation.a = 1) }"),
    ("{ parent.a = 1 }", "{ (parent.a = 1) }"),
    ("{ parent.span.a = 1 }", "{ (parent.span.a = 1) }"),
    ("{ parent.resource.a = 1 }", "{ (parent.resource.a = 1) }"),
    // Intrinsics.
    ("{ span:name = \"x\" }", "{ (name = \"x\") }"),
    ("{ span:duration > 1s }", "{ (duration > 1000000000ns) }"),
    ("{ duration > 1h30m }", "{ (duration > 5400000000000ns) }"),
    ("{ duration > 1.5ms }", "{ (duration > 1500000ns) }"),
    ("{ duration > 2us }", "{ (duration > 2000ns) }"),
    ("{ duration > 2µs }", "{ (duration > 2000ns) }"),
    ("{ duration > 1d }", "{ (duration > 86400000000000ns) }"),
    ("{ duration > 100 }", "{ (duration > 100) }"),
    ("{ duration / 2 > 1s }", "{ ((duration / 2) > 1000000000ns) }"),
    ("{ status = error }", "{ (status = error) }"),
    ("{ span:status != ok }", "{ (status != ok) }"),
    ("{ kind = server }", "{ (kind = server) }"),
    ("{ span:kind = unspecified }", "{ (kind = unspecified) }"),
    ("{ statusMessage =~ \"a.*\" }", "{ (statusMessage =~ \"a.*\") }"),
    ("{ name !~ `a\\d+` }", "{ (name !~ \"a\\\\d+\") }"),
    (
        "{ trace:duration > 1s && traceDuration < 2s }",
        "{ ((traceDuration > 1000000000ns) && (traceDuration < 2000000000ns)) }",
    ),
    ("{ trace:rootName = rootName }", "{ (rootName = rootName) }"),
    ("{ trace:rootService = \"a\" }", "{ (rootServiceName = \"a\") }"),
    ("{ trace:id = \"a\" }", "{ (trace:id = \"a\") }"),
    ("{ span:id = \"a\" && span:parentID = \"b\" }", "{ ((span:id = \"a\") && (span:parentID = \"b\")) }"),
    ("{ span:childCount > 3 }", "{ (span:childCount > 3) }"),
    (
        "{ event:name = \"a\" && event:timeSinceStart > 2ms }",
        "{ ((event:name = \"a\") && (event:timeSinceStart > 2000000ns)) }",
    ),
    ("{ link:traceID = \"a\" && link:spanID = \"b\" }", "{ ((link:traceID = \"a\") && (link:spanID = \"b\")) }"),
    ("{ instrumentation:name = \"a\" }", "{ (instrumentation:name = \"a\") }"),
    ("{ instrumentation:version = \"a\" }", "{ (instrumentation:version = \"a\") }"),
    ("{ nestedSetParent < 0 }", "{ (nestedSetParent < 0) }"),
    ("{ 0 > nestedSetParent }", "{ (nestedSetParent < 0) }"),
    ("{nestedSetParent<0 && true}", "{ ((nestedSetParent < 0) && true) }"),
    ("{ nestedSetLeft > 1 }", "{ (nestedSetLeft > 1) }"),
    // Texts.
    (r#"{ .a = "b\"c\\d\n\té" }"#, "{ (.a = \"b\\\"c\\\\d\\n\té\") }"),
    ("{ .a = `b\"c` }", "{ (.a = \"b\\\"c\") }"),
    // Spansets.
    ("{ .a } && { .b }", "({ .a } && { .b })"),
    ("{ .a } || { .b } && { .c }", "(({ .a } || { .b }) && { .c })"),
    ("{ .a } && { .b } >> { .c }", "({ .a } && ({ .b } >> { .c }))"),
    ("{ .a } > { .b } >> { .c }", "(({ .a } > { .b }) >> { .c })"),
    ("{ .a } > ({ .b } >> { .c })", "({ .a } > ({ .b } >> { .c }))"),
    ("{} < {}", "({ true } < { true })"),
    ("{} << {}", "({ true } << { true })"),
    ("{} ~ {}", "({ true } ~ { true })"),
    ("{} !> {}", "({ true } !> { true })"),
    ("{} !>> {}", "({ true } !>> { true })"),
    ("{} !< {}", "({ true } !< { true })"),
    ("{} !<< {}", "({ true } !<< { true })"),
    ("{} !~ {}", "({ true } !~ { true })"),
    ("{} &> {}", "({ true } &> { true })"),
    ("{} &>> {}", "({ true } &>> { true })"),
    ("{} &< {}", "({ true } &< { true })"),
    ("{} &<< {}", "({ true } &<< { true })"),
    ("{} &~ {}", "({ true } &~ { true })"),
    ("({ .a } | count() > 1) && ({ .b } | count() > 2)", "(({ .a } | count() > 1) && ({ .b } | count() > 2))"),
    ("(({ .a }))", "{ .a }"),
    // Pipelines.
    ("{} | { .a }", "{ true } | { .a }"),
    ("{} | count() > 2", "{ true } | count() > 2"),
    ("{} | 2 < count()", "{ true } | 2 < count()"),
    ("count() > 2", "count() > 2"),
    ("{} | avg(duration) >= 1s", "{ true } | avg(duration) >= 1000000000ns"),
    ("{} | max(.a) - min(.a) != 1", "{ true } | (max(.a) - min(.a)) != 1"),
    ("{} | (sum(.a) + 1) * 2 > 3", "{ true } | ((sum(.a) + 1) * 2) > 3"),
    ("{} | sum(.a + span.b) > 3", "{ true } | sum((.a + span.b)) > 3"),
    (
        "{} | by(resource.service.name) | count() > 1 | coalesce()",
        "{ true } | by(resource.service.name) | count() > 1 | coalesce()",
    ),
    ("by(name)", "by(name)"),
    ("{} | select(name, .a, resource.b)", "{ true } | select(name, .a, resource.b)"),
    // Series.
    ("{} | rate()", "{ true } | rate()"),
    ("{} | rate() by(name, resource.service.name)", "{ true } | rate() by(name, resource.service.name)"),
    ("{} | count_over_time() by (status)", "{ true } | count_over_time() by(status)"),
    ("{} | min_over_time(duration)", "{ true } | min_over_time(duration)"),
    ("{} | max_over_time(span.a)", "{ true } | max_over_time(span.a)"),
    ("{} | avg_over_time(.a)", "{ true } | avg_over_time(.a)"),
    ("{} | sum_over_time(.a)", "{ true } | sum_over_time(.a)"),
    ("{} | quantile_over_time(duration, .5, 0.9, 1)", "{ true } | quantile_over_time(duration, 0.5, 0.9, 1.0)"),
    ("{} | histogram_over_time(duration) by(name)", "{ true } | histogram_over_time(duration) by(name)"),
    ("{} | rate() by(name) | topk(3) | bottomk(1)", "{ true } | rate() by(name) | topk(3) | bottomk(1)"),
    ("{} | compare({ status = error })", "{ true } | compare({ (status = error) }, 10)"),
    ("{ .a } | compare({.b}, 5)", "{ .a } | compare({ .b }, 5)"),
    ("{} | compare({}, 5, 1, 1700000000000000000)", "{ true } | compare({ true }, 5, 1, 1700000000000000000)"),
    ("{} >> {.a} | rate()", "({ true } >> { .a }) | rate()"),
    (
        "{nestedSetParent<0 && true} | rate()  with(sample=true)",
        "{ ((nestedSetParent < 0) && true) } | rate() with(sample=true)",
    ),
    (
        "{} | select(name) with(most_recent=true, exemplars=10)",
        "{ true } | select(name) with(most_recent=true, exemplars=10)",
    ),
    (
        "({nestedSetParent<0 && true && status = error} &>> { status = error }) || ({nestedSetParent<0}) | select(status, nestedSetLeft)",
        "(({ (((nestedSetParent < 0) && true) && (status = error)) } &>> { (status = error) }) || { (nestedSetParent < 0) }) | select(status, nestedSetLeft)",
    ),
];

#[test]
fn queries_are_understood() {
    for (query, expected) in QUERIES {
        let parsed = Traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(parsed.to_string(), *expected, "{query}");
    }
}

#[test]
fn what_is_written_parses_to_the_same() {
    for (query, _) in QUERIES {
        let once = Traceql::parse(query).expect(query).to_string();
        let again = Traceql::parse(&once).unwrap_or_else(|error| panic!("{once}: {error}")).to_string();
        assert_eq!(once, again, "{query}");
    }
}

/// Each wrong query, where it is wrong, and a part of what is said about it.
const MISTAKES: &[(&str, usize, usize, &str)] = &[
    ("", 1, 1, "end of query"),
    ("   ", 1, 4, "end of query"),
    ("{", 1, 2, "end of query"),
    ("{ .a = }", 1, 8, "unexpected }"),
    ("{ .a 1 }", 1, 6, "unexpected 1"),
    ("{ = 1 }", 1, 3, "unexpected ="),
    ("{\n  .a = \"x\n }", 2, 8, "no end"),
    ("{ . = 1 }", 1, 3, "name of an attribute"),
    ("{ é = 1 }", 1, 3, "unexpected é"),
    ("{ .é = 1 = }", 1, 12, "unexpected }"),
    ("{ foo.bar = 1 }", 1, 3, "unknown scope \"foo\""),
    ("{ span: = 1 }", 1, 3, "missing after span:"),
    ("{ span:nope = 1 }", 1, 3, "unexpected span:nope"),
    ("{ nope = 1 }", 1, 3, "unexpected nope"),
    ("{ .a = \"\\q\" }", 1, 9, "unknown escape"),
    ("{ .a = 1x }", 1, 8, "is no duration"),
    ("{ .a = 99999999999999999999 }", 1, 8, "out of range"),
    ("{ .a ? 1 }", 1, 6, "unexpected '?'"),
    ("{ .a } }", 1, 8, "the end of the query"),
    ("{ .a } { .b }", 1, 8, "the end of the query"),
    ("{ .a } | ", 1, 10, "end of query"),
    ("{ .a } >> ", 1, 11, "end of query"),
    ("{ duration = \"x\" }", 1, 12, "does not go with"),
    ("{ status = 1 }", 1, 10, "does not go with"),
    ("{ status > ok }", 1, 10, "does not go with"),
    ("{ kind = error }", 1, 8, "does not go with"),
    ("{ name + 1 = 2 }", 1, 8, "does not go with"),
    ("{ name && true }", 1, 8, "does not go with"),
    ("{ 1 + 1 }", 1, 3, "not a number"),
    ("{ \"x\" }", 1, 3, "not a text"),
    ("{ -name = 1 }", 1, 3, "- does not go with"),
    ("{ !duration }", 1, 3, "! does not go with"),
    ("{ duration =~ \"x\" }", 1, 12, "goes with a text"),
    ("{ name =~ 1 }", 1, 11, "is a text"),
    ("{ name =~ \"(\" }", 1, 11, "bad regular expression"),
    ("{ name =~ \"a)(b\" }", 1, 11, "bad regular expression"),
    ("{ name =~ \"(?:x{1000}){1000}\" }", 1, 11, "bad regular expression"),
    ("{} | count() ", 1, 14, "a comparison"),
    ("{} | 1 > 2", 1, 6, "one side must be"),
    ("{} | sum() > 2", 1, 10, "unexpected )"),
    ("{} | sum(name) > 2", 1, 10, "of numbers"),
    ("{} | count(name) > 2", 1, 12, "unexpected name"),
    ("coalesce()", 1, 1, "unexpected coalesce"),
    ("{} | by()", 1, 9, "unexpected )"),
    ("{} | select()", 1, 13, "unexpected )"),
    ("{} | rate(", 1, 11, "unexpected end of query"),
    ("{} | min_over_time()", 1, 20, "unexpected )"),
    ("{} | min_over_time(name)", 1, 20, "of numbers"),
    ("{} | quantile_over_time(duration)", 1, 33, "a quantile"),
    ("{} | quantile_over_time(duration, 2)", 1, 35, "a quantile"),
    ("{} | rate() | topk(0)", 1, 20, "above 0"),
    ("{} | rate() | count() > 1", 1, 15, "topk or bottomk"),
    ("{} with(exemplars)", 1, 18, "unexpected )"),
    ("{} | compare()", 1, 14, "unexpected )"),
    ("{} | compare(status = error)", 1, 14, "unexpected status"),
    ("{} | compare(({} | count() > 1))", 1, 14, "one filter"),
    ("{} | compare({ status = 1 })", 1, 23, "does not go with"),
    ("{} | compare({}, 0)", 1, 18, "from 1 to 1000"),
    ("{} | compare({}, 1001)", 1, 18, "from 1 to 1000"),
    ("{} | compare({}, 5, 1)", 1, 22, "unexpected )"),
    ("{} | compare({}, 5, 7, 7)", 1, 21, "after its start"),
    ("{} | compare({}, 5, 7, 8, 9)", 1, 25, "unexpected ,"),
    ("{} | compare({}) by(name)", 1, 18, "the end of the query"),
    ("{} | compare({}) | topk(3)", 1, 18, "the end of the query"),
];

#[test]
fn mistakes_have_a_position() {
    for (query, line, column, message) in MISTAKES {
        let error = Traceql::parse(query).expect_err(query);
        assert_eq!((error.line, error.column), (*line, *column), "{query}: {error}");
        assert!(error.message.contains(message), "{query}: {error}");
        assert!(!error.unsupported, "{query}");
    }
    let error = Traceql::parse("{ .a = }").expect_err("wrong").to_string();
    assert!(
        error.starts_with("invalid TraceQL query: parse error at line 1, col 8: syntax error: unexpected }"),
        "{error}"
    );
}

#[test]
fn what_is_not_supported_is_named_with_its_position() {
    for (query, column, name) in [
        ("{ parent = nil }", 3, "parent"),
        ("{} | rate() > 3", 13, "> on series"),
        ("({} | rate()) / ({} | rate())", 7, "arithmetic of series"),
        ("{} | rate() with(shards=3)", 18, "the hint shards"),
    ] {
        let error = Traceql::parse(query).expect_err(query);
        assert!(error.unsupported, "{query}: {error}");
        assert_eq!(error.column, column, "{query}: {error}");
        assert!(error.message.contains(name), "{query}: {error}");
    }
}

#[test]
fn deep_and_long_queries_are_refused_and_not_a_crash() {
    let deep = |open: &str, close: &str| format!("{{ {}.a{} }}", open.repeat(20_000), close.repeat(20_000));
    for query in [
        deep("(", ")"),
        deep("!", ""),
        deep("-", ""),
        format!("{{ .a{} }}", " && .a".repeat(10_000)),
        format!("{}{{}}{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("{{}}{}", " | {}".repeat(10_000)),
        format!("{{}}{}", " >> {}".repeat(10_000)),
        format!("{{}} | {}count() > 1", "-".repeat(10_000)),
        format!("{{ .a = \"{}\" }}", "x".repeat(QUERY_BYTES_MAX)),
        format!("{{ {} }}", vec![".a =~ \"x\""; 17].join(" || ")),
        format!("{{}} | rate() by(name{})", ", name".repeat(1000)),
        format!("{{}} | quantile_over_time(duration{})", ", 0".repeat(1000)),
    ] {
        let error = Traceql::parse(&query).expect_err("refused");
        assert!(error.message.contains("at most"), "{error}");
    }
}

/// Whatever the text is, it is read or refused: no panic, no slice within a character.
#[test]
fn broken_queries_never_panic() {
    for (query, _) in QUERIES {
        for (at, _) in query.char_indices() {
            let _ = Traceql::parse(&query[..at]);
            let _ = Traceql::parse(&query[at..]);
            for inserted in ["é", "\"", "\\", ".", "1", "{", "(", "~", "\0"] {
                let _ = Traceql::parse(&format!("{}{inserted}{}", &query[..at], &query[at..]));
            }
        }
    }
}

#[test]
fn names_of_fields_in_paths() {
    for (name, expected) in [
        ("status", "status"),
        ("span:kind", "kind"),
        ("resource.service.name", "resource.service.name"),
        (".a", ".a"),
        ("service.name", ".service.name"),
        ("span.a b", "span.\"a b\""),
        ("span.\"a b\"", "span.\"a b\""),
        ("span.", ".span."),
    ] {
        assert_eq!(Field::parse(name).to_string(), expected, "{name}");
    }
}
