"""A fake of the Hugging Face Hub: its HTTP interface for making a model repository, committing to it, listing and downloading it.

It follows huggingface_hub's requests, not a specification: a commit carries its files as base64 ("regular" mode), never as LFS or
Xet uploads, there is one branch, and a token may write to one owner.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN, OWNER = "hf_token", "me"


class Hub(ThreadingHTTPServer):
    """repositories: {name: {commit: {path: content}}}, the newest commit last. asked: (method, path) of each request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Adds a commit that writes files; returns its hash."""
        commits = self.repositories.setdefault(name, {})
        merged = {**self.newest(name), **files}
        sha = hashlib.sha1(repr((len(commits), merged)).encode()).hexdigest()
        commits[sha] = merged
        return sha

    def newest(self, name: str) -> dict[str, bytes]:
        """Returns the files of a repository."""
        return [{}, *self.repositories[name].values()][-1]

    def downloads(self) -> set[str]:
        """Returns the paths of the files that were downloaded."""
        return {path.split("/", 5)[5] for kind, path in self.asked if kind == "GET" and "/resolve/" in path}


@contextmanager
def serve() -> Iterator[Hub]:
    """Yields a running fake; it ends with the context."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, args=[0.01])
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, content, status: int = 200, **headers) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        hub.asked.append((self.command, self.path))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":  # of the model card
            self.answer({})
        else:
            name, action = re.fullmatch(r"/api/models/(\w+/\w+)/(preupload|commit)/main", self.path).groups()
            if action == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            else:
                lines = [json.loads(line) for line in body.splitlines()]
                added = [line["value"] for line in lines if line["key"] == "file"]
                sha = hub.commit(name, {file["path"]: base64.b64decode(file["content"]) for file in added})
                self.answer({"commitUrl": f"{hub.address}/{name}/commit/{sha}", "commitOid": sha})

    def create(self, asked: dict) -> None:
        hub, name = self.server, f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            self.answer({"error": "You don't have the rights to create a model under this namespace."}, 403)
            return
        exists = name in hub.repositories
        hub.repositories.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            hub.private.add(name)
        self.answer({"url": f"{hub.address}/{name}"}, 409 if exists else 200)

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path))
        pattern = r"(?:/api/models)?/(\w+/[\w-]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?"
        name, kind, revision, file = re.fullmatch(pattern, path).groups()
        is_owner = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if name not in hub.repositories or (name in hub.private and not is_owner):
            self.answer({"error": "Repository not found"}, 404 if is_owner else 401, X_Error_Code="RepoNotFound")
            return
        commits = hub.repositories[name]
        sha = list(commits)[-1] if revision in (None, "main") else revision
        if sha not in commits:
            self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        elif kind == "resolve" and file in commits[sha]:
            etag = hashlib.sha1(commits[sha][file]).hexdigest()
            self.answer(commits[sha][file], ETag=f'"{etag}"', X_Repo_Commit=sha)
        elif kind == "resolve":
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        elif kind == "tree":
            oids = {path: hashlib.sha1(content).hexdigest() for path, content in commits[sha].items()}
            self.answer([{"type": "file", "path": p, "size": len(commits[sha][p]), "oid": oid} for p, oid in oids.items()])
        else:
            self.answer({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in commits[sha]]})

    do_HEAD = do_GET  # noqa: N815
