"""Send a picture and a question to a vLLM server: python3 examples/ask_server.py [ADDRESS] [PICTURE] [QUESTION] [RECIPE]

`make serve-vllm` starts one on a tiny random model, which answers in random words. RECIPE is for this request only.
"""

import base64
import json
import sys
import urllib.request
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "src/sparsight/demo/images/butterfly/image_0074.jpg"


def main(address="http://127.0.0.1:8000", picture=PICTURE, question="What is in the picture?", recipe=None):
    url = "data:image/jpeg;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": 20, "temperature": 0}
    if recipe is not None:
        body["mm_processor_kwargs"] = {"sparsight": recipe}
    asked = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        said = json.load(answer)
    print(f"{said['choices'][0]['message']['content']} (prompt: {said['usage']['prompt_tokens']} tokens)")


if __name__ == "__main__":
    main(*sys.argv[1:])
