"""The tables in Markdown: medians for speed, sums for what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.trial import Killed, Speed


def speed_table(results: Mapping[float, Mapping[Peer, Sequence[Speed]]]) -> str:
    """Records a second and processor time by the sink's latency, order and loss over all runs."""
    heads = [f"{ms:g} ms: records/s | CPU us/record" for ms in results]
    lines = [
        f"| | version | {' | '.join(heads)} | order by key | lost | repeated |",
        f"|---|---|{'---|' * (2 * len(heads) + 3)}",
    ]
    for peer in next(iter(results.values())):
        runs = [run for by_peer in results.values() for run in by_peer[peer]]
        cells = [peer.name, peer.version]
        for by_peer in results.values():
            cells += _speed_cells(by_peer[peer])
        lost, repeated = sum(run.lost for run in runs), sum(run.repeated for run in runs)
        cells += [_order(runs), f"{lost:,}", f"{repeated:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kill_table(results: Mapping[Peer, Sequence[Killed]]) -> str:
    """What each kill cost."""
    lines = ["| | version | kills | lost | repeated |", "|---|---|---|---|---|"]
    for peer, runs in results.items():
        lost = " / ".join(f"{run.lost:,}" for run in runs)
        repeated = " / ".join(f"{run.repeated:,}" for run in runs)
        lines.append(f"| {peer.name} | {peer.version} | {len(runs)} | {lost} | {repeated} |")
    return "\n".join(lines)


def _speed_cells(runs: Sequence[Speed]) -> list[str]:
    if not runs:
        return ["failed", ""]
    return [
        f"{median(run.records_per_second for run in runs):,.0f}",
        f"{median(run.cpu_us for run in runs):.0f}",
    ]


def _order(runs: Sequence[Speed]) -> str:
    reordered = sum(run.reordered for run in runs)
    overlapping = sum(run.overlapping for run in runs)
    if not reordered and not overlapping:
        return "kept"
    return f"{reordered:,} late, {overlapping:,} at once"
