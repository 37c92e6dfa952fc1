"""Real servers on loopback, one for each family: images over HTTP, a recipe by request, bad input, many clients, memory."""

import base64
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pytest
from checkpoints import picture, said, same
from conftest import FAMILIES, OPTIONS, OWN, ROOT
from PIL import Image

from benchmarks.serving import chat, data_url, free_port, vllm
from benchmarks.serving_vit import bomb

NEW = 12
"""Tokens of an answer."""
CLASS = ["fastervlm", "visionzip:contextual=2", "vispruner", "agile", "bat", "holov", "prunesid", "scope"]
"""Methods by the class token's attention, with score= for encoders without one."""
ONLY_CLASS = ["class_attention", "evit", "col_ln_rescue"]
OTHERS = ["divprune", "fps", "random", "hiprune", "cdpruner:text=none", "col_ln", "shannon", "renyi", "similarity", "k_medoids"]
OTHERS += ["compose:score=col_ln"]
SIZES = {"llava": [(56, 56), (80, 48), (48, 90)], "llava-next": [(56, 56), (110, 52), (100, 96)]}
SIZES["onevision"] = [(110, 52), (220, 160), (100, 96)]
LARGER = [(112, 112), (160, 96), (96, 180)]
FLAT = 40 * 2**20
"""Bytes that a server may grow by over a hundred requests, once a hundred have run."""


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


def requests(family):
    """(recipe, texts and images) with one, two and three images, of different sizes, behind short and long texts."""
    sizes, made = SIZES.get(family, LARGER), []
    for number, recipe in enumerate([OWN, *recipes(family)]):
        for images in (1 + number % 3, 1) if recipe in (OWN, "none") or number < 4 else (1 + number % 3,):
            pictures = [picture(10 * number + i, *sizes[(number + i) % 3]) for i in range(images)]
            made.append((recipe, [said(family, 3 + 17 * (number % 3), number), *pictures, said(family, 5, 50 + number)]))
    return made


def body(recipe, parts, new=NEW):
    """Of a request; the server's own recipe is not said."""
    urls = [part if isinstance(part, str) else data_url(part) for part in parts]
    return chat(urls, new, None if recipe == OWN else recipe, return_token_ids=True)


def png(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def ask(server, recipe, parts, new=NEW):
    """Token ids of the answer."""
    answer = server.post(body(recipe, parts, new))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, folder, start, tmp_path_factory):
    """A family and its server. LLaVA's is the one that `make serve-vllm` makes and starts, with the model in a process of its own."""
    family, port = request.param, free_port()
    if family == "llava":
        command = [
            "env",
            "VLLM_ENABLE_V1_MULTIPROCESSING=1",
            "make",
            "-C",
            str(ROOT),
            "-o",
            f"{sys.prefix}/.ready",
            "serve-vllm",
            f"VLLM={sys.prefix}",
        ]
        command += [f"PORT={port}", f"RECIPE={OWN}", f"TINY={tmp_path_factory.mktemp('made') / family}"]
    else:
        command = vllm(str(folder(family)), OWN, port, [*OPTIONS, *FAMILIES[family]])
    with start(family, command, port) as server:
        yield family, server


def test_answers_are_those_of_transformers(served, reference):
    """All recipes mixed, eight requests at once, then once more, when every cache knows the images."""
    family, server = served
    asked = requests(family)
    expected = [reference(family).answer(*one, NEW) for one in asked]
    assert len({tuple(answer) for answer in expected}) > len(expected) // 2, (
        "answers that do not depend on the request show nothing"
    )
    for _ in range(2):
        with ThreadPoolExecutor(8) as clients:
            found = list(clients.map(lambda one: ask(server, *one), asked))
        wrong = [
            (recipe, answer, right)
            for (recipe, _), answer, right in zip(asked, found, expected, strict=True)
            if not same(answer, right)
        ]
        assert not wrong, f"{len(wrong)} of {len(asked)} answers differ: {wrong[:3]}"


def test_text_alone(served, reference):
    family, server = served
    parts = [said(family, 9)]
    assert same(ask(server, OWN, parts), reference(family).answer("none", parts, NEW))


def test_bad_requests_leave_the_server_alive(served, reference):
    """Each gets an HTTP error with its reason, and the next request its right answer. That of a bomb is vLLM's own, 500 where it means 400."""
    family, server = served
    image = picture(99, *SIZES.get(family, LARGER)[1])
    url = data_url(image)
    bad = {
        "adaptive": (body("prumerge", ["w5", url]), 400, "finds each image's count itself"),
        "unknown method": (body("no_such:tokens=5", ["w5", url]), 400, "no_such"),
        "no tokens": (body("divprune:tokens=0", ["w5", url]), 400, "at least 1"),
        "no text for a recipe": (body({"tokens": 5}, ["w5", url]), 400, "takes a recipe"),
        "truncated image": (body(OWN, ["w5", url[:200]]), 400, ""),
        "no image": (body(OWN, ["w5", png(b"no picture")]), 400, ""),
        "too many pixels": (body(OWN, ["w5", png(bomb())]), 500, "exceeds limit"),
    }
    if family == "llava":
        bad["more tokens than there are"] = (body("divprune:tokens=99", ["w5", url]), 400, "more than the 16 tokens")
    for name, (given, status, words) in bad.items():
        answer = server.post(given)
        assert (name, answer.status_code) == (name, status), answer.text
        assert words in answer.text, (name, answer.text)
    parts = [said(family, 4), image]
    assert same(ask(server, OWN, parts), reference(family).answer(OWN, parts, NEW))


MIXED = [OWN, "fastervlm:tokens=5", "visionzip:tokens=6,contextual=2", "none"]
only_llava = pytest.mark.parametrize("served", ["llava"], indirect=True)


PHOTOS = sorted((ROOT / "src" / "sparsight" / "demo").rglob("*.jpg"))
MANY = 60
"""Different requests; each brings another of the package's pictures, every other one two of them."""


def request(number):
    """Recipe, texts and images."""
    photos = [Image.open(PHOTOS[(number + i) % len(PHOTOS)]).convert("RGB") for i in range(1 + number % 2)]
    return MIXED[number % len(MIXED)], [*photos, said("llava", 4 + number % 5, number)]


@pytest.fixture(scope="module")
def expected(reference):
    return lru_cache(maxsize=None)(lambda number: reference("llava").answer(*request(number), NEW))


@only_llava
def test_two_clients_mix_four_recipes(served, expected):
    with ThreadPoolExecutor(2) as clients:
        found = list(clients.map(lambda number: ask(served[1], *request(number)), range(32)))
    assert [number for number, answer in enumerate(found) if not same(answer, expected(number))] == []


@only_llava
def test_eight_clients_two_hundred_requests(served, expected):
    server = served[1]
    assert len(PHOTOS) >= 50
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda number: ask(server, *request(number % MANY)), range(100)))
        before = server.memory()
        found += clients.map(lambda number: ask(server, *request(number % MANY)), range(100, 200))
    after = server.memory()
    assert [number for number, answer in enumerate(found) if not same(answer, expected(number % MANY))] == []
    assert after - before < FLAT, f"{(after - before) / 2**20:.0f} MiB more"


@only_llava
def test_example_asks_the_server(served):
    """The example needs nothing but Python."""
    script = ROOT / "examples" / "ask_server.py"
    counts = []
    for recipe in ("none", "divprune:tokens=7"):
        given = [served[1].address, str(PHOTOS[0]), "w5 w6 w7", recipe]
        done = subprocess.run([sys.executable, "-S", str(script), *given], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        counts.append(int(done.stdout.rpartition("(prompt: ")[2].partition(" tokens")[0]))
    assert counts[0] - counts[1] == 16 - 7
