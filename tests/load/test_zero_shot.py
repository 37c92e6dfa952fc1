"""Zero-shot classification with tiny image-text models that are saved on the spot, and the named data sets."""

import json

import pytest
import torch
from compare_data import CLASSES, make_images

from sparsight.data.presets import PRESETS, find_preset
from sparsight.errors import PruneError
from sparsight.evaluation.evaluate import evaluate
from sparsight.load.zero_shot import load_dual, text_classifier

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
TEMPLATES = ["a photo of a {}.", "the {}."]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny CLIP, a tokenizer of letters and an image processor."""
    tf = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz.,"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {word: index for index, word in enumerate(words)}
    last = len(words) - 1
    text = {
        **SHAPE,
        "vocab_size": len(words),
        "max_position_embeddings": 24,
        "eos_token_id": last,
        "pad_token_id": last,
        "bos_token_id": last - 1,
    }
    torch.manual_seed(0)
    model = tf.CLIPModel(
        tf.CLIPConfig(text_config=text, vision_config={**SHAPE, "image_size": 32, "patch_size": 4}, projection_dim=16)
    )
    model.save_pretrained(folder)
    tf.CLIPTokenizer(vocab=ids, merges=[]).save_pretrained(folder)
    tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_zero_shot_is_the_models_own_logits(clip, images, tmp_path):
    """With one template, logits are those that transformers' own forward gives."""
    import transformers as tf
    from torchvision.datasets import ImageFolder

    done = evaluate(str(clip), images, ["evit:keep=0.5,layers=1/2"], tmp_path, mode="zero-shot", templates=TEMPLATES[:1])
    model, tokenizer = tf.CLIPModel.from_pretrained(clip).eval(), tf.AutoTokenizer.from_pretrained(clip)
    processor = tf.AutoImageProcessor.from_pretrained(clip)
    data = ImageFolder(str(images))
    words = tokenizer([TEMPLATES[0].format(name) for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(images=[image for image, _ in data], return_tensors="pt")["pixel_values"]
        logits = model(pixel_values=pixels, **words).logits_per_image
    right = (logits.argmax(dim=1) == torch.tensor(data.targets)).double().mean().item()
    assert done.score().top1.value == right
    lines = (tmp_path / "predictions.csv").read_text().splitlines()[1 : 1 + len(data)]
    assert [int(line.split(",")[3]) for line in lines] == logits.argmax(dim=1).tolist()
    chances = torch.tensor([float(line.split(",")[5]) for line in lines])
    assert torch.allclose(chances, logits.softmax(dim=1).amax(dim=1), atol=1e-4)
    assert done.score("evit:keep=0.5,layers=1/2").tokens == [33, 18]
    assert any("3 class names in 1 templates" in note for note in done.notes)


def test_the_classifier_is_the_mean_over_templates(clip):
    dual = load_dual(str(clip))
    rows = dual.classifier(CLASSES, TEMPLATES)
    single = [dual.classifier(CLASSES, [template]) for template in TEMPLATES]
    assert torch.allclose(rows, torch.nn.functional.normalize(sum(single), dim=-1), atol=1e-6)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))


def test_templates_as_functions_and_bad_ones():
    def encode(texts):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    assert torch.equal(text_classifier(encode, ["ab"], ["x{}"]), text_classifier(encode, ["ab"], [lambda name: f"x{name}"]))
    with pytest.raises(PruneError, match=r"has no \{\} for the class name"):
        text_classifier(encode, ["ab"], ["a photo"])
    with pytest.raises(PruneError, match="got 0 and 1"):
        text_classifier(encode, [], ["{}"])


def test_open_clip(tmp_path, images):
    """The same through open_clip, against its own classifier builder."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    shape = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}}
    shape["text_cfg"] = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(shape))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-for-tests").eval()
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    name = f"open_clip:tiny-for-tests@{tmp_path / 'tiny.safetensors'}"
    dual = load_dual(name)
    peer = open_clip.build_zero_shot_classifier(model, open_clip.get_tokenizer("tiny-for-tests"), CLASSES, TEMPLATES)
    assert torch.allclose(dual.classifier(CLASSES, TEMPLATES), peer.T, atol=1e-5)
    done = evaluate(name, images, ["col_ln:keep=0.5,layers=1"], tmp_path / "out", mode="zero-shot")
    assert done.score("col_ln:keep=0.5,layers=1").tokens == [8]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny", "is no folder of one"),
        ("open_clip:ViT-B-32", "says no weights"),
        ("open_clip:ViT-B-32@a.bin", "pickle"),
        ("open_clip:ViT-B-32@a.safetensors", "no checkpoint file"),
    ],
)
def test_models_that_cannot_be_loaded(name, message):
    pytest.importorskip("open_clip")
    with pytest.raises(PruneError, match=message):
        load_dual(name)


def test_every_preset_has_prompts_and_a_layout():
    assert len(PRESETS) == 15
    pytest.importorskip("open_clip")
    for preset in PRESETS.values():
        assert preset.layout in str(preset)
        prompts = preset.prompts()
        assert all("{}" in prompt if isinstance(prompt, str) else "cat" in prompt("cat") for prompt in prompts)
        assert len(prompts) == (80 if preset.library == "imagenet" else 1)


@pytest.mark.parametrize(
    ("name", "count", "first"), [("imagenet", 1000, "tench"), ("imagenet-a", 200, "stingray"), ("imagenet-r", 200, "goldfish")]
)
def test_imagenets_names_and_synsets_go_together(name, count, first):
    pytest.importorskip("open_clip")
    pytest.importorskip("timm")
    preset = find_preset(name)
    names, keys = preset.classes([]), preset.keys()
    assert len(names) == len(keys) == len(set(keys)) == count
    assert names[0] == first
    assert names[keys.index("n01443537")] == "goldfish" if name != "imagenet-a" else keys[0] == "n01498041"


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("caltech101", "Motorbikes", "motorbike"),
        ("caltech101", "sea_horse", "sea horse"),
        ("eurosat", "SeaLake", "Sea or Lake"),
        ("ucf101", "ApplyEyeMakeup", "Apply Eye Makeup"),
        ("sun397", "a/apartment_building/outdoor", "outdoor apartment building"),
        ("stanford-cars", "Tesla Model S Sedan 2012", "2012 Tesla Model S Sedan"),
        ("food101", "apple_pie", "apple pie"),
    ],
)
def test_class_names_from_folders(name, folder, expected):
    assert find_preset(name).classes([folder]) == [expected]


def test_a_preset_maps_numbered_folders(clip, tmp_path):
    if not hasattr(pytest.importorskip("torchvision.datasets").Flowers102, "classes"):
        pytest.skip("this torchvision has no names of Oxford Flowers")
    make_images(tmp_path / "flowers", ("1", "102", "2"))
    done = evaluate(str(clip), tmp_path / "flowers", out=tmp_path / "out", mode="zero-shot", preset="oxford-flowers")
    labels = [line.split(",")[2] for line in (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]]
    assert labels == ["0", "0", "101", "101", "1", "1"]
    assert done.classes == 102


def test_synset_folders_need_a_preset(clip, tmp_path):
    make_images(tmp_path / "images", ("n01440764", "n01443537", "n01484850"))
    with pytest.raises(PruneError, match="give --preset imagenet"):
        evaluate(str(clip), tmp_path / "images", out=tmp_path / "out", mode="zero-shot")


def test_a_part_of_imagenets_classes_masks_the_other_logits():
    from sparsight.evaluation.study import only

    logits = torch.arange(6.0).view(1, 6)
    assert only(logits, [1, 3]).topk(2).indices.tolist() == [[3, 1]]
