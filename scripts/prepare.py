"""Turn annotations and pictures into a TFDS data set that retina_jax trains on.

usage: python scripts/prepare.py coco --images DIR --annotations train.json --annotations val.json
           --out DIR [--name NAME]

Each annotation file becomes a split named after it: …train… is train, …val… is validation, …test…
is test; write SPLIT=FILE to name it yourself. The result is OUT/NAME/1.0.0: train on it with
    python -m retina_jax.main --config=experiments/custom.py --config.data.dir=OUT --workdir=DIR
"""

import argparse
import collections
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from retina_jax.errors import UserError


def split_of(argument: str) -> tuple[str, Path]:
    """``SPLIT=FILE`` or a file whose name tells its split."""
    name, equals, path = argument.partition("=")
    if equals:
        if not re.fullmatch(r"[a-z]\w*", name) or name == "all":
            raise UserError(
                f"--annotations {argument}: {name!r} cannot name a split; use for example train="
            )
        return name, Path(path).expanduser()
    path = Path(argument).expanduser()
    stem = path.stem.lower()
    for word, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        if word in stem:
            return split, path
    raise UserError(
        f"--annotations {argument}: its name does not tell its split; write train={argument}"
    )


def prepare_coco(options: argparse.Namespace, console: Console) -> Path:
    """COCO JSON to a data set; `UserError` names file and record of what cannot be used."""
    from retina_jax.data.coco_json import CocoReader, read_annotations
    from retina_jax.data.records import data_set_directory, write_data_set
    from retina_jax.metrics import ProgressBar

    target = data_set_directory(options.out, options.name)
    if target.exists():
        raise UserError(f"{target} is there already; remove it, or give another --name or --out")
    folders = options.images
    if len(folders) == 1:
        folders = folders * len(options.annotations)
    if len(folders) != len(options.annotations):
        raise UserError(
            f"{len(folders)} --images for {len(options.annotations)} --annotations; give one for "
            "all, or one for each in the same order"
        )
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--images {folder} is not a folder")
    files, folder_of = {}, {}
    for argument, folder in zip(options.annotations, folders, strict=True):
        split, path = split_of(argument)
        if split in files:
            raise UserError(
                f"--annotations {path} and {files[split].path} are both split {split!r}; "
                f"name one yourself: --annotations NAME={path}"
            )
        files[split] = read_annotations(path)
        folder_of[split] = folder
    categories = next(iter(files.values())).categories
    for file in files.values():
        if file.categories != categories:
            raise UserError(
                f"{file.path} has categories {file.categories}, the first file {categories}; "
                "all splits must share theirs"
            )
    category_ids = sorted(categories)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    readers = {s: CocoReader(file, folder_of[s], labels) for s, file in files.items()}
    for reader in readers.values():
        reader.check_files()
    total = sum(len(file.images) for file in files.values())
    with ProgressBar(console, "preparing", total) as bar:

        def records(reader):
            for record in reader:
                yield record
                bar.advance()

        directory = write_data_set(
            options.out,
            options.name,
            {s: lambda reader=reader: records(reader) for s, reader in readers.items()},
            [categories[i] for i in category_ids],
            category_ids,
            "COCO JSON: " + ", ".join(str(file.path) for file in files.values()),
        )
    report = {s: {k: n for k, n in r.counts.items() if n} for s, r in readers.items()}
    (directory / "prepare_report.json").write_text(json.dumps(report, indent=2) + "\n")
    for split, counts in report.items():
        counts = collections.Counter(counts)
        console.print(f"{split}: {counts.pop('images')} images, {counts.pop('boxes', 0)} boxes")
        for what, count in counts.items():
            console.print(f"  {count} {what}")
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True)
    coco = formats.add_parser("coco", help="COCO JSON and a folder of pictures")
    coco.add_argument(
        "--images",
        type=Path,
        action="append",
        required=True,
        help="folder of the pictures; once, or once for each --annotations",
    )
    coco.add_argument(
        "--annotations", action="append", required=True, help="[SPLIT=]FILE; once for each split"
    )
    coco.add_argument("--out", type=Path, required=True, help="folder of data sets")
    coco.add_argument("--name", default="coco", help="name of the data set (%(default)s)")
    options = parser.parse_args()
    options.out = options.out.expanduser()
    options.images = [folder.expanduser() for folder in options.images]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        directory = prepare_coco(options, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    console.print(f"prepared {directory}; train on it with")
    console.print(
        "  python -m retina_jax.main --config=experiments/custom.py "
        f"--config.data.dir={options.out} --config.data.name={options.name} --workdir=runs/custom"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
