"""PyIceberg on a table that was maintained meanwhile: its rows, and every file that any snapshot it keeps names.

SPANS is a file with the id of every span that must be there, one a line. The table is read from the SQL catalog.
"""

import functools
import os

from pyiceberg.catalog import load_catalog
from pyiceberg.table.snapshots import Operation


def rows(table, ids):
    found = sorted(value.hex() for value in table.scan().to_arrow()["span_id"].to_pylist())
    assert found == sorted(ids), (len(found), len(set(found)), len(ids))


def nothing_is_missing(table):
    exists = functools.cache(lambda location: table.io.new_input(location).exists())
    parsed = {}

    def records(manifest):
        path = manifest.manifest_path
        if path not in parsed:
            assert exists(path), path
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
            missing = [entry.data_file.file_path for entry in entries if not exists(entry.data_file.file_path)]
            assert not missing, missing
            parsed[path] = sum(entry.data_file.record_count for entry in entries)
        return parsed[path]

    counts = {}
    for snapshot in sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number):
        assert exists(snapshot.manifest_list), snapshot.manifest_list
        count = sum(records(manifest) for manifest in snapshot.manifests(table.io))
        assert count == int(snapshot.summary["total-records"]), (count, snapshot)
        before = counts.get(snapshot.parent_snapshot_id)
        if before is not None and snapshot.summary.operation == Operation.REPLACE:
            assert count == before, (count, before, snapshot)
        counts[snapshot.snapshot_id] = count
    for version in table.metadata.metadata_log:
        assert exists(version.metadata_file), version.metadata_file
    return len(counts)


if __name__ == "__main__":
    catalog = load_catalog("signaldb", type="sql", uri=os.environ["SIGNALDB_CATALOG"], init_catalog_tables="false")
    traces = catalog.load_table("default.default.traces")
    with open(os.environ["SPANS"]) as file:
        spans = file.read().split()
    rows(traces, spans)
    snapshots = nothing_is_missing(traces)
    print(f"{len(spans)} spans, {snapshots} snapshots: nothing is missing")
