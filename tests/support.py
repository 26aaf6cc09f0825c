"""What conftest and tests share: the modules whose shapes are checked, and quick compilation."""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys

import pytest

SMALLEST = (
    "--config.data.short_side=64", "--config.data.long_side=96", "--config.model.width=8",
    "--config.model.fpn_channels=16", "--config.model.head_channels=16",
    "--config.model.head_convs=1", "--config.train.steps=1", "--config.train.batch_size=4",
    "--config.eval.batch_size=4", "--config.eval.pictures=1",
)  # fmt: skip
"""Flags of runs on ``two_aspects``; where they are the same, so are the programs to compile."""

_HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
EXPORTED = ("stablehlo", "onnx") if _HAS_ONNX else ("stablehlo",)
"""Formats of the fixture ``exported``."""

PURE = (
    *(f"retina_jax.ops.{name}" for name in (
        "anchors", "atss", "boxes", "box_losses", "centerness", "distribution", "losses",
        "matching", "nms",
        "postprocess", "targets")),
    "retina_jax.training.objective",
)  # fmt: skip
"""Shapes are checked on every call; `test_shapes_are_checked.py` sees each raise."""


_VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_FUSIONS = "xla_cpu_use_fusion_emitters"
_HAS_FUSIONS = importlib.metadata.version("jaxlib").startswith("0.10.")
"""Later versions abort on flags that they do not know, such as this one and the next."""
_WHOLE = "--xla_cpu_parallel_codegen_split_count=1"
"""A program is compiled in one piece: with two test processes no core is free for more."""


def leave_out_the_surroundings():
    """Removes what some CI services set and texts or the tests' own servers would suffer from."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    for name in ("no_proxy", "NO_PROXY") if proxies else ():  # JAX warns of all of them
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))


def is_quick():
    """Whether XLA skips most of its optimizations, here and in subprocesses started now."""
    return os.environ[_VARIABLE] == "1"


def compile_quickly():
    """Compiles a training step in 3 s instead of 16 (XLA 0.10 on CPU), to the same numbers."""
    _set(quick=True)


def compile_in_full():
    """Compiles as a user's programs are."""
    _set(quick=False)


def _set(quick):
    os.environ[_VARIABLE] = str(int(quick))
    # Without LLVM's optimizations, two thirds of the time would go into XLA's own code for fusions;
    # with them and without that code, some training steps do not compile within minutes.
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if not flag.startswith(f"--{_FUSIONS}=")]
    if _HAS_FUSIONS:
        flags.append(f"--{_FUSIONS}={str(not quick).lower()}")
        flags = [flag for flag in flags if flag != _WHOLE] + [_WHOLE]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    _set_in_process(quick)


def _set_in_process(quick):
    if "jax" not in sys.modules:
        return  # it reads the variables when it is imported
    import jax
    from jax._src import compiler

    global _plain_options
    jax.config.update("jax_disable_most_optimizations", quick)
    if not _HAS_FUSIONS:
        return
    # XLA has read its flags once and for all, of whichever kind the first test was, and pmap takes
    # no compiler options
    if _plain_options is None:
        _plain_options = compiler.get_compile_options

    def with_option(*arguments, **options):
        made = _plain_options(*arguments, **options)
        made.env_option_overrides = [*made.env_option_overrides, (_FUSIONS, not quick)]
        return made

    compiler.get_compile_options = with_option


_plain_options = None


def on_one_device():
    """The environment of a subprocess that is to see one CPU device."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return {**os.environ, "XLA_FLAGS": " ".join(flags)}


@contextlib.contextmanager
def compiled_quickly():
    """For initial weights in ``optimized`` tests: drawing them would take longest to compile."""
    before = is_quick()
    compile_quickly()
    try:
        yield
    finally:
        _set(before)


def events_in(folder):
    """TensorBoard's values in a folder: tag to {step: number or encoded image}."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, the event, its checksum
            end = at + 12 + int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : end])
            at = end + 4
            for value in event.summary.value:
                image = value.HasField("image")
                shown = value.image.encoded_image_string if image else value.simple_value
                found.setdefault(value.tag, {})[event.step] = shown
    return found


def prepare_coco(images, annotations, out):
    """The command, in this process; what it prints goes to stderr."""
    from retina_jax.main import main

    files = [flag for file in annotations for flag in ("--annotations", str(file))]
    with contextlib.redirect_stdout(sys.stderr):
        code = main(["retina-jax", "prepare", "coco", "--images", str(images), "--out", str(out),
                     *files])  # fmt: skip
    assert code == 0


def assert_same_results(ours, theirs):
    """COCO results of one image; where scores tie within rounding, two may change places."""
    assert len(ours) == len(theirs)
    left = list(ours)
    for result in theirs:
        close = [
            our for our in left
            if our["category_id"] == result["category_id"]
            and our["score"] == pytest.approx(result["score"], abs=1.5e-6)  # rounded to 1e-6
            and our["bbox"] == pytest.approx(result["bbox"], abs=0.01)
        ]  # fmt: skip
        assert close, result
        left.remove(close[0])
