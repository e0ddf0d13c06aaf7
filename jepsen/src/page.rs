//! A run as one HTML page that needs nothing else: no network, no server, a reader with or without scripts, light or dark.

mod picture;

use serde_json::{Value, json};

use crate::checker::availability::Costs;
use crate::figures::{Figure, met};
use crate::nemesis::Strike;
use crate::report::{Report, by_kind};
use crate::store;
use crate::verdict::{self, Verdict};
use picture::{COLUMNS, LEFT, Picture, RIGHT, SIZE};

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
/// Anomalies of one checker that are shown; the file of verdicts has all.
const SHOWN: usize = 200;

/// The page.
pub(crate) fn html(report: &Report<'_>) -> String {
    let about = report.about;
    let columns = report.timeline.columns(report.until, COLUMNS);
    let picture =
        Picture { until: report.until, columns: &columns, strikes: report.strikes, reigns: report.reigns }.draw();
    let word = verdict::word(report.valid());
    let title = escape(&format!("{word}: {} under faults, {}", about.scenario, about.started));
    let sections = [
        header(report, word),
        verdicts(report),
        format!(
            "<h2>What happened</h2><figure class=\"picture\">{picture}<div class=\"note\"></div></figure>{}",
            legend(report)
        ),
        faults(report),
        left_out(report),
        again(report),
    ];
    let data = embedded(&data(report, &columns));
    // The browser itself refuses whatever would come from elsewhere.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"{policy}\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\
         \n<style>\n{STYLE}</style>\n</head>\n<body>\n<main class=\"{word}\">\n{}\n</main>\n<script \
         type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        sections.join("\n")
    )
}

/// Text as it may stand in an element or in a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Colours of a terminal, and whatever else no reader shows.
            control if control.is_control() && !matches!(control, '\n' | '\t') => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

/// JSON as it may stand in a script element, which nothing in it may end.
fn embedded(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

fn header(report: &Report<'_>, word: &str) -> String {
    let about = report.about;
    let lead = match report.valid() {
        Some(true) => "Nothing that was promised was broken.",
        Some(false) => "What must not happen did happen.",
        None => "This run proves nothing either way.",
    };
    let tiles: String = report.figures().iter().map(tile).collect();
    format!(
        "<h1>SignalDB under faults <span class=\"badge\">{word}</span></h1>\n<p>{lead} Scenario <b>{}</b>: {}.</p>\n<p \
         class=\"quiet\">{} · {} · commit <code>{}</code> · catalog {}, tables on {}, nodes over {} · {}</p>\n<ul class=\"tiles\">{tiles}</ul>",
        escape(&about.scenario),
        escape(about.what.trim_end_matches('.')),
        escape(&about.started),
        escape(&about.version),
        escape(&about.commit),
        escape(&about.catalog),
        escape(&about.store),
        escape(&about.network),
        escape(&about.machine),
    )
}

/// A figure, and whether it is what it was to be.
fn tile(Figure { value, what, target }: &Figure) -> String {
    let (class, target) = match target {
        Some((target, reached)) => {
            let word = met(*reached);
            (word, format!("<em>{word}: {}</em>", escape(target)))
        }
        None => ("", String::new()),
    };
    format!("<li class=\"{class}\"><b>{}</b><span>{}</span>{target}</li>", escape(value), escape(what))
}

/// What was found first, then what is not known, then what is as it should be.
fn verdicts(report: &Report<'_>) -> String {
    let mut sorted: Vec<&Verdict> = report.verdicts.iter().collect();
    sorted.sort_by_key(|one| match one.valid {
        Some(false) => 0,
        None => 1,
        Some(true) => 2,
    });
    let judged = sorted.into_iter().map(|one| {
        let word = verdict::word(one.valid);
        let (checker, detail) = (escape(one.checker), escape(&one.detail));
        format!(
            "<div class=\"verdict {word}\"><span class=\"badge\">{word}</span><b>{checker}</b><span \
             class=\"quiet\">{detail}</span>{}</div>",
            anomalies(&one.anomalies)
        )
    });
    let not_run = report.left_out.iter().filter(|one| one.is_checker).map(|one| {
        let (what, why) = (escape(&one.what), escape(&one.why));
        format!(
            "<div class=\"verdict\"><span class=\"badge\">not run</span><b>{what}</b><span class=\"quiet\">{why}</span></div>"
        )
    });
    let list: Vec<String> = judged.chain(not_run).collect();
    format!("<h2>Verdicts</h2>\n{}", list.join("\n"))
}

fn anomalies(all: &[String]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut shown = all[..all.len().min(SHOWN)].join("\n");
    if all.len() > SHOWN {
        shown += &format!("\nand {} more in {}", all.len() - SHOWN, store::VERDICT);
    }
    format!("<pre>{}</pre>", escape(&shown))
}

fn legend(report: &Report<'_>) -> String {
    let item = |color: &str, what: &str| format!("<li><i style=\"background: var(--{color})\"></i>{what}</li>");
    let mut items = vec![
        item("fault", "fault with effect (outlined: without); its time is shaded"),
        item("ok", "acknowledged"),
        item("info", "unknown"),
        item("fail", "refused"),
        item("read", "reads answered"),
        item("p50", "median"),
        item("p99", "99th percentile"),
    ];
    let mut nodes: Vec<u64> = report.reigns.iter().map(|one| one.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    items.extend(
        nodes.iter().map(|node| item(&format!("n{}", node.saturating_sub(1) % 5 + 1), &format!("node {node}"))),
    );
    format!("<ul class=\"legend\">{}</ul>", items.concat())
}

fn faults(report: &Report<'_>) -> String {
    let kinds = by_kind(report.strikes).into_iter().map(|(fault, struck, effective)| {
        let (name, what) = (escape(&fault.name()), escape(fault.about()));
        let cost = report.costs.iter().find(|costs| costs.fault == fault);
        let cost =
            |of: fn(&Costs) -> u64| cost.map_or_else(String::new, |cost| format!("{:.1} s", of(cost) as f64 / 1e9));
        let (gap, median, longest) =
            (cost(|one| one.gap_longest), cost(|one| one.recovery_median), cost(|one| one.recovery_longest));
        format!(
            "<tr><td>{name}</td><td class=\"number\">{struck}</td><td class=\"number\">{effective}</td><td \
             class=\"number\">{gap}</td><td class=\"number\">{median}</td><td class=\"number\">{longest}</td><td \
             class=\"quiet\">{what}</td></tr>"
        )
    });
    let each = report.strikes.iter().map(|one| {
        let Strike { fault, begun, ended, effective, detail, .. } = one;
        let (class, effect) = if *effective { ("", "effective") } else { ("no", "no effect") };
        let (begun, ended) = (*begun as f64 / 1e9, *ended as f64 / 1e9);
        let (name, detail) = (escape(&fault.name()), escape(detail));
        format!(
            "<tr><td class=\"number\">{begun:.1} s</td><td class=\"number\">{:.1} s</td><td>{name}</td><td \
             class=\"{class}\">{effect}</td><td class=\"quiet\">{detail}</td></tr>",
            ended - begun
        )
    });
    let (kinds, each): (String, String) = (kinds.collect(), each.collect());
    format!(
        "<h2>Faults</h2>\n<p class=\"quiet\">Gap: the longest time without an acknowledgment for a tenant while one went on. Again: \
         how long after its end every tenant had written, median and longest.</p>\n<div \
         class=\"scroll\"><table><thead><tr><th>kind</th><th class=\"number\">struck</th><th \
         class=\"number\">effective</th><th class=\"number\">gap</th><th class=\"number\">again</th><th \
         class=\"number\">longest</th><th>what it is</th></tr></thead><tbody>{kinds}</tbody></table></div>\n\
         <details><summary>Each of the {}</summary><div class=\"scroll\"><table><thead><tr><th class=\"number\">at</th><th \
         class=\"number\">for</th><th>kind</th><th>effect</th><th>what was done, what came of \
         it</th></tr></thead><tbody>{each}</tbody></table></div></details>",
        report.strikes.len()
    )
}

fn left_out(report: &Report<'_>) -> String {
    if report.left_out.is_empty() {
        return "<h2>Left out</h2>\n<p>Nothing of this scenario.</p>".to_owned();
    }
    let rows = report.left_out.iter().map(|one| {
        let (what, why) = (escape(&one.what), escape(&one.why));
        format!("<tr><td>{what}</td><td class=\"quiet\">{why}</td></tr>")
    });
    let rows: String = rows.collect();
    format!("<h2>Left out</h2>\n<div class=\"scroll\"><table><tbody>{rows}</tbody></table></div>")
}

fn again(report: &Report<'_>) -> String {
    let files = [
        (store::VERDICT, "everything on this page but the picture, as JSON"),
        (store::HISTORY, "every operation with its times and outcome, a line each; further rounds have a number"),
        (store::FAULTS, "every fault"),
        (store::LEADERS, "every leadership that was seen"),
        ("node-*/node.log", "what the nodes said"),
    ];
    let files: String = files
        .iter()
        .map(|(file, what)| format!("<tr><td><code>{file}</code></td><td class=\"quiet\">{what}</td></tr>"))
        .collect();
    format!(
        "<h2>Again</h2>\n<p>The same choices in the same order; their timing is never the same.</p>\n<pre>{}</pre>\n<p></p>\n\
         <p class=\"quiet\">As it was called: <code>{}</code></p>\n<h2>Files</h2>\n<div \
         class=\"scroll\"><table><tbody>{files}</tbody></table></div>\n<p></p>\n<p class=\"quiet\">Formats: \
         docs/consistency.md; history version {}, verdict version {}.</p>",
        escape(&report.about.again),
        escape(&report.about.command),
        store::HISTORY_FORMAT,
        store::FORMAT,
    )
}

/// What the script tells of a time. Seconds.
fn data(report: &Report<'_>, columns: &crate::timeline::Columns) -> Value {
    let seconds = |at: u64| at as f64 / 1e9;
    let bins = columns.bins.iter().map(|bin| {
        let ([ok, fail, info], [reads, refused]) = (bin.writes, bin.reads);
        json!([ok, fail, info, reads, refused, bin.quantile(0.5), bin.quantile(0.99)])
    });
    let faults = report.strikes.iter().map(|one| {
        let (begun, ended) = (seconds(one.begun), seconds(one.ended));
        json!([one.fault.name(), begun, ended, one.effective, one.detail])
    });
    let leaders = report.reigns.iter().map(|one| {
        let (first, last) = (seconds(one.first), seconds(one.last));
        json!([one.group, one.term, one.node, first, last])
    });
    json!({
        "size": SIZE, "left": LEFT, "right": RIGHT,
        "seconds": seconds(report.until), "width": seconds(columns.width),
        "bins": bins.collect::<Vec<_>>(), "faults": faults.collect::<Vec<_>>(), "leaders": leaders.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;
    use crate::report::testing;
    use crate::verdict::LeftOut;

    const ATTACK: &str = "</script><script>alert('x')</script>\"&\u{1b}[31m";

    #[test]
    fn nothing_that_was_said_becomes_markup() {
        assert_eq!(escape("a < b & \"c\" > 'd'\n"), "a &lt; b &amp; &quot;c&quot; &gt; &#39;d&#39;\n");
        assert_eq!(escape("\u{1b}[1m"), "\u{fffd}[1m");
        let script = embedded(&json!({"detail": ATTACK}));
        assert!(!script.contains('<'), "{script}");
        let back: Value = serde_json::from_str(&script).expect("is JSON");
        assert_eq!(back["detail"], ATTACK);
    }

    #[test]
    fn a_page_with_hostile_texts_everywhere_has_our_two_scripts_only() {
        let mut run = testing::Run::new();
        run.about.scenario = ATTACK.to_owned();
        run.about.command = ATTACK.to_owned();
        run.about.machine = ATTACK.to_owned();
        run.verdicts = vec![Verdict::invalid("ingest", ATTACK, vec![ATTACK.to_owned()])];
        run.left_out = vec![LeftOut::checker(ATTACK, ATTACK)];
        run.strikes[0].detail = ATTACK.to_owned();
        let page = html(&run.report());
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains('\u{1b}'));
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let page = html(&testing::Run::new().report());
        for outside in ["http:", "https:", " src=", "url(", "@import", "<link", "<img"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn what_was_found_comes_first_and_what_was_not_run_last() {
        let mut run = testing::Run::new();
        run.verdicts = vec![
            Verdict::valid("ingest", "all there"),
            Verdict::unknown("log", "too little"),
            Verdict::invalid("register", "5 reads", vec!["stale: 1 in all".to_owned()]),
        ];
        run.left_out = vec![LeftOut::checker("flush-audit", "no Python")];
        let page = html(&run.report());
        let at = |what: &str| page.find(&format!("<b>{what}</b>")).expect(what);
        assert!(at("register") < at("log") && at("log") < at("ingest") && at("ingest") < at("flush-audit"));
        assert!(page.contains("<main class=\"invalid\">") && page.contains("stale: 1 in all"));
    }

    #[test]
    fn a_figure_that_was_missed_is_shown_beside_its_target() {
        let page = html(&testing::Run::new().report());
        assert!(page.contains("<li class=\"missed\"><b>1</b>"), "one operation a second");
        assert!(page.contains("<em>missed: &gt;= 500</em>") && page.contains("<em>reached: &lt;= 0</em>"));
        assert!(page.contains("<main class=\"valid\">"), "that is no broken promise");
    }

    #[test]
    fn thousands_of_anomalies_are_cut_and_the_rest_is_named() {
        let many: Vec<String> = (0..SHOWN + 5).map(|n| format!("lost: {n}")).collect();
        let shown = anomalies(&many);
        assert!(shown.contains("lost: 199") && !shown.contains("lost: 200"), "{shown}");
        assert!(shown.contains("and 5 more in verdict.json"), "{shown}");
    }

    #[test]
    fn faults_are_listed_with_what_came_of_them() {
        let mut run = testing::Run::new();
        run.strikes[0].detail = "node 2: 4096 bytes of the log are gone".to_owned();
        let page = html(&run.report());
        assert!(page.contains("node 2: 4096 bytes of the log are gone"));
        assert!(page.contains(Fault::KillLeader.about()));
    }
}
