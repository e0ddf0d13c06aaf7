//! Asking a node.

use anyhow::{Context, anyhow};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

/// What an answer must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Consistency {
    Strong,
    Eventual,
}

impl Consistency {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Strong => "strong",
            Self::Eventual => "eventual",
        }
    }
}

/// A node, and who asks it.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    endpoint: String,
    key: Option<String>,
    tenant: Option<String>,
    dataset: Option<String>,
}

impl Client {
    pub(crate) fn new(endpoint: String, key: Option<String>, tenant: Option<String>, dataset: Option<String>) -> Self {
        Self { http: reqwest::Client::new(), endpoint, key, tenant, dataset }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Starts a query; its rows come in the body, in the `format` that the node is asked for.
    ///
    /// # Errors
    /// When the node is not there, or says why not.
    ///
    /// Cancel safety: dropping the future, or the answer, ends the connection and with it the query.
    pub(crate) async fn ask(&self, sql: &str, format: &str, consistency: Consistency) -> anyhow::Result<Response> {
        let endpoint = self.endpoint.trim_end_matches('/');
        let url = format!("{endpoint}/api/v1/sql?format={format}&consistency={}", consistency.name());
        let mut request = self.http.post(url).json(&json!({"query": sql}));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        for (name, value) in [("x-tenant-id", &self.tenant), ("x-dataset-id", &self.dataset)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let response = request.send().await;
        let response = response.with_context(|| format!("reach a node at {}; is it running?", self.endpoint))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(refusal(status, &response.text().await.context("read the answer")?))
    }
}

/// What a node says of a query that it does not answer.
fn refusal(status: StatusCode, body: &str) -> anyhow::Error {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let error = &answer["error"];
    let Some(message) = error["message"].as_str() else { return anyhow!("{status}: {}", body.trim()) };
    // Messages about a place in the statement name it, too.
    match error["hint"].as_str().filter(|hint| !hint.starts_with("line ")) {
        Some(hint) => anyhow!("{message}\nhint: {hint}"),
        None => anyhow!("{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_what_the_node_says() {
        let said = |body: &str| refusal(StatusCode::BAD_REQUEST, body).to_string();
        assert_eq!(said(r#"{"error": {"message": "no", "hint": "line 1, column 2"}}"#), "no");
        assert_eq!(said(r#"{"error": {"message": "no", "hint": "ask for less"}}"#), "no\nhint: ask for less");
        assert_eq!(said(r#"{"error": {"message": "no", "hint": null}}"#), "no");
        assert_eq!(said("a proxy's page\n"), "400 Bad Request: a proxy's page");
    }
}
