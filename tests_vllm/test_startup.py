"""vLLM's own configuration objects, before anything is loaded: what is refused there, in one clear line."""

import pytest

MODES = [
    ("llava", "prumerge", {}, "finds each image's count itself"),
    ("llava", "fastervlm:tokens=5", {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, "some heads only"),
    ("qwen2.5", "none", {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline_parallel_size"),
    ("qwen3", "none", {"video_pruning_rate": 0.5}, "video_pruning_rate"),
    ("llava", None, {}, None),
    ("llava", None, {"mm_processor_kwargs": {"sparsight": "divprune:tokens=5"}}, "needs --hf-overrides"),
    ("llava", "divprune:tokens=5", {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, None),
    ("qwen2.5", "fastervlm:tokens=5,score=col_ln", {"mm_encoder_tp_mode": "data"}, "an order of its own"),
]


@pytest.mark.parametrize(("family", "recipe", "modes", "words"), MODES, ids=[f"{f}-{r}-{'-'.join(m)}" for f, r, m, _ in MODES])
def test_configuration(family, recipe, modes, words, folder):
    from vllm.engine.arg_utils import EngineArgs

    overrides = {} if recipe is None else {"sparsight": recipe}
    args = EngineArgs(str(folder(family)), dtype="float32", enforce_eager=True, max_model_len=512, hf_overrides=overrides, **modes)
    if words is None:
        args.create_engine_config()
        return
    with pytest.raises(ValueError, match=words):
        args.create_engine_config()
