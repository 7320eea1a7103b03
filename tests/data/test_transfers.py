"""Servers that are slow, endless, broken, busy, or that lead elsewhere: every wait and every size has an end."""

import re
import socket
import time
from dataclasses import replace

import psutil
import pytest
from serving import only, serve, status

from dsmemvp.cli.main import main
from dsmemvp.config.reading import read_recipe
from dsmemvp.data import fetch
from dsmemvp.data.manifest import FILE, open_manifest, read_manifest
from dsmemvp.data.stream import read_all
from dsmemvp.distributed.stopping import UNEXPECTED, USER_ERROR, exit_code
from dsmemvp.doctor.finding import Here
from dsmemvp.doctor.needs import of_recipe
from dsmemvp.errors import UserError

TAR = "000000.tar"
ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"


def raw(*parts: bytes):
    """Answers that consist of these bytes."""

    def answer(name, request):
        for part in parts:
            request.wfile.write(part)
        return True

    return answer


@pytest.fixture
def two(monkeypatch):
    """Attempts, where each takes as long as the timeout."""
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)


def fails(server, cache, read=lambda manifest: list(read_all(manifest))) -> Exception:
    """What opening and reading the data set raises: one line that names its location."""
    with pytest.raises((ValueError, OSError)) as caught:
        read(open_manifest(server.location, cache))
    message = str(caught.value)
    assert message.startswith(f"{server.location}: ") and "\n" not in message
    assert not list((cache.folder / "partial").rglob("*"))
    return caught.value


@pytest.mark.parametrize("sent", [(), (ANSWER,), (ANSWER, b"some")], ids=["nothing", "a header", "a few bytes"])
def test_a_server_that_falls_silent_is_given_up(server, cache, two, sent):
    def silent(name, request):
        raw(*sent)(name, request)
        return server.over.wait(60)

    server.instead = only(TAR, silent)
    began = time.monotonic()
    error = fails(server, replace(cache, timeout=0.3))
    assert f"{TAR} cannot be fetched (no byte for 0.3 s; 2 attempts)" in str(error)
    assert exit_code(error) == UNEXPECTED and server.asked[TAR] == 2
    assert time.monotonic() - began < 30


def test_a_server_that_drips_is_given_up(server, cache, two):
    def drip(name, request):
        request.wfile.write(ANSWER)
        while not server.over.wait(0.1):
            request.wfile.write(b"x")
        return True

    server.instead = only(TAR, drip)
    error = fails(server, replace(cache, timeout=0.4))
    assert "only " in str(error) and exit_code(error) == UNEXPECTED


@pytest.mark.parametrize("name", [TAR, f"{TAR}.index", FILE])
def test_an_endless_file_is_stopped_at_its_size(server, cache, two, monkeypatch, name):
    monkeypatch.setattr("dsmemvp.data.remote.MOST", 1 << 20)
    sent = []

    def endless(asked, request):
        request.wfile.write(ANSWER)
        while not server.over.is_set():
            request.wfile.write(bytes(1 << 16))
            sent.append(1 << 16)
        return True

    server.instead = only(name, endless)
    error = fails(server, cache)
    most = {TAR: "10240", FILE: str(1 << 20)}.get(name, r"\d{5}")
    assert re.search(rf"{re.escape(name)} cannot be fetched \(more than {most} bytes; 2 attempts\)", str(error))
    assert exit_code(error) == USER_ERROR
    assert sum(sent) < 100 << 20  # what the sockets hold beside what was read


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_a_server_that_is_busy_at_first_is_asked_again(server, there, cache, code):
    server.instead = lambda name, request: server.asked[name] < 3 and status(code)(name, request)
    assert len(list(read_all(open_manifest(server.location, cache)))) == 9
    assert server.asked[FILE] == server.asked[TAR] == 3


def test_a_server_that_stays_busy_is_given_up_after_five_requests_and_the_run_is_requeued(server, cache):
    server.instead = only(TAR, status(503))
    error = fails(server, cache)
    assert f"{TAR} cannot be fetched (HTTP 503 Service Unavailable; 5 attempts)" in str(error)
    assert exit_code(error) == UNEXPECTED and server.asked[TAR] == 5


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 206])
def test_what_will_not_change_is_asked_for_once_and_is_the_user_s(server, cache, code):
    server.instead = only(TAR, status(code))
    error = fails(server, cache)
    assert f"{TAR} cannot be fetched (HTTP {code}" in str(error) and "attempts" not in str(error)
    assert exit_code(error) == USER_ERROR and server.asked[TAR] == 1


def waits(server, cache, monkeypatch, answer) -> list[float]:
    """Seconds between the attempts."""
    found: list[float] = []
    monkeypatch.setattr(fetch, "BACK_OFF", 1.0)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: found.append(seconds) if seconds else None)
    server.instead = only(TAR, answer)
    fails(server, cache)
    return found


def test_the_pauses_grow_and_are_not_the_same_for_all_ranks(server, cache, monkeypatch):
    first, second = (waits(server, cache, monkeypatch, status(503)) for _ in range(2))
    for found in (first, second):
        assert len(found) == 4
        assert all(0.5 * 2**n <= seconds <= 1.5 * 2**n for n, seconds in enumerate(found))
    assert first != second


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [("30", 30, 30), ("86400", 60, 60), ("Fri, 31 Dec 2100 23:59:59 GMT", 60, 60), ("0", 0, 12), ("soon", 0, 12)],
)
def test_a_server_s_retry_after_is_heeded_up_to_a_minute(server, cache, monkeypatch, asked, low, high):
    found = waits(server, cache, monkeypatch, status(429, Retry_After=asked))
    assert len(found) == 4 and all(low <= seconds <= high for seconds in found)


@pytest.mark.parametrize("name", [TAR, f"{TAR}.index", FILE])
def test_a_connection_that_breaks_leaves_nothing_and_is_tried_again(server, cache, name):
    server.instead = lambda asked, request: setattr(server, "promise", 10 if asked == name else 0) or False
    error = fails(server, cache)
    assert f"{name} cannot be fetched (the connection ended 10 bytes early; 5 attempts)" in str(error)
    assert exit_code(error) == UNEXPECTED and server.asked[name] == 5
    assert not [p for p in cache.folder.rglob(f"*{name}") if p.parent.name != "locks"]


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz"]
)
def test_an_answer_that_is_not_http_is_a_fault_of_the_connection(server, cache, answer):
    server.instead = only(TAR, raw(answer))
    error = fails(server, cache)
    assert "; 5 attempts)" in str(error) and exit_code(error) == UNEXPECTED


def test_a_server_that_has_gone_is_named(there, cache, server):
    with serve(there) as other:
        manifest = open_manifest(other.location, cache)
    for read in (lambda: open_manifest(other.location, cache), lambda: list(read_all(manifest))):
        with pytest.raises(
            ConnectionError, match=rf"{other.location}: .* cannot be fetched \(.*; 5 attempts\)"
        ) as caught:
            read()
        assert exit_code(caught.value) == UNEXPECTED


@pytest.mark.parametrize(("error", "code"), [(socket.EAI_NONAME, USER_ERROR), (socket.EAI_AGAIN, UNEXPECTED)])
def test_a_host_that_nobody_knows_is_the_user_s_a_resolver_that_is_away_is_not(cache, soon, monkeypatch, error, code):
    def unknown(*_, **__):
        raise socket.gaierror(error, "no such name")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises((ValueError, OSError), match=r"http://host: dataset\.json cannot be .*; 5 attempts\)") as caught:
        open_manifest("http://host", cache)
    assert exit_code(caught.value) == code


def test_a_signature_is_part_of_every_request(server, cache):
    assert len(list(read_all(open_manifest(f"{server.location}?sv=1&sig=x%2B", cache)))) == 9
    assert set(server.queries) == {"sv=1&sig=x%2B"}


def test_no_process_is_started_and_no_error_shows_a_password(server, there, cache):
    before, started = set(psutil.Process().children(recursive=True)), []

    def look(name, request):
        started.extend(set(psutil.Process().children(recursive=True)) - before)
        return name == "000001.tar" and status(404)(name, request)

    server.instead = look
    location = f"{server.url('me:sEcret')}?sig=sEcret"
    manifest = open_manifest(location, cache)
    shown = f"{server.url('***')}?***"
    assert manifest.location == shown
    with pytest.raises(UserError) as caught:
        list(read_all(manifest))
    assert str(caught.value) == f"{shown}: 000001.tar cannot be fetched (HTTP 404 Not Found)"
    (there / FILE).write_text("{}")
    with pytest.raises(UserError, match="not a manifest") as caught:
        open_manifest(location, cache)
    assert str(caught.value).startswith(f"{shown}, dataset.json")
    assert not started


def test_a_command_s_exit_code_says_whether_it_passes_and_its_output_no_password(
    server, cache, recipe_path, capsys, tmp_path
):
    location = f"{server.url('me:sEcret')}?sig=sEcret"
    settings = [f"data.train={location}", f"data.test={location}", f"data.cache={cache.folder}"]
    arguments = ["data", "show", str(recipe_path), *settings, "--sheet", str(tmp_path / "sheet.png")]
    assert main(arguments) == 0
    for code, answer in ((70, 503), (1, 404)):
        server.instead = status(answer)
        assert main(arguments) == code
        assert capsys.readouterr().err.count("\n") == 1
    server.instead = only(TAR, status(404))
    findings = of_recipe(read_recipe(recipe_path, settings), Here())
    texts = [finding.found for finding in findings]
    assert any(text.startswith(f"9 samples in {server.url('***')}?***") for text in texts) and "sEcret" not in str(
        texts
    )
    out = capsys.readouterr()
    assert "sEcret" not in out.out + out.err


def test_a_manifest_whose_checksums_are_paths_leads_nowhere(server, there, cache, tmp_path):
    text = (there / FILE).read_text()
    for shard in read_manifest(there).shards:
        text = text.replace(shard.sha256, "../../../../../victim")
    (there / FILE).write_text(text)
    with pytest.raises(UserError, match="without checksums of 64 hexadecimal digits"):
        open_manifest(server.location, cache)
    assert server.asked[TAR] == 0
