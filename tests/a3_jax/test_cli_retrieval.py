"""`a3 evaluate --workload retrieval` on a small encoder and made-up speeches."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from a3_jax.cli import main
from a3_jax.cli.retrieval import MODEL, SPEECHES
from tests.a3_jax.small_encoders import CONFIG, random_tensors, write_encoder

SENTENCE = "A b c d e f g h i j k l m."  # 13 words and a mark


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of MiniLM's lengths, in 26 words."""
    folder = tmp_path_factory.mktemp("data")
    model, speeches = folder / MODEL, folder / SPEECHES
    for place in (model, speeches):
        place.mkdir(parents=True)
    tensors = random_tensors()
    name = "embeddings.position_embeddings.weight"
    tensors[name] = tensors[name].repeat(20, axis=0)[:320]
    write_encoder(model, tensors, max_position_embeddings=320)
    words = ["[UNK]", "[CLS]", "[SEP]", ".", *(chr(97 + letter) for letter in range(26))]
    assert len(words) <= CONFIG["vocab_size"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.save(str(model / "tokenizer.json"))
    for number in range(2):
        (speeches / f"{number}.txt").write_text(" ".join([SENTENCE] * 20), encoding="utf-8")
    return folder


def test_json_has_accuracy_and_cost_of_every_setting(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--workload", "retrieval", "--data", str(data), "--passages", "2", "--M", "n/4", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passages"], report["speeches"]) == (2, 2)
    assert [row["setting"]["name"] for row in report["settings"]] == ["exact", "M = 0.25 n"]
    exact, approximate = report["settings"]
    # 19 sentences of 14 tokens are the fewest that have 256 with those at the ends, and one more is held out.
    lengths = (19 * 14 + 2, 14 + 2)
    assert exact["mean"]["n"] == pytest.approx(sum(n**2 for n in lengths) / sum(lengths))
    assert exact["recall_at_10"] == 1
    assert exact["mean"]["K"] == exact["mean"]["n"]
    assert approximate["mean"]["M"] == pytest.approx(exact["mean"]["n"] / 4, rel=0.01)
    for row in report["settings"]:
        assert min(row["cycles_per_query"], row["joules_per_query"], row["bytes_per_query"]) > 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--passages", "1"], "--passages should be at least 2, got 1"),
        (["--passages", "3"], "has 2 passages, wanted 3"),
        (["--arithmetic", "fixed", "--f", "8"], "running_sum of 160 iterations needs 32 bits"),
        (["--T", "0"], "T: wanted"),
        (["--data", "/nowhere"], "config.json is missing"),
    ],
)
def test_what_a_user_can_mend(
    data: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--workload", "retrieval", "--data", str(data), *options]) == 2
    assert complaint in capsys.readouterr().err
