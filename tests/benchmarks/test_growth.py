from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.workload import Shape, make_checkpoint

SMALL = Shape(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=600,
)


def test_each_size_that_fits_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SEQUENCES", (1, 4))
    monkeypatch.setattr(growth, "CONTEXTS", (16, 512))
    grown = growth.measure(make_checkpoint(tmp_path / "model", SMALL), SMALL, threads=1, kv_tokens=1024, steps=1)
    assert set(grown.model) == {(1, 16), (1, 512), (4, 16)}
    assert set(grown.engine) == {1, 4}
    assert all(ms > 0 for ms in (*grown.model.values(), *grown.engine.values()))
    assert grown.kv_bytes in (2 * 2 * 2 * 32, 2 * 2 * 2 * 32 * 2)  # layers, keys and values, 16 or 32 bits
    growth.draw(grown).savefig(tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert [column.header for column in growth.table(grown).columns] == [
        "sequences", "16 tokens", "512 tokens", "engine alone",
    ]  # fmt: skip
