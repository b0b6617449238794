"""``make release``: its files are complete, have the version, and are reproducible."""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from order_relay.version import VERSION
from scripts.release import CannotRelease, check_versions
from tests.support.chart import helm, unavailable_reason
from tests.support.wheels import wheel_source

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / "requirements" / name for name in ("build.txt", "release.txt")]
LIMIT_SECONDS = 300
COMMITTED = "1767225600"
CHART = "deploy/helm/order-relay/Chart.yaml"
REASON = unavailable_reason()

pytestmark = [
    pytest.mark.timeout(LIMIT_SECONDS),
    pytest.mark.xdist_group("release"),  # it is built once
]


def _run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository, whose changelog has a section for the version."""
    folder = tmp_path_factory.mktemp("release") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    changes = folder / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8")
    if f"## {VERSION}" not in text:
        changes.write_text(text.replace("## Unreleased", f"## {VERSION} - 2026-01-01", 1))
    author = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    for command in (
        ("init", "--quiet"),
        ("add", "--all"),
        (*author, "commit", "--quiet", "--message", "A release"),
    ):
        done = _run("git", *command, folder=folder, GIT_COMMITTER_DATE=f"{COMMITTED} +0000")
        assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def dist(checkout: Path) -> Path:
    """``make release``'s output."""
    done = _run(*("make", "release", "ARGS=--no-image"), folder=checkout, **wheel_source(LOCKS))
    assert done.returncode == 0, done.stdout
    return checkout / "dist"


def test_everything_is_built_with_its_sum(dist: Path) -> None:
    """Wheel, source, chart and bill of materials, and a file of matching checksums."""
    names = {path.name for path in dist.iterdir()}
    assert names == {
        "SHA256SUMS", f"order-relay-{VERSION}.cdx.json", f"order-relay-{VERSION}.tgz",
        f"order_relay-{VERSION}-py3-none-any.whl", f"order_relay-{VERSION}.tar.gz",
    }  # fmt: skip
    done = _run("sha256sum", "--check", "--strict", "SHA256SUMS", folder=dist)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == len(names) - 1


def test_the_same_commit_gives_the_same_bytes(checkout: Path, dist: Path) -> None:
    """A second release has the same checksums; archives have no local user or time."""
    first = (dist / "SHA256SUMS").read_text(encoding="utf-8")
    again = _run(
        *(".venv-release/bin/python", "-m", "scripts.release", "--no-image"), folder=checkout
    )
    assert again.returncode == 0, again.stdout
    assert (dist / "SHA256SUMS").read_text(encoding="utf-8") == first
    for archive in (*dist.glob("*.tgz"), *dist.glob("*.tar.gz")):
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
        assert members
        assert {(one.uid, one.gid, one.uname, one.mtime) for one in members} == {
            (0, 0, "", int(COMMITTED))
        }


def test_packages_have_the_engine_alone(dist: Path) -> None:
    """The source has the package and no application; test_package checks the wheel."""
    with tarfile.open(dist / f"order_relay-{VERSION}.tar.gz") as tar:
        tops = {Path(name).parts[1] for name in tar.getnames()}
    assert {"order_relay", "pyproject.toml", "LICENSE"} <= tops
    assert not {"app", "agents", "tables", "demo", "deploy"} & tops


def test_the_bill_of_materials_has_each_locked_package(dist: Path) -> None:
    """It is CycloneDX, and lists the relay's version and the packages of the lock file."""
    bill = json.loads((dist / f"order-relay-{VERSION}.cdx.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    relay = bill["metadata"]["component"]
    assert (relay["name"], relay["version"]) == ("order-relay", VERSION)
    listed = {f"{one['name']}=={one['version']}" for one in bill["components"]}
    locked = {
        line.split()[0]
        for line in (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    assert listed == locked
    assert all(one["purl"].startswith("pkg:pypi/") for one in bill["components"])


def test_the_chart_is_the_one_in_the_repository(dist: Path) -> None:
    """The archive has the chart's files, under the chart's name."""
    folder = ROOT / "deploy" / "helm" / "order-relay"
    with tarfile.open(dist / f"order-relay-{VERSION}.tgz") as tar:
        packed = {one.name: tar.extractfile(one) for one in tar.getmembers()}
        contents = {name: (file or io.BytesIO()).read() for name, file in packed.items()}
    assert contents == {
        f"order-relay/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".helmignore"
    }


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_helm_takes_the_chart(dist: Path) -> None:
    """Helm reads the archive's description."""
    done = helm("show", "chart", dist / f"order-relay-{VERSION}.tgz")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["version"] == VERSION


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("CHANGELOG.md", f"## {VERSION}", "## Next"), f"has no section '## {VERSION}'"),
        (("order_relay/version.py", VERSION, "9.9.9"), "in order_relay/version.py it is 9.9.9"),
        ((CHART, f"version: {VERSION}", "version: 9.9.9"), "Chart.yaml it is 9.9.9"),
    ],
)
def test_versions_must_agree(
    checkout: Path, tmp_path: Path, change: tuple[str, str, str], said: str
) -> None:
    """One line names the file with another version or without its section."""
    for file in ("pyproject.toml", "CHANGELOG.md", "order_relay/version.py", CHART):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / file, tmp_path / file)
    assert check_versions(tmp_path) == VERSION
    name, old, new = change
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CannotRelease, match=re.escape(said)):
        check_versions(tmp_path)
