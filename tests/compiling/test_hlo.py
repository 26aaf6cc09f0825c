"""HBM traffic of small programs, counted by hand."""

import pytest

from retina_jax.compiling import hlo

HEAD = """HloModule jit_step, is_scheduled=true

FileNames
1 "/anywhere/retina_jax/training/step.py"
2 "/anywhere/retina_jax/ops/matching.py"
3 "/anywhere/jax/_src/numpy/reductions.py"
4 "/anywhere/retina_jax/jobs/train.py"

FunctionNames
1 "make_train_step.<locals>.train_step"
2 "match_anchors"
3 "max"
4 "run"

FileLocations
1 {file_name_id=4 function_name_id=4 line=9 end_line=9 column=1 end_column=1}
2 {file_name_id=1 function_name_id=1 line=88 end_line=88 column=1 end_column=1}
3 {file_name_id=2 function_name_id=2 line=60 end_line=60 column=1 end_column=1}
4 {file_name_id=3 function_name_id=3 line=7 end_line=7 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}

"""


def moved(body, others="", frames=HEAD):
    """Traffic by source of an entry computation with the lines of ``body``."""
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    text = f"{frames}{others}\nENTRY %main.1_spmd (p: f32[8]) -> f32[8] {{\n{lines}\n}}\n"
    return dict(hlo.traffic(hlo.parse(text)))


def named(op_name, frame=None):
    at = f" stack_frame_id={frame}" if frame else ""
    return f'metadata={{op_name="{op_name}"{at}}}'


@pytest.mark.parametrize(
    ("kind", "dimensions", "layout", "expected"),
    [
        ("f32", "", ":T(128)", 4),
        ("f32", "3", None, 12),
        ("f32", "300", "0:T(128)", 384 * 4),
        # 8 x 128 tiles: 10 rows become 16, 4 columns become 128
        ("f32", "10,4", "1,0:T(8,128)", 16 * 128 * 4),
        # the other order: 4 rows are whole tiles of 4, 10 columns become 128
        ("f32", "10,4", "0,1:T(4,128)", 4 * 128 * 4),
        # the second tile packs pairs of bfloat16; it pads nothing
        ("bf16", "2,16,256", "2,1,0:T(8,128)(2,1)S(1)", 2 * 16 * 256 * 2),
        ("pred", "8,128", "1,0:T(8,128)(4,1)", 8 * 128),
        ("u8", "5", "0", 5),
        ("token", "", None, 0),
    ],
)
def test_arrays_are_padded_to_whole_tiles(kind, dimensions, layout, expected):
    assert hlo.array_bytes(kind, dimensions, layout) == expected


def test_only_hbm_counts_of_a_tuple():
    shape = "(f32[128]{0:T(128)S(1)}, /*index=1*/f32[128]{0:T(128)}, u32[]{:S(2)}, bf16[2,128])"
    assert hlo.hbm_bytes(shape) == 512 + 512


def test_operands_are_read_and_results_written_except_in_vmem():
    assert moved("""
        %p = f32[1024]{0:T(1024)} parameter(0)
        %v = f32[1024]{0:T(1024)S(1)} add(%p, %p)
        ROOT %r = f32[1024]{0:T(1024)} multiply(%v, %v)
    """) == {"other": 3 * 4096}  # fmt: skip


def test_an_asynchronous_copy_counts_once():
    assert moved("""
        %p = f32[1024]{0:T(1024)} parameter(0)
        %s = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%p)
        %d = f32[1024]{0:T(1024)S(1)} copy-done(%s)
        %b = (f32[1024]{0:T(1024)}, f32[1024]{0:T(1024)S(1)}, u32[]{:S(2)}) copy-start(%d)
        ROOT %r = f32[1024]{0:T(1024)} copy-done(%b)
    """) == {"other": 4096 + 4096}  # fmt: skip


def test_a_slice_reads_what_it_takes():
    lines = """
        %p = f32[4096]{0:T(1024)} parameter(0)
        %i = s32[] constant(0)
        %a = f32[1024]{0:T(1024)S(1)} slice(%p), slice={[0:1024]}
        %s = ((f32[4096]{0:T(1024)}), f32[1024]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%p)
        %d = f32[1024]{0:T(1024)S(1)} slice-done(%s)
        %u = f32[4096]{0:T(1024)} dynamic-update-slice(%p, %q, %i)
        %q = f32[2048]{0:T(1024)} constant({...})
    """
    assert moved(lines) == {"other": 4096 + 4096 + 2 * 8192}


FUSED = """
%fused (x: f32[4096], y: f32[1024]) -> f32[1024] {
  %x = f32[4096]{0:T(1024)} parameter(0)
  %y = f32[1024]{0:T(1024)} parameter(1)
  %part = f32[1024]{0:T(1024)} slice(%x), slice={[0:1024]}
  %inside = f32[1024]{0:T(1024)} multiply(%part, %y)
  ROOT %out = f32[1024]{0:T(1024)} add(%inside, %y)
}
"""


def test_a_fusion_hides_what_happens_inside():
    lines = """
        %p = f32[4096]{0:T(1024)} parameter(0)
        %q = f32[1024]{0:T(1024)} parameter(1)
        ROOT %r = f32[1024]{0:T(1024)} fusion(%p, %q), kind=kLoop, calls=%fused
    """
    assert moved(lines, FUSED) == {"other": 4096 + 4096 + 4096}


LOOP = """
%body (t: (f32[1024])) -> (f32[1024]) {
  %t = (f32[1024]{0:T(1024)}) parameter(0)
  %x = f32[1024]{0:T(1024)} get-tuple-element(%t), index=0
  %n = f32[1024]{0:T(1024)} negate(%x)
  ROOT %o = (f32[1024]{0:T(1024)}) tuple(%n)
}
"""


@pytest.mark.parametrize(
    ("instruction", "times"),
    [
        ('while(%t), condition=%c, body=%body, '
         'backend_config={"known_trip_count":{"n":"7"}}', 7),
        ("while(%t), condition=%c, body=%body", 1),
        ("call(%t), to_apply=%body", 1),
        ("conditional(%i, %t, %t), branch_computations={%body, %body}", 2),
    ],
)  # fmt: skip
def test_what_runs_several_times_counts_as_often(instruction, times):
    lines = f"""
        %p = f32[1024]{{0:T(1024)}} parameter(0)
        %t = (f32[1024]{{0:T(1024)}}) tuple(%p)
        ROOT %w = (f32[1024]{{0:T(1024)}}) {instruction}
    """
    assert moved(lines, LOOP) == {"other": times * 2 * 4096}


@pytest.mark.parametrize(
    ("metadata", "source"),
    [
        (named("jit(s)/shard_map/jvp(RetinaNet)/backbone/stage3_block0/conv2/conv"),
         "backbone/stage3, forward"),
        (named("jit(s)/shard_map/transpose(jvp(RetinaNet))/class_head/conv0/conv_general_dilated"),
         "class_head, backward"),
        (named("jit(s)/transpose(jvp(RetinaNet))/backbone/rematted_computation/stage4_block1/c/d"),
         "backbone/stage4, backward"),
        (named("jit(s)/RetinaNet/fpn/output3/add"), "fpn, forward"),
        (named("jit(s)/vmap()/reduce_max", 4), "ops/matching match_anchors"),
        (named("jit(s)/mul", 2), "training/step train_step"),
        (named("jit(s)/mul", 1), "other"),
        (named("state.params['fpn']['p6']['kernel']"), "parameters and optimiser state"),
        (named("batch.images"), "input batch"),
        ("", "input batch"),
    ],
)  # fmt: skip
def test_a_source_is_a_part_of_the_network_or_a_function(metadata, source):
    """Without a name of its own, an instruction belongs to what it reads."""
    lines = f"""
        %p = f32[1024]{{0:T(1024)}} parameter(0), {named("batch.images")}
        ROOT %n = f32[1024]{{0:T(1024)}} negate(%p), {metadata}
    """
    assert moved(lines) == {source: 2 * 4096}


def test_frames_without_a_parent_may_also_be_marked_by_0():
    plain = HEAD
    for frame in (1, 2, 3, 4):
        plain = plain.replace(f"parent_frame_id={frame}}}", f"parent_frame_id={frame - 1}}}")
    lines = f"ROOT %n = f32[1024]{{0:T(1024)}} iota(), {named('jit(s)/iota', 4)}"
    assert moved(lines, frames=plain) == {"ops/matching match_anchors": 4096}


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")
