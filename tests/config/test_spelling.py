"""A key on the command line that does not exist ends with the one that was probably meant."""

from __future__ import annotations

import sys

import pytest

from slaterl.config.spelling import explain_spelling, misspelt


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["max_step=100"], "max_step: no such setting; did you mean max_steps?"),
        (["gamma=0.5"], "gamma: no such setting; did you mean agent.gamma?"),
        (["agent=td3,sac", "-m", "agent.gama=0.9"], "agent.gama: no such setting; did you mean gamma?"),
        (["~agent.gama"], "agent.gama: no such setting; did you mean gamma?"),
        (["ranker=none", "ranker.temperature=1"], "ranker.temperature: no such setting; there are name"),
        (["env=focused_mix", "env.items.sed=1"], "env.items: no such setting; did you mean num_items?"),
        (["experiment=stable_environments", "env.no_item=3"], "env.no_item: no such setting; did you mean num_items?"),
    ],
)
def test_near_key_is_named(arguments: list[str], said: str) -> None:
    assert misspelt(arguments) == said


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent.gamma=0.5", "max_steps=3", "+agent.new=1", "hydra.no_such=1", "logger.no_such=1", "--cfg", "job"],
        ["env=no_such_environment", "max_step=3"],  # Hydra lists the choices
        ["ranker=gems", "params.lambda_KL=1", "-m"],
    ],
)
def test_nothing_to_say(arguments: list[str]) -> None:
    assert misspelt(arguments) is None


@pytest.mark.parametrize(("code", "hint"), [(1, True), (2, False), (0, False)])
def test_hint_follows_a_refusal(
    code: int, hint: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 1 is Hydra's; other ends have a message of their own."""
    monkeypatch.setattr(sys, "argv", ["slaterl", "max_step=100"])
    with pytest.raises(SystemExit) as end:
        explain_spelling(lambda: sys.exit(code))()
    assert end.value.code == code
    assert ("did you mean max_steps?" in capsys.readouterr().err) == hint
