"""Reinforced Token Optimization (arXiv:2404.18922): DPO rewards every token, PPO optimises the reward."""

__version__ = "0.1.0"
