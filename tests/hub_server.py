"""A small stand-in for the Hugging Face Hub: repositories of files in memory, served on this machine alone."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class HubServer(ThreadingHTTPServer):
    """Serves ``repositories``: name -> revision -> file name -> bytes. Commits go to the revision ``main``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve(with_body=False)

    def do_GET(self):
        self._serve(with_body=True)

    def _serve(self, with_body):
        self.server.requests.append(f"{self.command} {self.path}")
        match = RESOLVE.match(self.path)
        repository, revision, name = match.groups() if match else ("", "", "")
        revisions = self.server.repositories.get(repository)
        if revisions is None:
            return self._answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in revisions and revision != _commit_of(revisions["main"]):
            return self._answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        files = revisions.get(revision, revisions["main"])
        commit = {"X-Repo-Commit": _commit_of(files)}
        if name not in files:
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound", **commit})
        headers = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', **commit}
        return self._answer(files[name], 200, headers, with_body)

    def do_POST(self):
        self.server.requests.append(f"POST {self.path}")
        body = self._body()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {"main": {}})
            return self._json({"url": f"{self.server.url}/{name}"})
        repository = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if "/commit/" in self.path:
            files = self.server.repositories[repository]["main"]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = _commit_of(files)
            return self._json({"commitUrl": f"{self.server.url}/{repository}/commit/{oid}", "commitOid": oid})
        return self._json({"valid": True})  # of a model card

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _json(self, value):
        return self._answer(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _answer(self, body, status, headers, with_body=True):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _commit_of(files):
    return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Yields a server that answers until the block ends."""
    server = HubServer()
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache) -> None:
    """Points huggingface_hub at a server and an empty cache, for one test."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
