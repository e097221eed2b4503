"""A local data set hub with the parts of the Hugging Face hub's API that its clients use."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "refs/convert/parquet": "b" * 40, "v2": "c" * 40}


class Hub:
    """Repositories, one folder per revision: ROOT/OWNER/NAME/REVISION, with = for / in a revision."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[str]()
        self.fails = 0
        """How many downloads of files fail with 503."""
        self.endpoint = ""
        self.refuses_files: set[str] = set()
        """Files whose download is refused with 403."""
        self.refuses: dict[str, tuple[int, str, tuple[str, ...]]] = {}
        """Data sets with refused access: the status, the hub's error code, and the refused endpoints."""

    def folder(self, name: str, revision: str) -> Path | None:
        by_commit = {commit: known for known, commit in COMMITS.items()}
        folder = self.root / name / by_commit.get(revision, revision).replace("/", "=")
        return folder if folder.is_dir() else None

    def files(self, folder: Path) -> list[str]:
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    def info(self, name: str, revision: str) -> dict[str, Any] | None:
        folder = self.folder(name, revision)
        if folder is None:
            return None
        siblings = [{"rfilename": file} for file in self.files(folder)]
        return {
            "id": name, "_id": "1", "sha": COMMITS.get(revision, revision), "private": False, "tags": [],
            "siblings": siblings, "downloads": 0, "likes": 0,
        }  # fmt: skip

    def entry(self, folder: Path, file: str) -> dict[str, Any]:
        if (folder / file).is_dir():
            return {"type": "directory", "path": file, "oid": "d"}
        data = (folder / file).read_bytes()
        return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def tree(self, folder: Path, below: str, *, recursive: bool) -> list[dict[str, Any]]:
        places = (folder / below).rglob("*") if recursive else (folder / below).glob("*")
        return [self.entry(folder, str(place.relative_to(folder))) for place in sorted(places)]

    def answer(self, path: str, query: str, body: bytes) -> tuple[int, Any]:
        """The status, and JSON or a file."""
        match = re.fullmatch(
            r"/(api/)?datasets/([^/]+/[^/]+)(?:/(revision|paths-info|tree|resolve)/(.+))?", unquote(path)
        )
        if match is None:
            return 404, {}
        name, verb, rest = match[2], match[3] or "revision", match[4] or "main"
        known = sorted((*COMMITS, *COMMITS.values()), key=len, reverse=True)
        revision = next((each for each in known if rest == each or rest.startswith(f"{each}/")), rest)
        folder, file = self.folder(name, revision), rest[len(revision) :].strip("/")
        if name in self.refuses and verb in self.refuses[name][2]:
            return self.refuses[name][0], {"error": "no"}
        found: Any = None
        if folder is not None and verb == "revision":
            found = self.info(name, revision)
        elif folder is not None and verb == "paths-info":
            asked = [each for each in json.loads(body)["paths"] if (folder / each).exists()]
            found = [self.entry(folder, each) for each in asked]
        elif folder is not None and verb == "tree":
            found = self.tree(folder, file, recursive="recursive=true" in query.lower())
        elif folder is not None and (folder / file).is_file():
            found = folder / file
            if file in self.refuses_files:
                return 403, {}
            if self.fails:
                self.fails -= 1
                return 503, {}
        return (404, {}) if found is None else (200, found)


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    serving = Hub(root)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            serving.asked.append(f"{self.command} {unquote(self.path)}")
            status, found = serving.answer(path, urlsplit(self.path).query, body)
            data = found.read_bytes() if isinstance(found, Path) else json.dumps(found).encode()
            first, last = 0, len(data)
            if status == 200 and (asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
                first, last = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else last, last)
                status = 206
            self.send_response(status)
            refused = [code for name, (_, code, _) in serving.refuses.items() if name in path and code]
            if status in (401, 403) and refused:
                self.send_header("X-Error-Code", refused[0])
            self.send_header("X-Repo-Commit", COMMITS["main"])
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            if status == 404:
                kinds = {"resolve": "EntryNotFound", "revision": "RevisionNotFound"}
                found_kind = next((code for verb, code in kinds.items() if f"/{verb}/" in path), "RepoNotFound")
                self.send_header("X-Error-Code", found_kind)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(data)}")
            self.send_header("Content-Length", str(last - first))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[first:last])

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        serving.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield serving
        server.shutdown()
