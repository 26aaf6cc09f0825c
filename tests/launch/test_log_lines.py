"""Lines of pods, over interruptions."""

import random

from retina_jax.launch.log_lines import LogLines


def test_lines_lose_their_time():
    lines = LogLines()
    given = "[pod/a-0/main] 2026-11-27T01:02:03.123456789Z step 1, loss 0.5\n"
    assert lines.new(given) == "[pod/a-0/main] step 1, loss 0.5\n"
    assert lines.new("error: connection lost\n") == "error: connection lost\n"
    assert lines.new("[pod/a-0/main] 2026-11-27T01:02:04Z \n") == "[pod/a-0/main] \n"


def test_fractions_of_any_length_are_in_order_and_zones_are_heeded():
    lines = LogLines()
    for time in ("03Z", "03.1Z", "03.12Z", "03.120000001Z", "03.2Z", "04Z"):
        line = f"[pod/a/main] 2026-11-27T01:02:{time} {time}\n"
        assert lines.new(line)
        assert not lines.new(line)
    assert not lines.new("[pod/a/main] 2026-11-27T02:02:03+01:00 the same second\n")
    assert lines.new("[pod/a/main] 2026-11-27T01:02:05+00:00 later\n")


def test_pods_that_are_interrupted_anywhere_print_each_line_once():
    source = random.Random(0)
    for _ in range(50):
        at = {pod: sorted(source.sample(range(300), 20)) for pod in ("a", "b", "c")}
        lines, printed = LogLines(), []
        for last in (False, False, False, True):
            streams = {
                pod: [f"[pod/{pod}/main] 2026-11-27T00:00:{t // 10:02}.{t % 10}Z {pod}{t}\n"
                      for t in times]
                for pod, times in at.items()
            }  # fmt: skip
            left = 1000 if last else source.randrange(60)
            while left and any(streams.values()):
                pod = source.choice([pod for pod, rows in streams.items() if rows])
                printed.append(lines.new(streams[pod].pop(0)))
                left -= 1
        printed = [line for line in printed if line]
        expected = [f"[pod/{pod}/main] {pod}{t}\n" for pod, times in at.items() for t in times]
        assert sorted(printed) == sorted(expected)
