"""Opens and rejects the golden vectors in another language.

Written from docs/envelope.md alone. Needs the package "cryptography" for
AES-256-GCM; everything else is the standard library.

    python3 opener.py vectors/*.json
"""

import hashlib
import hmac
import json
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Failure(Exception):
    """Carries a class of section 5."""


def require(condition, failure):
    if not condition:
        raise Failure(failure)


def hkdf(key, salt, info):
    prk = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def subkey(key, salt, key_id):
    return hkdf(key, salt, b"keyweir/v1/seal" + b"\x01" + key_id)


def commitment(key):
    return hkdf(key, b"", b"keyweir/v1/commit")


def part_commitment(part, record_id, i):
    return hkdf(part, record_id, b"keyweir/v1/part" + bytes([i]))


def key_id_of(core):
    return hashlib.sha256(b"keyweir/v1/key-id" + core).digest()


class Reader:
    def __init__(self, data, failure):
        self.data, self.failure = data, failure

    def take(self, n):
        require(n <= len(self.data), self.failure)
        out, self.data = self.data[:n], self.data[n:]
        return out

    def number(self, n):
        return int.from_bytes(self.take(n), "big")

    def prefixed(self, n):
        return self.take(self.number(n))


def is_text(b):
    try:
        b.decode("utf-8")
        return True
    except UnicodeDecodeError:
        return False


SCHEMES = {1: "single", 2: "chain", 3: "split", 4: "threshold", 5: "any"}


def read_core(data):
    r = Reader(data, "malformed")
    require(r.number(1) == 1, "unsupported")
    core = {"scheme": r.number(1), "k": r.number(1), "n": r.number(1), "record_id": r.take(16)}
    core["created"] = int.from_bytes(r.take(8), "big", signed=True)
    core["commitment"] = r.take(32)
    pairs = r.number(1)
    require(pairs <= 32 and core["n"] <= 8, "malformed")
    core["context"] = [(r.prefixed(2), r.prefixed(2)) for _ in range(pairs)]
    core["authorities"] = [(r.prefixed(1), r.take(32)) for _ in range(core["n"])]
    require(not r.data, "malformed")
    scheme, k, n = core["scheme"], core["k"], core["n"]
    require(scheme in SCHEMES, "unsupported")
    require({1: k == n == 1, 2: k == n >= 2, 3: k == n >= 2, 4: 2 <= k <= n, 5: k == 1 and n >= 2}[scheme], "malformed")
    names = [a for a, _ in core["authorities"]]
    require(len(set(names)) == len(names), "malformed")
    require(all(1 <= len(a) <= 64 and is_text(a) for a in names), "malformed")
    keys = [name for name, _ in core["context"]]
    require(keys == sorted(set(keys)), "malformed")
    for name, value in core["context"]:
        require(1 <= len(name) <= 1024 and len(value) <= 1024 and is_text(name) and is_text(value), "malformed")
        require(name == b"keyweir-scope" or not name.startswith(b"keyweir-"), "malformed")
    require(dict(core["context"]).get(b"keyweir-scope"), "malformed")
    return core


def read_record(data):
    require(len(data) <= 4096, "malformed")
    r = Reader(data, "malformed")
    raw = r.prefixed(2)
    core = read_core(raw)
    require(r.number(1) == core["n"], "malformed")
    wraps = []
    for i in range(core["n"]):
        managed, version, wrap = r.prefixed(2), r.prefixed(1), r.prefixed(2)
        require(1 <= len(managed) <= 2048 and len(version) <= 64 and len(wrap) <= 2048, "malformed")
        require((not wrap) == (core["scheme"] == 2 and i < core["n"] - 1), "malformed")
        wraps.append((managed, version, wrap))
    require(not r.data, "malformed")
    return raw, core, wraps


def wrap_context(core, i):
    out = {name.decode(): value.decode() for name, value in core["context"]}
    names = b"".join(bytes([len(a)]) + a for a, _ in core["authorities"])
    out["keyweir-use"] = "data"
    out["keyweir-record"] = core["record_id"].hex()
    out["keyweir-scheme"] = SCHEMES[core["scheme"]]
    out["keyweir-part"] = f"{i}/{core['n']}"
    out["keyweir-authorities"] = hashlib.sha256(names).hexdigest()
    return out


def read_meta(data):
    r = Reader(data, "tampered")
    require(r.number(1) == 1, "tampered")
    m = {"chain": r.take(16).hex()}
    for name in ("sequence", "previous", "previous_on_subject", "gap"):
        m[name] = str(r.number(8))
    m["published"] = str(int.from_bytes(r.take(8), "big", signed=True))
    sealed = r.prefixed(2)
    strip = r.number(1)
    add = r.prefixed(1)
    require(1 <= len(sealed) <= 4096 and strip <= len(sealed), "tampered")
    require(not (strip and add and sealed[strip - 1] == add[-1]), "tampered")
    origin = add + sealed[strip:]
    require(1 <= len(origin) <= 4096, "tampered")
    m["sealed_subject"], m["origin_subject"] = sealed.decode(), origin.decode()
    count = r.number(2)
    require(count <= 64, "tampered")
    headers = [(r.prefixed(2), r.prefixed(4)) for _ in range(count)]
    names = [name for name, _ in headers]
    require(all(names) and names == sorted(names), "tampered")
    require(sum(6 + len(n) + len(v) for n, v in headers) <= 32768, "tampered")
    if headers:
        m["headers"] = [[n.decode(), v.decode()] for n, v in headers]
    padding = r.prefixed(2)
    require(len(padding) <= 4095 and not any(padding), "tampered")
    m["padding"] = len(padding)
    return m, r.data


def open_envelope(key, known, data):
    known_core, core, _ = read_record(known)
    require(hmac.compare_digest(commitment(key), core["commitment"]), "wrong-key")
    require(data[:2] == b"KW", "not-envelope")
    require(len(data) >= 4, "malformed")
    require(data[2] == 1 and data[3] == 1, "unsupported")
    require(150 <= len(data) <= 1 << 30, "malformed")
    flags, size = data[4], int.from_bytes(data[6:8], "big")
    require(flags < 8 and data[5] == 0 and (size > 0) == bool(flags & 1), "malformed")
    require(size <= 4096 and len(data) >= 150 + size, "malformed")
    key_id, salt, record, sealed = data[8:40], data[40:56], data[56 : 56 + size], data[56 + size :]
    if record and record != known:
        raw, _, _ = read_record(record)
        require(raw == known_core and key_id_of(raw) == key_id, "tampered")
        raise Failure("other-wraps")
    require(key_id_of(known_core) == key_id, "tampered")
    aad = data[:4] + bytes([flags & 0xFE, 0])
    try:
        plain = AESGCM(subkey(key, salt, key_id)).decrypt(sealed[:12], sealed[12:], aad)
    except InvalidTag:
        raise Failure("tampered") from None
    meta, payload = read_meta(plain)
    meta["layered"] = bool(flags & 4)
    return meta, payload


def check_envelope(c):
    meta, payload = open_envelope(bytes.fromhex(c["key"]), bytes.fromhex(c["record"]), bytes.fromhex(c.get("envelope", "")))
    return {"meta": meta, "payload": payload.hex()}


def check_record(c):
    raw, core, wraps = read_record(bytes.fromhex(c.get("record", "")))
    return {
        "key_id": key_id_of(raw).hex(),
        "contexts": [wrap_context(core, i + 1) for i in range(core["n"])],
        "wraps": [{"managed_key": m.decode(), "version": v.decode(), "bytes": w.hex()} for m, v, w in wraps],
        "core": {
            "scheme": core["scheme"], "k": core["k"], "n": core["n"], "record_id": core["record_id"].hex(),
            "created": str(core["created"]), "commitment": core["commitment"].hex(),
            "context": [[n.decode(), v.decode()] for n, v in core["context"]],
            "authorities": [{"name": n.decode(), "commitment": p.hex()} for n, p in core["authorities"]],
        },
    }


def check_derive(c):
    key = bytes.fromhex(c["key"])
    return {
        "subkey": subkey(key, bytes.fromhex(c["salt"]), bytes.fromhex(c["key_id"])).hex(),
        "commitment": commitment(key).hex(),
        "part_commitment": part_commitment(key, bytes.fromhex(c["record_id"]), c["part"]).hex(),
    }


CHECKS = {"envelope": check_envelope, "record": check_record, "derive": check_derive}


def main(paths):
    cases = wrong = 0
    for path in paths:
        with open(path, encoding="utf-8") as f:
            vectors = json.load(f)
        for c in vectors["cases"]:
            cases += 1
            expect = c.get("expect", "ok")
            try:
                result, got = CHECKS[vectors["kind"]](c), "ok"
            except Failure as failure:
                result, got = {}, str(failure)
            different = [name for name, value in result.items() if c.get(name) != value]
            if got != expect or different:
                wrong += 1
                print(f"{path}: {c['name']}: {got}, want {expect}; different: {different}")
    print(f"{cases} cases, {wrong} wrong")
    return 0 if cases and not wrong else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
