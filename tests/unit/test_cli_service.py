"""`localrun serve --install-service`: units as their readers read them, and what is left alone."""

from __future__ import annotations

import plistlib
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from localrun.cli.app import execute
from localrun.cli.service import MARK, Service, launchd_agent, systemd_unit
from tests.command_lines import small_gguf

SERVICE = Service(
    command=("/opt/venv/bin/python", "-P", "-m", "localrun.cli", "serve", "smollm2", "--ctx=4096"),
    env={"HF_HOME": "/data/hf"},
    writable=(Path("/home/u/.cache"), Path("/data/with a space")),
    key_file=Path("/home/u/.config/localrun/service.env"),
    log=Path("/home/u/.local/state/localrun/service.log"),
)
UNIT = f"""# {MARK}
[Unit]
Description=localrun, open-weight language models on a local port

[Service]
Type=exec
ExecStart=/opt/venv/bin/python -P -m localrun.cli serve smollm2 --ctx=4096
Environment=HF_HOME=/data/hf
EnvironmentFile=/home/u/.config/localrun/service.env
Restart=on-failure
RestartSec=5
TimeoutStopSec=30

NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077
# Where the kernel keeps user namespaces from users, these end it with 226/NAMESPACE.
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ReadWritePaths=-/home/u/.cache
ReadWritePaths="-/data/with a space"

[Install]
WantedBy=default.target
"""
KEY = "s3cret-KEY_1"
linux = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


def test_a_unit_is_to_the_letter() -> None:
    assert systemd_unit(SERVICE) == UNIT


def test_what_systemd_would_read_otherwise_is_escaped() -> None:
    command = ("/bin/a b", "100%", "$HOME", 'a"b', "c\\d", "./it's.gguf")

    unit = systemd_unit(Service(command))

    assert (
        r'ExecStart="/bin/a b" "100%%" "$$HOME" "a\"b" "c\\d" "./it'
        """'s.gguf"\n"""
    ) in unit
    assert "EnvironmentFile" not in unit


@linux
def test_systemd_finds_nothing_wrong_with_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    unit = tmp_path / "localrun.service"
    # It looks for the program too.
    command = (sys.executable, *SERVICE.command[1:], "a b", "100%", "$HOME")
    unit.write_text(systemd_unit(Service(command, SERVICE.env, SERVICE.writable)))

    outcome = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_a_launchd_agent_is_a_property_list_and_its_key_in_a_file() -> None:
    text = launchd_agent(SERVICE)

    assert MARK in text
    assert plistlib.loads(text.encode()) == {
        "Label": "localrun",
        "ProgramArguments": [
            "/bin/sh",
            "-c",
            '. "$0"; export LOCALRUN_API_KEY; exec "$@"',
            "/home/u/.config/localrun/service.env",
            *SERVICE.command,
        ],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 5,
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "StandardErrorPath": "/home/u/.local/state/localrun/service.log",
        "EnvironmentVariables": {"HF_HOME": "/data/hf"},
    }
    keyless = plistlib.loads(launchd_agent(Service(("/a", "b"))).encode())
    assert keyless["ProgramArguments"] == ["/a", "b"]


@pytest.fixture
def user(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody's."""
    folder = home / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(small_gguf())
    return file


def unit_of(user: Path) -> Path:
    return user / ".config" / "systemd" / "user" / "localrun.service"


def started(user: Path) -> list[str]:
    """The command line of the unit there is."""
    (line,) = [
        line for line in unit_of(user).read_text().splitlines() if line.startswith("ExecStart=")
    ]
    return shlex.split(line.removeprefix("ExecStart="))


INSTALL = ["--install-service", "--yes"]


@linux
def test_the_flags_given_become_those_of_the_service(
    user: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALRUN_PARALLEL", "2")
    flags = ["--port", "8123", "--vram", "8GB", "--keep-alive", "1h", "--compat-ports"]
    flags += ["--no-learn", "--mirror", "."]
    origins = ["--cors-origin", "http://a", "--cors-origin", "http://b"]

    assert execute(["serve", "./tiny.gguf", *flags, *origins, *INSTALL]) == 0

    command = started(user)
    assert command[:5] == [sys.executable, "-P", "-m", "localrun.cli", "serve"]
    assert sorted(command[5:]) == sorted(
        [
            str(model),
            "--port=8123",
            "--vram=8000000000",
            "--keep-alive=3600.0",
            "--compat-ports",
            "--no-learn",
            f"--mirror={Path.cwd()}",
            "--parallel=2",
            "--cors-origin=http://a",
            "--cors-origin=http://b",
        ]
    )
    assert capfd.readouterr().out.splitlines()[:2] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now localrun.service",
    ]


@linux
def test_what_config_toml_says_stays_there(user: Path, home: Path) -> None:
    config = home / "home" / "config.toml"
    config.parent.mkdir()
    config.write_text("parallel = 3\napi_key = 'in-the-file'\n")

    assert execute(["serve", *INSTALL]) == 0

    assert started(user)[5:] == []
    assert "in-the-file" not in unit_of(user).read_text()


@linux
def test_the_key_is_in_a_file_of_its_own_that_only_its_owner_reads(
    user: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALRUN_API_KEY", KEY)

    assert execute(["serve", "--host", "0.0.0.0", *INSTALL]) == 0

    key_file = home / "home" / "service.env"
    captured = capfd.readouterr()
    assert f"LOCALRUN_API_KEY='{KEY}'" in key_file.read_text().splitlines()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert f"EnvironmentFile={key_file}" in unit_of(user).read_text()
    assert KEY not in unit_of(user).read_text() + captured.out + captured.err
    # What launchd's shell would read.
    read = subprocess.run(
        ["/bin/sh", "-c", '. "$0"; printf %s "$LOCALRUN_API_KEY"', str(key_file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert read.stdout == KEY


@linux
@pytest.mark.parametrize("key", ["a'b", "a b", "a\\b", "a$b", "ä", "a\nb"])
def test_a_key_that_the_file_cannot_carry_is_refused(key: str, user: Path) -> None:
    assert execute(["serve", "--api-key", key, *INSTALL]) == 2

    assert not unit_of(user).exists()


REFUSED = {
    "a host others reach, without a key": (["--host", "0.0.0.0"], 2),
    "no port": (["--port", "70000"], 2),
    "no such model": (["./absent.gguf"], 3),
    "nobody to ask": ([], 2),
}


@linux
@pytest.mark.parametrize(("flags", "code"), REFUSED.values(), ids=REFUSED)
def test_what_the_service_would_end_with_is_said_now(
    flags: list[str], code: int, user: Path
) -> None:
    yes = ["--yes"] if flags else []

    assert execute(["serve", *flags, "--install-service", *yes]) == code

    assert not unit_of(user).exists()


@linux
def test_a_unit_of_somebody_elses_is_kept_and_not_removed(
    user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = "[Service]\nExecStart=/bin/true\n"
    unit_of(user).parent.mkdir(parents=True)
    unit_of(user).write_text(theirs)

    assert execute(["serve", "--uninstall-service"]) == 2
    assert unit_of(user).read_text() == theirs
    assert execute(["serve", "--install-service"]) == 2
    assert unit_of(user).read_text() == theirs
    assert execute(["serve", *INSTALL]) == 0

    (backup,) = unit_of(user).parent.glob("*.localrun-backup-*")
    assert backup.read_text() == theirs
    assert "-ExecStart=/bin/true" in capfd.readouterr().err


@linux
def test_uninstalling_removes_what_was_written_and_nothing_else(
    user: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALRUN_API_KEY", KEY)
    before = sorted(home.rglob("*.*"))
    assert execute(["serve", *INSTALL]) == 0
    wants = unit_of(user).parent / "default.target.wants" / "localrun.service"
    wants.parent.mkdir()
    wants.symlink_to(unit_of(user))

    assert execute(["serve", "--uninstall-service"]) == 0
    assert "systemctl --user stop localrun.service" in capfd.readouterr().out
    assert not wants.is_symlink()
    assert [file for file in sorted(home.rglob("*.*")) if file.is_file()] == [
        file for file in before if file.is_file()
    ]
    assert execute(["serve", "--uninstall-service"]) == 2


def test_on_a_mac_the_agent_is_written_where_launchd_looks(
    user: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert execute(["serve", "--ctx", "4096", *INSTALL]) == 0

    file = user / "Library" / "LaunchAgents" / "localrun.plist"
    assert plistlib.loads(file.read_bytes())["ProgramArguments"][-1] == "--ctx=4096"
    assert capfd.readouterr().out == f"launchctl bootstrap gui/$(id -u) '{file}'\n"
    assert execute(["serve", "--uninstall-service"]) == 0
    assert not file.exists()


def test_where_there_is_neither_it_is_said(
    user: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")

    assert execute(["serve", *INSTALL]) == 2

    assert "freebsd14" in capfd.readouterr().err
