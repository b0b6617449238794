"""Builds what a release consists of into ``dist/`` and publishes nothing: ``make release``.

Wheel, source, chart and bill of materials of the last commit, and their sha256 sums. All of them
are reproducible: the same commit gives the same bytes. Where Docker or Podman runs, it also builds
the image.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = Path("deploy/helm/order-relay")
SUMS = "SHA256SUMS"
ENGINE_LIMIT_SECONDS = 30


class CannotRelease(Exception):
    """Why there is no release; one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a release; return the exit status."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--no-image", action="store_true", help="build no image")
    given = parser.parse_args(arguments)
    try:
        release(given.output.resolve(), image=not given.no_image)
    except CannotRelease as error:
        sys.stderr.write(f"release: {error}\n")
        return 1
    return 0


def release(output: Path, *, image: bool) -> None:
    """Build everything into a folder, whose release files of before are removed.

    Raises:
        CannotRelease: Versions differ, or a tool failed.
    """
    epoch = _epoch()
    with tempfile.TemporaryDirectory(prefix="order-relay-") as temporary:
        source = Path(temporary) / "source"
        _check_out(source)
        version = check_versions(source)
        _clear(output)
        _build_packages(source, output, epoch)
        chart = output / f"{CHART.name}-{version}.tgz"
        _write_archive(chart, _chart_members(source), epoch)
        _write_bill_of_materials(source, output / f"{CHART.name}-{version}.cdx.json", epoch)
        _write_sums(output)
        if image:
            _build_image(source, version, epoch)
    for path in sorted(output.iterdir()):
        _say(f"{path.name}: {path.stat().st_size:,} bytes")


def check_versions(source: Path) -> str:
    """Return the version, which all files must agree on and the changelog must have a section of.

    Raises:
        CannotRelease: They differ, or the section is missing.
    """
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    version: str = project["project"]["version"]
    chart = CHART / "Chart.yaml"
    for name, pattern in (
        ("order_relay/version.py", r'^VERSION = "(.+)"$'),
        (str(chart), r"^version: (.+)$"),
        (str(chart), r"^appVersion: (.+)$"),
    ):
        found = re.search(pattern, (source / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            other = found[1] if found else "missing"
            raise CannotRelease(
                f"pyproject.toml has version {version}, and in {name} it is {other}"
            )
    changes = (source / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[?{re.escape(version)}\]?( |$)", changes, re.MULTILINE):
        raise CannotRelease(
            f"CHANGELOG.md has no section '## {version}': name the unreleased changes after it, "
            "or change the version"
        )
    return version


# --- what is built --------------------------------------------------------------------------------


def _check_out(target: Path) -> None:
    """Write the files of the last commit: what is not committed is in no release."""
    target.mkdir()
    archive = _run("git", "archive", "--format=tar", "HEAD", what="git archive")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    if _run("git", "status", "--porcelain", what="git status").strip():
        _say("uncommitted changes are not in the release")


def _build_packages(source: Path, output: Path, epoch: int) -> None:
    """Build wheel and sdist with the locked setuptools, which is installed."""
    for kind in ("wheel", "sdist"):
        _run(
            *(sys.executable, "-c"),
            f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])",
            str(output),
            what=f"building the {kind}",
            folder=source,
            epoch=epoch,
        )
    # Setuptools gives an sdist the times and owners of this machine.
    (sdist,) = output.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        members = [
            (one.name, file.read(), one.mode)
            for one in tar.getmembers()
            if (file := tar.extractfile(one)) is not None
        ]
    _write_archive(sdist, members, epoch)


def _chart_members(source: Path) -> list[tuple[str, bytes, int]]:
    """Return the chart's files as Helm packages them: under the chart's name."""
    folder = source / CHART
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".helmignore"]
    return [
        (f"{CHART.name}/{path.relative_to(folder).as_posix()}", path.read_bytes(), 0o644)
        for path in files
    ]


def _write_archive(path: Path, members: Iterable[tuple[str, bytes, int]], epoch: int) -> None:
    """Write a tar.gz that has nothing of this machine in it: sorted, one time, no owner."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, mode in sorted(members):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), epoch, 0o755 if mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=epoch))


def _write_bill_of_materials(source: Path, path: Path, epoch: int) -> None:
    """Write the locked packages that a worker runs with, as CycloneDX."""
    _run(
        *(sys.executable, "-m", "cyclonedx_py", "requirements", "requirements/run.txt"),
        *("--pyproject", "pyproject.toml", "--output-reproducible", "--validate"),
        *("--output-format", "JSON", "--output-file", str(path)),
        what="writing the bill of materials",
        folder=source,
        epoch=epoch,
    )


def _write_sums(output: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(output.iterdir())
        if path.is_file()
    ]
    (output / SUMS).write_text("".join(lines), encoding="utf-8")


def _build_image(source: Path, version: str, epoch: int) -> None:
    for engine in ("docker", "podman"):
        if shutil.which(engine) and _answers(engine):
            tag = f"order-relay:{version}"
            _run(
                *(engine, "build", "--tag", tag, "."),
                what=f"{engine} build",
                folder=source,
                epoch=epoch,
            )
            _say(f"image {tag}, built by {engine}")
            return
    _say("no image: neither Docker nor Podman runs here")


# --- tools ----------------------------------------------------------------------------------------


def _epoch() -> int:
    """Return SOURCE_DATE_EPOCH, or else the time of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    text = given or _run("git", "log", "-1", "--format=%ct", what="git log").decode()
    try:
        return int(text)
    except ValueError:
        raise CannotRelease(f"SOURCE_DATE_EPOCH={text!r} must be seconds since 1970") from None


def _clear(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for pattern in ("order_relay-*", "order-relay-*", SUMS):
        for old in output.glob(pattern):
            old.unlink()


def _answers(engine: str) -> bool:
    try:
        done = subprocess.run(
            [engine, "info"], capture_output=True, check=False, timeout=ENGINE_LIMIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _run(*command: str, what: str, folder: Path = ROOT, epoch: int | None = None) -> bytes:
    """Run a command to its end and return its output.

    Raises:
        CannotRelease: It failed; with its last line.
    """
    environment = os.environ | ({} if epoch is None else {"SOURCE_DATE_EPOCH": str(epoch)})
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, check=False
        )
    except OSError as error:
        raise CannotRelease(f"{what} failed: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise CannotRelease(f"{what} failed: {said[-1] if said else done.returncode}")
    return done.stdout


def _say(line: str) -> None:
    sys.stdout.write(f"release: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
