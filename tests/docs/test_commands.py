"""The commands of the documentation: all of them compose, and those marked as runnable run."""

from __future__ import annotations

import contextlib
import io
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.singleton import Singleton

from slaterl.config.check import check_config, keys_of
from slaterl.paths import CONF
from slaterl.run import main
from tests.docs.pages import PAGES, ROOT, Block, arguments_of, blocks, commands, shell_lines

SMOKE = ["scale=smoke", "device=cpu", "threads=1"]
COMMANDS = {tuple(arguments): place for place, arguments in commands()}  # each once


def first_of_sweeps(overrides: list[str]) -> list[str]:
    """The first job of a sweep: of values separated by commas the first one."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [
        f"{one.get_key_element()}={first_of(one)}" if one.is_sweep_override() else text
        for one, text in zip(parsed, overrides, strict=True)
    ]


def first_of(sweep: Override) -> object:
    """The first of some values, or the lower end of an interval."""
    value = sweep.value()
    return value.start if isinstance(value, IntervalSweep) else next(sweep.sweep_string_iterator())


def test_there_are_commands() -> None:
    """The patterns of pages.py find them: in blocks, in tables, with and without a marker."""
    assert len(COMMANDS) > 100
    assert ("-m", "seed=1,2,3", "hydra/launcher=local_gpus") in COMMANDS  # of a table
    assert ("env=focused_topdown", "agent=sac", "ranker=gems") in COMMANDS  # of a block
    assert sum(block.marker == "runnable" for page in PAGES for block in blocks(page)) > 15


def test_every_command_composes() -> None:
    """Those of a folder of one's own (--config-dir) are left to the blocks that run."""
    wrong = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for arguments, place in COMMANDS.items():
            if "--config-dir" in arguments:
                continue
            try:
                overrides = first_of_sweeps([word for word in arguments if "=" in word])
                cfg = compose("config", overrides)
                check_config(cfg, given=keys_of(overrides))
            except Exception as error:
                wrong.append(f"{place}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where a reader follows the pages, one after the other."""
    return tmp_path_factory.mktemp("reader")


PAGES_THAT_RUN = [
    page for page in PAGES if any(block.marker == "runnable" or block.language == "python" for block in blocks(page))
]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who follows a page from the top: files are written, blocks run in order, in one folder for all pages."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SLATERL_HOME", raising=False)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    monkeypatch.syspath_prepend(str(folder))
    known, names = set(sys.modules), {}
    for block in blocks(page):
        if block.marker.startswith("file: "):
            file = folder / block.marker.removeprefix("file: ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.marker == "runnable":
            for words in shell_lines(block.text):
                arguments = arguments_of(words)
                assert arguments is not None, f"{block.place}: only commands of slaterl can be run"
                run(block, arguments)
        elif block.language == "python":
            run_python(block, names)
    for name in set(sys.modules) - known:  # the next page may have another package of this name
        if name.split(".")[0] == "mine":
            del sys.modules[name]


def run(block: Block, arguments: list[str]) -> None:
    """What the command line does, in this process: one of its own would spend its time on imports."""
    if "stage=export" in arguments and find_spec("minari") is None:
        return  # Python 3.10 has no Minari
    added = [setting for setting in SMOKE if setting.split("=")[0] not in keys_of(arguments)]
    output, errors, before = io.StringIO(), io.StringIO(), Singleton.get_state()
    argv, sys.argv = sys.argv, ["slaterl", *arguments, *added]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as stopped:
        assert not stopped.code, f"{block.place}: {' '.join(arguments)}\n{errors.getvalue()}"
    finally:
        sys.argv = argv
        Singleton.set_state(before)  # else Hydra takes what follows for a part of this job
    if "stage=status" not in arguments:
        assert Path(output.getvalue().splitlines()[-1]).is_dir(), f"{block.place}: the last line is no folder"


def run_python(block: Block, names: dict[str, object]) -> None:
    """Blocks run as they stand, but for the path of a checkpoint."""
    text = block.text
    if "outputs/online/.../best.ckpt" in text:
        text = text.replace("outputs/online/.../best.ckpt", str(next(Path().glob("outputs/online/*/*/best.ckpt"))))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\n" * block.line + text, str(block.page), "exec"), names)
    if "print(" in text:
        assert output.getvalue().strip(), f"{block.place}: printed nothing"
