"""
Every example, through the real program: what its README promises is what a caller gets.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET
from zlib import compress, crc32

import pytest
from example_gate import EXAMPLES, ExampleGate, need, need_installed, need_module
from storage import Storage

if TYPE_CHECKING:
    from example_gate import Answer

pytestmark = pytest.mark.timeout(90)

_JSON = "application/json"
_SVG = "{http://www.w3.org/2000/svg}"


def _problem(answer: Answer) -> tuple[int, str, str]:
    """The status, slug and `executed` of a problem."""
    assert answer.headers["content-type"] == "application/problem+json"
    document = json.loads(answer.body)
    return answer.status, document["type"].removeprefix("/problems/"), document["executed"]


def _photograph() -> Path:
    """A real photograph of 512 by 600 pixels: matplotlib ships it."""
    matplotlib = need_module("matplotlib")
    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def test_jq(tmp_path: Path) -> None:
    """Two queues of jq: one passes JSON through, one reckons with it; neither can be stopped."""
    need("jq", "jq")
    with ExampleGate("jq", tmp_path) as gate:
        wanted = [{"n": n, "text": "é\n" * n} for n in range(12)]
        answers = gate.calls("compact", [json.dumps(w, indent=2) for w in wanted], _JSON)
        assert [json.loads(a.body) for a in answers] == wanted
        assert {a.headers["content-type"] for a in answers} == {_JSON}

        orders = [
            {"customer": "Ada", "price": 2.5, "quantity": 4},
            {"customer": "Bob", "price": 3, "quantity": 1},
            {"customer": "Ada", "price": 1, "quantity": 2},
        ]
        bodies = [json.dumps(orders), "no json", '{"a":1}', "[] []", ""]
        totals, *refused = gate.calls("totals", bodies)
        assert json.loads(totals.body) == [
            {"customer": "Ada", "orders": 2, "total": 12},
            {"customer": "Bob", "orders": 1, "total": 3},
        ]
        for answer in refused:
            assert answer.status == 200
            assert list(json.loads(answer.body)) == ["error"]

        assert _problem(gate.call("compact", "{", _JSON)) == (400, "bad-request", "no")
        assert _problem(gate.call("compact", "no json")) == (502, "worker-died", "maybe")
        assert gate.call("compact", "[1, 2]").text == "[1,2]"


def test_bc(tmp_path: Path) -> None:
    """The answer is the right one, however bc was left by the caller before."""
    need("bc", "bc")
    with ExampleGate("bc", tmp_path) as gate:
        assert gate.call("bc", "2^200").text == str(2**200)
        powers = gate.calls("bc", [f"{n}^{n}" for n in range(1, 33)])
        assert [a.text for a in powers] == [str(n**n) for n in range(1, 33)]
        assert len(gate.call("bc", "10^20000").text) == 20001
        assert gate.call("bc", "1; 2; 3").text == "1\n2\n3"
        assert "Divide by zero" in gate.call("bc", "1/0").text
        assert gate.call("bc", "x = 1").text == ""
        for _ in range(4):
            gate.call("bc", "obase = 2")
        assert {a.text for a in gate.calls("bc", ["10"] * 8)} == {"10"}
        assert _problem(gate.call("bc", "quit")) == (502, "worker-died", "maybe")
        assert _problem(gate.call("bc", "1\n2 +\n")) == (400, "bad-request", "no")
        assert gate.call("bc", "6 * 7").text == "42"


def test_exiftool(tmp_path: Path) -> None:
    """It knows the photograph; a path that is none is answered too, and none is an option."""
    need("exiftool", "libimage-exiftool-perl")
    photograph = _photograph()
    path = os.path.relpath(photograph, EXAMPLES / "exiftool")
    with ExampleGate("exiftool", tmp_path) as gate:
        for answer in gate.calls("exiftool", [path] * 6):
            assert answer.headers["content-type"] == _JSON
            (found,) = json.loads(answer.body)
            assert found["FileName"] == photograph.name
            assert found["MIMEType"] == "image/jpeg"
            assert (found["ImageWidth"], found["ImageHeight"]) == (512, 600)
            assert found["Comment"].endswith("/File:Grace_Hopper.jpg")
        pwned = tmp_path / "pwned"
        bad = ["nothing.jpg", "-ver", "# remark", f"touch {pwned} |", "/etc/passwd"]
        for answer in gate.calls("exiftool", bad):
            assert (answer.status, answer.body) == (200, b"")
        gate.says("File not found - ./-ver")
        assert not pwned.exists()
        mixed = gate.calls("exiftool", [path, "nothing.jpg"] * 6)
        assert [bool(a.body) for a in mixed] == [True, False] * 6


def test_thumbnail(tmp_path: Path) -> None:
    """Real JPEGs come back small, upright and decodable; what is no image gets 422."""
    image_module = need_module("PIL.Image")
    original = _photograph().read_bytes()
    photo = image_module.open(BytesIO(original))

    def saved(image: object, form: str = "JPEG", **options: object) -> bytes:
        out = BytesIO()
        image.save(out, form, **options)  # type: ignore[attr-defined]
        return out.getvalue()

    exif = image_module.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees clockwise when shown
    turned = saved(photo.transpose(image_module.Transpose.ROTATE_90), exif=exif)
    bodies = [
        original,
        turned,
        saved(photo, progressive=True),
        saved(photo.convert("CMYK")),
        saved(photo.convert("L")),
        saved(photo.resize((40, 30))),
    ] * 3
    with ExampleGate("thumbnail", tmp_path) as gate:
        answers = gate.calls("thumbnail", bodies, "image/jpeg")
        assert {(a.status, a.headers["content-type"]) for a in answers} == {(200, "image/jpeg")}
        small = [image_module.open(BytesIO(a.body)) for a in answers]
        assert [s.size for s in small] == ([(218, 256)] * 5 + [(40, 30)]) * 3
        # The turned one shows the same picture, the same way up, and says no longer "turn me".
        assert not small[1].getexif().get(0x0112)
        points = [(x, y) for x in range(8, 218, 40) for y in range(8, 256, 40)]
        for point in points:
            one, other = (small[n].convert("L").getpixel(point) for n in (0, 1))
            assert abs(one - other) < 40

        icon = gate.call("icon", original)
        assert image_module.open(BytesIO(icon.body)).size == (55, 64)
        logo = gate.call("thumbnail", saved(photo.convert("RGBA"), "PNG"))
        assert logo.headers["content-type"] == "image/png"
        assert image_module.open(BytesIO(logo.body)).size == (218, 256)

        bad = [b"", b"no image", original[:20_000], _bomb(30_000), saved(photo, "TIFF")]
        for answer in gate.calls("thumbnail", bad):
            assert _problem(answer) == (422, "command-failed", "yes")
        workers = json.loads(gate.get("/workers").body)["workers"]
        assert [w["restarts"] for w in workers] == [0, 0, 0]


def _bomb(side: int) -> bytes:
    """A PNG of a few KiB that claims `side` by `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    pixels = compress(bytes(side) * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_chess(tmp_path: Path) -> None:
    """The engine finds mates in one; a position that crashes it hurts nobody else."""
    need("/usr/games/stockfish", "stockfish")
    mates = {
        "6k1/5ppp/8/8/8/8/8/R3K2R w - - 0 1": "a1a8",
        "r1bqkb1r/pppp1ppp/2n2n2/4p2Q/2B1P3/8/PPPP1PPP/RNB1K1NR w KQkq - 4 4": "h5f7",
        "rnbqkbnr/pppp1ppp/8/4p3/6P1/5P2/PPPPP2P/RNBQKBNR b KQkq - 0 2": "d8h4",
    }
    with ExampleGate("chess", tmp_path) as gate:
        # Not one king: some versions of the engine crash on it.
        kingless = "8/8/8/8/8/8/8/8 w - - 0 1"
        *answers, odd = gate.calls("chess", [*mates, *mates, kingless])
        for answer, move in zip(answers, [*mates.values()] * 2, strict=True):
            *thoughts, last = answer.text.split("\n")
            assert last.split()[:2] == ["bestmove", move]
            assert "score mate 1" in thoughts[-1]
        if odd.status != 200:
            assert _problem(odd) == (502, "poison-command", "maybe")
            assert _problem(gate.call("chess", kingless)) == (502, "poison-command", "no")
        mated = "7k/5KQ1/8/8/8/8/8/8 b - - 0 1"
        assert gate.call("chess", mated).text.endswith("bestmove (none)")


def test_php(tmp_path: Path) -> None:
    """A PHP page renders orders; what it cannot render is a problem, and nothing is half done."""
    need("php", "php-cli")

    def order(number: int) -> str:
        items = [{"name": "<Lace>", "quantity": number, "cents": 1250}]
        return json.dumps({"number": number, "customer": "Ada & Söhne", "items": items})

    with ExampleGate("php", tmp_path) as gate:
        answers = gate.calls("invoice", [order(n) for n in range(1, 21)], _JSON)
        for number, answer in enumerate(answers, 1):
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert f"<h1>Invoice {number}</h1>" in answer.text
            assert "<p>For Ada &amp; Söhne</p>" in answer.text
            assert f"<td>&lt;Lace&gt;</td><td>{number}</td>" in answer.text
            assert f"<p>Total {number * 12.5:.2f}</p>" in answer.text
        large = json.loads(order(1))
        large["items"] *= 20_000  # far over a pipe's length, both ways
        assert gate.call("invoice", json.dumps(large)).text.count("&lt;Lace&gt;") == 20_000

        empty, broken, half = gate.calls(
            "invoice", ["{}", "{", '{"number":1,"customer":"A","items":[{"name":"x"}]}']
        )
        assert _problem(empty) == (422, "command-failed", "yes")
        assert _problem(broken) == (422, "command-failed", "yes")
        assert _problem(half) == (500, "command-failed", "yes")
        workers = json.loads(gate.get("/workers").body)["workers"]
        assert [w["restarts"] for w in workers] == [0, 0]


def test_workers(tmp_path: Path) -> None:
    """The same worker in six languages: the same answers, also to what is no text."""
    for program, package in (("node", "nodejs"), ("perl", "perl"), ("php", "php-cli")):
        need(program, package)
    need("ruby", "ruby")
    languages = ["node", "perl", "php", "python", "ruby"]
    text = "  Über den\tWolken\n\n* $HOME `ls`\r\n".encode()
    with ExampleGate("workers", tmp_path) as gate:
        for language in languages:
            (answer,) = gate.calls(language, [text])
            assert answer.headers["content-type"] == _JSON
            assert json.loads(answer.body) == {"bytes": len(text), "words": 6}
            assert json.loads(gate.call(language, b"").body) == {"bytes": 0, "words": 0}
            assert _problem(gate.call(language, b"\xff")) == (422, "command-failed", "yes")
            large = b"word " * 500_000
            answer = gate.call(language, large)
            assert json.loads(answer.body) == {"bytes": len(large), "words": 500_000}
        line = text.replace(b"\n", b" ").replace(b"\r", b" ")
        for language in [*languages, "shell"]:
            answer = gate.call(language, line)
            assert json.loads(answer.body) == {"bytes": len(line), "words": 6}
        workers = json.loads(gate.get("/workers").body)["workers"]
        assert [w["restarts"] for w in workers] == [0] * 6


def test_moderation(tmp_path: Path) -> None:
    """A real model: in batches it says what it says one by one, and each caller gets its own."""
    need_module("profanity_check")
    words = ["garden", "idiot", "harbour", "stupid", "morning", "shut up", "thanks", "fish"]
    texts: list[bytes | str] = [
        f"{a} and {b}, you {c}" for a in words for b in words for c in words
    ]
    with ExampleGate("moderation", tmp_path) as gate:
        texts = texts[:48]
        together = gate.calls("moderation", texts)
        alone = gate.calls("one-by-one", texts)
        assert {a.status for a in together} == {200}
        assert [a.body for a in together] == [a.body for a in alone]
        assert len({a.body for a in together}) > len(texts) / 2
        document = json.loads(gate.get("/queues/moderation").body)
        assert document["batch"]["mean"] > 1

        *good, bad = gate.calls("moderation", ["fine", "fine", b"\xff\xfe"])
        assert {a.status for a in good} == {200}
        assert _problem(bad) == (422, "command-failed", "yes")


def test_document(tmp_path: Path) -> None:
    """A graph grows by what is found in a document, and its end has read all of it."""
    folder = EXAMPLES / "document"
    sections = _sections((EXAMPLES.parent / "docs" / "jobs.md").read_text())
    common = set((folder / "common-words.txt").read_text().split())
    with ExampleGate("document", tmp_path) as gate:
        found = gate.graph((folder / "graph.json").read_bytes())
        assert found["state"] == "succeeded", found
        joined = found["jobs"]["index"]["reply"]
        assert [(s["number"], s["title"]) for s in joined["sections"]] == list(sections)
        assert [s["words"] for s in joined["sections"]] == [len(w) for w in sections.values()]
        assert joined["words"] == sum(len(words) for words in sections.values())
        said = [subject for s in joined["sections"] for subject in s["about"]]
        assert said
        assert not common & {*said, *joined["index"]}
        words = {number: words for (number, _), words in sections.items()}
        for subject, numbers in joined["index"].items():
            assert numbers == [n for n in words if n in numbers]
            assert all(subject in words[n] for n in numbers)
        places = [n for numbers in joined["index"].values() for n in numbers]
        for number, its in words.items():
            telling = {word for word in its if len(word) > 2} - common
            assert places.count(number) == min(15, len(telling))

        # Two jobs were submitted; the last has waited for all that were found on the way.
        names = [f"{number} {title}" for number, title in sections]
        state = json.loads(gate.get(f"/graphs/{found['id']}").body)
        assert {*names, "split"} <= set(state["jobs"]["index"]["needs"])
        assert set(state["jobs"]) == {*state["jobs"]["index"]["needs"], "index"}
        studied = [j["id"] for j in state["jobs"].values() if j["queue"] == "study"]
        assert len(studied) == len(sections)
        workers = {json.loads(gate.get(f"/jobs/{id_}").body)["worker"] for id_ in studied}
        assert len(workers) > 1
        picture = ET.fromstring(gate.get(f"/graphs/{found['id']}.svg").body)
        titles = [str(title.text) for title in picture.iter(f"{_SVG}title")]
        assert titles[0].startswith(f"{len(state['jobs'])} jobs, succeeded")
        assert {title.split("\n")[0] for title in titles[1:]} == set(state["jobs"])

        for path in ("../secret.md", "docs/nothing.md", "/etc/passwd"):
            jobs = json.loads((folder / "graph.json").read_text())["jobs"]
            jobs["split"]["body"]["path"] = path
            found = gate.graph(json.dumps({"jobs": jobs}))
            assert found["state"] == "failed"
            assert found["jobs"]["split"]["error"]["status"] == 422
            assert path in found["jobs"]["split"]["error"]["title"]
            detail = found["jobs"]["index"]["error"]["detail"]
            assert detail == "it needed split, which is failed"


def _sections(text: str) -> dict[tuple[str, str], list[str]]:
    """The words of a document's sections by number and title; what precedes parts is part 0."""
    numbers: list[int] = []
    blank: dict[tuple[str, str], bool] = {}
    found: dict[tuple[str, str], list[str]] = {}
    code = False
    for line in text.split("\n"):
        code ^= line.lstrip().startswith("```")
        if line.startswith("#") and not code:
            hashes, _, title = line.partition(" ")
            numbers = [*numbers, 0][: len(hashes)]
            numbers[-1] += 1
            place = ".".join(map(str, numbers)), title
            blank[place], found[place] = True, []
            continue
        blank[place] = blank[place] and not line.strip()
        if not code and "```" not in line:
            found[place] += _words(line)
    parents = {number.rpartition(".")[0] for number, _ in found}
    return {
        (number + ".0" * (number in parents), title): words
        for (number, title), words in found.items()
        if number not in parents or not blank[number, title]
    }


def _words(line: str) -> list[str]:
    line = "".join(c if c.isalpha() or c in "'-" else " " for c in line.lower())
    for pair in ("--", "-'", "'-", "''"):
        line = line.replace(pair, " ")
    return [word.strip("'-") for word in line.split() if word.strip("'-")]


def test_ingest(tmp_path: Path) -> None:
    """A photograph goes into S3-compatible storage, two look at it, and their words are joined."""
    need("jq", "jq")
    need_installed("boto3", "flask_cors", "moto")
    image_module = need_module("PIL.Image")
    photograph = _photograph().read_bytes()
    photo = image_module.open(BytesIO(photograph))
    box = image_module.Resampling.BOX
    average = photo.convert("RGB").resize((1, 1), box).getpixel((0, 0))

    def document(data: bytes) -> bytes:
        jq = ["jq", "-R", "-f", str(EXAMPLES / "ingest" / "ingest.jq")]
        return subprocess.run(jq, input=b64encode(data), capture_output=True, check=True).stdout

    copy = tmp_path / "ingest"
    shutil.copytree(EXAMPLES / "ingest", copy)
    with Storage(tmp_path) as storage:
        _replace(copy / "storage.ini", "127.0.0.1:9000", f"127.0.0.1:{storage.port}")
        soon = "[queues.store]\nbackoff = { first = 0.05 }"
        _replace(copy / "jobgate.toml", "[queues.store]", soon)
        with ExampleGate(copy, tmp_path) as gate:
            found = gate.graph(document(photograph))
            assert found["state"] == "succeeded", found
            joined = {**found["jobs"]["join"]["reply"]}
            image = joined.pop("image")
            assert image["key"] == sha256(photograph).hexdigest() + ".jpeg"
            colours, brightness = joined.pop("colours"), joined.pop("brightness")
            assert joined == {
                "format": photo.format,
                "width": 512,
                "height": 600,
                "mode": "RGB",
                "comment": photo.info["comment"].decode(),
                "exif": {},
            }
            # Its colours by their shares, mixed again, are the colour of the whole photograph.
            assert sum(colour["share"] for colour in colours) == pytest.approx(1, abs=0.01)
            for at, wanted in zip((1, 3, 5), average, strict=True):
                mixed = sum(int(c["colour"][at : at + 2], 16) * c["share"] for c in colours)
                assert mixed == pytest.approx(wanted, abs=6)
            grey = photo.convert("L").resize((1, 1), box).getpixel((0, 0))
            assert brightness == pytest.approx(grey / 255, abs=0.02)

            path = f"/{image['bucket']}/{image['key']}"
            assert storage.get(path) == (200, "image/jpeg", photograph)
            status, kind, text = storage.get(path + ".json")
            assert (status, kind) == (200, "application/json")
            assert json.loads(text) == found["jobs"]["join"]["reply"]

            found = gate.graph(document(b"no image"))
            assert _ends(found) == ["failed", "cancelled", "cancelled", "cancelled"]
            assert found["jobs"]["store"]["error"]["status"] == 422
            # It begins as a photograph does, and there is no more of it.
            found = gate.graph(document(photograph[:20_000]))
            assert _ends(found) == ["succeeded", "failed", "succeeded", "cancelled"]
            assert found["jobs"]["colours"]["error"]["status"] == 422

            storage.end()
            found = gate.graph(document(photograph))
            assert found["state"] == "failed"
            assert _ends(found) == ["dead", "cancelled", "cancelled", "cancelled"]
            error = found["jobs"]["store"]["error"]
            assert (error["status"], error["title"]) == (502, "the storage cannot be used")
            assert f"127.0.0.1:{storage.port}" in error["detail"]
            for name in ("colours", "facts"):
                detail = found["jobs"][name]["error"]["detail"]
                assert detail == "it needed store, which is dead"
            store = json.loads(gate.get(f"/jobs/{found['jobs']['store']['id']}").body)
            assert len(store["tries"]) == store["attempts"]
            workers = json.loads(gate.get("/workers").body)["workers"]
            assert [w["restarts"] for w in workers] == [0] * 4


def _ends(found: dict[str, Any]) -> list[str]:
    return [found["jobs"][name]["state"] for name in ("store", "colours", "facts", "join")]


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
