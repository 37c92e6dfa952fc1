"""vLLM plug-in: `vllm serve MODEL --hf-overrides '{"sparsight": RECIPE}'` prunes image tokens; entry point `vllm.general_plugins`."""
