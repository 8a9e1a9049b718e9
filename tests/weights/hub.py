"""A Hugging Face hub for tests: it answers the client of huggingface_hub in this process, from a dictionary."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import httpx2

ADDRESS = "http://hub.test"


class Hub:
    """files: model id → path → content. requests: "METHOD path" of each. token: what it takes; others are refused."""

    def __init__(self, token: str = "secret"):
        self.token = token
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self.answer), follow_redirects=False)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        writes = request.method == "POST"
        if writes and request.headers.get("authorization") != f"Bearer {self.token}":
            return httpx2.Response(401, json={"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(request.content))
        if path == "/api/validate-yaml":
            return httpx2.Response(200, json={"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            names = [file["path"] for file in json.loads(request.content)["files"]]
            rows = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return httpx2.Response(200, json={"files": rows})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], request.content)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/\w+", path):
            return self._listing(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path):
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files[found[1]].items()
            ]
            return httpx2.Response(200, json=rows)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            return self._file(found[1], found[2], request.method == "HEAD")
        return httpx2.Response(404, json={"error": f"not found: {path}"})

    def _create(self, asked: dict[str, Any]) -> httpx2.Response:
        hub_id = f"{asked['organization']}/{asked['name']}"
        if hub_id in self.files:
            return httpx2.Response(409, json={"error": "exists", "url": f"{ADDRESS}/{hub_id}"})
        self.files[hub_id], self.private[hub_id] = {}, asked.get("private") or asked.get("visibility") == "private"
        return httpx2.Response(200, json={"url": f"{ADDRESS}/{hub_id}"})

    def _commit(self, hub_id: str, content: bytes) -> httpx2.Response:
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                self.files[hub_id][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = self._oid(hub_id)
        address = f"{ADDRESS}/{hub_id}/commit/{oid}"
        return httpx2.Response(200, json={"success": True, "commitOid": oid, "commitUrl": address})

    def _listing(self, hub_id: str) -> httpx2.Response:
        if hub_id not in self.files:
            return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"}, json={"error": "none"})
        files = [{"rfilename": name} for name in self.files[hub_id]]
        return httpx2.Response(200, json={"id": hub_id, "sha": self._oid(hub_id), "siblings": files})

    def _file(self, hub_id: str, name: str, head: bool) -> httpx2.Response:
        content = self.files.get(hub_id, {}).get(name)
        if content is None:
            return httpx2.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        facts = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self._oid(hub_id)}
        facts["Content-Length"] = str(len(content))
        return httpx2.Response(200, headers=facts, content=b"" if head else content)

    def _oid(self, hub_id: str) -> str:
        return hashlib.sha1(repr(sorted(self.files[hub_id].items())).encode()).hexdigest()
