"""Shards out of a command: refused unless allowed, and no name in a manifest can add to the command."""

import json
import time
from dataclasses import replace

import psutil
import pytest
from making import good_shards

from dsmemvp.data.cache import Cache
from dsmemvp.data.manifest import FILE, open_manifest, read_manifest
from dsmemvp.data.stream import read_all
from dsmemvp.distributed.stopping import UNEXPECTED, exit_code
from dsmemvp.errors import UserError


@pytest.fixture
def folder(tmp_path):
    good_shards(tmp_path / "there", number=6, per_shard=3)
    return tmp_path / "there"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 1 << 30, pipes=True)


@pytest.mark.parametrize(
    "command", ["cat {folder}/{{name}}", 'cat "{folder}/{{name}}"', "cd {folder} && cat '{{name}}'"]
)
def test_what_a_command_writes_reads_as_local_shards(folder, cache, command):
    manifest = open_manifest("pipe:" + command.format(folder=folder), cache)
    found = [(entry.index, entry.members) for entry in read_all(manifest)]
    assert found == [(entry.index, entry.members) for entry in read_all(read_manifest(folder))]
    assert len(found) == 6


def test_a_pipe_is_refused_unless_it_is_allowed_and_nothing_runs(folder, tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(UserError, match=r"`pipe:` runs a shell command; allow it with data\.allow_pipe=true"):
        open_manifest(f"pipe:touch {marker}; cat {folder}/{{name}}", Cache(tmp_path / "cache", 1 << 30, pipes=False))
    assert not marker.exists() and not (tmp_path / "cache").exists()


def test_a_pipe_without_a_place_for_the_name_is_refused(folder, cache):
    with pytest.raises(UserError, match=r"^pipe:cat .*: write \{name\} where the command takes the file name"):
        open_manifest(f"pipe:cat {folder}/dataset.json", cache)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("s4://bucket/folder", "s4:// is no protocol that fsspec knows"),
        ("filecache::s3://x", "filecache::s3:// is no protocol that fsspec knows"),
        ("file:///data/train", "a folder of this machine is named without file://"),
        ("abfs://x", "abfs:// needs a package that is not installed (Install adlfs to access Azure"),
    ],
)
def test_a_scheme_that_nothing_opens_is_refused_with_an_example_of_a_pipe(cache, location, why):
    with pytest.raises(UserError) as caught:
        open_manifest(location, cache)
    message = str(caught.value)
    assert message.startswith(f"{location}: {why}") and "\n" not in message
    assert message.endswith('or name a command, such as "pipe:aws s3 cp s3://bucket/folder/{name} -"')


def test_a_command_that_fails_is_named_after_all_attempts(cache, tmp_path, soon):
    log = tmp_path / "log"
    location = f"pipe:echo {{name}} >> {log}; exit 3"
    with pytest.raises(UserError, match=r"dataset\.json cannot be fetched \(exit 3; 5 attempts\)"):
        open_manifest(location, cache)
    assert log.read_text() == "dataset.json\n" * 5


def test_the_last_line_of_a_command_s_messages_is_told_without_its_secrets(cache, soon):
    location = "pipe:echo working >&2; echo 'no https://me:sEcret@host/x?sig=sEcret for {name}' >&2; exit 2"
    with pytest.raises(UserError) as caught:
        open_manifest(location, cache)
    message = str(caught.value)
    assert "(exit 2: no https://***@host/x?*** for dataset.json; 5 attempts)" in message
    assert "sEcret" not in message and "\n" not in message


@pytest.mark.parametrize(
    "command", ["sleep 987", "sleep 987 & wait", "sleep 987 & exit 0", "echo x; exec 1>&-; sleep 987"]
)
def test_a_command_that_is_silent_or_does_not_end_is_killed_with_all_it_has_started(cache, soon, monkeypatch, command):
    monkeypatch.setattr("dsmemvp.data.fetch.ATTEMPTS", 2)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"dataset\.json cannot be fetched \(.*; 2 attempts\)") as caught:
        open_manifest(f"pipe:echo {{name}} >&2; {command}", replace(cache, timeout=0.2))
    assert time.monotonic() - began < 30
    assert ": dataset.json;" in str(caught.value)  # what it has said
    assert exit_code(caught.value) == UNEXPECTED
    until = time.monotonic() + 10
    while any(_sleeps(process) for process in psutil.process_iter()):
        assert time.monotonic() < until
        time.sleep(0.01)


def _sleeps(process) -> bool:
    try:
        return process.cmdline() == ["sleep", "987"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_command_that_writes_for_ever_is_stopped_at_the_shard_s_size(folder, cache, soon):
    manifest = open_manifest(f"pipe:cat {folder}/{{name}}; case {{name}} in *.tar) cat /dev/zero;; esac", cache)
    with pytest.raises(UserError, match=r"000000\.tar cannot be fetched \(more than 10240 bytes; 5 attempts\)"):
        list(read_all(manifest))


def test_many_messages_do_not_stop_a_command(folder, cache):
    manifest = open_manifest(f"pipe:head -c 300000 /dev/zero >&2; cat {folder}/{{name}}", cache)
    assert len(list(read_all(manifest))) == 6


HOSTILE = [
    "a.tar; touch MARKER",
    "$(touch MARKER).tar",
    "`touch MARKER`.tar",
    "a.tar && touch MARKER",
    "a.tar\ntouch MARKER",
    "';touch MARKER;'.tar",
    '";touch MARKER;".tar',
    "a.tar|touch MARKER",
    "a b.tar",
    "--output=MARKER",
]


@pytest.mark.parametrize("command", ["cat {name}", "cat '{name}'", 'cat "{name}"'])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_of_a_hostile_manifest_does_not_reach_the_shell(folder, cache, tmp_path, monkeypatch, name, command):
    monkeypatch.chdir(folder)
    content = json.loads((folder / FILE).read_text())
    content["shards"][0]["name"] = name
    (folder / FILE).write_text(json.dumps(content))
    manifest = open_manifest(f"pipe:{command}", cache)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match="must not stand in a shell command"):
        manifest.open(0)
    with pytest.raises(UserError, match="must not stand in a shell command"):
        list(read_all(manifest))
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not list((cache.folder / "partial").iterdir())


@pytest.mark.parametrize("name", ["../../stolen.tar", "/etc/passwd", "..", ""])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_fetched(folder, cache, tmp_path, name):
    content = json.loads((folder / FILE).read_text())
    content["shards"][0]["name"] = name
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"shard name .* leaves the folder"):
        open_manifest(f"pipe:cat {folder}/{{name}}", cache)
    assert not (cache.folder / "shards").exists()
