"""Prometheus is set up as a plain user, or it is said why not. apt-get and dpkg-deb are scripts here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import needs, prometheus

APT = """\
#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
*download*) {download} ;;
*) {update} ;;
esac
"""
DOWNLOAD = "touch prometheus_2_amd64.deb"
DPKG_DEB = """\
#!/bin/sh
mkdir -p "$3/usr/bin"
for program in prometheus promtool; do
  printf '#!/bin/sh\\n{program}\\n' > "$3/usr/bin/$program"
  chmod +x "$3/usr/bin/$program"
done
exit {code}
"""
UNREACHABLE = """\
Err:1 http://mirror.example/debian bookworm InRelease
W: Failed to fetch http://mirror.example/debian/dists/bookworm/InRelease  Temporary failure resolving 'mirror.example'
W: Some index files failed to download. They have been ignored, or old ones used instead."""


class Apt:
    """Puts its scripts into a folder of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def install(self, update: str = ":", download: str = DOWNLOAD, program: str = "exit 0", code: int = 0) -> None:
        self.write("apt-get", APT.format(update=update, download=download))
        self.write("dpkg-deb", DPKG_DEB.format(program=program, code=code))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """Nothing on PATH yet but what shell scripts call."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("mkdir", "touch", "chmod", "cat"):
        (bin_folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("LOG", str(bin_folder / "log"))
    monkeypatch.setattr(prometheus, "FOLDER", tmp_path / "cache" / "prometheus")
    return Apt(bin_folder)


def test_what_is_on_path_is_used_as_it_is(apt: Apt) -> None:
    for name in prometheus.PROGRAMS:
        apt.write(name, "#!/bin/sh\n")
    assert needs.provide_prometheus() is None
    assert [prometheus.find(name) for name in prometheus.PROGRAMS] == [
        str(apt.folder / name) for name in prometheus.PROGRAMS
    ]
    assert not prometheus.FOLDER.parent.exists()


def test_the_package_is_unpacked_in_the_cache(apt: Apt, capsys: pytest.CaptureFixture[str]) -> None:
    apt.install()
    assert needs.provide_prometheus() is None
    assert "Prometheus for the tests of the alert rules" in capsys.readouterr().out
    for name in prometheus.PROGRAMS:
        assert prometheus.find(name) == str(prometheus.FOLDER / name)
    assert [path.name for path in prometheus.FOLDER.parent.iterdir()] == ["prometheus"], "nothing else is left"


def test_once_it_is_there_nothing_is_downloaded(apt: Apt, capsys: pytest.CaptureFixture[str]) -> None:
    apt.install()
    for _ in range(2):
        assert needs.provide_prometheus() is None
    assert len(apt.log.read_text().splitlines()) == len(["update", "download"])
    assert capsys.readouterr().out.count("\n") == 1


def test_half_of_it_is_completed(apt: Apt) -> None:
    apt.install()
    prometheus.set_up()
    (prometheus.FOLDER / "promtool").unlink()
    assert not prometheus.is_there()
    assert needs.provide_prometheus() is None
    assert prometheus.is_there()


def test_apt_writes_into_the_cache_alone(apt: Apt) -> None:
    apt.install()
    prometheus.set_up()
    for line in apt.log.read_text().splitlines():
        folders = [word.split("=")[2] for word in line.split() if word.startswith("--option=Dir::")]
        assert len(folders) == 4
        assert all(folder.startswith(str(prometheus.FOLDER.parent) + os.sep) for folder in folders)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            {"update": f'echo "{UNREACHABLE}"', "download": "echo 'E: Unable to locate package'; exit 100"},
            "its package could not be downloaded (Temporary failure resolving 'mirror.example')",
        ),
        (
            {"download": "echo 'E: Failed to fetch http://a/p.deb  404  Not Found [IP: ::1 80]'; exit 100"},
            "its package could not be downloaded (404  Not Found [IP: ::1 80])",
        ),
        (
            {"download": "echo 'E: Unable to locate package prometheus'; exit 100"},
            "its package could not be downloaded (Unable to locate package prometheus)",
        ),
        ({"download": "exit 1"}, "its package could not be downloaded (apt-get gave no reason)"),
        ({"download": ":"}, "its package could not be downloaded (apt-get gave no reason)"),
        ({"code": 2}, "its package could not be unpacked"),
        ({"program": "exit 1"}, "prometheus of its package does not run here"),
    ],
)
def test_where_it_cannot_be_set_up_one_sentence_says_why(apt: Apt, script: dict[str, str], reason: str) -> None:
    apt.install(**script)  # type: ignore[arg-type]
    said = needs.provide_prometheus()
    assert said is not None
    assert f"could not be set up because {reason}: " in said
    assert said.endswith("(on Debian or Ubuntu, apt-get install prometheus)")
    assert "\n" not in said
    assert list(prometheus.FOLDER.parent.iterdir()) == []


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_where_apt_is_not_it_is_not_tried(apt: Apt, missing: str) -> None:
    apt.install()
    (apt.folder / missing).unlink()
    said = needs.provide_prometheus()
    assert said is not None
    assert "because only apt-get could download it, which is not here: put prometheus and promtool on PATH" in said
    assert not apt.log.exists()


def test_it_does_not_wait_for_ever(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    apt.install(update="read line < /dev/zero")
    monkeypatch.setattr(prometheus, "_TIMEOUT_S", 0.2)
    with pytest.raises(prometheus.SetUpError, match="apt-get did not end within 0 s"):
        prometheus.set_up()
