"""Downloads: whole or not at all, once, over https, from a server on this machine."""

from __future__ import annotations

import http.server
import threading
import urllib.request

import pytest

from edm_fast.checkpoints import download as module
from edm_fast.checkpoints.download import download, is_url

URL = "https://example.test/models/net.pkl?a=b"
CONTENT = bytes(range(256)) * 8192


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/stall"):
            self.server.released.wait(20)
            return
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        self.send_response(200)
        if "unsized" not in self.path:
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000] if "short" in self.path else b"" if "empty" in self.path else CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.released = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def opener(server):
    """Asks the local server in place of example.test."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def open_locally(url, timeout):
        local = url.replace("https://example.test", f"http://127.0.0.1:{server.server_address[1]}")
        response = direct.open(local, timeout=timeout)
        response.url = url
        return response

    return open_locally


@pytest.mark.parametrize("url", [URL, "https://example.test/unsized"])
def test_a_file_is_downloaded_once(url, opener, server, tmp_path):
    path = download(url, tmp_path / "cache", opener=opener)
    assert path.read_bytes() == CONTENT
    assert download(url, tmp_path / "cache", opener=opener) == path
    assert len(server.requests) == 1
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_every_url_has_a_file_of_its_own(opener, tmp_path):
    urls = [URL, URL + "c", "https://example.test/a/..%2f..%2fevil", "https://example.test/", "https://example.test/.x"]
    paths = [download(url, tmp_path, opener=opener) for url in urls]
    assert len(set(paths)) == len(urls)
    assert all(path.parent == tmp_path for path in paths)
    assert paths[0].name.endswith("-net.pkl")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.test/short", "ended after 1000 of 2097152 bytes|broke off after"),
        ("https://example.test/unsized-empty", "the download is empty"),
        ("https://example.test/absent", "cannot be downloaded: .*Not Found"),
        ("https://example.test/stall", "cannot be downloaded: .*timed out"),
    ],
)
def test_nothing_is_left_of_a_download_that_fails(url, message, opener, tmp_path):
    with pytest.raises(OSError, match=rf"^{url}: .*({message})"):
        download(url, tmp_path, timeout=0.5, opener=opener)
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(opener, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(URL, tmp_path, opener=opener)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://example.test/net.pkl", "file:///etc/passwd", "ftp://a/b", "net.pkl"])
def test_other_addresses_are_refused(url, tmp_path):
    def never(url, timeout):
        raise AssertionError("opened")

    with pytest.raises(ValueError, match="url must begin with https://"):
        download(url, tmp_path, opener=never)


def test_redirects_away_from_https_are_refused(opener, tmp_path):
    def redirected(url, timeout):
        response = opener(url, timeout)
        response.url = "http://example.test/net.pkl"
        return response

    with pytest.raises(ValueError, match="url must begin with https://, but it is 'http://example.test"):
        download(URL, tmp_path, opener=redirected)
    assert not list(tmp_path.iterdir())
    handler = module._SecureRedirects()
    with pytest.raises(ValueError, match="https://"):
        handler.redirect_request(urllib.request.Request(URL), None, 302, "", {}, "http://example.test/")


def test_a_folder_that_cannot_be_made_is_named(opener, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        download(URL, tmp_path / "file" / "cache", opener=opener)


def test_paths_are_not_urls():
    assert is_url(URL)
    assert is_url("http://a")
    assert not any(map(is_url, ["net.pkl", "/tmp/net.pkl", "C:\\net.pkl", "a:b", "https:/a"]))
