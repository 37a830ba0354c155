"""Lines of a job out of its nodes' files: none twice, none lost, and never a whole long file in memory."""

from pathlib import Path

import pytest

from stagecoach.launch import local_logs
from stagecoach.launch.local_logs import NodeLogs, Tail


def test_lines_come_once_whole_and_in_order_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "node-0.log"
    lines = [f"supervisor says {number}" if number % 3 else f"[rank {number % 2}] line {number}" for number in range(200)]
    body = ("\n".join(lines) + "\nunfinished").encode()
    for piece in (23, 64, 1 << 20):
        monkeypatch.setattr(local_logs, "PIECE_BYTES", piece)
        logs, found = NodeLogs([file]), []
        for cut in (0, 1, 700, 701, len(body) - 3):
            file.write_bytes(body[:cut])
            found += logs.new_lines()
        file.write_bytes(body)
        found += logs.new_lines(is_last=True)
        found += logs.new_lines(is_last=True)
        assert found == [*(line for line in lines if not line.startswith("[rank")), "unfinished"]
        ranks = {rank: list(tail.lines) for rank, tail in logs.ranks.items()}
        assert ranks == {rank: [line[9:] for line in lines if line.startswith(f"[rank {rank}]")] for rank in (0, 1)}


def test_a_line_longer_than_a_piece_is_cut_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_logs, "PIECE_BYTES", 10)
    file = tmp_path / "node-0.log"
    file.write_bytes(b"x" * 25)
    logs = NodeLogs([file])
    assert list(logs.new_lines()) == ["x" * 10, "x" * 10]
    assert list(logs.new_lines(is_last=True)) == ["x" * 5]


@pytest.mark.parametrize(("lines", "shipped", "left"), [(5, 0, [2, 3, 4]), (5, 4, [4]), (5, 5, []), (5, 9, []), (2, 0, [0, 1]), (0, 0, [])])
def test_what_is_not_shipped_yet_is_the_end(lines: int, shipped: int, left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_logs, "KEPT_LINES", 3)
    tail = Tail()
    for number in range(lines):
        tail.add(str(number))
    assert tail.after(shipped) == [str(number) for number in left]
