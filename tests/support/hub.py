"""A model hub on localhost: the routes by which huggingface_hub fetches single files."""

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Request(BaseHTTPRequestHandler):
    """/OWNER/NAME/resolve/REVISION/FILE, by HEAD and GET; all else is not found."""

    protocol_version = "HTTP/1.1"
    server: "Hub"

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, *, with_content: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append(path)
        owner, name, route, revision, file = (*path.strip("/").split("/"), *[""] * 5)[:5]
        folder = self.server.folder / owner / name
        if route != "resolve" or not folder.is_dir():
            self.refuse("RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.refuse("RevisionNotFound")
        elif not (folder / file).is_file():
            self.refuse("EntryNotFound")
        else:
            content = (folder / file).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_content:
                self.wfile.write(content)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Hub(ThreadingHTTPServer):
    """Serves the folders OWNER/NAME below `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.folder = folder
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"
