"""Slots: the state of a text is saved, restored by another server and erased, and no request names a path."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.engine.server.tiny_server import running, write_tiny

PROMPT = "the old man went to the sea " * 5
ASKED = {"prompt": PROMPT.replace(" ", ""), "n_predict": 8, "temperature": 0}


def change(client: TestClient, action: str, name: str | None = "text.state", slot: int | str = 0) -> Any:
    return client.post(f"/slots/{slot}?action={action}", json={} if name is None else {"filename": name})


def test_a_restored_text_is_not_computed_again(tiny_path: Path, tmp_path: Path) -> None:
    with running(tiny_path, slot_save_path=tmp_path) as client:
        first = client.post("/completion", json=ASKED).json()
        saved = change(client, "save").json()
    assert first["id_slot"] == saved["id_slot"] == 0
    tokens = first["tokens_evaluated"] + 7  # the last token that was generated is not read
    assert (saved["filename"], saved["n_saved"]) == ("text.state", tokens)
    assert saved["n_written"] == (tmp_path / "text.state").stat().st_size
    with running(tiny_path, slot_save_path=tmp_path) as client:
        restored = change(client, "restore", slot=2).json()
        assert (restored["id_slot"], restored["n_restored"]) == (2, tokens)
        again = client.post("/completion", json={**ASKED, "id_slot": 2}).json()
        assert again["content"] == first["content"]
        assert again["timings"]["cache_n"] == first["tokens_evaluated"] - 1
        assert again["id_slot"] == 2
        assert change(client, "erase", None, slot=2).json() == {"id_slot": 2, "n_erased": tokens}
        assert client.post("/completion", json=ASKED).json()["timings"]["cache_n"] == 0
        assert change(client, "erase", None, slot=3).json()["n_erased"] == 0


def test_each_slot_has_its_own_text(tiny_path: Path, tmp_path: Path) -> None:
    with running(tiny_path, slot_save_path=tmp_path) as client:
        for slot, letter in enumerate("abc"):
            body = {"prompt": letter * (20 + slot), "n_predict": 1, "id_slot": slot}
            assert client.post("/completion", json=body).json()["id_slot"] == slot
        saved = [change(client, "save", f"{slot}.state", slot).json()["n_saved"] for slot in range(3)]
        refused = change(client, "save", "3.state", 3)
        shown = client.get("/slots").json()
    assert saved == [20, 21, 22]
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "slot 3 has no text in the cache; nothing is saved"
    assert [slot["id"] for slot in shown] == [0, 1, 2, 3]


NAMES = ["../a", "a/b", "/etc/passwd", "..", ".hidden", "a\\b", "a\0b", "", "ä", "a" * 129, "C:a", None]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leaves_the_folder(tiny_path: Path, tmp_path: Path, name: str | None) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    with running(tiny_path, slot_save_path=folder) as client:
        client.post("/completion", json=ASKED)
        for action in ("save", "restore"):
            assert change(client, action, name).status_code == 400
    assert list(tmp_path.iterdir()) == [folder]
    assert not list(folder.iterdir())


def test_what_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    with running(tiny_path) as client:
        client.post("/completion", json=ASKED)
        assert change(client, "save").status_code == 501
        assert change(client, "erase", None).status_code == 200
    other = write_tiny(tmp_path / "other.gguf", seed=3)
    (tmp_path / "text").write_text("no state")
    with running(other, slot_save_path=tmp_path) as client:
        client.post("/completion", json=ASKED)
        assert change(client, "save").status_code == 200
        assert change(client, "restore", "missing").status_code == 404
        damaged = change(client, "restore", "text")
        assert damaged.status_code == 400
        assert damaged.json()["error"]["message"].startswith("text: no file of a state")
        for slot in (4, "-1", "x", "99999999999"):
            assert change(client, "save", slot=slot).status_code == 400
        assert change(client, "remove").status_code == 400
        assert client.post("/completion", json={**ASKED, "id_slot": 4}).status_code == 400
    with running(tiny_path, slot_save_path=tmp_path) as client:
        refused = change(client, "restore")
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message == "text.state: the state was computed with another model; remove it or name another file"
    assert str(tmp_path) not in refused.text
