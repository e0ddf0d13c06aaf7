"""PyIceberg opens the tables through the REST catalog: it reads everything of its tenant and can change nothing.

The address and the span ids of tenant `acme` come from the environment.
"""

import os

from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import ForbiddenError, NoSuchNamespaceError, NoSuchTableError, UnauthorizedError


def catalog(tenant, key=None):
    headers = {"header.X-Tenant-ID": tenant}
    return load_catalog("signaldb", type="rest", uri=os.environ["REST"], token=key or f"sk-{tenant}", **headers)


def refused(kinds, action):
    try:
        action()
    except kinds as error:
        return str(error)
    raise AssertionError(f"{action} was not refused")


if __name__ == "__main__":
    acme = catalog("acme")
    assert acme.list_namespaces() == [("acme",)]
    assert acme.list_namespaces("acme") == [("acme", "production")]
    assert ("acme", "production", "traces") in acme.list_tables("acme.production")
    assert acme.table_exists("acme.production.traces") and not acme.table_exists("acme.production.nope")
    traces = acme.load_table("acme.production.traces")
    found = sorted(value.hex() for value in traces.scan().to_arrow()["span_id"].to_pylist())
    assert found == sorted(os.environ["SPANS"].split(",")), found

    # The catalog says which requests it answers: PyIceberg does not even send the others.
    unsupported = (NotImplementedError, ForbiddenError)
    for write in (
        lambda: acme.create_namespace("acme.fresh"),
        lambda: acme.create_table("acme.production.fresh", traces.schema()),
        lambda: acme.drop_table("acme.production.traces"),
        lambda: acme.rename_table("acme.production.traces", "acme.production.renamed"),
        lambda: traces.transaction().set_properties({"a": "b"}).commit_transaction(),
    ):
        refused(unsupported, write)
    assert acme.load_table("acme.production.traces").metadata_location == traces.metadata_location

    refused(NoSuchTableError, lambda: acme.load_table("other.main.traces"))
    refused(NoSuchNamespaceError, lambda: acme.list_tables("other.main"))
    assert not acme.namespace_exists("other.main")
    refused(UnauthorizedError, lambda: catalog("acme", "sk-nobody"))
    refused(ForbiddenError, lambda: catalog("other", "sk-acme"))
    assert catalog("other").load_table("other.main.traces").scan().to_arrow().num_rows == 2
    print(f"{len(found)} spans: the REST catalog agrees")
