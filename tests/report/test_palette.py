"""Colours that stay readable and apart, for people who lack red or green cones too."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

STYLE = (Path(__file__).parents[2] / "rto_fast" / "report" / "style.css").read_text()
MEMBERS = ("rto", "ppo", "sparse", "semi", "rs", "grpo")
# Machado, Oliveira and Fernandes 2009, severity 1, linear RGB
SIGHT = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
# Ottosson 2020, linear RGB to OKLab
CONES = np.array([[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]])
LAB = np.array([[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]])
BLOCKS = re.findall(r"--paper:.*?(?=\})", STYLE, re.S)
THEMES = {"light": BLOCKS[0], "dark": BLOCKS[1], "dark by choice": BLOCKS[2]}


def colours(theme: str) -> dict[str, np.ndarray]:
    """Linear RGB by name."""
    found = {}
    for name, code in re.findall(r"--([\w]+): (#[0-9a-f]{6})", THEMES[theme]):
        channel = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        found[name] = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return found


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2's ratio."""
    light = sorted(float(c @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (a, b))
    return light[1] / light[0]


@pytest.mark.parametrize("theme", THEMES)
def test_text_and_labels_stand_out_from_the_paper(theme: str):
    found = colours(theme)
    for name in ("ink", "soft", "accent", *MEMBERS, "dpo", "sft", "rm", "good", "bad"):
        assert contrast(found[name], found["paper"]) >= 4.5, name


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_the_strongest_tints(theme: str):
    found = colours(theme)
    for name in ("plus", "minus"):
        assert contrast(found["ink"], found[name]) >= 3.5, name


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", THEMES)
def test_lines_of_one_chart_stay_apart(theme: str, sight: str):
    found = colours(theme)
    seen = {n: LAB @ np.cbrt(CONES @ np.clip(np.array(SIGHT[sight]) @ c, 0, 1)) for n, c in found.items()}
    pairs = [*combinations(MEMBERS, 2), ("good", "bad"), ("plus", "minus"), ("sft", "rto"), ("dpo", "rto")]
    for a, b in pairs:
        assert np.linalg.norm(seen[a] - seen[b]) >= 0.085, (a, b)
