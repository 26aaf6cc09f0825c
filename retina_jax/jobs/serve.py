"""Serve a trained run: a local page and a JSON API that detect objects in images.

usage: retina-jax serve --workdir=RUN [--checkpoint=best|latest | --step=STEP] [--host=127.0.0.1]
           [--port=8000] [--score-threshold=0.05] [--batch-size=8] [--max-body=32] [--max-images=16]
           [--max-megapixels=50] [--max-queue=64] [--max-seconds=30] [--stop-seconds=20]
           [--log-requests]

POST /detect takes an image, or several as a form, and returns boxes in pixels of the original
images, as evaluation would find them; GET /health tells whether the server is ready; /openapi.json
describes both. Images that arrive together share a batch. All programs are compiled before the
server is ready.

Only this machine can connect unless --host is set; there is no encryption and no log-in. The first
Ctrl-C or SIGTERM answers the open requests and refuses new ones; the second stops at once.

Needs the extra: pip install 'retina_jax[serve]'
"""

from __future__ import annotations

import importlib.util
import os
import sys

from retina_jax.config.flags import ArgumentParser
from retina_jax.errors import DONE, UserError

PACKAGES = ("fastapi", "python_multipart", "uvicorn")


def parser() -> ArgumentParser:
    made = ArgumentParser(prog="retina-jax serve", description=__doc__)
    add = made.add_argument
    add("--workdir", required=True, help="folder of the run")
    add(
        "--checkpoint",
        choices=("best", "latest"),
        default="best",
        help="best by AP, or latest (default: %(default)s)",
    )
    add("--step", type=int, help="checkpoint of this step")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="0: any free port (default: %(default)s)")
    add(
        "--score-threshold",
        type=float,
        help="smallest score of a detection (default: eval.score_threshold of the run)",
    )
    add(
        "--batch-size",
        type=int,
        default=8,
        help="most images per call of the network (default: %(default)s)",
    )
    for name, kind, default, meaning in (
        ("body", float, 32, "size of a request, MiB"),
        ("images", int, 16, "images in a request"),
        ("megapixels", float, 50, "size of an image, millions of pixels"),
        ("queue", int, 64, "images that wait, and requests that are open"),
        ("seconds", float, 30, "time for a request"),
    ):
        add(f"--max-{name}", type=kind, default=default, help=f"{meaning} (default: %(default)s)")
    add(
        "--stop-seconds",
        type=float,
        default=20,
        help="time that open requests have after a signal (default: %(default)s)",
    )
    add("--log-requests", action="store_true", help="print a line for each request")
    return made


def check_packages(what: str) -> None:
    """Raises `UserError` if ``what`` needs packages that are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)}; install with: pip install 'retina_jax[serve]'"
        )


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port={options.port} must lie between 0 and 65535; set --port=8000")
    if not 1 <= options.batch_size <= 1024:
        raise UserError(f"--batch-size={options.batch_size} must lie between 1 and 1024; set 8")
    threshold = options.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--score-threshold={threshold} must lie between 0 and 1; set 0.5")
    check_packages("serve")
    from retina_jax.serving.limits import Limits
    from retina_jax.serving.server import bind, serve

    limits = Limits(
        options.max_body,
        options.max_images,
        options.max_megapixels,
        options.max_queue,
        options.max_seconds,
        options.stop_seconds,
    )
    from retina_jax.prediction.network import from_workdir
    from retina_jax.program_cache import keep_compiled_programs
    from retina_jax.progress import Reporter
    from retina_jax.serving.engine import NetworkEngine
    from retina_jax.training.workdir import workdir_at

    report = Reporter.on_stderr()
    with bind(options.host, options.port) as bound:
        checkpoint = options.checkpoint if options.step is None else options.step
        network = from_workdir(options.workdir, checkpoint, report.note)
        if network.config.train.compilation_cache:
            keep_compiled_programs(options.workdir)
        name = workdir_at(options.workdir).name
        engine = NetworkEngine(network, name, options.batch_size, threshold)
        report.say(f"model: {network.source}")
        number, has_ended = serve(engine, limits, bound, report, options.log_requests)
    if number is None:
        return DONE
    report.say(f"stopped by {number.name}")
    if not has_ended:  # XLA cannot be interrupted, nor does it survive the end of Python
        sys.stdout.flush()
        os._exit(128 + number)
    return 128 + number
