"""Writes and reads cache files as SteadyText for Python does, with Python's own pickle and sqlite3.

    steadytext_cache.py write FILE plain|base64    one entry per line of standard input, as JSON
    steadytext_cache.py read FILE                  prints the entries, one JSON object per line

An entry to be written has "key" (a string, or a list for a tuple), "value" (a string, or a list of numbers), "as" (list, float32,
float64, readonly), "protocol", "frequency" and "last_access".

Where numpy is not installed, small classes of its names stand in: they pickle to the same instructions, and check what they are
given when they are unpickled.
"""

import array
import base64
import json
import pickle
import sqlite3
import sys
import types

try:
    import numpy
except ImportError:

    class dtype:
        __module__, __qualname__ = "numpy", "dtype"

        def __init__(self, name, align=False, copy=False):
            assert name in ("f4", "f8") and (align, copy) == (False, True), name
            self.name, self.order = name, None

        def __reduce__(self):
            return dtype, (self.name, False, True), (3, "<", None, None, None, -1, -1, 0)

        def __setstate__(self, state):
            assert state == (3, "<", None, None, None, -1, -1, 0), state

    class ndarray:
        __module__, __qualname__ = "numpy", "ndarray"

        def fill(self, name, data):
            self.name, self.dtype, self.data = name, name, bytes(data)
            return self

        def tolist(self):
            return array.array({"f4": "f", "f8": "d"}[self.name], self.data).tolist()

        def __reduce_ex__(self, protocol):
            shape = (len(self.data) // int(self.name[1]),)
            kind = dtype(self.name, False, True)
            if protocol == 5:
                data = self.data if self.readonly else bytearray(self.data)
                return _frombuffer, (data, kind, shape, "C")
            return _reconstruct, (ndarray, (0,), b"b"), (1, shape, kind, False, self.data)

        def __setstate__(self, state):
            version, shape, kind, fortran, data = state
            assert version == 1 and fortran is False and isinstance(kind, dtype), state
            assert len(data) == shape[0] * int(kind.name[1]), "bytes and shape"
            self.fill(kind.name, data)

    def _reconstruct(subtype, shape, kind):
        assert (subtype, shape, kind) == (ndarray, (0,), b"b")
        return ndarray()

    def _frombuffer(data, kind, shape, order):
        return ndarray().fill(kind.name, data)

    def make(numbers, kind):
        made = ndarray().fill({"float64": "f8"}.get(kind, "f4"), b"")
        made.data = array.array({"f8": "d", "f4": "f"}[made.name], numbers).tobytes()
        made.readonly = kind == "readonly"
        return made

    _reconstruct.__module__, _frombuffer.__module__ = "numpy.core.multiarray", "numpy.core.numeric"
    for name, members in [
        ("numpy", {"dtype": dtype, "ndarray": ndarray}),
        ("numpy.core", {}),
        ("numpy.core.multiarray", {"_reconstruct": _reconstruct}),
        ("numpy.core.numeric", {"_frombuffer": _frombuffer}),
    ]:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(members)
    import numpy
else:

    def make(numbers, kind):
        made = numpy.array(numbers, dtype={"float64": numpy.float64}.get(kind, numpy.float32))
        made.flags.writeable = kind != "readonly"
        return made


def encoded(key, coding):
    """A key as the versions of SteadyText write it: 1.0 by str(), later ones in Base64."""
    if coding == "plain":
        return str(tuple(key)) if isinstance(key, list) else key
    parts = key if isinstance(key, list) else [key]
    return "::".join(base64.b64encode(part.encode()).decode() for part in parts)


def write(path, coding):
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.execute(
        "create table cache (key text primary key, value blob not null, frequency integer default 1, "
        "last_access integer not null, size integer not null)"
    )
    connection.execute("create index idx_frecency on cache (frequency asc, last_access asc)")
    connection.execute("create table metadata (property text primary key, value text not null)")
    for line in sys.stdin:
        entry = json.loads(line)
        value = entry["value"]
        if not isinstance(value, str) and entry.get("as", "float32") != "list":
            value = make(value, entry.get("as", "float32"))
        value = pickle.dumps(value, protocol=entry.get("protocol", pickle.HIGHEST_PROTOCOL))
        connection.execute(
            "insert into cache values (?, ?, ?, ?, ?)",
            (encoded(entry["key"], coding), value, entry.get("frequency", 1), entry["last_access"], len(value)),
        )
    connection.commit()
    connection.close()


def read(path):
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    rows = connection.execute("select key, value, frequency, last_access, size from cache order by key")
    for key, value, frequency, last_access, size in rows:
        assert size == len(value), "size"
        value = pickle.loads(value)
        kind = type(value).__name__
        if kind == "ndarray":
            assert str(value.dtype) in ("float32", "f4"), value.dtype
            value = value.tolist()
        entry = {"key": key, "type": kind, "value": value, "frequency": frequency, "last_access": last_access}
        print(json.dumps(entry, ensure_ascii=True))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
