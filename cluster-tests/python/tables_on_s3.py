"""PyIceberg reads the tables of a node from a bucket: every span once, and whose the bucket is.

Addresses and the expected number of spans come from the environment.
"""

import json
import os

from pyarrow import fs
from pyiceberg.catalog import load_catalog

ENDPOINT = os.environ["S3_ENDPOINT"]
KEYS = {"s3.access-key-id": "test", "s3.secret-access-key": "any", "s3.region": "us-east-1", "s3.endpoint": ENDPOINT}


def table():
    uri = os.environ["SIGNALDB_CATALOG"]
    catalog = load_catalog("signaldb", type="sql", uri=uri, init_catalog_tables="false", **KEYS)
    return catalog.load_table("default.default.traces")


def identity():
    bucket = fs.S3FileSystem(endpoint_override=ENDPOINT, access_key="test", secret_key="any", region="us-east-1")
    with bucket.open_input_stream("tables/prod/signaldb/signaldb-store.json") as file:
        return json.loads(file.read())


if __name__ == "__main__":
    traces = table()
    assert traces.location() == "s3://tables/prod/signaldb/default/default/traces", traces.location()
    ids = traces.scan().to_arrow()["span_id"].to_pylist()
    expected = int(os.environ["SPANS"])
    assert len(ids) == len(set(ids)) == expected, (len(ids), len(set(ids)), expected)
    assert identity()["store_id"], identity()
    print(f"{len(ids)} spans: the tables agree")
