"""A web server of files in a thread, with the faults of a network."""

import contextlib
import http.server
import re
import threading


class WeightServer:
    """Files at ``url``; ``requests`` are the path and the Range of each request."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.version = 1
        """Part of the ETag; a file that changes gets another one."""
        self.cuts: list[int] = []
        """Bytes after which the next responses end, without a word."""
        self.status: int | None = None
        """Answers each request with this status instead."""
        self.knows_ranges = self.knows_if_range = True
        self.names_versions = True
        """Whether responses have an ETag."""
        self.stalls = False
        """Whether a response that was cut stays open instead, until ``released``."""
        self.released = threading.Event()
        self.asked = threading.Event()
        """Set at the first request."""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def answer(self, request):
        path, span = request.path.lstrip("/"), request.headers.get("Range")
        self.requests.append((path, span))
        self.asked.set()
        if self.status or path not in self.files:
            request.send_error(self.status or 404)
            return
        content, tag = self.files[path], f'"{self.version}"'
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span else 0
        changed = self.knows_if_range and request.headers.get("If-Range") != tag
        partial = bool(span) and self.knows_ranges and not changed
        if partial and start >= len(content):
            request.send_error(416)
            return
        body = content[start:] if partial else content
        request.send_response(206 if partial else 200)
        request.send_header("Content-Length", str(len(body)))
        if self.names_versions:
            request.send_header("ETag", tag)
        if partial:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        with contextlib.suppress(OSError):  # the reader has gone
            request.wfile.write(body[:cut])
            if cut is not None and self.stalls:
                request.wfile.flush()
                self.released.wait(60)
                request.wfile.write(body[cut:])


@contextlib.contextmanager
def serve():
    server = WeightServer()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()
