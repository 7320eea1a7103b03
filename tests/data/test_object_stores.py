"""Shards at s3://, gs://, hf:// and what else fsspec opens: read as local ones are, kept in the cache, and refused in
one line. The stores are a web server of this machine that speaks the little of their protocols that reading needs."""

import importlib
import json
import multiprocessing
import sys

import fsspec
import pytest
from serving import serve, status

from dsmemvp.data import fetch, fsspec_stream
from dsmemvp.data.cache import Cache
from dsmemvp.data.location import check_location
from dsmemvp.data.manifest import FILE, open_manifest, read_manifest
from dsmemvp.data.sample import EncodedSample
from dsmemvp.data.stream import read_all
from dsmemvp.distributed.stopping import UNEXPECTED, USER_ERROR, exit_code
from dsmemvp.errors import UserError

TAR = "000000.tar"


@pytest.fixture
def store(there, soon, monkeypatch, tmp_path):
    """A server of three stores, each with `there` as a bucket or a repository; logins of nobody else are found."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve(tmp_path) as server:
        server.instead = lambda name, request: _google(tmp_path, name, request) or _hub(tmp_path, name, request)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.location)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sEcret")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.location)
        settings = {"gs": {"token": "anon"}, "hf": {"endpoint": server.location, "token": False}}
        for scheme, given in settings.items():  # as FSSPEC_GS_TOKEN=anon before the first import
            monkeypatch.setitem(fsspec.config.conf, scheme, given)
        yield server


def _google(folder, name, request) -> bool:
    """What gcsfs asks: an object's size, then its bytes."""
    for prefix in ("storage/v1/b/there/o/", "download/storage/v1/b/there/o/"):
        path = folder / "there" / name.removeprefix(prefix)
        if name.startswith(prefix) and path.is_file():
            about = {"name": path.name, "bucket": "there", "size": str(path.stat().st_size)}
            return _send(request, path.read_bytes() if prefix.startswith("down") else json.dumps(about).encode())
    return False


def _hub(folder, name, request) -> bool:
    """What the hub's client asks: whether there is such a repository, a file's size, then its bytes."""
    if name == "api/datasets/me/elsewhere":
        return status(404, X_Error_Code="RepoNotFound", Content_Length=0)(name, request)
    if name == "api/datasets/me/there":
        return _send(request, json.dumps({"id": "me/there", "sha": "0" * 40}).encode())
    if name == "api/datasets/me/there/tree/main/there":
        paths = sorted((folder / "there").iterdir())
        found = [{"type": "file", "path": f"there/{p.name}", "size": p.stat().st_size, "oid": "0"} for p in paths]
        return _send(request, json.dumps(found).encode())
    if name.startswith("datasets/me/there/resolve/main/"):
        return _send(request, (folder / name.removeprefix("datasets/me/there/resolve/main/")).read_bytes())
    return False


def _send(request, content: bytes) -> bool:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)
    return True


def contents(manifest):
    entries = list(read_all(manifest))
    assert all(isinstance(entry, EncodedSample) for entry in entries)
    return [(entry.index, entry.where.rpartition(" ")[2], entry.members) for entry in entries]


def fails(location: str, cache: Cache) -> Exception:
    with pytest.raises((ValueError, OSError)) as caught:
        list(read_all(open_manifest(location, cache)))
    message = str(caught.value)
    assert message.startswith(f"{location}: ") and "\n" not in message and "sEcret" not in message
    assert not list((cache.folder / "partial").rglob("*"))
    return caught.value


@pytest.mark.parametrize("location", ["s3://there", "s3://there/", "gs://there", "hf://datasets/me/there/there"])
def test_shards_in_a_store_read_as_local_ones_and_are_fetched_once(store, there, cache, location):
    wanted, manifest = contents(read_manifest(there)), open_manifest(location, cache)
    assert contents(manifest) == wanted and manifest.location == location
    assert contents(open_manifest(location, cache)) == wanted
    about = ("storage/", "api/")
    assert [n for name, n in store.asked.items() if name.endswith(TAR) and not name.startswith(about)] == [1]


@pytest.fixture(autouse=True)
def no_login():
    fsspec_stream._filesystem.cache_clear()  # those of another test's server


def test_any_protocol_of_fsspec_is_read(there, cache, soon):
    memory = fsspec.filesystem("memory")
    memory.put(str(there), "/bucket", recursive=True)
    try:
        location = "memory://bucket"
        assert contents(open_manifest(location, cache)) == contents(read_manifest(there))
        memory.pipe("/bucket/000001.tar", b"!" * 10_240)
        (cache.folder / "shards").rename(cache.folder / "gone")
        message = str(fails(location, cache))
        assert "000001.tar cannot be fetched (its checksum is not the manifest's; 5 attempts)" in message
        memory.pipe("/bucket/000001.tar", b"!" * 10_241)
        assert "(more than 10240 bytes; 5 attempts)" in str(fails(location, cache))
    finally:
        memory.rm("/bucket", recursive=True)


def _read(manifest, found):
    found.put(contents(manifest))


def test_a_worker_reads_after_its_parent_has(store, there, cache):
    """fsspec's event loop does not survive a fork."""
    manifest = open_manifest("s3://there", cache)
    start = multiprocessing.get_context("fork")
    found = start.Queue()
    process = start.Process(target=_read, args=(manifest, found))
    process.start()
    assert found.get(timeout=60) == contents(read_manifest(there))
    process.join(30)


@pytest.mark.parametrize("location", ["s3://there", "gs://there", "hf://datasets/me/there/there"])
def test_a_missing_file_is_asked_for_once_and_is_the_user_s(store, there, cache, location):
    (there / TAR).unlink()
    error = fails(location, cache)
    assert (
        str(error) == f"{location}: {TAR} cannot be fetched (no such file, or no rights to see it)"
        and exit_code(error) == USER_ERROR
    )


@pytest.mark.parametrize("location", ["s3://elsewhere", "gs://elsewhere", "hf://datasets/me/elsewhere/there"])
def test_a_bucket_that_is_not_there(store, cache, location):
    error = fails(location, cache)
    assert (
        f"{FILE} cannot be fetched (no such file, or no rights to see it)" in str(error)
        and exit_code(error) == USER_ERROR
    )


@pytest.mark.parametrize("location", ["s3://there", "gs://there"])
@pytest.mark.parametrize("code", [401, 403])
def test_missing_rights_are_the_user_s(store, cache, location, code):
    store.instead = status(code, Content_Length=0)
    error = fails(location, cache)
    assert f"{FILE} cannot be fetched (" in str(error) and "attempts" not in str(error)
    assert exit_code(error) == USER_ERROR


def test_without_a_login_the_line_says_how_to_go_on(store, cache, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = fails("s3://there", cache)
    assert "Unable to locate credentials (NoCredentialsError); for a public bucket set FSSPEC_S3_ANON=true)" in str(
        error
    )
    assert exit_code(error) == USER_ERROR


def test_a_store_that_is_away_ends_a_run_that_is_then_requeued(store, cache, monkeypatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    error = fails("s3://there", cache)
    assert "Could not connect to the endpoint" in str(error) and "; 2 attempts)" in str(error)
    assert exit_code(error) == UNEXPECTED


def test_a_store_that_falls_silent_is_given_up(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    store.instead = lambda name, request: store.over.wait(60)
    error = fails("s3://there", Cache(tmp_path / "cache", 1 << 30, pipes=False, timeout=0.3))
    assert "(no byte for 0.3 s; 2 attempts)" in str(error) and exit_code(error) == UNEXPECTED


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_package_that_is_missing_is_named_before_anything_is_read(monkeypatch, scheme, package):
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        check_location(f"{scheme}://there", pipes=False)
    text = f"{scheme}://there: {scheme}:// needs the package {package}; pip install 'dsmemvp[remote]'"
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)
