#!/usr/bin/env python3
"""Writes wal/tests/golden/v1: a small data directory of format 1, and in expected.json what it holds.

It is written from the descriptions of the formats (wal/src/record.rs, raft/src/codec.rs, raft/src/command.rs and
raft/src/state.rs), not by the code that the tests check, and it says the same bytes every time. What it wrote once is
frozen: a new version of a format gets a directory of its own, and this one still opens.

    python3 wal/tests/golden/write_v1.py    # then `git diff` must be empty
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "v1"
DISK = "golden-v1"
START, CHECKPOINT, APPEND, TRUNCATE, PURGE, VOTE, COMMITTED, TRUST, FOOTER = range(1, 10)
META, ACME, GLOBEX = 0, 1, 2  # groups
TRACES, LOGS = 1, 2  # table codes
AT = 1_700_000_000_000_000_000


def crc_table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


CRC = list(crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def u8(n):
    return struct.pack("<B", n)


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


# --- the log engine: wal/src/record.rs


def header(kind, payload, group, segment, batch, term, first, last, flushed):
    def encode(crc):
        head = b"SDB1" + u8(kind) + bytes(3) + u32(len(payload)) + u32(crc32c(payload)) + u32(crc) + u32(group)
        return head + b"".join(map(u64, (segment, batch, term, first, last, flushed)))

    return encode(crc32c(encode(0)))


class Log:
    def __init__(self):
        self.segments, self.batch, self.metas = {}, 1, {}

    def start_segment(self):
        number = len(self.segments) + 1
        previous = [number - 1, len(self.segments[number - 1])] if number > 1 else None
        self.segments[number], self.records = b"", []
        self.put(START, compact({"format": 1, "disk_id": DISK, "previous": previous}), flushed=0)
        checkpoint = b""
        for group, meta in sorted(self.metas.items()):
            field = lambda value: u8(0) if value is None else u8(1) + u32(len(value)) + value
            index, purged = meta.get("purged", (0, None))
            checkpoint += u32(group) + field(meta.get("vote")) + field(meta.get("committed"))
            checkpoint += u64(index) + field(purged) + field(meta.get("trust"))
        self.put(CHECKPOINT, checkpoint, flushed=0)

    def seal(self):
        number, offset = len(self.segments), len(self.segments[len(self.segments)])
        self.put(FOOTER, b"".join(u64(at) + head for at, head in self.records))
        trailer = u64(offset)
        self.segments[number] += trailer + u32(crc32c(trailer)) + b"SDBF"

    def put(self, kind, payload, group=0, term=0, first=0, last=0, flushed=None):
        number = len(self.segments)
        flushed = self.batch if flushed is None else flushed
        head = header(kind, payload, group, number, self.batch, term, first, last, flushed)
        self.records.append((len(self.segments[number]), head))
        self.segments[number] += head + payload
        self.batch += 1

    def append(self, group, first, *entries):
        payload = b"".join(u32(len(entry)) + entry for entry in entries)
        term = struct.unpack("<Q", entries[-1][:8])[0]
        self.put(APPEND, payload, group, term, first, first + len(entries) - 1)

    def fact(self, kind, name, group, payload, term=0, last=0):
        self.metas.setdefault(group, {})[name] = (last, payload) if name == "purged" else payload
        self.put(kind, payload, group, term, last=last)

    def vote(self, group, term):
        self.fact(VOTE, "vote", group, u64(term) + u64(1) + u8(1), term)

    def committed(self, group, term, index):
        self.fact(COMMITTED, "committed", group, u64(term) + u64(index))

    def trust(self, group, word):
        self.fact(TRUST, "trust", group, f"trust/1 {word}".encode())

    def purge(self, group, term, index):
        self.fact(PURGE, "purged", group, u64(term) + u64(index), last=index)


# --- entries and snapshots: raft/src/codec.rs


def blank(term):
    return u64(term) + u8(0)


def entry(term, command):
    return u64(term) + u8(1) + command


MEMBERS = {"configs": [[1]], "nodes": {"1": {"address": "127.0.0.1:50051", "disk_id": DISK}}}
MEMBERSHIP = u64(0) + u8(2) + compact(MEMBERS)


# --- commands: raft/src/command.rs


def name(text):
    return u8(len(text)) + text.encode()


def text(value):
    return u32(len(value)) + value.encode()


def digest(word):
    return word.encode().ljust(16, b"\0")


def append(tenant, dataset, table, rows, word, dedup=True):
    out = u8(1) + u8(1) + u8(table) + name(tenant) + name(dataset) + u64(AT)
    out += u8(1) + digest(word) + u32(600) if dedup else u8(0)
    out += u8(1) + u8(table) + u32(rows) + u64(AT - 1000) + u64(AT)
    return out + u8(0) + u32(len(word)) + word.encode()


def flush_cut():
    return u8(1) + u8(2) + u64(AT)


def table_id(table):
    return name("acme") + name("production") + u8(table)


def location(table):
    return f"s3://tables/acme/production/{table}/metadata/00001.json"


def flush_committed(table, hi):
    return u8(1) + u8(3) + table_id(table) + u64(hi) + u64(1) + text(location(table))


def meta(value):
    return u8(1) + u8(5) + text(compact(value).decode())


def snapshot():
    """Group 1 as of its cut at index 4, both tables committed: raft/src/state.rs."""
    head = compact({"last": [1, 4], "membership_at": [0, 0], "membership": MEMBERS})
    state = u8(1) + u64(AT) + u32(2)
    for table, last_append in ((TRACES, 2), (LOGS, 3)):
        state += table_id(table) + u64(4) + u64(last_append) + u64(1) + text(location(table))
    state += u32(0)
    state += u32(1) + u64(AT // 60_000_000_000) + u32(0) + u32(2)
    state += digest("one") + u64(2) + digest("two") + u64(3)
    return u32(len(head)) + head + state


def write_log():
    log = Log()
    # What each group holds in the end, by index.
    entries = {
        META: {
            0: MEMBERSHIP,
            1: blank(1),
            2: entry(1, meta({"found": {"cluster_id": "golden-cluster", "store_id": "golden-store", "data_groups": 2,
                                        "voters": {}}})),
            3: entry(1, meta({"place": {"tenant": "acme", "groups": [ACME], "epoch": 1}})),
            4: entry(1, meta({"place": {"tenant": "globex", "groups": [GLOBEX], "epoch": 1}})),
        },
        ACME: {
            0: MEMBERSHIP,
            1: blank(1),
            2: entry(1, append("acme", "production", TRACES, 3, "one")),
            3: entry(1, append("acme", "production", LOGS, 2, "two")),
            4: entry(1, flush_cut()),
            5: entry(1, flush_committed(TRACES, 4)),
            6: entry(1, flush_committed(LOGS, 4)),
            7: entry(1, append("acme", "production", TRACES, 4, "three")),
            8: blank(2),
            9: entry(2, append("acme", "staging", TRACES, 1, "four")),
        },
        GLOBEX: {
            0: MEMBERSHIP,
            1: blank(1),
            2: entry(1, append("globex", "default", TRACES, 5, "five", dedup=False)),
            3: entry(1, append("globex", "default", TRACES, 6, "six")),
        },
    }
    held = lambda group, first, last: [entries[group][index] for index in range(first, last + 1)]
    log.start_segment()
    for group, parts in ((META, [(0, 0), (1, 1), (2, 4)]), (ACME, [(0, 0), (1, 3), (4, 4), (5, 7)]), (GLOBEX, [(0, 2)])):
        log.append(group, parts[0][0], *held(group, *parts[0]))
        log.vote(group, 1)
        for first, last in parts[1:]:
            log.append(group, first, *held(group, first, last))
        log.committed(group, 1, parts[-1][1])
    log.trust(META, "synced")
    log.trust(ACME, "unsynced")
    # Two entries of a leader that nobody followed.
    log.append(ACME, 8, entry(1, append("acme", "production", TRACES, 9, "lost")), blank(1))
    log.seal()
    log.start_segment()
    log.vote(ACME, 2)
    log.put(TRUNCATE, b"", ACME, last=8)
    log.append(ACME, 8, *held(ACME, 8, 8))
    log.purge(ACME, 1, 4)
    log.append(ACME, 9, *held(ACME, 9, 9))
    log.committed(ACME, 2, 9)
    log.trust(ACME, "synced")
    log.seal()
    log.start_segment()
    log.append(GLOBEX, 3, *held(GLOBEX, 3, 3))
    log.committed(GLOBEX, 1, 3)
    for index in range(5):
        del entries[ACME][index]
    return log, entries


def main():
    log, entries = write_log()
    (HERE / "wal/segments").mkdir(parents=True, exist_ok=True)
    (HERE / "wal/metadata.json").write_text(json.dumps({"format": 1, "disk_id": DISK}, indent=2))
    for number, content in log.segments.items():
        (HERE / f"wal/segments/{number:06}.wal").write_bytes(content)
    (HERE / "snapshot-1").write_bytes(snapshot())
    groups = {}
    for group, facts in log.metas.items():
        index, purged = facts.get("purged", (0, None))
        groups[str(group)] = {
            "vote": facts["vote"].hex(),
            "committed": facts["committed"].hex(),
            "purged": None if purged is None else [index, purged.hex()],
            "trust": facts["trust"].decode() if "trust" in facts else None,
            "entries": {str(index): entry.hex() for index, entry in entries[group].items()},
        }
    expected = {"disk_id": DISK, "groups": groups}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
