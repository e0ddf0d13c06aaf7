use crate::node::{Node, flight_number, scale};
use crate::spans::send_batch;

const COUNT: &str = "SELECT count(*) FROM traces";

/// Scenario: flushes every 200 ms while a client exports and, after each acknowledgment, counts, alternately over HTTP
/// and Flight.
/// Guarantees: every count equals the acknowledged total exactly: rows are seen at once, from the memtable before the
/// flush and from Iceberg after it, and no flush loses or doubles one on the way.
#[tokio::test(flavor = "multi_thread")]
async fn every_count_equals_the_acknowledged_total() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["flush.interval=200ms", "flush.max_interval=200ms"]).await?;
    let mut flight = node.flight_client().await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut acknowledged = 0;
    for export in 0..150 * scale() {
        let spans = 1 + export % 3;
        send_batch(&node.http, &urls, spans).await?;
        acknowledged += spans as i64;
        let counted =
            if export % 2 == 0 { node.number(COUNT).await? } else { flight_number(&mut flight, COUNT).await? };
        assert_eq!(counted, acknowledged, "after export {export}");
    }
    let flushed = node.number("SELECT count(*) FROM system.flushes WHERE added_records > 0").await?;
    assert!(flushed >= 5, "flushes went on meanwhile: {flushed}");
    node.flush().await?;
    assert_eq!(node.number(COUNT).await?, acknowledged);
    let in_iceberg = node.number("SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'traces'").await?;
    assert_eq!(in_iceberg, acknowledged);
    Ok(())
}
