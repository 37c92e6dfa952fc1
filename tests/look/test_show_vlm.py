"""show() of vision-language models: tokens lie in the picture where the model saw them; what is asked is answered before and after."""

import pytest
import torch
from lvlms import build
from PIL import Image
from test_lvlm_processors import processor

from sparsight.errors import PruneError
from sparsight.load.vlms import LoadedVlm
from sparsight.look.show import show
from sparsight.prune import family_of, prune

pytest.importorskip("transformers")

PLACE = dict.fromkeys(("llava", "llava-dinov2", "llava-next", "onevision"), ("<image>", "<video>"))
PLACE["qwen2.5"] = tuple(f"<|vision_start|> <|{kind}_pad|> <|vision_end|>" for kind in ("image", "video"))
VIEWS = {
    "llava": [(4, 4)],
    "llava-dinov2": [(4, 4)],
    "llava-next": [(4, 4), (4, 8)],
    "onevision": [(4, 4), (6, 12)],
    "qwen2.5": [(5, 11)],
}
WIDE = Image.linear_gradient("L").resize((200, 90)).convert("RGB")


def loaded(name: str) -> LoadedVlm:
    """A tiny model, and its processor with a chat template."""
    made = processor(name)
    image, video = PLACE[name]
    made.chat_template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}" + image + " {% elif c['type'] == 'video' %}"
        + video + " {% else %}{{ c['text'] }} {% endif %}{% endfor %}ASSISTANT:{% endfor %}"
    )  # fmt: skip
    return LoadedVlm(name, build(name).float(), made)


@pytest.mark.parametrize(
    "name", [name if name in ("llava-next", "qwen2.5") else pytest.param(name, marks=pytest.mark.product) for name in VIEWS]
)
def test_tokens_lie_in_the_picture(name, tmp_path):
    """Every view has the model's own grid; what is left in the views is what the handle counts."""
    found = show(
        WIDE, loaded(name), ["divprune:tokens=9", "fastv:layer=1,keep=0.5"], tmp_path / "kept.png", question="what is this ?"
    )
    for cell in found.rows[0]:
        assert [view.sites[-1].owner.shape for view in cell.views] == VIEWS[name]
        assert cell.total == sum(h * w for h, w in VIEWS[name])
    first = found.rows[0][0]
    assert first.tokens == (9,)
    assert sum((view.sites[-1].owner >= 0).sum() for view in first.views) == 9
    assert first.before
    assert (tmp_path / "kept.png").stat().st_size > 1000


def test_views_hold_every_patch_once():
    """Also where padding is cut off: a tall picture in tiles."""
    opened = loaded("llava-next")
    call = opened.processor(images=[WIDE.rotate(90, expand=True)], text=["<image>"], return_tensors="pt")
    (views,) = family_of(opened.model).views("image", call)
    places = torch.cat([view.flatten() for view in views])
    with torch.no_grad(), prune(opened.model, "random:keep=0.5") as handle:
        opened.model(**call)
        newlines = handle.plans[0].total - len(places)
    assert [tuple(view.shape) for view in views] == [(4, 4), (8, 4)]
    assert newlines == 8
    assert len(places.unique()) == len(places)
    assert torch.equal(views[1].diff(dim=0), torch.full((7, 4), 5))  # a row of four tokens and its newline


@pytest.mark.product
def test_a_video_is_shown_frame_by_frame(tmp_path):
    frames = [WIDE.resize((64, 32)).rotate(20 * turn) for turn in range(8)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    cell = show(tmp_path / "clip.gif", loaded("qwen2.5"), "divprune:keep=0.3", question="what is this ?").rows[0][0]
    assert len(cell.views) == 4
    assert cell.parts == ": 4 frames"
    assert len({view.picture.tobytes() for view in cell.views}) == 4


def test_bad_input(tmp_path):
    opened = loaded("llava")
    (tmp_path / "text.png").write_text("no image")
    for image, recipe, more, message in (
        (tmp_path / "text.png", "divprune:tokens=9", {}, "cannot be read: not an image"),
        (WIDE, "divprune:tokens=99", {}, "more than the 16 tokens"),
        (WIDE, "divprune:tokens=9", {"transform": len}, "transform is for vision models"),
    ):
        with pytest.raises(PruneError, match=message):
            show(image, opened, recipe, **more)
