"""`lltool chat` on a terminal: keys, pastes, Ctrl-C, history, completion, and what a model may print."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from lltool.gguf.metadata import ValueType, array, string
from lltool.tools.terminal import without_controls
from tests.eval.tiny_text_model import TOKENS
from tests.tools.chat_model import CONTEXT, EXACT, TEMPLATE, write_repeating
from tests.tools.terminal import Terminal


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_repeating(tmp_path_factory.mktemp("model") / "tiny.gguf")


def chat_in_terminal(model: str, *options: str, **environment: str) -> Terminal:
    return Terminal(["chat", model, *EXACT, "-c", str(CONTEXT), *options], environment)


def test_run_without_a_prompt_is_a_chat(model: str) -> None:
    with Terminal(["run", "-m", model, *EXACT, "-n", "4"]) as terminal:
        terminal.wait_for_prompt()
        terminal.press("Hi\r")
        terminal.wait_for("8888")


def test_a_paste_of_several_lines_is_one_message(model: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    with chat_in_terminal(model, "-n", "4") as terminal:
        terminal.wait_for_prompt()
        terminal.paste("one\ntwo\r\n\rthree\r")
        terminal.wait_for("three")
        assert "8888" not in terminal.text
        terminal.press(" and\r")
        terminal.wait_for("8888")
        terminal.wait_for_prompt()
        terminal.press(f"/save {path}\r")
        terminal.wait_for("saved in")
        terminal.press("\x04")
        assert terminal.wait_for_end() == 0
    assert json.loads(path.read_text())["messages"][0]["content"] == "one\ntwo\n\nthree\n and"


def test_a_block_of_several_lines_is_one_message(model: str) -> None:
    with chat_in_terminal(model, "-n", "4") as terminal:
        terminal.wait_for_prompt()
        terminal.press('"""\rone\r/two\r"""\r')
        terminal.wait_for("8888")
        terminal.wait_for_prompt()
        assert terminal.lines[1:] == ['> """', "... one", "... /two", '... """', "8888", ">"]
        terminal.press("/stats\r")
        terminal.wait_for("[prompt 15 tokens")


def test_keys_typed_during_an_answer_wait_for_the_next_prompt(model: str) -> None:
    with chat_in_terminal(model, "-n", "3000") as terminal:
        terminal.wait_for_prompt()
        terminal.press("Hi\r")
        terminal.wait_for("8" * 100)
        terminal.press("typed ")
        terminal.paste("and\npasted")
        terminal.wait_for("pasted")
        assert terminal.lines[-2:] == ["> typed and", "... pasted"]
        answer = "".join(terminal.lines[2:-2])
        assert answer == "8" * 3000
        assert b"200~" not in terminal.printed
        terminal.press("\r/stats\r")
        terminal.wait_for("| 4 messages]")


def test_ctrl_c_stops_an_answer_and_twice_leaves(model: str) -> None:
    with chat_in_terminal(model) as terminal:
        terminal.wait_for_prompt()
        terminal.press("Hi\r")
        terminal.wait_for("8" * 100)
        terminal.press("\x03")
        terminal.wait_for_prompt()
        length = "".join(terminal.lines).count("8")
        assert 100 <= length < CONTEXT - 100
        terminal.press("/set n 4\r")
        terminal.wait_for("max_tokens   4")
        terminal.press("And?\r")
        terminal.wait(lambda: "8888" in terminal.lines)
        terminal.wait_for_prompt()
        terminal.press("/stats\r")
        terminal.wait_for("| 4 messages]")
        terminal.wait_for_prompt()
        terminal.press("half a line\x03")  # only drops the line
        terminal.wait(lambda: terminal.lines[-2:] == ["> half a line", ">"])
        assert "Ctrl-C again" not in terminal.text
        terminal.press("\x03")
        terminal.wait_for("Ctrl-C again, or Ctrl-D, leaves")
        terminal.wait_for_prompt()
        terminal.press("\x03")
        assert terminal.wait_for_end() == 0


def opens_for_writing(path: Path, descriptors: list[int]) -> bool:
    """Opens a pipe that somebody reads; false while nobody does."""
    try:
        descriptors.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def test_ctrl_c_stops_a_command(model: str, tmp_path: Path) -> None:
    path = tmp_path / "nobody-writes-here"
    os.mkfifo(path)
    with chat_in_terminal(model, "-n", "4") as terminal:
        terminal.wait_for_prompt()
        terminal.press(f"/read {path}\r")
        writer: list[int] = []
        terminal.wait(lambda: opens_for_writing(path, writer))  # until the command has the pipe open
        terminal.press("\x03")
        terminal.wait_for("note: stopped; the conversation is as it was before")
        terminal.wait_for_prompt()
        terminal.press("Hi\r")
        terminal.wait_for("8888")
    os.close(writer[0])


@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_sigterm_ends_the_chat_and_the_terminal_is_as_before(model: str, moment: str) -> None:
    import termios

    with chat_in_terminal(model) as terminal:
        before = termios.tcgetattr(terminal.child.child_fd)
        terminal.wait_for_prompt()
        assert termios.tcgetattr(terminal.child.child_fd) != before
        if moment == "answer":
            terminal.press("Hi\r")
            terminal.wait_for("8888")
        os.kill(terminal.child.pid, signal.SIGTERM)
        terminal.wait_for("lltool: interrupted")
        after = termios.tcgetattr(terminal.child.child_fd)
        assert terminal.wait_for_end() == 143
    assert after == before
    assert terminal.printed.rindex(b"\x1b[?2004l") > terminal.printed.rindex(b"\x1b[?2004h")


def test_what_is_typed_is_kept_for_the_next_chat(model: str, tmp_path: Path) -> None:
    for number in range(2):
        with chat_in_terminal(model, "-n", "4", HOME=str(tmp_path)) as terminal:
            terminal.wait_for_prompt()
            terminal.press("Hi there\r" if number == 0 else "\x1b[A\r")
            terminal.wait_for("8888")
            terminal.wait_for_prompt()
            assert "> Hi there" in terminal.lines
    path = tmp_path / ".cache" / "lltool" / "chat_history"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with chat_in_terminal(model, "-n", "4", "--no-history", HOME=str(tmp_path)) as terminal:
        terminal.wait_for_prompt()
        terminal.press("secret\r")
        terminal.wait_for("8888")
    assert path.read_bytes() == before


def test_a_history_that_cannot_be_kept_is_said(model: str, tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("")
    with chat_in_terminal(model, "-n", "4", HOME=str(tmp_path)) as terminal:
        terminal.wait_for("what you type is not kept for the next chat")
        terminal.wait_for_prompt()


def test_commands_and_paths_are_completed(model: str, tmp_path: Path) -> None:
    (tmp_path / "only.json").write_text("[]")
    with chat_in_terminal(model, "-n", "4") as terminal:
        terminal.wait_for_prompt()
        terminal.press("/loa\t")
        terminal.wait_for("> /load")
        terminal.press(f" {tmp_path}/on\t")
        terminal.wait_for("only.json")
        terminal.press("\r")
        terminal.wait_for("0 messages loaded")
        terminal.wait_for_prompt()
        terminal.press("/set temp\t")
        terminal.wait_for("> /set temperature")


def test_a_typed_byte_that_is_not_utf8_is_one_error(model: str) -> None:
    with chat_in_terminal(model, "-n", "4") as terminal:
        terminal.wait_for_prompt()
        terminal.child.send(b"caf\xe9\r")
        terminal.wait_for("lltool: error: the message: byte 3 is not UTF-8 (0xe9)")
        terminal.wait_for_prompt()
        terminal.press("Hi\r")
        terminal.wait_for("8888")


def test_a_terminal_without_escapes_gets_none_of_ours(model: str) -> None:
    with chat_in_terminal(model, "-n", "4", "-p", "Hi", TERM="dumb") as terminal:
        terminal.wait_for("> Hi")
        terminal.wait_for("8888")
        terminal.wait_for_prompt()
        terminal.press("/x\r")
        terminal.wait_for("no command /x")
    assert [code for code in (b"[?2004h", b"[1m", b"[2m", b"[1;31m") if code in terminal.printed] == []


def test_colours_are_for_terminals_without_no_color(model: str) -> None:
    for environment, has_colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        with chat_in_terminal(model, "-n", "4", **environment) as terminal:
            terminal.wait_for_prompt()
            terminal.press("/x\r")
            terminal.wait_for("no command /x")
        assert (b"\x1b[1;31merror:" in terminal.printed) == has_colours
        assert (b"\x1b[2m" in terminal.printed) == has_colours


def test_a_terminal_is_asked_on_stderr_where_stdout_is_a_file(model: str, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with Terminal(["chat", model, *EXACT, "-n", "4"], stdout=str(path)) as terminal:
        terminal.wait_for_prompt()
        terminal.press("Hi\n")
        terminal.wait(lambda: terminal.lines[-2:] == ["> Hi", ">"])
        terminal.press("\x04")
        assert terminal.wait_for_end() == 0
    assert path.read_text() == "8888\n"


def test_a_model_cannot_take_over_the_terminal(tmp_path: Path) -> None:
    tokens = array(ValueType.STRING, ["\u011b" if token == "8" else token for token in TOKENS])  # byte 0x1b in GPT-2's
    template = string(TEMPLATE.replace("8", "\x1b"))
    path = write_repeating(
        tmp_path / "hostile.gguf", **{"tokenizer.ggml.tokens": tokens, "tokenizer.chat_template": template}
    )
    with chat_in_terminal(path, "-n", "4") as terminal:
        terminal.wait_for_prompt()
        terminal.press("Hi\r")
        terminal.wait_for("\\x1b" * 4)
    assert without_controls("a\tb\nü世\x1b[2J\r\x07\x9b") == "a\tb\nü世\\x1b[2J\\r\\x07\\x9b"
