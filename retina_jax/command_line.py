"""Flags to a validated config; every mistake is one line. Light: it imports no JAX."""

from __future__ import annotations

import difflib
import inspect
import re
from pathlib import Path

import ml_collections
from absl import flags

from retina_jax.config import default_config, leaves, validate
from retina_jax.errors import UserError

_EXAMPLES = {
    "workdir": "runs/first",
    "weights": "resnet50.pth",
    "study": "prior,focal",
    "out": "runs/ablation",
}
"""Of flags that a program cannot do without."""
_FIELD_LINE = re.compile(r"^\s*(\w+)\.(\w+) = .*?#\s*(.*)$")


def wants_help(argv: list[str]) -> bool:
    return any(a in ("-h", "--help", "-help", "--helpfull", "-?") for a in argv[1:])


def help_text(usage: str) -> str:
    """``usage`` and every field with its default and what `default_config` says of it."""
    comments = {}
    for line in inspect.getsource(default_config).splitlines():
        if match := _FIELD_LINE.match(line):
            group, field, comment = match.groups()
            comments["seed" if group == "config" else field, group] = comment
    lines = [usage.strip(), "", "fields, with their defaults (experiments set their own):"]
    for name, value in leaves(default_config()).items():
        group, _, field = name.rpartition(".")
        group = {"eval": "evaluation", "": "config"}.get(group, group)
        comment = comments.get((field, group), "")
        lines.append(
            f"  --config.{name}={_shell(value)}" + (f"\n      {comment}" if comment else "")
        )
    return "\n".join(lines)


def _shell(value: object) -> str:
    text = str(value)
    return f"'{text}'" if isinstance(value, tuple) or not text else text


def parse(
    argv: list[str], config_flag: flags.FlagHolder, required: dict[str, flags.FlagHolder]
) -> ml_collections.ConfigDict:
    """The config that the command line describes, locked and valid; else `UserError`."""
    try:
        rest = flags.FLAGS(argv)
        config = config_flag.value
        if config is not None:
            config.is_locked  # noqa: B018  a file that could not be read raises only when touched
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
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag; write --flag=value")
    if config is None:
        raise UserError("--config is missing; set --config=experiments/shapes.py or your own")
    for name, flag in required.items():
        if not flag.value:
            raise UserError(f"--{name} is missing; set --{name}={_EXAMPLES[name]}")
    validate(config)
    return config.lock()


def _explain(argv: list[str], error: Exception) -> str:
    """One line that names the flag and the fix, from whatever the parsers raised."""
    for argument in argv[1:]:
        path = _value_of(argument, "config")
        if path and not Path(path).is_file():
            there = ", ".join(sorted(str(p) for p in Path("experiments").glob("*.py")))
            return f"--config={path}: no such file" + (f"; there are {there}" if there else "")
    fields = leaves(default_config())
    for argument in argv[1:]:
        match = re.match(r"--config\.([\w.]+)(?:=(.*))?$", argument, re.DOTALL)
        if not match:
            continue
        name, value = match.groups()
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            near = near or [f for f in fields if f.split(".")[-1] == name.split(".")[-1]][:1]
            fix = f"did you mean --config.{near[0]}?" if near else "see --help for all fields"
            return f"--config.{name} is no field of the config; {fix}"
        if value is not None and not _parses(value, fields[name]):
            kind = type(fields[name]).__name__
            default = _shell(fields[name])
            return (
                f"--config.{name}={value} is not of type {kind}; write for example "
                f"--config.{name}={default}"
            )
    return _in_config_file(str(error)) or " ".join(str(error).split())


def _in_config_file(text: str) -> str | None:
    """What a config file raised, with its line, out of the traceback that ml_collections keeps."""
    if "Error whilst parsing config file" not in text:
        return None
    lines = text.strip().splitlines()
    places = re.findall(r'File "([^"]+)", line (\d+), in', text)
    file, line = places[-1] if places else ("", "")
    what = lines[-1].removeprefix("ValueError: ")
    return f"--config: {what} ({Path(file).name}, line {line})"


def _value_of(argument: str, flag: str) -> str | None:
    prefix = f"--{flag}="
    return argument[len(prefix) :].split(":")[0] if argument.startswith(prefix) else None


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
