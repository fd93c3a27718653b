"""Reward functions as a user would write them, some of them wrong."""

import sys

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


def key_error_at_six(answers):
    return [{"four": 1.0}[a.response] for a in answers]


def exits_at_six(answers):
    return [1.0 if a.response == "four" else sys.exit("no more") for a in answers]


def asserts(answers):
    assert len(answers) < 2, "one\nat a time"
    return [1.0]


def recurses(answers):
    return recurses(answers)


class Own(BaseException):
    def __str__(self):
        raise ValueError("there is no saying it")


def own_exception(answers):
    raise Own


def interrupted(answers):
    raise KeyboardInterrupt


class Unspeakable:
    def __repr__(self):
        raise ValueError("there is no showing it")


def unspeakable(answers):
    return [Unspeakable() for _ in answers]


class NoArray:
    def tolist(self):
        raise OSError("it is gone")


def no_array(answers):
    return NoArray()


class Graded:
    @staticmethod
    def all_one(answers):
        return [True for _ in answers]


not_a_function = 3
