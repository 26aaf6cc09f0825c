"""Requests over loopback to a detector that only counts: batches, limits, faults."""

import json
import re
import socket
import threading

import pytest
from served import BOUNDARY, NumberedEngine, Sending, ask, detect, numbered, serving, wait_until

from retina_jax.serving.schema import Answer, Health, Problem


@pytest.fixture(scope="module")
def site():
    with serving(NumberedEngine(), images=3, body=0.01, queue=8) as running:
        yield running


def test_an_answer_has_each_image_in_order_with_its_numbers(site):
    status, headers, content = detect(site.port, numbered(3), numbered(4, 1))
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    answer = Answer.model_validate(content)
    assert [(i.source, i.width, i.height) for i in answer.images] == [
        ("3.jpg", 640, 480), ("4.jpg", 640, 480),
    ]  # fmt: skip
    best, other = content["images"][0]["detections"]
    assert best == {
        "box": [3.0, 0.0, 4.0, 1.0], "score": pytest.approx(0.9), "label": 1, "name": "dog",
        "category_id": 7,
    }  # fmt: skip
    assert other["name"] == "cat"


def test_an_image_may_be_the_body_itself(site):
    for headers in ({"Content-Type": "image/jpeg"}, {"Content-Type": "application/octet-stream"}):
        status, _, content = ask(site.port, "POST", "/detect", b"5:0", headers)
        assert status == 200
        assert content["images"][0]["detections"][0]["box"][0] == 5


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?threshold=0.5", ["dog"]),
        ("?threshold=0.95", []),
        ("?classes=cat", ["cat"]),
        ("?classes=cat,%20dog", ["dog", "cat"]),
        ("?classes=cat&classes=dog", ["dog", "cat"]),
        ("?classes=dog&threshold=0.2", ["dog"]),
        ("?classes=fox,%20red", []),
        ("?classes=", ["dog", "cat"]),
    ],
)
def test_threshold_and_classes_select(site, query, names):
    status, _, content = detect(site.port, numbered(3), query=query)
    assert status == 200
    assert [d["name"] for d in content["images"][0]["detections"]] == names


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
REFUSED = {
    "not an image": (detect, [("a.txt", b"text")], {}, 422,
                     "image 1 (a.txt) cannot be decoded: not an image"),
    "the second of two": (detect, [numbered(1), ("b.txt", b"text")], {}, 422, "image 2 (b.txt)"),
    "too many pixels": (detect, [("a.png", b"bomb")], {}, 413,
                        "image 1 (a.png) has 9×9 pixels; the limit is 50000000"),
    "too many images": (detect, [numbered(k) for k in range(4)], {}, 413,
                        "the request has more than 3 images"),
    "too many bytes": (detect, [("a", b"x" * 20_000)], {}, 413,
                       "the body has at least 0.0 MiB; the limit is 0.01 MiB"),
    "an empty file": (detect, [("a.jpg", b"")], {}, 400, "image 1 (a.jpg) is empty"),
    "no file": (detect, [], {}, 400, "the form has no files"),
    "an unknown class": (detect, [numbered(1)], {"query": "?classes=cta"}, 422,
                         "classes=cta: the network has no such class; did you mean 'cat'?"),
    "a word for a threshold": (detect, [numbered(1)], {"query": "?threshold=low"}, 422,
                               "threshold=low: "),
    "a threshold out of range": (detect, [numbered(1)], {"query": "?threshold=2"}, 422,
                                 "threshold=2: "),
    "a threshold too low": (detect, [numbered(1)], {"query": "?threshold=0.01"}, 422,
                            "threshold=0.01 is below that of the server, 0.1"),
    "text": (ask, ["POST", "/detect", b"{}", {"Content-Type": "application/json"}], {}, 415,
             "Content-Type=application/json is not supported"),
    "compressed": (ask, ["POST", "/detect", b"1:0",
                         {"Content-Type": "image/png", "Content-Encoding": "gzip"}], {}, 415,
                   "Content-Encoding=gzip is not supported"),
    "nothing": (ask, ["POST", "/detect", b"", {"Content-Type": "image/png"}], {}, 400, "is empty"),
    "a broken form": (ask, ["POST", "/detect", b"--other\r\n", FORM], {}, 400, "the form "),
    "a form without boundary": (ask, ["POST", "/detect", b"x",
                                      {"Content-Type": "multipart/form-data"}], {}, 400,
                                "the form cannot be read: Missing boundary"),
    "another method": (ask, ["GET", "/detect"], {}, 405, "GET /detect: Method Not Allowed"),
    "another path": (ask, ["GET", "/docs"], {}, 404, "GET /docs: Not Found"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_gets_its_code_and_one_line(site, case):
    send, arguments, options, expected, text = REFUSED[case]
    before = len(site.server.service.engine.batches)
    status, _, content = send(site.port, *arguments, **options)
    assert status == expected
    error = Problem.model_validate(content).error
    assert text in error
    assert "\n" not in error
    assert len(site.server.service.engine.batches) == before
    assert detect(site.port, numbered(1))[0] == 200  # and the server lives on


@pytest.mark.parametrize("stated", [False, True])
def test_a_body_is_counted_while_it_comes_in(site, stated):
    """Without a stated length, or with a false one, not more than the limit is read."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        length = "Content-Length: 100000000" if stated else "Transfer-Encoding: chunked"
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{length}\r\n\r\n"
        connection.sendall(head.encode())
        if not stated:
            chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
            for _ in range(11):
                connection.sendall(chunk)
        assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]


def test_the_description_is_complete(site):
    status, _, content = ask(site.port, path="/openapi.json")
    assert status == 200
    assert set(content["paths"]) == {"/detect", "/health"}
    post = content["paths"]["/detect"]["post"]
    assert set(post["requestBody"]["content"]) == {
        "multipart/form-data", "image/*", "application/octet-stream",
    }  # fmt: skip
    for code in ("400", "408", "413", "415", "422", "429", "500", "503", "504"):
        schema = post["responses"][code]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Problem"}
    assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "Answer"
    )
    assert {p["name"] for p in post["parameters"]} == {"threshold", "classes"}
    assert set(content["components"]["schemas"]) >= {"Answer", "Image", "Detection", "Health"}
    assert "http" not in json.dumps(content).replace("https://json-schema", "")


def test_health_counts(site):
    before = Health.model_validate(ask(site.port)[2])
    detect(site.port, numbered(1), numbered(2))
    detect(site.port, ("a", b"?"))
    after = Health.model_validate(ask(site.port)[2])
    assert after.status == "ready"
    assert after.classes == ["cat", "dog", "fox, red"]
    assert after.figures.images == before.figures.images + 2
    assert after.figures.answers["422"] == before.figures.answers.get("422", 0) + 1
    assert set(after.figures.latency_ms) == {"p50", "p95", "p99"}
    assert any(re.fullmatch(r"127.0.0.1 POST '/detect' 200 \d+ ms", note) for note in site.notes)


def test_requests_that_arrive_together_share_batches_and_none_is_lost():
    """Each answer carries the number of its image: none is lost, swapped or answered twice."""
    engine = NumberedEngine()
    with serving(engine, queue=64) as site:
        engine.go.clear()
        sending = Sending(site.port)
        for number in range(40):
            sending.send(number, number % 2)
        wait_until(lambda: engine.taken and engine.taken + site.service.waiting == 40)
        engine.go.set()
        outcomes = sending.wait()
        for number, (status, _, content) in outcomes.items():
            assert status == 200
            (image,) = content["images"]
            assert image["source"] == f"{number}.jpg"
            assert image["detections"][0]["box"][0] == number
    ran = [number for _, numbers in engine.batches for number in numbers]
    assert sorted(ran) == sorted(outcomes) == list(range(40))
    assert all({n % 2 for n in numbers} == {bucket} for bucket, numbers in engine.batches)
    assert len(engine.batches) <= 11  # the first, and five each of what is left in two buckets


def test_many_clients_on_connections_that_stay_open():
    """A load of some hundred requests over eight connections."""
    import http.client

    engine = NumberedEngine(seconds=0.001)
    wrong = []

    def client(first):
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
        for number in range(first, 400, 8):
            body = f"{number}:{number % 2}"
            connection.request("POST", "/detect", body, {"Content-Type": "image/png"})
            response = connection.getresponse()
            content = json.loads(response.read())
            if response.status != 200 or content["images"][0]["detections"][0]["box"][0] != number:
                wrong.append((number, content))
        connection.close()

    with serving(engine) as site:
        threads = [threading.Thread(target=client, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        figures = ask(site.port)[2]["figures"]
    assert wrong == []
    assert sorted(n for _, numbers in engine.batches for n in numbers) == list(range(400))
    assert figures["images"] == 400
    assert figures["answers"] == {"200": 400}


def test_a_full_queue_is_429_with_a_time_to_wait():
    engine = NumberedEngine()
    with serving(engine, queue=3, images=2) as site:
        engine.go.clear()
        sending = Sending(site.port)
        sending.send(0)
        wait_until(lambda: engine.entered)
        sending.send(1)
        wait_until(lambda: site.service.waiting == 1)
        sending.send(2)
        wait_until(lambda: site.service.waiting == 2)
        status, headers, content = detect(site.port, numbered(3), numbered(4))
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert content["error"].startswith("open requests: 3, limit: 3 (--max-queue)")
        engine.go.set()
        assert {status for status, *_ in sending.wait().values()} == {200}
        assert detect(site.port, numbered(3), numbered(4))[0] == 200

        engine.go.clear()  # few requests, but many images
        engine.entered = 0
        sending = Sending(site.port)
        sending.send(5)
        wait_until(lambda: engine.entered)
        threading.Thread(target=detect, args=(site.port, numbered(6), numbered(7))).start()
        wait_until(lambda: site.service.waiting == 2)
        status, _, content = detect(site.port, numbered(8), numbered(9))
        assert status == 429
        assert content["error"].startswith("waiting images: 2, limit: 3")
        engine.go.set()
        assert sending.wait()[5][0] == 200


def test_images_count_before_they_are_decoded():
    """Else every open request could hold network inputs beyond the queue's limit."""
    engine = NumberedEngine()
    with serving(engine, queue=3, images=2) as site:
        engine.may_read.clear()
        held = threading.Thread(target=detect, args=(site.port, numbered(0), numbered(1)))
        held.start()
        wait_until(lambda: engine.reading)
        status, _, content = detect(site.port, numbered(2), numbered(3))
        engine.may_read.set()
        assert status == 429
        assert content["error"].startswith("waiting images: 2, limit: 3 (--max-queue)")
        held.join(30)
        assert detect(site.port, numbered(2), numbered(3))[0] == 200


def test_a_fault_of_the_detector_is_500_for_its_requests_alone(caplog):
    engine = NumberedEngine()
    engine.fails = lambda numbers: 13 in numbers
    with serving(engine) as site:
        status, _, content = detect(site.port, numbered(13))
        assert (status, content["error"]) == (
            500, "the detector failed; the reason is in the server's log",
        )  # fmt: skip
        assert detect(site.port, numbered(14))[0] == 200
    assert "the device is gone" in caplog.text


def test_a_request_that_takes_too_long_is_504_and_gives_up_its_place():
    engine = NumberedEngine()
    with serving(engine, seconds=2) as site:
        engine.go.clear()
        sending = Sending(site.port)
        sending.send(0)
        wait_until(lambda: engine.entered)
        sending.send(1)
        outcomes = sending.wait()
        assert [outcomes[k][0] for k in (0, 1)] == [504, 504]
        assert "no detections within 2 s" in outcomes[1][2]["error"]
        engine.go.set()
        assert detect(site.port, numbered(2))[0] == 200
    assert [numbers for _, numbers in engine.batches] == [[0], [2]]


def test_a_body_that_does_not_arrive_is_408():
    with (
        serving(NumberedEngine(), seconds=0.3) as site,
        socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection,
    ):
        connection.sendall(
            b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100\r\n\r\nsome"
        )
        assert b" 408 " in connection.recv(4096).partition(b"\r\n")[0]


def test_a_client_that_goes_gives_up_its_place():
    engine = NumberedEngine()
    with serving(engine) as site:
        engine.go.clear()
        sending = Sending(site.port)
        sending.send(0)
        wait_until(lambda: engine.entered)
        with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
            connection.sendall(
                b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                b"Content-Length: 3\r\n\r\n1:0"
            )
            wait_until(lambda: site.service.waiting == 1)
        wait_until(lambda: len(site.service.open) == 1)
        engine.go.set()
        assert sending.wait()[0][0] == 200
        assert detect(site.port, numbered(2))[0] == 200
    assert [numbers for _, numbers in engine.batches] == [[0], [2]]
