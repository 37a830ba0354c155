"""Site settings: wrong ones are refused with the file, the setting and what to do."""

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach.site import load_site, root_uri, state_folder


def site_file(folder: Path, body: str | bytes) -> str:
    path = folder / "site.toml"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return str(path)


def test_the_defaults_serve_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGECOACH_SITE", raising=False)
    site = load_site()
    assert (site.namespace, site.grace_s, site.root) == ("default", 30, None)


def test_a_file_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site_file(tmp_path, 'namespace = "research"\ngrace_s = 120\nroot = "s3://${BUCKET}/runs"\n[images]\ntraining = "a@b"\n')
    monkeypatch.setenv("STAGECOACH_SITE", path)
    monkeypatch.setenv("STAGECOACH_SITE_GRACE_S", "60")
    monkeypatch.setenv("BUCKET", "big")
    site = load_site()
    assert (site.namespace, site.grace_s, site.root, site.images.training) == ("research", 60, "s3://big/runs", "a@b")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('namspace = "x"', "unknown key `namspace`; did you mean `namespace`?"),
        ('grace_s = "soon"', "`grace_s` = 'soon'"),
        ("grace_s = 0", "`grace_s` = 0"),
        ("grace_s = 9999999999", "`grace_s` = 9999999999: must be less than or equal to 86400"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ('[images]\ntrainin = "x"', "unknown key `images.trainin`; did you mean `training`?"),
        ('[environment]\nAWS_SECRET_ACCESS_KEY = ["hunter2hunter2"]', "`environment.AWS_SECRET_ACCESS_KEY` = ***: must be a valid string"),
        ('[[secrets]]\nvariable = "X"\nsecret = "s"\nvalue = "hunter2hunter2"', "`secrets.0.key` = ***"),
        ('mode = "prod"', "`mode` = 'prod'"),
        ('namespace = "a"\nnamespace = "b"\n', "Cannot overwrite a value (at line 2"),  # B10 a duplicate key
        ("[images]\n\ttraining =\n", "line 2"),
        (b"namespace = '\xff'", "not UTF-8 at byte"),
        (b"\xef\xbb\xbfnamespace = 'a'", "is not TOML"),  # a byte-order mark
        (b"# " + b"x" * 1_000_001, "not a settings file"),
        ('root = "s3://${NO_SUCH_VARIABLE}"', "uses ${NO_SUCH_VARIABLE}, which is not set"),  # B12
        ('mode = "production"\n[images]\ntraining = "repo/stagecoach:latest"', "`images.training` = 'repo/stagecoach:latest'"),  # B15
        ('[environment]\nAWS_SECRET_ACCESS_KEY = "hunter2hunter2"', "`environment.AWS_SECRET_ACCESS_KEY` holds a secret"),  # B57
        ('[environment]\nHTTPS_PROXY = "http://me:hunter2hunter2@proxy:3128"', "`environment.HTTPS_PROXY` holds a secret in the clear"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, body: str | bytes, says: str) -> None:
    path = site_file(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    assert says in str(caught.value)
    assert path in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("STAGECOACH_SITE_NAMESPCE", "x", "STAGECOACH_SITE_NAMESPCE: unknown key `namespce` of the site; did you mean `namespace`?"),
        ("STAGECOACH_SITE_IMAGES", "{", "images"),
        ("STAGECOACH_SITE_ENVIRONMENT", "hunter2hunter2", "environment"),
        ("STAGECOACH_SITE_GRACE_S", "soon", "`grace_s` = 'soon'"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGECOACH_SITE", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_site()
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_a_variable_holds_is_never_read_as_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", 'a"\nqueue = "of-others')
    site = load_site(site_file(tmp_path, 'namespace = "${TEAM}"'))
    assert (site.namespace, site.queue) == ('a"\nqueue = "of-others', None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_site(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("given", "folder"),
    [("~/x", "{home}/x"), ("{home}/a/../b", "{home}/b"), ("b c", "{cwd}/b c"), ("", "{home}/.local/state/stagecoach")],
)
def test_the_state_folder_is_an_absolute_path(given: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGECOACH_STATE_DIR", given.format(home=tmp_path))
    wanted = folder.format(home=tmp_path, cwd=tmp_path)
    assert str(state_folder()) == wanted
    assert root_uri(None) == f"file://{wanted}/root"
    assert (root_uri("runs"), root_uri("s3://bucket/x")) == (f"file://{tmp_path}/runs", "s3://bucket/x")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_user(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "STAGECOACH_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_such_user)  # a pod that runs as any number has no line in /etc/passwd
    with pytest.raises(ConfigError, match="set STAGECOACH_STATE_DIR"):
        state_folder()
