"""A headless browser for tests of pages, and a server on this machine for it."""

import json
import queue
import shutil
import subprocess
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests import program

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_TYPES = {
    "": "text/html; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}


def visit(
    bodies: Mapping[str, bytes], profile: Path, dark: bool = False, seconds: float = program.SECONDS
) -> tuple[Any, list[str], list[str]]:
    """Opens the page "/" and waits for what it sends back.

    Args:
      bodies: what the server answers, by path.
      profile: a new folder for the browser.
      dark: whether the browser prefers dark pages.
      seconds: how long to wait.

    Returns:
      The JSON value that the page sent to "/seen"; the paths that the browser requested; and the
      lines of its console.
    """
    asked: list[str] = []
    answers: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path in bodies else 404)
            self.send_header("Content-Type", _TYPES.get(Path(self.path).suffix, "text/plain"))
            self.end_headers()
            self.wfile.write(bodies.get(self.path, b""))

        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={profile}", "--window-size=1600,1000"),
        *("--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
        f"http://127.0.0.1:{server.server_port}/",
    ]
    log = profile / "log.txt"
    profile.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as browser,
    ):
        try:
            answer = answers.get(timeout=seconds)
        finally:
            browser.terminate()
            server.shutdown()
            server.server_close()
    lines = log.read_text(errors="replace").splitlines()
    return answer, asked, [line for line in lines if "CONSOLE" in line]
