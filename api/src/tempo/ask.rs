//! What requests ask for, from their parameters. Pure.

use std::collections::BTreeMap;

use signaldb_query::traceql::{Scope, Search, SeriesQuestion, TAG_SCOPES, TRACES_MAX, TagQuestion, Traceql, Window};

use crate::error::{ApiError, Kind};

/// Traces that are listed when a request does not say.
const TRACES: usize = 20;
/// Spans that are shown of each.
const SPANS: usize = 3;
/// Names or values that are listed when a request does not say.
pub(super) const TAGS: usize = 5_000;
const TAGS_MAX: usize = 100_000;
/// Examples of an answer, over all series.
const EXEMPLARS: usize = 100;
const EXEMPLARS_MAX: usize = 1_000;

const SECOND: u64 = 1_000_000_000;
/// How far back series go when a request does not say.
const SERIES_NANOS: u64 = 3600 * SECOND;
/// The same of names and values, and how an answer says it.
const LOOKBACK_NANOS: u64 = 3600 * SECOND;
pub(super) const LOOKBACK: &str = "1h";
/// Digits of the seconds, and of the nanoseconds since 1970 that anybody asks about; numbers between them are neither.
const DIGITS_OF_SECONDS: usize = 10;
const DIGITS_OF_NANOS: usize = 18;

pub(super) type Parameters = BTreeMap<String, String>;

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::invalid(message)
}

fn text<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

fn number(parameters: &Parameters, name: &str) -> Result<Option<u64>, ApiError> {
    let Some(value) = text(parameters, name) else { return Ok(None) };
    value.parse().map(Some).map_err(|_| invalid(format!("invalid {name}: {value:?} is not a whole number")))
}

/// A query as TraceQL.
pub(super) fn traceql(query: &str) -> Result<Traceql, ApiError> {
    Traceql::parse(query).map_err(|error| {
        let kind = if error.unsupported { Kind::NotImplemented } else { Kind::Invalid };
        ApiError::new(kind, error.to_string())
    })
}

/// A range in seconds; 0 is no bound. All of the last second is in it: what was acknowledged a moment ago is found.
pub(super) fn window(start: u64, end: u64) -> Result<Window, ApiError> {
    if start > 0 && end > 0 && end <= start {
        let message = format!("http parameter start must be before end. received start={start} end={end}");
        return Err(invalid(message));
    }
    let nanos = |seconds: u64| seconds.saturating_mul(SECOND);
    Ok(Window {
        start: (start > 0).then(|| nanos(start)),
        end: (end > 0).then(|| nanos(end).saturating_add(SECOND - 1)),
    })
}

pub(super) fn window_of(parameters: &Parameters) -> Result<Window, ApiError> {
    window(seconds(parameters, "start")?, seconds(parameters, "end")?)
}

/// A time in seconds; 0 when it is not given.
fn seconds(parameters: &Parameters, name: &str) -> Result<u64, ApiError> {
    let value = number(parameters, name)?.unwrap_or(0);
    if value.to_string().len() > DIGITS_OF_SECONDS {
        return Err(invalid(format!("invalid {name}: {value} is no time in seconds since 1970")));
    }
    Ok(value)
}

/// A range for names and values, and whether its start is the default.
pub(super) fn recent(window: Window, now: u64) -> (Window, bool) {
    if window.start.is_some() {
        return (window, false);
    }
    let end = window.end.map_or(now, |end| end.min(now));
    (Window { start: Some(end.saturating_sub(LOOKBACK_NANOS)), ..window }, true)
}

/// Reads `a=b&c=d+e%26`.
pub(super) fn form(body: &[u8]) -> Result<Vec<(String, String)>, ApiError> {
    let wrong = |part: &[u8]| {
        let part: String = String::from_utf8_lossy(part).chars().take(80).collect();
        invalid(format!("invalid form: {part:?} is not URL-encoded"))
    };
    let pair = |part: &[u8]| {
        let middle = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
        let value = part.get(middle + 1..).unwrap_or_default();
        Some((unescaped(&part[..middle])?, unescaped(value)?))
    };
    let parts = body.split(|byte| *byte == b'&').filter(|part| !part.is_empty());
    parts.map(|part| pair(part).ok_or_else(|| wrong(part))).collect()
}

fn unescaped(text: &[u8]) -> Option<String> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (digits, after) =
                    rest.split_at_checked(2).filter(|(two, _)| two.iter().all(u8::is_ascii_hexdigit))?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(out).ok()
}

/// An id of up to 32 hex digits; a shorter one has zeros before it.
pub(crate) fn trace_id(hex: &str) -> Result<[u8; 16], ApiError> {
    let wrong =
        || invalid(format!("trace IDs are up to 32 hex digits, not {:?}", hex.chars().take(80).collect::<String>()));
    if hex.is_empty() || hex.len() > 32 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    u128::from_str_radix(hex, 16).map(u128::to_be_bytes).map_err(|_| wrong())
}

/// Limits and ranges of a search, as HTTP and gRPC both know them.
#[derive(Debug, Default)]
pub(super) struct SearchParts {
    pub(super) query: String,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) min_duration: Option<u64>,
    pub(super) max_duration: Option<u64>,
    pub(super) limit: Option<u64>,
    pub(super) spans: Option<u64>,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl SearchParts {
    pub(super) fn of(parameters: &Parameters) -> Result<Self, ApiError> {
        let duration = |name: &str| -> Result<Option<u64>, ApiError> {
            let Some(value) = text(parameters, name) else { return Ok(None) };
            nanos_of(value).map(Some).ok_or_else(|| invalid(format!("invalid {name}: {value:?} is no duration")))
        };
        Ok(Self {
            query: text(parameters, "q").unwrap_or_default().to_owned(),
            tags: logfmt(text(parameters, "tags").unwrap_or_default())?,
            min_duration: duration("minDuration")?,
            max_duration: duration("maxDuration")?,
            limit: number(parameters, "limit")?,
            spans: number(parameters, "spss")?,
            start: seconds(parameters, "start")?,
            end: seconds(parameters, "end")?,
        })
    }

    /// The question, and whether it is one by tags, whose answer has no spans.
    pub(super) fn search(self) -> Result<(Search, bool), ApiError> {
        if !self.query.is_empty() && !self.tags.is_empty() {
            return Err(invalid("invalid request: can't specify tags and q in the same query"));
        }
        if let (Some(min), Some(max)) = (self.min_duration, self.max_duration)
            && max < min
        {
            return Err(invalid("invalid maxDuration: must be greater than minDuration"));
        }
        let limit = match self.limit {
            Some(0) => return Err(invalid("invalid limit: must be a positive number")),
            Some(limit) if limit > TRACES_MAX as u64 => {
                return Err(invalid(format!("invalid limit: {limit} exceeds {TRACES_MAX}")));
            }
            limit => limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(TRACES),
        };
        let by_tags = self.query.is_empty();
        let query = if by_tags { of_tags(&self.tags) } else { self.query };
        let search = Search {
            query: traceql(&query)?,
            window: window(self.start, self.end)?,
            min_duration: self.min_duration,
            max_duration: self.max_duration,
            limit,
            spans_per_spanset: self.spans.and_then(|spans| usize::try_from(spans).ok()).unwrap_or(SPANS),
        };
        Ok((search, by_tags))
    }
}

/// `1.5s`, `300ms`: as in TraceQL, where the language itself reads it.
fn nanos_of(text: &str) -> Option<u64> {
    signaldb_query::traceql::duration(text).and_then(|nanos| u64::try_from(nanos).ok())
}

/// Reads `a=b c="d e"`.
fn logfmt(text: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let mut tags = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let wrong =
            || invalid(format!("invalid tags: {:?} is not key=value", rest.chars().take(80).collect::<String>()));
        let (key, after) = rest.split_once('=').ok_or_else(wrong)?;
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c == '"') {
            return Err(wrong());
        }
        let (value, after) = if after.starts_with('"') { quoted(after).ok_or_else(wrong)? } else { bare(after) };
        if tags.insert(key.to_owned(), value).is_some() {
            return Err(invalid(format!("invalid tags: tag {key} has been set twice")));
        }
        rest = after.trim_start();
    }
    Ok(tags)
}

fn bare(text: &str) -> (String, &str) {
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (text[..end].to_owned(), &text[end..])
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match c {
            c if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &text[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

/// Tags as TraceQL. A value is a text that may stand for a number or a boolean.
fn of_tags(tags: &BTreeMap<String, String>) -> String {
    let conditions: Vec<String> = tags.iter().map(|(key, value)| of_tag(key, value)).collect();
    if conditions.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", conditions.join(" && ")) }
}

fn of_tag(key: &str, value: &str) -> String {
    let text = format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
    match key {
        "name" | "root.name" | "rootName" | "root.service.name" | "rootServiceName" | "statusMessage" => {
            let intrinsic = match key {
                "root.name" => "rootName",
                "root.service.name" => "rootServiceName",
                other => other,
            };
            format!("{intrinsic} = {text}")
        }
        "status" | "status.code" if matches!(value, "ok" | "error" | "unset") => format!("status = {value}"),
        "kind" if matches!(value, "unspecified" | "internal" | "server" | "client" | "producer" | "consumer") => {
            format!("kind = {value}")
        }
        "error" if value == "true" => "(status = error || .error = true)".to_owned(),
        _ => {
            let name = format!(".\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            let mut either = vec![format!("{name} = {text}")];
            let number = value.strip_prefix('+').unwrap_or(value);
            // Of digits alone the language makes an integer, which may be too large to be one; its sign is an operator.
            let digits = number.strip_prefix('-').unwrap_or(number);
            let whole = value.parse::<i64>().is_ok() && digits.parse::<i64>().is_ok();
            let real = value.contains(['.', 'e', 'E']) && value.parse::<f64>().is_ok_and(f64::is_finite);
            if (whole || real) && number.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
                either.push(format!("{name} = {number}"));
            }
            if matches!(value, "true" | "false") {
                either.push(format!("{name} = {value}"));
            }
            format!("({})", either.join(" || "))
        }
    }
}

/// The scopes of a request for names; `None` in it stands for intrinsics.
pub(super) fn scopes(name: &str) -> Result<Vec<Option<Scope>>, ApiError> {
    let known = TAG_SCOPES.into_iter().find(|scope| scope_name(Some(*scope)) == name);
    match name {
        "" | "none" => Ok(TAG_SCOPES.into_iter().map(Some).chain([None]).collect()),
        "intrinsic" => Ok(vec![None]),
        _ => known.map(|scope| vec![Some(scope)]).ok_or_else(|| invalid(format!("invalid scope: {name}"))),
    }
}

pub(super) fn scope_name(scope: Option<Scope>) -> &'static str {
    match scope {
        None => "intrinsic",
        Some(Scope::Resource) => "resource",
        Some(Scope::Event) => "event",
        Some(Scope::Link) => "link",
        Some(Scope::Instrumentation) => "instrumentation",
        Some(Scope::Span | Scope::Any) => "span",
    }
}

/// A question for names or values. A query that is not finished is being typed: it filters nothing.
pub(super) fn tags(query: &str, window: Window, limit: Option<u64>) -> TagQuestion {
    let limit = limit.filter(|limit| *limit > 0).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(TAGS);
    TagQuestion { window, filter: Traceql::parse(query).ok(), limit: limit.min(TAGS_MAX) }
}

/// The same, and whether its range is the default.
pub(super) fn tags_of(parameters: &Parameters, now: u64) -> Result<(TagQuestion, bool), ApiError> {
    let query = text(parameters, "q").unwrap_or_default();
    let (window, by_default) = recent(window_of(parameters)?, now);
    Ok((tags(query, window, number(parameters, "limit")?), by_default))
}

/// A question for series over time, or for one value of each when there is no `step`.
pub(super) fn series(
    query: &str,
    (start, end): (u64, u64),
    step: Option<u64>,
    exemplars: Option<u64>,
) -> Result<SeriesQuestion, ApiError> {
    if query.is_empty() {
        return Err(invalid("invalid request: q is missing"));
    }
    if start == 0 || end <= start {
        return Err(invalid(format!("http parameter start must be before end. received start={start} end={end}")));
    }
    let query = traceql(query)?;
    let exemplars = match (step, query.exemplars(), exemplars) {
        (None, ..) => 0,
        (_, Some(hinted), _) => hinted,
        (_, None, asked) => asked.filter(|asked| *asked > 0).map_or(EXEMPLARS, |asked| asked as usize),
    };
    let (start, end, step) = match step {
        // Steps lie where those of another range of the same step would.
        Some(step) if step > 0 => (start - start % step, end.div_ceil(step).saturating_mul(step), step),
        Some(_) => return Err(invalid("invalid step: must be above 0")),
        None => (start, end, end - start),
    };
    Ok(SeriesQuestion { query, start, end, step, exemplars: exemplars.min(EXEMPLARS_MAX) })
}

pub(super) fn series_of(parameters: &Parameters, now: u64, instant: bool) -> Result<SeriesQuestion, ApiError> {
    let query = text(parameters, "q").or_else(|| text(parameters, "query")).unwrap_or_default();
    let moment = |name: &str| -> Result<Option<u64>, ApiError> {
        let Some(value) = text(parameters, name) else { return Ok(None) };
        time(value).map(Some).ok_or_else(|| invalid(format!("invalid {name}: {value:?} is no time")))
    };
    let since = match text(parameters, "since") {
        Some(value) => nanos_of(value).ok_or_else(|| invalid(format!("invalid since: {value:?} is no duration")))?,
        None => SERIES_NANOS,
    };
    // Of the second that it is, all: what was acknowledged a moment ago is counted.
    let end = moment("end")?.unwrap_or_else(|| now.saturating_add(1));
    let start = moment("start")?.unwrap_or_else(|| end.saturating_sub(since).max(1));
    let step = match (text(parameters, "step"), instant) {
        (_, true) => None,
        (None, false) => Some(default_step(end.saturating_sub(start))),
        (Some(value), false) => {
            let seconds = value.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds < 1e9);
            let nanos = seconds.map(|seconds| (seconds * SECOND as f64) as u64).or_else(|| nanos_of(value));
            Some(nanos.ok_or_else(|| invalid(format!("invalid step: {value:?} is no duration")))?)
        }
    };
    series(query, (start, end), step, number(parameters, "exemplars")?)
}

/// Seconds, perhaps with a fraction, or nanoseconds since 1970. Milliseconds are refused: they would pass for 1970.
fn time(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number: u64 = text.parse().ok()?;
        return match text.len() {
            ..=DIGITS_OF_SECONDS => number.checked_mul(SECOND),
            DIGITS_OF_NANOS.. => Some(number),
            _ => None,
        };
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return (0.0..1e10).contains(&seconds).then_some((seconds * SECOND as f64) as u64);
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(time.timestamp_nanos_opt()?).ok()
}

/// About 240 moments, at round times.
pub(super) fn default_step(range: u64) -> u64 {
    const ROUND: [u64; 9] = [3600, 1800, 900, 300, 60, 30, 15, 5, 1];
    let about = range / 240 / SECOND;
    ROUND.into_iter().find(|round| *round <= about).map_or(SECOND, |round| about / round * round * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn ids_are_padded() {
        assert_eq!(trace_id("a1").expect("an id")[15], 0xa1);
        assert_eq!(trace_id(&"F".repeat(32)).expect("an id"), [0xff; 16]);
        for bad in ["", "xyz", "+1", &"0".repeat(33), "é"] {
            assert_eq!(trace_id(bad).expect_err("refused").kind, Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn the_last_second_is_whole() {
        let window = window(1, 2).expect("a range");
        assert_eq!((window.start, window.end), (Some(SECOND), Some(3 * SECOND - 1)));
        assert_eq!(super::window(0, 0).expect("a range"), Window::default());
        assert!(super::window(2, 2).is_err());
    }

    #[test]
    fn tags_become_traceql() {
        for (tags, expected) in [
            ("", "{ true }"),
            ("service.name=shop", "{ (.service.name = \"shop\") }"),
            ("a=\"b c\" d=1", "{ ((.a = \"b c\") && ((.d = \"1\") || (.d = 1))) }"),
            ("name=x status=error", "{ ((name = \"x\") && (status = error)) }"),
            ("a=\"q\\\"\"", "{ (.a = \"q\\\"\") }"),
            ("ok=true", "{ ((.ok = \"true\") || (.ok = true)) }"),
            ("x=1.5", "{ ((.x = \"1.5\") || (.x = 1.5)) }"),
            ("x=-7", "{ ((.x = \"-7\") || (.x = -7)) }"),
            ("x=--7", "{ (.x = \"--7\") }"),
            ("x=12345678901234567890", "{ (.x = \"12345678901234567890\") }"),
            ("x=-9223372036854775808", "{ (.x = \"-9223372036854775808\") }"),
        ] {
            let parts = SearchParts::of(&parameters(&[("tags", tags)])).expect(tags);
            let (search, by_tags) = parts.search().expect(tags);
            assert!(by_tags);
            assert_eq!(search.query.to_string(), expected, "{tags}");
        }
        for bad in ["a", "=b", "a=\"b", "a=1 a=2", "\"a\"=b"] {
            assert!(SearchParts::of(&parameters(&[("tags", bad)])).is_err(), "{bad}");
        }
    }

    #[test]
    fn searches_are_checked() {
        let search = |pairs: &[(&str, &str)]| SearchParts::of(&parameters(pairs)).and_then(SearchParts::search);
        let (found, by_tags) =
            search(&[("q", "{}"), ("limit", "7"), ("spss", "0"), ("minDuration", "1.5s")]).expect("valid");
        assert!(!by_tags);
        assert_eq!((found.limit, found.spans_per_spanset, found.min_duration), (7, 0, Some(1_500_000_000)));
        for bad in [
            &[("q", "{")][..],
            &[("q", "{}"), ("tags", "a=b")],
            &[("limit", "0")],
            &[("limit", "x")],
            &[("limit", "100000000")],
            &[("minDuration", "2")],
            &[("minDuration", "2s"), ("maxDuration", "1s")],
            &[("start", "2"), ("end", "1")],
        ] {
            assert_eq!(search(bad).expect_err("refused").kind, Kind::Invalid, "{bad:?}");
        }
    }

    /// What is wrong in a request, and what is said about it.
    #[test]
    fn wrong_numbers_times_and_durations_are_named() {
        const NOW: u64 = 1_800_000_000 * SECOND;
        let search = |pairs: &[(&str, &str)]| SearchParts::of(&parameters(pairs)).and_then(SearchParts::search).err();
        let trace = |pairs: &[(&str, &str)]| window_of(&parameters(pairs)).err();
        let tags = |pairs: &[(&str, &str)]| tags_of(&parameters(pairs), NOW).err();
        let range = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(&str, &str)> = pairs.iter().copied().chain([("q", "{} | rate()")]).collect();
            series_of(&parameters(&pairs), NOW, false).err()
        };
        let nanos = "1800000000000000000";
        for (name, value, named) in [
            ("start", "-1", "invalid start: \"-1\" is not a whole number"),
            ("end", "1.5", "invalid end: \"1.5\" is not a whole number"),
            ("start", "x", "invalid start"),
            ("start", "99999999999999999999", "invalid start"),
            ("start", nanos, "is no time in seconds"),
            ("end", "1800000000000", "is no time in seconds"),
        ] {
            for refused in [search(&[(name, value)]), trace(&[(name, value)]), tags(&[(name, value)])] {
                let refused = refused.unwrap_or_else(|| panic!("{name}={value} was taken"));
                assert_eq!(refused.kind, Kind::Invalid);
                assert!(refused.message.contains(named), "{name}={value}: {}", refused.message);
            }
        }
        for (pairs, named) in [
            (&[("start", "5"), ("end", "5")][..], "start must be before end"),
            (&[("start", "6"), ("end", "5")], "start must be before end"),
            (&[("start", "-5")], "invalid start: \"-5\" is no time"),
            (&[("start", "1800000000000")], "is no time"),
            (&[("end", "yesterday")], "invalid end"),
            (&[("end", "1969-12-31T23:59:59Z")], "invalid end"),
            (&[("since", "-1h")], "invalid since"),
            (&[("since", "1")], "invalid since"),
            (&[("step", "-5")], "invalid step"),
            (&[("step", "0s")], "invalid step"),
            (&[("step", "NaN")], "invalid step"),
            (&[("step", "1e400")], "invalid step"),
            (&[("exemplars", "-1")], "invalid exemplars"),
        ] {
            let refused = range(pairs).unwrap_or_else(|| panic!("{pairs:?} was taken"));
            assert_eq!(refused.kind, Kind::Invalid, "{pairs:?}");
            assert!(refused.message.contains(named), "{pairs:?}: {}", refused.message);
        }
        for (name, value) in [
            ("limit", "-1"),
            ("limit", "1e3"),
            ("limit", "10001"),
            ("spss", "-1"),
            ("minDuration", "-1s"),
            ("minDuration", "1parsec"),
            ("maxDuration", "300"),
        ] {
            let refused = search(&[("q", "{}"), (name, value)]).unwrap_or_else(|| panic!("{name}={value} was taken"));
            assert!(refused.message.contains(&format!("invalid {name}")), "{name}={value}: {}", refused.message);
        }
        assert!(tags(&[("limit", "-1")]).is_some());
        assert!(range(&[("start", nanos), ("end", "1800000060000000000")]).is_none());
    }

    #[test]
    fn names_without_a_range_are_those_of_the_last_hour() {
        let hour = LOOKBACK_NANOS;
        let of = |start, end| recent(Window { start, end }, 10 * hour);
        assert_eq!(of(None, None), (Window { start: Some(9 * hour), end: None }, true));
        assert_eq!(of(None, Some(5 * hour)), (Window { start: Some(4 * hour), end: Some(5 * hour) }, true));
        assert_eq!(of(None, Some(50 * hour)).0.start, Some(9 * hour));
        assert_eq!(of(Some(1), None), (Window { start: Some(1), end: None }, false));
        assert_eq!(signaldb_query::traceql::duration(LOOKBACK), i64::try_from(LOOKBACK_NANOS).ok());
    }

    #[test]
    fn forms_are_read_whole_or_refused() {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        for (body, expected) in [
            ("", &[][..]),
            ("q=%7B%7D&limit=3", &[("q", "{}"), ("limit", "3")]),
            ("q={ .a = 1 }+%2b", &[("q", "{ .a = 1 } +")]),
            ("a&b=&=c&&", &[("a", ""), ("b", ""), ("", "c")]),
            ("a=b=c", &[("a", "b=c")]),
            ("a=%C3%A9", &[("a", "é")]),
        ] {
            assert_eq!(form(body.as_bytes()).expect(body), owned(expected), "{body}");
        }
        for bad in [&b"a=%"[..], b"a=%2", b"a=%zz", b"a=%ff", b"a=\xff"] {
            assert_eq!(form(bad).expect_err("refused").kind, Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn series_have_round_steps() {
        let of = |pairs: &[(&str, &str)], instant| series_of(&parameters(pairs), 7200 * SECOND, instant);
        let found =
            of(&[("q", "{} | rate()"), ("start", "61"), ("end", "119"), ("step", "30s")], false).expect("valid");
        assert_eq!((found.start, found.end, found.step), (60 * SECOND, 120 * SECOND, 30 * SECOND));
        let found = of(&[("q", "{} | rate()")], false).expect("valid");
        assert_eq!(found.step, 15 * SECOND);
        let found = of(&[("query", "{} | rate()"), ("start", "10"), ("end", "20.5")], true).expect("valid");
        assert_eq!((found.start, found.step), (10 * SECOND, 10_500_000_000));
        assert_eq!(time("1700000000000000000"), Some(1_700_000_000_000_000_000));
        assert_eq!(time("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        of(&[("q", "{} | rate() > 3")], false).expect("series that are compared");
        let nested = of(&[("q", "{ parent = nil } | rate()")], false).expect_err("not supported");
        assert_eq!(nested.kind, Kind::NotImplemented);
        for bad in [
            &[][..],
            &[("q", "{} | rate()"), ("step", "0")],
            &[("q", "{} | rate()"), ("step", "x")],
            &[("q", "{} | rate()"), ("start", "5"), ("end", "5")],
            &[("q", "{} | rate()"), ("start", "x")],
        ] {
            assert_eq!(of(bad, false).expect_err("refused").kind, Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn scopes_by_name() {
        assert_eq!(scopes("").expect("all").len(), 6);
        assert_eq!(scopes("resource").expect("one"), [Some(Scope::Resource)]);
        assert_eq!(scopes("intrinsic").expect("one"), [None]);
        assert_eq!(scopes("xx").expect_err("refused").message, "invalid scope: xx");
    }
}
