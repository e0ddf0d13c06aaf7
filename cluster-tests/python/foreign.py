"""Another engine at the tables: PyIceberg changes the table of spans behind the cluster's back.

ACTION says what to do. The catalog and the directory of the store come from the environment.
"""

import os
import pathlib
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog

TRACES = "default.default.traces"


def catalog():
    return load_catalog("signaldb", type="sql", uri=os.environ["SIGNALDB_CATALOG"], init_catalog_tables="false")


def table():
    return catalog().load_table(TRACES)


def store(path):
    return pathlib.Path(os.environ["STORE"]) / path


def drop():
    catalog().drop_table(TRACES)


def rename(before="name", after="title"):
    with table().update_schema() as update:
        update.rename_column(before, after)


def rename_back():
    rename("title", "name")


def bring_back():
    """The rows that were put aside, and those that a dropped table had."""
    traces = table()
    known = {task.file.file_path for task in traces.scan().plan_files()}
    aside = sorted(store("quarantine/default/default/traces").glob("*.parquet"))
    assert aside, "nothing was put aside"
    files = aside + sorted(store("default/default/traces/data").rglob("*.parquet"))
    traces.add_files([location for location in map("file://{}".format, files) if location not in known])


def append():
    """As many rows as there are, with ids of their own."""
    traces = table()
    rows = traces.scan().to_arrow()
    ids = [uuid.uuid4().bytes[:8] for _ in range(rows.num_rows)]
    at = rows.schema.get_field_index("span_id")
    rows = rows.set_column(at, rows.schema.field(at), pa.array(ids, rows.schema.field(at).type))
    path = store("default/default/traces/data") / f"theirs-{uuid.uuid4()}.parquet"
    pq.write_table(rows, path)
    traces.add_files([f"file://{path}"])
    print("ids", *(value.hex() for value in ids))


def delete():
    """The rows of before a time, which no file shares with later ones."""
    traces = table()
    before = traces.scan().to_arrow().num_rows
    traces.delete(f"time_unix_nano < {os.environ['BEFORE']}")
    assert 0 < table().scan().to_arrow().num_rows < before


if __name__ == "__main__":
    actions = {"drop": drop, "rename": rename, "rename_back": rename_back, "bring_back": bring_back}
    (actions | {"append": append, "delete": delete})[os.environ["ACTION"]]()
    print(f"{os.environ['ACTION']}: it was done")
