"""Fine-tune a pruned vision-language model, LoRA in its decoder and the projector whole: python examples/train_lvlm.py MODEL ROWS.jsonl OUT

A line of ROWS: {"image": "FILE", "question": "What is this?", "answer": "an okapi"}. Labels follow the pruning by themselves.
"""

import json
import sys
from pathlib import Path

import peft
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import sparsight


def main(name, rows, out, recipe="vispruner:tokens=64", prompt="USER: <image>\n{} ASSISTANT:", **settings):
    processor = AutoProcessor.from_pretrained(name)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(name)
    sparsight.prune(model, recipe)
    decoder = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=decoder, modules_to_save=["multi_modal_projector"]))

    def collate(batch):
        texts = [f"{prompt.format(row['question'])} {row['answer']}" for row in batch]
        given = processor(images=[[Image.open(row["image"])] for row in batch], text=texts, padding=True, return_tensors="pt")
        labels = given["input_ids"].clone()
        for row, line in zip(batch, labels):
            answer = len(processor.tokenizer(row["answer"], add_special_tokens=False)["input_ids"])
            line[:-answer] = -100  # the answer alone counts
        return {**given, "labels": labels}

    data = [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    arguments = TrainingArguments(out, remove_unused_columns=False, label_names=["labels"], **{"learning_rate": 1e-4, **settings})
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    model.save_pretrained(out)  # adapters and projector: peft.PeftModel.from_pretrained(model, out), then prune again
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
