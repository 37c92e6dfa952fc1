"""The example that fine-tunes a pruned vision-language model runs on a tiny LLaVA, and what it saves can be used."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from lvlms import build
from PIL import Image
from test_lvlm_processors import photo, processor

import sparsight

FILE = Path(__file__).parents[2] / "examples" / "train_lvlm.py"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="examples are not part of an installed package")
PROMPT = "USER: <image> {} ASSISTANT:"


@pytest.fixture
def example():
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("train_lvlm", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lora_and_projector_learn_under_pruning(example, tmp_path):
    import peft

    build("llava").float().save_pretrained(tmp_path / "model")
    processor("llava").save_pretrained(tmp_path / "model")
    lines = []
    for index in range(4):
        Image.fromarray(photo(24, 20, index)).save(tmp_path / f"{index}.png")
        lines.append(
            {
                "image": str(tmp_path / f"{index}.png"),
                "question": "what is this ?",
                "answer": f"w2{index} w3{index}" + " w40" * (index % 2),
            }
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    trainer = example.main(
        str(tmp_path / "model"), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "col_ln:tokens=4", PROMPT, learning_rate=1e-2, max_steps=8,
        per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert sparsight.handle(trainer.model).counts == [4] * 4
    start, saved = build("llava").float(), peft.PeftModel.from_pretrained(build("llava").float(), tmp_path / "out").eval()
    moved = {name for name, p in saved.named_parameters() if "lora_B" in name and p.abs().sum() > 0}
    assert moved
    assert all("language_model" in name for name in moved)
    projector = dict(saved.named_parameters())[
        "base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.weight"
    ]
    assert not torch.equal(projector, start.model.multi_modal_projector.linear_1.weight)
