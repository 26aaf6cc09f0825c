"""Starts a program with a loader fifty times and kills it, each time at another moment.

Run by `test_workers.py` as ``killed_programs.py DATA_DIR PREFIX``; names of shared memory begin
with PREFIX. Programs and their workers are forked here, where Grain would spawn workers: what they
import, they have at once, and fifty programs take seconds.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

MOMENTS = 50
STARTING = 20
"""Of the moments, in start-up; the others follow a batch that the program has received."""
spawned = multiprocessing.get_context


def train(loader, received):
    """A program that reads batches for ever and writes a byte for each."""
    kept = []
    for batch in loader.batches(0, 10**9):
        kept = [*kept[-1:], batch.images]
        os.write(received, b".")


def run_and_kill(loader, moment):
    """Returns the number of batches that the program had received when all of it had ended."""
    ours, theirs = os.pipe()
    program = os.fork()
    if not program:
        os.close(ours)
        try:
            train(loader, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    os.setpgid(program, program)
    seen = 0
    if moment < STARTING:
        time.sleep(moment / 200)
    else:
        while seen < 1 + moment % 6:
            seen += len(os.read(ours, 1))
        time.sleep(moment / 5000)
    # the program alone, or its worker and Python's resource tracker at the same time
    (os.kill if moment % 2 else os.killpg)(program, signal.SIGKILL)
    os.waitpid(program, 0)
    while read := os.read(ours, 1000):  # to its end: nobody holds the other side any more
        seen += len(read)
    os.close(ours)
    return seen


def main(data_dir, prefix):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from experiments.shapes import get_config
    from retina_jax.data.data_set import open_split
    from retina_jax.data.loader import TrainLoader
    from retina_jax.prepare.shapes import open_data_set

    shared_memory._SHM_NAME_PREFIX = f"/{prefix}"
    multiprocessing.get_context = lambda method: spawned("fork")
    config = get_config()
    config.data.dir = data_dir
    config.data.num_workers = 1
    config.train.batch_size = 2
    loader = TrainLoader(open_split(open_data_set(data_dir, "shapes"), "train"), config)
    counts = []
    for moment in range(MOMENTS):
        counts.append(run_and_kill(loader, moment))
        left = [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]
        if left:
            sys.exit(f"moment {moment}, after {counts[-1]} batches: {left} left in /dev/shm")
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
