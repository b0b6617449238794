"""What a 2xx to a batch says about each of its records; docs/how-to/batches.md has the forms."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from typing import Any

from order_relay.delivery.answer import Answer, Verdict, judge

MAX_ERROR_LENGTH = 1024
MAX_UNPACKED_BYTES = 16 * 1024 * 1024
# Words for a status of 2xx, in place of a number.
SUCCESS_WORDS = frozenset(
    {
        "accepted", "created", "delivered", "done", "indexed", "ingested", "ok", "processed",
        "queued", "received", "stored", "succeeded", "success", "successful", "true",
    }
)  # fmt: skip
# Fields that count or list the records that were not taken, such as ``failed`` of Axiom,
# ``num_rejected_docs`` of Quickwit, ``FailedRecordCount`` of Firehose and ``insertErrors`` of
# BigQuery; OTLP has them inside ``partialSuccess``.
_FAILURES = re.compile(
    r"(num|number|of|total|insert|parse)*(errors?|failed|failures?|reject(ed|ions?))"
    r"(log)?(docs?|documents?|records?|items?|events?|lines?|rows?|entries|messages?|orders?)?"
    r"(count|total|info)?|partialsuccess"
)
_NO_LETTER = re.compile("[^a-z]")
_GZIP = b"\x1f\x8b"
_JSON = json.JSONDecoder()


def item_answers(answer: Answer, count: int, redact: Callable[[str], str]) -> list[Answer]:
    """Return the answer for each record of a batch that got a 2xx, in their order.

    The body may be ``{"results": [{"status": 200}, {"status": 422, "error": "..."}]}``, or that
    list alone, with one entry for each record. Any other body of a 2xx means success for all, with
    these exceptions. It is a failed attempt for all if it is a 207, if its body was cut off and
    may have been results, if it begins as JSON and has ``"results`` or ``"status`` but cannot be
    read, if it has a status that is not 2xx, but not one for each record, or if it says that some
    records failed, but not which ones.

    Secrets are removed from the texts only, not from the whole body: a secret such as ``2`` may
    occur in a status, too.
    """
    text, is_cut = _text(answer)
    answers: list[Answer] = []
    entries: list[Any] = []
    decoded: Any = None
    may_be_cut = False
    try:
        # json reads what msgspec does not, for example half of a surrogate pair in a text. What
        # follows the value is ignored.
        decoded, _ = _JSON.raw_decode(text)
        results = decoded
        if isinstance(decoded, dict):
            results = decoded.get("results", decoded.get("items"))
        entries = results if isinstance(results, list) else []
        in_words = isinstance(decoded, dict)  # a list alone may repeat our own records
        found = (_item_answer(entry, redact, in_words=in_words) for entry in entries)
        answers = [one for one in found if one is not None]
    except (ValueError, RecursionError):
        # Without a length, the end of the connection may be that of a process that was killed.
        has_results = '"results' in text or '"status' in text
        may_be_cut = text[:1] in "[{" and (is_cut or has_results)  # also an empty one
    if len(answers) == len(entries) == count:
        return answers
    all_taken = all(one.verdict is Verdict.SUCCESS for one in answers)
    if answer.status != 207 and all_taken and not may_be_cut and not _tells_failures(decoded):
        return [answer] * count
    cut = ", its body was cut off" if is_cut else ""
    said = redact(text)[:200]
    detail = f"{answer.status} without a result for each of {count} records{cut}: {said!r}"
    return [Answer(Verdict.RETRYABLE, answer.status, detail)] * count


def _text(answer: Answer) -> tuple[str, bool]:
    """Return a body's text, and whether its end is missing."""
    body, is_cut = answer.body, answer.is_cut
    if body.startswith(_GZIP):  # although we ask for no coding
        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            body = unpack.decompress(body, MAX_UNPACKED_BYTES)
        except zlib.error:
            body = b""
        is_cut = is_cut or not unpack.eof
    return body.decode("utf-8", "replace").lstrip("\ufeff \t\r\n"), is_cut


def _item_answer(entry: Any, redact: Callable[[str], str], *, in_words: bool) -> Answer | None:
    """Return the answer that an entry is; ``None`` if it has no status.

    Args:
        entry: The entry.
        redact: Removes secrets.
        in_words: Whether a status may be a word, and ``success`` may be there in its place.
    """
    if isinstance(entry, dict) and len(entry) == 1:
        (inner,) = entry.values()  # {"index": {"status": 201}} of Elasticsearch
        entry = inner if isinstance(inner, dict) else entry
    if not isinstance(entry, dict):
        return None
    said = entry.get("status")
    if said is None and in_words and isinstance(entry.get("success"), bool):
        said = entry["success"]
    word = " ".join(str(said).split()[:1])
    try:
        status = max(0, min(int(float(word)), 999))  # also "422" and "422 Unprocessable Content"
    except (ValueError, OverflowError):
        if not in_words or not isinstance(said, str | bool) or not word:
            return None
        if word.lower() in SUCCESS_WORDS:
            return Answer(Verdict.SUCCESS, 200)
        verdict, number = Verdict.RETRYABLE, None
    else:
        verdict, number = judge(status), status
        if verdict is Verdict.SUCCESS:
            return Answer(verdict, number)
    error = entry.get("error", "" if number is not None else f"the result is {said!r}")
    if not isinstance(error, str):
        error = json.dumps(error, ensure_ascii=False, separators=(",", ":"))
    text = error.encode("utf-8", "replace").decode()
    return Answer(verdict, number, redact(text)[:MAX_ERROR_LENGTH])


def _tells_failures(decoded: Any) -> bool:
    """Whether a field at the top, such as ``failed``, is true, positive or not empty."""
    return isinstance(decoded, dict) and any(
        _FAILURES.fullmatch(_NO_LETTER.sub("", name.lower())) and _is_some(value)
        for name, value in decoded.items()
    )


def _is_some(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_some, value.values()))
    if isinstance(value, str):  # a number as text, not a message such as "none"
        return value.isdecimal() and int(value) > 0
    return bool(value) if isinstance(value, list | bool) else (value or 0) > 0
