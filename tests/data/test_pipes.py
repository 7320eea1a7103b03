"""Shards out of a command: refused unless allowed, and no name in a manifest can add to the command."""

import json

import pytest
from making import good_shards

from dsmemvp.data.manifest import FILE, open_manifest, read_manifest
from dsmemvp.data.remote import Cache, Remote
from dsmemvp.data.stream import read_all


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
    with pytest.raises(ValueError, match=r"`pipe:` runs a shell command; allow it with data\.allow_pipe=true"):
        open_manifest(f"pipe:touch {marker}; cat {folder}/{{name}}", Cache(tmp_path / "cache", 1 << 30, pipes=False))
    assert not marker.exists() and not (tmp_path / "cache").exists()


def test_a_pipe_without_a_place_for_the_name_is_refused(folder, cache):
    with pytest.raises(ValueError, match=r"^pipe:cat .*: write \{name\} where the command takes the file name"):
        open_manifest(f"pipe:cat {folder}/dataset.json", cache)


@pytest.mark.parametrize("location", ["s3://bucket/folder", "azure://x", "file:///data/train"])
def test_a_scheme_that_nothing_opens_is_refused_with_an_example_of_a_pipe(cache, location):
    with pytest.raises(ValueError) as caught:
        open_manifest(location, cache)
    message = str(caught.value)
    assert message.startswith(f"{location}: {location.partition(':')[0]} cannot be opened, only ")
    assert "http, https" in message and '"pipe:aws s3 cp s3://bucket/folder/{name} -"' in message


def test_a_command_that_fails_is_named_after_three_attempts(cache, tmp_path):
    log = tmp_path / "log"
    location = f"pipe:echo {{name}} >> {log}; exit 3"
    with pytest.raises(ValueError, match=r"dataset\.json cannot be fetched \(.*exit 3.*; 3 attempts\)"):
        open_manifest(location, cache)
    assert log.read_text() == "dataset.json\n" * 3


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
    with pytest.raises(ValueError, match="must not stand in a shell command"):
        manifest.local(0)
    with pytest.raises(ValueError, match="must not stand in a shell command"):
        list(read_all(manifest))
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not list((cache.folder / "partial").iterdir())


@pytest.mark.parametrize("name", ["../../stolen.tar", "/etc/passwd", "..", ""])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_fetched(folder, cache, tmp_path, name):
    content = json.loads((folder / FILE).read_text())
    content["shards"][0]["name"] = name
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"shard name .* leaves the folder"):
        open_manifest(f"pipe:cat {folder}/{{name}}", cache)
    assert not (cache.folder / "shards").exists()


def test_names_are_escaped_in_a_url():
    remote = Remote("http://host/folder", Cache(None, 0, False))  # type: ignore[arg-type]
    assert remote._url("a b#c?{1,2}.tar") == "http://host/folder/a%20b%23c%3F%7B1%2C2%7D.tar"
