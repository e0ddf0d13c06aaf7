"""PyIceberg on a table whose attributes `tenant.plan` and `retries` were promoted: it sees the columns and what is in them.

PLANS and RETRIES say how many spans have either column filled. The table is read from the SQL catalog.
"""

import os

from pyiceberg.catalog import load_catalog
from pyiceberg.types import LongType, StringType


def count(table, predicate):
    return table.scan(row_filter=predicate).to_arrow().num_rows


if __name__ == "__main__":
    catalog = load_catalog("signaldb", type="sql", uri=os.environ["SIGNALDB_CATALOG"], init_catalog_tables="false")
    traces = catalog.load_table("default.default.traces")
    plans, retries = int(os.environ["PLANS"]), int(os.environ["RETRIES"])
    schema = traces.schema()
    for name, kind in (("attr_tenant_plan", StringType), ("attr_retries", LongType)):
        field = schema.find_field(name)
        assert isinstance(field.field_type, kind) and field.field_id >= 1_000_000 and not field.required, field

    rows = traces.scan().to_arrow().select(["attributes", "attr_tenant_plan", "attr_retries"]).to_pylist()
    for row in rows:
        attributes = dict(row["attributes"])
        assert row["attr_tenant_plan"] in (None, attributes.get("tenant.plan")), row
        assert row["attr_retries"] is None or str(row["attr_retries"]) == attributes["retries"], row
    assert sum(row["attr_tenant_plan"] is not None for row in rows) == plans, plans
    assert sum(row["attr_retries"] is not None for row in rows) == retries, retries

    # Predicates skip files by the bounds of the columns, where there are any.
    assert count(traces, "attr_tenant_plan is not null") == plans
    assert count(traces, "attr_tenant_plan == 'gold'") == plans // 3
    assert count(traces, "attr_retries > 2") == retries
    assert count(traces, "attr_retries > 3") == 0
    print(f"{len(rows)} spans: the copies are right")
