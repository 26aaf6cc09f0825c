"""The search for the largest batch and the report, with made-up compilations."""

import jax
import pytest

from retina_jax.compiling import programs, study, table
from retina_jax.compiling.chips import CHIPS, GIB, open_slice
from retina_jax.compiling.programs import Program, largest_batch, memory_needed
from retina_jax.config import default_config
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import UserError
from retina_jax.parallel import AbsentSlice

FOUR = AbsentSlice((None,) * 4)


@pytest.fixture
def made(monkeypatch):
    """Compiles in no time: memory is 1 GiB and another per image, or what ``memory`` says."""

    class Made:
        asked = []  # noqa: RUF012

        @staticmethod
        def memory(images):
            return (1 + images) * GIB

    def compile_step(step, config, classes, there, bucket, images):
        Made.asked.append((step, bucket, images))
        total = Made.memory(images)
        if total > 15.75 * GIB:
            return Program(images, total, compiled=False)
        return Program(
            images, total, arguments=GIB, temporaries=images * GIB, flops=images * 1e12,
            traffic={"class_head, backward": images * 10**9, "fpn, forward": 5 * 10**8},
        )  # fmt: skip

    Made.asked = []
    monkeypatch.setattr(study, "compile_step", compile_step)
    monkeypatch.setattr(study, "open_slice", lambda topology: FOUR)
    return Made


def config_of(per_chip, **fields):
    config = default_config()
    config.train.batch_size = 4 * per_chip
    config.data.buckets = ((64, 96),)
    config.update_from_flattened_dict(fields)
    return config


def images_of(made, step="train"):
    return [images for name, _, images in made.asked if name == step]


def test_the_largest_batch_is_found_by_a_line_and_checked(made):
    result = study.study(config_of(4), "v5e:2x2x1", ["train", "predict"])
    assert images_of(made) == [4, 2, 14]  # 1 + 14 GiB fit in 15.75, 1 + 15 do not
    assert images_of(made, "predict") == [4]
    assert result.fits(result.buckets[0].programs["train"][-1])
    assert study.what_does_not_fit(result, config_of(4)) == ""


def test_one_image_doubles_and_one_compilation_searches_nothing(made):
    study.study(config_of(1), "v5e:2x2x1", ["train"], 2)
    assert images_of(made) == [1, 2]
    made.asked.clear()
    study.study(config_of(4), "v5e:2x2x1", ["train"], 1)
    assert images_of(made) == [4]


def test_one_image_that_does_not_fit_ends_the_search_and_a_small_model_does_too(made):
    made.memory = staticmethod(lambda n: (15 + n) * GIB)
    result = study.study(config_of(1), "v5e:2x2x1", ["train"])
    assert images_of(made) == [1]
    assert "--config.train.batch_size" not in study.what_does_not_fit(result, config_of(1))
    made.asked.clear()
    made.memory = staticmethod(lambda n: n * 2**10)
    study.study(config_of(4), "v5e:2x2x1", ["train"])
    assert images_of(made) == [4, 2, study.MOST_IMAGES]


def test_a_program_that_compiles_but_exceeds_the_limit_does_not_fit(made, monkeypatch):
    large = Program(4, 15.8 * GIB, flops=1e12, traffic={"other": 10**9})
    monkeypatch.setattr(study, "compile_step", lambda *_: large)
    result = study.study(config_of(4), "v5e:2x2x1", ["train"], 1)
    assert "but a device has 15.75 GiB" in study.what_does_not_fit(result, config_of(4))
    assert not result.fits(large)


def test_a_line_that_was_wrong_is_drawn_again(made):
    made.memory = staticmethod(lambda n: (1 + n + max(0, n - 8)) * GIB)  # steeper from 8 on
    study.study(config_of(4), "v5e:2x2x1", ["train"], 5)
    # by the first line 14, which needs 21 GiB; by (4, 14) 10.7; 10 needs 13; by (10, 14) 11.4
    assert images_of(made) == [4, 2, 14, 10, 11]


def test_what_does_not_fit_names_the_flags_that_help(made):
    config = config_of(20)
    result = study.study(config, "v5e:2x2x1", ["train"])
    assert images_of(made) == [20, 10, 14]
    line = study.what_does_not_fit(result, config)
    assert "train step at 64×96 needs 21.00 GiB for 20 images per device, but a" in line
    assert "--config.train.batch_size=56" in line
    assert "--config.model.remat=True" in line
    assert "--config.data.short_side" in line
    config = config_of(20, **{"model.remat": True})
    assert "remat" not in study.what_does_not_fit(result, config)


def test_every_bucket_is_compiled(made):
    config = default_config()
    config.eval.batch_size = 8
    study.study(config, "v5e:2x2x1", ["predict"])
    assert made.asked == [("predict", (800, 1344), 2), ("predict", (1344, 800), 2)]


def test_a_batch_that_the_slice_cannot_share_names_one_that_it_can(made):
    config = config_of(1)
    config.train.batch_size = 6
    with pytest.raises(UserError, match=r"=6 must be a multiple of the 4 .*batch_size=8"):
        study.study(config, "v5e:2x2x1", ["train"])


def test_an_unknown_step_is_refused(made):
    with pytest.raises(UserError, match="--steps=fly is not a step; choose from train,predict"):
        study.study(config_of(1), "v5e:2x2x1", ["train", "fly"])


def test_the_table_by_hand(made):
    result = study.study(config_of(4), "v5e:2x2x1", ["train", "predict"])
    shown = list(table.lines(result))
    rows = {line[:34].strip(): line[34:].split() for line in shown}
    assert rows["images per device"] == ["4", "4"]
    assert rows["total"] == ["5.00", "5.00"]
    assert rows["limit"] == ["15.75", "15.75"]
    assert rows["arithmetic, GFLOP"] == ["4,000", "4,000"]
    assert rows["HBM traffic, GB"] == ["4.5", "4.5"]
    assert rows["lower bound, ms: arithmetic"] == ["20.3"] * 2  # 4 TFLOP at 197 TFLOP/s
    assert rows["lower bound, ms: HBM traffic"] == ["5.5"] * 2  # 4.5 GB at 819 GB/s
    assert rows["upper bound, images/s of the slice"] == ["788", "788"]  # 16 images in 20.3 ms
    assert "  train, 14 images: 15.00 GiB, fits" in shown
    largest = "14 of those compiled, 14 by the line through two compilations"
    assert f"largest batch per device of train: {largest}" in shown
    assert "    4.00 GB   89 %  class_head, backward" in shown


def test_a_step_that_does_not_fit_has_no_figures(made):
    shown = list(table.lines(study.study(config_of(20), "v5e:2x2x1", ["train"], 1)))
    rows = {line[:34].strip(): line[34:].split() for line in shown}
    assert rows["fits"] == ["no"]
    assert rows["arithmetic, GFLOP"] == ["–"]
    assert rows["total"] == ["21.00"]


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("Ran out of memory in memory space hbm. Used 20.07G of 15.75G hbm. Exceeded", 20.07),
        ("the total memory required for HLO temporaries (2.00T) exceeds available HBM (15.75G).",
         2048),
        ("Used 512.0M of 15.75G hbm", 0.5),
        ("something else", None),
    ],
)  # fmt: skip
def test_libtpus_message_tells_what_a_program_needs(message, gib):
    needed = memory_needed(message)
    assert needed == (None if gib is None else pytest.approx(gib * GIB))


def test_a_line_needs_two_batch_sizes_and_a_slope():
    assert largest_batch([Program(2, GIB)], 4 * GIB) is None
    assert largest_batch([Program(2, GIB), Program(4, GIB)], 4 * GIB) is None
    assert largest_batch([Program(2, 2 * GIB), Program(4, 3 * GIB)], 4 * GIB) == 6
    assert largest_batch([Program(2, 20 * GIB), Program(1, 18 * GIB)], 4 * GIB) == 0


def test_a_program_that_is_too_large_is_a_result_and_other_errors_are_not(monkeypatch):
    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setitem(programs._COMPILE, "train", fail)
    arguments = "train", default_config(), 3, FOUR, (64, 64), 2
    message = "RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm."
    assert programs.compile_step(*arguments) == Program(2, 20 * GIB, compiled=False)
    message = "INTERNAL: Used 20.00G of 15.75G hbm."
    with pytest.raises(RuntimeError, match="INTERNAL"):
        programs.compile_step(*arguments)


@pytest.mark.parametrize("float_pixels", [False, True])
def test_shapes_of_a_batch_are_those_of_the_loader(float_pixels, tiny_config, shapes_dir):
    tiny_config.data.float_pixels = float_pixels
    tiny_config.data.buckets = ((128, 128),)
    split = open_split(next(shapes_dir.glob("shapes/*")), "train")
    (batch,) = TrainLoader(split, tiny_config).batches(0, 1)
    shapes = programs.batch_shapes(tiny_config, (128, 128), tiny_config.train.batch_size)
    assert jax.tree.structure(batch) == jax.tree.structure(shapes)
    for there, here in zip(jax.tree.leaves(batch), jax.tree.leaves(shapes), strict=True):
        assert (there.shape, there.dtype) == (here.shape, here.dtype)


@pytest.mark.parametrize("topology", ["v5e", "v5e:2", "v9:2x2x1", "v5litepod-4", "v5e:2x2x1x1"])
def test_an_unknown_slice_names_the_known_ones(topology):
    with pytest.raises(UserError, match=r"is not a TPU slice; .*v4:2x2x1, v5e:2x2x1, .*v6e:2x2x1"):
        open_slice(topology)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"pip install 'retina_jax\[tpu\]'"):
        open_slice("v5e:2x2x1")


def test_every_chip_has_a_source():
    assert {"v4", "v5e", "v5p", "v6e"} <= set(CHIPS)
    assert all(chip.source and chip.hbm and chip.gbps for chip in CHIPS.values())
