"""Reading lines from a descriptor beside the loop."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.cli.publish import line_reader
from order_relay.cli.publish.line_reader import Line, LineReader

LIMIT_SECONDS = 30.0


async def read_all(descriptor: int, *, max_line_bytes: int = 1000) -> list[Line]:
    """Every line of a descriptor."""
    async with asyncio.timeout(LIMIT_SECONDS):
        reader = LineReader(descriptor, max_line_bytes=max_line_bytes)
        return [line async for batch in reader.batches() for line in batch]


def read_bytes(content: bytes, tmp_path: Path, *, max_line_bytes: int = 1000) -> list[Line]:
    """The lines of a file with that content."""
    path = tmp_path / "lines"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return asyncio.run(read_all(descriptor, max_line_bytes=max_line_bytes))
    finally:
        os.close(descriptor)


def test_blank_lines_count_and_are_left_out(tmp_path: Path) -> None:
    """Numbers are those an editor shows; line ends of any system are not part of a line."""
    content = b"\xef\xbb\xbffirst\r\n\n   \n  second \nlast without an end"
    assert read_bytes(content, tmp_path) == [
        Line(1, b"first"),
        Line(4, b"second"),
        Line(5, b"last without an end"),
    ]
    assert read_bytes(b"", tmp_path) == []


@given(
    pieces=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=30),
    chunk=st.integers(1, 40),
)
def test_chunks_do_not_matter(
    pieces: list[bytes], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With any chunks, lines over the limit are reported without their bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_reader, "CHUNK_BYTES", chunk)
        content = b"x\n" + b"\n".join(pieces)
        found = read_bytes(content, tmp_path_factory.mktemp("lines"), max_line_bytes=20)
    expected = []
    for number, piece in enumerate(content.split(b"\n"), 1):
        if len(piece) > 20:
            expected.append(Line(number, b"", too_long=True))
        elif stripped := piece.strip(b" \t\r"):
            expected.append(Line(number, stripped))
    assert found == expected


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that stays open, to read from and to write to."""
    both = os.pipe()
    yield both
    for descriptor in both:
        os.close(descriptor)


async def test_a_line_is_there_as_soon_as_it_is_written(pipe: tuple[int, int]) -> None:
    """A pipe that stays open does not delay its complete lines."""
    reading, writing = pipe
    found = LineReader(reading, max_line_bytes=1000).batches()
    async with asyncio.timeout(LIMIT_SECONDS):
        os.write(writing, b"one\ntwo\nthr")
        assert await anext(found) == [Line(1, b"one"), Line(2, b"two")]
        os.write(writing, b"ee\n")
        assert await anext(found) == [Line(3, b"three")]


async def test_stopping_while_nothing_comes(pipe: tuple[int, int]) -> None:
    """The wait for a line ends, though the pipe stays open and silent."""
    reading, writing = pipe
    reader = LineReader(reading, max_line_bytes=1000)
    waiting = asyncio.create_task(collect(reader))
    os.write(writing, b"one\n")
    await asyncio.sleep(0)
    reader.stop()
    async with asyncio.timeout(LIMIT_SECONDS):
        assert len(await waiting) <= 1


async def test_stopping_while_a_batch_is_in_use(pipe: tuple[int, int]) -> None:
    """The next wait does not begin: it might never end."""
    reading, writing = pipe
    reader = LineReader(reading, max_line_bytes=1000)
    found = reader.batches()
    os.write(writing, b"one\n")
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await anext(found) == [Line(1, b"one")]
        reader.stop()
        assert await anext(found, None) is None


async def collect(reader: LineReader) -> list[Line]:
    """Every line until the end."""
    return [line async for batch in reader.batches() for line in batch]


async def test_what_cannot_be_read(tmp_path: Path) -> None:
    """The system's error is raised where the lines are used."""
    descriptor = os.open(tmp_path, os.O_RDONLY)  # a folder
    try:
        with pytest.raises(IsADirectoryError):
            await read_all(descriptor)
    finally:
        os.close(descriptor)
