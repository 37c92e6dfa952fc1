# %% [markdown]
# # My vision-language model
#
# A LLaVA or Qwen-VL answers a question from fewer image tokens. Here it is the small trained model of the package; put a folder or
# `OWNER/NAME` of the Hugging Face Hub in its place.

# %%
import torch
from PIL import Image

import sparsight
from sparsight.load.demo_vlm import pictures

loaded = sparsight.load_vlm("demo-vlm")
model, processor = loaded.model, loaded.processor
picture = Image.open(sorted(pictures().glob("*.jpg"))[0]).convert("RGB")


def ask(question: str) -> str:
    """The model's answer about the picture."""
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


print(ask("what is in the picture ?"))

# %% [markdown]
# ## Before the language model
#
# The placeholders of the tokens that left are taken out of the prompt; `generate` is called as before and returns what it always returns.

# %%
for recipe in ("divprune:tokens=64", "class_attention:tokens=64", "divprune:tokens=8"):
    with sparsight.prune(model, recipe) as handle:
        print(f"{recipe:26}  {ask('what is in the picture ?')}  ({handle.counts[0]} tokens)")

# %% [markdown]
# ## Inside the language model
#
# FastV drops hidden states before one decoder layer, so each layer's cache has a length of its own. It goes with a method in front of the
# language model.

# %%
with sparsight.prune(model, "divprune:tokens=64"), sparsight.prune(model, "fastv:keep=0.5,layer=2") as inner:
    print(ask("what is in the picture ?"), inner.counts)

# %% [markdown]
# ## Several questions
#
# What is lost first is detail. `sparsight evaluate-vlm demo-vlm --recipe divprune:tokens=32` asks all questions of the package.

# %%
for question in ("how many objects are there ?", "is there a crab in the picture ?"):
    whole = ask(question)
    with sparsight.prune(model, "divprune:tokens=8"):
        print(f"{question} {whole} / {ask(question)}")
