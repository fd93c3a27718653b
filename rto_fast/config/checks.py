"""The one check of a setting's value."""


def check(ok: bool, name: str, wanted: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")
