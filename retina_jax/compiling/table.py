"""The study as text: a table per bucket, and where the HBM traffic comes from."""

from __future__ import annotations

from collections.abc import Iterator

from retina_jax.compiling.chips import GIB
from retina_jax.compiling.programs import Program, largest_batch
from retina_jax.compiling.study import Bucket, Study
from retina_jax.wording import counted

SOURCES = 3
"""Number of sources of HBM traffic to list."""


def lines(study: Study) -> Iterator[str]:
    """The whole report, for stdout."""
    chip = study.chip
    yield (
        f"{study.topology}: {counted(study.chips, 'device')}, each {chip.hbm} GiB for programs, "
        f"{chip.tflops:g} TFLOP/s (bfloat16), {chip.gbps:g} GB/s ({chip.source})"
    )
    yield "compiled, not run; the figures are per device and step"
    for bucket in study.buckets:
        yield ""
        yield from _table(bucket, study)
        for step, programs in bucket.programs.items():
            yield from _sources(step, programs[0])


def _table(bucket: Bucket, study: Study) -> Iterator[str]:
    height, width = bucket.size
    columns = [programs[0] for programs in bucket.programs.values()]
    rows = [(f"{height}×{width}", list(bucket.programs))]
    rows += [(name, [value(p, study) for p in columns]) for name, value in _ROWS.items()]
    for name, values in rows:
        yield f"{name:<34}" + "".join(f"{value:>12}" for value in values)
    for step, programs in bucket.programs.items():
        yield from _largest(step, programs, study)


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def bounds(program: Program, study: Study) -> tuple[float, float]:
    """Lower bounds on the seconds of a step: from its arithmetic, and from its HBM traffic."""
    moved = sum(program.traffic.values())
    return program.flops / (study.chip.tflops * 1e12), moved / (study.chip.gbps * 1e9)


def _of_compiled(text):
    return lambda program, study: text(program, study) if program.compiled else "–"


_ROWS = {
    "images per device": lambda p, s: str(p.images),
    "memory: arguments, GiB": _of_compiled(lambda p, s: _gib(p.arguments)),
    "  of which reused by outputs": _of_compiled(lambda p, s: _gib(p.aliased)),
    "  other outputs": _of_compiled(lambda p, s: _gib(p.outputs)),
    "  temporaries": _of_compiled(lambda p, s: _gib(p.temporaries)),
    "  the program itself": _of_compiled(lambda p, s: _gib(p.code)),
    "  total": lambda p, s: _gib(p.total),
    "  limit": lambda p, s: _gib(s.limit),
    "fits": lambda p, s: "yes" if s.fits(p) else "no",
    "arithmetic, GFLOP": _of_compiled(lambda p, s: f"{p.flops / 1e9:,.0f}"),
    "HBM traffic, GB": _of_compiled(lambda p, s: f"{sum(p.traffic.values()) / 1e9:.1f}"),
    "lower bound, ms: arithmetic": _of_compiled(lambda p, s: f"{1e3 * bounds(p, s)[0]:.1f}"),
    "lower bound, ms: HBM traffic": _of_compiled(lambda p, s: f"{1e3 * bounds(p, s)[1]:.1f}"),
    "upper bound, images/s of the slice": _of_compiled(
        lambda p, s: f"{s.chips * p.images / max(bounds(p, s)):,.0f}"
    ),
}


def _largest(step: str, programs: list[Program], study: Study) -> Iterator[str]:
    """What the search for the largest batch found."""
    if len(programs) < 2:
        return
    for program in programs[1:]:
        verdict = "fits" if study.fits(program) else "does not fit"
        yield f"  {step}, {counted(program.images, 'image')}: {_gib(program.total)} GiB, {verdict}"
    fitting = max((p.images for p in programs if study.fits(p)), default=0)
    line = largest_batch(programs, study.limit)
    estimate = "" if line is None else f", {line} by the line through two compilations"
    yield f"largest batch per device of {step}: {fitting} of those compiled{estimate}"


def _sources(step: str, program: Program) -> Iterator[str]:
    total = sum(program.traffic.values())
    if not total:
        return
    yield f"HBM traffic of {step}, largest sources:"
    largest = sorted(program.traffic.items(), key=lambda item: -item[1])[:SOURCES]
    for source, size in largest:
        yield f"  {size / 1e9:6.2f} GB  {100 * size / total:3.0f} %  {source}"
