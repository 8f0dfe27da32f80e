"""A fake Hugging Face hub: its HTTP interface on 127.0.0.1, with faults that tests inject.

Paths, headers and error codes are the hub's, so the real client works with it. Files of weights are
large files (LFS, hash SHA-256, fetched through a redirect), others are git's (SHA-1 of the blob).
"""

import base64
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".bin", ".model")
_PIECE = 4096  # bytes sent at once


def is_large(name: str) -> bool:
    return name.endswith(_LARGE)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def digest(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(name) else git_sha1(content)


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit of each branch or tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    license: str | None = None

    def commit(self, files: dict[str, bytes]) -> str:
        text = "".join(f"{name} {digest(name, files[name])}" for name in sorted(files))
        commit = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs["main"] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Hub:
    """The fake hub's repositories, its faults, and the requests and uploads that it received."""

    repos: dict[str, Repo] = field(default_factory=dict)
    token: str = "hf_right"
    pause: float = 0.0  # seconds between pieces of a large file
    cuts: int = 0  # how many answers with a large file end in the middle
    limited: int = 0  # how many requests are answered with 429
    limit_headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})
    refused_uploads: int = 0  # how many large files are answered with 507
    puts: int = 0  # large files that were accepted
    flipped: set[str] = field(default_factory=set)  # files sent with one byte changed
    knows_ranges: bool = True
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)  # bytes, by file
    large: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # by SHA-256
    uploaded: dict[str, bytes] = field(default_factory=dict)
    tokens_elsewhere: int = 0  # requests for large files that carried a token
    lock: Lock = field(default_factory=Lock)
    url: str = ""
    store: str = ""  # the address of large files: another one, as on the hub

    def add(self, name: str, folder: Path, **settings: object) -> str:
        """Put a folder's files into a repository, and return the commit."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.add_files(name, files, **settings)

    def add_files(self, name: str, files: dict[str, bytes], **settings: object) -> str:
        repo = self.repos.setdefault(name, Repo())
        for setting, value in settings.items():
            setattr(repo, setting, value)
        for file, content in files.items():
            if is_large(file):
                self.large[hashlib.sha256(content).hexdigest()] = (file, content)
        return repo.commit(files)

    def take(self, fault: str) -> bool:
        """Return whether a fault is still to occur, and count it."""
        with self.lock:
            left = getattr(self, fault)
            setattr(self, fault, max(0, left - 1))
            return left > 0


class Handler(BaseHTTPRequestHandler):
    """Answers requests as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *values: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if self.hub.take("limited"):
            self._answer(429, b"", self.hub.limit_headers)
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif path.startswith("/large/"):
            self.hub.tokens_elsewhere += "Authorization" in self.headers
            self._content(*self.hub.large[path.removeprefix("/large/")])
        elif "/resolve/" in path:
            self._resolve(path)
        else:
            self._refuse(404, "EntryNotFound")

    # ---- reading

    def _api(self, path: str) -> None:
        name, _, tree = path.partition("/tree/")
        if tree:
            self._tree(name, *tree.partition("/")[::2])
            return
        name, _, rest = path.partition("/revision/")
        if (repo := self._repo(name)) is None:
            return
        commit = repo.resolve(rest or "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [self._sibling(*file) for file in repo.commits[commit].items()]
        card = {"license": repo.license} if repo.license else {}
        self._json({"id": name, "sha": commit, "siblings": siblings, "cardData": card})

    def _tree(self, name: str, revision: str, folder: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        commit = repo.resolve(revision)
        if folder or commit is None:  # no repository here has folders
            self._refuse(404, "EntryNotFound" if folder else "RevisionNotFound")
            return
        self._json([self._entry(*file) for file in repo.commits[commit].items()])

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        sibling = self._sibling(name, content)
        entry = {"type": "file", "path": name, "size": len(content), "oid": sibling["blobId"]}
        if isinstance(lfs := sibling.get("lfs"), dict):
            entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}
        return entry

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        sibling = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
        if is_large(name):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return sibling

    def _resolve(self, path: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if (repo := self._repo(name)) is None:
            return
        if repo.gated and not self._is_signed_in():
            self._refuse(403, "GatedRepo")
            return
        commit = repo.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        content = repo.commits[commit].get(file)
        if content is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        tag = digest(file, content)
        if is_large(file):
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{tag}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.store}/large/{tag}",
            }
            self._answer(302, b"", headers)
            return
        self._content(file, content, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    def _content(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        start, end, status, headers = 0, len(content), 200, dict(headers or {})
        range_header = self.headers.get("Range", "")
        if range_header.startswith("bytes=") and self.hub.knows_ranges:
            first, _, last = range_header.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            end = min(int(last) + 1, end) if last else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        if name in self.hub.flipped:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send_headers(status, end - start, headers)
        if self.command == "HEAD":
            return
        cut = is_large(name) and self.hub.take("cuts")
        self._send(name, content[start : start + (end - start) // 2 if cut else end])
        if cut:
            self.close_connection = True

    def _send(self, name: str, content: bytes) -> None:
        for begin in range(0, len(content), _PIECE):
            piece = content[begin : begin + _PIECE]
            try:
                self.wfile.write(piece)
            except OSError:  # the client was killed, or has closed the connection
                self.close_connection = True
                return
            self.hub.sent[name] += len(piece)
            if self.hub.pause and is_large(name):
                time.sleep(self.hub.pause)

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._is_signed_in()):
            self._refuse(401, "RepoNotFound")
            return None
        return repo

    def _is_signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    # ---- writing

    def do_PUT(self) -> None:
        content = self._body()
        if self.hub.take("refused_uploads"):
            self._answer(507, b"")
            return
        with self.hub.lock:
            self.hub.puts += 1
        self.hub.uploaded[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, b"")

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        self.hub.requests.append(f"POST {path}")
        if not self._is_signed_in():
            self._refuse(401, "RepoNotFound")
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.hub.repos.setdefault(name, Repo(private=_is_private(request)))
            self._json({"url": f"{self.hub.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if is_large(name) else "regular" for name in names}
            files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": self._upload_actions(json.loads(body))})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)

    def _upload_actions(self, request: dict[str, list[dict[str, object]]]) -> list[object]:
        """Return each object with the address to send it to, unless it was uploaded before."""
        answers = []
        for entry in request["objects"]:
            upload = {"href": f"{self.hub.store}/upload/{entry['oid']}"}
            is_uploaded = entry["oid"] in self.hub.uploaded
            answers.append(entry if is_uploaded else {**entry, "actions": {"upload": upload}})
        return answers

    def _commit(self, name: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        commit = self.hub.add_files(name, files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    # ---- answers

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while nbytes := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(nbytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"", {**(headers or {}), "X-Error-Code": code})

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self._send_headers(status, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_headers(self, status: int, nbytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(nbytes)}.items():
            self.send_header(name, value)
        self.end_headers()


def _is_private(request: dict[str, object]) -> bool:
    """Return whether a repository is to be private: older and newer clients use different keys."""
    return bool(request.get("private")) or request.get("visibility") == "private"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about clients that were killed."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a fake hub inside the context: one server for the hub, one for its large files."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
