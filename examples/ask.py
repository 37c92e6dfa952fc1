"""Ask a vision-language model about a picture, unpruned and pruned: python examples/ask.py [MODEL] [RECIPE] [PICTURE] [QUESTION]"""

import sys

import torch
from PIL import Image

import sparsight
from sparsight.load.demo_vlm import pictures


def main(model="demo-vlm", recipe="divprune:tokens=32", picture=None, question="what is in the picture ?"):
    loaded = sparsight.load_vlm(model)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = loaded.processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = loaded.processor(
        images=[Image.open(picture or pictures() / "0000.jpg").convert("RGB")], text=[prompt], return_tensors="pt"
    )

    def answer():
        with torch.no_grad():
            tokens = loaded.model.generate(**inputs, max_new_tokens=20, do_sample=False)
        return loaded.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

    print(f"unpruned: {answer()}")
    with sparsight.prune(loaded.model, recipe) as handle:
        print(f"{recipe}: {answer()} (from {handle.counts[0]} tokens)")


if __name__ == "__main__":
    main(*sys.argv[1:])
