"""Reward functions as a user would write them, some of them wrong."""

import torch


def lengths(answers):
    return [len(a.response) for a in answers]


def as_tensor(answers):
    return torch.tensor([float(len(a.response)) for a in answers])


def numpy_scalars(answers):
    return list(as_tensor(answers).numpy())


def one_short(answers):
    return [0.0] * (len(answers) - 1)


def second_is_nan(answers):
    return [0.0, float("nan"), *[1.0] * (len(answers) - 2)]


def strings(answers):
    return ["good" for _ in answers]


def nothing(answers):
    return None


def a_matrix(answers):
    return torch.zeros(len(answers), 1)


def raises(answers):
    raise KeyError("mine")


class Graded:
    @staticmethod
    def all_one(answers):
        return [True for _ in answers]


not_a_function = 3
