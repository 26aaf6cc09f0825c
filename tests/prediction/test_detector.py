"""The library: every kind of picture, the numbers of evaluation, threads, errors of one line."""

import itertools
import json
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from PIL import Image
from support import assert_same_results

import retina_jax
from retina_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("shallow", "one_device")


@pytest.fixture(scope="module")
def detector(network, one_device):
    from retina_jax.config.backbones import BACKBONES, ResidualKind

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet18", ResidualKind((1, 1, 1, 1), bottleneck=False))
        return retina_jax.Detector(network, batch_size=8)


def same(one, other):
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.size == other.size


def test_a_folder_gives_the_detections_of_evaluation(detector, sources):
    folder, expected = sources
    found = detector(folder)
    assert [f.source for f in found] == [str(folder / name) for name in sorted(expected)]
    for one in found:
        results = expected[one.source.rpartition("/")[2]]
        assert len(one) == len(results) > 10
        ours = one.to_coco(7)
        assert_same_results(ours, results)
        assert {our["image_id"] for our in ours} == {7}


def test_every_kind_of_input_is_the_same_picture(detector, sources):
    folder, _ = sources
    paths = sorted(folder.iterdir())[:3]
    arrays = [cv2.imread(str(path))[..., ::-1] for path in paths]
    first = detector(str(paths[0]))
    for other in (paths[0], arrays[0], Image.open(paths[0])):
        same(detector(other), first)
    every = detector(paths)
    same(every[0], first)
    for many in (
        [str(p) for p in paths],
        arrays,
        np.stack(arrays),
        detector(iter(paths)),
        detector(f"{folder}/*")[:3],
    ):
        many = detector(many) if isinstance(many, (list, np.ndarray)) and _raw(many) else many
        for one, other in zip(many, every, strict=True):
            same(one, other)
    with Image.open(paths[0]) as opened:
        assert detector(opened).source == str(paths[0])


def _raw(many):
    return isinstance(many[0], (str, np.ndarray))


def test_a_generator_is_read_only_a_few_batches_ahead(detector, sources):
    folder, _ = sources
    path = next(folder.iterdir())
    asked = itertools.count()
    stream = detector(path for _ in iter(lambda: next(asked), None))
    for _ in range(3):
        next(stream)
    stream.close()
    assert next(asked) < 12 * 8


def test_a_result_is_a_sequence_that_draws_and_converts(detector, sources):
    folder, _ = sources
    path = min(folder.iterdir())
    found = detector(path)
    assert len(found) == len(list(found)) == len(found.names)
    box, score, label, name = found[0]
    assert name == found.classes.names[label] == detector.class_names[label]
    assert (np.array(box) == found.boxes[0]).all()
    assert score == max(d.score for d in found)
    assert list(found[1:3]) == [found[1], found[2]]
    assert found[:5].size == found.size
    content = json.loads(json.dumps(found.to_dict()))
    assert content["source"] == str(path)
    assert (content["height"], content["width"]) == found.size
    assert content["detections"][0] == {
        "box": list(box), "score": score, "label": label, "name": name,
        "category_id": detector.category_ids[label],
    }  # fmt: skip
    drawn = found.draw()
    scale = drawn.width // found.width
    assert drawn.size == (scale * found.width, scale * found.height)
    assert drawn.width >= 320
    assert path.name in repr(found)


def test_threshold_and_classes_select(detector, network, sources):
    folder, _ = sources
    path = min(folder.iterdir())
    every = detector(path)
    middle = float(np.median(every.scores))
    some = detector(path, threshold=middle)
    assert 0 < len(some) < len(every)
    assert some.scores.min() > middle
    name = every.names[0]
    only = detector(path, classes=[name])
    assert set(only.names) == {name}
    assert len(only) == every.names.count(name)
    same(only, detector(path, classes=name))
    strict = retina_jax.Detector(network, batch_size=8, threshold=middle)
    assert strict.threshold == middle
    same(strict(path), some)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5 must lie between 0 and 1"),
        (
            {"classes": ["traingle"]},
            "classes=traingle: the network has no such class; did you mean",
        ),
        ({"classes": ["zebra"]}, "classes=zebra: the network has no such class; choose from: "),
    ],
)
def test_a_wrong_option_is_one_line(detector, sources, options, message):
    path = next(sources[0].iterdir())
    with pytest.raises(UserError) as caught:
        detector(path, **options)
    assert message in str(caught.value)


def test_a_threshold_below_the_networks_is_refused(network, sources):
    strict = retina_jax.Detector(network, threshold=0.5)
    with pytest.raises(UserError, match=r"threshold=0.2 is below that of the detector, 0.5"):
        strict(next(sources[0].iterdir()), threshold=0.2)


def test_wrong_pictures_are_named(detector, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    for given, message in (
        (tmp_path / "text.jpg", r"text.jpg cannot be decoded: not an image"),
        (tmp_path / "none.jpg", r"none.jpg: no such file or folder"),
        ([tmp_path / "none.jpg"], r"none.jpg cannot be read: No such file"),
        (tmp_path / "*.png", r"\*.png matches no files with the suffix of an image"),
        (np.zeros((3, 20, 30), np.uint8), r"image 0 has the shape \(3, 20, 30\)"),
        (np.zeros((20, 30), np.int64), r"has the type int64; convert it with"),
        (np.full((20, 30), 200.0), r"floating-point values up to 200"),
        ([7], r"image 0 is of type int"),
    ):
        with pytest.raises(UserError, match=message):
            detector(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no files with the suffix of an image"):
        detector(tmp_path / "empty")


def test_odd_pictures_are_treated_as_prepare_treats_them(detector, sources, tmp_path):
    """Turned by EXIF, CMYK, grey, 16 bits and alpha: as the file that `upright_rgb` makes of it."""
    import collections

    from retina_jax.data.images import upright_rgb

    picture = Image.open(min(sources[0].iterdir()))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.crop((0, 0, 120, 70)).save(tmp_path / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("P").save(tmp_path / "palette.gif")
    deep = np.asarray(picture).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    cv2.imwrite(str(tmp_path / "deep.tif"), deep[..., 0])
    paths = sorted(tmp_path.iterdir())
    found = dict(zip(paths, detector(paths), strict=True))
    (tmp_path / "prepared").mkdir()
    for path in paths:
        nothing = collections.Counter()
        encoded, height, width = upright_rgb(path.read_bytes(), (None, None), nothing)
        prepared = tmp_path / "prepared" / path.name
        prepared.write_bytes(encoded)
        same(detector(prepared), found[path])
        assert found[path].size == (height, width)
    for name in ("turned.jpg", "cmyk.jpg", "grey.png", "alpha.png", "palette.gif", "deep.tif"):
        path = tmp_path / name
        same(detector(Image.open(path)), found[path])
    assert found[tmp_path / "turned.jpg"].size == (120, 70)
    same(detector(deep), found[tmp_path / "deep.png"])
    same(detector(deep[..., 0]), found[tmp_path / "deep.tif"])
    same(detector(np.asarray(picture.convert("RGBA"))), detector(picture))


def test_the_pixel_scale_of_training_maps_16_bits(network):
    import dataclasses

    from retina_jax.prediction.pictures import Picture

    values = np.arange(0, 4096, 16, np.uint16).reshape(16, 16)
    scaled = dataclasses.replace(network, pixel_scale=(0.0, 4095.0))
    pixels = Picture("x", values).pixels(scaled.pixel_scale)
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))


def test_several_threads_share_one_program_per_bucket(network, sources, monkeypatch):
    import retina_jax.evaluation.detect as module
    from retina_jax.evaluation.predict_step import make_predict_step

    traced = []

    def counted(model, config):
        step = make_predict_step(model, config)

        def traced_step(*arguments):
            traced.append(arguments[1].shape)
            return step(*arguments)

        return traced_step

    monkeypatch.setattr(module, "make_predict_step", counted)
    shared = retina_jax.Detector(network, batch_size=8)
    paths = sorted(sources[0].iterdir())
    found, start = {}, threading.Barrier(4)

    def work(number):
        start.wait()
        found[number] = shared(paths[number : number + 4])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(traced) == 1
    alone = shared(paths)
    assert len(traced) == 1
    for number in range(4):
        for one, other in zip(found[number], alone[number:], strict=False):
            same(one, other)


def test_the_package_alone_imports_nothing_of_the_library():
    code = (
        "import sys; import retina_jax; "
        "heavy = [m for m in ('jax', 'numpy', 'cv2', 'retina_jax.detector') if m in sys.modules]; "
        "print(heavy); assert 'Detector' in retina_jax.__all__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = retina_jax.Detektor
