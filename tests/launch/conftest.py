"""Command-line tools that record how they are called, and play what a test tells them."""

import ast
import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

from retina_jax.main import main

TOOLS = ("gcloud", "kubectl", "sbatch", "scontrol", "squeue", "scancel", "srun", "sudo")
FAKE = """#!{python} -ISE
# the few imports keep a call at a hundredth of a second
import os, sys

folder = {folder!r}
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]

def free(name):
    try:
        os.close(os.open(f"{{folder}}/{{name}}", os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False

if words[0] == "sbatch" or "-" in words:
    number = next(n for n in range(99) if free(f"stdin-{{n}}"))
    with open(f"{{folder}}/stdin-{{number}}", "w") as stdin:
        stdin.write(sys.stdin.read())
this = " ".join(words)
with open(f"{{folder}}/calls") as calls:
    calls = [" ".join(eval(line)) for line in calls if line.endswith("\\n")] + [this]
with open(f"{{folder}}/rules") as rules:
    rules = eval(rules.read())
fits = (
    answer
    for i, (match, (seen, count), times, *answer) in enumerate(rules)
    if match in this
    and sum(seen in call for call in calls) >= count
    and (times is None or any(free(f"used-{{i}}-{{n}}") for n in range(times)))
)
answer = next(fits, None)
# Only now: a launch may stop this call as soon as others see it here, and the answer that it
# leaves unused would go to the next one.
with open(f"{{folder}}/calls", "a") as calls:
    calls.write(repr(words) + "\\n")
if answer:
    out, err, code, shell = answer
    print(out, end="", flush=True)
    print(err, end="", file=sys.stderr, flush=True)
    if shell:
        os.execvp("bash", ["bash", "-c", shell, *words])
    sys.exit(code)
print("no answer to", words, file=sys.stderr)
sys.exit(97)
"""


class Tools:
    """The fakes in one folder; `says` adds an answer, the first that fits is given."""

    def __init__(self, folder):
        self.folder = folder
        self._rules = []
        self._write()
        self.forget()
        text = FAKE.format(python=sys.executable, folder=str(folder))
        self.path = folder / "bin"
        self.path.mkdir()
        for tool in TOOLS:
            self.add(tool, text)

    def add(self, name, text):
        file = self.path / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def says(self, match, out="", err="", code=0, times=None, shell="", after=("", 0)):
        """Answers calls whose words contain ``match``, ``times`` times; None for always.

        ``after`` holds the answer back until that many calls contain that text; ``shell`` runs
        after the output.
        """
        self._rules.append((match, after, times, out, err, code, shell))
        self._write()

    def _write(self):
        (self.folder / "rules").write_text(repr(self._rules))

    @property
    def calls(self):
        log = self.folder / "calls"
        return [ast.literal_eval(line) for line in log.read_text().splitlines()]

    def forget(self):
        """Starts the record of calls anew."""
        (self.folder / "calls").write_text("")

    def called(self, *words):
        """The calls that have all ``words``."""
        return [call for call in self.calls if all(word in call for word in words)]

    def stdin(self, number=0):
        return (self.folder / f"stdin-{number}").read_text()

    @property
    def environment(self):
        """For subprocesses: only the fakes and the basic programs."""
        repository = Path(__file__).parents[2]
        path = os.pathsep.join([str(self.path), os.environ["PATH"]])
        return {**os.environ, "PATH": path, "PYTHONPATH": str(repository)}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    made = Tools(folder)
    monkeypatch.setenv("PATH", made.environment["PATH"])
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def launch(capfd):
    """Runs ``retina-jax launch`` in this process: exit code, stdout, lines of stderr."""

    def launch(*arguments):
        code = main(["retina-jax", "launch", "--poll=0.01", *arguments])
        printed = capfd.readouterr()
        return code, printed.out, printed.err.splitlines()

    return launch


@pytest.fixture
def manifest(launch):
    """The JobSet that a dry run prints; without ``words``, of a training run in /runs/r50."""

    def manifest(*flags, words=("train", "--config=experiments/coco.py", "--workdir=/runs/r50")):
        code, out, lines = launch(*flags, "--dry-run", "--", *words)
        assert (code, lines) == (0, [])
        return yaml.safe_load(out)

    return manifest
