"""Answers of a pruned vLLM engine are those of transformers pruned by `sparsight.prune`, for every family and method served."""

import pytest
from checkpoints import picture, prompt, same

CLASS = ["fastervlm", "visionzip:contextual=2", "vispruner", "agile", "bat", "holov", "prunesid", "scope"]
"""Methods by the class token's attention, with score= for encoders without one."""
ONLY_CLASS = ["class_attention", "evit", "col_ln_rescue"]
OTHERS = [
    "divprune",
    "fps",
    "random",
    "hiprune",
    "cdpruner:text=none",
    "col_ln",
    "shannon",
    "renyi",
    "similarity",
    "k_medoids",
    "compose:score=col_ln",
]
SIZES = {"llava": [(56, 56), (80, 48), (48, 90)], "llava-next": [(56, 56), (110, 52), (100, 96)]}
SIZES["onevision"] = [(110, 52), (220, 160), (100, 96)]
LARGER = [(112, 112), (160, 96), (96, 180)]


def recipes(family):
    """Every method with a budget that leaves something to choose."""
    budget = {"llava-next": "tokens=20", "onevision": "tokens=60"}.get(family, "tokens=7")
    plain = family.startswith("qwen") or family == "onevision"
    names = (
        [*(f"{name},score=col_ln" if ":" in name else f"{name}:score=col_ln" for name in CLASS)] if plain else [*CLASS, *ONLY_CLASS]
    )
    names += [*OTHERS, *(["mix:attention=col_ln", "vscan:score=column_mean"] if plain else ["mix", "vscan"])]
    more = ["none", "divprune:keep=0.4"] if family == "llava" else ["none", "divprune:keep=0.4", "random:tokens=9999"]
    return [*(f"{name}{',' if ':' in name else ':'}{budget}" for name in names), *more]


def requests(family, own):
    """(recipe, text, images) of one, two and three images, of different sizes, behind short and long texts."""
    sizes, made = SIZES.get(family, LARGER), []
    for number, recipe in enumerate([own, *recipes(family)]):
        for images in (1 + number % 3, 1) if recipe in (own, "none") or number < 4 else (1 + number % 3,):
            pictures = [picture(10 * number + i, *sizes[(number + i) % 3]) for i in range(images)]
            made.append((recipe, prompt(family, 3 + 17 * (number % 3), images, seed=number), pictures))
    return made


def ask(llm, own, asked, new=12):
    from vllm import SamplingParams

    given = [
        {"prompt": text, "multi_modal_data": {"image": images}}
        | ({"mm_processor_kwargs": {"sparsight": recipe}} if recipe != own else {})
        for recipe, text, images in asked
    ]
    answers = llm.generate(given, SamplingParams(temperature=0, max_tokens=new), use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def test_answers_are_those_of_transformers(engine, reference):
    """All recipes mixed in one batch, then once more, when every cache knows the images."""
    family, own, llm = engine
    asked = requests(family, own)
    expected = [reference(family).answer(*one) for one in asked]
    assert len({tuple(answer) for answer in expected}) > len(expected) // 2, (
        "answers that do not depend on the request show nothing"
    )
    for _ in range(2):
        found = ask(llm, own, asked)
        wrong = [
            (recipe, text, answer, right)
            for (recipe, text, _), answer, right in zip(asked, found, expected, strict=True)
            if not same(answer, right)
        ]
        assert not wrong, f"{len(wrong)} of {len(asked)} answers differ: {wrong[:3]}"


def test_text_alone(engine, reference):
    from vllm import SamplingParams

    family, text = engine[0], prompt(engine[0], 9, 0)
    answers = engine[2].generate([text], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    assert same(list(answers[0].outputs[0].token_ids), reference(family).answer("none", text, [], new=8))


REFUSED = {
    "prumerge": "finds each image's count itself",
    "no_such:tokens=5": "no_such",
    "divprune:tokens=0": "at least 1",
    ("divprune",): "takes a recipe",
}


def test_refusals_leave_the_engine_alive(engine, reference):
    family, own, llm = engine
    text, images = prompt(family, 4, 1, seed=77), [picture(99, *SIZES.get(family, LARGER)[1])]
    for recipe, words in REFUSED.items():
        with pytest.raises(ValueError, match=words):
            ask(llm, own, [(recipe, text, images)])
    assert same(ask(llm, own, [(own, text, images)])[0], reference(family).answer(own, text, images))
