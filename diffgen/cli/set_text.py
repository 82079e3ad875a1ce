"""What ``diffgen info PATH`` prints: a set, what a call on it costs, and each backend's time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffgen.cli import text

_WIDTH = 9


def as_text(record: dict[str, Any]) -> str:
    """The record of ``diffgen.cost.survey`` for people."""
    lines = [record["set"]["path"]]
    for name, said in (
        ("set", _set(record["set"])),
        ("sha256", _sha256(record["set"])),
        ("rows", _place(record)),
        ("memory", _memory(record)),
        ("passes", _passes(record)),
        ("work", _work(record)),
        ("reading", _reading(record)),
    ):
        if said:
            lines.append(f"{name:<{_WIDTH}}{said}")
    call = record["call"]
    lines += [
        "",
        f"a call with {text.count(call['batch'], 'noisy point')} at sigma {call['sigma']:g}"
        + (", estimated from a sample of the rows" if record["reading"] else ""),
        "",
        text.table(_rows(record["backends"]), "<>>>><<"),
        *_notes(record),
    ]
    return "\n".join(lines)


def _set(found: dict[str, Any]) -> str:
    shape = " x ".join(map(str, found["sample_shape"]))
    parts = [
        f"{found['num_points']:,} x ({shape}) {found['dtype']}, D = {found['features']:,}",
        f"{_size(found['rows_bytes'])} of rows",
    ]
    if found["num_classes"]:
        parts.append(f"labels of {text.count(found['num_classes'], 'class', 'classes')}")
    if found["flip"]:
        parts.append("with mirror images, which are not stored")
    return "; ".join(parts)


def _sha256(found: dict[str, Any]) -> str:
    if found["meta_sha256"] is None:
        return str(found["sha256_why_not"])
    digest = found["meta_sha256"]
    return f"{found['sha256_why_not']}; of meta.json, which holds those of the shards: {digest}"


def _place(record: dict[str, Any]) -> str:
    if record["place"] == "file":
        free = record["available_bytes"]
        spare = "" if free is None else f" ({_size(free)} of memory are available)"
        return f"stay in the file, read in each pass; in_memory=True would read them once{spare}"
    return "are read into memory once"


def _memory(record: dict[str, Any]) -> str:
    memory = record["memory"]
    rows = "two blocks of rows" if record["place"] == "file" else "rows"
    names = {"rows": rows, "norms": "norms", "labels": "labels", "weights": "weights"}
    parts = [f"{_size(memory[key])} {name}" for key, name in names.items() if memory[key]]
    parts.append(f"up to {_size(memory['queries'])} queries with their posteriors")
    return f"about {_size(memory['total'])} for a call: {', '.join(parts)}"


def _passes(record: dict[str, Any]) -> str:
    call = record["call"]
    queries = text.count(call["queries"], "query", "queries")
    if record["set"]["flip"]:
        queries += " (mirrored ones are as many again)"
    said = f"{queries}: {text.count(call['passes'], 'pass', 'passes')} a call"
    if call["passes"] > 1:
        said += f", up to {text.count(call['queries_of_pass'], 'query', 'queries')} each"
    if record["place"] == "file":
        if call["second_pass"]:
            said += ", each with a second one over the segments that are near enough to matter"
        said += "; the first call "
        said += (
            "one more, which measures" if call["measuring_pass"] else "checks what the file says of"
        )
        said += " the rows"
    return said


def _work(record: dict[str, Any]) -> str:
    call, ceilings = record["call"], record["ceilings"]
    said = f"{_size(call['read_bytes'])} of rows and {call['operations']:.3g} operations a call"
    if ceilings is None:
        return said
    return (
        f"{said}: in float32 from memory at least {text.seconds(ceilings['floor_ms'] / 1e3)} here "
        f"({ceilings['read_gb_s']:.1f} GB/s, {ceilings['fma_gf_s']:.0f} GF/s; bound by "
        f"{ceilings['bound']})"
    )


def _reading(record: dict[str, Any]) -> str:
    found = record["reading"]
    if found is None:
        return ""
    said = (
        f"{_rate(found['bytes_s'])} as the system has the file now, "
        f"{_rate(found['again_bytes_s'])} again ({_size(found['nbytes'])} read); "
    )
    what = "the first pass" if record["place"] == "file" else "opening"
    if record["place"] == "file" and not record["call"]["measuring_pass"]:
        what = "checking in the first pass"
    return f"{said}{what} takes about {text.seconds(found['first_pass_s'])}"


def _rows(backends: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["backend", "a call", "reading", "computing", "rows timed", "bound by", ""]]
    for backend in backends:
        found = backend["estimate"]
        if found is None:
            why = "; ".join(backend["reasons"]) or "can run it; not timed"
            rows.append([backend["name"], "-", "", "", "", "", why])
            continue
        time = text.seconds(found["seconds"])
        if found["at_most_s"] > found["seconds"]:
            time += f" to {text.seconds(found['at_most_s'])}"
        rows.append(
            [
                backend["name"],
                time,
                text.seconds(found["read_s"]) if found["read_s"] else "-",
                text.seconds(found["compute_s"]),
                f"{found['rows']:,}",
                found["bound"],
                _remark(backend),
            ]
        )
    return rows


def _remark(backend: dict[str, Any]) -> str:
    remarks = [] if backend["automatic"] else ["by name"]
    if backend["place"] == "cuda":
        remarks.append("rows on the GPU, copied there once")
    return ", ".join(remarks)


def _notes(record: dict[str, Any]) -> list[str]:
    timed = [backend for backend in record["backends"] if backend["estimate"]]
    lines = []
    if any(backend["estimate"]["read_s"] for backend in timed):
        lines.append(
            "a call takes the longer of reading and computing, and more where the two hinder each "
            "other; from memory it takes the computing"
        )
    if any(not backend["automatic"] for backend in timed):
        lines.append('"by name": runs when asked for by name, never chosen by itself')
    return ["", *lines] if lines else []


def _size(nbytes: float) -> str:
    if nbytes < 1e6:
        return f"{nbytes / 1e3:.1f} kB"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e10 else f"{nbytes / 1e6:,.1f} MB"


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:.2f} GB/s"
