"""What may be opened, what a file at a location is called, and what of a location may be shown."""

import pytest

from dsmemvp.data.location import check_location, file_url, location_id, masked
from dsmemvp.errors import UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/x?X-Amz-Signature=abc", "https://***@host/x?***"),
        ("https://token@host:8443/a/b", "https://***@host:8443/a/b"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("https://me:se/cret@host/x", "https://***"),
        ("https://me:se?cret@host/x", "https://***"),
        ("https://[::1]:80/x#secret", "https://[::1]:80/x#***"),
        ("https://host/x@y/z", "https://host/x@y/z"),
        ("data/train", "data/train"),
        ("pipe:curl -s 'https://u:secret@host/{name}?sig=secret'", "pipe:curl -s 'https://***@host/{name}?***'"),
        ('pipe:curl -H "Authorization: Bearer secret" https://h/{name}', None),
        ("pipe:AWS_SECRET_ACCESS_KEY=secret aws s3 cp s3://b/{name} -", None),
        ("pipe:get --password secret --api-key=secret {name}", None),
        ("pipe:aws s3 cp s3://bucket/train/{name} -", "pipe:aws s3 cp s3://bucket/train/{name} -"),
        ("two: http://a:secret@b/c and http://d:secret@e/f", "two: http://***@b/c and http://***@e/f"),
    ],
)
def test_passwords_and_signatures_are_not_shown(text, shown):
    assert shown is None or masked(text) == shown
    assert "secret" not in masked(text).replace("SECRET", "")
    if text.startswith("pipe:"):
        assert "{name}" in masked(text)


@pytest.mark.parametrize(
    "location", ["http://", "https:///x", "https://u:sec/ret@host/x", "http://host:0x/y", "http://[::1/x"]
)
def test_what_is_not_a_url_is_refused_without_showing_a_password(location):
    with pytest.raises(UserError, match="is not a URL") as caught:
        check_location(location, pipes=False)
    assert "sec" not in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_escaped_in_a_url_and_a_query_stays_behind_them():
    assert file_url("http://host/folder", "a b#c?{1,2}.tar") == "http://host/folder/a%20b%23c%3F%7B1%2C2%7D.tar"
    assert file_url("https://host/a/?sv=1&sig=x%2By", "0.tar") == "https://host/a/0.tar?sv=1&sig=x%2By"
    assert file_url("https://host/große fässer", "0.tar") == "https://host/gro%C3%9Fe%20f%C3%A4sser/0.tar"


def test_a_new_password_or_signature_leaves_the_place_in_the_cache():
    ids = {
        location_id(f"https://{user}host/a{rest}") for user in ("", "me:x@", "me:y@") for rest in ("", "/", "?sig=1")
    }
    assert len(ids) == 1 and ids != {location_id("https://host/b")} != {location_id("https://other/a")}
