"""The README's picture: one user's 100 turns with a learned policy, and the same user with the short-term oracle.

    python docs/figures/policy_and_oracle.py path/to/best.ckpt docs/img/policy_and_oracle.png

The checkpoint of the picture: python -m slaterl.run experiment=head_to_head seed=496912423 threads=1
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.loading import load_policy
from slaterl.rollout import rollout
from slaterl.seeds import stream

USERS, USER, SEED = 200, 3, 7
BLUE, ORANGE, GREY = "#1f5fa8", "#e8590c", "#c9ced6"


def draw(checkpoint: str, file: str) -> None:
    loaded = load_policy(checkpoint)
    env = loaded.env
    oracle = EpsilonOracle(
        epsilon=0.0, num_items=env.num_items, slate_size=env.slate_size, generator=stream(SEED, "oracle")
    )
    policies = {f"SAC + GeMS after {loaded.step:,} steps": loaded.policy, "short-term oracle": oracle}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3, 1]})
    colours = LinearSegmentedColormap.from_list("slate", ["white", BLUE])
    for (heat, line), (title, policy) in zip(axes.T, policies.items(), strict=True):
        data = rollout(policy, env, USERS, generator=stream(SEED, "users"), deterministic=True, hidden=True)
        topics = env.item_topic[data.slates[USER, 1:].long()]  # [H, S]
        counts = torch.stack([(topics == topic).sum(1) for topic in range(env.num_topics)])  # [K, H]
        turns = np.arange(1, counts.shape[1] + 1)
        image = heat.imshow(
            counts,
            cmap=colours,
            vmin=0,
            vmax=env.slate_size,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, len(turns) + 0.5, env.num_topics - 0.5, -0.5),
        )
        for turn, topic in data.hidden["bored"][USER].nonzero().tolist():
            heat.plot([turn + 0.5, turn + 1.5], [topic + 0.46] * 2, color=ORANGE, linewidth=2, solid_capstyle="butt")
        heat.set_title(f"{title}: {data.returns.mean():.0f} clicks per user", fontsize=11)
        line.bar(turns, data.rewards[USER], color=GREY, width=1.0, label="this user")
        line.plot(turns, data.rewards.mean(0), color=BLUE, linewidth=1.8, label=f"mean of {USERS} users")
        line.set_xlabel("turn")
        line.set_xlim(0.5, len(turns) + 0.5)
        for axis in (heat, line):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].plot([], [], color=ORANGE, linewidth=2, label="bored of the topic")
    axes[0, 0].legend(loc="upper right", fontsize=8, frameon=False)
    axes[0, 0].set_ylabel("topic")
    axes[0, 0].set_yticks(range(env.num_topics))
    axes[1, 0].set_ylabel("clicks")
    axes[1, 0].set_ylim(0, 11)  # room for the legend
    axes[1, 0].legend(loc="upper left", fontsize=8, frameon=False, ncols=2)
    figure.colorbar(image, ax=axes[0], label="items on the slate", pad=0.01)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    draw(*sys.argv[1:])
