"""ATSS: a plain reference from the paper's algorithm 1, what may change nothing, and its limits."""

import math
import re

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.ops.anchors import pyramid_anchors, pyramid_grids
from retina_jax.ops.atss import atss_candidates, match_atss
from retina_jax.ops.matching import Match

SIZE = (96, 128)
ONE = {"scale": 8.0, "octaves": (0.0,), "ratios": (1.0,)}
NINE = {"scale": 4.0}


def setting(anchors, size=SIZE, **options):
    """The anchors of each level, and jitted matching of one image and of a batch with them."""
    levels = pyramid_anchors(size, **anchors)
    every, grids = np.concatenate(levels), pyramid_grids(size)

    def run(boxes, valid, is_crowd):
        return match_atss(every, boxes, valid, is_crowd, grids, **options)

    return levels, jax.jit(run), jax.jit(jax.vmap(run))


SETTINGS = {
    "one": setting(ONE),
    "nine": setting(NINE),
    "offset": setting(ONE | {"offset": 0.5}, candidates=4),
}


def plain_iou(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    return shared / union if union > 0 else 0.0


def algorithm_1(levels, boxes, k):
    """The paper's algorithm, line by line, in float64: for each box, its positives and their IoU.

    Also whether each candidate's IoU is so near the threshold that float32 may decide otherwise.
    """
    positives, unsure = [], set()
    for box in boxes:
        centre_of_box = (box[:2] + box[2:]) / 2
        candidates, first = [], 0
        for level in levels:  # lines 3 to 6
            distance = np.hypot(*((level[:, :2] + level[:, 2:]) / 2 - centre_of_box).T)
            candidates += (first + np.argsort(distance, kind="stable")[:k]).tolist()
            first += len(level)
        anchors = np.concatenate(levels).astype(np.float64)
        iou = np.array([plain_iou(anchors[i], box) for i in candidates])  # line 7
        threshold = iou.mean() + iou.std(ddof=1)  # lines 8 to 10
        own = {}
        for i, overlap in zip(candidates, iou, strict=True):  # lines 11 to 15
            x, y = (anchors[i, :2] + anchors[i, 2:]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if inside and overlap >= threshold:
                own[i] = overlap
            if abs(overlap - threshold) < 1e-5:
                unsure.add(i)
        positives.append(own)
    return positives, unsure


def plain_match(levels, boxes, valid, is_crowd, k, crowd_share=0.4):
    positives, unsure = algorithm_1(levels, boxes, k)
    matched = []
    for i, anchor in enumerate(np.concatenate(levels).astype(np.float64)):
        best, box = 0.0, Match.BACKGROUND
        for number in np.flatnonzero(valid & ~is_crowd):
            if positives[number].get(i, 0) > best + 1e-7:
                best, box = positives[number][i], number
        for number in np.flatnonzero(valid & is_crowd):
            sides = np.minimum(anchor[2:], boxes[number, 2:])
            sides = sides - np.maximum(anchor[:2], boxes[number, :2])
            share = np.prod(np.maximum(sides, 0)) / np.prod(anchor[2:] - anchor[:2])
            if abs(share - crowd_share) < 1e-5:
                unsure.add(i)
            if box == Match.BACKGROUND and share >= crowd_share:
                box = Match.IGNORE
        matched.append(box)
    return np.array(matched), np.array(sorted(unsure), int)


def random_boxes(rng, count, size=SIZE):
    """In quarters of a pixel, so that distances are exact and many of them tie."""
    height, width = size
    corner = np.floor(rng.uniform(0, 1, (count, 2)) * [width - 8, height - 8] * 4) / 4
    extent = np.ceil(2 ** rng.uniform(1, 6.5, (count, 2)) * 4) / 4
    boxes = np.concatenate([corner, np.minimum(corner + extent, [width, height])], axis=1)
    return boxes.astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(SETTINGS)))
def test_equal_to_the_papers_algorithm(seed, name):
    """With crowds, gaps in the padding, a repeated box and one without area."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 6)
    boxes[3] = boxes[1]
    boxes[4, 2:] = boxes[4, :2]
    valid, is_crowd = rng.random(6) < 0.8, rng.random(6) < 0.2
    levels, match, _ = SETTINGS[name]
    k = 4 if name == "offset" else 9 * (9 if name == "nine" else 1)
    expected, unsure = plain_match(levels, boxes, valid, is_crowd, k)
    ours = np.array(match(boxes, valid, is_crowd))
    assert len(unsure) < 0.2 * len(ours)
    ours[unsure] = expected[unsure]
    np.testing.assert_array_equal(ours, expected)


def test_the_deviation_is_that_of_a_sample():
    """Five candidates, one per level: the smaller deviation of the population would add a second.

    Squares of 8, 16, 32, 64 and 128 px around one point have these IoUs with one of 24 px: 1/9,
    4/9, 9/16, 9/64 and 9/256, with mean 0.259 and deviation 0.206 of the population, 0.231 of the
    sample. Thresholds: 0.465 and 0.490; so 4/9 does not tell them apart, but 26 px do.
    """
    side = np.array([8, 16, 32, 64, 128], np.float64)
    for width in np.arange(16.5, 32, 0.5):
        iou = np.minimum(side, width) ** 2 / np.maximum(side, width) ** 2
        thresholds = [iou.mean() + iou.std(ddof=n) for n in (0, 1)]
        if ((iou >= thresholds[0]) & (iou < thresholds[1] - 1e-3)).any():
            break
    else:
        raise AssertionError("no width tells the deviations apart")
    anchors = np.array([[64 - s / 2, 64 - s / 2, 64 + s / 2, 64 + s / 2] for s in side], np.float32)
    box = np.array([[64 - width / 2, 64 - width / 2, 64 + width / 2, 64 + width / 2]], np.float32)
    found = jax.jit(lambda box: atss_candidates(anchors, box, [(1, 1)] * 5))(box)
    np.testing.assert_allclose(found.iou[0], iou, rtol=1e-6)
    np.testing.assert_array_equal(found.positive[0], iou >= thresholds[1])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["one", "nine"]))
def test_positives_have_their_centre_inside_and_order_and_padding_change_nothing(seed, name):
    rng = np.random.default_rng(seed)
    levels, _, match_batch = SETTINGS[name]
    anchors = np.concatenate(levels)
    boxes, every = random_boxes(rng, 6), np.ones(6, bool)
    order, valid = rng.permutation(6), np.arange(6) < 4
    other = np.where(valid[:, None], boxes, random_boxes(rng, 6))  # in the padding
    results = match_batch(
        np.stack([boxes, boxes[order], boxes, other]),
        np.stack([every, every, valid, valid]),
        np.zeros((4, 6), bool),
    )
    plain, permuted, padded, padded_otherwise = np.asarray(results)
    foreground = plain >= 0
    centre = ((anchors[:, :2] + anchors[:, 2:]) / 2)[foreground]
    own = boxes[plain[foreground]]
    assert ((centre > own[:, :2]) & (centre < own[:, 2:])).all()
    assert (plain[~foreground] == Match.BACKGROUND).all()  # no band of ignored anchors
    back = np.where(permuted >= 0, order[permuted], permuted)
    same = (back == plain) | (plain_ties(anchors, boxes, back, plain))
    assert same.all()
    np.testing.assert_array_equal(padded, padded_otherwise)
    assert (padded < 4).all()


def plain_ties(anchors, boxes, some, others):
    """Where two matches differ, but overlap the anchor alike: the first box takes such ties."""
    return np.array([
        a >= 0 and b >= 0 and abs(plain_iou(x, boxes[a]) - plain_iou(x, boxes[b])) < 1e-6
        for x, a, b in zip(anchors.astype(np.float64), some, others, strict=True)
    ])  # fmt: skip


def test_moving_everything_by_the_largest_stride_moves_the_matches():
    """Far from the borders, where a level would lack places on one side."""
    size = (1024, 1024)
    levels, match, _ = setting(ONE, size)
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 6, (128, 128)) + np.float32(448)
    every = np.ones(6, bool)
    at = [np.asarray(match(boxes + np.float32(shift), every, ~every)) for shift in (0, 128)]
    assert (at[0] >= 0).sum() > 10
    ends = np.cumsum([len(level) for level in levels])[:-1]
    for level, here, there in zip(range(3, 8), *(np.split(x, ends) for x in at), strict=True):
        side, places = 1024 >> level, 128 >> level
        here, there = here.reshape(side, side), there.reshape(side, side)
        np.testing.assert_array_equal(there[places:, places:], here[:-places, :-places])


def test_with_as_many_candidates_as_places_all_anchors_are_candidates():
    levels = pyramid_anchors((64, 96), **NINE)
    count, box = sum(map(len, levels)), np.array([[10, 20, 60, 50]], np.float32)
    grids = pyramid_grids((64, 96))

    def chosen(candidates):
        find = jax.jit(lambda b: atss_candidates(np.concatenate(levels), b, grids, candidates))
        return np.asarray(find(box).anchor[0])

    for candidates in (96, 500):
        assert sorted(chosen(candidates).tolist()) == list(range(count))
    assert len(chosen(1)) == 5 * 9


def test_an_anchor_of_two_boxes_is_matched_to_the_one_it_overlaps_more():
    levels, match, _ = SETTINGS["one"]
    boxes = np.array([[16, 16, 80, 80], [32, 32, 96, 96]], np.float32)
    matched = np.asarray(match(boxes, np.ones(2, bool), np.zeros(2, bool)))
    alone = [np.asarray(match(boxes, np.arange(2) == i, np.zeros(2, bool))) >= 0 for i in range(2)]
    contested = alone[0] & alone[1]
    assert contested.any()
    for i in np.flatnonzero(contested):
        iou = [plain_iou(np.concatenate(levels)[i].astype(np.float64), b) for b in boxes]
        assert iou[matched[i]] == max(iou)


def test_the_number_of_positives_is_a_fifth_of_the_candidates_at_every_scale():
    """Section 3.2 of the paper: about 0.2·k·L of k·L candidates, whatever the size of the box."""
    rng, size = np.random.default_rng(0), (512, 512)
    grids = pyramid_grids(size)
    anchors = np.concatenate(pyramid_anchors(size, **ONE))
    centre = rng.uniform(200, 312, (200, 1, 2))
    side = np.array([32, 64, 128, 256])[None, :, None]
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=-1).astype(np.float32)
    found = jax.jit(lambda b: atss_candidates(anchors, b, grids))(boxes.reshape(-1, 4))
    counts = np.asarray(found.positive).sum(axis=1).reshape(200, 4).mean(axis=0)
    assert found.anchor.shape[1] == 45
    assert (counts > 0.4 * 9).all()
    assert (counts < 1.3 * 9).all()
    assert counts.max() < 2.5 * counts.min()


def test_no_array_of_anchors_by_boxes_is_made():
    size, boxes = (256, 256), 7
    levels, _, match_batch = setting(ONE, size)
    shapes = [((3, boxes, 4), np.float32), ((3, boxes), bool), ((3, boxes), bool)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    text = match_batch.lower(*arguments).compile().as_text()
    sizes = re.findall(r"(?:f32|pred|s32)\[([\d,]+)\]", text)
    most = max(math.prod(map(int, s.split(","))) for s in sizes)
    assert most < boxes * sum(map(len, levels))


def test_without_boxes_all_is_background():
    _, match, _ = SETTINGS["one"]
    boxes, none = np.zeros((6, 4), np.float32), np.zeros(6, bool)
    assert (np.asarray(match(boxes, none, none)) == Match.BACKGROUND).all()
