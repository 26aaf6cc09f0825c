"""What ends a command: the exit code and the lines of each kind of error."""

import errno

import pytest

from retina_jax.errors import (
    DONE,
    FAULT,
    INTERRUPTED,
    LEFT_OUT,
    MISTAKE,
    NON_FINITE,
    CommandError,
    NonFiniteLossError,
    RunError,
    UserError,
    explain,
)


def test_exit_codes_are_those_that_the_readme_and_restart_scripts_rely_on():
    assert (DONE, FAULT, MISTAKE, LEFT_OUT, NON_FINITE) == (0, 1, 2, 3, 4)
    assert INTERRUPTED == 130


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UserError("steps=0; set 1"), 2, ["error: steps=0; set 1"]),
        (
            UserError("2 records are damaged", ["a.jpg: cut short", "b.jpg: empty"]),
            2,
            ["  a.jpg: cut short", "  b.jpg: empty", "error: 2 records are damaged"],
        ),
        (RunError("a worker died"), 1, ["stopped: a worker died"]),
        (NonFiniteLossError("step 3: loss nan"), 4, ["stopped: step 3: loss nan"]),
        (CommandError("it ended"), 1, ["stopped: it ended"]),
        (KeyboardInterrupt(), 130, ["stopped; run the same command again to continue"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a.json"),
            1,
            ["stopped: no space left on disk (/runs/a.json); "
             "free some space and run the same command again"],
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            1,
            ["stopped: no space left on disk; free some space and run the same command again"],
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes"),
            2,
            ["error: out of device memory; lower --config.train.batch_size or "
             "--config.eval.batch_size, or shrink --config.data.buckets"],
        ),
    ],
    ids=["mistake", "details", "fault", "non-finite", "other", "interrupt", "disk", "quota",
         "memory"],
)  # fmt: skip
def test_errors_are_explained(error, code, lines):
    assert explain(error) == (code, lines)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("INTERNAL: a bug"), OSError(errno.EACCES, "Permission denied"), ValueError()],
    ids=["internal", "no access", "empty"],
)
def test_a_fault_of_the_program_keeps_its_traceback(error):
    assert explain(error) is None


def test_a_non_finite_loss_is_a_fault_of_the_run():
    assert issubclass(NonFiniteLossError, RunError)
