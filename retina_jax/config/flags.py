"""Command-line flags: parses the config and a command's own flags; errors are one line.

Imports no JAX, so help and errors are fast. Flags accept ``-`` or ``_`` between words, and one or
two leading dashes.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import re
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from retina_jax.config.fields import FIELDS, default_config
from retina_jax.config.shell import field_flag
from retina_jax.config.values import leaves, validate
from retina_jax.errors import UserError

HELP = ("-h", "--help", "-help", "--helpfull", "-?")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of one command, in addition to ``--config`` and the config fields."""

    name: str
    meaning: str
    default: str | int | bool | list[str] | None = None
    """False: a switch, without a value."""
    example: str = ""
    """Makes the flag required; the value that the error suggests."""
    least: int | None = None
    """Smallest allowed number; makes it a number if there is no default."""
    also: str = ""
    """Older name that still works."""


PROCESSES = (
    Flag("coordinator", "HOST:PORT of process 0, for a run on several hosts; not needed on Cloud "
         "TPU, GKE and SLURM, which set it in the environment"),
    Flag("num_processes", "number of processes of the run, one per host", least=1),
    Flag("process_id", "index of this process, starting at 0", least=0),
)  # fmt: skip
"""Flags of the commands that compute on all hosts (`parallel.start`)."""
TRUST = Flag(
    "trust", "read published weights that have no published hash; prints their SHA-256", False
)
"""A flag of the commands that read weights by name."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A parsed command line."""

    config: ml_collections.ConfigDict
    """Locked and valid."""
    flags: types.SimpleNamespace
    """The command's own flags, by name."""
    config_file: str
    overrides: dict[str, object]
    """Fields set by flags, with their values."""


def wants_help(argv: Sequence[str]) -> bool:
    return any(argument in HELP for argument in argv)


def parse(
    argv: list[str],
    usage: str,
    own: Sequence[Flag] = (),
    config_of_run: Callable[[str], ml_collections.ConfigDict] | None = None,
) -> Parsed | None:
    """The config and flags in ``argv`` (without the program name); None if help was printed.

    Args:
      usage: first part of the help text.
      own: the command's own flags.
      config_of_run: reads the config of a workdir. If given, ``--workdir`` can replace
        ``--config``, and field flags override the run's config.

    Raises `UserError` for every invalid command line.
    """
    if wants_help(argv):
        print(help_text(usage, own, config_of_run is not None))
        return None
    argv = ["retina-jax", *map(_installed_experiment, _renamed(_spelt(argv, "_"), own))]
    values = flags.FlagValues()
    workdir = value_after(argv, "workdir") if config_of_run else None
    if workdir and value_after(argv, "config") is None:
        config_flag = config_flags.DEFINE_config_dict(
            "config", config_of_run(workdir), flag_values=values, sys_argv=argv
        )
    else:
        config_flag = config_flags.DEFINE_config_file(
            "config", None, flag_values=values, sys_argv=argv
        )
    for flag in own:
        _define(flag, values)
    try:
        rest = values(argv, known_only=True)
        logging.set_verbosity(logging.ERROR)
        rest = flags.FLAGS(rest)  # absl's own flags, such as --verbosity
        config = config_flag.value
        if config is not None:
            config.is_locked  # noqa: B018  an unreadable file raises only on access
    except UserError:
        raise
    except (
        flags.Error,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        ImportError,
    ) as error:
        raise UserError(_explain(argv, error)) from None
    except SyntaxError as error:
        raise UserError(f"--config={error.filename}: line {error.lineno}: {error.msg}") from None
    except Exception as error:  # whatever else the config file raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--config: {type(error).__name__}: {error} ({Path(place.filename).name}, line "
            f"{place.lineno}); correct it, or set --config to an experiment (.py)"
        ) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; write flags as --flag=value")
    if config is None:
        if config_of_run and not workdir:
            raise UserError("--workdir is missing; set it to the folder of a run")
        raise UserError("--config is missing; set --config=experiments/shapes.py or your own file")
    for flag in own:
        if flag.example and not values[flag.name].value:
            raise UserError(f"--{flag.name} is missing; set --{flag.name}={flag.example}")
    validate(config)
    return Parsed(
        config.lock(),
        types.SimpleNamespace(**{flag.name: values[flag.name].value for flag in own}),
        str(config_flags.get_config_filename(values["config"]) or ""),
        config_flags.get_override_values(values["config"]),
    )


def _define(flag: Flag, values: flags.FlagValues) -> None:
    shared = dict(name=flag.name, default=flag.default, help=flag.meaning, flag_values=values)
    if isinstance(flag.default, list):
        flags.DEFINE_list(**shared)
    elif isinstance(flag.default, bool):
        flags.DEFINE_boolean(**shared)
    elif isinstance(flag.default, int) or flag.least is not None:
        flags.DEFINE_integer(**shared, lower_bound=flag.least)
    else:
        flags.DEFINE_string(**shared)


def _spelt(argv: Sequence[str], between: str) -> list[str]:
    """``argv`` with ``between`` (``-`` or ``_``) between the words of flag names."""

    def spelt(argument: str) -> str:
        match = re.fullmatch(r"(--?)([A-Za-z][\w.-]*)(=.*)?", argument, re.DOTALL)
        if not match:
            return argument
        dashes, name, value = match.groups()
        return dashes + re.sub("[-_]", between, name) + (value or "")

    return [spelt(argument) for argument in argv]


def _renamed(argv: Sequence[str], own: Sequence[Flag]) -> list[str]:
    """Replaces older flag names with the current ones."""
    names = {flag.also: flag.name for flag in own if flag.also}

    def renamed(argument: str) -> str:
        match = re.fullmatch(r"(--?)(\w+)(=.*)?", argument, re.DOTALL)
        if not match or match[2] not in names:
            return argument
        return f"{match[1]}{names[match[2]]}{match[3] or ''}"

    return [renamed(argument) for argument in argv]


def experiments() -> Path | None:
    """The folder of the experiments shipped with the package; None if there is none."""
    spec = importlib.util.find_spec("retina_jax.experiments")
    beside = Path(__file__).parents[2] / "experiments"
    places = [*(spec.submodule_search_locations or () if spec else ()), beside]
    return next((Path(place) for place in places if (Path(place) / "coco.py").is_file()), None)


def _installed_experiment(argument: str) -> str:
    """``--config=experiments/NAME.py`` from the working directory, else from the installation."""
    match = re.fullmatch(r"(--?config=)?(experiments/\w+\.py)(:.*)?", argument, re.DOTALL)
    if not match or Path(match[2]).exists():
        return argument
    folder = experiments()
    if folder is None or not (folder / Path(match[2]).name).is_file():
        return argument
    return f"{match[1] or ''}{folder / Path(match[2]).name}{match[3] or ''}"


def help_text(usage: str, own: Sequence[Flag] = (), config_is_optional: bool = False) -> str:
    """``usage``, the command's flags, and every field with its default and meaning."""
    lines = [usage.strip(), "", "flags:"]
    config = Flag("config", "experiment: a Python file with get_config()", example="x")
    for flag in (config, *own):
        shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        default = "" if shown is None or shown is False or shown == "" else f"={shown}"
        optional = not flag.example or (flag is config and config_is_optional)
        required = "" if optional else " (required)"
        lines.append(f"  --{flag.name}{default}\n      {flag.meaning}{required}")
    lines += ["", "config fields, with their defaults (an experiment overrides some):"]
    for field in FIELDS:
        lines.append(f"  {field_flag(field.name, field.default)}\n      {field.meaning}")
    return "\n".join(lines)


def _explain(argv: list[str], error: Exception) -> str:
    """One line that names the flag and the fix, for any error of the parsers."""
    for i, argument in enumerate(argv[1:], 1):
        path = _value_of(argument, "config")
        if path is None and argument in ("-config", "--config") and i + 1 < len(argv):
            path = argv[i + 1].split(":")[0]
        if path and not Path(path).is_file():
            folder = experiments()
            there = [f"experiments/{p.name}" for p in sorted(folder.glob("*.py"))] if folder else []
            there = [name for name in there if not name.endswith("__init__.py")]
            return f"--config={path}: no such file" + (
                f"; available: {', '.join(there)}" if there else ""
            )
    fields = leaves(default_config())
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)(?:=(.*))?$", argument, re.DOTALL)
        if not match:
            continue
        name, value = match.groups()
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            near = near or [f for f in fields if f.split(".")[-1] == name.split(".")[-1]][:1]
            fix = f"did you mean --config.{near[0]}?" if near else "--help lists all fields"
            return f"--config.{name} is not a config field; {fix}"
        if value is not None and not _parses(value, fields[name]):
            kind = type(fields[name]).__name__
            return (
                f"--config.{name}={value} is not of type {kind}; for example, set "
                f"{field_flag(name, fields[name])}"
            )
    if unknown := re.match(r"Unknown command line flag '([^']+)'(.*)", str(error), re.DOTALL):
        return f"unknown flag --{unknown[1]}{unknown[2]}; --help lists the flags"
    if number := re.match(r"flag --(\w+)=(.*): .*(positive|non-negative) integer", str(error)):
        least = 1 if number[3] == "positive" else 0
        return f"--{number[1]}={number[2]} must be {least} or more; set --{number[1]}={least}"
    return _in_config_file(str(error)) or " ".join(str(error).split())


def _in_config_file(text: str) -> str | None:
    """The error and line of a config file, from the traceback that ml_collections stores."""
    if "Error whilst parsing config file" not in text:
        return None
    lines = text.strip().splitlines()
    places = re.findall(r'File "([^"]+)", line (\d+), in', text)
    file, line = places[-1] if places else ("", "")
    what = lines[-1].removeprefix("ValueError: ")
    return f"--config: {what} ({Path(file).name}, line {line})"


def _value_of(argument: str, flag: str) -> str | None:
    match = re.match(rf"--?{flag}=([^:]*)", argument, re.DOTALL)
    return match[1] if match else None


def value_after(argv: Sequence[str], flag: str) -> str | None:
    """The last value of a flag in ``argv``, after ``=`` or as the next word."""
    value = None
    for i, argument in enumerate(argv):
        if match := re.fullmatch(rf"--?{flag}(?:=(.*))?", argument, re.DOTALL):
            following = argv[i + 1] if i + 1 < len(argv) else None
            value = match[1] if match[1] is not None else following
    return value


def _parses(value: str, default: object) -> bool:
    if isinstance(default, bool):
        return value.lower() in ("true", "false", "1", "0", "t", "f", "yes", "no", "y", "n")
    if isinstance(default, (int, float)):
        try:
            type(default)(value)
        except ValueError:
            return False
        return True
    if isinstance(default, tuple):
        return bool(re.fullmatch(r"\(.*\)", value.strip(), re.DOTALL))
    return True


class ArgumentParser(argparse.ArgumentParser):
    """For commands without a config: accepts ``-`` and ``_``, raises `UserError`."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if "usage:" in (options.get("description") or "") and "prepare" not in options["prog"]:
            options["usage"] = argparse.SUPPRESS  # the description has it
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:
        return super().parse_args(_spelt(argv, "-"))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")
