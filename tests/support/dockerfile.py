"""Runs the Dockerfile without a container engine: what it copies, and what it runs.

Its absolute paths are moved under a folder of the test's own. The base image is a fresh virtual
environment of this Python, with this one's pip, in place of the one that the Dockerfile names.
Packages come from a cache (tests/support/wheels.py).
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pip

from tests.support.wheels import wheel_source

ROOT = Path(__file__).parents[2]
# The folders in the image that the Dockerfile makes.
MOVED = ("/build", "/opt/order-relay", "/var/lib/order-relay", "/srv/consumers")
STEP_LIMIT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word, its flags (``--from=…``) and the rest."""

    word: str
    flags: tuple[str, ...]
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest, split into words or read as JSON."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return self.rest.split()


class Dockerfile:
    """The file's stages, each a list of instructions without its FROM, and their base images."""

    def __init__(self, path: Path = ROOT / "Dockerfile") -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        self.arguments: dict[str, str] = {}
        self.bases: list[str] = []
        self.stages: list[list[Instruction]] = []
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if not line.strip():
                continue
            word, _, rest = line.strip().partition(" ")
            flags = []
            while rest.startswith("--") and word in ("COPY", "HEALTHCHECK"):
                flag, _, rest = rest.partition(" ")
                flags.append(flag)
                rest = rest.lstrip()
            if word == "ARG" and not self.stages:
                name, _, value = rest.partition("=")
                self.arguments[name] = value
            elif word == "FROM":
                base = re.sub(r"\$\{(\w+)\}", lambda found: self.arguments[found[1]], rest)
                self.bases.append(base.split()[0])
                self.stages.append([])
            else:
                self.stages[-1].append(Instruction(word, tuple(flags), rest.strip()))

    def last(self, word: str) -> Instruction:
        """The last such instruction of the final stage."""
        return [one for one in self.stages[-1] if one.word == word][-1]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the final stage."""
        pairs = (word.partition("=") for word in self.last("ENV").words)
        return {name: value for name, _, value in pairs}


class BuildContext:
    """The files of a folder that .dockerignore lets through."""

    def __init__(self, folder: Path = ROOT) -> None:
        ignored = folder / ".dockerignore"
        text = ignored.read_text(encoding="utf-8") if ignored.exists() else ""
        rules = [line.strip() for line in text.splitlines()]
        self._rules = [rule for rule in rules if rule and not rule.startswith("#")]
        self.folder = folder

    def lets_through(self, path: str) -> bool:
        """Whether a relative path is in the context: the last matching rule decides."""
        allowed = True
        for rule in self._rules:
            pattern = rule.removeprefix("!").removeprefix("/")
            if _fits(path, pattern):
                allowed = rule.startswith("!")
        return allowed

    def copy(self, source: str, target: Path) -> None:
        """Copy a file, or a folder's content, as COPY does.

        Raises:
            FileNotFoundError: There is no such file or folder.
        """
        start = self.folder / source
        files = [start] if start.is_file() else [one for one in start.rglob("*") if one.is_file()]
        allowed = [one for one in files if self.lets_through(str(one.relative_to(self.folder)))]
        if not allowed:
            raise FileNotFoundError(f"nothing to copy: {source}")
        for file in allowed:
            place = target if start.is_file() else target / file.relative_to(start)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)


def _fits(path: str, pattern: str) -> bool:
    """Whether a path, or a parent folder, matches; ``**/`` is any number of folders."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatch(one.rpartition("/")[2], pattern[3:]) for one in above)
    return any(
        fnmatch.fnmatch(one, pattern) and one.count("/") == pattern.count("/") for one in above
    )


class Build:
    """Runs the file under a folder.

    Attributes:
        commands: The RUN lines that ran.
        surroundings: Variables that this Python needs in place of the image's.
    """

    def __init__(self, dockerfile: Dockerfile, folder: Path) -> None:
        self.commands: list[str] = []
        self.surroundings = {"LD_LIBRARY_PATH": str(folder / "python" / "lib")}
        self._dockerfile = dockerfile
        self._folder = folder
        self._context = BuildContext()
        self._base = folder / "base"

    def moved(self, text: str) -> str:
        """Text with the image's paths replaced by those under the folder."""
        for path in MOVED:
            text = re.sub(rf"(?<![\w/]){path}(?![\w-])", f"{self._folder}{path}", text)
        return text

    def run(self) -> None:
        """Run every stage."""
        python = _python_for_all(self._folder / "python")
        subprocess.run([python, "-m", "venv", "--without-pip", self._base], check=True)
        (packages,) = self._base.glob("lib/python3*/site-packages")
        # A new installation by venv takes longer than the rest of this build.
        shutil.copytree(Path(pip.__file__).parent, packages / "pip")
        for stage in self._dockerfile.stages:
            here = self._folder
            for one in stage:
                if one.word == "WORKDIR":
                    here = Path(self.moved(one.rest))
                    here.mkdir(parents=True, exist_ok=True)
                elif one.word == "COPY":
                    self._copy(one, here)
                elif one.word == "RUN":
                    self._run(one.rest, here)

    def extend(self, dockerfile: Dockerfile, context: Path) -> None:
        """Run a file that starts from this image, in its own build context."""
        self._context = BuildContext(context)
        for one in dockerfile.stages[-1]:
            if one.word == "COPY":
                self._copy(one, self._folder)

    def _copy(self, one: Instruction, here: Path) -> None:
        *sources, target = one.words
        if any(flag.startswith("--from=") for flag in one.flags):
            # Copied from an earlier stage to the same path: it is there already.
            assert sources == [target], one
            assert Path(self.moved(target)).is_dir(), one
            return
        for source in sources:
            is_folder = target.endswith("/") or target in (".", "./")
            place = here / self.moved(target)
            if is_folder:
                place /= Path(source).name
            self._context.copy(source, place)

    def _run(self, command: str, here: Path) -> None:
        # Docker runs them as root; a test may not be.
        owned = "" if os.geteuid() == 0 else re.sub(r" -[og] \d+", "", command)
        environment = {
            "PATH": f"{self._base}/bin:{os.environ['PATH']}", "HOME": str(self._folder),
            "LANG": "C.UTF-8", **self.surroundings,
        }  # fmt: skip
        # The package index and its proxy are settings of this machine.
        environment |= {
            name: value
            for name, value in os.environ.items()
            if name.upper().startswith(("PIP_", "SSL_CERT", "REQUESTS_CA", "HTTP", "NO_PROXY"))
        } | wheel_source()
        done = subprocess.run(
            ["/bin/sh", "-c", self.moved(owned or command)],
            cwd=here,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=STEP_LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        self.commands.append(command)


def _python_for_all(folder: Path) -> Path:
    """This Python, or a copy if it is in a home folder that other users cannot read."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = Path(sys.base_prefix)
    if all(one.stat().st_mode & 0o001 for one in (home, *home.parents)):
        return home / "bin" / name
    kept_out = shutil.ignore_patterns("site-packages", "test", "__pycache__", "idlelib", "config-*")
    shutil.copytree(home / "lib" / name, folder / "lib" / name, ignore=kept_out)
    (folder / "bin").mkdir()
    for library in home.glob("lib/libpython*.so*"):
        shutil.copy2(library, folder / "lib", follow_symlinks=False)
    shutil.copy2(home / "bin" / name, folder / "bin" / name)
    return folder / "bin" / name
