"""What is printed and written: UTF-8 without a locale, and a reader that leaves ends nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slaterl.sweeps.slots import output_to
from tests.report import made

CHECKOUT = Path(__file__).resolve().parents[1]
# without any help of Python's: neither UTF-8 mode nor another locale in place of C
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
RANDOM = ["stage=evaluate", "agent=random", "scale=smoke", "device=cpu", "threads=1", "env.num_items=100"]


def python(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    settings = {"SLATERL_HOME": str(home), "PYTHONPATH": str(CHECKOUT), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, cwd=CHECKOUT)


def manifests(home: Path) -> list[dict]:
    return [json.loads(file.read_bytes()) for file in home.glob("*/*/*/manifest.json")]


@pytest.mark.parametrize("environment", [ASCII, {**ASCII, "PYTHONIOENCODING": "ascii"}], ids=["locale", "streams"])
def test_chinese_folder_without_a_locale(environment: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "输出"
    done = python("-m", "slaterl.run", *RANDOM, home=home, **environment)
    assert done.returncode == 0, done.stderr.decode()
    folder = Path(os.fsdecode(done.stdout.splitlines()[-1]))
    assert folder.parts[: len(home.parts)] == home.parts and (folder / "result.json").is_file()
    assert "±" in done.stderr.decode("utf-8")

    done = python("-m", "slaterl.run", "stage=report", home=home, **environment)
    assert done.returncode == 0, done.stderr.decode()
    report = Path(os.fsdecode(done.stdout.splitlines()[-1]))
    for name in ("report.html", "report.md", "report.tex", "runs.csv", "summary.csv", "manifest.json"):
        assert (report / name).read_bytes().decode("utf-8"), name
    assert str(home) in (report / "report.html").read_text(encoding="utf-8")
    assert str(home) in (report / "runs.csv").read_text(encoding="utf-8")


def test_page_is_utf_8_in_a_gbk_locale(tmp_path: Path) -> None:
    """Python asks the locale for the encoding of every file that is opened without one."""
    for seed in (1, 2):
        made.finished(made.config_of(tmp_path / "输出", "agent=dqn", seed=seed), 10.0 + seed, (5.0,))
    script = (
        "import builtins, io, sys\n"
        "def in_gbk(file, mode='r', buffering=-1, encoding=None, *more, **others):\n"
        "    if encoding in (None, 'locale') and 'b' not in mode: encoding = 'gbk'\n"
        "    return plain(file, mode, buffering, encoding, *more, **others)\n"
        "plain, io.text_encoding = io.open, lambda encoding, level=2: encoding or 'locale'\n"
        "builtins.open = io.open = in_gbk\n"
        "from slaterl.run import command\n"
        "sys.argv = ['run.py', 'stage=report']\n"
        "command()\n"
    )
    done = python("-c", script, home=tmp_path / "输出", PYTHONIOENCODING="gbk")
    assert done.returncode == 0, done.stderr.decode("gbk")
    report = Path(done.stdout.decode("gbk").splitlines()[-1])
    for name in ("report.html", "report.md", "runs.csv"):
        assert "输出" in (report / name).read_text(encoding="utf-8") or name == "report.md"
    assert "±" in (report / "report.html").read_text(encoding="utf-8")
    assert "±" in (report / "report.md").read_text(encoding="utf-8")


def test_every_text_file_names_its_encoding() -> None:
    """Calls that ask the locale: `open` in text mode, `read_text`, `write_text`, and pipes as text."""
    missing = []
    for file in [*(CHECKOUT / "slaterl").rglob("*.py"), *(CHECKOUT / "hydra_plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _asks_the_locale(node):
                missing.append(f"{file.relative_to(CHECKOUT)}:{node.lineno}")
    assert not missing, f"without an encoding: {missing}"


def _asks_the_locale(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name in ("read_text", "to_csv", "read_csv"):
        return name == "read_text"  # pandas has UTF-8 as its default
    if name == "write_text":
        return isinstance(call.func, ast.Attribute)  # the function of slaterl.runs.files is UTF-8
    if isinstance(call.func, ast.Name) and name in ("open", "fdopen"):
        modes = [*call.args[1:2], *([given["mode"]] if "mode" in given else [])]
        return not any(isinstance(mode, ast.Constant) and "b" in mode.value for mode in modes)
    return "text" in given or "universal_newlines" in given


def test_the_rule_finds_what_it_is_for() -> None:
    found = {"open(file)", "open(file, 'w')", "path.read_text()", "path.write_text(x)", "run(x, text=True)"}
    fine = {"open(file, 'wb')", "path.read_text(encoding='utf-8')", "write_text(path, x)", "os.open(path, 1)"}
    calls = {text: ast.parse(text, mode="eval").body for text in found | fine}
    assert {text for text, call in calls.items() if _asks_the_locale(call)} == found  # type: ignore[arg-type]


def test_log_of_a_job_is_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "stdout", "w", encoding="gbk") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with output_to(tmp_path / "log.txt"):
            os.dup2(1, stream.fileno())
            print("9.4 ± 1.4 输出")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "9.4 ± 1.4 输出\n"


def test_log_of_the_next_job_of_a_worker(tmp_path: Path) -> None:
    """The streams of a worker change between its pipe, which cannot seek, and one log after the other."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from slaterl import output\n"
        "from slaterl.sweeps.slots import output_to\n"
        "for name in 'ab':\n"
        "    with output_to(Path(sys.argv[1], name)):\n"
        "        output.set_up()\n"
        "        print('\\u00b1 1')\n"
        "print('end')\n"
    )
    done = python("-c", script, str(tmp_path), home=tmp_path, **ASCII)
    assert (done.returncode, done.stdout) == (0, b"end\n"), done.stderr.decode()
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in "ab"] == ["± 1\n", "± 1\n"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_reader_that_leaves(stream: str, unbuffered: list[str]) -> None:
    """All that is written afterwards goes nowhere: by print, by rich, by a progress bar, at the end of the process."""
    script = (
        "import sys\n"
        "from slaterl import output\n"
        "from slaterl.console import note, progress\n"
        "output.set_up()\n"
        f"print('first', file=sys.{stream}, flush=True)\n"
        "sys.stdin.readline()\n"
        "for i in range(1000):\n"
        f"    print('more', file=sys.{stream})\n"
        "    note('more')\n"
        "with progress('updates', 10, 'updates') as show:\n"
        "    show(10)\n"
        "sys.exit(7)\n"
    )
    other = "stderr" if stream == "stdout" else "stdout"
    pipes = {"stdin": subprocess.PIPE, stream: subprocess.PIPE, other: subprocess.PIPE}
    command = [sys.executable, *unbuffered, "-c", script]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, **pipes) as process:
        assert getattr(process, stream).readline() == b"first\n"
        getattr(process, stream).close()
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        assert b"Traceback" not in getattr(process, other).read()
    assert process.returncode == 7, "its own status"


def test_unbuffered_stays_so() -> None:
    """submitit starts jobs with `python -u`, and people follow their logs."""
    script = (
        "import sys\n"
        "from slaterl import output\n"
        "output.set_up()\n"
        "output.set_up()\n"  # the second one changes nothing
        "print('no end of line', end='')\n"
        "sys.stdin.readline()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, "-u", "-c", script], env=environment, **pipes) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.read(14) == b"no end of line"
        process.stdin.close()


def test_run_into_a_closed_pipe_is_a_good_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run = [sys.executable, "-m", "slaterl.run", *RANDOM]
    environment = {**os.environ, "SLATERL_HOME": str(home), "PYTHONPATH": str(CHECKOUT)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(run, env=environment, cwd=tmp_path, **pipe) as process:
        assert process.stdout is not None
        process.stdout.close()  # before there is a first line
    assert process.returncode == 0
    assert [manifest["status"] for manifest in manifests(home)] == ["finished"]
