"""Models by name: paths, folders, and ids on the Hub, which a server on this machine stands in for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.hub import HubName, find_model, parse_hub_name
from tests.hub_server import COMMIT, Hub, serve

SHARDS = [f"big-Q6_K-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the content of {name}")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with three repositories, and huggingface_hub with an empty cache that asks it."""
    repositories = {
        "team/many": fill(
            tmp_path / "many", "config.json", "mmproj-m-Q4_K_M.gguf", "m-BF16.gguf", "m-Q4_0.gguf", "m-Q4_K_M.gguf",
            "m-UD-Q4_K_XL.gguf", *(f"Q6_K/{name}" for name in SHARDS),
        ),
        "team/odd": fill(tmp_path / "odd", "b.gguf", "a-instruct.gguf", "imatrix.gguf"),
        "team/eight": fill(tmp_path / "eight", "m-F16.gguf", "m-q8_0.gguf"),
        "team/none": fill(tmp_path / "none", "config.json"),
        "team/gated": fill(tmp_path / "gated", "m-Q4_K_M.gguf"),
        "team/torn": fill(tmp_path / "torn", *SHARDS[:2]),
    }  # fmt: skip
    with serve(Hub(repositories, gated={"team/gated"})) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


def use(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path) -> None:
    """Sets what huggingface_hub reads from its environment when it is imported."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("org/repo", HubName("org/repo")),
        ("org/repo-GGUF:q4_k_m", HubName("org/repo-GGUF", "q4_k_m")),
        ("org/repo:latest", HubName("org/repo")),
        ("org/repo/sub/m.gguf", HubName("org/repo", file="sub/m.gguf")),
        ("hf.co/org/repo:Q8_0", HubName("org/repo", "Q8_0")),
        ("hf://org/repo/m.gguf", HubName("org/repo", file="m.gguf")),
        ("hf://org/m.gguf", HubName("org/m.gguf")),
        ("https://huggingface.co/org/repo/", HubName("org/repo")),
        ("https://huggingface.co/org/repo/tree/main", HubName("org/repo")),
        ("https://huggingface.co/org/repo/resolve/main/m.gguf?download=true", HubName("org/repo", file="m.gguf")),
        ("folder/m.gguf", None),
        ("model", None),
        ("./org/repo", None),
        ("../repo", None),
        ("~/repo", None),
        ("/org/repo", None),
        ("org/repo/name", None),
        ("", None),
    ],
)
def test_hub_names(name: str, wanted: HubName | None) -> None:
    assert parse_hub_name(name) == wanted


def test_address_of_something_else() -> None:
    with pytest.raises(InputError, match=r"hf://datasets/a/b: wanted hf:// and then ORG/NAME, ORG/NAME:TYPE or ORG/"):
        parse_hub_name("hf://datasets/a/b")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "one", "m.gguf", "mmproj-m.gguf", "readme.md")
    split = fill(tmp_path / "split", *SHARDS)
    assert find_model(folder / "readme.md") == folder / "readme.md"  # its reader says what it is
    assert find_model(str(folder)) == folder / "m.gguf"
    assert find_model(split) == split / SHARDS[0]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/one/m.gguf") == folder / "m.gguf"


def test_a_path_comes_before_the_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "team" / "many", "here.gguf")
    assert find_model("team/many") == Path("team/many/here.gguf")
    with pytest.raises(InputError, match=r"team/many/her\.gguf: no such file; did you mean team/many/here\.gguf\?"):
        find_model("team/many/her.gguf")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.gguf", "b-Q4_0.gguf", "c.txt"], r"a folder with 2 models; name one of them: a\.gguf, b-Q4_0\.gguf"),
        (["config.json", "model.safetensors"], "a checkpoint's folder, wanted a GGUF file; `lltool convert` makes"),
        (["c.txt"], "a folder without a model, wanted a GGUF file"),
        (SHARDS[1:], r"a folder without a model, wanted a GGUF file; its files big-Q6_K-00002.* are parts of models"),
    ],
)
def test_folders_without_one_model(files: list[str], message: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "f", *files)
    with pytest.raises(InputError, match=message) as raised:
        find_model(folder)
    assert str(raised.value).startswith(f"{folder}: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models/smollm-Q4_0.gguf", r"no such file; did you mean .*models/smollm2-Q4_0\.gguf"),
        ("models/zzz.gguf", r"no such file; .*/models has smollm2-Q4_0\.gguf, x\.gguf"),
        ("model/x.gguf", r"/model: no such file or folder; did you mean .*/models\?"),
        ("nothing", "no such file or folder; wanted a GGUF file, a folder with one, or an id on the Hub, ORG"),
    ],
)
def test_missing_paths(name: str, message: str, tmp_path: Path) -> None:
    fill(tmp_path / "models", "smollm2-Q4_0.gguf", "x.gguf", "notes.txt")
    with pytest.raises(InputError, match=message):
        find_model(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("team/many", "m-Q4_K_M.gguf", "team/many: took m-Q4_K_M.gguf; a type can be named"),
        ("team/eight", "m-q8_0.gguf", "took m-q8_0.gguf"),
        ("team/odd", "a-instruct.gguf", "took a-instruct.gguf; a type can be named, as in team/odd:Q8_0"),
        ("hf.co/team/many:q4_0", "m-Q4_0.gguf", None),
        ("team/many:bf16", "m-BF16.gguf", None),
        ("team/many:q4_k_xl", "m-UD-Q4_K_XL.gguf", None),
        ("team/many:Q6_K", f"Q6_K/{SHARDS[0]}", None),
        ("team/odd/b.gguf", "b.gguf", None),
        ("team/gated", "m-Q4_K_M.gguf", None),
    ],
)
def test_types_on_the_hub(
    name: str, file: str, words: str | None, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    said: list[str] = []
    path = find_model(name, say=said.append)
    folder = tmp_path / "cache" / ("models--" + parse(name).replace("/", "--")) / "snapshots" / COMMIT
    assert path == folder / file
    assert path.read_text() == f"the content of {file}"
    assert hub.fetched() == ({file} if file not in f"Q6_K/{SHARDS[0]}" else {f"Q6_K/{shard}" for shard in SHARDS})
    assert len(said) == (words is not None)
    assert words is None or words in said[0]

    before = len(hub.requests)
    assert find_model(name, say=said.append) == path
    assert not any("/resolve/" in request for request in hub.requests[before:])  # nothing is downloaded again


def test_choices_are_logged_unless_they_are_said(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    find_model("team/eight")
    ((name, _, message),) = caplog.record_tuples
    assert name == "lltool.gguf.hub"
    assert message.startswith("team/eight: took m-q8_0.gguf; a type can be named")


def parse(name: str) -> str:
    found = parse_hub_name(name)
    assert found
    return found.id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "team/many:Q4_K",
            r"team/many: has no type Q4_K; it has Q6_K, BF16, Q4_0, Q4_K_M, UD-Q4_K_XL; did you mean",
        ),
        ("team/many:F16", r"has no type F16; it has .*; did you mean BF16\?"),
        ("team/odd:Q4_0", r"has no type Q4_0; it has a-instruct\.gguf, b\.gguf"),
        (
            "team/odd/a-instrukt.gguf",
            r"team/odd: has no file a-instrukt\.gguf; it has .*; did you mean a-instruct\.",
        ),
        ("team/none", "team/none: holds no GGUF model; if it is a checkpoint, `lltool convert team/none` makes one"),
        ("team/torn", r"team/torn: big-Q6_K-00001-of-00003\.gguf has 3 shards, but 1 are missing"),
        (f"team/many/Q6_K/{SHARDS[1]}", r"shard 2 of 3, wanted the first: Q6_K/big-Q6_K-00001-of-00003\.gguf"),
        (
            "team/wrong",
            "team/wrong: no such file or folder, not in the Hub's cache, and the Hub has no such model",
        ),
        (
            "team/gated",
            r"the Hub gives it to registered users only: ask for it at http://127.*/team/gated, then",
        ),
        ("team/a--b", "team/a--b: no such file or folder, not in the Hub's cache, and the Hub says: "),
    ],
)
def test_what_the_hub_does_not_have(name: str, message: str, hub: Hub) -> None:
    with pytest.raises(InputError, match=message):
        find_model(name)


def test_login_is_refused(hub: Hub) -> None:
    hub.status = 401
    with pytest.raises(InputError, match="log in with `hf auth login` or set HF_TOKEN"):
        find_model("team/many")


def test_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is used, and it is said; in offline mode, it is what was asked for."""
    path = find_model("team/many:Q4_0")
    disconnect(monkeypatch)
    said: list[str] = []
    assert find_model("team/many:Q4_0", say=said.append) == path
    assert said == [
        "team/many: using m-Q4_0.gguf in the Hub's cache, as the Hub (http://127.0.0.1:9) could not be reached"
    ]
    assert find_model("team/many", say=said.append) == path  # the only one that there is
    for name, message in (
        ("team/many:BF16", r"team/many in the Hub's cache \(as the Hub .* could not be reached\): has no type BF16"),
        ("team/odd", r"not in the Hub's cache, and the Hub \(http://127\.0\.0\.1:9\) could not be reached"),
    ):
        with pytest.raises(InputError, match=message):
            find_model(name)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said.clear()
    assert find_model("team/many:Q4_0", say=said.append) == path
    assert said == []
    with pytest.raises(InputError, match=r"team/odd: .* not in the Hub's cache, and HF_HUB_OFFLINE is set"):
        find_model("team/odd")


def test_server_with_trouble(hub: Hub) -> None:
    path = find_model("team/many:Q4_0")
    hub.status = 500
    said: list[str] = []
    assert find_model("team/many:Q4_0", say=said.append) == path
    assert "as the Hub says: " in said[0]
    with pytest.raises(InputError, match=r"team/odd: .*, and the Hub says: .*500"):
        find_model("team/odd")


def test_environment(hub: Hub, tmp_path: Path) -> None:
    """Runs in a separate process, because huggingface_hub reads its environment when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token}
    code = "import sys, lltool.gguf.hub as hub; assert 'huggingface_hub' not in sys.modules; "
    code += "print(hub.find_model('team/gated'))"
    for offline in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code], env={**environment, "HF_HUB_OFFLINE": offline}, capture_output=True, text=True
        )
        snapshot = tmp_path / "home" / "hub" / "models--team--gated" / "snapshots" / COMMIT
        assert run.stdout == f"{snapshot / 'm-Q4_K_M.gguf'}\n", run.stderr
        hub.status = 500
