"""Trees changed at random: each is read, or refused in one line that names a file of it.

``FUZZ_SECONDS`` gives every kind so long; by default, a fixed number of inputs.
"""

import os
import string
import time

import numpy as np
import pytest
from made_trees import (
    coco_content,
    coco_tree,
    encoded,
    picture,
    put,
    voc_object,
    voc_tree,
    voc_xml,
    yolo_tree,
)

from retina_jax.errors import UserError
from retina_jax.prepare import build, names
from retina_jax.prepare.plain_xml import XMLError, parse_xml
from retina_jax.prepare.plain_yaml import YAMLError, parse_yaml
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.yolo_tree import read_yolo

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
INPUTS = 300  # at least, so that a fast and a slow machine try the same ones
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SLOWEST = 3.0  # seconds for one input of a few hundred bytes

XML = voc_xml("a.png", [
    voc_object("nut &amp; <![CDATA[b]]>", (11, 9, 40, 32), "<difficult>1</difficult><pose/>"),
    voc_object("caf&#233;", ("1.5", 2, "3e1", 30), "<attributes><attribute><name>rotation</name>"
               "<value>30</value></attribute></attributes><part><name>x</name></part>"),
])  # fmt: skip
XML_PIECES = [
    "<bndbox>", "</bndbox>", "<name>", "</object>", "<!--", "-->", "<![CDATA[", "]]>", "&amp;",
    "&x;",
    "&#0;", "&#x110000;", "<?xml version='1.0' encoding='utf-16'?>",
    "<!DOCTYPE a [<!ENTITY x 'y'>]>",
    "\ufeff", "\0", "<xmin>", "nan", "1e999", "-5", "<a" * 50, " ", "\u202e",
]  # fmt: skip
YAML = "path: ../x\ntrain: images/train\nval:\nnames:\n  0: bolt\n  1: 'nut: big'\nnc: 2\n"
YAML_PIECES = [
    "&a ", "*a", "<<: ", "!!python/name:os.system ", "!x ", "- ", "? ", ": ", "{", "}", "[", "]",
    "|\n", ">\n", "---\n", "...\n", "%YAML 1.1\n", "\t", "'", '"', "#", "\\x00", "\0",
    "\ufeff", "~",
    "null", "names: [a, b]\n", "kpt_shape: [2, 3]\n", "train: ../../etc\n", "train: /\n", "\u2028",
    "1" * 40,
]  # fmt: skip
ROWS = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.9 0.9\n0 0.5 0.5 0.25 0.25 0.9\n"
ROW_PIECES = ["0", "1", "2", "-1", "nan", "inf", "1e9", "1e-400", "0.5", ".", "e", "+", ",", "\t",
              "\r", "\n", "\0", "\ufeff", "\u3000", "٣", "0x1", "_", "9" * 30,
              "0 0.5 0.5 0.25 0.25\n"]  # fmt: skip
LISTED = "a\nb 1\nc -1\n"
LIST_PIECES = ["a", "b", " 1", " -1", "/", "..", "\\", ".png", "\0", "\ufeff", "\n", "\r", "*", "[",
               "~", "a" * 300, "e\u0301", "\u00e9", "\u202e", "/etc/passwd", "C:\\",
               " "]  # fmt: skip


def changed(rng, text, pieces):
    """``text`` with a few pieces put in, taken out, doubled or overwritten; as bytes."""
    data = bytearray(text.encode())
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(0, len(data) + 1))
        until = min(len(data), place + int(rng.integers(0, 12)))
        kind = rng.integers(5)
        if kind == 0:
            del data[place:until]
        elif kind == 1:
            data[place:place] = data[place:until]
        elif kind == 2 and data:
            data[min(place, len(data) - 1)] = rng.integers(0, 256)
        elif kind == 3:
            data = data[:place] if rng.random() < 0.2 else data
        else:
            data[place:place] = pieces[rng.integers(len(pieces))].encode()
    return bytes(data)


def fuzz(attempt, text, pieces, expected=UserError):
    """Runs ``attempt`` on changed texts; how many were read and how many refused."""
    rng = np.random.default_rng(SEED)
    read = refused = 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or read + refused < INPUTS:
        data = changed(rng, text, pieces)
        started = time.thread_time()
        try:
            attempt(data)
            read += 1
        except expected as error:
            refused += 1
            line = str(error)
            assert "\n" not in line, data
            assert line.isprintable(), data
            assert len(line) < 900, data
        assert time.thread_time() - started < SLOWEST, data
    return read, refused


def test_xml():
    read, refused = fuzz(parse_xml, XML, XML_PIECES, XMLError)
    assert read
    assert refused


def test_yaml():
    read, refused = fuzz(
        lambda data: parse_yaml(data.decode("utf-8", "replace")), YAML, YAML_PIECES, YAMLError
    )
    assert read
    assert refused


def test_voc_annotations(tmp_path):
    voc_tree(tmp_path, {"a": XML.encode()})

    def attempt(data):
        put(tmp_path / "Annotations" / "a.xml", data)
        read_voc(tmp_path, {"train": "train"})

    assert all(fuzz(attempt, XML, XML_PIECES))


def test_voc_lists(tmp_path):
    voc_tree(tmp_path, {stem: XML.encode() for stem in ("a", "b", "c", "b 1", "\u00e9")})

    def attempt(data):
        put(tmp_path / "ImageSets" / "Main" / "train.txt", data)
        read_voc(tmp_path, {"train": "train"})

    assert all(fuzz(attempt, LISTED, LIST_PIECES))


def test_yolo_settings(tmp_path):
    yolo_tree(tmp_path, {"a": ROWS})

    def attempt(data):
        put(tmp_path / "data.yaml", data)
        read_yolo(tmp_path)

    assert all(fuzz(attempt, YAML, YAML_PIECES))


def test_yolo_labels(tmp_path):
    yolo_tree(tmp_path, {"a": ROWS})

    def attempt(data):
        put(tmp_path / "labels" / "train" / "a.txt", data)
        read_yolo(tmp_path)

    assert all(fuzz(attempt, ROWS, ROW_PIECES))


def test_yolo_lists(tmp_path):
    yolo_tree(tmp_path, {"a": ROWS, "b": ""}, "names: [x, y]\ntrain: train.txt\n")
    listed = "./images/train/a.png\nimages/train/b.png\n"

    def attempt(data):
        put(tmp_path / "train.txt", data)
        read_yolo(tmp_path)

    assert all(fuzz(attempt, listed, LIST_PIECES))


def test_file_names_of_coco(tmp_path):
    coco_tree(tmp_path, coco_content(2))
    put(tmp_path / "images" / "caf\u00e9.png", encoded(picture()))

    def attempt(data):
        content = coco_content(2)
        content["images"][0]["file_name"] = data.decode("utf-8", "replace")
        coco_tree(tmp_path, content, {})
        source = build.coco_source([tmp_path / "images"], [str(tmp_path / "train.json")])
        source.rows["train"].read(0)

    assert all(
        fuzz(attempt, "p1.png", [*LIST_PIECES, "images/", "images\\", "caf\u00e9", "p1.png"])
    )


@pytest.mark.parametrize(
    "alphabet", [string.printable, "\u00e9e\u0301\ufeff/\\.ÅA\u030a ǆ", "./\\"]
)
def test_keys_of_names(alphabet):
    rng = np.random.default_rng(SEED)
    for _ in range(3000):
        text = "".join(rng.choice(list(alphabet), rng.integers(0, 12)))
        assert names.key(names.key(text)) == names.key(text)
        names.leads_outside(text)
