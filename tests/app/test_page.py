"""The page's server: what it answers and refuses, for several users at once, without writing a byte to disk."""

import os
import sys
import threading
from urllib.parse import urlencode

from loopback import bomb, form, picture

LOOK = "/look?" + urlencode([("model", "tiny"), ("recipe", "evit:keep=0.5,layers=0/1"), ("file", "a.png")])
OPENED: list[str] = []
ARMED = threading.Event()


def watch(event, given):
    """Files that are opened to be written while a test asks for it."""
    if event == "open" and ARMED.is_set() and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR):
        OPENED.append(str(given[0]))


def test_the_page_and_its_parts(client):
    status, text = client.ask("/")
    assert (status, text.startswith("<!doctype html>")) == (200, True)
    for name in ("page.js", "app.css", "icon.svg"):
        assert client.ask(f"/parts/{name}")[0] == 200
    for name in ("web.py", "..%2Fregistry.py", "nothing.js"):
        assert client.ask(f"/parts/{name}")[0] == 404
    for path in ("/docs", "/openapi.json", "/samples/photos/..%2F..", "/samples/nowhere/okapi"):
        assert client.ask(path)[0] == 404


def test_nothing_of_the_page_names_another_host():
    from sparsight.app.web import FILES, HEADERS, HERE

    for name in (*FILES, "index.html"):
        assert "//" not in (HERE / name).read_text().replace("http://www.w3.org/2000/svg", "").replace("// ", ""), name
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]
    assert {file.name for file in HERE.iterdir() if file.suffix in (".js", ".css", ".svg")} == set(FILES)


def test_choices(client):
    status, found = client.ask("/vision")
    assert status == 200
    assert [model["name"] for model in found["models"]] == ["tiny"]
    assert "okapi" in {sample["name"] for sample in found["samples"]}
    status, found = client.ask("/language")
    assert status == 200
    assert found["grid"] == [4, 4]
    assert {"divprune", "fastervlm"} <= {method["name"] for method in found["methods"]}


def test_answers(client):
    status, seen = client.ask(LOOK, picture(0))
    assert status == 200
    assert [len(seen["classes"]), len(seen["sides"])] == [5, 1]
    assert seen["sides"][0]["command"].startswith("sparsight show a.png ")
    status, costs = client.ask(LOOK.replace("/look", "/measure"), picture(0))
    assert (status, len(costs)) == (200, 2)
    status, talk = client.ask("/ask?question=what+is+it&recipe=divprune:tokens=4&sample=0003", b"")
    assert (status, [reply["tokens"] for reply in talk["replies"]]) == (200, [16, 4])
    status, seen = client.ask("/look?model=tiny&sample=okapi", b"")
    assert (status, seen["sides"]) == (200, [])


BAD = {
    "no picture": (b"", 400, "no picture was sent"),
    "text": (b"no image at all", 400, "not an image"),
    "broken": (picture(0, "JPEG")[:500], 400, "truncated file"),
    "a hundred megapixels": (bomb(10_000, 10_000), 400, "10000 x 10000 pixels: over 1000000 in all"),
    "too long": (b"x" * 300_001, 413, "more than the 300000 bytes"),
    "form": (form(picture(0))[0], 400, "not an image"),
}


def test_bad_uploads(client):
    for name, (body, status, said) in BAD.items():
        for path in (LOOK, "/ask?question=what+is+it"):
            found, answer = client.ask(path, body)
            assert (found, answer.keys()) == (status, {"error"}), name
            assert said in answer["error"].lower()
        assert client.ask(LOOK, picture(0))[0] == 200


def test_bad_words(client):
    for path, status, said in (
        ("/look?model=none", 400, "no model none here; this page has tiny"),
        ("/look?model=tiny&sample=none", 404, "no sample picture none"),
        ("/look?model=tiny" + "&recipe=evit" * 3, 400, "recipe"),
        ("/ask?question=", 400, "the question is empty"),
    ):
        found, answer = client.ask(path, picture(0))
        assert found == status
        assert said in answer["error"]


def test_other_sites_cannot_use_it(client):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        status, answer = client.ask(LOOK, picture(0), headers)
        assert (status, answer.keys()) == (403, {"error"})
    own = f"127.0.0.1:{client.port}"
    assert client.ask(LOOK, picture(0), {"Host": own, "Origin": f"http://{own}"})[0] == 200


def test_users_at_once_get_their_own_answers(client):
    recipes = ["evit:keep=0.5,layers=0", "col_ln:keep=0.25,layers=1", "tome:remove=9,layers=0/1", "random:keep=0.5,layers=1"]
    paths = ["/look?" + urlencode([("model", "tiny"), ("recipe", recipe)]) for recipe in recipes]
    alone = [client.ask(path, picture(number)) for number, path in enumerate(paths)]
    found = [[] for _ in paths]

    def use(place):
        for _ in range(5):
            found[place].append(client.ask(paths[place], picture(place)))

    threads = [threading.Thread(target=use, args=(place,)) for place in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[answer] * 5 for answer in alone]
    assert client.server.active == 0


def test_uploads_are_never_written(client):
    sys.addaudithook(watch)
    ARMED.set()
    try:
        assert client.ask(LOOK, picture(0, "BMP"))[0] == 200
        assert client.ask("/ask?question=what+is+it", picture(1))[0] == 200
        client.ask(LOOK, b"x" * 299_999)
    finally:
        ARMED.clear()
    assert [path for path in OPENED if path != os.devnull] == []
