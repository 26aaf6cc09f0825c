"""gcp-storage-emulator in a thread, with what it lacks and with faults.

It lacks the generation in the headers of a download, which TensorStore reads, and conditions of
uploads, on which the lease relies.
"""

import contextlib
import threading
import urllib.request
from functools import partial
from http import HTTPStatus
from http.server import HTTPServer

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

NAME = "bucket"
ADDRESS = f"gs://{NAME}"


class Bucket:
    """A bucket at ``url``."""

    def __init__(self):
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(NAME, self.storage)
        self._http = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.is_gone = self.is_forbidden = False
        """Whether requests are cut off, as without network; whether they are refused."""

    def names(self, prefix=""):
        # list() of a dict's keys is one operation, which the server's thread does not interrupt
        found = list(self.storage.objects.get(NAME, {}))
        return sorted(name for name in found if name.startswith(prefix))

    def put(self, name, content):
        """Writes an object, as another program does."""
        url = f"{self.url}/upload/storage/v1/b/{NAME}/o?uploadType=media&name={name}"
        with urllib.request.urlopen(urllib.request.Request(url, content, method="POST")):
            pass

    def remove(self, name):
        self.storage.delete_file(NAME, name)

    def wipe(self):
        self.is_gone = self.is_forbidden = False
        for name in self.names():
            self.remove(name)


class _Server(HTTPServer):
    request_queue_size = 128  # TensorStore opens many connections at once


class _Handler(server.RequestHandler):
    def __init__(self, bucket, *arguments, **options):
        self._bucket = bucket
        super().__init__(bucket.storage, *arguments, **options)

    def parse_request(self):
        if self._bucket.is_gone or not super().parse_request():
            return False  # closes the connection without an answer
        if self._bucket.is_forbidden:
            self.send_response(HTTPStatus.FORBIDDEN)
            self.end_headers()
            return False
        return True


@contextlib.contextmanager
def serve():
    """Yields a `Bucket` while it is served."""
    bucket = Bucket()
    thread = threading.Thread(target=bucket._http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield bucket
    bucket._http.shutdown()
    bucket._http.server_close()


def _generation(storage, bucket, name):
    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"


def _download(request, response, storage, *arguments, **options):
    _DOWNLOAD(request, response, storage, *arguments, **options)
    bucket, name = request.params["bucket_name"], request.params["object_id"]
    response["x-goog-generation"] = _generation(storage, bucket, name)


def _insert(request, response, storage, *arguments, **options):
    if required := request.query.get("ifGenerationMatch"):
        name = request.query.get("name") or [request.data["meta"]["name"]]
        if required[0] != _generation(storage, request.params["bucket_name"], name[0]):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    _INSERT(request, response, storage, *arguments, **options)


_DOWNLOAD, _INSERT = objects.download, objects.insert
objects.download, objects.insert = _download, _insert
for _, handlers in server.HANDLERS:
    for method, handler in handlers.items():
        handlers[method] = {_DOWNLOAD: _download, _INSERT: _insert}.get(handler, handler)
