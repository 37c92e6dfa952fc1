"""vLLM's configuration as it would be on a GPU, without the plug-in, with it and no recipe, and with a recipe; as JSON on stdout.

    VLLM_PLUGINS= python tests_vllm/pretended_gpu.py FAMILY=FOLDER ...

vLLM is told of GPUs that are not there, which is enough for configuration: nothing is loaded or run.
"""

import json
import sys
from types import ModuleType

import torch
import vllm.platforms
from vllm.platforms.interface import DeviceCapability


def pretend():
    """Eight H100 of 80 GB."""
    sys.modules.setdefault("vllm._C_stable_libtorch", ModuleType("kernels"))  # which the build for CPUs has not got
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    class Pretended(NonNvmlCudaPlatform):
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(major=9, minor=0))
        get_device_name = classmethod(lambda cls, device_id=0: "NVIDIA H100 80GB HBM3")
        get_device_total_memory = classmethod(lambda cls, device_id=0: 80 * 2**30)
        device_count = classmethod(lambda cls: 8)

    vllm.platforms._current_platform = Pretended()
    from vllm.model_executor.models import registry

    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *given: None  # would import kernels for attention
    torch.cuda.is_available = lambda: True


def facts(folder, recipe=None):
    """What makes vLLM fast, of a server that was asked for graphs of the encoder as well."""
    from vllm.engine.arg_utils import EngineArgs

    overrides = {} if recipe is None else {"hf_overrides": {"sparsight": recipe}}
    asked = {"cudagraph_mm_encoder": True, "compile_mm_encoder": recipe is None}
    config = EngineArgs(folder, max_model_len=512, compilation_config=asked, **overrides).create_engine_config()
    compilation, model = config.compilation_config, config.model_config
    return {
        "async scheduling": config.scheduler_config.async_scheduling,
        "runner v2": config.use_v2_model_runner,
        "compilation": str(compilation.mode),
        "backend": compilation.backend,
        "graphs": str(compilation.cudagraph_mode),
        "sizes of graphs": compilation.cudagraph_capture_sizes,
        "fusions": str(compilation.pass_config),
        "encoder graphs": compilation.cudagraph_mm_encoder,
        "encoder compiled": compilation.compile_mm_encoder,
        "prefix caching": config.cache_config.enable_prefix_caching,
        "chunked prefill": config.scheduler_config.enable_chunked_prefill,
        "eager": model.enforce_eager,
        "encoder parallel": model.multimodal_config.mm_encoder_tp_mode,
    }


def main():
    pretend()
    families = dict(one.split("=", 1) for one in sys.argv[1:])
    found = {"without": {name: facts(folder) for name, folder in families.items()}}
    from sparsight.vllm_plugin.register import register

    register()
    found["unpruned"] = {name: facts(folder) for name, folder in families.items()}
    found["pruned"] = {name: facts(folder, "divprune:tokens=5") for name, folder in families.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
