"""What lmms-eval asks of a task: which questions, and the picture and the text of each."""

from PIL import Image

from sparsight.load import demo_vlm


def yes_no(docs):
    return docs.filter(lambda doc: doc["kind"] == "yes_no")


def picture(doc):
    with Image.open(demo_vlm.FOLDER / doc["image"]) as image:
        return [image.convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
