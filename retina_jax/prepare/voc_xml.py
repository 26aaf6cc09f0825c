"""A Pascal VOC tree to `Annotations`, by hotcoco's reader."""

from __future__ import annotations

import tempfile
import xml.parsers.expat
from collections.abc import Iterator
from pathlib import Path

import hotcoco

from retina_jax.errors import UserError
from retina_jax.prepare.annotations import Annotations, check, is_finite
from retina_jax.prepare.linked import check_inside, named_in, unique_by_stem


def read_voc(
    tree: Path, splits: dict[str, str], follow_links: bool = False
) -> dict[str, Annotations]:
    """The splits of a tree of Annotations/, JPEGImages/ and ImageSets/Main/.

    Args:
      splits: name here to name of the list in ImageSets/Main, such as ``{"validation": "val"}``.
      follow_links: out of the tree, too.

    Objects marked difficult become crowds: ignored in training and scoring, as the VOC development
    kit does. Boxes count from 1 there. `UserError` names the file that is wrong.
    """
    folder = tree / "Annotations"
    if not folder.is_dir():
        raise UserError(f"--tree {tree} has no folder Annotations; give the folder that holds it")
    check_inside(tree / "JPEGImages", tree, follow_links)
    for listed in splits.values():
        check_inside(tree / "ImageSets" / "Main" / f"{listed}.txt", tree, follow_links)
    stems = {name: list(_stems(tree, listed)) for name, listed in splits.items()}
    wanted = {}
    for name, found in stems.items():
        for stem in found:
            wanted[stem] = folder / f"{stem}.xml"
            if not wanted[stem].is_file():
                raise UserError(f"{wanted[stem]}: no such file, and split {name!r} lists it")
            check_inside(wanted[stem], tree, follow_links)
            _check_well_formed(wanted[stem])
    with tempfile.TemporaryDirectory() as linked:
        (Path(linked) / "Annotations").mkdir()
        for stem, path in wanted.items():
            (Path(linked) / "Annotations" / f"{stem}.xml").symlink_to(path.resolve())
        labels = tree / "labels.txt"
        if labels.is_file():
            check_inside(labels, tree, follow_links)
            (Path(linked) / "labels.txt").symlink_to(labels.resolve())
        with named_in({str(Path(linked) / "Annotations"): str(folder), linked: str(tree)}):
            content = hotcoco.COCO.from_voc(linked).dataset
    if not content["categories"]:
        raise UserError(f"{folder}: no object in {len(wanted)} files; there is nothing to learn")
    # hotcoco numbers the files in the order of their names
    image_of = dict(zip(sorted(wanted), content["images"], strict=True))
    for path, image in ((wanted[stem], image) for stem, image in image_of.items()):
        if not (image["width"] and image["height"]):
            del image["width"], image["height"]
        # the kit goes by the annotation's own name; tools write whatever name they knew inside
        own = unique_by_stem(tree / "JPEGImages", path.stem)
        image["file_name"] = own or image["file_name"]
    boxes_of: dict[int, list] = {}
    xml_of = {image["id"]: wanted[stem] for stem, image in image_of.items()}
    for annotation in content["annotations"]:
        if not all(map(is_finite, annotation["bbox"])):
            raise UserError(f"{xml_of[annotation['image_id']]}: a box is not four finite numbers")
        boxes_of.setdefault(annotation["image_id"], []).append(annotation)
    found = {}
    for name, listed in stems.items():
        images = [image_of[stem] for stem in listed]
        found[name] = check(
            tree / "ImageSets" / "Main" / f"{splits[name]}.txt",
            {
                "images": images,
                "annotations": [a for image in images for a in boxes_of.get(image["id"], ())],
                "categories": content["categories"],
            },
        )
    return found


def _stems(tree: Path, listed: str) -> Iterator[str]:
    """Names in a list of ImageSets/Main; its second column, if any, is of one class alone."""
    path = tree / "ImageSets" / "Main" / f"{listed}.txt"
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))[:10])
        advice = f"; there are {there}" if there else ""
        raise UserError(f"{path}: cannot be read ({error}){advice}") from None
    seen = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        stem = line.split()[0]
        if "/" in stem or stem.startswith(".") or "\0" in stem:
            raise UserError(f"{path}: line {number}: {stem!a} is no name of an annotation")
        if stem in seen:
            raise UserError(f"{path}: line {number}: {stem!r} is there twice")
        seen.add(stem)
        yield stem
    if not seen:
        raise UserError(f"{path}: lists no picture")


def _check_well_formed(path: Path) -> None:
    """hotcoco reads as far as a cut file goes, and objects would be lost in silence."""
    parser = xml.parsers.expat.ParserCreate()
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (xml.parsers.expat.ExpatError, OSError) as error:
        raise UserError(f"{path}: not XML ({error})") from None
