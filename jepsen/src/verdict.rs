//! What each checker says of a run, and what they say together.

use serde::{Serialize, Serializer};

/// What one checker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) checker: &'static str,
    /// `None`: too little happened to say; that is no pass.
    #[serde(serialize_with = "validity")]
    pub(crate) valid: Option<bool>,
    /// In a sentence what was looked at, or why that says nothing.
    pub(crate) detail: String,
    /// What must not be, the first few of each kind.
    pub(crate) anomalies: Vec<String>,
}

impl Verdict {
    pub(crate) fn valid(checker: &'static str, detail: impl Into<String>) -> Self {
        Self { checker, valid: Some(true), detail: detail.into(), anomalies: Vec::new() }
    }

    pub(crate) fn invalid(checker: &'static str, detail: impl Into<String>, anomalies: Vec<String>) -> Self {
        Self { checker, valid: Some(false), detail: detail.into(), anomalies }
    }

    pub(crate) fn unknown(checker: &'static str, detail: impl Into<String>) -> Self {
        Self { checker, valid: None, detail: detail.into(), anomalies: Vec::new() }
    }
}

/// Something that a run did without, because this machine lacks what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LeftOut {
    /// A checker, else a fault.
    pub(crate) is_checker: bool,
    pub(crate) what: String,
    /// What is missing, and how to have it.
    pub(crate) why: String,
}

impl LeftOut {
    pub(crate) fn checker(what: &str, why: &str) -> Self {
        Self { is_checker: true, what: what.to_owned(), why: why.to_owned() }
    }

    pub(crate) fn fault(what: String, why: &str) -> Self {
        Self { is_checker: false, what, why: why.to_owned() }
    }
}

/// One that found something makes the run invalid; else one that cannot say makes it unknown.
pub(crate) fn overall(verdicts: &[Verdict]) -> Option<bool> {
    if verdicts.iter().any(|one| one.valid == Some(false)) {
        return Some(false);
    }
    let all = !verdicts.is_empty() && verdicts.iter().all(|one| one.valid == Some(true));
    all.then_some(true)
}

/// As people and files name it.
pub(crate) fn word(valid: Option<bool>) -> &'static str {
    match valid {
        Some(true) => "valid",
        Some(false) => "invalid",
        None => "unknown",
    }
}

/// `true`, `false` or `"unknown"`.
pub(crate) fn validity<S: Serializer>(valid: &Option<bool>, to: S) -> Result<S::Ok, S::Error> {
    match valid {
        Some(valid) => to.serialize_bool(*valid),
        None => to.serialize_str("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_outweighs_what_is_unknown_and_that_what_is_valid() {
        let valid = || Verdict::valid("a", "");
        let unknown = || Verdict::unknown("b", "too little");
        let invalid = || Verdict::invalid("c", "", vec!["lost: x".to_owned()]);
        assert_eq!(overall(&[]), None, "nobody looked");
        assert_eq!(overall(&[valid(), valid()]), Some(true));
        assert_eq!(overall(&[valid(), unknown()]), None);
        assert_eq!(overall(&[valid(), invalid(), unknown()]), Some(false));
    }

    #[test]
    fn a_verdict_is_written_as_documented() -> anyhow::Result<()> {
        let valid = serde_json::to_string(&Verdict::valid("ingest", "all there"))?;
        assert_eq!(valid, r#"{"checker":"ingest","valid":true,"detail":"all there","anomalies":[]}"#);
        let unknown = serde_json::to_string(&Verdict::unknown("ingest", "no fault"))?;
        assert_eq!(unknown, r#"{"checker":"ingest","valid":"unknown","detail":"no fault","anomalies":[]}"#);
        Ok(())
    }
}
