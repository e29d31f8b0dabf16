"""The Hugging Face hub on loopback: repositories that are created, filled by commits, and read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.released.toy_server import running


@dataclass
class Hub:
    """The files of each repository, by branch or pull request: `repositories[repository][revision][file]`."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Uploaded contents by their SHA-256, before a commit names them."""
    commits: list[str] = field(default_factory=list)
    """Revision and message of each."""
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers wait 40 ms for the body
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(refs/pr/\d+|[^/]+)(/.*)?", path):
            name, what, revision, folder = found.groups()
            if (files := self.files(name, revision)) is None:
                self.missing("RepoNotFound")
            elif folder:
                self.missing("EntryNotFound")
            elif what == "revision":
                siblings = [{"rfilename": file} for file in sorted(files)]
                self.answer({"id": name, "sha": self.commit(name, revision), "siblings": siblings})
            else:
                rows = [{"type": "file", "path": file, "size": len(files[file]), "oid": file} for file in files]
                self.answer(rows)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            name, revision, file = found.groups()
            if (files := self.files(name, revision)) is None:
                self.missing("RepoNotFound")
            elif file not in files:
                self.missing("EntryNotFound", commit=self.commit(name, revision))
            else:
                self.answer(files[file], commit=self.commit(name, revision))
        else:
            self.missing("RepoNotFound")

    def do_PUT(self) -> None:
        content = self.body()
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/upload/{digest}"
        self.hub.large[digest] = content
        self.answer({})

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        lines = [json.loads(line) for line in self.body().splitlines()]
        if path == "/api/repos/create":
            name = f"{lines[0]['organization'] or 'someone'}/{lines[0]['name']}"
            known = name in self.hub.repositories
            self.hub.repositories.setdefault(name, {"main": {}})
            self.answer({"url": f"{self.hub.address}/{name}"}, status=409 if known else 200)
        elif path == "/api/validate-yaml":
            assert lines[0]["content"].startswith("---\n")
            self.answer({"warnings": [], "errors": []})
        elif found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            branches = self.hub.repositories[found[1]]
            branches.setdefault(found[2], dict(branches["main"]))
            self.answer({})
        elif path.endswith("/info/lfs/objects/batch"):
            uploads = [
                row | {"actions": {"upload": {"href": f"{self.hub.address}/upload/{row['oid']}"}}}
                for row in lines[0]["objects"]
            ]
            self.answer({"transfer": "basic", "objects": uploads})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            rows = [
                {"path": row["path"], "shouldIgnore": False, "uploadMode": mode}
                for row in lines[0]["files"]
                for mode in ["lfs" if row["path"].endswith(".safetensors") else "regular"]
            ]
            self.answer({"files": rows})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            self.commit_lines(found[1], found[2].replace("%2F", "/"), lines, as_pull_request="create_pr=1" in query)
        else:
            self.missing("RepoNotFound")

    def commit_lines(self, name: str, revision: str, lines: list[dict], *, as_pull_request: bool) -> None:
        branches, told = self.hub.repositories[name], {}
        if as_pull_request:
            number = len(branches)
            branches[f"refs/pr/{number}"] = dict(branches[revision])
            revision = f"refs/pr/{number}"
            told["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/{number}"
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(f"{revision}: {value['summary']}")
            elif line["key"] == "file":
                branches[revision][value["path"]] = base64.b64decode(value["content"])
            else:
                branches[revision][value["path"]] = self.hub.large[value["oid"]]
        commit = self.commit(name, revision)
        self.answer({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit} | told)

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files at a branch, a pull request or the hash of its last commit."""
        branches = self.hub.repositories.get(name, {})
        return next((branches[key] for key in branches if revision in {key, self.commit(name, key)}), None)

    def commit(self, name: str, revision: str) -> str:
        """The hash of the content; 40 characters that are one already stay."""
        if (files := self.hub.repositories[name].get(revision)) is None:
            return revision
        return hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def missing(self, code: str, *, commit: str = "") -> None:
        self.answer({}, status=404, headers={"X-Error-Code": code}, commit=commit)

    def answer(self, content: object, *, status: int = 200, commit: str = "", headers: dict | None = None) -> None:
        is_file = isinstance(content, bytes)
        data = content if is_file else json.dumps(content).encode()
        told = {"Content-Type": "application/octet-stream" if is_file else "application/json", **(headers or {})}
        told |= {"Content-Length": str(len(data)), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if commit:
            told["X-Repo-Commit"] = commit
        self.send_response(status)
        for header, value in told.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run an empty hub on a free port."""
    hub = Hub()
    with running(type("Handler", (_Handler,), {"hub": hub})) as hub.address:
        yield hub
