"""XML and YAML are read as XML and YAML, and nothing in them is obeyed."""

import pytest
from made_trees import (
    boxes_by_name,
    classes_by_name,
    prepared,
    put,
    voc_object,
    voc_tree,
    voc_xml,
    yolo_tree,
)

from retina_jax.errors import UserError
from retina_jax.prepare.plain_xml import XMLError, parse_xml
from retina_jax.prepare.plain_yaml import YAMLError, parse_yaml
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.yolo_tree import read_yolo

BOX = (11, 9, 40, 32)


def classes_of(root, content):
    """Classes of a VOC tree of one file with this content."""
    voc_tree(root, {"a": content})
    return list(read_voc(root, {"train": "train"})["train"][0].categories.values())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("nut &amp; bolt", "nut & bolt"),
        ("&lt;5mm", "<5mm"),
        ("&#60;5mm&gt;", "<5mm>"),
        ("caf&#233;", "café"),
        ("caf&#xE9;", "café"),
        ("cafe\u0301", "café"),
        ("<![CDATA[a < b & c]]>", "a < b & c"),
        ("nut <!-- no, a --> bolt", "nut bolt"),
        ("nut<?tool say?>s", "nuts"),
        ("  nut\n  bolt ", "nut bolt"),
        ("&quot;x&apos;", "\"x'"),
        ("\ufeffnut", "nut"),
    ],
)
def test_a_name_is_its_whole_text(tmp_path, written, name):
    assert classes_of(tmp_path / "voc", [voc_object(written, BOX)]) == [name]


def test_classes_that_share_an_entity_stay_apart(tmp_path):
    names = ["nut &amp; bolt", "gear &amp; bolt", "bolt", "&lt;5mm", "caf&#233;"]
    arguments = voc_tree(tmp_path / "voc", {"a": [voc_object(name, BOX) for name in names]})
    _, splits = prepared(tmp_path, arguments)
    whole = ["nut & bolt", "gear & bolt", "bolt", "<5mm", "café"]
    assert classes_by_name(splits["train"]) == {"a.png": whole}


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "iso-8859-1",
             "windows-1252", "cp437", "shift_jis", "gbk", "big5", "euc-kr", "koi8-r"]  # fmt: skip
LETTERS = {"shift_jis": "ネジ", "gbk": "螺栓", "big5": "螺栓", "euc-kr": "볼트", "koi8-r": "болт"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_declared_encoding_is_read(tmp_path, encoding):
    name = LETTERS.get(encoding, "écrou")
    declared = "utf-16" if encoding.startswith("utf-16") else encoding.removesuffix("-sig")
    text = voc_xml("a.png", [voc_object(name, BOX)])
    content = f'<?xml version="1.0" encoding="{declared}"?>\n{text}'.encode(encoding)
    assert classes_of(tmp_path / "voc", content) == [name]


def test_a_declaration_that_cannot_be_true_is_passed_over():
    data = '<?xml version="1.0" encoding="utf-16"?><a>é</a>'.encode()
    assert parse_xml(data).text == "é"


BILLION = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=1))
    + "]><annotation>&i;</annotation>"
)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (BILLION, "custom entities"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><a>&a;</a>', "custom entities"),
        ('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><a>&f;</a>', "custom entities"),
        ('<!DOCTYPE x [<!ENTITY % p SYSTEM "http://x/y.dtd">%p;]><a/>', "custom entities"),
        ('<!DOCTYPE x SYSTEM "http://x/y.dtd"><a>&unknown;</a>', "custom entities"),
        ("<a>&nbsp;</a>", "undefined entity"),
        ("<a>" * 5000 + "</a>" * 5000, "nest deeper than 200 levels"),
        ('<?xml version="1.0" encoding="hex"?><a/>', "unknown encoding"),
        ('<?xml version="1.0" encoding="rot13"?><a/>', "unknown encoding"),
        ('<?xml version="1.0" encoding="zlib"?><a/>', "unknown encoding"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "unknown encoding"),
        ("<a></b>", "mismatched tag"),
        ("<a/><b/>", "junk after document"),
        ("<a>\0</a>", "invalid token"),
        (b"<a>\xff</a>", "can't decode"),
        ("", "no element found"),
    ],
)
def test_xml_that_is_refused(data, why):
    with pytest.raises(XMLError, match=why) as caught:
        parse_xml(data if isinstance(data, bytes) else data.encode())
    assert "\n" not in str(caught.value)


def test_a_doctype_alone_is_read():
    assert parse_xml(b'<!DOCTYPE annotation SYSTEM "voc.dtd"><annotation/>').tag == "annotation"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("<bndbox><xmin>1</xmin></bndbox>", r"object 1 \('nut'\): has 2 <bndbox>; keep one"),
        ("<name>bolt</name>", r"object 1: must have exactly one <name>"),
    ],
)
def test_an_object_has_one_name_and_one_box(tmp_path, more, message):
    voc_tree(tmp_path / "voc", {"a": [voc_object("nut", BOX, more)]})
    with pytest.raises(UserError, match=rf"a.xml: {message}"):
        read_voc(tmp_path / "voc", {"train": "train"})


@pytest.mark.parametrize(
    "value", ["", "1,5", "nan", "inf", "0x10", "1_0", "١", "1 2", "<b>1</b>", "10px"]
)
def test_a_side_of_a_box_is_one_number(tmp_path, value):
    voc_tree(tmp_path / "voc", {"a": [voc_object("nut", (value, 1, 20, 20))]})
    with pytest.raises(UserError, match="the box is not four finite numbers"):
        read_voc(tmp_path / "voc", {"train": "train"})


def test_parts_of_an_object_keep_their_boxes_to_themselves(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    arguments = voc_tree(tmp_path / "voc", {"a": [voc_object("person", BOX, part)]})
    said, splits = prepared(tmp_path, arguments)
    assert "objects with 'part', which is not used: 1" in said
    assert boxes_by_name(splits["train"]) == {"a.png": [[10, 8, 40, 32]]}


YAML_NAMES = ["yes", "no", "on", "off", "y", "n", "null", "~", "true", "007", "1_000", "0x10",
              "12:30", "1e3", "2024-01-01", ".5", ".inf", "<<", "="]  # fmt: skip


def yolo_classes(root, names):
    yolo_tree(root, {"a": "0 0.5 0.5 0.5 0.5\n"}, f"{names}\ntrain: images/train\n")
    return list(read_yolo(root)["train"][0].categories.values())


@pytest.mark.parametrize("as_list", [True, False])
def test_names_that_yaml_1_1_would_change_stay_text(tmp_path, as_list):
    items = [f"- {n}" if as_list else f"  {i}: {n}" for i, n in enumerate(YAML_NAMES)]
    assert yolo_classes(tmp_path / "yolo", "\n".join(["names:", *items])) == YAML_NAMES


@pytest.mark.parametrize(
    "names",
    ["names: {0: a, 1: b}", "names: {'0': a, '1': b}", 'names: {"1": b, "0": a}', "names: [a, b]",
     "names:\n- a\n- b", "names: ['a', \"b\"]\nnc: 2",
     '{"names": ["a", "b"], "train": "images/train"}',
     "names:\n  0: a\n  01: b", "names:\r\n- a\r\n- b", "\ufeffnames: [a, b]",
     "names: [!!str a, b]"],
)  # fmt: skip
def test_names_as_a_list_or_by_number(tmp_path, names):
    root = tmp_path / "yolo"
    if names.startswith("{"):
        yolo_tree(root, {"a": ""}, names)
        classes = list(read_yolo(root)["train"][0].categories.values())
    else:
        classes = yolo_classes(root, names)
    assert classes == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: {0: a, 0: b}", "duplicate key '0'"),
        ("names: {0: a, 00: b}", "must number the classes from 0 to 1"),
        ("names: {a: 0, b: 1}", "must number the classes from 0 to 1"),
        ("names: [a, [b]]", "name 1 is not a string"),
        ("names: [a, b: c]", "name 1 is not a string"),
        ("names: [a, '']", "name 1 .*is empty"),
        ("names: [café, cafe\u0301]", "is empty or a duplicate"),
        ("names: [a, b]\nnc: 3", "nc is '3', but names has 2 classes"),
        ("names: [a, b]\nnc: 2\n 2\n\n 2", r"nc is '2 2\\n2', but names has 2 classes"),
        ("x: &x [a, b]\nnames: *x", "line 2: aliases are not supported; write the value"),
        ("x: &x {0: a}\nnames: {<<: *x}", "aliases are not supported; write the value"),
        ("names: !!python/tuple [a, b]", "the tag 'tag:yaml.org,2002:python/tuple'"),
        ("names: [a]\nkpt_shape: 17", "kpt_shape must be two numbers"),
    ],
)
def test_settings_that_are_refused(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as caught:
        yolo_classes(tmp_path / "yolo", names)
    assert "data.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_grow_are_refused_at_once():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(YAMLError, match="aliases are not supported"):
        parse_yaml("\n".join(lines))
    with pytest.raises(YAMLError):
        parse_yaml("[" * 100_000)


def test_labels_with_byte_order_marks_and_any_line_ends(tmp_path):
    text = "\ufeff0 0.5 0.5 0.5 0.5\r\n\r\n1 .5 .5 2.5e-1 +0.25\r0 0.5 0.5 0.5 0.5  \t"
    arguments = yolo_tree(tmp_path / "yolo", {"a": text})
    _, splits = prepared(tmp_path, arguments)
    assert classes_by_name(splits["train"]) == {"a.png": ["bolt", "nut", "bolt"]}


def test_lists_with_byte_order_marks_and_any_line_ends(tmp_path):
    files = {stem: [voc_object("x", BOX)] for stem in ("a", "b", "c")}
    arguments = voc_tree(tmp_path / "voc", files, "\ufeffa\r\nb\rc\r\n\r\n")
    _, splits = prepared(tmp_path, arguments)
    assert splits["train"].file_names.tolist() == ["a.png", "b.png", "c.png"]


def test_a_class_list_of_the_tree_orders_the_classes(tmp_path):
    root = tmp_path / "voc"
    voc_tree(root, {"a": [voc_object("nut", BOX), voc_object("bolt", BOX)]})
    put(root / "labels.txt", "\ufeffnut\nbolt\nrivet\n")
    found = read_voc(root, {"train": "train"})["train"][0]
    assert found.categories == {1: "nut", 2: "bolt", 3: "rivet"}
    put(root / "labels.txt", "bolt\n")
    with pytest.raises(UserError, match=r"labels.txt: has no class 'nut'"):
        read_voc(root, {"train": "train"})
