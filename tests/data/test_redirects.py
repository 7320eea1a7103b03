"""Redirects are followed as far as they are safe, and credentials stay with the server that they are for."""

import base64

import pytest
from serving import only, serve, status

from dsmemvp.data.http_stream import keeps_credentials, redirected
from dsmemvp.data.manifest import FILE, open_manifest
from dsmemvp.data.stream import read_all
from dsmemvp.data.transfer_error import TransferError
from dsmemvp.errors import UserError

TAR = "000000.tar"


def fails(server, cache) -> str:
    """What the user is told, who has to change something."""
    with pytest.raises(UserError) as caught:
        list(read_all(open_manifest(server.location, cache)))
    return str(caught.value)


def test_redirects_are_followed_within_bounds(server, there, cache):
    def moved(name, request):
        return not name.startswith("new/") and status(302, Location=f"/new/{name}")(name, request)

    server.instead = moved
    (there / "new").mkdir()
    for path in list(there.glob("*.*")):
        path.rename(there / "new" / path.name)
    assert len(list(read_all(open_manifest(server.location, cache)))) == 9
    server.instead = lambda name, request: status(302, Location=f"/{name}")(name, request)
    server.asked.clear()
    assert "more than 10 redirects" in fails(server, cache)
    assert server.asked[FILE] == 11


def test_the_content_of_a_redirect_is_not_read(server, cache):
    def answer(name, request):
        request.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n")
        while not server.over.is_set():
            request.wfile.write(bytes(1 << 16))
        return True

    server.instead = only(TAR, answer)
    assert "HTTP 404" in fails(server, cache)


@pytest.mark.parametrize("to", ["http://other/x", "file:///etc/passwd", "ftp://host/x", "gopher://host/x", "data:,x"])
def test_a_redirect_out_of_https_is_not_followed(to):
    with pytest.raises(TransferError, match=r"a redirect from https to \w+ is not followed") as caught:
        redirected("https://host/x", to)
    assert not caught.value.again and caught.value.kind is UserError


def test_a_redirect_to_a_file_is_not_followed(server, cache):
    server.instead = only(TAR, status(302, Location="file:///etc/hostname"))
    assert "a redirect from http to file is not followed" in fails(server, cache)
    assert server.asked[TAR] == 1


def test_redirects_that_are_followed_lead_where_they_say():
    assert redirected("http://host/a/b?x=1", "c") == "http://host/a/c"
    assert redirected("http://host/a", "https://me:pw@other/b?y=2#z") == "https://other/b?y=2"
    assert redirected("https://host/a", "//other:8443/b b") == "https://other:8443/b%20b"
    with pytest.raises(TransferError, match="not a URL"):
        redirected("https://host/a", "https://host:port/b")


def test_credentials_stay_on_their_server():
    for to in ("https://host/other", "https://host:443/x", "https://HOST/x"):
        assert keeps_credentials("https://host/x", to)
    assert keeps_credentials("http://host/x", "https://host/x")
    for to in ("https://other/x", "https://host:8443/x", "https://host.evil/x"):
        assert not keeps_credentials("https://host/x", to)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_password_is_sent_as_a_header_and_not_to_another_server(server, there, cache):
    with serve(there) as other:
        server.instead = lambda name, request: status(307, Location=f"{other.location}/{name}")(name, request)
        manifest = open_manifest(server.url("me:p%40ss"), cache)
        assert len(list(read_all(manifest))) == 9
        assert set(server.credentials) == {basic("me:p@ss")} and set(other.credentials) == {""}


def test_a_password_goes_along_on_the_same_server(server, cache):
    server.instead = lambda name, request: (
        "?" not in request.path and status(302, Location=f"/{name}?again")(name, request)
    )
    open_manifest(server.url("me:pass"), cache)
    assert server.credentials == [basic("me:pass")] * 2


def test_a_password_out_of_netrc(server, there, cache, tmp_path):
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / ".netrc"
    path.write_text("machine 127.0.0.1 login me password pass\ndefault login x password y\n")
    path.chmod(0o600)
    open_manifest(server.location, cache)
    open_manifest(server.url("other:one"), cache)
    assert server.credentials == [basic("me:pass"), basic("other:one")]
    with serve(there) as other:
        path.write_text("machine elsewhere login me password pass\ndefault login x password y\n")
        open_manifest(other.location, cache)
        assert other.credentials == [""]
    path.write_text("machine 127.0.0.1 login me password pass\n")
    path.chmod(0o644)
    server.credentials.clear()
    server.instead = only(TAR, status(401))
    assert "~/.netrc if only its owner may read it" in fails(server, cache)
    assert set(server.credentials) == {""}
