//! What `deploy/` and `docs/monitoring.md` say of metrics, against the nodes that expose them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::spans::send_batch;

const RULES: &str = "deploy/prometheus/rules.yml";
const RULES_TEST: &str = "deploy/prometheus/rules_test.yml";
const GUIDE: &str = "docs/monitoring.md";

/// Scenario: `promtool` checks the rules and the example configuration, runs the tests of the rules, and reads every
/// expression of the dashboards.
/// Guarantees: Prometheus takes them all, and each alert fires for what it is about. Skipped where promtool is missing.
#[test]
fn promtool_accepts_rules_and_dashboards() -> anyhow::Result<()> {
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("skipped: promtool is not installed (apt-get install prometheus)");
        return Ok(());
    }
    promtool(&["check", "config", "prometheus.yml"])?;
    promtool(&["check", "rules", "rules.yml"])?;
    promtool(&["test", "rules", "rules_test.yml"])?;
    // JSON is YAML; each expression goes in as a rule.
    let expressions = dashboards()?.into_iter().flat_map(|(_, expressions)| expressions);
    let rule = |(at, expression): (usize, String)| {
        let expression = expression.replace("$__rate_interval", "5m").replace("$job", "signaldb");
        json!({"record": format!("dashboard:{at}"), "expr": expression})
    };
    let rules: Vec<Value> = expressions.enumerate().map(rule).collect();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("dashboards.yml");
    std::fs::write(&path, json!({"groups": [{"name": "dashboards", "rules": rules}]}).to_string())?;
    promtool(&["check", "rules", &path.display().to_string()])
}

/// Scenario: three nodes take spans and flush; every one is scraped.
/// Guarantees: each `signaldb_*` name in rules, their tests, dashboards and the guide is a metric that a node exposes;
/// each exposed metric has a help text and is in the guide.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_in_use_is_exposed_and_explained() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &[]).await?;
    let urls = cluster.urls();
    for url in urls.chunks(1) {
        send_batch(&cluster.http, url, 5).await?;
    }
    cluster.nodes[0].flush().await?;
    cluster.nodes[0].number("SELECT count(*) FROM traces").await?;
    let (mut exposed, mut series) = (BTreeSet::new(), BTreeSet::new());
    for node in &cluster.nodes {
        let text = node.http.get(node.url("/metrics")).send().await?.error_for_status()?.text().await?;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').context("a type")?;
            ensure!(text.contains(&format!("# HELP {name} ")), "{name} has no help text: describe it");
            exposed.insert(name.to_owned());
            series.insert(name.to_owned());
            if kind == "histogram" {
                series.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
            }
        }
    }
    let guide = read(GUIDE)?;
    for (file, text) in [(RULES, read(RULES)?), (RULES_TEST, read(RULES_TEST)?), (GUIDE, guide.clone())] {
        let unknown: Vec<String> = names(&text).difference(&series).cloned().collect();
        assert!(unknown.is_empty(), "{file} names what no node exposes: {unknown:?}");
    }
    for (file, expressions) in dashboards()? {
        let used = names(&expressions.join("\n"));
        assert!(!used.is_empty(), "{file} shows nothing");
        let unknown: Vec<String> = used.difference(&series).cloned().collect();
        assert!(unknown.is_empty(), "{file} names what no node exposes: {unknown:?}");
    }
    let unexplained: Vec<String> = exposed.difference(&names(&guide)).cloned().collect();
    assert!(unexplained.is_empty(), "{GUIDE} does not explain {unexplained:?}");
    Ok(())
}

/// Guarantees: each alert has a section of the guide, which its `runbook_url` names; each recorded name in use is
/// recorded.
#[test]
fn every_alert_has_a_section_in_the_guide() -> anyhow::Result<()> {
    let (rules, guide) = (read(RULES)?, read(GUIDE)?);
    let values = |key: &'static str| {
        rules.lines().filter_map(move |line| line.trim_start().strip_prefix(key)).map(|value| value.trim().to_owned())
    };
    let (alerts, links): (Vec<String>, Vec<String>) = (values("- alert:").collect(), values("runbook_url:").collect());
    assert!(!alerts.is_empty(), "{RULES} has alerts");
    let expected: Vec<String> = alerts.iter().map(|alert| format!("{GUIDE}#{}", alert.to_lowercase())).collect();
    assert_eq!(links, expected, "one link an alert, in order");
    for alert in &alerts {
        assert!(guide.lines().any(|line| line == format!("### {alert}")), "{GUIDE} has no section {alert}");
    }
    let recorded: BTreeSet<String> = values("- record:").collect();
    let used: BTreeSet<String> =
        words(&rules).filter(|word| word.starts_with("signaldb:")).map(str::to_owned).collect();
    assert!(used.is_subset(&recorded), "{used:?} against {recorded:?}");
    Ok(())
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(repository().join(file)).with_context(|| format!("read {file}"))
}

fn promtool(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("promtool");
    let output = command.current_dir(repository().join("deploy/prometheus")).args(arguments).output()?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}

/// Every dashboard with the expressions of its panels.
fn dashboards() -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(repository().join("deploy/grafana"))? {
        let path = entry?.path();
        let name = path.display().to_string();
        let dashboard: Value = serde_json::from_slice(&std::fs::read(&path)?).with_context(|| name.clone())?;
        let panels = dashboard["panels"].as_array().with_context(|| format!("{name} has no panels"))?;
        let mut expressions = Vec::new();
        for panel in panels {
            let targets = panel["targets"].as_array().with_context(|| format!("a panel of {name} has no targets"))?;
            for target in targets {
                expressions.push(target["expr"].as_str().with_context(|| format!("{name}: no expr"))?.to_owned());
            }
        }
        found.push((name, expressions));
    }
    ensure!(!found.is_empty(), "there are no dashboards");
    Ok(found)
}

/// Metric names in a text: `signaldb_` and more; a name that ends in `_` stands for a family.
fn names(text: &str) -> BTreeSet<String> {
    let names = words(text).filter(|word| word.starts_with("signaldb_") && !word.ends_with('_'));
    names.map(str::to_owned).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|character: char| !(character.is_ascii_alphanumeric() || matches!(character, '_' | ':')));
    words.map(|word| word.trim_end_matches(':'))
}
