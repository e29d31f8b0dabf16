"""The command that installs an extra suits the place that the package came from."""

import json

import pytest

from vlmo import lazy


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (None, "'vlmo[ray]'"),
        ({"url": "file:///a%20clone", "dir_info": {"editable": True}}, "--editable '/a clone[ray]'"),
        ({"url": "file:///clone", "dir_info": {}}, "'/clone[ray]'"),
        (
            {"url": "https://host/vlmo", "vcs_info": {"vcs": "git", "requested_revision": "v1", "commit_id": "e5"}},
            "'vlmo[ray] @ git+https://host/vlmo@v1'",
        ),
        (
            {"url": "https://host/vlmo", "vcs_info": {"vcs": "git", "commit_id": "e5"}},
            "'vlmo[ray] @ git+https://host/vlmo@e5'",
        ),
        ({"url": "file:///vlmo.whl", "archive_info": {}}, "'vlmo[ray] @ file:///vlmo.whl'"),
    ],
)
def test_extras_are_installed_from_where_the_package_came(source, command, monkeypatch):
    class Installed:
        def read_text(self, name):
            return {"direct_url.json": None if source is None else json.dumps(source)}[name]

    monkeypatch.setattr(lazy, "distribution", lambda _: Installed())
    assert lazy.install_command("ray") == f"pip install {command}"
