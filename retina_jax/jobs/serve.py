"""Serve the model of a run over HTTP: a JSON API and a web page that detect objects in images.

usage: retina-jax serve --workdir=RUN [--checkpoint=best|latest | --step=STEP] [--host=127.0.0.1]
           [--port=8000] [--score-threshold=0.05] [--batch-size=8] [--max-body=32] [--max-images=16]
           [--max-megapixels=50] [--max-queue=64] [--max-seconds=30] [--stop-seconds=20]
           [--log-requests]

POST /detect takes an image, or a form with several, and returns the detections that evaluation
would find, with boxes in pixels of the original images. GET /health shows whether the server is
ready, that is, whether all its programs are compiled. /openapi.json describes both. Images that
wait at the same time share a batch if that is faster.

Unless --host is set, only programs on this machine can connect. There is no encryption and no
log-in. After the first Ctrl-C or SIGTERM, the server refuses new requests, answers the open ones
and exits; after the second, it exits at once.

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
        help="checkpoint to use: the best by AP, or the latest (default: %(default)s)",
    )
    add("--step", type=int, help="use the checkpoint of this step instead")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add(
        "--port",
        type=int,
        default=8000,
        help="port to listen on; 0: any free port (default: %(default)s)",
    )
    add(
        "--score-threshold",
        type=float,
        help="minimum score of a detection (default: eval.score_threshold of the run)",
    )
    add(
        "--batch-size",
        type=int,
        default=8,
        help="maximum number of images per forward pass (default: %(default)s)",
    )
    for name, kind, default, meaning in (
        ("body", float, 32, "maximum size of a request body, MiB"),
        ("images", int, 16, "maximum number of images in a request"),
        ("megapixels", float, 50, "maximum size of an image, millions of pixels"),
        ("queue", int, 64, "maximum number of waiting images, and of open requests"),
        ("seconds", float, 30, "maximum time for a request, seconds"),
    ):
        add(f"--max-{name}", type=kind, default=default, help=f"{meaning} (default: %(default)s)")
    add(
        "--stop-seconds",
        type=float,
        default=20,
        help="seconds that open requests have to finish after a signal (default: %(default)s)",
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
        raise UserError(
            f"--batch-size={options.batch_size} must lie between 1 and 1024; set --batch-size=8"
        )
    threshold = options.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(
            f"--score-threshold={threshold} must lie between 0 and 1; set --score-threshold=0.5"
        )
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
